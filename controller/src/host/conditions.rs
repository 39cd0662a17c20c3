//! The conditions of a host: upstream's types and reasons, with messages, and one of ours that says what it waits for. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use muster_proto::kinds::{BareMetalHostStatus, ErrorType, OperationalStatus};

use super::{State, WaitReason, draft::Wait, slot_state::waits_for_slot, state::unknown};
use crate::bmc::Health;
use crate::time::whole_seconds;

/// Upstream's condition.
const MANAGEABLE: &str = "Manageable";

/// Reason of `Manageable` where a BMC that was registered is not to be reached.
pub(super) const POWER_FAILURE: &str = "PowerFailure";

/// The same where a BMC, or what the host says of it, does not let us in.
pub(super) const REGISTRATION_FAILED: &str = "RegistrationFailed";

/// All its reasons while it is false.
const UNMANAGEABLE: [&str; 4] = [POWER_FAILURE, REGISTRATION_FAILED, REGISTERING, NOT_MANAGED];
const REGISTERING: &str = "Registering";
const NOT_MANAGED: &str = "NotManaged";

/// Why a machine cannot be managed: reason and message of `Manageable`.
pub(super) type Barred = (&'static str, String);

/// The same as `status` has it, which counts until the machine is reached.
pub(super) fn barred(status: &BareMetalHostStatus) -> Option<Barred> {
    let is_it = |one: &&Condition| one.type_ == MANAGEABLE && one.status == "False";
    let before = status.conditions.iter().find(is_it)?;
    let reason = UNMANAGEABLE.into_iter().find(|reason| *reason == before.reason)?;
    Some((reason, before.message.clone()))
}

/// Our condition: true while the Secret with the BMC's credentials is being deleted and held; the message says what helps.
pub(super) const SECRET_HELD: &str = "SecretHeld";

/// What the host says of its BMC's Secret that is being deleted.
pub(super) fn secret_held(status: &BareMetalHostStatus) -> Option<&str> {
    let held = status.conditions.iter().find(|one| one.type_ == SECRET_HELD);
    held.map(|held| held.message.as_str())
}

/// Brings [`SECRET_HELD`] up to date with what is to be said of that. True if it was not said before.
pub(super) fn set_secret_held(status: &mut BareMetalHostStatus, says: Option<&str>, now: Timestamp) -> bool {
    let is_new = says.is_some() && secret_held(status) != says;
    match says {
        Some(says) => put(
            &mut status.conditions,
            fact(SECRET_HELD, Ok("Deleted"), says),
            None,
            None,
            now,
        ),
        None => status.conditions.retain(|one| one.type_ != SECRET_HELD),
    }
    is_new
}

/// Our condition: true while the host waits for something; the message says for what, since when, and what happens next.
pub const WAITING: &str = "Waiting";

const HEALTHY: &str = "Healthy";

/// What `Ready` and `Progressing` say of a host that is out of our hands: an error of before is not what stands in the way.
const DETACHED: &str = "the host is detached";

/// Upstream's condition. Its `observedGeneration` is ours: that of the object when the attempt began that is under way.
pub const PROGRESSING: &str = "Progressing";

/// Our condition: true from when an image could not be written until one is, or another is asked for. Its `observedGeneration` is that of
/// the object when the attempt began that failed.
pub const FAILED: &str = "ProvisioningFailed";

fn failure(status: &BareMetalHostStatus) -> Option<&Condition> {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == FAILED)
}

/// What stands in the message of [`FAILED`] before and behind the number.
const ATTEMPT: [&str; 2] = ["attempt ", " failed: "];

/// The number of failures of an image that is still asked for, and why the last one failed.
fn told(status: &BareMetalHostStatus) -> Option<(i64, &str)> {
    let [before, behind] = ATTEMPT;
    let (count, why) = failure(status)?
        .message
        .strip_prefix(before)?
        .split_once(behind)?;
    Some((count.parse().ok()?, why))
}

/// How often an image that is still asked for could not be written. Older versions of upstream's kind do not know its field, and their API
/// servers keep only the condition.
pub(super) fn failures(status: &BareMetalHostStatus) -> i64 {
    status
        .provisioning_fail_count
        .max(told(status).map_or(0, |(count, _)| count))
}

/// Why it could not be written the last time.
pub(super) fn why_failed(status: &BareMetalHostStatus) -> Option<&str> {
    told(status).map(|(_, why)| why)
}

/// The generation of the object for which an image that is still asked for could not be written.
pub(super) fn failed_for(status: &BareMetalHostStatus) -> Option<i64> {
    failure(status)?.observed_generation
}

/// The generation of the object for which that is being done which a host with this status is in the middle of; none: it is in the middle
/// of nothing, or waits for another attempt, or for somebody to change what it is to be.
pub(super) fn tried_for(status: &BareMetalHostStatus) -> Option<i64> {
    let pauses = wait_reason(status).is_some_and(|reason| {
        matches!(reason, WaitReason::Retry | WaitReason::Inputs) || reason.is_left_to_a_person()
    });
    let is_under_way = |one: &&Condition| one.status == "True" && !pauses;
    progressing(status).filter(is_under_way)?.observed_generation
}

fn progressing(status: &BareMetalHostStatus) -> Option<&Condition> {
    status.conditions.iter().find(|one| one.type_ == PROGRESSING)
}

/// What failed for the spec of an object that was moved here failed for that of this one, in its `generation`.
pub(super) fn moved_to(status: &mut BareMetalHostStatus, generation: Option<i64>) {
    for condition in &mut status.conditions {
        if condition.observed_generation.is_some() {
            condition.observed_generation = generation;
        }
    }
}

/// Brings [`FAILED`] up to date with the count of failures, which was `before`.
fn set_failure(status: &mut BareMetalHostStatus, before: i64, generation: Option<i64>, now: Timestamp) {
    let count = status.provisioning_fail_count;
    if count == 0 {
        status.conditions.retain(|condition| condition.type_ != FAILED);
    } else if count > before || failure(status).is_none() {
        let why = match status.error_message.as_str() {
            "" => "see the events",
            why => why,
        };
        let [before, behind] = ATTEMPT;
        let wanted = fact(FAILED, Ok("Failed"), &format!("{before}{count}{behind}{why}"));
        put(
            &mut status.conditions,
            wanted,
            Some(whole_seconds(now)),
            generation,
            now,
        );
    }
}

/// What stands between the message and the time.
const SINCE: &str = " (since ";

/// The message of a condition [`WAITING`] without the time that stands behind it.
pub(super) fn without_time(message: &str) -> &str {
    message
        .rfind(SINCE)
        .map_or(message, |at| message.get(..at).unwrap_or(message))
}

/// What a host waits for that nobody manages.
pub const MANAGE: &str = "waits for a way to manage the machine: set spec.bmc, or annotate the host with muster.dev/in-band=KEY, \
    where KEY is shown on the machine's console and in status.session.key of its Server, if it has one; next: the host is registered";

/// The same where no Server points at the host: no session is known whose key could be named.
pub(super) const MANAGE_UNKNOWN: &str = "waits for a way to manage the machine, for which no Server is known: set spec.bmc, or annotate the \
    host with muster.dev/in-band=KEY, with any KEY, boot the machine, then set KEY to the one that its console shows; \
    next: the host is registered";

/// What it means that a Server is contested.
pub const CONTESTED: &str = "two clients presented this machine's one-time boot token, so something else on its segment may have read it; its session has been revoked";

/// What ends that.
pub const ENROLS_AGAIN: &str =
    "look for a foreign device on the segment, then reboot the machine: it gets a new token";

/// `message` with the time from when on it is so.
pub fn since(message: &str, at: Timestamp) -> String {
    format!("{message}{SINCE}{})", whole_seconds(at).0)
}

/// True if `status` asks a person to act, who is to be told at once.
pub fn asks_a_person(status: &BareMetalHostStatus) -> bool {
    wait_reason(status).is_some_and(WaitReason::needs_person)
}

/// What a host with this status waits for.
pub(super) fn waiting(status: &BareMetalHostStatus) -> Option<&Condition> {
    let waits = |condition: &&Condition| condition.type_ == WAITING && condition.status == "True";
    status.conditions.iter().find(waits)
}

/// The reason of that; none also if this version does not know it.
pub(super) fn wait_reason(status: &BareMetalHostStatus) -> Option<WaitReason> {
    WaitReason::parse(&waiting(status)?.reason)
}

/// One condition as it should be.
struct Fact {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn fact(type_: &'static str, reason: Result<&'static str, &'static str>, message: &str) -> Fact {
    let (status, reason) = match reason {
        Ok(reason) => ("True", reason),
        Err(reason) => ("False", reason),
    };
    Fact {
        type_,
        status,
        reason,
        message: message.to_owned(),
    }
}

/// Brings the conditions of `status` up to date with the rest of it, which is that of an object in this `generation` with this many
/// `failures` before, and whose machine is `barred`; those of other types stay.
pub(super) fn set(
    status: &mut BareMetalHostStatus,
    wait: Option<&Wait>,
    barred: Option<&Barred>,
    health: Option<Health>,
    (failures, generation): (i64, Option<i64>),
    now: Timestamp,
) {
    let tried_for = tried_for(status).or(generation);
    let before = progressing(status).map(|one| one.reason.clone());
    set_failure(status, failures, tried_for, now);
    let mut facts = upstream(status, barred);
    let goes_on = facts
        .iter()
        .any(|one| one.type_ == PROGRESSING && one.status == "True");
    facts.extend(healthy(status, health));
    facts.push(match wait {
        Some(wait) => Fact {
            type_: WAITING,
            status: "True",
            reason: wait.reason.name(),
            message: since(&wait.message, wait.since),
        },
        None if goes_on => fact(WAITING, Err("UnderWay"), "work is under way; no action is needed"),
        None => fact(WAITING, Err("Nothing"), "there is nothing to do"),
    });
    for wanted in facts {
        let wait = wait.filter(|_| wanted.type_ == WAITING);
        let since = wait.map(|wait| whole_seconds(wait.since));
        let generation = match (wanted.type_, wanted.status) {
            (PROGRESSING, "True") if before.as_deref() == Some(wanted.reason) => tried_for,
            (PROGRESSING, "True") => generation,
            _ => wait.and_then(|wait| wait.generation),
        };
        put(&mut status.conditions, wanted, since, generation, now);
    }
}

/// The same of a host that nobody manages, whose ramdisk runs as far as is known: it waits for somebody to.
pub fn unmanaged(status: &mut BareMetalHostStatus, now: Timestamp) {
    let since = waiting(status)
        .filter(|wait| wait.reason == WaitReason::Management.name())
        .map_or(now, |wait| wait.last_transition_time.0);
    let wait = Wait {
        reason: WaitReason::Management,
        message: MANAGE.to_owned(),
        since,
        generation: None,
    };
    let failures = (status.provisioning_fail_count, None);
    set(status, Some(&wait), None, Some(Health::Unknown), failures, now);
}

fn put(all: &mut Vec<Condition>, wanted: Fact, since: Option<Time>, generation: Option<i64>, now: Timestamp) {
    let old = all.iter_mut().find(|condition| condition.type_ == wanted.type_);
    let same = old
        .as_ref()
        .filter(|old| old.status == wanted.status)
        .map(|old| old.last_transition_time.clone());
    let fresh = Condition {
        type_: wanted.type_.to_owned(),
        status: wanted.status.to_owned(),
        reason: wanted.reason.to_owned(),
        message: wanted.message,
        last_transition_time: since.or(same).unwrap_or_else(|| whole_seconds(now)),
        observed_generation: generation,
    };
    match old {
        Some(old) => *old = fresh,
        None => all.push(fresh),
    }
}

fn upstream(status: &BareMetalHostStatus, barred: Option<&Barred>) -> Vec<Fact> {
    let state = State::parse(&status.provisioning.state);
    let error = status.error_message.as_str();
    let registration = status.error_type == Some(ErrorType::Registration);
    let manageable = match state {
        State::New | State::Unmanaged => fact(MANAGEABLE, Err(NOT_MANAGED), "the host has no BMC"),
        State::Foreign => {
            let why = unknown(&status.provisioning.state);
            fact(MANAGEABLE, Err(NOT_MANAGED), &why)
        }
        _ if registration => fact(MANAGEABLE, Err(REGISTRATION_FAILED), error),
        // One that waits for a slot has been reached.
        State::Registering if !waits_for_slot(status) => fact(MANAGEABLE, Err(REGISTERING), ""),
        _ => match barred {
            Some((reason, message)) => fact(MANAGEABLE, Err(*reason), message),
            None => fact(MANAGEABLE, Ok("Manageable"), ""),
        },
    };
    let provisioned = state.is_provisioned();
    let says = match status.operational_status {
        OperationalStatus::Detached => DETACHED,
        _ => error,
    };
    let ready = match status.operational_status {
        OperationalStatus::Error => Err("Error"),
        OperationalStatus::Servicing => Err("Servicing"),
        OperationalStatus::Detached => Err("Detached"),
        _ if provisioned => Ok("Provisioned"),
        _ => Err("NotProvisioned"),
    };
    let progressing = match state {
        _ if status.operational_status == OperationalStatus::Detached => Err("Detached"),
        State::Registering => Ok("Registering"),
        State::Inspecting => Ok("Inspecting"),
        State::Preparing => Ok("Preparing"),
        State::Provisioning => Ok("Provisioning"),
        State::Deprovisioning => Ok("Deprovisioning"),
        State::PoweringOffBeforeDelete => Ok("PoweringOffBeforeDelete"),
        State::Deleting => Ok("Deleting"),
        _ => Err("NotProgressing"),
    };
    vec![
        manageable,
        fact(
            "AvailableForProvisioning",
            match state {
                State::Available => Ok("Available"),
                _ => Err("NotAvailable"),
            },
            "",
        ),
        fact(
            "Provisioned",
            if provisioned {
                Ok("Provisioned")
            } else {
                Err("NotProvisioned")
            },
            "",
        ),
        fact("Ready", ready, says),
        fact(PROGRESSING, progressing, says),
    ]
}

/// What the BMC said last of the machine's health; none: what stands there, stays.
fn healthy(status: &BareMetalHostStatus, health: Option<Health>) -> Option<Fact> {
    let is_there = status
        .conditions
        .iter()
        .any(|condition| condition.type_ == HEALTHY);
    let (status, reason, message) = match health {
        None if is_there => return None,
        None | Some(Health::Unknown) => ("Unknown", "Unknown", ""),
        Some(Health::Ok) => ("True", "Healthy", ""),
        Some(Health::Warning) => (
            "False",
            "Warning",
            "the BMC reports that the machine needs attention",
        ),
        Some(Health::Critical) => (
            "False",
            "CriticalError",
            "the BMC reports that the machine needs immediate attention",
        ),
    };
    Some(Fact {
        type_: HEALTHY,
        status,
        reason,
        message: message.to_owned(),
    })
}
