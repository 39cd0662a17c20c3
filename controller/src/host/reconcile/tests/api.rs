//! Lives with an API server that is gone, refuses, conflicts, or is slow, and with others who write to the same objects.

use super::{
    end,
    lab::Lab,
    live,
    trouble::{At, Trouble},
};
use crate::world::Change;
use serde_json::json;

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
