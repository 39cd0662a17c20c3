//! The session against a controller made here: real sockets, real TLS, scripted answers.

mod controller;
mod jobs;
mod trust;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use muster_proto::{
    config::BootConfig,
    identity::Identity,
    inventory::{Disk, Inventory},
    session::{HOLD_SECONDS, Problem, ProblemKind},
};
use serde_json::{Value, json};
use tokio::{sync::Notify, task::JoinHandle};

use super::{Context, Ended, Machine, run};
use crate::{
    clock::Clock,
    console::Console,
    steps::{Failed, Job},
    sys::tree::Tree,
    work::{self, Work},
};
use controller::{Answer, Authority, Controller, Validity};

/// When the tests happen, as the boot services would write it; the machine's own clock says something else.
const NOW: i64 = 1_894_665_600; // 2030-01-15
const AROUND_NOW: Validity = Validity {
    from: (2030, 1, 1),
    to: (2030, 2, 1),
};

struct TestMachine {
    changed: Arc<Notify>,
    disks: usize,
    bench: Arc<Bench>,
    console: Console,
}

/// What the machine works on, as a test sees it and decides about it.
#[derive(Default)]
struct Bench {
    /// Every job that was begun.
    begun: Mutex<Vec<Job>>,
    /// The work on the last one.
    work: Mutex<Option<Work>>,
    /// How the next one that may end ends.
    end: Mutex<Option<Result<(), Failed>>>,
    may_end: Notify,
    /// What was found in opened config drives.
    opened: Mutex<Vec<String>>,
}

impl Bench {
    /// Lets the job that runs end like this.
    fn ends(&self, end: Result<(), Failed>) {
        *self.end.lock().unwrap() = Some(end);
        self.may_end.notify_one();
    }

    /// A thread of the job that runs breaks.
    fn breaks(&self, why: &str) {
        let work = self.work.lock().unwrap().clone().unwrap();
        assert!(work.part(|| work::break_off(why)));
    }

    fn begun(&self) -> Vec<Job> {
        self.begun.lock().unwrap().clone()
    }

    /// Half done until the test says more, or the work is stopped.
    async fn carry_out(self: Arc<Bench>, job: Job, work: Work) -> Result<(), Failed> {
        let ended = async {
            loop {
                self.may_end.notified().await;
                if let Some(end) = self.end.lock().unwrap().take() {
                    return end;
                }
            }
        };
        let stopped = || Failed {
            message: "it was stopped; the disk does not boot".to_owned(),
            failure: muster_proto::job::Failure::Temporary,
        };
        tokio::select! {
            end = ended => end?,
            () = work.stopped() => return Err(stopped()),
        }
        if let Job::Write {
            drive: Some(drive), ..
        } = &job
        {
            let open = drive.open().map_err(|error| Failed {
                message: muster_proto::Chain(&error).to_string(),
                failure: muster_proto::job::Failure::Outdated,
            })?;
            let text = serde_json::to_string(&*open).unwrap();
            self.opened.lock().unwrap().push(text);
        }
        Ok(())
    }
}

impl Machine for TestMachine {
    async fn identity(&mut self) -> Identity {
        Identity {
            system_serial: Some("SN-1".to_owned()),
            ..Identity::default()
        }
    }

    async fn inventory(&mut self) -> Inventory {
        let disks = vec![Disk::default(); self.disks];
        self.disks += 1;
        Inventory {
            disks,
            ..Inventory::default()
        }
    }

    async fn changed(&mut self) {
        self.changed.notified().await;
    }

    fn work(&mut self, job: Job, work: Work) -> impl Future<Output = Result<(), Failed>> + Send + 'static {
        self.bench.begun.lock().unwrap().push(job.clone());
        *self.bench.work.lock().unwrap() = Some(work.clone());
        work.step("write image", 42);
        Arc::clone(&self.bench).carry_out(job, work)
    }

    fn log_lines(&self) -> Vec<String> {
        let mut lines = self.console.recent();
        lines.push("the last line".to_owned());
        lines
    }
}

struct Agent {
    task: JoinHandle<Ended>,
    clock: Clock,
    changed: Arc<Notify>,
    bench: Arc<Bench>,
    /// What it said, if [`Agent::heard`] listens.
    console: Console,
}

impl Agent {
    fn start(endpoints: Vec<String>, authority: &Authority, now: i64) -> Agent {
        let config = BootConfig {
            endpoints,
            ca_pem: authority.pem(),
            token: "the token".to_owned(),
            time: now,
            boot_mac: None,
            proxy: None,
        };
        let (clock, changed) = (Clock::told(now), Arc::new(Notify::new()));
        // A machine without any console keeps its lines all the same.
        let (bench, console) = (Arc::default(), Console::of_the_kernel(&Tree::new().root()));
        let machine = TestMachine {
            changed: Arc::clone(&changed),
            disks: 1,
            bench: Arc::clone(&bench),
            console: console.clone(),
        };
        let task = tokio::spawn(run(Context {
            config,
            clock: clock.clone(),
            machine,
        }));
        Agent {
            task,
            clock,
            changed,
            bench,
            console,
        }
    }

    fn of(controller: &Controller) -> Agent {
        Agent::start(vec![controller.endpoint()], controller.authority(), NOW)
    }

    async fn ended(mut self) -> Ended {
        tokio::time::timeout(Duration::from_secs(60), &mut self.task)
            .await
            .expect("ends")
            .expect("does not panic")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn command(id: &str, action: &str) -> Answer {
    Answer::json(&json!({"command": {"id": id, "action": {"do": action}}, "time": NOW}))
}

fn refuse(status: u16, kind: ProblemKind) -> Answer {
    Answer::Problem {
        status,
        problem: Problem {
            kind,
            message: "because".to_owned(),
        },
        retry_after: Some(0),
    }
}

/// What the answers to polls are, one after the other; further polls are held.
async fn controller(polls: Vec<Answer>) -> Controller {
    Controller::start(AROUND_NOW, scripted(polls)).await
}

fn scripted(polls: Vec<Answer>) -> impl FnMut(&str) -> Answer + Send + 'static {
    let mut polls = polls.into_iter();
    move |path| match path {
        "/v1/poll" => polls.next().unwrap_or(Answer::Hold),
        other => usual(other),
    }
}

fn usual(path: &str) -> Answer {
    match path {
        "/v1/enrol" | "/v1/renew" => Answer::Certificate {
            time: NOW,
            renew_at: NOW + 3600,
            authority: None,
        },
        "/v1/inventory" => Answer::json(&json!({"time": NOW})),
        "/v1/log" => Answer::json(&Value::Null),
        _ => Answer::Hold,
    }
}

#[tokio::test]
async fn a_session_enrols_reports_polls_and_reboots_when_ordered() {
    let controller = controller(vec![command("op-1", "reboot")]).await;
    let agent = Agent::of(&controller);
    assert!(matches!(agent.ended().await, Ended::Reboot));
    let calls = controller.calls();
    let paths: Vec<_> = calls
        .iter()
        .map(|call| (call.path.as_str(), call.certified))
        .collect();
    assert_eq!(
        paths,
        [
            ("/v1/enrol", false),
            ("/v1/inventory", true),
            ("/v1/poll", true),
            ("/v1/poll", true)
        ],
        "everything but the enrolment shows the certificate"
    );
    assert_eq!(calls[0].body["token"], "the token");
    assert_eq!(calls[0].body["identity"]["systemSerial"], "SN-1");
    assert_eq!(calls[0].body["protocol"], "1.4");
    let seal_key = calls[0].body["sealKey"].as_str().unwrap();
    assert!(muster_proto::seal::public_key(seal_key).is_some(), "{seal_key}");
    assert_eq!(calls[1].body["disks"].as_array().unwrap().len(), 1);
    assert_eq!(calls[2].body, json!({"last": "", "holdSeconds": HOLD_SECONDS}));
    assert_eq!(
        calls[3].body,
        json!({"last": "op-1", "holdSeconds": 25, "outcome": {"result": "done"}, "goesAtOnce": true}),
        "reported before the reboot"
    );
    assert_eq!(
        controller.connections(),
        2,
        "one without and one with the certificate"
    );
}

#[tokio::test]
async fn a_busy_controller_is_asked_again_with_the_same_key_and_token() {
    let mut first = vec![
        refuse(503, ProblemKind::Unavailable),
        refuse(429, ProblemKind::Quota),
        Answer::Cut,
    ]
    .into_iter();
    let answers = move |path: &str| match path {
        "/v1/enrol" => first.next().unwrap_or_else(|| usual(path)),
        other => usual(other),
    };
    let controller = Controller::start(AROUND_NOW, answers).await;
    let _agent = Agent::of(&controller);
    controller.until_called("/v1/inventory", 1).await;
    let enrolments: Vec<_> = controller
        .calls()
        .into_iter()
        .filter(|call| call.path == "/v1/enrol")
        .collect();
    assert_eq!(enrolments.len(), 4);
    assert!(
        enrolments.iter().all(|call| call.body == enrolments[0].body),
        "a retry, not another machine"
    );
}

#[tokio::test]
async fn nonsense_from_the_controller_is_survived() {
    let mut first = vec![
        Answer::json(&json!([1, 2])),
        Answer::Raw(200, b"{".to_vec()),
        Answer::Raw(502, b"<html>".to_vec()),
        Answer::Certificate {
            time: i64::MIN,
            renew_at: 0,
            authority: None,
        }
        .with_broken_certificate(),
    ]
    .into_iter();
    let answers = move |path: &str| match path {
        "/v1/enrol" => first.next().unwrap_or_else(|| usual(path)),
        other => usual(other),
    };
    let controller = Controller::start(AROUND_NOW, answers).await;
    let agent = Agent::of(&controller);
    controller.until_called("/v1/enrol", 4).await;
    // The time of that answer was absurd; without another the server's certificate is out of its time.
    agent.clock.correct(NOW);
    controller.until_called("/v1/inventory", 1).await;
}

#[tokio::test]
async fn the_next_controller_of_the_list_is_asked_when_one_is_gone() {
    let controller = controller(vec![]).await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let endpoints = vec![
        "nonsense".to_owned(),
        format!("https://{gone}"),
        controller.endpoint(),
    ];
    let _agent = Agent::start(endpoints, controller.authority(), NOW);
    controller.until_called("/v1/poll", 1).await;
}

/// Enrolments are answered like this, one after the other, and the later ones as usual.
async fn enrolling(answers: Vec<Answer>) -> Controller {
    let mut answers = answers.into_iter();
    let script = move |path: &str| match path {
        "/v1/enrol" => answers.next().unwrap_or_else(|| usual(path)),
        path => usual(path),
    };
    Controller::start(AROUND_NOW, script).await
}

#[tokio::test]
async fn a_controller_that_cannot_now_is_left_for_another_one_after_a_while() {
    for (endpoints, connections) in [(1, 2), (2, 3)] {
        let busy = (0..6).map(|_| refuse(503, ProblemKind::Unavailable));
        let controller = enrolling(busy.collect()).await;
        let _agent = Agent::start(
            vec![controller.endpoint(); endpoints],
            controller.authority(),
            NOW,
        );
        controller.until_called("/v1/poll", 1).await;
        assert_eq!(controller.count("/v1/enrol"), 7);
        assert_eq!(controller.connections(), connections, "of {endpoints}");
    }
}

#[tokio::test]
async fn a_configuration_that_cannot_work_ends_at_once() {
    let authority = Authority::new("ca");
    let agent = Agent::start(vec!["http://10.0.0.1".to_owned()], &authority, NOW);
    assert!(matches!(
        agent.ended().await,
        Ended::Unusable(super::SessionError::NoEndpoint { .. })
    ));
}

#[tokio::test]
async fn a_connection_cut_during_a_poll_is_opened_again() {
    let controller = controller(vec![Answer::Cut, Answer::Cut, command("op-1", "reboot")]).await;
    assert!(matches!(Agent::of(&controller).ended().await, Ended::Reboot));
    assert_eq!(controller.count("/v1/enrol"), 1, "the session lives on");
    assert_eq!(controller.count("/v1/inventory"), 1);
    assert_eq!(controller.connections(), 4);
}

#[tokio::test]
async fn an_inspection_sends_a_new_inventory() {
    let controller = controller(vec![command("op-1", "inspect"), command("op-1", "inspect")]).await;
    let _agent = Agent::of(&controller);
    controller.until_called("/v1/poll", 3).await;
    let calls = controller.calls();
    let disks: Vec<_> = calls
        .iter()
        .filter_map(|call| Some(call.body["disks"].as_array()?.len()))
        .collect();
    assert_eq!(disks, [1, 2], "the job was given twice and obeyed once");
    let polls: Vec<_> = calls
        .iter()
        .filter(|call| call.path == "/v1/poll")
        .map(|call| &call.body)
        .collect();
    assert_eq!(
        polls[1],
        &json!({"last": "op-1", "holdSeconds": 25, "outcome": {"result": "done"}, "goesAtOnce": true})
    );
    assert_eq!(
        polls[2],
        &json!({"last": "op-1", "holdSeconds": HOLD_SECONDS}),
        "an outcome is told once"
    );
}

#[tokio::test]
async fn an_unknown_command_fails_and_shows_the_log() {
    let controller = controller(vec![command("op-1", "levitate")]).await;
    let _agent = Agent::of(&controller);
    controller.until_called("/v1/poll", 2).await;
    let calls = controller.calls();
    assert_eq!(calls[3].path, "/v1/log");
    assert_eq!(calls[3].body, json!({"lines": ["the last line"]}));
    assert_eq!(calls[4].body["outcome"]["result"], "failed");
}

#[tokio::test]
async fn an_inventory_that_is_not_taken_does_not_end_the_session() {
    let answers = |path: &str| match path {
        "/v1/inventory" => refuse(413, ProblemKind::TooLarge),
        other => usual(other),
    };
    let controller = Controller::start(AROUND_NOW, answers).await;
    let _agent = Agent::of(&controller);
    controller.until_called("/v1/poll", 1).await;
    assert_eq!(controller.count("/v1/inventory"), 1);
}

#[tokio::test]
async fn changed_hardware_is_reported_during_a_poll() {
    let controller = controller(vec![]).await;
    let agent = Agent::of(&controller);
    controller.until_called("/v1/poll", 1).await;
    agent.changed.notify_one();
    controller.until_called("/v1/poll", 2).await;
    assert_eq!(controller.count("/v1/inventory"), 2);
}
