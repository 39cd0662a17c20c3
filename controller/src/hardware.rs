//! From the agent's inventory to Metal3's `HardwareDetails`, and what changed between two of them. Pure.
//!
//! Absent is written as absent: an empty string or a zero that means "could not be read" is left out, as upstream's
//! serialiser does, so that a reader never takes it for a fact.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::{SignedDuration, Timestamp};
use muster_proto::{
    Mac,
    inventory::{Disk, Inventory, MAX_DEVICES, Nic},
    kinds::{
        DiskType, HardwareBios, HardwareCpu, HardwareDetails, HardwareFirmware, HardwareNic, HardwareStorage,
        HardwareSystemVendor, Packed, ServerStatus,
    },
    text,
};
use serde::Serialize;

use crate::time::is_ahead;

/// The most bytes of JSON that the disks of one machine have, in its Server as in its host: 400 SAS disks, such as two shelves of 102 that
/// are seen on two paths.
pub const DISK_BYTES: usize = 160 << 10;
/// The same of its NICs: 400 with two addresses each.
pub const NIC_BYTES: usize = 128 << 10;

/// So long after a session began, another inventory is waited for where drivers were still being loaded: some controllers of many disks
/// take five minutes (`mpt3sas`: its ports), and one that hangs is not waited for without an end.
const LOADS: SignedDuration = SignedDuration::from_mins(6);

/// Until when the `inventory` in `status` is not taken for all that the machine has; none: it is.
pub fn is_early_until(
    status: &ServerStatus,
    inventory: &Packed<Inventory>,
    now: Timestamp,
) -> Option<Timestamp> {
    let since: Timestamp = status.session.as_ref()?.since.parse().ok()?;
    let due = since.checked_add(LOADS).ok()?;
    let is_time = now < due && !is_ahead(since, now);
    (is_time && inventory.unpack().is_early()).then_some(due)
}

/// How many entries of `list` fit into both bounds.
pub fn fitting<T: Serialize>(list: &[T], entries: usize, bytes: usize) -> usize {
    let mut left = bytes;
    let fits = |entry: &&T| {
        let size = serde_json::to_vec(entry).map_or(usize::MAX, |json| json.len().saturating_add(1));
        match left.checked_sub(size) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        }
    };
    list.iter().take(entries).take_while(fits).count()
}

/// The hardware that `inventory` reports, in Metal3's shape, all text cleaned: at most [`MAX_DEVICES`] disks and NIC entries, and no more
/// bytes of them than of those in the inventory, since here each name of a disk stands twice and each NIC with two addresses, too.
pub fn details(inventory: &Inventory) -> HardwareDetails {
    let boot = boot_mac(inventory);
    let mut nics: Vec<_> = inventory
        .nics
        .iter()
        .flat_map(|nic| nic_entries(nic, boot))
        .take(MAX_DEVICES)
        .collect();
    nics.truncate(fitting(&nics, MAX_DEVICES, NIC_BYTES));
    let mut disks: Vec<_> = inventory.disks.iter().take(MAX_DEVICES).map(storage).collect();
    disks.truncate(fitting(&disks, MAX_DEVICES, DISK_BYTES));
    HardwareDetails {
        system_vendor: Some(HardwareSystemVendor {
            manufacturer: said(&inventory.system.manufacturer),
            product_name: said(&inventory.system.product),
            serial_number: said(&inventory.system.serial),
        })
        .filter(|vendor| *vendor != HardwareSystemVendor::default()),
        firmware: Some(HardwareBios {
            date: said(&inventory.firmware.date),
            vendor: said(&inventory.firmware.vendor),
            version: said(&inventory.firmware.version),
        })
        .filter(|bios| *bios != HardwareBios::default())
        .map(|bios| HardwareFirmware { bios: Some(bios) }),
        ram_mebibytes: counted(inventory.memory.installed_mib),
        nics,
        storage: disks,
        cpu: cpu(inventory),
        hostname: said(&inventory.hostname),
    }
}

/// The NIC that the machine booted from: as the firmware told; else one that tells the machine from others rather than one that does not
/// (a BMC's on USB, a virtual function), and one with carrier rather than one without.
pub fn boot_mac(inventory: &Inventory) -> Option<Mac> {
    let own = &inventory.identity.macs;
    let booted = inventory.boot.mac.filter(|mac| mac.is_unicast());
    let nics = inventory
        .nics
        .iter()
        .filter_map(|nic| Some((nic.mac?, nic.carrier)));
    let nics = nics.filter(|(mac, _)| mac.is_unicast());
    booted
        .or_else(|| {
            let likely = nics.min_by_key(|(mac, carrier)| (!own.contains(mac), !carrier));
            likely.map(|(mac, _)| mac)
        })
        .or_else(|| own.iter().copied().find(|mac| mac.is_unicast()))
}

/// True if the machine has a NIC with the address `mac`, or booted from one.
pub fn has_nic(inventory: &Inventory, mac: Mac) -> bool {
    inventory.boot.mac == Some(mac) || inventory.nics.iter().any(|nic| nic.mac == Some(mac))
}

fn said(value: &str) -> Option<String> {
    Some(text::clean(value.as_bytes())).filter(|value| !value.is_empty())
}

fn counted(value: u64) -> Option<i64> {
    i64::try_from(value).ok().filter(|count| *count > 0)
}

fn cpu(inventory: &Inventory) -> Option<HardwareCpu> {
    let cpu = &inventory.cpu;
    let mut flags: Vec<String> = cpu.flags.iter().filter_map(|flag| said(flag)).collect();
    flags.sort();
    flags.dedup();
    // JSON has no NaN, and a number that no processor has is no fact.
    let clock = Some(cpu.max_mhz.round()).filter(|mhz| (1.0..1e6).contains(mhz));
    Some(HardwareCpu {
        arch: said(&cpu.arch),
        model: said(&cpu.model),
        clock_megahertz: clock,
        flags,
        count: counted(cpu.threads.into()),
    })
    .filter(|cpu| *cpu != HardwareCpu::default())
}

/// One entry per address family, as upstream has it; an interface without an address has one without.
fn nic_entries(nic: &Nic, boot: Option<Mac>) -> Vec<HardwareNic> {
    let ids: Vec<String> = [&nic.vendor_id, &nic.device_id]
        .into_iter()
        .filter_map(|id| said(id))
        .collect();
    let entry = HardwareNic {
        name: said(&nic.name),
        model: Some(ids.join(" ")).filter(|model| !model.is_empty()),
        mac: nic.mac.map(|mac| mac.to_string()),
        speed_gbps: counted(u64::from(nic.speed_mbps / 1000)),
        pxe: (nic.mac.is_some() && nic.mac == boot).then_some(true),
        pci_address: said(&nic.pci_address),
        ..HardwareNic::default()
    };
    let addresses = || nic.addresses.iter().filter_map(|address| global(address));
    let entries: Vec<_> = [
        addresses().find(IpAddr::is_ipv4),
        addresses().find(IpAddr::is_ipv6),
    ]
    .into_iter()
    .flatten()
    .map(|ip| HardwareNic {
        ip: Some(ip.to_string()),
        ..entry.clone()
    })
    .collect();
    if entries.is_empty() { vec![entry] } else { entries }
}

/// The address before the `/`, unless it is link-local: such an address reaches nobody who reads the object.
fn global(address: &str) -> Option<IpAddr> {
    let bare = address.split(['/', '%']).next()?;
    bare.parse().ok().filter(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_unspecified() && !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_unspecified() && !ip.is_loopback(),
    })
}

fn storage(disk: &Disk) -> HardwareStorage {
    let name = said(&disk.name);
    let by_path = said(&disk.by_path);
    HardwareStorage {
        alternate_names: name.iter().chain(&by_path).cloned().collect(),
        name: by_path.or(name),
        rotational: Some(disk.rotational),
        type_: Some(match (disk.name.starts_with("/dev/nvme"), disk.rotational) {
            (true, _) => DiskType::Nvme,
            (false, true) => DiskType::Hdd,
            (false, false) => DiskType::Ssd,
        }),
        size_bytes: counted(disk.size_bytes),
        vendor: said(&disk.vendor),
        model: said(&disk.model),
        serial_number: said(&disk.serial),
        wwn: said(&disk.wwn),
        wwn_vendor_extension: said(&disk.wwn_vendor_extension),
        wwn_with_extension: said(&disk.wwn_with_extension),
        hctl: said(&disk.hctl),
    }
}

/// How many changes [`changes`] names; the rest are counted.
const NAMED_CHANGES: usize = 12;

/// What is different in `new`, one phrase each, for people; empty if a person would call it the same machine unchanged.
/// Addresses, link speeds and kernel names come and go with every boot: they are no change.
pub fn changes(old: &HardwareDetails, new: &HardwareDetails) -> Vec<String> {
    let mut all = Vec::new();
    parts(&mut all, "disk", &disks(old), &disks(new));
    parts(&mut all, "NIC", &nics(old, new), &nics(new, old));
    if old.ram_mebibytes != new.ram_mebibytes {
        all.push(format!("memory {} -> {}", mebibytes(old), mebibytes(new)));
    }
    let processors = |of: &HardwareDetails| {
        of.cpu.as_ref().map_or_else(String::new, |cpu| {
            format!(
                "{}x {}",
                cpu.count.unwrap_or(0),
                cpu.model.as_deref().unwrap_or("?")
            )
        })
    };
    value(&mut all, "processors", &processors(old), &processors(new));
    let vendor = |of: &HardwareDetails, field: fn(&HardwareSystemVendor) -> &Option<String>| {
        of.system_vendor
            .as_ref()
            .and_then(|vendor| field(vendor).clone())
            .unwrap_or_default()
    };
    for (name, field) in [
        (
            "manufacturer",
            (|v| &v.manufacturer) as fn(&HardwareSystemVendor) -> &Option<String>,
        ),
        ("product", |v| &v.product_name),
        ("system serial", |v| &v.serial_number),
    ] {
        value(&mut all, name, &vendor(old, field), &vendor(new, field));
    }
    let version = |of: &HardwareDetails| {
        let bios = of.firmware.as_ref().and_then(|firmware| firmware.bios.as_ref());
        bios.and_then(|bios| bios.version.clone()).unwrap_or_default()
    };
    value(&mut all, "firmware", &version(old), &version(new));
    if all.len() > NAMED_CHANGES {
        let rest = all.len() - NAMED_CHANGES;
        all.truncate(NAMED_CHANGES);
        all.push(format!("and {rest} more"));
    }
    all
}

fn mebibytes(of: &HardwareDetails) -> String {
    of.ram_mebibytes
        .map_or_else(|| "unknown".to_owned(), |mib| format!("{mib} MiB"))
}

fn value(all: &mut Vec<String>, name: &str, old: &str, new: &str) {
    if old != new {
        let shown = |value: &str| {
            if value.is_empty() {
                "nothing".to_owned()
            } else {
                format!("\"{value}\"")
            }
        };
        all.push(format!("{name} {} -> {}", shown(old), shown(new)));
    }
}

/// Parts by what identifies them, with what is worth saying of each. Two parts that cannot be told apart are counted apart.
type Parts = BTreeMap<String, String>;

fn collect(parts: impl Iterator<Item = (String, String)>) -> Parts {
    let mut out = Parts::new();
    for (key, shown) in parts {
        let mut unique = key.clone();
        let mut copy = 2;
        while out.contains_key(&unique) {
            unique = format!("{key} #{copy}");
            copy += 1;
        }
        out.insert(unique, shown);
    }
    out
}

fn disks(of: &HardwareDetails) -> Parts {
    collect(of.storage.iter().map(|disk| {
        let id = disk
            .wwn_with_extension
            .as_ref()
            .or(disk.serial_number.as_ref())
            .or(disk.wwn.as_ref())
            .or(disk.name.as_ref());
        let size = disk.size_bytes.unwrap_or(0);
        (id.cloned().unwrap_or_default(), format!("{size} bytes"))
    }))
}

/// The NICs of `of`, to be compared with those of `other`.
fn nics(of: &HardwareDetails, other: &HardwareDetails) -> Parts {
    // The NIC that a BMC pretends to be on USB may have another made-up address at each boot.
    let is_made_up = |nic: &HardwareNic| {
        let mac = nic.mac.as_ref().and_then(|mac| mac.parse::<Mac>().ok());
        nic.pci_address.is_none()
            && mac.is_some_and(Mac::is_local)
            && !other.nics.iter().any(|known| known.mac == nic.mac)
    };
    let mut seen: Vec<(&Option<String>, &Option<String>)> = Vec::new();
    collect(of.nics.iter().filter_map(|nic| {
        // The second entry of an interface with two addresses.
        if nic.mac.is_some() && seen.contains(&(&nic.name, &nic.mac)) {
            return None;
        }
        seen.push((&nic.name, &nic.mac));
        // InfiniBand has no address that stays.
        let mac = nic.mac.as_ref().filter(|_| !is_made_up(nic));
        let id = mac.or(nic.pci_address.as_ref()).or(nic.name.as_ref());
        Some((
            id.cloned().unwrap_or_default(),
            nic.model.clone().unwrap_or_default(),
        ))
    }))
}

fn parts(all: &mut Vec<String>, what: &str, old: &Parts, new: &Parts) {
    let phrase = |id: &str, shown: &str| match shown {
        "" => format!("{what} {id}"),
        shown => format!("{what} {id} ({shown})"),
    };
    for (id, shown) in old {
        match new.get(id) {
            None => all.push(format!("{} removed", phrase(id, shown))),
            Some(now) if now != shown => all.push(format!("{} now {now}", phrase(id, shown))),
            Some(_) => {}
        }
    }
    for (id, shown) in new.iter().filter(|(id, _)| !old.contains_key(*id)) {
        all.push(format!("{} added", phrase(id, shown)));
    }
}

#[cfg(test)]
mod tests;
