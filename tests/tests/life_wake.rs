//! Wake-on-LAN for a machine without a BMC: asked for by a control role that is on no machines' network, sent by the edge that is.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context, Result};
use muster_proto::kinds::{BareMetalHost, IN_BAND_ANNOTATION, Profile, UnknownPolicy};
use muster_tests::{
    bridges::{BR0, api_in},
    cluster::{Cluster, Role},
    netns::Netns,
    sim::hardware::mac,
    stage::{Stage, segment, server_name, state},
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(120);
/// The discard service (RFC 863), which is customary for these packets.
const PORT: u16 = 9;

/// What an adapter looks for (AMD's white paper 20213): six times 0xff, and its address sixteen times.
fn magic() -> Vec<u8> {
    let address = std::iter::repeat_n(mac(1, 0).0, 16).flatten();
    [0xff; 6].into_iter().chain(address).collect()
}

/// The first packet that `socket` gets and that a machine with the rack's first NIC wakes from.
fn heard(socket: &UdpSocket) -> Result<()> {
    let mut packet = [0; 256];
    loop {
        let (length, _) = socket.recv_from(&mut packet).context("no magic packet")?;
        if packet[..length] == magic() {
            return Ok(());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_role_off_the_machines_network_has_its_edge_wake_a_machine() {
    let stage = Stage::dark_with("wake", &[BR0], |setup| setup.role = Role::Edge);
    let mut stage = stage.await.unwrap();
    stage.controller.start().unwrap();
    // It has no way anywhere but to the API server.
    let elsewhere = Netns::new().unwrap();
    let _api = api_in(&elsewhere, Cluster::shared().await.unwrap()).unwrap();
    let mut control = stage.another(&elsewhere, Role::Control, "control").await.unwrap();
    control.start().unwrap();
    let spec = segment(BR0, Profile::Lab, UnknownPolicy::Hold).unwrap();
    stage.serve(BR0.name, spec).await.unwrap();

    let rack = stage.rack().unwrap();
    let mut server = rack.servers([1]).remove(0);
    server.power_on();
    let host = stage.discovered(&server, SOON).await.unwrap();
    let name = host.metadata.name.unwrap();
    let reaches = async |what: &str, test: &(dyn Fn(&BareMetalHost) -> bool + Sync)| -> Result<()> {
        let found = stage.host(mac(1, 0), SOON, test).await;
        found
            .map(|_| ())
            .with_context(|| format!("a host that is {what}"))
    };
    let servers = stage.servers().await.unwrap();
    let session = servers[&server_name(mac(1, 0))].status.clone().unwrap().session;
    let key = session.unwrap().key;
    let opted_in = json!({
        "metadata": {"annotations": {IN_BAND_ANNOTATION: key}},
        "spec": {"online": true},
    });
    stage.patch(&name, opted_in).await.unwrap();
    reaches("available", &|host| state(host) == "available")
        .await
        .unwrap();

    let is_on = |host: &BareMetalHost| host.status.as_ref().is_some_and(|status| status.powered_on);
    let online = |online: bool| json!({"spec": {"online": online}});
    stage.patch(&name, online(false)).await.unwrap();
    reaches("off", &|host| !is_on(host)).await.unwrap();

    // Where the machine is: the packet goes to everybody there.
    let machine = stage
        .network
        .net
        .neighbour(BR0.name, "eth0", "10.77.0.200/24")
        .unwrap();
    let socket = machine.run(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    stage.patch(&name, online(true)).await.unwrap();
    let woken = tokio::task::spawn_blocking(move || heard(&socket)).await.unwrap();
    if let Err(error) = woken {
        let (edge, control) = (stage.controller.log().last(20), control.log().last(20));
        panic!("{error:#}; the edge: {edge:#?}; the control: {control:#?}");
    }
    server.power_on();
    reaches("on", &is_on).await.unwrap();
    assert_eq!(server.seen().boots, 2);
}
