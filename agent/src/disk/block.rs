//! A block device, open for direct and exclusive IO.

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, FileTypeExt, MetadataExt},
    },
};

use nix::{
    errno::Errno,
    libc,
    sys::stat::{major, minor},
};

use super::{
    Disk,
    aligned::{Aligned, is_aligned},
};

/// Data that is not aligned travels through a buffer of this size.
const BOUNCE: usize = 1 << 20;

/// One call to zero a range takes no signal and reports no progress: not too much at once.
const ZERO_AT_ONCE: u64 = 256 << 20;

/// The kernel's calls of block devices (`include/uapi/linux/fs.h`).
#[allow(unsafe_code)] // nix makes unsafe functions of the calls' numbers.
mod calls {
    use nix::libc::c_int;

    nix::ioctl_none_bad!(reread_table, nix::request_code_none!(0x12, 95));
    nix::ioctl_read_bad!(logical_block, nix::request_code_none!(0x12, 104), c_int);
    nix::ioctl_read!(size, 0x12, 114, usize);
    nix::ioctl_write_ptr_bad!(zero, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// A whole disk that only this process writes to. Only [`super::Token::open`] makes one.
#[derive(Debug)]
pub struct BlockDisk {
    file: File,
    size: u64,
    block: u32,
    bounce: Aligned,
}

impl BlockDisk {
    /// Takes over `file`, which is a block device opened with `O_DIRECT`.
    pub(super) fn of(file: File) -> io::Result<BlockDisk> {
        if !file.metadata()?.file_type().is_block_device() {
            return Err(Errno::ENOTBLK.into());
        }
        let size = size_of(&file)?;
        let block = block_of(&file)?;
        Ok(BlockDisk {
            file,
            size,
            block,
            bounce: Aligned::zeroed(BOUNCE),
        })
    }

    /// The device's number.
    pub(super) fn number(&self) -> io::Result<(u64, u64)> {
        let device = self.file.metadata()?.rdev();
        Ok((major(device), minor(device)))
    }
}

#[allow(unsafe_code)]
fn size_of(file: &File) -> io::Result<u64> {
    let mut size = 0;
    // SAFETY: the call writes one integer of this size to where it is told to, and the descriptor is open.
    unsafe { calls::size(file.as_raw_fd(), &raw mut size) }?;
    u64::try_from(size).map_err(io::Error::other)
}

#[allow(unsafe_code)]
fn block_of(file: &File) -> io::Result<u32> {
    let mut block: libc::c_int = 0;
    // SAFETY: the call writes one integer of this size to where it is told to, and the descriptor is open.
    unsafe { calls::logical_block(file.as_raw_fd(), &raw mut block) }?;
    u32::try_from(block).map_err(io::Error::other)
}

impl Disk for BlockDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn block(&self) -> u32 {
        self.block
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if is_aligned(into) {
            return self.file.read_exact_at(into, offset);
        }
        let mut at = offset;
        for part in into.chunks_mut(BOUNCE) {
            let through = &mut self.bounce[..part.len()];
            self.file.read_exact_at(through, at)?;
            part.copy_from_slice(through);
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        if is_aligned(data) {
            return self.file.write_all_at(data, offset);
        }
        let mut at = offset;
        for part in data.chunks(BOUNCE) {
            let through = &mut self.bounce[..part.len()];
            through.copy_from_slice(part);
            self.file.write_all_at(through, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    #[allow(unsafe_code)]
    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let range = [at, (end - at).min(ZERO_AT_ONCE)];
            // SAFETY: the call reads two integers from where it is told to, and the descriptor is open.
            unsafe { calls::zero(self.file.as_raw_fd(), &raw const range) }?;
            at += range[1];
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    #[allow(unsafe_code)]
    fn reread_table(&mut self) -> io::Result<()> {
        // SAFETY: the call takes no argument, and the descriptor is open.
        unsafe { calls::reread_table(self.file.as_raw_fd()) }?;
        Ok(())
    }
}
