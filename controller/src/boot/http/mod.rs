//! The HTTP server for boot files: plain, because firmware knows no CA of ours. What it serves is public, but for one-time
//! tokens, each made for the machine that asks.
//!
//! A thousand machines that boot at once must cost no more than a good file server does: bodies are lists of [`body::Segment`]s
//! whose files go to the network by sendfile(2), and a waiting connection holds no buffer.

pub mod anew;
pub mod body;
mod connection;
pub mod head;
mod metrics;
pub mod range;
pub mod response;
pub mod route;
mod send;
pub mod site;

use std::{convert::Infallible, io, net::SocketAddr, num::NonZero, sync::Arc, thread, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};

use self::response::{Response, Status};
pub use self::{connection::Ends, metrics::Metrics};
use super::{
    peers::{Notes, Peers},
    workers::Workers,
};
use crate::{
    bind::{self, Addresses, ClosedPorts, Port},
    places::Places,
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
    /// [`Metrics::register`].
    pub metrics: Metrics,
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
            metrics,
        } = self;
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let workers = match Workers::start("http", processors) {
            Ok(workers) => workers,
            Err(error) => return tracing::error!(%error, "HTTP: cannot start its threads"),
        };
        let shared = Arc::new(Shared::new(answer, limits, peers, metrics, workers));
        let serve = move |listener| accept(listener, Arc::clone(&shared));
        bind::serve_on_each(Port::tcp("HTTP", port), addresses, closed_ports, listen, serve).await;
    }
}

/// What all connections share.
#[derive(Debug)]
struct Shared<A> {
    answer: A,
    limits: Limits,
    places: Places,
    notes: Notes,
    metrics: Metrics,
    workers: Workers,
}

impl<A> Shared<A> {
    fn new(answer: A, limits: Limits, peers: Peers, metrics: Metrics, workers: Workers) -> Self {
        Shared {
            answer,
            limits,
            places: Places::new("HTTP", limits.connections, limits.each),
            notes: Notes::new(peers),
            metrics,
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
        let place = shared.places.next().await;
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // The connection is gone already, or we have no file descriptor left: that passes.
                tracing::warn!(%error, "HTTP: cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(share) = shared.places.share(peer.ip()) else {
            shared.metrics.turned_away.inc();
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
        let open = shared.metrics.open();
        let shared = Arc::clone(&shared);
        worker.spawn(async move {
            let _held = (place, share, open);
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
                let crowded = || places.are_taken();
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
