use std::sync::Arc;

use k8s_openapi::ByteString;
use muster_proto::kinds::BareMetalHostSpec;

use super::*;
use crate::fake_api::FakeApi;

const NAME: &str = "bmc";
/// How long the API server's answers are under way.
const SLOW: Duration = Duration::from_secs(2);

fn secret(password: &str) -> Secret {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let login = [("username", "admin"), ("password", password)];
    let mut secret = Secret {
        data: Some(login.map(|(key, text)| (key.to_owned(), bytes(text))).into()),
        ..Secret::default()
    };
    secret.metadata.name = Some(NAME.to_owned());
    secret.metadata.namespace = Some("metal".to_owned());
    secret.metadata.uid = Some("uid-bmc".to_owned());
    secret
}

/// A Secret that is held for the first time, with `change` on the API server, and told, before the answer to that is there: which login
/// it has then.
async fn held_while(change: impl FnOnce(&FakeApi)) -> Option<Credentials> {
    let api = FakeApi::new();
    api.put("secrets", &secret("old"));
    api.set_slow(SLOW);
    let vault = Arc::new(Vault::new(api.client()).unwrap());
    let watch = Arc::clone(&vault);
    api.watch_secrets(move |secret, gone| {
        watch.take_in(&secret, gone);
    });
    let mut host = BareMetalHost::new("h", BareMetalHostSpec::default());
    host.metadata.namespace = Some("metal".to_owned());
    host.metadata.uid = Some("uid-h".to_owned());
    let meanwhile = async {
        tokio::time::sleep(SLOW / 2).await;
        change(&api);
    };
    let (held, ()) = tokio::join!(vault.hold(&host, NAME, Hold::Owned), meanwhile);
    held.unwrap();
    vault.login(&Path::beside(&host, NAME), None).await
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_a_newer_change_has_overtaken_is_not_believed() {
    let renewed = held_while(|api| api.put("secrets", &secret("new"))).await;
    assert_eq!(renewed, Some(Credentials::new("admin", "new")));
    let deleted = held_while(|api| {
        // Without what holds it.
        api.put("secrets", &secret("new"));
        api.delete("secrets", NAME);
    });
    assert!(deleted.await.is_none());
    assert_eq!(held_while(|_| {}).await, Some(Credentials::new("admin", "old")));
}
