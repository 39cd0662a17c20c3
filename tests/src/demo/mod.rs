//! `muster-lab demo`: two servers that nobody has described appear in `kubectl get bmh`; one of them gets an operating system, and is
//! released again.

mod board;
pub(crate) mod follow;
mod report;
mod servers;
pub(crate) mod step;
mod view;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use muster_proto::kinds::BareMetalHost;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::{
    bridges::{BR0, BR1, Network},
    cluster::{Cluster, Named, Role},
    controller::{Controller, Setup},
    interrupt::{interrupted, unless_interrupted},
    machine::Machine,
    paths,
    scratch::Scratch,
    stage,
};
use board::{Board, Progress};
use follow::News;
use life::Life;

/// Like `println!`, but a reader that has gone (`demo | head`) is no reason to panic: the demo goes on and ends as usual.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}

mod life;

/// Where Muster and its Segments live.
const NAMESPACE: &str = "muster-system";
/// Where the demo's Segments make hosts.
const HOSTS: &str = "default";
/// The Segments of the demo's manifest.
const SEGMENTS: [&str; 2] = ["demo-virtual", "demo-real"];
/// All servers must be there by then.
const DEADLINE: Duration = Duration::from_secs(180);
/// The controller must serve by then.
const SERVING: Duration = Duration::from_secs(30);
/// How often the live lines are drawn.
const FRAME: Duration = Duration::from_millis(100);

/// How the demo runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// End by itself, with status 0 only if every server arrived and one of them ran its operating system.
    #[arg(long)]
    pub once: bool,
    /// How many servers; the second one has UEFI.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub hosts: u8,
    /// Whose cluster.
    #[command(flatten)]
    pub cluster: Named,
    /// Only say whether all this goes together.
    #[arg(long, hide = true)]
    pub check: bool,
}

/// What ended the wait for the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Arrived,
    Late,
    Interrupted,
}

/// Everything that runs. Fields are dropped in order: machines first, the cluster last.
struct Demo {
    machines: Vec<Machine>,
    controller: Controller,
    network: Network,
    scratch: Scratch,
    cluster: Cluster,
    _left: Option<Left>,
}

/// Says what the demo leaves in somebody's cluster, whichever way it ends.
struct Left;

impl Drop for Left {
    fn drop(&mut self) {
        say!(
            "\nThe demo leaves in your cluster: Muster's kinds and the rules on hosts, the namespace {NAMESPACE} with its Segments, the hosts, and the \
             account muster-lab-{} with its rights. `kubectl delete -k deploy/manifests/policies` removes the rules.",
            Role::Both.name()
        );
    }
}

/// Runs the demo; true if every server arrived, and one of them lived as it was told.
pub async fn run(options: Options) -> Result<bool> {
    options.cluster.check()?;
    if options.check {
        return Ok(true);
    }
    let begun = Instant::now();
    let Some(mut demo) = unless_interrupted(Box::pin(Demo::start(&options))).await? else {
        return Ok(false);
    };
    say!(
        "The controller serves after {:.1} s. Now {} servers that nobody has described are switched on.\n",
        begun.elapsed().as_secs_f64(),
        demo.machines.len()
    );
    let (mut progress, news) = demo.switch_on()?;
    let mut found = BTreeMap::new();
    let end = follow(&mut progress, news, &mut found).await?;
    say!();
    if end == End::Interrupted {
        return Ok(false);
    }
    demo.show(&found)?;
    if end == End::Late {
        demo.lament(&progress);
    }
    let mut good = end == End::Arrived;
    if good {
        good = match demo.live(&found).await? {
            Some(lived) => lived,
            None => return Ok(false),
        };
    }
    demo.hints(&options, &found);
    if options.once {
        return Ok(good);
    }
    say!("\nThe servers stay on. Ctrl-C ends everything.");
    interrupted().await?;
    say!();
    Ok(good)
}

impl Demo {
    async fn start(options: &Options) -> Result<Demo> {
        // What is missing is told before anything is started.
        let mut setup = Setup::new(NAMESPACE)?;
        if options.cluster.kubeconfig().is_some() {
            // The hosts of others are none of its business.
            setup.extra = ["--watch-namespace", HOSTS].map(str::to_owned).to_vec();
        }
        paths::controller()?;
        let manifest = paths::deploy().join("manifests/examples/segment-demo.yaml");
        let segments =
            fs::read_to_string(&manifest).with_context(|| format!("read {}", manifest.display()))?;

        let scratch = Scratch::new()?;
        let cluster = match options.cluster.kubeconfig() {
            Some(path) => {
                say!("Using the cluster of {} …", path.display());
                Cluster::attach(path, NAMESPACE).await?
            }
            None => {
                say!("Starting a local Kubernetes API server …");
                Cluster::start().await?
            }
        };
        let left = options.cluster.kubeconfig().map(|_| Left);
        if left.is_some() {
            cluster.install().await?;
        }
        for namespace in [NAMESPACE, HOSTS] {
            cluster.ensure_namespace(namespace).await?;
        }
        let network = Network::new(&[BR0, BR1], &cluster)?;
        let mut controller = Controller::new(&cluster, &network.net, scratch.path(), setup).await?;
        controller.start()?;
        cluster.apply(&segments, NAMESPACE).await?;
        let mut demo = Demo {
            machines: Vec::new(),
            controller,
            network,
            scratch,
            cluster,
            _left: left,
        };
        for name in SEGMENTS {
            let client = demo.cluster.client()?;
            stage::serving(&client, NAMESPACE, name, SERVING, &mut demo.controller).await?;
        }
        let run = if options.cluster.kubeconfig().is_some() {
            std::process::id() % 0xffff
        } else {
            0
        };
        for spec in servers::specs(options.hosts.into(), run) {
            let machine = Machine::new(&demo.network.net, demo.scratch.path(), spec)?;
            demo.machines.push(machine);
        }
        Ok(demo)
    }

    fn switch_on(&mut self) -> Result<(Vec<Progress>, UnboundedReceiver<News>)> {
        let (sender, news) = mpsc::unbounded_channel();
        let client = self.cluster.client()?;
        tokio::spawn(follow::hosts(client, HOSTS.to_owned(), sender.clone()));
        let log = self.controller.log().clone();
        let from = log.len();
        tokio::spawn(follow::log(log, from, sender.clone()));
        let mut progress = Vec::new();
        for machine in &mut self.machines {
            machine.power_on()?;
            let macs: Vec<_> = machine.spec().nics.iter().map(|nic| nic.mac).collect();
            let console = machine.console().clone();
            tokio::spawn(follow::console(console, macs[0], sender.clone()));
            let since = machine.since().map_or_else(Instant::now, |(since, _)| since);
            progress.push(Progress::new(&machine.spec().name, macs, since));
        }
        Ok((progress, news))
    }

    /// Gives the first server an operating system and takes it back; true if all went well, none if the user has had enough.
    async fn live(&mut self, found: &BTreeMap<usize, Arc<BareMetalHost>>) -> Result<Option<bool>> {
        let client = self.cluster.client()?;
        let (machine, host) = self.machines.first_mut().zip(found.get(&0)).context("a server")?;
        say!();
        let mut life = Life::new(client, machine, host)?;
        let lived = tokio::select! {
            lived = life.run(&self.network.net) => lived,
            outcome = interrupted() => {
                say!();
                return outcome.map(|()| None);
            }
        };
        let Err(error) = lived else { return Ok(Some(true)) };
        say!("\n{}: {error:#}. Its console ends with:", machine.spec().name);
        for line in machine.console().last(25).iter().chain(&machine.complaints()) {
            say!("  {line}");
        }
        self.end_of_log();
        Ok(Some(false))
    }

    fn show(&self, found: &BTreeMap<usize, Arc<BareMetalHost>>) -> Result<()> {
        let kubectl = paths::kubectl().unwrap_or_else(|_| "kubectl".into());
        let kubeconfig = self.cluster.kubeconfig();
        let shown = Command::new(&kubectl)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["get", "bmh", "-n", HOSTS, "-o", "wide"])
            .status()
            .with_context(|| format!("run {}", kubectl.display()))?;
        if !shown.success() {
            bail!("{} get bmh ended with {shown}", kubectl.display());
        }
        for host in found.values() {
            say!("\n{}", report::host(host).trim_end());
        }
        Ok(())
    }

    /// How to look further.
    fn hints(&self, options: &Options, found: &BTreeMap<usize, Arc<BareMetalHost>>) {
        if options.once && options.cluster.kubeconfig().is_none() {
            return; // its cluster is about to end
        }
        let kubectl = paths::kubectl().unwrap_or_else(|_| "kubectl".into());
        let kubeconfig = self.cluster.kubeconfig();
        let name = found
            .values()
            .next()
            .and_then(|host| host.metadata.name.clone())
            .unwrap_or_default();
        // No variable for later commands: it would name a file that ends with the demo.
        let kubectl = format!("{} --kubeconfig {}", kubectl.display(), kubeconfig.display());
        say!("\nTo explore further:\n  {kubectl} get servers,segments -n {NAMESPACE} -o wide");
        say!("  {kubectl} get hardwaredata -n {HOSTS} {name} -o yaml");
        say!("  {kubectl} events -A");
    }

    /// Says of each server that is missing what it waited for.
    fn lament(&self, progress: &[Progress]) {
        for (machine, server) in self.machines.iter().zip(progress) {
            let Some(missing) = server.missing() else { continue };
            say!(
                "\n{} did not reach: {} (within {DEADLINE:?}). Its console ends with:",
                server.name,
                missing.name()
            );
            for line in machine.console().last(15).iter().chain(&machine.complaints()) {
                say!("  {line}");
            }
        }
        self.end_of_log();
    }

    fn end_of_log(&self) {
        say!("\nThe controller's log ends with:");
        for line in self.controller.log().last(15) {
            say!("  {line}");
        }
    }
}

/// Shows the servers' progress until all are there, the time is up or the user has had enough.
async fn follow(
    progress: &mut [Progress],
    mut news: UnboundedReceiver<News>,
    found: &mut BTreeMap<usize, Arc<BareMetalHost>>,
) -> Result<End> {
    let mut board = Board::new(io::stdout().is_terminal());
    let late = tokio::time::sleep(DEADLINE);
    let mut frame = tokio::time::interval(FRAME);
    let interrupt = interrupted();
    tokio::pin!(late, interrupt);
    loop {
        tokio::select! {
            Some(told) = news.recv() => take(progress, found, &board, &told)?,
            _ = frame.tick() => {}
            () = &mut late => return Ok(End::Late),
            outcome = &mut interrupt => return outcome.map(|()| End::Interrupted),
        }
        board
            .draw(progress, Instant::now())
            .context("write to the terminal")?;
        if progress.iter().all(Progress::arrived) {
            return Ok(End::Arrived);
        }
    }
}

fn take(
    progress: &mut [Progress],
    found: &mut BTreeMap<usize, Arc<BareMetalHost>>,
    board: &Board,
    told: &News,
) -> Result<()> {
    for (number, server) in progress.iter_mut().enumerate() {
        if !server.macs.contains(&told.mac) {
            continue;
        }
        if let Some(host) = &told.host {
            found.insert(number, Arc::clone(host));
        }
        if server.take(told.step, told.at) {
            board.tell(server).context("write to the terminal")?;
        }
    }
    Ok(())
}
