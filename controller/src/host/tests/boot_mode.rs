//! The mode in which a machine boots: that of the spec, or its own.

use muster_proto::{
    inventory::BootMode,
    kinds::{HostBootMode, REBOOT_ANNOTATION},
};

use super::{
    super::State,
    life::waiting,
    transitions::at,
    world::{Content, IMAGE, World},
};
use crate::bmc::{Mode, WantedMode};

#[test]
fn a_machine_boots_in_the_mode_of_the_spec_or_else_in_the_one_that_it_was_found_in() {
    use WantedMode::{Preferred, Required};
    let (uefi, legacy) = (Some(HostBootMode::Uefi), Some(HostBootMode::Legacy));
    for (asked, found, told, shown) in [
        (
            None,
            BootMode::Bios,
            [Mode::Uefi, Mode::Legacy].map(Preferred),
            legacy,
        ),
        (None, BootMode::Uefi, [Preferred(Mode::Uefi); 2], uefi),
        (uefi, BootMode::Bios, [Required(Mode::Uefi); 2], uefi),
        (legacy, BootMode::Uefi, [Required(Mode::Legacy); 2], legacy),
    ] {
        let mut world = World::new();
        world.host().spec.boot_mode = asked;
        world.mode = found;
        for told in told {
            world.set_image(None);
            world.reach(State::Available);
            assert_eq!(world.machine.mode.take(), Some(told), "{asked:?}, {found:?}");
            let status = world.host().status.clone().unwrap();
            assert_eq!(status.provisioning.boot_mode, shown, "{asked:?}, {found:?}");
            world.set_image(Some(IMAGE));
            world.reach(State::Provisioned);
            assert_eq!(world.machine.mode, None, "the ramdisk runs");
            world.settle();
        }
    }
}

fn runs_in(world: &World) -> BootMode {
    let status = world.server.as_ref().unwrap().status.as_ref().unwrap();
    status.inventory.as_ref().unwrap().unpack().boot.mode
}

#[test]
fn no_image_is_written_by_a_ramdisk_in_another_mode_than_is_asked_for_and_a_bmc_can_change_that() {
    for (found, asked, then) in [
        (BootMode::Bios, HostBootMode::Uefi, BootMode::Uefi),
        (BootMode::Uefi, HostBootMode::Legacy, BootMode::Bios),
    ] {
        let mut world = World::new();
        world.mode = found;
        world.reach(State::Available);
        let boots = world.machine.boots;
        world.host().spec.boot_mode = Some(asked);
        world.set_image(Some(IMAGE));
        world.settle();
        assert_eq!((world.state(), world.machine.boots), (State::Available, boots));
        let told = world.host().status.clone().unwrap().error_message;
        assert!(
            told.contains("have its BMC reboot it in the requested mode"),
            "{told}"
        );
        world.annotate(REBOOT_ANNOTATION, r#"{"force": true}"#);
        world.reach_job();
        assert_eq!(runs_in(&world), then);
        assert_eq!(world.machine.cleans + world.machine.writes.len(), 0);
        world.reach(State::Provisioned);
        assert_eq!(world.machine.writes.len(), 1);
    }
}

#[test]
fn a_machine_that_comes_up_in_its_own_mode_waits_for_a_person_before_anything_is_destroyed() {
    let mut world = at(State::Available);
    world.keeps_mode = true;
    world.disconnect();
    world.host().spec.boot_mode = Some(HostBootMode::Uefi);
    world.set_image(Some(IMAGE));
    world.settle();
    let boots = world.machine.boots;
    assert_eq!(world.state(), State::Provisioning);
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Refused", "{message}");
    assert!(message.contains("spec.bootMode asks for UEFI"), "{message}");
    assert_eq!(world.machine.cleans + world.machine.writes.len(), 0);
    // Whose connection breaks for a moment says the same, and no more.
    let writes = world.status_writes;
    world.disconnect();
    world.tick(15);
    world.call_back();
    world.settle();
    assert_eq!((world.machine.boots, world.status_writes), (boots, writes));
    // Somebody has it booted as it was asked for.
    world.keeps_mode = false;
    world.annotate(REBOOT_ANNOTATION, r#"{"force": true}"#);
    world.reach(State::Provisioned);
    assert_eq!(runs_in(&world), BootMode::Uefi);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}

#[test]
fn after_a_report_of_another_mode_a_job_that_was_made_by_the_one_before_is_given_to_nobody() {
    let mut world = World::new();
    world.mode = BootMode::Uefi;
    world.host().spec.boot_mode = Some(HostBootMode::Uefi);
    world.reach(State::Available);
    world.set_image(Some(IMAGE));
    world.reach_job();
    world.change_inventory(|inventory| inventory.boot.mode = BootMode::Bios);
    world.settle();
    assert_eq!(waiting(&world).0, "Refused");
    assert_eq!(world.machine.cleans + world.machine.writes.len(), 0);
    world.host().spec.boot_mode = None;
    world.reach(State::Provisioned);
}

#[test]
fn a_forced_reboot_of_a_machine_that_must_not_be_off_tells_its_bmc_the_mode_too() {
    let mut world = at(State::Available);
    world.machine.mode = None;
    world.host().spec.boot_mode = Some(HostBootMode::Uefi);
    world.host().spec.disable_power_off = Some(true);
    world.annotate(REBOOT_ANNOTATION, r#"{"force": true}"#);
    world.settle();
    assert_eq!(runs_in(&world), BootMode::Uefi);
    assert_eq!(world.machine.mode, Some(WantedMode::Required(Mode::Uefi)));
}

#[test]
fn without_a_bmc_a_person_has_to_change_the_mode() {
    let mut world = World::in_band();
    world.reach(State::Available);
    let boots = world.machine.boots;
    world.host().spec.boot_mode = Some(HostBootMode::Uefi);
    world.set_image(Some(IMAGE));
    world.settle();
    assert_eq!(world.state(), State::Available);
    let told = world.host().status.clone().unwrap().error_message;
    assert!(told.contains("change the boot mode in its firmware"), "{told}");
    assert_eq!(world.machine.boots, boots);
    world.change_inventory(|inventory| inventory.boot.mode = BootMode::Uefi);
    world.reach(State::Provisioned);
}
