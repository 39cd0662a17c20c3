//! The control role: hosts from what machines report, and what becomes of them. Of all processes with this role one acts at a time.

use std::sync::Arc;

use kube::{Client, Config};
use muster_proto::Chain;
use tokio::{
    sync::{broadcast, watch},
    task::JoinSet,
};

use super::{Parts, RunError, spawn};
use crate::{
    agents,
    bmc::{self, Bmcs},
    discovery,
    events::{Dropped, Events},
    host,
    lease::{self, Election, Identity, Leadership, Standing, Timing},
    lenient, metrics,
    world::{Change, Scope, World},
};

/// Starts its parts; tells how the process stands.
pub(super) fn start(parts: &mut Parts<'_>) -> Result<watch::Receiver<Standing>, RunError> {
    let args = parts.args;
    let timing = Timing::new(
        args.lease_duration_seconds,
        args.renew_deadline_seconds,
        args.retry_period_seconds,
    )?;
    let (election, standing) = Election::new(
        parts.client.clone(),
        &args.namespace,
        &args.lease_name,
        Identity::own(),
        timing,
        parts.world.watches.clone(),
        args.hosts(),
    );
    let config = bmc::Config {
        authorities: bmc::authorities(&args.bmc_cas)?,
        ..bmc::Config::default()
    };
    let bmcs = Bmcs::new(&config, bmc::Metrics::register(parts.registry)).map_err(RunError::Authorities)?;
    let control = Control {
        config: parts.config.clone(),
        client: parts.client.clone(),
        timing,
        scope: parts.scope.clone(),
        world: parts.world.clone(),
        changes: parts.changes.clone(),
        discovery: discovery::Metrics::register(parts.registry),
        hosts: host::Metrics::register(parts.registry),
        dropped: parts.dropped.clone(),
        bmcs: bmcs.clone(),
        limit: args.provisioning_limit,
        concurrency: args.host_concurrency,
        retries: args.max_provisioning_retries.into(),
    };
    metrics::register_leader(parts.registry, &args.lease_name, standing.clone());
    host::metrics::register_hosts(parts.registry, parts.world.hosts.clone(), standing.clone());
    let mut shutdown = parts.shutdown.clone();
    parts.spawn("the election", async move {
        // Only borrowed: the process waits for those that hold it, and the Lease is to be given up.
        let stopped = async {
            let _ = shutdown.wait_for(|stopped| *stopped).await;
        };
        election.run(stopped).await;
    });
    let mut shutdown = parts.shutdown.clone();
    parts.spawn("the sessions of BMCs", async move {
        let _ = shutdown.wait_for(|stopped| *stopped).await;
        bmcs.stop().await;
    });
    parts.spawn("the control role", act(standing.clone(), control));
    Ok(standing)
}

/// What the control role needs in any term.
struct Control {
    config: Config,
    client: Client,
    timing: Timing,
    scope: Scope,
    world: World,
    changes: broadcast::Sender<Change>,
    discovery: discovery::Metrics,
    hosts: host::Metrics,
    dropped: Dropped,
    bmcs: Bmcs,
    limit: usize,
    concurrency: u16,
    retries: i64,
}

/// So often the beginning of a term is tried, with the pause between two renewals of the Lease.
const BEGINNINGS: u32 = 10;

/// Runs the loops of the control role while this process leads, and drops them when it leads no more. Ends if one of them does.
async fn act(mut standing: watch::Receiver<Standing>, control: Control) {
    let mut failed = 0;
    loop {
        let leads = |now: &Standing| now.leadership().is_some_and(Leadership::still);
        let next = standing.wait_for(leads).await;
        let Some(term) = next.ok().and_then(|now| now.leadership().cloned()) else {
            // The election has ended, because the process does.
            return std::future::pending().await;
        };
        let mut tasks = match control.begin(&term) {
            Ok(tasks) => tasks,
            // Its certificate and key may be in the middle of being replaced; but another one may be able to.
            Err(error) if failed < BEGINNINGS => {
                tracing::warn!(error = %Chain(&error), "the control role cannot write; retrying");
                failed += 1;
                tokio::time::sleep(control.timing.retry).await;
                continue;
            }
            Err(error) => return tracing::error!(error = %Chain(&error), "the control role cannot write"),
        };
        failed = 0;
        tokio::select! {
            () = term.ended() => tasks.shutdown().await,
            ended = tasks.join_next() => {
                return match ended {
                    Some(Ok(name)) => tracing::error!("{name} ended"),
                    Some(Err(error)) => tracing::error!(%error, "a part of the control role failed"),
                    None => {}
                };
            }
        }
    }
}

impl Control {
    /// Starts all that acts, for one term. Whatever is written here goes through a client that stops with the term: the loops are
    /// given no other.
    fn begin(&self, term: &Leadership) -> kube::Result<JoinSet<&'static str>> {
        let client = lease::client(&self.config, self.timing, term, self.client.clone())?;
        let namespace = self.scope.namespace.clone();
        let mut tasks = JoinSet::new();
        let (events, write_events) = Events::start(client.clone(), self.dropped.clone());
        spawn(&mut tasks, "the writer of Events", write_events);
        let unreadable = lenient::tell(Arc::clone(&self.world.unreadable), events.clone());
        spawn(&mut tasks, "the teller of what cannot be read", unreadable);
        let discovery = discovery::run(
            client.clone(),
            self.scope.clone(),
            self.world.clone(),
            self.changes.subscribe(),
            events.clone(),
            self.discovery.clone(),
        );
        spawn(&mut tasks, "discovery", discovery);
        let operator = host::run(host::Config {
            client: client.clone(),
            scope: self.scope.clone(),
            world: self.world.clone(),
            changes: self.changes.subscribe(),
            events,
            metrics: self.hosts.clone(),
            bmcs: Arc::new(self.bmcs.clone()),
            term: term.clone(),
            clock: Arc::new(jiff::Timestamp::now),
            limit: self.limit,
            concurrency: self.concurrency,
            max_provisioning_retries: self.retries,
        });
        spawn(&mut tasks, "the operator", async {
            if let Err(error) = operator.await {
                tracing::error!(error = %Chain(&error), "no host can be managed");
            }
        });
        spawn(
            &mut tasks,
            "the keeper of keys",
            agents::keys::keep(client.clone(), namespace.clone()),
        );
        spawn(
            &mut tasks,
            "the sweeper of Enrolments",
            agents::sweep::keep(client, namespace),
        );
        Ok(tasks)
    }
}
