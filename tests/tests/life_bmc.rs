//! Hosts with a BMC, from the declaration to the deletion: the real control plane and controller, light Redfish BMCs, and simulated
//! machines with the agent's own session.

use std::{
    net::Ipv4Addr,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use muster_proto::{
    Mac,
    kinds::{
        BareMetalHost, BareMetalHostSpec, BmcDetails, ErrorType, HardwareData, OperationalStatus, Profile,
        UnknownPolicy,
    },
};
use muster_tests::{
    bmc::{self, PowerState, Service},
    bridges::BR0,
    cluster::Cluster,
    controller::Setup,
    paths,
    sim::{agent::SimServer, rack::Rack, work::Pace},
    stage::{Stage, segment, state},
};
use serde_json::{Value, json};

/// Generous: a whole life takes a minute on a quiet machine.
const SOON: Duration = Duration::from_secs(180);
const SYSTEM: &str = "1";
const IMAGE: &str = "http://images.test/os.raw";
/// The BMC's password, and what is in the Secrets for the operating system.
const PASSWORD: &str = "canary-9f3c77-password";
const USER_DATA: &str = "#cloud-config\n# canary-51d0be-user\n";
const META_DATA: &str = "name: mine\nrole: canary-c2a968-meta\n";
const NETWORK_DATA: &str = r#"{"links": [{"id": "canary-07be4d-network"}]}"#;
const CANARIES: [&str; 4] = [
    PASSWORD,
    "canary-51d0be-user",
    "canary-c2a968-meta",
    "canary-07be4d-network",
];
/// A password that the BMC does not take.
const WRONG: &str = "canary-e8b52a-wrong";

/// A machine behind its BMC, and its host.
struct Rig {
    stage: Stage,
    /// The host's name.
    name: String,
    service: Arc<Service>,
    server: Arc<Mutex<SimServer>>,
    mac: Mac,
    _rack: Rack,
}

impl Rig {
    /// On a stage whose Segment ignores whom nobody described.
    async fn new(purpose: &str) -> Result<Rig> {
        Rig::with(purpose, UnknownPolicy::Ignore, |_| {}).await
    }

    /// With another policy, and a controller that is set up otherwise.
    async fn with(purpose: &str, unknown: UnknownPolicy, change: impl FnOnce(&mut Setup)) -> Result<Rig> {
        let mut stage = Stage::dark_with(purpose, &[BR0], change).await?;
        stage.controller.start()?;
        stage
            .serve(BR0.name, segment(BR0, Profile::Lab, unknown)?)
            .await?;
        let rack = stage.rack()?;
        let server = rack.servers([1]).remove(0);
        let mac = server.hardware().boot_mac();
        let server = Arc::new(Mutex::new(server));
        let options = bmc::Options {
            user: ("admin".to_owned(), PASSWORD.to_owned()),
            ..bmc::Options::default()
        };
        let machines = [(SYSTEM.to_owned(), Arc::clone(&server))].into();
        let at = Ipv4Addr::LOCALHOST.into();
        Ok(Rig {
            service: Service::before(&stage.network.net, at, options, machines)?,
            stage,
            name: "node".to_owned(),
            server,
            mac,
            _rack: rack,
        })
    }

    async fn secret(&self, password: &str) -> Result<()> {
        let login = [("username", "admin"), ("password", password)];
        self.stage.secret("bmc", &login).await
    }

    fn bmc(&self) -> BmcDetails {
        BmcDetails {
            address: self.service.address("redfish", Some(SYSTEM)),
            credentials_name: "bmc".to_owned(),
            ..BmcDetails::default()
        }
    }

    async fn declare(&self) -> Result<()> {
        let spec = BareMetalHostSpec {
            online: true,
            boot_mac_address: Some(self.mac.to_string()),
            bmc: Some(self.bmc()),
            ..BareMetalHostSpec::default()
        };
        let host = BareMetalHost::new(&self.name, spec);
        self.stage
            .api::<BareMetalHost>()
            .create(&PostParams::default(), &host)
            .await
            .context("make the host")?;
        Ok(())
    }

    async fn patch(&self, patch: Value) -> Result<()> {
        self.stage.patch(&self.name, patch).await
    }

    /// `kubectl wait` for a condition of the host.
    async fn kubectl_waits(&self, condition: &str) -> Result<()> {
        let cluster = Cluster::shared().await?;
        let mut command = Command::new(paths::kubectl()?);
        command
            .arg("--kubeconfig")
            .arg(cluster.kubeconfig())
            .arg("--cache-dir")
            .arg(self.stage.scratch.sub("kubectl")?)
            .args(["--namespace", &self.stage.namespace, "wait", "bmh/node"])
            .arg(format!("--for=condition={condition}"))
            .arg(format!("--timeout={}s", SOON.as_secs()));
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl wait {condition}: {said}");
        Ok(())
    }

    async fn host(&self, what: &str, test: impl Fn(&BareMetalHost) -> bool) -> Result<BareMetalHost> {
        let what = format!("the host is to be {what}");
        let mut last = None;
        let found = self
            .stage
            .until(&what, SOON, async || {
                let host = self.stage.api::<BareMetalHost>().get_opt(&self.name).await?;
                last.clone_from(&host);
                Ok(host.filter(&test))
            })
            .await;
        found.with_context(|| format!("{:#?}", last.and_then(|host| host.status)))
    }

    async fn reaches(&self, state: &str) -> Result<BareMetalHost> {
        self.host(state, |host| self::state(host) == state).await
    }

    /// All that goes on a config drive.
    async fn inputs(&self) -> Result<()> {
        for (name, key, text) in [
            ("user", "userData", USER_DATA),
            ("meta", "metaData", META_DATA),
            ("network", "networkData", NETWORK_DATA),
        ] {
            self.stage.secret(name, &[(key, text)]).await?;
        }
        Ok(())
    }

    async fn wish(&self) -> Result<()> {
        self.inputs().await?;
        let image = json!({"url": IMAGE, "checksum": "0".repeat(64), "checksumType": "sha256"});
        let spec = json!({
            "image": image, "userData": {"name": "user"}, "metaData": {"name": "meta"}, "networkData": {"name": "network"},
        });
        self.patch(json!({ "spec": spec })).await
    }

    async fn delete(&self) -> Result<()> {
        let api = self.stage.api::<BareMetalHost>();
        api.delete(&self.name, &DeleteParams::default())
            .await
            .context("delete the host")?;
        self.stage
            .until("the host is to be gone", SOON, async || {
                Ok(api.get_opt(&self.name).await?.is_none().then_some(()))
            })
            .await
    }

    /// The host goes as `clusterctl move` takes it away: its finalizers first, then the object. What is made anew elsewhere.
    async fn moves_away(&self) -> Result<BareMetalHost> {
        let api = self.stage.api::<BareMetalHost>();
        let host = api.get(&self.name).await.context("read the host")?;
        self.patch(json!({"metadata": {"finalizers": []}})).await?;
        self.delete().await?;
        let mut copy = BareMetalHost::new(&self.name, host.spec);
        copy.metadata.labels = host.metadata.labels;
        copy.metadata.annotations = host.metadata.annotations;
        copy.metadata.finalizers = host.metadata.finalizers;
        Ok(copy)
    }

    /// Somebody presses the machine's reset button, and it has asked the network what to boot.
    async fn is_reset(&self) -> Result<()> {
        let before = self.boots();
        self.server.lock().expect("no test panics with it").power_on();
        self.stage
            .until("the machine is to ask what to boot", SOON, async || {
                // It begins anew once nobody has answered, or it was told to boot its disk, which is empty. One boot may have begun before.
                Ok((self.boots() > before + 2).then_some(()))
            })
            .await
    }

    /// How often it has begun to boot.
    fn boots(&self) -> u32 {
        self.server.lock().expect("no test panics with it").seen().boots
    }

    /// What its agent has done to disks.
    fn worked(&self) -> Vec<&'static str> {
        let server = self.server.lock().expect("no test panics with it");
        server.kinds_of_work()
    }
}

fn error(host: &BareMetalHost) -> &str {
    host.status.as_ref().map_or("", |status| &status.error_message)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_inspected_provisioned_deprovisioned_and_deleted_by_its_bmc() {
    // With all that there is to log, in which no secret may stand either.
    let talkative = |setup: &mut Setup| {
        setup.extra.extend(["--log-format", "json"].map(str::to_owned));
        setup
            .environment
            .push(("MUSTER_LOG".to_owned(), "trace".to_owned()));
    };
    let rig = Rig::with("life", UnknownPolicy::Ignore, talkative).await.unwrap();
    rig.secret(PASSWORD).await.unwrap();
    rig.declare().await.unwrap();
    rig.kubectl_waits("AvailableForProvisioning").await.unwrap();
    let host = rig.reaches("available").await.unwrap();
    let status = host.status.unwrap();
    assert_eq!(status.operational_status, OperationalStatus::Ok);
    assert!(status.hardware.is_some() && status.good_credentials.is_some());
    let data = rig.stage.api::<HardwareData>().get("node").await.unwrap();
    assert_eq!(data.spec.hardware, status.hardware);
    let secret = rig.stage.api::<Secret>().get("bmc").await.unwrap();
    assert_eq!(secret.labels()["environment.metal3.io"], "baremetal");
    assert_eq!(secret.finalizers(), ["baremetalhost.metal3.io/secret"]);
    assert_eq!(secret.owner_references()[0].name, "node");
    assert_eq!(
        rig.server.lock().unwrap().seen().boots,
        1,
        "one boot is enough so far"
    );

    rig.wish().await.unwrap();
    rig.kubectl_waits("Provisioned").await.unwrap();
    let host = rig.reaches("provisioned").await.unwrap();
    assert_eq!(rig.worked(), ["clean", "write"]);
    let drive = rig.server.lock().unwrap().worked()[1].drive.clone().unwrap();
    assert_eq!(drive.user_data.unwrap(), USER_DATA.as_bytes());
    let network: Value = serde_json::from_str(NETWORK_DATA).unwrap();
    assert_eq!(drive.network_data, Some(network));
    let meta = json!({
        "uuid": host.metadata.uid, "metal3-namespace": rig.stage.namespace, "metal3-name": "node",
        "local-hostname": "node", "local_hostname": "node", "name": "mine", "role": "canary-c2a968-meta",
    });
    assert_eq!(
        Value::Object(drive.meta_data),
        meta,
        "the user's words count more"
    );
    assert_eq!(host.status.unwrap().provisioning.image.unwrap().url, IMAGE);
    rig.stage.shows_nowhere(&CANARIES, &[]).await.unwrap();

    rig.patch(json!({"spec": {"image": null, "userData": null, "metaData": null, "networkData": null}}))
        .await
        .unwrap();
    rig.reaches("deprovisioning").await.unwrap();
    rig.reaches("available").await.unwrap();
    assert_eq!(rig.worked(), ["clean", "write", "clean"]);

    rig.delete().await.unwrap();
    assert_eq!(rig.service.power(SYSTEM), PowerState::Off);
    rig.stage
        .until("no finalizer is to hold the Secret", SOON, async || {
            let secret = rig.stage.api::<Secret>().get_opt("bmc").await?;
            Ok(secret
                .is_none_or(|secret| secret.finalizers().is_empty())
                .then_some(()))
        })
        .await
        .unwrap();
    rig.stage.shows_nowhere(&CANARIES, &[]).await.unwrap();
    let log = std::fs::read_to_string(rig.stage.controller.log().path()).unwrap();
    rounds_are_spans(&log, &rig.stage.namespace);
}

/// Every line is JSON, and what the operator did for the host was said in the span of a round about it.
fn rounds_are_spans(log: &str, namespace: &str) {
    assert!(
        log.contains("TRACE"),
        "all that can be logged is looked through for secrets"
    );
    // The last line may be half written.
    let (whole, _) = log.rsplit_once('\n').expect("a line");
    let of_node = |span: &Value| span["name"] == "operator" && span["host"] == format!("{namespace}/node");
    let mut acts = 0;
    for line in whole.lines() {
        let said: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if of_node(&said["span"]) && said["fields"]["effects"].is_string() {
            let spans: Vec<_> = said["spans"].as_array().into_iter().flatten().collect();
            let about = spans.iter().filter(|span| of_node(span)).count();
            // The other one is that of kube's own loop.
            assert_eq!((spans.len(), about), (2, 1), "{line}");
            assert!(said["fields"]["host"].is_null(), "it is said once: {line}");
            acts += 1;
        }
    }
    assert!(acts > 0, "{whole}");
}

/// JSON merge patches without a resource version, as the real CAPM3 sends them, past the rules on hosts.
#[tokio::test(flavor = "multi_thread")]
async fn the_patches_of_capm3_claim_pause_move_remediate_and_release_a_host() {
    let rig = Rig::new("capm3").await.unwrap();
    let cluster = Cluster::shared().await.unwrap();
    cluster.rules_bind(&rig.stage.namespace).await.unwrap();
    rig.secret(PASSWORD).await.unwrap();
    rig.inputs().await.unwrap();
    rig.declare().await.unwrap();
    rig.reaches("available").await.unwrap();

    let data = |name: &str| json!({"name": name, "namespace": rig.stage.namespace});
    let cluster_name = "cluster.x-k8s.io/cluster-name";
    rig.patch(json!({
        "metadata": {
            "labels": {cluster_name: "c"},
            "annotations": {"clusterctl.cluster.x-k8s.io/block-move": ""},
        },
        "spec": {
            "consumerRef": {"kind": "Metal3Machine", "name": "m", "namespace": rig.stage.namespace,
                "apiVersion": "infrastructure.cluster.x-k8s.io/v1beta2"},
            "image": {"url": IMAGE, "format": "", "checksum": "0".repeat(64), "checksumType": "sha256"},
            "userData": data("user"), "metaData": data("meta"), "networkData": data("network"),
            "automatedCleaningMode": "metadata", "online": true,
        },
    }))
    .await
    .unwrap();
    let claimed = rig.reaches("provisioned").await.unwrap();
    let registered = claimed.status.unwrap().operation_history.unwrap().register;
    let label = json!({"metadata": {"labels": {cluster_name: "c"}}});
    rig.stage
        .api::<Secret>()
        .patch("bmc", &PatchParams::default(), &Patch::Merge(label))
        .await
        .unwrap();

    // As before a move of the cluster, and after it was thought better of.
    let annotate = |name: &str, value: Value| json!({"metadata": {"annotations": {name: value}}});
    let paused = "baremetalhost.metal3.io/paused";
    rig.patch(annotate(paused, json!("metal3.io/capm3")))
        .await
        .unwrap();
    let copied = |host: &BareMetalHost| {
        let mut status = serde_json::to_value(&host.status).unwrap();
        status.as_object_mut().unwrap().remove("hardware");
        json!(status.to_string())
    };
    let moved = "baremetalhost.metal3.io/status";
    let host = rig.reaches("provisioned").await.unwrap();
    rig.patch(annotate(moved, copied(&host))).await.unwrap();
    rig.patch(annotate(paused, Value::Null)).await.unwrap();
    let goes_on = |host: &BareMetalHost| host.status.is_some() && !host.annotations().contains_key(moved);
    rig.host("without the copy of its status", goes_on).await.unwrap();

    // And a move that is carried out; all the while the machine, whose disk is empty, asks the network what to boot.
    let secret = rig.stage.api::<Secret>().get("bmc").await.unwrap();
    let follows = |host: &BareMetalHost| {
        let good = host
            .status
            .as_ref()
            .and_then(|status| status.good_credentials.as_ref());
        good.is_some_and(|good| good.credentials_version == secret.metadata.resource_version)
    };
    let before = rig.host("up to date with its Secret", follows).await.unwrap();
    let history = before.status.clone().unwrap().operation_history.unwrap();
    assert_eq!(
        history.register, registered,
        "a label on the Secret registers nothing"
    );
    let reports = rig.server.lock().unwrap().seen().reports;
    rig.patch(annotate(paused, json!("metal3.io/capm3")))
        .await
        .unwrap();
    rig.patch(annotate(moved, copied(&before))).await.unwrap();
    let copy = rig.moves_away().await.unwrap();
    rig.is_reset().await.unwrap();
    let hosts = rig.stage.api::<BareMetalHost>();
    let arrived = hosts.create(&PostParams::default(), &copy).await.unwrap();
    assert!(arrived.status.is_none() && arrived.uid() != before.uid());
    rig.is_reset().await.unwrap();
    let waits = hosts.get("node").await.unwrap();
    assert!(waits.status.is_none(), "it is paused: {:?}", waits.status);
    rig.patch(annotate(paused, Value::Null)).await.unwrap();
    rig.host("without the copy of its status", goes_on).await.unwrap();
    rig.is_reset().await.unwrap();
    let host = rig.reaches("provisioned").await.unwrap();
    // The copy names no hardware: that is in the HardwareData, which clusterctl moves as well. The Secret has another version, so
    // its credentials are tried anew, as upstream does.
    let lasting = |host: &BareMetalHost| {
        let status = host.status.clone().unwrap();
        let history = status.operation_history.unwrap();
        let provisioning = (status.provisioning.id, status.provisioning.image);
        (provisioning, history.inspect, history.provision)
    };
    assert_eq!((error(&host), lasting(&host)), ("", lasting(&before)));
    assert_eq!(rig.worked(), ["clean", "write"]);
    let seen = rig.server.lock().unwrap().seen();
    assert_eq!(seen.reports, reports, "it never came into its ramdisk: {seen:?}");

    let remedy = "reboot.metal3.io/metal3-remediation-6d1f";
    rig.patch(annotate(remedy, json!(r#"{"mode":"hard"}"#)))
        .await
        .unwrap();
    let powered_on = |host: &BareMetalHost| host.status.as_ref().is_some_and(|status| status.powered_on);
    rig.host("off", |host| !powered_on(host)).await.unwrap();
    assert_eq!(rig.service.power(SYSTEM), PowerState::Off);
    rig.patch(annotate(remedy, Value::Null)).await.unwrap();
    let host = rig.host("on", powered_on).await.unwrap();
    assert_eq!(rig.service.power(SYSTEM), PowerState::On);
    assert_eq!((state(&host), error(&host)), ("provisioned", ""));
    assert_eq!(rig.worked(), ["clean", "write"]);

    rig.patch(
        json!({"spec": {"image": null, "customDeploy": null, "userData": null, "metaData": null,
        "networkData": null, "online": false}}),
    )
    .await
    .unwrap();
    let released = |host: &BareMetalHost| state(host) == "available" && !powered_on(host);
    let host = rig.host("available and off", released).await.unwrap();
    assert_eq!(rig.worked(), ["clean", "write", "clean"]);
    assert_eq!(rig.service.power(SYSTEM), PowerState::Off);
    assert!(host.spec.consumer_ref.is_some() && error(&host).is_empty());
    assert_eq!(host.labels()[cluster_name], "c");
    assert!(
        host.annotations()
            .contains_key("clusterctl.cluster.x-k8s.io/block-move")
    );
    rig.patch(json!({
        "metadata": {"labels": {cluster_name: null}, "annotations": {"clusterctl.cluster.x-k8s.io/block-move": null}},
        "spec": {"consumerRef": null},
    }))
    .await
    .unwrap();
    rig.stage.shows_nowhere(&CANARIES, &[]).await.unwrap();
    rig.delete().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discovered_host_gets_a_bmc_and_the_ramdisk_that_runs_serves_for_all_of_it() {
    let mut rig = Rig::with("found", UnknownPolicy::Hold, |_| {}).await.unwrap();
    // Somebody plugs it in.
    rig.service.went_on(SYSTEM);
    let is_found = |host: &BareMetalHost| {
        let status = host.status.as_ref();
        status.is_some_and(|status| status.provisioning.state == "unmanaged" && status.hardware.is_some())
    };
    let found = rig.stage.host(rig.mac, SOON, is_found).await.unwrap();
    rig.name = found.name_any();
    let hardware = found.status.unwrap().hardware;
    let boots = rig.boots();
    rig.secret(PASSWORD).await.unwrap();
    rig.patch(json!({"spec": {"bmc": rig.bmc()}})).await.unwrap();
    let host = rig.reaches("available").await.unwrap();
    assert_eq!(host.uid(), found.metadata.uid);
    let status = host.status.unwrap();
    assert_eq!(status.hardware, hardware, "it is not inspected again");
    assert!(status.powered_on && status.good_credentials.is_some());
    assert_eq!(rig.boots(), boots, "it is not booted again");
    rig.wish().await.unwrap();
    rig.reaches("provisioned").await.unwrap();
    assert_eq!(rig.worked(), ["clean", "write"]);
    // Once into the ramdisk, and once out of it: by its agent's hand, as the BMC's own log shows.
    rig.stage
        .until("the machine is to leave its ramdisk once", SOON, async || {
            // From then on it looks for a system on its empty disk, again and again.
            Ok((rig.boots() > boots).then_some(()))
        })
        .await
        .unwrap();
    let asked = rig.service.seen();
    let system = |request: &&bmc::Seen| request.path.contains("/Systems");
    assert!(asked.iter().any(|request| system(&request)), "it was asked");
    for request in asked.iter().filter(system) {
        assert_eq!(request.method, "GET", "{request:#?}");
    }
    assert_eq!(rig.service.power(SYSTEM), PowerState::On);
    // From here on its BMC boots it.
    rig.patch(json!({"spec": {"image": null, "userData": null}}))
        .await
        .unwrap();
    rig.reaches("deprovisioning").await.unwrap();
    rig.reaches("available").await.unwrap();
    assert_eq!(rig.worked(), ["clean", "write", "clean"]);
    rig.delete().await.unwrap();
    assert_eq!(rig.service.power(SYSTEM), PowerState::Off);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bmc_of_another_machine_is_refused_by_name_and_that_machine_stays_as_it_is() {
    let mut rig = Rig::with("another", UnknownPolicy::Hold, |_| {}).await.unwrap();
    rig.service.add("2");
    // Where the host is to be off.
    rig.service.went_on("2");
    rig.service.went_on(SYSTEM);
    let is_found = |host: &BareMetalHost| {
        let status = host.status.as_ref();
        status.is_some_and(|status| status.provisioning.state == "unmanaged" && status.hardware.is_some())
    };
    let found = rig.stage.host(rig.mac, SOON, is_found).await.unwrap();
    rig.name = found.name_any();
    rig.secret(PASSWORD).await.unwrap();
    let mistaken = BmcDetails {
        address: rig.service.address("redfish", Some("2")),
        ..rig.bmc()
    };
    rig.patch(json!({"spec": {"bmc": mistaken, "online": false}}))
        .await
        .unwrap();
    let hardware = rig.server.lock().expect("no test panics with it").hardware();
    let uuid = hardware.inventory.system.uuid;
    let is_refused =
        |host: &BareMetalHost| error(host).contains(&uuid) && error(host).contains("another machine");
    let host = rig.host("refused", is_refused).await.unwrap();
    let kind = host.status.and_then(|status| status.error_type);
    assert_eq!(kind, Some(ErrorType::Registration));
    for request in rig.service.seen() {
        let reads = request.method == "GET" || request.path.contains("/Sessions");
        assert!(reads, "{request:#?}");
    }
    assert_eq!(rig.service.power("2"), PowerState::On);
    rig.patch(json!({"spec": {"bmc": rig.bmc()}})).await.unwrap();
    rig.reaches("available").await.unwrap();
    let is_off = |host: &BareMetalHost| host.status.as_ref().is_some_and(|status| !status.powered_on);
    rig.host("off", is_off).await.unwrap();
    assert_eq!(rig.service.power(SYSTEM), PowerState::Off);
    rig.delete().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_a_missing_secret_and_a_silent_bmc_are_told_and_mended() {
    let rig = Rig::new("trouble").await.unwrap();
    rig.declare().await.unwrap();
    rig.host("without its Secret", |host| {
        error(host).contains("does not exist")
    })
    .await
    .unwrap();
    rig.secret(WRONG).await.unwrap();
    rig.host("refused by its BMC", |host| error(host).contains("credentials"))
        .await
        .unwrap();
    let told = rig.stage.hears("node", "RegistrationError", SOON).await.unwrap();
    assert_eq!(told.kind, "BareMetalHost");
    rig.stage.shows_nowhere(&[WRONG], &[]).await.unwrap();
    let right = json!({"stringData": {"password": PASSWORD}});
    rig.service.inject(bmc::Rule::always(bmc::Fault::Refuse));
    rig.stage
        .api::<Secret>()
        .patch("bmc", &PatchParams::default(), &Patch::Merge(right))
        .await
        .unwrap();
    rig.host("unreachable", |host| error(host).contains("reached"))
        .await
        .unwrap();
    rig.service.heal();
    // Asked again after a while that doubles; another wish is another reason to ask at once.
    rig.patch(json!({"spec": {"bmc": {"disableCertificateVerification": true}}}))
        .await
        .unwrap();
    let host = rig.reaches("available").await.unwrap();
    assert_eq!(error(&host), "");
    let canaries: Vec<&str> = CANARIES.into_iter().chain([WRONG]).collect();
    rig.stage.shows_nowhere(&canaries, &[]).await.unwrap();
    rig.delete().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_is_killed_again_and_again_and_the_host_gets_its_image_once() {
    let mut rig = Rig::new("killed").await.unwrap();
    rig.secret(PASSWORD).await.unwrap();
    rig.declare().await.unwrap();
    for state in ["inspecting", "available"] {
        rig.reaches(state).await.unwrap();
        rig.stage.controller.kill();
        rig.stage.controller.start().unwrap();
    }
    let works = |waits_at| {
        let pace = Pace {
            waits_at,
            ..Pace::default()
        };
        rig.server.lock().unwrap().works(pace);
    };
    // Whatever it does stands still half way: here that is the write.
    works(Some(50));
    rig.patch(json!({"spec": {"automatedCleaningMode": "disabled"}}))
        .await
        .unwrap();
    rig.wish().await.unwrap();
    rig.stage.has_written(rig.mac, 50, SOON).await.unwrap();
    rig.stage.controller.kill();
    rig.stage.controller.start().unwrap();
    works(None);
    rig.reaches("provisioned").await.unwrap();
    rig.stage.controller.kill();
    rig.stage.controller.start().unwrap();
    let reboot = json!({"metadata": {"annotations": {"reboot.metal3.io": ""}}});
    rig.service.seen();
    rig.patch(reboot).await.unwrap();
    let done = |host: &BareMetalHost| {
        !host.annotations().contains_key("reboot.metal3.io") && state(host) == "provisioned"
    };
    rig.host("rebooted", done).await.unwrap();
    let asked = rig.service.seen();
    assert!(
        asked.iter().any(|request| request.path.ends_with(".Reset")),
        "{asked:#?}"
    );
    assert_eq!(
        rig.worked().iter().filter(|worked| **worked == "write").count(),
        1,
        "{:?}",
        rig.worked()
    );
    rig.delete().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_and_detached_hosts_are_left_alone() {
    let rig = Rig::new("paused").await.unwrap();
    let annotate = |name: &str, value: Value| json!({"metadata": {"annotations": {name: value}}});
    rig.secret(PASSWORD).await.unwrap();
    rig.declare().await.unwrap();
    rig.reaches("available").await.unwrap();
    let hosts = rig.stage.api::<BareMetalHost>();
    // What becomes of another host meanwhile shows that the controller has had the time.
    let nothing_is_done = async |other: &str| {
        let host = BareMetalHost::new(other, BareMetalHostSpec::default());
        hosts.create(&PostParams::default(), &host).await.unwrap();
        let seen = async || Ok(hosts.get(other).await?.status.map(|_| ()));
        rig.stage
            .until("the other host is to be seen", SOON, seen)
            .await
            .unwrap();
        let asked = rig.service.seen();
        // A session may be ended.
        let changes = asked
            .iter()
            .filter(|one| one.method != "GET" && !one.path.contains("/Sessions"));
        assert_eq!(changes.count(), 0, "{asked:#?}");
        assert_eq!(rig.service.power(SYSTEM), PowerState::On);
    };
    let paused = "baremetalhost.metal3.io/paused";
    rig.patch(annotate(paused, json!(""))).await.unwrap();
    rig.service.seen();
    rig.wish().await.unwrap();
    rig.patch(json!({"spec": {"online": false}})).await.unwrap();
    nothing_is_done("first").await;
    assert_eq!(state(&hosts.get("node").await.unwrap()), "available");
    rig.patch(json!({"spec": {"online": true}})).await.unwrap();
    rig.patch(annotate(paused, Value::Null)).await.unwrap();
    rig.reaches("provisioned").await.unwrap();
    let detached = "baremetalhost.metal3.io/detached";
    rig.patch(annotate(detached, json!(""))).await.unwrap();
    let is_detached = |host: &BareMetalHost| {
        let status = host.status.as_ref();
        status.is_some_and(|status| status.operational_status == OperationalStatus::Detached)
    };
    rig.host("detached", is_detached).await.unwrap();
    rig.service.seen();
    rig.patch(json!({"spec": {"online": false}})).await.unwrap();
    nothing_is_done("second").await;
    rig.patch(json!({"spec": {"online": true}})).await.unwrap();
    rig.patch(annotate(detached, Value::Null)).await.unwrap();
    rig.host("attached", |host| {
        !is_detached(host) && state(host) == "provisioned"
    })
    .await
    .unwrap();
    rig.delete().await.unwrap();
}
