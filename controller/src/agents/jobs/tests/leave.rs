//! A machine that leaves its ramdisk after a write.

use muster_proto::{
    inventory::Inventory,
    kinds::{BareMetalHostSpec, HostBootMode, HostReference, LeaveAction},
};

use super::*;

/// A job that ends with a write, with or without a cleaning before it, after which the machine leaves; for the session `key`. `last`
/// is the job that the edge wrote of last, and the session that is there now is called `now`.
fn with_leave(cleans: bool, now: &str, last: Option<JobStatus>) -> Server {
    let mut server = with_then(now, last);
    let job = server.spec.job.as_mut().unwrap();
    if !cleans {
        let then = job.then.take().unwrap();
        (job.id, job.action, job.write) = (then.id, JobAction::Write, Some(then.write));
    }
    job.leave = Some(Leave {
        id: "leave".to_owned(),
        session: "key".to_owned(),
        action: LeaveAction::Reboot,
    });
    server
}

/// The good end of the write, as an edge writes it that tells the agent to leave with its answer.
fn written(said: bool) -> JobStatus {
    let id = "leave".to_owned();
    JobStatus {
        leaving: Some(Leaving { id, said }),
        ..done("write")
    }
}

fn given(server: &Server, last: &str, outcome: Option<Outcome>) -> Option<String> {
    command(server, &poll(last, outcome)).map(|command| command.id)
}

#[test]
fn a_machine_is_told_to_leave_once_the_good_end_of_its_write_is_stored() {
    for (cleans, first) in [(true, "clean"), (false, "write")] {
        let told =
            |last: Option<JobStatus>, outcome| given(&with_leave(cleans, "key", last), "write", outcome);
        let server = with_leave(cleans, "key", None);
        assert_eq!(given(&server, "", None).as_deref(), Some(first));
        // The end is written first: if it were lost, the disk would be written again.
        let request = poll("write", Some(Outcome::Done));
        assert_eq!(command(&server, &request), None);
        assert_eq!(news(&server, &request, false), Some(written(false)));
        for outcome in [Some(Outcome::Done), None] {
            assert_eq!(told(Some(written(false)), outcome).as_deref(), Some("leave"));
        }
        let ended = with_leave(cleans, "key", Some(written(false)));
        let way = command(&ended, &request).unwrap();
        assert_eq!((way.epoch, way.action), (7, Action::Reboot));
        let mut off = ended.clone();
        off.spec.job.as_mut().unwrap().leave.as_mut().unwrap().action = LeaveAction::PowerOff;
        assert_eq!(command(&off, &request).unwrap().action, Action::PowerOff);
        // Whatever the agent named last: the answer to the end may have been lost.
        assert_eq!(given(&ended, "", None).as_deref(), Some("leave"));
        // Of an end that an older edge wrote the control role knows that it has to order the rest.
        for last in [
            Some(taken_up("write")),
            Some(done("former")),
            Some(done("write")),
            None,
        ] {
            assert_eq!(told(last, None), None);
        }
        assert_eq!(told(Some(written(true)), None), None, "it has gone");
    }
}

#[test]
fn of_a_machine_that_leaves_with_the_answer_the_farewell_is_written_with_the_end_and_nothing_more_is_told() {
    for cleans in [true, false] {
        let going = |last: Option<JobStatus>, outcome, now: &str| {
            let request = PollRequest {
                goes_at_once: true,
                ..poll("write", outcome)
            };
            let server = with_leave(cleans, now, last);
            (
                news(&server, &request, false),
                says_farewell(&server, &request),
                command(&server, &request).map(|command| (command.id, command.farewell)),
            )
        };
        let done = Some(Outcome::Done);
        let left = JobStatus {
            summary: "done, and left".to_owned(),
            ..written(true)
        };
        let leave = |farewell| Some(("leave".to_owned(), farewell));
        assert_eq!(going(None, done.clone(), "key"), (Some(left.clone()), true, None));
        let taken = Some(taken_up("write"));
        assert_eq!(
            going(taken, done.clone(), "key"),
            (Some(left.clone()), true, None)
        );
        // And again, if the answer was lost.
        let told = Some(left.clone());
        assert_eq!(
            going(told.clone(), done.clone(), "key"),
            (None, true, leave(true))
        );
        // The end is written without it: it says so itself.
        let told_by_an_older_edge = Some(written(false));
        assert_eq!(
            going(told_by_an_older_edge, done.clone(), "key"),
            (None, false, leave(false))
        );
        // It has not gone after all, and has nothing to tell.
        assert_eq!(going(told.clone(), None, "key"), (None, false, None));
        // Another session than that for which it is decided.
        assert_eq!(going(told, done.clone(), "another"), (None, false, None));
        assert!(!going(None, done, "another").1);
        let failed = going(None, failing("no disk"), "key");
        assert!(!failed.1 && failed.0.unwrap().leaving.is_none());
    }
}

#[test]
fn no_machine_is_told_to_leave_after_a_write_that_failed_or_was_called_off() {
    let failed = failed("EIO", Failure::Final, &[]);
    for cleans in [true, false] {
        let server = with_leave(cleans, "key", None);
        assert_eq!(given(&server, "write", failing("EIO")), None);
        let failed = JobStatus {
            id: "write".to_owned(),
            ..failed.clone()
        };
        let server = with_leave(cleans, "key", Some(failed));
        for outcome in [failing("EIO"), Some(Outcome::Done), None] {
            assert_eq!(given(&server, "write", outcome), None);
        }
        let mut server = with_leave(cleans, "key", Some(written(false)));
        server.spec.job = None;
        assert_eq!(given(&server, "write", Some(Outcome::Done)), None);
    }
}

#[test]
fn no_image_is_given_to_a_ramdisk_in_another_mode_than_its_host_asks_for() {
    let mut host = BareMetalHost::new("h", BareMetalHostSpec::default());
    host.metadata.namespace = Some("metal".to_owned());
    host.metadata.uid = Some("u".to_owned());
    for cleans in [true, false] {
        let mut server = with_leave(cleans, "key", None);
        server.spec.host = Some(HostReference {
            namespace: "metal".to_owned(),
            name: "h".to_owned(),
            uid: "u".to_owned(),
        });
        let status = server.status.as_mut().unwrap();
        status.inventory = Some(Inventory::default().into());
        let given = command(&server, &poll("", None)).unwrap();
        for (asked, is_called_off) in [
            (None, false),
            (Some(HostBootMode::Legacy), false),
            (Some(HostBootMode::Uefi), true),
        ] {
            host.spec.boot_mode = asked;
            assert_eq!(
                calls_off(&server, Some(&host), &given),
                is_called_off,
                "{asked:?}"
            );
        }
        // The mode is nothing to a cleaning alone.
        server.spec.job.as_mut().unwrap().then = None;
        assert_eq!(calls_off(&server, Some(&host), &given), !cleans);
    }
}

#[test]
fn a_job_after_which_the_machine_leaves_is_for_one_session_whatever_is_known_of_it() {
    for cleans in [true, false] {
        for last in [
            None,
            Some(taken_up("clean")),
            Some(taken_up("write")),
            Some(done("write")),
            Some(written(false)),
        ] {
            let mut server = with_leave(cleans, "another", last);
            for id in ["", "clean", "write", "leave"] {
                assert_eq!(given(&server, id, None), None);
                assert_eq!(given(&server, id, Some(Outcome::Done)), None);
            }
            // As it comes back from a backup.
            server.status = None;
            assert_eq!(given(&server, "", None), None);
        }
    }
}

#[test]
fn what_an_older_control_role_left_of_an_earlier_job_keeps_no_session_from_its_cleaning() {
    let mut server = with_leave(true, "another", None);
    let job = server.spec.job.as_mut().unwrap();
    assert_eq!(job.action, JobAction::Clean);
    job.then = None;
    assert_eq!(given(&server, "", None).as_deref(), Some("clean"));
}

#[test]
fn a_machine_that_two_claim_to_be_may_leave_and_one_whose_server_is_read_in_part_is_told_nothing() {
    let mut server = with_leave(true, "key", Some(written(false)));
    server.status.as_mut().unwrap().contested = true;
    assert_eq!(given(&server, "write", None).as_deref(), Some("leave"));
    let marks = [(crate::lenient::UNREADABLE_ANNOTATION.to_owned(), String::new())];
    server.metadata.annotations = Some(marks.into());
    assert_eq!(given(&server, "write", None), None);
}

#[test]
fn who_leaves_after_a_write_says_farewell_and_the_write_stays_the_last_job() {
    for cleans in [true, false] {
        let server = with_leave(cleans, "key", Some(written(false)));
        assert!(mentions(&server, "leave"));
        let request = poll("leave", Some(Outcome::Done));
        assert!(says_farewell(&server, &request));
        let told = news(&server, &request, false).unwrap();
        let expected = JobStatus {
            summary: "done, and left".to_owned(),
            ..written(true)
        };
        assert_eq!(told, expected);
        let gone = with_leave(cleans, "key", Some(told));
        for outcome in [Some(Outcome::Done), failing("refused"), None] {
            let request = poll("leave", outcome.clone());
            assert_eq!(command(&server, &request), None, "it is not told twice");
            assert_eq!(news(&gone, &request, true), None);
            let early = with_leave(cleans, "key", None);
            assert_eq!(news(&early, &request, true), None, "nobody told it to");
        }
        assert_eq!(news(&server, &poll("leave", failing("refused")), false), None);
        assert!(!says_farewell(&server, &poll("leave", failing("refused"))));
        assert!(!says_farewell(&server, &poll("write", Some(Outcome::Done))));
    }
}

#[test]
fn what_a_machine_is_at_goes_on_and_what_only_follows_it_may_wait() {
    let at = |id: &str| {
        Some(JobStatus {
            id: id.to_owned(),
            ..JobStatus::default()
        })
    };
    let cases = [
        (false, None, false),
        (false, at("write"), true),
        (true, None, false),
        (true, at("clean"), false),
        (true, at("write"), true),
    ];
    for (cleans, last, begun) in cases {
        let server = with_leave(cleans, "key", last.clone());
        let command = command(&server, &PollRequest::default()).unwrap();
        assert_eq!(is_begun(&server, &command), begun, "{cleans}, {last:?}");
    }
}
