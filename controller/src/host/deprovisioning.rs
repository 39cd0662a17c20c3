//! Taking away what a host runs: into the ramdisk, clean, available again. Pure.

use std::time::Duration;

use jiff::Timestamp;
use muster_proto::{
    inventory::Disk,
    job::Failure,
    kinds::{ErrorType, JobAction, Packed, RELEASE_ANNOTATION, Server},
};

use super::{
    State, WaitReason,
    access::{self, Reach},
    available, conditions, disk,
    draft::{Draft, HoldOff, clause},
    guard,
    jobs::{self, Job},
    observed::{Power, SecretState},
    plan::{BmcCall, Effect, Task},
    power, preparing, provisioning, ramdisk,
    reboot::Wish,
    report,
};

/// After so many failures of one step a deletion goes on without it.
pub(super) const PATIENCE: i64 = 3;

/// What the operation is called.
const DEPROVISION: &str = "deprovision";
/// Why a cleaning that had begun was not ended.
const NOT_WANTED: &str = "cleaning was disabled after it had begun";

/// What the host runs is to go.
pub(super) fn begin(draft: &mut Draft<'_>) {
    draft.enter(State::Deprovisioning);
    draft.begin(|history| &mut history.deprovision);
    // That its ramdisk is waited for is not said beforehand: the write that says so comes before the boot, and by then the edges have seen that
    // the machine is to have the ramdisk.
    let told = match guard::kept(draft.host).filter(|_| draft.is_being_deleted()) {
        Some(why) if residue_as_it_is(draft) == Residue::Part => format!(
            "the host is deleted while its disks are being cleared or written, and they are not cleaned afterwards, because {why}"
        ),
        Some(why) => format!("the host is deleted and its disks keep their data, because {why}"),
        None => "deprovisioning starts".to_owned(),
    };
    draft.tell("DeprovisioningStarted", told);
    if draft.host.spec.image.is_none() {
        draft.status.provisioning_fail_count = 0;
    }
}

/// True if a job that destroys data still stands for what is taken back, or for what must not be touched any more: it is to be given
/// to no session, now or days later. One that is over is given to none anyway, unless its machine is still to be told to leave.
fn is_outdated(draft: &Draft<'_>) -> bool {
    let is_open = |server: &&Server| !jobs::rests(server) || jobs::is_unheard(server);
    let open = draft.server().filter(is_open);
    open.and_then(|server| server.spec.job.as_ref())
        .is_some_and(|job| {
            matches!(job.action, JobAction::Clean | JobAction::Write)
                && (!jobs::is_to(&job.id, DEPROVISION) || guard::untouchable(draft.host).is_some())
        })
}

/// The host is deprovisioning.
pub(super) fn go_on(draft: &mut Draft<'_>) {
    let Some(start) = draft.begun().map(Timestamp::as_second) else {
        draft.begin(|history| &mut history.deprovision);
        draft.again(Duration::ZERO);
        return;
    };
    if is_outdated(draft) && jobs::clear(draft) {
        draft.keep_wait();
        draft.again(Duration::ZERO);
        return;
    }
    if draft.is_being_deleted() && draft.old.error_count > PATIENCE {
        let why = failures(draft);
        uncleaned(draft, &why);
        return;
    }
    if is_released(draft) {
        release(draft);
        return;
    }
    match draft.hold_off(&[ErrorType::Provisioning, ErrorType::PowerManagement]) {
        HoldOff::Waiting => return,
        HoldOff::Over if draft.is_being_deleted() && access::asks_anew(draft) => return,
        // An error of the provisioning that is being taken back is shown until the next one.
        HoldOff::None
            if draft.old.error_type == Some(ErrorType::Provisioning)
                && draft.waiting_since(WaitReason::Refused).is_none() => {}
        HoldOff::None | HoldOff::Over => draft.clear_error(),
    }
    if let Some(why) = guard::kept(draft.host).filter(|_| draft.is_being_deleted()) {
        uncleaned(draft, why);
        return;
    }
    if let Some(why) = guard::untouchable(draft.host) {
        draft.refuse(
            ErrorType::Provisioning,
            format!("{why}, or set {RELEASE_ANNOTATION} to release it without cleaning"),
        );
        return;
    }
    if !draft.takes_slot() {
        return;
    }
    let reach = access::ensure(draft);
    if reach == Reach::No {
        if draft.is_being_deleted()
            && let Some(why) = access::is_to_be_mended(draft)
        {
            draft.fail(ErrorType::Provisioning, why);
        }
        return;
    }
    let operation = jobs::operation(draft.uid(), DEPROVISION, Some(start), draft.old.error_count);
    if provisioning::is_cleaned(draft) {
        clean(draft, &reach, &operation);
    } else {
        stop(draft, &reach, &operation);
    }
}

/// How often it failed, and how the last time.
fn failures(draft: &Draft<'_>) -> String {
    let what = match provisioning::is_cleaned(draft) {
        true => "cleaning",
        false => "deprovisioning",
    };
    let count = draft.old.error_count;
    match clause(&draft.old.error_message) {
        "" => format!("{what} failed {count} times"),
        last => format!("{what} failed {count} times; last error: {last}"),
    }
}

/// What comes once nothing of what it ran is left to boot.
fn afterwards(draft: &Draft<'_>) -> &'static str {
    let stays_on = draft.host.spec.disable_power_off == Some(true);
    match draft.is_being_deleted() {
        true if stays_on => "the host is deleted",
        true => "the machine is powered off and the host is deleted",
        false => "the host is available",
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
    let Some((server, _)) = ramdisk::ready(draft, reach, operation, "its disks are cleaned") else {
        return;
    };
    let Some(inventory) = report::inventory(draft, server, "they are cleaned") else {
        return;
    };
    let root = preparing::root_of_before(draft, &inventory.disks);
    let disks = to_clean(&inventory.disks, root);
    let left = left_out(draft, &inventory.disks, root);
    if disks.is_empty() {
        // It ran something from somewhere.
        let none = "the ramdisk found no disk that may be cleared";
        return match left.is_empty() {
            true => uncleaned(draft, none),
            false => uncleaned(draft, &format!("{none}: {}", left.join("; "))),
        };
    }
    match guard::to_clean(draft.host, draft.seen, &disks) {
        Ok(permit) => {
            tell_left_out(draft, server, &id, &left);
            jobs::place(draft, server, &id, Task::Clean(permit));
            let then = afterwards(draft);
            draft.wait_for(
                WaitReason::Clean,
                format!("waits for the ramdisk to clear the disks; next: {then}"),
            );
        }
        Err(why) => draft.fail(
            ErrorType::Provisioning,
            format!("the disks are not cleaned: {why}"),
        ),
    }
}

/// The disks that are cleaned after an image on `root`. One that cannot be told from others is left out, and an Event tells of it.
fn to_clean<'a>(disks: &'a [Disk], root: Option<&'a Disk>) -> Vec<&'a Disk> {
    disk::to_clean(disks, root.filter(|root| disk::can_be_told(disks, root).is_ok()))
}

/// What a cleaning of `disks` after an image on `root` leaves as it is, each with why: also disks of which any may be that of the image, and
/// one that is not seen any more, which may have been pulled out, or not have come up with this boot.
fn left_out(draft: &Draft<'_>, disks: &[Disk], root: Option<&Disk>) -> Vec<String> {
    let known = draft.old.hardware.as_ref().map(Packed::unpack);
    let gone = known.iter().flat_map(|known| disk::gone(&known.storage, disks));
    let recorded = preparing::recorded_hints(draft).into_iter();
    let ambiguous = recorded.flat_map(|hints| disk::ambiguous(hints, disks));
    let mut left = disk::left_out(disks, root);
    left.extend(ambiguous.chain(gone));
    left
}

/// Tells of the disks that are `left` out of the cleaning `id`, as long as that is not placed.
pub(super) fn tell_left_out(draft: &mut Draft<'_>, server: &Server, id: &str, left: &[String]) {
    if left.is_empty() || jobs::is_placed(server, id) {
        return;
    }
    draft.warn(
        "DisksLeft",
        format!("some disks are not cleaned: {}", left.join("; ")),
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
    let residue = residue_of_cleaning(draft);
    if draft.session().is_some() {
        return finish_uncleaned(draft, residue, NOT_WANTED);
    }
    let stays_on = draft.host.spec.disable_power_off == Some(true);
    let boot = ramdisk::boot_of(operation);
    // What is off in the middle of its boot is about to be on again.
    let boots = draft.waiting_since(WaitReason::Ramdisk).is_some() || power::tried(draft, &boot).is_some();
    // Of one without a BMC nobody knows that it is off: it may have been switched on by hand.
    if *reach == Reach::InBand || (stays_on && boots) {
        ends_in_ramdisk(draft, reach, operation);
        return;
    }
    match power::current(draft) {
        Some(Power::Off) => {
            draft.status.powered_on = false;
            finish_uncleaned(draft, residue, NOT_WANTED);
        }
        Some(_) if stays_on => ends_in_ramdisk(draft, reach, operation),
        Some(_) => cut_off(draft),
        None if draft.powerless.is_some() || draft.waited(WaitReason::Bmc, ramdisk::BOOT_DEADLINE) => {
            let then = match stays_on {
                true => "the ramdisk replaces its running system",
                false => "it is powered off",
            };
            ramdisk::bmc_overdue(draft, reach, then);
        }
        None => {}
    }
}

/// What runs ends as the ramdisk takes its place.
fn ends_in_ramdisk(draft: &mut Draft<'_>, reach: &Reach, operation: &str) {
    ramdisk::ready(draft, reach, operation, "the host is released without cleaning");
}

/// Nobody wants any more what runs, so nobody asks it.
fn cut_off(draft: &mut Draft<'_>) {
    let hard = Wish {
        hard: true,
        ..Wish::default()
    };
    power::switch_off(draft, hard);
}

/// What becomes of what the host ran that is let go as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Former {
    /// It is on its way to its end.
    Ends,
    /// It has ended, or does on the host's way out.
    Ended,
    /// It may run on.
    MayRun,
}

/// Lets the host go as it is, once what it ran has ended, if its BMC sees to that: one that does not holds nobody up.
fn release(draft: &mut Draft<'_>) {
    let why = match end_former(draft) {
        Former::Ends => return,
        Former::Ended => "release without cleaning was requested",
        Former::MayRun => {
            "release without cleaning was requested; what the host ran may still be running, unless somebody has powered its machine off"
        }
    };
    // One that fails would keep from what comes after it, above all from taking a job back; the next round asks for all of it again.
    draft.effects.clear();
    uncleaned(draft, why);
}

/// Ends what the host ran, by the power.
fn end_former(draft: &mut Draft<'_>) -> Former {
    if draft.is_being_deleted() || draft.session().is_some() {
        return Former::Ended;
    }
    if draft.host.spec.disable_power_off == Some(true) || guard::untouchable(draft.host).is_some() {
        return Former::MayRun;
    }
    match access::ensure(draft) {
        Reach::Bmc => {}
        Reach::No if is_asked(draft) || is_unread(draft) => return Former::Ends,
        Reach::No | Reach::Silent(_) | Reach::InBand => return Former::MayRun,
    }
    match power::current(draft) {
        Some(Power::Off) => {
            draft.status.powered_on = false;
            Former::Ended
        }
        Some(_) => {
            cut_off(draft);
            match draft.status.error_type {
                Some(ErrorType::PowerManagement) => Former::MayRun,
                _ => Former::Ends,
            }
        }
        None if draft.powerless.is_none() => Former::Ends,
        None => Former::MayRun,
    }
}

/// True if the BMC has still to say whether it lets us in, or does, and what held a Secret of before is released first.
fn is_asked(draft: &Draft<'_>) -> bool {
    let probed = draft.seen.bmc.probed.as_ref();
    draft.effects.iter().any(|effect| match effect {
        Effect::Bmc(BmcCall::Probe(access)) => probed.is_none_or(|probed| probed.access != *access),
        Effect::ReleaseSecret { .. } => draft.seen.refused.is_none(),
        _ => false,
    })
}

/// True if the BMC's Secret could not be read so far: in a moment it may be, as where the host is deleted.
fn is_unread(draft: &Draft<'_>) -> bool {
    let is_unreadable = matches!(draft.seen.secrets.bmc.state, SecretState::Unreadable(_));
    is_unreadable && !draft.waited(WaitReason::Inputs, ramdisk::BOOT_DEADLINE)
}

/// True if somebody wants the host let go with its disks as they are.
pub(super) fn is_released(draft: &Draft<'_>) -> bool {
    draft
        .annotation(RELEASE_ANNOTATION)
        .is_some_and(|value| value != "false")
}

/// What is left where a cleaning is not wanted any more, or failed. Of a job that stands for a session that is here nobody knows that it
/// was not given a moment ago.
fn residue_of_cleaning(draft: &Draft<'_>) -> Residue {
    residue_of(draft, |_| false)
}

/// The same where the host goes as it is, in the middle of being given an image perhaps. An image that was written to its end is what it ran.
fn residue_as_it_is(draft: &Draft<'_>) -> Residue {
    let history = draft.old.operation_history.as_ref();
    let given = history.and_then(|history| history.provision.as_ref()?.start.as_ref());
    let given = given.map(|start| start.0.as_second());
    let provisioning = jobs::begun(draft.uid(), jobs::PROVISION, given);
    let gives = |job: &str| job.starts_with(&provisioning) && jobs::operation_of(job).is_some();
    let last = draft.server().and_then(Server::last_job);
    let is_over = last.is_some_and(|last| {
        let is_written = last.done && last.error.is_empty() && !jobs::is_cleaning(&last.id, &provisioning);
        gives(&last.id) && (is_written || last.failure == Some(Failure::Outdated))
    });
    residue_of(draft, |job| !is_over && gives(job))
}

/// What is left by the cleaning, or else by a job that `gives` the host an image, if one of them may have begun.
fn residue_of(draft: &Draft<'_>, gives: impl Fn(&str) -> bool) -> Residue {
    let begun = draft.begun().map(Timestamp::as_second);
    let begun = jobs::begun(draft.uid(), DEPROVISION, begun);
    let is_it = |job: &str| jobs::is_cleaning(job, &begun) || gives(job);
    let may_have_begun = draft.server().is_some_and(|server| {
        let known = server.last_job().is_some_and(|last| is_it(&last.id));
        let stands = server.spec.job.as_ref().is_some_and(|job| is_it(&job.id));
        known || (stands && draft.session().is_some())
    });
    match may_have_begun {
        true => Residue::Part,
        false => Residue::Disks,
    }
}

/// The host is let go though its disks are not cleaned, or not all.
fn finish_uncleaned(draft: &mut Draft<'_>, residue: Residue, why: &str) {
    if residue == Residue::Part {
        draft.warn(
            "NotCleaned",
            format!(
                "not all disks are known to be clean: some may still hold their data, and others may be partly cleared ({why})"
            ),
        );
    }
    finish(draft, residue);
}

fn uncleaned(draft: &mut Draft<'_>, why: &str) {
    let residue = residue_as_it_is(draft);
    if residue == Residue::Disks {
        draft.warn("NotCleaned", format!("the disks keep their data, because {why}"));
    }
    if draft.annotation(RELEASE_ANNOTATION).is_some() {
        draft
            .metadata
            .remove_annotations
            .push(RELEASE_ANNOTATION.to_owned());
    }
    finish_uncleaned(draft, residue, why);
}

/// What is left of what the host ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Residue {
    Nothing,
    /// What disks hold that cannot be told from each other, were put in, or are not seen.
    SomeDisks,
    /// Of a cleaning that was broken off nobody knows how far it went.
    Part,
    Disks,
}

/// The disks are clean that may be.
fn cleaned(draft: &mut Draft<'_>, server: &Server) {
    let status = server.status.as_ref();
    let inventory = status.and_then(|status| status.inventory.as_ref());
    let inventory = inventory.map(Packed::unpack).unwrap_or_default();
    let root = preparing::root_of_before(draft, &inventory.disks);
    // The job may be older than the first report of this boot: who used the machine may have put disks in.
    let job = server.spec.job.as_ref().and_then(|job| job.clean.as_ref());
    if let Some(job) = job.map(Packed::unpack) {
        // Each name is one disk's: of twins, the one that was named is no other.
        let mut names = job.disks.clone();
        let mut is_named = |disk: &Disk| {
            let at = names.iter().position(|id| disk::is_meant(id, disk));
            at.map(|at| names.swap_remove(at)).is_some()
        };
        let mut more = to_clean(&inventory.disks, root);
        more.retain(|disk| !is_named(disk));
        let more: Vec<_> = more.iter().map(|disk| disk.name.as_str()).collect();
        if !more.is_empty() {
            let names = more.join(", ");
            let message =
                format!("not all disks are cleaned: {names} appeared after the cleaning was ordered");
            return draft.fail(ErrorType::Provisioning, message);
        }
    }
    let residue = match left_out(draft, &inventory.disks, root).is_empty() {
        true => Residue::Nothing,
        false => Residue::SomeDisks,
    };
    finish(draft, residue);
}

fn finish(draft: &mut Draft<'_>, residue: Residue) {
    let failed = draft.status.error_type == Some(ErrorType::Provisioning);
    let error = draft.status.error_message.clone();
    let next = match draft.is_being_deleted() {
        true => State::PoweringOffBeforeDelete,
        false => State::Available,
    };
    draft.enter(next);
    // Taking it back may have failed, too, which took the place of the error, and was past with the next try.
    let is_same_spec = !draft.is_another_spec(conditions::failed_for(&draft.old));
    if next == State::Available && draft.status.provisioning_fail_count > 0 && (failed || is_same_spec) {
        // What failed is to be seen until the next attempt.
        let why = conditions::why_failed(&draft.old).map_or(error, str::to_owned);
        draft.set_error(ErrorType::Provisioning, &why);
    }
    draft.end(|history| &mut history.deprovision);
    if next == State::Available {
        available::announce_pause(draft);
    }
    draft.status.provisioning.image = None;
    draft.status.provisioning.custom_deploy = None;
    if let Some(raid) = draft
        .status
        .provisioning
        .raid
        .as_mut()
        .filter(|_| matches!(residue, Residue::Nothing | Residue::SomeDisks))
    {
        // What they began with on each disk is gone.
        raid.software_raid_volumes = None;
    }
    power::rebooted(draft);
    let told = match residue {
        Residue::Nothing => "the host is deprovisioned, and nothing that it ran can boot any longer",
        Residue::SomeDisks => {
            "the disks are clean, except for those listed in the Event DisksLeft, which are unchanged"
        }
        Residue::Part => "the host is released, but some of its disks may still hold their data",
        Residue::Disks => "the host is released without cleaning",
    };
    draft.tell("DeprovisioningComplete", told);
    jobs::clear(draft);
}
