use muster_proto::job::{DiskId, MachineId};

use super::*;
use crate::sys::tree::Tree;

const UUID: &str = "4c4c4544-0042-3510-8054-b4c04f4d5931";

/// A machine with two virtio disks.
pub(crate) fn machine() -> Tree {
    let mut tree = Tree::new()
        .file(
            "sys/class/dmi/id/product_uuid",
            format!("{}\n", UUID.to_uppercase()),
        )
        .file("sys/class/dmi/id/product_serial", "SN-1\n");
    for (name, serial, slot, number) in [("vda", "A", 4, "254:0"), ("vdb", "B", 5, "254:16")] {
        let place = format!("sys/devices/pci0000:00/0000:00:0{slot}.0/virtio{slot}");
        let at = format!("{place}/block/{name}");
        tree = tree
            .file(&format!("{place}/vendor"), "0x1af4\n")
            .file(&format!("{at}/size"), "16384\n")
            .file(&format!("{at}/ro"), "0\n")
            .file(&format!("{at}/removable"), "0\n")
            .file(&format!("{at}/dev"), format!("{number}\n"))
            .file(&format!("{at}/serial"), serial)
            .link(
                &format!("sys/block/{name}"),
                &format!("../devices/pci0000:00/0000:00:0{slot}.0/virtio{slot}/block/{name}"),
            );
    }
    tree
}

pub(crate) fn meant() -> MachineId {
    MachineId {
        system_uuid: Some(UUID.to_owned()),
        ..MachineId::default()
    }
}

pub(crate) fn disk(name: &str, serial: &str) -> DiskId {
    DiskId {
        name: name.to_owned(),
        serial: serial.to_owned(),
        size_bytes: 16384 * 512,
        ..DiskId::default()
    }
}

fn refused(tree: &Tree, disk: &DiskId) -> Refused {
    allow(&tree.root(), &meant(), disk).unwrap_err()
}

#[test]
fn the_disk_is_found_by_its_serial_number_whatever_it_is_called_now() {
    let token = allow(&machine().root(), &meant(), &disk("/dev/vda", "B")).unwrap();
    assert_eq!(
        (token.disk().name.as_str(), token.number),
        ("/dev/vdb", (254, 16))
    );
}

#[test]
fn where_there_is_no_serial_number_path_and_then_name_decide() {
    let tree = machine();
    let path = inventory::disks(&tree.root())[1].by_path.clone();
    assert!(!path.is_empty());
    let by_path = DiskId {
        by_path: path,
        ..disk("/dev/vda", "")
    };
    for (meant_disk, found) in [(by_path, "/dev/vdb"), (disk("/dev/vda", ""), "/dev/vda")] {
        let token = allow(&tree.root(), &meant(), &meant_disk).unwrap();
        assert_eq!(token.disk().name, found);
    }
}

#[test]
fn disks_of_one_array_are_told_apart_by_their_whole_name_or_their_path_and_never_by_chance() {
    let lun = |name: &str, rest: &str| Described {
        name: name.to_owned(),
        by_path: format!("/dev/disk/by-path/pci-0000:02:00.0-sas-{rest}"),
        wwn: "0x60080e5000431234".to_owned(),
        wwn_with_extension: format!("0x60080e5000431234{rest:0>16}"),
        size_bytes: 8 << 30,
        ..Described::default()
    };
    let (a, b) = (lun("/dev/sda", "1"), lun("/dev/sdb", "2"));
    let chosen = |meant: &DiskId, disks: &[&Described]| {
        choose(meant, disks.iter().map(|disk| (*disk).clone()).collect()).map(|disk| disk.name)
    };
    let meant = DiskId::from(&a);
    assert_eq!(chosen(&meant, &[&a, &b]).unwrap(), "/dev/sda");
    assert!(matches!(chosen(&meant, &[&b]), Err(Refused::NotFound { .. })));
    // From a controller that knows half of the name, after the kernel has named them the other way round.
    let half = DiskId {
        wwn_with_extension: String::new(),
        name: "/dev/sdb".to_owned(),
        ..meant
    };
    assert_eq!(chosen(&half, &[&a, &b]).unwrap(), "/dev/sda");
    let elsewhere = DiskId {
        by_path: "/dev/disk/by-path/pci-0000:03:00.0-sas-1".to_owned(),
        ..half
    };
    assert!(matches!(
        chosen(&elsewhere, &[&a, &b]),
        Err(Refused::Ambiguous { .. })
    ));
}

#[test]
fn another_machine_is_refused() {
    let tree = machine();
    let try_with = |uuid: Option<&str>, serial: Option<&str>| {
        let machine = MachineId {
            system_uuid: uuid.map(str::to_owned),
            system_serial: serial.map(str::to_owned),
            ..MachineId::default()
        };
        allow(&tree.root(), &machine, &disk("/dev/vda", "A"))
    };
    try_with(Some(UUID), Some("SN-1")).unwrap();
    try_with(None, Some("SN-1")).unwrap();
    assert!(matches!(
        try_with(Some(UUID), Some("SN-2")),
        Err(Refused::OtherMachine { .. })
    ));
    assert!(matches!(
        try_with(Some("00000000-0000-0000-0000-0000000000aa"), None),
        Err(Refused::OtherMachine { .. })
    ));
    assert!(matches!(try_with(None, None), Err(Refused::NoMachine)));
    assert!(matches!(
        try_with(None, Some("To be filled by O.E.M.")),
        Err(Refused::NoMachine)
    ));
    let unknown = machine_without_identity();
    assert!(matches!(
        allow(&unknown.root(), &meant(), &disk("/dev/vda", "A")),
        Err(Refused::OtherMachine { .. })
    ));
}

#[test]
fn a_machine_whose_system_says_nothing_is_told_by_its_board() {
    let (uuid, serial) = ("03000200-0400-0500-0006-000700080009", "To Be Filled By O.E.M.");
    let tree = machine_without_identity()
        .file("sys/class/dmi/id/product_uuid", uuid)
        .file("sys/class/dmi/id/product_serial", serial)
        .file("sys/class/dmi/id/board_serial", "BRD-1\n");
    let try_with = |board: &str| {
        let machine = MachineId {
            system_uuid: Some(uuid.to_owned()),
            system_serial: Some(serial.to_owned()),
            board_serial: Some(board.to_owned()),
        };
        allow(&tree.root(), &machine, &disk("/dev/vda", "A"))
    };
    try_with("BRD-1").unwrap();
    assert!(matches!(
        try_with("BRD-2"),
        Err(Refused::OtherMachine {
            what: "board serial number",
            ..
        })
    ));
    assert!(matches!(try_with("Default string"), Err(Refused::NoMachine)));
}

fn machine_without_identity() -> Tree {
    machine()
        .without("sys/class/dmi/id/product_uuid")
        .without("sys/class/dmi/id/product_serial")
}

#[test]
fn another_disk_is_refused() {
    let tree = machine();
    assert!(matches!(
        refused(&tree, &disk("/dev/vda", "C")),
        Refused::NotFound { .. }
    ));
    let smaller = DiskId {
        size_bytes: 16383 * 512,
        ..disk("/dev/vda", "A")
    };
    let error = refused(&tree, &smaller).to_string();
    assert!(error.contains("there is /dev/vda, serial A"), "{error}");
    let wwn = DiskId {
        wwn: "naa.5".to_owned(),
        ..disk("/dev/vda", "A")
    };
    assert!(matches!(refused(&tree, &wwn), Refused::NotFound { .. }));
    assert!(matches!(refused(&tree, &DiskId::default()), Refused::NoDisk));
    let unsized_disk = DiskId {
        size_bytes: 0,
        ..disk("/dev/vda", "A")
    };
    assert!(matches!(refused(&tree, &unsized_disk), Refused::NoDisk));
}

#[test]
fn two_disks_of_one_serial_number_are_refused_unless_the_place_tells() {
    let at = "sys/devices/pci0000:00/0000:00:05.0/virtio5/block/vdb/serial";
    let tree = machine().file(at, "A");
    let nowhere = disk("", "A");
    assert!(matches!(refused(&tree, &nowhere), Refused::Ambiguous { .. }));
    let token = allow(&tree.root(), &meant(), &disk("/dev/vdb", "A")).unwrap();
    assert_eq!(token.disk().name, "/dev/vdb");
}

#[test]
fn a_disk_is_not_taken_for_its_twin_that_alone_answers() {
    let twin = |slot: &str| Described {
        by_path: format!("/dev/disk/by-path/pci-0000:02:00.0-usb-{slot}"),
        serial: "0123456789".to_owned(),
        size_bytes: 8 << 30,
        ..Described::default()
    };
    let meant = |has_twin| DiskId {
        has_twin,
        ..DiskId::from(&twin("1"))
    };
    let chosen = |has_twin, disks: &[&str]| {
        let disks = disks.iter().map(|slot| twin(slot)).collect();
        choose(&meant(has_twin), disks).map(|disk| disk.by_path)
    };
    assert_eq!(chosen(true, &["1", "2"]).unwrap(), twin("1").by_path);
    assert!(matches!(chosen(true, &["2"]), Err(Refused::NotFound { .. })));
    // One that was the only one has moved.
    assert_eq!(chosen(false, &["2"]).unwrap(), twin("2").by_path);
}

#[test]
fn what_must_not_be_written_is_refused() {
    let at = "sys/devices/pci0000:00/0000:00:04.0/virtio4/block/vda";
    let meant_disk = disk("/dev/vda", "A");
    let read_only = machine().file(&format!("{at}/ro"), "1\n");
    assert!(matches!(
        refused(&read_only, &meant_disk),
        Refused::ReadOnly { .. }
    ));
    let removable = machine().file(&format!("{at}/removable"), "1\n");
    assert!(matches!(
        refused(&removable, &meant_disk),
        Refused::Removable { .. }
    ));
    let zoned = |kind: &str| machine().file(&format!("{at}/queue/zoned"), kind);
    assert!(matches!(
        refused(&zoned("host-managed\n"), &meant_disk),
        Refused::Zoned { .. }
    ));
    // It manages its zones itself.
    assert!(allow(&zoned("host-aware\n").root(), &meant(), &meant_disk).is_ok());
    let mounted = machine()
        .file(&format!("{at}/vda1/partition"), "1\n")
        .file(&format!("{at}/vda1/dev"), "254:1\n")
        .file("proc/self/mountinfo", "30 1 254:1 / / rw - ext4 /dev/vda1 rw\n");
    assert!(matches!(refused(&mounted, &meant_disk), Refused::Held { .. }));
    let unknown = machine().without(&format!("{at}/dev"));
    assert!(matches!(refused(&unknown, &meant_disk), Refused::Look { .. }));
}

/// Names and numbers are shared out anew when a bus is reset.
#[test]
fn a_disk_that_became_another_one_before_it_was_opened_is_told() {
    let at = "sys/devices/pci0000:00/0000:00:04.0/virtio4/block/vda";
    for (file, became) in [
        ("serial", Some("B")),
        ("dev", Some("254:16")),
        ("size", Some("4096")),
        ("dev", None),
    ] {
        let tree = machine();
        let token = allow(&tree.root(), &meant(), &disk("/dev/vda", "A")).unwrap();
        assert!(token.is_still_there());
        let file = tree.root().at(format!("{at}/{file}"));
        match became {
            Some(became) => std::fs::write(&file, became).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        assert!(!token.is_still_there(), "{}", file.display());
    }
}

#[test]
fn a_file_in_the_place_of_a_disk_is_not_opened() {
    let tree = machine().file("dev/vda", vec![0; 4096]);
    let token = allow(&tree.root(), &meant(), &disk("/dev/vda", "A")).unwrap();
    assert!(matches!(token.open(), Err(Refused::Open { .. })));
    assert_eq!(std::fs::read(tree.root().dev("vda")).unwrap(), vec![0; 4096]);
}
