//! Kubernetes Events: what happened to which object, told to people. Repeated ones are aggregated.

mod write;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::{sync::mpsc, time::Instant};
use tracing::Span;

use crate::{
    bounded::make_room,
    bucket::{Bucket, Rate},
    sync::lock,
};

/// Records Events; never blocks and never fails the caller.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Happened>,
    /// What was put on the queue lately.
    told: Arc<Mutex<Told>>,
    /// Those that were not put there.
    dropped: Dropped,
}

/// Counts Events that nobody was told, of all recorders of a process.
#[derive(Clone, Debug, Default)]
pub struct Dropped {
    /// Those that were only logged.
    logged: Counter,
    /// Those whose reason came too often. No line says so, or strangers could fill a disk with them.
    suppressed: Counter,
}

impl Dropped {
    /// Registered on `registry`.
    pub fn register(registry: &mut Registry) -> Dropped {
        let dropped = Dropped::default();
        registry.register(
            "muster_events_dropped",
            "Events that were only logged: too many were queued for the API server, it did not accept them, or their writer had ended",
            dropped.logged.clone(),
        );
        registry.register(
            "muster_events_suppressed",
            "Events that were neither recorded nor logged: the same reason came too often for one object",
            dropped.suppressed.clone(),
        );
        dropped
    }

    fn count(&self, event: &Event, why: &'static str) {
        self.logged.inc();
        let Event { reason, message, .. } = event;
        event
            .span()
            .in_scope(|| tracing::warn!(reason, note = %message, "event dropped: {why}"));
    }
}

/// What was told lately.
#[derive(Debug, Default)]
struct Told {
    /// When each warning was.
    warned: HashMap<String, Instant>,
    /// How often each object and reason was, whatever the words.
    often: HashMap<String, Bucket>,
}

/// One Event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// About which object.
    pub about: ObjectReference,
    /// Whom else it concerns: who uses a host.
    pub related: Option<Box<ObjectReference>>,
    /// Type Warning instead of Normal.
    pub warning: bool,
    /// CamelCase, for machines.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// An Event, and when it was recorded: it may wait for the API server for a while.
#[derive(Clone, Debug)]
pub struct Happened {
    /// When.
    pub at: Timestamp,
    /// What.
    pub event: Event,
}

impl Event {
    /// A span that says what it is about, under the name that other lines have for that; in no other one, which may say the same.
    fn span(&self) -> Span {
        let ObjectReference {
            kind,
            namespace,
            name,
            ..
        } = &self.about;
        let name = name.as_deref().unwrap_or_default();
        let path = format!("{}/{name}", namespace.as_deref().unwrap_or_default());
        match kind.as_deref() {
            Some("BareMetalHost") => tracing::error_span!(parent: None, "event", host = %path),
            Some("Server") => tracing::error_span!(parent: None, "event", server = %name),
            Some("Segment") => tracing::error_span!(parent: None, "event", segment = %path),
            _ => tracing::error_span!(parent: None, "event", object = %path),
        }
    }
}

/// For so long the same warning is not repeated: a stranger who shows forged tokens all day costs the API server next to nothing,
/// and crowds out no other Event.
const PAUSE: Duration = Duration::from_secs(10);

/// How often one reason is told of one object: a machine that finds ever new words for it crowds out nothing else, and a segment
/// on which a rack is switched on is still told.
const RATE: Rate = Rate {
    burst: 25,
    every: Duration::from_secs(30),
};

/// Warnings, and objects with a reason, that are remembered for that; beyond, old ones are forgotten.
const REMEMBERED: usize = 1024;

/// How many Events may wait for the API server, of less than a KiB each: every one that thousands of hosts have at once. The rest is
/// logged and counted.
const QUEUE: usize = 8192;

impl Events {
    /// A recorder that puts Events on `queue`; the loop at its other end writes them.
    pub fn new(queue: mpsc::Sender<Happened>) -> Self {
        Events {
            queue,
            told: Arc::default(),
            dropped: Dropped::default(),
        }
    }

    /// A recorder and the loop that writes to the API server, as long as it runs.
    pub fn start(client: kube::Client, dropped: Dropped) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let events = Events {
            dropped: dropped.clone(),
            ..Events::new(queue)
        };
        (events, write::run(client, dropped, waiting))
    }

    /// Records `event`; logged and counted instead when the queue is full: Events are for people, not for state.
    pub fn record(&self, event: Event) {
        if !self.is_due(&event) {
            return;
        }
        let at = Timestamp::now();
        if let Err(error) = self.queue.try_send(Happened { at, event }) {
            let why = match error {
                mpsc::error::TrySendError::Full(_) => "too many are queued for the API server",
                mpsc::error::TrySendError::Closed(_) => "this process no longer writes Events",
            };
            self.dropped.count(&error.into_inner().event, why);
        }
    }

    fn is_due(&self, event: &Event) -> bool {
        let Event { about, reason, .. } = event;
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        let subject = [
            &part(&about.kind),
            &part(&about.namespace),
            &part(&about.name),
            *reason,
        ]
        .join("/");
        let now = Instant::now();
        let mut told = lock(&self.told);
        let Told { warned, often } = &mut *told;
        let words = format!("{subject}/{}", event.message);
        if event.warning && warned.get(&words).is_some_and(|at| at.elapsed() < PAUSE) {
            return false;
        }
        make_room(often, REMEMBERED, |bucket| !bucket.is_full(now));
        let bucket = often.entry(subject).or_insert_with(|| Bucket::new(now));
        if !bucket.take(RATE, now) {
            self.dropped.suppressed.inc();
            return false;
        }
        if event.warning {
            make_room(warned, REMEMBERED, |at| at.elapsed() < PAUSE);
            warned.insert(words, now);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, warning: bool, message: &str) -> Event {
        Event {
            about: ObjectReference {
                name: Some(name.to_owned()),
                ..ObjectReference::default()
            },
            related: None,
            warning,
            reason: "Test",
            message: message.to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_one_warning_is_one_event_and_hides_no_other() {
        let (queue, mut waiting) = mpsc::channel(16);
        let events = Events::new(queue);
        for _ in 0..100_000 {
            events.record(event("a", true, "m"));
        }
        events.record(event("b", true, "m"));
        events.record(event("a", true, "other"));
        events.record(event("a", false, "n"));
        events.record(event("a", false, "n"));
        tokio::time::advance(PAUSE).await;
        events.record(event("a", true, "m"));
        drop(events);
        let mut told = Vec::new();
        while let Some(Happened { event, .. }) = waiting.recv().await {
            told.push((event.about.name.unwrap(), event.message));
        }
        let told: Vec<(&str, &str)> = told.iter().map(|(name, message)| (&**name, &**message)).collect();
        let expected = [
            ("a", "m"),
            ("b", "m"),
            ("a", "other"),
            ("a", "n"),
            ("a", "n"),
            ("a", "m"),
        ];
        assert_eq!(told, expected);
    }

    #[tokio::test]
    async fn an_event_for_which_there_is_no_place_is_counted() {
        let (queue, _waiting) = mpsc::channel(1);
        let events = Events::new(queue);
        for name in ["a", "b", "c"] {
            events.record(event(name, false, "m"));
        }
        assert_eq!(events.dropped.logged.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_too_often_is_counted_and_what_only_repeats_is_not() {
        let (queue, _waiting) = mpsc::channel(QUEUE);
        let events = Events::new(queue);
        for _ in 0..100 {
            events.record(event("a", true, "m"));
        }
        assert_eq!(events.dropped.suppressed.get(), 0);
        for number in 0..30 {
            events.record(event("a", true, &number.to_string()));
        }
        // 25 at once, the first words among them.
        let Dropped { logged, suppressed } = &events.dropped;
        assert_eq!((logged.get(), suppressed.get()), (0, 6));
    }

    #[test]
    fn warnings_about_a_hundred_thousand_objects_are_not_all_remembered() {
        let (queue, _waiting) = mpsc::channel(16);
        let events = Events::new(queue);
        for number in 0..100_000 {
            let Event { about, .. } = event(&number.to_string(), true, "m");
            assert!(events.is_due(&Event {
                about,
                ..event("", true, "m")
            }));
        }
        let told = events.told.lock().unwrap();
        assert!(told.warned.len() <= REMEMBERED && told.often.len() <= REMEMBERED);
    }

    #[tokio::test(start_paused = true)]
    async fn ever_new_words_for_one_reason_are_told_now_and_then_and_hide_no_other_reason() {
        for warning in [true, false] {
            let (queue, mut waiting) = mpsc::channel(QUEUE);
            let events = Events::new(queue);
            let mut told = |reason: &'static str| {
                for number in 0..QUEUE {
                    let words = number.to_string();
                    events.record(Event {
                        reason,
                        ..event("a", warning, &words)
                    });
                }
                std::iter::from_fn(|| waiting.try_recv().ok()).count()
            };
            assert_eq!(told("Flood"), 25);
            assert_eq!(told("Flood"), 0);
            assert_eq!(told("Other"), 25);
            tokio::time::advance(RATE.every).await;
            assert_eq!(told("Flood"), 1);
        }
    }
}
