//! What this machine is made of: one file per collector, each failing alone.
//!
//! [`collect`] reads sysfs, procfs and the SMBIOS table below a [`Root`], and asks [`Links`] for what those do not tell of
//! network interfaces. It runs no program and walks no more of sysfs than it needs: its time is part of every boot.
//! A value that could not be read is left empty and becomes a [`Warning`](muster_proto::inventory::Warning);
//! a value that the device does not have is left empty and is nothing to speak of.

mod boot;
mod cpu;
mod disks;
mod firmware;
mod links;
mod memory;
mod missing_firmware;
mod nics;
mod patience;
mod pci;
pub mod smbios;
mod system;
mod warnings;

use std::{sync::Arc, time::Duration};

use muster_proto::{
    Mac,
    identity::Identity,
    inventory::{Disk, Inventory},
    job::MachineId,
    text,
};

pub use disks::{kernel_name, node};
pub use links::{DriverInfo, KernelLinks, Links, LinksError};
pub(crate) use nics::address;
pub(crate) use patience::Patience;

use crate::sys::{self, Root};
use warnings::Warnings;

/// What the inventory says of this boot and only the caller knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootFacts {
    /// The interface that the firmware booted from.
    pub mac: Option<Mac>,
    /// The host name that DHCP gave; empty if none.
    pub hostname: String,
    /// Since the kernel started.
    pub uptime: Duration,
}

/// The inventory of the machine below `root`.
pub fn collect(root: &Root, links: &Arc<dyn Links>, boot: BootFacts) -> Inventory {
    let BootFacts {
        mac,
        hostname,
        uptime,
    } = boot;
    let mut warnings = Warnings::default();
    let smbios = smbios::read(root, &mut warnings);
    let table = smbios.table();
    let identification = table.identification();

    let system = system::collect(root, &identification, &mut warnings);
    let nics = nics::collect(root, links, &mut Patience::default(), &mut warnings);
    let identity = Identity {
        system_uuid: Some(system.uuid.clone()),
        system_serial: Some(system.serial.clone()),
        board_serial: Some(system.board_serial.clone()),
        macs: nics.identifying,
    };
    Inventory {
        identity: identity.normalised(),
        firmware: firmware::collect(root, &identification, &mut warnings),
        cpu: cpu::collect(root, &table, &mut warnings),
        memory: memory::collect(root, &table, &mut warnings),
        disks: disks_with_members(root, &mut warnings),
        nics: nics.nics,
        driverless: pci::driverless(root, &mut warnings),
        missing_firmware: missing_firmware::collect(root, &mut warnings),
        hostname: text::clean(hostname.as_bytes()),
        kernel: warnings
            .on("kernel", "osrelease")
            .or_default(sys::text(&root.proc("sys/kernel/osrelease"))),
        boot: boot::collect(root, mac, uptime),
        system,
        warnings: warnings.finish(),
    }
}

fn disks_with_members(root: &Root, warnings: &mut Warnings) -> Vec<Disk> {
    let mut disks = disks::collect(root, &mut Patience::default(), warnings);
    disks::tell_members(root, &mut disks, &mut Patience::default(), warnings);
    disks
}

/// The disks of the machine below `root`, as the inventory lists them but for [`Disk::firmware_raid`]. One that cannot be read is left out.
pub fn disks(root: &Root) -> Vec<Disk> {
    disks::collect(root, &mut Patience::default(), &mut Warnings::default())
}

/// The disk of this kernel name, such as `sda` or `cciss!c0d0`, as it is now.
pub fn disk(root: &Root, name: &str) -> Option<Disk> {
    disks::one(root, name)
}

/// The machine below `root`, as a job names it.
pub fn machine(root: &Root) -> MachineId {
    let mut warnings = Warnings::default();
    let smbios = smbios::read(root, &mut warnings);
    let system = system::collect(root, &smbios.table().identification(), &mut warnings);
    let identity = Identity {
        system_uuid: Some(system.uuid),
        system_serial: Some(system.serial),
        board_serial: Some(system.board_serial),
        ..Identity::default()
    };
    MachineId::from(&identity.normalised())
}

#[cfg(test)]
mod tests;
