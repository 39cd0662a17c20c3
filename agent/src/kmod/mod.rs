//! Kernel modules: loads what the present devices need, until nothing more loads, and tells when all devices are found.
//!
//! The kernel says by uevents which devices come; the tree of devices is walked once, behind the open socket, so that none
//! is missed. Modules load on threads of their own, because a driver may take seconds to find its hardware.

pub mod index;
pub mod pattern;
pub mod schedule;
pub mod settle;
pub mod uevent;
pub mod walk;

use std::{
    collections::HashSet,
    fs::File,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use muster_proto::Chain;
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
};
use tokio::sync::{mpsc, watch};

use crate::sys::{self, Root};
use index::{Index, Name};
use schedule::{Schedule, Start};
use uevent::{Heard, Uevents};

/// The largest index file that is read, in bytes; Debian's largest full one has 1.3 MB.
const INDEX_LIMIT: u64 = 32 << 20;

/// The most modules that load at the same time.
const PARALLEL: usize = 8;

/// What is known of the machine's devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// True if everything seems to have been found: worth beginning the inventory, which may turn out to be too early.
    pub calm: bool,
    /// True once everything that was plugged in at the start has been found.
    pub settled: bool,
    /// Grows with everything that happens before that, then with every disk or network interface that comes or goes.
    pub changes: u64,
    /// The modules that were not loaded by then and are not yet: what they find is missing.
    pub loading: Vec<Name>,
}

impl Devices {
    /// All is found that is waited for; `loading` are the modules that are waited for no longer.
    fn settle(&mut self, loading: Vec<Name>) {
        (self.calm, self.settled) = (true, true);
        self.loading = loading;
    }

    /// The module `name` is loaded, or will never be; true if it was waited for no longer.
    fn loaded(&mut self, name: &Name) -> bool {
        let before = self.loading.len();
        self.loading.retain(|loading| loading != name);
        self.loading.len() < before
    }
}

/// Kernel modules could not be looked after.
#[derive(Debug, thiserror::Error)]
pub enum KmodError {
    /// The uevent socket failed.
    #[error("listen to the kernel's device events")]
    Listen {
        /// Why.
        source: io::Error,
    },
    /// One module was not loaded.
    #[error("load kernel module {name}")]
    Load {
        /// Which.
        name: Name,
        /// Why.
        source: io::Error,
    },
}

/// Loads modules for as long as the machine runs; `devices` tells the others. `extra` names modules that no device asks for.
///
/// # Errors
/// Ends only with [`KmodError::Listen`].
pub async fn run(root: Root, extra: &[&str], devices: watch::Sender<Devices>) -> Result<(), KmodError> {
    let events = Uevents::open().map_err(|source| KmodError::Listen { source })?;
    let directory = root.modules(kernel_release());
    // On this thread, although it blocks: nothing else can happen before the first driver is there.
    let started = Instant::now();
    let index = read_index(&directory);
    let read = started.elapsed();
    let present = walk::modaliases(&root);
    let walk = started.elapsed() - read;
    tracing::debug!(index = ?read, ?walk, modules = index.len(), devices = present.len());
    let (ended_tx, ended_rx) = mpsc::unbounded_channel();
    let mut loading = Loading {
        root,
        directory,
        schedule: Schedule::new(index),
        limit: std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(PARALLEL),
        seen: HashSet::new(),
        loaded: 0,
        failed: 0,
        ended_tx,
        started: Instant::now(),
        heard: Instant::now(),
        loaded_at: Instant::now(),
    };
    for modalias in present {
        loading.device(modalias);
    }
    for name in extra {
        loading.schedule.want(name);
    }
    loading.follow(&events, ended_rx, &devices).await
}

/// `uname -r`
fn kernel_release() -> PathBuf {
    nix::sys::utsname::uname()
        .map(|name| PathBuf::from(name.release()))
        .unwrap_or_default()
}

fn read_index(directory: &Path) -> Index {
    let read = |file: &str| match sys::head(&directory.join(file), INDEX_LIMIT) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            // Without its drivers the machine may never be heard of: the console must say why.
            tracing::error!("{}; some drivers may not be loaded", Chain(&error));
            String::new()
        }
    };
    Index::parse(
        &read("modules.dep"),
        &read("modules.alias"),
        &read("modules.softdep"),
    )
}

type Ended = (Start, Result<Fate, KmodError>);

struct Loading {
    root: Root,
    directory: PathBuf,
    schedule: Schedule,
    limit: usize,
    seen: HashSet<String>,
    loaded: usize,
    failed: usize,
    ended_tx: mpsc::UnboundedSender<Ended>,
    started: Instant,
    /// When something last happened.
    heard: Instant,
    /// When a module was loaded last.
    loaded_at: Instant,
}

impl Loading {
    async fn follow(
        &mut self,
        events: &Uevents,
        mut ended: mpsc::UnboundedReceiver<Ended>,
        devices: &watch::Sender<Devices>,
    ) -> Result<(), KmodError> {
        loop {
            self.start_ready();
            let patience = if devices.borrow().settled {
                None
            } else {
                Some(self.patience(devices.borrow().calm))
            };
            tokio::select! {
                biased;
                Some((start, result)) = ended.recv() => self.loaded(&start, &result, devices),
                heard = events.next() => self.heard(heard.map_err(|source| KmodError::Listen { source })?, devices),
                () = pause(patience) => {
                    if self.is_settled() {
                        // When the last device came is what a reader cannot know otherwise.
                        let quiet_ms = self.heard.elapsed().as_millis();
                        tracing::info!(step = "modules", loaded = self.loaded, failed = self.failed, quiet_ms);
                        devices.send_modify(|devices| devices.settle(self.schedule.unfinished()));
                    } else if !devices.borrow().calm && self.is_quiet(settle::CALM) {
                        devices.send_modify(|devices| devices.calm = true);
                    }
                }
            }
        }
    }

    fn start_ready(&mut self) {
        while let Some(start) = self.schedule.next(self.limit) {
            let (ended, path) = (self.ended_tx.clone(), self.directory.join(&*start.path));
            tokio::task::spawn_blocking(move || {
                let started = Instant::now();
                let result = load(&start.name, &path);
                tracing::debug!(module = %start.name, took = ?started.elapsed(), ?result);
                // Nobody listens any more: the machine goes down.
                _ = ended.send((start, result));
            });
        }
    }

    fn loaded(&mut self, start: &Start, result: &Result<Fate, KmodError>, devices: &watch::Sender<Devices>) {
        self.stirred(devices);
        self.loaded_at = self.heard;
        self.schedule.ended(start.entry);
        devices.send_if_modified(|devices| devices.loaded(&start.name));
        match result {
            Ok(Fate::Loaded) => self.loaded += 1,
            Ok(Fate::NotNeeded) => {}
            Err(error) => {
                self.failed += 1;
                tracing::warn!("{}", Chain(error));
            }
        }
    }

    fn heard(&mut self, heard: Heard, devices: &watch::Sender<Devices>) {
        self.stirred(devices);
        let changes = match heard {
            Heard::Event(event) => {
                let changes = event.changes_hardware();
                if let Some(module) = event.live_module() {
                    self.schedule.live(module);
                }
                if event.action == "add" && !event.modalias.is_empty() {
                    self.device(event.modalias);
                }
                changes
            }
            Heard::Lost => {
                let running: Vec<Name> = self.schedule.running().cloned().collect();
                for module in running.iter().filter(|module| is_live(&self.root, module)) {
                    self.schedule.live(module);
                }
                for modalias in walk::modaliases(&self.root) {
                    self.device(modalias);
                }
                true
            }
        };
        if changes && devices.borrow().settled {
            devices.send_modify(|devices| devices.changes += 1);
        }
    }

    /// Something happened: it is not all found yet.
    fn stirred(&mut self, devices: &watch::Sender<Devices>) {
        self.heard = Instant::now();
        if !devices.borrow().settled {
            devices.send_modify(|devices| {
                devices.calm = false;
                devices.changes += 1;
            });
        }
    }

    fn device(&mut self, modalias: String) {
        // A disk shelf has hundreds of devices of one kind.
        if !self.seen.contains(&modalias) {
            self.schedule.want_device(&modalias);
            self.seen.insert(modalias);
        }
    }

    /// How long to wait for the next thing to happen before asking again whether all is found.
    fn patience(&self, calm: bool) -> Duration {
        let to_deadline = self.deadline().saturating_sub(self.started.elapsed());
        if !self.schedule.is_idle() {
            return to_deadline;
        }
        let quiet = self.heard.elapsed();
        let next = [settle::CALM, settle::QUIET, settle::EMPTY_HOST]
            .into_iter()
            .skip(usize::from(calm));
        next.map(|needed| needed.saturating_sub(quiet))
            .find(|rest| !rest.is_zero())
            .unwrap_or_default()
            .min(to_deadline)
    }

    fn is_quiet(&self, needed: Duration) -> bool {
        self.schedule.is_idle() && self.heard.elapsed() >= needed
    }

    fn is_settled(&self) -> bool {
        let found = self.is_quiet(settle::QUIET) && self.is_quiet(settle::quiet_needed(&self.root));
        let deadline = self.deadline();
        if !found && self.started.elapsed() >= deadline {
            tracing::warn!(
                loading = ?self.schedule.unfinished(),
                "devices are still appearing after {} s; the inventory is taken now",
                deadline.as_secs()
            );
            return true;
        }
        found
    }

    fn deadline(&self) -> Duration {
        if !self.schedule.is_idle() {
            return settle::LOADING;
        }
        // What the last driver found has its time to appear, too.
        let loaded = self.loaded_at.saturating_duration_since(self.started);
        settle::DEADLINE.max(loaded.min(settle::LOADING) + settle::EMPTY_HOST)
    }
}

/// True if the kernel has the module: its `init` has run.
fn is_live(root: &Root, module: &str) -> bool {
    let state = sys::text(&root.sys(format!("module/{module}/initstate")));
    state.is_ok_and(|state| state == "live")
}

async fn pause(patience: Option<Duration>) {
    match patience {
        // A timer fires up to one millisecond early or late; never spin on it.
        Some(patience) => tokio::time::sleep(patience.max(Duration::from_millis(1))).await,
        None => std::future::pending().await,
    }
}

/// How loading a module ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Loaded,
    /// Loaded already, or its hardware is not there.
    NotNeeded,
}

fn load(name: &Name, path: &Path) -> Result<Fate, KmodError> {
    let failed = |source: io::Error| KmodError::Load {
        name: name.clone(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) => Ok(Fate::Loaded),
        Err(Errno::EEXIST | Errno::ENODEV) => Ok(Fate::NotNeeded),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Waits until all devices are found; for ever if nobody looks for them.
pub async fn settled(devices: &mut watch::Receiver<Devices>) {
    if devices.wait_for(|devices| devices.settled).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{console::Console, sys::tree::Tree};

    #[test]
    fn a_ramdisk_whose_modules_cannot_be_found_says_so() {
        let tree = Tree::new().file("lib/modules/6.1/modules.dep", b"kernel/a.ko:\nkernel/\xff.txt\n");
        let console = Console::of_the_kernel(&tree.root());
        let index = |release: &str| {
            tracing::subscriber::with_default(console.clone(), || read_index(&tree.root().modules(release)))
        };
        assert_eq!(index("6.1").len(), 1);
        let said = |file: &str| console.recent().iter().filter(|line| line.contains(file)).count();
        assert_eq!((said("6.1/modules.dep"), said("6.1/modules.alias")), (0, 1));
        assert!(index("6.2").is_empty());
        assert_eq!(said("6.2/modules.dep"), 1);
    }

    #[test]
    fn a_module_that_is_waited_for_no_longer_is_known_until_it_is_loaded() {
        let name = |name: &str| Name::from(name);
        let mut devices = Devices::default();
        assert!(!devices.loaded(&name("ahci")), "in time");
        devices.settle(vec![name("mpt3sas"), name("qla2xxx")]);
        assert!(devices.settled && devices.calm);
        assert!(devices.loaded(&name("qla2xxx")));
        assert!(!devices.loaded(&name("qla2xxx")), "once");
        assert_eq!(devices.loading, [name("mpt3sas")]);
    }
}
