use super::*;
use crate::disk::gpt::tests::{backup_of, disk};

const MIB: u64 = 1 << 20;
const PARTS: &[(u64, u64, Guid, &str)] = &[(2048, 4095, Guid::ESP, "EFI"), (4096, 6143, Guid::LINUX, "root")];

fn mbr(records: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut head = vec![0; 1 << 20];
    head[440..444].copy_from_slice(&[1, 2, 3, 4]);
    head[510..512].copy_from_slice(&mbr::BOOT_SIGNATURE);
    for (place, (kind, first, blocks)) in head[446..510].chunks_exact_mut(16).zip(records) {
        place[4] = *kind;
        place[8..12].copy_from_slice(&first.to_le_bytes());
        place[12..16].copy_from_slice(&blocks.to_le_bytes());
    }
    head
}

#[test]
fn an_image_for_other_blocks_is_refused() {
    for (image, found) in [(512, 4096), (4096, 512)] {
        let head = disk(8192, image, PARTS);
        Layout::fit(&head, 64 * MIB, image).unwrap();
        assert_eq!(
            Layout::fit(&head, 64 * MIB, found),
            Err(LayoutError::BlockSize { image, disk: found })
        );
    }
    assert!(matches!(
        Layout::fit(&mbr(&[(mbr::LINUX, 2048, 2048)]), 64 * MIB, 4096),
        Err(LayoutError::BlockSize { .. })
    ));
}

#[test]
fn a_protective_mbr_without_its_gpt_is_refused() {
    let head = mbr(&[(0xee, 1, 8191)]);
    assert_eq!(
        Layout::fit(&head, 64 * MIB, 512),
        Err(LayoutError::Gpt(GptError::Missing))
    );
}

#[test]
fn a_gpt_that_the_mbr_does_not_speak_of_is_an_old_one() {
    let mut head = disk(8192, 512, PARTS);
    head[..512].copy_from_slice(&mbr(&[(mbr::LINUX, 2048, 4096)])[..512]);
    let parts = Layout::fit(&head, 64 * MIB, 512).unwrap().parts();
    let places: Vec<_> = parts.iter().map(|part| (part.start, part.end())).collect();
    assert_eq!(places, [(2048 * 512, 6144 * 512)]);
}

#[test]
fn an_image_that_is_larger_than_the_disk_or_cut_off_is_refused() {
    let head = disk(8192, 512, PARTS);
    assert!(matches!(
        Layout::fit(&head, 6144 * 512, 512),
        Err(LayoutError::Gpt(GptError::TooSmall { .. }))
    ));
    assert!(matches!(
        Layout::fit(&mbr(&[(mbr::LINUX, 2048, 8193)]), 5 * MIB, 512),
        Err(LayoutError::TooSmall { .. })
    ));
    let layout = Layout::fit(&head, 64 * MIB, 512).unwrap();
    layout.check_len(6144 * 512).unwrap();
    assert!(matches!(
        layout.check_len(6144 * 512 - 1),
        Err(LayoutError::Truncated { number: 2, .. })
    ));
}

#[test]
fn the_system_partition_is_known_to_the_firmware_by_its_table() {
    let of = |head: &[u8]| Layout::fit(head, 64 * MIB, 512).unwrap().system_partition();
    let (system, part) = of(&disk(8192, 512, PARTS)).unwrap();
    assert_eq!((system.number, system.first, system.blocks), (1, 2048, 2048));
    assert_eq!(system.signature, Signature::Gpt(Guid([1; 16])));
    assert_eq!((part.start, part.len), (MIB, MIB));
    let (system, _) = of(&mbr(&[(mbr::LINUX, 2048, 2048), (mbr::ESP, 4096, 2048)])).unwrap();
    assert_eq!(
        (system.number, system.signature),
        (2, Signature::Mbr([1, 2, 3, 4]))
    );
    assert_eq!(
        of(&mbr(&[(mbr::LINUX, 2048, 2048)])).unwrap_err(),
        LayoutError::NoSystemPartition
    );
}

#[test]
fn the_backup_goes_to_the_end_and_the_config_drive_before_it() {
    for block in [512, 4096] {
        let size = 64 * MIB;
        let mut whole = disk(8192, block, PARTS);
        whole.resize(usize::try_from(size).unwrap(), 0);
        let mut layout = Layout::fit(&whole[..1 << 20], size, block).unwrap();
        let at = layout.place_config_drive(None, "config-2", 3 * MIB, 7).unwrap();
        let backup = layout.render(&mut whole[..1 << 20], false);
        let end = whole.len() - backup.len();
        whole[end..].copy_from_slice(&backup);
        assert!(at + 3 * MIB <= end as u64 && at.is_multiple_of(MIB), "{at}");
        let primary = Gpt::primary(&whole, block).unwrap();
        let second = backup_of(&whole, block).unwrap();
        let names = |gpt: &Gpt| {
            gpt.partitions()
                .map(|partition| partition.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&primary), ["EFI", "root", "config-2"]);
        assert_eq!(names(&second), names(&primary));
        let protective = u32::from_le_bytes(whole[458..462].try_into().unwrap());
        assert_eq!(u64::from(protective) + 1, size / u64::from(block));
    }
}

#[test]
fn a_partition_that_the_image_has_for_the_config_drive_is_used_if_it_is_large_enough() {
    let head = disk(8192, 512, &[(2048, 4095, Guid::LINUX, "config-2")]);
    let mut layout = Layout::fit(&head, 64 * MIB, 512).unwrap();
    let part = layout.parts().remove(0);
    assert_eq!(
        layout.place_config_drive(Some(part.clone()), "config-2", MIB, 7),
        Ok(MIB)
    );
    assert_eq!(
        layout.place_config_drive(Some(part), "config-2", MIB + 1, 7),
        Err(LayoutError::ConfigTooSmall {
            number: 1,
            needed: MIB + 1,
            len: MIB
        })
    );
    assert_eq!(layout.parts().len(), 1);
}

#[test]
fn an_mbr_gets_a_partition_for_the_config_drive_too() {
    let mut head = mbr(&[(mbr::LINUX, 2048, 2048)]);
    let mut layout = Layout::fit(&head, 64 * MIB, 512).unwrap();
    let at = layout.place_config_drive(None, "config-2", MIB, 7).unwrap();
    assert_eq!(at, 63 * MIB);
    assert!(layout.render(&mut head, true).is_empty());
    assert_eq!(mbr::records(&head)[1].end(), 64 * MIB / 512);
    let mut full = Layout::fit(&mbr(&[(mbr::LINUX, 2048, 1); 4]), 64 * MIB, 512).unwrap();
    assert_eq!(
        full.place_config_drive(None, "config-2", MIB, 7),
        Err(LayoutError::Mbr(MbrError::Full))
    );
}
