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
    job::{ConfigDrive, DigestAlgorithm, ImageSource},
    seal::{Bound, SealKey, seal},
};
use nix::errno::Errno;
use proptest::prelude::*;
use ring::digest;
use serde_json::json;

use super::*;
use crate::{
    clock::Clock,
    disk::{
        fat::tests::{Made, make},
        gpt::{Gpt, Guid, tests as gpt_tests},
        sim::SimDisk,
    },
    image::{ChecksumError, DriveError, OpenDrive, SealedDrive, iso9660::tests::files},
    net::dns::NameServers,
    sys::tree::Tree,
};

mod boot;
mod drive;
mod stream;
mod trouble;

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
    /// Whether the server tells how much that is.
    is_told: bool,
    /// How it says that it encoded it.
    encoding: Option<String>,
    wanted: Wanted,
    tree: Tree,
    config: Option<Box<dyn Contents>>,
    is_drive_optional: bool,
    /// As the inventory describes the disk.
    target: Described,
    work: Work,
}

impl Trial {
    fn of(packed: Vec<u8>) -> Trial {
        Trial {
            wanted: sha256(&packed),
            packed,
            is_told: true,
            encoding: None,
            tree: bios(),
            config: None,
            is_drive_optional: false,
            target: Described::default(),
            work: Work::unwatched(),
        }
    }

    /// Writes to `disk`, and says what is on it then.
    fn write(&self, disk: &mut SimDisk) -> (Result<Written, Failure>, After) {
        let writing = Writing {
            wanted: self.wanted.clone(),
            config_drive: self.config.as_deref(),
            is_drive_optional: self.is_drive_optional,
            root: &self.tree.root(),
            target: &self.target,
            work: &self.work,
        };
        let mut after = After::Untouched;
        let fetch = |sink: &mut dyn Sink| {
            sink.expect(self.is_told.then_some(self.packed.len() as u64));
            let mut at = 0;
            for chunk in self.packed.chunks(100_000) {
                if !sink.take(Bytes::copy_from_slice(chunk)) {
                    break;
                }
                at += chunk.len() as u64;
            }
            Ok(Got {
                bytes: at,
                is_told: self.is_told,
                encoding: self.encoding.clone(),
            })
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
            let trial = Trial::of(packed.clone());
            let written = trial.write(&mut disk).0.unwrap();
            assert_eq!(
                (written.image, written.transferred),
                (8 * MIB as u64, packed.len() as u64)
            );
            assert_eq!(written.digest, sha256(&packed).to_string());
            assert_eq!(trial.work.warnings(), [""; 0]);
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
fn a_digest_by_an_algorithm_of_a_newer_controller_is_refused_before_anything_is_fetched() {
    let environment = Environment {
        root: bios().root(),
        clock: Clock::told(0),
        name_servers: NameServers::new(Vec::new),
        proxy: None,
    };
    let sum = "ab".repeat(48);
    for checksum in ["http://127.0.0.1:1/SUMS", &sum, ""] {
        let image = ImageSource {
            url: "http://127.0.0.1:1/os.raw".to_owned(),
            checksum: checksum.to_owned(),
            algorithm: DigestAlgorithm::Unknown,
        };
        let job = Write {
            image,
            ..Write::default()
        };
        let refused = wanted(&job, &environment, &Work::unwatched());
        assert!(
            matches!(
                &refused,
                Err(Failure::Checksum {
                    source: ChecksumError::UnknownAlgorithm
                })
            ),
            "{checksum}: {refused:?}"
        );
    }
}

#[test]
fn an_image_as_large_as_the_disk_fits() {
    let mut disk = SimDisk::new(8 * MIB, BLOCK, 0xee);
    let mut image = image(BLOCK);
    // As a BIOS wants it.
    image[446] = 0x80;
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
