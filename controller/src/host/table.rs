//! The transitions of a host's life, as data: no decision enters a state by a way that is not written here, tests take every one,
//! and `docs/states.md` is made of it. Pure.

use super::State;

/// A way from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// From here.
    pub from: State,
    /// To there.
    pub to: State,
    /// When.
    pub when: &'static str,
}

const fn way(from: State, to: State, when: &'static str) -> Transition {
    Transition { from, to, when }
}

/// All of them.
pub const TRANSITIONS: &[Transition] = &[
    way(
        State::New,
        State::Unmanaged,
        "the host has no BMC and no `muster.dev/in-band`",
    ),
    way(
        State::New,
        State::Registering,
        "the host has a BMC, or `muster.dev/in-band`",
    ),
    way(State::New, State::Deleting, "deleted"),
    way(
        State::Unmanaged,
        State::Registering,
        "BMC details or `muster.dev/in-band` are added",
    ),
    way(State::Unmanaged, State::Deleting, "deleted"),
    way(
        State::Registering,
        State::Inspecting,
        "the BMC (in-band: the opted-in session) answers, and a place is free",
    ),
    way(
        State::Registering,
        State::Preparing,
        "it answers, and `inspectionMode` is `disabled`",
    ),
    way(
        State::Registering,
        State::ExternallyProvisioned,
        "it answers, and `externallyProvisioned` is true",
    ),
    way(State::Registering, State::Deleting, "deleted"),
    way(
        State::Inspecting,
        State::Preparing,
        "a recent enough inventory is stored as HardwareData, or `inspectionMode` becomes `disabled`",
    ),
    way(State::Inspecting, State::PoweringOffBeforeDelete, "deleted"),
    way(
        State::Inspecting,
        State::Deleting,
        "deleted while detached, or when there is no longer a way to reach the machine",
    ),
    way(State::Preparing, State::Available, "there is nothing to set up"),
    way(
        State::Preparing,
        State::ExternallyProvisioned,
        "`externallyProvisioned` becomes true",
    ),
    way(State::Preparing, State::PoweringOffBeforeDelete, "deleted"),
    way(
        State::Preparing,
        State::Deleting,
        "deleted while detached, or when there is no longer a way to reach the machine",
    ),
    way(
        State::Available,
        State::ExternallyProvisioned,
        "`externallyProvisioned` becomes true",
    ),
    way(State::Available, State::Inspecting, "`inspect.metal3.io` is set"),
    way(
        State::Available,
        State::Preparing,
        "root device hints or RAID differ from what was prepared",
    ),
    way(
        State::Available,
        State::Provisioning,
        "`online` is true, an image is set, all inputs exist and are usable, and a place is free",
    ),
    way(State::Available, State::PoweringOffBeforeDelete, "deleted"),
    way(
        State::Available,
        State::Deleting,
        "deleted while detached, or when there is no longer a way to reach the machine",
    ),
    way(
        State::Provisioning,
        State::Provisioned,
        "the image is written and verified, and the ramdisk has left",
    ),
    way(
        State::Provisioning,
        State::Deprovisioning,
        "it failed, the image is changed or removed, or the host is deleted",
    ),
    way(
        State::Provisioning,
        State::Deleting,
        "deleted while detached, or when there is no longer a way to reach the machine",
    ),
    way(
        State::Provisioned,
        State::Deprovisioning,
        "`image` is removed or its `url` changed, `customDeploy` is removed or changed, or the host is deleted",
    ),
    way(
        State::Provisioned,
        State::Deleting,
        "deleted while detached, or when there is no longer a way to reach the machine",
    ),
    way(
        State::ExternallyProvisioned,
        State::Provisioned,
        "`externallyProvisioned` is no longer true; continues to `deprovisioning` unless `image` or `customDeploy` says what it runs",
    ),
    way(
        State::ExternallyProvisioned,
        State::PoweringOffBeforeDelete,
        "deleted",
    ),
    way(
        State::ExternallyProvisioned,
        State::Deleting,
        "deleted while detached, or when there is no longer a way to reach the machine",
    ),
    way(
        State::Deprovisioning,
        State::Available,
        "the disks are clean (or need not be)",
    ),
    way(
        State::Deprovisioning,
        State::PoweringOffBeforeDelete,
        "the host is deleted, and its disks are clean (or need not be) or cleaning failed more than three times",
    ),
    way(
        State::Deprovisioning,
        State::Deleting,
        "deleted while detached, or when there is no longer a way to reach the machine",
    ),
    way(State::Foreign, State::Deleting, "deleted"),
    way(
        State::PoweringOffBeforeDelete,
        State::Deleting,
        "the machine is off (or need not be), or powering it off failed more than three times",
    ),
];

/// True if there is a way from `from` to `to`.
pub fn knows(from: State, to: State) -> bool {
    TRANSITIONS.iter().any(|way| way.from == from && way.to == to)
}
