use proptest::prelude::*;

use super::*;

fn paths(archive: &Archive) -> Vec<&str> {
    archive
        .entries()
        .iter()
        .map(|entry| entry.path.as_str())
        .collect()
}

#[test]
fn parents_are_added_once_and_before_their_children() {
    let mut archive = Archive::new();
    archive.file("a/b/one", 0o644, vec![1]).unwrap();
    archive.file("a/b/two", 0o644, vec![2]).unwrap();
    archive.dir("a/b", 0o755).unwrap();
    assert_eq!(paths(&archive), ["a", "a/b", "a/b/one", "a/b/two"]);
}

#[test]
fn first_entry_is_written_as_the_kernel_reads_it() {
    let mut archive = Archive::new();
    archive.char_device("dev/console", 0o600, 5, 1).unwrap();
    let bytes = archive.to_vec();
    let dir = "0701".len() + "07".len();
    assert_eq!(&bytes[..dir], b"070701");
    assert_eq!(&bytes[6..14], b"00000001", "inode numbers start at one");
    assert_eq!(
        &bytes[14..22],
        b"000041ED",
        "a parent is a directory of mode 0755"
    );
    assert_eq!(&bytes[46..54], b"00000000", "time is zero");
    let second = (HEADER + 4).next_multiple_of(4);
    assert_eq!(
        &bytes[second + 14..second + 22],
        b"00002180",
        "a character device of mode 0600"
    );
    assert_eq!(&bytes[second + 78..second + 94], b"0000000500000001");
    assert!(bytes.windows(TRAILER.len()).any(|w| w == TRAILER.as_bytes()));
}

#[test]
fn unsafe_paths_and_doubles_are_refused() {
    let mut archive = Archive::new();
    for bad in ["", "/etc", "a//b", "a/./b", "../a", "a/..", "a/", "a\0b", TRAILER] {
        assert!(
            matches!(archive.file(bad, 0o644, vec![]), Err(AddError::Path { .. })),
            "{bad:?}"
        );
    }
    archive.file("a", 0o644, vec![]).unwrap();
    assert!(matches!(
        archive.file("a", 0o644, vec![]),
        Err(AddError::Twice { .. })
    ));
    assert!(matches!(archive.dir("a", 0o755), Err(AddError::Twice { .. })));
    assert!(matches!(
        archive.file("a/b", 0o644, vec![]),
        Err(AddError::Parent { .. })
    ));
}

#[test]
fn contents_are_not_shown() {
    let mut archive = Archive::new();
    archive
        .file("muster/config.json", 0o600, b"token".to_vec())
        .unwrap();
    let shown = format!("{archive:?}");
    assert!(
        shown.contains("File(5 bytes)") && !shown.contains("token") && !shown.contains("116"),
        "{shown}"
    );
}

#[test]
fn archives_follow_each_other() {
    let one = |name: &str| Archive::new().file(name, 0o600, vec![7; 5]).unwrap().to_vec();
    let both = [aligned(one("first")), one("second")].concat();
    let (entries, end) = read(&both).unwrap();
    assert_eq!(entries[0].path, "first");
    let (entries, rest) = read(&both[end..]).unwrap();
    assert_eq!(entries[0].path, "second");
    assert_eq!(end + rest, both.len());
}

#[test]
fn a_cut_archive_is_an_error_at_every_length() {
    let whole = Archive::new()
        .file("dir/file", 0o644, b"content".to_vec())
        .unwrap()
        .to_vec();
    let trailer_padding = 1;
    for len in 0..whole.len() - trailer_padding {
        assert!(read(&whole[..len]).is_err(), "{len}");
    }
    assert!(read(&whole).is_ok());
}

fn entries() -> impl Strategy<Value = Vec<(String, u32, u8, Vec<u8>)>> {
    let one = (
        "[a-z]{1,3}(/[a-z]{1,3}){0,3}",
        0..0o7777u32,
        0..3u8,
        prop::collection::vec(any::<u8>(), 0..40),
    );
    prop::collection::vec(one, 0..12)
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(wanted in entries()) {
        let mut archive = Archive::new();
        for (path, permissions, kind, content) in &wanted {
            // Doubles and files as parents are refused; what was accepted must survive.
            let _ = match kind {
                0 => archive.dir(path, *permissions).err(),
                1 => archive.file(path, *permissions, content.clone()).err(),
                _ => archive.char_device(path, *permissions, 5, *permissions).err(),
            };
        }
        let bytes = archive.to_vec();
        prop_assert_eq!(bytes.len() as u64, archive.byte_len());
        prop_assert_eq!(bytes.len() % 4, 0);
        prop_assert_eq!(read(&bytes), Ok((archive.entries().to_vec(), bytes.len())));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes);
    }

    #[test]
    fn damaged_archives_never_panic(at in 0..300usize, value in any::<u8>()) {
        let mut bytes = Archive::new().file("dir/file", 0o644, vec![1; 50]).unwrap().to_vec();
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = read(&bytes);
    }
}
