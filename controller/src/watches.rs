//! How the watches do that keep the copies of the cluster up to date: which kinds are not read yet, and how often a watch failed.

use std::{
    collections::BTreeSet,
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use muster_proto::Chain;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::sync::Notify;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

/// The watches of a process; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Watches {
    /// Kinds that are not read for the first time yet.
    unread: Arc<Mutex<BTreeSet<String>>>,
    failures: Family<OfKind, Counter>,
    /// One failed because the API server does not know who asks.
    stranger: Arc<Notify>,
}

impl Watches {
    /// Counts on `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "muster_watch_failures",
            "Watches that failed and are tried again; the copy stays as it was",
            self.failures.clone(),
        );
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watch of `kind` begins: nothing is known of it yet.
    pub fn begins(&self, kind: &str) {
        self.lock().insert(kind.to_owned());
    }

    /// All of `kind` is known, or nobody wants to know it any more.
    pub fn is_read(&self, kind: &str) {
        self.lock().remove(kind);
    }

    /// The watch of `kind` failed, and is tried again.
    pub fn failed(&self, kind: &str, error: &(dyn Error + 'static)) {
        tracing::warn!(error = %Chain(error), kind, "watch failed; it is tried again");
        let kind = kind.to_owned();
        self.failures.get_or_create(&OfKind { kind }).inc();
        if is_of_a_stranger(error) {
            self.stranger.notify_one();
        }
    }

    /// Returns once a watch has failed, since this was last asked, because the API server does not take our credentials.
    pub(crate) async fn strange(&self) {
        self.stranger.notified().await;
    }

    /// What is not read yet, in words; none if all is.
    pub fn unread(&self) -> Option<String> {
        let words: Vec<String> = self.lock().iter().cloned().collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// True if the API server has said that it does not know who asks.
fn is_of_a_stranger(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    causes.any(|cause| {
        cause
            .downcast_ref::<kube::Error>()
            .is_some_and(|error| matches!(error, kube::Error::Api(status) if status.code == 401))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_read_is_told_until_it_is() {
        let watches = Watches::default();
        let mut registry = Registry::default();
        watches.register(&mut registry);
        for kind in ["Secret", "Server"] {
            watches.begins(kind);
        }
        watches.failed("Secret", &std::io::Error::other("secrets is forbidden"));
        let told = watches.unread();
        assert_eq!(told.as_deref(), Some("Secret, Server"));
        watches.is_read("Server");
        watches.is_read("Secret");
        // It is known, if not how it is now.
        watches.failed("Secret", &std::io::Error::other("gone"));
        assert_eq!(watches.unread(), None);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(
            text.contains(r#"muster_watch_failures_total{kind="Secret"} 2"#),
            "{text}"
        );
    }
}
