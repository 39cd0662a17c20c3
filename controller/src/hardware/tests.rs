use muster_proto::{
    inventory::{Cpu, LOADING, Memory, Transport, Warning},
    kinds::Session,
};
use proptest::prelude::*;

use super::*;

fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

fn server() -> Inventory {
    let mut inventory = Inventory {
        cpu: Cpu {
            arch: "x86_64".to_owned(),
            model: "Xeon".to_owned(),
            max_mhz: 3399.998,
            threads: 48,
            cores: 24,
            flags: ["vmx", "aes", "vmx"].map(str::to_owned).into(),
            ..Cpu::default()
        },
        memory: Memory {
            installed_mib: 65536,
            usable_bytes: 1,
            modules: Vec::new(),
        },
        nics: vec![
            Nic {
                name: "eth0".to_owned(),
                mac: Some(mac(1)),
                speed_mbps: 2500,
                carrier: true,
                addresses: ["fe80::1/64", "10.0.0.7/24", "10.0.0.8/24", "2001:db8::7/64"]
                    .map(str::to_owned)
                    .into(),
                vendor_id: "0x8086".to_owned(),
                device_id: "0x1572".to_owned(),
                pci_address: "0000:00:03.0".to_owned(),
                ..Nic::default()
            },
            Nic {
                name: "eth1".to_owned(),
                mac: Some(mac(2)),
                pci_address: "0000:00:04.0".to_owned(),
                ..Nic::default()
            },
        ],
        disks: vec![
            Disk {
                name: "/dev/nvme0n1".to_owned(),
                by_path: "/dev/disk/by-path/pci-0000:00:04.0-nvme-1".to_owned(),
                serial: "N1".to_owned(),
                size_bytes: 10 << 30,
                transport: Transport::Nvme,
                ..Disk::default()
            },
            Disk {
                name: "/dev/vda".to_owned(),
                rotational: true,
                size_bytes: 1 << 30,
                transport: Transport::Virtio,
                ..Disk::default()
            },
            Disk {
                name: "/dev/sda".to_owned(),
                ..Disk::default()
            },
        ],
        ..Inventory::default()
    };
    inventory.boot.mac = Some(mac(1));
    inventory
}

#[test]
fn hardware_has_metal3s_shape() {
    let found = details(&server());
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "ramMebibytes": 65536,
            "cpu": {"arch": "x86_64", "model": "Xeon", "clockMegahertz": 3400.0, "flags": ["aes", "vmx"], "count": 48},
            "nics": [
                {"name": "eth0", "model": "0x8086 0x1572", "mac": "52:54:00:00:00:01", "ip": "10.0.0.7", "speedGbps": 2,
                 "pxe": true, "pciAddress": "0000:00:03.0"},
                {"name": "eth0", "model": "0x8086 0x1572", "mac": "52:54:00:00:00:01", "ip": "2001:db8::7", "speedGbps": 2,
                 "pxe": true, "pciAddress": "0000:00:03.0"},
                {"name": "eth1", "mac": "52:54:00:00:00:02", "pciAddress": "0000:00:04.0"},
            ],
            "storage": [
                {"name": "/dev/disk/by-path/pci-0000:00:04.0-nvme-1", "rotational": false, "type": "NVME",
                 "alternateNames": ["/dev/nvme0n1", "/dev/disk/by-path/pci-0000:00:04.0-nvme-1"],
                 "sizeBytes": 10_737_418_240_u64, "serialNumber": "N1"},
                {"name": "/dev/vda", "alternateNames": ["/dev/vda"], "rotational": true, "type": "HDD",
                 "sizeBytes": 1_073_741_824},
                {"name": "/dev/sda", "alternateNames": ["/dev/sda"], "rotational": false, "type": "SSD"},
            ],
        })
    );
}

#[test]
fn thousands_of_disks_are_cut() {
    let mut inventory = server();
    // So little is said of each that their bytes are not what bounds them.
    inventory.disks = vec![Disk::default(); 5000];
    inventory.nics = vec![Nic::default(); 5000];
    let found = details(&inventory);
    assert_eq!(
        (found.storage.len(), found.nics.len()),
        (MAX_DEVICES, MAX_DEVICES)
    );
}

#[test]
fn changes_name_what_changed() {
    let old = details(&server());
    let mut inventory = server();
    inventory.disks.remove(0);
    inventory.disks[0].size_bytes = 2 << 30;
    inventory.nics[1].mac = Some(mac(9));
    inventory.memory.installed_mib = 32768;
    assert_eq!(
        changes(&old, &details(&inventory)),
        [
            "disk /dev/vda (1073741824 bytes) now 2147483648 bytes",
            "disk N1 (10737418240 bytes) removed",
            "NIC 52:54:00:00:00:02 removed",
            "NIC 52:54:00:00:00:09 added",
            "memory 65536 MiB -> 32768 MiB",
        ]
    );
}

#[test]
fn another_address_or_link_is_no_change() {
    let old = details(&server());
    let mut inventory = server();
    inventory.nics[0].addresses = vec!["10.0.0.99/24".to_owned()];
    inventory.nics[0].speed_mbps = 1000;
    inventory.hostname = "other".to_owned();
    assert_eq!(changes(&old, &details(&inventory)), Vec::<String>::new());
}

#[test]
fn another_name_of_a_card_without_an_address_is_no_change() {
    let named = |name: &str| {
        let mut inventory = server();
        inventory.nics[0].mac = None;
        inventory.nics[0].pci_address = "0000:41:00.0".to_owned();
        inventory.nics[0].name = name.to_owned();
        details(&inventory)
    };
    assert_eq!(changes(&named("ib0"), &named("ibp65s0")), Vec::<String>::new());
}

#[test]
fn another_made_up_address_of_the_bmcs_nic_is_no_change() {
    let with_usb = |last: u8, pci: &str, address: &str| {
        let mut inventory = server();
        inventory.nics[1].mac = Some(mac(last));
        inventory.nics[1].pci_address = pci.to_owned();
        inventory.nics.push(Nic {
            name: "usb0".to_owned(),
            mac: Some(address.parse().unwrap()),
            ..Nic::default()
        });
        details(&inventory)
    };
    let (pci, first) = ("0000:00:04.0", "be:3a:f2:b6:05:9f");
    let old = with_usb(2, pci, first);
    let changed = |new: &HardwareDetails| changes(&old, new);
    assert_eq!(
        changed(&with_usb(2, pci, "be:3a:f2:00:00:01")),
        Vec::<String>::new()
    );
    assert_eq!(changed(&with_usb(2, pci, "00:50:b6:05:9f:01")).len(), 2);
    // A virtual machine's NIC is another one with another address; who inspected it before may not have said where it sits.
    assert_eq!(changed(&with_usb(9, pci, first)).len(), 2);
    assert_eq!(changed(&with_usb(2, "", first)), Vec::<String>::new());
    assert_eq!(changes(&with_usb(2, "", first), &old), Vec::<String>::new());
}

#[test]
fn an_inventory_is_early_by_the_clock_of_another_computer_too_and_not_for_ever() {
    let mut inventory = server();
    inventory.warnings = vec![Warning {
        collector: LOADING.to_owned(),
        ..Warning::default()
    }];
    let since: Timestamp = "2026-11-23T08:00:00Z".parse().unwrap();
    let status = ServerStatus {
        session: Some(Session {
            since: since.to_string(),
            ..Session::default()
        }),
        ..ServerStatus::default()
    };
    let early = Packed::new(&inventory);
    for (seconds, is_early) in [(-3600, false), (-5, true), (0, true), (299, true), (3600, false)] {
        let now = since + SignedDuration::from_secs(seconds);
        let until = is_early_until(&status, &early, now);
        assert_eq!(until.is_some_and(|until| until > now), is_early, "{seconds}");
        assert_eq!(is_early_until(&status, &Packed::new(&server()), now), None);
    }
}

#[test]
fn a_firmware_that_tells_no_boot_nic_leaves_the_one_with_carrier() {
    let mut inventory = server();
    inventory.boot.mac = None;
    inventory.nics[0].carrier = false;
    inventory.nics[1].carrier = true;
    assert_eq!(boot_mac(&inventory), Some(mac(2)));
    inventory.nics[1].carrier = false;
    assert_eq!(boot_mac(&inventory), Some(mac(1)));
    // The BMC's own NIC on USB always has carrier, and tells no machine from others.
    inventory.nics[0].carrier = true;
    inventory.identity.macs = [mac(2)].into();
    assert_eq!(boot_mac(&inventory), Some(mac(2)));
    inventory.identity.macs.clear();
    inventory.nics.clear();
    assert_eq!(boot_mac(&inventory), None);
}

#[test]
fn text_that_stands_twice_makes_details_no_larger_than_their_bounds() {
    let long = |at: usize| format!("{at:04}{}", "x".repeat(252));
    let inventory = Inventory {
        disks: (0..MAX_DEVICES)
            .map(|at| Disk {
                name: long(at),
                by_path: long(at),
                ..Disk::default()
            })
            .collect(),
        nics: (0..MAX_DEVICES)
            .map(|at| Nic {
                name: long(at),
                pci_address: long(at),
                addresses: ["10.0.0.7/24", "2001:db8::7/64"].map(str::to_owned).into(),
                ..Nic::default()
            })
            .collect(),
        ..Inventory::default()
    };
    let found = details(&inventory);
    assert!(found.storage.len() > 100 && found.nics.len() > 100);
    let size = serde_json::to_vec(&found).unwrap().len();
    assert!(size <= DISK_BYTES + NIC_BYTES + 100, "{size}");
}

proptest! {
    #[test]
    fn any_inventory_becomes_valid_details(
        texts in proptest::collection::vec(any::<String>(), 8),
        mhz: f64,
        numbers: (u64, u32, u64, u32),
        mac: [u8; 6],
    ) {
        let mut inventory = server();
        inventory.system.serial = texts[0].clone();
        inventory.system.manufacturer = texts[1].clone();
        inventory.disks[0].name = texts[2].clone();
        inventory.disks[0].by_path = texts[3].clone();
        inventory.nics[0].addresses = vec![texts[4].clone(), texts[5].clone()];
        inventory.nics[0].mac = Some(Mac(mac));
        inventory.boot.mac = Some(Mac(mac));
        inventory.cpu.flags = texts.clone();
        inventory.cpu.max_mhz = mhz;
        inventory.memory.installed_mib = numbers.0;
        inventory.cpu.threads = numbers.1;
        inventory.disks[0].size_bytes = numbers.2;
        inventory.nics[0].speed_mbps = numbers.3;
        let found = details(&inventory);
        // What the API server stores and gives back is the same, or every round would write again.
        let stored: HardwareDetails = serde_json::from_str(&serde_json::to_string(&found).unwrap()).unwrap();
        prop_assert_eq!(&stored, &found);
        prop_assert!(changes(&found, &stored).is_empty());
        fn strings(value: &serde_json::Value, out: &mut Vec<String>) {
            match value {
                serde_json::Value::String(text) => out.push(text.clone()),
                serde_json::Value::Array(all) => all.iter().for_each(|one| strings(one, out)),
                serde_json::Value::Object(map) => map.values().for_each(|one| strings(one, out)),
                _ => {}
            }
        }
        let mut shown = Vec::new();
        strings(&serde_json::to_value(&found).unwrap(), &mut shown);
        prop_assert!(shown.iter().all(|text| !text.chars().any(char::is_control)));
    }
}
