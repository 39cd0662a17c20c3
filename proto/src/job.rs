//! What a running ramdisk is told to do, in detail. A job is stored on the Server before the agent hears of it, is idempotent under its
//! id, and names the machine and the disks that it means: the agent compares before it opens anything.
//!
//! A job that destroys data carries what was known when it was decided. If the machine or a disk is another one, the agent fails the
//! job and touches nothing.

use serde::{Deserialize, Serialize};

use crate::{identity::Identity, inventory::Disk};

/// The machine that a job means. Compared field by field; what is `None` here is not compared, but not all may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct MachineId {
    /// SMBIOS system UUID, lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_uuid: Option<String>,
    /// SMBIOS system serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_serial: Option<String>,
    /// SMBIOS baseboard serial number: all that tells a machine apart whose vendor filled in nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub board_serial: Option<String>,
}

impl From<&Identity> for MachineId {
    fn from(identity: &Identity) -> MachineId {
        MachineId {
            system_uuid: identity.system_uuid.clone(),
            system_serial: identity.system_serial.clone(),
            board_serial: identity.board_serial.clone(),
        }
    }
}

/// The disk that a job means: how to find it, and what it must be. Fields as in the inventory; empty ones are not compared.
/// Serial number and WWN decide which disk it is; path and name only where there is neither, or for one of several paths to
/// the same disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct DiskId {
    /// Device node, such as `/dev/sda`: a hint, since it may change from boot to boot.
    pub name: String,
    /// The stable name, such as `/dev/disk/by-path/pci-0000:00:04.0`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub by_path: String,
    /// Serial number.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub serial: String,
    /// World wide name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub wwn: String,
    /// The same with its vendor's extension: of several disks of one array the first half may be the same.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub wwn_with_extension: String,
    /// Size in bytes; always compared.
    pub size_bytes: u64,
    /// When the disk was chosen, the machine had another one of this serial number, world wide name and size, which may be the only one
    /// that answers when the disk is looked for: this one must be where `byPath` says.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub has_twin: bool,
}

impl From<&Disk> for DiskId {
    fn from(disk: &Disk) -> DiskId {
        DiskId {
            name: disk.name.clone(),
            by_path: disk.by_path.clone(),
            serial: disk.serial.clone(),
            wwn: disk.wwn.clone(),
            wwn_with_extension: disk.wwn_with_extension.clone(),
            size_bytes: disk.size_bytes,
            has_twin: false,
        }
    }
}

/// Clears partition tables and signatures of file systems and volumes, so that nothing finds or boots them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Clean {
    /// Which machine.
    pub machine: MachineId,
    /// Which disks; no other is touched.
    pub disks: Vec<DiskId>,
}

/// Writes an image to a disk and makes it what the machine boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Write {
    /// Which machine.
    pub machine: MachineId,
    /// Which disk; all that is on it is lost.
    pub disk: DiskId,
    /// What is written.
    pub image: ImageSource,
    /// The contents of the config drive (`ConfigDrive` as JSON), sealed to the session's key and in base64; none: no config drive is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_drive: Option<String>,
    /// True if the image is written without the config drive, with a warning, where that has no room: nobody asked for what it holds. Since 1.4.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub config_drive_optional: bool,
}

/// Where an image comes from and how it is verified.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct ImageSource {
    /// `http` or `https` URL of a raw image, plain or compressed with zstd or gzip (told by its first bytes).
    pub url: String,
    /// Digest of the bytes as they come from the URL: hexadecimal, or the URL of a list of digests (in the form of `sha256sum`, BSD or
    /// OpenSSL) that names the image's file.
    pub checksum: String,
    /// Its algorithm.
    pub algorithm: DigestAlgorithm,
}

/// Algorithm of a digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub enum DigestAlgorithm {
    /// By the digest's length.
    #[default]
    Auto,
    /// SHA-256 (FIPS 180-4).
    Sha256,
    /// SHA-512 (FIPS 180-4).
    Sha512,
    /// One that a newer version knows: nothing is verified by it, so nothing is written.
    #[serde(other)]
    #[cfg_attr(feature = "kinds", schemars(skip))]
    Unknown,
}

/// What the config drive holds, in OpenStack's layout (`openstack/latest/`): the operating system's first instructions. Secret.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigDrive {
    /// `meta_data.json`.
    pub meta_data: serde_json::Map<String, serde_json::Value>,
    /// `network_data.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_data: Option<serde_json::Value>,
    /// `user_data`, byte for byte; in base64 as JSON.
    #[serde(skip_serializing_if = "Option::is_none", with = "base64_bytes")]
    pub user_data: Option<Vec<u8>>,
}

/// Bytes as JSON: a list of numbers would be thrice as long, and an object of Kubernetes has little room.
mod base64_bytes {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        bytes.as_ref().map(|bytes| STANDARD.encode(bytes)).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        // What stands there is secret: no part of it may reach an error's words.
        let decode = |text: String| STANDARD.decode(text).map_err(|_| D::Error::custom("no base64"));
        text.map(decode).transpose()
    }
}

impl std::fmt::Debug for ConfigDrive {
    /// Shows nothing of the contents.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConfigDrive { .. }")
    }
}

/// What may come of trying again after a job failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub enum Failure {
    /// It was decided for other circumstances: sealed to an earlier session, of an older term, replaced by a newer job. To be decided anew.
    Outdated,
    /// The same never succeeds: another machine, another disk, a digest that does not match, a format that is not written.
    Final,
    /// The same may succeed another time: the image's server or the network failed, or the agent does not say.
    #[default]
    #[serde(other)]
    Temporary,
}

/// How far the job of that id is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Progress {
    /// What the agent does now, for people: `write image`.
    pub step: String,
    /// Of the whole job, 0 to 100.
    pub percent: u8,
    /// Now, in bytes per second; 0 where it says nothing.
    pub bytes_per_second: u64,
}
