//! The real sockets, in network namespaces of their own. They need root, as the lab does.

use std::{
    io,
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Instant as Clock,
};

use kube::runtime::{
    reflector::{self, Store, store::Writer},
    watcher,
};
use muster_proto::{
    inventory::{Inventory, Nic},
    kinds::{BareMetalHost, Enrolment, Packed, Profile, ServerSpec, ServerStatus, Session},
};
use socket2::{Domain, Socket, Type};

use super::*;
use crate::{
    agents::token::TokenKey,
    boot::{
        dhcp::{
            corpus::packet,
            engine::{CLIENT_PORT, PXE_PORT, SERVER_PORT},
            fixtures::{PORTS, a_net, a_segment},
            leases::Proposal,
            wire::{Kind, Options, address_at},
        },
        segment::Net,
    },
    metrics::Registry,
};

mod namespace;
use namespace::Namespace;

const PATIENCE: Duration = Duration::from_secs(20);

/// One ramdisk of each profile, unless somebody took them away.
#[derive(Default)]
struct Shelf {
    is_empty: AtomicBool,
}

impl Releases for Shelf {
    fn current(&self, _: Profile) -> Option<String> {
        (!self.is_empty.load(Ordering::SeqCst)).then(|| "0".repeat(64))
    }
}

/// A server with its bridge `br0` (10.77.0.1), and a client with its port `eth0` on it.
struct Site {
    segments: Writer<Segment>,
    facts: watch::Receiver<BTreeMap<String, Facts>>,
    events: tokio::sync::mpsc::Receiver<crate::events::Happened>,
    registry: Registry,
    shelf: Arc<Shelf>,
    shutdown: watch::Sender<bool>,
    client: Namespace,
    server: Namespace,
}

impl Site {
    fn new(segment: Segment, before: impl FnOnce(&Namespace)) -> Site {
        let (server, client) = (Namespace::new(), Namespace::new());
        server.ip("link add br0 type bridge forward_delay 0 stp_state 0");
        server.ip("link set br0 up");
        server.ip("addr add 10.77.0.1/24 dev br0");
        server.cable(&client, "eth0");
        before(&server);
        let (segments, mut writer) = reflector::store();
        writer.apply_watcher_event(&watcher::Event::Init);
        writer.apply_watcher_event(&watcher::Event::InitApply(segment));
        writer.apply_watcher_event(&watcher::Event::InitDone);
        let world = a_world(segments, empty());
        let (queue, events) = tokio::sync::mpsc::channel(16);
        let (shutdown, ended) = watch::channel(false);
        let mut registry = Registry::default();
        let shelf = Arc::<Shelf>::default();
        let service = a_service(world, &shelf, Events::new(queue), &mut registry);
        let seen = service.facts.subscribe();
        server.start(move || runtime().block_on(serve(service, ended)));
        Site {
            segments: writer,
            facts: seen,
            events,
            registry,
            shelf,
            shutdown,
            client,
            server,
        }
    }

    /// Waits until what is said of the segment passes `test`.
    fn wait(&self, what: &str, test: impl Fn(&Facts) -> bool) -> Facts {
        let mut facts = self.facts.clone();
        let waiting = async {
            let all = facts
                .wait_for(|all| all.get("metal/rack").is_some_and(&test))
                .await
                .expect("the server runs");
            all["metal/rack"].clone()
        };
        runtime()
            .block_on(async { tokio::time::timeout(PATIENCE, waiting).await })
            .unwrap_or_else(|_| panic!("never: {what}; last: {:?}", self.facts.borrow()))
    }

    /// In the server's namespace, whose thread is busy serving.
    fn ip(&self, arguments: &str) {
        let status = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.server.id))
            .arg("ip")
            .args(arguments.split(' '))
            .status()
            .unwrap();
        assert!(status.success(), "ip {arguments}");
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.shutdown.send_replace(true);
    }
}

fn a_world(segments: Store<Segment>, servers: Store<Server>) -> World {
    World {
        segments,
        servers,
        written: Arc::default(),
        hosts: empty::<BareMetalHost>(),
        enrolments: empty::<Enrolment>(),
        hardware: empty(),
        machines: Arc::default(),
        unreadable: Arc::default(),
        watches: crate::watches::Watches::default(),
    }
}

fn keys() -> Arc<BootSecrets> {
    Arc::new(BootSecrets {
        ca_pem: String::new(),
        token_key: TokenKey::new(&[7; 32]),
    })
}

fn a_service(world: World, shelf: &Arc<Shelf>, events: Events, registry: &mut Registry) -> Service {
    let metrics = Metrics::register(registry);
    Service {
        dispatch: Arc::new(Dispatch::new(
            world.clone(),
            Arc::clone(shelf) as Arc<dyn Releases>,
            watch::channel(Some(keys())).1,
            events,
            metrics.clone(),
        )),
        world,
        ports: PORTS,
        metrics,
        facts: watch::channel(BTreeMap::new()).0,
        plan: watch::channel(Arc::default()).0,
    }
}

fn empty<K>() -> Store<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    stored(Vec::new())
}

fn stored<K>(objects: Vec<K>) -> Store<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    let (store, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Init);
    for object in objects {
        writer.apply_watcher_event(&watcher::Event::InitApply(object));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
    // The store would call itself unready without its writer.
    std::mem::forget(writer);
    store
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn socket(interface: &str, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    Ok(socket.into())
}

/// Broadcasts a request from `eth0` until a reply passes `test`.
fn ask(client: &Namespace, request: Vec<u8>, test: impl Fn(&[u8]) -> bool + Send + 'static) -> Vec<u8> {
    ask_at(
        client,
        request,
        SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT),
        test,
    )
    .expect("nobody answers")
    .0
}

fn ask_at(
    client: &Namespace,
    request: Vec<u8>,
    to: SocketAddrV4,
    test: impl Fn(&[u8]) -> bool + Send + 'static,
) -> Option<(Vec<u8>, SocketAddr)> {
    client.run(move || {
        let socket = socket("eth0", CLIENT_PORT).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let deadline = Clock::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while Clock::now() < deadline {
            socket.send_to(&request, to).unwrap();
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if test(&buffer[..length]) {
                    return Some((buffer[..length].to_vec(), from));
                }
            }
        }
        None
    })
}

fn server_of(reply: &[u8]) -> Option<Ipv4Addr> {
    Options::read(reply).ok()?.address(54)
}

fn from_us(reply: &[u8]) -> bool {
    server_of(reply) == Some(Ipv4Addr::new(10, 77, 0, 1))
}

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

#[test]
fn replies_come_from_the_address_that_the_segment_boots_from_however_it_is_labelled() {
    let vip = Ipv4Addr::new(10, 77, 0, 9);
    let mut segment = a_segment("br0", DhcpMode::Server);
    segment.spec.boot_address = Some(vip.to_string());
    let site = Site::new(segment, |server| {
        server.ip("addr add 10.77.0.9/24 dev br0 label br0:vip");
    });
    site.wait("serving", |facts| facts.serving.is_ok());
    let everybody = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
    let (offer, from) = ask_at(&site.client, packet("ovmf-pxe-discover"), everybody, |_| true).unwrap();
    assert_eq!(server_of(&offer), Some(vip));
    assert_eq!(from.ip(), vip);
}

#[test]
fn an_interface_with_another_mac_address_is_opened_anew() {
    let namespace = Namespace::new();
    namespace.ip("link add br0 type bridge");
    let identity = |namespace: &Namespace| namespace.run(|| links::identity("br0").unwrap());
    let before = identity(&namespace);
    assert_eq!(identity(&namespace), before);
    namespace.ip("link set br0 address 02:00:00:00:00:77");
    assert_ne!(identity(&namespace), before);
}

#[test]
fn a_taken_port_and_a_missing_ramdisk_are_told_and_served_once_they_are_there() {
    let (free, taken) = mpsc::channel();
    let site = Site::new(a_segment("br0", DhcpMode::Server), |server| {
        let squatter = server.run(|| socket("br0", SERVER_PORT).unwrap());
        free.send(squatter).unwrap();
    });
    let facts = site.wait("the port is taken", |facts| facts.serving.is_err());
    let trouble = facts.serving.unwrap_err();
    assert_eq!(trouble.reason, "PortInUse");
    assert!(
        trouble.message.contains("UDP port 67 on interface br0"),
        "{}",
        trouble.message
    );
    site.shelf.is_empty.store(true, Ordering::SeqCst);
    drop(taken.recv().unwrap());
    let lacks = |facts: &Facts| {
        facts
            .serving
            .as_ref()
            .is_err_and(|trouble| trouble.reason == "NoRamdisk")
    };
    site.wait("no ramdisk", lacks);
    site.shelf.is_empty.store(false, Ordering::SeqCst);
    site.wait("serving after all", |facts| facts.serving.is_ok());
    ask(&site.client, packet("dhclient-discover"), from_us);
}

#[test]
fn an_edge_without_keys_says_so_until_it_has_read_them() {
    let (read, secrets) = watch::channel(None);
    let dispatch = Dispatch::new(
        a_world(empty(), empty()),
        Arc::new(Shelf::default()),
        secrets,
        Events::new(tokio::sync::mpsc::channel(1).0),
        Metrics::register(&mut Registry::default()),
    );
    let net = a_net(DhcpMode::Server);
    let reason = || dispatch.lacks(&net).map(|trouble| trouble.reason);
    assert_eq!(reason(), Some("NoKeys"));
    assert!(dispatch.awaits_keys(), "it has only just begun");
    read.send_replace(Some(keys()));
    assert_eq!((reason(), dispatch.awaits_keys()), (None, false));
}

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
