//! A machine that boots while more addresses ask for a lease than there can be machines, beside the same in quiet.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use muster_proto::kinds::Profile;

use super::{
    lit::{self, Lit},
    results::{Flood, seconds},
};
use crate::{
    machine::Firmware,
    sim::{Clients, flood},
};

/// A machine that has not come by then has failed.
const PATIENCE: Duration = Duration::from_secs(180);

/// BIOS machines with the profile `lab`, `runs` of each kind in turn.
pub(super) async fn measure(runs: usize) -> Result<Flood> {
    let mut lit = Lit::new("flood", Profile::Lab, None).await?;
    let clients = lit.clients()?;
    let mut flood = Flood {
        askers: flood::ASKERS,
        ..Flood::default()
    };
    for number in 0..runs {
        let quiet = boot(&mut lit).await?;
        let begun = Instant::now();
        let asking = ask(clients.clone());
        let flooded = boot(&mut lit).await?;
        let asked = asking.await.context("a flood broke")??;
        println!(
            "  {}/{runs}: {quiet:?} s in quiet, {flooded:?} s while {} addresses asked within {:.1} s",
            number + 1,
            flood::ASKERS,
            asked.saturating_duration_since(begun).as_secs_f64()
        );
        flood.quiet.push(quiet);
        flood.flooded.push(flooded);
        flood.asking.push(seconds(asked.saturating_duration_since(begun)));
    }
    Ok(flood)
}

/// Asks, on a thread of its own; says when it was done.
fn ask(clients: Clients) -> tokio::task::JoinHandle<Result<Instant>> {
    tokio::task::spawn_blocking(move || {
        flood::discovers(&clients)?;
        Ok(Instant::now())
    })
}

/// Power-on to BareMetalHost of a machine that nobody has seen; none if it did not come.
async fn boot(lit: &mut Lit) -> Result<Option<f64>> {
    let mut machine = lit.machine(Firmware::Bios)?;
    let mac = lit::mac(&machine)?;
    machine.power_on()?;
    let (since, _) = machine.since().context("the machine is off again")?;
    let seen = lit.visible(&[mac], PATIENCE).await.remove(&mac);
    machine.power_off();
    Ok(seen.map(|at| seconds(at.saturating_duration_since(since))))
}
