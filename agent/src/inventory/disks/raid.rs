//! Volumes that a board's firmware makes of disks: RAID by Intel (IMSM) and others (DDF). Nothing assembles them here, so that each member
//! looks like a disk of its own; what is known of them stands at its end.

use std::path::Path;

use super::{
    by_path,
    chain::{Chain, Link},
};
use crate::sys::{self, ReadError, Root};

/// Whose firmware makes volumes of disks: PCI devices of class RAID (PCI Code and ID Assignment, 01.04), as SATA controllers in RAID mode
/// and Intel's VMD are.
const CONTROLLER: &str = "0x0104";

/// So many logical blocks of a disk's end are looked at: IMSM begins with the last but one (mdadm, `load_imsm_mpb` in `super-intel.c`).
const BLOCKS: usize = 2;

/// `MPB_SIGNATURE` in mdadm's `super-intel.c`.
const IMSM: &[u8] = b"Intel Raid ISM Cfg Sig. ";

/// The anchor header of DDF begins with it, in either byte order (SNIA DDF 2.0, 5.5: `DE11DE11`).
const DDF: [[u8; 4]; 2] = [[0xde, 0x11, 0xde, 0x11], [0x11, 0xde, 0x11, 0xde]];

/// The anchor header stands in the last so many bytes.
const ANCHOR: usize = 512;

/// The format of the volume that the disk `block` of `/sys/block` belongs to, whose device node is `node` and which has `size` bytes in
/// blocks of `unit`; empty if it is no member. Without its node nobody can tell.
pub(super) fn of(
    root: &Root,
    block: &Path,
    node: &Path,
    size: u64,
    unit: u32,
) -> Result<&'static str, ReadError> {
    if !is_possible(root, block, &Chain::new(root.ancestors(block)?)) {
        return Ok("");
    }
    let unit = if unit == 4096 { 4096 } else { 512 };
    let end = sys::absent_as_none(sys::tail(node, size, BLOCKS * unit))?;
    Ok(format(&end.unwrap_or_default()))
}

/// True for a disk that the firmware here may make part of a volume. Below any other controller such metadata are what is left of a machine
/// that the disk was in before.
fn is_possible(root: &Root, block: &Path, chain: &Chain) -> bool {
    let is_controller =
        |path: &Path| sys::text(&path.join("class")).is_ok_and(|class| class.starts_with(CONTROLLER));
    let is_below = |chain: &Chain| {
        chain
            .iter()
            .any(|(path, link)| link == Link::Pci && is_controller(path))
    };
    // Several controllers as one hang on no bus.
    let subsystem = chain.find(|link| *link == Link::NvmeSubsystem);
    let behind = subsystem.and_then(|subsystem| by_path::controller(root, block, subsystem));
    is_below(chain) || behind.is_some_and(|chain| is_below(&chain))
}

/// What the last [`BLOCKS`] of a disk say; empty if it is no member.
fn format(end: &[u8]) -> &'static str {
    let anchor = &end[end.len().saturating_sub(ANCHOR)..];
    if end.starts_with(IMSM) {
        "IMSM"
    } else if DDF.iter().any(|mark| anchor.starts_with(mark)) {
        "DDF"
    } else {
        ""
    }
}
