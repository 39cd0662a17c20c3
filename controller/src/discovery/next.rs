//! What is to be done about one Server: the decision, alone. Pure: no client, no runtime, no clock.
//!
//! ```text
//! Server with inventory ──> which host? (link.rs)
//!   none          CreateHost, and in the next round link, HardwareData, status, then the job to go to its own disk
//!   ours          whatever of it changed, as long as the host is still what discovery made of it
//!   somebody's    nothing but an Event
//!   gone          dismissed, until somebody approves
//!   in doubt      nothing but Events on all sides
//! ```
//!
//! Effects stand in the order in which they are safe: a crash between any two replays to the same end.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use kube::Resource as _;
use muster_proto::{
    Mac,
    kinds::{
        APPROVE_ANNOTATION, BareMetalHost, BareMetalHostStatus, HardwareData, HardwareDetails, HostReference,
        Segment, Server, ServerSpec, ServerStatus, Trust, UnknownPolicy,
    },
};

use super::{
    host, jobs,
    link::{self, Doubt, Link},
    name,
    notices::{clashes, dismissal, failed_job, no_segment, unapplied, unseen_host, unwatched, warning},
    report,
    twins::{strangers, twin_of_ours, twins_of_theirs},
};
use crate::{
    events::Event,
    hardware,
    host::conditions::{CONTESTED, ENROLS_AGAIN},
    hosts,
    path::Path,
};

/// What a decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The Server in question.
    pub server: &'a Server,
    /// At least every host that concerns it (`link::Signals`).
    pub hosts: &'a [Arc<BareMetalHost>],
    /// At least the HardwareData of those hosts.
    pub hardware: &'a [Arc<HardwareData>],
    /// At least every Server that can matter to the decision.
    pub servers: &'a [Arc<Server>],
    /// The Segment of its session.
    pub segment: Option<&'a Segment>,
    /// The only namespace whose hosts are seen; none: all are.
    pub watched: Option<&'a str>,
    /// The time.
    pub now: Timestamp,
}

impl<'a> Seen<'a> {
    /// The namespace that is watched, if it is another one than `namespace`: hosts in `namespace` are not seen.
    fn watched_instead_of(&self, namespace: &str) -> Option<&'a str> {
        self.watched.filter(|watched| *watched != namespace)
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make this host.
    CreateHost(Box<BareMetalHost>),
    /// Write these labels and annotations, and no others.
    MarkHost {
        /// Which host.
        host: HostReference,
        /// Labels.
        labels: BTreeMap<String, String>,
        /// Annotations.
        annotations: BTreeMap<String, String>,
    },
    /// Declare this MAC address in the host, if the host is still as it was seen.
    DeclareBootMac {
        /// Which host.
        host: HostReference,
        /// The resource version that was seen.
        version: String,
        /// The address.
        mac: Mac,
    },
    /// Make or update the HardwareData of the host's name, owned by the host.
    ApplyHardwareData {
        /// Which host.
        host: HostReference,
        /// What it says.
        hardware: Box<HardwareDetails>,
    },
    /// Write the host's status, if the host is still as it was seen.
    WriteHostStatus {
        /// Which host.
        host: HostReference,
        /// The resource version that was seen.
        version: String,
        /// The whole status.
        status: Box<BareMetalHostStatus>,
    },
    /// Make this the Server's spec, if the Server is still as it was seen.
    PatchServerSpec {
        /// The whole spec.
        spec: Box<ServerSpec>,
        /// Take the approval off, too: it has served.
        approved: bool,
    },
    /// If the API server itself says that this host is no more: the Server is dismissed.
    Dismiss(HostReference),
    /// Take an annotation off a host.
    RemoveAnnotation {
        /// Which host.
        host: HostReference,
        /// Its name.
        name: &'static str,
    },
    /// Delete a host that nobody touched, if it is still as it was seen.
    DeleteHost {
        /// Which host.
        host: HostReference,
        /// The resource version that was seen.
        version: String,
    },
    /// Tell people, once, that the step before was taken.
    Event(Event),
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In this order; the first that fails ends the round.
    pub effects: Vec<Effect>,
    /// What people should know as long as it is so: told when it begins, not in every round.
    pub notices: Vec<Event>,
    /// Why, for the log.
    pub why: String,
}

impl Plan {
    fn rest(why: impl Into<String>) -> Plan {
        Plan {
            why: why.into(),
            ..Plan::default()
        }
    }
}

/// The Server's name.
pub fn server_name(server: &Server) -> &str {
    server.metadata.name.as_deref().unwrap_or_default()
}

/// What is to be done about `seen.server`. Total: whatever the world looks like, there is a plan.
pub fn next(seen: &Seen<'_>) -> Plan {
    if seen.server.metadata.deletion_timestamp.is_some() {
        return Plan::rest("the Server is being deleted");
    }
    if crate::lenient::is_marked(seen.server) {
        return Plan::rest("a part of the Server cannot be read");
    }
    let approved = is_approved(seen.server);
    let found = link::find(seen, approved);
    let linked = match found {
        Link::Right(host) | Link::Change(host, _) => Some(Path::of(host)),
        _ => None,
    };
    let mut plan = match found {
        Link::Right(host) => tend(seen, host),
        Link::Change(host, why) => relink(seen, host, why),
        Link::Wrong(host) => unlink(seen, host),
        Link::Gone(at) => gone(seen, at, approved),
        Link::Doubt(hosts, why) => in_doubt(seen, &hosts, why),
        Link::Nobody if seen.server.spec.dismissed => dismissed(seen, approved),
        Link::Nobody => create(seen),
    };
    plan.notices.extend(strangers(seen, linked.as_ref()));
    plan.notices.extend(clashes(seen));
    plan.notices.extend(failed_job(seen));
    plan
}

/// When to look again after `plan`, whatever happens until then; none: when something changes.
pub fn again(seen: &Seen<'_>, plan: &Plan) -> Option<Timestamp> {
    let discovers = |segment: &Segment| segment.spec.unknown == UnknownPolicy::Discover;
    let rests = plan.effects.is_empty() && seen.segment.is_some_and(discovers);
    rests.then(|| jobs::early_until(seen))?
}

/// The spec of a Server whose host was deleted.
pub fn without_host(server: &Server) -> ServerSpec {
    ServerSpec {
        host: None,
        dismissed: true,
        job: jobs::kept(server, None),
        wake: None,
    }
}

fn is_approved(server: &Server) -> bool {
    server
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(APPROVE_ANNOTATION))
}

pub(super) fn status<'a>(seen: &Seen<'a>) -> Option<&'a ServerStatus> {
    seen.server.status.as_ref()
}

pub(super) fn trust(seen: &Seen<'_>) -> Trust {
    status(seen)
        .and_then(|status| status.inventory_trust)
        .unwrap_or(Trust::Unknown)
}

/// The host that the Server points at is not among those that are seen.
fn gone(seen: &Seen<'_>, at: HostReference, approved: bool) -> Plan {
    if let Some(watched) = seen.watched_instead_of(&at.namespace) {
        let mut plan = Plan::rest("its host is in a namespace that this controller does not watch");
        plan.notices.push(unseen_host(seen.server, &at, watched));
        return plan;
    }
    // Where it is approved already, it may have another host at once.
    let told = (!approved).then(|| Effect::Event(dismissal(seen.server, &at)));
    let mut effects = vec![Effect::Dismiss(at)];
    effects.extend(told);
    Plan {
        effects,
        notices: Vec::new(),
        why: "its host is gone".to_owned(),
    }
}

/// A machine that no host stands for.
fn create(seen: &Seen<'_>) -> Plan {
    let Some(inventory) = link::inventory(seen.server) else {
        return Plan::rest("it has sent no inventory yet");
    };
    if status(seen).is_some_and(|status| status.contested) {
        let message = format!("no host is created: {CONTESTED}; next: {ENROLS_AGAIN}");
        let mut plan = Plan::rest("it is contested");
        plan.notices
            .push(warning(seen.server.object_ref(&()), "Contested", message));
        return plan;
    }
    let Some((segment_namespace, segment_name)) = seen.server.segment() else {
        return Plan::rest("no session names its Segment");
    };
    let Some(segment) = seen.segment else {
        let mut plan = Plan::rest("its Segment does not exist");
        plan.notices
            .push(no_segment(seen.server, segment_namespace, segment_name));
        return plan;
    };
    if segment.spec.unknown == UnknownPolicy::Ignore {
        return Plan::rest("its Segment ignores unknown machines");
    }
    let own = segment.metadata.namespace.as_deref().unwrap_or_default();
    let namespace = segment.spec.host_namespace.as_deref().unwrap_or(own);
    // A host that is not seen again gets no status, and is made again and again.
    if let Some(watched) = seen.watched_instead_of(namespace) {
        let mut plan =
            Plan::rest("its Segment puts hosts into a namespace that this controller does not watch");
        plan.notices
            .extend(unwatched(seen.server, segment, namespace, watched));
        // The inventory is kept, so the host can be made later without the machine.
        plan.effects.extend(job(seen, None, true).0);
        return plan;
    }
    let taken = |name: &String| {
        seen.hosts.iter().any(|host| {
            host.metadata.name.as_ref() == Some(name) && host.metadata.namespace.as_deref() == Some(namespace)
        })
    };
    let names = name::candidates(&inventory, server_name(seen.server));
    let Some(name) = names.iter().find(|name| !taken(name)) else {
        let message = format!(
            "no host is created: every name that fits this machine is taken in namespace {namespace} ({}); next: delete the hosts among \
             them whose machines are gone",
            names.join(", ")
        );
        let mut plan = Plan::rest("every name is taken");
        plan.notices
            .push(warning(seen.server.object_ref(&()), "NoFreeName", message));
        return plan;
    };
    let host = host::fresh(
        namespace,
        name,
        server_name(seen.server),
        trust(seen),
        segment_name,
        &inventory,
    );
    Plan {
        effects: vec![Effect::CreateHost(Box::new(host))],
        notices: Vec::new(),
        why: format!("an unknown machine: new host {namespace}/{name}"),
    }
}

/// A machine whose discovered host somebody deleted.
fn dismissed(seen: &Seen<'_>, approved: bool) -> Plan {
    if approved {
        let spec = ServerSpec {
            dismissed: false,
            ..seen.server.spec.clone()
        };
        return Plan {
            // Where a host looks like the machine's, it is needed once more, for that.
            effects: vec![Effect::PatchServerSpec {
                spec: Box::new(spec),
                approved: !link::is_claimed(seen),
            }],
            notices: Vec::new(),
            why: "it was approved again".to_owned(),
        };
    }
    let mut plan = Plan::rest("its host was deleted and it has not been approved again");
    plan.effects.extend(job(seen, None, true).0);
    plan
}

/// The Server is to point at `host`. If the host is ours, what it lacks is written in the same round.
fn relink(seen: &Seen<'_>, host: &BareMetalHost, why: &str) -> Plan {
    let spec = ServerSpec {
        host: Some(hosts::reference(host)),
        dismissed: false,
        job: jobs::kept(seen.server, host.metadata.uid.as_deref()),
        // That was a wish for another host.
        wake: None,
    };
    let mut linked = seen.server.clone();
    linked.spec = spec.clone();
    // Linked before anything else: from then on a deletion of the host is noticed.
    let approved = is_approved(seen.server);
    let spec = Box::new(spec);
    let mut effects = vec![Effect::PatchServerSpec { spec, approved }];
    if hosts::made_for(host) == Some(server_name(seen.server)) {
        let seen = Seen {
            server: &linked,
            ..*seen
        };
        let further = tend(&seen, host).effects.into_iter();
        effects.extend(further.take_while(|effect| {
            // A second patch of the Server would not find it as it was seen, and what follows such a patch relies on it.
            !matches!(
                effect,
                Effect::PatchServerSpec { .. } | Effect::RemoveAnnotation { .. } | Effect::DeleteHost { .. }
            )
        }));
    }
    Plan {
        effects,
        notices: Vec::new(),
        why: format!("{why}: {}", Path::of(host)),
    }
}

fn unlink(seen: &Seen<'_>, host: &BareMetalHost) -> Plan {
    let owner = hosts::made_for(host).unwrap_or_default();
    let spec = ServerSpec {
        host: None,
        job: jobs::kept(seen.server, None),
        wake: None,
        ..seen.server.spec.clone()
    };
    let told = |about, other: &str| {
        let message = format!(
            "Servers {} and {owner} both pointed at host {}; {other}; next: delete the Server of a machine that is gone",
            server_name(seen.server),
            Path::of(host)
        );
        Effect::Event(warning(about, "HostClaimedTwice", message))
    };
    Plan {
        effects: vec![
            Effect::PatchServerSpec {
                spec: Box::new(spec),
                approved: false,
            },
            told(
                seen.server.object_ref(&()),
                "the host was created for the other one",
            ),
            told(host.object_ref(&()), "the host was not changed"),
        ],
        notices: Vec::new(),
        why: format!("its host {} was created for another machine", Path::of(host)),
    }
}

fn in_doubt(seen: &Seen<'_>, hosts: &[&BareMetalHost], doubt: Doubt) -> Plan {
    let us = server_name(seen.server);
    let why = doubt.why();
    let mut plan = Plan::rest(format!("in doubt: {why}"));
    let named: Vec<String> = hosts
        .iter()
        .take(8)
        .map(|host| Path::of(*host).to_string())
        .collect();
    let remedy = |server: &str| match doubt.can_be_approved() {
        true => format!(
            "annotate {server} with {APPROVE_ANNOTATION} to get a host of its own, or {}",
            doubt.remedy()
        ),
        false => doubt.remedy(),
    };
    let message = format!(
        "no host is created or changed: {why} ({}); next: {}",
        named.join(", "),
        remedy("this Server")
    );
    plan.notices
        .push(warning(seen.server.object_ref(&()), "HostInDoubt", message));
    for host in hosts {
        let message = format!(
            "Server {us} reported a machine that may be this host: {why}; nothing was changed; next: {}",
            remedy(&format!("Server {us}"))
        );
        plan.notices
            .push(warning(host.object_ref(&()), "ClaimedByReport", message));
        plan.notices
            .extend(link::rivals(seen, host).into_iter().map(|rival| {
                let message = format!(
                    "this Server and Server {us} both report the MAC address of host {}; next: delete the Server of a machine that is gone",
                    Path::of(*host)
                );
                warning(rival.object_ref(&()), "HostClaimedTwice", message)
            }));
    }
    if status(seen).is_some_and(|status| status.inventory.is_some()) {
        plan.effects.extend(job(seen, None, true).0);
    }
    plan
}

/// The patch that brings the Server's job up to date, if it is not, and how a requested inspection ended.
pub(super) fn job(
    seen: &Seen<'_>,
    host: Option<&BareMetalHost>,
    settled: bool,
) -> (Option<Effect>, Option<Result<(), String>>) {
    let jobs = jobs::decide(seen, host, settled);
    let patch = (jobs.job != seen.server.spec.job).then(|| Effect::PatchServerSpec {
        spec: Box::new(ServerSpec {
            job: jobs.job,
            ..seen.server.spec.clone()
        }),
        approved: false,
    });
    (patch, jobs.inspected)
}

/// The host is linked: ours or somebody's.
fn tend(seen: &Seen<'_>, host: &BareMetalHost) -> Plan {
    if hosts::is_being_deleted(host) || hosts::is_paused(host) {
        return Plan::rest(format!("host {} is being deleted or paused", Path::of(host)));
    }
    let is_ours = hosts::made_for(host) == Some(server_name(seen.server));
    let (folded, mut plan) = if is_ours {
        twin_of_ours(seen, host)
    } else {
        twins_of_theirs(seen, host)
    };
    if folded {
        return plan;
    }
    let Some(inventory) = link::inventory(seen.server) else {
        plan.why = "it has sent no inventory yet".to_owned();
        return plan;
    };
    let hardware = hardware::details(&inventory);
    if let Some(refused) = report::refusal(seen, host) {
        // Until its own inspection has ended, the operator looks at reports itself.
        if !host::is_managed(host) || host::is_inspected(host) {
            plan.notices.extend(unapplied(seen, host, &hardware, &refused));
        }
        let (patch, inspected) = job(seen, Some(host), true);
        // The request goes before the job: as long as it is there, another one would be placed.
        if let Some(outcome) = inspected {
            let done = || {
                let message = format!(
                    "inspected as requested; the report is not applied to this host ({refused}) and is kept in Server {}",
                    server_name(seen.server)
                );
                warning(host.object_ref(&()), "ReportNotApplied", message)
            };
            let told = outcome.map(|()| done());
            plan.effects.extend(report::inspection_ends(host, told));
        }
        plan.effects.extend(patch);
        plan.why = format!("the report is not applied to host {}: {refused}", Path::of(host));
        return plan;
    }
    report::apply(seen, host, &inventory, &hardware, &mut plan);
    plan
}

#[cfg(test)]
mod tests;
