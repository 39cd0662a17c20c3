//! The Secrets that hosts name: found, labelled, held and let go. `secret_content` looks into them; what is in them leaves as a login for a
//! BMC's driver and, sealed by `drive`, as a job's config drive.
//!
//! Those with upstream's label are watched. Any other is read when a host needs it, and then labelled, so that it is watched from then
//! on.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Mutex,
    time::Duration,
};

use futures::{Stream, StreamExt};
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Api, Client, Resource, api::Patch, runtime::watcher};
use muster_proto::{Chain, kinds::BareMetalHost, text};
use ring::{hmac, rand::SystemRandom};
use serde_json::json;
use tokio::time::Instant;

use super::{
    State,
    index::Index,
    memory::Memory,
    observed::{SecretSeen, SecretState, Secrets},
    owner::has_bmc,
    plan::{HOLD_SECRET, Hold, SECRET_FINALIZER, SECRET_LABEL},
    provisioned,
    secret_content::{Seen, Use},
    secrets::{Purpose, former_secrets, named},
};
use crate::{
    bmc::Credentials,
    hosts,
    manager::CONTROL,
    patch::finalizers_without,
    path::Path,
    retry,
    round::{ExecuteError, PATIENCE, failed},
    sync::lock,
    watches::Watches,
    world::Scope,
    written::version,
};

/// What is watched here.
pub(super) const SECRET: &str = "Secret";

/// How long a direct answer counts: as long as upstream waits before it looks again for a Secret that was missing. A little less, so
/// that who comes back after that time asks anew.
const FRESH: Duration = Duration::from_millis(9500);
/// How long one direct question may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One Secret, without its content.
#[derive(Clone, Debug)]
struct Entry {
    uid: String,
    version: String,
    labelled: bool,
    /// It is being deleted: no finalizer can be added any more.
    is_being_deleted: bool,
    finalizers: Vec<String>,
    owners: Vec<OwnerReference>,
    seen: Seen,
}

impl Entry {
    /// True if it carries upstream's finalizer.
    fn has_finalizer(&self) -> bool {
        self.finalizers.iter().any(|name| name == SECRET_FINALIZER)
    }

    /// True if it is being deleted, and upstream's finalizer keeps it until no host needs it.
    fn is_going(&self) -> bool {
        self.is_being_deleted && self.has_finalizer()
    }

    /// True if it, which is at `path`, carries upstream's finalizer though no host that `index` knows has to do with it.
    fn is_orphan(&self, path: &Path, index: &Index) -> bool {
        self.has_finalizer() && !index.is_needed(path)
    }

    /// True if it carries all that `hold` puts on it for `host`, or goes and can be held no more.
    fn is_held_for(&self, host: &BareMetalHost, hold: Hold) -> bool {
        let finalizer = self.has_finalizer();
        let carries = match hold {
            Hold::Label => true,
            Hold::Finalizer => finalizer,
            Hold::Owned => finalizer && hosts::is_among(host, Some(&self.owners)),
        };
        (self.labelled && carries) || (self.is_being_deleted && !finalizer)
    }

    /// Whether it can be used for `what`.
    fn state_for(&self, what: Use) -> SecretState {
        match self.seen.for_use(what) {
            Ok(content) => SecretState::Present {
                version: self.version.clone(),
                content: content.digest.to_string(),
                bytes: content.bytes,
            },
            Err(why) => SecretState::Invalid(why.to_string()),
        }
    }
}

/// What a direct question came to.
#[derive(Clone, Debug)]
enum Answer {
    Found(Entry),
    Missing,
    Unreadable(String),
}

/// What is known of all Secrets that count.
pub struct Vault {
    client: Client,
    /// Dies with the process: digests made with it are of no use to anybody else.
    key: hmac::Key,
    /// On the heap each: a table has as many empty places as full ones.
    watched: Mutex<HashMap<Path, Box<Entry>>>,
    /// What the watch told last, for as long as an answer may be under way that is older.
    told: Mutex<HashMap<Path, (Instant, u128)>>,
    direct: Mutex<HashMap<Path, (Instant, Answer)>>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault")
    }
}

/// What the watch saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// This Secret.
    One(Path),
    /// Any.
    All,
}

/// No random numbers.
#[derive(Debug, thiserror::Error)]
#[error("cannot get random numbers for a key from the system")]
pub struct NoRandom;

impl Vault {
    /// An empty one that reads and writes through `client`.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new(client: Client) -> Result<Vault, NoRandom> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| NoRandom)?;
        Ok(Vault {
            client,
            key,
            watched: Mutex::default(),
            told: Mutex::default(),
            direct: Mutex::default(),
        })
    }

    /// Watches the labelled Secrets in the hosts' namespaces, as long as the stream is polled.
    pub fn watch<'a>(
        &'a self,
        client: &Client,
        scope: &Scope,
        watches: &'a Watches,
    ) -> impl Stream<Item = Touched> + use<'a> {
        let (label, value) = SECRET_LABEL;
        let config = watcher::Config::default().labels(&format!("{label}={value}"));
        let client = watches.client(SECRET, client.clone());
        let events = retry::watch_all(scope.hosts_api::<Secret>(&client), config);
        let mut listed = HashMap::new();
        watches.begins(SECRET);
        events.filter_map(move |event| {
            let touched = match event {
                Ok(event) => self.event(event, &mut listed),
                Err(error) => {
                    watches.failed(SECRET, &error);
                    None
                }
            };
            if matches!(touched, Some(Touched::All)) {
                watches.is_read(SECRET);
            }
            std::future::ready(touched)
        })
    }

    fn event(
        &self,
        event: watcher::Event<Secret>,
        listed: &mut HashMap<Path, Box<Entry>>,
    ) -> Option<Touched> {
        match event {
            watcher::Event::Init => {
                listed.clear();
                None
            }
            watcher::Event::InitApply(secret) => {
                listed.insert(Path::of(&secret), Box::new(self.entry(&secret)));
                None
            }
            watcher::Event::InitDone => {
                *lock(&self.watched) = std::mem::take(listed);
                lock(&self.direct).clear();
                Some(Touched::All)
            }
            watcher::Event::Apply(secret) => Some(self.take_in(&secret, false)),
            watcher::Event::Delete(secret) => Some(self.take_in(&secret, true)),
        }
    }

    /// A labelled Secret is as it is now; or it is gone, or its label is.
    pub(super) fn take_in(&self, secret: &Secret, gone: bool) -> Touched {
        let path = Path::of(secret);
        {
            let mut watched = lock(&self.watched);
            match gone {
                true => watched.remove(&path),
                false => watched.insert(path.clone(), Box::new(self.entry(secret))),
            };
        }
        {
            let mut told = lock(&self.told);
            // As bounded as what changes within that time.
            told.retain(|_, (at, _)| at.elapsed() < PATIENCE);
            told.extend(version(secret).map(|version| (path.clone(), (Instant::now(), version))));
        }
        lock(&self.direct).remove(&path);
        Touched::One(path)
    }

    fn entry(&self, secret: &Secret) -> Entry {
        let meta = &secret.metadata;
        let (label, value) = SECRET_LABEL;
        Entry {
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.clone().unwrap_or_default(),
            labelled: meta
                .labels
                .as_ref()
                .and_then(|labels| labels.get(label))
                .is_some_and(|is| is == value),
            is_being_deleted: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            seen: Seen::of(secret, &self.key),
        }
    }

    /// What is known without a request. What we wrote or read ourselves counts until the watch has it.
    fn known(&self, path: &Path) -> Option<Answer> {
        if !is_possible(path) {
            return Some(Answer::Missing);
        }
        let recent = lock(&self.direct)
            .get(path)
            .filter(|(at, _)| at.elapsed() < FRESH)
            .map(|(_, answer)| answer.clone());
        recent.or_else(|| {
            lock(&self.watched)
                .get(path)
                .map(|entry| Answer::Found(Entry::clone(entry)))
        })
    }

    async fn look(&self, path: &Path) -> Answer {
        if let Some(known) = self.known(path) {
            return known;
        }
        let answer = match self.read(path).await {
            Ok(Some(secret)) => Answer::Found(self.entry(&secret)),
            Ok(None) => Answer::Missing,
            Err(why) => Answer::Unreadable(why),
        };
        self.remember(path, answer.clone());
        answer
    }

    /// Remembers `answer`, unless the watch has told something newer meanwhile: nobody would be told of that once more.
    fn remember(&self, path: &Path, answer: Answer) {
        let mut direct = lock(&self.direct);
        let is_outdated = match &answer {
            Answer::Found(entry) => {
                let is_older = |than: u128| entry.version.parse().is_ok_and(|version: u128| version < than);
                let told = lock(&self.told).get(path).map(|(_, told)| *told);
                let watched = lock(&self.watched);
                // Listed anew, it was told of with all others.
                let listed = watched.get(path).filter(|listed| listed.uid == entry.uid);
                let listed = listed.and_then(|listed| listed.version.parse().ok());
                told.max(listed).is_some_and(is_older)
            }
            Answer::Missing | Answer::Unreadable(_) => lock(&self.watched).contains_key(path),
        };
        if is_outdated {
            return;
        }
        // As bounded as the hosts that are in work.
        direct.retain(|_, (at, _)| at.elapsed() < FRESH);
        direct.insert(path.clone(), (Instant::now(), answer));
    }

    fn api(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The Secret as the API server has it now.
    pub(super) async fn read(&self, path: &Path) -> Result<Option<Secret>, String> {
        if !is_possible(path) {
            return Ok(None);
        }
        match tokio::time::timeout(TIMEOUT, self.api(&path.namespace).get_opt(&path.name)).await {
            Ok(Ok(secret)) => Ok(secret),
            Ok(Err(error)) => Err(Chain(&error).to_string()),
            Err(_) => Err(format!(
                "the API server did not answer within {} s",
                TIMEOUT.as_secs()
            )),
        }
    }

    /// What `host`'s Secrets are good for.
    pub async fn seen(&self, host: &BareMetalHost, index: &Index, memory: &Memory) -> Secrets {
        let of = (index, memory);
        let mut secrets = Secrets::default();
        for (purpose, name) in named(host) {
            *secrets.of_mut(purpose) = self.one(host, of, name, purpose).await;
        }
        for name in former_secrets(host) {
            let seen = self.one(host, of, name, Purpose::Bmc).await;
            secrets.former.push((name.to_owned(), seen));
        }
        secrets
    }

    async fn one(
        &self,
        host: &BareMetalHost,
        (index, memory): (&Index, &Memory),
        name: &str,
        purpose: Purpose,
    ) -> SecretSeen {
        let path = Path::beside(host, name);
        let answer = match self.known(&path) {
            Some(known) => known,
            None if purpose == Purpose::Bmc && is_new(host) => return state(SecretState::Unasked),
            None if matters(host, purpose) => self.look(&path).await,
            None => Answer::Unreadable("it was not read, because the host does not need it now".to_owned()),
        };
        let entry = match answer {
            Answer::Missing => return state(SecretState::Missing),
            Answer::Unreadable(why) => return state(SecretState::Unreadable(why)),
            Answer::Found(entry) => entry,
        };
        let us = Path::of(host);
        let lets_go = |other: &Path| *other == us || memory.lets_go(other);
        SecretSeen {
            state: entry.state_for(purpose.content()),
            held: entry.is_held_for(host, purpose.hold()),
            // While another host holds it, it is not ours to release.
            finalizer: entry.has_finalizer() && index.held_by(&path).iter().all(lets_go),
            going: entry.is_going(),
        }
    }

    /// The login in `secret`, if its content is still the one that was seen.
    pub async fn login(&self, secret: &Path, content: Option<&str>) -> Option<Credentials> {
        let Answer::Found(entry) = self.look(secret).await else {
            return None;
        };
        let is = entry.seen.for_use(Use::Bmc).as_ref().ok()?;
        content
            .is_none_or(|content| content == &*is.digest)
            .then(|| entry.seen.login().cloned())
            .flatten()
    }

    /// Puts on the Secret what `hold` says, for `host`, and takes in what is in it: one request, whether it was known before or not,
    /// that adds and takes nothing away, so that nobody who writes to the Secret at the same time is in its way. One that does not
    /// exist is remembered as missing, for the next round to tell.
    ///
    /// # Errors
    /// If the API server refuses.
    pub async fn hold(&self, host: &BareMetalHost, name: &str, hold: Hold) -> Result<(), ExecuteError> {
        let path = Path::beside(host, name);
        let (label, value) = SECRET_LABEL;
        let mut metadata = json!({"labels": {label: value}});
        if hold != Hold::Label {
            metadata["finalizers"] = json!([SECRET_FINALIZER]);
        }
        if hold == Hold::Owned {
            metadata["ownerReferences"] = json!(host.owner_ref(&()).as_slice());
        }
        // Finalizers are a set, and owners a map by UID.
        let patch = Patch::Strategic(json!({"metadata": metadata}));
        self.patch(HOLD_SECRET, &path, None, patch).await
    }

    /// Takes upstream's finalizer off the Secret, and `host` off its owners where it is to `disown` it; nothing if it is gone. One that turned
    /// out to be no login is somebody else's, whatever host names it, and is not to go with that.
    ///
    /// # Errors
    /// If the API server refuses.
    pub async fn release(&self, host: &BareMetalHost, name: &str, disown: bool) -> Result<(), ExecuteError> {
        let path = Path::beside(host, name);
        if let Some(Answer::Found(entry)) = self.known(&path)
            && hosts::is_among(host, Some(&entry.owners))
            && (disown || entry.seen.for_use(Use::Bmc).is_err())
        {
            self.disown(host, &path).await?;
        }
        match self.known(&path) {
            Some(Answer::Found(entry)) => self.release_entry(&path, &entry).await,
            _ => Ok(()),
        }
    }

    /// Takes `host` off the owners of the Secret.
    async fn disown(&self, host: &BareMetalHost, path: &Path) -> Result<(), ExecuteError> {
        let gone = json!([{"$patch": "delete", "uid": host.metadata.uid}]);
        let patch = Patch::Strategic(json!({"metadata": {"ownerReferences": gone}}));
        self.patch("disown Secret", path, None, patch).await
    }

    /// The same of the Secret at `path`, if it is still of this `version`.
    pub(super) async fn release_as(&self, path: &Path, version: &str) -> Result<(), ExecuteError> {
        match self.known(path) {
            Some(Answer::Found(entry)) if entry.version == version => self.release_entry(path, &entry).await,
            _ => Ok(()),
        }
    }

    async fn release_entry(&self, path: &Path, entry: &Entry) -> Result<(), ExecuteError> {
        let finalizers = finalizers_without(&entry.finalizers, &[SECRET_FINALIZER]);
        let metadata = json!({"uid": entry.uid, "resourceVersion": entry.version, "finalizers": finalizers});
        let patch = Patch::Merge(json!({"metadata": metadata}));
        self.patch("release Secret", path, Some(&entry.version), patch)
            .await
    }

    /// The watched Secrets that carry upstream's finalizer though no host that `index` knows has to do with them; with their versions.
    pub(super) fn orphans(&self, index: &Index) -> BTreeSet<(Path, String)> {
        let watched = lock(&self.watched);
        let orphans = watched
            .iter()
            .filter(|(path, entry)| entry.is_orphan(path, index));
        orphans
            .map(|(path, entry)| (path.clone(), entry.version.clone()))
            .collect()
    }

    /// True if the Secret at `path` is one of them, and still of this `version`.
    pub(super) fn is_orphan(&self, path: &Path, version: &str, index: &Index) -> bool {
        let watched = lock(&self.watched);
        let entry = watched.get(path).filter(|entry| entry.version == version);
        entry.is_some_and(|entry| entry.is_orphan(path, index))
    }

    /// Writes `patch`, which is made for the Secret of this `version`, if for one.
    async fn patch(
        &self,
        step: &'static str,
        path: &Path,
        version: Option<&str>,
        patch: Patch<serde_json::Value>,
    ) -> Result<(), ExecuteError> {
        if !is_possible(path) {
            return Ok(());
        }
        let watched = || lock(&self.watched).get(path).map(|entry| entry.version.clone());
        let before = version.map(str::to_owned).or_else(watched);
        // What the watch has told meanwhile it does not tell once more.
        let is_not_as_watched = || {
            let mut all = lock(&self.watched);
            if all.get(path).map(|entry| &entry.version) == before.as_ref() {
                all.remove(path);
            }
        };
        let patched = self
            .api(&path.namespace)
            .patch(&path.name, &CONTROL.merge(), &patch)
            .await;
        if matches!(&patched, Err(kube::Error::Api(status)) if status.code == 404) {
            is_not_as_watched();
            self.remember(path, Answer::Missing);
            return Ok(());
        }
        match patched.map_err(failed(step, &path.to_string())) {
            Ok(secret) => {
                let is_being_deleted = secret.metadata.deletion_timestamp.is_some();
                let last = secret.metadata.finalizers.iter().flatten().next().is_none();
                if is_being_deleted && last {
                    lock(&self.watched).remove(path);
                    self.remember(path, Answer::Missing);
                } else {
                    self.remember(path, Answer::Found(self.entry(&secret)));
                }
                Ok(())
            }
            Err(error) => {
                // Our copy was old: the next look is a fresh one.
                lock(&self.direct).remove(path);
                if matches!(error, ExecuteError::Behind { .. }) {
                    is_not_as_watched();
                }
                Err(error)
            }
        }
    }
}

/// True if a Secret can be called so. Whoever writes a host chooses the name, and it becomes a part of a URL: `?` would be all Secrets
/// of the namespace.
fn is_possible(path: &Path) -> bool {
    text::is_dns_subdomain(&path.name)
}

/// True for a host that is about to be registered: its Secret is marked in any case, which tells what is in it.
fn is_new(host: &BareMetalHost) -> bool {
    let is_being_deleted = hosts::is_being_deleted(host);
    !is_being_deleted && has_bmc(host) && State::of(host).is_young()
}

fn state(state: SecretState) -> SecretSeen {
    SecretSeen {
        state,
        ..SecretSeen::default()
    }
}

/// True if a host needs to know this Secret now, so that a question to the API server is worth it: one that is not labelled and not
/// needed would otherwise cost a request in every round.
fn matters(host: &BareMetalHost, purpose: Purpose) -> bool {
    let is_being_deleted = hosts::is_being_deleted(host);
    let is_to_be_written = match State::of(host) {
        State::Available | State::Provisioning => true,
        // What it runs is not lost for an image that lacks them.
        State::Provisioned => provisioned::is_to_go(host),
        _ => false,
    };
    let is_input = is_to_be_written && host.spec.image.is_some();
    purpose == Purpose::Bmc || is_input || (is_being_deleted && purpose.hold() == Hold::Finalizer)
}

#[cfg(test)]
mod tests;
