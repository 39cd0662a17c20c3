//! What the running ramdisk of a machine is told to do: inspect again, or reboot to its own disk. Pure.
//!
//! An inspection stays on the Server until it has ended or a newer inventory has come, a release until it is taken up; then it is removed:
//! a later session must not meet it.
//! Jobs whose id is not ours were placed by a person, or by the operator for the Server's host, and are left alone.

use jiff::Timestamp;
use muster_proto::kinds::{BareMetalHost, Job, JobAction, Server, SessionState, UnknownPolicy};

use super::{host, next::Seen};
use crate::{
    boot::policy::{Verdict, verdict},
    hardware::is_early_until,
    host::{is_for_another, owner::is_discovered},
    hosts,
};

const INSPECT: &str = "inspect-";
const RELEASE: &str = "release-";

/// What becomes of the job, and of the request for an inspection.
#[derive(Debug, PartialEq)]
pub(super) struct Jobs {
    /// The job that the Server is to carry.
    pub(super) job: Option<Box<Job>>,
    /// The requested inspection has ended: well, or with this error.
    pub(super) inspected: Option<Result<(), String>>,
}

/// The jobs of the machine whose host is `host`; `settled` says that all else about it is decided and written.
pub(super) fn decide(seen: &Seen<'_>, host: Option<&BareMetalHost>, settled: bool) -> Jobs {
    if let Some(job) = &seen.server.spec.job
        && !job.id.starts_with(INSPECT)
        && !job.id.starts_with(RELEASE)
    {
        return Jobs {
            job: Some(job.clone()),
            inspected: None,
        };
    }
    if host.is_some_and(host::is_managed) {
        // The operator says what the machine does; what we wanted of it before is over.
        return Jobs {
            job: None,
            inspected: None,
        };
    }
    // Of a host that somebody declared nothing is changed by it, and the request ends all the same.
    let wanted = host.filter(|host| {
        (hosts::made_for(host).is_none() || is_discovered(host))
            && hosts::wants_inspection(host)
            && !hosts::is_paused(host)
    });
    match wanted.and_then(|host| Some((host, inspect_id(seen, host)?))) {
        Some((host, id)) => inspect(seen, host, id),
        None => Jobs {
            job: release(seen, host, settled).map(Box::new),
            inspected: None,
        },
    }
}

/// Names one inspection: of that host, to be newer than the inventory that is there. None before the first inventory, which
/// comes without a job.
fn inspect_id(seen: &Seen<'_>, host: &BareMetalHost) -> Option<String> {
    let status = seen.server.status.as_ref()?;
    status.inventory.as_ref()?;
    let inventoried = status.inventoried.as_deref().unwrap_or_default();
    Some(format!("{}{inventoried}", inspections_of(host)))
}

/// What the names of all inspections of `host` begin with. One that was asked for of a former host of its name says nothing of this one.
fn inspections_of(host: &BareMetalHost) -> String {
    let uid = host.metadata.uid.as_deref().unwrap_or_default();
    format!("{INSPECT}{uid}-")
}

/// The job of `server` that stays when the Server is to stand for the host with this UID, or (none) for no host any more. What was
/// ordered for a host that is gone, such as a write, is not done to one that was made anew.
pub(super) fn kept(server: &Server, uid: Option<&str>) -> Option<Box<Job>> {
    let job = server.spec.job.clone();
    job.filter(|job| !is_for_another(&job.id, uid))
}

/// Placed at once, connected or not: it waits for the machine's next session, whose own inventory may end it first.
fn inspect(seen: &Seen<'_>, host: &BareMetalHost, id: String) -> Jobs {
    // Where the last inspection brought nothing new, the next one needs another name than that one had.
    let again = format!("{id}-again");
    let current = seen.server.spec.job.as_ref();
    let ours = inspections_of(host);
    let pending = current.filter(|job| job.id.starts_with(&ours));
    let ended = |job: &Job| {
        seen.server
            .last_job()
            .filter(|last| last.id == job.id && last.done)
    };
    let inspected = match pending {
        None => None,
        // An inventory came since: that is what was asked for, whoever told the agent.
        Some(job) if job.id != id && job.id != again => Some(Ok(())),
        Some(job) => ended(job).map(|outcome| match outcome.error.as_str() {
            "" => Ok(()),
            error => Err(error.to_owned()),
        }),
    };
    let job = || match pending {
        Some(job) => job.clone(),
        None => Box::new(Job {
            id: if seen.server.last_job().is_some_and(|last| last.id == id) {
                again
            } else {
                id
            },
            action: JobAction::Inspect,
            ..Job::default()
        }),
    };
    Jobs {
        job: inspected.is_none().then(job),
        inspected,
    }
}

/// Until when a machine stays in its ramdisk, because drivers are still being loaded.
pub(super) fn early_until(seen: &Seen<'_>) -> Option<Timestamp> {
    let status = seen.server.status.as_ref()?;
    is_early_until(status, status.inventory.as_ref()?, seen.now)
}

/// Under `discover`, once in a session: its work is done, its own disk is next.
fn release(seen: &Seen<'_>, host: Option<&BareMetalHost>, settled: bool) -> Option<Job> {
    let status = seen.server.status.as_ref()?;
    let session = status.session.as_ref()?;
    let segment = seen.segment?;
    let session_id = match session.key.get(..16) {
        Some(key) => key,
        None => &session.since,
    };
    let id = format!("{RELEASE}{session_id}");
    let may = settled
        && session.state == SessionState::Connected
        && segment.spec.unknown == UnknownPolicy::Discover
        && status.inventory.is_some()
        && !status.contested
        && !host.is_some_and(hosts::is_paused)
        && seen.server.last_job().is_none_or(|last| last.id != id)
        && matches!(verdict(segment, Some(seen.server), host), Verdict::Disk(_))
        && early_until(seen).is_none();
    may.then_some(Job {
        id,
        action: JobAction::Reboot,
        ..Job::default()
    })
}
