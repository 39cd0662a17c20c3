//! Disks as something to write to.
//!
//! ```text
//! DiskId --guard::allow--> Token --open--> BlockDisk: Disk      the only way to a handle that writes
//! ```
//!
//! [`guard`] compares the machine and the disk with what the job means before anything is opened, and the opened device once
//! more. [`clean()`] takes partition tables and signatures away; [`crate::image`] writes images.

pub mod aligned;
mod block;
pub mod clean;
pub mod efi;
pub mod fat;
pub mod gpt;
pub mod guard;
mod held;
pub mod mbr;
#[cfg(test)]
pub(crate) mod sim;

use std::io;

pub use block::BlockDisk;
pub use clean::{CleanError, Cleaned, clean};
pub use guard::{Refused, Token, allow};

/// A whole disk, open for writing by whoever holds this. Offsets and lengths are in bytes and multiples of
/// [`Disk::block`]. Buffers of [`aligned::Aligned`] need no copy.
pub trait Disk: Send {
    /// Bytes on it.
    fn size(&self) -> u64;

    /// Its logical block size in bytes, 512 or 4096: the unit of partition tables.
    fn block(&self) -> u32;

    /// Fills `into` from `offset`.
    ///
    /// # Errors
    /// What the device says, such as `EIO`.
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset`; it may stay in the disk's cache.
    ///
    /// # Errors
    /// What the device says, such as `EIO` or `ENOSPC`.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes `len` bytes from `offset` read as zeros; by the device itself where it can do so.
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// Waits until everything that was written survives a loss of power.
    ///
    /// # Errors
    /// What the device says; what was written before is lost or not, nobody knows.
    fn sync(&mut self) -> io::Result<()>;

    /// Makes the kernel read the partition table again (`BLKRRPART`).
    ///
    /// # Errors
    /// `EBUSY` if a partition is in use.
    fn reread_table(&mut self) -> io::Result<()>;
}

/// Fills `into` from `offset`; neither its length nor the offset need be a multiple of the disk's block size.
///
/// # Errors
/// As [`Disk::read_at`].
pub fn read_any(disk: &mut dyn Disk, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let block = u64::from(disk.block());
    let (start, end) = (offset / block * block, offset.saturating_add(into.len() as u64));
    // A device is a whole number of blocks.
    if end > disk.size() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut whole = aligned::Aligned::zeroed(
        usize::try_from(end.next_multiple_of(block) - start).map_err(io::Error::other)?,
    );
    disk.read_at(start, &mut whole)?;
    let skip = usize::try_from(offset - start).map_err(io::Error::other)?;
    into.copy_from_slice(&whole[skip..skip + into.len()]);
    Ok(())
}
