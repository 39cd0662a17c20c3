use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use muster_proto::inventory::{LOADING, Nic, Warning};
use muster_proto::kinds::{
    BmcDetails, Job, JobAction, JobStatus, PAUSED_ANNOTATION, SERVER_ANNOTATION, SessionState,
};

use super::{
    sim::{self, HOSTS, Sim, mac, machine},
    *,
};
use crate::host::{owner::TRUST_ANNOTATION, plan::FINALIZER};

fn discovered() -> Sim {
    let mut sim = Sim::new(UnknownPolicy::Hold);
    sim.reports("a", machine("J5K2X93", 1));
    sim.settle();
    sim
}

const NAME: &str = "dell-j5k2x93";

#[test]
fn an_unknown_machine_becomes_a_host_in_two_rounds() {
    let mut sim = Sim::new(UnknownPolicy::Hold);
    sim.reports("a", machine("J5K2X93", 1));
    assert_eq!(sim.settle(), 2);
    let host = sim.host(NAME);
    assert_eq!(host.metadata.namespace.as_deref(), Some(HOSTS));
    assert!(host.spec.online && host.spec.bmc.is_none());
    assert_eq!(host.spec.boot_mac_address, Some(mac(1).to_string()));
    let status = host.status.as_ref().unwrap();
    assert_eq!(status.provisioning.state, "unmanaged");
    assert!(status.powered_on);
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|one| (one.type_.as_str(), one.status.as_str(), one.reason.as_str()))
        .collect();
    assert_eq!(
        conditions,
        [
            ("Manageable", "False", "NotManaged"),
            ("AvailableForProvisioning", "False", "NotAvailable"),
            ("Provisioned", "False", "NotProvisioned"),
            ("Ready", "False", "NotProvisioned"),
            ("Progressing", "False", "NotProgressing"),
            ("Healthy", "Unknown", "Unknown"),
            ("Waiting", "True", "Management"),
        ]
    );
    let waits = &status.conditions.last().unwrap().message;
    assert!(waits.contains("next: ") && waits.contains(" (since "), "{waits}");
    assert_eq!(sim.hardware[0].spec.hardware, status.hardware);
    assert_eq!(
        sim.hardware[0].metadata.owner_references.as_ref().unwrap()[0].uid,
        host.metadata.uid.clone().unwrap()
    );
    assert_eq!(sim.server("a").spec.host, Some(hosts::reference(host)));
    assert_eq!(
        sim.told.iter().map(|event| event.reason).collect::<Vec<_>>(),
        ["Discovered"]
    );
}

#[test]
fn the_same_machine_again_changes_nothing() {
    let mut sim = discovered();
    sim.reports("a", machine("J5K2X93", 1));
    assert_eq!(sim.plan_of("a").effects, []);
}

#[test]
fn changed_hardware_shows_on_the_same_object() {
    let mut sim = discovered();
    let mut inventory = machine("J5K2X93", 1);
    inventory.disks.clear();
    inventory.memory.installed_mib = 8192;
    sim.reports("a", inventory);
    sim.settle();
    assert_eq!(sim.names(), [NAME]);
    assert_eq!(
        sim.host(NAME)
            .status
            .as_ref()
            .unwrap()
            .hardware
            .as_ref()
            .unwrap()
            .unpack()
            .ram_mebibytes,
        Some(8192)
    );
    assert_eq!(
        sim.hardware[0]
            .spec
            .hardware
            .as_ref()
            .unwrap()
            .unpack()
            .ram_mebibytes,
        Some(8192)
    );
    let event = sim.told.last().unwrap();
    assert_eq!(event.reason, "HardwareChanged");
    assert_eq!(
        event.message,
        "disk disk-1 (1099511627776 bytes) removed; memory 4096 MiB -> 8192 MiB"
    );
}

#[test]
fn a_replaced_nic_or_serial_keeps_the_name() {
    let mut sim = discovered();
    sim.reports("a", machine("OTHER1", 2));
    sim.settle();
    assert_eq!(sim.names(), [NAME]);
    let status = sim.host(NAME).status.as_ref().unwrap();
    let hardware = status.hardware.as_ref().unwrap().unpack();
    assert_eq!(hardware.nics[0].mac, Some(mac(2).to_string()));
}

#[test]
fn a_host_that_nobody_touched_declares_a_nic_that_its_machine_has() {
    let mut sim = discovered();
    let declared = |sim: &Sim| hosts::declared_mac(sim.host(NAME));
    // Another one of it boots now.
    let mut with_both = machine("J5K2X93", 2);
    with_both.nics.extend(machine("J5K2X93", 1).nics);
    sim.reports("a", with_both);
    sim.settle();
    assert_eq!(declared(&sim), Some(mac(1)));
    // Its driver may only be late.
    let mut early = machine("J5K2X93", 2);
    early.warnings = vec![Warning {
        collector: LOADING.to_owned(),
        ..Warning::default()
    }];
    sim.reports("a", early);
    sim.now = "2026-11-23T08:00:00Z".parse().unwrap();
    sim.settle();
    assert_eq!(declared(&sim), Some(mac(1)));
    sim.reports("a", machine("J5K2X93", 2));
    sim.settle();
    assert_eq!(declared(&sim), Some(mac(2)));
    let told = sim.told.iter().map(|event| (event.reason, event.message.clone()));
    let told: Vec<_> = told.filter(|(reason, _)| *reason == "NicReplaced").collect();
    assert!(
        told.len() == 1 && told[0].1.contains(&mac(2).to_string()),
        "{told:?}"
    );
    // One that nobody knows is yet to be put in: a person wrote that.
    sim.change_host(NAME, |host| host.spec.boot_mac_address = Some(mac(8).to_string()));
    sim.settle();
    assert_eq!(declared(&sim), Some(mac(8)));
    sim.change_host(NAME, |host| host.spec.boot_mac_address = Some(mac(2).to_string()));
    sim.change_host(NAME, |host| host.spec.bmc = Some(BmcDetails::default()));
    sim.reports("a", machine("J5K2X93", 3));
    sim.settle();
    assert_eq!(declared(&sim), Some(mac(2)));
}

#[test]
fn a_host_after_the_pattern_of_another_is_another_machines_if_it_declares_another_nic() {
    for (is_ours_touched, is_theirs_touched) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut sim = discovered();
        let mut pattern = sim.host(NAME).clone();
        pattern.metadata.name = Some("rack2".to_owned());
        pattern.spec.boot_mac_address = Some(mac(2).to_string());
        if is_theirs_touched {
            pattern.spec.bmc = Some(BmcDetails::default());
        }
        sim.add_host(pattern);
        if is_ours_touched {
            sim.change_host(NAME, |host| host.spec.bmc = Some(BmcDetails::default()));
        }
        sim.settle();
        assert_eq!(
            sim.names(),
            [NAME, "rack2"],
            "{is_ours_touched} {is_theirs_touched}"
        );
        let own = Some(hosts::reference(sim.host(NAME)));
        assert_eq!(sim.server("a").spec.host, own);
        assert!(sim.notices().contains(&("rack2".to_owned(), "OtherMachine")));
        // As it is told.
        sim.change_host("rack2", |host| host.metadata.annotations = None);
        sim.reports("b", machine("OTHER2", 2));
        sim.settle();
        assert_eq!(sim.names(), [NAME, "rack2"]);
        let theirs = Some(hosts::reference(sim.host("rack2")));
        assert_eq!(sim.server("b").spec.host, theirs);
    }
}

/// The discovered host of server `a`, and one that somebody made after its pattern for another machine, and has given a BMC.
fn with_a_pattern() -> Sim {
    let mut sim = discovered();
    let mut pattern = sim.host(NAME).clone();
    pattern.metadata.name = Some("rack2".to_owned());
    pattern.metadata.creation_timestamp = Some(Time("2026-03-01T00:00:00Z".parse().unwrap()));
    pattern.spec.boot_mac_address = Some(mac(2).to_string());
    pattern.spec.bmc = Some(BmcDetails::default());
    sim.add_host(pattern);
    sim.settle();
    sim
}

#[test]
fn a_host_after_the_pattern_of_another_does_not_inherit_its_machine() {
    let mut sim = with_a_pattern();
    let before = sim.host("rack2").clone();
    sim.delete_host(NAME);
    sim.settle();
    assert!(sim.server("a").spec.dismissed && sim.server("a").spec.host.is_none());
    assert_eq!(sim.host("rack2"), &before);
    assert!(sim.notices().contains(&("rack2".to_owned(), "OtherMachine")));
    // Nor once its machine may have a host again.
    let made = Some(Time("2026-02-01T00:00:00Z".parse().unwrap()));
    sim.change_server("a", |server| server.metadata.creation_timestamp = made);
    sim.annotate_server("a", APPROVE_ANNOTATION);
    sim.settle();
    assert!(sim.names().contains(&NAME.to_owned()));
    assert_eq!(sim.server("a").spec.host, Some(hosts::reference(sim.host(NAME))));
    assert_eq!(sim.host("rack2"), &before);
}

#[test]
fn a_server_that_is_made_anew_finds_the_host_of_its_machine_beside_one_after_its_pattern() {
    let mut sim = with_a_pattern();
    let report = link::inventory(sim.server("a")).unwrap();
    sim.delete_server("a");
    sim.reports("a", Inventory::clone(&report));
    sim.settle();
    assert_eq!(sim.server("a").spec.host, Some(hosts::reference(sim.host(NAME))));
    assert!(sim.notices().contains(&("rack2".to_owned(), "OtherMachine")));
}

#[test]
fn a_requested_inspection_ends_where_its_report_changes_nothing() {
    // It has less trust than the one before, or the host is somebody's.
    for declared in [false, true] {
        let mut sim = match declared {
            true => Sim::new(UnknownPolicy::Hold),
            false => discovered(),
        };
        let name = if declared { "rack1" } else { NAME };
        if declared {
            sim.declare("prod", name, Some(mac(1)));
            sim.reports("a", machine("J5K2X93", 1));
            sim.settle();
        } else {
            sim.change_host(name, |host| {
                let annotations = host.metadata.annotations.get_or_insert_default();
                annotations.insert(TRUST_ANNOTATION.to_owned(), "tpm".to_owned());
            });
        }
        sim.annotate_host(name, INSPECT_ANNOTATION);
        sim.settle();
        let job = sim.server("a").spec.job.clone().unwrap();
        assert_eq!(job.action, JobAction::Inspect);
        taken_up(&mut sim, &job.id, "");
        sim.settle();
        assert!(!hosts::wants_inspection(sim.host(name)));
        assert_eq!(sim.server("a").spec.job, None);
        let told = sim.told.last().unwrap();
        assert_eq!(told.reason, "ReportNotApplied");
        assert!(told.message.contains("is kept in Server a"), "{}", told.message);
    }
}

#[test]
fn two_machines_with_one_serial_get_two_names() {
    let mut sim = discovered();
    sim.reports("b", machine("J5K2X93", 2));
    sim.settle();
    assert_eq!(sim.names(), [NAME.to_owned(), format!("{NAME}-aa0002")]);
}

#[test]
fn a_host_that_somebody_declared_is_linked_by_its_mac_and_never_changed() {
    let mut sim = Sim::new(UnknownPolicy::Hold);
    sim.declare("prod", "rack1", Some(mac(1)));
    let before = sim.host("rack1").clone();
    sim.reports("a", machine("J5K2X93", 1));
    sim.settle();
    assert_eq!(sim.host("rack1"), &before);
    assert_eq!(sim.names(), ["rack1"]);
    assert_eq!(sim.server("a").spec.host, Some(hosts::reference(&before)));
    assert_eq!(sim.notices(), [("rack1".to_owned(), "ReportNotApplied")]);
}

#[test]
fn a_host_that_is_deleted_is_linked_as_long_as_the_operator_holds_it_and_no_other_is_made() {
    for held in [true, false] {
        let mut sim = Sim::new(UnknownPolicy::Hold);
        sim.declare("prod", "rack1", Some(mac(1)));
        sim.set_state("rack1", "deprovisioning");
        sim.change_host("rack1", |host| {
            let finalizer = if held { FINALIZER } else { "example.com/other" };
            host.metadata.finalizers = Some(vec![finalizer.to_owned()]);
            let now = Time("2026-01-01T00:00:00Z".parse().unwrap());
            host.metadata.deletion_timestamp = Some(now);
        });
        let before = sim.host("rack1").clone();
        sim.reports("a", machine("J5K2X93", 1));
        sim.settle();
        assert_eq!(sim.host("rack1"), &before);
        let linked = sim.server("a").spec.host == Some(hosts::reference(&before));
        assert_eq!(
            (linked, sim.names().len()),
            if held { (true, 1) } else { (false, 2) }
        );
    }
}

#[test]
fn a_report_with_a_declared_hosts_serial_changes_nothing_until_approved() {
    let mut sim = discovered();
    // What inspection by others found in their host.
    sim.change_host(NAME, |host| host.metadata.annotations = None);
    sim.change_server("a", |server| server.metadata.name = Some("gone".to_owned()));
    sim.servers.clear();
    let before = sim.host(NAME).clone();
    sim.reports("b", machine("J5K2X93", 7));
    assert_eq!(sim.settle(), 0);
    assert_eq!(sim.host(NAME), &before);
    assert_eq!(
        sim.notices(),
        [
            ("b".to_owned(), "HostInDoubt"),
            (NAME.to_owned(), "ClaimedByReport")
        ]
    );
    sim.annotate_server("b", APPROVE_ANNOTATION);
    sim.settle();
    assert_eq!(sim.names(), [NAME.to_owned(), format!("{NAME}-aa0007")]);
    assert_eq!(sim.host(NAME), &before);
    assert_eq!(sim.notices(), []);
}

#[test]
fn a_host_past_inspection_is_never_changed_by_a_report() {
    for state in [
        "preparing",
        "available",
        "provisioning",
        "provisioned",
        "externally provisioned",
        "deprovisioning",
    ] {
        let mut sim = discovered();
        sim.set_state(NAME, state);
        let before = sim.host(NAME).clone();
        let mut inventory = machine("J5K2X93", 1);
        inventory.memory.installed_mib = 1;
        sim.reports("a", inventory);
        sim.settle();
        assert_eq!(sim.host(NAME), &before, "{state}");
        assert_eq!(sim.notices(), [(NAME.to_owned(), "ReportNotApplied")], "{state}");
    }
}

#[test]
fn a_report_of_less_trust_changes_nothing() {
    let mut sim = discovered();
    sim.change_host(NAME, |host| {
        let annotations = host.metadata.annotations.get_or_insert_default();
        annotations.insert(TRUST_ANNOTATION.to_owned(), "bmc-delivered".to_owned());
    });
    let before = sim.host(NAME).clone();
    let mut inventory = machine("J5K2X93", 1);
    inventory.memory.installed_mib = 1;
    sim.reports("a", inventory);
    sim.settle();
    assert_eq!(sim.host(NAME), &before);
    assert_eq!(sim.notices(), [(NAME.to_owned(), "ReportNotApplied")]);
}

#[test]
fn a_contested_machine_makes_and_changes_no_host() {
    let contest = |server: &mut Server| server.status.as_mut().unwrap().contested = true;
    let mut sim = Sim::new(UnknownPolicy::Hold);
    sim.reports("a", machine("J5K2X93", 1));
    sim.change_server("a", contest);
    assert_eq!(sim.settle(), 0);
    assert_eq!(sim.notices(), [("a".to_owned(), "Contested")]);
    let mut sim = discovered();
    let before = sim.host(NAME).clone();
    sim.reports("a", machine("J5K2X93", 3));
    sim.change_server("a", contest);
    sim.settle();
    assert_eq!(sim.host(NAME), &before);
}

#[test]
fn a_deleted_host_stays_away_until_approved() {
    let mut sim = discovered();
    sim.delete_host(NAME);
    sim.settle();
    assert!(sim.server("a").spec.dismissed && sim.names().is_empty());
    sim.reports("a", machine("J5K2X93", 4));
    sim.settle();
    assert!(sim.names().is_empty());
    sim.annotate_server("a", APPROVE_ANNOTATION);
    sim.settle();
    assert_eq!(sim.names(), [NAME]);
    assert!(!sim.server("a").spec.dismissed);
    assert!(sim.server("a").metadata.annotations.as_ref().unwrap().is_empty());
}

#[test]
fn of_a_machine_whose_host_is_deleted_its_server_says_once_that_it_is_dismissed_and_what_helps() {
    for policy in [UnknownPolicy::Hold, UnknownPolicy::Discover] {
        let told = |sim: &Sim| {
            let all = sim.told.iter().filter(|event| event.reason == "Dismissed");
            all.cloned().collect::<Vec<_>>()
        };
        let mut sim = Sim::new(policy);
        sim.reports("a", machine("J5K2X93", 1));
        sim.settle();
        assert!(told(&sim).is_empty());
        sim.delete_host(NAME);
        sim.settle();
        sim.reports("a", machine("J5K2X93", 1));
        sim.settle();
        let all = told(&sim);
        let [event] = &all[..] else {
            panic!("{:?}", sim.told);
        };
        assert_eq!(event.about.kind.as_deref(), Some("Server"));
        assert_eq!((event.about.name.as_deref(), event.warning), (Some("a"), false));
        let host = format!("{HOSTS}/{NAME}");
        for part in [host.as_str(), "its own disk", APPROVE_ANNOTATION] {
            assert!(event.message.contains(part), "{}", event.message);
        }
        // Of one that was approved beforehand nobody has to do anything.
        sim.annotate_server("a", APPROVE_ANNOTATION);
        sim.settle();
        sim.annotate_server("a", APPROVE_ANNOTATION);
        sim.delete_host(NAME);
        sim.settle();
        assert_eq!(sim.names(), [NAME]);
        assert_eq!(told(&sim).len(), 1);
    }
}

#[test]
fn one_approval_is_enough_for_a_machine_whose_host_was_deleted_and_that_looks_like_another_ones() {
    let mut sim = discovered();
    let mut declared = sim.host(NAME).clone();
    sim.delete_host(NAME);
    sim.settle();
    assert!(sim.server("a").spec.dismissed);
    // Somebody declares a host of that name, for another machine or without saying for which.
    declared.metadata.annotations = None;
    declared.spec.boot_mac_address = None;
    sim.add_host(declared);
    sim.settle();
    assert_eq!(sim.names(), [NAME]);
    assert_eq!(sim.server("a").spec.host, None);
    sim.annotate_server("a", APPROVE_ANNOTATION);
    sim.settle();
    assert_eq!(sim.names().len(), 2, "{:?}", sim.names());
    assert!(sim.server("a").metadata.annotations.as_ref().unwrap().is_empty());
}

#[test]
fn a_restored_host_is_linked_again_and_not_made_twice() {
    let mut sim = discovered();
    let copy = sim.host(NAME).clone();
    sim.delete_host(NAME);
    sim.add_host(copy.clone());
    sim.settle();
    assert_eq!(sim.names(), [NAME]);
    assert_eq!(sim.server("a").spec.host, Some(hosts::reference(sim.host(NAME))));
    // And after it was away long enough to be missed.
    sim.delete_host(NAME);
    sim.settle();
    assert!(sim.server("a").spec.dismissed);
    sim.add_host(copy);
    sim.settle();
    assert_eq!(sim.server("a").spec.host, Some(hosts::reference(sim.host(NAME))));
    assert!(!sim.server("a").spec.dismissed);
}

#[test]
fn a_rebuilt_server_finds_its_host() {
    let mut sim = discovered();
    sim.servers.clear();
    sim.reports("z", machine("J5K2X93", 1));
    sim.settle();
    assert_eq!(sim.names(), [NAME]);
    assert_eq!(hosts::made_for(sim.host(NAME)), Some("z"));
    assert_eq!(sim.server("z").spec.host, Some(hosts::reference(sim.host(NAME))));
}

#[test]
fn an_untouched_twin_is_folded_into_the_declared_host() {
    let mut sim = discovered();
    sim.declare("prod", "rack1", Some(mac(1)));
    let declared = sim.host("rack1").clone();
    sim.settle();
    assert_eq!(sim.names(), ["rack1"]);
    assert_eq!(sim.host("rack1"), &declared);
    assert!(sim.hardware.is_empty());
    assert_eq!(sim.server("a").spec.host, Some(hosts::reference(&declared)));
    assert_eq!(sim.told.last().unwrap().reason, "TwinFolded");
}

#[test]
fn a_twin_of_the_same_name_in_another_namespace_is_folded() {
    let mut sim = discovered();
    sim.declare("prod", NAME, None);
    sim.settle();
    assert_eq!(sim.names(), [NAME]);
    assert_eq!(sim.hosts[0].metadata.namespace.as_deref(), Some("prod"));
}

#[test]
fn a_touched_twin_stays_and_both_are_told() {
    type Touch = fn(&mut BareMetalHost);
    let touches: [Touch; 5] = [
        |host| host.spec.bmc = Some(BmcDetails::default()),
        |host| host.spec.consumer_ref = Some(Box::default()),
        |host| host.spec.image = Some(Default::default()),
        |host| host.spec.online = false,
        |host| {
            host.metadata
                .labels
                .get_or_insert_default()
                .insert("rack".to_owned(), "1".to_owned());
        },
    ];
    for touch in touches {
        let mut sim = discovered();
        sim.change_host(NAME, touch);
        sim.declare("prod", "rack1", Some(mac(1)));
        sim.settle();
        assert_eq!(sim.names(), [NAME, "rack1"]);
        assert_eq!(
            sim.notices(),
            [
                (NAME.to_owned(), "SameMachine"),
                ("rack1".to_owned(), "SameMachine")
            ]
        );
    }
}

#[test]
fn one_declared_host_and_two_machines_with_its_mac_is_told_on_all_sides() {
    let mut sim = Sim::new(UnknownPolicy::Hold);
    sim.declare(HOSTS, "rack1", Some(mac(1)));
    let before = sim.host("rack1").clone();
    sim.reports("a", machine("J5K2X93", 1));
    sim.reports("b", machine("OTHER1", 1));
    sim.settle();
    assert_eq!(sim.host("rack1"), &before);
    assert_eq!(
        (&sim.server("a").spec.host, &sim.server("b").spec.host),
        (&None, &None)
    );
    let notices = sim.notices();
    for name in ["a", "b", "rack1"] {
        assert!(notices.iter().any(|(about, _)| about == name), "{notices:?}");
    }
    // An approval would not last: once the other one is gone, the host is this one's.
    sim.annotate_server("b", APPROVE_ANNOTATION);
    sim.settle();
    assert_eq!(sim.names(), ["rack1"]);
    let message = sim.plan_of("b").notices.remove(0).message;
    assert!(!message.contains(APPROVE_ANNOTATION), "{message}");
    sim.servers.retain(|server| server_name(server) != "a");
    sim.settle();
    assert_eq!(
        sim.server("b").spec.host,
        Some(hosts::reference(sim.host("rack1")))
    );
}

#[test]
fn no_approval_chooses_one_of_several_hosts_that_were_made_for_a_machine() {
    let mut sim = discovered();
    let mut copy = sim.host(NAME).clone();
    copy.metadata.name = Some("copy".to_owned());
    copy.spec.online = false;
    sim.change_host(NAME, |host| host.spec.online = false);
    sim.add_host(copy);
    sim.change_server("a", |server| server.spec.host = None);
    sim.annotate_server("a", APPROVE_ANNOTATION);
    sim.settle();
    assert_eq!(sim.names(), [NAME, "copy"]);
    assert_eq!(sim.server("a").spec.host, None);
    let message = sim.plan_of("a").notices.remove(0).message;
    assert!(message.contains("next: delete all of them but one"), "{message}");
}

#[test]
fn a_copy_under_another_name_is_the_host_once_somebody_wants_something_of_it() {
    let copy = |sim: &Sim| {
        let mut copy = sim.host(NAME).clone();
        copy.metadata.name = Some("rack1".to_owned());
        copy
    };
    let mut sim = discovered();
    sim.add_host(copy(&sim));
    sim.settle();
    assert_eq!(sim.names(), [NAME, "rack1"]);
    assert!(sim.notices().contains(&("rack1".to_owned(), "SameMachine")));
    let mut wanted = copy(&sim);
    wanted.spec.bmc = Some(BmcDetails::default());
    // However far a controller gets before it dies.
    for limit in 0..3 {
        let mut sim = discovered();
        sim.add_host(wanted.clone());
        sim.round(limit);
        sim.settle();
        assert_eq!(sim.names(), ["rack1"], "{limit}");
        assert_eq!(
            sim.server("a").spec.host,
            Some(hosts::reference(sim.host("rack1")))
        );
    }
    // A copy that nobody touched, of one that somebody has.
    let mut sim = discovered();
    sim.add_host(copy(&sim));
    sim.change_host(NAME, |host| host.spec.bmc = Some(BmcDetails::default()));
    sim.settle();
    assert_eq!(sim.names(), [NAME]);
}

#[test]
fn a_host_whose_server_was_deleted_is_not_that_of_another_machine_which_has_a_nic_of_it_now() {
    let mut sim = discovered();
    let mut first = machine("J5K2X93", 1);
    first.nics.extend(machine("J5K2X93", 9).nics);
    first.identity.macs.insert(mac(9));
    sim.reports("a", first);
    sim.settle();
    sim.servers.clear();
    let mut other = machine("OTHER1", 2);
    other.nics.extend(machine("OTHER1", 9).nics);
    other.identity.macs.insert(mac(9));
    sim.reports("b", other);
    sim.settle();
    assert_eq!(sim.names(), [NAME, "dell-other1"]);
    assert_eq!(hosts::made_for(sim.host(NAME)), Some("a"));
}

#[test]
fn a_server_that_points_at_anothers_host_is_unlinked() {
    let mut sim = discovered();
    let before = sim.host(NAME).clone();
    let at = hosts::reference(&before);
    sim.reports("b", machine("OTHER1", 2));
    sim.change_server("b", |server| server.spec.host = Some(at));
    sim.settle();
    assert_eq!(sim.host(NAME), &before);
    assert_eq!(sim.server("b").spec.host.as_ref().unwrap().name, "dell-other1");
    let told: Vec<_> = sim
        .told
        .iter()
        .filter(|event| event.reason == "HostClaimedTwice")
        .collect();
    assert_eq!(told.len(), 2);
}

#[test]
fn what_was_ordered_for_anothers_host_goes_with_the_link_to_it() {
    let mut sim = discovered();
    let at = hosts::reference(sim.host(NAME));
    let job = |id: String| {
        Some(Box::new(Job {
            id,
            action: JobAction::Clean,
            ..Job::default()
        }))
    };
    for (id, stays) in [
        (format!("host-deprovision-{}-1-0", at.uid), false),
        ("by-hand".to_owned(), true),
    ] {
        sim.reports("b", machine("OTHER1", 2));
        sim.change_server("b", |server| {
            server.spec.host = Some(at.clone());
            server.spec.job = job(id.clone());
        });
        // The first thing that is done, whether or not the host is paused.
        sim.change_host(NAME, |host| {
            let paused = (PAUSED_ANNOTATION.to_owned(), String::new());
            host.metadata.annotations.get_or_insert_default().extend([paused]);
        });
        let plan = sim.plan_of("b");
        let [Effect::PatchServerSpec { spec, .. }, ..] = &plan.effects[..] else {
            panic!("{plan:?}");
        };
        assert_eq!(spec.host, None);
        assert_eq!(spec.job.is_some(), stays, "{id}");
    }
}

/// The network card of a BMC on USB, whose address a vendor made up once for all.
fn with_usb_nic(mut inventory: Inventory) -> Inventory {
    inventory.nics.push(Nic {
        name: "usb0".to_owned(),
        mac: Some("be:3a:f2:b6:05:9f".parse().unwrap()),
        ..Nic::default()
    });
    inventory
}

#[test]
fn an_address_that_all_machines_of_a_vendor_have_says_nothing_of_which_one_it_is() {
    let mut sim = Sim::new(UnknownPolicy::Hold);
    sim.reports("a", with_usb_nic(machine("J5K2X93", 1)));
    // As an older agent enrolled.
    sim.change_server("a", |server| {
        let identity = &mut server.status.as_mut().unwrap().identity;
        identity.macs.insert("be:3a:f2:b6:05:9f".parse().unwrap());
    });
    sim.settle();
    // As a person declared it, and inspected.
    sim.change_host(NAME, |host| {
        host.metadata.annotations = None;
        host.metadata.name = Some("declared".to_owned());
    });
    sim.change_server("a", |server| server.spec.host = None);
    sim.settle();
    assert_eq!(sim.server("a").spec.host.as_ref().unwrap().name, "declared");
    sim.reports("b", with_usb_nic(machine("OTHER1", 2)));
    sim.settle();
    assert_eq!(sim.names(), ["declared", "dell-other1"]);
    assert_eq!(sim.notices(), []);
    // One whose Server is gone is not taken for another machine's either.
    sim.change_host("declared", |host| {
        let made_for = (SERVER_ANNOTATION.to_owned(), "a".to_owned());
        host.metadata.annotations = Some([made_for].into());
    });
    sim.servers.retain(|server| server_name(server) != "a");
    sim.reports("c", with_usb_nic(machine("OTHER2", 3)));
    sim.settle();
    assert_eq!(sim.names(), ["declared", "dell-other1", "dell-other2"]);
    assert_eq!(sim.notices(), []);
}

#[test]
fn a_host_whose_server_is_deleted_is_no_twin_of_one_that_has_a_nic_of_it_now() {
    let mut sim = discovered();
    let moved = |mut inventory: Inventory| {
        inventory.identity.macs.insert(mac(1));
        inventory
    };
    sim.reports("b", machine("OTHER1", 2));
    sim.settle();
    // The card of the first machine moves to the second one, which has a host; then the first one's Server is deleted.
    sim.reports("b", moved(machine("OTHER1", 2)));
    sim.change_host(NAME, |host| host.spec.boot_mac_address = Some(mac(9).to_string()));
    sim.settle();
    sim.servers.retain(|server| server_name(server) != "a");
    let at = sim.server("b").spec.host.clone();
    sim.settle();
    assert_eq!(sim.names(), [NAME, "dell-other1"]);
    assert_eq!(sim.server("b").spec.host, at);
}

#[test]
fn clashes_are_told_on_both_and_nothing_is_merged() {
    let mut sim = discovered();
    sim.reports("b", machine("OTHER1", 2));
    sim.change_server("b", |server| {
        server.status.as_mut().unwrap().clashes = vec!["a".to_owned()];
    });
    let words = |sim: &Sim| -> Vec<String> {
        let notices = sim.plan_of("b").notices.into_iter();
        let about_b = notices.filter(|event| event.about.name.as_deref() == Some("b"));
        about_b.map(|event| event.message).collect()
    };
    let before = words(&sim);
    assert_eq!(before.len(), 1);
    sim.settle();
    assert_eq!(sim.names(), [NAME, "dell-other1"]);
    assert_eq!(
        sim.notices(),
        [
            ("a".to_owned(), "IdentityClash"),
            ("b".to_owned(), "IdentityClash"),
            ("dell-j5k2x93".to_owned(), "IdentityClash"),
            ("dell-other1".to_owned(), "IdentityClash")
        ]
    );
    assert_eq!(words(&sim), before, "the same notice once it has a host");
    // The firmware of one of them tells it in the other byte order.
    for (name, uuid) in [
        ("a", "4c4c4544-0035-4b10-8032-b4c04f583933"),
        ("b", "44454c4c-3500-104b-8032-b4c04f583933"),
    ] {
        sim.change_server(name, |server| {
            let identity = &mut server.status.as_mut().unwrap().identity;
            identity.system_uuid = Some(uuid.to_owned());
        });
    }
    let told = words(&sim).remove(0);
    assert!(told.starts_with("shares its UUID with Server a,"), "{told}");
    assert!(!told.contains("another Segment"), "{told}");
    sim.change_server("b", |server| {
        let session = server.status.as_mut().unwrap().session.as_mut().unwrap();
        session.segment = "muster-system/elsewhere".to_owned();
    });
    let told = words(&sim).remove(0);
    assert!(
        told.contains("moved to another Segment, delete the Server"),
        "{told}"
    );
}

#[test]
fn a_paused_host_is_left_alone_entirely() {
    let mut sim = discovered();
    sim.annotate_host(NAME, PAUSED_ANNOTATION);
    sim.segment.as_mut().unwrap().spec.unknown = UnknownPolicy::Discover;
    let mut inventory = machine("J5K2X93", 1);
    inventory.memory.installed_mib = 1;
    sim.reports("a", inventory);
    assert_eq!(sim.settle(), 0);
}

#[test]
fn discover_sends_the_machine_to_its_disk_once_in_a_session() {
    let mut sim = Sim::new(UnknownPolicy::Discover);
    sim.reports("a", machine("J5K2X93", 1));
    assert_eq!(sim.settle(), 3);
    let job = sim.server("a").spec.job.clone().unwrap();
    assert_eq!(job.action, JobAction::Reboot);
    taken_up(&mut sim, &job.id, "");
    sim.settle();
    assert_eq!(sim.server("a").spec.job, None);
    assert_eq!(sim.plan_of("a").effects, []);
    // The next boot is another session: its job is another one.
    sim.reports("a", machine("J5K2X93", 1));
    sim.settle();
    assert_ne!(sim.server("a").spec.job.as_ref().unwrap().id, job.id);
}

#[test]
fn a_machine_is_released_only_when_its_host_shows_everything() {
    let mut sim = Sim::new(UnknownPolicy::Discover);
    sim.reports("a", machine("J5K2X93", 1));
    while sim.server("a").spec.job.is_none() {
        assert!(!sim.round(1));
    }
    assert!(sim.host(NAME).status.as_ref().unwrap().hardware.is_some());
    assert_eq!(sim.hardware.len(), 1);
}

/// What they find would be missing for good: the machine is known then, and is not kept in its ramdisk again.
#[test]
fn a_machine_is_kept_until_its_drivers_are_loaded_or_have_had_their_time() {
    for ends in [true, false] {
        let mut sim = Sim::new(UnknownPolicy::Discover);
        let mut early = machine("J5K2X93", 1);
        early.warnings = vec![Warning {
            collector: LOADING.to_owned(),
            subject: "mpt3sas".to_owned(),
            ..Warning::default()
        }];
        sim.reports("a", early);
        sim.settle();
        assert_eq!(
            (sim.names(), &sim.server("a").spec.job),
            (vec![NAME.to_owned()], &None)
        );
        let again = sim.again("a").unwrap();
        match ends {
            true => sim.reports("a", machine("J5K2X93", 1)),
            false => sim.now = again,
        }
        sim.settle();
        assert!(sim.server("a").spec.job.is_some(), "{ends}");
        assert_eq!(sim.again("a"), None);
    }
}

#[test]
fn hold_a_missing_segment_and_a_silent_agent_give_no_order() {
    let sim = discovered();
    assert_eq!(sim.server("a").spec.job, None);
    let mut sim = discovered();
    sim.segment = None;
    assert_eq!(sim.settle(), 0);
    let mut sim = Sim::new(UnknownPolicy::Discover);
    sim.reports("a", machine("J5K2X93", 1));
    sim.change_server("a", |server| {
        server.status.as_mut().unwrap().session.as_mut().unwrap().state = SessionState::Disconnected;
    });
    sim.settle();
    assert_eq!(sim.names(), [NAME]);
    assert_eq!(sim.server("a").spec.job, None);
}

#[test]
fn no_host_without_inventory_segment_or_permission() {
    let mut sim = Sim::new(UnknownPolicy::Ignore);
    sim.reports("a", machine("J5K2X93", 1));
    assert_eq!(sim.settle(), 0);
    sim.segment = None;
    assert_eq!(sim.settle(), 0);
    let mut sim = Sim::new(UnknownPolicy::Discover);
    sim.reports("a", machine("J5K2X93", 1));
    sim.change_server("a", |server| server.status.as_mut().unwrap().inventory = None);
    assert_eq!(sim.settle(), 0);
}

#[test]
fn a_segment_that_is_gone_is_told_of_the_machines_that_it_leaves_without_a_host() {
    let mut sim = Sim::new(UnknownPolicy::Hold);
    let segment = sim.segment.take();
    sim.reports("a", machine("J5K2X93", 1));
    assert_eq!(sim.settle(), 0);
    let plan = sim.plan_of("a");
    let [told] = &plan.notices[..] else {
        panic!("{:?}", sim.notices());
    };
    assert_eq!((told.reason, told.warning), ("NoSegment", true));
    assert_eq!(told.about.kind.as_deref(), Some("Server"));
    let at = format!(
        "Segment {}/lab, on which the machine enrolled, does not exist",
        sim::NAMESPACE
    );
    assert!(told.message.contains(&at), "{}", told.message);
    sim.segment = segment;
    sim.settle();
    assert_eq!((sim.names(), sim.notices()), (vec![NAME.to_owned()], vec![]));
    // It has its host.
    sim.segment = None;
    assert_eq!(sim.notices(), []);
    // Its host was deleted, and nobody wants another one.
    sim.delete_host(NAME);
    sim.settle();
    assert!(sim.server("a").spec.dismissed);
    assert_eq!(sim.notices(), []);
    // Nothing is known of it but that it enrolled.
    let mut sim = Sim::new(UnknownPolicy::Hold);
    sim.segment = None;
    sim.reports("a", machine("J5K2X93", 1));
    sim.change_server("a", |server| server.status.as_mut().unwrap().inventory = None);
    assert_eq!(sim.notices(), []);
}

fn taken_up(sim: &mut Sim, id: &str, error: &str) {
    let outcome = JobStatus {
        id: id.to_owned(),
        error: error.to_owned(),
        done: true,
        ..JobStatus::default()
    };
    sim.change_server("a", |server| {
        server.status.as_mut().unwrap().job = Some(outcome);
    });
}

fn has_request(sim: &Sim) -> bool {
    hosts::wants_inspection(sim.host(NAME))
}

#[test]
fn a_requested_inspection_ends_with_a_newer_inventory() {
    let mut sim = discovered();
    sim.annotate_host(NAME, INSPECT_ANNOTATION);
    sim.settle();
    assert_eq!(
        sim.server("a").spec.job.as_ref().unwrap().action,
        JobAction::Inspect
    );
    assert!(has_request(&sim));
    let mut inventory = machine("J5K2X93", 1);
    inventory.memory.installed_mib = 8192;
    sim.reports("a", inventory);
    sim.settle();
    assert!(!has_request(&sim));
    assert_eq!(sim.server("a").spec.job, None);
    assert_eq!(
        sim.host(NAME)
            .status
            .as_ref()
            .unwrap()
            .hardware
            .as_ref()
            .unwrap()
            .unpack()
            .ram_mebibytes,
        Some(8192)
    );
}

#[test]
fn a_requested_inspection_that_finds_nothing_new_ends_too_and_can_be_asked_for_again() {
    let mut sim = discovered();
    let mut last = String::new();
    for _ in 0..3 {
        let end = |sim: &Sim| {
            let history = sim
                .host(NAME)
                .status
                .as_ref()
                .unwrap()
                .operation_history
                .clone()
                .unwrap();
            history.inspect.unwrap().end.unwrap()
        };
        let before = end(&sim);
        sim.annotate_host(NAME, INSPECT_ANNOTATION);
        sim.settle();
        let id = sim.server("a").spec.job.as_ref().unwrap().id.clone();
        assert_ne!(id, last);
        taken_up(&mut sim, &id, "");
        sim.settle();
        assert!(!has_request(&sim));
        assert_eq!(sim.server("a").spec.job, None);
        assert!(end(&sim) > before);
        last = id;
    }
}

#[test]
fn an_inspection_of_a_former_host_of_the_name_is_none_of_the_one_that_was_made_anew() {
    let mut sim = discovered();
    sim.annotate_host(NAME, INSPECT_ANNOTATION);
    sim.settle();
    let former = sim.server("a").spec.job.as_ref().unwrap().id.clone();
    sim.change_host(NAME, |host| host.metadata.uid = Some("anew".to_owned()));
    sim.settle();
    assert!(has_request(&sim));
    let job = sim.server("a").spec.job.clone().unwrap();
    assert_eq!(job.action, JobAction::Inspect);
    assert!(job.id != former && job.id.contains("anew"), "{}", job.id);
}

#[test]
fn a_failed_inspection_is_told_and_ends() {
    let mut sim = discovered();
    sim.annotate_host(NAME, INSPECT_ANNOTATION);
    sim.settle();
    let id = sim.server("a").spec.job.as_ref().unwrap().id.clone();
    taken_up(&mut sim, &id, "no memory\n\u{1b}[0m");
    sim.settle();
    assert!(!has_request(&sim));
    let told = sim.told.last().unwrap();
    assert_eq!((told.reason, told.warning), ("InspectionFailed", true));
    assert!(!told.message.chars().any(char::is_control));
}

#[test]
fn what_was_ordered_for_a_host_is_not_done_to_one_that_is_made_anew() {
    let linked = || {
        let mut sim = Sim::new(UnknownPolicy::Hold);
        sim.declare("prod", "rack1", Some(mac(1)));
        sim.reports("a", machine("J5K2X93", 1));
        sim.settle();
        sim.set_state("rack1", "provisioning");
        let uid = sim.host("rack1").metadata.uid.clone().unwrap();
        let job = muster_proto::kinds::Job {
            id: format!("host-provision-{uid}-1-0-write"),
            action: JobAction::Write,
            ..muster_proto::kinds::Job::default()
        };
        sim.change_server("a", |server| server.spec.job = Some(Box::new(job)));
        sim.settle();
        assert!(sim.server("a").spec.job.is_some(), "its own host's");
        (sim, uid)
    };
    // Deleted by force, and declared again: at once, or after it was missed.
    for missed in [false, true] {
        let (mut sim, uid) = linked();
        sim.delete_host("rack1");
        if missed {
            sim.settle();
            assert!(sim.server("a").spec.dismissed && sim.server("a").spec.job.is_none());
        }
        sim.declare("prod", "rack1", Some(mac(1)));
        sim.settle();
        let server = sim.server("a");
        assert_eq!(server.spec.host, Some(hosts::reference(sim.host("rack1"))));
        assert_ne!(server.spec.host.as_ref().unwrap().uid, uid);
        assert_eq!(server.spec.job, None, "missed: {missed}");
        // Its session is the machine's, not the host's.
        let session = server.status.as_ref().unwrap().session.as_ref().unwrap();
        assert_eq!(session.state, SessionState::Connected);
    }
}

#[test]
fn a_job_that_a_person_placed_is_left_alone() {
    let mut sim = Sim::new(UnknownPolicy::Discover);
    sim.reports("a", machine("J5K2X93", 1));
    let job = muster_proto::kinds::Job {
        id: "mine".to_owned(),
        action: JobAction::Inspect,
        ..muster_proto::kinds::Job::default()
    };
    sim.change_server("a", |server| server.spec.job = Some(Box::new(job.clone())));
    sim.settle();
    assert_eq!(sim.server("a").spec.job, Some(Box::new(job)));
}

#[test]
fn junk_serials_name_hosts_after_the_mac() {
    for junk in [
        "To Be Filled By O.E.M.",
        "00000000",
        "",
        "Default string",
        "\n---\nkind: Secret",
    ] {
        let mut sim = Sim::new(UnknownPolicy::Hold);
        sim.reports("a", machine(junk, 5));
        sim.settle();
        let name = sim.names()[0].clone();
        match junk {
            "\n---\nkind: Secret" => assert_eq!(name, "dell-kind-secret"),
            _ => assert_eq!(name, "mac-525400aa0005", "{junk:?}"),
        }
    }
}

#[test]
fn lost_hardware_data_is_made_again() {
    let mut sim = discovered();
    sim.hardware.clear();
    sim.settle();
    assert_eq!(sim.hardware.len(), 1);
}

#[test]
fn our_labels_follow_the_machine_and_others_stay() {
    let mut sim = discovered();
    sim.change_host(NAME, |host| {
        host.metadata
            .labels
            .get_or_insert_default()
            .insert("rack".to_owned(), "1".to_owned());
    });
    let mut inventory = machine("J5K2X93", 1);
    inventory.boot.mode = muster_proto::inventory::BootMode::Uefi;
    sim.reports("a", inventory);
    sim.settle();
    let labels = sim.host(NAME).metadata.labels.clone().unwrap();
    assert_eq!(labels["muster.dev/boot-mode"], "uefi");
    assert_eq!(labels["rack"], "1");
}

#[test]
fn two_hosts_that_claim_one_server_are_told() {
    let mut sim = Sim::new(UnknownPolicy::Hold);
    for name in ["one", "two"] {
        sim.declare(HOSTS, name, None);
        sim.change_host(name, |host| {
            host.metadata.annotations = Some([(SERVER_ANNOTATION.to_owned(), "a".to_owned())].into());
        });
    }
    sim.reports("a", machine("J5K2X93", 1));
    assert_eq!(sim.settle(), 0);
    assert_eq!(
        sim.notices(),
        [
            ("a".to_owned(), "HostInDoubt"),
            ("one".to_owned(), "ClaimedByReport"),
            ("two".to_owned(), "ClaimedByReport")
        ]
    );
}

#[test]
fn no_host_is_made_where_the_controller_does_not_look_and_both_sides_are_told() {
    // Without a namespace of its own for hosts, a Segment's is meant.
    for namespace in [Some(HOSTS), None] {
        let mut sim = Sim::new(UnknownPolicy::Hold);
        sim.watched = Some("elsewhere".to_owned());
        sim.segment.as_mut().unwrap().spec.host_namespace = namespace.map(str::to_owned);
        sim.reports("a", machine("J5K2X93", 1));
        assert_eq!(sim.settle(), 0);
        let [server, segment] = &sim.plan_of("a").notices[..] else {
            panic!("{:?}", sim.notices());
        };
        let namespace = namespace.unwrap_or(sim::NAMESPACE);
        for (notice, kind) in [(server, "Server"), (segment, "Segment")] {
            assert_eq!(notice.about.kind.as_deref(), Some(kind));
            assert!(notice.message.contains("watches elsewhere only"), "{notice:?}");
            assert!(
                notice
                    .message
                    .contains(&format!("watch {namespace} (--watch-namespace")),
                "{notice:?}"
            );
        }
        sim.watched = Some(namespace.to_owned());
        sim.settle();
        assert_eq!((sim.names(), sim.notices()), (vec![NAME.to_owned()], vec![]));
    }
}

#[test]
fn a_machine_whose_host_waits_for_its_namespace_goes_to_its_own_disk_meanwhile() {
    let mut sim = Sim::new(UnknownPolicy::Discover);
    sim.watched = Some("elsewhere".to_owned());
    sim.reports("a", machine("J5K2X93", 1));
    sim.settle();
    let job = sim.server("a").spec.job.as_ref().map(|job| job.action);
    assert_eq!(job, Some(JobAction::Reboot));
    sim.watched = Some(HOSTS.to_owned());
    sim.settle();
    assert_eq!(sim.names(), [NAME]);
}

#[test]
fn a_host_that_cannot_be_seen_is_not_taken_for_deleted() {
    let mut sim = discovered();
    let (hosts, server) = (std::mem::take(&mut sim.hosts), sim.server("a").spec.clone());
    sim.watched = Some("elsewhere".to_owned());
    assert_eq!(sim.settle(), 0);
    assert_eq!(sim.server("a").spec, server);
    assert_eq!(sim.notices(), [("a".to_owned(), "NamespaceNotWatched")]);
    sim.hosts = hosts;
    sim.watched = Some(HOSTS.to_owned());
    sim.settle();
    assert_eq!((sim.names(), sim.notices()), (vec![NAME.to_owned()], vec![]));
}
