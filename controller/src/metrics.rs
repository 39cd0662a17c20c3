//! Prometheus metrics. Each concern registers its own on a [`Registry`] that is passed to it; there is no global.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::ConstCounter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        info::Info,
    },
    registry::Unit,
};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid};
use tokio::sync::watch;

use crate::lease::Standing;

pub use prometheus_client::registry::Registry;

/// A registry with the process's own memory and processor time on it, and which version it is.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process));
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("muster_build", "Which version of Muster this process is", build);
    registry
}

/// A Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLease {
    name: String,
}

/// Whether this process leads, under the name that client-go's users know.
#[derive(Debug)]
struct Leader {
    lease: OfLease,
    standing: watch::Receiver<Standing>,
}

/// Registers on `registry` whether this process holds the Lease `name`.
pub fn register_leader(registry: &mut Registry, name: &str, standing: watch::Receiver<Standing>) {
    let lease = OfLease {
        name: name.to_owned(),
    };
    registry.register_collector(Box::new(Leader { lease, standing }));
}

impl Collector for Leader {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let leads = self
            .standing
            .borrow()
            .leadership()
            .is_some_and(crate::lease::Leadership::still);
        let status = Family::<OfLease, Gauge>::default();
        status.get_or_create(&self.lease).set(i64::from(leads));
        let descriptor = encoder.encode_descriptor(
            "leader_election_master_status",
            "1 on the leader, 0 on a standby",
            None,
            status.metric_type(),
        )?;
        status.encode(descriptor)
    }
}

/// Measured when asked, not in between.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        // A system without a readable /proc: no figures are better than wrong ones.
        let Some(usage) = get_current_pid().ok().and_then(Usage::of) else {
            return Ok(());
        };
        let memory = ConstGauge::new(usage.resident_bytes);
        let descriptor = encoder.encode_descriptor(
            "process_resident_memory",
            "Resident memory of this process",
            Some(&Unit::Bytes),
            memory.metric_type(),
        )?;
        memory.encode(descriptor)?;
        let processor = ConstCounter::new(usage.cpu_seconds);
        let descriptor = encoder.encode_descriptor(
            "process_cpu",
            "User and system CPU time of this process",
            Some(&Unit::Seconds),
            processor.metric_type(),
        )?;
        processor.encode(descriptor)?;
        let start = ConstGauge::new(usage.started);
        let descriptor = encoder.encode_descriptor(
            "process_start_time",
            "Start time of this process since the Unix epoch",
            Some(&Unit::Seconds),
            start.metric_type(),
        )?;
        start.encode(descriptor)
    }
}

struct Usage {
    resident_bytes: i64,
    cpu_seconds: f64,
    started: i64,
}

impl Usage {
    fn of(pid: Pid) -> Option<Usage> {
        let mut system = System::new().ok()?;
        let what = ProcessRefreshKind::nothing().with_memory().with_cpu();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, what);
        let process = system.process(pid)?;
        // Milliseconds to seconds; exact far beyond any process's life.
        let cpu_seconds = std::time::Duration::from_millis(process.accumulated_cpu_time()).as_secs_f64();
        Some(Usage {
            resident_bytes: i64::try_from(process.memory()).ok()?,
            cpu_seconds,
            started: i64::try_from(process.start_time()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_more_than_nothing() {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry()).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6, "{text}");
        assert!(value("process_cpu_seconds_total") >= 0.0, "{text}");
        assert!(value("process_start_time_seconds") > 1e9, "{text}");
    }

    #[test]
    fn which_version_runs_is_told() {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry()).unwrap();
        let line = format!(
            "muster_build_info{{version=\"{}\"}} 1\n",
            env!("CARGO_PKG_VERSION")
        );
        assert!(text.contains(&line), "{text}");
    }

    #[test]
    fn whether_this_process_leads_is_told() {
        let mut registry = Registry::default();
        let (stand, standing) = watch::channel(Standing::Standby);
        register_leader(&mut registry, "muster-control", standing);
        let line = |value| format!("leader_election_master_status{{name=\"muster-control\"}} {value}\n");
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        assert!(text().contains(&line(0)), "{}", text());
        let until = crate::lease::now() + std::time::Duration::from_secs(3600);
        stand.send_replace(Standing::Leads(crate::lease::Leadership::new(1, until)));
        assert!(text().contains(&line(1)), "{}", text());
    }
}
