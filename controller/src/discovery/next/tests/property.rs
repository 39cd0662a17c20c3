use muster_proto::inventory::{Disk, Nic};
use proptest::prelude::*;

use crate::host::owner::is_discovered;

use super::{
    sim::{HOSTS, Sim, mac, machine},
    *,
};

/// What a machine, a person or another controller does.
#[derive(Clone, Debug)]
enum Step {
    Report {
        server: u8,
        mac: u8,
        serial: String,
        memory: u16,
        contested: bool,
    },
    Declare {
        name: u8,
        mac: Option<u8>,
    },
    Delete {
        host: usize,
    },
    State {
        host: usize,
        state: &'static str,
    },
    Annotate {
        host: usize,
        name: &'static str,
    },
    Approve {
        server: u8,
    },
    Forget {
        server: u8,
    },
    Clash {
        server: u8,
        other: u8,
    },
    Rounds {
        effects: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let serial = prop_oneof![
        Just("J5K2X93".to_owned()),
        Just("To Be Filled By O.E.M.".to_owned()),
        Just("a: [b]\n- {{x}} #!ipxe ${net0/mac}".to_owned()),
        any::<String>(),
    ];
    let state = prop_oneof![
        Just("provisioned"),
        Just("available"),
        Just("inspecting"),
        Just("unmanaged"),
        Just("")
    ];
    let name = prop_oneof![
        Just(INSPECT_ANNOTATION),
        Just(muster_proto::kinds::PAUSED_ANNOTATION),
        Just("example.com/x")
    ];
    prop_oneof![
        4 => (0..3_u8, 0..4_u8, serial, any::<u16>(), prop::bool::weighted(0.1))
            .prop_map(|(server, mac, serial, memory, contested)| Step::Report { server, mac, serial, memory, contested }),
        1 => (0..3_u8, prop::option::of(0..4_u8)).prop_map(|(name, mac)| Step::Declare { name, mac }),
        1 => any::<usize>().prop_map(|host| Step::Delete { host }),
        1 => (any::<usize>(), state).prop_map(|(host, state)| Step::State { host, state }),
        1 => (any::<usize>(), name).prop_map(|(host, name)| Step::Annotate { host, name }),
        1 => (0..3_u8).prop_map(|server| Step::Approve { server }),
        1 => (0..3_u8).prop_map(|server| Step::Forget { server }),
        1 => (0..3_u8, 0..3_u8).prop_map(|(server, other)| Step::Clash { server, other }),
        3 => (0..6_usize).prop_map(|effects| Step::Rounds { effects }),
    ]
}

fn take(sim: &mut Sim, step: &Step) {
    let nth = |sim: &Sim, index: usize| {
        let names = sim.names();
        (!names.is_empty()).then(|| names[index % names.len()].clone())
    };
    let is = |sim: &Sim, server: u8| {
        sim.servers
            .iter()
            .any(|one| server_name(one) == format!("s{server}"))
    };
    match step {
        Step::Report {
            server,
            mac,
            serial,
            memory,
            contested,
        } => {
            let mut inventory = machine(serial, *mac);
            inventory.memory.installed_mib = (*memory).into();
            sim.reports(&format!("s{server}"), inventory);
            sim.change_server(&format!("s{server}"), |server| {
                server.status.as_mut().unwrap().contested = *contested;
            });
        }
        Step::Declare { name, mac: boot } => {
            let name = format!("declared{name}");
            if !sim.names().contains(&name) {
                sim.declare(HOSTS, &name, boot.map(mac));
            }
        }
        Step::Delete { host } => {
            if let Some(name) = nth(sim, *host) {
                sim.delete_host(&name);
            }
        }
        Step::State { host, state } => {
            if let Some(name) = nth(sim, *host) {
                sim.set_state(&name, state);
            }
        }
        Step::Annotate { host, name } => {
            if let Some(at) = nth(sim, *host) {
                sim.annotate_host(&at, name);
            }
        }
        Step::Approve { server } if is(sim, *server) => {
            sim.annotate_server(&format!("s{server}"), APPROVE_ANNOTATION);
        }
        Step::Forget { server } => sim.servers.retain(|one| server_name(one) != format!("s{server}")),
        Step::Clash { server, other } if is(sim, *server) => {
            sim.change_server(&format!("s{server}"), |one| {
                one.status.as_mut().unwrap().clashes = vec![format!("s{other}")];
            });
        }
        Step::Approve { .. } | Step::Clash { .. } => {}
        Step::Rounds { effects } => {
            sim.round(*effects);
        }
    }
}

/// `host` but for its version and a request for an inspection, which is taken off when that has ended.
fn kept(host: &BareMetalHost) -> BareMetalHost {
    let mut host = host.clone();
    host.metadata.resource_version = None;
    let annotations = host.metadata.annotations.get_or_insert_default();
    annotations.remove(INSPECT_ANNOTATION);
    host
}

fn declared(sim: &Sim) -> Vec<BareMetalHost> {
    let hosts = sim.hosts.iter().filter(|host| hosts::made_for(host).is_none());
    hosts.map(|host| kept(host)).collect()
}

/// The hosts that are past discovery.
fn past(sim: &Sim) -> Vec<BareMetalHost> {
    let hosts = sim.hosts.iter().filter(|host| !is_discovered(host));
    hosts.map(|host| kept(host)).collect()
}

fn policy() -> impl Strategy<Value = UnknownPolicy> {
    prop_oneof![Just(UnknownPolicy::Hold), Just(UnknownPolicy::Discover)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Whatever happened, with a controller that dies between any two effects: it comes to rest, no machine has two hosts of
    /// ours, and what somebody declared is as they left it.
    #[test]
    fn every_history_comes_to_rest(policy in policy(), steps in prop::collection::vec(step(), 1..24)) {
        let mut sim = Sim::new(policy);
        for step in &steps {
            let before = declared(&sim);
            let by_us = matches!(step, Step::Rounds { .. });
            take(&mut sim, step);
            prop_assert!(!by_us || declared(&sim) == before);
        }
        let before = declared(&sim);
        let protected = past(&sim);
        sim.settle();
        prop_assert_eq!(declared(&sim), before);
        for host in protected {
            prop_assert!(past(&sim).contains(&host), "changed: {:?}", host);
        }
        for server in &sim.servers {
            let ours: Vec<_> = sim.hosts.iter().filter(|host| hosts::made_for(host) == Some(server_name(server))).collect();
            prop_assert!(ours.len() <= 1, "{:?}", sim.names());
        }
        for host in &sim.hosts {
            let name = host.metadata.name.as_deref().unwrap_or_default();
            prop_assert!(name.len() <= 63 && text::dns_label(name, 63) == name);
            for (key, value) in host.metadata.labels.iter().flatten() {
                prop_assert_eq!(&text::label_value(value), value, "{}", key);
            }
        }
    }

    /// A fresh machine needs three rounds, and a crash between any two effects leads to the same end.
    #[test]
    fn a_crash_between_any_two_effects_replays_to_the_same_end(
        policy in policy(),
        serial: String,
        deaths in prop::collection::vec(0..5_usize, 0..6),
    ) {
        let fresh = || {
            let mut sim = Sim::new(policy);
            sim.reports("a", machine(&serial, 1));
            sim
        };
        let mut whole = fresh();
        prop_assert!(whole.settle() <= 3);
        let mut broken = fresh();
        for effects in deaths {
            broken.round(effects);
        }
        broken.settle();
        prop_assert_eq!(whole.outline(), broken.outline());
    }

    #[test]
    fn any_inventory_is_survived(
        texts in prop::collection::vec(any::<String>(), 6),
        macs in prop::collection::vec(any::<[u8; 6]>(), 0..6),
        numbers: (u64, f64, u32),
    ) {
        let mut inventory = machine(&texts[0], 1);
        inventory.system.manufacturer = texts[1].clone();
        inventory.cpu.arch = texts[2].clone();
        inventory.disks = texts.iter().map(|text| Disk { name: text.clone(), ..Disk::default() }).collect();
        inventory.nics = macs.iter().map(|mac| Nic { mac: Some(muster_proto::Mac(*mac)), name: texts[3].clone(), ..Nic::default() }).collect();
        inventory.boot.mac = macs.first().map(|mac| muster_proto::Mac(*mac));
        inventory.identity.macs = macs.iter().map(|mac| muster_proto::Mac(*mac)).collect();
        inventory.memory.installed_mib = numbers.0;
        inventory.cpu.max_mhz = numbers.1;
        inventory.cpu.threads = numbers.2;
        let mut sim = Sim::new(UnknownPolicy::Discover);
        sim.reports("a", inventory.clone());
        prop_assert!(sim.settle() <= 3);
        prop_assert_eq!(sim.hosts.len(), 1);
        inventory.disks.truncate(1);
        sim.reports("a", inventory);
        sim.settle();
        prop_assert_eq!(sim.hosts.len(), 1);
    }
}
