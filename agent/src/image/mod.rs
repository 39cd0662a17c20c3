//! Writing an image to a disk so that the machine boots it, and never boots half of it.
//!
//! ```text
//! source ----> digest of the transfer                    HTTP(S), resumed by range; one thread each
//!    `-------> decompress --> writer --> disk            zstd, gzip or as it is; O_DIRECT
//! ```
//!
//! The first MiB and the last block of the disk (GPT's two headers) are held in memory and the disk has zeros there until the
//! digest matched, the config drive is written, the boot entry is made and all of that is synced. Whatever breaks before that
//! leaves a disk that no firmware boots.
//!
//! [`write()`] blocks for as long as it takes: call it on a thread of its own.
//!
//! ```text
//! let work = Work::new(move |progress| …);          // work.stop() from anywhere ends it with an error
//! let environment = Environment { root, clock, name_servers, proxy };
//! match image::write(&job, config_drive.as_ref(), &environment, &work) {
//!     Ok(written) => …                               // the machine may be rebooted
//!     Err(error) => …                                // Chain(&error) says what, where and what is on the disk now
//! }
//! ```

use std::net::SocketAddr;

use muster_proto::job::{ConfigDrive, Write};

use crate::{clock::Clock, sys::Root, work::Work};

/// What a write needs besides its job.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Where the machine's files are.
    pub root: Root,
    /// The time for certificates of image servers.
    pub clock: Clock,
    /// Whom to ask for image servers' addresses.
    pub name_servers: Vec<SocketAddr>,
    /// `host:port` of an HTTP proxy for images ([`muster_proto::config::BootConfig::proxy`]).
    pub proxy: Option<String>,
}

/// What a successful write did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The disk's device node, such as `/dev/sda`.
    pub disk: String,
    /// Bytes that came over the network.
    pub transferred: u64,
    /// Bytes of the image, decompressed.
    pub image: u64,
    /// `sha256:…` or `sha512:…` of what came over the network.
    pub digest: String,
    /// What did not go as it should and did not matter, such as a boot entry that the firmware refused.
    pub warnings: Vec<String>,
}

/// What is on the disk after a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing was written.
    Untouched,
    /// What was there is lost; it does not boot.
    Unbootable,
    /// It was being made bootable, with an image that was verified, when the disk failed: it may boot or not.
    Unknown,
}

/// A write failed.
#[derive(Debug, thiserror::Error)]
#[error("write {url} to {disk}: {after}")]
pub struct WriteError {
    /// From where, without what may be secret in it.
    pub url: String,
    /// To which disk, as the job names it.
    pub disk: String,
    /// What is on the disk now.
    pub after: After,
    /// What failed.
    pub source: Failure,
}

/// Writes the image that `job` means to the disk that it means, with `config_drive` on a partition at its end, and enters it
/// into the firmware's boot order where the machine was booted by UEFI. Doing so again has the same result.
///
/// # Errors
/// [`WriteError`]; its `after` says what became of the disk.
pub fn write(
    job: &Write,
    config_drive: Option<&ConfigDrive>,
    environment: &Environment,
    work: &Work,
) -> Result<Written, WriteError> {
    write::run(job, config_drive, environment, work)
}
