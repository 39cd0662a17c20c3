//! A DHCPv4 client (RFC 2131) for one interface: `client` decides, `packet` and `frame` speak, [`run`] does the IO.

mod client;
mod frame;
mod packet;

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::IntoRawFd,
    time::Duration,
};

use muster_proto::{Chain, Mac};
use nix::net::if_::if_nametoindex;
use pnet::datalink::{self, Channel, ChannelType, DataLinkSender, NetworkInterface};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::{NetworkError, Route};
use client::{Client, Outcome};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// An Ethernet frame without options; larger replies are cut off and then refused.
const DATAGRAM: usize = 2048;

/// What a server granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Our address.
    pub address: Ipv4Addr,
    /// Length of the netmask.
    pub prefix: u8,
    /// The server that granted it.
    pub server: Ipv4Addr,
    /// Routes beyond the own network.
    pub routes: Vec<Route>,
    /// DNS servers.
    pub name_servers: Vec<Ipv4Addr>,
    /// MTU of the link in bytes, if the server sets one.
    pub mtu: Option<u16>,
    /// Our host name; empty if the server names none.
    pub hostname: String,
    /// After this long the granting server is asked to extend it (T1).
    pub renew: Duration,
    /// After this long any server is asked (T2).
    pub rebind: Duration,
    /// After this long it is over; `None` is for ever.
    pub duration: Option<Duration>,
}

impl Lease {
    /// True if the address is that of `other`, with its netmask.
    pub(super) fn is_at(&self, other: &Lease) -> bool {
        (self.address, self.prefix) == (other.address, other.prefix)
    }

    /// True if it sets up an interface as `other` does; how long it lasts is no part of that.
    pub(super) fn sets_up_as(&self, other: &Lease) -> bool {
        let untimed = |lease: &Lease| Lease {
            renew: Duration::ZERO,
            rebind: Duration::ZERO,
            duration: None,
            ..lease.clone()
        };
        untimed(self) == untimed(other)
    }
}

#[cfg(test)]
impl Lease {
    /// One that says no more than the address.
    pub(crate) fn of(address: Ipv4Addr) -> Lease {
        Lease {
            address,
            prefix: 24,
            server: [10, 0, 0, 1].into(),
            routes: Vec::new(),
            name_servers: Vec::new(),
            mtu: None,
            hostname: String::new(),
            renew: Duration::ZERO,
            rebind: Duration::ZERO,
            duration: None,
        }
    }
}

/// What became of the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Use it from now on.
    Granted(Lease),
    /// Its time is over, or the server took it back: stop using it.
    Lost(Lease),
}

/// Asks for a lease on the interface `name` and keeps it, for ever: a switch port may stay silent for minutes.
/// Drop the future to stop.
///
/// # Errors
/// If the socket fails.
pub async fn run(name: &str, mac: Mac, former: Option<Ipv4Addr>, tell: impl Fn(Change)) -> io::Result<()> {
    let socket = open(name)?;
    let mut frames = frames_or_warning(name);
    let started = Instant::now();
    let mut client = Client::new(mac, super::random(), former);
    let mut datagram = [0; DATAGRAM];
    loop {
        if let Some(lost) = client.expire(started.elapsed()) {
            tell(Change::Lost(lost));
        }
        if let Some(outgoing) = client.send(started.elapsed()) {
            // No route or a full queue: the next try is due anyway.
            if outgoing.from.is_unspecified()
                && let Some(frames) = &mut frames
            {
                if let Some(Err(error)) = frames.send_to(&frame::to_everyone(mac, &outgoing.bytes), None) {
                    tracing::debug!(nic = name, "a frame was not sent: {}", Chain(&error));
                }
            } else {
                let to = SocketAddrV4::new(outgoing.to, SERVER_PORT);
                _ = socket.send_to(&outgoing.bytes, to).await;
            }
        }
        let received = match client.wake() {
            Some(wake) => timeout_at(started + wake, socket.recv_from(&mut datagram)).await,
            None => Ok(socket.recv_from(&mut datagram).await),
        };
        let Ok(received) = received else { continue };
        let length = match received {
            Ok((length, _)) => length,
            // An ICMP error to an earlier message.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        match client.receive(&datagram[..length], started.elapsed()) {
            Some(Outcome::Granted(lease)) => tell(Change::Granted(lease)),
            Some(Outcome::Refused(lease)) => tell(Change::Lost(lease)),
            None => {}
        }
    }
}

/// A socket that hears on this one interface also before that has an address, and speaks from the address.
fn open(name: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(name.as_bytes()))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT).into())?;
    UdpSocket::from_std(socket.into())
}

/// What sends frames on this one interface; without it the client asks by its other socket, with a warning.
fn frames_or_warning(name: &str) -> Option<Box<dyn DataLinkSender>> {
    let failed = |source| NetworkError::Interface {
        action: "open a packet socket",
        interface: name.to_owned(),
        source,
    };
    open_frames(name)
        .map_err(failed)
        .inspect_err(|error| {
            tracing::warn!(
                "{}; its DHCP requests may be sent from another interface's address",
                Chain(error)
            );
        })
        .ok()
}

/// A socket that sends whole frames on this one interface and hears none: it is for no type of frames, so that what else arrives, images
/// included, does not pass through it as well.
fn open_frames(name: &str) -> io::Result<Box<dyn DataLinkSender>> {
    const NO_TYPE: u16 = 0;
    let link = NetworkInterface {
        name: name.to_owned(),
        description: String::new(),
        index: if_nametoindex(name)?,
        mac: None,
        ips: Vec::new(),
        flags: 0,
    };
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    let config = datalink::Config {
        // Nothing else is done while it waits.
        write_timeout: Some(Duration::ZERO),
        promiscuous: false,
        // Binds to this type; the socket is a raw one all the same.
        channel_type: ChannelType::Layer3(NO_TYPE),
        socket_fd: Some(socket.into_raw_fd()),
        ..datalink::Config::default()
    };
    match datalink::channel(&link, config)? {
        Channel::Ethernet(sender, _) => Ok(sender),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}
