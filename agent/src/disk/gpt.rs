//! The GUID partition table (UEFI specification 2.10, section 5.3): parsing, moving it to a disk of another size, adding to it.
//! Pure: bytes in, bytes out.

use std::fmt;

use flate2::Crc;

/// What a header begins with.
const SIGNATURE: &[u8; 8] = b"EFI PART";

/// The fields of a header (table 5-5). The rest of its block is zero.
const HEADER: usize = 92;

/// Entries of a table; every tool makes 128.
const MOST_ENTRIES: u32 = 1024;

/// A globally unique identifier as it lies on the disk: the first three groups little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// EFI system partition.
    pub const ESP: Guid = Guid([
        0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
    ]);
    /// Linux file system data.
    pub const LINUX: Guid = Guid([
        0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
    ]);

    /// A random one (version 4, RFC 9562) of 128 bits.
    pub fn random(bits: u128) -> Guid {
        let mut bytes = bits.to_le_bytes();
        bytes[7] = bytes[7] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Guid(bytes)
    }
}

/// A table cannot be used as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GptError {
    /// No header where one must be.
    #[error("there is no GPT header")]
    Missing,
    /// A checksum is wrong.
    #[error("the checksum of the GPT {0} is wrong")]
    Checksum(&'static str),
    /// A field makes no sense.
    #[error("the GPT's {0} is invalid")]
    Field(&'static str),
    /// The entries are not where they are looked for.
    #[error("the GPT entries lie outside the first MiB")]
    EntriesOutside,
    /// A partition lies behind the last block that the disk can give.
    #[error("partition {partition} ends at block {last}, but the last usable block of the disk is {usable}")]
    TooSmall {
        /// Its number.
        partition: u32,
        /// Its last block.
        last: u64,
        /// The last block that may belong to a partition.
        usable: u64,
    },
    /// There is no unused entry.
    #[error("all {0} entries of the GPT are in use")]
    Full(usize),
    /// There is no free space at the end.
    #[error("there is no room after the last partition: {needed} bytes are needed, but only {free} are free")]
    NoRoom {
        /// In bytes.
        needed: u64,
        /// In bytes.
        free: u64,
    },
}

/// A partition; blocks are logical blocks.
#[derive(Clone, PartialEq, Eq)]
pub struct Partition {
    /// From 1.
    pub number: u32,
    /// What it is for.
    pub kind: Guid,
    /// Which one it is.
    pub guid: Guid,
    /// Its first block.
    pub first: u64,
    /// Its last block.
    pub last: u64,
    /// Its label.
    pub name: String,
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}..={} {:?}",
            self.number, self.first, self.last, self.name
        )
    }
}

/// The fields of a header that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    own: u64,
    alternate: u64,
    first_usable: u64,
    last_usable: u64,
    guid: Guid,
    entries_at: u64,
    count: u32,
    entry_len: u32,
    entries_checksum: u32,
}

/// A whole table. What it does not understand of entries it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpt {
    block: u32,
    header: Header,
    entries: Vec<u8>,
}

/// Where a header's entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntriesAt {
    /// In bytes from the disk's start.
    pub offset: u64,
    /// In bytes.
    pub len: usize,
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn guid(bytes: &[u8], at: usize) -> Guid {
    Guid(bytes[at..at + 16].try_into().expect("sixteen bytes"))
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Header, GptError> {
        if bytes.len() < HEADER || !bytes.starts_with(SIGNATURE) {
            return Err(GptError::Missing);
        }
        let len = usize::try_from(word(bytes, 12)).unwrap_or(usize::MAX);
        if len < HEADER || len > bytes.len() {
            return Err(GptError::Field("header length"));
        }
        let mut summed = bytes[..len].to_vec();
        summed[16..20].fill(0);
        if checksum(&summed) != word(bytes, 16) {
            return Err(GptError::Checksum("header"));
        }
        let header = Header {
            own: long(bytes, 24),
            alternate: long(bytes, 32),
            first_usable: long(bytes, 40),
            last_usable: long(bytes, 48),
            guid: guid(bytes, 56),
            entries_at: long(bytes, 72),
            count: word(bytes, 80),
            entry_len: word(bytes, 84),
            entries_checksum: word(bytes, 88),
        };
        let power = header.entry_len.is_power_of_two() && (128..=4096).contains(&header.entry_len);
        if !power || header.count == 0 || header.count > MOST_ENTRIES {
            return Err(GptError::Field("entry count or size"));
        }
        Ok(header)
    }

    fn entries(&self, block: u32) -> Result<EntriesAt, GptError> {
        let bytes = u64::from(self.count) * u64::from(self.entry_len);
        let offset = self.entries_at.checked_mul(block.into());
        let offset = offset.filter(|offset| offset.checked_add(bytes).is_some());
        Ok(EntriesAt {
            offset: offset.ok_or(GptError::Field("entry location"))?,
            len: usize::try_from(bytes).map_err(|_| GptError::Field("entry count"))?,
        })
    }

    fn to_block(&self, block: u32) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(block).expect("a block fits in memory")];
        bytes[..8].copy_from_slice(SIGNATURE);
        bytes[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
        let len = u32::try_from(HEADER).expect("92 fits");
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        for (at, value) in [
            (24, self.own),
            (32, self.alternate),
            (40, self.first_usable),
            (48, self.last_usable),
            (72, self.entries_at),
        ] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[56..72].copy_from_slice(&self.guid.0);
        for (at, value) in [
            (80, self.count),
            (84, self.entry_len),
            (88, self.entries_checksum),
        ] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let sum = checksum(&bytes[..HEADER]);
        bytes[16..20].copy_from_slice(&sum.to_le_bytes());
        bytes
    }
}

/// Where the entries are that belong to the header which `header_block` begins with, for a disk of this block size.
///
/// # Errors
/// [`GptError`] if there is no sound header.
pub fn entries_of(header_block: &[u8], block: u32) -> Result<EntriesAt, GptError> {
    Header::parse(header_block)?.entries(block)
}

impl Gpt {
    /// The table of `header_block`, with `entries` read from [`entries_of`]; a partition in it may end before it begins, as Linux leaves out
    /// such ones alone.
    ///
    /// # Errors
    /// [`GptError`] if anything else is unsound.
    pub fn parse(header_block: &[u8], entries: Vec<u8>, block: u32) -> Result<Gpt, GptError> {
        let header = Header::parse(header_block)?;
        if entries.len() != header.entries(block)?.len {
            return Err(GptError::Field("entry table length"));
        }
        if checksum(&entries) != header.entries_checksum {
            return Err(GptError::Checksum("entries"));
        }
        Ok(Gpt {
            block,
            header,
            entries,
        })
    }

    /// The primary table in the first bytes of an image or disk with blocks of `block` bytes.
    ///
    /// # Errors
    /// [`GptError`] if anything is unsound, or if not all of it is in `head`.
    pub fn primary(head: &[u8], block: u32) -> Result<Gpt, GptError> {
        let len = usize::try_from(block).expect("a block fits in memory");
        let header_block = head.get(len..2 * len).ok_or(GptError::Missing)?;
        let header = Header::parse(header_block)?;
        if header.own != 1 || header.entries_at < 2 {
            return Err(GptError::Field("header location"));
        }
        let at = header.entries(block)?;
        let entries = usize::try_from(at.offset)
            .ok()
            .and_then(|offset| head.get(offset..offset.checked_add(at.len)?))
            .ok_or(GptError::EntriesOutside)?;
        let gpt = Gpt::parse(header_block, entries.to_vec(), block)?;
        if gpt.partitions().any(|partition| partition.first > partition.last) {
            return Err(GptError::Field("partition"));
        }
        Ok(gpt)
    }

    /// The block size that it counts in.
    pub fn block(&self) -> u32 {
        self.block
    }

    fn entry_len(&self) -> usize {
        usize::try_from(self.header.entry_len).expect("entries are small")
    }

    /// The partitions, by number.
    pub fn partitions(&self) -> impl Iterator<Item = Partition> {
        let entries = self.entries.chunks_exact(self.entry_len());
        (1..).zip(entries).filter_map(|(number, entry)| {
            let kind = guid(entry, 0);
            (kind != Guid::default()).then(|| {
                let units = entry[56..128].chunks_exact(2);
                let units = units.map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
                let name = char::decode_utf16(units.take_while(|unit| *unit != 0));
                Partition {
                    number,
                    kind,
                    guid: guid(entry, 16),
                    first: long(entry, 32),
                    last: long(entry, 40),
                    name: name
                        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
                        .collect(),
                }
            })
        })
    }

    /// The blocks that a copy of the entries takes.
    fn entries_blocks(&self) -> u64 {
        (self.entries.len() as u64).div_ceil(self.block.into())
    }

    /// Makes it the table of a disk of `blocks` blocks: the backup goes to its end, and all of it may be used.
    ///
    /// # Errors
    /// [`GptError::TooSmall`] if the partitions do not fit, [`GptError::Field`] if the disk is far too small for any table.
    pub fn fit(&mut self, blocks: u64) -> Result<(), GptError> {
        let usable = blocks
            .checked_sub(2 + self.entries_blocks())
            .filter(|usable| *usable >= self.header.first_usable)
            .ok_or(GptError::Field("size for this disk"))?;
        let beyond = self.partitions().find(|partition| partition.last > usable);
        if let Some(partition) = beyond {
            return Err(GptError::TooSmall {
                partition: partition.number,
                last: partition.last,
                usable,
            });
        }
        self.header.last_usable = usable;
        self.header.alternate = blocks - 1;
        Ok(())
    }

    /// Adds a partition of at least `len` bytes at the very end of what may be used, its start on a MiB.
    ///
    /// # Errors
    /// [`GptError::Full`], [`GptError::NoRoom`].
    pub fn add_at_end(&mut self, len: u64, name: &str, kind: Guid, own: Guid) -> Result<Partition, GptError> {
        let block = u64::from(self.block);
        let mib = (1 << 20) / block;
        let used = self
            .partitions()
            .map(|partition| partition.last.saturating_add(1))
            .max();
        let lowest = used.unwrap_or(0).max(self.header.first_usable);
        let end = self.header.last_usable.saturating_add(1);
        let first = end
            .checked_sub(len.div_ceil(block))
            .map(|first| first / mib * mib);
        let Some(first) = first.filter(|first| *first >= lowest) else {
            return Err(GptError::NoRoom {
                needed: len,
                free: end.saturating_sub(lowest).saturating_mul(block),
            });
        };
        let entry_len = self.entry_len();
        let count = self.entries.len() / entry_len;
        let free = self
            .entries
            .chunks_exact_mut(entry_len)
            .zip(1..)
            .find(|(entry, _)| guid(entry, 0) == Guid::default());
        let Some((entry, number)) = free else {
            return Err(GptError::Full(count));
        };
        let last = end - 1;
        entry.fill(0);
        entry[..16].copy_from_slice(&kind.0);
        entry[16..32].copy_from_slice(&own.0);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (place, unit) in entry[56..128].chunks_exact_mut(2).zip(name.encode_utf16()) {
            place.copy_from_slice(&unit.to_le_bytes());
        }
        Ok(Partition {
            number,
            kind,
            guid: own,
            first,
            last,
            name: name.to_owned(),
        })
    }

    /// Puts the primary table into the first bytes of the disk, which hold its entries' place.
    pub fn write_primary(&self, head: &mut [u8]) {
        let block = usize::try_from(self.block).expect("a block fits in memory");
        let mut header = self.header.clone();
        header.entries_checksum = checksum(&self.entries);
        head[block..2 * block].copy_from_slice(&header.to_block(self.block));
        let at = usize::try_from(header.entries_at).expect("parsing found it in the first bytes") * block;
        head[at..at + self.entries.len()].copy_from_slice(&self.entries);
    }

    /// The backup: entries and header, the last blocks of the disk.
    pub fn backup(&self) -> Vec<u8> {
        let mut header = self.header.clone();
        header.entries_checksum = checksum(&self.entries);
        header.own = self.header.alternate;
        header.alternate = 1;
        header.entries_at = header.own - self.entries_blocks();
        let block = usize::try_from(self.block).expect("a block fits in memory");
        let mut bytes = self.entries.clone();
        bytes.resize(self.entries.len().next_multiple_of(block), 0);
        bytes.extend(header.to_block(self.block));
        bytes
    }
}

#[cfg(test)]
pub(crate) mod tests;
