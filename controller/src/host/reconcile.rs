//! The loop: something changed, so decide again about every host that it concerns.

mod carry;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
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
use muster_proto::{
    Chain,
    kinds::{BareMetalHost, BareMetalHostStatus, OperationalStatus, Server},
};
use tokio::{
    sync::{broadcast, mpsc},
    task::JoinSet,
    time::Instant,
};

use super::{
    Owner, Plan, State,
    bmcs::{Bmcs, Clock, is_call},
    conditions::asks_a_person,
    detached,
    draft::bounded,
    execute::{Executor, Fresh},
    index::{Index, Path},
    memory::{EARLY, Memory, Rest},
    metrics::{Metrics, Plain},
    next,
    observe::{Eyes, Sight},
    owner,
    place::{self, waits_in_line},
    plan::{Effect, PowerWatch},
    reboot,
    slots::Slots,
    state,
    vault::{NoRandom, SECRET, Touched, Vault},
};
use crate::{
    discovery::{host::about, next::segment_name},
    events::{Event, Events},
    lease::Leadership,
    round::{Cue, ExecuteError, PATIENCE, receive, retry_after, run_out},
    world::{Change, Scope, World},
};
use carry::{Call, Done, carry_out, watch_power};

/// How long a host waits whose rounds follow each other without an end.
const TOO_FAST: Duration = Duration::from_secs(1);

/// How long a status that only says what the host waits for may wait itself: most steps are over by then, and cost no write.
const DEFER: Duration = Duration::from_secs(5);
/// The same of one that waits for a place while others get theirs all the time: its turn may be near, and then it is woken. Those that
/// wait for longer say so one after the other ([`Slots::turn_to_tell`]).
const DEFER_IN_LINE: Duration = Duration::from_secs(120);

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
        let mut calls = self.0.calls.lock().unwrap_or_else(PoisonError::into_inner);
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

    fn eyes(&self) -> Eyes<'_> {
        Eyes {
            world: &self.world,
            index: &self.index,
            memory: &self.memory,
            vault: &self.vault,
            namespace: &self.namespace,
            began: self.began,
            epoch: self.executor.term.epoch(),
            max_provisioning_retries: self.max_provisioning_retries,
        }
    }

    /// True if what `host` needs a place for goes on, place or not: so it counts.
    fn has_begun(&self, host: &BareMetalHost, server: Option<&Server>) -> bool {
        place::has_begun(host, server, (self.executor.clock)())
    }

    /// True if `host`, which needs no place for what is done next, keeps the one that it has.
    fn keeps_place(&self, host: &BareMetalHost, server: Option<&Server>) -> bool {
        place::keeps(host, server, (self.executor.clock)())
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
        }
    }

    fn wake(&self, hosts: impl IntoIterator<Item = Path>) {
        for host in hosts {
            // An error says that the loop has ended.
            let _ = self.wake.send(host);
        }
    }

    /// After which time to look again, if the status of `plan` is not written yet.
    fn defers(&self, host: &BareMetalHost, plan: &Plan) -> Option<Duration> {
        let waits = plan.status.as_ref().filter(|_| can_wait(host, plan));
        let Some(status) = waits else {
            // What waits after this begins to wait then.
            self.memory.waits_no_more(host);
            return None;
        };
        let in_line = waits_in_line(status);
        let patience = match in_line && self.slots.moved(DEFER) {
            true => DEFER_IN_LINE,
            false => DEFER,
        };
        self.memory.defers(host, patience, || match in_line {
            true => self.slots.turn_to_tell(),
            false => Duration::ZERO,
        })
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
                let path = Path {
                    namespace: data.namespace.clone().unwrap_or_default(),
                    name: data.name.clone(),
                };
                let now = self.world.hardware.get(&path.to_ref());
                self.memory.shown_hardware(&path, now.as_deref());
                vec![path]
            }
            Change::Segment(segment) => {
                let name = segment.metadata.name.as_deref();
                let servers = self.world.servers.state_filter(|server| {
                    segment_name(server).is_some_and(|(_, session)| Some(session) == name)
                });
                servers
                    .iter()
                    .filter_map(|server| server.spec.host.as_ref())
                    .map(|at| Path {
                        namespace: at.namespace.clone(),
                        name: at.name.clone(),
                    })
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
            return concerned;
        };
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
    let eyes = context.eyes();
    for host in context.world.hosts.state() {
        let server = eyes.server(&host);
        if context.has_begun(&host, server.as_deref()) || context.keeps_place(&host, server.as_deref()) {
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
        |host, context| round(host, context).boxed(),
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
    run_out(rounds, "the operator").await;
}

/// How often a round goes on with what it has written, before others have their turn.
const TURNS: usize = 2;

/// What comes after a turn.
enum After {
    /// The round is over.
    Over(Action),
    /// The host was written: it is decided anew at once.
    Wrote(Done),
}

/// Decides and acts, and once more where that wrote the host: most steps begin with a state that is written first, and what was written
/// a moment ago need not be read again before data is destroyed.
async fn round(host: Arc<BareMetalHost>, context: Arc<Context>) -> Result<Action, ExecuteError> {
    // The host was taken before this round began to look, and a change in between was told before, too: this round must see it.
    let Some(host) = context.now(&host) else {
        return Ok(Action::await_change());
    };
    if let Some(action) = watch_power(&host, &context) {
        return Ok(action);
    }
    let (mut watched, mut fresh) = (host, None);
    for _ in 0..TURNS {
        let done = match turn(&watched, fresh, &context).await? {
            After::Over(action) => return Ok(action),
            After::Wrote(done) => done,
        };
        // The watch may have shown more meanwhile: what a person forbids counts from then on.
        watched = match context.now(&watched) {
            Some(now) => now,
            None => break,
        };
        fresh = done.fresh;
    }
    Ok(Action::requeue(Duration::ZERO))
}

/// Decides and acts once.
async fn turn(
    host: &Arc<BareMetalHost>,
    fresh: Option<Fresh>,
    context: &Arc<Context>,
) -> Result<After, ExecuteError> {
    let path = Path::of(host.as_ref());
    context.metrics.reconciled(&path);
    if !context.executor.term.still() {
        // The loop is dropped in a moment.
        return Ok(After::Over(Action::await_change()));
    }
    if owner(host) != Owner::Operator {
        context.memory.saw_paused(host, (context.executor.clock)());
        let server = context.eyes().server(host);
        if context.has_begun(host, server.as_deref()) {
            context.slots.begin_with(&path);
        } else if !context.keeps_place(host, server.as_deref()) {
            context.wake(context.slots.give_back(&path));
        }
        return Ok(After::Over(Action::await_change()));
    }
    context.memory.looks(host);
    let sight = context.eyes().look(host).await;
    let unknown = state::unreadable(&sight.host);
    let reason = match unknown {
        Some(_) => "Unreadable",
        None => "InvalidAnnotationValue",
    };
    let wrong = [
        unknown,
        reboot::unreadable(&sight.host),
        detached::unreadable(&sight.host),
    ];
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    let wrong = (!wrong.is_empty()).then(|| bounded(&wrong.join("; ")));
    if let Some(message) = context.memory.finds(&sight.host, wrong) {
        context.events.record(Event {
            about: about(&sight.host),
            warning: true,
            reason,
            message,
        });
    }
    let mut plan = decide(context, &path, &sight);
    let rests = plan.rests();
    if let Some(defer) = context.defers(&sight.host, &plan) {
        plan.status = None;
        plan.requeue = Some(plan.requeue.map_or(defer, |pause| pause.min(defer)));
    }
    let calls = plan.effects.iter().any(is_call);
    let call = match calls {
        true => match Call::begin(context, &sight.host) {
            Some(call) => Some(call),
            // Its end is looked at before another one is made.
            None => {
                context.forget_if_gone(host, &path);
                return Ok(After::Over(Action::await_change()));
            }
        },
        false => None,
    };
    let (slot, requeue) = (plan.slot, plan.next());
    let acted = tokio::time::timeout(PATIENCE, carry_out(context, &path, (&sight, fresh), plan, call)).await;
    let outcome = acted.unwrap_or_else(|_| {
        Err(ExecuteError::Late {
            subject: format!("host {path}"),
        })
    });
    let stored = outcome.as_ref().map_or(&sight.host, |done| &done.host);
    if !slot && !context.keeps_place(stored, sight.server().map(AsRef::as_ref)) {
        context.wake(context.slots.give_back(&path));
    }
    let after = match outcome {
        Ok(done) => {
            context.memory.went_well(&sight.host);
            if let Some(PowerWatch { first, every }) = rests {
                let ask = Instant::now() + first;
                context.memory.rests(&sight.host, Rest { ask, every });
            }
            let pause = if done.wrote { Some(Duration::ZERO) } else { requeue };
            let at_once = pause.is_some_and(|pause| pause.is_zero());
            Ok(if at_once && !context.memory.may_hurry(&sight.host) {
                After::Over(Action::requeue(TOO_FAST))
            } else if done.wrote {
                After::Wrote(done)
            } else {
                After::Over(pause.map_or_else(Action::await_change, Action::requeue))
            })
        }
        Err(error) => Err(failed(context, &sight.host, error)),
    };
    context.forget_if_gone(host, &path);
    after
}

/// True if what `plan` would write says only what the host waits for, and nothing that is begun now needs to be announced by it: a job
/// announces itself, unless it destroys data. Where one step follows the other at once, nobody could read it anyway; but a person is
/// told at once what to do.
fn can_wait(host: &BareMetalHost, plan: &Plan) -> bool {
    let (Some(old), Some(new)) = (&host.status, &plan.status) else {
        return false;
    };
    let nothing_else = plan
        .effects
        .iter()
        .all(|effect| matches!(effect, Effect::PlaceJob(_) | Effect::ReadPower) && !effect.destroys());
    let mut said = BareMetalHostStatus {
        conditions: old.conditions.clone(),
        last_updated: old.last_updated.clone(),
        ..*new.clone()
    };
    // In a state that takes no place it changes nothing but what people read; and whoever starts anew asks the BMC again.
    if waits_in_line(new) && !State::of(host).is_busy() {
        said.operational_status = old.operational_status;
        said.good_credentials.clone_from(&old.good_credentials);
        said.tried_credentials.clone_from(&old.tried_credentials);
    }
    nothing_else && !asks_a_person(new) && plan.events.is_empty() && plan.metadata.is_empty() && said == *old
}

/// The plan for the host, with a place among the busy ones if it needs one and there is one.
fn decide(context: &Context, path: &Path, sight: &Sight) -> Plan {
    let now = (context.executor.clock)();
    let plan = |slot| next(&sight.host, &sight.observed(slot), now);
    if context.has_begun(&sight.host, sight.server().map(AsRef::as_ref)) {
        context.slots.begin_with(path);
    }
    let wanted = plan(true);
    if !wanted.slot || context.slots.take(path) {
        return wanted;
    }
    let mut delayed = plan(false);
    if let Some(status) = delayed
        .status
        .as_mut()
        .filter(|status| State::parse(&status.provisioning.state).is_busy())
    {
        // It may enter the state but not begin; who starts anew sees by this that it has no place.
        status.operational_status = OperationalStatus::Delayed;
    }
    delayed
}

fn failed(context: &Context, host: &BareMetalHost, error: ExecuteError) -> ExecuteError {
    let path = Path::of(host);
    context.metrics.count(Plain::ReconcileError);
    match &error {
        ExecuteError::Behind { .. } => tracing::debug!(host = %path, %error, "looks again"),
        ExecuteError::Step { .. } | ExecuteError::Late { .. } => {
            tracing::warn!(host = %path, error = %Chain(&error), "tried again");
        }
    }
    // Said once for a row of failures: it stays so until somebody acts.
    let refusal = error.is_refusal().then(|| Event {
        about: about(host),
        warning: true,
        reason: "WriteRefused",
        message: format!("{}; it is tried again until it succeeds", Chain(&error)),
    });
    if let Some(news) = context.memory.failed(host, refusal) {
        context.events.record(news);
    }
    error
}

#[cfg(test)]
mod tests;
