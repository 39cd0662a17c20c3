//! Segments as the tests of DHCP use them.

use std::net::Ipv4Addr;

use muster_proto::kinds::{Dhcp, DhcpMode, Range, Segment, SegmentSpec, UnknownPolicy};

use crate::boot::segment::{Link, Net, Ports, check};

pub(crate) const PORTS: Ports = Ports {
    http: 8080,
    agents: 8443,
};

/// A Segment `metal/rack` on `interface`, 10.77.0.0/24, that holds unknown machines and leases .100 to .199.
pub(crate) fn a_segment(interface: &str, mode: DhcpMode) -> Segment {
    let mut segment = Segment::new(
        "rack",
        SegmentSpec {
            interface: Some(interface.to_owned()),
            subnet: "10.77.0.0/24".to_owned(),
            dhcp: Dhcp {
                mode,
                ranges: vec![Range {
                    start: "10.77.0.100".to_owned(),
                    end: "10.77.0.199".to_owned(),
                }],
                router: Some("10.77.0.254".to_owned()),
                dns_servers: vec!["10.77.0.253".to_owned()],
                domain: Some("rack.example".to_owned()),
                ..Dhcp::default()
            },
            unknown: UnknownPolicy::Hold,
            quota: 10,
            ..SegmentSpec::default()
        },
    );
    segment.metadata.namespace = Some("metal".to_owned());
    segment
}

/// The same, checked, with 10.77.0.1 as our own address.
pub(crate) fn a_net(mode: DhcpMode) -> Net {
    let links = [Link {
        name: "eth1".to_owned(),
        addresses: vec![Ipv4Addr::new(10, 77, 0, 1)],
    }];
    check(&a_segment("eth1", mode), &links, PORTS).unwrap()
}
