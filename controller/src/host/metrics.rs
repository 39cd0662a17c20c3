//! What the operator counts, under upstream's names and labels, so that dashboards and alerts go on, and how its hosts are now, which
//! upstream does not tell. `docs/metrics.md` lists them.
//!
//! Labels `namespace` and `host` are as many as there are hosts, as upstream has it; [`Metrics::forget`] ends those of a host that is
//! gone, which upstream does not.

mod each;
mod now;

use std::{collections::BTreeSet, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

use self::each::{Each, Happening};
use crate::{metrics::Registry, path::Path};

pub use self::now::register_hosts;

/// A kind of error, as the Event about it has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfError {
    error_type: String,
}

/// A Secret that could not be used: `userData`, `networkData` or `metaData`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfData {
    host_data_type: &'static str,
}

/// A change of `status.provisioning.state`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfChange {
    prev_state: String,
    new_state: String,
}

/// Something that takes long, as in `status.operationHistory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Registering.
    Register,
    /// Inspecting.
    Inspect,
    /// Writing.
    Provision,
    /// Taking it back.
    Deprovision,
}

/// What is counted without labels, as [`PLAIN`] lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// A BMC's Secret does not exist.
    CredentialsMissing,
    /// A BMC's Secret lacks something.
    CredentialsInvalid,
    /// A BMC's Secret could not be read.
    CredentialsUnhandled,
    /// Credentials changed, and are used from now on.
    CredentialsUpdated,
    /// The BMC refuses the credentials, or cannot be reached.
    NoManagementAccess,
    /// A round failed.
    ReconcileError,
    /// The BMC, or what stands for it, is not ready.
    ProvisionerNotReady,
    /// Deleted without deprovisioning.
    DeletedWithoutDeprovisioning,
    /// Deleted without being powered off.
    DeletedWithoutPoweringOff,
    /// Not deleted yet, because it is detached.
    DeleteDelayedForDetached,
    /// A host has to be registered (again).
    RegistrationRequired,
    /// A host has no BMC address.
    Unmanaged,
}

/// The operator's metrics; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    each: Each,
    errors: Family<OfError, Counter>,
    changes: Family<OfChange, Counter>,
    data: Family<OfData, Counter>,
    plain: [Counter; PLAIN.len()],
}

/// With their names and what they count.
const PLAIN: [(Plain, &str, &str); 12] = [
    (
        Plain::CredentialsMissing,
        "metal3_credentials_missing",
        "BMC Secrets that do not exist",
    ),
    (
        Plain::CredentialsInvalid,
        "metal3_credentials_invalid",
        "BMC Secrets with missing or unusable data",
    ),
    (
        Plain::CredentialsUnhandled,
        "metal3_credentials_unhandled_error",
        "BMC Secrets that could not be read",
    ),
    (
        Plain::CredentialsUpdated,
        "metal3_credentials_updated",
        "BMC credentials that changed",
    ),
    (
        Plain::NoManagementAccess,
        "metal3_credentials_no_management_access",
        "BMC credentials with which the BMC could not be used",
    ),
    (
        Plain::ReconcileError,
        "metal3_reconcile_error",
        "Reconciles that failed",
    ),
    (
        Plain::ProvisionerNotReady,
        "metal3_provisioner_not_ready",
        "Reconciles that found a BMC not ready",
    ),
    (
        Plain::DeletedWithoutDeprovisioning,
        "metal3_delete_without_deprovisioning",
        "Hosts deleted without deprovisioning",
    ),
    (
        Plain::DeletedWithoutPoweringOff,
        "metal3_delete_without_powering_off",
        "Hosts deleted without being powered off",
    ),
    (
        Plain::DeleteDelayedForDetached,
        "metal3_delete_delayed_for_detached",
        "Deletions delayed because the host is detached",
    ),
    (
        Plain::RegistrationRequired,
        "metal3_host_registration_required",
        "Number of times a host had to be registered or re-registered",
    ),
    (
        Plain::Unmanaged,
        "metal3_host_unmanaged",
        "Number of times a host was found without a BMC address",
    ),
];

/// With their words in the names of metrics.
const OPERATIONS: [(Operation, &str); 4] = [
    (Operation::Register, "register"),
    (Operation::Inspect, "inspect"),
    (Operation::Provision, "provision"),
    (Operation::Deprovision, "deprovision"),
];

impl Metrics {
    /// Registers them on `registry`.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        registry.register_collector(Box::new(metrics.each.clone()));
        metrics.register_plain(registry);
        metrics
    }

    fn register_plain(&self, registry: &mut Registry) {
        registry.register("metal3_host_error", "Host errors, by type", self.errors.clone());
        registry.register(
            "metal3_provisioning_state_change",
            "Changes of provisioning state",
            self.changes.clone(),
        );
        registry.register(
            "metal3_host_config_data_error",
            "Secrets for a host's config drive that could not be used",
            self.data.clone(),
        );
        for (what, name, help) in PLAIN {
            registry.register(name, help, self.plain[what as usize].clone());
        }
    }

    /// A round about a host.
    pub fn reconciled(&self, host: &Path) {
        self.each.happened(host, Happening::Reconciled);
    }

    /// A host has an error of this type now.
    pub fn error(&self, error_type: &str) {
        let error_type = error_type.to_owned();
        self.errors.get_or_create(&OfError { error_type }).inc();
    }

    /// A host went from one state to another.
    pub fn changed(&self, from: &str, to: &str) {
        let change = OfChange {
            prev_state: from.to_owned(),
            new_state: to.to_owned(),
        };
        self.changes.get_or_create(&change).inc();
    }

    /// Power was asked for, or its end.
    pub fn power(&self, host: &Path, on: bool) {
        let what = if on {
            Happening::PoweredOn
        } else {
            Happening::PoweredOff
        };
        self.each.happened(host, what);
    }

    /// A Secret of this kind could not be used.
    pub fn data_error(&self, kind: &'static str) {
        let host_data_type = kind;
        self.data.get_or_create(&OfData { host_data_type }).inc();
    }

    /// Provisioning waits for its turn.
    pub fn provisioning_delayed(&self, host: &Path) {
        self.each.happened(host, Happening::ProvisioningDelayed);
    }

    /// Deprovisioning waits for its turn.
    pub fn deprovisioning_delayed(&self, host: &Path) {
        self.each.happened(host, Happening::DeprovisioningDelayed);
    }

    /// An operation is over, and took so long.
    pub fn took(&self, which: Operation, host: &Path, time: Duration) {
        self.each.took(which, host, time.as_secs_f64());
    }

    /// Something without labels.
    pub fn count(&self, what: Plain) {
        self.plain[what as usize].inc();
    }

    /// The host is gone: what was counted of it alone is told no more.
    pub fn forget(&self, host: &Path) {
        self.each.forget(host);
    }

    /// All hosts but these are gone.
    pub fn retain(&self, hosts: &BTreeSet<Path>) {
        self.each.retain(hosts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    fn path(name: &str) -> Path {
        Path {
            namespace: "metal".to_owned(),
            name: name.to_owned(),
        }
    }

    fn counted() -> (Registry, Metrics) {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let host = path("a");
        metrics.reconciled(&host);
        metrics.error("RegistrationError");
        metrics.changed("available", "provisioning");
        metrics.power(&host, true);
        metrics.data_error("userData");
        metrics.provisioning_delayed(&host);
        metrics.deprovisioning_delayed(&host);
        metrics.count(Plain::RegistrationRequired);
        for (which, _) in OPERATIONS {
            metrics.took(which, &host, Duration::from_secs(100));
        }
        metrics.count(Plain::CredentialsUpdated);
        metrics.count(Plain::DeleteDelayedForDetached);
        (registry, metrics)
    }

    #[test]
    fn names_and_labels_are_upstreams() {
        let (registry, _) = counted();
        let text = text(&registry);
        let of_host = r#"{namespace="metal",host="a"} 1"#;
        for line in [
            format!("metal3_reconcile_total{of_host}"),
            r#"metal3_host_error_total{error_type="RegistrationError"} 1"#.to_owned(),
            r#"metal3_provisioning_state_change_total{prev_state="available",new_state="provisioning"} 1"#
                .to_owned(),
            r#"metal3_operation_power_change_total{namespace="metal",host="a",on_off="on"} 1"#.to_owned(),
            r#"metal3_host_config_data_error_total{host_data_type="userData"} 1"#.to_owned(),
            format!("metal3_delayed__provisioning_total{of_host}"),
            format!("metal3_delayed_provisioning_total{of_host}"),
            format!("metal3_delayed__deprovisioning_total{of_host}"),
            format!("metal3_delayed_deprovisioning_total{of_host}"),
            "metal3_host_registration_required_total 1".to_owned(),
            "metal3_host_unmanaged_total 0".to_owned(),
            "metal3_reconcile_error_total 0".to_owned(),
            "metal3_credentials_missing_total 0".to_owned(),
            "metal3_credentials_invalid_total 0".to_owned(),
            "metal3_credentials_unhandled_error_total 0".to_owned(),
            "metal3_credentials_updated_total 1".to_owned(),
            "metal3_credentials_no_management_access_total 0".to_owned(),
            "metal3_provisioner_not_ready_total 0".to_owned(),
            "metal3_delete_without_deprovisioning_total 0".to_owned(),
            "metal3_delete_without_powering_off_total 0".to_owned(),
            "metal3_delete_delayed_for_detached_total 1".to_owned(),
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        for which in ["register", "inspect", "provision", "deprovision"] {
            let name = format!("metal3_operation_{which}_duration_seconds");
            let bucket = |bound: &str| format!(r#"{name}_bucket{{le="{bound}",namespace="metal",host="a"}}"#);
            let within = |bound: &str, count: u32| {
                let line = format!("{} {count}", bucket(bound));
                assert!(text.lines().any(|one| one == line), "{line}\n{text}");
            };
            match which {
                "register" => {
                    within("10.0", 0);
                    within("+Inf", 1);
                }
                _ => {
                    within("90.0", 0);
                    within("180.0", 1);
                    within("1440.0", 1);
                }
            }
        }
    }

    #[test]
    fn each_plain_counter_has_its_own_name() {
        for (which, (what, name, _)) in PLAIN.into_iter().enumerate() {
            let mut registry = Registry::default();
            let metrics = Metrics::register(&mut registry);
            metrics.count(what);
            assert_eq!(what as usize, which);
            let line = format!("{name}_total 1");
            assert!(text(&registry).lines().any(|one| one == line), "{line}");
        }
    }

    #[test]
    fn a_host_that_is_gone_leaves_nothing_of_its_own() {
        let (registry, metrics) = counted();
        metrics.reconciled(&path("b"));
        metrics.forget(&path("a"));
        let text = text(&registry);
        assert!(!text.contains(r#"host="a""#), "{text}");
        assert!(text.contains(r#"host="b""#) && text.contains("metal3_host_error_total"));
        metrics.retain(&[path("c")].into());
        assert!(
            !self::text(&registry).contains(r#"host="b""#),
            "it went while nobody looked"
        );
    }
}
