//! Reads files out of a Debian package without installing it.
//!
//! A package is an `ar` archive (deb(5)) whose members `control.tar` and, after it, `data.tar`, mostly compressed, hold what the
//! package says of itself and the files.

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
    #[error("read package: it is not a Debian package")]
    Magic,
    /// A member's header is malformed.
    #[error("read package: malformed ar header {header:?}")]
    Header {
        /// The header as text.
        header: String,
    },
    /// There is no member named `data.tar` with a known compression.
    #[error("read package: it contains no readable data.tar, only {members:?}")]
    NoData {
        /// The members that are there.
        members: Vec<String>,
    },
    /// Reading the package itself failed.
    #[error("read package")]
    Read(#[source] io::Error),
    /// Unpacking `control.tar` or `data.tar` failed.
    #[error("unpack {member}")]
    Unpack {
        /// The member's name.
        member: String,
        /// What the decompressor or the tar reader said.
        #[source]
        source: io::Error,
    },
}

/// What was taken out of a package.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// Which package it is, if it says so.
    pub source: Option<Source>,
    /// The files that were wanted, by path.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// A package's identity, by which its sources are found (`Package` and `Version` in deb-control(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Such as `linux-image-6.1.0-56-amd64`.
    pub name: String,
    /// Such as `6.1.176-1`.
    pub version: String,
}

/// Reads a package: of its regular files those whose path `wanted` accepts.
///
/// Paths are without leading `./`, and `usr/lib/` reads as `lib/`, because packages of merged-`/usr` systems moved
/// the modules there.
pub fn read(mut package: impl Read, wanted: impl Fn(&str) -> bool) -> Result<Package, DebError> {
    let mut magic = [0; AR_MAGIC.len()];
    package.read_exact(&mut magic).map_err(|_| DebError::Magic)?;
    if &magic != AR_MAGIC {
        return Err(DebError::Magic);
    }
    let mut members = Vec::new();
    let mut source = None;
    while let Some((name, size)) = next_member(&mut package)? {
        let (unpacked_name, packing) = Packing::of(&name);
        let mut member = (&mut package).take(size);
        let unpack = |member, wanted: &dyn Fn(&str) -> bool| {
            let data = packing.reader(member);
            data.and_then(|data| tar_files(data, wanted))
                .map_err(|source| DebError::Unpack {
                    member: name.clone(),
                    source,
                })
        };
        match unpacked_name {
            "data.tar" => {
                let files = unpack(&mut member, &wanted)?;
                return Ok(Package { source, files });
            }
            "control.tar" => {
                let control = unpack(&mut member, &|path| path == "control")?;
                source = control.get("control").and_then(|text| identity(text));
            }
            _ => {}
        }
        // Members begin at even offsets, and a reader of archives may not read to their end.
        let left = member.limit() + size % 2;
        members.push(name);
        io::copy(&mut (&mut package).take(left), &mut io::sink()).map_err(DebError::Read)?;
    }
    Err(DebError::NoData { members })
}

fn identity(control: &[u8]) -> Option<Source> {
    let text = std::str::from_utf8(control).ok()?;
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(value.trim().to_owned())
    };
    Some(Source {
        name: field("Package:")?,
        version: field("Version:")?,
    })
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

fn tar_files(data: impl Read, wanted: &dyn Fn(&str) -> bool) -> io::Result<BTreeMap<String, Vec<u8>>> {
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
            let why = format!("{path} has more than {MAX_FILE} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.insert(path, content);
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
