//! Whether a host has a slot among those that are busy at once, as what is stored says, and keeps it. Pure. How many there are and who
//! is next is the matter of [`super::slots`].

use jiff::Timestamp;
use muster_proto::kinds::{BareMetalHost, BareMetalHostStatus, OperationalStatus, Server, SessionState};

use super::{
    Owner, State, WaitReason,
    conditions::waiting,
    jobs, owner,
    ramdisk::{BOOT_DEADLINE, lost_at},
};

/// True if `status` says that the host waits for a slot.
pub(super) fn waits_for_slot(status: &BareMetalHostStatus) -> bool {
    status.operational_status == OperationalStatus::Delayed
}

/// True if the stored state of `host` says that it has a slot.
pub(super) fn is_busy(host: &BareMetalHost) -> bool {
    State::of(host).is_busy() && !host.status.as_ref().is_some_and(waits_for_slot)
}

/// True if `host`, which needs no slot for what is done next, keeps the one that its stored state says it has: what was begun goes on.
/// Who may wait for hours keeps no other out, unless the ramdisk of its `server` may be at work.
pub(super) fn keeps(host: &BareMetalHost, server: Option<&Server>, now: Timestamp) -> bool {
    let waits = may_take_hours(host) && !server.is_some_and(|server| may_be_at_work(server, now));
    is_busy(host) && !waits
}

/// True if what `host` needs a slot for is being done to its machine, whatever its status says of a slot.
pub(super) fn has_begun(host: &BareMetalHost, server: Option<&Server>, now: Timestamp) -> bool {
    State::of(host).is_busy() && server.is_some_and(|server| may_be_at_work(server, now))
}

/// True if `host` may stay as it is for hours: it has failed, is paused or out of our hands, or somebody has to change or do something
/// first.
pub(super) fn may_take_hours(host: &BareMetalHost) -> bool {
    let is_told = host.status.as_ref().is_some_and(|status| {
        match (status.operational_status, waiting(status)) {
            (OperationalStatus::Detached, _) => true,
            // An error that is still shown is nothing that is waited for.
            (_, Some(wait)) => WaitReason::parse(&wait.reason).is_some_and(|reason| {
                matches!(reason, WaitReason::Retry | WaitReason::Detached) || reason.is_left_to_a_person()
            }),
            (status, None) => status == OperationalStatus::Error,
        }
    });
    is_told || owner(host) != Owner::Operator
}

/// True if the ramdisk of `server` may be clearing or writing disks: one that fell silent may go on with that for a while. Where the clock of
/// its edge is wrong, its place may be given to another host too soon, and nothing else comes of it.
fn may_be_at_work(server: &Server, now: Timestamp) -> bool {
    let session = server.session();
    let is_there = session.is_some_and(|session| session.state == SessionState::Connected)
        || lost_at(server, now).is_some_and(|at| now.duration_since(at) < BOOT_DEADLINE);
    is_there && jobs::is_under_way(server, |_| true)
}
