//! The loop: something changed, so decide again about every Server that it concerns.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

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
use muster_proto::{
    Chain,
    kinds::{Segment, Server},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tokio::sync::broadcast;
use tracing::Instrument;

use super::{
    execute::Executor,
    host,
    link::{Signals, points_at},
    next::{Seen, next, segment_name, server_name},
    notices::refused,
};
use crate::{
    events::{Event, Events},
    metrics::Registry,
    round::{ExecuteError, PATIENCE, RESYNC, receive, retry_after, run_out},
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
            "Steps that discovery took, by kind",
            metrics.effects.clone(),
        );
        registry.register(
            "muster_discovery_failures",
            "Rounds of discovery that failed and are tried again",
            metrics.failures.clone(),
        );
        metrics
    }
}

struct Context {
    world: World,
    executor: Executor,
    events: Events,
    metrics: Metrics,
    /// The namespace of Servers and Segments.
    namespace: String,
    /// The namespace of hosts; none: all.
    watched: Option<String>,
    told: Mutex<HashMap<String, Told>>,
}

/// What a Server's rounds remember. Lost with the process: then a notice is told once more.
#[derive(Default)]
struct Told {
    notices: Vec<Event>,
    failures: u32,
    /// The refusal that was told last, until a round goes well.
    refusal: Option<Event>,
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
        events,
        metrics,
        namespace: scope.namespace,
        watched: scope.hosts,
        told: Mutex::default(),
    });
    rounds(context, changes).await;
}

async fn rounds(context: Arc<Context>, changes: broadcast::Receiver<Change>) {
    let of = context.clone();
    let changed = receive(changes).map(move |change| concerned(&of, change.as_ref()));
    let start = stream::once(std::future::ready(all(&context)));
    let queue = start
        .chain(changed)
        .flat_map(stream::iter)
        .map(Ok::<_, Infallible>);
    let rounds = applier(
        |server, context| {
            // One span a round: everything that it logs says whose it is.
            let span = tracing::info_span!("discovery", server = %server_name(&server));
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

fn all(context: &Context) -> Vec<ObjectRef<Server>> {
    let servers = context.world.servers.state();
    context
        .told
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|name, _| servers.iter().any(|server| server_name(server) == name));
    servers
        .iter()
        .map(|server| ObjectRef::from_obj(server.as_ref()))
        .collect()
}

/// The Servers about which a change may mean another decision.
fn concerned(context: &Context, change: Option<&Change>) -> Vec<ObjectRef<Server>> {
    let servers = |test: &dyn Fn(&Server) -> bool| -> Vec<_> {
        let some = context.world.servers.state_filter(test);
        some.iter()
            .map(|server| ObjectRef::from_obj(server.as_ref()))
            .collect()
    };
    match change {
        None | Some(Change::All) => all(context),
        Some(Change::Server(server)) => {
            let own = ObjectRef::from_obj(server.as_ref());
            if context.world.servers.get(&own).is_none() {
                let mut told = context.told.lock().unwrap_or_else(PoisonError::into_inner);
                told.remove(server_name(server));
            }
            let name = server_name(server);
            let clashes = server.status.as_ref().map_or(&[][..], |status| &status.clashes);
            let mut others = servers(&|other| {
                clashes.iter().any(|clash| clash == server_name(other)) || other.spec.host == server.spec.host
            });
            others.retain(|other| other.name != name);
            others.push(own);
            others
        }
        Some(Change::Host(host)) => {
            // A host of ours matters to its Server, and to one that points at it wrongly: no need to compare it with all.
            let owner = host::made_for(host);
            let owned = servers(&|server| owner == Some(server_name(server)) || points_at(server, host));
            match owned.iter().any(|server| Some(server.name.as_str()) == owner) {
                true => owned,
                false => servers(&|server| Signals::of(server).concern(server, host)),
            }
        }
        Some(Change::Hardware(data)) => servers(&|server| {
            let host = server.spec.host.as_ref();
            host.is_some_and(|at| at.name == data.name && Some(&at.namespace) == data.namespace.as_ref())
        }),
        Some(Change::Segment(segment)) => servers(&|server| {
            segment_name(server).is_some_and(|(_, name)| Some(name) == segment.metadata.name.as_deref())
        }),
    }
}

async fn round(server: Arc<Server>, context: Arc<Context>) -> Result<Action, ExecuteError> {
    let plan = {
        let signals = Signals::of(&server);
        let hosts = context
            .world
            .hosts
            .state_filter(|host| signals.concern(&server, host));
        let hardware = context.world.hardware.state_filter(|data| {
            hosts.iter().any(|host| {
                host.metadata.name == data.metadata.name && host.metadata.namespace == data.metadata.namespace
            })
        });
        let segment = segment(&context, &server);
        next(&Seen {
            server: &server,
            hosts: &hosts,
            hardware: &hardware,
            servers: &context.world.servers.state(),
            segment: segment.as_deref(),
            watched: context.watched.as_deref(),
            now: Timestamp::now(),
        })
    };
    let name = server_name(&server).to_owned();
    if !plan.effects.is_empty() {
        tracing::info!(server = %name, why = %plan.why, effects = plan.effects.len(), "discovery acts");
    }
    tell(&context, &name, plan.notices.clone());
    let outcome = tokio::time::timeout(PATIENCE, context.executor.run(&server, plan))
        .await
        .unwrap_or_else(|_| {
            Err(ExecuteError::Late {
                subject: format!("Server {name}"),
            })
        });
    let mut told = context.told.lock().unwrap_or_else(PoisonError::into_inner);
    let memory = told.entry(name.clone()).or_default();
    match outcome {
        Ok(done) => {
            memory.failures = 0;
            memory.refusal = None;
            for effect in done {
                context
                    .metrics
                    .effects
                    .get_or_create(&EffectLabel { effect })
                    .inc();
            }
            Ok(Action::requeue(RESYNC))
        }
        Err(error) => {
            memory.failures = memory.failures.saturating_add(1);
            context.metrics.failures.inc();
            match &error {
                ExecuteError::Behind { .. } => tracing::debug!(server = %name, %error, "looks again"),
                ExecuteError::Step { .. } | ExecuteError::Late { .. } => {
                    tracing::warn!(server = %name, error = %Chain(&error), "tried again");
                }
            }
            // Said once for a row of failures: it stays so until somebody acts.
            let refusal = error.is_refusal().then(|| refused(&server, &error));
            if refusal.is_some() && memory.refusal != refusal {
                memory.refusal.clone_from(&refusal);
                refusal.into_iter().for_each(|event| context.events.record(event));
            }
            Err(error)
        }
    }
}

fn segment(context: &Context, server: &Server) -> Option<Arc<Segment>> {
    let (namespace, name) = segment_name(server)?;
    let namespace = namespace.unwrap_or(&context.namespace);
    context
        .world
        .segments
        .get(&ObjectRef::new(name).within(namespace))
}

/// Records those notices that the last round did not have.
fn tell(context: &Context, server: &str, notices: Vec<Event>) {
    let mut told = context.told.lock().unwrap_or_else(PoisonError::into_inner);
    let memory = told.entry(server.to_owned()).or_default();
    for notice in notices.iter().filter(|notice| !memory.notices.contains(notice)) {
        context.events.record(notice.clone());
    }
    memory.notices = notices;
}

fn retry(server: &Server, error: &ExecuteError, context: &Context) -> Action {
    let name = server_name(server);
    let failures = {
        let told = context.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.get(name).map_or(1, |memory| memory.failures)
    };
    Action::requeue(retry_after(name, failures, error))
}

#[cfg(test)]
mod tests;
