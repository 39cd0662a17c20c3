use k8s_openapi::api::core::v1::Secret;
use muster_proto::kinds::EnrolmentSpec;

use super::{
    super::keys::{CA_SECRET, KeysError, TOKEN_SECRET, ensure, load, watch},
    *,
};

#[tokio::test]
async fn the_secrets_are_made_once() {
    let api = FakeApi::new();
    let client = api.client();
    assert!(load(&client, "muster-system").await.unwrap().is_none());
    let (one, two) = tokio::join!(ensure(&client, "muster-system"), ensure(&client, "muster-system"));
    one.unwrap();
    two.unwrap();
    let keys = load(&client, "muster-system").await.unwrap().unwrap();
    api.requests();
    ensure(&client, "muster-system").await.unwrap();
    assert!(api.requests().iter().all(|request| request.starts_with("GET")));
    let again = load(&client, "muster-system").await.unwrap().unwrap();
    assert_eq!(keys.boot_secrets().ca_pem, again.boot_secrets().ca_pem);
}

#[tokio::test]
async fn a_damaged_secret_is_an_error_and_stays() {
    let api = FakeApi::new();
    ensure(&api.client(), "muster-system").await.unwrap();
    api.edit("secrets", CA_SECRET, &json!({ "data": { "ca.key": "AAAA" } }));
    let before = api.get::<Secret>("secrets", CA_SECRET);
    assert!(matches!(
        ensure(&api.client(), "muster-system").await,
        Err(KeysError::Authority(_))
    ));
    assert_eq!(api.get::<Secret>("secrets", CA_SECRET), before);
    api.edit("secrets", TOKEN_SECRET, &json!({ "data": { "key": "AAAA" } }));
    assert!(load(&api.client(), "muster-system").await.is_err());
}

#[tokio::test]
async fn the_edge_waits_for_the_secrets_and_needs_only_to_get_two() {
    let api = FakeApi::new();
    let waiting = tokio::spawn(watch(api.client(), "muster-system".to_owned()));
    while api.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    ensure(&api.client(), "muster-system").await.unwrap();
    api.requests();
    let keys = tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap();
    assert!(
        keys.borrow()
            .boot_secrets()
            .ca_pem
            .starts_with("-----BEGIN CERTIFICATE-----")
    );
    let allowed =
        [CA_SECRET, TOKEN_SECRET].map(|name| format!("GET /api/v1/namespaces/muster-system/secrets/{name}"));
    assert!(api.requests().iter().all(|request| allowed.contains(request)));
}

#[tokio::test(start_paused = true)]
async fn the_edge_follows_a_change() {
    let api = FakeApi::new();
    ensure(&api.client(), "muster-system").await.unwrap();
    let mut keys = watch(api.client(), "muster-system".to_owned()).await;
    let before = keys.borrow_and_update().boot_secrets().ca_pem;
    api.delete("secrets", CA_SECRET);
    ensure(&api.client(), "muster-system").await.unwrap();
    keys.changed().await.unwrap();
    assert_ne!(keys.borrow().boot_secrets().ca_pem, before);
}

#[tokio::test]
async fn a_ca_that_nears_its_end_is_rotated_in_its_secret() {
    let api = FakeApi::new();
    ensure(&api.client(), "muster-system").await.unwrap();
    let old = CaPem::generate(clock::now() - super::super::ca::CA_LIFETIME * 3 / 4).unwrap();
    let text = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    let data = json!({ "data": { "ca.crt": text(&old.certificate), "ca.key": text(&old.key) } });
    api.edit("secrets", CA_SECRET, &data);
    ensure(&api.client(), "muster-system").await.unwrap();
    let keys = load(&api.client(), "muster-system").await.unwrap().unwrap();
    assert_eq!(keys.ca.roots.len(), 2);
    assert!(keys.ca.cross.is_some());
    assert!(keys.ca.bundle.contains(old.certificate.trim()));
}

#[tokio::test]
async fn only_ended_enrolments_are_swept() {
    let api = FakeApi::new();
    let now = clock::now();
    for (name, expires) in [
        ("old", clock::rfc3339(now - 1)),
        ("young", clock::rfc3339(now + 60)),
        ("odd", "x".into()),
    ] {
        let enrolment = Enrolment::new(
            name,
            EnrolmentSpec {
                expires,
                ..EnrolmentSpec::default()
            },
        );
        api.put("enrolments", &enrolment);
    }
    assert_eq!(
        sweep::sweep(&api.client(), "muster-system", now).await.unwrap(),
        1
    );
    let left: Vec<_> = api
        .all::<Enrolment>("enrolments")
        .into_iter()
        .filter_map(|one| one.metadata.name)
        .collect();
    assert_eq!(left, ["odd", "young"]);
}
