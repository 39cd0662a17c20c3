//! The SMBIOS structure table (DMTF DSP0134), read from the bytes that the kernel shows. Total: any bytes give some table.

use muster_proto::text;

use super::warnings::Warnings;
use crate::sys::{self, Root};

mod records;

pub use records::{Identification, MemoryDevice, Processor};

/// Type 127 ends the table (DSP0134 7.45).
const END_OF_TABLE: u8 = 127;

/// The table's bytes and the version of the specification that they follow.
#[derive(Debug, Default)]
pub struct Raw {
    bytes: Vec<u8>,
    version: Option<(u8, u8)>,
}

/// The structures of a table, borrowed from its bytes.
#[derive(Debug, Default)]
pub struct Table<'a> {
    structures: Vec<Structure<'a>>,
    version: Option<(u8, u8)>,
    /// What is wrong with the table; the structures before that place are kept.
    pub damage: Option<&'static str>,
}

/// One structure: a formatted area and the strings after it (DSP0134 6.1).
#[derive(Clone, Debug)]
struct Structure<'a> {
    kind: u8,
    handle: u16,
    /// Header included, so that offsets are those of the specification.
    area: &'a [u8],
    /// Up to and without the final NUL.
    strings: &'a [u8],
}

/// The table below `root`; empty where the firmware has none.
pub(super) fn read(root: &Root, warnings: &mut Warnings) -> Raw {
    let entry = sys::absent_as_none(sys::head(&root.sys("firmware/dmi/tables/smbios_entry_point"), 64));
    let bytes = sys::absent_as_none(sys::bytes(&root.sys("firmware/dmi/tables/DMI")));
    let mut subject = warnings.on("smbios", "table");
    let raw = Raw {
        version: subject.or_default(entry).as_deref().and_then(version),
        bytes: subject.or_default(bytes).unwrap_or_default(),
    };
    if let Some(damage) = raw.table().damage {
        subject.say(damage);
    }
    raw
}

impl Raw {
    /// The structures.
    pub fn table(&self) -> Table<'_> {
        Table {
            version: self.version,
            ..parse(&self.bytes)
        }
    }
}

/// The specification's version from an entry point (DSP0134 5.2).
fn version(entry: &[u8]) -> Option<(u8, u8)> {
    let at = if entry.starts_with(b"_SM3_") {
        7
    } else if entry.starts_with(b"_SM_") {
        6
    } else {
        return None;
    };
    Some((*entry.get(at)?, *entry.get(at + 1)?))
}

/// The structures in `bytes`, up to the end of the table or the first that makes no sense.
pub fn parse(bytes: &[u8]) -> Table<'_> {
    let mut table = Table::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        match Structure::split(rest) {
            Ok((structure, _)) if structure.kind == END_OF_TABLE => break,
            Ok((structure, after)) => {
                table.structures.push(structure);
                rest = after;
            }
            Err(damage) => {
                table.damage = Some(damage);
                break;
            }
        }
    }
    table
}

impl<'a> Table<'a> {
    fn of_kind(&self, kind: u8) -> impl Iterator<Item = &Structure<'a>> {
        self.structures
            .iter()
            .filter(move |structure| structure.kind == kind)
    }
}

impl<'a> Structure<'a> {
    /// The first structure and what follows it.
    fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), &'static str> {
        let [kind, length, low, high, ..] = *bytes else {
            return Err("the table ends within a structure's header");
        };
        if length < 4 {
            return Err("a structure is shorter than its header");
        }
        let Some((area, rest)) = bytes.split_at_checked(length.into()) else {
            return Err("the table ends within a structure");
        };
        // Two NULs end the strings, also where there are none.
        let Some(end) = rest.windows(2).position(|pair| pair == [0, 0]) else {
            // Some firmware forgets them after the last structure, which carries nothing.
            if kind != END_OF_TABLE {
                return Err("the table ends within a structure's strings");
            }
            return Ok((Structure::new(kind, [low, high], area, &[]), &[]));
        };
        let (strings, after) = (&rest[..end], &rest[end + 2..]);
        Ok((Structure::new(kind, [low, high], area, strings), after))
    }

    fn new(kind: u8, handle: [u8; 2], area: &'a [u8], strings: &'a [u8]) -> Self {
        Structure {
            kind,
            handle: u16::from_le_bytes(handle),
            area,
            strings,
        }
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.area.get(offset..)?.first_chunk().copied()
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.area.get(offset).copied()
    }

    fn word(&self, offset: usize) -> Option<u16> {
        self.bytes(offset).map(u16::from_le_bytes)
    }

    fn dword(&self, offset: usize) -> Option<u32> {
        self.bytes(offset).map(u32::from_le_bytes)
    }

    /// The string that the byte at `offset` counts to, from 1; empty if it is 0 or there are fewer.
    fn string(&self, offset: usize) -> String {
        let Some(index) = self
            .byte(offset)
            .and_then(|number| usize::from(number).checked_sub(1))
        else {
            return String::new();
        };
        let raw = self.strings.split(|byte| *byte == 0).nth(index);
        text::clean(raw.unwrap_or_default())
    }
}

#[cfg(test)]
pub(super) mod tests;
