//! Finding out what the machine is made of: what discovery found counts, a running ramdisk is asked, else one is booted. Pure.

use jiff::{SignedDuration, Timestamp};
use muster_proto::{
    inventory::Inventory,
    kinds::{
        BareMetalHost, ErrorType, HardwareData, HardwareDetails, INSPECT_ANNOTATION, Packed, Server,
        ServerStatus, Trust,
    },
    text,
};

use super::{
    State, WaitReason, access, boot_mode,
    conditions::wait_reason,
    draft::{Draft, HoldOff, and_next, bounded},
    jobs::{self, Job},
    plan::{Effect, HARDWARE_FINALIZER, Task, WRITE_HARDWARE},
    ramdisk, report, restore, slot_state,
};
use crate::time::whole_seconds;
use crate::{
    hardware,
    hosts::{self, forbids_inspection, wants_inspection},
};

/// A ramdisk sends its inventory by itself soon after its first word; only after this time it is told to. It may have done so and left
/// no trace, because nothing is new.
const OWN_ACCORD: SignedDuration = SignedDuration::from_secs(5);
/// The same for the first inventory of a machine, which does leave one: with many disks it takes its time, and to ask for it meanwhile
/// would cost four writes for nothing.
const FIRST: SignedDuration = SignedDuration::from_secs(30);

/// An inventory that may stand for an inspection, and when it arrived.
fn inventory(server: &Server) -> Option<(&ServerStatus, &Packed<Inventory>, Timestamp)> {
    let status = server.status.as_ref()?;
    let at = status.inventoried.as_deref()?.parse().ok()?;
    Some((status, status.inventory.as_ref()?, at)).filter(|(status, _, _)| !status.contested)
}

/// What happens once the ramdisk is there.
const THEN: &str = "it reports the hardware";
/// What is told where an inspection begins.
const BEGINS: &str = "inspection starts";

/// A first inspection begins. What is known already is its result, if the session that reported it had the trust that its Segment
/// asks for, and the host was made of that report or the ramdisk still runs: then the inspection is as old as the report. A session
/// that is only not over yet, because its machine was switched off a moment ago, is none that runs: what is in the machine when it is
/// on again, nobody knows.
pub(super) fn begin_with_what_is_known(draft: &mut Draft<'_>) {
    draft.begin(|history| &mut history.inspect);
    let required = draft
        .segment()
        .map_or(Trust::Segment, |segment| segment.spec.trust_to_believe());
    let known = draft.server().and_then(inventory);
    let Some((status, _, at)) = known else {
        start(draft, BEGINS);
        return;
    };
    let believed = status.inventory_trust.is_some_and(|trust| trust >= required);
    if believed && (ramdisk::is_on(draft) || hosts::made_for(draft.host).is_some()) {
        let session = status.session.as_ref();
        let booted = session.and_then(|session| session.since.parse::<Timestamp>().ok());
        let start = booted.filter(|booted| *booted < at).unwrap_or(at);
        draft.history(|history| &mut history.inspect).start = Some(whole_seconds(start.min(draft.now)));
        return;
    }
    start(draft, BEGINS);
}

fn start(draft: &mut Draft<'_>, what: &str) {
    draft.tell("InspectionStarted", what);
    ramdisk::announce(draft, THEN);
}

/// Another inspection of a host that was inspected before.
pub(super) fn begin_again(draft: &mut Draft<'_>) {
    draft.enter(State::Inspecting);
    draft.begin(|history| &mut history.inspect);
    boot_mode::snapshot(draft);
    start(draft, "another inspection starts");
}

/// The host is inspecting.
pub(super) fn go_on(draft: &mut Draft<'_>) {
    let asked = wants_inspection(draft.host);
    if asked {
        // What it asks for is being done.
        draft
            .metadata
            .remove_annotations
            .push(INSPECT_ANNOTATION.to_owned());
    }
    let start = draft
        .old
        .operation_history
        .as_ref()
        .and_then(|history| history.inspect.as_ref()?.start.as_ref())
        .map(|start| start.0);
    if forbids_inspection(draft.host) {
        draft.enter(State::Preparing);
        if start.is_some() {
            draft.end(|history| &mut history.inspect);
        }
        draft.tell("InspectionSkipped", "inspection has been disabled");
        jobs::clear(draft);
        return;
    }
    let Some(start) = start else {
        // Another operator's status without its history.
        draft.begin(|history| &mut history.inspect);
        draft.why("an inspection begins");
        draft.again(std::time::Duration::ZERO);
        return;
    };
    if let Some((status, found, at)) = draft.server().and_then(inventory)
        && at >= start
    {
        conclude(draft, status, found, at);
        return;
    }
    // Whoever asks for it does not want to wait for the next attempt.
    if !asked && draft.hold_off(&[ErrorType::Inspection]) == HoldOff::Waiting {
        return;
    }
    draft.clear_error();
    if draft.takes_slot() {
        inspect(draft, start);
    }
}

/// What the attempt is called that `host` is in the middle of; none: it is not being inspected, or waits before another attempt or for its
/// slot.
pub(super) fn operation_under_way(host: &BareMetalHost) -> Option<String> {
    let status = host.status.as_ref()?;
    let waits = slot_state::waits_for_slot(status) || wait_reason(status) == Some(WaitReason::Retry);
    operation(host).filter(|_| !waits)
}

/// What the attempt is called that is made of `host`, or is made next; none: it is not inspecting.
fn operation(host: &BareMetalHost) -> Option<String> {
    let status = host
        .status
        .as_ref()
        .filter(|_| State::of(host) == State::Inspecting)?;
    let history = status.operation_history.as_ref()?;
    let start = history.inspect.as_ref()?.start.as_ref()?.0.as_second();
    let uid = host.metadata.uid.as_deref().unwrap_or_default();
    Some(jobs::operation(uid, "inspect", Some(start), status.error_count))
}

fn inspect(draft: &mut Draft<'_>, start: Timestamp) {
    let reach = access::ensure(draft);
    if reach == access::Reach::No {
        return;
    }
    let operation = operation(draft.host).unwrap_or_default();
    let Some((server, session)) = ramdisk::ready(draft, &reach, &operation, THEN) else {
        return;
    };
    let id = format!("{operation}-inspect");
    draft.wait_for(
        WaitReason::Inspection,
        "waits for the ramdisk to report the hardware; next: the host is prepared",
    );
    match jobs::look(server, |job| job == id) {
        Job::Absent => {
            let since: Timestamp = session.since.parse().unwrap_or(start);
            let soon = since.checked_add(OWN_ACCORD).unwrap_or(draft.now);
            let due = match inventory(server) {
                Some(_) => soon,
                None => since.checked_add(FIRST).unwrap_or(draft.now),
            };
            if since < start || draft.now >= due {
                jobs::place(draft, server, &id, Task::Inspect);
                return;
            }
            draft.again_at(due);
            if draft.now < soon {
                // It may be over before anybody could read another wait.
                if draft.waiting_since(WaitReason::Ramdisk).is_some() {
                    draft.keep_wait();
                }
                draft.again_at(soon);
            }
        }
        Job::Pending => jobs::place(draft, server, &id, Task::Inspect),
        Job::Failed(error) => draft.fail(ErrorType::Inspection, format!("the inspection failed: {error}")),
        // The report was the same as the one before, so it left no other trace.
        Job::Done => match inventory(server) {
            Some((status, found, _)) => conclude(draft, status, found, draft.now),
            None => draft.fail(ErrorType::Inspection, "the ramdisk reported no hardware"),
        },
    }
}

/// Lets go of the HardwareData, if a finalizer of another operator holds it. True if one does.
pub(super) fn release_data(draft: &mut Draft<'_>) -> bool {
    let data = draft.hardware().map(|data| &data.metadata);
    let mut finalizers = data
        .and_then(|data| data.finalizers.as_ref())
        .into_iter()
        .flatten();
    let is_held = finalizers.any(|name| name == HARDWARE_FINALIZER);
    if is_held {
        draft.effect(Effect::ReleaseHardware);
    }
    is_held
}

/// True if `data` is the host's own: that of a former one of its name goes with that one.
fn is_ours(draft: &Draft<'_>, data: &HardwareData) -> bool {
    hosts::is_among(draft.host, data.metadata.owner_references.as_ref())
}

/// The hardware is known, unless drivers are still being loaded: stored as HardwareData first, then in the status.
fn conclude(draft: &mut Draft<'_>, status: &ServerStatus, found: &Packed<Inventory>, at: Timestamp) {
    if let Some(due) = hardware::is_early_until(status, found, draft.now) {
        report::wait_for_drivers(draft, due, "the host is prepared");
        return;
    }
    let found = hardware::details(&found.unpack());
    let packed = Packed::new(&found);
    let stored = draft.hardware();
    if let Some(going) = stored.filter(|data| data.metadata.deletion_timestamp.is_some()) {
        release_data(draft);
        let holders = going.metadata.finalizers.clone().unwrap_or_default();
        draft.wait_for(
            WaitReason::Inspection,
            format!(
                "waits for the HardwareData of a previous host of this name to be deleted (finalizers: {}); next: it is recreated",
                text::clean(holders.join(", ").as_bytes())
            ),
        );
        draft.again(access::LOOK_AGAIN);
        return;
    }
    if !stored.is_some_and(|data| is_ours(draft, data) && data.spec.hardware.as_ref() == Some(&packed)) {
        // Another write that is refused says nothing of this one.
        let refused = draft.seen.refused.as_ref();
        match refused.filter(|refused| refused.step == Some(WRITE_HARDWARE)) {
            Some(refused) => {
                let message = format!(
                    "waits for the HardwareData to be written: {}",
                    bounded(&refused.why)
                );
                draft.wait_for(WaitReason::Inspection, and_next(&message, "the host is prepared"));
            }
            None => {
                draft.keep_wait();
            }
        }
        // While the object is small: each write of a host with its hardware costs the API server several times as much.
        restore::architecture(draft, &packed);
        draft.effect(Effect::WriteHardware(Box::new(found)));
        draft.why("writes the HardwareData");
        draft.again(std::time::Duration::ZERO);
        return;
    }
    let changes = draft
        .old
        .hardware
        .as_ref()
        .map(|old| hardware::changes(&old.unpack(), &found))
        .unwrap_or_default();
    draft.status.hardware = Some(packed);
    draft.enter(State::Preparing);
    boot_mode::snapshot(draft);
    draft.status.powered_on |= ramdisk::is_on(draft);
    let metric = draft.history(|history| &mut history.inspect);
    let end = metric.start.as_ref().map_or(at, |start| start.0.max(at));
    metric.end = Some(whole_seconds(end));
    let message = match changes.is_empty() {
        true => "the hardware has been inspected".to_owned(),
        false => format!("the hardware has changed: {}", changes.join(", ")),
    };
    let other = restore::other_architecture(draft.host, &found);
    let other = other.map(|other| format!("; {other}")).unwrap_or_default();
    draft.tell("InspectionComplete", message + &other);
    jobs::tidy(draft);
}

/// The HardwareData of a host that was inspected is gone, because somebody deleted it or a backup left it out: what the status says is stored
/// again, once nothing else is to be done. Where nothing is inspected, an annotation may tell the hardware, which HardwareData would keep out.
pub(super) fn store_again(draft: &mut Draft<'_>) {
    let history = draft.old.operation_history.as_ref();
    let inspected = history.and_then(|history| history.inspect.as_ref()?.end.as_ref());
    let is_lost = inspected.is_some()
        && draft.hardware().is_none()
        && draft.state.is_registered()
        && draft.state != State::Inspecting;
    if !is_lost || draft.is_being_deleted() || forbids_inspection(draft.host) || !draft.effects.is_empty() {
        return;
    }
    if let Some(known) = draft.old.hardware.clone() {
        let known = HardwareDetails::clone(&known.unpack());
        draft.effect(Effect::WriteHardware(Box::new(known)));
    }
}
