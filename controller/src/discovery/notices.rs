//! What people are told, in words. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource as _;
use muster_proto::{
    Chain,
    kinds::{
        APPROVE_ANNOTATION, BareMetalHost, HardwareDetails, HostReference, IN_BAND_ANNOTATION, Segment,
        Server,
    },
    text,
};

use super::{
    link,
    next::{Seen, server_name},
};
use crate::{events::Event, hardware, machines::Signal, round::ExecuteError};

/// The step that makes a host.
pub(super) const CREATE_HOST: &str = "create host";

/// The longest message of an Event that the API server takes is 1 KiB.
const MESSAGE_MAX: usize = 1000;

pub(super) fn event(
    about: ObjectReference,
    warning: bool,
    reason: &'static str,
    mut message: String,
) -> Event {
    if message.len() > MESSAGE_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_MAX));
        message.push('…');
    }
    Event {
        about,
        related: None,
        warning,
        reason,
        message,
    }
}

pub(super) fn warning(about: ObjectReference, reason: &'static str, message: String) -> Event {
    event(about, true, reason, message)
}

/// A step that the API server refuses: what failed, on which object, and what happens next.
pub(super) fn refused(server: &Server, error: &ExecuteError) -> Event {
    let is_of_host = matches!(error, ExecuteError::Step { step, .. } if *step == CREATE_HOST);
    let what = match is_of_host {
        true => "no host is created: ",
        false => "",
    };
    let remedy = match is_of_host && error.lacks_namespace() {
        true => {
            "next: create that namespace, or set spec.hostNamespace of the Segment on which the machine enrolled to one that exists; "
        }
        false => "",
    };
    let message = format!("{what}{}; {remedy}it is retried until it succeeds", Chain(error));
    warning(server.object_ref(&()), "DiscoveryFailed", message)
}

/// `segment` puts hosts into `namespace`, and only `watched` is watched. In the same words on the Segment for all its machines, so
/// that many are one Event.
pub(super) fn unwatched(server: &Server, segment: &Segment, namespace: &str, watched: &str) -> [Event; 2] {
    let name = segment.metadata.name.as_deref().unwrap_or_default();
    [
        (server.object_ref(&()), format!("Segment {name}")),
        (segment.object_ref(&()), "this Segment".to_owned()),
    ]
    .map(|(about, whose)| {
        let message = format!(
            "no host is created: {whose} puts hosts into namespace {namespace}, and this controller watches {watched} only; \
             next: set the Segment's spec.hostNamespace to {watched}, or let the controller watch {namespace} (--watch-namespace, \
             with rights there), or all namespaces (deploy/ instead of deploy/namespaced)"
        );
        warning(about, "NamespaceNotWatched", message)
    })
}

/// The Segment of the machine's latest session is not among those that are read: no host can be made by it.
pub(super) fn no_segment(server: &Server, namespace: Option<&str>, name: &str) -> Event {
    let at = namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
    let message = format!(
        "no host is created: Segment {at}, on which the machine enrolled, does not exist or cannot be read; next: recreate or correct it, \
         or boot the machine on another Segment"
    );
    warning(server.object_ref(&()), "NoSegment", message)
}

/// The Server's host lives outside of the namespace `watched`, the only one that is watched: nobody can say whether it is there.
pub(super) fn unseen_host(server: &Server, at: &HostReference, watched: &str) -> Event {
    let HostReference { namespace, name, .. } = at;
    let message = format!(
        "nothing is changed: its host {namespace}/{name} cannot be seen, because this controller watches namespace {watched} only; \
         next: let the controller watch {namespace} (--watch-namespace, with rights there), or all namespaces (deploy/ instead of \
         deploy/namespaced)"
    );
    warning(server.object_ref(&()), "NamespaceNotWatched", message)
}

/// The Server's host `at` was deleted, and the machine is to have no other before a person says so.
pub(super) fn dismissal(server: &Server, at: &HostReference) -> Event {
    let HostReference { namespace, name, .. } = at;
    let message = format!(
        "its host {namespace}/{name} was deleted: no other is created for the machine, which boots from its own disk from its next boot \
         on; next: to give it a host again, annotate this Server with {APPROVE_ANNOTATION} or declare a host for it"
    );
    event(server.object_ref(&()), false, "Dismissed", message)
}

/// What people should know of a report that was not applied: nothing, if the host shows the same hardware.
pub(super) fn unapplied(
    seen: &Seen<'_>,
    host: &BareMetalHost,
    hardware: &HardwareDetails,
    refused: &str,
) -> Option<Event> {
    let shown = host.status.as_ref().and_then(|status| status.hardware.as_ref());
    let differs = shown.map_or_else(
        || vec!["hardware that its status does not show".to_owned()],
        |shown| hardware::changes(&shown.unpack(), hardware),
    );
    (!differs.is_empty()).then(|| {
        let us = server_name(seen.server);
        let message = format!(
            "Server {us} reported for this host: {}; not applied: {refused}",
            differs.join("; ")
        );
        event(host.object_ref(&()), false, "ReportNotApplied", message)
    })
}

pub(super) fn told_of_hardware(
    host: &BareMetalHost,
    had: Option<&HardwareDetails>,
    now: &HardwareDetails,
) -> Option<Event> {
    let about = host.object_ref(&());
    let Some(had) = had else {
        let vendor = now.system_vendor.as_ref();
        let product = vendor
            .and_then(|vendor| vendor.product_name.as_deref())
            .unwrap_or("machine");
        let message = format!(
            "{product}: {} disks, {} network interfaces, {} MiB of memory; next: set spec.bmc, or annotate the host with {IN_BAND_ANNOTATION}, to manage it",
            now.storage.len(),
            now.nics.len(),
            now.ram_mebibytes.unwrap_or(0),
        );
        return Some(event(about, false, "Discovered", message));
    };
    let changes = hardware::changes(had, now);
    (!changes.is_empty()).then(|| event(about, false, "HardwareChanged", changes.join("; ")))
}

/// Other Servers that share a signal with this one and are another machine: told on this one's side, as each tells on its own, on
/// the Server and on its host. The words stay the same while the clash lasts, so that it is told once.
pub(super) fn clashes(seen: &Seen<'_>) -> Vec<Event> {
    let us = server_name(seen.server);
    let listed = |server: &Server, name: &str| {
        server
            .status
            .as_ref()
            .is_some_and(|status| status.clashes.iter().any(|clash| clash == name))
    };
    let host = seen.server.spec.host.as_ref().map(|at| ObjectReference {
        api_version: Some("metal3.io/v1alpha1".to_owned()),
        kind: Some("BareMetalHost".to_owned()),
        namespace: Some(at.namespace.clone()),
        name: Some(at.name.clone()),
        uid: Some(at.uid.clone()),
        ..ObjectReference::default()
    });
    let others = seen.servers.iter().filter(|other| {
        let name = server_name(other);
        name != us && (listed(seen.server, name) || listed(other, us))
    });
    others
        .flat_map(|other| {
            let name = server_name(other);
            let shared = shared(seen.server, other);
            let next = match shared {
                ADDRESS => "check whether a NIC was moved, or delete the Server of a machine that is gone",
                // Vendors give one to several machines.
                _ => "delete the Server of a machine that is gone; two machines that both exist stay two Servers",
            };
            // Nobody becomes a machine of another Segment by what it says: see `agents::identity`.
            let moved = match (seen.server.segment(), other.segment()) {
                (Some(ours), Some(theirs)) if ours != theirs => {
                    "; if it is one machine that was moved to another Segment, delete the Server that it had before"
                }
                _ => "",
            };
            let message =
                format!("shares {shared} with Server {name}, which is another machine; next: {next}{moved}");
            std::iter::once(seen.server.object_ref(&()))
                .chain(host.clone())
                .map(move |about| warning(about, "IdentityClash", message.clone()))
        })
        .collect()
}

const ADDRESS: &str = "a MAC address";

/// What makes two Servers clash. An address is kept by one of them alone (`agents::identity`): where they show neither the same UUID nor
/// the same serial number, it is an address.
fn shared(one: &Server, other: &Server) -> &'static str {
    let [one, other] = [one, other].map(shown);
    let any = |is: fn(&Signal) -> bool| one.intersection(&other).any(is);
    let uuid = any(|signal| matches!(signal, Signal::Uuid(_)));
    let serial = any(|signal| matches!(signal, Signal::Serial(_) | Signal::Board(_)));
    match (uuid, serial) {
        (true, true) => "its UUID and a serial number",
        (true, false) => "its UUID",
        (false, true) => "a serial number",
        (false, false) => ADDRESS,
    }
}

/// All that the machine behind `server` says of itself: as it enrolled, and as it reported.
fn shown(server: &Server) -> BTreeSet<Signal> {
    let known = server.status.as_ref().map(|status| status.identity.normalised());
    let reported = link::inventory(server).map(|inventory| inventory.identity.normalised());
    known.iter().chain(&reported).flat_map(Signal::of).collect()
}

/// A job that the agent could not carry out; a failed inspection is told with its end.
pub(super) fn failed_job(seen: &Seen<'_>) -> Option<Event> {
    let last = seen.server.last_job()?;
    (last.done && !last.error.is_empty()).then(|| {
        let message = format!(
            "job {} failed: {}",
            text::clean(last.id.as_bytes()),
            text::clean(last.error.as_bytes())
        );
        warning(seen.server.object_ref(&()), "JobFailed", message)
    })
}
