//! Prometheus metrics. Each concern registers its own on a [`Registry`] that is passed to it; there is no global.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid};

pub use prometheus_client::registry::Registry;

/// A registry with the process's own memory and processor time on it.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process));
    registry
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
            "User and system processor time of this process",
            Some(&Unit::Seconds),
            processor.metric_type(),
        )?;
        processor.encode(descriptor)
    }
}

struct Usage {
    resident_bytes: i64,
    cpu_seconds: f64,
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
    }
}
