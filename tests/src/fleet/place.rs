//! Where a fleet stands: in a network of its own with a controller that the lab starts, or before anybody's controller.

use std::{io, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use kube::{Api, Client};
use muster_proto::kinds::{Dhcp, DhcpMode, Profile, Segment, SegmentSpec, UnknownPolicy};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    net::TcpStream,
    runtime::{Builder, Runtime},
};

use super::Options;
use crate::{
    bridges::{BR0, Network},
    cluster::{Cluster, Role},
    controller::{Controller, Setup},
    netns::Netns,
    scratch::Scratch,
    stage,
};

/// Where the lab's own controller and its Segment live.
const NAMESPACE: &str = "muster-system";
/// The name of that Segment, which nobody else's has.
const SEGMENT: &str = "lab-fleet";
/// The controller must serve by then.
const SERVING: Duration = Duration::from_secs(60);
/// The boot services of somebody's controller must answer by then.
const REACHED: Duration = Duration::from_secs(10);
/// The fleet's own address.
const ADDRESS: &str = "10.77.0.2";
/// Threads that run servers.
const THREADS: usize = 2;

/// A place for servers. Fields are dropped in order: the controller before the network, the cluster last.
#[derive(Debug)]
pub(super) struct Place {
    /// What the URLs of boot scripts begin with.
    pub(super) scripts: String,
    /// The namespace in which hosts are.
    pub(super) hosts: String,
    /// The namespace in which Servers are.
    pub(super) servers: String,
    /// The address at which BMCs of the fleet are reached.
    pub(super) address: String,
    /// And the port; 0: any.
    port: u16,
    /// The network in which the servers are, if it is the lab's.
    pub(super) net: Option<Netns>,
    /// The controller, if it is the lab's.
    controller: Option<Controller>,
    _network: Option<Network>,
    scratch: Scratch,
    /// The cluster.
    pub(super) cluster: Cluster,
    /// True if the cluster ends with this.
    pub(super) is_passing: bool,
    /// True if somebody else serves here.
    is_guest: bool,
    /// True if something of the lab's may be in the cluster.
    is_furnished: bool,
}

impl Place {
    /// With a Segment whoever serves that is the controller; without, the lab is to start one: [`Place::furnish`].
    pub(super) async fn find(options: &Options) -> Result<Place> {
        match (options.cluster.kubeconfig(), &options.segment) {
            (Some(kubeconfig), Some(segment)) => Place::served(options, kubeconfig, segment).await,
            (None, Some(_)) => bail!("--segment needs a cluster: --kubeconfig"),
            (kubeconfig, None) => Place::bare(options, kubeconfig).await,
        }
    }

    /// What is there is used as it is, and nothing is installed.
    async fn served(options: &Options, kubeconfig: &Path, segment: &str) -> Result<Place> {
        let cluster = Cluster::reach(kubeconfig).await?;
        let (scripts, hosts) = served(&cluster.client()?, segment, options).await?;
        Ok(Place {
            scripts,
            hosts,
            servers: segment.split('/').next().unwrap_or_default().to_owned(),
            address: options.address.clone().unwrap_or_default(),
            port: options.bmc_port,
            net: None,
            controller: None,
            _network: None,
            scratch: Scratch::new()?,
            cluster,
            is_passing: false,
            is_guest: true,
            is_furnished: false,
        })
    }

    /// A cluster, as it is.
    async fn bare(options: &Options, kubeconfig: Option<&Path>) -> Result<Place> {
        let scratch = Scratch::new()?;
        let cluster = match kubeconfig {
            Some(path) => Cluster::attach(path, NAMESPACE).await?,
            None => Cluster::start().await?,
        };
        let (own, _) = BR0.address.split_once('/').context("a bridge's address")?;
        Ok(Place {
            scripts: format!("http://{own}:8080/ipxe/{NAMESPACE}/{SEGMENT}"),
            hosts: options.namespace.clone(),
            servers: NAMESPACE.to_owned(),
            address: ADDRESS.to_owned(),
            port: options.bmc_port,
            net: None,
            controller: None,
            _network: None,
            scratch,
            cluster,
            is_passing: kubeconfig.is_none(),
            is_guest: false,
            is_furnished: false,
        })
    }

    /// Installs what is needed, and starts a controller with a Segment that has room for all servers, unless somebody serves here already.
    /// However far this came, [`Place::leave`] takes it away.
    pub(super) async fn furnish(&mut self, options: &Options) -> Result<()> {
        if self.is_guest {
            return Ok(());
        }
        self.is_furnished = true;
        if !self.is_passing {
            self.cluster.install().await?;
        }
        let mut setup = Setup::new(NAMESPACE)?;
        // Nobody else's hosts are its business.
        setup.extra = ["--watch-namespace", &self.hosts].map(str::to_owned).to_vec();
        for namespace in [NAMESPACE, &self.hosts] {
            self.cluster.ensure_namespace(namespace).await?;
        }
        let network = Network::new(&[BR0], &self.cluster)?;
        let net = network
            .net
            .neighbour(BR0.name, "eth0", &format!("{ADDRESS}/24"))?;
        let controller = Controller::new(&self.cluster, &network.net, self.scratch.path(), setup).await?;
        self.net = Some(net);
        self._network = Some(network);
        let controller = self.controller.insert(controller);
        controller.start()?;
        let mut spec = stage::segment(BR0, Profile::Lab, UnknownPolicy::Hold)?;
        spec.dhcp = Dhcp {
            mode: DhcpMode::Off,
            ..Dhcp::default()
        };
        spec.host_namespace = Some(self.hosts.clone());
        spec.quota = options.hosts;
        let client = self.cluster.client()?;
        let made = serde_json::to_string(&Segment::new(SEGMENT, spec)).context("write a Segment")?;
        self.cluster.apply(&made, NAMESPACE).await?;
        stage::serving(&client, NAMESPACE, SEGMENT, SERVING, controller).await
    }

    /// A runtime whose threads are where the servers are.
    pub(super) fn runtime(&self) -> Result<Runtime> {
        let build = || {
            Builder::new_multi_thread()
                .worker_threads(THREADS)
                .thread_name("lab-fleet")
                .enable_all()
                .max_blocking_threads(THREADS)
                .build()
        };
        match &self.net {
            // Threads are born into the network of the one that makes them.
            Some(net) => net.run(build),
            None => build(),
        }
        .context("start a runtime")
    }

    /// A listener for the fleet's BMCs.
    pub(super) fn listen(&self) -> Result<std::net::TcpListener> {
        let at = (self.address.clone(), self.port);
        let bind = move || std::net::TcpListener::bind(at);
        match &self.net {
            Some(net) => net.run(bind),
            None => bind(),
        }
        .with_context(|| format!("listen on {}", self.address))
    }

    /// Fails if the lab's controller has ended.
    pub(super) fn lives(&mut self) -> Result<()> {
        if let Some(controller) = &mut self.controller
            && !controller.is_running()
        {
            bail!(
                "the controller has ended; its last lines:\n  {}",
                controller.log().last(20).join("\n  ")
            );
        }
        Ok(())
    }

    /// What may be left where a fleet was not deleted to its end.
    pub(super) fn remnants(&self) -> String {
        let furniture = match self.is_furnished && !self.is_passing {
            true => {
                "; the lab's Segment and its controller's account may be left, too, which the next fleet removes when it ends"
            }
            false => "",
        };
        format!(
            "hosts and Secrets of a fleet may be left in namespace {}, and Servers in {}: the same fleet with --afresh deletes them first{furniture}",
            self.hosts, self.servers
        )
    }

    /// Takes away what the lab made in a cluster that stays, but for namespaces, kinds and rules; says what stays.
    pub(super) async fn leave(&mut self) -> Result<Option<String>> {
        if !self.is_furnished || self.is_passing {
            return Ok(None);
        }
        if let Some(mut controller) = self.controller.take() {
            // It is killed if it does not end by itself.
            controller.stop(SERVING).await;
        }
        let segment = Segment::new(SEGMENT, SegmentSpec::default());
        self.cluster.delete(&segment, NAMESPACE).await?;
        self.cluster.forget_identity(Role::Both, NAMESPACE).await?;
        Ok(Some(format!(
            "What stays in the cluster: Muster's kinds, the rules on hosts, and the namespaces {NAMESPACE}, with the controller's keys and Roles, and {}. \
             `kubectl delete -k deploy/manifests/policies` removes the rules.",
            self.hosts
        )))
    }
}

/// Where the boot scripts of a Segment that somebody serves are, and the namespace of its hosts.
async fn served(client: &Client, segment: &str, options: &Options) -> Result<(String, String)> {
    let (namespace, name) = segment
        .split_once('/')
        .context("a Segment is named NAMESPACE/NAME")?;
    let api: Api<Segment> = Api::namespaced(client.clone(), namespace);
    let found = api
        .get_opt(name)
        .await
        .with_context(|| format!("read Segment {segment}"))?;
    let Some(Segment { spec, .. }) = found else {
        bail!(
            "Segment {segment} does not exist: `kubectl get segments -A` lists those that do; without --segment the lab makes one"
        );
    };
    if spec.dhcp.mode != DhcpMode::Off {
        bail!(
            "Segment {segment} serves DHCP: the fleet asks for none, so its `dhcp.mode` must be off; without --segment the lab makes one"
        );
    }
    if spec.quota < options.hosts {
        bail!(
            "Segment {segment} has room for only {} servers: raise its `quota`",
            spec.quota
        );
    }
    if options.discover && spec.unknown != UnknownPolicy::Hold {
        bail!("Segment {segment} does not keep servers that nobody describes: set its `unknown` to hold");
    }
    if !options.discover {
        let address = options.address.as_deref();
        let address = address.context("the controller must be able to reach the fleet's BMCs: give --address with an address of this computer that it can reach")?;
        if address
            .parse()
            .is_ok_and(|address: IpAddr| address.is_unspecified())
        {
            bail!(
                "--address {address} is not an address at which a controller can reach anything: give one of this computer"
            );
        }
    }
    let Some(boot) = spec.boot_address else {
        bail!("Segment {segment} names no `bootAddress` at which the fleet could fetch boot scripts");
    };
    let boot = match boot.contains(':') {
        true => boot,
        false => format!("{boot}:8080"),
    };
    let reached = tokio::time::timeout(REACHED, TcpStream::connect(&boot)).await;
    let reached = reached.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    reached.with_context(|| {
        format!("reach the boot services of Segment {segment} at {boot}, its `bootAddress`")
    })?;
    let hosts = spec.host_namespace.unwrap_or_else(|| namespace.to_owned());
    Ok((format!("http://{boot}/ipxe/{namespace}/{name}"), hosts))
}

/// Lets this process and its children have as many files open as the system allows it: each server has one or two connections.
pub(super) fn allow_files(servers: u32) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("ask how many files may be open")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("allow more open files")?;
    let needed = u64::from(servers) * 3 + 500;
    if needed > most {
        bail!("{servers} servers may need {needed} open files, and the system allows {most} (ulimit -Hn)");
    }
    Ok(())
}
