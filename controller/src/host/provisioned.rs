//! Hosts that somebody's operating system runs on: looked after, never written. Pure.

use jiff::Timestamp;
use muster_proto::kinds::{
    BareMetalHost, BareMetalHostStatus, CustomDeploy, ErrorType, OperationalStatus, Server,
};

use super::{
    State, WaitReason, access,
    available::{self, image_url},
    deprovisioning, disk,
    draft::{Draft, and_next, bounded},
    guard,
    jobs::{self, Job},
    plan::Task,
    power, preparing, ramdisk, reboot,
    secrets::{self, Inputs},
};

/// The host is provisioned.
pub(super) fn go_on(draft: &mut Draft<'_>) {
    if is_to_go(draft.host) {
        match admits(draft) {
            // Who may have it is known once the ramdisk is there.
            Inputs::Ready | Inputs::Untrusted(_) => deprovisioning::begin(draft),
            Inputs::Bad(why) => {
                look_after(draft);
                draft.refuse_beside(ErrorType::Provisioning, why);
            }
            Inputs::Wait(why) => {
                look_after(draft);
                let message = and_next(&why, "the host is deprovisioned for its next image");
                draft.wait_beside(WaitReason::Inputs, message);
            }
        }
        return;
    }
    draft.forget(ErrorType::Provisioning);
    let leaving = is_to_leave(draft);
    look_after_unless(draft, leaving);
}

/// Whether what the host runs may go, and what is to take its place, if anything, is there: what runs is not lost for what is not.
fn admits(draft: &mut Draft<'_>) -> Inputs {
    if let Some(why) = guard::untouchable(draft.host) {
        return Inputs::Bad(why.to_owned());
    }
    if !available::has_request(&draft.host.spec) {
        return Inputs::Ready;
    }
    if let Some(why) = unfulfillable(draft) {
        return Inputs::Bad(why);
    }
    let inputs = secrets::inputs(draft);
    if matches!(inputs, Inputs::Bad(_) | Inputs::Wait(_)) {
        // Nobody watches a Secret that is not marked.
        draft.again(access::LOOK_AGAIN);
    }
    inputs
}

/// Why what the host asks for is nothing that can be written; none: it can.
fn unfulfillable(draft: &Draft<'_>) -> Option<String> {
    let spec = &draft.host.spec;
    let raid = || preparing::unsupported_raid(spec.raid.as_deref(), draft.old.provisioning.raid.as_deref());
    let unsupported = preparing::unsupported_boot(spec).or_else(raid);
    unsupported
        .map(str::to_owned)
        .or_else(|| preparing::software_raid(spec).err())
        .or_else(|| available::request(spec).err())
        .or_else(|| shared_number(draft).err())
}

/// An error where the hints give a number that several of the disks have which its ramdisk saw last. What it did not see it may see the next
/// time, but these are there.
fn shared_number(draft: &Draft<'_>) -> Result<(), String> {
    let status = draft.server().and_then(|server| server.status.as_ref());
    let inventory = status.and_then(|status| status.inventory.as_ref());
    match (preparing::effective_hints(draft), inventory) {
        (Some(hints), Some(inventory)) => disk::tell_one(&hints, &inventory.unpack().disks)
            .map_err(|why| format!("of the disks that its ramdisk saw last, {why}")),
        _ => Ok(()),
    }
}

/// Whether a machine leaves its ramdisk for the system that it has.
enum Leaving {
    /// It need not, or cannot.
    No,
    /// It was told to, and goes in a moment.
    Told,
    /// It was told this long ago, and is there still; why, if its ramdisk said so.
    Stays(Option<String>),
}

/// When what the host runs was written, if that was here.
fn written(status: &BareMetalHostStatus) -> Option<Timestamp> {
    let history = status.operation_history.as_ref()?;
    let provision = history.provision.as_ref()?;
    let taken_away = history.deprovision.as_ref();
    let taken_away = taken_away.and_then(|metric| metric.start.as_ref());
    let is_there = provision.start.as_ref() >= taken_away;
    let end = provision.end.as_ref()?;
    is_there.then_some(end.0)
}

/// A ramdisk that still runs did not hear that it is to leave, because the way to it was broken at that moment: it is told, once.
fn is_to_leave(draft: &mut Draft<'_>) -> Leaving {
    let Some((server, _)) = draft.session().filter(|_| !goes_off(draft)) else {
        return Leaving::No;
    };
    let Some(written) = written(&draft.old) else {
        return leaves_for_its_own(draft);
    };
    // One that was told goes in a moment.
    let due = written.checked_add(ramdisk::SILENCE).unwrap_or(draft.now);
    if draft.now < due && !draft.is_ahead(written) {
        draft.again_at(due);
        return Leaving::No;
    }
    let operation = jobs::operation(draft.uid(), "provisioned", Some(written.as_second()), 0);
    let id = jobs::leave_id(&operation);
    let message = "the machine is still in its ramdisk although its image is written; next: it is rebooted into the image";
    told_to_leave(draft, server, &id, message)
}

/// The host is externally provisioned.
pub(super) fn external(draft: &mut Draft<'_>) {
    if draft.host.spec.externally_provisioned != Some(true) {
        draft.enter(State::Provisioned);
        draft.status.provisioning.root_device_hints = preparing::effective_hints(draft);
        // What is asked for is taken for what it runs.
        let runs = &mut draft.status.provisioning;
        runs.image.clone_from(&draft.host.spec.image);
        runs.custom_deploy.clone_from(&draft.host.spec.custom_deploy);
        return;
    }
    // The request that failed is not to be fulfilled any more.
    draft.forget(ErrorType::Provisioning);
    draft.status.provisioning_fail_count = 0;
    let leaving = leaves_for_its_own(draft);
    look_after_unless(draft, leaving);
}

/// A host that somebody else provisioned is not to stay in the ramdisk that it is found in: it is told to leave, once in each.
fn leaves_for_its_own(draft: &mut Draft<'_>) -> Leaving {
    let Some((server, session)) = draft.session().filter(|_| !goes_off(draft)) else {
        return Leaving::No;
    };
    let of = session.key.get(..16).unwrap_or(&session.key);
    let id = format!("{}-{of}", jobs::operation(draft.uid(), "external", None, 0));
    let message = "the machine is in its ramdisk although it has an operating system; next: it is rebooted into that system";
    told_to_leave(draft, server, &id, message)
}

/// True if the machine is off soon, or is to be.
fn goes_off(draft: &Draft<'_>) -> bool {
    power::is_to_be_off(draft.host) || reboot::wish(draft.host, false).off()
}

/// Has the machine of `server` leave its ramdisk by the job `id`.
fn told_to_leave(draft: &mut Draft<'_>, server: &Server, id: &str, message: &'static str) -> Leaving {
    let contested = server.status.as_ref().is_some_and(|status| status.contested);
    let (told, here) = (draft.waiting_since(WaitReason::Leave), draft.here_since());
    // It may have waited for another session's end.
    let is_old = |since: Timestamp| draft.now.duration_since(since) >= ramdisk::BOOT_DEADLINE;
    let is_late = told.is_some_and(is_old) && here.is_none_or(is_old);
    let is_back = told.is_none_or(|told| ramdisk::is_booted_since(draft, told));
    match jobs::look(server, |job| job == id) {
        Job::Absent if contested => return Leaving::No,
        Job::Failed(error) => return Leaving::Stays(Some(error)),
        // One that comes back is not told again, or it would go on like that.
        Job::Done if is_back => return Leaving::Stays(None),
        _ if is_late => return Leaving::Stays(None),
        Job::Absent => jobs::place(draft, server, id, Task::Reboot),
        Job::Pending | Job::Done => draft.again(access::LOOK_AGAIN),
    }
    // Its ramdisk is here.
    draft.status.powered_on = true;
    draft.wait_for(WaitReason::Leave, message);
    Leaving::Told
}

/// The power of one that stays where it should not be counts for more than where it is.
fn look_after_unless(draft: &mut Draft<'_>, leaving: Leaving) {
    match leaving {
        Leaving::Told => {}
        Leaving::No => look_after(draft),
        Leaving::Stays(error) => {
            look_after(draft);
            let why = error.map(|error| format!(": {}", bounded(&error)));
            let stays = format!(
                "the machine was told to leave its ramdisk but is still in it{}",
                why.unwrap_or_default()
            );
            draft.wait_beside(
                WaitReason::Leave,
                and_next(
                    &stays,
                    "reboot it with the annotation reboot.metal3.io, or manually",
                ),
            );
        }
    }
}

fn look_after(draft: &mut Draft<'_>) {
    // Another operator's: nobody services the host here, and nothing of it waits for a slot.
    draft.forget(ErrorType::Servicing);
    let status = &mut draft.status.operational_status;
    if matches!(*status, OperationalStatus::Servicing | OperationalStatus::Delayed) {
        *status = OperationalStatus::Ok;
    }
    let reach = access::ensure(draft);
    power::manage(draft, &reach);
}

/// True if what the host runs is not what it is to run. Only the image's URL counts, as upstream has it.
pub(super) fn is_to_go(host: &BareMetalHost) -> bool {
    let spec = &host.spec;
    let runs = host.status.as_ref().map(|status| &status.provisioning);
    let method = |custom: Option<&CustomDeploy>| {
        custom
            .map(|custom| custom.method.clone())
            .filter(|method| !method.is_empty())
    };
    let image = image_url(runs.and_then(|runs| runs.image.as_ref()));
    let custom = method(runs.and_then(|runs| runs.custom_deploy.as_deref()));
    match (image, &custom) {
        // Nobody knows what runs there. It goes if nothing is asked for, and else is taken for what is asked for.
        (None, None) => !available::has_request(spec),
        _ => {
            (image.is_some() && image != image_url(spec.image.as_ref()))
                || (custom.is_some() && custom != method(spec.custom_deploy.as_deref()))
        }
    }
}
