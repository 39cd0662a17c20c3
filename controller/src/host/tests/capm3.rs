//! What CAPM3 writes, as it writes it: JSON merge patches without a resource version.

use k8s_openapi::api::core::v1::SecretReference;
use serde_json::{Value, json};

use super::{
    super::{State, observed::SecretState},
    transitions::at,
    world::{Content, IMAGE, UID, World, secret},
};

fn claim() -> Value {
    json!({
        "metadata": {"labels": {"cluster.x-k8s.io/cluster-name": "c"}},
        "spec": {
            "consumerRef": {"kind": "Metal3Machine", "name": "m", "namespace": "metal",
                "apiVersion": "infrastructure.cluster.x-k8s.io/v1beta2"},
            "image": {"url": IMAGE, "format": "",
                "checksum": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "checksumType": "sha256"},
            "userData": {"name": "user", "namespace": "metal"},
            "metaData": {"name": "meta", "namespace": "metal"},
            "networkData": {"name": "network", "namespace": "metal"},
            "automatedCleaningMode": "metadata",
            "online": true
        }
    })
}

fn secrets(world: &mut World) {
    world.secrets.user_data = secret("3", "user");
    world.secrets.meta_data = secret("4", "meta");
    world.secrets.network_data = secret("5", "network");
}

fn claimed() -> World {
    let mut world = at(State::Available);
    secrets(&mut world);
    world.patch(&claim());
    world.reach(State::Provisioned);
    world.settle();
    world
}

fn let_go(online: bool) -> Value {
    json!({"spec": {"image": null, "customDeploy": null, "userData": null, "metaData": null, "networkData": null,
        "online": online}})
}

#[test]
fn a_claim_provisions_and_letting_go_with_the_power_off_deprovisions() {
    let mut world = claimed();
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    world.patch(&let_go(false));
    world.settle();
    assert_eq!(world.state(), State::Available);
    let host = world.host();
    assert!(host.spec.consumer_ref.is_some());
    let status = host.status.clone().unwrap();
    assert!(status.error_message.is_empty() && !status.powered_on);
    assert_eq!(world.machine.disk, Content::Blank);
}

#[test]
fn a_claims_user_meta_and_network_data_all_go_on_the_config_drive() {
    let world = claimed();
    let drive = world.machine.drive.unwrap();
    let names = [
        drive.user_data_secret,
        drive.meta_data_secret,
        drive.network_data_secret,
    ];
    assert_eq!(names.map(Option::unwrap_or_default), ["user", "meta", "network"]);
    let defaults: Vec<(&str, &str)> = drive
        .meta_data
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    for wanted in [
        ("uuid", UID),
        ("metal3-namespace", "metal"),
        ("metal3-name", "host-1"),
        ("local-hostname", "host-1"),
        ("local_hostname", "host-1"),
        ("name", "host-1"),
    ] {
        assert!(defaults.contains(&wanted), "{wanted:?} in {defaults:?}");
    }
    // Nothing is begun before all of them are there.
    let mut world = at(State::Available);
    secrets(&mut world);
    world.secrets.network_data.state = SecretState::Missing;
    world.patch(&claim());
    world.settle();
    assert_eq!(world.state(), State::Available);
    secrets(&mut world);
    world.reach(State::Provisioned);
}

#[test]
fn network_data_of_before_the_provisioning_is_held_and_serves_where_the_host_has_none_of_its_own() {
    let network_data = |world: &World| world.machine.drive.clone().unwrap().network_data_secret;
    let mut world = World::new();
    world.host().spec.preprovisioning_network_data_name = Some("before".to_owned());
    world.secrets.preprovisioning.state = SecretState::Missing;
    world.reach(State::Available);
    world.set_image(Some(IMAGE));
    world.settle();
    assert_eq!(world.state(), State::Available);
    let message = world.host().status.clone().unwrap().error_message;
    assert!(
        message.contains("spec.preprovisioningNetworkDataName"),
        "{message}"
    );
    assert!(!world.secrets.preprovisioning.held);
    world.secrets.preprovisioning = secret("6", "before");
    world.reach(State::Provisioned);
    let seen = &world.secrets.preprovisioning;
    assert!(
        seen.held && seen.finalizer,
        "it cannot go while the host needs it"
    );
    assert_eq!(network_data(&world).as_deref(), Some("before"));

    world.settle();
    world.set_image(None);
    world.reach(State::Available);
    world.host().spec.network_data = Some(SecretReference {
        name: Some("network".to_owned()),
        namespace: None,
    });
    world.secrets.network_data = secret("5", "network");
    // What is not written need not be good.
    world.secrets.preprovisioning.state = SecretState::Invalid("it is no YAML".to_owned());
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    assert_eq!(network_data(&world).as_deref(), Some("network"));
    assert!(!world.secrets.network_data.finalizer, "it is labelled only");

    world.delete();
    world.until("gone", |world| world.host.is_none());
    assert!(!world.secrets.preprovisioning.finalizer && !world.secrets.bmc.finalizer);
}

#[test]
fn marks_of_remediation_and_of_a_move_change_nothing_and_stay() {
    let marks = json!({"metadata": {"annotations": {
        "capm3.metal3.io/unhealthy": "",
        "clusterctl.cluster.x-k8s.io/block-move": "",
    }}});
    let stay = |world: &World| {
        world.annotated("capm3.metal3.io/unhealthy")
            && world.annotated("clusterctl.cluster.x-k8s.io/block-move")
    };
    let mut world = claimed();
    world.patch(&marks);
    let plan = world.plan();
    assert!(plan.status.is_none() && plan.metadata.is_empty(), "{}", plan.why);
    let (writes, boots) = (world.status_writes, world.machine.boots);
    world.settle();
    assert_eq!((world.status_writes, world.machine.boots), (writes, boots));
    assert!(stay(&world) && world.state() == State::Provisioned);
    world.patch(&let_go(false));
    world.settle();
    assert!(stay(&world) && world.state() == State::Available);
}

#[test]
fn letting_go_with_the_power_on_deprovisions_too() {
    let mut world = claimed();
    world.patch(&let_go(true));
    world.settle();
    assert_eq!(world.state(), State::Available);
    assert!(world.host().status.as_ref().unwrap().powered_on);
    assert_eq!(world.machine.disk, Content::Blank);
    let boots = world.machine.boots;
    world.patch(&claim());
    secrets(&mut world);
    world.reach(State::Provisioned);
    assert_eq!(
        world.machine.boots,
        boots + 1,
        "the ramdisk that cleaned writes the next image"
    );
}

#[test]
fn a_label_on_the_secret_causes_no_registration() {
    let mut world = claimed();
    world.secrets.bmc.state = secret("99", "a").state;
    let before = world.host().status.as_ref().unwrap().operation_history.clone();
    let plan = world.plan();
    assert!(
        !plan
            .effects
            .iter()
            .any(|effect| matches!(effect, super::super::Effect::Bmc(super::super::BmcCall::Probe(_))))
    );
    world.settle();
    let status = world.host().status.clone().unwrap();
    assert_eq!(status.operation_history, before);
    assert_eq!(
        status.good_credentials.unwrap().credentials_version.as_deref(),
        Some("99")
    );
}

#[test]
fn other_credentials_are_tried_and_told() {
    let mut world = claimed();
    world.secrets.bmc.state = secret("99", "b").state;
    world.settle();
    let status = world.host().status.clone().unwrap();
    assert_eq!(
        status.good_credentials.unwrap().credentials_version.as_deref(),
        Some("99")
    );
    assert!(world.events.contains(&"BMCAccessValidated".to_owned()));
    assert_eq!(world.state(), State::Provisioned);
}

#[test]
fn a_cluster_that_moves_leaves_the_machine_as_it_is() {
    let mut old = claimed();
    let mut moved = serde_json::to_value(old.host().status.as_ref().unwrap()).unwrap();
    moved.as_object_mut().unwrap().remove("hardware");
    let mut world = World::new();
    world.machine = old.machine.clone();
    world.hardware = old.hardware.clone();
    world.patch(&claim());
    secrets(&mut world);
    world.annotate("baremetalhost.metal3.io/status", &moved.to_string());
    world.settle();
    assert_eq!(world.state(), State::Provisioned);
    assert!(world.host().status.as_ref().unwrap().hardware.is_some());
    assert_eq!(
        (
            world.machine.writes.len(),
            world.machine.cleans,
            world.machine.boots
        ),
        (1, 1, old.machine.boots)
    );
}
