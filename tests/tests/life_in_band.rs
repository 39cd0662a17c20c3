//! A server without a BMC, from its discovery through an operating system of its own and back: real machines, the real controller,
//! agent and ramdisk, an image over HTTP onto the machine's own disk.

// The helpers below are parts of tests.
#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use kube::{
    Api, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use muster_os::BOOTED;
use muster_proto::{
    Mac,
    job::Failure,
    kinds::{BareMetalHost, ErrorType, IN_BAND_ANNOTATION, JobStatus, Profile, Server, UnknownPolicy},
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
    stage::{Stage, server_name, state},
};
use serde_json::{Value, json};

/// Generous: each part takes 10 s on a quiet machine.
const SOON: Duration = Duration::from_secs(240);
const FORM: Form = Form::Zstd;
const USER_DATA: &str = "#cloud-config\nhostname: lab-7\n# canary-4b1d90\n";
const META_DATA: &str = "role: canary-6a02ee\n";
const NETWORK_DATA: &str = r#"{"links": [{"id": "canary-93c5f1"}]}"#;
const CANARIES: [&str; 3] = ["canary-4b1d90", "canary-6a02ee", "canary-93c5f1"];

/// What watches saw of a host and its Server.
#[derive(Debug, Default)]
struct Seen {
    /// The host's states, one after another.
    states: Vec<String>,
    /// The host as it is.
    host: Option<BareMetalHost>,
    /// Its Server was seen: no job that ends from here on is missed.
    server: bool,
    /// The jobs that were ordered, by id, each with what is to come after it.
    ordered: Vec<String>,
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
        if let Some(job) = &server.spec.job {
            let then = job.then.as_ref().map(|then| &then.id);
            let leave = job.leave.as_ref().map(|leave| &leave.id);
            for id in std::iter::once(&job.id).chain(then).chain(leave) {
                if !self.ordered.contains(id) {
                    self.ordered.push(id.clone());
                }
            }
        }
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
        self.stage.patch(&self.name, patch).await
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

    /// Gives it the image and all that goes on a config drive.
    async fn wish(&self, checksum: &str) -> Result<()> {
        let image = json!({
            "url": self.images.url(&self.image.name(FORM)),
            "checksum": checksum, "checksumType": "sha256", "format": "raw",
        });
        let spec = json!({
            "image": image, "userData": {"name": "user"}, "metaData": {"name": "meta"}, "networkData": {"name": "network"},
        });
        self.patch(json!({ "spec": spec })).await
    }

    /// Gives it an image that is not what its digest says: it stays in the ramdisk, and people can read why.
    async fn fails(&self) -> Result<()> {
        self.wish(&"0".repeat(64)).await?;
        let failed = |host: &BareMetalHost| {
            let status = host.status.as_ref();
            let failed = status.is_some_and(|status| {
                status.error_type == Some(ErrorType::Provisioning)
                    && status.error_message.contains("its digest is")
            });
            failed && state(host) == "available"
        };
        self.reaches("available again, with an error", failed).await?;
        let failed = self.failed();
        let [job] = failed.as_slice() else {
            bail!("not one failed job but {failed:#?}");
        };
        ensure!(job.id.contains("-write"), "{job:#?}");
        ensure!(
            job.failure == Some(Failure::Final) && !job.log.is_empty(),
            "{job:#?}"
        );
        let console = self.machine.console().from(0);
        let says = |what: &str| console.iter().filter(|line| line.text.contains(what)).count();
        ensure!(
            says("step=enrolled") == 1 && says(BOOTED) == 0,
            "it left its ramdisk"
        );
        Ok(())
    }

    /// Gives it the image; returns what its own operating system says.
    async fn provision(&self) -> Result<Told> {
        let from = self.machine.console().len();
        self.wish(&self.image.sha256(FORM)?).await?;
        self.reaches("provisioned", |host| state(host) == "provisioned")
            .await?;
        let (_, told) = told::told(self.machine.console(), from, SOON).await?;
        Ok(told)
    }

    /// Nobody shows what is on the config drive but the operating system, which does so by design.
    async fn keeps_secrets(&self) -> Result<()> {
        let console = self.machine.console();
        let (first, _) = told::booted(console, 0, SOON).await?;
        let mut said = console.from(0);
        said.truncate(first);
        let (_, again) = self.machine.since().context("a machine that is on")?;
        if again > first {
            said.extend(console.from(again));
        }
        self.stage.shows_nowhere(&CANARIES, &said).await
    }

    /// Takes the image away; nobody but a person can boot the machine into its ramdisk again, and `by_hand` is that person.
    async fn release(&mut self, by_hand: impl FnOnce(&mut Machine) -> Result<()>) -> Result<()> {
        self.patch(json!({"spec": {"image": null, "userData": null, "metaData": null, "networkData": null}}))
            .await?;
        let waits = |host: &BareMetalHost| {
            let status = host.status.as_ref();
            let mut conditions = status.iter().flat_map(|status| &status.conditions);
            let waits = conditions.any(|condition| {
                condition.type_ == "Waiting"
                    && condition.status == "True"
                    && condition.reason == "PowerCycleByHand"
                    && condition.message.contains("network boot has been armed since")
            });
            waits && state(host) == "deprovisioning"
        };
        self.reaches("waiting for a person", waits).await?;
        by_hand(&mut self.machine)?;
        self.reaches("available again", |host| state(host) == "available")
            .await
    }

    /// The running ramdisk is all that can switch the machine off.
    async fn is_switched_off(&mut self) -> Result<()> {
        self.patch(json!({"spec": {"online": false}})).await?;
        let console = self.machine.console();
        console.wait_for("switching off, as ordered", 0, SOON).await?;
        // As QEMU's NICs cannot.
        console
            .wait_for("Wake-on-LAN is armed on no NIC", 0, SOON)
            .await?;
        let gone = async {
            while self.machine.is_on() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(SOON, gone).await.context("it stays on")?;
        let off = |host: &BareMetalHost| host.status.as_ref().is_some_and(|status| !status.powered_on);
        self.reaches("off", off).await
    }

    /// The jobs that were ordered, by what they do, in their order.
    fn ordered(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.ordered.iter().filter_map(|id| what(id)).collect()
    }

    /// The jobs that ended well, by what they did, in their order. The end of one that another follows is not written.
    fn jobs(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let ended = seen.ended.iter().filter(|job| job.error.is_empty());
        ended.filter_map(|job| what(&job.id)).collect()
    }

    /// The jobs that failed.
    fn failed(&self) -> Vec<JobStatus> {
        let seen = self.seen.lock().unwrap();
        let failed = seen.ended.iter().filter(|job| !job.error.is_empty());
        failed.cloned().collect()
    }

    fn states(&self) -> Vec<String> {
        self.seen.lock().unwrap().states.clone()
    }
}

/// What the operator's job `id` does and for what; none for one that is no work on disks and does not leave the ramdisk.
fn what(id: &str) -> Option<String> {
    let kind = ["-clean", "-write", "-leave"]
        .iter()
        .find(|kind| id.contains(*kind))?;
    let operation = id.split('-').nth(1).unwrap_or_default();
    Some(format!("{operation}{kind}"))
}

/// The states of a host up to the first attempt to write an image, of an attempt that fails, and of one that succeeds with all that
/// comes after it.
const BEGIN: [&str; 5] = ["unmanaged", "registering", "inspecting", "preparing", "available"];
const FAILURE: [&str; 3] = ["provisioning", "deprovisioning", "available"];
const SUCCESS: [&str; 4] = ["provisioning", "provisioned", "deprovisioning", "available"];

/// An attempt that fails, if `fails`, and then the whole life; the image is to be on disk `number`.
async fn lives(
    life: &mut Life,
    fails: bool,
    number: usize,
    by_hand: impl FnOnce(&mut Machine) -> Result<()>,
) -> Result<()> {
    life.opt_in().await?;
    for (name, key, text) in [
        ("user", "userData", USER_DATA),
        ("meta", "metaData", META_DATA),
        ("network", "networkData", NETWORK_DATA),
    ] {
        life.stage.secret(name, &[(key, text)]).await?;
    }
    if fails {
        life.fails().await?;
    }
    let (attempt, orders) = (life.jobs().len(), life.ordered().len());
    let told = life.provision().await?;
    ensure!(told.name == life.name, "{told:?}");
    ensure!(told.user_data.iter().eq(USER_DATA.lines()), "{told:?}");
    let disk = life.machine.disk(number).context("a disk")?.to_owned();
    ensure!(life.image.first_difference(&disk)?.is_none(), "another image");
    assert_eq!(tables(&disk)?, ["MBR", "GPT", "second GPT"]);
    assert_eq!(
        life.ordered()[orders..][..3],
        ["provision-clean", "provision-write", "provision-leave"]
    );
    assert!(life.jobs()[attempt..].contains(&"provision-write".to_owned()));

    life.release(by_hand).await?;
    assert_eq!(tables(&disk)?, [""; 0]);
    let failure: &[&str] = if fails { &FAILURE } else { &[] };
    assert_eq!(life.states(), [&BEGIN[..], failure, &SUCCESS].concat());
    assert_eq!(life.failed().len(), usize::from(fails), "{:#?}", life.failed());
    assert!(life.jobs()[attempt..].contains(&"deprovision-clean".to_owned()));
    let servers = life.stage.servers().await?;
    assert!(servers.contains_key(&server_name(life.mac)), "{servers:?}");
    assert_eq!(servers.len(), 1);
    let server = servers.into_values().next().context("a Server")?;
    let kept = server.status.and_then(|status| status.last_failure);
    let failed = life.failed().pop();
    assert_eq!(
        kept.map(|kept| *kept),
        failed,
        "what was wrong can be read long after something else followed"
    );
    life.keeps_secrets().await
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
    lives(&mut life, true, 0, Machine::power_cycle).await.unwrap();
    life.is_switched_off().await.unwrap();
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
    lives(&mut life, false, 0, by_hand).await.unwrap();
}
