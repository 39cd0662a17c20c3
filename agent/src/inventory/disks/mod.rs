//! Whole disks: what `/sys/block` shows, without udev.

mod by_path;
pub(super) mod chain;
mod raid;
mod vpd;

use std::path::{Path, PathBuf};

use muster_proto::inventory::{Disk, MAX_DEVICES, Transport};

use self::{
    chain::{Chain, Hctl},
    vpd::{Identify, Naa},
};
use super::{
    patience::{Patience, device},
    warnings::{Subject, Warnings},
};
use crate::sys::{self, Root};

/// The unit of `/sys/block/*/size`, whatever the disk's own block size (`Documentation/ABI/stable/sysfs-block`).
const SECTOR: u64 = 512;

/// What shares a first name with disks and is none: memory, optical and floppy drives, and what software made of other disks.
const NO_DISKS: &[&str] = &[
    "dm-", "drbd", "fd", "loop", "md", "mtdblock", "nbd", "ram", "sr", "zram", "zd",
];

/// The disks, in the order of their kernel names: `sda`, `sdb`, …, `sdaa`.
pub(super) fn collect(root: &Root, patience: &mut Patience, warnings: &mut Warnings) -> Vec<Disk> {
    let names = sys::absent_as_none(sys::list(&root.sys("block")));
    let mut names = warnings
        .on("disks", "block")
        .or_default(names)
        .unwrap_or_default();
    names.retain(|name| is_disk(name));
    names.sort_by(|a, b| natural(a).cmp(&natural(b)));

    let mut disks = Vec::new();
    let mut rest = names.iter();
    for name in rest.by_ref() {
        let (own_root, own_name) = (root.clone(), name.clone());
        match patience.wait(device(root.sys("block").join(name)), move || {
            read(&own_root, &own_name)
        }) {
            Some((disk, said)) => {
                warnings.append(said);
                disks.extend(disk);
            }
            None => warnings.on("disks", name).say("its driver does not answer"),
        }
        if disks.len() == MAX_DEVICES {
            break;
        }
    }
    if rest.len() > 0 {
        warnings
            .on("disks", "block")
            .say(format!("{} more block devices are not listed", rest.len()));
    }
    disks
}

/// Fills in which of `disks` are members of a firmware RAID. For this alone disks themselves are read: one that is broken or asleep stays
/// listed as it is.
pub(super) fn tell_members(
    root: &Root,
    disks: &mut [Disk],
    patience: &mut Patience,
    warnings: &mut Warnings,
) {
    for disk in disks {
        let name = kernel_name(disk);
        let (block, node) = (root.sys("block").join(&name), root.dev(node(disk)));
        let (own_root, size, unit) = (root.clone(), disk.size_bytes, disk.logical_block_bytes);
        // At a place of its own: what does not hang is asked for as before.
        let asked = device(block.clone()).join("end");
        let end = patience.wait(asked, move || raid::of(&own_root, &block, &node, size, unit));
        let mut subject = warnings.on("disks", &name);
        match end {
            Some(format) => disk.firmware_raid = subject.or_default(format).to_owned(),
            None => subject
                .say("its end, where a firmware RAID would be described, is not read: it does not answer"),
        }
    }
}

/// Where the device node of `disk` is below `/dev`, such as `sda` or `cciss/c0d0`.
pub fn node(disk: &Disk) -> &str {
    disk.name.splitn(3, '/').nth(2).unwrap_or_default()
}

/// What the kernel calls `disk`, such as `sda` or `cciss!c0d0`.
pub fn kernel_name(disk: &Disk) -> String {
    node(disk).replace('/', "!")
}

/// The disk of this kernel name, as it is now.
pub(super) fn one(root: &Root, name: &str) -> Option<Disk> {
    read(root, name).0
}

/// One disk, if it is one, and what there is to say of it.
fn read(root: &Root, name: &str) -> (Option<Disk>, Warnings) {
    let mut warnings = Warnings::default();
    let mut reading = Reading {
        root,
        name,
        block: root.sys("block").join(name),
        subject: warnings.on("disks", name),
    };
    (reading.disk(), warnings)
}

/// By the name alone; loop devices and their like are many.
fn is_disk(name: &str) -> bool {
    let numbered = |prefix: &&str| {
        name.strip_prefix(*prefix)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit() || c == '_'))
    };
    // The boot areas of an eMMC chip have block devices of their own.
    let boot_area = name.starts_with("mmcblk") && (name.contains("boot") || name.contains("rpmb"));
    !NO_DISKS.iter().any(numbered) && !boot_area
}

/// A sorting key: drivers apart, and within one the shorter names first.
fn natural(name: &str) -> (&str, usize, &str) {
    (name.get(..2).unwrap_or(name), name.len(), name)
}

/// One disk being read.
struct Reading<'a> {
    root: &'a Root,
    name: &'a str,
    block: PathBuf,
    subject: Subject<'a>,
}

/// Who a disk says it is.
#[derive(Debug, Default)]
struct Names {
    model: String,
    vendor: String,
    serial: String,
    firmware: String,
}

/// False where the kernel's flag says nothing of what somebody takes along: `aacraid` sets it on each of its volumes so that their size is
/// asked for anew, and those hang at a bus of no kind that is known. (What says so of itself behind SATA or SAS is a cartridge.)
fn may_be_taken_out(transport: Transport) -> bool {
    transport != Transport::Scsi
}

impl Reading<'_> {
    /// `None` for what is no disk, has no medium, or does not tell its size.
    fn disk(&mut self) -> Option<Disk> {
        let parents = self.root.ancestors(&self.block);
        let chain = Chain::new(self.subject.or_default(parents));
        // One path of several to an NVMe namespace has a block device of its own that nobody can open.
        if chain.is_virtual() || self.flag("hidden") {
            return None;
        }
        let sectors: u64 = self.subject.or_none(sys::number(&self.block.join("size")))?;
        let transport = match chain.transport() {
            // Linux documents the names in mmc_type_show (drivers/mmc/core/bus.c); cards that do IO, too, are `SDcombo`.
            Transport::Mmc if self.text("device/type").starts_with("SD") => Transport::Sd,
            other => other,
        };
        if sectors == 0 {
            // An empty card reader or drive has no size either.
            let has_slot = self.flag("removable") || matches!(transport, Transport::Usb | Transport::Sd);
            if !has_slot {
                self.subject
                    .say("has no size, so it is left out: its sectors may have 520 bytes or metadata, or it is locked or broken");
            }
            return None;
        }
        let identify = self.identify(transport);
        let names = self.names(&chain, transport, identify.as_ref());
        let naa = self.naa(identify.as_ref());
        let wwid = self.wwid(transport);
        Some(Disk {
            name: format!("/dev/{}", self.name.replace('!', "/")),
            by_path: by_path::by_path(self.root, &self.block, &chain).unwrap_or_default(),
            model: names.model,
            vendor: names.vendor,
            serial: names.serial,
            wwn: naa.map_or_else(|| wwid.clone(), Naa::name),
            wwn_vendor_extension: naa.map(Naa::vendor_extension).unwrap_or_default(),
            wwn_with_extension: naa.map_or(wwid, Naa::with_extension),
            firmware: names.firmware,
            size_bytes: sectors.saturating_mul(SECTOR),
            logical_block_bytes: self.number("queue/logical_block_size"),
            physical_block_bytes: self.number("queue/physical_block_size"),
            rotational: self.flag("queue/rotational"),
            removable: self.flag("removable") && may_be_taken_out(transport),
            read_only: self.flag("ro"),
            zoned: self.text("queue/zoned") == "host-managed",
            asymmetric_access: self.has_port_groups(),
            firmware_raid: String::new(),
            hctl: self.hctl(),
            transport,
        })
    }

    fn names(&mut self, chain: &Chain, transport: Transport, identify: Option<&Identify>) -> Names {
        let mut names = Names {
            vendor: self.text("device/vendor"),
            ..Names::default()
        };
        match transport {
            Transport::Nvme => {
                names.model = self.text("device/model");
                names.serial = self.text("device/serial");
                names.firmware = self.text("device/firmware_rev");
            }
            Transport::Mmc | Transport::Sd => {
                names.model = self.text("device/name");
                names.serial = self.text("device/serial");
                names.firmware = self.text("device/fwrev");
            }
            Transport::Virtio | Transport::Unknown => {
                names.model = self.text("device/model");
                names.serial = self.text("serial");
            }
            Transport::Ata
            | Transport::Sas
            | Transport::Scsi
            | Transport::Usb
            | Transport::Fc
            | Transport::Iscsi => {
                names.model = self.text("device/model");
                names.serial = vpd::serial(&self.page("device/vpd_pg80"));
                names.firmware = self.text("device/rev");
            }
        }
        if let Some(ata) = identify {
            longer(&mut names.model, &ata.model);
            longer(&mut names.serial, &ata.serial);
            longer(&mut names.firmware, &ata.firmware);
        }
        if transport == Transport::Usb && names.serial.is_empty() {
            names.serial = self.subject.or_default(chain.usb_serial()).unwrap_or_default();
        }
        names
    }

    /// What a SATA disk says of itself, also behind a SAS controller. A USB bridge may make it up.
    fn identify(&mut self, transport: Transport) -> Option<Identify> {
        matches!(transport, Transport::Ata | Transport::Sas | Transport::Scsi)
            .then(|| vpd::identify(&self.page("device/vpd_pg89")))?
    }

    fn naa(&mut self, identify: Option<&Identify>) -> Option<Naa> {
        vpd::naa(&self.page("device/vpd_pg83"))
            .or_else(|| Naa::from_wwid(&self.text("device/wwid")))
            .or_else(|| identify?.wwn)
    }

    /// NVMe has no NAA: the kernel's own choice among NGUID, EUI-64 and model with serial number.
    fn wwid(&mut self, transport: Transport) -> String {
        if transport == Transport::Nvme {
            self.text("wwid")
        } else {
            String::new()
        }
    }

    /// True if the standard inquiry data have a value in TPGS (SPC-4 6.4.2): groups of target ports are what arrays have.
    fn has_port_groups(&mut self) -> bool {
        const TPGS: u8 = 0x30;
        let inquiry = self.page("device/inquiry");
        inquiry.get(5).is_some_and(|byte| byte & TPGS != 0)
    }

    fn hctl(&self) -> String {
        let name = sys::link_name(&self.block.join("device")).unwrap_or_default();
        Hctl::parse(&name).map_or_else(String::new, |_| name)
    }

    fn text(&mut self, attribute: &str) -> String {
        let read = sys::optional_text(&self.block.join(attribute));
        self.subject.or_default(read).unwrap_or_default()
    }

    fn number(&mut self, attribute: &str) -> u32 {
        let read = sys::optional_number(&self.block.join(attribute));
        self.subject.or_default(read).unwrap_or_default()
    }

    fn flag(&mut self, attribute: &str) -> bool {
        let read = sys::optional_flag(&self.block.join(attribute));
        self.subject.or_default(read)
    }

    fn page(&mut self, attribute: &str) -> Vec<u8> {
        let path: &Path = &self.block.join(attribute);
        let read = sys::absent_as_none(sys::bytes(path));
        self.subject.or_default(read).unwrap_or_default()
    }
}

/// Puts `whole` in the place of `short`, which is a cut copy of it, or nothing.
fn longer(short: &mut String, whole: &str) {
    if whole.len() > short.len() && whole.starts_with(short.as_str()) {
        whole.clone_into(short);
    }
}

#[cfg(test)]
mod tests;
