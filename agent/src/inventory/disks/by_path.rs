//! The stable name under `/dev/disk/by-path` that systemd's udev gives to a disk: where it is plugged in.
//!
//! No udev runs here, but users name disks that way, and the installed system will have the link.
//! The rules are those of udev's built-in `path_id`, for the buses of servers.

use std::path::Path;

use super::chain::{Chain, Hctl, Link};
use crate::sys::{self, Root, base};

/// `/dev/disk/by-path/…`; `None` where udev would give none, or for a bus that is not known here.
pub(super) fn by_path(root: &Root, block: &Path, chain: &Chain) -> Option<String> {
    let mut place = Place::default();
    place.climb(root, block, chain)?;
    // A name without the slot, or without what hangs there, would fit several disks.
    if !place.has_slot || !place.has_transport {
        return None;
    }
    place.parts.reverse();
    let name = place.parts.join("-");
    let odd = |c: char| c == '/' || c.is_whitespace();
    (!name.contains(odd)).then(|| format!("/dev/disk/by-path/{name}"))
}

/// A name in the making, from the disk up.
#[derive(Debug, Default)]
struct Place {
    parts: Vec<String>,
    has_slot: bool,
    has_transport: bool,
}

impl Place {
    /// Adds a part for every bus above the first link of `chain`.
    fn climb(&mut self, root: &Root, block: &Path, chain: &Chain) -> Option<()> {
        let mut above = chain.iter().skip(1).peekable();
        while let Some((path, link)) = above.next() {
            match link {
                Link::Scsi(hctl) => {
                    let unit = ScsiUnit { root, chain, hctl };
                    self.parts.push(unit.part()?);
                    self.has_transport = true;
                    // A target across the network is a place of its own.
                    self.has_slot |= unit.is_below(Link::IscsiSession);
                }
                Link::Nvme => {
                    self.parts.push(namespace(block)?);
                    self.has_transport = true;
                }
                Link::NvmeSubsystem => {
                    self.parts.push(namespace(block)?);
                    self.has_transport = true;
                    let controller = controller(root, block, path)?;
                    return self.climb(root, block, &controller);
                }
                Link::Usb => {
                    let (_, port) = base(path).split_once('-')?;
                    self.parts.push(format!("usb-0:{port}"));
                    self.has_transport = true;
                    while above
                        .next_if(|(_, link)| matches!(link, Link::Usb | Link::UsbBus))
                        .is_some()
                    {}
                }
                Link::Virtio => self.has_transport = true,
                Link::Pci => {
                    self.parts.push(format!("pci-{}", base(path)));
                    self.has_slot = true;
                    // Bridges above the device do not count.
                    while above.next_if(|(_, link)| *link == Link::Pci).is_some() {}
                }
                Link::Vmbus => return None,
                Link::Other if is_platform(path) => {
                    self.parts.push(format!("platform-{}", base(path)));
                    self.has_slot = true;
                    self.has_transport = true;
                    while above.next_if(|(path, _)| is_platform(path)).is_some() {}
                }
                _ => {}
            }
        }
        Some(())
    }
}

/// Devices that firmware tables describe rather than a bus: Arm's PCI hosts and eMMC.
fn is_platform(path: &Path) -> bool {
    sys::link_name(&path.join("subsystem")).as_deref() == Some("platform")
}

fn namespace(block: &Path) -> Option<String> {
    let id: u32 = sys::number(&block.join("nsid")).ok()?;
    Some(format!("nvme-{id}"))
}

/// One controller of an NVMe subsystem: the one that gave the disk its number, else the first.
pub(super) fn controller(root: &Root, block: &Path, subsystem: &Path) -> Option<Chain> {
    let chain_of = |name: &str| {
        let parents = root.ancestors(&subsystem.join(name)).ok()?;
        let chain = Chain::new(parents);
        let is_controller = chain.iter().next().is_some_and(|(_, link)| link == Link::Nvme);
        is_controller.then_some(chain)
    };
    let (number, _) = base(block).strip_prefix("nvme")?.split_once('n')?;
    chain_of(&format!("nvme{number}")).or_else(|| {
        let names = sys::list(subsystem).ok()?;
        names.iter().find_map(|name| chain_of(name))
    })
}

/// A SCSI logical unit and all that is above it.
struct ScsiUnit<'a> {
    root: &'a Root,
    chain: &'a Chain,
    hctl: Hctl,
}

impl ScsiUnit<'_> {
    fn part(&self) -> Option<String> {
        if self.is_below(Link::FibrePort) {
            self.fibre_channel()
        } else if self.is_below(Link::SasEnd) {
            self.sas()
        } else if self.is_below(Link::IscsiSession) {
            self.iscsi()
        } else if self.is_below(Link::AtaPort) {
            self.ata()
        } else if self.is_below(Link::Vmbus) {
            None
        } else {
            self.by_host()
        }
    }

    fn is_below(&self, wanted: Link) -> bool {
        self.chain.find(|link| *link == wanted).is_some()
    }

    /// Units of more than 8 bits are written as the protocol's 8 bytes.
    fn unit(&self) -> String {
        match self.hctl.unit {
            unit @ 0..256 => format!("lun-{unit}"),
            unit => format!("lun-0x{:04x}{:04x}00000000", unit & 0xffff, unit >> 16),
        }
    }

    fn class(&self, class: &str, device: &str, attribute: &str) -> Option<String> {
        sys::text(&self.root.sys("class").join(class).join(device).join(attribute)).ok()
    }

    fn fibre_channel(&self) -> Option<String> {
        let Hctl {
            host,
            channel,
            target,
            ..
        } = self.hctl;
        let target = format!("target{host}:{channel}:{target}");
        let port = self.class("fc_transport", &target, "port_name")?;
        Some(format!("fc-{port}-{}", self.unit()))
    }

    /// By the phy that the disk is plugged into; by its own address if several phys lead to it.
    fn sas(&self) -> Option<String> {
        let mut up = self.chain.iter().skip_while(|(_, link)| *link != Link::SasEnd);
        let (end, _) = up.next()?;
        let (port, _) = up.next()?;
        let (above, _) = up.next()?;
        let of_end = |attribute: &str| self.class("sas_device", base(end), attribute);
        let unit = self.unit();
        if self.class("sas_port", base(port), "num_phys")? != "1" {
            return Some(format!("sas-{}-{unit}", of_end("sas_address")?));
        }
        let phy = of_end("phy_identifier")?;
        match self.class("sas_device", base(above), "sas_address") {
            Some(expander) => Some(format!("sas-exp{expander}-phy{phy}-{unit}")),
            None => Some(format!("sas-phy{phy}-{unit}")),
        }
    }

    fn iscsi(&self) -> Option<String> {
        let session = base(self.chain.find(|link| *link == Link::IscsiSession)?);
        let connection = format!("connection{}:0", session.strip_prefix("session")?);
        let target = self.class("iscsi_session", session, "targetname")?;
        let address = self.class("iscsi_connection", &connection, "persistent_address")?;
        let port = self.class("iscsi_connection", &connection, "persistent_port")?;
        Some(format!("ip-{address}:{port}-iscsi-{target}-{}", self.unit()))
    }

    /// Older udev makes `ata-1`, newer both `ata-1.0` and `ata-1`: the name that both make, wherever it is not ambiguous.
    fn ata(&self) -> Option<String> {
        let port = base(self.chain.find(|link| *link == Link::AtaPort)?);
        let number = self.class("ata_port", port, "port_no")?;
        match (self.hctl.channel, self.hctl.target) {
            (0, 0) => Some(format!("ata-{number}")),
            (0, slave) => Some(format!("ata-{number}.{slave}")),
            (behind_multiplier, _) => Some(format!("ata-{number}.{behind_multiplier}.0")),
        }
    }

    /// Hosts are numbered as they are found: count from the first of the same controller.
    fn by_host(&self) -> Option<String> {
        let Hctl {
            host,
            channel,
            target,
            unit,
        } = self.hctl;
        let directory = self.chain.find(|link| *link == Link::ScsiHost(host))?.parent()?;
        let names = sys::list(directory).ok()?;
        let first = names
            .iter()
            .filter_map(|name| name.strip_prefix("host")?.parse::<u32>().ok())
            .min()?;
        Some(format!(
            "scsi-{}:{channel}:{target}:{unit}",
            host.checked_sub(first)?
        ))
    }
}
