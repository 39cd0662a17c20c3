//! More machines than there can be: random addresses that ask for a lease and never take one.

use std::{net::Ipv4Addr, ops::Range, sync::Weak, thread, time::Duration};

use anyhow::Result;
use dhcproto::{Encodable, Encoder, v4::MessageType};
use muster_proto::Mac;

use super::{
    Clients,
    dhcp::{Asker, Client},
};

/// How many addresses a flood has.
pub const ASKERS: u32 = 100_000;

/// How many more ask at once where a flood goes on, and how long it is quiet then: a network on which nothing else comes through is
/// another fault.
const MORE: u32 = 1000;
const QUIET: Duration = Duration::from_millis(100);

/// DISCOVERs from [`ASKERS`] addresses as fast as they can be sent, each as different firmware: PXE, iPXE, UEFI HTTP boot, an
/// installed system.
pub fn discovers(clients: &Clients) -> Result<()> {
    ask(clients, 0..ASKERS)
}

/// The same, and then from more and more others as long as `wanted` lives.
pub fn discovers_on_and_on(clients: &Clients, wanted: &Weak<()>) -> Result<()> {
    discovers(clients)?;
    let mut next = ASKERS;
    while wanted.strong_count() > 0 {
        ask(clients, next..next + MORE)?;
        next += MORE;
        thread::sleep(QUIET);
    }
    Ok(())
}

/// One DISCOVER of each of these; no two have the same address.
fn ask(clients: &Clients, numbers: Range<u32>) -> Result<()> {
    for number in numbers {
        let [a, b, c, d] = number.wrapping_mul(0x9e37_79b1).to_be_bytes();
        let mac = Mac([0x02, 0xf1, a, b, c, d]);
        let asker = match number % 4 {
            0 => Asker::Pxe(0),
            1 => Asker::Ipxe(7),
            2 => Asker::HttpBoot(16),
            _ => Asker::Plain,
        };
        let mut raw = Vec::new();
        Client::new(clients, mac, asker)
            .message(MessageType::Discover)
            .encode(&mut Encoder::new(&mut raw))?;
        clients
            .port()
            .broadcast(mac, (Ipv4Addr::UNSPECIFIED, 68), 67, &raw)?;
    }
    Ok(())
}
