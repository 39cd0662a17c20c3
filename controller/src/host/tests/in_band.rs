//! The power of hosts without a BMC: what their ramdisk does, what Wake-on-LAN does, and what only a person can.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use muster_proto::kinds::{
    BareMetalHost, ErrorType, IN_BAND_ANNOTATION, INSPECT_ANNOTATION, Image, JobStatus, OperationalStatus,
    PAUSED_ANNOTATION, REBOOT_ANNOTATION, RELEASE_ANNOTATION, SessionState,
};

use super::{
    super::{State, in_band::is_wanted_on, observed::Bmc, plan::PowerOrder},
    life::{powered_on, waiting},
    world::{Content, Fault, IMAGE, World},
};

/// Outside of `provisioned`, upstream heeds only a wish that insists.
const FORCED: &str = r#"{"force":true}"#;

fn available() -> World {
    let mut world = World::in_band();
    world.reach(State::Available);
    world.settle();
    world
}

fn provisioned() -> World {
    let mut world = World::in_band();
    world.reach(State::Available);
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    world.settle();
    world
}

/// One that was written to be off.
fn provisioned_and_off() -> World {
    let mut world = provisioned();
    world.power(PowerOrder::HardOff);
    world.host().status.as_mut().unwrap().powered_on = false;
    world
}

/// What the Server says of the latest session's state.
fn shows(world: &mut World, state: SessionState) {
    let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
    status.session.as_mut().unwrap().state = state;
}

fn is_ready(world: &World) -> bool {
    let ready = world.machine.on && world.machine.ramdisk.is_some() && powered_on(world);
    ready && waiting(world).0 == "Nothing"
}

/// Until the ramdisk has switched its machine off.
fn goes_down(world: &mut World) {
    while world.machine.on {
        world.step(11);
    }
}

fn rounds_for(world: &mut World, time: SignedDuration) {
    let end = world.now + time;
    while world.now < end {
        world.round();
    }
}

fn switched_off() -> World {
    let mut world = available();
    world.host().spec.online = false;
    world.settle();
    assert!(!world.machine.on && !powered_on(&world));
    assert_eq!(waiting(&world).0, "Nothing");
    let job = &world.server.as_ref().unwrap().spec.job;
    assert!(job.is_none(), "its next session meets no job to go off: {job:?}");
    world
}

#[test]
fn a_ramdisk_switches_its_machine_off_and_wake_on_lan_switches_it_on_again() {
    let mut world = switched_off();
    world.host().spec.online = true;
    world.settle();
    assert!(is_ready(&world), "{:?}", waiting(&world));
    assert_eq!((world.machine.boots, &world.machine.disk), (1, &Content::Old));
}

#[test]
fn a_machine_without_wake_on_lan_is_switched_on_by_a_person_whom_the_condition_asks() {
    let mut world = switched_off();
    world.machine.wakes = false;
    world.host().spec.online = true;
    world.settle();
    assert!(!world.machine.on && !powered_on(&world));
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "PowerByHand");
    assert!(message.contains("power it on manually"), "{message}");
    world.power(PowerOrder::On);
    world.settle();
    assert!(is_ready(&world), "{:?}", waiting(&world));
}

#[test]
fn a_machine_that_was_here_since_is_woken_at_once() {
    let mut world = switched_off();
    world.host().spec.online = true;
    world.until("on", is_ready);
    world.host().spec.online = false;
    world.until("off", |world| !world.machine.on && !powered_on(world));
    let now = world.now.to_string();
    let wish = &mut world.server.as_mut().unwrap().spec.wake;
    wish.as_mut().unwrap().at = now;
    world.host().spec.online = true;
    (0..10).for_each(|_| world.step(1));
    assert!(world.machine.on && world.wished_awake == 2);
}

#[test]
fn wake_on_lan_is_asked_for_every_five_minutes_and_seldom_once_a_person_was_asked() {
    let mut world = switched_off();
    world.machine.wakes = false;
    world.host().spec.online = true;
    rounds_for(&mut world, SignedDuration::from_mins(14));
    assert_eq!(
        world.wished_awake, 3,
        "at once, after five minutes, and after ten"
    );
    rounds_for(&mut world, SignedDuration::from_hours(5));
    let wished = world.wished_awake;
    assert!((12..=14).contains(&wished), "{wished} times in five hours");
}

#[test]
fn a_machine_that_goes_down_when_it_is_wanted_again_is_woken() {
    for done in [true, false] {
        let mut world = available();
        world.host().spec.online = false;
        goes_down(&mut world);
        // That its session has ended shows later, perhaps that its job has, too.
        let told = |world: &mut World, state, done| {
            shows(world, state);
            let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
            status.job.as_mut().unwrap().done = done;
        };
        told(&mut world, SessionState::Connected, done);
        world.host().spec.online = true;
        world.step(1);
        assert_eq!(waiting(&world).0, "PoweringOff");
        told(&mut world, SessionState::Disconnected, true);
        world.settle();
        assert!(is_ready(&world), "{:?}", waiting(&world));
        assert_eq!(world.wished_awake, 1);
    }
}

#[test]
fn what_a_provisioned_machine_does_nobody_sees_so_it_is_taken_for_on() {
    let mut world = provisioned_and_off();
    let wished = world.wished_awake;
    rounds_for(&mut world, SignedDuration::from_mins(10));
    assert!(world.machine.on && !powered_on(&world));
    assert_eq!(waiting(&world).0, "PoweringOn");
    world.settle();
    assert!(powered_on(&world));
    assert_eq!(waiting(&world).0, "Nothing");
    assert!(world.wished_awake - wished >= 3);
}

#[test]
fn a_provisioned_machine_that_was_woken_and_is_wanted_no_more_is_not_taken_for_off() {
    let mut world = provisioned_and_off();
    world.until("woken", |world| world.machine.on);
    world.host().spec.online = false;
    world.settle();
    assert!(powered_on(&world));
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "PowerByHand");
    assert!(message.contains("power it off manually"), "{message}");
}

#[test]
fn a_provisioned_machine_that_only_a_person_can_switch_on_is_taken_for_on_after_a_while() {
    let mut world = provisioned_and_off();
    world.change_inventory(|inventory| inventory.nics[0].wake_on_lan = Some(false));
    rounds_for(&mut world, SignedDuration::from_mins(10));
    assert_eq!(
        (waiting(&world).0.as_str(), powered_on(&world)),
        ("PowerByHand", false)
    );
    world.settle();
    assert_eq!(
        (waiting(&world).0.as_str(), powered_on(&world)),
        ("Nothing", true)
    );
}

#[test]
fn a_machine_that_is_off_is_woken_for_its_image() {
    let mut world = switched_off();
    world.host().spec.online = true;
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    assert!(world.machine.on);
    assert_eq!(world.wished_awake, 1);
}

#[test]
fn a_ramdisk_that_goes_down_is_given_no_work() {
    let mut world = available();
    world.host().spec.online = false;
    goes_down(&mut world);
    shows(&mut world, SessionState::Connected);
    world.host().spec.online = true;
    world.set_image(Some(IMAGE));
    world.step(1);
    assert_eq!(
        (world.state(), world.has_destructive_job()),
        (State::Available, false)
    );
    shows(&mut world, SessionState::Disconnected);
    world.reach(State::Provisioned);
    assert_eq!(world.wished_awake, 1);
}

#[test]
fn a_machine_that_is_missed_when_its_image_is_set_is_woken() {
    let mut world = available();
    world.power(PowerOrder::HardOff);
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    assert_eq!(world.wished_awake, 1);
}

#[test]
fn a_provisioned_machine_that_a_person_switched_off_is_woken_when_it_is_to_be_on_again() {
    let mut world = provisioned();
    world.host().spec.online = false;
    world.settle();
    assert_eq!(waiting(&world).0, "PowerByHand");
    world.power(PowerOrder::HardOff);
    world.host().spec.online = true;
    world.until("on", |world| world.machine.on);
    world.settle();
    assert!(world.machine.on && powered_on(&world));
    assert_eq!(waiting(&world).0, "Nothing");
    assert!(world.wished_awake >= 3, "for a quarter of an hour");
}

#[test]
fn a_machine_that_is_to_be_off_and_boots_by_itself_boots_its_ramdisk_which_switches_it_off() {
    let mut world = switched_off();
    world.power(PowerOrder::On);
    while world.machine.booting > 0 {
        world.tick(11);
    }
    assert!(world.machine.on && world.machine.ramdisk.is_some());
    world.settle();
    assert!(!world.machine.on && !powered_on(&world));
    assert_eq!(world.machine.disk, Content::Old);
}

#[test]
fn a_machine_that_came_back_after_it_went_down_is_told_again() {
    let mut world = available();
    world.host().spec.online = false;
    goes_down(&mut world);
    // Nobody has seen the end of its session; somebody has pressed the button since.
    world.call_in();
    world.settle();
    assert!(!world.machine.on && !powered_on(&world));
    assert_eq!(waiting(&world).0, "Nothing");
}

#[test]
fn a_machine_that_has_lost_its_power_is_woken_once_it_is_missed() {
    let mut world = available();
    world.power(PowerOrder::HardOff);
    rounds_for(&mut world, SignedDuration::from_mins(14));
    assert_eq!((world.wished_awake, world.machine.on), (0, false));
    world.settle();
    assert!(is_ready(&world), "{:?}", waiting(&world));
    assert_eq!(world.wished_awake, 1);
}

#[test]
fn a_machine_whose_segment_is_gone_is_switched_on_by_a_person() {
    let mut world = switched_off();
    world.segment_gone = true;
    world.host().spec.online = true;
    world.settle();
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "PowerByHand");
    assert!(message.contains("the Segment of its last session"), "{message}");
    assert_eq!(world.wished_awake, 0);
    // Back, it is used as if nothing had been.
    world.machine.wakes = false;
    world.segment_gone = false;
    world.round();
    assert_eq!(waiting(&world).0, "PoweringOn");
    assert_eq!(world.wished_awake, 1);
}

#[test]
fn nobody_is_asked_to_wake_a_machine_on_a_segment_that_is_not_served() {
    let mut world = switched_off();
    let serving = |status: &str, reason: &str| Condition {
        type_: "Serving".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        observed_generation: None,
    };
    let status = world.segment.status.get_or_insert_default();
    status.conditions = vec![serving("False", "NoInterface")];
    world.host().spec.online = true;
    world.settle();
    assert_eq!((world.wished_awake, world.machine.on), (0, false));
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "PowerByHand");
    assert!(message.contains("is not served"), "{message}");
    // Its edge sends packets, whatever else it lacks.
    world.segment.status.as_mut().unwrap().conditions = vec![serving("False", "PortInUse")];
    world.settle();
    assert!(is_ready(&world), "{:?}", waiting(&world));
}

#[test]
fn nothing_is_sent_to_nics_that_cannot_wake_their_machine() {
    let mut world = switched_off();
    world.change_inventory(|inventory| inventory.nics[0].wake_on_lan = Some(false));
    world.host().spec.online = true;
    world.settle();
    assert!(!world.machine.on, "it would have heard");
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "PowerByHand");
    assert!(
        message.contains("none of its NICs supports Wake-on-LAN"),
        "{message}"
    );

    // One beside them of which nothing is known may wake it.
    world.change_inventory(|inventory| {
        let mut other = inventory.nics[0].clone();
        other.mac = "52:54:00:ff:ff:01".parse().ok();
        inventory.nics[0].wake_on_lan = None;
        inventory.nics.insert(0, other);
    });
    world.settle();
    assert!(is_ready(&world), "{:?}", waiting(&world));
}

#[test]
fn a_ramdisk_reboots_its_machine_once_for_the_annotation() {
    let mut world = available();
    world.annotate(REBOOT_ANNOTATION, FORCED);
    world.settle();
    assert!(!world.annotated(REBOOT_ANNOTATION));
    assert!(is_ready(&world), "{:?}", waiting(&world));
    assert_eq!((world.machine.boots, world.machine.sessions), (1, 2));
    // Another one is another wish.
    world.annotate(REBOOT_ANNOTATION, FORCED);
    world.settle();
    assert_eq!((world.machine.boots, world.machine.sessions), (2, 3));
    assert!(!world.annotated(REBOOT_ANNOTATION) && is_ready(&world));
}

#[test]
fn it_stays_off_for_whoever_asks_until_that_is_taken_back() {
    let mut world = available();
    let wish = "reboot.metal3.io/somebody";
    world.annotate(wish, FORCED);
    world.settle();
    assert!(!world.machine.on && !powered_on(&world) && world.annotated(wish));
    world.unannotate(wish);
    world.settle();
    assert!(is_ready(&world), "{:?}", waiting(&world));
}

#[test]
fn a_ramdisk_that_does_not_go_down_is_told_again_later_and_later() {
    let mut world = available();
    world.failing_ends = 3;
    world.host().spec.online = false;
    for count in 1..=3 {
        world.until("a failure", |world| {
            let status = world.host.as_ref().unwrap().status.as_ref().unwrap();
            status.error_count == count
        });
        let status = world.host().status.clone().unwrap();
        assert_eq!(status.error_type, Some(ErrorType::PowerManagement));
        assert_eq!(waiting(&world).0, "Retry");
        // Not before its time, whatever wakes the host.
        let plan = world.plan();
        assert!(plan.effects.is_empty() && plan.status.is_none(), "{}", plan.why);
    }
    world.settle();
    let status = world.host().status.clone().unwrap();
    assert!(!world.machine.on && !status.powered_on);
    assert_eq!((status.error_type, status.error_count), (None, 0));
}

#[test]
fn power_that_could_not_be_switched_is_no_error_any_more_once_it_is_as_it_is_wanted() {
    let mut world = provisioned();
    world.call_in();
    world.failing_ends = 100;
    world.host().spec.online = false;
    world.until("a failure", |world| {
        let status = world.host.as_ref().unwrap().status.as_ref().unwrap();
        status.error_type == Some(ErrorType::PowerManagement)
    });
    // A person reboots it into its system, and it is to be on after all.
    world.disconnect();
    world.host().spec.online = true;
    world.settle();
    let status = world.host().status.clone().unwrap();
    assert_eq!((status.error_type, status.error_count), (None, 0));
}

#[test]
fn a_silent_machine_that_was_not_heard_to_go_is_never_taken_for_off() {
    let mut world = available();
    world.host().spec.online = false;
    // The job is placed, and the session ends before it is taken up.
    let plan = world.plan();
    world.execute(plan, None, Fault::None);
    assert!(world.server.as_ref().unwrap().spec.job.is_some());
    world.power(PowerOrder::Reset);
    world.machine.network_first = false;
    world.settle();
    assert!(world.machine.on && powered_on(&world));
    assert_eq!(waiting(&world).0, "PowerByHand");
}

#[test]
fn a_machine_that_must_not_be_off_is_rebooted_and_not_switched_off() {
    let mut world = available();
    world.host().spec.disable_power_off = Some(true);
    world.host().spec.online = false;
    world.settle();
    assert!(world.machine.on && powered_on(&world));
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Refused");
    assert!(
        message.starts_with("spec.online asks for the host to be off, but spec.disablePowerOff forbids it"),
        "{message}"
    );
    world.annotate(REBOOT_ANNOTATION, FORCED);
    world.machine.boots = 0;
    world.settle();
    assert!(!world.annotated(REBOOT_ANNOTATION) && world.machine.on);
    assert_eq!(world.machine.boots, 1);
}

#[test]
fn what_runs_an_operating_system_waits_for_a_person() {
    let mut world = available();
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    world.settle();
    let boots = world.machine.boots;
    world.host().spec.online = false;
    world.settle();
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "PowerByHand");
    assert!(message.contains("power it off manually"), "{message}");
    world.host().spec.online = true;
    world.annotate(REBOOT_ANNOTATION, "");
    world.settle();
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "PowerByHand");
    assert!(
        message.contains("reboot it manually, then remove the annotation"),
        "{message}"
    );
    world.unannotate(REBOOT_ANNOTATION);
    world.settle();
    assert_eq!(waiting(&world).0, "Nothing");
    assert_eq!((world.state(), world.machine.boots), (State::Provisioned, boots));
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}

fn asked(world: &World) -> usize {
    world.events.iter().filter(|told| *told == "ActionNeeded").count()
}

#[test]
fn nobody_is_asked_for_what_happens_by_itself() {
    // The machine is rebooted by its ramdisk, and switched off and on by Wake-on-LAN.
    let mut world = available();
    world.annotate(REBOOT_ANNOTATION, FORCED);
    world.settle();
    world.host().spec.online = false;
    world.settle();
    world.host().spec.online = true;
    world.settle();
    assert!(is_ready(&world), "{:?}", waiting(&world));
    assert_eq!(asked(&world), 0, "{:?}", world.events);
    // Its connection breaks for a moment, at rest and in the middle of a write.
    let is_silent = |world: &mut World| {
        world.disconnect();
        for _ in 0..5 {
            let plan = world.plan();
            world.execute(plan, None, Fault::None);
            world.tick(11);
        }
    };
    is_silent(&mut world);
    assert_eq!(waiting(&world).0, "Ramdisk");
    world.call_back();
    world.settle();
    assert!(is_ready(&world), "{:?}", waiting(&world));
    world.set_image(Some(IMAGE));
    world.reach_job();
    let before = waiting(&world);
    is_silent(&mut world);
    assert_eq!(
        waiting(&world),
        before,
        "whoever switched it off now would break the write"
    );
    assert_eq!(asked(&world), 0, "{:?}", world.events);
}

#[test]
fn nobody_is_asked_to_break_a_job_that_a_silent_ramdisk_may_be_at() {
    let mut world = available();
    world.set_image(Some(IMAGE));
    world.reach_job();
    let server = world.server.as_mut().unwrap();
    let id = server.spec.job.as_ref().unwrap().id.clone();
    server.status.as_mut().unwrap().job = Some(JobStatus {
        id,
        ..JobStatus::default()
    });
    world.disconnect();
    let silent_for = |world: &mut World, minutes: u32| {
        for _ in 0..minutes {
            let plan = world.plan();
            world.execute(plan, None, Fault::None);
            world.tick(60);
        }
    };
    silent_for(&mut world, 14);
    assert_eq!((waiting(&world).0.as_str(), asked(&world)), ("Write", 0));
    assert!(world.plan().slot);
    silent_for(&mut world, 3);
    assert_eq!(
        (waiting(&world).0.as_str(), asked(&world)),
        ("PowerCycleByHand", 1)
    );
    assert!(!world.plan().slot);
}

/// One whose image is taken away without cleaning, as it has it.
fn released(world: &mut World) {
    world.set_image(None);
    world.annotate(RELEASE_ANNOTATION, "");
    world.reach(State::Deprovisioning);
    world.reach(State::Available);
}

#[test]
fn a_released_machine_that_runs_its_own_system_is_asked_for_at_once_and_one_that_was_back_is_waited_for() {
    let mut world = provisioned();
    released(&mut world);
    let mut off = world.clone();
    world.step(1);
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "PowerCycleByHand");
    assert!(
        message.starts_with(
            "power-cycle the machine manually and let it boot from the network (boot menu, or network first in the boot order: \
             its system may have put its own entry first): network boot has been armed since 2026-"
        ),
        "{message}"
    );
    world.settle();
    assert_eq!(waiting(&world).0, "PowerCycleByHand");
    off.host().spec.online = false;
    off.step(1);
    let (reason, message) = waiting(&off);
    assert_eq!(reason, "PowerByHand");
    assert!(
        message.contains("Muster does not control its operating system; next: power it off manually"),
        "{message}"
    );

    // What left was another session than the one that falls silent now.
    world.obey();
    world.settle();
    assert!(is_ready(&world), "{:?}", waiting(&world));
    world.disconnect();
    (0..5).for_each(|_| world.step(11));
    assert_eq!(waiting(&world).0, "Ramdisk");
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioning);
    world.step(1);
    assert_eq!(waiting(&world).0, "Ramdisk");
}

#[test]
fn a_machine_that_left_for_its_former_image_a_moment_ago_is_asked_for_at_once() {
    let mut world = available();
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    // It boots its disk.
    world.tick(30);
    released(&mut world);
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioning);
    world.step(1);
    assert!(world.machine.on && world.machine.ramdisk.is_none());
    assert_eq!(
        (waiting(&world).0.as_str(), asked(&world)),
        ("PowerCycleByHand", 1)
    );
}

#[test]
fn a_machine_that_only_a_person_could_switch_on_boots_its_image_whatever_holds_it_off() {
    let mut world = available();
    world.annotate("reboot.metal3.io/fence", "");
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    assert!(world.machine.on && powered_on(&world));
}

/// Somebody deletes the Server, and its agent, which is refused, boots its machine again.
fn server_goes(world: &mut World) {
    world.server = None;
    world.machine.ramdisk = None;
    world.machine.working = None;
}

#[test]
fn a_machine_whose_server_is_deleted_at_work_comes_back_by_itself_before_a_person_is_asked() {
    let steps = |world: &mut World, minutes: u32| (0..minutes).for_each(|_| world.step(60));
    let mut world = available();
    world.set_image(Some(IMAGE));
    world.reach_job();
    assert_eq!(waiting(&world).0, "Write");
    server_goes(&mut world);
    steps(&mut world, 14);
    assert_eq!((waiting(&world).0.as_str(), asked(&world)), ("Ramdisk", 0));
    assert!(world.plan().slot);
    let mut back = world.clone();
    back.call_in();
    back.reach(State::Provisioned);
    assert_eq!((back.machine.writes.len(), asked(&back)), (1, 0));
    steps(&mut world, 3);
    assert_eq!(
        (waiting(&world).0.as_str(), asked(&world)),
        ("PowerCycleByHand", 1)
    );
    world.settle();
    assert_eq!(asked(&world), 1, "once");

    // Nothing is lost where it only looks.
    let mut world = available();
    world.machine.deaf = true;
    world.annotate(INSPECT_ANNOTATION, "");
    world.until("it looks", |world| waiting(world).0 == "Inspection");
    server_goes(&mut world);
    steps(&mut world, 2);
    assert_eq!((waiting(&world).0.as_str(), asked(&world)), ("Ramdisk", 0));
    steps(&mut world, 1);
    assert_eq!(waiting(&world).0, "PowerCycleByHand");
}

#[test]
fn a_machine_without_a_server_whose_ramdisk_was_not_at_work_is_asked_for_at_once() {
    let mut world = provisioned();
    server_goes(&mut world);
    world.set_image(None);
    world.reach(State::Deprovisioning);
    world.step(1);
    assert_eq!(
        (waiting(&world).0.as_str(), asked(&world)),
        ("PowerCycleByHand", 1)
    );
}

#[test]
fn a_ramdisk_that_does_not_come_back_is_asked_for_in_the_end_and_each_demand_is_told() {
    let mut world = available();
    world.machine.network_first = false;
    world.power(PowerOrder::Reset);
    world.settle();
    assert_eq!((waiting(&world).0.as_str(), asked(&world)), ("PowerByHand", 1));
    world.machine.network_first = true;
    world.power(PowerOrder::Reset);
    world.settle();
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    world.settle();
    // Two demands of one kind, one after the other.
    world.host().spec.online = false;
    world.settle();
    assert_eq!(asked(&world), 2);
    world.host().spec.online = true;
    world.annotate(REBOOT_ANNOTATION, "");
    world.settle();
    assert_eq!(asked(&world), 3);
    world.restart();
    world.settle();
    assert_eq!(asked(&world), 3, "told once, whoever leads");
}

#[test]
fn what_goes_on_is_the_same_to_a_computer_whose_clock_is_a_little_behind() {
    let mut world = available();
    world.host().spec.online = false;
    let plan = world.plan();
    world.execute(plan, None, Fault::None);
    let plan = world.plan();
    world.execute(plan, None, Fault::None);
    let id = |world: &World| {
        let job = &world.server.as_ref().unwrap().spec.job;
        job.as_ref().map(|job| job.id.clone())
    };
    let (before, jobs) = (id(&world), world.machine.jobs);
    assert!(before.is_some());
    world.restart();
    world.set_back(5);
    for _ in 0..3 {
        let plan = world.plan();
        world.execute(plan, None, Fault::None);
    }
    assert_eq!((id(&world), world.machine.jobs), (before, jobs));
    world.settle();
    assert!(!world.machine.on && !powered_on(&world));
}

#[test]
fn a_machine_is_woken_late_only_if_nobody_has_said_otherwise_since() {
    use State::{
        Available, Deleting, Deprovisioning, ExternallyProvisioned, Foreign, Inspecting, New,
        PoweringOffBeforeDelete, Preparing, Provisioned, Provisioning, Registering, Unmanaged,
    };
    let world = available();
    let server = world.server.clone().unwrap();
    let host = |state: State| {
        let mut host = world.host.clone().unwrap();
        let word = state.name().to_owned();
        host.status.as_mut().unwrap().provisioning.state = word;
        host
    };
    let works = [Registering, Inspecting, Preparing, Provisioning, Deprovisioning];
    let rests = [Available, Provisioned, ExternallyProvisioned];
    let ends = [New, Unmanaged, PoweringOffBeforeDelete, Deleting, Foreign];
    for (states, on, off) in [
        (&works[..], true, true),
        (&rests[..], true, false),
        (&ends[..], false, false),
    ] {
        for state in states {
            let mut host = host(*state);
            assert_eq!(is_wanted_on(&server, Some(&host)), on, "{state}");
            host.spec.online = false;
            assert_eq!(is_wanted_on(&server, Some(&host)), off, "{state}");
        }
    }
    let mut image = host(Available);
    image.spec.online = false;
    image.spec.image = Some(Image {
        url: IMAGE.to_owned(),
        ..Image::default()
    });
    assert!(
        !is_wanted_on(&server, Some(&image)),
        "its image waits for spec.online"
    );

    type Change = fn(&mut BareMetalHost);
    fn annotate(host: &mut BareMetalHost, name: &str) {
        let annotations = host.metadata.annotations.get_or_insert_default();
        annotations.insert(name.to_owned(), String::new());
    }
    let mut rebooted = host(Provisioned);
    annotate(&mut rebooted, REBOOT_ANNOTATION);
    assert!(is_wanted_on(&server, Some(&rebooted)), "off, and on again");
    let changes: [Change; 5] = [
        |host| annotate(host, PAUSED_ANNOTATION),
        |host| annotate(host, "reboot.metal3.io/somebody"),
        |host| host.status.as_mut().unwrap().operational_status = OperationalStatus::Detached,
        |host| host.metadata.deletion_timestamp = Some(Time("2026-01-01T00:00:00Z".parse().unwrap())),
        |host| host.metadata.uid = Some("another one of its name".to_owned()),
    ];
    for (at, change) in changes.iter().enumerate() {
        let mut host = host(Provisioned);
        change(&mut host);
        assert!(!is_wanted_on(&server, Some(&host)), "{at}");
    }
    assert!(!is_wanted_on(&server, None));
}

#[test]
fn a_host_that_somebody_else_provisioned_is_registered_by_the_ramdisk_that_is_booted_for_that() {
    let mut world = World::in_band();
    world.host().spec.externally_provisioned = Some(true);
    world.disconnect();
    world.machine.on = false;
    world.settle();
    assert_eq!(
        (world.state(), waiting(&world).0.as_str()),
        (State::Registering, "PowerCycleByHand")
    );
    world.obey();
    world.reach(State::ExternallyProvisioned);
    world.settle();
    assert!(
        powered_on(&world) && world.machine.ramdisk.is_none(),
        "it runs its own system again"
    );
    assert_eq!(world.machine.disk, Content::Old);
}

#[test]
fn what_a_bmc_said_that_the_host_has_no_more_does_not_hold_it_up() {
    let mut world = World::new();
    world.says_nothing_of_power = true;
    world.until("asked", |world| world.bmc != Bmc::default());
    assert_eq!(world.state(), State::Registering);
    world.host().spec.bmc = None;
    world.machine.network_first = true;
    world.call_in();
    world.annotate(IN_BAND_ANNOTATION, "segment");
    world.reach(State::Available);
    world.settle();
    assert_eq!(world.bmc, Bmc::default());
    world.disconnect();
    world.machine.on = false;
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
}

#[test]
fn a_person_is_asked_to_boot_a_machine_that_was_opted_in_and_does_not_call_in() {
    let mut world = World::new();
    world.host().spec.bmc = None;
    world.machine.network_first = true;
    world.annotate(IN_BAND_ANNOTATION, "segment");
    world.reach(State::Registering);
    world.until("it waits", |world| waiting(world).0 == "Ramdisk");
    world.until("a person", |world| waiting(world).0 == "PowerCycleByHand");
    world.settle();
    assert_eq!(
        (world.state(), waiting(&world).0.as_str()),
        (State::Registering, "PowerCycleByHand")
    );
    assert_eq!(
        world
            .events
            .iter()
            .filter(|told| told.contains("ActionNeeded"))
            .count(),
        1,
        "{:?}",
        world.events
    );
    world.power(PowerOrder::Reset);
    world.reach(State::Available);
}

#[test]
fn nobody_is_asked_to_boot_a_machine_that_nobody_would_know() {
    let mut world = World::new();
    (world.host().spec.bmc, world.host().spec.boot_mac_address) = (None, None);
    world.annotate(IN_BAND_ANNOTATION, "segment");
    world.reach(State::Registering);
    world.settle();
    let (reason, message) = waiting(&world);
    assert!(
        reason == "Ramdisk" && message.contains("set spec.bootMACAddress"),
        "{reason}: {message}"
    );
}

#[test]
fn a_machine_that_was_opted_in_while_it_is_off_is_woken() {
    let mut world = World::in_band();
    world.machine.wakes = true;
    world.disconnect();
    world.machine.on = false;
    world.reach(State::Registering);
    world.until("woken", |world| world.wished_awake > 0);
    world.reach(State::Available);
}
