use std::{fs, path::Path};

use muster_proto::inventory::{Driverless, MAX_DEVICES};

use super::warnings::Warnings;
use crate::sys::{self, Root};

/// Storage, network, USB controllers, Fibre Channel and IPMI (PCI Code and ID Assignment, classes 01, 02, 0c.03, 0c.04 and 0c.07): the
/// devices without which a disk, a NIC or the BMC stays unseen.
const WANTED: &[&str] = &["0x01", "0x02", "0x0c03", "0x0c04", "0x0c07"];

/// Storage, network, USB, Fibre Channel and IPMI devices that no driver has claimed.
pub(super) fn driverless(root: &Root, warnings: &mut Warnings) -> Vec<Driverless> {
    let directory = root.sys("bus/pci/devices");
    let addresses = sys::absent_as_none(sys::list(&directory));
    let addresses = warnings.on("pci", "devices").or_default(addresses);
    let mut found = Vec::new();
    // The link costs less than the class: most devices have a driver or are of no interest.
    for address in addresses.unwrap_or_default() {
        let device = directory.join(&address);
        if found.len() == MAX_DEVICES || fs::symlink_metadata(device.join("driver")).is_ok() {
            continue;
        }
        let unclaimed = describe(&address, &device);
        found.extend(warnings.on("pci", &address).or_default(unclaimed));
    }
    found
}

/// The device, if it is of a wanted class.
fn describe(address: &str, device: &Path) -> Result<Option<Driverless>, sys::ReadError> {
    let class = sys::text(&device.join("class"))?;
    if !WANTED.iter().any(|wanted| class.starts_with(wanted)) {
        return Ok(None);
    }
    let vendor = sys::text(&device.join("vendor"))?;
    let id = sys::text(&device.join("device"))?;
    Ok(Some(Driverless {
        address: address.to_owned(),
        class,
        id: format!("{vendor}:{id}"),
    }))
}
