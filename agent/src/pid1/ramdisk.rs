//! The machine that process 1 speaks for.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use muster_proto::{
    Mac,
    config::BootConfig,
    identity::Identity,
    inventory::{Inventory, LOADING, Warning},
};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::identity;
use crate::{
    clock::{self, Clock},
    console::Console,
    image::Environment,
    inventory::{self, BootFacts, KernelLinks},
    kmod::{Devices, index::Name},
    net::{
        Network,
        dns::{self, NameServers},
    },
    session::{Machine, ResolveError},
    steps::{self, Failed, Job},
    sys::Root,
    work::Work,
};

/// Changes come in bursts: a disk shelf, a bond of ports. This long nothing more must have changed.
const STILL: Duration = Duration::from_secs(1);

/// A port that flaps is not reported more often than this.
const REPORT_PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Ramdisk {
    root: Root,
    boot_mac: Option<Mac>,
    /// What certificates of image servers are judged by.
    clock: Clock,
    /// For images.
    proxy: Option<String>,
    network: watch::Receiver<Network>,
    devices: watch::Receiver<Devices>,
    console: Console,
    /// What the last inventory was taken of, and when.
    reported: (Network, Devices),
    reported_at: Option<Instant>,
    /// The networks at the last look.
    tried: Network,
    clock_set: bool,
}

impl Ramdisk {
    pub(super) fn new(
        root: Root,
        config: &BootConfig,
        clock: Clock,
        network: watch::Receiver<Network>,
        devices: watch::Receiver<Devices>,
        console: Console,
    ) -> Ramdisk {
        Ramdisk {
            root,
            boot_mac: config.boot_mac,
            clock,
            proxy: config.proxy.clone(),
            network,
            devices,
            console,
            reported: Default::default(),
            reported_at: None,
            tried: Network::default(),
            clock_set: false,
        }
    }

    fn now(&self) -> (Network, Devices) {
        (self.network.borrow().clone(), self.devices.borrow().clone())
    }

    /// Waits until it is worth looking at everything.
    async fn seem_found(&mut self) {
        if self.devices.wait_for(|devices| devices.calm).await.is_err() {
            // Nobody looks for devices: what is there now is all there will be.
            tracing::warn!("new devices are no longer noticed");
        }
    }

    /// Waits until something may have changed.
    async fn stir(&mut self) {
        tokio::select! {
            Ok(()) = self.network.changed() => {}
            Ok(()) = self.devices.changed() => {}
            else => std::future::pending().await,
        }
    }
}

impl Machine for Ramdisk {
    async fn identity(&mut self) -> Identity {
        let root = self.root.clone();
        spawn_blocking(move || identity::early(&root, &KernelLinks::shared()))
            .await
            .expect("reading does not panic")
    }

    async fn inventory(&mut self) -> Inventory {
        loop {
            self.seem_found().await;
            self.reported = self.now();
            self.reported_at = Some(Instant::now());
            let hostname = self.reported.0.hostname().to_owned();
            let (root, mac) = (self.root.clone(), self.boot_mac);
            let collect = move || {
                let started = Instant::now();
                let facts = BootFacts {
                    mac,
                    hostname,
                    uptime: clock::uptime(),
                };
                let inventory = inventory::collect(&root, &KernelLinks::shared(), facts);
                tracing::debug!(collecting = ?started.elapsed());
                inventory
            };
            // A broken disk may hold up a read for long; the network must go on.
            let mut inventory = spawn_blocking(collect).await.expect("collectors do not panic");
            let changes = self.reported.1.changes;
            let later = self
                .devices
                .wait_for(|devices| devices.settled || devices.changes != changes)
                .await;
            let too_early = later.is_ok_and(|devices| devices.changes != changes) && !self.reported.1.settled;
            if !too_early {
                self.reported.1.settled = true;
                inventory
                    .warnings
                    .extend(self.reported.1.loading.iter().map(incomplete));
                return inventory;
            }
        }
    }

    async fn changed(&mut self) {
        loop {
            while !is_news(&self.now(), &self.reported) {
                self.stir().await;
            }
            let pause = self
                .reported_at
                .map_or(Duration::ZERO, |at| REPORT_PAUSE.saturating_sub(at.elapsed()));
            sleep(pause).await;
            while timeout(STILL, self.stir()).await.is_ok() {}
            if is_news(&self.now(), &self.reported) {
                return;
            }
        }
    }

    async fn online(&mut self) {
        // The sender lives as long as the machine.
        if let Ok(network) = self.network.wait_for(|network| !network.leases.is_empty()).await {
            self.tried = network.clone();
        }
    }

    async fn network_changed(&mut self) {
        let tried = self.tried.clone();
        if let Ok(network) = self.network.wait_for(|network| *network != tried).await {
            // Once: a connection that lasts is not tried anew again and again.
            self.tried = network.clone();
            return;
        }
        std::future::pending::<()>().await;
    }

    async fn resolve(&mut self, name: &str) -> Result<IpAddr, ResolveError> {
        let servers = self.network.borrow().name_servers();
        Ok(dns::resolve(name, &servers).await?.into())
    }

    fn work(&mut self, job: Job, work: Work) -> impl Future<Output = Result<(), Failed>> + Send + 'static {
        let network = self.network.clone();
        let environment = Environment {
            root: self.root.clone(),
            clock: self.clock.clone(),
            name_servers: NameServers::new(move || network.borrow().name_servers()),
            proxy: self.proxy.clone(),
        };
        async move {
            match job {
                Job::Clean(job) => steps::clean::run(job, environment.root, work).await,
                Job::Write { job, drive } => steps::write::run(*job, drive, environment, work).await,
            }
        }
    }

    fn told_time(&mut self, unix: i64) {
        if !self.clock_set {
            // For the kernel's log and what reads it; TLS has a clock of its own.
            match clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(unix, 0)) {
                Ok(()) => self.clock_set = true,
                Err(error) => tracing::warn!("set the clock: {error}"),
            }
        }
    }

    fn log_lines(&self) -> Vec<String> {
        self.console.recent()
    }
}

/// What the inventory says while `module` is still being loaded; once it is, there is another inventory.
fn incomplete(module: &Name) -> Warning {
    Warning {
        collector: LOADING.to_owned(),
        subject: module.to_string(),
        message: "still being loaded: the devices that it finds are missing here, and are reported once it is loaded"
            .to_owned(),
    }
}

/// True if things are no longer as they were reported, and there is a network to tell it by: a port that comes back as it
/// was is no news.
fn is_news(now: &(Network, Devices), reported: &(Network, Devices)) -> bool {
    now != reported && !now.0.leases.is_empty()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use super::*;
    use crate::net::dhcp::Lease;

    fn with_lease(address: Ipv4Addr) -> Network {
        let lease = Lease::of(address);
        Network {
            leases: BTreeMap::from([(2, ("eth0".to_owned(), lease))]),
            carriers: [2].into(),
        }
    }

    #[test]
    fn a_lost_network_is_no_news_and_neither_is_the_same_one_again() {
        let reported = (with_lease([10, 0, 0, 9].into()), Devices::default());
        assert!(!is_news(&(Network::default(), Devices::default()), &reported));
        assert!(!is_news(&reported.clone(), &reported));
    }

    #[tokio::test]
    async fn an_inventory_says_which_modules_are_still_being_loaded_and_another_one_follows() {
        let tree = crate::sys::tree::Tree::new();
        let late = Devices {
            calm: true,
            settled: true,
            changes: 7,
            loading: vec!["mpt3sas".into()],
        };
        let (network, networks) = watch::channel(with_lease([10, 0, 0, 9].into()));
        let (devices, found) = watch::channel(late);
        let (clock, console) = (Clock::told(0), Console::of_the_kernel(&tree.root()));
        let config = BootConfig {
            endpoints: Vec::new(),
            ca_pem: String::new(),
            token: String::new(),
            time: 0,
            boot_mac: None,
            proxy: None,
        };
        let mut machine = Ramdisk::new(tree.root(), &config, clock, networks, found, console);
        let warned = |inventory: &Inventory| {
            let warnings = inventory.warnings.iter();
            warnings
                .filter(|warning| warning.collector == "modules" && warning.subject == "mpt3sas")
                .count()
        };
        assert_eq!(warned(&machine.inventory().await), 1);
        devices.send_modify(|devices| devices.loading.clear());
        tokio::time::timeout(Duration::from_secs(60), machine.changed())
            .await
            .expect("it is news");
        assert_eq!(warned(&machine.inventory().await), 0);
        drop((network, devices));
    }

    #[test]
    fn another_address_or_other_devices_are_news() {
        let reported = (with_lease([10, 0, 0, 9].into()), Devices::default());
        let moved = (with_lease([10, 0, 0, 10].into()), Devices::default());
        let grown = Devices {
            changes: 1,
            ..Devices::default()
        };
        assert!(is_news(&moved, &reported));
        assert!(is_news(&(reported.0.clone(), grown), &reported));
    }
}
