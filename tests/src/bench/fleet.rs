//! Many machines that are switched on together.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::join_all;
use muster_proto::kinds::Profile;

use super::{
    computer,
    lit::{self, EMPTY, Lit},
    results::{Fleet, Together, last, seconds},
};
use crate::{
    machine::{Firmware, Machine},
    paths,
};

/// Machines that have not come by then have failed.
const PATIENCE: Duration = Duration::from_secs(180);

/// `rounds` times `hosts` machines with BIOS and the profile `lab`, and `empty` times the same with an empty `/init`.
pub(super) async fn measure(hosts: usize, rounds: usize, empty: usize) -> Result<Fleet> {
    let mut fleet = Fleet {
        hosts,
        ..Fleet::default()
    };
    for number in 0..rounds {
        if number < empty {
            let times = idle(hosts).await?;
            println!("  {hosts} with an empty /init: {}", told(&times));
            fleet.empty.push(times);
        }
        let round = together(hosts).await?;
        println!(
            "  {hosts} hosts {}/{rounds}: {}, controller {} KiB",
            number + 1,
            told(&round.visible),
            round.resident_kib.unwrap_or(0)
        );
        fleet.rounds.push(round);
    }
    Ok(fleet)
}

fn told(times: &[Option<f64>]) -> String {
    match last(times) {
        Some(last) => format!("all after {last:.2} s"),
        None => format!(
            "{} did not come",
            times.iter().filter(|time| time.is_none()).count()
        ),
    }
}

fn rack(lit: &Lit, hosts: usize) -> Result<Vec<Machine>> {
    (0..hosts).map(|_| lit.machine(Firmware::Bios)).collect()
}

async fn together(hosts: usize) -> Result<Together> {
    let mut lit = Lit::new("fleet", Profile::Lab, None).await?;
    let mut machines = rack(&lit, hosts)?;
    let macs: Vec<_> = machines.iter().map(lit::mac).collect::<Result<_>>()?;
    let since = Instant::now();
    for machine in &mut machines {
        machine.power_on()?;
    }
    let seen = lit.visible(&macs, PATIENCE).await;
    let controller = lit
        .stage
        .controller
        .process()
        .context("the controller has ended")?;
    let (now, peak) = computer::resident(controller)?;
    let after = |at: &Instant| seconds(at.saturating_duration_since(since));
    Ok(Together {
        visible: macs.iter().map(|mac| seen.get(mac).map(after)).collect(),
        resident_kib: Some(now),
        peak_kib: Some(peak),
    })
}

async fn idle(hosts: usize) -> Result<Vec<Option<f64>>> {
    let boot_dir = Some(paths::empty_boot_dir()?);
    let lit = Lit::new("fleet-empty", Profile::Lab, boot_dir).await?;
    let mut machines = rack(&lit, hosts)?;
    let since = Instant::now();
    for machine in &mut machines {
        machine.power_on()?;
    }
    let lines = machines
        .iter()
        .map(|machine| machine.console().wait_for(EMPTY, 0, PATIENCE));
    let after = |at: Instant| seconds(at.saturating_duration_since(since));
    Ok(join_all(lines)
        .await
        .into_iter()
        .map(|line| line.ok().map(|(_, line)| after(line.at)))
        .collect())
}
