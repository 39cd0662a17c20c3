//! `muster-lab fleet`: simulated servers, thousands in one process, against any controller and any cluster.
//!
//! Nothing of a server is inside the controller: it fetches its boot script and its ramdisk's configuration over HTTP, and then runs
//! the agent's own session over mutual TLS, with inventories of more than 20 KiB. Only DHCP and the loading of the kernel are left
//! out, and the hardware is made up.

mod bmc;
mod hands;
mod objects;
pub mod pace;
mod place;
mod server;
pub mod tally;

use std::{
    io::{self, IsTerminal, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use tokio::{
    runtime::Runtime,
    sync::{Semaphore, watch},
};

use crate::{
    bmc::Service,
    cluster::Named,
    interrupt::{interrupted, unless_interrupted},
    sim::hardware::Model,
};
use bmc::Bmc;
use objects::Objects;
use pace::Failing;
use place::Place;
use server::{FETCHING, NoBmc, Power, Server, World};
use tally::Tally;

/// How often the summary is drawn on a terminal, and otherwise.
const FRAME: Duration = Duration::from_millis(500);
const LINE: Duration = Duration::from_secs(5);
/// How long hosts may take to go when a fleet ends, beside what its servers take.
const FAREWELL: Duration = Duration::from_secs(120);
/// And how much longer for each of them.
const A_HOSTS_FAREWELL: Duration = Duration::from_millis(50);
/// So many servers are plugged in within a second.
const PLUGGED_A_SECOND: u32 = 200;

/// How a fleet runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many servers.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub hosts: u32,
    /// The number of the first server. Fleets that run side by side need different numbers, since each number is its own hardware.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..900_000))]
    pub first: u32,
    /// Whose cluster.
    #[command(flatten)]
    pub cluster: Named,
    /// NAMESPACE/NAME of a Segment with `dhcp.mode: off` and a `bootAddress`, whose controller is already running. Without it, the
    /// lab starts a controller and creates a Segment.
    #[arg(long, requires = "kubeconfig")]
    pub segment: Option<String>,
    /// The address of this computer at which that controller reaches the fleet's BMCs.
    #[arg(long, requires = "segment")]
    pub address: Option<String>,
    /// The TCP port of the BMCs; 0: any free port.
    #[arg(long, default_value_t = 0)]
    pub bmc_port: u16,
    /// Leave the servers undescribed: they have power but no BMC, and discovery finds them. Without this, the fleet creates a host
    /// with its BMC for each.
    #[arg(long)]
    pub discover: bool,
    /// The namespace of the hosts; with --segment, that of the Segment's hosts is used.
    #[arg(long, default_value = "fleet", conflicts_with = "segment")]
    pub namespace: String,
    /// What kind of servers. The reports of all kinds are equally large.
    #[arg(long, value_enum, default_value_t)]
    pub model: Model,
    /// How long everything takes: 1 is real time, 0 is as fast as possible.
    #[arg(long, default_value_t = 0.1, value_parser = scale)]
    pub scale: f64,
    /// Faults to inject, as FAULT=PERCENT or FAULT=PERCENTxTIMES of the servers; FAULT is firmware, boot, inventory, job or power.
    /// May be repeated.
    #[arg(long = "fail")]
    pub failing: Vec<Failing>,
    /// End once every server waits for jobs and every host is there.
    #[arg(long)]
    pub once: bool,
    /// First delete what an earlier fleet of these servers left in the cluster.
    #[arg(long)]
    pub afresh: bool,
    /// Only say whether all this goes together.
    #[arg(long, hide = true)]
    pub check: bool,
}

fn scale(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    match (0.0..=100.0).contains(&number) {
        true => Ok(number),
        false => Err("from 0 to 100".to_owned()),
    }
}

/// Everything that runs in a place.
struct Fleet {
    runtime: Option<Runtime>,
    world: Arc<World>,
    switches: Vec<watch::Sender<Power>>,
    bmcs: Option<Arc<Service>>,
    objects: Objects,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // It may be dropped where blocking is forbidden.
            runtime.shutdown_background();
        }
    }
}

/// Runs a fleet until Ctrl-C; true if that was the end that `once` asks for, or nobody asked for one.
pub async fn run(options: Options) -> Result<bool> {
    if let Some(clash) = pace::clash(&options.failing, options.once) {
        bail!("{clash}");
    }
    place::allow_files(options.hosts)?;
    options.cluster.check()?;
    if options.check {
        return Ok(true);
    }
    say(&format!("Preparing {} servers …", options.hosts));
    let Some(mut place) = unless_interrupted(Box::pin(Place::find(&options))).await? else {
        return Ok(!options.once);
    };
    let started = unless_interrupted(Box::pin(Fleet::start(&options, &mut place))).await;
    // Whatever comes of it: what was made stays nowhere.
    let (arrived, cleaned) = match started {
        Ok(Some(mut fleet)) => {
            let arrived = Box::pin(fleet.live(&options, &mut place)).await;
            (arrived, Box::pin(fleet.clean_up(&options, &mut place)).await)
        }
        unstarted => {
            if options.afresh && !place.is_passing {
                say(&place.remnants());
            }
            (unstarted.map(|_| false), leave(&mut place).await)
        }
    };
    let arrived = both(arrived, cleaned)?;
    Ok(arrived || !options.once)
}

/// The first outcome, or else the error of the second; one that would be lost behind the first's is said.
fn both<T>(first: Result<T>, second: Result<()>) -> Result<T> {
    match (first, second) {
        (Err(error), Err(lost)) => {
            say(&format!("{lost:#}"));
            Err(error)
        }
        (first, second) => second.and(first),
    }
}

/// Takes away what serves the fleet, and says what stays. A second Ctrl-C ends it at once.
async fn leave(place: &mut Place) -> Result<()> {
    let left = unless_interrupted(Box::pin(place.leave())).await;
    let left = left.and_then(|left| left.context("interrupted"));
    let stays = left.context("the lab's Segment and its controller's account may be left in the cluster: the next fleet there removes them when it ends")?;
    if let Some(stays) = stays {
        say(&stays);
    }
    Ok(())
}

/// A reader that has gone (`fleet | head`) is no reason to end otherwise than usual.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

impl Fleet {
    async fn start(options: &Options, place: &mut Place) -> Result<Fleet> {
        place.furnish(options).await?;
        let numbers = options.first..options.first + options.hosts;
        let run = std::process::id().to_string();
        let objects = Objects::new(place.cluster.client()?, place, &run, numbers.clone());
        match options.afresh {
            true => objects.make_room(farewell(options)).await?,
            false => objects.are_new().await?,
        }
        let world = Arc::new(World {
            scripts: place.scripts.clone(),
            model: options.model,
            scale: options.scale,
            failing: options.failing.clone(),
            tally: Tally::new(numbers.len()),
            fetching: Semaphore::new(FETCHING),
        });
        tokio::spawn(objects.clone().follow(!options.discover));
        let (bmcs, events) = match options.discover {
            true => (None, None),
            false => {
                let (service, events) = bmc::start(place, numbers.clone(), &options.failing, options.scale)?;
                (Some(service), Some(events))
            }
        };
        // Last of what may fail: it cannot be dropped here.
        let runtime = place.runtime()?;
        let mut switches = Vec::new();
        for (index, number) in numbers.enumerate() {
            let (switch, power) = watch::channel(Power::default());
            let server = Server::new(Arc::clone(&world), index, number);
            match &bmcs {
                None => runtime.spawn(server.live(power, NoBmc)),
                Some(service) => runtime.spawn(server.live(power, Bmc::new(service, number))),
            };
            switches.push(switch);
        }
        match (events, &bmcs) {
            (Some(events), Some(service)) => {
                let (service, world) = (Arc::clone(service), Arc::clone(&world));
                tokio::spawn(bmc::follow(
                    events,
                    service,
                    world,
                    options.first,
                    switches.clone(),
                ));
            }
            _ => {
                let (world, objects) = (Arc::clone(&world), objects.clone());
                tokio::spawn(hands::walk(world, objects, options.first, switches.clone()));
            }
        }
        Ok(Fleet {
            runtime: Some(runtime),
            world,
            switches,
            bmcs,
            objects,
        })
    }

    /// Plugs the servers in and shows the summary; true if it ends as `once` asks for.
    async fn live(&mut self, options: &Options, place: &mut Place) -> Result<bool> {
        let begun = Instant::now();
        say(&format!(
            "Hosts appear in namespace {} of {}; Ctrl-C ends the fleet.",
            place.hosts,
            place.cluster.kubeconfig().display()
        ));
        let plugged = unless_interrupted(Box::pin(self.plug_in(options))).await?;
        if plugged.is_none() {
            return Ok(false);
        }
        let arrived = self.watch(options, place, begun).await?;
        if arrived {
            say(&format!(
                "All are there after {:.1} s.",
                begun.elapsed().as_secs_f64()
            ));
        }
        Ok(arrived)
    }

    /// Describes the servers, or gives power to those that nobody describes, one after the other.
    async fn plug_in(&self, options: &Options) -> Result<()> {
        if let Some(bmcs) = &self.bmcs {
            let numbers = options.first..options.first + options.hosts;
            let described = numbers.map(|number| {
                let system = objects::name(number);
                (number, bmcs.address("redfish", Some(&system)))
            });
            return self.objects.make(described.collect(), bmc::USER).await;
        }
        let switches = self.switches.clone();
        tokio::spawn(async move {
            for switch in switches {
                switch.send_modify(Power::cycle);
                tokio::time::sleep(Duration::from_secs(1) / PLUGGED_A_SECOND).await;
            }
        });
        Ok(())
    }

    /// Shows the summary until Ctrl-C, or with `once` until all have arrived: then true.
    async fn watch(&mut self, options: &Options, place: &mut Place, begun: Instant) -> Result<bool> {
        let live = io::stdout().is_terminal();
        let mut frames = tokio::time::interval(FRAME);
        let interrupt = interrupted();
        tokio::pin!(interrupt);
        let mut said = Instant::now();
        loop {
            tokio::select! {
                _ = frames.tick() => {}
                outcome = &mut interrupt => {
                    say("");
                    return outcome.map(|()| false);
                }
            }
            place.lives()?;
            let (servers, hosts) = (self.world.tally.counts(), self.objects.counts());
            let seconds = begun.elapsed().as_secs();
            let line = format!("{seconds:>5} s  {}", tally::line(&servers, &hosts));
            let all = usize::try_from(options.hosts).unwrap_or(usize::MAX);
            let arrived = options.once && tally::have_arrived(all, options.discover, &servers, &hosts);
            let is_due = arrived || said.elapsed() >= LINE;
            let trouble = is_due.then(|| self.world.tally.take_trouble()).flatten();
            if is_due {
                said = Instant::now();
            }
            if live {
                if let Some(trouble) = trouble {
                    say(&format!("\r\x1b[K         {trouble}"));
                }
                let _ = write!(io::stdout(), "\r\x1b[K{line}");
                let _ = io::stdout().flush();
            } else if is_due {
                say(&line);
                if let Some(trouble) = trouble {
                    say(&format!("         {trouble}"));
                }
            }
            if arrived {
                say("");
                return Ok(true);
            }
        }
    }

    /// Leaves nothing of the fleet in a cluster that stays. A second Ctrl-C ends it at once.
    async fn clean_up(mut self, options: &Options, place: &mut Place) -> Result<()> {
        if place.is_passing {
            return Ok(());
        }
        say("Deleting the fleet's hosts …");
        let left = place.remnants();
        let farewell = farewell(options);
        let gone = tokio::select! {
            gone = tokio::time::timeout(farewell, self.take_away(place)) => match gone {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow!("some hosts are still there after {farewell:?}: is their controller running?")),
            },
            outcome = interrupted() => {
                outcome?;
                bail!("interrupted: {left}");
            }
        };
        both(gone.context(left), leave(place).await)
    }

    async fn take_away(&mut self, place: &mut Place) -> Result<()> {
        // Without it nobody lets the hosts go.
        place.lives()?;
        self.objects.delete().await?;
        // The servers are off before their objects go, or they would come back.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.objects.delete_rest().await
    }
}

/// How long the hosts of a fleet may take to go. One that was provisioned boots once more, and is cleaned.
fn farewell(options: &Options) -> Duration {
    FAREWELL + FAREWELL.mul_f64(5.0 * options.scale) + A_HOSTS_FAREWELL * options.hosts
}
