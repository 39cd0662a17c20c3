use super::*;

mod sim;

const TIMING: Timing = Timing {
    lease: Duration::from_secs(15),
    renew: Duration::from_secs(10),
    retry: Duration::from_secs(2),
};
const SECOND: Duration = Duration::from_secs(1);

fn wall() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn contender(name: &str) -> Contender {
    Contender::new(name.to_owned(), TIMING)
}

/// As the API server gives it back.
fn stored(mut lease: Lease, version: u64) -> Lease {
    lease.metadata.uid = Some("u".to_owned());
    lease.metadata.resource_version = Some(version.to_string());
    lease
}

fn write(step: Step) -> Lease {
    match step {
        Step::Write(lease) => *lease,
        other => panic!("{other:?}"),
    }
}

/// Leads from `now` on, with the Lease in version 1.
fn leader(name: &str, now: Moment) -> Contender {
    let mut one = contender(name);
    assert_eq!(one.next(now, wall(), |_| false), Step::Look);
    one.saw(None, now);
    let lease = write(one.next(now, wall(), |_| false));
    one.written(stored(lease, 1), now);
    one
}

#[test]
fn times_that_let_two_lead_are_refused() {
    assert_eq!(Timing::new(15, 10, 2), Ok(TIMING));
    for (lease, renew, retry) in [(10, 10, 2), (15, 2, 2), (15, 10, 0), (u64::MAX, 10, 2)] {
        assert!(Timing::new(lease, renew, retry).is_err());
    }
}

#[test]
fn a_lease_that_is_not_there_is_taken_at_once_and_renewed() {
    let mut one = leader("a", SECOND);
    let tenure = one.tenure().unwrap();
    assert_eq!(tenure.until, 11 * SECOND);
    assert_eq!(tenure.epoch, wall().as_millisecond());
    assert_eq!(one.next(SECOND, wall(), |_| false), Step::Wait(3 * SECOND));
    let renewed = write(one.next(3 * SECOND, wall(), |_| false));
    assert_eq!(renewed.metadata.resource_version.as_deref(), Some("1"));
    assert_eq!(epoch(&renewed), tenure.epoch);
    one.written(stored(renewed, 2), 3 * SECOND);
    assert_eq!(one.tenure().unwrap().until, 13 * SECOND);
}

#[test]
fn a_renewal_counts_from_when_it_was_sent() {
    let mut one = leader("a", SECOND);
    let renewed = write(one.next(3 * SECOND, wall(), |_| false));
    // The answer is read an age later; nobody but we knows.
    one.written(stored(renewed, 2), 3 * SECOND);
    assert_eq!(one.next(13 * SECOND, wall(), |_| false), Step::Lost);
}

#[test]
fn a_leader_that_cannot_renew_ends_before_another_begins() {
    let mut one = leader("a", Duration::ZERO);
    let mut other = contender("b");
    other.saw(one.lease().cloned(), Duration::ZERO);
    one.failed(2 * SECOND);
    assert_eq!(one.next(3 * SECOND, wall(), |_| false), Step::Wait(4 * SECOND));
    assert_eq!(one.next(4 * SECOND, wall(), |_| false), Step::Look);
    one.failed(9 * SECOND);
    assert_eq!(one.next(9 * SECOND, wall(), |_| false), Step::Wait(10 * SECOND));
    assert_eq!(one.next(10 * SECOND, wall(), |_| false), Step::Lost);
    assert_eq!(
        other.next(14 * SECOND, wall(), |_| false),
        Step::Wait(15 * SECOND)
    );
    let taken = write(other.next(15 * SECOND, wall(), |_| false));
    assert_eq!(holder(&taken), Some("b"));
    let old = one.tenure().unwrap().epoch;
    assert!(epoch(&taken) > old, "the same time of day and another number");
    let transitions = taken.spec.unwrap().lease_transitions;
    assert_eq!(transitions, Some(1));
}

#[test]
fn whoever_lost_the_lease_to_another_leads_no_more() {
    let mut one = leader("a", Duration::ZERO);
    one.refused(2 * SECOND);
    assert_eq!(one.next(2 * SECOND, wall(), |_| false), Step::Look);
    let mut other = contender("b");
    other.saw(one.lease().cloned(), Duration::ZERO);
    let taken = write(other.next(15 * SECOND, wall(), |_| false));
    one.saw(Some(stored(taken, 2)), 2 * SECOND);
    assert_eq!(one.next(2 * SECOND, wall(), |_| false), Step::Lost);
    one.lost();
    assert_eq!(one.next(2 * SECOND, wall(), |_| false), Step::Wait(4 * SECOND));
}

#[test]
fn a_lease_of_which_every_write_is_refused_is_not_written_without_a_pause() {
    let mut one = contender("a");
    for round in [0, 4] {
        let now = round * SECOND;
        one.saw(None, now);
        write(one.next(now, wall(), |_| false));
        assert!(!one.refused(now), "another was faster: looks at once");
        assert_eq!(one.next(now, wall(), |_| false), Step::Look);
        one.saw(None, now);
        write(one.next(now, wall(), |_| false));
        assert!(one.refused(now));
        assert_eq!(one.next(now, wall(), |_| false), Step::Wait(now + TIMING.retry));
        assert_eq!(one.next(now + TIMING.retry, wall(), |_| false), Step::Look);
    }
}

#[test]
fn a_lease_that_was_given_up_is_taken_at_once() {
    let one = leader("a", Duration::ZERO);
    let released = stored(one.released(wall()).unwrap(), 2);
    assert_eq!(holder(&released), None);
    let mut other = contender("b");
    other.saw(one.lease().cloned(), SECOND);
    assert_eq!(other.next(SECOND, wall(), |_| false), Step::Wait(3 * SECOND));
    other.saw(Some(released.clone()), 2 * SECOND);
    let taken = write(other.next(2 * SECOND, wall(), |_| false));
    assert!(epoch(&taken) > epoch(&released));
    let annotations = taken.metadata.annotations.unwrap();
    assert!(!annotations.contains_key(RELEASED_ANNOTATION), "{annotations:?}");
    assert!(
        other.released(wall()).is_none(),
        "what is not ours is not given up"
    );
}

/// It is taken at `free` and no sooner.
fn is_free_at(free: Moment, one: &Contender) {
    write(one.next(free, wall(), |_| false));
    let before = one.next(free - Duration::from_millis(1), wall(), |_| false);
    assert_eq!(before, Step::Wait(free), "{one:?}");
}

#[test]
fn what_somebody_writes_into_a_lease_makes_it_free_no_sooner() {
    let one = leader("a", Duration::ZERO);
    let term = one.tenure().unwrap().epoch;
    for (holder, promised, mark, lasts) in [
        (None, Some(15), None, 15_u32),
        (Some(""), Some(15), None, 15),
        (None, Some(20), None, 20),
        (None, Some(0), None, 15),
        (None, None, None, 15),
        (Some("a"), Some(0), None, 15),
        (Some("a"), Some(-1), None, 15),
        // A mark is good for its own term, and where nobody has the Lease.
        (None, Some(15), Some(term - 1), 15),
        (Some("a"), Some(15), Some(term), 15),
        (None, Some(15), Some(term), 0),
    ] {
        let mut lease = one.lease().cloned().unwrap();
        let annotations = lease.metadata.annotations.as_mut().unwrap();
        annotations.extend(mark.map(|mark| (RELEASED_ANNOTATION.to_owned(), mark.to_string())));
        let spec = lease.spec.as_mut().unwrap();
        spec.holder_identity = holder.map(str::to_owned);
        spec.lease_duration_seconds = promised;
        let mut knew_it = contender("b");
        knew_it.saw(one.lease().cloned(), SECOND);
        for mut other in [knew_it, contender("c")] {
            other.saw(Some(stored(lease.clone(), 2)), 4 * SECOND);
            is_free_at((4 + lasts) * SECOND, &other);
            // Deleted as well.
            other.saw(None, 10 * SECOND);
            is_free_at((10 + lasts) * SECOND, &other);
        }
    }
}

#[test]
fn no_term_follows_one_whose_number_nothing_but_a_hand_can_have_written() {
    let one = leader("a", Duration::ZERO);
    let first = one.tenure().unwrap().epoch;
    for (number, next) in [
        (LAST_EPOCH - 1, Some(LAST_EPOCH)),
        (LAST_EPOCH, None),
        (i64::MAX, None),
    ] {
        let mut lease = one.lease().cloned().unwrap();
        let annotations = lease.metadata.annotations.as_mut().unwrap();
        annotations.insert(EPOCH_ANNOTATION.to_owned(), number.to_string());
        let mut other = contender("b");
        other.saw(one.lease().cloned(), Duration::ZERO);
        other.saw(Some(stored(lease.clone(), 2)), Duration::ZERO);
        let step = other.next(15 * SECOND, wall(), |_| false);
        if let Some(next) = next {
            assert_eq!(epoch(&write(step)), next);
            continue;
        }
        assert_eq!(step, Step::Spent);
        // Once it is taken off, the numbers go on from what is known of them.
        lease.metadata.annotations = None;
        other.saw(Some(stored(lease, 3)), 15 * SECOND);
        let taken = write(other.next(30 * SECOND, wall(), |_| false));
        assert_eq!(epoch(&taken), first + 1);
    }
}

#[test]
fn a_holder_that_has_ended_for_certain_is_followed_at_once() {
    let one = leader("a", Duration::ZERO);
    let mut other = contender("b");
    other.saw(one.lease().cloned(), SECOND);
    let taken = write(other.next(SECOND, wall(), |holder| holder == "a"));
    assert_eq!(holder(&taken), Some("b"));
}

#[test]
fn the_number_of_a_term_only_grows() {
    let mut one = leader("a", Duration::ZERO);
    let first = one.tenure().unwrap().epoch;
    one.lost();
    // Ours, and another term; the clock was set back.
    let past = Timestamp::from_second(1).unwrap();
    let again = write(one.next(12 * SECOND, past, |_| false));
    assert_eq!(epoch(&again), first + 1);
    one.written(stored(again, 2), 12 * SECOND);
    // Deleted, and made anew by one who knew it.
    one.refused(14 * SECOND);
    one.saw(None, 14 * SECOND);
    assert_eq!(one.next(14 * SECOND, past, |_| false), Step::Lost);
    one.lost();
    let anew = write(one.next(14 * SECOND, past, |_| false));
    assert_eq!(anew.metadata.resource_version, None);
    assert_eq!(epoch(&anew), first + 2);
    // Deleted, and made anew by one who never saw it: later is more.
    let mut other = contender("b");
    other.saw(None, 15 * SECOND);
    let later = wall() + jiff::SignedDuration::from_millis(100);
    assert_eq!(
        epoch(&write(other.next(15 * SECOND, later, |_| false))),
        first + 100
    );
}

#[test]
fn a_deleted_lease_lasts_for_those_who_knew_it() {
    let one = leader("a", Duration::ZERO);
    let mut other = contender("b");
    other.saw(one.lease().cloned(), SECOND);
    other.saw(None, 2 * SECOND);
    assert_eq!(
        other.next(16 * SECOND, wall(), |_| false),
        Step::Wait(17 * SECOND)
    );
    assert_eq!(
        holder(&write(other.next(17 * SECOND, wall(), |_| false))),
        Some("b")
    );
}

#[test]
fn looking_again_at_the_same_lease_does_not_put_off_its_end() {
    let one = leader("a", Duration::ZERO);
    let mut other = contender("b");
    for second in 1..15 {
        other.saw(one.lease().cloned(), second * SECOND);
        assert!(matches!(
            other.next(second * SECOND, wall(), |_| false),
            Step::Wait(_)
        ));
        other.failed(second * SECOND);
    }
    other.saw(one.lease().cloned(), 16 * SECOND);
    assert!(matches!(
        other.next(16 * SECOND, wall(), |_| false),
        Step::Write(_)
    ));
}
