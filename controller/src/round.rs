//! What the loops of the control role have in common: how a round fails, when it is tried again, how changes reach it.

use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use kube::{
    core::Status,
    runtime::{
        controller::{self, Action},
        reflector::{Lookup, ObjectRef},
    },
};
use muster_proto::Chain;
use tokio::sync::broadcast;

/// Without any change, look again after this long: it heals what a lost watch event left.
pub const RESYNC: Duration = Duration::from_secs(600);
/// How long one round may wait for an API server that neither answers nor refuses.
pub const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(15);

/// Under this name the API server remembers which fields are ours.
pub const FIELD_MANAGER: &str = "muster-control";

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The API server refused or could not be reached.
    #[error("{step} {subject}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// On which object.
        subject: String,
        /// Why not.
        #[source]
        source: kube::Error,
    },
    /// The API server did not answer in time; what was tried may have happened.
    #[error("the API server gave no answer about {subject} in time")]
    Late {
        /// Whose round it was.
        subject: String,
    },
    /// The world moved between looking and acting: look again.
    #[error("{step} {subject}: it is not as it was seen")]
    Behind {
        /// What was tried.
        step: &'static str,
        /// On which object.
        subject: String,
    },
}

impl ExecuteError {
    /// True if the API server will say the same next time, too: the object itself is refused, or the place where it is to be (its
    /// namespace, its kind) does not exist.
    pub fn is_refusal(&self) -> bool {
        matches!(self, ExecuteError::Step { source: kube::Error::Api(status), .. }
            if matches!(status.code, 400 | 403 | 404 | 422))
    }
}

/// When the round of `name` is tried again after it failed so often in a row: twice as long after every failure. One in the same
/// state as others waits a little differently, so that an API server that comes back is not met by all at once.
pub fn retry_after(name: &str, failures: u32, error: &ExecuteError) -> Duration {
    let doubled = RETRY_FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(RETRY_MOST);
    let spread = name
        .bytes()
        .fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
        % 256;
    let wait = match error {
        ExecuteError::Behind { .. } => doubled.min(Duration::from_secs(2)),
        ExecuteError::Step { .. } | ExecuteError::Late { .. } => doubled,
    };
    wait + wait * spread / 1024
}

/// The values of `receiver`; `None` where some were lost.
pub fn receive<T: Clone + Send + 'static>(receiver: broadcast::Receiver<T>) -> impl Stream<Item = Option<T>> {
    stream::unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Ok(value) => Some((Some(value), receiver)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some((None, receiver)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    })
}

/// Lets the rounds of the loop `whose` run until their queue ends.
pub async fn run_out<K, Queue>(
    rounds: impl Stream<Item = Result<(ObjectRef<K>, Action), controller::Error<ExecuteError, Queue>>>,
    whose: &str,
) where
    K: Lookup,
    Queue: std::error::Error + 'static,
{
    rounds
        .for_each(|outcome| async {
            match outcome {
                Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
                // Logged with its cause where it happened.
                Err(controller::Error::ReconcilerFailed(..)) => {}
                Err(error) => tracing::error!(error = %Chain(&error), "{whose}'s queue failed"),
            }
        })
        .await;
}

/// What an error of `step` on `subject` (`namespace/name`) means for the round.
pub fn failed(step: &'static str, subject: &str) -> impl FnOnce(kube::Error) -> ExecuteError {
    let subject = subject.to_owned();
    move |source| match source {
        // Exists already, has changed, or was deleted since: our copy was old.
        kube::Error::Api(status) if status.code == 409 || is_gone(&status, &subject) => {
            ExecuteError::Behind { step, subject }
        }
        source => ExecuteError::Step {
            step,
            subject,
            source,
        },
    }
}

/// True if `status` says that the object itself is not there (any more). A namespace that does not exist is found missing under its
/// own name and kind, a kind that is not installed under none; both stay so until a person acts.
fn is_gone(status: &Status, subject: &str) -> bool {
    let name = subject.rsplit('/').next().unwrap_or_default();
    status.code == 404
        && status
            .details
            .as_ref()
            .is_some_and(|missing| missing.kind != "namespaces" && missing.name == name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answered(status: Value) -> ExecuteError {
        let status: Status = serde_json::from_value(status).unwrap();
        failed("mark host", "metal/h")(kube::Error::Api(status.boxed()))
    }

    /// As Kubernetes answers.
    fn not_found(kind: &str, name: &str) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404, "reason": "NotFound",
            "message": format!("{kind} \"{name}\" not found"), "details": {"name": name, "kind": kind},
        })
    }

    #[test]
    fn a_deleted_object_is_looked_at_again_and_a_missing_namespace_or_kind_is_a_refusal() {
        let behind = [
            not_found("baremetalhosts", "h"),
            json!({"code": 409, "reason": "AlreadyExists", "message": "exists"}),
            json!({"code": 409, "reason": "Conflict", "message": "changed"}),
        ];
        for status in behind {
            let error = answered(status);
            assert!(matches!(error, ExecuteError::Behind { .. }), "{error:?}");
        }
        let refused = [
            not_found("namespaces", "metal"),
            // Both can have one name.
            not_found("namespaces", "h"),
            // The kind is not installed: the client makes this of a plain `404 page not found`.
            json!({"code": 404, "reason": "Failed to parse error data", "message": "404 page not found"}),
        ];
        for status in refused {
            let error = answered(status);
            assert!(error.is_refusal(), "{error:?}");
        }
    }
}
