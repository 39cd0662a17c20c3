//! How the watches do that keep the copies of the cluster up to date: which kinds are not read yet, which cannot be watched now, and how often
//! a watch failed. Beside them the Lease and the Secrets with keys, which are looked at in their own way, and what time the answers say it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Duration,
};

use hyper::{Request, Response};
use kube::{Client, client::Body};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::{sync::Notify, time::Instant};
use tower::BoxError;

use crate::{api_clock::ApiClock, api_error, sync::lock};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

#[derive(Debug, Default)]
struct All {
    /// Kinds that are not read for the first time yet.
    unread: BTreeSet<String>,
    /// Kinds that cannot be watched now, and since when: their copies may be old.
    broken: BTreeMap<String, Instant>,
    /// What cannot be done to the Lease now, and since when.
    lease: Option<(&'static str, Instant)>,
    /// The Secret with keys that is damaged, and since when.
    keys: Option<(&'static str, Instant)>,
}

/// The watches of a process; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Watches {
    all: Arc<Mutex<All>>,
    /// The API server's clock, as answers to watches say.
    pub clock: ApiClock,
    /// Where the API server is, for people.
    server: Arc<OnceLock<String>>,
    failures: Family<OfKind, Counter>,
    /// One failed because the API server does not know who asks.
    stranger: Arc<Notify>,
}

impl Watches {
    /// Counts on `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "muster_watch_failures",
            "Failed watches, which are retried; the cached copy is kept meanwhile",
            self.failures.clone(),
        );
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        lock(&self.all)
    }

    /// A watch of `kind` begins: nothing is known of it yet.
    pub fn begins(&self, kind: &str) {
        self.lock().unread.insert(kind.to_owned());
    }

    /// All of `kind` is known, or nobody wants to know it any more.
    pub fn is_read(&self, kind: &str) {
        let mut all = self.lock();
        all.unread.remove(kind);
        all.broken.remove(kind);
    }

    /// From now on the API server is named where it cannot be reached.
    pub fn name_server(&self, server: String) {
        // The first name stays, and there is no other.
        let _ = self.server.set(server);
    }

    /// `client` for the watch of `kind`, which tells when that goes on: kube tells of no watch that was taken up again before there is an
    /// event, and a kind that seldom changes would pass for one that cannot be watched.
    pub fn client(&self, kind: &str, client: Client) -> Client {
        let namespace = client.default_namespace().to_owned();
        let (watches, kind) = (self.clone(), kind.to_owned());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (watches, kind, client) = (watches.clone(), kind.clone(), client.clone());
            async move {
                let query = request.uri().query();
                let is_watch = query.is_some_and(|query| query.contains("watch=true"));
                let answer = client.send(request).await.map_err(BoxError::from)?;
                if answer.status().is_success() {
                    watches.clock.hear(answer.headers());
                    if is_watch {
                        watches.lock().broken.remove(&kind);
                    }
                }
                Ok::<Response<Body>, BoxError>(answer)
            }
        });
        Client::new(service, namespace)
    }

    /// The watch of `kind` failed, and is tried again.
    pub fn failed(&self, kind: &str, error: &(dyn Error + 'static)) {
        let words = self.words(kind, error);
        tracing::warn!(error = %words, kind, "watch failed; retrying");
        let kind = kind.to_owned();
        self.lock()
            .broken
            .entry(kind.clone())
            .or_insert_with(Instant::now);
        self.failures.get_or_create(&OfKind { kind }).inc();
        if is_of_a_stranger(error) {
            self.stranger.notify_one();
        }
    }

    /// Returns once a watch has failed, since this was last asked, because the API server does not take our credentials.
    pub(crate) async fn strange(&self) {
        self.stranger.notified().await;
    }

    /// Why something could not be done to `kind`, and what helps.
    pub(crate) fn words(&self, kind: &str, error: &(dyn Error + 'static)) -> String {
        api_error::words(error, kind, self.server.get().map(String::as_str))
    }

    /// The Lease could not be `read`, `written` or `taken`; or (none) it was.
    pub(crate) fn lease(&self, failed: Option<&'static str>) {
        let mut all = self.lock();
        all.lease = failed.map(|action| match all.lease {
            Some((_, since)) => (action, since),
            None => (action, Instant::now()),
        });
    }

    /// The Secret of this name with keys is `damaged`; or (none) none is.
    pub(crate) fn keys(&self, damaged: Option<&'static str>) {
        let mut all = self.lock();
        let before = all.keys.take();
        all.keys = damaged.map(|name| {
            let same = before.filter(|(before, _)| *before == name);
            same.unwrap_or_else(|| (name, Instant::now()))
        });
    }

    /// For how long `kind` cannot be watched; none: it can.
    pub fn broken(&self, kind: &str) -> Option<Duration> {
        self.lock().broken.get(kind).map(Instant::elapsed)
    }

    /// What cannot be watched now, in words.
    pub fn all_broken(&self) -> Vec<String> {
        let all = self.lock();
        let words = |(kind, since): (&String, &Instant)| {
            format!("{kind} could not be watched for {} s", since.elapsed().as_secs())
        };
        all.broken.iter().map(words).collect()
    }

    /// What cannot be done to the Lease now, in words.
    pub fn lease_trouble(&self) -> Option<String> {
        let (action, since) = self.lock().lease?;
        let seconds = since.elapsed().as_secs();
        Some(format!("the Lease could not be {action} for {seconds} s"))
    }

    /// Which Secret with keys is damaged, in words.
    pub fn keys_trouble(&self) -> Option<String> {
        let (name, since) = self.lock().keys?;
        let seconds = since.elapsed().as_secs();
        Some(format!("Secret {name} has been damaged for {seconds} s"))
    }

    /// What is not read yet, in words; none if all is.
    pub fn unread(&self) -> Option<String> {
        let words: Vec<String> = self.lock().unread.iter().cloned().collect();
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
    use jiff::Timestamp;

    use super::*;
    use crate::api_clock::dated;

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_watched_is_known_until_its_watch_is_taken_up_again() {
        let answers = tower::service_fn(|_: Request<Body>| async {
            let mut answer = Response::new(Body::empty());
            *answer.headers_mut() = dated(Timestamp::UNIX_EPOCH);
            Ok::<_, std::convert::Infallible>(answer)
        });
        let watches = Watches::default();
        let client = watches.client("Server", Client::new(answers, "default"));
        let ask = async |query: &str| {
            let request = Request::get(format!("/apis/muster.dev/v1alpha1/servers{query}"));
            client.send(request.body(Body::empty()).unwrap()).await.unwrap();
        };
        for _ in 0..2 {
            watches.failed("Server", &std::io::Error::other("gone"));
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        assert_eq!(watches.all_broken(), ["Server could not be watched for 40 s"]);
        assert_eq!(watches.clock.now(), None);
        ask("?limit=500").await;
        assert_eq!(watches.clock.now(), Some(Timestamp::UNIX_EPOCH));
        assert!(
            watches.broken("Server").is_some(),
            "what is listed is not watched yet"
        );
        ask("?&watch=true&timeoutSeconds=290").await;
        assert_eq!(watches.broken("Server"), None);
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
