//! A real machine behind a BMC, from its declaration to its deletion: QEMU boots what its BMC was told, and the real controller, agent,
//! ramdisk and image do the rest. Its disk holds somebody's system, which it boots whenever it is not told to boot the network.

use std::{
    fs::{self, OpenOptions},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, PostParams};
use muster_proto::{
    Mac,
    kinds::{BareMetalHost, BareMetalHostSpec, BmcDetails, Profile, UnknownPolicy},
};
use muster_tests::{
    bmc::{self, PowerState, Service},
    bridges::BR0,
    lines::Lines,
    machine::{Bus, Disk, Machine, MachineSpec, Smbios, UefiNet},
    os_image::{
        Flavour, Form, Image,
        gpt::tables,
        os::{BOOTED, POWERS_OFF},
        server::ImageServer,
        told::{self, Told},
    },
    slots::Slots,
    stage::{Stage, state},
};
use serde_json::{Value, json};

/// Generous: each part takes 15 s on a quiet machine.
const SOON: Duration = Duration::from_secs(240);
const MAC: Mac = Mac([0x52, 0x54, 0, 0x1c, 0, 1]);
const UUID: &str = "7e4d52c1-0b1f-4c55-9a3e-52540000001c";
const SYSTEM: &str = "1";
const NAME: &str = "node";
const USER_DATA: &str = "#cloud-config\nhostname: lab-8\n";
const FORM: Form = Form::Zstd;

/// A machine with a system on its disk, switched off, and its BMC.
struct Rig {
    stage: Stage,
    image: Image,
    images: ImageServer,
    service: Arc<Service>,
    machine: Arc<Mutex<Machine>>,
    console: Lines,
    _slots: Slots,
}

impl Rig {
    async fn new() -> Result<Rig> {
        let slots = Slots::take(1).await?;
        let image = Image::find(Flavour::Cloud)?;
        let stage = Stage::lit("machine", &[(BR0, Profile::Lab, UnknownPolicy::Ignore)]).await?;
        let listen: SocketAddr = "10.77.0.1:0".parse()?;
        let images = ImageServer::inside(&stage.network.net, listen, image.dir())?;
        let mut disk = Disk::new(Bus::Nvme, 10, "NVME0001");
        let file = stage.scratch.path().join("somebodys.img");
        fs::copy(Image::find(Flavour::Full)?.file(Form::Raw), &file)?;
        OpenOptions::new()
            .write(true)
            .open(&file)?
            .set_len(disk.size_bytes)?;
        disk.file = Some(file);
        let smbios = Smbios::of("Example Servers", "Tall Box", "SN0003").with_uuid(UUID);
        let spec = MachineSpec::uefi("m1", MAC, BR0.name, UefiNet::Pxe)
            .with_smbios(smbios)
            .with_disk(disk);
        let machine = Machine::new(&stage.network.net, stage.scratch.path(), spec)?;
        let console = machine.console().clone();
        let machine = Arc::new(Mutex::new(machine));
        let options = bmc::Options {
            // Whether it obeys is for what it runs to decide.
            obeys: false,
            ..bmc::Options::default()
        };
        let at = Ipv4Addr::LOCALHOST.into();
        let net = &stage.network.net;
        let service = Service::before_real(net, at, options, SYSTEM, Arc::clone(&machine))?;
        Ok(Rig {
            stage,
            image,
            images,
            service,
            machine,
            console,
            _slots: slots,
        })
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().expect("no test panics with it")
    }

    async fn declare(&self) -> Result<()> {
        let login = [("username", "admin"), ("password", "secret")];
        self.stage.secret("bmc", &login).await?;
        self.stage.secret("user", &[("userData", USER_DATA)]).await?;
        let spec = BareMetalHostSpec {
            online: true,
            boot_mac_address: Some(MAC.to_string()),
            bmc: Some(BmcDetails {
                address: self.service.address("redfish", Some(SYSTEM)),
                credentials_name: "bmc".to_owned(),
                ..BmcDetails::default()
            }),
            ..BareMetalHostSpec::default()
        };
        let host = BareMetalHost::new(NAME, spec);
        let hosts = self.stage.api::<BareMetalHost>();
        hosts
            .create(&PostParams::default(), &host)
            .await
            .context("make the host")?;
        Ok(())
    }

    async fn patch(&self, spec: Value) -> Result<()> {
        self.stage.patch(NAME, json!({ "spec": spec })).await
    }

    async fn is(&self, what: &str, test: impl Fn(&BareMetalHost) -> bool) -> Result<()> {
        let mut last = None;
        let found = self
            .stage
            .until(&format!("the host is to be {what}"), SOON, async || {
                let host = self.stage.api::<BareMetalHost>().get_opt(NAME).await?;
                last.clone_from(&host);
                Ok(host.filter(&test).map(drop))
            })
            .await;
        found.with_context(|| {
            let status = last.and_then(|host| host.status);
            format!("{status:#?}\nthe console:\n{}", self.console.last(60).join("\n"))
        })
    }

    async fn reaches(&self, state: &str) -> Result<()> {
        self.is(state, |host| self::state(host) == state).await
    }

    async fn is_powered(&self, on: bool) -> Result<()> {
        let is = |host: &BareMetalHost| {
            let status = host.status.as_ref();
            status.is_some_and(|status| status.powered_on == on)
        };
        self.is(if on { "on" } else { "off" }, is).await
    }

    /// The tables on its disk.
    fn tables(&self) -> Result<Vec<&'static str>> {
        let machine = self.machine();
        Ok(tables(machine.disk(0).context("a disk")?)?)
    }

    /// Gives it the image; returns what its own operating system says.
    async fn provision(&self) -> Result<Told> {
        let from = self.console.len();
        let image = json!({
            "url": self.images.url(&self.image.name(FORM)),
            "checksum": self.image.sha256(FORM)?, "checksumType": "sha256", "format": "raw",
        });
        self.patch(json!({"image": image, "userData": {"name": "user"}}))
            .await?;
        self.reaches("provisioned").await?;
        let (_, told) = told::told(&self.console, from, SOON).await?;
        Ok(told)
    }

    async fn delete(&self) -> Result<()> {
        let hosts = self.stage.api::<BareMetalHost>();
        hosts.delete(NAME, &DeleteParams::default()).await?;
        self.stage
            .until("the host is to be gone", SOON, async || {
                Ok(hosts.get_opt(NAME).await?.is_none().then_some(()))
            })
            .await
    }

    async fn lives(&self) -> Result<()> {
        const TABLES: [&str; 3] = ["MBR", "GPT", "second GPT"];
        self.declare().await?;
        self.reaches("available").await?;
        let somebodys = |from: usize| {
            let lines = self.console.from(from);
            lines.iter().any(|line| line.text.contains(BOOTED))
        };
        ensure!(!somebodys(0), "it booted what its disk held");
        // As the image has them, which is not as large as the disk.
        ensure!(self.tables()? == TABLES[..2], "nobody has given it an image yet");

        let told = self.provision().await?;
        ensure!(told.name == NAME, "{told:?}");
        ensure!(told.user_data.iter().eq(USER_DATA.lines()), "{told:?}");
        let disk = self.machine().disk(0).context("a disk")?.to_owned();
        ensure!(self.image.first_difference(&disk)?.is_none(), "another image");
        ensure!(tables(&disk)? == TABLES);
        ensure!(
            self.service.armed(SYSTEM).target.is_none(),
            "the network counts once"
        );

        // Asked by its BMC, its system shuts down by itself; switched on, it boots its own disk again.
        let from = self.console.len();
        self.patch(json!({"online": false})).await?;
        self.console.wait_for(POWERS_OFF, from, SOON).await?;
        self.is_powered(false).await?;
        ensure!(!self.machine().is_on(), "it is off");
        self.patch(json!({"online": true})).await?;
        told::booted(&self.console, from, SOON).await?;
        self.is_powered(true).await?;

        let from = self.console.len();
        self.patch(json!({"image": null, "userData": null})).await?;
        self.reaches("deprovisioning").await?;
        self.reaches("available").await?;
        ensure!(!somebodys(from), "it booted the system that was to go");
        ensure!(self.tables()?.is_empty(), "{:?}", self.tables());

        self.delete().await?;
        ensure!(self.service.power(SYSTEM) == PowerState::Off && !self.machine().is_on());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_uefi_machine_loses_its_system_for_an_image_and_comes_back_by_its_bmc() {
    Rig::new().await.unwrap().lives().await.unwrap();
}
