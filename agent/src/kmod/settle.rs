//! When everything that was plugged in has been found: nothing loads, the kernel has been quiet for a while, and no SCSI
//! host is still looking. Hosts scan in the background and show their devices only at the end (`drivers/scsi/scsi_scan.c`).

use std::{collections::BTreeSet, time::Duration};

use crate::sys::{self, Root};

/// After this long a first look at everything begins, in the hope that nothing more comes.
pub const CALM: Duration = Duration::from_millis(20);

/// As long as this the kernel must have said nothing.
pub const QUIET: Duration = Duration::from_millis(100);

/// As long as this if a SCSI host shows no device: it may be scanning, or have none.
pub const EMPTY_HOST: Duration = Duration::from_secs(2);

/// After this long the inventory is taken whatever still appears; what comes later is reported as a change.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The same while a driver is still at its devices: one of many disks, or one whose controller starts, takes that long, and what it finds
/// is not to be missed when disks are cleaned or chosen. Less than the silence after which an agent counts as gone.
pub const LOADING: Duration = Duration::from_secs(80);

/// How long the kernel must have been quiet, given the SCSI hosts that may be scanning.
pub fn quiet_needed(root: &Root) -> Duration {
    if silent_hosts(root).is_empty() {
        QUIET
    } else {
        EMPTY_HOST
    }
}

/// The numbers of the SCSI hosts without a device. Those of libata are left out: its drivers wait for their ports.
fn silent_hosts(root: &Root) -> BTreeSet<u32> {
    let class = root.sys("class/scsi_host");
    let names = sys::list(&class).unwrap_or_default();
    let mut silent: BTreeSet<u32> = names
        .iter()
        .filter(|name| {
            let device = root.resolve(&class.join(name)).unwrap_or_default();
            !device.iter().any(|part| part.to_str().is_some_and(is_ata_port))
        })
        .filter_map(|name| name.strip_prefix("host")?.parse().ok())
        .collect();
    for device in sys::list(&root.sys("class/scsi_device")).unwrap_or_default() {
        if let Some(host) = device.split(':').next().and_then(|host| host.parse().ok()) {
            silent.remove(&host);
        }
    }
    silent
}

/// `ata1`
fn is_ata_port(part: &str) -> bool {
    part.strip_prefix("ata")
        .is_some_and(|number| number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tree::Tree;

    const ATA: &str = "devices/pci0000:00/0000:00:1f.2/ata1/host0/scsi_host/host0";
    const HBA: &str = "devices/pci0000:00/0000:00:05.0/virtio2/host6/scsi_host/host6";

    fn machine() -> Tree {
        Tree::new()
            .file(&format!("sys/{ATA}/state"), "running\n")
            .file(&format!("sys/{HBA}/state"), "running\n")
            .link("sys/class/scsi_host/host0", &format!("../../{ATA}"))
            .link("sys/class/scsi_host/host6", &format!("../../{HBA}"))
    }

    #[test]
    fn a_scsi_host_that_shows_nothing_may_be_scanning() {
        assert_eq!(quiet_needed(&machine().root()), EMPTY_HOST);
    }

    #[test]
    fn empty_sata_ports_and_hosts_with_a_device_are_done() {
        let machine = machine().directory("sys/class/scsi_device/6:0:1:0");
        assert_eq!(quiet_needed(&machine.root()), QUIET);
    }

    #[test]
    fn a_machine_without_scsi_settles_soon() {
        assert_eq!(quiet_needed(&Tree::new().root()), QUIET);
    }
}
