//! A machine that its BMC cannot reset into its ramdisk, or does not, is switched off and on.

use muster_proto::kinds::REBOOT_ANNOTATION;

use super::{
    super::{State, plan::PowerOrder, ramdisk::BOOT_DEADLINE},
    transitions::at,
    world::{Content, Fault, IMAGE, World, power_orders},
};

const RESET: &[PowerOrder] = &[PowerOrder::Reset];
const HARD_OFF: &[PowerOrder] = &[PowerOrder::HardOff];

/// How a BMC does not carry out some orders: it knows them not, or accepts them and does nothing.
const SPOILS: [fn(&mut World, &'static [PowerOrder]); 2] = [
    |world, orders| world.unknown_orders = orders,
    |world, orders| world.ignored_orders = orders,
];

/// A host whose image is taken away, while its machine runs that: it is to boot its ramdisk.
fn taken_back() -> World {
    let mut world = at(State::Provisioned);
    world.settle();
    world.set_image(None);
    world
}

/// A host that is available, and whose machine is in its ramdisk no more.
fn out_of_its_ramdisk() -> World {
    let mut world = at(State::Available);
    world.settle();
    world.disconnect();
    world
}

/// The orders on the power that are given until the host is in `state`.
fn orders_to(world: &mut World, state: State) -> Vec<PowerOrder> {
    orders_until(world, |world| world.state() == state)
}

/// The same until so many attempts have failed, and how the last one did.
fn orders_to_failure(world: &mut World, count: i64) -> (Vec<PowerOrder>, String) {
    let orders = orders_until(world, |world| failed(world).0 == count);
    (orders, failed(world).1)
}

/// Rounds until `done`, and the orders on the power that are given meanwhile.
fn orders_until(world: &mut World, done: impl Fn(&World) -> bool) -> Vec<PowerOrder> {
    let mut orders = Vec::new();
    for _ in 0..2000 {
        if done(world) {
            return orders;
        }
        let plan = world.plan();
        orders.extend(power_orders(&plan));
        world.execute(plan, None, Fault::None);
        world.tick(11);
    }
    panic!("never, after {orders:?}: {:?}", world.plan());
}

/// How many attempts have failed, and how the last one did.
fn failed(world: &World) -> (i64, String) {
    let status = world.host.as_ref().unwrap().status.clone().unwrap();
    (status.error_count, status.error_message)
}

#[test]
fn a_machine_whose_bmc_knows_no_reset_is_switched_off_and_on_for_its_ramdisk() {
    let mut world = taken_back();
    world.unknown_orders = RESET;
    let begun = world.now;
    let orders = orders_to(&mut world, State::Available);
    assert_eq!(orders, [PowerOrder::Reset, PowerOrder::HardOff, PowerOrder::On]);
    assert_eq!((failed(&world).0, &world.machine.disk), (0, &Content::Blank));
    assert!(!world.events.contains(&"ProvisioningError".to_owned()));
    assert!(world.now.duration_since(begun).as_mins() < 5);
    assert!(world.machine.ramdisk.is_some(), "and it stays there");
}

/// Nobody says of a machine that has not been switched on yet that its ramdisk did not call in.
#[test]
fn a_machine_whose_bmc_takes_long_to_switch_it_off_and_on_has_its_time_to_call_in_after_that() {
    let mut world = taken_back();
    // As long as a call may take with its wait for a turn.
    (world.unknown_orders, world.bmc_takes) = (RESET, 180);
    let begun = world.now;
    let orders = orders_until(&mut world, |world| !world.machine.on);
    assert_eq!(orders, [PowerOrder::Reset, PowerOrder::HardOff]);
    assert!(world.now.duration_since(begun) > BOOT_DEADLINE);
    assert_eq!(orders_to(&mut world, State::Available), [PowerOrder::On]);
    assert!(!world.events.contains(&"ProvisioningError".to_owned()));
    assert_eq!(world.machine.disk, Content::Blank);
}

#[test]
fn a_machine_that_no_reset_brought_into_its_ramdisk_is_switched_off_and_on_by_the_next_attempt() {
    let expected = [PowerOrder::Reset, PowerOrder::HardOff, PowerOrder::On];
    let mut world = taken_back();
    world.ignored_orders = RESET;
    assert_eq!(orders_to(&mut world, State::Available), expected);
    assert_eq!(world.machine.disk, Content::Blank);
    // What failed to be given an image is cleaned by the next boot.
    let mut world = out_of_its_ramdisk();
    world.settle();
    world.ignored_orders = RESET;
    world.set_image(Some(IMAGE));
    assert_eq!(orders_to(&mut world, State::Provisioned), expected);
}

#[test]
fn a_machine_that_must_not_be_off_is_not_switched_off_for_its_ramdisk_and_its_host_says_what_helps() {
    for spoil in SPOILS {
        let mut world = taken_back();
        world.host().spec.disable_power_off = Some(true);
        spoil(&mut world, RESET);
        let (orders, message) = orders_to_failure(&mut world, 3);
        assert_eq!(orders, [PowerOrder::Reset; 3]);
        assert!(message.contains("spec.disablePowerOff"), "{message}");
        world.host().spec.disable_power_off = None;
        let orders = orders_to(&mut world, State::Available);
        assert_eq!(orders, [PowerOrder::HardOff, PowerOrder::On]);
    }
}

#[test]
fn a_machine_that_cannot_be_switched_off_either_is_a_failure_and_is_reset_by_the_next_attempt() {
    for spoil in SPOILS {
        let mut world = taken_back();
        world.unknown_orders = &[PowerOrder::Reset, PowerOrder::HardOff];
        let (orders, message) = orders_to_failure(&mut world, 1);
        assert_eq!(orders, [PowerOrder::Reset, PowerOrder::HardOff]);
        assert!(
            message.starts_with("the machine could not be booted from the network: it says so"),
            "{message}"
        );
        let (orders, _) = orders_to_failure(&mut world, 2);
        assert_eq!(orders, [PowerOrder::HardOff, PowerOrder::Reset]);
        // Its BMC learns to reset it.
        world.unknown_orders = &[];
        spoil(&mut world, HARD_OFF);
        let orders = orders_to(&mut world, State::Available);
        assert_eq!(orders, [PowerOrder::HardOff, PowerOrder::Reset]);
    }
    // One that accepts the order and leaves the machine on is not told again and again.
    let mut world = taken_back();
    (world.unknown_orders, world.ignored_orders) = (RESET, HARD_OFF);
    let (orders, message) = orders_to_failure(&mut world, 1);
    assert_eq!(orders, [PowerOrder::Reset, PowerOrder::HardOff]);
    assert!(
        message.contains("it is not off 60 s after the BMC accepted"),
        "{message}"
    );
}

#[test]
fn a_machine_that_is_off_and_cannot_be_switched_on_is_a_failure() {
    let mut world = out_of_its_ramdisk();
    world.machine.on = false;
    world.host().spec.online = false;
    world.settle();
    world.host().spec.online = true;
    world.unknown_orders = &[PowerOrder::On];
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioning);
    let orders = orders_to(&mut world, State::Deprovisioning);
    assert_eq!(orders, [PowerOrder::On]);
}

#[test]
fn a_forced_reboot_by_a_bmc_that_knows_no_reset_switches_off_and_on() {
    let mut world = at(State::Provisioning);
    while world.machine.ramdisk.is_none() {
        world.step(2);
    }
    world.unknown_orders = RESET;
    let sessions = world.machine.sessions;
    world.annotate(REBOOT_ANNOTATION, r#"{"force":true}"#);
    let orders = orders_until(&mut world, |world| !world.annotated(REBOOT_ANNOTATION));
    assert_eq!(orders, [PowerOrder::Reset, PowerOrder::HardOff, PowerOrder::On]);
    assert!(!world.events.contains(&"PowerManagementError".to_owned()));
    world.reach(State::Provisioned);
    assert_eq!(world.machine.sessions, sessions + 1);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}
