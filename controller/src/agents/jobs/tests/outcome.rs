//! What is written of what an agent tells.

use muster_proto::session::{MAX_LOG, MAX_WARNINGS};

use super::*;

#[test]
fn the_outcome_of_the_job_is_told_once_and_the_first_one_stays() {
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
fn only_an_outcome_has_lists_so_that_no_poll_that_is_held_keeps_one() {
    let log = vec!["a line".to_owned()];
    for (outcome, kept, warns) in [
        (None, false, false),
        (Some(Outcome::Done), false, true),
        (failing("no luck"), true, true),
    ] {
        let told = PollRequest {
            log: log.clone(),
            warnings: log.clone(),
            ..poll("1", outcome.clone())
        };
        let heard = heard(told);
        assert_eq!((heard.log == log, heard.log.capacity() > 0), (kept, kept));
        let warned = (heard.warnings == log, heard.warnings.capacity() > 0);
        assert_eq!(warned, (warns, warns));
        assert_eq!((heard.last.as_str(), heard.outcome), ("1", outcome));
    }
}

#[test]
fn what_an_agent_warns_of_is_kept_in_clean_text_with_a_good_end_and_stays_when_the_machine_leaves() {
    let mut request = poll("1", Some(Outcome::Done));
    request.warnings = vec!["no\x1b[31m\nentry".to_owned(), " ".to_owned(), "x".repeat(5000)];
    let told = news(&server("1", None), &request, false).unwrap();
    assert_eq!(
        told.warnings,
        ["no [31m entry".to_owned(), "x".repeat(MAX_WARNING)]
    );
    let known = JobStatus {
        leaving: Some(Leaving::default()),
        ..told.clone()
    };
    let left = left(&known, &poll("2", Some(Outcome::Done))).unwrap();
    assert_eq!(left.warnings, told.warnings);

    request.warnings = vec!["x".to_owned(); 1000];
    let many = news(&server("1", None), &request, false).unwrap();
    assert_eq!(many.warnings.len(), MAX_WARNINGS);
    request.outcome = failing("no space");
    let failed = news(&server("1", None), &request, false).unwrap();
    assert_eq!(failed.warnings, [""; 0], "its log says them");
}

#[test]
fn a_job_that_nobody_gave_has_no_outcome() {
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
    for (speed, expected) in [
        (999_999, "write image 50 %, 999 kB/s"),
        (50_000, "write image 50 %, 50 kB/s"),
        (999, "write image 50 %"),
    ] {
        let slow = news(&shown, &telling(50, speed), true).unwrap();
        assert_eq!(slow.summary, expected);
    }
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
