//! What can be read off any BareMetalHost, whoever writes it. Pure.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use muster_proto::{
    Mac,
    kinds::{
        BareMetalHost, HostReference, INSPECT_ANNOTATION, InspectionMode, PAUSED_ANNOTATION, Packed,
        SERVER_ANNOTATION, Server,
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::path::Path;

/// Value of the inspect annotation that forbids inspection (upstream's, deprecated there).
const INSPECTION_DISABLED: &str = "disabled";

/// Where `host` is, with its UID.
pub(crate) fn reference(host: &BareMetalHost) -> HostReference {
    HostReference {
        namespace: host.metadata.namespace.clone().unwrap_or_default(),
        name: host.metadata.name.clone().unwrap_or_default(),
        uid: host.metadata.uid.clone().unwrap_or_default(),
    }
}

impl From<&HostReference> for Path {
    fn from(at: &HostReference) -> Path {
        Path {
            namespace: at.namespace.clone(),
            name: at.name.clone(),
        }
    }
}

/// True if `server` stands for `host`, and not for another one of its name.
pub(crate) fn is_of(host: &BareMetalHost, server: &Server) -> bool {
    let at = server.spec.host.as_ref();
    at.is_some_and(|at| host.metadata.uid.as_ref() == Some(&at.uid))
}

/// True if `host` is one of the `owners` of an object.
pub(crate) fn is_among(host: &BareMetalHost, owners: Option<&Vec<OwnerReference>>) -> bool {
    let mut owners = owners.into_iter().flatten();
    owners.any(|owner| host.metadata.uid.as_ref() == Some(&owner.uid))
}

/// The value of the annotation `name`.
pub(crate) fn annotation<'a>(host: &'a BareMetalHost, name: &str) -> Option<&'a str> {
    host.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// What the value of an annotation says as JSON; an empty one says nothing. Names are in lower case in `T`: in Go, in which upstream reads
/// them, their case is no matter.
pub(crate) fn arguments<T: Default + DeserializeOwned>(value: &str) -> serde_json::Result<T> {
    let value = value.trim();
    if value.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_value(match said(serde_json::from_str(value)?) {
        Value::Object(fields) => {
            let fields = fields.into_iter();
            Value::Object(
                fields
                    .map(|(name, value)| (name.to_ascii_lowercase(), value))
                    .collect(),
            )
        }
        other => other,
    })
}

/// `value` without every `null` in it, which says nothing; of a key that stands there twice, the last one counts, as it does in Go.
pub(crate) fn said(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(name, value)| (name, said(value))).collect())
        }
        Value::Array(values) => {
            let values = values.into_iter().filter(|value| !value.is_null());
            Value::Array(values.map(said).collect())
        }
        value => value,
    }
}

/// The Server that `host` was made for; none for a host that somebody else declared.
pub(crate) fn made_for(host: &BareMetalHost) -> Option<&str> {
    annotation(host, SERVER_ANNOTATION)
}

/// The MAC address that `host` declares.
pub(crate) fn declared_mac(host: &BareMetalHost) -> Option<Mac> {
    host.spec.boot_mac_address.as_deref()?.parse().ok()
}

/// The MAC addresses that mean `host`: the declared one, and those of inspected NICs.
pub(crate) fn macs(host: &BareMetalHost) -> impl Iterator<Item = Mac> {
    let hardware = host.status.as_ref().and_then(|status| status.hardware.as_ref());
    let hardware = hardware.map(Packed::unpack);
    let nics = hardware.iter().flat_map(|hardware| &hardware.nics);
    let inspected: Vec<Mac> = nics.filter_map(|nic| nic.mac.as_ref()?.parse().ok()).collect();
    declared_mac(host).into_iter().chain(inspected)
}

/// True if one of `wanted` means `host`.
pub(crate) fn has_any_mac(host: &BareMetalHost, wanted: &BTreeSet<Mac>) -> bool {
    macs(host).any(|mac| wanted.contains(&mac))
}

/// The word for where `host` is in its life, whoever wrote it.
pub(crate) fn state_word(host: &BareMetalHost) -> &str {
    host.status
        .as_ref()
        .map_or("", |status| &status.provisioning.state)
}

/// True if nobody may touch `host` now.
pub(crate) fn is_paused(host: &BareMetalHost) -> bool {
    annotation(host, PAUSED_ANNOTATION).is_some()
}

/// True if somebody deleted `host` and a finalizer still holds it.
pub(crate) fn is_being_deleted(host: &BareMetalHost) -> bool {
    host.metadata.deletion_timestamp.is_some()
}

/// True if somebody asks for another inspection, and the host is to be inspected at all.
pub(crate) fn wants_inspection(host: &BareMetalHost) -> bool {
    annotation(host, INSPECT_ANNOTATION).is_some() && !forbids_inspection(host)
}

/// True if `host` is not to be inspected.
pub(crate) fn forbids_inspection(host: &BareMetalHost) -> bool {
    host.spec.inspection_mode == Some(InspectionMode::Disabled)
        || annotation(host, INSPECT_ANNOTATION) == Some(INSPECTION_DISABLED)
}
