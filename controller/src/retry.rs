//! When a watch that failed is tried again: the one place that says so for all of them.
//!
//! kube's own pauses grow to a minute and only end with an event, which a kind that seldom changes may not have for hours. A process has a
//! handful of watches, so that a try every few seconds is no load, even for an API server that has just come back.

use std::{fmt::Debug, time::Duration};

use futures::{Stream, StreamExt, stream};
use kube::{
    Api, Resource,
    runtime::watcher::{self, Config, Event, watch_object, watcher},
};
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

/// The first pause; each is cut by up to a half, so that many processes do not come back at one moment.
const FIRST: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST: Duration = Duration::from_secs(5);
/// After so long without a failure all is forgotten.
const CALM: Duration = Duration::from_secs(30);

/// Watches what is behind `api`, for ever.
pub(crate) fn watch_all<K>(
    api: Api<K>,
    config: Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    // It is told before the API server is asked.
    paced(watcher(api, config), |event| !matches!(event, Event::Init))
}

/// Watches the object `name`, for ever; `None`: there is no such.
pub(crate) fn watch_one<K>(
    api: Api<K>,
    name: &str,
) -> impl Stream<Item = watcher::Result<Option<K>>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    paced(watch_object(api, name), |_| true)
}

/// `events`, with a pause after each failure. `is_success` is false for what is told without the API server.
fn paced<T: Send>(
    events: impl Stream<Item = watcher::Result<T>> + Send,
    is_success: fn(&T) -> bool,
) -> impl Stream<Item = watcher::Result<T>> + Send {
    let begun = (Box::pin(events), Pauses::default(), Duration::ZERO);
    stream::unfold(begun, move |(mut events, mut pauses, pause)| async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let event = events.next().await?;
        let pause = match &event {
            Err(error) => pauses.failed(is_expired(error), Instant::now(), random()),
            Ok(event) => {
                if is_success(event) {
                    pauses.failures = 0;
                }
                Duration::ZERO
            }
        };
        Some((event, (events, pauses, pause)))
    })
}

/// True if all has to be listed anew, because the API server does not know any more what changed since.
fn is_expired(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        WatchError(status) => status.code == 410,
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
            matches!(error, kube::Error::Api(status) if status.code == 410)
        }
        watcher::Error::NoResourceVersion => false,
    }
}

/// How often one watch failed.
#[derive(Debug, Default)]
struct Pauses {
    /// Since its last success.
    failures: u32,
    /// How often all had to be listed anew. A list that succeeds does not end that: it may be too old at once, again and again.
    expiries: u32,
    last: Option<Instant>,
}

impl Pauses {
    /// The pause after a failure; `random` is from 0 to 1. What has `expired` does not wait for an API server that is away: it answers.
    fn failed(&mut self, expired: bool, now: Instant, random: f64) -> Duration {
        if self.last.is_some_and(|last| now.duration_since(last) >= CALM) {
            *self = Pauses::default();
        }
        self.last = Some(now);
        let count = if expired {
            &mut self.expiries
        } else {
            &mut self.failures
        };
        let pause = FIRST.saturating_mul(1 << (*count).min(8)).min(LONGEST);
        *count = count.saturating_add(1);
        pause / 2 + (pause / 2).mul_f64(random.clamp(0.0, 1.0))
    }
}

/// From 0 to 1; without any randomness 1.
fn random() -> f64 {
    let mut bytes = [0_u8; 4];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    type Step = watcher::Result<Event<()>>;

    fn away() -> Step {
        Err(watcher::Error::NoResourceVersion)
    }

    fn expired() -> Step {
        let status = Status::failure("too old resource version", "Expired").with_code(410);
        Err(watcher::Error::WatchError(status.boxed()))
    }

    /// How long each of `steps` is waited for, in milliseconds.
    async fn waits(steps: Vec<Step>) -> Vec<u128> {
        let events = paced(stream::iter(steps), |event| !matches!(event, Event::Init));
        let mut events = std::pin::pin!(events);
        let (mut waits, mut last) = (Vec::new(), Instant::now());
        while events.next().await.is_some() {
            waits.push(last.elapsed().as_millis());
            last = Instant::now();
        }
        waits
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_is_back_seconds_after_the_api_server_is() {
        let mut steps: Vec<Step> = (0..20).map(|_| away()).collect();
        steps.extend([Ok(Event::Apply(())), away(), Ok(Event::Init), away(), away()]);
        let waits = waits(steps).await;
        assert_eq!(waits[0], 0);
        assert!((500..=1100).contains(&waits[1]), "{waits:?}");
        assert!(
            waits[5..=20].iter().all(|wait| (2500..=5100).contains(wait)),
            "{waits:?}"
        );
        // A success ends it, and what is told before the API server is asked is none.
        assert!((500..=1100).contains(&waits[22]), "{waits:?}");
        assert_eq!(waits[23], 0);
        assert!((1000..=2100).contains(&waits[24]), "{waits:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_is_listed_anew_at_once_and_not_without_a_pause_for_ever() {
        let mut steps: Vec<Step> = (0..5).map(|_| away()).collect();
        steps.push(expired());
        for _ in 0..5 {
            steps.extend([Ok(Event::Init), Ok(Event::InitDone), expired()]);
        }
        let waits = waits(steps).await;
        assert!((500..=1100).contains(&waits[6]), "{waits:?}");
        assert!(waits[18] >= 2500, "{waits:?}");
    }

    #[test]
    fn after_a_time_without_a_failure_a_watch_begins_with_the_shortest_pause() {
        let (mut pauses, start) = (Pauses::default(), Instant::now());
        for _ in 0..5 {
            pauses.failed(false, start, 1.0);
        }
        assert_eq!(pauses.failed(false, start + CALM / 2, 1.0), LONGEST);
        assert_eq!(pauses.failed(false, start + CALM * 2, 1.0), FIRST);
    }
}
