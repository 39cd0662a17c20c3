//! The real controller binary, inside a lab network.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    cluster::{Cluster, Role},
    lines::Lines,
    netns::Netns,
    paths,
};

/// How a controller is started.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The namespace of its Segments, Servers and Secrets.
    pub namespace: String,
    /// Its roles, and with them its rights.
    pub role: Role,
    /// Directory of ramdisk releases and boot loaders.
    pub boot_dir: PathBuf,
    /// Where its admin server (health, metrics) listens, inside the network.
    pub admin: SocketAddr,
    /// Who may read its metrics, as `--metrics` takes it; the lab reads them where health is.
    pub metrics: &'static str,
    /// Further arguments.
    pub extra: Vec<String>,
    /// Further variables of its environment.
    pub environment: Vec<(String, String)>,
    /// The program, with arguments, that starts it by `exec` with what follows; empty: it is started as it is.
    pub wrapper: Vec<String>,
}

impl Setup {
    /// One process with both roles in `namespace`.
    pub fn new(namespace: &str) -> Result<Setup> {
        Ok(Setup {
            namespace: namespace.to_owned(),
            role: Role::Both,
            boot_dir: paths::boot_dir()?,
            admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
            metrics: "plain",
            extra: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
        })
    }
}

/// A controller that can be killed and started again.
#[derive(Debug)]
pub struct Controller {
    setup: Setup,
    binary: PathBuf,
    kubeconfig: PathBuf,
    net: Netns,
    log: Lines,
    process: Option<Child>,
}

impl Controller {
    /// Prepares a controller with exactly the rights of its role; it does not run. Its log goes to `dir`.
    pub async fn new(cluster: &Cluster, net: &Netns, dir: &Path, setup: Setup) -> Result<Controller> {
        let kubeconfig = cluster.identity(setup.role, &setup.namespace).await?;
        let name = format!("controller-{}.log", setup.role.name());
        Ok(Controller {
            binary: paths::controller()?,
            kubeconfig,
            net: net.clone(),
            log: Lines::to(&dir.join(name)),
            process: None,
            setup,
        })
    }

    /// Starts it; nothing happens if it runs.
    pub fn start(&mut self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        let mut command = match self.setup.wrapper.split_first() {
            None => Command::new(&self.binary),
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.binary);
                command
            }
        };
        // Whatever it leaves in files is found where a test looks for secrets.
        let dir = self.log.path().parent().context("the directory of its log")?;
        command
            .env("TMPDIR", dir)
            .envs(self.setup.environment.iter().map(|(name, value)| (name, value)))
            .args(["--namespace", &self.setup.namespace])
            .args(["--roles", self.setup.role.argument()])
            .args(["--admin-listen", &self.setup.admin.to_string()])
            .args(["--metrics", self.setup.metrics])
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--boot-dir")
            .arg(&self.setup.boot_dir)
            .args(&self.setup.extra)
            .env_remove("KUBECONFIG")
            // One for downloads, as a computer in a company has it: no API server is behind it.
            .env("HTTPS_PROXY", "http://192.0.2.1:3128")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = self.net.spawn(command)?;
        self.log
            .follow(process.stdout.take().context("its standard output")?)?;
        self.log
            .follow(process.stderr.take().context("its standard error")?)?;
        self.process = Some(process);
        Ok(())
    }

    /// Everything that it said, over all its lives.
    pub fn log(&self) -> &Lines {
        &self.log
    }

    /// Where its admin server listens, inside the network.
    pub fn admin(&self) -> SocketAddr {
        self.setup.admin
    }

    /// Its process, for its memory and CPU time.
    pub fn process(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Fails only if it has ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Asks it to end (SIGTERM); true if it did so by itself, with status 0, within `patience`.
    pub async fn stop(&mut self, patience: Duration) -> bool {
        let Some(process) = &mut self.process else {
            return true;
        };
        let pid = i32::try_from(process.id()).ok().map(Pid::from_raw);
        let _ = pid.map(|pid| kill(pid, Signal::SIGTERM));
        let deadline = tokio::time::Instant::now() + patience;
        while tokio::time::Instant::now() < deadline {
            if let Ok(Some(status)) = process.try_wait() {
                self.process = None;
                return status.success();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.kill();
        false
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.kill();
    }
}
