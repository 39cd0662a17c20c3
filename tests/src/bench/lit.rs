//! A stage whose hosts and consoles are timed.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use muster_proto::{
    Mac,
    kinds::{Profile, UnknownPolicy},
};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    task::AbortHandle,
    time::timeout_at,
};

use super::script::{self, Script};
use crate::{
    bridges::BR0,
    cluster::Cluster,
    demo::follow::{self, News},
    machine::{Bus, Disk, Firmware, Machine, MachineSpec, Smbios},
    sim::{
        Clients,
        dhcp::{Asker, Client},
        http,
    },
    stage::{self, Stage},
};

/// What an empty `/init` prints (`tests/bench/empty-init.rs`).
pub(super) const EMPTY: &str = "muster-bench: init";

/// How long a simulated client waits for its lease.
const LEASE: Duration = Duration::from_secs(60);

/// A stage that serves [`BR0`], and the watch on its hosts.
pub(super) struct Lit {
    pub(super) stage: Stage,
    news: UnboundedReceiver<News>,
    watch: AbortHandle,
}

impl Drop for Lit {
    fn drop(&mut self) {
        // Without news it would not notice that nobody listens, and every later measurement would carry it.
        self.watch.abort();
    }
}

impl Lit {
    /// With the ramdisks of `boot_dir` or the usual ones.
    pub(super) async fn new(purpose: &str, profile: Profile, boot_dir: Option<PathBuf>) -> Result<Lit> {
        let mut stage = Stage::dark_with(purpose, &[BR0], |setup| {
            if let Some(dir) = boot_dir {
                setup.boot_dir = dir;
            }
        })
        .await?;
        stage.controller.start()?;
        let spec = stage::segment(BR0, profile, UnknownPolicy::Hold)?;
        stage.serve(BR0.name, spec).await?;
        let client = Cluster::shared().await?.client()?;
        let (sender, news) = mpsc::unbounded_channel();
        let watch = tokio::spawn(follow::hosts(client, stage.namespace.clone(), sender)).abort_handle();
        Ok(Lit { stage, news, watch })
    }

    /// A machine that nobody has seen before; it is off.
    pub(super) fn machine(&self, firmware: Firmware) -> Result<Machine> {
        Machine::new(&self.stage.network.net, self.stage.scratch.path(), spec(firmware))
    }

    /// A place for simulated clients.
    pub(super) fn clients(&self) -> Result<Clients> {
        Clients::behind(&self.stage.network.net, BR0.name, "10.77.0.2/24")
    }

    /// Lets QEMU load kernel and initramfs of `machine`, which is off, itself: those that the controller serves for this very boot,
    /// fetched by a simulated client, with the parameters that it names.
    pub(super) async fn load_directly(&self, machine: &mut Machine, clients: &Clients) -> Result<()> {
        let lease = Client::new(clients, mac(machine)?, Asker::Ipxe(0))
            .lease(LEASE)
            .await?;
        let url = lease.file.context("the answer to iPXE has no boot file")?;
        let (server, path) = script::split(&url)?;
        let answer = http::get(clients, server, path).await?;
        let text = String::from_utf8_lossy(&answer.content).into_owned();
        let script = Script::parse(&text)?;
        let dir = self.stage.scratch.sub(&machine.spec().name)?;
        let mut files = Vec::new();
        for (name, (server, path)) in [("kernel", script.kernel), ("initrd", script.initrd)] {
            let answer = http::get(clients, server, path).await?;
            if !answer.status.is_success() {
                bail!("{path}: {}", answer.status);
            }
            let file = dir.join(name);
            fs::write(&file, &answer.content).with_context(|| format!("write {}", file.display()))?;
            files.push(file.to_string_lossy().into_owned());
        }
        machine.rebuild(|spec| {
            spec.extra = [
                "-kernel",
                &files[0],
                "-initrd",
                &files[1],
                "-append",
                script.parameters,
            ]
            .map(str::to_owned)
            .to_vec();
        })
    }

    /// When each of `macs` was first seen as a host with its hardware; those that are not within `patience` are left out.
    pub(super) async fn visible(&mut self, macs: &[Mac], patience: Duration) -> BTreeMap<Mac, Instant> {
        let deadline = tokio::time::Instant::now() + patience;
        let mut seen = BTreeMap::new();
        while seen.len() < macs.len() {
            let Ok(Some(told)) = timeout_at(deadline, self.news.recv()).await else {
                break;
            };
            if macs.contains(&told.mac) {
                seen.entry(told.mac).or_insert(told.at);
            }
        }
        seen
    }
}

static MADE: AtomicU32 = AtomicU32::new(1);

/// A machine with a NIC and two disks on [`BR0`], unlike every other.
pub(super) fn spec(firmware: Firmware) -> MachineSpec {
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let [_, _, high, low] = number.to_be_bytes();
    let mac = Mac([0x52, 0x54, 0, 0xbe, high, low]);
    let name = format!("m{number}");
    let plain = match firmware {
        Firmware::Bios => MachineSpec::bios(&name, mac, BR0.name),
        Firmware::Uefi(net) => MachineSpec::uefi(&name, mac, BR0.name, net),
    };
    let smbios = Smbios::of("Example Servers", "Bench", &format!("BENCH{number:05}"))
        .with_uuid(&format!("8d1f0a52-6c1e-4b7a-9e2d-0000be{number:06x}"));
    plain
        .with_smbios(smbios)
        .with_disk(Disk::new(Bus::Nvme, 20, &format!("NVME{number:05}")))
        .with_disk(Disk::new(Bus::Virtio, 10, &format!("VIRT{number:05}")))
}

/// The boot NIC's address.
pub(super) fn mac(machine: &Machine) -> Result<Mac> {
    let nic = machine.spec().nics.first().context("a machine without a NIC")?;
    Ok(nic.mac)
}

/// Power-on of a machine that is off to a line with `pattern` on its console; then it is off again.
pub(super) async fn to_line(machine: &mut Machine, pattern: &str, patience: Duration) -> Result<Duration> {
    machine.power_on()?;
    let (since, first) = machine.since().context("the machine is off again")?;
    let found = machine.console().wait_for(pattern, first, patience).await;
    machine.power_off();
    let (_, line) = found?;
    Ok(line.at.saturating_duration_since(since))
}
