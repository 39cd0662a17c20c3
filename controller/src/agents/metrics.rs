//! What the agents' side counts.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// How an enrolment went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum EnrolOutcome {
    /// A session began.
    Accepted,
    /// The same token and key once more.
    Retried,
    /// The token has ended, or has not begun.
    Expired,
    /// The token is not ours, or its Segment is gone.
    Forged,
    /// The token was spent with another key.
    Reused,
    /// The segment, or one machine's enrolments, are at their limit, or one token is shown too often.
    Quota,
    /// Nobody has described the machine, and its Segment ignores such ones.
    Unwanted,
    /// The request itself is wrong.
    Malformed,
    /// The API server did not answer.
    Unavailable,
}

/// What became of an inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum InventoryOutcome {
    /// Written.
    Stored,
    /// Equal to what was stored.
    Unchanged,
    /// Not taken.
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Enrolled {
    pub(super) outcome: EnrolOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Inventoried {
    pub(super) outcome: InventoryOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Call {
    pub(super) call: &'static str,
}

/// The metrics, cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    enrolments: Family<Enrolled, Counter>,
    inventories: Family<Inventoried, Counter>,
    durations: Family<Call, Histogram, fn() -> Histogram>,
    /// Agents that poll here.
    pub(super) sessions: Gauge,
    /// Polls that are held.
    pub(super) polls: Gauge,
    /// Connections that were turned away because too many are open.
    pub(super) turned_away: Counter,
}

impl Metrics {
    /// Registers them on `registry`.
    pub fn register(registry: &mut Registry) -> Arc<Metrics> {
        // A held poll is no work: it is not measured. The rest is milliseconds, or the API server's timeout.
        let buckets = || Histogram::new([0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]);
        let metrics = Metrics {
            enrolments: Family::default(),
            inventories: Family::default(),
            durations: Family::new_with_constructor(buckets),
            sessions: Gauge::default(),
            polls: Gauge::default(),
            turned_away: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("muster_agents");
        registry.register("enrolments", "Enrolments by outcome", metrics.enrolments.clone());
        registry.register(
            "inventories",
            "Inventories by outcome",
            metrics.inventories.clone(),
        );
        registry.register(
            "request_seconds",
            "Time to answer a call, excluding polls",
            metrics.durations.clone(),
        );
        registry.register(
            "sessions",
            "Agents that poll this replica",
            metrics.sessions.clone(),
        );
        registry.register("held_polls", "Polls that wait for a job", metrics.polls.clone());
        registry.register(
            "turned_away",
            "Connections refused because too many are open",
            metrics.turned_away.clone(),
        );
        Arc::new(metrics)
    }

    pub(super) fn enrolment(&self, outcome: EnrolOutcome) {
        self.enrolments.get_or_create(&Enrolled { outcome }).inc();
    }

    pub(super) fn inventory(&self, outcome: InventoryOutcome) {
        self.inventories.get_or_create(&Inventoried { outcome }).inc();
    }

    pub(super) fn took(&self, call: &'static str, seconds: f64) {
        self.durations.get_or_create(&Call { call }).observe(seconds);
    }
}
