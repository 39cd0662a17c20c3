use muster_proto::inventory::Firmware;

use super::{smbios::Table, system::dmi, warnings::Warnings};
use crate::sys::Root;

pub(super) fn collect(root: &Root, table: &Table<'_>, warnings: &mut Warnings) -> Firmware {
    let from_table = table.identification();
    Firmware {
        vendor: dmi(root, "bios_vendor", from_table.bios_vendor, warnings),
        version: dmi(root, "bios_version", from_table.bios_version, warnings),
        date: dmi(root, "bios_date", from_table.bios_date, warnings),
    }
}
