use std::io::Cursor;

use muster_proto::inventory::{Memory, MemoryModule};
use procfs::{FromBufRead, Meminfo};

use super::{
    smbios::{MemoryDevice, Table},
    warnings::Warnings,
};
use crate::sys::{self, Root};

const MIB: u64 = 1 << 20;

pub(super) fn collect(root: &Root, table: &Table<'_>, warnings: &mut Warnings) -> Memory {
    let usable_bytes = usable(root, warnings);
    let devices = table.memory_devices();
    for device in devices.iter().filter(|device| device.size_kib.is_none()) {
        warnings
            .on("memory", &device.locator)
            .say("the firmware does not know the module's size");
    }
    let kib = devices
        .iter()
        .filter_map(|device| device.size_kib)
        .fold(0_u64, u64::saturating_add);
    let named_mib = kib / 1024;
    let usable_mib = usable_bytes.div_ceil(MIB);
    if named_mib > 0 && named_mib < usable_mib {
        warnings.on("memory", "modules").say(format!(
            "SMBIOS lists {named_mib} MiB, but the kernel uses {usable_mib} MiB"
        ));
    }
    Memory {
        installed_mib: named_mib.max(usable_mib),
        usable_bytes,
        modules: devices.into_iter().map(module).collect(),
    }
}

/// `MemTotal` in bytes; 0 with a warning if it cannot be told.
fn usable(root: &Root, warnings: &mut Warnings) -> u64 {
    let mut subject = warnings.on("memory", "meminfo");
    let raw = subject.or_default(sys::bytes(&root.proc("meminfo")));
    if raw.is_empty() {
        return 0;
    }
    // The parser slices by bytes: give it nothing but ASCII.
    let ascii: Vec<u8> = raw.into_iter().filter(u8::is_ascii).collect();
    let parsed = Meminfo::from_buf_read(Cursor::new(ascii));
    subject.or_none(parsed).map_or(0, |meminfo| meminfo.mem_total)
}

fn module(device: MemoryDevice) -> MemoryModule {
    MemoryModule {
        locator: device.locator,
        size_mib: device.size_kib.unwrap_or(0) / 1024,
        speed_mts: device.speed_mts,
        manufacturer: device.manufacturer,
        part: device.part,
        serial: device.serial,
    }
}
