//! The config drive of a write: sealed until it is needed, wiped when it is done with, shown to nobody.

use std::{fmt, ops::Deref, sync::Arc};

use muster_proto::{
    job::ConfigDrive,
    seal::{Bound, SealError, SealKey},
};
use serde_json::{Map, Value};
use zeroize::Zeroize;

/// A config drive that only this session opens.
#[derive(Clone)]
pub struct SealedDrive {
    key: Arc<SealKey>,
    session: String,
    job: String,
    epoch: i64,
    sealed: String,
}

impl fmt::Debug for SealedDrive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedDrive")
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}

/// A config drive that cannot be had. Its words say nothing of the contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveError {
    /// It does not open.
    #[error("open the sealed config drive")]
    Seal(#[source] SealError),
    /// It opens and is no config drive.
    #[error("read the sealed config drive: it can be opened, but is not a config drive")]
    Form,
}

impl SealedDrive {
    /// What is `sealed` for `job` of term `epoch`, to be opened with the `key` of the session with that fingerprint.
    ///
    /// # Errors
    /// If it is meant for another session: better said before an image is written than after.
    pub fn new(
        key: Arc<SealKey>,
        session: String,
        job: &str,
        epoch: i64,
        sealed: String,
    ) -> Result<SealedDrive, SealError> {
        key.fits(&sealed)?;
        Ok(SealedDrive {
            key,
            session,
            job: job.to_owned(),
            epoch,
            sealed,
        })
    }

    /// Opens it: only once the image is verified.
    ///
    /// # Errors
    /// [`DriveError`].
    pub fn open(&self) -> Result<OpenDrive, DriveError> {
        let bound = Bound {
            job: &self.job,
            epoch: self.epoch,
            session: &self.session,
        };
        let plain = self.key.open(&bound, &self.sealed).map_err(DriveError::Seal)?;
        // What serde_json says of an error may quote the text.
        let drive = serde_json::from_slice(&plain).map_err(|_| DriveError::Form)?;
        Ok(OpenDrive(drive))
    }
}

/// Where the contents of a config drive come from, once they are needed.
pub trait Contents: Send + Sync {
    /// The contents, until they are dropped.
    ///
    /// # Errors
    /// [`DriveError`].
    fn contents(&self) -> Result<OpenDrive, DriveError>;
}

impl Contents for SealedDrive {
    fn contents(&self) -> Result<OpenDrive, DriveError> {
        self.open()
    }
}

/// For those who have nothing to hide.
impl Contents for ConfigDrive {
    fn contents(&self) -> Result<OpenDrive, DriveError> {
        Ok(OpenDrive(self.clone()))
    }
}

/// The contents of a config drive; wiped from memory when dropped.
#[derive(Debug)]
pub struct OpenDrive(ConfigDrive);

impl Deref for OpenDrive {
    type Target = ConfigDrive;

    fn deref(&self) -> &ConfigDrive {
        &self.0
    }
}

impl Drop for OpenDrive {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(drive: &mut ConfigDrive) {
    drive.user_data.zeroize();
    wipe_map(&mut drive.meta_data);
    if let Some(network) = &mut drive.network_data {
        wipe_value(network);
    }
}

fn wipe_map(map: &mut Map<String, Value>) {
    map.values_mut().for_each(wipe_value);
}

/// Texts only: numbers and names of fields are no secrets.
fn wipe_value(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(values) => values.iter_mut().for_each(wipe_value),
        Value::Object(map) => wipe_map(map),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::seal::seal;
    use serde_json::json;

    use super::*;

    const CANARY: &str = "canary-d41d8cd98f";

    fn drive() -> ConfigDrive {
        serde_json::from_value(json!({
            "metaData": { "uuid": CANARY, "keys": [{ "data": CANARY }] },
            "networkData": { "services": [CANARY] },
            "userData": "Y2FuYXJ5LWQ0MWQ4Y2Q5OGY="
        }))
        .unwrap()
    }

    fn sealed_for(key: &Arc<SealKey>, job: &str, plain: &[u8]) -> Result<SealedDrive, SealError> {
        let bound = Bound {
            job: "op-1",
            epoch: 2,
            session: "ab",
        };
        let sealed = seal(&key.public(), &bound, plain).unwrap();
        SealedDrive::new(Arc::clone(key), "ab".to_owned(), job, 2, sealed)
    }

    #[test]
    fn it_opens_for_its_own_job_and_shows_nothing_on_the_way() {
        let key = Arc::new(SealKey::generate());
        let plain = serde_json::to_vec(&drive()).unwrap();
        let sealed = sealed_for(&key, "op-1", &plain).unwrap();
        let open = sealed.open().unwrap();
        assert_eq!(*open, drive());
        assert_eq!(open.user_data.as_deref(), Some(CANARY.as_bytes()));
        let shown = format!("{sealed:?} {open:?} {sealed:#?}");
        assert!(
            !shown.contains(CANARY) && !shown.contains(&sealed.sealed),
            "{shown}"
        );
        let replayed = sealed_for(&key, "op-2", &plain).unwrap();
        assert_eq!(replayed.open().unwrap_err(), DriveError::Seal(SealError::Refused));
    }

    #[test]
    fn what_is_no_config_drive_is_refused_without_a_word_of_it() {
        let key = Arc::new(SealKey::generate());
        let broken = format!("{{\"metaData\": \"{CANARY}\"}}");
        let error = sealed_for(&key, "op-1", broken.as_bytes())
            .unwrap()
            .open()
            .unwrap_err();
        assert_eq!(error, DriveError::Form);
        assert!(!muster_proto::Chain(&error).to_string().contains(CANARY));
        let other = Arc::new(SealKey::generate());
        let sealed = sealed_for(&key, "op-1", b"{}").unwrap().sealed;
        let foreign = SealedDrive::new(other, "ab".to_owned(), "op-1", 2, sealed);
        assert_eq!(foreign.unwrap_err(), SealError::OtherSession);
    }

    #[test]
    fn nothing_is_left_of_it() {
        let mut used = drive();
        wipe(&mut used);
        assert!(!serde_json::to_string(&used).unwrap().contains("canary"));
        assert_eq!(used.user_data, None);
    }
}
