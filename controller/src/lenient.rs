//! A watch that goes on if single objects cannot be read. kube's reads all or nothing: one object with a value that this version does
//! not know would hide all others of its kind. Nothing is done to such an object, and people are told of it.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard},
};

use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Error, Resource,
    core::NamespaceResourceScope,
    runtime::watcher::{self, Event},
};
use muster_proto::{
    kinds::{self, BareMetalHost, PAUSED_ANNOTATION, Server},
    text,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    events::{Event as News, Events},
    path::Path,
    retry,
    salvage::{self, Salvaged},
    sync::lock,
};

/// The longest text about one object, in bytes.
const WORDS: usize = 600;

/// What becomes of an object of which a part cannot be read.
#[derive(Debug)]
pub(crate) enum Treat<K> {
    /// It is as if it were not there.
    Absent,
    /// What is left of it is shown, marked by this so that nothing is done to it.
    Mark(fn(&mut K)),
}

impl<K> Clone for Treat<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Treat<K> {}

/// On the copy of a Server of which a part cannot be read; never in the API server.
pub(crate) const UNREADABLE_ANNOTATION: &str = "muster.dev/unreadable";

/// A host that is paused is left alone by everyone: nothing is written to it, and its machine boots its own disk.
pub(crate) fn pause(host: &mut BareMetalHost) {
    note(host, PAUSED_ANNOTATION);
}

/// The guard gives no permission to destroy data on its word.
pub(crate) fn mark(server: &mut Server) {
    note(server, UNREADABLE_ANNOTATION);
}

/// True if a part of `server` cannot be read.
pub(crate) fn is_marked(server: &Server) -> bool {
    let annotations = server.metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.contains_key(UNREADABLE_ANNOTATION))
}

fn note<K: Resource>(object: &mut K, annotation: &str) {
    let annotations = object.meta_mut().annotations.get_or_insert_default();
    annotations.insert(annotation.to_owned(), "it cannot be read".to_owned());
}

/// What kind of object, and where it is.
type Key = (String, Path);

/// The objects that cannot be read, or not all of them.
#[derive(Debug)]
pub struct Unreadable {
    all: Mutex<BTreeMap<Key, (ObjectReference, String)>>,
    changed: watch::Sender<()>,
}

impl Default for Unreadable {
    fn default() -> Unreadable {
        Unreadable {
            all: Mutex::default(),
            changed: watch::channel(()).0,
        }
    }
}

impl Unreadable {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, (ObjectReference, String)>> {
        lock(&self.all)
    }

    /// Each of them, and what is wrong with it.
    pub fn all(&self) -> Vec<(ObjectReference, String)> {
        self.lock().values().cloned().collect()
    }

    /// True if an object of this kind is among them.
    pub fn has_any<K: Resource<DynamicType = ()>>(&self) -> bool {
        let sought = K::kind(&());
        self.lock().keys().any(|(kind, _)| *kind == *sought)
    }

    /// Tells of changes from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// This object is `wrong`, or (none) is not any more.
    fn found<K: Resource<DynamicType = ()>>(&self, meta: &ObjectMeta, wrong: Option<&str>) {
        let kind = K::kind(&()).into_owned();
        let path = Path {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        };
        let key = (kind.clone(), path);
        let mut all = self.lock();
        let changed = match wrong {
            None => all.remove(&key).is_some(),
            Some(wrong) => {
                let wrong = text::clean_to(wrong.as_bytes(), WORDS);
                let about = ObjectReference {
                    api_version: Some(K::api_version(&()).into_owned()),
                    kind: Some(kind),
                    namespace: meta.namespace.clone(),
                    name: meta.name.clone(),
                    uid: meta.uid.clone(),
                    ..ObjectReference::default()
                };
                let new = (about, wrong);
                let changed = all.get(&key) != Some(&new);
                if changed {
                    let (kind, path) = &key;
                    tracing::warn!(%kind, object = %path, wrong = %new.1, "an object cannot be read and is left alone");
                    all.insert(key, new);
                }
                changed
            }
        };
        drop(all);
        if changed {
            self.changed.send_replace(());
        }
    }

    /// All objects of this kind are listed anew.
    fn listed<K: Resource<DynamicType = ()>>(&self) {
        let kind = K::kind(&());
        self.lock().retain(|key, _| key.0 != kind);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

#[derive(Debug)]
struct Count(Arc<Unreadable>);

/// Registers on `registry` how many objects cannot be read.
pub fn register(registry: &mut Registry, unreadable: Arc<Unreadable>) {
    registry.register_collector(Box::new(Count(unreadable)));
}

impl Collector for Count {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts = Family::<OfKind, Gauge>::default();
        for (kind, _) in self.0.lock().keys() {
            let kind = kind.clone();
            counts.get_or_create(&OfKind { kind }).inc();
        }
        let descriptor = encoder.encode_descriptor(
            "muster_unreadable_objects",
            "Objects that are left alone because a part of them cannot be read",
            None,
            counts.metric_type(),
        )?;
        counts.encode(descriptor)
    }
}

/// Tells people of every object that cannot be read, for ever.
pub async fn tell(unreadable: Arc<Unreadable>, events: Events) {
    let mut changes = unreadable.changes();
    let mut told = Vec::new();
    loop {
        let all = unreadable.all();
        for (about, wrong) in all.iter().filter(|one| !told.contains(*one)) {
            events.record(News {
                about: about.clone(),
                related: None,
                warning: true,
                reason: "Unreadable",
                message: format!("{wrong}; next: the object is left alone until this version can read it"),
            });
        }
        told = all;
        // The sender lives as long as `unreadable`.
        let _ = changes.changed().await;
    }
}

/// An object, however much of it can be read.
#[derive(Clone, Debug)]
enum Seen<K> {
    Whole(K),
    /// This is left of it; why.
    Part(K, String),
    /// Nothing of use is left of it; why.
    Nothing(Box<ObjectMeta>, String),
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Seen<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Value::deserialize(deserializer)?;
        let meta = object.get("metadata").cloned();
        Ok(match salvage::read(object) {
            Ok(object) => Seen::Whole(object),
            Err(Salvaged {
                rest: Some(rest),
                wrong,
            }) => Seen::Part(rest, wrong),
            Err(Salvaged { rest: None, wrong }) => {
                let meta = meta.and_then(|meta| serde_json::from_value(meta).ok());
                Seen::Nothing(Box::new(meta.unwrap_or_default()), wrong)
            }
        })
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Seen<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(dt: &()) -> std::borrow::Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &()) -> std::borrow::Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &()) -> std::borrow::Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &()) -> std::borrow::Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Seen::Whole(object) | Seen::Part(object, _) => object.meta(),
            Seen::Nothing(meta, _) => meta,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Seen::Whole(object) | Seen::Part(object, _) => object.meta_mut(),
            Seen::Nothing(meta, _) => meta,
        }
    }
}

/// What an object is called, of which nothing else can be read.
pub(crate) trait Bare: Sized {
    /// It, with its metadata alone.
    fn bare(meta: ObjectMeta) -> Self;
}

macro_rules! bare {
    ($($kind:ident: $spec:ident),*) => {$(
        impl Bare for kinds::$kind {
            fn bare(meta: ObjectMeta) -> Self {
                let mut object = kinds::$kind::new("", kinds::$spec::default());
                object.metadata = meta;
                object
            }
        }
    )*};
}

bare!(
    BareMetalHost: BareMetalHostSpec,
    Enrolment: EnrolmentSpec,
    HardwareData: HardwareDataSpec,
    Segment: SegmentSpec,
    Server: ServerSpec
);

/// What kube's watcher tells of the objects behind `api`, for ever: with those of which something cannot be read as `treat` says, and
/// kept in `unreadable`.
///
/// Until there is such an object, each is read straight into its type, which costs a third.
pub(crate) fn events<K>(
    api: Api<K>,
    treat: Treat<K>,
    unreadable: Arc<Unreadable>,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Bare
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let namespace = api.namespace().map(str::to_owned);
    let client = api.clone().into_client();
    let strict = retry::watch_all(api, watcher::Config::default())
        .take_while(|event| std::future::ready(!event.as_ref().is_err_and(is_about_content)));
    let lenient = async move {
        tracing::warn!(kind = %K::kind(&()), "an object cannot be read; from now on, each object is read separately");
        let api: Api<Seen<K>> = match namespace {
            Some(namespace) => Api::namespaced(client, &namespace),
            None => Api::all(client),
        };
        retry::watch_all(api, watcher::Config::default())
            .filter_map(move |event| std::future::ready(shown(event, treat, &unreadable)))
    };
    strict.chain(lenient.into_stream().flatten())
}

/// True if the API server's answer was there and could not be read.
fn is_about_content(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    // kube takes a change that it cannot read for an answer without a code (kube-client 5.0, `request_events`).
    if matches!(error, WatchFailed(Error::Api(status)) if status.code == 0) {
        return true;
    }
    matches!(
        error,
        InitialListFailed(Error::SerdeError(_))
            | WatchFailed(Error::SerdeError(_))
            | WatchStartFailed(Error::SerdeError(_))
    )
}

/// What `event` is to those who only know objects that can be read.
fn shown<K: Resource<DynamicType = ()> + Bare>(
    event: watcher::Result<Event<Seen<K>>>,
    treat: Treat<K>,
    unreadable: &Unreadable,
) -> Option<watcher::Result<Event<K>>> {
    let settle = |seen: Seen<K>, gone: bool| match seen {
        Seen::Whole(object) => {
            unreadable.found::<K>(object.meta(), None);
            Some((object, true))
        }
        Seen::Part(mut object, wrong) => {
            unreadable.found::<K>(object.meta(), Some(&*wrong).filter(|_| !gone));
            match treat {
                Treat::Absent => Some((object, false)),
                Treat::Mark(mark) => {
                    mark(&mut object);
                    Some((object, true))
                }
            }
        }
        Seen::Nothing(meta, wrong) => {
            unreadable.found::<K>(&meta, Some(&*wrong).filter(|_| !gone));
            // What was known of it stays as long as it is there: it is not gone.
            gone.then(|| (K::bare(*meta), false))
        }
    };
    Some(Ok(match event {
        Err(error) => return Some(Err(error)),
        Ok(Event::Init) => {
            unreadable.listed::<K>();
            Event::Init
        }
        Ok(Event::InitDone) => Event::InitDone,
        Ok(Event::InitApply(seen)) => match settle(seen, false)? {
            (object, true) => Event::InitApply(object),
            (_, false) => return None,
        },
        Ok(Event::Apply(seen)) => match settle(seen, false)? {
            (object, true) => Event::Apply(object),
            (object, false) => Event::Delete(object),
        },
        Ok(Event::Delete(seen)) => Event::Delete(settle(seen, true)?.0),
    }))
}

#[cfg(test)]
mod tests;
