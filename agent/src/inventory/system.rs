use muster_proto::inventory::System;

use super::{smbios::Identification, warnings::Warnings};
use crate::sys::{self, Root};

pub(super) fn collect(root: &Root, table: &Identification, warnings: &mut Warnings) -> System {
    let mut field = |name: &str, otherwise: &str| dmi(root, name, otherwise, warnings);
    let board_vendor = field("board_vendor", &table.board_vendor);
    let board_name = field("board_name", &table.board_name);
    System {
        manufacturer: field("sys_vendor", &table.sys_vendor),
        product: field("product_name", &table.product_name),
        serial: field("product_serial", &table.product_serial),
        uuid: field("product_uuid", &table.product_uuid),
        sku: field("product_sku", &table.product_sku),
        family: field("product_family", &table.product_family),
        board: [board_vendor, board_name].join(" ").trim().to_owned(),
        board_serial: field("board_serial", &table.board_serial),
        chassis_serial: field("chassis_serial", &table.chassis_serial),
        asset_tag: field("chassis_asset_tag", &table.chassis_asset_tag),
    }
}

/// The kernel's copy of one SMBIOS string, else the table's own: the copy is missing without the kernel's `dmi-id`,
/// and serial numbers are missing where it may not be read.
pub(super) fn dmi(root: &Root, name: &str, otherwise: &str, warnings: &mut Warnings) -> String {
    let read = sys::optional_text(&root.sys("class/dmi/id").join(name));
    warnings
        .on("system", name)
        .or_default(read)
        .unwrap_or_else(|| otherwise.to_owned())
}
