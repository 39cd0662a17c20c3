//! Removes Enrolments that have ended. The control role runs it.
//!
//! An Enrolment that is gone makes its token good again, so one wrong clock must not be enough. Its age is counted from when the API
//! server made it, and it has to have ended by the API server's clock and by ours: a clock that is ahead alone removes nothing early,
//! and one that is behind only keeps Enrolments for longer.

use std::time::Duration;

use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ListParams},
    client::Body,
};
use muster_proto::kinds::Enrolment;

use super::{ca, spend};
use crate::{api_clock, token};

/// How often ended Enrolments are looked for.
const PERIOD: Duration = Duration::from_secs(300);
/// Enrolments per list request.
const PAGE: u32 = 500;
/// How long an Enrolment whose end cannot be read is kept, in seconds from its making.
const UNREADABLE: i64 = 86_400;
/// How long any Enrolment is kept at least, in seconds from its making: what it stands for has ended then, whatever the clock said
/// of the edge that wrote its end. The edge may have been as much behind the one that issued the token as tokens allow.
const WHOLE_LIFE: i64 = token::SKEW + token::LIFETIME + ca::CLIENT_LIFETIME + spend::GRACE;

/// Sweeping failed.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Listing.
    #[error("list Enrolments")]
    List(#[source] Box<kube::Error>),
    /// Its answer has no `Date`, or none that can be read: without its clock nothing is removed.
    #[error("the API server does not say what time it is")]
    NoTime,
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
    let made = enrolment.metadata.creation_timestamp.as_ref();
    made.map(|made| made.0.as_second()).is_some_and(|made| {
        let end = super::clock::parse(&enrolment.spec.expires).unwrap_or(made + UNREADABLE);
        end.max(made + WHOLE_LIFE) < now
    })
}

/// What time it is by the API server's clock, in unix seconds: the `Date` of an answer (RFC 9110, section 6.6.1).
pub(super) async fn time_there(client: &Client, namespace: &str) -> Result<i64, SweepError> {
    let list = |error| SweepError::List(Box::new(error));
    let request = kube::core::Request::new(Enrolment::url_path(&(), Some(namespace)))
        .list(&ListParams::default().limit(1))
        .map_err(|error| list(kube::Error::BuildRequest(error)))?;
    let answer = client.send(request.map(Body::from)).await.map_err(list)?;
    let date = api_clock::date(answer.headers());
    Ok(date.ok_or(SweepError::NoTime)?.as_second())
}

/// Deletes the Enrolments in `namespace` that have ended both at `now` (unix seconds) and by the API server's clock; says how many. One
/// that the API server does not delete keeps no other from it, and is the error.
pub async fn sweep(client: &Client, namespace: &str, now: i64) -> Result<usize, SweepError> {
    let now = now.min(time_there(client, namespace).await?);
    let enrolments: Api<Enrolment> = Api::namespaced(client.clone(), namespace);
    let mut page = ListParams::default().limit(PAGE);
    let mut swept = 0;
    let mut refused = None;
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
                    let answered = matches!(source, kube::Error::Api(_));
                    let source = Box::new(source);
                    let error = SweepError::Delete { name, source };
                    if !answered {
                        return Err(error);
                    }
                    refused.get_or_insert(error);
                }
            }
        }
        match found.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return refused.map_or(Ok(swept), Err),
        }
    }
}

/// [`sweep`] again and again; logs what fails and never ends.
pub async fn keep(client: Client, namespace: String) {
    loop {
        match sweep(&client, &namespace, super::clock::now()).await {
            Ok(0) => {}
            Ok(swept) => tracing::info!(swept, "expired Enrolments removed"),
            Err(error) => {
                tracing::warn!(error = %muster_proto::Chain(&error), "expired Enrolments could not be removed; retrying later");
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}
