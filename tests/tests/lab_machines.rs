//! The lab itself, against servers that are not ours: a PXE boot by dnsmasq, with a good cable and with a bad one.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::Result;
use muster_proto::Mac;
use muster_tests::{
    dnsmasq::Dnsmasq,
    machine::{Bus, Disk, Machine, MachineSpec, Smbios},
    netns::Netns,
    ra::Router,
    scratch::Scratch,
    sim::{
        Clients,
        dhcp::{Asker, Client},
        tftp,
    },
    slots::Slots,
    wire::Faults,
};

const UNDIONLY: &str = "/usr/lib/ipxe/undionly.kpxe";
const MAC: Mac = Mac([0x52, 0x54, 0, 0, 7, 1]);
const SOON: Duration = Duration::from_secs(60);
const SERVER: &str = "10.9.0.1";

/// A server on a bridge that is not ours: what firmware and our clients do with it is not for our own server to say.
struct Foreign {
    net: Netns,
    dnsmasq: Dnsmasq,
    /// Without its answers, iPXE would wait for IPv6 for 16 s after each lease.
    _router: Router,
}

impl Foreign {
    async fn start(scratch: &Scratch) -> Result<Foreign> {
        let net = Netns::new()?;
        net.bridge("br0", Some(&format!("{SERVER}/24")))?;
        let router = Router::on(&net, "br0")?;
        let root = scratch.sub("tftp")?;
        fs::copy(UNDIONLY, root.join("undionly.kpxe"))?;
        let script = "#!ipxe\necho the script runs on ${net0/mac} as ${serial}\nexit\n";
        fs::write(root.join("boot.ipxe"), script)?;
        let arguments = [
            "--enable-tftp",
            &format!("--tftp-root={}", root.display()),
            "--dhcp-match=set:ipxe,175",
            "--dhcp-userclass=set:ipxe,iPXE",
            "--dhcp-boot=tag:!ipxe,undionly.kpxe",
            "--dhcp-boot=tag:ipxe,boot.ipxe",
        ]
        .map(str::to_owned);
        let dnsmasq = Dnsmasq::start(&net, "br0", "10.9.0.50,10.9.0.99", scratch.path(), &arguments).await?;
        Ok(Foreign {
            net,
            dnsmasq,
            _router: router,
        })
    }
}

fn server() -> SocketAddr {
    SocketAddr::from(([10, 9, 0, 1], 69))
}

#[tokio::test(flavor = "multi_thread")]
async fn bios_machine_boots_over_the_network_and_again_after_reset() {
    let _slots = Slots::take(1).await.unwrap();
    let scratch = Scratch::new().unwrap();
    let foreign = Foreign::start(&scratch).await.unwrap();
    let spec = MachineSpec::bios("a", MAC, "br0")
        .with_smbios(Smbios::of("Lab", "One", "SER,IAL"))
        .with_disk(Disk::new(Bus::Virtio, 1, "V1"));
    let mut machine = Machine::new(&foreign.net, scratch.path(), spec).unwrap();
    machine.power_on().unwrap();
    let said = format!("the script runs on {MAC} as SER,IAL");
    let (at, _) = machine.console().wait_for(&said, 0, SOON).await.unwrap();
    machine.console().wait_for("Hard Disk", at, SOON).await.unwrap();

    machine.reset().unwrap();
    let (again, _) = machine.console().wait_for(&said, at + 1, SOON).await.unwrap();
    machine.power_cycle().unwrap();
    machine.console().wait_for(&said, again + 1, SOON).await.unwrap();
    assert!(machine.is_on());
    machine.power_off();
    assert!(!machine.is_on());
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_boots_over_a_bad_cable_and_not_over_a_silent_one() {
    let _slots = Slots::take(1).await.unwrap();
    let scratch = Scratch::new().unwrap();
    let foreign = Foreign::start(&scratch).await.unwrap();
    let mut spec = MachineSpec::bios("a", MAC, "br0");
    spec.nics[0].faults = Some(Faults {
        silent_for: Duration::from_secs(5),
        loss_per_mille: 20,
        ..Faults::default()
    });
    let mut machine = Machine::new(&foreign.net, scratch.path(), spec).unwrap();
    machine.power_on().unwrap();
    let (since, _) = machine.since().unwrap();
    let (_, line) = foreign
        .dnsmasq
        .log()
        .wait_for("DHCPDISCOVER", 0, SOON)
        .await
        .unwrap();
    assert!(
        line.at - since >= Duration::from_secs(5),
        "heard after {:?}",
        line.at - since
    );
    machine
        .console()
        .wait_for("the script runs", 0, SOON)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn simulated_clients_get_what_a_foreign_server_gives() {
    let scratch = Scratch::new().unwrap();
    let foreign = Foreign::start(&scratch).await.unwrap();
    let clients = Clients::behind(&foreign.net, "br0", "10.9.0.2/24").unwrap();
    let firmware = Client::new(&clients, MAC, Asker::Pxe(0))
        .lease(SOON)
        .await
        .unwrap();
    assert_eq!(firmware.file.as_deref(), Some("undionly.kpxe"));
    assert_eq!(firmware.server.unwrap().to_string(), SERVER);
    let ipxe = Client::new(&clients, MAC, Asker::Ipxe(0))
        .lease(SOON)
        .await
        .unwrap();
    assert_eq!(ipxe.file.as_deref(), Some("boot.ipxe"));
    assert_eq!(ipxe.address, firmware.address);

    let content = fs::read(UNDIONLY).unwrap();
    for options in [
        tftp::Options::default(),
        tftp::Options {
            block: Some(1400),
            size: true,
            ..tftp::Options::default()
        },
        tftp::Options {
            window: Some(8),
            ..tftp::Options::default()
        },
    ] {
        let fetched = tftp::get(&clients, server(), "undionly.kpxe", options)
            .await
            .unwrap();
        assert_eq!(fetched.content, content, "{options:?}");
        assert_eq!(fetched.size, options.size.then_some(content.len()));
    }
    let refused = tftp::get(&clients, server(), "nothing", tftp::Options::default()).await;
    assert!(refused.unwrap_err().root_cause().to_string().contains("refused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_answers_where_nobody_serves() {
    let net = Netns::new().unwrap();
    net.bridge("br0", Some("10.9.0.1/24")).unwrap();
    let clients = Clients::behind(&net, "br0", "10.9.0.2/24").unwrap();
    let client = Client::new(&clients, MAC, Asker::Plain);
    assert!(client.meets_silence(Duration::from_millis(300)).await.unwrap());
}
