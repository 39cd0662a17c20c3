//! The mode in which a machine boots, UEFI or BIOS: what its BMC is told, and a ramdisk that runs in another one than is asked for. Pure.

use jiff::{SignedDuration, Timestamp};
use muster_proto::{
    inventory::{BootMode, Inventory},
    kinds::{BareMetalHostSpec, HostBootMode, Server},
};

use super::{
    State,
    draft::{Draft, REFUSED},
    jobs::{self, Job},
    power, provisioning, ramdisk, report,
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
fn other(spec: &BareMetalHostSpec, inventory: &Inventory) -> Option<String> {
    let asked = match spec.boot_mode? {
        HostBootMode::Legacy => BootMode::Bios,
        HostBootMode::Uefi => BootMode::Uefi,
        // It is refused as such.
        HostBootMode::UefiSecureBoot => return None,
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

/// That, and what a person can do about it where no BMC does.
pub(super) fn refusal(spec: &BareMetalHostSpec, inventory: &Inventory) -> Option<String> {
    let other = other(spec, inventory)?;
    Some(format!(
        "{other}; next: correct spec.bootMode, or pause the host, switch the machine's firmware over and boot its ramdisk again"
    ))
}

/// What the boot is called that gets a machine out of its ramdisk and into one of the mode that is asked for, if the one that runs is of no
/// use to the provisioning `operation`: it runs in another, and is at nothing. One is enough; what was told to boot in that mode and did not
/// is no better the next time.
pub(super) fn another_boot(draft: &Draft<'_>, operation: &str) -> Option<String> {
    let (server, _) = draft.session().filter(|_| draft.state == State::Provisioning)?;
    let status = server.status.as_ref().filter(|status| !status.contested)?;
    let spec = &draft.host.spec;
    let why = refusal(spec, &status.inventory.as_ref()?.unpack())?;
    let boot = ramdisk::again(&format!("{:?}-{operation}", spec.boot_mode?).to_lowercase());
    let tried = power::tried(draft, &boot).filter(|tried| tried.result.is_ok());
    let has_booted = tried.is_some_and(|tried| draft.here_since() > Some(tried.at));
    // Also by a process of before.
    let is_refused = draft.has_said(REFUSED, &provisioning::refused(&why));
    let is_at_it = jobs::look(server, |job| job.starts_with(operation)) != Job::Absent;
    (!has_booted && !is_refused && !is_at_it).then_some(boot)
}

/// Whether an image may be written by the ramdisk that runs: true if its mode is the one that is asked for; false while its report may be
/// that of the one before it; an error says that it is not.
pub(super) fn is_as_asked(
    draft: &mut Draft<'_>,
    server: &Server,
    inventory: &Inventory,
) -> Result<bool, String> {
    let Some(why) = refusal(&draft.host.spec, inventory) else {
        return Ok(true);
    };
    let status = server.status.as_ref();
    let reported = status.and_then(|status| status.inventoried.as_ref()?.parse::<Timestamp>().ok());
    let since = draft.here_since().filter(|since| !is_ahead(*since, draft.now));
    let due = since.and_then(|since| since.checked_add(REPORTS).ok());
    match due.filter(|due| draft.now < *due && reported < since) {
        None => Err(why),
        Some(due) => {
            report::wait_for_drivers(draft, due, "the image is written");
            Ok(false)
        }
    }
}
