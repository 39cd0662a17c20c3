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
    /// True once everything that was plugged in at the start has been found.
    pub settled: bool,
    /// Grows with every disk or network interface that comes or goes after that.
    pub changes: u64,
}

/// Kernel modules could not be looked after.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
/// Ends only with [`Error::Listen`].
pub async fn run(root: Root, extra: &[&str], devices: watch::Sender<Devices>) -> Result<(), Error> {
    let events = Uevents::open().map_err(|source| Error::Listen { source })?;
    let directory = root.modules(kernel_release());
    let (index, present) = {
        let (root, directory) = (root.clone(), directory.clone());
        // The sysfs walk and the parsing run while the main thread brings up what is built into the kernel.
        tokio::task::spawn_blocking(move || (read_index(&directory), walk::modaliases(&root)))
            .await
            .expect("the walk does not panic")
    };
    let (ended_tx, ended_rx) = mpsc::unbounded_channel();
    let mut loading = Loading {
        root,
        directory,
        schedule: Schedule::new(index),
        limit: std::thread::available_parallelism().map_or(1, usize::from).min(PARALLEL),
        seen: HashSet::new(),
        loaded: 0,
        failed: 0,
        ended_tx,
        started: Instant::now(),
        heard: Instant::now(),
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
    nix::sys::utsname::uname().map(|name| PathBuf::from(name.release())).unwrap_or_default()
}

fn read_index(directory: &Path) -> Index {
    let read = |file: &str| match sys::head(&directory.join(file), INDEX_LIMIT) {
        Ok(bytes) => String::from_utf8(bytes).unwrap_or_default(),
        Err(_) => String::new(),
    };
    Index::parse(&read("modules.dep"), &read("modules.alias"), &read("modules.softdep"))
}

type Ended = (Start, Result<Fate, Error>);

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
}

impl Loading {
    async fn follow(
        &mut self,
        events: &Uevents,
        mut ended: mpsc::UnboundedReceiver<Ended>,
        devices: &watch::Sender<Devices>,
    ) -> Result<(), Error> {
        loop {
            self.start_ready();
            let patience = if devices.borrow().settled { None } else { Some(self.patience()) };
            tokio::select! {
                biased;
                Some((start, result)) = ended.recv() => self.loaded(&start, &result),
                heard = events.next() => self.heard(heard.map_err(|source| Error::Listen { source })?, devices),
                () = pause(patience) => {
                    if self.is_settled() {
                        tracing::info!(step = "modules", loaded = self.loaded, failed = self.failed);
                        devices.send_modify(|devices| devices.settled = true);
                    }
                }
            }
        }
    }

    fn start_ready(&mut self) {
        while let Some(start) = self.schedule.next(self.limit) {
            let (ended, path) = (self.ended_tx.clone(), self.directory.join(&*start.path));
            tokio::task::spawn_blocking(move || {
                let result = load(&start.name, &path);
                // Nobody listens any more: the machine goes down.
                _ = ended.send((start, result));
            });
        }
    }

    fn loaded(&mut self, start: &Start, result: &Result<Fate, Error>) {
        self.heard = Instant::now();
        self.schedule.ended(start.entry);
        match result {
            Ok(Fate::Loaded) => self.loaded += 1,
            Ok(Fate::NotNeeded) => {}
            Err(error) => {
                self.failed += 1;
                tracing::warn!("{}", crate::console::Chain(error));
            }
        }
    }

    fn heard(&mut self, heard: Heard, devices: &watch::Sender<Devices>) {
        self.heard = Instant::now();
        match heard {
            Heard::Event(event) => {
                if event.action == "add" && !event.modalias.is_empty() {
                    self.device(event.modalias.clone());
                }
                if event.changes_hardware() && devices.borrow().settled {
                    devices.send_modify(|devices| devices.changes += 1);
                }
            }
            Heard::Lost => {
                for modalias in walk::modaliases(&self.root) {
                    self.device(modalias);
                }
                if devices.borrow().settled {
                    devices.send_modify(|devices| devices.changes += 1);
                }
            }
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
    fn patience(&self) -> Duration {
        let to_deadline = settle::DEADLINE.saturating_sub(self.started.elapsed());
        if self.schedule.is_idle() {
            let quiet = self.heard.elapsed();
            let short = settle::QUIET.saturating_sub(quiet);
            let long = settle::EMPTY_HOST.saturating_sub(quiet);
            to_deadline.min(if short.is_zero() { long } else { short })
        } else {
            to_deadline
        }
    }

    fn is_settled(&self) -> bool {
        let quiet = self.heard.elapsed();
        let found = self.schedule.is_idle() && quiet >= settle::QUIET && quiet >= settle::quiet_needed(&self.root);
        if !found && self.started.elapsed() >= settle::DEADLINE {
            tracing::warn!("devices still appear after {} s; the inventory is taken now", settle::DEADLINE.as_secs());
            return true;
        }
        found
    }
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

fn load(name: &Name, path: &Path) -> Result<Fate, Error> {
    let failed = |source: io::Error| Error::Load { name: name.clone(), source };
    let file = File::open(path).map_err(failed)?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) => Ok(Fate::Loaded),
        Err(Errno::EEXIST | Errno::ENODEV) => Ok(Fate::NotNeeded),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Waits until `devices` says settled, at most until every sender is gone.
pub async fn settled(devices: &mut watch::Receiver<Devices>) {
    _ = devices.wait_for(|devices| devices.settled).await;
}
