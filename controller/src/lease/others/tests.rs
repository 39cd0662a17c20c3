use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::{
    fake_api::FakeApi,
    lease::{Election, Identity, Standing},
    watches::Watches,
};

impl Rival {
    /// One whose Lease is in `namespace`.
    pub(crate) fn of(namespace: &str) -> Rival {
        Rival {
            namespace: namespace.to_owned(),
            holder: "other".to_owned(),
            acquired: None,
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(20);

fn wall() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// One of `namespace` in this version, held and for 15 s, whose holder began and renewed it at `at`.
fn held(namespace: &str, version: u64, at: Timestamp) -> Lease {
    let lease = json!({
        "metadata": {
            "name": "muster-control", "namespace": namespace, "uid": namespace,
            "resourceVersion": version.to_string(),
        },
        "spec": {"holderIdentity": "other", "leaseDurationSeconds": 15},
    });
    let mut lease: Lease = serde_json::from_value(lease).unwrap();
    let spec = lease.spec.as_mut().unwrap();
    spec.acquire_time = Some(MicroTime(at));
    spec.renew_time = Some(MicroTime(at));
    lease
}

fn watching(mut lease: Lease, namespace: &str) -> Lease {
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(WATCH_ANNOTATION.to_owned(), namespace.to_owned());
    lease
}

fn known(watches: Option<&str>) -> Known {
    Known {
        namespace: "here".to_owned(),
        watches: watches.map(str::to_owned),
        lease: 15 * SECOND,
        seen: BTreeMap::new(),
    }
}

fn is_rivalled(known: &Known, now: Moment) -> bool {
    known.rivals(now).next().is_some()
}

#[test]
fn another_leads_as_long_as_its_lease_changes_by_our_own_clock() {
    let mut known = known(None);
    // Its clock is far behind ours, and that of the API server is nobody's.
    let at = Timestamp::from_second(wall().as_second() - LONG_AGO).unwrap();
    known.saw(vec![held("there", 1, at)], SECOND, wall());
    let rival = known.rivals(15 * SECOND).next().unwrap();
    assert_eq!((&*rival.namespace, &*rival.holder), ("there", "other"));
    known.saw(vec![held("there", 1, at)], 10 * SECOND, wall());
    assert!(!is_rivalled(&known, 16 * SECOND), "it did not change");
    known.saw(vec![held("there", 2, at)], 16 * SECOND, wall());
    assert!(is_rivalled(&known, 30 * SECOND));
    assert!(!is_rivalled(&known, 31 * SECOND));
}

#[test]
fn a_lease_that_ran_out_long_ago_holds_nobody_up_unless_it_changes() {
    let mut known = known(None);
    let at = Timestamp::from_second(wall().as_second() - LONG_AGO - 16).unwrap();
    known.saw(vec![held("there", 1, at)], SECOND, wall());
    assert!(!is_rivalled(&known, SECOND));
    known.saw(vec![held("there", 2, at)], 2 * SECOND, wall());
    assert!(
        is_rivalled(&known, 2 * SECOND),
        "its clock is wrong, and it lives"
    );
}

#[test]
fn those_that_have_no_host_in_common_do_not_mind_each_other() {
    let other = |watched: Option<&str>| {
        let lease = held("there", 1, wall());
        watched.map_or(lease.clone(), |watched| watching(lease, watched))
    };
    for (ours, theirs, meet) in [
        (None, None, true),
        (None, Some("metal"), true),
        (Some("metal"), None, true),
        (Some("metal"), Some(""), true),
        (Some("metal"), Some("metal"), true),
        (Some("metal"), Some("iron"), false),
    ] {
        let mut known = known(ours);
        known.saw(vec![other(theirs)], SECOND, wall());
        assert_eq!(is_rivalled(&known, SECOND), meet, "{ours:?} {theirs:?}");
    }
}

#[test]
fn neither_our_own_lease_nor_one_that_nobody_holds_is_a_rivals() {
    let mut free = held("there", 1, wall());
    free.spec.as_mut().unwrap().holder_identity = None;
    let mut known = known(None);
    known.saw(vec![held("here", 1, wall()), free], SECOND, wall());
    assert!(!is_rivalled(&known, SECOND));
}

#[test]
fn of_two_that_lead_the_later_one_steps_down_and_both_know_which_that_is() {
    let later = Timestamp::from_second(wall().as_second() + 1).unwrap();
    for (here, there, steps_down) in [
        (wall(), later, false),
        (later, wall(), true),
        // "here" comes before "there".
        (wall(), wall(), false),
    ] {
        let mut ours = known(None);
        ours.saw(vec![held("there", 1, there)], SECOND, wall());
        let own = held("here", 1, here);
        assert_eq!(ours.senior(Some(&own), SECOND).is_some(), steps_down);
        let mut theirs = known(None);
        theirs.namespace = "there".to_owned();
        theirs.saw(vec![own], SECOND, wall());
        let own = held("there", 1, there);
        assert_eq!(theirs.senior(Some(&own), SECOND).is_some(), !steps_down);
    }
}

/// Wants the Lease in the namespace `here`; all hosts are its.
fn elect(api: &Arc<FakeApi>, watches: Option<&str>) -> watch::Receiver<Standing> {
    let (election, standing) = Election::new(
        api.client(),
        "here",
        "muster-control",
        Identity::own(),
        Timing::new(3, 2, 1).unwrap(),
        Watches::default(),
        watches.map(str::to_owned),
    );
    tokio::spawn(election.run(std::future::pending()));
    standing
}

async fn wait(standing: &mut watch::Receiver<Standing>, what: &str, is: impl FnMut(&Standing) -> bool) {
    let waited = tokio::time::timeout(PATIENCE, standing.wait_for(is)).await;
    waited.expect(what).unwrap();
}

fn leads(standing: &Standing) -> bool {
    matches!(standing, Standing::Leads(_))
}

#[tokio::test]
async fn an_installation_stands_by_while_another_acts_on_the_same_hosts() {
    let api = FakeApi::new();
    api.put("leases", &held("there", 1, Timestamp::now()));
    let mut standing = elect(&api, Some("metal"));
    wait(
        &mut standing,
        "it stands by",
        |now| matches!(now, Standing::HeldBack(rival) if rival.namespace == "there"),
    )
    .await;
    let asked = api.requests();
    assert!(
        asked.iter().all(|request| request.starts_with("GET ")),
        "{asked:?}"
    );

    let gone = json!({"spec": {"holderIdentity": null}});
    api.edit("leases", "muster-control", &gone);
    wait(&mut standing, "it leads", leads).await;
    let all: Vec<Lease> = api.all("leases");
    let own = all
        .iter()
        .find(|lease| lease.metadata.namespace.as_deref() == Some("here"));
    let annotations = own.unwrap().metadata.annotations.as_ref().unwrap();
    assert_eq!(
        annotations.get(WATCH_ANNOTATION).map(String::as_str),
        Some("metal")
    );
}

#[tokio::test]
async fn a_leader_steps_down_for_another_that_began_before_it_and_was_not_there_yet() {
    let api = FakeApi::new();
    let mut standing = elect(&api, None);
    wait(&mut standing, "it leads", leads).await;
    let before = Timestamp::from_second(Timestamp::now().as_second() - 60).unwrap();
    api.put("leases", &held("there", 1, before));
    wait(&mut standing, "it steps down", |now| {
        matches!(now, Standing::HeldBack(_))
    })
    .await;
}

#[tokio::test]
async fn who_may_not_see_the_leases_of_others_leads() {
    let api = FakeApi::new();
    api.put("leases", &held("there", 1, Timestamp::now()));
    api.refuse_reads("/leases", 403);
    let mut standing = elect(&api, None);
    wait(&mut standing, "it leads", leads).await;
}
