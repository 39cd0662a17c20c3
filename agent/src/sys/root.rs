use std::{
    fs,
    path::{Path, PathBuf},
};

use super::read::ReadError;

/// The directory that stands for `/`: the real one in the ramdisk, a captured or made-up tree elsewhere.
///
/// The methods only join paths; they open nothing. Their argument is relative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    directory: PathBuf,
}

impl Default for Root {
    /// The running machine.
    fn default() -> Self {
        Root::new("/")
    }
}

impl Root {
    /// A root at `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Root {
            directory: directory.into(),
        }
    }

    /// True if the machine was booted by UEFI: then, and only then, the kernel makes `/sys/firmware/efi`.
    pub fn is_uefi(&self) -> bool {
        self.sys("firmware/efi").is_dir()
    }

    /// Below `/`: whatever the others do not name, such as `muster/config.json`.
    pub fn at(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.join(relative)
    }

    /// Below `/sys`.
    pub fn sys(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.join("sys").join(relative)
    }

    /// Below `/proc`.
    pub fn proc(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.join("proc").join(relative)
    }

    /// Below `/dev`.
    pub fn dev(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.join("dev").join(relative)
    }

    /// Below `/lib/modules`; the first component is a kernel release.
    pub fn modules(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.join("lib/modules").join(relative)
    }

    /// Where drivers' firmware files live.
    pub fn firmware(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.join("lib/firmware").join(relative)
    }

    /// `path` with every symbolic link followed; for a device in sysfs its place in the tree of parents.
    ///
    /// # Errors
    /// [`ReadError::Follow`] if there is no such file, [`ReadError::Outside`] if the links lead out of this root.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf, ReadError> {
        let (_, real) = self.follow(path)?;
        Ok(real)
    }

    /// The real parents of `path`, nearest first, `path` itself included, up to but without `/sys/devices`.
    ///
    /// # Errors
    /// As [`Root::resolve`].
    pub fn ancestors(&self, path: &Path) -> Result<Vec<PathBuf>, ReadError> {
        let (root, real) = self.follow(path)?;
        let devices = root.join("sys/devices");
        Ok(real
            .ancestors()
            .take_while(|ancestor| *ancestor != devices && ancestor.starts_with(&devices))
            .map(Path::to_owned)
            .collect())
    }

    /// The root's and the file's own path, free of symbolic links.
    fn follow(&self, path: &Path) -> Result<(PathBuf, PathBuf), ReadError> {
        let real = |path: &Path| {
            fs::canonicalize(path).map_err(|source| ReadError::Follow {
                path: path.to_owned(),
                source,
            })
        };
        let (root, target) = (real(&self.directory)?, real(path)?);
        if target.starts_with(&root) {
            Ok((root, target))
        } else {
            Err(ReadError::Outside {
                path: path.to_owned(),
                target,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tree::Tree;

    #[test]
    fn parents_are_those_of_the_device_not_of_the_link() {
        let tree = Tree::new()
            .file(
                "sys/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/size",
                "8\n",
            )
            .link(
                "sys/block/vda",
                "../devices/pci0000:00/0000:00:04.0/virtio1/block/vda",
            );
        let names: Vec<_> = tree
            .root()
            .ancestors(&tree.root().sys("block/vda"))
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["vda", "block", "virtio1", "0000:00:04.0", "pci0000:00"]);
    }

    #[test]
    fn links_never_lead_out_of_the_root() {
        let tree = Tree::new()
            .file("sys/devices/x", "")
            .link("sys/block/sda", "/etc");
        let path = tree.root().sys("block/sda");
        assert!(matches!(
            tree.root().resolve(&path),
            Err(ReadError::Outside { .. })
        ));
    }
}
