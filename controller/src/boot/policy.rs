//! Who boots what: the one place that says so, for DHCP, iPXE and HTTP boot alike. Pure.

use muster_proto::kinds::{
    BareMetalHost, INSPECT_ANNOTATION, PAUSED_ANNOTATION, Segment, Server, UnknownPolicy,
};

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
    let annotated = |name: &str| {
        host.and_then(|host| host.metadata.annotations.as_ref())
            .is_some_and(|all| all.contains_key(name))
    };
    if annotated(PAUSED_ANNOTATION) {
        return Verdict::Disk("its host is paused");
    }
    if annotated(INSPECT_ANNOTATION) && host.is_some_and(inspects_on_request) {
        return Verdict::Ramdisk("its host is asked to be inspected again");
    }
    if host.is_some_and(|host| state(host) == "inspecting") {
        return Verdict::Ramdisk("its host is inspecting");
    }
    let inventoried = server
        .and_then(|server| server.status.as_ref())
        .is_some_and(|status| status.inventory.is_some());
    match (server, host) {
        (Some(server), _) if server.spec.dismissed => {
            Verdict::Disk("its host was deleted and nobody approved it again")
        }
        (Some(_), None) | (None, None) if !inventoried => match segment.spec.unknown {
            UnknownPolicy::Ignore => Verdict::Silence("nobody has described it"),
            UnknownPolicy::Discover | UnknownPolicy::Hold => Verdict::Ramdisk("nobody has described it"),
        },
        _ => match segment.spec.unknown {
            UnknownPolicy::Hold if host.is_none_or(is_free) => {
                Verdict::Ramdisk("it is held, ready for a job")
            }
            _ => Verdict::Disk("it is known and has no job"),
        },
    }
}

fn state(host: &BareMetalHost) -> &str {
    host.status
        .as_ref()
        .map_or("", |status| &status.provisioning.state)
}

/// True for a host in whose life an inspection has a place: not one that carries a user's data.
fn inspects_on_request(host: &BareMetalHost) -> bool {
    matches!(state(host), "" | "unmanaged" | "available" | "ready")
}

/// True for a discovered host that nobody has laid a hand on.
fn is_free(host: &BareMetalHost) -> bool {
    matches!(state(host), "" | "unmanaged") && host.spec.consumer_ref.is_none() && host.spec.bmc.is_none()
}
