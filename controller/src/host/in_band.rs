//! The power of a machine without a BMC: what its ramdisk does, what Wake-on-LAN does, and what only a person can. Pure.

use std::time::Duration;

use jiff::SignedDuration;
use muster_proto::{
    Mac,
    inventory::Nic,
    kinds::{BareMetalHost, ErrorType, Packed, Server, Wake},
};

use super::{
    State, WaitReason,
    draft::{Draft, HoldOff},
    guard,
    jobs::{self, Job},
    plan::{Effect, Task},
    power::{OFF, REBOOT, SWITCHING, operation, rebooted, says_held_off, stay_on, stays_off},
    ramdisk,
    reboot::{self, Wish},
};
use crate::{hosts, segments::is_unserved, time::whole_seconds};

/// What a person is asked for a reboot; whoever takes the annotation off has done it.
const REBOOT_BY_HAND: &str = "the machine has no BMC and Muster does not control its operating system; next: reboot it manually, then remove the annotation reboot.metal3.io";

/// How often a machine without a BMC is woken while it may come by itself.
const WAKES: SignedDuration = SignedDuration::from_mins(5);
/// The same, once a person was asked to switch it on.
const WAKES_MEANWHILE: SignedDuration = SignedDuration::from_mins(30);
/// So long a person is asked to switch on what nobody sees.
const ASKED: SignedDuration = SignedDuration::from_hours(1);
/// So long a ramdisk that goes down is taken for one, while its session has not ended.
const GOES_DOWN: SignedDuration = SignedDuration::from_mins(5);

/// The power of a host at rest.
pub(super) fn manage(draft: &mut Draft<'_>, wish: Wish) {
    let wanted = draft.host.spec.online && !wish.off();
    let kept_on = draft.host.spec.disable_power_off == Some(true);
    let session = draft.session();
    draft.status.powered_on |= session.is_some();
    if kept_on && !wanted && !wish.once && draft.status.powered_on {
        draft.forget(ErrorType::PowerManagement);
        stay_on(draft);
        return;
    }
    let Some((server, _)) = session else {
        absent(draft, wish, wanted);
        return;
    };
    if wanted && goes_down(draft, server) {
        draft.wait_for(
            WaitReason::PoweringOff,
            "waits for the ramdisk to finish the earlier shutdown; next: the machine is powered on again",
        );
        draft.again_after(WaitReason::PoweringOff, GOES_DOWN);
        return;
    }
    if wanted {
        draft.forget(ErrorType::PowerManagement);
        draft.status.error_count = 0;
        jobs::clear(draft);
        draft.why("it is on");
        return;
    }
    if draft.hold_off(&[ErrorType::PowerManagement]) == HoldOff::Waiting {
        return;
    }
    draft.forget(ErrorType::PowerManagement);
    let back = draft.host.spec.online && !wish.stay_off || kept_on;
    let (task, what) = match wish.once && back {
        true => (Task::Reboot, REBOOT),
        false => (Task::PowerOff, OFF),
    };
    let (operation, _) = operation(draft, WaitReason::PoweringOff, what);
    if draft.waiting_since(WaitReason::PoweringOff).is_none() {
        // The operation is named by the time since when the status says so, so it is written first: what is told is never put off.
        let how = if what == REBOOT {
            "rebooting"
        } else {
            "powering off"
        };
        draft.tell("PowerOff", format!("{how} the machine through its ramdisk"));
    }
    let then = match what {
        REBOOT => "the machine boots again".to_owned(),
        _ => format!("the machine {}", stays_off(draft)),
    };
    draft.wait_for(
        WaitReason::PoweringOff,
        format!("waits for the ramdisk to shut down; next: {then}"),
    );
    if draft.waited(WaitReason::PoweringOff, ramdisk::BOOT_DEADLINE) {
        draft.fail(ErrorType::PowerManagement, "the ramdisk does not shut down");
        return;
    }
    draft.again_after(WaitReason::PoweringOff, ramdisk::BOOT_DEADLINE);
    match jobs::look(server, |job| job == operation) {
        Job::Absent => jobs::place(draft, server, &operation, task),
        Job::Pending => draft.again(Duration::try_from(SWITCHING).unwrap_or_default()),
        Job::Failed(error) => draft.fail(
            ErrorType::PowerManagement,
            format!("the ramdisk does not shut down: {error}"),
        ),
        Job::Done => {
            if what == REBOOT {
                rebooted(draft);
            }
            draft.why("the ramdisk is shutting down");
        }
    }
}

/// True if the ramdisk went down as it was told: its last word was that it does. A job that it only was given says nothing.
fn went(draft: &Draft<'_>, what: &str) -> bool {
    if draft.waiting_since(WaitReason::PoweringOff).is_none() {
        return false;
    }
    let (id, _) = operation(draft, WaitReason::PoweringOff, what);
    let done = |server: &Server| jobs::look(server, |job| job == id) == Job::Done;
    draft.server().is_some_and(done)
}

/// True if the ramdisk has taken up the job to switch its machine off, or has done so: that is not taken back any more.
fn goes_down(draft: &Draft<'_>, server: &Server) -> bool {
    if draft.waiting_since(WaitReason::PoweringOff).is_none()
        || draft.waited(WaitReason::PoweringOff, GOES_DOWN)
    {
        return false;
    }
    let (id, _) = operation(draft, WaitReason::PoweringOff, OFF);
    match jobs::look(server, |job| job == id) {
        Job::Done => true,
        Job::Pending => jobs::is_taken_up(server, &id),
        Job::Absent | Job::Failed(_) => false,
    }
}

/// True if the machine goes off, as it was told before, or has just done so: that is to be seen before it is given work.
pub(super) fn goes_off(draft: &Draft<'_>) -> bool {
    match draft.session() {
        Some((server, _)) => goes_down(draft, server),
        None => draft.status.powered_on && went(draft, OFF),
    }
}

/// The machine says nothing: it is off if it was told so, else nobody knows.
fn absent(draft: &mut Draft<'_>, wish: Wish, wanted: bool) {
    let (off, again) = (went(draft, OFF), went(draft, REBOOT));
    if off || again {
        draft.forget(ErrorType::PowerManagement);
        draft.status.error_count = 0;
    }
    draft.status.powered_on &= !off;
    // It may have come by packets or by hand, and nobody would see it.
    let asked = [WaitReason::PoweringOn, WaitReason::PowerByHand]
        .into_iter()
        .any(|reason| draft.waiting_since(reason).is_some());
    draft.status.powered_on |= draft.state.is_provisioned() && asked && !wanted;
    // Whatever failed before, nobody tries it any more, and it has become as it is wanted.
    if wanted == draft.status.powered_on && draft.status.error_type == Some(ErrorType::PowerManagement) {
        draft.clear_error();
        draft.status.error_count = 0;
    }
    jobs::clear(draft);
    if wish.once && (again || !draft.status.powered_on) {
        rebooted(draft);
        says_held_off(draft, wish);
        draft.why("the machine is off as requested; next: it is powered on again");
        return;
    }
    match (wanted, draft.status.powered_on) {
        (true, false) if draft.state.is_provisioned() => switch_on_unseen(draft),
        (true, false) => switch_on_from_afar(draft),
        (false, true) if wish.once => draft.wait_for(WaitReason::PowerByHand, REBOOT_BY_HAND),
        (false, true) if draft.state == State::Available && !ramdisk::has_left(draft) => {
            by_itself_or_by_hand(
                draft,
                WaitReason::Ramdisk,
                "the machine's ramdisk is not connected; next: it reconnects and the machine is powered off",
                "the machine's ramdisk is not connected, and the machine may already be off; next: power it off manually",
            );
        }
        (false, true) => draft.wait_for(
            WaitReason::PowerByHand,
            "the machine has no BMC and Muster does not control its operating system; next: power it off manually",
        ),
        // It was told to leave, and runs what is on its disks.
        (true, true) if draft.state == State::Available && ramdisk::has_left(draft) => {
            ramdisk::power_cycle(draft, "the ramdisk waits for an image");
        }
        (true, true) if draft.state == State::Available => {
            by_itself_or_by_hand(
                draft,
                WaitReason::Ramdisk,
                "the machine's ramdisk is not connected; next: it reconnects",
                "the machine's ramdisk is not connected and has not reconnected on its own; next: power-cycle the machine manually",
            );
            // It may have lost its power.
            if draft.waits_for(&[WaitReason::PowerByHand]) {
                wake(draft, true);
            }
        }
        // Somebody may have switched it off, as was asked for.
        (true, true)
            if draft.state.is_provisioned()
                && asked
                && !draft.has_said(WaitReason::PowerByHand, REBOOT_BY_HAND) =>
        {
            switch_on_unseen(draft);
        }
        _ => {
            says_held_off(draft, wish);
            draft.why("the power state is left as it is");
        }
    }
}

/// Nothing answers to Wake-on-LAN: whether it did anything shows when the ramdisk calls in.
fn switch_on_from_afar(draft: &mut Draft<'_>) {
    match wakes(draft) {
        Err(why) => draft.wait_for(
            WaitReason::PowerByHand,
            format!("the machine has no BMC, and {why}; next: power it on manually"),
        ),
        Ok(macs) => {
            by_itself_or_by_hand(
                draft,
                WaitReason::PoweringOn,
                "the machine has no BMC: the edges on its Segment send Wake-on-LAN packets every 5 minutes; next: it boots its ramdisk",
                "the machine has no BMC and has not responded to Wake-on-LAN, which the edges on its Segment now send every half hour; next: power it on manually",
            );
            ask_edges(draft, macs, draft.waits_for(&[WaitReason::PowerByHand]));
        }
    }
}

/// The same of a machine that boots a system of its own, which does not call in: once a person was asked for long enough, it is taken for
/// on.
fn switch_on_unseen(draft: &mut Draft<'_>) {
    let wakes = wakes(draft);
    let why = match &wakes {
        Err(why) => why,
        Ok(_) => {
            "it is not known whether the Wake-on-LAN packets from the edges on its Segment have powered it on"
        }
    };
    let ask = format!(
        "the machine has no BMC, and {why}; next: power it on manually if it is off; after an hour Muster assumes that it is on"
    );
    let said = draft.has_said(WaitReason::PowerByHand, &ask);
    if said && draft.waited(WaitReason::PowerByHand, ASKED) {
        draft.status.powered_on = true;
        draft.tell(
            "PowerOn",
            "power-on was requested an hour ago and cannot be verified; assuming the machine is on",
        );
        return;
    }
    match wakes {
        Ok(_) => by_itself_or_by_hand(
            draft,
            WaitReason::PoweringOn,
            "the machine has no BMC: the edges on its Segment send Wake-on-LAN packets every 5 minutes; next: a person is asked to power it on, since its operating system does not connect to Muster",
            &ask,
        ),
        Err(_) if said => draft.wait_for(WaitReason::PowerByHand, ask),
        Err(_) => draft.wait_anew(WaitReason::PowerByHand, ask),
    }
    draft.again_after(WaitReason::PowerByHand, ASKED);
    if let Ok(macs) = wakes {
        ask_edges(draft, macs, draft.waits_for(&[WaitReason::PowerByHand]));
    }
}

/// At which addresses magic packets may switch the machine on; else why none can.
fn wakes(draft: &Draft<'_>) -> Result<Vec<Mac>, &'static str> {
    let status = draft.server().and_then(|server| server.status.as_ref());
    if status.is_some_and(|status| status.contested) {
        return Err(
            "two clients presented its one-time boot token, so it is not known which NICs belong to it",
        );
    }
    let inventory = status.and_then(|status| status.inventory.as_ref());
    let inventory = inventory.map(Packed::unpack).unwrap_or_default();
    let macs: Vec<Mac> = inventory.nics.iter().filter_map(wakes_at).collect();
    let without = |nic: &Nic| nic.wake_on_lan == Some(false);
    match macs.is_empty() {
        false if draft.segment().is_none() => {
            Err("the Segment of its last session, on which Wake-on-LAN would be sent, no longer exists")
        }
        false if draft.segment().is_some_and(is_unserved) => {
            Err("the Segment of its last session, on which Wake-on-LAN would be sent, is not served")
        }
        false => Ok(macs),
        true if !inventory.nics.is_empty() && inventory.nics.iter().all(without) => {
            Err("none of its NICs supports Wake-on-LAN")
        }
        true => Err("it has no known NIC that might support Wake-on-LAN"),
    }
}

/// Asks the edges for Wake-on-LAN, if it may do something. A packet does nothing to a machine that runs.
pub(super) fn wake(draft: &mut Draft<'_>, person_asked: bool) {
    if let Ok(macs) = wakes(draft) {
        ask_edges(draft, macs, person_asked);
    }
}

/// Asks the edges for Wake-on-LAN to `macs`, unless they were asked a moment ago, or longer where a person was asked, too.
fn ask_edges(draft: &mut Draft<'_>, macs: Vec<Mac>, person_asked: bool) {
    let pause = if person_asked { WAKES_MEANWHILE } else { WAKES };
    let session = draft.server().and_then(Server::session);
    let session = session.map_or_else(String::new, |session| session.key.clone());
    let last = draft.server().and_then(|server| server.spec.wake.as_ref());
    // Of a machine that was here since, or has other NICs, it is another wish.
    let last = last
        .filter(|last| last.session == session && last.macs == macs)
        .and_then(|last| last.at.parse().ok())
        .filter(|at| !draft.has_paused(*at, pause));
    let from = last.unwrap_or(draft.now);
    draft.again_at(from.checked_add(pause).unwrap_or(draft.now));
    if draft.writes_server() {
        // A second write of the Server would not find it as it was seen: the first one wakes the host.
    } else if last.is_none() {
        let at = whole_seconds(draft.now).0.to_string();
        draft.effect(Effect::Wake(Box::new(Wake { at, macs, session })));
    }
}

/// True if the machine of `server`, which was to be woken a while ago, still is: nobody has said otherwise since. `host` is what is where the
/// host of `server` should be.
pub fn is_wanted_on(server: &Server, host: Option<&BareMetalHost>) -> bool {
    let Some(host) = host.filter(|host| hosts::is_of(host, server) && !guard::is_left_alone(host)) else {
        return false;
    };
    let state = State::of(host);
    let stays_off = reboot::wish(host, !state.is_provisioned()).stay_off;
    match state {
        State::Registering
        | State::Inspecting
        | State::Preparing
        | State::Provisioning
        | State::Deprovisioning => true,
        State::Available | State::Provisioned | State::ExternallyProvisioned => {
            host.spec.online && !stays_off && !hosts::is_being_deleted(host)
        }
        State::New | State::Unmanaged | State::PoweringOffBeforeDelete | State::Deleting | State::Foreign => {
            false
        }
    }
}

/// Waits for `reason` as `meanwhile` says, as long as a boot may take; then a person is asked as `ask` says.
fn by_itself_or_by_hand(draft: &mut Draft<'_>, reason: WaitReason, meanwhile: &str, ask: &str) {
    let deadline = ramdisk::BOOT_DEADLINE;
    if draft.has_said(WaitReason::PowerByHand, ask) || draft.waited(reason, deadline) {
        draft.wait_for(WaitReason::PowerByHand, ask);
        return;
    }
    draft.wait_for(reason, meanwhile);
    draft.again_after(reason, deadline);
}

/// At whose address in a magic packet `nic` may switch its machine on. One of which nothing is known may.
fn wakes_at(nic: &Nic) -> Option<Mac> {
    nic.mac
        .filter(|mac| mac.is_unicast() && nic.wake_on_lan != Some(false))
}
