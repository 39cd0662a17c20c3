//! Wake-on-LAN for a machine without a BMC: asked for by a control role that is on no machines' network, sent by the edge that is.

use std::{net::UdpSocket, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use muster_proto::kinds::{
    BareMetalHost, IN_BAND_ANNOTATION, PAUSED_ANNOTATION, Profile, UnknownPolicy, Wake,
};
use muster_tests::{
    bridges::{BR0, api_in},
    cluster::{Cluster, Role},
    netns::Netns,
    sim::{agent::SimServer, hardware::mac},
    stage::{Stage, segment, server_name, state},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(120);
/// The discard service (RFC 863), which is customary for these packets.
const PORT: u16 = 9;

/// What an adapter looks for (AMD's white paper 20213): six times 0xff, and its address sixteen times. Here it is the first NIC of the
/// rack's machine `number`.
fn magic(number: u32) -> Vec<u8> {
    let address = std::iter::repeat_n(mac(number, 0).0, 16).flatten();
    [0xff; 6].into_iter().chain(address).collect()
}

/// Waits for a packet at `socket` from which the rack's machine `number` wakes, until which none of `others` does.
async fn heard(socket: &Arc<UdpSocket>, number: u32, others: &[u32]) -> Result<()> {
    let socket = Arc::clone(socket);
    socket.set_read_timeout(Some(SOON))?;
    let wanted = magic(number);
    let others: Vec<(u32, Vec<u8>)> = others.iter().map(|other| (*other, magic(*other))).collect();
    let hear = move || -> Result<()> {
        let mut packet = [0; 256];
        loop {
            let (length, _) = socket.recv_from(&mut packet).context("no magic packet")?;
            let heard = packet[..length].to_vec();
            if heard == wanted {
                return Ok(());
            }
            if let Some((other, _)) = others.iter().find(|(_, magic)| *magic == heard) {
                bail!("machine {other} is woken");
            }
        }
    };
    tokio::task::spawn_blocking(hear).await?
}

/// The latest wish to wake the rack's machine `number`.
async fn wish(stage: &Stage, number: u32) -> Option<Box<Wake>> {
    let mut servers = stage.servers().await.expect("the list of Servers");
    let server = servers.remove(&server_name(mac(number, 0)));
    server.expect("one of the rack's machines").spec.wake
}

/// Waits until the host of the rack's machine `number` is as `test` says, which is `what`.
async fn reaches(
    stage: &Stage,
    number: u32,
    what: &str,
    test: impl Fn(&BareMetalHost) -> bool,
) -> Result<BareMetalHost> {
    let found = stage.host(mac(number, 0), SOON, test).await;
    found.with_context(|| format!("a host that is {what}"))
}

fn is_on(host: &BareMetalHost) -> bool {
    host.status.as_ref().is_some_and(|status| status.powered_on)
}

fn online(online: bool) -> Value {
    json!({"spec": {"online": online}})
}

fn paused(value: Option<&str>) -> Value {
    json!({"metadata": {"annotations": {PAUSED_ANNOTATION: value}}})
}

/// Has `server`, the rack's machine `number`, come and its host opt in, until that is available and off. Its name.
async fn comes_and_goes(stage: &Stage, server: &mut SimServer, number: u32) -> Result<String> {
    server.power_on();
    let host = stage.discovered(server, SOON).await?;
    let name = host.metadata.name.context("its name")?;
    let servers = stage.servers().await?;
    let known = servers.get(&server_name(mac(number, 0))).context("its Server")?;
    let session = known.session().context("its session")?;
    let opted_in = json!({
        "metadata": {"annotations": {IN_BAND_ANNOTATION: session.key}},
        "spec": {"online": true},
    });
    stage.patch(&name, opted_in).await?;
    reaches(stage, number, "available", |host| state(host) == "available").await?;
    stage.patch(&name, online(false)).await?;
    reaches(stage, number, "off", |host| !is_on(host)).await?;
    Ok(name)
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
    let name = comes_and_goes(&stage, &mut server, 1).await.unwrap();

    // Where the machine is: the packet goes to everybody there.
    let machine = stage
        .network
        .net
        .neighbour(BR0.name, "eth0", "10.77.0.200/24")
        .unwrap();
    let listen = || Arc::new(machine.run(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap());
    let socket = listen();
    stage.patch(&name, online(true)).await.unwrap();
    if let Err(error) = heard(&socket, 1, &[]).await {
        let (edge, control) = (stage.controller.log().last(20), control.log().last(20));
        panic!("{error:#}; the edge: {edge:#?}; the control: {control:#?}");
    }
    server.power_on();
    reaches(&stage, 1, "on", is_on).await.unwrap();
    assert_eq!(server.seen().boots, 2);

    // Orders are told apart by the second, and no real machine boots within one.
    tokio::time::sleep(Duration::from_secs(1)).await;
    // An edge that was gone meanwhile wakes nothing that is to be left alone by now. Two more machines show when it has seen that.
    stage.patch(&name, online(false)).await.unwrap();
    reaches(&stage, 1, "off", |host| !is_on(host)).await.unwrap();
    let mut others = rack.servers([2, 3]);
    let second = comes_and_goes(&stage, &mut others[0], 2).await.unwrap();
    let third = comes_and_goes(&stage, &mut others[1], 3).await.unwrap();
    let before = wish(&stage, 1).await;
    assert!(stage.controller.stop(SOON).await);
    drop(socket);
    let socket = listen();
    for (number, name, before) in [(1, &name, before), (2, &second, None), (3, &third, None)] {
        stage.patch(name, online(true)).await.unwrap();
        let asked = async || {
            let wish = wish(&stage, number).await;
            Ok((wish.is_some() && wish != before).then_some(()))
        };
        stage.until("the wish", SOON, asked).await.unwrap();
    }
    for left_alone in [&name, &third] {
        stage.patch(left_alone, paused(Some(""))).await.unwrap();
    }
    stage.controller.start().unwrap();
    // The edge has seen all hosts by then, and looks at all Servers.
    heard(&socket, 2, &[1, 3]).await.unwrap();
    // It has looked at all of them before it sees this.
    stage.patch(&third, paused(None)).await.unwrap();
    heard(&socket, 3, &[1]).await.unwrap();
    stage.patch(&name, paused(None)).await.unwrap();
    heard(&socket, 1, &[]).await.unwrap();
}
