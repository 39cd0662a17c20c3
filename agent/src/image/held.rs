//! A disk whose first MiB and last blocks are held back in memory until everything else is certain.
//!
//! No firmware boots a disk without its first block, and a GPT has its second header in the last one: as long as both read as
//! zeros, nothing that is half written boots.

use std::io;

use super::After;
use crate::{
    disk::{Disk, aligned::Aligned, clean, read_any},
    work::Work,
};

/// Held back at the start, in bytes.
pub(super) const HEAD: usize = 1 << 20;

/// Held back at the end, in bytes: a backup GPT with 128 entries has 33 blocks of 512 or 5 of 4096.
const TAIL: usize = 64 << 10;

/// Written last and at once.
const LAST: usize = 4096;

/// The least disk, in bytes.
pub(super) const LEAST: u64 = 4 << 20;

/// What is on the disk, and what will be.
pub(super) struct Held<'d> {
    disk: &'d mut dyn Disk,
    head: Aligned,
    tail: Aligned,
    tail_at: u64,
}

impl<'d> Held<'d> {
    /// Makes `disk`, of [`LEAST`] bytes or more, unbootable. What is held back begins as zeros, and so does the end of the disk with its
    /// signatures: few images reach there, and an array or a pool that the whole disk was part of would be found instead of the image.
    /// `after` follows what is on it.
    pub(super) fn begin(disk: &'d mut dyn Disk, after: &mut After) -> io::Result<Held<'d>> {
        let held = Held {
            tail_at: disk.size() - TAIL as u64,
            head: Aligned::zeroed(HEAD),
            tail: Aligned::zeroed(TAIL),
            disk,
        };
        // An image that is written anew follows one of which the disk boots nothing.
        if *after == After::Untouched {
            *after = After::Old;
        }
        // Written, not left to the device to zero: this must not stay in any queue. The second header goes first: alone it
        // could bring the old table back.
        held.disk.write_at(held.tail_at, &held.tail)?;
        held.disk.write_at(0, &held.head)?;
        held.disk.sync()?;
        *after = After::Unbootable;
        // Only now: what still boots must be whole.
        let end = held.disk.size().saturating_sub(clean::END).max(HEAD as u64);
        held.disk.zero(end, held.tail_at - end)?;
        Ok(held)
    }

    /// What the first MiB will be.
    pub(super) fn head(&mut self) -> &mut [u8] {
        &mut self.head
    }

    pub(super) fn size(&self) -> u64 {
        self.disk.size()
    }

    pub(super) fn block(&self) -> u32 {
        self.disk.block()
    }

    /// Writes whole blocks, or keeps them.
    pub(super) fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (head, middle, tail) = self.split(offset, data.len());
        if !head.is_empty() {
            let at = index(offset);
            self.head[at..at + head.len()].copy_from_slice(&data[head]);
        }
        if !tail.is_empty() {
            let at = index(offset + tail.start as u64 - self.tail_at);
            self.tail[at..at + tail.len()].copy_from_slice(&data[tail]);
        }
        if middle.is_empty() {
            return Ok(());
        }
        self.disk.write_at(offset + middle.start as u64, &data[middle])
    }

    /// Zeroes whole blocks.
    pub(super) fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        let within = |value: u64, from: u64, to: u64| index(value.clamp(from, to) - from);
        let head_end = HEAD as u64;
        self.head[within(offset, 0, head_end)..within(end, 0, head_end)].fill(0);
        let size = self.tail_at + TAIL as u64;
        let tail = within(offset, self.tail_at, size)..within(end, self.tail_at, size);
        self.tail[tail].fill(0);
        let (start, end) = (offset.max(head_end), end.min(self.tail_at));
        if start < end {
            self.disk.zero(start, end - start)
        } else {
            Ok(())
        }
    }

    /// Reads any bytes as they will be.
    pub(super) fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if offset.saturating_add(into.len() as u64) > self.size() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (head, middle, tail) = self.split(offset, into.len());
        if !head.is_empty() {
            let at = index(offset);
            into[head.clone()].copy_from_slice(&self.head[at..at + head.len()]);
        }
        if !tail.is_empty() {
            let at = index(offset + tail.start as u64 - self.tail_at);
            into[tail.clone()].copy_from_slice(&self.tail[at..at + tail.len()]);
        }
        if middle.is_empty() {
            return Ok(());
        }
        read_any(self.disk, offset + middle.start as u64, &mut into[middle])
    }

    /// Which parts of `len` bytes at `offset` lie in the held head, between, and in the held tail.
    fn split(
        &self,
        offset: u64,
        len: usize,
    ) -> (
        std::ops::Range<usize>,
        std::ops::Range<usize>,
        std::ops::Range<usize>,
    ) {
        let until = |place: u64| usize::try_from(place.saturating_sub(offset)).map_or(len, |at| at.min(len));
        let (head_end, tail_start) = (until(HEAD as u64), until(self.tail_at));
        (0..head_end, head_end..tail_start, tail_start..len)
    }

    /// Makes certain that everything that is not held back is on the disk.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.disk.sync()
    }

    /// Writes what was held back, the first block last; not if the `work` was stopped or given up while the disk took its time.
    pub(super) fn commit(&mut self, work: &Work) -> io::Result<()> {
        self.disk.sync()?;
        work.go_on().map_err(io::Error::other)?;
        self.disk.write_at(self.tail_at, &self.tail)?;
        self.disk.write_at(LAST as u64, &self.head[LAST..])?;
        self.disk.sync()?;
        work.go_on().map_err(io::Error::other)?;
        self.disk.write_at(0, &self.head[..LAST])?;
        self.disk.sync()
    }

    /// Makes the disk unbootable again after a [`Held::commit`] that may have come to nothing, to a part or to its end.
    pub(super) fn withdraw(&mut self) -> io::Result<()> {
        self.head.fill(0);
        self.tail.fill(0);
        // The first block alone may be what boots, so it goes whatever becomes of the rest.
        let tail = self.disk.write_at(self.tail_at, &self.tail);
        self.disk.write_at(0, &self.head)?;
        self.disk.sync()?;
        tail
    }

    /// Has the kernel read the partition table again.
    pub(super) fn reread_table(&mut self) -> io::Result<()> {
        self.disk.reread_table()
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("what is held back fits in memory")
}
