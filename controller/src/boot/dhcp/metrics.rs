//! What DHCP counts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use super::wire::Kind;
use crate::metrics::Registry;

/// The answer of who says nothing, as [`Asked`] has it.
pub(super) const NO_ANSWER: &str = "none";

/// DHCP's metrics; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) requests: Family<Asked, Counter>,
    pub(super) dropped: Family<Dropped, Counter>,
    pub(super) leases: Family<BySegment, Gauge>,
    pub(super) recycled: Family<BySegment, Counter>,
    pub(super) conflicts: Family<BySegment, Counter>,
    pub(super) unprobed: Family<BySegment, Counter>,
    pub(super) intruders: Family<BySegment, Gauge>,
}

/// A request on a segment and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Asked {
    /// `namespace/name`.
    pub(super) segment: String,
    /// The request's message type.
    pub(super) request: &'static str,
    /// The reply's, or [`NO_ANSWER`].
    pub(super) answer: &'static str,
}

/// Why something never came to a segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Dropped {
    /// `malformed`, `stray` (no segment is meant), `reply` (it does not fit) or `send`.
    pub(super) why: &'static str,
}

/// A segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BySegment {
    /// `namespace/name`.
    pub(super) segment: String,
}

impl BySegment {
    pub(super) fn of(key: &str) -> BySegment {
        BySegment {
            segment: key.to_owned(),
        }
    }
}

impl Metrics {
    /// The segment `key` is no longer served: nothing more is told of it, but for what was asked there.
    pub(super) fn forget(&self, key: &str) {
        let segment = BySegment::of(key);
        self.leases.remove(&segment);
        self.intruders.remove(&segment);
        for counted in [&self.recycled, &self.conflicts, &self.unprobed] {
            counted.remove(&segment);
        }
    }

    /// The segment `key` is gone: nothing more is told of what was asked there either. One that is made anew begins at 0, which
    /// Prometheus takes for a reset.
    pub(super) fn forget_requests(&self, key: &str) {
        // A family does not tell which labels it has.
        for request in Kind::all().map(Kind::name) {
            for answer in Kind::all().map(Kind::name).chain([NO_ANSWER]) {
                self.requests.remove(&Asked {
                    segment: key.to_owned(),
                    request,
                    answer,
                });
            }
        }
    }

    /// Registers them.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        let Metrics {
            requests,
            dropped,
            leases,
            recycled,
            conflicts,
            unprobed,
            intruders,
        } = metrics.clone();
        registry.register("muster_dhcp_requests", "DHCP requests by answer", requests);
        registry.register("muster_dhcp_dropped", "DHCP packets that were dropped", dropped);
        registry.register("muster_dhcp_leases", "Addresses currently leased", leases);
        registry.register(
            "muster_dhcp_offers_recycled",
            "Open offers withdrawn in favour of another machine",
            recycled,
        );
        registry.register(
            "muster_dhcp_conflicts",
            "Addresses found in use by another device before they were offered",
            conflicts,
        );
        registry.register(
            "muster_dhcp_unprobed",
            "Addresses offered without probing the network first",
            unprobed,
        );
        registry.register(
            "muster_dhcp_other_servers",
            "Other DHCP or PXE servers heard in the last ten minutes",
            intruders,
        );
        metrics
    }
}
