//! Several controllers with the control role, of which one acts: killed, told to end, and stopped for longer than its lease.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use muster_proto::kinds::{Profile, UnknownPolicy};
use muster_tests::{
    bridges::BR0,
    cluster::{Cluster, Role},
    controller::{Controller, Setup},
    stage::{Stage, segment},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Generous: a lease, and what the machine needs when it is busy.
const SOON: Duration = Duration::from_secs(120);
const LEASE: &str = "muster-control";

/// One edge, and `controls` controllers with the control role, whose lease lasts for `seconds`.
async fn stage(purpose: &str, controls: usize, seconds: [u32; 3]) -> Result<(Stage, Vec<Controller>)> {
    let cluster = Cluster::audited().await?;
    let mut stage = Stage::dark_with(purpose, &[BR0], |setup| setup.role = Role::Edge).await?;
    let mut all = Vec::new();
    for number in 0..controls {
        let mut setup = Setup::new(&stage.namespace)?;
        setup.role = Role::Control;
        setup.admin.set_port(0);
        setup.extra = ["--watch-namespace", &stage.namespace]
            .map(str::to_owned)
            .to_vec();
        let names = [
            "LEASE_DURATION_SECONDS",
            "RENEW_DEADLINE_SECONDS",
            "RETRY_PERIOD_SECONDS",
        ];
        let times = names.iter().zip(seconds);
        setup.environment = times
            .map(|(name, time)| ((*name).to_owned(), time.to_string()))
            .collect();
        let dir = stage.scratch.sub(&format!("control-{number}"))?;
        let mut control = Controller::new(cluster, &stage.network.net, &dir, setup).await?;
        control.start()?;
        all.push(control);
    }
    stage.controller.start()?;
    let spec = segment(BR0, Profile::Lab, UnknownPolicy::Hold)?;
    stage.serve(BR0.name, spec).await?;
    Ok((stage, all))
}

async fn lease(stage: &Stage) -> Result<Option<Lease>> {
    stage
        .api::<Lease>()
        .get_opt(LEASE)
        .await
        .context("read the Lease")
}

fn epoch(lease: &Lease) -> i64 {
    let annotations = lease.metadata.annotations.as_ref().expect("annotations");
    annotations["muster.dev/epoch"].parse().expect("a number")
}

/// The number of the process that holds `lease`: the last but one part of its name.
fn holder(lease: &Lease) -> Option<u32> {
    let identity = lease.spec.as_ref()?.holder_identity.as_deref()?;
    identity.rsplit('_').nth(1)?.parse().ok()
}

/// Waits until one of `controls` other than `not` holds the Lease; which, and the Lease.
async fn leader(stage: &Stage, controls: &[Controller], not: Option<usize>) -> (usize, Lease) {
    let found = stage.until("a leader", SOON, async || {
        let Some(lease) = lease(stage).await? else {
            return Ok(None);
        };
        let holds = |control: &Controller| control.process().is_some() && control.process() == holder(&lease);
        let found = controls
            .iter()
            .position(holds)
            .filter(|found| Some(*found) != not);
        Ok(found.map(|found| (found, lease)))
    });
    found.await.expect("a leader")
}

fn signal(control: &Controller, signal: Signal) {
    let pid = control.process().and_then(|pid| i32::try_from(pid).ok());
    kill(Pid::from_raw(pid.expect("a process")), signal).expect("a signal");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_server_is_discovered_after_a_kill_of_the_leader() {
    let (stage, mut controls) = stage("leader-kill", 3, [15, 10, 2]).await.unwrap();
    let rack = stage.rack().unwrap();
    let mut servers = rack.servers(1..4);
    let (mut led, mut before) = leader(&stage, &controls, None).await;
    servers[0].power_on();
    stage.discovered(&servers[0], SOON).await.unwrap();
    for server in &mut servers[1..] {
        controls[led].kill();
        server.power_on();
        stage.discovered(server, SOON).await.unwrap();
        let (now, lease) = leader(&stage, &controls, Some(led)).await;
        assert!(epoch(&lease) > epoch(&before));
        (led, before) = (now, lease);
    }
    assert_eq!(stage.hosts().await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_told_to_end_hands_over_and_the_other_goes_on() {
    // Nobody waits for this lease to run out.
    let (stage, mut controls) = stage("leader-term", 2, [600, 300, 2]).await.unwrap();
    let rack = stage.rack().unwrap();
    let mut servers = rack.servers(1..3);
    let (led, before) = leader(&stage, &controls, None).await;
    servers[0].power_on();
    stage.discovered(&servers[0], SOON).await.unwrap();
    assert!(controls[led].stop(SOON).await, "it ends by itself and well");
    let (_, after) = leader(&stage, &controls, Some(led)).await;
    assert!(epoch(&after) > epoch(&before));
    servers[1].power_on();
    stage.discovered(&servers[1], SOON).await.unwrap();
    assert_eq!(stage.hosts().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_for_two_lease_times_writes_nothing_afterwards() {
    let (stage, controls) = stage("leader-stop", 2, [8, 5, 1]).await.unwrap();
    let rack = stage.rack().unwrap();
    let mut servers = rack.servers(1..13);
    let (led, _) = leader(&stage, &controls, None).await;
    let agent = format!("; pid {})", controls[led].process().unwrap());
    // Stopped in the midst of its work.
    let (first, last) = servers.split_at_mut(11);
    first.iter_mut().for_each(|server| server.power_on());
    let one = async || Ok((!stage.hosts().await?.is_empty()).then_some(()));
    stage.until("the first host", SOON, one).await.unwrap();
    signal(&controls[led], Signal::SIGSTOP);

    // Its own time to run out, and as long again.
    let (next, taken) = leader(&stage, &controls, Some(led)).await;
    let taken = taken.spec.unwrap().acquire_time.unwrap().0;
    let stopped_for_long = stage.until("another lease time", SOON, async || {
        let Some(spec) = lease(&stage).await?.and_then(|lease| lease.spec) else {
            return Ok(None);
        };
        let renewed = spec.renew_time.context("a renewed Lease")?.0;
        Ok((renewed.as_second() - taken.as_second() > 8).then_some(()))
    });
    stopped_for_long.await.unwrap();
    for server in &*first {
        stage.discovered(server, SOON).await.unwrap();
    }
    signal(&controls[led], Signal::SIGCONT);
    let over = controls[led].log().wait_for("leads no more", 0, SOON).await;
    over.unwrap();
    // What it had left to do was done by the other, and both see all that comes.
    last[0].power_on();
    stage.discovered(&last[0], SOON).await.unwrap();
    assert_eq!(stage.hosts().await.unwrap().len(), 12);

    let written = Cluster::audited().await.unwrap().written().unwrap();
    let of = |agent: &str| {
        let all = written.iter().filter(|one| one.user_agent.ends_with(agent));
        // It may ask for the Lease, in vain.
        all.filter(|one| one.object_ref.resource != "leases")
            .cloned()
            .collect::<Vec<_>>()
    };
    let (before, after): (Vec<_>, Vec<_>) = of(&agent).into_iter().partition(|one| one.received < taken);
    assert!(!before.is_empty(), "it wrote while it led");
    assert!(after.is_empty(), "{after:#?}");
    let other = format!("; pid {})", controls[next].process().unwrap());
    assert!(!of(&other).is_empty(), "the other went on");
}
