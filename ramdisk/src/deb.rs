//! Reads files out of a Debian package without installing it.
//!
//! A package is an `ar` archive (deb(5)) whose member `data.tar`, mostly compressed, holds the files.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::packed::Packing;

const AR_MAGIC: &[u8; 8] = b"!<arch>\n";
/// Length of an `ar` member's header: name 16, date 12, owner 6, group 6, mode 8, size 10, end 2.
const AR_HEADER: usize = 60;
/// No kernel, module or boot stub comes near this many bytes.
const MAX_FILE: u64 = 512 << 20;

/// Why a package could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// The bytes do not begin as an `ar` archive.
    #[error("read package: it is no Debian package")]
    Magic,
    /// A member's header is malformed.
    #[error("read package: malformed ar header {header:?}")]
    Header {
        /// The header as text.
        header: String,
    },
    /// There is no member named `data.tar` with a known compression.
    #[error("read package: it holds no data.tar that can be read, only {members:?}")]
    NoData {
        /// The members that are there.
        members: Vec<String>,
    },
    /// Reading the package itself failed.
    #[error("read package")]
    Read(#[source] io::Error),
    /// Unpacking `data.tar` failed.
    #[error("unpack {member}")]
    Unpack {
        /// The member's name.
        member: String,
        /// What the decompressor or the tar reader said.
        #[source]
        source: io::Error,
    },
    /// One file is larger than any that belongs here.
    #[error("unpack {path}: it is longer than {MAX_FILE} bytes")]
    Long {
        /// The file's path in the package.
        path: String,
    },
}

/// The regular files of a package whose path `wanted` accepts.
///
/// Paths are without leading `./`, and `usr/lib/` reads as `lib/`, because packages of merged-`/usr` systems moved
/// the modules there.
pub fn files(
    mut package: impl Read,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, Vec<u8>>, DebError> {
    let mut magic = [0; AR_MAGIC.len()];
    package.read_exact(&mut magic).map_err(|_| DebError::Magic)?;
    if &magic != AR_MAGIC {
        return Err(DebError::Magic);
    }
    let mut members = Vec::new();
    while let Some((name, size)) = next_member(&mut package)? {
        let (unpacked_name, packing) = Packing::of(&name);
        if unpacked_name == "data.tar" {
            let data = packing.reader((&mut package).take(size));
            return data
                .and_then(|data| tar_files(data, wanted))
                .map_err(|source| DebError::Unpack {
                    member: name.clone(),
                    source,
                })?;
        }
        members.push(name);
        // Members begin at even offsets.
        let skip = size + size % 2;
        io::copy(&mut (&mut package).take(skip), &mut io::sink()).map_err(DebError::Read)?;
    }
    Err(DebError::NoData { members })
}

fn next_member(package: &mut impl Read) -> Result<Option<(String, u64)>, DebError> {
    let mut header = Vec::with_capacity(AR_HEADER);
    package
        .take(AR_HEADER as u64)
        .read_to_end(&mut header)
        .map_err(DebError::Read)?;
    if header.is_empty() {
        return Ok(None);
    }
    let malformed = || DebError::Header {
        header: String::from_utf8_lossy(&header).into_owned(),
    };
    if header.len() != AR_HEADER || !header.ends_with(b"`\n") {
        return Err(malformed());
    }
    let text = |range: std::ops::Range<usize>| std::str::from_utf8(&header[range]).map(str::trim_end);
    let name = text(0..16).map_err(|_| malformed())?;
    let size = text(48..58)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(malformed)?;
    Ok(Some((name.trim_end_matches('/').to_owned(), size)))
}

fn tar_files(
    data: impl Read,
    wanted: impl Fn(&str) -> bool,
) -> io::Result<Result<BTreeMap<String, Vec<u8>>, DebError>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(data).entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = path.trim_start_matches("./");
        let path = match path.strip_prefix("usr/lib/") {
            Some(rest) => format!("lib/{rest}"),
            None => path.to_owned(),
        };
        if !wanted(&path) {
            continue;
        }
        if entry.size() > MAX_FILE {
            return Ok(Err(DebError::Long { path }));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.insert(path, content);
    }
    Ok(Ok(files))
}

#[cfg(test)]
mod tests;
