//! The one loop: enrol, report the inventory, ask for jobs, for ever.
//!
//! ```text
//! Enrolling --certificate--> Reporting --stored--> Polling --Inspect, changed hardware--> Reporting
//!     ^                          |                    |--Reboot, PowerOff--> Ended
//!     +--certificate refused in TLS ------------------+
//! ```
//! Once the token has ended, a certificate that TLS refuses is shown again for a while before that is tried ([`retry`]).
//! A job that takes its time ([`crate::steps`]) runs beside the loop, which goes on: progress is told, certificates are renewed, newer
//! commands are heard, and whatever becomes of the connection and of the controller at its other end, the job goes on and its outcome
//! is told until somebody has it. [`jobs`] says which command is carried out.
//!
//! A final problem ends it from anywhere: the machine must boot again to get a new token. Everything else is tried again,
//! at each controller in turn, with the same key and token, which the controller knows as one and the same enrolment.

pub mod http;
mod jobs;
pub mod key;
mod link;
mod machine;
pub mod retry;

use std::time::{Duration, Instant};

use muster_proto::{
    Chain,
    config::{BootConfig, TOKEN_LIFETIME},
    inventory::Inventory,
    job::{Failure, Write},
    session::{
        Action, Command, EnrolRequest, EnrolResponse, HOLD_SECONDS, InventoryResponse, LogRequest, Outcome,
        PROTOCOL, PollRequest, PollResponse, Problem, RenewRequest, SHORT_HOLD_SECONDS,
    },
    text,
};

use crate::{
    clock::Clock,
    dial::tls,
    image::SealedDrive,
    steps::{Failed, Job},
};
use jobs::{Jobs, Judgement, Untold};
use key::SessionKey;
use link::{Call, Link, Stop};
pub use machine::{Machine, ResolveError};

const ENROL: Call = Call::quick("/v1/enrol");
const RENEW: Call = Call::quick("/v1/renew");
/// May be refused for hours, in which the certificate is to be renewed.
const INVENTORY: Call = Call::repeated("/v1/inventory");
/// How the job ended is heard by polls, with the end of the log.
const LOG: Call = Call::best_effort("/v1/log");

/// How long a reboot waits for the controller to hear of it.
const FAREWELL: Duration = Duration::from_secs(3);

/// How long a reboot waits for a job that was told to stop: one that hangs in a broken disk never does.
const STOP: Duration = Duration::from_secs(20);

/// A job that ends so soon is told of with the next poll; that of a longer one is broken off, which costs a connection.
const QUICK: Duration = Duration::from_millis(100);

/// A poll without news that was answered sooner is not repeated at once.
const HASTY: Duration = Duration::from_secs(1);

/// Between two tries to renew a certificate that the controller could not renew.
const RENEW_PAUSE: i64 = 60;

/// What a session starts from.
#[derive(Debug)]
pub struct Context<M> {
    /// What the boot services gave this boot.
    pub config: BootConfig,
    /// Begins with [`BootConfig::time`]; the session corrects it.
    pub clock: Clock,
    /// For whom it speaks.
    pub machine: M,
}

/// Why a session is over.
#[derive(Debug)]
pub enum Ended {
    /// The controller ordered a reboot and knows that it happens now, or orders what this run of the agent cannot do any more.
    Reboot,
    /// The controller ordered to switch off and knows that it happens now.
    PowerOff,
    /// The controller will never take this session: boot again for a new token.
    Refused(Problem),
    /// No controller shows a certificate that this boot's authorities made: boot again for those of today.
    Distrust,
    /// The boot configuration cannot be used.
    Unusable(SessionError),
}

/// A session cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No endpoint in the configuration can be understood.
    #[error("find a controller: no usable endpoint among {endpoints:?}")]
    NoEndpoint {
        /// What stands there.
        endpoints: Vec<String>,
    },
    /// Its authorities cannot be used.
    #[error("set up TLS from the boot configuration")]
    Tls {
        /// Why.
        source: tls::TlsError,
    },
    /// No random numbers.
    #[error("create the session's key")]
    Key {
        /// Why.
        source: rcgen::Error,
    },
}

/// Serves until the session is over. Needs a tokio runtime with IO and time; starts no thread but one for the key.
pub async fn run<M: Machine>(context: Context<M>) -> Ended {
    match Session::begin(context).await {
        Ok(session) => session.live().await,
        Err(error) => Ended::Unusable(error),
    }
}

struct Session<M> {
    link: Link<M>,
    token: String,
    boot_mac: Option<muster_proto::Mac>,
    key: SessionKey,
    renew_at: i64,
    /// The id that the last poll named.
    last: String,
    jobs: Jobs,
}

impl<M: Machine> Session<M> {
    async fn begin(context: Context<M>) -> Result<Session<M>, SessionError> {
        let Context {
            config,
            clock,
            machine,
        } = context;
        // The kernel may make us wait for random numbers; DHCP goes on meanwhile.
        let key = tokio::task::spawn_blocking(SessionKey::generate);
        let jobs = Jobs::default();
        let ended = std::sync::Arc::clone(&jobs.ended);
        let token_ends = config.time.saturating_add(TOKEN_LIFETIME);
        let link = Link::new(
            &config.endpoints,
            config.ca_pem,
            token_ends,
            clock,
            machine,
            ended,
        )?;
        let key = key
            .await
            .expect("making a key does not panic")
            .map_err(|source| SessionError::Key { source })?;
        tracing::debug!("key made");
        Ok(Session {
            link,
            token: config.token,
            boot_mac: config.boot_mac,
            key,
            renew_at: i64::MAX,
            last: String::new(),
            jobs,
        })
    }

    async fn live(mut self) -> Ended {
        loop {
            let stop = match self.enrol().await {
                Ok(()) => self.serve().await,
                Err(stop) => stop,
            };
            match stop {
                Stop::Ended(ended) => return ended,
                Stop::Dropped(problem) => return Ended::Refused(problem),
                Stop::CertificateRefused | Stop::Changed | Stop::JobEnded | Stop::Later => {
                    self.link.pause(None).await;
                }
            }
        }
    }

    async fn enrol(&mut self) -> Result<(), Stop> {
        self.link.forget_certificate();
        self.link.machine.online().await;
        let request = EnrolRequest {
            token: self.token.clone(),
            csr: self.key.csr().to_owned(),
            identity: self.link.machine.identity().await,
            protocol: PROTOCOL.to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_mac: self.boot_mac,
            seal_key: self.key.seal().public(),
        };
        loop {
            let response: EnrolResponse = self.link.call(ENROL, &request).await?;
            let server = text::clean(response.server.as_bytes());
            if self.adopt(response) {
                let key = self.key.short_fingerprint();
                tracing::info!(step = "enrolled", server, key);
                tracing::info!("enrolled as {server}, session key {key}");
                self.link.connect_early().await;
                return Ok(());
            }
            self.link.pause(None).await;
        }
    }

    /// Uses a new certificate from now on; false if it is unusable.
    fn adopt(&mut self, response: EnrolResponse) -> bool {
        self.link.told_time(response.time);
        match self
            .link
            .use_certificate(response.ca_pem, &response.certificate, &self.key)
        {
            Ok(()) => {
                self.renew_at = response.renew_at;
                true
            }
            Err(error) => {
                tracing::warn!("the controller's answer is unusable: {}", Chain(&error));
                false
            }
        }
    }

    /// Everything after the enrolment; returns why it cannot go on.
    async fn serve(&mut self) -> Stop {
        let mut report = true;
        loop {
            let turn = if report {
                self.report().await
            } else {
                self.turn().await
            };
            report = match turn {
                Ok(()) | Err(Stop::Dropped(_) | Stop::JobEnded | Stop::Later) => false,
                Err(Stop::Changed) => true,
                Err(stop) => return stop,
            };
        }
    }

    /// Sends the inventory; [`Stop::Dropped`] if the controller does not accept it.
    async fn report(&mut self) -> Result<(), Stop> {
        let inventory = self.link.machine.inventory().await;
        let Inventory { disks, nics, .. } = &inventory;
        tracing::info!(
            step = "inventory-collected",
            disks = disks.len(),
            nics = nics.len()
        );
        let answer = loop {
            match self
                .link
                .call::<_, InventoryResponse>(INVENTORY, &inventory)
                .await
            {
                Err(Stop::Later) => self.renew_if_due().await?,
                answer => break answer,
            }
        };
        if let Err(Stop::Dropped(problem)) = &answer {
            tracing::error!("the controller does not accept the inventory: {problem}");
        }
        self.link.told_time(answer?.time);
        tracing::info!(step = "inventory-sent");
        Ok(())
    }

    /// One poll, and what it orders.
    async fn turn(&mut self) -> Result<(), Stop> {
        self.renew_if_due().await?;
        self.settle().await?;
        let (asked, news) = (Instant::now(), self.jobs.untold().is_some());
        let command = match self.poll().await {
            Ok(command) => command,
            Err(Stop::Dropped(problem)) => {
                // Without its outcome, a job would be waited for for ever.
                if self.jobs.shorten(&self.last) {
                    tracing::warn!(
                        "the controller does not accept a poll; the next one tells less: {problem}"
                    );
                } else {
                    tracing::error!("the controller does not accept a poll: {problem}");
                    self.jobs.told(&self.last);
                }
                self.link.pause(None).await;
                return Ok(());
            }
            Err(stop) => return Err(stop),
        };
        match command {
            // Who has just heard of this command may answer from what was known before.
            Some(command) if command.id != self.last => self.hear(command).await,
            _ => {
                if !news && asked.elapsed() < HASTY {
                    self.breathe().await;
                }
                Ok(())
            }
        }
    }

    /// A pause between two polls of which the first was answered at once; ends with the job that runs.
    async fn breathe(&self) {
        self.until_ended(HASTY).await;
    }

    /// Waits until the job that runs has ended, or for so long.
    async fn until_ended(&self, patience: Duration) {
        // The next turn begins with what has ended.
        _ = tokio::time::timeout(patience, self.jobs.ended.notified()).await;
    }

    /// Takes note of a job that has ended, and starts the one that waited for that.
    async fn settle(&mut self) -> Result<(), Stop> {
        while let Some(ended) = self.jobs.collect() {
            self.link.is_working = false;
            self.finish(ended).await?;
        }
        match self.jobs.next() {
            Some(command) => self.carry_out(command).await,
            None => Ok(()),
        }
    }

    async fn poll(&mut self) -> Result<Option<Command>, Stop> {
        let mut request = PollRequest::default();
        if let Some(untold) = self.jobs.untold().cloned() {
            (request.last, request.outcome) = (untold.id, Some(untold.outcome));
            (request.log, request.warnings) = (untold.log, untold.warnings);
            request.goes_at_once = self.jobs.are_over();
        } else if let Some((id, progress)) = self.jobs.progress() {
            (request.last, request.progress) = (id.to_owned(), Some(progress));
        } else {
            request.last.clone_from(&self.last);
        }
        self.last.clone_from(&request.last);
        let has_news = request.outcome.is_some() || request.progress.is_some();
        let hold_seconds = if has_news {
            SHORT_HOLD_SECONDS
        } else {
            HOLD_SECONDS
        };
        request.hold_seconds = Some(hold_seconds);
        let poll = Call::poll("/v1/poll", hold_seconds);
        let response: PollResponse = self.link.call(poll, &request).await?;
        if request.outcome.is_some() {
            self.jobs.told(&request.last);
        }
        self.link.told_time(response.time);
        Ok(response.command)
    }

    async fn renew_if_due(&mut self) -> Result<(), Stop> {
        if self.link.now() < self.renew_at {
            return Ok(());
        }
        let request = RenewRequest {
            csr: self.key.csr().to_owned(),
        };
        let renewed = match self.link.call(RENEW, &request).await {
            Ok(response) => self.adopt(response),
            Err(Stop::Dropped(problem)) => {
                tracing::error!("the controller does not renew the certificate: {problem}");
                false
            }
            // The one that there is is good for hours.
            Err(Stop::Later) => false,
            Err(stop) => return Err(stop),
        };
        if !renewed {
            self.renew_at = self.link.now().saturating_add(RENEW_PAUSE);
        }
        Ok(())
    }

    /// Decides about `command`, and does what is decided.
    async fn hear(&mut self, command: Command) -> Result<(), Stop> {
        let (id, name) = (text::clean(command.id.as_bytes()), name(&command.action));
        match self.jobs.judge(&command) {
            Judgement::UnderWay => {
                self.breathe().await;
                Ok(())
            }
            Judgement::Ended(outcome) => {
                self.jobs.tell(Untold::new(&command.id, outcome));
                self.breathe().await;
                Ok(())
            }
            Judgement::Refuse(why) => {
                tracing::warn!(command = id, "{name} is refused: {why}");
                // Not told: what is ordered stands, and is carried out by the ramdisk that boots.
                if self.jobs.refuses_too_long(tokio::time::Instant::now()) {
                    tracing::error!(
                        "no command was accepted since one of an older term was refused half an hour ago or more: the machine reboots for a session that accepts them"
                    );
                    return Err(Stop::Ended(Ended::Reboot));
                }
                let outcome = Outcome::Failed {
                    message: format!("refused: {why}"),
                    failure: Failure::Outdated,
                };
                self.finish(Untold::new(&command.id, outcome)).await
            }
            Judgement::Take => {
                tracing::info!(
                    command = id,
                    epoch = command.epoch,
                    "the controller orders: {name}"
                );
                self.jobs.took(&command);
                if !self.jobs.is_running() || command.action == Action::Unknown {
                    return self.carry_out(command).await;
                }
                tracing::warn!("the running job is stopped");
                if matches!(command.action, Action::Reboot | Action::PowerOff) {
                    self.jobs.stop();
                    self.until_ended(STOP).await;
                    return self.carry_out(command).await;
                }
                self.jobs.replace(command);
                Ok(())
            }
        }
    }

    /// Does what `command` says, or starts it.
    async fn carry_out(&mut self, command: Command) -> Result<(), Stop> {
        let job = match &command.action {
            Action::Inspect => {
                let outcome = match self.report().await {
                    Ok(()) => Outcome::Done,
                    Err(Stop::Dropped(problem)) => Outcome::Failed {
                        message: format!("send the inventory: {problem}"),
                        failure: Failure::Temporary,
                    },
                    Err(stop) => {
                        // It is given again once there is a session again.
                        self.jobs.forget(&command.id);
                        return Err(stop);
                    }
                };
                return self.finish(Untold::new(&command.id, outcome)).await;
            }
            Action::Reboot => return Err(self.farewell(&command, Ended::Reboot).await),
            Action::PowerOff => return Err(self.farewell(&command, Ended::PowerOff).await),
            // Not refused: what is ordered stands, and is carried out by the ramdisk that boots.
            Action::Clean(_) | Action::Write(_) if self.jobs.are_broken() => {
                tracing::error!("the agent crashed before: the machine reboots");
                return Err(Stop::Ended(Ended::Reboot));
            }
            Action::Clean(clean) => Ok(Job::Clean(clean.clone())),
            Action::Write(job) => self.write_job(&command, job.clone()),
            Action::Unknown => {
                let version = env!("CARGO_PKG_VERSION");
                Err(Failed {
                    message: format!("agent {version} does not know this command"),
                    failure: Failure::Final,
                })
            }
        };
        match job {
            Ok(job) => {
                let machine = &mut self.link.machine;
                self.jobs.start(&command, |work| machine.work(job, work));
                self.link.is_working = true;
                self.until_ended(QUICK).await;
                Ok(())
            }
            Err(Failed { message, failure }) => {
                let outcome = Outcome::Failed { message, failure };
                self.finish(Untold::new(&command.id, outcome)).await
            }
        }
    }

    /// The write that `command` orders, with its secret ready to be opened.
    fn write_job(&self, command: &Command, mut job: Box<Write>) -> Result<Job, Failed> {
        let drive = job.config_drive.take().map(|sealed| {
            let (key, session) = (self.key.seal(), self.key.fingerprint());
            SealedDrive::new(key, session, &command.id, command.epoch, sealed)
        });
        Ok(Job::Write {
            job,
            drive: drive.transpose()?,
        })
    }

    /// Tells that `command` is carried out now, unless that is known: there is nobody left to tell it afterwards.
    async fn farewell(&mut self, command: &Command, ended: Ended) -> Stop {
        if !command.farewell {
            self.jobs.finished(Untold::new(&command.id, Outcome::Done));
        }
        // The answer may be held back; all that matters is that the outcomes arrive.
        let tell = async {
            while self.jobs.untold().is_some() {
                match self.poll().await {
                    Err(Stop::Ended(_) | Stop::CertificateRefused) => break,
                    Err(Stop::Dropped(_)) if !self.jobs.shorten(&self.last) => self.jobs.told(&self.last),
                    _ => {}
                }
            }
        };
        _ = tokio::time::timeout(FAREWELL, tell).await;
        Stop::Ended(ended)
    }

    /// A job has ended; if it failed, the controller gets the log first.
    async fn finish(&mut self, ended: Untold) -> Result<(), Stop> {
        let mut lines = Vec::new();
        match &ended.outcome {
            Outcome::Done => tracing::info!(step = "job-done", job = text::clean(ended.id.as_bytes())),
            Outcome::Failed { message, .. } => {
                tracing::error!("command failed: {message}");
                lines = self.link.machine.log_lines();
            }
        }
        self.jobs.finished(Untold {
            log: lines.clone(),
            ..ended
        });
        if !lines.is_empty() {
            let log = LogRequest { lines: lines.into() };
            match self.link.call::<_, serde_json::Value>(LOG, &log).await {
                Ok(_) | Err(Stop::Dropped(_) | Stop::Changed | Stop::JobEnded | Stop::Later) => {}
                Err(stop) => return Err(stop),
            }
        }
        Ok(())
    }
}

/// What a command is called in the log: what it says beside that may be long, or a secret.
fn name(action: &Action) -> &'static str {
    match action {
        Action::Inspect => "inspect",
        Action::Reboot => "reboot",
        Action::PowerOff => "power off",
        Action::Clean(_) => "clean",
        Action::Write(_) => "write",
        Action::Unknown => "an unknown command",
    }
}

#[cfg(test)]
mod tests;
