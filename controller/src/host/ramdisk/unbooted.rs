//! A machine whose BMC has not booted it into its ramdisk and is told to again, or took long to. Pure.

use super::{BENEFIT_OF_DOUBT, BOOT_DEADLINE, CALL_IN, is_unbooted, starting::LOST_ANSWER, unlikely};
use crate::host::{
    WaitReason,
    draft::{Draft, clause},
    observed::{Failure, FailureClass, Tried},
    power,
};

/// The boot that was `tried` failed so, and is ordered again: the host waits for its BMC. Too long is a failure; the time counts from when it
/// began to wait for its ramdisk, and does not begin anew with what it says. True if it waits on.
pub(super) fn waits_on(draft: &mut Draft<'_>, tried: &Tried, failure: &Failure, then: &str) -> bool {
    let unread = draft.seen.bmc.unread.as_ref();
    let unread = unread.filter(|unread| unread.at > tried.at);
    let is_lost = tried.on_power && failure.class == FailureClass::Unreachable;
    // Nobody knows whether the machine boots.
    let may_boot = is_lost && unread.is_none();
    match unread {
        Some(unread) => draft.powerless = Some(power::unknown_because(&unread.message)),
        None if may_boot || failure.class == FailureClass::Busy => {}
        None => draft.powerless = Some(failure.message.clone()),
    }
    let why = clause(&unread.unwrap_or(failure).message);
    if draft.waited(WaitReason::Ramdisk, BOOT_DEADLINE) || draft.waited(WaitReason::Bmc, BOOT_DEADLINE) {
        is_unbooted(draft, why);
        return false;
    }
    if may_boot {
        let (minutes, unlikely) = (LOST_ANSWER.as_mins(), unlikely(draft));
        draft.wait_on(
            WaitReason::Ramdisk,
            WaitReason::Bmc,
            format!(
                "{CALL_IN}{unlikely}, although the BMC did not answer the request to boot the machine ({why}); next: the request is repeated after {minutes} min, or {then}"
            ),
        );
    } else {
        draft.wait_on(
            WaitReason::Bmc,
            WaitReason::Ramdisk,
            format!(
                "waits for the BMC to boot the machine into its ramdisk: {why}; next: retrying at least every minute, and then {then}"
            ),
        );
    }
    true
}

/// True if the boot that was `tried` succeeded so long after the host began to wait for its ramdisk that the time for that begins with it.
pub(super) fn took_long(draft: &Draft<'_>, tried: &Tried) -> bool {
    draft
        .waiting_since(WaitReason::Ramdisk)
        .is_some_and(|since| tried.at.duration_since(since) >= BENEFIT_OF_DOUBT)
}
