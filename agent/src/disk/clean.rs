//! Takes partition tables and the signatures of file systems, volumes and arrays off disks, so that nothing finds or boots them.
//!
//! It does not look for signatures: it zeroes the places where they are, of the disk and of every partition that its table
//! lists, in an order in which an interrupted run can be repeated: the table goes last.

use std::{collections::VecDeque, io, ops::Range};

use muster_proto::{Chain, job::Clean};
use nix::libc;

use super::{
    Disk, efi,
    gpt::{self, Gpt},
    guard::{self, Refused, Token},
    mbr,
};
use crate::{
    sys::Root,
    work::{Stopped, Work},
};

/// From the start of a disk or partition: boot sectors, tables, LVM (label in the first 2 KiB, metadata up to 1 MiB), md 1.1 and
/// 1.2, ext, XFS, swap, ZFS, btrfs (64 KiB), VMFS (1 MiB), both headers of LUKS2 (the second at up to 4 MiB).
const START: u64 = 5 << 20;
/// As much of a disk has its partition table.
const HEAD: u64 = 1 << 20;

/// To the end: the backup GPT, md 0.90 and 1.0 (at most 128 KiB before it), firmware's RAIDs (the last blocks), ZFS (512 KiB),
/// NTFS's second boot sector, and a config drive of which no table speaks yet: at the very end, or where MBRs end, and seldom larger. (One that
/// was being written into a partition that the image has for it is not found, if the power goes just then.)
pub(crate) const END: u64 = 4 << 20;

/// Far inside, btrfs keeps copies of its superblock (`fs/btrfs/disk-io.h`, `btrfs_sb_offset`), and Ceph's BlueStore since Squid those of
/// its label (`src/os/bluestore/BlueStore.cc`, `bdev_label_positions`), by which a new Ceph finds the old OSD.
const COPIES: [u64; 6] = [64 << 20, 256 << 30, 1 << 30, 10 << 30, 100 << 30, 1000 << 30];
const COPY: u64 = 4096;

/// As many logical partitions are followed; Linux makes no more.
const MOST_LOGICAL: usize = 256;

/// A disk could not be cleaned.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// The guard does not allow it. No disk was touched.
    #[error("clean disks: no disk was touched")]
    Refused {
        /// Why.
        source: Refused,
    },
    /// It was stopped from outside.
    #[error("clean {disk}: it is not finished and must be cleaned again")]
    Stopped {
        /// The disk that it was at.
        disk: String,
        /// By whom.
        source: Stopped,
    },
    /// Disks failed; all others are clean.
    #[error(
        "clean {}: old data is erased only in part or not at all; {} of {} disks are clean: {}",
        names(failed),
        cleaned.len(),
        failed.len() + cleaned.len(),
        causes(failed)
    )]
    Disks {
        /// Those that failed: at least one.
        failed: Vec<DiskFailed>,
        /// The others.
        cleaned: Vec<Cleaned>,
    },
}

impl CleanError {
    /// The disks that are clean all the same.
    pub fn cleaned(&self) -> &[Cleaned] {
        match self {
            CleanError::Disks { cleaned, .. } => cleaned,
            CleanError::Refused { .. } | CleanError::Stopped { .. } => &[],
        }
    }
}

/// What one disk failed at.
#[derive(Debug, thiserror::Error)]
#[error("{disk}: {what}")]
pub struct DiskFailed {
    /// Its device node.
    pub disk: String,
    /// What was tried.
    pub what: &'static str,
    /// Why.
    pub source: io::Error,
}

fn names(failed: &[DiskFailed]) -> String {
    let names: Vec<&str> = failed.iter().map(|failed| failed.disk.as_str()).collect();
    names.join(", ")
}

/// Several have no one source, so that each is told with its own.
fn causes(failed: &[DiskFailed]) -> String {
    let causes: Vec<String> = failed.iter().map(|failed| Chain(failed).to_string()).collect();
    causes.join("; ")
}

/// What was done to one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Its device node, such as `/dev/sda`.
    pub disk: String,
    /// What it was divided by: `gpt`, `mbr` or empty.
    pub table: &'static str,
    /// How many partitions it had.
    pub partitions: usize,
    /// How many bytes were overwritten with zeros.
    pub zeroed: u64,
}

/// Clears the disks that `job` means and no other, one after the other, and before them what kernels left in the firmware when they died.
/// Nothing is touched unless the guard finds all disks to be what is meant and in nobody's use, and one that fails keeps no other from being
/// cleaned. Doing so again does no harm.
///
/// # Errors
/// [`CleanError`] says which disks, and what was not done.
pub fn clean(job: &Clean, root: &Root, work: &Work) -> Result<Vec<Cleaned>, CleanError> {
    work.step("check disks", 0);
    let mut failed = Vec::new();
    let mut tokens: Vec<Token> = Vec::new();
    for disk in &job.disks {
        match guard::allow(root, &job.machine, disk) {
            // Named twice: the second time it could not be opened.
            Ok(token) if tokens.iter().any(|other| other.disk() == token.disk()) => {}
            Ok(token) => tokens.push(token),
            Err(refused) => failed.push(broken(refused)?),
        }
    }
    let mut open = Vec::new();
    for token in tokens {
        let name = token.disk().name.clone();
        match token.open() {
            Ok(disk) => open.push((name, disk)),
            Err(refused) => failed.push(broken(refused)?),
        }
    }
    if !job.disks.is_empty() {
        // The machine is the one that is meant: the guard compared it for each of them.
        efi::forget_crashes(root);
    }
    wipe_each(&mut open, failed, work)
}

/// What is wrong with the one disk that was `refused`: the kernel gave it up (`ENXIO` of a SCSI disk that is offline), or it gave itself up
/// and takes no more writes. Else why no disk may be touched: the job means something else than is here, or somebody uses that.
fn broken(refused: Refused) -> Result<DiskFailed, CleanError> {
    let (disk, what, source) = match refused {
        Refused::ReadOnly { disk } => (disk, "write to it", io::Error::other("it is read-only")),
        Refused::Open { disk, source } if source.raw_os_error() != Some(libc::EBUSY) => {
            (disk, "open it", source)
        }
        source => return Err(CleanError::Refused { source }),
    };
    Ok(DiskFailed { disk, what, source })
}

/// Wipes every disk, each with its name, beside those that `failed` before. A machine that is let go after some attempts must not take along
/// what was on sound disks because one before them is broken.
fn wipe_each<D: Disk>(
    disks: &mut [(String, D)],
    mut failed: Vec<DiskFailed>,
    work: &Work,
) -> Result<Vec<Cleaned>, CleanError> {
    let all = disks.len();
    let mut cleaned = Vec::new();
    for (index, (name, disk)) in disks.iter_mut().enumerate() {
        let percent = u8::try_from(100 * index / all).unwrap_or(100);
        work.step("clean disk", percent);
        let name = name.clone();
        match wipe(disk, work) {
            Ok(done) => cleaned.push(Cleaned { disk: name, ..done }),
            Err(Failed::Stopped(source)) => return Err(CleanError::Stopped { disk: name, source }),
            Err(Failed::Disk(what, source)) => {
                let error = DiskFailed {
                    disk: name,
                    what,
                    source,
                };
                // Told at once: what stops the others would hide it.
                tracing::warn!("clean {}; the other disks are cleaned anyway", Chain(&error));
                failed.push(error);
            }
        }
    }
    if failed.is_empty() {
        Ok(cleaned)
    } else {
        Err(CleanError::Disks { failed, cleaned })
    }
}

/// What failed of one disk.
#[derive(Debug)]
enum Failed {
    Stopped(Stopped),
    Disk(&'static str, io::Error),
}

fn wipe(disk: &mut dyn Disk, work: &Work) -> Result<Cleaned, Failed> {
    let table = read_table(disk);
    let mut between = VecDeque::from(ranges(&table.places, disk.size(), disk.block()));
    let (first, last) = (between.pop_front(), between.pop_back());
    // A range is zeroed from its beginning: what only the table leads to goes before that.
    let first = first.map(|first| {
        let head = first.start.max(HEAD).min(first.end);
        if head < first.end {
            between.push_front(head..first.end);
        }
        first.start..head
    });
    let mut zeroed = 0;
    for range in between.into_iter().rev() {
        zeroed += zero(disk, &range, work)?;
    }
    // Of the table's two copies one stays until all is gone for certain that they lead to, whichever of them is sound.
    for range in [last, first].into_iter().flatten() {
        sync(disk)?;
        zeroed += zero(disk, &range, work)?;
    }
    sync(disk)?;
    disk.reread_table()
        .map_err(|error| Failed::Disk("make the kernel reread its empty partition table", error))?;
    Ok(Cleaned {
        disk: String::new(),
        table: table.kind,
        partitions: table.partitions,
        zeroed,
    })
}

fn zero(disk: &mut dyn Disk, range: &Range<u64>, work: &Work) -> Result<u64, Failed> {
    work.go_on().map_err(Failed::Stopped)?;
    let len = range.end - range.start;
    disk.zero(range.start, len)
        .map_err(|error| Failed::Disk("write zeros", error))?;
    Ok(len)
}

fn sync(disk: &mut dyn Disk) -> Result<(), Failed> {
    disk.sync().map_err(|error| Failed::Disk("sync it", error))
}

/// How a disk is divided.
#[derive(Debug)]
struct Table {
    kind: &'static str,
    partitions: usize,
    /// Partitions, and the blocks that describe logical ones, in bytes.
    places: Vec<Range<u64>>,
}

/// Reads the table, whatever is left of it: GPT by its first or second header, in either block size, and MBR. What cannot be read leads
/// nowhere, and is zeroed as everything else: that may be what makes it readable again.
fn read_table(disk: &mut dyn Disk) -> Table {
    let mut places = Vec::new();
    let own = disk.block();
    let other = if own == 512 { 4096 } else { 512 };
    let found = [own, other].into_iter().find_map(|block| read_gpt(disk, block));
    if let Some(gpt) = &found {
        let block = u64::from(gpt.block());
        let bytes = |partition: gpt::Partition| {
            partition.first.saturating_mul(block)..partition.last.saturating_add(1).saturating_mul(block)
        };
        places.extend(gpt.partitions().map(bytes));
    }
    let listed = places.len();
    let sector = read(disk, 0, 512).unwrap_or_else(|| vec![0; 512]);
    let records = mbr::records(&sector);
    let block = u64::from(own);
    let mut recorded = 0;
    for record in &records {
        if record.is_extended() {
            recorded += read_logical(disk, record.first, &mut places);
            continue;
        }
        recorded += 1;
        if record.first > 1 {
            places.push(u64::from(record.first) * block..record.end() * block);
        }
    }
    // Beside a GPT there may be records for some of its partitions.
    let (kind, partitions) = match found {
        Some(_) => ("gpt", listed),
        None if records.is_empty() => ("", 0),
        None => ("mbr", recorded),
    };
    Table {
        kind,
        partitions,
        places,
    }
}

/// Follows the chain of logical partitions from the first block of their box: each block has a record for one partition, counted
/// from that block, and one for the next block, counted from the box. Returns how many there are.
fn read_logical(disk: &mut dyn Disk, start: u32, places: &mut Vec<Range<u64>>) -> usize {
    let block = u64::from(disk.block());
    let mut at = u64::from(start);
    for found in 0..MOST_LOGICAL {
        let offset = at * block;
        if offset.saturating_add(block) > disk.size() {
            return found;
        }
        let Some(sector) = read(disk, offset, 512) else {
            return found;
        };
        places.push(offset..offset + block);
        let (boxes, parts): (Vec<_>, Vec<_>) = mbr::records(&sector)
            .into_iter()
            .partition(mbr::Record::is_extended);
        if let Some(part) = parts.first() {
            places.push((at + u64::from(part.first)) * block..(at + part.end()) * block);
        }
        let Some(next) = boxes.first() else {
            return found + parts.len().min(1);
        };
        at = u64::from(start) + u64::from(next.first);
    }
    MOST_LOGICAL
}

fn read_gpt(disk: &mut dyn Disk, block: u32) -> Option<Gpt> {
    let last = (disk.size() / u64::from(block)).checked_sub(1)?;
    [1, last].into_iter().find_map(|at| read_gpt_at(disk, at, block))
}

fn read_gpt_at(disk: &mut dyn Disk, at: u64, block: u32) -> Option<Gpt> {
    let (size, len) = (disk.size(), u64::from(block));
    if (at + 1) * len > size {
        return None;
    }
    let header = read(disk, at * len, block)?;
    let entries = gpt::entries_of(&header, block).ok()?;
    let entries_len = u32::try_from(entries.len).ok()?;
    if entries.offset.saturating_add(entries.len as u64) > size {
        return None;
    }
    let entries = read(disk, entries.offset, entries_len)?;
    Gpt::parse(&header, entries, block).ok()
}

/// `len` bytes from `offset`, wherever the disk's blocks begin; none if they cannot be read.
fn read(disk: &mut dyn Disk, offset: u64, len: u32) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    match super::read_any(disk, offset, &mut bytes) {
        Ok(()) => Some(bytes),
        Err(error) => {
            tracing::warn!("the disk's partition table cannot be read at byte {offset}: {error}");
            None
        }
    }
}

/// The places to zero on a disk of `size` bytes with these partitions: in whole blocks, ascending, without overlaps.
fn ranges(partitions: &[Range<u64>], size: u64, block: u32) -> Vec<Range<u64>> {
    let block = u64::from(block);
    let mut places = Vec::new();
    for part in partitions.iter().chain([&(0..size)]) {
        let part = part.start.min(size)..part.end.min(size);
        places.push(part.start..part.start.saturating_add(START).min(part.end));
        places.push(part.end.saturating_sub(END).max(part.start)..part.end);
        for copy in COPIES {
            let start = part.start.saturating_add(copy);
            places.push(start..start.saturating_add(COPY).min(part.end));
        }
    }
    let reach = (mbr::REACH * block).min(size);
    places.push(reach.saturating_sub(END)..reach);
    places.retain(|place| place.start < place.end);
    for place in &mut places {
        *place = place.start / block * block..place.end.next_multiple_of(block).min(size);
    }
    places.sort_by_key(|place| place.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for place in places {
        match merged.last_mut() {
            Some(last) if place.start <= last.end => last.end = last.end.max(place.end),
            _ => merged.push(place),
        }
    }
    merged
}

#[cfg(test)]
mod tests;
