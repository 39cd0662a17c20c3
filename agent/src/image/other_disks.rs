//! What on disks that are not written may be taken for what is on the one that is: of an earlier system, whose disks were not cleaned.

use std::{fs::File, io::Read as _, os::unix::fs::FileExt, path::Path};

use muster_proto::{inventory::Disk, job::DiskId};

use super::{boot, config_drive, held::HEAD, layout::Layout};
use crate::{
    disk::efi::Signature,
    inventory::{self, Patience},
    sys::{self, Root},
};

const CONFIG_DRIVE: &str = "still has a config drive, whose user data the new system may take for its own";
const SAME_PARTITION: &str = "has a partition with a GUID or MBR signature of the image, which the firmware or the new system may take for its own";

/// The disks other than `target` with something that may be taken for what is `written` there, and what that is. One that cannot be read, or
/// not in time, counts as one without.
pub(super) fn find(root: &Root, target: &Disk, written: &Layout) -> Vec<(Disk, &'static str)> {
    let mut patience = Patience::default();
    let signatures = written.signatures();
    let mut found = Vec::new();
    for disk in inventory::disks(root) {
        if is_same(&disk, target) {
            continue;
        }
        let (own_root, own_disk, signatures) = (root.clone(), disk.clone(), signatures.clone());
        let all = patience.wait(root.dev(inventory::node(&disk)), move || {
            look(&own_root, &own_disk, &signatures)
        });
        let all = all.unwrap_or_default().into_iter();
        found.extend(all.map(|what| (disk.clone(), what)));
    }
    found
}

/// What on `disk` may be taken for what is on the written one, whose partitions have these `signatures`.
fn look(root: &Root, disk: &Disk, signatures: &[Signature]) -> Vec<&'static str> {
    let node = root.dev(inventory::node(disk));
    let mut found = Vec::new();
    if has_config_drive(root, disk) {
        found.push(CONFIG_DRIVE);
    }
    if has_one_of(signatures, &node, disk) {
        found.push(SAME_PARTITION);
    }
    found
}

/// Whether a partition of `disk`, which is at `node`, has one of these signatures. An unsound table has no partitions for anybody.
fn has_one_of(signatures: &[Signature], node: &Path, disk: &Disk) -> bool {
    let mut head = Vec::new();
    let read = File::open(node).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head));
    head.resize(HEAD, 0);
    let layout = Layout::fit(&head, disk.size_bytes, disk.logical_block_bytes);
    read.is_ok()
        && layout.is_ok_and(|layout| {
            let own = layout.signatures();
            own.iter().any(|signature| signatures.contains(signature))
        })
}

/// True if both are one disk, perhaps by two paths.
fn is_same(one: &Disk, other: &Disk) -> bool {
    let marks = |disk: &Disk| DiskId {
        name: String::new(),
        by_path: String::new(),
        ..DiskId::from(disk)
    };
    let is_marked = !one.serial.is_empty() || !one.wwn.is_empty();
    one.name == other.name || (is_marked && marks(one) == marks(other))
}

/// Whether `disk` is a config drive, or one of its partitions is.
fn has_config_drive(root: &Root, disk: &Disk) -> bool {
    let block = root.sys("block").join(inventory::kernel_name(disk));
    let mut names = sys::list(&block).unwrap_or_default();
    names.retain(|name| block.join(name).join("partition").exists());
    let mut nodes = names.iter().map(|name| root.dev(name.replace('!', "/")));
    is_config_drive(&root.dev(inventory::node(disk))) || nodes.any(|node| is_config_drive(&node))
}

fn is_config_drive(node: &Path) -> bool {
    let label = File::open(node)
        .and_then(|file| boot::volume_label(&mut |at, into: &mut [u8]| file.read_exact_at(into, at)));
    // FAT has labels in upper case.
    label.is_ok_and(|label| label.is_some_and(|label| label.eq_ignore_ascii_case(config_drive::LABEL)))
}
