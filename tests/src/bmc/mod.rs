//! A light BMC: Redfish (DMTF DSP0266) for machines that a test or a fleet simulates, thousands of them in one process.
//!
//! One [`Service`] is one listener with any number of systems. It has state and no machine: what happens to the power comes out of
//! a channel as [`Event`]s, so that a simulated server or a QEMU follows; what a machine does to itself goes in by
//! [`Service::went_off`] and [`Service::boots`]. Faults are injected by [`Rule`]s.

mod faults;
mod machines;
mod resources;
mod serve;
mod state;
mod tls;

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use muster_proto::Mac;
use tokio::{sync::mpsc, task::AbortHandle};

pub use faults::{Fault, Rule};
pub use machines::follow;
pub use state::{BootSource, Event, PowerState, What};
pub use tls::Authority;

use state::Machine;

/// How many requests are remembered.
const REMEMBERED: usize = 4096;

/// What a service is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The only user, and the password.
    pub user: (String, String),
    /// The names of its systems.
    pub systems: Vec<String>,
    /// The maker of all of them.
    pub manufacturer: String,
    /// The maker of the service; none: it does not say.
    pub vendor: Option<&'static str>,
    /// How many sessions may be open at once; none: the service has no sessions at all.
    pub sessions: Option<usize>,
    /// TLS; none: plain HTTP.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// ETags of systems.
    pub etags: Etags,
    /// When the power changes after it was asked for.
    pub change: Change,
    /// The reset types that a system takes, and where it says so.
    pub resets: Resets,
    /// What is special about writing the boot override.
    pub boot: BootQuirk,
    /// Whether `$expand` works.
    pub expand: bool,
    /// Whether an operating system obeys when it is asked to shut down.
    pub obeys: bool,
    /// Whether requests are remembered, for tests to look at.
    pub remember: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            user: ("admin".to_owned(), "secret".to_owned()),
            systems: vec!["1".to_owned()],
            manufacturer: "Muster".to_owned(),
            vendor: None,
            sessions: Some(16),
            tls: None,
            etags: Etags::Strong,
            change: Change::AtOnce,
            resets: Resets::Listed(vec![
                "On",
                "ForceOff",
                "GracefulShutdown",
                "ForceRestart",
                "GracefulRestart",
            ]),
            boot: BootQuirk::None,
            expand: false,
            obeys: true,
            remember: true,
        }
    }
}

/// ETags of systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Etags {
    /// None.
    None,
    /// Strong ones, which a change may name.
    Strong,
    /// Weak ones, which as such match nothing; without `W/` they do.
    Weak,
    /// Strong ones, which a change must name.
    Required,
    /// Some that no change may name.
    Broken,
    /// Some that match nothing, and a change must name one that does.
    BrokenRequired,
}

/// When the power changes after it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Before the answer.
    AtOnce,
    /// When the system was read so many times more; until then it is on its way.
    AfterReads(u32),
    /// After this time; until then it is on its way.
    After(Duration),
}

/// The reset types that a system takes, and where it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resets {
    /// In the system.
    Listed(Vec<&'static str>),
    /// In an ActionInfo.
    ActionInfo(Vec<&'static str>),
    /// Nowhere.
    Silent(Vec<&'static str>),
}

impl Resets {
    fn types(&self) -> &[&'static str] {
        match self {
            Resets::Listed(types) | Resets::ActionInfo(types) | Resets::Silent(types) => types,
        }
    }
}

/// What is special about writing the boot override.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootQuirk {
    /// Nothing.
    None,
    /// Target, enabled and mode, or it is refused.
    Whole,
    /// What is so already is refused.
    NoRepeats,
    /// `Continuous` is refused.
    OnlyOnce,
    /// There is no mode.
    NoMode,
    /// Modes are listed, and another one than it has is refused.
    FixedMode,
    /// It is written to a settings resource.
    Settings,
    /// The same, and what was written stays there when it is used up.
    StaleSettings,
    /// It is written to a settings resource, which shows none.
    EmptySettings,
    /// There is a settings resource, which takes nothing of the boot but its order.
    OrderInSettings,
    /// There is a settings resource, which shows an override and takes none.
    FixedSettings,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// From which address.
    pub from: IpAddr,
    /// Who asked.
    pub auth: Auth,
    /// `If-Match`.
    pub if_match: Option<String>,
    /// The content, if it was JSON.
    pub body: serde_json::Value,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Nobody said.
    None,
    /// User and password.
    Basic,
    /// A session.
    Token,
}

/// A running service; it ends with this.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    state: Mutex<State>,
    events: mpsc::UnboundedSender<Event>,
}

#[derive(Debug)]
struct State {
    user: (String, String),
    machines: HashMap<String, Machine>,
    /// Token to the session's number.
    sessions: HashMap<String, u64>,
    last_session: u64,
    rules: Vec<Rule>,
    seen: VecDeque<Seen>,
    /// How many requests are being answered now, and the most that were.
    busy: (usize, usize),
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere fails its own test; what it left here is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, events: Vec<Event>) {
        for event in events {
            // Nobody need listen.
            let _ = self.events.send(event);
        }
    }
}

impl Service {
    /// Serves on a free port of the loopback.
    pub fn start(options: Options) -> Result<(Service, mpsc::UnboundedReceiver<Event>)> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("bind a BMC")?;
        Service::on(listener, options)
    }

    /// Serves on `listener`, which may be one of another network namespace.
    pub fn on(listener: TcpListener, options: Options) -> Result<(Service, mpsc::UnboundedReceiver<Event>)> {
        listener
            .set_nonblocking(true)
            .context("make the listener non-blocking")?;
        let address = listener.local_addr().context("read the BMC's address")?;
        let listener = tokio::net::TcpListener::from_std(listener).context("listen as a BMC")?;
        let (events, receiver) = mpsc::unbounded_channel();
        let machines = options
            .systems
            .iter()
            .map(|name| (name.clone(), Machine::new(name)));
        let state = State {
            user: options.user.clone(),
            machines: machines.collect(),
            sessions: HashMap::new(),
            last_session: 0,
            rules: Vec::new(),
            seen: VecDeque::new(),
            busy: (0, 0),
        };
        let shared = Arc::new(Shared {
            options,
            state: Mutex::new(state),
            events,
        });
        let listener = tokio::spawn(serve::run(listener, Arc::clone(&shared))).abort_handle();
        let service = Service {
            shared,
            address,
            listener,
        };
        Ok((service, receiver))
    }

    /// Where it listens.
    pub fn socket(&self) -> SocketAddr {
        self.address
    }

    /// What stands in `spec.bmc.address` for `system`, of a scheme such as `redfish`; without a system it is the only one.
    pub fn address(&self, scheme: &str, system: Option<&str>) -> String {
        let plain = if self.shared.options.tls.is_some() {
            ""
        } else {
            "+http"
        };
        let path = system
            .map(|system| format!("/redfish/v1/Systems/{system}"))
            .unwrap_or_default();
        format!("{scheme}{plain}://{}{path}", self.address)
    }

    /// One more system, off.
    pub fn add(&self, system: &str) {
        self.shared
            .state()
            .machines
            .insert(system.to_owned(), Machine::new(system));
    }

    /// From now on `system` has this SMBIOS UUID, as the machine behind it has.
    pub fn identify(&self, system: &str, uuid: &str) {
        if let Some(machine) = self.shared.state().machines.get_mut(system) {
            uuid.clone_into(&mut machine.uuid);
        }
    }

    /// The same, and the serial number and a NIC.
    pub fn describe(&self, system: &str, uuid: &str, serial: &str, nic: Mac) {
        self.identify(system, uuid);
        if let Some(machine) = self.shared.state().machines.get_mut(system) {
            serial.clone_into(&mut machine.serial);
            machine.mac = nic.0;
        }
    }

    /// A system less.
    pub fn remove(&self, system: &str) {
        self.shared.state().machines.remove(system);
    }

    /// How the power of `system` really is; off for one that there is not.
    pub fn power(&self, system: &str) -> PowerState {
        self.shared
            .state()
            .machines
            .get(system)
            .map_or(PowerState::Off, Machine::power)
    }

    /// The machine switched itself off, or was switched off by hand.
    pub fn went_off(&self, system: &str) {
        self.of(system, Machine::went_off);
    }

    /// The machine was switched on by hand.
    pub fn went_on(&self, system: &str) {
        self.of(system, Machine::went_on);
    }

    /// Its operating system restarts it, as it was asked to.
    pub fn restarted(&self, system: &str) {
        self.of(system, Machine::restarted);
    }

    /// The machine restarts by itself: what does it boot? Uses up an override that counts once.
    pub fn boots(&self, system: &str) -> BootSource {
        let mut state = self.shared.state();
        state
            .machines
            .get_mut(system)
            .map(Machine::boots)
            .unwrap_or_default()
    }

    /// What would be booted next, without booting.
    pub fn armed(&self, system: &str) -> BootSource {
        let state = self.shared.state();
        state.machines.get(system).map(Machine::armed).unwrap_or_default()
    }

    fn of(&self, system: &str, change: impl FnOnce(&mut Machine) -> Vec<Event>) {
        let events = self.shared.state().machines.get_mut(system).map(change);
        self.shared.tell(events.unwrap_or_default());
    }

    /// Other credentials from now on; open sessions end.
    pub fn set_user(&self, user: &str, password: &str) {
        let mut state = self.shared.state();
        state.user = (user.to_owned(), password.to_owned());
        state.sessions.clear();
    }

    /// All sessions end, as after a restart of the BMC.
    pub fn expire_sessions(&self) {
        self.shared.state().sessions.clear();
    }

    /// How many sessions are open.
    pub fn open_sessions(&self) -> usize {
        self.shared.state().sessions.len()
    }

    /// From now on `rule` counts, before those that are there.
    pub fn inject(&self, rule: Rule) {
        self.shared.state().rules.insert(0, rule);
    }

    /// No rule counts any more.
    pub fn heal(&self) {
        self.shared.state().rules.clear();
    }

    /// The requests since the last time that this was called.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.drain(..).collect()
    }

    /// The most requests that it ever answered at the same time.
    pub fn most_at_once(&self) -> usize {
        self.shared.state().busy.1
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.listener.abort();
    }
}
