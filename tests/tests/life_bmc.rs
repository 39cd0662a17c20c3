//! Hosts with a BMC, from the declaration to the deletion: the real control plane and controller, light Redfish BMCs, and simulated
//! machines with the agent's own session.

use std::{
    net::TcpListener,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use muster_proto::{
    Mac,
    kinds::{
        BareMetalHost, BareMetalHostSpec, BmcDetails, HardwareData, OperationalStatus, Profile, SegmentSpec,
        Server, Trust, UnknownPolicy,
    },
};
use muster_tests::{
    bmc::{self, PowerState, Service, What},
    bridges::BR0,
    sim::{agent::SimServer, rack::Rack},
    stage::{Stage, segment},
};
use serde_json::{Value, json};

/// Generous: a whole life takes a minute on a quiet machine.
const SOON: Duration = Duration::from_secs(180);
const SYSTEM: &str = "1";
const IMAGE: &str = "http://images.test/os.raw";
/// User data, and the password of the BMC: neither is to be found anywhere but in its Secret and where it is meant for.
const CANARY: &str = "canary-9f3c77";
const PASSWORD: &str = "canary-b0a7e2";

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
        Rig::with(purpose, UnknownPolicy::Ignore).await
    }

    async fn with(purpose: &str, unknown: UnknownPolicy) -> Result<Rig> {
        let mut stage = Stage::dark(purpose, &[BR0]).await?;
        stage.controller.start()?;
        let spec = SegmentSpec {
            required_trust: Trust::Segment,
            ..segment(BR0, Profile::Lab, unknown)?
        };
        stage.serve(BR0.name, spec).await?;
        let rack = stage.rack()?;
        let server = rack.servers([1]).remove(0);
        let mac = server.hardware().boot_mac();
        let server = Arc::new(Mutex::new(server));
        let listener = stage.network.net.run(|| TcpListener::bind(("127.0.0.1", 0)));
        let options = bmc::Options {
            user: ("admin".to_owned(), PASSWORD.to_owned()),
            ..bmc::Options::default()
        };
        let (service, mut events) = Service::on(listener.context("listen as a BMC")?, options)?;
        let service = Arc::new(service);
        let machine = Arc::clone(&server);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let mut machine = machine.lock().expect("no test panics with it");
                match event.what {
                    What::On(_) => machine.power_on(),
                    What::Off => machine.power_off(),
                    // Its operating system obeys by itself.
                    What::ShutdownAsked => {}
                }
            }
        });
        Ok(Rig {
            stage,
            name: "node".to_owned(),
            service,
            server,
            mac,
            _rack: rack,
        })
    }

    async fn secret(&self, password: &str) -> Result<()> {
        let data = [("username", "admin"), ("password", password)];
        let bytes = |(key, text): (&str, &str)| (key.to_owned(), ByteString(text.as_bytes().to_vec()));
        let mut secret = Secret {
            data: Some(data.into_iter().map(bytes).collect()),
            ..Secret::default()
        };
        secret.metadata.name = Some("bmc".to_owned());
        self.stage
            .api::<Secret>()
            .create(&PostParams::default(), &secret)
            .await
            .context("make the Secret")?;
        Ok(())
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
        self.stage
            .api::<BareMetalHost>()
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .context("patch the host")?;
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

    async fn wish(&self) -> Result<()> {
        let mut secret = Secret {
            string_data: Some([("userData".to_owned(), CANARY.to_owned())].into()),
            ..Secret::default()
        };
        secret.metadata.name = Some("user".to_owned());
        self.stage
            .api::<Secret>()
            .create(&PostParams::default(), &secret)
            .await
            .context("make the user data")?;
        let image = json!({"url": IMAGE, "checksum": "0".repeat(64), "checksumType": "sha256"});
        self.patch(json!({"spec": {"image": image, "userData": {"name": "user"}}}))
            .await
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

    /// How often it has begun to boot.
    fn boots(&self) -> u32 {
        self.server.lock().expect("no test panics with it").seen().boots
    }

    /// All that the controller stored or said outside of Secrets shows no secret, in clear or in base64.
    async fn shows_no_secret(&self) -> Result<()> {
        let mut places = vec![("the log", self.stage.controller.log().last(100_000).join("\n"))];
        let list = ListParams::default();
        let hosts = self.stage.api::<BareMetalHost>().list(&list).await?;
        places.push(("hosts", serde_json::to_string(&hosts.items)?));
        let servers = self.stage.api::<Server>().list(&list).await?;
        places.push(("Servers", serde_json::to_string(&servers.items)?));
        let data = self.stage.api::<HardwareData>().list(&list).await?;
        places.push(("HardwareData", serde_json::to_string(&data.items)?));
        let told = self.stage.told().await?;
        places.push(("Events", told.into_iter().map(|told| told.note).collect()));
        for (place, text) in places {
            for secret in [CANARY, PASSWORD] {
                // The last digits of base64 depend on what follows.
                let coded = BASE64_STANDARD.encode(secret);
                let coded = coded.get(..12).context("a long secret")?;
                ensure!(!text.contains(secret) && !text.contains(coded), "{place}: {text}");
            }
        }
        Ok(())
    }

    /// What its agent has done to disks.
    fn worked(&self) -> Vec<&'static str> {
        use muster_agent::steps::Order;
        let worked = self.server.lock().expect("no test panics with it").worked();
        let kind = |order: &Order| match order {
            Order::Clean(_) => "clean",
            Order::Write { .. } => "write",
        };
        worked.iter().map(|worked| kind(&worked.order)).collect()
    }
}

fn state(host: &BareMetalHost) -> &str {
    host.status
        .as_ref()
        .map_or("", |status| &status.provisioning.state)
}

fn error(host: &BareMetalHost) -> &str {
    host.status.as_ref().map_or("", |status| &status.error_message)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_inspected_provisioned_deprovisioned_and_deleted_by_its_bmc() {
    let rig = Rig::new("life").await.unwrap();
    rig.secret(PASSWORD).await.unwrap();
    rig.declare().await.unwrap();
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
    let host = rig.reaches("provisioned").await.unwrap();
    assert_eq!(host.status.unwrap().provisioning.image.unwrap().url, IMAGE);
    assert_eq!(rig.worked(), ["clean", "write"]);
    let drive = rig.server.lock().unwrap().worked()[1].drive.clone().unwrap();
    assert_eq!(drive.user_data.unwrap(), CANARY.as_bytes());
    assert_eq!(drive.meta_data["metal3-name"], "node");
    rig.shows_no_secret().await.unwrap();

    rig.patch(json!({"spec": {"image": null, "userData": null}}))
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
    rig.shows_no_secret().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discovered_host_gets_a_bmc_and_the_ramdisk_that_runs_serves_for_all_of_it() {
    let mut rig = Rig::with("found", UnknownPolicy::Hold).await.unwrap();
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
async fn wrong_credentials_a_missing_secret_and_a_silent_bmc_are_told_and_mended() {
    let rig = Rig::new("trouble").await.unwrap();
    rig.declare().await.unwrap();
    rig.host("without its Secret", |host| {
        error(host).contains("does not exist")
    })
    .await
    .unwrap();
    rig.secret("wrong").await.unwrap();
    rig.host("refused by its BMC", |host| error(host).contains("credentials"))
        .await
        .unwrap();
    let told = rig.stage.hears("node", "RegistrationError", SOON).await.unwrap();
    assert_eq!(told.kind, "BareMetalHost");
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
    rig.shows_no_secret().await.unwrap();
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
    rig.wish().await.unwrap();
    for state in ["provisioning", "provisioned"] {
        rig.reaches(state).await.unwrap();
        rig.stage.controller.kill();
        rig.stage.controller.start().unwrap();
    }
    let reboot = json!({"metadata": {"annotations": {"reboot.metal3.io": ""}}});
    rig.patch(reboot).await.unwrap();
    let done = |host: &BareMetalHost| {
        !host.annotations().contains_key("reboot.metal3.io") && state(host) == "provisioned"
    };
    rig.host("rebooted", done).await.unwrap();
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
    let paused = "baremetalhost.metal3.io/paused";
    rig.patch(annotate(paused, json!(""))).await.unwrap();
    rig.wish().await.unwrap();
    // What becomes of another host meanwhile shows that the controller has had the time.
    let other = BareMetalHost::new("other", BareMetalHostSpec::default());
    let hosts = rig.stage.api::<BareMetalHost>();
    hosts.create(&PostParams::default(), &other).await.unwrap();
    let seen = async || Ok(hosts.get("other").await?.status.map(|_| ()));
    rig.stage
        .until("the other host is to be seen", SOON, seen)
        .await
        .unwrap();
    assert_eq!(state(&hosts.get("node").await.unwrap()), "available");
    rig.patch(annotate(paused, Value::Null)).await.unwrap();
    rig.reaches("provisioned").await.unwrap();
    let detached = "baremetalhost.metal3.io/detached";
    rig.patch(annotate(detached, json!(""))).await.unwrap();
    let is_detached = |host: &BareMetalHost| {
        let status = host.status.as_ref();
        status.is_some_and(|status| status.operational_status == OperationalStatus::Detached)
    };
    rig.host("detached", is_detached).await.unwrap();
    rig.patch(annotate(detached, Value::Null)).await.unwrap();
    rig.host("attached", |host| {
        !is_detached(host) && state(host) == "provisioned"
    })
    .await
    .unwrap();
    rig.delete().await.unwrap();
}
