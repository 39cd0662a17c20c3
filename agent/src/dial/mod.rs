//! How a server is reached, be it a controller or one of images: where it listens, TCP and TLS to it, and the pauses between tries.

mod backoff;
pub mod endpoint;
pub mod tls;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{ClientConfig, pki_types::ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub use backoff::Backoff;

/// Without a way to the address the kernel tries for two minutes.
const CONNECT: Duration = Duration::from_secs(5);

/// A busy controller that serves a thousand machines at once.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// Silence before the first keepalive probe (`TCP_KEEPIDLE`, tcp(7)).
const QUIET: Duration = Duration::from_secs(15);

/// Between two probes (`TCP_KEEPINTVL`).
const PROBE: Duration = Duration::from_secs(5);

/// How long the other end may leave what we send without an answer, probes too (`TCP_USER_TIMEOUT`): a computer that is gone says
/// nothing more, however long an answer may take.
const GONE: Duration = Duration::from_secs(30);

/// A TCP connection.
///
/// # Errors
/// What the kernel says, or that it takes too long.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = in_time(CONNECT, TcpStream::connect(address)).await?;
    // A poll's answer may take long, a request never.
    stream.set_nodelay(true)?;
    // While an answer is waited for, it is asked whether the other end is still there.
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(QUIET).with_interval(PROBE))?;
    socket.set_tcp_user_timeout(Some(GONE))?;
    Ok(stream)
}

/// TLS over `stream` with the server of that name.
///
/// # Errors
/// What rustls says, inside, or that it takes too long.
pub async fn secure(
    stream: TcpStream,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    in_time(HANDSHAKE, TlsConnector::from(tls).connect(name, stream)).await
}

async fn in_time<T>(patience: Duration, what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(patience, what)
        .await
        .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}
