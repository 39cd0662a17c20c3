use proptest::prelude::*;

use super::*;

/// A file or directory of a file system in the making.
pub(crate) enum Made {
    /// A file and what is in it.
    File(Vec<u8>),
    /// A directory and what is in it.
    Directory(Vec<(&'static str, Made)>),
}

/// What makes a FAT file system of one cluster per sector.
struct Maker {
    sector: usize,
    /// FAT entries, two reserved.
    next: Vec<u32>,
    data: Vec<u8>,
}

/// A file system with clusters of one sector, as many that it is of the wanted width; names that are no 8.3 get long entries.
pub(crate) fn make(clusters: u32, sector: usize, root: Vec<(&'static str, Made)>) -> Vec<u8> {
    let width = match clusters {
        0..4085 => Width::Fat12,
        4085..65525 => Width::Fat16,
        _ => Width::Fat32,
    };
    make_as(width, clusters, sector, root)
}

/// The same, of this width however many clusters it has.
fn make_as(width: Width, clusters: u32, sector: usize, root: Vec<(&'static str, Made)>) -> Vec<u8> {
    let is_32 = width == Width::Fat32;
    let mut maker = Maker {
        sector,
        next: vec![0, 0],
        data: Vec::new(),
    };
    let entries = maker.entries(root);
    let (root_cluster, root_bytes) = if is_32 {
        (maker.store(&entries), Vec::new())
    } else {
        let len = entries.len().next_multiple_of(sector);
        (0, [entries, vec![0; sector]].concat()[..len].to_vec())
    };
    let Maker { mut next, data, .. } = maker;
    next.resize(usize::try_from(clusters).unwrap() + 2, 0);
    let mut fat = Vec::new();
    if width == Width::Fat12 {
        next.resize(next.len().next_multiple_of(2), 0);
        for pair in next.chunks_exact(2) {
            let both = (pair[0] & 0xfff) | (pair[1] & 0xfff) << 12;
            fat.extend(&both.to_le_bytes()[..3]);
        }
    } else if is_32 {
        fat.extend(next.iter().flat_map(|entry| entry.to_le_bytes()));
    } else {
        fat.extend(next.iter().flat_map(|entry| entry.to_le_bytes()[..2].to_vec()));
    }
    fat.resize(fat.len().next_multiple_of(sector), 0);

    let mut boot = vec![0; sector];
    let short = |boot: &mut [u8], at: usize, value: usize| {
        boot[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap().to_le_bytes());
    };
    let fat_sectors = fat.len() / sector;
    short(&mut boot, 11, sector);
    boot[13] = 1;
    short(&mut boot, 14, 1);
    boot[16] = 1;
    short(&mut boot, 17, root_bytes.len() / 32);
    let total = 1 + fat_sectors + root_bytes.len() / sector + usize::try_from(clusters).unwrap();
    boot[32..36].copy_from_slice(&u32::try_from(total).unwrap().to_le_bytes());
    if is_32 {
        boot[36..40].copy_from_slice(&u32::try_from(fat_sectors).unwrap().to_le_bytes());
        boot[44..48].copy_from_slice(&root_cluster.to_le_bytes());
        boot[71..87].copy_from_slice(b"CONFIG-X   FAT32");
    } else {
        short(&mut boot, 22, fat_sectors);
        boot[43..59].copy_from_slice(b"CONFIG-X   FAT16");
    }
    boot[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut bytes = [boot, fat, root_bytes, data].concat();
    bytes.resize(total * sector, 0);
    bytes
}

impl Maker {
    fn entries(&mut self, made: Vec<(&'static str, Made)>) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A label and a deleted file come first: neither is a file.
        bytes.extend(entry(b"LABEL      ", VOLUME, 0, 0));
        bytes.extend(entry(b"\xe5OOT    CSV", 0, 2, 9));
        for (index, (name, made)) in made.into_iter().enumerate() {
            let (attributes, content, len) = match made {
                Made::File(content) => {
                    let len = content.len();
                    (0, content, len)
                }
                Made::Directory(inside) => {
                    let dots = [
                        entry(b".          ", DIRECTORY, 0, 0),
                        entry(b"..         ", DIRECTORY, 0, 0),
                    ];
                    (DIRECTORY, [dots.concat(), self.entries(inside)].concat(), 0)
                }
            };
            let cluster = self.store(&content);
            let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
            let is_short =
                stem.len() <= 8 && extension.len() <= 3 && !name.contains(|c: char| c.is_lowercase());
            let short_name = if is_short {
                format!("{stem:<8}{extension:<3}")
            } else {
                format!("LONG~{index:<3}{:<3}", "")
            };
            if !is_short {
                bytes.extend(long_entries(name));
            }
            let short_name = <[u8; 11]>::try_from(short_name.as_bytes()).unwrap();
            bytes.extend(entry(
                &short_name,
                attributes,
                cluster,
                u32::try_from(len).unwrap(),
            ));
        }
        bytes
    }

    /// Returns the first cluster.
    fn store(&mut self, content: &[u8]) -> u32 {
        if content.is_empty() {
            return 0;
        }
        let first = u32::try_from(self.next.len()).unwrap();
        for chunk in content.chunks(self.sector) {
            let number = u32::try_from(self.next.len()).unwrap();
            self.next.push(number + 1);
            self.data.extend(chunk);
            self.data.resize(self.data.len().next_multiple_of(self.sector), 0);
        }
        *self.next.last_mut().unwrap() = 0x0fff_ffff;
        first
    }
}

fn entry(name: &[u8; 11], attributes: u8, cluster: u32, len: u32) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[..11].copy_from_slice(name);
    bytes[11] = attributes;
    let [low, high, upper, top] = cluster.to_le_bytes();
    bytes[26..28].copy_from_slice(&[low, high]);
    bytes[20..22].copy_from_slice(&[upper, top]);
    bytes[28..32].copy_from_slice(&len.to_le_bytes());
    bytes
}

fn long_entries(name: &str) -> Vec<u8> {
    let mut units: Vec<u16> = name.encode_utf16().chain([0]).collect();
    units.resize(units.len().next_multiple_of(13), 0xffff);
    let count = units.len() / 13;
    let mut bytes = Vec::new();
    for (index, part) in units.chunks(13).enumerate().rev() {
        let part: Vec<u8> = part.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let mark = if index + 1 == count { 0x40 } else { 0 };
        let mut entry = vec![mark | u8::try_from(index + 1).unwrap()];
        entry.extend(&part[..10]);
        entry.extend([LONG_NAME, 0, 0]);
        entry.extend(&part[10..22]);
        entry.extend([0, 0]);
        entry.extend(&part[22..]);
        bytes.extend(entry);
    }
    bytes
}

/// Reads from bytes, as from a disk that ends with them.
pub(crate) fn reader(bytes: &[u8]) -> impl FnMut(u64, &mut [u8]) -> io::Result<()> + '_ {
    move |offset, into| {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start
            .checked_add(into.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn tree() -> Vec<(&'static str, Made)> {
    let many = (0..40).map(|_| ("FILLER", Made::File(Vec::new())));
    let inside = many.chain([("BOOTX64.CSV", Made::File(vec![7; 1500]))]).collect();
    vec![
        ("a rather long name.txt", Made::File(b"x".to_vec())),
        ("EFI", Made::Directory(vec![("Debian", Made::Directory(inside))])),
    ]
}

#[test]
fn files_are_found_in_every_width_and_sector_size() {
    let made = [
        make(200, 512, tree()),
        make(5000, 512, tree()),
        make(66_000, 512, tree()),
        make(300, 4096, tree()),
        make(5000, 2048, tree()),
        // As mkfs.fat -F 32 makes small ones.
        make_as(Width::Fat32, 300, 512, tree()),
        make_as(Width::Fat32, 5000, 4096, tree()),
    ];
    for (which, bytes) in made.into_iter().enumerate() {
        let mut read = reader(&bytes);
        let mut fat = Fat::open(&mut read).unwrap();
        let root = fat.root().unwrap();
        assert_eq!(root[0].name, "a rather long name.txt", "file system {which}");
        assert_eq!(root.len(), 2);
        let efi = root.iter().find(|entry| entry.is_called("efi")).unwrap();
        let vendor = fat.list(efi).unwrap();
        assert_eq!(
            (vendor[0].name.as_str(), vendor[0].is_directory),
            ("Debian", true)
        );
        let files = fat.list(&vendor[0]).unwrap();
        let list = files.iter().find(|file| file.is_called("bootx64.csv")).unwrap();
        assert_eq!(fat.contents(list).unwrap(), vec![7; 1500]);
    }
}

#[test]
fn what_is_no_fat_is_told_apart_from_a_broken_one() {
    let zeros = vec![0; 4096];
    assert!(matches!(Fat::open(&mut reader(&zeros)), Err(FatError::NotFat)));
    let mut bytes = make(5000, 512, tree());
    bytes[32..36].copy_from_slice(&3_u32.to_le_bytes());
    assert!(matches!(Fat::open(&mut reader(&bytes)), Err(FatError::Broken(_))));
    assert!(matches!(Fat::open(&mut reader(&[])), Err(FatError::Broken(_))));
}

#[test]
fn a_chain_in_a_circle_ends() {
    let mut bytes = make(5000, 512, tree());
    // Every cluster leads to cluster 2, and no directory there ends.
    let (fat, data) = (512, bytes.len() - 5000 * 512);
    for at in (fat + 4..fat + 5000 * 2).step_by(2) {
        bytes[at..at + 2].copy_from_slice(&[2, 0]);
    }
    bytes[data..].fill(b'A');
    let mut read = reader(&bytes);
    let mut fat = Fat::open(&mut read).unwrap();
    let root = fat.root().unwrap();
    let directory = root.iter().find(|entry| entry.is_directory).unwrap();
    assert!(fat.list(directory).unwrap().len() <= MOST_ENTRIES);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_damage_never_panics(damage in prop::collection::vec((0_usize..40_000, any::<u8>()), 0..200), fat12: bool) {
        let mut bytes = make(if fat12 { 200 } else { 5000 }, 512, tree());
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let mut read = reader(&bytes);
        if let Ok(mut fat) = Fat::open(&mut read) {
            for entry in fat.root().unwrap_or_default() {
                let _ = fat.list(&entry);
                let _ = fat.contents(&entry);
            }
        }
    }
}
