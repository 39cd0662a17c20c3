//! The master boot record: four partitions in the first block, and the chain of logical ones. Pure: bytes in, bytes out.

/// The two last bytes of a boot sector.
pub const BOOT_SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// Where the four records are.
const RECORDS: usize = 446;

/// The type of the record that keeps others away from a GPT (UEFI specification 2.10, section 5.2.3).
const PROTECTIVE: u8 = 0xee;
/// EFI system partition.
pub const ESP: u8 = 0xef;
/// Linux.
pub const LINUX: u8 = 0x83;
/// Boxes for logical partitions: by CHS, by LBA, Linux's own.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// A partition; blocks are logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// From 1; logical ones from 5.
    pub number: u32,
    /// What it is for.
    pub kind: u8,
    /// Its first block.
    pub first: u32,
    /// How many blocks.
    pub blocks: u32,
}

impl Record {
    /// True for a box of logical partitions.
    pub fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    /// The block behind it.
    pub fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.blocks)
    }
}

/// A partition cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MbrError {
    /// There is no unused record.
    #[error("all four primary partitions are in use")]
    Full,
    /// There is no free space at the end.
    #[error("there is no room after the last partition: {needed} bytes are needed, but only {free} are free")]
    NoRoom {
        /// In bytes.
        needed: u64,
        /// In bytes.
        free: u64,
    },
}

/// True if `sector`, of 512 bytes or more, is a boot sector: the firmware of a PC runs no other.
pub fn is_boot_sector(sector: &[u8]) -> bool {
    sector.get(510..512) == Some(&BOOT_SIGNATURE)
}

/// The four records that are in use, of a boot sector.
pub fn records(sector: &[u8]) -> Vec<Record> {
    if !is_boot_sector(sector) {
        return Vec::new();
    }
    (1..)
        .zip(sector[RECORDS..510].chunks_exact(16))
        .map(|(number, record)| Record {
            number,
            kind: record[4],
            first: u32::from_le_bytes(record[8..12].try_into().expect("four bytes")),
            blocks: u32::from_le_bytes(record[12..16].try_into().expect("four bytes")),
        })
        .filter(|record| record.kind != 0 && record.blocks != 0)
        .collect()
}

/// So many bytes of a boot sector are the program that a BIOS runs.
pub const PROGRAM: usize = 440;

/// True if the boot sector says that there is a GPT.
pub fn is_protective(sector: &[u8]) -> bool {
    records(sector).iter().any(|record| record.kind == PROTECTIVE)
}

/// The disk's own signature, by which UEFI knows an MBR's partitions.
pub fn disk_signature(sector: &[u8]) -> [u8; 4] {
    sector[440..444].try_into().expect("four bytes")
}

/// The status of a record that a BIOS boots.
const ACTIVE: u8 = 0x80;

/// Makes the protective record cover a disk of `blocks` blocks, if it stands alone, and active for a BIOS, some of which boot no disk without
/// such a record; UEFI wants none (5.2.3). Hybrid tables have other records beside it, which it ends before: there it stays as it is.
pub fn fit_protective(sector: &mut [u8], blocks: u64, is_bios: bool) {
    let is_hybrid = records(sector).iter().any(|record| record.kind != PROTECTIVE);
    for record in sector[RECORDS..510].chunks_exact_mut(16) {
        if !is_hybrid && record[4] == PROTECTIVE && record[8..12] == [1, 0, 0, 0] {
            let len = u32::try_from(blocks - 1).unwrap_or(u32::MAX);
            record[12..16].copy_from_slice(&len.to_le_bytes());
            if is_bios {
                record[0] = ACTIVE;
            }
        }
    }
}

/// So many blocks of a disk an MBR can speak of.
pub const REACH: u64 = u32::MAX as u64;

/// Adds a primary partition of at least `len` bytes at the end of a disk of `blocks` blocks, its start on a MiB. MBRs reach no
/// further than 2^32 blocks, and so does it.
///
/// # Errors
/// [`MbrError`], one variant for each way to fail.
pub fn add_at_end(
    sector: &mut [u8],
    kind: u8,
    len: u64,
    blocks: u64,
    block: u32,
) -> Result<Record, MbrError> {
    let used = records(sector);
    let mib = (1 << 20) / u64::from(block);
    let lowest = used.iter().map(Record::end).max().unwrap_or(0).max(mib);
    let end = blocks.min(REACH);
    let first = end
        .checked_sub(len.div_ceil(block.into()))
        .map(|first| first / mib * mib);
    let Some(first) = first.filter(|first| *first >= lowest) else {
        return Err(MbrError::NoRoom {
            needed: len,
            free: end.saturating_sub(lowest).saturating_mul(block.into()),
        });
    };
    let free = (1..=4).find(|number| used.iter().all(|record| record.number != *number));
    let number = free.ok_or(MbrError::Full)?;
    let short = |value: u64| u32::try_from(value).expect("less than the disk's end, which fits");
    let record = Record {
        number,
        kind,
        first: short(first),
        blocks: short(end - first),
    };
    let at = RECORDS + 16 * usize::try_from(number - 1).expect("at most four");
    let place = &mut sector[at..at + 16];
    // Cylinders, heads and sectors cannot say it: the largest values mean so.
    place[..8].copy_from_slice(&[0, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff]);
    place[8..12].copy_from_slice(&record.first.to_le_bytes());
    place[12..16].copy_from_slice(&record.blocks.to_le_bytes());
    Ok(record)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sector(records: &[(u8, u32, u32)]) -> Vec<u8> {
        let mut sector = vec![0; 512];
        sector[510..].copy_from_slice(&BOOT_SIGNATURE);
        for (place, (kind, first, blocks)) in sector[RECORDS..510].chunks_exact_mut(16).zip(records) {
            place[4] = *kind;
            place[8..12].copy_from_slice(&first.to_le_bytes());
            place[12..16].copy_from_slice(&blocks.to_le_bytes());
        }
        sector
    }

    #[test]
    fn a_partition_goes_to_the_end_and_into_the_first_free_record() {
        let mut disk = sector(&[(LINUX, 2048, 2048), (0, 0, 0), (0x05, 4096, 2048)]);
        let added = add_at_end(&mut disk, LINUX, 5000, 100_000, 512).unwrap();
        assert_eq!((added.number, added.first, added.end()), (2, 98_304, 100_000));
        assert_eq!(records(&disk)[1], added);
    }

    #[test]
    fn no_room_and_no_record_are_told_apart() {
        let mut full = sector(&[(LINUX, 2048, 1); 4]);
        assert_eq!(add_at_end(&mut full, LINUX, 1, 1 << 20, 512), Err(MbrError::Full));
        let mut tight = sector(&[(LINUX, 2048, 2048)]);
        let refused = add_at_end(&mut tight, LINUX, 1025 << 10, 6143, 512);
        assert_eq!(
            refused,
            Err(MbrError::NoRoom {
                needed: 1025 << 10,
                free: 2047 * 512
            })
        );
    }

    #[test]
    fn a_disk_beyond_the_reach_of_an_mbr_gets_the_partition_within_it() {
        let mut disk = sector(&[(LINUX, 2048, 2048)]);
        let added = add_at_end(&mut disk, LINUX, 1 << 20, 1 << 40, 512).unwrap();
        assert_eq!(added.end(), u64::from(u32::MAX));
    }

    #[test]
    fn only_a_protective_record_that_stands_alone_is_stretched() {
        let mut disk = sector(&[(PROTECTIVE, 1, 99)]);
        fit_protective(&mut disk, 1000, false);
        assert!(is_protective(&disk));
        assert_eq!(records(&disk)[0].blocks, 999);
        fit_protective(&mut disk, 1 << 40, false);
        assert_eq!(records(&disk)[0].blocks, u32::MAX);
        // It would overlap the other one.
        let hybrid = sector(&[(PROTECTIVE, 1, 2047), (LINUX, 2048, 10)]);
        let mut disk = hybrid.clone();
        fit_protective(&mut disk, 1 << 40, true);
        assert_eq!(disk, hybrid);
    }

    proptest! {
        #[test]
        fn what_is_added_overlaps_nothing(
            parts in prop::collection::vec((1_u8.., any::<u32>(), 1_u32..), 0..5),
            len in 1_u64..1 << 30, blocks in 1_u64..1 << 34, large: bool,
        ) {
            let block = if large { 4096 } else { 512 };
            let mut disk = sector(&parts);
            let before = records(&disk);
            if let Ok(added) = add_at_end(&mut disk, LINUX, len, blocks, block) {
                prop_assert!(added.end() <= blocks);
                prop_assert!(u64::from(added.blocks) * u64::from(block) >= len);
                prop_assert!(before.iter().all(|old| old.end() <= u64::from(added.first)));
                prop_assert_eq!(records(&disk).len(), before.len() + 1);
            } else {
                prop_assert_eq!(records(&disk), before);
            }
        }
    }
}
