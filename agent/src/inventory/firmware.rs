use muster_proto::inventory::Firmware;

use super::{smbios::Identification, system::dmi, warnings::Warnings};
use crate::sys::Root;

pub(super) fn collect(root: &Root, table: &Identification, warnings: &mut Warnings) -> Firmware {
    Firmware {
        vendor: dmi(root, "bios_vendor", &table.bios_vendor, warnings),
        version: dmi(root, "bios_version", &table.bios_version, warnings),
        date: dmi(root, "bios_date", &table.bios_date, warnings),
    }
}
