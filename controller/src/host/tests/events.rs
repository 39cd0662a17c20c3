//! Every reason of an Event that is written down is told, and upstream's are told for what upstream tells them for.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ObjectReference;
use muster_proto::kinds::{
    ErrorType, HARDWARE_ANNOTATION, INSPECT_ANNOTATION, InspectionMode, RELEASE_ANNOTATION,
    STATUS_ANNOTATION, Server,
};

use super::{
    super::{
        State, WaitReason,
        observed::SecretState,
        reasons::{NEVER, REASONS},
    },
    life::waiting,
    transitions::at,
    world::{Edge, IMAGE, World, secret},
};

/// Makes a host of which an Event with this reason is told.
type Story = fn() -> World;

fn spoilt(state: State, spoil: fn(&mut World)) -> World {
    let mut world = at(state);
    spoil(&mut world);
    for _ in 0..200 {
        if world.host.is_some() {
            world.round();
        }
    }
    world
}

/// A host without a BMC that runs its image.
fn in_band() -> World {
    let mut world = World::in_band();
    world.set_image(Some(IMAGE));
    world.reach(State::Provisioned);
    world.settle();
    world
}

/// All of the table, but for what the loop tells itself.
const STORIES: &[(&str, Story)] = &[
    ("Discovered", || at(State::Unmanaged)),
    ("Registered", || at(State::Available)),
    ("BMCAccessValidated", || {
        spoilt(State::Available, |world| {
            world.secrets.bmc.state = secret("2", "b").state;
        })
    }),
    ("BMCCredentialError", || {
        spoilt(State::New, |world| world.secrets.bmc.state = SecretState::Missing)
    }),
    ("RegistrationError", || {
        spoilt(State::New, |world| world.bmc_up = false)
    }),
    ("InspectionStarted", || {
        spoilt(State::Available, |world| world.annotate(INSPECT_ANNOTATION, ""))
    }),
    ("InspectionComplete", || at(State::Available)),
    ("InspectionSkipped", || {
        spoilt(State::New, |world| {
            world.host().spec.inspection_mode = Some(InspectionMode::Disabled);
        })
    }),
    ("InspectionError", || {
        spoilt(State::Inspecting, |world| {
            world.bmc_up = false;
            world.restart();
        })
    }),
    ("UpdateHardwareDetails", || {
        spoilt(State::New, |world| world.annotate(HARDWARE_ANNOTATION, "{}"))
    }),
    ("AnnotationUnused", || {
        spoilt(State::Available, |world| {
            world.annotate(HARDWARE_ANNOTATION, "{}");
        })
    }),
    ("InvalidAnnotationValue", || {
        spoilt(State::New, |world| world.annotate(STATUS_ANNOTATION, "{"))
    }),
    ("PreparationError", || {
        spoilt(State::New, |world| {
            world.host().spec.raid = Some(
                serde_json::from_value(serde_json::json!({"softwareRAIDVolumes": [{"level": "1"}]})).unwrap(),
            );
        })
    }),
    ("ProvisioningStarted", || at(State::Provisioned)),
    ("ProvisioningComplete", || at(State::Provisioned)),
    ("ProvisioningError", || {
        spoilt(State::Available, |world| {
            world.failing_writes = 1;
            world.set_image(Some(IMAGE));
        })
    }),
    ("ProvisioningWarning", || {
        spoilt(State::Available, |world| {
            world.warnings = vec!["no boot entry was made".to_owned()];
            world.set_image(Some(IMAGE));
        })
    }),
    ("DeprovisioningStarted", || at(State::Deprovisioning)),
    ("DeprovisioningComplete", || {
        spoilt(State::Provisioned, |world| world.set_image(None))
    }),
    ("PowerOn", || {
        spoilt(State::Provisioned, |world| world.machine.on = false)
    }),
    ("PowerOff", || {
        spoilt(State::Available, |world| world.host().spec.online = false)
    }),
    ("PowerManagementError", || {
        spoilt(State::Available, |world| {
            world.bmc_up = false;
            world.delete();
        })
    }),
    ("ActionNeeded", || {
        let mut world = in_band();
        world.set_image(None);
        world.settle();
        world
    }),
    ("NotCleaned", || {
        spoilt(State::Deprovisioning, |world| {
            world.annotate(RELEASE_ANNOTATION, "");
        })
    }),
    ("DisksLeft", || {
        spoilt(State::Available, |world| {
            world.add_twins();
            world.set_image(Some(IMAGE));
        })
    }),
    ("SecretHeld", || {
        spoilt(State::Available, |world| world.secrets.bmc.going = true)
    }),
    ("DeletedUnreachable", || {
        spoilt(State::Available, |world| {
            world.secrets.bmc.state = SecretState::Missing;
            world.delete();
        })
    }),
];

#[test]
fn every_reason_of_the_table_is_told_and_upstreams_others_never() {
    for (reason, story) in STORIES {
        let world = story();
        let told = &world.events;
        assert!(told.iter().any(|told| told == reason), "{reason} in {told:?}");
    }
    let mut stories: BTreeSet<&str> = STORIES.iter().map(|(reason, _)| *reason).collect();
    // The loop's own: `what_the_api_server_refuses_is_told_once_and_tried_until_it_is_taken`.
    stories.insert("WriteRefused");
    // Of the watch: `lenient::tests`.
    stories.insert("Unreadable");
    let table: BTreeSet<&str> = REASONS.iter().map(|reason| reason.name).collect();
    assert_eq!(stories, table);
    assert_eq!(table.len(), REASONS.len(), "none stands there twice");
}

#[test]
fn upstreams_reasons_are_in_the_table_or_in_the_list_of_those_that_are_never_told() {
    // As upstream's documentation of its Events and its code have them, those of other kinds apart.
    let upstream = BTreeSet::from([
        "BMCAccessValidated",
        "BMCCredentialError",
        "DeprovisioningComplete",
        "DeprovisioningStarted",
        "DetachError",
        "Discovered",
        "InspectionComplete",
        "InspectionError",
        "InspectionSkipped",
        "InspectionStarted",
        "InvalidAnnotationValue",
        "PowerManagementError",
        "PowerOff",
        "PowerOn",
        "PreparationError",
        "ProfileSet",
        "ProvisionedRegistrationError",
        "ProvisioningComplete",
        "ProvisioningError",
        "ProvisioningStarted",
        "Registered",
        "RegistrationError",
        "RemoveAnnotation",
        "ServicingError",
        "UpdateHardwareDetails",
    ]);
    let told = REASONS
        .iter()
        .filter(|reason| reason.upstream)
        .map(|reason| reason.name);
    assert_eq!(
        told.chain(NEVER.iter().copied()).collect::<BTreeSet<_>>(),
        upstream
    );
}

#[test]
fn unusable_bmc_details_are_a_registration_error_with_an_event_of_their_own() {
    let unusable: [fn(&mut World); 4] = [
        |world| world.secrets.bmc.state = SecretState::Missing,
        |world| world.secrets.bmc.state = SecretState::Invalid("no password".to_owned()),
        |world| world.host().spec.bmc.as_mut().unwrap().address.clear(),
        |world| world.host().spec.bmc.as_mut().unwrap().credentials_name.clear(),
    ];
    for spoil in unusable {
        let world = spoilt(State::New, spoil);
        let status = world.host.unwrap().status.unwrap();
        assert_eq!(
            status.error_type,
            Some(ErrorType::Registration),
            "{}",
            status.error_message
        );
        assert_eq!(
            world.events,
            ["BMCCredentialError"],
            "told once: {}",
            status.error_message
        );
    }
}

#[test]
fn a_wait_for_a_person_is_told_once_as_its_condition_has_it() {
    type Ask = fn() -> World;
    let asks: [(&str, Ask); 4] = [
        ("PowerCycleByHand", || {
            let mut world = in_band();
            world.set_image(None);
            world
        }),
        ("PowerByHand", || {
            let mut world = in_band();
            world.host().spec.online = false;
            world
        }),
        ("Contested", || {
            let mut world = at(State::Provisioned);
            world.set_image(None);
            world.reach(State::Deprovisioning);
            world.call_in();
            world.contest(true);
            world
        }),
        ("Trust", || {
            let mut world = at(State::Available);
            world.name_user_data();
            world.set_image(Some(IMAGE));
            world.reach(State::Provisioning);
            world.segment.spec.required_trust = None;
            world
        }),
    ];
    let reasons = asks.map(|(reason, _)| reason);
    let by_hand = WaitReason::ALL.iter().filter(|reason| reason.needs_person());
    assert_eq!(
        BTreeSet::from(reasons),
        by_hand.map(|reason| reason.name()).collect()
    );
    for (reason, ask) in asks {
        let mut world = ask();
        world.settle();
        assert_eq!(waiting(&world).0, reason);
        let told = |world: &World| world.events.iter().filter(|told| *told == "ActionNeeded").count();
        assert_eq!(told(&world), 1, "{reason}: {:?}", world.events);
    }
}

#[test]
fn what_the_agent_warned_of_when_it_wrote_is_told_once_however_the_machine_leaves() {
    let told = |world: &World| {
        let warnings = world.events.iter();
        warnings.filter(|told| *told == "ProvisioningWarning").count()
    };
    let written = |edge| {
        let mut world = at(State::Available);
        world.edge = edge;
        world.warnings = vec!["no boot entry was made".to_owned(), "another disk".to_owned()];
        world.set_image(Some(IMAGE));
        world.until("written", |world| {
            let last = world.server.as_ref().and_then(Server::last_job);
            last.is_some_and(|last| last.done && last.id.contains("-write"))
        });
        world
    };
    for edge in [Edge::Newest, Edge::KnowsNoLeave, Edge::KnowsNoThen] {
        let mut world = written(edge);
        world.reach(State::Provisioned);
        world.settle();
        assert_eq!(told(&world), 1, "{edge:?}: {:?}", world.events);
    }
    // It falls silent before it says that it heard of the job by which it leaves.
    let mut world = written(Edge::KnowsNoLeave);
    world.machine.deaf = true;
    world.until("told to leave", |world| {
        let job = world.server.as_ref().and_then(|server| server.spec.job.as_ref());
        job.is_some_and(|job| job.id.ends_with("-leave"))
    });
    world.disconnect();
    world.reach(State::Provisioned);
    assert_eq!(told(&world), 1, "{:?}", world.events);
}

#[test]
fn an_event_of_a_host_names_who_uses_it() {
    let mut world = at(State::Available);
    let user = ObjectReference {
        kind: Some("Metal3Machine".to_owned()),
        name: Some("worker-0".to_owned()),
        ..ObjectReference::default()
    };
    world.host().spec.consumer_ref = Some(Box::new(user.clone()));
    world.set_image(Some(IMAGE));
    let events = world.plan().events;
    assert!(!events.is_empty());
    for event in events {
        assert_eq!(event.related.as_deref(), Some(&user), "{}", event.reason);
    }
}
