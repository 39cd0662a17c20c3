//! The leader is asked to end while all hosts are at rest, its successor is killed while writes end one after the other, and others
//! stand by.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;

use super::{
    super::results::seconds,
    place::{HOSTS, NAMESPACE, Place},
    results::Failover,
    round::{Site, patience, want_image},
    watch::{Host, Watch, Writes, rewritten},
};
use crate::{
    cluster::Role,
    controller::Controller,
    fleet::pace::{Step, takes},
    sim::hardware::Model,
};

/// What a fleet's step takes of a real server's time: a write takes 144 to 216 s, longer than it takes to order all of them, and they end
/// no faster than an API server on two cores can be told so.
const SCALE: f64 = 3.0;
/// The controller's defaults: how long a Lease lasts, and how often it is renewed or asked for, in seconds.
const LEASE: [f64; 2] = [15.0, 2.0];
const NAME: &str = "muster-control";
const LOOK: Duration = Duration::from_millis(50);
/// Another one leads by then.
const SOON: Duration = Duration::from_secs(60);

/// Brings `hosts` hosts to available, asks the leader to end, gives the hosts an image, and kills the next leader once the first one
/// is provisioned: from then on writes end all the time, and those that end while nobody leads wait for the next leader.
pub(super) async fn measure(hosts: u32) -> Result<Failover> {
    let limit = ("PROVISIONING_LIMIT".to_owned(), hosts.to_string());
    let control = || (Role::Control, vec![limit.clone()]);
    let controllers = vec![(Role::Edge, Vec::new()), control(), control(), control()];
    let mut place = Place::start(hosts, Model::Storage, controllers).await?;
    let watch = Watch::start(place.api(HOSTS), Some(place.api(NAMESPACE)));
    place.power(hosts, SCALE)?;
    watch.all(hosts, "available", patience(hosts)).await?;

    let leases: Api<Lease> = place.api(NAMESPACE);
    let handed_over = hand_over(&mut place.controllers, &leases).await?;
    println!("  asked to end, the leader is replaced by another one after {handed_over} s");
    let leader = leading(&leases).await?;
    let names: Vec<String> = watch.hosts().into_keys().collect();
    want_image(place.client(), &names).await?;
    let told = first_provisioned(&watch, patience(hosts)).await?;
    let before = watch.hosts();
    of(&mut place.controllers, leader)?.kill();
    let killed = Instant::now();
    let taken_over = followed(&leases, leader, killed).await?;
    println!("  another one leads after {taken_over} s");
    let there = watch.all(hosts, "provisioned", patience(hosts)).await;
    place.lives()?;
    there?;
    let (after, writes) = (watch.hosts(), watch.writes());
    let busy = |host: &Host| host.since("provisioned").is_none();
    Ok(Failover {
        hosts,
        busy: before.values().filter(|host| busy(host)).count(),
        lease: LEASE,
        write: shortest_and_longest(Step::Write, hosts, SCALE),
        told: Some(told),
        handed_over,
        taken_over,
        leaderless: ended_within(&writes, killed, Duration::from_secs_f64(taken_over)),
        waits: waits(&before, &after, &writes, killed),
        provisioned: after.values().filter(|host| !busy(host)).count(),
        rewritten: rewritten(&writes).len(),
        seen: watch.seen(),
    })
}

/// How long `step` takes on the fastest and on the slowest of `hosts` servers, in seconds.
fn shortest_and_longest(step: Step, hosts: u32, scale: f64) -> [f64; 2] {
    let times = (1..=hosts).map(|number| takes(step, number, scale));
    [times.clone().min(), times.max()].map(|time| seconds(time.unwrap_or_default()))
}

/// The number of the process that holds the Lease: the last but one part of its name.
async fn holder(leases: &Api<Lease>) -> Result<Option<u32>> {
    let lease = leases.get_opt(NAME).await.context("read the Lease")?;
    let identity = lease.and_then(|lease| lease.spec?.holder_identity);
    Ok(identity.and_then(|identity| identity.rsplit('_').nth(1)?.parse().ok()))
}

/// The process that leads.
async fn leading(leases: &Api<Lease>) -> Result<u32> {
    holder(leases).await?.context("nobody leads")
}

/// Waits until another one than `leader` leads; how long after `since`, in seconds.
async fn followed(leases: &Api<Lease>, leader: u32, since: Instant) -> Result<f64> {
    loop {
        if holder(leases).await?.is_some_and(|now| now != leader) {
            return Ok(seconds(since.elapsed()));
        }
        if since.elapsed() > SOON {
            bail!("nobody took over within {} s", SOON.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks the leader to end (SIGTERM); how long until another one leads, in seconds.
async fn hand_over(controllers: &mut [Controller], leases: &Api<Lease>) -> Result<f64> {
    let leader = leading(leases).await?;
    let leading = of(controllers, leader)?;
    let asked = Instant::now();
    let (ended, followed) = tokio::join!(leading.stop(SOON), followed(leases, leader, asked));
    ensure!(ended, "the leader did not end within {} s", SOON.as_secs());
    // Else it was followed this soon only because it is seen on this computer that it ended.
    let said = leading.log().wait_for("the Lease is released", 0, SOON);
    said.await.context("the leader gives its Lease up")?;
    followed
}

/// The controller whose process is `number`.
fn of(controllers: &mut [Controller], number: u32) -> Result<&mut Controller> {
    let found = controllers
        .iter_mut()
        .find(|controller| controller.process() == Some(number));
    found.with_context(|| format!("no controller is process {number}"))
}

/// Waits until the first host is provisioned; how many have been told to write by then.
async fn first_provisioned(watch: &Watch, within: Duration) -> Result<usize> {
    let begun = Instant::now();
    loop {
        let writes = watch.writes();
        let told = writes.values().filter(|writes| !writes.is_empty()).count();
        let provisioned = |host: &Host| host.since("provisioned").is_some();
        if watch.hosts().values().any(provisioned) {
            println!(
                "  the first host is provisioned after {:.1} s; {told} were told to write",
                begun.elapsed().as_secs_f64()
            );
            return Ok(told);
        }
        if begun.elapsed() > within {
            bail!(
                "none of {told} hosts that were told to write is provisioned within {} s",
                within.as_secs()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How many hosts' writes ended `within` so long from `since`.
fn ended_within(writes: &HashMap<String, Writes>, since: Instant, within: Duration) -> usize {
    let ends = writes
        .values()
        .filter_map(|writes| writes.values().flatten().min());
    ends.filter(|end| **end >= since && end.duration_since(since) <= within)
        .count()
}

/// How long each host that was busy waited for a leader, in seconds, in order.
fn waits(
    before: &HashMap<String, Host>,
    after: &HashMap<String, Host>,
    writes: &HashMap<String, Writes>,
    killed: Instant,
) -> Vec<f64> {
    let waited = after.iter().filter_map(|(name, host)| {
        let was_busy = before
            .get(name)
            .is_none_or(|host| host.since("provisioned").is_none());
        let there = host.since("provisioned").filter(|_| was_busy)?;
        let written = writes
            .get(name)
            .and_then(|writes| writes.values().flatten().min());
        let ready = written.map_or(killed, |written| killed.max(*written));
        Some(seconds(there.saturating_duration_since(ready)))
    });
    let mut waits: Vec<f64> = waited.collect();
    waits.sort_by(f64::total_cmp);
    waits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_waits_from_the_end_of_its_write_but_not_before_the_kill() {
        let killed = Instant::now();
        let at = |seconds| killed + Duration::from_secs(seconds);
        let host = |state: &str, at| Host {
            states: vec![(state.to_owned(), at)],
            ..Host::default()
        };
        let names = ["early", "late", "done"].map(str::to_owned);
        let [early, late, done] = names;
        let before = HashMap::from([
            (early.clone(), host("provisioning", killed)),
            (late.clone(), host("provisioning", killed)),
            (done.clone(), host("provisioned", killed)),
        ]);
        let after = HashMap::from([
            (early.clone(), host("provisioned", at(17))),
            (late.clone(), host("provisioned", at(31))),
            (done, host("provisioned", killed)),
        ]);
        let writes = HashMap::from([
            (early, Writes::from([("1".to_owned(), None)])),
            (late, Writes::from([("2".to_owned(), Some(at(30)))])),
        ]);
        assert_eq!(waits(&before, &after, &writes, killed), [1.0, 17.0]);
        let ended = |within| ended_within(&writes, killed, Duration::from_secs(within));
        assert_eq!((ended(29), ended(30)), (0, 1));
    }
}
