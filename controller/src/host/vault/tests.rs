use std::sync::Arc;

use k8s_openapi::{ByteString, api::core::v1::SecretReference};
use muster_proto::kinds::{BareMetalHostSpec, BmcDetails, CredentialsStatus};

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
        is_being_deleted: false,
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
            is_being_deleted: true,
            ..entry(labelled, finalizers, &[])
        })
    };
    assert_eq!(of(false, &[]), [true; 3]);
    assert_eq!(of(false, &["another"]), [true; 3]);
    assert_eq!(of(false, &[SECRET_FINALIZER]), [false; 3]);
    assert_eq!(of(true, &[SECRET_FINALIZER]), [true, true, false]);
}

#[test]
fn a_secret_that_is_deleted_is_going_as_long_as_our_finalizer_keeps_it() {
    let is_going = |is_being_deleted, finalizers: &[&str]| {
        let entry = Entry {
            is_being_deleted,
            ..entry(true, finalizers, &[])
        };
        entry.is_going()
    };
    assert!(is_going(true, &["another", SECRET_FINALIZER]));
    assert!(!is_going(true, &["another"]) && !is_going(false, &[SECRET_FINALIZER]));
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

/// A host that, by its number, names the Secret `name`, or tried it or had it before it named another one, or has nothing to do with it.
fn in_need(number: u32, name: &str) -> BareMetalHost {
    let mut host = BareMetalHost::new(&format!("h{number}"), BareMetalHostSpec::default());
    host.metadata.namespace = Some("metal".to_owned());
    let of_bmc = |name: String| BmcDetails {
        credentials_name: name,
        ..BmcDetails::default()
    };
    let former = CredentialsStatus {
        credentials: Some(SecretReference {
            name: Some(name.to_owned()),
            ..SecretReference::default()
        }),
        ..CredentialsStatus::default()
    };
    match number % 5 {
        0 => host.spec.preprovisioning_network_data_name = Some(name.to_owned()),
        1 => host.spec.bmc = Some(of_bmc(name.to_owned())),
        2 => {
            host.spec.bmc = Some(of_bmc(format!("now-{number}")));
            host.status.get_or_insert_default().tried_credentials = Some(former);
        }
        3 => {
            host.spec.bmc = Some(of_bmc(format!("now-{number}")));
            host.status.get_or_insert_default().good_credentials = Some(former);
        }
        _ => {}
    }
    host
}

#[tokio::test]
async fn of_many_secrets_those_are_orphans_that_no_host_names_or_may_still_hold() {
    let vault = Vault::new(FakeApi::new().client()).unwrap();
    let index = Index::default();
    let mut expected = BTreeSet::new();
    let mut all = Vec::new();
    for number in 0..600_u32 {
        let name = format!("secret-{number}");
        let host = in_need(number, &name);
        index.host(&host, false);
        let is_gone = number % 7 == 0;
        if is_gone {
            index.host(&host, true);
        }
        let mut secret = secret("old");
        let is_held = number % 3 != 0;
        secret.metadata.name = Some(name.clone());
        secret.metadata.resource_version = Some(number.to_string());
        secret.metadata.finalizers = is_held.then(|| vec![SECRET_FINALIZER.to_owned()]);
        vault.take_in(&secret, false);
        let one = (Path::of(&secret), number.to_string());
        if is_held && (is_gone || number % 5 == 4) {
            expected.insert(one.clone());
        }
        all.push(one);
    }
    assert_eq!(vault.orphans(&index), expected);
    for one in &all {
        let (path, version) = one;
        let is_orphan = vault.is_orphan(path, version, &index);
        assert_eq!(is_orphan, expected.contains(one), "{path}");
        assert!(!vault.is_orphan(path, "another", &index), "{path}");
    }
}
