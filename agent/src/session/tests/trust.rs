//! Whom the session believes, and who believes it: authorities, times, tokens and certificates.

use muster_proto::config::TOKEN_LIFETIME;

use super::*;

#[tokio::test]
async fn a_controller_of_another_authority_gets_nothing() {
    let controller = controller(vec![]).await;
    let _agent = Agent::start(vec![controller.endpoint()], &Authority::new("other"), NOW);
    controller
        .until(|controller| controller.failed_handshakes() >= 2)
        .await;
    assert_eq!(controller.calls().len(), 0, "neither token nor inventory");
}

#[tokio::test]
async fn only_the_time_of_the_boot_configuration_counts() {
    for (validity, now) in [
        (AROUND_NOW, NOW),
        (
            Validity {
                from: (1970, 1, 1),
                to: (1970, 1, 3),
            },
            86_400,
        ),
        (
            Validity {
                from: (2040, 1, 1),
                to: (2040, 2, 1),
            },
            2_210_000_000,
        ),
    ] {
        let controller = Controller::start(validity, scripted(vec![])).await;
        let _agent = Agent::start(vec![controller.endpoint()], controller.authority(), now);
        controller.until_called("/v1/enrol", 1).await;
    }
}

#[tokio::test]
async fn a_certificate_outside_its_time_is_refused() {
    let today = Validity {
        from: (2020, 1, 1),
        to: (2029, 1, 1),
    };
    let controller = Controller::start(today, scripted(vec![])).await;
    let _agent = Agent::of(&controller);
    controller
        .until(|controller| controller.failed_handshakes() >= 2)
        .await;
    assert_eq!(controller.calls().len(), 0);
}

#[tokio::test]
async fn the_controllers_time_is_believed_from_its_first_answer_on() {
    let later = NOW + 500_000;
    let answers = move |path: &str| match path {
        "/v1/enrol" => Answer::Certificate {
            time: later,
            renew_at: later + 3600,
            authority: None,
        },
        other => usual(other),
    };
    let controller = Controller::start(AROUND_NOW, answers).await;
    let agent = Agent::of(&controller);
    let now = agent.clock.clone();
    controller.until(|_| now.now() >= later).await;
}

#[tokio::test]
async fn a_refused_token_is_final() {
    let answers = |path: &str| match path {
        "/v1/enrol" => refuse(403, ProblemKind::Token),
        other => usual(other),
    };
    let controller = Controller::start(AROUND_NOW, answers).await;
    let ended = Agent::of(&controller).ended().await;
    assert!(
        matches!(&ended, Ended::Refused(problem) if problem.kind == ProblemKind::Token),
        "{ended:?}"
    );
    assert_eq!(controller.calls().len(), 1);
}

#[tokio::test]
async fn a_revoked_certificate_is_final() {
    let controller = controller(vec![refuse(403, ProblemKind::Certificate)]).await;
    let ended = Agent::of(&controller).ended().await;
    assert!(
        matches!(&ended, Ended::Refused(problem) if problem.kind == ProblemKind::Certificate),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_certificate_is_revoked_once_two_controllers_in_a_row_say_so() {
    let revoked = || refuse(403, ProblemKind::Certificate);
    // Each answer but the last one: of a controller whose clock is wrong, of another one.
    for (polls, says) in [
        (vec![revoked(), command("op-1", "reboot")], "taken"),
        (vec![revoked(), revoked()], "revoked"),
    ] {
        let controller = controller(polls).await;
        let endpoints = vec![controller.endpoint(); 2];
        let ended = Agent::start(endpoints, controller.authority(), NOW).ended().await;
        match says {
            "taken" => assert!(matches!(ended, Ended::Reboot), "{ended:?}"),
            _ => assert!(matches!(ended, Ended::Refused(_)), "{ended:?}"),
        }
        assert_eq!(controller.count("/v1/enrol"), 1);
    }
}

/// One that cannot be reached may be about to start: a write that is under way is not given up for what one alone says.
#[tokio::test]
async fn a_controller_that_cannot_be_reached_has_not_refused() {
    let revoked = || refuse(403, ProblemKind::Certificate);
    let controller = controller(vec![revoked(), revoked(), command("op-1", "reboot")]).await;
    let endpoints = vec![controller.endpoint(), "https://127.0.0.1:1".to_owned()];
    let ended = Agent::start(endpoints, controller.authority(), NOW).ended().await;
    assert!(matches!(ended, Ended::Reboot), "{ended:?}");
}

#[tokio::test]
async fn a_token_that_one_controller_takes_for_ended_is_shown_to_another_one() {
    let mut is_first = true;
    let answers = move |path: &str| match path {
        "/v1/enrol" if std::mem::replace(&mut is_first, false) => refuse(403, ProblemKind::Token),
        other => usual(other),
    };
    let controller = Controller::start(AROUND_NOW, answers).await;
    let endpoints = vec![controller.endpoint(); 2];
    let _agent = Agent::start(endpoints, controller.authority(), NOW);
    controller.until_called("/v1/inventory", 1).await;
    assert_eq!(controller.count("/v1/enrol"), 2);
}

#[tokio::test]
async fn a_certificate_that_tls_refuses_leads_to_the_same_enrolment_again() {
    let mut first = Some(Authority::new("not the controller's"));
    let answers = move |path: &str| match path {
        "/v1/enrol" => Answer::Certificate {
            time: NOW,
            renew_at: NOW + 3600,
            authority: first.take().map(Box::new),
        },
        other => usual(other),
    };
    let controller = Controller::start(AROUND_NOW, answers).await;
    let _agent = Agent::of(&controller);
    controller.until_called("/v1/inventory", 1).await;
    let calls = controller.calls();
    assert_eq!(
        (calls[0].path.as_str(), &calls[0].body),
        (calls[1].path.as_str(), &calls[1].body)
    );
}

/// As after a rotation, of which another controller knows already.
#[tokio::test]
async fn a_certificate_that_tls_refuses_after_the_tokens_end_is_shown_again() {
    for endpoints in [1, 2] {
        let answers = |path: &str| match path {
            "/v1/enrol" => Answer::Certificate {
                time: NOW + TOKEN_LIFETIME + 1,
                renew_at: NOW + 2 * TOKEN_LIFETIME,
                authority: Some(Box::new(Authority::new("not the controller's"))),
            },
            other => usual(other),
        };
        let controller = Controller::start(AROUND_NOW, answers).await;
        let all = vec![controller.endpoint(); endpoints];
        let _agent = Agent::start(all, controller.authority(), NOW);
        controller
            .until(|controller| controller.failed_handshakes() >= 4)
            .await;
        assert_eq!(controller.count("/v1/enrol"), 1, "of {endpoints}");
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_in_time_with_the_same_key() {
    let mut enrolled = false;
    let answers = move |path: &str| match path {
        "/v1/enrol" if !std::mem::replace(&mut enrolled, true) => Answer::Certificate {
            time: NOW,
            renew_at: NOW,
            authority: None,
        },
        other => usual(other),
    };
    let controller = Controller::start(AROUND_NOW, answers).await;
    let _agent = Agent::of(&controller);
    controller.until_called("/v1/poll", 1).await;
    let calls = controller.calls();
    let paths: Vec<_> = calls.iter().map(|call| call.path.as_str()).collect();
    assert_eq!(paths, ["/v1/enrol", "/v1/inventory", "/v1/renew", "/v1/poll"]);
    assert_eq!(calls[2].body["csr"], calls[0].body["csr"]);
    assert!(calls[2].certified);
}

#[tokio::test]
async fn a_certificate_is_renewed_also_while_the_inventory_is_refused() {
    let mut is_renewed = false;
    let answers = move |path: &str| match path {
        "/v1/enrol" => Answer::Certificate {
            time: NOW,
            renew_at: NOW,
            authority: None,
        },
        "/v1/renew" => {
            is_renewed = true;
            usual(path)
        }
        "/v1/inventory" if !is_renewed => refuse(503, ProblemKind::Unavailable),
        other => usual(other),
    };
    let controller = Controller::start(AROUND_NOW, answers).await;
    let _agent = Agent::of(&controller);
    controller.until_called("/v1/poll", 1).await;
    let calls = controller.calls();
    let paths: Vec<_> = calls.iter().map(|call| call.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "/v1/enrol",
            "/v1/inventory",
            "/v1/renew",
            "/v1/inventory",
            "/v1/poll"
        ]
    );
    assert_eq!(calls[3].body, calls[1].body, "nothing is collected anew for that");
}
