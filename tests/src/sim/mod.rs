//! Simulated clients: real packets from machines that do not exist, many at once and without a guest's cost.
//!
//! They live in a network namespace of their own behind a cable to the bridge: traffic from the controller's own
//! namespace would take the loopback, and a service that is bound to an interface would never see it.

pub mod agent;
pub mod dhcp;
pub mod firmware;
pub mod flood;
pub mod hand;
pub mod hardware;
pub mod http;
mod port;
pub mod rack;
pub mod tftp;
pub mod work;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result};
use muster_agent::net::netlink::{self, Request};
use nix::net::if_::if_nametoindex;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::netns::Netns;

pub use port::Port;

/// A place behind a bridge from which clients speak.
#[derive(Clone, Debug)]
pub struct Clients {
    net: Netns,
    address: Ipv4Addr,
    port: Arc<Port>,
    own: Option<Arc<Own>>,
}

/// An address at the cable's end, for as long as this lives.
#[derive(Debug)]
struct Own {
    net: Netns,
    address: Ipv4Addr,
}

impl Own {
    fn change(&self, request: impl FnOnce(u32, Ipv4Addr) -> Request + Send + 'static) -> io::Result<()> {
        let address = self.address;
        self.net
            .run(move || netlink::ask(request(if_nametoindex(LINK)?, address)))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Goes with the namespace otherwise.
        let _ = self.change(|link, address| Request::remove_address(link, address, 32));
    }
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
        Ok(Clients {
            net,
            address,
            port,
            own: None,
        })
    }

    /// The same place for a client that speaks from `address`, which it has leased; the address is gone with the last of its owners.
    pub fn at(&self, address: Ipv4Addr) -> Result<Clients> {
        let own = Own {
            net: self.net.clone(),
            address,
        };
        own.change(|link, address| Request::add_address(link, address, 32, 0))
            .with_context(|| format!("put {address} on {LINK}"))?;
        Ok(Clients {
            own: Some(Arc::new(own)),
            ..self.clone()
        })
    }

    fn source(&self) -> Ipv4Addr {
        self.own.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |own| own.address)
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
        let source = self.source();
        let made = self.net.run(move || -> io::Result<_> {
            let socket = std::net::UdpSocket::bind((source, 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        made.and_then(UdpSocket::from_std).context("make a UDP socket")
    }

    /// A TCP connection.
    pub async fn tcp(&self, to: SocketAddr) -> Result<TcpStream> {
        let source = self.source();
        let made = self.net.run(move || -> io::Result<_> {
            let socket = TcpSocket::new_v4()?;
            if !source.is_unspecified() {
                socket.bind((source, 0).into())?;
            }
            Ok(socket)
        });
        let socket = made.context("make a TCP socket")?;
        socket
            .connect(to)
            .await
            .with_context(|| format!("connect to {to}"))
    }
}
