//! Hosts at which all is as it should be: nothing is looked at but their power.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::lab::Lab;
use crate::bmc::BmcError;

/// How often the power of a provisioned host is asked for.
const MINUTE: Duration = Duration::from_secs(60);
/// What the loop takes beside that.
const SOON: Duration = Duration::from_secs(10);

/// The host is provisioned, and nothing happens any more.
pub(super) async fn at_rest(lab: &Lab) {
    lab.declare(1);
    lab.reaches(1, "available").await;
    lab.wish(1);
    lab.reaches(1, "provisioned").await;
    tokio::time::sleep(2 * MINUTE).await;
}

fn looks(lab: &Lab) -> u32 {
    let name = r#"metal3_reconcile_total{namespace="metal",host="m1"} "#;
    let counted = lab.counted();
    let count = counted.lines().find_map(|line| line.strip_prefix(name));
    count.unwrap().parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn of_a_host_at_rest_only_the_power_is_asked_for_and_another_answer_is_acted_upon() {
    let lab = Lab::new(1);
    lab.run(async {
        at_rest(&lab).await;
        let (looked, (asked, _)) = (looks(&lab), lab.machines[0].asked_and_answered());
        tokio::time::sleep(5 * MINUTE).await;
        let asked = lab.machines[0].asked_and_answered().0 - asked;
        assert!((4..=6).contains(&asked), "{asked} times");
        let looked = looks(&lab) - looked;
        assert!(
            looked <= 2,
            "{looked} times, and all hosts are looked at every 10 minutes"
        );

        lab.machines[0].loses_its_boot();
        let begun = Instant::now();
        lab.until(|| lab.machines[0].is_on()).await;
        assert!(begun.elapsed() < MINUTE + SOON, "{:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_bmc_that_does_not_answer_any_more_is_told_of_though_the_host_rests() {
    let lab = Lab::new(1);
    lab.run(async {
        at_rest(&lab).await;
        let reason = "no route".to_owned();
        lab.machines[0].set_fault(Some(BmcError::Unreachable { reason }));
        let told = || {
            let status = json!(lab.host(1).unwrap().status).to_string();
            status.contains("no route")
        };
        lab.until(told).await;
        lab.machines[0].set_fault(None);
        lab.until(|| !told()).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_wished_while_the_power_is_asked_for_is_done_when_that_is_answered() {
    let lab = Lab::new(1);
    lab.run(async {
        at_rest(&lab).await;
        let takes = Duration::from_secs(20);
        lab.machines[0].set_bmc_takes(takes);
        let is_asked = || {
            let (asked, answered) = lab.machines[0].asked_and_answered();
            asked > answered
        };
        lab.until(is_asked).await;
        lab.edit(1, &json!({"spec": {"online": false}}));
        let begun = Instant::now();
        lab.until(|| !lab.machines[0].is_on()).await;
        assert!(begun.elapsed() < takes + SOON, "{:?}", begun.elapsed());
    })
    .await;
}
