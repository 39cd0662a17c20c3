use std::net::Ipv4Addr;

use muster_proto::Mac;

use super::*;
use crate::boot::dhcp::{fixtures::a_net, rogue::What};

const EDGE: &str = "rack7";

fn facts() -> Facts {
    Facts {
        generation: Some(3),
        serving: Ok(serving(&a_net(DhcpMode::Server))),
        intruders: Some(Vec::new()),
        trust_for_secrets: Trust::Segment,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn find<'a>(status: &'a SegmentStatus, type_: &str) -> Option<&'a Condition> {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)
}

#[test]
fn a_served_segment_says_how() {
    let status = status(&SegmentStatus::default(), &facts(), EDGE, at(1));
    let serving = find(&status, "Serving").unwrap();
    assert_eq!(
        (serving.status.as_str(), serving.message.as_str()),
        (
            "True",
            "DHCP server on eth1 as 10.77.0.1, leasing 10.77.0.100 to 10.77.0.199"
        )
    );
    assert_eq!(find(&status, "Alone").unwrap().status, "True");
    assert_eq!(find(&status, "SecretsProtected").unwrap().status, "False");
    assert_eq!(status.observed_generation, Some(3));
}

#[test]
fn trouble_becomes_the_condition_and_nothing_is_said_of_neighbours() {
    let trouble = Trouble {
        reason: "PortInUse",
        message: "UDP port 67 is in use".to_owned(),
    };
    let facts = Facts {
        serving: Err(trouble),
        intruders: None,
        ..facts()
    };
    let status = status(&SegmentStatus::default(), &facts, EDGE, at(1));
    let serving = find(&status, "Serving").unwrap();
    assert_eq!(
        (serving.status.as_str(), serving.reason.as_str()),
        ("False", "PortInUse")
    );
    assert_eq!(find(&status, "Alone"), None);
}

#[test]
fn ports_that_are_not_open_are_all_named_and_one_that_is_taken_is_the_reason() {
    assert_eq!(without(&[]), None);
    let refused = ClosedPort {
        is_taken: false,
        message: "UDP port 69 cannot be opened".to_owned(),
    };
    let taken = ClosedPort {
        is_taken: true,
        message: "TCP port 8080 is in use".to_owned(),
    };
    let trouble = without(&[refused.clone(), taken]).unwrap();
    assert_eq!(trouble.reason, PORT_IN_USE);
    assert_eq!(
        trouble.message,
        "UDP port 69 cannot be opened; TCP port 8080 is in use, so machines here may not boot or enrol; \
         next: it is retried every 2 s"
    );
    assert_eq!(without(&[refused]).unwrap().reason, PORT_NOT_OPENED);
}

#[test]
fn another_server_is_named() {
    let intruder = Intruder {
        server: Ipv4Addr::new(10, 77, 0, 2),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        what: What::Dhcp,
    };
    let facts = Facts {
        intruders: Some(vec![intruder]),
        ..facts()
    };
    let status = status(&SegmentStatus::default(), &facts, EDGE, at(1));
    let alone = find(&status, "Alone").unwrap();
    assert_eq!(
        (alone.status.as_str(), alone.reason.as_str()),
        ("False", "AnotherServer")
    );
    assert!(
        alone
            .message
            .contains("DHCP server 10.77.0.2 (02:00:00:00:00:01)"),
        "{}",
        alone.message
    );
}

#[test]
fn higher_trust_protects_secrets() {
    for (trust, expected) in [
        (Trust::Unknown, "False"),
        (Trust::Segment, "False"),
        (Trust::BmcDelivered, "True"),
        (Trust::Tpm, "True"),
    ] {
        let facts = Facts {
            trust_for_secrets: trust,
            ..facts()
        };
        let status = status(&SegmentStatus::default(), &facts, EDGE, at(1));
        assert_eq!(
            find(&status, "SecretsProtected").unwrap().status,
            expected,
            "{trust:?}"
        );
    }
}

#[test]
fn nothing_new_is_nothing_to_write() {
    let first = status(&SegmentStatus::default(), &facts(), EDGE, at(1));
    let mut stored = first.clone();
    stored.conditions.reverse();
    assert!(same(&stored, &status(&stored, &facts(), EDGE, at(99))));
    let edited = Facts {
        generation: Some(4),
        ..facts()
    };
    assert!(!same(&stored, &status(&stored, &edited, EDGE, at(99))));
}

#[test]
fn a_condition_keeps_its_time_until_its_status_changes() {
    let first = status(&SegmentStatus::default(), &facts(), EDGE, at(1));
    let other_words = Facts {
        serving: Ok("otherwise".to_owned()),
        ..facts()
    };
    let second = status(&first, &other_words, EDGE, at(2));
    assert_eq!(
        find(&second, "Serving").unwrap().last_transition_time,
        Time(at(1))
    );
    let trouble = Facts {
        serving: Err(Trouble {
            reason: "Invalid",
            message: String::new(),
        }),
        ..facts()
    };
    let third = status(&second, &trouble, EDGE, at(3));
    assert_eq!(find(&third, "Serving").unwrap().last_transition_time, Time(at(3)));
}

#[test]
fn who_lacks_the_interface_does_not_deny_what_another_edge_serves() {
    let elsewhere = Facts {
        serving: Err(Trouble::from(&Invalid::NoInterface {
            interface: "eth1".to_owned(),
        })),
        intruders: None,
        ..facts()
    };
    let served = status(&SegmentStatus::default(), &facts(), EDGE, at(1));
    assert_eq!(served.edge, EDGE);
    assert!(is_anothers(&served, &elsewhere, "rack8"));
    let namesake = Facts {
        serving: Err(Trouble::from(&Invalid::NoAddress {
            interface: "eth1".to_owned(),
            subnet: "10.77.0.0/24".parse().unwrap(),
        })),
        ..elsewhere.clone()
    };
    assert!(
        is_anothers(&served, &namesake, "rack8"),
        "another one of that name"
    );
    for reason in [NO_RAMDISK, NO_KEYS] {
        let lacking = Facts {
            serving: Err(Trouble {
                reason,
                message: String::new(),
            }),
            ..elsewhere.clone()
        };
        assert!(is_anothers(&served, &lacking, "rack8"), "{reason}");
        assert!(!is_anothers(&served, &lacking, EDGE), "{reason}");
    }
    assert!(!is_anothers(&served, &elsewhere, EDGE), "it was this one's");
    assert!(!is_anothers(&served, &facts(), "rack8"), "two may serve");
    let unserved = status(&served, &elsewhere, EDGE, at(2));
    assert!(!is_anothers(&unserved, &elsewhere, "rack8"), "nobody serves it");
    let taken = Facts {
        serving: Err(Trouble {
            reason: "PortInUse",
            message: "UDP port 67 is in use".to_owned(),
        }),
        ..elsewhere.clone()
    };
    assert!(!is_anothers(&served, &taken, "rack8"), "trouble of its own");
    let hampered = status(&served, &taken, EDGE, at(2));
    assert!(is_anothers(&hampered, &elsewhere, "rack8"), "it has the Segment");
    assert!(!is_anothers(&hampered, &facts(), "rack8"), "now it is served");
}
