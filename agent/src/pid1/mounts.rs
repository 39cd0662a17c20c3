//! The kernel's file systems.

use std::{fs, io, path::PathBuf};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};

use crate::sys::Root;

/// A file system could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("mount {kind} on {}", place.display())]
pub(super) struct MountError {
    kind: &'static str,
    place: PathBuf,
    source: io::Error,
}

/// What everything else needs. Returns what failed: there is no console yet to say it on.
pub(super) fn mount_all(root: &Root) -> Vec<MountError> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    [
        ("proc", root.proc(""), quiet | MsFlags::MS_NODEV),
        ("sysfs", root.sys(""), quiet | MsFlags::MS_NODEV),
        ("devtmpfs", root.dev(""), quiet),
        ("tmpfs", root.at("run"), quiet | MsFlags::MS_NODEV),
    ]
    .into_iter()
    .filter_map(|(kind, place, flags)| mount_one(kind, place, flags).err())
    .collect()
}

/// The modules that mounts need and no device asks for.
pub(super) fn modules(root: &Root) -> &'static [&'static str] {
    if efi_variables(root).is_dir() {
        &["efivarfs"]
    } else {
        &[]
    }
}

/// What needs a module; may be repeated until it succeeds.
pub(super) fn mount_late(root: &Root) -> Result<(), MountError> {
    let place = efi_variables(root);
    if !place.is_dir() {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
    mount_one("efivarfs", place, flags)
}

fn efi_variables(root: &Root) -> PathBuf {
    root.sys("firmware/efi/efivars")
}

fn mount_one(kind: &'static str, place: PathBuf, flags: MsFlags) -> Result<(), MountError> {
    // Fails where it exists, and where it cannot be made the mount says why.
    _ = fs::create_dir_all(&place);
    match mount(Some(kind), &place, Some(kind), flags, None::<&str>) {
        // The kernel mounts devtmpfs itself if it was built to.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(MountError {
            kind,
            place,
            source: errno.into(),
        }),
    }
}
