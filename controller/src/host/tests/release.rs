//! How hosts are let go of, and go: nothing runs on unnoticed, and no attempt is judged by an answer of before.

use k8s_openapi::api::core::v1::SecretReference;
use muster_proto::{
    inventory::{Disk, Transport},
    job,
    kinds::{
        AutomatedCleaningMode, ErrorType, HostBootMode, JobStatus, PROTECTED_ANNOTATION, RELEASE_ANNOTATION,
        RootDeviceHints,
    },
};

use super::{
    super::{
        State,
        observed::{Failure, FailureClass, Power, SecretState, Tried},
        plan::{BmcCall, Effect, PowerOrder},
        rivals,
    },
    life::waiting,
    transitions::at,
    world::{Content, Fault, IMAGE, World, disk, secret},
};

/// One whose disks are not to be cleaned.
fn uncleaned(mut world: World) -> World {
    world.host().spec.automated_cleaning_mode = Some(AutomatedCleaningMode::Disabled);
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    world.settle();
    world
}

#[test]
fn what_a_host_runs_ends_before_it_is_available_also_where_nothing_is_cleaned() {
    let mut world = uncleaned(World::in_band());
    assert!(world.machine.on && world.machine.ramdisk.is_none());
    world.set_image(None);
    world.settle();
    assert_eq!(world.state(), State::Deprovisioning);
    assert_eq!(waiting(&world).0, "PowerCycleByHand");
    world.obey();
    world.reach(State::Available);
    assert!(world.machine.ramdisk.is_some());

    let mut world = World::new();
    world.host().spec.disable_power_off = Some(true);
    let mut world = uncleaned(world);
    world.set_image(None);
    world.reach(State::Available);
    assert!(world.machine.on && world.machine.ramdisk.is_some());
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}

#[test]
fn a_machine_that_is_off_is_let_go_as_it_is_also_where_it_must_not_be_switched_off() {
    let mut world = World::new();
    world.host().spec.disable_power_off = Some(true);
    let mut world = uncleaned(world);
    world.power(PowerOrder::HardOff);
    world.host().spec.online = false;
    world.set_image(None);
    let boots = world.machine.boots;
    world.reach(State::Available);
    assert_eq!((world.machine.on, world.machine.boots), (false, boots));
}

#[test]
fn a_machine_without_bmc_whose_ramdisk_fell_silent_a_moment_ago_is_switched_off_when_it_is_back() {
    for is_back in [true, false] {
        let mut world = World::in_band();
        world.reach(State::Available);
        world.settle();
        world.disconnect();
        world.delete();
        for _ in 0..10 {
            let plan = world.plan();
            world.execute(plan, None, Fault::None);
            world.tick(2);
        }
        assert_eq!(world.state(), State::PoweringOffBeforeDelete);
        if is_back {
            world.call_back();
        }
        world.until("gone", |world| world.host.is_none());
        assert_eq!(world.machine.on, !is_back);
        let is_told = world.events.contains(&"DeletedUnreachable".to_owned());
        assert_eq!(is_told, !is_back, "{:?}", world.events);
    }
}

#[test]
fn a_deletion_asks_the_bmc_at_each_attempt_and_cleans_when_it_answers() {
    let mut world = at(State::Provisioned);
    world.settle();
    // A BMC that starts refuses what it took before.
    let at = world.now;
    let probed = world.bmc.probed.as_mut().unwrap();
    probed.result = Err(Failure {
        class: FailureClass::Credentials,
        message: "401".to_owned(),
        at,
    });
    probed.at = at;
    world.delete();
    world.until("gone", |world| world.host.is_none());
    assert_eq!(
        (world.machine.cleans, world.machine.on),
        (2, false),
        "before its image, and after it"
    );
    assert!(!world.events.contains(&"NotCleaned".to_owned()));
}

#[test]
fn a_deletion_hears_what_the_bmc_answers_to_its_last_attempt() {
    let mut world = at(State::Available);
    world.settle();
    world.bmc_up = false;
    world.delete();
    world.until("three attempts", |world| {
        let status = world.host.as_ref().and_then(|host| host.status.as_ref());
        status.is_none_or(|status| status.error_count == 3)
    });
    world.bmc_up = true;
    world.until("gone", |world| world.host.is_none());
    assert!(!world.machine.on);
}

#[test]
fn a_deletion_ends_with_a_bmc_that_never_answers_or_never_lets_in() {
    for class in [FailureClass::Unreachable, FailureClass::Credentials] {
        let mut world = at(State::Provisioned);
        world.settle();
        world.bmc_up = false;
        world.delete();
        let mut rounds = 0;
        while world.host.is_some() {
            world.round();
            for failure in world.bmc.unread.iter_mut().chain(
                world
                    .bmc
                    .probed
                    .iter_mut()
                    .filter_map(|probed| probed.result.as_mut().err()),
            ) {
                failure.class = class;
            }
            rounds += 1;
            assert!(rounds < 2000, "{class:?}");
        }
        let told = world.events.iter().filter(|event| *event == "DeletedUnreachable");
        assert_eq!(told.count(), 1, "{class:?}: {:?}", world.events);
    }
}

/// Its BMC keeps us out for such a reason, and did so before.
fn keeps_us_out(world: &mut World, class: FailureClass) {
    world.bmc_up = false;
    let at = world.now;
    let probed = world.bmc.probed.as_mut().unwrap();
    probed.result = Err(Failure {
        class,
        message: "it says so.".to_owned(),
        at,
    });
    probed.at = at;
}

/// `Manageable` and the kind of error of a host that is there.
pub(super) fn manageable(world: &World) -> Option<(String, String, Option<ErrorType>)> {
    let status = world.host.as_ref()?.status.clone()?;
    let mut conditions = status.conditions.into_iter();
    let one = conditions.find(|one| one.type_ == "Manageable")?;
    Some((one.status, one.reason, status.error_type))
}

#[test]
fn a_host_that_goes_is_not_manageable_as_long_as_its_bmc_is_known_to_keep_us_out() {
    for state in [State::Available, State::Provisioned] {
        for (class, expected) in [
            (FailureClass::Credentials, "RegistrationFailed"),
            (FailureClass::System, "RegistrationFailed"),
            (FailureClass::Unreachable, "PowerFailure"),
        ] {
            let mut world = at(state);
            world.settle();
            keeps_us_out(&mut world, class);
            world.delete();
            let mut failures = 0;
            for _ in 0..2000 {
                world.round();
                let probed = world.bmc.probed.as_mut();
                if let Some(Err(failure)) = probed.map(|probed| &mut probed.result) {
                    failure.class = class;
                }
                let Some((status, reason, error)) = manageable(&world) else {
                    break;
                };
                if failures == 0 && error.is_none() {
                    continue;
                }
                failures += usize::from(waiting(&world).0 == "Retry");
                assert_eq!(
                    (status.as_str(), reason.as_str()),
                    ("False", expected),
                    "{class:?}"
                );
                assert_ne!(error, Some(ErrorType::Registration), "{class:?}");
            }
            assert!(
                world.host.is_none() && failures > 3,
                "{state} {class:?}: {failures}"
            );
        }
    }
}

#[test]
fn a_host_that_goes_is_not_manageable_while_its_bmc_does_not_say_whether_the_machine_is_on() {
    for state in [State::Available, State::Provisioned] {
        let mut world = at(state);
        world.settle();
        world.says_nothing_of_power = true;
        world.read_power();
        world.delete();
        world.until("two attempts", |world| {
            let status = world.host.as_ref().and_then(|host| host.status.as_ref());
            status.is_none_or(|status| status.error_count == 2)
        });
        let is = |status: &str, reason: &str| Some((status.to_owned(), reason.to_owned()));
        let of = |world: &World| manageable(world).map(|(status, reason, _)| (status, reason));
        assert_eq!(of(&world), is("False", "PowerFailure"), "{state:?}");
        // And while the next one is waited for.
        world.round();
        assert_eq!(of(&world), is("False", "PowerFailure"), "{state:?}");
    }
}

#[test]
fn a_deletion_says_once_when_its_bmc_is_asked_again() {
    for class in [FailureClass::Credentials, FailureClass::System] {
        let mut world = at(State::Available);
        world.settle();
        keeps_us_out(&mut world, class);
        world.delete();
        world.until("an attempt", |world| waiting(world).0 == "Retry");
        let (_, message) = waiting(&world);
        assert!(message.contains("; next: retrying after "), "{message}");
        assert!(!message.contains("asked again"), "{message}");
    }
}

#[test]
fn failures_of_another_kind_are_no_reason_to_let_a_machine_go_uncleaned() {
    let mut world = at(State::Provisioned);
    world.settle();
    let status = world.host().status.as_mut().unwrap();
    status.error_type = Some(ErrorType::Registration);
    status.error_message = "the Secret had a wrong password".to_owned();
    status.error_count = 7;
    world.delete();
    world.until("gone", |world| world.host.is_none());
    assert_eq!((world.machine.cleans, world.machine.on), (2, false));
}

#[test]
fn what_failed_before_a_deletion_is_none_of_its_attempts() {
    let mut world = at(State::Provisioned);
    world.settle();
    world.set_image(None);
    world.failing_jobs = 5;
    world.until("failed often", |world| world.failing_jobs == 0);
    assert_eq!((world.state(), world.machine.cleans), (State::Deprovisioning, 1));
    world.delete();
    world.until("gone", |world| world.host.is_none());
    assert_eq!((world.machine.cleans, world.machine.on), (2, false));
}

#[test]
fn a_disk_that_comes_to_light_after_the_cleaning_was_ordered_is_cleaned_too() {
    let mut world = at(State::Provisioned);
    world.settle();
    let ordered = |world: &World| {
        let job = world.server.as_ref()?.spec.job.as_ref()?;
        Some(job.clean.as_ref()?.unpack().disks.len())
    };
    world.jobs_take = 60;
    world.set_image(None);
    world.until("being cleaned", |world| world.machine.working.is_some());
    assert_eq!(ordered(&world), Some(1));
    world.change_inventory(|inventory| {
        let mut disk = inventory.disks[0].clone();
        disk.name = "/dev/sdb".to_owned();
        disk.serial = "serial-sdb".to_owned();
        inventory.disks.push(disk);
    });
    world.until("told", |world| {
        let status = world.host.as_ref().unwrap().status.as_ref().unwrap();
        status.error_message.contains("/dev/sdb appeared")
    });
    world.until("being cleaned once more", |world| ordered(world) == Some(2));
    world.until("cleaned as a whole", |world| world.state() == State::Available);
    assert_eq!(world.machine.cleans, 3);
}

#[test]
fn disks_that_are_being_cleared_are_cleared_to_the_end_whatever_is_wanted_by_then() {
    let mut world = at(State::Provisioned);
    world.settle();
    let cleans = world.machine.cleans;
    world.jobs_take = 60;
    world.set_image(None);
    world.until("being cleaned", |world| world.machine.working.is_some());
    world.host().spec.automated_cleaning_mode = Some(AutomatedCleaningMode::Disabled);
    // Also where its connection breaks for a moment.
    let mut silent = world.clone();
    silent.disconnect();
    let plan = silent.plan();
    assert!(plan.effects.is_empty(), "{plan:?}");
    world.until("available", |world| world.state() == State::Available);
    assert!(world.machine.working.is_none());
    assert_eq!(world.machine.cleans, cleans + 1);
    assert!(
        !world.events.contains(&"NotCleaned".to_owned()),
        "{:?}",
        world.events
    );
}

#[test]
fn a_secret_that_cannot_be_read_is_let_go_of_before_the_host_goes() {
    let mut world = at(State::Available);
    world.settle();
    world.delete();
    world.reach(State::Deleting);
    let readable = world.secrets.bmc.clone();
    assert!(readable.finalizer);
    world.secrets.bmc.state = SecretState::Unreadable("no answer within 10 s".to_owned());
    world.secrets.bmc.finalizer = false;
    for _ in 0..5 {
        world.round();
    }
    assert_eq!(world.state(), State::Deleting);
    assert!(world.host.is_some());
    assert_eq!(waiting(&world).0, "Inputs");
    world.secrets.bmc = readable;
    world.until("gone", |world| world.host.is_none());
    assert!(!world.secrets.bmc.finalizer);

    // But not for ever: nobody may be allowed to read it.
    let mut world = at(State::Available);
    world.delete();
    world.reach(State::Deleting);
    world.secrets.bmc.state = SecretState::Unreadable("secrets is forbidden".to_owned());
    world.secrets.bmc.finalizer = false;
    world.until("gone", |world| world.host.is_none());
}

#[test]
fn a_deletion_ends_with_a_secret_of_the_bmc_that_can_never_be_read() {
    for state in [State::Provisioned, State::Available] {
        let mut world = at(state);
        world.settle();
        world.secrets.bmc.state = SecretState::Unreadable("secrets is forbidden".to_owned());
        world.delete();
        for _ in 0..5 {
            world.round();
        }
        assert_eq!(waiting(&world).0, "Inputs");
        world.until("gone", |world| world.host.is_none());
    }
}

#[test]
fn a_deletion_asks_a_bmc_again_that_said_neither_on_nor_off() {
    let mut world = at(State::Available);
    world.settle();
    world.delete();
    world.reach(State::PoweringOffBeforeDelete);
    let count = |world: &World| {
        let host = world.host.as_ref().unwrap();
        host.status.as_ref().unwrap().error_count
    };
    // Until its last attempt.
    for _ in 0..300 {
        if count(&world) == 3 {
            break;
        }
        world.round();
        if let Some(reading) = world.bmc.power.as_mut() {
            reading.power = Power::Unknown;
        }
    }
    assert_eq!(count(&world), 3);
    world.until("gone", |world| world.host.is_none());
    assert!(!world.machine.on);
}

#[test]
fn a_host_that_is_let_go_is_available_though_it_asks_for_what_is_not_to_be_had() {
    let mut world = at(State::Provisioned);
    world.settle();
    world.host().spec.boot_mode = Some(HostBootMode::UefiSecureBoot);
    world.host().spec.online = false;
    world.set_image(None);
    world.settle();
    assert_eq!(world.state(), State::Available);
    let status = world.host().status.clone().unwrap();
    assert_eq!(status.error_type, Some(ErrorType::Preparation));
    assert!(!world.machine.on);
    // Nothing is written to it.
    world.host().spec.online = true;
    world.set_image(Some(IMAGE));
    world.settle();
    assert_eq!((world.state(), world.machine.writes.len()), (State::Available, 1));
    world.host().spec.boot_mode = Some(HostBootMode::Uefi);
    world.mode = muster_proto::inventory::BootMode::Uefi;
    world.reach(State::Provisioned);
}

#[test]
fn secrets_of_another_namespace_are_not_taken_for_those_of_the_hosts_own() {
    let mut world = at(State::Available);
    world.host().spec.user_data = Some(SecretReference {
        name: Some("user".to_owned()),
        namespace: Some("elsewhere".to_owned()),
    });
    world.secrets.user_data = secret("7", "user");
    world.set_image(Some(IMAGE));
    world.settle();
    assert_eq!(world.state(), State::Available);
    let message = world.host().status.clone().unwrap().error_message;
    assert!(message.contains("in the namespace elsewhere"), "{message}");
    let own = world.host().metadata.namespace.clone();
    world.host().spec.user_data.as_mut().unwrap().namespace = own;
    world.reach(State::Provisioned);
}

#[test]
fn a_machine_that_is_switched_on_to_be_available_boots_its_ramdisk() {
    let mut world = at(State::Available);
    assert!(!world.machine.network_first);
    world.host().spec.online = false;
    world.settle();
    assert!(!world.machine.on);
    world.host().spec.online = true;
    world.settle();
    assert!(world.machine.on && world.machine.ramdisk.is_some());
    assert!(
        !world
            .plan()
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Bmc(BmcCall::BootNetworkOnce { .. })))
    );
}

/// An available host that was off and is to be on.
fn is_to_be_on() -> World {
    let mut world = at(State::Available);
    world.host().spec.online = false;
    world.settle();
    world.host().spec.online = true;
    world
}

fn arms(effect: &Effect) -> bool {
    matches!(effect, Effect::Bmc(BmcCall::BootNetworkOnce { .. }))
}

#[test]
fn a_bmc_that_fails_to_arm_the_network_boot_is_asked_again_and_in_the_end_switches_its_machine_on() {
    for (class, times, in_ramdisk) in [
        (FailureClass::Unsupported, 1, false),
        (FailureClass::Busy, 1, true),
        (FailureClass::Unreachable, 2, true),
        (FailureClass::Busy, usize::MAX, false),
    ] {
        let mut world = is_to_be_on();
        let (mut refused, begun) = (0, world.now);
        while !world.machine.on {
            assert!(world.now.duration_since(begun).as_mins() < 5, "{class:?}");
            let plan = world.plan();
            let is_refused = refused < times && plan.effects.iter().any(arms);
            world.execute(plan, None, if is_refused { Fault::Fails } else { Fault::None });
            if let Some(Tried {
                result: Err(failure), ..
            }) = &mut world.tried
            {
                failure.class = class;
            }
            refused += usize::from(is_refused);
            let status = world.host().status.clone().unwrap();
            assert_eq!(status.error_type, None, "{class:?}");
            world.tick(11);
        }
        world.settle();
        assert!(refused > 0 && world.machine.on, "{class:?}");
        assert_eq!(world.machine.ramdisk.is_some(), in_ramdisk, "{class:?} {times}");
    }
}

#[test]
fn a_bmc_that_was_silent_after_it_failed_to_arm_is_asked_once_more() {
    let mut world = is_to_be_on();
    let mut failed = false;
    for _ in 0..100 {
        let plan = world.plan();
        let fails = plan.effects.iter().any(arms) && !failed;
        world.execute(plan, None, if fails { Fault::Fails } else { Fault::None });
        if fails {
            failed = true;
            world.tick(300);
        }
        world.tick(2);
    }
    assert!(failed && world.machine.on && world.machine.ramdisk.is_some());
}

#[test]
fn a_machine_that_is_off_in_the_middle_of_its_boot_into_the_ramdisk_is_not_let_go_for_that() {
    let mut world = World::new();
    world.host().spec.disable_power_off = Some(true);
    let mut world = uncleaned(world);
    world.set_image(None);
    let boots = |world: &World| {
        let tried = world.tried.as_ref();
        tried.is_some_and(|tried| {
            tried.operation.contains("deprovision") && tried.operation.ends_with("-boot")
        })
    };
    while !boots(&world) {
        world.step(2);
    }
    world.machine.on = false;
    for _ in 0..3 {
        world.step(2);
    }
    assert_eq!(world.state(), State::Deprovisioning);
    world.machine.on = true;
    world.reach(State::Available);
    assert!(world.machine.ramdisk.is_some());
}

#[test]
fn of_disks_that_were_left_out_of_a_cleaning_it_is_told() {
    let mut world = at(State::Available);
    world.add_twins();
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    world.settle();
    let called = |world: &World| {
        let all = world.events.iter();
        all.filter(|reason| *reason == "DisksLeft").count()
    };
    assert_eq!(called(&world), 1, "cleaned before its first image");
    world.set_image(None);
    world.reach(State::Available);
    assert_eq!(called(&world), 2);
}

/// Its controller may not have come up with this boot.
#[test]
fn of_a_disk_that_is_not_seen_any_more_it_is_told_that_it_stays_as_it_is() {
    for (number, told) in [(true, 1), (false, 0)] {
        let mut world = World::new();
        world.until("a report", |world| world.server.is_some());
        world.change_inventory(|inventory| {
            let mut other = disk("sdb", 800);
            if !number {
                other.serial.clear();
                other.by_path = "/dev/disk/by-path/pci-0000:00:05.0".to_owned();
            }
            inventory.disks.push(other);
        });
        world.reach(State::Available);
        world.set_image(Some(IMAGE));
        world.reach(State::Provisioned);
        world.settle();
        world.change_inventory(|inventory| inventory.disks.truncate(1));
        world.set_image(None);
        world.reach(State::Available);
        let left = world.events.iter().filter(|reason| *reason == "DisksLeft");
        assert_eq!(left.count(), told);
    }
}

/// Deprovisioning, with its ramdisk at the cleaning.
fn cleaning() -> World {
    let mut world = at(State::Provisioned);
    world.settle();
    world.jobs_take = 60;
    world.set_image(None);
    world.until("cleaning", |world| world.machine.working.is_some());
    world
}

#[test]
fn what_is_said_of_disks_that_are_not_wanted_clean_any_more_is_so() {
    let ends = |world: &mut World| {
        world.reach(State::Available);
        let told = |reason: &str| world.events.iter().any(|event| event == reason);
        (told("NotCleaned"), world.machine.cleans)
    };
    // It was never ordered: the disks are as they were.
    let mut world = at(State::Provisioned);
    world.settle();
    let cleans = world.machine.cleans;
    world.set_image(None);
    world.reach(State::Deprovisioning);
    world.host().spec.automated_cleaning_mode = Some(AutomatedCleaningMode::Disabled);
    assert_eq!(ends(&mut world), (false, cleans));
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));

    // It may have been given a moment ago.
    let mut world = at(State::Provisioned);
    world.settle();
    world.set_image(None);
    world.machine.deaf = true;
    world.until("placed", |world| {
        let job = world.server.as_ref().and_then(|server| server.spec.job.as_ref());
        job.is_some_and(|job| job.id.starts_with("host-deprovision-"))
    });
    world.host().spec.automated_cleaning_mode = Some(AutomatedCleaningMode::Disabled);
    assert!(ends(&mut world).0);

    // It failed half-way.
    let mut world = cleaning();
    world.failing_jobs = 1;
    world.until("failed", |world| world.failing_jobs == 0);
    world.host().spec.automated_cleaning_mode = Some(AutomatedCleaningMode::Disabled);
    assert!(ends(&mut world).0);

    // Somebody wants the disks as they are, too late.
    let mut world = cleaning();
    world.annotate(RELEASE_ANNOTATION, "");
    assert!(ends(&mut world).0);
    assert!(!world.annotated(RELEASE_ANNOTATION));
}

/// What the Event with this `reason` says that is told next.
pub(super) fn told(world: &mut World, reason: &str) -> String {
    for _ in 0..2000 {
        let events = world.plan().events;
        if let Some(event) = events.into_iter().find(|event| event.reason == reason) {
            return event.message;
        }
        world.round();
    }
    panic!("never told {reason}: {:?}", world.events);
}

#[test]
fn what_a_claim_ran_ends_before_it_is_released_uncleaned_if_its_bmc_sees_to_that() {
    type Case = (fn(&mut World), bool);
    let cases: [Case; 8] = [
        (|_| {}, true),
        (|world| world.bmc_up = false, false),
        (|world| world.says_nothing_of_power = true, false),
        (|world| world.unknown_orders = &[PowerOrder::HardOff], false),
        (|world| world.ignored_orders = &[PowerOrder::HardOff], false),
        (|world| world.secrets.bmc.state = SecretState::Missing, false),
        (|world| world.host().spec.disable_power_off = Some(true), false),
        (|world| world.annotate(PROTECTED_ANNOTATION, ""), false),
    ];
    for (which, (change, ends)) in cases.into_iter().enumerate() {
        let mut world = at(State::Deprovisioning);
        assert!(world.machine.on && world.machine.ramdisk.is_none(), "it runs");
        change(&mut world);
        // Whoever leads now has not asked the BMC yet.
        world.restart();
        world.annotate(RELEASE_ANNOTATION, "");
        let asked = world.now;
        let message = told(&mut world, "NotCleaned");
        assert_eq!(
            message.contains("may still be running"),
            !ends,
            "{which}: {message}"
        );
        world.reach(State::Available);
        assert!(!world.annotated(RELEASE_ANNOTATION), "{which}");
        assert_eq!(world.machine.on, !ends, "{which}");
        assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()), "{which}");
        let took = world.now.duration_since(asked);
        assert!(took.as_mins() < 5, "{which}: {took:?}");
    }
    // What cannot be read is waited for, as in a deletion, but not for ever.
    for comes in [true, false] {
        let mut world = at(State::Deprovisioning);
        let there = world.secrets.bmc.clone();
        world.secrets.bmc.state = SecretState::Unreadable("no answer".to_owned());
        world.restart();
        world.annotate(RELEASE_ANNOTATION, "");
        let asked = world.now;
        for _ in 0..5 {
            world.round();
        }
        assert_eq!(world.state(), State::Deprovisioning, "it is waited for");
        if comes {
            world.secrets.bmc = there;
        }
        world.reach(State::Available);
        assert_eq!(world.machine.on, !comes);
        assert!(world.now.duration_since(asked).as_mins() < 20);
    }
}

#[test]
fn why_no_disk_may_be_cleared_is_said() {
    let mut world = at(State::Deprovisioning);
    world.change_inventory(|inventory| {
        for disk in &mut inventory.disks {
            disk.transport = Transport::Usb;
        }
    });
    let message = told(&mut world, "NotCleaned");
    let why = "the ramdisk found no disk that may be cleared: /dev/";
    assert!(message.contains(why), "{message}");
}

/// The second one was mapped while the host ran its image, and the hint is no more than what both their names begin with.
#[test]
fn of_disks_behind_a_network_that_hints_do_not_tell_apart_any_more_it_is_told() {
    let wwn = "0x600508b1001c0000";
    let lun = |name: &str, unit: u8| Disk {
        wwn: wwn.to_owned(),
        wwn_with_extension: format!("{wwn}000000000000000{unit}"),
        transport: Transport::Fc,
        ..disk(name, 40)
    };
    for (has_local, reason) in [(true, "DisksLeft"), (false, "NotCleaned")] {
        let mut world = at(State::Available);
        world.change_inventory(|inventory| {
            inventory.disks.truncate(usize::from(has_local));
            inventory.disks.push(lun("sdx", 0));
        });
        world.host().spec.root_device_hints = Some(Box::new(RootDeviceHints {
            wwn: Some(wwn.to_owned()),
            ..RootDeviceHints::default()
        }));
        world.settle();
        world.set_image(Some(IMAGE));
        world.reach(State::Provisioned);
        world.settle();
        world.change_inventory(|inventory| inventory.disks.push(lun("sdy", 1)));
        world.set_image(None);
        let message = told(&mut world, reason);
        for name in ["/dev/sdx", "/dev/sdy"] {
            let why = format!("{name} is one of several disks that match the root device hints");
            assert!(message.contains(&why), "{message}");
        }
    }
}

#[test]
fn an_event_about_a_beginning_says_that_something_begins() {
    type Case = (State, fn(&mut World), &'static str, &'static str);
    let cases: [Case; 6] = [
        (State::New, |_| {}, "InspectionStarted", "inspection starts"),
        (
            State::Available,
            |world| world.set_image(Some(IMAGE)),
            "ProvisioningStarted",
            "starts writing the image ",
        ),
        (
            State::Provisioned,
            |world| world.set_image(None),
            "DeprovisioningStarted",
            "deprovisioning starts",
        ),
        (
            State::Provisioned,
            |world| world.host().spec.online = false,
            "PowerOff",
            "powering off the machine",
        ),
        (
            State::Provisioned,
            |world| world.machine.on = false,
            "PowerOn",
            "powering on the machine",
        ),
        (
            State::New,
            |world| world.secrets.bmc.state = SecretState::Missing,
            "BMCCredentialError",
            "the Secret bmc with the BMC's credentials does not exist; next: create it with the keys username and password, or ",
        ),
    ];
    for (state, change, reason, begins) in cases {
        let mut world = at(state);
        change(&mut world);
        let message = told(&mut world, reason);
        assert!(message.starts_with(begins), "{message}");
    }
}

#[test]
fn of_a_protected_host_that_is_deleted_it_is_said_that_its_disks_keep_their_data() {
    let mut world = at(State::Provisioned);
    world.settle();
    world.annotate(PROTECTED_ANNOTATION, "");
    world.delete();
    for reason in ["DeprovisioningStarted", "NotCleaned"] {
        let message = told(&mut world, reason);
        let is_kept = message.ends_with("disks keep their data, because the host is protected");
        assert!(is_kept, "{message}");
    }
}

#[test]
fn of_one_that_is_deleted_in_the_middle_of_a_write_it_is_not_said_that_its_disks_keep_their_data() {
    let mut world = at(State::Provisioning);
    world.jobs_take = 60;
    world.until("written", |world| {
        let working = world.machine.working.as_ref();
        working.is_some_and(|(id, _)| id.contains("-write"))
    });
    world.annotate(PROTECTED_ANNOTATION, "");
    world.delete();
    let begun = told(&mut world, "DeprovisioningStarted");
    assert!(
        begun.contains("while its disks are being cleared or written"),
        "{begun}"
    );
    let ended = told(&mut world, "NotCleaned");
    assert!(
        ended.starts_with("not all disks are known to be clean: "),
        "{ended}"
    );
}

#[test]
fn a_write_that_failed_is_no_cleaning_that_was_broken_off() {
    let mut world = at(State::Provisioning);
    world.host().spec.automated_cleaning_mode = Some(AutomatedCleaningMode::Disabled);
    world.failing_writes = 1;
    world.reach(State::Deprovisioning);
    world.reach(State::Provisioned);
    assert!(
        !world.events.contains(&"NotCleaned".to_owned()),
        "{:?}",
        world.events
    );
}

/// What is said of a protected host that is deleted, of whose Server the latest job is `id`.
fn told_after(id: &str, change: impl FnOnce(&mut JobStatus)) -> bool {
    let mut world = at(State::Provisioned);
    world.settle();
    let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
    let job = status.job.as_mut().unwrap();
    job.id = id.replace("OURS", job.id.split("-write").next().unwrap());
    change(job);
    world.server.as_mut().unwrap().spec.job = None;
    world.bump();
    world.annotate(PROTECTED_ANNOTATION, "");
    world.delete();
    told(&mut world, "DeprovisioningStarted").contains("its disks keep their data")
}

#[test]
fn of_a_protected_host_that_is_deleted_its_own_last_job_tells_whether_its_disks_keep_their_data() {
    let fails = |job: &mut JobStatus| job.error = "no".to_owned();
    assert!(told_after("OURS-write-1", |_| {}));
    assert!(!told_after("OURS-write-1", |job| job.done = false));
    assert!(!told_after("OURS-write-1", fails));
    assert!(told_after("OURS-write-1", |job| {
        fails(job);
        job.failure = Some(job::Failure::Outdated);
    }));
    assert!(!told_after("OURS-clean", |_| {}), "the write was withheld");
    let others = "host-provision-another-1767225600-0";
    assert!(told_after(&format!("{others}-write-1"), fails));
    assert!(told_after(&format!("{others}-clean"), |_| {}));
}

#[test]
fn a_deletion_that_gives_up_cleaning_says_what_failed() {
    let mut world = cleaning();
    assert!(waiting(&world).1.contains("next: the host is available"));
    world.failing_jobs = usize::MAX;
    world.delete();
    world.until("told", |world| {
        let next = "next: the machine is powered off and the host is deleted";
        waiting(world).1.contains(next)
    });
    let message = told(&mut world, "NotCleaned");
    assert!(
        message.starts_with("not all disks are known to be clean: ")
            && message.contains("(cleaning failed 4 times; last error: the disks could not be cleaned: "),
        "{message}"
    );
}

#[test]
fn a_host_that_is_deleted_uncleaned_is_not_said_to_be_available_next() {
    let mut world = uncleaned(World::new());
    world.delete();
    world.until("told", |world| {
        waiting(world).1.contains("to be off; next: the host is deleted")
    });
}

#[test]
fn why_a_machine_is_neither_cleaned_nor_switched_off_is_said() {
    type Case = (State, fn(&mut World), &'static str);
    let cases: [Case; 3] = [
        (
            State::Foreign,
            |_| {},
            "the state `hibernating` of the host is unknown to this version",
        ),
        (
            State::Available,
            |world| world.secrets.bmc.state = SecretState::Missing,
            "the Secret bmc with the BMC's credentials does not exist",
        ),
        (
            State::Available,
            |world| world.host().spec.bmc = None,
            "the host has neither a BMC nor the annotation muster.dev/in-band",
        ),
    ];
    for (state, spoil, why) in cases {
        let mut world = at(state);
        spoil(&mut world);
        world.delete();
        let message = told(&mut world, "DeletedUnreachable");
        let is_said = message.contains(why) && message.contains("neither cleaned nor powered off");
        assert!(is_said, "{message}");
    }
}

#[test]
fn why_a_machine_that_is_let_go_is_not_switched_off_is_said() {
    let fails = |world: &mut World, why: &str| {
        world.until(why, |world| {
            let status = world.host.as_ref().and_then(|host| host.status.as_ref());
            status.is_some_and(|status| status.error_message.contains(why))
        });
    };
    // By its ramdisk.
    let mut world = World::in_band();
    world.reach(State::Available);
    world.settle();
    world.failing_ends = 100;
    world.delete();
    fails(&mut world, "the ramdisk did not power off the machine: ");
    // By its BMC, of one that is not cleaned.
    let mut world = uncleaned(World::new());
    world.bmc_up = false;
    world.set_image(None);
    fails(&mut world, "the BMC does not report the power state: it says so");
}

#[test]
fn a_host_that_waits_for_its_power_state_says_why_that_is_unknown() {
    for (mut world, next) in [
        (at(State::Provisioned), "its disks are cleaned"),
        (uncleaned(World::new()), "it is powered off"),
    ] {
        world.settle();
        world.says_nothing_of_power = true;
        world.read_power();
        world.set_image(None);
        let says = format!(
            "waits for the BMC to report the power state: it reports neither on nor off; next: {next} (since "
        );
        world.until("said", |world| waiting(world).1.starts_with(&says));
    }
}

#[test]
fn nothing_is_in_the_way_of_a_host_that_is_merely_let_go() {
    let mut us = World::new();
    let mut twin = us.host().clone();
    twin.metadata.name = Some("twin".to_owned());
    twin.metadata.uid = Some("twin".to_owned());
    for (state, count) in [
        ("registering", 1),
        ("powering off before delete", 1),
        ("deleting", 0),
    ] {
        twin.status.get_or_insert_default().provisioning.state = state.to_owned();
        assert_eq!(rivals(us.host(), [&twin].into_iter()).len(), count, "{state}");
    }
}
