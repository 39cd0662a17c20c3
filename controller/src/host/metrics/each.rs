//! What is counted of each host by itself: little of each, since there may be ten thousands.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::{OPERATIONS, Operation};
use crate::{path::Path, sync::lock};

/// What happens to a host, as often as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happening {
    Reconciled,
    ProvisioningDelayed,
    DeprovisioningDelayed,
    PoweredOn,
    PoweredOff,
}

/// Upstream's names. `delayed` has two underscores there: dashboards that were written for it go on, and new ones need not know.
const COUNTERS: [(&str, &str, Happening); 5] = {
    use Happening::{DeprovisioningDelayed, ProvisioningDelayed, Reconciled};
    let provisioning = "Number of times provisioning waited for other hosts";
    let deprovisioning = "Number of times deprovisioning waited for other hosts";
    [
        ("metal3_reconcile", "Reconciles of a host", Reconciled),
        ("metal3_delayed__provisioning", provisioning, ProvisioningDelayed),
        ("metal3_delayed_provisioning", provisioning, ProvisioningDelayed),
        (
            "metal3_delayed__deprovisioning",
            deprovisioning,
            DeprovisioningDelayed,
        ),
        (
            "metal3_delayed_deprovisioning",
            deprovisioning,
            DeprovisioningDelayed,
        ),
    ]
};

const POWER: [(&str, Happening); 2] = [("on", Happening::PoweredOn), ("off", Happening::PoweredOff)];

/// Upstream's buckets, in seconds: for what takes minutes, and for registering, where it has its library's own.
fn bounds(which: Operation) -> &'static [f64] {
    const MINUTES: [f64; 7] = [30.0, 90.0, 180.0, 360.0, 720.0, 1440.0, f64::INFINITY];
    const DEFAULT: [f64; 12] = [
        0.005,
        0.01,
        0.025,
        0.05,
        0.1,
        0.25,
        0.5,
        1.0,
        2.5,
        5.0,
        10.0,
        f64::INFINITY,
    ];
    match which {
        Operation::Register => &DEFAULT,
        Operation::Inspect | Operation::Provision | Operation::Deprovision => &MINUTES,
    }
}

/// How long one operation took, each time.
#[derive(Debug)]
struct Took {
    seconds: f64,
    /// How often it took at most as long as each of [`bounds`], and longer than the one before.
    counts: Box<[u32]>,
}

/// One host.
#[derive(Debug, Default)]
struct Counts {
    /// By [`Happening`].
    happened: [u32; 5],
    /// By [`Operation`]; most hosts have two of them.
    took: [Option<Took>; OPERATIONS.len()],
}

/// All hosts; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Each(Arc<Mutex<BTreeMap<Path, Counts>>>);

impl Each {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Path, Counts>> {
        lock(&self.0)
    }

    /// It happened to `host`.
    pub(super) fn happened(&self, host: &Path, what: Happening) {
        let mut all = self.lock();
        let count = &mut all.entry(host.clone()).or_default().happened[what as usize];
        *count = count.saturating_add(1);
    }

    /// `which` is over for `host`, and took so many seconds.
    pub(super) fn took(&self, which: Operation, host: &Path, seconds: f64) {
        let mut all = self.lock();
        let took = &mut all.entry(host.clone()).or_default().took[which as usize];
        let bounds = bounds(which);
        let Took { seconds: sum, counts } = took.get_or_insert_with(|| Took {
            seconds: 0.0,
            counts: vec![0; bounds.len()].into(),
        });
        *sum += seconds;
        let fits = bounds.iter().position(|bound| seconds <= *bound);
        if let Some(count) = fits.and_then(|at| counts.get_mut(at)) {
            *count = count.saturating_add(1);
        }
    }

    /// The host is gone.
    pub(super) fn forget(&self, host: &Path) {
        self.lock().remove(host);
    }

    /// All hosts but these are gone.
    pub(super) fn retain(&self, hosts: &BTreeSet<Path>) {
        self.lock().retain(|host, _| hosts.contains(host));
    }
}

/// The labels of one host.
fn labels(at: &Path) -> [(&str, &str); 2] {
    [("namespace", &at.namespace), ("host", &at.name)]
}

impl Collector for Each {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let all = self.lock();
        for (name, help, what) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (at, Counts { happened, .. }) in all.iter() {
                let count = u64::from(happened[what as usize]);
                if count > 0 {
                    family
                        .encode_family(&labels(at))?
                        .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        let (name, help) = ("metal3_operation_power_change", "Power changes requested");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (at, Counts { happened, .. }) in all.iter() {
            for (on_off, what) in POWER {
                let [namespace, host] = labels(at);
                let count = u64::from(happened[what as usize]);
                if count > 0 {
                    family
                        .encode_family(&[namespace, host, ("on_off", on_off)])?
                        .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        for (which, word) in OPERATIONS {
            let name = format!("metal3_operation_{word}_duration_seconds");
            let help = format!("How long it took to {word} a host");
            let mut family = encoder.encode_descriptor(&name, &help, None, MetricType::Histogram)?;
            for (at, Counts { took, .. }) in all.iter() {
                let Some(Took { seconds, counts }) = &took[which as usize] else {
                    continue;
                };
                let counts = counts.iter().map(|count| u64::from(*count));
                let buckets: Vec<(f64, u64)> = bounds(which).iter().copied().zip(counts).collect();
                let count = buckets.iter().map(|(_, count)| count).sum();
                family
                    .encode_family(&labels(at))?
                    .encode_histogram::<NoLabelSet>(*seconds, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}
