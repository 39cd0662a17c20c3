//! What happens to a host is counted under upstream's names, each happening once.

use muster_proto::kinds::{DETACHED_ANNOTATION, ErrorType};
use serde_json::json;

use super::{
    super::{
        State, counts,
        metrics::Metrics,
        observed::{Bmc, Failure, FailureClass, SecretSeen, SecretState},
    },
    transitions::at,
    world::{Fault, IMAGE, World, secret},
};
use crate::metrics::Registry;

/// A world whose every written status is counted, as the loop does.
struct Counted {
    world: World,
    registry: Registry,
    metrics: Metrics,
}

impl Counted {
    fn of(world: World) -> Counted {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        Counted {
            world,
            registry,
            metrics,
        }
    }

    fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            let Some(before) = self.world.host.clone() else {
                return;
            };
            let plan = self.world.plan();
            if let Some(status) = &plan.status {
                let mut after = before.clone();
                after.status = Some((**status).clone());
                let seen = self.world.seen();
                counts::status_written(&self.metrics, &before, &after, &seen, &plan.events);
            }
            let at_once = plan.requeue == Some(std::time::Duration::ZERO);
            self.world.execute(plan, None, Fault::None);
            self.world.tick(if at_once { 0 } else { 11 });
        }
    }

    /// What stands behind `metal3_NAME_total`.
    fn count(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("metal3_{name} ")));
        line.map_or(0, |count| count.parse().unwrap())
    }
}

/// True if the host is told that something is wrong with the way to its machine.
fn is_refused(counted: &Counted) -> bool {
    let status = counted.world.host.as_ref().unwrap().status.as_ref();
    status.is_some_and(|status| status.error_type == Some(ErrorType::Registration))
}

fn bad(state: SecretState) -> SecretSeen {
    SecretSeen {
        state,
        ..SecretSeen::default()
    }
}

#[test]
fn each_trouble_with_credentials_counts_once() {
    for (state, name) in [
        (SecretState::Missing, "credentials_missing"),
        (
            SecretState::Invalid("it has no `password`".to_owned()),
            "credentials_invalid",
        ),
        (
            SecretState::Unreadable("forbidden".to_owned()),
            "credentials_unhandled_error",
        ),
    ] {
        let mut counted = Counted::of(World::new());
        counted.world.secrets.bmc = bad(state);
        counted.rounds(30);
        assert_eq!(counted.count(&format!("{name}_total")), 1, "{name}");
        counted.world.secrets.bmc = secret("2", "b");
        counted.rounds(60);
        assert_eq!(counted.world.state(), State::Available);
        assert_eq!(counted.count(&format!("{name}_total")), 1, "{name}");
    }
    let mut counted = Counted::of(World::new());
    counted.world.bmc_up = false;
    let failures = |counted: &Counted| {
        let status = counted.world.host.as_ref().unwrap().status.as_ref();
        status.map_or(0, |status| status.error_count)
    };
    while failures(&counted) == 0 {
        counted.rounds(1);
    }
    assert_eq!(counted.count("credentials_no_management_access_total"), 1);
    counted.world.bmc_up = true;
    counted.rounds(60);
    assert_eq!(counted.count("credentials_updated_total"), 0);
    counted.world.secrets.bmc = secret("3", "c");
    counted.rounds(10);
    assert_eq!(counted.count("credentials_updated_total"), 1);
    assert_eq!(counted.count("provisioner_not_ready_total"), 0);
    // A registered host's BMC that is away is not a matter of its credentials.
    counted.world.bmc = Bmc::default();
    counted.world.bmc_up = false;
    counted.rounds(30);
    assert_eq!(counted.count("provisioner_not_ready_total"), 1);
    assert_eq!(counted.count("credentials_no_management_access_total"), 1);
}

#[test]
fn a_bmc_that_lets_nobody_in_counts_and_what_the_host_says_of_it_does_not() {
    let name = "credentials_no_management_access_total";
    for (class, times) in [
        (FailureClass::Credentials, 1),
        (FailureClass::Certificate, 1),
        (FailureClass::System, 1),
        (FailureClass::Address, 0),
    ] {
        let mut counted = Counted::of(World::new());
        counted.world.bmc_up = false;
        while counted.world.bmc.probed.is_none() {
            counted.rounds(1);
        }
        let probed = counted.world.bmc.probed.as_mut().unwrap();
        probed.result = Err(Failure {
            class,
            message: "it says so.".to_owned(),
            at: probed.at,
        });
        counted.rounds(3);
        assert!(is_refused(&counted), "{class:?}");
        assert_eq!(counted.count(name), times, "{class:?}");
    }
    // Another host declares the same machine, whatever was asked before.
    for asked in [false, true] {
        let mut counted = Counted::of(World::new());
        counted.world.bmc_up = !asked;
        while asked && counted.count(name) == 0 {
            counted.rounds(1);
        }
        counted.world.rival(Some((State::Available, true)));
        counted.rounds(30);
        assert!(is_refused(&counted));
        assert_eq!(counted.count(name), u64::from(asked));
    }
}

#[test]
fn secrets_that_an_image_waits_for_count_by_their_kind() {
    type Pick = fn(&mut World) -> &mut SecretSeen;
    let kinds: [(&str, &str, Pick); 4] = [
        ("userData", "user", |world| &mut world.secrets.user_data),
        ("networkData", "network", |world| &mut world.secrets.network_data),
        ("metaData", "meta", |world| &mut world.secrets.meta_data),
        ("preprovisioningNetworkData", "before", |world| {
            &mut world.secrets.preprovisioning
        }),
    ];
    for (kind, called, secret_of) in kinds {
        // As upstream has it.
        let counted_as = if kind == "preprovisioningNetworkData" {
            "networkData"
        } else {
            kind
        };
        let name = &format!(r#"host_config_data_error_total{{host_data_type="{counted_as}"}}"#);
        let mut counted = Counted::of(at(State::Available));
        let spec = match kind {
            "preprovisioningNetworkData" => json!({"preprovisioningNetworkDataName": called}),
            _ => json!({kind: {"name": called}}),
        };
        counted.world.patch(&json!({"spec": spec}));
        *secret_of(&mut counted.world) = bad(SecretState::Missing);
        counted.rounds(30);
        assert_eq!(counted.count(name), 0, "nothing waits for it");
        counted.world.set_image(Some(IMAGE));
        counted.rounds(30);
        assert_eq!(counted.count(name), 1, "{kind}");
        *secret_of(&mut counted.world) = secret("7", called);
        counted.rounds(60);
        assert_eq!(counted.world.state(), State::Provisioned);
        assert_eq!(counted.count(name), 1, "{kind}");
    }
}

#[test]
fn a_secret_that_nothing_waits_for_does_not_count_whatever_the_host_waits_for() {
    let of = |kind: &str| format!(r#"host_config_data_error_total{{host_data_type="{kind}"}}"#);
    // Its place is taken by that of the operating system.
    let mut counted = Counted::of(at(State::Available));
    counted.world.patch(&json!({"spec": {
        "networkData": {"name": "network"},
        "preprovisioningNetworkDataName": "before",
    }}));
    counted.world.secrets.network_data = secret("7", "network");
    counted.world.secrets.preprovisioning = bad(SecretState::Missing);
    counted.world.slot = false;
    counted.world.set_image(Some(IMAGE));
    counted.rounds(30);
    assert_eq!(counted.count(&of("networkData")), 0);
    // It was told, and what the host waits for then is something else.
    let mut counted = Counted::of(at(State::Available));
    counted.world.name_user_data();
    counted.world.secrets.user_data = bad(SecretState::Missing);
    counted.world.set_image(Some(IMAGE));
    counted.rounds(30);
    assert_eq!(counted.count(&of("userData")), 1);
    counted.world.patch(&json!({"spec": {"online": false}}));
    counted.rounds(30);
    assert_eq!(counted.count(&of("userData")), 1);
}

#[test]
fn what_goes_wrong_waits_or_has_no_bmc_counts_once() {
    let of_host = r#"{namespace="metal",host="host-1"}"#;
    let mut counted = Counted::of(at(State::Available));
    counted.world.failing_writes = 1;
    counted.world.set_image(Some(IMAGE));
    counted.rounds(300);
    assert_eq!(counted.world.state(), State::Provisioned);
    assert_eq!(
        counted.count(r#"host_error_total{error_type="ProvisioningError"}"#),
        1
    );

    let mut counted = Counted::of(at(State::Available));
    counted.world.slot = false;
    counted.world.set_image(Some(IMAGE));
    counted.rounds(30);
    counted.world.slot = true;
    counted.rounds(300);
    assert_eq!(counted.world.state(), State::Provisioned);
    counted.world.set_image(None);
    counted.world.slot = false;
    counted.rounds(30);
    for (what, times) in [
        ("delayed__provisioning", 1),
        ("delayed_provisioning", 1),
        ("delayed__deprovisioning", 1),
        ("delayed_deprovisioning", 1),
    ] {
        assert_eq!(counted.count(&format!("{what}_total{of_host}")), times, "{what}");
    }

    let mut counted = Counted::of(World::new());
    counted.world.host().spec.bmc = None;
    counted.rounds(10);
    assert_eq!(counted.count("host_unmanaged_total"), 1);
}

#[test]
fn what_a_deletion_leaves_out_is_counted() {
    let left_out = |counted: &Counted| {
        [
            counted.count("delete_without_deprovisioning_total"),
            counted.count("delete_without_powering_off_total"),
            counted.count("delete_delayed_for_detached_total"),
        ]
    };
    // All is done.
    let mut counted = Counted::of(at(State::Provisioned));
    counted.world.delete();
    counted.rounds(200);
    assert!(counted.world.host.is_none());
    assert_eq!(left_out(&counted), [0, 0, 0]);
    // Nothing can be done.
    let mut counted = Counted::of(at(State::Provisioned));
    counted.world.secrets.bmc = bad(SecretState::Missing);
    counted.world.delete();
    counted.rounds(200);
    assert_eq!(left_out(&counted), [1, 1, 0]);
    // It is protected, so that it keeps its data, and goes off.
    let mut counted = Counted::of(at(State::Provisioned));
    counted
        .world
        .annotate(muster_proto::kinds::PROTECTED_ANNOTATION, "");
    counted.world.delete();
    counted.rounds(200);
    assert!(counted.world.host.is_none());
    assert_eq!(left_out(&counted), [1, 0, 0]);
    // A machine that must not be off.
    let mut counted = Counted::of(at(State::Available));
    counted.world.host().spec.disable_power_off = Some(true);
    counted.world.delete();
    counted.rounds(200);
    assert_eq!(left_out(&counted), [0, 1, 0]);
    // One that is detached and is to wait.
    let mut counted = Counted::of(at(State::Provisioned));
    counted
        .world
        .annotate(DETACHED_ANNOTATION, r#"{"deleteAction":"delay"}"#);
    counted.rounds(10);
    counted.world.delete();
    counted.rounds(50);
    assert!(counted.world.host.is_some());
    assert_eq!(left_out(&counted), [0, 0, 1]);
    // One that nobody took up has nothing that could be left out.
    let mut counted = Counted::of(at(State::Registering));
    counted.world.delete();
    counted.rounds(50);
    assert_eq!(left_out(&counted), [0, 0, 0]);
}
