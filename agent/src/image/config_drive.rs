//! The config drive: the operating system's first instructions, in OpenStack's layout, as a file system image. Pure.

use muster_proto::job::ConfigDrive;

use super::iso9660::{self, Directory, IsoError};

/// Volume and partition label by which cloud-init, ignition and cloudbase-init find it.
pub const LABEL: &str = "config-2";

/// The largest config drive, in bytes, as upstream has it.
pub const LARGEST: u64 = 64 << 20;

/// No config drive can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigDriveError {
    /// Linux mounts ISO 9660, whose blocks have 2048 bytes, only from disks with blocks that are no larger.
    #[error("make the config drive: ISO 9660 cannot be mounted from a disk with blocks of {block} bytes")]
    Block {
        /// The disk's logical block size.
        block: u32,
    },
    /// There is too much in it.
    #[error("make the config drive: {len} bytes are more than the {LARGEST} that are allowed")]
    TooLarge {
        /// How large it would be.
        len: u64,
    },
    /// Its data cannot be put into files.
    #[error("make the config drive")]
    Iso {
        /// Why.
        source: IsoError,
    },
}

/// An ISO 9660 image with `openstack/latest/` in it, for a disk with blocks of `block` bytes. The same data give the same bytes.
///
/// # Errors
/// [`ConfigDriveError`], one variant for each way to fail.
pub fn image(drive: &ConfigDrive, block: u32) -> Result<Vec<u8>, ConfigDriveError> {
    if block > iso9660::BLOCK {
        return Err(ConfigDriveError::Block { block });
    }
    let mut latest = Directory::default();
    latest.file("meta_data.json", json(&drive.meta_data));
    if let Some(network) = &drive.network_data {
        latest.file("network_data.json", json(network));
    }
    if let Some(user_data) = &drive.user_data {
        latest.file("user_data", user_data.clone());
    }
    let mut openstack = Directory::default();
    openstack.directory("latest", latest);
    let mut root = Directory::default();
    root.directory("openstack", openstack);
    let len = root.image_len();
    if len > LARGEST {
        return Err(ConfigDriveError::TooLarge { len });
    }
    iso9660::image(LABEL, &root).map_err(|source| ConfigDriveError::Iso { source })
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON values have only string keys")
}

#[cfg(test)]
mod tests;
