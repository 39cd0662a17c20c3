//! `muster-lab fleet`, as people start it.

use std::{
    collections::BTreeMap,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Secret, ServiceAccount},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use muster_proto::kinds::{
    BareMetalHost, BareMetalHostStatus, Dhcp, DhcpMode, ErrorType, HardwareData, Profile, Segment,
    SegmentSpec, Server, UnknownPolicy,
};
use muster_tests::{
    bridges::{BR0, api_in},
    cluster::Cluster,
    fleet::pace::{Failing, Fault, Luck},
    lines::Lines,
    scratch::Scratch,
    spawner::Spawner,
    stage::{Stage, segment},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::task::AbortHandle;

/// Generous: on a quiet machine the longest takes half a minute.
const SOON: Duration = Duration::from_secs(240);
const LOOK: Duration = Duration::from_millis(200);

async fn fleet(words: &[&str]) -> Result<Output> {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_muster-lab"));
    command.arg("fleet").args(words).env_remove("KUBECONFIG");
    let ran = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(SOON, ran).await.context("it does not end")?;
    Ok(output?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A fleet that goes on until it is told to end.
struct Fleet {
    process: Child,
    said: Lines,
    _scratch: Scratch,
    /// Whoever kills the test ends it, too.
    _spawner: Option<Spawner>,
}

impl Fleet {
    fn start(words: &[&str]) -> Result<Fleet> {
        let spawner = Spawner::new()?;
        let process = spawner.spawn(Fleet::command(words)).context("start the fleet")?;
        Fleet::of(process, Some(spawner))
    }

    fn command(words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-lab"));
        command
            .arg("fleet")
            .args(words)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn of(mut process: Child, spawner: Option<Spawner>) -> Result<Fleet> {
        let scratch = Scratch::new()?;
        let said = Lines::to(&scratch.path().join("fleet.log"));
        said.follow(process.stdout.take().context("its standard output")?)?;
        said.follow(process.stderr.take().context("its standard error")?)?;
        Ok(Fleet {
            process,
            said,
            _scratch: scratch,
            _spawner: spawner,
        })
    }

    /// Waits until it says `what` after what it has said by now.
    async fn says(&self, what: &str) -> Result<()> {
        let waited = self.said.wait_for(what, self.said.len(), SOON).await;
        waited.map(drop).with_context(|| self.said.last(30).join("\n"))
    }

    /// Tells it to end, and waits for that.
    async fn stop(&mut self) -> Result<ExitStatus> {
        kill(Pid::from_raw(i32::try_from(self.process.id())?), Signal::SIGTERM)?;
        let deadline = tokio::time::Instant::now() + SOON;
        while tokio::time::Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!("it does not end: {}", self.said.last(30).join("\n"))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The hosts in a namespace of a cluster.
struct Hosts(Api<BareMetalHost>);

impl Hosts {
    /// Waits until there are `number` of them, and all are in `state`.
    async fn reach(&self, number: usize, state: &str) -> Result<Vec<BareMetalHost>> {
        let mut states = BTreeMap::new();
        let deadline = tokio::time::Instant::now() + SOON;
        while tokio::time::Instant::now() < deadline {
            let hosts = self.0.list(&ListParams::default()).await?.items;
            states.clear();
            for host in &hosts {
                let status = host.status.clone().unwrap_or_default();
                let at = (status.provisioning.state, status.error_message);
                *states.entry(at).or_insert(0) += 1;
            }
            if hosts.len() == number && states.keys().all(|(at, _)| at == state) {
                return Ok(hosts);
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!("not {number} hosts {state} but {states:?}")
    }

    async fn patch(&self, hosts: &[BareMetalHost], patch: &Value) -> Result<()> {
        for host in hosts {
            self.patch_one(&host.name_any(), patch).await?;
        }
        Ok(())
    }

    async fn patch_one(&self, name: &str, patch: &Value) -> Result<()> {
        let patch = Patch::Merge(patch);
        self.0.patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Waits until the host `name` is as it should be.
    async fn shows(&self, name: &str, test: impl Fn(&BareMetalHostStatus) -> bool) -> Result<()> {
        let mut status = None;
        let deadline = tokio::time::Instant::now() + SOON;
        while tokio::time::Instant::now() < deadline {
            status = self.0.get(name).await?.status;
            if status.as_ref().is_some_and(&test) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!("{name}: {status:#?}")
    }
}

/// What the controller has asked of the API server on behalf of hosts in the namespace `metal`, by verb, resource and answer.
fn asked(cluster: &Cluster) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for one in cluster.asked()? {
        let about = &one.object_ref;
        let of_hosts = about.namespace == "metal"
            || ["servers", "enrolments", "events"].contains(&about.resource.as_str());
        if one.user_agent.starts_with("muster-controller/") && of_hosts && one.verb != "list" {
            let part = if about.subresource.is_empty() { "" } else { "/" };
            let (resource, part) = (&about.resource, format!("{part}{}", about.subresource));
            let kind = format!("{} {resource}{part} {}", one.verb, one.response_status.code);
            *counts.entry(kind).or_insert(0) += 1;
        }
    }
    Ok(counts)
}

/// Holds what `hosts` hosts have cost from their creation to `available`, but for the writes of statuses and jobs: a busy machine needs
/// more of those, because what is waited for long is told. They are counted in the controller's own tests, whose time is no clock's.
fn few_requests(asked: &BTreeMap<String, usize>, hosts: usize) {
    let of = |what: &dyn Fn(&str) -> bool| -> usize {
        let kinds = asked.iter().filter(|(kind, _)| what(kind));
        kinds.map(|(_, count)| count).sum()
    };
    // Something is looked up only where an answer was lost or late; that is never the rule.
    let read = of(&|kind| kind.starts_with("get "));
    assert!(read < hosts, "{asked:#?}");
    // An Enrolment, a Server, a HardwareData, the Secret's mark, the host's finalizer and its architecture.
    let varies = |kind: &str| kind.contains("/status ") || kind.starts_with("patch servers ");
    let done = |kind: &str| kind.ends_with(" 200") || kind.ends_with(" 201");
    let written =
        of(&|kind| done(kind) && !varies(kind) && !kind.starts_with("get ") && !kind.contains(" events "));
    assert!(written < 7 * hosts, "{asked:#?}");
    assert!(
        written >= 5 * hosts,
        "the API server tells of all of them: {asked:#?}"
    );
}

async fn count<K>(cluster: &Cluster, namespace: &str) -> Result<usize>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(cluster.client()?, namespace);
    Ok(api.list(&ListParams::default()).await?.items.len())
}

/// Something that a fleet of the servers 1 to 20 left when it was killed.
const LEFT: &str =
    r#"{apiVersion: v1, kind: Secret, metadata: {name: fleet-00003-bmc, labels: {muster.dev/fleet: "1"}}}"#;

/// Renews the Lease `name` in `namespace`, as a controller does that acts.
async fn lead(cluster: &Cluster, namespace: &str, name: &'static str) -> Result<AbortHandle> {
    cluster.ensure_namespace(namespace).await?;
    let leases: Api<Lease> = Api::namespaced(cluster.client()?, namespace);
    let renewed = async move || {
        let now = format!("{:.6}", jiff::Timestamp::now());
        let spec = json!({"holderIdentity": "somebody", "leaseDurationSeconds": 15, "renewTime": now});
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name},
            "spec": spec,
        });
        let force = PatchParams::apply("a-test").force();
        leases.patch(name, &force, &Patch::Apply(&lease)).await
    };
    renewed().await?;
    let renewing = tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            let _ = renewed().await;
        }
    });
    Ok(renewing.abort_handle())
}

#[tokio::test(flavor = "multi_thread")]
async fn fleet_is_discovered_and_leaves_nothing_in_a_cluster_that_stays() {
    let cluster = Cluster::shared().await.unwrap();
    cluster.ensure_namespace("metal").await.unwrap();
    cluster.apply(LEFT, "metal").await.unwrap();
    let kubeconfig = cluster.kubeconfig().to_string_lossy().into_owned();
    let words = [
        "--hosts",
        "20",
        "--discover",
        "--scale",
        "0",
        "--once",
        "--fail",
        "boot=20x1",
    ];
    let words = [&words[..], &["--kubeconfig", &kubeconfig, "--namespace", "metal"]].concat();
    let refuses = async |what: &str| {
        let output = fleet(&words).await.unwrap();
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(what), "{said}");
    };
    refuses("--afresh").await;
    for (namespace, name, told) in [
        (
            "baremetal-operator-system",
            "baremetal-operator",
            "baremetal-operator runs in this cluster: somebody",
        ),
        (
            "muster-system",
            "muster-control",
            "Muster already runs in this cluster: somebody",
        ),
    ] {
        let leading = lead(cluster, namespace, name).await.unwrap();
        refuses(told).await;
        leading.abort();
    }
    let output = fleet(&[&words[..], &["--afresh"]].concat()).await.unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", text(&output.stderr));
    assert!(
        said.contains("20 servers: 20 ready · hosts: 20 unmanaged"),
        "{said}"
    );
    assert!(said.contains("Deleting"), "{said}");
    assert_eq!(count::<BareMetalHost>(cluster, "metal").await.unwrap(), 0);
    assert_eq!(count::<Server>(cluster, "muster-system").await.unwrap(), 0);
    assert_eq!(count::<Secret>(cluster, "metal").await.unwrap(), 0);
    assert_eq!(count::<Segment>(cluster, "muster-system").await.unwrap(), 0);
    assert_eq!(
        count::<ServiceAccount>(cluster, "muster-system").await.unwrap(),
        0
    );
    assert!(said.contains("What stays in the cluster"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fleet_that_is_interrupted_while_it_prepares_leaves_nothing_in_a_cluster_that_stays() {
    // Its own: another fleet's account has the same name.
    let cluster = Cluster::start().await.unwrap();
    let kubeconfig = cluster.kubeconfig().to_string_lossy().into_owned();
    let mut fleet = Fleet::start(&["--hosts", "5", "--kubeconfig", &kubeconfig]).unwrap();
    let accounts = async || count::<ServiceAccount>(&cluster, "muster-system").await.unwrap();
    let deadline = tokio::time::Instant::now() + SOON;
    while accounts().await == 0 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{}",
            fleet.said.last(30).join("\n")
        );
        tokio::time::sleep(LOOK).await;
    }
    let status = fleet.stop().await.unwrap();
    assert!(status.success(), "{}", fleet.said.last(30).join("\n"));
    fleet
        .said
        .wait_for("What stays in the cluster", 0, SOON)
        .await
        .unwrap();
    assert_eq!(accounts().await, 0);
    assert_eq!(count::<Segment>(&cluster, "muster-system").await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn fleet_with_bmcs_lives_a_whole_life_with_the_operator_and_leaves_nothing() {
    // Its own: another fleet's Segment has the same name.
    let cluster = Cluster::start_audited().await.unwrap();
    let kubeconfig = cluster.kubeconfig().to_string_lossy().into_owned();
    let words = "--hosts 20 --scale 0 --namespace metal --fail boot=30x1 --kubeconfig";
    let words: Vec<&str> = words.split(' ').chain([kubeconfig.as_str()]).collect();
    let mut fleet = Fleet::start(&words).unwrap();
    let hosts = Hosts(Api::namespaced(cluster.client().unwrap(), "metal"));

    let available = hosts.reach(20, "available").await.unwrap();
    few_requests(&asked(&cluster).unwrap(), 20);
    for host in &available {
        let status = host.status.as_ref().unwrap();
        assert!(status.powered_on && status.hardware.is_some(), "{status:#?}");
    }
    assert_eq!(count::<HardwareData>(&cluster, "metal").await.unwrap(), 20);
    assert_eq!(count::<Secret>(&cluster, "metal").await.unwrap(), 20);

    let image = json!({"url": "http://images.test/os.raw", "format": "raw",
        "checksum": "0".repeat(64), "checksumType": "sha256"});
    let wish = json!({"spec": {"image": image}});
    hosts.patch(&available, &wish).await.unwrap();
    let provisioned = hosts.reach(20, "provisioned").await.unwrap();
    fleet
        .says("20 servers: 20 own system · hosts: 20 provisioned")
        .await
        .unwrap();

    hosts
        .patch(&provisioned, &json!({"spec": {"image": null}}))
        .await
        .unwrap();
    hosts.reach(20, "available").await.unwrap();
    fleet
        .says("20 servers: 20 ready · hosts: 20 available")
        .await
        .unwrap();

    hosts
        .0
        .delete_collection(&DeleteParams::default(), &ListParams::default())
        .await
        .unwrap();
    hosts.reach(0, "").await.unwrap();
    fleet.says("20 servers: 20 off · hosts: none").await.unwrap();
    let status = fleet.stop().await.unwrap();
    assert!(status.success(), "{}", fleet.said.last(30).join("\n"));
    assert_eq!(count::<Server>(&cluster, "muster-system").await.unwrap(), 0);
    assert_eq!(count::<HardwareData>(&cluster, "metal").await.unwrap(), 0);
    assert_eq!(count::<Secret>(&cluster, "metal").await.unwrap(), 0);
}

/// What goes wrong with one server of a fleet; the first of what its luck has for it.
fn fate(number: u32, failing: &[Failing]) -> Option<Fault> {
    let luck = Luck::of(number, failing);
    let faults = [Fault::Power, Fault::Firmware, Fault::Inventory, Fault::Job];
    faults.into_iter().find(|fault| luck.times(*fault) > 0)
}

fn waits(status: &BareMetalHostStatus, reason: &str) -> bool {
    let mut conditions = status.conditions.iter();
    let waits = conditions.any(|condition| {
        condition.type_ == "Waiting" && condition.status == "True" && condition.reason == reason
    });
    waits && status.provisioning.state == "inspecting" && status.error_type.is_none()
}

fn is(status: &BareMetalHostStatus, state: &str) -> bool {
    status.provisioning.state == state && status.error_type.is_none()
}

#[tokio::test(flavor = "multi_thread")]
async fn fleet_before_a_controller_that_runs_already_fails_as_it_is_told() {
    let mut stage = Stage::dark("fleet", &[BR0]).await.unwrap();
    stage.controller.start().unwrap();
    let (boot, _) = BR0.address.split_once('/').unwrap();
    let spec = SegmentSpec {
        dhcp: Dhcp {
            mode: DhcpMode::Off,
            ..Dhcp::default()
        },
        boot_address: Some(boot.to_owned()),
        ..segment(BR0, Profile::Lab, UnknownPolicy::Ignore).unwrap()
    };
    stage.serve("rack", spec).await.unwrap();

    let faults = ["power=15", "firmware=15", "inventory=15", "job=30x1"];
    let failing = faults.map(|fault| fault.parse::<Failing>().unwrap());
    let with = |first: u32, fate: Option<Fault>| -> Vec<u32> {
        let numbers = first..first + 16;
        numbers
            .filter(|number| self::fate(*number, &failing) == fate)
            .collect()
    };
    let fates = [
        None,
        Some(Fault::Power),
        Some(Fault::Firmware),
        Some(Fault::Inventory),
        Some(Fault::Job),
    ];
    // Sixteen servers among whom each fate has two.
    let first = (1..100_000).find(|first| fates.iter().all(|fate| with(*first, *fate).len() >= 2));
    let first = first.unwrap();
    let [well, powerless, hung, silent, broken] = fates.map(|fate| {
        let named = with(first, fate).into_iter();
        named
            .map(|number| format!("fleet-{number:05}"))
            .collect::<Vec<_>>()
    });

    // On another computer, as a laptop beside the rack.
    let cluster = Cluster::shared().await.unwrap();
    let laptop = stage
        .network
        .net
        .neighbour(BR0.name, "eth0", "10.77.0.9/24")
        .unwrap();
    let _api = api_in(&laptop, cluster).unwrap();
    let kubeconfig = cluster.kubeconfig().to_string_lossy().into_owned();
    let nowhere = format!("{}/nowhere", stage.namespace);
    let missing = fleet(&["--segment", &nowhere, "--kubeconfig", &kubeconfig])
        .await
        .unwrap();
    let said = text(&missing.stderr);
    let told = format!("Segment {nowhere} does not exist: ");
    assert!(said.contains(&told) && !said.contains("Status {"), "{said}");
    let words = format!(
        "--hosts 16 --first {first} --scale 0 --segment {}/rack --address 10.77.0.9 --kubeconfig {kubeconfig}",
        stage.namespace
    );
    let words: Vec<&str> = words
        .split(' ')
        .chain(faults.into_iter().flat_map(|fault| ["--fail", fault]))
        .collect();
    let process = laptop.spawn(Fleet::command(&words)).unwrap();
    let mut fleet = Fleet::of(process, None).unwrap();

    let hosts = Hosts(stage.api());
    let there = stage.until("the fleet's hosts", SOON, async || {
        Ok((stage.hosts().await?.len() == 16).then_some(()))
    });
    there.await.unwrap();
    for name in well.iter().chain(&broken) {
        hosts.shows(name, |status| is(status, "available")).await.unwrap();
        let image =
            json!({"url": "http://images.test/os.raw", "checksum": "0".repeat(64), "checksumType": "sha256"});
        hosts
            .patch_one(name, &json!({"spec": {"image": image}}))
            .await
            .unwrap();
    }
    for name in &broken {
        let told = stage.hears(name, "ProvisioningError", SOON).await.unwrap();
        assert!(told.note.contains("the disk failed, as requested"), "{told:?}");
        // Once; another image is tried at once.
        let image = json!({"url": "http://images.test/other.raw"});
        hosts
            .patch_one(name, &json!({"spec": {"image": image}}))
            .await
            .unwrap();
    }
    for name in well.iter().chain(&broken) {
        hosts
            .shows(name, |status| is(status, "provisioned"))
            .await
            .unwrap();
    }
    for name in &powerless {
        let refused = |status: &BareMetalHostStatus| {
            let told = status
                .error_message
                .contains("could not be booted from the network");
            status.error_type == Some(ErrorType::Inspection) && told
        };
        hosts.shows(name, refused).await.unwrap();
    }
    for name in &hung {
        hosts
            .shows(name, |status| waits(status, "Ramdisk"))
            .await
            .unwrap();
    }
    for name in &silent {
        hosts
            .shows(name, |status| waits(status, "Inspection"))
            .await
            .unwrap();
    }
    let (stuck, done) = (hung.len() + silent.len(), well.len() + broken.len());
    let line = format!(
        "16 servers: {} off, {done} own system, {stuck} stuck · hosts: {} inspecting, {done} provisioned",
        powerless.len(),
        stuck + powerless.len(),
    );
    fleet.says(&line).await.unwrap();

    let all = (DeleteParams::default(), ListParams::default());
    hosts.0.delete_collection(&all.0, &all.1).await.unwrap();
    hosts.reach(0, "").await.unwrap();
    let status = fleet.stop().await.unwrap();
    assert!(status.success(), "{}", fleet.said.last(30).join("\n"));
    assert_eq!(stage.servers().await.unwrap().len(), 0);
    let secrets = stage.api::<Secret>().list(&all.1).await.unwrap();
    let left = secrets
        .iter()
        .filter(|secret| secret.name_any().starts_with("fleet-"));
    assert_eq!(left.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_is_told() {
    for (words, told) in [
        (&["--fail", "rain=5"][..], "is not one of firmware"),
        (&["--scale=-1"], "from 0 to 100"),
        (&["--segment", "a/b"], "--kubeconfig"),
        (&["--hosts", "0"], "0 is not in 1..=100000"),
        (&["--address", "10.0.0.1"], "--segment"),
        (
            &["--segment", "a/b", "--kubeconfig", "c", "--namespace", "d"],
            "cannot be used with",
        ),
        (&["--fail", "job=5", "--fail", "job=6"], "given twice"),
        (&["--once", "--fail", "boot=5"], "boot=PERCENTxTIMES"),
        (
            &["--check", "--kubeconfig", "/nowhere"],
            "named by --kubeconfig or the variable KUBECONFIG",
        ),
    ] {
        let output = fleet(words).await.unwrap();
        assert!(!output.status.success());
        let said = text(&output.stderr);
        assert!(said.contains(told), "{words:?}: {said}");
    }
}
