use std::{
    io::Write as _,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use flate2::{Compression, write::GzEncoder};
use hyper::body::Bytes;
use muster_proto::{
    job::{ConfigDrive, DigestAlgorithm},
    seal::{Bound, SealKey, seal},
};
use nix::errno::Errno;
use proptest::prelude::*;
use ring::digest;
use serde_json::json;

use super::*;
use crate::{
    disk::{
        fat::tests::{Made, make},
        gpt::{Gpt, Guid, tests as gpt_tests},
        sim::SimDisk,
    },
    image::iso9660::tests::files,
    steps::{DriveError, OpenDrive, SealedDrive},
    sys::tree::Tree,
};

const MIB: usize = 1 << 20;
const BLOCK: u32 = 512;

/// An image of 8 MiB: an EFI system partition with a loader, data, and nothing in between.
fn image(block: u32) -> Vec<u8> {
    image_with(block, "root")
}

/// The same, whose second partition has this name.
fn image_with(block: u32, name: &str) -> Vec<u8> {
    let len = u64::from(block);
    let blocks = |mib: u64| mib * MIB as u64 / len;
    let parts = [
        (blocks(1), blocks(4) - 1, Guid::ESP, "EFI"),
        (blocks(5), blocks(7) - 1, Guid::LINUX, name),
    ];
    let mut image = gpt_tests::disk(blocks(8), block, &parts);
    image[..440].fill(0x90);
    let boot = Made::Directory(vec![("BOOTX64.EFI", Made::File(b"MZ".to_vec()))]);
    let system = make(5000, 512, vec![("EFI", Made::Directory(vec![("BOOT", boot)]))]);
    image[MIB..MIB + system.len()].copy_from_slice(&system);
    for (at, byte) in image[5 * MIB..6 * MIB + 1000].iter_mut().enumerate() {
        *byte = (at * 7 + at / 251).to_le_bytes()[0] | 1;
    }
    image
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// Says how long it is.
fn zstd_with_size(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn sha256(bytes: &[u8]) -> Wanted {
    let digest = digest::digest(&digest::SHA256, bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Wanted::parse(&hex, DigestAlgorithm::Auto).unwrap()
}

fn bios() -> Tree {
    Tree::new()
}

fn uefi() -> Tree {
    Tree::new().directory("sys/firmware/efi/efivars")
}

/// One write.
struct Trial {
    packed: Vec<u8>,
    wanted: Wanted,
    tree: Tree,
    config: Option<Box<dyn Contents>>,
    work: Work,
}

impl Trial {
    fn of(packed: Vec<u8>) -> Trial {
        Trial {
            wanted: sha256(&packed),
            packed,
            tree: bios(),
            config: None,
            work: Work::unwatched(),
        }
    }

    /// Writes to `disk`, and says what is on it then.
    fn write(&self, disk: &mut SimDisk) -> (Result<Written, Failure>, After) {
        let writing = Writing {
            wanted: self.wanted.clone(),
            config_drive: self.config.as_deref(),
            root: &self.tree.root(),
            work: &self.work,
        };
        let mut after = After::Untouched;
        let fetch = |sink: &mut dyn Sink| {
            sink.expect(Some(self.packed.len() as u64));
            let mut at = 0;
            for chunk in self.packed.chunks(100_000) {
                if !sink.take(Bytes::copy_from_slice(chunk)) {
                    break;
                }
                at += chunk.len() as u64;
            }
            Ok(at)
        };
        (writing.write(disk, fetch, &mut after), after)
    }

    /// The error of a write that fails, after which the disk is as `expected` says and does not boot the image.
    fn fails(&self, disk: &mut SimDisk, expected: After) -> Failure {
        let old = disk.bytes.clone();
        let (result, after) = self.write(disk);
        assert_eq!(after, expected, "{result:?}");
        match after {
            After::Untouched => assert!(disk.bytes == old && disk.changes == 0, "it was touched"),
            _ => assert!(is_unbootable(&disk.bytes), "it boots"),
        }
        result.unwrap_err()
    }
}

fn is_unbootable(bytes: &[u8]) -> bool {
    is_zero(&bytes[..4096]) && is_zero(&bytes[bytes.len() - 4096..])
}

fn old_disk(block: u32) -> SimDisk {
    SimDisk::new(10 * MIB, block, 0xee)
}

#[test]
fn an_image_is_written_however_it_is_packed_and_its_table_fitted() {
    for block in [512, 4096] {
        let image = image(block);
        for packed in [image.clone(), zstd(&image), zstd_with_size(&image), gzip(&image)] {
            let mut disk = old_disk(block);
            let (written, _) = Trial::of(packed.clone()).write(&mut disk);
            let written = written.unwrap();
            assert_eq!(
                (written.image, written.transferred),
                (8 * MIB as u64, packed.len() as u64)
            );
            assert_eq!(written.digest, sha256(&packed).to_string());
            assert_eq!(written.warnings, [""; 0]);
            assert!(disk.bytes[MIB..7 * MIB] == image[MIB..7 * MIB], "also zeros");
            assert_eq!(disk.bytes[..440], image[..440]);
            let end = disk.bytes.len() as u64 / u64::from(block) - 1;
            let backup = gpt_tests::backup_of(&disk.bytes, block).unwrap();
            let primary = Gpt::primary(&disk.bytes, block).unwrap();
            assert!(backup.partitions().eq(primary.partitions()));
            let alternate = &disk.bytes[usize::try_from(block).unwrap() + 32..][..8];
            assert_eq!(alternate, end.to_le_bytes());
            assert_eq!(disk.rereads, 1);
        }
    }
}

#[test]
fn an_image_as_large_as_the_disk_fits() {
    let mut disk = SimDisk::new(8 * MIB, BLOCK, 0xee);
    let image = image(BLOCK);
    Trial::of(image.clone()).write(&mut disk).0.unwrap();
    assert!(disk.bytes == image, "nothing of it had to change");
}

#[test]
fn an_image_that_ends_within_a_block_is_filled_up() {
    let mut image = image(BLOCK);
    image.truncate(7 * MIB + 100);
    let mut disk = old_disk(BLOCK);
    Trial::of(gzip(&image)).write(&mut disk).0.unwrap();
    assert!(disk.bytes[MIB..7 * MIB] == image[MIB..7 * MIB]);
}

#[test]
fn nothing_of_what_a_whole_disk_was_part_of_is_found_at_its_end() {
    // Of an array with metadata 0.90 (`include/uapi/linux/raid/md_p.h`, `MD_NEW_SIZE_SECTORS`), and the last label of a ZFS pool.
    let signatures = |len: usize| [(len & !0xffff) - 0x10000, len - 0x40000];
    for (mib, wanted) in [(16, None), (16, Some(sha256(b"another"))), (9, None)] {
        let mut trial = Trial::of(image(BLOCK));
        trial.wanted = wanted.unwrap_or(trial.wanted);
        let mut disk = SimDisk::new(mib * MIB + 0x3000, BLOCK, 0xee);
        _ = trial.write(&mut disk);
        for at in signatures(disk.bytes.len()) {
            assert!(is_zero(&disk.bytes[at..at + 4096]), "{mib} MiB, byte {at}");
        }
    }
}

#[test]
fn a_config_drive_is_added_at_the_end() {
    let mut trial = Trial::of(zstd(&image(BLOCK)));
    trial.config = Some(Box::new(ConfigDrive {
        meta_data: json!({"uuid": "x"}).as_object().unwrap().clone(),
        user_data: Some(b"#cloud-config".to_vec()),
        network_data: None,
    }));
    let mut disk = old_disk(BLOCK);
    trial.write(&mut disk).0.unwrap();
    let gpt = Gpt::primary(&disk.bytes, BLOCK).unwrap();
    let part = gpt.partitions().last().unwrap();
    assert_eq!((part.name.as_str(), part.number), ("config-2", 3));
    let at = usize::try_from(part.first).unwrap() * 512;
    assert_eq!(
        files(&disk.bytes[at..])["/openstack/latest/user_data"],
        b"#cloud-config"
    );

    // Written again, with what is there now as the image: its partition is used.
    let mut again = Trial::of(disk.bytes.clone());
    again.config = Some(Box::new(ConfigDrive {
        user_data: Some(b"other".to_vec()),
        ..ConfigDrive::default()
    }));
    again.write(&mut disk).0.unwrap();
    assert_eq!(files(&disk.bytes[at..])["/openstack/latest/user_data"], b"other");
    assert_eq!(Gpt::primary(&disk.bytes, BLOCK).unwrap().partitions().count(), 3);
}

/// Counts how often its secret was opened.
struct Counted(Arc<AtomicUsize>);

impl Contents for Counted {
    fn contents(&self) -> Result<OpenDrive, DriveError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        ConfigDrive::default().contents()
    }
}

#[test]
fn a_config_drive_is_opened_once_the_image_is_verified_and_no_sooner() {
    for verified in [false, true] {
        let opened = Arc::new(AtomicUsize::new(0));
        let mut trial = Trial::of(zstd(&image(BLOCK)));
        trial.config = Some(Box::new(Counted(Arc::clone(&opened))));
        if verified {
            trial.write(&mut old_disk(BLOCK)).0.unwrap();
        } else {
            trial.wanted = sha256(b"another");
            trial.fails(&mut old_disk(BLOCK), After::Unbootable);
        }
        assert_eq!(opened.load(Ordering::SeqCst), usize::from(verified));
    }
}

#[test]
fn a_config_drive_that_does_not_open_leaves_a_disk_that_does_not_boot() {
    let key = Arc::new(SealKey::generate());
    let bound = Bound {
        job: "op-1",
        epoch: 1,
        session: "s",
    };
    let sealed = seal(&key.public(), &bound, b"{}").unwrap();
    let drive = SealedDrive::new(key, "s".to_owned(), "op-2", 1, sealed).unwrap();
    let mut trial = Trial::of(image(BLOCK));
    trial.config = Some(Box::new(drive));
    let refused = trial.fails(&mut old_disk(BLOCK), After::Unbootable);
    assert!(matches!(refused, Failure::Drive { .. }), "{refused}");
}

#[test]
fn nothing_is_left_of_a_config_drive_that_could_be_written_in_part_only() {
    const CANARY: &[u8] = b"canary-4b1d";
    let found = |disk: &SimDisk| disk.bytes.windows(CANARY.len()).position(|bytes| bytes == CANARY);
    let mut trial = Trial::of(zstd(&image_with(BLOCK, "config-2")));
    trial.config = Some(Box::new(ConfigDrive {
        user_data: Some([CANARY, &[b'x'; 64 << 10]].concat()),
        ..ConfigDrive::default()
    }));
    let mut disk = old_disk(BLOCK);
    trial.write(&mut disk).0.unwrap();
    let at = found(&disk).expect("user data");

    for (bad, what) in [
        (at as u64 + (32 << 10), "write the config drive"),
        (0, "make it bootable"),
        (disk.bytes.len() as u64 - 1, "make it bootable"),
    ] {
        let mut told = 0;
        for bad_after in 0..disk.changes {
            let mut disk = old_disk(BLOCK);
            disk.bad = Some((bad, Errno::EIO));
            disk.bad_after = bad_after;
            if let (Err(failed), _) = trial.write(&mut disk) {
                told += usize::from(failed.to_string().contains(what));
                assert_eq!(found(&disk), None, "{bad_after}: {failed}");
            }
        }
        assert!(told > 0, "{what}");
    }
}

#[test]
fn a_disk_that_fails_for_a_moment_while_it_is_made_bootable_is_unbootable_again() {
    let whole = {
        let mut disk = old_disk(BLOCK);
        Trial::of(image(BLOCK)).write(&mut disk).0.unwrap();
        disk
    };
    let mut told = 0;
    for bad_after in 0..whole.changes {
        let mut disk = old_disk(BLOCK);
        disk.bad = Some((1 << 19, Errno::EIO));
        (disk.bad_after, disk.bad_once) = (bad_after, true);
        if let (Err(failed), after) = Trial::of(image(BLOCK)).write(&mut disk)
            && failed.to_string().contains("make it bootable")
        {
            told += 1;
            assert_eq!(after, After::Unbootable);
            assert!(is_unbootable(&disk.bytes), "{bad_after}: {failed}");
        }
    }
    assert!(told > 0);
}

#[test]
fn a_config_drive_without_room_or_on_blocks_that_are_too_large_is_refused() {
    let config = || Some(Box::new(ConfigDrive::default()) as Box<dyn Contents>);
    let mut trial = Trial::of(image(4096));
    trial.config = config();
    let refused = trial.fails(&mut old_disk(8192), After::Untouched);
    assert!(matches!(refused, Failure::ConfigDrive { .. }), "{refused}");
    let mut trial = Trial::of(image(BLOCK));
    trial.config = config();
    let mut tight = SimDisk::new(7 * MIB + 64 * 1024, BLOCK, 0xee);
    let mut cut = image(BLOCK);
    cut.truncate(7 * MIB);
    trial.packed = zstd(&cut);
    trial.wanted = sha256(&trial.packed);
    let refused = trial.fails(&mut tight, After::Unbootable);
    assert!(matches!(refused, Failure::Layout { .. }), "{refused}");
}

#[test]
fn what_is_no_disk_image_leaves_the_disk_as_it_was() {
    let qcow2 = [b"QFI\xfb".to_vec(), vec![0; MIB]].concat();
    for packed in [
        qcow2.clone(),
        zstd(&qcow2),
        gzip(&qcow2),
        b"<!DOCTYPE html>".to_vec(),
        vec![0; 2 * MIB],
        Vec::new(),
    ] {
        let refused = Trial::of(packed).fails(&mut old_disk(BLOCK), After::Untouched);
        assert!(matches!(refused, Failure::Format { .. }), "{refused}");
    }
    let refused = Trial::of(image(512)).fails(&mut old_disk(4096), After::Untouched);
    assert!(matches!(refused, Failure::Layout { .. }), "{refused}");
    let refused = Trial::of(image(BLOCK)).fails(&mut SimDisk::new(6 * MIB, BLOCK, 1), After::Untouched);
    assert!(matches!(refused, Failure::TooLarge { .. }), "{refused}");
    let refused = Trial::of(image(BLOCK)).fails(&mut SimDisk::new(MIB, BLOCK, 1), After::Untouched);
    assert!(matches!(refused, Failure::SmallDisk { .. }), "{refused}");
}

#[test]
fn an_image_that_is_not_what_was_meant_never_boots() {
    for packed in [image(BLOCK), zstd(&image(BLOCK))] {
        let mut trial = Trial::of(packed);
        trial.wanted = sha256(b"another");
        let refused = trial.fails(&mut old_disk(BLOCK), After::Unbootable);
        assert!(matches!(refused, Failure::Mismatch { .. }), "{refused}");
    }
}

#[test]
fn a_stream_that_is_cut_off_or_goes_on_with_garbage_is_refused() {
    let image = image(BLOCK);
    for packed in [zstd(&image), gzip(&image)] {
        let cut = packed[..packed.len() - 3].to_vec();
        let garbage = [packed.clone(), b"garbage!garbage!garbage!".to_vec()].concat();
        for broken in [cut, garbage] {
            let refused = Trial::of(broken).fails(&mut old_disk(BLOCK), After::Unbootable);
            assert!(matches!(refused, Failure::Decode { .. }), "{refused}");
        }
    }
    // A file that was cut off before anyone took its digest.
    let refused = Trial::of(image[..6 * MIB].to_vec()).fails(&mut old_disk(BLOCK), After::Unbootable);
    assert!(matches!(refused, Failure::Layout { .. }), "{refused}");
}

#[test]
fn several_frames_and_members_are_one_image() {
    let image = image(BLOCK);
    let (first, second) = image.split_at(3 * MIB + 17);
    for packed in [
        [zstd(first), zstd(second)].concat(),
        [gzip(first), gzip(second)].concat(),
    ] {
        let mut disk = old_disk(BLOCK);
        Trial::of(packed).write(&mut disk).0.unwrap();
        assert!(disk.bytes[MIB..7 * MIB] == image[MIB..7 * MIB]);
    }
}

#[test]
fn a_stream_that_goes_on_without_content_is_given_up() {
    // A frame to be skipped (RFC 8878, 3.1.2), and a member with nothing but a field of its own (RFC 1952, 2.3.1.1).
    let skipped = [&b"\x50\x2a\x4d\x18\xf8\xff\x01\x00"[..], &[0; 0x1fff8]].concat();
    let member = [
        &b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\xff\xff"[..],
        &[0; 0xffff],
        b"\x03\0",
        &[0; 8],
    ]
    .concat();
    let image = image(BLOCK);
    for (packed, empty) in [(zstd(&image), skipped), (gzip(&image), member)] {
        let trial = Trial::of([packed.clone(), empty.clone(), packed.clone()].concat());
        let mut large = SimDisk::new(20 * MIB, BLOCK, 0xee);
        assert_eq!(
            trial.write(&mut large).0.unwrap().image,
            16 * MIB as u64,
            "some of it is nothing to speak of"
        );

        let mut pieces =
            std::iter::once(Bytes::from(packed)).chain(std::iter::repeat_n(Bytes::from(empty), 10_000));
        let fetch = |sink: &mut dyn Sink| {
            while pieces.next().is_some_and(|piece| sink.take(piece)) {}
            Ok(0)
        };
        let writing = Writing {
            wanted: trial.wanted.clone(),
            config_drive: None,
            root: &trial.tree.root(),
            work: &trial.work,
        };
        let mut after = After::Untouched;
        let refused = writing
            .write(&mut old_disk(BLOCK), fetch, &mut after)
            .unwrap_err();
        assert_eq!(after, After::Unbootable);
        assert!(
            matches!(&refused, Failure::Decode { source } if source.to_string().contains("in a row")),
            "{}",
            Chain(&refused)
        );
    }
}

#[test]
fn an_image_that_swells_beyond_the_disk_is_refused() {
    let mut bomb = image(BLOCK);
    bomb.resize(64 * MIB, 0);
    let refused = Trial::of(zstd_with_size(&bomb)).fails(&mut old_disk(BLOCK), After::Untouched);
    assert!(
        matches!(refused, Failure::TooLarge { .. }),
        "it says so itself: {refused}"
    );
    for packed in [zstd(&bomb), gzip(&bomb)] {
        let refused = Trial::of(packed).fails(&mut old_disk(BLOCK), After::Unbootable);
        assert!(matches!(refused, Failure::TooLarge { .. }), "{refused}");
    }
}

#[test]
fn a_disk_that_fails_is_named_and_does_not_boot() {
    for (bad, errno) in [
        (5 * MIB, Errno::EIO),
        (6 * MIB + 600, Errno::ENOSPC),
        (7 * MIB + 600, Errno::EIO),
    ] {
        let mut disk = old_disk(BLOCK);
        disk.bad = Some((bad as u64, errno));
        let failed = Trial::of(zstd(&image(BLOCK))).fails(&mut disk, After::Unbootable);
        let Failure::Disk { source, .. } = failed else {
            panic!("{failed}")
        };
        assert_eq!(source.raw_os_error(), Some(errno as i32));
    }
}

#[test]
fn a_source_that_fails_is_to_blame_and_not_the_half_that_came() {
    let trial = Trial::of(zstd(&image(BLOCK)));
    let mut disk = old_disk(BLOCK);
    let mut after = After::Untouched;
    let writing = Writing {
        wanted: trial.wanted.clone(),
        config_drive: None,
        root: &trial.tree.root(),
        work: &trial.work,
    };
    let half = trial.packed[..trial.packed.len() / 2].to_vec();
    let fetch = |sink: &mut dyn Sink| {
        sink.take(half.into());
        Err(SourceError::ProxyAddress("x".to_owned()))
    };
    let failed = writing.write(&mut disk, fetch, &mut after).unwrap_err();
    assert!(matches!(failed, Failure::Source { .. }), "{failed}");
}

#[test]
fn a_stopped_write_never_boots() {
    let mut trial = Trial::of(image(BLOCK));
    let stopper = std::sync::Arc::new(std::sync::OnceLock::<Work>::new());
    let stop = std::sync::Arc::clone(&stopper);
    trial.work = Work::new(move |progress| {
        if progress.step == "enter into boot order" {
            stop.get().unwrap().stop();
        }
    });
    stopper.set(trial.work.clone()).unwrap();
    let user_data = b"canary-7c".repeat(200_000);
    trial.config = Some(Box::new(ConfigDrive {
        user_data: Some(user_data),
        ..ConfigDrive::default()
    }));
    let mut disk = old_disk(BLOCK);
    let refused = trial.fails(&mut disk, After::Unbootable);
    assert!(
        matches!(refused, Failure::Stopped { .. }),
        "at the last moment: {refused}"
    );
    let canaries = disk.bytes.windows(9).filter(|bytes| *bytes == b"canary-7c");
    assert_eq!(canaries.count(), 0, "no table leads to it, so no cleaning would");
    let before = Trial::of(image(BLOCK));
    before.work.stop();
    let refused = before.fails(&mut old_disk(BLOCK), After::Untouched);
    assert!(
        matches!(refused, Failure::Stopped { .. }),
        "at the first: {refused}"
    );
}

#[test]
fn every_thread_of_a_write_works_for_who_ordered_it() {
    let trial = Trial::of(image(BLOCK));
    let writing = Writing {
        wanted: trial.wanted.clone(),
        config_drive: None,
        root: &trial.tree.root(),
        work: &trial.work,
    };
    let fetch = |sink: &mut dyn Sink| {
        assert!(crate::work::break_off("index out of bounds"));
        sink.take(trial.packed.clone().into());
        Ok(0)
    };
    let stopped = writing
        .write(&mut old_disk(BLOCK), fetch, &mut After::Untouched)
        .unwrap_err();
    assert!(matches!(stopped, Failure::Stopped { .. }), "{stopped}");
    assert!(trial.work.is_broken());
}

#[test]
fn a_uefi_machine_gets_a_boot_entry() {
    let mut trial = Trial::of(zstd(&image(BLOCK)));
    trial.tree = uefi();
    trial.write(&mut old_disk(BLOCK)).0.unwrap();
    let directory = trial.tree.root().sys("firmware/efi/efivars");
    let entries = crate::sys::list(&directory).unwrap();
    let names: Vec<_> = entries.iter().map(|name| &name[..8]).collect();
    assert_eq!(names, ["Boot0000", "BootOrde"]);
    let entry = std::fs::read(directory.join(&entries[0])).unwrap();
    let path: Vec<u8> = "\\EFI\\BOOT\\BOOTX64.EFI"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    assert!(entry.windows(path.len()).any(|window| window == path));
}

#[test]
fn a_uefi_machine_is_not_left_with_what_it_cannot_boot() {
    let blocks = 8 * MIB as u64 / 512;
    let without = gpt_tests::disk(blocks, BLOCK, &[(2048, 4095, Guid::LINUX, "root")]);
    let mut trial = Trial::of(without);
    trial.tree = uefi();
    let refused = trial.fails(&mut old_disk(BLOCK), After::Untouched);
    assert!(matches!(refused, Failure::Layout { .. }), "{refused}");
    let empty = gpt_tests::disk(blocks, BLOCK, &[(2048, 4095, Guid::ESP, "EFI")]);
    let mut trial = Trial::of(empty);
    trial.tree = uefi();
    let refused = trial.fails(&mut old_disk(BLOCK), After::Unbootable);
    assert!(matches!(refused, Failure::Boot { .. }), "{refused}");
}

#[test]
fn a_firmware_that_takes_no_entry_is_a_warning_if_it_finds_the_loader_itself() {
    let mut trial = Trial::of(image(BLOCK));
    trial.tree = Tree::new().directory("sys/firmware/efi");
    let written = trial.write(&mut old_disk(BLOCK)).0.unwrap();
    assert!(
        written.warnings[0].starts_with("no boot entry was made"),
        "{:?}",
        written.warnings
    );
}

#[test]
fn a_bios_machine_is_not_given_an_image_without_a_program_for_it() {
    let mut silent = image(BLOCK);
    silent[..440].fill(0);
    let refused = Trial::of(silent.clone()).fails(&mut old_disk(BLOCK), After::Untouched);
    assert!(matches!(refused, Failure::Layout { .. }), "{refused}");
    let mut trial = Trial::of(silent);
    trial.tree = uefi();
    trial.write(&mut old_disk(BLOCK)).0.unwrap();
}

/// A write that ended well, to a disk of so many MiB.
struct Whole {
    trial: Trial,
    disk: SimDisk,
}

fn whole(mib: usize) -> Whole {
    let trial = Trial::of(zstd(&image(BLOCK)));
    let mut disk = SimDisk::new(mib * MIB, BLOCK, 0xee);
    trial.write(&mut disk).0.unwrap();
    Whole { trial, disk }
}

/// Whatever the moment at which the power goes and whatever the disk's cache lost: it has the old system, or boots nothing, or
/// has the whole image.
fn survives(whole: &Whole, dies_at: usize, mut chance: impl FnMut() -> bool) {
    let size = whole.disk.bytes.len();
    let mut disk = SimDisk::new(size, BLOCK, 0xee);
    let old = disk.bytes.clone();
    disk.dies_at = Some(dies_at);
    whole.trial.write(&mut disk).0.unwrap_err();
    let found = disk.after_power_loss(&mut chance);
    let middle = MIB..size - 64 * 1024;
    let is_old = found[middle.clone()] == old[middle.clone()];
    let is_new = found[middle.clone()] == whole.disk.bytes[middle];
    assert!(
        is_unbootable(&found) || is_old || is_new,
        "died at change {dies_at}"
    );
    // The first block comes when all the rest is there.
    let has_first = found[..4096] != old[..4096] && !is_zero(&found[..4096]);
    assert!(is_old || !has_first || found[4096..] == whole.disk.bytes[4096..]);
}

/// The second is as large as the image, whose own backup table ends where the disk does.
static WHOLES: LazyLock<[Whole; 2]> = LazyLock::new(|| [whole(10), whole(8)]);

#[test]
fn power_lost_at_any_moment_never_leaves_half_an_image_that_boots() {
    for whole in &*WHOLES {
        for dies_at in 1..=whole.disk.changes {
            survives(whole, dies_at, || false);
            survives(whole, dies_at, || true);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_a_cache_loses_no_half_image_boots(dies_at: usize, large: bool, mut seed in 1_u64..) {
        let whole = &WHOLES[usize::from(large)];
        survives(whole, 1 + dies_at % whole.disk.changes, || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed & 1 == 0
        });
    }
}
