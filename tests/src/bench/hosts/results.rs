//! What was measured, raw, as it is committed. Times are in seconds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    super::results::Computer,
    meter::{Requests, is_lease},
};

/// One run of the benchmark.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct HostsResults {
    /// The command that made it.
    pub(super) command: String,
    /// The commit that was measured.
    pub(super) commit: String,
    /// When it began, UTC.
    pub(super) date: String,
    /// How long all of it took.
    pub(super) took: f64,
    /// Where it ran.
    pub(super) computer: Computer,
    /// What speaks against the figures.
    pub(super) warnings: Vec<String>,
    /// Hosts from creation to provisioned, each time with a new control plane and controller.
    pub(super) rounds: Vec<Round>,
    /// Hosts as most are, from creation to available.
    pub(super) typical: Option<Round>,
    /// As many hosts with baremetal-operator.
    pub(super) peer: Option<Peer>,
    /// The end of a leader.
    pub(super) failover: Option<Failover>,
}

impl HostsResults {
    /// Says and keeps what speaks against the figures.
    pub(super) fn warn(&mut self, warning: &str) {
        println!("WARNING: {warning}");
        let first = warning.lines().next().unwrap_or_default();
        self.warnings.push(first.to_owned());
    }
}

/// What baremetal-operator does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Peer {
    /// Its version.
    pub(super) version: String,
    /// What it was given in place of its defaults.
    pub(super) arguments: String,
    /// The measurement.
    pub(super) round: Round,
}

/// So many hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Round {
    /// How many.
    pub(super) hosts: u32,
    /// In how many processes their servers were simulated.
    pub(super) fleets: usize,
    /// From creation to available.
    pub(super) available: Option<Stage>,
    /// What is stored then, by resource.
    pub(super) stored: BTreeMap<String, Stored>,
    /// The size of etcd's file then, its history included, in bytes.
    pub(super) etcd_file: Option<u64>,
    /// Nobody wants anything.
    pub(super) idle: Option<Idle>,
    /// From the image to provisioned.
    pub(super) provisioned: Option<Stage>,
}

/// All hosts on their way from one state to another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Stage {
    /// Until the last one was there.
    pub(super) seconds: f64,
    /// From then until the API server was not written to any more.
    pub(super) settled: f64,
    /// Requests until settled, without watches and without `own`, by verb and resource.
    pub(super) requests: Requests,
    /// What the user did to get it going, which is not in `requests`.
    pub(super) own: Requests,
    /// Processor time until settled, of the controller's process.
    pub(super) controller_cpu: f64,
    /// Of the API server and etcd, which are one process.
    pub(super) api_server_cpu: f64,
    /// Of the simulated servers.
    pub(super) fleet_cpu: f64,
    /// The controller's `VmRSS` once settled, in KiB.
    pub(super) resident_kib: u64,
    /// Its `VmHWM`, since it started.
    pub(super) peak_kib: u64,
    /// What a watcher saw.
    pub(super) seen: Seen,
}

impl Stage {
    /// The requests whose resource passes `test`, without those that keep a leader, which there are with or without hosts.
    pub(super) fn requests(&self, test: impl Fn(&str) -> bool) -> u64 {
        let resource = |key: &str| key.split([' ', '/']).nth(1).map(str::to_owned);
        let some = self
            .requests
            .iter()
            .filter(|(key, _)| !is_lease(key) && resource(key).is_some_and(|resource| test(&resource)));
        some.map(|(_, count)| count).sum()
    }
}

/// What a watcher of all hosts saw of them by the end of a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Seen {
    /// Each different way through the states, and how many hosts went it.
    pub(super) ways: BTreeMap<String, usize>,
    /// How many have begin and end of each operation in their `operationHistory`.
    pub(super) history: BTreeMap<String, usize>,
    /// How often the watch began anew: then it may have missed something.
    pub(super) restarts: u32,
    /// How many show an error count other than 0.
    pub(super) errors: usize,
}

/// Objects of one resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Stored {
    /// How many there are.
    pub(super) objects: u64,
    /// How many of them were measured.
    pub(super) sample: u64,
    /// They were measured as protobuf, which is how they are stored; else as JSON.
    pub(super) protobuf: bool,
    /// Bytes of one, on average.
    pub(super) bytes: u64,
}

/// A while in which nobody wants anything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Idle {
    /// How long.
    pub(super) seconds: f64,
    /// Requests that change something, but for the leader's Lease, by verb and resource.
    pub(super) writes: Requests,
    /// Of the Lease.
    pub(super) lease_writes: u64,
    /// Processor time of the controller.
    pub(super) controller_cpu: f64,
}

/// A leader is asked to end, and the next one is killed while hosts are being written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Failover {
    /// How many hosts.
    pub(super) hosts: u32,
    /// How many were provisioning then; the others were provisioned already.
    pub(super) busy: usize,
    /// `LEASE_DURATION_SECONDS` and `RETRY_PERIOD_SECONDS`.
    pub(super) lease: [f64; 2],
    /// How long a write takes, on the fastest server and on the slowest.
    pub(super) write: [f64; 2],
    /// How many hosts had been told to write when the leader was killed.
    pub(super) told: Option<usize>,
    /// From SIGTERM to the first leader until another one holds the Lease.
    pub(super) handed_over: f64,
    /// From the kill until another one holds the Lease.
    pub(super) taken_over: f64,
    /// How many writes ended from the kill until then.
    pub(super) leaderless: usize,
    /// How long each busy host waited for a leader: from the kill, or from the end of its write if that came later, until it was
    /// provisioned. In order.
    pub(super) waits: Vec<f64>,
    /// How many hosts were provisioned in the end.
    pub(super) provisioned: usize,
    /// How many were written more than once.
    pub(super) rewritten: usize,
    /// What a watcher saw.
    pub(super) seen: Seen,
}
