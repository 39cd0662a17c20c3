//! Prometheus metrics. Each concern registers its own on a [`Registry`] that is passed to it; there is no global.

pub use prometheus_client::registry::Registry;
