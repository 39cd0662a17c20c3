use proptest::prelude::*;

use super::*;

/// The bytes of a disk of `blocks` blocks with these partitions: first block, last block, kind, name. MBR, primary and backup.
pub(crate) fn disk(blocks: u64, block: u32, partitions: &[(u64, u64, Guid, &str)]) -> Vec<u8> {
    let mut entries = vec![0; 128 * 128];
    for ((entry, number), (first, last, kind, name)) in
        entries.chunks_exact_mut(128).zip(1_u8..).zip(partitions)
    {
        entry[..16].copy_from_slice(&kind.0);
        entry[16..32].fill(number);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (place, unit) in entry[56..].chunks_exact_mut(2).zip(name.encode_utf16()) {
            place.copy_from_slice(&unit.to_le_bytes());
        }
    }
    let entries_blocks = entries.len() as u64 / u64::from(block);
    let gpt = Gpt {
        block,
        header: Header {
            own: 1,
            alternate: blocks - 1,
            first_usable: 2 + entries_blocks,
            last_usable: blocks - 2 - entries_blocks,
            guid: Guid([0xd1; 16]),
            entries_at: 2,
            count: 128,
            entry_len: 128,
            entries_checksum: 0,
        },
        entries,
    };
    let mut bytes = vec![0; usize::try_from(blocks * u64::from(block)).unwrap()];
    bytes[446 + 4] = 0xee;
    bytes[446 + 8] = 1;
    bytes[446 + 12..446 + 16].copy_from_slice(&u32::try_from(blocks - 1).unwrap().to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    gpt.write_primary(&mut bytes);
    let backup = gpt.backup();
    let at = bytes.len() - backup.len();
    bytes[at..].copy_from_slice(&backup);
    bytes
}

/// The backup of a disk with these bytes.
pub(crate) fn backup_of(bytes: &[u8], block: u32) -> Result<Gpt, GptError> {
    let len = usize::try_from(block).unwrap();
    let header = &bytes[bytes.len() - len..];
    let at = entries_of(header, block)?;
    let start = usize::try_from(at.offset).unwrap();
    Gpt::parse(header, bytes[start..start + at.len].to_vec(), block)
}

const PARTS: &[(u64, u64, Guid, &str)] = &[(2048, 4095, Guid::ESP, "EFI"), (4096, 6143, Guid::LINUX, "root")];

#[test]
fn a_table_is_read_as_it_was_made() {
    for block in [512, 4096] {
        let bytes = disk(8192, block, PARTS);
        let gpt = Gpt::primary(&bytes, block).unwrap();
        let found: Vec<_> = gpt.partitions().collect();
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].number, found[0].first, found[0].last, found[0].kind),
            (1, 2048, 4095, Guid::ESP)
        );
        assert_eq!((found[1].name.as_str(), found[1].guid), ("root", Guid([2; 16])));
        assert_eq!(backup_of(&bytes, block).unwrap().entries, gpt.entries);
    }
}

#[test]
fn a_single_wrong_bit_is_found() {
    let bytes = disk(8192, 512, PARTS);
    for at in [
        512,
        512 + 24,
        512 + 50,
        512 + 88,
        1024,
        1024 + 130,
        1024 + 128 * 128 - 1,
    ] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        Gpt::primary(&damaged, 512).unwrap_err();
    }
}

#[test]
fn a_partition_beyond_the_disk_is_refused() {
    let mut gpt = Gpt::primary(&disk(8192, 512, PARTS), 512).unwrap();
    let usable = 6143;
    gpt.clone().fit(usable + 34).unwrap();
    assert_eq!(
        gpt.fit(usable + 33),
        Err(GptError::TooSmall {
            partition: 2,
            last: usable,
            usable: usable - 1
        })
    );
    gpt.fit(10).unwrap_err();
}

#[test]
fn a_config_drive_without_room_or_entry_is_refused() {
    let mut gpt = Gpt::primary(&disk(8192, 512, PARTS), 512).unwrap();
    gpt.fit(8192).unwrap();
    let full = gpt.add_at_end(1 << 20, "config-2", Guid::LINUX, Guid([9; 16]));
    assert_eq!(
        full,
        Err(GptError::NoRoom {
            needed: 1 << 20,
            free: (8192 - 33 - 6144) * 512
        }),
        "what is free does not begin on a MiB"
    );
    let many: Vec<_> = (0..128)
        .map(|at| (2048 + at, 2048 + at, Guid::LINUX, ""))
        .collect();
    let mut gpt = Gpt::primary(&disk(8192, 512, &many), 512).unwrap();
    gpt.fit(8192).unwrap();
    assert_eq!(
        gpt.add_at_end(1, "config-2", Guid::LINUX, Guid([9; 16])),
        Err(GptError::Full(128))
    );
}

#[test]
fn random_guids_say_that_they_are() {
    let guid = Guid::random(u128::MAX).0;
    // As text: xxxxxxxx-xxxx-4xxx-8xxx: the third group is little-endian.
    assert_eq!((guid[7], guid[8]), (0x4f, 0xbf));
}

proptest! {
    #[test]
    fn a_moved_table_is_whole_at_both_ends(
        starts in prop::collection::btree_set(40_u64..100_000, 0..20),
        image in 100_000_u64..200_000, more in 0_u64..10_000_000, large: bool, config in 1_u64..20 << 20,
    ) {
        let block = if large { 4096 } else { 512 };
        let starts: Vec<u64> = starts.into_iter().collect();
        let ends = starts.iter().skip(1).map(|next| next - 1).chain([99_999]);
        let parts: Vec<_> = starts.iter().zip(ends).map(|(first, last)| (*first, last, Guid::LINUX, "x")).collect();
        let head = disk(image, block, &parts)[..1 << 20].to_vec();
        let mut gpt = Gpt::primary(&head, block).unwrap();
        let blocks = image + more;
        gpt.fit(blocks).unwrap();
        let before: Vec<_> = gpt.partitions().collect();
        let added = gpt.add_at_end(config, "config-2", Guid::LINUX, Guid([9; 16])).ok();

        let mut moved = head.clone();
        gpt.write_primary(&mut moved);
        let primary = Gpt::primary(&moved, block).unwrap();
        let backup = gpt.backup();
        let header = &backup[backup.len() - usize::try_from(block).unwrap()..];
        let entries = entries_of(header, block).unwrap();
        prop_assert_eq!(entries.offset + backup.len() as u64, blocks * u64::from(block));
        let second = Gpt::parse(header, backup[..entries.len].to_vec(), block).unwrap();
        prop_assert_eq!(&second.entries, &primary.entries);
        prop_assert_eq!((second.header.own, second.header.alternate), (primary.header.alternate, 1));
        prop_assert_eq!(primary.header.alternate, blocks - 1);

        let mut after: Vec<_> = primary.partitions().collect();
        if let Some(added) = added {
            prop_assert!((added.last - added.first + 1) * u64::from(block) >= config);
            prop_assert_eq!(added.first * u64::from(block) % (1 << 20), 0);
            prop_assert!(before.iter().all(|old| old.last < added.first));
            prop_assert!(added.last * u64::from(block) < entries.offset);
            after.retain(|partition| *partition != added);
        }
        prop_assert_eq!(after, before);
    }

    #[test]
    fn arbitrary_tables_never_panic(mut header in prop::collection::vec(any::<u8>(), 512..1024), sound: bool, blocks: u64) {
        header[..8].copy_from_slice(SIGNATURE);
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        // As many as fit.
        header[80..88].copy_from_slice(&[4, 0, 0, 0, 128, 0, 0, 0]);
        header[24..32].copy_from_slice(&1_u64.to_le_bytes());
        header[72..80].copy_from_slice(&2_u64.to_le_bytes());
        let mut head = vec![0; 512];
        head.extend(&header[..512]);
        head.extend([7; 512]);
        if sound {
            let entries = checksum(&[7; 512]);
            head[512 + 88..512 + 92].copy_from_slice(&entries.to_le_bytes());
            head[512 + 16..512 + 20].fill(0);
            let sum = checksum(&head[512..512 + 92]);
            head[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
        }
        if let Ok(mut gpt) = Gpt::primary(&head, 512) {
            let _ = gpt.fit(blocks);
            let _ = gpt.add_at_end(1 << 20, "x", Guid::LINUX, Guid::default());
        }
    }
}
