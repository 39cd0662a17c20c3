//! Who has to do with whom: which hosts name a Secret or declare a machine, which Servers stand for a host, which hosts are busy.
//! Kept up to date change by change, so that no round costs more because there are more hosts.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard},
};

use muster_proto::{
    Mac,
    kinds::{BareMetalHost, Server},
};

use super::{
    State,
    owner::is_held,
    plan::Hold,
    rivals::{Behind, bmc},
    secrets,
};
use crate::{hosts::declared_mac, multimap::MultiMap, path::Path, sync::lock};

/// What a host has to do with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    /// It declares this NIC.
    Mac(Mac),
    /// It declares this system of this BMC.
    System(String, String),
    /// It declares this BMC, and none of its systems.
    Whole(String),
    /// It declares this BMC, whatever of it.
    Bmc(String),
    /// It names this Secret.
    Secret(Path),
    /// It names this Secret as one that is held for it, and has not let go of it.
    Held(Path),
    /// It named this Secret, which may still be held for it.
    Former(Path),
}

impl Key {
    fn is_machine(&self) -> bool {
        matches!(self, Key::Mac(_) | Key::System(..) | Key::Whole(_))
    }

    /// The keys of the hosts with which one that has this key has to do. Of the many that one BMC may carry, each is looked for by
    /// itself.
    fn concerns(&self) -> Vec<Key> {
        match self {
            Key::Bmc(_) | Key::Former(_) => Vec::new(),
            Key::Whole(at) => vec![Key::Bmc(at.clone())],
            Key::System(at, _) => vec![self.clone(), Key::Whole(at.clone())],
            key => vec![key.clone()],
        }
    }
}

/// The index. Shared by the loop, which keeps it, and its rounds, which read it.
#[derive(Debug, Default)]
pub struct Index(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    hosts: MultiMap<Key, Path>,
    /// Servers by their host.
    servers: MultiMap<Path, Path>,
}

impl Index {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    /// `host` is as it is now, or `gone`. Returns the other hosts that it has, or had, to do with: they may have to be decided anew.
    pub fn host(&self, host: &BareMetalHost, gone: bool) -> BTreeSet<Path> {
        let path = Path::of(host);
        let keys = if gone { Vec::new() } else { keys(host) };
        let mut inner = self.lock();
        let had = inner.hosts.set(&path, keys.clone());
        if had == keys {
            // What others see of it beside its keys is its state: that of one that declares the same machine.
            let machines = keys.iter().filter(|key| key.is_machine());
            return others(&inner, machines, &path);
        }
        others(&inner, had.iter().chain(&keys), &path)
    }

    /// `server` is as it is now, or `gone`. Returns the hosts that it stands for or stood for.
    pub fn server(&self, server: &Server, gone: bool) -> Vec<Path> {
        let points = server.spec.host.as_ref().filter(|_| !gone);
        let keys: Vec<Path> = points.into_iter().map(Path::from).collect();
        let mut concerned = self.lock().servers.set(&Path::of(server), keys.clone());
        concerned.extend(keys);
        concerned.dedup();
        concerned
    }

    /// Forgets the hosts and Servers that are not among these.
    pub fn retain(&self, hosts: &BTreeSet<Path>, servers: &BTreeSet<Path>) {
        let mut inner = self.lock();
        for name in inner.hosts.names() {
            if !hosts.contains(&name) {
                inner.hosts.set(&name, Vec::new());
            }
        }
        for name in inner.servers.names() {
            if !servers.contains(&name) {
                inner.servers.set(&name, Vec::new());
            }
        }
    }

    /// The hosts that name this Secret.
    pub fn named_by(&self, secret: &Path) -> Vec<Path> {
        let key = Key::Secret(secret.clone());
        self.lock().hosts.with(&key).cloned().collect()
    }

    /// The hosts for which this Secret is held by a finalizer.
    pub fn held_by(&self, secret: &Path) -> Vec<Path> {
        let key = Key::Held(secret.clone());
        self.lock().hosts.with(&key).cloned().collect()
    }

    /// True if a host names this Secret, or named it and may still hold it.
    pub fn is_needed(&self, secret: &Path) -> bool {
        let inner = self.lock();
        let keys = [Key::Secret(secret.clone()), Key::Former(secret.clone())];
        keys.iter().any(|key| inner.hosts.with(key).next().is_some())
    }

    /// Other hosts that may declare the same machine as `host`.
    pub fn alike(&self, host: &BareMetalHost) -> BTreeSet<Path> {
        let keys = keys(host);
        let machines = keys.iter().filter(|key| key.is_machine());
        others(&self.lock(), machines, &Path::of(host))
    }

    /// The Servers that point at this host.
    pub fn servers_of(&self, host: &Path) -> Vec<Path> {
        self.lock().servers.with(host).cloned().collect()
    }
}

fn others<'a>(inner: &Inner, keys: impl Iterator<Item = &'a Key>, except: &Path) -> BTreeSet<Path> {
    keys.flat_map(Key::concerns)
        .flat_map(|key| inner.hosts.with(&key).cloned().collect::<Vec<_>>())
        .filter(|path| path != except)
        .collect()
}

fn keys(host: &BareMetalHost) -> Vec<Key> {
    let mac = declared_mac(host).filter(|mac| mac.is_unicast()).map(Key::Mac);
    let bmc = bmc(host).map(|Behind { at, system }| {
        let meant = match system {
            Some(system) => Key::System(at.clone(), system),
            None => Key::Whole(at.clone()),
        };
        [meant, Key::Bmc(at)]
    });
    let machine = mac.into_iter().chain(bmc.into_iter().flatten());
    let path = |name: &str| Path::beside(host, name);
    let held: BTreeSet<&str> = secrets::named(host)
        .filter(|(purpose, _)| purpose.hold() != Hold::Label)
        .map(|(_, name)| name)
        .collect();
    let named: BTreeSet<&str> = secrets::named(host).map(|(_, name)| name).collect();
    // One that is being deleted needs them for as long as its machine is cleaned and switched off; one without our finalizer has never held
    // any, and would let go of none.
    let needs =
        is_held(host) && (host.metadata.deletion_timestamp.is_none() || State::of(host) != State::Deleting);
    let held = held
        .into_iter()
        .filter(|_| needs)
        .map(|name| Key::Held(path(name)));
    let named = named.into_iter().map(|name| Key::Secret(path(name)));
    let former = secrets::former_secrets(host).into_iter();
    let former = former.map(|name| Key::Former(path(name)));
    machine.chain(named).chain(held).chain(former).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use muster_proto::kinds::{BareMetalHostSpec, BmcDetails, HostReference, ServerSpec};

    use super::{super::plan::FINALIZER, *};

    fn host(name: &str, mac: &str, secret: &str) -> BareMetalHost {
        let spec = BareMetalHostSpec {
            boot_mac_address: Some(mac.to_owned()),
            bmc: Some(BmcDetails {
                address: format!("redfish://{name}/"),
                credentials_name: secret.to_owned(),
                ..BmcDetails::default()
            }),
            ..BareMetalHostSpec::default()
        };
        let mut host = BareMetalHost::new(name, spec);
        host.metadata.namespace = Some("metal".to_owned());
        host
    }

    fn path(name: &str) -> Path {
        Path {
            namespace: "metal".to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn hosts_are_found_by_what_they_declare_and_name_and_no_longer_by_what_they_did() {
        let index = Index::default();
        let (one, two) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
        assert!(index.host(&host("a", one, "s"), false).is_empty());
        assert!(
            index.host(&host("b", two, "s"), false).contains(&path("a")),
            "one Secret"
        );
        assert_eq!(index.named_by(&path("s")), [path("a"), path("b")]);
        assert!(index.alike(&host("a", one, "s")).is_empty());
        index.host(&host("b", one, "t"), false);
        assert_eq!(index.alike(&host("a", one, "s")), [path("b")].into());
        assert_eq!(index.named_by(&path("s")), [path("a")]);
        assert_eq!(index.named_by(&path("t")), [path("b")]);
        let woken = index.host(&host("b", one, "t"), true);
        assert_eq!(woken, [path("a")].into(), "a may be freed by its going");
        assert!(index.alike(&host("a", one, "s")).is_empty());
        index.retain(&BTreeSet::new(), &BTreeSet::new());
        assert!(index.named_by(&path("s")).is_empty());
        assert!(index.lock().hosts.is_empty(), "nothing is left");
    }

    #[test]
    fn a_secret_is_held_by_every_host_that_needs_it_also_while_it_is_being_deleted() {
        let index = Index::default();
        let in_state = |name: &str, state: State| {
            let mut host = host(name, "", "s");
            host.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
            host.metadata.deletion_timestamp = Some(Time("2026-01-01T00:00:00Z".parse().unwrap()));
            state
                .name()
                .clone_into(&mut host.status.get_or_insert_default().provisioning.state);
            host
        };
        index.host(&in_state("a", State::Deleting), false);
        index.host(&in_state("b", State::Deprovisioning), false);
        assert_eq!(
            index.held_by(&path("s")),
            [path("b")],
            "its machine is not cleaned yet"
        );
        index.host(&in_state("b", State::Deleting), false);
        assert!(
            index.held_by(&path("s")).is_empty(),
            "whichever goes last lets go of it"
        );
        // One that was paused from its beginning never held it, and would not let go of it.
        let mut paused = host("c", "", "s");
        paused.metadata.finalizers = None;
        index.host(&paused, false);
        assert!(index.held_by(&path("s")).is_empty());
    }

    #[test]
    fn hosts_of_one_bmc_have_to_do_with_each_other_only_if_they_may_mean_one_system() {
        let index = Index::default();
        let behind = |name: &str, address: &str| {
            let mut host = host(name, "", "");
            host.spec.bmc.as_mut().unwrap().address = address.to_owned();
            host
        };
        let one = behind("one", "redfish://bmc/redfish/v1/Systems/1");
        let two = behind("two", "redfish://bmc/redfish/v1/Systems/2");
        let all = behind("all", "redfish+http://BMC");
        assert!(index.host(&one, false).is_empty());
        assert!(index.host(&two, false).is_empty());
        assert_eq!(index.host(&all, false), [path("one"), path("two")].into());
        assert_eq!(index.alike(&one), [path("all")].into());
        assert_eq!(index.alike(&all), [path("one"), path("two")].into());
        assert_eq!(index.host(&two, true), [path("all")].into());
        assert_eq!(index.host(&all, true), [path("one")].into());
        assert!(index.alike(&one).is_empty());
    }

    #[test]
    fn both_the_old_and_the_new_host_of_a_server_are_concerned() {
        let index = Index::default();
        let mut server = Server::new("m", ServerSpec::default());
        let at = |name: &str| HostReference {
            namespace: "metal".to_owned(),
            name: name.to_owned(),
            uid: String::new(),
        };
        assert!(index.server(&server, false).is_empty());
        server.spec.host = Some(at("a"));
        assert_eq!(index.server(&server, false), [path("a")]);
        assert_eq!(index.server(&server, false), [path("a")]);
        server.spec.host = Some(at("b"));
        assert_eq!(index.server(&server, false), [path("a"), path("b")]);
        assert_eq!(index.servers_of(&path("b")).len(), 1);
        assert_eq!(index.server(&server, true), [path("b")]);
        assert!(index.servers_of(&path("b")).is_empty());
    }
}
