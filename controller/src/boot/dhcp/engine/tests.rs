use proptest::prelude::*;

use super::*;
use crate::{
    boot::{
        dhcp::{
            corpus::{all, packet, request},
            fixtures::a_net,
            leases::Pool,
        },
        pass::{Maker, PassKey},
        policy::Verdict,
    },
    token::TokenKey,
};

const NOW: Duration = Duration::from_secs(100);
const RAMDISK: Verdict = Verdict::Ramdisk("");

struct World {
    net: Net,
    leases: Leases,
}

impl World {
    fn new(mode: DhcpMode) -> World {
        let net = a_net(mode);
        let leases = Leases::new(Pool::of(&net), Duration::from_secs(3600));
        World { net, leases }
    }

    fn step(&mut self, request: &Request, port: u16, verdict: Verdict) -> Step {
        let passes = Maker::new(PassKey::of(&TokenKey::new(&[7; 32])), 1, [0; 4]);
        let at = Circumstances {
            net: &self.net,
            verdict,
            release: Some("cafe"),
            passes: Some(&passes),
        };
        step(request, port, &at, &mut self.leases, NOW)
    }

    /// With every probe silent.
    fn settled(&mut self, request: &Request, verdict: Verdict) -> Step {
        loop {
            match self.step(request, SERVER_PORT, verdict) {
                Step::Probe(address) => {
                    self.leases.probed(request.mac, address, None, NOW);
                }
                step => return step,
            }
        }
    }

    fn reply(&mut self, request: &Request) -> Reply {
        match self.settled(request, RAMDISK) {
            Step::Send(reply, _) => reply,
            step => panic!("no reply: {step:?}"),
        }
    }
}

#[test]
fn rom_ipxe_agent_and_system_get_one_address() {
    let mut world = World::new(DhcpMode::Server);
    let address = world.reply(&request("pxe-rom-bios-discover")).yiaddr;
    for name in [
        "ipxe-rom-bios-discover",
        "agent-discover",
        "dhclient-discover",
        "ovmf-http-discover",
    ] {
        assert_eq!(world.reply(&request(name)).yiaddr, address, "{name}");
    }
    let taken = Request {
        wanted: Some(address),
        ..request("ipxe-rom-bios-request")
    };
    let ack = world.reply(&taken);
    assert_eq!((ack.kind, ack.yiaddr), (Kind::Ack, address));
}

#[test]
fn a_machine_that_meets_silence_takes_no_address() {
    let mut world = World::new(DhcpMode::Server);
    let step = world.settled(&request("ovmf-pxe-discover"), Verdict::Silence("why"));
    assert_eq!(step, Step::Silence("why"));
    assert_eq!(
        world.leases.propose(request("ovmf-pxe-discover").mac, None, NOW),
        {
            let mut fresh = World::new(DhcpMode::Server);
            fresh.leases.propose(request("ovmf-pxe-discover").mac, None, NOW)
        }
    );
}

/// Its firmware and its operating system have one address.
#[test]
fn a_machine_that_boots_its_own_disk_takes_the_address_of_its_system() {
    let mut world = World::new(DhcpMode::Server);
    let rom = request("ipxe-rom-bios-discover");
    let step = world.settled(&rom, Verdict::Disk("it has no job"));
    let Step::Send(offer, _) = &step else {
        panic!("no offer: {step:?}");
    };
    assert_eq!(
        describe(&rom, &step),
        format!("iPXE: {} and no boot file: it has no job", offer.yiaddr)
    );
    assert_eq!(world.reply(&request("dhclient-discover")).yiaddr, offer.yiaddr);
}

#[test]
fn the_log_says_why_ipxe_is_to_load_ipxe() {
    let mut world = World::new(DhcpMode::Server);
    let rom = request("ipxe-rom-bios-no-http-discover");
    let step = world.settled(&rom, RAMDISK);
    let said = describe(&rom, &step);
    assert!(
        said.starts_with("iPXE without HTTP or the kernel's format: 10.77.0."),
        "{said}"
    );
    assert!(said.ends_with(" and undionly.kpxe"), "{said}");
}

#[test]
fn the_offer_of_another_server_is_left_to_it() {
    let mut world = World::new(DhcpMode::Server);
    let other = Request {
        server: Some(Ipv4Addr::new(10, 77, 0, 2)),
        ..request("ipxe-rom-bios-request")
    };
    assert!(matches!(world.settled(&other, RAMDISK), Step::Silence(_)));
    assert_eq!(world.leases.leased(NOW), 0);
}

#[test]
fn renewals_and_reboots_keep_what_they_ask_for() {
    let mut world = World::new(DhcpMode::Server);
    for name in ["networkd-init-reboot", "dhclient-renew", "ipxe-rom-bios-request"] {
        let ack = world.reply(&request(name));
        assert_eq!(
            (ack.kind, ack.yiaddr),
            (Kind::Ack, Ipv4Addr::new(10, 77, 0, 150)),
            "{name}"
        );
    }
}

#[test]
fn an_address_of_another_network_is_refused() {
    let mut world = World::new(DhcpMode::Server);
    let moved = Request {
        wanted: Some(Ipv4Addr::new(192, 168, 7, 7)),
        ..request("networkd-init-reboot")
    };
    let nak = world.reply(&moved);
    assert_eq!(nak.kind, Kind::Nak);
    let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
    assert_eq!(
        destination(&moved, &world.net, &nak, SERVER_PORT, from),
        SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
    );
}

#[test]
fn inform_gets_everything_but_an_address() {
    let mut world = World::new(DhcpMode::Server);
    let inform = Request {
        kind: Kind::Inform,
        ..request("dhclient-renew")
    };
    let ack = world.reply(&inform);
    assert_eq!((ack.kind, ack.yiaddr), (Kind::Ack, Ipv4Addr::UNSPECIFIED));
    assert!(!ack.required.iter().any(|(code, _)| *code == 51));
    let outside = Request {
        ciaddr: Ipv4Addr::new(8, 8, 8, 8),
        ..inform
    };
    assert!(matches!(world.settled(&outside, RAMDISK), Step::Silence(_)));
}

#[test]
fn a_declined_address_is_not_offered_again() {
    let mut world = World::new(DhcpMode::Server);
    let discover = request("dhclient-discover");
    let address = world.reply(&discover).yiaddr;
    let decline = Request {
        kind: Kind::Decline,
        wanted: Some(address),
        server: Some(world.net.own),
        ..discover.clone()
    };
    assert!(matches!(world.settled(&decline, RAMDISK), Step::Silence(_)));
    assert_ne!(world.reply(&discover).yiaddr, address);
}

#[test]
fn a_proxy_answers_boot_clients_on_both_ports_and_nobody_else() {
    let mut world = World::new(DhcpMode::Proxy);
    for name in [
        "ovmf-pxe-discover",
        "pxe-rom-bios-discover",
        "ipxe-rom-bios-discover",
        "ovmf-http-discover",
    ] {
        let offer = world.reply(&request(name));
        assert_eq!(
            (offer.kind, offer.yiaddr),
            (Kind::Offer, Ipv4Addr::UNSPECIFIED),
            "{name}"
        );
    }
    let asked = request("uefi-pxe-4011-request");
    assert!(matches!(
        world.step(&asked, SERVER_PORT, RAMDISK),
        Step::Silence(_)
    ));
    let Step::Send(ack, _) = world.step(&asked, PXE_PORT, RAMDISK) else {
        panic!("port 4011 answers");
    };
    assert_eq!(ack.kind, Kind::Ack);
    let from = SocketAddrV4::new(asked.ciaddr, 4011);
    assert_eq!(destination(&asked, &world.net, &ack, PXE_PORT, from), from);
    for name in [
        "dhclient-discover",
        "dhclient-renew",
        "agent-discover",
        "networkd-init-reboot",
    ] {
        assert!(
            matches!(world.settled(&request(name), RAMDISK), Step::Silence(_)),
            "{name}"
        );
    }
}

#[test]
fn a_relayed_reply_goes_to_the_relay() {
    let mut world = World::new(DhcpMode::Server);
    let asked = request("relayed-discover");
    let offer = world.reply(&asked);
    let from = SocketAddrV4::new(asked.giaddr, SERVER_PORT);
    assert_eq!(
        destination(&asked, &world.net, &offer, SERVER_PORT, from),
        SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 254), SERVER_PORT)
    );
}

#[test]
fn no_reply_is_sent_out_of_the_segment() {
    let world = World::new(DhcpMode::Server);
    let forged = Request {
        ciaddr: Ipv4Addr::new(8, 8, 8, 8),
        ..request("dhclient-renew")
    };
    let reply = reply(&forged, &world.net, &File::None, Grant::Inform);
    let from = SocketAddrV4::new(Ipv4Addr::new(8, 8, 8, 8), 53);
    for port in [SERVER_PORT, PXE_PORT] {
        assert_eq!(
            destination(&forged, &world.net, &reply, port, from).ip(),
            &Ipv4Addr::BROADCAST
        );
    }
}

proptest! {
    #[test]
    fn damaged_requests_are_answered_within_bounds(
        (_, bytes) in proptest::sample::select(all()),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..12),
        mode in prop_oneof![Just(DhcpMode::Server), Just(DhcpMode::Proxy), Just(DhcpMode::Off)],
        port in prop_oneof![Just(SERVER_PORT), Just(PXE_PORT)],
    ) {
        let mut bytes = bytes;
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let Ok(request) = Request::parse(&bytes) else { return Ok(()); };
        let mut world = World::new(mode);
        let step = world.step(&request, port, RAMDISK);
        prop_assert!(!describe(&request, &step).chars().any(char::is_control));
        if let Step::Send(reply, _) = step {
            prop_assert!(mode != DhcpMode::Off);
            if !reply.yiaddr.is_unspecified() {
                prop_assert!(mode == DhcpMode::Server);
                let (start, end) = world.net.handout.ranges[0];
                prop_assert!((start..=end).contains(&reply.yiaddr));
            }
            let sent = reply.encode(&request).expect("these boot files fit");
            prop_assert!(sent.len() <= 1472);
        }
    }
}

#[test]
fn the_corpus_is_read_but_for_bootp() {
    for (name, bytes) in all() {
        assert_eq!(Request::parse(&bytes).is_ok(), name != "bootp", "{name}");
    }
    assert!(packet("bootp").len() >= 300);
}

#[test]
fn replicas_hear_what_each_other_leases() {
    let mut world = World::new(DhcpMode::Server);
    let replica = Ipv4Addr::new(10, 77, 0, 2);
    world.net.agent_endpoints.push(format!("https://{replica}:9443"));
    let theirs = Ipv4Addr::new(10, 77, 0, 150);
    let taken = |server| Request {
        server: Some(server),
        wanted: Some(theirs),
        ..request("ipxe-rom-bios-request")
    };
    let stranger = Ipv4Addr::new(10, 77, 0, 3);
    for (server, leased) in [(stranger, 0), (replica, 1)] {
        let step = world.step(&taken(server), SERVER_PORT, RAMDISK);
        assert!(matches!(step, Step::Silence(_)), "{step:?}");
        assert_eq!(world.leases.leased(NOW), leased);
    }
    assert_eq!(world.reply(&request("pxe-rom-bios-discover")).yiaddr, theirs);
    // It found it in use: none of us is to offer it.
    let declined = |server| Request {
        kind: Kind::Decline,
        ..taken(server)
    };
    for (server, is_offered) in [(stranger, true), (replica, false)] {
        world.step(&declined(server), SERVER_PORT, RAMDISK);
        let offered = world.reply(&request("pxe-rom-bios-discover")).yiaddr;
        assert_eq!(offered == theirs, is_offered);
    }
}
