//! Wake-on-LAN: a packet that a machine's NIC understands while the machine is off. Nothing tells whether it did anything.
//!
//! Sent from here to the broadcast address of the machine's Segment: it arrives where this process stands on that network, as it
//! does with both roles in one process, or where a router passes such packets on.

use std::net::{Ipv4Addr, SocketAddr};

use muster_proto::{Mac, kinds::Segment};
use tokio::net::UdpSocket;

/// The discard service (RFC 863), which is customary for these packets.
const PORT: u16 = 9;

/// The packet for `mac`: six times 0xff, then the address sixteen times (AMD's white paper 20213).
fn packet(mac: Mac) -> Vec<u8> {
    let mut packet = vec![0xff; 6];
    packet.extend(std::iter::repeat_n(mac.0, 16).flatten());
    packet
}

/// The last address of `subnet`, such as `10.77.0.0/24`.
fn broadcast(subnet: &str) -> Option<Ipv4Addr> {
    let (address, bits) = subnet.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let bits: u32 = bits.parse().ok().filter(|bits| *bits <= 32)?;
    let hosts = u32::MAX.checked_shr(bits).unwrap_or(0);
    Some(Ipv4Addr::from(u32::from(address) | hosts))
}

/// Sends a packet for each of `macs` to `segment`, as far as that works.
pub(super) async fn wake(macs: &[Mac], segment: Option<&Segment>) -> std::io::Result<()> {
    let subnet = segment.and_then(|segment| broadcast(&segment.spec.subnet));
    let to = SocketAddr::from((subnet.unwrap_or(Ipv4Addr::BROADCAST), PORT));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.set_broadcast(true)?;
    for mac in macs {
        socket.send_to(&packet(*mac), to).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_the_address_sixteen_times_and_goes_to_all_of_the_subnet() {
        let packet = packet(Mac([1, 2, 3, 4, 5, 6]));
        assert_eq!(packet.len(), 102);
        assert_eq!(packet[..8], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2]);
        assert_eq!(packet[96..], [1, 2, 3, 4, 5, 6]);
        for (subnet, last) in [
            ("10.77.0.0/24", Some([10, 77, 0, 255])),
            ("10.77.0.0/22", Some([10, 77, 3, 255])),
            ("10.77.0.7/32", Some([10, 77, 0, 7])),
            ("0.0.0.0/0", Some([255, 255, 255, 255])),
            ("10.77.0.0/33", None),
            ("10.77.0.0", None),
        ] {
            assert_eq!(broadcast(subnet), last.map(Ipv4Addr::from), "{subnet}");
        }
    }
}
