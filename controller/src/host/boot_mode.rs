//! The mode in which a machine boots, UEFI or BIOS: what its BMC is told, and a ramdisk that runs in another one than is asked for. Pure.

use jiff::{SignedDuration, Timestamp};
use muster_proto::{
    inventory::{BootMode, Inventory},
    kinds::{BareMetalHostSpec, HostBootMode},
};

use super::{
    access::{LOOK_AGAIN, Reach},
    draft::Draft,
    power,
    ramdisk::{self, BOOT_DEADLINE, REBOOTING, Reboot},
};
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

/// That the machine's ramdisk runs in another mode than `spec` asks for, in which it would write, and boot, an image: in words.
pub(super) fn other(spec: &BareMetalHostSpec, inventory: &Inventory) -> Option<String> {
    let asked = match spec.boot_mode? {
        HostBootMode::Legacy => BootMode::Bios,
        HostBootMode::Uefi | HostBootMode::UefiSecureBoot => BootMode::Uefi,
    };
    let name = |mode| match mode {
        BootMode::Bios => "BIOS (legacy)",
        BootMode::Uefi => "UEFI",
    };
    let runs = inventory.boot.mode;
    (runs != asked).then(|| {
        let (runs, asked) = (name(runs), name(asked));
        format!("the machine runs its ramdisk in {runs} mode, and spec.bootMode asks for {asked}")
    })
}

/// What a person can do where no BMC changes it.
pub(super) const BY_HAND: &str =
    "next: switch its firmware over and boot its ramdisk again, or correct spec.bootMode";

/// True if the ramdisk that reported `inventory` runs in the mode that is asked for. Else its machine is booted again for `operation`, once,
/// in that mode; the error says why that does not help.
pub(super) fn is_as_asked(
    draft: &mut Draft<'_>,
    reach: &Reach,
    inventory: &Inventory,
    operation: &str,
) -> Result<bool, String> {
    let Some(other) = other(&draft.host.spec, inventory) else {
        return Ok(true);
    };
    match reach {
        Reach::Bmc => {}
        Reach::Silent(failure) => {
            return Err(format!("{other}; its BMC does not answer: {}", failure.message));
        }
        Reach::InBand | Reach::No => return Err(format!("{other}; {BY_HAND}")),
    }
    let again = ramdisk::again(operation);
    let ordered = power::tried(draft, &again).filter(|tried| tried.result.is_ok());
    match ordered.map(|tried| tried.at) {
        Some(at) if is_over(draft, at) => {
            return Err(format!(
                "{other}, in which its BMC was told to boot it; {BY_HAND}"
            ));
        }
        Some(_) => draft.again(LOOK_AGAIN),
        None => {
            // It is on since then; a clock that was set back has no reading of after that.
            let since = draft.here_since().filter(|since| !is_ahead(*since, draft.now));
            let since = since.unwrap_or(Timestamp::MIN);
            if let Reboot::Failed(why) = ramdisk::by_bmc(draft, &again, since) {
                return Err(format!("{other}; it could not be booted in that: {why}"));
            }
        }
    }
    draft.wait_for(
        REBOOTING,
        format!("{other}: it is booted again in that; next: the image is written"),
    );
    Ok(false)
}

/// True if a reset at `at` has had its effect, and what the ramdisk of after it reports is known: or it had none.
fn is_over(draft: &Draft<'_>, at: Timestamp) -> bool {
    let here = draft.here_since().filter(|since| *since >= at);
    let reported = here.is_some_and(|since| draft.now.duration_since(since) >= REPORTS);
    reported || draft.now.duration_since(at) >= BOOT_DEADLINE
}
