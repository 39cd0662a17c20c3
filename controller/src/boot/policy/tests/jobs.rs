//! Machines that have a job, or had one.

use muster_proto::kinds::{Leave, Leaving, Then};

use super::*;

#[test]
fn an_ordered_inspection_survives_a_reboot_until_it_is_done() {
    let open = with_job(JobAction::Inspect, false);
    assert_eq!(row(Some(&open), None), [Ramdisk, Ramdisk, Ramdisk]);
    assert_eq!(
        row(Some(&open), Some(&discovered("unmanaged"))),
        [Ramdisk, Ramdisk, Ramdisk]
    );
    assert_eq!(
        row(Some(&open), Some(&discovered("provisioned"))),
        [Disk, Disk, Disk]
    );
    let done = with_job(JobAction::Inspect, true);
    assert_eq!(
        row(Some(&done), Some(&discovered("unmanaged"))),
        [Disk, Disk, Ramdisk]
    );
    let release = with_job(JobAction::Reboot, false);
    assert_eq!(
        boots(
            UnknownPolicy::Discover,
            Some(&release),
            Some(&discovered("unmanaged"))
        ),
        Disk
    );
}

/// Since a second that [`LEAVE`] tells.
fn provisioning() -> BareMetalHost {
    let mut host = discovered("provisioning");
    let history = serde_json::json!({ "provision": { "start": "1970-01-01T00:00:09Z" } });
    host.status.as_mut().unwrap().operation_history = Some(serde_json::from_value(history).unwrap());
    host
}

#[test]
fn a_machine_boots_its_disk_once_it_is_told_to_leave_the_ramdisk_with_its_image() {
    let host = specified(provisioning(), |spec| spec.image = an_image());
    let boots = |server: &Server| row(Some(server), Some(&host));
    for action in [JobAction::Clean, JobAction::Write] {
        for done in [false, true] {
            assert_eq!(boots(&with_job(action, done)), [Ramdisk, Ramdisk, Ramdisk]);
        }
    }
    for done in [false, true] {
        let mut leaving = with_job(JobAction::Reboot, done);
        leaving.spec.job.as_mut().unwrap().id = LEAVE.to_owned();
        assert_eq!(boots(&leaving), [Disk, Disk, Disk]);
        // What it was told in a former provisioning counts for nothing.
        leaving.spec.job.as_mut().unwrap().id = LEAVE.replace("-9-0-", "-8-0-");
        assert_eq!(boots(&leaving), [Ramdisk, Ramdisk, Ramdisk]);
        // Somebody else's reboot is no leave.
        assert_eq!(
            boots(&with_job(JobAction::Reboot, done)),
            [Ramdisk, Ramdisk, Ramdisk]
        );
    }
}

#[test]
fn a_machine_boots_its_disk_from_when_the_write_that_it_leaves_after_has_ended_well() {
    let host = specified(provisioning(), |spec| spec.image = an_image());
    let boots = |server: &Server| row(Some(server), Some(&host));
    let former = LEAVE.replace("-9-0-", "-8-0-");
    for (leave, is_former) in [(LEAVE, false), (former.as_str(), true)] {
        for cleans in [true, false] {
            let mut server = with_job(JobAction::Write, true);
            let job = server.spec.job.as_mut().unwrap();
            job.write = Some(Box::default());
            if cleans {
                let (id, write) = ("7".to_owned(), job.write.take().unwrap());
                let session = String::new();
                job.then = Some(Then { id, session, write });
                (job.id, job.action) = ("6".to_owned(), JobAction::Clean);
            }
            job.leave = Some(Leave {
                id: leave.to_owned(),
                ..Leave::default()
            });
            // By the word of an edge that knows nothing of it, nobody has told the machine.
            assert_eq!(boots(&server), [Ramdisk, Ramdisk, Ramdisk]);
            let last = server.status.as_mut().unwrap().job.as_mut().unwrap();
            last.leaving = Some(Leaving {
                id: leave.to_owned(),
                said: false,
            });
            let image = match is_former {
                false => [Disk, Disk, Disk],
                true => [Ramdisk, Ramdisk, Ramdisk],
            };
            assert_eq!(boots(&server), image);
            let last = server.status.as_mut().unwrap().job.as_mut().unwrap();
            "EIO".clone_into(&mut last.error);
            assert_eq!(
                boots(&server),
                [Ramdisk, Ramdisk, Ramdisk],
                "what is on its disk is taken away again"
            );
            let last = server.status.as_mut().unwrap().job.as_mut().unwrap();
            (last.done, last.error) = (false, String::new());
            assert_eq!(boots(&server), [Ramdisk, Ramdisk, Ramdisk]);
        }
    }
}

#[test]
fn a_job_that_destroys_data_waits_in_the_ramdisk_until_it_has_ended() {
    for action in [JobAction::Clean, JobAction::Write] {
        let open = with_job(action, false);
        for host in [
            discovered("unmanaged"),
            discovered("available"),
            a_host("available"),
        ] {
            assert_eq!(row(Some(&open), Some(&host)), [Ramdisk, Ramdisk, Ramdisk]);
            let protected = annotated(host.clone(), PROTECTED_ANNOTATION, "");
            assert_ne!(
                boots(UnknownPolicy::Discover, Some(&open), Some(&protected)),
                Ramdisk
            );
            let unprotected = annotated(host, PROTECTED_ANNOTATION, "false");
            assert_eq!(row(Some(&open), Some(&unprotected)), [Ramdisk, Ramdisk, Ramdisk]);
        }
        assert_eq!(row(Some(&open), None), [Ramdisk, Ramdisk, Ramdisk]);
        let done = with_job(action, true);
        assert_eq!(
            row(Some(&done), Some(&discovered("available"))),
            [Disk, Disk, Disk]
        );
    }
}

#[test]
fn a_cleaning_has_ended_once_the_write_that_follows_it_has() {
    for done in [false, true] {
        let mut server = with_job(JobAction::Clean, done);
        let then = Then {
            id: "8".to_owned(),
            ..Then::default()
        };
        server.spec.job.as_mut().unwrap().then = Some(then);
        server.status.as_mut().unwrap().job.as_mut().unwrap().id = "8".to_owned();
        let expected = match done {
            true => [Disk, Disk, Disk],
            false => [Ramdisk, Ramdisk, Ramdisk],
        };
        assert_eq!(row(Some(&server), Some(&discovered("available"))), expected);
    }
}

/// A Server and a host that come back from a backup have lost their status, and carry whatever job was in their spec.
#[test]
fn no_job_brings_a_restored_or_provisioned_machine_into_the_ramdisk() {
    for action in [JobAction::Inspect, JobAction::Clean, JobAction::Write] {
        let mut restored = with_job(action, false);
        restored.status = None;
        for host in [
            specified(a_host(""), |spec| spec.image = an_image()),
            specified(discovered(""), |spec| spec.image = an_image()),
            specified(a_host("provisioned"), |spec| spec.image = an_image()),
            a_host("provisioned"),
            a_host("externally provisioned"),
            a_host("deleting"),
            specified(a_host(""), |spec| spec.externally_provisioned = Some(true)),
        ] {
            assert_eq!(row(Some(&restored), Some(&host)), [Disk, Disk, Disk], "{host:?}");
            assert_eq!(
                row(Some(&with_job(action, false)), Some(&host)),
                [Disk, Disk, Disk],
                "{host:?}"
            );
        }
    }
}
