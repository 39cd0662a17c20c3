//! Whole lives without faults.

use std::cell::Cell;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use muster_proto::kinds::{AutomatedCleaningMode, IN_BAND_ANNOTATION, OperationMetric, OperationalStatus};

use super::{
    super::{
        Effect, State,
        plan::{PowerOrder, Task},
    },
    transitions::at,
    world::{Content, Edge, Fault, IMAGE, Machine, World},
};

#[test]
fn a_host_with_a_bmc_becomes_available_by_every_state_of_upstream() {
    let mut world = World::new();
    world.reach(State::Available);
    assert_eq!(
        world.states,
        [
            State::New,
            State::Registering,
            State::Inspecting,
            State::Preparing,
            State::Available
        ]
    );
    let host = world.host();
    let status = host.status.clone().unwrap();
    assert_eq!(status.operational_status, OperationalStatus::Ok);
    assert!(status.error_message.is_empty());
    assert!(status.hardware.is_some() && status.good_credentials.is_some());
    let history = status.operation_history.unwrap();
    assert!(history.register.unwrap().end.is_some() && history.inspect.unwrap().end.is_some());
    assert_eq!(host.spec.architecture.as_deref(), Some("x86_64"));
    assert_eq!(world.machine.disk, Content::Old, "nothing was written yet");
    assert_eq!(world.status_writes, 4, "one for every state");
    world.settle();
    assert_eq!(world.status_writes, 4);
    assert_eq!(world.state(), State::Available);
    assert_eq!(world.machine.boots, 1, "the ramdisk is booted once");
}

#[test]
fn the_architecture_is_written_while_the_host_is_small() {
    let mut world = World::new();
    world.until("its architecture is known", |world| {
        world.host.as_ref().unwrap().spec.architecture.is_some()
    });
    assert!(world.host().status.as_ref().unwrap().hardware.is_none());
}

#[test]
fn another_architecture_than_somebody_wrote_is_told_with_the_inspection_and_changes_nothing() {
    for (said, is_told) in [
        ("aarch64", true),
        ("arm64", true),
        ("x86_64", false),
        ("amd64", false),
        ("X86_64", false),
        ("", false),
    ] {
        let mut world = World::new();
        world.host().spec.architecture = Some(said.to_owned());
        let complete = |world: &World| {
            let mut events = world.plan().events.into_iter();
            events.find(|event| event.reason == "InspectionComplete")
        };
        world.until("inspected", |world| complete(world).is_some());
        let message = complete(&world).unwrap().message;
        let tells = message.contains("is x86_64, but spec.architecture is aarch64");
        assert_eq!(tells, is_told, "{said}: {message}");
        world.reach(State::Available);
        if is_told {
            assert_eq!(world.host().spec.architecture.as_deref(), Some(said));
        }
        world.set_image(Some(IMAGE));
        world.reach(State::Provisioned);
    }
}

#[test]
fn an_image_is_written_in_the_ramdisk_that_runs_and_taken_away_again() {
    let mut world = World::new();
    world.reach(State::Available);
    world.set_image(Some(IMAGE));
    world.name_user_data();
    let writes = world.status_writes;
    world.reach(State::Provisioned);
    assert_eq!(world.status_writes, writes + 2, "begun, left");
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    assert_eq!(world.machine.writes.len(), 1);
    assert_eq!(world.machine.cleans, 1);
    // Once into the ramdisk, once into the image.
    assert_eq!(world.machine.boots, 2);
    world.settle();
    assert_eq!(world.state(), State::Provisioned);
    assert_eq!(world.machine.boots, 2);
    assert!(world.host().status.as_ref().unwrap().powered_on);
    // As CAPM3 lets go of a host: consumerRef stays, the image goes, and it is to be off.
    world.set_image(None);
    world.host().spec.online = false;
    world.until("off", |world| {
        world.state() == State::Available && !world.machine.on
    });
    world.settle();
    assert_eq!(world.machine.disk, Content::Blank);
    assert!(!world.host().status.as_ref().unwrap().powered_on);
    world.delete();
    world.until("gone", |world| world.host.is_none());
    assert!(!world.machine.on && !world.secrets.bmc.finalizer);
}

#[test]
fn a_host_without_a_bmc_is_provisioned_through_its_ramdisk_and_freed_by_hand() {
    let mut world = World::new();
    world.host().spec.bmc = None;
    world.machine.network_first = true;
    world.reach(State::Unmanaged);
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Management");
    assert!(
        message.contains("no Server is known") && !message.contains("status.session.key"),
        "{message}"
    );
    world.call_in();
    world.round();
    let message = waiting(&world).1;
    assert!(
        message.contains("in status.session.key of its Server"),
        "{message}"
    );
    world.annotate(IN_BAND_ANNOTATION, &format!("{:016X}{:048}", 1, 0));
    world.reach(State::Available);
    assert_eq!(world.machine.boots, 0, "what was found is not inspected again");
    world.set_image(Some(IMAGE));
    world.name_user_data();
    world.reach(State::Provisioned);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    world.settle();
    assert_eq!(world.machine.boots, 1);
    world.set_image(None);
    world.settle();
    assert_eq!(world.state(), State::Deprovisioning);
    let condition = waiting(&world);
    assert_eq!(condition.0, "PowerCycleByHand");
    assert!(condition.1.contains("armed since 2026-"), "{}", condition.1);
    world.power(super::super::plan::PowerOrder::Reset);
    world.reach(State::Available);
    assert_eq!(world.machine.disk, Content::Blank);
    world.delete();
    world.until("gone", |world| world.host.is_none());
}

#[test]
fn one_job_cleans_and_writes_and_where_the_edge_knows_only_the_first_half_another_one_follows() {
    for (edge, jobs) in [(Edge::Newest, 1), (Edge::KnowsNoLeave, 2), (Edge::KnowsNoThen, 3)] {
        let mut world = at(State::Available);
        world.edge = edge;
        world.set_image(Some(IMAGE));
        world.name_user_data();
        world.reach(State::Provisioned);
        assert_eq!((world.machine.cleans, world.machine.writes.len()), (1, 1));
        assert!(world.machine.drive.is_some());
        let (left, boots) = (usize::from(edge == Edge::Newest), world.machine.boots);
        assert_eq!((world.machine.jobs, world.machine.left), (jobs, left), "{edge:?}");
        world.settle();
        assert_eq!(
            (world.machine.jobs, world.machine.boots),
            (jobs, boots),
            "{edge:?}"
        );
    }
}

#[test]
fn a_machine_leaves_its_ramdisk_by_the_job_that_wrote_its_image_cleaned_before_or_not() {
    for in_band in [false, true] {
        for mode in [AutomatedCleaningMode::Metadata, AutomatedCleaningMode::Disabled] {
            let mut world = if in_band { World::in_band() } else { World::new() };
            world.reach(State::Available);
            world.host().spec.automated_cleaning_mode = Some(mode);
            world.set_image(Some(IMAGE));
            world.reach(State::Provisioned);
            world.settle();
            let boots = 2 - usize::from(in_band);
            let Machine { jobs, left, .. } = world.machine;
            assert_eq!(
                (jobs, left, world.machine.boots),
                (1, 1, boots),
                "{in_band} {mode:?}"
            );
            assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
        }
    }
}

#[test]
fn a_machine_that_reboots_in_the_middle_is_written_by_its_next_session_with_what_is_sealed_to_that() {
    for edge in [Edge::Newest, Edge::KnowsNoLeave, Edge::KnowsNoThen] {
        let mut world = at(State::Available);
        world.edge = edge;
        world.set_image(Some(IMAGE));
        world.name_user_data();
        let then = |world: &World| {
            let job = world.server.as_ref().unwrap().spec.job.clone();
            job.and_then(|job| job.then).map(|then| then.session)
        };
        // Without any time in which the agent could do something.
        let plan_until = |world: &mut World, done: &dyn Fn(&World) -> bool| {
            for _ in 0..20 {
                if done(world) {
                    return;
                }
                let plan = world.plan();
                world.execute(plan, None, Fault::None);
            }
            panic!("nothing is ordered: {:?}", world.plan());
        };
        plan_until(&mut world, &|world| then(world).is_some());
        let first = then(&world);
        world.power(PowerOrder::Reset);
        world.call_in();
        plan_until(&mut world, &|world| then(world).is_some() && then(world) != first);
        world.reach(State::Provisioned);
        assert_eq!((world.machine.cleans, world.machine.writes.len()), (1, 1));
    }
}

#[test]
fn without_cleaning_nothing_but_the_image_is_written() {
    let mut world = World::new();
    world.host().spec.automated_cleaning_mode = Some(AutomatedCleaningMode::Disabled);
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    world.set_image(None);
    world.reach(State::Available);
    assert_eq!(world.machine.cleans, 0);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    // That it left its ramdisk for the first image does not keep it from coming there for the second.
    world.settle();
    let other = "http://images.test/other.raw";
    world.set_image(Some(other));
    world.reach(State::Provisioned);
    assert_eq!(world.machine.disk, Content::Image(other.to_owned()));
}

/// What is said of the power.
pub(super) fn powered_on(world: &World) -> bool {
    world.host.as_ref().unwrap().status.as_ref().unwrap().powered_on
}

/// Reason and message of the condition that says what the host waits for.
pub(super) fn waiting(world: &World) -> (String, String) {
    let status = world.host.as_ref().unwrap().status.clone().unwrap();
    let waits = status
        .conditions
        .into_iter()
        .find(|one| one.type_ == "Waiting")
        .unwrap();
    assert!(!waits.message.contains(".;"), "{}", waits.message);
    (waits.reason, waits.message)
}

#[test]
fn a_host_in_the_middle_of_something_does_not_say_that_nothing_is_to_be_done() {
    let said = Cell::new(0);
    let look = |world: &World| {
        let status = world.host.as_ref().and_then(|host| host.status.as_ref());
        let conditions = || status.into_iter().flat_map(|status| &status.conditions);
        let of = |kind: &str| conditions().find(|one| one.type_ == kind);
        if let (Some(progress), Some(waits)) = (of("Progressing"), of("Waiting"))
            && waits.status == "False"
        {
            let goes_on = progress.status == "True";
            let expected = if goes_on { "UnderWay" } else { "Nothing" };
            assert_eq!(waits.reason, expected, "{}", progress.reason);
            said.set(said.get() + usize::from(goes_on));
        }
    };
    let mut world = World::new();
    for (image, state) in [
        (Some(IMAGE), State::Provisioned),
        (None, State::Deprovisioning),
        (None, State::Available),
    ] {
        world.set_image(image);
        world.until(state.name(), |world| {
            look(world);
            world.state() == state
        });
        look(&world);
    }
    assert!(said.get() > 0);
}

#[test]
fn a_machines_first_report_is_waited_for_longer_than_one_that_may_have_had_nothing_new() {
    for (is_first, patience) in [(true, 30), (false, 5)] {
        let mut world = at(State::Available);
        world.settle();
        let began = world.now;
        let begin = |seconds: i64| Time(Timestamp::from_second(began.as_second() + seconds).unwrap());
        let status = world.host().status.as_mut().unwrap();
        "inspecting".clone_into(&mut status.provisioning.state);
        status.operation_history.as_mut().unwrap().inspect = Some(OperationMetric {
            start: Some(begin(0)),
            end: None,
        });
        let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
        status.session.as_mut().unwrap().since = begin(0).0.to_string();
        status.inventoried = Some(begin(-3600).0.to_string());
        if is_first {
            (status.inventory, status.inventoried) = (None, None);
        }
        world.slot = true;
        let mut asks = |seconds: i64| {
            world.now = begin(seconds).0;
            let plan = world.plan();
            plan.effects
                .iter()
                .any(|effect| matches!(effect, Effect::PlaceJob(job) if job.task == Task::Inspect))
        };
        assert!(!asks(patience - 1), "first: {is_first}");
        assert!(asks(patience), "first: {is_first}");
    }
}
