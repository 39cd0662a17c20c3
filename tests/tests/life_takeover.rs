//! Taking over, and back: objects as baremetal-operator leaves them, in every state, under its own CRDs; then the real controller, a
//! light Redfish BMC, and simulated machines with the agent's own session. Under `--full` baremetal-operator itself goes on after ours, and ours
//! after it.

use std::{
    collections::BTreeMap,
    env, fs,
    net::TcpListener,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Resource, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use muster_proto::kinds::{
    BareMetalHost, HardwareData, OperationMetric, OperationalStatus, Profile, UnknownPolicy,
};
use muster_tests::{
    bmc::{self, PowerState, Service},
    bridges::BR0,
    cluster::Cluster,
    metal3::Operator,
    paths,
    sim::{agent::SimServer, rack::Rack},
    stage::{Stage, segment, state},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Generous: all of it takes half a minute on a quiet machine.
const SOON: Duration = Duration::from_secs(240);

const RECORDED: &str = include_str!("life_takeover/metal3.yaml");

#[derive(Deserialize)]
struct Recorded {
    host: Value,
    hardware: Value,
    secret: Value,
    hosts: Vec<Left>,
}

/// A host as it was left.
#[derive(Deserialize)]
struct Left {
    name: String,
    end: End,
    #[serde(default)]
    without: Vec<String>,
    #[serde(default)]
    deleted: bool,
    patch: Value,
}

impl Left {
    fn has(&self, what: &str) -> bool {
        !self.without.iter().any(|name| name == what)
    }
}

/// What becomes of a host.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum End {
    /// It is at rest in this state, and nothing is done to its machine.
    Rests(String),
    /// It gets to this state, and so is done to its disks on the way.
    Comes { state: String, disks: Vec<String> },
    /// It goes, and so is done to its disks on the way.
    Goes(Vec<String>),
}

/// True for a host that is followed only until what it had begun is taken back: it is tried again after a pause of one or two minutes, by
/// a clock that no test here can set.
fn is_tried_later(name: &str) -> bool {
    name == "provisioning-failed"
}

/// `target` with `patch` laid over it (RFC 7396, section 2): what the API server does to an object that exists, done before there is one.
fn overlay(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            target.as_object_mut().map(|object| object.remove(name));
        } else {
            overlay(&mut target[name], value);
        }
    }
}

/// Replaces our CRDs of upstream's kinds by upstream's, and waits until the API server goes by them.
async fn install_upstreams(cluster: &Cluster, namespace: &str) -> Result<()> {
    for name in ["baremetalhosts", "hardwaredata"] {
        let file = paths::deploy().join(format!("crds/upstream/{name}.json"));
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        cluster.apply(&text, namespace).await?;
    }
    Ok(())
}

/// Machines behind one BMC, and what was left of them in the API server.
struct Site {
    stage: Stage,
    recorded: Recorded,
    service: Arc<Service>,
    servers: BTreeMap<String, Arc<Mutex<SimServer>>>,
    _rack: Rack,
}

impl Site {
    /// Everything as it was when the other operator stopped; ours does not run yet.
    async fn left(purpose: &str) -> Result<Site> {
        let stage = Stage::dark(purpose, &[BR0]).await?;
        let here = format!("namespace: {}", stage.namespace);
        let recorded: Recorded = serde_saphyr::from_str(&RECORDED.replace("namespace: metal", &here))?;
        install_upstreams(Cluster::shared().await?, &stage.namespace).await?;
        let rack = stage.rack()?;
        let numbers = 1..=u32::try_from(recorded.hosts.len())?;
        let names = recorded.hosts.iter().map(|left| left.name.clone());
        let servers = names.zip(rack.servers(numbers));
        let servers: BTreeMap<String, _> = servers
            .map(|(name, server)| (name, Arc::new(Mutex::new(server))))
            .collect();
        let listener = stage.network.net.run(|| TcpListener::bind(("127.0.0.1", 0)));
        let options = bmc::Options {
            systems: servers.keys().cloned().collect(),
            ..bmc::Options::default()
        };
        let (service, mut events) = Service::on(listener.context("listen as a BMC")?, options)?;
        for (system, server) in &servers {
            let server = server.lock().expect("no test panics with it");
            service.identify(system, &server.hardware().inventory.system.uuid);
        }
        let site = Site {
            stage,
            recorded,
            service: Arc::new(service),
            servers,
            _rack: rack,
        };
        site.wait_for_upstreams_schema().await?;
        for left in &site.recorded.hosts {
            site.make(left).await.with_context(|| left.name.clone())?;
        }
        // What a machine runs that is on already, nobody here knows: another ramdisk, or an operating system.
        while events.try_recv().is_ok() {}
        tokio::spawn(bmc::follow(events, site.servers.clone()));
        Ok(site)
    }

    /// Upstream's schema refuses what ours allows: an empty format.
    async fn wait_for_upstreams_schema(&self) -> Result<()> {
        let image = json!({"url": "http://images.test/os.raw", "checksum": "0", "format": ""});
        let probe = json!({"metadata": {"name": "probe"}, "spec": {"online": true, "image": image}});
        let probe: BareMetalHost = serde_json::from_value(probe)?;
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let hosts = self.stage.api::<BareMetalHost>();
        self.stage
            .until("upstream's schema is to count", SOON, async || {
                match hosts.create(&dry, &probe).await {
                    Err(kube::Error::Api(status)) if status.message.contains("spec.image.format") => {
                        Ok(Some(()))
                    }
                    Ok(_) => Ok(None),
                    Err(error) => Err(error).context("ask for the schema"),
                }
            })
            .await
    }

    async fn make(&self, left: &Left) -> Result<()> {
        let mut host = self.recorded.host.clone();
        overlay(&mut host, &left.patch);
        host["metadata"]["name"] = json!(left.name);
        host["spec"]["bootMACAddress"] = json!(self.mac(&left.name));
        let named = format!("{}-bmc", left.name);
        if left.has("secret") {
            host["spec"]["bmc"] = json!({
                "address": self.service.address("redfish", Some(&left.name)),
                "credentialsName": named,
            });
        }
        let mut status = host
            .as_object_mut()
            .and_then(|host| host.remove("status"))
            .unwrap_or_default();
        let api = self.stage.api::<BareMetalHost>();
        let host: BareMetalHost = serde_json::from_value(host)?;
        let made = api.create(&PostParams::default(), &host).await?;
        if left.has("secret") {
            let mut secret = self.recorded.secret.clone();
            secret["metadata"]["name"] = json!(named);
            let secret: Secret = self.make_for(&made, secret, false).await?;
            for credentials in ["goodCredentials", "triedCredentials"] {
                // As it was when the credentials were accepted, and as it is.
                if status[credentials]["credentials"].is_object() {
                    status[credentials] = json!({
                        "credentials": {"name": named, "namespace": self.stage.namespace},
                        "credentialsVersion": secret.resource_version(),
                    });
                }
            }
        }
        if left.has("hardware") {
            let mut data = self.recorded.hardware.clone();
            data["metadata"]["name"] = json!(left.name);
            self.make_for::<HardwareData>(&made, data, true).await?;
        }
        if status["poweredOn"] == true {
            self.service.went_on(&left.name);
        }
        if status.is_object() {
            let patch = Patch::Merge(json!({"status": status}));
            api.patch_status(&left.name, &PatchParams::default(), &patch)
                .await?;
        }
        if left.deleted {
            api.delete(&left.name, &DeleteParams::default()).await?;
        }
        Ok(())
    }

    /// Makes an object that belongs to `host`.
    async fn make_for<K>(&self, host: &BareMetalHost, mut object: Value, controls: bool) -> Result<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + serde::Serialize
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let mut owner = json!({
            "apiVersion": "metal3.io/v1alpha1", "kind": "BareMetalHost", "name": host.name_any(), "uid": host.uid(),
        });
        if controls {
            owner["controller"] = json!(true);
            owner["blockOwnerDeletion"] = json!(true);
        }
        object["metadata"]["ownerReferences"] = json!([owner]);
        let object: K = serde_json::from_value(object)?;
        let made = self
            .stage
            .api::<K>()
            .create(&PostParams::default(), &object)
            .await;
        made.context("make what belongs to the host")
    }

    fn mac(&self, name: &str) -> String {
        let server = self.servers[name].lock().expect("no test panics with it");
        // Upstream takes either case.
        server.hardware().boot_mac().to_string().to_uppercase()
    }

    /// Our operator begins.
    async fn take_over(&mut self) -> Result<()> {
        self.stage.controller.start()?;
        let spec = segment(BR0, Profile::Lab, UnknownPolicy::Ignore)?;
        self.stage.serve(BR0.name, spec).await
    }

    async fn host(
        &self,
        name: &str,
        what: &str,
        test: impl Fn(&BareMetalHost) -> bool,
    ) -> Result<BareMetalHost> {
        let api = self.stage.api::<BareMetalHost>();
        let mut last = None;
        let found = self
            .stage
            .until(&format!("{name} is to be {what}"), SOON, async || {
                let host = api.get_opt(name).await?;
                last.clone_from(&host);
                Ok(host.filter(&test))
            })
            .await;
        found.with_context(|| format!("{:#?}", last.and_then(|host| host.status)))
    }

    async fn is_gone(&self, name: &str) -> Result<()> {
        let api = self.stage.api::<BareMetalHost>();
        let mut last = None;
        let gone = self
            .stage
            .until(&format!("{name} is to be gone"), SOON, async || {
                last = api.get_opt(name).await?;
                Ok(last.is_none().then_some(()))
            })
            .await;
        gone.with_context(|| format!("{:#?}", last.and_then(|host| host.status)))
    }

    /// Waits until our operator has asked every machine that it looks at; what it asks is added to `seen`.
    async fn all_are_looked_at(&self, seen: &mut Vec<bmc::Seen>) -> Result<()> {
        let mut left = Vec::new();
        // What is at rest may be told before its machine is looked at.
        let all = self
            .stage
            .until("every machine is to be looked at", SOON, async || {
                seen.extend(self.service.seen());
                let looked_at = self.recorded.hosts.iter().filter(|left| is_looked_at(left));
                let is_left = |name: &&str| !seen.iter().any(|request| is_about(request, name));
                left = looked_at.map(|left| left.name.as_str()).filter(is_left).collect();
                Ok(left.is_empty().then_some(()))
            });
        let all = all.await;
        all.with_context(|| format!("{left:?} are not"))
    }

    /// State and registration of each host that is at rest for good, by its name.
    async fn rested(&self) -> Result<BTreeMap<String, (String, Option<OperationMetric>)>> {
        let hosts = self
            .stage
            .api::<BareMetalHost>()
            .list(&ListParams::default())
            .await?;
        let hosts = hosts.items.into_iter().filter(|host| {
            let name = host.name_any();
            // What ours cannot write, tries again or has given up, the other one writes: it has every format, and no limit in this version.
            let is_written = matches!(name.as_str(), "provisioning-qcow2" | "available-given-up");
            !is_written && !is_tried_later(&name)
        });
        let rested = hosts.map(|host| {
            let history = host
                .status
                .as_ref()
                .and_then(|status| status.operation_history.as_ref());
            let registered = history.and_then(|history| history.register.clone());
            (host.name_any(), (state(&host).to_owned(), registered))
        });
        Ok(rested.collect())
    }

    /// Waits until the other operator has written the host, whose conditions then say of which generation they are.
    async fn looked_at_by_the_other(&self, name: &str) -> Result<()> {
        let kind = ApiResource::erase::<BareMetalHost>(&());
        let client = Cluster::shared().await?.client()?;
        let hosts: Api<DynamicObject> = Api::namespaced_with(client, &self.stage.namespace, &kind);
        self.stage
            .until(
                &format!("the other operator is to write {name}"),
                SOON,
                async || {
                    let host = hosts.get(name).await?;
                    let conditions = host.data["status"]["conditions"].as_array();
                    let written = |condition: &Value| condition["observedGeneration"].is_i64();
                    Ok(conditions.into_iter().flatten().any(written).then_some(()))
                },
            )
            .await
    }

    /// What was done to the disks of a machine.
    fn worked(&self, name: &str) -> Vec<&'static str> {
        let server = self.servers[name].lock().expect("no test panics with it");
        server.kinds_of_work()
    }
}

/// True if our operator has looked at the host and said so.
fn is_taken_over(host: &BareMetalHost) -> bool {
    let conditions = host.status.iter().flat_map(|status| &status.conditions);
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Waiting")
}

/// What the other operator needs to go on from here, beside what its schema demands, which the API server held up to every write.
fn can_go_back(before: &Value, host: &BareMetalHost, secret: Option<&Secret>) -> Result<()> {
    ensure!(
        host.finalizers() == ["baremetalhost.metal3.io"],
        "{:?}",
        host.finalizers()
    );
    let status = host.status.as_ref().context("a status")?;
    ensure!(status.last_updated.is_some(), "when it was updated");
    let Some(secret) = secret else {
        return Ok(());
    };
    let id = before["status"]["provisioning"]["ID"]
        .as_str()
        .unwrap_or_default();
    let kept = id.is_empty() || status.provisioning.id == id;
    ensure!(
        kept && !status.provisioning.id.is_empty(),
        "the id {}",
        status.provisioning.id
    );
    ensure!(status.provisioning.boot_mode.is_some(), "the boot mode");
    for credentials in [&status.good_credentials, &status.tried_credentials] {
        let credentials = credentials.as_ref().context("credentials")?;
        let named = credentials
            .credentials
            .as_ref()
            .and_then(|named| named.name.as_deref());
        ensure!(named == secret.metadata.name.as_deref(), "{credentials:?}");
        ensure!(
            credentials.credentials_version == secret.resource_version(),
            "{credentials:?}"
        );
    }
    ensure!(secret.finalizers() == ["baremetalhost.metal3.io/secret"]);
    ensure!(secret.labels()["environment.metal3.io"] == "baremetal");
    ensure!(
        secret
            .owner_references()
            .iter()
            .any(|owner| Some(&owner.uid) == host.uid().as_ref())
    );
    let history = status.operation_history.as_ref().context("the history")?;
    let ended = |metric: &Option<muster_proto::kinds::OperationMetric>| {
        metric
            .as_ref()
            .is_some_and(|metric| metric.start.is_some() && metric.end.is_some())
    };
    ensure!(ended(&history.register), "{history:?}");
    let runs = status.provisioning.image.as_ref().map(|image| image.url.as_str());
    let runs = runs.filter(|url| !url.is_empty()).is_some() || status.provisioning.custom_deploy.is_some();
    match state(host) {
        "provisioned" => ensure!(runs && ended(&history.provision), "{status:#?}"),
        "available" => ensure!(!runs, "{status:#?}"),
        _ => {}
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_of_another_operator_go_on_in_every_state_and_can_go_back() {
    let mut site = Site::left("takeover").await.unwrap();
    site.take_over().await.unwrap();
    let mut seen = Vec::new();
    for left in &site.recorded.hosts {
        let name = left.name.as_str();
        // The BMC remembers only so many.
        seen.extend(site.service.seen());
        match &left.end {
            End::Goes(disks) => {
                site.is_gone(name).await.unwrap();
                assert_eq!(site.worked(name), *disks, "{name}");
                assert_eq!(site.service.power(name), PowerState::Off, "{name}");
            }
            End::Comes { .. } if is_tried_later(name) => {
                let is_back = |host: &BareMetalHost| {
                    let history = host
                        .status
                        .as_ref()
                        .and_then(|status| status.operation_history.as_ref());
                    let deprovision = history.and_then(|history| history.deprovision.as_ref());
                    deprovision.is_some_and(|deprovision| deprovision.end.is_some())
                };
                site.host(name, "taken back", is_back).await.unwrap();
                assert_eq!(site.worked(name).first(), Some(&"clean"), "{name}");
            }
            End::Comes { state, disks } => {
                let arrived = |host: &BareMetalHost| self::state(host) == state && is_taken_over(host);
                let host = site.host(name, state, arrived).await.unwrap();
                assert_eq!(site.worked(name), *disks, "{name}");
                let status = host.status.unwrap();
                assert_eq!(status.error_type, None, "{name}: {status:#?}");
                assert!(status.hardware.is_some(), "{name}");
            }
            End::Rests(state) => {
                // As it was left, the other operator's errors and words apart.
                let at_rest = |host: &BareMetalHost| {
                    let status = host.status.as_ref();
                    let told = status.map(|status| status.operational_status);
                    let well = match name {
                        "provisioned-paused" => return true,
                        "unmanaged" => OperationalStatus::Discovered,
                        "available-given-up" => OperationalStatus::Error,
                        "provisioned-detached" => OperationalStatus::Detached,
                        _ => OperationalStatus::Ok,
                    };
                    self::state(host) == state && told == Some(well) && is_taken_over(host)
                };
                site.host(name, state, at_rest).await.unwrap();
            }
        }
    }
    site.all_are_looked_at(&mut seen).await.unwrap();
    assert_untouched(&site, &seen);
    all_can_go_back(&site).await.unwrap();
    // And what came of that first look.
    seen.extend(site.service.seen());
    assert_untouched(&site, &seen);
    if env::var_os("MUSTER_FULL").is_some() {
        there_and_back(&mut site).await.unwrap();
    }
}

/// The other operator itself goes on where ours stops, and ours where that one stops: no host leaves its state or is registered anew. It is
/// of an older version than those that the hosts were recorded of, so it is a way back in two respects.
async fn there_and_back(site: &mut Site) -> Result<()> {
    let cluster = Cluster::shared().await?;
    ensure!(site.stage.controller.stop(SOON).await, "ours did not end");
    let before = site.rested().await?;
    cluster.install_kinds(&paths::metal3_kinds()?).await?;
    let dir = site.stage.scratch.sub("metal3")?;
    let mut other = Operator::start(cluster.kubeconfig(), &site.stage.namespace, &dir, &[])?;
    let at_rest = before.keys().filter(|name| !is_left_alone(name));
    for name in at_rest {
        let taken = site.looked_at_by_the_other(name).await;
        other.lives()?;
        taken?;
    }
    // It prepares anew what it takes up as available, and comes back.
    let mut after = BTreeMap::new();
    let back = site.stage.until("every host is to be as it was", SOON, async || {
        after = site.rested().await?;
        Ok((after == before).then_some(()))
    });
    let back = back.await;
    back.with_context(|| format!("{after:#?}\n{before:#?}"))?;
    drop(other);
    let work = |site: &Site| -> Vec<_> { before.keys().map(|name| site.worked(name)).collect() };
    let worked = work(site);
    drop(site.service.seen());
    let mut seen = Vec::new();
    site.stage.controller.start()?;
    site.all_are_looked_at(&mut seen).await?;
    let after = site.rested().await?;
    ensure!(after == before, "{after:#?}\n{before:#?}");
    let asked = seen
        .iter()
        .filter(|request| before.keys().any(|name| is_about(request, name)));
    for request in asked {
        ensure!(request.method == "GET", "{request:#?}");
    }
    ensure!(work(site) == worked, "{:?}", work(site));
    Ok(())
}

/// True for a host whose machine neither operator looks at.
fn is_left_alone(name: &str) -> bool {
    matches!(name, "unmanaged" | "provisioned-paused" | "provisioned-detached")
}

/// True if the request is about the machine of the host `name`.
fn is_about(request: &bmc::Seen, name: &str) -> bool {
    let rest = request.path.strip_prefix(&format!("/redfish/v1/Systems/{name}"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// True if the machine of this host at rest is looked at.
fn is_looked_at(left: &Left) -> bool {
    // An image that cannot be written is refused before the machine is asked for anything.
    let refused = left.name == "provisioning-qcow2";
    matches!(left.end, End::Rests(_)) && !is_left_alone(&left.name) && !refused
}

/// By their BMC's own log: machines that were as they should be were only looked at, and those of hosts that are left alone not even that.
fn assert_untouched(site: &Site, seen: &[bmc::Seen]) {
    for left in &site.recorded.hosts {
        let name = left.name.as_str();
        let End::Rests(_) = &left.end else { continue };
        for request in seen.iter().filter(|request| is_about(request, name)) {
            assert!(is_looked_at(left), "{name}: {request:#?}");
            assert_eq!(request.method, "GET", "{name}: {request:#?}");
        }
        assert_eq!(site.worked(name), [""; 0], "{name}");
        let server = site.servers[name].lock().expect("no test panics with it");
        assert_eq!(server.seen().boots, 0, "{name}");
    }
}

async fn all_can_go_back(site: &Site) -> Result<()> {
    let hosts = site.stage.api::<BareMetalHost>();
    let secrets = site.stage.api::<Secret>();
    for left in &site.recorded.hosts {
        let name = left.name.as_str();
        if matches!(left.end, End::Goes(_)) {
            continue;
        }
        let host = hosts.get(name).await?;
        let paused = name == "provisioned-paused";
        ensure!(is_taken_over(&host) != paused, "{name}: {host:#?}");
        let secret = secrets.get_opt(&format!("{name}-bmc")).await?;
        let mut before = site.recorded.host.clone();
        overlay(&mut before, &left.patch);
        can_go_back(&before, &host, secret.as_ref()).with_context(|| format!("{name}: {host:#?}"))?;
    }
    let told = site.stage.told().await?;
    let refused: Vec<_> = told.iter().filter(|told| told.reason == "WriteRefused").collect();
    ensure!(refused.is_empty(), "{refused:#?}");
    Ok(())
}
