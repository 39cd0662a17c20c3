//! Beside a DHCP server that is not ours.

use std::{
    collections::BTreeSet,
    process::{Child, Stdio},
};

use super::*;
use crate::boot::dhcp::{
    engine::PXE_PORT,
    leases::Proposal,
    wire::{Kind, address_at},
};

/// A DHCP server that is not ours, on a third machine (10.77.0.2).
struct Dnsmasq {
    child: Child,
    namespace: Namespace,
    _leases: tempfile::TempDir,
}

impl Dnsmasq {
    fn beside(site: &Site) -> Dnsmasq {
        let namespace = Namespace::new();
        // The server's thread is busy serving; a cable can be made from this end as well.
        let there = site.server.id;
        namespace.ip(&format!(
            "link add eth0 type veth peer name to-dnsmasq netns /proc/{there}/ns/net"
        ));
        site.ip("link set to-dnsmasq master br0 up");
        namespace.ip("link set eth0 up");
        namespace.ip("addr add 10.77.0.2/24 dev eth0");
        let leases = tempfile::tempdir().unwrap();
        let file = leases.path().join("leases");
        let child = namespace.run(move || {
            Command::new("/usr/sbin/dnsmasq")
                .args([
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--port=0",
                    "--user=root",
                    "--no-ping",
                ])
                .args(["--interface=eth0", "--bind-interfaces", "--pid-file="])
                .args(["--dhcp-range=10.77.0.20,10.77.0.90,1h", "--dhcp-authoritative"])
                .arg(format!("--dhcp-leasefile={}", file.display()))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("dnsmasq is installed (package dnsmasq-base)")
        });
        Dnsmasq {
            child,
            namespace,
            _leases: leases,
        }
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = &self.namespace;
    }
}

/// The address that a machine is offered first where nobody uses it.
fn home(net: &Net, mac: Mac) -> Ipv4Addr {
    match Leases::new(Pool::of(net), Duration::from_secs(3600)).propose(mac, None, Duration::ZERO) {
        Proposal::Probe(address) => address,
        other => panic!("a fresh pool proposes: {other:?}"),
    }
}

#[test]
fn a_server_leases_what_nobody_uses_and_reports_a_second_one() {
    let mut site = Site::new(a_segment("br0", DhcpMode::Server), |_| {});
    site.wait("serving, alone", |facts| {
        facts.serving.is_ok() && facts.intruders == Some(Vec::new())
    });

    let home = home(&a_net(DhcpMode::Server), "52:54:00:12:34:56".parse().unwrap());
    site.client.ip(&format!("addr add {home}/24 dev eth0"));
    // Here the stranger is the client's own machine: its port answers ARP with another MAC address than the packets name.
    let offer = ask(&site.client, packet("ovmf-pxe-discover"), from_us);
    let offered = address_at(&offer, 16);
    assert_ne!(offered, home);
    assert_eq!(Options::read(&offer).unwrap().kind(), Some(Kind::Offer));
    assert_eq!(
        Options::read(&offer).unwrap().get(67),
        Some(&b"snponly.efi\0"[..])
    );
    assert!(
        site.metrics()
            .contains("muster_dhcp_conflicts_total{segment=\"metal/rack\"} 1"),
        "{}",
        site.metrics()
    );

    let dnsmasq = Dnsmasq::beside(&site);
    ask(&site.client, packet("agent-discover"), |reply| {
        server_of(reply) == Some(Ipv4Addr::new(10, 77, 0, 2))
    });
    let facts = site.wait("a second server", |facts| {
        facts
            .intruders
            .as_ref()
            .is_some_and(|intruders| !intruders.is_empty())
    });
    assert_eq!(facts.intruders.unwrap()[0].server, Ipv4Addr::new(10, 77, 0, 2));
    assert_eq!(site.events.try_recv().unwrap().event.reason, "AnotherServer");
    drop(dnsmasq);

    // The segment goes, and its port with it, while the server runs on.
    let gone = a_segment("br0", DhcpMode::Server);
    site.segments.apply_watcher_event(&watcher::Event::Delete(gone));
    let mut facts = site.facts.clone();
    runtime().block_on(async {
        tokio::time::timeout(PATIENCE, facts.wait_for(BTreeMap::is_empty))
            .await
            .expect("the segment is let go")
            .unwrap();
    });
    let free = Command::new("nsenter")
        .args([
            &format!("--net=/proc/{}/ns/net", site.server.id),
            "ss",
            "-Hlun",
            "sport = :67",
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&free.stdout), "");
}

#[test]
fn beside_a_device_that_answers_for_every_address_machines_get_theirs_and_it_is_told_once() {
    let mut site = Site::new(a_segment("br0", DhcpMode::Server), |_| {});
    site.wait("serving", |facts| facts.serving.is_ok());
    // All that is leased, 10.77.0.100 to .199: the client's own port answers ARP with another MAC address than the packets name.
    for part in ["10.77.0.96/27", "10.77.0.128/26", "10.77.0.192/29"] {
        site.client.ip(&format!("route add local {part} dev lo"));
    }
    let mut offered = BTreeSet::new();
    let mut told = Vec::new();
    // An answer that comes late counts as none: then it takes some more machines until it has answered for enough addresses.
    for number in 0..20 {
        let mut machine = packet("ovmf-pxe-discover");
        // The last byte of its MAC address.
        machine[33] = number;
        let is_answer = move |reply: &[u8]| from_us(reply) && reply[33] == number;
        let address = address_at(&ask(&site.client, machine, is_answer), 16);
        assert!(offered.insert(address), "{address} is offered twice");
        told.extend(std::iter::from_fn(|| site.events.try_recv().ok()));
    }
    let [told] = &told[..] else {
        panic!("it is told once: {told:?}")
    };
    assert_eq!(told.event.reason, "ProxyArp");
    assert!(told.event.message.contains("next: "), "{}", told.event.message);
}

#[test]
fn a_proxy_adds_boot_files_beside_dnsmasq() {
    let site = Site::new(a_segment("br0", DhcpMode::Proxy), |_| {});
    site.wait("serving", |facts| facts.serving.is_ok());
    let _dnsmasq = Dnsmasq::beside(&site);

    let mut broadcast = packet("ovmf-pxe-discover");
    broadcast[10] = 0x80;
    let address = ask(&site.client, broadcast.clone(), |reply| {
        server_of(reply) == Some(Ipv4Addr::new(10, 77, 0, 2))
    });
    assert!(!address_at(&address, 16).is_unspecified());
    let boot = ask(&site.client, broadcast, from_us);
    assert!(address_at(&boot, 16).is_unspecified());
    let options = Options::read(&boot).unwrap();
    assert_eq!(options.get(60), Some(&b"PXEClient"[..]));
    assert_eq!(options.get(67), Some(&b"snponly.efi\0"[..]));

    site.client.ip("addr add 10.77.0.99/24 dev eth0");
    let to = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), PXE_PORT);
    let (ack, _) =
        ask_at(&site.client, packet("uefi-pxe-4011-request"), to, from_us).expect("port 4011 answers");
    assert_eq!(Options::read(&ack).unwrap().kind(), Some(Kind::Ack));

    // The address server was heard many times by now, and is no intruder.
    let facts = site.facts.borrow()["metal/rack"].clone();
    assert_eq!(facts.intruders, Some(Vec::new()));
    assert!(facts.serving.is_ok());
}
