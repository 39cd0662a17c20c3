//! What is counted of calls to BMCs.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::BmcError;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    call: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    call: &'static str,
    class: &'static str,
}

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    calls: Family<Call, Counter>,
    failures: Family<Failure, Counter>,
    seconds: Family<Call, Histogram>,
    pub(super) lines: Gauge,
}

impl Metrics {
    /// Registers them as `muster_bmc_…`.
    pub fn register(registry: &mut Registry) -> Arc<Metrics> {
        // A BMC answers in a tenth of a second at best, and old ones in many seconds.
        let buckets = || Histogram::new([0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 90.0]);
        let metrics = Metrics {
            calls: Family::default(),
            failures: Family::default(),
            seconds: Family::new_with_constructor(buckets),
            lines: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("muster_bmc");
        registry.register("calls", "Calls to BMCs", metrics.calls.clone());
        registry.register(
            "failures",
            "Failed calls to BMCs, by what can be done about it, including those refused without a request",
            metrics.failures.clone(),
        );
        registry.register(
            "call_seconds",
            "Duration of calls to BMCs, excluding the time that they were queued",
            metrics.seconds.clone(),
        );
        registry.register("systems", "Systems whose BMCs are known", metrics.lines.clone());
        Arc::new(metrics)
    }

    pub(super) fn took(&self, call: &'static str, time: Duration) {
        self.calls.get_or_create(&Call { call }).inc();
        self.seconds
            .get_or_create(&Call { call })
            .observe(time.as_secs_f64());
    }

    pub(super) fn failed(&self, call: &'static str, error: &BmcError) {
        let class = error.class();
        self.failures.get_or_create(&Failure { call, class }).inc();
    }
}
