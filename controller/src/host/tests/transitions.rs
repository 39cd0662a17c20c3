//! Every way of the table is taken, and from every state a deletion ends.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use muster_proto::kinds::{
    DETACHED_ANNOTATION, HARDWARE_ANNOTATION, IN_BAND_ANNOTATION, INSPECT_ANNOTATION, InspectionMode,
    PAUSED_ANNOTATION, RootDeviceHints,
};

use super::{
    super::{
        State,
        observed::{Bmc, SecretState},
        plan::HARDWARE_FINALIZER,
        table::TRANSITIONS,
    },
    life::waiting,
    world::{IMAGE, UID, World, secret},
};

/// A world whose host came to `state` by itself.
pub(super) fn at(state: State) -> World {
    let mut world = World::new();
    match state {
        State::New => return world,
        State::Unmanaged => world.host().spec.bmc = None,
        State::Provisioning | State::Provisioned => world.set_image(Some(IMAGE)),
        State::ExternallyProvisioned => world.host().spec.externally_provisioned = Some(true),
        State::Deprovisioning => {
            world.set_image(Some(IMAGE));
            world.reach(State::Provisioned);
            world.settle();
            world.set_image(None);
        }
        State::PoweringOffBeforeDelete | State::Deleting => {
            world.reach(State::Available);
            world.delete();
        }
        State::Foreign => {
            world.reach(State::Available);
            "hibernating".clone_into(&mut world.host().status.as_mut().unwrap().provisioning.state);
            return world;
        }
        _ => {}
    }
    world.reach(state);
    world
}

/// Makes happen what the table says takes a host from `from` to `to`.
fn trigger(world: &mut World, from: State, to: State) {
    match (from, to) {
        (State::New, State::Unmanaged) => world.host().spec.bmc = None,
        (State::Unmanaged, State::Registering) => world.annotate(IN_BAND_ANNOTATION, "segment"),
        (State::Registering, State::Preparing) => {
            world.host().spec.inspection_mode = Some(InspectionMode::Disabled);
        }
        (State::Registering | State::Preparing | State::Available, State::ExternallyProvisioned) => {
            world.host().spec.externally_provisioned = Some(true);
        }
        (State::Available, State::Inspecting) => world.annotate(INSPECT_ANNOTATION, ""),
        (State::Available, State::Preparing) => {
            world.host().spec.root_device_hints = Some(Box::new(RootDeviceHints {
                serial_number: Some("serial-sda".to_owned()),
                ..RootDeviceHints::default()
            }));
        }
        (State::Available, State::Provisioning) => world.set_image(Some(IMAGE)),
        (State::Provisioning, State::Deprovisioning) => world.failing_jobs = 1,
        (State::Provisioned, State::Deprovisioning) => world.set_image(None),
        (State::ExternallyProvisioned, State::Provisioned) => {
            world.host().spec.externally_provisioned = None;
            world.set_image(Some(IMAGE));
        }
        (State::Deprovisioning, State::PoweringOffBeforeDelete) => world.delete(),
        (State::New | State::Foreign, State::Deleting) => {
            if from == State::New {
                let finalizer = super::super::plan::FINALIZER.to_owned();
                world.host().metadata.finalizers = Some(vec![finalizer]);
            }
            world.delete();
        }
        (State::PoweringOffBeforeDelete, State::Deleting) => {}
        (_, State::Deleting) => {
            world.secrets.bmc.state = SecretState::Missing;
            world.delete();
        }
        (_, State::PoweringOffBeforeDelete) => world.delete(),
        _ => {}
    }
}

#[test]
fn every_way_of_the_table_is_taken() {
    for way in TRANSITIONS {
        let mut world = at(way.from);
        world.states = vec![way.from];
        trigger(&mut world, way.from, way.to);
        for _ in 0..300 {
            if world.states.len() > 1 {
                break;
            }
            world.round();
        }
        assert_eq!(world.states.get(1), Some(&way.to), "{} -> {}", way.from, way.to);
    }
}

#[test]
fn the_table_has_no_way_twice() {
    for (at, way) in TRANSITIONS.iter().enumerate() {
        let again = TRANSITIONS.iter().skip(at + 1);
        assert!(
            !again
                .into_iter()
                .any(|other| other.from == way.from && other.to == way.to)
        );
    }
}

#[test]
fn from_every_state_a_deletion_ends_whatever_can_be_reached() {
    let all = State::ALL.into_iter().chain([State::Foreign]);
    for state in all {
        for obstacle in 0..8 {
            let mut world = at(state);
            let finalizer = super::super::plan::FINALIZER.to_owned();
            world.host().metadata.finalizers = Some(vec![finalizer]);
            world.restart();
            match obstacle {
                0 => {}
                1 => world.bmc_up = false,
                2 => world.secrets.bmc.state = SecretState::Missing,
                3 => world.secrets.bmc.state = SecretState::Invalid("no password".to_owned()),
                4 => world.host().spec.bmc = None,
                // The one edge that it reaches is gone for good: whatever it is told, and whatever it boots, nobody hears of it.
                5 => {
                    world.forsaken = true;
                    world.machine.deaf = true;
                    world.machine.mute = true;
                }
                // The machine is lost, and nothing but its BMC answers.
                6 => {
                    world.server = None;
                    world.machine.network_first = false;
                    world.failing_jobs = usize::MAX;
                }
                // It names another Secret, which nobody may mark.
                _ => {
                    world.secrets.bmc = secret("2", "b");
                    world.refuses_marks = true;
                }
            }
            if obstacle == 4 {
                world.annotate(IN_BAND_ANNOTATION, "segment");
            }
            world.delete();
            world.until(&format!("gone from {state}, obstacle {obstacle}"), |world| {
                world.host.is_none()
            });
            assert!(!world.secrets.bmc.finalizer);
            assert_eq!(world.bmc, Bmc::default());
        }
    }
}

#[test]
fn words_of_older_versions_are_understood() {
    for (word, state) in [("ready", State::Available), ("match profile", State::Preparing)] {
        assert_eq!(State::parse(word), state);
    }
    for state in State::ALL {
        assert_eq!(State::parse(state.name()), state);
    }
}

#[test]
fn what_comes_after_the_registration_is_said_as_it_is() {
    type Case = (fn(&mut World), &'static str);
    let cases: [Case; 3] = [
        (|_| {}, "next: the host is inspected"),
        (
            |world| world.host().spec.inspection_mode = Some(InspectionMode::Disabled),
            "next: the host is prepared without inspection",
        ),
        (
            |world| world.host().spec.externally_provisioned = Some(true),
            "next: the host is externally provisioned",
        ),
    ];
    for (choose, next) in cases {
        let mut world = World::new();
        choose(&mut world);
        world.reach(State::Registering);
        let (reason, message) = waiting(&world);
        assert_eq!(reason, "Bmc");
        assert!(message.contains(next), "{message}");
    }
}

#[test]
fn a_state_of_a_newer_version_is_left_alone() {
    let world = at(State::Foreign);
    let plan = world.plan();
    assert!(plan.status.is_none() && plan.effects.is_empty() && plan.metadata.is_empty());
}

#[test]
fn a_detached_host_is_deleted_as_it_is_unless_it_is_to_wait() {
    let mut world = at(State::Provisioned);
    world.settle();
    world.annotate(DETACHED_ANNOTATION, r#"{"deleteAction":"delay"}"#);
    world.settle();
    world.delete();
    world.settle();
    assert_eq!(world.state(), State::Provisioned);
    world.annotate(DETACHED_ANNOTATION, "");
    world.until("gone", |world| world.host.is_none());
    assert!(world.machine.on && world.machine.cleans == 1);
    // Whatever is being done to it, as upstream has it.
    for state in [
        State::Registering,
        State::Inspecting,
        State::Provisioning,
        State::Deprovisioning,
    ] {
        let mut world = at(state);
        let (on, cleans) = (world.machine.on, world.machine.cleans);
        world.annotate(DETACHED_ANNOTATION, r#"{"deleteAction":"delay"}"#);
        world.delete();
        world.settle();
        assert_eq!(world.state(), state, "it waits");
        world.annotate(DETACHED_ANNOTATION, "");
        world.until("gone", |world| world.host.is_none());
        assert_eq!(
            (world.machine.on, world.machine.cleans),
            (on, cleans),
            "{state:?}"
        );
    }
}

#[test]
fn hardware_that_a_former_host_of_the_name_left_becomes_the_hosts_own_or_is_made_anew() {
    let owner_of = |world: &World| {
        let data = world.hardware.as_ref().unwrap();
        let owners = data.metadata.owner_references.clone().unwrap_or_default();
        owners.into_iter().map(|owner| owner.uid).collect::<Vec<_>>()
    };
    let known = at(State::Available).hardware.unwrap();
    let mut orphaned = known.clone();
    orphaned.metadata.owner_references = None;
    let mut anothers = known.clone();
    anothers.metadata.owner_references.as_mut().unwrap()[0].uid = "a former one".to_owned();
    for left in [&orphaned, &anothers] {
        let mut world = World::new();
        world.hardware = Some(left.clone());
        world.reach(State::Available);
        assert_eq!(owner_of(&world), [UID]);
    }

    // What it says is of another machine, and keeps out no annotation.
    let mut world = World::new();
    world.hardware = Some(anothers.clone());
    world.host().spec.inspection_mode = Some(InspectionMode::Disabled);
    world.annotate(HARDWARE_ANNOTATION, r#"{"hostname":"by-hand"}"#);
    world.reach(State::Available);
    let hardware = world
        .host()
        .status
        .as_ref()
        .unwrap()
        .hardware
        .as_ref()
        .unwrap()
        .unpack();
    assert_eq!(hardware.hostname.as_deref(), Some("by-hand"));

    // One that is going is waited for, and another operator's finalizer holds it no longer.
    let mut going = anothers;
    going.metadata.deletion_timestamp = Some(Time("2026-01-01T00:00:00Z".parse().unwrap()));
    going.metadata.finalizers = Some(vec![HARDWARE_FINALIZER.to_owned()]);
    let mut world = World::new();
    world.hardware = Some(going);
    let is_held = |world: &World| world.hardware.as_ref().unwrap().metadata.finalizers.is_some();
    world.until("let go", |world| !is_held(world));
    (0..5).for_each(|_| world.round());
    assert_eq!(world.state(), State::Inspecting);
    assert!(
        waiting(&world).1.contains("a previous host"),
        "{:?}",
        waiting(&world)
    );
    world.hardware = None;
    world.reach(State::Available);
    assert_eq!(owner_of(&world), [UID]);
}

#[test]
fn hardware_data_that_is_lost_is_stored_again_by_what_the_status_says() {
    for state in [State::Available, State::Provisioned] {
        let mut world = at(state);
        world.settle();
        let (before, boots) = (world.hardware.take(), world.machine.boots);
        // Not while the host is out of our hands.
        for name in [PAUSED_ANNOTATION, DETACHED_ANNOTATION] {
            world.annotate(name, "");
            world.settle();
            assert_eq!(world.hardware, None, "{state}: {name}");
            world.unannotate(name);
        }
        world.settle();
        assert!(world.hardware.is_some());
        assert_eq!(
            (&world.hardware, world.machine.boots),
            (&before, boots),
            "{state}"
        );
        // It is to go with the host.
        world.hardware = None;
        world.delete();
        world.until("gone", |world| world.host.is_none());
        assert_eq!(world.hardware, None, "{state}");
    }

    // What an annotation tells, or may tell, is not kept out by it.
    let mut inspected = at(State::Available);
    inspected.settle();
    inspected.hardware = None;
    inspected.host().spec.inspection_mode = Some(InspectionMode::Disabled);
    let mut external = World::new();
    external.host().spec.externally_provisioned = Some(true);
    external.annotate(HARDWARE_ANNOTATION, r#"{"hostname":"by-hand"}"#);
    for mut world in [inspected, external] {
        world.settle();
        assert!(world.host().status.as_ref().unwrap().hardware.is_some());
        assert_eq!(world.hardware, None);
    }
}
