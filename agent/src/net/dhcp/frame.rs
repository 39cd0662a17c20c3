//! The frame of a message that is sent while there is no address. It comes from 0.0.0.0 (RFC 2131, 4.1): into what a UDP socket sends on an
//! interface without an address the kernel writes that of another interface.

use std::net::Ipv4Addr;

use muster_proto::Mac;
use pnet::{
    packet::{
        ethernet::{EtherTypes, MutableEthernetPacket},
        ip::IpNextHeaderProtocols,
        ipv4::{self, MutableIpv4Packet},
        udp::{self, MutableUdpPacket},
    },
    util::MacAddr,
};

use super::{CLIENT_PORT, SERVER_PORT};

/// Headers without options, in bytes.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;

/// The frame in which the interface `mac` sends `message` to every server, from no address.
pub(super) fn to_everyone(mac: Mac, message: &[u8]) -> Vec<u8> {
    const FROM: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
    const TO: Ipv4Addr = Ipv4Addr::BROADCAST;
    let length = |headers: usize| {
        u16::try_from(headers + message.len()).expect("a client's message is a few hundred bytes")
    };
    let mut frame = vec![0; ETHERNET + IPV4 + UDP + message.len()];

    let [a, b, c, d, e, f] = mac.0;
    let mut ethernet = MutableEthernetPacket::new(&mut frame).expect("the buffer holds the header");
    ethernet.set_destination(MacAddr::broadcast());
    ethernet.set_source(MacAddr::new(a, b, c, d, e, f));
    ethernet.set_ethertype(EtherTypes::Ipv4);

    let mut ip = MutableIpv4Packet::new(&mut frame[ETHERNET..]).expect("the buffer holds the header");
    ip.set_version(4);
    ip.set_header_length(5);
    ip.set_total_length(length(IPV4 + UDP));
    ip.set_ttl(64);
    ip.set_next_level_protocol(IpNextHeaderProtocols::Udp);
    ip.set_source(FROM);
    ip.set_destination(TO);
    ip.set_checksum(ipv4::checksum(&ip.to_immutable()));

    let mut datagram =
        MutableUdpPacket::new(&mut frame[ETHERNET + IPV4..]).expect("the buffer holds the header");
    datagram.set_source(CLIENT_PORT);
    datagram.set_destination(SERVER_PORT);
    datagram.set_length(length(UDP));
    datagram.set_payload(message);
    let sum = udp::ipv4_checksum(&datagram.to_immutable(), &FROM, &TO);
    // Zero would say that there is none (RFC 768).
    datagram.set_checksum(if sum == 0 { u16::MAX } else { sum });
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    /// The sums were calculated apart from this.
    #[test]
    fn a_frame_comes_from_no_address_and_its_sums_are_right() {
        let expected = [
            // Ethernet: to everyone, from us, IPv4.
            &[0xff_u8; 6][..],
            &MAC.0,
            &[8, 0],
            // IPv4: 31 bytes, TTL 64, UDP.
            &[0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0x7a, 0xcf],
            &[0, 0, 0, 0],
            &[255, 255, 255, 255],
            // UDP: from 68 to 67, 11 bytes; an odd number.
            &[0, 68, 0, 67, 0, 11, 0x3a, 0xef],
            b"abc",
        ];
        assert_eq!(to_everyone(MAC, b"abc"), expected.concat());
    }

    #[test]
    fn a_sum_that_comes_to_zero_is_not_taken_for_none() {
        let frame = to_everyone(MAC, &[0xff, 0x53]);
        assert_eq!(frame[40..42], [0xff, 0xff]);
    }
}
