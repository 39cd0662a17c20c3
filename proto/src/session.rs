//! The protocol between agent and controller: HTTP/1.1, JSON, TLS pinned to the controller's CA, always dialled by the agent.
//!
//! | call | TLS client certificate | request | answer |
//! | --- | --- | --- | --- |
//! | `POST /v1/enrol` | none | [`EnrolRequest`] | [`EnrolResponse`] |
//! | `POST /v1/renew` | yes | [`RenewRequest`] | [`EnrolResponse`] |
//! | `POST /v1/inventory` | yes | [`crate::inventory::Inventory`] | [`InventoryResponse`] |
//! | `POST /v1/poll` | yes | [`PollRequest`] | [`PollResponse`], when [`PollResponse::command`] changes, and otherwise after [`PollRequest::hold_seconds`] or sooner |
//! | `POST /v1/log` | yes | [`LogRequest`] | empty |
//!
//! Every error answer is a [`Problem`]; `503` and `429` carry `Retry-After` in seconds.
//! One minor version apart, agent and controller work together: unknown fields are ignored, new fields have defaults.
//!
//! | version | new |
//! | --- | --- |
//! | 1.0 | enrolment, inventory, the commands `inspect` and `reboot` |
//! | 1.1 | the commands `powerOff`, `clean` and `write`; epochs, progress, a key to seal secrets to, [`Failure`], the log of a failure |
//! | 1.2 | [`PollRequest::hold_seconds`] |
//! | 1.3 | [`PollRequest::goes_at_once`] and [`Command::farewell`]: a machine leaves with the answer to the end of its write; [`DiskId::has_twin`](crate::job::DiskId::has_twin) |
//! | 1.4 | [`PollRequest::warnings`], [`MachineId::board_serial`](crate::job::MachineId::board_serial), [`Write::config_drive_optional`] |

use serde::{Deserialize, Serialize};

use crate::{
    Mac,
    identity::Identity,
    job::{Clean, Failure, Progress, Write},
    list::{Head, first},
};

/// The version of this protocol: `major.minor`. Another major version is refused with [`ProblemKind::Version`].
pub const PROTOCOL: &str = "1.4";

/// How long the controller holds a poll that has nothing to say at most, in seconds. Each one costs both sides a turn, and all of them
/// together are most of what thousands of agents cost that wait.
pub const HOLD_SECONDS: u64 = 240;

/// The same where an answer is not to be missed for long: an agent with a job says so. One before 1.2 says nothing and breaks off after
/// 40 s.
pub const SHORT_HOLD_SECONDS: u64 = 25;

/// How long the controller holds a poll that tells progress and has nothing to say, in seconds: the next one tells more.
pub const PROGRESS_SECONDS: u64 = 10;

/// How many bytes of log an agent sends along with a failed outcome at most, newest lines first.
pub const MAX_LOG: usize = 8 << 10;

/// How many [`PollRequest::warnings`] the controller keeps at most, first ones first.
pub const MAX_WARNINGS: usize = 8;

/// The largest body of a [`LogRequest`] that the controller reads, in bytes; more is answered with 413.
pub const MAX_LOG_BODY: usize = 1 << 20;

/// How many lines of one [`LogRequest`] the controller shows at most, first lines first; of the rest it says how many there are. Of
/// [`PollRequest::log`] it reads no more.
pub const MAX_LOG_LINES: usize = 1000;

/// The largest request body that the controller reads, in bytes; more is answered with 413.
pub const MAX_BODY: usize = 8 << 20;

/// Asks for a client certificate: "I was served on this segment, and this key is mine".
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnrolRequest {
    /// The one-time token of [`crate::config::BootConfig`].
    pub token: String,
    /// PKCS #10 certificate signing request, PEM. The controller takes only the public key from it.
    pub csr: String,
    /// Who the machine says that it is.
    pub identity: Identity,
    /// [`PROTOCOL`] as the agent speaks it.
    pub protocol: String,
    /// The agent's own version.
    pub agent_version: String,
    /// The interface the firmware booted from, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_mac: Option<Mac>,
    /// X25519 public key (RFC 7748) that is born and dies with this session, base64: secrets are sealed to it. Empty: none. Since 1.1.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub seal_key: String,
}

/// Asks for a further certificate over a session whose certificate nears its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewRequest {
    /// PKCS #10 certificate signing request, PEM.
    pub csr: String,
}

/// A certificate and what goes with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnrolResponse {
    /// The Server object's name: how the controller calls this machine.
    pub server: String,
    /// Certificate chain, PEM, leaf first.
    pub certificate: String,
    /// Unix seconds at which the agent should have renewed; well before the certificate ends.
    pub renew_at: i64,
    /// The controller's clock, unix seconds.
    pub time: i64,
    /// The authorities to trust from now on, PEM.
    pub ca_pem: String,
}

/// The inventory is stored: it survives the controller from now on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InventoryResponse {
    /// The controller's clock, unix seconds.
    pub time: i64,
}

/// "I am here; what next?"
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PollRequest {
    /// The id of the last command that the agent has carried out or taken up; empty before the first.
    pub last: String,
    /// For how many seconds the agent lets the controller hold this, if there is nothing to say; the controller holds it for
    /// [`HOLD_SECONDS`] at most. Without: [`SHORT_HOLD_SECONDS`]. Since 1.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_seconds: Option<u64>,
    /// How the command named in `last` went, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// With an outcome: a command to leave that comes with the answer is carried out without another word, since nothing else is under
    /// way. Since 1.3.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub goes_at_once: bool,
    /// How far the command named in `last` is, while it runs. Since 1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// With a failed outcome: the last lines of the agent's log, oldest first, at most [`MAX_LOG`] bytes. Since 1.1.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "first::<MAX_LOG_LINES, _, _>"
    )]
    pub log: Vec<String>,
    /// With a good outcome: what did not go as it should and did not make the job fail, for people, at most [`MAX_WARNINGS`]. Since 1.4.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "first::<MAX_WARNINGS, _, _>"
    )]
    pub warnings: Vec<String>,
}

/// The last of `lines` that have at most [`MAX_LOG`] bytes together, with an end of line for each.
pub fn newest(lines: impl DoubleEndedIterator<Item = String>) -> Vec<String> {
    let mut left = MAX_LOG;
    let fits = |line: &String| {
        let rest = left.checked_sub(line.len() + 1);
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    let mut kept: Vec<String> = lines.rev().take_while(fits).collect();
    kept.reverse();
    kept
}

/// What the agent does next; the same command is answered until `last` names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PollResponse {
    /// The next command, or none: stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// The controller's clock, unix seconds.
    pub time: i64,
}

/// One command to the agent, idempotent under its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Command {
    /// Operation id. The same one is carried out once in a session, however often it is given.
    pub id: String,
    /// The term of the leader that decided it, 0 if it comes from none: an agent refuses a command of an older term than it has seen. Since
    /// 1.1.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch: i64,
    /// With a command to leave: that the machine does so is written already, and need not be told. Since 1.3.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub farewell: bool,
    /// What to do.
    pub action: Action,
}

fn is_zero(epoch: &i64) -> bool {
    *epoch == 0
}

/// What a [`Command`] asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "do")]
pub enum Action {
    /// Collect and send the inventory again.
    Inspect,
    /// Reboot; the boot services then let the firmware go on to the machine's own disk.
    Reboot,
    /// Write out what is buffered and switch off. Since 1.1.
    PowerOff,
    /// Clear partition tables and signatures. Since 1.1.
    Clean(Clean),
    /// Write an image. Since 1.1.
    Write(Box<Write>),
    /// A command of a newer controller: answered with a failed [`Outcome`].
    #[serde(other)]
    Unknown,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "result")]
pub enum Outcome {
    /// Done.
    Done,
    /// Not done; the message says what failed and on what.
    Failed {
        /// For people.
        message: String,
        /// For machines: what may come of trying again. Since 1.1.
        #[serde(default)]
        failure: Failure,
    },
}

/// Lines of the agent's log, oldest first; at most [`MAX_LOG_BODY`] bytes as JSON, and [`MAX_LOG_LINES`] lines are shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogRequest {
    /// The lines, without line ends.
    pub lines: Head<String, MAX_LOG_LINES>,
}

/// Why a request was refused.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{kind:?}: {message}")]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// For machines.
    pub kind: ProblemKind,
    /// For people: what failed, on which object, and what happens next.
    pub message: String,
}

/// The agent's reaction depends on this alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProblemKind {
    /// The body is not what the call takes. Final for this body.
    Malformed,
    /// The body is larger than [`MAX_BODY`]. Final for this body.
    TooLarge,
    /// Another major version of the protocol. Final: the machine must boot again to get a fitting agent.
    Version,
    /// The token is expired, foreign, forged or spent with another key. Final: boot again for a new one.
    Token,
    /// The certificate is revoked, expired or names another machine. Final: boot again.
    Certificate,
    /// The segment takes no more machines for now, or this machine tells new things too often. Try again after `Retry-After`.
    Quota,
    /// The API server cannot be reached or is busy; nothing was lost. Try again after `Retry-After`.
    Unavailable,
    /// Something that a newer controller knows.
    #[serde(other)]
    Other,
}

impl ProblemKind {
    /// True if the same request can succeed later.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            ProblemKind::Quota | ProblemKind::Unavailable | ProblemKind::Other
        )
    }
}

#[cfg(test)]
mod tests;
