//! Who else answers on a segment. Pure: only reported, never acted on.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, time::Duration};

use muster_proto::{Mac, kinds::DhcpMode};

use super::wire::{Kind, Options, address_at};
use crate::boot::segment::Net;

#[cfg(test)]
mod tests;

/// How long after its last answer another server is still reported.
pub const QUIET: Duration = Duration::from_secs(600);
/// The most servers that are told apart on one segment: who forges more is one finding all the same.
const MAX: usize = 8;

/// An OFFER or ACK that somebody sent to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Option 54, else the packet's source.
    pub server: Ipv4Addr,
    /// Source of the frame.
    pub mac: Mac,
    /// It gives an address.
    pub leases: bool,
    /// It names a boot file, or says that it answers PXE or HTTP boot.
    pub boots: bool,
}

impl Answer {
    /// From a UDP payload; none if it is no server's answer.
    pub(super) fn read(message: &[u8], source: Ipv4Addr, mac: Mac) -> Option<Answer> {
        if message.len() < 240 || message[0] != 2 || message[236..240] != [99, 130, 83, 99] {
            return None;
        }
        let options = Options::read(message).ok()?;
        if !matches!(options.kind()?, Kind::Offer | Kind::Ack) {
            return None;
        }
        let class = options.get(60).unwrap_or_default();
        Some(Answer {
            server: options.address(54).unwrap_or(source),
            mac,
            leases: !address_at(message, 16).is_unspecified(),
            boots: class.starts_with(b"PXEClient")
                || class.starts_with(b"HTTPClient")
                || message[108] != 0
                || options.get(67).is_some_and(|file| !file.is_empty()),
        })
    }
}

/// What another server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// It gives out addresses.
    Dhcp,
    /// It gives out boot files.
    Boot,
}

/// Another server on the segment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Intruder {
    /// Its address.
    pub server: Ipv4Addr,
    /// From which MAC address it was last heard.
    pub mac: Mac,
    /// What it does.
    pub what: What,
}

impl fmt::Display for Intruder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Dhcp => "DHCP server",
            What::Boot => "PXE server",
        };
        write!(f, "{what} {} ({})", self.server, self.mac)
    }
}

/// The other servers of one segment, each with when it was last heard.
#[derive(Clone, Debug, Default)]
pub struct Watch(BTreeMap<Ipv4Addr, (Intruder, Duration)>);

impl Watch {
    /// Takes `answer` in; the finding if it is a new one.
    pub fn hear(&mut self, answer: &Answer, net: &Net, now: Duration) -> Option<Intruder> {
        let what = match net.mode {
            DhcpMode::Server if answer.leases => What::Dhcp,
            // Beside a proxy, another server gives the addresses; only a second boot file is one too many.
            DhcpMode::Server | DhcpMode::Proxy if answer.boots => What::Boot,
            _ => return None,
        };
        if is_ours(answer.server, net) {
            return None;
        }
        let known = self.0.contains_key(&answer.server);
        if !known && self.0.len() >= MAX {
            return None;
        }
        let intruder = Intruder {
            server: answer.server,
            mac: answer.mac,
            what,
        };
        // What it was heard by first stays: each change is written into the Segment, and who forges answers may change all the time.
        let (_, heard) = self.0.entry(answer.server).or_insert((intruder.clone(), now));
        *heard = now;
        (!known).then_some(intruder)
    }

    /// Those heard lately, ordered.
    pub fn present(&mut self, now: Duration) -> Vec<Intruder> {
        self.0.retain(|_, (_, heard)| now.saturating_sub(*heard) < QUIET);
        self.0.values().map(|(intruder, _)| intruder.clone()).collect()
    }
}

/// Ourselves, and other replicas of this controller.
pub(super) fn is_ours(server: Ipv4Addr, net: &Net) -> bool {
    server == net.own || server == net.boot || net.has_agents_at(server.into())
}
