//! Which file on an EFI system partition starts the image's operating system.

use std::io;

use crate::disk::fat::{Entry, Fat, FatError, ReadAt};

/// How the firmware of this architecture calls the loader that it takes without an entry (UEFI specification 2.10, 3.5.1.1).
#[cfg(target_arch = "aarch64")]
const SUFFIX: &str = "AA64";
#[cfg(not(target_arch = "aarch64"))]
const SUFFIX: &str = "X64";

/// There is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The partition cannot be read.
    #[error("look for a boot loader on the image's EFI system partition")]
    Fat {
        /// Why.
        source: FatError,
    },
    /// It has none.
    #[error("look for a boot loader on the image's EFI system partition: there is no {0}")]
    None(String),
}

/// A boot loader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loader {
    /// Such as `\EFI\debian\shimx64.efi`.
    pub path: String,
    /// True if the firmware finds a loader without an entry, too.
    pub has_fallback: bool,
    /// The program that it starts first of all: shim's fallback, which puts entries of its own before all others in the boot order. None if
    /// it starts none.
    pub reorders: Option<String>,
}

/// The loader that a `BOOT….CSV` names, which distributions put beside their shim (shim's `README.fallback`), or `BOOT.CSV` without the
/// architecture, or else the one that every firmware looks for. `read` begins at the partition's start.
///
/// # Errors
/// [`BootError`], one variant for each way to fail.
pub fn loader(read: &mut ReadAt<'_>) -> Result<Loader, BootError> {
    let fat = |source| BootError::Fat { source };
    let mut file_system = Fat::open(read).map_err(fat)?;
    let fallback = format!("\\EFI\\BOOT\\BOOT{SUFFIX}.EFI");
    let none = || BootError::None(fallback.clone());
    let root = file_system.root().map_err(fat)?;
    let efi = directory(&root, "EFI").ok_or_else(none)?;
    let mut vendors = file_system.list(efi).map_err(fat)?;
    vendors.retain(|entry| entry.is_directory);
    vendors.sort_by_key(|entry| entry.name.to_ascii_lowercase());

    let mut has_fallback = false;
    let mut reorders = None;
    let mut named = None;
    for vendor in &vendors {
        let files = file_system.list(vendor).map_err(fat)?;
        let file = |name: &str| {
            files
                .iter()
                .find(|file| !file.is_directory && file.is_called(name))
        };
        if vendor.is_called("BOOT") {
            has_fallback = file(&format!("BOOT{SUFFIX}.EFI")).is_some();
            // As new and as old shims look for it (`should_use_fallback` in shim's `shim.c`).
            let program = file(&format!("FB{SUFFIX}.EFI")).or_else(|| file("FALLBACK.EFI"));
            reorders = program.map(|program| format!("\\EFI\\BOOT\\{}", program.name));
            continue;
        }
        for list in [format!("BOOT{SUFFIX}.CSV"), "BOOT.CSV".to_owned()] {
            if named.is_none()
                && let Some(list) = file(&list)
            {
                let list = file_system.contents(list).map_err(fat)?;
                // It must be there: an entry that leads nowhere would only delay the boot.
                let loader = names_in(&list).iter().find_map(|name| file(name));
                named = loader.map(|loader| format!("\\EFI\\{}\\{}", vendor.name, loader.name));
            }
        }
    }
    match named {
        Some(path) => Ok(Loader {
            path,
            has_fallback,
            reorders: None,
        }),
        None if has_fallback => Ok(Loader {
            path: fallback,
            has_fallback,
            reorders,
        }),
        None => Err(none()),
    }
}

fn directory<'e>(entries: &'e [Entry], name: &str) -> Option<&'e Entry> {
    entries
        .iter()
        .find(|entry| entry.is_directory && entry.is_called(name))
}

/// The files that the lines of a list name, each: UTF-16, `file,label,options,comment`.
fn names_in(list: &[u8]) -> Vec<String> {
    let units = list
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let text = String::from_utf16_lossy(&units.collect::<Vec<_>>());
    let lines = text.trim_start_matches('\u{feff}').lines();
    lines
        .filter_map(|line| line.split(',').next())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

/// As many bytes from a file system's start tell its label: an ISO's descriptor is the farthest.
pub const LABELLED: u64 = 0x8000 + 72;

/// The label of the file system that begins where `read` does: ISO 9660 or FAT; `None` for others.
///
/// # Errors
/// What the disk says.
pub fn volume_label(read: &mut ReadAt<'_>) -> io::Result<Option<String>> {
    let trimmed = |bytes: &[u8]| Some(String::from_utf8_lossy(bytes).trim_end().to_owned());
    let mut boot = [0; 512];
    match read(0, &mut boot) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    // Microsoft's FAT specification 1.03, section 3.
    if &boot[82..87] == b"FAT32" {
        return Ok(trimmed(&boot[71..82]));
    }
    if &boot[54..57] == b"FAT" {
        return Ok(trimmed(&boot[43..54]));
    }
    // ECMA-119, 8.4.
    let mut descriptor = [0; 72];
    match read(0x8000, &mut descriptor) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    Ok(if descriptor.starts_with(b"\x01CD001") {
        trimmed(&descriptor[40..72])
    } else {
        None
    })
}

#[cfg(test)]
mod tests;
