use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A network that Muster serves: which machines it answers there, how, and what happens to unknown ones.
/// Without a Segment, Muster answers nothing.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "muster.dev",
    version = "v1alpha1",
    kind = "Segment",
    plural = "segments",
    shortname = "seg",
    namespaced,
    status = "SegmentStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Interface","type":"string","jsonPath":".spec.interface"}"#,
    printcolumn = r#"{"name":"DHCP","type":"string","jsonPath":".spec.dhcp.mode"}"#,
    printcolumn = r#"{"name":"Unknown","type":"string","jsonPath":".spec.unknown"}"#,
    printcolumn = r#"{"name":"Hosts In","type":"string","jsonPath":".spec.hostNamespace"}"#,
    printcolumn = r#"{"name":"Serving","type":"string","jsonPath":".status.conditions[?(@.type=='Serving')].status"}"#,
    printcolumn = r#"{"name":"Edge","type":"string","priority":1,"jsonPath":".status.edge"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type=='Serving')].message"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct SegmentSpec {
    /// The local interface to serve on, such as `eth1` or `eth1.20`. Omit for a segment that is reached only through relays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[^\s/]{1,15}$"))]
    pub interface: Option<String>,
    /// Addresses of DHCP relay agents (`giaddr`) whose requests belong here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub relays: Vec<String>,
    /// The subnet in CIDR form, such as `10.77.0.0/24`. Requests relayed from an address in it also belong here.
    #[schemars(regex(pattern = r"^\d{1,3}(\.\d{1,3}){3}/\d{1,2}$"))]
    pub subnet: String,
    /// DHCP on this segment.
    #[serde(default)]
    pub dhcp: Dhcp,
    /// Where machines on this segment reach this controller's boot files: `address` or `address:port` for HTTP and TFTP.
    /// Default: the interface's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_address: Option<String>,
    /// Where agents on this segment reach the replicas, `address:port` each, tried in order.
    /// Default: the interface's own address and the port that the controller was started with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub agent_endpoints: Vec<String>,
    /// HTTP proxy that agents use for images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// The namespace in which new hosts are created. Default: the Segment's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_namespace: Option<String>,
    /// What happens to machines that nobody has described; with `hold`, also to known ones that are free.
    #[serde(default)]
    pub unknown: UnknownPolicy,
    /// The maximum number of Servers created through this segment; further machines are refused until some are deleted.
    #[serde(default = "default_quota")]
    #[schemars(range(min = 1, max = 100_000))]
    pub quota: u32,
    /// The trust that a session must have before it is given secrets and before its reports about a known host are accepted.
    /// Default: `bmc-delivered` for secrets, `segment` for reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required_trust: Option<Trust>,
    /// The ramdisk that machines on this segment boot.
    #[serde(default)]
    pub profile: Profile,
    /// Additional kernel parameters, one per entry: `console=ttyS1,115200`, …
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(regex(pattern = r"^[A-Za-z0-9_.,:=/@+-]{1,128}$")))]
    pub kernel_parameters: Vec<String>,
}

impl SegmentSpec {
    /// The trust a session must have before it is given secrets.
    pub fn trust_for_secrets(&self) -> Trust {
        self.required_trust.unwrap_or(Trust::BmcDelivered)
    }

    /// The trust a session must have before it is believed about a known host.
    pub fn trust_to_believe(&self) -> Trust {
        self.required_trust.unwrap_or(Trust::Segment)
    }
}

fn default_quota() -> u32 {
    1000
}

/// DHCP on a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Dhcp {
    /// Server, proxy or off.
    pub mode: DhcpMode,
    /// Addresses that the server may lease; in server mode at least one range.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub ranges: Vec<Range>,
    /// Default gateway (option 3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<String>,
    /// Name servers (option 6).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_servers: Vec<String>,
    /// Domain name (option 15).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Time servers (option 42).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ntp_servers: Vec<String>,
    /// Lease time in seconds. Default: 3600.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 604_800))]
    pub lease_seconds: Option<u32>,
}

/// Who assigns addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DhcpMode {
    /// Muster does: the network has no other DHCP server.
    Server,
    /// Another server does; Muster adds only the boot file (PXE 2.1, 2.2.3).
    Proxy,
    /// Another server does, and names Muster's boot files itself.
    #[default]
    Off,
}

/// A range of addresses, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Range {
    /// First address.
    #[schemars(regex(pattern = r"^\d{1,3}(\.\d{1,3}){3}$"))]
    pub start: String,
    /// Last address.
    #[schemars(regex(pattern = r"^\d{1,3}(\.\d{1,3}){3}$"))]
    pub end: String,
}

/// What happens to unknown machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnknownPolicy {
    /// They get no answer and go on to their next boot device.
    #[default]
    Ignore,
    /// They boot the ramdisk once, report their inventory and then boot their own disk.
    Discover,
    /// They boot the ramdisk, report their inventory and stay there, ready for a job.
    Hold,
}

/// How a session has proved its identity, from weakest to strongest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Nothing has been proved.
    Unknown,
    /// It presented a one-time token that was served on the segment: proves only that it was the first to ask there.
    #[default]
    Segment,
    /// It presented a nonce that was delivered through the machine's BMC.
    BmcDelivered,
    /// It was attested by a TPM.
    Tpm,
}

impl Trust {
    /// As the API has it.
    pub fn name(self) -> &'static str {
        match self {
            Trust::Unknown => "unknown",
            Trust::Segment => "segment",
            Trust::BmcDelivered => "bmc-delivered",
            Trust::Tpm => "tpm",
        }
    }
}

/// A kind of ramdisk.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Full kernel with the drivers of physical servers.
    #[default]
    Server,
    /// Cloud kernel with virtio and NVMe, for virtual machines.
    Lab,
}

impl Profile {
    /// Its name, as in file names and URLs.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Server => "server",
            Profile::Lab => "lab",
        }
    }
}

/// How the segment is being served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SegmentStatus {
    /// `Serving`: the segment is valid and served, or why not. `Alone`: false with the address of a second DHCP or PXE server.
    /// `SecretsProtected`: false if the required trust lets anyone on the segment obtain secrets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec that the conditions describe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The edge that reports this: its host name, or the value of `--edge-name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub edge: String,
}
