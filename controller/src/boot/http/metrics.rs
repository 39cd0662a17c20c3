//! What the server of boot files counts.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use crate::metrics::Registry;

/// The metrics; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Connections that are open.
    pub(super) connections: Gauge,
    /// Connections refused because their address has too many.
    pub(super) turned_away: Counter,
}

/// A connection that is open until this is dropped.
#[derive(Debug)]
pub(super) struct Open(Gauge);

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        registry.register(
            "muster_boot_http_connections",
            "Open connections for boot files",
            metrics.connections.clone(),
        );
        registry.register(
            "muster_boot_http_turned_away",
            "Connections for boot files refused because one address has too many",
            metrics.turned_away.clone(),
        );
        metrics
    }

    /// One more is open.
    pub(super) fn open(&self) -> Open {
        self.connections.inc();
        Open(self.connections.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
