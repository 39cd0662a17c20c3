//! The reasons of Events about hosts that the operator makes, as data: none is told that is not written here, tests tell every one, and
//! `docs/states.md` is made of it. Pure.

/// A reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What the Event carries.
    pub name: &'static str,
    /// It is one of upstream's.
    pub upstream: bool,
    /// When it is told.
    pub when: &'static str,
}

const fn upstreams(name: &'static str, when: &'static str) -> Reason {
    Reason {
        name,
        upstream: true,
        when,
    }
}

const fn ours(name: &'static str, when: &'static str) -> Reason {
    Reason {
        name,
        upstream: false,
        when,
    }
}

/// All of them.
pub const REASONS: &[Reason] = &[
    upstreams("Discovered", "the host has no BMC"),
    upstreams("Registered", "the machine can be reached"),
    upstreams(
        "BMCAccessValidated",
        "the BMC accepts the host's credentials, initially or after they changed",
    ),
    upstreams(
        "BMCCredentialError",
        "the BMC's address or Secret is missing or unusable",
    ),
    upstreams(
        "RegistrationError",
        "the machine cannot be reached, or it may belong to another host",
    ),
    upstreams("InspectionStarted", "an inspection begins"),
    upstreams("InspectionComplete", "an inspection is complete"),
    upstreams("InspectionSkipped", "inspection is disabled"),
    upstreams("InspectionError", "an inspection failed"),
    upstreams(
        "UpdateHardwareDetails",
        "the hardware details are taken from an annotation",
    ),
    upstreams("InvalidAnnotationValue", "an annotation cannot be read"),
    upstreams(
        "PreparationError",
        "the requested setup, such as RAID, is not supported",
    ),
    upstreams("ProvisioningStarted", "writing an image begins"),
    upstreams("ProvisioningComplete", "the image is on the disk"),
    upstreams(
        "ProvisioningError",
        "an image cannot be written, or writing or cleaning failed",
    ),
    upstreams("DeprovisioningStarted", "deprovisioning begins"),
    upstreams("DeprovisioningComplete", "deprovisioning is complete"),
    upstreams(
        "PowerOn",
        "powering on the machine begins; without a BMC, also that it is assumed to be on",
    ),
    upstreams("PowerOff", "powering off or rebooting the machine begins"),
    upstreams(
        "PowerManagementError",
        "the machine could not be powered on or off, or the BMC of an available host does not answer",
    ),
    ours(
        "ActionNeeded",
        "a person has to act before the host can continue; the message says how",
    ),
    ours(
        "ProvisioningWarning",
        "the image is on the disk, but the agent warns of something that may keep the machine from booting as it should; the message says what",
    ),
    ours(
        "DisksLeft",
        "some disks are not cleaned: they cannot be told apart from others, or somebody may have left them in the machine; the message names them",
    ),
    ours(
        "NotCleaned",
        "disks are not cleaned, or not all of them; the message says why",
    ),
    ours(
        "DeletedUnreachable",
        "a host is deleted whose machine can be neither cleaned nor powered off",
    ),
    ours(
        "SecretHeld",
        "the Secret with the BMC's credentials is being deleted but still in use by the host; emitted once, with what to do",
    ),
    ours(
        "AnnotationUnused",
        "the annotation `inspect.metal3.io/hardwaredetails` is removed without effect; the message says why and what to do",
    ),
    ours(
        "WriteRefused",
        "the API server refuses a write; emitted once for consecutive failures",
    ),
    ours(
        "Unreadable",
        "part of the object, such as a value of a newer version, cannot be read, and Muster does nothing to it; or the host's state is unknown to this version, and Muster does nothing to the host except release it when it is deleted",
    ),
];

/// Upstream's reasons of Events about hosts that are never told: what they speak of does not happen here, or needs no Event.
pub const NEVER: &[&str] = &[
    "DetachError",
    "ProfileSet",
    "ProvisionedRegistrationError",
    "RemoveAnnotation",
    "ServicingError",
];

/// True if `name` is one of [`REASONS`].
pub(super) fn is_known(name: &str) -> bool {
    REASONS.iter().any(|reason| reason.name == name)
}
