//! Members of a firmware RAID.

use super::*;

const IMSM: &[u8] = b"Intel Raid ISM Cfg Sig. 1.3.00";

/// `mark`, then zeros: as many bytes as stand at a disk's end.
fn end_of(mark: &[u8], len: usize) -> Vec<u8> {
    let mut end = mark.to_vec();
    end.resize(len, 0);
    end
}

/// A SATA disk of 8 KiB whose controller is of `class`.
fn small_sata(class: &str) -> Disks {
    let controller = "sys/devices/pci0000:00/0000:00:1f.2";
    Disks::new()
        .sata()
        .file(&format!("{controller}/class"), class)
        .file(
            &format!("{controller}/ata2/host1/target1:0:0/1:0:0:0/block/sda/size"),
            "16\n",
        )
}

#[test]
fn a_member_of_a_firmware_raid_is_told_by_its_end() {
    let told = |class: &str, end: &[u8]| {
        let content = [&vec![0; 8192 - end.len()][..], end].concat();
        small_sata(class).file("dev/sda", content).one().firmware_raid
    };
    let raid = "0x010400\n";
    assert_eq!(told(raid, &end_of(IMSM, 1024)), "IMSM");
    assert_eq!(told(raid, &end_of(b"\xde\x11\xde\x11", 512)), "DDF");
    assert_eq!(told(raid, &end_of(b"\x11\xde\x11\xde", 512)), "DDF");
    for elsewhere in [
        end_of(IMSM, 512),
        end_of(b"\xde\x11\xde\x11", 1024),
        vec![0; 1024],
    ] {
        assert_eq!(told(raid, &elsewhere), "");
    }
    // What is left of another machine: firmware makes no volumes of disks at an AHCI controller.
    assert_eq!(told("0x010601\n", &end_of(IMSM, 1024)), "");
}

#[test]
fn a_member_with_blocks_of_4096_bytes_behind_vmd_is_told_also_where_its_controllers_are_one() {
    let vmd = "pci0000:00/0000:00:0e.0";
    let controller = format!("{vmd}/pci10000:e0/10000:e0:06.0/10000:e1:00.0/nvme/nvme1");
    let subsystem = "virtual/nvme-subsystem/nvme-subsys1";
    let at = format!("sys/devices/{subsystem}/nvme1n1");
    let content = [vec![0; 8192], end_of(IMSM, 8192)].concat();
    let disk = Disks::new()
        .block("nvme1n1", &format!("{subsystem}/nvme1n1"), 1)
        .file(&format!("{at}/size"), "32\n")
        .file(&format!("{at}/queue/logical_block_size"), "4096\n")
        .file(&format!("sys/devices/{controller}/cntlid"), "0\n")
        .file(&format!("sys/devices/{vmd}/class"), "0x010400\n")
        .file("dev/nvme1n1", content);
    let disk = Disks(disk.0.link(
        &format!("sys/devices/{subsystem}/nvme1"),
        &format!("../../../{controller}"),
    ));
    assert_eq!(disk.one().firmware_raid, "IMSM");
}

#[test]
fn a_disk_whose_end_cannot_be_read_costs_a_warning_and_is_listed() {
    let disks = Disks(small_sata("0x010400\n").0.directory("dev/sda"));
    let (found, warnings) = disks.read();
    assert_eq!((found.len(), found[0].firmware_raid.as_str()), (1, ""));
    assert_eq!((warnings.len(), warnings[0].subject.as_str()), (1, "sda"));

    // Nor does one that never answers go, or keep a job that looks for its disks.
    let disks = small_sata("0x010400\n");
    let node = disks.0.root().dev("sda");
    std::fs::create_dir_all(node.parent().unwrap()).unwrap();
    nix::unistd::mkfifo(&node, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut warnings = Warnings::default();
    let root = disks.0.root();
    let mut found = collect(&root, &mut Patience::default(), &mut warnings);
    let mut patience = Patience::of(std::time::Duration::from_millis(50));
    tell_members(&root, &mut found, &mut patience, &mut warnings);
    let said = warnings.finish();
    assert_eq!((found.len(), said.len()), (1, 1), "{said:?}");
    assert!(said[0].message.contains("does not answer"), "{said:?}");
    assert_eq!(
        collect(&root, &mut Patience::default(), &mut Warnings::default()),
        found
    );
}
