use proptest::prelude::*;

use super::*;

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = AR_MAGIC.to_vec();
    for (name, content) in members {
        let size = content.len();
        out.extend(format!("{name:<16}{0:<12}{0:<6}{0:<6}{1:<8}{size:<10}`\n", 0, 100_644).bytes());
        out.extend(*content);
        out.extend(vec![b'\n'; size % 2]);
    }
    out
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

const FILES: &[(&str, &[u8])] = &[
    ("./boot/vmlinuz-6", b"kernel"),
    ("./usr/lib/modules/6/kernel/x.ko", b"module"),
    ("./usr/share/doc/x", b""),
];

fn check(package: &[u8]) {
    let found = read(package, |path| !path.starts_with("usr/share")).unwrap();
    assert_eq!(found.source, None);
    let found: Vec<_> = found
        .files
        .iter()
        .map(|(path, content)| (path.as_str(), content.as_slice()))
        .collect();
    assert_eq!(
        found,
        [
            ("boot/vmlinuz-6", b"kernel".as_slice()),
            ("lib/modules/6/kernel/x.ko", b"module".as_slice())
        ]
    );
}

#[test]
fn data_is_found_in_every_compression() {
    let tar = tar_of(FILES);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &tar).unwrap();
    // An odd member before it moves the data by one byte of padding.
    let before = ("debian-binary", b"2.0\n\n".as_slice());
    check(&ar(&[before, ("data.tar", &tar)]));
    check(&ar(&[before, ("data.tar.gz", &gz.finish().unwrap())]));
    check(&ar(&[
        before,
        ("data.tar.zst/", &zstd::encode_all(tar.as_slice(), 1).unwrap()),
    ]));
    // Made once with `xz`: the same tar, of one file.
    check_xz();
}

/// The encoder for xz is not compiled in, so this is a recorded archive of one file, `a` with `xz\n`.
fn check_xz() {
    let package = include_bytes!("testdata/one-file.tar.xz");
    let found = read(ar(&[("data.tar.xz", package)]).as_slice(), |_| true).unwrap();
    assert_eq!(
        found.files.into_iter().collect::<Vec<_>>(),
        [("a".to_owned(), b"xz\n".to_vec())]
    );
}

#[test]
fn a_package_says_which_it_is() {
    let control = tar_of(&[
        ("./md5sums", b"0  a\n"),
        (
            "./control",
            b"Package: linux-image-6\nSource: linux (6.1-1)\nVersion: 6.1.1-1\nDescription: a kernel\n Version: 9\n",
        ),
    ]);
    // A tar archive ends before its member does, and an odd member moves what follows.
    let control = [control, b"tail.".to_vec()].concat();
    let package = ar(&[("control.tar", &control), ("data.tar", &tar_of(FILES))]);
    let found = read(package.as_slice(), |_| true).unwrap();
    let source = found.source.map(|source| (source.name, source.version));
    assert_eq!(source, Some(("linux-image-6".to_owned(), "6.1.1-1".to_owned())));
    assert_eq!(found.files.len(), FILES.len());
    // Not every package says so; it is read all the same.
    let control = tar_of(&[("./control", b"Package: x\n")]);
    let package = ar(&[("control.tar", &control), ("data.tar", &tar_of(FILES))]);
    assert_eq!(read(package.as_slice(), |_| true).unwrap().source, None);
}

#[test]
fn errors_say_what_is_wrong() {
    assert!(matches!(
        read(b"PK\x03\x04....".as_slice(), |_| true),
        Err(DebError::Magic)
    ));
    assert!(matches!(
        read(b"!<arch>\njunk".as_slice(), |_| true),
        Err(DebError::Header { .. })
    ));
    let odd = ar(&[("debian-binary", b""), ("data.tar.lzma", b"")]);
    let error = read(odd.as_slice(), |_| true).unwrap_err();
    assert!(error.to_string().contains("data.tar.lzma"), "{error}");
    let cut = ar(&[(
        "data.tar.zst",
        &zstd::encode_all(tar_of(FILES).as_slice(), 1).unwrap()[..40],
    )]);
    assert!(matches!(
        read(cut.as_slice(), |_| true),
        Err(DebError::Unpack { .. })
    ));
}

proptest! {
    #[test]
    fn random_packages_never_panic(junk in prop::collection::vec(any::<u8>(), 0..300), packing in 0..4usize) {
        let name = ["data.tar", "data.tar.gz", "data.tar.xz", "data.tar.zst"][packing];
        let _ = read(ar(&[(name, &junk)]).as_slice(), |_| true);
        let _ = read([AR_MAGIC.as_slice(), &junk].concat().as_slice(), |_| true);
    }

    #[test]
    fn damaged_packages_never_panic(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut package = ar(&[("data.tar.zst", &zstd::encode_all(tar_of(FILES).as_slice(), 1).unwrap())]);
        let at = at.index(package.len());
        package[at] = value;
        let _ = read(package.as_slice(), |_| true);
    }
}
