//! Whether the machine's ramdisk is here, or its machine went down and its session has only not ended yet; and whether one that is gone may
//! come back by itself. Pure.

use jiff::{SignedDuration, Timestamp};
use muster_proto::kinds::{Server, Session, SessionState};

use super::{BOOT, BOOT_DEADLINE, BOOTS, CALL_IN, SILENCE, lost_at};
use crate::host::{
    WaitReason,
    draft::Draft,
    jobs,
    observed::{FailureClass, Power, Tried},
};
use crate::time::whole_seconds;

/// Whether the ramdisk was there when this process looked last. An edge writes when a session ended by its own clock, which may be minutes
/// off, and what hangs on that is a reset in the middle of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::host) struct Presence {
    /// When that changed last by the clock of an edge, which tells one end from another.
    changed: Option<Timestamp>,
    /// Since when it has been silent, by our clock; none: it is connected.
    pub(in crate::host) silent_since: Option<Timestamp>,
}

impl Presence {
    /// What is known once `server` was seen at `now`, of which `before` was known.
    pub(in crate::host) fn seen(
        before: Option<Presence>,
        server: Option<&Server>,
        now: Timestamp,
    ) -> Option<Presence> {
        let server = server?;
        let session = server.session()?;
        let changed: Option<Timestamp> = session.since.parse().ok();
        let since = match (session.state, before) {
            (SessionState::Connected, _) => None,
            (SessionState::Disconnected, Some(before)) => {
                before.silent_since.filter(|_| before.changed == changed)
            }
            // Nobody here saw it end: its edge is believed, but where a reset would break a job off.
            (SessionState::Disconnected, None) => changed.filter(|_| !jobs::is_under_way(server, |_| true)),
        };
        let silent_since = (session.state == SessionState::Disconnected)
            // Nothing began later than now: somebody set a clock back.
            .then(|| since.filter(|since| *since <= now).unwrap_or(now));
        Some(Presence {
            changed,
            silent_since,
        })
    }
}

/// So long a session may outlive its machine: an edge takes an agent whose connection is dead for gone after 45 s, and one without a poll after
/// 100 s, and has to write that. One that is connected after this time is of an agent that lives, whatever the BMC said.
pub(super) const OUTLIVES: SignedDuration = SignedDuration::from_secs(120);

/// The session of the machine's ramdisk, if that is here as far as can be known.
pub(in crate::host) fn here<'a>(draft: &Draft<'a>) -> Option<(&'a Server, &'a Session)> {
    draft.session().filter(|_| doubted_until(draft).is_none())
}

/// True if the machine's ramdisk shows that it is on: it has called in since anybody saw or had the machine off.
pub(in crate::host) fn is_on(draft: &Draft<'_>) -> bool {
    draft.session().is_some() && went_down(draft).is_none()
}

/// Until when the session may be that of a machine that has gone down; none: there is none, or it is here.
pub(super) fn doubted_until(draft: &Draft<'_>) -> Option<Timestamp> {
    let down = went_down(draft)?;
    let is_recent = !draft.has_paused(down, OUTLIVES);
    is_recent.then(|| down.checked_add(OUTLIVES).unwrap_or(draft.now))
}

/// When the machine was seen off by its BMC, or that was told to switch it or reset it, after its ramdisk has called in; none: neither, as
/// far as this process knows.
fn went_down(draft: &Draft<'_>) -> Option<Timestamp> {
    let here = draft.here_since()?;
    let reading = draft.seen.bmc.power;
    let off = reading.filter(|reading| reading.power == Power::Off);
    let told = draft.seen.tried.as_ref().filter(|tried| may_have_gone(tried));
    let down = off.map(|off| off.at).max(told.map(|told| told.at));
    // Sessions tell whole seconds.
    down.filter(|down| here < whole_seconds(*down).0)
}

/// True if that was an order on the power that may have been carried out: also if nobody answered to it. A boot for what the ramdisk is to
/// do is ordered while none is here, so what is here after it is what it booted, however late the BMC answered.
fn may_have_gone(tried: &Tried) -> bool {
    let failure = tried.result.as_ref().err();
    let is_boot = tried.operation.ends_with(BOOT);
    tried.on_power && !is_boot && failure.is_none_or(|failure| failure.class == FailureClass::Unreachable)
}

/// True if the machine left its ramdisk for the system that it has, as it was told, and has not been back since: what it runs does not bring
/// the ramdisk back. A session that ended later than what it runs began to be taken away is another one, once the machine had the time to
/// boot in between.
pub(in crate::host) fn has_left(draft: &Draft<'_>) -> bool {
    let is_gone = draft.session().is_none();
    let left = draft
        .server()
        .filter(|server| is_gone && jobs::says_it_left(server));
    let ended = left.and_then(|server| lost_at(server, draft.now));
    let history = draft.old.operation_history.as_ref();
    let taken_away = history.and_then(|history| history.deprovision.as_ref()?.start.as_ref());
    ended
        .zip(taken_away)
        .is_some_and(|(ended, start)| ended.duration_since(start.0) < BOOTS)
}

/// For what a host waits while its ramdisk may be clearing or writing disks, and how that is said.
const WORKS: ([WaitReason; 2], &str) = (
    [WaitReason::Clean, WaitReason::Write],
    "while its disks were to be cleared or written",
);
/// The same while the ramdisk only looks.
const LOOKS: ([WaitReason; 2], &str) = (
    [WaitReason::Inspection, WaitReason::Inventory],
    "while it was to report the hardware",
);

/// True while a ramdisk that was here may come back by itself although its Server is gone: its agent is refused, and boots its machine again.
/// When the Server went nobody knows, so the time counts from when that was seen, while the host waited for what the ramdisk did.
pub(super) fn may_enrol_again(draft: &mut Draft<'_>, then: &str) -> bool {
    if draft.server().is_some() {
        return false;
    }
    for ((reasons, when), patience) in [(WORKS, BOOT_DEADLINE), (LOOKS, SILENCE)] {
        let message = format!("{CALL_IN} again: its Server was deleted {when}; next: {then}");
        let was_here = reasons
            .into_iter()
            .any(|reason| draft.waiting_since(reason).is_some());
        let waits =
            draft.has_said(WaitReason::Ramdisk, &message) && !draft.waited(WaitReason::Ramdisk, patience);
        if was_here || waits {
            draft.wait_for(WaitReason::Ramdisk, message);
            draft.again_after(WaitReason::Ramdisk, patience);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use muster_proto::kinds::ServerSpec;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_764_000_000 + seconds).unwrap()
    }

    /// One whose session has been so since that second, by the clock of an edge.
    fn server(state: SessionState, since: i64) -> Server {
        let mut server = Server::new("server-1", ServerSpec::default());
        server.status.get_or_insert_default().session = Some(Session {
            state,
            since: at(since).to_string(),
            ..Session::default()
        });
        server
    }

    #[test]
    fn silence_counts_from_when_it_was_seen_and_by_an_edge_where_nobody_saw_it_begin() {
        use SessionState::{Connected, Disconnected};
        let seen = |before: Option<Presence>, state, since, now| {
            Presence::seen(before, Some(&server(state, since)), at(now))
        };
        let silent = |known: Option<Presence>| known.unwrap().silent_since;
        let here = seen(None, Connected, 0, 0);
        assert_eq!(silent(here), None);
        for told in [-300, 100, 300] {
            let gone = seen(here, Disconnected, told, 100);
            assert_eq!(silent(gone), Some(at(100)), "{told}");
            assert_eq!(silent(seen(gone, Disconnected, told, 150)), Some(at(100)));
            // It was here in between.
            assert_eq!(silent(seen(gone, Disconnected, told + 1, 160)), Some(at(160)));
            // Somebody sets our clock back.
            assert_eq!(silent(seen(gone, Disconnected, told, 50)), Some(at(50)));
        }
        assert_eq!(silent(seen(None, Disconnected, -300, 100)), Some(at(-300)));
        assert_eq!(silent(seen(None, Disconnected, 300, 100)), Some(at(100)));
        assert_eq!(Presence::seen(here, None, at(100)), None);
    }
}
