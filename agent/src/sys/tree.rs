//! Made-up trees for tests: files and links in a directory of their own that goes away with them.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use tempfile::TempDir;

use super::Root;

/// A root file system in the making.
pub(crate) struct Tree {
    directory: TempDir,
}

impl Tree {
    /// An empty root.
    pub(crate) fn new() -> Self {
        Tree {
            directory: TempDir::new().unwrap(),
        }
    }

    /// With a file; parents are made. A later file of the same name replaces the earlier.
    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.place(path), content).unwrap();
        self
    }

    /// With an empty directory. In place of a file: reading it fails, even for root.
    pub(crate) fn directory(self, path: &str) -> Self {
        let place = self.place(path);
        if place.is_file() {
            fs::remove_file(&place).unwrap();
        }
        fs::create_dir_all(place).unwrap();
        self
    }

    /// With a symbolic link; `target` is written as it is.
    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        symlink(target, self.place(path)).unwrap();
        self
    }

    /// Without a file or link that was there.
    pub(crate) fn without(self, path: &str) -> Self {
        fs::remove_file(self.place(path)).unwrap();
        self
    }

    /// The root to read from.
    pub(crate) fn root(&self) -> Root {
        Root::new(self.directory.path())
    }

    fn place(&self, path: &str) -> PathBuf {
        let place = self.directory.path().join(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        place
    }
}
