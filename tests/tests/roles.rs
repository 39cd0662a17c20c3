//! The roles as processes of their own, each with its own rights only: killed, started again, and several of each.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use muster_proto::{
    Mac,
    kinds::{BareMetalHost, INSPECT_ANNOTATION, Profile, Segment, SegmentSpec, UnknownPolicy},
};
use muster_tests::{
    bridges::{BR0, api_in},
    cluster::{Cluster, Role},
    controller::Controller,
    forward::Forwarder,
    lines::Lines,
    machine::{Machine, MachineSpec},
    netns::Netns,
    ra::Router,
    slots::Slots,
    stage::{Stage, segment},
};
use serde_json::json;

/// Generous: it takes 7 s on a quiet machine.
const SOON: Duration = Duration::from_secs(120);
const START: Duration = Duration::from_secs(60);

fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0x0e, 0, number])
}

fn hold() -> Result<SegmentSpec> {
    segment(BR0, Profile::Lab, UnknownPolicy::Hold)
}

/// A stage whose controller is the edge alone, and a control beside it, both running.
async fn split(purpose: &str) -> Result<(Stage, Controller)> {
    let mut stage = Stage::dark(purpose, &[BR0]).await?;
    let net = stage.network.net.clone();
    stage.controller = stage.another(&net, Role::Edge, "edge").await?;
    let mut control = stage.another(&net, Role::Control, "control").await?;
    stage.controller.start()?;
    control.start()?;
    Ok((stage, control))
}

async fn ready(controller: &Controller, lives_before: usize) -> Result<()> {
    controller.log().wait_for("; ready", lives_before, START).await?;
    Ok(())
}

/// A machine that was just switched on.
fn switched_on(stage: &Stage) -> Result<Machine> {
    let spec = MachineSpec::bios("m", mac(1), BR0.name);
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec)?;
    machine.power_on()?;
    Ok(machine)
}

/// Waits until the machine's ramdisk says that it has sent its inventory. Returns the number of that line, which is `from` or later.
async fn reports(machine: &Machine, from: usize) -> Result<usize> {
    let (at, _) = machine
        .console()
        .wait_for("step=inventory-sent", from, SOON)
        .await?;
    Ok(at)
}

/// The ramdisk that reported in line `sent` has done what [`inspect_again`] asked for, and it is still one machine. Returns its host.
async fn inspected_again(stage: &Stage, machine: &Machine, sent: usize) -> Result<BareMetalHost> {
    reports(machine, sent + 1).await?;
    let done = |host: &BareMetalHost| !host.annotations().contains_key(INSPECT_ANNOTATION);
    let host = stage.host(mac(1), SOON, done).await?;
    let (hosts, servers) = (stage.hosts().await?.len(), stage.servers().await?.len());
    ensure!((hosts, servers) == (1, 1), "{hosts} hosts, {servers} Servers");
    Ok(host)
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_and_control_are_each_killed_and_a_machine_appears_once() {
    let _slots = Slots::take(1).await.unwrap();
    let (mut stage, mut control) = split("roles").await.unwrap();
    stage.serve(BR0.name, hold().unwrap()).await.unwrap();
    let machine = switched_on(&stage).unwrap();

    // The edge needs no control to take a machine in; nobody makes a host meanwhile.
    let log = stage.controller.log().clone();
    log.wait_for("step=\"initramfs\"", 0, SOON).await.unwrap();
    control.kill();
    let sent = reports(&machine, 0).await.unwrap();
    assert!(stage.hosts().await.unwrap().is_empty());
    control.start().unwrap();
    let host = stage.host(mac(1), SOON, |_| true).await.unwrap();

    // Asked to be inspected while the edge is down: the running ramdisk finds the new edge and does it.
    let said = log.len();
    stage.controller.kill();
    inspect_again(&stage, &host).await.unwrap();
    stage.controller.start().unwrap();
    ready(&stage.controller, said).await.unwrap();
    let again = inspected_again(&stage, &machine, sent).await.unwrap();
    assert_eq!(again.uid(), host.uid());
}

/// Another computer on the network, whose interface has the same name, and its ways to the machines and to the API server.
async fn another_computer(net: &Netns) -> Result<(Netns, Router, Forwarder)> {
    let elsewhere = net.neighbour(BR0.name, BR0.name, "10.77.0.2/24")?;
    let router = Router::on(&elsewhere, BR0.name)?;
    let api = api_in(&elsewhere, Cluster::shared().await?)?;
    Ok((elsewhere, router, api))
}

/// Until somebody in `net` listens on DHCP's port.
async fn hears(net: &Netns) -> Result<()> {
    let open = || net.run(|| std::fs::read_to_string("/proc/thread-self/net/udp"));
    let heard = async {
        // Port 67 in hexadecimal digits.
        while !open().is_ok_and(|sockets| sockets.contains(":0043 ")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let heard = tokio::time::timeout(START, heard).await;
    heard.context("nobody listens on port 67")
}

async fn inspect_again(stage: &Stage, host: &BareMetalHost) -> Result<()> {
    let patch = json!({"metadata": {"annotations": {INSPECT_ANNOTATION: ""}}});
    stage
        .api::<BareMetalHost>()
        .patch(&host.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .context("annotate the host")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_edges_and_two_controls_serve_one_network_as_one() {
    let _slots = Slots::take(1).await.unwrap();
    let (mut stage, _control) = split("replicas").await.unwrap();
    let net = stage.network.net.clone();
    let (elsewhere, _router, _api) = another_computer(&net).await.unwrap();
    let mut second = stage.another(&elsewhere, Role::Edge, "edge2").await.unwrap();
    let mut control2 = stage.another(&net, Role::Control, "control2").await.unwrap();
    second.start().unwrap();
    control2.start().unwrap();
    ready(&control2, 0).await.unwrap();
    let spec = SegmentSpec {
        agent_endpoints: vec!["10.77.0.1:9443".to_owned(), "10.77.0.2:9443".to_owned()],
        ..hold().unwrap()
    };
    stage.serve(BR0.name, spec).await.unwrap();
    hears(&elsewhere).await.unwrap();

    let machine = switched_on(&stage).unwrap();
    stage.host(mac(1), SOON, |_| true).await.unwrap();

    // The agent goes on with the edge that is left.
    let sent = reports(&machine, 0).await.unwrap();
    stage.controller.kill();
    let host = stage.host(mac(1), SOON, |_| true).await.unwrap();
    inspect_again(&stage, &host).await.unwrap();
    inspected_again(&stage, &machine, sent).await.unwrap();
    let served = stage.api::<Segment>().get(BR0.name).await.unwrap();
    let alone = served.status.unwrap().conditions;
    let alone = alone
        .into_iter()
        .find(|condition| condition.type_ == "Alone")
        .unwrap();
    assert_eq!(
        alone.status, "True",
        "a replica is no stranger: {}",
        alone.message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stands_by_serves_machines_and_takes_over_from_a_killed_leader() {
    let _slots = Slots::take(1).await.unwrap();
    let mut stage = Stage::dark("standby", &[BR0]).await.unwrap();
    let net = stage.network.net.clone();
    stage.controller.start().unwrap();
    let leader = stage.controller.log().clone();
    leader.wait_for(": leads lease=", 0, START).await.unwrap();
    let (elsewhere, _router, _api) = another_computer(&net).await.unwrap();
    let mut second = stage.another(&elsewhere, Role::Both, "second").await.unwrap();
    second.start().unwrap();
    let standby = second.log().clone();
    standby.wait_for("standing by", 0, START).await.unwrap();
    let spec = SegmentSpec {
        agent_endpoints: vec!["10.77.0.2:9443".to_owned()],
        ..hold().unwrap()
    };
    stage.serve(BR0.name, spec).await.unwrap();
    hears(&elsewhere).await.unwrap();

    // The agent is the standby's, and its host the leader's.
    let machine = switched_on(&stage).unwrap();
    let host = stage.host(mac(1), SOON, |_| true).await.unwrap();
    let enrolled = |log: &Lines| log.from(0).iter().any(|line| line.text.contains(": enrolled "));
    assert!(enrolled(&standby) && !enrolled(&leader));
    let sent = reports(&machine, 0).await.unwrap();
    stage.controller.kill();
    inspect_again(&stage, &host).await.unwrap();
    standby.wait_for(": leads lease=", 0, SOON).await.unwrap();
    inspected_again(&stage, &machine, sent).await.unwrap();
}
