//! Kubernetes Events: what happened to which object, told to people. Repeated ones are aggregated by the recorder.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{self, EventType, Recorder, Reporter};
use muster_proto::Chain;
use tokio::sync::mpsc;

/// Records Events; never blocks and never fails the caller.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Event>,
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

/// How many Events may wait for the API server; while it is away, the rest is only logged.
const QUEUE: usize = 512;

impl Events {
    /// A recorder that puts Events on `queue`; the loop at its other end writes them.
    pub fn new(queue: mpsc::Sender<Event>) -> Self {
        Events { queue }
    }

    /// A recorder and the loop that writes to the API server, as long as it runs.
    pub fn start(client: kube::Client) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (Events { queue }, write(client, waiting))
    }

    /// Records `event`; dropped, with a log line, when the queue is full: Events are for people, not for state.
    pub fn record(&self, event: Event) {
        if let Err(error) = self.queue.try_send(event) {
            tracing::warn!(%error, "event dropped");
        }
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
            note: Some(message),
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
