//! Beside a DHCP server that is not ours: dnsmasq gives the addresses, Muster only the boot files.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use dhcproto::{
    Decodable, Decoder, Encodable,
    v4::{Message, MessageType},
};
use muster_proto::{
    Mac,
    kinds::{DhcpMode, Profile, SegmentSpec, UnknownPolicy},
};
use muster_tests::{
    bridges::BR0,
    dnsmasq::Dnsmasq,
    machine::{Bus, Disk, Machine, MachineSpec, UefiNet},
    sim::{
        Clients,
        dhcp::{Asker, Client, Lease},
    },
    slots::Slots,
    stage::{Stage, segment},
};

/// When a request that nobody answered is sent again.
const AGAIN: Duration = Duration::from_secs(1);
/// Generous: the slowest takes 21 s on a quiet machine.
const SOON: Duration = Duration::from_secs(180);
/// The computer of the DHCP server.
const THEIRS: &str = "10.77.0.2/24";
const RANGE: &str = "10.77.0.100,10.77.0.199";

fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0xb7, 0, number])
}

fn proxy(unknown: UnknownPolicy) -> Result<SegmentSpec> {
    let mut spec = segment(BR0, Profile::Lab, unknown)?;
    spec.dhcp.mode = DhcpMode::Proxy;
    spec.dhcp.ranges.clear();
    Ok(spec)
}

/// A network with a DHCP server of its own, and Muster as its proxy.
async fn beside(purpose: &str, unknown: UnknownPolicy) -> Result<(Stage, Dnsmasq)> {
    let mut stage = Stage::dark(purpose, &[BR0]).await?;
    let theirs = stage.network.net.neighbour(BR0.name, "eth0", THEIRS)?;
    let dnsmasq = Dnsmasq::start(&theirs, "eth0", RANGE, stage.scratch.path(), &[]).await?;
    stage.controller.start()?;
    stage.serve(BR0.name, proxy(unknown)?).await?;
    Ok((stage, dnsmasq))
}

/// Boots `spec` beside dnsmasq until its host is there, with an address of dnsmasq's.
async fn appears(purpose: &str, spec: MachineSpec) -> Result<()> {
    let _slots = Slots::take(1).await?;
    let (stage, dnsmasq) = beside(purpose, UnknownPolicy::Hold).await?;
    let mac = spec.nics[0].mac;
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec)?;
    machine.power_on()?;
    let host = stage.host(mac, SOON, |_| true).await.with_context(|| {
        let (console, dhcp) = (machine.console().last(20), dnsmasq.log().last(60));
        format!(
            "the console:\n{}\ndnsmasq:\n{}",
            console.join("\n"),
            dhcp.join("\n")
        )
    })?;
    let hardware = host
        .status
        .and_then(|status| status.hardware)
        .context("hardware")?
        .unpack();
    let address = hardware.nics[0].ip.clone().context("an address")?;
    let acknowledged =
        |line: &str| line.contains("DHCPACK") && line.contains(address.trim_end_matches("/24"));
    dnsmasq
        .log()
        .wait_until("its own DHCPACK", 0, SOON, acknowledged)
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bios_machine_appears_beside_another_dhcp_server() {
    appears("proxy-bios", MachineSpec::bios("m", mac(1), BR0.name))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn uefi_machine_appears_by_pxe_beside_another_dhcp_server() {
    let spec = MachineSpec::uefi("m", mac(2), BR0.name, UefiNet::Pxe);
    appears("proxy-pxe", spec.with_disk(Disk::new(Bus::Virtio, 1, "V2")))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn uefi_machine_appears_by_http_boot_beside_another_dhcp_server() {
    let spec = MachineSpec::uefi("m", mac(3), BR0.name, UefiNet::Http);
    appears("proxy-http", spec.with_disk(Disk::new(Bus::Virtio, 1, "V3")))
        .await
        .unwrap();
}

/// The other server's address without a boot file of ours is what sends it there.
#[tokio::test(flavor = "multi_thread")]
async fn discovered_machine_goes_on_to_its_own_disk_beside_another_dhcp_server() {
    let _slots = Slots::take(1).await.unwrap();
    let (stage, dnsmasq) = beside("proxy-disk", UnknownPolicy::Discover).await.unwrap();
    let spec = MachineSpec::bios("m", mac(7), BR0.name).with_disk(Disk::new(Bus::Virtio, 1, "V7"));
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec).unwrap();
    machine.power_on().unwrap();
    stage.host(mac(7), SOON, |_| true).await.unwrap();
    let (at, _) = machine
        .console()
        .wait_for("step=inventory-sent", 0, SOON)
        .await
        .unwrap();
    let asked = dnsmasq.log().len();
    machine
        .console()
        .wait_for("from Hard Disk", at, SOON)
        .await
        .unwrap();
    dnsmasq.log().wait_for("DHCPACK", asked, SOON).await.unwrap();
}

/// Asks the PXE port as firmware does that already has its address (PXE 2.1, 2.2.3): by unicast, answered to where it asks from.
async fn ask_pxe_port(clients: &Clients, client: &Client, within: Duration) -> Result<Lease> {
    let socket = clients.udp()?;
    let mut message = client.message(MessageType::Request);
    message.set_ciaddr(clients.address());
    let message = message.to_vec()?;
    let server = SocketAddr::from(([10, 77, 0, 1], 4011));
    let mut answer = [0; 2048];
    let asked = async {
        loop {
            socket.send_to(&message, server).await?;
            // As firmware does: a controller that has just started may not know its keys yet, and then says nothing.
            let heard = tokio::time::timeout(AGAIN, socket.recv_from(&mut answer)).await;
            if let Ok(heard) = heard {
                return heard;
            }
        }
    };
    let (length, from) = tokio::time::timeout(within, asked)
        .await
        .context("no answer from the PXE port")??;
    anyhow::ensure!(from == server, "{from} answered");
    Ok(Lease::from(Message::decode(&mut Decoder::new(
        &answer[..length],
    ))?))
}

#[tokio::test(flavor = "multi_thread")]
async fn pxe_port_names_the_boot_file_to_a_client_that_has_its_address() {
    let (stage, _dnsmasq) = beside("proxy-4011", UnknownPolicy::Hold).await.unwrap();
    let clients = Clients::behind(&stage.network.net, BR0.name, "10.77.0.3/24").unwrap();
    for (number, asker, file) in [
        (4, Asker::Pxe(0), "undionly.kpxe"),
        (5, Asker::Pxe(7), "snponly.efi"),
    ] {
        let client = Client::new(&clients, mac(number), asker);
        let answer = ask_pxe_port(&clients, &client, SOON).await.unwrap();
        assert_eq!(answer.message.opts().msg_type(), Some(MessageType::Ack));
        assert_eq!(answer.file.as_deref(), Some(file));
        assert_eq!(answer.next_server.to_string(), "10.77.0.1");
        assert!(answer.address.is_unspecified(), "a proxy gives no address");
    }
    let ipxe = Client::new(&clients, mac(6), Asker::Ipxe(0));
    let script = ask_pxe_port(&clients, &ipxe, SOON).await.unwrap().file.unwrap();
    assert!(script.starts_with("http://10.77.0.1:8080/ipxe/"), "{script}");

    // Who boots nothing is not for a proxy to answer, on either port.
    let system = Client::new(&clients, mac(7), Asker::Plain);
    let patience = Duration::from_millis(300);
    assert!(ask_pxe_port(&clients, &system, patience).await.is_err());
    let offer = system.discover(SOON).await.unwrap();
    assert_eq!(offer.server.unwrap().to_string(), "10.77.0.2");
}
