//! Kubernetes Events: what happened to which object, told to people. Repeated ones are aggregated by the recorder.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{self, EventType, Recorder, Reporter};
use muster_proto::{Chain, text};
use tokio::{sync::mpsc, time::Instant};

use crate::bucket::{Bucket, Rate};

/// Records Events; never blocks and never fails the caller.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Event>,
    /// What was put on the queue lately.
    told: Arc<Mutex<Told>>,
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
    /// Type Warning instead of Normal.
    pub warning: bool,
    /// CamelCase, for machines.
    pub reason: &'static str,
    /// For people.
    pub message: String,
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

/// The API server refuses longer ones, in bytes.
const NOTE: usize = 1024;

/// How many Events may wait for the API server; while it is away, the rest is only logged.
const QUEUE: usize = 512;

impl Events {
    /// A recorder that puts Events on `queue`; the loop at its other end writes them.
    pub fn new(queue: mpsc::Sender<Event>) -> Self {
        Events {
            queue,
            told: Arc::default(),
        }
    }

    /// A recorder and the loop that writes to the API server, as long as it runs.
    pub fn start(client: kube::Client) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (Events::new(queue), write(client, waiting))
    }

    /// Records `event`; dropped, with a log line, when the queue is full: Events are for people, not for state.
    pub fn record(&self, event: Event) {
        if !self.is_due(&event) {
            return;
        }
        if let Err(error) = self.queue.try_send(event) {
            tracing::warn!(%error, "event dropped");
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
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Told { warned, often } = &mut *told;
        let words = format!("{subject}/{}", event.message);
        if event.warning && warned.get(&words).is_some_and(|at| at.elapsed() < PAUSE) {
            return false;
        }
        make_room(often, |bucket| !bucket.is_full(now));
        let bucket = often.entry(subject).or_insert_with(|| Bucket::new(now));
        if !bucket.take(RATE, now) {
            return false;
        }
        if event.warning {
            make_room(warned, |at| at.elapsed() < PAUSE);
            warned.insert(words, now);
        }
        true
    }
}

/// Forgets what need not be remembered once there is too much; and if all of it need be, all.
fn make_room<T>(remembered: &mut HashMap<String, T>, needed: impl Fn(&T) -> bool) {
    if remembered.len() >= REMEMBERED {
        remembered.retain(|_, one| needed(one));
    }
    if remembered.len() >= REMEMBERED {
        remembered.clear();
    }
}

async fn write(client: kube::Client, mut waiting: mpsc::Receiver<Event>) {
    let recorder = Recorder::new(client, Reporter::from("muster-controller"));
    while let Some(event) = waiting.recv().await {
        let Event {
            about,
            warning,
            reason,
            message,
        } = event;
        let subject = format!(
            "{}/{}",
            about.namespace.as_deref().unwrap_or_default(),
            about.name.as_deref().unwrap_or_default()
        );
        tracing::info!(%subject, reason, %message, "event");
        let event = events::Event {
            type_: if warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: reason.to_owned(),
            // The recorder aggregates by action: the same words are the same happening.
            action: action(reason, &message),
            note: Some(text::clean_to(message.as_bytes(), NOTE)),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &about).await {
            tracing::warn!(error = %Chain(&error), %subject, reason, "event not written");
        }
    }
}

/// The API server takes at most 128 bytes. Another message is another happening: without its digest the recorder would count it
/// up under the first one's words.
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
    use super::*;

    fn event(name: &str, warning: bool, message: &str) -> Event {
        Event {
            about: ObjectReference {
                name: Some(name.to_owned()),
                ..ObjectReference::default()
            },
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
        while let Some(event) = waiting.recv().await {
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
