use proptest::prelude::*;

use super::*;

fn content() -> Content {
    Content {
        profile: "lab".to_owned(),
        kernel_version: "6.1.0".to_owned(),
        vmlinuz: vec![1; 3000],
        initramfs: vec![2; 600_000],
        stub: b"MZ".to_vec(),
        packages: BTreeMap::from([("linux-image-6.1.0".to_owned(), "6.1.1-1".to_owned())]),
        agent: FileFacts::of(b"agent"),
        modules: 3,
        unpacked: 12_345,
        firmware: BTreeMap::from([("bnx2".to_owned(), vec!["bnx2/a.fw".to_owned()])]),
    }
}

fn written(content: &Content) -> (tempfile::TempDir, String) {
    let out = tempfile::tempdir().unwrap();
    let hash = write(out.path(), content).unwrap();
    (out, hash)
}

#[test]
fn what_is_written_opens_again() {
    let (out, hash) = written(&content());
    let release = Release::open(&out.path().join("lab")).unwrap();
    assert_eq!(release.hash, hash);
    assert_eq!((release.kernel_len, release.initramfs_len), (3000, 600_000));
    assert_eq!(fs::read(&release.kernel).unwrap(), content().vmlinuz);
    assert_eq!(fs::read(&release.initramfs).unwrap(), content().initramfs);
    assert_eq!(release.stub, b"MZ");
    assert_eq!(release.manifest.firmware, content().firmware);
}

#[test]
fn the_name_follows_from_the_content_and_nothing_else() {
    let (out, hash) = written(&content());
    assert_eq!(written(&content()).1, hash);
    assert_eq!(
        write(out.path(), &content()).unwrap(),
        hash,
        "a second time in the same place"
    );
    for change in [
        |c: &mut Content| c.vmlinuz[0] ^= 1,
        |c: &mut Content| c.initramfs[0] ^= 1,
        |c: &mut Content| c.stub[0] ^= 1,
        |c: &mut Content| c.kernel_version.push('x'),
    ] {
        let mut other = content();
        change(&mut other);
        assert_ne!(written(&other).1, hash);
    }
}

#[test]
fn an_older_release_stays_and_current_moves_on() {
    let (out, old) = written(&content());
    let new = write(
        out.path(),
        &Content {
            modules: 4,
            ..content()
        },
    )
    .unwrap();
    let dir = out.path().join("lab");
    assert_eq!(Release::open(&dir).unwrap().hash, new);
    assert_eq!(Release::open_named(&dir, &old).unwrap().manifest.modules, 3);
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names.len(), 3, "nothing else is left behind: {names:?}");
}

/// Writes the release that has so many modules.
fn another(out: &Path, modules: usize) -> String {
    let content = Content { modules, ..content() };
    write(out, &content).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_current_and_the_previous_release_stay_and_older_ones_go() {
    let (out, first) = written(&content());
    let dir = out.path().join("lab");
    let (second, third) = (another(out.path(), 4), another(out.path(), 5));
    for leftover in [format!(".{first}.77"), format!(".{second}.gone")] {
        fs::create_dir(dir.join(&leftover)).unwrap();
        fs::write(dir.join(leftover).join(VMLINUZ), "half").unwrap();
    }
    fs::write(dir.join(".current.77"), "half").unwrap();
    fs::write(dir.join("notes"), "of somebody").unwrap();
    let later = SystemTime::now() + STAYS + Duration::from_secs(60);
    let mut removed = prune(&dir, later).unwrap();
    removed.sort();
    let mut expected = [
        ".current.77".to_owned(),
        format!(".{first}.77"),
        format!(".{second}.gone"),
        first,
    ];
    expected.sort();
    assert_eq!(removed, expected);
    let mut left = [second, third.clone(), CURRENT.to_owned(), "notes".to_owned()];
    left.sort();
    assert_eq!(names(&dir), left);
    assert_eq!(Release::open(&dir).unwrap().hash, third);
    assert!(prune(&dir, later).unwrap().is_empty());
}

#[test]
fn a_release_that_machines_may_still_be_booting_stays_however_old_it_is() {
    let (out, first) = written(&content());
    let dir = out.path().join("lab");
    let long_ago = SystemTime::now() - Duration::from_secs(90 * 86_400);
    let handle = File::open(dir.join(&first)).unwrap();
    handle.set_modified(long_ago).unwrap();
    // It was served for months; then two builds came within a moment.
    let (second, third) = (another(out.path(), 4), another(out.path(), 5));
    assert!(prune(&dir, SystemTime::now()).unwrap().is_empty());
    for name in [&first, &second, &third] {
        assert!(Release::open_named(&dir, name).is_ok(), "{name}");
    }
    // Back to the first: then the third is the one before.
    assert_eq!(another(out.path(), 3), first);
    let later = SystemTime::now() + STAYS + Duration::from_secs(60);
    assert_eq!(prune(&dir, later).unwrap(), [second]);
}

#[test]
fn any_damaged_file_is_named() {
    for name in [VMLINUZ, INITRAMFS, STUB, MANIFEST] {
        let (out, hash) = written(&content());
        let dir = out.path().join("lab");
        let path = dir.join(&hash).join(name);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damaged in [&flipped[..], &whole[..whole.len() - 1], &[]] {
            fs::write(&path, damaged).unwrap();
            let error = Release::open(&dir).unwrap_err();
            assert!(
                matches!(&error, ReleaseError::Damaged { path: found, .. } if *found == path),
                "{error}"
            );
        }
        fs::remove_file(&path).unwrap();
        let error = Release::open(&dir).unwrap_err();
        assert!(
            matches!(&error, ReleaseError::Read { path: found, .. } if *found == path),
            "{error}"
        );
        assert_eq!(
            write(out.path(), &content()).unwrap(),
            hash,
            "building again repairs it"
        );
        assert_eq!(Release::open(&dir).unwrap().hash, hash);
    }
}

#[test]
fn current_must_name_a_release_and_cannot_leave_the_directory() {
    let (out, _) = written(&content());
    let dir = out.path().join("lab");
    for bad in [
        "",
        "../../etc",
        "0123456789abcdeX",
        "0123456789abcdef0",
        "\u{fffd}",
    ] {
        fs::write(dir.join(CURRENT), bad).unwrap();
        assert!(
            matches!(Release::open(&dir), Err(ReleaseError::Name { .. })),
            "{bad:?}"
        );
    }
    fs::write(dir.join(CURRENT), "0123456789abcdef\n").unwrap();
    assert!(matches!(Release::open(&dir), Err(ReleaseError::Read { .. })));
    assert!(matches!(
        Release::open(out.path()),
        Err(ReleaseError::Read { .. })
    ));
}

/// A manifest that belongs to its directory's name, so that only its content can be wrong.
fn with_manifest(manifest: &[u8]) -> Result<Release, ReleaseError> {
    let out = tempfile::tempdir().unwrap();
    let hash = name_of(manifest);
    fs::create_dir(out.path().join(&hash)).unwrap();
    fs::write(out.path().join(&hash).join(MANIFEST), manifest).unwrap();
    Release::open_named(out.path(), &hash)
}

#[test]
fn a_manifest_of_another_shape_is_refused() {
    assert!(matches!(with_manifest(b"{}"), Err(ReleaseError::Manifest { .. })));
    let (out, hash) = written(&content());
    let text = fs::read_to_string(out.path().join("lab").join(hash).join(MANIFEST)).unwrap();
    let newer = text.replace("\"format\": 1", "\"format\": 2");
    assert!(matches!(
        with_manifest(newer.as_bytes()),
        Err(ReleaseError::Format { found: 2, .. })
    ));
    let unlisted = text.replace("\"vmlinuz\"", "\"vmlinux\"");
    assert!(matches!(
        with_manifest(unlisted.as_bytes()),
        Err(ReleaseError::Unlisted { name: VMLINUZ, .. })
    ));
}

proptest! {
    #[test]
    fn random_manifests_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(with_manifest(&bytes).is_err());
    }
}
