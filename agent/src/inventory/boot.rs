use std::time::Duration;

use muster_proto::{
    Mac,
    inventory::{Boot, BootMode},
};

use crate::sys::Root;

pub(super) fn collect(root: &Root, mac: Option<Mac>, uptime: Duration) -> Boot {
    let mode = if root.is_uefi() {
        BootMode::Uefi
    } else {
        BootMode::Bios
    };
    Boot {
        mode,
        mac,
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
    }
}
