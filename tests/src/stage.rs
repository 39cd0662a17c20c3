//! What most suites need: a namespace, a network, Segments and a controller that serves them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, PostParams},
    runtime::{WatchStreamExt, wait::await_condition, watcher},
};
use muster_proto::{
    Mac,
    kinds::{BareMetalHost, Dhcp, DhcpMode, Profile, Range, Segment, SegmentSpec, Server, UnknownPolicy},
};

use crate::{
    bridges::{Bridge, Network},
    cluster::{Cluster, Role},
    controller::{Controller, Setup},
    netns::Netns,
    scratch::Scratch,
};

/// A controller that was just started serves within this time.
const SERVING: Duration = Duration::from_secs(60);

/// One test's part of the world. Dropped in order: the controller first, its files last.
#[derive(Debug)]
pub struct Stage {
    /// The controller.
    pub controller: Controller,
    /// The network.
    pub network: Network,
    /// The namespace of everything.
    pub namespace: String,
    /// Where files go.
    pub scratch: Scratch,
    client: Quiet,
}

/// Gives the client, whose insides are no use in a panic's message, a Debug.
struct Quiet(Client);

impl std::fmt::Debug for Quiet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Stage {
    /// Prepares everything but starts no controller. `purpose` begins the namespace's name.
    pub async fn dark(purpose: &str, bridges: &[Bridge]) -> Result<Stage> {
        let cluster = Cluster::shared().await?;
        let namespace = cluster.namespace(purpose).await?;
        let network = Network::new(bridges, cluster)?;
        let scratch = Scratch::new()?;
        let mut setup = Setup::new(&namespace)?;
        // Tests share the API server: nobody may act on another's hosts.
        setup.extra = ["--watch-namespace", &namespace].map(str::to_owned).to_vec();
        let controller = Controller::new(cluster, &network.net, scratch.path(), setup).await?;
        Ok(Stage {
            controller,
            network,
            namespace,
            scratch,
            client: Quiet(cluster.client()?),
        })
    }

    /// With the controller running and serving one Segment per bridge.
    pub async fn lit(purpose: &str, segments: &[(Bridge, Profile, UnknownPolicy)]) -> Result<Stage> {
        let bridges: Vec<_> = segments.iter().map(|(bridge, ..)| *bridge).collect();
        let mut stage = Stage::dark(purpose, &bridges).await?;
        stage.controller.start()?;
        for (bridge, profile, unknown) in segments {
            let spec = segment(*bridge, *profile, *unknown)?;
            stage.serve(bridge.name, spec).await?;
        }
        Ok(stage)
    }

    /// Prepares one more controller of this stage, on the computer whose network is `net`, with `role` and its rights only.
    /// Its log is that of `name`.
    pub async fn another(&self, net: &Netns, role: Role, name: &str) -> Result<Controller> {
        let mut setup = Setup::new(&self.namespace)?;
        setup.role = role;
        setup.admin.set_port(0);
        setup.extra = ["--watch-namespace", &self.namespace].map(str::to_owned).to_vec();
        let dir = self.scratch.sub(name)?;
        Controller::new(Cluster::shared().await?, net, &dir, setup).await
    }

    /// Makes the Segment `name` and waits until it is served.
    pub async fn serve(&mut self, name: &str, spec: SegmentSpec) -> Result<()> {
        let segment = Segment::new(name, spec);
        self.api::<Segment>()
            .create(&PostParams::default(), &segment)
            .await
            .with_context(|| format!("make Segment {name}"))?;
        serving(
            &self.client.0,
            &self.namespace,
            name,
            SERVING,
            &mut self.controller,
        )
        .await
    }

    /// The objects of one kind in the stage's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.0.clone(), &self.namespace)
    }

    /// The host that has the NIC `mac` and for which `test` holds, as soon as there is one.
    pub async fn host(
        &self,
        mac: Mac,
        within: Duration,
        test: impl Fn(&BareMetalHost) -> bool,
    ) -> Result<BareMetalHost> {
        let mut changes = watcher(self.api::<BareMetalHost>(), watcher::Config::default())
            .default_backoff()
            .applied_objects()
            .boxed();
        let found = async {
            while let Some(change) = changes.next().await {
                // The watch begins anew by itself.
                let Ok(host) = change else { continue };
                if macs(&host).contains(&mac) && test(&host) {
                    return Some(host);
                }
            }
            None
        };
        if let Ok(Some(host)) = tokio::time::timeout(within, found).await {
            return Ok(host);
        }
        let hosts = self.hosts().await?;
        let names: Vec<_> = hosts.iter().map(ResourceExt::name_any).collect();
        bail!(
            "no host with {mac} was as expected within {within:?}; there are {names:?}; the controller's last lines:\n  {}",
            self.controller.log().last(20).join("\n  ")
        )
    }

    /// All hosts.
    pub async fn hosts(&self) -> Result<Vec<BareMetalHost>> {
        let list = self.api::<BareMetalHost>().list(&ListParams::default()).await;
        Ok(list.context("list hosts")?.items)
    }

    /// All Servers, by name.
    pub async fn servers(&self) -> Result<BTreeMap<String, Server>> {
        let list = self.api::<Server>().list(&ListParams::default()).await;
        let items = list.context("list Servers")?.items;
        Ok(items
            .into_iter()
            .map(|server| (server.name_any(), server))
            .collect())
    }
}

/// The MAC addresses in a host's hardware.
pub fn macs(host: &BareMetalHost) -> Vec<Mac> {
    let hardware = host.status.as_ref().and_then(|status| status.hardware.as_ref());
    let nics = hardware
        .map(|hardware| hardware.nics.as_slice())
        .unwrap_or_default();
    nics.iter()
        .filter_map(|nic| nic.mac.as_ref()?.parse().ok())
        .collect()
}

/// A Segment on `bridge` that gives out the addresses 100 to 199 of its /24.
pub fn segment(bridge: Bridge, profile: Profile, unknown: UnknownPolicy) -> Result<SegmentSpec> {
    let network = bridge
        .address
        .rsplit_once('.')
        .map(|(network, _)| network)
        .context("a bridge's address")?;
    Ok(SegmentSpec {
        interface: Some(bridge.name.to_owned()),
        subnet: format!("{network}.0/24"),
        dhcp: Dhcp {
            mode: DhcpMode::Server,
            ranges: vec![Range {
                start: format!("{network}.100"),
                end: format!("{network}.199"),
            }],
            ..Dhcp::default()
        },
        unknown,
        quota: 1000,
        profile,
        kernel_parameters: vec!["console=ttyS0,115200".to_owned()],
        ..SegmentSpec::default()
    })
}

/// Waits until `controller` serves the Segment `name`.
pub async fn serving(
    client: &Client,
    namespace: &str,
    name: &str,
    within: Duration,
    controller: &mut Controller,
) -> Result<()> {
    let api: Api<Segment> = Api::namespaced(client.clone(), namespace);
    let served = await_condition(api, name, |segment: Option<&Segment>| {
        let status = segment.and_then(|segment| segment.status.as_ref());
        let conditions = status
            .map(|status| status.conditions.as_slice())
            .unwrap_or_default();
        conditions
            .iter()
            .any(|condition| condition.type_ == "Serving" && condition.status == "True")
    });
    match tokio::time::timeout(within, served).await {
        Ok(outcome) => {
            outcome.with_context(|| format!("wait for Segment {name}"))?;
            Ok(())
        }
        Err(_) => bail!(
            "the controller does not serve Segment {name} after {within:?}{}; its last lines:\n  {}",
            if controller.is_running() {
                ""
            } else {
                ", it has ended"
            },
            controller.log().last(20).join("\n  ")
        ),
    }
}
