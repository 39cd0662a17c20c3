//! What the controller knows of the cluster: one watched copy of each kind, shared by all loops. Reading it costs no request.

use std::sync::Arc;

use kube::runtime::reflector::Store;
use muster_proto::{
    Mac,
    identity::Identity,
    kinds::{BareMetalHost, Enrolment, Segment, Server},
};

/// The watched copies. A role that may not read a kind has an empty store of it.
#[derive(Clone, Debug)]
pub struct World {
    /// Where we serve.
    pub segments: Store<Segment>,
    /// Known machines.
    pub servers: Store<Server>,
    /// Hosts.
    pub hosts: Store<BareMetalHost>,
    /// Spent tokens.
    pub enrolments: Store<Enrolment>,
}

/// A machine as far as the cluster knows it.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Its Server.
    pub server: Option<Arc<Server>>,
    /// Its BareMetalHost: the one that the Server points at, else the one that declares this MAC address.
    pub host: Option<Arc<BareMetalHost>>,
}

impl World {
    /// The machine that boots with this MAC address or this SMBIOS UUID; any alias matches, a MAC address before a UUID.
    pub fn known(&self, mac: Mac, uuid: Option<&str>) -> Known {
        let by = |test: &dyn Fn(&Identity) -> bool| {
            self.servers.find(|server| {
                server
                    .status
                    .as_ref()
                    .is_some_and(|status| test(&status.identity))
            })
        };
        let server = by(&|identity| identity.macs.contains(&mac))
            .or_else(|| by(&|identity| uuid.is_some() && identity.system_uuid.as_deref() == uuid));
        let pointed = server
            .as_ref()
            .and_then(|server| server.spec.host.as_ref())
            .and_then(|at| {
                self.hosts.find(|host| {
                    host.metadata.namespace.as_deref() == Some(&at.namespace)
                        && host.metadata.name.as_deref() == Some(&at.name)
                })
            });
        let host = pointed.or_else(|| {
            self.hosts.find(|host| {
                host.spec
                    .boot_mac_address
                    .as_deref()
                    .and_then(|text| text.parse().ok())
                    == Some(mac)
            })
        });
        Known { server, host }
    }
}
