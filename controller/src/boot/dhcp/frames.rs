//! Raw frames of one interface: ARP probes, and what other DHCP servers answer on the same wire.
//!
//! The kernel's filter lets only ARP and UDP to port 68 through, so that boot files in transit cost nothing here.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::Ipv4Addr,
    os::fd::IntoRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use muster_proto::Mac;
use pnet::{
    datalink::{self, Channel, ChannelType, DataLinkReceiver, DataLinkSender, NetworkInterface},
    packet::{
        MutablePacket, Packet,
        arp::{ArpHardwareTypes, ArpOperations, ArpPacket, MutableArpPacket},
        ethernet::{EtherType, EtherTypes, EthernetPacket, MutableEthernetPacket},
        ip::IpNextHeaderProtocols,
        ipv4::Ipv4Packet,
        udp::UdpPacket,
    },
    util::MacAddr,
};
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::sync::{mpsc, oneshot};

use super::rogue::Answer;
use crate::sync::lock;

/// How long we listen for somebody who uses an address.
const PATIENCE: Duration = Duration::from_millis(80);
/// How often the reading thread looks whether it is to end.
const TICK: Duration = Duration::from_millis(250);
/// Ethernet header and ARP body (RFC 826).
const ARP_FRAME: usize = 14 + 28;

/// The frames of an interface cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum FramesError {
    /// The interface is gone.
    #[error("no interface {0}")]
    NoInterface(String),
    /// It is no Ethernet.
    #[error("interface {0} has no MAC address")]
    NoMac(String),
    /// No packet socket; it takes CAP_NET_RAW.
    #[error("open a packet socket on {interface}")]
    Open {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The frames of one interface; the reading thread ends when this is dropped.
pub(super) struct Frames {
    own: Mac,
    sender: Mutex<Box<dyn DataLinkSender>>,
    waiting: Arc<Waiting>,
    ended: Arc<AtomicBool>,
}

impl std::fmt::Debug for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frames")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

/// Who waits for an ARP reply from which address: one address may be probed for several machines at once.
type Waiting = Mutex<HashMap<Ipv4Addr, Vec<oneshot::Sender<Mac>>>>;

impl Frames {
    /// Opens `interface`; what other servers answer there goes to `answers`.
    pub(super) fn open(interface: &str, answers: &mpsc::Sender<Answer>) -> Result<Frames, FramesError> {
        let link = datalink::interfaces()
            .into_iter()
            .find(|link| link.name == interface)
            .ok_or_else(|| FramesError::NoInterface(interface.to_owned()))?;
        let own = link
            .mac
            .map(|mac| Mac(mac.octets()))
            .ok_or_else(|| FramesError::NoMac(interface.to_owned()))?;
        let failed = |source| FramesError::Open {
            interface: interface.to_owned(),
            source,
        };
        let (sender, arp) = channel(&link, EtherTypes::Arp).map_err(failed)?;
        let (_, ip) = channel(&link, EtherTypes::Ipv4).map_err(failed)?;
        let waiting = Arc::new(Waiting::default());
        let ended = Arc::new(AtomicBool::new(false));
        for receiver in [arp, ip] {
            let reader = Reader {
                own,
                receiver,
                waiting: waiting.clone(),
                ended: ended.clone(),
                answers: answers.clone(),
            };
            std::thread::Builder::new()
                .name(format!("frames-{interface}"))
                .spawn(move || reader.run())
                .map_err(failed)?;
        }
        Ok(Frames {
            own,
            sender: Mutex::new(sender),
            waiting,
            ended,
        })
    }

    /// Asks who uses `address` (RFC 5227, 2.1.1); none if nobody answers in time.
    pub(super) async fn probe(&self, address: Ipv4Addr) -> io::Result<Option<Mac>> {
        let (found, answer) = oneshot::channel();
        lock(&self.waiting).entry(address).or_default().push(found);
        let sent = lock(&self.sender).send_to(&arp_probe(self.own, address), None);
        let sent = sent.unwrap_or_else(|| Err(io::ErrorKind::Unsupported.into()));
        let found = match &sent {
            Ok(()) => tokio::time::timeout(PATIENCE, answer).await.ok(),
            Err(_) => {
                drop(answer);
                None
            }
        };
        let mut waiting = lock(&self.waiting);
        if let Entry::Occupied(mut of) = waiting.entry(address) {
            of.get_mut().retain(|other| !other.is_closed());
            if of.get().is_empty() {
                of.remove();
            }
        }
        sent.map(|()| found.and_then(Result::ok))
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// A raw channel for frames of one type, behind a kernel filter. The filter stands before the socket is bound, so that nothing slips
/// in before it. A socket for frames of every type would be given a copy of every frame that leaves, too, boot files included.
fn channel(
    link: &NetworkInterface,
    frames: EtherType,
) -> io::Result<(Box<dyn DataLinkSender>, Box<dyn DataLinkReceiver>)> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.attach_filter(&filter())?;
    let config = datalink::Config {
        read_timeout: Some(TICK),
        write_timeout: Some(TICK),
        promiscuous: false,
        // Binds to this type alone; the socket is a raw one all the same.
        channel_type: ChannelType::Layer3(frames.0),
        socket_fd: Some(socket.into_raw_fd()),
        ..datalink::Config::default()
    };
    match datalink::channel(link, config)? {
        Channel::Ethernet(sender, receiver) => Ok((sender, receiver)),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Classic BPF: ARP, or an unfragmented IPv4 packet with UDP to port 68.
fn filter() -> [SockFilter; 12] {
    // Opcodes of linux/bpf_common.h: LD|ABS of a half word or byte, JEQ and JSET with a constant, LDX 4*([k]&0xf), LD|IND, RET.
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const IF_EQUAL: u16 = 0x15;
    const IF_SET: u16 = 0x45;
    const HEADER_LENGTH: u16 = 0xb1;
    const LOAD_HALF_AFTER: u16 = 0x48;
    const RETURN: u16 = 0x06;
    let at = SockFilter::new;
    [
        at(LOAD_HALF, 0, 0, 12),
        at(IF_EQUAL, 8, 0, 0x0806),
        at(IF_EQUAL, 0, 8, 0x0800),
        at(LOAD_BYTE, 0, 0, 23),
        at(IF_EQUAL, 0, 6, 17),
        at(LOAD_HALF, 0, 0, 20),
        at(IF_SET, 4, 0, 0x1fff),
        at(HEADER_LENGTH, 0, 0, 14),
        at(LOAD_HALF_AFTER, 0, 0, 16),
        at(IF_EQUAL, 0, 1, 68),
        at(RETURN, 0, 0, 0xffff),
        at(RETURN, 0, 0, 0),
    ]
}

fn arp_probe(own: Mac, address: Ipv4Addr) -> [u8; ARP_FRAME] {
    let mut bytes = [0; ARP_FRAME];
    let [a, b, c, d, e, f] = own.0;
    let source = MacAddr::new(a, b, c, d, e, f);
    let mut frame = MutableEthernetPacket::new(&mut bytes).expect("the buffer holds the header");
    frame.set_destination(MacAddr::broadcast());
    frame.set_source(source);
    frame.set_ethertype(EtherTypes::Arp);
    let mut arp = MutableArpPacket::new(frame.payload_mut()).expect("the buffer holds the body");
    arp.set_hardware_type(ArpHardwareTypes::Ethernet);
    arp.set_protocol_type(EtherTypes::Ipv4);
    arp.set_hw_addr_len(6);
    arp.set_proto_addr_len(4);
    arp.set_operation(ArpOperations::Request);
    arp.set_sender_hw_addr(source);
    // A probe names no sender address, so that it changes nobody's ARP table.
    arp.set_sender_proto_addr(Ipv4Addr::UNSPECIFIED);
    arp.set_target_proto_addr(address);
    bytes
}

/// What a frame tells us.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// This machine uses this address.
    Arp(Ipv4Addr, Mac),
    /// A DHCP server answered a client.
    Dhcp(Answer),
}

fn hear(frame: &[u8]) -> Option<Heard> {
    let frame = EthernetPacket::new(frame)?;
    let source = Mac(frame.get_source().octets());
    match frame.get_ethertype() {
        EtherTypes::Arp => {
            let arp = ArpPacket::new(frame.payload())?;
            let address = arp.get_sender_proto_addr();
            (arp.get_protocol_type() == EtherTypes::Ipv4 && !address.is_unspecified())
                .then(|| Heard::Arp(address, Mac(arp.get_sender_hw_addr().octets())))
        }
        EtherTypes::Ipv4 => {
            let packet = Ipv4Packet::new(frame.payload())?;
            if packet.get_next_level_protocol() != IpNextHeaderProtocols::Udp {
                return None;
            }
            // The crate's own `payload` trusts the header's length fields.
            let start = usize::from(packet.get_header_length()) * 4;
            let udp = UdpPacket::new(frame.payload().get(start..)?)?;
            let message = frame.payload().get(start + 8..)?;
            (udp.get_destination() == 68)
                .then(|| Answer::read(message, packet.get_source(), source))
                .flatten()
                .map(Heard::Dhcp)
        }
        _ => None,
    }
}

struct Reader {
    own: Mac,
    receiver: Box<dyn DataLinkReceiver>,
    waiting: Arc<Waiting>,
    ended: Arc<AtomicBool>,
    answers: mpsc::Sender<Answer>,
}

impl Reader {
    fn run(mut self) {
        while !self.ended.load(Ordering::Relaxed) {
            match self.receiver.next() {
                Ok(frame) => match hear(frame) {
                    Some(Heard::Arp(address, mac)) if mac != self.own => {
                        let waiting = lock(&self.waiting).remove(&address);
                        for found in waiting.into_iter().flatten() {
                            // The prober may have given up in this moment.
                            let _ = found.send(mac);
                        }
                    }
                    Some(Heard::Dhcp(answer)) if answer.mac != self.own => {
                        // Reports are for people: with the queue full there are enough of them.
                        let _ = self.answers.try_send(answer);
                    }
                    _ => {}
                },
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The interface went down or away; wait, and be opened anew when it is back.
                    tracing::debug!(%error, "reading frames");
                    std::thread::sleep(TICK);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_probe_names_no_sender_and_is_heard_from_nobody() {
        let own = Mac([0x52, 0x54, 0, 0, 0, 1]);
        let frame = arp_probe(own, Ipv4Addr::new(10, 77, 0, 9));
        assert_eq!(
            frame[..12],
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 1]
        );
        assert_eq!(frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[28..42], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 77, 0, 9]);
        assert_eq!(hear(&frame), None);
    }

    #[test]
    fn an_arp_reply_tells_who_uses_the_address() {
        let mut frame = arp_probe(Mac([0x52, 0x54, 0, 0, 0, 2]), Ipv4Addr::new(10, 77, 0, 1));
        frame[21] = 2;
        frame[28..32].copy_from_slice(&[10, 77, 0, 9]);
        assert_eq!(
            hear(&frame),
            Some(Heard::Arp(
                Ipv4Addr::new(10, 77, 0, 9),
                Mac([0x52, 0x54, 0, 0, 0, 2])
            ))
        );
    }

    proptest! {
        #[test]
        fn random_frames_never_panic(mut frame: Vec<u8>, kind in 0_usize..3, options: Vec<u8>) {
            if frame.len() >= 34 && kind > 0 {
                frame[12..14].copy_from_slice(if kind == 1 { &[8, 0] } else { &[8, 6] });
                frame[23] = 17;
            }
            frame.extend(options);
            let _ = hear(&frame);
        }
    }
}
