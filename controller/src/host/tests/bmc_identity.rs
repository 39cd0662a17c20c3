//! A BMC that says of itself that it is another machine's.

use muster_proto::{
    inventory::Inventory,
    kinds::{BMC_IDENTITY_ANNOTATION, ErrorType, PROTECTED_ANNOTATION, Packed},
};

use super::{
    super::{BmcCall, Effect, State},
    transitions::at,
    world::{Fault, MAC, World},
};
use crate::bmc::Identity;

/// What the machine's firmware says.
const UUID: &str = "4c4c4544-0000-4000-8000-000000000001";
const ANOTHER: &str = "4c4c4544-0000-4000-8000-000000000002";

fn says(uuid: &str, serial: &str) -> Identity {
    let said = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Identity {
        uuid: said(uuid),
        serial: said(serial),
        ..Identity::default()
    }
}

/// A host of a machine with the serial number `serial`, whose BMC is another one from now on.
fn rewired(mut world: World, serial: &str, bmc: Identity) -> World {
    world.says = bmc;
    let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
    let mut inventory = Inventory::clone(&status.inventory.as_ref().unwrap().unpack());
    inventory.identity.system_serial = Some(serial.to_owned()).filter(|text| !text.is_empty());
    status.inventory = Some(Packed::new(&inventory));
    world.restart();
    world
}

/// So many rounds, in which nobody orders the BMC anything.
fn left_alone(world: &mut World, rounds: usize) {
    for _ in 0..rounds {
        let plan = world.plan();
        for effect in &plan.effects {
            let harmless = matches!(
                effect,
                Effect::Bmc(BmcCall::Probe(_))
                    | Effect::Bmc(BmcCall::Forget)
                    | Effect::HoldSecret { .. }
                    | Effect::ReleaseSecret { .. }
                    | Effect::RemoveJob { .. }
                    | Effect::ReleaseHardware
                    | Effect::ReleaseLeftovers
            );
            assert!(harmless, "{effect:?}");
        }
        world.execute(plan, None, Fault::None);
        world.tick(11);
    }
}

fn error(world: &World) -> (Option<ErrorType>, String) {
    let status = world.host.as_ref().unwrap().status.clone().unwrap();
    (status.error_type, status.error_message)
}

#[test]
fn a_bmc_that_says_that_it_is_another_machine_s_is_not_used_and_both_are_named() {
    for state in [State::Available, State::Provisioned, State::ExternallyProvisioned] {
        let mut world = match state {
            // Its machine was never in our ramdisk.
            State::ExternallyProvisioned => {
                let mut world = at(State::Available);
                world.host().spec.externally_provisioned = Some(true);
                world.reach(state);
                world
            }
            state => at(state),
        };
        world.settle();
        let mut world = rewired(world, "SN-1", says(ANOTHER, "SN-2"));
        world.host().spec.online = false;
        let machine = (world.machine.on, world.machine.boots);
        left_alone(&mut world, 30);
        assert_eq!((world.machine.on, world.machine.boots), machine, "{state}");
        let (kind, message) = error(&world);
        assert_eq!(kind, Some(ErrorType::Registration), "{state}");
        for named in [UUID, ANOTHER, "SN-1", "SN-2", "10.0.0.9", BMC_IDENTITY_ANNOTATION] {
            assert!(message.contains(named), "{named}: {message}");
        }
        // Somebody puts the cable where it belongs: it is looked at again by itself.
        world.says = says(UUID, "SN-1");
        world.until("it is off", |world| !world.machine.on);
        world.settle();
        assert_eq!(error(&world).0, None, "{state}");
    }
}

#[test]
fn a_host_behind_another_machine_s_bmc_can_be_deleted_and_that_machine_stays_as_it_is() {
    for protected in [false, true] {
        let mut world = at(State::Provisioned);
        world.settle();
        let mut world = rewired(world, "SN-1", says(ANOTHER, "SN-2"));
        if protected {
            world.annotate(PROTECTED_ANNOTATION, "");
        }
        let machine = (world.machine.on, world.machine.boots, world.machine.cleans);
        world.delete();
        for _ in 0..500 {
            left_alone(&mut world, 1);
            world.tick(600);
        }
        assert!(world.host.is_none());
        assert_eq!(
            (world.machine.on, world.machine.boots, world.machine.cleans),
            machine
        );
    }
}

#[test]
fn what_is_unknown_unfilled_or_agrees_in_one_value_is_no_other_machine() {
    let mut with_nic = says(ANOTHER, "SN-2");
    with_nic.macs = Some(vec![MAC.parse().unwrap()]);
    // As Dell has it: SMBIOS knows the service tag.
    let mut with_tag = says("", "CN-77");
    with_tag.sku = Some("sn-1".to_owned());
    let (same, swapped) = (UUID, "44454c4c-0000-0040-8000-000000000001");
    for (serial, bmc, refused) in [
        ("SN-1", says("", ""), false),
        ("SN-1", says(same, ""), false),
        ("SN-1", says(swapped, "SN-2"), false),
        ("SN-1", says(ANOTHER, "sn-1"), false),
        ("SN-1", with_nic, false),
        ("SN-1", with_tag, false),
        ("", says("", "SN-2"), false),
        ("To be filled by O.E.M.", says("", "SN-2"), false),
        ("SN-1", says("", "SN-2"), true),
        ("SN-1", says(ANOTHER, ""), true),
        ("", says(ANOTHER, "SN-2"), true),
    ] {
        let mut world = rewired(at(State::Available), serial, bmc.clone());
        for _ in 0..5 {
            world.round();
        }
        let (kind, message) = error(&world);
        assert_eq!(kind.is_some(), refused, "{serial} and {bmc:?}: {message}");
    }
}

#[test]
fn a_person_may_say_that_a_bmc_with_another_name_is_the_machine_s() {
    let mut world = rewired(at(State::Available), "SN-1", says(ANOTHER, "SN-2"));
    world.annotate(BMC_IDENTITY_ANNOTATION, "SN-3");
    left_alone(&mut world, 10);
    assert!(error(&world).0.is_some(), "that is a third one");
    world.annotate(BMC_IDENTITY_ANNOTATION, &ANOTHER.to_uppercase());
    world.host().spec.online = false;
    world.until("it is off", |world| !world.machine.on);
    world.settle();
    assert_eq!(error(&world).0, None);
}
