//! Where a controller listens.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use rustls::pki_types::ServerName;

/// `https://host:port`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// An address, or a name to look up; the certificate must be for this.
    pub host: Host,
    /// TCP port.
    pub port: u16,
}

/// The host part of an [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A DNS name.
    Name(String),
}

/// The text is no `https://host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an endpoint must be https://host:port, not {0:?}")]
pub struct ParseEndpointError(String);

impl Host {
    /// What a certificate must be for.
    pub fn server_name(&self) -> ServerName<'static> {
        match self {
            Host::Address(address) => ServerName::IpAddress((*address).into()),
            Host::Name(name) => ServerName::try_from(name.clone()).expect("parsing checked the name"),
        }
    }
}

/// `host:port`, an IPv6 address in brackets.
pub fn shown(host: &Host, port: u16) -> String {
    match host {
        Host::Address(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        Host::Address(address) => format!("{address}:{port}"),
        Host::Name(name) => format!("{name}:{port}"),
    }
}

impl Endpoint {
    /// What the server's certificate must be for.
    pub fn server_name(&self) -> ServerName<'static> {
        self.host.server_name()
    }
}

impl fmt::Display for Endpoint {
    /// As the header `Host` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.host, self.port))
    }
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseEndpointError(muster_proto::text::clean(text.as_bytes())))
    }
}

fn parse(text: &str) -> Option<Endpoint> {
    let authority = text.trim().strip_prefix("https://")?;
    let (host, port) = self::authority(authority.strip_suffix('/').unwrap_or(authority), 443)?;
    Some(Endpoint { host, port })
}

/// `host` or `host:port`; `None` if the text is neither.
pub fn authority(authority: &str, default_port: u16) -> Option<(Host, u16)> {
    let (host, rest) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (address, rest) = bracketed.split_once(']')?;
            (Host::Address(address.parse::<Ipv6Addr>().ok()?.into()), rest)
        }
        None => {
            let (host, rest) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            let host = match host.parse::<IpAddr>() {
                Ok(address) => Host::Address(address),
                Err(_) => match ServerName::try_from(host).ok()? {
                    ServerName::DnsName(_) => Host::Name(host.to_owned()),
                    _ => return None,
                },
            };
            (host, rest)
        }
    };
    let port = if rest.is_empty() {
        default_port
    } else {
        rest.strip_prefix(':')?.parse().ok()?
    };
    Some((host, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_and_names_are_understood() {
        for (text, shown) in [
            ("https://10.0.0.1:8443", "10.0.0.1:8443"),
            ("https://10.0.0.1/", "10.0.0.1:443"),
            ("https://[fd00::1]:8443", "[fd00::1]:8443"),
            ("https://muster.example:8443", "muster.example:8443"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for text in [
            "",
            "http://10.0.0.1",
            "https://",
            "https://a b",
            "https://x:y",
            "https://x:70000",
            "https://u@h",
            "https://[1",
        ] {
            text.parse::<Endpoint>().unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn every_endpoint_has_a_server_name(text in "(https://)?[a-z0-9.:_\\[\\]-]{0,20}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                endpoint.server_name();
                prop_assert_eq!(format!("https://{endpoint}").parse(), Ok(endpoint));
            }
        }
    }
}
