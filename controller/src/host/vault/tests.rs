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

fn host() -> BareMetalHost {
    let mut host = BareMetalHost::new("h", BareMetalHostSpec::default());
    host.metadata.namespace = Some("metal".to_owned());
    host.metadata.uid = Some("uid-h".to_owned());
    host
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
    let host = host();
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

/// A list that the watch makes anew tells of all, so that an answer from before it is told of to nobody.
#[tokio::test(start_paused = true)]
async fn an_answer_from_before_a_new_list_is_not_believed() {
    let api = FakeApi::new();
    api.put("secrets", &secret("old"));
    let vault = Vault::new(api.client()).unwrap();
    let path = Path {
        namespace: "metal".to_owned(),
        name: NAME.to_owned(),
    };
    let before = vault.read(&path).await.unwrap().unwrap();
    api.put("secrets", &secret("new"));
    let now = vault.read(&path).await.unwrap().unwrap();
    let mut listed = HashMap::new();
    for event in [
        watcher::Event::Init,
        watcher::Event::InitApply(now),
        watcher::Event::InitDone,
    ] {
        vault.event(event, &mut listed);
    }
    vault.remember(&path, Answer::Found(vault.entry(&before)));
    let login = vault.login(&path, None).await;
    assert_eq!(login, Some(Credentials::new("admin", "new")));
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_the_host_names_no_more_does_not_go_with_it() {
    for disown in [false, true] {
        let api = FakeApi::new();
        api.put("secrets", &secret("old"));
        let vault = Vault::new(api.client()).unwrap();
        let host = host();
        vault.hold(&host, NAME, Hold::Owned).await.unwrap();
        vault.release(&host, NAME, disown).await.unwrap();
        let metadata = api.get::<Secret>("secrets", NAME).unwrap().metadata;
        assert!(metadata.finalizers.is_none_or(|all| all.is_empty()));
        let is_owned = metadata.owner_references.is_some_and(|all| !all.is_empty());
        assert_eq!(is_owned, !disown);
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_no_secret_can_have_is_asked_for_nowhere() {
    let api = FakeApi::new();
    let vault = Vault::new(api.client()).unwrap();
    let host = host();
    let asked = api.requests().len();
    for name in ["?", "../b", "bmc 1", "bmc\n", "BMC", "a/b", "%2e", ".", ""] {
        let path = Path::beside(&host, name);
        assert!(vault.read(&path).await.unwrap().is_none(), "{name:?}");
        assert!(vault.login(&path, None).await.is_none());
        vault.hold(&host, name, Hold::Owned).await.unwrap();
    }
    assert_eq!(api.requests().len(), asked);
}
