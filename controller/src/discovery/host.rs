//! The shape of a discovered host, and what discovery reads off hosts. Pure.
//!
//! A discovered host carries no finalizer: deleting it needs nobody's consent. Its HardwareData carries none either (upstream
//! puts one on, and removes it in the controller that deletes the host); it belongs to the host and is collected with it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use muster_proto::{
    Mac,
    inventory::{BootMode, Inventory},
    kinds::{
        ARCH_LABEL, BOOT_MODE_LABEL, BareMetalHost, BareMetalHostSpec, BareMetalHostStatus, HardwareDetails,
        OperationHistory, OperationMetric, OperationalStatus, Packed, ProvisionStatus, SEGMENT_LABEL,
        SERVER_ANNOTATION, Trust, VENDOR_LABEL,
    },
    text,
};

use super::name;
use crate::{
    hardware,
    host::{
        State, conditions,
        owner::{TRUST_ANNOTATION, has_bmc, is_in_band, is_untouched},
    },
    hosts::{annotation, declared_mac},
    time::whole_seconds,
};

/// The vendor and the serial number that an inspection of `host` found, if they say something.
pub fn serial(host: &BareMetalHost) -> Option<(String, String)> {
    let hardware = host.status.as_ref()?.hardware.as_ref()?.unpack();
    let vendor = hardware.system_vendor.as_ref()?;
    let serial = text::usable(vendor.serial_number.as_deref()?)?;
    Some((
        name::vendor(vendor.manufacturer.as_deref().unwrap_or_default()),
        serial.to_owned(),
    ))
}

/// True if what the machine does is the operator's to say: its host is on its way, or will be as soon as the operator has seen it.
pub fn is_managed(host: &BareMetalHost) -> bool {
    let young = State::of(host).is_young();
    !young || has_bmc(host) || is_in_band(host)
}

/// True if `host` is past its inspection, whoever did it.
pub fn is_inspected(host: &BareMetalHost) -> bool {
    let before = [
        State::New,
        State::Unmanaged,
        State::Registering,
        State::Inspecting,
    ];
    !before.contains(&State::of(host))
}

/// The trust behind what `host` shows; unknown where nothing was recorded.
pub fn recorded_trust(host: &BareMetalHost) -> Trust {
    let parse = |text: &str| serde_json::from_value(serde_json::Value::String(text.to_owned())).ok();
    annotation(host, TRUST_ANNOTATION)
        .and_then(parse)
        .unwrap_or(Trust::Unknown)
}

/// A new host for the machine behind the Server `server`.
pub fn fresh(
    namespace: &str,
    name: &str,
    server: &str,
    trust: Trust,
    segment: &str,
    inventory: &Inventory,
) -> BareMetalHost {
    let mut host = BareMetalHost::new(
        name,
        BareMetalHostSpec {
            online: true,
            architecture: Some(text::clean(inventory.cpu.arch.as_bytes())).filter(|arch| !arch.is_empty()),
            boot_mac_address: hardware::boot_mac(inventory).map(|mac| mac.to_string()),
            ..BareMetalHostSpec::default()
        },
    );
    host.metadata.namespace = Some(namespace.to_owned());
    host.metadata.labels = Some(labels(inventory, segment));
    host.metadata.annotations = Some(annotations(server, trust));
    host
}

/// The address that `host` is to declare in place of one of a NIC that its machine does not have any more, such as an adapter on USB
/// that went from machine to machine. None once somebody has laid a hand on it: what they declare is theirs.
pub fn other_boot_mac(host: &BareMetalHost, inventory: &Inventory) -> Option<Mac> {
    let is_there = declared_mac(host).is_some_and(|mac| hardware::has_nic(inventory, mac));
    if is_there || !is_untouched(host) {
        return None;
    }
    hardware::boot_mac(inventory).filter(|mac| declared_mac(host) != Some(*mac))
}

/// The annotations that Muster keeps on a discovered host.
pub fn annotations(server: &str, trust: Trust) -> BTreeMap<String, String> {
    [(SERVER_ANNOTATION, server), (TRUST_ANNOTATION, trust.name())]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// The labels that Muster keeps on a discovered host; one that would be empty is left out.
pub fn labels(inventory: &Inventory, segment: &str) -> BTreeMap<String, String> {
    let mode = match inventory.boot.mode {
        BootMode::Bios => "bios",
        BootMode::Uefi => "uefi",
    };
    [
        (ARCH_LABEL, text::label_value(&inventory.cpu.arch)),
        (VENDOR_LABEL, name::vendor(&inventory.system.manufacturer)),
        (BOOT_MODE_LABEL, mode.to_owned()),
        (SEGMENT_LABEL, text::label_value(segment)),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// The entries of `wanted` that `present` lacks or has otherwise.
pub fn missing(
    wanted: BTreeMap<String, String>,
    present: Option<&BTreeMap<String, String>>,
) -> BTreeMap<String, String> {
    wanted
        .into_iter()
        .filter(|(name, value)| present.and_then(|present| present.get(name)) != Some(value))
        .collect()
}

/// When an inspection began and ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The session began.
    pub start: Option<Timestamp>,
    /// The inventory arrived.
    pub end: Timestamp,
}

/// The status of a discovered host that shows `hardware`: as upstream's for a host without BMC, and otherwise as it was.
/// `None` if it says so already; a new inspection of unchanged hardware is no change unless `retime` asks for its times.
pub fn status(
    host: &BareMetalHost,
    hardware: &HardwareDetails,
    inspected: Inspected,
    retime: bool,
    now: Timestamp,
) -> Option<BareMetalHostStatus> {
    let old = host.status.clone().unwrap_or_default();
    let mut new = BareMetalHostStatus {
        error_count: 0,
        error_message: String::new(),
        error_type: None,
        hardware: Some(Packed::new(hardware)),
        operational_status: OperationalStatus::Discovered,
        powered_on: true,
        provisioning: ProvisionStatus {
            state: "unmanaged".to_owned(),
            ..old.provisioning.clone()
        },
        ..old.clone()
    };
    conditions::unmanaged(&mut new, now);
    let times = old
        .operation_history
        .as_ref()
        .and_then(|history| history.inspect.as_ref());
    if times.is_none() || retime || old.hardware != new.hardware {
        let end = whole_seconds(inspected.end);
        // An inspection that was asked for and brought nothing new left no trace but its end.
        let same = retime && times.is_some_and(|times| times.end.as_ref() >= Some(&end));
        let end = if same { whole_seconds(now) } else { end };
        let start = inspected
            .start
            .map_or_else(|| end.clone(), |start| whole_seconds(start).min(end.clone()));
        let metric = OperationMetric {
            start: Some(start),
            end: Some(end),
        };
        new.operation_history
            .get_or_insert_with(OperationHistory::default)
            .inspect = Some(metric);
    }
    if host.status.is_some() && new == old {
        return None;
    }
    new.last_updated = Some(whole_seconds(now));
    Some(new)
}
