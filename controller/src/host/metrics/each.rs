//! What is counted of each host by itself: little of each, since there may be ten thousands.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::{OPERATIONS, Operation};
use crate::host::index::Path;

/// What happens to a host, as often as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happening {
    Reconciled,
    RegistrationRequired,
    Unmanaged,
    ProvisioningDelayed,
    DeprovisioningDelayed,
    PoweredOn,
    PoweredOff,
}

/// Upstream's names. `delayed` has two underscores there: dashboards that were written for it go on, and new ones need not know.
const COUNTERS: [(&str, &str, Happening); 7] = {
    use Happening::{
        DeprovisioningDelayed, ProvisioningDelayed, Reconciled, RegistrationRequired, Unmanaged,
    };
    let provisioning = "Times that provisioning waited for other hosts";
    let deprovisioning = "Times that deprovisioning waited for other hosts";
    [
        ("metal3_reconcile", "Rounds about a host", Reconciled),
        (
            "metal3_host_registration_required",
            "Times that a host had to be registered (again)",
            RegistrationRequired,
        ),
        (
            "metal3_host_unmanaged",
            "Times that a host was found without a BMC address",
            Unmanaged,
        ),
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

/// Upstream's buckets for what takes minutes, in seconds.
const SLOW: [f64; 7] = [30.0, 90.0, 180.0, 360.0, 720.0, 1440.0, f64::MAX];

/// How long one operation took, each time.
#[derive(Debug, Default)]
struct Took {
    seconds: f64,
    buckets: [u32; SLOW.len()],
}

/// One host.
#[derive(Debug, Default)]
struct Counts {
    /// By [`Happening`].
    happened: [u32; 7],
    /// By [`Operation`]; most hosts have two of them.
    took: [Option<Box<Took>>; OPERATIONS.len()],
}

/// All hosts; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Each(Arc<Mutex<BTreeMap<Path, Counts>>>);

impl Each {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Path, Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let Took {
            seconds: sum,
            buckets,
        } = &mut **took.get_or_insert_default();
        *sum += seconds;
        if let Some((_, count)) = SLOW.iter().zip(buckets).find(|(bound, _)| seconds <= **bound) {
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
        let (name, help) = ("metal3_operation_power_change", "Changes of power, asked for");
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
                let Some(Took { seconds, buckets }) = took[which as usize].as_deref() else {
                    continue;
                };
                let mut filled = [(0.0, 0); SLOW.len()];
                for (at, one) in filled.iter_mut().enumerate() {
                    *one = (SLOW[at], u64::from(buckets[at]));
                }
                let count = filled.iter().map(|(_, count)| count).sum();
                family
                    .encode_family(&labels(at))?
                    .encode_histogram::<NoLabelSet>(*seconds, count, &filled, None)?;
            }
        }
        Ok(())
    }
}
