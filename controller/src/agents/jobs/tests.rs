use muster_proto::{
    inventory::Inventory,
    job::{ImageSource, MachineId, Write},
    kinds::{
        BareMetalHostSpec, HostBootMode, HostReference, LeaveAction, Packed, ServerSpec, ServerStatus,
        Session,
    },
    session::MAX_LOG,
};

use super::*;

fn with_job(job: Job, last: Option<JobStatus>) -> Server {
    let mut server = Server::new(
        "a",
        ServerSpec {
            job: Some(Box::new(job)),
            ..ServerSpec::default()
        },
    );
    server.status = Some(ServerStatus {
        job: last,
        ..ServerStatus::default()
    });
    server
}

fn server(job: &str, last: Option<JobStatus>) -> Server {
    let job = Job {
        id: job.to_owned(),
        action: JobAction::Inspect,
        ..Job::default()
    };
    with_job(job, last)
}

fn poll(last: &str, outcome: Option<Outcome>) -> PollRequest {
    PollRequest {
        last: last.to_owned(),
        outcome,
        ..PollRequest::default()
    }
}

fn taken_up(id: &str) -> JobStatus {
    JobStatus {
        id: id.to_owned(),
        summary: "taken up".to_owned(),
        ..JobStatus::default()
    }
}

fn done(id: &str) -> JobStatus {
    JobStatus {
        id: id.to_owned(),
        done: true,
        summary: "done".to_owned(),
        ..JobStatus::default()
    }
}

fn failing(message: &str) -> Option<Outcome> {
    Some(Outcome::Failed {
        message: message.to_owned(),
        failure: Failure::Final,
    })
}

#[test]
fn an_order_is_answered_until_it_is_taken_up() {
    let id = |server: &Server, last| next_command(server, last).map(|command| command.id);
    assert_eq!(id(&server("1", None), "").as_deref(), Some("1"));
    assert_eq!(id(&server("1", None), "0").as_deref(), Some("1"));
    assert_eq!(next_command(&server("1", None), "1"), None);
    assert_eq!(next_command(&server("", None), ""), None);
}

#[test]
fn a_write_whose_algorithm_only_a_newer_version_knows_is_not_passed_on() {
    for (algorithm, is_given) in [(DigestAlgorithm::Unknown, false), (DigestAlgorithm::Sha512, true)] {
        let mut write = Box::<Write>::default();
        write.image.algorithm = algorithm;
        let job = Job {
            id: "1".to_owned(),
            action: JobAction::Write,
            write: Some(write.clone()),
            ..Job::default()
        };
        assert_eq!(next_command(&with_job(job, None), "").is_some(), is_given);
        let then = Then {
            id: "2".to_owned(),
            session: "k".to_owned(),
            write,
        };
        let job = Job {
            id: "1".to_owned(),
            action: JobAction::Clean,
            then: Some(then),
            ..Job::default()
        };
        let mut server = with_job(job, None);
        server.status.get_or_insert_default().session = Some(Session {
            key: "k".to_owned(),
            ..Session::default()
        });
        let cleaned = poll("1", Some(Outcome::Done));
        assert_eq!(following(&server, &cleaned).is_some(), is_given);
        assert_eq!(command(&server, &poll("", None)).is_some(), is_given);
    }
}

#[test]
fn an_order_that_has_ended_is_never_given_to_a_later_session() {
    for ended in [
        done("1"),
        JobStatus {
            error: "e".to_owned(),
            ..done("1")
        },
    ] {
        assert_eq!(next_command(&server("1", Some(ended)), ""), None);
    }
    assert!(next_command(&server("1", Some(taken_up("1"))), "").is_some());
    assert!(next_command(&server("1", Some(done("0"))), "").is_some());
}

#[test]
fn every_action_reaches_the_agent_with_its_term_and_its_details() {
    let machine = MachineId {
        system_serial: Some("SN1".to_owned()),
        ..MachineId::default()
    };
    let clean = Clean {
        machine: machine.clone(),
        ..Clean::default()
    };
    let write = Box::new(Write {
        machine,
        image: ImageSource {
            url: "http://x/y".to_owned(),
            ..ImageSource::default()
        },
        config_drive: Some("sealed".to_owned()),
        ..Write::default()
    });
    for (action, expected) in [
        (JobAction::Inspect, Action::Inspect),
        (JobAction::Reboot, Action::Reboot),
        (JobAction::PowerOff, Action::PowerOff),
        (JobAction::Clean, Action::Clean(clean.clone())),
        (JobAction::Write, Action::Write(write.clone())),
    ] {
        let job = Job {
            id: "1".to_owned(),
            epoch: 7,
            action,
            clean: Some(Packed::new(&clean)),
            write: Some(write.clone()),
            ..Job::default()
        };
        let command = next_command(&with_job(job, None), "").unwrap();
        assert_eq!((command.epoch, command.action), (7, expected));
    }
}

#[test]
fn nothing_that_destroys_data_is_given_to_a_session_that_is_contested() {
    for (action, given) in [
        (JobAction::Inspect, true),
        (JobAction::Clean, false),
        (JobAction::Write, false),
    ] {
        let job = Job {
            id: "1".to_owned(),
            action,
            ..Job::default()
        };
        let mut server = with_job(job, None);
        server.status.as_mut().unwrap().contested = true;
        assert_eq!(next_command(&server, "").is_some(), given, "{action:?}");
    }
}

#[test]
fn nothing_is_ordered_by_a_server_of_which_a_part_cannot_be_read() {
    let mark = |mut server: Server| {
        let marks = [(crate::lenient::UNREADABLE_ANNOTATION.to_owned(), String::new())];
        server.metadata.annotations = Some(marks.into());
        server
    };
    assert_eq!(next_command(&mark(server("1", None)), ""), None);
    let request = poll("clean", Some(Outcome::Done));
    assert!(goes_on(&with_then("key", None), &request));
    let marked = mark(with_then("key", None));
    assert!(!goes_on(&marked, &request));
    assert_eq!(
        (command(&marked, &request), news(&marked, &request, false)),
        (None, Some(done("clean"))),
        "the end of what was done is not lost"
    );
}

#[test]
fn the_outcome_of_the_order_is_told_once_and_the_first_one_stays() {
    assert_eq!(
        news(&server("1", None), &poll("1", None), true),
        Some(taken_up("1"))
    );
    let taken = server("1", Some(taken_up("1")));
    assert_eq!(news(&taken, &poll("1", None), true), None);
    assert_eq!(
        news(&taken, &poll("1", Some(Outcome::Done)), false),
        Some(done("1"))
    );
    let ended = server("1", Some(done("1")));
    for later in [None, Some(Outcome::Done), failing("after all")] {
        assert_eq!(news(&ended, &poll("1", later), true), None);
    }
}

#[test]
fn a_failure_is_told_in_clean_text_with_the_newest_lines_of_the_log() {
    let mut request = poll("1", failing("no\x1b[31m\nluck"));
    request.log = (0..2000).map(|number| format!("\x1b[2Jline {number}")).collect();
    let told = news(&server("1", None), &request, false).unwrap();
    assert_eq!(
        (told.error.as_str(), told.failure, told.done),
        ("no [31m luck", Some(Failure::Final), true)
    );
    assert_eq!(told.summary, "failed: no [31m luck");
    assert_eq!(told.log.last().unwrap(), "[2Jline 1999");
    let bytes: usize = told.log.iter().map(|line| line.len() + 1).sum();
    assert!(bytes <= MAX_LOG && bytes > MAX_LOG - 100, "{bytes}");

    let told = news(&server("1", None), &poll("1", failing("")), false).unwrap();
    assert!(!told.error.is_empty());
    let long = news(&server("1", None), &poll("1", failing(&"x".repeat(5000))), false).unwrap();
    assert!(long.error.len() <= MAX_ERROR && long.summary.len() <= MAX_SUMMARY);
}

#[test]
fn an_order_that_nobody_gave_has_no_outcome() {
    let nobodys = poll("0", Some(Outcome::Done));
    assert_eq!(news(&server("1", None), &nobodys, false), None);
    let nameless = poll("", Some(Outcome::Done));
    assert_eq!(news(&server("", None), &nameless, false), None);
    let replaced = server("2", Some(taken_up("1")));
    assert_eq!(
        news(&replaced, &poll("1", Some(Outcome::Done)), false),
        Some(done("1"))
    );
}

#[test]
fn a_failure_is_kept_when_another_job_follows_it() {
    let mut status = ServerStatus::default();
    let failure = |id: &str, failure| JobStatus {
        id: id.to_owned(),
        ..failed("no space", failure, &["the log".to_owned()])
    };
    put(&mut status, failure("1", Failure::Final));
    assert_eq!(status.last_failure, None, "it stands in its own place");
    for id in ["2", "3"] {
        put(&mut status, taken_up(id));
        put(&mut status, done(id));
        assert_eq!(status.last_failure, Some(Box::new(failure("1", Failure::Final))));
        assert_eq!(status.job, Some(done(id)));
    }
    put(&mut status, failure("4", Failure::Outdated));
    put(&mut status, taken_up("5"));
    assert_eq!(status.last_failure, Some(Box::new(failure("1", Failure::Final))));
    put(&mut status, failure("5", Failure::Temporary));
    put(&mut status, taken_up("6"));
    assert_eq!(
        status.last_failure,
        Some(Box::new(failure("5", Failure::Temporary)))
    );
}

#[test]
fn progress_is_written_when_it_is_due_and_stays_until_then() {
    let telling = |percent, bytes_per_second| PollRequest {
        progress: Some(Progress {
            step: "write\nimage".to_owned(),
            percent,
            bytes_per_second,
        }),
        ..poll("1", None)
    };
    let first = news(&server("1", None), &telling(1, 0), true).unwrap();
    assert_eq!(first.summary, "write image 1 %");
    let shown = server("1", Some(first.clone()));
    assert_eq!(news(&shown, &telling(50, 765_000_000), false), None);
    let later = news(&shown, &telling(255, u64::MAX), true).unwrap();
    let progress = later.progress.unwrap();
    assert_eq!(
        (progress.percent, progress.bytes_per_second),
        (100, i64::MAX.unsigned_abs())
    );
    let fast = news(&shown, &telling(50, 765_000_000), true).unwrap();
    assert_eq!(fast.summary, "write image 50 %, 765 MB/s");
}

#[test]
fn only_who_left_as_told_says_farewell() {
    let told = |action| {
        let job = Job {
            id: "op".to_owned(),
            action,
            ..Job::default()
        };
        with_job(job, None)
    };
    for action in [JobAction::Reboot, JobAction::PowerOff] {
        let server = told(action);
        assert!(says_farewell(&server, &poll("op", Some(Outcome::Done))));
        assert!(!says_farewell(&server, &poll("op", None)));
        assert!(!says_farewell(&server, &poll("op", failing("no"))));
        assert!(!says_farewell(&server, &poll("former", Some(Outcome::Done))));
    }
    let inspect = told(JobAction::Inspect);
    assert!(!says_farewell(&inspect, &poll("op", Some(Outcome::Done))));
}

/// A cleaning that a write follows, for the session `key`; `last` is the job that the edge wrote of last.
fn with_then(key: &str, last: Option<JobStatus>) -> Server {
    let job = Job {
        id: "clean".to_owned(),
        epoch: 7,
        action: JobAction::Clean,
        then: Some(Then {
            id: "write".to_owned(),
            session: "key".to_owned(),
            ..Then::default()
        }),
        ..Job::default()
    };
    let mut server = with_job(job, last);
    server.status.as_mut().unwrap().session = Some(Session {
        key: key.to_owned(),
        ..Session::default()
    });
    server
}

#[test]
fn what_follows_a_job_is_given_with_the_answer_to_its_good_end_which_is_not_written() {
    let told = |server: &Server, last, outcome: Option<Outcome>| {
        let request = poll(last, outcome);
        let given = command(server, &request).map(|command| (command.id, command.epoch));
        (given, news(server, &request, false))
    };
    let given = |id: &str| Some((id.to_owned(), 7));
    let server = with_then("key", None);
    assert_eq!(told(&server, "", None), (given("clean"), None));
    for _ in 0..2 {
        assert_eq!(
            told(&server, "clean", Some(Outcome::Done)),
            (given("write"), None)
        );
    }
    let (none, failure) = told(&server, "clean", failing("no"));
    assert!(none.is_none() && failure.unwrap().done);
    assert_eq!(told(&server, "clean", None), (None, Some(taken_up("clean"))));
    assert_eq!(told(&server, "write", None), (None, Some(taken_up("write"))));
    assert_eq!(
        told(&server, "write", Some(Outcome::Done)),
        (None, Some(done("write")))
    );
    let former = with_then("key", Some(done("former")));
    assert_eq!(told(&former, "clean", Some(Outcome::Done)).0, given("write"));
}

#[test]
fn what_follows_a_job_is_given_to_no_other_session_and_never_again_once_it_has_ended() {
    let ends = |server: &Server| {
        let request = poll("clean", Some(Outcome::Done));
        (command(server, &request), news(server, &request, false))
    };
    for last in [None, Some(taken_up("clean"))] {
        let other = with_then("another", last.clone());
        assert_eq!(
            ends(&other),
            (None, Some(done("clean"))),
            "the control role goes on"
        );
        let mut contested = with_then("key", last);
        contested.status.as_mut().unwrap().contested = true;
        assert_eq!(ends(&contested).0, None);
    }
    // What an older edge has written ends it: the control role orders the rest by itself.
    let ended = with_then("key", Some(done("clean")));
    assert_eq!(
        (ends(&ended), command(&ended, &poll("", None))),
        ((None, None), None)
    );
    for (key, last, again) in [
        ("key", taken_up("write"), Some("write")),
        ("another", taken_up("write"), None),
        ("key", done("write"), None),
        ("another", done("write"), None),
    ] {
        let server = with_then(key, Some(last));
        let given = command(&server, &poll("", None)).map(|command| command.id);
        assert_eq!(given.as_deref(), again, "{key}");
        assert_eq!(ends(&server).1, None, "what is past is told no more");
    }
}

/// An order that ends with a write, with or without a cleaning before it, after which the machine leaves; for the session `key`. `last`
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
fn an_order_after_which_the_machine_leaves_is_for_one_session_whatever_is_known_of_it() {
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
fn what_an_older_control_role_left_of_an_earlier_order_keeps_no_session_from_its_cleaning() {
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
