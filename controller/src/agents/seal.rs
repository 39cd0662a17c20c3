//! Secrets for a machine, sealed by the control role to the session that the machine has now: jobs and Servers carry only what nobody
//! else opens.

use muster_proto::{
    job::ConfigDrive,
    kinds::Session,
    seal::{Bound, SealError},
};

/// `drive` for the job `id` of term `epoch`, as [`muster_proto::job::Write::config_drive`] has it. Another session, another job and
/// another term need another seal.
///
/// # Errors
/// [`SealError::Key`]: the session's agent cannot open anything; it is of protocol 1.0.
pub fn config_drive(
    session: &Session,
    id: &str,
    epoch: i64,
    drive: &ConfigDrive,
) -> Result<String, SealError> {
    let bound = Bound {
        job: id,
        epoch,
        session: &session.key,
    };
    muster_proto::seal::config_drive(&session.seal_key, &bound, drive)
}
