use std::os::unix::fs::FileExt;

use muster_proto::config;
use muster_ramdisk::{
    cpio,
    release::{Content, FileFacts},
};

use super::*;
use crate::log::said::Said;

/// The smallest program that passes for a UEFI stub: headers of 1 KiB and one section.
pub(crate) fn stub() -> Vec<u8> {
    const COFF: usize = 0x84;
    const OPTIONAL: usize = COFF + 20;
    const TABLE: usize = OPTIONAL + 240;
    let mut out = vec![0; 0x600];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x80_u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    put(COFF, &0x8664_u16.to_le_bytes());
    put(COFF + 2, &1_u16.to_le_bytes());
    put(COFF + 16, &240_u16.to_le_bytes());
    put(OPTIONAL, &0x20b_u16.to_le_bytes());
    put(OPTIONAL + 32, &0x1000_u32.to_le_bytes());
    put(OPTIONAL + 36, &0x200_u32.to_le_bytes());
    put(OPTIONAL + 60, &0x400_u32.to_le_bytes());
    put(OPTIONAL + 68, &10_u16.to_le_bytes());
    put(OPTIONAL + 108, &16_u32.to_le_bytes());
    put(TABLE, b".text\0\0\0");
    for (nth, value) in [0x1f0_u32, 0x5000, 0x200, 0x400].into_iter().enumerate() {
        put(TABLE + 8 + nth * 4, &value.to_le_bytes());
    }
    out
}

/// Writes a release whose files begin with `mark`, makes it the current one, and gives its name.
pub(crate) fn write(directory: &Path, profile: Profile, mark: &str) -> String {
    let bytes = |what: &str, len: usize| {
        let seed = format!("{mark} {what} ");
        seed.bytes().cycle().take(len).collect::<Vec<u8>>()
    };
    let content = Content {
        profile: profile.name().into(),
        kernel_version: "6.1.0-test".into(),
        packages: BTreeMap::new(),
        vmlinuz: bytes("kernel", 300_001),
        initramfs: bytes("initramfs", 200_003),
        stub: stub(),
        agent: FileFacts {
            size: 0,
            sha256: String::new(),
        },
        modules: 1,
        unpacked: 1,
        firmware: BTreeMap::from([("bnx2".into(), vec!["bnx2/a.fw".into(), "bnx2/missing.fw".into()])]),
    };
    release::write(directory, &content).unwrap()
}

/// Looks at the disk, however recently that was done.
fn look(files: &Files) {
    files.reload();
    files.look();
}

fn read(open: &Open) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(open.len()).unwrap()];
    open.file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn open(directory: &Path, extras: Extras) -> Files {
    Files::open(directory, extras, &std::env::temp_dir())
}

fn name(text: &str) -> ReleaseName {
    text.parse().unwrap()
}

#[test]
fn the_former_release_is_served_beside_the_current_one() {
    let directory = tempfile::tempdir().unwrap();
    let old = write(directory.path(), Profile::Lab, "old");
    let files = open(directory.path(), Extras::default());
    assert_eq!(files.current(Profile::Lab).unwrap().name, old);
    assert!(files.current(Profile::Server).is_none());
    let new = write(directory.path(), Profile::Lab, "new");
    look(&files);
    assert_eq!(files.current(Profile::Lab).unwrap().name, new);
    assert!(read(&files.release(&name(&old)).unwrap().kernel).starts_with(b"old kernel"));
    assert!(read(&files.release(&name(&new)).unwrap().initramfs).starts_with(b"new initramfs"));

    // A controller that starts now still finds both.
    let files = open(directory.path(), Extras::default());
    assert!(files.release(&name(&old)).is_some());
    // One that is removed is gone for new requests, but whole for who has it open.
    let held = files.release(&name(&old)).unwrap();
    std::fs::remove_dir_all(directory.path().join("lab").join(&old)).unwrap();
    look(&files);
    assert!(files.release(&name(&old)).is_none());
    assert!(read(&held.kernel).starts_with(b"old kernel"));
}

#[test]
fn a_ramdisk_that_comes_later_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let files = open(&directory.path().join("not yet"), Extras::default());
    assert!(files.current(Profile::Server).is_none());
    let written = write(&directory.path().join("not yet"), Profile::Server, "first");
    look(&files);
    assert_eq!(files.current(Profile::Server).unwrap().name, written);
}

#[test]
fn a_damaged_release_never_takes_the_place_of_a_whole_one() {
    let directory = tempfile::tempdir().unwrap();
    let old = write(directory.path(), Profile::Lab, "old");
    let files = open(directory.path(), Extras::default());
    let new = write(directory.path(), Profile::Lab, "new");
    let path = directory.path().join("lab").join(&new).join("initramfs");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    look(&files);
    assert_eq!(files.current(Profile::Lab).unwrap().name, old);
    assert!(files.release(&name(&new)).is_none());
    std::fs::write(directory.path().join("lab/current"), "../../etc").unwrap();
    look(&files);
    assert_eq!(files.current(Profile::Lab).unwrap().name, old);
}

#[test]
fn firmware_that_the_modules_name_goes_along_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("firmware");
    std::fs::create_dir_all(folder.join("bnx2")).unwrap();
    std::fs::write(folder.join("bnx2/a.fw"), b"needed").unwrap();
    std::fs::write(folder.join("bnx2/b.fw"), b"not needed").unwrap();
    write(directory.path(), Profile::Lab, "x");
    let scratch = tempfile::tempdir().unwrap();
    let extras = Extras {
        firmware: vec![folder],
        authorities: Vec::new(),
    };
    let files = Files::open(directory.path(), extras, scratch.path());
    let ramdisk = files.current(Profile::Lab).unwrap();
    let bytes = read(ramdisk.extras.as_ref().unwrap());
    let (entries, len) = cpio::read(&bytes).unwrap();
    assert_eq!((len, len % 4), (bytes.len(), 0));
    let names: Vec<&str> = entries
        .iter()
        .map(|entry| entry.path.as_str())
        .filter(|path| path.contains(".fw"))
        .collect();
    assert_eq!(names, ["lib/firmware/bnx2/a.fw"]);
    let left = std::fs::read_dir(scratch.path()).unwrap().count();
    assert_eq!(left, 0, "nothing is left behind when the controller is killed");
}

#[test]
fn authorities_of_the_site_go_along_where_the_agent_looks_for_them() {
    let (directory, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(directory.path(), Profile::Lab, "x");
    let authority = |folder: &str, mark: &str| {
        let path = directory.path().join(folder);
        std::fs::create_dir(&path).unwrap();
        let pem = format!("-----BEGIN CERTIFICATE-----\n{mark}\n-----END CERTIFICATE-----\n");
        std::fs::write(path.join("ca.pem"), &pem).unwrap();
        (path.join("ca.pem"), pem.into_bytes())
    };
    // Two of one name are two.
    let (paths, contents): (Vec<_>, Vec<_>) = [authority("a", "QQ=="), authority("b", "Qg==")]
        .into_iter()
        .unzip();
    let extras = Extras {
        firmware: Vec::new(),
        authorities: paths,
    };
    let files = Files::open(directory.path(), extras, scratch.path());
    let bytes = read(files.current(Profile::Lab).unwrap().extras.as_ref().unwrap());
    let (entries, _) = cpio::read(&bytes).unwrap();
    let below = format!("{}/", config::AUTHORITIES);
    let found: Vec<_> = entries
        .into_iter()
        .filter(|entry| entry.path.starts_with(&below))
        .filter_map(|entry| match entry.node {
            cpio::Node::File(content) => Some(content),
            _ => None,
        })
        .collect();
    assert_eq!(found, contents);
}

/// What is logged while `act` runs.
fn said(act: impl FnOnce()) -> String {
    let said = Said::listen();
    act();
    said.text()
}

#[test]
fn a_directory_of_ramdisks_that_is_not_there_is_told_at_once() {
    let said = said(|| drop(open(Path::new("/nonexistent/ramdisks"), Extras::default())));
    assert!(
        said.contains("ERROR") && said.contains("--boot-dir") && said.contains("/nonexistent/ramdisks"),
        "{said}"
    );
    let directory = tempfile::tempdir().unwrap();
    let said = self::said(|| drop(open(directory.path(), Extras::default())));
    assert!(!said.contains("ERROR"), "it may be filled later: {said}");
}

#[test]
fn what_a_ramdisk_goes_without_is_told_in_words_that_nobody_takes_for_success() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), Profile::Lab, "x");
    let extras = Extras {
        firmware: Vec::new(),
        authorities: vec!["/nonexistent".into()],
    };
    let said = said(|| drop(open(directory.path(), extras)));
    assert!(said.contains("or --extra-ca error="), "{said}");
    let firmware = tempfile::tempdir().unwrap();
    let extras = Extras {
        firmware: vec![firmware.path().to_owned()],
        authorities: Vec::new(),
    };
    let said = self::said(|| drop(Files::open(directory.path(), extras, Path::new("/dev/full"))));
    assert!(
        said.contains("without anything from --firmware-dir and --extra-ca error="),
        "{said}"
    );
}

#[test]
fn a_ramdisk_is_served_even_if_its_firmware_cannot_be_kept() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), Profile::Lab, "x");
    let firmware = tempfile::tempdir().unwrap();
    let extras = Extras {
        firmware: vec![firmware.path().to_owned()],
        authorities: Vec::new(),
    };
    // /dev/full stands for the full disk: nothing can be made below it.
    let files = Files::open(directory.path(), extras, Path::new("/dev/full"));
    assert!(files.current(Profile::Lab).unwrap().extras.is_none());
}

#[test]
fn what_cannot_be_read_of_firmware_and_authorities_keeps_nothing_else_out() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), Profile::Lab, "x");
    let firmware = directory.path().join("firmware");
    std::fs::create_dir_all(firmware.join("bnx2")).unwrap();
    std::fs::write(firmware.join("bnx2/a.fw"), b"blob").unwrap();
    let good = directory.path().join("ca.pem");
    std::fs::write(
        &good,
        "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let authorities = vec!["/nonexistent".into(), empty, good];
    for (firmware, found) in [(firmware, true), ("/nonexistent".into(), false)] {
        let extras = Extras {
            firmware: vec![firmware],
            authorities: authorities.clone(),
        };
        let files = open(directory.path(), extras);
        let bytes = read(files.current(Profile::Lab).unwrap().extras.as_ref().unwrap());
        let (entries, _) = cpio::read(&bytes).unwrap();
        let has = |path: &str| entries.iter().any(|entry| entry.path == path);
        assert_eq!(has("lib/firmware/bnx2/a.fw"), found);
        assert!(has(&format!("{}/2-ca.pem", config::AUTHORITIES)));
    }
}

#[test]
fn what_a_killed_controller_left_stands_in_nobodys_way() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), Profile::Lab, "x");
    let (firmware, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(firmware.path().join("bnx2")).unwrap();
    std::fs::write(firmware.path().join("bnx2/a.fw"), b"blob").unwrap();
    // In a container every controller has the same process id.
    for number in 0..1000 {
        let name = format!("muster-extras-{}-{number}", std::process::id());
        std::fs::write(scratch.path().join(name), b"").unwrap();
    }
    let extras = Extras {
        firmware: vec![firmware.path().to_owned()],
        authorities: Vec::new(),
    };
    let files = Files::open(directory.path(), extras, scratch.path());
    assert!(files.current(Profile::Lab).unwrap().extras.is_some());
}
