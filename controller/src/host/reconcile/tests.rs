//! Whole lives, with the loop as it is.

mod access;
mod api;
mod lab;
mod orphans;
mod paused;
mod rest;
mod slots;
mod terms;
mod trouble;

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use muster_proto::kinds::{HardwareData, Server, SessionState};
use serde_json::json;

use self::{
    lab::{CANARY, IMAGE, Lab},
    rest::at_rest,
    slots::is_written,
};
use crate::bmc::{Mode, WantedMode};

/// Declared, available, provisioned, available again, deleted.
async fn live(lab: &Lab) {
    lab.declare(1);
    live_on(lab).await;
}

/// The same from its declaration on.
async fn live_on(lab: &Lab) {
    lab.reaches(1, "available").await;
    lab.wish(1);
    lab.reaches(1, "provisioned").await;
    assert_eq!(lab.machines[0].disk().0, [IMAGE]);
    lab.edit(1, &json!({"spec": {"image": null, "userData": null}}));
    lab.reaches(1, "deprovisioning").await;
    lab.reaches(1, "available").await;
    lab.api.delete("baremetalhosts", "m1");
    lab.until(|| lab.host(1).is_none()).await;
    assert_eq!(lab.machines[0].written(), 1, "whatever came between");
}

/// What is left of a life.
fn end(lab: &Lab) -> (Vec<String>, usize, bool, bool, bool) {
    let (disk, cleaned) = lab.machines[0].disk();
    let job = lab.api.get::<Server>("servers", "m1").unwrap().spec.job.is_some();
    let secret: Secret = lab.api.get("secrets", "bmc-1").unwrap();
    let held = secret.metadata.finalizers.iter().flatten().next().is_some();
    (disk, cleaned, lab.machines[0].is_on(), job, held)
}

fn error(lab: &Lab) -> String {
    let status = lab.host(1).and_then(|host| host.status).unwrap_or_default();
    status.error_message
}

/// By the clock of its edge it fell silent long ago.
#[tokio::test(start_paused = true)]
async fn a_write_whose_ramdisk_is_silent_for_a_moment_is_not_broken_off() {
    let lab = Lab::new(1);
    lab.run(async {
        is_written(&lab).await;
        let resets = lab.machines[0].resets().len();
        let session = || {
            let server: Server = lab.api.get("servers", "m1").unwrap();
            server.status.unwrap().session.unwrap()
        };
        lab.machines[0].set_silent(true);
        lab.until(|| session().state == SessionState::Disconnected).await;
        let since: jiff::Timestamp = session().since.parse().unwrap();
        let told = (since - jiff::SignedDuration::from_mins(5)).to_string();
        let told = json!({"status": {"session": {"since": told}}});
        lab.api.edit("servers", "m1", &told);
        tokio::time::sleep(Duration::from_secs(80)).await;
        assert_eq!(lab.machines[0].resets().len(), resets);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(lab.machines[0].resets().len() > resets, "it does not come back");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_lives_from_its_declaration_to_its_deletion() {
    let lab = Lab::new(1);
    lab.run(async {
        live(&lab).await;
    })
    .await;
    assert_eq!(end(&lab), (vec![], 2, false, false, false));
    let hardware = lab.api.get::<HardwareData>("hardwaredata", "m1").unwrap();
    assert_eq!(hardware.metadata.owner_references.unwrap()[0].uid, "uid-1");
    let told = lab.told();
    let reasons: Vec<&str> = told.iter().map(|event| event.reason).collect();
    for reason in [
        "Registered",
        "InspectionComplete",
        "ProvisioningStarted",
        "ProvisioningComplete",
        "DeprovisioningStarted",
        "DeprovisioningComplete",
    ] {
        assert_eq!(
            reasons.iter().filter(|told| **told == reason).count(),
            1,
            "{reason} in {reasons:?}"
        );
    }
    assert!(told.iter().all(|event| !event.message.contains(CANARY)));
}

#[tokio::test(start_paused = true)]
async fn the_bmc_is_told_the_mode_that_the_host_asks_for() {
    for (asked, told) in [("legacy", Mode::Legacy), ("UEFI", Mode::Uefi)] {
        let lab = Lab::new(1);
        lab.run(async {
            lab.declare(1);
            lab.edit(1, &json!({"spec": {"bootMode": asked}}));
            lab.reaches(1, "available").await;
        })
        .await;
        assert_eq!(lab.machines[0].mode(), Some(WantedMode::Required(told)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_config_drive_that_no_agent_takes_is_told_of_before_anything_is_cleaned() {
    let lab = Lab::new(1);
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "available").await;
        let large = [
            ("user", "userData", "x".repeat(512 << 10)),
            (
                "network",
                "networkData",
                format!("links: {}", "y".repeat(120 << 10)),
            ),
            ("meta", "metaData", format!("role: {}", "z".repeat(120 << 10))),
        ];
        for (name, key, text) in &large {
            lab.put_secret(name, &[(key, text)]);
        }
        lab.edit(
            1,
            &json!({"spec": {"networkData": {"name": "network"}, "metaData": {"name": "meta"},
            "userData": {"name": "user"}}}),
        );
        lab.wish_plainly(1);
        lab.until(|| error(&lab).contains("the config drive is too large"))
            .await;
        assert_eq!(lab.machines[0].disk(), (vec!["old".to_owned()], 0));
        lab.put_secret("user", &[("userData", CANARY)]);
        lab.reaches(1, "provisioned").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_of_the_next_image_that_comes_later_is_found_and_until_then_nothing_is_lost() {
    let lab = Lab::new(1);
    let another = "http://images.test/another.raw";
    lab.run(async {
        at_rest(&lab).await;
        let image = json!({"url": another, "checksum": "1".repeat(64)});
        lab.edit(
            1,
            &json!({"spec": {"image": image, "userData": {"name": "later"}}}),
        );
        lab.until(|| error(&lab).contains("the Secret later of spec.userData does not exist"))
            .await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(lab.machines[0].disk(), (vec![IMAGE.to_owned()], 1));
        // Nobody has labelled it.
        lab.put_secret("later", &[("userData", CANARY)]);
        let begun = tokio::time::Instant::now();
        lab.reaches(1, "deprovisioning").await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(30), "{took:?}");
        lab.reaches(1, "provisioned").await;
    })
    .await;
    assert_eq!(lab.machines[0].disk().0, [another]);
}

#[tokio::test(start_paused = true)]
async fn what_happens_in_a_life_is_counted_and_ends_with_it() {
    let lab = Lab::new(1);
    let of_host = r#"{namespace="metal",host="m1"}"#;
    let count = |name: &str| {
        let text = lab.counted();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |count| count.parse::<u32>().unwrap())
    };
    let changes = |from: &str, to: &str| {
        count(&format!(
            r#"metal3_provisioning_state_change_total{{prev_state="{from}",new_state="{to}"}}"#
        ))
    };
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "available").await;
        lab.wish(1);
        lab.reaches(1, "provisioned").await;
        lab.edit(1, &json!({"spec": {"image": null, "userData": null}}));
        lab.reaches(1, "deprovisioning").await;
        lab.reaches(1, "available").await;
        // What is counted after a write.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let way = [
            "",
            "registering",
            "inspecting",
            "preparing",
            "available",
            "provisioning",
            "provisioned",
            "deprovisioning",
            "available",
        ];
        for (from, to) in way.iter().zip(&way[1..]) {
            assert_eq!(changes(from, to), 1, "{from} -> {to}\n{}", lab.counted());
        }
        for operation in ["register", "inspect", "provision", "deprovision"] {
            let name = format!("metal3_operation_{operation}_duration_seconds_count{of_host}");
            assert_eq!(count(&name), 1, "{operation}");
        }
        assert_eq!(count("metal3_host_registration_required_total"), 1);
        assert!(count(&format!("metal3_reconcile_total{of_host}")) >= 8);
        let power = |on_off: &str| {
            count(&format!(
                r#"metal3_operation_power_change_total{{namespace="metal",host="m1",on_off="{on_off}"}}"#
            ))
        };
        // Into the ramdisk to be inspected, and to be cleaned.
        assert_eq!((power("on"), power("off")), (2, 0));
        lab.api.delete("baremetalhosts", "m1");
        lab.until(|| lab.host(1).is_none()).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    })
    .await;
    assert_eq!(changes("powering off before delete", "deleting"), 1);
    let text = lab.counted();
    assert!(!text.contains(r#"host="m1""#), "{text}");
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_step_of_a_life_before_or_after_it_is_done_it_ends_the_same() {
    let lab = Lab::new(1);
    lab.run(live(&lab)).await;
    let (steps, expected) = (lab.steps(), end(&lab));
    assert!((20..100).contains(&steps), "{steps}");
    for number in 0..steps {
        for done in [false, true] {
            let lab = Lab::new(1);
            lab.kill_at(number, done);
            lab.run(live(&lab)).await;
            assert_eq!(end(&lab), expected, "killed at step {number}, done: {done}");
        }
    }
}

/// What the controller asked of the API server since the last call, without watches.
fn requests(lab: &Lab) -> Vec<String> {
    lab.api.requests()
}

#[tokio::test(start_paused = true)]
async fn a_life_costs_few_requests_and_an_idle_host_no_write() {
    let lab = Lab::new(1);
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "available").await;
        let asked = requests(&lab);
        // Four states, the finalizer, the Secret's mark, the HardwareData; nothing is read.
        assert!(asked.len() <= 7, "to available: {asked:#?}");
        assert!(asked.iter().all(|one| !one.starts_with("GET")), "{asked:#?}");
        let told = lab.told().len();
        assert!(asked.len() + told <= 18, "{told} events");

        tokio::time::sleep(Duration::from_secs(120)).await;
        requests(&lab);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(requests(&lab), Vec::<String>::new(), "idle");
        lab.told();

        lab.wish(1);
        lab.reaches(1, "provisioned").await;
        // Its Event is told in the moment after.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (asked, told) = (requests(&lab), lab.told());
        // Two states, that the machine leaves, the user data's mark, and the job to clean, write and leave, before which the host is
        // read anew; the rest reads what is on the config drive.
        let writes = asked.iter().filter(|one| !one.starts_with("GET")).count();
        assert!(writes <= 5 && asked.len() <= 8, "to provisioned: {asked:#?}");
        let jobs = |one: &&String| one.starts_with("PATCH") && one.ends_with("/servers/m1");
        assert_eq!(asked.iter().filter(jobs).count(), 1, "{asked:#?}");
        assert!(told.len() <= 2, "{told:#?}");

        tokio::time::sleep(Duration::from_secs(120)).await;
        let later = requests(&lab);
        assert!(
            !later.iter().any(|one| one.contains("/servers/")),
            "what is over stays: {later:#?}"
        );
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(requests(&lab), Vec::<String>::new(), "idle");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn hardware_data_is_written_once_in_a_life_and_once_more_where_it_was_lost() {
    let lab = Lab::new(1);
    let written = || {
        let asked = requests(&lab).into_iter();
        asked.filter(|one| one.contains("/hardwaredata")).count()
    };
    let stored = || lab.api.get::<HardwareData>("hardwaredata", "m1");
    lab.run(async {
        // The watch may show it only a while after it was written.
        lab.api.set_blind("hardwaredata");
        lab.declare(1);
        lab.reaches(1, "available").await;
        lab.api.see_again();
        lab.wish(1);
        lab.reaches(1, "provisioned").await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(written(), 1, "in a life");

        let (before, calls) = (stored().unwrap(), lab.machines[0].calls_and_ends());
        lab.api.delete("hardwaredata", "m1");
        lab.until(|| stored().is_some()).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(written(), 1, "once more");
        let after = stored().unwrap();
        assert_eq!(after.spec, before.spec);
        assert_eq!(after.metadata.owner_references, before.metadata.owner_references);
        assert_eq!(lab.machines[0].calls_and_ends(), calls);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_was_written_a_moment_ago_is_not_read_before_the_job_to_write() {
    let lab = Lab::new(1);
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "available").await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        requests(&lab);
        lab.wish_plainly(1);
        lab.reaches(1, "provisioned").await;
        let asked = requests(&lab);
        assert!(asked.iter().all(|one| !one.starts_with("GET")), "{asked:#?}");
        assert_eq!(lab.machines[0].disk().0.last().unwrap(), IMAGE);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_was_long_under_way_is_read_again_before_the_job_to_write() {
    for (slow, reads) in [(300, 0), (1500, 1)] {
        let lab = Lab::new(1);
        lab.run(async {
            lab.declare(1);
            lab.reaches(1, "available").await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            requests(&lab);
            lab.api.set_slow(Duration::from_millis(slow));
            lab.wish_plainly(1);
            lab.reaches(1, "provisioned").await;
            let asked = requests(&lab);
            let read = |one: &&String| one.starts_with("GET") && one.ends_with("/baremetalhosts/m1");
            assert_eq!(asked.iter().filter(read).count(), reads, "{slow} ms: {asked:#?}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_nobody_told_of_is_found() {
    let lab = Lab::new(1);
    lab.run(async {
        lab.declare_unmanaged(1);
        lab.reaches(1, "unmanaged").await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        lab.api.set_silent(true);
        lab.secret(1, CANARY);
        lab.edit(1, &json!({"spec": {"bmc": lab::bmc(1)}}));
        let begun = tokio::time::Instant::now();
        let state = || lab.host(1)?.status.map(|status| status.provisioning.state);
        lab.until(|| state() != Some("unmanaged".to_owned())).await;
        assert!(
            begun.elapsed() <= Duration::from_secs(610),
            "{:?}",
            begun.elapsed()
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_ramdisk_is_told_once_to_go_down_whatever_of_the_status_could_wait() {
    let lab = Lab::new(1);
    lab.run(async {
        lab.declare_in_band(1);
        lab.reaches(1, "available").await;
        let reboot = |value| json!({"metadata": {"annotations": {"reboot.metal3.io": value}}});
        lab.edit(1, &reboot(json!(r#"{"force":true}"#)));
        let asked = || {
            let annotations = lab.host(1).unwrap().metadata.annotations;
            annotations.is_some_and(|all| all.contains_key("reboot.metal3.io"))
        };
        lab.until(|| !asked()).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(lab.machines[0].calls_and_ends(), (2, 1));

        lab.edit(1, &json!({"spec": {"online": false}}));
        lab.until(|| !lab.host(1).unwrap().status.unwrap().powered_on)
            .await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(!lab.machines[0].is_on());
        assert_eq!(lab.machines[0].calls_and_ends(), (2, 2));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn arguments_of_detached_that_cannot_be_read_are_told_once_whatever_the_host_is_at() {
    let lab = Lab::new(1);
    lab.run(async {
        let detached =
            |value: &str| json!({"metadata": {"annotations": {"baremetalhost.metal3.io/detached": value}}});
        lab.declare(1);
        lab.edit(1, &detached(r#"{"force":"true"}"#));
        lab.reaches(1, "inspecting").await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        // Also where it makes no difference yet.
        lab.edit(1, &detached(r#"{"deleteAction":"delay""#));
        tokio::time::sleep(Duration::from_secs(3600)).await;
    })
    .await;
    let told = lab
        .told()
        .into_iter()
        .filter(|event| event.reason == "InvalidAnnotationValue");
    let told: Vec<String> = told.map(|event| event.message).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].contains("invalid type") && told[1].contains("EOF"),
        "{told:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_wish_for_a_reboot_that_cannot_be_read_is_told_once_and_counts_as_a_plain_one() {
    let lab = Lab::new(1);
    lab.run(async {
        lab.declare(1);
        lab.wish(1);
        lab.reaches(1, "provisioned").await;
        lab.until(|| lab.host(1).unwrap().status.unwrap().powered_on)
            .await;
        lab.told();
        let wish = |name: &str, value| json!({"metadata": {"annotations": {name: value}}});
        lab.edit(1, &wish("reboot.metal3.io/keep", json!("hard")));
        lab.until(|| !lab.machines[0].is_on()).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let invalid = |lab: &Lab| -> Vec<String> {
            let told = lab.told().into_iter();
            told.filter(|event| event.reason == "InvalidAnnotationValue" && event.warning)
                .map(|event| event.message)
                .collect()
        };
        let told = invalid(&lab);
        assert!(
            told.len() == 1 && told[0].contains("reboot.metal3.io/keep"),
            "{told:?}"
        );
        // Another one that cannot be read either is other news.
        lab.edit(1, &wish("reboot.metal3.io/keep", json!(r#"{"mode":"gently"}"#)));
        tokio::time::sleep(Duration::from_secs(600)).await;
        let told = invalid(&lab);
        assert!(told.len() == 1 && told[0].contains("gently"), "{told:?}");
        lab.edit(1, &wish("reboot.metal3.io/keep", json!(null)));
        lab.until(|| lab.machines[0].is_on()).await;
        lab.edit(1, &wish("reboot.metal3.io", json!("hard")));
        lab.until(|| {
            let annotations = lab.host(1).unwrap().metadata.annotations;
            !annotations.is_some_and(|all| all.contains_key("reboot.metal3.io"))
        })
        .await;
        assert_eq!(invalid(&lab).len(), 1);
    })
    .await;
}
