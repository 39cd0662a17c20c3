use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use muster_proto::text;
use nix::errno::Errno;

/// The most that is read of one file, in bytes.
pub const LIMIT: u64 = 1 << 20;

/// An attribute of sysfs holds at most one page (`Documentation/filesystems/sysfs.rst`).
const ATTRIBUTE: usize = 4096;

/// A file below the root did not say what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Opening or reading failed.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than anything of its kind.
    #[error("read {}: more than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound, in bytes.
        limit: u64,
    },
    /// Listing a directory failed.
    #[error("list {}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A symbolic link could not be followed.
    #[error("follow {}", path.display())]
    Follow {
        /// The link.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A symbolic link leads out of the root.
    #[error("follow {}: leads to {}, outside the root", path.display(), target.display())]
    Outside {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// The file holds no number.
    #[error("read a number from {}: found {found:?}", path.display())]
    Number {
        /// The file.
        path: PathBuf,
        /// What stands there, cleaned.
        found: String,
    },
}

impl ReadError {
    /// True if the attribute does not exist or does not apply: no such file, or the driver answers that it has no such
    /// value (`EINVAL` for the carrier of an interface that is down, `ENODATA`, `EOPNOTSUPP`, …).
    /// Such a value is empty, and nothing is wrong.
    pub fn is_absent(&self) -> bool {
        let (ReadError::Read { source, .. }
        | ReadError::List { source, .. }
        | ReadError::Follow { source, .. }) = self
        else {
            return false;
        };
        let Some(code) = source.raw_os_error() else {
            return false;
        };
        matches!(
            Errno::from_raw(code),
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO | Errno::ENODATA | Errno::EINVAL | Errno::EOPNOTSUPP
        )
    }
}

/// `None` in place of an error that only says that there is no such value.
///
/// # Errors
/// Every other error.
pub fn absent_as_none<T>(result: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Up to `limit` bytes from the start of a file, of which there may be more.
///
/// # Errors
/// [`ReadError::Read`].
pub fn head(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    // Room for most files in one read.
    let mut bytes = Vec::with_capacity(ATTRIBUTE);
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|source| ReadError::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(bytes)
}

/// The last `len` bytes of a disk of `size` bytes: a device does not say its size as a file does.
///
/// # Errors
/// [`ReadError::Read`].
pub fn tail(path: &Path, size: u64, len: usize) -> Result<Vec<u8>, ReadError> {
    let mut bytes = vec![0; len];
    let start = size.saturating_sub(len as u64);
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut bytes, start))
        .map_err(|source| ReadError::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(bytes)
}

/// A whole file of at most [`LIMIT`] bytes, as it is.
///
/// # Errors
/// [`ReadError::Read`], [`ReadError::TooLarge`].
pub fn bytes(path: &Path) -> Result<Vec<u8>, ReadError> {
    let bytes = head(path, LIMIT + 1)?;
    if bytes.len() as u64 > LIMIT {
        return Err(ReadError::TooLarge {
            path: path.to_owned(),
            limit: LIMIT,
        });
    }
    Ok(bytes)
}

/// An attribute file as clean text: no control characters, trimmed, at most [`text::MAX`] bytes.
///
/// # Errors
/// [`ReadError::Read`].
pub fn text(path: &Path) -> Result<String, ReadError> {
    let mut page = [0; ATTRIBUTE];
    // One read gives the whole attribute; a second one only to see the end would double the cost of an inventory.
    let length = File::open(path)
        .and_then(|mut file| read_once(&mut file, &mut page))
        .map_err(|source| ReadError::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(text::clean(&page[..length]))
}

fn read_once(file: &mut File, page: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(page) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// As [`text()`]; `None` if the attribute is absent or empty.
///
/// # Errors
/// [`ReadError::Read`].
pub fn optional_text(path: &Path) -> Result<Option<String>, ReadError> {
    let found = absent_as_none(text(path))?;
    Ok(found.filter(|text| !text.is_empty()))
}

/// An attribute file that holds one number.
///
/// # Errors
/// [`ReadError::Read`], [`ReadError::Number`].
pub fn number<T: FromStr>(path: &Path) -> Result<T, ReadError> {
    let found = text(path)?;
    found.parse().map_err(|_| ReadError::Number {
        path: path.to_owned(),
        found,
    })
}

/// As [`number`]; `None` if the attribute is absent.
///
/// # Errors
/// [`ReadError::Read`], [`ReadError::Number`].
pub fn optional_number<T: FromStr>(path: &Path) -> Result<Option<T>, ReadError> {
    absent_as_none(number(path))
}

/// An attribute file that holds `0` or another number.
///
/// # Errors
/// [`ReadError::Read`], [`ReadError::Number`].
pub fn flag(path: &Path) -> Result<bool, ReadError> {
    number::<i64>(path).map(|number| number != 0)
}

/// As [`flag`]; false if the attribute is absent.
///
/// # Errors
/// [`ReadError::Read`], [`ReadError::Number`].
pub fn optional_flag(path: &Path) -> Result<bool, ReadError> {
    Ok(absent_as_none(flag(path))?.unwrap_or(false))
}

/// The names in a directory, sorted. Names that are no UTF-8 are left out: the kernel makes none.
///
/// # Errors
/// [`ReadError::List`].
pub fn list(path: &Path) -> Result<Vec<String>, ReadError> {
    let names = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort_unstable();
        Ok(names)
    };
    names().map_err(|source| ReadError::List {
        path: path.to_owned(),
        source,
    })
}

/// The last component of a symbolic link's target, such as the driver's name behind `device/driver`.
/// `None` if there is no such link.
pub fn link_name(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(text::clean(target.file_name()?.to_str()?.as_bytes()))
}

/// The last component of `path`, such as a device's name; empty if there is none. The kernel makes no names that are no UTF-8.
pub fn base(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tree::Tree;

    #[test]
    fn text_is_clean_and_bounded() {
        let tree = Tree::new()
            .file("sys/serial", "  \x1b[31mS1\0\n")
            .file("sys/long", "x".repeat(10_000));
        assert_eq!(text(&tree.root().sys("serial")).unwrap(), "[31mS1");
        assert_eq!(text(&tree.root().sys("long")).unwrap().len(), text::MAX);
    }

    #[test]
    fn absent_is_not_unreadable() {
        let tree = Tree::new().directory("sys/serial").file("sys/size", "many");
        let root = tree.root();
        assert_eq!(optional_text(&root.sys("nothing")).unwrap(), None);
        assert!(!optional_text(&root.sys("serial")).unwrap_err().is_absent());
        assert!(matches!(
            optional_number::<u64>(&root.sys("size")),
            Err(ReadError::Number { .. })
        ));
    }

    #[test]
    fn a_huge_file_is_refused() {
        let limit = usize::try_from(LIMIT).unwrap();
        let tree = Tree::new()
            .file("sys/fits", vec![0; limit])
            .file("sys/large", vec![0; limit + 1]);
        assert_eq!(bytes(&tree.root().sys("fits")).unwrap().len(), limit);
        assert!(matches!(
            bytes(&tree.root().sys("large")),
            Err(ReadError::TooLarge { .. })
        ));
    }

    #[test]
    fn names_are_sorted_and_links_named() {
        let tree = Tree::new()
            .file("sys/b", "")
            .file("sys/a", "")
            .link("sys/c", "../../bus/pci/drivers/nvme");
        assert_eq!(list(&tree.root().sys("")).unwrap(), ["a", "b", "c"]);
        assert_eq!(link_name(&tree.root().sys("c")).as_deref(), Some("nvme"));
        assert_eq!(link_name(&tree.root().sys("a")), None);
    }
}
