use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Time};
use muster_proto::kinds::EnrolmentSpec;

use super::{
    super::keys::{KeysError, ensure, keep, load, watch},
    *,
};
use crate::{
    log::said::Said,
    token::{CA_SECRET, TOKEN_SECRET},
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

#[tokio::test(start_paused = true)]
async fn the_edge_waits_for_the_secrets_and_needs_only_to_get_two() {
    let api = FakeApi::new();
    let waiting = tokio::spawn(watch(
        api.client(),
        "muster-system".to_owned(),
        Watches::default(),
    ));
    let mut asked = Vec::new();
    while asked.is_empty() {
        tokio::task::yield_now().await;
        asked = api.requests();
    }
    ensure(&api.client(), "muster-system").await.unwrap();
    // The edge may have asked meanwhile, too; what it needs more than that it would ask for later.
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
    asked.extend(api.requests());
    assert!(asked.len() > 1, "{asked:?}");
    assert!(asked.iter().all(|request| allowed.contains(request)), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn the_edge_follows_a_change() {
    let api = FakeApi::new();
    ensure(&api.client(), "muster-system").await.unwrap();
    let mut keys = watch(api.client(), "muster-system".to_owned(), Watches::default()).await;
    let before = keys.borrow_and_update().boot_secrets().ca_pem;
    api.delete("secrets", CA_SECRET);
    ensure(&api.client(), "muster-system").await.unwrap();
    keys.changed().await.unwrap();
    assert_ne!(keys.borrow().boot_secrets().ca_pem, before);
}

/// What is damaged is served on from memory, and nobody enrols after the next restart.
#[tokio::test(start_paused = true)]
async fn a_secret_that_is_damaged_later_is_named_until_it_is_whole_again() {
    let said = Said::listen();
    let look = Duration::from_secs(31);
    for (name, entry) in [(CA_SECRET, "ca.crt"), (TOKEN_SECRET, "key")] {
        let (api, watches) = (FakeApi::new(), Watches::default());
        ensure(&api.client(), "muster-system").await.unwrap();
        let _keys = watch(api.client(), "muster-system".to_owned(), watches.clone()).await;
        tokio::time::sleep(look).await;
        assert_eq!(watches.keys_trouble(), None);
        let whole: Secret = api.get("secrets", name).unwrap();
        api.edit("secrets", name, &json!({ "data": { entry: "AAAA" } }));
        // Each look finds it so.
        tokio::time::sleep(2 * look).await;
        // And one in between may not come to an end.
        api.set_down(true);
        tokio::time::sleep(look).await;
        let trouble = watches.keys_trouble().unwrap();
        let (begin, seconds) = trouble.split_once(" has been damaged for ").unwrap();
        assert_eq!(begin, format!("Secret {name}"));
        assert!(seconds.strip_suffix(" s").unwrap().parse::<u64>().unwrap() > 60);
        let words = ["WARN", name, "those in memory stay in use; next: restore"];
        assert!(said.count(&words) > 0, "{}", said.text());
        api.set_down(false);
        api.edit("secrets", name, &json!({ "data": whole.data }));
        tokio::time::sleep(look).await;
        assert_eq!(watches.keys_trouble(), None);
    }
}

#[tokio::test]
async fn a_ca_that_nears_its_end_is_rotated_in_its_secret() {
    let api = FakeApi::new();
    ensure(&api.client(), "muster-system").await.unwrap();
    let old = CaPem::generate(clock::now() - super::super::ca::CA_LIFETIME * 3 / 4).unwrap();
    let text = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    let data = json!({ "data": { "ca.crt": text(&old.certificate), "ca.key": text(&old.key) } });
    api.edit("secrets", CA_SECRET, &data);
    // One wrong clock is not enough.
    api.set_ahead(-super::super::ca::CA_LIFETIME / 2);
    ensure(&api.client(), "muster-system").await.unwrap();
    let keys = load(&api.client(), "muster-system").await.unwrap().unwrap();
    assert_eq!(keys.ca.roots.len(), 1);
    api.set_ahead(0);
    ensure(&api.client(), "muster-system").await.unwrap();
    let keys = load(&api.client(), "muster-system").await.unwrap().unwrap();
    assert_eq!(keys.ca.roots.len(), 2);
    assert!(keys.ca.cross.is_some());
    assert!(keys.ca.bundle.contains(old.certificate.trim()));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_secret_is_made_anew_and_the_edge_follows() {
    let api = FakeApi::new();
    let keeper = tokio::spawn(keep(api.client(), "muster-system".to_owned()));
    let mut keys = watch(api.client(), "muster-system".to_owned(), Watches::default()).await;
    for name in [TOKEN_SECRET, CA_SECRET] {
        let before = api.get::<Secret>("secrets", name).unwrap();
        api.delete("secrets", name);
        keys.borrow_and_update();
        // Virtual time: one look of the keeper's and then one of the edge's; a keeper that looked hourly would come too late.
        let changed = tokio::time::timeout(3 * DEADLINE, keys.changed()).await;
        changed.expect("the keeper looks as often as the edge").unwrap();
        assert_ne!(api.get::<Secret>("secrets", name).unwrap().data, before.data);
    }
    keeper.abort();
}

/// Makes Enrolments with these names, ages and remaining lives in seconds.
fn make(api: &FakeApi, all: &[(&str, i64, Option<i64>)]) {
    for (name, age, rest) in all {
        let expires = rest.map_or("x".to_owned(), |rest| clock::rfc3339(clock::now() + rest));
        let mut enrolment = Enrolment::new(
            name,
            EnrolmentSpec {
                expires,
                ..EnrolmentSpec::default()
            },
        );
        let made = jiff::Timestamp::from_second(clock::now() - age).unwrap();
        enrolment.metadata.creation_timestamp = Some(Time(made));
        api.put("enrolments", &enrolment);
    }
}

fn names(api: &FakeApi) -> Vec<String> {
    let all = api.all::<Enrolment>("enrolments").into_iter();
    all.filter_map(|one| one.metadata.name).collect()
}

/// What is left of them after a sweep.
async fn left_of(api: &Arc<FakeApi>, all: &[(&str, i64, Option<i64>)], now: i64) -> Vec<String> {
    make(api, all);
    let swept = sweep::sweep(&api.client(), "muster-system", now).await.unwrap();
    let left = names(api);
    assert_eq!(swept + left.len(), all.len());
    left
}

#[tokio::test]
async fn an_enrolment_that_cannot_be_deleted_keeps_no_other_from_being_swept() {
    let api = FakeApi::new();
    make(&api, &[("a", 50_000, Some(-1)), ("b", 50_000, Some(-1))]);
    api.refuse_writes("/enrolments/a".to_owned());
    let swept = sweep::sweep(&api.client(), "muster-system", clock::now()).await;
    let error = swept.unwrap_err().to_string();
    assert!(error.contains('a'), "{error}");
    assert_eq!(names(&api), ["a"]);
}

#[tokio::test]
async fn only_ended_enrolments_are_swept() {
    let all = [
        ("old", 50_000, Some(-1)),
        ("young", 50_000, Some(60)),
        // An edge whose clock is behind writes an end that has passed.
        ("of-an-edge-that-is-behind", 60, Some(-86_400)),
        ("odd", 50_000, None),
        ("odd-and-old", 90_000, None),
    ];
    let left = left_of(&FakeApi::new(), &all, clock::now()).await;
    assert_eq!(left, ["odd", "of-an-edge-that-is-behind", "young"]);
}

#[tokio::test]
async fn a_clock_that_is_ahead_alone_sweeps_nothing_early() {
    let one = [("young", 60, Some(3600))];
    let api = FakeApi::new();
    assert_eq!(left_of(&api, &one, clock::now() + 86_400).await, ["young"]);
    api.set_ahead(86_400);
    assert_eq!(left_of(&api, &one, clock::now()).await, ["young"]);
    assert_eq!(
        left_of(&api, &one, clock::now() + 86_400).await,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn a_sweeper_whose_clock_is_ahead_makes_no_spent_token_good_again() {
    let lab = Lab::new().await;
    let token = lab.token(1);
    lab.agent(1).enrol(&token).await.unwrap();
    let later = clock::now() + 70 * 60;
    let swept = sweep::sweep(&lab.api.client(), "muster-system", later).await;
    assert_eq!(swept.unwrap(), 0);
    let refused = lab.agent(1).enrol(&token).await.unwrap_err();
    assert_eq!(refused.kind, ProblemKind::Token);
}
