//! A control plane, controllers and fleets, each a process of its own.

use std::{
    env,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use kube::{Api, Client, Resource, core::NamespaceResourceScope};
use muster_proto::kinds::{Dhcp, DhcpMode, Profile, Segment, UnknownPolicy};
use nix::sys::resource::{Resource as Limit, getrlimit, setrlimit};

use super::round::{Processes, Site};
use crate::{
    bridges::{self, BR0, Network},
    cluster::{Cluster, Role},
    controller::{Controller, Setup},
    forward::Forwarder,
    netns::Netns,
    program::Program,
    scratch::Scratch,
    sim::hardware::Model,
    stage,
};

/// Where the controllers are, and their Segment and its Servers.
pub(super) const NAMESPACE: &str = "muster-system";
/// Where the hosts are.
pub(super) const HOSTS: &str = "fleet";
const SEGMENT: &str = "fleet";
/// The address of the fleets, and their network's.
const ADDRESS: &str = "10.77.0.2";
/// The controller must serve by then.
const SERVING: Duration = Duration::from_secs(60);
/// Open files for each server of a fleet, and for all that is not a server: what the fleet itself asks for.
const FILES: (u64, u64) = (3, 500);
/// Gives this computer the name that comes first, and becomes what comes after it.
const NAMED: &str = "echo \"$1\" > /proc/sys/kernel/hostname && shift && exec \"$@\"";

/// The place. Fields are dropped in order: the fleets first, the cluster last.
pub(super) struct Place {
    fleets: Vec<Program>,
    model: Model,
    /// The controllers. The first one serves the Segment.
    pub(super) controllers: Vec<Controller>,
    client: Client,
    _way: Forwarder,
    net: Netns,
    network: Network,
    scratch: Scratch,
    cluster: Cluster,
}

/// A role for a controller, and variables of its environment.
pub(super) type Wanted = (Role, Vec<(String, String)>);

impl Place {
    /// For servers of this model, with these controllers, of which the first one is to serve up to `hosts` hosts.
    pub(super) async fn start(hosts: u32, model: Model, controllers: Vec<Wanted>) -> Result<Place> {
        let (_, most) = getrlimit(Limit::RLIMIT_NOFILE).context("ask how many files may be open")?;
        setrlimit(Limit::RLIMIT_NOFILE, most, most).context("allow more open files")?;
        let scratch = Scratch::new()?;
        let cluster = Cluster::start().await?;
        let client = cluster.client()?;
        for namespace in [NAMESPACE, HOSTS] {
            cluster.ensure_namespace(namespace).await?;
        }
        let network = Network::new(&[BR0], &cluster)?;
        let net = network
            .net
            .neighbour(BR0.name, "eth0", &format!("{ADDRESS}/24"))?;
        let way = bridges::api_in(&net, &cluster)?;
        let mut place = Place {
            fleets: Vec::new(),
            model,
            controllers: Vec::new(),
            client,
            _way: way,
            net,
            network,
            scratch,
            cluster,
        };
        for (role, environment) in controllers {
            place.controller(role, environment).await?;
        }
        place.segment(hosts).await?;
        Ok(place)
    }

    async fn controller(&mut self, role: Role, environment: Vec<(String, String)>) -> Result<()> {
        let number = self.controllers.len();
        let mut setup = Setup::new(NAMESPACE)?;
        setup.role = role;
        setup.environment = environment;
        setup.extra = ["--watch-namespace", HOSTS].map(str::to_owned).to_vec();
        // All are in one network here, and each on a computer of its own as far as it can see: one that finds the process of a dead
        // leader on its own computer waits for no lease.
        setup.admin.set_port(0);
        setup.wrapper = [
            "unshare",
            "--uts",
            "sh",
            "-c",
            NAMED,
            "sh",
            &format!("controller-{number}"),
        ]
        .map(str::to_owned)
        .to_vec();
        let dir = self.scratch.sub(&format!("controller-{number}"))?;
        let mut controller = Controller::new(&self.cluster, &self.network.net, &dir, setup).await?;
        controller.start()?;
        self.controllers.push(controller);
        Ok(())
    }

    async fn segment(&mut self, hosts: u32) -> Result<()> {
        let mut spec = stage::segment(BR0, Profile::Lab, UnknownPolicy::Hold)?;
        let (own, _) = BR0.address.split_once('/').context("a bridge's address")?;
        spec.boot_address = Some(own.to_owned());
        spec.dhcp = Dhcp {
            mode: DhcpMode::Off,
            ..Dhcp::default()
        };
        spec.host_namespace = Some(HOSTS.to_owned());
        spec.quota = hosts;
        let made = serde_json::to_string(&Segment::new(SEGMENT, spec)).context("write a Segment")?;
        self.cluster.apply(&made, NAMESPACE).await?;
        let server = self.controllers.first_mut().context("no controller")?;
        stage::serving(&self.client, NAMESPACE, SEGMENT, SERVING, server).await
    }

    /// Starts fleets of `hosts` servers together, which make their hosts at once.
    pub(super) fn power(&mut self, hosts: u32, scale: f64) -> Result<()> {
        let program = env::current_exe().context("find this program")?;
        let model = self.model.to_possible_value().context("a model without a name")?;
        for (first, count) in shares(hosts, room()?) {
            let mut command = Command::new(&program);
            command
                .args(["fleet", "--segment", &format!("{NAMESPACE}/{SEGMENT}")])
                .args(["--address", ADDRESS])
                .args(["--hosts", &count.to_string(), "--first", &first.to_string()])
                .args(["--scale", &scale.to_string(), "--model", model.get_name()])
                .arg("--kubeconfig")
                .arg(self.cluster.kubeconfig())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let log = self.scratch.path().join(format!("fleet-{first}.log"));
            self.fleets
                .push(Program::new("a fleet", self.net.spawn(command)?, &log)?);
        }
        Ok(())
    }

    /// The objects of one kind in `namespace`.
    pub(super) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }
}

impl Site for Place {
    fn processes(&self) -> Result<Processes> {
        let controller = self.controllers.first().context("no controller")?;
        Ok(Processes {
            controller: controller.process().context("the controller has ended")?,
            api_server: self
                .cluster
                .process()
                .context("the cluster is not the lab's own")?,
            fleets: self.fleets.iter().map(Program::id).collect(),
        })
    }

    fn client(&self) -> &Client {
        &self.client
    }

    async fn create(&mut self, hosts: u32) -> Result<()> {
        self.power(hosts, 0.0)
    }

    fn lives(&mut self) -> Result<()> {
        for controller in &mut self.controllers {
            let ended = controller.process().is_some() && !controller.is_running();
            ensure!(
                !ended,
                "a controller ended: {}",
                controller.log().last(5).join("; ")
            );
        }
        self.fleets.iter_mut().try_for_each(Program::lives)
    }
}

/// How many servers one process may simulate.
fn room() -> Result<u32> {
    let (_, most) = getrlimit(Limit::RLIMIT_NOFILE).context("ask how many files may be open")?;
    let (each, rest) = FILES;
    u32::try_from(most.saturating_sub(rest) / each)
        .or(Ok(u32::MAX))
        .and_then(|room| match room {
            0 => anyhow::bail!("the system allows only {most} open files"),
            room => Ok(room),
        })
}

/// First number and size of each of as few equal parts as possible of at most `room` servers.
fn shares(hosts: u32, room: u32) -> Vec<(u32, u32)> {
    let parts = hosts.div_ceil(room).max(1);
    let mut first = 1;
    let sizes = (0..parts).map(|part| hosts / parts + u32::from(part < hosts % parts));
    sizes
        .map(|size| {
            let share = (first, size);
            first += size;
            share
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_is_in_one_process_that_has_room_for_it() {
        assert_eq!(shares(1000, 6500), [(1, 1000)]);
        assert_eq!(shares(10_000, 6500), [(1, 5000), (5001, 5000)]);
        assert_eq!(shares(5, 2), [(1, 2), (3, 2), (5, 1)]);
        assert!(room().unwrap() > 0);
    }
}
