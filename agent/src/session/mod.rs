//! The one loop: enrol, report the inventory, ask for orders, for ever.
//!
//! ```text
//! Enrolling --certificate--> Reporting --stored--> Polling --Inspect, changed hardware--> Reporting
//!     ^                          |                    |--Reboot--> Ended::Reboot
//!     +--certificate refused in TLS ------------------+
//! ```
//! A final problem ends it from anywhere: the machine must boot again to get a new token. Everything else is tried again,
//! at each controller in turn, with the same key and token, which the controller knows as one and the same enrolment.

pub mod endpoint;
pub mod key;
mod link;
mod machine;
pub mod retry;
pub mod tls;
pub mod wire;

use std::time::{Duration, Instant};

use muster_proto::{
    Chain,
    config::BootConfig,
    inventory::Inventory,
    session::{
        Action, Command, EnrolRequest, EnrolResponse, InventoryResponse, LogRequest, Outcome, PROTOCOL,
        PollRequest, PollResponse, Problem, RenewRequest,
    },
    text,
};

use crate::clock::Clock;
use key::SessionKey;
use link::{Call, Link, Stop};
pub use machine::{Machine, ResolveError};

const ENROL: Call = Call::quick("/v1/enrol");
const RENEW: Call = Call::quick("/v1/renew");
const INVENTORY: Call = Call::quick("/v1/inventory");
const LOG: Call = Call::quick("/v1/log");
const POLL: Call = Call::poll("/v1/poll");

/// How long a reboot waits for the controller to hear of it.
const FAREWELL: Duration = Duration::from_secs(3);

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
    /// The controller ordered a reboot and knows that it happens now.
    Reboot,
    /// The controller will never take this session: boot again for a new token.
    Refused(Problem),
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
    #[error("make the session's key")]
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
    /// The id of the last command taken up, and its outcome until the controller has it.
    last: String,
    outcome: Option<Outcome>,
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
        let link = Link::new(&config.endpoints, config.ca_pem, clock, machine)?;
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
            outcome: None,
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
                Stop::CertificateRefused | Stop::Changed => self.link.pause(None).await,
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
        };
        loop {
            let response: EnrolResponse = self.link.call(ENROL, &request).await?;
            let server = text::clean(response.server.as_bytes());
            if self.adopt(response) {
                let key = self.key.fingerprint();
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
                self.report().await.map(|_| ())
            } else {
                self.turn().await
            };
            report = match turn {
                Ok(()) => false,
                Err(Stop::Changed) => true,
                Err(stop) => return stop,
            };
        }
    }

    /// Sends the inventory. Inside: whether the controller took it.
    async fn report(&mut self) -> Result<Result<(), Problem>, Stop> {
        let inventory = self.link.machine.inventory().await;
        let Inventory { disks, nics, .. } = &inventory;
        tracing::info!(
            step = "inventory-collected",
            disks = disks.len(),
            nics = nics.len()
        );
        match self
            .link
            .call::<_, InventoryResponse>(INVENTORY, &inventory)
            .await
        {
            Ok(response) => {
                self.link.told_time(response.time);
                tracing::info!(step = "inventory-sent");
                Ok(Ok(()))
            }
            Err(Stop::Dropped(problem)) => {
                tracing::error!("the controller does not take the inventory: {problem}");
                Ok(Err(problem))
            }
            Err(stop) => Err(stop),
        }
    }

    /// One poll, and what it orders.
    async fn turn(&mut self) -> Result<(), Stop> {
        if self.link.now() >= self.renew_at {
            self.renew().await?;
        }
        let (asked, news) = (Instant::now(), self.outcome.is_some());
        let command = match self.poll().await {
            Ok(command) => command,
            Err(Stop::Dropped(problem)) => {
                tracing::error!("the controller does not take a poll: {problem}");
                self.outcome = None;
                self.link.pause(None).await;
                return Ok(());
            }
            Err(stop) => return Err(stop),
        };
        match command {
            Some(command) if command.id != self.last => self.obey(command).await,
            _ => {
                if !news && asked.elapsed() < HASTY {
                    tokio::time::sleep(HASTY).await;
                }
                Ok(())
            }
        }
    }

    async fn poll(&mut self) -> Result<Option<Command>, Stop> {
        let request = PollRequest {
            last: self.last.clone(),
            outcome: self.outcome.clone(),
        };
        let response: PollResponse = self.link.call(POLL, &request).await?;
        self.outcome = None;
        self.link.told_time(response.time);
        Ok(response.command)
    }

    async fn renew(&mut self) -> Result<(), Stop> {
        let request = RenewRequest {
            csr: self.key.csr().to_owned(),
        };
        let renewed = match self.link.call(RENEW, &request).await {
            Ok(response) => self.adopt(response),
            Err(Stop::Dropped(problem)) => {
                tracing::error!("the controller does not renew the certificate: {problem}");
                false
            }
            Err(stop) => return Err(stop),
        };
        if !renewed {
            self.renew_at = self.link.now().saturating_add(RENEW_PAUSE);
        }
        Ok(())
    }

    async fn obey(&mut self, command: Command) -> Result<(), Stop> {
        let Command { id, action } = command;
        tracing::info!(command = id, "the controller orders {action:?}");
        self.last = id;
        let outcome = match action {
            Action::Inspect => match self.report().await? {
                Ok(()) => Outcome::Done,
                Err(problem) => Outcome::Failed {
                    message: format!("send the inventory: {problem}"),
                },
            },
            Action::Reboot => {
                self.outcome = Some(Outcome::Done);
                // The answer may be held back; all that matters is that the outcome arrives.
                _ = tokio::time::timeout(FAREWELL, self.poll()).await;
                return Err(Stop::Ended(Ended::Reboot));
            }
            Action::Unknown => {
                let version = env!("CARGO_PKG_VERSION");
                Outcome::Failed {
                    message: format!("agent {version} does not know this command"),
                }
            }
        };
        if let Outcome::Failed { message } = &outcome {
            tracing::error!("command failed: {message}");
            let request = LogRequest {
                lines: self.link.machine.log_lines(),
            };
            match self.link.call::<_, serde_json::Value>(LOG, &request).await {
                Ok(_) | Err(Stop::Dropped(_) | Stop::Changed) => {}
                Err(stop) => return Err(stop),
            }
        }
        self.outcome = Some(outcome);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
