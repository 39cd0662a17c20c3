//! The HTTP server for boot files: plain, because firmware knows no CA of ours. What it serves is public, but for one-time
//! tokens, each made for the machine that asks.
//!
//! A thousand machines that boot at once must cost no more than a good file server does: bodies are lists of [`body::Segment`]s
//! whose files go to the network by sendfile(2), and a waiting connection holds no buffer.

pub mod anew;
pub mod body;
mod connection;
pub mod head;
pub mod range;
pub mod response;
pub mod route;
mod send;
pub mod site;

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::sleep,
};

pub use self::connection::Ends;
use self::response::{Response, Status};
use super::{peers::Peers, workers::Workers};
use crate::{
    bind::{self, Addresses, ClosedPorts, Port},
    log::Refusals,
    quota::Quota,
};

/// The default port.
pub const PORT: u16 = 8080;

/// Connections that the kernel keeps for us until we accept them.
const BACKLOG: u32 = 4096;

/// Says what to serve. Blocks for no longer than a look at the disk's directory, and takes no longer than the API server is given for one
/// question.
pub trait Answer: Send + Sync + 'static {
    /// The answer to a GET of `target`; HEAD and Range are made from it.
    fn answer(&self, target: &str, ends: Ends) -> impl Future<Output = Response> + Send;
}

/// Bounds on what clients may make us do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait in the kernel.
    pub connections: usize,
    /// Of these, by one address; more are turned away.
    pub each: usize,
    /// How long a request's head may take.
    pub head: Duration,
    /// How long a connection may wait for a further request.
    pub idle: Duration,
    /// How long a client may take nothing while it is sent something.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1024,
            each: 32,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            stall: Duration::from_secs(30),
        }
    }
}

/// The server.
#[derive(Debug)]
pub struct Server<A> {
    /// What is served.
    pub answer: A,
    /// Where.
    pub addresses: watch::Receiver<Addresses>,
    /// On which port of each address.
    pub port: u16,
    /// Where that cannot be opened.
    pub closed_ports: ClosedPorts,
    /// How much.
    pub limits: Limits,
    /// Whose address is whose, for the log.
    pub peers: Peers,
}

impl<A: Answer> Server<A> {
    /// Serves; returns only if it cannot begin.
    pub async fn run(self) {
        let Server {
            answer,
            addresses,
            port,
            closed_ports,
            limits,
            peers,
        } = self;
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let workers = match Workers::start("http", processors) {
            Ok(workers) => workers,
            Err(error) => return tracing::error!(%error, "HTTP: cannot start its threads"),
        };
        let shared = Arc::new(Shared::new(answer, limits, peers, workers));
        let serve = move |listener| accept(listener, Arc::clone(&shared));
        bind::serve_on_each(Port::tcp("HTTP", port), addresses, closed_ports, listen, serve).await;
    }
}

/// What all connections share.
#[derive(Debug)]
struct Shared<A> {
    answer: A,
    limits: Limits,
    places: Arc<Semaphore>,
    by_address: Arc<Quota<IpAddr>>,
    notes: Notes,
    workers: Workers,
}

/// What connections remember for the log.
#[derive(Debug, Default)]
struct Notes {
    peers: Peers,
    refusals: Refusals,
}

impl<A> Shared<A> {
    fn new(answer: A, limits: Limits, peers: Peers, workers: Workers) -> Self {
        Shared {
            answer,
            limits,
            places: Arc::new(Semaphore::new(limits.connections)),
            by_address: Quota::new(limits.each),
            notes: Notes {
                peers,
                refusals: Refusals::default(),
            },
            workers,
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = bind::listen(address, BACKLOG)?;
    tracing::info!(%address, "HTTP: serving");
    Ok(listener)
}

async fn accept<A: Answer>(listener: TcpListener, shared: Arc<Shared<A>>) -> Infallible {
    loop {
        // Who finds no place waits before the door: a boot that takes longer beats one that fails.
        let place = Arc::clone(&shared.places)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // The connection is gone already, or we have no file descriptor left: that passes.
                tracing::warn!(%error, "HTTP: cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(slot) = shared.by_address.take(peer.ip().to_canonical()) else {
            turn_away(&stream);
            continue;
        };
        // It leaves this thread's runtime for another.
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "HTTP: a connection is lost");
                continue;
            }
        };
        let worker = shared.workers.next().clone();
        let shared = Arc::clone(&shared);
        worker.spawn(async move {
            let _held = (place, slot);
            let stream = TcpStream::from_std(stream);
            // Whole responses are handed over at once; waiting to fill packets would only delay their ends.
            let ready = stream.and_then(|stream| {
                stream.set_nodelay(true)?;
                Ok((stream.local_addr()?, stream))
            });
            if let Ok((local, stream)) = ready {
                let Shared {
                    answer,
                    limits,
                    places,
                    notes,
                    ..
                } = &*shared;
                let crowded = || places.available_permits() == 0;
                connection::serve(stream, Ends { peer, local }, answer, limits, notes, crowded).await;
            }
        });
    }
}

/// Tells a client with too many connections so, if its socket takes it.
fn turn_away(stream: &TcpStream) {
    let response = Response::error(Status::Unavailable, "too many connections from this address");
    let mut message = response.head(false, jiff::Timestamp::now());
    for segment in response.body.segments() {
        if let body::Segment::Bytes(bytes) = segment {
            message.extend(bytes);
        }
    }
    let _ = stream.try_write(&message);
}

#[cfg(test)]
mod tests;
