use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::{
    fake_api::FakeApi,
    lease::{
        Election, Identity, Standing,
        next::{EPOCH_ANNOTATION, RELEASED_ANNOTATION},
    },
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

/// A term that began quickly at `at`.
fn term(at: Timestamp) -> Term {
    Term {
        began: Some(at),
        quick: true,
        looks: 0,
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
    let mut released = free.clone();
    let marks = [EPOCH_ANNOTATION, RELEASED_ANNOTATION].map(|mark| (mark.to_owned(), "7".to_owned()));
    released.metadata.annotations = Some(marks.into());
    let is_a_rivals = |lease| {
        let mut known = known(None);
        known.saw(vec![held("here", 1, wall()), lease], SECOND, wall());
        is_rivalled(&known, SECOND)
    };
    assert!(!is_a_rivals(released));
    // Its holder was removed by hand, and acts until it notices.
    assert!(is_a_rivals(free));
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
        assert_eq!(term(here).looked(&ours, SECOND).is_some(), steps_down);
        let mut theirs = known(None);
        theirs.namespace = "there".to_owned();
        theirs.saw(vec![own], SECOND, wall());
        assert_eq!(term(there).looked(&theirs, SECOND).is_some(), !steps_down);
    }
}

#[test]
fn a_lease_that_promises_years_counts_for_four_times_our_own_and_ends_no_term() {
    let mut years = held("there", 1, wall());
    let spec = years.spec.as_mut().unwrap();
    spec.lease_duration_seconds = Some(i32::MAX);
    (spec.acquire_time, spec.renew_time) = (None, None);
    let mut ours = known(None);
    ours.saw(vec![years.clone()], SECOND, wall());
    assert!(is_rivalled(&ours, 60 * SECOND));
    assert!(!is_rivalled(&ours, 61 * SECOND));
    for quick in [true, false] {
        let mut term = Term {
            quick,
            ..term(wall())
        };
        assert_eq!(term.looked(&ours, SECOND), None, "nobody says when it began");
    }

    let left = Timestamp::from_second(wall().as_second() - LONG_AGO - 61).unwrap();
    years.spec.as_mut().unwrap().renew_time = Some(MicroTime(left));
    let mut ours = known(None);
    ours.saw(vec![years], SECOND, wall());
    assert!(!is_rivalled(&ours, SECOND), "it was left behind");
}

#[test]
fn who_has_led_for_two_looks_gives_way_to_nobody_who_comes_later() {
    let before = Timestamp::from_second(wall().as_second() - 60).unwrap();
    for looks in 0..=SETTLED {
        let (mut ours, mut term) = (known(None), term(wall()));
        for _ in 0..looks {
            assert_eq!(term.looked(&ours, SECOND), None);
        }
        ours.saw(vec![held("there", 1, before)], SECOND, wall());
        assert_eq!(term.looked(&ours, SECOND).is_none(), looks == SETTLED);
    }
}

/// An installation that begins.
#[derive(Clone, Debug)]
struct Plan {
    /// When, in milliseconds.
    at: u64,
    /// How far its clock is off, in milliseconds.
    skew: i64,
    /// Its first look shows something.
    sees: bool,
    /// How long each of its requests takes to the API server, and the answer back: a look, the write, two looks.
    times: [(u64, u64); 4],
}

fn plans() -> impl Strategy<Value = Plan> {
    let times = |most: u64| prop::array::uniform4((0..most, 0..most));
    let times = prop_oneof![times(200), times(2500)];
    (
        0..6000_u64,
        -200_000..200_000_i64,
        prop::bool::weighted(0.9),
        times,
    )
        .prop_map(|(at, skew, sees, times)| Plan {
            at,
            skew,
            sees,
            times,
        })
}

const RETRY: u64 = 2000;

/// One that begins by its plan.
struct One {
    namespace: &'static str,
    plan: Plan,
    known: Known,
    term: Term,
    /// How many requests were answered; none: it gave up.
    done: Option<usize>,
    /// The next one begins then.
    next: u64,
}

impl One {
    fn new(namespace: &'static str, plan: Plan) -> One {
        let mut known = known(None);
        namespace.clone_into(&mut known.namespace);
        One {
            namespace,
            next: plan.at,
            plan,
            known,
            term: Term::default(),
            done: Some(0),
        }
    }

    /// When its next request is at the API server.
    fn arrives(&self) -> Option<u64> {
        let (to, _) = self.plan.times.get(self.done?)?;
        Some(self.next + to)
    }

    fn leads(&self) -> bool {
        self.done == Some(self.plan.times.len())
    }

    fn is_quick(&self) -> bool {
        let (look, write) = (self.plan.times[0], self.plan.times[1]);
        self.plan.sees && look.0 + look.1 + write.0 + write.1 < RETRY
    }

    /// Its next request is answered from the Leases `stored`.
    fn ask(&mut self, stored: &mut BTreeMap<&'static str, Lease>) {
        let Some(done) = self.done else { return };
        let (to, back) = self.plan.times[done];
        let answered = self.next + to + back;
        let now = Duration::from_millis(answered);
        let off = i64::try_from(answered).unwrap() + self.plan.skew;
        let wall = Timestamp::from_millisecond(wall().as_millisecond() + off).unwrap();
        if done == 1 {
            let began = self.term.began.unwrap();
            stored.insert(self.namespace, held(self.namespace, 1, began));
        } else if done > 1 || self.plan.sees {
            self.known.saw(stored.values().cloned().collect(), now, wall);
        }
        let gives_up = match done {
            0 => {
                self.term.began = Some(wall);
                is_rivalled(&self.known, now)
            }
            1 => {
                self.term.quick = self.is_quick();
                false
            }
            _ => self.term.looked(&self.known, now).is_some(),
        };
        self.done = (!gives_up).then_some(done + 1);
        // The second look of a term is later.
        let begun = self.next;
        self.next = if done == 2 {
            answered.max(begun + RETRY)
        } else {
            answered
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn of_two_that_begin_together_one_leads_at_most_and_one_does_if_both_are_quick(
        here in plans(),
        there in plans()
    ) {
        let mut ones = [One::new("here", here), One::new("there", there)];
        let mut stored = BTreeMap::new();
        while let Some(one) = ones
            .iter_mut()
            .filter(|one| one.arrives().is_some())
            .min_by_key(|one| one.arrives())
        {
            one.ask(&mut stored);
        }
        let lead = ones.iter().filter(|one| one.leads()).count();
        prop_assert!(lead <= 1, "both lead for good");
        if ones.iter().all(One::is_quick) {
            prop_assert_eq!(lead, 1);
        }
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

    let marks = json!({"muster.dev/epoch": "7", "muster.dev/released": "7"});
    let gone = json!({"metadata": {"annotations": marks}, "spec": {"holderIdentity": null}});
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

#[tokio::test]
async fn a_leader_that_has_looked_twice_goes_on_whatever_lease_somebody_makes() {
    let api = FakeApi::new();
    let mut standing = elect(&api, None);
    wait(&mut standing, "it leads", leads).await;
    let looks = |asked: &[String]| {
        let look = "GET /apis/coordination.k8s.io/v1/leases";
        asked.iter().filter(|request| *request == look).count()
    };
    let mut asked = Vec::new();
    // The first was before it led.
    while looks(&asked) < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        asked.extend(api.requests());
    }
    // The renewal after that look takes what it showed.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let before = Timestamp::from_second(Timestamp::now().as_second() - 60).unwrap();
    api.put("leases", &held("there", 1, before));
    api.requests();
    let ends = standing.wait_for(|now| !leads(now));
    let ends = tokio::time::timeout(4 * SECOND, ends).await;
    assert!(ends.is_err(), "it goes on");
    assert!(looks(&api.requests()) > 0, "it has seen that Lease");
}
