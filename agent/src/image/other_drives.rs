//! Config drives on disks that are not written: of an earlier system, whose disks were not cleaned.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use muster_proto::{inventory::Disk, job::DiskId};

use super::{boot, config_drive};
use crate::{
    inventory::{self, Patience},
    sys::{self, Root},
};

/// The disks with a config drive, other than `target`. One that cannot be read, or not in time, counts as one without.
pub(super) fn find(root: &Root, target: &Disk) -> Vec<Disk> {
    let mut patience = Patience::default();
    let mut disks = inventory::disks(root);
    disks.retain(|disk| {
        if is_same(disk, target) {
            return false;
        }
        let node = inventory::node(disk);
        let (own_root, own_node) = (root.clone(), node.to_owned());
        let has_one = patience.wait(root.dev(node), move || has_config_drive(&own_root, &own_node));
        has_one == Some(true)
    });
    disks
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

/// Whether the disk at `node`, such as `sda` or `cciss/c0d0`, is a config drive, or one of its partitions is.
fn has_config_drive(root: &Root, node: &str) -> bool {
    let block = root.sys("block").join(node.replace('/', "!"));
    let mut names = sys::list(&block).unwrap_or_default();
    names.retain(|name| block.join(name).join("partition").exists());
    let mut nodes = names.iter().map(|name| root.dev(name.replace('!', "/")));
    is_config_drive(&root.dev(node)) || nodes.any(|node| is_config_drive(&node))
}

fn is_config_drive(node: &Path) -> bool {
    let label = File::open(node)
        .and_then(|file| boot::volume_label(&mut |at, into: &mut [u8]| file.read_exact_at(into, at)));
    // FAT has labels in upper case.
    label.is_ok_and(|label| label.is_some_and(|label| label.eq_ignore_ascii_case(config_drive::LABEL)))
}
