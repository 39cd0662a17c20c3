//! One watcher of all hosts: which states it saw of each, and when.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use futures::StreamExt;
use kube::{
    Api, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use muster_proto::kinds::{BareMetalHost, JobAction, OperationHistory, OperationMetric, Server};
use serde::de::DeserializeOwned;
use tokio::task::AbortHandle;

use super::results::Seen;

/// How often is looked whether all have come.
const LOOK: Duration = Duration::from_millis(100);
/// How often is said how far it is.
const SAY: Duration = Duration::from_secs(10);

/// A host as the watcher knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Host {
    /// Its states in order, and when each was first seen.
    pub(super) states: Vec<(String, Instant)>,
    pub(super) history: OperationHistory,
    pub(super) errors: i64,
}

impl Host {
    /// When it came into the state in which it is now, if that is `state`.
    pub(super) fn since(&self, state: &str) -> Option<Instant> {
        let (last, at) = self.states.last()?;
        (last == state).then_some(*at)
    }
}

/// The writes of an image that a Server was told to do, by their operation's id, and when the end of each was seen.
pub(super) type Writes = BTreeMap<String, Option<Instant>>;

#[derive(Debug, Default)]
struct Inner {
    hosts: HashMap<String, Host>,
    begun: Option<Instant>,
    writes: HashMap<String, Writes>,
    restarts: u32,
}

/// The watcher. It ends with this.
#[derive(Debug)]
pub(super) struct Watch {
    inner: Arc<Mutex<Inner>>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Watch {
    /// Watches hosts, and with `servers` what the Servers are told to write.
    pub(super) fn start(hosts: Api<BareMetalHost>, servers: Option<Api<Server>>) -> Watch {
        let inner = Arc::<Mutex<Inner>>::default();
        let mut tasks = vec![tokio::spawn(follow(hosts, Arc::clone(&inner), Inner::host)).abort_handle()];
        if let Some(servers) = servers {
            tasks.push(tokio::spawn(follow(servers, Arc::clone(&inner), Inner::server)).abort_handle());
        }
        Watch { inner, tasks }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// When the first host was seen.
    pub(super) fn begun(&self) -> Option<Instant> {
        self.inner().begun
    }

    /// The hosts as they are known now, by name.
    pub(super) fn hosts(&self) -> HashMap<String, Host> {
        self.inner().hosts.clone()
    }

    /// The writes of each host's Server, by the host's name.
    pub(super) fn writes(&self) -> HashMap<String, Writes> {
        self.inner().writes.clone()
    }

    /// Waits until all of `hosts` hosts are in `state`; when the last one came there.
    pub(super) async fn all(&self, hosts: u32, state: &str, within: Duration) -> Result<Instant> {
        let hosts = usize::try_from(hosts)?;
        let begun = Instant::now();
        let mut said = begun;
        loop {
            let there: Vec<Instant> = {
                let inner = self.inner();
                inner
                    .hosts
                    .values()
                    .filter_map(|host| host.since(state))
                    .collect()
            };
            if let Some(last) = there.iter().max().filter(|_| there.len() == hosts) {
                return Ok(*last);
            }
            if said.elapsed() > SAY {
                said = Instant::now();
                let waited = begun.elapsed().as_secs();
                println!("  {waited} s: {} of {hosts} hosts {state}", there.len());
            }
            if begun.elapsed() > within {
                bail!(
                    "{} of {hosts} hosts were {state} after {} s; there were {:?}",
                    there.len(),
                    within.as_secs(),
                    self.seen().ways
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What was seen so far.
    pub(super) fn seen(&self) -> Seen {
        let inner = self.inner();
        let mut seen = Seen {
            restarts: inner.restarts,
            ..Seen::default()
        };
        for host in inner.hosts.values() {
            let way: Vec<&str> = host.states.iter().map(|(state, _)| state.as_str()).collect();
            *seen.ways.entry(way.join(" ")).or_default() += 1;
            for operation in whole(&host.history) {
                *seen.history.entry(operation.to_owned()).or_default() += 1;
            }
            seen.errors += usize::from(host.errors != 0);
        }
        seen
    }
}

/// The operations with begin and end.
fn whole(history: &OperationHistory) -> impl Iterator<Item = &'static str> {
    let whole = |metric: &Option<OperationMetric>| {
        let metric = metric.as_ref();
        metric.is_some_and(|metric| metric.start.is_some() && metric.end.is_some())
    };
    [
        ("register", whole(&history.register)),
        ("inspect", whole(&history.inspect)),
        ("provision", whole(&history.provision)),
        ("deprovision", whole(&history.deprovision)),
    ]
    .into_iter()
    .filter_map(|(name, whole)| whole.then_some(name))
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn host(&mut self, host: &BareMetalHost) {
        let now = Instant::now();
        self.begun.get_or_insert(now);
        let known = self.hosts.entry(host.name_any()).or_default();
        let Some(status) = &host.status else { return };
        let state = status.provisioning.state.to_string();
        if !state.is_empty() && known.states.last().is_none_or(|(last, _)| *last != state) {
            known.states.push((state, now));
        }
        known.history = status.operation_history.clone().unwrap_or_default();
        known.errors = status.error_count;
    }

    fn server(&mut self, server: &Server) {
        let Some(host) = &server.spec.host else { return };
        let writes = self.writes.entry(host.name.clone()).or_default();
        if let Some(job) = &server.spec.job {
            let alone = (job.action == JobAction::Write).then_some(&job.id);
            if let Some(id) = alone.or(job.then.as_ref().map(|then| &then.id)) {
                writes.entry(id.clone()).or_default();
            }
        }
        let ended = server.status.as_ref().and_then(|status| status.job.as_ref());
        if let Some(job) = ended.filter(|job| job.done)
            && let Some(end) = writes.get_mut(&job.id)
        {
            end.get_or_insert_with(Instant::now);
        }
    }
}

async fn follow<K>(api: Api<K>, inner: Arc<Mutex<Inner>>, show: impl Fn(&mut Inner, &K))
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    use watcher::Event;
    let mut changes = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut begun = false;
    while let Some(change) = changes.next().await {
        match change {
            Ok(Event::Apply(object) | Event::InitApply(object)) => show(&mut lock(&inner), &object),
            Ok(Event::Init) => {
                lock(&inner).restarts += u32::from(begun);
                begun = true;
            }
            // The watch begins anew by itself; nobody deletes a host here.
            Ok(Event::InitDone | Event::Delete(_)) | Err(_) => {}
        }
    }
}

/// The hosts that were told to write more than once.
pub(super) fn rewritten(writes: &HashMap<String, Writes>) -> BTreeSet<&str> {
    let more = writes.iter().filter(|(_, writes)| writes.len() > 1);
    more.map(|(host, _)| host.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(inner: &mut Inner, state: &str, history: &serde_json::Value) {
        let host = json!({
            "metadata": {"name": "a"}, "spec": {"online": true},
            "status": {"provisioning": {"ID": "", "state": state}, "operationHistory": history,
                "operationalStatus": "OK", "errorMessage": "", "errorCount": 0, "poweredOn": true},
        });
        inner.host(&serde_json::from_value(host).unwrap());
    }

    #[test]
    fn each_state_is_kept_once_and_in_order() {
        let watch = Watch {
            inner: Arc::default(),
            tasks: Vec::new(),
        };
        let at = "2026-01-01T00:00:00Z";
        for state in ["registering", "registering", "inspecting"] {
            let history =
                json!({"register": {"start": at, "end": at}, "inspect": {"start": at, "end": null}});
            shown(&mut watch.inner(), state, &history);
        }
        let seen = watch.seen();
        assert_eq!(seen.ways, [("registering inspecting".to_owned(), 1)].into());
        assert_eq!(seen.history, [("register".to_owned(), 1)].into());
        let host = &watch.hosts()["a"];
        assert!(host.since("inspecting").is_some() && host.since("registering").is_none());
        assert!(watch.begun().is_some());
    }

    #[test]
    fn a_host_whose_server_had_two_writes_was_written_twice() {
        let mut inner = Inner::default();
        for id in ["1", "1", "2"] {
            let server = json!({
                "metadata": {"name": "s"},
                "spec": {"host": {"namespace": "n", "name": "h"}, "job": {"id": id, "action": "write"}},
                "status": {"job": {"id": "1", "done": true}},
            });
            inner.server(&serde_json::from_value(server).unwrap());
        }
        assert_eq!(rewritten(&inner.writes), ["h"].into());
        assert!(inner.writes["h"]["1"].is_some() && inner.writes["h"]["2"].is_none());
    }
}
