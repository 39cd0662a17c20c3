//! Jobs from `Server.spec.job` over the edge to an agent, and back to `Server.status.job`.

use muster_proto::{
    job::{ConfigDrive, Failure, Progress},
    kinds::{JobStatus, Session, SessionState},
    seal::{self, Bound, SealKey},
    session::{Action, Outcome},
};

use super::*;
use crate::fake_api::Fault;

fn place(lab: &Lab, job: &Value) {
    lab.api
        .edit("servers", &name(1), &json!({ "spec": { "job": job } }));
}

fn write_job(id: &str, epoch: i64) -> Value {
    json!({
        "id": id, "epoch": epoch, "action": "write",
        "write": {
            "machine": { "systemSerial": "SN1" },
            "disk": { "name": "/dev/sda", "serial": "D1", "sizeBytes": 8 },
            "image": { "url": "http://images.example/os.raw.zst", "checksum": "00", "algorithm": "sha256" },
        },
    })
}

fn telling(id: &str, percent: u8) -> PollRequest {
    PollRequest {
        last: id.to_owned(),
        progress: Some(Progress {
            step: "write image".to_owned(),
            percent,
            bytes_per_second: 0,
        }),
        ..PollRequest::default()
    }
}

fn failing(id: &str, message: &str, log: Vec<String>) -> PollRequest {
    PollRequest {
        last: id.to_owned(),
        outcome: Some(Outcome::Failed {
            message: message.to_owned(),
            failure: Failure::Final,
        }),
        log,
        ..PollRequest::default()
    }
}

fn job(lab: &Lab) -> JobStatus {
    lab.status(&name(1)).job.unwrap_or_default()
}

fn session(lab: &Lab) -> Session {
    lab.status(&name(1)).session.unwrap()
}

/// Writes to the API server since the last call of this or of `requests`.
fn writes(lab: &Lab) -> usize {
    let requests = lab.api.requests();
    requests
        .iter()
        .filter(|request| !request.starts_with("GET"))
        .count()
}

#[tokio::test]
async fn a_write_reaches_the_agent_and_its_progress_and_outcome_reach_the_server() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    place(&lab, &write_job("op-1", 7));
    let command = agent.poll("").await.unwrap().command.unwrap();
    assert_eq!((command.id.as_str(), command.epoch), ("op-1", 7));
    let Action::Write(write) = command.action else {
        panic!("{command:?}");
    };
    assert_eq!(write.disk.serial, "D1");
    lab.api.requests();
    for percent in [1, 2, 3] {
        let answer = agent.poll_with(telling("op-1", percent)).await.unwrap();
        assert_eq!(answer.command, None);
    }
    assert_eq!(writes(&lab), 1, "progress is not written with each poll");
    assert_eq!(job(&lab).progress.unwrap().percent, 1);
    assert_eq!(job(&lab).summary, "write image 1 %");

    let log = vec![
        "muster 1.0 step=write".to_owned(),
        "error: \x1b[31mEIO".to_owned(),
    ];
    let failed = failing("op-1", "write the disk: EIO", log);
    for _ in 0..2 {
        agent.poll_with(failed.clone()).await.unwrap();
    }
    assert_eq!(writes(&lab), 1, "an outcome is written once");
    let expected = JobStatus {
        id: "op-1".to_owned(),
        error: "write the disk: EIO".to_owned(),
        failure: Some(Failure::Final),
        done: true,
        summary: "failed: write the disk: EIO".to_owned(),
        log: vec!["muster 1.0 step=write".to_owned(), "error: [31mEIO".to_owned()],
        ..JobStatus::default()
    };
    assert_eq!(job(&lab), expected);
}

#[tokio::test]
async fn a_poll_that_tells_progress_is_held_for_less_and_hears_a_newer_job_at_once() {
    let lab = Lab::with(Pace {
        progress: Duration::from_secs(3600),
        ..pace()
    })
    .await;
    let (agent, _) = lab.enrolled(1).await;
    place(&lab, &write_job("op-1", 7));
    let (answer, ()) = tokio::join!(agent.poll_with(telling("op-1", 1)), async {
        lab.until_held().await;
        place(&lab, &json!({ "id": "op-2", "epoch": 8, "action": "poweroff" }));
    });
    let command = answer.unwrap().command.unwrap();
    assert_eq!((command.epoch, command.action), (8, Action::PowerOff));
    // Of the first one's end people still hear.
    agent
        .poll_with(failing("op-1", "replaced by job op-2", vec![]))
        .await
        .unwrap();
    assert_eq!(job(&lab).id, "op-1");
    agent
        .poll_with(PollRequest {
            last: "op-2".to_owned(),
            outcome: Some(Outcome::Done),
            ..PollRequest::default()
        })
        .await
        .unwrap();
    assert_eq!((job(&lab).id.as_str(), job(&lab).done), ("op-2", true));
}

#[tokio::test]
async fn a_job_that_has_ended_is_not_given_to_the_machines_next_session() {
    let lab = Lab::hasty().await;
    let (agent, _) = lab.enrolled(1).await;
    place(&lab, &write_job("op-1", 7));
    agent.poll("").await.unwrap();
    // Half done when the power fails: the next session begins anew.
    let (agent, _) = lab.enrolled(1).await;
    let given = agent.poll("").await.unwrap().command;
    assert_eq!(given.map(|command| command.id).as_deref(), Some("op-1"));
    let done = PollRequest {
        last: "op-1".to_owned(),
        outcome: Some(Outcome::Done),
        ..PollRequest::default()
    };
    agent.poll_with(done).await.unwrap();
    let (agent, _) = lab.enrolled(1).await;
    assert_eq!(agent.poll("").await.unwrap().command, None);
}

#[tokio::test]
async fn a_write_comes_with_the_answer_to_the_cleaning_before_it_whatever_becomes_of_the_edge() {
    let mut lab = Lab::hasty().await;
    let (mut agent, _) = lab.enrolled(1).await;
    let write = write_job("op-write", 7);
    let then = json!({ "id": "op-write", "session": session(&lab).key, "write": write["write"] });
    let clean = json!({ "disks": [{ "name": "/dev/sda", "serial": "D1", "sizeBytes": 8 }] });
    place(
        &lab,
        &json!({ "id": "op-clean", "epoch": 7, "action": "clean", "clean": clean, "then": then }),
    );
    let given = agent.poll("").await.unwrap().command.unwrap();
    assert_eq!(given.id, "op-clean");
    writes(&lab);
    for dies in [false, true] {
        if dies {
            lab.crash_and_restart().await;
            agent.address = lab.address;
        }
        let next = agent.poll_with(done("op-clean")).await.unwrap().command.unwrap();
        assert_eq!((next.id.as_str(), next.epoch), ("op-write", 7));
        assert!(matches!(next.action, Action::Write(_)));
    }
    assert_eq!(writes(&lab), 0, "what follows says that the cleaning is over");
    let answer = agent.poll_with(done("op-write")).await.unwrap();
    assert_eq!((answer.command, writes(&lab)), (None, 1));
    assert_eq!((job(&lab).id.as_str(), job(&lab).done), ("op-write", true));
    let (agent, _) = lab.enrolled(1).await;
    assert_eq!(agent.poll("").await.unwrap().command, None, "never again");
}

/// A job that cleans, writes and leaves, decided for the session that is there.
fn whole(lab: &Lab) -> Value {
    let key = session(lab).key;
    let then = json!({ "id": "op-write", "session": key, "write": write_job("op-write", 7)["write"] });
    let leave = json!({ "id": "op-leave", "session": key, "action": "poweroff" });
    let clean = json!({ "disks": [{ "name": "/dev/sda", "serial": "D1", "sizeBytes": 8 }] });
    json!({ "id": "op-clean", "epoch": 7, "action": "clean", "clean": clean, "then": then, "leave": leave })
}

fn done(id: &str) -> PollRequest {
    PollRequest {
        last: id.to_owned(),
        outcome: Some(Outcome::Done),
        ..PollRequest::default()
    }
}

#[tokio::test]
async fn a_job_to_clean_write_and_leave_costs_the_edge_two_writes_and_a_read() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    place(&lab, &whole(&lab));
    assert_eq!(agent.poll("").await.unwrap().command.unwrap().id, "op-clean");
    // Nothing was written just now by which the copy could be known to be fresh.
    lab.written.forget(&name(1));
    lab.api.requests();
    let answer = agent.poll_with(done("op-clean")).await.unwrap();
    assert_eq!(answer.command.unwrap().id, "op-write");
    let answer = agent.poll_with(done("op-write")).await.unwrap();
    let leave = answer.command.unwrap();
    assert_eq!(
        (leave.id.as_str(), leave.epoch, leave.action),
        ("op-leave", 7, Action::PowerOff)
    );
    assert_eq!((job(&lab).id.as_str(), job(&lab).done), ("op-write", true));
    assert_eq!(session(&lab).state, SessionState::Connected);
    let answer = agent.poll_with(done("op-leave")).await.unwrap();
    assert_eq!(answer.command, None);
    // The end of the write, by which it is never written again, and the end of the session; read is what the write's beginning rests on.
    let asked = lab.api.requests();
    let verbs: Vec<&str> = asked.iter().filter_map(|one| one.split(' ').next()).collect();
    assert_eq!(verbs, ["GET", "PATCH", "PATCH"], "{asked:#?}");
    assert_eq!(session(&lab).state, SessionState::Disconnected);
    let last = job(&lab);
    assert_eq!(
        (last.id.as_str(), last.summary.as_str()),
        ("op-write", "done, and left")
    );
    assert!(last.done && last.leaving.unwrap().said);
}

fn going(id: &str) -> PollRequest {
    PollRequest {
        goes_at_once: true,
        ..done(id)
    }
}

#[tokio::test]
async fn a_machine_that_leaves_with_the_answer_to_its_end_costs_one_write_less_and_hears_it_as_often_as_it_asks()
 {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    place(&lab, &whole(&lab));
    assert_eq!(agent.poll("").await.unwrap().command.unwrap().id, "op-clean");
    let answer = agent.poll_with(going("op-clean")).await.unwrap();
    let write = answer.command.unwrap();
    assert_eq!((write.id.as_str(), write.farewell), ("op-write", false));
    lab.api.requests();
    for _ in 0..3 {
        let answer = agent.poll_with(going("op-write")).await.unwrap();
        let leave = answer.command.unwrap();
        assert_eq!(
            (leave.id.as_str(), leave.epoch, leave.farewell, leave.action),
            ("op-leave", 7, true, Action::PowerOff)
        );
        let last = job(&lab);
        assert_eq!(
            (last.id.as_str(), last.done, last.summary.as_str()),
            ("op-write", true, "done, and left")
        );
        assert!(last.leaving.unwrap().said);
        assert_eq!(session(&lab).state, SessionState::Disconnected);
        let asked = lab.api.requests();
        assert!(asked.len() <= 1, "{asked:#?}");
    }
}

#[tokio::test]
async fn what_destroys_data_is_asked_for_unless_the_copy_is_known_to_be_fresh() {
    let lab = Lab::hasty().await;
    let (agent, _) = lab.enrolled(1).await;
    let (other, _) = lab.enrolled(2).await;
    // As if another machine's Server had been written this moment, however slow this test is.
    let then = tokio::time::Instant::now() + Duration::from_mins(1);
    let write = |is_shown: bool| {
        lab.api.set_lagging(!is_shown);
        lab.api.edit(
            "servers",
            &name(2),
            &json!({ "metadata": { "labels": { "a": is_shown.to_string() } } }),
        );
        lab.written
            .remember_since(then, Arc::new(lab.server(&name(2))), Some(then));
    };
    // The beginning of a job, and what follows it.
    for told in [PollRequest::default(), done("op-clean")] {
        place(&lab, &whole(&lab));
        write(true);
        lab.api.requests();
        assert!(agent.poll_with(told.clone()).await.unwrap().command.is_some());
        assert_eq!(lab.api.requests(), Vec::<String>::new());
        // The job is taken back, and no watch has told it yet.
        write(false);
        lab.written.forget(&name(1));
        lab.api
            .edit("servers", &name(1), &json!({ "spec": { "job": null } }));
        let answer = agent.poll_with(told).await.unwrap();
        assert_eq!(answer.command, None);
        assert!(lab.api.requests()[0].starts_with("GET "));
    }
    drop(other);
}

#[tokio::test]
async fn whatever_becomes_of_the_edge_a_machine_hears_that_it_is_to_leave_and_its_next_session_gets_nothing()
{
    let mut lab = Lab::hasty().await;
    let (mut agent, _) = lab.enrolled(1).await;
    place(&lab, &whole(&lab));
    agent.poll_with(done("op-clean")).await.unwrap();
    // The end cannot be written: nothing is given before it is.
    lab.api.set_down(true);
    let refusal = agent.poll_with(done("op-write")).await.unwrap_err();
    assert_eq!(refusal.kind, ProblemKind::Unavailable);
    lab.api.set_down(false);
    for dies in [false, true] {
        if dies {
            lab.crash_and_restart().await;
            agent.address = lab.address;
        }
        let next = agent.poll_with(done("op-write")).await.unwrap().command.unwrap();
        assert_eq!(next.id, "op-leave");
    }
    let next = agent.poll("op-write").await.unwrap().command.unwrap();
    assert_eq!(next.id, "op-leave", "in any later poll");
    // It broke down instead: what was decided for one session is given to no other.
    let (other, _) = lab.enrolled(1).await;
    assert_eq!(other.poll("").await.unwrap().command, None);
    // The control role orders the same by itself, under the same name.
    let explicit = json!({ "id": "op-leave", "epoch": 8, "action": "reboot", "clean": null, "then": null, "leave": null });
    place(&lab, &explicit);
    let next = other.poll("").await.unwrap().command.unwrap();
    assert_eq!((next.id.as_str(), next.epoch), ("op-leave", 8));
    other.poll_with(done("op-leave")).await.unwrap();
    assert_eq!((job(&lab).id.as_str(), job(&lab).done), ("op-leave", true));
}

#[tokio::test]
async fn an_outcome_survives_an_edge_that_dies_in_the_middle_of_a_write() {
    let mut lab = Lab::new().await;
    let (mut agent, _) = lab.enrolled(1).await;
    place(&lab, &write_job("op-1", 7));
    agent.poll("").await.unwrap();
    agent.poll_with(telling("op-1", 10)).await.unwrap();
    lab.crash_and_restart().await;
    agent.address = lab.address;
    let again = agent.poll_with(telling("op-1", 60)).await.unwrap();
    assert_eq!(again.command, None, "it is not ordered anew");
    assert_eq!(job(&lab).progress.unwrap().percent, 60);
    let done = PollRequest {
        last: "op-1".to_owned(),
        outcome: Some(Outcome::Done),
        ..PollRequest::default()
    };
    lab.api.set_down(true);
    let refusal = agent.poll_with(done.clone()).await.unwrap_err();
    assert_eq!(refusal.kind, ProblemKind::Unavailable);
    lab.api.set_down(false);
    agent.poll_with(done).await.unwrap();
    assert!(job(&lab).done && job(&lab).error.is_empty());
}

#[tokio::test]
async fn a_farewell_is_written_though_the_machine_does_not_wait_for_the_answer() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    place(&lab, &json!({ "id": "op-1", "action": "reboot" }));
    assert!(agent.poll("").await.unwrap().command.is_some());
    lab.api.hold("PATCH", &format!("/{}/status", name(1)));
    tokio::select! {
        answer = agent.poll_with(done("op-1")) => panic!("answered before it is written: {answer:?}"),
        () = lab.until("it is being written", |lab| lab.api.is_held()) => {}
    }
    lab.until("the connection is closed", |lab| {
        lab.metric("muster_agents_held_polls") == 0
    })
    .await;
    // Who tells it anew meanwhile waits for that.
    let refusal = agent.poll_with(done("op-1")).await.unwrap_err();
    assert_eq!((refusal.status, refusal.kind), (503, ProblemKind::Unavailable));
    lab.api.release();
    lab.until("the farewell is written", |lab| {
        lab.status(&name(1)).job.is_some_and(|job| job.done)
    })
    .await;
    assert_eq!(session(&lab).state, SessionState::Disconnected);
}

#[tokio::test]
async fn what_a_machine_said_last_does_not_bring_its_session_back() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    place(&lab, &write_job("op-1", 7));
    assert!(agent.poll("").await.unwrap().command.is_some());
    lab.api.hold("PATCH", &format!("/{}/status", name(1)));
    tokio::select! {
        answer = agent.poll_with(failing("op-1", "no space", Vec::new())) => panic!("answered before it is written: {answer:?}"),
        () = lab.until("it is being written", |lab| lab.api.is_held()) => {}
    }
    lab.until("it is missed", |lab| {
        session(lab).state == SessionState::Disconnected
    })
    .await;
    lab.api.release();
    lab.until("what it said is written", |lab| {
        lab.status(&name(1)).job.is_some_and(|job| job.done)
    })
    .await;
    assert_eq!(job(&lab).error, "no space");
    assert_eq!(session(&lab).state, SessionState::Disconnected);
}

#[tokio::test]
async fn the_key_for_secrets_is_kept_with_the_session_and_nobody_replaces_it() {
    let lab = Lab::new().await;
    let token = lab.token(1);
    let mut agent = lab.agent(1);
    agent.enrol(&token).await.unwrap();
    assert_eq!(session(&lab).seal_key, agent.seal.public());
    let first = std::mem::replace(&mut agent.seal, SealKey::generate());
    agent.certificate = None;
    agent.enrol(&token).await.unwrap();
    assert_eq!(session(&lab).seal_key, first.public(), "the same token and key");

    for bad in [
        "",
        "no key",
        &"x".repeat(1000),
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ] {
        let mut other = lab.agent(2);
        let mut request = json!(other.enrol_request(&lab.token(2)));
        request["sealKey"] = json!(bad);
        let response = other.call("enrol", &request).await.unwrap();
        other.certificate = Some(response["certificate"].as_str().unwrap().to_owned());
        let stored = lab.status(&name(2)).session.unwrap();
        assert_eq!(stored.seal_key, "", "{bad}");
        let bound = Bound {
            job: "op-1",
            epoch: 1,
            session: &stored.key,
        };
        let refused = seal::config_drive(&stored.seal_key, &bound, &ConfigDrive::default());
        assert!(refused.is_err(), "without a key nothing is sealed");
    }
}

#[tokio::test]
async fn what_control_seals_opens_in_its_session_alone_and_is_nowhere_readable() {
    const CANARY: &str = "canary-5f4dcc3b5aa765d61d83";
    const CANARY_BASE64: &str = "Y2FuYXJ5LTVmNGRjYzNiNWFhNzY1ZDYxZDgz";
    let mut lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    let drive = ConfigDrive {
        meta_data: [("hostname".to_owned(), json!(CANARY))].into_iter().collect(),
        network_data: Some(json!({ "psk": CANARY })),
        user_data: Some(CANARY.as_bytes().to_vec()),
    };
    let Session { key, seal_key, .. } = session(&lab);
    let bound = Bound {
        job: "op-1",
        epoch: 7,
        session: &key,
    };
    let sealed = seal::config_drive(&seal_key, &bound, &drive).unwrap();
    let mut job = write_job("op-1", 7);
    job["write"]["configDrive"] = json!(sealed);
    place(&lab, &job);
    let command = agent.poll("").await.unwrap().command.unwrap();
    let Action::Write(write) = command.action else {
        panic!("a write");
    };
    let opened = agent
        .seal
        .open(&bound, write.config_drive.as_deref().unwrap())
        .unwrap();
    assert_eq!(serde_json::from_slice::<ConfigDrive>(&opened).unwrap(), drive);

    agent.poll_with(telling("op-1", 50)).await.unwrap();
    agent
        .poll_with(failing("op-1", "no space", vec!["the log".to_owned()]))
        .await
        .unwrap();
    let mut readable = vec![json!(lab.server(&name(1))).to_string()];
    while let Ok(Happened { event, .. }) = lab.events.try_recv() {
        readable.push(event.message);
    }
    assert!(readable.len() > 1, "an enrolment is told");
    for text in readable {
        assert!(!text.contains(CANARY) && !text.contains(CANARY_BASE64), "{text}");
    }
}

#[tokio::test]
async fn an_agent_of_version_1_0_does_what_it_knows_and_fails_what_it_does_not() {
    let lab = Lab::new().await;
    let mut agent = lab.agent(1);
    let mut request = json!(agent.enrol_request(&lab.token(1)));
    request["protocol"] = json!("1.0");
    request.as_object_mut().unwrap().remove("sealKey");
    let response = agent.call("enrol", &request).await.unwrap();
    agent.certificate = Some(response["certificate"].as_str().unwrap().to_owned());
    assert_eq!(session(&lab).seal_key, "");
    place(&lab, &write_job("op-1", 7));
    let answer = agent.call("poll", &json!({ "last": "" })).await.unwrap();
    assert_eq!(answer["command"]["id"], "op-1");
    let unknown = json!({ "result": "failed", "message": "agent 0.1.0 does not know this command" });
    agent
        .call("poll", &json!({ "last": "op-1", "outcome": unknown }))
        .await
        .unwrap();
    let told = job(&lab);
    assert!(told.done && told.error.contains("does not know"), "{told:?}");
    place(&lab, &json!({ "id": "op-2", "action": "inspect" }));
    let answer = agent.call("poll", &json!({ "last": "op-1" })).await.unwrap();
    assert_eq!(answer["command"]["action"], json!({ "do": "inspect" }));
}

#[tokio::test]
async fn what_was_ordered_and_not_begun_waits_while_its_host_is_paused_detached_or_protected() {
    let lab = Lab::hasty().await;
    let (agent, _) = lab.enrolled(1).await;
    let annotate = |annotations: Value| {
        let metadata = json!({ "namespace": "metal", "name": "h", "uid": "u", "annotations": annotations });
        let host = json!({ "metadata": metadata, "spec": { "online": true } });
        lab.api.put("baremetalhosts", &host);
    };
    let (paused, detached) = (
        json!({ "baremetalhost.metal3.io/paused": "" }),
        json!({ "baremetalhost.metal3.io/detached": r#"{"force":true}"# }),
    );
    let protected = json!({ "muster.dev/protected": "" });
    let host = json!({ "spec": { "host": { "namespace": "metal", "name": "h", "uid": "u" } } });
    lab.api.edit("servers", &name(1), &host);
    let mut number = 0;
    for (annotation, action, waits) in [
        (&paused, "write", true),
        (&paused, "clean", true),
        (&paused, "reboot", true),
        (&detached, "write", true),
        (&protected, "write", true),
        (&protected, "clean", true),
        (&protected, "poweroff", false),
        (&protected, "inspect", false),
    ] {
        number += 1;
        let id = format!("op-{number}");
        annotate(annotation.clone());
        let mut job = write_job(&id, 7);
        job["action"] = json!(action);
        place(&lab, &job);
        let command = agent.poll("").await.unwrap().command;
        assert_eq!(command.is_none(), waits, "{annotation} {action}");
        annotate(json!({}));
        let command = agent.poll("").await.unwrap().command;
        assert_eq!(command.unwrap().id, id);
    }
    // What another host of that name has ordered, or one that is gone, destroys nothing.
    for gone in [false, true] {
        let spec = json!({ "spec": { "host": { "uid": "another" }, "job": write_job("op-gone", 7) } });
        lab.api.edit("servers", &name(1), &spec);
        if gone {
            lab.api.delete("baremetalhosts", "h");
        }
        assert_eq!(agent.poll("").await.unwrap().command, None, "{gone}");
    }
    // Nor does what was ordered for a host that is not this machine's any more; what a person ordered by hand is theirs.
    for (id, is_given) in [("host-provision-u-1-0-write", false), ("by-hand", true)] {
        let spec = json!({ "spec": { "host": null, "job": write_job(id, 7) } });
        lab.api.edit("servers", &name(1), &spec);
        assert_eq!(agent.poll("").await.unwrap().command.is_some(), is_given, "{id}");
    }
    lab.api.edit("servers", &name(1), &host);
    // The same for what follows a cleaning, which is told again meanwhile.
    place(&lab, &whole(&lab));
    annotate(paused);
    let refusal = agent.poll_with(done("op-clean")).await.unwrap_err();
    assert_eq!(refusal.kind, ProblemKind::Unavailable);
    annotate(json!({}));
    let command = agent.poll_with(done("op-clean")).await.unwrap().command;
    assert_eq!(command.unwrap().id, "op-write");
    // How a write went is known at once, and leaving waits.
    annotate(json!({ "baremetalhost.metal3.io/paused": "" }));
    let answer = agent.poll_with(going("op-write")).await.unwrap();
    assert_eq!((answer.command, job(&lab).done), (None, true));
    assert!(!job(&lab).leaving.unwrap().said);
    assert_eq!(session(&lab).state, SessionState::Connected);
    annotate(json!({}));
    let command = agent.poll("op-write").await.unwrap().command.unwrap();
    assert_eq!((command.action, command.farewell), (Action::PowerOff, false));
    // Of one that was about to leave and did not hear of it, the answer comes when it may.
    let left = json!({ "id": "op-write", "done": true, "leaving": { "id": "op-leave", "said": true } });
    lab.api
        .edit("servers", &name(1), &json!({ "status": { "job": left } }));
    annotate(json!({ "baremetalhost.metal3.io/paused": "" }));
    let refusal = agent.poll_with(going("op-write")).await.unwrap_err();
    assert_eq!(refusal.kind, ProblemKind::Unavailable);
    annotate(json!({}));
    let command = agent.poll_with(going("op-write")).await.unwrap().command.unwrap();
    assert_eq!((command.action, command.farewell), (Action::PowerOff, true));
}

fn put_host(lab: &Lab, uid: &str, annotations: &Value) {
    let metadata = json!({ "namespace": "metal", "name": "h", "uid": uid, "annotations": annotations });
    let host = json!({ "metadata": metadata, "spec": { "online": true } });
    lab.api.put("baremetalhosts", &host);
}

#[tokio::test]
async fn what_forbids_to_destroy_data_is_asked_for_each_time_but_for_what_follows_at_once() {
    let mut lab = Lab::hasty().await;
    let (mut agent, _) = lab.enrolled(1).await;
    put_host(&lab, "u", &json!({}));
    let host = json!({ "namespace": "metal", "name": "h", "uid": "u" });
    let spec = json!({ "spec": { "host": host, "job": write_job("op-1", 7) } });
    lab.api.edit("servers", &name(1), &spec);
    // As if the Servers' watch had told something this moment, however slow this test is.
    let then = tokio::time::Instant::now() + Duration::from_mins(1);
    let is_fresh = |lab: &Lab| {
        lab.written
            .remember_since(then, Arc::new(lab.server(&name(1))), Some(then));
        lab.api.requests();
    };
    let asked = |lab: &Lab| {
        let host = "GET /apis/metal3.io/v1alpha1/namespaces/metal/baremetalhosts/h";
        assert_eq!(lab.api.requests(), [host]);
    };
    is_fresh(&lab);
    assert!(agent.poll("").await.unwrap().command.is_some());
    asked(&lab);

    // The watch of the hosts has died, and nobody knows yet.
    lab.api.set_blind("baremetalhosts");
    lab.crash_and_restart().await;
    agent.address = lab.address;
    for (uid, annotations) in [
        ("u", json!({ "muster.dev/protected": "" })),
        ("u", json!({ "baremetalhost.metal3.io/paused": "" })),
        ("another", json!({})),
    ] {
        put_host(&lab, uid, &annotations);
        is_fresh(&lab);
        let answer = agent.poll("").await.unwrap();
        assert_eq!(answer.command, None, "{uid} {annotations}");
        asked(&lab);
    }
    lab.api.delete("baremetalhosts", "h");
    is_fresh(&lab);
    assert_eq!(agent.poll("").await.unwrap().command, None);
    asked(&lab);
    put_host(&lab, "u", &json!({}));
    lab.api.fail_next([Some(Fault::Refused)]);
    is_fresh(&lab);
    let refusal = agent.poll("").await.unwrap_err();
    assert_eq!(refusal.kind, ProblemKind::Unavailable);
    asked(&lab);
    assert!(agent.poll("").await.unwrap().command.is_some());
    asked(&lab);
    // The same for what follows a cleaning.
    place(&lab, &whole(&lab));
    put_host(&lab, "u", &json!({ "muster.dev/protected": "" }));
    is_fresh(&lab);
    let refusal = agent.poll_with(done("op-clean")).await.unwrap_err();
    assert_eq!(refusal.kind, ProblemKind::Unavailable);
    asked(&lab);
    // What was read for the cleaning a moment ago counts for it.
    put_host(&lab, "u", &json!({}));
    is_fresh(&lab);
    assert_eq!(agent.poll("").await.unwrap().command.unwrap().id, "op-clean");
    asked(&lab);
    is_fresh(&lab);
    assert_eq!(
        agent
            .poll_with(done("op-clean"))
            .await
            .unwrap()
            .command
            .unwrap()
            .id,
        "op-write"
    );
    assert_eq!(lab.api.requests(), Vec::<String>::new());
}

/// Their requests as they were recorded when they were the newest: an agent stays in a ramdisk while the controller is replaced.
#[tokio::test]
async fn agents_of_older_versions_finish_a_write() {
    for record in [
        include_str!("../../../../proto/src/session/recorded/v1_1.json"),
        include_str!("../../../../proto/src/session/recorded/v1_2.json"),
        include_str!("../../../../proto/src/session/recorded/v1_3.json"),
    ] {
        finishes_a_write(&serde_json::from_str(record).unwrap()).await;
    }
}

async fn finishes_a_write(record: &Value) {
    let lab = Lab::new().await;
    let mut agent = lab.agent(1);
    let mut request = json!(agent.enrol_request(&lab.token(1)));
    for said in ["protocol", "sealKey"] {
        request[said] = record["requests"]["enrol"][said].clone();
    }
    let response = agent.call("enrol", &request).await.unwrap();
    agent.certificate = Some(response["certificate"].as_str().unwrap().to_owned());
    place(&lab, &write_job("op-3", 7));
    let answer = agent.call("poll", &json!({ "last": "" })).await.unwrap();
    let command = &answer["command"];
    assert_eq!(
        (&command["id"], &command["action"]["do"]),
        (&json!("op-3"), &json!("write"))
    );
    let polls = &record["requests"]["polls"];
    agent.call("poll", &polls[0]).await.unwrap();
    assert_eq!(job(&lab).progress.map(|progress| progress.percent), Some(42));
    agent.call("poll", &polls[1]).await.unwrap();
    let told = job(&lab);
    assert!(told.done && told.error.is_empty(), "{told:?}");
    assert_eq!(told.id, "op-3");
}

#[tokio::test]
async fn the_certificate_of_a_machine_that_was_deleted_and_made_again_is_refused() {
    let lab = Lab::new().await;
    let (old, _) = lab.enrolled(1).await;
    let made_again = |status: Value| {
        lab.api.delete("servers", &name(1));
        let server = json!({
            "metadata": { "name": name(1), "namespace": "muster-system", "uid": "another" },
            "spec": { "job": write_job("op-1", 7) },
            "status": status,
        });
        lab.api.put("servers", &server);
    };
    let refused = refused(403, ProblemKind::Certificate);
    let renewal = json!({ "csr": old.csr() });
    // By a person, with nothing but its name; and by the machine, which has enrolled again since.
    made_again(json!({ "identity": {} }));
    assert_eq!(old.poll("").await.unwrap_err(), refused);
    assert_eq!(old.call("renew", &renewal).await.unwrap_err(), refused);
    let (new, _) = lab.enrolled(1).await;
    assert_eq!(old.poll("").await.unwrap_err(), refused);
    assert_eq!(old.report(&inventory_of(1)).await.unwrap_err(), refused);
    assert_eq!(old.call("renew", &renewal).await.unwrap_err(), refused);
    assert!(new.poll("").await.unwrap().command.is_some());
}

#[tokio::test]
async fn a_session_outlives_the_object_of_its_machines_host_for_it_is_the_machines() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    for uid in ["first", "made-anew"] {
        let host = json!({ "namespace": "metal", "name": "h", "uid": uid });
        let job = write_job(&format!("host-provision-{uid}-1-0-write"), 7);
        let spec = json!({ "spec": { "host": host, "job": job } });
        let object = json!({ "metadata": host, "spec": { "online": true } });
        if uid != "first" {
            lab.api.delete("baremetalhosts", "h");
        }
        lab.api.put("baremetalhosts", &object);
        lab.api.edit("servers", &name(1), &spec);
        let command = agent.poll("").await.unwrap().command.unwrap();
        assert!(command.id.contains(uid), "{command:?}");
    }
}
