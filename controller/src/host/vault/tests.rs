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

/// A Secret with a login and these marks on it.
fn entry(labelled: bool, finalizers: &[&str], owners: &[&str]) -> Entry {
    let owner = |uid: &&str| OwnerReference {
        uid: (*uid).to_owned(),
        ..OwnerReference::default()
    };
    Entry {
        uid: "uid-bmc".to_owned(),
        version: "1".to_owned(),
        labelled,
        leaves: false,
        finalizers: finalizers.iter().map(|name| (*name).to_owned()).collect(),
        owners: owners.iter().map(owner).collect(),
        seen: Seen::of(&secret("old"), &hmac::Key::new(hmac::HMAC_SHA256, &[1; 32])),
    }
}

/// Whether it is held for the host: as data of the config drive is, as network data for the ramdisk, and as a login.
fn held(entry: &Entry) -> [bool; 3] {
    [Hold::Label, Hold::Finalizer, Hold::Owned].map(|hold| entry.is_held_for(&host(), hold))
}

#[test]
fn a_secret_is_held_if_it_carries_all_that_is_put_on_it() {
    let of = |labelled, finalizers: &[&str], owners: &[&str]| held(&entry(labelled, finalizers, owners));
    assert_eq!(of(false, &[SECRET_FINALIZER], &["uid-h"]), [false; 3]);
    assert_eq!(of(true, &[], &["uid-h"]), [true, false, false]);
    assert_eq!(of(true, &["another"], &["uid-h"]), [true, false, false]);
    assert_eq!(of(true, &[SECRET_FINALIZER], &[]), [true, true, false]);
    assert_eq!(of(true, &[SECRET_FINALIZER], &["another"]), [true, true, false]);
    let both = ["another", SECRET_FINALIZER];
    assert_eq!(of(true, &both, &["another", "uid-h"]), [true; 3]);
}

#[test]
fn a_secret_that_goes_and_that_no_finalizer_of_ours_keeps_can_be_held_no_more() {
    let of = |labelled, finalizers: &[&str]| {
        held(&Entry {
            leaves: true,
            ..entry(labelled, finalizers, &[])
        })
    };
    assert_eq!(of(false, &[]), [true; 3]);
    assert_eq!(of(false, &["another"]), [true; 3]);
    assert_eq!(of(false, &[SECRET_FINALIZER]), [false; 3]);
    assert_eq!(of(true, &[SECRET_FINALIZER]), [true, true, false]);
}

#[test]
fn only_upstreams_finalizer_counts() {
    let has = |finalizers: &[&str]| entry(true, finalizers, &[]).has_finalizer();
    assert!(has(&["another", SECRET_FINALIZER]));
    assert!(!has(&["another"]) && !has(&[]));
}

#[test]
fn a_secret_can_be_used_for_what_is_in_it() {
    let login = entry(true, &[], &[]);
    assert!(login.state_for(Use::Bmc).is_present());
    assert!(matches!(login.state_for(Use::UserData), SecretState::Invalid(_)));
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
