use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Packed, Trust};
use crate::{
    Mac,
    identity::Identity,
    inventory::Inventory,
    job::{Clean, Failure, Progress, Write},
};

/// One known machine: what BareMetalHost has no field for. `spec` is written by the control role (and people), `status` by the edge role.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "muster.dev",
    version = "v1alpha1",
    kind = "Server",
    plural = "servers",
    shortname = "srv",
    namespaced,
    status = "ServerStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Host","type":"string","jsonPath":".spec.host.name"}"#,
    printcolumn = r#"{"name":"Session","type":"string","jsonPath":".status.session.state"}"#,
    printcolumn = r#"{"name":"Job","type":"string","jsonPath":".spec.job.action"}"#,
    printcolumn = r#"{"name":"Progress","type":"string","jsonPath":".status.job.summary"}"#,
    printcolumn = r#"{"name":"Since","type":"date","jsonPath":".status.session.since"}"#,
    printcolumn = r#"{"name":"Address","type":"string","jsonPath":".status.session.address"}"#,
    printcolumn = r#"{"name":"Segment","type":"string","jsonPath":".status.session.segment"}"#,
    printcolumn = r#"{"name":"Trust","type":"string","jsonPath":".status.session.trust"}"#,
    printcolumn = r#"{"name":"Agent","type":"string","jsonPath":".status.session.agentVersion"}"#,
    printcolumn = r#"{"name":"Contested","type":"boolean","priority":1,"jsonPath":".status.contested"}"#,
    printcolumn = r#"{"name":"Dismissed","type":"boolean","priority":1,"jsonPath":".spec.dismissed"}"#,
    printcolumn = r#"{"name":"Vendor","type":"string","priority":1,"jsonPath":".status.inventory.system.manufacturer"}"#,
    printcolumn = r#"{"name":"Product","type":"string","priority":1,"jsonPath":".status.inventory.system.product"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerSpec {
    /// The BareMetalHost that stands for this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostReference>,
    /// True after the discovered host was deleted: the machine gets no new host until the Server is annotated with `muster.dev/approve`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dismissed: bool,
    /// What the machine is to do next while its ramdisk runs; set by the control role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Box<Job>>,
    /// The latest request to switch the machine on with Wake-on-LAN; set by the control role where there is no BMC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wake: Option<Box<Wake>>,
}

impl Server {
    /// The latest session of the machine's agent.
    pub fn session(&self) -> Option<&Session> {
        self.status.as_ref()?.session.as_ref()
    }

    /// The Segment of the latest session: its name, and its namespace where the session tells.
    pub fn segment(&self) -> Option<(Option<&str>, &str)> {
        let segment = self.session()?.segment.as_str();
        match segment.split_once('/') {
            Some((namespace, name)) => Some((Some(namespace), name)),
            None => Some((None, segment)).filter(|(_, name)| !name.is_empty()),
        }
    }

    /// The latest job that an agent of the machine said something of.
    pub fn last_job(&self) -> Option<&JobStatus> {
        self.status.as_ref()?.job.as_ref()
    }

    /// What follows the cleaning that its job begins with, once an agent has said something of that.
    pub fn follow_up(&self) -> Option<&Then> {
        let last = self.last_job()?;
        let then = self.spec.job.as_ref()?.then.as_ref();
        then.filter(|then| then.id == last.id)
    }

    /// How the machine leaves its ramdisk at the end of its job, and whether it has said so: once the job that the agent took up last was the
    /// write that it ends with, and an edge wrote the good end of that, which tells the agent how to leave.
    pub fn told_to_leave(&self) -> Option<(&Leave, &Leaving)> {
        let (job, last) = (self.spec.job.as_ref()?, self.last_job()?);
        let written = job.writes().is_some_and(|(id, _)| id == last.id);
        let (leave, leaving) = job.leave.as_ref().zip(last.leaving.as_ref())?;
        (written && last.done && last.error.is_empty() && leave.id == leaving.id).then_some((leave, leaving))
    }
}

/// A Wake-on-LAN request. The edges that serve the Segment of the machine's latest session send its packets, once per request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Wake {
    /// When it was requested (RFC 3339).
    pub at: String,
    /// The MAC addresses of the NICs that may switch the machine on.
    #[schemars(with = "Vec<String>")]
    pub macs: Vec<Mac>,
    /// The key of the session that was the latest at that time: once there is a newer session, the request is obsolete.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub session: String,
}

/// Reference to a BareMetalHost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HostReference {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID, so that a host recreated under the same name is not mistaken for the old one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// One job for the running ramdisk; idempotent by its id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Job {
    /// Operation id.
    pub id: String,
    /// The term of the leader that issued it; an agent that has seen a higher one refuses the job.
    #[serde(skip_serializing_if = "is_zero")]
    pub epoch: i64,
    /// What to do.
    pub action: JobAction,
    /// What the action `clean` cleans.
    #[serde(skip_serializing_if = "Option::is_none")]
    // It may name dozens of disks, and stays here until the next job.
    pub clean: Option<Packed<Clean>>,
    /// What the action `write` writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write: Option<Box<Write>>,
    /// What the agent is given as soon as the action `clean` has succeeded. With an edge that does not know this field, the job ends with
    /// the cleaning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub then: Option<Then>,
    /// How the agent is to leave the ramdisk once the write at the end of the job has succeeded and that is stored. With an edge that does
    /// not know this field, the job ends with the write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leave: Option<Leave>,
}

/// A write that immediately follows a cleaning, in the same term.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Then {
    /// Operation id.
    pub id: String,
    /// The key of the session that it is meant for; no other session is given it.
    pub session: String,
    /// What is written.
    pub write: Box<Write>,
}

/// How the machine leaves its ramdisk after a write, in the same term.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Leave {
    /// Operation id.
    pub id: String,
    /// The key of the session that the job is meant for: no other session is given any part of it.
    pub session: String,
    /// Whether the machine reboots or powers off.
    pub action: LeaveAction,
}

/// What a machine that leaves its ramdisk does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LeaveAction {
    /// It reboots; the boot services then decide what it boots.
    #[default]
    Reboot,
    /// It is switched off.
    PowerOff,
}

impl Job {
    /// True if `id` names it or what follows it.
    pub fn is_called(&self, id: &str) -> bool {
        let then = self.then.as_ref().is_some_and(|then| then.id == id);
        self.id == id || then || self.leave.as_ref().is_some_and(|leave| leave.id == id)
    }

    /// True if the session with this key may be given it. A control role of an older version may have left the end of an earlier job on
    /// one that writes nothing.
    pub fn is_for(&self, session: &str) -> bool {
        self.writes().is_none() || self.leave.as_ref().is_none_or(|leave| leave.session == session)
    }

    /// The write that it ends with, and its id.
    pub fn writes(&self) -> Option<(&str, &Write)> {
        let alone = self.write.as_ref().filter(|_| self.action == JobAction::Write);
        let follows = self
            .then
            .as_ref()
            .map(|then| (then.id.as_str(), then.write.as_ref()));
        follows.or(alone.map(|write| (self.id.as_str(), write.as_ref())))
    }
}

fn is_zero(epoch: &i64) -> bool {
    *epoch == 0
}

/// What a [`Job`] asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobAction {
    /// Report the inventory again.
    #[default]
    Inspect,
    /// Reboot; the boot services then decide what the machine boots.
    Reboot,
    /// Switch off.
    PowerOff,
    /// Clear partition tables and signatures, as `clean` says.
    Clean,
    /// Write an image, as `write` says.
    Write,
}

/// What is known about the machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerStatus {
    /// Every identifier by which this machine was ever known.
    pub identity: Identity,
    /// The latest session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    /// True once two keys have presented the same token as this machine; cleared when it enrols again with a token of its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub contested: bool,
    /// Names of Servers that share an identifier with this one but are other machines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clashes: Vec<String>,
    /// The latest inventory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Packed<Inventory>>,
    /// When the inventory arrived (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventoried: Option<String>,
    /// Trust of the session that reported the inventory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory_trust: Option<Trust>,
    /// The last job that the agent accepted, and its outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobStatus>,
    /// The last failed job that was followed by another one: the agent's report of it is kept until the next failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Box<JobStatus>>,
}

/// The progress and outcome of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    /// Operation id.
    pub id: String,
    /// What failed; empty while the job runs and after it succeeded.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// If it failed, whether a retry may help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// True once it has ended.
    pub done: bool,
    /// The state of the job in a few words, for people: `write image 42 %`, `done`, `failed: …`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// How far it is while it runs; written at most every 10 s and at most 12 times per job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The last lines of the agent's log, oldest first, after a failure; 8 KiB at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    /// After a success, what did not go as it should all the same; 8 entries of 512 bytes at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// How the agent is told to leave, in the answer to its report that this job succeeded; absent if it is not told, or if the edge does not
    /// know this field. The job stays the last one, so that no edge of any version takes it for one that has not been done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaving: Option<Leaving>,
}

/// A machine that has been told to leave its ramdisk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Leaving {
    /// Operation id, as [`Leave`] has it.
    pub id: String,
    /// True once the agent has announced that it is leaving, which ends its session.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub said: bool,
}

/// One session of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Session {
    /// Whether the agent is connected.
    pub state: SessionState,
    /// Since when (RFC 3339).
    pub since: String,
    /// The address of the machine.
    pub address: String,
    /// The [`super::Segment`] on which it enrolled.
    pub segment: String,
    /// How much it is trusted.
    pub trust: Trust,
    /// Version of the agent.
    pub agent_version: String,
    /// SHA-256 of the session's public key, hexadecimal; the machine's console shows it, too.
    pub key: String,
    /// The session's X25519 public key, base64: secrets for this machine are sealed to it. Empty if the agent cannot open any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub seal_key: String,
    /// The MAC address from which it booted and for which its token was served.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub boot_mac: Option<Mac>,
}

/// Whether the agent is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionState {
    /// It is polling.
    Connected,
    /// It was connected but is now silent: rebooted, switched off or cut off.
    #[default]
    Disconnected,
}
