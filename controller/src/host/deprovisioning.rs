//! Taking away what a host runs: into the ramdisk, clean, available again. Pure.

use std::time::Duration;

use muster_proto::{
    inventory::Disk,
    kinds::{ErrorType, JobAction, Packed, RELEASE_ANNOTATION, Server},
};

use super::{
    State,
    access::{self, Reach},
    disk,
    draft::{Draft, HoldOff, REFUSED},
    guard,
    jobs::{self, Job},
    observed::Power,
    plan::Task,
    power, preparing, provisioning, ramdisk,
};

/// After so many failures of one step a deletion goes on without it.
pub(super) const PATIENCE: i64 = 3;

/// What the host runs is to go.
pub(super) fn begin(draft: &mut Draft<'_>) {
    draft.enter(State::Deprovisioning);
    draft.begin(|history| &mut history.deprovision);
    draft.tell("DeprovisioningStarted", "what the host runs is taken away");
    if draft.host.spec.image.is_none() {
        draft.status.provisioning_fail_count = 0;
    }
}

/// True if an order that destroys data still stands for what is taken back, or for what must not be touched any more: it is to be given
/// to no session, now or days later. One that is over is given to none anyway, unless its machine is still to be told to leave.
fn is_outdated(draft: &Draft<'_>) -> bool {
    let is_open = |server: &&Server| !jobs::rests(server) || jobs::is_unheard(server);
    let open = draft.server().filter(is_open);
    open.and_then(|server| server.spec.job.as_ref())
        .is_some_and(|job| {
            let ours = job.id.starts_with(&format!("{}deprovision-", jobs::OURS));
            matches!(job.action, JobAction::Clean | JobAction::Write)
                && (!ours || guard::untouchable(draft.host).is_some())
        })
}

/// The host is deprovisioning.
pub(super) fn go_on(draft: &mut Draft<'_>) {
    let start = draft
        .old
        .operation_history
        .as_ref()
        .and_then(|history| history.deprovision.as_ref()?.start.as_ref())
        .map(|start| start.0.as_second());
    let Some(start) = start else {
        draft.begin(|history| &mut history.deprovision);
        draft.again(Duration::ZERO);
        return;
    };
    if is_outdated(draft) && jobs::clear(draft) {
        draft.keep_wait();
        draft.again(Duration::ZERO);
        return;
    }
    if draft.is_leaving() && draft.old.error_count > PATIENCE {
        uncleaned(draft, "it failed too often");
        return;
    }
    if draft
        .annotation(RELEASE_ANNOTATION)
        .is_some_and(|value| value != "false")
    {
        uncleaned(draft, "somebody asked for it");
        return;
    }
    match draft.hold_off(&[ErrorType::Provisioning, ErrorType::PowerManagement]) {
        HoldOff::Waiting => return,
        HoldOff::Over if draft.is_leaving() && access::asks_anew(draft) => return,
        // An error of the provisioning that is being taken back is shown until the next one.
        HoldOff::None
            if draft.old.error_type == Some(ErrorType::Provisioning)
                && draft.waiting_since(REFUSED).is_none() => {}
        HoldOff::None | HoldOff::Over => draft.clear_error(),
    }
    if let Some(why) = guard::untouchable(draft.host) {
        match draft.is_leaving() {
            true => uncleaned(draft, why),
            false => draft.refuse(
                ErrorType::Provisioning,
                format!("{why}, or {RELEASE_ANNOTATION} lets it go as it is"),
            ),
        }
        return;
    }
    if !draft.takes_slot() {
        return;
    }
    let reach = access::ensure(draft);
    if reach == Reach::No {
        if draft.is_leaving()
            && let Some(why) = access::is_to_be_mended(draft)
        {
            draft.fail(ErrorType::Provisioning, why);
        }
        return;
    }
    let operation = jobs::operation(draft, "deprovision", Some(start), draft.old.error_count);
    if provisioning::is_cleaned(draft) {
        clean(draft, &reach, &operation);
    } else {
        stop(draft, &reach, &operation);
    }
}

fn clean(draft: &mut Draft<'_>, reach: &Reach, operation: &str) {
    let id = jobs::clean_id(operation);
    if let Some(server) = draft.server() {
        match jobs::look(server, |job| job == id) {
            Job::Done => return cleaned(draft, server),
            Job::Failed(error) => {
                let message = format!("the disks could not be cleaned: {error}");
                return draft.fail(ErrorType::Provisioning, message);
            }
            Job::Absent | Job::Pending => {}
        }
    }
    let then = "its disks are cleaned";
    let Some((server, _)) = ramdisk::ready(draft, reach, operation, ErrorType::Provisioning, then) else {
        return;
    };
    let Some(inventory) = ramdisk::inventory(draft, server, "they are cleaned") else {
        // A host that goes waits for nothing without an end.
        if draft.is_leaving() && draft.waited("Inventory", ramdisk::BOOT_DEADLINE) {
            draft.fail(ErrorType::Provisioning, "the ramdisk does not report the disks");
        } else if draft.is_leaving() {
            draft.again_after("Inventory", ramdisk::BOOT_DEADLINE);
        }
        return;
    };
    let root = preparing::root_of_before(draft, &inventory.disks);
    let disks = disk::to_clean(&inventory.disks, root);
    if disks.is_empty() {
        // It ran something from somewhere.
        return uncleaned(draft, "its ramdisk sees none that may be cleared");
    }
    match guard::to_clean(draft.host, draft.seen, &disks) {
        Ok(permit) => {
            tell_left_out(draft, server, &id, &inventory.disks, root);
            jobs::place(draft, server, &id, Task::Clean(permit));
            draft.wait_for(
                "Clean",
                "waits for the ramdisk to clear the disks; next: the host is available",
            );
        }
        Err(why) => draft.fail(
            ErrorType::Provisioning,
            format!("the disks are not cleaned: {why}"),
        ),
    }
}

/// Tells of the disks that the cleaning `id` leaves out, as long as that is not placed.
pub(super) fn tell_left_out(
    draft: &mut Draft<'_>,
    server: &Server,
    id: &str,
    disks: &[Disk],
    root: Option<&Disk>,
) {
    let left = disk::left_out(disks, root);
    if left.is_empty() || jobs::is_placed(server, id) {
        return;
    }
    draft.warn(
        "DisksLeft",
        format!("some disks stay as they are: {}", left.join("; ")),
    );
}

/// Without cleaning: what runs ends all the same, by the power where that may be switched, else by the ramdisk that takes its place.
fn stop(draft: &mut Draft<'_>, reach: &Reach, operation: &str) {
    let id = jobs::clean_id(operation);
    if let Some(server) = draft.server() {
        // What is being cleared already is cleared to its end: a host whose disks are half gone is not as it was.
        match jobs::look(server, |job| job == id) {
            Job::Done => return cleaned(draft, server),
            Job::Pending if jobs::is_under_way(server, |job| job == id) => {
                return clean(draft, reach, operation);
            }
            _ => {}
        }
    }
    if draft.session().is_some() {
        return finish(draft, Left::Disks);
    }
    let stays_on = draft.host.spec.disable_power_off == Some(true);
    let boot = ramdisk::boot_of(operation);
    // What is off in the middle of its boot is about to be on again.
    let boots = draft.waiting_since("Ramdisk").is_some() || power::tried(draft, &boot).is_some();
    // Of one without a BMC nobody knows that it is off: it may have been switched on by hand.
    if *reach == Reach::InBand || (stays_on && boots) {
        ends_in_ramdisk(draft, reach, operation);
        return;
    }
    match power::current(draft) {
        Some(Power::Off) => {
            draft.status.powered_on = false;
            finish(draft, Left::Disks);
        }
        Some(_) if stays_on => ends_in_ramdisk(draft, reach, operation),
        Some(_) => power::switch_off(
            draft,
            super::reboot::Wish {
                hard: true,
                ..Default::default()
            },
        ),
        None => {
            if draft.waited("Bmc", ramdisk::BOOT_DEADLINE) {
                draft.fail(
                    ErrorType::Provisioning,
                    "the BMC does not say whether the machine is on",
                );
            } else if draft.powerless.is_some() {
                let then = match stays_on {
                    true => "its ramdisk takes the place of what it runs",
                    false => "it is switched off",
                };
                draft.wait_for(
                    "Bmc",
                    format!("waits for the BMC to say whether the machine is on; next: {then}"),
                );
            }
        }
    }
}

/// What runs ends as the ramdisk takes its place.
fn ends_in_ramdisk(draft: &mut Draft<'_>, reach: &Reach, operation: &str) {
    let then = "the host is let go, with its disks as they are";
    ramdisk::ready(draft, reach, operation, ErrorType::Provisioning, then);
}

fn uncleaned(draft: &mut Draft<'_>, why: &str) {
    draft.warn("NotCleaned", format!("the disks are as they were: {why}"));
    if draft.annotation(RELEASE_ANNOTATION).is_some() {
        draft
            .metadata
            .remove_annotations
            .push(RELEASE_ANNOTATION.to_owned());
    }
    finish(draft, Left::Disks);
}

/// What is left of what the host ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    /// What disks hold that cannot be told from each other, or were put in.
    SomeDisks,
    Disks,
}

/// The disks are clean that may be.
fn cleaned(draft: &mut Draft<'_>, server: &Server) {
    let status = server.status.as_ref();
    let inventory = status.and_then(|status| status.inventory.as_ref());
    let inventory = inventory.map(Packed::unpack).unwrap_or_default();
    let root = preparing::root_of_before(draft, &inventory.disks);
    // The order may be older than the first report of this boot: who used the machine may have put disks in.
    let ordered = server.spec.job.as_ref().and_then(|job| job.clean.as_ref());
    if let Some(ordered) = ordered.map(Packed::unpack) {
        // Each name is one disk's: of twins, the one that was named is no other.
        let mut names = ordered.disks.clone();
        let mut is_named = |disk: &Disk| {
            let at = names.iter().position(|id| disk::is_meant(id, disk));
            at.map(|at| names.swap_remove(at)).is_some()
        };
        let mut more = disk::to_clean(&inventory.disks, root);
        more.retain(|disk| !is_named(disk));
        let more: Vec<_> = more.iter().map(|disk| disk.name.as_str()).collect();
        if !more.is_empty() {
            let names = more.join(", ");
            let message = format!("not all disks are cleaned: {names} came to light after that was ordered");
            return draft.fail(ErrorType::Provisioning, message);
        }
    }
    let left = match disk::left_out(&inventory.disks, root).is_empty() {
        true => Left::Nothing,
        false => Left::SomeDisks,
    };
    finish(draft, left);
}

fn finish(draft: &mut Draft<'_>, left: Left) {
    let error = (
        draft.status.error_type,
        draft.status.error_message.clone(),
        draft.status.operational_status,
    );
    let next = match draft.is_leaving() {
        true => State::PoweringOffBeforeDelete,
        false => State::Available,
    };
    draft.enter(next);
    if next == State::Available
        && draft.status.provisioning_fail_count > 0
        && error.0 == Some(ErrorType::Provisioning)
    {
        // What failed is to be seen until the next attempt.
        (
            draft.status.error_type,
            draft.status.error_message,
            draft.status.operational_status,
        ) = error;
    }
    draft.end(|history| &mut history.deprovision);
    draft.status.provisioning.image = None;
    draft.status.provisioning.custom_deploy = None;
    if let Some(raid) = draft
        .status
        .provisioning
        .raid
        .as_mut()
        .filter(|_| left != Left::Disks)
    {
        // What they began with on each disk is gone.
        raid.software_raid_volumes = None;
    }
    power::rebooted(draft);
    let told = match left {
        Left::Nothing => "nothing of what it ran is left to boot",
        Left::SomeDisks => {
            "its disks are clean, but for those of the Event DisksLeft, which are as they were"
        }
        Left::Disks => "the host is let go, with its disks as they were",
    };
    draft.tell("DeprovisioningComplete", told);
    jobs::clear(draft);
}
