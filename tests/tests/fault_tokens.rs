//! Tokens that are shown twice, late, by others, or that nobody ever gave out.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{ResourceExt, api::ListParams};
use muster_controller::{
    agents::enrolment_name,
    token::{Claims, LIFETIME, TokenKey},
};
use muster_proto::{
    kinds::Enrolment,
    session::{EnrolResponse, ProblemKind},
};
use muster_tests::{
    bridges::BR0,
    sim::{
        agent::Step,
        hand::Hand,
        hardware::{Hardware, mac},
        rack::Rack,
    },
    stage::{Stage, macs, server_name},
};

const SOON: Duration = Duration::from_secs(60);

fn named(number: u32) -> String {
    server_name(mac(number, 0))
}

async fn enrolments(stage: &Stage) -> Vec<Enrolment> {
    let list = stage.api::<Enrolment>().list(&ListParams::default()).await;
    list.expect("the Enrolments").items
}

/// A hand that holds what a boot of machine `number` was given.
async fn hand(rack: &Rack, number: u32) -> Hand {
    let server = rack.server(Hardware::number(number));
    let config = server.steal_config(SOON).await.expect("a boot archive");
    Hand::new(rack.clients(), config).expect("a key")
}

#[tokio::test(flavor = "multi_thread")]
async fn same_key_with_the_same_token_gets_the_same_certificate() {
    let (stage, rack) = Stage::holding("tok-retry").await;
    let mut hand = hand(&rack, 1).await;
    let identity = Hardware::number(1).identity();
    let first: EnrolResponse = hand.enrol(identity.clone()).await.unwrap().json().unwrap();
    let second: EnrolResponse = hand.enrol(identity).await.unwrap().json().unwrap();
    assert_eq!(second.certificate, first.certificate);
    assert_eq!(second.server, named(1));
    let spent = enrolments(&stage).await;
    assert_eq!(
        (spent.len(), spent[0].name_any()),
        (1, enrolment_name(hand.token()))
    );
    assert!(!spent[0].spec.contested);
    assert_eq!(stage.servers().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_shown_with_another_key_revokes_the_certificate_until_the_machine_boots_again() {
    let (stage, rack) = Stage::holding("tok-replay").await;
    let mut victim = rack.server(Hardware::number(1));
    let config = victim.steal_config(SOON).await.unwrap();
    victim.power_on_with(config.clone());
    let host = stage.discovered(&victim, SOON).await.unwrap();

    let mut thief = Hand::new(rack.clients(), config).unwrap();
    let refused = thief.enrol(Hardware::number(2).identity()).await.unwrap();
    let problem = refused.problem().unwrap();
    assert_eq!((refused.status.as_u16(), problem.kind), (403, ProblemKind::Token));
    assert!(problem.message.contains("another key"), "{problem}");

    let over = victim
        .shows("be refused", SOON, |seen| seen.step == Step::Refused)
        .await;
    let over = over.unwrap();
    assert!(over.trouble.contains("revoked"), "{over:?}");
    let servers = stage.servers().await.unwrap();
    assert!(servers[&named(1)].status.as_ref().unwrap().contested);
    assert_eq!(servers.len(), 1, "the thief has become nobody");
    let spent = enrolments(&stage).await;
    assert!(spent.len() == 1 && spent[0].spec.contested);
    stage.hears(&named(1), "Contested", SOON).await.unwrap();
    stage.hears(&host.name_any(), "Contested", SOON).await.unwrap();
    // The first key is worth nothing any more, either.
    assert_eq!(
        thief
            .enrol(Hardware::number(1).identity())
            .await
            .unwrap()
            .status
            .as_u16(),
        403
    );

    victim.power_on();
    victim.reaches(Step::Reported, SOON).await.unwrap();
    let servers = stage.servers().await.unwrap();
    assert!(!servers[&named(1)].status.as_ref().unwrap().contested);
    assert_eq!(stage.hosts().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_guessed_and_foreign_tokens_are_refused_and_told() {
    let (stage, rack) = Stage::holding("tok-bad").await;
    let mut hand = hand(&rack, 1).await;
    let good = hand.token().to_owned();
    let secret = stage.api::<Secret>().get("muster-token-key").await.unwrap();
    let key = secret.data.unwrap().remove("key").unwrap();
    let now = unix_now();
    let claims = |issued| Claims {
        segment: format!("{}/{}", stage.namespace, BR0.name),
        mac: mac(1, 0),
        issued,
        nonce: "00112233445566778899aabbccddeeff".to_owned(),
    };
    let ours = TokenKey::new(&key.0);
    let expired = ours.seal(&claims(now - LIFETIME - 60));
    let early = ours.seal(&claims(now + 600));
    let far = ours.seal(&claims(now + 7200));
    let foreign = TokenKey::new(&[7; 32]).seal(&claims(now));
    let (body, seal) = good.split_once('.').unwrap();
    let other_seal = foreign.split_once('.').unwrap().1;
    let bad = [
        (expired, "expired"),
        (early.clone(), "in the future"),
        (far, "in the future"),
        (foreign.clone(), "not issued by this installation"),
        (format!("{body}.{other_seal}"), "not issued by this installation"),
        (
            format!("{}.{seal}", body.to_lowercase()),
            "not issued by this installation",
        ),
        ("guess".to_owned(), "not issued by this installation"),
        (String::new(), "not issued by this installation"),
        ("x".repeat(100_000), "not issued by this installation"),
    ];
    for (token, words) in bad {
        hand.take_token(&token);
        let refused = hand.enrol(Hardware::number(1).identity()).await.unwrap();
        let problem = refused.problem().unwrap();
        // That of another edge, whose clock is a little ahead, is good soon.
        let kind = match token == early {
            true => ProblemKind::Unavailable,
            false => ProblemKind::Token,
        };
        assert_eq!(problem.kind, kind, "{problem}");
        assert!(problem.message.contains(words), "{problem} instead of {words}");
    }
    assert!(enrolments(&stage).await.is_empty() && stage.servers().await.unwrap().is_empty());
    let told = stage.until("both kinds of Event", SOON, async || {
        let told = stage.told().await?;
        let mut refused = told
            .iter()
            .filter(|told| told.reason == "TokenRefused" && told.name == BR0.name);
        Ok((refused.clone().any(|told| told.note.contains("did not issue"))
            && refused.any(|told| told.note.contains("outside its one-hour lifetime")))
        .then_some(()))
    });
    told.await.unwrap();

    // None of these attempts has cost the machine its own token.
    hand.take_token(&good);
    assert!(
        hand.enrol(Hardware::number(1).identity())
            .await
            .unwrap()
            .status
            .is_success()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_machines_that_race_for_one_token_neither_keeps_it_and_both_come_in_later() {
    let (stage, rack) = Stage::holding("tok-race").await;
    let mut racers = rack.servers([1, 2]);
    let config = racers[0].steal_config(SOON).await.unwrap();
    for racer in &mut racers {
        racer.power_on_with(config.clone());
    }
    for racer in &racers {
        racer
            .shows("be refused", SOON, |seen| seen.step == Step::Refused)
            .await
            .unwrap();
    }
    let spent = enrolments(&stage).await;
    assert!(spent.len() == 1 && spent[0].spec.contested, "{spent:#?}");
    // The token names the address that booted. Who spends it while the other's name is reserved has that name with a number.
    let servers = stage.servers().await.unwrap();
    let (server, known) = servers.first_key_value().expect("a Server");
    assert!(
        servers.len() == 1 && server.starts_with(&named(1)) && *server == spent[0].spec.server,
        "{servers:#?}"
    );
    assert!(known.status.as_ref().unwrap().contested);
    stage.hears(server, "Contested", SOON).await.unwrap();

    for racer in &mut racers {
        racer.power_on();
    }
    for racer in &racers {
        let host = stage.discovered(racer, SOON).await.unwrap();
        let own: Vec<_> = racer.hardware().identity().macs.into_iter().collect();
        assert_eq!(macs(&host), own);
    }
    // Which of them has the name of the first depends on who won.
    let servers = stage.servers().await.unwrap();
    assert_eq!((servers.len(), stage.hosts().await.unwrap().len()), (2, 2));
    assert!(
        servers
            .values()
            .all(|server| !server.status.as_ref().unwrap().contested)
    );
}

fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.expect("a clock past 1970").as_secs()).expect("a clock past 1970")
}
