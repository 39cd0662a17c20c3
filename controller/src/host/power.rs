//! Keeping the power as the spec and the reboot annotations say, in the states in which a host rests. Pure.
//!
//! `status.poweredOn` is the last thing that somebody knew: a BMC that does not answer changes nothing in it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use muster_proto::kinds::{BareMetalHost, ErrorType, REBOOT_ANNOTATION};

use super::{
    State, WaitReason,
    access::{self, ASK_AGAIN, LOOK_AGAIN, Reach},
    conditions,
    draft::{Draft, HoldOff, and_next, bounded, clause},
    in_band, jobs,
    observed::{Failure, FailureClass, Power, PowerReading, Tried},
    owner::has_bmc,
    plan::{BmcCall, PowerOrder},
    ramdisk,
    reboot::{self, Wish},
};
use crate::time::whole_seconds;

/// So long an operating system may take to shut down before it is switched off.
const SOFT_OFF: SignedDuration = SignedDuration::from_secs(180);
/// So often it is asked in that time, since it may be booting when it is asked first.
const SOFT_OFFS: i32 = 3;
/// The time for each.
const SOFT_OFF_AGAIN: SignedDuration = SignedDuration::from_secs(SOFT_OFF.as_secs() / SOFT_OFFS as i64);
/// So long it is tried to ask it, through a BMC that does not answer to that.
const SOFT_OFF_ASKING: SignedDuration = SignedDuration::from_mins(12);
/// So often it is tried to have it restart.
const SOFT_RESETS: i64 = 3;
/// So long it is tried to arm the network boot of a machine that is to be switched on, through a BMC that fails to.
const ARMING: SignedDuration = SignedDuration::from_mins(3);
/// So long a machine may take to be off or on after it was told.
pub(super) const SWITCHING: SignedDuration = SignedDuration::from_secs(60);
/// Of a BMC that was not asked again for so long nobody knows that it still fails: it was silent, or the host paused.
const UNASKED: SignedDuration = SignedDuration::from_mins(3);
/// So long a BMC may have no time for an order.
const BUSY: SignedDuration = SignedDuration::from_mins(15);
/// How often the BMC is asked for the power of a machine whose ramdisk is here: that shows every half minute that the machine is on,
/// and when it does so no more, the BMC is asked at once.
const SEEN_ON: SignedDuration = SignedDuration::from_mins(10);
/// How often the power is looked at while it changes.
const LOOK: Duration = Duration::from_secs(2);

/// Reasons while an order on the power is under way, or is to be repeated after a failure.
const OF_POWER: [WaitReason; 3] = [WaitReason::PoweringOff, WaitReason::PoweringOn, WaitReason::Retry];

/// In names of operations.
pub(super) const OFF: &str = "off";
pub(super) const REBOOT: &str = "reboot";

/// The power of a host at rest.
pub(super) fn manage(draft: &mut Draft<'_>, reach: &Reach) {
    let wish = reboot::wish(draft.host, !draft.state.is_provisioned());
    match reach {
        Reach::InBand => {
            in_band::manage(draft, wish);
            return;
        }
        Reach::Silent(_) => {
            draft.keep_wait();
            waits_for_bmc(draft, reach, "its power is managed");
            draft.why("the BMC does not answer");
            says_unusable(draft, reach);
            return;
        }
        Reach::No => return,
        Reach::Bmc => {}
    }
    let said = draft.said();
    let Some(power) = current(draft) else {
        match said {
            _ if draft.powerless.is_none() => {}
            Some(said) if !draft.waits_for(&OF_POWER) => draft.say(said),
            _ => waits_for_bmc(draft, reach, "its power is managed"),
        }
        if draft.powerless.is_some() {
            says_unusable(draft, reach);
        }
        return;
    };
    draft.status.powered_on = power == Power::On;
    let wanted = draft.host.spec.online && !wish.off();
    // Whoever did what could not be done, or wants it no more, ends the pause after the failure.
    let is_as_wanted = wanted == (power == Power::On) || (power == Power::Off && wish.once);
    if !is_as_wanted && draft.hold_off(&[ErrorType::PowerManagement]) == HoldOff::Waiting {
        return;
    }
    match (power, wanted) {
        (Power::On, false) if draft.host.spec.disable_power_off == Some(true) => restart(draft, wish),
        (Power::On, false) => switch_off(draft, wish),
        (Power::Off, _) if wish.once => {
            settle(draft);
            rebooted(draft);
            says_held_off(draft, wish);
            draft.why("the machine is off as requested; next: it is powered on again");
        }
        (Power::Off, true) => {
            // Whatever it was to begin anew is over.
            rebooted(draft);
            switch_on(draft);
        }
        (power, _) => {
            if power == Power::Off {
                rebooted(draft);
            }
            settle(draft);
            says_held_off(draft, wish);
        }
    }
}

/// True if the machine is to be off, and stay so. One that may not be switched off is to be on, where its image is; and one without a BMC
/// is not switched off for an annotation, which may be gone when only a person can switch it on again.
pub(super) fn is_to_be_off(host: &BareMetalHost) -> bool {
    let is_held_off = has_bmc(host) && reboot::wish(host, false).stay_off;
    (!host.spec.online || is_held_off) && host.spec.disable_power_off != Some(true)
}

/// Nothing can be done before the BMC answers: that is what the host waits for, but for an order on the power that is under way or failed.
/// One that is under way says why it does not go on.
pub(super) fn waits_for_bmc(draft: &mut Draft<'_>, reach: &Reach, then: &str) {
    if draft.waits_for(&OF_POWER) {
        let is_going = |reason: &WaitReason| draft.waits_for(&[*reason]);
        let going = [WaitReason::PoweringOff, WaitReason::PoweringOn]
            .into_iter()
            .find(is_going);
        if let (Some(reason), Some(why)) = (going, draft.powerless.clone()) {
            let wish = reboot::wish(draft.host, !draft.state.is_provisioned());
            says_going(draft, reason, wish, Some(&why));
        }
        return;
    }
    says_waiting(draft, reach, then);
}

/// Says that the host waits for its BMC to answer, or to tell the power, and why it has not.
pub(super) fn says_waiting(draft: &mut Draft<'_>, reach: &Reach, then: &str) {
    // Why stands in `Manageable` as well, so no write is needed for that alone.
    let waits = match (reach, unknown_power(draft)) {
        (Reach::Silent(failure), _) => format!("waits for the BMC to answer: {}", failure.message),
        (_, Some(why)) => format!("waits for the BMC to report the power state: {why}"),
        (_, None) => "waits for the BMC to answer".to_owned(),
    };
    draft.wait_for(WaitReason::Bmc, and_next(&waits, then));
}

/// An available host is not to be claimed while there is no way to its machine: whoever looks for one goes by its state and its error, so
/// that has one then. No attempt has failed, and the next answer ends it.
fn says_unusable(draft: &mut Draft<'_>, reach: &Reach) {
    if draft.state != State::Available {
        return;
    }
    if draft.session().is_some() {
        // The ramdisk that is here can be given an image.
        if draft.failed_at().is_none() {
            draft.forget(ErrorType::PowerManagement);
        }
        return;
    }
    let reasons = [WaitReason::Bmc, WaitReason::PoweringOff, WaitReason::PoweringOn];
    let late = reasons
        .into_iter()
        .find(|reason| draft.waited(*reason, ramdisk::BOOT_DEADLINE));
    let since = late.and_then(|reason| draft.waiting_since(reason));
    // Any error does; and this one stays as it was told first, though each question may fail otherwise.
    let is_told = draft.status.error_type.is_some();
    let Some(since) = since.filter(|_| !is_told && ramdisk::may_return_until(draft).is_none()) else {
        return;
    };
    let bmc = draft.host.spec.bmc.as_ref();
    let address = access::shown(bmc.map_or("", |bmc| bmc.address.as_str()));
    let why = says_no_power(draft, reach);
    let message = bounded(&and_next(
        &conditions::since(&format!("BMC {address}: {}", clause(&why)), since),
        "retrying every minute; the host can be used again once the BMC answers",
    ));
    draft.set_error(ErrorType::PowerManagement, &message);
    draft.warn("PowerManagementError", message);
}

/// All is as it should be.
fn settle(draft: &mut Draft<'_>) {
    draft.forget(ErrorType::PowerManagement);
    draft.status.error_count = 0;
    // The job by which the ramdisk left, or what remained of one.
    jobs::tidy(draft);
    let read = draft.seen.bmc.power.map_or(draft.now, |reading| reading.at);
    draft.watch_power(read, holds(draft));
}

/// How long what the BMC said of the power counts.
fn holds(draft: &Draft<'_>) -> SignedDuration {
    let on = |reading: PowerReading| reading.power == Power::On;
    match draft.seen.bmc.power.is_some_and(on) && draft.session().is_some() {
        true => SEEN_ON,
        false => ASK_AGAIN,
    }
}

/// The power as it is now; none: that is asked for, or cannot be told.
pub(super) fn current(draft: &mut Draft<'_>) -> Option<Power> {
    let reading = draft.seen.bmc.power;
    let changing = draft
        .waiting_since(WaitReason::PoweringOff)
        .or(draft.waiting_since(WaitReason::PoweringOn));
    let holds = holds(draft);
    let every = changing.map_or(holds, |_| SignedDuration::try_from(LOOK).unwrap_or(ASK_AGAIN));
    if is_unknown(draft) {
        draft.keep_wait();
        let last = draft.seen.bmc.unread.as_ref().map(|failure| failure.at);
        let last = last.max(reading.map(|reading| reading.at)).unwrap_or(draft.now);
        let due = last.checked_add(ASK_AGAIN).unwrap_or(draft.now);
        if draft.has_paused(last, ASK_AGAIN) {
            draft.call(BmcCall::ReadPower);
        }
        draft.again_at(due.max(draft.now));
        draft.why("the power state is unknown");
        return None;
    }
    let age = reading.map(|reading| draft.now.duration_since(reading.at));
    match reading.filter(|_| age.is_some_and(|age| !age.is_negative() && age < holds)) {
        Some(reading) => {
            if age.is_some_and(|age| age >= every) {
                draft.call(BmcCall::ReadPower);
            }
            Some(reading.power)
        }
        None => {
            draft.keep_wait();
            draft.call(BmcCall::ReadPower);
            draft.again(LOOK);
            draft.why("reads the power state");
            None
        }
    }
}

/// Why the power is unknown; none: it was not asked for yet.
pub(super) fn unknown_power(draft: &Draft<'_>) -> Option<String> {
    let bmc = &draft.seen.bmc;
    match (&bmc.unread, bmc.power) {
        (Some(failure), _) => Some(failure.message.clone()),
        (None, Some(reading)) if reading.power == Power::Unknown => {
            Some("it reports neither on nor off".to_owned())
        }
        _ => None,
    }
}

/// True if the power is unknown: then the machine cannot be managed, and the draft says why. False also if it was not asked for yet.
pub(super) fn is_unknown(draft: &mut Draft<'_>) -> bool {
    let Some(why) = unknown_power(draft) else {
        return false;
    };
    draft.powerless = Some(unknown_because(&why));
    true
}

/// That the BMC does not tell the power, because of `why`.
pub(super) fn unknown_because(why: &str) -> String {
    format!("{UNKNOWN}: {why}")
}

const UNKNOWN: &str = "the BMC does not report the power state";

/// That the BMC does not tell the power, and why.
pub(super) fn says_no_power(draft: &Draft<'_>, reach: &Reach) -> String {
    match (reach, unknown_power(draft)) {
        (Reach::Silent(failure), _) => format!("the BMC does not answer: {}", failure.message),
        (_, Some(why)) => unknown_because(&why),
        (_, None) => UNKNOWN.to_owned(),
    }
}

/// The time of which the last answer speaks: a deadline is over when the machine was seen after it, not when somebody looks.
fn seen_at(draft: &Draft<'_>) -> Timestamp {
    draft.seen.bmc.power.map_or(draft.now, |reading| reading.at)
}

/// The operation `what` that began when the host began to wait for `reason`, and when that was.
pub(super) fn operation(draft: &Draft<'_>, reason: WaitReason, what: &str) -> (String, Timestamp) {
    let since = whole_seconds(draft.waiting_since(reason).unwrap_or(draft.now)).0;
    let id = jobs::operation(draft.uid(), what, Some(since.as_second()), draft.old.error_count);
    (id, since)
}

pub(super) fn tried<'a>(draft: &Draft<'a>, operation: &str) -> Option<&'a Tried> {
    let tried = draft.seen.tried.as_ref();
    tried.filter(|tried| tried.operation == operation)
}

/// Gives the order that a BMC had no time for at `at`, a while after that.
fn order_again(draft: &mut Draft<'_>, operation: &str, how: PowerOrder, at: Timestamp) {
    if ramdisk::is_due(draft, at) {
        order(draft, operation, how);
    }
    draft.again(LOOK_AGAIN);
}

/// True if the operating system, which the BMC failed to ask at `last`, is asked once more, as it has been since `since`: it loses what it
/// has not written yet if it did not hear. A BMC that says it cannot do this at all is not asked twice; any other error may be gone in a
/// moment.
fn is_asked_again(draft: &Draft<'_>, failure: &Failure, since: Timestamp, last: Timestamp) -> bool {
    failure.class != FailureClass::Unsupported && has_time(draft, since, last, SOFT_OFF_ASKING)
}

/// True if what failed at `last` is tried once more, as it has been since `since`: for as long as `limit`, and once after that where nobody
/// tried for a while.
fn has_time(draft: &Draft<'_>, since: Timestamp, last: Timestamp, limit: SignedDuration) -> bool {
    let was_in_time = last.duration_since(since) < limit;
    seen_at(draft).duration_since(since) < limit || (was_in_time && draft.has_paused(last, UNASKED))
}

fn order(draft: &mut Draft<'_>, operation: &str, order: PowerOrder) {
    draft.call(BmcCall::Power {
        operation: operation.to_owned(),
        order,
    });
    draft.again(LOOK);
}

/// True if an operating system may run that is to be asked first, before the order `hard` that does not ask.
fn is_gentle(draft: &Draft<'_>, wish: Wish, hard: &str) -> bool {
    let may_run =
        draft.state.is_provisioned() || (draft.state == State::Available && draft.session().is_none());
    may_run && !wish.hard && tried(draft, hard).is_none()
}

/// Says that the machine goes off or on, and why its BMC, which is asked again, has not seen to that. Its deadlines hang on the `reason`.
fn says_going(draft: &mut Draft<'_>, reason: WaitReason, wish: Wish, why: Option<&str>) {
    let boots = match draft.state {
        State::Available => "it boots the ramdisk and is ready for an image",
        _ => "it boots and its power is managed",
    };
    let stays = format!("it {}", stays_off(draft));
    let (what, then) = match draft.state {
        _ if reason == WaitReason::PoweringOn => ("on", boots),
        _ if draft.host.spec.disable_power_off == Some(true) => ("reset", boots),
        State::PoweringOffBeforeDelete => ("off", "the host is deleted"),
        State::Deprovisioning if draft.is_being_deleted() => ("off", "the host is deleted"),
        State::Deprovisioning => ("off", "the host is available"),
        _ if draft.host.spec.online && !wish.stay_off => ("off", "it is powered on again"),
        _ => ("off", stays.as_str()),
    };
    let waits = format!("waits for the machine to be {what}");
    let message = match why.map(clause) {
        Some(why) => format!(
            "{waits}, but its BMC fails ({why}); next: retrying at least every minute, and then {then}"
        ),
        None => format!("{waits}; next: {then}"),
    };
    draft.wait_for(reason, message);
}

/// That something stays off, and who wants that.
pub(super) fn stays_off(draft: &Draft<'_>) -> String {
    let names: Vec<&str> = holding_off(draft).collect();
    match names.as_slice() {
        _ if !draft.host.spec.online => "stays off, because spec.online is false".to_owned(),
        [] => "stays off".to_owned(),
        [name] => format!("stays off until {name} is removed"),
        names => format!("stays off until {} are removed", names.join(" and ")),
    }
}

/// Why the BMC did not do what it was last told for `operation`; none: it did, was told nothing yet, or cannot do that at all, so that it is
/// told something else.
fn failing<'a>(draft: &Draft<'a>, operation: &str) -> Option<&'a str> {
    let tried = draft.seen.tried.as_ref()?;
    let step = tried.operation.strip_prefix(operation)?;
    let failure = tried.result.as_ref().err()?;
    // That one which is shutting down is not told so once more is no failure.
    let is_repeat = (1..SOFT_OFFS).any(|times| tried.operation == soft_off(operation, times));
    let is_its = step.is_empty() || (step.starts_with('-') && !is_repeat);
    let is_told_again = failure.class != FailureClass::Unsupported;
    (is_its && is_told_again).then_some(failure.message.as_str())
}

/// What it is called that the system is asked to shut down for `operation`, after it was so many times.
fn soft_off(operation: &str, times: i32) -> String {
    format!("{operation}-soft-{times}")
}

/// Softly first where an operating system may listen, hard after a failure, after a while, or where somebody said so.
pub(super) fn switch_off(draft: &mut Draft<'_>, wish: Wish) {
    draft.forget(ErrorType::PowerManagement);
    let (id, since) = operation(draft, WaitReason::PoweringOff, "off");
    let begun = draft.waiting_since(WaitReason::PoweringOff).is_none();
    let gentle = is_gentle(draft, wish, &id) && draft.old.error_count == 0;
    let why = failing(draft, &id);
    says_going(draft, WaitReason::PoweringOff, wish, why);
    if begun {
        draft.tell("PowerOff", "powering off the machine");
    }
    if gentle {
        let within = |from: Timestamp, patience| seen_at(draft).duration_since(from) < patience;
        let asked = (0..SOFT_OFFS).find_map(|times| Some((times, tried(draft, &soft_off(&id, times))?)));
        match asked.map(|(times, tried)| (times, tried.at, &tried.result)) {
            None if within(since, SOFT_OFF) => return order(draft, &soft_off(&id, 0), PowerOrder::SoftOff),
            Some((0, at, Err(failure))) if is_asked_again(draft, failure, since, at) => {
                return order_again(draft, &soft_off(&id, 0), PowerOrder::SoftOff, at);
            }
            Some((0, _, Err(_))) => {}
            // That it is refused once more tells nothing.
            Some((_, at, _)) if within(at, SOFT_OFF_AGAIN) => return draft.again(LOOK),
            // One that was just booting has not heard it.
            Some((times, ..)) if times + 1 < SOFT_OFFS => {
                return order(draft, &soft_off(&id, times + 1), PowerOrder::SoftOff);
            }
            // It cannot do it softly, did not, or nobody remembers: hard.
            None | Some(_) => {}
        }
    }
    switch(draft, &id, since, PowerOrder::HardOff, "off");
}

fn switch_on(draft: &mut Draft<'_>) {
    draft.forget(ErrorType::PowerManagement);
    let (id, since) = operation(draft, WaitReason::PoweringOn, "on");
    let begun = draft.waiting_since(WaitReason::PoweringOn).is_none();
    let why = failing(draft, &id);
    says_going(draft, WaitReason::PoweringOn, Wish::default(), why);
    if begun {
        draft.tell("PowerOn", "powering on the machine");
    }
    if draft.state == State::Available && tried(draft, &id).is_none() && !arms(draft, &id, since) {
        return;
    }
    switch(draft, &id, since, PowerOrder::On, "on");
}

/// An available machine boots its ramdisk and not what a former owner left; one whose BMC cannot arm that boots what it boots. False: the
/// BMC failed to, and is asked again in a while of the time since `since`.
fn arms(draft: &mut Draft<'_>, operation: &str, since: Timestamp) -> bool {
    let id = ramdisk::boot_of(operation);
    match tried(draft, &id).map(|tried| (tried.at, &tried.result)) {
        None => ramdisk::arm(draft, &id),
        Some((at, Err(failure)))
            if failure.class != FailureClass::Unsupported && has_time(draft, since, at, ARMING) =>
        {
            if !ramdisk::is_due(draft, at) {
                draft.again(LOOK_AGAIN);
                return false;
            }
            ramdisk::arm(draft, &id);
        }
        Some(_) => {}
    }
    true
}

/// Gives the order once, and looks until it shows. One that the BMC has had no time for since `since` has failed after a while.
fn switch(draft: &mut Draft<'_>, id: &str, since: Timestamp, how: PowerOrder, what: &str) {
    match tried(draft, id) {
        None => order(draft, id, how),
        Some(tried) => match &tried.result {
            Ok(()) if seen_at(draft).duration_since(tried.at) < SWITCHING => draft.again(LOOK),
            Ok(()) => {
                let seconds = SWITCHING.as_secs();
                draft.fail(
                    ErrorType::PowerManagement,
                    format!("the machine is not {what} {seconds} s after the BMC accepted the request"),
                );
            }
            Err(failure) if failure.class == FailureClass::Busy && has_time(draft, since, tried.at, BUSY) => {
                order_again(draft, id, how, tried.at);
            }
            Err(failure) => {
                let message = format!("the machine could not be powered {what}: {}", failure.message);
                draft.fail(ErrorType::PowerManagement, message);
            }
        },
    }
}

/// A machine that must not be off, but on again: once.
fn restart(draft: &mut Draft<'_>, wish: Wish) {
    draft.forget(ErrorType::PowerManagement);
    if !wish.once {
        stay_on(draft);
        draft.again(Duration::try_from(ASK_AGAIN).unwrap_or_default());
        return;
    }
    let (id, since) = operation(draft, WaitReason::PoweringOff, "reset");
    let why = failing(draft, &id);
    says_going(draft, WaitReason::PoweringOff, wish, why);
    let soft = format!("{id}-soft");
    // Whether it went down and came back, the power does not show.
    let is_done = |id| tried(draft, id).is_some_and(|tried| tried.result.is_ok());
    if is_done(&id) || (is_done(&soft) && !wish.hard) {
        settle(draft);
        rebooted(draft);
        // Until the annotation is gone, or it would be another operation.
        draft.keep_wait();
        draft.status.error_count = draft.old.error_count;
        draft.why("the machine was told to restart, as requested");
        return;
    }
    // One whose boot was armed is to boot that.
    let is_armed = tried(draft, &ramdisk::boot_of(&id)).is_some();
    if is_gentle(draft, wish, &id) && !is_armed && draft.old.error_count < SOFT_RESETS {
        match tried(draft, &soft).map(|tried| (tried.at, &tried.result)) {
            None => return order(draft, &soft, PowerOrder::SoftReset),
            Some((_, Err(failure))) if failure.class == FailureClass::Unsupported => {}
            // Of any other failure nobody knows whether it was heard: to ask again at once may be one reboot too many.
            Some((at, Err(failure))) if failure.class == FailureClass::Busy => {
                if is_asked_again(draft, failure, since, at) {
                    return order_again(draft, &soft, PowerOrder::SoftReset, at);
                }
            }
            Some((_, Err(failure))) => {
                let message = format!("the machine could not be told to restart: {}", failure.message);
                return draft.fail(ErrorType::PowerManagement, message);
            }
            Some((_, Ok(()))) => {}
        }
    }
    if draft.state == State::Available && tried(draft, &id).is_none() && !arms(draft, &id, since) {
        return;
    }
    switch(draft, &id, since, PowerOrder::Reset, "off and on");
}

/// It is to be off, and must not be.
pub(super) fn stay_on(draft: &mut Draft<'_>) {
    let refused = format!(
        "{} for the host to be off, but spec.disablePowerOff forbids it",
        who_asks(draft)
    );
    if draft.waiting_since(WaitReason::Refused).is_none() {
        draft.warn("PowerManagementError", refused.clone());
    }
    draft.wait_for(
        WaitReason::Refused,
        format!("{refused}; next: continues once the request is removed or power off is allowed"),
    );
}

/// Says who holds a machine off that would be on without that. It is as it is to be, and nothing is done before somebody takes that back.
pub(super) fn says_held_off(draft: &mut Draft<'_>, wish: Wish) {
    if draft.status.powered_on || !wish.stay_off || !draft.host.spec.online {
        return;
    }
    let asks = who_asks(draft);
    let those = match holding_off(draft).nth(1) {
        Some(_) => "those annotations are",
        None => "that annotation is",
    };
    draft.wait_beside(
        WaitReason::HeldOff,
        format!("{asks} for the host to be off; next: it is powered on once {those} removed"),
    );
}

/// The annotations that hold the machine off.
fn holding_off<'a>(draft: &Draft<'a>) -> impl Iterator<Item = &'a str> + use<'a> {
    reboot::staying_off(draft.host, !draft.state.is_provisioned())
}

/// What asks for the host to be off.
fn who_asks(draft: &Draft<'_>) -> String {
    let mut all: Vec<String> = holding_off(draft)
        .map(|name| format!("the annotation {name}"))
        .collect();
    if !draft.host.spec.online {
        all.insert(0, "spec.online".to_owned());
    }
    let verb = if all.len() > 1 { "ask" } else { "asks" };
    format!("{} {verb}", all.join(" and "))
}

/// The reboot that is asked for once is not asked for any more, if it was.
pub(super) fn rebooted(draft: &mut Draft<'_>) {
    let asked = draft.annotation(REBOOT_ANNOTATION).is_some();
    let removed = &mut draft.metadata.remove_annotations;
    if asked && !removed.iter().any(|name| name == REBOOT_ANNOTATION) {
        removed.push(REBOOT_ANNOTATION.to_owned());
    }
}
