//! A simulated server: real packets of its firmware, then the agent's own session over real TLS; only the hardware is made up.
//!
//! ```text
//! On --DHCP--> Leased --script--> Scripted --archive--> Configured --enrolled--> Enrolled --inventory stored--> Reported
//!  ^ silence, the way to an empty disk, a file that does not come, a reboot |
//!  +-----------------------------------------------------------------------+        refused for good --> Refused
//! ```
//! Its agent carries out jobs in the way of [`super::work`]. Switched off by one, it is [`Step::Off`] until someone switches it on.
//!
//! A test may stop it at any of these steps, look or break something, and let it go on.

use std::{future::pending, time::Duration};

use anyhow::{Context, Result, bail};
use muster_agent::{
    clock::Clock,
    session::{self, Ended, Machine},
    steps::{Failed, Job},
    work::Work,
};
use muster_proto::{config::BootConfig, identity::Identity, inventory::Inventory};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Clients,
    firmware::{self, Script},
    hardware::Hardware,
    work::{self, Pace, Worked},
};

/// How long firmware asks for an address before it begins anew: two of iPXE's questions.
const DHCP: Duration = Duration::from_millis(3500);
/// How long firmware takes to begin anew. Real one takes longer; without any pause it would only keep a core busy.
const AGAIN: Duration = Duration::from_millis(200);

/// How far a server has come since it was last switched on or began anew; in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Without power.
    #[default]
    Off,
    /// Its firmware asks for an address.
    On,
    /// It has an address and a script to fetch.
    Leased,
    /// It has the script.
    Scripted,
    /// It has the archive of its boot; its agent may start.
    Configured,
    /// Its agent has a certificate and collects the inventory.
    Enrolled,
    /// The controller has stored the inventory; the agent polls.
    Reported,
    /// The controller refuses its session for good. A real one would boot again after a minute; this one waits for a person.
    Refused,
}

/// What can be seen of a server from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How far it is.
    pub step: Step,
    /// How often it has begun to boot.
    pub boots: u32,
    /// How many of its inventories were stored.
    pub reports: u32,
    /// The last thing that went wrong, in words.
    pub trouble: String,
}

/// A server; switched off when dropped.
#[derive(Debug)]
pub struct SimServer {
    clients: Clients,
    runtime: Handle,
    hardware: watch::Sender<Hardware>,
    seen: watch::Sender<Seen>,
    /// The last step that it may take.
    until: watch::Sender<Step>,
    pace: watch::Sender<Pace>,
    worked: watch::Sender<Vec<Worked>>,
    life: Option<tokio::task::AbortHandle>,
}

impl SimServer {
    pub(super) fn new(clients: Clients, runtime: Handle, hardware: Hardware) -> SimServer {
        SimServer {
            clients,
            runtime,
            hardware: watch::Sender::new(hardware),
            seen: watch::Sender::default(),
            until: watch::Sender::new(Step::Refused),
            pace: watch::Sender::default(),
            worked: watch::Sender::default(),
            life: None,
        }
    }

    /// What it is made of now.
    pub fn hardware(&self) -> Hardware {
        self.hardware.borrow().clone()
    }

    /// Changes its hardware. A running agent notices, as it notices a disk that is plugged.
    pub fn change(&self, change: impl FnOnce(&mut Hardware)) {
        self.hardware.send_modify(change);
    }

    /// Switches it on: it boots from the network.
    pub fn power_on(&mut self) {
        self.start(None);
    }

    /// Switches it on past its firmware: its agent starts with `config`, whomever that was made for.
    pub fn power_on_with(&mut self, config: BootConfig) {
        self.start(Some(config));
    }

    fn start(&mut self, config: Option<BootConfig>) {
        self.power_off();
        let life = Life {
            clients: self.clients.clone(),
            hardware: self.hardware.subscribe(),
            seen: self.seen.clone(),
            until: self.until.subscribe(),
            pace: self.pace.subscribe(),
            worked: self.worked.clone(),
        };
        self.life = Some(self.runtime.spawn(life.live(config)).abort_handle());
    }

    /// Cuts the power: its connections end, and nobody says goodbye.
    pub fn power_off(&mut self) {
        if let Some(life) = self.life.take() {
            life.abort();
        }
        self.seen.send_modify(|seen| seen.step = Step::Off);
    }

    /// It goes as far as `step` and waits there.
    pub fn stop_at(&self, step: Step) {
        self.until.send_replace(step);
    }

    /// It goes on as far as it gets.
    pub fn go_on(&self) {
        self.until.send_replace(Step::Refused);
    }

    /// Its jobs go like this from now on.
    pub fn works(&self, pace: Pace) {
        self.pace.send_replace(pace);
    }

    /// The jobs that have ended, over all its boots.
    pub fn worked(&self) -> Vec<Worked> {
        self.worked.borrow().clone()
    }

    /// True if an image was written to it and not cleaned since; without one, its firmware goes on to the network.
    pub fn has_system(&self) -> bool {
        let worked = self.worked.borrow();
        let last = worked.iter().rev().find(|worked| worked.end.is_ok());
        last.is_some_and(|worked| matches!(worked.job, Job::Write { .. }))
    }

    /// What these jobs were, each in a word: `clean` or `write`.
    pub fn kinds_of_work(&self) -> Vec<&'static str> {
        let kind = |worked: &Worked| match worked.job {
            Job::Clean(_) => "clean",
            Job::Write { .. } => "write",
        };
        self.worked.borrow().iter().map(kind).collect()
    }

    /// What can be seen of it.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until it is at `step` or past it.
    pub async fn reaches(&self, step: Step, within: Duration) -> Result<Seen> {
        self.shows(&format!("reach {step:?}"), within, |seen| seen.step >= step)
            .await
    }

    /// Waits until `test` holds; `what` it should do stands in the error.
    pub async fn shows(&self, what: &str, within: Duration, test: impl Fn(&Seen) -> bool) -> Result<Seen> {
        let mut seen = self.seen.subscribe();
        match timeout(within, seen.wait_for(test)).await {
            Ok(Ok(seen)) => Ok(seen.clone()),
            // The sender lives in what we hold.
            Ok(Err(_)) => bail!("the server is gone"),
            Err(_) => bail!(
                "server {} did not {what} within {within:?}: {:?}",
                self.hardware().boot_mac(),
                self.seen()
            ),
        }
    }

    /// Boots it as far as the archive and returns what was in it; its agent never runs.
    pub async fn steal_config(&self, within: Duration) -> Result<BootConfig> {
        let (clients, hardware) = (self.clients.clone(), self.hardware());
        let boot = async move {
            loop {
                match boot(&clients, &hardware).await {
                    Ok(config) => return config,
                    Err(_) => sleep(AGAIN).await,
                }
            }
        };
        timeout(within, self.runtime.spawn(boot))
            .await
            .with_context(|| format!("no boot archive within {within:?}"))?
            .context("the rack ended")
    }
}

impl Drop for SimServer {
    fn drop(&mut self) {
        self.power_off();
    }
}

/// From power-on to the archive, without stops.
async fn boot(clients: &Clients, hardware: &Hardware) -> Result<BootConfig> {
    let lease = firmware::lease(clients, hardware, DHCP).await?;
    match firmware::script(clients, &lease).await? {
        Script::Ramdisk { initrds, .. } => firmware::archive(clients, &initrds).await,
        Script::Disk => bail!("it is told to boot its disk"),
    }
}

/// What runs between power-on and power-off.
struct Life {
    clients: Clients,
    hardware: watch::Receiver<Hardware>,
    seen: watch::Sender<Seen>,
    until: watch::Receiver<Step>,
    pace: watch::Receiver<Pace>,
    worked: watch::Sender<Vec<Worked>>,
}

impl Life {
    async fn live(self, mut config: Option<BootConfig>) {
        loop {
            self.seen.send_modify(|seen| {
                seen.step = Step::On;
                seen.boots += 1;
            });
            let booted = match config.take() {
                Some(config) => Ok(config),
                None => self.boot().await,
            };
            let trouble = match booted {
                Ok(config) => match self.serve(config).await {
                    Ended::Reboot => continue,
                    Ended::PowerOff => {
                        self.enter(Step::Off);
                        return;
                    }
                    ended => {
                        self.trouble(format!("{ended:?}"));
                        self.enter(Step::Refused);
                        return pending().await;
                    }
                },
                Err(error) => format!("{error:#}"),
            };
            self.trouble(trouble);
            sleep(AGAIN).await;
        }
    }

    async fn boot(&self) -> Result<BootConfig> {
        self.may_pass(Step::On).await;
        let hardware = self.hardware.borrow().clone();
        let lease = firmware::lease(&self.clients, &hardware, DHCP).await?;
        if lease.file.is_none() {
            // As long as it would have asked in vain.
            sleep(DHCP).await;
            bail!("it is told to boot its disk, and that is empty");
        }
        self.enter(Step::Leased);
        self.may_pass(Step::Leased).await;
        let script = firmware::script(&self.clients, &lease).await?;
        self.enter(Step::Scripted);
        self.may_pass(Step::Scripted).await;
        let Script::Ramdisk { initrds, .. } = script else {
            bail!("it is told to boot its disk, and that is empty");
        };
        firmware::archive(&self.clients, &initrds).await
    }

    async fn serve(&self, config: BootConfig) -> Ended {
        self.enter(Step::Configured);
        self.may_pass(Step::Configured).await;
        let clock = Clock::told(config.time);
        let machine = Body {
            hardware: self.hardware.clone(),
            seen: self.seen.clone(),
            until: self.until.clone(),
            pace: self.pace.clone(),
            worked: self.worked.clone(),
        };
        // It is large, and most servers are somewhere else most of the time.
        let session = session::run(session::Context {
            config,
            clock,
            machine,
        });
        Box::pin(session).await
    }

    fn enter(&self, step: Step) {
        self.seen.send_modify(|seen| seen.step = step);
    }

    fn trouble(&self, trouble: String) {
        self.seen.send_modify(|seen| seen.trouble = trouble);
    }

    async fn may_pass(&self, step: Step) {
        may_pass(&self.until, step).await;
    }
}

/// Waits until the test lets it go further than `step`.
async fn may_pass(until: &watch::Receiver<Step>, step: Step) {
    let mut until = until.clone();
    if until.wait_for(|until| *until > step).await.is_err() {
        // The server was thrown away.
        pending::<()>().await;
    }
}

/// The machine as its agent sees it.
#[derive(Debug)]
struct Body {
    hardware: watch::Receiver<Hardware>,
    seen: watch::Sender<Seen>,
    until: watch::Receiver<Step>,
    pace: watch::Receiver<Pace>,
    worked: watch::Sender<Vec<Worked>>,
}

impl Machine for Body {
    async fn identity(&mut self) -> Identity {
        self.hardware.borrow().identity()
    }

    async fn inventory(&mut self) -> Inventory {
        self.seen.send_modify(|seen| seen.step = Step::Enrolled);
        may_pass(&self.until, Step::Enrolled).await;
        self.hardware.borrow_and_update().inventory()
    }

    fn work(&mut self, job: Job, work: Work) -> impl Future<Output = Result<(), Failed>> + Send + 'static {
        let (hardware, pace) = (self.hardware.borrow().clone(), self.pace.clone());
        let worked = self.worked.clone();
        async move {
            let ended = work::carry_out(job, hardware, pace, work).await;
            let end = ended.end.clone();
            worked.send_modify(|worked| worked.push(ended));
            end
        }
    }

    fn log_lines(&self) -> Vec<String> {
        vec!["a simulated agent says nothing but this".to_owned()]
    }

    /// Asked only while the agent polls, so its first inventory is stored.
    async fn changed(&mut self) {
        self.seen.send_if_modified(|seen| {
            let reports = seen.step == Step::Enrolled;
            if reports {
                seen.step = Step::Reported;
                seen.reports += 1;
            }
            reports
        });
        if self.hardware.changed().await.is_err() {
            // The server was thrown away.
            pending::<()>().await;
        }
    }
}
