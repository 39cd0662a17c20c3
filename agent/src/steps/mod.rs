//! Jobs that take their time and change the machine. The session starts them and goes on with its calls; the machine carries them
//! out ([`crate::session::Machine::work`]): the ramdisk on real disks, the simulated fleet in its own way.

pub mod clean;
pub mod write;

use muster_proto::{
    job::{Clean, Failure, Write},
    seal::SealError,
};
use tokio::task::spawn_blocking;

use crate::{disk::Refused, image::SealedDrive, work::Work};

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Job {
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

impl Failed {
    fn temporary(message: String) -> Failed {
        let failure = Failure::Temporary;
        Failed { message, failure }
    }
}

/// Does `job` on a thread of its own.
async fn on_a_thread<T: Send + 'static>(
    work: Work,
    job: impl FnOnce(&Work) -> T + Send + 'static,
) -> Result<T, Failed> {
    spawn_blocking(move || work.part(|| job(&work)))
        .await
        .map_err(|error| Failed::temporary(error.to_string()))
}

/// What may come of trying again after the guard refused: who uses the disk may be gone then.
fn guarded(refused: &Refused) -> Failure {
    match refused {
        Refused::Held { .. } | Refused::Look { .. } | Refused::Open { .. } | Refused::Changed { .. } => {
            Failure::Temporary
        }
        _ => Failure::Final,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work;

    #[tokio::test]
    async fn a_job_that_breaks_tells_it_to_who_ordered_it() {
        let work = Work::unwatched();
        let told = on_a_thread(work.clone(), |_| work::break_off("attempt to add with overflow"));
        assert_eq!(told.await, Ok(true));
        assert_eq!(work.broken().await, "attempt to add with overflow");
    }
}
