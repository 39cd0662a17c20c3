//! What a written status means to the metrics: each happening counts once, when it is told, and not with every round that finds it so.
//! Pure but for the counters.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use muster_proto::kinds::{BareMetalHost, ErrorType, OperationHistory, OperationMetric, OperationalStatus};

use super::{
    State, WaitReason, access, conditions,
    draft::{bounded, clause, event_reason},
    metrics::{Metrics, Operation, Plain},
    observed::{Bmc, FailureClass, Observed, Probed, SecretState},
    secrets,
};
use crate::{events::Event, path::Path};

type Pick = fn(&OperationHistory) -> Option<&OperationMetric>;

const OPERATIONS: [(Operation, Pick); 4] = [
    (Operation::Register, |history| history.register.as_ref()),
    (Operation::Inspect, |history| history.inspect.as_ref()),
    (Operation::Provision, |history| history.provision.as_ref()),
    (Operation::Deprovision, |history| history.deprovision.as_ref()),
];

/// The status of a host was written, as it was decided by what was `seen`, and `events` are told of it.
pub(super) fn status_written(
    metrics: &Metrics,
    before: &BareMetalHost,
    after: &BareMetalHost,
    seen: &Observed,
    events: &[Event],
) {
    let told = |reason: &str| events.iter().any(|event| event.reason == reason);
    let host = Path::of(after);
    deletion(metrics, before, after, told("NotCleaned"));
    credentials(metrics, before, after, seen, told("BMCAccessValidated"));
    inputs(metrics, before, after);
    let [prev, new] = [State::of(before), State::of(after)];
    if prev != new {
        metrics.changed(prev.name(), new.name());
        match new {
            State::Registering => metrics.count(Plain::RegistrationRequired),
            State::Unmanaged => metrics.count(Plain::Unmanaged),
            _ => {}
        }
    }
    let is_delayed = |host: &BareMetalHost| {
        let status = host.status.as_ref();
        status.is_some_and(|status| status.operational_status == OperationalStatus::Delayed)
    };
    if is_delayed(after) && !is_delayed(before) {
        match new {
            State::Deprovisioning => metrics.deprovisioning_delayed(&host),
            _ => metrics.provisioning_delayed(&host),
        }
    }
    let error = |host: &BareMetalHost| {
        let status = host.status.as_ref();
        status.and_then(|status| Some((status.error_type?, status.error_count)))
    };
    if let Some((error_type, _)) = error(after).filter(|now| Some(*now) != error(before)) {
        // As upstream has it: the reason of the Event.
        metrics.error(event_reason(error_type));
    }
    for (which, pick) in OPERATIONS {
        let ended = |host: &BareMetalHost| {
            let history = host.status.as_ref()?.operation_history.as_ref()?;
            let metric = pick(history)?;
            Some((metric.start.as_ref()?.0, metric.end.as_ref()?.0))
        };
        if let Some((start, end)) = ended(after).filter(|now| Some(*now) != ended(before)) {
            metrics.took(
                which,
                &host,
                Duration::try_from(end.duration_since(start)).unwrap_or_default(),
            );
        }
    }
}

fn condition<'a>(host: &'a BareMetalHost, kind: &str) -> Option<&'a Condition> {
    let conditions = &host.status.as_ref()?.conditions;
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn wait_reason(host: &BareMetalHost) -> Option<WaitReason> {
    conditions::wait_reason(host.status.as_ref()?)
}

/// What the host waits for, in words and since when.
fn waits(host: &BareMetalHost) -> Option<&str> {
    conditions::waiting(host.status.as_ref()?).map(|condition| condition.message.as_str())
}

/// The type and words of its error.
fn error(host: &BareMetalHost) -> Option<(ErrorType, &str)> {
    let status = host.status.as_ref()?;
    Some((status.error_type?, &status.error_message))
}

/// What was left out on the way out.
fn deletion(metrics: &Metrics, before: &BareMetalHost, after: &BareMetalHost, uncleaned: bool) {
    if after.metadata.deletion_timestamp.is_none() {
        return;
    }
    let [prev, new] = [State::of(before), State::of(after)];
    let ran = matches!(
        prev,
        State::Provisioning | State::Provisioned | State::Deprovisioning
    );
    let gone = new == State::Deleting && prev != new;
    if ran && prev != new && (gone || uncleaned) {
        metrics.count(Plain::DeletedWithoutDeprovisioning);
    }
    let young = matches!(prev, State::New | State::Unmanaged | State::Registering);
    let on = after.status.as_ref().is_some_and(|status| status.powered_on);
    if gone && !young && (on || prev != State::PoweringOffBeforeDelete) {
        metrics.count(Plain::DeletedWithoutPoweringOff);
    }
    let detached = wait_reason(after) == Some(WaitReason::Detached);
    if detached && waits(before) != waits(after) {
        metrics.count(Plain::DeleteDelayedForDetached);
    }
}

/// What is wrong with the way into the BMC.
fn credentials(
    metrics: &Metrics,
    before: &BareMetalHost,
    after: &BareMetalHost,
    seen: &Observed,
    updated: bool,
) {
    let status = before.status.as_ref();
    let had_others = status.is_some_and(|status| status.good_credentials.is_some());
    if updated && had_others {
        metrics.count(Plain::CredentialsUpdated);
    }
    let registration = error(after).filter(|(kind, _)| *kind == ErrorType::Registration);
    let failed = registration.is_some() && error(before) != registration;
    match &seen.secrets.bmc.state {
        SecretState::Missing if failed => metrics.count(Plain::CredentialsMissing),
        SecretState::Invalid(_) if failed => metrics.count(Plain::CredentialsInvalid),
        SecretState::Unreadable(_) if waits(after).is_some() && waits(before) != waits(after) => {
            metrics.count(Plain::CredentialsUnhandled);
        }
        SecretState::Present { .. } if failed && is_shut_out(after, &seen.bmc) => {
            metrics.count(Plain::NoManagementAccess);
        }
        _ => {}
    }
    let powerless =
        |host| condition(host, "Manageable").is_some_and(|one| one.reason == conditions::POWER_FAILURE);
    if powerless(after) && !powerless(before) {
        metrics.count(Plain::ProvisionerNotReady);
    }
}

/// True if `host` is told that its `bmc` did not let us in. That the host says of it what cannot be, or what another host says, too, is none
/// of the BMC's doing.
fn is_shut_out(host: &BareMetalHost, bmc: &Bmc) -> bool {
    let Some(Probed {
        access: asked,
        result: Err(failure),
        ..
    }) = &bmc.probed
    else {
        return false;
    };
    let words = bounded(clause(&access::words_of(&asked.address, failure)));
    failure.class != FailureClass::Address
        && error(host).is_some_and(|(_, told)| told.starts_with(words.as_str()))
}

/// What is wrong with the Secrets of the config drive, where an image waits for them.
fn inputs(metrics: &Metrics, before: &BareMetalHost, after: &BareMetalHost) {
    for (purpose, name) in secrets::named(after).filter(|(purpose, _)| purpose.is_input()) {
        let called = secrets::called(purpose, name);
        if lacks(after, &called) && !lacks(before, &called) {
            metrics.data_error(purpose.content().name());
        }
    }
}

/// True if `host` tells that something is wrong with what is `called` so, and not that something was when it was tried before.
fn lacks(host: &BareMetalHost, called: &str) -> bool {
    let is_wrong = matches!(wait_reason(host), Some(WaitReason::Inputs | WaitReason::Refused));
    is_wrong && waits(host).is_some_and(|message| message.contains(called))
        || error(host).is_some_and(|(_, message)| message.contains(called))
}
