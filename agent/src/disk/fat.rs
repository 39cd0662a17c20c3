//! Reads files of a FAT file system: as much as it takes to find the boot loader on an EFI system partition
//! (Microsoft's FAT specification 1.03; UEFI specification 2.10, section 13.3). It never trusts what it reads.

use std::io;

/// The largest file that is read, in bytes; those that say what to boot have a line or two.
const LARGEST_FILE: u32 = 64 << 10;

/// The most entries of one directory that are looked at, deleted ones included.
const MOST_ENTRIES: usize = 1 << 14;

const ENTRY: usize = 32;
const END: u8 = 0;
const DELETED: u8 = 0xe5;
const DIRECTORY: u8 = 0x10;
const VOLUME: u8 = 0x08;
const LONG_NAME: u8 = 0x0f;

/// Fills a buffer from an offset in bytes within the partition.
pub type ReadAt<'a> = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + 'a;

/// A file system could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FatError {
    /// It is another file system, or none.
    #[error("it is not a FAT file system")]
    NotFat,
    /// It contradicts itself.
    #[error("its {0} is invalid")]
    Broken(&'static str),
    /// The disk failed.
    #[error("read it")]
    Read(#[source] io::Error),
}

impl From<io::Error> for FatError {
    fn from(error: io::Error) -> FatError {
        match error.kind() {
            // It says that it goes on behind the end of its partition.
            io::ErrorKind::UnexpectedEof => FatError::Broken("size"),
            _ => FatError::Read(error),
        }
    }
}

/// How cluster numbers are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// Where a directory's entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The root of FAT12 and FAT16: bytes from an offset.
    Fixed {
        offset: u64,
        len: u64,
    },
    Cluster(u32),
}

/// A file or directory in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its long name, or the short one where it has no other.
    pub name: String,
    /// Its short name, such as `BOOTX64.EFI`.
    short: String,
    /// True for a directory.
    pub is_directory: bool,
    cluster: u32,
    len: u32,
}

impl Entry {
    /// True if this is how one may call it: case does not matter.
    pub fn is_called(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name) || self.short.eq_ignore_ascii_case(name)
    }
}

/// A file system.
pub struct Fat<'a> {
    read: &'a mut ReadAt<'a>,
    width: Width,
    cluster_len: u64,
    fat: u64,
    data: u64,
    clusters: u32,
    root: Place,
}

fn short(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

impl std::fmt::Debug for Fat<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fat")
            .field("width", &self.width)
            .finish_non_exhaustive()
    }
}

impl<'a> Fat<'a> {
    /// The file system that begins where `read` does.
    ///
    /// # Errors
    /// [`FatError`], one variant for each way to fail.
    pub fn open(read: &'a mut ReadAt<'a>) -> Result<Fat<'a>, FatError> {
        let mut boot = [0; 512];
        read(0, &mut boot)?;
        let (sector, per_cluster) = (short(&boot, 11), u32::from(boot[13]));
        let sizes =
            sector.is_power_of_two() && (512..=4096).contains(&sector) && per_cluster.is_power_of_two();
        let (reserved, fats) = (short(&boot, 14), u32::from(boot[16]));
        if boot[510..] != [0x55, 0xaa] || !sizes || reserved == 0 || fats == 0 {
            return Err(FatError::NotFat);
        }
        let either = |small: u32, large: usize| if small == 0 { word(&boot, large) } else { small };
        let (total, fat_len) = (either(short(&boot, 19), 32), either(short(&boot, 22), 36));
        let root_len = short(&boot, 17) * u32::try_from(ENTRY).expect("32 fits");
        // In sectors from here on.
        let root = u64::from(reserved) + u64::from(fats) * u64::from(fat_len);
        let data = root + u64::from(root_len.div_ceil(sector));
        let clusters = u64::from(total)
            .checked_sub(data)
            .ok_or(FatError::Broken("size"))?
            / u64::from(per_cluster);
        let clusters = u32::try_from(clusters).map_err(|_| FatError::Broken("size"))?;
        // The specification goes by the clusters alone. Linux and EDK II go by this field first, and mkfs.fat -F 32 makes FAT32 of
        // as few clusters as it is told to: on disks of 4 KiB sectors every smaller EFI system partition is one.
        let width = match (short(&boot, 22), clusters) {
            (0, _) => Width::Fat32,
            (_, 0..4085) => Width::Fat12,
            _ => Width::Fat16,
        };
        let bytes = |sectors: u64| sectors * u64::from(sector);
        Ok(Fat {
            read,
            width,
            cluster_len: u64::from(sector) * u64::from(per_cluster),
            fat: bytes(reserved.into()),
            data: bytes(data),
            clusters,
            root: if width == Width::Fat32 {
                Place::Cluster(word(&boot, 44))
            } else {
                Place::Fixed {
                    offset: bytes(root),
                    len: root_len.into(),
                }
            },
        })
    }

    /// What is in the root directory.
    ///
    /// # Errors
    /// [`FatError::Broken`], [`FatError::Read`].
    pub fn root(&mut self) -> Result<Vec<Entry>, FatError> {
        self.entries(self.root)
    }

    /// What is in `directory`.
    ///
    /// # Errors
    /// [`FatError::Broken`], [`FatError::Read`].
    pub fn list(&mut self, directory: &Entry) -> Result<Vec<Entry>, FatError> {
        self.entries(Place::Cluster(directory.cluster))
    }

    /// The whole of a small `file`.
    ///
    /// # Errors
    /// [`FatError::Broken`] also if it is larger than 64 KiB, [`FatError::Read`].
    pub fn contents(&mut self, file: &Entry) -> Result<Vec<u8>, FatError> {
        if file.len > LARGEST_FILE {
            return Err(FatError::Broken("file size of more than 64 KiB"));
        }
        let len = usize::try_from(file.len).map_err(|_| FatError::Broken("file"))?;
        let mut bytes = Vec::new();
        let mut cluster = Some(file.cluster).filter(|_| len > 0);
        while let (Some(here), true) = (cluster, bytes.len() < len) {
            self.append(here, &mut bytes)?;
            cluster = self.next(here)?;
        }
        if bytes.len() < len {
            return Err(FatError::Broken("file length"));
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    fn entries(&mut self, place: Place) -> Result<Vec<Entry>, FatError> {
        let mut reading = Listing::default();
        match place {
            Place::Fixed { offset, len } => {
                let mut bytes =
                    vec![0; usize::try_from(len).map_err(|_| FatError::Broken("root directory"))?];
                (self.read)(offset, &mut bytes)?;
                reading.take(&bytes);
            }
            Place::Cluster(first) => {
                let mut cluster = Some(first);
                while let (Some(here), false) = (cluster, reading.ended) {
                    let mut bytes = Vec::new();
                    self.append(here, &mut bytes)?;
                    reading.take(&bytes);
                    cluster = self.next(here)?;
                }
            }
        }
        Ok(reading.found)
    }

    fn append(&mut self, cluster: u32, bytes: &mut Vec<u8>) -> Result<(), FatError> {
        let index = cluster
            .checked_sub(2)
            .filter(|index| *index < self.clusters)
            .ok_or(FatError::Broken("cluster chain"))?;
        let start = bytes.len();
        let len = usize::try_from(self.cluster_len).map_err(|_| FatError::Broken("cluster size"))?;
        bytes.resize(start + len, 0);
        (self.read)(
            self.data + u64::from(index) * self.cluster_len,
            &mut bytes[start..],
        )?;
        Ok(())
    }

    /// The cluster after `cluster`, if there is one.
    fn next(&mut self, cluster: u32) -> Result<Option<u32>, FatError> {
        let mut bytes = [0; 4];
        let at = u64::from(cluster);
        let (offset, len) = match self.width {
            Width::Fat12 => (at * 3 / 2, 2),
            Width::Fat16 => (at * 2, 2),
            Width::Fat32 => (at * 4, 4),
        };
        (self.read)(self.fat + offset, &mut bytes[..len])?;
        let raw = u32::from_le_bytes(bytes);
        let (value, end) = match self.width {
            Width::Fat12 if cluster.is_multiple_of(2) => (raw & 0xfff, 0xff8),
            Width::Fat12 => (raw >> 4, 0xff8),
            Width::Fat16 => (raw, 0xfff8),
            Width::Fat32 => (raw & 0x0fff_ffff, 0x0fff_fff8),
        };
        Ok((value < end).then_some(value))
    }
}

/// A directory being read.
#[derive(Debug, Default)]
struct Listing {
    found: Vec<Entry>,
    /// Parts of the long name of the entry to come, last part first.
    long: Vec<u16>,
    seen: usize,
    ended: bool,
}

impl Listing {
    fn take(&mut self, bytes: &[u8]) {
        for entry in bytes.chunks_exact(ENTRY) {
            self.seen += 1;
            // A chain that runs in a circle ends here, too.
            if entry[0] == END || self.seen > MOST_ENTRIES {
                self.ended = true;
            }
            if self.ended {
                return;
            }
            self.one(entry);
        }
    }

    fn one(&mut self, entry: &[u8]) {
        let attributes = entry[11];
        if entry[0] == DELETED {
            self.long.clear();
        } else if attributes & 0x3f == LONG_NAME {
            // Bit 6 marks the last part, which comes first.
            if entry[0] & 0x40 != 0 {
                self.long.clear();
            }
            let units = [&entry[1..11], &entry[14..26], &entry[28..32]].concat();
            let units = units
                .chunks_exact(2)
                .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            let part: Vec<u16> = units.take_while(|unit| *unit != 0 && *unit != 0xffff).collect();
            self.long.splice(0..0, part);
            // No name has more than 255 units.
            self.long.truncate(260);
        } else {
            let long = std::mem::take(&mut self.long);
            if attributes & VOLUME == 0 && entry[0] != b'.' {
                let part = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
                let (stem, extension) = (part(&entry[..8]), part(&entry[8..11]));
                let short_name = if extension.is_empty() {
                    stem
                } else {
                    format!("{stem}.{extension}")
                };
                self.found.push(Entry {
                    name: if long.is_empty() {
                        short_name.clone()
                    } else {
                        String::from_utf16_lossy(&long)
                    },
                    short: short_name,
                    is_directory: attributes & DIRECTORY != 0,
                    cluster: short(entry, 20) << 16 | short(entry, 26),
                    len: word(entry, 28),
                });
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
