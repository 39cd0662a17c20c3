//! Which hosts declare the same machine as another. One machine never has two active objects. Pure.

use jiff::Timestamp;
use muster_proto::kinds::BareMetalHost;

use super::{State, access, observed::Rival, owner::has_bmc};
use crate::{bmc::Address, discovery::host};

/// The hosts among `others` that declare the machine of `host`, by its boot MAC address or by its BMC.
///
/// One that is registered precedes one that is not; of two alike, the one that was made first, then the one whose name comes first.
pub fn rivals<'a>(host: &BareMetalHost, others: impl Iterator<Item = &'a BareMetalHost>) -> Vec<Rival> {
    let us = rank(host);
    others
        .filter(|other| other.metadata.uid != host.metadata.uid)
        .filter(|other| !host::is_untouched(other))
        .filter_map(|other| {
            Some(Rival {
                path: host::path(other),
                by: shared(host, other)?,
                state: State::of(other),
                precedes: rank(other) < us,
            })
        })
        .collect()
}

type Rank = (bool, Option<Timestamp>, String);

fn rank(host: &BareMetalHost) -> Rank {
    let registered = !matches!(
        State::of(host),
        State::New | State::Unmanaged | State::Registering
    );
    let made = host.metadata.creation_timestamp.as_ref().map(|at| at.0);
    (!registered, made, host::path(host))
}

/// What both declare; none: nothing.
fn shared(host: &BareMetalHost, other: &BareMetalHost) -> Option<String> {
    let mac = host::declared_mac(host).filter(|mac| mac.is_unicast());
    if let Some(mac) = mac.filter(|mac| host::declared_mac(other) == Some(*mac)) {
        return Some(format!("boot MAC address {mac}"));
    }
    let address = bmc(host)?;
    (bmc(other).as_ref() == Some(&address)).then(|| format!("BMC {address}"))
}

/// Which system of which BMC is meant, whatever the words for it: the scheme, a port that goes without saying, upper case, a user
/// before the host and what follows a `?` change nothing. A whole system behind the BMC counts: several may share one.
pub(super) fn bmc(host: &BareMetalHost) -> Option<String> {
    let bmc = host.spec.bmc.as_ref().filter(|_| has_bmc(host))?;
    let address = match bmc.address.parse::<Address>() {
        Ok(Address {
            place, port, system, ..
        }) => format!("{place}:{port}{}", system.unwrap_or_default()),
        Err(_) => access::shown(&bmc.address),
    };
    let address = address.trim_end_matches('/').to_ascii_lowercase();
    (!address.is_empty()).then_some(address)
}
