//! Simulated clients: real packets from machines that do not exist, many at once and without a guest's cost.
//!
//! They live in a network namespace of their own behind a cable to the bridge: traffic from the controller's own
//! namespace would take the loopback, and a service that is bound to an interface would never see it.

pub mod agent;
pub mod dhcp;
pub mod firmware;
pub mod hand;
pub mod hardware;
pub mod http;
mod port;
pub mod rack;
pub mod tftp;

use std::{io, net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::netns::Netns;

pub use port::Port;

/// A place behind a bridge from which clients speak.
#[derive(Clone, Debug)]
pub struct Clients {
    net: Netns,
    port: Arc<Port>,
}

/// The cable's end.
const LINK: &str = "eth0";

impl Clients {
    /// Lays a cable from `bridge` in `lab` to a new namespace whose end has `address`, such as `10.77.0.2/24`.
    pub fn behind(lab: &Netns, bridge: &str, address: &str) -> Result<Clients> {
        let net = Netns::new()?;
        let near = format!("c{}", net.thread());
        lab.cable(&near, &net, LINK)?;
        lab.join(&near, bridge)?;
        net.ip(&format!("address add {address} dev {LINK}"))?;
        let port = Arc::new(Port::open(&net, LINK)?);
        Ok(Clients { net, port })
    }

    /// Their namespace.
    pub fn net(&self) -> &Netns {
        &self.net
    }

    /// Raw Ethernet, for clients with any MAC address.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// A UDP socket on a free port.
    pub fn udp(&self) -> Result<UdpSocket> {
        let made = self.net.run(|| -> io::Result<_> {
            let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        made.and_then(UdpSocket::from_std).context("make a UDP socket")
    }

    /// A TCP connection.
    pub async fn tcp(&self, to: SocketAddr) -> Result<TcpStream> {
        let socket = self.net.run(TcpSocket::new_v4).context("make a TCP socket")?;
        socket
            .connect(to)
            .await
            .with_context(|| format!("connect to {to}"))
    }
}
