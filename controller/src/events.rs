//! Kubernetes Events: what happened to which object, told to people. Repeated ones are aggregated by the recorder.

use k8s_openapi::api::core::v1::ObjectReference;

/// Records Events; never blocks and never fails the caller.
#[derive(Clone, Debug)]
pub struct Events {
    queue: tokio::sync::mpsc::Sender<Event>,
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

impl Events {
    /// A recorder that puts Events on `queue`; the loop at its other end writes them.
    pub fn new(queue: tokio::sync::mpsc::Sender<Event>) -> Self {
        Events { queue }
    }

    /// Records `event`; dropped, with a log line, when the queue is full: Events are for people, not for state.
    pub fn record(&self, event: Event) {
        if let Err(error) = self.queue.try_send(event) {
            tracing::warn!(%error, "event dropped");
        }
    }
}
