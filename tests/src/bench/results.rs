//! What the benchmark measured, raw, as it is committed. Times are in seconds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One run of the benchmark.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Results {
    /// The command that made it.
    pub command: String,
    /// The commit that was measured.
    pub commit: String,
    /// When it began, UTC.
    pub date: String,
    /// True for a run that only tries out.
    pub quick: bool,
    /// How long all of it took.
    pub took: f64,
    /// Where it ran.
    pub computer: Computer,
    /// What speaks against the figures.
    pub warnings: Vec<String>,
    /// BIOS PXE, one machine at a time.
    pub bios: Option<Boots>,
    /// UEFI HTTP boot, one machine at a time.
    pub uefi: Option<Boots>,
    /// Many machines at once.
    pub fleet: Option<Fleet>,
    /// Simulated clients.
    pub load: Option<Load>,
    /// One machine among very many addresses that ask.
    pub flood: Option<Flood>,
    /// Sizes of files.
    pub sizes: Option<Sizes>,
    /// Guest memory, by profile.
    pub memory: Vec<Memory>,
}

/// A computer, before the benchmark began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Computer {
    /// Model of its processors.
    pub cpu: String,
    /// How many there are.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// `uname -r`
    pub kernel: String,
    /// Version of QEMU.
    pub qemu: String,
    /// Version of dnsmasq.
    pub dnsmasq: String,
    /// Version of nginx.
    pub nginx: String,
    /// How many processors were busy with something else.
    pub busy_cores: f64,
    /// `/proc/loadavg`, its first three numbers.
    pub load_average: String,
}

/// Machines that boot one after the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Boots {
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Power-on to BareMetalHost.
    pub runs: Vec<Run>,
    /// The same path with an empty `/init`: power-on to its line; none if it did not come.
    pub empty: Vec<Option<f64>>,
    /// QEMU loads the same kernel and initramfs with the empty `/init` itself.
    pub direct: Vec<Option<f64>>,
}

/// One machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Run {
    /// Power-on to BareMetalHost.
    pub visible: Option<f64>,
    /// Power-on to each step, by the lab's clock.
    pub steps: BTreeMap<String, f64>,
    /// The kernel's uptime at each `step=` of the agent.
    pub uptimes: BTreeMap<String, f64>,
    /// How long the kernel had been quiet when the agent said `step=modules`.
    pub quiet: Option<f64>,
    /// Why there is no host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl Run {
    /// Agent start to inventory sent.
    pub fn agent(&self) -> Option<f64> {
        Some(self.uptimes.get("inventory-sent")? - self.uptimes.get("agent")?)
    }

    /// What of that is neither module load nor the wait for carrier and lease.
    ///
    /// Both begin with the agent and run side by side: the last device that a module brought came `quiet` before
    /// `step=modules`, the lease is there at `step=dhcp`. What follows the later of the two is the agent's own.
    pub fn beyond(&self) -> Option<f64> {
        let loaded = self.uptimes.get("modules")? - self.quiet?;
        let leased = self.uptimes.get("dhcp")?;
        Some(self.uptimes.get("inventory-sent")? - loaded.max(*leased))
    }
}

/// Machines that are switched on together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fleet {
    /// How many.
    pub hosts: usize,
    /// Each time with a new controller.
    pub rounds: Vec<Together>,
    /// The same path with an empty `/init`: each machine's time to its line.
    pub empty: Vec<Vec<Option<f64>>>,
}

/// One round of a fleet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Together {
    /// Power-on of the first machine to each BareMetalHost; none for those that did not come.
    pub visible: Vec<Option<f64>>,
    /// The controller's resident memory with all of them connected, in KiB.
    pub resident_kib: Option<u64>,
    /// The most it ever had.
    pub peak_kib: Option<u64>,
}

/// When the last one came; none if one is missing.
pub fn last(times: &[Option<f64>]) -> Option<f64> {
    let all: Option<Vec<f64>> = times.iter().copied().collect();
    all?.into_iter().max_by(f64::total_cmp)
}

/// Simulated clients.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Load {
    /// Clients in a round.
    pub clients: usize,
    /// At most so many at once.
    pub at_once: usize,
    /// Each round, first ours, then theirs.
    pub rounds: Vec<LoadRound>,
}

/// The same work for both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadRound {
    /// Muster's controller.
    pub ours: Served,
    /// dnsmasq and nginx.
    pub theirs: Served,
}

/// The steps of a simulated client, in order.
pub const LOAD_STEPS: [&str; 4] = [
    "firmware's lease",
    "iPXE by TFTP",
    "iPXE's lease",
    "script, kernel and initramfs by HTTP",
];

/// What serving a round of clients took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Served {
    /// User and system time of the servers' processes.
    pub cpu: f64,
    /// The first client's begin to the last one's end.
    pub wall: f64,
    /// Bytes of files that the clients got.
    pub bytes: u64,
    /// How long each client took, in milliseconds.
    pub milliseconds: Vec<u32>,
    /// The median of each step's time in milliseconds, and its p99.
    pub steps: BTreeMap<String, [f64; 2]>,
    /// Clients that did not get what they needed.
    pub failed: usize,
    /// Why the first of them did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// BIOS machines, power-on to BareMetalHost; none for one that did not come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Flood {
    /// How many addresses ask for a lease.
    pub askers: u32,
    /// While nobody else asks.
    pub quiet: Vec<Option<f64>>,
    /// While they all do.
    pub flooded: Vec<Option<f64>>,
    /// How long it took to send all that they ask, each time.
    pub asking: Vec<f64>,
}

/// Sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sizes {
    /// The agent, static and stripped.
    pub agent: u64,
    /// By profile.
    pub profiles: BTreeMap<String, ProfileSizes>,
}

/// Sizes of one profile's files in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProfileSizes {
    /// `uname -r` of the kernel.
    pub kernel_version: String,
    /// The kernel.
    pub kernel: u64,
    /// The initramfs, compressed.
    pub initramfs: u64,
    /// The initramfs, unpacked.
    pub unpacked: u64,
}

/// How little memory a profile boots in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// Which.
    pub profile: String,
    /// What is to be enough, in MiB.
    pub goal_mib: u32,
    /// In the order of trying.
    pub tries: Vec<Try>,
}

impl Memory {
    /// The least that worked, in MiB.
    pub fn least(&self) -> Option<u32> {
        let worked = self.tries.iter().filter(|tried| tried.seconds.is_some());
        worked.map(|tried| tried.mib).min()
    }
}

/// One boot with so much memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Try {
    /// Memory in MiB.
    pub mib: u32,
    /// Power-on to inventory sent.
    pub seconds: Option<f64>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// Seconds, to the millisecond.
pub fn seconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Numbers in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample(Vec<f64>);

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(numbers: I) -> Sample {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        Sample(numbers)
    }
}

impl Sample {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The middle one; of an even number, the mean of the two.
    pub fn median(&self) -> Option<f64> {
        let (low, high) = (
            self.0.get(self.len().checked_sub(1)? / 2)?,
            self.0.get(self.len() / 2)?,
        );
        Some((low + high) / 2.0)
    }

    /// The least number that is not less than `percent` of all (nearest rank): of 50, the 99th percentile is the largest.
    pub fn percentile(&self, percent: usize) -> Option<f64> {
        let rank = (self.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied()
    }

    /// The smallest.
    pub fn min(&self) -> Option<f64> {
        self.0.first().copied()
    }

    /// The largest.
    pub fn max(&self) -> Option<f64> {
        self.0.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let fifty: Sample = (1..=50_u32).rev().map(f64::from).collect();
        assert_eq!(fifty.median(), Some(25.5));
        assert_eq!(fifty.percentile(99), Some(50.0));
        let thousand: Sample = (1..=1000_u32).map(f64::from).collect();
        assert_eq!(thousand.percentile(99), Some(990.0));
        assert_eq!(thousand.percentile(50), Some(500.0));
        let nothing = Sample::default();
        assert_eq!((nothing.median(), nothing.percentile(99)), (None, None));
    }

    #[test]
    fn what_follows_modules_and_lease_is_the_agents_own() {
        let mut run = Run {
            uptimes: [
                ("agent", 1.0),
                ("dhcp", 1.5),
                ("modules", 2.1),
                ("inventory-sent", 2.25),
            ]
            .map(|(name, at)| (name.to_owned(), at))
            .into(),
            quiet: Some(0.1),
            ..Run::default()
        };
        let near = |found: Option<f64>, wanted: f64| (found.unwrap() - wanted).abs() < 1e-9;
        assert!(near(run.beyond(), 0.25), "a late module ends the wait");
        run.uptimes.insert("dhcp".to_owned(), 2.2);
        assert!(near(run.beyond(), 0.05), "a late lease does");
        assert!(near(run.agent(), 1.25));
        run.uptimes.remove("modules");
        assert_eq!(run.beyond(), None);
    }

    #[test]
    fn a_fleet_with_a_gap_has_no_time() {
        assert_eq!(last(&[Some(2.0), Some(3.0), Some(1.0)]), Some(3.0));
        assert_eq!(last(&[Some(2.0), None]), None);
    }
}
