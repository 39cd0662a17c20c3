//! The lab's operating system, as far as it is plain data: what it says, and how it knows its config drive.
//!
//! It is what a server is given in the tests: a Linux kernel and one program, on a disk image that boots under BIOS and UEFI.
//! It shares nothing with the agent, whose work it is there to judge.

#![forbid(unsafe_code)]

use serde_json::Value;

/// Begins the line that it prints before anything else, followed by the kernel's version and uptime.
pub const BOOTED: &str = "OS booted";
/// Begins the line with the name that its config drive gives it.
pub const NAME: &str = "OS name: ";
/// The line before its user data.
pub const USER_DATA_BEGINS: &str = "OS user data begins";
/// Begins each line of its user data.
pub const USER_DATA: &str = "OS| ";
/// The line after its user data.
pub const USER_DATA_ENDS: &str = "OS user data ends";
/// Begins the line with the names of the files on its config drive.
pub const FILES: &str = "OS config drive: ";
/// The line that it prints once nobody gave it a config drive for a while; it goes on looking for one.
pub const NO_CONFIG_DRIVE: &str = "OS has no config drive";
/// The line that it prints when somebody presses the power button.
pub const POWERS_OFF: &str = "OS powers off";

/// The label of a config drive; FAT may have it in capitals.
pub const LABEL: &str = "config-2";
/// How many bytes of a block device [`file_system`] needs.
pub const HEAD: usize = ISO_VOLUME + 2048;

/// Where ISO 9660's primary volume descriptor stands (ECMA-119, 8.4).
const ISO_VOLUME: usize = 0x8000;

/// What the kernel calls the file system that begins with `head` if that is one for config drives and has their label.
pub fn file_system(head: &[u8]) -> Option<&'static str> {
    let fat16 = || {
        let is = head.get(0x36..0x39)? == b"FAT" && head.get(0x26)? == &0x29;
        is.then(|| head.get(0x2b..0x36)).flatten()
    };
    let fat32 = || {
        let is = head.get(0x52..0x55)? == b"FAT" && head.get(0x42)? == &0x29;
        is.then(|| head.get(0x47..0x52)).flatten()
    };
    let iso = || {
        let is = head.get(ISO_VOLUME..ISO_VOLUME + 6)? == b"\x01CD001";
        is.then(|| head.get(ISO_VOLUME + 40..ISO_VOLUME + 72)).flatten()
    };
    let found = [("vfat", fat32()), ("vfat", fat16()), ("iso9660", iso())];
    found.into_iter().find_map(|(kind, label)| {
        let label = String::from_utf8_lossy(label?);
        label
            .trim_end_matches([' ', '\0'])
            .eq_ignore_ascii_case(LABEL)
            .then_some(kind)
    })
}

/// The machine's name in a `meta_data.json`: what Metal3 and OpenStack put there, in the order in which it counts.
pub fn name(meta_data: &[u8]) -> Option<String> {
    let data: Value = serde_json::from_slice(meta_data).ok()?;
    let keys = [
        "name",
        "hostname",
        "local-hostname",
        "local_hostname",
        "metal3-name",
    ];
    let found = keys.into_iter().find_map(|key| data.get(key)?.as_str());
    found.map(printable)
}

/// User data as lines for a console.
pub fn user_data(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes)
        .lines()
        .map(|line| format!("{USER_DATA}{}", printable(line)))
        .collect()
}

/// The modules below `lib/modules/VERSION` in an order in which each finds there what it needs; `table` is `modules.dep`.
pub fn load_order(table: &str) -> Vec<&str> {
    let mut order: Vec<&str> = Vec::new();
    for line in table.lines() {
        let Some((module, needed)) = line.split_once(':') else {
            continue;
        };
        // What a module needs stands in the reverse of the order of loading (modules.dep(5)).
        for path in needed.split_whitespace().rev().chain([module]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    order
}

fn printable(text: &str) -> String {
    text.chars()
        .map(|sign| if sign.is_control() { '?' } else { sign })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(at: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (at, bytes) in at {
            head[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn config_drives_are_known_by_their_label_whatever_their_file_system() {
        let fat16 = |label: &[u8]| head(&[(0x26, b"\x29"), (0x2b, label), (0x36, b"FAT16   ")]);
        let fat32 = head(&[(0x42, b"\x29"), (0x47, b"config-2   "), (0x52, b"FAT32   ")]);
        let iso = head(&[(ISO_VOLUME, b"\x01CD001\x01"), (ISO_VOLUME + 40, b"config-2  ")]);
        assert_eq!(file_system(&fat16(b"CONFIG-2   ")), Some("vfat"));
        assert_eq!(file_system(&fat16(b"CONFIG-1   ")), None);
        assert_eq!(file_system(&fat32), Some("vfat"));
        assert_eq!(file_system(&iso), Some("iso9660"));
        assert_eq!(file_system(&[]), None);
    }

    #[test]
    fn name_is_found_under_each_of_its_keys() {
        assert_eq!(name(br#"{"name":"n","hostname":"h"}"#).as_deref(), Some("n"));
        assert_eq!(name(br#"{"metal3-name":"m\u001b"}"#).as_deref(), Some("m?"));
        assert_eq!(name(b"{}"), None);
        assert_eq!(name(b"no json"), None);
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let order = load_order("a.ko: c.ko b.ko\nb.ko:\nc.ko: b.ko\n");
        assert_eq!(order, ["b.ko", "c.ko", "a.ko"]);
    }

    proptest! {
        #[test]
        fn nothing_on_a_disk_breaks_it(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (file_system(&bytes), name(&bytes));
            let lines = user_data(&bytes);
            prop_assert!(lines.iter().all(|line| line.starts_with(USER_DATA) && !line.contains('\r')));
        }
    }
}
