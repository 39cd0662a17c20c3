//! A cluster in memory that takes effects as the API server would, and machines that report to it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use muster_proto::{
    Mac,
    identity::Identity,
    inventory::{Cpu, Disk, Firmware, Memory, Nic, System},
    kinds::{BareMetalHostSpec, HardwareDataSpec, SegmentSpec, Session, SessionState},
};

use super::*;

pub(super) const NAMESPACE: &str = "muster-system";
pub(super) const HOSTS: &str = "metal";

#[derive(Clone, Debug)]
pub(super) struct Sim {
    pub(super) servers: Vec<Arc<Server>>,
    pub(super) hosts: Vec<Arc<BareMetalHost>>,
    pub(super) hardware: Vec<Arc<HardwareData>>,
    pub(super) segment: Option<Segment>,
    pub(super) watched: Option<String>,
    /// Every Event that was tied to an effect.
    pub(super) told: Vec<Event>,
    pub(super) now: Timestamp,
    counter: u32,
}

pub(super) fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0xaa, 0, last])
}

pub(super) fn machine(serial: &str, last: u8) -> Inventory {
    let mut inventory = Inventory {
        identity: Identity {
            macs: [mac(last)].into(),
            ..Identity::default()
        },
        system: System {
            manufacturer: "Dell Inc.".to_owned(),
            product: "PowerEdge R630".to_owned(),
            serial: serial.to_owned(),
            ..System::default()
        },
        firmware: Firmware::default(),
        cpu: Cpu {
            arch: "x86_64".to_owned(),
            threads: 8,
            max_mhz: 2600.4,
            ..Cpu::default()
        },
        memory: Memory {
            installed_mib: 4096,
            ..Memory::default()
        },
        disks: vec![Disk {
            name: "/dev/sda".to_owned(),
            serial: format!("disk-{last}"),
            size_bytes: 1 << 40,
            ..Disk::default()
        }],
        nics: vec![Nic {
            name: "eth0".to_owned(),
            mac: Some(mac(last)),
            carrier: true,
            ..Nic::default()
        }],
        ..Inventory::default()
    };
    inventory.boot.mac = Some(mac(last));
    inventory
}

impl Sim {
    pub(super) fn new(unknown: UnknownPolicy) -> Sim {
        let mut segment = Segment::new(
            "lab",
            SegmentSpec {
                subnet: "10.77.0.0/24".to_owned(),
                host_namespace: Some(HOSTS.to_owned()),
                unknown,
                ..SegmentSpec::default()
            },
        );
        segment.metadata.namespace = Some(NAMESPACE.to_owned());
        Sim {
            servers: Vec::new(),
            hosts: Vec::new(),
            hardware: Vec::new(),
            segment: Some(segment),
            watched: None,
            told: Vec::new(),
            now: "2026-11-23T08:00:00Z".parse().unwrap(),
            counter: 0,
        }
    }

    fn stamp(&mut self) -> String {
        self.counter += 1;
        self.counter.to_string()
    }

    /// The machine `server` is in its ramdisk and has reported `inventory`.
    pub(super) fn reports(&mut self, server: &str, inventory: Inventory) {
        self.now += jiff::SignedDuration::from_secs(60);
        if !self.servers.iter().any(|one| server_name(one) == server) {
            let mut new = Server::new(server, ServerSpec::default());
            new.metadata.namespace = Some(NAMESPACE.to_owned());
            new.metadata.uid = Some(format!("server-{}", self.stamp()));
            self.servers.push(Arc::new(new));
        }
        let now = self.now.to_string();
        self.change_server(server, |server| {
            let status = server.status.get_or_insert_with(ServerStatus::default);
            status
                .identity
                .macs
                .extend(inventory.identity.macs.iter().copied());
            status.session = Some(Session {
                state: SessionState::Connected,
                since: "2026-11-23T07:59:00Z".to_owned(),
                segment: format!("{NAMESPACE}/lab"),
                trust: Trust::Segment,
                key: format!("{now}{:0>64}", ""),
                ..Session::default()
            });
            // As the agents' side does: what is known already is not stored again.
            let inventory = Some(inventory.into());
            if status.inventory != inventory {
                status.inventory = inventory;
                status.inventoried = Some(now);
                status.inventory_trust = Some(Trust::Segment);
            }
        });
    }

    pub(super) fn change_server(&mut self, name: &str, change: impl FnOnce(&mut Server)) {
        let version = self.stamp();
        let server = self
            .servers
            .iter_mut()
            .find(|one| server_name(one) == name)
            .unwrap();
        let server = Arc::make_mut(server);
        change(server);
        server.metadata.resource_version = Some(version);
    }

    pub(super) fn change_host(&mut self, name: &str, change: impl FnOnce(&mut BareMetalHost)) {
        let version = self.stamp();
        let host = self
            .hosts
            .iter_mut()
            .find(|one| one.metadata.name.as_deref() == Some(name))
            .unwrap();
        let host = Arc::make_mut(host);
        change(host);
        host.metadata.resource_version = Some(version);
    }

    pub(super) fn add_host(&mut self, mut host: BareMetalHost) {
        host.metadata.uid = Some(format!("host-{}", self.stamp()));
        host.metadata.resource_version = Some(self.stamp());
        host.metadata.creation_timestamp = Some(Time(self.now));
        self.hosts.push(Arc::new(host));
    }

    /// As a person or GitOps writes it.
    pub(super) fn declare(&mut self, namespace: &str, name: &str, boot: Option<Mac>) {
        let mut host = BareMetalHost::new(
            name,
            BareMetalHostSpec {
                online: true,
                boot_mac_address: boot.map(|mac| mac.to_string().to_uppercase()),
                ..BareMetalHostSpec::default()
            },
        );
        host.metadata.namespace = Some(namespace.to_owned());
        self.add_host(host);
    }

    pub(super) fn delete_host(&mut self, name: &str) {
        self.hosts
            .retain(|host| host.metadata.name.as_deref() != Some(name));
        let uids: Vec<_> = self
            .hosts
            .iter()
            .filter_map(|host| host.metadata.uid.clone())
            .collect();
        self.hardware.retain(|data| {
            data.metadata
                .owner_references
                .iter()
                .flatten()
                .all(|owner| uids.contains(&owner.uid))
        });
    }

    pub(super) fn delete_server(&mut self, name: &str) {
        self.servers.retain(|server| server_name(server) != name);
    }

    pub(super) fn server(&self, name: &str) -> &Server {
        self.servers.iter().find(|one| server_name(one) == name).unwrap()
    }

    pub(super) fn host(&self, name: &str) -> &BareMetalHost {
        let found = self
            .hosts
            .iter()
            .find(|one| one.metadata.name.as_deref() == Some(name));
        found.unwrap_or_else(|| panic!("no host {name}: {:?}", self.names()))
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.hosts
            .iter()
            .map(|host| host.metadata.name.clone().unwrap())
            .collect()
    }

    /// When the Server of this name is looked at again in any case.
    pub(super) fn again(&self, server: &str) -> Option<Timestamp> {
        self.see(self.server(server), |seen| again(seen, &next(seen)))
    }

    pub(super) fn plan(&self, server: &Server) -> Plan {
        self.see(server, |seen| {
            let plan = next(seen);
            assert_eq!(plan, next(seen), "the same input gives the same plan");
            plan
        })
    }

    fn see<T>(&self, server: &Server, act: impl FnOnce(&Seen<'_>) -> T) -> T {
        let hosts: Vec<_> = self
            .hosts
            .iter()
            .filter(|host| crate::discovery::link::Signals::of(server).concern(server, host))
            .cloned()
            .collect();
        act(&Seen {
            server,
            hosts: &hosts,
            hardware: &self.hardware,
            servers: &self.servers,
            segment: self.segment.as_ref(),
            watched: self.watched.as_deref(),
            now: self.now,
        })
    }

    pub(super) fn plan_of(&self, server: &str) -> Plan {
        self.plan(self.server(server))
    }

    /// What stands to be told about each object.
    pub(super) fn notices(&self) -> Vec<(String, &'static str)> {
        let plans = self.servers.iter().flat_map(|server| self.plan(server).notices);
        let mut all: Vec<_> = plans
            .map(|event| (event.about.name.unwrap(), event.reason))
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// One look at every Server, of which at most `limit` effects happen before the controller dies. True if nothing was to do.
    pub(super) fn round(&mut self, mut limit: usize) -> bool {
        self.now += jiff::SignedDuration::from_secs(1);
        let mut idle = true;
        for index in 0..self.servers.len() {
            let server = self.servers[index].clone();
            for effect in self.plan(&server).effects {
                idle = false;
                if limit == 0 || !self.take(&server, effect) {
                    break;
                }
                limit -= 1;
            }
        }
        idle
    }

    /// Rounds until nothing is to do; how many there were.
    pub(super) fn settle(&mut self) -> usize {
        for round in 0..20 {
            if self.round(usize::MAX) {
                return round;
            }
        }
        panic!(
            "never settles: {:#?}",
            self.servers
                .iter()
                .map(|server| self.plan(server))
                .collect::<Vec<_>>()
        );
    }

    fn index(&self, at: &HostReference) -> Option<usize> {
        self.hosts.iter().position(|host| {
            let here = hosts::reference(host);
            (here.namespace, here.name) == (at.namespace.clone(), at.name.clone())
        })
    }

    /// Does what the API server would; false where it would refuse.
    fn take(&mut self, server: &Server, effect: Effect) -> bool {
        let exact = |sim: &Sim, at: &HostReference| {
            sim.index(at)
                .filter(|i| hosts::reference(&sim.hosts[*i]).uid == at.uid)
        };
        match effect {
            Effect::CreateHost(host) => {
                if self.server(server_name(server)).spec != server.spec
                    || self.index(&hosts::reference(&host)).is_some()
                {
                    return false;
                }
                self.add_host(*host);
            }
            Effect::MarkHost {
                host,
                labels,
                annotations,
            } => {
                let Some(index) = exact(self, &host) else {
                    return false;
                };
                let name = self.hosts[index].metadata.name.clone().unwrap();
                self.change_host(&name, |host| {
                    host.metadata.labels.get_or_insert_default().extend(labels);
                    host.metadata
                        .annotations
                        .get_or_insert_default()
                        .extend(annotations);
                });
            }
            Effect::DeclareBootMac { host, version, mac } => {
                let Some(index) = exact(self, &host) else {
                    return false;
                };
                if self.hosts[index].metadata.resource_version.as_ref() != Some(&version) {
                    return false;
                }
                let name = self.hosts[index].metadata.name.clone().unwrap();
                self.change_host(&name, |host| host.spec.boot_mac_address = Some(mac.to_string()));
            }
            Effect::ApplyHardwareData { host, hardware } => {
                self.hardware.retain(|data| {
                    (data.metadata.name.as_ref(), data.metadata.namespace.as_ref())
                        != (Some(&host.name), Some(&host.namespace))
                });
                let mut data = HardwareData::new(
                    &host.name,
                    HardwareDataSpec {
                        hardware: Some((*hardware).into()),
                    },
                );
                data.metadata.namespace = Some(host.namespace);
                data.metadata.owner_references = Some(vec![OwnerReference {
                    uid: host.uid,
                    ..OwnerReference::default()
                }]);
                self.hardware.push(Arc::new(data));
            }
            Effect::WriteHostStatus {
                host,
                version,
                status,
            } => {
                let Some(index) = exact(self, &host) else {
                    return false;
                };
                if self.hosts[index].metadata.resource_version.as_ref() != Some(&version) {
                    return false;
                }
                // Through JSON, as it will be read back.
                let stored = serde_json::from_str(&serde_json::to_string(&status).unwrap()).unwrap();
                self.change_host(&host.name, |host| host.status = Some(stored));
            }
            Effect::PatchServerSpec { spec, approved } => return self.patch(server, *spec, approved),
            Effect::Dismiss(at) => {
                if exact(self, &at).is_some() {
                    return false;
                }
                return self.patch(server, without_host(server), false);
            }
            Effect::RemoveAnnotation { host, name } => {
                let Some(index) = exact(self, &host) else {
                    return false;
                };
                let at = self.hosts[index].metadata.name.clone().unwrap();
                self.change_host(&at, |host| {
                    host.metadata.annotations.get_or_insert_default().remove(name);
                });
            }
            Effect::DeleteHost { host, version } => {
                let Some(index) = exact(self, &host) else {
                    return true;
                };
                if self.hosts[index].metadata.resource_version.as_ref() != Some(&version) {
                    return false;
                }
                self.hosts.remove(index);
                let uid = host.uid;
                self.hardware.retain(|data| {
                    data.metadata
                        .owner_references
                        .iter()
                        .flatten()
                        .all(|owner| owner.uid != uid)
                });
            }
            Effect::Event(event) => self.told.push(event),
        }
        true
    }

    fn patch(&mut self, server: &Server, spec: ServerSpec, approved: bool) -> bool {
        let name = server_name(server);
        if self.server(name).metadata.resource_version != server.metadata.resource_version {
            return false;
        }
        self.change_server(name, |server| {
            server.spec = spec;
            if approved {
                server
                    .metadata
                    .annotations
                    .get_or_insert_default()
                    .remove(APPROVE_ANNOTATION);
            }
        });
        true
    }

    pub(super) fn annotate_server(&mut self, name: &str, annotation: &str) {
        self.change_server(name, |server| {
            server
                .metadata
                .annotations
                .get_or_insert_default()
                .insert(annotation.to_owned(), String::new());
        });
    }

    pub(super) fn annotate_host(&mut self, name: &str, annotation: &str) {
        self.change_host(name, |host| {
            host.metadata
                .annotations
                .get_or_insert_default()
                .insert(annotation.to_owned(), String::new());
        });
    }

    pub(super) fn set_state(&mut self, name: &str, state: &str) {
        self.change_host(name, |host| {
            host.status
                .get_or_insert_with(BareMetalHostStatus::default)
                .provisioning
                .state = state.to_owned();
        });
    }

    /// The objects without what differs from run to run.
    pub(super) fn outline(&self) -> BTreeMap<String, serde_json::Value> {
        let hosts = self.hosts.iter().map(|host| {
            let mut value = serde_json::to_value(host.as_ref()).unwrap();
            for key in ["uid", "resourceVersion", "creationTimestamp"] {
                value["metadata"][key] = serde_json::Value::Null;
            }
            value["status"]["lastUpdated"] = serde_json::Value::Null;
            value["status"]["operationHistory"] = serde_json::Value::Null;
            value["status"]["conditions"] = serde_json::Value::Null;
            (Path::of(host.as_ref()).to_string(), value)
        });
        let servers = self.servers.iter().map(|server| {
            let mut value = serde_json::to_value(&server.spec).unwrap();
            if value.get("host").is_some() {
                value["host"]["uid"] = serde_json::Value::Null;
            }
            (format!("server {}", server_name(server)), value)
        });
        let data = self.hardware.iter().map(|data| {
            let name = format!("data {}", data.metadata.name.as_deref().unwrap());
            (name, serde_json::to_value(&data.spec).unwrap())
        });
        hosts.chain(servers).chain(data).collect()
    }
}
