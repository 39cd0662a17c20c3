//! The newc form of cpio, as the kernel unpacks it (`init/initramfs.c`, `early-userspace/buffer-format.rst`).
//!
//! Every archive is deterministic: inode numbers count up from one, times and owners are zero, entries stand in
//! the order in which they were added. An archive ends on a multiple of four bytes, so the next one, compressed
//! or not, may follow it directly.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

/// Length of a newc header: a six-byte magic and thirteen fields of eight hexadecimal digits.
const HEADER: usize = 110;
const MAGIC: &[u8] = b"070701";
/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// The kernel skips entries whose name with its NUL is longer (`PATH_MAX`).
const MAX_NAME: usize = 4096;

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;

/// Why an entry cannot be added to an [`Archive`].
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The path is empty, absolute, not normalised, too long, or the trailer's name.
    #[error("refuse archive path {path:?}: {why}")]
    Path {
        /// As given by the caller.
        path: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// An entry of that path is there already.
    #[error("add {path:?} twice to one archive")]
    Twice {
        /// The path in question.
        path: String,
    },
    /// A parent of the path was added as something other than a directory.
    #[error("add {path:?} below {parent:?}, which is not a directory")]
    Parent {
        /// The path in question.
        path: String,
        /// The parent that is a file or a device.
        parent: String,
    },
    /// newc has 32 bits for a file's length.
    #[error("add {path:?} of {len} bytes: newc allows less than 4 GiB per file")]
    Long {
        /// The path in question.
        path: String,
        /// Its length in bytes.
        len: usize,
    },
}

/// What stands at a path.
#[derive(Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Dir,
    /// A regular file and its contents.
    File(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

impl fmt::Debug for Node {
    /// Without contents, which may be large or secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir => f.write_str("Dir"),
            Self::File(content) => write!(f, "File({} bytes)", content.len()),
            Self::CharDevice { major, minor } => write!(f, "CharDevice({major}, {minor})"),
        }
    }
}

/// One path of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the root, without leading or trailing slash.
    pub path: String,
    /// Permission bits only, such as `0o755`.
    pub permissions: u32,
    /// What stands there.
    pub node: Node,
}

impl Entry {
    fn content(&self) -> &[u8] {
        match &self.node {
            Node::File(content) => content,
            Node::Dir | Node::CharDevice { .. } => &[],
        }
    }

    /// Bytes that this entry takes in the archive, padding included.
    fn len(&self) -> u64 {
        let name = (HEADER + self.path.len() + 1).next_multiple_of(4);
        (name + self.content().len().next_multiple_of(4)) as u64
    }
}

/// An archive being put together; entries keep the order in which they are added.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    entries: Vec<Entry>,
    /// Each path that is taken, and whether it is a directory.
    taken: BTreeMap<String, bool>,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory; a directory that was created as somebody's parent is accepted again.
    pub fn dir(&mut self, path: &str, permissions: u32) -> Result<&mut Self, AddError> {
        if self.taken.get(path) == Some(&true) {
            return Ok(self);
        }
        self.add(path, permissions, Node::Dir)
    }

    /// Adds a regular file, and its parents where they are missing.
    pub fn file(&mut self, path: &str, permissions: u32, content: Vec<u8>) -> Result<&mut Self, AddError> {
        if u32::try_from(content.len()).is_err() {
            return Err(AddError::Long {
                path: path.to_owned(),
                len: content.len(),
            });
        }
        self.add(path, permissions, Node::File(content))
    }

    /// Adds a character device, and its parents where they are missing.
    pub fn char_device(
        &mut self,
        path: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> Result<&mut Self, AddError> {
        self.add(path, permissions, Node::CharDevice { major, minor })
    }

    fn add(&mut self, path: &str, permissions: u32, node: Node) -> Result<&mut Self, AddError> {
        check_path(path)?;
        if self.taken.contains_key(path) {
            return Err(AddError::Twice {
                path: path.to_owned(),
            });
        }
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            match self.taken.get(parent) {
                Some(true) => {}
                Some(false) => {
                    return Err(AddError::Parent {
                        path: path.to_owned(),
                        parent: parent.to_owned(),
                    });
                }
                None => self.push(parent, 0o755, Node::Dir),
            }
        }
        self.push(path, permissions & 0o7777, node);
        Ok(self)
    }

    fn push(&mut self, path: &str, permissions: u32, node: Node) {
        self.taken.insert(path.to_owned(), node == Node::Dir);
        self.entries.push(Entry {
            path: path.to_owned(),
            permissions,
            node,
        });
    }

    /// The entries in the order in which they will be written.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Bytes that [`write_to`](Self::write_to) will write.
    pub fn byte_len(&self) -> u64 {
        let trailer = (HEADER + TRAILER.len() + 1).next_multiple_of(4) as u64;
        self.entries.iter().map(Entry::len).sum::<u64>() + trailer
    }

    /// Writes the whole archive, trailer included.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        for (ino, entry) in (1..).zip(&self.entries) {
            let (kind, links, major, minor) = match entry.node {
                Node::Dir => (S_IFDIR, 2, 0, 0),
                Node::File(_) => (S_IFREG, 1, 0, 0),
                Node::CharDevice { major, minor } => (S_IFCHR, 1, major, minor),
            };
            let fields = Fields {
                ino,
                mode: kind | entry.permissions,
                links,
                device: (major, minor),
            };
            write_entry(out, &fields, &entry.path, entry.content())?;
        }
        write_entry(
            out,
            &Fields {
                links: 1,
                ..Fields::default()
            },
            TRAILER,
            &[],
        )
    }

    /// The whole archive in memory; its length is a multiple of four.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(usize::try_from(self.byte_len()).unwrap_or(0));
        self.write_to(&mut out).expect("a Vec takes every write");
        out
    }
}

/// `bytes` with zeros after them up to a multiple of four, where the kernel looks for the next archive.
pub fn aligned(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn check_path(path: &str) -> Result<(), AddError> {
    let why = if path.is_empty() {
        "it is empty"
    } else if path == TRAILER {
        "it is the name that marks the end of an archive"
    } else if path.len() >= MAX_NAME {
        "it is longer than the kernel accepts"
    } else if path.contains('\0') {
        "it contains a NUL"
    } else if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "it is not a plain relative path"
    } else {
        return Ok(());
    };
    Err(AddError::Path {
        path: path.to_owned(),
        why,
    })
}

/// The header fields that are not the same in every entry.
#[derive(Default)]
struct Fields {
    ino: u32,
    mode: u32,
    links: u32,
    device: (u32, u32),
}

fn write_entry(out: &mut impl Write, fields: &Fields, name: &str, content: &[u8]) -> io::Result<()> {
    let &Fields {
        ino,
        mode,
        links,
        device: (major, minor),
    } = fields;
    let size = content.len();
    let name_size = name.len() + 1;
    write!(
        out,
        "070701{ino:08X}{mode:08X}{0:08X}{0:08X}{links:08X}{0:08X}{size:08X}{0:08X}{0:08X}",
        0
    )?;
    write!(out, "{major:08X}{minor:08X}{name_size:08X}{:08X}", 0)?;
    out.write_all(name.as_bytes())?;
    // The name's own NUL counts as padding here: between one and four zeros.
    let unpadded = HEADER + name.len();
    out.write_all(&[0; 4][..(unpadded + 1).next_multiple_of(4) - unpadded])?;
    out.write_all(content)?;
    out.write_all(&[0; 4][..size.next_multiple_of(4) - size])
}

/// Why bytes are no newc archive that this module could have written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The bytes end inside an entry or before the trailer.
    #[error("read cpio entry at byte {at}: the archive ends within it")]
    Short {
        /// Where the entry begins.
        at: usize,
    },
    /// Not a newc header, or one with a field that is no hexadecimal number.
    #[error("read cpio entry at byte {at}: no newc header")]
    Header {
        /// Where the entry begins.
        at: usize,
    },
    /// The name lacks its NUL or is no UTF-8.
    #[error("read cpio entry at byte {at}: malformed name")]
    Name {
        /// Where the entry begins.
        at: usize,
    },
    /// Symbolic links, block devices, pipes and sockets are not written here and not read.
    #[error("read cpio entry at byte {at}: file type {mode:o} is not supported")]
    Kind {
        /// Where the entry begins.
        at: usize,
        /// The mode field.
        mode: u32,
    },
}

/// The entries of the archive at the start of `bytes`, and the archive's length, trailer included.
pub fn read(bytes: &[u8]) -> Result<(Vec<Entry>, usize), ReadError> {
    let mut entries = Vec::new();
    let mut at = 0;
    loop {
        let short = || ReadError::Short { at };
        let header = bytes.get(at..at + HEADER).ok_or_else(short)?;
        let fields = header_fields(header).ok_or(ReadError::Header { at })?;
        let [_, mode, _, _, _, _, size, _, _, major, minor, name_size, _] = fields;
        let (size, name_size) = (size as usize, name_size as usize);
        let name_at = at + HEADER;
        let name = bytes.get(name_at..name_at + name_size).ok_or_else(short)?;
        let name = name.strip_suffix(b"\0").ok_or(ReadError::Name { at })?;
        let name = std::str::from_utf8(name).map_err(|_| ReadError::Name { at })?;
        let content_at = (name_at + name_size).next_multiple_of(4);
        let content = bytes.get(content_at..content_at + size).ok_or_else(short)?;
        let end = (content_at + size).next_multiple_of(4);
        if name == TRAILER {
            return Ok((entries, end.min(bytes.len())));
        }
        let node = match mode & S_IFMT {
            S_IFDIR => Node::Dir,
            S_IFREG => Node::File(content.to_vec()),
            S_IFCHR => Node::CharDevice { major, minor },
            _ => return Err(ReadError::Kind { at, mode }),
        };
        entries.push(Entry {
            path: name.to_owned(),
            permissions: mode & 0o7777,
            node,
        });
        at = end;
    }
}

fn header_fields(header: &[u8]) -> Option<[u32; 13]> {
    let digits = header.strip_prefix(MAGIC)?;
    let mut fields = [0; 13];
    for (field, digits) in fields.iter_mut().zip(digits.chunks_exact(8)) {
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        *field = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(fields)
}

#[cfg(test)]
mod tests;
