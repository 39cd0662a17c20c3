//! The structure types that the inventory uses. Offsets are those of DSP0134 3.7, chapter 7.

use std::fmt::Write;

use super::{Structure, Table};

/// Types 0 to 3: names, numbers and dates of firmware, system, board and chassis. Empty where not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names say all, and match those of `/sys/class/dmi/id`.
pub struct Identification {
    pub bios_vendor: String,
    pub bios_version: String,
    pub bios_date: String,
    pub sys_vendor: String,
    pub product_name: String,
    pub product_serial: String,
    pub product_uuid: String,
    pub product_sku: String,
    pub product_family: String,
    pub board_vendor: String,
    pub board_name: String,
    pub board_serial: String,
    pub chassis_serial: String,
    pub chassis_asset_tag: String,
}

/// Type 4: one populated processor socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// Marketing name.
    pub version: String,
    /// The clock at which it starts, in MHz; 0 if unknown.
    pub current_mhz: u16,
    /// The highest clock of any processor for this socket, in MHz; 0 if unknown.
    pub max_mhz: u16,
}

/// Type 17: one populated memory slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryDevice {
    /// Which slot, as printed on the board.
    pub locator: String,
    /// KiB; `None` if the firmware does not know.
    pub size_kib: Option<u64>,
    /// MT/s at which it runs, else of which it is capable; 0 if unknown.
    pub speed_mts: u32,
    /// Who made it.
    pub manufacturer: String,
    /// Part number.
    pub part: String,
    /// Serial number.
    pub serial: String,
}

impl Table<'_> {
    /// Types 0 to 3; of several boards and chassis the first, as the kernel has it.
    pub fn identification(&self) -> Identification {
        let string = |kind: u8, offset: usize| {
            self.of_kind(kind)
                .next()
                .map(|structure| structure.string(offset))
                .unwrap_or_default()
        };
        Identification {
            bios_vendor: string(0, 0x04),
            bios_version: string(0, 0x05),
            bios_date: string(0, 0x08),
            sys_vendor: string(1, 0x04),
            product_name: string(1, 0x05),
            product_serial: string(1, 0x07),
            product_uuid: self.uuid().unwrap_or_default(),
            product_sku: string(1, 0x19),
            product_family: string(1, 0x1a),
            board_vendor: string(2, 0x04),
            board_name: string(2, 0x05),
            board_serial: string(2, 0x07),
            chassis_serial: string(3, 0x07),
            chassis_asset_tag: string(3, 0x08),
        }
    }

    /// Type 1's UUID as text. Since version 2.6 the first three fields are little-endian (DSP0134 7.2.1).
    fn uuid(&self) -> Option<String> {
        let mut raw: [u8; 16] = self.of_kind(1).next()?.bytes(0x08)?;
        if self.version.is_none_or(|version| version >= (2, 6)) {
            raw[..4].reverse();
            raw[4..6].reverse();
            raw[6..8].reverse();
        }
        let mut out = String::with_capacity(36);
        for (at, byte) in raw.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                out.push('-');
            }
            write!(out, "{byte:02x}").expect("writing to a string does not fail");
        }
        Some(out)
    }

    /// Type 4: every populated socket of a central processor.
    pub fn processors(&self) -> Vec<Processor> {
        const CENTRAL: u8 = 3;
        const POPULATED: u8 = 1 << 6;
        self.of_kind(4)
            .filter(|socket| socket.byte(0x05) == Some(CENTRAL))
            .filter(|socket| socket.byte(0x18).is_some_and(|status| status & POPULATED != 0))
            .map(|socket| Processor {
                version: socket.string(0x10),
                max_mhz: socket.word(0x14).unwrap_or(0),
                current_mhz: socket.word(0x16).unwrap_or(0),
            })
            .collect()
    }

    /// Type 17: every populated slot of main memory. Slots of video memory and caches, firmware's own flash, and modules that keep
    /// all of their content without power are left out.
    pub fn memory_devices(&self) -> Vec<MemoryDevice> {
        const SYSTEM_MEMORY: u8 = 3;
        let elsewhere: Vec<u16> = self
            .of_kind(16)
            .filter(|array| array.byte(0x05).is_some_and(|usage| usage != SYSTEM_MEMORY))
            .map(|array| array.handle)
            .collect();
        self.of_kind(17)
            .filter(|slot| slot.word(0x04).is_none_or(|array| !elsewhere.contains(&array)))
            .filter(|slot| !is_rom(slot))
            .filter_map(memory_device)
            .collect()
    }
}

/// ROM, flash and the PROMs.
fn is_rom(slot: &Structure<'_>) -> bool {
    matches!(slot.byte(0x12), Some(0x08..=0x0c))
}

/// By the memory's type (a logical non-volatile device), its details, or its technology (NVDIMMs and Optane, since version 3.2).
fn is_persistent(slot: &Structure<'_>) -> bool {
    const LOGICAL: u8 = 0x1f;
    const NON_VOLATILE: u16 = 1 << 12;
    slot.byte(0x12) == Some(LOGICAL)
        || slot.word(0x13).is_some_and(|detail| detail & NON_VOLATILE != 0)
        || matches!(slot.byte(0x28), Some(0x04..=0x07))
}

/// How much of a persistent module serves as main memory, in KiB; `None`: nothing, or the firmware does not know. Of other modules this is not
/// asked: firmware may leave it 0 there.
fn volatile_kib(slot: &Structure<'_>) -> Option<u64> {
    let bytes = slot.bytes(0x3c).map(u64::from_le_bytes)?;
    Some(bytes / 1024).filter(|kib| *kib > 0 && bytes != u64::MAX)
}

/// `None` for an empty slot, and for a module of which nothing is main memory.
fn memory_device(slot: &Structure<'_>) -> Option<MemoryDevice> {
    const UNKNOWN: u16 = 0xffff;
    const EXTENDED: u16 = 0x7fff;
    const KIBIBYTES: u16 = 0x8000;
    let size_kib = match slot.word(0x0c)? {
        0 => return None,
        _ if is_persistent(slot) => volatile_kib(slot)?,
        UNKNOWN => 0,
        // Before version 2.7 there was no larger field, and this was a size like any other.
        EXTENDED => u64::from(slot.dword(0x1c).unwrap_or(u32::from(EXTENDED)) & 0x7fff_ffff) * 1024,
        size if size & KIBIBYTES != 0 => u64::from(size & !KIBIBYTES),
        size => u64::from(size) * 1024,
    };
    let speed = |short: usize, long: usize| match slot.word(short)? {
        0 => None,
        0xffff => slot.dword(long).filter(|speed| *speed != 0),
        speed => Some(u32::from(speed)),
    };
    Some(MemoryDevice {
        locator: slot.string(0x10),
        size_kib: Some(size_kib).filter(|kib| *kib > 0),
        speed_mts: speed(0x20, 0x58).or_else(|| speed(0x15, 0x54)).unwrap_or(0),
        manufacturer: slot.string(0x17),
        part: slot.string(0x1a),
        serial: slot.string(0x18),
    })
}
