//! What is remembered of who had which address.

use muster_proto::{
    inventory::{Inventory, Nic},
    kinds::{Packed, ServerSpec, ServerStatus, Session},
};

use super::*;
use crate::boot::dhcp::{leases::Proposal, wire::Kind};

/// A machine that was off and asks for the address that it had (RFC 2131, 4.3.2).
fn reboot(machine: u8, address: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[28..34].copy_from_slice(&[0x52, 0x54, 0, 0, 0, machine]);
    bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend([53, 1, 3, 50, 4]);
    bytes.extend(address.octets());
    bytes.push(255);
    bytes
}

#[test]
fn leases_outlive_a_typo_and_an_interface_that_blinks_but_not_their_segment() {
    let made = |uid: &str| {
        let mut segment = a_segment("br0", DhcpMode::Server);
        segment.metadata.uid = Some(uid.to_owned());
        segment
    };
    let mut site = Site::new(made("first"), |_| {});
    let address = Ipv4Addr::new(10, 77, 0, 150);
    let answer = |site: &Site, machine| {
        site.wait("serving", |facts| facts.serving.is_ok());
        let reply = ask(&site.client, reboot(machine, address), from_us);
        Options::read(&reply).unwrap().kind()
    };
    assert_eq!(answer(&site, 1), Some(Kind::Ack));
    assert_eq!(answer(&site, 2), Some(Kind::Nak));

    let mut typo = made("first");
    typo.spec.dhcp.router = Some("10.78.0.1".to_owned());
    site.segments.apply_watcher_event(&watcher::Event::Apply(typo));
    site.wait("invalid", |facts| facts.serving.is_err());
    site.segments
        .apply_watcher_event(&watcher::Event::Apply(made("first")));
    assert_eq!(answer(&site, 2), Some(Kind::Nak));

    site.ip("addr del 10.77.0.1/24 dev br0");
    site.wait("no address", |facts| facts.serving.is_err());
    site.ip("addr add 10.77.0.1/24 dev br0");
    assert_eq!(answer(&site, 2), Some(Kind::Nak));

    // As if made anew between two looks.
    let mut anew = made("second");
    anew.metadata.generation = Some(7);
    site.segments.apply_watcher_event(&watcher::Event::Apply(anew));
    site.wait("the new one", |facts| facts.generation == Some(7));
    assert_eq!(answer(&site, 2), Some(Kind::Ack));
}

/// Its inventory claims every address from .100 to .199, each for another NIC.
fn a_server(segment: &str, address: &str, state: SessionState, since: &str) -> Arc<Server> {
    let nic = |last| Nic {
        mac: Some(Mac([0, 0x1b, 0x21, 9, 9, last])),
        addresses: vec![format!("fe80::{last:x}/64"), format!("10.77.0.{last}/24")],
        ..Nic::default()
    };
    let mut server = Server::new("s", ServerSpec::default());
    server.status = Some(ServerStatus {
        session: Some(Session {
            state,
            since: since.to_owned(),
            address: address.to_owned(),
            segment: segment.to_owned(),
            ..Session::default()
        }),
        inventory: Some(Packed::new(&Inventory {
            nics: (100..=199).map(nic).collect(),
            ..Inventory::default()
        })),
        ..ServerStatus::default()
    });
    Arc::new(server)
}

#[test]
fn a_machine_speaks_for_the_one_address_that_it_was_seen_with_in_its_own_segment() {
    let (gone, there) = (SessionState::Disconnected, SessionState::Connected);
    let servers = [
        a_server("metal/rack", "10.77.0.101", gone, "2026-01-01T00:00:00Z"),
        a_server("metal/rack", "10.77.0.102", there, "2026-01-01T00:00:00Z"),
        a_server("metal/rack", "10.77.0.103", gone, "2026-01-02T00:00:00Z"),
        a_server("metal/rack", "10.77.0.20", there, "2026-01-02T00:00:00Z"),
        a_server("metal/far-away", "10.77.0.104", there, "2026-01-02T00:00:00Z"),
        a_server("metal/rack", "fe80::69", there, "2026-01-02T00:00:00Z"),
        Arc::new(Server::new("new", ServerSpec::default())),
    ];
    let had = |last| (Mac([0, 0x1b, 0x21, 9, 9, last]), Ipv4Addr::new(10, 77, 0, last));
    assert_eq!(
        former_addresses(&servers, "metal/rack"),
        [had(102), had(103), had(101)]
    );
}

#[test]
fn what_machines_had_is_theirs_also_where_a_segment_leases_later_or_more() {
    let there = a_server(
        "metal/rack",
        "10.77.0.150",
        SessionState::Connected,
        "2026-01-01T00:00:00Z",
    );
    let world = a_world(empty(), stored(vec![Server::clone(&there)]));
    let events = Events::new(tokio::sync::mpsc::channel(1).0);
    let service = a_service(world, &Arc::default(), events, &mut Registry::default());
    let narrow = |mut net: Net| {
        net.handout.ranges = vec![(Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 101))];
        net
    };
    let had = Ipv4Addr::new(10, 77, 0, 150);
    // Nor when it was served by another one meanwhile.
    let mut memories = Memories::new();
    let segment = Arc::new(a_segment("eth1", DhcpMode::Server));
    renew(&service, &mut memories, &segment, &a_net(DhcpMode::Server));
    activate(&service, &[segment], &Plan::new(), &mut memories);
    assert!(memories.values().all(|memory| memory.seeded.is_none()));
    for before in [a_net(DhcpMode::Proxy), narrow(a_net(DhcpMode::Server))] {
        let segment = Arc::new(a_segment("eth1", DhcpMode::Server));
        let mut memories = Memories::new();
        renew(&service, &mut memories, &segment, &before);
        let active = renew(&service, &mut memories, &segment, &a_net(DhcpMode::Server));
        let now = service.dispatch.now();
        let another = active.leases().propose(Mac([2, 0, 0, 0, 0, 1]), Some(had), now);
        assert!(!matches!(another, Proposal::Ready(address) | Proposal::Probe(address) if address == had));
        let own = active
            .leases()
            .propose(Mac([0, 0x1b, 0x21, 9, 9, 150]), None, now);
        assert!(matches!(own, Proposal::Probe(address) if address == had));
    }
}
