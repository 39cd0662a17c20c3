//! Networks that only a relay agent leads to, and several networks at once.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use muster_agent::net::dhcp::{self, Change};
use muster_proto::{
    Mac,
    kinds::{Dhcp, DhcpMode, Profile, Range, SegmentSpec, UnknownPolicy},
};
use muster_tests::{
    bridges::{BR0, BR1},
    dnsmasq::Dnsmasq,
    machine::{Machine, MachineSpec},
    netns::Netns,
    scratch::Scratch,
    sim::{
        Clients,
        dhcp::{Asker, Client},
        http,
    },
    slots::Slots,
    stage::{Stage, segment},
};
use tokio::{runtime::Builder, sync::mpsc, time::timeout};

/// Generous: it takes 7 s on a quiet machine.
const SOON: Duration = Duration::from_secs(120);
/// Nothing on these bridges takes longer to be answered.
const SILENT: Duration = Duration::from_secs(1);
/// The bridge behind the router; the controller has no address there.
const FAR: &str = "br2";

fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0xbe, 0, number])
}

/// A router between br0 and the bridge [`FAR`], with a relay agent.
async fn router(stage: &mut Stage) -> Result<Dnsmasq> {
    stage.network.lay(FAR)?;
    let lab = &stage.network.net;
    let net = lab.neighbour(BR0.name, "near", "10.77.0.254/24")?;
    lab.plug(&net, FAR, "far", "10.80.0.254/24")?;
    net.sysctl("ipv4/ip_forward", "1")?;
    lab.ip("route add 10.80.0.0/24 via 10.77.0.254")?;
    let (local, server) = ([10, 80, 0, 254].into(), [10, 77, 0, 1].into());
    Dnsmasq::relay(&net, local, server, stage.scratch.path()).await
}

/// The Segment behind the router; `endpoint` is where its agents reach the controller.
fn relayed(endpoint: &str) -> SegmentSpec {
    SegmentSpec {
        relays: vec!["10.80.0.254".to_owned()],
        subnet: "10.80.0.0/24".to_owned(),
        boot_address: Some("10.77.0.1".to_owned()),
        agent_endpoints: vec![endpoint.to_owned()],
        dhcp: Dhcp {
            mode: DhcpMode::Server,
            ranges: vec![Range {
                start: "10.80.0.100".to_owned(),
                end: "10.80.0.199".to_owned(),
            }],
            router: Some("10.80.0.254".to_owned()),
            ..Dhcp::default()
        },
        unknown: UnknownPolicy::Hold,
        quota: 1000,
        profile: Profile::Lab,
        kernel_parameters: vec!["console=ttyS0,115200".to_owned()],
        ..SegmentSpec::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_behind_a_relay_appears() {
    let _slots = Slots::take(1).await.unwrap();
    let mut stage = Stage::dark("relay", &[BR0]).await.unwrap();
    let _router = router(&mut stage).await.unwrap();
    stage.controller.start().unwrap();
    stage.serve("far", relayed("10.77.0.1:9443")).await.unwrap();
    let spec = MachineSpec::bios("m", mac(1), FAR);
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec).unwrap();
    machine.power_on().unwrap();
    let host = stage
        .host(mac(1), SOON, |_| true)
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", machine.console().last(20).join("\n")));
    let hardware = host.status.unwrap().hardware.unwrap().unpack();
    assert!(hardware.nics[0].ip.as_ref().unwrap().starts_with("10.80.0.1"));
    let servers = stage.servers().await.unwrap();
    let (_, server) = servers.first_key_value().unwrap();
    let session = server.status.as_ref().unwrap().session.as_ref().unwrap();
    assert_eq!(session.segment, format!("{}/far", stage.namespace));
}

/// What iPXE on `clients` is told to boot: its address, the script, and the start of the initramfs as the script names it.
async fn boots(clients: &Clients, mac: Mac) -> Result<(String, String, Vec<u8>)> {
    let lease = Client::new(clients, mac, Asker::Ipxe(0)).lease(SOON).await?;
    let url = lease.file.context("a boot file")?;
    let script = String::from_utf8(fetch(clients, &url).await?)?;
    let initramfs = script
        .lines()
        .find_map(|line| line.strip_prefix("initrd --name initramfs ")?.split(' ').next())
        .with_context(|| format!("an initramfs in\n{script}"))?;
    let initramfs = fetch(clients, initramfs).await?;
    Ok((lease.address.to_string(), script, initramfs))
}

async fn fetch(clients: &Clients, url: &str) -> Result<Vec<u8>> {
    let (server, path) = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .with_context(|| format!("a URL, not {url}"))?;
    let server: SocketAddr = server.parse()?;
    let answer = http::get(clients, server, &format!("/{path}")).await?;
    anyhow::ensure!(answer.status.is_success(), "{url}: {}", answer.status);
    Ok(answer.content)
}

fn says(content: &[u8], text: &str) -> bool {
    content.windows(text.len()).any(|part| part == text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_are_told_apart_and_a_bridge_without_one_hears_nothing() {
    let mut stage = Stage::dark("segments", &[BR0, BR1]).await.unwrap();
    let _router = router(&mut stage).await.unwrap();
    let net = stage.network.net.clone();
    net.bridge("br3", Some("10.83.0.1/24")).unwrap();
    stage.controller.start().unwrap();
    let near = SegmentSpec {
        agent_endpoints: vec!["10.77.0.1:9443".to_owned(), "10.77.0.9:9443".to_owned()],
        ..segment(BR0, Profile::Lab, UnknownPolicy::Hold).unwrap()
    };
    stage.serve("near", near).await.unwrap();
    let other = segment(BR1, Profile::Lab, UnknownPolicy::Ignore).unwrap();
    stage.serve("other", other).await.unwrap();
    stage.serve("far", relayed("10.77.0.1:443")).await.unwrap();

    let on = |bridge, address| Clients::behind(&net, bridge, address).unwrap();
    let clients = on(BR0.name, "10.77.0.3/24");
    let (address, script, initramfs) = boots(&clients, mac(2)).await.unwrap();
    assert!(address.starts_with("10.77.0.1"), "{address}");
    assert!(
        script.contains(&format!("/{}/near/", stage.namespace)),
        "{script}"
    );
    assert!(says(&initramfs, "https://10.77.0.9:9443"));
    assert!(!says(&initramfs, "https://10.77.0.1:443\""));

    let clients = on(FAR, "10.80.0.3/24");
    clients.net().ip("route add default via 10.80.0.254").unwrap();
    let (address, script, initramfs) = boots(&clients, mac(3)).await.unwrap();
    assert!(address.starts_with("10.80.0.1"), "{address}");
    assert!(script.contains(&format!("/{}/far/", stage.namespace)), "{script}");
    assert!(says(&initramfs, "https://10.77.0.1:443\""));
    assert!(!says(&initramfs, "https://10.77.0.9:9443"));

    // Nobody there is to be booted, but an installed system gets its address.
    let clients = on(BR1.name, "10.78.0.3/24");
    let firmware = Client::new(&clients, mac(4), Asker::Pxe(0));
    let system = Client::new(&clients, mac(4), Asker::Plain);
    assert!(firmware.meets_silence(SILENT).await.unwrap());
    let lease = system.lease(SOON).await.unwrap();
    assert!(lease.address.to_string().starts_with("10.78.0.1"), "{lease:?}");
    assert_eq!(lease.file, None);

    let clients = on("br3", "10.83.0.3/24");
    for asker in [Asker::Pxe(0), Asker::Ipxe(0), Asker::HttpBoot(16), Asker::Plain] {
        let client = Client::new(&clients, mac(5), asker.clone());
        assert!(client.meets_silence(SILENT).await.unwrap(), "{asker:?}");
    }
    let closed = clients.tcp(SocketAddr::from(([10, 83, 0, 1], 8080))).await;
    assert!(closed.is_err(), "no boot files there");
}

/// Its other NIC has an address of another network, which the kernel would write into what this one sends.
#[tokio::test(flavor = "multi_thread")]
async fn a_nic_without_an_address_is_heard_where_return_paths_are_checked_strictly() {
    let scratch = Scratch::new().unwrap();
    let edge = Netns::new().unwrap();
    edge.bridge("br0", Some("10.77.0.1/24")).unwrap();
    edge.bridge("br1", Some("10.78.0.1/24")).unwrap();
    edge.sysctl("ipv4/conf/all/rp_filter", "1").unwrap();
    let machine = edge.neighbour("br0", "eth0", "10.77.0.5/24").unwrap();
    edge.cable("eth1", &machine, "eth1").unwrap();
    edge.join("eth1", "br1").unwrap();
    let own = mac(6);
    machine.ip(&format!("link set eth1 address {own}")).unwrap();
    // As in the ramdisk; a new namespace has it from the computer that runs this.
    for link in ["all", "eth1"] {
        machine
            .sysctl(&format!("ipv4/conf/{link}/rp_filter"), "0")
            .unwrap();
    }
    let range = "10.78.0.50,10.78.0.99";
    let _server = Dnsmasq::start(&edge, "br1", range, scratch.path(), &[])
        .await
        .unwrap();

    let (tell, mut told) = mpsc::unbounded_channel();
    let ask = async move {
        let ended = tell.clone();
        tokio::select! {
            asked = dhcp::run("eth1", own, None, |change| _ = tell.send(change)) => asked.unwrap(),
            () = ended.closed() => {}
        }
    };
    let job = move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(ask);
    };
    machine.start("dhcp", job).unwrap();
    match timeout(SOON, told.recv()).await.unwrap() {
        Some(Change::Granted(lease)) => assert_eq!(lease.server, Ipv4Addr::new(10, 78, 0, 1)),
        other => panic!("{other:?}"),
    }
}
