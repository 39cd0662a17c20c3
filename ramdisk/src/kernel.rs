//! A kernel and its modules out of a Debian package.

use std::io::Read;

use crate::deb::{self, DebError, Package, Source};
use crate::modules::{Catalogue, ModulesError};

/// Why a package gives no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The package could not be read.
    #[error("open kernel package")]
    Package(#[from] DebError),
    /// Metapackages and packages of headers or modules alone carry none.
    #[error("find kernel: the package has no boot/vmlinuz-VERSION")]
    NoImage,
    /// There is an image, but not the modules that belong to it.
    #[error("find modules: the package has a kernel {version} but no module under lib/modules/{version}")]
    NoModules {
        /// The kernel's version.
        version: String,
    },
    /// The modules are malformed.
    #[error("index modules of kernel {version}")]
    Modules {
        /// The kernel's version.
        version: String,
        /// What is wrong with them.
        #[source]
        source: ModulesError,
    },
}

/// A kernel, ready to choose modules from.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub version: String,
    /// The bootable image.
    pub image: Vec<u8>,
    /// All its modules.
    pub modules: Catalogue,
    /// The package that it is of.
    pub source: Option<Source>,
}

impl Kernel {
    /// Reads a package such as `linux-image-6.1.0-56-amd64`; all its modules are in memory meanwhile, some 400 MB.
    pub fn from_deb(package: impl Read) -> Result<Self, KernelError> {
        let wanted = |path: &str| path.starts_with("boot/vmlinuz-") || path.starts_with("lib/modules/");
        let Package { source, mut files } = deb::read(package, wanted)?;
        let image_path = files
            .keys()
            .find(|path| path.starts_with("boot/"))
            .ok_or(KernelError::NoImage)?
            .clone();
        let (image_path, image) = files.remove_entry(&image_path).ok_or(KernelError::NoImage)?;
        let version = image_path.trim_start_matches("boot/vmlinuz-").to_owned();
        let base = format!("lib/modules/{version}/");
        let below = files
            .into_iter()
            .filter_map(|(path, content)| Some((path.strip_prefix(&base)?.to_owned(), content)));
        let modules = Catalogue::index(below).map_err(|source| KernelError::Modules {
            version: version.clone(),
            source,
        })?;
        if modules.iter().next().is_none() {
            return Err(KernelError::NoModules { version });
        }
        Ok(Self {
            version,
            image,
            modules,
            source,
        })
    }
}

/// The UEFI stub for this architecture out of Debian's `systemd-boot-efi`, and which package that was.
pub fn stub_from_deb(package: impl Read) -> Result<(Option<Vec<u8>>, Option<Source>), DebError> {
    const STUB: &str = "lib/systemd/boot/efi/linuxx64.efi.stub";
    let Package { source, mut files } = deb::read(package, |path| path == STUB)?;
    Ok((files.remove(STUB), source))
}
