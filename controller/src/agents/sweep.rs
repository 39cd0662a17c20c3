//! Removes Enrolments that have ended. The control role runs it.

use std::time::Duration;

use kube::{
    Api, Client,
    api::{DeleteParams, ListParams},
};
use muster_proto::kinds::Enrolment;

/// How often ended Enrolments are looked for.
const PERIOD: Duration = Duration::from_secs(300);
/// Enrolments per list request.
const PAGE: u32 = 500;
/// How long an Enrolment whose end cannot be read is kept, in seconds from its making.
const UNREADABLE: i64 = 86_400;

/// Sweeping failed.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Listing.
    #[error("list Enrolments")]
    List(#[source] Box<kube::Error>),
    /// Deleting one.
    #[error("delete Enrolment {name}")]
    Delete {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// True if `enrolment` has ended at `now` (unix seconds): neither its token nor its certificate is good for anything.
pub fn ended(enrolment: &Enrolment, now: i64) -> bool {
    let made = || Some(enrolment.metadata.creation_timestamp.as_ref()?.0.as_second() + UNREADABLE);
    super::clock::parse(&enrolment.spec.expires)
        .or_else(made)
        .is_some_and(|end| end < now)
}

/// Deletes the Enrolments in `namespace` that have ended at `now` (unix seconds); says how many.
pub async fn sweep(client: &Client, namespace: &str, now: i64) -> Result<usize, SweepError> {
    let enrolments: Api<Enrolment> = Api::namespaced(client.clone(), namespace);
    let mut page = ListParams::default().limit(PAGE);
    let mut swept = 0;
    loop {
        let found = enrolments
            .list(&page)
            .await
            .map_err(|source| SweepError::List(Box::new(source)))?;
        for name in found
            .items
            .iter()
            .filter(|one| ended(one, now))
            .filter_map(|one| one.metadata.name.clone())
        {
            match enrolments.delete(&name, &DeleteParams::default()).await {
                Ok(_) => swept += 1,
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(source) => {
                    return Err(SweepError::Delete {
                        name,
                        source: Box::new(source),
                    });
                }
            }
        }
        match found.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(swept),
        }
    }
}

/// [`sweep`] again and again; logs what fails and never ends.
pub async fn keep(client: Client, namespace: String) {
    loop {
        match sweep(&client, &namespace, super::clock::now()).await {
            Ok(0) => {}
            Ok(swept) => tracing::info!(swept, "ended Enrolments removed"),
            Err(error) => {
                tracing::warn!(error = %muster_proto::Chain(&error), "ended Enrolments stay for now; they are looked for again");
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}
