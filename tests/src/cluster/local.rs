//! The local control plane as a child process.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{lines::Lines, paths, scratch::Scratch, spawner::Spawner};

/// It is ready within 3 to 5 s on a quiet machine.
const START: Duration = Duration::from_secs(120);
/// It stops within 3 s; its files are thrown away, so nothing is lost by a kill.
const STOP: Duration = Duration::from_secs(5);

/// etcd and kube-apiserver in one process, on a free port of loopback.
#[derive(Debug)]
pub(super) struct ControlPlane {
    process: Child,
    dir: PathBuf,
    audit: Option<PathBuf>,
    _spawner: Spawner,
}

/// Who asked for what, without what was written or read; watches are not requests of a host.
const AUDIT_POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Metadata, verbs: [get, list, create, update, patch, delete, deletecollection]}
  - {level: None}
";

impl ControlPlane {
    /// With `audited`, it keeps a list of all requests.
    pub(super) async fn start(scratch: &Scratch, audited: bool) -> Result<ControlPlane> {
        let binary = paths::controlplane()?;
        let dir = scratch.sub("cp")?;
        let spawner = Spawner::new()?;
        let mut command = Command::new(&binary);
        command.arg("--data-dir").arg(&dir);
        let audit = audited.then(|| dir.join("audit.log"));
        if let Some(log) = &audit {
            let policy = dir.join("audit.yaml");
            std::fs::write(&policy, AUDIT_POLICY).with_context(|| format!("write {}", policy.display()))?;
            command
                .arg("--")
                .arg(format!("--audit-policy-file={}", policy.display()))
                .arg(format!("--audit-log-path={}", log.display()));
        }
        command
            .env("TMPDIR", scratch.sub("t")?) // etcd's sockets
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = spawner
            .spawn(command)
            .with_context(|| format!("start {}", binary.display()))?;
        let said = Lines::to(&dir.join("stdout.log"));
        let log = Lines::to(&dir.join("log"));
        said.follow(process.stdout.take().context("its standard output")?)?;
        log.follow(process.stderr.take().context("its standard error")?)?;
        let mut control_plane = ControlPlane {
            process,
            dir,
            audit,
            _spawner: spawner,
        };
        control_plane.ready(&said, &log).await?;
        Ok(control_plane)
    }

    async fn ready(&mut self, said: &Lines, log: &Lines) -> Result<()> {
        let begun = Instant::now();
        loop {
            let pause = Duration::from_millis(250);
            if said.wait_for("READY ", 0, pause).await.is_ok() {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait().context("check on the control plane")? {
                bail!(
                    "the control plane ended with {status}:\n  {}",
                    log.last(15).join("\n  ")
                );
            }
            if begun.elapsed() > START {
                bail!(
                    "the control plane was not ready within {START:?}:\n  {}",
                    log.last(15).join("\n  ")
                );
            }
        }
    }

    /// The list of requests, if it keeps one.
    pub(super) fn audit(&self) -> Option<&Path> {
        self.audit.as_deref()
    }

    pub(super) fn process(&self) -> u32 {
        self.process.id()
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id()).ok().map(Pid::from_raw);
        let asked = pid.is_some_and(|pid| kill(pid, Signal::SIGTERM).is_ok());
        let deadline = Instant::now() + STOP;
        while asked && Instant::now() < deadline {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Ends for sure; there is nobody left to tell if not.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
