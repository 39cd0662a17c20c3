use proptest::prelude::*;

use super::*;

fn little(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())).unwrap()
}

/// Every file by its Rock Ridge path, read with nothing of what wrote it.
pub(crate) fn files(image: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let root = &image[16 * 2048 + 156..];
    let mut found = BTreeMap::new();
    walk_records(image, little(root, 2), little(root, 10), "", &mut found);
    found
}

fn walk_records(image: &[u8], block: usize, len: usize, path: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    let directory = &image[block * 2048..][..len];
    for part in directory.chunks(2048) {
        let mut rest = part;
        while rest.first().is_some_and(|len| *len > 0) {
            let (record, after) = rest.split_at(rest[0].into());
            rest = after;
            // Both byte orders say the same.
            for at in [2, 10] {
                let big = u32::from_be_bytes(record[at + 4..at + 8].try_into().unwrap());
                assert_eq!(little(record, at), usize::try_from(big).unwrap());
            }
            let (block, len, name_len) = (little(record, 2), little(record, 10), usize::from(record[32]));
            if record[33..33 + name_len] == [0] || record[33..33 + name_len] == [1] {
                continue;
            }
            let name = rock_ridge_name(&record[33 + name_len + (name_len + 1) % 2..]).unwrap();
            let path = format!("{path}/{name}");
            if record[25] & 2 != 0 {
                walk_records(image, block, len, &path, found);
            } else {
                found.insert(path, image[block * 2048..][..len].to_vec());
            }
        }
    }
}

fn rock_ridge_name(mut fields: &[u8]) -> Option<String> {
    while fields.len() >= 4 {
        let (field, rest) = fields.split_at(fields[2].into());
        if field.starts_with(b"NM") {
            return Some(String::from_utf8(field[5..].to_vec()).unwrap());
        }
        fields = rest;
    }
    None
}

fn tree(files: &[(&str, &[u8])]) -> Directory {
    let mut directory = Directory::default();
    for (name, content) in files {
        directory.file(name, content.to_vec());
    }
    directory
}

#[test]
fn files_come_back_as_they_were() {
    let mut inner = tree(&[
        ("meta_data.json", b"{}"),
        ("empty", b""),
        ("user_data", &[7; 5000]),
    ]);
    inner.directory("deeper", tree(&[("x", b"y")]));
    let mut root = tree(&[("top", b"1")]);
    root.directory("openstack", inner);
    let made = image("config-2", &root).unwrap();
    assert_eq!(
        made,
        image("config-2", &root).unwrap(),
        "the same files, the same bytes"
    );
    assert_eq!(&made[0x8028..0x8048], format!("{:<32}", "config-2").as_bytes());
    let names: Vec<_> = files(&made)
        .into_iter()
        .map(|(name, content)| (name, content.len()))
        .collect();
    let expected = [
        ("/openstack/deeper/x", 1),
        ("/openstack/empty", 0),
        ("/openstack/meta_data.json", 2),
        ("/openstack/user_data", 5000),
        ("/top", 1),
    ];
    assert_eq!(names, expected.map(|(name, len)| (name.to_owned(), len)));
}

#[test]
fn names_that_cannot_be_written_are_refused() {
    for name in ["", "a/b", "a\0", &"x".repeat(101)] {
        let refused = image("x", &tree(&[(name, b"")])).unwrap_err();
        assert_eq!(refused, IsoError::Name(name.to_owned()));
    }
}

proptest! {
    #[test]
    fn every_file_comes_back(
        contents in prop::collection::btree_map("[a-z_.-]{1,40}", prop::collection::vec(any::<u8>(), 0..5000), 0..60),
    ) {
        let mut latest = Directory::default();
        for (name, content) in &contents {
            latest.file(name, content.clone());
        }
        let mut root = Directory::default();
        root.directory("latest", latest);
        let made = image("config-2", &root).unwrap();
        prop_assert!(made.len() as u64 <= root.image_len());
        let expected: BTreeMap<_, _> =
            contents.into_iter().map(|(name, content)| (format!("/latest/{name}"), content)).collect();
        prop_assert_eq!(files(&made), expected);
    }
}
