//! The API server's own list of requests (kube-apiserver's audit log, `audit.k8s.io/v1`, one JSON object a line).

use std::{fs, path::Path};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Deserialize;

/// One request that is no watch.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// What the one who asks says of itself.
    #[serde(default)]
    pub user_agent: String,
    /// `get`, `list`, `create`, `update`, `patch` or `delete`.
    pub verb: String,
    /// Of what.
    #[serde(default)]
    pub object_ref: Object,
    /// How it was answered.
    #[serde(default)]
    pub response_status: Answer,
    /// When the API server received it, by its clock.
    #[serde(rename = "requestReceivedTimestamp")]
    pub received: Timestamp,
}

impl Asked {
    /// True if it asked for a change.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list")
    }
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// HTTP status code.
    pub code: u16,
}

/// What a request is about.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Object {
    /// Plural of the kind.
    pub resource: String,
    /// The part of it, such as `status`; empty for the whole.
    pub subresource: String,
    /// Namespace, if it lives in one.
    pub namespace: String,
    /// Name; empty for what is made under a name that its body gives.
    pub name: String,
}

pub(super) fn read(log: &Path) -> Result<Vec<Asked>> {
    let text = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    // The last line may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("read {line}")))
        .collect()
}
