//! What goes on the config drive, when, and what is left of it.

use super::*;
use crate::{
    disk::{gpt::GptError, guard::tests::machine},
    inventory,
};

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

/// Where the partition of [`filling`] begins.
const ROOT: usize = 2 * MIB;

/// An image whose partition, of zeros, leaves no room for a config drive behind it, and the disk for it.
fn filling() -> (Vec<u8>, SimDisk) {
    let blocks = |mib: u64| mib * MIB as u64 / u64::from(BLOCK);
    let parts = [(blocks(2), blocks(12) - 1, Guid::LINUX, "root")];
    let mut image = gpt_tests::disk(blocks(13), BLOCK, &parts);
    image.truncate(12 * MIB);
    image[..440].fill(0x90);
    (image, SimDisk::new(12 * MIB + 32 * 1024, BLOCK, 0xee))
}

#[test]
fn a_config_drive_without_room_is_refused_before_the_whole_image_came() {
    let own = config_drive::image(&ConfigDrive::default(), BLOCK).unwrap();
    for had_one in [false, true] {
        let (image, mut disk) = filling();
        if had_one {
            // Of an earlier image, where this one has zeros.
            disk.bytes[ROOT..][..own.len()].copy_from_slice(&own);
        }
        let mut trial = Trial::of(image);
        trial.config = Some(Box::new(ConfigDrive::default()));
        // Which shows at the end of the image only.
        trial.wanted = sha256(b"another");
        let refused = trial.fails(&mut disk, After::Unbootable);
        assert!(
            matches!(
                refused,
                Failure::Layout {
                    source: LayoutError::Place(GptError::NoRoom { .. })
                }
            ),
            "{had_one}: {refused}"
        );
        let told = Chain(&refused).to_string();
        assert!(
            told.starts_with("place the config drive: there is no room"),
            "{told}"
        );
    }
}

#[test]
fn an_image_that_leaves_no_room_is_written_without_a_config_drive_that_nobody_asked_for() {
    let (image, mut disk) = filling();
    let mut trial = Trial::of(image.clone());
    trial.config = Some(Box::new(ConfigDrive::default()));
    trial.is_drive_optional = true;
    trial.write(&mut disk).0.unwrap();
    assert_eq!(Gpt::primary(&disk.bytes, BLOCK).unwrap().partitions().count(), 1);
    assert!(disk.bytes[MIB..12 * MIB] == image[MIB..12 * MIB]);
    let warnings = trial.work.warnings();
    assert!(
        matches!(&warnings[..], [warning] if warning.contains("place the config drive: there is no room")),
        "{warnings:?}"
    );
    // Where it has room it is there.
    let mut trial = Trial::of(zstd(&super::image(BLOCK)));
    trial.config = Some(Box::new(ConfigDrive::default()));
    trial.is_drive_optional = true;
    let mut disk = old_disk(BLOCK);
    trial.write(&mut disk).0.unwrap();
    let last = Gpt::primary(&disk.bytes, BLOCK).unwrap().partitions().last();
    assert_eq!(last.unwrap().name, "config-2");
    assert_eq!(trial.work.warnings(), [""; 0]);
}

#[test]
fn an_image_that_fills_the_disk_takes_the_config_drive_in_a_file_system_of_that_name() {
    let (mut image, mut disk) = filling();
    let own = config_drive::image(&ConfigDrive::default(), BLOCK).unwrap();
    image[ROOT..][..own.len()].copy_from_slice(&own);
    let mut trial = Trial::of(zstd(&image));
    trial.config = Some(Box::new(ConfigDrive {
        user_data: Some(b"#cloud-config".to_vec()),
        ..ConfigDrive::default()
    }));
    trial.write(&mut disk).0.unwrap();
    assert_eq!(
        files(&disk.bytes[ROOT..])["/openstack/latest/user_data"],
        b"#cloud-config"
    );
}

#[test]
fn a_config_drive_that_another_disk_still_has_is_a_warning() {
    let own = config_drive::image(&ConfigDrive::default(), BLOCK).unwrap();
    let other = "sys/devices/pci0000:00/0000:00:05.0/virtio5/block/vdb";
    let machine = || machine().file(&format!("{other}/vdb1/partition"), "1\n");
    for (tree, expected, what) in [
        (machine(), 0, "none"),
        (machine().file("dev/vdb1", &own), 1, "on a partition"),
        (machine().file("dev/vdb", &own), 1, "on the whole disk"),
        (machine().file("dev/vda", &own), 0, "on the disk that is written"),
        (machine().directory("dev/vdb1"), 0, "cannot be read"),
        (
            machine()
                .file("dev/vdb1", &own)
                .file(&format!("{other}/serial"), "A"),
            0,
            "by another path to the disk that is written",
        ),
    ] {
        let mut trial = Trial::of(image(BLOCK));
        trial.target = inventory::disks(&tree.root()).remove(0);
        assert_eq!(trial.target.name, "/dev/vda");
        trial.tree = tree;
        trial.write(&mut old_disk(BLOCK)).0.unwrap();
        let warnings = trial.work.warnings();
        assert_eq!(warnings.len(), expected, "{what}: {warnings:?}");
        assert!(
            warnings
                .iter()
                .all(|warning| warning.contains("/dev/vdb, serial B")),
            "{warnings:?}"
        );
    }
}
