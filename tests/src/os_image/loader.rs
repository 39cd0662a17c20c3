//! The image's BIOS boot loader: `loader.s`, and what is filled in where an image is made.

// Code for another mode of the processor cannot be anything else.
#![allow(unsafe_code)]

use anyhow::{Result, bail};

/// As much of a disk's first sector as is code: the partition table comes behind it.
const BOOT_CODE: usize = 440;
/// The second stage: eight sectors from [`super::gpt::FIRST_USABLE`] on.
const STAGE: usize = 4096;
/// Where the second stage has its parameters, and behind them the command line.
const PARAMETERS: usize = 8;
const COMMAND_LINE: std::ops::Range<usize> = 24..24 + 1024;

std::arch::global_asm!(include_str!("loader.s"), options(att_syntax));

fn code() -> [u8; BOOT_CODE + STAGE] {
    unsafe extern "C" {
        static muster_lab_loader: [u8; BOOT_CODE + STAGE];
    }
    // SAFETY: `loader.s` defines it with that length, as plain bytes that nobody writes to.
    unsafe { muster_lab_loader }
}

/// Bytes on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The sector in which they begin.
    pub(super) sector: u32,
    /// How many there are.
    pub(super) bytes: u32,
}

/// A boot sector's code and the second stage for a kernel and an initrd at these places.
pub(super) fn loader(kernel: Place, initrd: Place, command_line: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    // The kernel wants a zero at its end.
    if command_line.len() >= COMMAND_LINE.len() {
        bail!("the command line has {} bytes", command_line.len());
    }
    let mut sector = code().to_vec();
    let mut stage = sector.split_off(BOOT_CODE);
    let numbers = [kernel.sector, kernel.bytes, initrd.sector, initrd.bytes];
    for (at, number) in numbers.into_iter().enumerate() {
        let at = PARAMETERS + 4 * at;
        stage[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    stage[COMMAND_LINE.start..COMMAND_LINE.start + command_line.len()]
        .copy_from_slice(command_line.as_bytes());
    Ok((sector, stage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_stand_where_the_code_looks_for_them() {
        let place = |sector, bytes| Place { sector, bytes };
        let (sector, stage) = loader(place(0x1111_1111, 2), place(3, 0x4444_4444), "console=ttyS0").unwrap();
        assert_eq!((sector.len(), stage.len()), (BOOT_CODE, STAGE));
        assert_eq!(stage[0], 0xe9, "a jump over the parameters");
        assert_eq!(
            stage[8..24],
            [
                0x11, 0x11, 0x11, 0x11, 2, 0, 0, 0, 3, 0, 0, 0, 0x44, 0x44, 0x44, 0x44
            ]
        );
        assert!(stage[24..].starts_with(b"console=ttyS0\0"));
        assert!(loader(place(0, 0), place(0, 0), &"x".repeat(1024)).is_err());
    }
}
