//! Which modules go into which ramdisk: tables, and the one function that reads them.
//!
//! A pattern with a slash is compared with a module's path below `lib/modules/VERSION`, one without with its name
//! (with underscores); `*` also crosses slashes.
//! Dependencies come along by themselves, so no table names them.

use std::collections::BTreeSet;

use crate::glob;
use crate::modules::Catalogue;

/// A named set of modules, and the kernel that it is meant for.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// The name that Segments and directories use.
    pub name: &'static str,
    /// Debian's package that depends on the newest kernel of the fitting flavour.
    pub package: &'static str,
    groups: &'static [&'static [Rule]],
}

/// One reason to take modules along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    /// Modules to take.
    take: &'static [&'static str],
    /// Those among them to leave out all the same; another rule or a dependency may still take them.
    leave: &'static [&'static str],
    presence: Presence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// Each pattern must match a module or a driver inside the kernel, or the profile fails its purpose.
    Needed,
    /// Kernel flavours differ; what is absent is absent.
    WherePresent,
}

use Presence::{Needed, WherePresent};

const fn needed(take: &'static [&'static str]) -> Rule {
    Rule {
        take,
        leave: &[],
        presence: Needed,
    }
}

const fn where_present(take: &'static [&'static str], leave: &'static [&'static str]) -> Rule {
    Rule {
        take,
        leave,
        presence: WherePresent,
    }
}

/// Virtual machines of the usual hypervisors and clouds.
const VIRTUAL: &[Rule] = &[
    // QEMU and everything that speaks virtio; without the entropy source, TLS waits for the kernel's pool.
    needed(&[
        "virtio_pci",
        "virtio_net",
        "virtio_blk",
        "virtio_scsi",
        "virtio_rng",
    ]),
    needed(&["nvme", "sd_mod"]),
    // QEMU's emulated classics.
    where_present(&["ahci", "ata_piix", "e1000", "e1000e"], &[]),
    // CD-ROM drives that a hypervisor or a BMC plugs in.
    where_present(&["sr_mod", "isofs"], &[]),
    // EFI system partition and config drive; mounting vfat asks for its character sets by name.
    needed(&["vfat", "nls_cp437", "nls_ascii"]),
    where_present(&["nls_utf8", "nls_iso8859_1"], &[]),
    // Boot entries.
    needed(&["efivarfs"]),
    // Settings that the hypervisor passes in.
    where_present(&["qemu_fw_cfg"], &[]),
    // VMware, Hyper-V, Amazon, Google.
    where_present(
        &["vmxnet3", "vmw_pvscsi", "hv_netvsc", "hv_storvsc", "ena", "gve"],
        &[],
    ),
];

/// Physical servers.
const PHYSICAL: &[Rule] = &[
    where_present(
        &["kernel/drivers/net/ethernet/*"],
        &[
            // Switch chips, which are no server's port.
            "kernel/drivers/net/ethernet/mellanox/mlxsw/*",
            // SmartNICs that are dead without their vendor's firmware: 1.2 MB.
            "kernel/drivers/net/ethernet/netronome/*",
            // Cards of two generations before sfc's, long out of service.
            "kernel/drivers/net/ethernet/sfc/falcon/*",
            // Firmware-offloaded iSCSI and FCoE beside bnx2 and bnx2x; of no use for their Ethernet.
            "cnic",
            // PCMCIA cards.
            "*_cs",
        ],
    ),
    // PHY drivers: the kernel asks modprobe for them, which is not there. Those that a port needs are loaded before its driver (`ASKED` in
    // `modules.rs`, or as that says itself); for the others the kernel's own driver for any PHY does.
    where_present(&["kernel/drivers/net/phy/*"], &["fixed_phy"]),
    // VLANs and bonds that a switch may insist on; a BMC's network interface on USB.
    needed(&["8021q", "bonding"]),
    where_present(&["cdc_ether", "rndis_host"], &[]),
    needed(&["ahci", "megaraid_sas", "mpt3sas", "smartpqi", "hpsa", "aacraid"]),
    where_present(
        &["kernel/drivers/ata/*"],
        &[
            // Probes ISA ports blindly.
            "pata_legacy",
            "pata_pcmcia",
        ],
    ),
    where_present(
        &["kernel/drivers/scsi/*", "kernel/drivers/message/fusion/*"],
        &[
            // Fibre Channel and iSCSI offload, for disks outside the server: the largest drivers of all; lpfc and
            // qla2xxx alone are 3.2 MB in memory and 0.8 MB to send.
            "lpfc",
            "qla2xxx",
            "tcm_qla2xxx",
            "qla4xxx",
            "bfa",
            "be2iscsi",
            "bnx2fc",
            "bnx2i",
            "csiostor",
            "cxgb3i",
            "cxgb4i",
            "fcoe",
            "libfc*",
            "fnic",
            "snic",
            "qedf",
            "qedi",
            "mptfc",
            "mptlan",
            "*iscsi*",
            "scsi_transport_srp",
            // A disk that does not exist.
            "scsi_debug",
            // Tapes and changers.
            "st",
            "ch",
            // PCMCIA, and a paravirtual driver that dom0 hosts do not need.
            "*_cs",
            "xen_scsifront",
        ],
    ),
    // NVMe behind Intel's volume management device is invisible without it.
    needed(&["vmd"]),
    where_present(&["mtip32xx"], &[]),
    needed(&["ipmi_si", "ipmi_devintf", "ipmi_msghandler"]),
    // SMBus variants of the BMC's interface, and the usual bus they hang on.
    where_present(&["ipmi_ssif", "i2c_i801"], &[]),
    // The common TPM drivers are inside Debian's kernels; these are the rare ones.
    where_present(
        &["kernel/drivers/char/tpm/*"],
        &["tpm_vtpm_proxy", "xen_tpmfront"],
    ),
    needed(&["md_mod", "raid0", "raid1", "raid10", "raid456", "dm_mod"]),
    where_present(&["linear"], &[]),
    // Virtual media and keyboards of a BMC are USB devices.
    needed(&["usb_storage", "usbhid", "hid_generic", "xhci_pci", "ehci_pci"]),
    where_present(&["uas", "uhci_hcd", "ohci_pci"], &[]),
    needed(&["ext4"]),
];

/// For tests and virtual machines: Debian's cloud kernel.
pub const LAB: Profile = Profile {
    name: "lab",
    package: "linux-image-cloud-amd64",
    groups: &[VIRTUAL],
};

/// For real servers: Debian's full kernel.
pub const SERVER: Profile = Profile {
    name: "server",
    package: "linux-image-amd64",
    groups: &[VIRTUAL, PHYSICAL],
};

/// Why a kernel cannot serve a profile.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("choose modules for profile {profile}: the kernel has no {pattern}")]
pub struct Absent {
    /// The profile's name.
    pub profile: &'static str,
    /// The pattern that matches neither a module nor a driver inside the kernel.
    pub pattern: &'static str,
}

/// Every profile there is.
pub const ALL: &[Profile] = &[LAB, SERVER];

impl Profile {
    /// The profile of that name.
    pub fn named(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|profile| profile.name == name)
    }

    /// The names of the modules that the tables take from `catalogue`, without dependencies.
    pub fn choose(&self, catalogue: &Catalogue) -> Result<BTreeSet<String>, Absent> {
        let mut chosen = BTreeSet::new();
        for rule in self.groups.iter().copied().flatten() {
            for &pattern in rule.take {
                let builtin = catalogue
                    .builtins()
                    .any(|(name, path)| matches(pattern, name, path));
                let mut present = builtin;
                for (name, module) in catalogue.iter() {
                    if !matches(pattern, name, &module.path) {
                        continue;
                    }
                    present = true;
                    if !rule.leave.iter().any(|leave| matches(leave, name, &module.path)) {
                        chosen.insert(name.to_owned());
                    }
                }
                if rule.presence == Needed && !present {
                    return Err(Absent {
                        profile: self.name,
                        pattern,
                    });
                }
            }
        }
        Ok(chosen)
    }
}

fn matches(pattern: &str, name: &str, path: &str) -> bool {
    glob::matches(pattern, if pattern.contains('/') { path } else { name })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::object;

    fn kernel(modules: &[&str], builtin: &str) -> Catalogue {
        let ko = object(&[(".modinfo", b"depends=\0")]);
        let files = modules
            .iter()
            .map(|path| (format!("kernel/{path}.ko"), ko.clone()));
        let builtin = ("modules.builtin".to_owned(), builtin.as_bytes().to_vec());
        Catalogue::index(files.chain([builtin])).unwrap()
    }

    const TEST: Profile = Profile {
        name: "test",
        package: "",
        groups: &[&[
            needed(&["disk_a"]),
            where_present(&["kernel/net/*", "gone"], &["kernel/net/huge/*", "toy_*"]),
        ]],
    };

    #[test]
    fn exclusions_hold_within_their_rule() {
        let kernel = kernel(
            &[
                "x/disk-a",
                "net/card",
                "net/huge/switch",
                "net/toy-1",
                "other/net/y",
            ],
            "",
        );
        let chosen = TEST.choose(&kernel).unwrap();
        assert_eq!(chosen.into_iter().collect::<Vec<_>>(), ["card", "disk_a"]);
    }

    #[test]
    fn a_needed_driver_may_be_inside_the_kernel_but_not_absent() {
        let inside = kernel(&["net/card"], "kernel/x/disk-a.ko\n");
        assert_eq!(
            TEST.choose(&inside).unwrap().into_iter().collect::<Vec<_>>(),
            ["card"]
        );
        let absent = kernel(&["net/card"], "");
        assert_eq!(
            TEST.choose(&absent),
            Err(Absent {
                profile: "test",
                pattern: "disk_a"
            })
        );
    }

    #[test]
    fn server_takes_all_that_lab_takes() {
        assert!(LAB.groups.iter().all(|group| SERVER.groups.contains(group)));
    }

    #[test]
    fn names_in_the_tables_are_written_as_the_kernel_writes_them() {
        for rule in ALL
            .iter()
            .flat_map(|profile| profile.groups.iter().copied().flatten())
        {
            for pattern in rule.take.iter().chain(rule.leave) {
                assert!(
                    pattern.contains('/') || !pattern.contains('-'),
                    "{pattern} would match nothing"
                );
            }
        }
    }
}
