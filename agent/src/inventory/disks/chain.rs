//! A disk's parents in sysfs: on which buses it hangs, told by the names that the kernel gives to devices.

use std::path::{Path, PathBuf};

use muster_proto::inventory::Transport;

use crate::sys::{self, base};

/// What a directory of sysfs is, as far as disks care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// `0000:00:04.0`
    Pci,
    /// `virtio3`
    Virtio,
    /// `nvme0`, a controller
    Nvme,
    /// `nvme-subsys0`, several controllers as one
    NvmeSubsystem,
    /// `2:0:1:0`, a logical unit
    Scsi(Hctl),
    /// `host2`
    ScsiHost(u32),
    /// `ata3`
    AtaPort,
    /// `end_device-2:0:1` of a SAS domain
    SasEnd,
    /// `rport-2:0-1`
    FibrePort,
    /// `session1`
    IscsiSession,
    /// `1-2:1.0` or `1-2`
    Usb,
    /// `usb1`
    UsbBus,
    /// `mmc0:0001`
    Mmc,
    /// `VMBUS:00`, `vmbus_0_1`: Hyper-V
    Vmbus,
    /// Any other.
    Other,
}

/// SCSI host, channel, target and unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hctl {
    pub(super) host: u32,
    pub(super) channel: u32,
    pub(super) target: u32,
    pub(super) unit: u64,
}

impl Hctl {
    /// From `host:channel:target:unit`.
    pub(super) fn parse(name: &str) -> Option<Hctl> {
        let mut parts = name.split(':').filter(|part| is_number(part));
        let parsed = Hctl {
            host: parts.next()?.parse().ok()?,
            channel: parts.next()?.parse().ok()?,
            target: parts.next()?.parse().ok()?,
            unit: parts.next()?.parse().ok()?,
        };
        (name.split(':').count() == 4).then_some(parsed)
    }
}

impl Link {
    fn of(name: &str) -> Link {
        let numbered = |prefix: &str| name.strip_prefix(prefix).filter(|rest| is_number(rest));
        if is_pci(name) {
            Link::Pci
        } else if let Some(hctl) = Hctl::parse(name) {
            Link::Scsi(hctl)
        } else if let Some(number) = numbered("host").and_then(|number| number.parse().ok()) {
            Link::ScsiHost(number)
        } else if numbered("virtio").is_some() {
            Link::Virtio
        } else if numbered("nvme").is_some() {
            Link::Nvme
        } else if numbered("nvme-subsys").is_some() {
            Link::NvmeSubsystem
        } else if numbered("ata").is_some() {
            Link::AtaPort
        } else if numbered("session").is_some() {
            Link::IscsiSession
        } else if numbered("usb").is_some() {
            Link::UsbBus
        } else if is_usb(name) {
            Link::Usb
        } else if name.starts_with("end_device-") {
            Link::SasEnd
        } else if name.starts_with("rport-") {
            Link::FibrePort
        } else if name.starts_with("VMBUS") || name.starts_with("vmbus_") {
            Link::Vmbus
        } else if name
            .split_once(':')
            .is_some_and(|(host, _)| is_numbered(host, "mmc"))
        {
            Link::Mmc
        } else {
            Link::Other
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(is_number)
}

/// `domain:bus:device.function`, such as `0000:3b:00.0` or `10000:e1:00.0`.
pub(in crate::inventory) fn is_pci(name: &str) -> bool {
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut parts = name.splitn(3, ':');
    let (Some(domain), Some(bus), Some(slot)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let Some((device, function)) = slot.split_once('.') else {
        return false;
    };
    domain.len() >= 4 && [domain, bus, device, function].into_iter().all(is_hex)
}

/// `bus-port.port:configuration.interface` or the same without an interface.
pub(in crate::inventory) fn is_usb(name: &str) -> bool {
    let Some((bus, rest)) = name.split_once('-') else {
        return false;
    };
    let (ports, interface) = rest.split_once(':').unwrap_or((rest, "1.0"));
    is_number(bus) && ports.split('.').all(is_number) && interface.split('.').all(is_number)
}

/// The parents of a disk, nearest first, from the block device up.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    links: Vec<(PathBuf, Link)>,
}

impl Chain {
    /// `parents` as [`sys::Root::ancestors`] gives them.
    pub(super) fn new(parents: Vec<PathBuf>) -> Chain {
        let links = parents
            .into_iter()
            .map(|path| {
                let link = Link::of(base(&path));
                (path, link)
            })
            .collect();
        Chain { links }
    }

    /// True for a device that software made, such as a loop device. NVMe namespaces with several paths and those across a
    /// network stand among them, too, and are disks.
    pub(super) fn is_virtual(&self) -> bool {
        let names = || self.links.iter().map(|(path, _)| base(path));
        let fabric = names().any(|name| matches!(name, "nvme-subsystem" | "nvme-fabrics"));
        names().next_back() == Some("virtual") && !fabric
    }

    /// How the disk is attached; the innermost protocol that tells apart what a user sees, so that a SATA disk behind USB is
    /// a USB disk.
    pub(super) fn transport(&self) -> Transport {
        let has = |wanted: fn(&Link) -> bool| self.links.iter().any(|(_, link)| wanted(link));
        if has(|link| matches!(link, Link::Nvme | Link::NvmeSubsystem)) {
            Transport::Nvme
        } else if has(|link| matches!(link, Link::UsbBus)) {
            Transport::Usb
        } else if has(|link| matches!(link, Link::AtaPort)) {
            Transport::Ata
        } else if has(|link| matches!(link, Link::SasEnd)) {
            Transport::Sas
        } else if has(|link| matches!(link, Link::FibrePort)) {
            Transport::Fc
        } else if has(|link| matches!(link, Link::IscsiSession)) {
            Transport::Iscsi
        } else if has(|link| matches!(link, Link::Mmc)) {
            Transport::Mmc
        } else if has(|link| matches!(link, Link::Scsi(_))) {
            Transport::Scsi
        } else if has(|link| matches!(link, Link::Virtio)) {
            Transport::Virtio
        } else {
            Transport::Unknown
        }
    }

    /// The nearest parent of a kind, and where it stands.
    pub(super) fn find(&self, wanted: impl Fn(&Link) -> bool) -> Option<&Path> {
        self.iter().find_map(|(path, link)| wanted(&link).then_some(path))
    }

    /// From the block device up.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Path, Link)> {
        self.links.iter().map(|(path, link)| (path.as_path(), *link))
    }

    /// The serial number of the USB device that the disk is, or is behind.
    pub(super) fn usb_serial(&self) -> Result<Option<String>, sys::ReadError> {
        let device = self
            .iter()
            .find(|(path, link)| *link == Link::Usb && !base(path).contains(':'));
        match device {
            Some((path, _)) => sys::optional_text(&path.join("serial")),
            None => Ok(None),
        }
    }
}
