//! Taking over: hosts as another operator of the same kinds left them, in every state and with every error that it writes.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use muster_proto::kinds::{
    BareMetalHostStatus, CustomDeploy, ErrorType, Image, OperationalStatus, RootDeviceHints,
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    super::{
        BmcCall, Effect, State, conditions,
        observed::{SecretSeen, SecretState},
        plan::FINALIZER,
    },
    life::waiting,
    world::{Content, Fault, IMAGE, MAC, UID, World, secret},
};
use crate::patch::merge;

const RECORDED: &str = include_str!("../../../../tests/tests/life_takeover/metal3.yaml");

#[derive(Deserialize)]
struct Recorded {
    host: Value,
    hardware: Value,
    hosts: Vec<Left>,
}

#[derive(Deserialize)]
struct Left {
    name: String,
    end: End,
    #[serde(default)]
    without: Vec<String>,
    #[serde(default)]
    deleted: bool,
    patch: Value,
}

/// What becomes of a host.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum End {
    /// It is at rest in this state, and nothing is ever done to its machine.
    Rests(String),
    /// It gets to this state through the ramdisk, and so is done to its disk.
    Comes { state: String, disks: Vec<Work> },
    /// It goes, and so is done to its disk.
    Goes(Vec<Work>),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Work {
    Clean,
    Write,
}

/// What is on a disk on which these were done, one after the other.
fn content(works: &[Work]) -> Content {
    match works.last() {
        None => Content::Old,
        Some(Work::Clean) => Content::Blank,
        Some(Work::Write) => Content::Image(IMAGE.trim_end_matches(".zst").to_owned()),
    }
}

fn recorded() -> Recorded {
    serde_saphyr::from_str(RECORDED).unwrap()
}

/// The world on the day on which the operators are exchanged.
fn world(recorded: &Recorded, left: &Left) -> World {
    let mut world = World::new();
    let mut host = recorded.host.clone();
    merge(&mut host, &left.patch);
    let metadata = &mut host["metadata"];
    metadata["name"] = "host-1".into();
    metadata["namespace"] = "metal".into();
    metadata["uid"] = UID.into();
    host["spec"]["bootMACAddress"] = MAC.to_uppercase().into();
    *world.host() = serde_json::from_value(host).unwrap();
    let now = world.now;
    if left.deleted {
        world.host().metadata.deletion_timestamp = Some(Time(now));
    }
    let has = |what: &str| !left.without.iter().any(|name| name == what);
    if has("hardware") {
        world.hardware = Some(serde_json::from_value(recorded.hardware.clone()).unwrap());
    }
    world.secrets.user_data = secret("7", "user");
    world.secrets.bmc = SecretSeen {
        state: match has("secret") {
            true => secret("4711", "a").state,
            false => SecretState::Unnamed,
        },
        held: true,
        finalizer: has("secret"),
        going: false,
    };
    let status = world.host().status.clone().unwrap_or_default();
    world.machine.on = status.powered_on;
    world.states = vec![world.state()];
    world
}

fn each(mut act: impl FnMut(&Left, World)) {
    let recorded = recorded();
    for left in &recorded.hosts {
        act(left, world(&recorded, left));
    }
}

fn only(name: &str) -> World {
    let recorded = recorded();
    let left = recorded.hosts.iter().find(|left| left.name == name).unwrap();
    world(&recorded, left)
}

#[test]
fn every_state_and_every_error_of_upstream_is_among_the_recorded_hosts() {
    let mut states = std::collections::BTreeSet::new();
    let mut errors = Vec::new();
    let mut statuses = Vec::new();
    each(|_, mut world| {
        let status = world.host().status.clone().unwrap_or_default();
        states.insert(status.provisioning.state);
        errors.extend(status.error_type);
        statuses.push(status.operational_status);
    });
    let known = State::ALL
        .map(State::name)
        .into_iter()
        .chain(["ready", "match profile"]);
    let known: std::collections::BTreeSet<String> = known.map(str::to_owned).collect();
    assert_eq!(states, known);
    for error in [
        ErrorType::ProvisionedRegistration,
        ErrorType::Registration,
        ErrorType::Inspection,
        ErrorType::Preparation,
        ErrorType::Provisioning,
        ErrorType::PowerManagement,
        ErrorType::Servicing,
    ] {
        assert!(errors.contains(&error), "{error:?}");
    }
    for status in [
        OperationalStatus::Ok,
        OperationalStatus::Discovered,
        OperationalStatus::Error,
        OperationalStatus::Delayed,
        OperationalStatus::Detached,
        OperationalStatus::Servicing,
    ] {
        assert!(statuses.contains(&status), "{status:?}");
    }
}

#[test]
fn nothing_is_done_to_a_machine_that_is_as_it_should_be() {
    // Without trouble; with a BMC that is silent at first; with a process that begins anew again and again.
    for trouble in 0..3 {
        each(|left, mut world| {
            let End::Rests(state) = &left.end else { return };
            let before = (world.machine.on, world.machine.disk.clone());
            world.bmc_up = trouble != 1;
            for round in 0..300 {
                let plan = world.plan();
                let harmless = |effect: &Effect| {
                    matches!(
                        effect,
                        Effect::Bmc(BmcCall::Probe(_))
                            | Effect::Bmc(BmcCall::ReadPower)
                            | Effect::HoldSecret { .. }
                    )
                };
                assert!(plan.effects.iter().all(harmless), "{}: {plan:?}", left.name);
                world.execute(plan, None, Fault::None);
                world.tick(11);
                match (trouble, round) {
                    (1, 60) => world.bmc_up = true,
                    (2, _) if round % 7 == 0 => world.restart(),
                    _ => {}
                }
            }
            world.settle();
            let machine = &world.machine;
            assert_eq!((machine.on, machine.disk.clone()), before, "{}", left.name);
            assert_eq!((machine.boots, machine.cleans, machine.writes.len()), (0, 0, 0));
            let status = world.host().status.clone().unwrap();
            assert_eq!(status.provisioning.state, *state, "{}", left.name);
            match left.name.as_str() {
                "available-given-up" => assert_eq!(status.error_type, Some(ErrorType::Provisioning)),
                "provisioned-paused" => assert_eq!(world.status_writes, 0),
                "provisioned-detached" => {
                    assert_eq!(status.operational_status, OperationalStatus::Detached);
                }
                "unmanaged" => assert_eq!(status.operational_status, OperationalStatus::Discovered),
                name => {
                    assert_eq!(status.operational_status, OperationalStatus::Ok, "{name}");
                    assert_eq!(
                        (status.error_type, status.error_message.as_str()),
                        (None, ""),
                        "{name}"
                    );
                }
            }
        });
    }
}

#[test]
fn what_was_interrupted_is_done_and_what_was_deleted_goes() {
    each(|left, mut world| {
        let name = &left.name;
        let begun = world.now;
        match &left.end {
            End::Rests(_) => {}
            End::Comes { state, disks } => {
                world.until(state, |world| world.state() == State::parse(state));
                // What failed in other hands is tried at once, however often it did; an attempt that is taken back pauses before the next.
                let took = world.now.duration_since(begun);
                let most = SignedDuration::from_mins(if name == "provisioning-failed" { 30 } else { 15 });
                assert!(took < most, "{name}: {took}");
                world.settle();
                assert_eq!(world.machine.disk, content(disks), "{name}");
                let status = world.host().status.clone().unwrap();
                assert_eq!(status.operational_status, OperationalStatus::Ok, "{name}");
                assert!(status.error_type.is_none() && status.hardware.is_some(), "{name}");
            }
            End::Goes(disks) => {
                world.until("gone", |world| world.host.is_none());
                assert_eq!(world.machine.disk, content(disks), "{name}");
                assert!(!world.machine.on, "{name}");
                assert!(!world.secrets.bmc.finalizer, "{name}: the Secret is let go");
                let data = world.hardware.and_then(|data| data.metadata.finalizers);
                assert_eq!(data, None, "{name}: the HardwareData is let go");
            }
        }
    });
}

#[test]
fn what_another_operator_needs_to_go_on_is_left_in_every_host() {
    each(|left, mut world| {
        let name = &left.name;
        let before = world.host().status.clone().unwrap_or_default();
        match &left.end {
            End::Rests(_) => {}
            End::Comes { state, .. } => world.until(state, |world| world.state() == State::parse(state)),
            End::Goes(_) => return,
        }
        world.settle();
        let host = world.host();
        assert_eq!(
            host.metadata.finalizers.as_deref(),
            Some(&[FINALIZER.to_owned()][..])
        );
        let status = host.status.clone().unwrap();
        let history = status.operation_history.clone().unwrap();
        if name == "unmanaged" {
            assert!(status.provisioning.id.is_empty());
            return;
        }
        let id = match before.provisioning.id.as_str() {
            "" => UID,
            id => id,
        };
        assert_eq!(status.provisioning.id, id, "{name}");
        assert!(status.provisioning.boot_mode.is_some(), "{name}");
        assert!(status.last_updated.is_some(), "{name}");
        assert_eq!(status.good_credentials, status.tried_credentials, "{name}");
        assert!(
            status
                .good_credentials
                .is_some_and(|good| good.credentials.is_some())
        );
        let register = history.register.unwrap();
        assert!(register.start.is_some() && register.end.is_some(), "{name}");
        let image = status
            .provisioning
            .image
            .map(|image| image.url)
            .unwrap_or_default();
        let custom = status.provisioning.custom_deploy;
        match status.provisioning.state.as_str() {
            "provisioned" => assert!(custom.is_some() || !image.is_empty(), "{name}"),
            "available" => assert!(custom.is_none() && image.is_empty(), "{name}"),
            _ => {}
        }
    });
}

/// Status and reason of upstream's conditions but for the machine's health.
fn conditions_of(status: &BareMetalHostStatus) -> Vec<(&str, &str, &str)> {
    let kinds = [
        "Manageable",
        "AvailableForProvisioning",
        "Provisioned",
        "Ready",
        "Progressing",
    ];
    let mut found = Vec::new();
    for kind in kinds {
        let one = status.conditions.iter().find(|one| one.type_ == kind);
        found.extend(one.map(|one| (kind, one.status.as_str(), one.reason.as_str())));
    }
    found
}

#[test]
fn conditions_are_as_upstream_wrote_them_for_the_same_status() {
    let mut reasons = std::collections::BTreeSet::new();
    each(|left, mut world| {
        let now = world.now;
        let recorded = world.host().status.clone().unwrap_or_default();
        let before = conditions_of(&recorded);
        if before.is_empty() {
            return;
        }
        let powerless = before.contains(&("Manageable", "False", "PowerFailure"));
        let no_answer = (conditions::POWER_FAILURE, "no answer".to_owned());
        let mut status = BareMetalHostStatus {
            conditions: Vec::new(),
            ..recorded.clone()
        };
        conditions::set(
            &mut status,
            None,
            powerless.then_some(&no_answer),
            None,
            (0, None),
            now,
        );
        let mut expected = before.clone();
        if recorded.error_type == Some(ErrorType::Registration) {
            // Upstream calls a host manageable whose BMC refuses it after it was registered.
            expected[0] = ("Manageable", "False", "RegistrationFailed");
        }
        assert_eq!(conditions_of(&status), expected, "{}", left.name);
        reasons.extend(before.iter().map(|(kind, _, reason)| format!("{kind}: {reason}")));
        // What is at rest stays as it was.
        let well = matches!(
            recorded.operational_status,
            OperationalStatus::Ok | OperationalStatus::Discovered | OperationalStatus::Detached
        );
        if well && matches!(&left.end, End::Rests(state) if *state == recorded.provisioning.state) {
            world.settle();
            let after = world.host().status.clone().unwrap();
            assert_eq!(conditions_of(&after), before, "{} at rest", left.name);
        }
    });
    let reasons: Vec<&str> = reasons.iter().map(String::as_str).collect();
    // Every one that upstream has.
    let all = [
        "AvailableForProvisioning: Available",
        "AvailableForProvisioning: NotAvailable",
        "Manageable: Manageable",
        "Manageable: NotManaged",
        "Manageable: PowerFailure",
        "Manageable: Registering",
        "Manageable: RegistrationFailed",
        "Progressing: Deleting",
        "Progressing: Deprovisioning",
        "Progressing: Detached",
        "Progressing: Inspecting",
        "Progressing: NotProgressing",
        "Progressing: PoweringOffBeforeDelete",
        "Progressing: Preparing",
        "Progressing: Provisioning",
        "Progressing: Registering",
        "Provisioned: NotProvisioned",
        "Provisioned: Provisioned",
        "Ready: Detached",
        "Ready: Error",
        "Ready: NotProvisioned",
        "Ready: Provisioned",
        "Ready: Servicing",
    ];
    assert_eq!(reasons, all);
}

#[test]
fn a_condition_that_stays_as_it_was_keeps_its_time() {
    let mut world = only("provisioned");
    let times = |world: &mut World| {
        let status = world.host().status.clone().unwrap();
        let of = |kind: &str| {
            let mut conditions = status.conditions.iter();
            let found = conditions.find(|condition| condition.type_ == kind).unwrap();
            (found.reason.clone(), found.last_transition_time.clone())
        };
        ["Manageable", "Provisioned", "Ready", "Progressing"].map(of)
    };
    let before = times(&mut world);
    world.settle();
    assert_eq!(times(&mut world), before);
}

#[test]
fn an_interrupted_image_that_cannot_be_written_here_is_left_on_the_disk_until_somebody_decides() {
    let mut world = only("provisioning-qcow2");
    world.settle();
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Refused");
    assert!(message.contains("qcow2"), "{message}");
    let told = world.events.iter().filter(|event| *event == "ProvisioningError");
    assert_eq!(told.count(), 1, "{:?}", world.events);
    // Upstream would take an error of this state for its own failure, and deprovision.
    assert_eq!(world.host().status.as_ref().unwrap().error_type, None);
    world.set_image(None);
    world.reach(State::Available);
    assert_eq!(world.machine.disk, Content::Blank);
}

/// The other operator stores which image it attempted last only when that attempt ends.
#[test]
fn what_was_written_before_is_not_taken_for_what_is_being_written() {
    let mut world = only("provisioning");
    let before = Image {
        url: "http://images.test/before.raw".to_owned(),
        ..Default::default()
    };
    world.host().status.as_mut().unwrap().last_attempted_image = Some(Box::new(before));
    world.round();
    // Nor is what is asked for since then.
    let device_name = Some("/dev/nothing".to_owned());
    let hints = RootDeviceHints {
        device_name,
        ..RootDeviceHints::default()
    };
    world.host().spec.root_device_hints = Some(Box::new(hints));
    world.until("written", |world| {
        assert_ne!(world.state(), State::Deprovisioning);
        world.state() == State::Provisioned
    });
}

#[test]
fn a_detached_or_paused_host_goes_on_where_it_was_once_it_is_let() {
    for (name, annotation) in [
        ("provisioned-detached", muster_proto::kinds::DETACHED_ANNOTATION),
        ("provisioned-paused", muster_proto::kinds::PAUSED_ANNOTATION),
    ] {
        let mut world = only(name);
        world.settle();
        world.unannotate(annotation);
        world.settle();
        assert_eq!((world.state(), world.machine.boots), (State::Provisioned, 0));
        assert_eq!(world.machine.disk, Content::Old);
        let status = world.host().status.clone().unwrap();
        assert_eq!(status.operational_status, OperationalStatus::Ok, "{name}");
    }
}

#[test]
fn what_a_deploy_step_installed_goes_when_the_step_is_removed_and_stays_when_it_is_another_one() {
    let method = |name: &str| {
        let method = name.to_owned();
        Some(Box::new(CustomDeploy { method }))
    };
    for wanted in [None, method(""), method("install_something_else")] {
        let mut world = only("provisioned-by-a-deploy-step");
        world.settle();
        assert_eq!((world.state(), world.machine.boots), (State::Provisioned, 0));
        world.host().spec.custom_deploy.clone_from(&wanted);
        if wanted.as_ref().is_some_and(|custom| !custom.method.is_empty()) {
            // It would be lost for what cannot be.
            world.settle();
            let status = world.host().status.clone().unwrap();
            assert_eq!(
                (world.state(), &world.machine.disk),
                (State::Provisioned, &Content::Old)
            );
            assert_eq!(status.error_type, Some(ErrorType::Provisioning));
            continue;
        }
        world.reach(State::Available);
        world.settle();
        assert_eq!(world.machine.disk, Content::Blank, "{wanted:?}");
        let status = world.host().status.clone().unwrap();
        assert_eq!(
            (world.state(), status.provisioning.custom_deploy),
            (State::Available, None)
        );
    }
}
