//! A further archive for the machine, made when the controller starts: the firmware that the ramdisk's modules name,
//! and certificate authorities of the site.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use muster_proto::config::AUTHORITIES;

use crate::cpio::{AddError, Archive};
use crate::glob;
use crate::packed::Packing;

/// Where the kernel looks for firmware (`drivers/base/firmware_loader/main.c`, `fw_path`).
const FIRMWARE_DIR: &str = "lib/firmware";

/// The largest firmware file that is taken along, in bytes.
const MAX_FIRMWARE: u64 = 256 << 20;

/// Why the archive could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// A firmware folder does not exist or cannot be listed.
    #[error("list firmware folder {path:?}")]
    List {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read or decompressed.
    #[error("read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's or the decompressor's reason.
        #[source]
        source: io::Error,
    },
    /// A file given as certificate authority is none.
    #[error("read certificate authority {path:?}: it contains no PEM certificate")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// Two files want the same place in the archive.
    #[error("add {path:?} to the archive")]
    Add {
        /// The file.
        path: PathBuf,
        /// The place and the reason.
        #[source]
        source: AddError,
    },
}

/// A firmware name that no folder has a file for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The module that names it.
    pub module: String,
    /// The name below `/lib/firmware`, possibly a pattern.
    pub name: String,
}

/// Adds to `archive` exactly the files that `table` names, and gives the names that were not found.
///
/// The first folder that has a name wins. Files that are stored compressed go in unpacked, since not every kernel
/// can read them otherwise.
pub fn add_firmware(
    archive: &mut Archive,
    folders: &[PathBuf],
    table: &BTreeMap<String, Vec<String>>,
) -> Result<Vec<Missing>, FirmwareError> {
    for folder in folders {
        fs::read_dir(folder).map_err(|source| FirmwareError::List {
            path: folder.clone(),
            source,
        })?;
    }
    let mut files = BTreeMap::new();
    let mut missing = Vec::new();
    for (module, names) in table {
        for name in names {
            let mut found = false;
            for folder in folders {
                for (name, file) in find(folder, name)? {
                    found = true;
                    files.entry(name).or_insert(file);
                }
            }
            if !found {
                missing.push(Missing {
                    module: module.clone(),
                    name: name.clone(),
                });
            }
        }
    }
    for (name, path) in files {
        let read = || packing(&path, &name).unpack(fs::read(&path)?, MAX_FIRMWARE);
        let content = read().map_err(|source| FirmwareError::Read {
            path: path.clone(),
            source,
        })?;
        archive
            .file(&format!("{FIRMWARE_DIR}/{name}"), 0o644, content)
            .map_err(|source| FirmwareError::Add { path, source })?;
    }
    Ok(missing)
}

/// Adds a file, which must hold a certificate in PEM, under its own name; `number` tells it from those of other folders.
pub fn add_authority(archive: &mut Archive, number: usize, path: &Path) -> Result<(), FirmwareError> {
    let content = fs::read(path).map_err(|source| FirmwareError::Read {
        path: path.to_owned(),
        source,
    })?;
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    if !content.windows(BEGIN.len()).any(|window| window == BEGIN) {
        return Err(FirmwareError::NoCertificate {
            path: path.to_owned(),
        });
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    archive
        .file(&format!("{AUTHORITIES}/{number}-{name}"), 0o644, content)
        .map_err(|source| FirmwareError::Add {
            path: path.to_owned(),
            source,
        })?;
    Ok(())
}

/// The files below `folder` that `name` means, by their names without the ending of a compression.
fn find(folder: &Path, name: &str) -> Result<Vec<(String, PathBuf)>, FirmwareError> {
    let mut found = vec![(String::new(), folder.to_owned())];
    let parts: Vec<_> = name.split('/').collect();
    if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
        return Ok(Vec::new());
    }
    for (nth, part) in parts.iter().enumerate() {
        let last = nth + 1 == parts.len();
        let mut deeper = Vec::new();
        for (above, dir) in &found {
            for (name, path) in children(dir, part, last)? {
                let name = if above.is_empty() {
                    name
                } else {
                    format!("{above}/{name}")
                };
                deeper.push((name, path));
            }
        }
        found = deeper;
    }
    Ok(found)
}

/// Children of `dir` that match `part`: directories, or regular files if it is the `last` part of a name.
fn children(dir: &Path, part: &str, last: bool) -> Result<Vec<(String, PathBuf)>, FirmwareError> {
    // Links are followed: firmware collections are full of them.
    let fits = |path: &Path| if last { path.is_file() } else { path.is_dir() };
    if !glob::is_pattern(part) {
        let endings: &[&str] = if last { &["", ".xz", ".zst", ".gz"] } else { &[""] };
        let candidates = endings.iter().map(|ending| dir.join(format!("{part}{ending}")));
        return Ok(candidates
            .filter(|path| fits(path))
            .take(1)
            .map(|path| (part.to_owned(), path))
            .collect());
    }
    let list = || {
        fs::read_dir(dir)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()
    };
    let mut paths = list().map_err(|source| FirmwareError::List {
        path: dir.to_owned(),
        source,
    })?;
    paths.sort();
    let named = paths.into_iter().filter(|path| fits(path)).filter_map(|path| {
        let file = path.file_name()?.to_str()?;
        let name = if last { Packing::of(file).0 } else { file };
        glob::matches(part, name).then(|| (name.to_owned(), path.clone()))
    });
    Ok(named.collect())
}

/// How the file at `path` is packed; a file that has exactly the name asked for is wanted as it is.
fn packing(path: &Path, name: &str) -> Packing {
    if path.ends_with(name) {
        Packing::Plain
    } else {
        Packing::of(path.to_str().unwrap_or_default()).1
    }
}

#[cfg(test)]
mod tests;
