//! How a host goes: every way ends with the finalizer off. Pure.

use muster_proto::kinds::{ErrorType, Server};

use super::{
    State, WaitReason,
    access::{self, Reach},
    deprovisioning::PATIENCE,
    draft::{Draft, HoldOff, and_next, clause},
    inspection,
    jobs::{self, Job},
    observed::{Bmc, Power},
    plan::{BmcCall, Effect, Task},
    power, ramdisk,
    reboot::Wish,
    secrets,
    state::unknown,
};

/// Turns a host that is being deleted onto its way out. True if it was turned now.
pub(super) fn turn(draft: &mut Draft<'_>) -> bool {
    let state = draft.state;
    if state == State::Deleting {
        return false;
    }
    let young = matches!(state, State::New | State::Unmanaged | State::Registering);
    let given_up = match state {
        _ if young => None,
        State::Foreign => {
            let why = unknown(&draft.old.provisioning.state);
            Some(format!("{why}: the machine is neither cleaned nor powered off"))
        }
        _ => access::hopeless(draft).map(|why| {
            format!("the machine cannot be reached and is neither cleaned nor powered off: {why}")
        }),
    };
    if young || given_up.is_some() {
        if let Some(why) = given_up {
            draft.warn("DeletedUnreachable", why);
        }
        draft.enter(State::Deleting);
        return true;
    }
    match state {
        State::Provisioning | State::Provisioned => super::deprovisioning::begin(draft),
        State::Inspecting | State::Preparing | State::Available | State::ExternallyProvisioned => {
            draft.enter(State::PoweringOffBeforeDelete);
        }
        State::Deprovisioning if failed_before(draft) => begin_anew(draft),
        _ => return false,
    }
    true
}

/// True if the deprovisioning failed before the deletion was asked for: that is none of its attempts.
fn failed_before(draft: &Draft<'_>) -> bool {
    let history = draft.old.operation_history.as_ref();
    let begun = history.and_then(|history| history.deprovision.as_ref()?.start.as_ref());
    let asked = draft.host.metadata.deletion_timestamp.as_ref();
    draft.old.error_count > 0 && begun < asked
}

fn begin_anew(draft: &mut Draft<'_>) {
    draft.clear_error();
    draft.status.error_count = 0;
    draft.begin(|history| &mut history.deprovision);
    // The API server's clock may be ahead.
    let asked = draft.host.metadata.deletion_timestamp.clone();
    let history = draft.history(|history| &mut history.deprovision);
    history.start = history.start.take().max(asked);
}

/// The host is switched off before it goes.
pub(super) fn power_off(draft: &mut Draft<'_>) {
    let kept_on = draft.host.spec.disable_power_off == Some(true);
    if kept_on {
        draft.enter(State::Deleting);
        return;
    }
    if draft.old.error_count > PATIENCE {
        draft.warn(
            "DeletedUnreachable",
            format!(
                "the machine could not be powered off and may still be running: {}",
                clause(&draft.old.error_message)
            ),
        );
        draft.enter(State::Deleting);
        return;
    }
    let held_off = draft.hold_off(&[ErrorType::PowerManagement]);
    if held_off == HoldOff::Waiting || (held_off == HoldOff::Over && access::asks_anew(draft)) {
        return;
    }
    draft.clear_error();
    match access::ensure(draft) {
        Reach::No => {
            if let Some(why) = access::is_to_be_mended(draft) {
                draft.fail(ErrorType::PowerManagement, why);
            }
        }
        Reach::Silent(failure) => draft.fail(
            ErrorType::PowerManagement,
            format!("the BMC does not answer: {}", failure.message),
        ),
        Reach::InBand => in_band(draft),
        Reach::Bmc => by_bmc(draft),
    }
}

fn by_bmc(draft: &mut Draft<'_>) {
    if power::is_unknown(draft) {
        // Asked again for the next attempt.
        draft.call(BmcCall::ReadPower);
        let why = power::says_no_power(draft, &Reach::Bmc);
        draft.fail(ErrorType::PowerManagement, why);
        return;
    }
    match power::current(draft) {
        Some(Power::Off) => {
            draft.enter(State::Deleting);
            draft.status.powered_on = false;
        }
        Some(_) => {
            let hard = Wish {
                hard: true,
                ..Wish::default()
            };
            power::switch_off(draft, hard);
        }
        None => {}
    }
}

fn in_band(draft: &mut Draft<'_>) {
    let id = jobs::operation(draft.uid(), "off-to-delete", None, draft.old.error_count);
    let is_off = |server: &Server| jobs::look(server, |job| job == id) == Job::Done;
    if draft.server().is_some_and(is_off) {
        draft.enter(State::Deleting);
        draft.status.powered_on = false;
        return;
    }
    let Some((server, _)) = draft.session() else {
        if let Some(due) = ramdisk::may_return_until(draft) {
            draft.wait_for(
                WaitReason::PoweringOff,
                "waits for the ramdisk, which lost its connection a moment ago, to power off the machine; next: the host is deleted",
            );
            draft.again_at(due);
            return;
        }
        if draft.status.powered_on {
            draft.warn(
                "DeletedUnreachable",
                "the machine has no BMC and is not in its ramdisk: it is not powered off",
            );
        }
        draft.enter(State::Deleting);
        return;
    };
    match jobs::look(server, |job| job == id) {
        Job::Absent => {
            jobs::place(draft, server, &id, Task::PowerOff);
            draft.wait_for(
                WaitReason::PoweringOff,
                "waits for the ramdisk to power off the machine; next: the host is deleted",
            );
        }
        Job::Pending if draft.waited(WaitReason::PoweringOff, ramdisk::BOOT_DEADLINE) => draft.fail(
            ErrorType::PowerManagement,
            "the ramdisk does not power off the machine",
        ),
        Job::Pending => {
            draft.wait_for(
                WaitReason::PoweringOff,
                "waits for the ramdisk to power off the machine; next: the host is deleted",
            );
            draft.again(std::time::Duration::from_secs(300));
        }
        Job::Failed(error) => draft.fail(
            ErrorType::PowerManagement,
            format!("the ramdisk did not power off the machine: {error}"),
        ),
        Job::Done => {}
    }
}

/// All that is held for the host is let go, then the host.
pub(super) fn drop_finalizers(draft: &mut Draft<'_>) {
    let mut busy = jobs::clear(draft);
    busy |= secrets::release(draft);
    if let Some(why) =
        secrets::unread(draft).filter(|_| !draft.waited(WaitReason::Inputs, ramdisk::BOOT_DEADLINE))
    {
        // It may carry our finalizer, which nobody else takes off.
        draft.wait_for(
            WaitReason::Inputs,
            and_next(&why, "it is released, and then the host is deleted"),
        );
        draft.again(access::LOOK_AGAIN);
        return;
    }
    busy |= inspection::release_data(draft);
    if !draft.seen.released {
        draft.effect(Effect::ReleaseLeftovers);
        busy = true;
    }
    if draft.seen.bmc != Bmc::default() {
        draft.call(BmcCall::Forget);
        busy = true;
    }
    if busy {
        draft.keep_wait();
        draft.why("releases what was held for the host");
        draft.again(std::time::Duration::ZERO);
        return;
    }
    draft.metadata.finalizer = Some(false);
    draft.why("nothing is held for the host any longer");
}
