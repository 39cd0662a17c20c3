//! Hosts from creation to available, left alone, and from there to provisioned.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use muster_proto::kinds::BareMetalHost;
use serde_json::json;

use super::{
    super::{computer, results::seconds},
    meter::{self, Form, Requests},
    peer::Peer,
    place::{HOSTS, NAMESPACE, Place},
    results::{self, Idle, Round, Stage},
    watch::Watch,
};
use crate::{cluster::Role, sim::hardware::Model};

/// Hosts that have not come by then never will, for each host and at least.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(600));
/// Nothing goes on if nothing was written for so long.
const QUIET: Duration = Duration::from_secs(5);
/// It must be quiet by then.
const SETTLED: Duration = Duration::from_secs(180);
/// What most hosts are: the goal for what is stored is theirs.
pub(super) const TYPICAL: Model = Model::Compute;
/// Requests of the user at the same time.
pub(super) const AT_ONCE: usize = 16;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) hosts: u32,
    /// How long the hosts are left alone.
    pub(super) idle: Duration,
}

pub(super) fn patience(hosts: u32) -> Duration {
    let (each, least) = PATIENCE;
    least.max(each * hosts)
}

/// Where hosts are measured: an API server, whoever brings them to their states, and a user.
pub(super) trait Site {
    /// The processes whose time is measured.
    fn processes(&self) -> Result<Processes>;

    /// A client with all rights.
    fn client(&self) -> &Client;

    /// Makes `hosts` hosts in [`HOSTS`], each with the Secret of its BMC. May return before all are there.
    async fn create(&mut self, hosts: u32) -> Result<()>;

    /// Fails if one of the processes has ended, with what it said last.
    fn lives(&mut self) -> Result<()>;
}

/// Processes by number.
pub(super) struct Processes {
    pub(super) controller: u32,
    /// The API server and etcd.
    pub(super) api_server: u32,
    /// Those that simulate servers.
    pub(super) fleets: Vec<u32>,
}

/// Measures; what is in `round` before something goes wrong stays there.
pub(super) async fn measure(size: Size, round: &mut Round) -> Result<()> {
    let Size { hosts, idle } = size;
    round.hosts = hosts;
    let mut place = Place::start(hosts, Model::Storage, vec![(Role::Both, Vec::new())]).await?;
    let watch = available(&mut place, hosts, round).await?;
    round.stored = stored(place.client()).await?;
    round.etcd_file = meter::read(place.client()).await?.etcd_file;
    println!("  left alone for {} s", idle.as_secs());
    round.idle = Some(alone(&place, idle).await?);
    provisioned(&mut place, hosts, &watch, round).await
}

/// What is stored of `hosts` available hosts of the model [`TYPICAL`].
pub(super) async fn measure_typical(hosts: u32, round: &mut Round) -> Result<()> {
    round.hosts = hosts;
    let mut place = Place::start(hosts, TYPICAL, vec![(Role::Both, Vec::new())]).await?;
    available(&mut place, hosts, round).await?;
    round.stored = stored(place.client()).await?;
    Ok(())
}

/// Like [`measure`] for the peer, of whose hosts none is left alone.
pub(super) async fn measure_peer(hosts: u32, round: &mut Round) -> Result<()> {
    round.hosts = hosts;
    let mut peer = Peer::start().await?;
    let watch = available(&mut peer, hosts, round).await?;
    round.stored = stored(peer.client()).await?;
    round.etcd_file = meter::read(peer.client()).await?.etcd_file;
    provisioned(&mut peer, hosts, &watch, round).await
}

/// Makes the hosts and brings them to available; their watcher.
async fn available(site: &mut impl Site, hosts: u32, round: &mut Round) -> Result<Watch> {
    let watch = Watch::start(machines(site.client()), None);
    let user = own([("POST secrets", hosts), ("POST baremetalhosts", hosts)]);
    let began = Began::now(site).await?;
    site.create(hosts).await?;
    round.fleets = site.processes()?.fleets.len();
    let there = watch.all(hosts, "available", patience(hosts)).await;
    site.lives()?;
    let took = there?.saturating_duration_since(watch.begun().context("no host was seen")?);
    round.available = Some(began.until_settled(site, &watch, took, user).await?);
    say("available", round.available.as_ref(), hosts);
    Ok(watch)
}

/// Gives each of the hosts an image, and brings them to provisioned.
async fn provisioned(site: &mut impl Site, hosts: u32, watch: &Watch, round: &mut Round) -> Result<()> {
    let names: Vec<String> = watch.hosts().into_keys().collect();
    let user = own([("PATCH baremetalhosts", hosts)]);
    let began = Began::now(site).await?;
    want_image(site.client(), &names).await?;
    let there = watch.all(hosts, "provisioned", patience(hosts)).await;
    site.lives()?;
    let took = there?.saturating_duration_since(began.at);
    round.provisioned = Some(began.until_settled(site, watch, took, user).await?);
    say("provisioned", round.provisioned.as_ref(), hosts);
    Ok(())
}

fn machines(client: &Client) -> Api<BareMetalHost> {
    Api::namespaced(client.clone(), HOSTS)
}

/// Sets an image for every host; none of them exists, and nobody asks.
pub(super) async fn want_image(client: &Client, hosts: &[String]) -> Result<()> {
    let image = json!({"url": "http://images.test/os.raw", "format": "raw",
        "checksum": "0".repeat(64), "checksumType": "sha256"});
    let wish = json!({"spec": {"image": image}});
    let api = machines(client);
    let parameters = PatchParams::default();
    let wishes = hosts.iter().map(|host| {
        let (api, wish, parameters) = (&api, &wish, &parameters);
        async move {
            let patched = api.patch(host, parameters, &Patch::Merge(wish)).await;
            patched.map(drop).with_context(|| format!("patch {host}"))
        }
    });
    stream::iter(wishes).buffer_unordered(AT_ONCE).try_collect().await
}

fn own<const N: usize>(requests: [(&str, u32); N]) -> Requests {
    requests.map(|(key, count)| (key.to_owned(), count.into())).into()
}

fn say(state: &str, stage: Option<&Stage>, hosts: u32) {
    let Some(stage) = stage else { return };
    let requests = stage.requests(|_| true);
    println!(
        "  all {state} after {} s; {:.1} requests a host; CPU: controller {:.1} s, API server {:.1} s, fleet {:.1} s; controller {} MiB, at most {} MiB",
        stage.seconds,
        f64::from(u32::try_from(requests).unwrap_or(u32::MAX)) / f64::from(hosts),
        stage.controller_cpu,
        stage.api_server_cpu,
        stage.fleet_cpu,
        stage.resident_kib >> 10,
        stage.peak_kib >> 10,
    );
}

/// How everything stood when a stage began.
struct Began {
    at: Instant,
    requests: Requests,
    controller: f64,
    api_server: f64,
    fleets: f64,
}

impl Began {
    async fn now(site: &impl Site) -> Result<Began> {
        let processes = site.processes()?;
        Ok(Began {
            requests: meter::read(site.client()).await?.requests,
            controller: computer::cpu_seconds(&[processes.controller])?,
            api_server: computer::cpu_seconds(&[processes.api_server])?,
            fleets: computer::cpu_seconds(&processes.fleets)?,
            at: Instant::now(),
        })
    }

    /// The stage, whose hosts `took` so long to be there, once nothing more is written.
    async fn until_settled(
        self,
        site: &impl Site,
        watch: &Watch,
        took: Duration,
        user: Requests,
    ) -> Result<Stage> {
        let there = Instant::now();
        let requests = quiet(site.client()).await?;
        // The last look only found that it was quiet before.
        let settled = there.elapsed().saturating_sub(QUIET);
        let mut requests = meter::since(&self.requests, &requests);
        for (key, count) in &user {
            if let Some(all) = requests.get_mut(key) {
                *all = all.saturating_sub(*count);
            }
        }
        requests.retain(|_, count| *count > 0);
        let processes = site.processes()?;
        let (resident_kib, peak_kib) = computer::resident(processes.controller)?;
        Ok(Stage {
            seconds: seconds(took),
            settled: seconds(settled),
            requests,
            own: user,
            controller_cpu: round(computer::cpu_seconds(&[processes.controller])? - self.controller),
            api_server_cpu: round(computer::cpu_seconds(&[processes.api_server])? - self.api_server),
            fleet_cpu: round(computer::cpu_seconds(&processes.fleets)? - self.fleets),
            resident_kib,
            peak_kib,
            seen: watch.seen(),
        })
    }
}

/// To the hundredth, as the kernel counts.
fn round(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}

/// Waits until nothing but Leases was written for a while, or for as long as it may take; the API server's counts then.
async fn quiet(client: &Client) -> Result<Requests> {
    let begun = Instant::now();
    let mut before = meter::read(client).await?.requests;
    loop {
        tokio::time::sleep(QUIET).await;
        let now = meter::read(client).await?.requests;
        let mut written = meter::writes(&meter::since(&before, &now));
        written.retain(|key, _| !meter::is_lease(key));
        if written.is_empty() || begun.elapsed() > SETTLED {
            return Ok(now);
        }
        before = now;
    }
}

async fn alone(place: &Place, idle: Duration) -> Result<Idle> {
    let began = Began::now(place).await?;
    tokio::time::sleep(idle).await;
    let elapsed = began.at.elapsed();
    let now = meter::read(place.client()).await?.requests;
    let written = meter::writes(&meter::since(&began.requests, &now));
    let (lease, writes): (Requests, Requests) =
        written.into_iter().partition(|(key, _)| meter::is_lease(key));
    Ok(Idle {
        seconds: seconds(elapsed),
        writes,
        lease_writes: lease.values().sum(),
        controller_cpu: round(computer::cpu_seconds(&[place.processes()?.controller])? - began.controller),
    })
}

/// What is stored of the hosts, by resource; of what this API server does not know, nothing.
async fn stored(client: &Client) -> Result<BTreeMap<String, results::Stored>> {
    let own = |group: &str, namespace: &str, resource: &str| {
        let path = format!("/apis/{group}/v1alpha1/namespaces/{namespace}/{resource}");
        (resource.to_owned(), path, Form::Json)
    };
    let core = |name: &str, namespace: &str, resource: &str| {
        let path = format!("/api/v1/namespaces/{namespace}/{resource}");
        (name.to_owned(), path, Form::Protobuf)
    };
    let mut all = BTreeMap::new();
    for (name, path, form) in [
        own("metal3.io", HOSTS, "baremetalhosts"),
        own("metal3.io", HOSTS, "hardwaredata"),
        own("metal3.io", HOSTS, "hostfirmwarecomponents"),
        own("metal3.io", HOSTS, "hostfirmwaresettings"),
        own("muster.dev", NAMESPACE, "servers"),
        own("muster.dev", NAMESPACE, "enrolments"),
        core("secrets", HOSTS, "secrets"),
        core("events, of hosts", HOSTS, "events"),
        core("events, of Servers", NAMESPACE, "events"),
    ] {
        if let Some(stored) = meter::stored(client, &path, form).await? {
            all.insert(name, stored);
        }
    }
    Ok(all)
}
