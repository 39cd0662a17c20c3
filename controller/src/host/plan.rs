//! What is to be done about a host now. Plain data. Pure.
//!
//! The executor takes the parts in this order, and the first that fails ends the round:
//!
//! 1. `status`, by the status subresource, only if the host is still as it was seen: intent before effect;
//! 2. `metadata`, and nothing else of the object;
//! 3. `effects`, in their order; before one that destroys data the host is read anew, unless a write of it was answered just now;
//! 4. `events`.
//!
//! A crash between any two of them is harmless: the next round sees what is there and says the rest again.

use std::time::Duration;

use muster_proto::{
    job::ImageSource,
    kinds::{BareMetalHostStatus, HardwareDetails, Leave, Wake},
};

use super::{guard::Permit, observed::Access};
use crate::{bmc::WantedMode, events::Event};

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The whole new status; none if it is as it should be.
    pub status: Option<Box<BareMetalHostStatus>>,
    /// What changes of the object beside its status.
    pub metadata: Metadata,
    /// One after the other.
    pub effects: Vec<Effect>,
    /// What people are told once all of the above is done.
    pub events: Vec<Event>,
    /// True if the host needs a slot among the hosts that are busy at once, and false if it can give one back. The loop asks with
    /// `seen.slot` first; if the host needs a slot and there is none, it asks again without, and that plan says that it is delayed.
    pub slot: bool,
    /// Come back after this time even if nothing changes; none: a change will come. Zero: at once.
    pub requeue: Option<Duration>,
    /// All is as it should be: the power is asked for again, and only another answer than the last one, or a change, needs another look.
    pub watch: Option<PowerWatch>,
    /// Why, for the log.
    pub why: String,
}

/// When the power of a host is asked for at which all is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerWatch {
    /// For the first time after so long.
    pub first: Duration,
    /// And from then on so often.
    pub every: Duration,
}

/// What changes of the object beside its status. One merge patch, for the version of the object that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Put [`FINALIZER`] on or take it off.
    pub finalizer: Option<bool>,
    /// Annotations that have served.
    pub remove_annotations: Vec<String>,
    /// `spec.architecture`, which nobody had filled in.
    pub architecture: Option<String>,
}

impl Metadata {
    /// True if nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Metadata::default()
    }
}

/// Upstream's finalizer on a host.
pub const FINALIZER: &str = "baremetalhost.metal3.io";
/// Upstream's finalizer on the Secret with a BMC's credentials, and on that with network data for the ramdisk.
pub const SECRET_FINALIZER: &str = "baremetalhost.metal3.io/secret";
/// Upstream's finalizer on a HardwareData. Muster puts none on: the garbage collector is enough; it takes off what it finds.
pub const HARDWARE_FINALIZER: &str = "baremetalhost.metal3.io/hardwareData";
/// What fails if the HardwareData is not written.
pub(super) const WRITE_HARDWARE: &str = "write HardwareData";
/// What fails if a Secret is not marked.
pub(super) const HOLD_SECRET: &str = "hold Secret";
/// Upstream's finalizers on further objects that carry the host's name and are owned by it: kind, plural, finalizers. Muster puts none
/// on and does nothing else with them; without their operator they would wait for ever once the host is gone.
pub const LEFTOVERS: [(&str, &str, &[&str]); 2] = [
    (
        "PreprovisioningImage",
        "preprovisioningimages",
        &[
            "preprovisioningimage.metal3.io",
            "baremetalhost.metal3.io/preprovisioningImage",
        ],
    ),
    ("DataImage", "dataimages", &["dataimage.metal3.io"]),
];
/// Upstream's label on every Secret that it has to do with: only these are watched.
pub const SECRET_LABEL: (&str, &str) = ("environment.metal3.io", "baremetal");

/// One step outside of the object.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Ask or tell the BMC something.
    Bmc(BmcCall),
    /// Ask the edges for Wake-on-LAN packets: nothing tells whether they did anything.
    Wake(Box<Wake>),
    /// Make this the Server's job, in place of the one there, if the Server is still as it was seen.
    PlaceJob(Box<NewJob>),
    /// Take the job off the Server, if it is this one.
    RemoveJob {
        /// Its operation id.
        id: String,
    },
    /// Make or update the HardwareData of the host's name, owned by the host.
    WriteHardware(Box<HardwareDetails>),
    /// Take [`HARDWARE_FINALIZER`] off the HardwareData.
    ReleaseHardware,
    /// Take [`LEFTOVERS`] off. Becomes [`Observed::released`](super::Observed).
    ReleaseLeftovers,
    /// Put [`SECRET_LABEL`] on the Secret and what else `hold` says.
    HoldSecret {
        /// Its name, in the host's namespace.
        name: String,
        /// What else.
        hold: Hold,
    },
    /// Take [`SECRET_FINALIZER`] off the Secret.
    ReleaseSecret {
        /// Its name, in the host's namespace.
        name: String,
        /// The host does not name it any more, so it is not to go with the host either.
        disown: bool,
    },
}

/// What a BMC is asked or told.
#[derive(Clone, Debug, PartialEq)]
pub enum BmcCall {
    /// Log in and look whether it can do what is needed; also reads the power. Becomes [`Bmc::probed`](super::observed::Bmc).
    Probe(Access),
    /// Ask for the power. Becomes [`Bmc::power`](super::observed::Bmc).
    ReadPower,
    /// Have the firmware boot from the network once. Becomes [`Tried`](super::observed::Tried).
    BootNetworkOnce {
        /// Operation id.
        operation: String,
        /// In this mode.
        mode: WantedMode,
    },
    /// Change the power. Becomes [`Tried`](super::observed::Tried), and empties [`Bmc::power`](super::observed::Bmc).
    Power {
        /// Operation id.
        operation: String,
        /// How.
        order: PowerOrder,
    },
    /// Log out and forget all that it said.
    Forget,
}

/// What a Secret gets beside the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nothing.
    Label,
    /// The finalizer: network data for the ramdisk.
    Finalizer,
    /// The finalizer and the host as its (not controlling) owner: the BMC's credentials.
    Owned,
}

/// How to change the power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerOrder {
    /// Switch on; nothing if it is on.
    On,
    /// Ask the operating system to shut down.
    SoftOff,
    /// Switch off; nothing if it is off.
    HardOff,
    /// Ask the operating system to restart.
    SoftReset,
    /// Off and on again without a pause that anybody could see.
    Reset,
}

/// A job for the ramdisk of the host's machine.
#[derive(Clone, Debug, PartialEq)]
pub struct NewJob {
    /// Operation id; the same id is the same job.
    pub id: String,
    /// The Server's name.
    pub server: String,
    /// The Server's resource version as it was seen.
    pub version: String,
    /// The leader's term.
    pub epoch: i64,
    /// What to do.
    pub task: Task,
    /// What follows at once if that ends well; only after [`Task::Clean`].
    pub then: Option<Box<Next>>,
    /// How the machine leaves its ramdisk after the write, which is the task or what follows it.
    pub leave: Option<Leave>,
}

/// What follows a cleaning.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// Operation id.
    pub id: String,
    /// The key of the session for which it is decided.
    pub session: String,
    /// What is written.
    pub task: WriteTask,
}

/// What a job does.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Inventory again.
    Inspect,
    /// Reboot; the boot services then say what the machine boots.
    Reboot,
    /// Switch off.
    PowerOff,
    /// Clear partition tables and signatures of the disks that the permit names.
    Clean(Permit),
    /// Write an image to the disk that the permit names.
    Write(Box<WriteTask>),
}

/// What is written.
#[derive(Clone, Debug, PartialEq)]
pub struct WriteTask {
    /// To which disk of which machine.
    pub permit: Permit,
    /// The image.
    pub image: ImageSource,
    /// What goes on the config drive; none: no config drive.
    pub drive: Option<Drive>,
}

/// What goes on the config drive. The executor reads the Secrets and seals the whole to `seal_key`; nothing of it is stored or
/// logged otherwise. If one of the Secrets cannot be read any more, it places no job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// Defaults of the metadata, over which the Secret's are laid.
    pub meta_data: Vec<(&'static str, String)>,
    /// Name of the Secret of `spec.metaData`.
    pub meta_data_secret: Option<String>,
    /// Name of the Secret of `spec.networkData`, else of `spec.preprovisioningNetworkDataName`.
    pub network_data_secret: Option<String>,
    /// Name of the Secret of `spec.userData`.
    pub user_data_secret: Option<String>,
    /// The session's public key (X25519, base64).
    pub seal_key: String,
}

impl Drive {
    /// True if it holds what somebody gave, and not only our own metadata.
    pub(super) fn reads_secrets(&self) -> bool {
        self.meta_data_secret.is_some()
            || self.network_data_secret.is_some()
            || self.user_data_secret.is_some()
    }
}

impl BmcCall {
    /// Its name, for the log.
    pub(super) fn name(&self) -> &'static str {
        match self {
            BmcCall::Probe(_) => "probe",
            BmcCall::ReadPower => "read_power",
            BmcCall::BootNetworkOnce { .. } => "boot_network_once",
            BmcCall::Power { .. } => "power",
            BmcCall::Forget => "forget_bmc",
        }
    }
}

impl Effect {
    /// Its name, for the log.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Effect::Bmc(call) => call.name(),
            Effect::Wake(_) => "wake",
            Effect::PlaceJob(_) => "place_job",
            Effect::RemoveJob { .. } => "remove_job",
            Effect::WriteHardware(_) => "write_hardware",
            Effect::ReleaseHardware => "release_hardware",
            Effect::ReleaseLeftovers => "release_leftovers",
            Effect::HoldSecret { .. } => "hold_secret",
            Effect::ReleaseSecret { .. } => "release_secret",
        }
    }

    /// True if the machine does something because of it.
    pub(super) fn touches_the_machine(&self) -> bool {
        matches!(
            self,
            Effect::PlaceJob(_) | Effect::Bmc(BmcCall::BootNetworkOnce { .. } | BmcCall::Power { .. })
        )
    }

    /// True if it destroys data once the agent takes it up.
    pub(super) fn destroys(&self) -> bool {
        matches!(self, Effect::PlaceJob(job) if job.destroys())
    }
}

impl NewJob {
    /// True if it destroys data.
    pub(super) fn destroys(&self) -> bool {
        matches!(self.task, Task::Clean(_) | Task::Write(_))
    }

    /// True if Secrets are read for it.
    pub(super) fn reads_secrets(&self) -> bool {
        let written = match &self.task {
            Task::Write(task) => Some(task.as_ref()),
            _ => self.then.as_ref().map(|next| &next.task),
        };
        let drive = written.and_then(|task| task.drive.as_ref());
        drive.is_some_and(Drive::reads_secrets)
    }
}

impl Plan {
    /// How the host rests, if it does: there is nothing to be done, and nothing to be looked at again but its power.
    pub(super) fn rests(&self) -> Option<PowerWatch> {
        let is_idle = self.status.is_none()
            && self.metadata.is_empty()
            && self.effects.is_empty()
            && self.events.is_empty();
        self.watch.filter(|_| is_idle && self.requeue.is_none())
    }

    /// After which time there is something to do again even if nothing changes.
    pub(super) fn next(&self) -> Option<Duration> {
        let watch = self.watch.map(|watch| watch.first);
        self.requeue.into_iter().chain(watch).min()
    }

    /// Nothing is to be done.
    pub fn rest(why: impl Into<String>) -> Plan {
        Plan {
            why: why.into(),
            ..Plan::default()
        }
    }
}
