use muster_proto::inventory::Warning;

use super::{
    vpd::tests::{ata_page, designator, page_of},
    *,
};
use crate::sys::tree::Tree;

mod broken;
mod members;

/// A tree with disks of one machine; each bus as Linux 6.1 shows it.
struct Disks(Tree);

impl Disks {
    fn new() -> Self {
        Disks(Tree::new().directory("sys/block"))
    }

    /// A block device `name` at `place` below `/sys/devices`, whose `device` is `device` directories up.
    fn block(self, name: &str, place: &str, device: usize) -> Self {
        let at = format!("sys/devices/{place}");
        Disks(
            self.0
                .file(&format!("{at}/size"), "2097152\n")
                .file(&format!("{at}/hidden"), "0\n")
                .file(&format!("{at}/ro"), "0\n")
                .file(&format!("{at}/removable"), "0\n")
                .file(&format!("{at}/queue/logical_block_size"), "512\n")
                .file(&format!("{at}/queue/physical_block_size"), "512\n")
                .file(&format!("{at}/queue/rotational"), "0\n")
                .link(&format!("sys/block/{name}"), &format!("../devices/{place}")),
        )
        .device_link(&at, device)
    }

    /// The link's last component is the device's name, as in sysfs.
    fn device_link(self, at: &str, up: usize) -> Self {
        if up == 0 {
            return self;
        }
        let target = std::path::Path::new(at).ancestors().nth(up).unwrap();
        let name = target.file_name().unwrap().to_str().unwrap();
        let dots = vec![".."; up + 1].join("/");
        Disks(self.0.link(&format!("{at}/device"), &format!("{dots}/{name}")))
    }

    fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        Disks(self.0.file(path, content))
    }

    fn virtio(self) -> Self {
        let at = "pci0000:00/0000:00:05.0/virtio2/block/vda";
        self.block("vda", at, 2)
            .file(&format!("sys/devices/{at}/serial"), "lab-disk-1")
            .file("sys/devices/pci0000:00/0000:00:05.0/virtio2/vendor", "0x1af4\n")
    }

    fn nvme(self) -> Self {
        let controller = "pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0";
        let at = format!("{controller}/nvme0n1");
        self.block("nvme0n1", &at, 1)
            .file(&format!("sys/devices/{at}/nsid"), "1\n")
            .file(&format!("sys/devices/{at}/wwid"), "eui.0025385b71b0a9ee\n")
            .file(
                &format!("sys/devices/{controller}/model"),
                "Example SSD 970             \n",
            )
            .file(
                &format!("sys/devices/{controller}/serial"),
                "S4EWNX0N          \n",
            )
            .file(&format!("sys/devices/{controller}/firmware_rev"), "2B2QEXE7\n")
    }

    /// A logical unit below `host`, such as `pci0000:00/0000:00:04.0/host0`.
    fn scsi(self, name: &str, host: &str, hctl: &str) -> Self {
        let target = &hctl[..hctl.rfind(':').unwrap()];
        self.scsi_below(name, &format!("{host}/target{target}"), hctl)
    }

    fn scsi_below(self, name: &str, target: &str, hctl: &str) -> Self {
        let unit = format!("{target}/{hctl}");
        self.block(name, &format!("{unit}/block/{name}"), 2)
            .file(&format!("sys/devices/{unit}/vendor"), "ACME    \n")
            .file(&format!("sys/devices/{unit}/model"), "MODEL-16-LETTERS\n")
            .file(&format!("sys/devices/{unit}/rev"), "1.0 \n")
            .file(
                &format!("sys/devices/{unit}/vpd_pg80"),
                page_of(0x80, b"  SERIAL-1  "),
            )
            .file(
                &format!("sys/devices/{unit}/vpd_pg83"),
                page_of(0x83, &designator(0x03, b"\x50\x00\xc5\x00\xa0\xb1\xc2\xd3")),
            )
    }

    fn sata(self) -> Self {
        let host = "pci0000:00/0000:00:1f.2/ata2/host1";
        self.scsi("sda", host, "1:0:0:0")
            .file(
                &format!("sys/devices/{host}/target1:0:0/1:0:0:0/vpd_pg89"),
                ata_page("MODEL-16-LETTERS-AND-MORE", "SERIAL-1", "1.0 BETA", 7),
            )
            .file("sys/class/ata_port/ata2/port_no", "2\n")
    }

    fn read(&self) -> (Vec<Disk>, Vec<Warning>) {
        let mut warnings = Warnings::default();
        let mut disks = collect(&self.0.root(), &mut Patience::default(), &mut warnings);
        tell_members(
            &self.0.root(),
            &mut disks,
            &mut Patience::default(),
            &mut warnings,
        );
        (disks, warnings.finish())
    }

    /// The only disk; nothing to warn of.
    fn one(&self) -> Disk {
        let (mut disks, warnings) = self.read();
        assert_eq!(warnings, []);
        assert_eq!(disks.len(), 1, "{disks:?}");
        disks.remove(0)
    }

    fn by_path(&self) -> String {
        self.one().by_path.replace("/dev/disk/by-path/", "")
    }
}

#[test]
fn a_virtio_disk_has_its_serial() {
    let disk = Disks::new().virtio().one();
    assert_eq!(
        (disk.name.as_str(), disk.serial.as_str()),
        ("/dev/vda", "lab-disk-1")
    );
    assert_eq!(disk.by_path, "/dev/disk/by-path/pci-0000:00:05.0");
    assert_eq!(
        (disk.vendor.as_str(), disk.hctl.as_str(), disk.wwn.as_str()),
        ("0x1af4", "", "")
    );
    assert_eq!((disk.transport, disk.size_bytes), (Transport::Virtio, 1 << 30));
}

#[test]
fn an_nvme_disk_is_named_by_its_namespace() {
    let disk = Disks::new().nvme().one();
    assert_eq!(disk.by_path, "/dev/disk/by-path/pci-0000:01:00.0-nvme-1");
    assert_eq!(
        (disk.model.as_str(), disk.serial.as_str()),
        ("Example SSD 970", "S4EWNX0N")
    );
    assert_eq!(
        (disk.wwn.as_str(), disk.firmware.as_str()),
        ("eui.0025385b71b0a9ee", "2B2QEXE7")
    );
    assert_eq!(disk.wwn_with_extension, disk.wwn);
    assert_eq!((disk.transport, disk.rotational), (Transport::Nvme, false));
}

#[test]
fn nvme_multipath_shows_one_disk_and_hides_its_paths() {
    let controller = "pci0000:00/0000:00:04.0/nvme/nvme1";
    let subsystem = "virtual/nvme-subsystem/nvme-subsys1";
    let disk = Disks::new()
        .block("nvme1c1n1", &format!("{controller}/nvme1c1n1"), 1)
        .file(&format!("sys/devices/{controller}/nvme1c1n1/hidden"), "1\n")
        .block("nvme1n1", &format!("{subsystem}/nvme1n1"), 1)
        .file(&format!("sys/devices/{subsystem}/nvme1n1/nsid"), "1\n")
        .file(&format!("sys/devices/{subsystem}/serial"), "SHARED\n");
    let disk = Disks(disk.0.link(
        &format!("sys/devices/{subsystem}/nvme1"),
        "../../../pci0000:00/0000:00:04.0/nvme/nvme1",
    ));
    let disk = disk.one();
    assert_eq!(
        (disk.name.as_str(), disk.serial.as_str()),
        ("/dev/nvme1n1", "SHARED")
    );
    assert_eq!(disk.by_path, "/dev/disk/by-path/pci-0000:00:04.0-nvme-1");
}

#[test]
fn a_sata_disk_shows_its_whole_model() {
    let disk = Disks::new().sata().one();
    assert_eq!(disk.model, "MODEL-16-LETTERS-AND-MORE");
    assert_eq!(
        (disk.serial.as_str(), disk.firmware.as_str()),
        ("SERIAL-1", "1.0 BETA")
    );
    assert_eq!((disk.vendor.as_str(), disk.hctl.as_str()), ("ACME", "1:0:0:0"));
    assert_eq!(disk.wwn, "0x5000c500a0b1c2d3");
    assert_eq!(disk.wwn_vendor_extension, "");
    assert_eq!(disk.wwn_with_extension, disk.wwn);
    assert_eq!(disk.by_path, "/dev/disk/by-path/pci-0000:00:1f.2-ata-2");
    assert_eq!(disk.transport, Transport::Ata);
}

#[test]
fn a_volume_with_naa_6_has_an_extension() {
    let unit = "sys/devices/pci0000:00/0000:00:04.0/host0/target0:2:0/0:2:0:0";
    let long = *b"\x60\x05\x07\x68\x0c\x80\x00\x00\x11\x22\x33\x44\x55\x66\x77\x88";
    let disks = Disks::new()
        .scsi("sda", "pci0000:00/0000:00:04.0/host0", "0:2:0:0")
        .file(
            &format!("{unit}/vpd_pg83"),
            page_of(0x83, &designator(0x03, &long)),
        );
    let disk = disks.one();
    assert_eq!(disk.wwn, "0x600507680c800000");
    assert_eq!(disk.wwn_vendor_extension, "0x1122334455667788");
    assert_eq!(disk.wwn_with_extension, "0x600507680c8000001122334455667788");
    assert_eq!(disk.by_path, "/dev/disk/by-path/pci-0000:00:04.0-scsi-0:2:0:0");
    assert_eq!((disk.transport, disk.hctl.as_str()), (Transport::Scsi, "0:2:0:0"));
}

#[test]
fn the_kernel_s_wwid_stands_in_for_the_page() {
    let unit = "sys/devices/pci0000:00/0000:00:04.0/host0/target0:0:0/0:0:0:0";
    let disks = Disks::new().scsi("sda", "pci0000:00/0000:00:04.0/host0", "0:0:0:0");
    let disks = Disks(disks.0.without(&format!("{unit}/vpd_pg83")))
        .file(&format!("{unit}/wwid"), "naa.5000c500a0b1c2d3\n");
    assert_eq!(disks.one().wwn, "0x5000c500a0b1c2d3");
}

#[test]
fn scsi_hosts_count_from_the_first_of_their_controller() {
    // Two hosts of one controller, found after seven others; virtio-scsi puts the disk behind virtio.
    let controller = "pci0000:00/0000:00:06.0/virtio3";
    let disks = Disks::new()
        .scsi("sda", &format!("{controller}/host8"), "8:0:1:300")
        .file(&format!("sys/devices/{controller}/host7/uevent"), "");
    assert_eq!(disks.by_path(), "pci-0000:00:06.0-scsi-1:0:1:300");
}

#[test]
fn bridges_do_not_count_but_domains_within_domains_do() {
    let disks = Disks::new()
        .block(
            "nvme0n1",
            "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0/nvme/nvme0/nvme0n1",
            1,
        )
        .file(
            "sys/devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0/nvme/nvme0/nvme0n1/nsid",
            "1\n",
        );
    assert_eq!(disks.by_path(), "pci-0000:00:0e.0-pci-10000:e1:00.0-nvme-1");
}

#[test]
fn sas_disks_are_named_by_phy_or_address() {
    let port = "pci0000:00/0000:00:02.0/0000:02:00.0/host0/port-0:0";
    let direct = |phys: &str| {
        Disks::new()
            .scsi_below("sda", &format!("{port}/end_device-0:0/target0:0:0"), "0:0:0:0")
            .file("sys/class/sas_port/port-0:0/num_phys", phys)
            .file("sys/class/sas_device/end_device-0:0/phy_identifier", "3\n")
            .file(
                "sys/class/sas_device/end_device-0:0/sas_address",
                "0x5000c500a0b1c2d1\n",
            )
    };
    assert_eq!(direct("1\n").by_path(), "pci-0000:02:00.0-sas-phy3-lun-0");
    assert_eq!(
        direct("2\n").by_path(),
        "pci-0000:02:00.0-sas-0x5000c500a0b1c2d1-lun-0"
    );
    assert_eq!(direct("1\n").one().transport, Transport::Sas);

    let expander = format!("{port}/expander-0:0/port-0:0:5/end_device-0:0:5/target0:0:5");
    let behind = Disks::new()
        .scsi_below("sdb", &expander, "0:0:5:0")
        .file("sys/class/sas_port/port-0:0:5/num_phys", "1\n")
        .file("sys/class/sas_device/end_device-0:0:5/phy_identifier", "7\n")
        .file(
            "sys/class/sas_device/expander-0:0/sas_address",
            "0x500056b31234abff\n",
        );
    assert_eq!(
        behind.by_path(),
        "pci-0000:02:00.0-sas-exp0x500056b31234abff-phy7-lun-0"
    );
}

#[test]
fn a_lun_of_an_array_behind_sas_is_told_from_a_disk() {
    let end = "pci0000:00/0000:00:02.0/0000:02:00.0/host0/port-0:0/end_device-0:0/target0:0:0";
    let told = |byte: u8| {
        let disk = Disks::new().scsi_below("sda", end, "0:0:0:0").file(
            &format!("sys/devices/{end}/0:0:0:0/inquiry"),
            [0, 0, 6, 0x12, 0x45, byte, 0x30, 2],
        );
        let disk = disk.one();
        (disk.transport, disk.asymmetric_access)
    };
    for groups in [0x10, 0x20, 0x30] {
        assert_eq!(told(groups), (Transport::Sas, true), "{groups:#x}");
    }
    assert_eq!(told(0xcf), (Transport::Sas, false), "all other bits of the byte");
    let silent = Disks::new().scsi_below("sda", end, "0:0:0:0").one();
    assert!(!silent.asymmetric_access);
}

#[test]
fn network_disks_are_named_by_their_target() {
    let fibre = "pci0000:00/0000:05:00.0/host1/rport-1:0-0/target1:0:0";
    let disks = Disks::new().scsi_below("sda", fibre, "1:0:0:256").file(
        "sys/class/fc_transport/target1:0:0/port_name",
        "0x50060e8012345678\n",
    );
    assert_eq!(
        disks.by_path(),
        "pci-0000:05:00.0-fc-0x50060e8012345678-lun-0x0100000000000000"
    );
    assert_eq!(disks.one().transport, Transport::Fc);

    // Software iSCSI hangs on no bus at all.
    let disks = Disks::new()
        .scsi_below("sdb", "platform/host2/session1/target2:0:0", "2:0:0:1")
        .file(
            "sys/class/iscsi_session/session1/targetname",
            "iqn.2026-01.org.example:a\n",
        )
        .file(
            "sys/class/iscsi_connection/connection1:0/persistent_address",
            "10.0.0.9\n",
        )
        .file(
            "sys/class/iscsi_connection/connection1:0/persistent_port",
            "3260\n",
        );
    assert_eq!(
        disks.by_path(),
        "ip-10.0.0.9:3260-iscsi-iqn.2026-01.org.example:a-lun-1"
    );
    assert_eq!(disks.one().transport, Transport::Iscsi);
}

#[test]
fn a_usb_stick_has_the_serial_of_its_plug() {
    let usb = "pci0000:00/0000:00:14.0/usb1/1-2";
    let host = format!("{usb}/1-2:1.0/host6");
    let disks = Disks::new()
        .scsi("sdb", &host, "6:0:0:0")
        .file(&format!("sys/devices/{usb}/serial"), "4C5300012\n")
        .file(
            &format!("sys/devices/{host}/target6:0:0/6:0:0:0/block/sdb/removable"),
            "1\n",
        );
    let page = format!("sys/devices/{host}/target6:0:0/6:0:0:0/vpd_pg80");
    let disk = Disks(disks.0.without(&page)).one();
    assert_eq!(
        disk.by_path,
        "/dev/disk/by-path/pci-0000:00:14.0-usb-0:2:1.0-scsi-0:0:0:0"
    );
    assert_eq!(
        (disk.transport, disk.serial.as_str()),
        (Transport::Usb, "4C5300012")
    );
    assert!(disk.removable);
}

/// The disk behind `host`, of which the kernel says that it can be taken out.
fn flagged(host: &str) -> (Transport, bool) {
    let flag = format!("sys/devices/{host}/target0:0:0/0:0:0:0/block/sda/removable");
    let disk = Disks::new().scsi("sda", host, "0:0:0:0").file(&flag, "1\n").one();
    (disk.transport, disk.removable)
}

#[test]
fn a_volume_of_a_raid_controller_is_not_taken_out_whatever_its_driver_says() {
    let host = "pci0000:00/0000:00:03.0/0000:03:00.0/host0";
    assert_eq!(flagged(host), (Transport::Scsi, false));
}

#[test]
fn a_cartridge_behind_sata_is_taken_out() {
    let host = "pci0000:00/0000:00:17.0/ata1/host0";
    assert_eq!(flagged(host), (Transport::Ata, true));
}

#[test]
fn a_card_is_told_from_a_chip() {
    for (kind, transport) in [
        ("MMC", Transport::Mmc),
        ("SD", Transport::Sd),
        ("SDcombo", Transport::Sd),
    ] {
        let card = "pci0000:00/mmc_host/mmc0/mmc0:0001";
        let disk = Disks::new()
            .block("mmcblk0", &format!("{card}/block/mmcblk0"), 2)
            .file(&format!("sys/devices/{card}/type"), format!("{kind}\n"));
        assert_eq!(disk.one().transport, transport, "{kind}");
    }
}

#[test]
fn a_disk_with_blocks_of_4096_bytes_is_no_larger_for_it() {
    let disk = Disks::new().virtio().file(
        "sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vda/queue/logical_block_size",
        "4096\n",
    );
    let disk = disk.one();
    assert_eq!((disk.logical_block_bytes, disk.size_bytes), (4096, 1 << 30));
}

#[test]
fn what_is_no_disk_is_left_out() {
    let mut disks = Disks::new().virtio();
    for name in ["loop0", "ram0", "zram0", "dm-0", "md127", "md_d0", "nbd0"] {
        disks = disks.block(name, &format!("virtual/block/{name}"), 0);
    }
    disks = disks
        .block(
            "sr0",
            "pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sr0",
            2,
        )
        .block("fd0", "platform/floppy.0/block/fd0", 2)
        .block("mmcblk0boot0", "pci0000:00/mmc0/mmc0:0001/block/mmcblk0boot0", 2)
        .block(
            "sdz",
            "pci0000:00/0000:00:04.0/host9/target9:0:0/9:0:0:0/block/sdz",
            2,
        )
        .file(
            "sys/devices/pci0000:00/0000:00:04.0/host9/target9:0:0/9:0:0:0/block/sdz/size",
            "0\n",
        )
        .file(
            "sys/devices/pci0000:00/0000:00:04.0/host9/target9:0:0/9:0:0:0/block/sdz/removable",
            "1\n",
        );
    assert_eq!(disks.one().name, "/dev/vda");
}

#[test]
fn disks_stand_in_the_order_of_their_names() {
    let mut names = vec!["sdaa", "vdb", "sdb", "nvme10n1", "sda", "nvme2n1", "vda"];
    names.sort_by(|a, b| natural(a).cmp(&natural(b)));
    assert_eq!(names, ["nvme2n1", "nvme10n1", "sda", "sdb", "sdaa", "vda", "vdb"]);
}
