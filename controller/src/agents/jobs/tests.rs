mod leave;
mod outcome;

use muster_proto::{
    job::{ImageSource, MachineId, Write},
    kinds::{Packed, ServerSpec, ServerStatus, Session},
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
fn a_job_is_answered_until_it_is_taken_up() {
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
fn a_job_that_has_ended_is_never_given_to_a_later_session() {
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
