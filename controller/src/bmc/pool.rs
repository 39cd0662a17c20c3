//! The line in front of each system of a BMC: one call at a time, not too many over all, nothing in vain, nothing of the past. Of several
//! systems of one BMC, as in a chassis, each has its own line and its own pauses: credentials that it refuses are tried once for each.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    Access, BmcError, Boot, Connection, Done, Driver, Epoch, HostRef, Metrics, Permission, Probe, Reset,
    SystemState, Term, Transport,
    address::Place,
    pause::{Pause, Pauses},
    redfish::{Limits, Means, Redfish, Trust},
    term::Fence,
};
use crate::sync::lock;

/// Limits of the whole, with defaults for slow BMCs.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many calls run at once, over all BMCs. Each has a connection of some 50 KB with TLS.
    pub concurrent: usize,
    /// How long name, TCP and TLS may take.
    pub connect: Duration,
    /// How long one request may take; a call makes a few.
    pub request: Duration,
    /// How long a call may take from when it has its turn, and how long it waits for that.
    pub call: Duration,
    /// The most bytes that are read of one answer. As JSON values in memory they may take a hundred times as much, in each of the calls
    /// that run at once.
    pub body: usize,
    /// The pause after a first failure; it doubles.
    pub first_pause: Duration,
    /// The longest pause. Those that are gone must not keep the places of those that are there: so many BMCs may be gone as
    /// `concurrent * longest_pause / connect` says, some thousands.
    pub longest_pause: Duration,
    /// Authorities that count beside the system's.
    pub authorities: Vec<CertificateDer<'static>>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            concurrent: 256,
            connect: Duration::from_secs(10),
            request: Duration::from_secs(30),
            call: Duration::from_secs(90),
            body: 256 << 10,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(120),
            authorities: Vec::new(),
        }
    }
}

/// How long [`Bmcs::stop`] may take to end sessions.
const GRACE: Duration = Duration::from_secs(4);

/// How many sessions are ended at once.
pub(crate) const ENDING: usize = 256;

/// All BMCs. Cheap to clone. What it holds of each is a few hundred bytes; connections last as long as a call.
#[derive(Clone)]
pub struct Bmcs(Arc<Inner>);

struct Inner {
    means: Means,
    call: Duration,
    pauses: Pauses,
    permits: Semaphore,
    fence: Arc<Fence>,
    stopped: AtomicBool,
    known: Mutex<Known>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Known {
    /// With the number of hosts that have it.
    lines: HashMap<Key, (Arc<Line>, usize)>,
    /// By the host's UID: which line is its.
    hosts: HashMap<String, Key>,
}

/// Which system of which BMC.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    driver: Driver,
    transport: Transport,
    place: Place,
    port: u16,
    system: Option<String>,
}

/// One system of one BMC.
struct Line {
    /// Held during a call.
    turn: tokio::sync::Mutex<Box<dyn Connection>>,
    pause: Mutex<Option<Pause<Instant>>>,
    /// No host has it any more: whoever still waits for a turn closes up behind himself.
    is_closed: AtomicBool,
}

impl std::fmt::Debug for Bmcs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bmcs({})", lock(&self.0.known).lines.len())
    }
}

/// What is done once a call has its turn.
type Work<T> =
    Box<dyn for<'a> FnOnce(&'a mut dyn Connection, &'a Access) -> BoxFuture<'a, Result<T, BmcError>> + Send>;

impl Bmcs {
    /// None yet; each is made when it is first asked.
    ///
    /// # Errors
    /// rustls', for what is no certificate among the authorities.
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Result<Bmcs, rustls::Error> {
        Ok(Bmcs(Arc::new(Inner {
            means: Means {
                trust: Arc::new(Trust::new(&config.authorities)?),
                limits: Limits {
                    connect: config.connect,
                    request: config.request,
                    body: config.body,
                },
            },
            call: config.call,
            pauses: Pauses {
                first: config.first_pause,
                longest: config.longest_pause,
            },
            permits: Semaphore::new(config.concurrent),
            fence: Arc::default(),
            stopped: AtomicBool::new(false),
            known: Mutex::default(),
            metrics,
        })))
    }

    /// A first look: proves that the address, the certificate and the credentials are right and that the system is there.
    ///
    /// # Errors
    /// Why it could not be had.
    pub async fn probe(&self, access: &Access) -> Result<Probe, BmcError> {
        self.call(
            "probe",
            access,
            None,
            Box::new(|connection, access| match connection.identify() {
                Some(identify) => identify.probe(access),
                None => unsupported("identity"),
            }),
        )
        .await
    }

    /// The power and the health of the host's system.
    ///
    /// # Errors
    /// Why it could not be had: the power is then unknown, and not off.
    pub async fn power(&self, access: &Access) -> Result<SystemState, BmcError> {
        self.call(
            "power",
            access,
            None,
            Box::new(|connection, access| connection.power().power(access)),
        )
        .await
    }

    /// Changes the power, if it is not so already.
    ///
    /// # Errors
    /// Why it could not be done. After [`BmcError::Unreachable`] it may have been done all the same.
    pub async fn set_power(
        &self,
        access: &Access,
        term: impl Into<Term>,
        reset: Reset,
    ) -> Result<Done, BmcError> {
        let permission = Permission::of(term.into(), &self.0.fence);
        self.call(
            "set_power",
            access,
            Some(permission.clone()),
            Box::new(move |connection, access| connection.power().reset(access, permission, reset)),
        )
        .await
    }

    /// Says what the firmware boots, if it is not armed so already.
    ///
    /// # Errors
    /// Why it could not be done. After [`BmcError::Unreachable`] it may have been done all the same.
    pub async fn set_boot(
        &self,
        access: &Access,
        term: impl Into<Term>,
        boot: Boot,
    ) -> Result<Done, BmcError> {
        let permission = Permission::of(term.into(), &self.0.fence);
        self.call(
            "set_boot",
            access,
            Some(permission.clone()),
            Box::new(move |connection, access| match connection.boot_device() {
                Some(device) => device.set_boot(access, permission, boot),
                None => unsupported("boot device"),
            }),
        )
        .await
    }

    /// How long this BMC is still left alone about this system after failures with this access; none if it would be asked.
    pub fn pause(&self, access: &Access) -> Option<Duration> {
        let key = Key::of(access).ok()?;
        let line = lock(&self.0.known)
            .lines
            .get(&key)
            .map(|(line, _)| Arc::clone(line))?;
        let pause = lock(&line.pause);
        let now = Instant::now();
        let held = pause
            .as_ref()
            .filter(|pause| pause.holds(&access.credentials, access.verify, now))?;
        Some(held.until - now)
    }

    /// Nothing that was decided before `epoch` changes anything from now on.
    pub fn fence(&self, epoch: Epoch) {
        self.0.fence.raise(epoch);
    }

    /// The host is gone, or is not ours any more: ends the session, unless another host has the same BMC.
    pub async fn forget(&self, host: &HostRef) {
        self.drop_hosts(std::slice::from_ref(&host.uid)).await;
    }

    /// The hosts with these UIDs are all that there are: the sessions of the others are ended.
    pub async fn retain(&self, uids: &BTreeSet<String>) {
        let gone: Vec<String> = {
            let known = lock(&self.0.known);
            let gone = known.hosts.keys().filter(|uid| !uids.contains(*uid));
            gone.cloned().collect()
        };
        self.drop_hosts(&gone).await;
    }

    async fn drop_hosts(&self, uids: &[String]) {
        let idle: Vec<_> = {
            let mut known = lock(&self.0.known);
            let lines = uids.iter().filter_map(|uid| {
                let key = known.hosts.remove(uid)?;
                known.drop_host(&key)
            });
            lines.collect()
        };
        let closed = stream::iter(idle).for_each_concurrent(ENDING, |line| {
            self.0.metrics.lines.dec();
            self.close(line)
        });
        closed.await;
    }

    /// Refuses all calls from now on, waits for those that run, and ends all sessions, as far as that works within some seconds.
    pub async fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        let lines: Vec<_> = {
            let mut known = lock(&self.0.known);
            known.hosts.clear();
            known.lines.drain().map(|(_, (line, _))| line).collect()
        };
        let closed = stream::iter(lines).for_each_concurrent(ENDING, |line| self.close(line));
        if timeout(GRACE, closed).await.is_err() {
            tracing::warn!("BMC sessions that could not be closed in time are left to expire");
        }
        self.0.metrics.lines.set(0);
    }

    async fn close(&self, line: Arc<Line>) {
        line.is_closed.store(true, Ordering::SeqCst);
        let closed = async { line.turn.lock().await.close().await };
        if timeout(GRACE, closed).await.is_err() {
            tracing::debug!("a BMC session could not be closed and is left to expire");
        }
    }

    /// Waits for its turn and does `work`. In a task of its own, so that a caller that goes away leaves nothing half done: a
    /// session that nobody knows of, or a request behind which the next one overtakes.
    async fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        access: &Access,
        permission: Option<Permission>,
        work: Work<T>,
    ) -> Result<T, BmcError> {
        let (bmcs, access) = (self.clone(), access.clone());
        let task = tokio::spawn(async move {
            let outcome = bmcs.queue(name, &access, permission.as_ref(), work).await;
            if let Err(error) = &outcome {
                bmcs.0.metrics.failed(name, error);
            }
            outcome
        });
        // It ends otherwise only with the runtime.
        task.await.unwrap_or(Err(BmcError::Stopped))
    }

    async fn queue<T>(
        &self,
        name: &'static str,
        access: &Access,
        permission: Option<&Permission>,
        work: Work<T>,
    ) -> Result<T, BmcError> {
        let line = self.line(access)?;
        let turn = async {
            let connection = line.turn.lock().await;
            (connection, self.0.permits.acquire().await)
        };
        let waited = timeout(self.0.call, turn).await;
        let (mut connection, _permit) = waited.map_err(|_| BmcError::Busy {
            message: "other calls to it take too long".to_owned(),
            retry_after: None,
        })?;
        self.allowed(permission)?;
        line.willing(access)?;
        let start = Instant::now();
        let done = timeout(self.0.call, work(&mut **connection, access)).await;
        let outcome = done.unwrap_or_else(|_| {
            Err(BmcError::Unreachable {
                reason: "no end in time".to_owned(),
            })
        });
        self.0.metrics.took(name, start.elapsed());
        if let Err(error) = &outcome {
            tracing::debug!(host = %access.host, bmc = %access.address, call = name, %error, "a call to a BMC failed");
        }
        line.settle(access, outcome.as_ref().err(), self.0.pauses);
        if line.is_closed.load(Ordering::SeqCst) {
            connection.close().await;
        }
        outcome
    }

    /// Whether whoever decided this may still act.
    fn allowed(&self, permission: Option<&Permission>) -> Result<(), BmcError> {
        if self.0.stopped.load(Ordering::SeqCst) {
            return Err(BmcError::Stopped);
        }
        permission.map_or(Ok(()), Permission::check)
    }

    fn line(&self, access: &Access) -> Result<Arc<Line>, BmcError> {
        let key = Key::of(access)?;
        let (line, left) = {
            let mut known = lock(&self.0.known);
            if self.0.stopped.load(Ordering::SeqCst) {
                return Err(BmcError::Stopped);
            }
            let (line, left) = known.enter(&access.host.uid, key, &self.0.means);
            self.0
                .metrics
                .lines
                .set(i64::try_from(known.lines.len()).unwrap_or(i64::MAX));
            (line, left)
        };
        if let Some(left) = left {
            let bmcs = self.clone();
            tokio::spawn(async move { bmcs.close(left).await });
        }
        Ok(line)
    }
}

impl Known {
    /// The host's line, and the one that it leaves for it if nobody else has that.
    fn enter(&mut self, uid: &str, key: Key, means: &Means) -> (Arc<Line>, Option<Arc<Line>>) {
        let before = self.hosts.get(uid).cloned();
        if before.as_ref() == Some(&key)
            && let Some((line, _)) = self.lines.get(&key)
        {
            return (Arc::clone(line), None);
        }
        self.hosts.insert(uid.to_owned(), key.clone());
        let (line, hosts) = self
            .lines
            .entry(key)
            .or_insert_with(|| (Arc::new(Line::new(means)), 0));
        *hosts += 1;
        let line = Arc::clone(line);
        // Another address: its old BMC is nothing to this host any more.
        (line, before.and_then(|before| self.drop_host(&before)))
    }

    /// A host leaves the line: which comes back if it was the last.
    fn drop_host(&mut self, key: &Key) -> Option<Arc<Line>> {
        let (_, hosts) = self.lines.get_mut(key)?;
        *hosts -= 1;
        if *hosts > 0 {
            return None;
        }
        self.lines.remove(key).map(|(line, _)| line)
    }
}

impl Key {
    fn of(access: &Access) -> Result<Key, BmcError> {
        let address = &access.address;
        let driver = address.driver().map_err(|none| BmcError::Unsupported {
            what: none.to_string(),
        })?;
        Ok(Key {
            driver,
            transport: address.transport,
            place: address.place.clone(),
            port: address.port,
            system: address.system.clone(),
        })
    }
}

impl Line {
    fn new(means: &Means) -> Line {
        Line {
            turn: tokio::sync::Mutex::new(Box::new(Redfish::new(means.clone()))),
            pause: Mutex::default(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// The last error, while asking would only bring it again.
    fn willing(&self, access: &Access) -> Result<(), BmcError> {
        let pause = lock(&self.pause);
        match pause
            .as_ref()
            .filter(|pause| pause.holds(&access.credentials, access.verify, Instant::now()))
        {
            Some(pause) => Err(pause.error.clone()),
            None => Ok(()),
        }
    }

    fn settle(&self, access: &Access, error: Option<&BmcError>, pauses: Pauses) {
        let mut pause = lock(&self.pause);
        let with = (&access.credentials, access.verify);
        *pause = error.and_then(|error| Pause::after(pause.as_ref(), error, with, pauses, Instant::now()));
    }
}

fn unsupported<'a, T: Send + 'a>(what: &str) -> BoxFuture<'a, Result<T, BmcError>> {
    let what = what.to_owned();
    Box::pin(async { Err(BmcError::Unsupported { what }) })
}
