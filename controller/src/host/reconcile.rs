//! The loop: something changed, so decide again about every host that it concerns.

mod carry;
mod orphans;
mod turn;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, stream};
use jiff::Timestamp;
use kube::{
    Client,
    runtime::{
        applier,
        controller::{self, Action},
        reflector::ObjectRef,
    },
};
use muster_proto::kinds::{BareMetalHost, Server};
use tokio::{
    sync::{broadcast, mpsc},
    task::JoinSet,
};
use tracing::Instrument;

use super::{
    bmcs::{Bmcs, Clock, reference},
    execute::Executor,
    index::Index,
    memory::{EARLY, Memory},
    metrics::Metrics,
    observe::Observer,
    slot_state,
    slots::Slots,
    vault::{NoRandom, SECRET, Touched, Vault},
};
use crate::{
    events::Events,
    lease::Leadership,
    path::Path,
    round::{Cue, receive, retry_after, run_out},
    sync::lock,
    world::{Change, Scope, World},
};
use carry::beside;
use turn::round;

/// How long a host waits whose rounds follow each other without an end.
const TOO_FAST: Duration = Duration::from_secs(1);

/// What the loop is given.
pub struct Config {
    /// The API server; its writes end with the term.
    pub client: Client,
    /// Which namespaces matter.
    pub scope: Scope,
    /// The watched copies, complete.
    pub world: World,
    /// Changes of `world`, subscribed to before it was complete.
    pub changes: broadcast::Receiver<Change>,
    /// For telling people.
    pub events: Events,
    /// What is counted.
    pub metrics: Metrics,
    /// The BMCs.
    pub bmcs: Arc<dyn Bmcs>,
    /// The term for which this process leads.
    pub term: Leadership,
    /// The time.
    pub clock: Clock,
    /// How many hosts may be busy at once.
    pub limit: usize,
    /// How many hosts are in work at once; each waits for the API server most of the time.
    pub concurrency: u16,
    /// See [`Observed::max_provisioning_retries`](super::Observed).
    pub max_provisioning_retries: i64,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Config of epoch {}", self.term.epoch())
    }
}

struct Context {
    world: World,
    index: Index,
    slots: Slots,
    memory: Arc<Memory>,
    vault: Arc<Vault>,
    executor: Executor,
    events: Events,
    metrics: Metrics,
    namespace: String,
    began: Timestamp,
    max_provisioning_retries: i64,
    /// Hosts to look at again.
    wake: mpsc::UnboundedSender<Path>,
    /// Calls to BMCs; they end with the loop.
    calls: Mutex<JoinSet<()>>,
}

/// Decides and acts until dropped.
///
/// # Errors
/// If the system has no random numbers.
pub async fn run(config: Config) -> Result<(), NoRandom> {
    let (client, scope) = (config.client.clone(), config.scope.clone());
    let concurrency = config.concurrency;
    let (context, changes, woken) = Context::new(config)?;
    // A leader of before may still be at it somewhere.
    context.executor.bmcs.fence(context.executor.term.epoch());
    let vault = Arc::clone(&context.vault);
    let _end = End(Arc::clone(&context));
    let mut secrets = std::pin::pin!(vault.watch(&client, &scope, &context.world.watches));
    // Without their list every Secret would be asked for one by one.
    while secrets
        .next()
        .await
        .is_some_and(|touched| touched != Touched::All)
    {}
    let of = Arc::clone(&context);
    let secrets = secrets.map(move |touched| match touched {
        Touched::One(secret) => of.index.named_by(&secret),
        Touched::All => of.all(),
    });
    rounds(Arc::clone(&context), changes, woken, secrets, concurrency).await;
    Ok(())
}

/// Ends the calls that are under way with the loop: they hold the context that holds them.
struct End(Arc<Context>);

impl Drop for End {
    fn drop(&mut self) {
        let mut calls = lock(&self.0.calls);
        calls.abort_all();
        self.0.world.watches.is_read(SECRET);
        // Who leads next counts what becomes of these hosts, and of those that come.
        self.0.metrics.retain(&BTreeSet::new());
        // Those that wait at their BMC go on without us; they change nothing any more.
        let executor = &self.0.executor;
        executor.bmcs.fence(executor.term.epoch().saturating_add(1));
    }
}

type Woken = mpsc::UnboundedReceiver<Path>;

impl Context {
    fn new(config: Config) -> Result<(Arc<Context>, broadcast::Receiver<Change>, Woken), NoRandom> {
        let (wake, woken) = mpsc::unbounded_channel();
        let memory = Arc::new(Memory::default());
        let vault = Arc::new(Vault::new(config.client.clone())?);
        let context = Context {
            executor: Executor {
                client: config.client,
                bmcs: config.bmcs,
                vault: Arc::clone(&vault),
                memory: Arc::clone(&memory),
                term: config.term,
                clock: Arc::clone(&config.clock),
            },
            world: config.world,
            index: Index::default(),
            slots: Slots::new(config.limit),
            memory,
            vault,
            events: config.events,
            metrics: config.metrics,
            namespace: config.scope.namespace,
            began: (config.clock)(),
            max_provisioning_retries: config.max_provisioning_retries,
            wake,
            calls: Mutex::default(),
        };
        Ok((Arc::new(context), config.changes, woken))
    }

    fn observer(&self) -> Observer<'_> {
        Observer {
            world: &self.world,
            index: &self.index,
            memory: &self.memory,
            vault: &self.vault,
            namespace: &self.namespace,
            now: (self.executor.clock)(),
            began: self.began,
            epoch: self.executor.term.epoch(),
            limit: self.slots.limit(),
            max_provisioning_retries: self.max_provisioning_retries,
        }
    }

    /// True if what `host` needs a slot for goes on, slot or not: so it counts.
    fn has_begun(&self, host: &BareMetalHost, server: Option<&Server>) -> bool {
        slot_state::has_begun(host, server, (self.executor.clock)())
    }

    /// True if `host`, which needs no slot for what is done next, keeps the one that it has.
    fn keeps_slot(&self, host: &BareMetalHost, server: Option<&Server>) -> bool {
        slot_state::keeps(host, server, (self.executor.clock)())
    }

    /// `host` as the watch shows it now; none: it is gone, and another one of its name comes with a change of its own.
    fn now(&self, host: &BareMetalHost) -> Option<Arc<BareMetalHost>> {
        let now = self.world.hosts.get(&Path::of(host).to_ref())?;
        (now.metadata.uid == host.metadata.uid).then_some(now)
    }

    /// The host went while a round looked at it.
    fn forget_if_gone(&self, host: &BareMetalHost, path: &Path) {
        if self.world.hosts.get(&path.to_ref()).is_none() {
            // In this order: nobody is to find that it holds what it has let go.
            self.wake(self.index.host(host, true));
            self.memory.forget(path);
            self.metrics.forget(path);
            self.wake(self.slots.give_back(path));
            self.log_out(host);
        }
    }

    /// The host is gone: whoever took it away may not have let us end what we had with its BMC.
    fn log_out(&self, host: &BareMetalHost) {
        let (bmcs, host) = (Arc::clone(&self.executor.bmcs), reference(host));
        beside(self, async move { bmcs.forget(&host).await });
    }

    /// Logs out for `host` if it is gone: a call that has ended may have come to its BMC only after that was told.
    async fn log_out_if_gone(&self, host: &BareMetalHost) {
        if self.now(host).is_none() {
            self.executor.bmcs.forget(&reference(host)).await;
        }
    }

    fn wake(&self, hosts: impl IntoIterator<Item = Path>) {
        for host in hosts {
            // An error says that the loop has ended.
            let _ = self.wake.send(host);
        }
    }

    /// All hosts, after everything that is known of hosts was brought up to date.
    fn all(&self) -> Vec<Path> {
        let hosts = self.world.hosts.state();
        let servers = self.world.servers.state();
        let paths: BTreeSet<Path> = hosts.iter().map(|host| Path::of(host.as_ref())).collect();
        let known: BTreeSet<Path> = servers.iter().map(|server| Path::of(server.as_ref())).collect();
        self.index.retain(&paths, &known);
        self.memory.retain(&paths);
        self.metrics.retain(&paths);
        self.wake(self.slots.retain(&paths));
        let (bmcs, there) = (Arc::clone(&self.executor.bmcs), self.world.hosts.clone());
        beside(self, async move {
            // As it is then: who came meanwhile may have been asked already.
            let uids = there
                .state()
                .iter()
                .filter_map(|host| host.metadata.uid.clone())
                .collect();
            bmcs.retain(&uids).await;
        });
        for host in &hosts {
            self.index.host(host, false);
        }
        for server in &servers {
            self.index.server(server, false);
        }
        paths.into_iter().collect()
    }

    /// The hosts about which a decision may be another one now.
    fn concerned(&self, cue: &Cue<Change>) -> Vec<Path> {
        let change = match cue {
            Cue::Change(change) => change,
            Cue::Lost => return self.all(),
            Cue::Part(part) => {
                let hosts = &self.world.hosts;
                let theirs =
                    hosts.state_filter(|host| part.has(host.metadata.name.as_deref().unwrap_or_default()));
                return theirs.iter().map(|host| Path::of(host.as_ref())).collect();
            }
        };
        match change {
            Change::All => self.all(),
            Change::Host(host) => self.host_changed(host),
            Change::Server(server) => {
                let path = Path::of(server.as_ref());
                let now = self.world.servers.get(&path.to_ref());
                let hosts = self.index.server(now.as_ref().unwrap_or(server), now.is_none());
                for host in &hosts {
                    self.memory.shown_server(host, now.as_ref().unwrap_or(server));
                }
                hosts
            }
            Change::Hardware(data) => {
                let path = Path::of_ref(data);
                let now = self.world.hardware.get(&path.to_ref());
                self.memory.shown_hardware(&path, now.as_deref());
                vec![path]
            }
            Change::Segment(segment) => {
                let name = segment.metadata.name.as_deref();
                let servers = self.world.servers.state_filter(|server| {
                    server.segment().is_some_and(|(_, session)| Some(session) == name)
                });
                servers
                    .iter()
                    .filter_map(|server| server.spec.host.as_ref())
                    .map(Path::from)
                    .collect()
            }
        }
    }

    fn host_changed(&self, host: &BareMetalHost) -> Vec<Path> {
        let path = Path::of(host);
        let Some(now) = self.world.hosts.get(&path.to_ref()) else {
            let concerned = self.index.host(host, true).into_iter().collect();
            self.memory.forget(&path);
            self.metrics.forget(&path);
            self.wake(self.slots.give_back(&path));
            self.log_out(host);
            return concerned;
        };
        if now.metadata.uid != host.metadata.uid {
            self.log_out(host);
        }
        let mut concerned: Vec<Path> = self.index.host(&now, false).into_iter().collect();
        // The echo of what we wrote ourselves, after which another round came anyway.
        if !self.memory.has_looked_at(&now) {
            concerned.push(path);
        }
        self.memory.shown_host(&now);
        concerned
    }
}

async fn rounds(
    context: Arc<Context>,
    changes: broadcast::Receiver<Change>,
    woken: Woken,
    secrets: impl Stream<Item = Vec<Path>> + Send,
    concurrency: u16,
) {
    let all = context.all();
    let observer = context.observer();
    for host in context.world.hosts.state() {
        let server = observer.server(&host);
        if context.has_begun(&host, server.as_deref()) || context.keeps_slot(&host, server.as_deref()) {
            context.slots.begin_with(&Path::of(host.as_ref()));
        }
    }
    let start = stream::once(std::future::ready(all));
    let by = Arc::clone(&context);
    let changed = receive(changes).map(move |cue| by.concerned(&cue));
    let of = Arc::clone(&context);
    let woken = stream::unfold(woken, |mut woken| async move {
        let host = woken.recv().await?;
        Some((vec![host], woken))
    });
    let queue = stream::select(start.chain(changed), stream::select(woken, secrets))
        .flat_map(stream::iter)
        .map(|path| {
            of.memory.moved(&path);
            Ok::<ObjectRef<BareMetalHost>, Infallible>(path.to_ref())
        });
    let rounds = applier(
        |host, context| {
            // One span a round: everything that it logs says whose it is, whatever level is logged.
            let span = tracing::error_span!("operator", host = %Path::of(host.as_ref()));
            round(host, context).instrument(span).boxed()
        },
        |host, error, context: Arc<Context>| {
            Action::requeue(retry_after(
                host.metadata.name.as_deref().unwrap_or_default(),
                context.memory.failures(&host),
                error,
            ))
        },
        Arc::clone(&context),
        context.world.hosts.clone(),
        queue,
        controller::Config::default().concurrency(concurrency),
    );
    tokio::select! {
        () = run_out(rounds, "the operator") => {}
        () = orphans::release(&context) => {}
    }
}

#[cfg(test)]
mod tests;
