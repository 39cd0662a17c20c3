//! Which machine asks: its Server and its host, found by the NIC that it boots with and the SMBIOS UUID that it tells.

use std::sync::Arc;

use kube::{Resource, ResourceExt};
use muster_proto::{
    Mac,
    identity::Identity,
    kinds::{APPROVE_ANNOTATION, BareMetalHost, INSPECT_ANNOTATION, Segment, Server},
    text::is_same_uuid,
};

use super::policy::{SHARED_UUID, Verdict, is_idle, verdict, verdict_by_uuid};
use crate::{
    events::Event,
    host::{State, precedence},
    hosts::{declared_mac, made_for},
    machines::Signal,
    path::Path,
    world::World,
};

#[cfg(test)]
mod tests;

/// A machine as far as the cluster knows it.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Its Server.
    pub server: Option<Arc<Server>>,
    /// Its BareMetalHost: the one that a person declared with this MAC address (of several the one that precedes the others, as among
    /// rivals), unless the one that the Server points at is registered and that one is not; else the one that the Server points at, else any
    /// that declares the address, else a provisioned one whose inspected hardware has it.
    pub host: Option<Arc<BareMetalHost>>,
    /// Its Server has never had this MAC address.
    pub by_uuid_alone: bool,
    /// Nor has its host.
    pub is_nic_unseen: bool,
}

impl Known {
    /// The machine that boots with this MAC address or this SMBIOS UUID; any alias matches, a MAC address before a UUID, unless that one is
    /// of another UUID: then the NIC came from there, or that machine only said that it has it. Where several show the UUID and none the
    /// MAC address, the UUID does not tell which one this is: one that is in use counts, whose data are at stake.
    pub fn of(world: &World, mac: Mac, uuid: Option<&str>) -> Known {
        let with = |signal: Signal, test: &dyn Fn(&Identity) -> bool| -> Vec<Arc<Server>> {
            let shows = |server: &Arc<Server>| {
                let status = server.status.as_ref();
                status.is_some_and(|status| test(&status.identity))
            };
            let candidates = world.machines.servers_with(&[signal]).into_iter();
            let candidates = candidates.filter_map(|path| world.server(&path));
            candidates.filter(shows).collect()
        };
        let by_mac = with(Signal::Mac(mac), &|identity| identity.macs.contains(&mac));
        let by_mac = by_mac.into_iter().next();
        let by_uuid_alone = by_mac.is_none();
        let is_idle = |server: &Server| is_idle(server, world.host_of(server).as_deref());
        let by_uuid = |uuid: &str| {
            let all = with(Signal::uuid(uuid), &|identity| {
                let own = identity.system_uuid.as_deref();
                own.is_some_and(|own| is_same_uuid(own, uuid))
            });
            // The first of them, by name; one that tells it in the other byte order only where there is no other.
            all.into_iter()
                .min_by_key(|server| (own_uuid(server) != Some(uuid), by_uuid_alone && is_idle(server)))
        };
        let server = match &by_mac {
            None => uuid.and_then(by_uuid),
            Some(with_mac) => own_uuid(with_mac)
                .zip(uuid)
                .filter(|(own, uuid)| !is_same_uuid(own, uuid))
                .and_then(|(_, uuid)| by_uuid(uuid))
                .or_else(|| by_mac.clone()),
        };
        let pointed = server.as_ref().and_then(|server| world.host_of(server));
        // A NIC may have moved.
        let is_surely = |pointed: &BareMetalHost| {
            let shown = server.as_deref().and_then(own_uuid);
            let agree = shown
                .zip(uuid)
                .is_some_and(|(shown, uuid)| is_same_uuid(shown, uuid));
            declared_mac(pointed) == Some(mac) || (!by_uuid_alone && agree)
        };
        let having: Vec<_> = world
            .machines
            .hosts_with(mac)
            .iter()
            .filter_map(|path| world.hosts.get(&path.to_ref()))
            .collect();
        let find = |test: &dyn Fn(&BareMetalHost) -> bool| having.iter().find(|host| test(host)).cloned();
        let declares = |host: &BareMetalHost| declared_mac(host) == Some(mac);
        let by_hand = |host: &BareMetalHost| made_for(host).is_none();
        // Another operator inspected it, and needed no address to do so: what runs there is not to meet a ramdisk for that.
        let runs_with = |host: &BareMetalHost| State::of(host).is_provisioned() && by_hand(host);
        let stays = |host: &BareMetalHost| State::of(host) != State::Deleting;
        let declared = having
            .iter()
            .filter(|host| declares(host) && by_hand(host) && stays(host));
        let declared = declared.min_by_key(|host| precedence(host)).cloned();
        // What a machine reported of itself takes no NIC from a host that a person declared with it; nor does whoever can declare some host, in
        // whatever namespace, decide what the machine of another boots that is registered.
        let host = match (declared, pointed) {
            (Some(declared), Some(pointed))
                if is_surely(&pointed)
                    && State::of(&pointed).is_registered()
                    && stays(&pointed)
                    && !State::of(&declared).is_registered() =>
            {
                Some(pointed)
            }
            (declared, pointed) => declared.or(pointed),
        };
        let host = host.or_else(|| find(&declares)).or_else(|| find(&runs_with));
        // Of a host that declares the NIC, the Server that has it is the one that counts.
        let is_its = |server: &Arc<Server>| {
            let both = host.as_deref().zip(server.spec.host.as_ref());
            both.is_some_and(|(host, at)| Path::of(host) == Path::from(at))
        };
        let server = by_mac.filter(is_its).or(server);
        let by_uuid_alone = by_uuid_alone && server.is_some();
        let has_it = |host: &BareMetalHost| having.iter().any(|one| Path::of(&**one) == Path::of(host));
        Known {
            by_uuid_alone,
            is_nic_unseen: by_uuid_alone && !host.as_deref().is_some_and(has_it),
            server,
            host,
        }
    }

    /// What it boots on `segment`.
    pub fn verdict(&self, segment: &Segment) -> Verdict {
        let (server, host) = (self.server.as_deref(), self.host.as_deref());
        if !self.by_uuid_alone {
            return verdict(segment, server, host);
        }
        match verdict_by_uuid(segment, server, host) {
            // What holds for the machine with that Server need not hold for this one.
            Verdict::Disk(_) if self.is_nic_unseen => Verdict::Disk(SHARED_UUID),
            verdict => verdict,
        }
    }

    /// What people are told of the machine with `mac` where `verdict` is that it boots its disk because of [`SHARED_UUID`]: it does not
    /// enrol, so nothing else can tell of it.
    pub fn shared_uuid(&self, mac: Mac, verdict: Verdict) -> Option<Event> {
        let is_shared = verdict == Verdict::Disk(SHARED_UUID);
        let server = self.server.as_deref().filter(|_| is_shared)?;
        let of_its_own = match self.host.as_deref() {
            Some(host) => format!(
                "annotate its host {} with {INSPECT_ANNOTATION} once that is neither in use nor paused",
                Path::of(host)
            ),
            None => format!("annotate the Server with {APPROVE_ANNOTATION}"),
        };
        Some(Event {
            about: server.object_ref(&()),
            related: None,
            warning: true,
            reason: "SharedUuid",
            message: format!(
                "a machine that boots with MAC address {mac} is left to its own disk: it has the UUID of Server {}, but a NIC that nobody \
                 has seen; next: if it is another machine with the same UUID, declare a BareMetalHost with bootMACAddress {mac}; if the \
                 machine of this Server was given a new NIC, {of_its_own}",
                server.name_any()
            ),
        })
    }
}

/// What the machine of `server` said last that its SMBIOS UUID is.
fn own_uuid(server: &Server) -> Option<&str> {
    server.status.as_ref()?.identity.system_uuid.as_deref()
}
