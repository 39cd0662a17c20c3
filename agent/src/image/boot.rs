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
}

/// The loader that a `BOOT….CSV` names, which distributions put beside their shim (shim's `README.fallback`), or else the one that
/// every firmware looks for. `read` begins at the partition's start.
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
            continue;
        }
        if named.is_none()
            && let Some(list) = file(&format!("BOOT{SUFFIX}.CSV"))
        {
            let list = file_system.contents(list).map_err(fat)?;
            // It must be there: an entry that leads nowhere would only delay the boot.
            let loader = first_of_list(&list).and_then(|name| file(&name));
            named = loader.map(|loader| format!("\\EFI\\{}\\{}", vendor.name, loader.name));
        }
    }
    match named {
        Some(path) => Ok(Loader { path, has_fallback }),
        None if has_fallback => Ok(Loader {
            path: fallback,
            has_fallback,
        }),
        None => Err(none()),
    }
}

fn directory<'e>(entries: &'e [Entry], name: &str) -> Option<&'e Entry> {
    entries
        .iter()
        .find(|entry| entry.is_directory && entry.is_called(name))
}

/// The file that the first line of a list names: UTF-16, `file,label,options,comment`.
fn first_of_list(list: &[u8]) -> Option<String> {
    let units = list
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let text = String::from_utf16_lossy(&units.collect::<Vec<_>>());
    let line = text.trim_start_matches('\u{feff}').lines().next()?;
    let name = line.split(',').next()?.trim();
    (!name.is_empty()).then(|| name.to_owned())
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
