//! A disk that fails, a write that is stopped, and power that goes.

use super::*;

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
fn a_disk_that_cannot_be_made_unbootable_is_not_said_to_be_so() {
    for bad in [0, 600_000, 10 * MIB - 4096] {
        let mut disk = old_disk(BLOCK);
        disk.bad = Some((bad as u64, Errno::EROFS));
        let old = disk.bytes.clone();
        let (failed, after) = Trial::of(image(BLOCK)).write(&mut disk);
        assert!(matches!(failed, Err(Failure::Disk { .. })));
        assert_eq!(after, After::Old);
        assert_eq!(
            disk.bytes[MIB..9 * MIB],
            old[MIB..9 * MIB],
            "nothing of the image"
        );
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
fn a_stopped_write_never_boots() {
    let mut trial = Trial::of(image(BLOCK));
    let stopper = std::sync::Arc::new(std::sync::OnceLock::<Work>::new());
    let stop = std::sync::Arc::clone(&stopper);
    trial.work = Work::new(move |progress| {
        if progress.step == "add to boot order" {
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
fn an_image_that_becomes_another_one_in_the_middle_is_written_from_its_beginning() {
    let trial = Trial::of(zstd(&image(BLOCK)));
    let root = trial.tree.root();
    // So many tries meet another file in the middle; in the second the disk fails or not.
    for (others, fails) in [(1, false), (BEGINNINGS, false), (1, true)] {
        let mut disk = old_disk(BLOCK);
        let (mut tries, mut after) = (0, After::Untouched);
        let written = anew(|| {
            tries += 1;
            let is_other = tries <= others;
            if fails && tries == 2 {
                disk.bad = Some((0, Errno::EIO));
            }
            let writing = Writing {
                wanted: trial.wanted.clone(),
                config_drive: None,
                is_drive_optional: false,
                root: &root,
                target: &trial.target,
                work: &trial.work,
            };
            let fetch = |sink: &mut dyn Sink| {
                if is_other {
                    let half = image_with(BLOCK, "other")[..6 * MIB].to_vec();
                    sink.take(half.into());
                    let url = String::new();
                    return Err(SourceError::Changed { url, at: 1 });
                }
                let bytes = trial.packed.len() as u64;
                sink.take(trial.packed.clone().into());
                Ok(Got {
                    bytes,
                    is_told: true,
                    encoding: None,
                })
            };
            writing.write(&mut disk, fetch, &mut after)
        });
        if others == 1 && !fails {
            written.unwrap();
            assert_eq!(tries, 2);
            assert!(disk.bytes[MIB..7 * MIB] == image(BLOCK)[MIB..7 * MIB]);
        } else {
            let failed = written.unwrap_err();
            assert_eq!(matches!(failed, Failure::Disk { .. }), fails, "{failed}");
            assert_eq!(tries, if fails { 2 } else { BEGINNINGS });
            // Of the first try nothing boots, so nothing that was there before does.
            assert_eq!(after, After::Unbootable);
            assert!(is_unbootable(&disk.bytes));
        }
    }
}

#[test]
fn every_thread_of_a_write_works_for_who_ordered_it() {
    let trial = Trial::of(image(BLOCK));
    let writing = Writing {
        wanted: trial.wanted.clone(),
        config_drive: None,
        is_drive_optional: false,
        root: &trial.tree.root(),
        target: &trial.target,
        work: &trial.work,
    };
    let fetch = |sink: &mut dyn Sink| {
        assert!(crate::work::break_off("index out of bounds"));
        sink.take(trial.packed.clone().into());
        Ok(Got {
            bytes: 0,
            is_told: true,
            encoding: None,
        })
    };
    let stopped = writing
        .write(&mut old_disk(BLOCK), fetch, &mut After::Untouched)
        .unwrap_err();
    assert!(matches!(stopped, Failure::Stopped { .. }), "{stopped}");
    assert!(trial.work.is_broken());
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
    let part = |bytes: &[u8], at: usize| bytes[512 * at..512 * (at + 1)].to_vec();
    let has_first = (0..8).any(|at| part(&found, at) != part(&old, at) && !is_zero(&part(&found, at)));
    assert!(!has_first || found[4096..] == whole.disk.bytes[4096..]);
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
