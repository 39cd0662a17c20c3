//! One server of a fleet: it boots when it has power, what its firmware finds or is told, and in the ramdisk it runs the agent's own
//! session over real TLS.
//!
//! ```text
//! Off -> Firmware --script--> Loading -> Enrolling -> Inspecting -> Ready <-> Working
//!            ^  \--"your disk"--> System, or Idle: nothing is on it       |
//!            +------------------- reboot, refusal, nothing to boot -------+
//! ```

use std::{
    future::pending,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use muster_agent::{
    clock::Clock,
    session::{self, Ended, Machine},
    steps::{Failed, Job},
    work::Work,
};
use muster_proto::{
    config::BootConfig,
    identity::Identity,
    inventory::{BootMode, Inventory},
    job::Failure,
};
use tokio::{
    sync::{Semaphore, watch},
    time::sleep,
};

use super::{
    pace::{Failing, Fault, Luck, Step, takes},
    tally::{State, Tally},
};
use crate::sim::{
    firmware::{self, Script},
    hardware::{Hardware, Model},
    http::Here,
    work,
};

/// What all servers of a fleet share.
#[derive(Debug)]
pub(super) struct World {
    /// What the script's URL begins with: `http://ADDRESS:PORT/ipxe/NAMESPACE/SEGMENT`.
    pub(super) scripts: String,
    /// What their servers are.
    pub(super) model: Model,
    /// 1 is real time.
    pub(super) scale: f64,
    /// What goes wrong.
    pub(super) failing: Vec<Failing>,
    /// Where they are.
    pub(super) tally: Tally,
    /// Taken while something is fetched from the boot services.
    pub(super) fetching: Semaphore,
}

/// So many servers fetch boot files at the same time: all of them have one address, to which no edge gives many connections.
pub(super) const FETCHING: usize = 8;

/// What a server boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The network in this mode, then the disk.
    Order(BootMode),
    /// Its disk.
    Disk,
}

impl Default for Source {
    fn default() -> Source {
        Source::Order(BootMode::Bios)
    }
}

/// Its power, as whoever holds the switch has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Power {
    /// On.
    pub(super) on: bool,
    /// How often it was switched on.
    pub(super) cycles: u64,
    /// What it boots this time.
    pub(super) source: Source,
}

impl Power {
    /// Off, if it was on, and on.
    pub(super) fn cycle(&mut self) {
        self.on = true;
        self.cycles += 1;
    }
}

/// What a server asks of whoever holds the switch; without a BMC there is nobody.
pub(super) trait Switch: Send + Sync {
    /// It restarts by itself: what does it boot?
    fn boots(&self) -> Source {
        Source::default()
    }

    /// It switched itself off.
    fn went_off(&self) {}
}

/// A server without a BMC: a person walks to it (`hands.rs`).
pub(super) struct NoBmc;

impl Switch for NoBmc {}

/// One server.
pub(super) struct Server {
    world: Arc<World>,
    index: usize,
    number: u32,
    luck: Arc<Mutex<Luck>>,
    /// A system is on its disk.
    installed: Arc<AtomicBool>,
}

impl Server {
    /// The server at `index` of the fleet, with the hardware of `number`.
    pub(super) fn new(world: Arc<World>, index: usize, number: u32) -> Server {
        let luck = Arc::new(Mutex::new(Luck::of(number, &world.failing)));
        Server {
            world,
            index,
            number,
            luck,
            installed: Arc::default(),
        }
    }

    /// Follows its power for ever.
    pub(super) async fn live(self, mut power: watch::Receiver<Power>, switch: impl Switch) {
        loop {
            let Ok(now) = power.wait_for(|power| power.on).await.map(|power| *power) else {
                return;
            };
            tokio::select! {
                () = self.run(now.source, &switch) => {}
                _ = power.wait_for(|power| *power != now) => {}
            }
            self.enter(State::Off);
        }
    }

    async fn run(&self, mut source: Source, switch: &impl Switch) {
        loop {
            self.enter(State::Firmware);
            self.takes(Step::Firmware).await;
            if self.strikes(Fault::Firmware) {
                self.enter(State::Stuck);
                return pending().await;
            }
            let booted = match source {
                Source::Order(mode) => self.network().await.map(|config| config.zip(Some(mode))),
                Source::Disk => Ok(None),
            };
            match booted {
                Ok(Some((config, mode))) => match self.serve(config, mode).await {
                    Ended::Reboot => {
                        source = switch.boots();
                        continue;
                    }
                    Ended::PowerOff => {
                        self.enter(State::Off);
                        switch.went_off();
                        return pending().await;
                    }
                    refused => self.trouble(&format!("{refused:?}")),
                },
                Ok(None) if self.installed.load(Ordering::Relaxed) => {
                    self.takes(Step::System).await;
                    self.enter(State::System);
                    return pending().await;
                }
                Ok(None) => {}
                Err(error) => self.trouble(&format!("{error:#}")),
            }
            self.enter(State::Idle);
            self.takes(Step::Again).await;
            source = switch.boots();
        }
    }

    /// Asks the boot services; none: the disk is to be booted.
    async fn network(&self) -> Result<Option<BootConfig>> {
        let hardware = Hardware::number(self.number);
        let mac = hardware.boot_mac().hex();
        let uuid = &hardware.inventory.system.uuid;
        let url = format!("{}/{mac}/{uuid}", self.world.scripts);
        let turn = self.world.fetching.acquire().await?;
        let Script::Ramdisk { initrds, .. } = firmware::script_at(&Here, &url).await? else {
            return Ok(None);
        };
        drop(turn);
        self.enter(State::Loading);
        self.takes(Step::Load).await;
        if self.strikes(Fault::Boot) {
            anyhow::bail!("the ramdisk does not arrive, as requested");
        }
        let _turn = self.world.fetching.acquire().await?;
        firmware::archive(&Here, &initrds).await.map(Some)
    }

    async fn serve(&self, config: BootConfig, mode: BootMode) -> Ended {
        self.enter(State::Enrolling);
        let clock = Clock::told(config.time);
        let machine = Body {
            world: Arc::clone(&self.world),
            index: self.index,
            number: self.number,
            mode,
            luck: Arc::clone(&self.luck),
            installed: Arc::clone(&self.installed),
        };
        // It is large, and most servers are somewhere else most of the time.
        Box::pin(session::run(session::Context {
            config,
            clock,
            machine,
        }))
        .await
    }

    fn enter(&self, state: State) {
        self.world.tally.enter(self.index, state);
    }

    fn trouble(&self, what: &str) {
        self.world
            .tally
            .trouble(format!("server {}: {what}", self.number));
    }

    fn strikes(&self, fault: Fault) -> bool {
        strikes(&self.luck, fault)
    }

    async fn takes(&self, step: Step) {
        sleep(takes(step, self.number, self.world.scale)).await;
    }
}

fn strikes(luck: &Mutex<Luck>, fault: Fault) -> bool {
    luck.lock().unwrap_or_else(PoisonError::into_inner).strikes(fault)
}

/// The machine as its agent sees it.
struct Body {
    world: Arc<World>,
    index: usize,
    number: u32,
    mode: BootMode,
    luck: Arc<Mutex<Luck>>,
    installed: Arc<AtomicBool>,
}

impl Machine for Body {
    async fn identity(&mut self) -> Identity {
        Hardware::number(self.number).identity()
    }

    async fn inventory(&mut self) -> Inventory {
        self.world.tally.enter(self.index, State::Inspecting);
        sleep(takes(Step::Inventory, self.number, self.world.scale)).await;
        if strikes(&self.luck, Fault::Inventory) {
            self.world.tally.enter(self.index, State::Stuck);
            return pending().await;
        }
        let mut inventory = Hardware::laden(self.number, self.world.model).inventory();
        inventory.boot.mode = self.mode;
        inventory
    }

    fn work(&mut self, job: Job, work: Work) -> impl Future<Output = Result<(), Failed>> + Send + 'static {
        let (world, index, number) = (Arc::clone(&self.world), self.index, self.number);
        let installed = Arc::clone(&self.installed);
        let fails = strikes(&self.luck, Fault::Job).then(|| Failed {
            message: "the disk failed, as requested".to_owned(),
            failure: Failure::Temporary,
        });
        async move {
            world.tally.enter(index, State::Working);
            let (step, writes) = match &job {
                Job::Clean(_) => (Step::Clean, false),
                Job::Write { .. } => (Step::Write, true),
            };
            // Whatever was there is gone when the first byte is written.
            installed.store(false, Ordering::Relaxed);
            let takes = takes(step, number, world.scale);
            let pace = watch::Sender::new(work::Pace {
                takes: takes.max(Duration::ZERO),
                waits_at: None,
                fails,
            });
            let worked =
                work::carry_out(job, Hardware::laden(number, world.model), pace.subscribe(), work).await;
            installed.store(writes && worked.end.is_ok(), Ordering::Relaxed);
            world.tally.enter(index, State::Ready);
            worked.end
        }
    }

    /// Asked only while the agent polls, so its inventory is stored.
    async fn changed(&mut self) {
        self.world.tally.enter(self.index, State::Ready);
        pending::<()>().await;
    }

    fn log_lines(&self) -> Vec<String> {
        vec![format!("simulated server {} says nothing but this", self.number)]
    }
}
