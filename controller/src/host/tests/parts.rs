//! The parts: disks, images, who writes a status, who may have a machine, and what boots.

use muster_proto::{
    inventory::{Disk, Transport},
    kinds::{BmcDetails, IN_BAND_ANNOTATION, RootDeviceHints, SERVER_ANNOTATION, STATUS_ANNOTATION},
};
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    super::{Effect, Owner, Plan, State, disk, guard, netboot, next, owner, plan::Task, rivals},
    life::waiting,
    transitions::at,
    world::{IMAGE, MAC, World, disk as named, image},
};
use crate::patch::merge;

/// Makes something wrong.
type Spoil = fn(&mut World);

fn hints(set: impl FnOnce(&mut RootDeviceHints)) -> RootDeviceHints {
    let mut hints = RootDeviceHints::default();
    set(&mut hints);
    hints
}

fn disks() -> Vec<Disk> {
    let mut all = vec![
        named("nvme0n1", 960),
        named("sda", 2),
        named("sdb", 480),
        named("sdc", 240),
    ];
    all[0].transport = Transport::Nvme;
    all[0].wwn = "eui.0025388b710116a1".to_owned();
    all[2].rotational = true;
    all[2].model = "ST480".to_owned();
    all[2].vendor = "Seagate".to_owned();
    all[2].hctl = "2:0:0:0".to_owned();
    all[2].by_path = "/dev/disk/by-path/pci-0000:00:1f.2-ata-1".to_owned();
    all[2].wwn_with_extension = "0x5000c500a1b2c3d40001".to_owned();
    all[2].wwn_vendor_extension = "0x0001".to_owned();
    all[3].removable = true;
    all
}

#[test]
fn without_hints_it_is_the_smallest_disk_that_is_large_enough_and_whole() {
    let mut all = disks();
    assert_eq!(disk::choose(None, &all).unwrap().name, "/dev/sdb");
    assert_eq!(
        disk::choose(Some(&RootDeviceHints::default()), &all)
            .unwrap()
            .name,
        "/dev/sdb"
    );
    // What other machines may reach as well is nobody's first choice.
    for (transport, is_lun) in [(Transport::Sas, true), (Transport::Fc, false)] {
        (all[2].transport, all[2].asymmetric_access) = (transport, is_lun);
        assert_eq!(disk::choose(None, &all).unwrap().name, "/dev/nvme0n1");
        assert_eq!(disk::choose(None, &all[1..]).unwrap().name, "/dev/sdb");
    }
    all[2].read_only = true;
    assert_eq!(disk::choose(None, &all).unwrap().name, "/dev/nvme0n1");
    // A stick that somebody left, whose firmware calls it fixed, and a card.
    for transport in [Transport::Usb, Transport::Sd] {
        all[0].transport = transport;
        let none = disk::choose(None, &all).unwrap_err();
        assert!(none.contains("USB, SD card"), "{none}");
    }
    all[0].transport = Transport::Nvme;
    // Another way to the same disk.
    all.push(all[0].clone());
    assert!(disk::choose(None, &all).is_err());
    assert!(disk::choose(None, &[]).is_err());
}

#[test]
fn every_hint_of_metal3_counts_and_all_must_hold() {
    let mut all = disks();
    all.push(named("vda", 1));
    all[4].by_path = "/dev/disk/by-path/pci-0000:00:05.0".to_owned();
    // By every one a disk is chosen, and by every one none is where none is like that.
    let cases = [
        (
            hints(|hints| hints.device_name = Some("/dev/sda".to_owned())),
            Some("/dev/sda"),
        ),
        (
            hints(|hints| hints.device_name = Some("/dev/disk/by-path/pci-0000:00:1f.2-ata-1".to_owned())),
            Some("/dev/sdb"),
        ),
        // The other one of udev's names for it.
        (
            hints(|hints| hints.device_name = Some("/dev/disk/by-path/pci-0000:00:1f.2-ata-1.0".to_owned())),
            Some("/dev/sdb"),
        ),
        (
            hints(|hints| hints.device_name = Some("/dev/disk/by-path/pci-0000:00:1f.2-ata-1.1".to_owned())),
            None,
        ),
        (
            hints(|hints| hints.device_name = Some("/dev/disk/by-path/virtio-pci-0000:00:05.0".to_owned())),
            Some("/dev/vda"),
        ),
        (
            hints(|hints| {
                hints.device_name = Some("/dev/disk/by-path/virtio-pci-0000:00:1f.2-ata-1".to_owned());
            }),
            None,
        ),
        (
            hints(|hints| hints.device_name = Some("/dev/sd".to_owned())),
            None,
        ),
        (
            hints(|hints| hints.hctl = Some("2:0:0:0".to_owned())),
            Some("/dev/sdb"),
        ),
        (hints(|hints| hints.hctl = Some("2:0:0".to_owned())), None),
        (
            hints(|hints| hints.model = Some("480".to_owned())),
            Some("/dev/sdb"),
        ),
        (hints(|hints| hints.model = Some("481".to_owned())), None),
        (
            hints(|hints| hints.vendor = Some("seag".to_owned())),
            Some("/dev/sdb"),
        ),
        (hints(|hints| hints.vendor = Some("seagulls".to_owned())), None),
        (
            hints(|hints| hints.serial_number = Some("SERIAL-sda".to_owned())),
            Some("/dev/sda"),
        ),
        // Blanks around it are no part of it.
        (
            hints(|hints| hints.serial_number = Some(" SERIAL-sda\t".to_owned())),
            Some("/dev/sda"),
        ),
        // What udev, and so Metal3, takes for serial numbers and world wide names.
        (
            hints(|hints| hints.serial_number = Some("5000c500a1b2c3d40001".to_owned())),
            Some("/dev/sdb"),
        ),
        (
            hints(|hints| hints.serial_number = Some("35000C500A1B2C3D40001".to_owned())),
            Some("/dev/sdb"),
        ),
        (
            hints(|hints| hints.serial_number = Some("ST480_SERIAL-sdb".to_owned())),
            Some("/dev/sdb"),
        ),
        (
            hints(|hints| hints.wwn = Some("0x5000c500a1b2c3d40001".to_owned())),
            Some("/dev/sdb"),
        ),
        // Removable: the agent writes to no such disk.
        (
            hints(|hints| hints.serial_number = Some("serial-sdc".to_owned())),
            None,
        ),
        // An empty text and 0 are no hints, as clients in Go write them.
        (
            hints(|hints| {
                hints.wwn = Some(String::new());
                hints.serial_number = Some(String::new());
                hints.min_size_gigabytes = Some(0);
            }),
            Some("/dev/sdb"),
        ),
        (
            hints(|hints| {
                hints.device_name = Some(String::new());
                hints.model = Some("480".to_owned());
            }),
            Some("/dev/sdb"),
        ),
        (
            hints(|hints| hints.serial_number = Some("serial-sd".to_owned())),
            None,
        ),
        (
            hints(|hints| hints.wwn = Some("eui.0025388B710116A1".to_owned())),
            Some("/dev/nvme0n1"),
        ),
        (
            hints(|hints| hints.wwn = Some("eui.0025388b710116a".to_owned())),
            None,
        ),
        (
            hints(|hints| hints.wwn_with_extension = Some("0x5000C500A1B2C3D40001".to_owned())),
            Some("/dev/sdb"),
        ),
        (
            hints(|hints| hints.wwn_with_extension = Some("0x5000c500a1b2c3d4".to_owned())),
            None,
        ),
        (
            hints(|hints| hints.wwn_vendor_extension = Some("0x0001".to_owned())),
            Some("/dev/sdb"),
        ),
        (
            hints(|hints| hints.wwn_vendor_extension = Some("0x1".to_owned())),
            None,
        ),
        (hints(|hints| hints.rotational = Some(true)), Some("/dev/sdb")),
        (
            hints(|hints| hints.rotational = Some(false)),
            Some("/dev/nvme0n1"),
        ),
        (
            hints(|hints| {
                hints.rotational = Some(false);
                hints.model = Some("480".to_owned());
            }),
            None,
        ),
        (
            hints(|hints| hints.min_size_gigabytes = Some(480)),
            Some("/dev/nvme0n1"),
        ),
        (hints(|hints| hints.min_size_gigabytes = Some(961)), None),
        (
            hints(|hints| {
                hints.rotational = Some(true);
                hints.min_size_gigabytes = Some(481);
            }),
            None,
        ),
    ];
    for (hints, expected) in cases {
        let chosen = disk::choose(Some(&hints), &all)
            .ok()
            .map(|disk| disk.name.as_str());
        assert_eq!(chosen, expected, "{hints:?}");
    }
}

#[test]
fn a_number_that_several_disks_have_chooses_none_of_them() {
    // A Smart Array says the controller's serial number of each of its volumes.
    let volume = |name: &str, unit: u8| Disk {
        serial: "PDNLH0BRH8N0VP".to_owned(),
        model: "LOGICAL VOLUME".to_owned(),
        wwn: "0x600508b1001c0000".to_owned(),
        wwn_with_extension: format!("0x600508b1001c0000000000000000000{unit}"),
        by_path: format!("/dev/disk/by-path/pci-0000:03:00.0-scsi-0:1:0:{unit}"),
        transport: Transport::Scsi,
        ..named(name, 240)
    };
    let mut all = [volume("sda", 0), volume("sdb", 1)];
    let serial = hints(|hints| hints.serial_number = Some(all[0].serial.clone()));
    let wwn = hints(|hints| hints.wwn = Some(all[0].wwn.clone()));
    let model = hints(|hints| hints.model = Some("logical".to_owned()));
    let mut exact = serial.clone();
    exact.wwn_with_extension = Some(all[1].wwn_with_extension.clone());
    let mut placed = serial.clone();
    placed.device_name = Some(all[1].by_path.clone());
    for several in [&serial, &wwn] {
        let why = disk::choose(Some(several), &all).unwrap_err();
        let told = all
            .iter()
            .all(|disk| why.contains(&disk.name) && why.contains(&disk.wwn_with_extension));
        assert!(told && why.contains("add wwnWithExtension"), "{why}");
    }
    for one in [&exact, &placed] {
        assert_eq!(disk::choose(Some(one), &all).unwrap().name, "/dev/sdb");
    }
    assert_eq!(
        disk::choose(Some(&model), &all).unwrap().name,
        "/dev/sda",
        "any will do"
    );
    // The other one is not written to anyway.
    all[0].read_only = true;
    assert_eq!(disk::choose(Some(&serial), &all).unwrap().name, "/dev/sdb");
    all[0].read_only = false;
    let paths = [volume("sda", 0), volume("sdb", 0)];
    for one in [&serial, &wwn] {
        assert_eq!(disk::choose(Some(one), &paths).unwrap().name, "/dev/sda");
    }
    // Of those without a world wide name each is a disk.
    for disk in &mut all {
        disk.wwn.clear();
        disk.wwn_with_extension.clear();
    }
    let why = disk::choose(Some(&serial), &all).unwrap_err();
    assert!(why.contains("such as /dev/sda, /dev/sdb, so"), "{why}");
    assert_eq!(disk::choose(Some(&placed), &all).unwrap().name, "/dev/sdb");
}

#[test]
fn of_disks_that_share_the_hinted_number_those_behind_a_network_are_told_of() {
    let lun = |name: &str, transport: Transport| Disk {
        serial: "PDNLH0BRH8N0VP".to_owned(),
        by_path: format!("/dev/disk/by-path/{name}"),
        transport,
        ..named(name, 240)
    };
    let all = [lun("sda", Transport::Scsi), lun("sdb", Transport::Fc)];
    let mut hinted = hints(|hints| hints.serial_number = Some(all[0].serial.clone()));
    let told = disk::ambiguous(&hinted, &all);
    assert!(
        told.len() == 1 && told[0].starts_with("/dev/sdb is one of several disks"),
        "what is built in is cleaned all the same: {told:?}"
    );
    hinted.device_name = Some(all[1].by_path.clone());
    assert!(disk::ambiguous(&hinted, &all).is_empty());
}

#[test]
fn hints_pass_over_a_disk_that_cannot_be_written_and_say_so_where_there_is_no_other() {
    let mut all = disks();
    let large = hints(|hints| hints.min_size_gigabytes = Some(100));
    all[0].removable = true;
    all[2].read_only = true;
    let why = disk::choose(Some(&large), &all).unwrap_err();
    assert!(why.contains("/dev/nvme0n1") && why.contains("removable"), "{why}");
    all[2].read_only = false;
    assert_eq!(disk::choose(Some(&large), &all).unwrap().name, "/dev/sdb");
}

#[test]
fn a_hardware_profile_counts_only_where_somebody_set_it() {
    assert_eq!(disk::profile_hints(None), None);
    assert_eq!(disk::profile_hints(Some("empty")), None);
    let unknown = disk::profile_hints(Some("unknown")).unwrap();
    assert_eq!(unknown.device_name.as_deref(), Some("/dev/sda"));
    assert!(disk::is_profile_default(&unknown));
    // What upstream stored for want of anything else sends nobody through preparing again.
    let mut world = at(State::Available);
    let there = &mut world.host().status.as_mut().unwrap().provisioning;
    there.id = "a node of Ironic's".to_owned();
    there.root_device_hints = Some(Box::new(unknown));
    world.settle();
    assert_eq!(world.states.last(), Some(&State::Available));
    assert_eq!(world.states.len(), 5);
}

#[test]
fn disks_of_others_are_not_cleaned() {
    for (transport, is_lun) in [
        (Transport::Fc, false),
        (Transport::Iscsi, false),
        (Transport::Sas, true),
        (Transport::Usb, false),
        (Transport::Sd, false),
    ] {
        let mut all = disks();
        all[0].transport = transport;
        all[0].asymmetric_access = is_lun;
        let clean = disk::to_clean(&all, None);
        let names: Vec<&str> = clean.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["/dev/sda", "/dev/sdb"]);
        assert_eq!(disk::to_clean(&all, Some(&all[0])).len(), 3);
        assert!(disk::left_out(&all, Some(&all[0])).is_empty());
        // What others have behind a network is never cleaned, and nobody expects it; an array may be this machine's alone.
        let told = matches!(transport, Transport::Usb | Transport::Sd | Transport::Sas);
        let left = disk::left_out(&all, None);
        assert_eq!(left.len(), usize::from(told), "{left:?}");
    }
    let mut all = disks();
    all[0].transport = Transport::Sas;
    assert_eq!(disk::to_clean(&all, None).len(), 3, "a disk of the machine's own");
}

#[test]
fn a_member_of_a_firmware_raid_takes_no_image_unless_hints_say_so_and_is_cleaned() {
    let mut all = disks();
    all[2].firmware_raid = "IMSM".to_owned();
    assert_eq!(disk::choose(None, &all).unwrap().name, "/dev/nvme0n1");
    // Else whoever had the machine could keep what is on it from being cleaned.
    assert!(disk::to_clean(&all, None).contains(&&all[2]));
    assert!(disk::left_out(&all, None).is_empty());
    let why = disk::choose(None, &all[1..]).unwrap_err();
    assert!(
        why.contains("/dev/sdb (IMSM)") && why.contains("delete the volume"),
        "{why}"
    );
    // Who asks for it gets it, and only where there is no other that fits.
    let large = hints(|hints| hints.min_size_gigabytes = Some(100));
    assert_eq!(disk::choose(Some(&large), &all[1..]).unwrap().name, "/dev/sdb");
    all.swap(0, 2);
    assert_eq!(disk::choose(Some(&large), &all).unwrap().name, "/dev/nvme0n1");
}

#[test]
fn a_zoned_disk_is_neither_written_nor_cleaned_and_people_hear_of_it() {
    let mut all = disks();
    all[0].zoned = true;
    assert!(!disk::to_clean(&all, None).contains(&&all[0]));
    let left = disk::left_out(&all, None);
    assert!(left.len() == 1 && left[0].contains("zoned"), "{left:?}");
    let this = hints(|hints| hints.device_name = Some(all[0].name.clone()));
    let why = disk::choose(Some(&this), &all).unwrap_err();
    assert!(why.contains("is a host-managed zoned disk"), "{why}");
}

#[test]
fn of_disks_that_hints_do_not_tell_apart_the_machines_own_come_first() {
    let mut all = [named("sda", 240), named("sdb", 240), named("sdc", 240)];
    all[0].transport = Transport::Usb;
    all[1].transport = Transport::Iscsi;
    let large = hints(|hints| hints.min_size_gigabytes = Some(100));
    let chosen = |all: &[Disk]| disk::choose(Some(&large), all).unwrap().name.clone();
    assert_eq!(chosen(&all), "/dev/sdc");
    assert_eq!(chosen(&all[..2]), "/dev/sdb");
    assert_eq!(chosen(&all[..1]), "/dev/sda", "who asks for it gets it");
}

#[test]
fn of_a_disk_of_the_machines_own_that_takes_no_writes_any_more_people_hear() {
    let mut all = [named("sda", 240), named("sdb", 240)];
    all[1].read_only = true;
    assert_eq!(disk::to_clean(&all, None), [&all[0]]);
    let left = disk::left_out(&all, None);
    assert_eq!(left, ["/dev/sdb is read-only"]);
    // Of virtual media, and of one that other machines share, nobody needs to.
    all[1].removable = true;
    assert!(disk::left_out(&all, None).is_empty());
    all[1].removable = false;
    all[1].transport = Transport::Fc;
    assert!(disk::left_out(&all, None).is_empty());
}

#[test]
fn disks_that_cannot_be_told_from_each_other_are_left_out_and_the_others_cleaned() {
    let twin = |name: &str| Disk {
        by_path: String::new(),
        serial: "0123456789".to_owned(),
        ..named(name, 40)
    };
    let all = [named("sda", 40), twin("sdb"), twin("sdc")];
    assert_eq!(disk::to_clean(&all, Some(&all[0])), [&all[0]]);
    let left = disk::left_out(&all, Some(&all[0]));
    assert!(
        left[0].starts_with("/dev/sdb has no device path") && left[1].starts_with("/dev/sdc"),
        "{left:?}"
    );
    let all = [named("sda", 40), twin("sdb")];
    assert_eq!(disk::to_clean(&all, Some(&all[0])).len(), 2);
}

/// The disks that are cleaned when a host of one `local` disk and one on a `san`, prepared with one hint, is deprovisioned with another.
fn cleaned(local: &Disk, san: &str, prepared: Option<&str>, then: Option<&str>) -> Vec<String> {
    let mut world = at(State::Available);
    world.change_inventory(|inventory| {
        inventory.disks = vec![
            local.clone(),
            Disk {
                transport: Transport::Fc,
                ..named(san, 40)
            },
        ];
    });
    let hint = |device: Option<&str>| {
        let device_name = device?;
        let device_name = match device_name {
            "" => Some(String::new()),
            name => Some(format!("/dev/{name}")),
        };
        Some(Box::new(RootDeviceHints {
            device_name,
            ..RootDeviceHints::default()
        }))
    };
    world.host().spec.root_device_hints = hint(prepared);
    world.settle();
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    world.host().spec.root_device_hints = hint(then);
    world.settle();
    world.set_image(None);
    let disks = |plan: &Plan| {
        plan.effects.iter().find_map(|effect| match effect {
            Effect::PlaceJob(job) => match &job.task {
                Task::Clean(permit) => Some(permit.disks().to_vec()),
                _ => None,
            },
            _ => None,
        })
    };
    let mut cleaned = None;
    while cleaned.is_none() {
        cleaned = disks(&world.plan());
        world.round();
    }
    world.reach(State::Available);
    cleaned.unwrap().into_iter().map(|disk| disk.name).collect()
}

#[test]
fn the_disk_that_the_image_was_written_to_is_cleaned_whatever_the_hints_are_by_then() {
    // The first name is what others write down for hosts without hints.
    for disks in [["sda", "sdb"], ["sdb", "sda"]] {
        let [local, san] = disks;
        for then in [None, Some(local), Some(san)] {
            let both: Vec<String> = disks.map(|disk| format!("/dev/{disk}")).into();
            assert_eq!(cleaned(&named(local, 40), san, Some(san), then), both, "{then:?}");
            for prepared in [None, Some(local)] {
                let cleaned = cleaned(&named(local, 40), san, prepared, then);
                assert_eq!(cleaned, both[..1], "what others use is left alone");
            }
        }
    }
    // A hint that says nothing leaves the choice to the rule, to which the local disk here is too small.
    assert_eq!(cleaned(&named("sda", 2), "sdb", Some(""), None), ["/dev/sda"]);
}

#[test]
fn hints_that_come_while_an_image_is_on_its_way_count_for_the_next_one() {
    let mut world = at(State::Available);
    world.change_inventory(|inventory| {
        let stick = Disk {
            transport: Transport::Usb,
            ..named("sdb", 40)
        };
        inventory.disks = vec![named("sda", 40), stick];
    });
    world.settle();
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioning);
    world.host().spec.root_device_hints = Some(Box::new(RootDeviceHints {
        device_name: Some("/dev/sdb".to_owned()),
        ..RootDeviceHints::default()
    }));
    let written = |world: &World| {
        world.plan().effects.into_iter().find_map(|effect| match effect {
            Effect::PlaceJob(job) => Some(job.then.as_ref()?.task.permit.disks().to_vec()),
            _ => None,
        })
    };
    world.until("placed", |world| written(world).is_some());
    assert_eq!(written(&world).unwrap()[0].name, "/dev/sda");
}

#[test]
fn a_disk_that_cannot_be_told_from_others_takes_no_image_and_costs_no_other_disk() {
    let nameless = |name: &str| Disk {
        serial: String::new(),
        ..named(name, 40)
    };
    let mut world = at(State::Available);
    world.change_inventory(|inventory| inventory.disks = vec![nameless("sda"), named("sdb", 80)]);
    world.settle();
    let cleans = world.machine.cleans;
    world.set_image(Some(IMAGE));
    world.settle();
    assert_eq!((world.state(), world.machine.cleans), (State::Available, cleans));
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Refused");
    assert!(
        message.contains("cannot be told apart from other disks"),
        "{message}"
    );
    // A host of before, to which hints once led to such a disk, does not stay for ever.
    let mut world = at(State::Provisioned);
    world.change_inventory(|inventory| inventory.disks = vec![nameless("sda"), named("sdb", 80)]);
    let hints = RootDeviceHints {
        device_name: Some("/dev/sda".to_owned()),
        ..RootDeviceHints::default()
    };
    let status = world.host().status.as_mut().unwrap();
    status.provisioning.root_device_hints = Some(Box::new(hints));
    world.settle();
    world.set_image(None);
    world.reach(State::Available);
    assert!(
        world.events.contains(&"DisksLeft".to_owned()),
        "{:?}",
        world.events
    );
}

#[test]
fn the_guard_refuses_another_machine_and_a_disk_that_cannot_be_told() {
    let ready = || {
        let mut world = at(State::Provisioning);
        world.until("a session", |world| world.server.is_some());
        world
    };
    let refused: [(Spoil, &str); 9] = [
        (
            |world| world.server.as_mut().unwrap().spec.host.as_mut().unwrap().uid = "other".to_owned(),
            "the machine is not linked",
        ),
        (|world| world.server = None, "no machine"),
        (
            |world| world.server.as_mut().unwrap().status.as_mut().unwrap().contested = true,
            "two clients presented",
        ),
        (
            |world| {
                world.change_inventory(|inventory| inventory.identity.macs.clear());
                // It had that NIC once; another machine may have it now.
                let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
                status.identity.macs = [MAC.parse().unwrap()].into();
            },
            "boot MAC",
        ),
        (
            |world| {
                world.change_inventory(|inventory| inventory.identity.system_uuid = None);
            },
            "told apart from other machines; next: set a serial number",
        ),
        (
            |world| world.annotate(muster_proto::kinds::PROTECTED_ANNOTATION, ""),
            "protected",
        ),
        (
            |world| world.annotate(muster_proto::kinds::DETACHED_ANNOTATION, r#"{"force":true}"#),
            "paused or detached",
        ),
        (
            |world| world.annotate(muster_proto::kinds::PAUSED_ANNOTATION, ""),
            "paused or detached",
        ),
        (
            |world| world.host().spec.externally_provisioned = Some(true),
            "externally provisioned",
        ),
    ];
    let disk = |world: &World| {
        let status = world.server.as_ref().and_then(|server| server.status.clone());
        let inventory = status.and_then(|status| status.inventory);
        let disks = inventory.map(|inventory| inventory.unpack().disks.clone());
        disks
            .and_then(|disks| disks.into_iter().next())
            .unwrap_or_default()
    };
    let mut world = ready();
    let target = disk(&world);
    let permit = guard::to_write(world.host.as_ref().unwrap(), &world.seen(), &target).unwrap();
    assert_eq!(permit.disks()[0].serial, "serial-sda");
    assert!(permit.machine().system_uuid.is_some());
    // What tells the machine where its vendor filled in nothing else.
    let mut unfilled = ready();
    unfilled.change_inventory(|inventory| {
        inventory.identity.system_uuid = None;
        inventory.identity.board_serial = Some("BRD-1".to_owned());
    });
    let permit = guard::to_write(unfilled.host.as_ref().unwrap(), &unfilled.seen(), &target).unwrap();
    assert_eq!(permit.machine().board_serial.as_deref(), Some("BRD-1"));
    for (spoil, word) in refused {
        let mut world = ready();
        let target = disk(&world);
        spoil(&mut world);
        let why = guard::to_write(world.host.as_ref().unwrap(), &world.seen(), &target).unwrap_err();
        assert!(why.contains(word), "{why}");
        assert_eq!(
            guard::to_clean(world.host.as_ref().unwrap(), &world.seen(), &[&target]),
            Err(why)
        );
    }
    let mut foreign = target.clone();
    foreign.serial = "another".to_owned();
    assert!(guard::to_write(world.host.as_ref().unwrap(), &world.seen(), &foreign).is_err());
    for state in State::ALL
        .into_iter()
        .filter(|state| *state != State::Provisioning)
    {
        state
            .name()
            .clone_into(&mut world.host().status.as_mut().unwrap().provisioning.state);
        assert!(
            guard::to_write(world.host.as_ref().unwrap(), &world.seen(), &target).is_err(),
            "{state}"
        );
    }
}

#[test]
fn discovery_writes_what_it_made_until_somebody_wants_more() {
    let mut world = World::new();
    world.host().spec.bmc = None;
    assert_eq!(owner(world.host()), Owner::Operator, "somebody made it");
    world.annotate(SERVER_ANNOTATION, "server-1");
    assert_eq!(owner(world.host()), Owner::Discovery);
    for name in [IN_BAND_ANNOTATION, STATUS_ANNOTATION] {
        world.annotate(name, "");
        assert_eq!(owner(world.host()), Owner::Operator, "{name}");
        world.unannotate(name);
    }
    world.annotate(IN_BAND_ANNOTATION, "false");
    assert_eq!(owner(world.host()), Owner::Discovery, "nobody opts in");
    world.host().spec.bmc = Some(BmcDetails {
        address: "redfish://10.0.0.9".to_owned(),
        ..BmcDetails::default()
    });
    assert_eq!(owner(world.host()), Owner::Operator);
    world.host().spec.bmc = None;
    world.annotate(muster_proto::kinds::PAUSED_ANNOTATION, "");
    assert_eq!(owner(world.host()), Owner::Nobody);
}

#[test]
fn of_two_hosts_of_one_machine_the_registered_one_precedes_then_the_older() {
    let mut young = World::new();
    let mut old = World::new();
    old.host().metadata.name = Some("host-0".to_owned());
    old.host().metadata.uid = Some("other".to_owned());
    let find = |us: &mut World, them: &mut World| {
        let them = them.host().clone();
        let found = rivals(us.host(), [&them].into_iter());
        (found.len(), found.first().is_some_and(|rival| rival.precedes))
    };
    assert_eq!(find(&mut young, &mut old), (1, true));
    assert_eq!(find(&mut old, &mut young), (1, false));
    young.reach(State::Available);
    assert_eq!(find(&mut young, &mut old), (1, false));
    assert_eq!(find(&mut old, &mut young), (1, true));
    old.host().spec.boot_mac_address = Some("52:54:00:00:00:99".to_owned());
    assert_eq!(find(&mut young, &mut old), (1, false), "by its BMC still");
    old.host().spec.bmc = None;
    assert_eq!(find(&mut young, &mut old), (0, false));
}

#[test]
fn the_ramdisk_boots_where_the_operator_needs_it_and_nowhere_else() {
    for state in State::ALL {
        let world = at(state);
        let Some(host) = &world.host else { continue };
        assert_eq!(
            netboot::wanted(host, world.server.as_ref()).is_some(),
            state.boots_ramdisk(),
            "{state}"
        );
    }
}

#[test]
fn a_machine_that_has_left_boots_its_image_though_the_copy_of_its_host_is_older_than_that_of_its_server() {
    let mut in_band = World::in_band();
    in_band.reach(State::Available);
    for mut world in [at(State::Available), in_band] {
        let before = world.host().clone();
        world.set_image(Some(IMAGE));
        world.reach(State::Provisioning);
        let (writing, ordered) = (world.host().clone(), world.server.clone());
        world.reach(State::Provisioned);
        let (provisioned, left) = (world.host().clone(), world.server.clone());
        let mut cleared = left.clone();
        cleared.as_mut().unwrap().spec.job = None;
        world.set_image(None);
        world.reach(State::Deprovisioning);
        let leaving = world.host().clone();
        let mut preparing = before.clone();
        preparing.status.as_mut().unwrap().provisioning.state = "preparing".to_owned();
        for (host, server, boots, what) in [
            (&before, &ordered, true, "it is written"),
            (&before, &left, false, "before the copy shows that it is written"),
            (
                &preparing,
                &left,
                false,
                "before the copy shows that it is available",
            ),
            (&before, &cleared, false, "and its job is taken off"),
            (&writing, &left, false, "while the copy shows that it is written"),
            (&writing, &cleared, false, "and its job is taken off"),
            (&provisioned, &left, false, "once it is written"),
            (&leaving, &left, true, "it was told in a former provisioning"),
            (&leaving, &cleared, true, "it was told in a former provisioning"),
        ] {
            assert_eq!(netboot::wanted(host, server.as_ref()).is_some(), boots, "{what}");
        }
        // A person power-cycles what has no BMC.
        if world.host().spec.bmc.is_some() {
            world.reach(State::Available);
            assert!(
                netboot::wanted(world.host(), cleared.as_ref()).is_some(),
                "released"
            );
        }
    }
}

/// Puts `with` in the place of the part number `at` of `value`, counted from the outside; nothing takes the part away.
fn replace(value: &mut Value, at: &mut usize, with: Option<&Value>) -> bool {
    let parts: Vec<&mut Value> = match value {
        Value::Object(map) => {
            for key in map.keys().cloned().collect::<Vec<_>>() {
                if *at == 0 {
                    match with {
                        Some(with) => map.insert(key, with.clone()),
                        None => map.remove(&key),
                    };
                    return true;
                }
                *at -= 1;
            }
            map.values_mut().collect()
        }
        Value::Array(list) => list.iter_mut().collect(),
        _ => return false,
    };
    parts.into_iter().any(|part| replace(part, at, with))
}

/// What `change` makes of `object`; unchanged where it could not be read so.
fn changed<T: Serialize + DeserializeOwned + Clone>(object: &T, change: impl FnOnce(&mut Value)) -> T {
    let mut value = json!(object);
    change(&mut value);
    serde_json::from_value(value).unwrap_or_else(|_| object.clone())
}

/// `object`, some part of which is another.
fn distorted<T: Serialize + DeserializeOwned + Clone>(object: &T, at: usize, with: Option<&Value>) -> T {
    changed(object, |value| {
        let parts = value.to_string().matches("\":").count();
        replace(value, &mut (at % parts.max(1)), with);
    })
}

/// What a host may say whatever is so, as a merge patch.
fn any_word() -> impl Strategy<Value = Value> {
    let states = "(|unmanaged|registering|inspecting|preparing|available|provisioning|provisioned|externally provisioned|deprovisioning|powering off before delete|deleting|[a-z ]{0,12})";
    let annotations = "(baremetalhost.metal3.io/(detached|status)|reboot.metal3.io(/x)?|inspect.metal3.io(/hardwaredetails)?|muster.dev/(in-band|protected|release-uncleaned))";
    let errors = [
        "registration error",
        "provisioning error",
        "power management error",
        "inspection error",
    ];
    let seconds = -100_000_000_000_i64..100_000_000_000;
    prop_oneof![
        2 => states.prop_map(|state| json!({"status": {"provisioning": {"state": state}}})),
        2 => (annotations, "\\PC{0,20}").prop_map(|(name, value)| json!({"metadata": {"annotations": {name: value}}})),
        1 => "\\PC{0,20}".prop_map(|url| json!({"spec": {"image": image(&url)}})),
        1 => proptest::sample::select(errors.to_vec()).prop_map(|kind| json!({"status": {"errorType": kind}})),
        1 => any::<i64>().prop_map(|count| json!({"status": {"errorCount": count}})),
        1 => any::<i64>().prop_map(|count| json!({"status": {"provisioningFailCount": count}})),
        1 => seconds.prop_map(|at| {
            let at = jiff::Timestamp::from_second(at).unwrap().to_string();
            json!({"status": {"lastUpdated": at}})
        }),
        2 => proptest::sample::select(vec![
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            json!({"metadata": {"finalizers": null}}),
            json!({"spec": {"bmc": null}}),
            json!({"status": {"conditions": null, "operationHistory": null}}),
        ]),
    ]
}

fn any_part() -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        2 => Just(None),
        1 => any::<bool>().prop_map(|value| Some(json!(value))),
        2 => any::<i64>().prop_map(|value| Some(json!(value))),
        2 => (-2..3_i64).prop_map(|value| Some(json!(value))),
        3 => "\\PC{0,20}".prop_map(|value| Some(json!(value))),
        2 => "[0-9]{4}-1[0-2]-0[1-9]T00:00:0[0-9]Z".prop_map(|value| Some(json!(value))),
        1 => Just(Some(json!({}))),
        1 => Just(Some(json!([]))),
    ]
}

proptest! {
    #[test]
    fn next_never_panics_and_says_the_same_twice_whatever_part_of_whichever_object_is_another(
        state in proptest::sample::select(&State::ALL[..]),
        in_band: bool,
        rounds in 0..4_usize,
        words in proptest::collection::vec(any_word(), 0..6),
        served in proptest::bool::weighted(0.8),
        distortions in proptest::collection::vec((0..4_u8, any::<usize>(), any_part()), 1..6),
    ) {
        let mut world = match in_band {
            true => World::in_band(),
            false => at(state),
        };
        if in_band {
            world.set_image(Some(IMAGE));
        }
        (0..rounds).for_each(|_| world.round());
        for word in words {
            world.host = world.host.map(|host| changed(&host, |host| merge(host, &word)));
        }
        if !served {
            world.server = None;
        }
        for (which, at, with) in distortions {
            let with = with.as_ref();
            match which {
                0 => world.host = world.host.map(|host| distorted(&host, at, with)),
                1 => world.server = world.server.map(|server| distorted(&server, at, with)),
                2 => world.hardware = world.hardware.map(|hardware| distorted(&hardware, at, with)),
                _ => world.segment = distorted(&world.segment, at, with),
            }
            let Some(host) = &world.host else { continue };
            let seen = world.seen();
            let plan = next(host, &seen, world.now);
            prop_assert_eq!(plan, next(host, &seen, world.now));
            netboot::wanted(host, world.server.as_ref());
        }
    }
}
