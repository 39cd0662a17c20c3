//! Lab servers: QEMU with firmware, NICs and disks, never with KVM.

mod command_line;
mod qmp;
mod spec;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::{lines::Lines, netns::Netns, wire::Wire};

use command_line::nic_id;
pub use command_line::{Files, Link, command_line};
pub use qmp::Qmp;
pub use spec::{Boot, Bus, Disk, Firmware, MachineSpec, Nic, NicModel, Smbios, UefiNet};

/// The file with all that a machine's serial console said, in the machine's directory.
pub const CONSOLE: &str = "console.log";

const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// A server that can be switched on and off; its disks and firmware variables stay. Off once dropped.
#[derive(Debug)]
pub struct Machine {
    spec: MachineSpec,
    net: Netns,
    files: Files,
    links: Vec<Link>,
    wires: Vec<Wire>,
    console: Lines,
    said: Lines,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    process: Child,
    since: Instant,
    first_line: usize,
}

impl Machine {
    /// Racks a server in `net`: makes its disks and cables, with files in `dir`/its name. It is off.
    pub fn new(net: &Netns, dir: &Path, spec: MachineSpec) -> Result<Machine> {
        let dir = dir.join(&spec.name);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let files = Files::below(&dir, &spec);
        for (disk, path) in spec.disks.iter().zip(&files.disks) {
            if disk.file.is_none() {
                let made = File::create(path).and_then(|file| file.set_len(disk.size_bytes));
                made.with_context(|| format!("make {}", path.display()))?;
            }
        }
        if let Some(variables) = &files.variables {
            fs::copy(OVMF_VARS, variables)
                .with_context(|| format!("copy {OVMF_VARS} (Debian's package ovmf)"))?;
        }
        let mut links = Vec::new();
        let mut wires = Vec::new();
        for (number, nic) in spec.nics.iter().enumerate() {
            links.push(match nic.faults {
                None => Link::Tap(net.tap(&nic.bridge)?),
                Some(faults) => {
                    let wire = Wire::new(net, &nic.bridge, &dir, &format!("n{number}"), faults)?;
                    let ends = wire.ends().clone();
                    wires.push(wire);
                    Link::Wire(ends)
                }
            });
        }
        Ok(Machine {
            console: Lines::to(&dir.join(CONSOLE)),
            said: Lines::to(&dir.join("qemu.log")),
            net: net.clone(),
            running: None,
            spec,
            files,
            links,
            wires,
        })
    }

    /// What it is made of.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// Its serial console, over all its boots.
    pub fn console(&self) -> &Lines {
        &self.console
    }

    /// The file behind disk `number`.
    pub fn disk(&self, number: usize) -> Option<&Path> {
        self.files.disks.get(number).map(PathBuf::as_path)
    }

    /// The cables with faults, in the order of the NICs that have one.
    pub fn wires(&self) -> &[Wire] {
        &self.wires
    }

    /// Changes the hardware of a machine that is off: `change` must leave the number of NICs and disks as it is.
    pub fn rebuild(&mut self, change: impl FnOnce(&mut MachineSpec)) -> Result<()> {
        if self.running.is_some() {
            bail!("{} is on", self.spec.name);
        }
        let (nics, disks) = (self.spec.nics.len(), self.spec.disks.len());
        change(&mut self.spec);
        if (self.spec.nics.len(), self.spec.disks.len()) != (nics, disks) {
            bail!("{}: a machine keeps its number of NICs and disks", self.spec.name);
        }
        Ok(())
    }

    /// Switches it on; nothing happens if it is on.
    pub fn power_on(&mut self) -> Result<()> {
        if self.is_on() {
            return Ok(());
        }
        let _ = fs::remove_file(&self.files.qmp);
        // Before any of its cables: what they are silent for is counted from later on.
        let since = Instant::now();
        for wire in &self.wires {
            let _ = fs::remove_file(&wire.ends().guest);
            wire.plug();
        }
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(command_line(&self.spec, &self.files, &self.links))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let first_line = self.console.len();
        let mut process = self
            .net
            .spawn(command)
            .context("start a machine (Debian's package qemu-system-x86)")?;
        self.console
            .follow(process.stdout.take().context("its standard output")?)?;
        self.said
            .follow(process.stderr.take().context("its standard error")?)?;
        self.running = Some(Running {
            process,
            since,
            first_line,
        });
        Ok(())
    }

    /// Switches it off, as by pulling the plug.
    pub fn power_off(&mut self) {
        if let Some(mut running) = self.running.take() {
            // Fails only if it has ended by itself.
            let _ = running.process.kill();
            let _ = running.process.wait();
        }
    }

    /// Off and on again.
    pub fn power_cycle(&mut self) -> Result<()> {
        self.power_off();
        self.power_on()
    }

    /// Presses the reset button.
    pub fn reset(&self) -> Result<()> {
        self.qmp()?.run("system_reset")
    }

    /// One that was switched on to boot the network first boots its disks from its next reset on: the network counted once.
    pub fn boots_disks_next(&self) -> Result<()> {
        // Behind the disks, which stand behind what was the first.
        let last = self.spec.disks.len() + 2;
        let nic = format!("/machine/peripheral/{}", nic_id(0));
        let change = json!({"path": nic, "property": "bootindex", "value": last});
        self.qmp()?.execute("qom-set", &change).map(|_| ())
    }

    /// The running QEMU's control socket.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.files.qmp)
    }

    /// True while QEMU runs.
    pub fn is_on(&mut self) -> bool {
        let ended = match &mut self.running {
            None => return false,
            Some(running) => !matches!(running.process.try_wait(), Ok(None)),
        };
        if ended {
            self.running = None;
        }
        !ended
    }

    /// When it was switched on, and the number of the console's first line since.
    pub fn since(&self) -> Option<(Instant, usize)> {
        let running = self.running.as_ref()?;
        Some((running.since, running.first_line))
    }

    /// QEMU's process, for its memory and CPU time.
    pub fn process(&self) -> Option<u32> {
        Some(self.running.as_ref()?.process.id())
    }

    /// What QEMU itself complained about.
    pub fn complaints(&self) -> Vec<String> {
        self.said.last(10)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.power_off();
        for link in &self.links {
            if let Link::Tap(name) = link {
                // Goes with the namespace otherwise.
                let _ = self.net.remove(name);
            }
        }
    }
}
