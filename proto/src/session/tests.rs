//! What earlier versions said and understood, recorded: `recorded/` has their words, [`v1_0`] their ears.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::job::DigestAlgorithm;

/// The types of protocol 1.0, frozen as they were in its last release.
mod v1_0 {
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct EnrolRequest {
        pub(super) token: String,
        pub(super) protocol: String,
        #[serde(default)]
        pub(super) boot_mac: Option<crate::Mac>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct PollRequest {
        pub(super) last: String,
        #[serde(default)]
        pub(super) outcome: Option<Outcome>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct PollResponse {
        #[serde(default)]
        pub(super) command: Option<Command>,
        pub(super) time: i64,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Command {
        pub(super) id: String,
        pub(super) action: Action,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase", tag = "do")]
    pub(super) enum Action {
        Inspect,
        Reboot,
        #[serde(other)]
        Unknown,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase", tag = "result")]
    pub(super) enum Outcome {
        Done,
        Failed { message: String },
    }
}

fn recorded(version: &str) -> Value {
    let text = match version {
        "1.0" => include_str!("recorded/v1_0.json"),
        "1.1" => include_str!("recorded/v1_1.json"),
        "1.2" => include_str!("recorded/v1_2.json"),
        "1.3" => include_str!("recorded/v1_3.json"),
        other => panic!("{other} is not recorded"),
    };
    serde_json::from_str(text).unwrap()
}

fn read<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn each<T: DeserializeOwned>(values: &Value) -> Vec<T> {
    values.as_array().unwrap().iter().map(read).collect()
}

#[test]
fn what_an_agent_of_version_1_0_says_is_understood() {
    let record = recorded("1.0");
    let enrol: EnrolRequest = read(&record["requests"]["enrol"]);
    assert_eq!((enrol.protocol.as_str(), enrol.seal_key.as_str()), ("1.0", ""));
    let polls: Vec<PollRequest> = each(&record["requests"]["polls"]);
    assert!(
        polls
            .iter()
            .all(|poll| poll.progress.is_none() && poll.log.is_empty())
    );
    assert_eq!(polls[2].outcome, Some(Outcome::Done));
    let failed = Outcome::Failed {
        message: "agent 0.1.0 does not know this command".to_owned(),
        failure: Failure::Temporary,
    };
    assert_eq!(polls[3].outcome, Some(failed));
}

#[test]
fn what_a_controller_of_version_1_0_says_is_understood() {
    let polls: Vec<PollResponse> = each(&recorded("1.0")["answers"]["polls"]);
    let commands: Vec<_> = polls.into_iter().map(|poll| poll.command).collect();
    let command = |id: &str, action| {
        Some(Command {
            id: id.to_owned(),
            epoch: 0,
            farewell: false,
            action,
        })
    };
    assert_eq!(
        commands,
        [
            None,
            command("op-1", Action::Inspect),
            command("op-2", Action::Reboot)
        ]
    );
}

#[test]
fn what_is_said_now_is_understood_by_a_controller_of_version_1_0() {
    let record = recorded("1.1");
    let enrol: v1_0::EnrolRequest = read(&record["requests"]["enrol"]);
    assert_eq!(
        (enrol.token.as_str(), enrol.protocol.as_str()),
        ("eyJ.c2VhbA", "1.1")
    );
    assert!(enrol.boot_mac.is_some());
    let polls: Vec<v1_0::PollRequest> = each(&record["requests"]["polls"]);
    assert!(polls.iter().all(|poll| !poll.last.is_empty()));
    assert_eq!(polls[0].outcome, None);
    assert_eq!(polls[1].outcome, Some(v1_0::Outcome::Done));
    let failed = v1_0::Outcome::Failed {
        message: "no such disk".to_owned(),
    };
    assert_eq!(polls[2].outcome, Some(failed));
}

#[test]
fn every_new_command_is_an_unknown_one_to_an_agent_of_version_1_0() {
    let polls: Vec<v1_0::PollResponse> = each(&recorded("1.1")["answers"]["polls"]);
    for poll in polls {
        assert!(poll.time > 0);
        let command = poll.command.unwrap();
        assert!(command.id.starts_with("op-"));
        // Which it answers with a failed outcome.
        assert_eq!(command.action, v1_0::Action::Unknown);
    }
    let known = json!({ "id": "op-1", "epoch": 7, "action": { "do": "inspect" } });
    assert_eq!(read::<v1_0::Command>(&known).action, v1_0::Action::Inspect);
}

/// The version before this one is recorded, whichever this is.
#[test]
fn the_version_before_is_recorded() {
    let (major, minor) = PROTOCOL.split_once('.').unwrap();
    let before = format!("{major}.{}", minor.parse::<u32>().unwrap() - 1);
    assert_eq!(recorded(&before)["requests"]["enrol"]["protocol"], before);
}

/// A field that is renamed, or a default that changes what is sent, breaks those who speak 1.1 to 1.3 already.
#[test]
fn what_was_recorded_of_older_versions_is_what_is_said_now() {
    ["1.1", "1.2", "1.3"].into_iter().for_each(is_said_now);
}

fn is_said_now(version: &str) {
    fn same<T: DeserializeOwned + Serialize>(value: &Value) {
        assert_eq!(json!(read::<T>(value)), *value);
    }
    let record = recorded(version);
    same::<EnrolRequest>(&record["requests"]["enrol"]);
    for poll in record["requests"]["polls"].as_array().unwrap() {
        if poll["outcome"]["result"] == "failed" || poll["outcome"].is_null() {
            same::<PollRequest>(poll);
        }
    }
    for poll in record["answers"]["polls"].as_array().unwrap() {
        same::<PollResponse>(poll);
    }
    let polls: Vec<PollResponse> = each(&record["answers"]["polls"]);
    let Some(Command {
        epoch,
        action: Action::Write(write),
        ..
    }) = &polls[2].command
    else {
        panic!("a write");
    };
    assert_eq!((*epoch, write.image.algorithm), (7, DigestAlgorithm::Sha256));
    assert_eq!(write.disk.size_bytes, 8 << 30);
}

#[test]
fn an_agent_says_how_long_its_poll_may_be_held_since_version_1_2() {
    let poll = json!({ "last": "op-1", "holdSeconds": 60 });
    assert_eq!(json!(read::<PollRequest>(&poll)), poll);
    assert_eq!(read::<v1_0::PollRequest>(&poll).last, "op-1");
    let before = json!({ "last": "op-1" });
    assert_eq!(read::<PollRequest>(&before).hold_seconds, None);
}

#[test]
fn a_machine_leaves_with_the_answer_to_its_end_since_version_1_3_where_both_sides_speak_it() {
    let poll =
        json!({ "last": "op-1", "holdSeconds": 25, "outcome": { "result": "done" }, "goesAtOnce": true });
    assert_eq!(json!(read::<PollRequest>(&poll)), poll);
    assert_eq!(read::<v1_0::PollRequest>(&poll).last, "op-1");
    let command = json!({ "id": "op-2", "epoch": 7, "farewell": true, "action": { "do": "reboot" } });
    assert_eq!(json!(read::<Command>(&command)), command);
    assert_eq!(read::<v1_0::Command>(&command).action, v1_0::Action::Reboot);
    // An older one says neither, and a farewell follows.
    let (poll, command) = (
        json!({ "last": "op-1", "outcome": { "result": "done" } }),
        json!({ "id": "op-2", "epoch": 7, "action": { "do": "reboot" } }),
    );
    assert!(!read::<PollRequest>(&poll).goes_at_once);
    assert!(!read::<Command>(&command).farewell);
    assert_eq!(json!(read::<PollRequest>(&poll)), poll);
    assert_eq!(json!(read::<Command>(&command)), command);
}

#[test]
fn an_agent_tells_what_it_warns_of_since_version_1_4() {
    let poll =
        json!({ "last": "op-1", "outcome": { "result": "done" }, "warnings": ["no boot entry was made"] });
    assert_eq!(json!(read::<PollRequest>(&poll)), poll);
    assert_eq!(
        read::<v1_0::PollRequest>(&poll).outcome,
        Some(v1_0::Outcome::Done)
    );
    let before = json!({ "last": "op-1", "outcome": { "result": "done" } });
    assert_eq!(read::<PollRequest>(&before).warnings, [""; 0]);
    assert_eq!(json!(read::<PollRequest>(&before)), before);
}

#[test]
fn what_a_newer_version_says_is_survived() {
    let command = json!({ "id": "op-1", "epoch": 7, "action": { "do": "levitate", "height": 3 }, "new": [] });
    assert_eq!(read::<Command>(&command).action, Action::Unknown);
    let outcome = json!({ "result": "failed", "message": "m", "failure": "inNinetyDays", "new": 1 });
    let failed = Outcome::Failed {
        message: "m".to_owned(),
        failure: Failure::Temporary,
    };
    assert_eq!(read::<Outcome>(&outcome), failed);
    let image = json!({ "url": "http://h/os.raw", "checksum": "00", "algorithm": "blake3" });
    let command = json!({ "id": "op-1", "epoch": 7, "action": { "do": "write", "image": image } });
    let Action::Write(write) = read::<Command>(&command).action else {
        panic!("a write");
    };
    assert_eq!(write.image.algorithm, DigestAlgorithm::Unknown);
    // Whoever passes it on passes on that it is not known.
    assert_eq!(read::<crate::job::Write>(&json!(write)), *write);
}

#[test]
fn user_data_survives_byte_for_byte_and_no_word_of_it_is_shown() {
    let drive = crate::job::ConfigDrive {
        user_data: Some((0..=255).collect()),
        ..Default::default()
    };
    let text = serde_json::to_string(&drive).unwrap();
    assert!(text.len() < 450, "{}", text.len());
    assert_eq!(
        serde_json::from_str::<crate::job::ConfigDrive>(&text).unwrap(),
        drive
    );
    let broken = r#"{"userData":"hunter2!"}"#;
    let error = serde_json::from_str::<crate::job::ConfigDrive>(broken).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn of_a_log_no_more_lines_are_read_than_are_shown() {
    let body = json!({ "last": "1", "lines": vec![""; 3000], "log": vec![""; 3000] });
    assert_eq!(read::<PollRequest>(&body).log.len(), MAX_LOG_LINES);
    let LogRequest { lines } = read(&body);
    assert_eq!((lines.kept.len(), lines.all), (MAX_LOG_LINES, 3000));
}

#[test]
fn the_newest_lines_of_a_log_win() {
    let lines: Vec<_> = (0..1000).map(|number| format!("line {number}")).collect();
    let kept = newest(lines.iter().cloned());
    let bytes: usize = kept.iter().map(|line| line.len() + 1).sum();
    assert!(bytes <= MAX_LOG && bytes > MAX_LOG - 20, "{bytes}");
    assert!(lines.ends_with(&kept), "{kept:?}");
    assert!(newest(std::iter::once("x".repeat(MAX_LOG))).is_empty());
}
