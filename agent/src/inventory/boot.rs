use std::time::Duration;

use muster_proto::{
    Mac,
    inventory::{Boot, BootMode},
};

use crate::{disk::efi, sys::Root};

pub(super) fn collect(root: &Root, mac: Option<Mac>, uptime: Duration) -> Boot {
    let mode = if efi::is_uefi(root) {
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
