//! Another DHCP and TFTP server on a bridge: one that is not ours to change.

use std::{
    fs,
    net::Ipv4Addr,
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
    /// A namespace takes its processes along when nobody holds it.
    _net: Netns,
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
        let mut all = vec![format!("--interface={link}"), format!("--dhcp-range={range}")];
        all.extend_from_slice(arguments);
        Dnsmasq::spawn(net, dir, &all, "IP range").await
    }

    /// A relay agent: passes what it hears on the link that has the address `local` on to `server`, and back.
    pub async fn relay(net: &Netns, local: Ipv4Addr, server: Ipv4Addr, dir: &Path) -> Result<Dnsmasq> {
        let arguments = [format!("--dhcp-relay={local},{server}")];
        Dnsmasq::spawn(net, dir, &arguments, "DHCP relay").await
    }

    /// `sign` is in the line by which it says that it serves.
    async fn spawn(net: &Netns, dir: &Path, arguments: &[String], sign: &str) -> Result<Dnsmasq> {
        let mut command = Command::new("/usr/sbin/dnsmasq");
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
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let mut process = net.spawn(command).context("Debian's package dnsmasq-base")?;
        let log = Lines::to(&dir.join("dnsmasq.log"));
        log.follow(process.stderr.take().context("its standard error")?)?;
        let dnsmasq = Dnsmasq {
            process,
            log,
            _net: net.clone(),
        };
        dnsmasq.log.wait_for(sign, 0, START).await?;
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
