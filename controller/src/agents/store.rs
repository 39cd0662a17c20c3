//! Servers and Enrolments in Kubernetes, as the agents' side reads and writes them.
//!
//! Reads come from the watched copies, and from what this replica wrote or fetched itself where they lag behind ([`Written`]).
//! A write to a Server's status is a merge patch of what changed, refused by the API server if someone else wrote in between, and then
//! computed again; nothing changed is no request.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use kube::{Api, Client, ResourceExt, api::Patch};
use muster_proto::kinds::{
    BareMetalHost, Enrolment, EnrolmentSpec, HostReference, Segment, Server, ServerSpec, ServerStatus,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    machines::Signal,
    manager::EDGE,
    patch::difference_but,
    path::Path,
    sync::lock,
    world::World,
    written::{Written, newer},
};

/// How long the API server has for one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a write is computed again because someone else wrote in between.
const ATTEMPTS: u32 = 10;
/// For so long what was read of a host for a cleaning counts for the write that follows it: what is forbidden meanwhile may come too late.
const MOMENT: Duration = Duration::from_secs(1);

/// What Kubernetes did not do: an action and the name of what it is about.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("the API server did not {action} in time")]
    TimedOut { action: String },
    #[error("the API server did not {action}")]
    Failed {
        action: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// The object does not fit the kind's rules: the same write never succeeds.
    #[error("the API server refused to {action}")]
    Refused {
        action: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("{action}: it does not exist")]
    Gone { action: String },
    #[error("{action}: it exists already")]
    Exists { action: String },
    #[error("{action}: others kept changing it")]
    Conflict { action: String },
    /// The change was called off by the function that computes it.
    #[error("the object has changed since the call began")]
    CalledOff,
}

/// What [`Store::update`] did.
#[derive(Debug)]
pub(super) struct Updated {
    /// The Server after.
    pub(super) server: Arc<Server>,
    /// False if nothing had to be written.
    pub(super) written: bool,
}

pub(super) struct Store {
    pub(super) world: World,
    namespace: String,
    client: Client,
    servers: Api<Server>,
    enrolments: Api<Enrolment>,
    written_enrolments: Written<Enrolment>,
    /// The hosts that were read a moment ago, by the job that they were read for.
    just_read: Mutex<HashMap<String, Read>>,
}

/// When a host was asked for, and what came.
type Read = (Instant, Option<Arc<BareMetalHost>>);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Store {
    pub(super) fn new(client: Client, namespace: &str, world: World) -> Store {
        Store {
            world,
            namespace: namespace.to_owned(),
            servers: Api::namespaced(client.clone(), namespace),
            enrolments: Api::namespaced(client.clone(), namespace),
            client,
            written_enrolments: Written::default(),
            just_read: Mutex::default(),
        }
    }

    /// The Server as far as known without a request.
    pub(super) fn server(&self, name: &str) -> Option<Arc<Server>> {
        self.world.server(&self.at(name))
    }

    /// The Servers that show one of `signals`, as far as known without a request, and perhaps others.
    pub(super) fn servers_with(&self, signals: &[Signal]) -> Vec<Arc<Server>> {
        let mut own = self.world.written.all();
        let found = self.world.machines.servers_with(signals).into_iter();
        let mut all: Vec<_> = found
            .filter_map(|path| newer(self.world.servers.get(&path.to_ref()), own.remove(&path.name)))
            .collect();
        // What the copy has not seen yet, it cannot find either; it is not much.
        all.extend(own.into_values());
        all
    }

    /// How many Servers have their latest session on the Segment `segment`, as far as known without a request, those that are called
    /// as one of `coming` counted in any case.
    pub(super) fn number_on(&self, segment: &str, coming: &BTreeSet<&str>) -> usize {
        let own = self.world.written.all();
        let is_here = |name: &&String| {
            let newest = newer(self.watched(name), own.get(*name).cloned());
            !coming.contains(name.as_str()) && newest.is_some_and(|server| is_on(&server, segment))
        };
        let ours = own.keys().filter(is_here).count();
        let counted: BTreeSet<Path> = own
            .keys()
            .map(|name| self.at(name))
            .chain(coming.iter().map(|name| self.at(name)))
            .collect();
        let signal = Signal::Segment(segment.to_owned());
        coming.len() + ours + self.world.machines.number_with(&signal, &counted)
    }

    /// Where the Server or the Enrolment called `name` is.
    fn at(&self, name: &str) -> Path {
        Path {
            namespace: self.namespace.clone(),
            name: name.to_owned(),
        }
    }

    /// All Servers, as far as known without a request.
    pub(super) fn servers(&self) -> Vec<Arc<Server>> {
        let mut own = self.world.written.all();
        let watched = self.world.servers.state();
        let mut all = Vec::with_capacity(watched.len() + own.len());
        for server in watched {
            let name = server.metadata.name.as_deref().unwrap_or_default();
            let ours = own.remove(name);
            all.extend(newer(Some(server), ours));
        }
        all.extend(own.into_values());
        all
    }

    /// The Server as the API server has it now.
    pub(super) async fn fetch_server(&self, name: &str) -> Result<Arc<Server>, StoreError> {
        let found = call("get Server", name, self.servers.get(name)).await;
        if let Err(StoreError::Gone { .. }) = found {
            self.world.written.forget(name);
        }
        found.map(|server| self.remember(server, None))
    }

    pub(super) async fn create_server(
        &self,
        name: &str,
        spec: ServerSpec,
    ) -> Result<Arc<Server>, StoreError> {
        let server = Server::new(name, spec);
        let sent = Instant::now();
        let made = call(
            "create Server",
            name,
            self.servers.create(&EDGE.create(), &server),
        )
        .await?;
        Ok(self.remember(made, Some(sent)))
    }

    /// Sets the status of the Server `name` to what `change` makes of it; `None` calls the change off.
    pub(super) async fn update(
        &self,
        name: &str,
        mut change: impl FnMut(&Server) -> Option<ServerStatus>,
    ) -> Result<Updated, StoreError> {
        const ACTION: &str = "write the status of Server";
        let mut server = match self.server(name) {
            Some(known) => known,
            None => self.fetch_server(name).await?,
        };
        for _ in 0..ATTEMPTS {
            let before = server.status.clone().unwrap_or_default();
            let after = change(&server).ok_or(StoreError::CalledOff)?;
            let Some(difference) = difference_but(before, after, |status| &mut status.inventory) else {
                return Ok(Updated {
                    server,
                    written: false,
                });
            };
            let version = server.resource_version();
            let patch = json!({ "metadata": { "resourceVersion": version }, "status": difference });
            let patch = Patch::Merge(&patch);
            let sent = Instant::now();
            match call(
                ACTION,
                name,
                self.servers.patch_status(name, &EDGE.merge(), &patch),
            )
            .await
            {
                Ok(written) => {
                    // A write that the API server finds nothing new in makes no version.
                    let sent = (written.resource_version() != version).then_some(sent);
                    return Ok(Updated {
                        server: self.remember(written, sent),
                        written: true,
                    });
                }
                Err(StoreError::Conflict { .. }) => server = self.fetch_server(name).await?,
                Err(error) => {
                    if let StoreError::Gone { .. } = error {
                        self.world.written.forget(name);
                    }
                    return Err(error);
                }
            }
        }
        Err(StoreError::Conflict {
            action: format!("{ACTION} {name}"),
        })
    }

    /// The Enrolment as far as known without a request.
    pub(super) fn enrolment(&self, name: &str) -> Option<Arc<Enrolment>> {
        self.written_enrolments.newest(name, self.watched_enrolment(name))
    }

    /// All Enrolments of the Server `server`, as far as known without a request.
    pub(super) fn enrolments_of(&self, server: &str) -> Vec<Arc<Enrolment>> {
        let mut own = self.written_enrolments.all();
        let watched = self.world.machines.enrolments_of(server).into_iter();
        let mut found: Vec<_> = watched
            .filter_map(|path| self.world.enrolments.get(&path.to_ref()))
            .collect();
        for enrolment in &found {
            own.remove(enrolment.metadata.name.as_deref().unwrap_or_default());
        }
        found.extend(
            own.into_values()
                .filter(|enrolment| enrolment.spec.server == server),
        );
        found
    }

    pub(super) async fn fetch_enrolment(&self, name: &str) -> Result<Arc<Enrolment>, StoreError> {
        let found = call("get Enrolment", name, self.enrolments.get(name)).await?;
        Ok(self.remember_enrolment(found))
    }

    /// Spends a token: of all that try, in the whole cluster, one succeeds.
    pub(super) async fn create_enrolment(
        &self,
        name: &str,
        spec: EnrolmentSpec,
    ) -> Result<Arc<Enrolment>, StoreError> {
        let enrolment = Enrolment::new(name, spec);
        let made = call(
            "create Enrolment",
            name,
            self.enrolments.create(&EDGE.create(), &enrolment),
        )
        .await?;
        Ok(self.remember_enrolment(made))
    }

    pub(super) async fn contest_enrolment(&self, name: &str) -> Result<(), StoreError> {
        let patch = json!({ "spec": { "contested": true } });
        let patch = Patch::Merge(&patch);
        let patched = call(
            "mark Enrolment",
            name,
            self.enrolments.patch(name, &EDGE.merge(), &patch),
        )
        .await?;
        self.remember_enrolment(patched);
        Ok(())
    }

    /// The Segment `namespace/name`, or the one of that name in our own namespace, as far as it is known.
    pub(super) fn known_segment(&self, key: &str) -> Option<Arc<Segment>> {
        self.world.segment_called(key, &self.namespace)
    }

    /// The Segment `namespace/name`, asked of the API server if it is not known yet.
    pub(super) async fn segment(&self, key: &str) -> Result<Option<Arc<Segment>>, StoreError> {
        if let Some(known) = self.known_segment(key) {
            return Ok(Some(known));
        }
        let Some((namespace, name)) = key.split_once('/') else {
            return Ok(None);
        };
        let segments: Api<Segment> = Api::namespaced(self.client.clone(), namespace);
        match call("get Segment", key, segments.get(name)).await {
            Ok(found) => Ok(Some(Arc::new(found))),
            Err(StoreError::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The host at `at` as the API server has it now, or had it when it was read a moment ago for the same job, if that `follows` up;
    /// none if there is no such.
    pub(super) async fn host_for(
        &self,
        at: &HostReference,
        job: &str,
        follows: bool,
    ) -> Result<Option<Arc<BareMetalHost>>, StoreError> {
        if let Some(read) = self.just_read(job).filter(|_| follows) {
            return Ok(read);
        }
        let asked = Instant::now();
        let host = self.fetch_host(at).await?;
        self.reads().insert(job.to_owned(), (asked, host.clone()));
        Ok(host)
    }

    /// What was read for `job` a moment ago; all that is older is forgotten.
    fn just_read(&self, job: &str) -> Option<Option<Arc<BareMetalHost>>> {
        let mut reads = self.reads();
        reads.retain(|_, (asked, _)| asked.elapsed() < MOMENT);
        reads.get(job).map(|(_, host)| host.clone())
    }

    fn reads(&self) -> MutexGuard<'_, HashMap<String, Read>> {
        lock(&self.just_read)
    }

    async fn fetch_host(&self, at: &HostReference) -> Result<Option<Arc<BareMetalHost>>, StoreError> {
        let hosts: Api<BareMetalHost> = Api::namespaced(self.client.clone(), &at.namespace);
        let path = Path::from(at).to_string();
        match call("get BareMetalHost", &path, hosts.get(&at.name)).await {
            Ok(found) => Ok(Some(Arc::new(found))),
            Err(StoreError::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// True if the watched Servers are known to be as the API server had them a moment ago.
    pub(super) fn is_fresh(&self) -> bool {
        self.is_readable() && self.world.written.proves_fresh(|name| self.watched(name))
    }

    /// False if of some object, which cannot be read, the copy may show what it was before.
    fn is_readable(&self) -> bool {
        self.world.unreadable.all().is_empty()
    }

    fn watched(&self, name: &str) -> Option<Arc<Server>> {
        self.world.servers.get(&self.at(name).to_ref())
    }

    fn watched_enrolment(&self, name: &str) -> Option<Arc<Enrolment>> {
        self.world.enrolments.get(&self.at(name).to_ref())
    }

    /// Forgets what the watched copies have caught up with.
    pub(super) fn prune(&self) {
        self.world.written.prune(|name| self.watched(name));
        self.written_enrolments.prune(|name| self.watched_enrolment(name));
    }

    /// `sent` is when the write was sent that made this version of it, if one did.
    fn remember(&self, server: Server, sent: Option<Instant>) -> Arc<Server> {
        let server = Arc::new(server);
        self.world.written.remember(Arc::clone(&server), sent);
        server
    }

    fn remember_enrolment(&self, enrolment: Enrolment) -> Arc<Enrolment> {
        let enrolment = Arc::new(enrolment);
        self.written_enrolments.remember(Arc::clone(&enrolment), None);
        enrolment
    }
}

/// True if the latest session of `server` is on the Segment `segment`.
fn is_on(server: &Server, segment: &str) -> bool {
    let session = server.session();
    session.is_some_and(|session| session.segment == segment)
}

/// Runs one request about the object `name` with its deadline and sorts what goes wrong by what follows from it.
async fn call<T>(
    action: &str,
    name: &str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, StoreError> {
    let source = match tokio::time::timeout(TIMEOUT, request).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(source)) => source,
        Err(_) => {
            return Err(StoreError::TimedOut {
                action: format!("{action} {name}"),
            });
        }
    };
    let action = format!("{action} {name}");
    let (code, exists) = match &source {
        kube::Error::Api(status) => (status.code, status.reason == "AlreadyExists"),
        _ => (0, false),
    };
    Err(match code {
        404 => StoreError::Gone { action },
        409 if exists => StoreError::Exists { action },
        409 => StoreError::Conflict { action },
        400 | 413 | 422 => StoreError::Refused {
            action,
            source: Box::new(source),
        },
        _ => StoreError::Failed {
            action,
            source: Box::new(source),
        },
    })
}
