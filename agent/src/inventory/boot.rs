use muster_proto::inventory::{Boot, BootMode};

use super::BootFacts;
use crate::sys::Root;

pub(super) fn collect(root: &Root, facts: &BootFacts) -> Boot {
    // The kernel makes this directory if and only if UEFI handed it over.
    let mode = if root.sys("firmware/efi").is_dir() {
        BootMode::Uefi
    } else {
        BootMode::Bios
    };
    Boot {
        mode,
        mac: facts.mac,
        uptime_ms: u64::try_from(facts.uptime.as_millis()).unwrap_or(u64::MAX),
    }
}
