use std::path::Path;

use muster_proto::kinds::{BareMetalHost, BareMetalHostSpec, DhcpMode, Profile, Server};
use tokio::net::UdpSocket;

use super::*;
use crate::{
    boot::dhcp::{
        corpus::{packet, request},
        engine::{CLIENT_PORT, SERVER_PORT},
        fixtures::{a_net, a_segment},
        leases::{Claim, Ruling},
    },
    events::Happened,
    fake_api::FakeApi,
    log::said::Said,
    metrics::Registry,
};

fn active(name: &str, change: impl FnOnce(&mut Net)) -> (String, Active) {
    let mut net = a_net(DhcpMode::Server);
    net.key = name.to_owned();
    change(&mut net);
    let active = Active {
        segment: Arc::new(a_segment("eth1", DhcpMode::Server)),
        leases: Arc::new(Mutex::new(Leases::new(Pool::of(&net), Duration::from_secs(3600)))),
        watch: Arc::default(),
        net: Arc::new(net),
    };
    (name.to_owned(), active)
}

fn actives() -> Actives {
    Actives::from([
        active("local", |_| {}),
        active("relayed", |net| {
            net.interface = None;
            net.subnet = "10.78.0.0/24".parse().unwrap();
        }),
        active("listed", |net| {
            net.interface = None;
            net.subnet = "10.79.0.0/24".parse().unwrap();
            // A relay agent of this segment may have its address in another one.
            net.relays = vec![Ipv4Addr::new(10, 78, 0, 9)];
        }),
    ])
}

fn routed(interface: Option<&str>, giaddr: [u8; 4], ciaddr: [u8; 4]) -> Option<String> {
    let request = Request {
        giaddr: giaddr.into(),
        ciaddr: ciaddr.into(),
        ..request("dhclient-discover")
    };
    route(&actives(), interface, &request).map(|active| active.net.key.clone())
}

#[test]
fn a_direct_request_belongs_to_the_interfaces_segment() {
    assert_eq!(routed(Some("eth1"), [0; 4], [0; 4]).as_deref(), Some("local"));
    assert_eq!(routed(Some("eth2"), [0; 4], [0; 4]), None);
    assert_eq!(routed(None, [0; 4], [0; 4]), None);
}

#[test]
fn a_relayed_request_belongs_to_the_relays_segment() {
    for interface in [None, Some("eth1")] {
        assert_eq!(
            routed(interface, [10, 78, 0, 1], [0; 4]).as_deref(),
            Some("relayed")
        );
        assert_eq!(
            routed(interface, [10, 78, 0, 9], [0; 4]).as_deref(),
            Some("listed")
        );
        assert_eq!(
            routed(interface, [10, 77, 0, 254], [0; 4]).as_deref(),
            Some("local")
        );
        assert_eq!(routed(interface, [172, 16, 0, 1], [0; 4]), None);
    }
}

#[test]
fn a_client_behind_a_relay_renews_directly() {
    assert_eq!(routed(None, [0; 4], [10, 78, 0, 150]).as_deref(), Some("relayed"));
    assert_eq!(
        routed(Some("eth1"), [0; 4], [10, 78, 0, 150]).as_deref(),
        Some("relayed")
    );
    assert_eq!(
        routed(Some("eth1"), [0; 4], [10, 77, 0, 150]).as_deref(),
        Some("local")
    );
}

#[test]
fn only_a_machine_that_is_to_boot_and_cannot_is_told_of() {
    let arm = request("ipxe-efi-arm64-discover");
    let why = decide::unfit(&arm).unwrap();
    let told = unfit(&arm, &Step::Silence(why)).unwrap();
    assert!(
        told.contains("52:54:00:12:34:56") && told.contains("arm64") && told.contains("next: "),
        "{told}"
    );
    for (request, step) in [
        (&arm, Step::Silence("nobody has described it")),
        (&arm, Step::Probe(Ipv4Addr::LOCALHOST)),
        (&request("ovmf-pxe-discover"), Step::Silence(why)),
    ] {
        assert_eq!(unfit(request, &step), None, "{step:?}");
    }
}

#[test]
fn while_hosts_cannot_be_watched_the_boot_script_says_who_boots_its_own_disk() {
    let mac = Mac([0x52, 0x54, 0, 0, 0, 9]);
    let spec = BareMetalHostSpec {
        boot_mac_address: Some(mac.to_string()),
        ..BareMetalHostSpec::default()
    };
    let mut host = BareMetalHost::new("h", spec);
    let status = host.status.get_or_insert_default();
    "provisioned".clone_into(&mut status.provisioning.state);
    let api = FakeApi::new();
    api.put("baremetalhosts", &host);
    let world = api.world();
    let dispatch = Dispatch::new(
        world.clone(),
        Arc::new(Empty),
        watch::channel(None).1,
        Events::new(mpsc::channel(1).0),
        Metrics::register(&mut Registry::default()),
    );
    let segment = a_segment("eth1", DhcpMode::Server);
    let boots_disk = |name: &str, has_files: bool| {
        let request = Request { mac, ..request(name) };
        let verdict = dispatch.verdict(&request, &segment, has_files);
        matches!(verdict, Verdict::Disk(_))
    };
    let by_script = ["ovmf-pxe-discover", "ipxe-rom-bios-discover"];
    let others = ["ovmf-http-discover", "ipxe-efi-arm64-discover"];
    assert!(by_script.iter().chain(&others).all(|name| boots_disk(name, true)));
    world
        .watches
        .failed("BareMetalHost", &std::io::Error::other("gone"));
    for name in by_script {
        assert!(!boots_disk(name, true) && boots_disk(name, false), "{name}");
    }
    for name in others {
        assert!(boots_disk(name, true), "{name}: it comes by no script");
    }
}

/// A door at `eth1` that probes nothing.
async fn entrance() -> Entrance {
    Entrance {
        interface: Some("eth1".to_owned()),
        port: SERVER_PORT,
        socket: Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap()),
        frames: None,
    }
}

const NOWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);

#[tokio::test]
async fn a_machine_that_is_left_to_its_disk_for_anothers_uuid_is_told_of_in_either_mode() {
    let asked = packet("ovmf-pxe-discover");
    let api = FakeApi::new();
    let server: Server = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "s"},
        "spec": {"host": {"namespace": "metal", "name": "h", "uid": "1"}},
        "status": {"identity": {
            "macs": ["02:00:00:00:00:01"],
            "systemUuid": request("ovmf-pxe-discover").uuid().unwrap(),
        }},
    }))
    .unwrap();
    api.put("servers", &server);
    let mut host = BareMetalHost::new("h", BareMetalHostSpec::default());
    host.metadata.namespace = Some("metal".to_owned());
    let status = host.status.get_or_insert_default();
    "provisioned".clone_into(&mut status.provisioning.state);
    api.put("baremetalhosts", &host);
    let entrance = Arc::new(entrance().await);
    for mode in [DhcpMode::Server, DhcpMode::Proxy] {
        let (queue, mut told) = mpsc::channel(8);
        let dispatch = Arc::new(Dispatch::new(
            api.world(),
            Arc::new(Empty),
            watch::channel(None).1,
            Events::new(queue),
            Metrics::register(&mut Registry::default()),
        ));
        dispatch.serve(Actives::from([active("local", |net| net.mode = mode)]));
        let said = Said::listen();
        dispatch.take(&asked, NOWHERE, &entrance);
        let Happened { event, .. } = told.try_recv().unwrap();
        assert_eq!(
            (event.reason, event.about.name.as_deref()),
            ("SharedUuid", Some("s"))
        );
        assert!(event.message.contains("52:54:00:12:34:56"), "{}", event.message);
        assert!(told.try_recv().is_err(), "one packet, one Event");
        assert_eq!(said.count(&["a NIC that nobody has seen"]), 1, "{}", said.text());
    }
}

#[tokio::test]
async fn a_segment_without_a_free_address_is_told_of_once_whoever_asks_and_a_holder_is_answered() {
    let only = Ipv4Addr::new(10, 77, 0, 150);
    let machine = |last| Mac([0x52, 0x54, 0, 0, 0, last]);
    let entrance = Arc::new(entrance().await);
    for (mode, answers, events) in [
        (DhcpMode::Server, ["offer", NO_ANSWER, NO_ANSWER], [0, 1, 0]),
        (DhcpMode::Proxy, [NO_ANSWER; 3], [0; 3]),
        (DhcpMode::Off, [NO_ANSWER; 3], [0; 3]),
    ] {
        let (queue, mut told) = mpsc::channel(8);
        let dispatch = Arc::new(Dispatch::new(
            FakeApi::new().world(),
            Arc::new(Empty),
            watch::channel(None).1,
            Events::new(queue),
            Metrics::register(&mut Registry::default()),
        ));
        let served = Actives::from([active("local", |net| {
            net.mode = mode;
            net.handout.ranges = vec![(only, only)];
        })]);
        let ruling = served["local"]
            .leases()
            .rule(machine(0), Claim::Selecting(only), Duration::ZERO);
        assert_eq!(ruling, Ruling::Yes(only));
        dispatch.serve(served);
        let counted = |answer| {
            let asked = Asked {
                segment: "local".to_owned(),
                request: "discover",
                answer,
            };
            dispatch.metrics.requests.get_or_create(&asked).get()
        };
        for (last, (answer, events)) in (0..).zip(answers.into_iter().zip(events)) {
            let mut asked = packet("dhclient-discover");
            asked[28..34].copy_from_slice(&machine(last).0);
            let before = counted(answer);
            dispatch.take(&asked, NOWHERE, &entrance);
            assert_eq!(counted(answer), before + 1, "{mode:?}, machine {last}: {answer}");
            let told: Vec<Event> = std::iter::from_fn(|| told.try_recv().ok())
                .map(|happened| happened.event)
                .collect();
            assert_eq!(told.len(), events, "{mode:?}, machine {last}: {told:?}");
            for event in told {
                assert_eq!(
                    (event.reason, event.warning, event.about.name.as_deref()),
                    ("NoFreeAddress", true, Some("rack"))
                );
                for words in ["spec.dhcp.ranges is free (1 in total)", "next: ", "(3600 now)"] {
                    assert!(event.message.contains(words), "{}", event.message);
                }
            }
        }
    }
}

/// There is no ramdisk.
struct Empty;

impl Releases for Empty {
    fn directory(&self) -> &Path {
        Path::new("/boot")
    }

    fn current(&self, _: Profile) -> Option<String> {
        None
    }
}

#[tokio::test]
async fn an_answer_that_comes_when_its_segment_is_gone_brings_back_no_series_of_it() {
    let mut registry = Registry::default();
    let dispatch = Dispatch::new(
        FakeApi::new().world(),
        Arc::new(Empty),
        watch::channel(None).1,
        Events::new(mpsc::channel(1).0),
        Metrics::register(&mut registry),
    );
    let entrance = entrance().await;
    let served = Actives::from([active("local", |_| {})]);
    let former = served["local"].clone();
    let address = Ipv4Addr::new(10, 77, 0, 150);
    let told = || {
        let asked = request("dhclient-discover");
        dispatch.unprobed(&asked, address, SERVER_PORT, &former);
        let silence = Step::Silence("all addresses are in use");
        dispatch.finish(&asked, &silence, NOWHERE, &entrance, &former);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        ["muster_dhcp_unprobed_total{", "muster_dhcp_requests_total{"].map(|name| text.contains(name))
    };
    assert_eq!(told(), [false, false], "it is not served");
    dispatch.serve(served);
    assert_eq!(told(), [true, true]);
}
