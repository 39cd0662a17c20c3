//! The real sockets, in network namespaces of their own. They need root, as the lab does.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket},
    path::Path,
    process::Command,
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
use muster_proto::kinds::{BareMetalHost, BareMetalHostSpec, BareMetalHostStatus, Enrolment, Profile};
use socket2::{Domain, Socket, Type};

use super::*;
use crate::{
    bind::Port,
    boot::dhcp::{
        corpus::packet,
        door::Entrance,
        engine::{CLIENT_PORT, SERVER_PORT},
        fixtures::{PORTS, a_net, a_segment},
        metrics::Asked,
        wire::Options,
    },
    metrics::Registry,
    token::TokenKey,
};

mod beside;
mod memory;
mod namespace;
use namespace::Namespace;

const PATIENCE: Duration = Duration::from_secs(20);

/// One ramdisk of each profile, unless somebody took them away.
#[derive(Default)]
struct Shelf {
    is_empty: AtomicBool,
}

impl Releases for Shelf {
    fn directory(&self) -> &Path {
        Path::new("/srv/ramdisks")
    }

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
    closed_ports: ClosedByService,
    shutdown: watch::Sender<bool>,
    client: Namespace,
    server: Namespace,
}

impl Site {
    fn new(segment: Segment, before: impl FnOnce(&Namespace)) -> Site {
        Site::beside(segment, before, |_, _| {})
    }

    /// With `others` that follow the plan, and tell which of their ports they could not open.
    fn beside(
        segment: Segment,
        before: impl FnOnce(&Namespace),
        others: impl FnOnce(watch::Receiver<Arc<Plan>>, ClosedByService),
    ) -> Site {
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
        let closed_ports = service.closed_ports.clone();
        others(service.plan.subscribe(), closed_ports.clone());
        server.start(move || runtime().block_on(serve(service, ended)));
        Site {
            segments: writer,
            facts: seen,
            events,
            registry,
            shelf,
            closed_ports,
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
        closed_ports: ClosedByService::default(),
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
            .is_err_and(|trouble| trouble.reason == "NoRamdisk" && trouble.message.contains("/srv/ramdisks"))
    };
    site.wait("no ramdisk", lacks);
    site.shelf.is_empty.store(false, Ordering::SeqCst);
    site.wait("serving after all", |facts| facts.serving.is_ok());
    ask(&site.client, packet("dhclient-discover"), from_us);
}

#[test]
fn a_port_of_another_service_that_is_taken_is_told_until_it_is_open() {
    for mode in [DhcpMode::Server, DhcpMode::Off] {
        let site = Site::new(a_segment("br0", mode), |_| {});
        site.wait("serving", |facts| facts.serving.is_ok());
        let taken = io::Error::from(io::ErrorKind::AddrInUse);
        let agents = Port::tcp("agents", 9443);
        let elsewhere = site.closed_ports.agents.entry([10, 78, 0, 1].into(), agents);
        elsewhere.failed(&taken);
        let http = Port::tcp("HTTP", 8080);
        let here = site.closed_ports.boot.entry([10, 77, 0, 1].into(), http);
        here.failed(&taken);
        let facts = site.wait("the port is taken", |facts| facts.serving.is_err());
        let trouble = facts.serving.unwrap_err();
        assert_eq!(trouble.reason, "PortInUse");
        let words = "TCP port 8080 on 10.77.0.1 (HTTP) is in use by another program, so";
        assert!(trouble.message.starts_with(words), "{}", trouble.message);
        here.opened();
        site.wait("serving after all", |facts| facts.serving.is_ok());
    }
}

#[test]
fn a_port_where_no_machine_is_told_to_come_to_may_be_taken() {
    for (endpoint, counts) in [
        ("10.77.0.9:9443", false),
        ("[fd00::9]:9443", false),
        ("10.77.0.1:9443", true),
        // Which may lead here.
        ("edge.example:9443", true),
    ] {
        let mut segment = a_segment("br0", DhcpMode::Server);
        segment.spec.agent_endpoints = vec![endpoint.to_owned()];
        let site = Site::new(segment, |_| {});
        site.wait("serving", |facts| facts.serving.is_ok());
        let taken = io::Error::from(io::ErrorKind::AddrInUse);
        let own = IpAddr::from([10, 77, 0, 1]);
        let agents = site.closed_ports.agents.entry(own, Port::tcp("agents", 9443));
        agents.failed(&taken);
        let tftp = site.closed_ports.boot.entry(own, Port::udp("TFTP", 69));
        tftp.failed(&taken);
        let says = |facts: &Facts, port: &str| {
            let trouble = facts.serving.as_ref().err();
            trouble.is_some_and(|trouble| trouble.message.contains(port))
        };
        let facts = site.wait("the port is taken", |facts| says(facts, "port 69"));
        assert_eq!(says(&facts, "port 9443"), counts, "{endpoint}");
    }
}

#[test]
fn a_new_segment_is_not_called_served_before_its_ports_have_been_tried() {
    let (hold, held) = mpsc::channel();
    let site = Site::beside(
        a_segment("br0", DhcpMode::Server),
        |_| {},
        |mut plan, closed_ports| {
            std::thread::spawn(move || {
                runtime().block_on(async { plan.changed().await }).unwrap();
                let entry = closed_ports
                    .boot
                    .entry([10, 77, 0, 1].into(), Port::udp("TFTP", 69));
                // As a thread that has much to do.
                std::thread::sleep(LOOK / 5);
                entry.failed(&io::Error::from(io::ErrorKind::AddrInUse));
                let _ = hold.send(entry);
            });
        },
    );
    let first = site.wait("anything", |_| true);
    assert!(first.serving.is_err(), "{first:?}");
    drop(held);
    site.wait("serving after all", |facts| facts.serving.is_ok());
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

#[tokio::test]
async fn a_machine_without_boot_files_is_told_of_on_its_segment_and_its_host() {
    let spec = BareMetalHostSpec {
        boot_mac_address: Some("52:54:00:12:34:56".to_owned()),
        ..BareMetalHostSpec::default()
    };
    let mut host = BareMetalHost::new("arm", spec);
    host.metadata.namespace = Some("metal".to_owned());
    let mut status = BareMetalHostStatus::default();
    "inspecting".clone_into(&mut status.provisioning.state);
    host.status = Some(status);
    let world = World {
        hosts: stored(vec![host.clone()]),
        ..a_world(empty(), empty())
    };
    world.machines.hosts_anew(std::iter::once(&host));
    let (queue, mut waiting) = tokio::sync::mpsc::channel(8);
    let service = a_service(
        world,
        &Arc::default(),
        Events::new(queue),
        &mut Registry::default(),
    );
    let net = a_net(DhcpMode::Server);
    let segment = Arc::new(a_segment("eth1", DhcpMode::Server));
    let active = renew(&service, &mut Memories::new(), &segment, &net);
    service.dispatch.serve(Actives::from([(net.key.clone(), active)]));
    // Nothing is sent through it.
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let entrance = Arc::new(Entrance {
        interface: Some("eth1".to_owned()),
        port: SERVER_PORT,
        socket: Arc::new(socket),
        frames: None,
    });
    let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
    service
        .dispatch
        .take(&packet("ipxe-efi-arm64-discover"), from, &entrance);
    let told = std::iter::from_fn(|| waiting.try_recv().ok()).map(|happened| {
        let event = happened.event;
        assert!(event.warning && event.message.contains("arm64"), "{event:?}");
        (event.about.kind.unwrap(), event.about.name.unwrap(), event.reason)
    });
    let expected = [("Segment", "rack"), ("BareMetalHost", "arm")];
    let expected = expected.map(|(kind, name)| (kind.to_owned(), name.to_owned(), "NoBootFile"));
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[test]
fn what_was_asked_on_a_segment_is_told_of_until_that_is_deleted_and_from_0_on_once_it_is_made_anew() {
    let events = Events::new(tokio::sync::mpsc::channel(1).0);
    let mut registry = Registry::default();
    let service = a_service(a_world(empty(), empty()), &Arc::default(), events, &mut registry);
    let key = "metal/rack";
    let made = |uid: &str| {
        let mut segment = a_segment("eth1", DhcpMode::Server);
        segment.metadata.uid = Some(uid.to_owned());
        [Arc::new(segment)]
    };
    let served = Plan::from([(key.to_owned(), Ok(a_net(DhcpMode::Server)))]);
    let mut memories = Memories::new();
    let mut activate = |segments: &[Arc<Segment>], plan: &Plan| {
        super::activate(&service, segments, plan, &mut memories);
    };
    let ask = || {
        for (request, answer) in [("discover", "none"), ("discover", "offer"), ("request", "ack")] {
            let asked = Asked {
                segment: key.to_owned(),
                request,
                answer,
            };
            service.metrics.requests.get_or_create(&asked).inc();
        }
    };
    let told = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.lines()
            .filter(|line| line.starts_with("muster_dhcp_requests_total{") && line.ends_with("} 1"))
            .count()
    };

    activate(&made("first"), &served);
    ask();
    activate(&made("first"), &Plan::new());
    assert_eq!(told(), 3, "not served at the moment");
    activate(&[], &Plan::new());
    assert_eq!(told(), 0, "deleted while it was not served");

    activate(&made("second"), &served);
    ask();
    activate(&[], &Plan::new());
    assert_eq!(told(), 0, "deleted while it was served");

    activate(&made("third"), &served);
    ask();
    activate(&made("fourth"), &served);
    assert_eq!(told(), 0, "made anew between two looks");
    ask();
    activate(&made("fourth"), &served);
    assert_eq!(told(), 3);
}
