//! Whose a host is: who writes its status, discovery or the operator, and whether anybody has laid a hand on it. One function each, asked by
//! both, so that never both do. Pure.

use std::collections::BTreeMap;

use muster_proto::kinds::{
    ARCH_LABEL, AutomatedCleaningMode, BOOT_MODE_LABEL, BareMetalHost, BareMetalHostSpec, IN_BAND_ANNOTATION,
    SEGMENT_LABEL, SERVER_ANNOTATION, STATUS_ANNOTATION, VENDOR_LABEL,
};

use super::{State, plan::FINALIZER};
use crate::hosts::{annotation, is_paused, made_for};

/// Annotation on a discovered host: the trust of the session whose report it shows. A report of less trust changes nothing.
pub const TRUST_ANNOTATION: &str = "muster.dev/trust";

/// Who writes the status of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody: the host is paused.
    Nobody,
    /// `discovery`, which made the host and keeps it up to date with what its machine reports.
    Discovery,
    /// `host`, from the first sign that somebody wants more of the machine than to see it.
    Operator,
}

/// Who writes the status of `host`.
///
/// Discovery's are the hosts that it made, as long as they are unmanaged and have no BMC, no opt-in to be managed through the
/// ramdisk, no status to be restored, and no finalizer of the operator's. All others are the operator's.
pub fn owner(host: &BareMetalHost) -> Owner {
    let annotated = |name| annotation(host, name).is_some();
    if is_paused(host) {
        return Owner::Nobody;
    }
    let held = is_held(host);
    let wanted = has_bmc(host) || opt_in(host).is_some() || annotated(STATUS_ANNOTATION) || held;
    let young = State::of(host).is_young();
    match annotated(SERVER_ANNOTATION) && young && !wanted {
        true => Owner::Discovery,
        false => Owner::Operator,
    }
}

/// True while discovery writes the status, or would if the host were not paused: from creation until somebody wants more of the
/// machine than to see it.
pub fn is_discovered(host: &BareMetalHost) -> bool {
    match owner(host) {
        Owner::Discovery => true,
        Owner::Operator => false,
        Owner::Nobody => made_for(host).is_some() && State::of(host).is_young(),
    }
}

/// True for a host that Muster made and nobody has laid a hand on: nothing in it would be lost with it.
pub fn is_untouched(host: &BareMetalHost) -> bool {
    let ours = |name: &String| {
        [
            ARCH_LABEL,
            VENDOR_LABEL,
            BOOT_MODE_LABEL,
            SEGMENT_LABEL,
            SERVER_ANNOTATION,
            TRUST_ANNOTATION,
        ]
        .contains(&name.as_str())
    };
    let only_ours = |map: &Option<BTreeMap<String, String>>| map.iter().flatten().all(|(name, _)| ours(name));
    let as_made = BareMetalHostSpec {
        architecture: host.spec.architecture.clone(),
        boot_mac_address: host.spec.boot_mac_address.clone(),
        // The schema's default, which the API server fills in.
        automated_cleaning_mode: host
            .spec
            .automated_cleaning_mode
            .filter(|mode| *mode == AutomatedCleaningMode::Metadata),
        online: true,
        ..BareMetalHostSpec::default()
    };
    made_for(host).is_some()
        && is_discovered(host)
        && host.spec == as_made
        && only_ours(&host.metadata.labels)
        && only_ours(&host.metadata.annotations)
        && host.metadata.finalizers.iter().flatten().next().is_none()
        && host.metadata.owner_references.iter().flatten().next().is_none()
}

/// True if `host` carries the operator's finalizer: it holds the host, and with it the machine, until it lets go.
pub fn is_held(host: &BareMetalHost) -> bool {
    let mut finalizers = host.metadata.finalizers.iter().flatten();
    finalizers.any(|name| name == FINALIZER)
}

/// True if somebody allows that `host`, which has no BMC, is managed through its ramdisk.
pub fn is_in_band(host: &BareMetalHost) -> bool {
    !has_bmc(host) && opt_in(host).is_some()
}

/// By which word somebody allows that `host` is managed through its ramdisk; none: nobody does.
pub fn opt_in(host: &BareMetalHost) -> Option<&str> {
    annotation(host, IN_BAND_ANNOTATION).filter(|value| *value != "false")
}

/// True if `host` says anything of a BMC; half of it is an error, not nothing.
pub fn has_bmc(host: &BareMetalHost) -> bool {
    let bmc = host.spec.bmc.as_ref();
    bmc.is_some_and(|bmc| !bmc.address.is_empty() || !bmc.credentials_name.is_empty())
}
