//! Power and boot device of BMCs that work, each in its own way.

use muster_controller::bmc::{
    BmcError, Boot, Device, Done, Health, Lasting, Mode, PowerState, Reset, WantedMode,
};
use muster_tests::bmc::{
    self, BootQuirk, BootSource, Change, Etags, Event, Fault, Options, Resets, Rule, What,
};

use super::{access, bmcs, count, hasty, once, one, uefi};

fn happened(events: &mut tokio::sync::mpsc::UnboundedReceiver<Event>) -> Vec<What> {
    std::iter::from_fn(|| events.try_recv().ok())
        .map(|event| event.what)
        .collect()
}

fn boots(target: Option<&str>) -> What {
    What::On(BootSource {
        target: target.map(str::to_owned),
        mode: "UEFI".to_owned(),
    })
}

#[tokio::test]
async fn power_is_switched_and_what_is_so_already_is_left_alone() {
    let (service, mut events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::Off);
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::On).await.unwrap(),
        Done::Accepted
    );
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::On);
    assert_eq!(happened(&mut events), [boots(None)]);
    service.seen();
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::On).await.unwrap(),
        Done::Already
    );
    assert_eq!(count(&service, "POST", ""), 0);
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::ForceOff).await.unwrap(),
        Done::Accepted
    );
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::Off);
    for off in [Reset::ForceOff, Reset::GracefulShutdown] {
        assert_eq!(bmcs.set_power(&access, 1, off).await.unwrap(), Done::Already);
    }
    assert_eq!(happened(&mut events), [What::Off]);
}

#[tokio::test]
async fn a_restart_of_what_is_off_switches_on() {
    let (_service, mut events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    bmcs.set_power(&access, 1, Reset::ForceRestart).await.unwrap();
    assert_eq!(happened(&mut events), [boots(None)]);
    bmcs.set_power(&access, 1, Reset::GracefulRestart).await.unwrap();
    assert_eq!(happened(&mut events), [What::Off, boots(None)]);
}

#[tokio::test]
async fn an_operating_system_that_ignores_the_request_stays_on() {
    let options = Options {
        obeys: false,
        ..Options::default()
    };
    let (service, mut events, access) = one(options);
    service.went_on("1");
    happened(&mut events);
    let bmcs = bmcs(&hasty());
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::GracefulShutdown).await.unwrap(),
        Done::Accepted
    );
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::On);
    assert_eq!(happened(&mut events), [What::ShutdownAsked]);
    bmcs.set_power(&access, 1, Reset::ForceOff).await.unwrap();
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::Off);
}

#[tokio::test]
async fn reset_types_are_taken_from_wherever_the_system_tells_them() {
    for resets in [
        Resets::Listed(vec!["ForceOn", "ForceOff"]),
        Resets::ActionInfo(vec!["ForceOn", "ForceOff"]),
        Resets::Silent(vec!["On", "ForceOff"]),
    ] {
        let options = Options {
            resets: resets.clone(),
            ..Options::default()
        };
        let (service, _events, access) = one(options);
        let bmcs = bmcs(&hasty());
        bmcs.set_power(&access, 1, Reset::On).await.unwrap();
        assert_eq!(service.power("1"), bmc::PowerState::On, "{resets:?}");
        let soft = bmcs.set_power(&access, 1, Reset::GracefulShutdown).await;
        assert!(matches!(soft, Err(BmcError::Unsupported { .. })), "{resets:?}");
        bmcs.set_power(&access, 1, Reset::ForceOff).await.unwrap();
        assert_eq!(service.power("1"), bmc::PowerState::Off, "{resets:?}");
    }
}

#[tokio::test]
async fn power_on_its_way_is_neither_on_nor_off() {
    let options = Options {
        change: Change::AfterReads(2),
        ..Options::default()
    };
    let (service, _events, access) = one(options);
    let bmcs = bmcs(&hasty());
    bmcs.set_power(&access, 1, Reset::On).await.unwrap();
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::PoweringOn);
    service.seen();
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::On).await.unwrap(),
        Done::Already
    );
    assert_eq!(count(&service, "POST", ""), 0);
    bmcs.power(&access).await.unwrap();
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::On);
    bmcs.set_power(&access, 1, Reset::GracefulShutdown).await.unwrap();
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::PoweringOff);
    // It refuses to be switched on meanwhile: later, then.
    let early = bmcs.set_power(&access, 1, Reset::On).await;
    assert!(matches!(early, Err(BmcError::Busy { .. })), "{early:?}");
}

#[tokio::test]
async fn a_mode_that_is_only_preferred_does_not_keep_a_machine_from_its_boot() {
    let (service, mut events, access) = one(Options {
        boot: BootQuirk::FixedMode,
        ..Options::default()
    });
    let bmcs = bmcs(&hasty());
    let wanted = |mode| Boot {
        mode,
        ..once(Device::Pxe)
    };
    let legacy = Mode::Legacy;
    let refused = bmcs
        .set_boot(&access, 1, wanted(WantedMode::Required(legacy)))
        .await;
    assert!(refused.is_err(), "{refused:?}");
    let taken = bmcs
        .set_boot(&access, 1, wanted(WantedMode::Preferred(legacy)))
        .await;
    assert_eq!(taken.unwrap(), Done::Accepted);
    bmcs.set_power(&access, 1, Reset::On).await.unwrap();
    assert_eq!(happened(&mut events), [boots(Some("Pxe"))]);
    drop(service);
}

#[tokio::test]
async fn a_boot_override_counts_once_on_every_kind_of_bmc() {
    for (boot, manufacturer) in [
        (BootQuirk::None, "Muster"),
        (BootQuirk::Whole, "Supermicro"),
        (BootQuirk::Whole, "American Megatrends Inc."),
        (BootQuirk::Whole, "ASRockRack"),
        (BootQuirk::Whole, "GIGABYTE"),
        (BootQuirk::NoRepeats, "Dell Inc."),
        (BootQuirk::OnlyOnce, "HPE"),
        (BootQuirk::NoMode, "HPE"),
        (BootQuirk::Settings, "Muster"),
        (BootQuirk::StaleSettings, "American Megatrends Inc."),
        (BootQuirk::EmptySettings, "Dell Inc."),
        (BootQuirk::OrderInSettings, "Dell Inc."),
        (BootQuirk::FixedSettings, "Muster"),
    ] {
        let options = Options {
            boot,
            manufacturer: manufacturer.to_owned(),
            ..Options::default()
        };
        let (service, mut events, access) = one(options);
        let bmcs = bmcs(&hasty());
        for device in [Device::Hdd, Device::Pxe] {
            assert_eq!(
                bmcs.set_boot(&access, 1, uefi(device)).await.unwrap(),
                Done::Accepted,
                "{boot:?}"
            );
        }
        assert_eq!(
            bmcs.set_boot(&access, 1, once(Device::Pxe)).await.unwrap(),
            Done::Already,
            "{boot:?}"
        );
        bmcs.set_power(&access, 1, Reset::On).await.unwrap();
        bmcs.set_power(&access, 1, Reset::ForceRestart).await.unwrap();
        assert_eq!(
            happened(&mut events),
            [boots(Some("Pxe")), What::Off, boots(None)],
            "{boot:?}"
        );
        let again = bmcs.set_boot(&access, 1, uefi(Device::Pxe)).await.unwrap();
        assert_eq!(again, Done::Accepted, "{boot:?}: it is used up");
        assert_eq!(service.armed("1").target.as_deref(), Some("Pxe"), "{boot:?}");
        bmcs.set_boot(&access, 1, uefi(Device::UefiHttp)).await.unwrap();
        assert_eq!(service.armed("1").target.as_deref(), Some("UefiHttp"), "{boot:?}");
        assert_eq!(
            bmcs.set_boot(&access, 1, once(Device::None)).await.unwrap(),
            Done::Accepted,
            "{boot:?}"
        );
        assert_eq!(service.armed("1").target, None, "{boot:?}");
        assert_eq!(
            bmcs.set_boot(&access, 1, once(Device::None)).await.unwrap(),
            Done::Already,
            "{boot:?}"
        );
    }
}

#[tokio::test]
async fn a_maker_that_only_the_service_names_gets_its_shape_at_once() {
    let (service, _events, access) = one(Options {
        boot: BootQuirk::Whole,
        manufacturer: "GIGABYTE".to_owned(),
        vendor: Some("AMI"),
        ..Options::default()
    });
    let done = bmcs(&hasty()).set_boot(&access, 1, uefi(Device::Pxe)).await;
    assert_eq!(done.unwrap(), Done::Accepted);
    assert_eq!(count(&service, "PATCH", ""), 1);
}

#[tokio::test]
async fn a_bmc_is_told_its_override_first_in_the_way_in_which_it_took_the_last_one() {
    for (boot, manufacturer, refused) in [
        (BootQuirk::Whole, "GIGABYTE", 1),
        (BootQuirk::FixedSettings, "Muster", 2),
    ] {
        let (service, _events, access) = one(Options {
            boot,
            manufacturer: manufacturer.to_owned(),
            ..Options::default()
        });
        let bmcs = bmcs(&hasty());
        for (device, expected) in [(Device::Hdd, refused + 1), (Device::Pxe, 1)] {
            let done = bmcs.set_boot(&access, 1, uefi(device)).await;
            assert_eq!(done.unwrap(), Done::Accepted, "{boot:?}");
            assert_eq!(count(&service, "PATCH", ""), expected, "{boot:?}");
        }
        // One that was away may be another version of itself.
        service.inject(Rule::always(Fault::Unavailable(0)).times(1));
        assert!(bmcs.power(&access).await.is_err());
        bmcs.set_boot(&access, 1, uefi(Device::Hdd)).await.unwrap();
        assert_eq!(count(&service, "PATCH", ""), refused + 1, "{boot:?}");
    }
}

/// What the first way of writing it is told says what is wrong.
#[tokio::test]
async fn of_an_override_that_is_taken_in_no_way_the_first_refusal_is_told() {
    let (service, _events, access) = one(Options {
        boot: BootQuirk::FixedSettings,
        ..Options::default()
    });
    let system = "/redfish/v1/Systems/1";
    service.inject(
        Rule::always(Fault::Status(400, "PropertyValueError"))
            .method("PATCH")
            .path(system),
    );
    service.inject(
        Rule::always(Fault::Status(405, "OperationNotAllowed"))
            .method("PATCH")
            .path("Settings"),
    );
    let refused = bmcs(&hasty()).set_boot(&access, 1, once(Device::Pxe)).await;
    assert!(
        matches!(refused, Err(BmcError::Unsupported { .. })),
        "{refused:?}"
    );
    // Each way once: two places, two shapes.
    let patched: Vec<String> = service
        .seen()
        .into_iter()
        .filter(|seen| seen.method == "PATCH")
        .map(|seen| seen.path)
        .collect();
    let settings = "/redfish/v1/Systems/1/Settings";
    assert_eq!(patched, [settings, settings, system, system]);
}

#[tokio::test]
async fn a_lasting_override_lasts_where_the_bmc_knows_it() {
    let lasting = muster_controller::bmc::Boot {
        lasting: Lasting::Continuous,
        ..once(Device::Hdd)
    };
    let (service, _events, access) = one(Options::default());
    let all = bmcs(&hasty());
    all.set_boot(&access, 1, lasting).await.unwrap();
    for _ in 0..2 {
        assert_eq!(service.boots("1").target.as_deref(), Some("Hdd"));
    }
    let options = Options {
        boot: BootQuirk::OnlyOnce,
        ..Options::default()
    };
    let (_service, _events, access) = one(options);
    let refused = all.set_boot(&access, 1, lasting).await;
    assert!(
        matches!(refused, Err(BmcError::Unsupported { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn every_kind_of_etag_lets_a_change_through() {
    for etags in [
        Etags::None,
        Etags::Strong,
        Etags::Weak,
        Etags::Required,
        Etags::Broken,
        Etags::BrokenRequired,
    ] {
        let options = Options {
            etags,
            ..Options::default()
        };
        let (service, _events, access) = one(options);
        let done = bmcs(&hasty()).set_boot(&access, 1, once(Device::Pxe)).await;
        assert_eq!(done.unwrap(), Done::Accepted, "{etags:?}");
        assert_eq!(service.armed("1").target.as_deref(), Some("Pxe"), "{etags:?}");
    }
}

#[tokio::test]
async fn a_change_that_lost_a_race_is_tried_again_and_then_later() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    service.inject(Rule::always(Fault::Mismatch).method("PATCH").times(1));
    assert_eq!(
        bmcs.set_boot(&access, 1, once(Device::Pxe)).await.unwrap(),
        Done::Accepted
    );
    assert_eq!(count(&service, "PATCH", ""), 2);
    service.inject(Rule::always(Fault::Mismatch).method("PATCH"));
    let lost = bmcs.set_boot(&access, 1, once(Device::Hdd)).await;
    assert!(matches!(lost, Err(BmcError::Busy { .. })), "{lost:?}");
    assert_eq!(count(&service, "PATCH", ""), 4);
}

/// It may be over, or have the privileges that the user had when it was made.
#[tokio::test]
async fn a_session_that_is_forbidden_what_it_was_allowed_is_made_anew_once() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    bmcs.power(&access).await.unwrap();
    let _before = service.seen();
    let forbidden = || Rule::always(Fault::Status(403, "InsufficientPrivilege")).path("Systems");
    service.inject(forbidden().times(1));
    bmcs.power(&access).await.unwrap();
    let sessions = || {
        let seen = service.seen();
        ["POST", "DELETE"].map(|method| {
            let of = seen.iter().filter(|seen| seen.method == method);
            of.filter(|seen| seen.path.contains("Sessions")).count()
        })
    };
    assert_eq!(sessions(), [1, 1]);
    service.inject(forbidden());
    let refused = bmcs.power(&access).await;
    assert!(
        matches!(refused, Err(BmcError::Credentials { .. })),
        "{refused:?}"
    );
    assert_eq!(sessions(), [1, 1]);
}

#[tokio::test]
async fn a_probe_tells_whose_bmc_it_is() {
    for expand in [false, true] {
        let options = Options {
            expand,
            manufacturer: "To be filled by O.E.M.".to_owned(),
            ..Options::default()
        };
        let (service, _events, access) = one(options);
        let probe = bmcs(&hasty()).probe(&access).await.unwrap();
        assert_eq!(probe.state.power, PowerState::Off);
        assert_eq!(probe.state.health, Health::Ok);
        let identity = probe.identity;
        assert_eq!(identity.serial.as_deref(), Some("LB-1"));
        assert_eq!(identity.manufacturer, None);
        assert!(identity.uuid.is_some());
        assert_eq!(identity.macs.map(|macs| macs.len()), Some(1));
        assert_eq!(
            count(&service, "GET", "EthernetInterfaces/1"),
            usize::from(!expand)
        );
    }
}

#[tokio::test]
async fn nics_that_are_not_told_are_unknown_and_not_none() {
    for fault in [
        Fault::Status(500, "InternalError"),
        Fault::Status(403, "InsufficientPrivilege"),
        Fault::Unavailable(17),
        Fault::Refuse,
    ] {
        let (service, _events, access) = one(Options::default());
        service.inject(Rule::always(fault).path("EthernetInterfaces"));
        let probe = bmcs(&hasty()).probe(&access).await.unwrap();
        assert_eq!(probe.identity.macs, None);
        assert!(probe.identity.serial.is_some());
    }
}

#[tokio::test]
async fn the_only_system_is_found_and_of_several_one_must_be_named() {
    let (service, _events, _) = one(Options::default());
    let bmcs = bmcs(&hasty());
    let unnamed = access(&service, "unnamed", None);
    assert_eq!(bmcs.power(&unnamed).await.unwrap().power, PowerState::Off);
    // It is another one now, as after a change of the board.
    service.add("2");
    service.remove("1");
    assert_eq!(bmcs.power(&unnamed).await.unwrap().power, PowerState::Off);
    service.remove("2");
    assert!(matches!(
        bmcs.power(&unnamed).await,
        Err(BmcError::NoSystem { .. })
    ));
    for name in ["3", "4"] {
        service.add(name);
    }
    let several = bmcs.power(&unnamed).await.unwrap_err();
    let expected = ["/redfish/v1/Systems/3", "/redfish/v1/Systems/4"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(several, BmcError::SeveralSystems { paths: expected });
    let named = access(&service, "named", Some("4"));
    assert_eq!(bmcs.power(&named).await.unwrap().power, PowerState::Off);
    let wrong = access(&service, "wrong", Some("5"));
    assert!(matches!(bmcs.power(&wrong).await, Err(BmcError::NoSystem { .. })));
    let mut collection = named.clone();
    collection.address.system = Some("/redfish/v1/Systems".to_owned());
    assert!(matches!(
        bmcs.power(&collection).await,
        Err(BmcError::NoSystem { .. })
    ));
}
