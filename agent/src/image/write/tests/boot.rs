//! What the firmware starts afterwards.

use super::*;

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
fn a_bios_machine_is_not_given_an_image_without_a_program_for_it() {
    let mut silent = image(BLOCK);
    silent[..440].fill(0);
    let refused = Trial::of(silent.clone()).fails(&mut old_disk(BLOCK), After::Untouched);
    assert!(matches!(refused, Failure::Layout { .. }), "{refused}");
    let mut trial = Trial::of(silent);
    trial.tree = uefi();
    trial.write(&mut old_disk(BLOCK)).0.unwrap();
}
