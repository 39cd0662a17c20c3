//! What annotations do.

use muster_proto::kinds::{
    AutomatedCleaningMode, BareMetalHostStatus, DETACHED_ANNOTATION, ErrorType, HARDWARE_ANNOTATION,
    HardwareData, HardwareDataSpec, HardwareDetails, IN_BAND_ANNOTATION, INSPECT_ANNOTATION, InspectionMode,
    OperationalStatus, PAUSED_ANNOTATION, PROTECTED_ANNOTATION, REBOOT_ANNOTATION, RELEASE_ANNOTATION,
    STATUS_ANNOTATION,
};

use super::{
    super::{
        BmcCall, Effect, State,
        observed::{Failure, FailureClass, SecretState},
        plan::PowerOrder,
        reboot, restore,
    },
    life::{powered_on, waiting},
    transitions::at,
    world::{Content, Fault, IMAGE, World, power_orders},
};

const REMEDIATION: &str = "reboot.metal3.io/metal3-remediation-1";

fn orders(world: &World) -> Vec<PowerOrder> {
    power_orders(&world.plan())
}

fn provisioned() -> World {
    let mut world = at(State::Provisioned);
    world.settle();
    world
}

#[test]
fn reboot_annotations_mean_what_upstream_says() {
    // (annotations, only forced ones count) -> (once, stay off, hard)
    type Case<'a> = (&'a [(&'a str, &'a str)], bool, (bool, bool, bool));
    let cases: &[Case<'_>] = &[
        (&[], false, (false, false, false)),
        (&[(REBOOT_ANNOTATION, "")], false, (true, false, false)),
        (
            &[(REBOOT_ANNOTATION, r#"{"mode":"hard"}"#)],
            false,
            (true, false, true),
        ),
        (
            &[(REBOOT_ANNOTATION, r#"{"mode":"soft"}"#)],
            false,
            (true, false, false),
        ),
        (
            &[(REBOOT_ANNOTATION, r#"{"mode":""}"#)],
            false,
            (true, false, false),
        ),
        (&[(REBOOT_ANNOTATION, "nonsense")], false, (true, false, false)),
        (
            &[(REBOOT_ANNOTATION, r#"{"mode":"hard"}"#)],
            true,
            (false, false, false),
        ),
        (
            &[(REBOOT_ANNOTATION, r#"{"mode":"hard","force":true}"#)],
            true,
            (true, false, true),
        ),
        (&[(REMEDIATION, r#"{"mode":"hard"}"#)], false, (false, true, true)),
        (
            &[(REMEDIATION, ""), (REBOOT_ANNOTATION, r#"{"mode":"hard"}"#)],
            false,
            (true, true, true),
        ),
        (&[("reboot.metal3.io.example", "")], false, (false, false, false)),
        (
            &[(REBOOT_ANNOTATION, r#"{"mode":"graceful","force":true}"#)],
            true,
            (true, false, false),
        ),
        (
            &[(REBOOT_ANNOTATION, r#"{"Mode":"hard","Force":true}"#)],
            true,
            (true, false, true),
        ),
    ];
    for (annotations, forced, expected) in cases {
        let mut world = World::new();
        for (name, value) in *annotations {
            world.annotate(name, value);
        }
        let wish = reboot::wish(world.host(), *forced);
        assert_eq!(
            (wish.once, wish.stay_off, wish.hard),
            *expected,
            "{annotations:?} {forced}"
        );
    }
}

#[test]
fn a_plain_reboot_is_soft_first_and_happens_once() {
    let mut world = provisioned();
    world.annotate(REBOOT_ANNOTATION, "");
    world.until("an order", |world| !orders(world).is_empty());
    assert_eq!(orders(&world), [PowerOrder::SoftOff]);
    world.until("off", |world| {
        !world.host.as_ref().unwrap().status.as_ref().unwrap().powered_on
    });
    world.until("on", |world| {
        world.host.as_ref().unwrap().status.as_ref().unwrap().powered_on
    });
    assert!(!world.annotated(REBOOT_ANNOTATION));
    let boots = world.machine.boots;
    world.settle();
    assert_eq!(world.machine.boots, boots);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}

/// With the write or the deprovisioning it is over, as upstream has it: nearly always a boot came with that.
#[test]
fn a_reboot_that_was_asked_for_does_not_outlive_what_the_ramdisk_does() {
    for (state, then) in [
        (State::Provisioning, State::Provisioned),
        (State::Deprovisioning, State::Available),
    ] {
        let mut world = at(state);
        world.annotate(REBOOT_ANNOTATION, "");
        world.reach(then);
        assert!(!world.annotated(REBOOT_ANNOTATION), "{state:?}");
        let boots = world.machine.boots;
        world.settle();
        assert_eq!(world.machine.boots, boots, "what was just begun is not rebooted");
    }
    let mut world = at(State::Available);
    world.host().spec.online = false;
    world.settle();
    world.annotate(REBOOT_ANNOTATION, "");
    world.settle();
    assert!(!world.annotated(REBOOT_ANNOTATION) && !world.machine.on);
}

#[test]
fn a_forced_reboot_begins_what_the_ramdisk_does_anew_and_happens_once() {
    for (state, then) in [
        (State::Inspecting, State::Available),
        (State::Provisioning, State::Provisioned),
        (State::Deprovisioning, State::Available),
    ] {
        let mut world = at(state);
        // Its report ends an inspection, so that is rebooted while it boots.
        while world.machine.ramdisk.is_none() && (state != State::Inspecting || world.machine.boots == 0) {
            let plan = world.plan();
            world.execute(plan, None, Fault::None);
            world.tick(2);
        }
        let (boots, sessions) = (world.machine.boots, world.machine.sessions);
        world.annotate(REBOOT_ANNOTATION, "");
        let is_power = |effect: &Effect| matches!(effect, Effect::Bmc(BmcCall::Power { .. }));
        assert!(
            !world.plan().effects.iter().any(is_power),
            "without force it waits"
        );
        world.annotate(REBOOT_ANNOTATION, r#"{"force":true}"#);
        world.until("its end", |world| !world.annotated(REBOOT_ANNOTATION));
        assert_eq!((world.state(), world.machine.boots), (state, boots + 1));
        world.until("another ramdisk", |world| world.machine.sessions > sessions);
        assert_eq!(world.machine.boots, boots + 1, "{state:?}");
        world.reach(then);
    }
}

#[test]
fn a_ramdisk_without_a_bmc_reboots_once_where_that_is_forced() {
    let mut world = World::in_band();
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioning);
    let sessions = world.machine.sessions;
    world.annotate(REBOOT_ANNOTATION, r#"{"force":true}"#);
    world.until("its end", |world| !world.annotated(REBOOT_ANNOTATION));
    world.until("another ramdisk", |world| world.machine.sessions > sessions);
    assert_eq!(world.state(), State::Provisioning);
    world.reach(State::Provisioned);
    assert_eq!(world.machine.sessions, sessions + 1);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}

#[test]
fn a_forced_reboot_that_the_bmc_refuses_is_told_of_and_the_work_goes_on() {
    let mut world = at(State::Provisioning);
    world.annotate(REBOOT_ANNOTATION, r#"{"force":true}"#);
    let mut refused = false;
    for _ in 0..20 {
        let plan = world.plan();
        let is_power = |effect: &Effect| matches!(effect, Effect::Bmc(BmcCall::Power { .. }));
        let fault = match plan.effects.iter().any(is_power) {
            true => Fault::Doubtful,
            false => Fault::None,
        };
        world.execute(plan, None, fault);
        world.tick(2);
        refused |= fault == Fault::Doubtful;
        if !world.annotated(REBOOT_ANNOTATION) {
            break;
        }
    }
    assert!(refused && !world.annotated(REBOOT_ANNOTATION));
    assert!(world.events.contains(&"PowerManagementError".to_owned()));
    world.reach(State::Provisioned);
}

#[test]
fn a_forced_reboot_whose_answer_was_lost_is_done_once_its_ramdisk_is_back() {
    let mut world = at(State::Provisioning);
    while world.machine.ramdisk.is_none() {
        let plan = world.plan();
        world.execute(plan, None, Fault::None);
        world.tick(2);
    }
    let boots = world.machine.boots;
    world.annotate(REBOOT_ANNOTATION, r#"{"force":true}"#);
    let begun = world.now;
    while world.annotated(REBOOT_ANNOTATION) {
        let plan = world.plan();
        let is_power = |effect: &Effect| matches!(effect, Effect::Bmc(BmcCall::Power { .. }));
        let is_lost = plan.effects.iter().any(is_power);
        world.execute(plan, None, Fault::None);
        if let (true, Some(tried)) = (is_lost, &mut world.tried) {
            tried.result = Err(Failure {
                class: FailureClass::Unreachable,
                message: "no answer".to_owned(),
                at: tried.at,
            });
        }
        world.tick(10);
        assert!(world.now.duration_since(begun).as_mins() < 6);
    }
    assert_eq!(world.machine.boots, boots + 1);
    assert!(!world.events.contains(&"PowerManagementError".to_owned()));
    world.reach(State::Provisioned);
}

#[test]
fn a_hard_reboot_does_not_ask_the_operating_system() {
    let mut world = provisioned();
    world.annotate(REBOOT_ANNOTATION, r#"{"mode":"hard"}"#);
    world.until("an order", |world| !orders(world).is_empty());
    assert_eq!(orders(&world), [PowerOrder::HardOff]);
}

#[test]
fn a_soft_off_that_is_ignored_becomes_hard() {
    let mut world = provisioned();
    world.annotate(REBOOT_ANNOTATION, "");
    for _ in 0..200 {
        let plan = world.plan();
        let fault = match plan.effects.iter().any(|effect| {
            matches!(
                effect,
                Effect::Bmc(BmcCall::Power {
                    order: PowerOrder::SoftOff,
                    ..
                })
            )
        }) {
            true => Fault::Lost,
            false => Fault::None,
        };
        world.execute(plan, None, fault);
        world.tick(11);
        if !world.machine.on {
            return;
        }
    }
    panic!("never off");
}

#[test]
fn a_host_that_is_remediated_stays_off_until_whoever_asked_takes_it_back() {
    let mut world = provisioned();
    world.annotate(REMEDIATION, r#"{"mode":"hard"}"#);
    world.settle();
    assert!(!world.machine.on && world.annotated(REMEDIATION));
    assert!(!world.host().status.as_ref().unwrap().powered_on);
    world.unannotate(REMEDIATION);
    world.settle();
    assert!(world.machine.on && world.host().status.as_ref().unwrap().powered_on);
}

#[test]
fn a_host_that_an_annotation_holds_off_names_it_and_rests() {
    let forced = r#"{"force":true}"#;
    let mut in_band = World::in_band();
    in_band.reach(State::Available);
    for (mut world, value) in [
        (provisioned(), ""),
        (at(State::Available), forced),
        (in_band, forced),
    ] {
        world.settle();
        world.annotate(REMEDIATION, value);
        world.until("off", |world| {
            !world.host.as_ref().unwrap().status.as_ref().unwrap().powered_on
        });
        let writes = world.status_writes;
        world.settle();
        let (reason, message) = waiting(&world);
        assert_eq!(reason, "HeldOff");
        let who = format!("the annotation {REMEDIATION} asks for the host to be off; next: ");
        assert!(message.starts_with(&who), "{message}");
        let then = "; next: it is powered on once that annotation is removed (since ";
        assert!(message.contains(then), "{message}");
        assert_eq!(world.status_writes, writes, "it is said with that it is off");
        world.step(0);
        let plan = world.plan();
        let has_bmc = world.host().spec.bmc.is_some();
        assert_eq!(plan.rests().is_some(), has_bmc, "{plan:?}");
        // Whoever wants it off has no need to be told who else does.
        world.host().spec.online = false;
        world.settle();
        assert_eq!(waiting(&world).0, "Nothing");
        world.host().spec.online = true;
        world.unannotate(REMEDIATION);
        world.settle();
        assert!(world.machine.on);
        assert_eq!(waiting(&world).0, "Nothing");
    }
}

#[test]
fn a_machine_that_an_annotation_holds_off_is_off_once_it_has_another_image() {
    for (forbidden, runs) in [(false, false), (true, true)] {
        let mut world = provisioned();
        world.settle();
        world.host().spec.disable_power_off = Some(forbidden);
        world.annotate(REMEDIATION, "");
        world.settle();
        assert_eq!(world.machine.on, runs);
        let another = format!("{IMAGE}.another");
        world.set_image(Some(&another));
        world.reach(State::Deprovisioning);
        world.reach(State::Provisioned);
        // Its new system has not run for a moment.
        assert_eq!((world.machine.on, powered_on(&world)), (runs, runs));
        world.settle();
        assert_eq!(world.machine.disk, Content::Image(another));
        assert_eq!(world.machine.on, runs);
        world.unannotate(REMEDIATION);
        world.settle();
        assert!(world.machine.on);
    }
}

#[test]
fn what_is_refused_is_said_rather_than_what_holds_the_host_off() {
    let mut world = at(State::Available);
    world.annotate(REMEDIATION, r#"{"force":true}"#);
    world.settle();
    world.annotate(PROTECTED_ANNOTATION, "true");
    world.set_image(Some(IMAGE));
    world.settle();
    assert!(!world.machine.on);
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Refused", "{message}");
}

#[test]
fn a_host_that_must_not_be_off_is_restarted_by_its_system_unless_that_cannot_be_asked() {
    for (mode, fails, wanted) in [
        ("", None, &[PowerOrder::SoftReset][..]),
        (
            "",
            Some(FailureClass::Unsupported),
            &[PowerOrder::SoftReset, PowerOrder::Reset],
        ),
        (
            "",
            Some(FailureClass::Busy),
            &[PowerOrder::SoftReset, PowerOrder::SoftReset],
        ),
        // It may have heard: later.
        (
            "",
            Some(FailureClass::Unreachable),
            &[PowerOrder::SoftReset, PowerOrder::SoftReset],
        ),
        (r#"{"mode":"hard"}"#, None, &[PowerOrder::Reset]),
    ] {
        let mut world = provisioned();
        world.host().spec.disable_power_off = Some(true);
        let boots = world.machine.boots;
        world.annotate(REBOOT_ANNOTATION, mode);
        let mut orders = Vec::new();
        for _ in 0..20 {
            let plan = world.plan();
            let before = orders.len();
            orders.extend(power_orders(&plan));
            let fails = fails.filter(|_| before == 0 && !orders.is_empty());
            world.execute(plan, None, fails.map_or(Fault::None, |_| Fault::Fails));
            if let (Some(class), Some(Err(failure))) =
                (fails, world.tried.as_mut().map(|tried| &mut tried.result))
            {
                failure.class = class;
            }
            world.tick(11);
        }
        assert_eq!(orders, wanted, "{mode} {fails:?}");
        assert_eq!(world.machine.boots, boots + 1);
        assert!(!world.annotated(REBOOT_ANNOTATION));
        assert_eq!(world.host().status.as_ref().unwrap().error_type, None);
    }
}

#[test]
fn a_hard_reset_is_made_though_the_system_was_asked_to_restart() {
    let mut world = provisioned();
    world.host().spec.disable_power_off = Some(true);
    world.annotate(REBOOT_ANNOTATION, "");
    let asks = |world: &World| {
        let tried = world.tried.as_ref();
        tried.is_some_and(|tried| tried.operation.ends_with("-soft"))
    };
    world.until("asked", asks);
    let boots = world.machine.boots;
    world.annotate(REBOOT_ANNOTATION, r#"{"mode":"hard"}"#);
    world.settle();
    assert_eq!(world.machine.boots, boots + 1);
    assert!(!world.annotated(REBOOT_ANNOTATION));
}

#[test]
fn a_host_that_must_not_be_off_stays_on() {
    let mut world = provisioned();
    world.host().spec.disable_power_off = Some(true);
    world.annotate(REMEDIATION, "");
    world.settle();
    assert!(world.machine.on);
    let (_, message) = waiting(&world);
    let who = format!("the annotation {REMEDIATION} asks for the host to be off");
    assert!(message.starts_with(&who), "{message}");
    world.unannotate(REMEDIATION);
    world.set_image(None);
    world.delete();
    world.until("gone", |world| world.host.is_none());
    assert!(world.machine.on, "it is not switched off for its deletion either");
}

#[test]
fn nothing_at_all_is_done_to_a_paused_host() {
    for state in State::ALL {
        let mut world = at(state);
        world.annotate(PAUSED_ANNOTATION, "metal3.io/capm3");
        world.set_image(None);
        let is_left_alone = |world: &World| {
            let plan = world.plan();
            assert!(
                plan.status.is_none() && plan.metadata.is_empty() && plan.effects.is_empty(),
                "{state}"
            );
            assert!(plan.next().is_none() && plan.events.is_empty(), "{state}");
        };
        is_left_alone(&world);
        world.delete();
        if world.host.is_some() {
            is_left_alone(&world);
        } else {
            assert_eq!(state, State::New, "it carries our finalizer");
        }
    }
}

#[test]
fn a_detached_host_is_left_alone_and_goes_on_where_it_was() {
    let mut world = provisioned();
    world.annotate(DETACHED_ANNOTATION, "");
    world.settle();
    let status = world.host().status.clone().unwrap();
    assert_eq!(status.operational_status, OperationalStatus::Detached);
    world.power(PowerOrder::HardOff);
    world.settle();
    assert!(!world.machine.on, "its power is its own affair");
    world.unannotate(DETACHED_ANNOTATION);
    world.settle();
    assert!(world.machine.on && world.state() == State::Provisioned);
    assert_eq!(world.machine.writes.len(), 1);
}

#[test]
fn only_by_force_a_busy_host_is_detached() {
    let mut world = at(State::Provisioning);
    world.annotate(DETACHED_ANNOTATION, "");
    world.round();
    assert_eq!(
        world.host().status.as_ref().unwrap().operational_status,
        OperationalStatus::Ok
    );
    world.annotate(DETACHED_ANNOTATION, r#"{"force":true}"#);
    world.settle();
    assert_eq!(
        world.host().status.as_ref().unwrap().operational_status,
        OperationalStatus::Detached
    );
    assert!(world.server.as_ref().unwrap().spec.job.is_none());
}

#[test]
fn an_error_stays_to_be_seen_while_a_host_is_detached_and_afterwards() {
    let mut world = at(State::Available);
    world.settle();
    let status = world.host().status.as_mut().unwrap();
    status.error_type = Some(ErrorType::PowerManagement);
    "the BMC refuses".clone_into(&mut status.error_message);
    status.operational_status = OperationalStatus::Error;
    world.annotate(DETACHED_ANNOTATION, "");
    world.round();
    let seen = |world: &mut World| {
        let status = world.host().status.clone().unwrap();
        (status.operational_status, status.error_type, status.error_message)
    };
    // It is not what stands in the way.
    let says = |world: &mut World| {
        let conditions = world.host().status.clone().unwrap().conditions;
        let said = |name: &str| {
            conditions
                .iter()
                .find(|one| one.type_ == name)
                .unwrap()
                .message
                .clone()
        };
        ["Ready", "Progressing"].map(said)
    };
    assert_eq!(says(&mut world), ["the host is detached"; 2]);
    let why = "the BMC refuses".to_owned();
    let error = Some(ErrorType::PowerManagement);
    assert_eq!(
        seen(&mut world),
        (OperationalStatus::Detached, error, why.clone())
    );
    world.unannotate(DETACHED_ANNOTATION);
    world.round();
    assert_eq!(says(&mut world), ["the BMC refuses"; 2]);
    assert_eq!(seen(&mut world), (OperationalStatus::Error, error, why));
}

#[test]
fn a_status_annotation_may_leave_out_what_is_as_in_a_new_status() {
    let image = r#"{"url":"http://images.test/one.raw","checksum":"a"}"#;
    let said = format!(
        r#"{{"operationalStatus":"OK","errorType":"","hardware":null,"provisioning":{{"state":"provisioned","image":{image}}}}}"#
    );
    let mut world = World::new();
    world.annotate(STATUS_ANNOTATION, &said);
    world.round();
    let status = world.host().status.clone().unwrap();
    assert_eq!(world.state(), State::Provisioned);
    let image = status.provisioning.image.unwrap();
    assert_eq!(
        (image.url.as_str(), status.error_type),
        ("http://images.test/one.raw", None)
    );
    // One with nothing in it says nothing.
    let mut world = World::new();
    world.annotate(STATUS_ANNOTATION, "");
    world.reach(State::Available);
    assert!(!world.annotated(STATUS_ANNOTATION));
}

#[test]
fn a_restored_provisioned_host_is_never_written_again() {
    let mut old = provisioned();
    let status = serde_json::to_string(&old.host().status).unwrap();
    for network_first in [false, true] {
        let mut world = World::new();
        world.set_image(Some(IMAGE));
        world.machine = old.machine.clone();
        world.machine.network_first = network_first;
        let (writes, cleans) = (world.machine.writes.len(), world.machine.cleans);
        world.annotate(PAUSED_ANNOTATION, "metal3.io/capm3");
        world.annotate(STATUS_ANNOTATION, &status);
        world.settle();
        assert!(world.host().status.is_none(), "paused");
        world.unannotate(PAUSED_ANNOTATION);
        world.settle();
        assert_eq!(world.state(), State::Provisioned);
        assert!(!world.annotated(STATUS_ANNOTATION));
        // It boots from the network, and is let through to its disk.
        world.power(PowerOrder::Reset);
        world.settle();
        assert_eq!(
            (world.machine.writes.len(), world.machine.cleans),
            (writes, cleans)
        );
        assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    }
}

#[test]
fn a_protected_host_without_a_status_leaves_its_machine_as_it_is_and_says_what_helps() {
    let mut old = provisioned();
    let status = serde_json::to_string(&old.host().status).unwrap();
    let mut in_band = World::new();
    in_band.host().spec.bmc = None;
    in_band.annotate(IN_BAND_ANNOTATION, "segment");
    for mut world in [World::new(), in_band] {
        // As it is made anew from a repository, or from a backup without its status.
        world.machine = old.machine.clone();
        world.machine.network_first = true;
        world.set_image(Some(IMAGE));
        world.annotate(PROTECTED_ANNOTATION, "");
        world.settle();
        assert_eq!(world.state(), State::Registering);
        assert_eq!((world.machine.on, world.machine.boots), (true, old.machine.boots));
        let (reason, message) = waiting(&world);
        assert_eq!(reason, "Refused");
        for helps in [
            "spec.externallyProvisioned",
            STATUS_ANNOTATION,
            PROTECTED_ANNOTATION,
        ] {
            assert!(message.contains(helps), "{message}");
        }
        let told = world.events.iter().filter(|told| *told == "RegistrationError");
        assert_eq!(told.count(), 1, "{:?}", world.events);
        // It boots from the network, and is let through to its disk.
        world.power(PowerOrder::Reset);
        world.settle();
        assert!(world.machine.ramdisk.is_none() && world.state() == State::Registering);
        if world.host().spec.bmc.is_none() {
            continue;
        }

        // Each of the three helps.
        let boots = world.machine.boots;
        let mut restored = world.clone();
        restored.annotate(STATUS_ANNOTATION, &status);
        restored.settle();
        assert!(!restored.annotated(STATUS_ANNOTATION));
        assert_eq!(
            (restored.state(), restored.machine.boots),
            (State::Provisioned, boots)
        );
        let mut external = world.clone();
        external.host().spec.externally_provisioned = Some(true);
        external.settle();
        assert_eq!(
            (external.state(), external.machine.boots),
            (State::ExternallyProvisioned, boots)
        );
        for world in [&mut restored, &mut external] {
            assert_eq!(world.host().status.as_ref().unwrap().error_type, None);
        }
        let writes = world.machine.writes.len();
        world.unannotate(PROTECTED_ANNOTATION);
        world.reach(State::Provisioned);
        assert_eq!(world.machine.writes.len(), writes + 1);
    }
    // One that asks for nothing is inspected as any other.
    let mut world = World::new();
    world.annotate(PROTECTED_ANNOTATION, "");
    world.reach(State::Available);
}

#[test]
fn a_status_annotation_that_cannot_be_read_stops_a_host_without_a_status() {
    let mut world = World::new();
    world.set_image(Some(IMAGE));
    for said in [
        r#"{"provisioning":"#,
        r#"{"provisioning":{"image":{"url":"http://images.test/one.raw"}}}"#,
        "{}",
        "null",
    ] {
        world.annotate(STATUS_ANNOTATION, said);
        world.settle();
        assert!(
            world.host().status.is_none() && world.machine.boots == 0,
            "{said}"
        );
    }
    assert!(world.events.contains(&"InvalidAnnotationValue".to_owned()));
    world.delete();
    assert!(world.host.is_none());
}

#[test]
fn a_status_annotation_on_a_host_with_a_status_is_dropped() {
    let mut world = provisioned();
    world.annotate(STATUS_ANNOTATION, "{}");
    world.settle();
    assert!(!world.annotated(STATUS_ANNOTATION) && world.state() == State::Provisioned);
}

#[test]
fn an_available_host_is_inspected_again_on_demand() {
    let mut world = at(State::Available);
    world.annotate(INSPECT_ANNOTATION, "");
    world.reach(State::Inspecting);
    world.reach(State::Available);
    assert!(!world.annotated(INSPECT_ANNOTATION));
    assert_eq!(world.machine.boots, 1, "the ramdisk that runs is asked");
    world.settle();
    assert_eq!(world.state(), State::Available);
}

#[test]
fn a_host_whose_inspection_is_disabled_is_available_though_its_hardware_is_unknown() {
    let mut world = World::new();
    world.annotate(INSPECT_ANNOTATION, "disabled");
    // So that nobody has another reason to boot it.
    world.host().spec.online = false;
    world.reach(State::Available);
    world.settle();
    assert_eq!(
        world.states,
        [State::New, State::Registering, State::Preparing, State::Available]
    );
    assert_eq!((world.machine.boots, world.machine.jobs), (0, 0));
    let status = world.host().status.clone().unwrap();
    assert_eq!((world.hardware.as_ref(), status.hardware), (None, None));
    let history = status.operation_history.unwrap();
    assert!(history.register.unwrap().end.is_some() && history.inspect.is_none());
    let told = |reason: &str| world.events.iter().filter(|told| *told == reason).count();
    assert_eq!(
        ["InspectionSkipped", "InspectionStarted", "InspectionComplete"].map(told),
        [1, 0, 0]
    );
    // It asks for nothing, so it is not taken off as one that does.
    assert!(world.annotated(INSPECT_ANNOTATION));
    world.set_image(Some(IMAGE));
    world.host().spec.online = true;
    world.reach(State::Provisioned);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    assert!(world.hardware.is_none() && !world.states.contains(&State::Inspecting));
}

#[test]
fn an_inspection_that_is_disabled_while_it_is_under_way_ends_without_a_result() {
    let mut world = at(State::Inspecting);
    world.annotate(INSPECT_ANNOTATION, "disabled");
    world.reach(State::Available);
    world.settle();
    assert!(world.hardware.is_none() && world.host().status.as_ref().unwrap().hardware.is_none());
    assert_eq!(world.states.last(), Some(&State::Available));
}

#[test]
fn hardware_from_an_annotation_counts_where_nothing_is_inspected() {
    let mut world = World::new();
    world.host().spec.inspection_mode = Some(InspectionMode::Disabled);
    world.annotate(
        HARDWARE_ANNOTATION,
        r#"{"hostname":"by-hand","cpu":{"arch":"aarch64"}}"#,
    );
    world.reach(State::Available);
    let host = world.host();
    let hardware = host.status.as_ref().unwrap().hardware.as_ref().unwrap().unpack();
    assert_eq!(hardware.hostname.as_deref(), Some("by-hand"));
    assert_eq!(host.spec.architecture.as_deref(), Some("aarch64"));
    assert!(!world.annotated(HARDWARE_ANNOTATION));
}

/// The API server would refuse the whole status with it, and the host would stop.
#[test]
fn hardware_that_cannot_be_stored_counts_for_nothing() {
    for (told, counts) in [
        (r#"{"nics":[{"mac":"52-54-00-00-00-01"}]}"#, false),
        (r#"{"nics":[{"mac":"none"}]}"#, false),
        (r#"{"nics":[{"vlanId":4095}]}"#, false),
        (r#"{"nics":[{"vlans":[{"id":-1}]}]}"#, false),
        (r#"{"storage":[{"type":"TAPE"}]}"#, false),
        (
            r#"{"nics":[{"mac":"","vlanId":null,"vlans":[{"id":4094},null]}],"cpu":{"flags":null}}"#,
            true,
        ),
        (
            r#"{"nics":[{"mac":"80:00:02:08:fe:80:00:00"}],"storage":null}"#,
            true,
        ),
    ] {
        let mut world = World::new();
        world.host().spec.inspection_mode = Some(InspectionMode::Disabled);
        world.annotate(HARDWARE_ANNOTATION, told);
        // People are told of it.
        assert_eq!(
            restore::unreadable_hardware(world.host()).is_none(),
            counts,
            "{told}"
        );
        world.reach(State::Available);
        let hardware = world.host().status.as_ref().unwrap().hardware.clone();
        assert_eq!(hardware.is_some(), counts, "{told}");
        let mac = hardware.and_then(|hardware| hardware.unpack().nics[0].mac.clone());
        assert_ne!(mac.as_deref(), Some(""));
    }
}

/// As in Go, where it is the zero value.
#[test]
fn what_an_annotation_leaves_null_it_does_not_say() {
    let mut world = provisioned();
    world.annotate(DETACHED_ANNOTATION, r#"{"deleteAction":"delay","force":null}"#);
    world.settle();
    world.delete();
    for _ in 0..20 {
        world.round();
    }
    assert!(world.host.is_some(), "it waits until it is attached again");
    // One that is being deleted already is out of our hands, too, and seen to be.
    let mut late = provisioned();
    late.delete();
    late.annotate(DETACHED_ANNOTATION, r#"{"deleteAction":"delay"}"#);
    late.settle();
    let status = late.host().status.clone().unwrap();
    assert_eq!(status.operational_status, OperationalStatus::Detached);
    assert_eq!(late.bmc, Default::default(), "no session is kept");
    late.unannotate(DETACHED_ANNOTATION);
    late.until("its end", |world| world.host.is_none());
    for hard in [
        r#"{"mode":"hard","force":null}"#,
        r#"{"mode":"soft","mode":"hard"}"#,
        r#"{"mode":"hard"}"#,
    ] {
        let mut world = provisioned();
        world.annotate(REBOOT_ANNOTATION, hard);
        world.until("an order", |world| !power_orders(&world.plan()).is_empty());
        assert_eq!(power_orders(&world.plan()), [PowerOrder::HardOff], "{hard}");
    }
    let mut moved = World::new();
    moved.annotate(
        STATUS_ANNOTATION,
        r#"{"provisioning":{"state":"provisioned","raid":null},"conditions":null,"hardware":{"nics":null,"cpu":{"flags":null}}}"#,
    );
    let plan = moved.plan();
    moved.execute(plan, None, Fault::None);
    assert_eq!(moved.state(), State::Provisioned);
}

#[test]
fn hardware_data_counts_for_more_than_either_annotation() {
    let hostname = |world: &mut World| {
        let hardware = world.host().status.as_ref().unwrap().hardware.clone();
        hardware.and_then(|hardware| hardware.unpack().hostname.clone())
    };
    let by_hand = r#"{"hostname":"by-hand"}"#;
    let stored: HardwareDetails = serde_json::from_str(r#"{"hostname":"stored"}"#).unwrap();
    for (stored, wanted) in [(None, "by-hand"), (Some(stored), "stored")] {
        let spec = HardwareDataSpec {
            hardware: stored.map(Into::into),
        };
        let data = spec.hardware.is_some().then(|| HardwareData::new("host-1", spec));

        let mut world = World::new();
        world.host().spec.inspection_mode = Some(InspectionMode::Disabled);
        world.hardware.clone_from(&data);
        world.annotate(HARDWARE_ANNOTATION, by_hand);
        world.settle();
        assert_eq!(hostname(&mut world).as_deref(), Some(wanted));
        assert!(!world.annotated(HARDWARE_ANNOTATION));
        let told = world.events.contains(&"UpdateHardwareDetails".to_owned());
        assert_eq!(told, wanted == "by-hand", "only what happened is told");

        let mut world = World::new();
        world.hardware = data;
        let details: HardwareDetails = serde_json::from_str(by_hand).unwrap();
        let status = BareMetalHostStatus {
            hardware: Some(details.into()),
            ..BareMetalHostStatus::default()
        };
        world.annotate(STATUS_ANNOTATION, &serde_json::to_string(&status).unwrap());
        let plan = world.plan();
        world.execute(plan, None, Fault::None);
        assert_eq!(hostname(&mut world).as_deref(), Some(wanted));
    }
}

#[test]
fn hardware_of_an_annotation_that_changes_nothing_is_told_of_once() {
    const UNUSED: &str = "AnnotationUnused";
    let by_hand = r#"{"hostname":"by-hand"}"#;
    let told = |world: &World| world.events.iter().filter(|told| *told == UNUSED).count();
    let why = |world: &World| {
        let events = world.plan().events;
        let found = events.into_iter().find(|event| event.reason == UNUSED);
        found
            .map(|event| (event.warning, event.message))
            .unwrap_or_default()
    };
    // It has HardwareData, whether it is inspected or not.
    for mode in [InspectionMode::Agent, InspectionMode::Disabled] {
        let mut world = at(State::Available);
        world.host().spec.inspection_mode = Some(mode);
        world.settle();
        let before = world.host().status.as_ref().unwrap().hardware.clone();
        world.annotate(HARDWARE_ANNOTATION, by_hand);
        let (warning, message) = why(&world);
        assert!(
            warning && message.contains("HardwareData takes precedence"),
            "{message}"
        );
        world.settle();
        assert!(!world.annotated(HARDWARE_ANNOTATION));
        assert_eq!(world.host().status.as_ref().unwrap().hardware, before);
        assert_eq!(told(&world), 1, "{:?}", world.events);
        // With what is known already, and with nothing, nothing is lost.
        let known = serde_json::to_string(&before).unwrap();
        for nothing in [known.as_str(), " "] {
            world.annotate(HARDWARE_ANNOTATION, nothing);
            world.settle();
            assert!(!world.annotated(HARDWARE_ANNOTATION));
            assert_eq!(told(&world), 1, "{nothing}: {:?}", world.events);
        }
    }
    // It has none any more, but the hardware is known.
    let mut world = at(State::Available);
    world.hardware = None;
    world.annotate(HARDWARE_ANNOTATION, by_hand);
    let (warning, message) = why(&world);
    assert!(
        warning && message.contains("set spec.inspectionMode to disabled"),
        "{message}"
    );
    // Then it counts, and nothing else is told.
    world.host().spec.inspection_mode = Some(InspectionMode::Disabled);
    assert!(!why(&world).0);
}

#[test]
fn arguments_of_detached_that_cannot_be_read_count_for_nothing() {
    let operational = |world: &World| {
        let status = world.host.as_ref().unwrap().status.as_ref();
        status.unwrap().operational_status
    };
    for arguments in ["{", "7", r#"{"force":"true"}"#, r#"{"deleteAction":7}"#, "true"] {
        let mut world = at(State::Provisioning);
        world.annotate(DETACHED_ANNOTATION, arguments);
        world.round();
        assert_eq!(
            operational(&world),
            OperationalStatus::Ok,
            "no force: {arguments}"
        );
        let mut world = provisioned();
        world.annotate(DETACHED_ANNOTATION, arguments);
        world.settle();
        assert_eq!(operational(&world), OperationalStatus::Detached, "{arguments}");
        world.delete();
        world.until("gone", |world| world.host.is_none());
        assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    }
    // An action of a newer version is none of those that wait.
    let mut world = provisioned();
    world.annotate(DETACHED_ANNOTATION, r#"{"deleteAction":"later"}"#);
    world.settle();
    world.delete();
    world.until("gone", |world| world.host.is_none());
}

#[test]
fn what_a_protected_host_runs_is_neither_written_nor_taken_away() {
    let mut world = at(State::Available);
    world.annotate(PROTECTED_ANNOTATION, "");
    world.set_image(Some(IMAGE));
    world.settle();
    assert_eq!(
        (world.state(), world.machine.writes.len(), world.machine.cleans),
        (State::Available, 0, 0)
    );
    world.unannotate(PROTECTED_ANNOTATION);
    world.reach(State::Provisioned);
    let mut world = provisioned();
    world.annotate(PROTECTED_ANNOTATION, "");
    world.set_image(None);
    world.settle();
    assert_eq!(world.state(), State::Provisioned);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    world.unannotate(PROTECTED_ANNOTATION);
    world.reach(State::Available);
    assert_eq!(world.machine.disk, Content::Blank);
}

#[test]
fn what_was_begun_when_a_host_is_protected_goes_on_to_its_end_and_what_was_not_waits_without_a_failure() {
    let counted = |world: &World| {
        let status = world.host.as_ref().unwrap().status.clone().unwrap();
        (status.error_type, status.provisioning_fail_count)
    };
    let at_work = |part: &str| {
        let mut world = at(State::Provisioning);
        world.jobs_take = 60;
        world.until(part, |world| {
            let working = world.machine.working.as_ref();
            working.is_some_and(|(id, _)| id.contains(part))
        });
        world.annotate(PROTECTED_ANNOTATION, "");
        world
    };

    // The write is not called back, and the machine boots it.
    let mut world = at_work("-write");
    world.step(1);
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Write");
    assert!(message.contains("the machine boots it"), "{message}");
    // Nor where the connection breaks for a moment.
    let mut silent = world.clone();
    silent.disconnect();
    silent.step(1);
    assert_eq!(
        (waiting(&silent).0.as_str(), silent.has_destructive_job()),
        ("Write", true)
    );
    world.reach(State::Provisioned);
    assert!(!world.states.contains(&State::Deprovisioning));
    assert_eq!((counted(&world), world.machine.writes.len()), ((None, 0), 1));

    // Of a cleaning the write that follows waits.
    let mut world = at_work("-clean");
    world.step(1);
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Write");
    assert!(
        message.contains("once the annotation muster.dev/protected is removed"),
        "{message}"
    );
    // Also one that was given out in that moment, and of which nobody has heard yet.
    let mut unheard = world.clone();
    let set_job = |world: &mut World, job| {
        let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
        std::mem::replace(&mut status.job, job)
    };
    let taken_up = set_job(&mut unheard, None);
    unheard.machine.deaf = true;
    unheard.step(5);
    assert_eq!(
        (waiting(&unheard).0.as_str(), unheard.has_destructive_job()),
        ("Refused", true)
    );
    set_job(&mut unheard, taken_up);
    unheard.step(1);
    assert_eq!(waiting(&unheard).0, "Write");
    world.settle();
    assert_eq!((world.state(), counted(&world)), (State::Provisioning, (None, 0)));
    assert!(!world.has_destructive_job());
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Refused");
    let helps = "its disks are not written; next: remove the annotation muster.dev/protected (since ";
    assert!(message.contains(helps), "{message}");
    // What is forced is done.
    let boots = world.machine.boots;
    world.annotate(REBOOT_ANNOTATION, r#"{"force":true}"#);
    world.settle();
    assert_eq!((world.machine.boots, world.machine.writes.len()), (boots + 1, 0));
    assert!(!world.annotated(REBOOT_ANNOTATION));
    world.unannotate(PROTECTED_ANNOTATION);
    world.reach(State::Provisioned);
    assert_eq!(world.machine.writes.len(), 1);
    assert!(!world.states.contains(&State::Deprovisioning));

    // What nobody has taken up is taken back.
    let mut world = at(State::Provisioning);
    world.reach_job();
    world.annotate(PROTECTED_ANNOTATION, "");
    world.settle();
    assert_eq!((world.state(), counted(&world)), (State::Provisioning, (None, 0)));
    assert!(!world.has_destructive_job());
    world.unannotate(PROTECTED_ANNOTATION);
    world.reach(State::Provisioned);
    assert_eq!((world.machine.cleans, world.machine.writes.len()), (1, 1));

    // A write that fails has failed.
    let mut world = at_work("-write");
    world.failing_writes = 1;
    world.reach(State::Deprovisioning);
    world.settle();
    assert_eq!(counted(&world), (Some(ErrorType::Provisioning), 1));
    let (_, message) = waiting(&world);
    let helps = "it is not deprovisioned; next: remove the annotation muster.dev/protected, or set muster.dev/release-uncleaned to";
    assert!(message.contains(helps), "{message}");
    assert!(!message.contains("once this is fixed"), "{message}");
    world.unannotate(PROTECTED_ANNOTATION);
    world.reach(State::Provisioned);
}

#[test]
fn a_deletion_that_waits_while_its_host_is_detached_says_what_becomes_of_the_disks() {
    type Case = (State, fn(&mut World), bool);
    let cases: [Case; 7] = [
        (State::Provisioned, |_| {}, true),
        (
            State::Provisioned,
            |world| world.annotate(RELEASE_ANNOTATION, ""),
            false,
        ),
        (
            State::Provisioned,
            |world| world.annotate(PROTECTED_ANNOTATION, ""),
            false,
        ),
        (
            State::Provisioned,
            |world| world.host().spec.automated_cleaning_mode = Some(AutomatedCleaningMode::Disabled),
            false,
        ),
        (
            State::Provisioned,
            |world| world.secrets.bmc.state = SecretState::Missing,
            false,
        ),
        (State::Available, |_| {}, false),
        (State::ExternallyProvisioned, |_| {}, false),
    ];
    for (which, (state, edit, cleans)) in cases.into_iter().enumerate() {
        let mut world = at(state);
        world.settle();
        world.annotate(DETACHED_ANNOTATION, r#"{"deleteAction":"delay"}"#);
        world.settle();
        assert!(
            waiting(&world).1.contains("continues where it stopped"),
            "{which}"
        );
        edit(&mut world);
        world.delete();
        world.settle();
        let (reason, message) = waiting(&world);
        assert_eq!(reason, "Detached", "{which}");
        let told = message.contains("next: its disks are cleaned once");
        let kept = message.contains("next: the host is removed without cleaning once");
        assert_eq!((told, kept), (cleans, !cleans), "{which}: {message}");
        // And so it is.
        let before = world.machine.cleans;
        world.unannotate(DETACHED_ANNOTATION);
        world.until("gone", |world| world.host.is_none());
        assert_eq!(world.machine.cleans > before, cleans, "{which}");
    }
}

#[test]
fn a_protected_host_that_goes_takes_its_data_along() {
    let mut world = provisioned();
    world.annotate(PROTECTED_ANNOTATION, "true");
    world.delete();
    world.until("gone", |world| world.host.is_none());
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}

#[test]
fn a_claim_can_be_released_uncleaned() {
    let mut world = provisioned();
    world.bmc_up = false;
    world.restart();
    world.set_image(None);
    for _ in 0..50 {
        world.round();
    }
    assert_eq!(world.state(), State::Deprovisioning);
    world.annotate(RELEASE_ANNOTATION, "");
    world.reach(State::Available);
    assert!(!world.annotated(RELEASE_ANNOTATION));
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    assert!(world.events.contains(&"NotCleaned".to_owned()));
}

#[test]
fn a_claim_on_a_machine_that_only_a_person_can_boot_can_be_released_uncleaned() {
    let mut world = World::in_band();
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    world.settle();
    let done = |world: &World| {
        (
            world.machine.jobs,
            world.machine.cleans,
            world.machine.writes.len(),
        )
    };
    let before = done(&world);
    world.set_image(None);
    world.settle();
    assert_eq!(world.state(), State::Deprovisioning);
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "PowerCycleByHand");
    assert!(message.contains("armed since 2026-"), "{message}");
    world.annotate(RELEASE_ANNOTATION, "");
    world.reach(State::Available);
    assert!(!world.annotated(RELEASE_ANNOTATION));
    assert!(world.events.contains(&"NotCleaned".to_owned()));
    // Whenever it comes back into its ramdisk, nothing is left there that touches its disk.
    world.settle();
    world.power(PowerOrder::Reset);
    world.settle();
    assert!(world.machine.ramdisk.is_some() && world.state() == State::Available);
    assert_eq!(done(&world), before);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
}
