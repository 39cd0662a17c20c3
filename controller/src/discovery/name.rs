//! What a discovered host is called: readable, deterministic, never changed afterwards. Pure.

use muster_proto::{Mac, inventory::Inventory, text};

use crate::hardware::boot_mac;

/// The longest name: a DNS-1123 label (RFC 1123, 2.1), so that it also serves as a host name.
pub const MAX: usize = 63;
const VENDOR_MAX: usize = 20;
/// Room for `-` and the last six digits of a MAC address.
const CLASH_ROOM: usize = 7;

/// Words at the end of a company's name that say what it is in law and not who.
const LEGAL: &[&str] = &[
    "inc",
    "incorporated",
    "ltd",
    "limited",
    "llc",
    "co",
    "corp",
    "corporation",
    "company",
    "gmbh",
    "ag",
    "kg",
    "sa",
    "sas",
    "spa",
    "bv",
    "nv",
    "ab",
    "oy",
    "plc",
    "pte",
    "pty",
    "kk",
];
/// Words that say what a company makes; dropped after a name of one word.
const TRADE: &[&str] = &[
    "technology",
    "technologies",
    "computer",
    "computers",
    "systems",
    "electronics",
];

/// The short form of a vendor's name, as part of a DNS label: `Dell Inc.` is `dell`, `Hewlett Packard Enterprise` is `hpe`.
/// Three words and more become their initials, as such companies call themselves. Empty if nothing usable is left.
pub fn vendor(manufacturer: &str) -> String {
    let manufacturer = text::clean(manufacturer.as_bytes());
    let Some(usable) = text::usable(&manufacturer) else {
        return String::new();
    };
    let mut words: Vec<String> = usable
        .split_whitespace()
        .map(|word| text::dns_label(word, VENDOR_MAX))
        .filter(|word| !word.is_empty())
        .collect();
    // "Co., Ltd." is two words; a name that is nothing but such words stays as it is.
    while words.len() > 1 && words.last().is_some_and(|last| LEGAL.contains(&last.as_str())) {
        words.pop();
    }
    if words.len() == 2 && TRADE.contains(&words[1].as_str()) {
        words.pop();
    }
    match words.len() {
        0..3 => text::dns_label(&words.join("-"), VENDOR_MAX),
        _ => words
            .iter()
            .filter_map(|word| word.chars().next())
            .take(VENDOR_MAX)
            .collect(),
    }
}

/// The names that a host of this machine may have, best first. `server` is the name of its Server object, for a machine that
/// shows neither a serial number nor a MAC address.
pub fn candidates(inventory: &Inventory, server: &str) -> Vec<String> {
    let mac = boot_mac(inventory);
    let by_mac = mac.map(|mac| format!("mac-{}", mac.hex()));
    let mut names = Vec::new();
    if let Some(base) = by_serial(inventory) {
        let with_mac = mac.map(|mac| with_mac(&base, mac));
        names.push(base);
        names.extend(with_mac);
    }
    names.extend(by_mac);
    names.push(format!("server-{}", text::dns_label(server, MAX - 7)));
    names.retain(|name| is_name(name));
    names
}

fn by_serial(inventory: &Inventory) -> Option<String> {
    let serial = text::clean(inventory.system.serial.as_bytes());
    let serial = text::dns_label(text::usable(&serial)?, MAX);
    let vendor = Some(vendor(&inventory.system.manufacturer)).filter(|vendor| !vendor.is_empty());
    let mut name = format!("{}-{serial}", vendor.as_deref().unwrap_or("machine"));
    name.truncate(MAX - CLASH_ROOM);
    let name = name.trim_end_matches('-').to_owned();
    // Upstream refuses names that look like a UUID: it would take them for a machine's id.
    let name = if is_uuid_shaped(&name) {
        format!("m-{name}")
    } else {
        name
    };
    (!serial.is_empty()).then_some(name)
}

fn with_mac(base: &str, mac: Mac) -> String {
    format!("{base}-{}", &mac.hex()[6..])
}

fn is_uuid_shaped(name: &str) -> bool {
    name.len() == 36
        && name.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX && text::dns_label(name, MAX) == name
}

#[cfg(test)]
mod tests {
    use muster_proto::inventory::System;
    use proptest::prelude::*;

    use super::*;

    fn machine(manufacturer: &str, serial: &str) -> Inventory {
        let mut inventory = Inventory {
            system: System {
                manufacturer: manufacturer.to_owned(),
                serial: serial.to_owned(),
                ..System::default()
            },
            ..Inventory::default()
        };
        inventory.boot.mac = Some(Mac([0x52, 0x54, 0, 0xab, 0xcd, 0xef]));
        inventory
    }

    fn named(manufacturer: &str, serial: &str) -> String {
        candidates(&machine(manufacturer, serial), "s")[0].clone()
    }

    #[test]
    fn vendors_have_the_short_names_that_people_use() {
        for (long, short) in [
            ("Dell Inc.", "dell"),
            ("Supermicro", "supermicro"),
            ("Super Micro Computer, Inc.", "smc"),
            ("QEMU", "qemu"),
            ("Hewlett Packard Enterprise", "hpe"),
            ("HPE", "hpe"),
            ("HP", "hp"),
            ("Lenovo", "lenovo"),
            ("LENOVO", "lenovo"),
            ("Gigabyte Technology Co., Ltd.", "gigabyte"),
            ("ASUSTeK COMPUTER INC.", "asustek"),
            ("Cisco Systems Inc", "cisco"),
            ("Intel Corporation", "intel"),
            ("FUJITSU", "fujitsu"),
            ("Quanta Cloud Technology Inc.", "qct"),
            ("International Business Machines", "ibm"),
            ("Huawei Technologies Co., Ltd.", "huawei"),
            ("Red Hat", "red-hat"),
            ("To Be Filled By O.E.M.", ""),
            ("Inc.", "inc"),
            ("日本電気", ""),
            ("", ""),
        ] {
            assert_eq!(vendor(long), short, "{long}");
        }
    }

    #[test]
    fn a_usable_serial_names_the_host() {
        assert_eq!(named("Dell Inc.", "J5K2X93"), "dell-j5k2x93");
        assert_eq!(named("QEMU", "lab/0001 #7"), "qemu-lab-0001-7");
        assert_eq!(named("", "J5K2X93"), "machine-j5k2x93");
    }

    #[test]
    fn a_serial_that_nobody_filled_in_names_nobody() {
        for junk in [
            "",
            " ",
            "To Be Filled By O.E.M.",
            "To be filled by O.E.M.",
            "00000000",
            "0000-0000-0000",
            "FFFFFFFF",
            "Default string",
            "System Serial Number",
            "Not Specified",
            "None",
            "N/A",
            "0123456789",
            "................",
            "\u{1b}[0m",
            "\n\n",
            "序列号",
        ] {
            let first = named("Dell Inc.", junk);
            // An escape leaves printable remains; those are junk, too, but harmless.
            assert!(
                first == "mac-525400abcdef" || junk.starts_with('\u{1b}'),
                "{junk:?} named {first}"
            );
        }
    }

    #[test]
    fn the_clash_form_ends_with_the_macs_last_six_digits_and_fits() {
        let names = candidates(&machine("Dell Inc.", &"A7".repeat(100)), "s");
        assert!(names[1].starts_with(&names[0]), "{names:?}");
        assert!(names[1].ends_with("-abcdef"), "{names:?}");
        assert!(names.iter().all(|name| name.len() <= MAX), "{names:?}");
    }

    #[test]
    fn no_name_looks_like_a_uuid() {
        assert_eq!(
            named("4c4c4544", "0035-4b10-8032-cac04f583933"),
            "m-4c4c4544-0035-4b10-8032-cac04f583933"
        );
    }

    #[test]
    fn a_machine_without_serial_and_mac_still_has_a_name() {
        assert_eq!(candidates(&Inventory::default(), "abc"), ["server-abc"]);
    }

    proptest! {
        #[test]
        fn every_name_is_a_dns_label(manufacturer: String, serial: String, server: String) {
            for name in candidates(&machine(&manufacturer, &serial), &server) {
                prop_assert!(is_name(&name), "{}", name);
                prop_assert!(!is_uuid_shaped(&name));
                prop_assert!(name.starts_with(|c: char| c.is_ascii_alphanumeric()));
            }
        }
    }
}
