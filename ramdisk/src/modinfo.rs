//! What a module says about itself: the section `.modinfo`, NUL-terminated `key=value` strings
//! (`include/linux/moduleparam.h`, `scripts/mod/modpost.c`).

/// The parts of `.modinfo` that matter for finding and loading a module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modinfo {
    /// The module's own name, with underscores.
    pub name: Option<String>,
    /// Modules that must be loaded before.
    pub depends: Vec<String>,
    /// Patterns that a device's modalias or a request by name is compared with.
    pub aliases: Vec<String>,
    /// Optional companions as written: `pre: a b post: c`.
    pub softdeps: Vec<String>,
    /// Firmware files that the driver may ask for, below `/lib/firmware`; some are patterns.
    pub firmware: Vec<String>,
}

/// Reads a `.modinfo` section; strings that are no UTF-8 or no `key=value` are passed over, as kmod does.
pub fn parse(section: &[u8]) -> Modinfo {
    let mut info = Modinfo::default();
    for (key, value) in pairs(section) {
        match key {
            "name" => info.name = Some(value.to_owned()),
            "depends" => info
                .depends
                .extend(value.split(',').filter(|name| !name.is_empty()).map(canonical)),
            "alias" => push_new(&mut info.aliases, value),
            "softdep" => push_new(&mut info.softdeps, value),
            "firmware" => push_new(&mut info.firmware, value),
            _ => {}
        }
    }
    info
}

/// A module's name as the kernel writes it: file names may have hyphens where it has underscores.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The modules that a softdep line wants loaded before and after, in order.
pub fn softdep_names(line: &str) -> impl Iterator<Item = &str> {
    line.split_ascii_whitespace().filter(|word| !word.ends_with(':'))
}

fn pairs(section: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    section
        .split(|byte| *byte == 0)
        .filter_map(|line| std::str::from_utf8(line).ok()?.split_once('='))
}

fn push_new(list: &mut Vec<String>, value: &str) {
    // A line break would forge a line of the text tables made from these.
    let plain = !value.is_empty() && !value.chars().any(char::is_control);
    if plain && !list.iter().any(|known| known == value) {
        list.push(value.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_known_key_is_read() {
        let section = b"license=GPL\0alias=fs-ext4\0alias=ext3\0alias=ext3\0\0depends=mbcache,jbd2,crc-x\0\
            softdep=pre: crc32c post: zlib\0firmware=a/b.bin\0intree=Y\0name=ext4\0vermagic=6.1 SMP\0";
        let expected = Modinfo {
            name: Some("ext4".to_owned()),
            depends: vec!["mbcache".to_owned(), "jbd2".to_owned(), "crc_x".to_owned()],
            aliases: vec!["fs-ext4".to_owned(), "ext3".to_owned()],
            softdeps: vec!["pre: crc32c post: zlib".to_owned()],
            firmware: vec!["a/b.bin".to_owned()],
        };
        assert_eq!(parse(section), expected);
        assert_eq!(
            softdep_names(&expected.softdeps[0]).collect::<Vec<_>>(),
            ["crc32c", "zlib"]
        );
    }

    #[test]
    fn empty_depends_name_nothing() {
        assert_eq!(parse(b"depends=\0"), Modinfo::default());
    }

    #[test]
    fn values_that_would_forge_a_line_are_left_out() {
        assert_eq!(
            parse(b"alias=a\nalias b c\0firmware=\x1b[2J\0"),
            Modinfo::default()
        );
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
