//! Whether a BMC is that of the host's machine: what it says of its system, against what the machine reported of itself. By a wrong
//! address, another machine would be switched. Pure.

use muster_proto::{
    identity::Identity,
    inventory::Inventory,
    kinds::{BMC_IDENTITY_ANNOTATION, Packed},
    text::is_same_uuid,
};

use super::draft::Draft;
use crate::{bmc, hosts::declared_mac};

/// Why the BMC is not taken for that of the host's machine; none: nothing speaks against it, or a person has looked.
///
/// One value on which both agree is enough that they are one machine: vendors fill in the others as they like (Dell's `SerialNumber`
/// is the board's, and its `SKU` what SMBIOS calls the serial number). What one of both does not tell differs from nothing.
pub(super) fn anothers(draft: &Draft<'_>, says: &bmc::Identity) -> Option<String> {
    if *says == bmc::Identity::default() {
        return None;
    }
    let status = draft.server()?.status.as_ref()?;
    let all = status.identity.normalised();
    // Nearly always: then nothing has to be unpacked.
    if agree(says, &all) {
        return None;
    }
    let known = known(all, status.inventory.as_ref().map(Packed::unpack).as_deref());
    // The host declares another machine than that of its Server, which was replaced: of that one nothing is known yet.
    if declared_mac(draft.host).is_some_and(|mac| !known.macs.contains(&mac)) {
        return None;
    }
    let uuids = (says.uuid.as_deref(), known.system_uuid.as_deref());
    let serials = (says.serial.as_deref(), known.system_serial.as_deref());
    let differ = matches!(uuids, (Some(_), Some(_))) || matches!(serials, (Some(_), Some(_)));
    if !differ || agree(says, &known) {
        return None;
    }
    if was_looked_at(draft, says) {
        return None;
    }
    let (its, ours) = (words(uuids.0, serials.0), words(uuids.1, serials.1));
    Some(format!(
        "it belongs to another machine: it reports {its}, but the host's machine has {ours}; correct spec.bmc.address, or, if they are the same machine, set the annotation {BMC_IDENTITY_ANNOTATION} to the value that the BMC reports"
    ))
}

/// Why the BMC may be that of another host's machine: both declare it, as after an address that was mistyped while a host was detached, and
/// nothing that the machine reported tells that it is this one's; none: it is the host's.
pub(super) fn shared(draft: &Draft<'_>, says: &bmc::Identity) -> Option<String> {
    let rivals = &draft.seen.rivals;
    let rival = rivals
        .iter()
        .find(|rival| rival.bmc && rival.state.is_registered())?;
    let status = draft.server().and_then(|server| server.status.as_ref());
    let is_its = status.is_some_and(|status| {
        let all = status.identity.normalised();
        let latest = || status.inventory.as_ref().map(Packed::unpack);
        agree(says, &all) || agree(says, &known(all, latest().as_deref()))
    });
    if is_its || was_looked_at(draft, says) {
        return None;
    }
    Some(format!(
        "host {} declares the same BMC, and it is unknown which of the two hosts it belongs to; correct spec.bmc.address of the wrong one, or set the annotation {BMC_IDENTITY_ANNOTATION} of the right one to the UUID or serial number that the BMC reports",
        rival.path
    ))
}

/// True if a person has seen to it that the BMC which says this is the host's.
fn was_looked_at(draft: &Draft<'_>, says: &bmc::Identity) -> bool {
    let looked = draft
        .annotation(BMC_IDENTITY_ANNOTATION)
        .unwrap_or_default()
        .trim();
    let named = [&says.uuid, &says.serial, &says.sku].into_iter().flatten();
    named.into_iter().any(|value| value.eq_ignore_ascii_case(looked))
}

/// What the machine reported, all that there ever was and the latest of it, without what vendors leave unfilled.
fn known(all: Identity, latest: Option<&Inventory>) -> Identity {
    let latest = latest
        .map(|latest| latest.identity.normalised())
        .unwrap_or_default();
    let mut known = all;
    known.system_uuid = latest.system_uuid.or(known.system_uuid);
    known.system_serial = latest.system_serial.or(known.system_serial);
    known.board_serial = latest.board_serial.or(known.board_serial);
    known.macs.extend(latest.macs);
    known
}

fn agree(says: &bmc::Identity, known: &Identity) -> bool {
    let uuid = match (&says.uuid, &known.system_uuid) {
        (Some(says), Some(known)) => is_same_uuid(says, known),
        _ => false,
    };
    let serials = [&says.serial, &says.sku].into_iter().flatten();
    let mut known_serials = [&known.system_serial, &known.board_serial].into_iter().flatten();
    let serial = known_serials.any(|known| serials.clone().any(|says| says.eq_ignore_ascii_case(known)));
    let nic = says.macs.iter().flatten().any(|mac| known.macs.contains(mac));
    uuid || serial || nic
}

fn words(uuid: Option<&str>, serial: Option<&str>) -> String {
    let uuid = uuid.map(|uuid| format!("UUID {uuid}"));
    let serial = serial.map(|serial| format!("serial number {serial}"));
    let all: Vec<String> = uuid.into_iter().chain(serial).collect();
    match all.is_empty() {
        true => "neither UUID nor serial number".to_owned(),
        false => all.join(" and "),
    }
}
