use muster_proto::Mac;

use super::*;
use crate::machine::Disk;

const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);

fn shown(spec: &MachineSpec) -> String {
    let links: Vec<_> = (0..spec.nics.len())
        .map(|number| Link::Tap(format!("tap{number}")))
        .collect();
    command_line(spec, &Files::below(Path::new("/l/m"), spec), &links).join(" ")
}

#[test]
fn every_machine_is_emulated_and_has_entropy() {
    for spec in [
        MachineSpec::bios("a", MAC, "br0"),
        MachineSpec::uefi("a", MAC, "br0", UefiNet::Http),
    ] {
        let line = shown(&spec);
        assert!(line.contains("-accel tcg,thread=multi"), "{line}");
        assert!(!line.contains("kvm"), "{line}");
        assert!(line.contains("virtio-rng-pci"), "{line}");
    }
}

#[test]
fn bios_boots_the_network_before_its_disks() {
    let spec = MachineSpec::bios("a", MAC, "br0").with_disk(Disk::new(Bus::Nvme, 1, "S1"));
    let line = shown(&spec);
    assert!(
        line.contains("virtio-net-pci,id=nic0,netdev=n0,mac=52:54:00:00:00:01,bootindex=1 "),
        "{line}"
    );
    assert!(line.contains("nvme,drive=d0,bootindex=2,serial=S1"), "{line}");
    assert!(!line.contains("pflash"), "{line}");
}

#[test]
fn uefi_boots_its_disks_before_the_network() {
    let spec = MachineSpec::uefi("a", MAC, "br0", UefiNet::Pxe)
        .with_nic(Nic::new(NicModel::E1000e, Mac([0x52, 0x54, 0, 0, 0, 2]), "br0"))
        .with_disk(Disk::new(Bus::Sata, 1, "S1").with_wwn(0x5000_c500_a1b2_c3d4))
        .with_disk(Disk::new(Bus::Scsi, 1, "S2"))
        .with_disk(Disk::new(Bus::Sata, 1, "S3"));
    let line = shown(&spec);
    for part in [
        "virtio-net-pci,id=nic0,netdev=n0,mac=52:54:00:00:00:01,bootindex=4,romfile=",
        "e1000e,id=nic1,netdev=n1,mac=52:54:00:00:00:02,romfile=",
        "ide-hd,bus=sata.0,drive=d0,bootindex=1,serial=S1,wwn=0x5000c500a1b2c3d4",
        "scsi-hd,bus=scsi.0,scsi-id=0,drive=d1,bootindex=2,serial=S2",
        "ide-hd,bus=sata.1,drive=d2,bootindex=3,serial=S3",
        "file=/l/m/vars.fd",
        "name=opt/org.tianocore/IPv6PXESupport,string=n",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!line.contains("IPv4PXESupport"), "{line}");
}

#[test]
fn commas_in_strings_do_not_become_options() {
    let mut spec = MachineSpec::bios("a", MAC, "br0");
    spec.smbios.serial = "1,uuid=2".to_owned();
    spec.smbios.board_serial = "B".to_owned();
    let line = shown(&spec);
    assert!(
        line.contains("-smbios type=1,serial=1,,uuid=2 -smbios type=2,serial=B"),
        "{line}"
    );
}

#[test]
fn cable_with_faults_goes_over_sockets() {
    let spec = MachineSpec::bios("a", MAC, "br0");
    let ends = Ends {
        guest: "/l/g".into(),
        wire: "/l/w".into(),
    };
    let line = command_line(&spec, &Files::below(Path::new("/l"), &spec), &[Link::Wire(ends)]).join(" ");
    assert!(
        line.contains("dgram,id=n0,local.type=unix,local.path=/l/g,remote.type=unix,remote.path=/l/w"),
        "{line}"
    );
}
