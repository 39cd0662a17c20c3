//! What a ramdisk reports of its machine, and waiting for that. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use muster_proto::{
    inventory::Inventory,
    kinds::{ErrorType, Server},
};

use super::{
    WaitReason,
    draft::{Draft, and_next},
    ramdisk::BOOT_DEADLINE,
};
use crate::hardware;

/// The ramdisk has not reported the disks. After a while a person hears of it, and the host keeps no slot for it; one that goes waits for
/// nothing without an end.
fn unreported(draft: &mut Draft<'_>, then: &str) {
    let minutes = BOOT_DEADLINE.as_mins();
    let late =
        format!("the machine's ramdisk did not report the disks within {minutes} min: see its console");
    let asks = and_next(&late, &format!("{then} once it does"));
    let is_told = draft.has_said(WaitReason::Refused, &asks);
    match is_told || draft.waited(WaitReason::Inventory, BOOT_DEADLINE) {
        false => {
            let waits = format!("waits for the ramdisk to report the disks; next: {then}");
            draft.wait_for(WaitReason::Inventory, waits);
            draft.again_after(WaitReason::Inventory, BOOT_DEADLINE);
        }
        true if draft.is_being_deleted() => draft.fail(ErrorType::Provisioning, late),
        true => {
            if !is_told {
                draft.warn("ProvisioningError", late);
            }
            draft.wait_for(WaitReason::Refused, asks);
        }
    }
}

/// What the ramdisk reported of the machine; none: not yet, or not all, and the draft says what is done with it then.
pub(super) fn inventory(draft: &mut Draft<'_>, server: &Server, then: &str) -> Option<Arc<Inventory>> {
    let status = server.status.as_ref();
    let known = status.and_then(|status| Some((status, status.inventory.as_ref()?)));
    let Some((status, inventory)) = known else {
        unreported(draft, then);
        return None;
    };
    match hardware::is_early_until(status, inventory, draft.now) {
        Some(due) => {
            wait_for_drivers(draft, due, then);
            None
        }
        None => Some(inventory.unpack()),
    }
}

/// No disk is chosen or cleaned by what was found while drivers were still being loaded.
pub(super) fn wait_for_drivers(draft: &mut Draft<'_>, due: Timestamp, then: &str) {
    draft.wait_for(
        WaitReason::Inventory,
        format!("waits for the ramdisk to load the drivers for all of the machine's hardware; next: {then}"),
    );
    draft.again_at(due);
}
