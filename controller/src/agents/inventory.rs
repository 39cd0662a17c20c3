//! A reported inventory, made fit to be stored: clean text, bounded lists, numbers that the API server takes. Pure.
//!
//! What is left out is said in a warning, so that nobody takes a part for the whole.

use std::collections::BTreeSet;

use muster_proto::{
    inventory::{Inventory, MAX_ADDRESSES, MAX_DEVICES, MAX_ENTRIES, Warning},
    list::Head,
    text,
};
use serde::{Deserialize, de::IgnoredAny};

use crate::hardware::{DISK_BYTES, NIC_BYTES, fitting};

/// The most warnings of our own: one for each list, and one for addresses. With the agent's they are no more than are read again.
const OWN_WARNINGS: usize = 8;
/// The most bytes of JSON that each other list may have: at least four times what large machines need, such as 64 memory modules of 150
/// bytes or 155 devices of 70. All together are well below the 1.5 MiB that etcd takes of one object.
const LIST_BYTES: usize = 48 << 10;
/// The same of lists of short names: some 200 processor flags, and at most 64 firmware files.
const NAME_BYTES: usize = 16 << 10;

/// How long a list was, of which nothing is kept.
type Length = Head<IgnoredAny, 0>;

/// How long the lists of an inventory were as they came: reading an [`Inventory`] leaves out what is beyond their bounds.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Lengths {
    disks: Length,
    nics: Length,
    memory: MemoryLengths,
    cpu: CpuLengths,
    driverless: Length,
    missing_firmware: Length,
    warnings: Length,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MemoryLengths {
    modules: Length,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CpuLengths {
    flags: Length,
}

/// `inventory` as it is stored. As it was sent, its lists had the lengths `sent`.
pub(super) fn fit(mut inventory: Inventory, sent: &Lengths) -> Inventory {
    clean_facts(&mut inventory);
    clean_devices(&mut inventory);
    let mut left_out = Vec::new();
    let mut cut = |subject: &str, had: usize, has: usize| {
        if has < had {
            left_out.push(warning(subject, format!("{} of {had} are left out", had - has)));
        }
    };
    macro_rules! bound {
        ($($field:ident).+, $subject:literal, $entries:expr, $bytes:expr) => {{
            let list = &mut inventory.$($field).+;
            let had = list.len().max(sent.$($field).+.all);
            list.truncate(fitting(list, $entries, $bytes));
            cut($subject, had, list.len());
        }};
    }
    bound!(disks, "disks", MAX_DEVICES, DISK_BYTES);
    bound!(nics, "nics", MAX_DEVICES, NIC_BYTES);
    bound!(memory.modules, "memory modules", MAX_ENTRIES, LIST_BYTES);
    bound!(cpu.flags, "cpu flags", MAX_ENTRIES, NAME_BYTES);
    bound!(driverless, "driverless devices", MAX_ENTRIES, LIST_BYTES);
    bound!(missing_firmware, "missing firmware", MAX_ENTRIES, NAME_BYTES);
    bound!(warnings, "warnings", MAX_ENTRIES - OWN_WARNINGS, LIST_BYTES);
    let mut seen = BTreeSet::new();
    for mac in inventory.nics.iter().filter_map(|nic| nic.mac) {
        if !seen.insert(mac) {
            left_out.push(warning(
                "nics",
                format!("several interfaces have the address {mac}"),
            ));
            break;
        }
    }
    inventory.identity = super::identity::whole(&inventory.identity, None);
    inventory.warnings.extend(left_out);
    inventory
}

/// True if both say the same of the machine; the time since its start is no property of it.
pub(super) fn same_machine_state(one: &Inventory, other: &Inventory) -> bool {
    let timeless = |inventory: &Inventory| {
        let mut inventory = inventory.clone();
        inventory.boot.uptime_ms = 0;
        inventory
    };
    timeless(one) == timeless(other)
}

fn warning(subject: &str, message: String) -> Warning {
    Warning {
        collector: "controller".to_owned(),
        subject: subject.to_owned(),
        message,
    }
}

fn clean(texts: &mut [&mut String]) {
    for text in texts {
        **text = text::clean(text.as_bytes());
    }
}

/// The API server's integers are signed.
fn bound_number(number: &mut u64) {
    *number = (*number).min(i64::MAX.unsigned_abs());
}

fn clean_facts(inventory: &mut Inventory) {
    let Inventory {
        system,
        firmware,
        cpu,
        memory,
        boot,
        hostname,
        kernel,
        ..
    } = inventory;
    clean(&mut [
        &mut system.manufacturer,
        &mut system.product,
        &mut system.serial,
        &mut system.uuid,
        &mut system.sku,
        &mut system.family,
        &mut system.board,
        &mut system.board_serial,
        &mut system.chassis_serial,
        &mut system.asset_tag,
    ]);
    clean(&mut [
        &mut firmware.vendor,
        &mut firmware.version,
        &mut firmware.date,
        hostname,
        kernel,
    ]);
    clean(&mut [&mut cpu.arch, &mut cpu.model]);
    cpu.max_mhz = if cpu.max_mhz.is_finite() {
        cpu.max_mhz.clamp(0.0, 1e6)
    } else {
        0.0
    };
    cpu.flags.iter_mut().for_each(|flag| clean(&mut [flag]));
    bound_number(&mut memory.installed_mib);
    bound_number(&mut memory.usable_bytes);
    bound_number(&mut boot.uptime_ms);
}

fn clean_devices(inventory: &mut Inventory) {
    for module in &mut inventory.memory.modules {
        clean(&mut [
            &mut module.locator,
            &mut module.manufacturer,
            &mut module.part,
            &mut module.serial,
        ]);
        bound_number(&mut module.size_mib);
    }
    for disk in &mut inventory.disks {
        clean(&mut [
            &mut disk.name,
            &mut disk.by_path,
            &mut disk.model,
            &mut disk.vendor,
            &mut disk.serial,
            &mut disk.wwn,
            &mut disk.wwn_vendor_extension,
            &mut disk.wwn_with_extension,
            &mut disk.firmware,
            &mut disk.firmware_raid,
            &mut disk.hctl,
        ]);
        bound_number(&mut disk.size_bytes);
    }
    for nic in &mut inventory.nics {
        nic.addresses.truncate(MAX_ADDRESSES);
        nic.addresses.iter_mut().for_each(|address| clean(&mut [address]));
        clean(&mut [
            &mut nic.name,
            &mut nic.vendor_id,
            &mut nic.device_id,
            &mut nic.pci_address,
            &mut nic.driver,
            &mut nic.firmware,
        ]);
    }
    for device in &mut inventory.driverless {
        clean(&mut [&mut device.address, &mut device.class, &mut device.id]);
    }
    inventory
        .missing_firmware
        .iter_mut()
        .for_each(|name| clean(&mut [name]));
    for warning in &mut inventory.warnings {
        clean(&mut [&mut warning.collector, &mut warning.subject, &mut warning.message]);
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        Mac,
        inventory::{Disk, MemoryModule, Nic},
        session::MAX_BODY,
    };
    use proptest::prelude::*;

    use super::*;

    /// Of an inventory that was never sent.
    fn fit(inventory: Inventory) -> Inventory {
        super::fit(inventory, &Lengths::default())
    }

    /// `body` as it is read and as it is stored then.
    fn arrived(body: &str) -> (Inventory, Inventory) {
        let read: Inventory = serde_json::from_str(body).unwrap();
        let sent: Lengths = serde_json::from_str(body).unwrap();
        let stored = super::fit(read.clone(), &sent);
        (read, stored)
    }

    fn disks(count: usize, fill: &str) -> Inventory {
        let disk = |at| Disk {
            name: format!("/dev/sd{at}"),
            model: fill.into(),
            serial: fill.into(),
            ..Disk::default()
        };
        Inventory {
            disks: (0..count).map(disk).collect(),
            ..Inventory::default()
        }
    }

    #[test]
    fn five_thousand_disks_become_a_thousand_and_a_warning() {
        let fitted = fit(disks(5000, "x"));
        assert_eq!(fitted.disks.len(), MAX_DEVICES);
        assert_eq!(
            fitted.warnings,
            [warning("disks", "4000 of 5000 are left out".into())]
        );
    }

    /// Else one body would be hundreds of megabytes.
    #[test]
    fn a_body_full_of_empty_disks_takes_little_memory_and_is_told_whole() {
        let many = MAX_BODY / 3 - 10;
        let body = format!(r#"{{"disks":[{}{{}}]}}"#, "{},".repeat(many - 1));
        assert!(body.len() <= MAX_BODY && body.len() > MAX_BODY - 30);
        let (read, stored) = arrived(&body);
        assert_eq!(read.disks.len(), MAX_DEVICES);
        assert!(read.disks.capacity() <= 2 * MAX_DEVICES);
        let left_out = many - MAX_DEVICES;
        assert_eq!(
            stored.warnings,
            [warning("disks", format!("{left_out} of {many} are left out"))]
        );
    }

    #[test]
    fn of_every_list_the_first_entries_are_read_and_the_rest_is_told() {
        let list = |entry: &str| format!("[{}]", vec![entry; 3000].join(","));
        let (devices, names) = (list("{}"), list("\"\""));
        let body = format!(
            r#"{{"disks":{devices},"nics":{devices},"memory":{{"modules":{devices}}},"cpu":{{"flags":{names}}},"driverless":{devices},
                "missingFirmware":{names},"warnings":{devices}}}"#
        );
        let (read, stored) = arrived(&body);
        let lengths = [
            read.disks.len(),
            read.nics.len(),
            read.memory.modules.len(),
            read.cpu.flags.len(),
            read.driverless.len(),
            read.missing_firmware.len(),
            read.warnings.len(),
        ];
        assert_eq!(lengths, [1000; 7]);
        let told =
            |subject: &str, kept: usize| warning(subject, format!("{} of 3000 are left out", 3000 - kept));
        let agents = MAX_ENTRIES - OWN_WARNINGS;
        let expected = [
            told("disks", 1000),
            told("nics", 1000),
            told("memory modules", 1000),
            told("cpu flags", 1000),
            told("driverless devices", 1000),
            told("missing firmware", 1000),
            told("warnings", agents),
        ];
        assert_eq!(stored.warnings[agents..], expected);
        // Else what is stored would look like another machine with each report.
        let again: Inventory = serde_json::from_str(&serde_json::to_string(&stored).unwrap()).unwrap();
        assert_eq!(again, stored);

        let (read, _) = arrived(&format!(r#"{{"nics":[{{"addresses":{names}}}]}}"#));
        assert_eq!(read.nics[0].addresses.len(), MAX_ADDRESSES);
    }

    #[test]
    fn the_largest_inventory_fits_into_an_object() {
        let long = "é".repeat(128);
        let mut inventory = disks(1000, &long);
        inventory.nics = (0..1000)
            .map(|_| Nic {
                addresses: vec![long.clone(); 100],
                driver: long.clone(),
                ..Nic::default()
            })
            .collect();
        inventory.cpu.flags = vec![long.clone(); 5000];
        inventory.missing_firmware = vec![long.clone(); 5000];
        inventory.memory.modules = vec![
            MemoryModule {
                part: long.clone(),
                ..MemoryModule::default()
            };
            5000
        ];
        let agents = Warning {
            collector: "disks".into(),
            ..warning(&long, long.clone())
        };
        inventory.warnings = vec![agents; 5000];
        inventory.driverless = vec![
            muster_proto::inventory::Driverless {
                id: long,
                ..Default::default()
            };
            5000
        ];
        let fitted = fit(inventory);
        let size = serde_json::to_vec(&fitted).unwrap().len();
        // What SECURITY.md says of one stranger counts on it.
        assert!(size < 500 << 10, "{size}");
        assert!(fitted.disks.len() > 100 && fitted.nics.len() > 10);
        assert_eq!(
            fitted
                .warnings
                .iter()
                .filter(|warning| warning.collector == "controller")
                .count(),
            7
        );
    }

    #[test]
    fn four_times_what_large_machines_have_is_stored_whole() {
        let disk = |at| Disk {
            name: format!("/dev/sd{at}"),
            by_path: format!("/dev/disk/by-path/pci-0000:18:00.0-sas-exp0x500056b31234abff-phy{at}-lun-0"),
            model: "ST20000NM002D-2W".into(),
            vendor: "SEAGATE".into(),
            serial: format!("ZVT0ABCD0000C230{at:04}"),
            wwn: format!("0x5000c500d123{at:04}"),
            wwn_with_extension: format!("0x5000c500d123{at:04}"),
            firmware: "E004".into(),
            size_bytes: 20_000_588_955_648,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            rotational: true,
            hctl: format!("0:0:{at}:0"),
            ..Disk::default()
        };
        let nic = |at: u16| {
            let [high, low] = at.to_be_bytes();
            Nic {
                name: format!("enp24s0f0v{at}"),
                mac: Some(Mac([0xb8, 0xce, 0xf6, 0, high, low])),
                speed_mbps: 25_000,
                carrier: true,
                addresses: vec![
                    format!("10.20.{high}.{low}/22"),
                    format!("fe80::bace:f6ff:fe00:{at:x}/64"),
                    format!("2001:db8:1:2:bace:f6ff:fe00:{at:x}/64"),
                ],
                vendor_id: "0x15b3".into(),
                device_id: "0x1018".into(),
                pci_address: "0000:18:00.2".into(),
                driver: "mlx5_core".into(),
                firmware: "16.35.2000 (MT_0000000010)".into(),
                wake_on_lan: Some(false),
            }
        };
        let module = |at| MemoryModule {
            locator: format!("CPU1_DIMM_A{at} NODE 1"),
            size_mib: 65_536,
            speed_mts: 4800,
            manufacturer: "Samsung".into(),
            part: "M321R8GA0BB0-CQKZJ".into(),
            serial: format!("80CE01231034567{at:03}"),
        };
        let driverless = |at| muster_proto::inventory::Driverless {
            address: format!("0000:7e:{at:02x}.0"),
            class: "0x088000".into(),
            id: "0x8086:0x3240".into(),
        };
        let mut inventory = Inventory {
            disks: (0..4 * 60).map(disk).collect(),
            nics: (0..4 * 100).map(nic).collect(),
            driverless: (0..4 * 155).map(driverless).collect(),
            missing_firmware: (0..4 * 64)
                .map(|at| format!("intel/ice/ddp/ice-1.3.{at}.0.pkg"))
                .collect(),
            ..Inventory::default()
        };
        inventory.memory.modules = (0..4 * 64).map(module).collect();
        inventory.cpu.flags = (0..4 * 200).map(|at| format!("avx512_vnni_{at}")).collect();
        let fitted = fit(inventory.clone());
        assert!(fitted.warnings.is_empty(), "{:?}", fitted.warnings);
        assert_eq!((fitted.nics.len(), fitted.disks.len()), (400, 240));
        let found = crate::hardware::details(&fitted);
        assert_eq!((found.nics.len(), found.storage.len()), (800, 240));
    }

    #[test]
    fn two_interfaces_with_one_address_stay_and_are_told() {
        let mac = Some(Mac([0, 0x1b, 0x21, 0, 0, 1]));
        let nic = |name: &str| Nic {
            name: name.into(),
            mac,
            ..Nic::default()
        };
        let fitted = fit(Inventory {
            nics: vec![nic("eth0"), nic("eth1")],
            ..Inventory::default()
        });
        assert_eq!(fitted.nics.len(), 2);
        assert_eq!(fitted.warnings.len(), 1);
    }

    #[test]
    fn uptime_alone_is_no_change() {
        let mut later = disks(1, "x");
        later.boot.uptime_ms = 5000;
        assert!(same_machine_state(&disks(1, "x"), &later));
        later.disks[0].serial = "y".into();
        assert!(!same_machine_state(&disks(1, "x"), &later));
    }

    proptest! {
        #[test]
        fn whatever_is_reported_is_stored_clean(text: String, number: u64, mhz: f64) {
            let mut inventory = disks(2, &text);
            inventory.system.serial = text.clone();
            inventory.hostname = text.clone();
            inventory.disks[0].size_bytes = number;
            inventory.cpu.max_mhz = mhz;
            let fitted = fit(inventory);
            prop_assert!(i64::try_from(fitted.disks[0].size_bytes).is_ok());
            let json = serde_json::to_value(&fitted).unwrap();
            prop_assert!(json["cpu"]["maxMhz"].is_number());
            for shown in [&fitted.system.serial, &fitted.hostname, &fitted.disks[1].model] {
                prop_assert!(!shown.chars().any(char::is_control) && shown.len() <= text::MAX);
            }
            prop_assert_eq!(fit(fitted.clone()), fitted);
        }
    }
}
