//! Machines that follow the power which a BMC gives and takes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use anyhow::{Context, Result};
use muster_proto::inventory::BootMode;
use tokio::{sync::mpsc::UnboundedReceiver, time::sleep};

use super::{BootSource, Event, Options, Service, What};
use crate::{
    machine::{Boot, Machine},
    netns::Netns,
    sim::agent::SimServer,
};

/// How often somebody looks whether a real machine has switched itself off, or can be spoken to.
const LOOK: Duration = Duration::from_millis(50);
/// How long QEMU may take to begin.
const START: Duration = Duration::from_secs(20);

impl BootSource {
    /// True if the network is to be booted, whatever the firmware's own order is.
    pub fn is_network(&self) -> bool {
        matches!(self.target.as_deref(), Some("Pxe" | "UefiHttp"))
    }

    /// In which mode; one that says nothing has a machine of before UEFI.
    pub fn boot_mode(&self) -> BootMode {
        match self.mode.as_str() {
            "UEFI" => BootMode::Uefi,
            _ => BootMode::Bios,
        }
    }
}

impl Service {
    /// Serves on a free port of `address` inside `net`, before `machines`: each has the system of its name, whatever `options` say.
    pub fn before(
        net: &Netns,
        address: IpAddr,
        options: Options,
        machines: BTreeMap<String, Arc<Mutex<SimServer>>>,
    ) -> Result<Arc<Service>> {
        let systems = machines.keys().cloned().collect();
        let (service, events) = within(net, address, options, systems)?;
        for (system, machine) in &machines {
            service.identify(system, &locked(machine).hardware().inventory.system.uuid);
        }
        tokio::spawn(follow(events, machines));
        Ok(service)
    }

    /// The same before one real machine, as `system`. Its firmware boots the disks unless the BMC says otherwise.
    pub fn before_real(
        net: &Netns,
        address: IpAddr,
        options: Options,
        system: &str,
        machine: Arc<Mutex<Machine>>,
    ) -> Result<Arc<Service>> {
        let (service, events) = within(net, address, options, vec![system.to_owned()])?;
        service.identify(system, &locked(&machine).spec().smbios.uuid);
        let real = Real {
            service: Arc::downgrade(&service),
            system: system.to_owned(),
            machine,
        };
        tokio::spawn(real.follow(events));
        Ok(service)
    }
}

fn within(
    net: &Netns,
    address: IpAddr,
    options: Options,
    systems: Vec<String>,
) -> Result<(Arc<Service>, UnboundedReceiver<Event>)> {
    let listener = net.run(move || TcpListener::bind((address, 0)));
    let options = Options { systems, ..options };
    let (service, events) = Service::on(listener.context("listen as a BMC")?, options)?;
    Ok((Arc::new(service), events))
}

fn locked<T>(machine: &Mutex<T>) -> MutexGuard<'_, T> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Simulated machines do what `events` say of their power. Nothing is heard of one that boots the operating system on its disk.
pub async fn follow(mut events: UnboundedReceiver<Event>, machines: BTreeMap<String, Arc<Mutex<SimServer>>>) {
    while let Some(event) = events.recv().await {
        // A system that was added later has no machine.
        let Some(machine) = machines.get(&event.system) else {
            continue;
        };
        let mut machine = locked(machine);
        match event.what {
            What::On(source) if source.is_network() || !machine.has_system() => {
                let mode = source.boot_mode();
                // What runs is switched off first: it is not its hardware that changes.
                machine.power_off();
                machine.change(|hardware| hardware.inventory.boot.mode = mode);
                machine.power_on();
            }
            What::On(_) | What::Off => machine.power_off(),
            // Its operating system obeys by itself.
            What::ShutdownAsked | What::RestartAsked => {}
        }
    }
}

/// A real machine behind its BMC.
struct Real {
    service: Weak<Service>,
    system: String,
    machine: Arc<Mutex<Machine>>,
}

impl Real {
    async fn follow(self, mut events: UnboundedReceiver<Event>) {
        let mut was_on = false;
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = sleep(LOOK) => {
                    let Some(service) = self.service.upgrade() else { return };
                    if was_on && !locked(&self.machine).is_on() {
                        was_on = false;
                        service.went_off(&self.system);
                    }
                    continue;
                }
            };
            let Some(event) = event else { return };
            let done = match event.what {
                What::On(source) => {
                    was_on = true;
                    self.power_on(&source).await
                }
                What::Off => {
                    was_on = false;
                    locked(&self.machine).power_off();
                    Ok(())
                }
                What::ShutdownAsked | What::RestartAsked => self.ask("system_powerdown"),
            };
            done.expect("a machine that follows its BMC");
        }
    }

    async fn power_on(&self, source: &BootSource) -> Result<()> {
        let boot = match source.is_network() {
            true => Boot::Network,
            false => Boot::Disk,
        };
        {
            let mut machine = locked(&self.machine);
            machine.power_off();
            machine.rebuild(|spec| spec.boot = boot)?;
            machine.power_on()?;
        }
        if boot == Boot::Disk {
            return Ok(());
        }
        let begun = tokio::time::Instant::now();
        loop {
            match locked(&self.machine).boots_disks_next() {
                Err(_) if begun.elapsed() < START => {}
                done => return done,
            }
            sleep(LOOK).await;
        }
    }

    fn ask(&self, command: &str) -> Result<()> {
        locked(&self.machine).qmp()?.run(command)
    }
}
