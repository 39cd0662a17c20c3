//! The way to a BMC: its credentials, whoever labels them, and what it answers.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use muster_proto::kinds::ErrorType;
use serde_json::json;

use super::{
    error,
    lab::{CANARY, Lab},
    rest::at_rest,
};
use crate::bmc::BmcError;

#[tokio::test(start_paused = true)]
async fn wrong_credentials_are_told_tried_again_seldom_and_mended_by_the_secret_or_at_the_bmc() {
    for by_secret in [true, false] {
        let lab = Lab::new(1);
        let machine = &lab.machines[0];
        machine.set_password("another");
        lab.run(async {
            lab.declare(1);
            lab.until(|| error(&lab).contains("credentials")).await;
            // Once an hour, which locks nobody out.
            let version = lab.host(1).unwrap().metadata.resource_version;
            tokio::time::sleep(Duration::from_secs(9000)).await;
            assert_eq!(lab.host(1).unwrap().metadata.resource_version, version);
            assert_eq!(machine.strangers(), 3);
            match by_secret {
                true => lab.secret(1, "another"),
                false => machine.set_password(CANARY),
            }
            lab.reaches(1, "available").await;
            assert_eq!(error(&lab), "");
            assert_eq!(machine.strangers(), 3);
        })
        .await;
        let told = lab.told();
        let told = told
            .iter()
            .filter(|event| event.warning && event.reason == "RegistrationError");
        assert_eq!(told.count(), 1, "by the Secret: {by_secret}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_deleted_serves_on_when_it_is_changed_and_goes_when_another_is_named() {
    let is_told = |lab: &Lab| {
        let status = lab.host(1).unwrap().status.unwrap();
        status.conditions.iter().any(|one| one.type_ == "SecretHeld")
    };
    let lab = Lab::new(1);
    lab.machines[0].set_password("another");
    lab.run(async {
        lab.declare(1);
        lab.until(|| error(&lab).contains("credentials")).await;
        lab.api.delete("secrets", "bmc-1");
        lab.until(|| error(&lab).contains("the Secret bmc-1 is being deleted"))
            .await;
        // `another`.
        let password = json!({"data": {"password": "YW5vdGhlcg=="}});
        lab.api.edit("secrets", "bmc-1", &password);
        lab.reaches(1, "available").await;
        assert!(is_told(&lab));
        tokio::time::sleep(Duration::from_secs(120)).await;
        let version = lab.host(1).unwrap().metadata.resource_version;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(lab.host(1).unwrap().metadata.resource_version, version);

        lab.put_secret("other", &[("username", "admin"), ("password", "another")]);
        lab.edit(1, &json!({"spec": {"bmc": {"credentialsName": "other"}}}));
        lab.until(|| lab.api.get::<Secret>("secrets", "bmc-1").is_none())
            .await;
        lab.until(|| !is_told(&lab)).await;
        assert_eq!(error(&lab), "");
    })
    .await;
    let told = lab.told();
    let held = told.iter().filter(|event| event.reason == "SecretHeld");
    assert_eq!(held.count(), 1, "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_nobody_can_be_asked_at_is_told_as_unusable_details() {
    for address in ["ipmi://192.0.2.1", "nonsense://192.0.2.1"] {
        let lab = Lab::new(1);
        lab.run(async {
            lab.declare(1);
            lab.edit(1, &json!({"spec": {"bmc": {"address": address}}}));
            lab.until(|| !error(&lab).is_empty()).await;
            tokio::time::sleep(Duration::from_secs(600)).await;
        })
        .await;
        let status = lab.host(1).unwrap().status.unwrap();
        assert_eq!(status.error_type, Some(ErrorType::Registration));
        let told = lab.told();
        let reasons: Vec<&str> = told.iter().map(|event| event.reason).collect();
        assert_eq!(reasons, ["BMCCredentialError"], "{address}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_comes_later_is_found_though_nobody_labelled_it() {
    let lab = Lab::new(1);
    lab.run(async {
        lab.declare(1);
        lab.api.delete("secrets", "bmc-1");
        lab.until(|| error(&lab).contains("does not exist")).await;
        lab.secret(1, CANARY);
        lab.reaches(1, "available").await;
    })
    .await;
    let secret: Secret = lab.api.get("secrets", "bmc-1").unwrap();
    assert_eq!(
        secret.metadata.labels.unwrap()["environment.metal3.io"],
        "baremetal"
    );
    assert_eq!(
        secret.metadata.finalizers.unwrap(),
        ["baremetalhost.metal3.io/secret"]
    );
    assert_eq!(secret.metadata.owner_references.unwrap()[0].uid, "uid-1");
}

#[tokio::test(start_paused = true)]
async fn what_others_put_on_a_secret_stays_when_it_is_marked() {
    let lab = Lab::new(1);
    lab.run(async {
        lab.declare(1);
        let theirs = json!({"metadata": {
            "labels": {"team": "blue"},
            "finalizers": ["blue.test/keep"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "uid-c"}],
        }});
        lab.api.edit("secrets", "bmc-1", &theirs);
        lab.reaches(1, "available").await;
    })
    .await;
    let secret: Secret = lab.api.get("secrets", "bmc-1").unwrap();
    let labels = secret.metadata.labels.unwrap();
    assert_eq!(
        (labels["team"].as_str(), labels["environment.metal3.io"].as_str()),
        ("blue", "baremetal")
    );
    assert_eq!(
        secret.metadata.finalizers.unwrap(),
        ["blue.test/keep", "baremetalhost.metal3.io/secret"]
    );
    let owners = secret.metadata.owner_references.unwrap();
    let owners: Vec<&str> = owners.iter().map(|owner| owner.uid.as_str()).collect();
    assert_eq!(owners, ["uid-c", "uid-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_bmc_that_cannot_be_reached_is_asked_again_until_it_can() {
    let lab = Lab::new(1);
    let reason = "no route".to_owned();
    lab.machines[0].set_fault(Some(BmcError::Unreachable { reason }));
    lab.run(async {
        lab.declare(1);
        lab.until(|| error(&lab).contains("no route")).await;
        lab.machines[0].set_fault(None);
        lab.reaches(1, "available").await;
    })
    .await;
}

/// Its error may pass, and is no refusal: that it does not pass is seen all the same.
#[tokio::test(start_paused = true)]
async fn a_bmc_that_never_shows_its_system_is_told_of_before_and_after_its_host_is_registered() {
    let lab = Lab::new(1);
    let fails = || {
        lab.machines[0].set_fault(Some(BmcError::Busy {
            message: "an internal error".to_owned(),
            retry_after: None,
        }));
    };
    fails();
    lab.run(async {
        lab.declare(1);
        lab.until(|| error(&lab).contains("an internal error")).await;
        lab.machines[0].set_fault(None);
        lab.reaches(1, "available").await;
        lab.wish(1);
        lab.reaches(1, "provisioned").await;
        fails();
        lab.until(|| {
            let conditions = lab.host(1).unwrap().status.unwrap().conditions;
            conditions.iter().any(|condition| {
                let is_it = condition.type_ == "Manageable" && condition.status == "False";
                is_it && condition.message.contains("an internal error")
            })
        })
        .await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_label_on_the_secret_registers_nothing_again() {
    let lab = Lab::new(1);
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "available").await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        let registered = |lab: &Lab| {
            lab.host(1)
                .unwrap()
                .status
                .unwrap()
                .operation_history
                .unwrap()
                .register
        };
        let before = registered(&lab);
        lab.api.edit(
            "secrets",
            "bmc-1",
            &json!({"metadata": {"labels": {"team": "blue"}}}),
        );
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(registered(&lab), before);
    })
    .await;
}

/// The host is gone at once, as one whose cluster moves.
fn take_away(lab: &Lab) {
    lab.edit(1, &json!({"metadata": {"finalizers": null}}));
    lab.api.delete("baremetalhosts", "m1");
}

#[tokio::test(start_paused = true)]
async fn a_bmc_to_which_an_order_comes_when_its_host_is_gone_is_forgotten_after_it() {
    let takes = Duration::from_secs(60);
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    machine.set_arming_takes(takes);
    lab.run(async {
        lab.declare(1);
        lab.reaches(1, "inspecting").await;
        tokio::time::sleep(takes / 3).await;
        assert!(machine.is_remembered() && !machine.is_armed());
        take_away(&lab);
        tokio::time::sleep(takes / 3).await;
        assert!(!machine.is_remembered() && !machine.is_armed());
        lab.until(|| machine.is_armed()).await;
        tokio::time::sleep(takes).await;
        assert!(!machine.is_remembered());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_bmc_to_which_a_question_comes_when_its_host_is_gone_is_forgotten_after_it() {
    let takes = Duration::from_secs(20);
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    lab.run(async {
        at_rest(&lab).await;
        machine.set_bmc_takes(takes);
        let is_asked = || {
            let (asked, answered) = machine.asked_and_answered();
            asked > answered
        };
        lab.until(is_asked).await;
        assert!(machine.is_remembered());
        take_away(&lab);
        tokio::time::sleep(takes / 4).await;
        assert!(!machine.is_remembered() && is_asked());
        lab.until(|| !is_asked()).await;
        tokio::time::sleep(takes).await;
        assert!(!machine.is_remembered());
    })
    .await;
}
