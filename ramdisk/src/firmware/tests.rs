use super::*;
use crate::cpio::{Entry, Node};

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

fn table(names: &[&str]) -> BTreeMap<String, Vec<String>> {
    BTreeMap::from([(
        "card".to_owned(),
        names.iter().map(|&name| name.to_owned()).collect(),
    )])
}

/// Path and content of each file that was packed, and the names that were not found.
fn packed(folders: &[&tempfile::TempDir], names: &[&str]) -> (Vec<(String, Vec<u8>)>, Vec<String>) {
    let folders: Vec<_> = folders.iter().map(|dir| dir.path().to_owned()).collect();
    let mut archive = Archive::new();
    let missing = add_firmware(&mut archive, &folders, &table(names)).unwrap();
    let file = |entry: &Entry| match &entry.node {
        Node::File(content) => Some((entry.path.clone(), content.clone())),
        _ => None,
    };
    let files = archive.entries().iter().filter_map(file).collect();
    assert!(missing.iter().all(|missing| missing.module == "card"));
    (files, missing.into_iter().map(|missing| missing.name).collect())
}

#[test]
fn exactly_the_named_files_are_packed_and_the_rest_is_missing() {
    let dir = folder(&[("card/a.bin", b"a"), ("card/other.bin", b"o"), ("unused", b"u")]);
    let (files, missing) = packed(&[&dir], &["card/a.bin", "card/gone.bin"]);
    assert_eq!(files, [("lib/firmware/card/a.bin".to_owned(), b"a".to_vec())]);
    assert_eq!(missing, ["card/gone.bin"]);
}

#[test]
fn patterns_take_all_that_match_within_a_directory() {
    let dir = folder(&[
        ("card/a-1.bin", b"1"),
        ("card/a-2.bin", b"2"),
        ("card/b.bin", b""),
        ("card/x/a-3.bin", b"3"),
    ]);
    let (files, missing) = packed(&[&dir], &["card/a-*.bin", "ca?d/c*"]);
    let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["lib/firmware/card/a-1.bin", "lib/firmware/card/a-2.bin"]);
    assert_eq!(missing, ["ca?d/c*"]);
}

#[test]
fn compressed_files_are_unpacked_under_their_plain_name() {
    let packed_file = zstd::encode_all(b"plain".as_slice(), 1).unwrap();
    let dir = folder(&[("card/a.bin.zst", &packed_file), ("card/raw.gz", b"not gzip")]);
    let plain = ("lib/firmware/card/a.bin".to_owned(), b"plain".to_vec());
    assert_eq!(packed(&[&dir], &["card/a.bin"]).0, vec![plain.clone()]);
    assert_eq!(packed(&[&dir], &["card/a*.bin"]).0, [plain]);
    let asked_for_by_that_name = packed(&[&dir], &["card/raw.gz"]).0;
    assert_eq!(asked_for_by_that_name[0].1, b"not gzip");
}

#[test]
fn the_first_folder_wins() {
    let (first, second) = (folder(&[("a", b"1")]), folder(&[("a", b"2"), ("b", b"2")]));
    let (files, missing) = packed(&[&first, &second], &["a", "b"]);
    let contents: Vec<_> = files.iter().map(|(_, content)| content.as_slice()).collect();
    assert_eq!(contents, [b"1", b"2"]);
    assert!(missing.is_empty());
}

#[test]
fn no_name_leads_out_of_the_folder() {
    let dir = folder(&[("inside/a", b"a"), ("secret", b"s")]);
    let inside = dir.path().join("inside");
    let mut archive = Archive::new();
    let names = table(&["../secret", "/etc/passwd", "x/../../secret", "./a", ""]);
    let missing = add_firmware(&mut archive, &[inside], &names).unwrap();
    assert_eq!((missing.len(), archive.entries().len()), (5, 0));
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let error = add_firmware(&mut Archive::new(), &["/nonexistent".into()], &table(&["a"])).unwrap_err();
    assert!(matches!(error, FirmwareError::List { .. }), "{error}");
}

#[test]
fn only_certificates_pass_as_authorities() {
    let dir = folder(&[
        ("site.pem", b"x\n-----BEGIN CERTIFICATE-----\n"),
        ("key.pem", b"-----BEGIN PRIVATE KEY-----"),
    ]);
    let mut archive = Archive::new();
    add_authority(&mut archive, 0, &dir.path().join("site.pem")).unwrap();
    assert_eq!(archive.entries().last().unwrap().path, "muster/ca/0-site.pem");
    let error = add_authority(&mut archive, 0, &dir.path().join("key.pem")).unwrap_err();
    assert!(matches!(error, FirmwareError::NoCertificate { .. }), "{error}");
}
