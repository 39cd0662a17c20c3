//! One machine, two hosts: the discovered one that nobody touched is folded into the declared one; any other double is told on
//! both sides. Pure.

use kube::Resource as _;
use muster_proto::kinds::{BareMetalHost, DETACHED_ANNOTATION, SERVER_ANNOTATION, ServerSpec};

use super::{
    link,
    next::{Effect, Plan, Seen, server_name},
    notices::{event, warning},
};
use crate::{events::Event, host::owner::is_untouched, hosts, path::Path};

/// Our host, and the same machine declared by somebody else under another name or in another namespace.
pub(super) fn twin_of_ours(seen: &Seen<'_>, ours: &BareMetalHost) -> (bool, Plan) {
    let at = Path::of(ours);
    let copies = made_for_us(seen, &at);
    let (left, touched): (Vec<_>, Vec<_>) = copies.into_iter().partition(|copy| is_untouched(copy));
    if !left.is_empty() && !is_untouched(ours) {
        return (
            true,
            Plan {
                effects: left.into_iter().flat_map(|left| fold(left, ours)).collect(),
                notices: Vec::new(),
                why: format!("the duplicate of host {at} is removed"),
            },
        );
    }
    let mut twins = link::twins(seen);
    twins.extend(left.into_iter().chain(touched));
    let same_name = |host: &&BareMetalHost| {
        hosts::made_for(host).is_none()
            && host.metadata.name == ours.metadata.name
            && host.metadata.namespace != ours.metadata.namespace
            && hosts::declared_mac(host).is_none()
            && !hosts::is_being_deleted(host)
    };
    twins.extend(seen.hosts.iter().map(AsRef::as_ref).filter(same_name));
    match twins[..] {
        [] => (false, Plan::default()),
        [theirs] if is_untouched(ours) && !is_untouched(theirs) && link::rivals(seen, theirs).is_empty() => {
            let spec = ServerSpec {
                host: Some(hosts::reference(theirs)),
                ..seen.server.spec.clone()
            };
            // Linked before ours goes: if we fall between the two, what is left of ours is found and deleted.
            let mut effects = vec![Effect::PatchServerSpec {
                spec: Box::new(spec),
                approved: false,
            }];
            effects.extend(fold(ours, theirs));
            let why = format!("{} is declared as {}", Path::of(ours), Path::of(theirs));
            (
                true,
                Plan {
                    effects,
                    notices: Vec::new(),
                    why,
                },
            )
        }
        _ => {
            let doubles = twins.iter().flat_map(|theirs| double(ours, theirs));
            (
                false,
                Plan {
                    notices: doubles.collect(),
                    ..Plan::default()
                },
            )
        }
    }
}

/// Somebody's host, and what is left of ours for the same machine.
pub(super) fn twins_of_theirs(seen: &Seen<'_>, theirs: &BareMetalHost) -> (bool, Plan) {
    let at = Path::of(theirs);
    let mut plan = Plan::default();
    for ours in made_for_us(seen, &at) {
        match is_untouched(ours) {
            true => plan.effects.extend(fold(ours, theirs)),
            false => plan.notices.extend(double(ours, theirs)),
        }
    }
    plan.why = format!("the duplicate of host {at} is removed");
    let doubles = link::twins(seen)
        .into_iter()
        .filter(|other| Path::of(*other) != at);
    plan.notices
        .extend(doubles.flat_map(|other| double(other, theirs)));
    (!plan.effects.is_empty(), plan)
}

/// The hosts beside that at `at` which were made for this machine.
fn made_for_us<'a>(seen: &Seen<'a>, at: &Path) -> Vec<&'a BareMetalHost> {
    let mut all = link::made_for_us(seen);
    all.retain(|host| Path::of(*host) != *at && link::may_be(seen, host));
    all
}

/// What is told of hosts that say that they were made for this machine, beside the one that is `linked`, and declare a NIC that it does not
/// have: somebody made them after the pattern of one that we made, for another machine.
pub(super) fn strangers(seen: &Seen<'_>, linked: Option<&Path>) -> Vec<Event> {
    let all = link::made_for_us(seen).into_iter();
    let strange = all.filter(|host| Some(&Path::of(*host)) != linked && !link::may_be(seen, host));
    let told = strange.map(|host| {
        let message = format!(
            "the annotation {SERVER_ANNOTATION} says that this host was created for Server {}, but that machine has no NIC with the \
             host's bootMACAddress; next: remove the annotation, and the host waits for its own machine",
            server_name(seen.server)
        );
        warning(host.object_ref(&()), "OtherMachine", message)
    });
    told.collect()
}

fn fold(ours: &BareMetalHost, theirs: &BareMetalHost) -> [Effect; 2] {
    let message = format!(
        "the discovered host {} is the same machine and was folded into this one",
        Path::of(ours)
    );
    [
        Effect::DeleteHost {
            host: hosts::reference(ours),
            version: ours.metadata.resource_version.clone().unwrap_or_default(),
        },
        Effect::Event(event(theirs.object_ref(&()), false, "TwinFolded", message)),
    ]
}

fn double(one: &BareMetalHost, other: &BareMetalHost) -> [Event; 2] {
    let told = |about: &BareMetalHost, twin: &BareMetalHost| {
        let message = format!(
            "host {} is the same machine; next: delete the one that runs nothing; if it may run a workload, annotate it with \
             {DETACHED_ANNOTATION} first: deleting a provisioned host cleans its disks",
            Path::of(twin)
        );
        warning(about.object_ref(&()), "SameMachine", message)
    };
    [told(one, other), told(other, one)]
}
