//! How the watches do that keep the copies of the cluster up to date: which kinds are not read yet, how often a watch failed, and whether
//! it is known to live: a connection that died silently is found out only after minutes.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_proto::Chain;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::time::Instant;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

/// The watches of a process; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Watches {
    /// Kinds that are not read for the first time yet.
    unread: Arc<Mutex<BTreeSet<String>>>,
    /// When each kind's watch told a change last.
    told: Arc<Mutex<BTreeMap<String, Instant>>>,
    failures: Family<OfKind, Counter>,
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
    }

    /// The watch of `kind` tells a change, and the copy has it. A new list is none: it may have been long under way.
    pub fn told(&self, kind: &str) {
        self.told_at(kind, Instant::now());
    }

    /// The same, told at `when`.
    pub fn told_at(&self, kind: &str, when: Instant) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match told.get_mut(kind) {
            Some(last) => *last = when,
            None => drop(told.insert(kind.to_owned(), when)),
        }
    }

    /// True if the watch of `kind` has told a change within `time`: what it tells comes in order, so nothing is missed that was there long
    /// before.
    pub fn has_told_within(&self, kind: &str, time: Duration) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.get(kind).is_some_and(|last| last.elapsed() < time)
    }

    /// What is not read yet, in words; none if all is.
    pub fn unread(&self) -> Option<String> {
        let words: Vec<String> = self.lock().iter().cloned().collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_is_known_to_live_for_a_while_after_it_told_something() {
        let (watches, second) = (Watches::default(), Duration::from_secs(1));
        assert!(!watches.has_told_within("Server", second));
        for _ in 0..2 {
            watches.told("Server");
            assert!(watches.has_told_within("Server", second));
            assert!(!watches.has_told_within("BareMetalHost", second));
            tokio::time::advance(second).await;
            assert!(!watches.has_told_within("Server", second));
        }
    }

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
