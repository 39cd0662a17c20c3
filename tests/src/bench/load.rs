//! Many simulated clients against the controller, and against dnsmasq and nginx: the same clients, the same files, in turn.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use hyper::Method;
use muster_proto::{
    Mac,
    kinds::{Profile, Range, UnknownPolicy},
};
use muster_ramdisk::release::Release;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    computer::cpu_seconds,
    peers::Peers,
    results::{LOAD_STEPS, Load, LoadRound, Sample, Served, seconds},
    script::{self, Script},
};
use crate::{
    bridges::Bridge,
    netns::Netns,
    paths,
    sim::{
        Clients,
        dhcp::{Asker, Client},
        http::{self, Content},
        tftp,
    },
    stage::{self, Stage},
};

/// Room for several thousand leases.
const NETWORK: Bridge = Bridge {
    name: "br0",
    address: "10.80.0.1/20",
};
const SUBNET: &str = "10.80.0.0/20";
const FIRST: &str = "10.80.1.0";
const LAST: &str = "10.80.15.254";
/// The clients' own end of the cable, before they have leases.
const CLIENTS: &str = "10.80.0.2/20";
/// How long a client waits for a lease.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a PXE ROM on Ethernet asks for, in bytes.
const BLOCK: usize = 1456;

/// How much to serve.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) clients: usize,
    pub(super) at_once: usize,
    pub(super) rounds: usize,
}

/// Room for the neighbours of a few rounds, while this lives. The kernel keeps 1024, of all namespaces together, and those of a
/// round that is over are in the way for a while (`net/core/neighbour.c`).
struct Room(Vec<(PathBuf, String)>);

impl Room {
    fn make() -> Result<Room> {
        let mut room = Room(Vec::new());
        for (name, entries) in [("gc_thresh3", "65536"), ("gc_thresh2", "32768")] {
            let path = Path::new("/proc/sys/net/ipv4/neigh/default").join(name);
            let failed = || format!("make room in {}", path.display());
            let former = fs::read_to_string(&path).with_context(failed)?;
            fs::write(&path, entries).with_context(failed)?;
            room.0.push((path, former));
        }
        Ok(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (path, former) in &self.0 {
            // What could be written before can be written again.
            let _ = fs::write(path, former);
        }
    }
}

/// Measures both in turn.
pub(super) async fn measure(size: Size) -> Result<Load> {
    let _room = Room::make()?;
    let mut load = Load {
        clients: size.clients,
        at_once: size.at_once,
        rounds: Vec::new(),
    };
    for number in 0..size.rounds {
        let ours = ours(size).await?;
        println!("  round {}: muster: {}", number + 1, told(&ours));
        let theirs = theirs(size).await?;
        println!("  round {}: dnsmasq + nginx: {}", number + 1, told(&theirs));
        load.rounds.push(LoadRound { ours, theirs });
    }
    Ok(load)
}

fn told(served: &Served) -> String {
    let error = served.error.as_deref().unwrap_or_default();
    format!(
        "{:.2} s of CPU, {:.1} s, {} MB, {} failed {error}",
        served.cpu,
        served.wall,
        served.bytes / 1_000_000,
        served.failed
    )
}

async fn ours(size: Size) -> Result<Served> {
    let mut stage = Stage::dark("load", &[NETWORK]).await?;
    stage.controller.start()?;
    let mut spec = stage::segment(NETWORK, Profile::Lab, UnknownPolicy::Hold)?;
    SUBNET.clone_into(&mut spec.subnet);
    spec.dhcp.ranges = vec![Range {
        start: FIRST.to_owned(),
        end: LAST.to_owned(),
    }];
    stage.serve(NETWORK.name, spec).await?;
    let process = stage.controller.process().context("the controller has ended")?;
    serve(&stage.network.net, &[process], size).await
}

async fn theirs(size: Size) -> Result<Served> {
    let release = Release::open(&paths::boot_dir()?.join(Profile::Lab.name()))?;
    let peers = Peers::start(NETWORK, &format!("{FIRST},{LAST}"), &release).await?;
    serve(&peers.net, &peers.processes(), size).await
}

/// Lets the clients boot and takes the time of the `servers`.
async fn serve(net: &Netns, servers: &[u32], size: Size) -> Result<Served> {
    let clients = Clients::behind(net, NETWORK.name, CLIENTS)?;
    // Whatever is read or made at first use is so before the clock runs.
    boot(&clients, mac(usize::MAX)).await.context("a first client")?;
    let turn = Arc::new(Semaphore::new(size.at_once));
    let mut all = JoinSet::new();
    let before = cpu_seconds(servers)?;
    let begun = Instant::now();
    for number in 0..size.clients {
        let (clients, turn) = (clients.clone(), Arc::clone(&turn));
        all.spawn(async move {
            let _turn = turn.acquire().await?;
            let begun = Instant::now();
            let booted = boot(&clients, mac(number)).await?;
            anyhow::Ok((begun.elapsed(), booted))
        });
    }
    let mut served = Served::default();
    let mut steps: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    while let Some(outcome) = all.join_next().await {
        match outcome.context("a client broke")? {
            Ok((took, booted)) => {
                served.bytes += u64::try_from(booted.bytes)?;
                for (step, took) in booted.steps {
                    steps.entry(step).or_default().push(took.as_secs_f64() * 1000.0);
                }
                served.milliseconds.push(u32::try_from(took.as_millis())?);
            }
            Err(error) => {
                served.failed += 1;
                served.error.get_or_insert(format!("{error:#}"));
            }
        }
    }
    served.wall = seconds(begun.elapsed());
    served.cpu = ((cpu_seconds(servers)? - before) * 100.0).round() / 100.0;
    served.milliseconds.sort_unstable();
    served.steps = steps.into_iter().filter_map(spread).collect();
    Ok(served)
}

/// Median and p99 of a step, to a tenth of a millisecond.
fn spread((step, times): (&str, Vec<f64>)) -> Option<(String, [f64; 2])> {
    let times: Sample = times.into_iter().collect();
    let tenth = |time: f64| (time * 10.0).round() / 10.0;
    Some((
        step.to_owned(),
        [tenth(times.median()?), tenth(times.percentile(99)?)],
    ))
}

fn mac(number: usize) -> Mac {
    let [.., high, low] = number.to_be_bytes();
    Mac([0x52, 0x54, 0, 0x10, high, low])
}

/// What a client got, and how long each step took it.
struct Booted {
    bytes: usize,
    steps: [(&'static str, Duration); 4],
}

/// What a BIOS machine does from its firmware to its kernel.
async fn boot(clients: &Clients, mac: Mac) -> Result<Booted> {
    let mut since = Instant::now();
    let mut lap = || std::mem::replace(&mut since, Instant::now()).elapsed();
    let lease = Client::new(clients, mac, Asker::Pxe(0)).lease(PATIENCE).await?;
    let firmware_leased = lap();
    let file = lease.file.context("the answer to PXE has no boot file")?;
    let options = tftp::Options {
        block: Some(BLOCK),
        size: true,
        window: None,
    };
    // The firmware's address is gone when iPXE takes over: an address in use would not be given out again.
    let firmware = clients.at(lease.address)?;
    let server = SocketAddr::from((lease.next_server, 69));
    let loader = tftp::get(&firmware, server, &file, options).await?;
    drop(firmware);
    let mut bytes = loader.content.len();
    let loaded = lap();

    let lease = Client::new(clients, mac, Asker::Ipxe(0)).lease(PATIENCE).await?;
    let ipxe_leased = lap();
    let ipxe = clients.at(lease.address)?;
    let url = lease.file.context("the answer to iPXE has no boot file")?;
    let (server, path) = script::split(&url)?;
    let answer = http::get(&ipxe, server, path).await?;
    bytes += answer.length;
    let text = String::from_utf8_lossy(&answer.content).into_owned();
    let script = Script::parse(&text)?;
    for (server, path) in [script.kernel, script.initrd] {
        let answer = http::ask(&ipxe, server, Method::GET, path, &[], Content::Count).await?;
        if !answer.status.is_success() {
            bail!("{path}: {}", answer.status);
        }
        bytes += answer.length;
    }
    let steps = [
        (LOAD_STEPS[0], firmware_leased),
        (LOAD_STEPS[1], loaded),
        (LOAD_STEPS[2], ipxe_leased),
        (LOAD_STEPS[3], lap()),
    ];
    Ok(Booted { bytes, steps })
}
