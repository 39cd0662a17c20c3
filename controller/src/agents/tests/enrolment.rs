use futures::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use muster_proto::kinds::{BareMetalHost, ServerSpec, SessionState};

use super::*;

#[tokio::test]
async fn a_machine_enrols_reports_and_is_known() {
    let mut lab = Lab::new().await;
    let (agent, response) = lab.enrolled(1).await;
    assert_eq!(response.server, name(1));
    assert!(response.renew_at > response.time && response.renew_at < response.time + 3600);
    agent.report(&inventory_of(1)).await.unwrap();

    let status = lab.status(&name(1));
    let session = status.session.unwrap();
    assert_eq!(session.state, SessionState::Connected);
    assert_eq!(
        (session.address.as_str(), session.segment.as_str()),
        ("127.0.0.1", "muster-system/lab")
    );
    assert_eq!(
        (session.trust, session.agent_version.as_str()),
        (Trust::Segment, "0.1.0")
    );
    assert_eq!(status.identity, identity_of(1));
    assert_eq!(status.inventory.unwrap().unpack().system.serial, "SN1");
    assert_eq!(status.inventory_trust, Some(Trust::Segment));
    assert_eq!(lab.enrolments()[0].spec.key, session.key);
    assert_eq!(lab.told(), [(name(1), "Enrolled")]);
    assert_eq!(lab.enrolments_counted("Accepted"), 1);
}

#[tokio::test]
async fn the_same_token_and_key_buy_the_same_certificate() {
    let lab = Lab::new().await;
    let token = lab.token(1);
    let mut agent = lab.agent(1);
    let first = agent.enrol(&token).await.unwrap();
    agent.certificate = None;
    let second = agent.enrol(&token).await.unwrap();
    assert_eq!(
        (first.certificate, first.renew_at),
        (second.certificate, second.renew_at)
    );
    assert_eq!(lab.servers(), [name(1)]);
    assert_eq!(
        (
            lab.enrolments_counted("Accepted"),
            lab.enrolments_counted("Retried")
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn another_key_with_the_token_revokes_the_first_and_a_new_boot_heals() {
    let mut lab = Lab::new().await;
    let token = lab.token(1);
    let mut agent = lab.agent(1);
    agent.enrol(&token).await.unwrap();
    agent.report(&inventory_of(1)).await.unwrap();

    let mut thief = lab.agent(9);
    assert_eq!(
        thief.enrol(&token).await.unwrap_err(),
        refused(403, ProblemKind::Token)
    );
    assert!(lab.status(&name(1)).contested);
    assert!(lab.enrolments()[0].spec.contested);
    assert_eq!(
        agent.report(&inventory_of(1)).await,
        Err(refused(403, ProblemKind::Certificate))
    );
    assert_eq!(
        agent.poll("").await.unwrap_err(),
        refused(403, ProblemKind::Certificate)
    );
    agent.certificate = None;
    assert_eq!(
        agent.enrol(&token).await.unwrap_err(),
        refused(403, ProblemKind::Token),
        "the token is worth nothing now"
    );
    assert_eq!(lab.servers(), [name(1)]);
    assert!(lab.told().contains(&(name(1), "Contested")));
    assert_eq!(lab.enrolments_counted("Reused"), 2);

    let (again, _) = lab.enrolled(1).await;
    assert!(!lab.status(&name(1)).contested);
    again.report(&inventory_of(1)).await.unwrap();
    // The old token, shown once more, has nothing to do with the new session.
    assert_eq!(
        thief.enrol(&token).await.unwrap_err(),
        refused(403, ProblemKind::Token)
    );
    again.report(&inventory_of(1)).await.unwrap();
}

#[tokio::test]
async fn a_token_that_is_shown_again_and_again_costs_the_api_server_no_more_than_a_machine_that_tries_again()
{
    let lab = Lab::new().await;
    let token = lab.token(1);
    let mut agent = lab.agent(1);
    agent.enrol(&token).await.unwrap();
    lab.api.requests();
    let mut refusals = 0;
    for _ in 0..40 {
        agent.certificate = None;
        if let Err(refusal) = agent.enrol(&token).await {
            assert_eq!(refusal.kind, ProblemKind::Unavailable);
            refusals += 1;
        }
    }
    assert!(refusals > 20, "{refusals}");
    assert!(lab.api.requests().len() < 40);
    // The machine that is there goes on, and so does any other.
    agent
        .enrol(&lab.token(1))
        .await
        .unwrap_or_else(|refusal| panic!("{refusal:?}"));
    lab.enrolled(2).await;
}

/// Who stole a token and asks on and on is found out nevertheless.
#[tokio::test]
async fn a_second_key_contests_the_first_however_often_that_one_asks() {
    let lab = Lab::new().await;
    let token = lab.token(1);
    let mut thief = lab.agent(1);
    thief.enrol(&token).await.unwrap();
    let refused_at_last = async {
        loop {
            thief.certificate = None;
            if thief.enrol(&token).await.is_err() {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused_at_last)
        .await
        .unwrap();
    let mut machine = lab.agent(1);
    assert_eq!(
        machine.enrol(&token).await.unwrap_err(),
        refused(403, ProblemKind::Token)
    );
    assert!(lab.status(&name(1)).contested);
}

#[tokio::test]
async fn expired_foreign_and_guessed_tokens_are_refused_and_told() {
    let mut lab = Lab::new().await;
    let mut agent = lab.agent(1);
    let foreign = token::TokenKey::new(&[8; 32]).seal(&token::Claims {
        segment: "muster-system/lab".into(),
        mac: mac(1),
        issued: clock::now(),
        nonce: "00".into(),
    });
    let expired = lab.token_of(1, clock::now() - 3700);
    let (early, far) = (
        lab.token_of(1, clock::now() + 600),
        lab.token_of(1, clock::now() + 7200),
    );
    for token in [expired.as_str(), &early, &far, &foreign, "guessed", "a.b", ""] {
        let refusal = agent.enrol(token).await.unwrap_err();
        // One of another edge, whose clock is ahead of ours or not, is good soon; one from before our clock was set back is not.
        let expected = match token == early {
            true => (503, ProblemKind::Unavailable),
            false => (403, ProblemKind::Token),
        };
        assert_eq!((refusal.status, refusal.kind), expected, "{token}");
    }
    assert_eq!(
        (
            lab.enrolments_counted("Expired"),
            lab.enrolments_counted("Forged")
        ),
        (3, 4)
    );
    let told = vec![("lab".to_owned(), "TokenRefused"); 2];
    assert_eq!(lab.told(), told, "one for forged, one for late or early ones");
    assert!(lab.servers().is_empty() && lab.enrolments().is_empty());
    assert_eq!(
        lab.api.requests(),
        Vec::<String>::new(),
        "a stranger costs the API server nothing"
    );
}

#[tokio::test]
async fn a_token_of_a_deleted_segment_is_refused() {
    let lab = Lab::new().await;
    lab.api.delete("segments", "lab");
    assert_eq!(
        lab.agent(1).enrol(&lab.token(1)).await.unwrap_err(),
        refused(403, ProblemKind::Token)
    );
}

#[tokio::test]
async fn a_token_of_a_deleted_segment_costs_the_api_server_little_however_often_it_is_shown() {
    let lab = Lab::new().await;
    let token = lab.token(1);
    lab.api.delete("segments", "lab");
    for _ in 0..100 {
        lab.agent(1).enrol(&token).await.unwrap_err();
    }
    assert!(lab.api.requests().len() <= 40);
}

/// Whoever has a machine's token and key may say each time that it is another one, and so change what those are that share a signal.
#[tokio::test]
async fn a_retry_that_is_ever_another_machine_changes_others_a_few_times_only() {
    // No end of a session is written meanwhile.
    let patient = Pace {
        silent: DEADLINE,
        answered: DEADLINE,
        closed: DEADLINE,
        ..pace()
    };
    let lab = Lab::with(patient).await;
    for last in 2..=3 {
        lab.enrolled(last).await;
    }
    let (token, mut agent) = (lab.token(1), lab.agent(1));
    agent.enrol(&token).await.unwrap();
    let mut taken = 0;
    let refusal = loop {
        agent.certificate = None;
        agent.identity.system_serial = Some(format!("SN{}", 2 + taken % 2));
        match agent.enrol(&token).await {
            Ok(_) => taken += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!((taken, refusal.kind), (5, ProblemKind::Quota));
    assert!(refusal.retry_after.is_some());
    assert_eq!(lab.status(&name(1)).clashes, [name(2)]);
    lab.api.requests();
    agent.enrol(&token).await.unwrap_err();
    let asked = lab.api.requests();
    assert!(
        !asked.iter().any(|request| request.starts_with("PATCH")),
        "{asked:?}"
    );
    // One that says what is known already is answered as ever.
    agent.identity.system_serial = Some("SN2".to_owned());
    agent.enrol(&token).await.unwrap();
}

#[tokio::test]
async fn another_major_version_and_a_bad_request_are_final() {
    let lab = Lab::new().await;
    let agent = lab.agent(1);
    let mut request = agent.enrol_request(&lab.token(1));
    request.protocol = "2.0".into();
    assert_eq!(
        agent.call("enrol", &json!(request)).await,
        Err(refused(426, ProblemKind::Version))
    );
    request.protocol = "1.7".into();
    request.csr = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".into();
    assert_eq!(
        agent.call("enrol", &json!(request)).await,
        Err(refused(400, ProblemKind::Malformed))
    );
    assert_eq!(
        agent.call("enrol", &json!({ "token": 5 })).await,
        Err(refused(400, ProblemKind::Malformed))
    );
    for body in [&b"{\"token\": \"\xff\xfe\"}"[..], b"{", b""] {
        let answer = agent
            .send("POST", "/v1/enrol", Full::new(Bytes::from_static(body)))
            .await
            .unwrap();
        assert_eq!(answer, Err(refused(400, ProblemKind::Malformed)));
    }
    let empty = || Full::new(Bytes::new());
    assert_eq!(
        agent
            .send("GET", "/v1/enrol", empty())
            .await
            .unwrap()
            .unwrap_err()
            .status,
        405
    );
    assert_eq!(
        agent
            .send("POST", "/../etc/passwd", empty())
            .await
            .unwrap()
            .unwrap_err()
            .status,
        404
    );
    let mut request = agent.enrol_request(&lab.token(1));
    request.protocol = "1.7".into();
    agent.call("enrol", &json!(request)).await.unwrap();
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_with_a_reason() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    let chunk = Bytes::from(vec![b' '; 1 << 20]);
    let hundred_mib = || {
        let chunk = chunk.clone();
        StreamBody::new(stream::iter(
            (0..100).map(move |_| Ok::<_, std::io::Error>(Frame::data(chunk.clone()))),
        ))
    };
    let answer = agent.send("POST", "/v1/inventory", hundred_mib()).await.unwrap();
    assert_eq!(answer, Err(refused(413, ProblemKind::TooLarge)));
    let announced = Full::new(Bytes::from(vec![b' '; (8 << 20) + 1]));
    let answer = agent.send("POST", "/v1/inventory", announced).await.unwrap();
    assert_eq!(answer, Err(refused(413, ProblemKind::TooLarge)));
    let answer = lab
        .agent(2)
        .send("POST", "/v1/enrol", Full::new(Bytes::from(vec![b' '; 1 << 20])))
        .await
        .unwrap();
    assert_eq!(
        answer,
        Err(refused(413, ProblemKind::TooLarge)),
        "a stranger may send less"
    );
    agent.report(&inventory_of(1)).await.unwrap();
}

#[tokio::test]
async fn strangers_with_much_to_say_keep_no_machine_of_the_usual_size_out() {
    let lab = Lab::new().await;
    let mut agent = lab.agent(1);
    let token = lab.token(1);
    let mut large = json!(agent.enrol_request(&token)).to_string().into_bytes();
    large.resize(100 << 10, b' ');
    let large = Full::new(Bytes::from(large));
    let edge = lab.edge.upgrade().unwrap();
    let room = &edge.bounds.large_enrolments;
    let all = room.available_permits().try_into().unwrap();
    let taken = room.try_acquire_many(all).unwrap();
    let refusal = agent.send("POST", "/v1/enrol", large.clone()).await.unwrap();
    let refusal = refusal.unwrap_err();
    assert_eq!((refusal.status, refusal.kind), (503, ProblemKind::Unavailable));
    agent.enrol(&token).await.unwrap();
    drop(taken);
    agent.certificate = None;
    let answer = agent.send("POST", "/v1/enrol", large).await.unwrap();
    assert!(answer.is_ok(), "{answer:?}");
}

#[tokio::test]
async fn a_certificate_speaks_for_its_own_server_only() {
    let lab = Lab::new().await;
    let (one, _) = lab.enrolled(1).await;
    let (two, _) = lab.enrolled(2).await;
    one.report(&inventory_of(1)).await.unwrap();
    let before = lab.server(&name(1));
    two.report(&inventory_of(1)).await.unwrap();
    let after = lab.server(&name(1));
    assert_eq!(
        after.status.as_ref().unwrap().identity,
        before.status.as_ref().unwrap().identity
    );
    assert_eq!(
        after.status.as_ref().unwrap().inventory,
        before.status.as_ref().unwrap().inventory
    );
    assert_eq!(
        after.status.unwrap().clashes,
        [name(2)],
        "what two claims is shown on both"
    );
    let status = lab.status(&name(2));
    assert_eq!(status.clashes, [name(1)]);
    assert_eq!(status.identity, identity_of(2), "and changes not who they are");

    let mut mixed = lab.agent(3);
    mixed.certificate = one.certificate.clone();
    mixed
        .send("POST", "/v1/poll", Full::new(Bytes::new()))
        .await
        .unwrap_err();
}

#[tokio::test]
async fn without_a_certificate_of_ours_only_enrolling_is_possible() {
    let lab = Lab::new().await;
    let mut agent = lab.agent(1);
    for call in ["renew", "inventory", "poll", "log"] {
        assert_eq!(
            agent.call(call, &json!({})).await,
            Err(refused(403, ProblemKind::Certificate)),
            "{call}"
        );
    }
    let request = super::super::ca::Request::parse(&agent.csr()).unwrap();
    let foreign = new_keys()
        .1
        .ca
        .issue_client(&request, &name(1), "token-x", clock::now())
        .unwrap();
    agent.certificate = Some(foreign);
    assert!(
        agent
            .send("POST", "/v1/poll", Full::new(Bytes::from_static(b"{}")))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_ended_certificate_is_told_to_boot_again() {
    let lab = Lab::new().await;
    let (mut agent, _) = lab.enrolled(1).await;
    let request = super::super::ca::Request::parse(&agent.csr()).unwrap();
    let ca = Arc::clone(&lab.keys.borrow().ca);
    agent.certificate = Some(
        ca.issue_client(
            &request,
            &name(1),
            "token-x",
            clock::now() - 2 * super::super::ca::CLIENT_LIFETIME,
        )
        .unwrap(),
    );
    assert_eq!(
        agent.poll("").await.unwrap_err(),
        refused(403, ProblemKind::Certificate)
    );
}

/// It was issued before this edge's clock was set 13 h ahead.
#[tokio::test]
async fn a_certificate_has_ended_only_if_the_api_server_says_so_too() {
    let lab = Lab::hasty().await;
    let (mut agent, _) = lab.enrolled(1).await;
    let ahead = 13 * 3600;
    let request = super::super::ca::Request::parse(&agent.csr()).unwrap();
    let session = lab.enrolments()[0].metadata.name.clone().unwrap();
    let ca = Arc::clone(&lab.keys.borrow().ca);
    let old = ca
        .issue_client(&request, &name(1), &session, clock::now() - ahead)
        .unwrap();
    agent.certificate = Some(old.clone());
    lab.hear_time(-ahead);
    agent.poll("").await.unwrap();
    let renewed = agent.call("renew", &json!({ "csr": agent.csr() })).await.unwrap();
    let renewed: EnrolResponse = serde_json::from_value(renewed).unwrap();
    agent.certificate = Some(renewed.certificate);
    agent.report(&inventory_of(1)).await.unwrap();
    // It was right, after all.
    lab.hear_time(0);
    agent.report(&inventory_of(1)).await.unwrap();
    agent.certificate = Some(old);
    assert_eq!(
        agent.poll("").await.unwrap_err(),
        refused(403, ProblemKind::Certificate)
    );
}

/// The edge that issued it has another clock, or this one's was set back.
#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_taken() {
    let lab = Lab::new().await;
    let (mut agent, _) = lab.enrolled(1).await;
    let request = super::super::ca::Request::parse(&agent.csr()).unwrap();
    let session = lab.enrolments()[0].metadata.name.clone().unwrap();
    let ca = Arc::clone(&lab.keys.borrow().ca);
    agent.certificate = Some(
        ca.issue_client(&request, &name(1), &session, clock::now() + 3 * 3600)
            .unwrap(),
    );
    agent.report(&inventory_of(1)).await.unwrap();
}

#[tokio::test]
async fn a_deleted_server_ends_the_session() {
    let lab = Lab::new().await;
    let (agent, _) = lab.enrolled(1).await;
    lab.api.delete("servers", &name(1));
    assert_eq!(
        agent.report(&inventory_of(1)).await,
        Err(refused(403, ProblemKind::Certificate))
    );
    assert!(lab.servers().is_empty());
}

#[tokio::test]
async fn two_machines_that_race_for_one_token_both_lose_it() {
    let lab = Lab::new().await;
    for round in 0..10 {
        let token = lab.token(1);
        let (mut one, mut two) = (lab.agent(1), lab.agent(2));
        let (first, second) = tokio::join!(one.enrol(&token), two.enrol(&token));
        assert!(first.is_err() || second.is_err(), "round {round}");
        for (agent, result) in [(&one, &first), (&two, &second)] {
            match result {
                Ok(_) => assert_eq!(
                    agent.poll("").await.unwrap_err(),
                    refused(403, ProblemKind::Certificate)
                ),
                Err(refusal) => assert_eq!(*refusal, refused(403, ProblemKind::Token)),
            }
        }
        let spent = lab.enrolments();
        assert!(spent.iter().all(|enrolment| enrolment.spec.contested));
        assert!(lab.status(&spent[0].spec.server).contested);
    }
}

#[tokio::test]
async fn a_second_key_between_any_two_steps_of_the_first_contests_it() {
    let server = format!("/servers/{}/status", name(1));
    for (method, path) in [("POST", "/servers"), ("PATCH", server.as_str())] {
        let lab = Lab::new().await;
        let token = lab.token(1);
        lab.api.hold(method, path);
        let mut first = lab.agent(1);
        let shown = token.clone();
        let first = tokio::spawn(async move { first.enrol(&shown).await });
        lab.until("the first has come to this step", |lab| lab.api.is_held())
            .await;
        let second = lab.agent(2).enrol(&token).await;
        assert_eq!(
            second.unwrap_err(),
            refused(403, ProblemKind::Token),
            "{method} {path}"
        );
        lab.api.release();
        let first = first.await.unwrap();
        assert_eq!(
            first.unwrap_err(),
            refused(403, ProblemKind::Token),
            "{method} {path}"
        );
        assert!(
            lab.enrolments()[0].spec.contested && lab.status(&name(1)).contested,
            "{method} {path}"
        );
        assert_eq!(lab.servers(), [name(1)]);
    }
}

#[tokio::test]
async fn a_token_that_another_replica_contests_before_there_is_a_session_buys_nothing() {
    let mut lab = Lab::new().await;
    let token = lab.token(1);
    lab.api.hold("PATCH", &format!("/servers/{}/status", name(1)));
    let mut agent = lab.agent(1);
    let shown = token.clone();
    let enrolling = tokio::spawn(async move { (agent.enrol(&shown).await, agent) });
    lab.until("the session is about to be written", |lab| lab.api.is_held())
        .await;
    // The other one finds no session to mark, and this one does not see in time that it was there.
    lab.api.set_lagging(true);
    let contested = json!({"spec": {"contested": true}});
    lab.api.edit("enrolments", &enrolment_name(&token), &contested);
    lab.api.release();
    let (enrolled, agent) = enrolling.await.unwrap();
    enrolled.unwrap();
    assert!(!lab.status(&name(1)).contested);
    lab.api.set_lagging(false);
    assert_eq!(
        agent.report(&inventory_of(1)).await,
        Err(refused(403, ProblemKind::Certificate))
    );
    assert!(lab.status(&name(1)).contested && lab.status(&name(1)).inventory.is_none());
    assert!(lab.told().contains(&(name(1), "Contested")));
    // Each further call is refused as well, and costs nothing.
    lab.api.requests();
    assert!(agent.poll("").await.is_err());
    assert_eq!(lab.api.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn a_machine_takes_up_what_another_replica_made_for_it_and_takes_no_other_machines_place() {
    for (theirs, taken_up) in [(1, true), (2, false)] {
        let lab = Lab::new().await;
        lab.api.set_lagging(true);
        let mut made = ServerKind::new(&name(1), ServerSpec::default());
        let status = made.status.get_or_insert_default();
        status.identity = identity_of(theirs);
        status.identity.macs = [mac(1)].into();
        lab.api.put("servers", &made);
        let enrolled = lab.agent(1).enrol(&lab.token(1)).await;
        match taken_up {
            true => drop(enrolled.unwrap()),
            false => assert_eq!(enrolled.unwrap_err(), refused(403, ProblemKind::Token)),
        }
        let status = lab.status(&name(1));
        assert_eq!(status.session.is_some(), taken_up, "{status:#?}");
        assert_eq!(
            status.identity.system_serial,
            identity_of(theirs).system_serial,
            "{status:#?}"
        );
    }
}

#[tokio::test]
async fn a_new_machine_costs_four_requests_from_its_token_to_its_inventory() {
    // Nobody is given up for lost while the test runs.
    let patient = Pace {
        silent: DEADLINE,
        answered: DEADLINE,
        closed: DEADLINE,
        ..pace()
    };
    let lab = Lab::with(patient).await;
    let asked = |lab: &Lab| -> Vec<String> {
        let all = lab.api.requests().into_iter();
        let last = |request: &str| {
            let (method, path) = request.split_once(' ').unwrap();
            let path = path.rsplit_once("/namespaces/muster-system/").unwrap().1;
            let name = name(1);
            format!("{method} {}", path.replace(&name, "it"))
        };
        all.map(|request| last(&request)).collect()
    };
    let (agent, _) = lab.enrolled(1).await;
    agent.report(&inventory_of(1)).await.unwrap();
    let new = [
        "POST enrolments",
        "POST servers",
        "PATCH servers/it/status",
        "PATCH servers/it/status",
    ];
    assert_eq!(asked(&lab), new);
    let (again, _) = lab.enrolled(1).await;
    again.report(&inventory_of(1)).await.unwrap();
    assert_eq!(
        asked(&lab),
        ["POST enrolments", "PATCH servers/it/status"],
        "known, and as it was"
    );
}

#[tokio::test]
async fn a_new_machine_belongs_to_the_host_that_declares_its_boot_address_from_its_first_moment_on() {
    let declare = |lab: &Lab, name: &str, last: u8| {
        let mut host = BareMetalHost::new(name, Default::default());
        host.metadata.namespace = Some("metal".to_owned());
        host.metadata.uid = Some(format!("uid-{name}"));
        host.spec.boot_mac_address = Some(mac(last).to_string());
        lab.api.put("baremetalhosts", &host);
    };
    let lab = Lab::new().await;
    declare(&lab, "one", 1);
    // Another NIC of the machine than the one that it boots from.
    declare(&lab, "three", 3);
    for last in [4, 4] {
        declare(
            &lab,
            &format!("four-{}", lab.api.all::<BareMetalHost>("baremetalhosts").len()),
            last,
        );
    }
    for last in [1, 2, 4] {
        let mut agent = lab.agent(last);
        if last == 2 {
            agent.identity.macs.insert(mac(3));
        }
        agent.enrol(&lab.token(last)).await.unwrap();
    }
    let host = |last| lab.server(&name(last)).spec.host;
    let one = host(1).unwrap();
    assert_eq!(
        (one.namespace.as_str(), one.name.as_str(), one.uid.as_str()),
        ("metal", "one", "uid-one")
    );
    assert_eq!(
        (host(2), host(4)),
        (None, None),
        "what is in doubt is for discovery"
    );
}

#[tokio::test]
async fn a_full_segment_takes_known_machines_only() {
    let mut lab = Lab::new().await;
    for last in 1..=5 {
        lab.enrolled(last).await;
    }
    lab.told();
    let mut sixth = lab.agent(6);
    let token = lab.token(6);
    let refusal = sixth.enrol(&token).await.unwrap_err();
    assert_eq!((refusal.status, refusal.kind), (429, ProblemKind::Quota));
    assert!(refusal.retry_after.is_some());
    assert_eq!(lab.told(), [("lab".to_owned(), "QuotaReached")]);
    assert_eq!(lab.servers().len(), 5);
    lab.enrolled(3).await;
    lab.api.delete("servers", &name(1));
    lab.crash_and_restart().await;
    sixth.address = lab.address;
    sixth.enrol(&token).await.unwrap();
    assert_eq!(lab.servers().len(), 5);
}

#[tokio::test]
async fn one_machine_cannot_fill_the_cluster_with_enrolments() {
    let lab = Lab::new().await;
    let mut refused = None;
    for _ in 0..70 {
        if let Err(refusal) = lab.agent(1).enrol(&lab.token(1)).await {
            refused = Some(refusal.kind);
            break;
        }
    }
    assert_eq!(refused, Some(ProblemKind::Quota));
    assert_eq!(lab.enrolments().len(), 60);
}

#[tokio::test]
async fn one_machine_with_two_tokens_at_once_is_one_server() {
    let lab = Lab::new().await;
    lab.api.set_lagging(true);
    let mut agents: Vec<Agent> = (0..8).map(|_| lab.agent(1)).collect();
    for (at, agent) in agents.iter_mut().enumerate() {
        // Two NICs: the machine is known by either.
        agent.identity.macs.insert(mac(2));
        agent.identity.system_serial = (at % 2 == 0).then(|| "SN1".to_owned());
    }
    let tokens: Vec<String> = (0..agents.len())
        .map(|at| lab.token(if at % 2 == 0 { 1 } else { 2 }))
        .collect();
    let enrol = |(agent, token): (Agent, String)| async move {
        let request = json!(agent.enrol_request(&token));
        agent.call("enrol", &request).await
    };
    let tried = futures::future::join_all(agents.into_iter().zip(tokens).map(enrol)).await;
    assert!(tried.iter().all(Result::is_ok), "{tried:?}");
    assert_eq!(lab.servers().len(), 1);
}

#[tokio::test]
async fn two_machines_with_one_uuid_are_two_servers_that_say_so() {
    let mut lab = Lab::new().await;
    let (mut one, mut two) = (lab.agent(1), lab.agent(2));
    two.identity.system_uuid = one.identity.system_uuid.clone();
    one.enrol(&lab.token(1)).await.unwrap();
    two.enrol(&lab.token(2)).await.unwrap();
    assert_eq!(lab.status(&name(1)).clashes, [name(2)]);
    assert_eq!(lab.status(&name(2)).clashes, [name(1)]);
    // Discovery tells people, once and in its own words.
    let told = lab.told();
    assert!(
        told.iter().all(|(_, reason)| *reason != "IdentityClash"),
        "{told:?}"
    );
    two.identity.system_uuid = identity_of(2).system_uuid;
    two.certificate = None;
    two.enrol(&lab.token(2)).await.unwrap();
    assert!(lab.status(&name(1)).clashes.is_empty() && lab.status(&name(2)).clashes.is_empty());
}

/// Servers of machines that are not here, with the UUID of machine 1.
fn put_twins(lab: &Lab, numbers: impl IntoIterator<Item = u8>) {
    for last in numbers {
        let mut server = ServerKind::new(&name(last), ServerSpec::default());
        server.status.get_or_insert_default().identity = Identity {
            system_uuid: identity_of(1).system_uuid,
            ..identity_of(last)
        };
        lab.api.put("servers", &server);
    }
}

#[tokio::test]
async fn of_hundreds_of_machines_with_one_uuid_each_shows_some_and_writes_to_no_more() {
    let lab = Lab::new().await;
    put_twins(&lab, 1..=150);
    let first: Vec<String> = (1..=64).map(name).collect();
    let others: Vec<String> = (0..64).map(|number| format!("other-{number:02}")).collect();
    let shows = |last: u8, clashes: &[String]| {
        let edit = json!({ "status": { "clashes": clashes } });
        lab.api.edit("servers", &name(last), &edit);
    };
    let new = [name(200)];
    shows(1, &others);
    shows(150, &new);
    let mut agent = lab.agent(200);
    agent.identity.system_uuid = identity_of(1).system_uuid;
    agent.enrol(&lab.token(200)).await.unwrap();
    assert_eq!(lab.status(&name(200)).clashes, first);
    assert_eq!(lab.status(&name(2)).clashes, new);
    assert_eq!(lab.status(&name(64)).clashes, new);
    assert!(lab.status(&name(65)).clashes.is_empty());
    assert_eq!(lab.status(&name(1)).clashes, others, "it has its share");
    assert_eq!(
        lab.status(&name(150)).clashes,
        new,
        "what is not among the first ones has not ended"
    );
}

#[tokio::test]
async fn a_report_adds_no_more_clashes_than_are_kept_and_ends_none() {
    let lab = Lab::new().await;
    put_twins(&lab, [150]);
    let mut agent = lab.agent(200);
    agent.identity.system_uuid = identity_of(1).system_uuid;
    agent.enrol(&lab.token(200)).await.unwrap();
    assert_eq!(lab.status(&name(200)).clashes, [name(150)]);
    put_twins(&lab, 1..=100);
    let mut inventory = inventory_of(200);
    inventory.identity = agent.identity.clone();
    agent.report(&inventory).await.unwrap();
    let expected: Vec<String> = (1..=63).chain([150]).map(name).collect();
    assert_eq!(lab.status(&name(200)).clashes, expected);
}

#[tokio::test]
async fn a_nic_that_moved_is_an_alias_of_the_machine_it_is_in() {
    let lab = Lab::new().await;
    let (one, _) = lab.enrolled(1).await;
    drop(one);
    lab.until("the first machine is gone", |lab| {
        lab.status(&name(1)).session.unwrap().state == SessionState::Disconnected
    })
    .await;
    let mut two = lab.agent(2);
    two.identity.macs.insert(mac(1));
    two.enrol(&lab.token(2)).await.unwrap();
    assert!(lab.status(&name(1)).identity.macs.is_empty());
    assert_eq!(lab.status(&name(2)).identity.macs.len(), 2);
}

#[tokio::test]
async fn a_careless_segment_gives_away_no_machine_of_another_one() {
    let lab = Lab::new().await;
    lab.put_segment("careless", Some(Trust::Segment));
    let (one, _) = lab.enrolled(1).await;
    drop(one);
    lab.until("the machine is gone", |lab| {
        lab.status(&name(1)).session.unwrap().state == SessionState::Disconnected
    })
    .await;
    let before = lab.status(&name(1));
    // It claims to be the first machine, and boots as that or as itself.
    for (boot, is) in [(mac(1), format!("{}-2", name(1))), (mac(9), name(9))] {
        let mut thief = lab.agent(1);
        let response = thief.enrol(&lab.token_on("careless", boot)).await.unwrap();
        assert_eq!(response.server, is);
        assert!(lab.status(&is).clashes.contains(&name(1)), "{is}");
    }
    let after = lab.status(&name(1));
    assert_eq!(
        (&after.identity, &after.session),
        (&before.identity, &before.session)
    );
    // On its own Segment it is itself, and it goes to the other one once its Server is deleted.
    lab.agent(1).enrol(&lab.token(1)).await.unwrap();
    assert_eq!(lab.status(&name(1)).session.unwrap().segment, "muster-system/lab");
}

/// Whoever was first on a careless Segment with its address does not keep its host.
#[tokio::test]
async fn a_machine_that_boots_where_more_trust_is_asked_for_takes_its_place_back() {
    let lab = Lab::new().await;
    lab.put_segment("careless", Some(Trust::Segment));
    let mut squatter = lab.agent(1);
    squatter.identity.system_uuid = None;
    squatter.enrol(&lab.token_on("careless", mac(1))).await.unwrap();
    let (_machine, response) = lab.enrolled(1).await;
    assert_eq!(response.server, name(1));
    assert_eq!(lab.status(&name(1)).session.unwrap().segment, "muster-system/lab");
}

#[tokio::test]
async fn where_the_segment_of_a_machine_is_gone_nobody_takes_the_place_of_one_that_is_connected() {
    let lab = Lab::new().await;
    let (known, _) = lab.enrolled(1).await;
    lab.put_segment("careless", Some(Trust::Segment));
    lab.api.delete("segments", "lab");
    let mut thief = lab.agent(1);
    thief.identity.system_uuid = None;
    let response = thief.enrol(&lab.token_on("careless", mac(1))).await.unwrap();
    assert_ne!(response.server, name(1));
    drop(known);
}

#[tokio::test]
async fn an_idle_machine_that_is_moved_to_a_segment_like_its_own_is_itself() {
    let lab = Lab::new().await;
    lab.put_segment("next", None);
    let (one, _) = lab.enrolled(1).await;
    drop(one);
    lab.until("the machine is gone", |lab| {
        lab.status(&name(1)).session.unwrap().state == SessionState::Disconnected
    })
    .await;
    let response = lab.agent(1).enrol(&lab.token_on("next", mac(1))).await.unwrap();
    assert_eq!(response.server, name(1));
    assert_eq!(
        lab.status(&name(1)).session.unwrap().segment,
        "muster-system/next"
    );
}

#[tokio::test]
async fn a_server_that_exists_without_a_status_is_taken_up() {
    let lab = Lab::new().await;
    lab.api
        .put("servers", &ServerKind::new(&name(1), ServerSpec::default()));
    lab.enrolled(1).await;
    assert_eq!(lab.servers(), [name(1)]);
}

#[tokio::test]
async fn a_segment_that_ignores_unknown_machines_enrols_none_of_them() {
    let lab = Lab::new().await;
    lab.enrolled(1).await;
    lab.api
        .edit("segments", "lab", &json!({ "spec": { "unknown": "ignore" } }));
    let refusal = lab.agent(2).enrol(&lab.token(2)).await.unwrap_err();
    assert_eq!(refusal.kind, ProblemKind::Token);
    assert_eq!(lab.servers(), [name(1)]);
    assert_eq!(lab.enrolments().len(), 1, "nothing was spent");
    assert_eq!(lab.enrolments_counted("Unwanted"), 1);
    // One that is known goes on to be served.
    lab.agent(1).enrol(&lab.token(1)).await.unwrap();
}

#[tokio::test]
async fn a_declared_host_that_is_worked_on_enrols_where_unknown_machines_are_ignored() {
    let lab = Lab::new().await;
    lab.api
        .edit("segments", "lab", &json!({ "spec": { "unknown": "ignore" } }));
    let declare = |last: u8, state: &str| {
        let mut host = BareMetalHost::new(&format!("host-{last}"), Default::default());
        host.metadata.namespace = Some("metal".to_owned());
        host.spec.boot_mac_address = Some(mac(last).to_string());
        state.clone_into(&mut host.status.get_or_insert_default().provisioning.state);
        lab.api.put("baremetalhosts", &host);
    };
    for (last, state) in [
        (1, "inspecting"),
        (2, "preparing"),
        (3, "provisioning"),
        (4, "deprovisioning"),
    ] {
        declare(last, state);
        let enrolled = lab.agent(last).enrol(&lab.token(last)).await;
        assert!(enrolled.is_ok(), "{state}: {enrolled:?}");
    }
}

#[tokio::test]
async fn a_server_that_became_another_machines_meanwhile_is_left_to_it() {
    let lab = Lab::new().await;
    let path = format!("/servers/{}/status", name(1));
    lab.api.hold("PATCH", &path);
    let (mut agent, token) = (lab.agent(1), lab.token(1));
    let enrolled = tokio::spawn(async move { agent.enrol(&token).await });
    lab.until("it is to be written", |lab| lab.api.is_held()).await;
    let mut theirs = json!(identity_of(2));
    theirs["macs"] = json!([mac(1)]);
    lab.api
        .edit("servers", &name(1), &json!({ "status": { "identity": theirs } }));
    lab.api.release();
    let refusal = enrolled.await.unwrap().unwrap_err();
    assert_eq!(refusal, refused(403, ProblemKind::Token));
    assert_eq!(json!(lab.status(&name(1)).identity), theirs);
}

#[tokio::test]
async fn a_machine_that_has_just_connected_elsewhere_loses_its_place_to_nobody() {
    let lab = Lab::new().await;
    let (known, _) = lab.enrolled(1).await;
    let state = |state: &str| json!({ "status": { "session": { "state": state } } });
    lab.api.edit("servers", &name(1), &state("Disconnected"));
    // This replica's copies do not show yet that it is back at another one.
    lab.written.forget(&name(1));
    lab.api.set_lagging(true);
    lab.api.edit("servers", &name(1), &state("Connected"));
    let key = lab.status(&name(1)).session.unwrap().key;
    let mut twin = lab.agent(1);
    twin.identity.macs = [mac(2)].into();
    let refused = twin.enrol(&lab.token(2)).await.unwrap_err();
    // Its token names that Server: it never buys another one.
    assert_eq!(refused.kind, ProblemKind::Token, "{refused:?}");
    assert_eq!(lab.status(&name(1)).session.unwrap().key, key);
    // The machine itself boots anew.
    let mut again = lab.agent(1);
    again.enrol(&lab.token(1)).await.unwrap();
    drop(known);
}
