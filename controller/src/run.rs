//! Builds everything and runs it until the process is told to stop. One file per role; no decision is made here.

mod control;
mod credentials;
mod edge;
mod files;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::header::USER_AGENT;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast, watch},
    task::JoinSet,
};

use crate::{
    admin::{self, Admin, ListenError},
    agents::{self, Names},
    args::{self, Role, RunArgs},
    bmc,
    boot::tftp,
    events::Dropped,
    lease, lenient,
    metrics::{self, Registry},
    token_file,
    world::{Change, Scope, World},
};
use credentials::Credentials;
pub use files::OpenFiles;

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
        source: KubeconfigError,
    },
    /// The file is something else. What it holds is not shown: somebody may have named that of a token.
    #[error("{}", not_a_kubeconfig(path.as_deref(), *at))]
    NoKubeconfig {
        /// Which; none: that of KUBECONFIG, or the usual one.
        path: Option<PathBuf>,
        /// Where it is wrong: line and column.
        at: Option<(u64, u64)>,
    },
    /// Neither a kubeconfig nor a service account.
    #[error("find out how to reach the API server; name a file with --kubeconfig")]
    Infer(#[source] kube::config::InferConfigError),
    /// The client could not be made from the configuration.
    #[error("create the client for the API server")]
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
    #[error("--metrics plain requires a loopback address, but --admin-listen is {0}")]
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
    /// For parts that end in an orderly way, and hold it until they have; others are dropped.
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
        let part = once_ready(self.ready.clone(), self.shutdown.clone(), part);
        spawn(self.tasks, name, part);
    }
}

/// `part`, from when all is ready; nothing of it if the process ends before.
async fn once_ready(
    mut ready: watch::Receiver<bool>,
    mut shutdown: watch::Receiver<bool>,
    part: impl Future<Output = ()>,
) {
    let begins = tokio::select! {
        ready = ready.wait_for(|ready| *ready) => ready.is_ok(),
        _ = shutdown.wait_for(|ended| *ended) => false,
    };
    // Who listens for it is waited for at the end.
    drop(shutdown);
    if begins {
        part.await;
    }
}

/// Runs the controller until SIGTERM or SIGINT.
pub async fn run(args: RunArgs) -> Result<(), RunError> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), roles = ?args.roles(), "starts");
    let config = config(&args).await?;
    // Before the client reads them: what is replaced in between is seen to be another one.
    let credentials = Credentials::read(&config);
    let client = token_file::client(config.clone()).map_err(|source| RunError::Client(Box::new(source)))?;
    let scope = Scope {
        namespace: args.namespace.clone(),
        hosts: args.hosts(),
        control: args.roles().contains(&Role::Control),
    };
    let (world, driver) = World::start(&client, &scope);
    let (stop, shutdown) = watch::channel(false);
    let (complete, ready) = watch::channel(false);
    let mut registry = metrics::registry();
    let dropped = Dropped::register(&mut registry);
    lenient::register(&mut registry, Arc::clone(&world.unreadable));
    world.watches.register(&mut registry);
    world.watches.name_server(config.cluster_url.to_string());
    let mut tasks = JoinSet::new();
    let changes = driver.changes();
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
            Role::Edge => edge::start(&mut parts)?,
            Role::Control => standing = Some(control::start(&mut parts)?),
        }
    }
    let client = parts.client.clone();
    drop(parts);
    let state = admin::State {
        registry: Arc::new(registry),
        ready: ready.clone(),
        watches: world.watches.clone(),
        standing,
    };
    admin(&args, client, state, &mut tasks).await?;
    // Not before all is there that may be missing: what a start that fails cuts off would be told as watches that failed.
    spawn(&mut tasks, "the watch of the cluster", driver.run());
    spawn(
        &mut tasks,
        "the look at the clock",
        world.watches.clock.clone().tell_difference(),
    );
    let is_known = async |config| credentials::is_known(bounded(config, SILENCE)).await;
    let outlived = credentials::outlived(
        credentials,
        args.kubeconfig.clone(),
        world.watches.clone(),
        is_known,
    );
    spawn(&mut tasks, "the time of the credentials", outlived);
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
        tracing::warn!("parts that did not end in time are aborted");
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
            let watches = state.watches.clone();
            let own = agents::own_certificate(client.clone(), args.namespace.clone(), watches, names, tell);
            spawn(tasks, "the certificate for metrics", own);
        }
    }
    let metrics = Admin::serve_metrics(args.metrics_listen, state, certificate, client);
    spawn(tasks, "the listener for metrics", metrics);
    Ok(())
}

async fn config(args: &RunArgs) -> Result<Config, RunError> {
    let mut config = bounded(found(args.kubeconfig.as_deref()).await?, SILENCE);
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

/// How the API server is reached, as `kubeconfig` says it now; without it, as kubectl finds it, else the service account's way.
async fn found(kubeconfig: Option<&Path>) -> Result<Config, RunError> {
    let Some(path) = kubeconfig else {
        let there = async { reach(Kubeconfig::read()?).await };
        return match there.await {
            Ok(config) => Ok(config),
            Err(error) => Config::infer().await.map_err(|infer| match error {
                KubeconfigError::Parse(error) => no_kubeconfig(None, &error),
                _ => RunError::Infer(infer),
            }),
        };
    };
    let failed = |source| match source {
        KubeconfigError::Parse(error) => no_kubeconfig(Some(path), &error),
        source => RunError::Kubeconfig {
            path: path.to_owned(),
            source,
        },
    };
    let file = Kubeconfig::read_from(path).map_err(failed)?;
    reach(file).await.map_err(failed)
}

/// `error` says what stands in the file, which nobody may see.
fn no_kubeconfig(path: Option<&Path>, error: &serde_saphyr::Error) -> RunError {
    RunError::NoKubeconfig {
        path: path.map(Path::to_owned),
        at: error.location().map(|at| (at.line(), at.column())),
    }
}

fn not_a_kubeconfig(path: Option<&Path>, at: Option<(u64, u64)>) -> String {
    let file = path.map_or_else(
        || "a file that KUBECONFIG names, or ~/.kube/config,".to_owned(),
        |path| path.display().to_string(),
    );
    let at = at.map(|(line, column)| format!(" (line {line}, column {column})"));
    format!(
        "read kubeconfig: {file} is not a kubeconfig, or is damaged{}; next: name the right file with --kubeconfig",
        at.unwrap_or_default()
    )
}

/// How the cluster of the current context of `file` is reached: directly. kube takes the proxy of `HTTPS_PROXY` otherwise, whatever
/// `NO_PROXY` says, and one for downloads leads to no API server; one that stands in `file` stays, for which kube makes no client, as its
/// features are here.
pub async fn reach(file: Kubeconfig) -> Result<Config, KubeconfigError> {
    let current = file.current_context.as_ref();
    let context = file.contexts.iter().find(|one| Some(&one.name) == current);
    let cluster = context
        .and_then(|one| one.context.as_ref())
        .map(|context| &context.cluster);
    let cluster = file.clusters.iter().find(|one| Some(&one.name) == cluster);
    let proxy = cluster.and_then(|one| one.cluster.as_ref()?.proxy_url.clone());
    let is_named = proxy.is_some_and(|url| !url.is_empty());
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    if !is_named {
        config.proxy_url = None;
    }
    Ok(config)
}

/// `config` under which no answer is waited for longer than `silence`, and every failure is known to who asked: kube would ask up to 15
/// times, with pauses of minutes, of which no watch and no loop with a pause of its own would hear.
fn bounded(mut config: Config, silence: Duration) -> Config {
    config.default_retry = false;
    config.read_timeout = Some(silence);
    // Counted from the request on, and not from when its connection was last used.
    config.reset_reader_on_write = true;
    config
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

    #[tokio::test]
    async fn an_api_server_that_sheds_load_is_heard_of_at_once() {
        let busy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", busy.local_addr().unwrap());
        let config = bounded(Config::new(url.parse().unwrap()), Duration::from_secs(60));
        let segments: kube::Api<Segment> = kube::Api::namespaced(Client::try_from(config).unwrap(), "a");
        let asked = tokio::spawn(async move { segments.get("b").await });
        let refuse = async {
            let mut asked = 0;
            while let Ok((mut stream, _)) = busy.accept().await {
                asked += 1;
                let answer =
                    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 3600\r\ncontent-length: 0\r\n\r\n";
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer)
                    .await
                    .unwrap();
            }
            asked
        };
        tokio::select! {
            answer = asked => assert!(answer.unwrap().is_err()),
            asked = refuse => panic!("{asked}"),
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("it is asked in silence"),
        }
    }

    #[tokio::test]
    async fn a_file_that_is_no_kubeconfig_is_named_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for wrong in ["eyJhbGciOi.c2VjcmV0", "users: eyJhbGciOi", "a: [eyJhbGciOi\n"] {
            std::fs::write(&path, wrong).unwrap();
            let error = found(Some(&path)).await.unwrap_err();
            let said = muster_proto::Chain(&error).to_string();
            assert!(!said.contains("eyJ"), "{said}");
            assert!(said.contains(&*path.to_string_lossy()), "{said}");
        }
    }

    #[tokio::test]
    async fn a_part_that_has_not_begun_does_not_hold_up_the_end() {
        let ((_more, ready), (stop, shutdown)) = (watch::channel(false), watch::channel(false));
        let part = once_ready(ready, shutdown, std::future::pending());
        let part = tokio::spawn(part);
        stop.send_replace(true);
        let ended = tokio::time::timeout(Duration::from_secs(20), part).await;
        ended.expect("it ends").unwrap();
    }
}
