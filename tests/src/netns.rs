//! Networks that nobody else sees: an unnamed network namespace with bridges, taps and cables.

use std::{
    fs,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

use crate::spawner::Spawner;

/// A network namespace that exists as long as somebody holds this value or a socket in it. It has no name, so there is nothing
/// to clean up: when the last thread and socket are gone, so is every link in it.
#[derive(Clone, Debug)]
pub struct Netns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    spawner: Spawner,
    taps: AtomicUsize,
}

impl Netns {
    /// Makes one, with loopback up.
    pub fn new() -> Result<Netns> {
        let spawner = Spawner::after(|| {
            unshare(CloneFlags::CLONE_NEWNET).context(
                "make a network namespace: the lab needs CAP_SYS_ADMIN and CAP_NET_ADMIN; run it as root, \
                 or in a container with both",
            )
        })?;
        let net = Netns {
            inner: Arc::new(Inner {
                spawner,
                taps: AtomicUsize::new(0),
            }),
        };
        net.ip("link set lo up")?;
        Ok(net)
    }

    /// Runs `job` inside and waits for it. Sockets made there stay inside for good.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.inner.spawner.run(job)
    }

    /// The thread that lives inside; the kernel takes it for the namespace where it takes a process's id.
    pub fn thread(&self) -> nix::unistd::Pid {
        self.inner.spawner.thread()
    }

    /// Starts `command` inside; it dies with the namespace's last owner.
    pub fn spawn(&self, command: Command) -> Result<Child> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.inner
            .spawner
            .spawn(command)
            .with_context(|| format!("start {program}"))
    }

    /// Starts a thread inside that runs `job`. The namespace lives at least as long.
    pub fn start(&self, name: &str, job: impl FnOnce() + Send + 'static) -> Result<()> {
        let name = name.to_owned();
        // A thread is born into the namespaces of the one that makes it (clone(2)).
        self.run(move || thread::Builder::new().name(name).spawn(job))
            .map(drop)
            .context("start a thread")
    }

    /// Runs `ip` inside with these blank-separated arguments.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(arguments.split_whitespace());
        let output = self
            .run(move || command.output())
            .with_context(|| format!("run `ip {arguments}` (Debian's package iproute2)"))?;
        if !output.status.success() {
            bail!(
                "`ip {arguments}` failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets a kernel parameter of this namespace, such as `ipv6/conf/br0/accept_dad`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        let content = value.to_owned();
        let shown = path.clone();
        // Below /proc/sys/net the kernel shows the namespace of the thread that opens the file.
        self.run(move || fs::write(path, content))
            .with_context(|| format!("write {shown}"))
    }

    /// Makes a bridge that forwards at once, with `address` (such as `10.77.0.1/24`) if given.
    pub fn bridge(&self, name: &str, address: Option<&str>) -> Result<()> {
        self.ip(&format!(
            "link add {name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
        ))?;
        self.without_dad(name)?;
        if let Some(address) = address {
            self.ip(&format!("address add {address} dev {name}"))?;
        }
        self.ip(&format!("link set {name} up"))?;
        Ok(())
    }

    /// Makes a tap for one guest NIC on `bridge` and returns its name.
    pub fn tap(&self, bridge: &str) -> Result<String> {
        let name = format!("tap{}", self.inner.taps.fetch_add(1, Ordering::Relaxed));
        self.ip(&format!("tuntap add dev {name} mode tap vnet_hdr"))?;
        self.join(&name, bridge)?;
        Ok(name)
    }

    /// Puts the link `name` on `bridge` and switches it on.
    pub fn join(&self, name: &str, bridge: &str) -> Result<()> {
        self.ip(&format!("link set {name} master {bridge} up"))?;
        Ok(())
    }

    /// Removes the link `name`.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.ip(&format!("link delete {name}"))?;
        Ok(())
    }

    /// Lays a cable from `name` here to `far` in `other`; both ends are on, neither has an address.
    pub fn cable(&self, name: &str, other: &Netns, far: &str) -> Result<()> {
        let there = other.thread();
        self.ip(&format!(
            "link add {name} type veth peer name {far} netns {there}"
        ))?;
        self.without_dad(name)?;
        other.without_dad(far)?;
        self.ip(&format!("link set {name} up"))?;
        other.ip(&format!("link set {far} up"))?;
        Ok(())
    }

    /// Makes another computer's network: a namespace whose link `link` leads to `bridge` here and has `address`.
    pub fn neighbour(&self, bridge: &str, link: &str, address: &str) -> Result<Netns> {
        let other = Netns::new()?;
        self.plug(&other, bridge, link, address)?;
        Ok(other)
    }

    /// Lays one more cable: from `bridge` here to `other`, where it is called `link` and has `address`.
    pub fn plug(&self, other: &Netns, bridge: &str, link: &str, address: &str) -> Result<()> {
        // Link names have 15 characters: the thread's number keeps those of several computers apart.
        let near = format!("{link}.{}", other.thread());
        self.cable(&near, other, link)?;
        self.join(&near, bridge)?;
        other.ip(&format!("address add {address} dev {link}"))?;
        Ok(())
    }

    /// Switches IPv6's duplicate address detection off: an address is usable at once.
    fn without_dad(&self, name: &str) -> Result<()> {
        self.sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0")
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn two_namespaces_hold_the_same_port_and_address() {
        let nets = [Netns::new().unwrap(), Netns::new().unwrap()];
        let listeners: Vec<_> = nets
            .iter()
            .map(|net| {
                net.bridge("br0", Some("10.77.0.1/24")).unwrap();
                net.run(|| TcpListener::bind("10.77.0.1:67")).unwrap()
            })
            .collect();
        assert_eq!(listeners.len(), 2);
    }

    #[test]
    fn cable_joins_two_namespaces() {
        let here = Netns::new().unwrap();
        here.bridge("br0", Some("10.77.0.1/24")).unwrap();
        let there = here.neighbour("br0", "eth0", "10.77.0.2/24").unwrap();
        let listener = here.run(|| TcpListener::bind("10.77.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        there.run(move || TcpStream::connect(address)).unwrap();
        assert_eq!(listener.accept().unwrap().1.ip().to_string(), "10.77.0.2");
    }
}
