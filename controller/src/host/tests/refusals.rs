//! What is refused, counted, and tried again.

use std::time::Duration;

use k8s_openapi::{api::core::v1::SecretReference, apimachinery::pkg::apis::meta::v1::Condition};
use muster_proto::kinds::{
    AutomatedCleaningMode, BareMetalHostSpec, ChecksumType, CredentialsStatus, CustomDeploy, ErrorType,
    HostBootMode, IN_BAND_ANNOTATION, INSPECT_ANNOTATION, ImageFormat, OperationalStatus,
    PROTECTED_ANNOTATION, REBOOT_ANNOTATION, RELEASE_ANNOTATION, RaidConfig, RootDeviceHints,
    STATUS_ANNOTATION, Server, SoftwareRaidVolume, Trust,
};

use super::{
    super::{
        BmcCall, Effect, Plan, State, backoff, netboot, next,
        observed::{Refusal, Rival, SecretSeen, SecretState},
        plan::{Hold, PowerOrder},
    },
    life::waiting,
    release::manageable,
    transitions::at,
    world::{Content, Fault, IMAGE, World, disk, image, secret},
};
use crate::bmc::{Health, Mode, WantedMode};

/// Makes something wrong.
type Spoil = fn(&mut World);

fn error(world: &World) -> (Option<ErrorType>, String, i64) {
    let status = world.host.as_ref().unwrap().status.clone().unwrap();
    (status.error_type, status.error_message, status.error_count)
}

#[test]
fn a_job_that_destroys_data_does_not_outlive_its_attempt() {
    let mut world = at(State::Available);
    world.set_image(Some(IMAGE));
    world.reach_job();
    // The machine goes off before its agent hears of it.
    world.power(PowerOrder::HardOff);
    let cleans = world.machine.cleans;
    world.annotate(PROTECTED_ANNOTATION, "");
    world.until("taken back", |world| !world.has_destructive_job());
    world.power(PowerOrder::On);
    world.settle();
    assert_eq!((world.machine.cleans, world.machine.writes.len()), (cleans, 0));
    world.unannotate(PROTECTED_ANNOTATION);
    world.reach(State::Provisioned);
    assert_eq!(world.machine.writes.len(), 1);
}

#[test]
fn a_job_that_is_over_stays_until_another_takes_its_place_unless_it_carries_much() {
    for (length, stays) in [(700, true), (20_000, false)] {
        let mut world = at(State::Available);
        world.set_image(Some(IMAGE));
        world.reach(State::Provisioned);
        let job = world.server.as_mut().unwrap().spec.job.as_mut().unwrap();
        job.then.as_mut().unwrap().write.config_drive = Some("x".repeat(length));
        world.settle();
        assert_eq!(
            world.server.as_ref().unwrap().spec.job.is_some(),
            stays,
            "{length}"
        );
        let (cleans, writes) = (world.machine.cleans, world.machine.writes.len());
        // Whoever comes there is given nothing of it.
        world.call_in();
        for _ in 0..5 {
            world.tick(11);
        }
        assert_eq!(
            (world.machine.cleans, world.machine.writes.len()),
            (cleans, writes)
        );
        world.settle();
        world.set_image(None);
        let mut effects = Vec::new();
        for _ in 0..100 {
            let plan = world.plan();
            effects.extend(plan.effects.iter().filter_map(|effect| match effect {
                Effect::PlaceJob(_) => Some("place"),
                Effect::RemoveJob { .. } => Some("remove"),
                _ => None,
            }));
            if effects.contains(&"place") {
                break;
            }
            world.execute(plan, None, Fault::None);
            world.tick(11);
        }
        assert_eq!(effects, ["place"], "one that is over is replaced in one step");
        world.reach(State::Available);
        assert_eq!(world.machine.disk, Content::Blank);
    }
}

#[test]
fn what_cannot_be_written_is_refused_before_anything_is_lost() {
    let refused: [(Spoil, &str); 10] = [
        (|world| world.set_image(Some("oci://images.test/os")), "oci"),
        (
            |world| world.set_image(Some("http://me:hunter2@images.test/os?sig=hunter2")),
            "image.url contains a user or password",
        ),
        (
            |world| {
                world.host().spec.image.as_mut().unwrap().checksum =
                    Some("https://me:hunter2@images.test/SHA256SUMS".to_owned());
            },
            "image.checksum contains a user or password",
        ),
        (
            |world| {
                let method = "x".repeat(100_000);
                world.host().spec.custom_deploy = Some(Box::new(CustomDeploy { method }));
            },
            "the deploy method `xxx",
        ),
        (
            |world| world.host().spec.image.as_mut().unwrap().format = Some(ImageFormat::Qcow2),
            "qcow2",
        ),
        (
            |world| world.host().spec.image.as_mut().unwrap().format = Some(ImageFormat::LiveIso),
            "live-iso",
        ),
        (
            |world| world.host().spec.image.as_mut().unwrap().checksum_type = Some(ChecksumType::Md5),
            "md5",
        ),
        (
            |world| world.host().spec.image.as_mut().unwrap().checksum = Some("0".repeat(32)),
            "md5",
        ),
        (
            |world| world.host().spec.image.as_mut().unwrap().checksum = None,
            "no checksum",
        ),
        (
            |world| {
                let method = "install_coreos".to_owned();
                world.host().spec.custom_deploy = Some(Box::new(CustomDeploy { method }));
            },
            "`install_coreos` is unknown",
        ),
    ];
    for (spoil, word) in refused {
        let mut world = at(State::Available);
        world.set_image(Some(IMAGE));
        spoil(&mut world);
        world.settle();
        assert_eq!(world.state(), State::Available, "{word}");
        let (kind, message, count) = error(&world);
        assert_eq!((kind, count), (Some(ErrorType::Provisioning), 0));
        assert!(message.contains(word), "{message}");
        let told = serde_json::to_string(&world.host().status).unwrap();
        assert!(!told.contains("hunter2") && told.len() < 20_000, "{told}");
        assert_eq!(world.machine.cleans + world.machine.writes.len(), 0);
        // Corrected, it goes on at once.
        world.set_image(Some(IMAGE));
        world.host().spec.custom_deploy = None;
        world.reach(State::Provisioned);
        assert_eq!(error(&world).0, None);
    }
}

#[test]
fn a_failed_write_is_taken_back_and_tried_again_later_and_later_until_it_is_given_up() {
    let mut world = at(State::Available);
    world.retries = 3;
    world.set_image(Some(IMAGE));
    // Of every attempt the write fails, and the cleaning before and after it does not.
    for attempt in 1..=3 {
        world.failing_writes = 1;
        world.reach(State::Provisioning);
        let boots = world.machine.boots;
        // Neither before nor after the failure may it boot what is on its disks.
        let stays = |world: &World| {
            let wanted = netboot::wanted(world.host.as_ref().unwrap(), world.server.as_ref());
            world.machine.boots == boots && world.machine.ramdisk.is_some() && wanted.is_some()
        };
        world.until("taken back", |world| {
            assert!(stays(world), "{:?}", world.machine);
            world.state() == State::Deprovisioning
        });
        let status = world.host().status.clone().unwrap();
        assert_eq!(status.provisioning_fail_count, attempt);
        let history = status.operation_history.as_ref().unwrap();
        let attempted = history.provision.as_ref().unwrap();
        assert!(attempted.end.is_some(), "it ended, however");
        assert!(
            status.error_message.contains("EIO"),
            "the agent's log is shown: {}",
            status.error_message
        );
        world.until("available", |world| {
            assert!(stays(world), "{:?}", world.machine);
            world.state() == State::Available
        });
        assert_eq!(world.machine.disk, Content::Blank);
        assert!(stays(&world));
    }
    let boots = world.machine.boots;
    world.settle();
    assert_eq!(world.state(), State::Available);
    assert_eq!(world.machine.boots, boots);
    assert!(
        world.machine.ramdisk.is_some(),
        "it waits there for another image"
    );
    let (kind, message, _) = error(&world);
    assert_eq!(kind, Some(ErrorType::Provisioning));
    assert!(
        message.starts_with("gave up after 3 attempts: the image could not be written")
            && message.ends_with("then change spec.image (remove it and set it again)"),
        "{message}"
    );
    // In another cluster, where the object is of another generation.
    let mut status = world.host().status.clone().unwrap();
    for condition in &mut status.conditions {
        condition.observed_generation = condition.observed_generation.map(|_| 1000);
    }
    world.host().status = None;
    world.annotate(STATUS_ANNOTATION, &serde_json::to_string(&status).unwrap());
    world.settle();
    assert_eq!((world.state(), world.machine.boots), (State::Available, boots));
    assert!(error(&world).1.starts_with("gave up after 3 attempts"));
    // Another image is another matter.
    world.set_image(Some("http://images.test/other.raw"));
    world.reach(State::Provisioned);
    assert_eq!(world.host().status.as_ref().unwrap().provisioning_fail_count, 0);
}

#[test]
fn a_bmc_that_does_not_answer_is_asked_less_and_less_often() {
    let mut world = World::new();
    world.bmc_up = false;
    for count in 1..=4 {
        world.until("a failure", |world| {
            world
                .host
                .as_ref()
                .unwrap()
                .status
                .as_ref()
                .is_some_and(|status| status.error_count == count)
        });
        let status = world.host().status.clone().unwrap();
        assert_eq!(status.error_type, Some(ErrorType::Registration));
        assert_eq!(status.operational_status, OperationalStatus::Error);
        let (reason, message) = waiting(&world);
        assert_eq!(reason, "Retry");
        assert!(message.contains("it says so; next: retrying after "), "{message}");
    }
    world.bmc_up = true;
    world.reach(State::Available);
    assert_eq!(error(&world), (None, String::new(), 0));
}

#[test]
fn what_a_bmc_said_to_one_attempt_is_not_counted_for_the_next_one() {
    let mut world = World::new();
    world.bmc_up = false;
    for count in [1, 2, 3] {
        world.until("a failure", |world| {
            let status = world.host.as_ref().and_then(|host| host.status.as_ref());
            status.is_some_and(|status| status.error_count == count && status.error_type.is_some())
        });
        // Another attempt is announced, and the BMC takes its time.
        let mut plan = world.plan();
        while plan.status.is_none() {
            world.tick(11);
            plan = world.plan();
        }
        assert!(
            matches!(plan.effects[..], [Effect::Bmc(BmcCall::Probe(_))]),
            "{plan:?}"
        );
        let announced = Plan {
            effects: Vec::new(),
            ..plan
        };
        world.execute(announced, None, Fault::None);
        for _ in 0..5 {
            let plan = world.plan();
            assert_eq!((plan.status, plan.events.len()), (None, 0), "{}", plan.why);
            assert!(matches!(plan.effects[..], [Effect::Bmc(BmcCall::Probe(_))]));
            world.tick(1);
        }
        assert_eq!(
            (waiting(&world).0.as_str(), error(&world)),
            ("Bmc", (None, String::new(), count))
        );
    }
}

#[test]
fn pauses_double_and_differ_from_host_to_host() {
    for (failures, least, most) in [
        (0, 60, 120),
        (1, 60, 120),
        (2, 120, 240),
        (9, 15_360, 30_720),
        (99, 15_360, 30_720),
    ] {
        let mut all = std::collections::BTreeSet::new();
        for host in 0..100 {
            let pause = backoff::pause(&format!("uid-{host}"), failures);
            assert_eq!(pause, backoff::pause(&format!("uid-{host}"), failures));
            assert!(
                pause > Duration::from_secs(least) && pause <= Duration::from_secs(most),
                "{pause:?}"
            );
            all.insert(pause);
        }
        assert!(all.len() > 50, "{failures}: {}", all.len());
    }
}

#[test]
fn a_secret_that_nobody_has_asked_for_is_marked_before_anything_is_told() {
    let mut world = World::new();
    world.secrets.bmc.state = SecretState::Unasked;
    let plan = world.plan();
    assert!(plan.status.is_none() && plan.events.is_empty(), "{plan:#?}");
    assert_eq!(plan.metadata.finalizer, Some(true));
    let mark = Effect::HoldSecret {
        name: "bmc".to_owned(),
        hold: Hold::Owned,
    };
    assert_eq!(plan.effects, [mark]);
    world.reach(State::Available);
    assert!(world.secrets.bmc.held);
}

#[test]
fn a_missing_secret_is_waited_for_and_not_counted() {
    let mut world = World::new();
    let there = world.secrets.bmc.clone();
    world.secrets.bmc.state = SecretState::Missing;
    world.settle();
    assert_eq!(world.state(), State::Registering);
    assert_eq!(error(&world).0, Some(ErrorType::Registration));
    assert_eq!(error(&world).2, 0);
    world.secrets.bmc = there;
    world.reach(State::Available);
}

#[test]
fn a_second_host_of_one_machine_is_refused_and_says_which_the_first_is() {
    let mut world = World::new();
    world.rivals = vec![Rival {
        path: "metal/first".to_owned(),
        by: "boot MAC address 52:54:00:00:00:01".to_owned(),
        bmc: false,
        state: State::Registering,
        precedes: true,
    }];
    world.settle();
    assert_eq!(world.state(), State::Registering);
    assert!(error(&world).1.contains("metal/first"));
    assert_eq!(world.machine.boots, 0);
    world.rival(None);
    world.reach(State::Available);
}

/// As after an address that was mistyped while the host was detached.
#[test]
fn no_power_is_changed_through_a_bmc_that_another_host_declares() {
    for known in [false, true] {
        let mut world = at(State::ExternallyProvisioned);
        world.settle();
        assert!(world.machine.on);
        if known {
            world.call_in();
            let status = world.server.as_mut().unwrap().status.as_mut().unwrap();
            status.identity.system_serial = Some("J5K2X93".to_owned());
            world.disconnect();
            world.says.serial = Some("j5k2x93".to_owned());
        }
        world.rival(Some((State::Provisioned, false)));
        world.restart();
        world.host().spec.online = false;
        world.settle();
        assert_eq!(world.machine.on, !known);
        assert_eq!(error(&world).0.is_some(), !known);
        if !known {
            assert!(error(&world).1.contains("other/one"), "{:?}", error(&world));
            world.rival(None);
            world.until("off", |world| !world.machine.on);
            assert_eq!(error(&world).0, None);
        }
    }
}

#[test]
fn nothing_is_written_while_another_host_uses_the_machine() {
    let mut world = at(State::Available);
    world.rival(Some((State::Provisioned, false)));
    world.set_image(Some(IMAGE));
    world.settle();
    assert_eq!(world.machine.cleans + world.machine.writes.len(), 0);
    world.rival(None);
    world.reach(State::Provisioned);
}

#[test]
fn raid_is_refused_until_it_can_be_made() {
    let mut world = World::new();
    world.host().spec.raid = Some(Box::new(RaidConfig {
        software_raid_volumes: Some(vec![SoftwareRaidVolume {
            level: "1".to_owned(),
            ..SoftwareRaidVolume::default()
        }]),
        ..RaidConfig::default()
    }));
    world.settle();
    assert_eq!(world.state(), State::Preparing);
    assert_eq!(error(&world).0, Some(ErrorType::Preparation));
    world.host().spec.raid = None;
    world.reach(State::Available);
}

#[test]
fn volumes_that_another_operator_made_are_kept_and_no_image_is_written_to_software_ones() {
    let raid = |kind: &str| -> Box<RaidConfig> {
        let volumes = serde_json::json!({ kind: [{"level": "1"}] });
        serde_json::from_value(volumes).unwrap()
    };
    let made = |state: State, kind: &str| {
        let mut world = at(state);
        world.settle();
        world.host().spec.raid = Some(raid(kind));
        let status = world.host().status.as_mut().unwrap();
        status.provisioning.raid = Some(raid(kind));
        world
    };
    for kind in ["hardwareRAIDVolumes", "softwareRAIDVolumes"] {
        // Inspected again, it comes back through preparing.
        let mut world = made(State::Available, kind);
        world.annotate(INSPECT_ANNOTATION, "");
        world.reach(State::Inspecting);
        world.reach(State::Available);
        assert_eq!(error(&world).0, None, "{kind}");
    }
    let mut world = made(State::Available, "hardwareRAIDVolumes");
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);

    let mut world = made(State::Available, "softwareRAIDVolumes");
    let cleans = world.machine.cleans;
    world.set_image(Some(IMAGE));
    world.settle();
    let (kind, message, _) = error(&world);
    assert_eq!(
        (world.state(), kind),
        (State::Available, Some(ErrorType::Provisioning))
    );
    assert!(message.contains("software RAID"), "{message}");
    assert_eq!(world.machine.cleans, cleans, "the array is as it was");
    // Asked for while the image is written, it changes nothing about that.
    let mut world = at(State::Provisioning);
    world.until("the job", |world| {
        world
            .server
            .as_ref()
            .is_some_and(|server| server.spec.job.is_some())
    });
    world.host().spec.raid = Some(raid("softwareRAIDVolumes"));
    world.reach(State::Provisioned);
    // What runs on an array goes when it is taken away, and the array with it: nobody is to claim the host as it is.
    let mut world = made(State::Provisioned, "softwareRAIDVolumes");
    world.set_image(None);
    world.reach(State::Available);
    world.settle();
    assert_eq!(
        (world.state(), error(&world).0),
        (State::Available, Some(ErrorType::Preparation))
    );
    world.host().spec.raid = None;
    world.settle();
    assert_eq!((world.state(), error(&world).0), (State::Available, None));
}

#[test]
fn secure_boot_is_refused_until_it_can_be_switched_on() {
    let mut world = World::new();
    world.host().spec.boot_mode = Some(HostBootMode::UefiSecureBoot);
    world.settle();
    let is_refused = |world: &mut World, state: State, kind: ErrorType| {
        assert_eq!(world.state(), state);
        let (is, message, _) = error(world);
        assert_eq!(is, Some(kind));
        assert!(message.contains("Secure Boot"), "{message}");
    };
    is_refused(&mut world, State::Preparing, ErrorType::Preparation);
    let mut installed = world.clone();
    installed.host().spec.externally_provisioned = Some(true);
    installed.reach(State::ExternallyProvisioned);
    assert_eq!(error(&installed).0, None);
    world.host().spec.boot_mode = None;
    world.reach(State::Available);
    // Asked for later: nobody is to claim it.
    world.host().spec.boot_mode = Some(HostBootMode::UefiSecureBoot);
    world.set_image(Some(IMAGE));
    world.settle();
    is_refused(&mut world, State::Available, ErrorType::Preparation);
    assert_eq!(world.machine.cleans, 0);
    world.host().spec.boot_mode = Some(HostBootMode::Uefi);
    world.reach(State::Provisioned);
    // What runs is left alone, and is not taken away for what cannot be.
    world.host().spec.boot_mode = Some(HostBootMode::UefiSecureBoot);
    world.settle();
    assert_eq!((world.state(), error(&world).0), (State::Provisioned, None));
    world.set_image(Some("http://images.test/another.raw"));
    world.settle();
    is_refused(&mut world, State::Provisioned, ErrorType::Provisioning);
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    // It is taken away where nothing else is asked for; the ramdisk boots without.
    world.machine.mode = None;
    world.set_image(None);
    world.reach(State::Available);
    assert_eq!(world.machine.disk, Content::Blank);
    assert_eq!(world.machine.mode, Some(WantedMode::Required(Mode::Uefi)));
    world.settle();
    is_refused(&mut world, State::Available, ErrorType::Preparation);
    world.delete();
    world.until("gone", |world| world.host.is_none());
}

#[test]
fn what_cannot_take_the_place_of_what_runs_keeps_nobody_from_its_power_and_is_told_once() {
    let told = |world: &World| {
        world
            .events
            .iter()
            .filter(|told| *told == "ProvisioningError")
            .count()
    };
    let mut world = at(State::Provisioned);
    world.settle();
    world.host().spec.raid =
        Some(serde_json::from_value(serde_json::json!({"softwareRAIDVolumes": [{"level": "1"}]})).unwrap());
    world.set_image(Some("http://images.test/another.raw"));
    world.settle();
    let (kind, message, _) = error(&world);
    assert_eq!(kind, Some(ErrorType::Provisioning));
    assert!(message.contains("RAID"), "{message}");
    assert_eq!((waiting(&world).0.as_str(), told(&world)), ("Refused", 1));
    // It goes off, and stays under our eyes.
    world.host().spec.online = false;
    world.settle();
    assert!(!world.machine.on && told(&world) == 1, "{:?}", world.events);
    // The Secret is missing meanwhile.
    world.secrets.bmc.state = SecretState::Missing;
    world.settle();
    assert_eq!(error(&world).0, Some(ErrorType::Registration));
    assert_eq!(told(&world), 1);
    world.secrets.bmc.state = super::world::secret("1", "a").state;
    world.host().spec.raid = None;
    world.host().spec.online = true;
    world.reach(State::Provisioning);
}

#[test]
fn what_runs_stays_as_long_as_a_secret_of_what_is_to_take_its_place_is_missing_or_not_known() {
    let another = "http://images.test/another.raw";
    let mut world = at(State::Provisioned);
    world.settle();
    world.name_user_data();
    let there = world.secrets.user_data.clone();
    world.set_image(Some(another));
    world.secrets.user_data.state = SecretState::Missing;
    world.settle();
    let (kind, message, _) = error(&world);
    assert_eq!(
        (world.state(), kind),
        (State::Provisioned, Some(ErrorType::Provisioning))
    );
    assert!(message.contains("of spec.userData does not exist"), "{message}");
    assert_eq!(waiting(&world).0, "Refused");
    // It takes no part in what is only taken away.
    let mut released = world.clone();
    released.set_image(None);
    released.reach(State::Deprovisioning);

    world.secrets.user_data.state = SecretState::Unreadable("no answer".to_owned());
    world.settle();
    let (reason, message) = waiting(&world);
    assert_eq!((world.state(), reason.as_str()), (State::Provisioned, "Inputs"));
    assert!(message.contains("no answer"), "{message}");
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    world.secrets.user_data = there;
    world.reach(State::Deprovisioning);
    world.reach(State::Provisioned);
    assert_eq!(world.machine.disk, Content::Image(another.to_owned()));
}

#[test]
fn what_runs_stays_if_several_disks_have_the_number_by_which_that_of_another_image_is_chosen() {
    let mut world = at(State::Provisioned);
    world.settle();
    let wwn = "0x600508b1001c0000".to_owned();
    world.change_inventory(|inventory| {
        inventory.disks.push(disk("sdb", 20));
        for disk in &mut inventory.disks {
            disk.wwn.clone_from(&wwn);
            disk.wwn_with_extension = format!("{wwn}{}", disk.name);
        }
    });
    world.host().spec.root_device_hints = Some(Box::new(RootDeviceHints {
        wwn: Some(wwn),
        ..RootDeviceHints::default()
    }));
    world.set_image(Some("http://images.test/another.raw"));
    world.settle();
    let (_, message, _) = error(&world);
    assert!(
        message.contains("different disks match the root device hints"),
        "{message}"
    );
    assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()));
    // A disk that its ramdisk did not see last may be there the next time.
    world.host().spec.root_device_hints = Some(Box::new(RootDeviceHints {
        serial_number: Some("a new one".to_owned()),
        ..RootDeviceHints::default()
    }));
    world.reach(State::Deprovisioning);
}

#[test]
fn an_image_that_is_changed_to_one_that_cannot_be_written_while_it_is_ends_as_what_it_was() {
    let edits: [fn(&mut BareMetalHostSpec); 5] = [
        |spec| spec.image.as_mut().unwrap().format = Some(ImageFormat::Qcow2),
        |spec| spec.image.as_mut().unwrap().checksum = Some("md5:".to_owned()),
        |spec| spec.image.as_mut().unwrap().checksum = None,
        |spec| {
            spec.custom_deploy = Some(Box::new(CustomDeploy {
                method: "install_coreos".to_owned(),
            }));
        },
        |spec| spec.boot_mode = Some(HostBootMode::UefiSecureBoot),
    ];
    for (which, edit) in edits.into_iter().enumerate() {
        // Before the job, while it stands, and when the machine has left.
        for ordered in [false, true] {
            let mut world = at(State::Provisioning);
            // There are rounds in the middle of each.
            world.jobs_take = 3;
            if ordered {
                world.reach_job();
            }
            let before = world.host().spec.clone();
            edit(&mut world.host().spec);
            if !ordered {
                world.settle();
                assert_eq!(waiting(&world).0, "Refused", "{which}");
                assert_eq!(world.machine.cleans + world.machine.writes.len(), 0, "{which}");
                world.host().spec = before.clone();
            }
            world.reach(State::Provisioned);
            assert_eq!(
                (world.machine.cleans, world.machine.writes.len()),
                (1, 1),
                "{which}"
            );
            let there = world.host().status.clone().unwrap().provisioning;
            assert_eq!(there.image, before.image, "{which}");
            assert_eq!(there.custom_deploy, None, "{which}");
            world.settle();
            assert_eq!(world.state(), State::Provisioned, "{which}");
            assert_eq!(world.machine.disk, Content::Image(IMAGE.to_owned()), "{which}");
        }
    }
    // The job of a session that is gone is given to nobody.
    let mut world = at(State::Provisioning);
    world.reach_job();
    world.host().spec.image.as_mut().unwrap().format = Some(ImageFormat::Qcow2);
    world.power(PowerOrder::Reset);
    world.settle();
    assert_eq!(waiting(&world).0, "Refused");
    assert!(!world.has_destructive_job());
    world.host().spec.image.as_mut().unwrap().format = None;
    world.reach(State::Provisioned);
    // It fails instead: that is a failure like any other.
    let mut world = at(State::Provisioning);
    world.reach_job();
    world.failing_writes = 1;
    world.host().spec.image.as_mut().unwrap().format = Some(ImageFormat::Qcow2);
    world.reach(State::Deprovisioning);
}

#[test]
fn secure_boot_that_is_asked_for_while_the_image_is_written_ends_as_before_and_is_not_begun_with() {
    let mut world = at(State::Provisioning);
    world.reach_job();
    world.host().spec.boot_mode = Some(HostBootMode::UefiSecureBoot);
    world.reach(State::Provisioned);
    let mut world = at(State::Provisioning);
    world.host().spec.boot_mode = Some(HostBootMode::UefiSecureBoot);
    world.settle();
    let (reason, message) = waiting(&world);
    assert_eq!((world.state(), reason.as_str()), (State::Provisioning, "Refused"));
    assert!(message.contains("Secure Boot"), "{message}");
    assert_eq!(world.machine.cleans + world.machine.writes.len(), 0);
    world.host().spec.boot_mode = None;
    world.reach(State::Provisioned);
}

#[test]
fn without_a_place_a_host_is_delayed_and_nothing_is_done_to_it() {
    let mut world = at(State::Available);
    world.slot = false;
    world.set_image(Some(IMAGE));
    let plan = world.plan();
    assert!(plan.slot);
    let places = |effect: &Effect| matches!(effect, Effect::PlaceJob(_) | Effect::Bmc(BmcCall::Power { .. }));
    assert!(!plan.effects.iter().any(places));
    world.settle();
    assert_eq!(world.state(), State::Available);
    assert_eq!(
        world.host().status.as_ref().unwrap().operational_status,
        OperationalStatus::Delayed
    );
    world.slot = true;
    world.reach(State::Provisioned);
    assert!(!world.plan().slot);
}

#[test]
fn who_is_to_be_inspected_again_and_has_no_place_stays_available() {
    let is_delayed = |world: &World| {
        let status = world.host.as_ref().unwrap().status.as_ref().unwrap();
        status.operational_status == OperationalStatus::Delayed
    };
    let mut world = at(State::Available);
    world.settle();
    world.slot = false;
    world.annotate(INSPECT_ANNOTATION, "");
    world.settle();
    assert_eq!(world.state(), State::Available);
    assert_eq!(waiting(&world).0, "Place");
    assert!(is_delayed(&world) && world.plan().slot && world.annotated(INSPECT_ANNOTATION));
    // Nobody asks for it any more.
    world.unannotate(INSPECT_ANNOTATION);
    world.settle();
    assert_eq!(waiting(&world).0, "Nothing");
    assert!(!is_delayed(&world) && !world.plan().slot);
    // It comes before an image.
    world.annotate(INSPECT_ANNOTATION, "");
    world.set_image(Some(IMAGE));
    world.settle();
    world.states = vec![world.state()];
    world.slot = true;
    world.reach(State::Provisioned);
    let states = [
        State::Available,
        State::Inspecting,
        State::Preparing,
        State::Available,
        State::Provisioning,
        State::Provisioned,
    ];
    assert_eq!(world.states, states);
    // While its BMC is silent, it waits for that.
    let mut world = at(State::Available);
    world.settle();
    world.disconnect();
    (world.slot, world.bmc_up) = (false, false);
    world.restart();
    world.annotate(INSPECT_ANNOTATION, "");
    world.settle();
    assert_eq!(waiting(&world).0, "Bmc");
    assert!(!is_delayed(&world) && !world.plan().slot);
}

#[test]
fn a_host_in_line_that_is_switched_on_says_that_meanwhile() {
    let mut world = at(State::Available);
    world.host().spec.online = false;
    world.settle();
    assert!(!world.machine.on);
    world.slot = false;
    world.host().spec.online = true;
    world.set_image(Some(IMAGE));
    let mut said = Vec::new();
    for _ in 0..30 {
        world.step(2);
        let (reason, message) = waiting(&world);
        if reason == "PoweringOn" {
            let then = "; next: it boots the ramdisk and is ready for an image (since ";
            assert!(message.contains(then), "{message}");
        }
        said.push(reason);
    }
    said.dedup();
    assert!(
        said.ends_with(&["PoweringOn".to_owned(), "Place".to_owned()]),
        "{said:?}"
    );
}

#[test]
fn a_refusal_that_is_mended_is_not_shown_while_the_host_waits_for_a_place() {
    let mut world = at(State::Available);
    world.set_image(Some(IMAGE));
    world.name_user_data();
    world.secrets.user_data.state = SecretState::Missing;
    world.settle();
    let (kind, message, _) = error(&world);
    assert_eq!(kind, Some(ErrorType::Provisioning));
    let helps =
        "of spec.userData does not exist; next: create it with the key userData, or correct spec.userData";
    assert!(message.ends_with(helps), "{message}");
    assert_eq!(waiting(&world).0, "Refused");
    world.slot = false;
    world.host().spec.user_data = None;
    world.step(2);
    assert_eq!(error(&world).0, None);
    world.settle();
    assert_eq!(waiting(&world).0, "Place");
    let status = world.host().status.clone().unwrap();
    assert_eq!(status.operational_status, OperationalStatus::Delayed);
}

#[test]
fn the_write_that_takes_a_host_back_after_a_failure_says_that_it_waits_for_the_next_attempt() {
    let world = after_a_failed_write();
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Delay");
    let is_told =
        message.starts_with("attempt 1 failed: ") && message.contains("; next: another attempt after ");
    assert!(is_told, "{message}");

    // What is not asked for any more is not tried again.
    let mut world = at(State::Available);
    world.failing_writes = 1;
    world.set_image(Some(IMAGE));
    world.reach(State::Deprovisioning);
    world.host().spec.online = false;
    world.reach(State::Available);
    assert_ne!(waiting(&world).0, "Delay");
}

#[test]
fn the_write_that_enters_a_state_without_a_place_says_that_the_host_waits_for_one() {
    let mut world = at(State::Provisioned);
    world.settle();
    world.slot = false;
    world.set_image(None);
    world.reach(State::Deprovisioning);
    let status = world.host().status.clone().unwrap();
    assert_eq!(status.operational_status, OperationalStatus::Delayed);
    let (reason, message) = waiting(&world);
    assert_eq!(reason, "Place");
    assert!(
        message.starts_with("waits for a free provisioning slot: as many hosts are busy as --provisioning-limit allows (20); next: "),
        "{message}"
    );
    let writes = world.status_writes;
    world.settle();
    assert_eq!(world.status_writes, writes, "it was said with the state");
    world.slot = true;
    world.reach(State::Available);
}

#[test]
fn a_host_that_has_been_reached_and_waits_for_a_place_is_manageable() {
    let mut world = World::new();
    world.slot = false;
    world.settle();
    assert_eq!(world.state(), State::Registering);
    assert_eq!(waiting(&world).0, "Place");
    assert_eq!(manageable(&world).unwrap().0, "True");
    // Until its BMC refuses it.
    world.secrets.bmc.state = SecretState::Missing;
    world.settle();
    assert_eq!(manageable(&world).unwrap().0, "False");
    world.secrets.bmc = secret("1", "a");
    world.slot = true;
    world.reach(State::Available);
}

#[test]
fn user_data_is_given_to_no_session_below_the_required_trust() {
    let mut world = at(State::Available);
    // A Segment that says nothing, too.
    for required in [Some(Trust::BmcDelivered), None] {
        world.segment.spec.required_trust = required;
        world.set_image(Some(IMAGE));
        world.name_user_data();
        world.settle();
        assert_eq!(world.state(), State::Available);
        assert!(
            error(&world).1.contains("trust `bmc-delivered`"),
            "{}",
            error(&world).1
        );
    }
    // Nor any other of what goes on a config drive, also by itself.
    let named = |name: &str| {
        Some(SecretReference {
            name: Some(name.to_owned()),
            namespace: None,
        })
    };
    for purpose in ["networkData", "metaData", "preprovisioningNetworkDataName"] {
        let mut world = at(State::Available);
        world.segment.spec.required_trust = None;
        world.set_image(Some(IMAGE));
        match purpose {
            "networkData" => {
                world.host().spec.network_data = named("network");
                world.secrets.network_data = secret("3", "network");
            }
            "metaData" => {
                world.host().spec.meta_data = named("meta");
                world.secrets.meta_data = secret("3", "meta");
            }
            _ => {
                world.host().spec.preprovisioning_network_data_name = Some("before".to_owned());
                world.secrets.preprovisioning = secret("3", "before");
            }
        }
        world.settle();
        assert_eq!(world.state(), State::Available, "{purpose}");
        assert!(error(&world).1.contains("trust `bmc-delivered`"), "{purpose}");
    }
    // Without anything secret there is nothing to be trusted with.
    world.host().spec.user_data = None;
    world.reach(State::Provisioned);
}

#[test]
fn who_opted_in_for_a_session_by_its_key_trusts_it_with_user_data_whatever_the_segment_requires() {
    let mut world = World::in_band();
    world.segment.spec.required_trust = Some(Trust::Tpm);
    let key = world
        .server
        .as_ref()
        .and_then(Server::session)
        .unwrap()
        .key
        .clone();
    world.annotate(IN_BAND_ANNOTATION, &key);
    world.reach(State::Available);
    world.set_image(Some(IMAGE));
    world.name_user_data();
    world.reach(State::Provisioned);
}

#[test]
fn an_opt_in_for_another_key_registers_nothing() {
    let mut world = World::new();
    world.host().spec.bmc = None;
    world.call_in();
    world.annotate(IN_BAND_ANNOTATION, &"ab".repeat(32));
    world.settle();
    assert_eq!(world.state(), State::Registering);
    assert!(error(&world).1.contains("does not name the session's key"));
    world.segment.spec.required_trust = Some(Trust::Tpm);
    world.annotate(IN_BAND_ANNOTATION, "segment");
    world.settle();
    assert!(error(&world).1.contains("requires more trust"));
    world.segment.spec.required_trust = None;
    world.settle();
    assert!(error(&world).1.contains("requires more trust"));
    world.segment_gone = true;
    world.settle();
    let (_, message, _) = error(&world);
    assert!(
        message.contains("does not exist; next: recreate it, or name the session's key"),
        "{message}"
    );
    world.segment_gone = false;
    world.segment.spec.required_trust = Some(Trust::Segment);
    world.reach(State::Available);
}

#[test]
fn an_opt_in_that_says_false_allows_nothing() {
    let mut world = World::in_band();
    world.reach(State::Available);
    world.settle();
    let jobs = world.machine.jobs;
    world.annotate(IN_BAND_ANNOTATION, "false");
    world.set_image(Some(IMAGE));
    world.settle();
    assert_eq!((world.state(), world.machine.jobs), (State::Available, jobs));
    let (kind, message, _) = error(&world);
    assert_eq!(kind, Some(ErrorType::Registration));
    assert!(message.contains("is not allowed to manage it"), "{message}");
    // Nor one that is only made so.
    let mut world = World::in_band();
    world.annotate(IN_BAND_ANNOTATION, "false");
    world.settle();
    assert_eq!(world.state(), State::Unmanaged);
}

#[test]
fn user_data_is_given_to_no_session_of_a_segment_that_does_not_exist() {
    let mut world = at(State::Available);
    world.name_user_data();
    world.segment_gone = true;
    world.set_image(Some(IMAGE));
    world.settle();
    assert_eq!(world.state(), State::Available);
    let (_, message, _) = error(&world);
    assert!(
        message.ends_with("next: recreate it, or remove userData, networkData and metaData from the host"),
        "{message}"
    );
    world.segment_gone = false;
    world.reach(State::Provisioned);
}

#[test]
fn the_bmc_says_how_healthy_the_machine_is_and_that_stays_until_it_says_otherwise() {
    let healthy = |world: &World| {
        let status = world.host.as_ref().unwrap().status.clone().unwrap();
        let found = status.conditions.into_iter().find(|one| one.type_ == "Healthy");
        let found = found.unwrap();
        (found.status, found.reason)
    };
    let is = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
    let mut world = at(State::Available);
    assert_eq!(healthy(&world), is("True", "Healthy"));
    for (health, expected) in [
        (Health::Warning, is("False", "Warning")),
        (Health::Critical, is("False", "CriticalError")),
        (Health::Unknown, is("Unknown", "Unknown")),
        (Health::Ok, is("True", "Healthy")),
    ] {
        world.machine.health = health;
        world.settle();
        assert_eq!(healthy(&world), expected);
        assert_eq!(world.state(), State::Available, "nothing else comes of it");
    }
    // A change of power makes nothing unknown.
    world.host().spec.online = false;
    let (mut rounds, mut seen) = (0, true);
    while rounds < 20 {
        world.round();
        rounds += 1;
        seen &= healthy(&world) == is("True", "Healthy");
    }
    assert!(seen && !world.machine.on);
    world.bmc_up = false;
    world.settle();
    assert_eq!(healthy(&world), is("Unknown", "Unknown"));
}

#[test]
fn power_that_is_unknown_stays_as_it_was_known_last() {
    let mut world = at(State::Provisioned);
    world.settle();
    world.bmc_up = false;
    world.restart();
    world.settle();
    let status = world.host().status.clone().unwrap();
    assert!(status.powered_on && status.error_message.is_empty());
    let manageable = status
        .conditions
        .iter()
        .find(|one| one.type_ == "Manageable")
        .unwrap();
    assert_eq!(
        (manageable.status.as_str(), manageable.reason.as_str()),
        ("False", "PowerFailure")
    );
    // Another leader has nothing to say of it before it has asked.
    let writes = world.status_writes;
    world.restart();
    world.settle();
    assert_eq!(world.status_writes, writes);
    world.bmc_up = true;
    world.settle();
    let status = world.host().status.clone().unwrap();
    assert!(
        status
            .conditions
            .iter()
            .any(|one| one.type_ == "Manageable" && one.status == "True")
    );
    assert_eq!(world.machine.writes.len(), 1);
}

#[test]
fn power_of_which_the_bmc_says_nothing_stays_as_it_was_known_last_and_a_condition_says_so() {
    for on in [true, false] {
        let mut world = at(State::Provisioned);
        world.host().spec.online = on;
        world.settle();
        world.says_nothing_of_power = true;
        world.read_power();
        world.settle();
        let status = world.host().status.clone().unwrap();
        assert_eq!((status.powered_on, world.machine.on), (on, on));
        let manageable = status.conditions.iter().find(|one| one.type_ == "Manageable");
        let manageable = manageable.unwrap();
        assert_eq!(
            (manageable.status.as_str(), manageable.reason.as_str()),
            ("False", "PowerFailure")
        );
        assert!(
            manageable.message.contains("neither on nor off"),
            "{}",
            manageable.message
        );
        world.says_nothing_of_power = false;
        world.settle();
        let status = world.host().status.clone().unwrap();
        let manageable = |one: &Condition| one.type_ == "Manageable" && one.status == "True";
        assert!(status.conditions.iter().any(manageable));
    }
}

#[test]
fn an_image_url_that_changes_is_provisioned_anew_and_nothing_else_of_the_image() {
    let mut world = at(State::Provisioned);
    world.settle();
    world.host().spec.image.as_mut().unwrap().checksum = Some("0".repeat(128));
    world.settle();
    assert_eq!(world.machine.writes.len(), 1);
    world.host().spec.image = Some(image("http://images.test/two.raw"));
    world.reach(State::Deprovisioning);
    world.reach(State::Provisioned);
    assert_eq!(
        world.machine.disk,
        Content::Image("http://images.test/two.raw".to_owned())
    );
}

/// The time in which the host is decided so often, at once after each write and as each plan says otherwise, while its BMC refuses to
/// change the power.
fn while_power_is_refused(world: &mut World, rounds: usize) -> Duration {
    let begun = world.now;
    for _ in 0..rounds {
        let writes = world.status_writes;
        let plan = world.plan();
        let requeue = plan.next();
        let is_power = |effect: &Effect| matches!(effect, Effect::Bmc(BmcCall::Power { .. }));
        let fault = match plan.effects.iter().any(is_power) {
            true => Fault::Fails,
            false => Fault::None,
        };
        world.execute(plan, None, fault);
        if writes == world.status_writes && requeue != Some(Duration::ZERO) {
            let pause = requeue.map_or(60, |pause| pause.as_secs().clamp(1, 300));
            world.tick(u32::try_from(pause).unwrap());
        }
    }
    Duration::try_from(world.now.duration_since(begun)).unwrap()
}

#[test]
fn power_that_the_bmc_refuses_is_tried_later_and_later_whatever_else_is_wrong() {
    let day = Duration::from_secs(24 * 3600);
    // What is to be switched off before it is let go uncleaned.
    let mut world = at(State::Provisioned);
    world.settle();
    world.host().spec.automated_cleaning_mode = Some(AutomatedCleaningMode::Disabled);
    world.set_image(None);
    world.reach(State::Deprovisioning);
    assert!(while_power_is_refused(&mut world, 1000) > day / 4);
    assert_eq!(error(&world).0, Some(ErrorType::PowerManagement));
    world.reach(State::Available);

    // What is to be switched on beside a request that cannot be fulfilled.
    let mut world = at(State::Available);
    world.host().spec.online = false;
    world.until("off", |world| !world.machine.on);
    world.settle();
    world.set_image(Some("http://images/os.qcow2"));
    world.host().spec.image.as_mut().unwrap().format = Some(ImageFormat::Qcow2);
    world.host().spec.online = true;
    assert!(while_power_is_refused(&mut world, 1000) > day / 4);
    assert_eq!(error(&world).0, Some(ErrorType::PowerManagement));
    world.until("on", |world| world.machine.on);
    world.settle();
    assert_eq!(
        error(&world).0,
        Some(ErrorType::Provisioning),
        "that is told again"
    );
}

#[test]
fn nothing_is_begun_on_a_machine_that_its_bmc_keeps_from_us() {
    let mut world = at(State::Available);
    world.settle();
    let known = std::mem::replace(&mut world.secrets.bmc.state, SecretState::Missing);
    world.set_image(Some(IMAGE));
    world.settle();
    assert_eq!(world.state(), State::Available);
    assert_eq!(error(&world).0, Some(ErrorType::Registration));
    world.secrets.bmc.state = known;
    world.reach(State::Provisioned);
}

#[test]
fn a_secret_that_the_host_names_no_more_is_let_go_before_the_status_forgets_it() {
    let held = SecretSeen {
        held: true,
        finalizer: true,
        ..secret("1", "former")
    };
    let of = |name: &str| CredentialsStatus {
        credentials: Some(SecretReference {
            name: Some(name.to_owned()),
            namespace: Some("metal".to_owned()),
        }),
        credentials_version: Some("1".to_owned()),
    };
    let mut world = at(State::Available);
    world.settle();
    world.secrets.former = vec![("former".to_owned(), held)];

    // One that was good stays as long as no other is.
    let mut good = world.clone();
    good.host().status.as_mut().unwrap().good_credentials = Some(of("former"));
    good.restart();
    good.bmc_up = false;
    good.settle();
    assert!(good.secrets.former[0].1.finalizer);
    good.bmc_up = true;
    good.settle();
    assert!(!good.secrets.former[0].1.finalizer);
    let status = good.host().status.clone().unwrap();
    let name = status.good_credentials.unwrap().credentials.unwrap().name;
    assert_eq!(name.as_deref(), Some("bmc"));

    // One that was only tried goes before another one is tried.
    let mut tried = world.clone();
    tried.host().status.as_mut().unwrap().tried_credentials = Some(of("former"));
    tried.restart();
    assert!(tried.plan().status.is_none());
    tried.bmc_up = false;
    tried.settle();
    assert!(!tried.secrets.former[0].1.finalizer);

    // And all with the host.
    world.host().status.as_mut().unwrap().tried_credentials = Some(of("former"));
    world.delete();
    world.until("gone", |world| world.host.is_none());
    assert!(!world.secrets.former[0].1.finalizer && !world.secrets.bmc.finalizer);
}

#[test]
fn a_secret_that_is_deleted_while_a_host_holds_it_is_told_of_once_with_what_helps() {
    let held = |world: &World| {
        let status = world.host.as_ref().unwrap().status.clone().unwrap();
        let mut conditions = status.conditions.into_iter();
        conditions
            .find(|one| one.type_ == "SecretHeld")
            .map(|one| one.message)
    };
    let told = |world: &World| world.events.iter().filter(|told| *told == "SecretHeld").count();
    let helps = "the Secret bmc is being deleted but is still in use";
    let mut world = at(State::Provisioned);
    world.settle();
    world.secrets.bmc.going = true;
    world.settle();
    assert!(held(&world).is_some_and(|message| message.starts_with(helps)));
    assert_eq!((told(&world), error(&world).0), (1, None));
    // Another leader says nothing new.
    let writes = world.status_writes;
    world.restart();
    world.settle();
    assert_eq!((told(&world), world.status_writes), (1, writes));
    // It goes with its host.
    let mut deleted = world.clone();
    deleted.delete();
    deleted.round();
    assert_eq!(held(&deleted), None);
    // What cannot be read for a moment is as it was.
    let before = world.secrets.bmc.clone();
    (world.secrets.bmc.state, world.secrets.bmc.going) = (SecretState::Unreadable("no".to_owned()), false);
    world.settle();
    assert!(held(&world).is_some());
    world.secrets.bmc = before;
    world.settle();
    assert_eq!(told(&world), 1);
    // Another one is named.
    world.secrets.bmc.going = false;
    world.settle();
    assert_eq!(held(&world), None);

    // Where others are needed, it is said where it stands why none can be made by that name.
    let mut world = World::new();
    world.secrets.bmc.state = SecretState::Invalid("it has no `password`".to_owned());
    world.secrets.bmc.going = true;
    world.settle();
    let (_, message, _) = error(&world);
    let told = "it has no `password`; the Secret bmc is being deleted (see the condition SecretHeld)";
    assert!(message.ends_with(told), "{message}");
    assert!(waiting(&world).1.contains(told));
    assert!(held(&world).is_some_and(|message| message.starts_with(helps)));
}

#[test]
fn a_request_to_let_go_uncleaned_serves_once() {
    let mut world = at(State::Available);
    world.annotate(RELEASE_ANNOTATION, "");
    world.settle();
    assert!(!world.annotated(RELEASE_ANNOTATION));
    // The next tenant's data are cleaned.
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    world.settle();
    let cleans = world.machine.cleans;
    world.set_image(None);
    world.reach(State::Available);
    assert_eq!(world.machine.cleans, cleans + 1);
}

/// The host is available again after its image could not be written.
fn after_a_failed_write() -> World {
    let mut world = at(State::Available);
    world.failing_writes = 1;
    world.set_image(Some(IMAGE));
    world.reach(State::Deprovisioning);
    world.reach(State::Available);
    world
}

#[test]
fn what_cannot_be_prepared_is_told_though_an_image_could_not_be_written_before() {
    let mut world = after_a_failed_write();
    assert_eq!(error(&world).0, Some(ErrorType::Provisioning));
    world.host().spec.boot_mode = Some(HostBootMode::UefiSecureBoot);
    world.settle();
    let (kind, message, _) = error(&world);
    assert_eq!(
        (world.state(), kind),
        (State::Available, Some(ErrorType::Preparation))
    );
    assert!(message.contains("Secure Boot"), "{message}");
    assert_eq!(waiting(&world).0, "Refused");
    world.set_image(None);
    world.host().spec.boot_mode = None;
    world.settle();
    assert_eq!(error(&world).0, None);
}

#[test]
fn the_error_of_a_failed_provisioning_is_shown_though_taking_it_back_failed_too() {
    // Once the cleaning is tried again, or left out.
    for left_out in [false, true] {
        let mut world = at(State::Available);
        world.failing_writes = 1;
        world.set_image(Some(IMAGE));
        world.reach(State::Deprovisioning);
        let failed = error(&world).1;
        assert!(failed.contains("EIO"), "{failed}");
        world.failing_jobs = 1;
        world.until("its cleaning failed", |world| {
            error(world).1.starts_with("the disks could not be cleaned: ")
        });
        if left_out {
            world.annotate(RELEASE_ANNOTATION, "");
        }
        world.reach(State::Available);
        for _ in 0..6 {
            let status = world.host().status.clone().unwrap();
            assert_eq!(status.operational_status, OperationalStatus::Error);
            assert_eq!(error(&world), (Some(ErrorType::Provisioning), failed.clone(), 0));
            world.step(2);
        }
        assert_eq!(waiting(&world).0, "Delay");
        world.reach(State::Provisioned);
        assert_eq!(error(&world).0, None);
    }
}

#[test]
fn a_claimed_host_that_cannot_be_prepared_is_available_again_after_another_inspection() {
    for claimed in [true, false] {
        let mut world = at(State::Available);
        world.host().spec.consumer_ref = claimed.then(Default::default);
        world.host().spec.boot_mode = Some(HostBootMode::UefiSecureBoot);
        world.settle();
        world.annotate(INSPECT_ANNOTATION, "");
        world.reach(State::Inspecting);
        world.until("refused", |world| error(world).0 == Some(ErrorType::Preparation));
        world.settle();
        let state = match claimed {
            true => State::Available,
            false => State::Preparing,
        };
        assert_eq!(
            (world.state(), error(&world).0),
            (state, Some(ErrorType::Preparation))
        );
        assert_eq!(world.host().status.as_ref().unwrap().provisioning.raid, None);
        world.host().spec.boot_mode = None;
        world.reach(State::Available);
        world.settle();
        assert_eq!(error(&world).0, None);
    }
}

#[test]
fn nobody_waits_for_an_image_that_failed_on_a_host_that_somebody_else_provisioned() {
    let mut world = after_a_failed_write();
    let has_failed = |world: &World| {
        let status = world.host.as_ref().unwrap().status.as_ref().unwrap();
        status
            .conditions
            .iter()
            .any(|one| one.type_ == "ProvisioningFailed")
    };
    assert!(has_failed(&world));
    world.host().spec.externally_provisioned = Some(true);
    world.reach(State::ExternallyProvisioned);
    world.settle();
    assert!(!has_failed(&world));
    assert_eq!(world.host().status.as_ref().unwrap().provisioning_fail_count, 0);
}

#[test]
fn what_is_corrected_while_the_last_attempt_fails_is_tried() {
    let mut world = at(State::Available);
    (world.retries, world.failing_writes) = (1, 1);
    world.host().metadata.generation = Some(5);
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioning);
    // Somebody corrects what is not the image.
    world.host().metadata.generation = Some(6);
    world.reach(State::Deprovisioning);
    world.reach(State::Provisioned);
    // Where nobody did, that was it.
    let mut world = at(State::Available);
    (world.retries, world.failing_writes) = (1, 1);
    world.host().metadata.generation = Some(5);
    world.set_image(Some(IMAGE));
    world.reach(State::Deprovisioning);
    world.reach(State::Available);
    world.settle();
    assert!(
        error(&world).1.starts_with("gave up after 1 attempt")
            && error(&world)
                .1
                .ends_with("then change anything in the host's spec, such as spec.image"),
        "{}",
        error(&world).1
    );
}

#[test]
fn an_attempt_at_a_spec_that_is_another_one_counts_for_that() {
    let mut world = World::new();
    world.host().metadata.generation = Some(1);
    world.bmc_up = false;
    let fails = |world: &mut World, count| {
        world.until("a failure", |world| {
            let status = world.host.as_ref().unwrap().status.as_ref();
            status.is_some_and(|status| status.error_count == count) && waiting(world).0 == "Retry"
        });
        let status = world.host.as_ref().unwrap().status.clone().unwrap();
        let waits = status.conditions.iter().find(|one| one.type_ == "Waiting");
        waits.and_then(|one| one.observed_generation)
    };
    assert_eq!(fails(&mut world, 1), Some(1));
    world.host().metadata.generation = Some(2);
    assert_eq!(fails(&mut world, 2), Some(2));
    assert_eq!(fails(&mut world, 3), Some(2));
}

#[test]
fn what_is_taken_back_waits_for_its_own_boot() {
    let asks_away: [fn(&mut World); 2] = [|_| {}, |world| world.set_image(None)];
    for (ask, after) in asks_away.into_iter().zip([1000, 720]) {
        let mut world = at(State::Available);
        world.set_image(Some(IMAGE));
        world.disconnect();
        (world.machine.on, world.machine.mute) = (false, true);
        world.until("it", |world| world.state() == State::Provisioning);
        let start = world.now;
        let age = |world: &World| world.now.duration_since(start).as_secs();
        world.until("it", |world| {
            age(world) >= after || world.state() == State::Deprovisioning
        });
        ask(&mut world);
        world.until("it", |world| world.state() == State::Deprovisioning);
        let (begun, boots, failures) = (world.now, world.machine.boots, error(&world).2);
        world.until("it", |world| error(world).2 > failures);
        let waited = world.now.duration_since(begun).as_secs();
        assert!(
            waited >= 900 && world.machine.boots > boots,
            "after {after} s: {waited} s"
        );
    }
}

#[test]
fn a_host_whose_hardware_is_to_be_stored_names_no_other_write_that_is_refused() {
    let mut world = at(State::Inspecting);
    let stores = |plan: &Plan| {
        let mut effects = plan.effects.iter();
        effects.any(|effect| matches!(effect, Effect::WriteHardware(_)))
    };
    world.until("what is to be stored", |world| stores(&world.plan()));
    let names = |step: Option<&'static str>| {
        let mut seen = world.seen();
        seen.refused = Some(Refusal {
            step,
            why: "policy 7 says no".to_owned(),
        });
        let plan = next(world.host.as_ref().unwrap(), &seen, world.now);
        assert!(stores(&plan));
        let said = plan.status.map(|status| status.conditions).unwrap_or_default();
        said.iter().any(|one| one.message.contains("policy 7 says no"))
    };
    assert!(names(Some("write HardwareData")));
    assert!(!names(Some("write status of host")));
    assert!(!names(None));
}

#[test]
fn a_mark_on_user_data_that_is_refused_holds_up_nothing_else() {
    let mut world = at(State::Provisioned);
    world.settle();
    world.name_user_data();
    world.secrets.user_data.held = false;
    world.refuses_marks = true;
    let boots = world.machine.boots;
    world.annotate(REBOOT_ANNOTATION, "");
    world.until("it is rebooted", |world| world.machine.boots > boots);
}

#[test]
fn a_mark_that_is_refused_keeps_the_bmc_from_being_asked_and_no_other_write_that_is_does() {
    let mut world = at(State::Provisioned);
    world.settle();
    world.secrets.bmc = secret("2", "b");
    let asks_and_names = |step: Option<&'static str>| {
        let mut seen = world.seen();
        seen.refused = Some(Refusal {
            step,
            why: "policy 7 says no".to_owned(),
        });
        let plan = next(world.host.as_ref().unwrap(), &seen, world.now);
        let marks = |effect: &Effect| matches!(effect, Effect::HoldSecret { .. });
        assert!(marks(&plan.effects[0]), "{plan:?}");
        let asks = plan.effects.iter().any(|effect| matches!(effect, Effect::Bmc(_)));
        let said = plan.status.map(|status| status.conditions).unwrap_or_default();
        let names = said.iter().any(|one| one.message.contains("policy 7 says no"));
        (asks, names)
    };
    assert_eq!(asks_and_names(Some("hold Secret")), (false, true));
    assert_eq!(asks_and_names(Some("write status of host")), (true, false));
    assert_eq!(asks_and_names(None), (true, false));
}
