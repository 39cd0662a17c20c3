//! What somebody changes counts at once, also while a failure is waited out; and a host says what it waits for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use muster_proto::kinds::{ErrorType, INSPECT_ANNOTATION, OperationalStatus, RootDeviceHints};

use super::{
    super::{
        State,
        observed::{FailureClass, SecretState, Tried},
        plan::{BmcCall, Effect, PowerOrder},
    },
    life::waiting,
    transitions::at,
    world::{Fault, IMAGE, World, power_orders, secret},
};

fn count(world: &World) -> i64 {
    world.host.as_ref().unwrap().status.as_ref().unwrap().error_count
}

/// Rounds in which the BMC refuses every order on the power, until so many attempts have failed.
fn fail_to_switch(world: &mut World, attempts: i64) {
    for _ in 0..500 {
        if count(world) >= attempts {
            return;
        }
        let plan = world.plan();
        let ordered = plan
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Bmc(BmcCall::Power { .. })));
        world.execute(plan, None, if ordered { Fault::Fails } else { Fault::None });
        if let Some(Tried {
            result: Err(failure), ..
        }) = &mut world.tried
        {
            failure.class = FailureClass::Unsupported;
        }
        world.tick(31);
    }
    panic!("it never fails: {:?}", world.plan());
}

/// A provisioned host that could not be switched on, many times.
fn is_not_switched_on() -> World {
    let mut world = at(State::Provisioned);
    world.settle();
    world.host().metadata.generation = Some(1);
    world.machine.on = false;
    fail_to_switch(&mut world, 6);
    assert_eq!(waiting(&world).0, "Retry");
    world
}

/// A moment later.
fn soon(world: &mut World) {
    for _ in 0..6 {
        world.step(2);
    }
}

#[test]
fn a_change_of_the_spec_ends_the_pause_after_a_failure_and_nothing_else_does() {
    let mut world = is_not_switched_on();
    let boots = world.machine.boots;
    world.annotate("example.org/note", "");
    world
        .host()
        .metadata
        .labels
        .get_or_insert_default()
        .insert("team".to_owned(), "blue".to_owned());
    world.secrets.bmc.state = match secret("2", "a").state {
        state @ SecretState::Present { .. } => state,
        state => panic!("{state:?}"),
    };
    soon(&mut world);
    assert!(!world.machine.on, "it waits for the next attempt");
    world.host().metadata.generation = Some(2);
    soon(&mut world);
    assert!(world.machine.on && world.machine.boots == boots + 1);
    world.settle();
    assert_eq!(world.host().status.as_ref().unwrap().error_type, None);
}

#[test]
fn whoever_does_by_hand_what_failed_ends_the_error() {
    let mut world = is_not_switched_on();
    world.power(PowerOrder::On);
    world.tick(60);
    soon(&mut world);
    let status = world.host().status.clone().unwrap();
    assert_eq!((status.error_type, status.powered_on), (None, true));
}

#[test]
fn a_wish_to_be_off_is_heard_while_the_host_could_not_be_switched_on() {
    let mut world = is_not_switched_on();
    let wish = "reboot.metal3.io/metal3-remediation";
    world.annotate(wish, "");
    world.tick(60);
    soon(&mut world);
    let status = world.host().status.clone().unwrap();
    assert_eq!((status.error_type, status.powered_on), (None, false));
    world.unannotate(wish);
    world.settle();
    assert!(world.machine.on);
}

/// CAPM3's remediation fences the machine by it.
#[test]
fn a_wish_to_be_off_does_not_wait_for_hours_after_failures_of_before() {
    let mut world = at(State::Provisioned);
    world.settle();
    world.host().spec.online = false;
    world.host().metadata.generation = Some(1);
    fail_to_switch(&mut world, 6);
    world.tick(130);
    soon(&mut world);
    assert!(world.machine.on, "it waits for the next attempt");
    world.annotate("reboot.metal3.io/metal3-remediation", r#"{"mode":"hard"}"#);
    soon(&mut world);
    assert!(!world.machine.on);
}

#[test]
fn an_inspection_that_is_asked_for_does_not_wait_for_the_next_attempt() {
    let mut world = at(State::Available);
    world.settle();
    world.disconnect();
    world.machine.on = false;
    world.bmc_up = false;
    world.annotate(INSPECT_ANNOTATION, "");
    world.reach(State::Inspecting);
    world.until("four failures", |world| count(world) >= 4);
    world.bmc_up = true;
    world.tick(120);
    soon(&mut world);
    assert_eq!(waiting(&world).0, "Retry");
    world.annotate(INSPECT_ANNOTATION, "");
    soon(&mut world);
    assert_ne!(waiting(&world).0, "Retry");
    assert!(!world.annotated(INSPECT_ANNOTATION));
    world.reach(State::Available);
}

#[test]
fn an_image_waits_for_the_host_to_be_online_and_says_so() {
    let mut world = at(State::Available);
    world.host().spec.online = false;
    world.set_image(Some(IMAGE));
    world.settle();
    let (reason, message) = waiting(&world);
    assert_eq!((world.state(), reason.as_str()), (State::Available, "Online"));
    assert!(message.contains("spec.online"), "{message}");
    world.host().spec.online = true;
    world.reach(State::Provisioned);
}

#[test]
fn nothing_is_begun_with_a_bmc_that_is_known_to_be_silent() {
    let mut world = at(State::Available);
    world.settle();
    world.disconnect();
    world.machine.on = false;
    world.bmc_up = false;
    world.settle();
    world.set_image(Some(IMAGE));
    for _ in 0..100 {
        world.round();
    }
    let status = world.host().status.clone().unwrap();
    assert_eq!(
        (world.state(), status.provisioning_fail_count),
        (State::Available, 0)
    );
    assert_eq!(waiting(&world).0, "Bmc");
    world.bmc_up = true;
    world.reach(State::Provisioned);
}

/// An available host that is given an image and finds no slot.
fn without_a_place() -> World {
    let mut world = at(State::Available);
    world.settle();
    world.slot = false;
    world.set_image(Some(IMAGE));
    world.settle();
    assert_eq!(waiting(&world).0, "Place");
    world
}

#[test]
fn a_host_says_that_its_bmc_is_silent_whatever_it_waited_for_before() {
    let mut world = without_a_place();
    world.disconnect();
    world.bmc_up = false;
    world.settle();
    let status = world.host().status.clone().unwrap();
    assert_eq!(waiting(&world).0, "Bmc");
    assert_ne!(status.operational_status, OperationalStatus::Delayed);
}

/// CAPM3 takes hosts that are available and have no error.
#[test]
fn an_available_host_whose_bmc_dies_while_its_power_changes_has_an_error_too() {
    let mut world = at(State::Available);
    world.settle();
    world.disconnect();
    world.settle();
    world.ignored_orders = &[PowerOrder::SoftOff, PowerOrder::HardOff];
    world.host().spec.online = false;
    world.until("it is to go off", |world| waiting(world).0 == "PoweringOff");
    world.bmc_up = false;
    let error = |world: &World| world.host.as_ref().unwrap().status.clone().unwrap().error_type;
    (0..14).for_each(|_| world.step(60));
    assert_eq!(error(&world), None);
    (0..3).for_each(|_| world.step(60));
    assert_eq!(error(&world), Some(ErrorType::PowerManagement));
    world.ignored_orders = &[];
    world.bmc_up = true;
    world.until("it is off", |world| !world.machine.on);
    world.settle();
    assert_eq!(error(&world), None);
}

#[test]
fn an_available_host_that_can_be_reached_by_nothing_has_an_error_until_its_bmc_answers() {
    type Fails = fn(&mut World, bool);
    let ways: [(Fails, &str); 3] = [
        (
            |world, fails| world.bmc_up = !fails,
            "the BMC does not report the power state: it says so",
        ),
        // It is probed by another process first.
        (
            |world, fails| {
                world.bmc_up = !fails;
                if fails {
                    world.restart();
                }
            },
            "the BMC does not answer: it says so",
        ),
        (
            |world, fails| world.says_nothing_of_power = fails,
            "the BMC does not report the power state: it reports neither on nor off",
        ),
    ];
    for (fails, why) in ways {
        let mut world = at(State::Available);
        world.settle();
        world.disconnect();
        // Its machine runs on, so that nothing is to be done about its power.
        world.settle();
        let told = |world: &World| {
            let all = world.events.iter();
            all.filter(|reason| *reason == "PowerManagementError").count()
        };
        let error = |world: &World| {
            let status = world.host.as_ref().unwrap().status.clone().unwrap();
            let error = (status.error_type, status.error_count, status.error_message);
            (error, status.operational_status, status.powered_on)
        };
        let none = ((None, 0, String::new()), OperationalStatus::Ok, true);
        fails(&mut world, true);
        world.until("it waits", |world| waiting(world).0 == "Bmc");
        let since = waiting(&world).1.split_once(" (since ").unwrap().1.to_owned();
        for _ in 0..14 {
            world.step(60);
            assert_eq!(error(&world), none);
        }
        (0..3).for_each(|_| world.step(60));
        let message = format!(
            "BMC redfish://10.0.0.9/redfish/v1/Systems/1: {why} (since {since}; \
             next: retrying every minute; the host can be used again once the BMC answers"
        );
        let expected = (Some(ErrorType::PowerManagement), 0, message);
        let expected = (expected, OperationalStatus::Error, true);
        assert_eq!(error(&world), expected);
        assert_eq!(
            (world.state(), waiting(&world).0.as_str()),
            (State::Available, "Bmc")
        );
        // It is written once, and another process has nothing new to say of it.
        let writes = world.status_writes;
        world.settle();
        assert_eq!(world.status_writes, writes, "{why}");
        world.restart();
        world.settle();
        assert_eq!((error(&world), told(&world)), (expected, 1));
        // Its ramdisk is there after all, for a while.
        let mut here = world.clone();
        here.call_in();
        here.step(60);
        assert_eq!(error(&here), none);
        here.disconnect();
        here.step(60);
        assert_eq!(error(&here), none, "it may be back in a moment");
        (0..3).for_each(|_| here.step(60));
        assert_eq!(error(&here).1, OperationalStatus::Error);
        fails(&mut world, false);
        world.until("it can be used", |world| error(world) == none);
        world.set_image(Some(IMAGE));
        world.reach(State::Provisioned);
    }
}

#[test]
fn what_a_host_waits_for_beside_its_bmc_is_said_as_long_as_its_ramdisk_is_here() {
    let mut world = without_a_place();
    assert!(world.machine.ramdisk.is_some());
    world.bmc_up = false;
    world.settle();
    assert_eq!(waiting(&world).0, "Place");
    world.host().spec.online = false;
    world.settle();
    assert_eq!(waiting(&world).0, "Bmc");
}

#[test]
fn a_failed_provisioning_is_told_until_another_one_is_asked_for() {
    let mut world = at(State::Available);
    world.failing_writes = 1;
    world.set_image(Some(IMAGE));
    world.reach(State::Deprovisioning);
    let told = |world: &World| {
        let status = world.host.as_ref().unwrap().status.clone().unwrap();
        let failed = |one: &&Condition| one.type_ == "ProvisioningFailed";
        status
            .conditions
            .iter()
            .find(failed)
            .map(|one| one.message.clone())
    };
    let message = told(&world).unwrap();
    assert!(message.starts_with("attempt 1 failed: "), "{message}");
    world.reach(State::Available);
    soon(&mut world);
    assert_eq!(told(&world), Some(message));
    world.reach(State::Provisioned);
    assert_eq!(told(&world), None);
}

#[test]
fn another_spec_is_another_attempt_after_a_provisioning_that_failed() {
    let hints = RootDeviceHints {
        device_name: Some("/dev/sda".to_owned()),
        ..RootDeviceHints::default()
    };
    for most in [0, 1] {
        for changes in [None, Some(State::Deprovisioning), Some(State::Available)] {
            let mut world = at(State::Available);
            world.retries = most;
            world.host().metadata.generation = Some(1);
            world.settle();
            world.failing_writes = 1;
            world.set_image(Some(IMAGE));
            for state in [State::Deprovisioning, State::Available] {
                world.reach(state);
                if changes == Some(state) {
                    soon(&mut world);
                    world.host().metadata.generation = Some(2);
                    world.host().spec.root_device_hints = Some(Box::new(hints.clone()));
                }
            }
            soon(&mut world);
            soon(&mut world);
            let waits = ["Delay", "Refused"].contains(&waiting(&world).0.as_str());
            assert_eq!(waits, changes.is_none(), "{changes:?}, {most}");
            if waits && most == 0 {
                world.reach(State::Provisioned);
            }
        }
    }
}

#[test]
fn a_host_that_somebody_else_provisioned_leaves_the_ramdisk_that_it_is_found_in() {
    let mut world = at(State::Available);
    world.settle();
    assert!(world.machine.ramdisk.is_some());
    let boots = world.machine.boots;
    world.host().spec.externally_provisioned = Some(true);
    world.settle();
    assert_eq!(world.state(), State::ExternallyProvisioned);
    assert!(world.machine.on && world.machine.ramdisk.is_none());
    assert_eq!(world.machine.boots, boots + 1);
    // One that comes back into it is told once more, and once.
    world.call_in();
    world.settle();
    assert_eq!(world.machine.boots, boots + 2);
}

#[test]
fn who_takes_back_that_somebody_else_provisioned_a_host_has_it_cleaned_unless_an_image_says_what_it_runs() {
    let taken_back = |edit: fn(&mut World)| {
        let mut world = at(State::ExternallyProvisioned);
        world.settle();
        edit(&mut world);
        world.host().spec.externally_provisioned = Some(false);
        world.settle();
        (world.state(), world.machine.cleans, world.machine.writes.len())
    };
    assert_eq!(taken_back(|_| {}), (State::Available, 1, 0));
    assert_eq!(
        taken_back(|world| world.set_image(Some(IMAGE))),
        (State::Provisioned, 0, 0)
    );
    let protected = |world: &mut World| world.annotate(muster_proto::kinds::PROTECTED_ANNOTATION, "");
    assert_eq!(taken_back(protected), (State::Provisioned, 0, 0));
    let uncleaned = |world: &mut World| {
        world.host().spec.automated_cleaning_mode =
            Some(muster_proto::kinds::AutomatedCleaningMode::Disabled);
    };
    assert_eq!(taken_back(uncleaned), (State::Available, 0, 0));
}

#[test]
fn a_machine_that_was_never_in_its_ramdisk_is_asked_before_it_is_cut_off() {
    let mut world = World::new();
    world.machine.on = true;
    world.host().spec.inspection_mode = Some(muster_proto::kinds::InspectionMode::Disabled);
    world.reach(State::Available);
    world.settle();
    world.host().spec.online = false;
    let mut orders = Vec::new();
    for _ in 0..20 {
        let plan = world.plan();
        orders.extend(power_orders(&plan));
        world.execute(plan, None, Fault::None);
        world.tick(5);
    }
    assert_eq!(orders, [PowerOrder::SoftOff]);
    assert!(!world.machine.on);
}

#[test]
fn an_image_that_another_operator_began_with_is_the_one_that_is_said_to_run() {
    let mut world = at(State::Available);
    world.settle();
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioning);
    world.host().status.as_mut().unwrap().last_attempted_image = None;
    world.reach_job();
    world.set_image(Some("http://images.test/other.raw"));
    world.reach(State::Provisioned);
    let runs = world
        .host()
        .status
        .clone()
        .unwrap()
        .provisioning
        .image
        .unwrap()
        .url;
    assert_eq!(world.machine.disk, super::world::Content::Image(runs));
}

#[test]
fn the_image_that_is_said_to_run_is_the_one_that_was_ordered_whatever_its_checksum_is_by_then() {
    // Where the job lasts, and where it is made anew, for another session.
    for anew in [false, true] {
        let mut world = at(State::Provisioning);
        world.jobs_take = 3;
        world.reach_job();
        let asked = |world: &mut World| world.host().spec.image.clone();
        let before = asked(&mut world);
        world.host().spec.image.as_mut().unwrap().checksum = Some("b".repeat(64));
        if anew {
            world.power(PowerOrder::Reset);
        }
        world.reach(State::Provisioned);
        let runs = world.host().status.clone().unwrap().provisioning.image;
        let now = asked(&mut world);
        assert_eq!(runs, if anew { now } else { before }, "{anew}");
        world.settle();
        assert_eq!(world.state(), State::Provisioned);
    }
}

#[test]
fn an_error_is_still_to_be_seen_once_a_host_has_a_place() {
    let mut world = at(State::Deprovisioning);
    let status = world.host().status.as_mut().unwrap();
    (status.error_type, status.error_message) = (Some(ErrorType::Provisioning), "it failed".to_owned());
    status.operational_status = muster_proto::kinds::OperationalStatus::Delayed;
    let plan = world.plan();
    let status = plan.status.unwrap();
    assert_eq!(status.error_type, Some(ErrorType::Provisioning));
    assert_eq!(
        status.operational_status,
        muster_proto::kinds::OperationalStatus::Error
    );
}

#[test]
fn a_host_whose_kind_knows_no_last_attempted_image_is_provisioned_without_an_endless_write() {
    let mut world = at(State::Available);
    world.older_kind = true;
    world.settle();
    for url in [IMAGE, "http://images.test/other.raw"] {
        world.set_image(Some(url));
        let writes = world.status_writes;
        world.until("provisioned with it", |world| {
            let status = world.host.as_ref().unwrap().status.as_ref().unwrap();
            let runs = status.provisioning.image.as_ref();
            world.state() == State::Provisioned && runs.is_some_and(|image| image.url == url)
        });
        assert_eq!(world.machine.disk, super::world::Content::Image(url.to_owned()));
        let writes = world.status_writes - writes;
        assert!(writes < 40, "{writes}");
    }
    assert_eq!(world.machine.writes.len(), 2);
}

#[test]
fn failures_are_counted_and_given_up_where_the_kind_has_no_field_for_them() {
    for older_kind in [false, true] {
        let mut world = at(State::Available);
        world.older_kind = older_kind;
        world.host().metadata.generation = Some(1);
        world.retries = 3;
        world.settle();
        let begun = world.now;
        world.failing_writes = usize::MAX;
        world.set_image(Some(IMAGE));
        world.settle();
        assert_eq!(world.state(), State::Available);
        assert_eq!(usize::MAX - world.failing_writes, 3, "{older_kind}");
        // With pauses that double, of which the first is a minute and a half.
        let took = world.now.duration_since(begun).as_secs();
        assert!(took > 200, "{took}");
        let status = world.host().status.clone().unwrap();
        assert!(
            status.error_message.starts_with("gave up after 3 attempts: "),
            "{}",
            status.error_message
        );
        world.failing_writes = 0;
        world.set_image(Some("http://images.test/other.raw"));
        world.host().metadata.generation = Some(99);
        world.reach(State::Provisioned);
        let status = world.host().status.clone().unwrap();
        let failed = status
            .conditions
            .iter()
            .any(|one| one.type_ == "ProvisioningFailed");
        assert!(!failed && status.provisioning_fail_count == 0);
    }
}

#[test]
fn of_a_machine_that_cannot_leave_its_ramdisk_or_comes_back_to_it_a_person_hears() {
    for fails in [true, false] {
        let mut world = at(State::Provisioned);
        world.settle();
        world.call_in();
        world.failing_ends = usize::from(fails);
        let jobs = world.machine.jobs;
        world.until("told", |world| world.machine.jobs > jobs);
        if !fails {
            world.until("gone", |world| world.machine.ramdisk.is_none());
            world.call_in();
        }
        world.until("a person", |world| {
            waiting(world).1.contains("reboot it with the annotation")
        });
        assert_eq!(world.machine.jobs - jobs, 1);
        let (_, message) = waiting(&world);
        assert_eq!(message.contains("is still in it: "), fails, "{message}");
    }
}

#[test]
fn a_machine_that_does_not_leave_its_ramdisk_is_told_once_and_costs_nothing_more() {
    let mut world = at(State::Provisioned);
    world.settle();
    world.call_in();
    let jobs = world.machine.jobs;
    let mut writes = 0;
    world.machine.deaf = true;
    for round in 0..600 {
        world.round();
        if round == 300 {
            writes = world.status_writes;
        }
    }
    assert!(world.machine.ramdisk.is_some());
    assert_eq!(world.machine.jobs - jobs, 1);
    assert_eq!(world.status_writes, writes);
    assert_eq!(waiting(&world).0, "Leave");
}
