use super::{super::results::*, *};

fn stage(hosts: u32, way: &str, cpu: f64) -> Stage {
    let all = usize::try_from(hosts).unwrap();
    let events = u64::from(hosts) * 6;
    let operations = ["register", "inspect", "provision"];
    Stage {
        seconds: 65.0,
        requests: [
            ("POST events".to_owned(), events),
            ("GET secrets".to_owned(), events),
        ]
        .into(),
        controller_cpu: cpu,
        resident_kib: 50 << 10,
        peak_kib: 61 << 10,
        seen: Seen {
            ways: [(way.to_owned(), all)].into(),
            history: operations.map(|operation| (operation.to_owned(), all)).into(),
            ..Seen::default()
        },
        ..Stage::default()
    }
}

fn round(hosts: u32, cpu: f64) -> Round {
    let stored = Stored {
        objects: hosts.into(),
        sample: 500,
        protobuf: true,
        bytes: 20 << 10,
    };
    Round {
        hosts,
        fleets: 2,
        available: Some(stage(hosts, AVAILABLE, cpu)),
        provisioned: Some(stage(hosts, PROVISIONED, cpu)),
        stored: [("servers".to_owned(), stored)].into(),
        idle: Some(Idle {
            seconds: 3600.0,
            writes: [("PATCH servers/status".to_owned(), u64::from(hosts))].into(),
            ..Idle::default()
        }),
        ..Round::default()
    }
}

#[test]
fn each_goal_stands_beside_what_was_measured() {
    let results = HostsResults {
        rounds: vec![round(1000, 10.0), round(10_000, 150.0)],
        typical: Some(round(100, 10.0)),
        peer: Some(Peer {
            version: "v1.2.3".to_owned(),
            arguments: "-workers 50".to_owned(),
            round: round(1000, 20.0),
        }),
        failover: Some(Failover {
            hosts: 1000,
            busy: 900,
            lease: [15.0, 2.0],
            waits: vec![1.0, 20.5],
            provisioned: 1000,
            rewritten: 1,
            ..Failover::default()
        }),
        ..HostsResults::default()
    };
    let page = page(&results);
    for row in [
        "| 1000 hosts, created to available: time | 70 s | 65.0 s | yes | 65.0 s |",
        "| 1000 hosts, created to available: controller's CPU a host |  | 10.0 ms |  | 20.0 ms |",
        "| 10000 hosts, created to available: time |  | 65.0 s |  |  |",
        "## 1000 hosts with baremetal-operator, without hardware",
        "baremetal-operator, v1.2.3, with its fixture provisioner",
        "`-workers 50`",
        "| 1000 hosts, created to available: API requests a host | 18 | 12.0 | yes |",
        "| 1000 hosts, created to available: API requests a host, without Events | 10 | 6.0 | yes |",
        "| 1000 hosts, available to provisioned: API requests a host | 8 | 12.0 | **no** |",
        "| 1000 hosts: controller's memory at its most | 60 MiB | 61 MiB | **no** |",
        "| 10000 hosts: controller's memory at its most | 300 MiB | 61 MiB | yes |",
        "| 1000 hosts: bytes in etcd a host |  | 20.0 KiB |  | 20.0 KiB |",
        "| 100 available hosts with 12 disks each: bytes in etcd a host | 48 KiB | 20.0 KiB | yes |  |",
        "with 100 available hosts of 12 disks",
        "| 1000 hosts left alone for 3600 s: writes an hour and host | 0 | 1.00 | **no** |",
        "| created to available: controller's CPU a host, 10000 against 1000 hosts | 1.2 times | 1.50 times | **no** |",
        "| leader killed, 900 of 1000 hosts busy: the longest that one waited | lease + 5 s = 20 s | 20.5 s | **no** |",
        "| leader killed: hosts provisioned, hosts written more than once | 1000, 0 | 1000, 1 | **no** |",
        "| POST events | 6000 | 6.00 |",
    ] {
        assert!(page.contains(row), "{row}\n{page}");
    }
    assert!(
        page.contains("has register and inspect | all | 1000 and 1000 | yes |"),
        "{page}"
    );
    // The leader's round saw no host at all.
    assert!(page.contains("| all | 0 and 0 | **no** |"), "{page}");
}

#[test]
fn what_was_not_measured_is_not_shown() {
    let mut results = HostsResults::default();
    results.rounds.push(Round {
        hosts: 1000,
        ..Round::default()
    });
    results.warnings.push("a | b".to_owned());
    let page = page(&results);
    assert!(!page.contains("**no**") && !page.contains("| yes |"), "{page}");
    assert!(!page.contains("baremetal-operator"), "{page}");
    assert!(page.contains("- a / b"), "{page}");
}
