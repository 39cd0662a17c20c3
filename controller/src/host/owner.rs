//! Who writes the status of a host: discovery or the operator. One function, asked by both, so that never both do. Pure.

use muster_proto::kinds::{BareMetalHost, IN_BAND_ANNOTATION, SERVER_ANNOTATION, STATUS_ANNOTATION};

use super::{State, plan::FINALIZER};
use crate::hosts::{annotation, is_paused};

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
    let wanted = has_bmc(host) || annotated(IN_BAND_ANNOTATION) || annotated(STATUS_ANNOTATION) || held;
    let young = State::of(host).is_young();
    match annotated(SERVER_ANNOTATION) && young && !wanted {
        true => Owner::Discovery,
        false => Owner::Operator,
    }
}

/// True if `host` carries the operator's finalizer: it holds the host, and with it the machine, until it lets go.
pub fn is_held(host: &BareMetalHost) -> bool {
    let mut finalizers = host.metadata.finalizers.iter().flatten();
    finalizers.any(|name| name == FINALIZER)
}

/// True if somebody allows that `host`, which has no BMC, is managed through its ramdisk.
pub fn is_in_band(host: &BareMetalHost) -> bool {
    !has_bmc(host) && annotation(host, IN_BAND_ANNOTATION).is_some()
}

/// True if `host` says anything of a BMC; half of it is an error, not nothing.
pub fn has_bmc(host: &BareMetalHost) -> bool {
    let bmc = host.spec.bmc.as_ref();
    bmc.is_some_and(|bmc| !bmc.address.is_empty() || !bmc.credentials_name.is_empty())
}
