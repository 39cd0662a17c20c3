use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use muster_proto::kinds::{Dhcp, Range, SegmentSpec};
use proptest::prelude::*;

use super::*;

const PORTS: Ports = Ports {
    http: 8080,
    agents: 8443,
};

fn links() -> Vec<Link> {
    vec![
        Link {
            name: "lo".to_owned(),
            addresses: vec![Ipv4Addr::LOCALHOST],
        },
        Link {
            name: "eth1".to_owned(),
            addresses: vec![Ipv4Addr::new(192, 168, 0, 9), Ipv4Addr::new(10, 77, 0, 1)],
        },
    ]
}

fn a_range(start: &str, end: &str) -> Range {
    Range {
        start: start.to_owned(),
        end: end.to_owned(),
    }
}

fn a_spec() -> SegmentSpec {
    SegmentSpec {
        interface: Some("eth1".to_owned()),
        subnet: "10.77.0.0/24".to_owned(),
        dhcp: Dhcp {
            mode: DhcpMode::Server,
            ranges: vec![a_range("10.77.0.100", "10.77.0.199")],
            ..Dhcp::default()
        },
        quota: 10,
        ..SegmentSpec::default()
    }
}

fn named(name: &str, spec: SegmentSpec) -> Segment {
    let mut segment = Segment::new(name, spec);
    segment.metadata.namespace = Some("metal".to_owned());
    segment
}

fn checked(change: impl FnOnce(&mut SegmentSpec)) -> Result<Net, String> {
    let mut spec = a_spec();
    change(&mut spec);
    check(&named("rack", spec), &links(), PORTS).map_err(|invalid| invalid.to_string())
}

#[test]
fn defaults_come_from_the_interface_and_the_controllers_ports() {
    let net = checked(|_| {}).unwrap();
    assert_eq!(net.key, "metal/rack");
    assert_eq!(net.own, Ipv4Addr::new(10, 77, 0, 1));
    assert_eq!((net.boot, net.http_port), (net.own, 8080));
    assert_eq!(net.agent_endpoints, ["https://10.77.0.1:8443"]);
    assert_eq!(net.host_namespace, "metal");
    assert_eq!(net.handout.lease_seconds, 3600);
}

#[test]
fn what_is_written_wins_over_defaults() {
    let net = checked(|spec| {
        spec.boot_address = Some("10.9.9.9:81".to_owned());
        spec.agent_endpoints = vec!["10.9.9.9:443".to_owned(), "edge.example:443".to_owned()];
        spec.host_namespace = Some("hosts".to_owned());
    })
    .unwrap();
    assert_eq!((net.boot, net.http_port), (Ipv4Addr::new(10, 9, 9, 9), 81));
    assert_eq!(net.own, Ipv4Addr::new(10, 77, 0, 1));
    assert_eq!(
        net.agent_endpoints,
        ["https://10.9.9.9:443", "https://edge.example:443"]
    );
    assert_eq!(net.host_namespace, "hosts");
}

#[test]
fn every_rule_says_what_is_wrong() {
    type Change = fn(&mut SegmentSpec);
    let table: &[(Change, &str)] = &[
        (|s| s.subnet = "10.77.0.0".to_owned(), "is not an IPv4 subnet"),
        (|s| s.subnet = "fd00::/64".to_owned(), "is not an IPv4 subnet"),
        (
            |s| s.subnet = "10.77.0.5/24".to_owned(),
            "the subnet is 10.77.0.0/24",
        ),
        (|s| s.subnet = "10.77.0.0/31".to_owned(), "between 8 and 30"),
        (|s| s.subnet = "10.77.0.0/99".to_owned(), "between 8 and 30"),
        (
            |s| s.interface = Some("eth1/../x".to_owned()),
            "is not an interface name",
        ),
        (|s| s.interface = Some(String::new()), "is not an interface name"),
        (|s| s.interface = Some("eth9".to_owned()), "has no interface eth9"),
        (
            |s| s.interface = Some("lo".to_owned()),
            "has no address in 10.77.0.0/24",
        ),
        (|s| s.interface = None, "bootAddress must say"),
        (
            |s| s.relays = vec!["10.1".to_owned()],
            "relays `10.1` is not an IPv4 address",
        ),
        (|s| s.relays = vec!["10.1.1.1".to_owned(); 65], "at most 64"),
        (|s| s.dhcp.ranges.clear(), "there is no address to lease"),
        (
            |s| s.dhcp.ranges = vec![a_range("10.77.0.9", "10.77.0.5")],
            "ends before it starts",
        ),
        (
            |s| s.dhcp.ranges = vec![a_range("10.78.0.5", "10.78.0.9")],
            "is not a host address in",
        ),
        (
            |s| s.dhcp.ranges = vec![a_range("10.77.0.0", "10.77.0.9")],
            "is not a host address in",
        ),
        (
            |s| s.dhcp.ranges = vec![a_range("10.77.0.9", "10.77.0.255")],
            "is not a host address in",
        ),
        (
            |s| s.dhcp.ranges.push(a_range("10.77.0.150", "10.77.0.250")),
            "overlap",
        ),
        (
            |s| s.dhcp.ranges = vec![a_range("10.77.0.1", "10.77.0.9")],
            "10.77.0.1, this controller's own address",
        ),
        (
            |s| s.dhcp.router = Some("10.77.0.100".to_owned()),
            "10.77.0.100, the router's address",
        ),
        (
            |s| s.dhcp.router = Some("10.78.0.1".to_owned()),
            "dhcp.router 10.78.0.1 is not a host address",
        ),
        (
            |s| s.dhcp.dns_servers = vec!["dns".to_owned()],
            "dhcp.dnsServers `dns`",
        ),
        (
            |s| s.dhcp.ntp_servers = vec!["224.0.1.1".to_owned()],
            "dhcp.ntpServers `224.0.1.1`",
        ),
        (|s| s.dhcp.domain = Some("a b".to_owned()), "is not a domain name"),
        (|s| s.dhcp.lease_seconds = Some(5), "between 60 and 604800"),
        (
            |s| s.boot_address = Some("10.77.0.150".to_owned()),
            "10.77.0.150, the boot address",
        ),
        (|s| s.boot_address = Some("host".to_owned()), "bootAddress `host`"),
        (
            |s| s.boot_address = Some("10.77.0.1:0".to_owned()),
            "bootAddress `10.77.0.1:0`",
        ),
        (
            |s| s.agent_endpoints = vec!["10.77.0.1".to_owned()],
            "address:port",
        ),
        (
            |s| s.agent_endpoints = vec!["10.77.0:1".to_owned()],
            "address:port",
        ),
        (|s| s.proxy = Some("http://proxy".to_owned()), "host:port"),
        (
            |s| s.host_namespace = Some("A.b".to_owned()),
            "is not the name of a namespace",
        ),
        (
            |s| s.kernel_parameters = vec!["a b".to_owned()],
            "`a b` is refused",
        ),
        (|s| s.kernel_parameters = vec!["${x}".to_owned()], "is refused"),
        (
            |s| s.kernel_parameters = vec!["a".repeat(128); 16],
            "kernelParameters are 2064 characters long",
        ),
    ];
    for (change, expected) in table {
        let error = checked(change).unwrap_err();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn kernel_parameters_may_be_as_long_as_the_kernel_takes_and_no_longer() {
    let with = |last: usize| {
        checked(|spec| {
            spec.kernel_parameters = vec!["a".repeat(128); 15];
            spec.kernel_parameters.push("b".repeat(last));
        })
    };
    let last = MAX_PARAMETERS - 15 * 129 - 1;
    assert_eq!(with(last).unwrap().kernel_parameters.len(), 16);
    assert!(with(last + 1).unwrap_err().contains("has room for"));
}

#[test]
fn a_pool_of_more_than_a_16_is_refused() {
    let error = checked(|spec| {
        spec.subnet = "10.0.0.0/8".to_owned();
        spec.dhcp.ranges = vec![a_range("10.1.0.0", "10.2.0.0")];
    })
    .unwrap_err();
    assert!(error.contains("65537 addresses"), "{error}");
}

#[test]
fn a_name_that_boot_urls_have_no_room_for_is_refused() {
    let error = check(&named(&"n".repeat(96), a_spec()), &links(), PORTS).unwrap_err();
    assert_eq!(error, Invalid::Name { length: 101 });
    assert!(check(&named(&"n".repeat(95), a_spec()), &links(), PORTS).is_ok());
}

#[test]
fn a_relayed_segment_serves_as_its_boot_address() {
    let net = checked(|spec| {
        spec.interface = None;
        spec.boot_address = Some("192.168.0.9".to_owned());
        spec.relays = vec!["172.16.0.1".to_owned()];
    })
    .unwrap();
    assert_eq!(net.own, Ipv4Addr::new(192, 168, 0, 9));
    assert!(net.relays_through(Ipv4Addr::new(172, 16, 0, 1)));
    assert!(net.relays_through(Ipv4Addr::new(10, 77, 0, 254)));
    assert!(!net.relays_through(Ipv4Addr::new(10, 77, 0, 255)));
    assert!(!net.relays_through(Ipv4Addr::new(10, 78, 0, 1)));
}

#[test]
fn a_segment_may_list_as_many_servers_as_its_kind_says_and_no_more() {
    let crds = crate::manifests::crds::all();
    let kind = |crd: &&serde_json::Value| crd["spec"]["names"]["kind"] == "Segment";
    let schema = &crds.iter().find(kind).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    for list in ["dnsServers", "ntpServers"] {
        let dhcp = &schema["properties"]["spec"]["properties"]["dhcp"]["properties"];
        let most = dhcp[list]["maxItems"].as_u64().unwrap();
        let with = |count| {
            let servers = (1..=count).map(|number| format!("10.0.0.{number}")).collect();
            checked(|spec| match list {
                "dnsServers" => spec.dhcp.dns_servers = servers,
                _ => spec.dhcp.ntp_servers = servers,
            })
        };
        assert!(with(most).is_ok(), "{list}: {:?}", with(most));
        let more = with(most + 1).unwrap_err();
        assert_eq!(
            more,
            format!("dhcp.{list} has {} entries; at most {most} are allowed", most + 1)
        );
    }
}

#[test]
fn a_relayed_segment_is_served_by_the_computer_that_has_its_boot_address_alone() {
    let error = checked(|spec| {
        spec.interface = None;
        spec.boot_address = Some("192.168.0.10".to_owned());
    });
    assert_eq!(
        error.unwrap_err(),
        "no interface here has the boot address 192.168.0.10"
    );
    let elsewhere = Invalid::NotHere {
        address: Ipv4Addr::new(192, 168, 0, 10),
    };
    assert!(ELSEWHERE.contains(&elsewhere.reason()));
}

#[test]
fn boot_files_are_served_at_the_boot_address_where_it_is_here() {
    for (boot, is_here) in [("192.168.0.9", true), ("192.168.0.10", false)] {
        let net = checked(|spec| spec.boot_address = Some(boot.to_owned())).unwrap();
        let (own, boot) = (IpAddr::from(net.own), IpAddr::from(net.boot));
        let served = served(&Plan::from([(net.key.clone(), Ok(net))]));
        assert!(served.contains(&own));
        assert_eq!(served.contains(&boot), is_here, "{boot}");
    }
}

#[test]
fn of_two_that_collide_the_older_is_served_and_named() {
    let aged = |name: &str, seconds: i64, spec: SegmentSpec| {
        let mut segment = named(name, spec);
        segment.metadata.creation_timestamp = Some(Time(jiff::Timestamp::from_second(seconds).unwrap()));
        segment
    };
    let other_subnet = SegmentSpec {
        subnet: "10.78.0.0/24".to_owned(),
        ..a_spec()
    };
    let other_interface = SegmentSpec {
        interface: Some("eth2".to_owned()),
        subnet: "10.77.0.0/16".to_owned(),
        ..a_spec()
    };
    let segments = [
        aged("young", 20, a_spec()),
        aged("old", 10, a_spec()),
        aged("interface", 30, other_subnet),
        aged("subnet", 40, other_interface),
    ];
    let plan = plan(&segments, &links(), PORTS);
    assert!(plan["metal/old"].is_ok());
    for (loser, text) in [
        ("young", "has interface eth1"),
        ("interface", "has interface eth1"),
        (
            "subnet",
            "has subnet 10.77.0.0/24, which overlaps with 10.77.0.0/16",
        ),
    ] {
        let invalid = plan[&format!("metal/{loser}")].as_ref().unwrap_err();
        assert_eq!(
            invalid.to_string(),
            format!("the older segment metal/old {text}; next: delete it, or change one of the two")
        );
        assert_eq!(invalid.reason(), "Conflict");
    }
}

#[test]
fn of_two_that_collide_and_are_not_served_neither_is_said_to_be() {
    let elsewhere = |name: &str, subnet: &str| {
        let spec = SegmentSpec {
            interface: Some("br2".to_owned()),
            subnet: subnet.to_owned(),
            dhcp: Dhcp::default(),
            ..a_spec()
        };
        named(name, spec)
    };
    let segments = [elsewhere("a", "10.1.0.0/24"), elsewhere("b", "10.2.0.0/24")];
    let plan = plan(&segments, &links(), PORTS);
    let said = |key: &str| plan[key].as_ref().unwrap_err().to_string();
    assert!(
        said("metal/a").starts_with("this machine has no interface br2"),
        "{}",
        said("metal/a")
    );
    assert_eq!(
        said("metal/b"),
        "the older segment metal/a has interface br2; next: delete it, or change one of the two"
    );
}

#[test]
fn one_relay_has_one_segment() {
    let relayed = |name: &str, subnet: &str| {
        named(
            name,
            SegmentSpec {
                interface: None,
                subnet: subnet.to_owned(),
                relays: vec!["172.16.0.1".to_owned()],
                boot_address: Some("192.168.0.9".to_owned()),
                dhcp: Dhcp::default(),
                ..a_spec()
            },
        )
    };
    let plan = plan(
        &[relayed("a", "10.1.0.0/24"), relayed("b", "10.2.0.0/24")],
        &links(),
        PORTS,
    );
    assert_eq!(
        plan["metal/b"].as_ref().unwrap_err().to_string(),
        "the older segment metal/a has relay 172.16.0.1; next: delete it, or change one of the two"
    );
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[0-9]{1,3}(\\.[0-9]{1,3}){3}",
        "[0-9]{1,3}(\\.[0-9]{1,3}){3}[:/][0-9]{1,6}",
        "10\\.77\\.0\\.[0-9]{1,3}",
        Just("10.77.0.0/24".to_owned()),
        Just("eth1".to_owned()),
    ]
}

proptest! {
    #[test]
    fn no_segment_panics_and_a_valid_one_keeps_its_rules(
        words in proptest::collection::vec(any_text(), 12),
        name in proptest::option::of(any_text()),
        mode in prop_oneof![Just(DhcpMode::Server), Just(DhcpMode::Proxy), Just(DhcpMode::Off)],
        good in any::<[bool; 6]>(),
    ) {
        let mut spec = a_spec();
        let pick = |at: usize, or: &str| if good[at % 6] { or.to_owned() } else { words[at].clone() };
        spec.interface = Some(pick(0, "eth1"));
        spec.subnet = pick(1, "10.77.0.0/24");
        spec.dhcp.mode = mode;
        spec.dhcp.ranges = vec![a_range(&pick(2, "10.77.0.50"), &pick(3, "10.77.0.60"))];
        spec.dhcp.router = Some(pick(4, "10.77.0.1"));
        spec.dhcp.dns_servers = vec![pick(5, "10.77.0.1")];
        spec.boot_address = Some(pick(6, "10.77.0.1"));
        spec.agent_endpoints = vec![pick(7, "10.77.0.1:443")];
        spec.relays = vec![pick(8, "10.5.0.1")];
        spec.proxy = Some(pick(9, "proxy:3128"));
        spec.kernel_parameters = vec![pick(10, "quiet")];
        let mut segment = named("rack", spec);
        if let Some(name) = name {
            segment.metadata.name = Some(name);
        }
        if let Ok(net) = check(&segment, &links(), PORTS) {
            prop_assert!(net.subnet.is_host(net.own));
            for (start, end) in &net.handout.ranges {
                prop_assert!(start <= end);
                prop_assert!(net.subnet.is_host(*start) && net.subnet.is_host(*end));
                prop_assert!(!(*start..=*end).contains(&net.own));
            }
            prop_assert!(net.key.len() <= MAX_KEY + 1);
        }
    }
}
