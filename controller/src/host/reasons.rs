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
        "the BMC accepts the credentials, at first or others later",
    ),
    upstreams(
        "BMCCredentialError",
        "the BMC's address or Secret is missing or cannot be used",
    ),
    upstreams(
        "RegistrationError",
        "the machine cannot be reached, or not by this host",
    ),
    upstreams("InspectionStarted", "the hardware is inspected"),
    upstreams("InspectionComplete", "the hardware is known"),
    upstreams("InspectionSkipped", "the hardware is not to be inspected"),
    upstreams("InspectionError", "an inspection failed"),
    upstreams("UpdateHardwareDetails", "the hardware is as an annotation says"),
    upstreams("InvalidAnnotationValue", "an annotation cannot be read"),
    upstreams("PreparationError", "what is to be set up cannot be"),
    upstreams("ProvisioningStarted", "an image is written"),
    upstreams("ProvisioningComplete", "the image is on the disk"),
    upstreams(
        "ProvisioningError",
        "an image cannot be written, or writing or cleaning failed",
    ),
    upstreams("DeprovisioningStarted", "what the host runs is taken away"),
    upstreams("DeprovisioningComplete", "it is taken away"),
    upstreams("PowerOn", "the machine is switched on"),
    upstreams("PowerOff", "the machine is switched off"),
    upstreams("PowerManagementError", "the machine could not be switched"),
    ours(
        "ActionNeeded",
        "a person has to act before the host goes on; the message says how",
    ),
    ours(
        "DisksLeft",
        "some disks were left out of a cleaning: they cannot be told from others, or somebody may have left them in the machine; the message says which",
    ),
    ours(
        "NotCleaned",
        "disks are not cleaned, or not all of them; the message says why",
    ),
    ours(
        "DeletedUnreachable",
        "a host is deleted whose machine can be neither cleaned nor switched off",
    ),
    ours(
        "SecretHeld",
        "the Secret with the BMC's credentials is being deleted, and the host holds it; told once, with what helps",
    ),
    ours(
        "AnnotationUnused",
        "the annotation `inspect.metal3.io/hardwaredetails` is taken off and changes nothing; the message says why, and what helps",
    ),
    ours(
        "WriteRefused",
        "the API server refuses a write; told once for a row of failures",
    ),
    ours(
        "Unreadable",
        "a part of the object, such as a word of a newer version, cannot be read, and nothing is done to it; or the host's state is unknown to this version, and nothing is done to it but to let it go when it is deleted",
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
