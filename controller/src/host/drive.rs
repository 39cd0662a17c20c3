//! The config drive of a job: read from the Secrets at that moment, put together, sealed to the session that is to write it.

use muster_proto::{
    job::ConfigDrive,
    kinds::Server,
    seal::{self, Bound, SealError},
};
use serde_json::{Map, Value};

use super::{
    plan::Drive,
    secret_content::{self, LARGEST_DRIVE, Lack},
    vault::Vault,
};
use crate::path::Path;

/// Why there is no config drive. Says nothing of what would be on it.
#[derive(Debug, thiserror::Error)]
pub(super) enum DriveError {
    /// A Secret is gone, or cannot be read.
    #[error("read Secret {secret}: {why}")]
    Secret {
        /// Which.
        secret: Path,
        /// Why.
        why: String,
    },
    /// More than the machine's agent takes, by a Secret that was changed a moment ago.
    #[error("it is larger than any agent accepts")]
    Large,
    /// It could not be sealed.
    #[error("seal the config drive for the session")]
    Seal(#[source] SealError),
    /// The session whose key was seen is over.
    #[error("the session has changed since it was read")]
    Session,
}

/// The config drive for the job `id` of term `epoch`, sealed to the session of `server`.
pub(super) async fn sealed(
    vault: &Vault,
    namespace: &str,
    drive: &Drive,
    (id, epoch): (&str, i64),
    server: &Server,
) -> Result<String, DriveError> {
    let session = server.session();
    let session = session
        .filter(|session| session.seal_key == drive.seal_key)
        .ok_or(DriveError::Session)?;
    let contents = contents(vault, namespace, drive).await?;
    let bound = Bound {
        job: id,
        epoch,
        session: &session.key,
    };
    let sealed = seal::config_drive(&session.seal_key, &bound, &contents).map_err(DriveError::Seal)?;
    let is_large = sealed.len() / 4 * 3 > LARGEST_DRIVE;
    (!is_large).then_some(sealed).ok_or(DriveError::Large)
}

async fn contents(vault: &Vault, namespace: &str, drive: &Drive) -> Result<ConfigDrive, DriveError> {
    let read = async |name: &Option<String>| {
        let Some(name) = name else { return Ok(None) };
        let secret = Path {
            namespace: namespace.to_owned(),
            name: name.clone(),
        };
        match vault.read(&secret).await {
            Ok(Some(found)) => Ok(Some((secret, found))),
            Ok(None) => Err(DriveError::Secret {
                secret,
                why: "it does not exist".to_owned(),
            }),
            Err(why) => Err(DriveError::Secret { secret, why }),
        }
    };
    let lacks = |secret: Path| {
        move |why: Lack| DriveError::Secret {
            secret,
            why: why.into(),
        }
    };
    let mut meta_data: Map<String, Value> = drive
        .meta_data
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value::from(value.as_str())))
        .collect();
    if let Some((at, secret)) = read(&drive.meta_data_secret).await? {
        // The user's words count more than ours.
        meta_data.extend(secret_content::meta_data(&secret).map_err(lacks(at))?);
    }
    let network_data = match read(&drive.network_data_secret).await? {
        Some((at, secret)) => secret_content::network_data(&secret).map_err(lacks(at))?,
        None => None,
    };
    let user_data = match read(&drive.user_data_secret).await? {
        Some((at, secret)) => {
            let found = secret_content::user_data(&secret).map_err(Lack::from);
            Some(found.map_err(lacks(at))?.to_vec())
        }
        None => None,
    };
    Ok(ConfigDrive {
        meta_data,
        network_data,
        user_data,
    })
}
