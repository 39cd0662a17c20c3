//! Which Servers and hosts can have to do with each other, kept up to date change by change: no round costs more because there are
//! more machines. Pure.
//!
//! It finds candidates; what a candidate means is decided where it always is.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard},
};

use muster_proto::{
    Mac,
    kinds::{BareMetalHost, Server},
};

use super::{host, link::Signals, next::server_name};
use crate::{hosts, multimap::MultiMap, path::Path, sync::lock};

/// What a Server and a host can have in common. Nearly all are addresses, and each takes as much room as the largest can: pairs are on
/// the heap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    /// A NIC.
    Mac(Mac),
    /// The name of a host, whatever its namespace.
    Name(String),
    /// Vendor and serial number.
    Serial(Box<(String, String)>),
    /// This host is pointed at.
    Points(Box<Path>),
    /// The Server of that name: a host was made for it, or another Server clashes with it.
    Server(String),
}

/// The index.
#[derive(Debug, Default)]
pub(super) struct Index(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    servers: MultiMap<Key, String>,
    hosts: MultiMap<Key, Path>,
}

impl Index {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    /// `server` is as it is now, or `gone`. Returns the names of other Servers that may have to be decided anew: those that share a
    /// NIC or a host with it, or did, those that clash with it, and when it comes or goes, those for which a host that was made for it
    /// might be.
    pub(super) fn server(&self, server: &Server, gone: bool) -> BTreeSet<String> {
        let name = server_name(server).to_owned();
        let keys = if gone { Vec::new() } else { of_server(server) };
        let mut inner = self.lock();
        let had = inner.servers.set(&name, keys.clone());
        let inner = &*inner;
        let own = Key::Server(name.clone());
        let hosts = inner.hosts.with(&own);
        let of_hosts = hosts
            .filter(|_| gone || had.is_empty())
            .flat_map(|host| inner.hosts.keys(host))
            .flat_map(|key| inner.servers.with(key));
        let shared = had.iter().chain(&keys);
        let shared = shared.filter(|key| matches!(key, Key::Mac(_) | Key::Points(_)));
        let mut others: BTreeSet<String> = shared
            .flat_map(|key| inner.servers.with(key))
            .chain(inner.servers.with(&own))
            .chain(of_hosts)
            .cloned()
            .collect();
        others.extend(clashes(server).cloned());
        others.remove(&name);
        others
    }

    /// `host` is as it is now, or `gone`. Returns the names of the Servers to which it may matter, or did.
    pub(super) fn host(&self, host: &BareMetalHost, gone: bool) -> BTreeSet<String> {
        let path = Path::of(host);
        let keys = if gone { Vec::new() } else { of_host(host) };
        let mut inner = self.lock();
        let had = inner.hosts.set(&path, keys.clone());
        let points = Key::Points(Box::new(path));
        let all = had.iter().chain(&keys).chain([&points]);
        all.flat_map(|key| {
            let made_for = match key {
                Key::Server(name) => Some(name),
                _ => None,
            };
            // Servers that clash with the one it was made for have nothing to do with it.
            let with = inner.servers.with(key).filter(move |_| made_for.is_none());
            with.chain(made_for)
        })
        .cloned()
        .collect()
    }

    /// Forgets the Servers and hosts that are not among these.
    pub(super) fn retain(&self, servers: &BTreeSet<String>, hosts: &BTreeSet<Path>) {
        let mut inner = self.lock();
        for name in inner.servers.names() {
            if !servers.contains(&name) {
                inner.servers.set(&name, Vec::new());
            }
        }
        for path in inner.hosts.names() {
            if !hosts.contains(&path) {
                inner.hosts.set(&path, Vec::new());
            }
        }
    }

    /// The hosts that can matter to a decision about `server`.
    pub(super) fn hosts_for(&self, server: &Server) -> BTreeSet<Path> {
        let inner = self.lock();
        let mut keys = of_server(server);
        keys.push(Key::Server(server_name(server).to_owned()));
        let points = keys.iter().filter_map(|key| match key {
            Key::Points(path) => Some(path.as_ref()),
            _ => None,
        });
        let found = keys.iter().flat_map(|key| inner.hosts.with(key));
        found.chain(points).cloned().collect()
    }

    /// The names of the Servers that can matter to a decision about `server`, which sees `hosts`: those that clash with it, those that
    /// the hosts were made for, and those that have as good a claim to one.
    pub(super) fn servers_for<'a>(
        &self,
        server: &Server,
        hosts: impl Iterator<Item = &'a BareMetalHost>,
    ) -> BTreeSet<String> {
        let inner = self.lock();
        let clash = Key::Server(server_name(server).to_owned());
        let mut names: BTreeSet<String> = inner
            .servers
            .with(&clash)
            .chain(clashes(server))
            .cloned()
            .collect();
        for host in hosts {
            names.extend(hosts::made_for(host).map(str::to_owned));
            let keys = hosts::declared_mac(host).map(Key::Mac);
            for key in keys.into_iter().chain([Key::Points(Box::new(Path::of(host)))]) {
                names.extend(inner.servers.with(&key).cloned());
            }
        }
        names
    }

    /// The names of the Servers that point at this host.
    pub(super) fn pointing_at(&self, host: Path) -> Vec<String> {
        self.lock()
            .servers
            .with(&Key::Points(Box::new(host)))
            .cloned()
            .collect()
    }
}

fn clashes(server: &Server) -> impl Iterator<Item = &String> {
    server.status.iter().flat_map(|status| &status.clashes)
}

fn of_server(server: &Server) -> Vec<Key> {
    let Signals { macs, names, serial } = Signals::of(server);
    let points = server.spec.host.as_ref();
    let points = points.map(|at| Key::Points(Box::new(at.into())));
    let serial = serial.map(|pair| Key::Serial(Box::new(pair)));
    let clashes = clashes(server).map(|name| Key::Server(name.clone()));
    let signals = macs
        .into_iter()
        .map(Key::Mac)
        .chain(names.into_iter().map(Key::Name));
    signals.chain(serial).chain(points).chain(clashes).collect()
}

fn of_host(host: &BareMetalHost) -> Vec<Key> {
    let macs = hosts::macs(host).map(Key::Mac);
    let name = host.metadata.name.clone().map(Key::Name);
    let serial = host::serial(host).map(|pair| Key::Serial(Box::new(pair)));
    let made_for = hosts::made_for(host).map(|name| Key::Server(name.to_owned()));
    macs.chain(name).chain(serial).chain(made_for).collect()
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        identity::Identity,
        kinds::{BareMetalHostSpec, HostReference, SERVER_ANNOTATION, ServerSpec, ServerStatus},
    };

    use super::*;

    fn server(name: &str, mac: u8) -> Server {
        let mut server = Server::new(name, ServerSpec::default());
        server.status = Some(ServerStatus {
            identity: Identity {
                macs: [Mac([2, 0, 0, 0, 0, mac])].into(),
                ..Identity::default()
            },
            ..ServerStatus::default()
        });
        server
    }

    fn host(name: &str, mac: &str) -> BareMetalHost {
        let spec = BareMetalHostSpec {
            boot_mac_address: Some(mac.to_owned()),
            ..BareMetalHostSpec::default()
        };
        let mut host = BareMetalHost::new(name, spec);
        host.metadata.namespace = Some("metal".to_owned());
        host
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn path(name: &str) -> Path {
        Path {
            namespace: "metal".to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn a_host_and_a_server_find_each_other_by_what_they_have_in_common() {
        let index = Index::default();
        let (a, b) = (server("a", 1), server("b", 2));
        for server in [&a, &b] {
            assert!(index.server(server, false).is_empty());
        }
        let mut one = host("one", "02:00:00:00:00:01");
        assert_eq!(index.host(&one, false), names(&["a"]));
        assert_eq!(index.hosts_for(&a), [path("one")].into());
        assert!(index.hosts_for(&b).is_empty());
        assert_eq!(
            index.servers_for(&b, [&one].into_iter()),
            names(&["a"]),
            "a rival"
        );
        // Another NIC is declared: both the old and the new machine are concerned.
        one.spec.boot_mac_address = Some("02:00:00:00:00:02".to_owned());
        assert_eq!(index.host(&one, false), names(&["a", "b"]));
        assert!(index.hosts_for(&a).is_empty());
        one.metadata.annotations = Some([(SERVER_ANNOTATION.to_owned(), "a".to_owned())].into());
        assert_eq!(index.host(&one, false), names(&["a", "b"]));
        assert_eq!(index.hosts_for(&a), [path("one")].into(), "made for it");
        assert_eq!(index.host(&one, true), names(&["a", "b"]));
        assert!(index.hosts_for(&b).is_empty());
    }

    #[test]
    fn servers_that_share_a_nic_or_a_host_or_clash_concern_each_other() {
        let index = Index::default();
        let mut a = server("a", 1);
        index.server(&a, false);
        let mut b = server("b", 1);
        assert_eq!(index.server(&b, false), names(&["a"]));
        let point = |server: &mut Server| {
            server.spec.host = Some(HostReference {
                namespace: "metal".to_owned(),
                name: "h".to_owned(),
                uid: String::new(),
            });
        };
        b.status = None;
        assert_eq!(index.server(&b, false), names(&["a"]), "it shared one");
        assert!(index.server(&b, false).is_empty());
        point(&mut a);
        point(&mut b);
        index.server(&a, false);
        assert_eq!(index.server(&b, false), names(&["a"]));
        assert_eq!(index.pointing_at(path("h")), ["a", "b"]);
        assert_eq!(
            index.hosts_for(&b),
            [path("h")].into(),
            "whether or not it is there"
        );
        let mut c = server("c", 3);
        c.status.as_mut().unwrap().clashes = vec!["d".to_owned()];
        assert_eq!(index.server(&c, false), names(&["d"]));
        let d = server("d", 4);
        assert_eq!(index.server(&d, false), names(&["c"]));
        // Its host is known by a NIC of another machine, which may take it over now.
        let mut left = host("left", "02:00:00:00:00:03");
        left.metadata.annotations = Some([(SERVER_ANNOTATION.to_owned(), "e".to_owned())].into());
        index.host(&left, false);
        let e = server("e", 5);
        assert_eq!(index.server(&e, false), names(&["c"]));
        assert!(index.server(&e, false).is_empty());
        assert_eq!(index.server(&e, true), names(&["c"]));
        assert_eq!(index.servers_for(&d, std::iter::empty()), names(&["c"]));
        index.retain(&BTreeSet::new(), &BTreeSet::new());
        assert!(index.servers_for(&d, std::iter::empty()).is_empty());
    }
}
