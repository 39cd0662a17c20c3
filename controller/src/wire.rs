//! Builds everything and runs it until the process is told to stop. One function per role; no decision is made here.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hyper::header::USER_AGENT;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use muster_proto::Chain;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast, watch},
    task::JoinSet,
};

use crate::{
    admin::{self, Admin, ListenError},
    agents::{self, BootSecrets, Keys, Names},
    args::{self, Role, RunArgs},
    bind::Addresses,
    bmc::{self, Bmcs},
    boot::{
        dhcp::{self, Dhcp},
        files::{Extras, Files},
        http::{self, site::Site},
        peers::Peers,
        segment::{self, Plan, Ports},
        tftp,
    },
    discovery,
    events::{Dropped, Events},
    host,
    lease::{self, Election, Identity, Leadership, Standing, Timing},
    metrics::{self, Registry},
    world::{Change, Scope, World},
};

/// The controller could not start, or a part of it ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The kubeconfig is missing or wrong.
    #[error("read kubeconfig {}", path.display())]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// Neither a kubeconfig nor a service account.
    #[error("find out how to reach the API server; name a file with --kubeconfig")]
    Infer(#[source] kube::config::InferConfigError),
    /// The client could not be made from the configuration.
    #[error("make a client of the API server")]
    Client(#[source] Box<kube::Error>),
    /// The times of the Lease do not go together.
    #[error(transparent)]
    Timing(#[from] lease::TimingError),
    /// The port for probes is taken.
    #[error(transparent)]
    Admin(#[from] ListenError),
    /// No signal handler.
    #[error("listen for signals")]
    Signals(#[source] std::io::Error),
    /// Metrics for everyone on an address that others reach.
    #[error("--metrics plain is for a loopback address, and --admin-listen is {0}")]
    PlainMetrics(std::net::SocketAddr),
    /// The certificate that was given for the metrics is not usable.
    #[error(transparent)]
    Certificate(#[from] admin::CertificateError),
    /// iPXE's binaries are not there.
    #[error("load the boot files for TFTP; --ipxe-dir names their directory")]
    BootFiles(#[source] tftp::TftpError),
    /// No authorities for the certificates of BMCs.
    #[error("trust the authorities for the certificates of BMCs")]
    Authorities(#[source] rustls::Error),
    /// Those of `--bmc-ca` cannot be had.
    #[error("use --bmc-ca")]
    BmcCa(#[from] bmc::AuthorityError),
    /// A part of the controller ended by itself.
    #[error("{0} ended")]
    Ended(&'static str),
}

/// How long parts may take to end after a signal, before they are dropped.
const GRACE: Duration = Duration::from_secs(5);

/// How long the API server may stay silent in an answer. A watch is never so long without a bookmark; anything else hangs, because
/// the other end is gone without a word, and is better tried again.
const SILENCE: Duration = Duration::from_secs(295);

/// True once the process is to stop.
pub type Shutdown = watch::Receiver<bool>;

/// What every role is given.
pub struct Parts<'a> {
    /// The command line.
    pub args: &'a RunArgs,
    /// The API server.
    pub client: Client,
    /// How it is reached.
    pub config: Config,
    /// Which namespaces matter.
    pub scope: Scope,
    /// The watched copies.
    pub world: World,
    /// Subscribe here to hear of changes.
    pub changes: broadcast::Sender<Change>,
    /// For registering metrics.
    pub registry: &'a mut Registry,
    /// Counts Events that were not told.
    pub dropped: Dropped,
    /// For parts that end in an orderly way; others are dropped.
    pub shutdown: Shutdown,
    /// True once `world` is complete for the first time.
    pub ready: watch::Receiver<bool>,
    /// Where parts run. A part that ends before the shutdown ends the process, under the name that it returns.
    pub tasks: &'a mut JoinSet<&'static str>,
}

impl std::fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parts of {:?}", self.args.roles)
    }
}

impl Parts<'_> {
    /// Runs `part` as long as the process does, from when the world is complete. Nothing may wait for a store before: of
    /// several that do, kube-runtime wakes one.
    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let mut ready = self.ready.clone();
        self.tasks.spawn(async move {
            // The sender lives as long as the process.
            if ready.wait_for(|ready| *ready).await.is_ok() {
                part.await;
            }
            name
        });
    }
}

/// Runs the controller until SIGTERM or SIGINT.
pub async fn run(args: RunArgs) -> Result<(), RunError> {
    let config = config(&args).await?;
    let client = Client::try_from(config.clone()).map_err(|source| RunError::Client(Box::new(source)))?;
    let scope = Scope {
        namespace: args.namespace.clone(),
        hosts: args.watch_namespace.clone(),
        control: args.roles().contains(&Role::Control),
    };
    let (world, driver) = World::start(&client, &scope);
    let (stop, shutdown) = watch::channel(false);
    let (complete, ready) = watch::channel(false);
    let mut registry = metrics::registry();
    let dropped = Dropped::register(&mut registry);
    let mut tasks = JoinSet::new();
    let changes = driver.changes();
    spawn(&mut tasks, "the watch of the cluster", driver.run());
    let mut parts = Parts {
        args: &args,
        client,
        config,
        scope,
        world: world.clone(),
        changes,
        registry: &mut registry,
        dropped,
        shutdown,
        ready: ready.clone(),
        tasks: &mut tasks,
    };
    let mut standing = None;
    for role in args.roles() {
        match role {
            Role::Edge => edge(&mut parts)?,
            Role::Control => standing = Some(control(&mut parts)?),
        }
    }
    let client = parts.client.clone();
    drop(parts);
    let state = admin::State {
        registry: Arc::new(registry),
        ready: ready.clone(),
        standing,
    };
    admin(&args, client, state, &mut tasks).await?;
    spawn(&mut tasks, "the wait for the cluster", async move {
        if world.ready().await {
            tracing::info!("the cluster is read; ready");
            complete.send_replace(true);
            std::future::pending::<()>().await;
        }
    });
    let ended = tokio::select! {
        ended = tasks.join_next() => ended,
        signal = stop_signal() => {
            signal.map_err(RunError::Signals)?;
            None
        }
    };
    let _ = stop.send(true);
    let outcome = match ended {
        None => Ok(()),
        Some(Ok(name)) => Err(RunError::Ended(name)),
        Some(Err(error)) => {
            tracing::error!(%error, "a part failed");
            Err(RunError::Ended("a part"))
        }
    };
    tracing::info!("stops");
    stopped(tasks, &stop).await;
    outcome
}

fn spawn(
    tasks: &mut JoinSet<&'static str>,
    name: &'static str,
    part: impl Future<Output = ()> + Send + 'static,
) {
    tasks.spawn(async move {
        part.await;
        name
    });
}

/// Gives those parts that listen for the shutdown the time to end; the others are dropped.
async fn stopped(mut tasks: JoinSet<&'static str>, stop: &watch::Sender<bool>) {
    let orderly = async { while stop.receiver_count() > 0 && tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, orderly).await.is_err() {
        tracing::warn!("parts that did not end in time are dropped");
    }
    tasks.shutdown().await;
}

/// The listeners for probes and scrapers.
async fn admin(
    args: &RunArgs,
    client: Client,
    state: admin::State,
    tasks: &mut JoinSet<&'static str>,
) -> Result<(), RunError> {
    let plain = args.metrics == args::Metrics::Plain;
    if plain && !args.admin_listen.ip().is_loopback() {
        return Err(RunError::PlainMetrics(args.admin_listen));
    }
    let probes = Admin::bind(args.admin_listen, state.clone(), plain).await?;
    if let Ok(address) = probes.address() {
        tracing::info!(%address, metrics = ?args.metrics, "probes");
    }
    spawn(tasks, "the listener for probes", probes.run());
    if args.metrics != args::Metrics::Authenticated {
        return Ok(());
    }
    let (tell, certificate) = watch::channel(None);
    match (&args.metrics_cert, &args.metrics_key) {
        (Some(chain), Some(key)) => {
            let config = admin::certificate(chain.clone(), key.clone())?;
            tell.send_replace(Some(Arc::new(config)));
        }
        _ => {
            let listen = args.metrics_listen.ip();
            let mut addresses = vec![std::net::Ipv4Addr::LOCALHOST.into()];
            addresses.extend((!listen.is_unspecified() && !listen.is_loopback()).then_some(listen));
            let names = Names {
                addresses,
                dns: vec![
                    "localhost".to_owned(),
                    "muster-metrics".to_owned(),
                    format!("muster-metrics.{}.svc", args.namespace),
                ],
            };
            let own = agents::own_certificate(client.clone(), args.namespace.clone(), names, tell);
            spawn(tasks, "the certificate for metrics", own);
        }
    }
    let metrics = Admin::bind_metrics(args.metrics_listen, state, certificate, client).await?;
    if let Ok(address) = metrics.address() {
        tracing::info!(%address, "metrics");
    }
    spawn(tasks, "the listener for metrics", metrics.run());
    Ok(())
}

async fn config(args: &RunArgs) -> Result<Config, RunError> {
    let config = match &args.kubeconfig {
        Some(path) => {
            let failed = |source| RunError::Kubeconfig {
                path: path.clone(),
                source,
            };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(failed)?
        }
        None => Config::infer().await.map_err(RunError::Infer)?,
    };
    let mut config = bounded(config, SILENCE);
    // Which of several replicas wrote what, in the API server's audit log.
    let agent = format!(
        "muster-controller/{} ({}; pid {})",
        env!("CARGO_PKG_VERSION"),
        args.edge_name(),
        std::process::id()
    );
    if let Ok(agent) = agent.parse() {
        config.headers.push((USER_AGENT, agent));
    }
    Ok(config)
}

/// `config` under which no answer is waited for longer than `silence`.
fn bounded(mut config: Config, silence: Duration) -> Config {
    config.read_timeout = Some(silence);
    // Counted from the request on, and not from when its connection was last used.
    config.reset_reader_on_write = true;
    config
}

/// Network boot and the agents' side.
fn edge(parts: &mut Parts<'_>) -> Result<(), RunError> {
    let args = parts.args;
    let ports = Ports {
        http: args.http_port,
        agents: args.agent_port,
    };
    let extras = Extras {
        firmware: args.firmware_dirs.clone(),
        authorities: args.extra_cas.clone(),
    };
    let files = Arc::new(Files::open(&args.boot_dir, extras, &std::env::temp_dir()));
    let (tell_plan, plan) = watch::channel(Arc::default());
    let (tell_addresses, addresses) = watch::channel(Addresses::new());
    let (tell_names, names) = watch::channel(Names::default());
    let (tell_secrets, secrets) = watch::channel(None);
    let peers = Peers::default();
    let (events, write_events) = Events::start(parts.client.clone(), parts.dropped.clone());
    spawn(parts.tasks, "the writer of Events", write_events);

    let dhcp = Dhcp {
        world: parts.world.clone(),
        ports,
        releases: Arc::clone(&files) as _,
        secrets: secrets.clone(),
        client: parts.client.clone(),
        edge: args.edge_name(),
        events: events.clone(),
        metrics: dhcp::Metrics::register(parts.registry),
        plan: tell_plan,
        shutdown: parts.shutdown.clone(),
    };
    let advertise = args.advertise.clone();
    let site = Site {
        world: parts.world.clone(),
        plan: plan.clone(),
        files,
        secrets,
    };
    let http = http::Server {
        answer: site,
        addresses: addresses.clone(),
        port: args.http_port,
        limits: http::Limits::default(),
        peers: peers.clone(),
    };
    let tftp = tftp::Server {
        files: tftp::BootFiles::load(&args.ipxe_dir).map_err(RunError::BootFiles)?,
        addresses: addresses.clone(),
        port: args.tftp_port,
        limits: tftp::Limits::default(),
        peers,
    };
    parts.spawn(
        "the follower of Segments",
        follow(plan, advertise, tell_addresses, tell_names),
    );
    parts.spawn("DHCP", dhcp.run());
    parts.spawn("HTTP", http.run());
    parts.spawn("TFTP", tftp.run());

    let (client, namespace) = (parts.client.clone(), args.namespace.clone());
    let world = parts.world.clone();
    let metrics = agents::Metrics::register(parts.registry);
    let (agent_port, max_agents) = (args.agent_port, args.max_agents);
    let mut shutdown = parts.shutdown.clone();
    parts.spawn("the agents' side", async move {
        let keys = agents::keys::watch(client.clone(), namespace.clone()).await;
        let config = agents::Config {
            client,
            namespace,
            world,
            events,
            keys: keys.clone(),
            names,
            metrics,
            pace: agents::Pace::default(),
            max_agents,
        };
        let server = match agents::Server::new(config).await {
            Ok(server) => server,
            Err(error) => return tracing::error!(error = %Chain(&error), "no agents can be served"),
        };
        let stopped = async {
            let _ = shutdown.wait_for(|stopped| *stopped).await;
        };
        tokio::join!(
            hand_over(keys, tell_secrets),
            server.run(addresses, agent_port, stopped)
        );
    });
    Ok(())
}

/// Tells the other services where the Segments want them, and under which names.
async fn follow(
    mut plan: watch::Receiver<Arc<Plan>>,
    advertise: Vec<String>,
    addresses: watch::Sender<Addresses>,
    names: watch::Sender<Names>,
) {
    loop {
        let now = plan.borrow_and_update().clone();
        addresses.send_if_modified(|known| replace(known, segment::served(&now)));
        names.send_if_modified(|known| replace(known, segment::names(&now, &advertise)));
        if plan.changed().await.is_err() {
            // DHCP has ended, because the process does.
            return std::future::pending().await;
        }
    }
}

/// Puts `new` in the place of `known`; true if they differ.
fn replace<T: PartialEq>(known: &mut T, new: T) -> bool {
    let changed = *known != new;
    *known = new;
    changed
}

/// Gives the boot services what they need of the keys.
async fn hand_over(mut keys: watch::Receiver<Keys>, secrets: watch::Sender<Option<Arc<BootSecrets>>>) {
    loop {
        let now = keys.borrow_and_update().boot_secrets();
        secrets.send_replace(Some(Arc::new(now)));
        if keys.changed().await.is_err() {
            return;
        }
    }
}

/// Hosts from what machines report. Of all processes with this role one acts at a time.
fn control(parts: &mut Parts<'_>) -> Result<watch::Receiver<Standing>, RunError> {
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
    let mut shutdown = parts.shutdown.clone();
    let stopped = async move {
        let _ = shutdown.wait_for(|stopped| *stopped).await;
    };
    metrics::register_leader(parts.registry, &args.lease_name, standing.clone());
    // Only one that sees the cluster may lead.
    parts.spawn("the election", election.run(stopped));
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

/// Runs the loops of the control role while this process leads, and drops them when it leads no more. Ends if one of them does.
async fn act(mut standing: watch::Receiver<Standing>, control: Control) {
    loop {
        let leads = |now: &Standing| now.leadership().is_some_and(Leadership::still);
        let next = standing.wait_for(leads).await;
        let Some(term) = next.ok().and_then(|now| now.leadership().cloned()) else {
            // The election has ended, because the process does.
            return std::future::pending().await;
        };
        let mut tasks = match control.begin(&term) {
            Ok(tasks) => tasks,
            Err(error) => return tracing::error!(error = %Chain(&error), "the control role cannot write"),
        };
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

async fn stop_signal() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use muster_proto::kinds::Segment;

    use super::*;

    #[tokio::test]
    async fn an_api_server_that_went_away_without_a_word_is_not_waited_for_for_ever() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let config = bounded(Config::new(url.parse().unwrap()), Duration::from_millis(200));
        let segments: kube::Api<Segment> = kube::Api::namespaced(Client::try_from(config).unwrap(), "a");
        let asked = tokio::spawn(async move { segments.get("b").await });
        let _held = silent.accept().await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(20), asked).await;
        assert!(answer.expect("the request ends").unwrap().is_err());
    }
}
