//! GUID partition tables (UEFI specification 2.10, section 5), written by a hand other than the agent's.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::Path,
};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// The first sector behind the table.
pub const FIRST_USABLE: u64 = 34;
/// Sectors of the second table at the disk's end: 32 with entries and one with the header.
pub const BACKUP: u64 = 33;

/// Kinds of partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Where a BIOS boot loader has its second stage.
    BiosBoot,
    /// EFI system partition.
    Esp,
    /// Linux file system data.
    Linux,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// What it is for.
    pub kind: Kind,
    /// Its name, in ASCII.
    pub name: &'static str,
    /// First sector.
    pub first: u64,
    /// Sectors.
    pub sectors: u64,
}

/// The partition tables on the disk in that file, by what firmware and kernels look for.
pub fn tables(disk: &Path) -> io::Result<Vec<&'static str>> {
    let file = File::open(disk)?;
    let bytes = file.metadata()?.len();
    let begins = |at: u64, signature: &[u8]| -> io::Result<bool> {
        let mut found = vec![0; signature.len()];
        file.read_exact_at(&mut found, at)?;
        Ok(found == signature)
    };
    let places: [(&str, u64, &[u8]); 3] = [
        ("MBR", 510, &[0x55, 0xaa]),
        ("GPT", SECTOR, b"EFI PART"),
        ("second GPT", bytes.saturating_sub(SECTOR), b"EFI PART"),
    ];
    let mut found = Vec::new();
    for (name, at, signature) in places {
        if begins(at, signature)? {
            found.push(name);
        }
    }
    Ok(found)
}

/// Writes both tables and the protective MBR, without its boot code, on a disk of `sectors` sectors. `id` tells disks apart.
pub fn write(
    disk: &mut (impl Write + Seek),
    sectors: u64,
    id: u8,
    partitions: &[Partition],
) -> io::Result<()> {
    let mut mbr = [0; 66];
    // One partition of kind 0xee that takes everything, at the third field as the size allows.
    let size = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    mbr[..8].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    mbr[8..12].copy_from_slice(&1_u32.to_le_bytes());
    mbr[12..16].copy_from_slice(&size.to_le_bytes());
    mbr[64..].copy_from_slice(&[0x55, 0xaa]);
    disk.seek(SeekFrom::Start(446))?;
    disk.write_all(&mbr)?;

    let entries = entries(id, partitions);
    let last = sectors - 1;
    for (own, other, table) in [(1, last, 2), (last, 1, last - 32)] {
        disk.seek(SeekFrom::Start(table * SECTOR))?;
        disk.write_all(&entries)?;
        disk.seek(SeekFrom::Start(own * SECTOR))?;
        disk.write_all(&header(own, other, table, id, &entries))?;
    }
    Ok(())
}

fn header(own: u64, other: u64, table: u64, id: u8, entries: &[u8]) -> [u8; 512] {
    let last_usable = own.max(other) - BACKUP;
    let mut header = Vec::from(*b"EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00");
    header.extend([0; 8]); // its own checksum, and a reserved field
    for number in [own, other, FIRST_USABLE, last_usable] {
        header.extend(number.to_le_bytes());
    }
    header.extend(guid(&format!("5a1e0a52-6c1e-4b7a-9e2d-0000000000{id:02x}")));
    header.extend(table.to_le_bytes());
    header.extend(128_u32.to_le_bytes());
    header.extend(128_u32.to_le_bytes());
    header.extend(crc32fast::hash(entries).to_le_bytes());
    let sum = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    let mut sector = [0; 512];
    sector[..header.len()].copy_from_slice(&header);
    sector
}

fn entries(id: u8, partitions: &[Partition]) -> Vec<u8> {
    let mut entries = Vec::new();
    for (number, partition) in partitions.iter().enumerate() {
        let kind = match partition.kind {
            Kind::BiosBoot => "21686148-6449-6e6f-744e-656564454649",
            Kind::Esp => "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
            Kind::Linux => "0fc63daf-8483-4772-8e79-3d69d8477de4",
        };
        entries.extend(guid(kind));
        entries.extend(guid(&format!(
            "5a1e0a52-6c1e-4b7a-9e2d-00000000{id:02x}{:02x}",
            number + 1
        )));
        entries.extend(partition.first.to_le_bytes());
        entries.extend((partition.first + partition.sectors - 1).to_le_bytes());
        entries.extend([0; 8]);
        entries.extend(partition.name.bytes().flat_map(|letter| [letter, 0]));
        entries.resize(128 * (number + 1), 0);
    }
    entries.resize(128 * 128, 0);
    entries
}

/// The bytes of a GUID: the first three fields little-endian (UEFI specification, appendix A).
fn guid(text: &str) -> [u8; 16] {
    let digits: String = text.chars().filter(|sign| *sign != '-').collect();
    let number = u128::from_str_radix(&digits, 16).expect("only the constants above come here");
    let [a, b, c, d, e, f, g, h, rest @ ..] = number.to_be_bytes();
    let [i, j, k, l, m, n, o, p] = rest;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn number(bytes: &[u8]) -> u64 {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(whole)
    }

    #[test]
    fn both_tables_name_each_other_and_the_partitions() {
        let mut disk = Cursor::new(vec![0; 512 * 1000]);
        let partition = Partition {
            kind: Kind::Esp,
            name: "esp",
            first: 40,
            sectors: 10,
        };
        write(&mut disk, 1000, 7, &[partition]).unwrap();
        let disk = disk.into_inner();
        assert_eq!(disk[510..512], [0x55, 0xaa]);
        assert_eq!((disk[450], number(&disk[458..462])), (0xee, 999));
        for (own, other, table) in [(1, 999, 2), (999, 1, 967)] {
            let header = &disk[512 * own..512 * own + 92];
            let mut blank = header.to_vec();
            blank[16..20].fill(0);
            assert_eq!(number(&header[16..20]), u64::from(crc32fast::hash(&blank)));
            assert_eq!(&header[..8], b"EFI PART");
            let field = |at: usize| number(&header[at..at + 8]);
            assert_eq!((field(24), field(32)), (own as u64, other));
            assert_eq!((field(40), field(48), field(72)), (34, 966, table));
            let at = 512 * usize::try_from(table).unwrap();
            let entries = &disk[at..at + 128 * 128];
            assert_eq!(number(&header[88..92]), u64::from(crc32fast::hash(entries)));
            assert_eq!(entries[..4], [0x28, 0x73, 0x2a, 0xc1]);
            assert_eq!((number(&entries[32..40]), number(&entries[40..48])), (40, 49));
            assert_eq!(&entries[56..62], b"e\0s\0p\0");
        }
    }
}
