//! Who we are at a BMC, and for how long.

use muster_controller::bmc::{BmcError, Credentials, Device, PowerState, Reset};
use muster_tests::bmc::{Auth, Fault, Options, Rule};

use super::{access, bmcs, count, hasty, once, one};

const SESSIONS: &str = "/SessionService/Sessions";

#[tokio::test]
async fn one_session_serves_all_calls_and_ends_with_the_last_host() {
    let (service, _events, first) = one(Options::default());
    let second = access(&service, "second", Some("1"));
    let bmcs = bmcs(&hasty());
    for _ in 0..3 {
        bmcs.power(&first).await.unwrap();
        bmcs.set_power(&second, 1, Reset::ForceRestart).await.unwrap();
    }
    let seen = service.seen();
    let logins = seen
        .iter()
        .filter(|seen| seen.method == "POST" && seen.path == format!("/redfish/v1{SESSIONS}"));
    assert_eq!(logins.count(), 1);
    // Who we are is told to nobody but the login, and there by nothing else.
    assert!(seen.iter().all(|seen| seen.auth != Auth::Basic));
    bmcs.forget(&first.host).await;
    assert_eq!(service.open_sessions(), 1);
    bmcs.forget(&second.host).await;
    assert_eq!(service.open_sessions(), 0);
    assert_eq!(bmcs.power(&first).await.unwrap().power, PowerState::On);
}

#[tokio::test]
async fn a_session_that_the_bmc_forgot_is_renewed() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    bmcs.power(&access).await.unwrap();
    service.expire_sessions();
    service.seen();
    bmcs.set_power(&access, 1, Reset::On).await.unwrap();
    assert_eq!(count(&service, "POST", SESSIONS), 1);
    assert_eq!(service.open_sessions(), 1);
}

#[tokio::test]
async fn a_bmc_without_sessions_is_told_every_time() {
    let options = Options {
        sessions: None,
        ..Options::default()
    };
    let (service, _events, access) = one(options);
    let bmcs = bmcs(&hasty());
    bmcs.set_power(&access, 1, Reset::On).await.unwrap();
    bmcs.set_boot(&access, 1, once(Device::Pxe)).await.unwrap();
    let seen = service.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.path.ends_with("/v1/") || seen.auth == Auth::Basic),
        "{seen:?}"
    );
    assert_eq!(
        seen.iter().filter(|seen| seen.path.contains("Session")).count(),
        0
    );
}

#[tokio::test]
async fn sessions_that_are_linked_and_do_not_work_are_done_without() {
    for refusal in [
        Fault::Status(404, "ResourceMissingAtURI"),
        Fault::Status(405, "x"),
        Fault::Status(501, "x"),
    ] {
        let (service, _events, access) = one(Options::default());
        service.inject(Rule::always(refusal).method("POST").path(SESSIONS));
        let bmcs = bmcs(&hasty());
        for _ in 0..2 {
            bmcs.power(&access).await.unwrap();
        }
        assert_eq!(count(&service, "POST", SESSIONS), 1);
    }
}

#[tokio::test]
async fn when_others_hold_all_sessions_calls_go_without() {
    let options = Options {
        sessions: Some(0),
        ..Options::default()
    };
    let (service, _events, access) = one(options);
    let bmcs = bmcs(&hasty());
    bmcs.set_power(&access, 1, Reset::On).await.unwrap();
    assert_eq!(service.open_sessions(), 0);
    // And they ask again at the next call.
    service.seen();
    bmcs.power(&access).await.unwrap();
    assert_eq!(count(&service, "POST", SESSIONS), 1);
}

#[tokio::test]
async fn where_no_session_can_be_had_for_whatever_reason_calls_go_without() {
    for refusal in [
        Fault::Status(503, "RAC0218"),
        Fault::Status(400, "CreateLimitReachedForResource"),
        Fault::Status(500, "InternalError"),
    ] {
        let (service, _events, access) = one(Options::default());
        service.inject(Rule::always(refusal).method("POST").path(SESSIONS));
        let bmcs = bmcs(&hasty());
        bmcs.set_power(&access, 1, Reset::On).await.unwrap();
        service.seen();
        bmcs.power(&access).await.unwrap();
        assert_eq!(count(&service, "POST", SESSIONS), 1, "it may be another time");
    }
}

#[tokio::test]
async fn where_nothing_but_a_session_is_taken_and_none_can_be_had_the_password_is_not_called_wrong() {
    for refusal in [
        Fault::Status(503, "SessionLimitExceeded"),
        Fault::Status(500, "InternalError"),
    ] {
        let (service, _events, access) = one(Options::default());
        service.inject(Rule::always(refusal).method("POST").path(SESSIONS).times(1));
        let basic_is_off = Rule::always(Fault::Status(401, "NoValidSession")).path("/Systems/1");
        service.inject(basic_is_off.times(1));
        let bmcs = bmcs(&hasty());
        let refused = bmcs.probe(&access).await;
        assert!(
            matches!(refused, Err(BmcError::Busy { .. } | BmcError::Refused { .. })),
            "{refused:?}"
        );
        super::until(|| bmcs.pause(&access).is_none()).await;
        bmcs.probe(&access).await.unwrap();
    }
}

#[tokio::test]
async fn a_wrong_password_is_called_so_where_no_session_can_be_had() {
    let (service, _events, mut access) = one(Options::default());
    access.credentials = Credentials::new("admin", "wrong");
    service.inject(
        Rule::always(Fault::Status(500, "InternalError"))
            .method("POST")
            .path(SESSIONS),
    );
    let refused = Fault::Status(401, "ResourceAtUriUnauthorized");
    service.inject(Rule::always(refused).path("/Systems/1"));
    let refused = bmcs(&hasty()).probe(&access).await;
    assert!(
        matches!(refused, Err(BmcError::Credentials { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_session_that_is_over_is_renewed_also_where_the_answer_that_says_so_is_cut_off() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    bmcs.power(&access).await.unwrap();
    service.expire_sessions();
    service.seen();
    service.inject(
        Rule::always(Fault::Truncated)
            .method("GET")
            .path("/Systems/1")
            .times(1),
    );
    bmcs.power(&access).await.unwrap();
    assert_eq!(count(&service, "POST", SESSIONS), 1);
}

#[tokio::test]
async fn wrong_credentials_are_tried_once_and_right_ones_at_once() {
    let (service, _events, right) = one(Options::default());
    let mut wrong = right.clone();
    wrong.credentials = Credentials::new("admin", "wrong");
    // With the pauses of a real controller.
    let bmcs = bmcs(&muster_controller::bmc::Config {
        first_pause: super::DEADLINE,
        longest_pause: super::DEADLINE,
        ..hasty()
    });
    for _ in 0..3 {
        assert!(matches!(
            bmcs.probe(&wrong).await,
            Err(BmcError::Credentials { .. })
        ));
    }
    assert!(bmcs.pause(&wrong).is_some());
    assert_eq!(count(&service, "POST", SESSIONS), 1, "an account would be locked");
    assert_eq!(bmcs.pause(&right), None);
    bmcs.probe(&right).await.unwrap();
    // Changed on both sides: the old session does not outlive it.
    service.set_user("admin", "wrong");
    bmcs.probe(&wrong).await.unwrap();
    assert_eq!(service.open_sessions(), 1);
    assert!(matches!(
        bmcs.probe(&right).await,
        Err(BmcError::Credentials { .. })
    ));
}

#[tokio::test]
async fn whoever_has_not_the_password_does_not_profit_from_anothers_session() {
    let (service, _events, right) = one(Options::default());
    let mut wrong = access(&service, "other", Some("1"));
    wrong.credentials = Credentials::new("admin", "wrong");
    let bmcs = bmcs(&hasty());
    bmcs.power(&right).await.unwrap();
    assert!(matches!(
        bmcs.power(&wrong).await,
        Err(BmcError::Credentials { .. })
    ));
    bmcs.power(&right).await.unwrap();
    assert_eq!(service.open_sessions(), 1);
}

#[tokio::test]
async fn another_address_ends_the_session_at_the_old_one() {
    let (old, _events, mut access) = one(Options::default());
    let (new, _events, elsewhere) = one(Options::default());
    let bmcs = bmcs(&hasty());
    bmcs.power(&access).await.unwrap();
    access.address = elsewhere.address;
    bmcs.power(&access).await.unwrap();
    super::until(|| old.open_sessions() == 0).await;
    assert_eq!(new.open_sessions(), 1);
}

#[tokio::test]
async fn stopping_ends_all_sessions_and_all_calls() {
    let services: Vec<_> = (0..20).map(|_| one(Options::default())).collect();
    let bmcs = bmcs(&hasty());
    for (_, _, access) in &services {
        let mut access = access.clone();
        access.host.uid = access.address.to_string();
        bmcs.power(&access).await.unwrap();
    }
    bmcs.stop().await;
    assert!(
        services
            .iter()
            .all(|(service, _, _)| service.open_sessions() == 0)
    );
    let (service, _, access) = &services[0];
    service.seen();
    assert_eq!(bmcs.power(access).await, Err(BmcError::Stopped));
    assert_eq!(count(service, "GET", ""), 0);
}
