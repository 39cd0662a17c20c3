//! Simulated clients: real packets from machines that do not exist, many at once and without a guest's cost.
//!
//! They live in a network namespace of their own behind a cable to the bridge: traffic from the controller's own
//! namespace would take the loopback, and a service that is bound to an interface would never see it.

pub mod dhcp;
pub mod http;
mod port;
pub mod tftp;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::netns::Netns;

pub use port::Port;

/// A place behind a bridge from which clients speak.
#[derive(Clone, Debug)]
pub struct Clients {
    net: Netns,
    address: Ipv4Addr,
    port: Arc<Port>,
}

/// The cable's end.
const LINK: &str = "eth0";

impl Clients {
    /// Lays a cable from `bridge` in `lab` to a new namespace whose end has `address`, such as `10.77.0.2/24`.
    pub fn behind(lab: &Netns, bridge: &str, address: &str) -> Result<Clients> {
        let net = lab.neighbour(bridge, LINK, address)?;
        let port = Arc::new(Port::open(&net, LINK)?);
        let (address, _) = address
            .split_once('/')
            .context("an address with its prefix length")?;
        let address = address.parse().context("an IPv4 address")?;
        Ok(Clients { net, address, port })
    }

    /// The address from which they speak UDP and TCP.
    pub fn address(&self) -> Ipv4Addr {
        self.address
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
