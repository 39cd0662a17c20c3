//! The slots of hosts that are busy at once, and the line in front of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use muster_proto::kinds::{BareMetalHost, INSPECT_ANNOTATION, PAUSED_ANNOTATION, Server};
use serde_json::json;
use tokio::{
    sync::broadcast::{self, error::TryRecvError},
    time::Instant,
};

use super::{
    error,
    lab::{CANARY, IMAGE, Lab},
    trouble::{At, Trouble},
};
use crate::{
    host::{
        State,
        slot_state::{is_busy, may_take_hours, waits_for_slot},
        slots::TOLD,
    },
    world::Change,
};

/// All hosts of the lab live at the same time: available, provisioned, available again.
async fn live_together(lab: &Lab) {
    let all = 1..=lab.machines.len();
    let reach = async |state: &str| {
        for number in all.clone() {
            lab.reaches(number, state).await;
        }
    };
    all.clone().for_each(|number| lab.declare(number));
    reach("available").await;
    all.clone().for_each(|number| lab.wish_plainly(number));
    reach("provisioned").await;
    let release = json!({"spec": {"image": null}});
    all.clone().for_each(|number| lab.edit(number, &release));
    reach("available").await;
}

/// How many hosts were in each of the states that take a slot, and in all of them, at most, at any write; who waits in line is in none.
fn most_busy(changes: &mut broadcast::Receiver<Change>) -> ([usize; 3], usize) {
    let states = ["inspecting", "provisioning", "deprovisioning"];
    let (mut busy, mut each, mut all) = (BTreeMap::new(), [0; 3], 0);
    loop {
        let host = match changes.try_recv() {
            Ok(Change::Host(host)) => host,
            Ok(_) => continue,
            Err(TryRecvError::Empty) => return (each, all),
            Err(error) => panic!("not all was seen: {error}"),
        };
        let state = State::of(&host).name();
        let at = states.iter().position(|busy| *busy == state && !delayed(&host));
        match at {
            Some(at) => busy.insert(host.metadata.name.clone(), at),
            None => busy.remove(&host.metadata.name),
        };
        all = all.max(busy.len());
        for (state, most) in each.iter_mut().enumerate() {
            *most = (*most).max(busy.values().filter(|at| **at == state).count());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn never_more_hosts_than_the_limit_are_busy_and_all_have_their_turn() {
    let lab = Lab::with_limit(12, 3);
    let mut changes = lab.api.changes();
    lab.run(live_together(&lab)).await;
    assert_eq!(most_busy(&mut changes), ([3; 3], 3));
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_starts_anew_at_the_limit_lets_no_further_host_in() {
    for done in [false, true] {
        let lab = Lab::with_limit(6, 2);
        lab.trouble(At::Every(7), Trouble::Kill { done });
        let mut changes = lab.api.changes();
        lab.run(live_together(&lab)).await;
        assert_eq!(most_busy(&mut changes), ([2; 3], 2), "done: {done}");
        assert!(lab.troubled() > 6, "{}", lab.troubled());
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_no_place_stays_where_it_is_and_says_so_once_that_lasts() {
    let lab = Lab::with_limit(2, 1);
    let mut changes = lab.api.changes();
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "inspecting").await;
        lab.declare(2);
        lab.until(|| delayed(&lab.host(2).unwrap())).await;
        lab.reaches(2, "available").await;
    })
    .await;
    let (mut states, mut said) = (Vec::new(), 0);
    while let Ok(change) = changes.try_recv() {
        let Change::Host(host) = change else { continue };
        if host.metadata.name.as_deref() != Some("m2") {
            continue;
        }
        let state = State::of(&host).name();
        said += usize::from(delayed(&host));
        assert!(!delayed(&host) || state == "registering", "{state}");
        if !state.is_empty() && states.last() != Some(&state) {
            states.push(state);
        }
    }
    assert_eq!(states, ["registering", "inspecting", "preparing", "available"]);
    assert_eq!(said, 1);
}

#[tokio::test(start_paused = true)]
async fn who_is_to_be_inspected_again_has_its_turn_like_any_other() {
    let lab = Lab::with_limit(2, 1);
    let mut changes = lab.api.changes();
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "available").await;
        lab.machines[1].set_mute();
        lab.declare(2);
        lab.reaches(2, "inspecting").await;
        let asks = |value| json!({"metadata": {"annotations": {INSPECT_ANNOTATION: value}}});
        lab.edit(1, &asks(Some("")));
        lab.until(|| delayed(&lab.host(1).unwrap())).await;
        lab.edit(1, &asks(None));
        lab.until(|| !delayed(&lab.host(1).unwrap())).await;
        lab.edit(1, &asks(Some("")));
        lab.until(|| delayed(&lab.host(1).unwrap())).await;
        // The other one's ramdisk does not call in, which fails in the end.
        lab.reaches(1, "inspecting").await;
        lab.reaches(1, "available").await;
    })
    .await;
    let annotations = lab.host(1).unwrap().metadata.annotations.unwrap_or_default();
    assert!(!annotations.contains_key(INSPECT_ANNOTATION));
    while let Ok(change) = changes.try_recv() {
        if let Change::Host(host) = change
            && host.metadata.name.as_deref() == Some("m1")
        {
            assert!(!delayed(&host) || State::of(&host) == State::Available);
        }
    }
}

fn delayed(host: &BareMetalHost) -> bool {
    host.status.as_ref().is_some_and(waits_for_slot)
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_in_line_say_so_one_after_the_other() {
    let lab = Lab::with_limit(7, 1);
    let mut changes = lab.api.changes();
    let told = lab.run(async {
        lab.declare(1);
        lab.reaches(1, "inspecting").await;
        (2..=7).for_each(|number| lab.declare(number));
        let mut told = BTreeMap::new();
        while told.len() < 6 {
            if let Change::Host(host) = changes.recv().await.unwrap()
                && delayed(&host)
            {
                told.entry(host.metadata.name.clone())
                    .or_insert_with(Instant::now);
            }
        }
        told
    });
    let mut told: Vec<Instant> = told.await.into_values().collect();
    told.sort_unstable();
    let apart = told.windows(2).map(|pair| pair[1] - pair[0]);
    let apart: Vec<_> = apart.collect();
    let pause = TOLD.every;
    assert!(
        apart.iter().all(|apart| *apart >= pause && *apart < 2 * pause),
        "{apart:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn where_the_line_moves_nobody_writes_that_it_waits_in_it() {
    let lab = Lab::with_limit(6, 1);
    let mut changes = lab.api.changes();
    lab.run(async {
        for number in 1..=6 {
            lab.declare_in_band(number);
        }
        for number in 1..=6 {
            lab.reaches(number, "available").await;
        }
    })
    .await;
    let mut seen = BTreeSet::new();
    loop {
        match changes.try_recv() {
            Ok(Change::Host(host)) => {
                assert!(!delayed(&host), "{:?}", host.metadata.name);
                seen.insert(host.metadata.name.clone());
            }
            Ok(_) => {}
            Err(TryRecvError::Empty) => break,
            Err(error) => panic!("not all was seen: {error}"),
        }
    }
    assert_eq!(seen.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn in_a_short_line_a_host_says_within_seconds_that_it_waits_though_the_line_has_just_moved() {
    let lab = Lab::with_limit(3, 1);
    lab.machines[1].set_mute();
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "inspecting").await;
        lab.declare(2);
        // It has the slot that the first one passed on, and its ramdisk does not call in.
        lab.reaches(2, "inspecting").await;
        lab.declare(3);
        let asked = Instant::now();
        lab.until(|| delayed(&lab.host(3).unwrap())).await;
        assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
        assert!(lab.waits_for(3, "Place"));
        let status = lab.host(3).unwrap().status.unwrap();
        let manageable = status.conditions.iter().find(|one| one.type_ == "Manageable");
        assert_eq!(manageable.unwrap().status, "True");
        let waits = status.conditions.iter().find(|one| one.type_ == "Waiting");
        assert!(waits.unwrap().message.contains("--provisioning-limit allows (1)"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_waits_after_a_failure_keeps_no_other_from_its_turn() {
    let lab = Lab::with_limit(2, 1);
    lab.machines[0].set_mute();
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "inspecting").await;
        lab.declare(2);
        lab.until(|| error(&lab).contains("did not call in")).await;
        lab.reaches(2, "available").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_another_operator_left_and_somebody_has_to_decide_on_keeps_no_other_from_its_turn() {
    let lab = Lab::with_limit(2, 1);
    let image = json!({"url": "http://images.test/os.qcow2", "checksum": "0".repeat(64), "format": "qcow2"});
    let status = json!({"errorMessage": "", "operationalStatus": "OK", "poweredOn": true, "lastAttemptedImage": image,
        "operationHistory": {"provision": {"start": "2025-12-31T23:50:00Z"}},
        "provisioning": {"ID": "", "state": "provisioning"}});
    lab.declare(1);
    lab.edit(1, &json!({"spec": {"image": image}, "status": status}));
    assert!(is_busy(&lab.host(1).unwrap()));
    lab.run(async {
        lab.declare(2);
        lab.reaches(2, "available").await;
    })
    .await;
    assert!(is_busy(&lab.host(1).unwrap()) && may_take_hours(&lab.host(1).unwrap()));
    assert_eq!(lab.machines[0].disk().0, ["old"]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_waits_for_a_person_keeps_no_other_from_its_turn_and_has_one_itself_then() {
    let lab = Lab::with_limit(2, 1);
    lab.run(async {
        lab.declare_in_band(1);
        lab.reaches(1, "available").await;
        lab.machines[0].set_network_first(false);
        lab.wish(1);
        lab.reaches(1, "provisioned").await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        lab.edit(1, &json!({"spec": {"image": null, "userData": null}}));
        lab.until(|| lab.waits_for(1, "PowerCycleByHand")).await;
        lab.declare(2);
        lab.reaches(2, "available").await;
        assert!(lab.waits_for(1, "PowerCycleByHand"));
        lab.machines[0].set_network_first(true);
        lab.machines[0].is_power_cycled();
        lab.reaches(1, "available").await;
        assert!(lab.machines[0].disk().0.is_empty());
    })
    .await;
}

/// With one slot, machine 1 is inspected and does not call in; once it is detached with `arguments`, and deleted or not, the slot is another's.
async fn lets_go_of_its_place(arguments: &str, deleted: bool) {
    let lab = Lab::with_limit(2, 1);
    lab.machines[0].set_mute();
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "inspecting").await;
        let detached = json!({"baremetalhost.metal3.io/detached": arguments});
        lab.edit(1, &json!({"metadata": {"annotations": detached}}));
        if deleted {
            lab.api.delete("baremetalhosts", "m1");
        }
        lab.until(|| lab.waits_for(1, "Detached")).await;
        lab.declare(2);
        lab.reaches(2, "available").await;
        assert!(is_busy(&lab.host(1).unwrap()));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_host_that_is_detached_by_force_keeps_no_other_from_its_turn() {
    lets_go_of_its_place(r#"{"force":true}"#, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_host_that_is_deleted_while_detached_keeps_no_other_from_its_turn() {
    lets_go_of_its_place(r#"{"deleteAction":"delay"}"#, true).await;
}

/// Somebody wishes for an image for machine 1, whose ramdisk has taken up the job and is at it.
pub(super) async fn is_written(lab: &Lab) {
    lab.declare(1);
    lab.reaches(1, "available").await;
    lab.machines[0].set_slow(true);
    lab.edit(1, &json!({"spec": {"automatedCleaningMode": "disabled"}}));
    lab.wish_plainly(1);
    lab.until(|| {
        let server = lab.api.get::<Server>("servers", "m1").unwrap();
        server.status.unwrap().job.is_some_and(|job| !job.done)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_host_that_is_paused_keeps_others_from_their_turn_only_while_its_ramdisk_works() {
    let lab = Lab::with_limit(2, 1);
    lab.run(async {
        is_written(&lab).await;
        let pause = |value| json!({"metadata": {"annotations": {PAUSED_ANNOTATION: value}}});
        lab.edit(1, &pause(Some("")));
        lab.declare(2);
        lab.until(|| delayed(&lab.host(2).unwrap())).await;
        // Whoever leads.
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert!(delayed(&lab.host(2).unwrap()), "the write goes on");
            lab.kill();
        }
        lab.machines[0].set_slow(false);
        lab.reaches(2, "available").await;
        assert!(is_busy(&lab.host(1).unwrap()));
        lab.edit(1, &pause(None));
        lab.reaches(1, "provisioned").await;
        assert_eq!(lab.machines[0].disk().0, ["old", IMAGE]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_is_at_work_has_a_place_whatever_was_given_to_others() {
    let lab = Lab::with_limit(3, 1);
    lab.run(async {
        is_written(&lab).await;
        let pause = |value| json!({"metadata": {"annotations": {PAUSED_ANNOTATION: value}}});
        lab.edit(1, &pause(Some("")));
        // Its machine is silent for so long that its slot is another's, which fails in the end.
        lab.machines[0].set_silent(true);
        lab.declare(2);
        lab.machines[1].set_mute();
        lab.reaches(2, "inspecting").await;
        lab.machines[0].set_silent(false);
        lab.declare(3);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(delayed(&lab.host(3).unwrap()), "the write goes on");
        lab.edit(1, &pause(None));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(delayed(&lab.host(3).unwrap()) && !delayed(&lab.host(1).unwrap()));
        lab.machines[0].set_slow(false);
        lab.reaches(1, "provisioned").await;
        lab.reaches(3, "available").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_host_whose_bmc_is_refused_keeps_others_from_their_turn_only_while_its_ramdisk_works() {
    let lab = Lab::with_limit(2, 1);
    lab.run(async {
        is_written(&lab).await;
        lab.edit(1, &json!({"spec": {"bmc": {"credentialsName": "none"}}}));
        lab.until(|| lab.waits_for(1, "Refused")).await;
        lab.declare(2);
        lab.until(|| delayed(&lab.host(2).unwrap())).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(delayed(&lab.host(2).unwrap()), "the write goes on");
        // It falls silent for good.
        lab.machines[0].set_mute();
        lab.machines[0].is_power_cycled();
        lab.reaches(2, "available").await;
        assert!(lab.waits_for(1, "Refused") && is_busy(&lab.host(1).unwrap()));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_lacks_what_goes_on_its_disk_keeps_no_other_from_its_turn_and_is_not_cleaned() {
    let lab = Lab::with_limit(3, 1);
    lab.run(async {
        is_written(&lab).await;
        // Another operator's, whose user data nobody has.
        lab.declare(2);
        let image = json!({"url": IMAGE, "checksum": "0".repeat(64)});
        let status = json!({"errorMessage": "", "operationalStatus": "OK", "poweredOn": true, "lastAttemptedImage": image,
            "operationHistory": {"provision": {"start": "2025-12-31T23:50:00Z"}},
            "provisioning": {"ID": "", "state": "provisioning"}});
        lab.edit(2, &json!({"spec": {"image": image, "userData": {"name": "none"}}, "status": status}));
        lab.until(|| delayed(&lab.host(2).unwrap())).await;
        lab.machines[0].set_slow(false);
        lab.until(|| lab.waits_for(2, "Refused")).await;
        lab.declare(3);
        lab.reaches(3, "available").await;
        assert!(lab.waits_for(2, "Refused"));
        assert_eq!(lab.machines[1].disk(), (vec!["old".to_owned()], 0));
        lab.put_secret("none", &[("userData", CANARY)]);
        lab.reaches(2, "provisioned").await;
    })
    .await;
}
