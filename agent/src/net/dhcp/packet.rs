//! DHCPv4 messages of a client (RFC 2131, RFC 2132) to and from bytes.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use dhcproto::{
    Decodable, Decoder, Encodable, Encoder,
    v4::{DhcpOption, DhcpOptions, Message, MessageType, Opcode, OptionCode},
};
use muster_proto::{Mac, text};

use super::Lease;
use crate::net::Route;

/// By what a server can tell the agent from a firmware (option 60).
const CLASS: &[u8] = b"muster-agent";

/// Relays and old servers expect at least a BOOTP message, in bytes (RFC 1542, 2.1).
const SHORTEST: usize = 300;

/// Server addresses and routes that are kept of one reply, each.
const MOST: usize = 32;

/// What we want to know of a server.
const WANTED: [OptionCode; 9] = [
    OptionCode::SubnetMask,
    OptionCode::ClasslessStaticRoute,
    OptionCode::Router,
    OptionCode::DomainNameServer,
    OptionCode::Hostname,
    OptionCode::InterfaceMtu,
    OptionCode::AddressLeaseTime,
    OptionCode::Renewal,
    OptionCode::Rebinding,
];

/// Where the options begin: behind the BOOTP header and the magic cookie (RFC 2131, 3).
const OPTIONS: usize = 240;

/// What tells options from the older vendor field.
const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// What the client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Who is there? The address is the one held before, if any.
    Discover(Option<Ipv4Addr>),
    /// This address, from this server.
    Request {
        /// What was offered.
        address: Ipv4Addr,
        /// Who offered it.
        server: Ipv4Addr,
    },
    /// To keep the address in use.
    Renew(Ipv4Addr),
}

impl Ask {
    /// The address that whoever asks this has; unspecified without one.
    pub(super) fn own(self) -> Ipv4Addr {
        match self {
            Ask::Renew(address) => address,
            Ask::Discover(_) | Ask::Request { .. } => Ipv4Addr::UNSPECIFIED,
        }
    }
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// `DHCPOFFER`
    Offer(Lease),
    /// `DHCPACK`
    Ack(Lease),
    /// `DHCPNAK`
    Nak,
}

/// The message that asks, as transaction `xid`, `secs` seconds after the first try.
pub(super) fn encode(ask: Ask, mac: Mac, xid: u32, secs: u16) -> Vec<u8> {
    let mut options = DhcpOptions::new();
    options.insert(DhcpOption::MessageType(match ask {
        Ask::Discover(_) => MessageType::Discover,
        Ask::Request { .. } | Ask::Renew(_) => MessageType::Request,
    }));
    options.insert(DhcpOption::ClientIdentifier([&[1], &mac.0[..]].concat()));
    options.insert(DhcpOption::ClassIdentifier(CLASS.to_vec()));
    options.insert(DhcpOption::MaxMessageSize(1472));
    options.insert(DhcpOption::ParameterRequestList(WANTED.to_vec()));
    match ask {
        Ask::Discover(Some(address)) => _ = options.insert(DhcpOption::RequestedIpAddress(address)),
        Ask::Request { address, server } => {
            options.insert(DhcpOption::RequestedIpAddress(address));
            options.insert(DhcpOption::ServerIdentifier(server));
        }
        Ask::Discover(None) | Ask::Renew(_) => {}
    }
    let mut bytes = header(mac, xid, secs, ask.own());
    let mut text = Vec::new();
    options
        .encode(&mut Encoder::new(&mut text))
        .expect("writing into memory, with short options only");
    bytes.extend(text);
    bytes.resize(bytes.len().max(SHORTEST), 0);
    bytes
}

/// The BOOTP header and the cookie (RFC 2131, 2). Made here and not by the codec, which asks the kernel for a random number
/// with every message, and early in a boot the kernel lets one wait for that.
fn header(mac: Mac, xid: u32, secs: u16, own: Ipv4Addr) -> Vec<u8> {
    let mut header = vec![0; OPTIONS];
    // BOOTREQUEST, Ethernet, six bytes of address.
    header[..3].copy_from_slice(&[1, 1, 6]);
    header[4..8].copy_from_slice(&xid.to_be_bytes());
    header[8..10].copy_from_slice(&secs.to_be_bytes());
    if own.is_unspecified() {
        // Broadcast: we hear no unicast before the address is set.
        header[10] = 0x80;
    }
    header[12..16].copy_from_slice(&own.octets());
    header[28..34].copy_from_slice(&mac.0);
    header[OPTIONS - COOKIE.len()..].copy_from_slice(&COOKIE);
    header
}

/// The reply to transaction `xid` of `mac`; `None` for everything else.
pub(super) fn decode(bytes: &[u8], mac: Mac, xid: u32) -> Option<Reply> {
    let message = Message::decode(&mut Decoder::new(&without_strange_options(bytes)?)).ok()?;
    // `chaddr()` cuts by a length that the sender wrote.
    let ours = message.opcode() == Opcode::BootReply && message.xid() == xid && message.hlen() == 6;
    if !ours || message.chaddr() != mac.0 {
        return None;
    }
    match message.opts().msg_type()? {
        MessageType::Offer => lease(&message).map(Reply::Offer),
        MessageType::Ack => lease(&message).map(Reply::Ack),
        MessageType::Nak => Some(Reply::Nak),
        _ => None,
    }
}

/// The message with only the options that we read and that can be read each by itself: at one that it cannot read the decoder leaves out all
/// that follow it, and it trusts the lengths of some.
fn without_strange_options(bytes: &[u8]) -> Option<Vec<u8>> {
    const PAD: u8 = 0;
    const END: u8 = 255;
    let (header, mut rest) = bytes
        .split_at_checked(OPTIONS)
        .filter(|(header, _)| header.ends_with(&COOKIE))?;
    let mut all: BTreeMap<u8, Vec<&[u8]>> = BTreeMap::new();
    while let Some((&code, behind)) = rest.split_first() {
        match code {
            END => break,
            PAD => rest = behind,
            _ => {
                let (option, next) = rest.split_at_checked(2 + usize::from(*behind.first()?))?;
                all.entry(code).or_default().push(option);
                rest = next;
            }
        }
    }
    let ours = [OptionCode::MessageType, OptionCode::ServerIdentifier];
    let mut kept = header.to_vec();
    for code in WANTED.iter().chain(&ours) {
        let Some(parts) = all.get(&u8::from(*code)) else {
            continue;
        };
        // A long one comes in parts, wherever they stand (RFC 3396); others are said twice.
        let whole = parts.concat();
        let mut readings = std::iter::once(whole.as_slice()).chain(parts.iter().copied().rev());
        kept.extend_from_slice(readings.find(|option| is_whole(option)).unwrap_or_default());
    }
    kept.push(END);
    Some(kept)
}

/// True if `option`, with its code and length, in one part or several, is one that can be read.
fn is_whole(option: &[u8]) -> bool {
    let mut decoder = Decoder::new(option);
    DhcpOption::decode(&mut decoder).is_ok() && decoder.buffer().is_empty()
}

fn lease(message: &Message) -> Option<Lease> {
    let address = message.yiaddr();
    // A proxy DHCP server offers boot files without an address.
    if address.is_unspecified() || address.is_broadcast() || address.is_multicast() || address.is_loopback() {
        return None;
    }
    let option = |code| message.opts().get(code);
    let seconds = |code| match option(code) {
        Some(
            DhcpOption::AddressLeaseTime(seconds)
            | DhcpOption::Renewal(seconds)
            | DhcpOption::Rebinding(seconds),
        ) => Some(*seconds),
        _ => None,
    };
    let server = match option(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => *server,
        _ => message.siaddr(),
    };
    let prefix = match option(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => prefix(*mask)?,
        _ => class_prefix(address),
    };
    // All ones is for ever (RFC 2131, 3.3).
    let duration = seconds(OptionCode::AddressLeaseTime).filter(|seconds| *seconds != u32::MAX);
    let duration = duration.map(|seconds| Duration::from_secs(seconds.max(10).into()));
    let within = |code, share: f64| {
        let duration = duration.unwrap_or_default();
        let asked = seconds(code).map(|seconds| Duration::from_secs(seconds.into()));
        asked
            .filter(|asked| *asked < duration && !asked.is_zero())
            .unwrap_or(duration.mul_f64(share))
    };
    let rebind = within(OptionCode::Rebinding, 0.875);
    Some(Lease {
        address,
        prefix,
        server,
        routes: routes(message),
        name_servers: match option(OptionCode::DomainNameServer) {
            Some(DhcpOption::DomainNameServer(servers)) => servers.iter().copied().take(MOST).collect(),
            _ => Vec::new(),
        },
        mtu: match option(OptionCode::InterfaceMtu) {
            // Less than 576 an IPv4 host need not take (RFC 791); some servers send 0.
            Some(DhcpOption::InterfaceMtu(mtu)) => Some(*mtu).filter(|mtu| *mtu >= 576),
            _ => None,
        },
        hostname: match option(OptionCode::Hostname) {
            Some(DhcpOption::Hostname(name)) => text::clean(name.as_bytes()),
            _ => String::new(),
        },
        renew: within(OptionCode::Renewal, 0.5).min(rebind),
        rebind,
        duration,
    })
}

/// RFC 3442 routes replace the routers.
fn routes(message: &Message) -> Vec<Route> {
    if let Some(DhcpOption::ClasslessStaticRoute(routes)) =
        message.opts().get(OptionCode::ClasslessStaticRoute)
    {
        let known = routes.iter().take(MOST);
        return known
            .map(|(network, gateway)| Route {
                destination: network.network(),
                prefix: network.prefix_len(),
                gateway: *gateway,
            })
            .collect();
    }
    match message.opts().get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => {
            let gateway = routers.iter().find(|router| !router.is_unspecified());
            gateway
                .map(|gateway| Route::default_over(*gateway))
                .into_iter()
                .collect()
        }
        _ => Vec::new(),
    }
}

/// The length of a netmask; `None` if its ones are not in one row.
fn prefix(mask: Ipv4Addr) -> Option<u8> {
    let mask = u32::from(mask);
    let ones = mask.leading_ones();
    (mask.count_ones() == ones).then(|| u8::try_from(ones).expect("at most 32"))
}

/// Without a netmask: by the address's class (RFC 791).
fn class_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    /// What a server would answer.
    fn answer(kind: MessageType, options: Vec<DhcpOption>) -> Vec<u8> {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(7, none, [10, 77, 0, 12].into(), none, none, &MAC.0);
        message.set_opcode(Opcode::BootReply);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            message.opts_mut().insert(option);
        }
        message.to_vec().unwrap()
    }

    fn acknowledged(options: Vec<DhcpOption>) -> Lease {
        match decode(&answer(MessageType::Ack, options), MAC, 7) {
            Some(Reply::Ack(lease)) => lease,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_option_that_cannot_be_read_hides_none_that_follows() {
        let plain = answer(MessageType::Ack, vec![DhcpOption::AddressLeaseTime(3600)]);
        let (header, options) = plain.split_at(OPTIONS);
        // A name in Latin-1, and a netmask that is too short.
        for strange in [&[12, 2, b'k', 0xfc][..], &[1, 2, 255, 255]] {
            let bytes = [header, strange, &[0], options].concat();
            let Some(Reply::Ack(lease)) = decode(&bytes, MAC, 7) else {
                panic!("{strange:?}");
            };
            assert_eq!(lease.duration, Some(Duration::from_secs(3600)), "{strange:?}");
            assert_eq!(
                (lease.hostname.as_str(), lease.renew),
                ("", Duration::from_secs(1800))
            );
        }
        // In two parts, with others between them.
        let parts = [&[12, 2, b'r', b'a'][..], &[0, 43, 1, 9], &[12, 2, b'c', b'k']].concat();
        let Some(Reply::Ack(lease)) = decode(&[header, &parts, options].concat(), MAC, 7) else {
            panic!("in parts");
        };
        assert_eq!(lease.hostname, "rack");
        // Said twice.
        let twice = [54, 4, 10, 77, 0, 1, 43, 1, 9, 54, 4, 10, 77, 0, 1];
        let Some(Reply::Ack(lease)) = decode(&[header, &twice, options].concat(), MAC, 7) else {
            panic!("twice");
        };
        assert_eq!(lease.server, Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(lease.duration, Some(Duration::from_secs(3600)));
    }

    #[test]
    fn a_lease_holds_what_the_server_said() {
        let lease = acknowledged(vec![
            DhcpOption::ServerIdentifier([10, 77, 0, 1].into()),
            DhcpOption::SubnetMask([255, 255, 252, 0].into()),
            DhcpOption::Router(vec![[10, 77, 0, 254].into(), [10, 77, 0, 253].into()]),
            DhcpOption::DomainNameServer(vec![[10, 77, 0, 53].into()]),
            DhcpOption::Hostname("rack\u{1b}7".to_owned()),
            DhcpOption::InterfaceMtu(1400),
            DhcpOption::AddressLeaseTime(3600),
        ]);
        assert_eq!(
            lease,
            Lease {
                address: [10, 77, 0, 12].into(),
                prefix: 22,
                server: [10, 77, 0, 1].into(),
                routes: vec![Route::default_over([10, 77, 0, 254].into())],
                name_servers: vec![[10, 77, 0, 53].into()],
                mtu: Some(1400),
                hostname: "rack 7".to_owned(),
                renew: Duration::from_secs(1800),
                rebind: Duration::from_secs(3150),
                duration: Some(Duration::from_secs(3600)),
            }
        );
    }

    #[test]
    fn classless_routes_replace_the_router() {
        let lease = acknowledged(vec![
            DhcpOption::Router(vec![[10, 77, 0, 254].into()]),
            DhcpOption::ClasslessStaticRoute(vec![("10.9.0.0/16".parse().unwrap(), [10, 77, 0, 9].into())]),
        ]);
        let route = Route {
            destination: [10, 9, 0, 0].into(),
            prefix: 16,
            gateway: [10, 77, 0, 9].into(),
        };
        assert_eq!(lease.routes, [route]);
    }

    #[test]
    fn absurd_values_are_put_right() {
        let lease = acknowledged(vec![
            DhcpOption::InterfaceMtu(68),
            DhcpOption::AddressLeaseTime(100),
            DhcpOption::Renewal(200),
            DhcpOption::Rebinding(0),
        ]);
        assert_eq!((lease.mtu, lease.prefix), (None, 8));
        assert_eq!((lease.renew.as_secs(), lease.rebind.as_millis()), (50, 87_500));
        assert_eq!(
            acknowledged(vec![DhcpOption::AddressLeaseTime(u32::MAX)]).duration,
            None
        );
        let holes = answer(
            MessageType::Ack,
            vec![DhcpOption::SubnetMask([255, 0, 255, 0].into())],
        );
        assert_eq!(decode(&holes, MAC, 7), None);
    }

    #[test]
    fn the_answer_to_another_client_or_question_is_not_believed() {
        let bytes = answer(MessageType::Nak, vec![]);
        assert_eq!(decode(&bytes, MAC, 7), Some(Reply::Nak));
        assert_eq!(decode(&bytes, MAC, 8), None);
        assert_eq!(decode(&bytes, Mac([2; 6]), 7), None);
        assert_eq!(
            decode(&encode(Ask::Discover(None), MAC, 7, 0), MAC, 7),
            None,
            "our own echo"
        );
    }

    #[test]
    fn questions_say_who_asks_and_for_what() {
        let address = Ipv4Addr::new(10, 77, 0, 12);
        let server = Ipv4Addr::new(10, 77, 0, 1);
        for (ask, kind, own, broadcast) in [
            (Ask::Discover(Some(address)), MessageType::Discover, None, true),
            (Ask::Request { address, server }, MessageType::Request, None, true),
            (Ask::Renew(address), MessageType::Request, Some(address), false),
        ] {
            let bytes = encode(ask, MAC, 7, 3);
            assert!(bytes.len() >= SHORTEST);
            let message = Message::decode(&mut Decoder::new(&bytes)).unwrap();
            assert_eq!(message.opts().msg_type(), Some(kind));
            assert_eq!(
                (message.xid(), message.secs(), message.chaddr()),
                (7, 3, &MAC.0[..])
            );
            assert_eq!(message.flags().broadcast(), broadcast);
            assert_eq!(message.ciaddr(), own.unwrap_or(Ipv4Addr::UNSPECIFIED));
            let identifier = DhcpOption::ClientIdentifier(vec![1, 0x52, 0x54, 0, 0x12, 0x34, 0x56]);
            assert_eq!(
                message.opts().get(OptionCode::ClientIdentifier),
                Some(&identifier)
            );
            let asked = message.opts().get(OptionCode::RequestedIpAddress);
            assert_eq!(asked.is_some(), own.is_none(), "RFC 2131, table 5");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            decode(&bytes, MAC, 7);
        }

        #[test]
        fn broken_answers_never_panic(options in proptest::collection::vec(any::<u8>(), 0..300), hlen: u8) {
            let mut bytes = answer(MessageType::Ack, vec![]);
            bytes[2] = hlen;
            bytes.truncate(bytes.len() - 1);
            bytes.extend(options);
            decode(&bytes, MAC, 7);
        }
    }
}
