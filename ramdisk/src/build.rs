//! From kernel, agent and stub to a release's content; pure, so that the same input gives the same bytes.

use crate::deb::Source;
use crate::elf::{Elf, ElfError};
use crate::initramfs::{self, InitramfsError};
use crate::kernel::Kernel;
use crate::modules::ModulesError;
use crate::profile::{Absent, Profile};
use crate::release::{Content, FileFacts};

/// Why no release could be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The agent is no program of the architecture.
    #[error("check agent")]
    Agent(#[source] ElfError),
    /// The ramdisk has no loader and no libraries.
    #[error("check agent: it is linked dynamically, but the ramdisk needs a static binary")]
    Dynamic,
    /// The kernel lacks a driver that the profile needs.
    #[error("choose modules")]
    Choose(#[from] Absent),
    /// The kernel lacks a module that another needs.
    #[error("collect modules")]
    Collect(#[from] ModulesError),
    /// The initramfs could not be made.
    #[error("make initramfs")]
    Initramfs(#[from] InitramfsError),
}

/// A UEFI stub, and the package that it is of.
#[derive(Clone, Debug, Default)]
pub struct Stub {
    /// The stub.
    pub image: Vec<u8>,
    /// None for a file that somebody gave.
    pub source: Option<Source>,
}

/// Makes the content of a release.
pub fn build(profile: &Profile, kernel: Kernel, agent: Vec<u8>, stub: Stub) -> Result<Content, BuildError> {
    if Elf::parse(&agent)
        .map_err(BuildError::Agent)?
        .section(".interp")
        .is_some()
    {
        return Err(BuildError::Dynamic);
    }
    let facts = FileFacts::of(&agent);
    let modules = kernel.modules.closure(profile.choose(&kernel.modules)?)?;
    let archive = initramfs::layout(agent, &kernel.version, &modules)?;
    Ok(Content {
        profile: profile.name.to_owned(),
        initramfs: initramfs::compress(&archive)?,
        stub: stub.image,
        packages: [kernel.source, stub.source]
            .into_iter()
            .flatten()
            .map(|source| (source.name, source.version))
            .collect(),
        agent: facts,
        modules: modules.len(),
        unpacked: archive.byte_len(),
        firmware: modules.firmware(),
        kernel_version: kernel.version,
        vmlinuz: kernel.image,
    })
}

#[cfg(test)]
mod tests;
