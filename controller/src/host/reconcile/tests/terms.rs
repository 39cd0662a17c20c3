//! A leader acts in its own term alone.

use std::time::Duration;

use serde_json::json;

use super::lab::Lab;

#[tokio::test(start_paused = true)]
async fn who_does_not_lead_any_more_does_nothing() {
    let lab = Lab::new(1);
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "available").await;
        lab.end_term();
        lab.wish(1);
        // An order to its BMC, too, is due.
        lab.machines[0].loses_its_boot();
        let (steps, host) = (lab.steps(), lab.host(1).unwrap());
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!((lab.steps(), lab.machines[0].is_on()), (steps, false));
        assert_eq!(
            lab.host(1).unwrap().metadata.resource_version,
            host.metadata.resource_version
        );
        assert_eq!(lab.machines[0].disk().0, ["old"]);
        // A renewal that was under way when it lapsed says that nobody led in between.
        lab.renew_term();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(
            lab.steps() > steps,
            "at once, and not when all hosts are looked at again"
        );
        lab.reaches(1, "provisioned").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_term_ends_while_its_bmc_takes_long_changes_nothing_there() {
    let takes = Duration::from_secs(60);
    for (arming, switching) in [(takes, Duration::ZERO), (Duration::ZERO, takes)] {
        let lab = Lab::new(1);
        let machine = &lab.machines[0];
        machine.set_arming_takes(arming);
        machine.set_switching_takes(switching);
        lab.run(async {
            lab.declare(1);
            lab.reaches(1, "inspecting").await;
            tokio::time::sleep(Duration::from_secs(20)).await;
            // The order is on its way: to arm the boot, or to switch on a machine that is armed.
            let before = (arming.is_zero(), false);
            assert_eq!((machine.is_armed(), machine.is_on()), before);
            lab.lapse_term();
            tokio::time::sleep(Duration::from_secs(300)).await;
            assert_eq!((machine.is_armed(), machine.is_on()), before);
            assert!(machine.resets().is_empty());
            machine.set_arming_takes(Duration::ZERO);
            machine.set_switching_takes(Duration::ZERO);
            lab.renew_term();
            lab.reaches(1, "available").await;
        })
        .await;
        assert!(machine.is_on());
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_carries_the_number_of_the_term_in_which_it_is_given() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    lab.run(async {
        lab.declare(1);
        lab.wish(1);
        lab.reaches(1, "provisioned").await;
        let first = machine.epoch();
        lab.kill();
        // Until another one leads.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(machine.epoch(), first, "nothing is ordered again");
        lab.edit(1, &json!({"spec": {"image": null, "userData": null}}));
        lab.reaches(1, "deprovisioning").await;
        lab.reaches(1, "available").await;
        assert_eq!(machine.epoch(), first + 1);
    })
    .await;
}
