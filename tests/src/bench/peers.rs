//! What others serve the same files with: dnsmasq and nginx.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use muster_ramdisk::release::Release;

use crate::{bridges::Bridge, dnsmasq::Dnsmasq, lines::Lines, netns::Netns, paths, scratch::Scratch};

/// Where Debian's package ipxe puts its boot programs.
const IPXE: &str = "/usr/lib/ipxe";
/// nginx serves within this time.
const START: Duration = Duration::from_secs(30);
/// Between two looks whether it does.
const PAUSE: Duration = Duration::from_millis(20);

/// Both, in a network of their own. Ended when dropped: the servers first, their files last.
pub(super) struct Peers {
    pub(super) net: Netns,
    dnsmasq: Dnsmasq,
    nginx: Nginx,
    _scratch: Scratch,
}

impl Peers {
    /// Serves `release` on `bridge`, with leases from `range` (`first,last`).
    pub(super) async fn start(bridge: Bridge, range: &str, release: &Release) -> Result<Peers> {
        let net = Netns::new()?;
        net.bridge(bridge.name, Some(bridge.address))?;
        let (address, _) = bridge.address.split_once('/').context("a bridge's address")?;
        let server: SocketAddr = format!("{address}:8080").parse().context("a bridge's address")?;
        let scratch = Scratch::new()?;
        let arguments = [
            "--enable-tftp",
            &format!("--tftp-root={IPXE}"),
            "--dhcp-lease-max=10000",
            "--dhcp-userclass=set:ipxe,iPXE",
            "--dhcp-boot=tag:!ipxe,undionly.kpxe",
            &format!("--dhcp-boot=tag:ipxe,http://{server}/boot.ipxe"),
        ]
        .map(str::to_owned);
        let dnsmasq = Dnsmasq::terse(&net, bridge.name, range, scratch.path(), &arguments).await?;
        let nginx = Nginx::start(&net, server, &scratch, release).await?;
        Ok(Peers {
            net,
            dnsmasq,
            nginx,
            _scratch: scratch,
        })
    }

    /// Their processes; nginx's workers are children of the last.
    pub(super) fn processes(&self) -> [u32; 2] {
        [self.dnsmasq.process(), self.nginx.process.id()]
    }
}

struct Nginx {
    process: Child,
}

impl Nginx {
    async fn start(net: &Netns, listen: SocketAddr, scratch: &Scratch, release: &Release) -> Result<Nginx> {
        let site = scratch.sub("site")?;
        for (name, file) in [("vmlinuz", &release.kernel), ("initramfs", &release.initramfs)] {
            symlink(file, site.join(name)).with_context(|| format!("link {}", file.display()))?;
        }
        let script = format!(
            "#!ipxe\nkernel http://{listen}/vmlinuz initrd=initramfs quiet\ninitrd --name initramfs http://{listen}/initramfs\nboot\n"
        );
        fs::write(site.join("boot.ipxe"), script).context("write a script")?;
        let dir = scratch.sub("nginx")?;
        let file = dir.join("nginx.conf");
        fs::write(
            &file,
            config(listen, &dir.to_string_lossy(), &site.to_string_lossy()),
        )
        .with_context(|| format!("write {}", file.display()))?;
        // In a PID namespace of their own the workers end with their master, however that ends.
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child=KILL"])
            .arg(paths::nginx()?)
            .arg("-p")
            .arg(&dir)
            .arg("-c")
            .arg(&file)
            .args(["-e", "stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = net.spawn(command).context("Debian's package util-linux")?;
        let log = Lines::to(&dir.join("said.log"));
        log.follow(process.stderr.take().context("its standard error")?)?;
        let mut nginx = Nginx { process };
        nginx.ready(net, listen, &log).await?;
        Ok(nginx)
    }

    async fn ready(&mut self, net: &Netns, listen: SocketAddr, log: &Lines) -> Result<()> {
        let deadline = tokio::time::Instant::now() + START;
        while net.run(move || std::net::TcpStream::connect(listen)).is_err() {
            let ended = self.process.try_wait().context("check on nginx")?;
            if ended.is_some() || tokio::time::Instant::now() > deadline {
                bail!("nginx does not serve: {}", log.last(5).join(" / "));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Debian's nginx.conf as far as it matters here, with the files of its own below `dir`.
fn config(listen: SocketAddr, dir: &str, site: &str) -> String {
    format!(
        "daemon off;
user root;
worker_processes auto;
pid {dir}/pid;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    default_type application/octet-stream;
    access_log {dir}/access.log;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen {listen};
        root {site};
    }}
}}
"
    )
}
