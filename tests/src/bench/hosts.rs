//! `muster-lab bench-hosts`: thousands of simulated servers from creation to provisioned, and a leader that is killed. It asserts
//! nothing: what fails or takes long is shown.

mod failover;
mod meter;
mod peer;
mod place;
mod render;
mod results;
mod round;
mod watch;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{BUSY, Record, computer, now, results::seconds, to_json, write};
use crate::{metal3, slots::Slots};
use results::HostsResults;
use round::Size;

/// Longer than the controller's resync, which is part of what an idle host costs.
const RESYNC: Duration = Duration::from_secs(660);
/// Where only is looked whether something goes on all the time.
const GLANCE: Duration = Duration::from_secs(60);

/// How the benchmark runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// A hundred hosts, to try it out.
    #[arg(long)]
    pub quick: bool,
    /// So many hosts only, with Muster and with its peer, to try it out.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub hosts: Option<u32>,
    /// The leader's end only, with so many hosts, to try it out.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub failover: Option<u32>,
    /// What is put on record beside the results.
    #[command(flatten)]
    pub record: Record,
}

/// What is measured, the longest last.
enum Part {
    Round(Size),
    /// The peer, with so many hosts.
    Peer(u32),
    /// With so many hosts.
    Failover(u32),
    /// What is stored, of so many hosts with fewer disks.
    Typical(u32),
}

fn plan(options: &Options) -> Vec<Part> {
    let round = |hosts, idle| Part::Round(Size { hosts, idle });
    match (options.hosts, options.failover) {
        (None, None) if options.quick => vec![
            round(100, GLANCE),
            Part::Typical(100),
            Part::Peer(100),
            Part::Failover(100),
        ],
        (None, None) => vec![
            round(1000, RESYNC),
            Part::Typical(100),
            Part::Peer(1000),
            Part::Failover(1000),
            round(10_000, GLANCE),
        ],
        (hosts, failover) => {
            let rounds = hosts.map(|hosts| [round(hosts, GLANCE), Part::Peer(hosts)]);
            let rounds = rounds.into_iter().flatten();
            rounds.chain(failover.map(Part::Failover)).collect()
        }
    }
}

/// Measures, and writes what it found.
pub async fn run(options: Options) -> Result<()> {
    let begun = Instant::now();
    // Whoever else uses this lab waits until we are done.
    let _slots = Slots::take(usize::MAX).await?;
    let mut results = HostsResults {
        command: options.record.command.clone(),
        commit: options.record.commit.clone(),
        date: now(),
        computer: computer::look().await?,
        ..HostsResults::default()
    };
    let busy = results.computer.busy_cores;
    if busy > BUSY {
        results.warn(&format!(
            "{busy:.2} processors were busy with other work before it began: times are longer than they need be"
        ));
    }
    for part in plan(&options) {
        // What was measured before something went wrong is worth having.
        match part {
            Part::Round(size) => {
                println!("· {} hosts", size.hosts);
                let mut measured = results::Round::default();
                if let Err(error) = round::measure(size, &mut measured).await {
                    results.warn(&format!("{} hosts: {error:#}", size.hosts));
                }
                results.rounds.push(measured);
            }
            Part::Peer(hosts) => {
                println!("· baremetal-operator with {hosts} hosts");
                let mut measured = results::Round::default();
                if let Err(error) = round::measure_peer(hosts, &mut measured).await {
                    results.warn(&format!("baremetal-operator, {hosts} hosts: {error:#}"));
                }
                results.peer = Some(results::Peer {
                    version: metal3::version().context("its version")?.to_owned(),
                    arguments: peer::ARGUMENTS.join(" "),
                    round: measured,
                });
            }
            Part::Typical(hosts) => {
                let what = format!("{hosts} hosts with {} disks", round::TYPICAL.disks());
                println!("· {what}");
                let mut measured = results::Round::default();
                if let Err(error) = round::measure_typical(hosts, &mut measured).await {
                    results.warn(&format!("{what}: {error:#}"));
                }
                results.typical = Some(measured);
            }
            Part::Failover(hosts) => {
                println!("· the leader ends while {hosts} hosts are busy");
                match failover::measure(hosts).await {
                    Ok(failover) => results.failover = Some(failover),
                    Err(error) => results.warn(&format!("the leader's end: {error:#}")),
                }
            }
        }
        results.took = seconds(begun.elapsed());
        write(&options.record.out, &to_json(&results)?)?;
    }
    println!("\n{}", render::goals(&results));
    println!(
        "{} s in all; raw results in {}",
        results.took,
        options.record.out.display()
    );
    Ok(())
}

/// The page of the raw results in `json`.
pub(super) fn page(json: &str) -> serde_json::Result<String> {
    serde_json::from_str(json).map(|results| render::page(&results))
}
