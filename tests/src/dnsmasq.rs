//! Another DHCP and TFTP server on a bridge: one that is not ours to change.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{lines::Lines, netns::Netns};

const START: Duration = Duration::from_secs(30);

/// A running dnsmasq.
#[derive(Debug)]
pub struct Dnsmasq {
    process: Child,
    log: Lines,
}

impl Dnsmasq {
    /// Serves the link `link` of `net`, whose address is inside the range `range` (`first,last`), with further `arguments`;
    /// its files lie in `dir`. Its log has every option of every message.
    pub async fn start(
        net: &Netns,
        link: &str,
        range: &str,
        dir: &Path,
        arguments: &[String],
    ) -> Result<Dnsmasq> {
        let arguments = [&["--log-dhcp".to_owned()], arguments].concat();
        Dnsmasq::terse(net, link, range, dir, &arguments).await
    }

    /// The same with the log that it writes by itself.
    pub async fn terse(
        net: &Netns,
        link: &str,
        range: &str,
        dir: &Path,
        arguments: &[String],
    ) -> Result<Dnsmasq> {
        let mut command = Command::new("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--leasefile-ro",
                "--no-ping",
            ])
            .args(["--port=0", "--bind-interfaces", "--log-facility=-", "--pid-file="])
            // With another user the kernel would forget that it is to die with its parent.
            .args(["--user=root", "--group=root"])
            .arg(format!("--interface={link}"))
            .arg(format!("--dhcp-range={range}"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let mut process = net.spawn(command).context("Debian's package dnsmasq-base")?;
        let log = Lines::to(&dir.join("dnsmasq.log"));
        log.follow(process.stderr.take().context("its standard error")?)?;
        let dnsmasq = Dnsmasq { process, log };
        dnsmasq.log.wait_for("IP range", 0, START).await?;
        Ok(dnsmasq)
    }

    /// Its process, for its CPU time.
    pub fn process(&self) -> u32 {
        self.process.id()
    }

    /// What it says: every DHCP message and every file.
    pub fn log(&self) -> &Lines {
        &self.log
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
