//! Which machine has which address just now: kept so that each boot step's log line can name the machine.
//! Nothing is ever decided by it. And what else a service remembers for the log.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use muster_proto::Mac;

use crate::{
    log::{Refusals, Shares},
    sync::lock,
};

/// More addresses than this are forgotten at once: a log line less precise is all that is lost.
const MOST: usize = 4096;

/// Addresses and the machines that last used them; bounded.
#[derive(Clone, Debug, Default)]
pub struct Peers(Arc<Mutex<HashMap<IpAddr, Mac>>>);

impl Peers {
    /// `address` belongs to `mac`: it was leased to it, or it said so.
    pub fn note(&self, address: IpAddr, mac: Mac) {
        let mut known = lock(&self.0);
        if known.len() >= MOST && !known.contains_key(&address) {
            known.clear();
        }
        known.insert(address.to_canonical(), mac);
    }

    /// The machine that has `address`, if it is known.
    pub fn mac(&self, address: IpAddr) -> Option<Mac> {
        let known = lock(&self.0);
        known.get(&address.to_canonical()).copied()
    }
}

/// What a service of boot files remembers for the log.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) peers: Peers,
    pub(super) refusals: Refusals,
    /// The files that were sent.
    pub(super) steps: Shares,
}

impl Notes {
    pub(super) fn new(peers: Peers) -> Notes {
        Notes {
            peers,
            ..Notes::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_addresses_stays_bounded() {
        let peers = Peers::default();
        for at in 0..100_000_u32 {
            peers.note(IpAddr::from(at.to_be_bytes()), Mac([2, 0, 0, 0, 0, 1]));
        }
        assert!(peers.0.lock().unwrap().len() <= MOST);
        assert!(peers.mac(IpAddr::from(99_999_u32.to_be_bytes())).is_some());
    }
}
