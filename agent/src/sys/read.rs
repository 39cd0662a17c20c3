use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use muster_proto::text;
use nix::errno::Errno;

/// The most that is read of one file, in bytes.
pub const LIMIT: u64 = 1 << 20;

/// An attribute of sysfs holds at most one page (`Documentation/filesystems/sysfs.rst`).
const ATTRIBUTE: u64 = 4096;

/// A file below the root did not say what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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

impl Error {
    /// True if the attribute does not exist or does not apply: no such file, or the driver answers that it has no such
    /// value (`EINVAL` for the carrier of an interface that is down, `ENODATA`, `EOPNOTSUPP`, …).
    /// Such a value is empty, and nothing is wrong.
    pub fn is_absent(&self) -> bool {
        let (Error::Read { source, .. } | Error::List { source, .. } | Error::Follow { source, .. }) = self
        else {
            return false;
        };
        let Some(code) = source.raw_os_error() else {
            return false;
        };
        matches!(
            Errno::from_raw(code),
            Errno::ENOENT
                | Errno::ENOTDIR
                | Errno::ENODEV
                | Errno::ENXIO
                | Errno::ENODATA
                | Errno::EINVAL
                | Errno::EOPNOTSUPP
        )
    }
}

/// `None` in place of an error that only says that there is no such value.
///
/// # Errors
/// Every other error.
pub fn absent_as_none<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Up to `limit` bytes from the start of a file, of which there may be more.
///
/// # Errors
/// [`Error::Read`].
pub fn head(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(bytes)
}

/// A whole file of at most [`LIMIT`] bytes, as it is.
///
/// # Errors
/// [`Error::Read`], [`Error::TooLarge`].
pub fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = head(path, LIMIT + 1)?;
    if bytes.len() as u64 > LIMIT {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            limit: LIMIT,
        });
    }
    Ok(bytes)
}

/// An attribute file as clean text: no control characters, trimmed, at most [`text::MAX`] bytes.
///
/// # Errors
/// [`Error::Read`].
pub fn text(path: &Path) -> Result<String, Error> {
    head(path, ATTRIBUTE).map(|raw| text::clean(&raw))
}

/// As [`text()`]; `None` if the attribute is absent or empty.
///
/// # Errors
/// [`Error::Read`].
pub fn optional_text(path: &Path) -> Result<Option<String>, Error> {
    let found = absent_as_none(text(path))?;
    Ok(found.filter(|text| !text.is_empty()))
}

/// An attribute file that holds one number.
///
/// # Errors
/// [`Error::Read`], [`Error::Number`].
pub fn number<T: FromStr>(path: &Path) -> Result<T, Error> {
    let found = text(path)?;
    found.parse().map_err(|_| Error::Number {
        path: path.to_owned(),
        found,
    })
}

/// As [`number`]; `None` if the attribute is absent.
///
/// # Errors
/// [`Error::Read`], [`Error::Number`].
pub fn optional_number<T: FromStr>(path: &Path) -> Result<Option<T>, Error> {
    absent_as_none(number(path))
}

/// An attribute file that holds `0` or another number.
///
/// # Errors
/// [`Error::Read`], [`Error::Number`].
pub fn flag(path: &Path) -> Result<bool, Error> {
    number::<i64>(path).map(|number| number != 0)
}

/// As [`flag`]; false if the attribute is absent.
///
/// # Errors
/// [`Error::Read`], [`Error::Number`].
pub fn optional_flag(path: &Path) -> Result<bool, Error> {
    Ok(absent_as_none(flag(path))?.unwrap_or(false))
}

/// The names in a directory, sorted. Names that are no UTF-8 are left out: the kernel makes none.
///
/// # Errors
/// [`Error::List`].
pub fn list(path: &Path) -> Result<Vec<String>, Error> {
    let names = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort_unstable();
        Ok(names)
    };
    names().map_err(|source| Error::List {
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
            Err(Error::Number { .. })
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
            Err(Error::TooLarge { .. })
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
