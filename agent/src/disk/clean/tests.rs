use std::{
    collections::BTreeSet,
    fs::File,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex},
};

use nix::errno::Errno;
use proptest::prelude::*;

use super::*;
use crate::disk::{
    gpt::{Gpt, Guid, tests as gpt_tests},
    guard::tests::{disk, machine, meant},
    sim::SimDisk,
};

const MIB: usize = 1 << 20;

fn wiped(disk: &mut SimDisk) -> Cleaned {
    wipe(disk, &Work::unwatched()).unwrap()
}

#[test]
fn the_table_goes_after_all_that_it_leads_to() {
    let parts = [
        (2048, 6 * 2048 - 1, Guid::LINUX, "one"),
        (20 * 2048, 30 * 2048 - 1, Guid::LINUX, "two"),
    ];
    let mut bytes = gpt_tests::disk(40 * 2048, 512, &parts);
    bytes[MIB..6 * MIB].fill(0x5a);
    let mut whole = SimDisk::of(bytes.clone(), 512);
    wiped(&mut whole);
    for at in 0..=whole.changes {
        let mut disk = SimDisk::of(bytes.clone(), 512);
        disk.dies_at = Some(at);
        let _ = wipe(&mut disk, &Work::unwatched());
        // Of what was not safe only the beginning is there.
        let mut written = 0;
        let left = disk.after_power_loss(|| {
            written += 1;
            written < 8
        });
        let has_no_table = left[..MIB] != bytes[..MIB];
        assert!(!has_no_table || !left[MIB..6 * MIB].contains(&0x5a), "{at}");
    }
}

/// Places in bytes at which file systems, volumes and arrays put their marks, from the start of their device or before its end.
const MARKS: &[(&str, i64)] = &[
    ("ext4", 1024 + 56),
    ("xfs", 0),
    ("btrfs", 0x10040),
    ("LVM label", 512 + 24),
    ("LVM metadata", 4096),
    ("md 1.2", 4096),
    ("md 1.1", 0),
    ("md 1.0", -8192),
    ("md 0.90", -(64 << 10)),
    ("md 0.90 of an odd size", -(128 << 10) + 512),
    ("swap", 4086),
    ("LUKS2 second header", 4 << 20),
    ("ZFS last label", -(256 << 10)),
    ("IMSM", -1024),
    ("DDF", -512),
    ("VMFS", 1 << 20),
    ("ISO 9660", 0x8001),
    ("NTFS second boot sector", -512),
];

fn mark(bytes: &mut [u8], start: usize, end: usize) {
    for (_, place) in MARKS {
        let at = if *place < 0 {
            end - usize::try_from(-place).unwrap()
        } else {
            start + usize::try_from(*place).unwrap()
        };
        bytes[at] = 0x5a;
    }
}

fn left(bytes: &[u8]) -> Vec<usize> {
    let marked = |(index, chunk): (usize, &[u8])| -> Vec<usize> {
        let at = |(at, byte): (usize, &u8)| (*byte == 0x5a).then_some(index * 4096 + at);
        chunk.iter().enumerate().filter_map(at).collect()
    };
    // Compared at once: most of a disk is zeros.
    let chunks = bytes.chunks(4096).enumerate();
    chunks
        .filter(|(_, chunk)| **chunk != [0; 4096][..chunk.len()])
        .flat_map(marked)
        .collect()
}

#[test]
fn no_mark_of_any_partition_survives() {
    for block in [512, 4096] {
        let size = 40 * MIB;
        let len = u64::from(block);
        let parts = [(8_u64, 17_u64), (17, 18), (20, 39)];
        let blocks = |mib: u64| mib * (MIB as u64) / len;
        let table: Vec<_> = parts
            .iter()
            .map(|(first, end)| (blocks(*first), blocks(*end) - 1, Guid::LINUX, "x"))
            .collect();
        let mut bytes = gpt_tests::disk(size as u64 / len, block, &table);
        for (first, end) in [parts[0], parts[2]] {
            mark(
                &mut bytes,
                usize::try_from(first).unwrap() * MIB,
                usize::try_from(end).unwrap() * MIB,
            );
        }
        let mut disk = SimDisk::of(bytes, block);
        let cleaned = wiped(&mut disk);
        assert_eq!((cleaned.table, cleaned.partitions), ("gpt", 3));
        assert_eq!(left(&disk.bytes), [0; 0], "blocks of {block}");
        assert_eq!(disk.rereads, 1);
        assert!(disk.bytes[512..1024].iter().all(|byte| *byte == 0));
        assert!(disk.bytes[size - 4096..].iter().all(|byte| *byte == 0));
        // Once more there is nothing to find, and no harm.
        assert_eq!(wiped(&mut disk).table, "");
    }
}

/// A disk that memory has no room for: a file with holes.
struct SparseDisk(File);

impl Disk for SparseDisk {
    fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn block(&self) -> u32 {
        512
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; usize::try_from(len).unwrap()])
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reread_table(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_mark_far_inside_a_disk_or_a_partition_survives() {
    const GIB: u64 = 1 << 30;
    // Two of btrfs, and four of BlueStore.
    let copies = [64 << 20, 256 * GIB, GIB, 10 * GIB, 100 * GIB, 1000 * GIB];
    let first = 16 * MIB as u64;
    let places: Vec<u64> = [0, first]
        .iter()
        .flat_map(|start| copies.map(|copy| start + copy))
        .collect();
    let file = tempfile::tempfile().unwrap();
    file.set_len(1100 * GIB).unwrap();
    let mut sector = vec![0; 512];
    record(&mut sector, 0, 0, 0x83, 16 * 2048, 1040 << 21);
    file.write_all_at(&sector, 0).unwrap();
    for place in &places {
        file.write_all_at(&[0x5a; 4096], *place).unwrap();
    }
    let mut disk = SparseDisk(file);
    let cleaned = wipe(&mut disk, &Work::unwatched()).unwrap();
    assert_eq!((cleaned.table, cleaned.partitions), ("mbr", 1));
    for place in places {
        let mut found = [0x5a; 4096];
        disk.read_at(place, &mut found).unwrap();
        assert!(found == [0; 4096], "{place}");
    }
}

/// Three disks with marks.
fn three_disks() -> [(String, SimDisk); 3] {
    let mut bytes = vec![0; 24 * MIB];
    mark(&mut bytes, 0, 24 * MIB);
    ["/dev/sda", "/dev/sdb", "/dev/sdc"].map(|name| (name.to_owned(), SimDisk::of(bytes.clone(), 512)))
}

#[test]
fn a_disk_that_fails_keeps_no_other_from_being_cleaned() {
    let mut disks = three_disks();
    disks[0].1.bad = Some((0, Errno::EIO));
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let work = Work::new(move |progress| heard.lock().unwrap().push(progress.percent));
    let error = wipe_each(&mut disks, Vec::new(), &work).unwrap_err();
    assert!(!left(&disks[0].1.bytes).is_empty());
    for (name, disk) in &disks[1..] {
        assert_eq!(left(&disk.bytes), [0; 0], "{name}");
    }
    assert_eq!(*told.lock().unwrap(), [0, 33, 66]);
    let cleaned: Vec<&str> = error.cleaned().iter().map(|disk| disk.disk.as_str()).collect();
    assert_eq!(cleaned, ["/dev/sdb", "/dev/sdc"]);
    let message = Chain(&error).to_string();
    let start = "clean /dev/sda: old data is erased only in part or not at all; 2 of 3 disks are clean: /dev/sda: write zeros: ";
    assert!(message.starts_with(start), "{message}");
}

#[test]
fn every_disk_that_fails_is_named() {
    let mut disks = three_disks();
    for (_, disk) in &mut disks[1..] {
        disk.dies_at = Some(0);
    }
    let message = wipe_each(&mut disks, Vec::new(), &Work::unwatched())
        .unwrap_err()
        .to_string();
    assert!(message.starts_with("clean /dev/sdb, /dev/sdc: "), "{message}");
    assert!(message.contains("1 of 3 disks are clean"), "{message}");
}

#[test]
fn a_disk_that_takes_no_writes_or_cannot_be_opened_keeps_no_other_from_being_tried() {
    let tree = machine().file("sys/block/vda/ro", "1\n");
    let job = Clean {
        machine: meant(),
        disks: vec![disk("/dev/vda", "A"), disk("/dev/vdb", "B")],
    };
    let message = clean(&job, &tree.root(), &Work::unwatched())
        .unwrap_err()
        .to_string();
    let start = "clean /dev/vda, /dev/vdb: old data is erased only in part or not at all; 0 of 2 disks are clean: \
                 /dev/vda: write to it: it is read-only; /dev/vdb: open it: ";
    assert!(message.starts_with(start), "{message}");

    let open = |errno| Refused::Open {
        disk: "/dev/sda".to_owned(),
        source: io::Error::from_raw_os_error(errno),
    };
    let mut disks = three_disks();
    let failed = vec![broken(open(libc::ENXIO)).unwrap()];
    let error = wipe_each(&mut disks, failed, &Work::unwatched()).unwrap_err();
    assert!(error.to_string().contains("3 of 4 disks are clean"), "{error}");
    assert!(disks.iter().all(|(_, disk)| left(&disk.bytes).is_empty()));
    assert!(
        broken(open(libc::EBUSY)).is_err(),
        "somebody uses it: it is not what was meant"
    );
}

#[test]
fn what_kernels_left_in_the_firmware_when_they_died_goes_with_the_cleaning() {
    const CRASH: &str = "cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0";
    let file = |name: &str, guid: &str| format!("sys/firmware/efi/efivars/{name}-{guid}");
    let record = |part: u8| file(&format!("dump-type0-{part}-1-1700000000-C"), CRASH);
    let others = [
        file(
            "dump-type0-1-1-1700000000-C",
            "8be4df61-93ca-11d2-aa0d-00e098032b8c",
        ),
        file("Boot0001", CRASH),
    ];
    let tree = machine()
        .file("sys/block/vda/ro", "1\n")
        // One that cannot be removed keeps no other.
        .directory(&record(1))
        .file(&record(2), "Oops")
        .file(&record(3), "Panic")
        .file(&others[0], "")
        .file(&others[1], "");
    let root = tree.root();
    let cleaned = |serial: &str| {
        let job = Clean {
            machine: meant(),
            disks: vec![disk("/dev/vda", serial)],
        };
        clean(&job, &root, &Work::unwatched()).unwrap_err()
    };
    assert!(matches!(cleaned("C"), CleanError::Refused { .. }));
    assert!(root.at(record(2)).exists(), "nothing is touched");
    // Whatever becomes of the disks.
    assert!(matches!(cleaned("A"), CleanError::Disks { .. }));
    assert!(!root.at(record(2)).exists() && !root.at(record(3)).exists());
    assert!(others.iter().all(|other| root.at(other).exists()));
}

#[test]
fn nothing_is_touched_where_one_disk_is_not_what_is_meant() {
    let job = Clean {
        machine: meant(),
        disks: vec![disk("/dev/vda", "A"), disk("/dev/vdb", "C")],
    };
    let error = clean(&job, &machine().root(), &Work::unwatched()).unwrap_err();
    assert!(matches!(error, CleanError::Refused { .. }), "{error:?}");
}

#[test]
fn a_stop_leaves_the_disks_that_follow_as_they_are() {
    let mut disks = three_disks();
    let before = disks[2].1.bytes.clone();
    let work = Work::unwatched();
    work.stop();
    let error = wipe_each(&mut disks, Vec::new(), &work).unwrap_err();
    assert!(
        matches!(&error, CleanError::Stopped { disk, .. } if disk == "/dev/sda"),
        "{error:?}"
    );
    assert!(disks.iter().all(|(_, disk)| disk.bytes == before));
}

#[test]
fn a_disk_without_a_table_is_cleaned_as_one_device() {
    let size = 24 * MIB;
    let mut bytes = vec![0; size];
    mark(&mut bytes, 0, size);
    bytes[8 * MIB] = 0x5a;
    let mut disk = SimDisk::of(bytes, 512);
    assert_eq!(wiped(&mut disk).table, "");
    assert_eq!(left(&disk.bytes), [8 * MIB], "data between stay where they are");
}

#[test]
fn the_second_header_leads_to_partitions_when_the_first_is_broken() {
    let mut bytes = gpt_tests::disk(81_920, 512, &[(32_768, 65_535, Guid::LINUX, "x")]);
    bytes[512..1024].fill(0xff);
    bytes[32_768 * 512 + 1024] = 0x5a;
    let mut disk = SimDisk::of(bytes, 512);
    assert_eq!(wiped(&mut disk).partitions, 1);
    assert_eq!(left(&disk.bytes), [0; 0]);
}

#[test]
fn a_partition_that_ends_before_it_begins_hides_no_other() {
    let parts = [
        (2048, 4095, Guid::LINUX, "a"),
        (9999, 8192, Guid::LINUX, "odd"),
        (32_768, 65_535, Guid::LINUX, "b"),
    ];
    let mut bytes = gpt_tests::disk(81_920, 512, &parts);
    mark(&mut bytes, 32_768 * 512, 65_536 * 512);
    assert!(Gpt::primary(&bytes, 512).is_err(), "no image has one");
    let mut disk = SimDisk::of(bytes, 512);
    assert_eq!(wiped(&mut disk).table, "gpt");
    assert_eq!(left(&disk.bytes), [0; 0]);
}

#[test]
fn a_table_made_for_other_blocks_is_understood() {
    let bytes = gpt_tests::disk(81_920, 512, &[(32_768, 65_535, Guid::LINUX, "x")]);
    let mut disk = SimDisk::of(bytes, 4096);
    disk.bytes[32_768 * 512 + 1024] = 0x5a;
    assert_eq!(wiped(&mut disk).partitions, 1);
    assert_eq!(left(&disk.bytes), [0; 0]);
}

/// A record in a boot sector at `sector`.
fn record(bytes: &mut [u8], sector: usize, index: usize, kind: u8, first: u32, blocks: u32) {
    let at = sector * 512;
    bytes[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
    let place = &mut bytes[at + 446 + 16 * index..][..16];
    place[4] = kind;
    place[8..12].copy_from_slice(&first.to_le_bytes());
    place[12..16].copy_from_slice(&blocks.to_le_bytes());
}

#[test]
fn logical_partitions_are_followed() {
    let mut bytes = vec![0; 64 * MIB];
    record(&mut bytes, 0, 0, 0x83, 20_480, 20_480);
    record(&mut bytes, 0, 1, 0x05, 40_960, 90_112);
    record(&mut bytes, 40_960, 0, 0x83, 2048, 30_000);
    record(&mut bytes, 40_960, 1, 0x05, 40_960, 40_960);
    record(&mut bytes, 81_920, 0, 0x83, 2048, 30_000);
    for first in [20_480, 40_960 + 2048, 81_920 + 2048] {
        bytes[first * 512 + 1024] = 0x5a;
    }
    let mut disk = SimDisk::of(bytes, 512);
    let cleaned = wiped(&mut disk);
    assert_eq!((cleaned.table, cleaned.partitions), ("mbr", 3));
    assert_eq!(left(&disk.bytes), [0; 0]);
    assert_eq!(
        &disk.bytes[81_920 * 512 + 510..][..2],
        [0, 0],
        "nor the chain itself"
    );
}

#[test]
fn a_chain_in_a_circle_ends() {
    let mut bytes = vec![0; 16 * MIB];
    record(&mut bytes, 0, 0, 0x05, 2048, 8192);
    record(&mut bytes, 2048, 0, 0x05, 0, 8192);
    assert_eq!(wiped(&mut SimDisk::of(bytes, 512)).table, "mbr");
}

#[test]
fn an_interrupted_run_can_be_repeated() {
    let parts = [
        (14_336, 26_623, Guid::LINUX, "a"),
        (28_672, 36_863, Guid::LINUX, "b"),
    ];
    let mut bytes = gpt_tests::disk(40_960, 512, &parts);
    for (first, ..) in parts {
        bytes[usize::try_from(first).unwrap() * 512 + 1024] = 0x5a;
    }
    let mut second_only = bytes.clone();
    second_only[512..1024].fill(0);
    let mut whole = SimDisk::of(bytes.clone(), 512);
    wiped(&mut whole);
    for dies_at in 1..=whole.changes {
        for (bytes, keeps) in [
            (&bytes, false),
            (&bytes, true),
            (&second_only, false),
            (&second_only, true),
        ] {
            let mut disk = SimDisk::of(bytes.clone(), 512);
            disk.dies_at = Some(dies_at);
            assert!(matches!(
                wipe(&mut disk, &Work::unwatched()),
                Err(Failed::Disk(..))
            ));
            let mut again = SimDisk::of(disk.after_power_loss(|| keeps), 512);
            wiped(&mut again);
            assert_eq!(left(&again.bytes), [0; 0], "died at change {dies_at}");
        }
    }
}

#[test]
fn a_table_that_cannot_be_read_is_zeroed_like_any_other() {
    let bytes = gpt_tests::disk(81_920, 512, &[(32_768, 65_535, Guid::LINUX, "x")]);
    for (unreadable, partitions) in [(512, 1), (0, 1), (1024, 1), (bytes.len() as u64 - 512, 1)] {
        let mut disk = SimDisk::of(bytes.clone(), 512);
        disk.bytes[32_768 * 512 + 1024] = 0x5a;
        disk.unreadable = Some(unreadable);
        assert_eq!(wiped(&mut disk).partitions, partitions, "{unreadable}");
        assert_eq!(left(&disk.bytes), [0; 0], "{unreadable}");
        assert_eq!(disk.unreadable, None, "what is written can be read");
    }
}

#[test]
fn a_stopped_run_leaves_the_table() {
    let bytes = gpt_tests::disk(81_920, 512, &[(32_768, 65_535, Guid::LINUX, "x")]);
    let mut disk = SimDisk::of(bytes.clone(), 512);
    let work = Work::unwatched();
    work.stop();
    assert!(matches!(wipe(&mut disk, &work), Err(Failed::Stopped(_))));
    assert_eq!(disk.bytes, bytes);
}

proptest! {
    #[test]
    fn ranges_are_whole_blocks_in_order_and_within_the_disk(
        parts in prop::collection::vec((any::<u64>(), any::<u64>()), 0..8), blocks in 1_u64..1 << 30, large: bool,
    ) {
        let block = if large { 4096 } else { 512 };
        let size = blocks * u64::from(block);
        let parts: Vec<_> = parts.into_iter().map(|(start, len)| {
            let start = start % size;
            start..start.saturating_add(len % size)
        }).collect();
        let found = ranges(&parts, size, block);
        let edges: Vec<u64> = found.iter().flat_map(|range| [range.start, range.end]).collect();
        prop_assert!(edges.is_sorted());
        prop_assert_eq!(edges.iter().collect::<BTreeSet<_>>().len(), edges.len());
        prop_assert!(edges.iter().all(|edge| edge % u64::from(block) == 0 && *edge <= size));
        for part in &parts {
            prop_assert!(found.iter().any(|range| range.contains(&part.start)) || part.is_empty());
        }
    }

    #[test]
    fn arbitrary_disks_never_panic(seed in prop::collection::vec(any::<u8>(), 2048), large: bool) {
        let mut bytes = vec![0; 8 * MIB];
        bytes[..2048].copy_from_slice(&seed);
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        wiped(&mut SimDisk::of(bytes, if large { 4096 } else { 512 }));
    }
}

#[test]
fn a_config_drive_where_mbrs_end_is_zeroed_though_no_table_speaks_of_it() {
    let (size, reach) = (3 << 40, u64::from(u32::MAX) * 512);
    let found = ranges(&[], size, 512);
    for at in [reach - END, reach - 512, size - END, size - 512] {
        assert!(found.iter().any(|range| range.contains(&at)), "{at}");
    }
    assert!(!found.iter().any(|range| range.contains(&(1 << 40))));
}
