//! One machine at a time, from power-on to BareMetalHost, and what of it nobody could save: the same with an empty `/init`.

use std::time::Duration;

use anyhow::{Context, Result};
use muster_proto::kinds::Profile;

use super::{
    lit::{self, EMPTY, Lit},
    results::{Boots, Run, seconds},
    steps::{self, SENT},
};
use crate::{
    machine::{Firmware, Machine},
    paths,
    sim::Clients,
};

/// A machine that has not come by then has failed.
const PATIENCE: Duration = Duration::from_secs(90);
/// The agent's last line may come a moment after the host.
const LAST_LINE: Duration = Duration::from_secs(5);

/// How often to measure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    /// Machines.
    pub(super) runs: usize,
    /// Boots with an empty `/init`, by each way.
    pub(super) empty: usize,
}

/// Measures machines with this `firmware` and the profile `lab`; the empty boots are spread among the others.
pub(super) async fn measure(name: &str, firmware: Firmware, counts: Counts) -> Result<Boots> {
    let mut lit = Lit::new(name, Profile::Lab, None).await?;
    let boot_dir = Some(paths::empty_boot_dir()?);
    let empty = Lit::new(&format!("{name}-empty"), Profile::Lab, boot_dir).await?;
    let clients = empty.clients()?;
    let mut boots = Boots {
        memory_mib: lit::spec(firmware).memory_mib,
        ..Boots::default()
    };
    for number in 0..counts.runs {
        if number * counts.empty / counts.runs == boots.empty.len() && boots.empty.len() < counts.empty {
            let mut machine = empty.machine(firmware)?;
            boots.empty.push(shot(
                "by the same path",
                lit::to_line(&mut machine, EMPTY, PATIENCE).await,
            ));
            boots
                .direct
                .push(shot("directly", direct(&empty, &clients).await));
        }
        let run = run(&mut lit, firmware).await?;
        println!("  {name} {}/{}: {}", number + 1, counts.runs, told(&run));
        boots.runs.push(run);
    }
    Ok(boots)
}

async fn run(lit: &mut Lit, firmware: Firmware) -> Result<Run> {
    let mut machine = lit.machine(firmware)?;
    let mac = lit::mac(&machine)?;
    let log_from = lit.stage.controller.log().len();
    machine.power_on()?;
    let (since, first) = machine.since().context("the machine is off again")?;
    let seen = lit.visible(&[mac], PATIENCE).await.remove(&mac);
    if seen.is_some() {
        // Without it the run has no parts, which the results show.
        let _ = machine.console().wait_for(SENT, first, LAST_LINE).await;
    }
    machine.power_off();
    let log = lit.stage.controller.log().from(log_from);
    let mut run = steps::run(since, mac, &log, &machine.console().from(first));
    match seen {
        Some(at) => run.visible = Some(seconds(at.saturating_duration_since(since))),
        None => run.failed = Some(last_words(&machine)),
    }
    Ok(run)
}

/// What a machine that did not come said last.
fn last_words(machine: &Machine) -> String {
    let mut said = machine.console().last(3);
    said.extend(machine.complaints());
    format!(
        "no host after {} s; the console ends with: {}",
        PATIENCE.as_secs(),
        said.join(" / ")
    )
}

/// QEMU loads kernel and initramfs itself, with no network boot.
async fn direct(empty: &Lit, clients: &Clients) -> Result<Duration> {
    let mut machine = empty.machine(Firmware::Bios)?;
    empty.load_directly(&mut machine, clients).await?;
    lit::to_line(&mut machine, EMPTY, PATIENCE).await
}

fn shot(how: &str, took: Result<Duration>) -> Option<f64> {
    match took {
        Ok(took) => {
            println!("  empty /init {how}: {:.2} s", took.as_secs_f64());
            Some(seconds(took))
        }
        Err(error) => {
            println!("  empty /init {how}: {error:#}");
            None
        }
    }
}

fn told(run: &Run) -> String {
    match (run.visible, &run.failed) {
        (Some(visible), _) => format!(
            "{visible:.2} s, of it the agent {:.2} s, beyond modules and lease {:.3} s",
            run.agent().unwrap_or(f64::NAN),
            run.beyond().unwrap_or(f64::NAN)
        ),
        (None, why) => why.clone().unwrap_or_default(),
    }
}
