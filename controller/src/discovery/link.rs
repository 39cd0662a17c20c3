//! Which BareMetalHost stands for the machine behind a Server. Pure.
//!
//! A match never proves anything: it only decides whom to ask. So a link is made where exactly one host can be meant, and every
//! doubt changes nothing and is told on all sides.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use muster_proto::{
    Mac,
    inventory::Inventory,
    kinds::{BareMetalHost, DETACHED_ANNOTATION, HostReference, Server},
    text,
};

use super::{
    host, name,
    next::{Seen, server_name},
};
use crate::{hardware::has_nic, host::owner::is_held, hosts};

/// What the Server is to point at.
#[derive(Debug)]
pub(super) enum Link<'a> {
    /// It points at this host, rightly.
    Right(&'a BareMetalHost),
    /// It is to point at this host, because.
    Change(&'a BareMetalHost, &'static str),
    /// It points at another machine's host and is to point at none.
    Wrong(&'a BareMetalHost),
    /// The host it points at is not to be seen any more.
    Gone(HostReference),
    /// These hosts may be this machine, or not; only a person can tell.
    Doubt(Vec<&'a BareMetalHost>, Doubt),
    /// No host has anything to do with this machine.
    Nobody,
}

/// Why it is not known which host stands for a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Several hosts were made for it.
    Made,
    /// A host declares a MAC address that other machines show as well.
    Machines,
    /// Several hosts declare its MAC addresses.
    Declared,
    /// It looks like a declared host, but has not its MAC address.
    Likeness,
}

impl Doubt {
    /// What is so.
    pub(super) fn why(self) -> &'static str {
        match self {
            Doubt::Made => "several hosts are annotated as created for the same machine",
            Doubt::Machines => "several machines report the MAC address that one host declares",
            Doubt::Declared => "several hosts declare MAC addresses of the same machine",
            Doubt::Likeness => {
                "it reports the name, serial number or a MAC address of a host that was declared by a user"
            }
        }
    }

    /// What a person does about it, but for an approval.
    pub(super) fn remedy(self) -> String {
        let does = match self {
            Doubt::Made => "delete all of them but one",
            Doubt::Machines => {
                "delete the Servers of machines that are gone or have lost that NIC, or recreate the host with the MAC address of a NIC \
                 that only one machine has"
            }
            Doubt::Declared => "delete all but the one that is to stand for this machine",
            Doubt::Likeness => {
                "set this machine's MAC address in the host that stands for it (recreate the host if it declares another one)"
            }
        };
        // Each of them may end with a host deleted.
        format!(
            "{does}; before you delete a host that may run a workload, annotate it with {DETACHED_ANNOTATION}: deleting a provisioned host \
             cleans its disks"
        )
    }

    /// True if a person may say that the machine is none of the hosts. As long as addresses say otherwise, that would not last: the next
    /// round would find the machine in the host that declares them.
    pub(super) fn can_be_approved(self) -> bool {
        self == Doubt::Likeness
    }
}

/// What the machine behind `server` reported.
pub(super) fn inventory(server: &Server) -> Option<Arc<Inventory>> {
    Some(server.status.as_ref()?.inventory.as_ref()?.unpack())
}

/// The unicast MAC addresses that ever told the machine behind `server` from others. Not those of all its NICs: the card that a BMC
/// pretends to be on USB has the same one on every machine of some vendors, and older agents enrolled with it.
fn macs(server: &Server, inventory: Option<&Inventory>) -> BTreeSet<Mac> {
    let status = server.status.as_ref();
    let booted = status.and_then(|status| status.session.as_ref()?.boot_mac);
    let tells_nothing = |mac: &Mac| {
        let is_there = |inventory: &Inventory| inventory.nics.iter().any(|nic| nic.mac == Some(*mac));
        inventory.is_some_and(|inventory| is_there(inventory) && !inventory.identity.macs.contains(mac))
            && booted != Some(*mac)
    };
    let known = status.into_iter().flat_map(|status| &status.identity.macs);
    let reported = inventory.iter().flat_map(|inventory| &inventory.identity.macs);
    let all = known.chain(reported).copied();
    all.filter(|mac| mac.is_unicast() && !tells_nothing(mac))
        .collect()
}

/// By what a host can matter to a decision about a Server; the others need not be shown to it. Computed once for many hosts.
#[derive(Debug)]
pub(super) struct Signals {
    pub(super) macs: BTreeSet<Mac>,
    /// The names that a host of the machine may have, best first; none before its first inventory.
    pub(super) names: Vec<String>,
    pub(super) serial: Option<(String, String)>,
}

impl Signals {
    /// The signals of the machine behind `server`.
    pub(super) fn of(server: &Server) -> Signals {
        let inventory = inventory(server);
        Signals {
            macs: macs(server, inventory.as_deref()),
            names: inventory.as_deref().map_or_else(Vec::new, |inventory| {
                name::candidates(inventory, server_name(server))
            }),
            serial: inventory.as_deref().and_then(serial),
        }
    }

    /// True if `host` can matter to a decision about `server`, whose signals these are.
    pub(super) fn concern(&self, server: &Server, host: &BareMetalHost) -> bool {
        points_at(server, host)
            || hosts::made_for(host) == Some(server_name(server))
            || host
                .metadata
                .name
                .as_ref()
                .is_some_and(|name| self.names.contains(name))
            || hosts::has_any_mac(host, &self.macs)
            || self.same_serial(host)
    }

    fn same_serial(&self, host: &BareMetalHost) -> bool {
        matches!((&self.serial, host::serial(host)),
            (Some(ours), Some(theirs)) if *ours == theirs)
    }
}

fn serial(inventory: &Inventory) -> Option<(String, String)> {
    let system = &inventory.system;
    let serial = text::clean(system.serial.as_bytes());
    Some((
        name::vendor(&system.manufacturer),
        text::usable(&serial)?.to_owned(),
    ))
}

pub(super) fn points_at(server: &Server, host: &BareMetalHost) -> bool {
    server.spec.host.as_ref().is_some_and(|at| {
        host.metadata.namespace.as_ref() == Some(&at.namespace)
            && host.metadata.name.as_ref() == Some(&at.name)
    })
}

/// True if a Server of that name exists, whether or not it is `seen.server`.
pub(super) fn exists(seen: &Seen<'_>, server: &str) -> bool {
    server == server_name(seen.server) || seen.servers.iter().any(|other| server_name(other) == server)
}

/// The one host that somebody declared with the address `boot`, from which the machine behind `server` has booted, and that no other
/// machine has a claim to; none where there is any doubt. The Server's status says what it is known by; `hosts` are at least those that
/// concern it, `servers` all others.
pub fn declared_with(
    boot: Mac,
    server: &Server,
    hosts: &[Arc<BareMetalHost>],
    servers: &[Arc<Server>],
) -> Option<HostReference> {
    let seen = Seen {
        server,
        hosts,
        hardware: &[],
        servers,
        segment: None,
        watched: None,
        now: Timestamp::UNIX_EPOCH,
    };
    match find(&seen, false) {
        Link::Change(found, _)
            if hosts::made_for(found).is_none() && hosts::declared_mac(found) == Some(boot) =>
        {
            Some(hosts::reference(found))
        }
        _ => None,
    }
}

/// Hosts that were made for this machine and are not on their way out.
pub(super) fn made_for_us<'a>(seen: &Seen<'a>) -> Vec<&'a BareMetalHost> {
    hosts(seen)
        .filter(|host| hosts::made_for(host) == Some(server_name(seen.server)))
        .collect()
}

/// True if the machine has, or ever had, a NIC with the address `mac`.
pub(super) fn has(seen: &Seen<'_>, mac: Mac) -> bool {
    let status = seen.server.status.as_ref();
    let known = status.is_some_and(|status| status.identity.macs.contains(&mac));
    known || inventory(seen.server).is_some_and(|inventory| has_nic(&inventory, mac))
}

fn hosts<'a>(seen: &Seen<'a>) -> impl Iterator<Item = &'a BareMetalHost> {
    seen.hosts
        .iter()
        .map(AsRef::as_ref)
        .filter(|host| !hosts::is_being_deleted(host))
}

/// True if `host` belongs to no Server that exists: declared by hand or by GitOps, or left by a Server that was removed.
fn is_unowned(seen: &Seen<'_>, host: &BareMetalHost) -> bool {
    hosts::made_for(host).is_none_or(|server| !exists(seen, server))
}

/// Unowned hosts that declare one of this machine's MAC addresses. A host that Muster made for a Server since removed is known
/// again by any NIC, for the declared one may have been replaced while both were there, unless the serial numbers tell that the NIC
/// has moved.
pub(super) fn declared<'a>(seen: &Seen<'a>) -> Vec<&'a BareMetalHost> {
    let inventory = inventory(seen.server);
    let macs = macs(seen.server, inventory.as_deref());
    let ours = inventory.as_deref().and_then(serial);
    let is_others =
        |host| matches!((&ours, host::serial(host)), (Some(ours), Some(theirs)) if *ours != theirs);
    let declares = |host| hosts::declared_mac(host).is_some_and(|mac| macs.contains(&mac));
    let all = seen.hosts.iter().map(AsRef::as_ref);
    // One that is being deleted has its machine cleaned and switched off before it goes.
    all.filter(|host| !hosts::is_being_deleted(host) || is_held(host))
        .filter(|host| is_unowned(seen, host))
        .filter(|host| match hosts::made_for(host) {
            None => declares(host),
            Some(_) => declares(host) || (hosts::has_any_mac(host, &macs) && !is_others(host)),
        })
        .collect()
}

/// Those of [`declared`] that say so themselves, whatever an inspection found in them once: a NIC may have moved since.
pub(super) fn twins<'a>(seen: &Seen<'a>) -> Vec<&'a BareMetalHost> {
    let macs = macs_of(seen.server);
    let mut twins = declared(seen);
    twins.retain(|host| hosts::declared_mac(host).is_some_and(|mac| macs.contains(&mac)));
    twins
}

/// [`macs`], whatever the machine reported.
fn macs_of(server: &Server) -> BTreeSet<Mac> {
    macs(server, inventory(server).as_deref())
}

/// Other Servers that have as good a claim to `host`: they point at it, or have the MAC address that it declares.
pub(super) fn rivals<'a>(seen: &Seen<'a>, host: &BareMetalHost) -> Vec<&'a Server> {
    let declared = hosts::declared_mac(host);
    seen.servers
        .iter()
        .map(AsRef::as_ref)
        .filter(|other| server_name(other) != server_name(seen.server))
        .filter(|other| points_at(other, host) || declared.is_some_and(|mac| macs_of(other).contains(&mac)))
        .collect()
}

pub(super) fn find<'a>(seen: &Seen<'a>, approved: bool) -> Link<'a> {
    let us = server_name(seen.server);
    if let Some(at) = &seen.server.spec.host {
        let pointed = seen
            .hosts
            .iter()
            .map(AsRef::as_ref)
            .find(|host| points_at(seen.server, host));
        if let Some(host) = pointed {
            let owner = hosts::made_for(host);
            if owner.is_some_and(|owner| owner != us && exists(seen, owner)) {
                return Link::Wrong(host);
            }
            let uid = host.metadata.uid.as_deref().unwrap_or_default();
            if at.uid == uid {
                return Link::Right(host);
            }
            let declares = hosts::declared_mac(host).is_some_and(|mac| macs_of(seen.server).contains(&mac));
            if owner == Some(us) || at.uid.is_empty() || declares {
                return Link::Change(
                    host,
                    "the host of that name was recreated: restored, moved or declared",
                );
            }
        }
        return elsewhere(seen).unwrap_or_else(|| Link::Gone(at.clone()));
    }
    elsewhere(seen).unwrap_or_else(|| claimed(seen, approved))
}

/// True if `host` may be the machine's by the NIC that it declares, which that has, or ever had. One that was made after the pattern of the
/// machine's own declares another.
pub(super) fn may_be(seen: &Seen<'_>, host: &BareMetalHost) -> bool {
    hosts::declared_mac(host).is_none_or(|mac| has(seen, mac))
}

/// True if the Server may not know all NICs that its machine has had, since it is younger than `host`: that was made for one of its name, or
/// restored with it.
fn is_younger(seen: &Seen<'_>, host: &BareMetalHost) -> bool {
    let pointed = seen.server.spec.host.is_some() || seen.server.spec.dismissed;
    let ages = seen
        .server
        .metadata
        .creation_timestamp
        .as_ref()
        .zip(host.metadata.creation_timestamp.as_ref());
    !pointed && ages.is_none_or(|(server, host)| host.0 <= server.0)
}

/// A host of this machine under another reference than the Server's.
fn elsewhere<'a>(seen: &Seen<'a>) -> Option<Link<'a>> {
    let (mut ours, strange): (Vec<_>, Vec<_>) =
        made_for_us(seen).into_iter().partition(|host| may_be(seen, host));
    if ours.is_empty() {
        ours.extend(strange.into_iter().filter(|host| is_younger(seen, host)));
    }
    match ours[..] {
        [] => {}
        [host] => return Some(Link::Change(host, "the host was created for this machine")),
        _ => {
            return Some(Link::Doubt(ours, Doubt::Made));
        }
    }
    let declared = declared(seen);
    match declared[..] {
        [] => None,
        [host] if rivals(seen, host).is_empty() => Some(Link::Change(
            host,
            "the host declares a MAC address of this machine",
        )),
        [_] => Some(Link::Doubt(declared, Doubt::Machines)),
        _ => Some(Link::Doubt(declared, Doubt::Declared)),
    }
}

/// True if it takes a person's approval to make a host for this machine.
pub(super) fn is_claimed(seen: &Seen<'_>) -> bool {
    matches!(claimed(seen, false), Link::Doubt(..))
}

/// Hosts that somebody declared and whose name, serial number or inspected NIC this machine shows: it may be the same one, with
/// another NIC, or one that lies. No second host is made for it until a person approves.
fn claimed<'a>(seen: &Seen<'a>, approved: bool) -> Link<'a> {
    if approved {
        return Link::Nobody;
    }
    let signals = Signals::of(seen.server);
    let claimed: Vec<_> = hosts(seen)
        .filter(|host| hosts::made_for(host).is_none())
        .filter(|host| signals.concern(seen.server, host))
        .collect();
    match claimed[..] {
        [] => Link::Nobody,
        _ => Link::Doubt(claimed, Doubt::Likeness),
    }
}
