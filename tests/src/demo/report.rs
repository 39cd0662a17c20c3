//! What was found, in tables that fit a terminal.

use std::fmt::Write as _;

use kube::ResourceExt;
use muster_proto::{
    kinds::{BareMetalHost, DiskType, HardwareDetails, HardwareNic, HardwareStorage},
    text,
};

/// A host's name, system, processors, disks and NICs.
pub(super) fn host(host: &BareMetalHost) -> String {
    let mut out = format!("{}\n", host.name_any());
    let Some(hardware) = host.status.as_ref().and_then(|status| status.hardware.as_ref()) else {
        return out + "  no hardware yet\n";
    };
    let hardware = hardware.unpack();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(out, "  {}", system(&hardware));
    out += &table(
        &["DISK", "KIND", "SIZE", "VENDOR", "MODEL", "SERIAL", "WWN"],
        hardware.storage.iter().map(disk),
    );
    out += &table(
        &["NIC", "MAC", "ADDRESS", "SPEED", "MODEL", "BOOT"],
        hardware.nics.iter().map(nic),
    );
    out
}

fn system(hardware: &HardwareDetails) -> String {
    let mut parts = Vec::new();
    if let Some(vendor) = &hardware.system_vendor {
        let names = [&vendor.manufacturer, &vendor.product_name];
        parts.push(names.map(shown).join(" "));
        parts.push(format!("serial {}", shown(&vendor.serial_number)));
    }
    if let Some(cpu) = &hardware.cpu {
        let count = cpu.count.unwrap_or(0);
        parts.push(format!("{count} × {} ({})", shown(&cpu.model), shown(&cpu.arch)));
    }
    if let Some(memory) = hardware.ram_mebibytes {
        parts.push(format!("{memory} MiB of memory"));
    }
    parts.join(", ")
}

fn disk(disk: &HardwareStorage) -> Vec<String> {
    let kind = match disk.type_ {
        Some(DiskType::Hdd) => "HDD",
        Some(DiskType::Ssd) => "SSD",
        Some(DiskType::Nvme) => "NVMe",
        None => "-",
    };
    // The first name may be a long by-path one; the kernel's is shorter.
    let names = disk.name.iter().chain(&disk.alternate_names);
    let name = names.min_by_key(|name| name.len()).cloned();
    vec![
        shown(&name),
        kind.to_owned(),
        disk.size_bytes.map_or_else(|| "-".to_owned(), size),
        shown(&disk.vendor),
        shown(&disk.model),
        shown(&disk.serial_number),
        shown(&disk.wwn_with_extension.clone().or_else(|| disk.wwn.clone())),
    ]
}

fn nic(nic: &HardwareNic) -> Vec<String> {
    let speed = nic.speed_gbps.filter(|speed| *speed > 0);
    vec![
        shown(&nic.name),
        shown(&nic.mac),
        shown(&nic.ip),
        speed.map_or_else(|| "-".to_owned(), |speed| format!("{speed} Gbit/s")),
        shown(&nic.model),
        if nic.pxe == Some(true) { "yes" } else { "" }.to_owned(),
    ]
}

fn shown(value: &Option<String>) -> String {
    let clean = text::clean(value.as_deref().unwrap_or_default().as_bytes());
    if clean.is_empty() { "-".to_owned() } else { clean }
}

fn size(bytes: i64) -> String {
    const UNITS: [(&str, i64); 4] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    let unit = UNITS.into_iter().find(|(_, unit)| bytes >= *unit);
    match unit {
        // One decimal, in whole numbers.
        Some((name, unit)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

/// Columns as wide as their widest cell, two blanks apart, indented.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: String = cells.map(|(cell, width)| format!("  {cell:width$}")).collect();
        let _ = writeln!(out, "  {}", line.trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_is_readable() {
        let json = r#"{
            "apiVersion": "metal3.io/v1alpha1", "kind": "BareMetalHost", "metadata": {"name": "lab-1"},
            "spec": {"online": true},
            "status": {"errorMessage": "", "operationalStatus": "discovered", "poweredOn": true,
              "provisioning": {"ID": "", "state": "unmanaged"},
              "hardware": {
                "systemVendor": {"manufacturer": "La\u001b[31mb", "serialNumber": "S1"},
                "cpu": {"arch": "x86_64", "count": 2, "model": "QEMU"}, "ramMebibytes": 512,
                "storage": [{"name": "/dev/disk/by-path/pci-0", "alternateNames": ["/dev/sda"], "type": "SSD",
                             "sizeBytes": 1610612736, "serialNumber": "D1", "wwn": "0x5000c500a1b2c3d4"}],
                "nics": [{"name": "eth0", "mac": "52:54:00:00:00:01", "ip": "10.77.0.100", "pxe": true}]}}}"#;
        let text = host(&serde_json::from_str(json).unwrap());
        assert_eq!(
            text,
            "lab-1\n  La [31mb -, serial S1, 2 × QEMU (x86_64), 512 MiB of memory\n    \
             DISK      KIND  SIZE     VENDOR  MODEL  SERIAL  WWN\n    \
             /dev/sda  SSD   1.5 GiB  -       -      D1      0x5000c500a1b2c3d4\n    \
             NIC   MAC                ADDRESS      SPEED  MODEL  BOOT\n    \
             eth0  52:54:00:00:00:01  10.77.0.100  -      -      yes\n"
        );
    }

    #[test]
    fn sizes_are_cut_not_rounded_up() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size((1 << 30) - 1), "1023.9 MiB");
        assert_eq!(size(i64::MAX), "8388607.9 TiB");
    }
}
