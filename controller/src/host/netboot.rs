//! When the network boot of a host's machine is armed: its ramdisk boots, whatever is on its disks. Pure.
//!
//! There is no switch that could be forgotten: it is armed as long as the status says that the ramdisk is needed, and that is
//! written before the machine is told to boot.

use muster_proto::kinds::{BareMetalHost, DETACHED_ANNOTATION, Server};

use super::{
    State,
    detached::is_cut_off,
    jobs::provisioning_left_by,
    owner::{Owner, has_bmc, is_in_band, owner},
    registration,
};
use crate::hosts::{annotation, forbids_inspection};

/// Why the machine is to boot its ramdisk for the operator's sake; none: the operator does not need that.
pub fn wanted(host: &BareMetalHost, server: Option<&Server>) -> Option<&'static str> {
    let steady = State::of(host).is_steady() && annotation(host, DETACHED_ANNOTATION).is_some();
    if steady || is_cut_off(host) || owner(host) != Owner::Operator || !State::of(host).boots_ramdisk() {
        return None;
    }
    let foreign = host.spec.externally_provisioned == Some(true);
    // The Server is watched apart from the host, and may show the end of a provisioning whose beginning the host's copy does not show yet.
    let left = server.is_some_and(|server| match State::of(host) {
        State::Provisioning => leaves(host, server),
        State::Preparing | State::Available | State::Deprovisioning => {
            left(host, server) > Some(begun(host).unwrap_or_default())
        }
        _ => false,
    });
    match State::of(host) {
        _ if left => None,
        State::Registering if registration::may_run_already(host) => None,
        State::Registering if !foreign && !forbids_inspection(host) => {
            Some("its host is registering and will be inspected")
        }
        // Also of one that somebody else provisioned, if somebody wants it managed so: it is told to leave again once it is registered.
        State::Registering if is_in_band(host) || (!foreign && !has_bmc(host)) => {
            Some("its host is registering through its ramdisk: it has no BMC")
        }
        State::Inspecting => Some("its host is inspecting"),
        State::Preparing if !foreign => Some("its host is preparing"),
        State::Available if !foreign && host.spec.online => Some("its host is available, ready for an image"),
        // Nobody would see that it runs what is on its disk.
        State::Available if !foreign && is_in_band(host) && host.spec.disable_power_off != Some(true) => {
            Some("its host has to be off and has no BMC: its ramdisk powers it off")
        }
        State::Provisioning => Some("its host is provisioning"),
        State::Deprovisioning => Some("its host is deprovisioning"),
        _ => None,
    }
}

/// True once the machine has its image and is told to leave the ramdisk, or is with the answer to that it has. What it was told in a former
/// provisioning counts for nothing: without cleaning no other job came in between.
pub(super) fn leaves(host: &BareMetalHost, server: &Server) -> bool {
    left(host, server) >= Some(begun(host).unwrap_or_default())
}

/// When the host's latest provisioning began, in seconds since 1970; none: it has had none.
pub(super) fn begun(host: &BareMetalHost) -> Option<i64> {
    let history = host.status.as_ref()?.operation_history.as_ref()?;
    let start = history.provision.as_ref()?.start.as_ref()?;
    Some(start.0.as_second())
}

/// When the provisioning of this host began at whose end `server` shows that the machine is told to leave.
fn left(host: &BareMetalHost, server: &Server) -> Option<i64> {
    let uid = host.metadata.uid.as_deref().unwrap_or_default();
    let begun = |id: &str| provisioning_left_by(id, uid);
    match &server.spec.job {
        Some(job) => begun(&job.id).or_else(|| begun(&server.told_to_leave()?.0.id)),
        // Only the last job counts: one of a former life is followed by others. Its job may be taken off once it is carried out.
        None => {
            let taken = server.last_job()?;
            let left = taken.leaving.as_ref().filter(|leaving| leaving.said);
            begun(&taken.id).or_else(|| begun(&left?.id))
        }
    }
}
