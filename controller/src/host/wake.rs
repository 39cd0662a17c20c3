//! Wake-on-LAN: a packet that a machine's NIC understands while the machine is off. Nothing tells whether it did anything.
//!
//! Sent from the control role to the broadcast address of the machine's Segment: it arrives where this process stands on that
//! network, as it does with both roles in one process on the host's network, or where routers pass such packets on (RFC 2644: by
//! default they do not).

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

/// Where packets for machines on `segment` go.
fn address(segment: Option<&Segment>) -> SocketAddr {
    let subnet = segment.and_then(|segment| broadcast(&segment.spec.subnet));
    SocketAddr::from((subnet.unwrap_or(Ipv4Addr::BROADCAST), PORT))
}

/// Sends a packet for each of `macs` to `segment`, as far as that works.
pub(super) async fn wake(macs: &[Mac], segment: Option<&Segment>) -> std::io::Result<()> {
    send(macs, address(segment)).await
}

async fn send(macs: &[Mac], to: SocketAddr) -> std::io::Result<()> {
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
    /// On the loopback network, whose last address is a broadcast address as any other.
    #[tokio::test]
    async fn packets_for_all_nics_arrive_at_the_broadcast_address() {
        let everybody = broadcast("127.0.0.0/8").unwrap();
        let machine = UdpSocket::bind((everybody, 0)).await.unwrap();
        let macs = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];
        send(&macs, machine.local_addr().unwrap()).await.unwrap();
        for mac in macs {
            let mut heard = [0; 200];
            let wait = std::time::Duration::from_secs(30);
            let length = tokio::time::timeout(wait, machine.recv(&mut heard)).await;
            assert_eq!(heard[..length.unwrap().unwrap()], packet(mac));
        }
    }

    #[test]
    fn packets_go_to_the_segment_or_else_to_the_network_that_we_are_on() {
        let segment = Segment::new(
            "lab",
            muster_proto::kinds::SegmentSpec {
                subnet: "10.77.0.0/24".to_owned(),
                ..Default::default()
            },
        );
        assert_eq!(address(Some(&segment)).to_string(), "10.77.0.255:9");
        assert_eq!(address(None).to_string(), "255.255.255.255:9");
    }
}
