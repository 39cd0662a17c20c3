//! The agents' port: TCP, TLS, HTTP/1.1, with bounds on how many, how long and how much.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use super::{
    ca::ClientCertificate,
    calls,
    edge::{Edge, Peer},
    metrics::Metrics,
    routes,
    tls_stream::UnbufferedTls,
};
use crate::{
    log::Refusals,
    quota::{Quota, QuotaPermit},
};

/// How many of these one Server may have: a machine that was cut off leaves one behind, and its next boot another.
const MAX_OF_KEY: usize = 4;
/// Open connections without a certificate that counts, handshakes included: what a stranger can occupy.
pub(crate) const MAX_STRANGERS: usize = 1024;
/// How many of these one address may have: what a single stranger can occupy.
const MAX_OF_ADDRESS: usize = 128;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of a request may take, and how long a connection may be idle.
pub(super) const HEAD: Duration = Duration::from_secs(30);
/// How long a connection without a certificate that counts may last in all: an enrolment with its retries.
const STRANGER: Duration = Duration::from_secs(180);
/// Silence before the first keepalive probe (`TCP_KEEPIDLE`, tcp(7)).
const QUIET: Duration = Duration::from_secs(15);
/// Between two probes (`TCP_KEEPINTVL`).
const PROBE: Duration = Duration::from_secs(5);
/// How long an agent may leave what we send without an answer, probes too (`TCP_USER_TIMEOUT`): its machine is gone then.
const GONE: Duration = Duration::from_secs(30);

/// Room for connections.
#[derive(Clone, Debug)]
pub(super) struct Room {
    agents: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    by_key: Arc<Quota<String>>,
    by_address: Arc<Quota<IpAddr>>,
    /// What was told of strangers, and of agents: who is refused for either reason in turn is not told each time.
    told: Arc<(Refusals, Refusals)>,
}

/// Why there is no place for a connection.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Full {
    #[error(
        "all {} places for connections without a certificate are taken",
        MAX_STRANGERS
    )]
    Strangers,
    #[error(
        "this address has {} connections without a certificate, as many as one may have",
        MAX_OF_ADDRESS
    )]
    Address,
    #[error("all places for agents (--max-agents) are taken")]
    Agents,
    #[error("this agent has {} connections, as many as one may have", MAX_OF_KEY)]
    Key,
}

impl Room {
    /// For so many open connections of agents with a certificate that counts: each agent needs one, two while it reconnects.
    pub(super) fn new(agents: usize) -> Room {
        let room = |size: usize| Arc::new(Semaphore::new(size.min(Semaphore::MAX_PERMITS)));
        Room {
            agents: room(agents),
            strangers: room(MAX_STRANGERS),
            by_key: Quota::new(MAX_OF_KEY),
            by_address: Quota::new(MAX_OF_ADDRESS),
            told: Arc::default(),
        }
    }

    /// A place for a connection from `address` that has shown no certificate that counts, or none yet.
    fn stranger(&self, address: IpAddr) -> Result<Seat, Full> {
        let permit = Arc::clone(&self.strangers).try_acquire_owned();
        let permit = permit.map_err(|_| Full::Strangers)?;
        let counted = self.by_address.take(address).ok_or(Full::Address)?;
        Ok(Seat::Stranger(permit, counted))
    }

    /// A place for a connection that has shown the certificate of the key `fingerprint`. By the key: whoever holds an older session's takes no
    /// place from the newer one.
    fn agent(&self, fingerprint: &str) -> Result<Seat, Full> {
        let permit = Arc::clone(&self.agents).try_acquire_owned();
        let permit = permit.map_err(|_| Full::Agents)?;
        let counted = self.by_key.take(fingerprint.to_owned()).ok_or(Full::Key)?;
        Ok(Seat::Agent(permit, counted))
    }

    /// Tells that a connection from `client` is closed because of this, and counts it in `metrics`.
    fn turned_away(&self, full: Full, client: IpAddr, metrics: &Metrics) {
        metrics.turned_away.inc();
        let why = full.to_string();
        let (strangers, agents) = &*self.told;
        let left_out = match full {
            Full::Strangers => strangers.say_to_all(&why),
            Full::Address => strangers.say(client, &why),
            Full::Agents => agents.say_to_all(&why),
            Full::Key => agents.say(client, &why),
        };
        let Some(left_out) = left_out else { return };
        let held_by = matches!(full, Full::Strangers).then(|| self.by_address.most());
        tracing::warn!(%client, held_by, left_out, "agents' port: {why}; next: connections are refused until one ends");
    }
}

/// The place of one connection; it is free again when this is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "its parts are held, not read")]
enum Seat {
    Stranger(OwnedSemaphorePermit, QuotaPermit<IpAddr>),
    Agent(OwnedSemaphorePermit, QuotaPermit<String>),
}

/// Accepts connections on `listener` until this replica ends; then waits until those that are open have been answered.
pub(super) async fn serve(
    listener: TcpListener,
    edge: Arc<Edge>,
    tls: watch::Receiver<Arc<ServerConfig>>,
    room: Room,
) {
    let _under_way = edge.under_way.upgrade();
    let mut connections = JoinSet::new();
    let mut ending = edge.ending.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = ending.wait_for(|ending| *ending) => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a peer that left while it waited: neither is helped by hurry.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let seat = match room.stranger(peer.ip()) {
            Ok(seat) => seat,
            Err(full) => {
                room.turned_away(full, peer.ip(), &edge.metrics);
                continue;
            }
        };
        let config = Arc::clone(&tls.borrow());
        let (edge, room) = (Arc::clone(&edge), room.clone());
        connections.spawn(connection(stream, peer, config, edge, room, seat));
    }
    edge.sessions.wake_all();
    // Polls answer at once now.
    while connections.join_next().await.is_some() {}
}

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("set up the socket")]
    Socket(#[source] std::io::Error),
    #[error("TLS handshake")]
    Handshake(#[source] std::io::Error),
    #[error("the handshake took too long")]
    Slow,
    #[error("find a place")]
    Full(#[source] Full),
    #[error("speak HTTP")]
    Http(#[source] std::io::Error),
}

/// Finds out who is at the other end of `stream`, and answers its calls until it ends.
fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    config: Arc<ServerConfig>,
    edge: Arc<Edge>,
    room: Room,
    seat: Seat,
) -> impl Future<Output = ()> + Send {
    // On the heap: this task lives as long as its agent, and would have room for the handshake and all else that moves through it.
    let meeting = Box::pin(meet(stream, peer, config, Arc::clone(&edge), room, seat));
    async move {
        let ended = |error| {
            tracing::debug!(%peer, error = %muster_proto::Chain(&error), "connection ended");
        };
        // The seat is held until the end of this.
        let Met { stream, agent, seat } = match meeting.await {
            Ok(met) => met,
            Err(error) => return ended(error),
        };
        let over = over(&edge, matches!(seat, Seat::Agent(..)));
        let answer = |request| routes::answer(&edge, &agent, request);
        if let Err(error) = calls::serve(stream, answer, over).await {
            ended(ConnectionError::Http(error));
        }
    }
}

/// A connection after its handshake, and its place.
struct Met {
    stream: Box<UnbufferedTls>,
    agent: Peer,
    seat: Seat,
}

/// The handshake on `stream`, and a place for whoever it is.
async fn meet(
    stream: TcpStream,
    peer: SocketAddr,
    config: Arc<ServerConfig>,
    edge: Arc<Edge>,
    room: Room,
    mut seat: Seat,
) -> Result<Met, ConnectionError> {
    stream.set_nodelay(true).map_err(ConnectionError::Socket)?;
    let socket = socket2::SockRef::from(&stream);
    socket
        .set_tcp_user_timeout(Some(GONE))
        .map_err(ConnectionError::Socket)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(QUIET).with_interval(PROBE);
    socket
        .set_tcp_keepalive(&keepalive)
        .map_err(ConnectionError::Socket)?;
    let accepted = timeout(HANDSHAKE, UnbufferedTls::accept(stream, config)).await;
    let accepted = accepted.map_err(|_| ConnectionError::Slow)?;
    let stream = Box::new(accepted.map_err(ConnectionError::Handshake)?);
    let certificate = stream
        .certificate()
        .map(|leaf| ClientCertificate::parse(leaf).map(Arc::new));
    // One that is ours and no agent's has no more room than none. Nor has one that has ended or that speaks for nobody, of which anybody who
    // enrols can gather many. A session that has just begun at another edge and is not seen here yet is served all the same, and has an
    // agent's place with its next connection.
    if let Some(Some(agent)) = &certificate
        && edge.is_agents(agent)
    {
        seat = room.agent(&agent.fingerprint).map_err(|full| {
            room.turned_away(full, peer.ip(), &edge.metrics);
            ConnectionError::Full(full)
        })?;
    }
    let agent = Peer {
        address: peer.ip().to_canonical(),
        certificate,
    };
    Ok(Met { stream, agent, seat })
}

/// Until a connection has to end, be it an agent's or not.
fn over(edge: &Edge, is_agent: bool) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let mut ending = edge.ending.clone();
    // The sender lives as long as the process.
    let ending = async move { drop(ending.wait_for(|ending| *ending).await) };
    match is_agent {
        true => Box::pin(ending),
        false => Box::pin(async { drop(timeout(STRANGER, ending).await) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{log::said::Said, metrics::Registry};

    fn size_of_connection<A, B, C, D, E, F, Task>(_: fn(A, B, C, D, E, F) -> Task) -> usize {
        size_of::<Task>()
    }

    fn size_of_poll<A, B, C, Task>(_: fn(A, B, C) -> Task) -> usize {
        size_of::<Task>()
    }

    /// Each of thousands of agents takes this much all the time that it is connected.
    #[test]
    fn a_connection_whose_poll_is_held_is_small() {
        let (task, poll) = (size_of_connection(connection), size_of_poll(routes::turn));
        assert!(task <= 560 && poll <= 680, "{task} and {poll} bytes");
    }

    #[test]
    fn strangers_who_hold_every_place_are_told_and_not_once_for_each_they_keep_out() {
        let said = Said::listen();
        let metrics = Metrics::register(&mut Registry::default());
        let room = Room::new(1);
        let address = |number: u8| IpAddr::from([10, 77, 0, number]);
        let mut held = Vec::new();
        for number in 0..8 {
            for _ in 0..MAX_OF_ADDRESS {
                held.push(room.stranger(address(number)).unwrap());
            }
        }
        for number in 8..108 {
            let full = room.stranger(address(number)).unwrap_err();
            room.turned_away(full, address(number), &metrics);
        }
        let full = ["WARN", "all 1024 places", "10.77.0.0 (128), 10.77.0.1 (128)"];
        assert_eq!(said.count(&full), 1, "{}", said.text());
        assert_eq!(said.text().lines().count(), 1);
        assert_eq!(metrics.turned_away.get(), 100);
        let _agent = room.agent("a").unwrap();
        for number in 8..108 {
            let full = room.agent("b").unwrap_err();
            room.turned_away(full, address(number), &metrics);
            let full = room.stranger(address(number)).unwrap_err();
            room.turned_away(full, address(number), &metrics);
        }
        assert_eq!(said.text().lines().count(), 2, "{}", said.text());
    }
}
