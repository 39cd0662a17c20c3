//! What would be set up before a host is available: RAID and Secure Boot come with a later version and are refused until then. Pure.

use muster_proto::{
    inventory::Disk,
    kinds::{
        BareMetalHostSpec, ErrorType, HardwareRaidVolume, HostBootMode, RaidConfig, RootDeviceHints,
        SoftwareRaidVolume,
    },
};

use super::{State, disk, draft::Draft, registration};

/// The hints in use: the host's, else those of the profile that somebody set.
pub(super) fn effective_hints(draft: &Draft<'_>) -> Option<Box<RootDeviceHints>> {
    let spec = &draft.host.spec;
    let hints = spec.root_device_hints.clone();
    hints
        .filter(|hints| **hints != RootDeviceHints::default())
        .or_else(|| disk::profile_hints(spec.hardware_profile.as_deref()).map(Box::new))
}

/// The hints that were written down when what the host runs was given to it, or when it was prepared. A default that another operator may
/// have written for want of any is no wish of anybody; so are the same words in an object that was moved from another cluster, of which nobody
/// can tell whose they are.
pub(super) fn recorded_hints<'a>(draft: &'a Draft<'_>) -> Option<&'a RootDeviceHints> {
    let recorded = draft.old.provisioning.root_device_hints.as_deref();
    let is_wanted = |hints: &RootDeviceHints| effective_hints(draft).as_deref() == Some(hints);
    recorded
        .filter(|hints| registration::was_here(draft) || !disk::is_profile_default(hints) || is_wanted(hints))
}

/// The hints by which the disk of an image is chosen that is begun now, or taken up from another operator.
pub(super) fn hints_of_now(draft: &Draft<'_>) -> Option<Box<RootDeviceHints>> {
    let recorded = recorded_hints(draft).cloned().map(Box::new);
    recorded.or_else(|| effective_hints(draft))
}

/// The disk that the image was written to, as far as that can be told: by hints that were written down. One that was chosen by the rule may
/// be another one today, and those of a SAN are others' as well.
pub(super) fn root_of_before<'a>(draft: &Draft<'_>, disks: &'a [Disk]) -> Option<&'a Disk> {
    let hints = recorded_hints(draft).filter(|hints| !disk::are_silent(hints))?;
    disk::choose(Some(hints), disks).ok()
}

/// Why the RAID volumes cannot be made; none: there are none to be made, or another operator has made just these.
pub(super) fn unsupported_raid(
    wanted: Option<&RaidConfig>,
    there: Option<&RaidConfig>,
) -> Option<&'static str> {
    fn are_to_be_made<T: PartialEq>(wanted: Option<&Vec<T>>, there: Option<&Vec<T>>) -> bool {
        wanted.is_some_and(|volumes| !volumes.is_empty() && Some(volumes) != there)
    }
    // An empty list asks to take away those that there are; those of software go with the cleaning.
    let are_to_go = hardware(wanted).is_some_and(Vec::is_empty)
        && hardware(there).is_some_and(|volumes| !volumes.is_empty());
    let any = are_to_go
        || are_to_be_made(hardware(wanted), hardware(there))
        || are_to_be_made(software(wanted), software(there));
    any.then_some(
        "this version cannot create or delete RAID volumes: remove spec.raid, or set up the volumes by other means",
    )
}

fn hardware(raid: Option<&RaidConfig>) -> Option<&Vec<HardwareRaidVolume>> {
    raid?.hardware_raid_volumes.as_ref()
}

fn software(raid: Option<&RaidConfig>) -> Option<&Vec<SoftwareRaidVolume>> {
    raid?.software_raid_volumes.as_ref()
}

/// Why no image is written to the host for its software RAID: cleaning takes the array of another operator apart, and the image would go
/// to one disk of it unnoticed.
pub(super) fn software_raid(spec: &BareMetalHostSpec) -> Result<(), String> {
    match software(spec.raid.as_deref()).is_some_and(|volumes| !volumes.is_empty()) {
        true => Err(
            "this version does not write images to software RAID volumes: remove spec.raid.softwareRAIDVolumes"
                .to_owned(),
        ),
        false => Ok(()),
    }
}

/// Why no image can run on the host as it asks for; none: one can. One that ran without Secure Boot where that is asked for would do so
/// unnoticed.
pub(super) fn unsupported_boot(spec: &BareMetalHostSpec) -> Option<&'static str> {
    (spec.boot_mode == Some(HostBootMode::UefiSecureBoot))
        .then_some("this version cannot enable Secure Boot: set spec.bootMode to UEFI, or leave it empty")
}

/// Why the host cannot be prepared as it asks for; none: it can.
pub(super) fn unsupported(draft: &Draft<'_>) -> Option<&'static str> {
    let spec = &draft.host.spec;
    let there = draft.old.provisioning.raid.as_deref();
    unsupported_raid(spec.raid.as_deref(), there).or(unsupported_boot(spec))
}

/// True if the host must go through preparing again.
pub(super) fn is_outdated(draft: &Draft<'_>) -> bool {
    let hints = recorded_hints(draft) != effective_hints(draft).as_deref();
    let raid = draft.host.spec.raid.is_some() && draft.host.spec.raid != draft.old.provisioning.raid;
    hints || raid
}

/// The host is preparing.
pub(super) fn go_on(draft: &mut Draft<'_>) {
    let spec = &draft.host.spec;
    if spec.externally_provisioned == Some(true) {
        draft.enter(State::ExternallyProvisioned);
        return;
    }
    let unsupported = unsupported(draft);
    // Whoever has claimed it waits until it is available, to let it go: there it is refused the same.
    if let Some(why) = unsupported.filter(|_| spec.consumer_ref.is_none()) {
        draft.refuse(ErrorType::Preparation, why);
        return;
    }
    draft.enter(State::Available);
    draft.status.provisioning.root_device_hints = effective_hints(draft);
    if let Some(why) = unsupported {
        // At once: nobody else is to claim it between two writes.
        draft.refuse(ErrorType::Preparation, why);
        return;
    }
    if draft.host.spec.raid.is_some() {
        // Else what another operator made is there still.
        draft.status.provisioning.raid.clone_from(&draft.host.spec.raid);
    }
}
