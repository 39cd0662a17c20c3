//! Writes an image, on a thread of its own.

use muster_proto::{
    Chain,
    job::{Failure, Write},
};

use super::{Failed, guarded, on_a_thread};
use crate::{
    disk::fat::FatError,
    image::{self, BootError, Contents, Environment, SealedDrive, SourceError, WriteError},
    work::Work,
};

/// Carries out `job`; `drive` is opened once the image is verified.
///
/// # Errors
/// What failed, and what is on the disk now.
pub async fn run(
    job: Write,
    drive: Option<SealedDrive>,
    environment: Environment,
    work: Work,
) -> Result<(), Failed> {
    let write = move |work: &Work| {
        let drive = drive.as_ref().map(|drive| drive as &dyn Contents);
        image::write(&job, drive, &environment, work)
    };
    let written = on_a_thread(work, write).await?;
    let written = written.map_err(|error| Failed {
        message: Chain(&error).to_string(),
        failure: failure(&error),
    })?;
    let image::Written {
        disk,
        transferred,
        image,
        digest,
    } = written;
    tracing::info!(step = "image-written", disk, transferred, image, digest);
    Ok(())
}

/// What may come of trying again after `error`.
fn failure(error: &WriteError) -> Failure {
    match &*error.source {
        image::Failure::Refused { source } => guarded(source),
        image::Failure::ChecksumList { source } | image::Failure::Source { source } => fetched(source),
        image::Failure::Drive { .. } => Failure::Outdated,
        image::Failure::Untold { .. }
        | image::Failure::Entry { .. }
        | image::Failure::Disk { .. }
        | image::Failure::Threads { .. }
        | image::Failure::Stopped { .. }
        | image::Failure::Boot {
            source: BootError::Fat {
                source: FatError::Read(_),
            },
        } => Failure::Temporary,
        _ => Failure::Final,
    }
}

/// A server that is away comes back; what is wrong with the URL stays wrong.
fn fetched(error: &SourceError) -> Failure {
    match error {
        SourceError::Status { status, .. } if status.is_client_error() => Failure::Final,
        SourceError::Url { .. }
        | SourceError::Downgrade { .. }
        | SourceError::Redirects(_)
        | SourceError::Untrusted { .. }
        | SourceError::NoAuthorities { .. }
        | SourceError::Authorities { .. }
        | SourceError::ProxyAddress(_)
        | SourceError::TooLarge { .. } => Failure::Final,
        _ => Failure::Temporary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_may_have_been_cut_off_may_come_whole_another_time() {
        let failed = |source| {
            failure(&WriteError {
                url: String::new(),
                disk: String::new(),
                after: image::After::Unbootable,
                source: Box::new(source),
            })
        };
        let mismatch = || image::Failure::Mismatch {
            bytes: 1,
            source: image::Mismatch {
                wanted: "sha256:01".to_owned(),
                found: "sha256:02".to_owned(),
            },
        };
        assert_eq!(failed(mismatch()), Failure::Final);
        let untold = image::Failure::Untold {
            file: "the image",
            bytes: 1,
            source: Box::new(mismatch()),
        };
        assert_eq!(failed(untold), Failure::Temporary);
    }
}
