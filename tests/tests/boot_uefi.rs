//! UEFI machines, from power-on to BareMetalHost: by HTTP boot of a kernel image, and by PXE with iPXE.

use std::time::Duration;

use kube::ResourceExt;
use muster_proto::{
    Mac,
    kinds::{BOOT_MODE_LABEL, BareMetalHost, HardwareStorage, Profile, UnknownPolicy},
};
use muster_tests::{
    bridges::BR1,
    machine::{Boot, Bus, Disk, Machine, MachineSpec, Nic, NicModel, Smbios, UefiNet},
    slots::Slots,
    stage::{Stage, macs},
};

/// Generous: it takes 12 to 21 s on a quiet machine.
const SOON: Duration = Duration::from_secs(180);

fn mac(number: u8, nic: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0xef, number, nic])
}

async fn appears(purpose: &str, number: u8, net: UefiNet) -> BareMetalHost {
    let _slots = Slots::take(1).await.expect("a slot");
    let stage = Stage::lit(purpose, &[(BR1, Profile::Server, UnknownPolicy::Hold)])
        .await
        .expect("a controller that serves");
    let spec = MachineSpec::uefi("m", mac(number, 0), BR1.name, net)
        .with_smbios(Smbios::of(
            "Example Servers",
            "Tall Box",
            &format!("SN{number:04}"),
        ))
        .with_nic(Nic::new(NicModel::E1000e, mac(number, 1), BR1.name))
        .with_disk(Disk::new(Bus::Sata, 100, "SATA0001").with_wwn(0x5000_c500_a1b2_c3d4))
        .with_disk(Disk::new(Bus::Scsi, 50, "SCSI0001").with_wwn(0x5000_c500_a1b2_c3d5));
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec).expect("a machine");
    machine.power_on().expect("power");
    let host = stage.host(mac(number, 0), SOON, |_| true).await;
    host.unwrap_or_else(|error| panic!("{error:#}\n{}", machine.console().last(20).join("\n")))
}

fn assert_complete(host: &BareMetalHost, number: u8) {
    assert_eq!(host.name_any(), format!("example-servers-sn{number:04}"));
    assert_eq!(
        host.labels().get(BOOT_MODE_LABEL).map(String::as_str),
        Some("uefi")
    );
    let hardware = host
        .status
        .as_ref()
        .and_then(|status| status.hardware.as_ref())
        .expect("hardware")
        .unpack();
    let found = macs(host);
    assert!(
        found.contains(&mac(number, 0)) && found.contains(&mac(number, 1)),
        "{found:?}"
    );
    let disk = |serial: &str| -> &HardwareStorage {
        let of = |disk: &&HardwareStorage| disk.serial_number.as_deref() == Some(serial);
        hardware
            .storage
            .iter()
            .find(of)
            .unwrap_or_else(|| panic!("no disk {serial}: {:#?}", hardware.storage))
    };
    assert_eq!(disk("SATA0001").size_bytes, Some(100 << 30));
    assert_eq!(disk("SATA0001").wwn.as_deref(), Some("0x5000c500a1b2c3d4"));
    assert_eq!(disk("SCSI0001").size_bytes, Some(50 << 30));
    assert_eq!(disk("SCSI0001").wwn.as_deref(), Some("0x5000c500a1b2c3d5"));
    assert!(disk("SCSI0001").hctl.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_machine_appears_by_http_boot() {
    assert_complete(&appears("uefi-http", 1, UefiNet::Http).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_machine_appears_by_pxe() {
    assert_complete(&appears("uefi-pxe", 2, UefiNet::Pxe).await, 2);
}

/// A machine that is not to boot from the network hears of no boot file. Firmware tries its other network entries, too
/// (`docs/network.md`), and then goes on to the disk, here a FAT file system with a boot loader where UEFI looks for one.
#[tokio::test(flavor = "multi_thread")]
async fn discovered_machine_goes_on_to_its_own_disk() {
    let _slots = Slots::take(1).await.unwrap();
    let stage = Stage::lit("uefi-discover", &[(BR1, Profile::Lab, UnknownPolicy::Discover)])
        .await
        .unwrap();
    let tree = stage.scratch.sub("esp").unwrap();
    std::fs::create_dir_all(tree.join("EFI/BOOT")).unwrap();
    std::fs::copy("/usr/lib/ipxe/snponly.efi", tree.join("EFI/BOOT/BOOTX64.EFI")).unwrap();
    let mut disk = Disk::new(Bus::Virtio, 1, "OS01");
    disk.file = Some(format!("fat:rw:{}", tree.display()).into());
    let mut spec = MachineSpec::uefi("m", mac(3, 0), BR1.name, UefiNet::Http).with_disk(disk);
    spec.boot = Boot::Network;
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec).unwrap();
    machine.power_on().unwrap();
    stage.host(mac(3, 0), SOON, |_| true).await.unwrap();
    let (at, _) = machine
        .console()
        .wait_for("step=inventory-sent", 0, SOON)
        .await
        .unwrap();
    let own_disk = |line: &str| line.contains("BdsDxe: starting") && line.contains("UEFI Misc Device");
    machine
        .console()
        .wait_until("its own disk", at, SOON, own_disk)
        .await
        .unwrap();
    let log = stage.controller.log();
    log.wait_for("and no boot file: it is known and has no job", 0, SOON)
        .await
        .unwrap();
}
