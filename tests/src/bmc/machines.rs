//! Simulated machines that follow the power which a BMC gives and takes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};

use super::{Options, Service, What};
use crate::{netns::Netns, sim::agent::SimServer};

impl Service {
    /// Serves on a free port of `address` inside `net`, before `machines`: each has the system of its name, whatever `options` say.
    pub fn before(
        net: &Netns,
        address: IpAddr,
        options: Options,
        machines: BTreeMap<String, Arc<Mutex<SimServer>>>,
    ) -> Result<Arc<Service>> {
        let listener = net.run(move || TcpListener::bind((address, 0)));
        let options = Options {
            systems: machines.keys().cloned().collect(),
            ..options
        };
        let (service, mut events) = Service::on(listener.context("listen as a BMC")?, options)?;
        for (system, machine) in &machines {
            let machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
            service.identify(system, &machine.hardware().inventory.system.uuid);
        }
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                // A system that was added later has no machine.
                let Some(machine) = machines.get(&event.system) else {
                    continue;
                };
                let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
                match event.what {
                    What::On(_) => machine.power_on(),
                    What::Off => machine.power_off(),
                    // Its operating system obeys by itself.
                    What::ShutdownAsked => {}
                }
            }
        });
        Ok(Arc::new(service))
    }
}
