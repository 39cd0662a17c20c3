//! Several controllers with the control role, of which one acts: killed, told to end, and stopped for longer than its lease; between
//! two servers, and in the middle of a write.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{ResourceExt, api::PostParams};
use muster_agent::steps::Job;
use muster_proto::kinds::{BareMetalHost, Profile, UnknownPolicy};
use muster_tests::{
    bmc::{Options, Service},
    bridges::{BR0, api_in},
    cluster::{Asked, Cluster, Role},
    controller::{Controller, Setup},
    forward::Forwarder,
    sim::{agent::SimServer, rack::Rack, work::Pace},
    stage::{Stage, segment, state},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// Generous: a lease, and what the machine needs when it is busy.
const SOON: Duration = Duration::from_secs(120);
const LEASE: &str = "muster-control";

/// A controller with the control role, on a computer of its own.
struct Control {
    controller: Controller,
    address: IpAddr,
    _api: Forwarder,
}

/// One edge, and `controls` controllers with the control role, whose lease lasts for `seconds`.
async fn stage(purpose: &str, controls: u8, seconds: [u32; 3]) -> Result<(Stage, Vec<Control>)> {
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
        let address = IpAddr::from([10, 77, 0, 10 + number]);
        let net = stage
            .network
            .net
            .neighbour(BR0.name, "eth0", &format!("{address}/24"))?;
        let api = api_in(&net, cluster)?;
        let mut controller = Controller::new(cluster, &net, &dir, setup).await?;
        controller.start()?;
        all.push(Control {
            controller,
            address,
            _api: api,
        });
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
async fn leader(stage: &Stage, controls: &[Control], not: Option<usize>) -> (usize, Lease) {
    let found = stage.until("a leader", SOON, async || {
        let Some(lease) = lease(stage).await? else {
            return Ok(None);
        };
        let holds = |control: &Control| {
            let process = control.controller.process();
            process.is_some() && process == holder(&lease)
        };
        let found = controls
            .iter()
            .position(holds)
            .filter(|found| Some(*found) != not);
        Ok(found.map(|found| (found, lease)))
    });
    found.await.expect("a leader")
}

/// Waits until the Lease was renewed `seconds` after `taken`.
async fn held_for(stage: &Stage, taken: Timestamp, seconds: i64) {
    let held = stage.until("another lease time", SOON, async || {
        let Some(spec) = lease(stage).await?.and_then(|lease| lease.spec) else {
            return Ok(None);
        };
        let renewed = spec.renew_time.context("a renewed Lease")?.0;
        Ok((renewed.as_second() - taken.as_second() > seconds).then_some(()))
    });
    held.await.expect("a Lease that is renewed");
}

/// Lease duration, renew deadline and retry period as most have them here, in seconds.
const TIMES: [u32; 3] = [8, 5, 1];

/// A Lease with these `times` whose holder was killed or stopped when it was as in `left` is taken when it has run out; earlier where its
/// holder is known to have ended, on the same computer.
fn is_taken_in_time(left: &Lease, taken_over: &Lease, times: [u32; 3]) {
    let renewed = left.spec.as_ref().and_then(|spec| spec.renew_time.as_ref());
    let waited = taken(taken_over).duration_since(renewed.expect("a renewed Lease").0);
    let [duration, _, retry] = times.map(|seconds| SignedDuration::from_secs(i64::from(seconds)));
    // A computer that runs other tests beside this one may be late.
    let soon = duration + retry + SignedDuration::from_secs(20);
    assert!(waited < soon, "taken over after {waited}");
}

fn taken(lease: &Lease) -> Timestamp {
    let spec = lease.spec.as_ref().expect("a spec");
    spec.acquire_time.as_ref().expect("when it was taken").0
}

/// What `control` wrote, Leases apart: it may ask for one, in vain.
fn written(cluster: &Cluster, control: &Control) -> Vec<Asked> {
    let agent = format!("; pid {})", control.controller.process().expect("a process"));
    let all = cluster.written().expect("the list of writes").into_iter();
    all.filter(|one| one.user_agent.ends_with(&agent) && one.object_ref.resource != "leases")
        .collect()
}

fn signal(control: &Control, signal: Signal) {
    let pid = control
        .controller
        .process()
        .and_then(|pid| i32::try_from(pid).ok());
    kill(Pid::from_raw(pid.expect("a process")), signal).expect("a signal");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_server_is_discovered_after_a_kill_of_the_leader() {
    let times = [15, 10, 2];
    let (stage, mut controls) = stage("leader-kill", 3, times).await.unwrap();
    let rack = stage.rack().unwrap();
    let mut servers = rack.servers(1..4);
    let (mut led, mut before) = leader(&stage, &controls, None).await;
    servers[0].power_on();
    stage.discovered(&servers[0], SOON).await.unwrap();
    for server in &mut servers[1..] {
        controls[led].controller.kill();
        let left = lease(&stage).await.unwrap().unwrap();
        server.power_on();
        stage.discovered(server, SOON).await.unwrap();
        let (now, lease) = leader(&stage, &controls, Some(led)).await;
        assert!(epoch(&lease) > epoch(&before));
        is_taken_in_time(&left, &lease, times);
        (led, before) = (now, lease);
    }
    assert_eq!(stage.hosts().await.unwrap().len(), 3);
}

/// Has `control`, which leads, end. It gives up the Lease by itself: that others on this computer see its process end is no help to those on
/// another.
async fn gives_up(control: &mut Control) {
    assert!(control.controller.stop(SOON).await, "it ends by itself and well");
    let said = control
        .controller
        .log()
        .wait_for("the Lease is released", 0, SOON);
    said.await.expect("the Lease is released");
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
    gives_up(&mut controls[led]).await;
    let (_, after) = leader(&stage, &controls, Some(led)).await;
    assert!(epoch(&after) > epoch(&before));
    servers[1].power_on();
    stage.discovered(&servers[1], SOON).await.unwrap();
    assert_eq!(stage.hosts().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_for_two_lease_times_writes_nothing_afterwards() {
    let (stage, controls) = stage("leader-stop", 2, TIMES).await.unwrap();
    let rack = stage.rack().unwrap();
    let mut servers = rack.servers(1..13);
    let (led, _) = leader(&stage, &controls, None).await;
    // Stopped in the midst of its work.
    let (first, last) = servers.split_at_mut(11);
    first.iter_mut().for_each(|server| server.power_on());
    let one = async || Ok((!stage.hosts().await?.is_empty()).then_some(()));
    stage.until("the first host", SOON, one).await.unwrap();
    signal(&controls[led], Signal::SIGSTOP);
    let left = self::lease(&stage).await.unwrap().unwrap();

    // Its own time to run out, and as long again.
    let (next, lease) = leader(&stage, &controls, Some(led)).await;
    is_taken_in_time(&left, &lease, TIMES);
    held_for(&stage, taken(&lease), 8).await;
    for server in &*first {
        stage.discovered(server, SOON).await.unwrap();
    }
    signal(&controls[led], Signal::SIGCONT);
    leads_no_more(&controls[led]).await;
    // What it had left to do was done by the other, and both see all that comes.
    last[0].power_on();
    stage.discovered(&last[0], SOON).await.unwrap();
    assert_eq!(stage.hosts().await.unwrap().len(), 12);
    wrote_nothing_since(taken(&lease), &controls[led], &controls[next]).await;
}

async fn leads_no_more(control: &Control) {
    let over = control
        .controller
        .log()
        .wait_for("no longer leading", 0, SOON)
        .await;
    over.expect("its last words as the leader");
}

/// `led` wrote before `taken` and not since; `next` wrote.
async fn wrote_nothing_since(taken: Timestamp, led: &Control, next: &Control) {
    let cluster = Cluster::audited().await.expect("a cluster");
    let of_it = written(cluster, led);
    let (before, after): (Vec<_>, Vec<_>) = of_it.into_iter().partition(|one| one.received < taken);
    assert!(!before.is_empty(), "it wrote while it led");
    assert!(after.is_empty(), "{after:#?}");
    assert!(!written(cluster, next).is_empty(), "the other went on");
}

/// A machine behind its BMC that has come half way with its image, and waits there.
struct Half<'a> {
    stage: &'a Stage,
    service: Arc<Service>,
    machine: Arc<Mutex<SimServer>>,
}

impl Half<'_> {
    async fn written<'a>(stage: &'a Stage, rack: &Rack) -> Half<'a> {
        let machine = rack.servers([1]).remove(0);
        let mac = machine.hardware().boot_mac();
        let machine = Arc::new(Mutex::new(machine));
        let machines = [("1".to_owned(), Arc::clone(&machine))].into();
        let (own, _) = BR0.address.split_once('/').expect("an address");
        let own = own.parse().expect("an address");
        let service = Service::before(&stage.network.net, own, Options::default(), machines);
        let half = Half {
            stage,
            service: service.expect("a BMC"),
            machine,
        };
        let login = [("username", "admin"), ("password", "secret")];
        stage.secret("bmc", &login).await.expect("a Secret");
        let host = json!({
            "metadata": {"name": "node"},
            "spec": {
                "online": true, "bootMACAddress": mac.to_string(), "automatedCleaningMode": "disabled",
                "bmc": {"address": half.service.address("redfish", Some("1")), "credentialsName": "bmc"},
            },
        });
        let host: BareMetalHost = serde_json::from_value(host).expect("a host");
        let made = stage
            .api::<BareMetalHost>()
            .create(&PostParams::default(), &host)
            .await;
        made.expect("a host");
        half.is("available", |host| state(host) == "available").await;
        half.works(Pace {
            waits_at: Some(50),
            ..Pace::default()
        });
        let image =
            json!({"url": "http://images.test/os.raw", "checksum": "0".repeat(64), "checksumType": "sha256"});
        half.patch(json!({"spec": {"image": image}})).await;
        let there = stage.has_written(mac, 50, SOON).await;
        there.expect("half of the image");
        half
    }

    fn works(&self, pace: Pace) {
        self.machine.lock().expect("no test panics with it").works(pace);
    }

    async fn patch(&self, patch: Value) {
        self.stage.patch("node", patch).await.expect("a patched host");
    }

    async fn is(&self, what: &str, test: impl Fn(&BareMetalHost) -> bool) {
        let hosts = self.stage.api::<BareMetalHost>();
        let mut last = None;
        let found = self.stage.until(what, SOON, async || {
            let host = hosts.get("node").await?;
            last = Some(host.clone());
            Ok(test(&host).then_some(()))
        });
        let found = found.await;
        found
            .with_context(|| format!("{:#?}", last.and_then(|host| host.status)))
            .expect("the host");
    }

    /// The other half is written; the machine was given its image once.
    async fn is_provisioned(&self) {
        self.works(Pace::default());
        self.is("provisioned", |host| state(host) == "provisioned").await;
        let worked = self.machine.lock().expect("no test panics with it").worked();
        assert_eq!(worked.len(), 1, "{worked:?}");
        assert!(matches!(worked[0].job, Job::Write { .. }), "{worked:?}");
        assert_eq!(worked[0].end, Ok(()));
    }

    /// A reboot that somebody asks for is done; nobody but `leader` asked the BMC for anything since somebody last looked there.
    async fn is_led_by(&self, leader: &Control) {
        let reboot = "reboot.metal3.io";
        self.patch(json!({"metadata": {"annotations": {reboot: ""}}}))
            .await;
        let done = |host: &BareMetalHost| {
            let on = host.status.as_ref().is_some_and(|status| status.powered_on);
            on && !host.annotations().contains_key(reboot) && state(host) == "provisioned"
        };
        self.is("rebooted", done).await;
        let asked = self.service.seen();
        assert!(asked.iter().any(|one| one.path.ends_with(".Reset")), "{asked:#?}");
        let of_others = asked.iter().filter(|one| one.from != leader.address);
        let of_others: Vec<_> = of_others.collect();
        assert!(of_others.is_empty(), "{of_others:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_goes_on_after_a_kill_of_the_leader_in_the_middle_of_it() {
    let (stage, mut controls) = stage("write-kill", 2, TIMES).await.unwrap();
    let rack = stage.rack().unwrap();
    let half = Half::written(&stage, &rack).await;
    let (led, before) = leader(&stage, &controls, None).await;
    controls[led].controller.kill();
    let left = lease(&stage).await.unwrap().unwrap();
    let (next, after) = leader(&stage, &controls, Some(led)).await;
    half.service.seen();
    assert!(epoch(&after) > epoch(&before));
    is_taken_in_time(&left, &after, TIMES);
    half.is_provisioned().await;
    half.is_led_by(&controls[next]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_goes_on_after_the_leader_is_told_to_end_in_the_middle_of_it() {
    // Nobody waits for this lease to run out.
    let (stage, mut controls) = stage("write-term", 2, [600, 300, 2]).await.unwrap();
    let rack = stage.rack().unwrap();
    let half = Half::written(&stage, &rack).await;
    let (led, before) = leader(&stage, &controls, None).await;
    gives_up(&mut controls[led]).await;
    let (next, after) = leader(&stage, &controls, Some(led)).await;
    half.service.seen();
    assert!(epoch(&after) > epoch(&before));
    half.is_provisioned().await;
    half.is_led_by(&controls[next]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_effect_leaves_a_leader_that_was_stopped_for_two_lease_times_in_the_middle_of_a_write() {
    let (stage, controls) = stage("write-stop", 2, TIMES).await.unwrap();
    let rack = stage.rack().unwrap();
    let half = Half::written(&stage, &rack).await;
    let (led, _) = leader(&stage, &controls, None).await;
    signal(&controls[led], Signal::SIGSTOP);
    let left = self::lease(&stage).await.unwrap().unwrap();
    let (next, lease) = leader(&stage, &controls, Some(led)).await;
    is_taken_in_time(&left, &lease, TIMES);
    half.service.seen();
    // To the one that sleeps the image is still half written when it wakes.
    half.is_provisioned().await;
    held_for(&stage, taken(&lease), 8).await;
    signal(&controls[led], Signal::SIGCONT);
    leads_no_more(&controls[led]).await;
    half.is_led_by(&controls[next]).await;
    half.is_provisioned().await;
    wrote_nothing_since(taken(&lease), &controls[led], &controls[next]).await;
}
