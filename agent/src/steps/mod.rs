//! Jobs that take their time and change the machine. The session starts them and goes on with its calls; the machine carries them
//! out ([`crate::session::Machine::work`]): the ramdisk on real disks, the simulated fleet in its own way.

mod drive;

use muster_proto::{
    job::{Clean, Failure, Write},
    seal::SealError,
};

pub use drive::{DriveError, OpenDrive, SealedDrive};

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Order {
    /// Clear disks.
    Clean(Clean),
    /// Write an image.
    Write {
        /// What to which disk; its sealed config drive has been taken out.
        job: Box<Write>,
        /// To be opened once the image is verified, and no sooner.
        drive: Option<SealedDrive>,
    },
}

/// A job was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failed {
    /// For people: what failed, on what, and what is on the disk now. Never a secret.
    pub message: String,
    /// For machines.
    pub failure: Failure,
}

impl From<SealError> for Failed {
    fn from(error: SealError) -> Failed {
        Failed {
            message: error.to_string(),
            // Whoever gives jobs seals anew, for this session and this job.
            failure: Failure::Outdated,
        }
    }
}
