//! Wake-on-LAN for a machine without a BMC: asked for by a control role that is on no machines' network, sent by the edge that is.

use std::{net::UdpSocket, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use muster_proto::kinds::{
    BareMetalHost, IN_BAND_ANNOTATION, PAUSED_ANNOTATION, Profile, UnknownPolicy, Wake,
};
use muster_tests::{
    bridges::{BR0, api_in},
    cluster::{Cluster, Role},
    netns::Netns,
    sim::hardware::mac,
    stage::{Stage, segment, server_name, state},
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(120);
/// In which an edge that has just started has seen all that there is, and has told it.
const A_WHILE: Duration = Duration::from_secs(5);
/// The discard service (RFC 863), which is customary for these packets.
const PORT: u16 = 9;

/// What an adapter looks for (AMD's white paper 20213): six times 0xff, and its address sixteen times.
fn magic() -> Vec<u8> {
    let address = std::iter::repeat_n(mac(1, 0).0, 16).flatten();
    [0xff; 6].into_iter().chain(address).collect()
}

/// Waits for a packet at `socket` from which a machine with the rack's first NIC wakes.
async fn heard(socket: &Arc<UdpSocket>, within: Duration) -> Result<()> {
    let socket = Arc::clone(socket);
    socket.set_read_timeout(Some(within))?;
    let hear = move || {
        let mut packet = [0; 256];
        loop {
            let (length, _) = socket.recv_from(&mut packet).context("no magic packet")?;
            if packet[..length] == magic() {
                return Ok(());
            }
        }
    };
    tokio::task::spawn_blocking(hear).await?
}

/// The latest wish to wake the rack's first machine.
async fn wish(stage: &Stage) -> Option<Box<Wake>> {
    let mut servers = stage.servers().await.expect("the list of Servers");
    let server = servers.remove(&server_name(mac(1, 0)));
    server.expect("the rack's first machine").spec.wake
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
    let listen = || Arc::new(machine.run(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap());
    let socket = listen();
    stage.patch(&name, online(true)).await.unwrap();
    if let Err(error) = heard(&socket, SOON).await {
        let (edge, control) = (stage.controller.log().last(20), control.log().last(20));
        panic!("{error:#}; the edge: {edge:#?}; the control: {control:#?}");
    }
    server.power_on();
    reaches("on", &is_on).await.unwrap();
    assert_eq!(server.seen().boots, 2);

    // Orders are told apart by the second, and no real machine boots within one.
    tokio::time::sleep(Duration::from_secs(1)).await;
    // An edge that was gone meanwhile wakes nothing that is to be left alone by now.
    stage.patch(&name, online(false)).await.unwrap();
    reaches("off", &|host| !is_on(host)).await.unwrap();
    let before = wish(&stage).await;
    assert!(stage.controller.stop(SOON).await);
    drop(socket);
    let socket = listen();
    stage.patch(&name, online(true)).await.unwrap();
    let asked = async || Ok((wish(&stage).await != before).then_some(()));
    stage.until("the wish", SOON, asked).await.unwrap();
    let paused = |value: Option<&str>| json!({"metadata": {"annotations": {PAUSED_ANNOTATION: value}}});
    stage.patch(&name, paused(Some(""))).await.unwrap();
    let said = stage.controller.log().len();
    stage.controller.start().unwrap();
    let ready = stage.controller.log().wait_for("serving segment", said, SOON);
    ready.await.unwrap();
    assert!(heard(&socket, A_WHILE).await.is_err(), "it was paused");
    stage.patch(&name, paused(None)).await.unwrap();
    heard(&socket, SOON).await.unwrap();
}
