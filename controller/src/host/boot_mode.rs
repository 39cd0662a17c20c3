//! The mode in which a machine boots, UEFI or BIOS: what its BMC is told, and a ramdisk that runs in another one than is asked for. Pure.

use jiff::{SignedDuration, Timestamp};
use muster_proto::{
    inventory::{BootMode, Inventory},
    kinds::{BareMetalHost, HostBootMode, Packed, REBOOT_ANNOTATION, Server},
};

use super::{WaitReason, draft::Draft, owner::has_bmc, provisioning};
use crate::{
    bmc::{Mode, WantedMode},
    time::is_ahead,
};

/// Long enough for a ramdisk that has called in to report its machine: until then the report may be that of the one before.
const REPORTS: SignedDuration = SignedDuration::from_mins(2);

/// Writes down the mode in which the machine boots its ramdisk from now on, and says what its BMC is to be told: the spec's; else the one
/// in which it was found, which stays; else UEFI where it can, as upstream has it.
pub(super) fn snapshot(draft: &mut Draft<'_>) -> WantedMode {
    let (mode, wanted) = match (draft.host.spec.boot_mode, found_in(draft)) {
        (Some(mode @ HostBootMode::Legacy), _) => (mode, WantedMode::Required(Mode::Legacy)),
        // Muster's boot files do not start under Secure Boot.
        (Some(mode), _) => (mode, WantedMode::Required(Mode::Uefi)),
        // What a BMC shows while nothing is armed is often no more than its default.
        (None, Some(BootMode::Bios)) => (HostBootMode::Legacy, WantedMode::Preferred(Mode::Legacy)),
        (None, Some(BootMode::Uefi)) => (HostBootMode::Uefi, WantedMode::Preferred(Mode::Uefi)),
        (None, None) => (HostBootMode::Uefi, WantedMode::Preferred(Mode::Uefi)),
    };
    draft.status.provisioning.boot_mode = Some(mode);
    wanted
}

/// The mode in which the machine booted when it reported last; none: nobody knows.
fn found_in(draft: &Draft<'_>) -> Option<BootMode> {
    let status = draft.server()?.status.as_ref()?;
    let inventory = status.inventory.as_ref().filter(|_| !status.contested)?;
    Some(inventory.unpack().boot.mode)
}

/// Why no image is written to `host` by a ramdisk that reported `inventory`: it runs in another mode than is asked for, in which it would make
/// the disk bootable, and the machine would boot it; none: it does not.
pub fn refusal(host: &BareMetalHost, inventory: &Packed<Inventory>) -> Option<String> {
    let asked = match host.spec.boot_mode? {
        HostBootMode::Legacy => BootMode::Bios,
        HostBootMode::Uefi => BootMode::Uefi,
        // It is refused as such.
        HostBootMode::UefiSecureBoot => return None,
    };
    let name = |mode| match mode {
        BootMode::Bios => "BIOS (legacy)",
        BootMode::Uefi => "UEFI",
    };
    let runs = inventory.unpack().boot.mode;
    let remedy = match has_bmc(host) {
        true => {
            format!(
                "have its BMC reboot it in the requested mode (annotation {REBOOT_ANNOTATION} with {{\"force\": true}})"
            )
        }
        false => "change the boot mode in its firmware and boot the ramdisk again".to_owned(),
    };
    (runs != asked).then(|| {
        let (runs, asked) = (name(runs), name(asked));
        format!(
            "the machine runs its ramdisk in {runs} mode, but spec.bootMode asks for {asked}; next: {remedy}, or correct spec.bootMode"
        )
    })
}

/// Whether an image may be written by the ramdisk that runs: true if its mode is the one that is asked for; false while its report may be
/// that of the one before it; an error says that it is not.
pub(super) fn is_as_asked(draft: &mut Draft<'_>, server: &Server) -> Result<bool, String> {
    let status = server.status.as_ref();
    let inventory = status.and_then(|status| status.inventory.as_ref());
    let Some(why) = inventory.and_then(|inventory| refusal(draft.host, inventory)) else {
        return Ok(true);
    };
    let reported = status.and_then(|status| status.inventoried.as_ref()?.parse::<Timestamp>().ok());
    let since = draft.here_since().filter(|since| !is_ahead(*since, draft.now));
    let due = since.and_then(|since| since.checked_add(REPORTS).ok());
    let is_said = draft.has_said(WaitReason::Refused, &provisioning::refused(&why));
    match due.filter(|due| !is_said && draft.now < *due && reported < since) {
        None => Err(why),
        Some(due) => {
            draft.wait_for(
                WaitReason::Inventory,
                "waits for the ramdisk to report the hardware; next: the image is written",
            );
            draft.again_at(due);
            Ok(false)
        }
    }
}
