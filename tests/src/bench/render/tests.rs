use super::*;
use crate::bench::results::{LoadRound, ProfileSizes, Sizes, Together, Try};

fn boots() -> Boots {
    let run = |visible: f64| Run {
        visible: Some(visible),
        steps: [
            ("first-dhcp", 1.0),
            ("kernel", 2.0),
            ("agent", 3.0),
            ("inventory-sent", 4.0),
        ]
        .map(|(name, at)| (name.to_owned(), at))
        .into(),
        uptimes: [
            ("agent", 1.0),
            ("dhcp", 1.5),
            ("modules", 1.9),
            ("inventory-sent", 2.0),
        ]
        .map(|(name, at)| (name.to_owned(), at))
        .into(),
        quiet: Some(0.1),
        failed: None,
    };
    Boots {
        memory_mib: 256,
        runs: vec![
            run(5.0),
            run(5.5),
            run(9.0),
            Run {
                failed: Some("no host after 90 s; the console ends with: a|b".to_owned()),
                ..Run::default()
            },
        ],
        empty: vec![Some(2.0), None, Some(3.0)],
        direct: vec![Some(1.0)],
    }
}

fn results() -> Results {
    let served = |cpu, milliseconds| Served {
        cpu,
        milliseconds,
        ..Served::default()
    };
    Results {
        command: "cargo xtask bench discovery".to_owned(),
        commit: "0123abcd".to_owned(),
        computer: Computer {
            cpu: "Example 9000".to_owned(),
            cores: 2,
            ..Computer::default()
        },
        warnings: vec!["the computer is busy".to_owned()],
        bios: Some(boots()),
        fleet: Some(Fleet {
            hosts: 2,
            rounds: vec![Together {
                visible: vec![Some(20.0), Some(25.0)],
                resident_kib: Some(20_480),
                peak_kib: Some(30_000),
            }],
            empty: vec![vec![Some(9.0), Some(10.0)]],
        }),
        load: Some(Load {
            clients: 2,
            at_once: 2,
            rounds: vec![LoadRound {
                ours: served(1.5, vec![100, 300]),
                theirs: served(2.5, vec![100, 200]),
            }],
        }),
        flood: Some(Flood {
            askers: 100_000,
            quiet: vec![Some(5.0), Some(6.0)],
            flooded: vec![Some(8.0), None],
            asking: vec![4.0, 4.5],
        }),
        sizes: Some(Sizes {
            agent: 3_200_000,
            profiles: [(
                "lab".to_owned(),
                ProfileSizes {
                    initramfs: 2_900_000,
                    ..ProfileSizes::default()
                },
            )]
            .into(),
        }),
        memory: vec![Memory {
            profile: "lab".to_owned(),
            goal_mib: 96,
            tries: vec![
                Try {
                    mib: 96,
                    seconds: Some(5.0),
                    failed: None,
                },
                Try {
                    mib: 88,
                    seconds: None,
                    failed: Some("not enough memory".to_owned()),
                },
            ],
        }],
        ..Results::default()
    }
}

#[test]
fn goals_stand_beside_results() {
    let table = table(&results());
    for line in [
        "| power-on to BareMetalHost, BIOS PXE, `lab`, median of 4 | 6.0 s | 5.50 s, 1 did not come | yes | 2.50 | 1.00 | 2.20 |",
        "| power-on to BareMetalHost, BIOS PXE, `lab`, p99 of 4 | 8.0 s | 9.00 s, 1 did not come | **no** | 2.50 | 1.00 | 3.60 |",
        "| of that, agent start to inventory sent, beyond modules, carrier and DHCP, median | 0.3 s | 0.200 s | yes | - | - | - |",
        "| 2 hosts at once, all visible, median of 1 rounds of 1 | 24 s | 25.00 s | **no** | 10.00 | - | 2.50 |",
        "| controller resident memory with 2 hosts, most of 1 rounds | 30 MiB | 20.0 MiB | yes | - | - | - |",
        "| 2 simulated clients, 2 at once: CPU, median of 1 rounds | dnsmasq + nginx in the same round: 2.50 s | 1.50 s, 0.60 times theirs | yes | - | - | - |",
        "| 2 simulated clients, 2 at once: p99 of a client, median of 1 rounds | dnsmasq + nginx in the same round: 0.20 s | 0.30 s, 1.50 times theirs | **no** | - | - | - |",
        "| power-on to BareMetalHost while 100000 addresses ask for a lease, BIOS PXE, `lab`, median of 2 | twice the time in quiet: 11.00 s | 8.00 s, 1 did not come | yes | - | - | - |",
        "| agent, static, stripped | 4.0 MB | 3.20 MB (3200000 bytes) | yes | - | - | - |",
        "| guest memory it needs, `lab`, least tried that works | 96 MiB | 96 MiB | yes | - | - | - |",
    ] {
        assert!(table.lines().any(|found| found == line), "no {line}\nin\n{table}");
    }
}

#[test]
fn page_names_machine_command_warnings_and_failures() {
    let page = page(&results());
    for line in [
        "| command | `cargo xtask bench discovery` |",
        "| processors | 2 × Example 9000 |",
        "- the computer is busy",
        "Failed: no host after 90 s; the console ends with: a/b",
        "3 came, 1 did not.",
        "| the agent starts | 3.00 | 1.00 |",
        "Empty `/init`, the same way: 2 of 3 came; median 2.50, least 2.00, most 3.00.",
        "| 1 | 20.00 | 25.00 | 0 | 20480 | 30000 |",
        "| 2 | 6.00 | - | 4.5 |",
        "| `lab` | 88 | fails: not enough memory |",
    ] {
        assert!(page.lines().any(|found| found == line), "no {line}\nin\n{page}");
    }
}

#[test]
fn results_without_anything_are_a_page_too() {
    let nothing = Results {
        bios: Some(Boots::default()),
        uefi: Some(Boots::default()),
        fleet: Some(Fleet::default()),
        load: Some(Load::default()),
        ..Results::default()
    };
    let page = page(&nothing);
    assert!(page.contains("UEFI HTTP boot") && !page.contains("NaN"), "{page}");
}

#[test]
fn results_survive_their_file() {
    let results = results();
    let text = crate::bench::to_json(&results).unwrap();
    assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
    assert!(
        text.lines()
            .any(|line| line.trim() == "\"milliseconds\": [100, 300],"),
        "{text}"
    );
}
