//! Lives with an API server that is gone, refuses, conflicts, or is slow, and with others who write to the same objects.

use std::time::Duration;

use super::{
    end,
    lab::{CANARY, IMAGE, Lab},
    live, live_on,
    rest::at_rest,
    trouble::{At, Trouble},
};
use crate::{bmc::Reset, world::Change};
use muster_proto::kinds::BareMetalHost;
use serde_json::{Value, json};

/// A life without trouble: how many steps it has.
async fn steps() -> usize {
    let lab = Lab::new(1);
    lab.run(live(&lab)).await;
    lab.steps()
}

/// How often people were told that a write was refused; nothing else was wrong.
fn refused(lab: &Lab) -> usize {
    let told = lab.told();
    let warnings: Vec<&str> = told
        .iter()
        .filter(|event| event.warning)
        .map(|event| event.reason)
        .collect();
    assert!(
        warnings.iter().all(|reason| *reason == "WriteRefused"),
        "{told:#?}"
    );
    warnings.len()
}

async fn ends_as_ever(at: At, trouble: Trouble) -> std::sync::Arc<Lab> {
    let lab = Lab::new(1);
    lab.trouble(at, trouble);
    lab.run(live(&lab)).await;
    assert_eq!(
        end(&lab),
        (vec![], 2, false, false, false),
        "{trouble:?} at {at:?}"
    );
    lab
}

#[tokio::test(start_paused = true)]
async fn a_life_ends_the_same_if_the_api_server_is_gone_for_a_minute_at_any_step_of_it() {
    let lab = Lab::new(1);
    lab.run(live(&lab)).await;
    let usual = lab.api.requests().len();
    for number in 0..lab.steps() {
        let lab = ends_as_ever(At::Step(number), Trouble::Gone).await;
        assert_eq!(refused(&lab), 0, "step {number}");
        // It is asked now and then whether it is there again, not all the time.
        let asked = lab.api.requests().len();
        assert!(
            asked < usual + 100,
            "{asked} requests, {usual} as ever: step {number}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_life_ends_the_same_whatever_the_api_server_answers_to_any_write_of_it() {
    let count = steps().await;
    let mut troubled = 0;
    for code in [409, 422, 500] {
        // Conflicts at any single one: `clients_that_patch_without_a_resource_version_at_any_moment_lose_nothing`.
        let single = if code == 409 { 0 } else { count };
        for number in 0..single {
            let lab = ends_as_ever(At::Step(number), Trouble::Answer(code)).await;
            let told = if code == 422 { lab.troubled() } else { 0 };
            assert_eq!(refused(&lab), told, "{code} at step {number}");
            troubled += lab.troubled();
        }
        for many in 2..6 {
            ends_as_ever(At::Every(many), Trouble::Answer(code)).await;
        }
    }
    assert!(troubled > count, "most steps are writes: {troubled} of {count}");
}

#[tokio::test(start_paused = true)]
async fn a_round_that_only_looks_again_is_not_counted_among_those_that_failed() {
    for (code, fails) in [(409, false), (500, true)] {
        let lab = Lab::new(1);
        lab.trouble(At::Every(4), Trouble::Answer(code));
        lab.run(async {
            lab.declare(1);
            lab.reaches(1, "available").await;
        })
        .await;
        assert!(lab.troubled() > 0);
        let counted = lab.counted();
        let failed = counted
            .lines()
            .find_map(|line| line.strip_prefix("metal3_reconcile_error_total "));
        assert_eq!(
            failed.is_some_and(|count| count != "0"),
            fails,
            "{code}: {counted}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_life_ends_the_same_if_any_write_of_it_is_done_or_answered_when_nobody_waits_any_more() {
    let count = steps().await;
    for trouble in [Trouble::AnsweredLate, Trouble::ArrivesLate] {
        for number in 0..count {
            let lab = ends_as_ever(At::Step(number), trouble).await;
            assert_eq!(refused(&lab), 0, "{trouble:?} at step {number}");
        }
        for many in 3..6 {
            ends_as_ever(At::Every(many), trouble).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_refuses_is_told_once_and_tried_until_it_is_taken() {
    let lab = Lab::new(1);
    lab.api.refuse_writes("baremetalhosts/m1/status".to_owned());
    lab.run(async {
        lab.declare(1);
        tokio::time::sleep(std::time::Duration::from_secs(600)).await;
        let asked = lab.api.requests();
        assert!(asked.len() > 10, "{asked:?}");
        assert_eq!(refused(&lab), 1);
        assert!(
            !lab.machines[0].is_on(),
            "nothing is done that could not be announced"
        );
        lab.api.take_writes();
        lab.reaches(1, "available").await;
    })
    .await;
    assert_eq!(refused(&lab), 0);
}

/// Until the host waits for `reason`, with a message that begins like this.
async fn waits(lab: &Lab, reason: &str, says: &str) {
    let is_it = || {
        let status = lab.host(1)?.status?;
        let waits = status.conditions.into_iter().find(|one| one.type_ == "Waiting")?;
        Some(waits.reason == reason && waits.message.starts_with(says))
    };
    lab.until(|| is_it() == Some(true)).await;
}

/// Nothing of the host is written in an hour.
async fn is_said_once(lab: &Lab) {
    lab.api.requests();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let asked = lab.api.requests();
    let of_host = |one: &&String| one.contains("/baremetalhosts/");
    assert_eq!(asked.iter().filter(of_host).count(), 0, "said once: {asked:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_hardware_the_api_server_refuses_says_so_until_it_is_taken() {
    let lab = Lab::new(1);
    lab.api.refuse_writes("/hardwaredata".to_owned());
    lab.run(async {
        lab.declare(1);
        let says = "waits for the HardwareData to be written: write HardwareData";
        waits(&lab, "Inspection", says).await;
        is_said_once(&lab).await;
        lab.api.take_writes();
        lab.reaches(1, "available").await;
    })
    .await;
    assert_eq!(refused(&lab), 1);
}

/// A provisioned host that is to be rebooted names another Secret of its BMC, which the API server lets nobody mark: as one does that lets
/// only those change an object's owners who may delete it.
async fn unmarked(lab: &Lab) {
    at_rest(lab).await;
    lab.secret(2, CANARY);
    lab.api.refuse_writes("/secrets/bmc-2".to_owned());
    let edit = json!({
        "metadata": {"annotations": {"reboot.metal3.io": ""}},
        "spec": {"bmc": {"credentialsName": "bmc-2"}},
    });
    lab.edit(1, &edit);
    let says = "waits for the Secret bmc-2 to be marked: hold Secret";
    waits(lab, "Refused", says).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_bmcs_secret_may_not_be_marked_says_so_and_goes_on_once_it_may() {
    let lab = Lab::new(1);
    lab.run(async {
        unmarked(&lab).await;
        let resets = lab.machines[0].resets().len();
        is_said_once(&lab).await;
        assert_eq!(lab.machines[0].resets().len(), resets);
        lab.api.take_writes();
        lab.until(|| lab.machines[0].resets().len() > resets).await;
    })
    .await;
    assert_eq!(refused(&lab), 1);
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_bmcs_secret_may_not_be_marked_is_cleaned_and_switched_off_when_it_is_deleted() {
    let lab = Lab::new(1);
    lab.run(async {
        unmarked(&lab).await;
        lab.api.delete("baremetalhosts", "m1");
        lab.until(|| lab.host(1).is_none()).await;
    })
    .await;
    assert!(!lab.machines[0].is_on());
    assert_eq!(lab.machines[0].disk().0, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn where_the_kind_keeps_no_conditions_nothing_is_done_and_people_are_told_why() {
    let lab = Lab::new(1);
    lab.api.drop_conditions(true);
    lab.run(async {
        lab.declare(1);
        tokio::time::sleep(std::time::Duration::from_secs(600)).await;
        let told = lab.told();
        let [event] = &told[..] else { panic!("{told:#?}") };
        assert_eq!(event.reason, "WriteRefused");
        assert!(event.message.contains("deploy/crds"), "{}", event.message);
        assert!(!lab.machines[0].is_on());
        // A newer kind is installed.
        lab.api.drop_conditions(false);
        lab.reaches(1, "available").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn clients_that_patch_without_a_resource_version_at_any_moment_lose_nothing() {
    let lab = Lab::new(1);
    lab.run(live(&lab)).await;
    let count = lab.api.requests().len();
    let patch = json!({
        "metadata": {
            "labels": {"cluster.x-k8s.io/cluster-name": "c"},
            "annotations": {"capm3.metal3.io/unhealthy": ""},
        },
        "spec": {"description": "rack 7"},
    });
    let mut came = 0;
    for number in 0..count {
        let lab = Lab::new(1);
        let mut changes = lab.api.changes();
        lab.api.intrude(number, "baremetalhosts", "m1", patch.clone());
        lab.run(live(&lab)).await;
        assert_eq!(
            end(&lab),
            (vec![], 2, false, false, false),
            "before request {number}"
        );
        assert_eq!(refused(&lab), 0, "before request {number}");
        let (mut patched, mut last) = (false, None);
        while let Ok(change) = changes.try_recv() {
            let Change::Host(host) = change else { continue };
            patched |= host.metadata.labels.is_some();
            last = Some(host);
        }
        let last = last.unwrap();
        assert!(last.metadata.deletion_timestamp.is_some());
        if !patched {
            continue;
        }
        came += 1;
        let annotations = last.metadata.annotations.clone().unwrap_or_default();
        assert!(
            last.metadata
                .labels
                .as_ref()
                .is_some_and(|all| all.contains_key("cluster.x-k8s.io/cluster-name"))
        );
        assert!(
            annotations.contains_key("capm3.metal3.io/unhealthy"),
            "before request {number}"
        );
        assert_eq!(
            last.spec.description.as_deref(),
            Some("rack 7"),
            "before request {number}"
        );
    }
    assert!(
        came + 2 >= count,
        "the host is there until the end: {came} of {count}"
    );
}

/// A finalizer of another operator, and a label that a client puts on and takes off again.
const KEEP: &str = "blue.test/keep";
const MARK: &str = "blue.test/mark";

/// What a client sends that holds a host and takes its label off, without a resource version: the whole list of finalizers as it has
/// just read it, and its own.
fn held(host: &Value) -> Option<Value> {
    // No finalizer can be added to what is being deleted.
    let lives = !host["metadata"]["deletionTimestamp"].is_string();
    let finalizers = host["metadata"]["finalizers"].as_array().cloned();
    let all: Vec<Value> = finalizers.into_iter().flatten().chain([json!(KEEP)]).collect();
    lives.then(|| json!({"metadata": {"finalizers": all, "labels": {MARK: null}}}))
}

fn finalizers(host: &BareMetalHost) -> Vec<&str> {
    let all = host.metadata.finalizers.iter().flatten();
    all.map(String::as_str).collect()
}

#[tokio::test(start_paused = true)]
async fn a_finalizer_of_another_that_comes_at_any_moment_holds_the_host_until_it_is_taken_off() {
    let lab = Lab::new(1);
    lab.run(live(&lab)).await;
    let count = lab.api.requests().len();
    let mut came = 0;
    for number in 0..count {
        let lab = Lab::new(1);
        let mut changes = lab.api.changes();
        lab.api.intrude_with(number, "baremetalhosts", "m1", held);
        let let_go = std::cell::Cell::new(0);
        lab.run(async {
            lab.declare(1);
            lab.edit(1, &json!({"metadata": {"labels": {MARK: ""}}}));
            let is_held_by_them = || {
                let host = lab.host(1);
                host.is_some_and(|host| {
                    host.metadata.deletion_timestamp.is_some() && finalizers(&host) == [KEEP]
                })
            };
            let lets_go = async {
                loop {
                    lab.until(is_held_by_them).await;
                    // Nobody else holds it, and it is there all the same.
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    assert!(is_held_by_them(), "before request {number}");
                    let_go.set(let_go.get() + 1);
                    lab.edit(1, &json!({"metadata": {"finalizers": []}}));
                }
            };
            tokio::select! {
                () = live_on(&lab) => {}
                () = lets_go => unreachable!(),
            }
        })
        .await;
        assert_eq!(
            end(&lab),
            (vec![], 2, false, false, false),
            "before request {number}"
        );
        assert_eq!(refused(&lab), 0, "before request {number}");
        let mut is_held = false;
        while let Ok(change) = changes.try_recv() {
            let Change::Host(host) = change else { continue };
            is_held |= finalizers(&host).contains(&KEEP);
            let labels = host.metadata.labels.as_ref();
            let is_marked = labels.is_some_and(|all| all.contains_key(MARK));
            assert!(!is_held || !is_marked, "before request {number}");
        }
        assert_eq!(let_go.get(), usize::from(is_held), "before request {number}");
        came += let_go.get();
    }
    assert!(came > 5, "{came} of {count}");
}

const HARD: &str = r#"{"mode":"hard"}"#;

/// The wish for a reboot that stands on `host`.
fn reboot(host: &BareMetalHost) -> Option<&str> {
    let annotations = host.metadata.annotations.as_ref()?;
    annotations.get("reboot.metal3.io").map(String::as_str)
}

#[tokio::test(start_paused = true)]
async fn a_wish_for_a_reboot_that_becomes_another_one_at_any_moment_is_carried_out() {
    let wish = |value: &str| json!({"metadata": {"annotations": {"reboot.metal3.io": value}}});
    let mut came = 0;
    for number in 0.. {
        let lab = Lab::new(1);
        let machine = &lab.machines[0];
        let (before, is_changed) = lab
            .run(async {
                at_rest(&lab).await;
                // It is told to restart and stays on: what it was told tells whether anybody saw the other wish.
                lab.edit(1, &json!({"spec": {"disablePowerOff": true}}));
                tokio::time::sleep(Duration::from_secs(120)).await;
                let before = machine.resets().len();
                let mut changes = lab.api.changes();
                lab.edit(1, &wish(""));
                lab.api.intrude_with(number, "baremetalhosts", "m1", move |host| {
                    let stands = &host["metadata"]["annotations"]["reboot.metal3.io"];
                    (stands == "").then(|| wish(HARD))
                });
                tokio::time::sleep(Duration::from_secs(600)).await;
                let mut is_changed = false;
                while let Ok(change) = changes.try_recv() {
                    is_changed |= matches!(change, Change::Host(host) if reboot(&host) == Some(HARD));
                }
                (before, is_changed)
            })
            .await;
        let host = lab.host(1).unwrap();
        assert_eq!(reboot(&host), None, "before request {number}");
        let resets = machine.resets().split_off(before);
        if !is_changed {
            assert_eq!(resets, [Reset::GracefulRestart], "before request {number}");
            break;
        }
        let last = resets.last();
        assert_eq!(
            last,
            Some(&Reset::ForceRestart),
            "before request {number}: {resets:?}"
        );
        came += 1;
    }
    // That it is to be told to restart, and that the wish is fulfilled.
    assert!(came >= 2, "{came}");
}

/// A host that is about to be cleaned and written to when somebody patches it just before request number `number` of those that follow
/// its wish, with user data or without, and the watch shows nothing of that. Returns how many jobs that destroy data were asked for
/// until then, and the lab, five minutes later; none: there are not so many requests.
async fn forbidden_at(
    number: usize,
    patch: &serde_json::Value,
    user_data: bool,
) -> Option<(usize, std::sync::Arc<Lab>)> {
    let lab = Lab::new(1);
    let asked = lab
        .run(async {
            lab.declare(1);
            lab.reaches(1, "available").await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            lab.api.requests();
            assert_eq!(lab.machines[0].disk(), (vec!["old".to_owned()], 0));
            match user_data {
                true => lab.wish(1),
                false => lab.wish_plainly(1),
            }
            lab.api
                .intrude_unseen(number, "baremetalhosts", "m1", patch.clone());
            tokio::time::sleep(Duration::from_secs(300)).await;
            lab.api.requests()
        })
        .await;
    if asked.len() <= number {
        return None;
    }
    // One job cleans the disks, writes the image and leaves the ramdisk.
    let jobs = asked.iter().take(number + 1);
    let jobs = jobs.filter(|asked| asked.starts_with("PATCH") && asked.ends_with("/servers/m1"));
    Some((jobs.count().min(1), lab))
}

#[tokio::test(start_paused = true)]
async fn what_a_person_forbids_while_the_watch_lags_is_not_begun() {
    let annotated = |name: &str, value: &str| json!({"metadata": {"annotations": {name: value}}});
    let forbid = [
        annotated("muster.dev/protected", ""),
        annotated("baremetalhost.metal3.io/paused", ""),
        annotated("baremetalhost.metal3.io/detached", r#"{"force":true}"#),
        json!({"spec": {"externallyProvisioned": true}}),
    ];
    for (patch, user_data) in forbid
        .into_iter()
        .flat_map(|patch| [(patch.clone(), true), (patch, false)])
    {
        let mut after = [0; 2];
        for number in 0.. {
            let Some((jobs, lab)) = forbidden_at(number, &patch, user_data).await else {
                break;
            };
            let (disk, cleaned) = lab.machines[0].disk();
            let expected = [("old", 0), (IMAGE, 1)][jobs];
            let found = (disk.first().map_or("", String::as_str), cleaned);
            assert_eq!(found, expected, "{patch} before request {number}");
            after[jobs] += 1;
        }
        assert!(after.iter().all(|count| *count > 0), "{patch}: {after:?}");
    }
}

/// True if `asked` is the last look at the host before a job that destroys data.
fn is_last_look(asked: &str) -> bool {
    asked.starts_with("GET") && asked.ends_with("/baremetalhosts/m1")
}

/// True if `asked` places a job.
fn places_job(asked: &str) -> bool {
    asked.starts_with("PATCH") && asked.ends_with("/servers/m1")
}

/// A host that is about to be cleaned and written to with user data, which is read for that, so that the host is read again.
async fn wished_for(lab: &Lab) {
    lab.declare(1);
    lab.reaches(1, "available").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    lab.api.requests();
    lab.wish(1);
}

#[tokio::test(start_paused = true)]
async fn what_a_person_forbids_while_the_watch_lags_is_not_begun_where_the_last_look_is_refused() {
    let lab = Lab::new(1);
    let asked = lab
        .run(async {
            wished_for(&lab).await;
            lab.reaches(1, "provisioned").await;
            lab.api.requests()
        })
        .await;
    let number = asked.iter().position(|asked| is_last_look(asked)).unwrap();
    for (name, code) in ["muster.dev/protected", "baremetalhost.metal3.io/paused"]
        .into_iter()
        .flat_map(|name| [(name, 403), (name, 500)])
    {
        let annotated = |value| json!({"metadata": {"annotations": {name: value}}});
        let lab = Lab::new(1);
        lab.run(async {
            wished_for(&lab).await;
            lab.api.refuse_reads("/baremetalhosts/m1", code);
            lab.api
                .intrude_unseen(number, "baremetalhosts", "m1", annotated(json!("")));
            tokio::time::sleep(Duration::from_secs(300)).await;
            let asked = lab.api.requests();
            let looks = asked.iter().filter(|asked| is_last_look(asked)).count();
            assert!(looks > 1, "{name}, {code}: {asked:#?}");
            let jobs = asked.iter().filter(|asked| places_job(asked)).count();
            assert_eq!(jobs, 0, "{name}, {code}: {asked:#?}");
            assert_eq!(lab.machines[0].disk(), (vec!["old".to_owned()], 0));
            lab.api.take_reads();
            lab.edit(1, &annotated(json!(null)));
            lab.api.see_again();
            lab.reaches(1, "provisioned").await;
        })
        .await;
        let expected = (vec![IMAGE.to_owned()], 1);
        assert_eq!(lab.machines[0].disk(), expected, "{name}, {code}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_watch_shows_before_a_write_is_answered_counts_in_the_round_that_wrote() {
    let lab = Lab::new(1);
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "available").await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        lab.api.requests();
        lab.wish_plainly(1);
        // The first request says that it is provisioning.
        let protected = json!({"metadata": {"annotations": {"muster.dev/protected": ""}}});
        lab.api.intrude_after(0, "baremetalhosts", "m1", protected);
        tokio::time::sleep(Duration::from_secs(300)).await;
        let asked = lab.api.requests();
        assert!(asked[0].ends_with("/baremetalhosts/m1/status"), "{asked:#?}");
        let jobs = asked.iter().filter(|asked| asked.ends_with("/servers/m1"));
        assert_eq!(jobs.count(), 0, "{asked:#?}");
        assert_eq!(lab.machines[0].disk(), (vec!["old".to_owned()], 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_not_wanted_any_more_is_not_written_though_the_watch_lags() {
    for image in [
        json!(null),
        json!({"url": "http://images.test/another.raw", "checksum": "1".repeat(64)}),
    ] {
        let patch = json!({"spec": {"image": image}});
        let mut after = [0; 2];
        for number in 0.. {
            let Some((jobs, lab)) = forbidden_at(number, &patch, true).await else {
                break;
            };
            let wanted = lab.host(1).unwrap().spec.image.map(|image| image.url);
            assert_eq!(
                wanted.as_deref(),
                image["url"].as_str(),
                "{patch} before request {number}"
            );
            after[jobs] += 1;
            if jobs > 0 {
                continue;
            }
            // Nothing was ever written, not even to be cleaned away again, but what is wanted by now.
            let (disk, _) = lab.machines[0].disk();
            let anew = disk
                .iter()
                .filter(|image| Some(*image) == wanted.as_ref())
                .count();
            let written = lab.machines[0].written();
            assert!(
                written == anew && !disk.iter().any(|image| image == IMAGE),
                "{patch} before request {number}: {disk:?}, {written} written"
            );
        }
        assert!(after.iter().all(|count| *count > 0), "{patch}: {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_moved_goes_on_as_provisioned_without_a_boot_or_a_write() {
    let lab = Lab::new(1);
    let annotate = |name: &str, value| json!({"metadata": {"annotations": {name: value}}});
    let (paused, copied) = ("baremetalhost.metal3.io/paused", "baremetalhost.metal3.io/status");
    lab.run(async {
        lab.declare(1);
        lab.wish(1);
        lab.reaches(1, "provisioned").await;
        tokio::time::sleep(Duration::from_secs(300)).await;
        let machine = &lab.machines[0];
        let before = lab.host(1).unwrap().status.unwrap();
        let (disk, calls) = (machine.disk(), machine.calls_and_ends());
        // As CAPM3 pauses it, and as `clusterctl move` takes it away and makes it anew.
        lab.edit(1, &annotate(paused, json!("metal3.io/capm3")));
        let mut status = json!(before);
        status.as_object_mut().unwrap().remove("hardware");
        lab.edit(1, &annotate(copied, json!(status.to_string())));
        let mut copy = lab.host(1).unwrap();
        lab.edit(1, &json!({"metadata": {"finalizers": []}}));
        lab.api.delete("baremetalhosts", "m1");
        tokio::time::sleep(Duration::from_secs(60)).await;
        copy.status = None;
        copy.metadata.uid = Some("uid-anew".to_owned());
        lab.api.put("baremetalhosts", &copy);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(lab.host(1).unwrap().status.is_none(), "it is paused");
        lab.api.requests();
        lab.edit(1, &annotate(paused, json!(null)));
        lab.reaches(1, "provisioned").await;
        tokio::time::sleep(Duration::from_secs(300)).await;
        let (host, after) = (lab.host(1).unwrap(), lab.host(1).unwrap().status.unwrap());
        assert!(!host.metadata.annotations.unwrap().contains_key(copied));
        assert_eq!(after.hardware, before.hardware);
        assert_eq!(after.operation_history, before.operation_history);
        assert_eq!(after.provisioning, before.provisioning);
        assert_eq!((machine.disk(), machine.calls_and_ends()), (disk, calls));
        let asked = lab.api.requests();
        assert!(
            !asked.iter().any(|asked| asked.contains("/servers/")),
            "{asked:#?}"
        );
    })
    .await;
}

/// What is left in the namespace of the hosts.
fn left(lab: &Lab) -> usize {
    lab.api.all::<serde_json::Value>("baremetalhosts").len()
        + lab.api.all::<serde_json::Value>("hardwaredata").len()
        + lab.api.all::<serde_json::Value>("secrets").len()
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_deleted_with_a_host_in_whatever_state_and_order_ends_with_the_machine_off() {
    for state in [
        "registering",
        "inspecting",
        "available",
        "provisioning",
        "provisioned",
        "deprovisioning",
    ] {
        for first in ["secrets", "baremetalhosts", "hardwaredata"] {
            let lab = Lab::new(1);
            lab.run(async {
                lab.declare(1);
                if matches!(state, "provisioning" | "provisioned" | "deprovisioning") {
                    lab.reaches(1, "available").await;
                    lab.wish(1);
                }
                if state == "deprovisioning" {
                    lab.reaches(1, "provisioned").await;
                    lab.edit(1, &json!({"spec": {"image": null, "userData": null}}));
                }
                lab.reaches(1, state).await;
                lab.api.terminate("metal", &[first]);
                lab.until(|| left(&lab) == 0).await;
            })
            .await;
            // A host that is only being registered was never switched on.
            assert!(!lab.machines[0].is_on(), "{state}, {first} first");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn hosts_with_one_secret_that_go_with_their_namespace_are_all_cleaned_before_it_is_let_go() {
    let lab = Lab::new(3);
    let share = |number| {
        lab.declare(number);
        let bmc = json!({"credentialsName": "bmc-1"});
        lab.edit(number, &json!({"spec": {"bmc": bmc}}));
    };
    lab.run(async {
        for number in [1, 2] {
            share(number);
            lab.reaches(number, "available").await;
            lab.wish(number);
            lab.reaches(number, "provisioned").await;
        }
        lab.api.delete("baremetalhosts", "m1");
        lab.api.delete("baremetalhosts", "m2");
        lab.reaches(1, "deprovisioning").await;
        lab.reaches(2, "deprovisioning").await;
        // One that is only being registered has nothing to wait for.
        lab.machines[2].set_password("another");
        share(3);
        lab.reaches(3, "registering").await;
        let is_refused = |lab: &Lab| {
            let status = lab.host(3).and_then(|host| host.status);
            status.is_some_and(|status| status.error_type.is_some())
        };
        lab.until(|| is_refused(&lab)).await;
        lab.api.terminate("metal", &["secrets"]);
        lab.until(|| left(&lab) == 0).await;
    })
    .await;
    assert!(
        lab.told()
            .iter()
            .all(|event| event.reason != "DeletedUnreachable")
    );
    for machine in &lab.machines[..2] {
        assert!(!machine.is_on());
        assert_eq!(machine.disk().0, Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_goes_and_can_be_held_no_more_still_serves_to_switch_the_machine_off() {
    let lab = Lab::new(1);
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "available").await;
        let theirs = json!({"metadata": {"finalizers": ["blue.test/keep"]}});
        lab.api.edit("secrets", "bmc-1", &theirs);
        lab.api.delete("secrets", "bmc-1");
        lab.api.delete("baremetalhosts", "m1");
        lab.until(|| lab.host(1).is_none()).await;
    })
    .await;
    assert!(!lab.machines[0].is_on());
    assert_eq!(refused(&lab), 0);
    let secret: k8s_openapi::api::core::v1::Secret = lab.api.get("secrets", "bmc-1").unwrap();
    assert_eq!(secret.metadata.finalizers.unwrap(), ["blue.test/keep"]);
}

#[tokio::test(start_paused = true)]
async fn what_another_operator_holds_for_a_host_goes_with_it_whoever_registered_that() {
    let object = |name: &str, owner: &str, finalizers: &[&str]| {
        let owner =
            json!({"apiVersion": "metal3.io/v1alpha1", "kind": "BareMetalHost", "name": name, "uid": owner});
        json!({"metadata": {"name": name, "namespace": "metal", "finalizers": finalizers, "ownerReferences": [owner]}})
    };
    let image = [
        "preprovisioningimage.metal3.io",
        "baremetalhost.metal3.io/preprovisioningImage",
        "blue.test/keep",
    ];
    for id in ["", "5e1f3c6e-0f0c-4b7e-8a3f-2d1c0b9a8f7e"] {
        let anothers = !id.is_empty();
        let lab = Lab::new(1);
        for (name, owner) in [("m1", "uid-1"), ("m2", "uid-2")] {
            lab.api.put("preprovisioningimages", &object(name, owner, &image));
            lab.api
                .put("dataimages", &object(name, owner, &["dataimage.metal3.io"]));
        }
        let asked = lab
            .run(async {
                lab.declare(1);
                lab.reaches(1, "available").await;
                if anothers {
                    lab.edit(1, &json!({"status": {"provisioning": {"ID": id}}}));
                }
                lab.api.requests();
                lab.api.delete("baremetalhosts", "m1");
                lab.until(|| lab.host(1).is_none()).await;
                lab.api.requests()
            })
            .await;
        let finalizers = |plural: &str, name: &str| -> usize {
            let object: serde_json::Value = lab.api.get(plural, name).unwrap();
            object["metadata"]["finalizers"].as_array().map_or(0, Vec::len)
        };
        let left = ["preprovisioningimages", "dataimages"].map(|plural| finalizers(plural, "m1"));
        assert_eq!(left, [1, 0]);
        let others = ["preprovisioningimages", "dataimages"].map(|plural| finalizers(plural, "m2"));
        assert_eq!(others, [3, 1]);
        let looked = asked.iter().filter(|asked| asked.contains("images/m1")).count();
        assert_eq!(looked, 4, "{asked:#?}");
    }
}
