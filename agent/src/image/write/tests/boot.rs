//! What the firmware starts afterwards.

use super::*;
use crate::{disk::guard::tests::machine, inventory};

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
fn a_loader_is_not_looked_for_behind_the_end_of_its_partition() {
    let mut whole = image(BLOCK);
    // The same with a partition that holds the file system's own tables, and nothing that these lead to.
    let blocks = 8 * MIB as u64 / 512;
    let cut = gpt_tests::disk(blocks, BLOCK, &[(2048, 2048 + 21, Guid::ESP, "EFI")]);
    whole[..MIB].copy_from_slice(&cut[..MIB]);
    let mut trial = Trial::of(whole);
    trial.tree = uefi();
    let refused = trial.fails(&mut old_disk(BLOCK), After::Unbootable);
    let told = Chain(&refused).to_string();
    assert!(told.contains("its size is invalid"), "{told}");
}

#[test]
fn a_firmware_that_takes_no_entry_is_a_warning_if_it_finds_the_loader_itself() {
    let mut trial = Trial::of(image(BLOCK));
    trial.tree = Tree::new().directory("sys/firmware/efi");
    trial.write(&mut old_disk(BLOCK)).0.unwrap();
    let warnings = trial.work.warnings();
    assert!(warnings[0].starts_with("no boot entry was made"), "{warnings:?}");
}

#[test]
fn a_loader_that_puts_itself_before_the_network_is_a_warning() {
    let mut image = image(BLOCK);
    let boot = Made::Directory(vec![
        ("BOOTX64.EFI", Made::File(b"MZ".to_vec())),
        ("FBX64.EFI", Made::File(b"MZ".to_vec())),
    ]);
    let system = make(5000, 512, vec![("EFI", Made::Directory(vec![("BOOT", boot)]))]);
    image[MIB..MIB + system.len()].copy_from_slice(&system);
    for (tree, expected) in [(uefi(), 1), (bios(), 0)] {
        let mut trial = Trial::of(image.clone());
        trial.tree = tree;
        trial.write(&mut old_disk(BLOCK)).0.unwrap();
        let warnings = trial.work.warnings();
        assert_eq!(warnings.len(), expected, "{warnings:?}");
        assert!(
            warnings.iter().all(|warning| warning.contains("FBX64.EFI")),
            "{warnings:?}"
        );
    }
}

#[test]
fn a_partition_of_the_image_that_another_disk_has_too_is_a_warning() {
    let gpt = |guid: u8| {
        let mut disk = gpt_tests::disk(16384, BLOCK, &[]);
        let mut gpt = Gpt::primary(&disk, BLOCK).unwrap();
        gpt.add_at_end(1, "root", Guid::LINUX, Guid([guid; 16])).unwrap();
        gpt.write_primary(&mut disk);
        disk
    };
    let mbr = |signature: u8| {
        let mut disk = vec![0; 8 * MIB];
        disk[..440].fill(0x90);
        disk[440..444].fill(signature);
        // 2048 blocks from block 2048.
        disk[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk
    };
    for (written, other, expected, what) in [
        (image(BLOCK), gpt(2), 1, "a GUID"),
        (image(BLOCK), gpt(9), 0, "another GUID"),
        (image(BLOCK), mbr(2), 0, "another table"),
        (mbr(2), mbr(2), 1, "a signature"),
        (mbr(2), mbr(9), 0, "another signature"),
        (mbr(0), mbr(0), 0, "no signature"),
    ] {
        let tree = machine().file("dev/vdb", other).file(
            "sys/devices/pci0000:00/0000:00:05.0/virtio5/block/vdb/queue/logical_block_size",
            "512\n",
        );
        let mut trial = Trial::of(written);
        trial.target = inventory::disks(&tree.root()).remove(0);
        trial.tree = tree;
        trial.write(&mut old_disk(BLOCK)).0.unwrap();
        let warnings = trial.work.warnings();
        assert_eq!(warnings.len(), expected, "{what}: {warnings:?}");
        let named = "GUID or MBR signature of the image";
        assert!(
            warnings
                .iter()
                .all(|warning| warning.contains(named) && warning.contains("/dev/vdb, serial B")),
            "{warnings:?}"
        );
    }
}

#[test]
fn the_protective_record_is_active_for_a_bios_alone() {
    for (tree, expected) in [(bios(), 0x80), (uefi(), 0)] {
        let mut trial = Trial::of(image(BLOCK));
        trial.tree = tree;
        let mut disk = old_disk(BLOCK);
        trial.write(&mut disk).0.unwrap();
        assert_eq!(disk.bytes[446], expected);
    }
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
