//! How a BMC boots a machine into its ramdisk: by a reset, or off and on, where the BMC knows no reset or an attempt before has failed. Pure.

use jiff::{SignedDuration, Timestamp};

use super::{arm, read_power};
use crate::host::{
    access::{ASK_AGAIN, LOOK_AGAIN},
    draft::{Draft, and_next},
    observed::{Failure, FailureClass, Power, Tried},
    plan::{BmcCall, PowerOrder},
    power::SWITCHING,
};

/// After so long an order is given once more of which nobody knows whether it was carried out: half of [`super::BOOT_DEADLINE`] for
/// either boot.
pub(super) const LOST_ANSWER: SignedDuration = SignedDuration::from_mins(7);

/// How the name of the order ends that switches a machine off for its boot. That is no boot: what is here after it is not what it booted.
const OFF: &str = "-off";

/// What that order is called for the boot `operation`.
pub(super) fn off_of(operation: &str) -> String {
    format!("{operation}{OFF}")
}

/// True if `tried` is such an order.
pub(super) fn is_off(tried: &Tried) -> bool {
    tried.operation.ends_with(OFF)
}

/// True if nobody may switch the machine off.
fn stays_on(draft: &Draft<'_>) -> bool {
    draft.host.spec.disable_power_off == Some(true)
}

/// True if a machine that is on goes off first: an attempt before has failed, perhaps because a reset was accepted and not carried out.
fn goes_off_first(draft: &Draft<'_>) -> bool {
    let has_failed = draft.old.error_count > 0 || draft.old.provisioning_fail_count > 0;
    has_failed && !stays_on(draft)
}

/// True if `tried` was an order to boot that the BMC cannot carry out at all.
fn is_unsupported(tried: &Tried) -> bool {
    let failure = tried.result.as_ref().err();
    tried.on_power && failure.is_some_and(|failure| failure.class == FailureClass::Unsupported)
}

/// After which pause what failed so is tried again; none: it is not. An order on the power that nobody answered may have been carried out
/// all the same, and a machine that boots is left to that for a while.
pub(super) fn pause_after(failure: &Failure, on_power: bool) -> Option<SignedDuration> {
    match failure.class {
        FailureClass::Busy => SignedDuration::try_from(LOOK_AGAIN).ok(),
        FailureClass::Unreachable if on_power => Some(LOST_ANSWER),
        FailureClass::Unreachable | FailureClass::System => Some(ASK_AGAIN),
        _ => None,
    }
}

/// Once more, when that is due. The power is asked for before: what it was may have been changed by the attempt before.
pub(super) fn start_again(draft: &mut Draft<'_>, operation: &str, tried: Timestamp, pause: SignedDuration) {
    if !draft.has_paused(tried, pause) {
        draft.again_at(tried.checked_add(pause).unwrap_or(draft.now));
        return;
    }
    let reading = draft.seen.bmc.power.filter(|reading| reading.at > tried);
    match reading.map(|reading| reading.power) {
        Some(Power::On | Power::Off) => start(draft, operation),
        Some(Power::Unknown) | None => read_power(draft),
    }
}

/// Boots the machine, as `operation`, by the power that it has.
pub(super) fn start(draft: &mut Draft<'_>, operation: &str) {
    let reading = draft.seen.bmc.power;
    match reading.is_some_and(|reading| reading.power == Power::On) {
        true if goes_off_first(draft) => switch_off(draft, operation),
        true => boot(draft, operation, PowerOrder::Reset),
        false => boot(draft, operation, PowerOrder::On),
    }
}

fn boot(draft: &mut Draft<'_>, operation: &str, order: PowerOrder) {
    arm(draft, operation);
    draft.call(BmcCall::Power {
        operation: operation.to_owned(),
        order,
    });
    draft.why("booting the ramdisk");
}

fn switch_off(draft: &mut Draft<'_>, operation: &str) {
    // One that cannot be told what to boot stays on.
    arm(draft, operation);
    draft.call(BmcCall::Power {
        operation: off_of(operation),
        order: PowerOrder::HardOff,
    });
    draft.why("switching the machine off, to boot the ramdisk by switching it on");
}

/// True if the machine goes off and on, and `tried` is a step of that.
pub(super) fn goes_off_and_on(draft: &Draft<'_>, tried: &Tried) -> bool {
    // Where it goes off first, the reset was the last resort.
    let is_to = is_unsupported(tried) && !stays_on(draft) && !goes_off_first(draft);
    is_off(tried) || is_to
}

/// Takes the next step of that for the boot `operation`. An error says why there is none.
pub(super) fn go_on(draft: &mut Draft<'_>, operation: &str, tried: &Tried) -> Result<(), String> {
    // What was read before the order is forgotten.
    let reading = draft.seen.bmc.power;
    let Some(reading) = reading.filter(|reading| reading.power != Power::Unknown) else {
        read_power(draft);
        return Ok(());
    };
    let (told, on) = (is_off(tried), reading.power == Power::On);
    let why = match &tried.result {
        _ if told && !on => {
            boot(draft, operation, PowerOrder::On);
            return Ok(());
        }
        Err(_) if !told && on => {
            switch_off(draft, operation);
            return Ok(());
        }
        Ok(()) if reading.at.duration_since(tried.at) < SWITCHING => {
            read_power(draft);
            return Ok(());
        }
        Ok(()) => {
            let seconds = SWITCHING.as_secs();
            format!("it is not off {seconds} s after the BMC accepted the request")
        }
        Err(failure) => failure.message.clone(),
    };
    if told && goes_off_first(draft) {
        boot(draft, operation, PowerOrder::Reset);
        return Ok(());
    }
    Err(why)
}

/// Why the order that was `tried` ended in `failure`, and what helps where the machine may not go off and on.
pub(super) fn why(draft: &Draft<'_>, tried: &Tried, failure: &Failure) -> String {
    let helps = "boot the machine from the network manually, or set spec.disablePowerOff to false, so that it can be switched off and on";
    match is_unsupported(tried) && stays_on(draft) {
        true => and_next(&failure.message, helps),
        false => failure.message.clone(),
    }
}

/// What else there is to look at where a reset may have done nothing, and the machine may not go off and on instead.
pub(super) fn without_off(draft: &Draft<'_>) -> &'static str {
    match stays_on(draft) {
        true => {
            ", whether the BMC's reset restarts it at all (spec.disablePowerOff forbids switching it off and on instead)"
        }
        false => "",
    }
}
