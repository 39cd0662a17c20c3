//! baremetal-operator itself, with its fixture provisioner, which asks no hardware. `cargo xtask bench hosts` and
//! `cargo xtask test --full` build it.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{paths, program::Program, spawner::Spawner};

/// Its webhooks would want a certificate.
const ARGUMENTS: [&str; 7] = [
    "-test-mode",
    "-webhook-port",
    "0",
    "-metrics-addr",
    "0",
    "-health-addr",
    "0",
];

/// The version that is built: what the Go module in `baremetal-operator/` asks for.
pub fn version() -> Option<&'static str> {
    let module = include_str!("../baremetal-operator/go.mod");
    let mut words = module.lines().map(str::split_whitespace);
    words.find_map(|mut words| match words.next() {
        Some("github.com/metal3-io/baremetal-operator") => words.next(),
        _ => None,
    })
}

/// A running one; it ends with this.
#[derive(Debug)]
pub struct Operator {
    program: Program,
    _spawner: Spawner,
}

impl Operator {
    /// Starts it for the hosts in `namespace`, with further `arguments`. Its log goes to `dir`.
    pub fn start(kubeconfig: &Path, namespace: &str, dir: &Path, arguments: &[&str]) -> Result<Operator> {
        let mut command = Command::new(paths::metal3()?);
        command
            .args(ARGUMENTS)
            .args(["-namespace", namespace, "-kubeconfig"])
            .arg(kubeconfig)
            .args(arguments)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let spawner = Spawner::new()?;
        let process = spawner.spawn(command).context("start baremetal-operator")?;
        Ok(Operator {
            program: Program::new("baremetal-operator", process, &dir.join("baremetal-operator.log"))?,
            _spawner: spawner,
        })
    }

    /// Waits until it looks at hosts.
    pub async fn works(&self, within: Duration) -> Result<()> {
        let works = |line: &str| {
            line.contains("Starting workers") && line.contains(r#""controller":"baremetalhost""#)
        };
        let begun = self
            .program
            .said()
            .wait_until("its beginning", 0, within, works)
            .await;
        begun.map(drop)
    }

    /// The number of its process, for its memory and CPU time.
    pub fn process(&self) -> u32 {
        self.program.id()
    }

    /// Fails if it has ended, with what it said last.
    pub fn lives(&mut self) -> Result<()> {
        self.program.lives()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_version_is_that_of_the_module() {
        let number = version().and_then(|version| version.strip_prefix("v0."));
        let parts: Vec<&str> = number.unwrap().split('.').collect();
        assert!(parts.iter().all(|part| part.parse::<u32>().is_ok()), "{parts:?}");
    }
}
