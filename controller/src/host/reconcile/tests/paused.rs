//! Hosts that are paused: nothing is done to them, and nothing is late afterwards.

use std::time::Duration;

use serde_json::json;

use super::lab::Lab;
use crate::bmc::BmcError;

#[tokio::test(start_paused = true)]
async fn a_paused_host_is_not_touched_and_goes_on_when_it_is_paused_no_more() {
    let paused = |value| json!({"metadata": {"annotations": {"baremetalhost.metal3.io/paused": value}}});
    for (state, then) in [
        ("inspecting", "available"),
        ("available", "available"),
        ("provisioning", "provisioned"),
        ("provisioned", "provisioned"),
    ] {
        let lab = Lab::new(1);
        let machine = &lab.machines[0];
        lab.run(async {
            lab.declare(1);
            if then == "provisioned" {
                lab.reaches(1, "available").await;
                // It stays in the middle of the job.
                machine.set_slow(state == "provisioning");
                lab.wish(1);
            }
            lab.reaches(1, state).await;
            if state != "inspecting" {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            lab.until(|| machine.is_on()).await;
            lab.edit(1, &paused(json!("")));
            machine.loses_its_boot();
            let version = |lab: &Lab| lab.host(1).unwrap().metadata.resource_version;
            // What was under way when it was paused is over.
            tokio::time::sleep(Duration::from_secs(60)).await;
            let done = |lab: &Lab| (version(lab), lab.steps(), lab.machines[0].asked_and_answered());
            let before = done(&lab);
            tokio::time::sleep(Duration::from_secs(7200)).await;
            assert_eq!(done(&lab), before, "{state}");
            assert!(!machine.is_on(), "{state}");
            machine.set_slow(false);
            lab.edit(1, &paused(json!(null)));
            lab.reaches(1, then).await;
            lab.until(|| machine.is_on()).await;
        })
        .await;
        // The time of its boot ran out while nobody was to look after it.
        assert!(lab.told().iter().all(|event| event.reason != "InspectionError"));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_that_a_host_waited_for_when_it_was_paused_is_late_when_it_is_paused_no_more() {
    let paused = |value| json!({"metadata": {"annotations": {"baremetalhost.metal3.io/paused": value}}});
    for dies in [false, true] {
        let lab = Lab::new(1);
        lab.run(async {
            lab.declare(1);
            lab.reaches(1, "available").await;
            lab.wish(1);
            lab.reaches(1, "provisioned").await;
            let reason = "no route".to_owned();
            lab.machines[0].set_fault(Some(BmcError::Unreachable { reason }));
            lab.edit(1, &json!({"spec": {"image": null}}));
            lab.reaches(1, "deprovisioning").await;
            lab.until(|| lab.waits_for(1, "Bmc")).await;
            lab.told();
            lab.edit(1, &paused(json!("")));
            // Longer than a BMC may be silent. It is mended meanwhile.
            tokio::time::sleep(Duration::from_secs(3600)).await;
            if dies {
                lab.kill();
            }
            tokio::time::sleep(Duration::from_secs(3600)).await;
            lab.machines[0].set_fault(None);
            lab.edit(1, &paused(json!(null)));
            lab.reaches(1, "available").await;
        })
        .await;
        let failed = lab.told().into_iter().find(|event| event.warning);
        assert!(failed.is_none(), "{failed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_not_rebooted_when_its_host_was_paused_while_its_bmc_took_long_to_arm_that() {
    let lab = Lab::new(1);
    let paused = |value| json!({"metadata": {"annotations": {"baremetalhost.metal3.io/paused": value}}});
    lab.machines[0].set_arming_takes(Duration::from_secs(60));
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "inspecting").await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        lab.edit(1, &paused(json!("")));
        lab.until(|| lab.machines[0].is_armed()).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(!lab.machines[0].is_on() && lab.machines[0].is_armed());
        lab.edit(1, &paused(json!(null)));
        lab.reaches(1, "available").await;
    })
    .await;
    // Nor does anybody wait for a boot that was not done.
    assert!(lab.told().iter().all(|event| event.reason != "InspectionError"));
}
