//! A raw Ethernet port that takes every frame and hands BOOTP replies to whoever waits for their transaction.

use std::{
    collections::HashMap,
    io,
    net::Ipv4Addr,
    os::fd::IntoRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use muster_proto::Mac;
use pnet::{
    datalink::{self, Channel, DataLinkReceiver, DataLinkSender},
    packet::{
        Packet,
        ethernet::{EtherTypes, EthernetPacket, MutableEthernetPacket},
        ip::IpNextHeaderProtocols,
        ipv4::{self, Ipv4Packet, MutableIpv4Packet},
        udp::{self, MutableUdpPacket, UdpPacket},
    },
    util::MacAddr,
};
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::sync::mpsc;

use crate::netns::Netns;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
/// BOOTP's client port.
const CLIENT: u16 = 68;
/// Where the transaction id stands in a BOOTP message (RFC 951).
const XID: std::ops::Range<usize> = 4..8;

/// A UDP datagram as it came over the wire.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// The Ethernet destination.
    pub to_mac: Mac,
    /// Source address.
    pub from: Ipv4Addr,
    /// Destination address.
    pub to: Ipv4Addr,
    /// Payload.
    pub payload: Vec<u8>,
}

type Waiting = Mutex<HashMap<u32, mpsc::UnboundedSender<Datagram>>>;

/// The port; closed once dropped.
pub struct Port {
    sender: Mutex<Box<dyn DataLinkSender>>,
    waiting: Arc<Waiting>,
    stop: Arc<AtomicBool>,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port").finish_non_exhaustive()
    }
}

impl Port {
    /// Opens the link `name` of `net`.
    pub fn open(net: &Netns, name: &str) -> Result<Port> {
        let link = name.to_owned();
        let opened = net.run(move || {
            let interface = datalink::interfaces()
                .into_iter()
                .find(|found| found.name == link);
            let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
            // Before it is bound: whatever else these clients fetch does not pass through here a second time.
            socket.attach_filter(&filter())?;
            let config = datalink::Config {
                read_timeout: Some(Duration::from_millis(200)),
                socket_fd: Some(socket.into_raw_fd()), // pnet closes it
                ..datalink::Config::default()
            };
            datalink::channel(&interface.ok_or(io::ErrorKind::NotFound)?, config)
        });
        let Channel::Ethernet(sender, receiver) = opened.with_context(|| format!("open {name}"))? else {
            bail!("{name} is not an Ethernet link");
        };
        let waiting = Arc::new(Waiting::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, stopped) = (Arc::clone(&waiting), Arc::clone(&stop));
        thread::Builder::new()
            .name("lab-port".to_owned())
            .spawn(move || receive(receiver, &theirs, &stopped))
            .context("start a thread")?;
        Ok(Port {
            sender: Mutex::new(sender),
            waiting,
            stop,
        })
    }

    /// Every BOOTP reply with transaction id `xid` from now on, until the receiver is dropped.
    pub fn replies(&self, xid: u32) -> mpsc::UnboundedReceiver<Datagram> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, other| !other.is_closed());
        waiting.insert(xid, sender);
        receiver
    }

    /// Sends a UDP datagram to everyone, from `mac`.
    pub fn broadcast(&self, mac: Mac, from: (Ipv4Addr, u16), port: u16, payload: &[u8]) -> Result<()> {
        let frame = frame(mac, from, port, payload).context("a datagram of that length")?;
        self.raw(&frame)
    }

    /// Sends a frame as it is.
    pub fn raw(&self, frame: &[u8]) -> Result<()> {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender
            .send_to(frame, None)
            .context("a frame larger than the port's buffer")?
            .context("send a frame")
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn receive(mut receiver: Box<dyn DataLinkReceiver>, waiting: &Waiting, stopped: &AtomicBool) {
    while !stopped.load(Ordering::Relaxed) {
        // An error is the timeout that lets the loop look at `stopped`, or a link that is down for now.
        let Some((xid, datagram)) = receiver.next().ok().and_then(bootp_reply) else {
            continue;
        };
        let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = waiting.get(&xid) {
            // Whoever waited may have given up.
            let _ = sender.send(datagram);
        }
    }
}

/// Classic BPF: an IPv4 packet with UDP to [`CLIENT`].
fn filter() -> [SockFilter; 9] {
    // Opcodes of linux/bpf_common.h: LD|ABS of a half word or byte, JEQ with a constant, LDX 4*([k]&0xf), LD|IND, RET.
    let at = SockFilter::new;
    [
        at(0x28, 0, 0, 12),
        at(0x15, 0, 5, 0x0800),
        at(0x30, 0, 0, 23),
        at(0x15, 0, 3, 17),
        at(0xb1, 0, 0, 14),
        at(0x48, 0, 0, 16),
        at(0x15, 1, 0, u32::from(CLIENT)),
        at(0x06, 0, 0, 0),
        at(0x06, 0, 0, 0xffff),
    ]
}

/// The transaction id and datagram, if `frame` is UDP to BOOTP's client port.
fn bootp_reply(frame: &[u8]) -> Option<(u32, Datagram)> {
    let ethernet = EthernetPacket::new(frame).filter(|frame| frame.get_ethertype() == EtherTypes::Ipv4)?;
    let ip = Ipv4Packet::new(ethernet.payload())?;
    if ip.get_next_level_protocol() != IpNextHeaderProtocols::Udp {
        return None;
    }
    let datagram = UdpPacket::new(ip.payload()).filter(|datagram| datagram.get_destination() == CLIENT)?;
    let payload = datagram.payload();
    let xid = u32::from_be_bytes(payload.get(XID)?.try_into().ok()?);
    let MacAddr(a, b, c, d, e, f) = ethernet.get_destination();
    Some((
        xid,
        Datagram {
            to_mac: Mac([a, b, c, d, e, f]),
            from: ip.get_source(),
            to: ip.get_destination(),
            payload: payload.to_vec(),
        },
    ))
}

/// A broadcast Ethernet frame with one UDP datagram.
fn frame(mac: Mac, (from, from_port): (Ipv4Addr, u16), port: u16, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_length = u16::try_from(UDP + payload.len()).ok()?;
    let ip_length = u16::try_from(IPV4 + UDP + payload.len()).ok()?;
    let mut frame = vec![0; ETHERNET + usize::from(ip_length)];
    let mut ethernet = MutableEthernetPacket::new(&mut frame)?;
    let [a, b, c, d, e, f] = mac.0;
    ethernet.set_source(MacAddr(a, b, c, d, e, f));
    ethernet.set_destination(MacAddr::broadcast());
    ethernet.set_ethertype(EtherTypes::Ipv4);

    let mut ip = MutableIpv4Packet::new(&mut frame[ETHERNET..])?;
    ip.set_version(4);
    ip.set_header_length(5);
    ip.set_total_length(ip_length);
    ip.set_ttl(64);
    ip.set_next_level_protocol(IpNextHeaderProtocols::Udp);
    ip.set_source(from);
    ip.set_destination(Ipv4Addr::BROADCAST);
    ip.set_checksum(ipv4::checksum(&ip.to_immutable()));

    let mut datagram = MutableUdpPacket::new(&mut frame[ETHERNET + IPV4..])?;
    datagram.set_source(from_port);
    datagram.set_destination(port);
    datagram.set_length(udp_length);
    datagram.set_payload(payload);
    datagram.set_checksum(udp::ipv4_checksum(
        &datagram.to_immutable(),
        &from,
        &Ipv4Addr::BROADCAST,
    ));
    Some(frame)
}
