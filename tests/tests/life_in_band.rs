//! A server without a BMC, from its discovery through an operating system of its own and back: real machines, the real controller,
//! agent and ramdisk, an image over HTTP onto the machine's own disk.

// The helpers below are parts of tests.
#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use muster_proto::{
    Mac,
    kinds::{BareMetalHost, IN_BAND_ANNOTATION, JobStatus, Profile, Server, UnknownPolicy},
};
use muster_tests::{
    bridges::BR0,
    machine::{Boot, Bus, Disk, Machine, MachineSpec, Smbios, UefiNet},
    os_image::{
        Flavour, Form, Image,
        gpt::tables,
        server::ImageServer,
        told::{self, Told},
    },
    slots::Slots,
    stage::{Stage, server_name},
};
use serde_json::{Value, json};

/// Generous: each part takes 10 s on a quiet machine.
const SOON: Duration = Duration::from_secs(240);
const USER_DATA: &str = "#cloud-config\nhostname: lab-7\n# canary-4b1d90\n";

/// What watches saw of a host and its Server.
#[derive(Debug, Default)]
struct Seen {
    /// The host's states, one after another.
    states: Vec<String>,
    /// The host as it is.
    host: Option<BareMetalHost>,
    /// Its Server was seen: no job that ends from here on is missed.
    server: bool,
    /// How jobs ended, by id.
    ended: Vec<JobStatus>,
}

impl Seen {
    fn host(&mut self, host: BareMetalHost) {
        let state = state(&host).to_owned();
        if self.states.last() != Some(&state) {
            self.states.push(state);
        }
        self.host = Some(host);
    }

    fn server(&mut self, server: Server) {
        self.server = true;
        let job = server.status.and_then(|status| status.job);
        if let Some(job) = job.filter(|job| job.done && !self.ended.contains(job)) {
            self.ended.push(job);
        }
    }
}

/// A machine with a whole life before it.
struct Life {
    stage: Stage,
    machine: Machine,
    image: Image,
    images: ImageServer,
    seen: Arc<Mutex<Seen>>,
    mac: Mac,
    name: String,
    _slots: Slots,
}

impl Drop for Life {
    /// What a person wants to see if it goes wrong.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let status = seen.host.as_ref().and_then(|host| host.status.as_ref());
            eprintln!("states: {:?}\njobs: {:#?}", seen.states, seen.ended);
            eprintln!("status: {:#?}", status.map(|status| &status.conditions));
            let console = self.machine.console().last(120).join("\n");
            let log = self.stage.controller.log().last(80).join("\n");
            eprintln!("the machine's console:\n{console}\nthe controller's log:\n{log}");
        }
    }
}

impl Life {
    /// Discovered: the machine is on, runs the ramdisk, and is an unmanaged host.
    async fn begin(purpose: &str, mac: Mac, spec: MachineSpec) -> Result<Life> {
        let slots = Slots::take(1).await?;
        let image = Image::find(Flavour::Cloud)?;
        let stage = Stage::lit(purpose, &[(BR0, Profile::Lab, UnknownPolicy::Hold)]).await?;
        let listen: SocketAddr = "10.77.0.1:0".parse()?;
        let images = ImageServer::inside(&stage.network.net, listen, image.dir())?;
        let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec)?;
        machine.power_on()?;
        let mut life = Life {
            stage,
            machine,
            image,
            images,
            seen: Arc::default(),
            mac,
            name: String::new(),
            _slots: slots,
        };
        let host = life.stage.host(mac, SOON, |host| host.status.is_some()).await?;
        life.name = host.name_any();
        life.watch().await?;
        Ok(life)
    }

    /// Notes every state from here on; returns when both watches have begun.
    async fn watch(&self) -> Result<()> {
        let hosts: Api<BareMetalHost> = self.stage.api();
        let seen = Arc::clone(&self.seen);
        let changes = watcher(hosts, watcher::Config::default()).default_backoff();
        tokio::spawn(changes.applied_objects().for_each(move |host| {
            if let Ok(host) = host {
                seen.lock().unwrap().host(host);
            }
            std::future::ready(())
        }));
        let servers: Api<Server> = self.stage.api();
        let seen = Arc::clone(&self.seen);
        let changes = watcher(servers, watcher::Config::default()).default_backoff();
        tokio::spawn(changes.applied_objects().for_each(move |server| {
            if let Ok(server) = server {
                seen.lock().unwrap().server(server);
            }
            std::future::ready(())
        }));
        self.stage
            .until("the watches are to begin", SOON, async || {
                let seen = self.seen.lock().unwrap();
                Ok((seen.host.is_some() && seen.server).then_some(()))
            })
            .await
    }

    async fn patch(&self, patch: Value) -> Result<()> {
        self.stage
            .api::<BareMetalHost>()
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .context("patch the host")?;
        Ok(())
    }

    async fn reaches(&self, what: &str, test: impl Fn(&BareMetalHost) -> bool) -> Result<()> {
        self.stage
            .until(&format!("the host is to be {what}"), SOON, async || {
                let seen = self.seen.lock().unwrap();
                Ok(seen.host.as_ref().filter(|host| test(host)).map(drop))
            })
            .await
    }

    /// The user reads the session's key on the machine's console, and allows the ramdisk of that key to be used.
    async fn opt_in(&self) -> Result<()> {
        let (_, line) = self.machine.console().wait_for("step=enrolled", 0, SOON).await?;
        let key = line.text.split("key=").nth(1).context("the session's key")?;
        let key = key
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .trim_matches('"');
        self.patch(json!({"metadata": {"annotations": {IN_BAND_ANNOTATION: key}}}))
            .await?;
        self.reaches("available", |host| state(host) == "available").await
    }

    /// Gives it the image and user data; returns what its own operating system says.
    async fn provision(&self) -> Result<Told> {
        let mut secret = Secret {
            string_data: Some([("userData".to_owned(), USER_DATA.to_owned())].into()),
            ..Secret::default()
        };
        secret.metadata.name = Some("user".to_owned());
        self.stage
            .api::<Secret>()
            .create(&PostParams::default(), &secret)
            .await
            .context("make the user data")?;
        let from = self.machine.console().len();
        let form = Form::Zstd;
        let image = json!({
            "url": self.images.url(&self.image.name(form)),
            "checksum": self.image.sha256(form)?, "checksumType": "sha256", "format": "raw",
        });
        self.patch(json!({"spec": {"image": image, "userData": {"name": "user"}}}))
            .await?;
        self.reaches("provisioned", |host| state(host) == "provisioned")
            .await?;
        let (_, told) = told::told(self.machine.console(), from, SOON).await?;
        Ok(told)
    }

    /// Takes the image away; nobody but a person can boot the machine into its ramdisk again, and `by_hand` is that person.
    async fn release(&mut self, by_hand: impl FnOnce(&mut Machine) -> Result<()>) -> Result<()> {
        self.patch(json!({"spec": {"image": null, "userData": null}}))
            .await?;
        let waits = |host: &BareMetalHost| {
            let status = host.status.as_ref();
            let mut conditions = status.iter().flat_map(|status| &status.conditions);
            let waits = conditions.any(|condition| {
                condition.type_ == "Waiting"
                    && condition.status == "True"
                    && condition.reason == "PowerCycleByHand"
                    && condition.message.contains("its network boot is armed since")
            });
            waits && state(host) == "deprovisioning"
        };
        self.reaches("waiting for a person", waits).await?;
        by_hand(&mut self.machine)?;
        self.reaches("available again", |host| state(host) == "available")
            .await
    }

    /// The jobs that ended, by what they did, in their order; each must have ended well.
    fn jobs(&self) -> Result<Vec<String>> {
        let seen = self.seen.lock().unwrap();
        let kinds = ["-clean", "-write", "-leave"];
        let mut jobs = Vec::new();
        for job in &seen.ended {
            ensure!(job.error.is_empty(), "{job:#?}");
            let Some(kind) = kinds.iter().find(|kind| job.id.contains(*kind)) else {
                continue;
            };
            let operation = job.id.split('-').nth(1).unwrap_or_default();
            jobs.push(format!("{operation}{kind}"));
        }
        Ok(jobs)
    }

    fn states(&self) -> Vec<String> {
        self.seen.lock().unwrap().states.clone()
    }
}

fn state(host: &BareMetalHost) -> &str {
    host.status
        .as_ref()
        .map_or("", |status| &status.provisioning.state)
}

const WHOLE_LIFE: [&str; 9] = [
    "unmanaged",
    "registering",
    "inspecting",
    "preparing",
    "available",
    "provisioning",
    "provisioned",
    "deprovisioning",
    "available",
];

/// The whole life; the image is to be on disk `number`.
async fn lives(
    life: &mut Life,
    number: usize,
    by_hand: impl FnOnce(&mut Machine) -> Result<()>,
) -> Result<()> {
    life.opt_in().await?;
    let told = life.provision().await?;
    ensure!(told.name == life.name, "{told:?}");
    ensure!(told.user_data.iter().eq(USER_DATA.lines()), "{told:?}");
    let disk = life.machine.disk(number).context("a disk")?.to_owned();
    ensure!(life.image.first_difference(&disk)?.is_none(), "another image");
    assert_eq!(tables(&disk)?, ["MBR", "GPT", "second GPT"]);
    assert_eq!(life.jobs()?.first().map(String::as_str), Some("provision-clean"));
    assert_eq!(life.jobs()?.get(1).map(String::as_str), Some("provision-write"));

    life.release(by_hand).await?;
    assert_eq!(tables(&disk)?, [""; 0]);
    assert_eq!(life.states(), WHOLE_LIFE);
    assert!(life.jobs()?.contains(&"deprovision-clean".to_owned()));
    let servers = life.stage.servers().await?;
    assert!(servers.contains_key(&server_name(life.mac)), "{servers:?}");
    assert_eq!(servers.len(), 1);
    let log = life.stage.controller.log().last(100_000).join("\n");
    assert!(!log.contains("canary-4b1d90"), "the log shows user data");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn discovered_bios_machine_gets_an_operating_system_and_is_released() {
    let mac = Mac([0x52, 0x54, 0, 0x1b, 0, 1]);
    let spec = MachineSpec::bios("m1", mac, BR0.name)
        .with_smbios(Smbios::of("Example Servers", "Pizza Box", "SN0001"))
        // Without hints the smallest disk is taken; a BIOS boots none but its first.
        .with_disk(Disk::new(Bus::Virtio, 10, "VIRT0001"))
        .with_disk(Disk::new(Bus::Nvme, 20, "NVME0001"));
    let mut life = Life::begin("in-band-bios", mac, spec).await.unwrap();
    lives(&mut life, 0, Machine::power_cycle).await.unwrap();
}

/// It boots its disk first, so the person at it has to choose the network.
#[tokio::test(flavor = "multi_thread")]
async fn discovered_uefi_machine_gets_an_operating_system_and_is_released() {
    let mac = Mac([0x52, 0x54, 0, 0x1b, 0, 2]);
    let spec = MachineSpec::uefi("m2", mac, BR0.name, UefiNet::Http)
        .with_smbios(Smbios::of("Example Servers", "Tall Box", "SN0002"))
        .with_disk(Disk::new(Bus::Nvme, 10, "NVME0002"));
    let mut life = Life::begin("in-band-uefi", mac, spec).await.unwrap();
    let by_hand = |machine: &mut Machine| {
        machine.power_off();
        machine.rebuild(|spec| spec.boot = Boot::Network)?;
        machine.power_on()
    };
    lives(&mut life, 0, by_hand).await.unwrap();
}
