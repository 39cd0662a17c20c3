//! What a written status means to the metrics. Pure but for the counters.

use std::time::Duration;

use muster_proto::kinds::{BareMetalHost, OperationHistory, OperationMetric, OperationalStatus};

use super::{
    State,
    metrics::{Metrics, OfHost, Operation},
};

type Pick = fn(&OperationHistory) -> Option<&OperationMetric>;

const OPERATIONS: [(Operation, Pick); 4] = [
    (Operation::Register, |history| history.register.as_ref()),
    (Operation::Inspect, |history| history.inspect.as_ref()),
    (Operation::Provision, |history| history.provision.as_ref()),
    (Operation::Deprovision, |history| history.deprovision.as_ref()),
];

/// The labels of `host`.
pub(super) fn of(host: &BareMetalHost) -> OfHost {
    let meta = &host.metadata;
    OfHost::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// The status of a host was written.
pub(super) fn status_written(metrics: &Metrics, before: &BareMetalHost, after: &BareMetalHost) {
    let host = of(after);
    let [prev, new] = [State::of(before), State::of(after)];
    if prev != new {
        metrics.changed(prev.name(), new.name());
        match new {
            State::Registering => metrics.registration_required(&host),
            State::Unmanaged => metrics.unmanaged(&host),
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
        // As the API has it.
        let words = serde_json::to_value(error_type).ok();
        metrics.error(
            words
                .as_ref()
                .and_then(|words| words.as_str())
                .unwrap_or_default(),
        );
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
