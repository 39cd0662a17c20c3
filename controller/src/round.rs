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
use tokio::{
    sync::broadcast,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::events::Event;

/// Without any change, each object is looked at once in this long, as the watched copies have it: it heals what a loop missed.
const RESYNC: Duration = Duration::from_secs(600);
/// In so many parts, so that it is not all at once. An object that waits for nothing else has no timer.
const PARTS: u32 = 60;
/// How long one round may wait for an API server that neither answers nor refuses.
pub const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(15);
/// The same of what the API server refuses: it stays so until somebody acts, and a change of the object itself is seen at once.
const REFUSED_MOST: Duration = Duration::from_secs(120);
/// What is only looked at again is looked at so often in about a minute.
const BEHIND: u32 = 30;

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
    #[error("the API server did not answer in time about {subject}")]
    Late {
        /// Whose round it was.
        subject: String,
    },
    /// The API server keeps less of an object than was written: its kind is older than this.
    #[error(
        "the installed CRD of {kind} does not keep {field}, so nothing can be done to {subject}; next: install Muster's CRDs (deploy/crds)"
    )]
    Dropped {
        /// The kind.
        kind: &'static str,
        /// What it does not know.
        field: &'static str,
        /// Whose round it was.
        subject: String,
    },
    /// The world moved between looking and acting: look again.
    #[error("{step} {subject}: it has changed since it was read")]
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
        match self {
            ExecuteError::Step {
                source: kube::Error::Api(status),
                ..
            } => matches!(status.code, 400 | 403 | 404 | 422),
            ExecuteError::Dropped { .. } => true,
            _ => false,
        }
    }

    /// What was tried, if that is known.
    pub fn step(&self) -> Option<&'static str> {
        match self {
            ExecuteError::Step { step, .. } | ExecuteError::Behind { step, .. } => Some(*step),
            ExecuteError::Late { .. } | ExecuteError::Dropped { .. } => None,
        }
    }

    /// True if it is the namespace of what was to be made that does not exist.
    pub fn lacks_namespace(&self) -> bool {
        match self {
            ExecuteError::Step {
                source: kube::Error::Api(status),
                ..
            } => {
                let missing = status.details.as_ref();
                status.code == 404 && missing.is_some_and(|missing| missing.kind == "namespaces")
            }
            _ => false,
        }
    }

    /// True if nothing failed: it is only looked at again.
    pub fn is_behind(&self) -> bool {
        matches!(self, ExecuteError::Behind { .. })
    }

    /// True if people hear of it in the log, after `failures` in a row: of what is only looked at again, about once a minute.
    fn is_told(&self, failures: u32) -> bool {
        !self.is_behind() || (failures > 0 && failures.is_multiple_of(BEHIND))
    }

    /// Into the log: the round failed, as the last of `failures` in a row, and is tried again. Its span says whose it is.
    pub fn log(&self, failures: u32) {
        match self {
            ExecuteError::Behind { .. } if self.is_told(failures) => tracing::warn!(
                error = %self,
                failures,
                "keeps retrying: others write the object all the time, the watch lags behind, or the API server answers 409"
            ),
            ExecuteError::Behind { .. } => tracing::debug!(error = %self, "retrying with the current state"),
            ExecuteError::Step { .. } | ExecuteError::Late { .. } | ExecuteError::Dropped { .. } => {
                tracing::warn!(error = %Chain(self), "retrying");
            }
        }
    }
}

/// The rounds about one object that failed in a row.
#[derive(Debug, Default)]
pub struct Failures {
    count: u32,
    /// The refusal that was told last.
    refusal: Option<Box<Event>>,
}

impl Failures {
    /// One more, with `refusal` if the API server will say the same next time. Returns that if it was not told in this row: it stays
    /// so until somebody acts.
    pub fn add(&mut self, refusal: Option<Event>) -> Option<Event> {
        self.count = self.count.saturating_add(1);
        let news = refusal.filter(|refusal| self.refusal.as_deref() != Some(refusal))?;
        self.refusal = Some(Box::new(news.clone()));
        Some(news)
    }

    /// How many.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The refusal that was told last in this row.
    pub fn refusal(&self) -> Option<&Event> {
        self.refusal.as_deref()
    }
}

/// When the round of `name` is tried again after it failed so often in a row: twice as long after every failure. One in the same
/// state as others waits a little differently, so that an API server that comes back is not met by all at once.
pub fn retry_after(name: &str, failures: u32, error: &ExecuteError) -> Duration {
    let most = match error.is_refusal() {
        true => REFUSED_MOST,
        false => RETRY_MOST,
    };
    let doubled = RETRY_FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(most);
    let spread = spread(name) % 256;
    let wait = match error {
        ExecuteError::Behind { .. } => doubled.min(Duration::from_secs(2)),
        ExecuteError::Step { .. } | ExecuteError::Late { .. } | ExecuteError::Dropped { .. } => doubled,
    };
    wait + wait * spread / 1024
}

/// A number that differs from name to name.
fn spread(name: &str) -> u32 {
    name.bytes()
        .fold(0, |sum: u32, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
}

/// Why objects are looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cue<T> {
    /// This has changed.
    Change(T),
    /// Changes were lost: anything may have.
    Lost,
    /// Nothing is known to have changed.
    Part(Part),
}

/// One of the parts of all objects that are looked at one after the other, all of them in [`RESYNC`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part(u32);

impl Part {
    /// True if the object `name` is in this part.
    pub fn has(self, name: &str) -> bool {
        // Names differ in their last digits, which alone would fill some parts and leave others empty.
        let mixed = u64::from(spread(name).wrapping_mul(0x9e37_79b1));
        (mixed * u64::from(PARTS)) >> 32 == u64::from(self.0)
    }
}

/// The values of `receiver` until it ends, and meanwhile the parts.
pub fn receive<T: Clone + Send + 'static>(receiver: broadcast::Receiver<T>) -> impl Stream<Item = Cue<T>> {
    let pause = RESYNC / PARTS;
    let mut ticks = interval_at(Instant::now() + pause, pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    stream::unfold(
        (receiver, ticks, 0),
        |(mut receiver, mut ticks, part)| async move {
            let (cue, next) = tokio::select! {
                received = receiver.recv() => match received {
                    Ok(value) => (Cue::Change(value), part),
                    Err(broadcast::error::RecvError::Lagged(_)) => (Cue::Lost, part),
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                _ = ticks.tick() => (Cue::Part(Part(part)), (part + 1) % PARTS),
            };
            Some((cue, (receiver, ticks, next)))
        },
    )
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
    use std::collections::BTreeMap;

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

    #[tokio::test(start_paused = true)]
    async fn whatever_was_lost_everything_is_looked_at_once_in_a_resync_and_changes_are_not_kept_waiting() {
        let (sender, receiver) = broadcast::channel(2);
        let begun = Instant::now();
        let cues = receive(receiver);
        let mut cues = std::pin::pin!(cues);
        sender.send("changed").unwrap();
        assert_eq!(cues.next().await, Some(Cue::Change("changed")));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        for _ in 0..3 {
            sender.send("too many").unwrap();
        }
        assert_eq!(cues.next().await, Some(Cue::Lost));
        let names: Vec<String> = (0..1000).map(|number| format!("host-{number:05}")).collect();
        let (mut looked_at, mut parts) = (BTreeMap::new(), 0);
        for _ in 0..10_000 {
            if parts == PARTS {
                break;
            }
            // However much changes meanwhile.
            sender.send("again").unwrap();
            let Some(Cue::Part(part)) = cues.next().await else {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            };
            parts += 1;
            let theirs: Vec<&String> = names.iter().filter(|name| part.has(name)).collect();
            assert!((8..25).contains(&theirs.len()), "{} at once", theirs.len());
            theirs
                .into_iter()
                .for_each(|name| *looked_at.entry(name).or_insert(0) += 1);
        }
        assert!(
            begun.elapsed() < RESYNC + Duration::from_secs(60),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(looked_at.len(), names.len());
        assert!(looked_at.values().all(|turns| *turns == 1));
        drop(sender);
        while cues.next().await.is_some() {}
    }

    #[test]
    fn what_is_looked_at_again_without_an_end_is_told_once_a_minute() {
        let conflict = answered(json!({"code": 409, "reason": "Conflict", "message": "changed"}));
        let mut waited = Duration::ZERO;
        let mut told = Vec::new();
        for failures in 1..=100 {
            waited += retry_after("h", failures, &conflict);
            if conflict.is_told(failures) {
                told.push(waited.as_secs());
            }
        }
        assert_eq!(told.len(), 3, "{told:?}");
        assert!((45..90).contains(&told[0]), "{told:?}");
        assert!(
            told.windows(2).all(|two| (45..90).contains(&(two[1] - two[0]))),
            "{told:?}"
        );
        let refused = answered(json!({"code": 500, "reason": "InternalError", "message": "no"}));
        assert!(refused.is_told(1), "what failed is told at once");
    }

    #[test]
    fn what_the_api_server_refuses_is_tried_and_told_ever_more_seldom() {
        let waits = |code: u16| {
            let error = answered(json!({"code": code, "reason": "No", "message": "no"}));
            [1, 5, 10, 20, 1000].map(|failures| retry_after("h", failures, &error).as_secs())
        };
        let [first, fifth, .., last] = waits(422);
        assert_eq!((first, fifth), (0, 4), "what is mended soon is done soon");
        assert!((120..=150).contains(&last), "{last} s");
        let [.., last] = waits(500);
        assert!((15..=19).contains(&last), "{last} s");
    }

    #[test]
    fn a_refusal_is_logged_in_the_words_of_the_api_server() {
        let refused = answered(json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 422, "reason": "Invalid",
            "message": "spec.hardware: must be of type object", "details": {"name": "h", "kind": "HardwareData"},
        }));
        assert_eq!(
            Chain(&refused).to_string(),
            "mark host metal/h: ApiError: spec.hardware: must be of type object: Invalid"
        );
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
            let error = answered(status.clone());
            assert!(error.is_refusal(), "{error:?}");
            let is_namespace = status["details"]["kind"] == "namespaces";
            assert_eq!(error.lacks_namespace(), is_namespace, "{error:?}");
        }
    }
}
