//! More machines than there can be: random addresses that ask, and strangers that enrol.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use kube::{ResourceExt, api::ListParams};
use muster_proto::{
    kinds::{Enrolment, Profile, SegmentSpec, UnknownPolicy},
    session::ProblemKind,
};
use muster_tests::{
    bridges::BR0,
    forward::Forwarder,
    sim::{
        agent::{SimServer, Step},
        flood,
        hand::Hand,
        hardware::{Hardware, mac},
        rack::Rack,
    },
    stage::{Stage, segment, server_name},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SOON: Duration = Duration::from_secs(120);

/// What the controller may take more than before the flood, in KiB: its tables of offers, of log lines and of names, in an
/// unoptimised build.
const MORE_KIB: u64 = 32 << 10;

/// How many of the flood's requests the controller has to hear: the kernel drops what does not fit into the socket's buffer.
const HEARD: u64 = 20_000;

/// The most memory that the process `id` has ever had resident, in KiB.
fn peak_kib(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("its status in /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.expect("a number of KiB")
        .split_whitespace()
        .next()
        .expect("a number of KiB")
        .parse()
        .expect("a number of KiB")
}

/// The sum of the metric `name` over all series with `label`, as the admin server at `at` tells it.
async fn counted(at: SocketAddr, name: &str, label: &str) -> io::Result<u64> {
    let mut stream = TcpStream::connect(at).await?;
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    if !answer.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::other(answer));
    }
    let series = answer.lines().filter_map(|line| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let is_meant = labels.starts_with('{') && labels.contains(label);
        is_meant.then(|| value.parse::<u64>().expect("a count"))
    });
    Ok(series.sum())
}

async fn flooded(purpose: &str, unknown: UnknownPolicy) {
    let stage = Stage::lit(purpose, &[(BR0, Profile::Lab, unknown)])
        .await
        .expect("a controller that serves");
    let rack = stage.rack().expect("a rack");
    let id = stage.controller.process().expect("a process");
    // What it takes to serve one machine is no part of it.
    let mut first = rack.server(Hardware::number(1));
    first.power_on();
    stage.host(mac(1, 0), SOON, |_| true).await.expect("a host");
    let admin = Forwarder::inwards(&stage.network.net, stage.controller.admin()).expect("a way to it");
    let discovers = async || {
        let label = "request=\"discover\"";
        let heard = counted(admin.address(), "muster_dhcp_requests_total", label).await;
        heard.ok()
    };
    let heard_before = stage
        .until("its metrics", SOON, async || Ok(discovers().await))
        .await
        .expect("its metrics");
    assert!(heard_before > 0, "what the first machine asked is counted");
    // The peak of its start is no room for more.
    std::fs::write(format!("/proc/{id}/clear_refs"), "5").expect("the right to forget the peak");
    let before = peak_kib(id);

    let wanted = Arc::new(());
    let asking = std::thread::spawn({
        let (clients, wanted) = (rack.clients().clone(), Arc::downgrade(&wanted));
        move || flood::discovers_on_and_on(&clients, &wanted)
    });
    let mut real = rack.server(Hardware::number(2));
    real.power_on();
    stage.host(mac(2, 0), SOON, |_| true).await.expect("a host");
    let is_heard = stage.until("a flood that is heard", SOON, async || {
        let heard = discovers().await;
        Ok(heard.filter(|heard| *heard >= heard_before + HEARD))
    });
    is_heard.await.expect("a flood that is heard");
    // It ends only now.
    drop(wanted);
    asking.join().expect("the thread").expect("the thread");
    // And one after it, when every table is as full as it gets.
    let mut late = rack.server(Hardware::number(3));
    late.power_on();
    stage.host(mac(3, 0), SOON, |_| true).await.expect("a host");

    let after = peak_kib(id);
    // Far more have asked than there are addresses, and none took its offer.
    let recycled = counted(admin.address(), "muster_dhcp_offers_recycled_total", "").await;
    assert!(recycled.expect("its metrics") > 0, "the table of offers was full");
    assert!(
        after < before + MORE_KIB,
        "{before} KiB before, {after} KiB after"
    );
    let names: Vec<_> = stage.servers().await.expect("the Servers").into_keys().collect();
    let expected: Vec<_> = (1..=3).map(|number| server_name(mac(number, 0))).collect();
    assert_eq!(names, expected, "asking makes no object");
    assert_eq!(stage.hosts().await.expect("the hosts").len(), 3);
    let enrolments = stage
        .api::<Enrolment>()
        .list(&ListParams::default())
        .await
        .expect("a list");
    assert_eq!(enrolments.items.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_addresses_on_a_discover_segment_makes_no_object_and_shuts_nobody_out() {
    flooded("flood-discover", UnknownPolicy::Discover).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_addresses_on_a_hold_segment_makes_no_object_and_shuts_nobody_out() {
    flooded("flood-hold", UnknownPolicy::Hold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_enrolments_ends_at_the_quota_and_known_machines_still_come_in() {
    const QUOTA: u32 = 8;
    let mut stage = Stage::dark("flood-enrol", &[BR0]).await.unwrap();
    stage.controller.start().unwrap();
    let spec = SegmentSpec {
        quota: QUOTA,
        ..segment(BR0, Profile::Lab, UnknownPolicy::Hold).unwrap()
    };
    stage.serve(BR0.name, spec).await.unwrap();
    let rack = stage.rack().unwrap();
    let mut known = rack.server(Hardware::number(1));
    known.power_on();
    let host = stage.discovered(&known, SOON).await.unwrap();

    let strangers = rack.servers(100..130);
    let attempts = strangers.iter().map(|stranger| stranger_enrols(&rack, stranger));
    let outcomes = futures::future::join_all(attempts).await;
    let admitted = outcomes.iter().filter(|outcome| outcome.is_none()).count();
    assert_eq!(admitted, usize::try_from(QUOTA).unwrap() - 1);
    let refused = outcomes.iter().flatten().all(|kind| *kind == ProblemKind::Quota);
    assert!(refused, "{outcomes:?}");
    assert_eq!(
        stage.servers().await.unwrap().len(),
        usize::try_from(QUOTA).unwrap()
    );
    stage.hears(BR0.name, "QuotaReached", SOON).await.unwrap();

    // A known machine takes no further place.
    known.power_on();
    known
        .shows("report again", SOON, |seen| {
            seen.step == Step::Reported && seen.reports == 2
        })
        .await
        .unwrap();
    assert_eq!(
        stage
            .hosts()
            .await
            .unwrap()
            .iter()
            .filter(|other| other.uid() == host.uid())
            .count(),
        1
    );
    assert_eq!(
        stage.servers().await.unwrap().len(),
        usize::try_from(QUOTA).unwrap()
    );
}

/// Why `stranger` was refused; none if it was admitted.
async fn stranger_enrols(rack: &Rack, stranger: &SimServer) -> Option<ProblemKind> {
    let config = stranger.steal_config(SOON).await.expect("a boot archive");
    let mut hand = Hand::new(rack.clients(), config).expect("a key");
    let reply = hand
        .enrol(stranger.hardware().identity())
        .await
        .expect("an answer");
    reply.problem().ok().map(|problem| problem.kind)
}
