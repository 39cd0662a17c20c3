//! Why a BMC was not asked, or did not do it. Plain data, in classes on which a state machine can decide.

use std::time::Duration;

use super::Epoch;

/// A call failed. Never proof of any state of the machine: who could not ask does not know.
///
/// The texts are stable (no times, no counts), without secrets, and [cleaned](muster_proto::text::clean).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BmcError {
    /// User and password are wrong, or may not do this. Nothing changes before the Secret does.
    #[error("the BMC refuses the credentials: {message}")]
    Credentials {
        /// What it said.
        message: String,
    },
    /// The certificate is not trusted. Nothing changes before the certificate, the authorities or the spec do.
    #[error("the BMC's certificate is not trusted: {reason}")]
    Untrusted {
        /// Why.
        reason: String,
    },
    /// No name, no route, no connection, none in time, or it ended in the middle. What was asked for may have happened.
    #[error("the BMC cannot be reached: {reason}")]
    Unreachable {
        /// At which step, and why.
        reason: String,
    },
    /// It is there and asks for patience; it is asked for something else already; or it fails to show what is looked at, which may pass.
    #[error("the BMC is busy or not ready: {message}")]
    Busy {
        /// What it said.
        message: String,
        /// When it wants to be asked again (`Retry-After`, RFC 9110 section 10.2.3).
        retry_after: Option<Duration>,
    },
    /// It has no such thing, or we have no driver for it.
    #[error("not supported: {what}")]
    Unsupported {
        /// What.
        what: String,
    },
    /// It understood and refuses.
    #[error("the BMC refuses, HTTP status {status}: {message}")]
    Refused {
        /// Its HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// The system that the address names, or any, is not there.
    #[error("the BMC has no system {path}")]
    NoSystem {
        /// Where one should be.
        path: String,
    },
    /// The address names none, and there are several.
    #[error("the BMC has several systems, so its address must name one, such as {}", .paths.join(" or "))]
    SeveralSystems {
        /// Some of them.
        paths: Vec<String>,
    },
    /// What it answers is not what the protocol says.
    #[error("the BMC's answer cannot be understood: {reason}")]
    Answer {
        /// What is wrong with it.
        reason: String,
    },
    /// There is a newer leadership: whoever made this call must not act any more.
    #[error("epoch {epoch} is over: this is epoch {seen}")]
    Fenced {
        /// The call's.
        epoch: Epoch,
        /// The newest one.
        seen: Epoch,
    },
    /// That leadership is over, whether or not there is another one: whoever made this call must not act any more.
    #[error("epoch {epoch} is over")]
    Lapsed {
        /// The call's.
        epoch: Epoch,
    },
    /// This process is ending.
    #[error("the controller is stopping")]
    Stopped,
}

impl BmcError {
    /// The class, as the label of a metric.
    pub fn class(&self) -> &'static str {
        match self {
            BmcError::Credentials { .. } => "credentials",
            BmcError::Untrusted { .. } => "untrusted",
            BmcError::Unreachable { .. } => "unreachable",
            BmcError::Busy { .. } => "busy",
            BmcError::Unsupported { .. } => "unsupported",
            BmcError::Refused { .. } => "refused",
            BmcError::NoSystem { .. } => "no-system",
            BmcError::SeveralSystems { .. } => "several-systems",
            BmcError::Answer { .. } => "answer",
            BmcError::Fenced { .. } | BmcError::Lapsed { .. } => "fenced",
            BmcError::Stopped => "stopped",
        }
    }
}
