//! Hosts from creation to available, left alone, and from there to provisioned.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    super::{computer, results::seconds},
    meter::{self, Requests},
    place::{HOSTS, NAMESPACE, Place},
    results::{Idle, Round, Stage},
    watch::Watch,
};
use crate::cluster::Role;

/// Hosts that have not come by then never will, for each host and at least.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(600));
/// Nothing goes on if nothing was written for so long.
const QUIET: Duration = Duration::from_secs(5);
/// It must be quiet by then.
const SETTLED: Duration = Duration::from_secs(180);

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

/// Measures; what is in `round` before something goes wrong stays there.
pub(super) async fn measure(size: Size, round: &mut Round) -> Result<()> {
    let Size { hosts, idle } = size;
    round.hosts = hosts;
    let mut place = Place::start(hosts, vec![(Role::Both, Vec::new())]).await?;
    let watch = Watch::start(place.api(HOSTS), None);
    let user = own([("POST secrets", hosts), ("POST baremetalhosts", hosts)]);
    let began = Began::now(&place).await?;
    round.fleets = place.power(hosts, 0.0)?;
    let there = watch.all(hosts, "available", patience(hosts)).await;
    place.lives()?;
    let took = there?.saturating_duration_since(watch.begun().context("no host was seen")?);
    round.available = Some(began.until_settled(&place, &watch, took, user).await?);
    say("available", round.available.as_ref(), hosts);

    round.stored = stored(&place).await?;
    round.etcd_file = meter::read(place.client()).await?.etcd_file;
    println!("  left alone for {} s", idle.as_secs());
    round.idle = Some(alone(&place, idle).await?);

    let names: Vec<String> = watch.hosts().into_keys().collect();
    let user = own([("PATCH baremetalhosts", hosts)]);
    let began = Began::now(&place).await?;
    place.want_image(&names).await?;
    let there = watch.all(hosts, "provisioned", patience(hosts)).await;
    place.lives()?;
    let took = there?.saturating_duration_since(began.at);
    round.provisioned = Some(began.until_settled(&place, &watch, took, user).await?);
    say("provisioned", round.provisioned.as_ref(), hosts);
    Ok(())
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
    async fn now(place: &Place) -> Result<Began> {
        Ok(Began {
            requests: meter::read(place.client()).await?.requests,
            controller: computer::cpu_seconds(&[controller(place)?])?,
            api_server: computer::cpu_seconds(&[place.api_server()?])?,
            fleets: computer::cpu_seconds(&place.fleets())?,
            at: Instant::now(),
        })
    }

    /// The stage, whose hosts `took` so long to be there, once nothing more is written.
    async fn until_settled(
        self,
        place: &Place,
        watch: &Watch,
        took: Duration,
        user: Requests,
    ) -> Result<Stage> {
        let there = Instant::now();
        let requests = quiet(place).await?;
        // The last look only found that it was quiet before.
        let settled = there.elapsed().saturating_sub(QUIET);
        let mut requests = meter::since(&self.requests, &requests);
        for (key, count) in &user {
            if let Some(all) = requests.get_mut(key) {
                *all = all.saturating_sub(*count);
            }
        }
        requests.retain(|_, count| *count > 0);
        let (resident_kib, peak_kib) = computer::resident(controller(place)?)?;
        Ok(Stage {
            seconds: seconds(took),
            settled: seconds(settled),
            requests,
            own: user,
            controller_cpu: round(computer::cpu_seconds(&[controller(place)?])? - self.controller),
            api_server_cpu: round(computer::cpu_seconds(&[place.api_server()?])? - self.api_server),
            fleet_cpu: round(computer::cpu_seconds(&place.fleets())? - self.fleets),
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

fn controller(place: &Place) -> Result<u32> {
    let controller = place.controllers.first().context("no controller")?;
    controller.process().context("the controller has ended")
}

/// Waits until nothing but Leases was written for a while, or for as long as it may take; the API server's counts then.
async fn quiet(place: &Place) -> Result<Requests> {
    let begun = Instant::now();
    let mut before = meter::read(place.client()).await?.requests;
    loop {
        tokio::time::sleep(QUIET).await;
        let now = meter::read(place.client()).await?.requests;
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
        controller_cpu: round(computer::cpu_seconds(&[controller(place)?])? - began.controller),
    })
}

/// What is stored of the hosts, by resource.
async fn stored(place: &Place) -> Result<BTreeMap<String, super::results::Stored>> {
    let mut all = BTreeMap::new();
    for (name, path) in [
        (
            "baremetalhosts",
            format!("/apis/metal3.io/v1alpha1/namespaces/{HOSTS}/baremetalhosts"),
        ),
        (
            "hardwaredata",
            format!("/apis/metal3.io/v1alpha1/namespaces/{HOSTS}/hardwaredata"),
        ),
        (
            "servers",
            format!("/apis/muster.dev/v1alpha1/namespaces/{NAMESPACE}/servers"),
        ),
        (
            "enrolments",
            format!("/apis/muster.dev/v1alpha1/namespaces/{NAMESPACE}/enrolments"),
        ),
        ("secrets", format!("/api/v1/namespaces/{HOSTS}/secrets")),
        ("events, of hosts", format!("/api/v1/namespaces/{HOSTS}/events")),
        (
            "events, of Servers",
            format!("/api/v1/namespaces/{NAMESPACE}/events"),
        ),
    ] {
        all.insert(name.to_owned(), meter::stored(place.client(), &path).await?);
    }
    Ok(all)
}
