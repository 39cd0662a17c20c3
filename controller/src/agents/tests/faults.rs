use super::*;
use crate::{fake_api::Fault, log::said::Said};

/// All that a machine does up to its inventory, again and again until it is done, as an agent does; the controller dies whenever
/// something failed.
async fn call_the_roll(lab: &mut Lab, token: &str) -> Agent {
    let mut agent = lab.agent(1);
    for _ in 0..20 {
        agent.address = lab.address;
        agent.certificate = None;
        let done = match agent.enrol(token).await {
            Ok(_) => agent.report(&inventory_of(1)).await.map(drop),
            Err(refusal) => Err(refusal),
        };
        match done {
            Ok(()) => return agent,
            Err(refusal) => {
                assert!(
                    refusal.kind.is_transient() && refusal.retry_after.is_some(),
                    "{refusal:?}"
                );
                lab.crash_and_restart().await;
            }
        }
    }
    panic!("the machine never came in");
}

/// What must be the same, however it came about.
fn end_state(lab: &Lab) -> Value {
    let servers: Vec<Value> = lab
        .api
        .all::<ServerKind>("servers")
        .into_iter()
        .map(|server| {
            let mut status = json!(server.status.unwrap());
            let key = status["session"]["key"].take();
            status["session"]["since"].take();
            status["session"]["sealKey"].take();
            status["inventoried"].take();
            json!({ "name": server.metadata.name, "status": status, "keyed": key.is_string() })
        })
        .collect();
    let enrolments: Vec<Value> = lab
        .enrolments()
        .iter()
        .map(|one| json!([one.spec.server, one.spec.contested]))
        .collect();
    json!({ "servers": servers, "enrolments": enrolments })
}

#[tokio::test]
async fn the_controller_killed_between_any_two_steps_ends_in_the_same_state() {
    let mut lab = Lab::new().await;
    let token = lab.token(1);
    call_the_roll(&mut lab, &token).await;
    let expected = end_state(&lab);
    let steps = lab.api.requests().len();
    assert!(steps >= 4, "{steps}");

    for fault in [Fault::Refused, Fault::AnswerLost] {
        for step in 0..steps {
            let mut lab = Lab::new().await;
            let token = lab.token(1);
            let faults = (0..step).map(|_| None).chain([Some(fault)]);
            lab.api.fail_next(faults);
            let agent = call_the_roll(&mut lab, &token).await;
            assert_eq!(end_state(&lab), expected, "{fault:?} at step {step}");
            agent.report(&inventory_of(1)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn while_the_api_server_is_away_nothing_is_lost() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    lab.api.set_down(true);
    let token = lab.token(2);
    let mut other = lab.agent(2);
    for refusal in [
        other.enrol(&token).await.unwrap_err(),
        agent.report(&inventory_of(1)).await.unwrap_err(),
    ] {
        assert_eq!((refusal.status, refusal.kind), (503, ProblemKind::Unavailable));
        assert!(refusal.retry_after.is_some());
    }
    lab.api.set_down(false);
    other.enrol(&token).await.unwrap();
    agent.report(&inventory_of(1)).await.unwrap();
    assert_eq!(lab.enrolments_counted("Unavailable"), 1);
    assert_eq!(lab.enrolments_counted("Accepted"), 2);
}

#[tokio::test]
async fn what_the_api_server_never_takes_is_final() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    lab.api.fail_next([Some(Fault::Code(422))]);
    assert_eq!(
        agent.report(&inventory_of(1)).await,
        Err(refused(400, ProblemKind::Malformed))
    );
}

#[tokio::test]
async fn a_write_in_between_is_not_undone() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    lab.api.set_lagging(true);
    lab.api.edit(
        "servers",
        &name(1),
        &json!({ "status": { "clashes": ["other"] } }),
    );
    agent.report(&inventory_of(1)).await.unwrap();
    let status = lab.status(&name(1));
    assert!(status.inventory.is_some());
    assert_eq!(status.clashes, ["other"]);
}

#[tokio::test]
async fn a_watch_that_lags_refuses_nobody() {
    let lab = Lab::new().await;
    lab.api.set_lagging(true);
    let (agent, _) = lab.enrolled(1).await;
    agent.report(&inventory_of(1)).await.unwrap();
    // Another replica knows the session from the API server alone.
    let mut other = Lab::new().await;
    other.stop().await;
    other.api = Arc::clone(&lab.api);
    other.keys.send_replace(lab.keys.borrow().clone());
    other.start().await;
    let elsewhere = Agent {
        address: other.address,
        ..agent
    };
    elsewhere.report(&inventory_of(1)).await.unwrap();
}

#[tokio::test]
async fn an_inventory_that_says_nothing_new_is_not_written() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    agent.report(&inventory_of(1)).await.unwrap();
    let inventoried = lab.status(&name(1)).inventoried;
    lab.api.requests();
    let mut later = inventory_of(1);
    later.boot.uptime_ms = 99_000;
    agent.report(&later).await.unwrap();
    assert_eq!(lab.api.requests(), Vec::<String>::new());
    assert_eq!(lab.status(&name(1)).inventoried, inventoried);
    assert_eq!(
        lab.metric("muster_agents_inventories_total{outcome=\"Unchanged\"}"),
        1
    );
    later.system.serial = "other".into();
    agent.report(&later).await.unwrap();
    assert_eq!(
        lab.status(&name(1)).inventory.unwrap().unpack().system.serial,
        "other"
    );
}

#[tokio::test]
async fn one_address_full_of_silent_connections_keeps_no_other_out() {
    let said = Said::listen();
    let lab = Lab::new().await;
    let mut silent = Vec::new();
    while lab.metric("muster_agents_turned_away_total") < 50 {
        silent.push(crate::bind::connect_from(2, lab.address).await);
        assert!(silent.len() < 2000, "nobody was turned away");
    }
    lab.enrolled(1).await;
    let refused = ["WARN", "this address has 128 connections", "client=127.0.0.2"];
    // A test that stops for a minute would see a second line.
    assert!((1..=2).contains(&said.count(&refused)), "{}", said.text());
}

#[tokio::test]
async fn an_outcome_is_not_lost_on_a_replica_that_does_not_know_the_job_yet() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    lab.api.set_lagging(true);
    let job = json!({ "spec": { "job": { "id": "op-1", "action": "inspect" } } });
    lab.api.edit("servers", &name(1), &job);
    let done = PollRequest {
        last: "op-1".into(),
        outcome: Some(muster_proto::session::Outcome::Done),
        ..PollRequest::default()
    };
    let polled = tokio::spawn(async move { agent.poll_with(done).await });
    lab.until("the outcome is written", |lab| {
        lab.status(&name(1)).job.is_some_and(|job| job.done)
    })
    .await;
    polled.abort();
}

#[tokio::test]
async fn a_server_that_cannot_be_written_keeps_no_other_shown_as_connected() {
    let lab = Lab::new().await;
    let mut agents = Vec::new();
    for last in 1..=5 {
        agents.push(lab.enrolled(last).await);
    }
    for last in 1..=4 {
        lab.api.refuse_writes(format!("/{}/status", name(last)));
    }
    drop(agents);
    lab.until("the end of the last one's session is written", |lab| {
        lab.status(&name(5)).session.unwrap().state == SessionState::Disconnected
    })
    .await;
}

/// An inventory of `agent` that has begun and goes no further, and what another one is told meanwhile.
async fn stuck(agent: &Agent, last: u8) -> (impl Sized + use<>, Refusal) {
    use tokio::io::AsyncWriteExt;
    let begun = b"POST /v1/inventory HTTP/1.1\r\nhost: muster\r\ncontent-length: 8000000\r\n\r\n{";
    let reports = async {
        loop {
            let mut stream = agent.connect().await.unwrap();
            stream.write_all(begun).await.unwrap();
            stream.flush().await.unwrap();
            // The other one may have been first, and this one is refused.
            for _ in 0..3 {
                if let Err(refusal) = agent.report(&inventory_of(last)).await {
                    return (stream, refusal);
                }
            }
        }
    };
    tokio::time::timeout(DEADLINE, reports).await.unwrap()
}

#[tokio::test]
async fn machines_whose_inventories_never_end_hold_up_only_themselves() {
    let lab = Lab::new().await;
    lab.api
        .edit("segments", "lab", &json!({ "spec": { "quota": 50 } }));
    let mut slow = Vec::new();
    for last in 1..=9 {
        let (agent, _) = lab.enrolled(last).await;
        let (stream, refusal) = stuck(&agent, last).await;
        assert_eq!((refusal.status, refusal.kind), (503, ProblemKind::Unavailable));
        assert!(refusal.retry_after.is_some());
        slow.push((agent, stream));
    }
    let (other, _) = lab.enrolled(10).await;
    other.report(&inventory_of(10)).await.unwrap();
    let (agent, stream) = slow.pop().unwrap();
    drop(stream);
    let freed = async { while agent.report(&inventory_of(9)).await.is_err() {} };
    tokio::time::timeout(DEADLINE, freed).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_reports_again_and_again_is_refused_before_it_is_understood() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    let (other, _) = lab.enrolled(2).await;
    let mut refused = 0;
    for _ in 0..100 {
        let refusal = agent.call("inventory", &json!("nonsense")).await.unwrap_err();
        // Else it was understood.
        if refusal.kind != ProblemKind::Malformed {
            assert_eq!((refusal.status, refusal.kind), (503, ProblemKind::Unavailable));
            assert!(refusal.retry_after.is_some());
            refused += 1;
        }
    }
    assert!(refused >= 60, "{refused}");
    other.report(&inventory_of(2)).await.unwrap();
}

#[tokio::test]
async fn a_machine_with_many_connections_keeps_no_other_out() {
    let lab = Lab::new().await;
    let (greedy, _) = lab.enrolled(1).await;
    let (other, _) = lab.enrolled(2).await;
    let mut held = Vec::new();
    while lab.metric("muster_agents_turned_away_total") < 20 {
        // The server may close one before the client's handshake has ended.
        held.extend(greedy.connect().await);
        assert!(held.len() < 100, "no connection was turned away");
    }
    other.report(&inventory_of(2)).await.unwrap();
    drop(held);
    let again = async {
        let body = || Full::new(Bytes::from_static(b"{\"last\":\"\",\"lines\":[]}"));
        while greedy.send("POST", "/v1/log", body()).await.is_err() {}
    };
    tokio::time::timeout(DEADLINE, again).await.unwrap();
}

/// A connection of `agent` that was answered once and stays.
async fn answered(agent: &Agent) -> tokio_rustls::client::TlsStream<TcpStream> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = agent.connect().await.unwrap();
    let nothing = b"POST /v1/nothing HTTP/1.1\r\nhost: muster\r\n\r\n";
    stream.write_all(nothing).await.unwrap();
    stream.flush().await.unwrap();
    let mut said = [0; 12];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"HTTP/1.1 404");
    stream
}

#[tokio::test]
async fn certificates_that_count_no_more_take_no_agents_place() {
    let lab = Lab::with_one_place().await;
    let (superseded, _) = lab.enrolled(1).await;
    let (agent, _) = lab.enrolled(1).await;
    let (deleted, _) = lab.enrolled(2).await;
    lab.api.delete("servers", &name(2));
    let is_refused = async { while deleted.report(&inventory_of(2)).await.is_ok() {} };
    tokio::time::timeout(DEADLINE, is_refused).await.unwrap();
    let (mut ended, _) = lab.enrolled(3).await;
    let request = super::super::ca::Request::parse(&ended.csr()).unwrap();
    let past = clock::now() - 2 * super::super::ca::CLIENT_LIFETIME;
    let ca = Arc::clone(&lab.keys.borrow().ca);
    ended.certificate = Some(ca.issue_client(&request, &name(3), "token-x", past).unwrap());
    let mut held = Vec::new();
    for old in [&superseded, &deleted, &ended] {
        held.push(answered(old).await);
    }
    agent.report(&inventory_of(1)).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_has_just_enrolled_has_an_agents_place_before_the_watched_copy_shows_it() {
    let lab = Lab::with_one_place().await;
    lab.api.set_lagging(true);
    let (one, _) = lab.enrolled(1).await;
    let (other, _) = lab.enrolled(2).await;
    let _held = answered(&one).await;
    // It may be closed before the client's handshake has ended.
    let _turned_away = other.connect().await;
    lab.until("the only place is taken", |lab| {
        lab.metric("muster_agents_turned_away_total") == 1
    })
    .await;
}

#[tokio::test]
async fn a_machine_that_says_ever_new_things_is_written_a_few_times() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    let called = |number: u32| Inventory {
        hostname: format!("host{number}"),
        ..inventory_of(1)
    };
    let mut taken = 0;
    let refusal = loop {
        assert!(taken < 100, "nothing was refused");
        match agent.report(&called(taken)).await {
            Ok(_) => taken += 1,
            Err(refusal) => break refusal,
        }
    };
    let expected = Refusal {
        retry_after: Some("30".to_owned()),
        ..refused(429, ProblemKind::Quota)
    };
    assert_eq!(refusal, expected);
    agent.report(&called(taken - 1)).await.unwrap();

    let job = json!({ "spec": { "job": { "id": "op-1", "action": "inspect" } } });
    lab.api.edit("servers", &name(1), &job);
    let failed = |message: &str| PollRequest {
        last: "op-1".into(),
        outcome: Some(muster_proto::session::Outcome::Failed {
            message: message.into(),
            failure: muster_proto::job::Failure::Final,
        }),
        ..PollRequest::default()
    };
    // Its first outcome is always taken, and stays.
    agent.poll_with(failed("a")).await.unwrap();
    lab.api.requests();
    agent.poll_with(failed("b")).await.unwrap();
    assert_eq!(lab.api.requests(), Vec::<String>::new());
    assert_eq!(lab.status(&name(1)).job.unwrap().error, "a");
}
