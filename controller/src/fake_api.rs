//! An API server for tests: objects in memory, resource versions, merge patches, status as a subresource, faults on demand.

mod trouble;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use http_body_util::Full;
use hyper::{Request, Response, body::Bytes};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Client, Resource,
    client::Body,
    runtime::{
        reflector::{self, ObjectRef, store::Writer},
        watcher,
    },
};
use muster_proto::kinds::{BareMetalHost, Enrolment, HardwareData, Segment, Server};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, broadcast};

pub(crate) use trouble::Fault;
use trouble::Intruder;

use crate::{
    machines::Machines,
    patch::merge,
    watches::Watches,
    world::{Change, World, show_server},
    written::Written,
};

/// `plural`, namespace, name.
type Key = (String, String, String);

#[derive(Default)]
struct Inner {
    objects: BTreeMap<Key, Value>,
    version: u64,
    /// For the next requests, in turn; `None`: goes well.
    faults: VecDeque<Option<Fault>>,
    /// For every request from now on.
    down: bool,
    /// Writes to these paths are invalid from now on.
    invalid: Vec<String>,
    /// Reads of paths with this end are answered with this code from now on.
    unread: Option<(String, u16)>,
    /// Conditions are not kept.
    drops_conditions: bool,
    /// Changes that the watched copies have not seen.
    unseen: Vec<(Key, Value, bool)>,
    lagging: bool,
    /// Whoever listens is told of no change, though the watched copies have it.
    silent: bool,
    /// How long an answer is under way.
    slow: Duration,
    /// Nothing is made in this namespace any more.
    terminating: Option<String>,
    /// Of this kind too.
    blind: Option<String>,
    watchers: Vec<Watchers>,
    requests: Vec<String>,
    held: Option<(String, Arc<Semaphore>)>,
    /// How many seconds its clock is ahead of this machine's.
    ahead: i64,
    told: Option<broadcast::Sender<Change>>,
    secrets: Option<OnSecret>,
    intruder: Option<Intruder>,
}

/// Hears of every Secret that came, changed, or (true) went.
type OnSecret = Box<dyn Fn(Secret, bool) + Send>;

struct Watchers {
    segments: Writer<Segment>,
    servers: Writer<Server>,
    hosts: Writer<BareMetalHost>,
    enrolments: Writer<Enrolment>,
    hardware: Writer<HardwareData>,
    machines: Arc<Machines>,
    written: Arc<Written<Server>>,
    watches: Watches,
}

pub(crate) struct FakeApi(Mutex<Inner>);

impl FakeApi {
    pub(crate) fn new() -> Arc<FakeApi> {
        Arc::new(FakeApi(Mutex::default()))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(crate) fn client(self: &Arc<Self>) -> Client {
        let api = Arc::clone(self);
        let serve = move |request: Request<Body>| {
            let api = Arc::clone(&api);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let strategic = head
                    .headers
                    .get("content-type")
                    .is_some_and(|kind| kind == "application/strategic-merge-patch+json");
                let held = api.lock().held_by(head.method.as_str(), head.uri.path());
                if let Some(gate) = held {
                    gate.acquire().await.unwrap().forget();
                }
                let query = head.uri.query().unwrap_or_default();
                let (code, answer, now, slow) = {
                    let mut inner = api.lock();
                    // Lists that Kubernetes merges, which only built-in kinds have.
                    let body = match strategic {
                        true => inner.whole_lists(head.uri.path(), &body),
                        false => body.to_vec(),
                    };
                    let (code, answer) = inner.serve(head.method.as_str(), head.uri.path(), query, &body);
                    (code, answer, inner.now(), inner.slow)
                };
                if !slow.is_zero() {
                    tokio::time::sleep(slow).await;
                }
                let date = jiff::Timestamp::from_second(now).unwrap();
                let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&date);
                let answer = Full::new(Bytes::from(serde_json::to_vec(&answer).unwrap()));
                let head = Response::builder().status(code).header("date", date.unwrap());
                Ok::<_, std::io::Error>(head.body(answer).unwrap())
            }
        };
        Client::new(tower::service_fn(serve), "default")
    }

    /// Watched copies of what is stored, as a controller that starts now gets them.
    pub(crate) fn world(&self) -> World {
        let (segments, segment_writer) = reflector::store();
        let (servers, server_writer) = reflector::store();
        let (hosts, host_writer) = reflector::store();
        let (enrolments, enrolment_writer) = reflector::store();
        let (hardware, hardware_writer) = reflector::store();
        let mut watchers = Watchers {
            segments: segment_writer,
            servers: server_writer,
            hosts: host_writer,
            enrolments: enrolment_writer,
            hardware: hardware_writer,
            machines: Arc::default(),
            written: Arc::default(),
            watches: Watches::default(),
        };
        let mut inner = self.lock();
        fn start<K: Clone + DeserializeOwned + Resource<DynamicType = ()> + 'static>(
            writer: &mut Writer<K>,
            plural: &str,
            objects: &BTreeMap<Key, Value>,
        ) {
            writer.apply_watcher_event(&watcher::Event::Init);
            for (_, object) in objects.iter().filter(|(key, _)| key.0 == plural) {
                writer.apply_watcher_event(&watcher::Event::InitApply(read(object)));
            }
            writer.apply_watcher_event(&watcher::Event::InitDone);
        }
        start(&mut watchers.segments, "segments", &inner.objects);
        start(&mut watchers.servers, "servers", &inner.objects);
        start(&mut watchers.hosts, "baremetalhosts", &inner.objects);
        start(&mut watchers.enrolments, "enrolments", &inner.objects);
        start(&mut watchers.hardware, "hardwaredata", &inner.objects);
        let machines = Arc::clone(&watchers.machines);
        machines.servers_anew(servers.state().iter().map(AsRef::as_ref));
        machines.hosts_anew(hosts.state().iter().map(AsRef::as_ref));
        machines.enrolments_anew(enrolments.state().iter().map(AsRef::as_ref));
        let (written, watches) = (Arc::clone(&watchers.written), watchers.watches.clone());
        inner.watchers.push(watchers);
        World {
            segments,
            servers,
            written,
            hosts,
            enrolments,
            hardware,
            machines,
            unreadable: Arc::default(),
            watches,
        }
    }

    /// What the watched copies see from now on, told as a driver of [`World`] tells it.
    pub(crate) fn changes(&self) -> broadcast::Receiver<Change> {
        self.lock()
            .told
            .get_or_insert_with(|| broadcast::channel(4096).0)
            .subscribe()
    }

    /// Tells `hear` of every Secret there is, and of every change of one from now on; whoever heard before hears no more.
    pub(crate) fn watch_secrets(&self, hear: impl Fn(Secret, bool) + Send + 'static) {
        let mut inner = self.lock();
        for (_, secret) in inner.objects.iter().filter(|(key, _)| key.0 == "secrets") {
            hear(read(secret), false);
        }
        inner.secrets = Some(Box::new(hear));
    }

    /// What was asked since the last call: method and path.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().requests)
    }

    /// Stores `object` as a person would, status included.
    pub(crate) fn put(&self, plural: &str, object: &impl serde::Serialize) {
        let mut object = json!(object);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("muster-system")
            .to_owned();
        object["metadata"]["namespace"] = json!(namespace);
        self.lock().store(&(plural.to_owned(), namespace, name), object);
    }

    pub(crate) fn delete(&self, plural: &str, name: &str) {
        let mut inner = self.lock();
        let key = inner
            .objects
            .keys()
            .find(|key| key.0 == plural && key.2 == name)
            .cloned()
            .unwrap();
        inner.remove_or_mark(&key);
    }

    /// Somebody deletes this namespace: nothing is made there any more, and what is there is deleted, these kinds first.
    pub(crate) fn terminate(&self, namespace: &str, first: &[&str]) {
        let mut inner = self.lock();
        inner.terminating = Some(namespace.to_owned());
        let all: Vec<Key> = inner
            .objects
            .keys()
            .filter(|key| key.1 == namespace)
            .cloned()
            .collect();
        let is_first = |key: &&Key| first.contains(&&*key.0);
        let (first, rest): (Vec<&Key>, Vec<&Key>) = all.iter().partition(is_first);
        for key in first.into_iter().chain(rest) {
            inner.remove_or_mark(key);
        }
    }

    pub(crate) fn all<K: DeserializeOwned>(&self, plural: &str) -> Vec<K> {
        let inner = self.lock();
        inner
            .objects
            .iter()
            .filter(|(key, _)| key.0 == plural)
            .map(|(_, object)| read(object))
            .collect()
    }

    pub(crate) fn get<K: DeserializeOwned>(&self, plural: &str, name: &str) -> Option<K> {
        let inner = self.lock();
        inner
            .objects
            .iter()
            .find(|(key, _)| key.0 == plural && key.2 == name)
            .map(|(_, object)| read(object))
    }

    /// Changes a stored object in place.
    pub(crate) fn edit(&self, plural: &str, name: &str, patch: &Value) {
        self.lock().edit(plural, name, patch).unwrap();
    }
}

fn read<K: DeserializeOwned>(object: &Value) -> K {
    serde_json::from_value(object.clone()).unwrap()
}

fn is_held(object: &Value) -> bool {
    object["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|all| !all.is_empty())
}

fn failure(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "code": code, "reason": reason, "message": reason,
    });
    (code, status)
}

impl Inner {
    fn now(&self) -> i64 {
        jiff::Timestamp::now().as_second() + self.ahead
    }

    /// None if there is no such object.
    fn edit(&mut self, plural: &str, name: &str, patch: &Value) -> Option<()> {
        let found = self
            .objects
            .iter()
            .find(|(key, _)| key.0 == plural && key.2 == name);
        let (key, mut object) = found.map(|(key, object)| (key.clone(), object.clone()))?;
        merge(&mut object, patch);
        self.store(&key, object);
        Some(())
    }

    /// The strategic merge patch `body` as the merge patch that it comes to for the object at `path`.
    fn whole_lists(&self, path: &str, body: &[u8]) -> Vec<u8> {
        let parts: Vec<&str> = path.rsplit('/').take(3).collect();
        let key = (parts[1].to_owned(), parts[2].to_owned(), parts[0].to_owned());
        let mut patch: Value = serde_json::from_slice(body).unwrap();
        let stored = self.objects.get(&key);
        for (list, by) in [("finalizers", None), ("ownerReferences", Some("uid"))] {
            let Some(added) = patch["metadata"].get(list).and_then(Value::as_array).cloned() else {
                continue;
            };
            let id = |item: &Value| by.map_or(item.clone(), |by| item[by].clone());
            let others = stored.and_then(|stored| stored["metadata"][list].as_array());
            let others = others.into_iter().flatten().filter(|other| {
                let new = added.iter().any(|item| id(item) == id(other));
                !new
            });
            let stays = added.iter().filter(|item| item.get("$patch").is_none());
            patch["metadata"][list] = others.chain(stays).cloned().collect();
        }
        serde_json::to_vec(&patch).unwrap()
    }

    fn serve(&mut self, method: &str, path: &str, query: &str, body: &[u8]) -> (u16, Value) {
        self.requests.push(format!("{method} {path}"));
        let after = self.let_intrude();
        let answer = self.answer(method, path, query, body);
        self.let_in(after);
        answer
    }

    fn answer(&mut self, method: &str, path: &str, query: &str, body: &[u8]) -> (u16, Value) {
        let fault = self.faults.pop_front().flatten();
        let unread = self.unread.as_ref();
        if let Some((_, code)) = unread.filter(|(end, _)| method == "GET" && path.ends_with(end.as_str())) {
            return failure(*code, "Unread");
        }
        match fault {
            _ if self.down => return failure(503, "Down"),
            _ if method != "GET" && self.invalid.iter().any(|end| path.ends_with(end)) => {
                return failure(422, "Invalid");
            }
            Some(Fault::Refused) => return failure(500, "Fault"),
            Some(Fault::Code(code)) => return failure(code, "Fault"),
            Some(Fault::AnswerLost) => {
                self.carry_out(method, path, query, body);
                return failure(500, "Fault");
            }
            None => {}
        }
        self.carry_out(method, path, query, body)
    }

    fn carry_out(&mut self, method: &str, path: &str, _query: &str, body: &[u8]) -> (u16, Value) {
        let parts: Vec<&str> = path.trim_start_matches("/apis/").split('/').collect();
        let Some(at) = parts.iter().position(|part| *part == "namespaces") else {
            return self.list(parts[parts.len() - 1], None);
        };
        let (namespace, plural) = (parts[at + 1], parts[at + 2]);
        let name = parts.get(at + 3).copied();
        let status = parts.get(at + 4) == Some(&"status");
        let sent: Option<Value> = serde_json::from_slice(body).ok();
        let name_of = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
        let key = |name: String| (plural.to_owned(), namespace.to_owned(), name);
        match (method, name) {
            ("GET", None) => self.list(plural, Some(namespace)),
            ("POST", None) if self.terminating.as_deref() == Some(namespace) => failure(403, "Forbidden"),
            ("POST", None) => {
                let mut object = sent.unwrap();
                let key = key(name_of(&object));
                if self.objects.contains_key(&key) {
                    return failure(409, "AlreadyExists");
                }
                object.as_object_mut().unwrap().remove("status");
                object["metadata"]["namespace"] = json!(namespace);
                object["metadata"]["uid"] = json!(format!("uid-{}", self.version + 1));
                object["metadata"]["creationTimestamp"] =
                    json!(jiff::Timestamp::from_second(self.now()).unwrap().to_string());
                (201, self.store(&key, object))
            }
            (_, Some(name)) => self.on_object(method, &key(name.to_owned()), status, sent),
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    /// All of a kind, in one namespace or in all.
    fn list(&self, plural: &str, namespace: Option<&str>) -> (u16, Value) {
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(key, _)| key.0 == plural && namespace.is_none_or(|namespace| key.1 == namespace))
            .map(|(_, object)| object)
            .collect();
        let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items });
        (200, list)
    }

    fn on_object(&mut self, method: &str, key: &Key, status: bool, sent: Option<Value>) -> (u16, Value) {
        let Some(mut object) = self.objects.get(key).cloned() else {
            return failure(404, "NotFound");
        };
        if let Some(version) = sent
            .as_ref()
            .and_then(|sent| sent["metadata"]["resourceVersion"].as_str())
            && object["metadata"]["resourceVersion"] != version
        {
            return failure(409, "Conflict");
        }
        match method {
            "GET" => (200, object),
            "DELETE" => {
                self.remove_or_mark(key);
                (200, object)
            }
            "PUT" => (200, self.store(key, sent.unwrap())),
            "PATCH" => {
                let before = object.clone();
                merge(&mut object, &sent.unwrap());
                let finalizers = |object: &Value| object["metadata"]["finalizers"].as_array().cloned();
                let had = finalizers(&before).unwrap_or_default();
                let mut has = finalizers(&object).unwrap_or_default().into_iter();
                if before["metadata"]["deletionTimestamp"].is_string() && has.any(|one| !had.contains(&one)) {
                    return failure(
                        422,
                        "no new finalizers can be added if the object is being deleted",
                    );
                }
                // The status is written through its subresource only, and nothing else is.
                let (kept, written) = if status {
                    (&before, &object)
                } else {
                    (&object, &before)
                };
                let mut result = kept.clone();
                match written.get("status") {
                    Some(status) => result["status"] = status.clone(),
                    None => drop(result.as_object_mut().unwrap().remove("status")),
                }
                if self.drops_conditions
                    && let Some(status) = result["status"].as_object_mut()
                {
                    status.remove("conditions");
                }
                (
                    200,
                    if result == before {
                        before
                    } else {
                        self.store(key, result)
                    },
                )
            }
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    fn store(&mut self, key: &Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(key.clone(), object.clone());
        self.unseen.push((key.clone(), object.clone(), false));
        self.show();
        if object["metadata"]["deletionTimestamp"].is_string() && !is_held(&object) {
            self.remove(key);
        }
        object
    }

    /// What a finalizer holds stays for a while.
    fn remove_or_mark(&mut self, key: &Key) {
        let mut object = self.objects[key].clone();
        if is_held(&object) {
            let now = jiff::Timestamp::from_second(self.now()).unwrap().to_string();
            object["metadata"]["deletionTimestamp"] = json!(now);
            self.store(key, object);
        } else {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: &Key) {
        self.version += 1;
        let mut object = self.objects.remove(key).unwrap();
        // That of its end.
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.unseen.push((key.clone(), object, true));
        self.show();
    }

    fn show(&mut self) {
        if self.lagging {
            return;
        }
        fn event<K: DeserializeOwned>(object: &Value, deleted: bool) -> watcher::Event<K> {
            if deleted {
                watcher::Event::Delete(read(object))
            } else {
                watcher::Event::Apply(read(object))
            }
        }
        let hidden = |(key, _, _): &(Key, Value, bool)| self.blind.as_ref() == Some(&key.0);
        let (hidden, shown) = std::mem::take(&mut self.unseen).into_iter().partition(hidden);
        self.unseen = hidden;
        let shown: Vec<(Key, Value, bool)> = shown;
        for (key, object, deleted) in shown {
            for watchers in &mut self.watchers {
                match key.0.as_str() {
                    "segments" => watchers.segments.apply_watcher_event(&event(&object, deleted)),
                    "servers" => {
                        watchers.servers.apply_watcher_event(&event(&object, deleted));
                        show_server(&watchers.machines, &watchers.written, &read(&object), deleted);
                    }
                    "baremetalhosts" => {
                        watchers.hosts.apply_watcher_event(&event(&object, deleted));
                        watchers.machines.host(&read(&object), deleted);
                    }
                    "hardwaredata" => watchers.hardware.apply_watcher_event(&event(&object, deleted)),
                    "enrolments" => {
                        watchers.enrolments.apply_watcher_event(&event(&object, deleted));
                        watchers.machines.enrolment(&read(&object), deleted);
                    }
                    _ => {}
                }
            }
            if let Some(hear) = self.secrets.as_ref().filter(|_| key.0 == "secrets") {
                hear(read(&object), deleted);
            }
            let change = match key.0.as_str() {
                "segments" => Change::Segment(Arc::new(read(&object))),
                "servers" => Change::Server(Arc::new(read(&object))),
                "baremetalhosts" => Change::Host(Arc::new(read(&object))),
                "hardwaredata" => Change::Hardware(ObjectRef::new(&key.2).within(&key.1)),
                _ => continue,
            };
            if let Some(told) = self.told.as_ref().filter(|_| !self.silent) {
                // An error says that nobody listens.
                let _ = told.send(change);
            }
        }
    }
}
