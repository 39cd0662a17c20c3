//! The config drive: the operating system's first instructions, in OpenStack's layout, as a file system image. Pure.

use std::{
    borrow::Cow,
    io::{self, Cursor, Write},
};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use muster_proto::job::ConfigDrive;

use super::iso9660::{self, Directory, IsoError};

/// Volume and partition label by which cloud-init, ignition and cloudbase-init find it.
pub const LABEL: &str = "config-2";

/// The largest config drive, in bytes, as upstream has it.
pub const LARGEST: u64 = 64 << 20;

/// The largest blocks of a disk from which Linux mounts ISO 9660, in bytes: those of the file system itself.
const LARGEST_ISO_BLOCK: u32 = iso9660::BLOCK;
/// The same of FAT.
const LARGEST_FAT_BLOCK: u32 = 4096;

/// What a FAT volume takes beside its files, in bytes: tables, directories, and half a cluster for each file.
const FAT_OVERHEAD: usize = 1 << 20;

/// No config drive can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigDriveError {
    /// No file system of a config drive can be mounted from the disk.
    #[error("create the config drive: it cannot be mounted from a disk with {block}-byte blocks")]
    Block {
        /// The disk's logical block size.
        block: u32,
    },
    /// There is too much in it.
    #[error("create the config drive: it has {len} bytes, but only {LARGEST} are allowed")]
    TooLarge {
        /// How large it would be.
        len: u64,
    },
    /// Its data cannot be put into files.
    #[error("create the config drive")]
    Iso {
        /// Why.
        source: IsoError,
    },
    /// The same, for a disk with large blocks.
    #[error("create the config drive for a disk with {block}-byte blocks")]
    Fat {
        /// The disk's logical block size.
        block: u32,
        /// Why.
        source: io::Error,
    },
}

/// Whether a disk with blocks of `block` bytes can have a config drive.
///
/// # Errors
/// [`ConfigDriveError::Block`].
pub fn check(block: u32) -> Result<(), ConfigDriveError> {
    if block > LARGEST_FAT_BLOCK {
        return Err(ConfigDriveError::Block { block });
    }
    Ok(())
}

/// As many bytes every config drive has on a disk with blocks of `block` bytes: those of one that says nothing.
///
/// # Errors
/// [`ConfigDriveError`], one variant for each way to fail.
pub fn least(block: u32) -> Result<u64, ConfigDriveError> {
    image(&ConfigDrive::default(), block).map(|empty| empty.len() as u64)
}

/// A file system with `openstack/latest/` in it, for a disk with blocks of `block` bytes: ISO 9660, or FAT where that cannot be mounted.
/// OpenStack knows both. The same data give the same bytes.
///
/// # Errors
/// [`ConfigDriveError`], one variant for each way to fail.
pub fn image(drive: &ConfigDrive, block: u32) -> Result<Vec<u8>, ConfigDriveError> {
    check(block)?;
    let mut files = vec![("meta_data.json", Cow::Owned(json(&drive.meta_data)))];
    if let Some(network) = &drive.network_data {
        files.push(("network_data.json", Cow::Owned(json(network))));
    }
    if let Some(user_data) = &drive.user_data {
        files.push(("user_data", Cow::Borrowed(user_data.as_slice())));
    }
    if block <= LARGEST_ISO_BLOCK {
        iso(files)
    } else {
        fat(&files, block)
    }
}

fn iso(files: Vec<(&str, Cow<'_, [u8]>)>) -> Result<Vec<u8>, ConfigDriveError> {
    let mut latest = Directory::default();
    for (name, content) in files {
        latest.file(name, content.into_owned());
    }
    let mut openstack = Directory::default();
    openstack.directory("latest", latest);
    let mut root = Directory::default();
    root.directory("openstack", openstack);
    check_len(root.image_len())?;
    iso9660::image(LABEL, &root).map_err(|source| ConfigDriveError::Iso { source })
}

fn fat(files: &[(&str, Cow<'_, [u8]>)], block: u32) -> Result<Vec<u8>, ConfigDriveError> {
    let content: usize = files.iter().map(|(_, content)| content.len()).sum();
    let len = content
        .saturating_add(FAT_OVERHEAD)
        .next_multiple_of(FAT_OVERHEAD);
    check_len(len as u64)?;
    let mut volume = Cursor::new(vec![0; len]);
    fill(&mut volume, files, block).map_err(|source| ConfigDriveError::Fat { block, source })?;
    Ok(volume.into_inner())
}

fn fill(volume: &mut Cursor<Vec<u8>>, files: &[(&str, Cow<'_, [u8]>)], block: u32) -> io::Result<()> {
    let block = u16::try_from(block).map_err(io::Error::other)?;
    let mut label = [b' '; 11];
    label[..LABEL.len()].copy_from_slice(LABEL.as_bytes());
    let options = FormatVolumeOptions::new()
        .bytes_per_sector(block)
        .volume_label(label);
    fatfs::format_volume(&mut *volume, options)?;
    let volume = FileSystem::new(volume, FsOptions::new())?;
    let latest = volume.root_dir().create_dir("openstack")?.create_dir("latest")?;
    for (name, content) in files {
        latest.create_file(name)?.write_all(content)?;
    }
    drop(latest);
    volume.unmount()
}

fn check_len(len: u64) -> Result<(), ConfigDriveError> {
    if len > LARGEST {
        return Err(ConfigDriveError::TooLarge { len });
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON values have only string keys")
}

#[cfg(test)]
mod tests;
