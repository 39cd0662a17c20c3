//! Rtnetlink messages (`rtnetlink(7)`, `include/uapi/linux/rtnetlink.h`): only what a client of DHCP needs.

use std::{io, net::Ipv4Addr, os::fd::AsRawFd, os::fd::OwnedFd};

use muster_proto::Mac;
use nix::{
    libc,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
        socket, sockopt::RcvBuf,
    },
};

/// `sizeof(struct nlmsghdr)`
const HEADER: usize = 16;

/// Enough for any link's message, in bytes (`NLMSG_GOODSIZE` and statistics).
pub const DATAGRAM: usize = 64 << 10;

/// The gateway is on the link whatever the addresses say (`RTNH_F_ONLINK`, `include/uapi/linux/rtnetlink.h`).
const ONLINK: u32 = 4;

/// Who made the route, for people who list them (same file).
const RTPROT_DHCP: u8 = 16;

/// What the kernel says of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Kernel name, such as `eth0`.
    pub name: String,
    /// The address in use; none if it is no Ethernet interface.
    pub mac: Option<Mac>,
    /// Switched on by us.
    pub up: bool,
    /// The other end is there.
    pub carrier: bool,
}

/// What a datagram of the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A link is like this now.
    Link(Link),
    /// The link with this index is gone.
    Gone(u32),
    /// The request ended: 0, or an errno.
    Ended(i32),
}

/// A request in the making.
#[derive(Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// A message of `kind` with `flags` beside `NLM_F_REQUEST`.
    fn new(kind: u16, flags: libc::c_int) -> Request {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).expect("netlink flags have 16 bits");
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Request(bytes)
    }

    /// Asks for all links; answered by [`Said::Link`]s.
    pub fn list_links() -> Request {
        Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP).fixed(&link_header(0, 0, 0))
    }

    /// Switches a link on.
    pub fn switch_on(index: u32) -> Request {
        let up = u32::try_from(libc::IFF_UP).expect("a flag is positive");
        Request::new(libc::RTM_NEWLINK, libc::NLM_F_ACK).fixed(&link_header(index, up, up))
    }

    /// Sets a link's MTU in bytes.
    pub fn set_mtu(index: u32, mtu: u16) -> Request {
        Request::new(libc::RTM_NEWLINK, libc::NLM_F_ACK)
            .fixed(&link_header(index, 0, 0))
            .attribute(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes())
    }

    /// Gives a link an address; routes to its own network take `metric`.
    pub fn add_address(index: u32, address: Ipv4Addr, prefix: u8, metric: u32) -> Request {
        /// `IFA_RT_PRIORITY`, `include/uapi/linux/if_addr.h`
        const METRIC: u16 = 9;
        let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        let broadcast = Ipv4Addr::from(u32::from(address) | host_bits);
        Request::new(
            libc::RTM_NEWADDR,
            libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
        )
        .fixed(&address_header(index, prefix))
        .attribute(libc::IFA_LOCAL, &address.octets())
        .attribute(libc::IFA_ADDRESS, &address.octets())
        .attribute(libc::IFA_BROADCAST, &broadcast.octets())
        .attribute(METRIC, &metric.to_ne_bytes())
    }

    /// Takes an address from a link, and with it the routes that start there.
    pub fn remove_address(index: u32, address: Ipv4Addr, prefix: u8) -> Request {
        Request::new(libc::RTM_DELADDR, libc::NLM_F_ACK)
            .fixed(&address_header(index, prefix))
            .attribute(libc::IFA_LOCAL, &address.octets())
    }

    /// Reaches `destination`/`prefix` from address `source` over `gateway`, or directly if that is unspecified.
    pub fn add_route(index: u32, source: Ipv4Addr, route: super::Route, metric: u32) -> Request {
        let direct = route.gateway.is_unspecified();
        let scope = if direct {
            libc::RT_SCOPE_LINK
        } else {
            libc::RT_SCOPE_UNIVERSE
        };
        // A gateway outside the own network is legal with /32 leases.
        let flags = if direct { 0 } else { ONLINK };
        let mut header = vec![
            byte(libc::AF_INET),
            route.prefix,
            0,
            0,
            libc::RT_TABLE_MAIN,
            RTPROT_DHCP,
            scope,
            libc::RTN_UNICAST,
        ];
        header.extend(flags.to_ne_bytes());
        let request = Request::new(
            libc::RTM_NEWROUTE,
            libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
        )
        .fixed(&header)
        .attribute(libc::RTA_DST, &route.destination.octets())
        .attribute(libc::RTA_OIF, &index.to_ne_bytes())
        .attribute(libc::RTA_PREFSRC, &source.octets())
        .attribute(libc::RTA_PRIORITY, &metric.to_ne_bytes());
        if direct {
            request
        } else {
            request.attribute(libc::RTA_GATEWAY, &route.gateway.octets())
        }
    }

    fn fixed(mut self, header: &[u8]) -> Request {
        self.0.extend_from_slice(header);
        self.pad();
        self
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Request {
        let length = u16::try_from(value.len() + 4).expect("attributes are a few bytes");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// The bytes to send.
    pub fn bytes(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("requests are a few hundred bytes");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// `struct ifinfomsg`
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// `struct ifaddrmsg`
fn address_header(index: u32, prefix: u8) -> [u8; 8] {
    let mut header = [
        byte(libc::AF_INET),
        prefix,
        0,
        libc::RT_SCOPE_UNIVERSE,
        0,
        0,
        0,
        0,
    ];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    header
}

fn byte(family: libc::c_int) -> u8 {
    u8::try_from(family).expect("address families fit a byte")
}

/// Everything that one datagram says; what cannot be understood is passed over.
pub fn parse(datagram: &[u8]) -> Vec<Said> {
    let mut said = Vec::new();
    let mut rest = datagram;
    while let Some(length) = word(rest, 0) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let (Some(kind), Some(payload)) = (half(rest, 4), rest.get(HEADER..length)) else {
            break;
        };
        match i32::from(kind) {
            libc::NLMSG_ERROR => {
                let errno =
                    word(payload, 0).map_or(libc::EBADMSG, |word| word.cast_signed().saturating_neg());
                said.push(Said::Ended(errno));
            }
            libc::NLMSG_DONE => said.push(Said::Ended(0)),
            _ if kind == libc::RTM_NEWLINK => said.extend(link(payload).map(Said::Link)),
            _ if kind == libc::RTM_DELLINK => said.extend(word(payload, 4).map(Said::Gone)),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    said
}

fn link(payload: &[u8]) -> Option<Link> {
    let flags = word(payload, 8)?.cast_signed();
    // LOWER_UP, not RUNNING: that one follows up to a second later, although packets already go through (net/core/link_watch.c).
    let ethernet = half(payload, 2)? == libc::ARPHRD_ETHER;
    let mut link = Link {
        index: word(payload, 4)?,
        up: flags & libc::IFF_UP != 0,
        carrier: flags & libc::IFF_LOWER_UP != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => {
                link.name =
                    muster_proto::text::clean(value.split(|byte| *byte == 0).next().unwrap_or_default());
            }
            libc::IFLA_ADDRESS if ethernet => link.mac = value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(link)
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(rest, 0)?);
        let (kind, value) = (half(rest, 2)?, rest.get(4..length)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// An rtnetlink socket that hears of `groups` (0 for none).
///
/// # Errors
/// As `socket(2)` and `bind(2)`.
pub fn open(groups: libc::c_int, flags: SockFlag) -> io::Result<OwnedFd> {
    let groups = u32::try_from(groups).unwrap_or(0);
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags | SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    _ = setsockopt(&fd, RcvBuf, &(1 << 20));
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// Carries out one request. The kernel does so before `send` returns; switching a link on may take its driver seconds.
///
/// # Errors
/// What the kernel answers.
pub fn ask(request: Request) -> io::Result<()> {
    let fd = open(0, SockFlag::empty())?;
    send(fd.as_raw_fd(), &request.bytes(), MsgFlags::empty())?;
    let mut datagram = vec![0; DATAGRAM];
    loop {
        let length = recv(fd.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
        for said in parse(&datagram[..length]) {
            match said {
                Said::Ended(0) => return Ok(()),
                Said::Ended(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Said::Link(_) | Said::Gone(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_link_is_understood() {
        let mut header = link_header(3, (libc::IFF_UP | libc::IFF_LOWER_UP).cast_unsigned(), 0);
        header[2..4].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        let message = Request::new(libc::RTM_NEWLINK, 0)
            .fixed(&header)
            .attribute(libc::IFLA_IFNAME, b"eth0\0")
            .attribute(libc::IFLA_ADDRESS, &[0x52, 0x54, 0, 1, 2, 3]);
        let link = Link {
            index: 3,
            name: "eth0".to_owned(),
            mac: Some(Mac([0x52, 0x54, 0, 1, 2, 3])),
            up: true,
            carrier: true,
        };
        assert_eq!(parse(&message.bytes()), [Said::Link(link)]);
    }

    #[test]
    fn the_kernel_understands_our_requests() {
        let refused = |request| ask(request).unwrap_err().raw_os_error();
        // No interface has such an index; with rights the kernel says so, without it says EPERM first.
        for request in [
            Request::switch_on(i32::MAX as u32),
            Request::set_mtu(i32::MAX as u32, 1400),
            Request::add_address(i32::MAX as u32, Ipv4Addr::LOCALHOST, 8, 100),
        ] {
            assert!(matches!(refused(request), Some(libc::ENODEV | libc::EPERM)));
        }
        ask(Request::list_links()).unwrap();
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(datagram: Vec<u8>) {
            parse(&datagram);
        }

        #[test]
        fn broken_links_never_panic(mut payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            payload.splice(0..0, [0; 16]);
            payload[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
            let length = u32::try_from(payload.len()).unwrap();
            payload[..4].copy_from_slice(&length.to_ne_bytes());
            parse(&payload);
        }
    }
}
