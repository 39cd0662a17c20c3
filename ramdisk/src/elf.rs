//! The sections of an ELF64 little-endian relocatable object, which is what a kernel module is
//! (System V ABI chapter 4; `include/uapi/linux/elf.h`), and a copy of it without what loading does not need.

use std::ops::Range;

const HEADER: usize = 64;
const SECTION_HEADER: usize = 64;

const SHT_NULL: u32 = 0;
const SHT_NOBITS: u32 = 8;

/// Why bytes are no object this module reads.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// No ELF magic, or not 64 bits, or big-endian.
    #[error("read module: it is not a little-endian ELF64 file")]
    NotElf64,
    /// The table of sections does not lie within the file.
    #[error("read module: its section table lies outside the file")]
    Table,
    /// A section's bytes do not lie within the file.
    #[error("read module: section {index} lies outside the file")]
    Outside {
        /// Its place in the table.
        index: usize,
    },
    /// The sections claim more bytes than there are, so some overlap.
    #[error("read module: its sections overlap")]
    Overlap,
    /// A section's name does not lie within the table of names.
    #[error("read module: section {index} has no readable name")]
    Name {
        /// Its place in the table.
        index: usize,
    },
    /// A section wants an alignment that is no power of two or absurdly large.
    #[error("read module: section {index} requires alignment {align}")]
    Align {
        /// Its place in the table.
        index: usize,
        /// The alignment it wants, in bytes.
        align: u64,
    },
}

/// An object file, checked so far that every section and its name lie within it.
#[derive(Clone, Debug)]
pub struct Elf<'a> {
    bytes: &'a [u8],
    table: usize,
    sections: Vec<Section<'a>>,
}

#[derive(Clone, Debug)]
struct Section<'a> {
    name: &'a str,
    kind: u32,
    data: Range<usize>,
    align: usize,
}

impl<'a> Elf<'a> {
    /// Reads the section table of `bytes`; a signature appended after the object does no harm.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        // e_ident: magic, ELFCLASS64, ELFDATA2LSB.
        if bytes.len() < HEADER || !bytes.starts_with(b"\x7fELF\x02\x01") {
            return Err(ElfError::NotElf64);
        }
        let table = u64_at(bytes, 40)
            .and_then(|at| usize::try_from(at).ok())
            .ok_or(ElfError::Table)?;
        let entry_size = u16_at(bytes, 58).ok_or(ElfError::Table)?;
        let count = usize::from(u16_at(bytes, 60).ok_or(ElfError::Table)?);
        let names = usize::from(u16_at(bytes, 62).ok_or(ElfError::Table)?);
        let end = table.checked_add(count * SECTION_HEADER).ok_or(ElfError::Table)?;
        if usize::from(entry_size) != SECTION_HEADER || end > bytes.len() || names >= count {
            return Err(ElfError::Table);
        }
        let headers = || bytes[table..end].chunks_exact(SECTION_HEADER).enumerate();
        let mut ranges = Vec::with_capacity(count);
        for (index, header) in headers() {
            ranges.push(data_range(header, bytes.len()).ok_or(ElfError::Outside { index })?);
        }
        // Without this, a copy of all sections could be longer than the file a thousandfold.
        if ranges.iter().map(ExactSizeIterator::len).sum::<usize>() > bytes.len() {
            return Err(ElfError::Overlap);
        }
        let names = &bytes[ranges[names].clone()];
        let mut sections = Vec::with_capacity(count);
        for ((index, header), data) in headers().zip(ranges) {
            let field = |at| u32_at(header, at).ok_or(ElfError::Table);
            let name = names
                .get(field(0)? as usize..)
                .and_then(c_string)
                .ok_or(ElfError::Name { index })?;
            let align = u64_at(header, 48).ok_or(ElfError::Table)?.max(1);
            let sane = usize::try_from(align)
                .ok()
                .filter(|align| align.is_power_of_two() && *align <= 1 << 21);
            let align = sane.ok_or(ElfError::Align { index, align })?;
            sections.push(Section {
                name,
                kind: field(4)?,
                data,
                align,
            });
        }
        Ok(Self {
            bytes,
            table,
            sections,
        })
    }

    /// The bytes of the first section of that name.
    pub fn section(&self, name: &str) -> Option<&'a [u8]> {
        let section = self.sections.iter().find(|section| section.name == name)?;
        Some(&self.bytes[section.data.clone()])
    }

    /// A copy that loads as well and is smaller: without debug information, the unwinder's tables and any appended
    /// signature.
    ///
    /// A dropped section keeps its place in the table as an empty `SHT_NULL`, which the loader passes over
    /// (`kernel/module/main.c`, `elf_validity_check`), so that no index in symbols and relocations changes.
    /// Symbols stay, because a stack trace without names helps nobody.
    /// The signature must go with any change of a byte; a kernel locked down by Secure Boot refuses such modules.
    pub fn stripped(&self) -> Vec<u8> {
        let mut order: Vec<usize> = (0..self.sections.len()).collect();
        order.sort_by_key(|&index| self.sections[index].data.start);
        let mut out = self.bytes[..HEADER].to_vec();
        let mut table = self.bytes[self.table..][..self.sections.len() * SECTION_HEADER].to_vec();
        for index in order {
            let section = &self.sections[index];
            let header = &mut table[index * SECTION_HEADER..][..SECTION_HEADER];
            if is_ballast(section.name) {
                header[4..].fill(0);
                continue;
            }
            if section.kind == SHT_NULL {
                continue;
            }
            out.resize(out.len().next_multiple_of(section.align), 0);
            header[24..32].copy_from_slice(&(out.len() as u64).to_le_bytes());
            out.extend_from_slice(&self.bytes[section.data.clone()]);
        }
        out.resize(out.len().next_multiple_of(8), 0);
        let table_at = out.len() as u64;
        out[40..48].copy_from_slice(&table_at.to_le_bytes());
        out.extend_from_slice(&table);
        out
    }
}

/// Sections that nothing in the ramdisk reads: type and debug information, compiler notes, and the ORC tables, a
/// quarter of a module's size, without which the kernel guesses at stack frames inside modules.
fn is_ballast(name: &str) -> bool {
    let base = name.strip_prefix(".rela").unwrap_or(name);
    base.starts_with(".debug")
        || base.starts_with(".orc_unwind")
        || base.starts_with(".BTF")
        || matches!(base, ".comment" | ".note.GNU-stack" | ".gnu_debuglink")
}

/// Where a section's bytes lie; empty for those that take no room in the file.
fn data_range(header: &[u8], file_len: usize) -> Option<Range<usize>> {
    if matches!(u32_at(header, 4)?, SHT_NULL | SHT_NOBITS) {
        return Some(0..0);
    }
    let start = usize::try_from(u64_at(header, 24)?).ok()?;
    let end = start.checked_add(usize::try_from(u64_at(header, 32)?).ok()?)?;
    (end <= file_len).then_some(start..end)
}

fn c_string(bytes: &[u8]) -> Option<&str> {
    let len = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&bytes[..len]).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
pub(crate) mod tests;
