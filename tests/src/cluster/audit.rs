//! The API server's own list of writes (kube-apiserver's audit log, `audit.k8s.io/v1`, one JSON object a line).

use std::{fs, path::Path};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Deserialize;

/// One write, whatever its answer was.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    /// What the writer says of itself.
    #[serde(default)]
    pub user_agent: String,
    /// `create`, `update`, `patch` or `delete`.
    pub verb: String,
    /// To what.
    #[serde(default)]
    pub object_ref: Object,
    /// When the API server received it, by its clock.
    #[serde(rename = "requestReceivedTimestamp")]
    pub received: Timestamp,
}

/// What was written to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Object {
    /// Plural of the kind.
    pub resource: String,
    /// Namespace, if it lives in one.
    pub namespace: String,
    /// Name; empty for what is made under a name that its body gives.
    pub name: String,
}

pub(super) fn read(log: &Path) -> Result<Vec<Written>> {
    let text = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    // The last line may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("read {line}")))
        .collect()
}
