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
//! match image::write(&job, config_drive, &environment, &work) {
//!     Ok(written) => …                               // the machine may be rebooted; work.warnings() may say more
//!     Err(error) => …                                // Chain(&error) says what, where and what is on the disk now
//! }
//! ```

pub mod boot;
pub mod checksum;
pub mod config_drive;
mod contents;
pub mod format;
mod held;
pub mod iso9660;
pub mod layout;
mod other_disks;
mod pipeline;
pub mod source;
pub mod url;
mod write;

use std::{fmt, io};

use muster_proto::job::Write;

pub use boot::BootError;
pub use checksum::{ChecksumError, Mismatch};
pub use config_drive::ConfigDriveError;
pub use contents::{Contents, DriveError, OpenDrive, SealedDrive};
pub use format::FormatError;
pub use iso9660::IsoError;
pub use layout::LayoutError;
pub use source::SourceError;
pub use url::{Url, UrlError};

use crate::{
    clock::Clock,
    disk::{Refused, efi::EfiError, gpt::GptError},
    net::dns::NameServers,
    sys::Root,
    work::{Stopped, Work},
};

/// What a write needs besides its job.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Where the machine's files are.
    pub root: Root,
    /// The time for certificates of image servers.
    pub clock: Clock,
    /// Whom to ask for image servers' addresses.
    pub name_servers: NameServers,
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
}

/// What is on the disk after a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing was written.
    Untouched,
    /// It failed while it was being made unbootable: it may boot what was there, of which the last 64 KiB or the first MiB may be lost.
    Old,
    /// What was there is lost; it does not boot.
    Unbootable,
    /// It was being made bootable, with an image that was verified, when the disk failed: it may boot or not.
    Unknown,
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            After::Untouched => "nothing was written to the disk",
            After::Old => {
                "none of the image was written, and the disk may still boot what was on it, if that is intact"
            }
            After::Unbootable => {
                "what was on the disk is lost, and it does not boot until it is written again"
            }
            After::Unknown => "the image is verified, but may not boot: write it again",
        })
    }
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
    pub source: Box<Failure>,
}

/// What of a write failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The guard does not allow it.
    #[error("check the disk")]
    Refused {
        /// Why.
        source: Refused,
    },
    /// The disk is smaller than any system.
    #[error("use the disk: it has only {disk} bytes, and no image is that small")]
    SmallDisk {
        /// In bytes.
        disk: u64,
    },
    /// There is no usable digest.
    #[error("get the image's checksum")]
    Checksum {
        /// Why.
        source: ChecksumError,
    },
    /// There is none in the list of digests.
    #[error("get the image's checksum from {list}")]
    Listed {
        /// The list's URL, without what may be secret in it.
        list: String,
        /// Why.
        source: ChecksumError,
    },
    /// The list of digests cannot be had.
    #[error("fetch the image's checksum list")]
    ChecksumList {
        /// Why.
        source: SourceError,
    },
    /// The image cannot be had.
    #[error("fetch the image")]
    Source {
        /// Why.
        source: SourceError,
    },
    /// It, or the list of digests, is not whole, and nobody told how long it is: its connection may have broken.
    #[error(
        "fetch {file}: received {bytes} bytes, but the server sent no Content-Length; if the file is longer, the connection broke, and another attempt may get all of it"
    )]
    Untold {
        /// Which of them.
        file: &'static str,
        /// So many came.
        bytes: u64,
        /// What is wrong with what came.
        source: Box<Failure>,
    },
    /// It, or the list of digests, is not what was meant, and the server says that it encoded it.
    #[error(
        "fetch {file}: the server says that it encoded it (Content-Encoding: {encoding}), although it was asked for the file as it is; next: configure the server to send it unencoded"
    )]
    Encoded {
        /// Which of them.
        file: &'static str,
        /// How.
        encoding: String,
        /// What is wrong with what came.
        source: Box<Failure>,
    },
    /// It is of a format that is not written.
    #[error("recognise the image's format")]
    Format {
        /// Why.
        source: FormatError,
    },
    /// It cannot be decompressed.
    #[error("decompress the image: it is truncated, damaged, or followed by other data")]
    Decode {
        /// Why.
        source: io::Error,
    },
    /// It needs more memory to be decompressed than is given to that.
    #[error(
        "decompress the image: its zstd window is larger than 128 MiB (zstd --long=28 or more); compress it with at most --long=27"
    )]
    Window,
    /// It does not fit.
    #[error("fit the image to the disk: it has at least {image} bytes, but the disk has only {disk}")]
    TooLarge {
        /// As many bytes of the image are known.
        image: u64,
        /// In bytes.
        disk: u64,
    },
    /// Its partitions do not fit.
    #[error(transparent)]
    Layout {
        /// Why.
        source: LayoutError,
    },
    /// There is nothing of it.
    #[error("fetch the image: the server sent an empty file (0 bytes)")]
    Empty,
    /// It is not the image that was meant.
    #[error("verify the image, of which {bytes} bytes were received")]
    Mismatch {
        /// So many came over the network.
        bytes: u64,
        /// Why.
        source: Mismatch,
    },
    /// What was sealed for the config drive cannot be had.
    #[error("get the config drive")]
    Drive {
        /// Why.
        source: DriveError,
    },
    /// No config drive can be made.
    #[error("prepare the config drive")]
    ConfigDrive {
        /// Why.
        source: ConfigDriveError,
    },
    /// The firmware would find nothing to boot.
    #[error("boot the image in UEFI mode")]
    Boot {
        /// Why.
        source: BootError,
    },
    /// The firmware takes no entry, and finds the image by nothing else.
    #[error("add the image to the firmware's boot order")]
    Entry {
        /// Why.
        source: EfiError,
    },
    /// The disk failed.
    #[error("use the disk: {what}")]
    Disk {
        /// What was tried.
        what: &'static str,
        /// Why: `EIO` if it is broken.
        source: io::Error,
    },
    /// There are no threads to work on.
    #[error("start threads")]
    Threads {
        /// Why.
        source: io::Error,
    },
    /// It was stopped from outside.
    #[error("write the image")]
    Stopped {
        /// By whom.
        source: Stopped,
    },
}

impl Failure {
    /// What this is after a download that brought `got`, of which no digest says that it is what was meant: where nobody told how long the
    /// file is, it may only be cut off, and where the server encoded it, it may be right without that.
    fn given(self, got: &source::Got) -> Failure {
        let may_be_cut = match &self {
            // What is no list becomes none by what follows.
            Failure::Listed { source, .. } => !matches!(source, ChecksumError::NoList { .. }),
            Failure::Mismatch { .. }
            | Failure::Format {
                source: FormatError::Short(_),
            }
            | Failure::Layout {
                source: LayoutError::Truncated { .. },
            } => true,
            // Within the table.
            Failure::Layout {
                source: LayoutError::Gpt(GptError::Missing | GptError::Checksum(_) | GptError::Field(_)),
            } => got.bytes < held::HEAD as u64,
            Failure::Decode { source } => source.kind() == io::ErrorKind::UnexpectedEof,
            _ => false,
        };
        let may_be_encoded = matches!(
            self,
            Failure::Listed { .. }
                | Failure::Mismatch { .. }
                | Failure::Format { .. }
                | Failure::Layout { .. }
                | Failure::Decode { .. }
        );
        let file = match self {
            Failure::Listed { .. } => "the image's checksum list",
            _ => "the image",
        };
        let failure = match &got.encoding {
            Some(encoding) if may_be_encoded => Failure::Encoded {
                file,
                encoding: encoding.clone(),
                source: Box::new(self),
            },
            _ => self,
        };
        if got.is_told || !may_be_cut {
            return failure;
        }
        Failure::Untold {
            file,
            bytes: got.bytes,
            source: Box::new(failure),
        }
    }
}

/// Writes the image that `job` means to the disk that it means, with `config_drive` on a partition at its end, and enters it
/// into the firmware's boot order where the machine was booted by UEFI. The config drive is opened once the image is verified.
/// Doing so again has the same result.
///
/// # Errors
/// [`WriteError`]; its `after` says what became of the disk.
pub fn write(
    job: &Write,
    config_drive: Option<&dyn Contents>,
    environment: &Environment,
    work: &Work,
) -> Result<Written, WriteError> {
    write::run(job, config_drive, environment, work)
}
