//! Jobs that run beside the session's calls.

use muster_proto::{
    job::{ConfigDrive, Failure},
    seal::{Bound, SealKey, seal},
};

use super::*;

fn nothing() -> Answer {
    Answer::json(&json!({ "time": NOW }))
}

fn command_of(id: &str, epoch: i64, action: &Value) -> Answer {
    Answer::json(&json!({ "command": { "id": id, "epoch": epoch, "action": action }, "time": NOW }))
}

fn write(id: &str, epoch: i64) -> Answer {
    let action = json!({
        "do": "write",
        "machine": { "systemSerial": "SN-1" },
        "disk": { "name": "/dev/sda", "sizeBytes": 1 },
        "image": { "url": "http://user:hunter2@images.example/os.raw", "checksum": "00", "algorithm": "sha256" },
    });
    command_of(id, epoch, &action)
}

fn clean(id: &str, epoch: i64) -> Answer {
    command_of(id, epoch, &json!({ "do": "clean", "machine": {}, "disks": [] }))
}

/// The bodies of the polls so far.
fn polls(controller: &Controller) -> Vec<Value> {
    let calls = controller.calls().into_iter();
    calls
        .filter(|call| call.path == "/v1/poll")
        .map(|call| call.body)
        .collect()
}

/// The outcomes that were told of `id`, in turn.
fn outcomes(controller: &Controller, id: &str) -> Vec<Value> {
    let polls = polls(controller).into_iter();
    polls
        .filter(|poll| poll["last"] == id && !poll["outcome"].is_null())
        .map(|poll| poll["outcome"].clone())
        .collect()
}

async fn until_told(controller: &Controller, id: &str, times: usize) {
    controller
        .until(|controller| outcomes(controller, id).len() >= times)
        .await;
}

async fn until_polled(controller: &Controller, last: &str) {
    controller
        .until(|controller| {
            polls(controller)
                .iter()
                .any(|poll| poll["last"] == last && poll["outcome"].is_null())
        })
        .await;
}

#[tokio::test]
async fn a_write_runs_beside_the_polls_tells_its_progress_and_ends_a_held_poll() {
    // No further word of the job is no order to stop it.
    let controller = controller(vec![write("op-1", 3), nothing(), nothing()]).await;
    let agent = Agent::of(&controller);
    controller.until(|controller| polls(controller).len() == 4).await;
    let progress = json!({ "step": "write image", "percent": 42, "bytesPerSecond": 0 });
    for poll in &polls(&controller)[1..] {
        assert_eq!(
            poll,
            &json!({ "last": "op-1", "holdSeconds": 25, "progress": progress })
        );
    }
    agent.bench.ends(Ok(()));
    until_told(&controller, "op-1", 1).await;
    assert_eq!(
        polls(&controller).last().unwrap(),
        &json!({ "last": "op-1", "holdSeconds": 25, "outcome": { "result": "done" }, "goesAtOnce": true })
    );
    assert_eq!(agent.bench.begun().len(), 1);
}

#[tokio::test]
async fn what_a_write_warns_of_is_told_with_its_end() {
    let controller = controller(vec![write("op-1", 3), nothing()]).await;
    let agent = Agent::of(&controller);
    until_polled(&controller, "op-1").await;
    let work = agent.bench.work.lock().unwrap().clone().unwrap();
    work.warn("no boot entry was made".to_owned());
    agent.bench.ends(Ok(()));
    until_told(&controller, "op-1", 1).await;
    assert_eq!(
        polls(&controller).last().unwrap(),
        &json!({
            "last": "op-1",
            "holdSeconds": 25,
            "outcome": { "result": "done" },
            "goesAtOnce": true,
            "warnings": ["no boot entry was made"],
        })
    );
}

#[tokio::test]
async fn an_outcome_that_the_controller_does_not_take_is_told_once_more_in_short() {
    let refused = || refuse(413, ProblemKind::TooLarge);
    let controller = controller(vec![write("op-1", 3), refused(), refused()]).await;
    let agent = Agent::of(&controller);
    agent.bench.ends(Err(Failed {
        message: "no ".repeat(1000),
        failure: Failure::Temporary,
    }));
    until_told(&controller, "op-1", 2).await;
    until_polled(&controller, "op-1").await;
    let polls = polls(&controller);
    let told = polls.iter().filter(|poll| !poll["outcome"].is_null());
    let told: Vec<_> = told
        .map(|poll| {
            let message = poll["outcome"]["message"].as_str().unwrap();
            (message.len(), poll["log"].is_null())
        })
        .collect();
    assert_eq!(told, [(3000, false), (1000, true)]);
}

#[tokio::test]
async fn whoever_is_told_to_leave_with_the_answer_to_the_end_of_a_write_says_nothing_more() {
    let leave = json!({ "id": "op-2", "epoch": 3, "farewell": true, "action": { "do": "reboot" } });
    let leave = Answer::json(&json!({ "command": leave, "time": NOW }));
    let controller = controller(vec![write("op-1", 3), leave]).await;
    let agent = Agent::of(&controller);
    agent.bench.ends(Ok(()));
    assert!(matches!(agent.ended().await, Ended::Reboot));
    let polls = polls(&controller);
    assert_eq!(polls.len(), 2, "{polls:#?}");
    assert_eq!(
        polls[1],
        json!({ "last": "op-1", "holdSeconds": 25, "outcome": { "result": "done" }, "goesAtOnce": true })
    );
}

/// Their answers as they were recorded when they were the newest: such a controller may go on from one that is newer.
#[tokio::test]
async fn a_write_that_a_controller_of_an_older_version_orders_is_finished() {
    for record in [
        include_str!("../../../../proto/src/session/recorded/v1_1.json"),
        include_str!("../../../../proto/src/session/recorded/v1_2.json"),
        include_str!("../../../../proto/src/session/recorded/v1_3.json"),
    ] {
        is_finished(&serde_json::from_str(record).unwrap()).await;
    }
}

async fn is_finished(record: &Value) {
    let mut answer = record["answers"]["polls"][2].clone();
    // Sealed to nobody here.
    answer["command"]["action"]
        .as_object_mut()
        .unwrap()
        .remove("configDrive");
    let controller = controller(vec![Answer::json(&answer)]).await;
    let agent = Agent::of(&controller);
    agent.bench.ends(Ok(()));
    until_told(&controller, "op-3", 1).await;
    assert_eq!(outcomes(&controller, "op-3"), [json!({ "result": "done" })]);
    assert_eq!(agent.bench.begun().len(), 1);
}

#[tokio::test]
async fn a_write_goes_on_while_connections_break_and_certificates_are_renewed() {
    let mut polls = vec![
        write("op-1", 3),
        Answer::Cut,
        refuse(503, ProblemKind::Unavailable),
        Answer::Cut,
    ]
    .into_iter();
    let mut enrolled = false;
    let answers = move |path: &str| match path {
        "/v1/enrol" if !std::mem::replace(&mut enrolled, true) => Answer::Certificate {
            time: NOW,
            renew_at: NOW + 1,
            authority: None,
        },
        "/v1/poll" => polls.next().unwrap_or_else(nothing),
        other => usual(other),
    };
    let controller = Controller::start(AROUND_NOW, answers).await;
    let agent = Agent::of(&controller);
    controller.until_called("/v1/renew", 1).await;
    let renewed = controller.count("/v1/poll");
    controller.until_called("/v1/poll", renewed + 1).await;
    agent.bench.ends(Ok(()));
    until_told(&controller, "op-1", 1).await;
    assert_eq!(agent.bench.begun().len(), 1);
    assert_eq!(controller.count("/v1/enrol"), 1, "one session");
}

#[tokio::test]
async fn a_certificate_is_renewed_though_no_poll_is_answered() {
    let answers = |path: &str| match path {
        "/v1/enrol" => Answer::Certificate {
            time: NOW,
            renew_at: NOW + 1,
            authority: None,
        },
        "/v1/poll" => refuse(503, ProblemKind::Unavailable),
        other => usual(other),
    };
    let controller = Controller::start(AROUND_NOW, answers).await;
    let agent = Agent::of(&controller);
    controller.until_called("/v1/renew", 1).await;
    assert_eq!(controller.count("/v1/enrol"), 1, "one session");
    drop(agent);
}

#[tokio::test]
async fn an_outcome_is_repeated_until_somebody_has_it() {
    let controller = controller(vec![
        write("op-1", 3),
        // That of the end comes meanwhile or afterwards; all are broken off.
        Answer::Cut,
        Answer::Cut,
        refuse(503, ProblemKind::Unavailable),
        Answer::Cut,
        nothing(),
    ])
    .await;
    let agent = Agent::of(&controller);
    agent.bench.ends(Ok(()));
    controller.until(|controller| polls(controller).len() == 7).await;
    let told = outcomes(&controller, "op-1");
    assert!(told.len() >= 2, "{told:?}");
    assert!(told.iter().all(|outcome| outcome["result"] == "done"));
    assert_eq!(
        polls(&controller).last().unwrap(),
        &json!({ "last": "op-1", "holdSeconds": HOLD_SECONDS }),
        "and no longer"
    );
}

#[tokio::test]
async fn a_job_that_has_ended_is_never_run_again_and_its_outcome_is_told_again() {
    let controller = controller(vec![
        clean("op-1", 3),
        nothing(),
        command("op-2", "inspect"),
        nothing(),
        clean("op-1", 3),
    ])
    .await;
    let agent = Agent::of(&controller);
    agent.bench.ends(Ok(()));
    until_told(&controller, "op-1", 2).await;
    assert_eq!(outcomes(&controller, "op-2").len(), 1);
    assert_eq!(agent.bench.begun().len(), 1);
}

#[tokio::test]
async fn a_job_of_which_a_thread_breaks_fails_of_that_and_the_machine_stays_until_the_next() {
    let controller = controller(vec![
        write("op-1", 3),
        Answer::Hold,
        command("op-2", "inspect"),
        clean("op-3", 3),
    ])
    .await;
    let agent = Agent::of(&controller);
    let bench = Arc::clone(&agent.bench);
    until_polled(&controller, "op-1").await;
    bench.breaks("index out of bounds");
    until_told(&controller, "op-2", 1).await;
    let message = outcomes(&controller, "op-1")[0]["message"].clone();
    let message = message.as_str().unwrap();
    assert!(message.ends_with("index out of bounds"), "{message}");
    assert_eq!(outcomes(&controller, "op-2"), [json!({ "result": "done" })]);
    // What needs a disk is left for the ramdisk that boots next.
    assert!(matches!(agent.ended().await, Ended::Reboot));
    assert!(outcomes(&controller, "op-3").is_empty());
    assert_eq!(bench.begun().len(), 1, "its threads hold the disk");
}

#[tokio::test]
async fn an_older_term_is_refused_and_the_write_of_the_newer_one_goes_on() {
    let controller = controller(vec![write("op-2", 5), write("op-1", 4), nothing()]).await;
    let agent = Agent::of(&controller);
    until_told(&controller, "op-1", 1).await;
    let refused = &outcomes(&controller, "op-1")[0];
    assert_eq!(
        (&refused["result"], &refused["failure"]),
        (&json!("failed"), &json!("outdated"))
    );
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("term 4") && message.contains("term 5"),
        "{message}"
    );
    controller
        .until(|controller| polls(controller).last().unwrap()["progress"]["percent"] == 42)
        .await;
    agent.bench.ends(Ok(()));
    until_told(&controller, "op-2", 1).await;
    assert_eq!(outcomes(&controller, "op-2")[0], json!({ "result": "done" }));
    assert_eq!(agent.bench.begun().len(), 1);
}

#[tokio::test]
async fn a_machine_whose_agent_refuses_every_order_for_half_an_hour_boots_again() {
    let controller = controller(vec![
        command_of("op-1", i64::MAX, &json!({ "do": "inspect" })),
        nothing(),
        clean("op-2", 5),
        nothing(),
        Answer::Hold,
        clean("op-3", 5),
    ])
    .await;
    let agent = Agent::of(&controller);
    let bench = Arc::clone(&agent.bench);
    until_polled(&controller, "op-2").await;
    assert_eq!(outcomes(&controller, "op-2")[0]["failure"], "outdated");
    // The poll that is held is given up, and the next one brings the order.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31 * 60)).await;
    tokio::time::resume();
    assert!(matches!(agent.ended().await, Ended::Reboot));
    assert!(
        outcomes(&controller, "op-3").is_empty(),
        "it is left for the next session"
    );
    assert!(bench.begun().is_empty());
}

#[tokio::test]
async fn a_write_is_stopped_for_a_job_of_its_own_term_which_begins_after_its_end() {
    let controller = controller(vec![write("op-1", 5), clean("op-2", 5)]).await;
    let agent = Agent::of(&controller);
    until_told(&controller, "op-1", 1).await;
    let replaced = &outcomes(&controller, "op-1")[0];
    assert_eq!(replaced["failure"], "outdated");
    let message = replaced["message"].as_str().unwrap();
    assert!(
        message.contains("op-2") && message.contains("does not boot"),
        "{message}"
    );
    agent.bench.ends(Ok(()));
    controller.until(|_| agent.bench.begun().len() == 2).await;
    assert!(matches!(
        &agent.bench.begun()[..],
        [Job::Write { .. }, Job::Clean(_)]
    ));
}

#[tokio::test]
async fn a_job_that_fails_tells_why_and_the_last_lines_of_the_log() {
    let controller = controller(vec![write("op-1", 1), nothing()]).await;
    let agent = Agent::of(&controller);
    until_polled(&controller, "op-1").await;
    agent.bench.ends(Err(Failed {
        message: "no disk has serial D1".to_owned(),
        failure: Failure::Final,
    }));
    until_told(&controller, "op-1", 1).await;
    let polls = polls(&controller);
    let told = polls
        .iter()
        .find(|poll| !poll["outcome"].is_null())
        .expect("an outcome");
    let outcome = json!({ "result": "failed", "message": "no disk has serial D1", "failure": "final" });
    assert_eq!(told["outcome"], outcome);
    assert_eq!(told["log"].as_array().unwrap().last().unwrap(), "the last line");
    controller.until_called("/v1/log", 1).await;
}

#[tokio::test]
async fn a_machine_is_switched_off_when_ordered_and_the_controller_knows() {
    for (action, running) in [("powerOff", false), ("powerOff", true), ("reboot", true)] {
        let mut answers = vec![];
        if running {
            answers.push(write("op-1", 5));
        }
        answers.push(command_of("op-2", 5, &json!({ "do": action })));
        let controller = controller(answers).await;
        let agent = Agent::of(&controller);
        let bench = Arc::clone(&agent.bench);
        let ended = agent.ended().await;
        match action {
            "reboot" => assert!(matches!(ended, Ended::Reboot)),
            _ => assert!(matches!(ended, Ended::PowerOff)),
        }
        assert_eq!(outcomes(&controller, "op-2"), [json!({ "result": "done" })]);
        assert_eq!(bench.begun().len(), usize::from(running));
    }
}

#[tokio::test]
async fn a_session_that_is_refused_for_good_stops_its_write() {
    let controller = controller(vec![write("op-1", 5), refuse(403, ProblemKind::Certificate)]).await;
    let agent = Agent::of(&controller);
    let bench = Arc::clone(&agent.bench);
    assert!(matches!(agent.ended().await, Ended::Refused(_)));
    // The bench is shared by the work alone once that has ended.
    controller.until(|_| Arc::strong_count(&bench) == 1).await;
    assert_eq!(bench.begun().len(), 1);
}

/// What would be a disaster to read anywhere.
const CANARY: &str = "canary-5f4dcc3b5aa765d61d83";
/// The same as JSON has user data, without what depends on its end.
const CANARY_BASE64: &str = "Y2FuYXJ5LTVmNGRjYzNiNWFhNzY1ZDYxZDgz";

fn canary_drive() -> ConfigDrive {
    ConfigDrive {
        meta_data: [("hostname".to_owned(), json!(CANARY))].into_iter().collect(),
        network_data: Some(json!({ "psk": CANARY })),
        user_data: Some(CANARY.as_bytes().to_vec()),
    }
}

/// Answers with a job to write with the canary in it, once it knows the session's key; sealed for job `job`.
fn sealing(
    job: &'static str,
    to: Option<SealKey>,
) -> (impl FnMut(&str) -> Answer, Arc<Mutex<Option<Value>>>) {
    let enrolment: Arc<Mutex<Option<Value>>> = Arc::default();
    let known = Arc::clone(&enrolment);
    let mut given = false;
    let answers = move |path: &str| match path {
        "/v1/poll" if !given => {
            let Some(body) = known.lock().unwrap().clone() else {
                return nothing();
            };
            given = true;
            let fingerprint = fingerprint_of(body["csr"].as_str().unwrap());
            let bound = Bound {
                job,
                epoch: 9,
                session: &fingerprint,
            };
            let key = match &to {
                Some(other) => other.public(),
                None => body["sealKey"].as_str().unwrap().to_owned(),
            };
            let plain = serde_json::to_vec(&canary_drive()).unwrap();
            let sealed = seal(&key, &bound, &plain).unwrap();
            command_of("op-1", 9, &json!({ "do": "write", "configDrive": sealed }))
        }
        "/v1/poll" => Answer::Hold,
        other => usual(other),
    };
    (answers, enrolment)
}

fn fingerprint_of(csr: &str) -> String {
    use rcgen::PublicKeyData;
    let request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
    let digest = ring::digest::digest(
        &ring::digest::SHA256,
        &request.public_key.subject_public_key_info(),
    );
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs one job with the canary that is sealed for `job` and, if it is there, `to` another key: its outcomes, what became of it, and
/// what the agent said.
async fn with_canary(job: &'static str, to: Option<SealKey>) -> (Vec<Value>, Arc<Bench>, Vec<String>) {
    let (answers, enrolment) = sealing(job, to);
    let controller = Controller::start(AROUND_NOW, answers).await;
    let agent = Agent::of(&controller);
    let _listening = tracing::subscriber::set_default(agent.console.clone());
    controller.until_called("/v1/enrol", 1).await;
    *enrolment.lock().unwrap() = Some(controller.calls()[0].body.clone());
    agent.bench.ends(Ok(()));
    until_told(&controller, "op-1", 1).await;
    let said = agent.console.recent();
    let bodies: Vec<_> = controller.calls().into_iter().map(|call| call.body).collect();
    assert!(!said.is_empty());
    for text in said.iter().cloned().chain(bodies.iter().map(Value::to_string)) {
        assert!(!text.contains(CANARY) && !text.contains(CANARY_BASE64), "{text}");
        assert!(!text.contains("configDrive"), "{text}");
    }
    (outcomes(&controller, "op-1"), Arc::clone(&agent.bench), said)
}

#[tokio::test]
async fn a_sealed_config_drive_opens_for_its_job_and_is_never_shown() {
    let (outcomes, bench, _) = with_canary("op-1", None).await;
    assert_eq!(outcomes[0], json!({ "result": "done" }));
    let opened = bench.opened.lock().unwrap().clone();
    assert_eq!(opened, [serde_json::to_string(&canary_drive()).unwrap()]);
}

#[tokio::test]
async fn a_config_drive_of_another_job_does_not_open() {
    let (outcomes, bench, _) = with_canary("op-0", None).await;
    assert_eq!(outcomes[0]["failure"], "outdated");
    assert!(bench.opened.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_write_with_a_config_drive_of_another_session_never_begins() {
    let (outcomes, bench, said) = with_canary("op-1", Some(SealKey::generate())).await;
    assert_eq!(outcomes[0]["failure"], "outdated");
    assert!(bench.begun().is_empty());
    assert!(
        said.iter().any(|line| line.contains("another session")),
        "{said:?}"
    );
}
