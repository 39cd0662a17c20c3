//! The part of a PE32+ image that matters for appending sections to it (Microsoft PE format, "Optional header" and
//! "Section table").

use std::collections::BTreeSet;
use std::ops::Range;

const MAX_ALIGNMENT: u32 = 2 << 20;
/// Length of a section's entry in the table.
pub(crate) const SECTION: usize = 40;

// Offsets from the COFF file header, which follows the signature.
const COFF: usize = 20;
const MACHINES: [u16; 2] = [0x8664, 0xaa64];
// Offsets within the optional header.
const OPTIONAL_MAGIC: u16 = 0x20b;
const SIZE_OF_INITIALIZED_DATA: usize = 8;
const SECTION_ALIGNMENT: usize = 32;
const FILE_ALIGNMENT: usize = 36;
const SIZE_OF_IMAGE: usize = 56;
const SIZE_OF_HEADERS: usize = 60;
const CHECKSUM: usize = 64;
const SUBSYSTEM: usize = 68;
const EFI_APPLICATION: u16 = 10;
const DIRECTORY_COUNT: usize = 108;
const DIRECTORIES: usize = 112;
/// Place of the certificate table among the data directories.
const CERTIFICATES: usize = 4;
/// `IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ`.
const READ_ONLY_DATA: u32 = 0x4000_0040;

/// Why bytes are no EFI program that sections can be appended to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeError {
    /// The file ends before a field that must be there.
    #[error("read EFI stub: it ends within its headers")]
    Short,
    /// A magic number or an identity is not that of a 64-bit EFI program.
    #[error("read EFI stub: not a 64-bit EFI program, its {field} is {found:#x}")]
    Kind {
        /// The name of the field.
        field: &'static str,
        /// Its value.
        found: u64,
    },
    /// An alignment is no power of two, or absurdly large.
    #[error("read EFI stub: malformed alignments {section:#x} and {file:#x}")]
    Alignment {
        /// `SectionAlignment`.
        section: u32,
        /// `FileAlignment`.
        file: u32,
    },
    /// A section lies outside the file, or its addresses outside 32 bits.
    #[error("read EFI stub: section {index} lies outside the file")]
    Outside {
        /// Its place in the table.
        index: usize,
    },
    /// The stub carries a signature, which no appended section would be covered by.
    #[error("read EFI stub: it is signed, appending to it would break the signature")]
    Signed,
    /// A section of that name is there already, so this is no bare stub.
    #[error("append to EFI stub: it already has a section {name}")]
    Taken {
        /// The section's name.
        name: String,
    },
    /// No space is left between the section table and the first section.
    #[error("append to EFI stub: no room for {count} more sections in its headers")]
    Room {
        /// How many were to be appended.
        count: usize,
    },
    /// PE has 32 bits for offsets and addresses.
    #[error("append to EFI stub: the image would be longer than 4 GiB")]
    Long,
}

/// Where an appended section's bytes go in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// The bytes themselves.
    pub(crate) data: Range<u64>,
    /// Up to here the file holds zeros after them.
    pub(crate) end: u64,
}

/// A checked EFI program.
#[derive(Debug)]
pub(crate) struct Pe<'a> {
    bytes: &'a [u8],
    /// Offset of the COFF header.
    coff: usize,
    optional: usize,
    table: usize,
    sections: usize,
    section_alignment: u32,
    file_alignment: u32,
    size_of_headers: u32,
    /// First offset that belongs to a section.
    first_data: u64,
    /// First address that no section takes.
    next_address: u64,
    names: BTreeSet<[u8; 8]>,
}

impl<'a> Pe<'a> {
    /// Checks every header field that [`append`](Self::append) relies on.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, PeError> {
        expect("DOS magic", u16_at(bytes, 0)?, &[u16::from_le_bytes(*b"MZ")])?;
        let signature = usize_of(u32_at(bytes, 0x3c)?);
        let found = u32_at(bytes, signature)?;
        if found != u32::from_le_bytes(*b"PE\0\0") {
            return Err(PeError::Kind {
                field: "signature",
                found: found.into(),
            });
        }
        let coff = signature + 4;
        expect("machine", u16_at(bytes, coff)?, &MACHINES)?;
        let sections = usize::from(u16_at(bytes, coff + 2)?);
        let optional = coff + COFF;
        let optional_size = usize::from(u16_at(bytes, coff + 16)?);
        expect(
            "optional header's magic",
            u16_at(bytes, optional)?,
            &[OPTIONAL_MAGIC],
        )?;
        expect(
            "subsystem",
            u16_at(bytes, optional + SUBSYSTEM)?,
            &[EFI_APPLICATION],
        )?;
        let directories = usize_of(u32_at(bytes, optional + DIRECTORY_COUNT)?);
        if optional_size < DIRECTORIES || (optional_size - DIRECTORIES) / 8 < directories {
            return Err(PeError::Kind {
                field: "optional header's size",
                found: optional_size as u64,
            });
        }
        if directories > CERTIFICATES && u32_at(bytes, optional + DIRECTORIES + CERTIFICATES * 8 + 4)? != 0 {
            return Err(PeError::Signed);
        }
        let section_alignment = u32_at(bytes, optional + SECTION_ALIGNMENT)?;
        let file_alignment = u32_at(bytes, optional + FILE_ALIGNMENT)?;
        let sane = |align: u32| align.is_power_of_two() && align <= MAX_ALIGNMENT;
        if !sane(section_alignment) || !sane(file_alignment) {
            return Err(PeError::Alignment {
                section: section_alignment,
                file: file_alignment,
            });
        }
        let mut pe = Self {
            bytes,
            coff,
            optional,
            table: optional + optional_size,
            sections,
            section_alignment,
            file_alignment,
            size_of_headers: u32_at(bytes, optional + SIZE_OF_HEADERS)?,
            first_data: bytes.len() as u64,
            next_address: 0,
            names: BTreeSet::new(),
        };
        for index in 0..sections {
            pe.read_section(index)?;
        }
        Ok(pe)
    }

    fn read_section(&mut self, index: usize) -> Result<(), PeError> {
        let at = self.table + index * SECTION;
        let entry = self.bytes.get(at..at + SECTION).ok_or(PeError::Short)?;
        let [virtual_size, address, raw_size, raw_at] =
            [8, 12, 16, 20].map(|field| u32_at(entry, field).map(u64::from));
        let (virtual_size, address, raw_size, raw_at) = (virtual_size?, address?, raw_size?, raw_at?);
        if raw_at + raw_size > self.bytes.len() as u64 || address + virtual_size > u64::from(u32::MAX) {
            return Err(PeError::Outside { index });
        }
        if raw_size > 0 {
            self.first_data = self.first_data.min(raw_at);
        }
        self.next_address = self.next_address.max(address + virtual_size.max(raw_size));
        self.names.insert(*entry.first_chunk().ok_or(PeError::Short)?);
        Ok(())
    }

    /// The stub's bytes with the table extended by sections of these names and lengths, and where each goes.
    ///
    /// The bytes end where the first appended section begins.
    pub(crate) fn append(&self, new: &[(&str, u64)]) -> Result<(Vec<u8>, Vec<Placed>), PeError> {
        let table_end = (self.table + (self.sections + new.len()) * SECTION) as u64;
        let count =
            u16::try_from(self.sections + new.len()).map_err(|_| PeError::Room { count: new.len() })?;
        if table_end > self.first_data.min(self.size_of_headers.into()) {
            return Err(PeError::Room { count: new.len() });
        }
        let align = u64::from(self.file_alignment);
        let mut out = self.bytes.to_vec();
        out.resize(out.len().next_multiple_of(usize_of(self.file_alignment)), 0);
        let mut file_at = out.len() as u64;
        // Pages at least, whatever smaller alignment the stub was linked with: the kernel is executed in place.
        let address_alignment = u64::from(self.section_alignment.max(0x1000));
        let mut address = self.next_address.next_multiple_of(address_alignment);
        let mut placed = Vec::with_capacity(new.len());
        let mut initialized = u64::from(u32_at(self.bytes, self.optional + SIZE_OF_INITIALIZED_DATA)?);
        for (nth, (name, len)) in new.iter().enumerate() {
            let name = padded_name(name);
            if self.names.contains(&name) {
                let name = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
                return Err(PeError::Taken { name });
            }
            let end = len
                .checked_add(file_at)
                .and_then(|end| end.checked_next_multiple_of(align));
            let end = end
                .filter(|end| *end <= u64::from(u32::MAX))
                .ok_or(PeError::Long)?;
            let entry = [
                u32_of(*len)?,
                u32_of(address)?,
                u32_of(end - file_at)?,
                u32_of(file_at)?,
                0,
                0,
                0,
            ];
            let at = self.table + (self.sections + nth) * SECTION;
            out[at..at + 8].copy_from_slice(&name);
            for (field, value) in entry.into_iter().chain([READ_ONLY_DATA]).enumerate() {
                put_u32(&mut out, at + 8 + field * 4, value);
            }
            placed.push(Placed {
                data: file_at..file_at + len,
                end,
            });
            initialized += end - file_at;
            address = (address + len).next_multiple_of(address_alignment);
            file_at = end;
        }
        out[self.coff + 2..self.coff + 4].copy_from_slice(&count.to_le_bytes());
        put_u32(
            &mut out,
            self.optional + SIZE_OF_INITIALIZED_DATA,
            u32_of(initialized)?,
        );
        put_u32(&mut out, self.optional + SIZE_OF_IMAGE, u32_of(address)?);
        // EFI firmware does not look at it; zero is "not computed".
        put_u32(&mut out, self.optional + CHECKSUM, 0);
        Ok((out, placed))
    }
}

fn expect(field: &'static str, found: u16, wanted: &[u16]) -> Result<(), PeError> {
    if wanted.contains(&found) {
        Ok(())
    } else {
        Err(PeError::Kind {
            field,
            found: found.into(),
        })
    }
}

fn padded_name(name: &str) -> [u8; 8] {
    let mut padded = [0; 8];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, PeError> {
    let chunk = bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .ok_or(PeError::Short)?;
    Ok(u16::from_le_bytes(*chunk))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Result<u32, PeError> {
    let chunk = bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .ok_or(PeError::Short)?;
    Ok(u32::from_le_bytes(*chunk))
}

fn u32_of(value: u64) -> Result<u32, PeError> {
    u32::try_from(value).map_err(|_| PeError::Long)
}

fn usize_of(value: u32) -> usize {
    usize::try_from(value).expect("a usize has at least 32 bits")
}
