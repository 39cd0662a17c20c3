use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Trust;
use crate::{Mac, identity::Identity, inventory::Inventory};

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
    printcolumn = r#"{"name":"Since","type":"date","jsonPath":".status.session.since"}"#,
    printcolumn = r#"{"name":"Address","type":"string","jsonPath":".status.session.address"}"#,
    printcolumn = r#"{"name":"Segment","type":"string","jsonPath":".status.session.segment"}"#,
    printcolumn = r#"{"name":"Trust","type":"string","jsonPath":".status.session.trust"}"#,
    printcolumn = r#"{"name":"Agent","type":"string","jsonPath":".status.session.agentVersion"}"#,
    printcolumn = r#"{"name":"Contested","type":"boolean","priority":1,"jsonPath":".status.contested"}"#,
    printcolumn = r#"{"name":"Vendor","type":"string","priority":1,"jsonPath":".status.inventory.system.manufacturer"}"#,
    printcolumn = r#"{"name":"Product","type":"string","priority":1,"jsonPath":".status.inventory.system.product"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerSpec {
    /// The BareMetalHost that stands for this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostReference>,
    /// True after the discovered host was deleted: the machine stays away until someone annotates `muster.dev/approve`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dismissed: bool,
    /// What the machine is to do next while its ramdisk runs; set by the control role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
}

/// Points at a BareMetalHost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HostReference {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID, so that a host made anew under the same name is not taken for the old one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// One order to the running ramdisk; idempotent under its id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Order {
    /// Operation id.
    pub id: String,
    /// What to do.
    pub action: OrderAction,
}

/// What an [`Order`] asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OrderAction {
    /// Inventory again.
    #[default]
    Inspect,
    /// Reboot; the machine then boots its own disk.
    Release,
}

/// What is known of the machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerStatus {
    /// Every signal by which this machine was ever known.
    pub identity: Identity,
    /// The latest session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    /// True once two keys showed one token as this machine; cleared when it enrols alone again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub contested: bool,
    /// Names of Servers that share a signal with this one and are nevertheless another machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clashes: Vec<String>,
    /// The latest inventory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
    /// When the inventory arrived (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventoried: Option<String>,
    /// Trust of the session that reported the inventory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory_trust: Option<Trust>,
    /// The last order that the agent took up, and how it went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_order: Option<OrderOutcome>,
}

/// How an order went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OrderOutcome {
    /// Operation id.
    pub id: String,
    /// Empty while it runs and when it succeeded; else what failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// True once it has ended.
    pub done: bool,
}

/// One session of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Session {
    /// Whether the agent is there.
    pub state: SessionState,
    /// Since when (RFC 3339).
    pub since: String,
    /// From which address.
    pub address: String,
    /// On which [`super::Segment`].
    pub segment: String,
    /// How far it is trusted.
    pub trust: Trust,
    /// Version of the agent.
    pub agent_version: String,
    /// SHA-256 of the session's public key, hexadecimal; the machine's console shows it, too.
    pub key: String,
    /// The MAC address that it booted from, which its token was served for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub boot_mac: Option<Mac>,
}

/// Whether the agent is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionState {
    /// It polls.
    Connected,
    /// It was there and is silent now: rebooted, switched off or cut off.
    #[default]
    Disconnected,
}
