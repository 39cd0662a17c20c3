//! Disks that are broken, say too much or are too many.

use super::*;

#[test]
fn a_disk_without_a_size_is_left_out_with_a_warning() {
    let without_size = |host: &str| {
        let size = format!("sys/devices/{host}/target0:0:0/0:0:0:0/block/sda/size");
        let disks = Disks::new().virtio().scsi("sda", host, "0:0:0:0");
        let (found, warnings) = disks.file(&size, "0\n").read();
        assert_eq!((found.len(), found[0].name.as_str()), (1, "/dev/vda"));
        warnings
    };
    let said = without_size("pci0000:00/0000:00:04.0/host0");
    assert_eq!((said.len(), said[0].subject.as_str()), (1, "sda"), "{said:?}");
    assert!(said[0].message.contains("no size"), "{said:?}");
    // A reader without a card, whose firmware calls it fixed.
    assert_eq!(without_size("pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/host0"), []);
}

#[test]
fn a_broken_disk_costs_a_warning_and_no_other_disk() {
    let at = "sys/devices/pci0000:00/0000:00:04.0/host0/target0:0:0/0:0:0:0";
    let disks = Disks::new()
        .virtio()
        .scsi("sda", "pci0000:00/0000:00:04.0/host0", "0:0:0:0")
        .nvme();
    let disks = Disks(
        disks
            .0
            .directory(&format!("{at}/vpd_pg80"))
            .directory(&format!("{at}/model")),
    );
    let (found, warnings) = disks.read();
    let names: Vec<_> = found.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["/dev/nvme0n1", "/dev/sda", "/dev/vda"]);
    assert_eq!(
        (found[1].serial.as_str(), found[1].wwn.as_str()),
        ("", "0x5000c500a0b1c2d3")
    );
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings.iter().all(|warning| warning.subject == "sda"));

    // Without its size a disk cannot be chosen for anything.
    let disks = Disks(disks.0.directory(&format!("{at}/block/sda/size")));
    let (found, warnings) = disks.read();
    assert_eq!((found.len(), warnings.len()), (2, 1));
}

#[test]
fn what_a_disk_calls_itself_is_clean() {
    let disks = Disks::new().virtio().file(
        "sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vda/serial",
        b"\xff\x1b[2Jevil\n#!ipxe",
    );
    assert_eq!(disks.one().serial, "\u{fffd} [2Jevil #!ipxe");
}

#[test]
fn a_disk_that_does_not_answer_costs_a_warning_and_not_the_others() {
    let disks = Disks::new().virtio().nvme();
    let size = disks.0.root().sys("block/nvme0n1/size");
    std::fs::remove_file(&size).unwrap();
    // Opening a pipe waits for a writer, for ever.
    nix::unistd::mkfifo(&size, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut warnings = Warnings::default();
    let mut patience = Patience::of(std::time::Duration::from_millis(50));
    let found = collect(&disks.0.root(), &mut patience, &mut warnings);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].name, "/dev/vda");
    let said = warnings.finish();
    assert_eq!((said.len(), said[0].subject.as_str()), (1, "nvme0n1"));
    assert!(said[0].message.contains("does not answer"), "{said:?}");
}

#[test]
fn five_thousand_disks_are_bounded() {
    let mut disks = Disks::new();
    for number in 0..5000 {
        let at = format!("vbd/vd{number}");
        disks = Disks(
            disks
                .0
                .file(&format!("sys/devices/{at}/size"), "8\n")
                .link(&format!("sys/block/vd{number}"), &format!("../devices/{at}")),
        );
    }
    let (found, warnings) = disks.read();
    assert_eq!(found.len(), MAX_DEVICES);
    assert_eq!(found[999].name, "/dev/vd999");
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].message.starts_with("4000 more"), "{warnings:?}");
}

#[test]
fn many_broken_disks_warn_a_hundred_times() {
    let mut tree = Tree::new();
    for number in 0..300 {
        tree = tree.directory(&format!("sys/devices/x/vd{number}/size"));
        tree = tree.link(
            &format!("sys/block/vd{number}"),
            &format!("../devices/x/vd{number}"),
        );
    }
    let (found, warnings) = Disks(tree).read();
    assert_eq!((found.len(), warnings.len()), (0, 101));
    assert!(warnings[100].message.starts_with("200 more"), "{warnings:?}");
}
