//! What the boot services put beside the initramfs for one boot of one machine: a small cpio with one JSON file.
//!
//! It never travels on the kernel command line, which every process, log and crash dump shows.

use serde::{Deserialize, Serialize};

/// Where the agent finds [`BootConfig`] as JSON, in the ramdisk's root.
pub const PATH: &str = "muster/config.json";

/// The file that stands last in the initramfs: if it is missing, the archive did not fit in memory.
pub const SENTINEL: &str = "muster/complete";

/// The directory in the ramdisk's root with the site's certificate authorities, one or more in PEM per file: whom the agent
/// believes to be a server of images.
pub const AUTHORITIES: &str = "muster/ca";

/// How long a token can be spent, in seconds from [`BootConfig::time`].
pub const TOKEN_LIFETIME: i64 = 3600;

/// Everything the agent must know to reach its controller and to prove that it was served here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootConfig {
    /// `https://address:port` of each replica, tried in order; addresses, not names, wherever possible.
    pub endpoints: Vec<String>,
    /// The certificate authorities that the agent trusts, PEM; during a rotation two.
    pub ca_pem: String,
    /// One-time token, sealed by the controller; opaque to the agent.
    pub token: String,
    /// Unix seconds when the file was made: TLS believes this clock, not the machine's, until the controller tells the time.
    pub time: i64,
    /// The interface that the firmware booted from, if the request told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_mac: Option<crate::Mac>,
    /// `host:port` of an HTTP proxy for images, if the Segment names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
}
