//! What `spec.bmc.address` of a BareMetalHost says, and which driver speaks it. Pure.
//!
//! `[SCHEME://]HOST[:PORT][/PATH][?QUERY]`, or `SCHEME:HOST…`; without a scheme it is IPMI. What is accepted here is what
//! `deploy/manifests/policies/host-bmc.yaml` accepts; `docs/validation.md` tells where that differs from upstream.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// The first word of an address, without `+http` or `+https`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// IPMI over LAN.
    Ipmi,
    /// IPMI of a virtual BMC; upstream's name for its own lab.
    Libvirt,
    /// Redfish, network boot.
    Redfish,
    /// Redfish, the ramdisk on virtual media.
    RedfishVirtualMedia,
    /// Redfish, the ramdisk by UEFI HTTP boot.
    RedfishUefiHttp,
    /// Dell's Redfish, network boot.
    IdracRedfish,
    /// Dell's Redfish, the ramdisk on virtual media.
    IdracVirtualMedia,
    /// HPE's Redfish, network boot.
    Ilo5Redfish,
    /// HPE's Redfish, the ramdisk on virtual media.
    Ilo5VirtualMedia,
}

impl Scheme {
    /// All that there are.
    pub const ALL: [Scheme; 9] = [
        Scheme::Ipmi,
        Scheme::Libvirt,
        Scheme::Redfish,
        Scheme::RedfishVirtualMedia,
        Scheme::RedfishUefiHttp,
        Scheme::IdracRedfish,
        Scheme::IdracVirtualMedia,
        Scheme::Ilo5Redfish,
        Scheme::Ilo5VirtualMedia,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Ipmi => "ipmi",
            Scheme::Libvirt => "libvirt",
            Scheme::Redfish => "redfish",
            Scheme::RedfishVirtualMedia => "redfish-virtualmedia",
            Scheme::RedfishUefiHttp => "redfish-uefihttp",
            Scheme::IdracRedfish => "idrac-redfish",
            Scheme::IdracVirtualMedia => "idrac-virtualmedia",
            Scheme::Ilo5Redfish => "ilo5-redfish",
            Scheme::Ilo5VirtualMedia => "ilo5-virtualmedia",
        }
    }

    /// What speaks to it here; nothing yet for IPMI.
    pub fn driver(self) -> Option<Driver> {
        match self {
            Scheme::Ipmi | Scheme::Libvirt => None,
            Scheme::Redfish
            | Scheme::RedfishVirtualMedia
            | Scheme::RedfishUefiHttp
            | Scheme::IdracRedfish
            | Scheme::IdracVirtualMedia
            | Scheme::Ilo5Redfish
            | Scheme::Ilo5VirtualMedia => Some(Driver::Redfish),
        }
    }
}

/// What speaks to BMCs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// [`super::redfish`]: power and boot device of the whole Redfish family.
    Redfish,
}

/// How bytes get to the BMC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// HTTP in TLS; the default of the Redfish family.
    Https,
    /// HTTP.
    Http,
    /// RMCP+ over UDP.
    Ipmi,
}

impl Transport {
    /// The port where none is written.
    pub fn port(self) -> u16 {
        match self {
            Transport::Https => 443,
            Transport::Http => 80,
            Transport::Ipmi => 623,
        }
    }
}

/// Where the BMC is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// By its address.
    Ip(IpAddr),
    /// By its DNS name, lower case.
    Name(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Place::Ip(ip) => ip.fmt(f),
            Place::Name(name) => f.write_str(name),
        }
    }
}

/// An address that was understood. It never holds credentials: what stands before an `@` is dropped, as upstream does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Which kind of BMC.
    pub scheme: Scheme,
    /// How it is reached.
    pub transport: Transport,
    /// Where it is.
    pub place: Place,
    /// Its port.
    pub port: u16,
    /// The path of the one system that is meant, as it goes on the wire; none if the BMC's only system is.
    pub system: Option<String>,
    /// What follows `?`, split and decoded, such as `privilegelevel` of IPMI.
    pub query: Vec<(String, String)>,
}

/// The text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is none.
    #[error("the BMC address is empty")]
    Empty,
    /// It is no URL.
    #[error(
        "the BMC address is not valid; write DRIVER://HOST[:PORT][/PATH], such as redfish://192.0.2.1/redfish/v1/Systems/1"
    )]
    Form,
    /// A driver that does not exist.
    #[error("the BMC address names the driver {0:?}, which does not exist")]
    Scheme(String),
    /// No host, or what is neither a DNS name nor an IP address.
    #[error(
        "the BMC address has the host {0:?}, which is neither a DNS name nor an IP address (IPv6 stands in brackets)"
    )]
    Host(String),
    /// A port beyond 65535, or what is no number.
    #[error("the BMC address has the port {0:?}, which is not between 0 and 65535")]
    Port(String),
}

/// There is no driver yet for a scheme that upstream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("BMC addresses of the scheme {} are understood, but there is no driver for them yet; use redfish if the BMC speaks it", .0.name())]
pub struct NoDriver(pub Scheme);

impl Address {
    /// What speaks to it.
    ///
    /// # Errors
    /// [`NoDriver`]: a host with such an address cannot be registered.
    pub fn driver(&self) -> Result<Driver, NoDriver> {
        self.scheme.driver().ok_or(NoDriver(self.scheme))
    }

    /// `HOST[:PORT]` as it stands in the header `Host` (RFC 9110 section 7.2): without the transport's own port.
    pub fn authority(&self) -> String {
        if self.port == self.transport.port() {
            self.place.to_string()
        } else {
            format!("{}:{}", self.place, self.port)
        }
    }
}

impl fmt::Display for Address {
    /// The canonical form, without a query.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = if self.transport == Transport::Http {
            "+http"
        } else {
            ""
        };
        let system = self.system.as_deref().unwrap_or_default();
        write!(f, "{}{plain}://{}{system}", self.scheme.name(), self.authority())
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        let url = whole(text)?;
        let (scheme, rest) = url.split_once(':').ok_or(AddressError::Form)?;
        if !is_scheme(scheme) {
            return Err(AddressError::Form);
        }
        let (scheme, transport) = scheme_of(scheme)?;
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let Some(rest) = rest.strip_prefix("//") else {
            return Err(AddressError::Host(String::new()));
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (place, port) = split_port(authority)?;
        Ok(Address {
            scheme,
            transport,
            place: place_of(place)?,
            port: if port.is_empty() {
                transport.port()
            } else {
                port_of(port)?
            },
            system: system_of(path)?,
            query: query_of(query),
        })
    }
}

/// `text` with a scheme and two slashes.
fn whole(text: &str) -> Result<String, AddressError> {
    if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return Err(AddressError::Form);
    }
    // As upstream, `[2001:db8::1]` alone is no address.
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if bracketed.is_some_and(|inner| !inner.contains(']')) {
        return Err(AddressError::Form);
    }
    let prefix = text.split_once(':').filter(|(scheme, _)| is_scheme(scheme));
    Ok(match prefix {
        _ if text.contains("://") => text.to_owned(),
        // `name:623` is the driver `name`, whereas `192.0.2.1:623` begins with no letter and is IPMI.
        Some((scheme, rest)) => format!("{scheme}://{rest}"),
        None => format!("{}://{text}", Scheme::Ipmi.name()),
    })
}

/// The grammar of a scheme (RFC 3986 section 3.1).
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte))
}

fn scheme_of(text: &str) -> Result<(Scheme, Transport), AddressError> {
    let text = text.to_ascii_lowercase();
    let (name, transport) = match text.split_once('+') {
        Some((name, "http")) => (name, Some(Transport::Http)),
        Some((name, "https")) => (name, Some(Transport::Https)),
        Some(_) => return Err(AddressError::Scheme(shown(&text))),
        None => (&*text, None),
    };
    let scheme = Scheme::ALL.into_iter().find(|scheme| scheme.name() == name);
    match (scheme, transport) {
        (Some(scheme @ (Scheme::Ipmi | Scheme::Libvirt)), None) => Ok((scheme, Transport::Ipmi)),
        (Some(Scheme::Ipmi | Scheme::Libvirt), Some(_)) | (None, _) => {
            Err(AddressError::Scheme(shown(&text)))
        }
        (Some(scheme), transport) => Ok((scheme, transport.unwrap_or(Transport::Https))),
    }
}

/// Host, still in its brackets, and port, empty if there is none.
fn split_port(authority: &str) -> Result<(&str, &str), AddressError> {
    let colon = match authority.rfind(']') {
        Some(end) if authority.starts_with('[') => match &authority[end + 1..] {
            "" => None,
            rest if rest.starts_with(':') => Some(end + 1),
            _ => return Err(AddressError::Host(shown(authority))),
        },
        _ => authority.rfind(':'),
    };
    Ok(colon.map_or((authority, ""), |colon| {
        (&authority[..colon], &authority[colon + 1..])
    }))
}

fn port_of(text: &str) -> Result<u16, AddressError> {
    let digits = text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.then(|| text.parse().ok()).flatten();
    port.ok_or_else(|| AddressError::Port(shown(text)))
}

fn place_of(text: &str) -> Result<Place, AddressError> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let ip = match inner {
        // As in the API server's rules: no zone, and IPv4 is written as IPv4.
        Some(inner) => inner
            .parse()
            .ok()
            .filter(|ip: &Ipv6Addr| ip.to_ipv4_mapped().is_none())
            .map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    };
    match ip {
        Some(ip) => Ok(Place::Ip(ip)),
        None if inner.is_none() && text.split('.').all(is_label) => {
            Ok(Place::Name(text.to_ascii_lowercase()))
        }
        None => Err(AddressError::Host(shown(inner.unwrap_or(text)))),
    }
}

/// A label of a DNS name (RFC 1123 section 2.1).
fn is_label(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// The path as it goes on the wire. None, and the service's root, leave the choice to us.
fn system_of(path: &str) -> Result<Option<String>, AddressError> {
    let path = path.trim_end_matches('/');
    if path.is_empty() || path == "/redfish/v1" {
        return Ok(None);
    }
    let mut wire = String::with_capacity(path.len());
    let bytes = path.as_bytes();
    for (at, byte) in bytes.iter().copied().enumerate() {
        let escape = || {
            let digits = bytes.get(at + 1..at + 3).unwrap_or_default();
            digits.len() == 2 && digits.iter().all(u8::is_ascii_hexdigit)
        };
        match byte {
            b'%' if !escape() => return Err(AddressError::Form),
            // What RFC 3986 section 3.3 lets stand in a path.
            b'%' | b'/' | b'-' | b'.' | b'_' | b'~' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' | b'('
            | b')' | b'*' | b'+' | b',' | b';' | b'=' => wire.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => wire.push(char::from(byte)),
            byte => wire.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(Some(wire))
}

fn query_of(text: &str) -> Vec<(String, String)> {
    let parts = text.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (decoded(key), decoded(value))
        })
        .collect()
}

/// Without its escapes; what is none stays as it is.
pub(crate) fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escape = after
            .get(..2)
            .filter(|digits| first == b'%' && digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escape.unwrap_or(first));
        rest = if escape.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn shown(text: &str) -> String {
    muster_proto::text::clean(text.as_bytes())
}

#[cfg(test)]
mod tests;
