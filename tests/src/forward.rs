//! A TCP forwarder that stands on both sides of a network namespace, and can be cut.
//!
//! A socket belongs to the namespace of the thread that made it, for good: so the listener is made on one side and the
//! connections on the other, and one runtime copies between them.

use std::{net::SocketAddr, thread};

use anyhow::{Context, Result};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{oneshot, watch},
};

use crate::netns::Netns;

/// What the path does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Carries them.
    Open,
    /// Resets those that are there and every new one: the server is gone.
    Cut,
    /// Takes new ones, which wait; those that are there stall and are reset afterwards: the network swallows packets.
    Stalled,
}

/// Forwards one port for as long as it lives.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    path: watch::Sender<Path>,
    _end: oneshot::Sender<()>,
}

/// Where connections go.
#[derive(Clone, Debug)]
enum Target {
    Host(String),
    Inside(Netns, SocketAddr),
}

impl Forwarder {
    /// Listens inside `net` on `listen` and connects outside to `target` (`host:port`).
    pub fn outwards(net: &Netns, listen: SocketAddr, target: &str) -> Result<Forwarder> {
        let listener = net
            .run(move || std::net::TcpListener::bind(listen))
            .with_context(|| format!("listen on {listen} in the lab's network"))?;
        Forwarder::start(listener, Target::Host(target.to_owned()))
    }

    /// Listens outside on a free port of loopback and connects inside `net` to `target`.
    pub fn inwards(net: &Netns, target: SocketAddr) -> Result<Forwarder> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("listen on loopback")?;
        Forwarder::start(listener, Target::Inside(net.clone(), target))
    }

    fn start(listener: std::net::TcpListener, target: Target) -> Result<Forwarder> {
        listener.set_nonblocking(true).context("prepare a listener")?;
        let address = listener.local_addr().context("ask for the listener's address")?;
        let (path, state) = watch::channel(Path::Open);
        let (end, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime")?;
        thread::Builder::new()
            .name("lab-forwarder".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, target, state) => {}
                        _ = ended => {}
                    }
                });
            })
            .context("start a thread")?;
        Ok(Forwarder {
            address,
            path,
            _end: end,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what becomes of connections, at once.
    pub fn set(&self, path: Path) {
        self.path.send_replace(path);
    }
}

async fn accept(listener: std::net::TcpListener, target: Target, state: watch::Receiver<Path>) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    loop {
        // Accepting fails for a moment when the process has no file left; the next one may do.
        let Ok((client, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        tokio::spawn(carry(client, target.clone(), state.clone()));
    }
}

async fn carry(mut client: TcpStream, target: Target, mut state: watch::Receiver<Path>) {
    loop {
        let now = *state.borrow_and_update();
        match now {
            Path::Open => break,
            Path::Stalled => {
                if state.changed().await.is_err() {
                    return;
                }
            }
            Path::Cut => return reset(&client),
        }
    }
    let Ok(mut server) = connect(&target).await else {
        return reset(&client);
    };
    tokio::select! {
        // Ended by one of the two: the other learns it in the usual way.
        _ = copy_bidirectional(&mut client, &mut server) => return,
        _ = state.wait_for(|path| *path != Path::Open) => {}
    }
    // Bytes may have been under way: nobody may go on as if they had arrived.
    let _ = state.wait_for(|path| *path != Path::Stalled).await;
    reset(&client);
    reset(&server);
}

/// Makes the stream's end a reset, which is what a dead server's peer sees, rather than an orderly end.
fn reset(stream: &TcpStream) {
    // If the peer has reset it already, there is nothing left to do.
    let _ = stream.set_zero_linger();
}

async fn connect(target: &Target) -> std::io::Result<TcpStream> {
    let stream = match target {
        Target::Host(name) => TcpStream::connect(name).await?,
        Target::Inside(net, address) => {
            let address = *address;
            let socket = net.run(move || match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            })?;
            socket.connect(address).await?
        }
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    async fn echo(listener: std::net::TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    }

    async fn asks(stream: &mut TcpStream) -> std::io::Result<u8> {
        stream.write_u8(7).await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn both_directions_carry_and_can_be_cut() {
        let net = Netns::new().unwrap();
        let inside = net.run(|| std::net::TcpListener::bind("127.0.0.1:4711")).unwrap();
        tokio::spawn(echo(inside));
        let inwards = Forwarder::inwards(&net, "127.0.0.1:4711".parse().unwrap()).unwrap();
        let mut stream = TcpStream::connect(inwards.address()).await.unwrap();
        assert_eq!(asks(&mut stream).await.unwrap(), 7);

        let outwards = Forwarder::outwards(
            &net,
            "127.0.0.1:4712".parse().unwrap(),
            &inwards.address().to_string(),
        )
        .unwrap();
        let target = Target::Inside(net, outwards.address());
        let mut stream = connect(&target).await.unwrap();
        assert_eq!(asks(&mut stream).await.unwrap(), 7);

        outwards.set(Path::Stalled);
        let mut stalled = connect(&target).await.unwrap();
        assert!(
            timeout(Duration::from_millis(100), asks(&mut stalled))
                .await
                .is_err()
        );
        outwards.set(Path::Open);
        assert_eq!(timeout(SOON, stalled.read_u8()).await.unwrap().unwrap(), 7);

        outwards.set(Path::Cut);
        assert!(timeout(SOON, asks(&mut stream)).await.unwrap().is_err());
        // The reset may arrive before the connection counts as made, or after: nothing is ever answered.
        if let Ok(mut refused) = connect(&target).await {
            assert!(timeout(SOON, asks(&mut refused)).await.unwrap().is_err());
        }
    }
}
