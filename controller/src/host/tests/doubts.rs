//! What is not known is not taken for a fact.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use muster_proto::{
    inventory::{LOADING, Warning},
    kinds::{
        BmcDetails, ErrorType, IN_BAND_ANNOTATION, INSPECT_ANNOTATION, PAUSED_ANNOTATION, REBOOT_ANNOTATION,
        RELEASE_ANNOTATION, Session, SessionState,
    },
};

use super::{
    super::{
        BmcCall, Effect, State,
        bmcs::News,
        netboot,
        observed::{Bmc, Failure, FailureClass, Power, PowerReading, Probed, SecretSeen, SecretState, Tried},
        plan::PowerOrder,
        rivals,
    },
    life::{powered_on, waiting},
    release::{manageable, told},
    transitions::at,
    world::{Content, Edge, Fault, IMAGE, MAC, World, power_orders, secret},
};
use crate::bmc::{Health, Identity};

fn orders(world: &World) -> Vec<PowerOrder> {
    power_orders(&world.plan())
}

fn probes(world: &World) -> bool {
    let effects = world.plan().effects;
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::Bmc(BmcCall::Probe(_))))
}

fn error(world: &World) -> (Option<ErrorType>, String) {
    let status = world.host.as_ref().unwrap().status.clone().unwrap();
    (status.error_type, status.error_message)
}

fn provisioned() -> World {
    let mut world = at(State::Provisioned);
    world.settle();
    world
}

/// One round in which the BMC refuses to change the power, for this reason.
fn refused(world: &mut World, class: FailureClass) -> bool {
    let ordered = !orders(world).is_empty();
    let fault = if ordered { Fault::Fails } else { Fault::None };
    let plan = world.plan();
    world.execute(plan, None, fault);
    if let Some(Tried {
        result: Err(failure), ..
    }) = &mut world.tried
    {
        failure.class = class;
    }
    world.tick(11);
    ordered
}

#[test]
fn an_operating_system_that_may_not_have_heard_is_asked_again_and_not_cut_off() {
    for class in [
        FailureClass::Busy,
        FailureClass::Unreachable,
        FailureClass::Refused,
        FailureClass::System,
        FailureClass::Credentials,
    ] {
        let mut world = provisioned();
        world.host().spec.online = false;
        let mut asked = 0;
        for _ in 0..16 {
            assert!(!orders(&world).contains(&PowerOrder::HardOff), "{class:?}");
            asked += usize::from(refused(&mut world, class));
        }
        assert!(asked >= 3, "{class:?}: {asked}");
        world.until("an order", |world| !orders(world).is_empty());
        assert_eq!(orders(&world), [PowerOrder::SoftOff]);
        world.until("off", |world| !world.machine.on);
    }
    // One that cannot be asked at all is.
    let mut world = provisioned();
    world.host().spec.online = false;
    world.until("an order", |world| !orders(world).is_empty());
    refused(&mut world, FailureClass::Unsupported);
    world.until("an order", |world| !orders(world).is_empty());
    assert_eq!(orders(&world), [PowerOrder::HardOff]);
    // And once that is given, not any more, however long it takes to show.
    let plan = world.plan();
    world.execute(plan, None, Fault::Lost);
    for _ in 0..8 {
        world.tick(5);
        assert_eq!(orders(&world), []);
        let plan = world.plan();
        world.execute(plan, None, Fault::None);
    }
}

/// A reset that was not taken leaves the machine on: to switch it on then would do nothing, and count as done.
#[test]
fn a_boot_into_the_ramdisk_that_a_bmc_did_not_take_is_made_again_as_it_was() {
    for class in [
        FailureClass::Busy,
        FailureClass::Unreachable,
        FailureClass::System,
    ] {
        let mut world = provisioned();
        world.set_image(None);
        world.until("an order", |world| !orders(world).is_empty());
        assert_eq!(orders(&world), [PowerOrder::Reset]);
        refused(&mut world, class);
        world.until("another", |world| {
            assert_eq!(error(world).0, None, "{class:?}");
            !orders(world).is_empty()
        });
        assert_eq!(orders(&world), [PowerOrder::Reset], "{class:?}");
        world.reach(State::Available);
        assert!(!world.events.contains(&"ProvisionedRegistrationError".to_owned()));
    }
    // What it refuses for good is a failure at once.
    let mut world = provisioned();
    world.set_image(None);
    world.until("an order", |world| !orders(world).is_empty());
    refused(&mut world, FailureClass::Refused);
    world.until("a failure", |world| error(world).0.is_some());
}

/// What was on or off before the order is so no longer.
#[test]
fn a_boot_whose_arming_failed_goes_by_the_power_of_now() {
    let mut world = provisioned();
    world.set_image(None);
    world.until("an order", |world| !orders(world).is_empty());
    assert_eq!(orders(&world), [PowerOrder::Reset]);
    let arms = |effect: &Effect| matches!(effect, Effect::Bmc(BmcCall::BootNetworkOnce { .. }));
    let operation = world
        .plan()
        .effects
        .into_iter()
        .find(arms)
        .map(|effect| match effect {
            Effect::Bmc(BmcCall::BootNetworkOnce { operation, .. }) => operation,
            _ => unreachable!(),
        });
    // The reading of before stays.
    world.tried = Some(Tried {
        operation: operation.unwrap(),
        at: world.now,
        on_power: true,
        result: Err(Failure {
            class: FailureClass::Unreachable,
            message: "it says so".to_owned(),
            at: world.now,
        }),
    });
    world.tick(1);
    world.machine.on = false;
    world.until("another order", |world| !orders(world).is_empty());
    assert_eq!(orders(&world), [PowerOrder::On]);
    world.reach(State::Available);
}

/// A provisioned host gives its image back, and its BMC is about to be told to boot the ramdisk.
fn is_to_boot_its_ramdisk() -> World {
    let mut world = provisioned();
    world.set_image(None);
    world.until("an order", |world| !orders(world).is_empty());
    world
}

#[test]
fn a_host_whose_bmc_is_gone_as_its_boot_begins_waits_for_the_bmc_and_says_why() {
    let mut world = is_to_boot_its_ramdisk();
    let begun = world.now;
    refused(&mut world, FailureClass::Unreachable);
    assert_eq!(waiting(&world).0, "Ramdisk");
    let since = |world: &World| waiting(world).1.split_once(" (since ").unwrap().1.to_owned();
    let announced = since(&world);
    world.bmc_up = false;
    world.step(11);
    let says = "waits for the BMC to boot the machine into its ramdisk: it says so; \
                next: retrying at least every minute, and then its disks are cleaned (since ";
    let is_said = |world: &World| {
        let (reason, message) = waiting(world);
        assert_eq!(
            (reason.as_str(), message.starts_with(says)),
            ("Bmc", true),
            "{message}"
        );
        let expected = ("False".to_owned(), "PowerFailure".to_owned(), None);
        assert_eq!(manageable(world), Some(expected));
    };
    is_said(&world);
    assert_eq!(since(&world), announced, "it is the same that keeps it waiting");
    world.until("asked for the power", |world| world.bmc.unread.is_some());
    world.step(11);
    // While the failure is the same, nothing is written.
    let writes = world.status_writes;
    for _ in 0..30 {
        world.step(11);
        is_said(&world);
    }
    assert_eq!(world.status_writes, writes);
    let mut too_late = world.clone();
    too_late.until("too late", |world| error(world).0.is_some());
    let minutes = too_late.now.duration_since(begun).as_mins();
    assert!((14..17).contains(&minutes), "{minutes} min");
    let (_, why) = error(&too_late);
    assert_eq!(
        why,
        "the machine could not be booted from the network: it says so"
    );
    // One that is back boots its machine, which has all the time for that.
    world.bmc_up = true;
    world.until("its ramdisk is waited for", |world| waiting(world).0 == "Ramdisk");
    assert_ne!(since(&world), announced);
    assert_eq!(manageable(&world).unwrap().0, "True");
    world.reach(State::Available);
}

#[test]
fn a_bmc_that_comes_and_goes_while_it_is_to_boot_its_machine_fails_in_time() {
    let mut world = is_to_boot_its_ramdisk();
    let (begun, mut reasons) = (world.now, Vec::new());
    while error(&world).0.is_none() {
        let minutes = world.now.duration_since(begun).as_mins();
        assert!(minutes < 17, "{minutes} min: {reasons:?}");
        if orders(&world).is_empty() {
            world.bmc_up = world.bmc.unread.is_some();
            world.step(11);
        } else {
            refused(&mut world, FailureClass::Unreachable);
            // Nobody knows whether it was carried out.
            world.tried.as_mut().unwrap().on_power = true;
        }
        reasons.push(waiting(&world).0);
        reasons.dedup();
    }
    assert!(
        reasons.starts_with(&["Ramdisk", "Bmc", "Ramdisk"].map(str::to_owned)),
        "{reasons:?}"
    );
}

#[test]
fn a_machine_whose_bmc_was_gone_for_long_has_all_its_time_to_boot() {
    let mut world = is_to_boot_its_ramdisk();
    refused(&mut world, FailureClass::Unreachable);
    world.tried.as_mut().unwrap().on_power = true;
    world.step(11);
    // Its BMC restarts.
    world.bmc_up = false;
    for _ in 0..12 {
        world.step(60);
    }
    world.bmc_up = true;
    world.until("booted", |world| world.machine.booting > 0);
    world.machine.booting = 12 * 60;
    let boots = world.machine.boots;
    world.reach(State::Available);
    assert_eq!((world.machine.boots, error(&world).0), (boots, None));
    assert!(
        !world.events.contains(&"ProvisioningError".to_owned()),
        "{:?}",
        world.events
    );
}

#[test]
fn a_boot_that_may_be_under_way_is_waited_for_and_that_nobody_answered_to_it_is_said() {
    let mut world = is_to_boot_its_ramdisk();
    refused(&mut world, FailureClass::Unreachable);
    world.tried.as_mut().unwrap().on_power = true;
    world.step(11);
    let (reason, message) = waiting(&world);
    let says = "although the BMC did not answer the request to boot the machine (it says so); \
                next: the request is repeated after 7 min, or its disks are cleaned";
    assert_eq!(
        (reason.as_str(), message.contains(says)),
        ("Ramdisk", true),
        "{message}"
    );
}

#[test]
fn a_machine_that_goes_off_says_who_wants_that() {
    let cases: [(&[&str], &str); 2] = [
        (&["a"], "reboot.metal3.io/a is removed"),
        (
            &["a", "b"],
            "reboot.metal3.io/a and reboot.metal3.io/b are removed",
        ),
    ];
    for (names, until) in cases {
        let mut world = provisioned();
        for name in names {
            world.annotate(&format!("{REBOOT_ANNOTATION}/{name}"), "");
        }
        world.until("going off", |world| waiting(world).0 == "PoweringOff");
        let (_, message) = waiting(&world);
        let begins = format!("waits for the machine to be off; next: it stays off until {until} (since ");
        assert!(message.starts_with(&begins), "{message}");
    }
}

#[test]
fn a_machine_that_goes_off_says_why_its_bmc_does_not_see_to_that() {
    let says = |world: &World, why: &str| {
        let (reason, message) = waiting(world);
        let begins = format!(
            "waits for the machine to be off, but its BMC fails ({why}); \
             next: retrying at least every minute, and then it stays off, because spec.online is false (since "
        );
        assert_eq!(
            (reason.as_str(), message.starts_with(&begins)),
            ("PoweringOff", true),
            "{message}"
        );
    };
    let mut world = provisioned();
    world.host().spec.online = false;
    world.until("an order", |world| !orders(world).is_empty());
    refused(&mut world, FailureClass::Unreachable);
    let (_, message) = waiting(&world);
    let begins = "waits for the machine to be off; next: it stays off, because spec.online is false (since ";
    assert!(message.starts_with(begins), "{message}");
    let since = |world: &World| waiting(world).1.split_once(" (since ").unwrap().1.to_owned();
    let begun = since(&world);
    // It tells the power, and does not take the order.
    world.until("another order", |world| !orders(world).is_empty());
    refused(&mut world, FailureClass::Unreachable);
    says(&world, "it says so");
    // It tells nothing.
    world.bmc_up = false;
    world.until("asked for the power", |world| world.bmc.unread.is_some());
    world.step(11);
    let unknown = "the BMC does not report the power state: it says so";
    says(&world, unknown);
    let writes = world.status_writes;
    for _ in 0..30 {
        world.step(11);
    }
    says(&world, unknown);
    assert_eq!(world.status_writes, writes);
    // Nor to another leader.
    world.restart();
    (0..3).for_each(|_| world.step(11));
    says(&world, "BMC redfish://10.0.0.9/redfish/v1/Systems/1: it says so");
    assert_eq!(since(&world), begun, "its deadlines hang on that");
    world.bmc_up = true;
    world.until("off", |world| !world.machine.on);
    world.settle();
    assert_eq!(waiting(&world).0, "Nothing");
}

#[test]
fn what_one_bmc_did_says_nothing_of_another() {
    let mut world = provisioned();
    world.settle();
    let before = world.bmc.probed.clone().unwrap();
    let tried = Tried {
        operation: "muster-provision-1".to_owned(),
        at: world.now,
        on_power: true,
        result: Ok(()),
    };
    type Change = fn(&mut Probed);
    let changes: [(Change, bool); 4] = [
        (|_| {}, true),
        // The same one, asked otherwise.
        (|probed| probed.access.insecure ^= true, true),
        (|probed| probed.access.credentials.push('x'), true),
        (|probed| probed.access.address.push('x'), false),
    ];
    for (change, left) in changes {
        let mut probed = before.clone();
        change(&mut probed);
        let mut told = Some(tried.clone());
        world.bmc.probed = Some(before.clone());
        News::Probed(Box::new(probed), None).remember(&mut world.bmc, &mut told);
        assert_eq!(told.is_some(), left);
    }
}

#[test]
fn an_operating_system_that_does_not_hear_is_asked_again_before_it_is_cut_off() {
    let mut world = provisioned();
    world.host().spec.online = false;
    world.until("an order", |world| !orders(world).is_empty());
    let (begun, mut asked) = (world.now, 0);
    while !orders(&world).contains(&PowerOrder::HardOff) {
        let plan = world.plan();
        asked += usize::from(orders(&world) == [PowerOrder::SoftOff]);
        // It is only booting.
        world.execute(plan, None, Fault::Lost);
        world.read_power();
        world.tick(2);
    }
    assert_eq!(asked, 3);
    let took = world.now.duration_since(begun).as_secs();
    assert!((180..210).contains(&took), "{took}");
}

#[test]
fn an_operating_system_that_nobody_could_ask_for_long_is_asked_before_it_is_cut_off() {
    let mut world = provisioned();
    world.host().spec.online = false;
    world.until("an order", |world| !orders(world).is_empty());
    refused(&mut world, FailureClass::Unreachable);
    world.bmc_up = false;
    for _ in 0..130 {
        world.round();
        world.tick(10);
        assert!(!orders(&world).contains(&PowerOrder::HardOff));
    }
    world.bmc_up = true;
    world.until("an order", |world| !orders(world).is_empty());
    assert_eq!(orders(&world), [PowerOrder::SoftOff]);
}

#[test]
fn a_bmc_that_every_soft_order_silences_for_minutes_switches_off_hard_in_the_end() {
    let mut world = provisioned();
    world.host().spec.online = false;
    let mut soft = 0;
    for _ in 0..20 {
        world.until("an order", |world| !orders(world).is_empty());
        if orders(&world) == [PowerOrder::HardOff] {
            break;
        }
        soft += usize::from(refused(&mut world, FailureClass::Unreachable));
        world.bmc_up = false;
        for _ in 0..24 {
            let plan = world.plan();
            world.execute(plan, None, Fault::None);
            world.tick(11);
        }
        world.bmc_up = true;
    }
    assert_eq!(orders(&world), [PowerOrder::HardOff]);
    assert!((2..6).contains(&soft), "{soft}");
}

#[test]
fn an_order_that_a_bmc_never_has_time_for_fails() {
    let mut world = provisioned();
    world.annotate("reboot.metal3.io/now", r#"{"mode":"hard"}"#);
    let rounds = (0..200).take_while(|_| {
        refused(&mut world, FailureClass::Busy);
        error(&world).0.is_none()
    });
    let (rounds, (kind, why)) = (rounds.count(), error(&world));
    assert_eq!(kind, Some(ErrorType::PowerManagement), "{why}");
    assert!(rounds > 60, "{rounds}");
    // A deletion ends by its failures, as it does with every other one.
    world.delete();
    for _ in 0..2000 {
        refused(&mut world, FailureClass::Busy);
        if world.host.is_none() {
            return;
        }
    }
    panic!("{:?}", error(&world));
}

/// The image is written, and the ramdisk falls silent before it is told to leave, or before it hears that from an edge that tells it.
fn silent_after_its_write(edge: Edge) -> World {
    let mut world = at(State::Available);
    (world.edge, world.loses_answer) = (edge, true);
    world.set_image(Some(IMAGE));
    world.until("written", |world| {
        let status = world.server.as_ref().and_then(|server| server.status.as_ref());
        let job = status.and_then(|status| status.job.as_ref());
        job.is_some_and(|job| job.done && job.id.contains("-write"))
    });
    world.disconnect();
    world
}

#[test]
fn a_ramdisk_that_is_silent_for_a_moment_is_not_taken_for_one_that_left() {
    for (edge, left) in [(Edge::Newest, 1), (Edge::KnowsNoLeave, 0)] {
        let mut world = silent_after_its_write(edge);
        let boots = world.machine.boots;
        for _ in 0..4 {
            let plan = world.plan();
            world.execute(plan, None, Fault::None);
            world.tick(11);
            assert_eq!((world.state(), world.machine.boots), (State::Provisioning, boots));
        }
        assert_eq!(waiting(&world).0, "Leave");
        // The same session.
        world.call_back();
        world.reach(State::Provisioned);
        world.settle();
        assert_eq!(
            (
                world.machine.boots,
                world.machine.writes.len(),
                world.machine.left
            ),
            (boots + 1, 1, left),
            "it was told to leave: {edge:?}"
        );
    }
}

/// Who was paused in between could not be told.
#[test]
fn a_written_image_is_not_taken_back_for_time_in_which_nobody_worked() {
    let mut world = silent_after_its_write(Edge::KnowsNoLeave);
    let plan = world.plan();
    world.execute(plan, None, Fault::None);
    assert_eq!(waiting(&world).0, "Leave");
    world.annotate(PAUSED_ANNOTATION, "me");
    world.tick(3600);
    world.unannotate(PAUSED_ANNOTATION);
    world.unpaused();
    world.call_back();
    world.until("provisioned", |world| {
        assert_ne!(world.state(), State::Deprovisioning);
        world.state() == State::Provisioned
    });
    assert_eq!(world.machine.writes.len(), 1);
}

#[test]
fn a_new_leader_finishes_a_machine_that_has_left_before_it_asks_a_bmc() {
    let mut world = at(State::Available);
    world.set_image(Some(IMAGE));
    world.until("the machine has left", |world| {
        let status = world.server.as_ref().and_then(|server| server.status.as_ref());
        let leaving = status.and_then(|status| status.job.as_ref()?.leaving.as_ref());
        leaving.is_some_and(|leaving| leaving.said)
    });
    assert_eq!(world.state(), State::Provisioning);
    world.restart();
    let plan = world.plan();
    let state = plan
        .status
        .as_ref()
        .map(|status| status.provisioning.state.clone());
    assert_eq!(state.as_deref(), Some("provisioned"));
    assert!(!probes(&world), "{:?}", plan.effects);
}

#[test]
fn a_machine_that_was_told_to_leave_and_stays_silent_is_not_reset_under_its_system() {
    let mut world = silent_after_its_write(Edge::Newest);
    let (boots, jobs) = (world.machine.boots, world.machine.jobs);
    world.reach(State::Provisioned);
    world.settle();
    assert_eq!((world.machine.boots, world.machine.jobs), (boots, jobs));
    // And if it is in its ramdisk nevertheless, it is told there.
    world.call_in();
    world.settle();
    assert_eq!(
        (world.state(), world.machine.boots),
        (State::Provisioned, boots + 1)
    );
}

/// A machine that falls silent after its write and comes back as `back` says is told to leave by one more job, and written once.
fn is_told_by_a_job_after(back: impl FnOnce(&mut World)) {
    let mut world = silent_after_its_write(Edge::Newest);
    let (boots, jobs) = (world.machine.boots, world.machine.jobs);
    back(&mut world);
    world.reach(State::Provisioned);
    world.settle();
    assert_eq!((world.machine.boots, world.machine.jobs), (boots + 1, jobs + 1));
    assert_eq!((world.machine.left, world.machine.writes.len()), (0, 1));
}

#[test]
fn a_machine_that_gets_to_an_older_edge_before_it_hears_that_it_leaves_is_told_by_a_job() {
    is_told_by_a_job_after(|world| {
        world.call_back();
        world.edge = Edge::KnowsNoLeave;
    });
}

#[test]
fn a_machine_whose_ramdisk_boots_anew_after_its_write_is_told_by_a_job() {
    is_told_by_a_job_after(World::call_in);
}

#[test]
fn a_machine_that_went_another_way_than_is_wanted_by_now_is_mended_by_its_power() {
    for in_band in [false, true] {
        for online in [false, true] {
            let mut world = if in_band { World::in_band() } else { World::new() };
            world.reach(State::Available);
            world.set_image(Some(IMAGE));
            world.reach(State::Provisioning);
            world.host().spec.online = !online;
            world.until("placed", |world| {
                let job = world.server.as_ref().and_then(|server| server.spec.job.as_ref());
                job.is_some_and(|job| job.leave.is_some())
            });
            world.host().spec.online = online;
            world.reach(State::Provisioned);
            world.settle();
            assert_eq!(world.machine.left, 1);
            let by_hand = in_band && !online;
            assert_eq!(world.machine.on, online || by_hand, "in-band: {in_band}");
            if by_hand {
                assert_eq!(waiting(&world).0, "PowerByHand");
            }
            assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
        }
    }
}

#[test]
fn a_machine_that_stays_silent_is_reset_and_one_that_cannot_be_is_not_provisioned() {
    let mut world = silent_after_its_write(Edge::KnowsNoLeave);
    let boots = world.machine.boots;
    world.reach(State::Provisioned);
    assert_eq!(world.machine.boots, boots + 1);

    let mut world = silent_after_its_write(Edge::KnowsNoLeave);
    for _ in 0..60 {
        refused(&mut world, FailureClass::Refused);
        assert_eq!(world.state(), State::Provisioning);
    }
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Leave");
    assert!(message.contains("it says so"), "{message}");
    while world.state() == State::Provisioning {
        refused(&mut world, FailureClass::Refused);
    }
    assert_eq!(world.state(), State::Deprovisioning);
    assert!(error(&world).1.contains("does not leave its ramdisk"));

    // Nor is one whose BMC says nothing either.
    let mut world = silent_after_its_write(Edge::KnowsNoLeave);
    world.restart();
    world.bmc_up = false;
    for _ in 0..60 {
        let plan = world.plan();
        world.execute(plan, None, Fault::None);
        world.tick(11);
        assert_eq!(world.state(), State::Provisioning);
    }
    world.bmc_up = true;
    world.reach(State::Provisioned);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}

#[test]
fn a_provisioned_machine_that_is_found_in_its_ramdisk_is_rebooted_once() {
    let mut world = provisioned();
    // Its controller was away when it should have been told to leave.
    world.call_in();
    world.tick(60);
    let boots = world.machine.boots;
    world.settle();
    assert_eq!(world.state(), State::Provisioned);
    assert_eq!(world.machine.boots, boots + 1);
    assert_eq!(world.machine.writes.len(), 1);
    // It will not go: whoever looks finds it there.
    world.call_in();
    world.settle();
    assert_eq!(world.machine.boots, boots + 1);
}

#[test]
fn one_that_may_not_be_switched_off_leaves_its_ramdisk_though_it_is_to_be_off() {
    let mut world = provisioned();
    world.host().spec.disable_power_off = Some(true);
    world.host().spec.online = false;
    world.settle();
    world.call_in();
    world.tick(60);
    let boots = world.machine.boots;
    world.settle();
    assert_eq!(
        (world.state(), world.machine.boots),
        (State::Provisioned, boots + 1)
    );
    assert!(world.machine.on && world.machine.ramdisk.is_none());
}

/// What a probe of the host, as it is, came to.
fn probed(world: &mut World, class: FailureClass) {
    let access = world.plan().effects.into_iter().find_map(|effect| match effect {
        Effect::Bmc(BmcCall::Probe(access)) => Some(access),
        _ => None,
    });
    let access = access.or_else(|| world.bmc.probed.as_ref().map(|probed| probed.access.clone()));
    let failure = Failure {
        class,
        message: "it says so".to_owned(),
        at: world.now,
    };
    world.bmc = Bmc {
        probed: Some(Probed {
            access: access.expect("a probe"),
            at: world.now,
            accepted: false,
            result: Err(failure),
            identity: Identity::default(),
        }),
        ..Bmc::default()
    };
}

/// Rounds for so many minutes, without a probe.
fn left_alone(world: &mut World, minutes: u32) {
    for _ in 0..minutes * 6 {
        assert!(!probes(world));
        let plan = world.plan();
        world.execute(plan, None, Fault::None);
        world.tick(10);
    }
}

#[test]
fn a_bmc_that_shows_no_system_is_asked_again_for_it_may_be_starting() {
    for begun in [State::Registering, State::Available] {
        let mut world = at(begun);
        probed(&mut world, FailureClass::System);
        let plan = world.plan();
        world.execute(plan, None, Fault::None);
        assert_eq!(error(&world).0, Some(ErrorType::Registration));
        world.until("mended", |world| error(world).0.is_none());
        world.reach(State::Available);
    }
}

#[test]
fn a_host_whose_bmc_shows_no_system_says_what_helps_and_that_it_is_asked_again() {
    for begun in [State::Registering, State::Available] {
        let mut world = at(begun);
        probed(&mut world, FailureClass::System);
        let plan = world.plan();
        world.execute(plan, None, Fault::None);
        let (reason, message) = waiting(&world);
        assert_eq!(reason, "Refused");
        let says = ": correct spec.bmc.address or fix the BMC; next: retrying every minute, and as soon as ";
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn credentials_that_were_good_are_tried_again_seldom_and_others_more_seldom() {
    let mut world = at(State::Registering);
    probed(&mut world, FailureClass::Credentials);
    left_alone(&mut world, 59);
    let (kind, message) = error(&world);
    assert_eq!(kind, Some(ErrorType::Registration));
    let says = "; next: retrying every hour, and as soon as ";
    assert!(message.contains(says), "{message}");
    // Nobody but its BMC has changed anything.
    let told = world.events.iter().filter(|event| *event == "RegistrationError");
    assert_eq!(told.count(), 1, "{:?}", world.events);
    world.until("mended", |world| error(world).0.is_none());
    world.reach(State::Available);

    let mut world = at(State::Available);
    world.settle();
    probed(&mut world, FailureClass::Credentials);
    left_alone(&mut world, 9);
    let (kind, message) = error(&world);
    assert_eq!(kind, Some(ErrorType::Registration));
    assert!(message.contains("; next: retrying every 10 min"), "{message}");
    assert!(
        !waiting(&world).1.contains("continues once"),
        "one thing happens next"
    );
    world.until("mended", |world| error(world).0.is_none());

    // The password was changed in the Secret first.
    let mut world = at(State::Available);
    world.settle();
    world.secrets.bmc = secret("2", "b");
    probed(&mut world, FailureClass::Credentials);
    left_alone(&mut world, 9);
    world.until("mended", |world| error(world).0.is_none());
}

/// The BMC is asked again, whatever it said of other credentials, and what held the former Secret is released first.
#[test]
fn what_a_claim_ran_ends_if_its_credentials_were_mended_with_the_release() {
    let refused: fn(&mut World) = |world| {
        probed(world, FailureClass::Credentials);
        let plan = world.plan();
        world.execute(plan, None, Fault::None);
        assert_eq!(error(world).0, Some(ErrorType::Registration));
    };
    let renamed: fn(&mut World) = |world| {
        let former = SecretSeen {
            held: true,
            finalizer: true,
            ..secret("1", "a")
        };
        world.secrets.former = vec![("former".to_owned(), former)];
        world.host().spec.bmc.as_mut().unwrap().credentials_name = "another".to_owned();
    };
    for (which, change) in [refused, renamed].into_iter().enumerate() {
        let mut world = at(State::Deprovisioning);
        change(&mut world);
        world.secrets.bmc = secret("2", "b");
        world.annotate(RELEASE_ANNOTATION, "");
        let message = told(&mut world, "NotCleaned");
        assert!(!message.contains("may still be running"), "{which}: {message}");
        world.reach(State::Available);
        assert!(!world.machine.on, "{which}");
    }
}

#[test]
fn a_bmc_that_does_not_let_us_in_any_more_is_not_asked_every_minute() {
    let mut world = provisioned();
    let failure = Failure {
        class: FailureClass::Credentials,
        message: "it says so".to_owned(),
        at: world.now,
    };
    News::Power(Err(failure.clone())).remember(&mut world.bmc, &mut world.tried);
    assert_eq!(world.bmc.probed.as_ref().unwrap().result, Err(failure));
    left_alone(&mut world, 9);
    assert_eq!(error(&world).0, Some(ErrorType::Registration));
    world.until("mended", |world| error(world).0.is_none());
}

#[test]
fn a_ramdisk_that_sees_no_disk_has_cleaned_none() {
    let mut world = at(State::Deprovisioning);
    world.change_inventory(|inventory| inventory.disks.clear());
    world.reach(State::Available);
    assert!(
        world.events.contains(&"NotCleaned".to_owned()),
        "{:?}",
        world.events
    );
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}

#[test]
fn what_a_host_waits_for_is_said_also_where_nothing_can_be_known() {
    // Its Secret cannot be read.
    let mut world = provisioned();
    let there = world.secrets.bmc.clone();
    world.secrets.bmc.state = SecretState::Unreadable("forbidden".to_owned());
    world.settle();
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Inputs");
    assert!(
        message.contains("Secret bmc") && message.contains("forbidden"),
        "{message}"
    );
    assert!(error(&world).0.is_none(), "nobody knows that anything is wrong");
    world.secrets.bmc = there;
    world.settle();
    assert_eq!(waiting(&world).0, "Nothing");
    // Its BMC does not answer.
    world.bmc_up = false;
    world.restart();
    world.settle();
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Bmc");
    // And why not.
    let begins = "waits for the BMC to answer: it says so; next: its power is managed (since ";
    assert!(message.starts_with(begins), "{message}");
    world.bmc_up = true;
    world.settle();
    assert_eq!(waiting(&world).0, "Nothing");
}

const HOLD: &str = "reboot.metal3.io/somebody";

fn session(world: &mut World) -> &mut Session {
    let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
    status.session.as_mut().unwrap()
}

/// An available host whose machine is held off, and whose session no edge has found ended yet.
fn held_off_with_its_session() -> World {
    let mut world = at(State::Available);
    world.settle();
    let before = session(&mut world).clone();
    assert_eq!(before.state, SessionState::Connected);
    world.annotate(HOLD, r#"{"force":true}"#);
    world.until("off", |world| !powered_on(world));
    *session(&mut world) = before;
    world.bump();
    world.step(0);
    world
}

/// One that is reset by force before its ramdisk took up a job, and whose session no edge has found ended yet.
fn reset_with_its_session() -> World {
    let mut world = at(State::Provisioning);
    world.machine.deaf = true;
    world.reach_job();
    let before = session(&mut world).clone();
    world.annotate(REBOOT_ANNOTATION, r#"{"force":true}"#);
    world.until("told", |world| !world.annotated(REBOOT_ANNOTATION));
    assert!(world.machine.booting > 1);
    world.machine.deaf = false;
    *session(&mut world) = before;
    world.bump();
    world
}

/// An edge finds that the session has ended.
fn end_session(world: &mut World) {
    let now = world.now.to_string();
    let session = session(world);
    (session.state, session.since) = (SessionState::Disconnected, now);
    world.bump();
}

/// By the clock of its edge it did so long ago, or is still to; and who leads now may not have seen it.
#[test]
fn a_ramdisk_that_falls_silent_in_a_job_has_its_time_to_come_back_whatever_the_clock_of_its_edge() {
    for (ahead, anew) in [(-300, false), (-300, true), (300, false), (300, true)] {
        let mut world = at(State::Available);
        world.jobs_take = 600;
        world.set_image(Some(IMAGE));
        world.until("at work", |world| world.machine.working.is_some());
        // Somebody sees that.
        world.step(0);
        let boots = world.machine.boots;
        world.disconnect();
        let told = world.now + jiff::SignedDuration::from_secs(ahead);
        session(&mut world).since = told.to_string();
        world.bump();
        if anew {
            world.restart();
        }
        for _ in 0..90 {
            world.step(1);
            assert_eq!(world.machine.boots, boots, "{ahead} s, another leader: {anew}");
        }
        world.until("reset", |world| world.machine.boots > boots);
    }
}

#[test]
fn a_session_of_a_machine_that_went_off_since_is_given_no_work() {
    let mut world = held_off_with_its_session();
    let jobs = world.machine.jobs;
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioning);
    for _ in 0..5 {
        assert_eq!(waiting(&world).0, "Ramdisk");
        world.step(1);
    }
    assert_eq!((world.machine.jobs, powered_on(&world)), (jobs, false));
    // Now it is found.
    end_session(&mut world);
    world.reach(State::Provisioned);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}

#[test]
fn a_bmc_that_says_off_of_a_machine_whose_ramdisk_lives_on_holds_it_up_for_a_moment_only() {
    let mut world = held_off_with_its_session();
    (world.machine.on, world.machine.ramdisk) = (true, Some(String::new()));
    let (tried, begun) = (world.tried.clone(), world.now);
    world.set_image(Some(IMAGE));
    world.reach_job();
    assert!(world.now.duration_since(begun).as_secs() < 150);
    assert!(!powered_on(&world), "its BMC says otherwise");
    world.reach(State::Provisioned);
    assert_eq!(world.tried, tried, "it is not booted for that");
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}

#[test]
fn a_machine_that_was_reset_is_waited_for_though_its_session_has_not_ended_yet() {
    let mut world = reset_with_its_session();
    world.step(1);
    assert_eq!(waiting(&world).0, "Ramdisk");
    world.reach(State::Provisioned);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}

#[test]
fn a_machine_that_was_reset_is_not_reset_again_while_its_edge_finds_out_that_it_went() {
    let mut world = reset_with_its_session();
    world.machine.booting = 400;
    let boots = world.machine.boots;
    // An edge takes it for gone after 100 s, and has to write that.
    for _ in 0..105 {
        world.step(1);
    }
    end_session(&mut world);
    world.until("placed", |world| world.machine.ramdisk.is_some());
    assert_eq!(world.machine.boots, boots);
    world.reach(State::Provisioned);
}

#[test]
fn a_machine_that_was_off_is_on_as_soon_as_its_ramdisk_is_given_work() {
    let off = || {
        let mut world = at(State::Available);
        world.host().spec.online = false;
        world.settle();
        assert!(!world.machine.on && !powered_on(&world));
        world.host().spec.online = true;
        world.set_image(Some(IMAGE));
        world
    };
    let mut world = off();
    world.reach(State::Provisioning);
    assert!(!powered_on(&world));
    let writes = world.status_writes;
    world.until("placed", World::has_destructive_job);
    assert!(powered_on(&world));
    assert_eq!(
        world.status_writes,
        writes + 1,
        "it is said with what is waited for"
    );

    // Somebody has switched it on since the BMC was asked.
    let mut world = off();
    world.tick(2);
    world.call_in();
    world.reach(State::Provisioning);
    assert!(powered_on(&world));
}

#[test]
fn a_host_whose_nic_nobody_knows_is_told_so_before_its_machine_is_reset() {
    let mut world = World::new();
    world.host().spec.boot_mac_address = None;
    world.settle();
    let (kind, message) = error(&world);
    assert_eq!(kind, Some(ErrorType::Inspection));
    assert!(message.contains("set spec.bootMACAddress"), "{message}");
    assert_eq!((waiting(&world).0.as_str(), world.machine.boots), ("Refused", 0));
    world.host().spec.boot_mac_address = Some(MAC.to_owned());
    world.reach(State::Available);
}

#[test]
fn a_host_that_waits_for_a_ramdisk_of_another_architecture_says_that_there_is_none() {
    let says = |message: &str| message.contains("x86_64, but spec.architecture is aarch64");
    let mut world = World::new();
    world.machine.mute = true;
    world.host().spec.architecture = Some("arm64".to_owned());
    world.until("the ramdisk is waited for", |world| {
        world.state() == State::Inspecting && waiting(world).0 == "Ramdisk"
    });
    assert!(says(&waiting(&world).1), "{}", waiting(&world).1);
    world.until("too late", |world| error(world).1.contains("did not call in"));
    assert!(says(&error(&world).1), "{}", error(&world).1);
    // What somebody wrote was wrong.
    world.machine.mute = false;
    world.reach(State::Available);
    world.disconnect();
    (world.machine.on, world.machine.mute) = (false, true);
    world.set_image(Some(IMAGE));
    world.until("too late", |world| error(world).1.contains("did not call in"));
    assert!(!says(&error(&world).1), "{}", error(&world).1);
}

#[test]
fn a_host_that_waits_for_its_ramdisk_names_the_segment_that_is_gone_or_not_served() {
    let mut world = at(State::Available);
    world.disconnect();
    (world.machine.on, world.machine.mute) = (false, true);
    world.set_image(Some(IMAGE));
    world.until("the ramdisk is waited for", |world| {
        world.state() == State::Provisioning && waiting(world).0 == "Ramdisk"
    });
    let says = |world: &World| waiting(world).1;
    assert!(!says(&world).contains("Segment"), "{}", says(&world));
    world.segment_gone = true;
    world.until("the Segment is named", |world| {
        says(world).contains("(Segment lab of its last session no longer exists: recreate it")
    });
    world.segment_gone = false;
    let serving = Condition {
        type_: "Serving".to_owned(),
        status: "False".to_owned(),
        reason: "NoRamdisk".to_owned(),
        message: String::new(),
        last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        observed_generation: None,
    };
    world.segment.status.get_or_insert_default().conditions = vec![serving];
    world.until("the Segment is named", |world| {
        says(world).contains("(Segment lab of its last session is not served: ")
    });
    assert_eq!(waiting(&world).0, "Ramdisk");
    world.segment.status = None;
    world.until("nothing is wrong with it", |world| {
        !says(world).contains("Segment")
    });
    assert_eq!(waiting(&world).0, "Ramdisk");
}

#[test]
fn a_host_says_nothing_of_the_ramdisk_of_an_architecture_that_there_is_one_for() {
    for said in [None, Some(""), Some("x86_64"), Some("amd64")] {
        let mut world = World::new();
        world.machine.mute = true;
        world.host().spec.architecture = said.map(str::to_owned);
        world.reach(State::Inspecting);
        world.until("too late", |world| error(world).1.contains("did not call in"));
        assert!(!error(&world).1.contains("spec.architecture"), "{said:?}");
    }
}

#[test]
fn a_machine_that_is_known_by_more_than_a_declared_nic_is_to_be_looked_at_where_its_ramdisk_stays_away() {
    let mut world = at(State::Available);
    world.host().spec.boot_mac_address = None;
    world.disconnect();
    (world.machine.on, world.machine.mute) = (false, true);
    world.set_image(Some(IMAGE));
    world.until("too late", |world| error(world).1.contains("did not call in"));
    let (_, message) = error(&world);
    assert!(
        message.contains("whether it boots from the network, whether") && !message.contains("bootMAC"),
        "{message}"
    );
}

#[test]
fn one_machine_is_known_by_its_bmc_whatever_the_words_for_it_and_no_password_is_shown() {
    let address = |text: &str| {
        let mut world = World::new();
        let host = world.host();
        host.spec.boot_mac_address = None;
        host.metadata.uid = Some(text.to_owned());
        host.metadata.name = Some("other".to_owned());
        host.metadata.creation_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        host.spec.bmc = Some(BmcDetails {
            address: text.to_owned(),
            credentials_name: "bmc".to_owned(),
            ..BmcDetails::default()
        });
        host.clone()
    };
    let mut us = World::new();
    for same in [
        "redfish://10.0.0.9/redfish/v1/Systems/1/",
        "redfish+https://10.0.0.9:443/redfish/v1/Systems/1",
        "idrac-redfish://10.0.0.9/redfish/v1/Systems/1",
        "redfish-virtualmedia://root:hunter2@10.0.0.9/redfish/v1/systems/1?x=y",
        "redfish+http://10.0.0.9/redfish/v1/Systems/1",
        "redfish+http://10.0.0.9:443/redfish/v1/Systems/1",
        "redfish+http://10.0.0.9:80//redfish/v1/./Systems/%31#x",
        // The only system of that BMC, or the machine in which it is.
        "redfish://10.0.0.9",
        "redfish://10.0.0.9/redfish/v1/",
        "redfish+http://10.0.0.9:80",
        "ipmi://10.0.0.9:623",
        "10.0.0.9",
    ] {
        let found = rivals(us.host(), [&address(same)].into_iter());
        assert_eq!(found.len(), 1, "{same}");
        assert!(!found[0].by.contains("hunter2"), "{}", found[0].by);
    }
    for other in [
        "redfish://10.0.0.9/redfish/v1/Systems/2",
        "redfish://10.0.0.9:8000/redfish/v1/Systems/1",
        "redfish://10.0.0.9:8000",
        "ipmi://10.0.0.9:6230",
        "redfish://10.0.0.8/redfish/v1/Systems/1",
        "nonsense",
    ] {
        assert_eq!(
            rivals(us.host(), [&address(other)].into_iter()).len(),
            0,
            "{other}"
        );
    }
    // Nor is one shown of an address that is none, or that does not answer.
    for bad in [
        "redfish://root:hunter2@10.0.0.9/redfish/v1/Systems/1",
        "redfisch://root:hunter2@10.0.0.9/",
        "redfish://root:hunter2@10.0.0.9:port/",
    ] {
        let mut world = World::new();
        let spec = &mut world.host().spec;
        spec.bmc.as_mut().unwrap().address = bad.to_owned();
        world.bmc_up = false;
        world.until("a failure", |world| {
            let status = world.host.as_ref().unwrap().status.as_ref();
            status.is_some_and(|status| !status.error_message.is_empty())
        });
        let status = serde_json::to_string(&world.host().status).unwrap();
        assert!(!status.contains("hunter2"), "{status}");
    }
}

#[test]
fn power_that_was_read_before_an_effect_says_nothing_after_it() {
    let at = jiff::Timestamp::UNIX_EPOCH;
    let mut bmc = Bmc {
        power: Some(PowerReading {
            power: Power::Off,
            health: Health::Ok,
            at,
        }),
        ..Bmc::default()
    };
    let tried = Tried {
        operation: "on".to_owned(),
        at,
        on_power: true,
        result: Ok(()),
    };
    News::Tried(tried).remember(&mut bmc, &mut None);
    assert_eq!(bmc.power, None);
}

#[test]
fn a_bmc_is_asked_seldom_for_a_machine_whose_ramdisk_is_here_and_at_once_when_it_is_not() {
    let asks = |world: &World| {
        let effects = world.plan().effects;
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Bmc(BmcCall::ReadPower)))
    };
    let mut world = at(State::Available);
    world.settle();
    assert!(world.machine.ramdisk.is_some());
    world.until("asked", asks);
    world.round();
    for _ in 0..9 {
        world.tick(60);
        assert!(!asks(&world));
    }
    world.tick(60);
    assert!(asks(&world));
    world.round();
    world.tick(200);
    assert!(!asks(&world));
    world.disconnect();
    assert!(asks(&world));
    world.round();
    world.tick(60);
    assert!(asks(&world), "every minute from then on");
}

#[test]
fn what_somebody_else_runs_is_not_rebooted_to_be_taken_away() {
    let mut world = provisioned();
    let (boots, cleans) = (world.machine.boots, world.machine.cleans);
    world.host().spec.externally_provisioned = Some(true);
    world.set_image(None);
    world.settle();
    assert_eq!(world.state(), State::Provisioned);
    assert!(
        error(&world).1.contains("externally provisioned"),
        "{}",
        error(&world).1
    );
    world.delete();
    world.until("gone", |world| world.host.is_none());
    assert_eq!((world.machine.boots, world.machine.cleans), (boots, cleans));
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    // Nor where it is said in the middle.
    for annotation in [None, Some(muster_proto::kinds::PROTECTED_ANNOTATION)] {
        let mut world = at(State::Deprovisioning);
        let (boots, cleans) = (world.machine.boots, world.machine.cleans);
        match annotation {
            None => world.host().spec.externally_provisioned = Some(true),
            Some(name) => world.annotate(name, ""),
        }
        world.settle();
        assert_eq!(world.state(), State::Deprovisioning);
        assert_eq!(waiting(&world).0, "Refused");
        assert_eq!((world.machine.boots, world.machine.cleans), (boots, cleans));
        world.annotate(muster_proto::kinds::RELEASE_ANNOTATION, "");
        world.until("let go", |world| world.state() != State::Deprovisioning);
        assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    }
}

/// In `inspecting`, and told to boot this moment.
fn told_to_boot() -> World {
    let mut world = at(State::Inspecting);
    while world.machine.boots == 0 {
        let plan = world.plan();
        world.execute(plan, None, Fault::None);
    }
    world
}

/// In `inspecting`, told to boot, and off since, for longer than a boot may take, of which no round saw anything.
fn lost_its_boot() -> World {
    let mut world = told_to_boot();
    (world.machine.on, world.machine.booting) = (false, 0);
    world.tick(16 * 60);
    world
}

#[test]
fn the_time_that_a_machine_may_take_to_boot_does_not_run_while_nobody_looks_after_it() {
    let ways: [fn(&mut World); 2] = [World::restart, World::unpaused];
    for way in ways {
        let mut world = lost_its_boot();
        way(&mut world);
        world.reach(State::Available);
        assert!(!world.events.contains(&"InspectionError".to_owned()));
        assert_eq!(world.machine.boots, 2, "it is booted again");
    }
    // One that is on its way is left to it.
    let mut world = told_to_boot();
    world.machine.booting = 10 * 60;
    world.unpaused();
    world.reach(State::Available);
    assert_eq!(world.machine.boots, 1);
    let mut world = lost_its_boot();
    world.reach(State::Available);
    assert!(
        world.events.contains(&"InspectionError".to_owned()),
        "it is told where there was somebody"
    );
}

#[test]
fn a_host_that_goes_waits_neither_for_a_contested_machine_nor_for_its_disks_without_an_end() {
    for spoil in [
        |world: &mut World| world.contest(true),
        |world: &mut World| {
            let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
            status.inventory = None;
        },
    ] {
        let mut world = at(State::Deprovisioning);
        world.until("in its ramdisk", |world| world.machine.ramdisk.is_some());
        spoil(&mut world);
        let begun = world.now;
        world.delete();
        world.round();
        assert!(world.plan().next().is_some(), "nobody else would wake it");
        world.until("gone", |world| world.host.is_none());
        assert!(
            world.now.duration_since(begun).as_hours() >= 1,
            "it may be mended"
        );
    }
}

#[test]
fn a_machine_without_a_bmc_boots_the_ramdisk_that_its_registration_needs_also_if_it_is_not_inspected() {
    let mut world = World::new();
    world.host().spec.bmc = None;
    world.annotate(IN_BAND_ANNOTATION, "segment");
    world.annotate(INSPECT_ANNOTATION, "disabled");
    world.reach(State::Registering);
    assert!(netboot::wanted(world.host(), None).is_some());
    world.host().spec.bmc = Some(BmcDetails {
        address: "redfish://10.0.0.9/".to_owned(),
        ..BmcDetails::default()
    });
    assert_eq!(netboot::wanted(world.host(), None), None, "its BMC suffices");
}

/// What a machine does whose kernel does not survive its work.
#[test]
fn a_ramdisk_that_ends_in_the_middle_again_and_again_fails_what_it_was_at() {
    // By its own reboot, or in silence until the BMC boots it.
    for reboots in [true, false] {
        let mut world = at(State::Available);
        world.jobs_take = 600;
        world.set_image(Some(IMAGE));
        let mut ended = 0;
        let mut round = |world: &mut World| {
            if world.machine.working.is_some() {
                // Somebody sees that it is at work.
                let plan = world.plan();
                world.execute(plan, None, Fault::None);
                ended += 1;
                world.disconnect();
                if reboots {
                    world.call_in();
                }
            }
            world.round();
            ended
        };
        let sessions = (0..500)
            .map(|_| round(&mut world))
            .take_while(|ended| *ended < 2)
            .count();
        assert_eq!(error(&world).0, None, "two may be chance: {sessions}");
        for _ in 0..500 {
            round(&mut world);
            if error(&world).0.is_some() {
                break;
            }
        }
        let (kind, why) = error(&world);
        assert_eq!(kind, Some(ErrorType::Provisioning), "{why}");
        assert!(why.contains("crashed or rebooted 3 times"), "{why}");
        world.delete();
        for _ in 0..5000 {
            if world.host.is_none() {
                break;
            }
            round(&mut world);
        }
        assert!(world.host.is_none(), "{:?}", world.plan());
    }
}

#[test]
fn a_host_that_is_made_again_while_its_machine_is_off_is_inspected_by_another_boot() {
    let mut world = World::new();
    world.call_in();
    world.tick(30);
    // With the host of before its machine was switched off, which its edge does not know yet.
    (world.machine.on, world.machine.ramdisk) = (false, None);
    world.reach(State::Inspecting);
    for _ in 0..4 {
        world.step(11);
    }
    assert_eq!(
        world.state(),
        State::Inspecting,
        "what was reported before is old"
    );
    let now = world.now.to_string();
    let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
    let session = status.session.as_mut().unwrap();
    (session.state, session.since) = (SessionState::Disconnected, now);
    world.bump();
    world.reach(State::Available);
    assert_eq!((world.machine.boots, world.machine.sessions), (1, 2));

    // Of one that is on, its ramdisk has just reported all of it.
    let mut world = World::new();
    world.call_in();
    world.reach(State::Available);
    assert_eq!((world.machine.boots, world.machine.sessions), (0, 1));
}

/// It may not live to report anything, nor to take up a job.
#[test]
fn a_ramdisk_that_ends_before_it_has_reported_again_and_again_fails_the_inspection() {
    let mut world = at(State::Available);
    world.settle();
    world.tick(60);
    world.machine.deaf = true;
    world.annotate(INSPECT_ANNOTATION, "");
    world.until("inspecting", |world| world.state() == State::Inspecting);
    let mut ended = 0;
    for _ in 0..2000 {
        if world.machine.ramdisk.is_some() {
            // Somebody sees that it is there.
            let plan = world.plan();
            world.execute(plan, None, Fault::None);
            world.disconnect();
            ended += 1;
        }
        world.round();
        if error(&world).0.is_some() {
            break;
        }
    }
    let (kind, why) = error(&world);
    assert_eq!(kind, Some(ErrorType::Inspection), "{why}");
    assert!(why.contains("crashed or rebooted 3 times"), "{why}");
    assert!(ended <= 5, "{ended}");
    world.machine.deaf = false;
    world.reach(State::Available);
}

#[test]
fn of_a_ramdisk_that_does_not_report_the_disks_a_person_hears_and_what_waits_for_them_goes_on() {
    for (from, image) in [(State::Available, Some(IMAGE)), (State::Provisioned, None)] {
        let mut world = at(from);
        world.settle();
        let reported = world.server.as_ref().unwrap().status.clone().unwrap().inventory;
        let reports = |world: &mut World, inventory| {
            let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
            status.inventory = inventory;
        };
        world.set_image(image);
        for _ in 0..300 {
            reports(&mut world, None);
            let plan = world.plan();
            world.execute(plan, None, Fault::None);
            world.tick(11);
        }
        let (reason, message) = waiting(&world);
        assert!(
            reason == "Refused" && message.contains("did not report the disks"),
            "{message}"
        );
        let told = world
            .events
            .iter()
            .filter(|reason| *reason == "ProvisioningError");
        assert_eq!(told.count(), 1);
        assert_eq!(world.host().status.as_ref().unwrap().error_count, 0);
        reports(&mut world, reported);
        world.reach(if image.is_some() {
            State::Provisioned
        } else {
            State::Available
        });
    }
}

#[test]
fn what_was_waited_for_when_a_host_was_paused_is_not_late_for_that() {
    let mut world = provisioned();
    world.bmc_up = false;
    world.set_image(None);
    world.until("waits", |world| waiting(world).0 == "Bmc");
    let failed = |world: &World| {
        let told = world.events.iter();
        told.filter(|reason| *reason == "ProvisioningError").count()
    };
    let before = failed(&world);
    // Somebody mends the BMC meanwhile.
    world.tick(3600);
    world.unpaused();
    let plan = world.plan();
    world.bmc_up = true;
    world.execute(plan, None, Fault::None);
    assert_eq!(error(&world).0, None);
    world.reach(State::Available);
    assert_eq!(failed(&world), before);
}

#[test]
fn no_disk_is_chosen_or_cleaned_while_drivers_are_being_loaded() {
    let early = |world: &mut World, early: bool| {
        world.change_inventory(|inventory| {
            let warning = Warning {
                collector: LOADING.to_owned(),
                subject: "mpt3sas".to_owned(),
                ..Warning::default()
            };
            inventory.warnings = Vec::from_iter(early.then_some(warning));
        });
        let now = world.now.to_string();
        let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
        status.session.as_mut().unwrap().since.clone_from(&now);
        status.inventoried = Some(now);
    };
    for (from, to) in [
        (State::Registering, State::Available),
        (State::Available, State::Provisioned),
    ] {
        for loads in [true, false] {
            let mut world = at(from);
            if from == State::Available {
                early(&mut world, true);
                world.set_image(Some(IMAGE));
            } else {
                world.until("a report", |world| world.server.is_some());
                early(&mut world, true);
            }
            world.until("waits", |world| waiting(world).0 == "Inventory");
            // The round was as long as they are waited for.
            early(&mut world, true);
            let (cleans, writes) = (world.machine.cleans, world.machine.writes.len());
            for _ in 0..4 {
                let plan = world.plan();
                world.execute(plan, None, Fault::None);
                world.tick(11);
            }
            assert_eq!(waiting(&world).0, "Inventory");
            assert_eq!(
                (world.machine.cleans, world.machine.writes.len()),
                (cleans, writes)
            );
            if loads {
                early(&mut world, false);
            }
            world.reach(to);
        }
    }
}
