//! What this replica wrote or fetched itself, until the watched copies have it: they lag behind, normally by milliseconds.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use kube::{Resource, ResourceExt};
use tokio::time::Instant;

use crate::sync::lock;

/// How long an object of ours is believed over the watched copy.
pub const BELIEVED: Duration = Duration::from_secs(15);
/// For so long, an answer of the API server may stand for another one.
const ANSWERED: Duration = Duration::from_millis(200);
/// But only for so long after it was asked for: an answer that was long under way says how things were at some time of that.
const ASKED: Duration = Duration::from_secs(1);

/// True if what the API server was `asked` and `answered` then may stand for another answer. What others wrote within the last second may be
/// missed by that, and nothing older.
pub fn is_fresh(asked: Instant, answered: Instant) -> bool {
    answered.elapsed() < ANSWERED && asked.elapsed() < ASKED
}

/// Objects of one kind and one namespace.
#[derive(Debug)]
pub struct Written<K>(Mutex<Inner<K>>);

#[derive(Debug)]
struct Inner<K> {
    /// By name.
    ours: HashMap<String, Ours<K>>,
    /// The version of the latest end that the watch has told.
    ended: Option<u128>,
}

#[derive(Debug)]
struct Ours<K> {
    object: Arc<K>,
    since: Instant,
    /// When the write that made this version was sent; none if it was read.
    sent: Option<Instant>,
}

impl<K> Default for Written<K> {
    fn default() -> Self {
        Written(Mutex::new(Inner {
            ours: HashMap::new(),
            ended: None,
        }))
    }
}

impl<K> Ours<K> {
    fn is_believed(&self) -> bool {
        self.since.elapsed() < BELIEVED
    }

    fn is_fresh(&self) -> bool {
        self.sent.is_some_and(|sent| is_fresh(sent, self.since))
    }
}

impl<K: ResourceExt> Written<K> {
    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        lock(&self.0)
    }

    /// The later one of `watched`, the copy of the object `name`, and of ours.
    pub fn newest(&self, name: &str, watched: Option<Arc<K>>) -> Option<Arc<K>> {
        let ours = self
            .lock()
            .ours
            .get(name)
            .filter(|ours| ours.is_believed())
            .map(|ours| Arc::clone(&ours.object));
        newer(watched, ours)
    }

    /// All of ours, by name.
    pub fn all(&self) -> HashMap<String, Arc<K>> {
        let inner = self.lock();
        let believed = inner.ours.iter().filter(|(_, ours)| ours.is_believed());
        believed
            .map(|(name, ours)| (name.clone(), Arc::clone(&ours.object)))
            .collect()
    }

    /// The API server has, or had a moment ago, `object`: it has just answered so. If a write made this version, it was `sent` then.
    pub fn remember(&self, object: Arc<K>, sent: Option<Instant>) {
        self.remember_since(Instant::now(), object, sent);
    }

    /// The same, answered at `since`.
    pub fn remember_since(&self, since: Instant, object: Arc<K>, sent: Option<Instant>) {
        let mut inner = self.lock();
        let name = object.name_any();
        let is_later = |ours: &Ours<K>| version(&*ours.object) > version(&*object);
        // An answer that was long under way: the watched copies are further, and the object may be gone.
        let is_past = version(&*object).is_some_and(|version| inner.ended >= Some(version));
        if !is_past && !inner.ours.get(&name).is_some_and(is_later) {
            inner.ours.insert(name, Ours { object, since, sent });
        }
    }

    /// The object is gone.
    pub fn forget(&self, name: &str) {
        self.lock().ours.remove(name);
    }

    /// The watch tells that an object is gone; `last` is that object, in the version of its end. Ours is from before, unless it was made
    /// again since.
    pub fn ended(&self, last: &K) {
        let end = version(last);
        let mut inner = self.lock();
        inner.ended = inner.ended.max(end);
        let name = last.name_any();
        let is_later = |ours: &Ours<K>| end.is_some() && version(&*ours.object) > end;
        if !inner.ours.get(&name).is_some_and(is_later) {
            inner.ours.remove(&name);
        }
    }

    /// The watch begins anew, with these objects and no others. A list is no older than any object in it, so whatever of ours is as old as
    /// one of them and not among them is gone; what of the rest is gone, nobody can tell.
    pub fn listed(&self, all: &[K]) {
        let list = all.iter().filter_map(version).max();
        let names: HashSet<&str> = all.iter().filter_map(|one| one.meta().name.as_deref()).collect();
        let is_there = |name: &str, ours: &Ours<K>| {
            let version = version(&*ours.object);
            version.is_none() || version > list || names.contains(name)
        };
        self.lock().ours.retain(|name, ours| is_there(name, ours));
    }

    /// Forgets what the watched copies have.
    pub fn prune(&self, watched: impl Fn(&str) -> Option<Arc<K>>) {
        self.lock()
            .ours
            .retain(|name, ours| ours.is_believed() && (ours.is_fresh() || !is_shown(ours, watched(name))));
    }

    /// True if all watched copies are known to be as the API server had them a moment ago, as [`is_fresh`] has it: a watch tells what happened in
    /// its order, and it has told a write of then. What was written since, by others or by us, may not be among it.
    pub fn proves_fresh(&self, watched: impl Fn(&str) -> Option<Arc<K>>) -> bool {
        let inner = self.lock();
        let mut all = inner.ours.iter();
        all.any(|(name, ours)| ours.is_fresh() && is_shown(ours, watched(name)))
    }
}

fn is_shown<K: ResourceExt>(ours: &Ours<K>, watched: Option<Arc<K>>) -> bool {
    let ours = version(&*ours.object);
    ours.is_some() && watched.is_some_and(|watched| version(&*watched) >= ours)
}

/// A resource version as the number that it is on every API server (and by contract since Kubernetes 1.35); none: it is no number.
pub fn version(object: &impl Resource) -> Option<u128> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

/// The later of two copies of one object; of equals the second, which is ours. A copy of a deleted and remade object is told by its
/// version, too: versions only grow.
pub fn newer<K: ResourceExt>(watched: Option<Arc<K>>, ours: Option<Arc<K>>) -> Option<Arc<K>> {
    match (watched, ours) {
        (Some(watched), Some(ours)) => Some(if version(&*watched) > version(&*ours) {
            watched
        } else {
            ours
        }),
        (watched, ours) => watched.or(ours),
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::kinds::{Server, ServerSpec};

    use super::*;

    fn at(name: &str, version: u64) -> Arc<Server> {
        let mut server = Server::new(name, ServerSpec::default());
        server.metadata.resource_version = Some(version.to_string());
        Arc::new(server)
    }

    fn number(server: Option<Arc<Server>>) -> Option<u128> {
        version(&*server?)
    }

    #[test]
    fn the_later_copy_counts_whoever_has_it() {
        let written = Written::default();
        assert_eq!(number(written.newest("a", Some(at("a", 3)))), Some(3));
        written.remember(at("a", 5), None);
        written.remember(at("a", 4), None);
        assert_eq!(number(written.newest("a", Some(at("a", 3)))), Some(5));
        assert_eq!(number(written.newest("a", Some(at("a", 6)))), Some(6));
        assert_eq!(number(written.newest("a", None)), Some(5));
        assert_eq!(number(written.newest("b", None)), None);
        assert_eq!(written.all().len(), 1);
        written.prune(|_| Some(at("a", 4)));
        assert_eq!(written.all().len(), 1);
        written.prune(|_| Some(at("a", 5)));
        assert!(written.all().is_empty());
    }

    #[test]
    fn what_a_watch_tells_to_be_gone_is_believed_no_more_and_what_was_made_since_is() {
        let written = Written::default();
        let all = || {
            let mut names: Vec<String> = written.all().into_keys().collect();
            names.sort_unstable();
            names
        };
        for (name, version) in [("a", 5), ("b", 6), ("c", 9)] {
            written.remember(at(name, version), Some(Instant::now()));
        }
        written.ended(&at("a", 7));
        written.ended(&at("b", 6));
        written.ended(&at("c", 8));
        assert_eq!(all(), ["c"], "c was made again");
        assert_eq!(number(written.newest("a", None)), None);
        // The answer to a write of before its end, which comes only now.
        written.remember(at("a", 5), Some(Instant::now()));
        assert_eq!(all(), ["c"]);
        written.remember(at("a", 10), Some(Instant::now()));
        assert_eq!(all(), ["a", "c"]);
        // Which came first cannot be told: the API server is asked.
        let mut odd = Server::clone(&at("a", 0));
        odd.metadata.resource_version = Some("odd".to_owned());
        written.ended(&odd);
        assert_eq!(all(), ["c"]);
    }

    #[test]
    fn what_is_missing_in_a_list_that_is_not_older_is_believed_no_more() {
        let written = Written::default();
        for (name, version) in [("a", 5), ("b", 6), ("c", 9)] {
            written.remember(at(name, version), None);
        }
        written.listed(&[]);
        assert_eq!(written.all().len(), 3, "how old the list is cannot be told");
        written.listed(&[at("a", 4), at("d", 7)].map(|one| Server::clone(&one)));
        let mut names: Vec<String> = written.all().into_keys().collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_fresh_for_a_moment_unless_it_was_long_under_way() {
        let [none, short, long] = [0, 150, 1500].map(Duration::from_millis);
        // Virtual time begins with the test; the past has to be there.
        tokio::time::advance(2 * long).await;
        let fresh = |asked, answered| is_fresh(Instant::now() - asked, Instant::now() - answered);
        assert!(fresh(none, none) && fresh(short, none) && fresh(short, short));
        assert!(fresh(ANSWERED + short, short), "an API server that is busy");
        assert!(!fresh(long, none), "it may say what was there 1.5 s ago");
        assert!(!fresh(ANSWERED, ANSWERED));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_has_told_a_write_of_a_moment_ago_is_fresh_and_no_other_is() {
        let written = Written::default();
        let shows = |version| move |_: &str| Some(at("a", version));
        assert!(!written.proves_fresh(shows(9)));
        // What was read may have been there for long.
        written.remember(at("a", 5), None);
        assert!(!written.proves_fresh(shows(5)));
        written.remember(at("a", 6), Some(Instant::now()));
        assert!(!written.proves_fresh(shows(5)), "it has not come that far");
        assert!(!written.proves_fresh(|_| None));
        assert!(written.proves_fresh(shows(6)) && written.proves_fresh(shows(7)));
        // It proves something as long as it is young, though the copy has it, and is kept no longer.
        written.prune(shows(6));
        assert!(written.proves_fresh(shows(6)));
        tokio::time::advance(ANSWERED).await;
        assert!(!written.proves_fresh(shows(6)));
        written.prune(shows(6));
        assert!(written.all().is_empty());
        let sent = Instant::now();
        tokio::time::advance(ASKED).await;
        written.remember(at("a", 7), Some(sent));
        assert!(!written.proves_fresh(shows(7)), "it was long under way");
        let mut odd = Server::clone(&at("a", 8));
        odd.metadata.resource_version = Some("odd".to_owned());
        let other = Written::default();
        other.remember(Arc::new(odd.clone()), Some(Instant::now()));
        assert!(
            !other.proves_fresh(|_| Some(Arc::new(odd.clone()))),
            "which came first cannot be told"
        );
    }
}
