//! The loop that wants the Lease and keeps it.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use muster_proto::Chain;
use tokio::{sync::watch, time::timeout};

use super::{
    clock,
    gate::Leadership,
    identity::Identity,
    next::{Contender, Step, Timing, holder},
};

/// How long what is under way may take when the term is given up. If it takes longer, the Lease is not given up but runs out.
const DRAIN: Duration = Duration::from_millis(1500);

/// Where this process stands.
#[derive(Clone, Debug)]
pub enum Standing {
    /// The Lease has not been read yet.
    Unknown,
    /// Another leads, and this process is ready to follow.
    Standby,
    /// This process leads.
    Leads(Leadership),
}

impl Standing {
    /// The term of this process, if it leads.
    pub fn leadership(&self) -> Option<&Leadership> {
        match self {
            Standing::Leads(leadership) => Some(leadership),
            Standing::Unknown | Standing::Standby => None,
        }
    }
}

/// Wants one Lease.
pub struct Election {
    leases: Api<Lease>,
    name: String,
    identity: Identity,
    timing: Timing,
    contender: Contender,
    standing: watch::Sender<Standing>,
}

impl std::fmt::Debug for Election {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Election of {} as {}", self.name, self.identity.text())
    }
}

type Seen = Pin<Box<dyn Stream<Item = Option<Lease>> + Send>>;

impl Election {
    /// For the Lease `name` in `namespace`. `client` is gated by nothing.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: Identity,
        timing: Timing,
    ) -> (Election, watch::Receiver<Standing>) {
        let (standing, told) = watch::channel(Standing::Unknown);
        let election = Election {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            contender: Contender::new(identity.text().to_owned(), timing),
            identity,
            timing,
            standing,
        };
        (election, told)
    }

    /// Leads whenever it may, until `stop` is done; then it gives the Lease up, once what it let begin is done.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        // Only for one that waits: a leader hears of changes when its renewal is refused.
        let mut changes: Option<Seen> = None;
        loop {
            let identity = self.identity.clone();
            let gone = |holder: &str| identity.has_ended(holder);
            match self.contender.next(clock::now(), Timestamp::now(), gone) {
                Step::Look => self.look().await,
                Step::Write(lease) => self.write(*lease).await,
                Step::Lost => self.contender.lost(),
                Step::Wait(until) => {
                    let leads = self.contender.tenure().is_some();
                    if leads {
                        changes = None;
                    } else if changes.is_none() {
                        changes = Some(seen(self.leases.clone(), &self.name));
                    }
                    tokio::select! {
                        () = tokio::time::sleep(until.saturating_sub(clock::now())) => {}
                        lease = change(changes.as_mut()) => self.contender.saw(lease, clock::now()),
                        () = &mut stop => return self.give_up().await,
                    }
                }
            }
            self.tell();
        }
    }

    /// Bounds one request, so that a connection that went silent leaves time for another.
    fn patience(&self) -> Duration {
        self.timing.renew / 3
    }

    async fn look(&mut self) {
        match timeout(self.patience(), self.leases.get_opt(&self.name)).await {
            Ok(Ok(lease)) => self.contender.saw(lease, clock::now()),
            Ok(Err(error)) => self.failed("read", &Chain(&error)),
            Err(late) => self.failed("read", &late),
        }
    }

    async fn write(&mut self, lease: Lease) {
        let sent = clock::now();
        let new = lease.metadata.resource_version.is_none();
        match timeout(self.patience(), self.put(lease)).await {
            Ok(Ok(lease)) => self.contender.written(lease, sent),
            // Made, written or deleted by another since it was seen. A new one is not found where there is no namespace for it.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 || (status.code == 404 && !new) => {
                if self.contender.refused(clock::now()) {
                    tracing::warn!(lease = %self.name, why = %status.message, "the Lease is not written again and again, as if others wrote it; tried again");
                }
            }
            Ok(Err(error)) => self.failed("write", &Chain(&error)),
            Err(late) => self.failed("write", &late),
        }
    }

    async fn put(&self, mut lease: Lease) -> kube::Result<Lease> {
        lease.metadata.managed_fields = None;
        if lease.metadata.resource_version.is_some() {
            self.leases
                .replace(&self.name, &PostParams::default(), &lease)
                .await
        } else {
            lease.metadata.name = Some(self.name.clone());
            lease.metadata.namespace = None;
            lease.metadata.uid = None;
            self.leases.create(&PostParams::default(), &lease).await
        }
    }

    fn failed(&mut self, action: &'static str, error: &dyn std::fmt::Display) {
        tracing::warn!(lease = %self.name, %error, action, "the Lease could not be used; tried again");
        self.contender.failed(clock::now());
    }

    /// Makes what others see of the term true.
    fn tell(&mut self) {
        let term = self.standing.borrow().leadership().cloned();
        match (self.contender.tenure(), term) {
            (Some(tenure), Some(term)) if term.epoch() == tenure.epoch => term.extend(tenure.until),
            (Some(tenure), None) if clock::now() < tenure.until => {
                tracing::info!(lease = %self.name, epoch = tenure.epoch, "leads");
                let term = Leadership::new(tenure.epoch, tenure.until);
                self.standing.send_replace(Standing::Leads(term));
            }
            // Ended before it began: the answer came too late.
            (Some(_), None) => {}
            (_, Some(term)) => {
                term.close();
                tracing::warn!(lease = %self.name, epoch = term.epoch(), "leads no more; nothing is written until it leads again");
                self.standing.send_replace(Standing::Standby);
            }
            (None, None) => self.stand_by(),
        }
    }

    fn stand_by(&self) {
        let Some(other) = self.contender.lease().and_then(holder) else {
            return;
        };
        if other == self.identity.text() {
            return;
        }
        self.standing.send_if_modified(|standing| {
            let new = matches!(standing, Standing::Unknown);
            if new {
                tracing::info!(lease = %self.name, leader = %muster_proto::text::clean(other.as_bytes()), "another leads; stands by");
                *standing = Standing::Standby;
            }
            new
        });
    }

    async fn give_up(mut self) {
        let Some(term) = self.standing.borrow().leadership().cloned() else {
            return;
        };
        self.standing.send_replace(Standing::Standby);
        let drained = term.drain(DRAIN).await;
        term.close();
        if !drained {
            tracing::warn!(lease = %self.name, "a write has no answer yet: the Lease is not given up but runs out");
            return;
        }
        // A renewal of which nobody knows whether it was taken.
        if self.contender.released(Timestamp::now()).is_none() {
            self.look().await;
        }
        let Some(lease) = self.contender.released(Timestamp::now()) else {
            return;
        };
        match timeout(self.patience(), self.put(lease)).await {
            Ok(Ok(_)) => tracing::info!(lease = %self.name, "the Lease is given up"),
            Ok(Err(error)) => {
                tracing::warn!(error = %Chain(&error), lease = %self.name, "the Lease runs out");
            }
            Err(_) => tracing::warn!(lease = %self.name, "the Lease runs out"),
        }
    }
}

/// The Lease, now and whenever it changes.
fn seen(leases: Api<Lease>, name: &str) -> Seen {
    watch_object(leases, name)
        .default_backoff()
        .filter_map(|seen| {
            // Without the watch the Lease is read when it should have run out.
            let seen = seen.inspect_err(|error| {
                tracing::debug!(error = %Chain(error), "watch of the Lease failed; it is tried again");
            });
            std::future::ready(seen.ok())
        })
        .boxed()
}

async fn change(changes: Option<&mut Seen>) -> Option<Lease> {
    let next = async { changes?.next().await };
    match next.await {
        Some(lease) => lease,
        None => std::future::pending().await,
    }
}
