//! OpenStack's sushy-emulator: a Redfish service that is not ours. `cargo xtask test` installs it.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{lines::Lines, paths, scratch::Scratch, spawner::Spawner};

/// Python starts slowly where others build.
const START: Duration = Duration::from_secs(120);

/// What the web server says once it listens.
const SIGN: &str = "Running on http";

/// User and password of every one.
pub const USER: (&str, &str) = ("admin", "secret");

/// A running emulator with systems that exist in its memory only ("fake driver"). Their power changes some seconds after it is
/// asked for.
#[derive(Debug)]
pub struct Sushy {
    process: Child,
    log: Lines,
    address: String,
    scratch: Scratch,
    _spawner: Spawner,
}

/// A system of it.
#[derive(Clone, Debug)]
pub struct SushySystem {
    /// Its name in paths.
    pub uuid: String,
    /// Another name for it, from which it redirects.
    pub name: String,
    /// Its NIC's address.
    pub mac: String,
}

impl Sushy {
    /// Starts one on a free port of the loopback. With `tls` (certificate chain and key, PEM) it speaks nothing else.
    pub async fn start(systems: &[SushySystem], tls: Option<(&str, &str)>) -> Result<Sushy> {
        let scratch = Scratch::new()?;
        let dir = scratch.path();
        let python = paths::sushy()?.with_file_name("python");
        let users = dir.join("users");
        fs::write(&users, htpasswd(&python)?).context("write the emulator's users")?;
        let config = dir.join("config.py");
        fs::write(&config, settings(dir, &users, systems, tls)?).context("write the emulator's settings")?;
        let mut command = Command::new(paths::sushy()?);
        command
            .arg("--config")
            .arg(&config)
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let spawner = Spawner::new()?;
        let mut process = spawner.spawn(command).context("start sushy-emulator")?;
        let log = Lines::to(&dir.join("sushy.log"));
        log.follow(process.stderr.take().context("its standard error")?)?;
        let mut sushy = Sushy {
            process,
            log,
            address: String::new(),
            scratch,
            _spawner: spawner,
        };
        let (_, line) = sushy.log.wait_for(SIGN, 0, START).await?;
        let (_, address) = line.text.rsplit_once("://").context("an address")?;
        address.trim().clone_into(&mut sushy.address);
        Ok(sushy)
    }

    /// `HOST:PORT` where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it says: every request, and what that changed.
    pub fn log(&self) -> &Lines {
        &self.log
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }
}

impl Drop for Sushy {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The only user, with the password as the emulator wants it hashed.
fn htpasswd(python: &Path) -> Result<String> {
    let (user, password) = USER;
    let script = "import bcrypt, sys; print(bcrypt.hashpw(sys.argv[1].encode(), bcrypt.gensalt(4)).decode())";
    let output = Command::new(python).args(["-c", script, password]).output();
    let output = output.context("run the emulator's Python")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let hash = String::from_utf8(output.stdout).context("a hash")?;
    Ok(format!("{user}:{}\n", hash.trim()))
}

/// Its settings are a Python program; strings and lists of JSON are the same in it.
fn settings(dir: &Path, users: &Path, systems: &[SushySystem], tls: Option<(&str, &str)>) -> Result<String> {
    let mut lines = vec![
        // The settings are a program: with this it tells what it was asked to do, too.
        "import logging; logging.basicConfig(level='INFO')".to_owned(),
        "SUSHY_EMULATOR_LISTEN_IP = '127.0.0.1'".to_owned(),
        "SUSHY_EMULATOR_LISTEN_PORT = 0".to_owned(),
        "SUSHY_EMULATOR_FAKE_DRIVER = True".to_owned(),
        format!("SUSHY_EMULATOR_STATE_DIR = {}", json!(dir)),
        format!("SUSHY_EMULATOR_AUTH_FILE = {}", json!(users)),
    ];
    let systems: Vec<String> = systems.iter().map(fake).collect();
    lines.push(format!("SUSHY_EMULATOR_FAKE_SYSTEMS = [{}]", systems.join(", ")));
    if let Some((certificate, key)) = tls {
        for (name, setting, text) in [("cert.pem", "CERT", certificate), ("key.pem", "KEY", key)] {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            lines.push(format!("SUSHY_EMULATOR_SSL_{setting} = {}", json!(path)));
        }
    }
    Ok(lines.join("\n"))
}

fn fake(system: &SushySystem) -> String {
    let SushySystem { uuid, name, mac } = system;
    let nic = json!({"mac": mac, "ip": "192.0.2.1"});
    format!(
        "{{'uuid': {}, 'name': {}, 'power_state': 'Off', 'external_notifier': False, 'nics': [{nic}]}}",
        json!(uuid),
        json!(name)
    )
}
