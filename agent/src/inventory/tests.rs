use std::collections::BTreeSet;

use muster_proto::inventory::BootMode;

use super::{nics::tests::FakeLinks, smbios::tests::a_server, *};
use crate::sys::tree::Tree;

/// A machine whose kernel shows everything.
fn a_machine() -> Tree {
    let mut tree = Tree::new()
        .file("proc/meminfo", MEMINFO)
        .file(
            "proc/cpuinfo",
            "processor\t: 0\nmodel name\t: Example\nflags\t\t: fpu\n\n",
        )
        .file("proc/sys/kernel/osrelease", "6.1.0-56-amd64\n")
        .file("sys/devices/system/cpu/online", "0\n")
        .file("sys/devices/system/cpu/cpu0/topology/core_cpus_list", "0\n")
        .file("sys/devices/system/cpu/cpu0/topology/package_cpus_list", "0\n")
        .file(
            "sys/firmware/dmi/tables/DMI",
            a_server().module(16384, 0, "A1").module(16384, 0, "A2").end(),
        );
    for (name, value) in [
        ("sys_vendor", "Acme Inc."),
        ("product_name", "Rocket 9"),
        ("product_serial", "J5K2X93"),
        ("product_uuid", "4c4c4544-0035-4b10-8032-cac04f583933"),
        ("board_serial", "To be filled by O.E.M."),
        ("bios_version", "2.3.4"),
    ] {
        tree = tree.file(&format!("sys/class/dmi/id/{name}"), format!("{value}\n"));
    }
    tree
}

/// What the parser insists on, of a machine with 32 GiB.
const MEMINFO: &str = "MemTotal: 32658936 kB\nMemFree: 1 kB\nBuffers: 0 kB\nCached: 0 kB\nSwapCached: 0 kB\nActive: 0 kB\n\
    Inactive: 0 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\nDirty: 0 kB\nWriteback: 0 kB\nMapped: 0 kB\nSlab: 0 kB\n\
    Committed_AS: 0 kB\nVmallocTotal: 0 kB\nVmallocUsed: 0 kB\nVmallocChunk: 0 kB\n";

fn of(tree: &Tree) -> Inventory {
    collect(&tree.root(), &FakeLinks::default().shared(), BootFacts::default())
}

#[test]
fn a_whole_machine_gives_no_warning() {
    let found = of(&a_machine());
    assert_eq!(found.warnings, []);
    assert_eq!(found.system.manufacturer, "Acme Inc.");
    // Empty in the kernel's copy, or missing from it: the table has it.
    assert_eq!(found.system.sku, "SKU-1");
    assert_eq!(found.firmware.date, "11/08/2024");
    assert_eq!(found.system.board, "Acme 02C2CP");
    assert_eq!(found.system.board_serial, "To be filled by O.E.M.");
    assert_eq!(found.identity.system_serial.as_deref(), Some("J5K2X93"));
    assert_eq!(found.identity.board_serial, None);
    assert_eq!(found.memory.installed_mib, 32768);
    assert_eq!(found.memory.usable_bytes, 32_658_936 * 1024);
    assert_eq!(found.memory.modules.len(), 2);
    assert_eq!((found.cpu.threads, found.cpu.sockets), (1, 1));
    assert!((found.cpu.max_mhz - 2400.0).abs() < 1e-9);
    assert_eq!(found.kernel, "6.1.0-56-amd64");
}

#[test]
fn a_kernel_without_dmi_leaves_it_to_the_table() {
    let tree = Tree::new().file("sys/firmware/dmi/tables/DMI", a_server().end());
    let found = of(&tree);
    assert_eq!(found.system.manufacturer, "Acme");
    assert_eq!(found.system.uuid, "03020100-0504-0706-0809-0a0b0c0d0e0f");
}

#[test]
fn a_machine_that_shows_nothing_still_reports() {
    let found = of(&Tree::new());
    assert!(found.identity.is_empty());
    assert!(found.disks.is_empty() && found.nics.is_empty());
    let collectors: BTreeSet<_> = found
        .warnings
        .iter()
        .map(|warning| warning.collector.as_str())
        .collect();
    assert_eq!(collectors, BTreeSet::from(["cpu", "kernel", "memory"]));
}

#[test]
fn every_collector_fails_alone() {
    for (broken, collector) in [
        ("sys/class/dmi/id/product_serial", "system"),
        ("sys/class/dmi/id/bios_version", "system"),
        ("sys/firmware/dmi/tables/DMI", "smbios"),
        ("proc/cpuinfo", "cpu"),
        ("proc/meminfo", "memory"),
        ("sys/devices/system/cpu/online", "cpu"),
        ("sys/devices/system/node/has_cpu", "cpu"),
        ("dev/kmsg", "firmware"),
        ("proc/sys/kernel/osrelease", "kernel"),
    ] {
        let found = of(&a_machine().directory(broken));
        assert!(!found.warnings.is_empty(), "{broken}");
        for warning in &found.warnings {
            assert_eq!(warning.collector, collector, "{broken}: {warning:?}");
        }
        assert_eq!(found.system.product, "Rocket 9", "{broken}");
    }
    for (broken, collector) in [
        ("sys/block", "disks"),
        ("sys/class/net", "nics"),
        ("sys/bus/pci/devices", "pci"),
    ] {
        let found = of(&a_machine().file(broken, ""));
        assert_eq!(found.warnings.len(), 1, "{broken}");
        assert_eq!(found.warnings[0].collector, collector);
        assert_eq!(found.system.product, "Rocket 9", "{broken}");
    }
}

#[test]
fn junk_smbios_identifies_nobody() {
    let tree = a_machine()
        .file("sys/class/dmi/id/product_serial", "0000000000\n")
        .file(
            "sys/class/dmi/id/product_uuid",
            "03000200-0400-0500-0006-000700080009\n",
        );
    assert!(of(&tree).identity.is_empty());
}

#[test]
fn more_usable_than_installed_memory_is_said() {
    let table = a_server().module(1024, 0, "A1").end();
    let found = of(&a_machine().file("sys/firmware/dmi/tables/DMI", table));
    assert_eq!(found.memory.installed_mib, 31894);
    assert_eq!(found.warnings.len(), 1);
    assert_eq!(found.warnings[0].collector, "memory");
}

#[test]
fn the_boot_is_as_the_caller_and_the_firmware_say() {
    let facts = BootFacts {
        mac: Some("52:54:00:12:34:56".parse().unwrap()),
        hostname: "node-1\n".to_owned(),
        uptime: Duration::from_millis(2500),
    };
    let tree = a_machine().directory("sys/firmware/efi");
    let found = collect(&tree.root(), &FakeLinks::default().shared(), facts.clone());
    assert_eq!((found.boot.mode, found.boot.mac), (BootMode::Uefi, facts.mac));
    assert_eq!((found.boot.uptime_ms, found.hostname.as_str()), (2500, "node-1"));
    assert_eq!(of(&a_machine()).boot.mode, BootMode::Bios);
}

#[test]
fn devices_without_a_driver_are_named_if_they_matter() {
    let mut tree = a_machine();
    for (address, class, driver) in [
        ("0000:00:01.1", "0x010180", None),
        ("0000:00:02.0", "0x030000", None),
        ("0000:00:03.0", "0x020000", Some("e1000")),
        ("0000:00:04.0", "0x020000", None),
        ("0000:00:05.0", "0x0c0330", None),
        ("0000:00:06.0", "0x0c0500", None),
        ("0000:00:07.0", "0x0c0701", None),
    ] {
        let at = format!("sys/bus/pci/devices/{address}");
        tree = tree
            .file(&format!("{at}/class"), format!("{class}\n"))
            .file(&format!("{at}/vendor"), "0x8086\n")
            .file(&format!("{at}/device"), "0x1572\n");
        if let Some(driver) = driver {
            tree = tree.link(
                &format!("{at}/driver"),
                &format!("../../../bus/pci/drivers/{driver}"),
            );
        }
    }
    let found = of(&tree);
    let shown: Vec<_> = found
        .driverless
        .iter()
        .map(|device| device.address.as_str())
        .collect();
    assert_eq!(
        shown,
        ["0000:00:01.1", "0000:00:04.0", "0000:00:05.0", "0000:00:07.0"]
    );
    assert_eq!(found.driverless[1].id, "0x8086:0x1572");
}
