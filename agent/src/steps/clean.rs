//! Cleans disks, on a thread of its own.

use muster_proto::{
    Chain,
    job::{Clean, Failure},
};

use super::{Failed, guarded, on_a_thread};
use crate::{
    disk::{self, CleanError},
    sys::Root,
    work::Work,
};

/// Carries out `job`.
///
/// # Errors
/// What was not done, and to which disk.
pub async fn run(job: Clean, root: Root, work: Work) -> Result<(), Failed> {
    let result = on_a_thread(work, move |work| disk::clean(&job, &root, work)).await?;
    for disk in result.as_deref().unwrap_or_else(CleanError::cleaned) {
        let (partitions, zeroed) = (disk.partitions, disk.zeroed);
        tracing::info!(
            step = "disk-cleaned",
            disk = disk.disk,
            table = disk.table,
            partitions,
            zeroed
        );
    }
    result.map(drop).map_err(|error| Failed {
        message: Chain(&error).to_string(),
        failure: failure(&error),
    })
}

fn failure(error: &CleanError) -> Failure {
    match error {
        CleanError::Refused { source } => guarded(source),
        CleanError::Stopped { .. } | CleanError::Disks { .. } => Failure::Temporary,
    }
}
