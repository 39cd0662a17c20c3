//! What a machine's report changes in the host that discovery made for it. Pure.

use jiff::Timestamp;
use kube::Resource as _;
use muster_proto::{
    Mac,
    inventory::Inventory,
    kinds::{BareMetalHost, HardwareDetails, INSPECT_ANNOTATION, Packed, Trust},
    text,
};

use super::{
    host::{self, Inspected},
    jobs, link,
    next::{Effect, Plan, Seen, job, server_name, status, trust},
    notices::{event, told_of_hardware, warning},
};
use crate::{
    events::Event,
    host::{conditions::CONTESTED, owner::is_discovered},
    hosts,
    path::Path,
};

/// Why a report may not change `host`; none if it may.
pub(super) fn refusal(seen: &Seen<'_>, host: &BareMetalHost) -> Option<String> {
    let us = server_name(seen.server);
    match hosts::made_for(host) {
        None => return Some("Muster did not create it".to_owned()),
        // Left by a Server that was removed, it is ours again.
        Some(server) if server != us && link::exists(seen, server) && !is_discovered(host) => {
            return Some("it was created for another Server".to_owned());
        }
        Some(_) => {}
    }
    if !is_discovered(host) {
        return Some(format!(
            "it is {}",
            text::clean(hosts::state_word(host).as_bytes())
        ));
    }
    if status(seen).is_some_and(|status| status.contested) {
        return Some(CONTESTED.to_owned());
    }
    let had = host::recorded_trust(host);
    let required = seen
        .segment
        .map_or(Trust::Unknown, |segment| segment.spec.trust_to_believe());
    // A host without hardware is one whose first report is still being written.
    let is_first = host
        .status
        .as_ref()
        .is_none_or(|status| status.hardware.is_none());
    let needed = if is_first { had } else { had.max(required) };
    (trust(seen) < needed).then(|| {
        let [is, needs] = [trust(seen), needed].map(Trust::name);
        format!("the report has trust `{is}`, but `{needs}` is required")
    })
}

/// Brings our discovered host up to date with the report.
pub(super) fn apply(
    seen: &Seen<'_>,
    host: &BareMetalHost,
    inventory: &Inventory,
    hardware: &HardwareDetails,
    plan: &mut Plan,
) {
    let at = hosts::reference(host);
    let version = host.metadata.resource_version.clone().unwrap_or_default();
    let (patch, inspected) = job(seen, Some(host), false);
    if !has_data(seen, host, hardware) {
        plan.effects.push(Effect::ApplyHardwareData {
            host: at.clone(),
            hardware: Box::new(hardware.clone()),
        });
    }
    let retime = matches!(inspected, Some(Ok(())));
    if let Some(status) = host::status(host, hardware, times(seen), retime, seen.now) {
        plan.effects.push(Effect::WriteHostStatus {
            host: at.clone(),
            version: version.clone(),
            status: Box::new(status),
        });
        let had = host.status.as_ref().and_then(|status| status.hardware.as_ref());
        let had = had.map(Packed::unpack);
        plan.effects
            .extend(told_of_hardware(host, had.as_deref(), hardware).map(Effect::Event));
    }
    let segment = seen.server.segment().map_or("", |(_, name)| name);
    let labels = host::missing(host::labels(inventory, segment), host.metadata.labels.as_ref());
    let trust = trust(seen).max(host::recorded_trust(host));
    let annotations = host::missing(
        host::annotations(server_name(seen.server), trust),
        host.metadata.annotations.as_ref(),
    );
    if !labels.is_empty() || !annotations.is_empty() {
        plan.effects.push(Effect::MarkHost {
            host: at.clone(),
            labels,
            annotations,
        });
    }
    // The machine leaves for its own disk only when all that it reported is stored; whether the API server takes an address that follows
    // from it does not hold it up.
    let settled = plan.effects.is_empty();
    plan.effects.extend(match settled {
        true => job(seen, Some(host), true).0,
        false => patch,
    });
    if let Some((had, mac)) = other_boot_mac(seen, host, inventory).filter(|_| settled && inspected.is_none())
    {
        plan.effects.push(Effect::DeclareBootMac {
            host: at.clone(),
            version,
            mac,
        });
        let message = format!("spec.bootMACAddress is now {mac}: the machine no longer has NIC {had}");
        plan.effects.push(Effect::Event(event(
            host.object_ref(&()),
            false,
            "NicReplaced",
            message,
        )));
    }
    if let Some(outcome) = inspected {
        let done = || {
            let message = "inspected again, as requested".to_owned();
            event(host.object_ref(&()), false, "Inspected", message)
        };
        plan.effects
            .extend(inspection_ends(host, outcome.map(|()| done())));
    }
    plan.why = match plan.effects.is_empty() {
        true => format!("host {} is up to date", Path::of(host)),
        false => format!("host {} is brought up to date", Path::of(host)),
    };
}

/// The inspection that somebody asked for has ended: with an error, or as is `told`.
pub(super) fn inspection_ends(host: &BareMetalHost, told: Result<Event, String>) -> [Effect; 2] {
    let told = told.unwrap_or_else(|error| {
        let error = text::clean(error.as_bytes());
        let message = format!(
            "the requested inspection failed: {error}; next: annotate the host with {INSPECT_ANNOTATION} again"
        );
        warning(host.object_ref(&()), "InspectionFailed", message)
    });
    let request = Effect::RemoveAnnotation {
        host: hosts::reference(host),
        name: INSPECT_ANNOTATION,
    };
    [request, Effect::Event(told)]
}

/// The address of a NIC that the machine of `host` does not have any more, and the one that the host is to declare in its place. None where a
/// person may have written it: nobody knows a NIC that is yet to be put in.
fn other_boot_mac(seen: &Seen<'_>, host: &BareMetalHost, inventory: &Inventory) -> Option<(Mac, Mac)> {
    let had = hosts::declared_mac(host)?;
    // It may have moved to another machine since.
    let mut known = seen.servers.iter().map(AsRef::as_ref).chain([seen.server]);
    let is_known = known.any(|server| {
        let status = server.status.as_ref();
        status.is_some_and(|status| status.identity.macs.contains(&had))
    });
    let mac =
        host::other_boot_mac(host, inventory).filter(|_| is_known && jobs::early_until(seen).is_none())?;
    Some((had, mac))
}

fn has_data(seen: &Seen<'_>, host: &BareMetalHost, hardware: &HardwareDetails) -> bool {
    let at = Path::of(host);
    seen.hardware.iter().any(|data| {
        let meta = &data.metadata;
        meta.name.as_ref() == Some(&at.name)
            && meta.namespace.as_ref() == Some(&at.namespace)
            && hosts::is_among(host, meta.owner_references.as_ref())
            && data.spec.hardware.as_ref() == Some(&Packed::new(hardware))
    })
}

fn times(seen: &Seen<'_>) -> Inspected {
    let parse = |text: &str| text.parse::<Timestamp>().ok();
    let status = status(seen);
    let end = status
        .and_then(|status| status.inventoried.as_deref())
        .and_then(parse);
    let end = end.unwrap_or(seen.now);
    let start = status
        .and_then(|status| status.session.as_ref())
        .and_then(|session| parse(&session.since));
    Inspected { start, end }
}
