//! A disk in memory for tests: it loses what was not synced when its power goes, and fails on demand.

use std::io;

use nix::errno::Errno;

use super::Disk;

/// The disk.
#[derive(Clone)]
pub(crate) struct SimDisk {
    /// What a reader sees.
    pub(crate) bytes: Vec<u8>,
    /// What is safe.
    durable: Vec<u8>,
    /// What was written since.
    pending: Vec<(usize, Vec<u8>)>,
    block: u32,
    /// Calls that changed it, or tried to.
    pub(crate) changes: usize,
    /// The change at which the power goes, and everything fails with `EIO` from then on.
    pub(crate) dies_at: Option<usize>,
    /// The place in bytes that cannot be written, and what it says.
    pub(crate) bad: Option<(u64, Errno)>,
    /// After how many changes it is so.
    pub(crate) bad_after: usize,
    /// It is so once.
    pub(crate) bad_once: bool,
    /// The place in bytes that cannot be read until it is written.
    pub(crate) unreadable: Option<u64>,
    pub(crate) rereads: usize,
}

impl SimDisk {
    /// A disk full of `fill`.
    pub(crate) fn new(size: usize, block: u32, fill: u8) -> SimDisk {
        SimDisk::of(vec![fill; size], block)
    }

    /// A disk with these bytes.
    pub(crate) fn of(bytes: Vec<u8>, block: u32) -> SimDisk {
        SimDisk {
            durable: bytes.clone(),
            bytes,
            pending: Vec::new(),
            block,
            changes: 0,
            dies_at: None,
            bad: None,
            bad_after: 0,
            bad_once: false,
            unreadable: None,
            rereads: 0,
        }
    }

    /// What is on it after the power went: of what was not synced every part of 512 bytes may be there or not. `chance` says
    /// which, for each in turn.
    pub(crate) fn after_power_loss(&self, mut chance: impl FnMut() -> bool) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (at, data) in &self.pending {
            for (index, part) in data.chunks(512).enumerate() {
                if chance() {
                    let start = at + 512 * index;
                    bytes[start..start + part.len()].copy_from_slice(part);
                }
            }
        }
        bytes
    }

    fn change(&mut self, offset: u64, data: Vec<u8>) -> io::Result<()> {
        let block = u64::from(self.block);
        assert!(
            offset.is_multiple_of(block) && (data.len() as u64).is_multiple_of(block),
            "whole blocks only"
        );
        let at = usize::try_from(offset).unwrap();
        assert!(at + data.len() <= self.bytes.len(), "within the disk");
        if let Some((bad, errno)) = self.bad
            && self.changes >= self.bad_after
            && (offset..offset + data.len() as u64).contains(&bad)
        {
            // As far as it can.
            let good = usize::try_from((bad - offset) / block * block).unwrap();
            let data = data[..good].to_vec();
            if data.is_empty() {
                self.changes += 1;
            } else {
                self.change(offset, data)?;
            }
            self.bad = self.bad.filter(|_| !self.bad_once);
            return Err(errno.into());
        }
        self.changes += 1;
        if self.dies_at.is_none_or(|dies| self.changes <= dies) {
            let written = offset..offset + data.len() as u64;
            self.unreadable = self.unreadable.filter(|place| !written.contains(place));
            self.bytes[at..at + data.len()].copy_from_slice(&data);
            self.pending.push((at, data));
        }
        self.alive()
    }

    fn alive(&self) -> io::Result<()> {
        if self.dies_at.is_some_and(|dies| self.changes >= dies) {
            Err(Errno::EIO.into())
        } else {
            Ok(())
        }
    }
}

impl Disk for SimDisk {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn block(&self) -> u32 {
        self.block
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.alive()?;
        let at = usize::try_from(offset).unwrap();
        assert!(offset.is_multiple_of(self.block.into()), "whole blocks only");
        let asked = offset..offset + into.len() as u64;
        if self.unreadable.is_some_and(|place| asked.contains(&place)) {
            return Err(Errno::EIO.into());
        }
        into.copy_from_slice(&self.bytes[at..at + into.len()]);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(offset, data.to_vec())
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.change(offset, vec![0; usize::try_from(len).unwrap()])
    }

    fn sync(&mut self) -> io::Result<()> {
        self.changes += 1;
        self.alive()?;
        self.durable.clone_from(&self.bytes);
        self.pending.clear();
        Ok(())
    }

    fn reread_table(&mut self) -> io::Result<()> {
        self.alive()?;
        self.rereads += 1;
        Ok(())
    }
}
