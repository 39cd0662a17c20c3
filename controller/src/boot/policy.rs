//! Who boots what: the one place that says so, for DHCP, iPXE and HTTP boot alike. Pure.
//!
//! The first line that holds decides:
//!
//! | the machine | boots |
//! | --- | --- |
//! | its host is paused | its disk |
//! | it has a host, which is not seen here | nothing |
//! | the operator works on its host ([`netboot::wanted`]): it is registering, inspecting, preparing, available and to be on, provisioning or deprovisioning | the ramdisk |
//! | its host is asked to be inspected again and carries nobody's data | the ramdisk |
//! | it was dismissed: its discovered host was deleted and nobody approved it since | its disk |
//! | its Server has a job to inspect that is not done, and its host carries nobody's data | the ramdisk |
//! | its Server has a job to clean or write that is not done, its host carries nobody's data and is not protected | the ramdisk |
//! | no usable inventory, no host or a linked one that nobody laid a hand on, segment says `ignore` | nothing |
//! | no usable inventory, no host or a linked one that nobody laid a hand on, segment says `discover` or `hold` | the ramdisk |
//! | inventoried, no host or a linked one that nobody laid a hand on, segment says `hold` | the ramdisk |
//! | anything else | its disk |
//!
//! A machine that is known by its UUID alone, with a NIC that nobody has seen, had that NIC replaced or is another one: vendors ship
//! one UUID on many boards. Where it would boot its disk and no user's data is at stake, it is treated as one that nobody has
//! described, once: then its NIC is known. Where the ramdisk would boot anyway, it does. Elsewhere it boots its disk, and people are told
//! ([`SHARED_UUID`]).
//!
//! No table line powers anything off, and none but the operator's lets a machine with a user's data into the ramdisk. A job alone is not
//! enough: one on a Server that was restored from a backup may have been done long ago.

use muster_proto::kinds::{
    APPROVE_ANNOTATION, BareMetalHost, JobAction, SERVER_ANNOTATION, Segment, Server, UnknownPolicy,
};

use crate::{
    host::{State, guard::is_protected, netboot, owner::has_bmc},
    hosts::{annotation, is_paused, wants_inspection},
};

#[cfg(test)]
mod tests;

/// Why a machine boots its disk that has the UUID of a Server which is not idle, and a NIC that neither that nor its host ever had.
pub const SHARED_UUID: &str = "it has the UUID of a known machine and a NIC that nobody has seen: an Event on the Server of that UUID says what to do";

/// What a machine is to boot, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No answer to its network boot: as if Muster were not there.
    Silence(&'static str),
    /// The ramdisk.
    Ramdisk(&'static str),
    /// Its own disk; to a firmware that must be told something, "go on".
    Disk(&'static str),
}

/// What the machine that `server` and `host` speak of boots on `segment`; both absent: nobody has described it.
pub fn verdict(segment: &Segment, server: Option<&Server>, host: Option<&BareMetalHost>) -> Verdict {
    if host.is_some_and(is_paused) {
        return Verdict::Disk("its host is paused");
    }
    if host.is_none() && server.is_some_and(|server| server.spec.host.is_some()) {
        // Deleted a moment ago, or in a namespace that is not watched here: not seen is not absent. Who sees it has the word.
        return Verdict::Silence("this edge does not see its host");
    }
    if let Some(why) = host.and_then(|host| netboot::wanted(host, server)) {
        return Verdict::Ramdisk(why);
    }
    if host.is_some_and(|host| wants_inspection(host) && carries_nothing(host)) {
        return Verdict::Ramdisk("another inspection of its host was requested");
    }
    if server.is_some_and(is_dismissed) {
        return Verdict::Disk("its host was deleted and it has not been approved again");
    }
    if host.is_none_or(carries_nothing) {
        match server.and_then(pending) {
            Some(JobAction::Inspect) => {
                return Verdict::Ramdisk("it has a job to be inspected again");
            }
            Some(JobAction::Clean | JobAction::Write) if !host.is_some_and(is_protected) => {
                return Verdict::Ramdisk("its disks are to be cleaned or written");
            }
            _ => {}
        }
    }
    if host.is_some_and(|host| !is_linked(host, server)) {
        return Verdict::Disk("its host was declared by a user and has no job");
    }
    let free = host.is_none_or(is_free);
    if !server.is_some_and(is_inventoried) && free {
        return match segment.spec.unknown {
            UnknownPolicy::Ignore => Verdict::Silence("nobody has described it"),
            UnknownPolicy::Discover | UnknownPolicy::Hold if server.is_some_and(is_contested) => {
                Verdict::Ramdisk("two clients claim to be this machine: its inventory is not trusted")
            }
            UnknownPolicy::Discover | UnknownPolicy::Hold => Verdict::Ramdisk("nobody has described it"),
        };
    }
    match segment.spec.unknown {
        UnknownPolicy::Hold if free => Verdict::Ramdisk("it is held, ready for a job"),
        _ => Verdict::Disk("it is known and has no job"),
    }
}

/// The verdict on a machine with a NIC that nobody has seen and the UUID of the one that `server` and `host` speak of.
pub fn verdict_by_uuid(segment: &Segment, server: Option<&Server>, host: Option<&BareMetalHost>) -> Verdict {
    match verdict(segment, server, host) {
        Verdict::Disk(_) | Verdict::Silence(_) if server.is_some_and(|server| is_idle(server, host)) => {
            verdict(segment, None, None)
        }
        known => known,
    }
}

/// True if nobody uses the machine of `server`, as far as that and its host show, and nobody sent it away: a look at it risks nothing.
pub fn is_idle(server: &Server, host: Option<&BareMetalHost>) -> bool {
    let is_idle = |host| is_free(host) && is_linked(host, Some(server)) && !is_paused(host);
    host.is_none_or(is_idle) && !is_dismissed(server)
}

/// True for a host in whose life an inspection has a place. The spec counts beside the state, because an object that was
/// restored or moved from another cluster has lost its state for a while.
fn carries_nothing(host: &BareMetalHost) -> bool {
    matches!(
        State::of(host),
        State::New | State::Unmanaged | State::Registering | State::Preparing | State::Available
    ) && host.spec.image.is_none()
        && host.spec.custom_deploy.is_none()
        && host.spec.externally_provisioned != Some(true)
}

/// True for a host that nobody has laid a hand on.
fn is_free(host: &BareMetalHost) -> bool {
    State::of(host).is_young() && carries_nothing(host) && host.spec.consumer_ref.is_none() && !has_bmc(host)
}

/// True for a host that was made for a Server, or that this one points at.
fn is_linked(host: &BareMetalHost, server: Option<&Server>) -> bool {
    annotation(host, SERVER_ANNOTATION).is_some()
        || server
            .and_then(|server| server.spec.host.as_ref())
            .is_some_and(|at| {
                host.metadata.namespace.as_deref() == Some(&at.namespace)
                    && host.metadata.name.as_deref() == Some(&at.name)
            })
}

fn is_dismissed(server: &Server) -> bool {
    let approved = server
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(APPROVE_ANNOTATION));
    server.spec.dismissed && !approved
}

fn is_contested(server: &Server) -> bool {
    server.status.as_ref().is_some_and(|status| status.contested)
}

/// True if there is an inventory and it can be believed: while two keys claim to be this machine, it cannot.
fn is_inventoried(server: &Server) -> bool {
    let has_inventory = server
        .status
        .as_ref()
        .is_some_and(|status| status.inventory.is_some());
    has_inventory && !is_contested(server)
}

/// What the Server's job is to do, unless it has ended: how it went is then for the control role to see.
fn pending(server: &Server) -> Option<JobAction> {
    let job = server.spec.job.as_ref()?;
    (!has_ended(server)).then_some(job.action)
}

/// True if the Server's job has ended, well or not.
fn has_ended(server: &Server) -> bool {
    let last = server.last_job();
    let job = server.spec.job.as_ref();
    last.is_some_and(|last| last.done && job.is_some_and(|job| job.is_called(&last.id)))
}
