//! Writes Events to the API server; one that comes again counts up the one that is there (`series` of events.k8s.io/v1).

use std::{collections::HashMap, time::Duration};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::{
    api::events::v1::{Event as Written, EventSeries},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use muster_proto::{Chain, text};
use serde_json::json;
use tokio::{
    sync::{Mutex, mpsc},
    time::Instant,
};
use tracing::Instrument;

use super::{Dropped, Event, Happened};
use crate::bounded::make_room;

/// Who reports.
const REPORTER: &str = "muster-controller";
/// The API server refuses longer notes, in bytes.
const NOTE: usize = 1024;
/// Nor does it take longer names, of whatever object (RFC 1123, 2.1).
const LONGEST_NAME: usize = 253;
/// For so long after the last time, the same happening counts up its Event; a later one is told anew.
const SERIES: Duration = Duration::from_secs(360);
/// Happenings of one lane that are remembered for that, of 100 bytes or so each: with thousands of hosts some come in a row. Beyond,
/// old ones are forgotten.
const REMEMBERED: usize = 1024;
/// After how long an Event is written again to an API server that is too busy.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// How many Events are written at once. One after the other is slower than thousands of hosts make them where the API server is busy.
const AT_ONCE: usize = 4;

/// An Event that was written.
#[derive(Debug)]
struct Series {
    name: String,
    count: i32,
    last: Instant,
}

/// What was written lately, by what makes two happenings the same.
#[derive(Debug, Default)]
struct Lately(HashMap<[u8; 16], Series>);

impl Lately {
    /// Counts up what `key` is known for: the Event's name, and how often it was told with this time.
    fn again(&mut self, key: &[u8; 16], now: Instant) -> Option<(String, i32)> {
        let series = self.0.get_mut(key)?;
        if now.duration_since(series.last) > SERIES {
            return None;
        }
        series.last = now;
        series.count = series.count.saturating_add(1);
        Some((series.name.clone(), series.count))
    }

    fn remember(&mut self, key: [u8; 16], name: String, now: Instant) {
        make_room(&mut self.0, REMEMBERED, |series| {
            now.duration_since(series.last) <= SERIES
        });
        let series = Series {
            name,
            count: 1,
            last: now,
        };
        self.0.insert(key, series);
    }
}

/// What waits to be written. What still does when the writer ends is logged and counted.
struct Waiting {
    queue: mpsc::Receiver<Happened>,
    dropped: Dropped,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.queue.close();
        while let Ok(Happened { event, .. }) = self.queue.try_recv() {
            self.dropped.count(&event, "this process no longer writes Events");
        }
    }
}

/// Writes what comes, as long as something may come.
pub(super) async fn run(client: Client, dropped: Dropped, queue: mpsc::Receiver<Happened>) {
    let waiting = Waiting {
        queue,
        dropped: dropped.clone(),
    };
    let writer = Writer {
        client,
        dropped,
        lanes: std::array::from_fn(|_| Mutex::default()),
    };
    stream::unfold(waiting, |mut waiting| async move {
        let happened = waiting.queue.recv().await?;
        Some((happened, waiting))
    })
    .for_each_concurrent(AT_ONCE, |happened| {
        let span = happened.event.span();
        writer.tell(happened).instrument(span)
    })
    .await;
}

struct Writer {
    client: Client,
    dropped: Dropped,
    /// What is the same takes the same lane, one after the other.
    lanes: [Mutex<Lately>; 16],
}

impl Writer {
    async fn tell(&self, Happened { at, event }: Happened) {
        let Event { reason, message, .. } = &event;
        let key = key(&event);
        let mut lately = self.lanes[usize::from(key[0]) % self.lanes.len()].lock().await;
        tracing::info!(reason, note = %message, "event");
        let written = self.write(&mut lately, &event, key, at).await;
        if let Err(error) = written {
            self.dropped.logged.inc();
            tracing::warn!(error = %Chain(&error), reason, "event not written");
        }
    }

    async fn write(
        &self,
        lately: &mut Lately,
        event: &Event,
        key: [u8; 16],
        at: Timestamp,
    ) -> kube::Result<()> {
        let namespace = event.about.namespace.as_deref().unwrap_or("default");
        let events: Api<Written> = Api::namespaced(self.client.clone(), namespace);
        if let Some((name, count)) = lately.again(&key, Instant::now()) {
            let series = EventSeries {
                count,
                last_observed_time: MicroTime(at),
            };
            let patch = Patch::Merge(json!({ "series": series }));
            let how = PatchParams::default();
            match patiently(|| events.patch(&name, &how, &patch)).await {
                // It has expired, or somebody deleted it: told anew.
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                outcome => return outcome.map(drop),
            }
        }
        let written = new(event, &key, at);
        let name = written.metadata.name.clone().unwrap_or_default();
        let how = PostParams::default();
        match patiently(|| events.create(&how, &written)).await {
            // Nobody else has such a name: it was written, and the answer was lost.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            outcome => drop(outcome?),
        }
        lately.remember(key, name, Instant::now());
        Ok(())
    }
}

/// What `ask` asks, and once more to an API server, or what is in front of it, that is only too busy.
async fn patiently<T, F: Future<Output = kube::Result<T>>>(ask: impl Fn() -> F) -> kube::Result<T> {
    let is_busy = |code| matches!(code, 429 | 503 | 504);
    for pause in PAUSES {
        match ask().await {
            Err(kube::Error::Api(status)) if is_busy(status.code) => tokio::time::sleep(pause).await,
            answer => return answer,
        }
    }
    ask().await
}

fn new(event: &Event, key: &[u8; 16], at: Timestamp) -> Written {
    let about = &event.about;
    // As client-go makes it, the name of what it is about, and the time; and what tells it from others of that moment.
    let moment = format!(".{:x}{:02x}{:02x}", at.as_nanosecond(), key[0], key[1]);
    let subject = about.name.as_deref().unwrap_or(REPORTER);
    let subject = subject.get(..LONGEST_NAME - moment.len()).unwrap_or(subject);
    Written {
        metadata: ObjectMeta {
            namespace: about.namespace.clone(),
            name: Some(format!("{}{moment}", subject.trim_end_matches(['.', '-']))),
            ..ObjectMeta::default()
        },
        action: Some(action(event.reason, &event.message)),
        event_time: Some(MicroTime(at)),
        note: Some(text::clean_to(event.message.as_bytes(), NOTE)),
        reason: Some(event.reason.to_owned()),
        regarding: Some(about.clone()),
        related: event.related.as_deref().cloned(),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(REPORTER.to_owned()),
        type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
        ..Written::default()
    }
}

/// What makes two happenings the same: object, type, reason and words.
fn key(event: &Event) -> [u8; 16] {
    let about = &event.about;
    let kind = if event.warning { "Warning" } else { "Normal" };
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let parts = [
        &part(&about.kind),
        &part(&about.namespace),
        &part(&about.name),
        &part(&about.uid),
        kind,
        event.reason,
        &event.message,
    ];
    // No name or reason has a NUL in it.
    let digest = ring::digest::digest(&ring::digest::SHA256, parts.join("\0").as_bytes());
    let mut key = [0; 16];
    key.copy_from_slice(&digest.as_ref()[..16]);
    key
}

/// The API server takes at most 128 bytes. Other words are another happening, also for who aggregates by action.
fn action(reason: &str, message: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, message.as_bytes());
    let digits: String = digest
        .as_ref()
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{reason}-{digits}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::ObjectReference;

    use super::{super::Events, *};
    use crate::fake_api::FakeApi;

    fn event(uid: &str, message: &str) -> Event {
        Event {
            about: ObjectReference {
                namespace: Some("metal".to_owned()),
                name: Some("a".to_owned()),
                uid: Some(uid.to_owned()),
                ..ObjectReference::default()
            },
            related: None,
            warning: true,
            reason: "Test",
            message: message.to_owned(),
        }
    }

    /// An API server that does not answer the first Event, and three that wait for it.
    fn held() -> (Arc<FakeApi>, Events, mpsc::Receiver<Happened>) {
        let api = FakeApi::new();
        api.hold("POST", "/events");
        let (queue, waiting) = mpsc::channel(8);
        let events = Events::new(queue);
        for message in ["one", "two", "three"] {
            events.record(event("1", message));
        }
        (api, events, waiting)
    }

    #[tokio::test(start_paused = true)]
    async fn several_events_are_written_at_once_and_each_says_when_it_happened() {
        let (api, events, waiting) = held();
        let recorded = Timestamp::now();
        drop(events);
        let written = || api.all::<Written>("events");
        let slow = async {
            while !api.is_held() || written().len() < 2 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            api.release();
        };
        let both = async { tokio::join!(run(api.client(), Dropped::default(), waiting), slow) };
        tokio::time::timeout(SERIES, both).await.unwrap();
        let all = written();
        assert_eq!(all.len(), 3);
        assert!(
            all.iter()
                .all(|event| event.event_time.as_ref().unwrap().0 <= recorded)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_when_the_writer_ends_is_counted() {
        let (api, events, waiting) = held();
        let dropped = Dropped::default();
        let mut writing = Box::pin(run(api.client(), dropped.clone(), waiting));
        let at_first = tokio::time::timeout(Duration::from_secs(1), &mut writing);
        assert!(at_first.await.is_err(), "the API server does not answer");
        for message in ["four", "five"] {
            events.record(event("1", message));
        }
        drop(writing);
        assert_eq!(dropped.logged.get(), 2);
        events.record(event("1", "six"));
        assert_eq!(events.dropped.logged.get(), 1, "nobody takes it any more");
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_is_written_again_to_an_api_server_that_sheds_load() {
        let api = FakeApi::new();
        let (queue, waiting) = mpsc::channel(8);
        let (events, dropped) = (Events::new(queue), Dropped::default());
        events.record(event("1", "one"));
        drop(events);
        api.set_down(true);
        let again = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            api.set_down(false);
        };
        tokio::join!(run(api.client(), dropped.clone(), waiting), again);
        assert_eq!((api.all::<Written>("events").len(), dropped.logged.get()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_again_while_the_api_server_sheds_load_counts_once() {
        let api = FakeApi::new();
        let (queue, waiting) = mpsc::channel(8);
        let (events, dropped) = (Events::new(queue), Dropped::default());
        let written = || api.all::<Written>("events");
        let tell = async {
            events.record(event("1", "one"));
            // The same is not recorded twice in a short time.
            tokio::time::sleep(Duration::from_secs(20)).await;
            api.set_down(true);
            events.record(event("1", "one"));
            tokio::time::sleep(Duration::from_secs(3)).await;
            api.set_down(false);
            drop(events);
        };
        tokio::join!(run(api.client(), dropped.clone(), waiting), tell);
        let series = written().pop().and_then(|event| event.series);
        assert_eq!(
            (
                written().len(),
                series.map(|series| series.count),
                dropped.logged.get()
            ),
            (1, Some(2), 0)
        );
    }

    #[test]
    fn an_event_of_a_long_name_has_one_that_is_taken() {
        for name in [
            "a".repeat(253),
            format!("{}.b{}", "a".repeat(231), "c".repeat(20)),
        ] {
            let mut event = event("1", "m");
            event.about.name = Some(name.clone());
            let written = new(&event, &key(&event), Timestamp::now());
            assert!(text::is_dns_subdomain(&written.metadata.name.unwrap()), "{name}");
            assert_eq!(written.regarding.unwrap().name, Some(name));
        }
    }

    #[test]
    fn the_same_happening_counts_up_and_another_is_told_anew() {
        let mut lately = Lately::default();
        let now = Instant::now();
        let (one, other) = (key(&event("1", "m")), key(&event("1", "n")));
        assert_eq!(lately.again(&one, now), None);
        lately.remember(one, "a.1".to_owned(), now);
        assert_eq!(lately.again(&one, now), Some(("a.1".to_owned(), 2)));
        assert_eq!(lately.again(&one, now + SERIES), Some(("a.1".to_owned(), 3)));
        assert_eq!(lately.again(&other, now), None);
        assert_ne!(one, key(&event("2", "m")), "an object made anew");
        assert_eq!(lately.again(&one, now + SERIES * 3), None, "long ago");
    }

    #[test]
    fn not_all_happenings_of_a_hundred_thousand_objects_are_remembered() {
        let mut lately = Lately::default();
        let now = Instant::now();
        for number in 0..100_000 {
            lately.remember(key(&event(&number.to_string(), "m")), String::new(), now);
        }
        assert!(lately.0.len() <= REMEMBERED);
    }
}
