//! What stands in the way of serving a network is said where people look: in the Segment's conditions and in the log.

use std::{
    net::{TcpListener, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    api::{Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use muster_proto::{
    Mac,
    kinds::{DhcpMode, Profile, Segment, UnknownPolicy},
};
use muster_tests::{
    bridges::{BR0, BR1, Bridge},
    dnsmasq::Dnsmasq,
    sim::{
        Clients,
        dhcp::{Asker, Client},
    },
    stage::{Stage, segment, server_name},
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0xf5, 0, number])
}

/// The condition `kind` of Segment `name`, as soon as its status is `status`.
async fn condition(stage: &Stage, name: &str, kind: &str, status: &str) -> Result<Condition> {
    condition_that(stage, name, |condition| {
        condition.type_ == kind && condition.status == status
    })
    .await
    .with_context(|| format!("{kind} of {name} did not become {status}"))
}

/// The condition of Segment `name` that `is_it`, as soon as there is one.
async fn condition_that(stage: &Stage, name: &str, is_it: impl Fn(&Condition) -> bool) -> Result<Condition> {
    let find = |segment: &Segment| {
        let conditions = &segment.status.as_ref()?.conditions;
        conditions.iter().find(|condition| is_it(condition)).cloned()
    };
    let wanted = |segment: Option<&Segment>| segment.and_then(find).is_some();
    let reached = tokio::time::timeout(SOON, await_condition(stage.api::<Segment>(), name, wanted)).await;
    match reached.map(|found| found.map(|segment| segment.as_ref().and_then(find))) {
        Ok(Ok(Some(condition))) => Ok(condition),
        _ => bail!(
            "the status of {name} is {:#?}",
            stage.api::<Segment>().get(name).await?.status
        ),
    }
}

/// A dnsmasq on a computer of its own on `bridge`, the second address of its network.
async fn dnsmasq_on(stage: &Stage, bridge: Bridge, arguments: &[&str]) -> Result<Dnsmasq> {
    let (network, _) = bridge.address.split_once(".1/").unwrap_or((bridge.address, ""));
    let theirs = stage
        .network
        .net
        .neighbour(bridge.name, "eth0", &format!("{network}.2/24"))?;
    let arguments: Vec<_> = arguments.iter().map(|&one| one.to_owned()).collect();
    let range = format!("{network}.200,{network}.250");
    let dir = stage.scratch.sub(bridge.name)?;
    Dnsmasq::start(&theirs, "eth0", &range, &dir, &arguments).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_on_a_segment_is_reported() {
    let mut stage = Stage::lit("alone", &[(BR0, Profile::Lab, UnknownPolicy::Hold)])
        .await
        .unwrap();
    let mut proxy = segment(BR1, Profile::Lab, UnknownPolicy::Hold).unwrap();
    proxy.dhcp.mode = DhcpMode::Proxy;
    proxy.dhcp.ranges.clear();
    stage.network.net.bridge(BR1.name, Some(BR1.address)).unwrap();
    stage.serve(BR1.name, proxy).await.unwrap();
    condition(&stage, BR0.name, "Alone", "True").await.unwrap();

    // Where we give the addresses, a second one who does is one too many.
    let _second = dnsmasq_on(&stage, BR0, &[]).await.unwrap();
    let clients = Clients::behind(&stage.network.net, BR0.name, "10.77.0.3/24").unwrap();
    let system = Client::new(&clients, mac(1), Asker::Plain);
    system.discover(SOON).await.unwrap();
    let said = condition(&stage, BR0.name, "Alone", "False").await.unwrap();
    assert_eq!(said.reason, "AnotherServer");
    assert!(said.message.contains("DHCP server 10.77.0.2"), "{}", said.message);
    let log = stage.controller.log();
    log.wait_for("another server answers on this segment", 0, SOON)
        .await
        .unwrap();

    // Beside a proxy another server gives the addresses; only a second boot file is one too many.
    let clients = Clients::behind(&stage.network.net, BR1.name, "10.78.0.3/24").unwrap();
    let firmware = Client::new(&clients, mac(2), Asker::Pxe(7));
    let theirs = dnsmasq_on(&stage, BR1, &["--log-dhcp"]).await.unwrap();
    let answered = |lease: &muster_tests::sim::dhcp::Lease| lease.server.map(|server| server.to_string());
    let system = Client::new(&clients, mac(3), Asker::Plain);
    let lease = system.lease(SOON).await.unwrap();
    assert_eq!(answered(&lease).as_deref(), Some("10.78.0.2"));
    firmware.discover(SOON).await.unwrap();
    condition(&stage, BR1.name, "Alone", "True").await.unwrap();
    drop(theirs);
    let boot = ["--dhcp-boot=theirs.efi,them,10.78.0.2"];
    let _theirs = dnsmasq_on(&stage, BR1, &boot).await.unwrap();
    system.lease(SOON).await.unwrap();
    firmware.discover(SOON).await.unwrap();
    let said = condition(&stage, BR1.name, "Alone", "False").await.unwrap();
    assert!(said.message.contains("PXE server 10.78.0.2"), "{}", said.message);
    assert!(!said.message.contains("DHCP server"), "{}", said.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_port_is_reported_and_served_once_it_is_free() {
    let mut stage = Stage::dark("taken", &[BR0]).await.unwrap();
    let squatter = stage.network.net.run(|| UdpSocket::bind("0.0.0.0:67")).unwrap();
    stage.controller.start().unwrap();
    let spec = segment(BR0, Profile::Lab, UnknownPolicy::Hold).unwrap();
    stage
        .api()
        .create(&PostParams::default(), &Segment::new(BR0.name, spec))
        .await
        .unwrap();
    let said = condition(&stage, BR0.name, "Serving", "False").await.unwrap();
    assert_eq!(said.reason, "PortInUse");
    let words = "UDP port 67 on interface br0 is in use by another program";
    assert!(said.message.contains(words), "{}", said.message);
    stage.controller.log().wait_for(words, 0, SOON).await.unwrap();
    assert!(stage.controller.is_running());

    drop(squatter);
    condition(&stage, BR0.name, "Serving", "True").await.unwrap();
    let clients = Clients::behind(&stage.network.net, BR0.name, "10.77.0.3/24").unwrap();
    Client::new(&clients, mac(4), Asker::Plain)
        .lease(SOON)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_ports_of_boot_files_and_agents_are_reported_and_served_once_they_are_free() {
    let mut stage = Stage::dark("taken-others", &[BR0]).await.unwrap();
    let net = &stage.network.net;
    let tftp = net.run(|| UdpSocket::bind("0.0.0.0:69")).unwrap();
    let http = net.run(|| TcpListener::bind("0.0.0.0:8080")).unwrap();
    let agents = net.run(|| TcpListener::bind("0.0.0.0:9443")).unwrap();
    stage.controller.start().unwrap();
    let spec = segment(BR0, Profile::Lab, UnknownPolicy::Hold).unwrap();
    stage
        .api()
        .create(&PostParams::default(), &Segment::new(BR0.name, spec))
        .await
        .unwrap();
    let all_three =
        |said: &Condition| said.reason == "PortInUse" && said.message.matches(" is in use").count() == 3;
    let said = condition_that(&stage, BR0.name, all_three).await.unwrap();
    for words in [
        "UDP port 69 on 10.77.0.1 (TFTP) is in use by another program",
        "TCP port 8080 on 10.77.0.1 (HTTP) is in use by another program",
        "TCP port 9443 on 10.77.0.1 (agents) is in use by another program",
    ] {
        assert!(said.message.contains(words), "{}", said.message);
    }

    drop((tftp, http, agents));
    condition(&stage, BR0.name, "Serving", "True").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_of_a_namespace_that_is_not_watched_are_told_and_made_when_it_is_corrected() {
    let mut stage = Stage::dark("unwatched", &[BR0]).await.unwrap();
    stage.controller.start().unwrap();
    let mut spec = segment(BR0, Profile::Lab, UnknownPolicy::Hold).unwrap();
    spec.host_namespace = Some("default".to_owned());
    stage.serve(BR0.name, spec).await.unwrap();
    let rack = stage.rack().unwrap();
    let mut server = rack.servers([1]).remove(0);
    server.power_on();
    let name = server_name(server.hardware().boot_mac());
    for about in [name.as_str(), BR0.name] {
        let told = stage.hears(about, "NamespaceNotWatched", SOON).await.unwrap();
        let words = format!("set the Segment's spec.hostNamespace to {}", stage.namespace);
        assert!(told.note.contains(&words), "{}", told.note);
    }

    let patch = json!({"spec": {"hostNamespace": stage.namespace}});
    let segments = stage.api::<Segment>();
    segments
        .patch(BR0.name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    stage.discovered(&server, SOON).await.unwrap();
}
