//! Machines whose cable is not what it should be appear all the same.

use std::{env, time::Duration};

use anyhow::{Context, Result};
use muster_proto::{
    Mac,
    kinds::{Profile, UnknownPolicy},
};
use muster_tests::{
    bridges::BR0,
    machine::{Machine, MachineSpec},
    slots::Slots,
    stage::Stage,
    wire::Faults,
};
use serde_json::json;

/// Generous: with a bad cable it takes half a minute on a quiet machine.
const SOON: Duration = Duration::from_secs(240);

fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0xfa, 0, number])
}

/// A machine behind a cable with `faults`, switched on, and the controller that it is to find.
async fn behind(purpose: &str, number: u8, faults: Faults) -> Result<(Stage, Machine)> {
    let stage = Stage::lit(purpose, &[(BR0, Profile::Lab, UnknownPolicy::Hold)]).await?;
    let mut spec = MachineSpec::bios("m", mac(number), BR0.name);
    spec.nics[0].faults = Some(faults);
    // As servers do: where nothing boots, begin again.
    spec.extra = ["-boot", "reboot-timeout=1"].map(str::to_owned).to_vec();
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec)?;
    machine.power_on()?;
    Ok((stage, machine))
}

async fn appears(stage: &Stage, machine: &Machine, number: u8) -> Result<()> {
    let host = stage.host(mac(number), SOON, |_| true).await;
    host.with_context(|| format!("the console:\n{}", machine.console().last(20).join("\n")))?;
    assert_eq!(stage.hosts().await?.len(), 1);
    assert_eq!(stage.servers().await?.len(), 1);
    Ok(())
}

/// Until the machine has called `calls` times in vain.
async fn calls_in_vain(machine: &Machine, calls: u64) -> Result<()> {
    let wire = &machine.wires()[0];
    let before = wire.unheard();
    let waited = async {
        while wire.unheard() < before + calls {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(SOON, waited).await;
    waited.context("the machine does not call")
}

/// A switch port that waits for the spanning tree passes nothing for 30 to 50 s after the link came up (IEEE 802.1D, 17.14),
/// before the firmware has begun, and again whenever it goes and comes while the agent runs. What has to be outlasted is the
/// firmware's patience and some calls of the agent's; `MUSTER_FULL` makes it 45 s each time.
#[tokio::test(flavor = "multi_thread")]
async fn machine_behind_a_port_that_is_silent_at_first_appears() {
    let _slots = Slots::take(1).await.unwrap();
    let full = env::var_os("MUSTER_FULL").is_some();
    let silent = Faults {
        silent_for: Duration::from_secs(if full { 45 } else { 3600 }),
        ..Faults::default()
    };
    let (stage, machine) = behind("silent", 1, silent).await.unwrap();
    let console = machine.console();
    console.wait_for("No bootable device", 0, SOON).await.unwrap();
    assert!(stage.hosts().await.unwrap().is_empty());
    if !full {
        machine.wires()[0].set(Faults::default());
    }
    appears(&stage, &machine, 1).await.unwrap();

    let (at, _) = console.wait_for("step=inventory-sent", 0, SOON).await.unwrap();
    let mut qmp = machine.qmp().unwrap();
    let mut link = |up: bool| {
        let change = json!({"name": "n0", "up": up});
        qmp.execute("set_link", &change).unwrap();
    };
    link(false);
    console.wait_for("carrier lost", at, SOON).await.unwrap();
    machine.wires()[0].set(silent);
    link(true);
    calls_in_vain(&machine, 4).await.unwrap();
    if !full {
        machine.wires()[0].set(Faults::default());
    }
    console.wait_for("step=dhcp", at, SOON).await.unwrap();
}

/// No router on the way says that larger packets do not go through: firmware, iPXE, kernel, ramdisk and the agent's TLS all
/// have to keep below it by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn machine_behind_a_path_of_1400_bytes_appears() {
    let _slots = Slots::take(1).await.unwrap();
    let narrow = Faults {
        swallow_above: Some(1400),
        ..Faults::default()
    };
    let (stage, machine) = behind("narrow", 2, narrow).await.unwrap();
    appears(&stage, &machine, 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_appears_although_one_frame_of_twenty_is_lost_each_way() {
    let _slots = Slots::take(1).await.unwrap();
    let lossy = Faults {
        loss_per_mille: 50,
        ..Faults::default()
    };
    let (stage, machine) = behind("lossy", 3, lossy).await.unwrap();
    appears(&stage, &machine, 3).await.unwrap();
    let lost = machine.wires()[0].lost();
    assert!(lost.iter().all(|lost| *lost > 0), "{lost:?}");
}
