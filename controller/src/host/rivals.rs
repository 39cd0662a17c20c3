//! Which hosts declare the same machine as another. One machine never has two active objects. Pure.

use std::fmt;

use jiff::Timestamp;
use muster_proto::kinds::BareMetalHost;

use super::{
    State, access,
    observed::Rival,
    owner::{has_bmc, is_untouched},
};
use crate::{
    bmc::{Address, Transport, address::decoded},
    hosts,
    path::Path,
};

/// The hosts among `others` that declare the machine of `host`, by its boot MAC address or by its BMC.
///
/// One that is registered precedes one that is not; of two alike, the one that was made first, then the one whose name comes first. One of
/// which nothing is left but to let it go is no rival: it does nothing with its machine any more.
pub fn rivals<'a>(host: &BareMetalHost, others: impl Iterator<Item = &'a BareMetalHost>) -> Vec<Rival> {
    let us = precedence(host);
    others
        .filter(|other| other.metadata.uid != host.metadata.uid)
        .filter(|other| !is_untouched(other) && State::of(other) != State::Deleting)
        .filter_map(|other| {
            Some(Rival {
                path: Path::of(other).to_string(),
                by: shared(host, other)?,
                bmc: shared_bmc(host, other).is_some(),
                state: State::of(other),
                precedes: precedence(other) < us,
            })
        })
        .collect()
}

type Precedence = (bool, Option<Timestamp>, Path);

/// The host with the least precedes others of the same machine.
pub(crate) fn precedence(host: &BareMetalHost) -> Precedence {
    let registered = State::of(host).is_registered();
    let made = host.metadata.creation_timestamp.as_ref().map(|at| at.0);
    (!registered, made, Path::of(host))
}

/// What both declare; none: nothing.
fn shared(host: &BareMetalHost, other: &BareMetalHost) -> Option<String> {
    let mac = hosts::declared_mac(host).filter(|mac| mac.is_unicast());
    if let Some(mac) = mac.filter(|mac| hosts::declared_mac(other) == Some(*mac)) {
        return Some(format!("boot MAC address {mac}"));
    }
    shared_bmc(host, other).map(|bmc| format!("BMC {bmc}"))
}

/// The BMC that both declare.
fn shared_bmc(host: &BareMetalHost, other: &BareMetalHost) -> Option<Behind> {
    let (ours, theirs) = (bmc(host)?, bmc(other)?);
    let system = ours.system == theirs.system || ours.system.is_none() || theirs.system.is_none();
    (ours.at == theirs.at && system).then_some(ours)
}

/// Which machine an address of a BMC means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    /// Which BMC.
    pub(super) at: String,
    /// Which of its systems, as several may share one; none: all that it has, which is normally one.
    pub(super) system: Option<String>,
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.at, self.system.as_deref().unwrap_or_default())
    }
}

/// Which system of which BMC is meant, whatever the words for it: the scheme, upper case, a user before the host and what follows a `?`
/// change nothing. Nor does the protocol, where each has its own port: those are of one BMC. Behind other ports of one address stand
/// other BMCs, as in labs.
pub(super) fn bmc(host: &BareMetalHost) -> Option<Behind> {
    let bmc = host.spec.bmc.as_ref().filter(|_| has_bmc(host))?;
    let (at, system) = match bmc.address.parse::<Address>() {
        Ok(address) if goes_without_saying(address.port) => (address.place.to_string(), address.system),
        Ok(address) => (format!("{}:{}", address.place, address.port), address.system),
        Err(_) => (access::shown(&bmc.address).trim_end_matches('/').to_owned(), None),
    };
    let at = at.to_ascii_lowercase();
    let system = system.as_deref().and_then(plain);
    (!at.is_empty()).then_some(Behind { at, system })
}

fn goes_without_saying(port: u16) -> bool {
    let all = [Transport::Https, Transport::Http, Transport::Ipmi];
    all.into_iter().any(|transport| transport.port() == port)
}

/// The path of a system without the liberties of writing it (RFC 3986 section 6.2.2); none: it means no one system.
fn plain(path: &str) -> Option<String> {
    let mut segments = Vec::new();
    let path = decoded(path).to_ascii_lowercase();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let path = segments.join("/");
    (!matches!(&*path, "" | "redfish" | "redfish/v1")).then(|| format!("/{path}"))
}
