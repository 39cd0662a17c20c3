//! What other objects and annotations bring into a host: its status after a move, its hardware, its architecture. Pure.

use std::fmt;

use muster_proto::{
    Mac,
    kinds::{
        BareMetalHost, BareMetalHostStatus, HARDWARE_ANNOTATION, HardwareData, HardwareDetails, Packed,
        STATUS_ANNOTATION,
    },
    text,
};
use serde_json::Value;

use super::{
    State, conditions,
    draft::Draft,
    observed::Observed,
    plan::{Metadata, Plan},
    registration,
};
use crate::hosts::{self, annotation, forbids_inspection};
use crate::time::whole_seconds;

/// The status annotation: taken over where no status was ever written, or only that it is missing, and removed in any case. None: there is no
/// such annotation.
///
/// One that cannot be read on a host without a status stops everything: the machine may be running somebody's data, and a host that
/// begins anew would overwrite them.
pub(super) fn status(host: &BareMetalHost, seen: &Observed, now: jiff::Timestamp) -> Option<Plan> {
    let value = annotation(host, STATUS_ANNOTATION)?;
    let written = host
        .status
        .as_ref()
        .is_some_and(|status| status.last_updated.is_some() && !registration::may_run_already(host));
    let metadata = Metadata {
        remove_annotations: vec![STATUS_ANNOTATION.to_owned()],
        ..Metadata::default()
    };
    let restored = match written {
        true => None,
        // There is nothing in it.
        false if value.trim().is_empty() => None,
        false => match read(value) {
            Ok(mut status) => {
                if let Some(hardware) = seen
                    .hardware
                    .as_deref()
                    .and_then(|data| data.spec.hardware.clone())
                {
                    status.hardware = Some(hardware);
                }
                status.last_updated = Some(whole_seconds(now));
                conditions::moved_to(&mut status, host.metadata.generation);
                Some(Box::new(status))
            }
            // Whoever deletes the host gives up what the annotation says.
            Err(_) if hosts::is_being_deleted(host) => None,
            Err(error) => return Some(unreadable(host, seen, now, &error)),
        },
    };
    Some(Plan {
        status: restored,
        metadata,
        requeue: Some(std::time::Duration::ZERO),
        why: "restores the status from the annotation".to_owned(),
        ..Plan::default()
    })
}

/// The status that `value` tells; what it leaves out is as in a new one, as upstream has it, but for the state: what has none may be
/// anybody's.
fn read(value: &str) -> serde_json::Result<BareMetalHostStatus> {
    let said = hosts::said(serde_json::from_str(value)?);
    if said.pointer("/provisioning/state").is_none() {
        return Err(serde::de::Error::missing_field("provisioning.state"));
    }
    let mut whole = serde_json::to_value(BareMetalHostStatus::default())?;
    lay_over(&mut whole, said);
    let mut status: BareMetalHostStatus = serde_json::from_value(whole)?;
    if let Some(hardware) = &status.hardware {
        status.hardware = Some(stored(HardwareDetails::clone(&hardware.unpack()))?.into());
    }
    Ok(status)
}

/// The hardware that `value` tells.
fn read_hardware(value: &str) -> serde_json::Result<HardwareDetails> {
    stored(serde_json::from_value(hosts::said(serde_json::from_str(value)?))?)
}

/// `hardware` as the API server stores it, which is stricter than the types are: with a value that it refuses, it would refuse the whole
/// status, round after round.
fn stored(mut hardware: HardwareDetails) -> serde_json::Result<HardwareDetails> {
    let refused = |what: &str, value: &dyn fmt::Display| {
        let message = format!("{what} {value} of a NIC is invalid");
        Err(serde::de::Error::custom(message))
    };
    for nic in &mut hardware.nics {
        nic.mac = nic.mac.take().filter(|mac| !mac.is_empty());
        // The pattern of upstream's is found anywhere: InfiniBand has longer addresses.
        let is_mac = |part: &[u8]| {
            let part = str::from_utf8(part).ok().filter(|part| !part.contains('-'));
            part.is_some_and(|part| part.parse::<Mac>().is_ok())
        };
        if let Some(mac) = nic
            .mac
            .as_ref()
            .filter(|mac| !mac.as_bytes().windows(17).any(is_mac))
        {
            return refused("the MAC address", mac);
        }
        let tags = nic.vlans.iter().map(|vlan| vlan.id).chain([nic.vlan_id]);
        if let Some(tag) = tags.flatten().find(|tag| !(0..=4094).contains(tag)) {
            return refused("the VLAN", &tag);
        }
    }
    Ok(hardware)
}

/// Lays what `said` holds over `base`, object by object; an error without a type says nothing.
fn lay_over(base: &mut Value, said: Value) {
    match (base, said) {
        (Value::Object(base), Value::Object(said)) => {
            for (name, value) in said {
                if name != "errorType" || value != "" {
                    lay_over(base.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        (base, said) => *base = said,
    }
}

fn unreadable(
    host: &BareMetalHost,
    seen: &Observed,
    now: jiff::Timestamp,
    error: &serde_json::Error,
) -> Plan {
    let mut draft = Draft::new(host, seen, now);
    let message = format!(
        "the annotation {STATUS_ANNOTATION} cannot be parsed ({error}): correct it, or remove it to start from scratch"
    );
    draft.warn("InvalidAnnotationValue", message.clone());
    let plan = draft.finish();
    // No status is written: with one, the corrected annotation would count no more.
    Plan {
        events: plan.events,
        why: message,
        ..Plan::default()
    }
}

/// The hardware, from the HardwareData or else the annotation; the architecture, where nobody wrote one.
pub(super) fn hardware(draft: &mut Draft<'_>) {
    let stored = draft.hardware().filter(|data| counts_for(draft, data));
    let stored = stored.and_then(|data| data.spec.hardware.as_ref());
    if let Some(stored) = stored.filter(|_| draft.state != State::Inspecting)
        && draft.status.hardware.as_ref() != Some(stored)
    {
        draft.status.hardware = Some(stored.clone());
    }
    annotated(draft, stored.is_some());
    if let Some(hardware) = draft.status.hardware.clone() {
        architecture(draft, &hardware);
    }
}

/// True if `data` is of the host, or somebody wrote it for it. That of a former host of its name is about to go with that.
fn counts_for(draft: &Draft<'_>, data: &HardwareData) -> bool {
    let owners = data.metadata.owner_references.as_ref();
    let is_of_a_host = owners.is_some_and(|owners| owners.iter().any(|owner| owner.kind == "BareMetalHost"));
    let is_ours = !is_of_a_host || hosts::is_among(draft.host, owners);
    is_ours && data.metadata.deletion_timestamp.is_none()
}

/// The architecture of `hardware`, where nobody wrote one.
pub(super) fn architecture(draft: &mut Draft<'_>, hardware: &Packed<HardwareDetails>) {
    let said = draft.host.spec.architecture.as_ref();
    if said.is_none_or(String::is_empty) {
        let found = hardware.unpack().cpu.as_ref().and_then(|cpu| cpu.arch.clone());
        draft.metadata.architecture = found.filter(|found| !found.is_empty());
    }
}

/// So many bytes of an architecture are shown: more than any has.
const ARCHITECTURE: usize = 32;

/// The architecture that somebody wrote of `host`, by the kernel's name for it; none: nobody did.
fn said_architecture(host: &BareMetalHost) -> Option<String> {
    let said = host.spec.architecture.as_deref().unwrap_or_default();
    let said = text::clean_to(said.to_ascii_lowercase().as_bytes(), ARCHITECTURE);
    let said = match said.as_str() {
        "amd64" | "x86-64" => "x86_64".to_owned(),
        "arm64" => "aarch64".to_owned(),
        _ => said,
    };
    (!said.is_empty()).then_some(said)
}

/// The architecture that somebody wrote of `host` and that no ramdisk is made for; none: there is one, or nobody wrote any.
pub(super) fn without_ramdisk(host: &BareMetalHost) -> Option<String> {
    said_architecture(host).filter(|said| said != "x86_64")
}

/// How the machine contradicts what somebody wrote of its architecture, for people; none: it does not.
pub(super) fn other_architecture(host: &BareMetalHost, found: &HardwareDetails) -> Option<String> {
    let found = found.cpu.as_ref()?.arch.as_deref()?;
    let said = said_architecture(host).filter(|said| said != found)?;
    Some(format!(
        "the machine is {found}, but spec.architecture is {said}, which has no effect: correct it, unless another machine was meant"
    ))
}

/// What is wrong with the hardware that the annotation of `host` tells, for people; none: it can be read, or is not there.
pub(super) fn unreadable_hardware(host: &BareMetalHost) -> Option<String> {
    let error = read_hardware(annotation(host, HARDWARE_ANNOTATION)?).err()?;
    Some(format!(
        "the annotation {HARDWARE_ANNOTATION} cannot be parsed: {error}; it is ignored; correct it, or remove it"
    ))
}

fn annotated(draft: &mut Draft<'_>, stored: bool) {
    let Some(value) = draft.annotation(HARDWARE_ANNOTATION) else {
        return;
    };
    let counts = draft.status.hardware.is_none() || forbids_inspection(draft.host);
    if counts && !stored {
        // People hear of it where it cannot be read.
        let Ok(hardware) = read_hardware(value) else {
            return;
        };
        draft.status.hardware = Some(hardware.into());
        draft.tell(
            "UpdateHardwareDetails",
            "the hardware details were set from the annotation",
        );
    } else {
        warn_of_unused(draft, value, stored);
    }
    draft
        .metadata
        .remove_annotations
        .push(HARDWARE_ANNOTATION.to_owned());
}

/// Tells that the hardware that `value` of the annotation tells does not count, and why. Where it is what is known already, as after a round
/// that was broken off, nothing is lost with it, and nothing in one that is empty.
fn warn_of_unused(draft: &mut Draft<'_>, value: &str, stored: bool) {
    let told: Option<Packed<HardwareDetails>> = read_hardware(value).ok().map(Into::into);
    let is_known = told.is_some() && told == draft.status.hardware;
    if is_known || value.trim().is_empty() {
        return;
    }
    let why = match stored {
        true => "the host's HardwareData takes precedence: correct the hardware there",
        false => {
            "the hardware is already known and inspection is enabled: set spec.inspectionMode to disabled, then set the annotation again"
        }
    };
    draft.warn(
        "AnnotationUnused",
        format!("the annotation {HARDWARE_ANNOTATION} is removed without effect, because {why}"),
    );
}
