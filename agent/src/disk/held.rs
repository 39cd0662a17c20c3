//! Who uses a disk already.

use muster_proto::text;

use crate::sys::{self, ReadError, Root};

/// What holds the block device `name` (as `/sys/block` has it) or one of its partitions, in words; `None` if nothing does.
///
/// # Errors
/// [`ReadError`]: what cannot be read may be held.
pub(super) fn holder(root: &Root, name: &str) -> Result<Option<String>, ReadError> {
    let block = root.sys("block").join(name);
    let mut places = vec![(name.to_owned(), block.clone())];
    for entry in sys::list(&block)? {
        let place = block.join(&entry);
        if place.join("partition").exists() {
            places.push((entry, place));
        }
    }
    let mounts = sys::absent_as_none(sys::bytes(&root.proc("self/mountinfo")))?.unwrap_or_default();
    let mounts = String::from_utf8_lossy(&mounts);
    let swaps = sys::absent_as_none(sys::bytes(&root.proc("swaps")))?.unwrap_or_default();
    let swaps = String::from_utf8_lossy(&swaps);
    for (name, place) in &places {
        let holders = sys::absent_as_none(sys::list(&place.join("holders")))?.unwrap_or_default();
        if let Some(holder) = holders.first() {
            return Ok(Some(format!(
                "{name} is part of {}",
                text::clean(holder.as_bytes())
            )));
        }
        let number = sys::text(&place.join("dev"))?;
        let node = format!("/dev/{}", name.replace('!', "/"));
        if let Some(point) = mounts.lines().find_map(|line| mounted(line, &number, &node)) {
            return Ok(Some(format!(
                "{name} is mounted on {}",
                text::clean(point.as_bytes())
            )));
        }
        if swaps
            .lines()
            .any(|line| line.split_whitespace().next() == Some(&node))
        {
            return Ok(Some(format!("{name} is in use as swap")));
        }
    }
    Ok(None)
}

/// Where a line of `/proc/self/mountinfo` (proc(5)) says that the device is mounted. Some file systems have numbers of their
/// own and name the device only as their source.
fn mounted<'l>(line: &'l str, number: &str, node: &str) -> Option<&'l str> {
    let (first, rest) = line.split_once(" - ")?;
    let mut fields = first.split(' ');
    let is_number = fields.nth(2)? == number;
    let point = fields.nth(1)?;
    let is_source = rest.split(' ').nth(1) == Some(node);
    (is_number || is_source).then_some(point)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tree::Tree;

    fn disk() -> Tree {
        Tree::new()
            .file("sys/block/sda/dev", "8:0\n")
            .directory("sys/block/sda/holders")
            .file("sys/block/sda/sda2/partition", "2\n")
            .file("sys/block/sda/sda2/dev", "8:2\n")
            .directory("sys/block/sda/sda2/holders")
    }

    fn held(tree: &Tree) -> Option<String> {
        holder(&tree.root(), "sda").unwrap()
    }

    #[test]
    fn an_idle_disk_is_held_by_nobody() {
        let mounts = "21 1 8:16 / / rw - ext4 /dev/sdb rw\n22 1 0:5 / /proc rw - proc proc rw\n";
        let tree = disk()
            .file("proc/self/mountinfo", mounts)
            .file("proc/swaps", "Filename Type\n/dev/sda22 partition\n");
        assert_eq!(held(&tree), None);
    }

    #[test]
    fn every_use_of_a_partition_counts() {
        let array = disk().file("sys/block/sda/sda2/holders/md0", "");
        assert_eq!(held(&array).unwrap(), "sda2 is part of md0");
        let swap = disk().file("proc/swaps", "Filename\n/dev/sda2 partition 1 0 -2\n");
        assert_eq!(held(&swap).unwrap(), "sda2 is in use as swap");
        for line in [
            "30 1 8:2 / /mnt rw shared:1 - ext4 /dev/root rw",
            "30 1 0:44 / /mnt rw - btrfs /dev/sda2 rw",
        ] {
            let mounted = disk().file("proc/self/mountinfo", line);
            assert_eq!(held(&mounted).unwrap(), "sda2 is mounted on /mnt");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_idle() {
        let tree = disk().directory("sys/block/sda/sda2/dev");
        holder(&tree.root(), "sda").unwrap_err();
    }
}
