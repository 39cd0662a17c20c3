use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
};

use muster_proto::text;
use nix::{errno::Errno, fcntl::OFlag};

use super::warnings::Warnings;
use crate::sys::Root;

/// What drivers report is a dozen names; a log that is written by a stranger's device is not kept whole.
const MAX_NAMES: usize = 64;

/// The most that is read of the kernel's log, in bytes: its default buffer is at most 1 MiB (`CONFIG_LOG_BUF_SHIFT`).
const MAX_KERNEL_LOG: usize = 2 << 20;

/// Firmware files that drivers asked for and did not get. Nothing but the kernel's log tells.
pub(super) fn collect(root: &Root, warnings: &mut Warnings) -> Vec<String> {
    let mut names = BTreeSet::new();
    let read = records(root, |record| {
        let name = missing(record).map(|name| text::clean(name.as_bytes()));
        if names.len() < MAX_NAMES {
            names.extend(name.filter(|name| !name.is_empty()));
        }
    });
    match read {
        // No log, no complaint: there is none outside the ramdisk's own kernel.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        read => warnings.on("firmware", "kmsg").or_default(read),
    }
    names.into_iter().collect()
}

/// Each record of the kernel's log so far. One read gives one record (`Documentation/ABI/testing/dev-kmsg`).
fn records(root: &Root, mut each: impl FnMut(&str)) -> io::Result<()> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(root.dev("kmsg"))?;
    let mut buffer = [0; 8192];
    let mut total = 0;
    while total < MAX_KERNEL_LOG {
        match log.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                total += length;
                String::from_utf8_lossy(&buffer[..length])
                    .lines()
                    .for_each(&mut each);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // Records were overwritten before they were read; the next read goes on after the gap.
            Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The file's name in what the kernel's firmware loader says when it finds none: `Direct firmware load for NAME failed with
/// error -2` (`drivers/base/firmware_loader/main.c`), in Debian's kernels `firmware: failed to load NAME (-2)`.
fn missing(record: &str) -> Option<&str> {
    let between = |before: &str, after: &str| {
        let (_, rest) = record.split_once(before)?;
        rest.split_once(after).map(|(name, _)| name)
    };
    between("Direct firmware load for ", " failed with error")
        .or_else(|| between("firmware: failed to load ", " ("))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tree::Tree;

    #[test]
    fn files_that_drivers_miss_are_named_once() {
        let log = "6,1,100,-;Linux version 6.1\n\
            3,7,200,-;bnx2x 0000:01:00.0: Direct firmware load for bnx2x/bnx2x-e2-7.13.21.0.fw failed with error -2\n \
            SUBSYSTEM=pci\n\
            3,8,210,-;bnx2x 0000:01:00.0: firmware: failed to load bnx2x/bnx2x-e2-7.13.21.0.fw (-2)\n\
            3,9,220,-;tg3 0000:02:00.0: firmware: failed to load tigon/tg3_tso.bin (-2)\n\
            4,10,230,-;platform regulatory.0: Direct firmware load for\n";
        let tree = Tree::new().file("dev/kmsg", log);
        let mut warnings = Warnings::default();
        assert_eq!(
            collect(&tree.root(), &mut warnings),
            ["bnx2x/bnx2x-e2-7.13.21.0.fw", "tigon/tg3_tso.bin"]
        );
        assert_eq!(warnings.finish(), []);
    }

    #[test]
    fn an_unreadable_log_costs_a_warning() {
        let tree = Tree::new().directory("dev/kmsg");
        let mut warnings = Warnings::default();
        assert!(collect(&tree.root(), &mut warnings).is_empty());
        assert_eq!(warnings.finish().len(), 1);
    }
}
