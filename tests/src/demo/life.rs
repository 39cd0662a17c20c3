//! The second half: a server without a BMC gets an operating system on its own disk, runs it, and is released again.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{Stream, StreamExt, stream::select};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use muster_proto::kinds::{BareMetalHost, IN_BAND_ANNOTATION, SERVER_ANNOTATION, Server};
use serde_json::{Value, json};

use super::{HOSTS, NAMESPACE, step, view::View};
use crate::{
    machine::Machine,
    netns::Netns,
    os_image::{Flavour, Form, Image, gpt, os, server::ImageServer, told},
};

/// Each part of the life must be over by then.
const DEADLINE: Duration = Duration::from_secs(180);
/// Where the image is served: in the network of the server.
const IMAGES: &str = "10.77.0.1:0";
/// What the host is to show on its way.
const STATES: [&str; 7] = [
    "registering",
    "inspecting",
    "preparing",
    "available",
    "provisioning",
    "provisioned",
    "deprovisioning",
];
/// The Secret with the user data.
const SECRET: &str = "demo-user-data";
const USER_DATA: &str = "#cloud-config\nhostname: mustered\nruncmd: [\"echo at your service\"]\n";

/// One of the two objects that speak of the server.
enum Change {
    Host(Box<BareMetalHost>),
    Server(Box<Server>),
}

/// A host and the machine behind it.
pub(super) struct Life<'a> {
    client: Client,
    machine: &'a mut Machine,
    name: String,
    view: View,
    changes: std::pin::Pin<Box<dyn Stream<Item = Change> + Send>>,
    begun: Instant,
    /// All states that the host has shown.
    states: BTreeSet<String>,
}

impl<'a> Life<'a> {
    /// For `host`, which was discovered as `machine`.
    pub(super) fn new(client: Client, machine: &'a mut Machine, host: &BareMetalHost) -> Result<Life<'a>> {
        let server = host.annotations().get(SERVER_ANNOTATION);
        let server = server.context("the host does not name its Server")?;
        // An annotation may hold `namespace/name`.
        let server = server.rsplit('/').next().unwrap_or(server);
        let name = host.name_any();
        let changes = select(
            changes(Api::namespaced(client.clone(), HOSTS), &name, Change::Host),
            changes(Api::namespaced(client.clone(), NAMESPACE), server, Change::Server),
        );
        Ok(Life {
            client,
            machine,
            name,
            view: View::default(),
            changes: Box::pin(changes),
            begun: Instant::now(),
            states: BTreeSet::new(),
        })
    }

    /// The whole life; an error says which step was not taken.
    pub(super) async fn run(&mut self, net: &Netns) -> Result<()> {
        let image = Image::find(Flavour::Cloud)?;
        let listen: SocketAddr = IMAGES.parse().context("where images are served")?;
        let images = ImageServer::inside(net, listen, image.dir())?;
        // From here on nothing of it is missed.
        self.until("seen", |view| !view.state.is_empty()).await?;
        self.opt_in().await?;
        let from = self.machine.console().len();
        self.provision(&image, &images).await?;
        self.runs(from).await?;
        self.release().await?;
        self.has_shown_all()
    }

    /// Every step was there to be seen.
    fn has_shown_all(&self) -> Result<()> {
        let missing: Vec<_> = STATES
            .iter()
            .filter(|state| !self.states.contains(**state))
            .collect();
        ensure!(missing.is_empty(), "it never showed: {missing:?}");
        Ok(())
    }

    /// The key of the session, from the machine's console, says which ramdisk may be used.
    async fn opt_in(&mut self) -> Result<()> {
        let enrolled = self
            .machine
            .console()
            .wait_for("step=enrolled", 0, DEADLINE)
            .await?;
        let key = step::field(&enrolled.1.text, "key").context("the session's key on the console")?;
        say!(
            "The user allows the server to be managed through its ramdisk, whose key is shown on its console:"
        );
        say!("  kubectl annotate bmh {} {IN_BAND_ANNOTATION}={key}", self.name);
        self.patch(json!({"metadata": {"annotations": {IN_BAND_ANNOTATION: key}}}))
            .await?;
        self.until("available", |view| view.state == "available").await
    }

    async fn provision(&mut self, image: &Image, images: &ImageServer) -> Result<()> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET},
            "stringData": {"userData": USER_DATA},
        });
        Api::<Secret>::namespaced(self.client.clone(), HOSTS)
            .patch(SECRET, &PatchParams::apply("demo").force(), &Patch::Apply(secret))
            .await
            .context("make the Secret with user data")?;
        let url = images.url(&image.name(Form::Zstd));
        say!("\nThe user sets an image, {url}, and user data:");
        let image = json!({
            "url": url, "checksum": image.sha256(Form::Zstd)?, "checksumType": "sha256", "format": "raw",
        });
        self.patch(json!({"spec": {"image": image, "userData": {"name": SECRET}}}))
            .await?;
        self.until("provisioned", |view| view.state == "provisioned")
            .await
    }

    /// Its own operating system says what it was told.
    async fn runs(&self, from: usize) -> Result<()> {
        let console = self.machine.console();
        let (last, told) = told::told(console, from, DEADLINE).await?;
        let (first, booted) = told::booted(console, from, DEADLINE).await?;
        self.tell(
            booted.at,
            "its own operating system runs, from its own disk; its console:",
        );
        let lines = console.from(first);
        let lines = lines.iter().take(last + 1 - first);
        for line in lines {
            // A boot loader may leave the cursor in the line of the first one.
            let begin = line.text.find(os::BOOTED).unwrap_or(0);
            let text = line.text.get(begin..).unwrap_or_default();
            if text.starts_with("OS") {
                say!("            {}", muster_proto::text::clean(text.as_bytes()));
            }
        }
        ensure!(told.name == self.name, "it calls itself {}", told.name);
        ensure!(
            told.user_data.iter().eq(USER_DATA.lines()),
            "between {:?} and {:?} it shows user data other than what it was given",
            os::USER_DATA_BEGINS,
            os::USER_DATA_ENDS
        );
        Ok(())
    }

    async fn release(&mut self) -> Result<()> {
        say!("\nThe user removes the image again:");
        self.patch(json!({"spec": {"image": null, "userData": null}}))
            .await?;
        self.until("waiting for a person", |view| view.by_hand).await?;
        say!("            (somebody power-cycles the server)");
        self.machine.power_cycle()?;
        self.until("available", |view| view.state == "available").await?;
        for number in 0..self.machine.spec().disks.len() {
            let disk = self.machine.disk(number).context("the server's disk")?;
            let tables = gpt::tables(disk).with_context(|| format!("look at {}", disk.display()))?;
            ensure!(
                tables.is_empty(),
                "disk {number} still has: {}",
                tables.join(", ")
            );
        }
        say!("            its disks are clean");
        Api::<Secret>::namespaced(self.client.clone(), HOSTS)
            .delete(SECRET, &DeleteParams::default())
            .await
            .context("remove the Secret with user data")?;
        Ok(())
    }

    async fn patch(&self, patch: Value) -> Result<()> {
        Api::<BareMetalHost>::namespaced(self.client.clone(), HOSTS)
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("patch the host {}", self.name))?;
        Ok(())
    }

    /// Shows the host's line as often as it changes, until `test` holds for what it shows.
    async fn until(&mut self, what: &str, test: impl Fn(&View) -> bool) -> Result<()> {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !test(&self.view) {
            let change = match tokio::time::timeout_at(deadline, self.changes.next()).await {
                Ok(Some(change)) => change,
                Ok(None) => bail!("nothing more is heard of the host {}", self.name),
                Err(_) => bail!(
                    "the host {} is not {what} within {DEADLINE:?}; it shows: {}",
                    self.name,
                    self.view.line()
                ),
            };
            let before = self.view.line();
            match change {
                Change::Host(host) => self.view.host(&host),
                Change::Server(server) => self.view.server(&server),
            }
            let line = self.view.line();
            self.states.insert(self.view.state.clone());
            if line != before {
                self.tell(Instant::now(), &line);
            }
        }
        Ok(())
    }

    fn tell(&self, at: Instant, what: &str) {
        let since = at.saturating_duration_since(self.begun).as_secs_f64();
        say!("{since:>6.1} s  {}  {what}", self.name);
    }
}

/// The changes of the object called `name`.
fn changes<K>(
    api: Api<K>,
    name: &str,
    wrap: fn(Box<K>) -> Change,
) -> impl Stream<Item = Change> + Send + use<K>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    let one = watcher::Config::default().fields(&format!("metadata.name={name}"));
    watcher(api, one)
        .default_backoff()
        .applied_objects()
        // The watch begins anew by itself.
        .filter_map(move |change| std::future::ready(change.ok().map(|object| wrap(Box::new(object)))))
}
