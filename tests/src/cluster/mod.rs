//! A real Kubernetes API server: the local control plane, or the user's own cluster.

mod apply;
mod audit;
mod foreign;
mod identity;
mod local;
mod rules;
mod tenant;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, bail};
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config, ResourceExt,
    api::{ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::Serialize;
use tokio::sync::OnceCell;

use crate::{paths, scratch::Scratch};

pub use audit::Asked;
pub use identity::Role;

/// Which cluster is used.
#[derive(Clone, Debug, clap::Args)]
pub struct Named {
    /// Use this cluster instead of a local one.
    #[arg(long, env = "KUBECONFIG", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    kubeconfig: Option<PathBuf>,
}

impl Named {
    /// The user's own; as for kubectl, an empty name is none.
    pub fn kubeconfig(&self) -> Option<&Path> {
        self.kubeconfig
            .as_deref()
            .filter(|path| !path.as_os_str().is_empty())
    }

    /// Fails if the user's own cannot be used, which nothing has to be built or started for.
    pub fn check(&self) -> Result<()> {
        self.kubeconfig()
            .map_or(Ok(()), |path| read_named(path).map(drop))
    }
}

/// The kubeconfig at `path`, if it is one that the lab can use.
fn read(path: &Path) -> Result<Kubeconfig> {
    let written = Kubeconfig::read_from(path).with_context(|| format!("read {}", path.display()))?;
    foreign::has_no_proxy(&written).with_context(|| format!("use {}", path.display()))?;
    Ok(written)
}

/// The same of a user's own, who may not know what names it: a variable that was set long ago.
fn read_named(path: &Path) -> Result<Kubeconfig> {
    if path.to_string_lossy().contains(':') && !path.exists() {
        bail!(
            "{} is a list of files, which kubectl accepts but the lab does not: name one with --kubeconfig",
            path.display()
        );
    }
    read(path).with_context(|| {
        format!(
            "use the cluster of {}, named by --kubeconfig or the variable KUBECONFIG; without either the lab makes one of its own",
            path.display()
        )
    })
}

/// An API server with Muster's kinds and the rules on them installed.
#[derive(Debug)]
pub struct Cluster {
    config: Config,
    kubeconfig: PathBuf,
    server: String,
    inside_port: u16,
    namespaces: AtomicUsize,
    scratch: Scratch,
    process: Option<local::ControlPlane>,
}

static SHARED: OnceCell<Cluster> = OnceCell::const_new();

impl Cluster {
    /// This process's one local control plane, started at first use; it dies with the process.
    pub async fn shared() -> Result<&'static Cluster> {
        SHARED.get_or_try_init(Cluster::start).await
    }

    /// The same, and it tells who asked for what: [`Cluster::asked`] and [`Cluster::written`]. Every test of a process that needs this asks here first.
    pub async fn audited() -> Result<&'static Cluster> {
        let start = async || Cluster::start_with(true).await;
        SHARED.get_or_try_init(start).await
    }

    /// Starts a control plane of its own with Muster's kinds and rules.
    pub async fn start() -> Result<Cluster> {
        Cluster::start_with(false).await
    }

    /// The same, and it tells who asked for what: [`Cluster::asked`] and [`Cluster::written`].
    pub async fn start_audited() -> Result<Cluster> {
        Cluster::start_with(true).await
    }

    async fn start_with(audited: bool) -> Result<Cluster> {
        let cluster = Cluster::start_empty(audited).await?;
        cluster.install().await?;
        Ok(cluster)
    }

    /// Starts a control plane of its own with the kinds in the directory `kinds`, which are another's.
    pub async fn start_with_kinds(kinds: &Path) -> Result<Cluster> {
        let cluster = Cluster::start_empty(false).await?;
        cluster.install_kinds(kinds).await?;
        Ok(cluster)
    }

    async fn start_empty(audited: bool) -> Result<Cluster> {
        let scratch = Scratch::new()?;
        let process = local::ControlPlane::start(&scratch, audited).await?;
        let kubeconfig = process.kubeconfig();
        Cluster::with(&kubeconfig, read(&kubeconfig)?, scratch, Some(process)).await
    }

    /// Uses the cluster of the kubeconfig at `path`, with its current context, unless a Muster acts there already by the Lease in
    /// `namespace`, or a baremetal-operator anywhere. What the lab needs there is for [`Cluster::install`].
    pub async fn attach(path: &Path, namespace: &str) -> Result<Cluster> {
        let cluster = Cluster::reach(path).await?;
        tenant::is_free(&cluster.client()?, namespace).await?;
        Ok(cluster)
    }

    /// The same, whoever acts there.
    pub async fn reach(path: &Path) -> Result<Cluster> {
        Cluster::with(path, read_named(path)?, Scratch::new()?, None).await
    }

    async fn with(
        path: &Path,
        written: Kubeconfig,
        scratch: Scratch,
        process: Option<local::ControlPlane>,
    ) -> Result<Cluster> {
        let mut config = Config::from_custom_kubeconfig(written, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("use {}", path.display()))?;
        // kube takes a proxy for downloads for one that leads there.
        config.proxy_url = None;
        let (host, port) = foreign::address(&config.cluster_url)?;
        Ok(Cluster {
            config,
            kubeconfig: path.to_owned(),
            server: format!("{host}:{port}"),
            inside_port: port,
            namespaces: AtomicUsize::new(0),
            scratch,
            process,
        })
    }

    /// Installs Muster's kinds and the rules on hosts.
    pub async fn install(&self) -> Result<()> {
        self.install_kinds(&paths::deploy().join("crds")).await?;
        self.install_rules().await
    }

    /// Installs the kinds in the directory `dir`, or replaces those that there are.
    pub async fn install_kinds(&self, dir: &Path) -> Result<()> {
        let applied = apply::directory(&self.client()?, dir, None).await;
        applied.with_context(|| format!("install the kinds in {}", dir.display()))
    }

    /// Installs the rules on hosts, as [`Cluster`] does when it is made. They bind some time later: [`Cluster::rules_bind`].
    pub async fn install_rules(&self) -> Result<()> {
        rules::install(&self.client()?).await
    }

    /// Waits until the API server refuses what the rules refuse; `namespace` is any that there is.
    pub async fn rules_bind(&self, namespace: &str) -> Result<()> {
        rules::wait(&self.client()?, namespace, true).await
    }

    /// Switches the rules off as `docs/validation.md` says, by the removal of their bindings, and waits until none binds.
    pub async fn lift_rules(&self, namespace: &str) -> Result<()> {
        rules::lift(&self.client()?, namespace).await
    }

    /// A new client with all rights. Its connections live in the runtime of the caller, which for a test is its own:
    /// a client that tests shared would end with the first of them.
    pub fn client(&self) -> Result<Client> {
        Client::try_from(self.config.clone()).context("make a client")
    }

    /// The kubeconfig with all rights, for use outside the lab's networks.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// `host:port` of the API server, as reached from outside the lab's networks.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The port on 127.0.0.1 at which kubeconfigs made by [`Cluster::identity`] expect the server inside a lab network.
    pub fn inside_port(&self) -> u16 {
        self.inside_port
    }

    /// The process of the lab's own API server and etcd, for its CPU time.
    pub fn process(&self) -> Option<u32> {
        self.process.as_ref().map(local::ControlPlane::process)
    }

    /// Applies every document of `text` (YAML); namespaced objects go into `namespace` if they name none.
    pub async fn apply(&self, text: &str, namespace: &str) -> Result<()> {
        apply::documents(&self.client()?, text, Some(namespace)).await
    }

    /// Every request but watches that the API server has answered, in the order of its answers.
    pub fn asked(&self) -> Result<Vec<Asked>> {
        let log = self.process.as_ref().and_then(local::ControlPlane::audit);
        audit::read(log.context("this control plane keeps no list of requests")?)
    }

    /// Those of them that ask for a change.
    pub fn written(&self) -> Result<Vec<Asked>> {
        let mut asked = self.asked()?;
        asked.retain(Asked::is_write);
        Ok(asked)
    }

    /// Makes a namespace that no other test uses; its name begins with `purpose`.
    pub async fn namespace(&self, purpose: &str) -> Result<String> {
        let number = self.namespaces.fetch_add(1, Ordering::Relaxed);
        let name = format!("{purpose}-{}-{number}", std::process::id());
        let object = Namespace {
            metadata: ObjectMeta {
                name: Some(name),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let made = Api::all(self.client()?)
            .create(&PostParams::default(), &object)
            .await
            .context("make a namespace")?;
        Ok(made.name_any())
    }

    /// Deletes `object`, which is in `namespace`; nothing if it is gone.
    pub async fn delete(&self, object: &impl Serialize, namespace: &str) -> Result<()> {
        let object = serde_json::to_value(object).context("write an object")?;
        apply::delete(&self.client()?, object, namespace).await
    }

    /// Makes the namespace `name` unless it is there.
    pub async fn ensure_namespace(&self, name: &str) -> Result<()> {
        let text = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}");
        self.apply(&text, name).await
    }

    /// A kubeconfig, for use inside a lab network, of a user who has exactly the rights that Muster's manifests give `role`.
    pub async fn identity(&self, role: Role, namespace: &str) -> Result<PathBuf> {
        let written = read(&self.kubeconfig)?;
        let entry = foreign::inside(&written, self.inside_port)?;
        let token = identity::token(&self.client()?, role, namespace).await?;
        let path = self
            .scratch
            .path()
            .join(format!("{namespace}-{}.kubeconfig", role.name()));
        identity::write(&path, &entry, &token)?;
        Ok(path)
    }

    /// Takes away what [`Cluster::identity`] made in the cluster.
    pub async fn forget_identity(&self, role: Role, namespace: &str) -> Result<()> {
        identity::forget(&self.client()?, role, namespace).await
    }
}
