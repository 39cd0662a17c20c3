//! An image on the disk: clean, write, leave the ramdisk. One boot for all of it. Pure.

use std::time::Duration;

use jiff::SignedDuration;
use muster_proto::{
    inventory::{Disk, Inventory},
    job::ImageSource,
    kinds::{self, AutomatedCleaningMode, BareMetalHostSpec, ErrorType, Leave, LeaveAction, Server, Session},
};

use super::{
    State, WaitReason,
    access::{self, LOOK_AGAIN, Reach},
    available, boot_mode, deprovisioning, disk,
    draft::{Draft, and_next},
    guard, image,
    jobs::{self, After, Job},
    netboot,
    observed::Power,
    plan::{BmcCall, Next, PowerOrder, Task, WriteTask},
    power,
    preparing::{self, effective_hints},
    ramdisk, report,
    secrets::{self, Inputs},
};

/// What is waited for while the ramdisk works; how far it is stands in the Server's status.
const WRITING: &str =
    "waits for the image to be written, after cleaning if it is enabled; next: the machine boots it";
/// The same of a protected host whose disks were being cleared when it was protected: until that ends, the edge gives out no write.
const CLEARING: &str = "waits for the ramdisk to finish clearing the disks, which began before the host was protected; next: the image is written once the annotation muster.dev/protected is removed";
/// What happens once the ramdisk is there.
const THEN: &str = "the image is written";
/// So long an agent may take to say that it leaves, as the job that it wrote the image by says; one that does not hear it, because it got
/// to an edge of an older version in that moment, is told by a job of its own.
const HEARS: SignedDuration = SignedDuration::from_secs(10);
/// So long after it was given out it is known at the latest that a job was taken up.
const TAKEN_UP: SignedDuration = SignedDuration::from_secs(30);

/// Every wish is there; the state says so before anything is done.
pub(super) fn begin(draft: &mut Draft<'_>) {
    draft.enter(State::Provisioning);
    draft.begin(|history| &mut history.provision);
    draft.begin_after(
        |history| &mut history.provision,
        |history| &mut history.deprovision,
    );
    boot_mode::snapshot(draft);
    // By which the disk is chosen that is written now and cleaned one day, whatever is changed meanwhile.
    draft.status.provisioning.root_device_hints = effective_hints(draft);
    draft.status.last_attempted_image = draft.host.spec.image.clone().map(Box::new);
    draft.status.provisioning.image.clone_from(&draft.host.spec.image);
    let url = image::shown(available::image_url(draft.host.spec.image.as_ref()).unwrap_or_default());
    match ramdisk::here(draft) {
        Some(_) => {
            draft.wait_for(WaitReason::Write, WRITING);
            draft.status.powered_on |= ramdisk::is_on(draft);
        }
        None => ramdisk::announce(draft, THEN),
    }
    draft.tell("ProvisioningStarted", format!("starts writing the image {url}"));
}

/// The attempt failed: told and counted, and what is on the disk is taken away again.
fn failed(draft: &mut Draft<'_>, why: &str) {
    draft.fail(ErrorType::Provisioning, why);
    take_back(draft);
}

/// What is on the disk is taken away again, after the failure that the draft speaks of.
fn take_back(draft: &mut Draft<'_>) {
    let kept = (
        draft.status.error_type,
        draft.status.error_message.clone(),
        draft.status.operational_status,
    );
    let failures = draft.status.provisioning_fail_count.saturating_add(1);
    deprovisioning::begin(draft);
    draft.status.provisioning_fail_count = failures;
    // What failed is to be seen until the next attempt.
    (
        draft.status.error_type,
        draft.status.error_message,
        draft.status.operational_status,
    ) = kept;
}

/// The URL of the image that is being written; none: another operator began with it. Upstream fills this in at the end, and until then
/// its `lastAttemptedImage` may be what was written before.
fn attempted<'a>(draft: &'a Draft<'_>) -> Option<&'a str> {
    available::image_url(draft.old.provisioning.image.as_ref())
}

/// The disk that the image goes to: by what was asked for when that began, also where that was nothing. What is asked for since then counts
/// for the next image: no cleaning would know of a disk that nothing written down leads to.
fn root<'a>(draft: &Draft<'_>, disks: &'a [Disk]) -> Result<&'a Disk, String> {
    match attempted(draft) {
        Some(_) => disk::choose(preparing::recorded_hints(draft), disks),
        None => disk::choose(preparing::hints_of_now(draft).as_deref(), disks),
    }
}

/// What another operator began is from now on what is written.
fn take_up(draft: &mut Draft<'_>) {
    if attempted(draft).is_none() {
        draft.status.provisioning.root_device_hints = preparing::hints_of_now(draft);
        draft.status.provisioning.image.clone_from(&draft.host.spec.image);
    }
}

/// The request was taken back, or is another one than that which is being fulfilled.
fn is_withdrawn(draft: &Draft<'_>) -> bool {
    let wanted = available::image_url(draft.host.spec.image.as_ref());
    let attempted = attempted(draft);
    !available::has_request(&draft.host.spec) || (attempted.is_some() && wanted != attempted)
}

/// The image is one that this version does not write: another operator began with it, or it was changed meanwhile. Nothing is taken
/// back for that: it may be on the disk, whole.
fn cannot(draft: &mut Draft<'_>, why: &str) {
    if draft.waiting_since(WaitReason::Refused).is_none() {
        draft.warn("ProvisioningError", why);
    }
    draft.wait_for(WaitReason::Refused, refused(why));
}

/// What a host says whose image is not written because of `why`.
pub(super) fn refused(why: &str) -> String {
    and_next(
        why,
        "continues once this is fixed, or deprovisions once spec.image is removed",
    )
}

/// The host is provisioning.
pub(super) fn go_on(draft: &mut Draft<'_>) {
    if draft.old.error_type == Some(ErrorType::Provisioning) {
        // Another operator's: it would deprovision now, and so do we.
        let why = draft.old.error_message.clone();
        failed(draft, &why);
        return;
    }
    if is_withdrawn(draft) {
        deprovisioning::begin(draft);
        return;
    }
    let Some(start) = netboot::begun(draft.host) else {
        if let Err(why) = source(&draft.host.spec) {
            return cannot(draft, &why);
        }
        take_up(draft);
        draft.begin(|history| &mut history.provision);
        draft.again(Duration::ZERO);
        return;
    };
    let failures = draft.old.provisioning_fail_count;
    let operation = jobs::operation(draft.uid(), jobs::PROVISION, Some(start), failures);
    let left = jobs::leave_id(&operation);
    let server = draft.server();
    // Nothing is left to do, so nobody need be reached for it: a leader that has just begun would ask every BMC first.
    if let Some(server) = server.filter(|server| jobs::look(server, |job| job == left) == Job::Done) {
        let stays_off = is_off(draft, server, &left);
        finish(draft, &left, stays_off);
        return;
    }
    let begun = |server: &Server| jobs::look(server, |job| job.starts_with(&operation)) != Job::Absent;
    let source = source(&draft.host.spec);
    if let (Err(why), false) = (&source, server.is_some_and(begun)) {
        return cannot(draft, why);
    }
    take_up(draft);
    if !draft.takes_slot() {
        return;
    }
    let reach = access::ensure(draft);
    if reach == Reach::No {
        return;
    }
    if let Some(server) = server {
        let written = jobs::write_id(&operation);
        let is_written = jobs::look(server, |job| job.starts_with(&written)) == Job::Done;
        if is_written || jobs::look(server, |job| job == left) != Job::Absent {
            leave(draft, &reach, server, &left);
            return;
        }
    }
    work(draft, &reach, &operation, source);
}

/// What is to be written; else why this version does not write it to such a host.
fn source(spec: &BareMetalHostSpec) -> Result<ImageSource, String> {
    let source = available::request(spec)?;
    preparing::software_raid(spec)?;
    match preparing::unsupported_boot(spec) {
        Some(why) => Err(why.to_owned()),
        None => Ok(source),
    }
}

fn work(draft: &mut Draft<'_>, reach: &Reach, operation: &str, source: Result<ImageSource, String>) {
    // Before its machine is booted for that: a job that stands would be given to it at once.
    if guard::is_protected(draft.host) {
        return held_back(draft, reach, operation);
    }
    let Some((server, session)) = ramdisk::ready(draft, reach, operation, THEN) else {
        if draft.status.error_type == Some(ErrorType::Provisioning) {
            take_back(draft);
        }
        return;
    };
    let Some(inventory) = report::inventory(draft, server, "the image is written") else {
        return;
    };
    let ramdisk = Ramdisk {
        server,
        session,
        inventory: &inventory,
        operation,
    };
    let ours = |job: &str| job.starts_with(operation);
    let (state, is_at_it) = (jobs::look(server, ours), jobs::is_under_way(server, ours));
    // What was changed since is no matter to a job that stands: it ends as what it was.
    let source = match (source, &state) {
        (Ok(source), _) => source,
        (Err(_), Job::Failed(error)) => {
            return failed(draft, &jobs::unwritten(server, error));
        }
        (Err(why), state) => {
            // Of a cleaning that is done, what follows it.
            let stands = |job: &kinds::Job| {
                ours(&job.id) && job.is_for(&session.key) && (*state == Job::Pending || job.then.is_some())
            };
            if is_at_it || server.spec.job.as_deref().is_some_and(stands) {
                return draft.wait_for(WaitReason::Write, WRITING);
            }
            // What was decided for a session that is gone is given to nobody any more.
            jobs::clear(draft);
            return cannot(draft, &why);
        }
    };
    let begun = is_at_it || matches!(state, Job::Failed(_));
    if !begun {
        match boot_mode::is_as_asked(draft, server) {
            Ok(true) => {}
            Ok(false) => return,
            Err(why) => {
                let job = server.spec.job.as_deref();
                // What stands for this session no edge gives out like that, unless it has just done so: then it ends as what it is.
                if !job.is_some_and(|job| job.writes().is_some() && job.is_for(&session.key)) {
                    jobs::clear(draft);
                }
                return cannot(draft, &why);
            }
        }
    }
    if !begun && lacks_inputs(draft) {
        // Nothing is cleaned for an image that cannot be written.
        if state == Job::Pending {
            jobs::clear(draft);
        }
        return;
    }
    let outcome = match clean(draft, &ramdisk, &source) {
        Ok(true) => write(draft, &ramdisk, &source),
        Ok(false) => Ok(()),
        Err(why) => Err(why),
    };
    if let Err(why) = outcome {
        failed(draft, &why);
    }
}

/// The host was protected after this began. What its agent is at goes on to its end, since nobody calls it back; nothing else is begun, and
/// no attempt has failed: whoever removes the annotation mends it.
fn held_back(draft: &mut Draft<'_>, reach: &Reach, operation: &str) {
    let ours = |job: &str| job.starts_with(operation);
    if let Some(server) = draft.server() {
        if let Job::Failed(error) = jobs::look(server, ours) {
            return failed(draft, &jobs::unwritten(server, &error));
        }
        let is_here = draft.session().is_some();
        let due = ramdisk::may_return_until(draft).filter(|_| !is_here);
        if jobs::is_under_way(server, ours) && (is_here || due.is_some()) {
            let cleaning = jobs::clean_id(operation);
            let clears = jobs::is_under_way(server, |job| job == cleaning);
            draft.wait_for(WaitReason::Write, if clears { CLEARING } else { WRITING });
            if let Some(due) = due {
                draft.again_at(due);
            }
            return;
        }
    }
    if ramdisk::is_rebooting(draft, reach, "nothing is written, because the host is protected") {
        return;
    }
    let is_said = draft.has_said(WaitReason::Refused, guard::UNWRITTEN);
    // An edge that did not know of the annotation yet may have given the job out: what is told of one that stands is heard.
    if draft.session().is_none() || (is_said && draft.waited(WaitReason::Refused, TAKEN_UP)) {
        jobs::clear(draft);
    } else if draft.server().is_some_and(|server| server.spec.job.is_some()) {
        draft.again(TAKEN_UP.unsigned_abs());
    }
    if !is_said {
        draft.warn("ProvisioningError", guard::UNWRITTEN);
    }
    draft.wait_for(WaitReason::Refused, guard::UNWRITTEN);
}

/// True if something is missing of what goes on the disk; the draft says what. Nothing needs to be taken back for it: whoever can mends it.
fn lacks_inputs(draft: &mut Draft<'_>) -> bool {
    match secrets::inputs(draft) {
        Inputs::Ready => return false,
        Inputs::Wait(why) => draft.wait_for(WaitReason::Inputs, and_next(&why, "the image is written")),
        Inputs::Bad(why) => cannot(draft, &why),
        Inputs::Untrusted(why) => draft.wait_for(WaitReason::Trust, and_next(&why, "the image is written")),
    }
    draft.again(LOOK_AGAIN);
    true
}

/// The ramdisk that works, and for what.
struct Ramdisk<'a> {
    server: &'a Server,
    session: &'a Session,
    inventory: &'a Inventory,
    operation: &'a str,
}

/// Clears all disks first, as `automatedCleaningMode` says. True once that is done.
fn clean(draft: &mut Draft<'_>, ramdisk: &Ramdisk<'_>, source: &ImageSource) -> Result<bool, String> {
    let Ramdisk {
        server,
        session,
        inventory,
        operation,
    } = *ramdisk;
    let id = jobs::clean_id(operation);
    let written = jobs::write_id(operation);
    let on = jobs::look(server, |job| job.starts_with(&written)) != Job::Absent;
    if on || !is_cleaned(draft) {
        return Ok(true);
    }
    match jobs::look(server, |job| job == id) {
        Job::Done => return Ok(true),
        Job::Failed(error) => return Err(format!("the disks could not be cleaned: {error}")),
        Job::Absent | Job::Pending => {}
    }
    let root = root(draft, &inventory.disks)?;
    let disks = disk::to_clean(&inventory.disks, Some(root));
    let permit = guard::to_clean(draft.host, draft.seen, &disks)?;
    let left = disk::left_out(&inventory.disks, Some(root));
    deprovisioning::tell_left_out(draft, server, &id, &left);
    // All that is needed for it is there, most of the time: one job for both.
    let then = match secrets::inputs(draft) {
        Inputs::Ready => {
            let (id, task) = write_task(draft, ramdisk, source)?;
            let session = session.key.clone();
            Some(Box::new(Next { id, session, task }))
        }
        _ => None,
    };
    let leave = then.is_some().then(|| way(draft, operation, session));
    let writes = then.is_some();
    if jobs::place_with(draft, server, &id, Task::Clean(permit), After { then, leave }) && writes {
        keep_image(draft);
    }
    draft.wait_for(WaitReason::Write, WRITING);
    Ok(false)
}

/// How the machine leaves its ramdisk, as it is wanted now.
fn way(draft: &Draft<'_>, operation: &str, session: &Session) -> Leave {
    Leave {
        id: jobs::leave_id(operation),
        session: session.key.clone(),
        action: match power::is_to_be_off(draft.host) {
            true => LeaveAction::PowerOff,
            false => LeaveAction::Reboot,
        },
    }
}

/// What the write is called. What is sealed to one session is of no use to the next: that is another job.
fn write_id(operation: &str, session: &Session, is_sealed: bool) -> String {
    let whose = match is_sealed {
        true => format!("-{}", session.key.get(..16).unwrap_or(&session.key)),
        false => String::new(),
    };
    jobs::write_id(operation) + &whose
}

/// What is written, and what that is called.
fn write_task(
    draft: &Draft<'_>,
    ramdisk: &Ramdisk<'_>,
    source: &ImageSource,
) -> Result<(String, WriteTask), String> {
    let drive = secrets::drive(draft, ramdisk.session)?;
    let id = write_id(ramdisk.operation, ramdisk.session, drive.is_some());
    let root = root(draft, &ramdisk.inventory.disks)?;
    let task = WriteTask {
        permit: guard::to_write(draft.host, draft.seen, root)?,
        image: source.clone(),
        drive,
    };
    Ok((id, task))
}

/// The image of now is what is being written, of which only its URL is the one that this began with. What is changed from here on is not
/// what is on the disk.
fn keep_image(draft: &mut Draft<'_>) {
    draft.status.provisioning.image.clone_from(&draft.host.spec.image);
}

/// True if disks are to be cleaned.
pub(super) fn is_cleaned(draft: &Draft<'_>) -> bool {
    let mode = draft.host.spec.automated_cleaning_mode.unwrap_or_default();
    mode == AutomatedCleaningMode::Metadata
}

fn write(draft: &mut Draft<'_>, ramdisk: &Ramdisk<'_>, source: &ImageSource) -> Result<(), String> {
    let Ramdisk {
        server,
        session,
        inventory: _,
        operation,
    } = *ramdisk;
    let sealed = write_id(operation, session, true);
    let ours = |job: &str| job == sealed || job == write_id(operation, session, false);
    if let Job::Failed(error) = jobs::look(server, ours) {
        return Err(jobs::unwritten(server, &error));
    }
    if jobs::is_under_way(server, ours) {
        draft.wait_for(WaitReason::Write, WRITING);
        return Ok(());
    }
    if lacks_inputs(draft) {
        return Ok(());
    }
    let (id, task) = write_task(draft, ramdisk, source)?;
    let after = After {
        then: None,
        leave: Some(way(draft, operation, session)),
    };
    if jobs::place_with(draft, server, &id, Task::Write(Box::new(task)), after) {
        keep_image(draft);
    }
    draft.wait_for(WaitReason::Write, WRITING);
    Ok(())
}

/// The image is on the disk and verified: the machine leaves its ramdisk, for its disk or off. Its agent hears that from the edge, with the
/// answer to that the image is written.
fn leave(draft: &mut Draft<'_>, reach: &Reach, server: &Server, id: &str) {
    let stays_off = is_off(draft, server, id);
    let connected = draft.session().is_some();
    let placed = jobs::is_placed(server, id);
    match jobs::look(server, |job| job == id) {
        Job::Pending if connected && stays(draft) => {
            failed(draft, "the machine does not leave its ramdisk");
        }
        state @ (Job::Absent | Job::Pending) if connected => {
            let unheard = !placed && draft.waited(WaitReason::Leave, HEARS) && is_here_since(draft, HEARS);
            if unheard || state == Job::Absent {
                tell_warnings(draft, server, id);
                let task = if stays_off { Task::PowerOff } else { Task::Reboot };
                jobs::place(draft, server, id, task);
            }
            draft.again(match placed || unheard {
                true => Duration::from_secs(300),
                false => Duration::try_from(HEARS).unwrap_or_default(),
            });
            draft.wait_for(
                WaitReason::Leave,
                "the image is written; waits for the machine to leave its ramdisk; next: the host is provisioned",
            );
        }
        Job::Absent => without_word(draft, reach, id, stays_off),
        // It was told, or will be once it is back.
        Job::Pending if !placed && returns(draft) => {}
        Job::Failed(error) if connected => {
            failed(draft, &format!("the machine did not leave its ramdisk: {error}"));
        }
        _ => finish(draft, id, stays_off),
    }
}

/// True if the machine is off once it has left by the job `id`. What it was told counts for its power: if something else is wanted by now,
/// that is seen to where the host rests.
fn is_off(draft: &Draft<'_>, server: &Server, id: &str) -> bool {
    let told = jobs::leave_action(server, id);
    told.map_or_else(
        || power::is_to_be_off(draft.host),
        |way| way == LeaveAction::PowerOff,
    )
}

/// True if the machine could have left long ago: in the time in which nobody worked for its host, or it was not there, it could not hear
/// that it is to. One whose connection breaks again and again has heard it by then.
fn stays(draft: &Draft<'_>) -> bool {
    let time = ramdisk::BOOT_DEADLINE;
    let worked = draft.now.duration_since(draft.seen.began) >= time;
    let has_heard = is_here_since(draft, time) || draft.waited(WaitReason::Leave, time * 4);
    worked && draft.waited(WaitReason::Leave, time) && has_heard
}

/// True if the session has been connected for at least so long.
fn is_here_since(draft: &Draft<'_>, time: SignedDuration) -> bool {
    let since = draft.here_since();
    since.is_none_or(|since| draft.now.duration_since(since) >= time)
}

/// True if the ramdisk fell silent so short a time ago that it is waited for.
fn returns(draft: &mut Draft<'_>) -> bool {
    let due = ramdisk::may_return_until(draft);
    if let Some(due) = due {
        draft.wait_for(
            WaitReason::Leave,
            "the image is written, but the ramdisk lost its connection a moment ago; next: the machine is told to leave the ramdisk, or has left it",
        );
        draft.again_at(due);
    }
    due.is_some()
}

/// The ramdisk is silent, and nobody told it to go: it comes back in a moment, hangs, or is gone.
fn without_word(draft: &mut Draft<'_>, reach: &Reach, id: &str, stays_off: bool) {
    if returns(draft) {
        return;
    }
    // Of one without a BMC nothing more can be known, and of one that is to be off its power is looked after anyway.
    if *reach == Reach::InBand || (*reach == Reach::Bmc && stays_off) {
        finish(draft, id, stays_off);
        return;
    }
    let tried = draft.seen.tried.as_ref().filter(|tried| tried.operation == id);
    let trouble = match (reach, tried.map(|tried| &tried.result)) {
        (Reach::Silent(_), _) => Some(power::says_no_power(draft, reach)),
        (_, Some(Err(failure))) => Some(failure.message.clone()),
        (_, Some(Ok(()))) => return finish(draft, id, stays_off),
        (_, None) => None,
    };
    if draft.waited(WaitReason::Leave, ramdisk::BOOT_DEADLINE) {
        let why = trouble.unwrap_or_else(|| power::says_no_power(draft, reach));
        failed(draft, &format!("the machine does not leave its ramdisk: {why}"));
        return;
    }
    let why = trouble.map(|why| format!(" ({why})")).unwrap_or_default();
    draft.wait_for(
        WaitReason::Leave,
        format!(
            "the image is written, but the ramdisk is not connected; next: the BMC resets the machine{why}"
        ),
    );
    draft.again(LOOK_AGAIN);
    let due = tried.is_none_or(|tried| ramdisk::is_due(draft, tried.at));
    match draft.seen.bmc.power.map(|reading| reading.power) {
        _ if *reach != Reach::Bmc || !due => {}
        Some(on @ (Power::On | Power::Off)) => draft.call(BmcCall::Power {
            operation: id.to_owned(),
            order: if on == Power::On {
                PowerOrder::Reset
            } else {
                PowerOrder::On
            },
        }),
        Some(Power::Unknown) | None => ramdisk::read_power(draft),
    }
}

/// Tells what the agent warned of when it wrote the image: before the job `id`, by which the machine leaves, takes the place of the write in
/// what is known of it, or else at the end.
fn tell_warnings(draft: &mut Draft<'_>, server: &Server, id: &str) {
    let warnings = server.last_job().map(|last| last.warnings.join("; "));
    if let Some(warnings) = warnings.filter(|all| !all.is_empty() && !jobs::is_placed(server, id)) {
        draft.warn(
            "ProvisioningWarning",
            format!("the image is written, but {warnings}"),
        );
    }
}

fn finish(draft: &mut Draft<'_>, id: &str, stays_off: bool) {
    draft.enter(State::Provisioned);
    draft.end(|history| &mut history.provision);
    draft.status.provisioning_fail_count = 0;
    draft.status.powered_on = !stays_off;
    let url = image::shown(available::image_url(draft.host.spec.image.as_ref()).unwrap_or_default());
    // Its first boot is no less than what was asked for meanwhile.
    power::rebooted(draft);
    draft.tell("ProvisioningComplete", format!("the image {url} is on the disk"));
    if let Some(server) = draft.server() {
        tell_warnings(draft, server, id);
    }
}
