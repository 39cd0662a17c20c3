//! The agents' side: certificates, tokens, sessions, identity. Writes Server status and Enrolments.
//!
//! ```text
//! keys, ca, tls           secrets and what is made of them
//! http, tls_stream, calls, the port: bounds on how many, how long, how much;
//!   body, problem         TLS; how a refusal looks
//! routes                  the calls
//!   enrol, spend          a token and a key become a session
//!   identity, inventory   which machine is this? what of its report is stored? (pure)
//!   poll, jobs, progress  what an agent is to do, how it went, how far it is
//! edge                    what the calls share: who a certificate speaks for, what people are told
//!   sessions, limits      who is here, and how often it may have written what it says (memory)
//!   orphans               whose edge is gone for good (pure)
//!   store                 Servers and Enrolments (Kubernetes)
//! sweep                   removes ended Enrolments (control role)
//! clock, metrics          what time it is, what is counted
//! ```
//!
//! A session is a key: its SHA-256 stands in `Server.status.session.key`, its certificate lives for twelve hours and is renewed for the same
//! key. A certificate counts as long as that Server exists, names that key and is not contested; so a newer enrolment ends an older
//! session, deleting the Server ends all of them, and a controller that starts anew goes on with the sessions that it finds.

mod body;
pub mod ca;
mod calls;
mod clock;
mod edge;
mod enrol;
mod http;
pub mod identity;
mod inventory;
mod jobs;
pub mod keys;
mod limits;
mod metrics;
mod orphans;
mod poll;
mod problem;
mod progress;
mod routes;
mod sessions;
mod spend;
mod store;
pub mod sweep;
mod tls;
mod tls_stream;

use std::{collections::HashMap, convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use kube::Client;
use muster_proto::{
    kinds::{self, Session, SessionState},
    session::Command,
};
use tokio::{
    net::TcpListener,
    sync::{
        broadcast::{self, error::RecvError},
        mpsc, watch,
    },
    time::Instant,
};

use self::{
    edge::Edge,
    orphans::{Orphan, Orphans},
    sessions::Sessions,
    store::Store,
};
pub(crate) use self::{http::MAX_STRANGERS, tls::dialled};
pub use self::{
    keys::Keys,
    metrics::Metrics,
    sessions::Pace,
    spend::enrolment_name,
    tls::{Names, TlsError, own_certificate},
};
use crate::{
    bind::{self, Addresses, ClosedPorts, Port},
    events::Events,
    log::Refusals,
    quota::Quota,
    world::{Change, World},
};

/// How often it is looked who is gone.
const LOOK: Duration = Duration::from_millis(500);

/// How often it is looked whose edge is gone.
const LOOK_ELSEWHERE: Duration = Duration::from_secs(60);

/// What the agents' side needs.
#[expect(missing_debug_implementations, reason = "a client has none")]
pub struct Config {
    /// Muster's client.
    pub client: Client,
    /// Muster's own namespace: where Servers and Enrolments live.
    pub namespace: String,
    /// The watched copies.
    pub world: World,
    /// Changes of `world`.
    pub changes: broadcast::Receiver<Change>,
    /// Tells people.
    pub events: Events,
    /// As [`keys::watch`] gives them.
    pub keys: watch::Receiver<Keys>,
    /// Under which addresses and names agents reach this replica; they stand in its certificate.
    pub names: watch::Receiver<Names>,
    /// [`Metrics::register`].
    pub metrics: Arc<Metrics>,
    /// How patient sessions are.
    pub pace: Pace,
    /// How many connections of agents there may be.
    pub max_agents: usize,
}

/// The agents' side cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentsError {
    /// No TLS.
    #[error("set up TLS for agents")]
    Tls(#[source] TlsError),
}

/// The agents' side, ready to serve.
#[derive(Debug)]
pub struct Server {
    edge: Arc<Edge>,
    tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    changes: broadcast::Receiver<Change>,
    end: watch::Sender<bool>,
    under_way: (mpsc::Sender<()>, mpsc::Receiver<()>),
    farewell: Duration,
    max_agents: usize,
}

/// Connections that may wait in the kernel to be accepted: the agents of a hall that was switched on at once.
const BACKLOG: u32 = 1024;

impl Server {
    /// Prepares certificates; serves nothing yet.
    pub async fn new(config: Config) -> Result<Server, AgentsError> {
        let tls = tls::follow(config.keys.clone(), config.names)
            .await
            .map_err(AgentsError::Tls)?;
        let metrics = config.metrics;
        let (end, ending) = watch::channel(false);
        let under_way = mpsc::channel(1);
        let edge = Arc::new(Edge {
            store: Store::new(config.client, &config.namespace, config.world),
            events: config.events,
            keys: config.keys,
            sessions: Sessions::new(config.pace, metrics.sessions.clone(), metrics.polls.clone()),
            metrics,
            refusals: Refusals::default(),
            bounds: routes::Bounds::default(),
            reporting: Quota::new(1),
            telling: Quota::new(1),
            reports: limits::RateLimit::of_reports(),
            inventory_writes: limits::RateLimit::of_inventories(),
            poll_writes: limits::RateLimit::of_polls(),
            logs: limits::RateLimit::of_logs(),
            renewals: limits::RateLimit::of_renewals(),
            job_reads: limits::RateLimit::of_questions(),
            owner_reads: limits::RateLimit::of_questions(),
            enrolments: limits::RateLimit::of_questions(),
            contests: limits::RateLimit::of_questions(),
            retries: limits::RateLimit::of_inventories(),
            progress: progress::Progresses::default(),
            pending: std::sync::Mutex::new(HashMap::new()),
            ending,
            under_way: under_way.0.downgrade(),
        });
        Ok(Server {
            edge,
            tls,
            changes: config.changes,
            end,
            under_way,
            farewell: config.pace.farewell,
            max_agents: config.max_agents,
        })
    }

    /// Serves agents on each of `addresses` until `shutdown` ends; then answers those that wait and returns. Where `port` cannot be
    /// opened stands in `closed_ports`.
    ///
    /// Connections wait until the watched copies have been filled: before that, nothing can be refused with a reason.
    pub async fn run(
        self,
        addresses: watch::Receiver<Addresses>,
        port: u16,
        closed_ports: ClosedPorts,
        shutdown: impl Future<Output = ()>,
    ) {
        let Server {
            edge,
            tls,
            changes,
            end,
            under_way: (under_way, mut over),
            farewell,
            max_agents,
        } = self;
        let serving = async {
            adopt(&edge);
            let room = http::Room::new(max_agents);
            let serve = {
                let edge = Arc::clone(&edge);
                move |listener| {
                    let (edge, tls, room) = (Arc::clone(&edge), tls.clone(), room.clone());
                    async move {
                        http::serve(listener, edge, tls, room).await;
                        // It ends with the whole process only.
                        std::future::pending::<Infallible>().await
                    }
                }
            };
            tokio::join!(
                bind::serve_on_each(Port::tcp("agents", port), addresses, closed_ports, listen, serve),
                wake(Arc::clone(&edge), changes),
                reap(Arc::clone(&edge)),
                reap_elsewhere(Arc::clone(&edge))
            );
        };
        tokio::pin!(serving);
        tokio::select! {
            () = &mut serving => {}
            () = shutdown => {
                end.send_replace(true);
                drop(under_way);
                tokio::select! {
                    () = &mut serving => {}
                    // Nothing is ever sent: this is when the last one that holds a sender is done.
                    _ = over.recv() => {}
                    () = tokio::time::sleep(farewell) => {
                        tracing::info!("agents that are still connected are cut off");
                    }
                }
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = bind::listen(address, BACKLOG)?;
    tracing::info!(%address, "serving agents");
    Ok(listener)
}

/// Takes over the sessions that an earlier run of this controller had: their agents will poll, or are gone after the usual silence.
///
/// With several replicas this ends a session that polls at another one, once; that one ends the held poll, and the next one writes it
/// connected again. Those that another replica leaves behind later, [`reap_elsewhere`] ends.
fn adopt(edge: &Edge) {
    for server in edge.store.servers() {
        if let (Some(name), Some(session)) = (&server.metadata.name, server.session())
            && session.state == SessionState::Connected
        {
            edge.sessions.heard(name, &session.key);
        }
    }
}

/// Wakes held polls when their Server changes: each when its own does, all where it is not known whose did.
async fn wake(edge: Arc<Edge>, mut changes: broadcast::Receiver<Change>) {
    let mut ending = edge.ending.clone();
    let view = |name: &str| sessions::View::of(edge.store.server(name).as_deref());
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            _ = ending.wait_for(|ending| *ending) => return,
        };
        match change {
            Ok(Change::Server(server)) => {
                edge.sessions
                    .compare(server.metadata.name.as_deref().unwrap_or_default(), view);
            }
            Ok(Change::All) | Err(RecvError::Lagged(_)) => edge.sessions.compare_all(view),
            Ok(Change::Segment(_) | Change::Host(_) | Change::Hardware(_)) => {}
            // Nothing changes any more: the process ends.
            Err(RecvError::Closed) => {
                let _ = ending.wait_for(|ending| *ending).await;
                return;
            }
        }
    }
}

/// Writes the end of sessions whose agents are gone.
async fn reap(edge: Arc<Edge>) {
    let mut ending = edge.ending.clone();
    let mut pause = LOOK;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = ending.wait_for(|ending| *ending) => return,
        }
        pause = LOOK;
        edge.store.prune();
        edge.reports.prune();
        edge.inventory_writes.prune();
        edge.poll_writes.prune();
        edge.logs.prune();
        edge.renewals.prune();
        edge.job_reads.prune();
        edge.owner_reads.prune();
        edge.enrolments.prune();
        edge.contests.prune();
        edge.retries.prune();
        edge.progress.prune(|name| edge.store.server(name).is_some());
        for (name, key) in edge.sessions.gone() {
            // It may have come back while the ends of others were written.
            if !edge.sessions.is_gone(&name, &key) {
                continue;
            }
            if poll::disconnect(&edge, &name, &key, None).await {
                edge.sessions.forget(&name, &key);
            } else {
                pause = Duration::from_secs(2);
                break;
            }
        }
    }
}

/// Writes the end of sessions that other edges had which are gone for good. Of several edges that would, one does.
async fn reap_elsewhere(edge: Arc<Edge>) {
    let mut ending = edge.ending.clone();
    let untold = edge.sessions.pace.untold;
    let mut orphans = Orphans::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(untold.min(LOOK_ELSEWHERE)) => {}
            _ = ending.wait_for(|ending| *ending) => return,
        }
        let is_ours = |orphan: &Orphan| edge.sessions.knows(&orphan.server, &orphan.key);
        let is_fine = |server: &kinds::Server, orphan: &Orphan, command: &Command| {
            let host = || edge.store.world.host_of(server);
            let waits =
                || !jobs::is_begun(server, command) && jobs::calls_off(server, host().as_deref(), command);
            is_ours(orphan) || waits()
        };
        // Nobody keeps old copies while the ends are written.
        let due = orphans.look(&edge.store.servers(), is_fine, untold, Instant::now());
        // One may have come here meanwhile.
        for orphan in due.iter().filter(|orphan| !is_ours(orphan)) {
            let (server, key) = (&orphan.server, &orphan.key);
            let ended = Box::pin(poll::disconnect(&edge, server, key, Some(&orphan.version))).await;
            if !ended {
                break;
            }
            orphans.forget(orphan);
            let shown = edge.store.server(server);
            let is_shown =
                |session: &Session| session.key == *key && session.state == SessionState::Disconnected;
            // Another edge may have been first, or have written of it meanwhile.
            if shown.is_some_and(|shown| shown.session().is_some_and(is_shown)) {
                let minutes = untold.as_secs() / 60;
                tracing::warn!(%server, "no edge has written anything of the machine's job for {minutes} min, so the one that it was connected to \
                is taken for gone; the machine is shown as disconnected unless that edge writes otherwise");
            }
        }
    }
}

#[cfg(test)]
mod tests;
