use std::collections::BTreeSet;

use muster_proto::{
    job::Failure,
    kinds::{JobStatus, SessionState},
    session::{Action, Outcome},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn state(lab: &Lab) -> SessionState {
    lab.status(&name(1)).session.unwrap().state
}

fn job(lab: &Lab, id: &str, action: &str) {
    lab.api.edit(
        "servers",
        &name(1),
        &json!({ "spec": { "job": { "id": id, "action": action } } }),
    );
}

#[tokio::test]
async fn a_job_reaches_a_held_poll_at_once_and_its_outcome_is_written() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    let (answer, ()) = tokio::join!(agent.poll(""), async {
        lab.until_held().await;
        job(&lab, "op-1", "inspect");
    });
    let command = answer.unwrap().command.unwrap();
    assert_eq!((command.id.as_str(), command.action), ("op-1", Action::Inspect));

    job(&lab, "op-2", "reboot");
    let failed = Some(Outcome::Failed {
        message: "no\n disk".into(),
        failure: Failure::Temporary,
    });
    let answer = agent
        .poll_with(PollRequest {
            last: "op-1".into(),
            outcome: failed,
            ..PollRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(answer.command.unwrap().action, Action::Reboot);
    assert_eq!(
        lab.status(&name(1)).job,
        None,
        "a job that was replaced before it was taken up is nobody's"
    );

    let done = PollRequest {
        last: "op-2".into(),
        outcome: Some(Outcome::Done),
        ..PollRequest::default()
    };
    let expected = JobStatus {
        id: "op-2".into(),
        done: true,
        summary: "done".into(),
        ..JobStatus::default()
    };
    // Not only at the poll's own end: the machine reboots as soon as it knows that this was heard.
    let heard = agent.poll_with(done).await;
    assert_eq!(heard.expect("an answer at once").command, None);
    assert_eq!(lab.status(&name(1)).job, Some(expected));
}

#[tokio::test]
async fn a_stranger_that_enrolled_makes_a_bounded_number_of_requests() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    assert!(
        agent.poll_with(ended("op-0")).await.is_ok(),
        "it is shown as here"
    );
    lab.api.requests();
    let mut refused = 0;
    for number in 1..=100 {
        let answer = agent.poll_with(ended(&format!("op-{number}"))).await;
        refused += usize::from(answer.is_err());
    }
    let asked = lab.api.requests();
    assert!(
        asked.len() <= 40 && refused >= 60,
        "{} requests, {refused} refused",
        asked.len()
    );
}

/// Each for another reason: what the watched copy shows says no, and only the API server's word counts for that.
#[tokio::test]
async fn a_certificate_that_counts_no_more_makes_a_bounded_number_of_requests() {
    for reason in ["superseded", "deleted", "contested and deleted"] {
        let lab = Lab::new().await;
        let (token, mut old) = (lab.token(1), lab.agent(1));
        old.enrol(&token).await.unwrap();
        match reason {
            "superseded" => drop(lab.enrolled(1).await),
            "deleted" => lab.api.delete("servers", &name(1)),
            _ => {
                lab.agent(9).enrol(&token).await.unwrap_err();
                lab.api.delete("servers", &name(1));
            }
        }
        lab.api.requests();
        let first = old.poll("").await.unwrap_err();
        assert_eq!(first, refused(403, ProblemKind::Certificate), "{reason}");
        let mut later = 0;
        for _ in 1..100 {
            let refusal = old.poll("").await.unwrap_err();
            later += usize::from(refusal.kind == ProblemKind::Unavailable);
        }
        let asked = lab.api.requests();
        assert!(asked.len() <= 40, "{reason}: {} requests", asked.len());
        // One that is contested hears that without a request.
        let is_told = reason == "contested and deleted";
        assert_eq!(later >= 60, !is_told, "{reason}: {later}");
    }
}

fn ended(job: &str) -> PollRequest {
    PollRequest {
        last: job.to_owned(),
        outcome: Some(Outcome::Done),
        ..PollRequest::default()
    }
}

#[tokio::test]
async fn the_outcome_of_a_job_is_not_lost_while_the_api_server_is_away() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    job(&lab, "op-1", "inspect");
    lab.api.set_down(true);
    let done = || PollRequest {
        last: "op-1".into(),
        outcome: Some(Outcome::Done),
        ..PollRequest::default()
    };
    let refusal = agent.poll_with(done()).await.unwrap_err();
    assert_eq!((refusal.status, refusal.kind), (503, ProblemKind::Unavailable));
    lab.api.set_down(false);
    job(&lab, "op-1", "inspect");
    agent.poll_with(done()).await.unwrap();
    let last = lab.status(&name(1)).job;
    assert!(last.is_some_and(|job| job.done && job.error.is_empty()));
}

#[tokio::test]
async fn a_poll_without_news_ends_empty() {
    let lab = Lab::hasty().await;
    let (agent, _) = lab.enrolled(1).await;
    lab.api.requests();
    for _ in 0..3 {
        assert_eq!(agent.poll("").await.unwrap().command, None);
    }
    assert_eq!(
        lab.api.requests(),
        Vec::<String>::new(),
        "heartbeats stay in memory"
    );
}

#[tokio::test]
async fn a_silent_agent_is_shown_as_gone_and_comes_back() {
    let lab = Lab::hasty().await;
    let (agent, _) = lab.enrolled(1).await;
    agent.poll("").await.unwrap();
    assert_eq!(state(&lab), SessionState::Connected);
    lab.until("it is gone", |lab| state(lab) == SessionState::Disconnected)
        .await;
    lab.until("it is not counted", |lab| {
        lab.metric("muster_agents_sessions") == 0
    })
    .await;
    agent.poll("").await.unwrap();
    assert_eq!(state(&lab), SessionState::Connected);
}

#[tokio::test]
async fn agents_that_come_back_while_the_end_of_another_one_is_written_are_not_shown_as_gone() {
    let lab = Lab::new().await;
    let mut agents = Vec::new();
    for last in 1..=3 {
        agents.push(lab.enrolled(last).await.0);
    }
    // No end is written before all of them are silent, so that they are found gone together.
    lab.api.set_down(true);
    tokio::time::sleep(lab.pace.silent).await;
    lab.api.hold("PATCH", "/status");
    lab.api.set_down(false);
    lab.until("the end of one is being written", |lab| lab.api.is_held())
        .await;
    lab.api.requests();
    let mut changes = lab.api.changes();
    // Each asks anew when it is answered, as the one does that hears of its end.
    let polls: Vec<_> = agents
        .into_iter()
        .map(|agent| tokio::spawn(async move { while agent.poll("").await.unwrap().command.is_none() {} }))
        .collect();
    lab.until("they are back", |lab| lab.metric("muster_agents_held_polls") == 3)
        .await;
    lab.api.release();
    let state_of = |lab: &Lab, last: u8| lab.status(&name(last)).session.unwrap().state;
    lab.until("that end is written", |lab| !lab.api.requests().is_empty())
        .await;
    // Those of others would be written before it is looked again who is gone, of which the end of a further one tells.
    let _silent = lab.enrolled(4).await;
    lab.until("it is looked again who is gone", |lab| {
        state_of(lab, 4) == SessionState::Disconnected
    })
    .await;
    lab.until("the one is here again, too", |lab| {
        (1..=3).all(|last| state_of(lab, last) == SessionState::Connected)
    })
    .await;
    let mut gone = BTreeSet::new();
    while let Ok(change) = changes.try_recv() {
        let Change::Server(server) = change else { continue };
        let is_gone = server
            .session()
            .is_some_and(|session| session.state == SessionState::Disconnected);
        gone.extend(server.metadata.name.clone().filter(|_| is_gone));
    }
    assert!(gone.remove(&name(4)));
    assert_eq!(gone.len(), 1, "{gone:?}");
    polls.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_held_poll_that_is_cut_off_ends_the_session() {
    let patient = Pace {
        silent: Duration::from_secs(3600),
        answered: Duration::from_secs(3600),
        ..pace()
    };
    let lab = Lab::with(patient).await;
    let (agent, _) = lab.enrolled(1).await;
    let poll = tokio::spawn(async move { agent.poll("").await });
    lab.until_held().await;
    poll.abort();
    lab.until("it is gone", |lab| state(lab) == SessionState::Disconnected)
        .await;
}

#[tokio::test]
async fn an_agent_whose_end_another_edge_has_written_is_shown_as_here_again_at_once() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    let (answer, ()) = tokio::join!(agent.poll(""), async {
        lab.until_held().await;
        let gone = json!({ "status": { "session": { "state": "Disconnected" } } });
        lab.api.edit("servers", &name(1), &gone);
    });
    assert_eq!(answer.unwrap().command, None);
    assert_eq!(state(&lab), SessionState::Disconnected);
    let (answer, ()) = tokio::join!(agent.poll(""), async {
        lab.until("it is here", |lab| state(lab) == SessionState::Connected)
            .await;
        job(&lab, "op-1", "inspect");
    });
    assert!(answer.unwrap().command.is_some());
}

/// One that ends no session by itself while a test runs.
fn patient() -> Pace {
    Pace {
        silent: DEADLINE,
        answered: DEADLINE,
        closed: DEADLINE,
        ..pace()
    }
}

#[tokio::test]
async fn a_job_that_waits_for_an_edge_that_is_gone_for_good_is_freed_by_another_one() {
    let mut lost = Lab::with(patient()).await;
    let untold = Duration::from_millis(600);
    let mut others = Vec::new();
    for _ in 0..2 {
        others.push(lost.beside(Pace { untold, ..patient() }).await);
    }
    for last in 1..=2 {
        lost.enrolled(last).await;
    }
    lost.crash().await;
    lost.api.requests();
    job(&lost, "op-1", "inspect");
    lost.until("its session ends", |lab| state(lab) == SessionState::Disconnected)
        .await;
    tokio::time::sleep(untold + untold).await;
    let idle = lost.status(&name(2)).session.unwrap();
    assert_eq!(
        idle.state,
        SessionState::Connected,
        "its machine has nothing to do"
    );
    for request in lost.api.requests() {
        assert!(request.contains(&name(1)), "{request}");
    }
}

#[tokio::test]
async fn a_session_whose_server_has_changed_since_is_not_ended_for_what_it_was() {
    let lab = Lab::with(patient()).await;
    lab.enrolled(1).await;
    let edge = lab.edge.upgrade().unwrap();
    let of_now = || {
        let server = lab.server(&name(1));
        let key = server.session().unwrap().key.clone();
        (key, server.metadata.resource_version.unwrap())
    };
    let (key, before) = of_now();
    // Whether the watched copy shows it or only the API server knows.
    for lagging in [false, true] {
        lab.api.set_lagging(lagging);
        let (_, version) = of_now();
        job(&lab, &format!("op-{lagging}"), "inspect");
        for version in [&before, &version] {
            assert!(poll::disconnect(&edge, &name(1), &key, Some(version)).await);
            assert_eq!(state(&lab), SessionState::Connected);
        }
    }
    let (_, version) = of_now();
    assert!(poll::disconnect(&edge, &name(1), &key, Some(&version)).await);
    assert_eq!(state(&lab), SessionState::Disconnected);
}

#[tokio::test]
async fn a_deleted_server_ends_a_held_poll() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    // As if this replica had written it this moment, however slow this test is.
    let then = tokio::time::Instant::now() + Duration::from_mins(1);
    lab.written
        .remember_since(then, Arc::new(lab.server(&name(1))), Some(then));
    let held = tokio::spawn(async move { (agent.poll("").await, agent) });
    lab.until_held().await;
    lab.api.delete("servers", &name(1));
    let (answer, agent) = held.await.unwrap();
    let refused = refused(403, ProblemKind::Certificate);
    assert_eq!(answer.unwrap_err(), refused);
    assert_eq!(agent.poll("").await.unwrap_err(), refused);
}

#[tokio::test]
async fn a_newer_enrolment_ends_the_older_session_and_its_held_poll() {
    let lab = Lab::new().await;
    let (old, _) = lab.enrolled(1).await;
    let held = tokio::spawn(async move { (old.poll("").await, old) });
    lab.until_held().await;
    let (new, _) = lab.enrolled(1).await;
    let (answer, old) = held.await.unwrap();
    assert_eq!(answer.unwrap_err(), refused(403, ProblemKind::Certificate));
    assert_eq!(
        old.report(&inventory_of(1)).await,
        Err(refused(403, ProblemKind::Certificate))
    );
    new.report(&inventory_of(1)).await.unwrap();
}

#[tokio::test]
async fn what_an_older_session_began_to_say_does_not_take_the_place_of_a_newer_one() {
    for call in ["renew", "inventory", "poll"] {
        let lab = Lab::new().await;
        let (old, _) = lab.enrolled(1).await;
        let body = match call {
            "renew" => json!({ "csr": old.csr() }),
            "inventory" => json!(inventory_of(1)),
            _ => json!({ "last": "" }),
        };
        let body = body.to_string();
        let head = format!(
            "POST /v1/{call} HTTP/1.1\r\nhost: muster\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = old.connect().await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // It is let in once its body is asked for.
        let mut asked = [0; 25];
        stream.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
        let (new, _) = lab.enrolled(1).await;
        let held = tokio::spawn(async move { new.poll("").await });
        lab.until_held().await;

        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // However the connection ends.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with("HTTP/1.1 403 ") && answer.contains("a newer session of this machine"),
            "{call}: {answer}"
        );
        job(&lab, "op-1", "inspect");
        let woken = tokio::time::timeout(Duration::from_secs(10), held).await;
        let answer = woken.expect("long before the poll's own end").unwrap();
        assert!(answer.unwrap().command.is_some(), "{call}");
    }
}

#[tokio::test]
async fn a_retry_of_an_older_enrolment_does_not_end_a_newer_session() {
    let lab = Lab::new().await;
    let token = lab.token(1);
    let mut old = lab.agent(1);
    old.enrol(&token).await.unwrap();
    let (new, _) = lab.enrolled(1).await;
    // Normally of the same second, which creation times do not tell apart.
    old.certificate = None;
    assert_eq!(
        old.enrol(&token).await.unwrap_err(),
        refused(403, ProblemKind::Token)
    );
    new.report(&inventory_of(1)).await.unwrap();
}

#[tokio::test]
async fn a_retry_of_a_newer_enrolment_ends_an_older_session_of_the_same_second() {
    let lab = Lab::new().await;
    let (old, _) = lab.enrolled(1).await;
    let token = lab.token(1);
    let mut new = lab.agent(1);
    lab.api.refuse_writes(format!("/servers/{}/status", name(1)));
    new.enrol(&token).await.unwrap_err();
    assert_eq!(lab.enrolments().len(), 2, "the token is spent");
    lab.api.take_writes();
    new.enrol(&token).await.unwrap();
    new.report(&inventory_of(1)).await.unwrap();
    assert_eq!(
        old.report(&inventory_of(1)).await,
        Err(refused(403, ProblemKind::Certificate))
    );
}

#[tokio::test]
async fn a_restarted_controller_goes_on_with_the_session() {
    let mut lab = Lab::hasty().await;
    let (mut agent, _) = lab.enrolled(1).await;
    lab.api.requests();
    lab.crash_and_restart().await;
    agent.address = lab.address;
    agent.poll("").await.unwrap();
    agent.report(&inventory_of(1)).await.unwrap();
    drop(agent);
    lab.crash_and_restart().await;
    lab.until("a session that nobody takes up ends", |lab| {
        state(lab) == SessionState::Disconnected
    })
    .await;
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_same_key_only() {
    let lab = Lab::new().await;
    let (mut agent, first) = lab.enrolled(1).await;
    let renewed = agent.call("renew", &json!({ "csr": agent.csr() })).await.unwrap();
    let renewed: EnrolResponse = serde_json::from_value(renewed).unwrap();
    assert_eq!(renewed.server, first.server);
    assert_ne!(renewed.certificate, first.certificate);
    agent.certificate = Some(renewed.certificate);
    agent.report(&inventory_of(1)).await.unwrap();
    let other = lab.agent(1).csr();
    assert_eq!(
        agent.call("renew", &json!({ "csr": other })).await,
        Err(refused(400, ProblemKind::Malformed))
    );
}

#[tokio::test]
async fn a_session_that_renews_again_and_again_gets_a_few_certificates() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    let (other, _) = lab.enrolled(2).await;
    let renew = async |agent: &Agent, csr: &str| agent.call("renew", &json!({ "csr": csr })).await;
    let csr = agent.csr();
    let mut refused = 0;
    for _ in 0..20 {
        if let Err(refusal) = renew(&agent, &csr).await {
            assert_eq!((refusal.status, refusal.kind), (503, ProblemKind::Unavailable));
            assert!(refusal.retry_after.is_some());
            refused += 1;
        }
    }
    // One more may have been granted on a slow computer.
    assert!((14..=15).contains(&refused), "{refused}");
    let refusal = renew(&agent, "none").await.unwrap_err();
    assert_eq!(
        refusal.kind,
        ProblemKind::Unavailable,
        "it is not even understood"
    );
    renew(&other, &other.csr()).await.unwrap();
    agent.report(&inventory_of(1)).await.unwrap();
}

#[tokio::test]
async fn agents_live_through_a_rotation_of_the_authority() {
    let (pem, keys) = new_keys();
    let lab = Lab::new().await;
    lab.keys.send_replace(keys);
    let old = lab.agent(1);
    // The certificate follows the keys in the background.
    let connects = async || while old.connect().await.is_err() {};
    tokio::time::timeout(DEADLINE, connects()).await.unwrap();
    let (old, _) = lab.enrolled(1).await;

    let late = clock::now() + super::super::ca::CA_LIFETIME * 3 / 4;
    let mut next = pem.rotate(late).unwrap().unwrap();
    // Made "late", the new authority has not begun yet; one that begins now takes its place.
    let young = CaPem::generate(clock::now()).unwrap();
    next = CaPem {
        certificate: young.certificate,
        key: young.key,
        cross: None,
        ..next
    };
    lab.keys.send_replace(Keys::new(next, vec![7; 32]).unwrap());
    let new = lab.agent(2);
    let connects = async || while new.connect().await.is_err() {};
    tokio::time::timeout(DEADLINE, connects()).await.unwrap();
    lab.enrolled(2).await;
    // The old certificate is still taken from an agent that was given the new bundle.
    let told = Agent {
        trusts: lab.keys.borrow().ca.bundle.clone(),
        ..old
    };
    told.report(&inventory_of(1)).await.unwrap();
}

#[tokio::test]
async fn the_agents_log_is_taken() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    assert_eq!(
        agent
            .call("log", &json!({ "lines": ["one", "\u{1b}[2Jtwo"] }))
            .await,
        Ok(Value::Null)
    );
}

#[tokio::test]
async fn a_controller_that_ends_answers_held_polls() {
    let mut lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    let held = tokio::spawn(async move { agent.poll("").await });
    lab.until_held().await;
    lab.stop().await;
    assert_eq!(held.await.unwrap().unwrap().command, None);
    assert_eq!(
        state(&lab),
        SessionState::Connected,
        "the agent is there; only this replica is not"
    );
}

#[tokio::test]
async fn a_poll_that_comes_while_the_controller_ends_keeps_it_from_nothing() {
    let long = Duration::from_secs(3600);
    let mut lab = Lab::with(Pace { poll: long, ..pace() }).await;
    let [(agent, _), (other, _)] = [lab.enrolled(1).await, lab.enrolled(2).await];
    let request = json!({ "last": "", "holdSeconds": long.as_secs() });
    let of_other = request.clone();
    let held = tokio::spawn(async move { other.call("poll", &of_other).await });
    lab.until_held().await;
    let gone = json!({ "status": { "session": { "state": "Disconnected" } } });
    lab.api.edit("servers", &name(1), &gone);
    lab.api.hold("PATCH", &format!("/{}/status", name(1)));
    let coming = tokio::spawn(async move { agent.call("poll", &request).await });
    lab.until("it is shown as here", |lab| lab.api.is_held()).await;
    let api = Arc::clone(&lab.api);
    let release = async {
        // Once one that was held has been woken, all have.
        assert!(held.await.unwrap().is_ok());
        api.release();
    };
    tokio::join!(lab.stop(), release);
    assert!(coming.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_machine_that_leaves_as_it_was_told_is_gone_without_a_long_silence() {
    let patient = Pace {
        silent: Duration::from_secs(3600),
        answered: Duration::from_secs(3600),
        ..pace()
    };
    let lab = Lab::with(patient).await;
    let (agent, _) = lab.enrolled(1).await;
    let job = json!({ "spec": { "job": { "id": "op-1", "action": "reboot" } } });
    lab.api.edit("servers", &name(1), &job);
    assert_eq!(
        agent.poll("").await.unwrap().command.unwrap().action,
        Action::Reboot
    );
    let leaving = PollRequest {
        last: "op-1".into(),
        outcome: Some(Outcome::Done),
        ..PollRequest::default()
    };
    agent.poll_with(leaving).await.unwrap();
    lab.until("it is gone", |lab| state(lab) == SessionState::Disconnected)
        .await;
}
