//! DHCPv4 on the wire (RFC 2131, 2132, 3046, 3396, 4578): a request as plain data, and a reply as bytes.
//!
//! Written here and not taken from a crate because a server must be lenient with the options that it does not read (a host name
//! that is no UTF-8 must not hide the architecture behind it), must give option 82 back byte for byte (RFC 3046, 2.2),
//! and must keep a reply within what the client can take. The tests read our replies with an independent decoder.

use std::{collections::BTreeMap, net::Ipv4Addr};

use muster_proto::{Mac, text};

#[cfg(test)]
mod tests;

/// The fixed part of a message and the magic cookie (RFC 2131, figure 1).
const HEADER: usize = 240;
/// The fixed part's `sname` and `file`.
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// IPv4 and UDP headers, which the maximum message size (option 57) counts.
const IP_UDP: usize = 28;
/// What every client takes, as an IP datagram (RFC 2131, 2).
const MIN_DATAGRAM: usize = 576;
/// What an Ethernet frame holds.
const MAX_DATAGRAM: usize = 1500;
/// The shortest reply: some BOOTP relays and old ROMs drop less (RFC 1542, 2.1).
const MIN_REPLY: usize = 300;

/// Message type (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A client looks for servers.
    Discover,
    /// A server's proposal.
    Offer,
    /// A client takes a proposal, or asks to keep an address.
    Request,
    /// A client found the address in use.
    Decline,
    /// Yes.
    Ack,
    /// No.
    Nak,
    /// A client gives its address back.
    Release,
    /// A client with an address asks for the rest.
    Inform,
}

impl Kind {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Kind> {
        (0..=u8::MAX).filter_map(Kind::of)
    }

    fn of(code: u8) -> Option<Kind> {
        Some(match code {
            1 => Kind::Discover,
            2 => Kind::Offer,
            3 => Kind::Request,
            4 => Kind::Decline,
            5 => Kind::Ack,
            6 => Kind::Nak,
            7 => Kind::Release,
            8 => Kind::Inform,
            _ => return None,
        })
    }

    fn code(self) -> u8 {
        match self {
            Kind::Discover => 1,
            Kind::Offer => 2,
            Kind::Request => 3,
            Kind::Decline => 4,
            Kind::Ack => 5,
            Kind::Nak => 6,
            Kind::Release => 7,
            Kind::Inform => 8,
        }
    }

    /// Its name as metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Discover => "discover",
            Kind::Offer => "offer",
            Kind::Request => "request",
            Kind::Decline => "decline",
            Kind::Ack => "ack",
            Kind::Nak => "nak",
            Kind::Release => "release",
            Kind::Inform => "inform",
        }
    }
}

/// What a client sent, as far as we look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Option 53.
    pub kind: Kind,
    /// Chosen by the client, given back.
    pub xid: u32,
    /// Flags, given back; the top bit asks for broadcast.
    pub flags: u16,
    /// The address that the client has, or 0.0.0.0.
    pub ciaddr: Ipv4Addr,
    /// The relay agent's address, or 0.0.0.0.
    pub giaddr: Ipv4Addr,
    /// `chaddr`: who asks.
    pub mac: Mac,
    /// Option 12, cleaned.
    pub host_name: Option<String>,
    /// Option 50.
    pub wanted: Option<Ipv4Addr>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// Option 57, an IP datagram's size in bytes.
    pub max_size: Option<u16>,
    /// Option 61 as it came, given back (RFC 6842, 3).
    pub client_id: Option<Vec<u8>>,
    /// Option 60: `PXEClient…`, `HTTPClient…`, `muster-agent`.
    pub class: Vec<u8>,
    /// iPXE: says so in option 77, or has its own option 175 and is not what it was made of, gPXE.
    pub ipxe: bool,
    /// What iPXE says in option 175 that it was built with, by numbers of `ipxe/features.h`; empty where it says nothing of that.
    pub features: Vec<u8>,
    /// Option 82 as it came.
    pub relay_information: Option<Vec<u8>>,
    /// Option 93, else what option 60 says after `Arch:`.
    pub architectures: Vec<u16>,
    /// Option 97 as it came.
    pub machine_id: Option<Vec<u8>>,
}

/// Why bytes are no request of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than the fixed part.
    #[error("shorter than a DHCP header")]
    Short,
    /// `op` is not BOOTREQUEST.
    #[error("not a request")]
    NotRequest,
    /// `htype`, `hlen` or `chaddr`.
    #[error("no Ethernet address of one interface")]
    Hardware,
    /// BOOTP without the magic cookie.
    #[error("no DHCP magic cookie")]
    Cookie,
    /// An option's length leads outside.
    #[error("an option runs past the end")]
    Truncated,
    /// Option 53 is missing or none that a client sends.
    #[error("no message type of a client")]
    Type,
}

/// All options of a message by code, repeated ones joined (RFC 3396).
#[derive(Debug, Default)]
pub(super) struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    /// From a whole message, `file` and `sname` included where option 52 says so.
    pub(super) fn read(message: &[u8]) -> Result<Options, Malformed> {
        let area = message.get(HEADER..).ok_or(Malformed::Short)?;
        let mut options = Options::default();
        options.take(area)?;
        // RFC 2132, 9.3: 1 file, 2 sname, 3 both; RFC 3396, 5: in this order.
        let overload = options
            .get(52)
            .and_then(|value| value.first().copied())
            .unwrap_or(0);
        for (bit, field) in [(1, FILE), (2, SNAME)] {
            if overload & bit != 0 {
                options.take(&message[field])?;
            }
        }
        Ok(options)
    }

    fn take(&mut self, mut area: &[u8]) -> Result<(), Malformed> {
        loop {
            match area {
                // A missing end option is forgiven: some ROMs fill the packet to the brim.
                [] | [255, ..] => return Ok(()),
                [0, rest @ ..] => area = rest,
                [code, length, rest @ ..] if rest.len() >= usize::from(*length) => {
                    let (value, rest) = rest.split_at(usize::from(*length));
                    self.0.entry(*code).or_default().extend_from_slice(value);
                    area = rest;
                }
                _ => return Err(Malformed::Truncated),
            }
        }
    }

    pub(super) fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    pub(super) fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = self.get(code)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        self.get(53)
            .and_then(|value| value.first())
            .and_then(|code| Kind::of(*code))
    }

    fn short(&self, code: u8) -> Option<u16> {
        let bytes: [u8; 2] = self.get(code)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    }
}

/// Four bytes of the fixed part as an address; the caller has checked that the fixed part is there.
pub(super) fn address_at(message: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(message[at], message[at + 1], message[at + 2], message[at + 3])
}

impl Request {
    /// Reads a UDP payload.
    pub fn parse(message: &[u8]) -> Result<Request, Malformed> {
        if message.len() < HEADER {
            return Err(Malformed::Short);
        }
        if message[0] != 1 {
            return Err(Malformed::NotRequest);
        }
        let mut mac = [0; 6];
        mac.copy_from_slice(&message[28..34]);
        let mac = Mac(mac);
        if message[1] != 1 || message[2] != 6 || !mac.is_unicast() {
            return Err(Malformed::Hardware);
        }
        if message[236..240] != COOKIE {
            return Err(Malformed::Cookie);
        }
        let options = Options::read(message)?;
        let kind = options
            .kind()
            .filter(|kind| !matches!(kind, Kind::Offer | Kind::Ack | Kind::Nak))
            .ok_or(Malformed::Type)?;
        let class = options.get(60).unwrap_or_default().to_vec();
        Ok(Request {
            kind,
            xid: u32::from_be_bytes([message[4], message[5], message[6], message[7]]),
            flags: u16::from_be_bytes([message[10], message[11]]),
            ciaddr: address_at(message, 12),
            giaddr: address_at(message, 24),
            mac,
            host_name: options.get(12).map(text::clean).filter(|name| !name.is_empty()),
            wanted: options.address(50).filter(|address| !address.is_unspecified()),
            server: options.address(54).filter(|address| !address.is_unspecified()),
            max_size: options.short(57),
            client_id: options.get(61).map(<[u8]>::to_vec),
            ipxe: match options.get(77) {
                Some(class) if is_of(class, b"gPXE") => false,
                Some(class) if is_of(class, b"iPXE") => true,
                _ => options.get(175).is_some(),
            },
            features: options.get(175).map(features).unwrap_or_default(),
            relay_information: options.get(82).map(<[u8]>::to_vec),
            architectures: architectures(options.get(93), &class),
            machine_id: options.get(97).map(<[u8]>::to_vec),
            class,
        })
    }

    /// The SMBIOS UUID as `/sys/class/dmi/id/product_uuid` has it, lower case; none where the firmware's is a placeholder.
    ///
    /// RFC 4578, 2.3: type 0 and 16 bytes. Firmware sends them as SMBIOS stores them (7.2.1): the first three fields little-endian.
    pub fn uuid(&self) -> Option<String> {
        let bytes: [u8; 17] = self.machine_id.as_deref()?.try_into().ok()?;
        let [0, a, b, c, d, e, f, g, h, rest @ ..] = bytes else {
            return None;
        };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        text::usable_uuid(&format!(
            "{}-{}-{}-{}-{}",
            hex(&[d, c, b, a]),
            hex(&[f, e]),
            hex(&[h, g]),
            hex(&rest[..2]),
            hex(&rest[2..])
        ))
    }
}

/// Option 77 has this word: iPXE sends it bare, RFC 3004 wants a list of length-prefixed ones.
fn is_of(class: &[u8], wanted: &[u8]) -> bool {
    if class == wanted {
        return true;
    }
    let mut rest = class;
    while let [length, tail @ ..] = rest {
        let Some((word, tail)) = tail.split_at_checked(usize::from(*length)) else {
            return false;
        };
        if word == wanted {
            return true;
        }
        rest = tail;
    }
    false
}

/// The features among the options that option 175 holds: 0x10 to 0x7f (`ipxe/features.h`). What cannot be read says nothing of any.
fn features(option: &[u8]) -> Vec<u8> {
    let mut inner = Options::default();
    match inner.take(option) {
        Ok(()) => inner
            .0
            .into_keys()
            .filter(|code| (0x10..0x80).contains(code))
            .collect(),
        Err(_) => Vec::new(),
    }
}

/// Option 93, a list of 16-bit numbers (RFC 4578, 2.1); ROMs that leave it out say `PXEClient:Arch:00007:UNDI:…`.
fn architectures(option: Option<&[u8]>, class: &[u8]) -> Vec<u16> {
    if let Some(list) = option {
        return list
            .chunks_exact(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
            .collect();
    }
    let mut words = class
        .split(|byte| *byte == b':')
        .skip_while(|word| *word != b"Arch");
    words
        .nth(1)
        .and_then(|digits| str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse().ok())
        .into_iter()
        .collect()
}

/// What we send back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Offer, Ack or Nak.
    pub kind: Kind,
    /// The address given, or 0.0.0.0.
    pub yiaddr: Ipv4Addr,
    /// The next server: where the boot file is.
    pub siaddr: Ipv4Addr,
    /// The boot file's name or URL; it also goes into the fixed part if it fits there.
    pub file: Option<String>,
    /// Without these the reply is useless: it is not sent if they do not fit.
    pub required: Vec<(u8, Vec<u8>)>,
    /// These are left out from the first that does not fit.
    pub optional: Vec<(u8, Vec<u8>)>,
}

impl Reply {
    /// As a UDP payload that `to` can take; none if the required options do not fit.
    ///
    /// The relay information comes on top, because the relay agent takes it off again before the client sees the reply.
    pub fn encode(&self, to: &Request) -> Option<Vec<u8>> {
        let room = usize::from(to.max_size.unwrap_or(0)).clamp(MIN_DATAGRAM, MAX_DATAGRAM) - IP_UDP;
        let mut out = self.header(to);
        option(&mut out, 53, &[self.kind.code()]);
        for (code, value) in &self.required {
            if value.len() > 255 {
                return None;
            }
            option(&mut out, *code, value);
        }
        if out.len() >= room {
            return None;
        }
        let client_id = to.client_id.iter().map(|id| (&61, id));
        let optional = self.optional.iter().map(|(code, value)| (code, value));
        for (code, value) in client_id.chain(optional) {
            if value.is_empty() || value.len() > 255 || out.len() + 2 + value.len() >= room {
                continue;
            }
            option(&mut out, *code, value);
        }
        if let Some(relay) = &to.relay_information
            && out.len() + relay.len() + 2 * relay.len().div_ceil(255) < MAX_DATAGRAM - IP_UDP
        {
            for part in relay.chunks(255) {
                option(&mut out, 82, part);
            }
        }
        out.push(255);
        out.resize(out.len().max(MIN_REPLY), 0);
        Some(out)
    }

    fn header(&self, to: &Request) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        out[0] = 2;
        out[1] = 1;
        out[2] = 6;
        out[4..8].copy_from_slice(&to.xid.to_be_bytes());
        // RFC 2131, 4.3.2: a relayed NAK must be broadcast, for the client's address is wrong.
        let broadcast = if self.kind == Kind::Nak { 0x8000 } else { 0 };
        out[10..12].copy_from_slice(&(to.flags | broadcast).to_be_bytes());
        // RFC 2131, table 3.
        if matches!(self.kind, Kind::Ack) {
            out[12..16].copy_from_slice(&to.ciaddr.octets());
        }
        out[16..20].copy_from_slice(&self.yiaddr.octets());
        out[20..24].copy_from_slice(&self.siaddr.octets());
        out[24..28].copy_from_slice(&to.giaddr.octets());
        out[28..34].copy_from_slice(&to.mac.0);
        if let Some(file) = self.file.as_deref().filter(|file| file.len() < FILE.len()) {
            out[FILE.start..FILE.start + file.len()].copy_from_slice(file.as_bytes());
        }
        out[236..240].copy_from_slice(&COOKIE);
        out
    }
}

/// Appends one option; the caller has checked that `value` is at most 255 bytes long.
fn option(out: &mut Vec<u8>, code: u8, value: &[u8]) {
    let length = u8::try_from(value.len()).expect("callers pass at most 255 bytes");
    out.push(code);
    out.push(length);
    out.extend_from_slice(value);
}
