//! What comes through of a BMC that is broken: an error of the right class, and never a state.

use std::time::Duration;

use muster_controller::bmc::{BmcError, Config, Credentials, Device, Done, PowerState, Reset};
use muster_tests::bmc::{self, Fault, Options, Resets, Rule};

use super::{bmcs, count, hasty, in_time, once, one};

/// The fault, and what comes of it at reading the system and at resetting it.
fn table() -> Vec<(Fault, &'static str, &'static str)> {
    let elsewhere = Fault::Redirect("http://192.0.2.1/redfish/v1".to_owned());
    let around = Fault::Redirect("/redfish/v1/Systems/1/around".to_owned());
    vec![
        (Fault::Refuse, "unreachable", "unreachable"),
        (Fault::Truncated, "unreachable", "accepted"),
        (Fault::Garbage, "busy", "accepted"),
        (Fault::Long(3 << 20), "answer", "accepted"),
        (Fault::Unavailable(17), "busy", "busy"),
        (Fault::Status(401, "NoValidSession"), "credentials", "credentials"),
        (
            Fault::Status(403, "InsufficientPrivilege"),
            "credentials",
            "credentials",
        ),
        (
            Fault::Status(404, "ResourceMissingAtURI"),
            "no-system",
            "unsupported",
        ),
        (
            Fault::Status(405, "OperationNotAllowed"),
            "unsupported",
            "unsupported",
        ),
        (Fault::Status(409, "ResourceInUse"), "busy", "busy"),
        (
            Fault::Status(400, "ActionNotSupported"),
            "unsupported",
            "unsupported",
        ),
        (
            Fault::Status(400, "UnableToModifyDuringSystemPOST"),
            "busy",
            "busy",
        ),
        (Fault::Status(429, "GeneralError"), "busy", "busy"),
        (Fault::Status(500, "InternalError"), "busy", "refused"),
        (Fault::Echo, "refused", "refused"),
        (elsewhere, "answer", "answer"),
        (around, "answer", "answer"),
    ]
}

#[tokio::test]
async fn a_fault_has_its_class_and_is_never_a_state() {
    for (fault, reading, resetting) in table() {
        let (service, _events, access) = one(Options::default());
        service.went_on("1");
        service.inject(Rule::always(fault.clone()).method("GET").path("/Systems/1"));
        let read = in_time(bmcs(&hasty()).power(&access)).await;
        let told = read
            .as_ref()
            .map_or_else(BmcError::class, |power| panic!("{fault:?}: {power:?}"));
        assert_eq!(told, reading, "{fault:?}: {read:?}");
        service.heal();
        service.inject(Rule::always(fault.clone()).method("POST").path("/Systems/1"));
        let reset = in_time(bmcs(&hasty()).set_power(&access, 1, Reset::ForceOff)).await;
        let told = reset.as_ref().map_or_else(BmcError::class, |_| "accepted");
        assert_eq!(told, resetting, "{fault:?}: {reset:?}");
        service.heal();
    }
}

#[tokio::test]
async fn a_bmc_that_fails_to_show_its_system_between_arming_and_reset_is_asked_again() {
    for fault in [Fault::Status(500, "InternalError"), Fault::Garbage] {
        let (service, _events, access) = one(Options::default());
        let bmcs = bmcs(&hasty());
        bmcs.set_boot(&access, 1, once(Device::Pxe)).await.unwrap();
        service.inject(
            Rule::always(fault.clone())
                .method("GET")
                .path("/Systems/1")
                .times(1),
        );
        let early = bmcs.set_power(&access, 1, Reset::On).await;
        assert!(
            matches!(early, Err(BmcError::Busy { .. })),
            "{fault:?}: {early:?}"
        );
        assert_eq!(service.power("1"), bmc::PowerState::Off);
        assert_eq!(service.armed("1").target.as_deref(), Some("Pxe"));
        let done = bmcs.set_power(&access, 1, Reset::On).await;
        assert_eq!(done.unwrap(), Done::Accepted, "{fault:?}");
        assert_eq!(service.power("1"), bmc::PowerState::On);
    }
}

#[tokio::test]
async fn nobody_listening_is_unreachable() {
    let (_service, _events, mut access) = one(Options::default());
    // Bound, so that nobody else has the port, and deaf.
    let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    deaf.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    access.address.port = deaf.local_addr().unwrap().as_socket().unwrap().port();
    let bmcs = bmcs(&hasty());
    for outcome in [
        bmcs.power(&access).await.map(drop),
        bmcs.set_power(&access, 1, Reset::On).await.map(drop),
    ] {
        assert_eq!(
            outcome.as_ref().map_or_else(BmcError::class, |()| "a state"),
            "unreachable",
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_unreachable() {
    let (_service, _events, mut access) = one(Options::default());
    access.address = "redfish://bmc.invalid".parse().unwrap();
    let outcome = in_time(bmcs(&hasty()).power(&access)).await;
    assert_eq!(
        outcome.as_ref().map_or_else(BmcError::class, |_| "a state"),
        "unreachable",
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_bmc_that_hangs_is_given_up() {
    let impatient = || Config {
        request: Duration::from_millis(200),
        ..hasty()
    };
    let (service, _events, access) = one(Options::default());
    service.inject(Rule::always(Fault::Hang));
    let outcome = in_time(bmcs(&impatient()).power(&access)).await;
    assert_eq!(
        outcome.as_ref().map_or_else(BmcError::class, |_| "a state"),
        "unreachable",
        "{outcome:?}"
    );
}

#[tokio::test]
async fn of_what_was_done_and_not_answered_nobody_claims_that_it_was_not() {
    for fault in [Fault::DoneButSilent, Fault::DoneBut(504)] {
        let (service, _events, access) = one(Options::default());
        service.inject(Rule::always(fault.clone()).path("ComputerSystem.Reset"));
        let patient = bmcs(&Config {
            request: Duration::from_secs(5),
            ..hasty()
        });
        let outcome = in_time(patient.set_power(&access, 1, Reset::On)).await;
        assert_eq!(
            outcome.as_ref().map_or_else(BmcError::class, |_| "a state"),
            "unreachable",
            "{fault:?}: {outcome:?}"
        );
        assert_eq!(service.power("1"), bmc::PowerState::On);
        service.heal();
        assert_eq!(
            patient.set_power(&access, 1, Reset::On).await.unwrap(),
            Done::Already
        );
    }
}

#[tokio::test]
async fn what_only_gives_advice_stops_nothing_when_it_fails() {
    for status in [403, 405, 500] {
        let (service, _events, access) = one(Options {
            resets: Resets::ActionInfo(vec!["On", "ForceOff"]),
            ..Options::default()
        });
        service.inject(Rule::always(Fault::Status(status, "InternalError")).path("ResetActionInfo"));
        let done = in_time(bmcs(&hasty()).set_power(&access, 1, Reset::On)).await;
        assert_eq!(done.unwrap(), Done::Accepted, "{status}");
    }
}

#[tokio::test]
async fn a_slow_bmc_is_waited_for() {
    let (service, _events, access) = one(Options::default());
    service.inject(Rule::always(Fault::Slow(Duration::from_millis(100))));
    assert_eq!(
        in_time(bmcs(&hasty()).power(&access)).await.unwrap().power,
        PowerState::Off
    );
}

#[tokio::test]
async fn words_for_power_that_nobody_knows_are_unknown() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    for (word, expected) in [
        (
            "Paused",
            PowerState::Unknown {
                reported: "Paused".to_owned(),
            },
        ),
        (
            "",
            PowerState::Unknown {
                reported: String::new(),
            },
        ),
        (
            "OFF",
            PowerState::Unknown {
                reported: "OFF".to_owned(),
            },
        ),
        ("On", PowerState::On),
    ] {
        service.inject(Rule::always(Fault::Lie(word)).method("GET"));
        assert_eq!(bmcs.power(&access).await.unwrap().power, expected, "{word}");
    }
    // What is unknown is changed all the same.
    service.inject(Rule::always(Fault::Lie("Paused")).method("GET"));
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::On).await.unwrap(),
        Done::Accepted
    );
}

#[tokio::test]
async fn a_reset_that_does_nothing_is_seen_at_the_next_look() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    service.inject(Rule::always(Fault::NothingHappens).method("POST"));
    // The login is a POST, too.
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::On).await.unwrap(),
        Done::Accepted
    );
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::Off);
}

#[tokio::test]
async fn patience_that_the_bmc_asks_for_is_passed_on_and_kept() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    bmcs.power(&access).await.unwrap();
    service.inject(Rule::always(Fault::Unavailable(17)).method("GET").times(1));
    let busy = bmcs.power(&access).await.unwrap_err();
    let BmcError::Busy { retry_after, .. } = &busy else {
        panic!("{busy}");
    };
    assert_eq!(*retry_after, Some(Duration::from_secs(17)));
    service.seen();
    assert_eq!(bmcs.power(&access).await.unwrap_err(), busy);
    assert_eq!(bmcs.set_power(&access, 1, Reset::On).await.unwrap_err(), busy);
    assert_eq!(count(&service, "GET", ""), 0, "it asked to be left alone");
    assert!(bmcs.pause(&access).is_some());
}

#[tokio::test]
async fn redirects_on_the_same_host_are_followed() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    let moved = |path: &str| format!("http://{}{path}", service.socket());
    service.inject(
        Rule::always(Fault::Redirect(moved("/redfish/v1/Systems/1")))
            .method("GET")
            .path("/Systems/1")
            .times(1),
    );
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::Off);
    let reset = "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset";
    service.inject(
        Rule::always(Fault::Redirect(reset.to_owned()))
            .method("POST")
            .path(reset)
            .times(1),
    );
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::On).await.unwrap(),
        Done::Accepted
    );
    assert_eq!(service.power("1"), bmc::PowerState::On);
}

#[tokio::test]
async fn credentials_go_nowhere_but_to_the_bmc() {
    let (thief, _events, _) = one(Options::default());
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    service.inject(Rule::always(Fault::Redirect(format!(
        "http://{}/redfish/v1/",
        thief.socket()
    ))));
    assert!(bmcs.power(&access).await.is_err());
    assert_eq!(thief.seen(), []);
}

#[tokio::test]
async fn what_is_no_redfish_is_said_to_be_none() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    service.inject(Rule::always(Fault::Status(404, "x")));
    let error = bmcs.probe(&access).await.unwrap_err();
    assert!(error.to_string().contains("no Redfish service"), "{error}");
    service.inject(Rule::always(Fault::Long(10)));
    assert_eq!(bmcs.probe(&access).await.unwrap_err().class(), "answer");
}

#[tokio::test]
async fn secrets_are_in_no_error_whatever_the_bmc_repeats() {
    let canary = "canary-7c1f";
    let (service, _events, mut access) = one(Options::default());
    service.set_user("admin", canary);
    access.credentials = Credentials::new("admin", canary);
    let basic = "YWRtaW46Y2FuYXJ5LTdjMWY";
    let bmcs = bmcs(&hasty());
    let check = |text: String| {
        for secret in [canary, basic, "token-1"] {
            assert!(!text.contains(secret), "{text}");
        }
        text
    };
    check(format!("{access:?} {bmcs:?}"));
    bmcs.power(&access).await.unwrap();
    let redirect = Fault::Redirect(format!("http://192.0.2.1/?password={canary}"));
    for rule in [
        Rule::always(Fault::Echo).path("/redfish/v1/S"),
        Rule::always(Fault::Echo).path("/Systems"),
        Rule::always(redirect).path("/Systems"),
    ] {
        service.heal();
        service.expire_sessions();
        service.inject(rule);
        let error = bmcs.set_boot(&access, 1, once(Device::Pxe)).await.unwrap_err();
        check(format!("{error} {error:?}"));
    }
    // The BMC did repeat it: the check can fail.
    service.heal();
    service.inject(Rule::always(Fault::Echo).path("/redfish/v1/S"));
    service.expire_sessions();
    let told = check(bmcs.power(&access).await.unwrap_err().to_string());
    assert!(told.contains("***"), "{told}");
    // Without sessions every request has user and password.
    let sessionless = Options {
        sessions: None,
        ..Options::default()
    };
    let (service, _events, other) = one(sessionless);
    access.address = other.address;
    service.inject(Rule::always(Fault::Echo).path("/Systems"));
    let told = check(bmcs.power(&access).await.unwrap_err().to_string());
    assert!(told.contains("***"), "{told}");
}
