//! What a round looks at: the watched copies, our own newer writes, memory, Secrets, other hosts.

use std::sync::Arc;

use jiff::Timestamp;
use muster_proto::kinds::{BareMetalHost, Server};

use super::{
    index::Index,
    memory::{Memory, Newest},
    observed::Observed,
    rivals,
    vault::Vault,
};
use crate::{path::Path, world::World};

/// Where a round looks.
#[derive(Clone, Copy, Debug)]
pub struct Observer<'a> {
    /// The watched copies.
    pub world: &'a World,
    /// Who has to do with whom.
    pub index: &'a Index,
    /// What this process remembers.
    pub memory: &'a Memory,
    /// The Secrets.
    pub vault: &'a Vault,
    /// The namespace of Servers and Segments.
    pub namespace: &'a str,
    /// What time it is.
    pub now: Timestamp,
    /// When this process began to lead.
    pub began: Timestamp,
    /// The leader's term.
    pub epoch: i64,
    /// How many hosts may be busy at once.
    pub limit: usize,
    /// See [`Observed::max_provisioning_retries`].
    pub max_provisioning_retries: i64,
}

/// What a round saw.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The host, as new as it is known.
    pub host: Arc<BareMetalHost>,
    /// All else.
    pub seen: Observed,
}

impl Observer<'_> {
    /// Looks at `host`. A request is made only for a Secret that the host needs and nobody watches.
    pub async fn look(&self, host: &Arc<BareMetalHost>) -> Snapshot {
        let path = Path::of(host.as_ref());
        let Newest {
            host,
            server,
            hardware,
        } = self.memory.newest(Newest {
            server: self.server(host),
            hardware: self.world.hardware.get(&path.to_ref()),
            host: Arc::clone(host),
        });
        let alike = self.index.alike(&host);
        let others: Vec<Arc<BareMetalHost>> = alike
            .iter()
            .filter_map(|other| self.world.hosts.get(&other.to_ref()))
            .collect();
        let (bmc, tried) = self.memory.bmc(&host);
        let work = self.memory.work(&host, server.as_deref());
        let silent_since = self.memory.silent_since(&host, server.as_deref(), self.now);
        let seen = Observed {
            hardware,
            segment: server
                .as_deref()
                .and_then(|server| self.world.segment_of(server, self.namespace)),
            server,
            secrets: self.vault.seen(&host, self.index, self.memory).await,
            bmc,
            tried,
            work,
            silent_since,
            rivals: rivals(&host, others.iter().map(AsRef::as_ref)),
            released: self.memory.has_released(&host),
            slot: false,
            limit: self.limit,
            refused: self.memory.refusal(&host),
            began: self
                .memory
                .resumed_at(&host)
                .map_or(self.began, |at| at.max(self.began)),
            epoch: self.epoch,
            max_provisioning_retries: self.max_provisioning_retries,
        };
        Snapshot { host, seen }
    }

    /// The one Server that stands for `host`. Where several claim to, none does: whichever it was, a job would reach another machine
    /// in one of two cases. Discovery tells people.
    pub fn server(&self, host: &BareMetalHost) -> Option<Arc<Server>> {
        let path = Path::of(host);
        let uid = host.metadata.uid.as_deref().unwrap_or_default();
        let is_ours = |server: &Arc<Server>| {
            let at = server.spec.host.as_ref();
            let same =
                at.is_some_and(|at| at.namespace == path.namespace && at.name == path.name && at.uid == uid);
            same && server.metadata.deletion_timestamp.is_none()
        };
        let mut servers = self.index.servers_of(&path).into_iter().filter_map(|server| {
            self.world
                .servers
                .get(&server.to_ref())
                .filter(|server| is_ours(server))
        });
        servers.next().filter(|_| servers.next().is_none())
    }
}
