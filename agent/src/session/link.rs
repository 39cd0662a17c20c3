//! Calls that get through: connects, goes to the next controller, waits, and tries again until there is an answer.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use muster_proto::{Chain, session::Problem};
use rustls::ClientConfig;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Notify;

use super::{
    Ended, Machine, SessionError,
    http::{self, Connection},
    key::SessionKey,
    retry::{self, Distrust, Next},
};
use crate::{
    clock::{self, Clock},
    dial::{
        Backoff,
        endpoint::{Endpoint, Host},
        tls,
    },
};

/// Why a call did not get through and must not be repeated as it is.
#[derive(Debug)]
pub(super) enum Stop {
    Ended(Ended),
    /// This body is never taken.
    Dropped(Problem),
    /// TLS does not accept our certificate: another one is needed.
    CertificateRefused,
    /// The hardware changed while the call waited.
    Changed,
    /// A job ended while the call waited.
    JobEnded,
    /// The controller has no answer for now; there was a pause, unless the call may be left out.
    Later,
}

/// Why one try of a call brought no answer.
enum NoAnswer {
    /// It gave way to something.
    GaveWay(Stop),
    Failed(http::CallError),
}

/// What is called, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    path: &'static str,
    patience: Duration,
    /// Given up when the hardware changes or a job ends.
    gives_way: bool,
    /// Given up when a controller refuses it for now: something else is to be done that matters more.
    gives_up: bool,
    /// Nothing waits for it: it is given up without a pause.
    may_be_left_out: bool,
}

impl Call {
    /// One that is answered at once, by a busy controller within a minute.
    pub(super) const fn quick(path: &'static str) -> Call {
        Call {
            path,
            patience: Duration::from_secs(60),
            gives_way: false,
            gives_up: false,
            may_be_left_out: false,
        }
    }

    /// The same between whose tries something else is done.
    pub(super) const fn repeated(path: &'static str) -> Call {
        Call {
            gives_up: true,
            ..Call::quick(path)
        }
    }

    /// The same that may be left out.
    pub(super) const fn best_effort(path: &'static str) -> Call {
        Call {
            may_be_left_out: true,
            ..Call::repeated(path)
        }
    }

    /// One that is answered when there is news, or after `hold_seconds`.
    pub(super) const fn poll(path: &'static str, hold_seconds: u64) -> Call {
        Call {
            path,
            patience: Duration::from_secs(hold_seconds + 15),
            gives_way: true,
            gives_up: true,
            may_be_left_out: false,
        }
    }
}

pub(super) struct Link<M> {
    pub(super) machine: M,
    /// A job runs: partitions come and go, and what the machine is made of is looked at afterwards.
    pub(super) is_working: bool,
    /// Notified when it ends.
    job_ended: Arc<Notify>,
    clock: Clock,
    endpoints: Vec<Endpoint>,
    /// Which of them is in use.
    at: usize,
    authorities: String,
    /// When the token is worth nothing any more, in unix seconds.
    token_ends: i64,
    anonymous: Arc<ClientConfig>,
    tls: Arc<ClientConfig>,
    connection: Option<Connection>,
    backoff: Backoff,
    distrust: Distrust,
    /// Which controllers have said since the last answer that they will never take this session, and how often.
    refused_by: BTreeSet<usize>,
    times_refused: u32,
    /// How often in a row TLS has not accepted our certificate.
    times_shown: u32,
    /// How often in a row the controller in use said that it cannot now.
    refusals: u32,
}

/// After so many refusals in a row, which take some ten seconds, another controller is called: one that has lost its way to the API server
/// says so for as long as that lasts, while another one may have its own.
const REFUSALS: u32 = 6;
/// After so many refusals for good in a row the session is over, also where another controller cannot be reached: a minute and more, as long
/// as a replica takes to start.
const MOST_REFUSALS: u32 = 12;
/// So often in a row a certificate is shown that TLS does not accept, with pauses between: two minutes and more, in which every replica has
/// looked at the authorities again.
const MOST_SHOWN: u32 = 24;

impl<M: Machine> Link<M> {
    pub(super) fn new(
        endpoints: &[String],
        authorities: String,
        token_ends: i64,
        clock: Clock,
        machine: M,
        job_ended: Arc<Notify>,
    ) -> Result<Link<M>, SessionError> {
        let mut usable = Vec::new();
        for text in endpoints {
            match text.parse::<Endpoint>() {
                Ok(endpoint) => usable.push(endpoint),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        if usable.is_empty() {
            return Err(SessionError::NoEndpoint {
                endpoints: endpoints.to_vec(),
            });
        }
        let tls = tls::client(&authorities, None, &clock).map_err(|source| SessionError::Tls { source })?;
        Ok(Link {
            machine,
            is_working: false,
            job_ended,
            clock,
            endpoints: usable,
            at: 0,
            authorities,
            token_ends,
            anonymous: Arc::clone(&tls),
            tls,
            connection: None,
            backoff: Backoff::default(),
            distrust: Distrust::default(),
            refused_by: BTreeSet::new(),
            times_refused: 0,
            times_shown: 0,
            refusals: 0,
        })
    }

    /// Unix seconds, as the controller counts them.
    pub(super) fn now(&self) -> i64 {
        self.clock.now()
    }

    pub(super) fn told_time(&mut self, unix: i64) {
        self.clock.correct(unix);
        self.machine.told_time(unix);
    }

    /// Connects without a certificate from now on.
    pub(super) fn forget_certificate(&mut self) {
        self.tls = Arc::clone(&self.anonymous);
        self.connection = None;
    }

    /// Shows `certificate` and trusts `authorities` from now on.
    pub(super) fn use_certificate(
        &mut self,
        authorities: String,
        certificate: &str,
        key: &SessionKey,
    ) -> Result<(), tls::TlsError> {
        let authorities = if authorities.is_empty() {
            self.authorities.clone()
        } else {
            authorities
        };
        self.tls = tls::client(&authorities, Some((certificate, key.private())), &self.clock)?;
        if authorities != self.authorities {
            self.anonymous = tls::client(&authorities, None, &self.clock)?;
            self.authorities = authorities;
        }
        self.connection = None;
        Ok(())
    }

    /// Opens the connection that the next call takes, so that this is done while devices still appear. Whatever fails shows
    /// itself in that call.
    pub(super) async fn connect_early(&mut self) {
        self.connection = self.connect().await.ok();
    }

    /// Calls until there is an answer, or a reason not to call again.
    pub(super) async fn call<B, A>(&mut self, call: Call, body: &B) -> Result<A, Stop>
    where
        B: Serialize + Sync,
        A: DeserializeOwned + Send,
    {
        let mut failed_endpoints = 0;
        loop {
            let error = match self.once(call, body).await {
                Ok(answer) => {
                    self.backoff.reset();
                    self.distrust.trusted(self.at);
                    self.refused_by.clear();
                    self.times_refused = 0;
                    self.times_shown = 0;
                    self.refusals = 0;
                    return Ok(answer);
                }
                Err(NoAnswer::GaveWay(stop)) => return Err(stop),
                Err(NoAnswer::Failed(error)) => error,
            };
            tracing::warn!("{}", Chain(&error));
            if error.broke_connection() {
                self.connection = None;
            }
            let all = self.endpoints.len();
            if self.distrust.failed(self.at, all, &error, clock::uptime()) && !self.is_working {
                return Err(Stop::Ended(Ended::Distrust));
            }
            match retry::after(&error, self.now() <= self.token_ends) {
                Next::OtherEndpoint => {
                    self.turn_to_another();
                    failed_endpoints += 1;
                    if failed_endpoints % self.endpoints.len() == 0 {
                        self.pause(None).await;
                    }
                }
                Next::Again { asked, elsewhere } => {
                    self.refusals += u32::from(elsewhere);
                    if self.refusals >= REFUSALS {
                        self.turn_to_another();
                    }
                    if call.may_be_left_out {
                        return Err(Stop::Later);
                    }
                    self.pause(asked).await;
                    // What it tells may be another thing by now, and its certificate may want to be renewed.
                    if call.gives_up {
                        return Err(Stop::Later);
                    }
                }
                Next::ShowAgain if self.shows_again() => {
                    self.turn_to_another();
                    self.pause(None).await;
                }
                Next::Enrol | Next::ShowAgain => return Err(Stop::CertificateRefused),
                Next::DropBody(problem) => return Err(Stop::Dropped(problem)),
                Next::End(_) if self.asks_another() => {
                    self.turn_to_another();
                    self.pause(None).await;
                }
                Next::End(problem) => return Err(Stop::Ended(Ended::Refused(problem))),
            }
        }
    }

    /// True if another controller is asked before the session ends, until all have refused it in a row: one whose clock is wrong takes a good
    /// certificate or token for ended, one that was not renewed speaks another protocol, and a write that ends in the middle leaves nothing
    /// that boots.
    fn asks_another(&mut self) -> bool {
        self.refused_by.insert(self.at);
        self.times_refused += 1;
        self.refused_by.len() < self.endpoints.len() && self.times_refused < MOST_REFUSALS
    }

    /// True if a certificate that TLS does not accept is shown again, here or to another controller. Of two edges one knows a new authority
    /// a moment before the other, and whoever enrols with a token that has ended is sent away for good, in the middle of a write perhaps.
    fn shows_again(&mut self) -> bool {
        self.times_shown += 1;
        self.times_shown < MOST_SHOWN
    }

    /// The next call goes to the next controller of the list.
    fn turn_to_another(&mut self) {
        self.refusals = 0;
        if self.endpoints.len() > 1 {
            self.at = (self.at + 1) % self.endpoints.len();
            self.connection = None;
        }
    }

    /// Waits before the next try; less if the network changes and the controller did not ask for a pause.
    pub(super) async fn pause(&mut self, asked: Option<Duration>) {
        let pause = self.backoff.pause(asked, crate::net::random());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.machine.network_changed(), if asked.is_none() => {}
        }
    }

    /// One try.
    async fn once<B, A>(&mut self, call: Call, body: &B) -> Result<A, NoAnswer>
    where
        B: Serialize + Sync,
        A: DeserializeOwned + Send,
    {
        if call.gives_way {
            // What has ended already is known before a request begins that would be broken off.
            tokio::select! {
                biased;
                () = self.job_ended.notified() => return Err(NoAnswer::GaveWay(Stop::JobEnded)),
                () = std::future::ready(()) => {}
            }
        }
        let connection = self
            .connection
            .take()
            .filter(|connection| !connection.is_closed());
        let mut connection = match connection {
            Some(connection) => connection,
            None => self.connect().await.map_err(NoAnswer::Failed)?,
        };
        let gave_way = |stop| Err(NoAnswer::GaveWay(stop));
        let answer = tokio::select! {
            () = self.job_ended.notified(), if call.gives_way => gave_way(Stop::JobEnded),
            () = self.machine.changed(), if call.gives_way && !self.is_working => gave_way(Stop::Changed),
            answer = connection.post(call.path, body, call.patience) => answer.map_err(NoAnswer::Failed),
        };
        // HTTP/1.1 cannot take a request back.
        if !matches!(answer, Err(NoAnswer::GaveWay(_))) {
            self.connection = Some(connection);
        }
        answer
    }

    async fn connect(&mut self) -> Result<Connection, http::CallError> {
        self.machine.online().await;
        let endpoint = &self.endpoints[self.at];
        let address = match &endpoint.host {
            Host::Address(address) => *address,
            Host::Name(name) => {
                self.machine
                    .resolve(name)
                    .await
                    .map_err(|source| http::CallError::Resolve {
                        endpoint: endpoint.clone(),
                        source,
                    })?
            }
        };
        let address = SocketAddr::new(address, endpoint.port);
        let started = Instant::now();
        let connection = Connection::open(endpoint, address, Arc::clone(&self.tls)).await;
        tracing::debug!(connecting = ?started.elapsed(), %endpoint);
        connection
    }
}
