//! The API server is away while machines report.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use kube::{ResourceExt, api::ListParams};
use muster_proto::kinds::{BareMetalHost, Enrolment, Server, SessionState};
use muster_tests::{
    forward::Path,
    sim::agent::{SimServer, Step},
    stage::{Stage, memory_mib},
};

const SOON: Duration = Duration::from_secs(120);
/// Longer than any patience of the agent (95 s for a poll and its connection) or of the controller (10 s for a request).
const LONG: Duration = Duration::from_secs(100);

/// What a controller says of a call that it cannot carry out for want of the API server.
const CALL_FAILED: &str = "a call could not be carried out";

/// The object that a line with [`CALL_FAILED`] is about: a machine's Server, or its Enrolment while it has none.
fn object(text: &str) -> Option<String> {
    let kinds = ["Server ", "Enrolment "].into_iter();
    let (_, name) = kinds.filter_map(|kind| text.split_once(kind)).next()?;
    let is_of_name = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '-';
    Some(name.chars().take_while(is_of_name).collect())
}

/// The session key of each Server.
fn keys(servers: &BTreeMap<String, Server>) -> BTreeMap<String, String> {
    let key = |server: &Server| Some(server.status.as_ref()?.session.as_ref()?.key.clone());
    let keys = servers
        .iter()
        .map(|(name, server)| (name.clone(), key(server).expect("a session")));
    keys.collect()
}

fn boots(servers: &[SimServer]) -> Vec<u32> {
    servers.iter().map(|server| server.seen().boots).collect()
}

/// Machines 1 to 3 have a session and a report to send, 4 and 5 have a token, 6 has reported and polls.
async fn outage(purpose: &str, how: Path) {
    let (stage, rack) = Stage::holding(purpose).await;
    let mut servers = rack.servers(1..=6);
    let stops = [
        Step::Enrolled,
        Step::Enrolled,
        Step::Enrolled,
        Step::Configured,
        Step::Configured,
    ];
    for (server, stop) in servers.iter_mut().zip(stops) {
        server.stop_at(stop);
        server.power_on();
        server.reaches(stop, SOON).await.expect("the step");
    }
    servers[5].power_on();
    let polling = stage
        .discovered(&servers[5], SOON)
        .await
        .expect("a host with hardware");
    let booted = boots(&servers);
    let before = keys(&stage.servers().await.expect("the Servers"));
    assert_eq!(before.len(), 4);

    stage.network.api.set(how);
    let cut = Instant::now();
    let said = stage.controller.log().len();
    servers.iter().for_each(SimServer::go_on);
    // A further report of one that polls, too.
    servers[5].change(|hardware| hardware.inventory.memory.installed_mib = 4096);
    // The outage lasts until every one of them must have tried.
    let least = if std::env::var_os("MUSTER_FULL").is_some() {
        LONG
    } else {
        Duration::ZERO
    };
    stage
        .until("a call of each that fails", LONG + SOON, async || {
            let lines = stage.controller.log().from(said);
            let failed = lines.iter().filter(|line| line.text.contains(CALL_FAILED));
            let failed: BTreeSet<_> = failed.filter_map(|line| object(&line.text)).collect();
            Ok((failed.len() >= servers.len() && cut.elapsed() >= least).then_some(()))
        })
        .await
        .expect("a call of each fails");
    for server in &servers[..5] {
        assert!(server.seen().step < Step::Reported, "{:?}", server.seen());
    }
    let lost = servers
        .iter()
        .filter(|server| server.seen().step == Step::Refused)
        .count();
    assert_eq!(lost, 0, "nobody gives up");
    stage.network.api.set(Path::Open);

    for server in &servers {
        stage
            .discovered(server, SOON)
            .await
            .expect("a host with hardware");
    }
    assert_eq!(boots(&servers), booted, "nobody had to boot again");
    let grown = |host: &BareMetalHost| memory_mib(host) == Some(4096);
    let host = stage
        .host(servers[5].hardware().boot_mac(), SOON, grown)
        .await
        .expect("the last report");
    assert_eq!(host.uid(), polling.uid());
    let after = stage.servers().await.expect("the Servers");
    for server in after.values() {
        let status = server.status.as_ref().expect("a status");
        assert!(status.inventory.is_some());
        assert_eq!(
            status.session.as_ref().expect("a session").state,
            SessionState::Connected
        );
    }
    let after = keys(&after);
    assert_eq!(after.len(), 6);
    assert!(
        before.iter().all(|(name, key)| after[name] == *key),
        "sessions go on"
    );
    let enrolments = stage
        .api::<Enrolment>()
        .list(&ListParams::default())
        .await
        .expect("a list");
    assert_eq!(enrolments.items.len(), 6);
    assert!(enrolments.items.iter().all(|enrolment| !enrolment.spec.contested));
    assert_eq!(stage.hosts().await.expect("the hosts").len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_the_api_server_is_gone() {
    outage("api-gone", Path::Cut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_the_way_to_the_api_server_swallows_everything() {
    outage("api-silent", Path::Stalled).await;
}
