//! What a decision about a host rests on, beside the host itself. Plain data: no secret's content, no client, no clock. Pure.
//!
//! What lives in the API server is seen through it. What only the process knows (what a BMC said, how the last effect went) is
//! memory: it is lost with the process, and [`next`](super::next()) then asks again. Absent memory is never "off" and never "no".

use std::sync::Arc;

use jiff::Timestamp;
use muster_proto::kinds::{HardwareData, Segment, Server};

use super::{State, interrupted::Work, secrets::Purpose};
use crate::bmc::{Health, Identity};

/// Everything that [`next`](super::next()) looks at beside the object and the time.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The HardwareData of the host's name and namespace.
    pub hardware: Option<Arc<HardwareData>>,
    /// The Server whose `spec.host` is this host.
    pub server: Option<Arc<Server>>,
    /// The Segment of that Server's latest session.
    pub segment: Option<Arc<Segment>>,
    /// The Secrets that the host names.
    pub secrets: Secrets,
    /// What its BMC said.
    pub bmc: Bmc,
    /// How the last effect on its power went.
    pub tried: Option<Tried>,
    /// What its machine's ramdisk is at.
    pub work: Option<Work>,
    /// Since when that has been silent, as this process has seen it by its own clock; none: it is there, or never was.
    pub silent_since: Option<Timestamp>,
    /// Other hosts that declare the same machine.
    pub rivals: Vec<Rival>,
    /// True if nothing is held any more that another operator left: asked once, when the host goes.
    pub released: bool,
    /// True if the host has one of the slots of hosts that are busy at once. See [`Plan::slot`](super::Plan::slot).
    pub slot: bool,
    /// How many hosts may have one.
    pub limit: usize,
    /// The write that the API server has refused since a round went well last, and why; it is tried again.
    pub refused: Option<Refusal>,
    /// When this process began to lead, or the host was last paused no more: what was announced or done before says nothing of the machine.
    pub began: Timestamp,
    /// The term of this leader; jobs carry it.
    pub epoch: i64,
    /// How many failed provisionings in a row end the attempts; 0: none does.
    pub max_provisioning_retries: i64,
}

/// A write that the API server refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which one, if that is known.
    pub step: Option<&'static str>,
    /// What was tried and why it is refused, as people were told.
    pub why: String,
}

/// The Secrets that the host names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets {
    /// That of [`bmc_secret`](super::bmc_secret): both `username` and `password`, trimmed and not empty.
    pub bmc: SecretSeen,
    /// `spec.userData`: key `userData`, else `value`.
    pub user_data: SecretSeen,
    /// `spec.networkData`: key `networkData`, else `value`; a Secret without either is present and empty.
    pub network_data: SecretSeen,
    /// `spec.metaData`: key `metaData`, else `value`; a YAML or JSON map.
    pub meta_data: SecretSeen,
    /// `spec.preprovisioningNetworkDataName`, as `network_data`.
    pub preprovisioning: SecretSeen,
    /// Those of [`former_secrets`](super::secrets::former_secrets), by name, as `bmc`.
    pub former: Vec<(String, SecretSeen)>,
}

impl Secrets {
    /// That of `purpose`.
    pub(super) fn of(&self, purpose: Purpose) -> &SecretSeen {
        match purpose {
            Purpose::Bmc => &self.bmc,
            Purpose::UserData => &self.user_data,
            Purpose::NetworkData => &self.network_data,
            Purpose::MetaData => &self.meta_data,
            Purpose::Preprovisioning => &self.preprovisioning,
        }
    }

    /// The same, to be filled in.
    pub(super) fn of_mut(&mut self, purpose: Purpose) -> &mut SecretSeen {
        match purpose {
            Purpose::Bmc => &mut self.bmc,
            Purpose::UserData => &mut self.user_data,
            Purpose::NetworkData => &mut self.network_data,
            Purpose::MetaData => &mut self.meta_data,
            Purpose::Preprovisioning => &mut self.preprovisioning,
        }
    }
}

/// One Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretSeen {
    /// Whether it can be used.
    pub state: SecretState,
    /// True if it carries all that [`Effect::HoldSecret`](super::Effect::HoldSecret) puts on it, or goes and can be held no more.
    pub held: bool,
    /// True if it carries upstream's finalizer, which only [`Effect::ReleaseSecret`](super::Effect::ReleaseSecret) takes off.
    pub finalizer: bool,
    /// True if it is being deleted, and upstream's finalizer keeps it until no host needs it.
    pub going: bool,
}

/// Whether a Secret can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SecretState {
    /// The host names none.
    #[default]
    Unnamed,
    /// Nobody watches it and nobody has asked for it: [`Effect::HoldSecret`](super::Effect::HoldSecret) brings it in.
    Unasked,
    /// The API server says that it does not exist.
    Missing,
    /// It could not be asked for; why. Not the same as missing.
    Unreadable(String),
    /// It lacks something; what, without its content.
    Invalid(String),
    /// It is complete.
    Present {
        /// Its resource version.
        version: String,
        /// Tells one content from another within this process (a MAC under a key that dies with it): a label on the Secret
        /// changes the version but not this.
        content: String,
        /// How much it adds to a config drive, in bytes of that as JSON.
        bytes: usize,
    },
}

impl SecretState {
    /// True if it can be used.
    pub fn is_present(&self) -> bool {
        matches!(self, SecretState::Present { .. })
    }
}

/// How a BMC is reached: where, how strictly, and with which credentials (their [`SecretState::Present::content`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// `spec.bmc.address`.
    pub address: String,
    /// `spec.bmc.disableCertificateVerification`.
    pub insecure: bool,
    /// Which content of the Secret.
    pub credentials: String,
}

/// What a BMC said since this process began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bmc {
    /// The access that was probed last, and how that went; with another access than the host's of now, it says nothing.
    pub probed: Option<Probed>,
    /// The last answer about power, if nothing changed the power since: an effect on the power empties it.
    pub power: Option<PowerReading>,
    /// The last question about power, or the one before an effect, failed so; a later answer empties it.
    pub unread: Option<Failure>,
}

/// How a probe went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// With which access.
    pub access: Access,
    /// When it ended.
    pub at: Timestamp,
    /// How it ended.
    pub result: Result<(), Failure>,
    /// True if the BMC let us in with this access since this process began.
    pub accepted: bool,
    /// Of which machine the BMC says that it is.
    pub identity: Identity,
}

/// An answer about power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerReading {
    /// The answer.
    pub power: Power,
    /// What it said of the machine's health besides.
    pub health: Health,
    /// When it came.
    pub at: Timestamp,
}

/// Whether a machine is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Power {
    /// On, or on its way there.
    On,
    /// Off.
    Off,
    /// The BMC answered something else, or is between the two.
    #[default]
    Unknown,
}

/// What failed at a BMC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What can be done about it.
    pub class: FailureClass,
    /// What failed, for people; cleaned.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// What can be done about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// The BMC refuses the credentials: others help, or somebody at the BMC. It is seldom asked again with these.
    Credentials,
    /// The address has no driver here, or is none: nothing helps but another. It is not asked again.
    Address,
    /// The BMC's certificate is not trusted.
    Certificate,
    /// The BMC shows no such system: the address is wrong, or the BMC has only just begun to look for its systems.
    System,
    /// No answer, or a broken one: it may come back.
    Unreachable,
    /// The BMC is busy: soon.
    Busy,
    /// The BMC cannot do this at all, such as a soft power-off.
    Unsupported,
    /// The BMC refuses or fails this request.
    Refused,
}

/// How the last effect on the power of the host went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The operation id that the effect carried. Of several effects with one id: the first failure, else the last success.
    pub operation: String,
    /// When it ended.
    pub at: Timestamp,
    /// True if it was an order on the power, and not on what is booted next.
    pub on_power: bool,
    /// How it ended.
    pub result: Result<(), Failure>,
}

/// Another host that declares the same machine, by its boot MAC address or by its BMC. A twin that discovery made and that
/// nobody touched is none: discovery folds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rival {
    /// `namespace/name`.
    pub path: String,
    /// What both declare, for people: `boot MAC address 52:54:00:00:00:01`.
    pub by: String,
    /// True if both declare the same BMC.
    pub bmc: bool,
    /// Where it is in its life.
    pub state: State,
    /// True if the machine is rather its than ours: the one that is registered already, else the older one.
    pub precedes: bool,
}

impl Rival {
    /// That it is in the way, and what a person does about it.
    pub(super) fn words(&self) -> String {
        format!(
            "host {} declares the same machine: {}; next: delete one of the two, or correct what both declare",
            self.path, self.by
        )
    }
}
