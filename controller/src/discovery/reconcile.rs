//! The loop: something changed, so decide again about every Server that it concerns.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use kube::{
    Client,
    runtime::{
        applier,
        controller::{self, Action},
        reflector::ObjectRef,
    },
};
use muster_proto::kinds::Server;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tokio::sync::broadcast;
use tracing::Instrument;

use super::{
    execute::Executor,
    index::Index,
    link::Signals,
    memory::Memory,
    next::{Seen, again, next, server_name},
    notices::refused,
};
use crate::{
    events::Events,
    metrics::Registry,
    path::Path,
    round::{Cue, ExecuteError, PATIENCE, receive, retry_after, run_out},
    world::{Change, Scope, World},
};

/// Servers in work at once; each waits for the API server most of the time.
const CONCURRENCY: u16 = 16;

/// One kind of step.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EffectLabel {
    effect: &'static str,
}

/// What discovery counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    effects: Family<EffectLabel, Counter>,
    failures: Counter,
}

impl Metrics {
    /// Registered on `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Metrics::default();
        registry.register(
            "muster_discovery_effects",
            "Steps taken by discovery, by kind",
            metrics.effects.clone(),
        );
        registry.register(
            "muster_discovery_failures",
            "Failed rounds of discovery, which are retried",
            metrics.failures.clone(),
        );
        metrics
    }
}

struct Context {
    world: World,
    index: Index,
    executor: Executor,
    events: Events,
    metrics: Metrics,
    /// The namespace of Servers and Segments.
    namespace: String,
    /// The namespace of hosts; none: all.
    watched: Option<String>,
    memory: Memory,
}

/// Decides and acts until dropped. `world` is complete; `changes` are those of its driver, subscribed to before it ran.
pub async fn run(
    client: Client,
    scope: Scope,
    world: World,
    changes: broadcast::Receiver<Change>,
    events: Events,
    metrics: Metrics,
) {
    let context = Arc::new(Context {
        executor: Executor::new(client, events.clone()),
        world,
        index: Index::default(),
        events,
        metrics,
        namespace: scope.namespace,
        watched: scope.hosts,
        memory: Memory::default(),
    });
    rounds(context, changes).await;
}

async fn rounds(context: Arc<Context>, changes: broadcast::Receiver<Change>) {
    let of = context.clone();
    let changed = receive(changes).map(move |cue| concerned(&of, &cue));
    let start = stream::once(std::future::ready(all(&context)));
    let queue = start
        .chain(changed)
        .flat_map(stream::iter)
        .map(Ok::<_, Infallible>);
    let rounds = applier(
        |server, context| {
            // One span a round: everything that it logs says whose it is, whatever level is logged.
            let span = tracing::error_span!("discovery", server = %server_name(&server));
            round(server, context).instrument(span).boxed()
        },
        |server, error, context| retry(&server, error, &context),
        context.clone(),
        context.world.servers.clone(),
        queue,
        controller::Config::default().concurrency(CONCURRENCY),
    );
    run_out(rounds, "discovery").await;
}

/// All Servers, after everything that is known of them was brought up to date.
fn all(context: &Context) -> Vec<ObjectRef<Server>> {
    let servers = context.world.servers.state();
    let hosts = context.world.hosts.state();
    let names: BTreeSet<String> = servers
        .iter()
        .map(|server| server_name(server).to_owned())
        .collect();
    let paths = hosts.iter().map(|host| Path::of(host.as_ref())).collect();
    context.index.retain(&names, &paths);
    for host in &hosts {
        context.index.host(host, false);
    }
    for server in &servers {
        context.index.server(server, false);
    }
    context.memory.retain(|name| names.contains(name));
    servers
        .iter()
        .map(|server| ObjectRef::from_obj(server.as_ref()))
        .collect()
}

/// The Servers about which a decision may be another one now.
fn concerned(context: &Context, cue: &Cue<Change>) -> Vec<ObjectRef<Server>> {
    let change = match cue {
        Cue::Change(change) => change,
        Cue::Lost => return all(context),
        Cue::Part(part) => {
            let servers = &context.world.servers;
            let theirs = servers.state_filter(|server| part.has(server_name(server)));
            return theirs.iter().map(reference).collect();
        }
    };
    match change {
        Change::All => all(context),
        Change::Server(server) => {
            let own = ObjectRef::from_obj(server.as_ref());
            let now = context.world.servers.get(&own);
            if now.is_none() {
                context.memory.forget(server_name(server));
            }
            let others = context
                .index
                .server(now.as_ref().unwrap_or(server), now.is_none());
            let mut concerned: Vec<_> = named(context, others).iter().map(reference).collect();
            concerned.push(own);
            concerned
        }
        Change::Host(host) => {
            let now = context.world.hosts.get(&ObjectRef::from_obj(host.as_ref()));
            let names = context.index.host(now.as_ref().unwrap_or(host), now.is_none());
            named(context, names).iter().map(reference).collect()
        }
        Change::Hardware(data) => {
            let names = context.index.pointing_at(Path::of_ref(data));
            named(context, names).iter().map(reference).collect()
        }
        Change::Segment(segment) => {
            let there = context.world.servers.state_filter(|server| {
                server
                    .segment()
                    .is_some_and(|(_, name)| Some(name) == segment.metadata.name.as_deref())
            });
            there.iter().map(reference).collect()
        }
    }
}

fn reference(server: &Arc<Server>) -> ObjectRef<Server> {
    ObjectRef::from_obj(server.as_ref())
}

/// Those of the Servers called so that there are.
fn named(context: &Context, names: impl IntoIterator<Item = String>) -> Vec<Arc<Server>> {
    let at = |name: String| ObjectRef::new(&name).within(&context.namespace);
    names
        .into_iter()
        .filter_map(|name| context.world.servers.get(&at(name)))
        .collect()
}

async fn round(server: Arc<Server>, context: Arc<Context>) -> Result<Action, ExecuteError> {
    let (plan, again) = {
        let signals = Signals::of(&server);
        let candidates = context.index.hosts_for(&server);
        let hosts: Vec<_> = candidates
            .iter()
            .filter_map(|path| context.world.hosts.get(&path.to_ref()))
            .filter(|host| signals.concern(&server, host))
            .collect();
        let hardware: Vec<_> = hosts
            .iter()
            .filter_map(|host| context.world.hardware.get(&Path::of(host.as_ref()).to_ref()))
            .collect();
        let names = context
            .index
            .servers_for(&server, hosts.iter().map(AsRef::as_ref));
        let servers = named(&context, names);
        let segment = context.world.segment_of(&server, &context.namespace);
        let seen = Seen {
            server: &server,
            hosts: &hosts,
            hardware: &hardware,
            servers: &servers,
            segment: segment.as_deref(),
            watched: context.watched.as_deref(),
            now: Timestamp::now(),
        };
        let plan = next(&seen);
        let again = again(&seen, &plan);
        (plan, again)
    };
    let name = server_name(&server).to_owned();
    if !plan.effects.is_empty() {
        tracing::info!(why = %plan.why, effects = plan.effects.len(), "discovery acts");
    }
    let news = context.memory.news(&name, &plan.notices);
    news.into_iter().for_each(|event| context.events.record(event));
    let did = |effect| {
        let label = EffectLabel { effect };
        context.metrics.effects.get_or_create(&label).inc();
    };
    let outcome = tokio::time::timeout(PATIENCE, context.executor.run(&server, plan, did))
        .await
        .unwrap_or_else(|_| {
            Err(ExecuteError::Late {
                subject: format!("Server {name}"),
            })
        });
    match outcome {
        Ok(()) => {
            context.memory.went_well(&name);
            Ok(again.map_or_else(Action::await_change, |at| {
                let pause = at.duration_since(Timestamp::now());
                Action::requeue(Duration::try_from(pause).unwrap_or_default())
            }))
        }
        Err(error) => {
            if !error.is_behind() {
                context.metrics.failures.inc();
            }
            let refusal = error.is_refusal().then(|| refused(&server, &error));
            let news = context.memory.failed(&name, refusal);
            error.log(context.memory.failures(&name));
            news.into_iter().for_each(|event| context.events.record(event));
            // Nobody tells once more of one that went meanwhile.
            if context.world.servers.get(&reference(&server)).is_none() {
                context.memory.forget(&name);
            }
            Err(error)
        }
    }
}

fn retry(server: &Server, error: &ExecuteError, context: &Context) -> Action {
    let name = server_name(server);
    let failures = context.memory.failures(name);
    Action::requeue(retry_after(name, failures, error))
}

#[cfg(test)]
mod tests;
