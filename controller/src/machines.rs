//! By which signals machines are known, kept beside the watched copies: who boots, enrols or reports is compared with the few
//! that show a signal of it, and costs no more because there are more machines.
//!
//! It finds candidates; what a candidate means is decided where it always is.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard},
};

use muster_proto::{
    Mac,
    identity::Identity,
    kinds::{BareMetalHost, Enrolment, Server},
    text::swapped_uuid,
};

use crate::{hosts, multimap::MultiMap, path::Path, sync::lock};

/// By what a Server is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// A NIC that it was known by, or that its session booted from.
    Mac(Mac),
    /// Its SMBIOS UUID, in lower case and in that byte order which sorts first: see [`Signal::uuid`].
    Uuid(String),
    /// Its serial number, in lower case.
    Serial(String),
    /// Its board's serial number, in lower case.
    Board(String),
    /// Its name, or what that was before a number was added.
    Stem(String),
    /// It clashes with the Server of that name.
    Clash(String),
    /// It stands for the host that is there.
    Host(Path),
    /// Its latest session is on this Segment, as the session tells it.
    Segment(String),
}

impl Signal {
    /// This SMBIOS UUID, in whichever byte order a machine tells it: updated firmware may tell it in the other one.
    pub fn uuid(uuid: &str) -> Signal {
        let uuid = uuid.to_ascii_lowercase();
        let swapped = swapped_uuid(&uuid).filter(|swapped| *swapped < uuid);
        Signal::Uuid(swapped.unwrap_or(uuid))
    }

    /// What `identity` may share with another machine.
    pub fn of(identity: &Identity) -> impl Iterator<Item = Signal> {
        let low = |value: &Option<String>| value.as_deref().map(str::to_ascii_lowercase);
        let macs = identity.macs.iter().copied().map(Signal::Mac);
        macs.chain(identity.system_uuid.as_deref().map(Signal::uuid))
            .chain(low(&identity.system_serial).map(Signal::Serial))
            .chain(low(&identity.board_serial).map(Signal::Board))
    }
}

/// The index.
#[derive(Debug, Default)]
pub struct Machines {
    /// Nobody else knows it.
    seed: RandomState,
    inner: Mutex<Inner>,
}

/// The hash of a signal or name. A machine shows a dozen, each of up to 48 bytes and its text, and nobody asks which: two of one hash
/// would find each other's machines among the candidates, once in many million starts (see [`MultiMap`]).
type Digest = u64;

#[derive(Debug, Default)]
struct Inner {
    servers: MultiMap<Digest, Path>,
    /// Hosts by each NIC that means them: the declared one, and those that an inspection found.
    hosts: MultiMap<Mac, Path>,
    /// Enrolments by the name of their Server.
    enrolments: MultiMap<Digest, Path>,
}

impl Machines {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn signals(&self, server: &Server) -> Vec<Digest> {
        let signals = signals(server);
        signals.iter().map(|signal| self.seed.hash_one(signal)).collect()
    }

    fn server_of(&self, enrolment: &Enrolment) -> Vec<Digest> {
        vec![self.seed.hash_one(&enrolment.spec.server)]
    }

    /// The watched copy has `server` as it is now, or no more.
    pub fn server(&self, server: &Server, gone: bool) {
        let signals = if gone { Vec::new() } else { self.signals(server) };
        self.lock().servers.set(&Path::of(server), signals);
    }

    /// The watched copy has `host` as it is now, or no more.
    pub fn host(&self, host: &BareMetalHost, gone: bool) {
        let macs = if gone {
            Vec::new()
        } else {
            hosts::macs(host).collect()
        };
        self.lock().hosts.set(&Path::of(host), macs);
    }

    /// The watched copy has `enrolment` as it is now, or no more.
    pub fn enrolment(&self, enrolment: &Enrolment, gone: bool) {
        let server = if gone {
            Vec::new()
        } else {
            self.server_of(enrolment)
        };
        self.lock().enrolments.set(&Path::of(enrolment), server);
    }

    /// The watched copy has these Servers and no others.
    pub fn servers_anew<'a>(&self, servers: impl Iterator<Item = &'a Server>) {
        let mut all = MultiMap::default();
        servers.for_each(|server| drop(all.set(&Path::of(server), self.signals(server))));
        self.lock().servers = all;
    }

    /// The watched copy has these hosts and no others.
    pub fn hosts_anew<'a>(&self, hosts: impl Iterator<Item = &'a BareMetalHost>) {
        let mut all = MultiMap::default();
        hosts.for_each(|host| drop(all.set(&Path::of(host), hosts::macs(host).collect())));
        self.lock().hosts = all;
    }

    /// The watched copy has these Enrolments and no others.
    pub fn enrolments_anew<'a>(&self, enrolments: impl Iterator<Item = &'a Enrolment>) {
        let mut all = MultiMap::default();
        enrolments.for_each(|enrolment| drop(all.set(&Path::of(enrolment), self.server_of(enrolment))));
        self.lock().enrolments = all;
    }

    /// The Servers that show one of `signals`.
    pub fn servers_with(&self, signals: &[Signal]) -> BTreeSet<Path> {
        let digests: Vec<Digest> = signals.iter().map(|signal| self.seed.hash_one(signal)).collect();
        let inner = self.lock();
        let found = digests.iter().flat_map(|digest| inner.servers.with(digest));
        found.cloned().collect()
    }

    /// How many Servers show `signal`, those at `except` not counted.
    pub fn number_with(&self, signal: &Signal, except: &BTreeSet<Path>) -> usize {
        let digest = self.seed.hash_one(signal);
        self.lock().servers.number(&digest, except.iter())
    }

    /// The hosts that have `mac`, declared or found.
    pub fn hosts_with(&self, mac: Mac) -> Vec<Path> {
        self.lock().hosts.with(&mac).cloned().collect()
    }

    /// The Enrolments of the Server with this name.
    pub fn enrolments_of(&self, server: &str) -> Vec<Path> {
        let digest = self.seed.hash_one(server);
        self.lock().enrolments.with(&digest).cloned().collect()
    }
}

fn signals(server: &Server) -> Vec<Signal> {
    let name = server.metadata.name.clone().unwrap_or_default();
    let mut all = Vec::new();
    // `mac-525400000001-2` was named after what `mac-525400000001` was.
    if let Some((stem, number)) = name.rsplit_once('-')
        && number.bytes().all(|byte| byte.is_ascii_digit())
    {
        all.push(Signal::Stem(stem.to_owned()));
    }
    all.push(Signal::Stem(name));
    all.extend(server.spec.host.as_ref().map(|at| Signal::Host(at.into())));
    let Some(status) = &server.status else {
        return all;
    };
    all.extend(Signal::of(&status.identity));
    all.extend(status.clashes.iter().cloned().map(Signal::Clash));
    if let Some(session) = &status.session {
        all.push(Signal::Segment(session.segment.clone()));
        all.extend(session.boot_mac.map(Signal::Mac));
    }
    all
}

#[cfg(test)]
mod tests {
    use muster_proto::kinds::{
        BareMetalHostSpec, EnrolmentSpec, HostReference, ServerSpec, ServerStatus, Session,
    };

    use super::*;

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    fn server(name: &str, identity: Identity) -> Server {
        let mut server = Server::new(name, ServerSpec::default());
        server.status = Some(ServerStatus {
            identity,
            clashes: vec!["other".to_owned()],
            session: Some(Session {
                segment: "a/b".to_owned(),
                boot_mac: Some(mac(9)),
                ..Session::default()
            }),
            ..ServerStatus::default()
        });
        server
    }

    fn names(machines: &Machines, signals: &[Signal]) -> Vec<String> {
        let found = machines.servers_with(signals).into_iter();
        found.map(|path| path.name).collect()
    }

    #[test]
    fn a_server_is_found_by_whatever_it_was_known_by_and_no_longer_by_what_it_was_not() {
        let machines = Machines::default();
        let identity = Identity {
            system_uuid: Some("4C4C4544".to_owned()),
            system_serial: Some("Ser".to_owned()),
            board_serial: Some("Brd".to_owned()),
            macs: [mac(1), mac(2)].into(),
        };
        let one = server("mac-1-2", identity.clone());
        machines.server(&one, false);
        let text = |text: &str| text.to_owned();
        for signal in [
            Signal::Mac(mac(2)),
            Signal::Mac(mac(9)),
            Signal::Uuid(text("4c4c4544")),
            Signal::Serial(text("ser")),
            Signal::Board(text("brd")),
            Signal::Stem(text("mac-1")),
            Signal::Stem(text("mac-1-2")),
            Signal::Clash(text("other")),
            Signal::Segment(text("a/b")),
        ] {
            assert_eq!(
                names(&machines, std::slice::from_ref(&signal)),
                ["mac-1-2"],
                "{signal:?}"
            );
        }
        let here = Signal::Segment(text("a/b"));
        let path = Path::of(&one);
        assert_eq!(machines.number_with(&here, &BTreeSet::new()), 1);
        assert_eq!(machines.number_with(&here, &[path].into()), 0);
        let shared: Vec<Signal> = Signal::of(&identity).collect();
        assert_eq!((shared.len(), names(&machines, &shared).len()), (5, 1));
        machines.server(&server("mac-1-2", Identity::default()), false);
        assert!(names(&machines, &shared).is_empty());
        machines.servers_anew([&one].into_iter());
        assert_eq!(names(&machines, &shared).len(), 1);
        machines.server(&one, true);
        assert!(names(&machines, &[Signal::Stem(text("mac-1"))]).is_empty());
    }

    #[test]
    fn a_server_is_found_by_its_uuid_in_either_byte_order() {
        let uuid = "4c4c4544-0035-4b10-8032-cac04f583933".to_owned();
        let swapped = swapped_uuid(&uuid).unwrap();
        let identity = |uuid: &String| Identity {
            system_uuid: Some(uuid.clone()),
            ..Identity::default()
        };
        for (known, told) in [(&uuid, &swapped), (&swapped, &uuid)] {
            let machines = Machines::default();
            machines.server(&server("a", identity(known)), false);
            for told in [told, known] {
                let signals: Vec<Signal> = Signal::of(&identity(told)).collect();
                assert_eq!(names(&machines, &signals), ["a"], "{known} {told}");
            }
        }
    }

    #[test]
    fn a_server_is_found_by_the_host_that_it_stands_for() {
        let machines = Machines::default();
        let mut one = server("a", Identity::default());
        let at = |name: &str| {
            Signal::Host(Path {
                namespace: "metal".to_owned(),
                name: name.to_owned(),
            })
        };
        one.spec.host = Some(HostReference {
            namespace: "metal".to_owned(),
            name: "node".to_owned(),
            uid: "1".to_owned(),
        });
        machines.server(&one, false);
        assert_eq!(names(&machines, &[at("node")]), ["a"]);
        assert!(names(&machines, &[at("other")]).is_empty());
        one.spec.host = None;
        machines.server(&one, false);
        assert!(names(&machines, &[at("node")]).is_empty());
    }

    #[test]
    fn enrolments_are_found_by_their_server() {
        let machines = Machines::default();
        let enrolment = |name: &str, server: &str| {
            let spec = EnrolmentSpec {
                server: server.to_owned(),
                ..EnrolmentSpec::default()
            };
            Enrolment::new(name, spec)
        };
        let (one, two) = (enrolment("e1", "a"), enrolment("e2", "a"));
        machines.enrolments_anew([&one, &enrolment("e3", "b")].into_iter());
        machines.enrolment(&two, false);
        assert_eq!(machines.enrolments_of("a").len(), 2);
        machines.enrolment(&one, true);
        assert_eq!(machines.enrolments_of("a"), [Path::of(&two)]);
        assert_eq!(machines.enrolments_of("b").len(), 1);
        assert!(machines.enrolments_of("c").is_empty());
    }

    #[test]
    fn hosts_are_found_by_the_nics_that_mean_them() {
        let machines = Machines::default();
        let mut host = BareMetalHost::new("h", BareMetalHostSpec::default());
        host.spec.boot_mac_address = Some("02:00:00:00:00:01".to_owned());
        machines.hosts_anew([&host].into_iter());
        assert_eq!(machines.hosts_with(mac(1)).len(), 1);
        host.spec.boot_mac_address = None;
        machines.host(&host, false);
        assert!(machines.hosts_with(mac(1)).is_empty());
    }
}
