//! The least guest memory at which a machine gets to its inventory.
//! QEMU loads kernel and initramfs itself: firmware and iPXE would need memory of their own.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use muster_proto::kinds::Profile;

use super::{
    lit::Lit,
    results::{Memory, Try, seconds},
    steps::SENT,
};
use crate::{machine::Firmware, sim::Clients};

/// A machine that has not sent its inventory by then never will.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a machine without enough memory says; waiting on would be in vain.
const SIGNS: [&str; 5] = [
    "not enough memory",
    "Kernel panic",
    "Out of memory",
    "System halted",
    "write error",
];

/// Memory sizes in MiB, falling, and the one that is to be enough.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    pub(super) profile: Profile,
    pub(super) goal: u32,
    pub(super) mib: &'static [u32],
}

pub(super) const LAB: Steps = Steps {
    profile: Profile::Lab,
    goal: 96,
    mib: &[256, 192, 160, 128, 112, 96, 88, 80, 72, 64, 56, 48],
};
pub(super) const SERVER: Steps = Steps {
    profile: Profile::Server,
    goal: 256,
    mib: &[
        512, 448, 384, 320, 288, 256, 240, 224, 208, 192, 176, 160, 144, 128, 112,
    ],
};

/// Goes down from the goal to the first size that fails; up, if the goal itself fails.
pub(super) async fn measure(steps: Steps, most: usize) -> Result<Memory> {
    let name = steps.profile.name();
    let purpose = format!("memory-{name}");
    let lit = Lit::new(&purpose, steps.profile, None).await?;
    let clients = lit.clients()?;
    let mut memory = Memory {
        profile: name.to_owned(),
        goal_mib: steps.goal,
        tries: Vec::new(),
    };
    while memory.tries.len() < most
        && let Some(mib) = next(steps, &memory.tries)
    {
        let tried = match boot(&lit, &clients, mib).await {
            Ok(took) => Try {
                mib,
                seconds: Some(seconds(took)),
                failed: None,
            },
            Err(error) => Try {
                mib,
                seconds: None,
                failed: Some(format!("{error:#}").lines().next().unwrap_or_default().to_owned()),
            },
        };
        let outcome = tried.failed.clone().unwrap_or_else(|| "works".to_owned());
        println!("  {name}, {mib} MiB: {outcome}");
        memory.tries.push(tried);
    }
    Ok(memory)
}

/// What to try next, in MiB.
fn next(steps: Steps, tries: &[Try]) -> Option<u32> {
    let Some(last) = tries.last() else {
        return Some(steps.goal);
    };
    let worked = last.seconds.is_some();
    let further = |mib: &u32| if worked { *mib < last.mib } else { *mib > last.mib };
    let candidate = if worked {
        steps.mib.iter().copied().find(further)
    } else {
        steps.mib.iter().copied().rev().find(further)
    };
    // A size that was tried is between one that works and one that does not: found.
    candidate.filter(|mib| tries.iter().all(|tried| tried.mib != *mib))
}

async fn boot(lit: &Lit, clients: &Clients, mib: u32) -> Result<Duration> {
    let mut machine = lit.machine(Firmware::Bios)?;
    lit.load_directly(&mut machine, clients).await?;
    machine.rebuild(|spec| spec.memory_mib = mib)?;
    machine.power_on()?;
    let (since, first) = machine.since().context("the machine is off again")?;
    let ends = |line: &str| line.contains(SENT) || SIGNS.iter().any(|sign| line.contains(sign));
    let found = machine
        .console()
        .wait_until("the inventory", first, PATIENCE, ends)
        .await;
    machine.power_off();
    let Ok((_, line)) = found else {
        let said = machine.console().last(1).join("");
        bail!(
            "no inventory after {} s; the console ends with: {said}",
            PATIENCE.as_secs()
        );
    };
    if !line.text.contains(SENT) {
        // What firmware left on the line before the sign says nothing.
        let sign = SIGNS.iter().find_map(|sign| line.text.find(sign));
        let said = &line.text[sign.unwrap_or(0)..];
        bail!("{}", muster_proto::text::clean(said.as_bytes()));
    }
    Ok(line.at.saturating_duration_since(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(mib: u32, worked: bool) -> Try {
        Try {
            mib,
            seconds: worked.then_some(5.0),
            failed: None,
        }
    }

    #[test]
    fn sizes_fall_until_one_fails() {
        assert_eq!(next(LAB, &[]), Some(96));
        assert_eq!(next(LAB, &[tried(96, true)]), Some(88));
        assert_eq!(next(LAB, &[tried(96, true), tried(88, false)]), None);
        assert_eq!(next(LAB, &[tried(48, true)]), None);
    }

    #[test]
    fn sizes_rise_when_the_goal_fails() {
        assert_eq!(next(LAB, &[tried(96, false)]), Some(112));
        assert_eq!(next(LAB, &[tried(96, false), tried(112, true)]), None);
        assert_eq!(next(SERVER, &[tried(512, false)]), None);
    }
}
