use muster_proto::kinds::{Job, ServerSpec};

use super::*;

fn server(job: &str, last: Option<JobStatus>) -> Server {
    let job = Job {
        id: job.to_owned(),
        action: JobAction::Inspect,
        ..Job::default()
    };
    let mut server = Server::new(
        "a",
        ServerSpec {
            job: Some(job),
            ..ServerSpec::default()
        },
    );
    server.status = Some(ServerStatus {
        job: last,
        ..ServerStatus::default()
    });
    server
}

fn poll(last: &str, outcome: Option<Outcome>) -> PollRequest {
    PollRequest {
        last: last.to_owned(),
        outcome,
    }
}

fn outcome(id: &str, error: &str, done: bool) -> JobStatus {
    JobStatus {
        id: id.to_owned(),
        error: error.to_owned(),
        done,
        ..JobStatus::default()
    }
}

#[test]
fn an_order_is_answered_until_it_is_taken_up() {
    assert_eq!(
        next_command(&server("1", None), "")
            .map(|command| command.id)
            .as_deref(),
        Some("1")
    );
    assert_eq!(
        next_command(&server("1", None), "0")
            .map(|command| command.id)
            .as_deref(),
        Some("1")
    );
    assert_eq!(next_command(&server("1", None), "1"), None);
    assert_eq!(next_command(&server("", None), ""), None);
}

#[test]
fn the_outcome_of_the_order_is_told_once() {
    let taken_up = outcome("1", "", false);
    assert_eq!(
        outcome_of(&server("1", None), &poll("1", None)),
        Some(taken_up.clone())
    );
    assert_eq!(
        outcome_of(&server("1", Some(taken_up.clone())), &poll("1", None)),
        None
    );
    let done = outcome("1", "", true);
    assert_eq!(
        outcome_of(&server("1", Some(taken_up)), &poll("1", Some(Outcome::Done))),
        Some(done.clone())
    );
    assert_eq!(outcome_of(&server("1", Some(done)), &poll("1", None)), None);
}

#[test]
fn a_failure_is_told_in_clean_text() {
    let failed = |message: &str| {
        Some(Outcome::Failed {
            message: message.to_owned(),
        })
    };
    assert_eq!(
        outcome_of(&server("1", None), &poll("1", failed("no\x1b[31m\nluck"))),
        Some(outcome("1", "no [31m luck", true))
    );
    assert!(
        !outcome_of(&server("1", None), &poll("1", failed("")))
            .unwrap()
            .error
            .is_empty()
    );
}

#[test]
fn an_order_that_nobody_gave_has_no_outcome() {
    assert_eq!(
        outcome_of(&server("1", None), &poll("0", Some(Outcome::Done))),
        None
    );
    assert_eq!(
        outcome_of(&server("", None), &poll("", Some(Outcome::Done))),
        None
    );
    let replaced = server("2", Some(outcome("1", "", false)));
    assert_eq!(
        outcome_of(&replaced, &poll("1", Some(Outcome::Done))),
        Some(outcome("1", "", true))
    );
}
