//! Getting the machine into its ramdisk. One that runs is used as it is; else the BMC boots it, or a person does. Pure.

mod hindrance;
mod presence;
mod starting;
mod unbooted;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use muster_proto::kinds::{ErrorType, HostBootMode, REBOOT_ANNOTATION, Server, Session};

use super::{
    State, WaitReason,
    access::{LOOK_AGAIN, Reach},
    boot_mode,
    conditions::{CONTESTED, ENROLS_AGAIN},
    draft::Draft,
    guard, in_band,
    interrupted::{self, Work},
    jobs::{self, Job},
    netboot,
    observed::{FailureClass, Power, Tried},
    owner::has_bmc,
    plan::{BmcCall, Task},
    power, reboot,
};
use crate::hosts::{self, declared_mac};
use crate::time::{is_ahead, whole_seconds};

use hindrance::unlikely;
pub(super) use presence::{Presence, has_left, here, is_on};
use starting::{pause_after, start, start_again};

/// How long a machine may take from its boot to its ramdisk's first word. Servers with much memory and many option ROMs need
/// several minutes for their firmware alone.
pub(super) const BOOT_DEADLINE: SignedDuration = SignedDuration::from_mins(15);
/// A process that began in the middle does not know whether the machine was booted; so long it takes it that it was.
const BENEFIT_OF_DOUBT: SignedDuration = SignedDuration::from_mins(5);

/// No machine boots into its ramdisk in less.
const BOOTS: SignedDuration = SignedDuration::from_secs(20);

/// So long a ramdisk that fell silent may come back by itself: a replica that it talked to may have restarted.
pub(super) const SILENCE: SignedDuration = SignedDuration::from_secs(90);

/// The running ramdisk of the machine; none: not yet, and the draft says what is done about it.
pub(super) fn ready<'a>(
    draft: &mut Draft<'a>,
    reach: &Reach,
    operation: &str,
    then: &str,
) -> Option<(&'a Server, &'a Session)> {
    if is_rebooting(draft, reach, then) {
        return None;
    }
    if let Some((server, session)) = draft.session() {
        if server.status.as_ref().is_some_and(|status| status.contested) {
            contested(draft);
            return None;
        }
        if let Some(until) = presence::doubted_until(draft) {
            draft.wait_for(WaitReason::Ramdisk, waits(draft, then));
            draft.why("the machine went down, but its session has not ended yet");
            draft.again_at(until);
            return None;
        }
        let lost = Work::lost_in(draft.seen.work.as_ref(), operation);
        if lost >= interrupted::MOST {
            fail(
                draft,
                format!(
                    "the ramdisk crashed or rebooted {lost} times during this operation (kernel panic or too little memory?); \
                     see the machine's console"
                ),
            );
            return None;
        }
        draft.status.powered_on |= *reach == Reach::InBand;
        return Some((server, session));
    }
    match reach {
        Reach::Bmc => boot(draft, &boot_of(operation), then),
        Reach::Silent(_) => bmc_overdue(draft, reach, then),
        Reach::InBand | Reach::No => by_hand(draft, then),
    }
    None
}

/// The ramdisk cannot be had: counted as a failure of what the host's state needs it for.
fn fail(draft: &mut Draft<'_>, message: impl AsRef<str>) {
    let kind = match draft.state {
        State::Inspecting => ErrorType::Inspection,
        _ => ErrorType::Provisioning,
    };
    draft.fail(kind, message);
}

/// Its BMC does not boot it, because of `why`.
fn is_unbooted(draft: &mut Draft<'_>, why: &str) {
    let message = format!("the machine could not be booted from the network: {why}");
    fail(draft, message);
}

/// How the names of boots into the ramdisk end.
const BOOT: &str = "-boot";

/// What the boot into the ramdisk is called that `operation` needs.
pub(super) fn boot_of(operation: &str) -> String {
    format!("{operation}{BOOT}")
}

/// A person has to look which of the two it is; a host that goes waits for nothing without an end.
fn contested(draft: &mut Draft<'_>) {
    let message = CONTESTED;
    if draft.is_being_deleted() && draft.waited(WaitReason::Contested, BOOT_DEADLINE) {
        fail(draft, message);
        return;
    }
    draft.wait_for(WaitReason::Contested, format!("{message}; next: {ENROLS_AGAIN}"));
    if draft.is_being_deleted() {
        draft.again_after(WaitReason::Contested, BOOT_DEADLINE);
    }
}

/// In the names of operations.
const AGAIN: &str = "again";

/// How far a reboot is that somebody forces.
enum Reboot {
    UnderWay,
    Done,
    /// Why it cannot be done.
    Failed(String),
}

/// A reboot that somebody forces (`reboot.metal3.io` with `force`) in a state that needs the ramdisk: that begins anew, with whatever it
/// was at. True while it is on its way. One that cannot be done is told of, and what is done goes on without it.
pub(super) fn is_rebooting(draft: &mut Draft<'_>, reach: &Reach, then: &str) -> bool {
    if !reboot::wish(draft.host, true).once {
        return false;
    }
    let begun = draft.waiting_since(WaitReason::Rebooting).is_some();
    let reboot = match reach {
        Reach::Bmc => by_bmc(draft),
        Reach::InBand => match by_ramdisk(draft) {
            Some(reboot) => reboot,
            None => return false,
        },
        Reach::Silent(_) if begun => Reboot::UnderWay,
        Reach::Silent(_) | Reach::No => return false,
    };
    let reboot = match reboot {
        Reboot::UnderWay if draft.waited(WaitReason::Rebooting, BOOT_DEADLINE) => {
            Reboot::Failed(format!("it took longer than {} min", BOOT_DEADLINE.as_mins()))
        }
        reboot => reboot,
    };
    match reboot {
        Reboot::Failed(why) => {
            power::rebooted(draft);
            // Whoever boots it now is not to see it go down again for that.
            if *reach == Reach::InBand && draft.session().is_none() {
                jobs::clear(draft);
            }
            draft.warn(
                "PowerManagementError",
                format!("the reboot forced by {REBOOT_ANNOTATION} failed: {why}"),
            );
            return false;
        }
        Reboot::Done => power::rebooted(draft),
        Reboot::UnderWay if begun => {}
        Reboot::UnderWay => draft.tell(
            "PowerOff",
            format!("rebooting the machine into its ramdisk, forced by {REBOOT_ANNOTATION}"),
        ),
    }
    draft.wait_for(
        WaitReason::Rebooting,
        format!("waits for the reboot forced by {REBOOT_ANNOTATION}; next: {then}"),
    );
    true
}

fn by_bmc(draft: &mut Draft<'_>) -> Reboot {
    let (operation, since) = power::operation(draft, WaitReason::Rebooting, AGAIN);
    let off = power::tried(draft, &starting::off_of(&operation));
    let tried = power::tried(draft, &operation).or(off);
    match tried.map(|tried| (tried, &tried.result)) {
        // Its answer was lost, and what called in some time after that is the ramdisk that it booted.
        Some((tried, Err(failure)))
            if failure.class == FailureClass::Unreachable
                && tried.on_power
                && is_booted_since(draft, tried.at) =>
        {
            return Reboot::Done;
        }
        Some((tried, Err(failure))) if let Some(pause) = pause_after(failure, tried.on_power) => {
            start_again(draft, &operation, tried.at, pause);
        }
        Some((tried, _)) if starting::goes_off_and_on(draft, tried) => {
            if let Err(why) = starting::go_on(draft, &operation, tried) {
                return Reboot::Failed(why);
            }
        }
        Some((_, Ok(()))) => return Reboot::Done,
        Some((_, Err(failure))) => return Reboot::Failed(failure.message.clone()),
        None => {
            // What was read before may be from before its boot.
            let reading = draft.seen.bmc.power.filter(|reading| reading.at >= since);
            match reading.map(|reading| reading.power) {
                Some(Power::On | Power::Off) => start(draft, &operation),
                Some(Power::Unknown) | None => read_power(draft),
            }
        }
    }
    draft.again(LOOK_AGAIN);
    Reboot::UnderWay
}

/// True if the session began so long after `at` that its machine may have booted in between. One that only lost its connection then is back
/// sooner.
pub(super) fn is_booted_since(draft: &Draft<'_>, at: Timestamp) -> bool {
    draft
        .here_since()
        .is_some_and(|since| since.duration_since(at) >= BOOTS)
}

/// None: a person has to boot it anyway.
fn by_ramdisk(draft: &mut Draft<'_>) -> Option<Reboot> {
    let (operation, _) = power::operation(draft, WaitReason::Rebooting, AGAIN);
    // Its last word is that it goes, so its session is over when that is known.
    match jobs::look(draft.server()?, |job| job == operation) {
        Job::Done => return Some(Reboot::Done),
        Job::Failed(why) => return Some(Reboot::Failed(why)),
        Job::Pending => {}
        Job::Absent => {
            let (server, _) = draft.session()?;
            jobs::place(draft, server, &operation, Task::Reboot);
        }
    }
    draft.again(LOOK_AGAIN);
    Some(Reboot::UnderWay)
}

/// True if the machine was booted, or switched off for that, by `tried`, for `operation` or because somebody forced that meanwhile, and is
/// still on its way. A session that came and went after a boot makes it history, but for the one that a forced one has ended.
fn is_booted(draft: &Draft<'_>, tried: &Tried, operation: &str) -> bool {
    let ended_at = if tried.operation == operation || tried.operation == starting::off_of(operation) {
        Some(tried.at)
    } else if jobs::is_to(&tried.operation, AGAIN) && tried.result.is_ok() && !starting::is_off(tried) {
        let is_recent = draft.now.duration_since(tried.at) < BOOT_DEADLINE;
        let ended_at = tried.at.checked_add(presence::OUTLIVES).ok();
        ended_at.filter(|_| is_recent)
    } else {
        None
    };
    let lost = draft.seen.silent_since;
    ended_at.is_some_and(|at| lost.is_none_or(|lost| lost <= at))
}

/// Says beforehand, with the state that needs it, that the ramdisk will be waited for: one write instead of two.
pub(super) fn announce(draft: &mut Draft<'_>, then: &str) {
    if has_bmc(draft.host) && here(draft).is_none() {
        // Nobody has booted it for that yet.
        draft.wait_anew(WaitReason::Ramdisk, waits(draft, then));
    }
}

/// What is waited for.
const CALL_IN: &str = "waits for the machine's ramdisk to call in";

fn waits(draft: &Draft<'_>, then: &str) -> String {
    format!("{CALL_IN}{}; next: {then}", unlikely(draft))
}

/// What a host lacks whose machine's ramdisk would not be known for its.
const NO_NIC: &str =
    "the host's machine cannot be identified without a boot MAC address: set spec.bootMACAddress";

/// Waits for the ramdisk that the BMC has booted; too long is a failure. The time counts from when the host began to wait. True if it waits on.
fn overdue(draft: &mut Draft<'_>, then: &str) -> bool {
    if draft.waited(WaitReason::Ramdisk, BOOT_DEADLINE) {
        let minutes = BOOT_DEADLINE.as_mins();
        let is_known = draft.server().is_some() || hosts::macs(draft.host).next().is_some();
        let by = declared_mac(draft.host).map(|mac| format!(" by {mac}"));
        let hint = match draft.host.spec.boot_mode {
            _ if !is_known => format!("; {NO_NIC}"),
            Some(HostBootMode::UefiSecureBoot) => {
                "; the ramdisk does not boot while Secure Boot is enabled: disable it in the firmware"
                    .to_owned()
            }
            _ => format!(
                "; next: check on its console whether it boots from the network{}{}, whether Secure Boot is off, whether its Segment is Serving (kubectl get segments -A), and the edge's log",
                by.unwrap_or_default(),
                starting::without_off(draft)
            ),
        };
        let message = format!(
            "the machine's ramdisk did not call in within {minutes} min{}, although it was booted from the network{hint}",
            unlikely(draft)
        );
        fail(draft, message);
        return false;
    }
    draft.wait_for(WaitReason::Ramdisk, waits(draft, then));
    draft.again_after(WaitReason::Ramdisk, BOOT_DEADLINE);
    true
}

/// Until when a ramdisk that fell silent may come back by itself; none: not, or not any more.
pub(super) fn may_return_until(draft: &Draft<'_>) -> Option<Timestamp> {
    let off = draft
        .seen
        .bmc
        .power
        .is_some_and(|reading| reading.power == Power::Off);
    // One that was told to leave does not come back, unless the answer that told it was lost. For an image of before only a person hears of
    // it sooner: a BMC resets none that may be on its way.
    let told = (!has_bmc(draft.host) && has_left(draft))
        || draft
            .server()
            .is_some_and(|server| netboot::leaves(draft.host, server) && !jobs::is_unheard(server));
    // Who power-cycled it by hand in the middle of a write would break that.
    let is_writing = !has_bmc(draft.host)
        && draft
            .server()
            .is_some_and(|server| jobs::is_under_way(server, |_| true));
    let patience = if is_writing { BOOT_DEADLINE } else { SILENCE };
    let due = draft.seen.silent_since?.checked_add(patience).ok()?;
    (!off && !told && draft.now < due).then_some(due)
}

fn boot(draft: &mut Draft<'_>, operation: &str, then: &str) {
    // No machine is reset whose ramdisk nobody would know.
    if draft.state == State::Inspecting && declared_mac(draft.host).is_none() && draft.server().is_none() {
        draft.refuse(
            ErrorType::Inspection,
            format!("{NO_NIC}; next: the machine is booted for inspection"),
        );
        return;
    }
    if may_return(draft, then) {
        return;
    }
    let tried = draft.seen.tried.as_ref();
    // A boot before a pause may have ended on the machine's own disk: once its time is over, it is as good as forgotten.
    let tried =
        tried.filter(|tried| tried.at >= draft.seen.began || !draft.has_paused(tried.at, BOOT_DEADLINE));
    match tried.filter(|tried| is_booted(draft, tried, operation)) {
        Some(tried) => match &tried.result {
            Err(failure) if let Some(pause) = pause_after(failure, tried.on_power) => {
                if unbooted::waits_on(draft, tried, failure, then) {
                    start_again(draft, operation, tried.at, pause);
                }
                draft.again(LOOK_AGAIN);
            }
            _ if starting::goes_off_and_on(draft, tried) => off_and_on(draft, operation, tried, then),
            // What its BMC took to do that is no time in which it boots.
            Ok(()) if unbooted::took_long(draft, tried) => {
                draft.wait_anew(WaitReason::Ramdisk, waits(draft, then));
                draft.again_at(draft.now.checked_add(BOOT_DEADLINE).unwrap_or(draft.now));
            }
            Ok(()) => {
                overdue(draft, then);
            }
            Err(failure) => is_unbooted(draft, &starting::why(draft, tried, failure)),
        },
        None => boot_first(draft, operation, then),
    }
}

/// The machine goes off and on, of which `tried` was the last step. Each step has its own end: one that has not been switched on yet is not
/// late to call in, however slow its BMC is.
fn off_and_on(draft: &mut Draft<'_>, operation: &str, tried: &Tried, then: &str) {
    if power::is_unknown(draft) {
        read_power(draft);
        bmc_overdue(draft, &Reach::Bmc, then);
        return;
    }
    // Between two steps it may have waited for a BMC that was busy, which has its end, too.
    draft.wait_on(WaitReason::Ramdisk, WaitReason::Bmc, waits(draft, then));
    match starting::go_on(draft, operation, tried) {
        Ok(()) => draft.again(LOOK_AGAIN),
        Err(why) => is_unbooted(draft, &why),
    }
}

/// Nothing in this process's memory says that the machine was booted for this operation, since the host was paused last.
fn boot_first(draft: &mut Draft<'_>, operation: &str, then: &str) {
    let power = draft.seen.bmc.power.map(|reading| reading.power);
    let announced = draft.waiting_since(WaitReason::Ramdisk);
    match (power, announced) {
        // Announced by a process that is no more: it was booted then, most likely.
        (Some(Power::On), Some(since))
            if since < whole_seconds(draft.seen.began).0
                && draft.now.duration_since(since) < BENEFIT_OF_DOUBT =>
        {
            overdue(draft, then);
            draft.again_at(since.checked_add(BENEFIT_OF_DOUBT).unwrap_or(draft.now));
        }
        (Some(Power::On | Power::Off), Some(since)) if since < whole_seconds(draft.seen.began).0 => {
            // The time that has run out meanwhile was not the machine's.
            draft.wait_anew(WaitReason::Ramdisk, waits(draft, then));
            draft.again_at(draft.now.checked_add(BOOT_DEADLINE).unwrap_or(draft.now));
            start(draft, operation);
        }
        (Some(Power::On | Power::Off), _) => {
            if overdue(draft, then) {
                start(draft, operation);
            }
        }
        (Some(Power::Unknown) | None, _) => {
            read_power(draft);
            if power::is_unknown(draft) {
                bmc_overdue(draft, &Reach::Bmc, then);
            } else {
                draft.keep_wait();
            }
        }
    }
}

/// When the last session of the machine of `server` ended, by the clock of its edge; none where that is far ahead of ours.
pub(super) fn lost_at(server: &Server, now: Timestamp) -> Option<Timestamp> {
    let session = server.session()?;
    let since: Timestamp = session.since.parse().ok()?;
    (!is_ahead(since, now)).then_some(since)
}

/// True if `at` was so long ago that a BMC may be asked again.
pub(super) fn is_due(draft: &Draft<'_>, at: Timestamp) -> bool {
    draft.has_paused(at, SignedDuration::try_from(LOOK_AGAIN).unwrap_or_default())
}

/// Asks for the power, unless that was done a moment ago.
pub(super) fn read_power(draft: &mut Draft<'_>) {
    let bmc = &draft.seen.bmc;
    let last = bmc
        .unread
        .as_ref()
        .map(|failure| failure.at)
        .max(bmc.power.map(|reading| reading.at));
    if last.is_none_or(|at| is_due(draft, at)) {
        draft.call(BmcCall::ReadPower);
    }
    draft.again(LOOK_AGAIN);
}

/// The machine boots from the network when it boots next.
pub(super) fn arm(draft: &mut Draft<'_>, operation: &str) {
    let mode = boot_mode::snapshot(draft);
    draft.call(BmcCall::BootNetworkOnce {
        operation: operation.to_owned(),
        mode,
    });
}

/// Waits for a BMC that does not answer, or does not tell the power; too long is a failure.
pub(super) fn bmc_overdue(draft: &mut Draft<'_>, reach: &Reach, then: &str) {
    if draft.waited(WaitReason::Bmc, BOOT_DEADLINE) {
        let why = power::says_no_power(draft, reach);
        fail(draft, why);
    } else {
        power::says_waiting(draft, reach, then);
    }
}

/// True while a ramdisk that fell silent may come back by itself: what the host waited for, it waits for still.
fn may_return(draft: &mut Draft<'_>, then: &str) -> bool {
    let Some(due) = may_return_until(draft) else {
        return false;
    };
    if !draft.keep_wait() {
        draft.wait_for(WaitReason::Ramdisk, waits(draft, then));
    }
    draft.why("the ramdisk lost its connection a moment ago");
    draft.again_at(due);
    true
}

/// True while a machine that its ramdisk rebooted may be booting.
fn is_on_its_way(draft: &mut Draft<'_>) -> bool {
    if draft.waiting_since(WaitReason::Rebooting).is_none()
        || draft.waited(WaitReason::Rebooting, BOOT_DEADLINE)
    {
        return false;
    }
    draft.keep_wait();
    draft.again_after(WaitReason::Rebooting, BOOT_DEADLINE);
    true
}

/// Since when the machine gets the ramdisk if it boots from the network: since its host is in a state that takes it there.
fn armed_since(draft: &Draft<'_>) -> Timestamp {
    let waits = || {
        draft
            .waiting_since(WaitReason::PowerCycleByHand)
            .unwrap_or(draft.now)
    };
    whole_seconds(draft.begun().unwrap_or_else(waits)).0
}

/// A person is asked to boot the ramdisk, for what comes `then`. Where the firmware tries the disk first, no BMC tells it otherwise.
fn ask_for_a_boot(draft: &mut Draft<'_>, then: &str) {
    let since = armed_since(draft);
    draft.wait_for(
        WaitReason::PowerCycleByHand,
        format!(
            "power-cycle the machine manually and let it boot from the network (boot menu, or network first in the boot order: its system may have put its own entry first): network boot has been armed since {since}; next: {then}"
        ),
    );
}

/// Waits for the ramdisk of a machine that a person boots, who is asked to after a while: it may be on its way.
pub(super) fn is_awaited(draft: &mut Draft<'_>, then: &str) {
    if declared_mac(draft.host).is_none() && draft.server().is_none() {
        // Whatever boots, nobody knows that it is this one.
        draft.wait_for(
            WaitReason::Ramdisk,
            format!("{CALL_IN}, but {NO_NIC}; next: {then}"),
        );
        return;
    }
    let is_asked = draft.waiting_since(WaitReason::PowerCycleByHand).is_some()
        || draft.waited(WaitReason::Ramdisk, BOOT_DEADLINE);
    if is_asked {
        ask_for_a_boot(draft, then);
    } else {
        draft.wait_for(
            WaitReason::Ramdisk,
            format!(
                "{CALL_IN}{} (boot it manually if it is off or runs another system); next: {then}",
                unlikely(draft)
            ),
        );
        draft.again_after(WaitReason::Ramdisk, BOOT_DEADLINE);
    }
    // What somebody else runs, and switched off, is not switched on for that; and of what is out of our hands no edge would.
    if draft.host.spec.externally_provisioned != Some(true) && !guard::is_left_alone(draft.host) {
        in_band::wake(draft, is_asked);
    }
}

/// Nobody but a person can boot it.
fn by_hand(draft: &mut Draft<'_>, then: &str) {
    if may_return(draft, then) || is_on_its_way(draft) || presence::may_enrol_again(draft, then) {
        return;
    }
    if draft.is_being_deleted() {
        if draft.waited(WaitReason::PowerCycleByHand, BOOT_DEADLINE) {
            fail(draft, "the machine has no BMC and was not power-cycled manually");
            return;
        }
        draft.again(Duration::try_from(BOOT_DEADLINE).unwrap_or_default());
    }
    power_cycle(draft, then);
}

/// A person is asked to boot the ramdisk, and the edges for Wake-on-LAN where that may do it.
pub(super) fn power_cycle(draft: &mut Draft<'_>, then: &str) {
    ask_for_a_boot(draft, then);
    // One that is not known to be off may have lost its power.
    let missed = draft.waited(WaitReason::PowerCycleByHand, BOOT_DEADLINE);
    if !draft.status.powered_on || missed {
        in_band::wake(draft, missed);
    } else {
        draft.again_after(WaitReason::PowerCycleByHand, BOOT_DEADLINE);
    }
}
