//! What most suites need: a namespace, a network, Segments and a controller that serves them.

mod canaries;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::{core::v1::Secret, events::v1::Event};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, wait::await_condition, watcher},
};
use muster_proto::{
    Mac,
    kinds::{
        BareMetalHost, Dhcp, DhcpMode, Packed, Profile, Range, Segment, SegmentSpec, Server, SessionState,
        Trust, UnknownPolicy,
    },
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{
    bridges::{BR0, Bridge, Network},
    cluster::{Cluster, Role},
    controller::{Controller, Setup},
    netns::Netns,
    scratch::Scratch,
    sim::{
        agent::{SimServer, Step},
        rack::Rack,
    },
};

/// A controller that was just started serves within this time.
const SERVING: Duration = Duration::from_secs(60);
/// How often something is looked for that cannot be watched.
const LOOK: Duration = Duration::from_millis(50);

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
        Stage::dark_with(purpose, bridges, |_| {}).await
    }

    /// The same with a controller that is set up otherwise.
    pub async fn dark_with(
        purpose: &str,
        bridges: &[Bridge],
        change: impl FnOnce(&mut Setup),
    ) -> Result<Stage> {
        let cluster = Cluster::shared().await?;
        let namespace = cluster.namespace(purpose).await?;
        let network = Network::new(bridges, cluster)?;
        let scratch = Scratch::new()?;
        let mut setup = Setup::new(&namespace)?;
        // Tests share the API server: nobody may act on another's hosts.
        setup.extra = ["--watch-namespace", &namespace].map(str::to_owned).to_vec();
        change(&mut setup);
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

    /// A lit stage with one Segment on [`BR0`] that does this to unknown machines, and a rack of simulated servers there.
    pub async fn with_rack(purpose: &str, unknown: UnknownPolicy) -> Result<(Stage, Rack)> {
        let stage = Stage::lit(purpose, &[(BR0, Profile::Lab, unknown)]).await?;
        let rack = stage.rack()?;
        Ok((stage, rack))
    }

    /// The same where unknown machines are held. Panics where no controller comes to serve.
    pub async fn holding(purpose: &str) -> (Stage, Rack) {
        let lit = Stage::with_rack(purpose, UnknownPolicy::Hold).await;
        lit.expect("a controller that serves")
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

    /// A rack of simulated servers on [`BR0`].
    pub fn rack(&self) -> Result<Rack> {
        Rack::behind(&self.network.net, BR0.name, "10.77.0.2/24")
    }

    /// The host of `server`, once its agent's report is stored and the host shows hardware.
    pub async fn discovered(&self, server: &SimServer, within: Duration) -> Result<BareMetalHost> {
        server.reaches(Step::Reported, within).await?;
        let shows = |host: &BareMetalHost| {
            let status = host.status.as_ref();
            status.is_some_and(|status| status.hardware.is_some())
        };
        self.host(server.hardware().boot_mac(), within, shows).await
    }

    /// The objects of one kind in the stage's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.0.clone(), &self.namespace)
    }

    /// Makes the Secret `name` with these keys and texts.
    pub async fn secret(&self, name: &str, texts: &[(&str, &str)]) -> Result<()> {
        let texts = texts
            .iter()
            .map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
        let mut secret = Secret {
            string_data: Some(texts.collect()),
            ..Secret::default()
        };
        secret.metadata.name = Some(name.to_owned());
        self.api::<Secret>()
            .create(&PostParams::default(), &secret)
            .await
            .with_context(|| format!("make Secret {name}"))?;
        Ok(())
    }

    /// Patches the host `name` as `kubectl patch --type merge` does.
    pub async fn patch(&self, name: &str, patch: Value) -> Result<()> {
        self.api::<BareMetalHost>()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("patch host {name}"))?;
        Ok(())
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

    /// What `look` finds, as soon as it finds something; `what` names it in the error. Looked for again and again.
    pub async fn until<T>(
        &self,
        what: &str,
        within: Duration,
        mut look: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                bail!(
                    "{what}: not within {within:?}; the controller's last lines:\n  {}",
                    self.controller.log().last(20).join("\n  ")
                );
            }
            sleep(LOOK).await;
        }
    }

    /// What people were told about the objects of the stage.
    pub async fn told(&self) -> Result<Vec<Told>> {
        let list = self.api::<Event>().list(&ListParams::default()).await;
        let told = list.context("list Events")?.items.into_iter().map(|event| {
            let about = event.regarding.unwrap_or_default();
            Told {
                kind: about.kind.unwrap_or_default(),
                name: about.name.unwrap_or_default(),
                reason: event.reason.unwrap_or_default(),
                note: event.note.unwrap_or_default(),
            }
        });
        Ok(told.collect())
    }

    /// Waits for an Event of `reason` about the object called `name`, of whatever kind.
    pub async fn hears(&self, name: &str, reason: &str, within: Duration) -> Result<Told> {
        let what = format!("an Event {reason} about {name}");
        self.until(&what, within, async || {
            let mut told = self.told().await?.into_iter();
            Ok(told.find(|told| told.name == name && told.reason == reason))
        })
        .await
    }

    /// Waits until the session of the Server `name` is over.
    pub async fn forgets(&self, name: &str, within: Duration) -> Result<()> {
        self.until(&format!("the end of {name}'s session"), within, async || {
            let server = self.api::<Server>().get(name).await.context("get the Server")?;
            let session = server.status.and_then(|status| status.session);
            Ok(session
                .is_none_or(|session| session.state == SessionState::Disconnected)
                .then_some(()))
        })
        .await
    }

    /// Waits until the machine that booted from `mac` has got to `percent` of its image.
    pub async fn has_written(&self, mac: Mac, percent: u8, within: Duration) -> Result<()> {
        let what = format!("{percent} % of the image are to be written");
        self.until(&what, within, async || {
            let server = self.api::<Server>().get(&server_name(mac)).await?;
            let job = server.status.and_then(|status| status.job);
            let job = job.filter(|job| job.id.contains("-write"));
            let progress = job.and_then(|job| job.progress);
            Ok(progress.filter(|progress| progress.percent == percent).map(drop))
        })
        .await
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

/// An Event, as people read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The kind of the object that it is about.
    pub kind: String,
    /// That object's name.
    pub name: String,
    /// Why, for machines.
    pub reason: String,
    /// What, for people.
    pub note: String,
}

/// What the Server of a machine is called that booted from `mac` when it first came.
pub fn server_name(mac: Mac) -> String {
    format!("mac-{}", mac.hex())
}

/// The memory in a host's hardware, in MiB.
pub fn memory_mib(host: &BareMetalHost) -> Option<i64> {
    host.status.as_ref()?.hardware.as_ref()?.unpack().ram_mebibytes
}

/// The MAC addresses in a host's hardware.
pub fn macs(host: &BareMetalHost) -> Vec<Mac> {
    let hardware = host.status.as_ref().and_then(|status| status.hardware.as_ref());
    let hardware = hardware.map(Packed::unpack).unwrap_or_default();
    let nics = hardware.nics.iter();
    nics.filter_map(|nic| nic.mac.as_ref()?.parse().ok()).collect()
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
        required_trust: Some(Trust::Segment),
        profile,
        // An emulated timer misses the kernel's check of it (`timer_irq_works`) where the computer is busy: it panics then.
        kernel_parameters: ["console=ttyS0,115200", "no_timer_check"]
            .map(str::to_owned)
            .to_vec(),
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

/// Where `host` is in its life; empty before anybody has looked at it.
pub fn state(host: &BareMetalHost) -> &str {
    host.status
        .as_ref()
        .map_or("", |status| &status.provisioning.state)
}
