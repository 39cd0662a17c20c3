//! The network: switches every interface on, asks for an address wherever the other end is there, and resolves names.
//!
//! One task per interface with carrier, started and stopped by what the kernel says of the links.

pub mod dhcp;
pub mod dns;
pub(crate) mod ethtool;
pub mod netlink;
mod setup;
pub(crate) mod wake;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{BuildHasher, RandomState},
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use muster_proto::{Chain, Mac};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{MsgFlags, SockFlag, recv, send},
};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    descriptor,
    sys::{self, ReadError, Root},
};
use dhcp::{Change, Lease};
use netlink::{Link, Request, Said};
use setup::{On, Setup};

/// The metric of routes over the interface that the firmware booted from: it is known to lead to a controller.
const BOOT_METRIC: u32 = 50;

/// The metric of routes over the others, to which the interface's index is added.
const METRIC: u32 = 100;

/// Before a socket that failed is opened again.
const SOCKET_PAUSE: Duration = Duration::from_secs(5);

/// Before an interface that is still off is told again to be on, for the first time; then twice as long each time, so many times.
const UP_PAUSE: Duration = Duration::from_secs(5);
const UP_DOUBLINGS: u32 = 6;

/// Number 53: DNS.
const DNS_PORT: u16 = 53;

/// The kernel's names of all interfaces with a device behind them: not of those that are software alone.
pub(crate) fn interfaces(root: &Root) -> Result<Vec<String>, ReadError> {
    let class = root.sys("class/net");
    let mut names = sys::absent_as_none(sys::list(&class))?.unwrap_or_default();
    names.retain(|name| class.join(name).join("device").exists());
    Ok(names)
}

/// A way to some network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network's address.
    pub destination: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
    /// Over whom; unspecified if it is on the link (RFC 3442).
    pub gateway: Ipv4Addr,
}

impl Route {
    /// To everywhere.
    pub fn default_over(gateway: Ipv4Addr) -> Route {
        Route {
            destination: Ipv4Addr::UNSPECIFIED,
            prefix: 0,
            gateway,
        }
    }
}

/// What is known of the network; interfaces by their index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Interfaces with somebody at the other end.
    pub carriers: BTreeSet<u32>,
    /// The leases in use, with the interface's name.
    pub leases: BTreeMap<u32, (String, Lease)>,
}

impl Network {
    /// Every DNS server, those of the first interface first, none twice.
    pub fn name_servers(&self) -> Vec<SocketAddr> {
        let mut seen = BTreeSet::new();
        let all = self.leases.values().flat_map(|(_, lease)| &lease.name_servers);
        all.filter(|server| seen.insert(**server))
            .map(|server| SocketAddr::from((*server, DNS_PORT)))
            .collect()
    }

    /// The first host name that a DHCP server gave; empty if none did.
    pub fn hostname(&self) -> &str {
        let mut names = self.leases.values().map(|(_, lease)| lease.hostname.as_str());
        names.find(|name| !name.is_empty()).unwrap_or_default()
    }
}

/// The network could not be looked after.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The rtnetlink socket failed.
    #[error("listen to the kernel's link events")]
    Listen {
        /// Why.
        source: io::Error,
    },
    /// The thread that sets up addresses could not be started.
    #[error("start the thread that sets up addresses")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// An interface could not be set up.
    #[error("{action} on {interface}")]
    Interface {
        /// What was tried.
        action: &'static str,
        /// On which.
        interface: String,
        /// Why.
        source: io::Error,
    },
}

/// Has each interface answer for its own addresses alone, and ask as itself (`arp_ignore` and `arp_announce` in the kernel's
/// `Documentation/networking/ip-sysctl.rst`). As the kernel begins, of two on one network either answers for both, and what a DHCP server
/// sends to one address may arrive at the other interface, which waits for nothing.
///
/// # Errors
/// What cannot be written.
pub fn keep_apart(root: &Root) -> io::Result<()> {
    let all = root.proc("sys/net/ipv4/conf/all");
    fs::write(all.join("arp_ignore"), "1")?;
    fs::write(all.join("arp_announce"), "2")
}

/// Runs the network for as long as the machine runs; `network` tells the others. `boot` is the interface that the firmware
/// booted from.
///
/// # Errors
/// Ends only with [`NetworkError::Listen`] and [`NetworkError::Thread`].
pub async fn run(boot: Option<Mac>, network: watch::Sender<Network>) -> Result<(), NetworkError> {
    let links = Links::open().map_err(|source| NetworkError::Listen { source })?;
    let (change_tx, mut change_rx) = mpsc::unbounded_channel();
    let (done_tx, mut done_rx) = mpsc::unbounded_channel();
    // The receiver goes away only with the machine.
    let setup = Setup::begin(move |index, lease| _ = done_tx.send((index, lease)));
    let mut interfaces = Interfaces {
        setup: setup.map_err(|source| NetworkError::Thread { source })?,
        boot,
        known: BTreeMap::new(),
        change_tx,
        network,
    };
    let mut again = tokio::time::interval(UP_PAUSE);
    loop {
        tokio::select! {
            said = links.next() => {
                for said in said.map_err(|source| NetworkError::Listen { source })? {
                    match said {
                        Said::Link(link) => interfaces.link(link),
                        Said::Gone(index) => interfaces.gone(index),
                        Said::Ended(_) => {}
                    }
                }
            }
            Some((index, change)) = change_rx.recv() => interfaces.lease(index, change),
            Some((index, lease)) = done_rx.recv() => interfaces.in_use(index, lease),
            _ = again.tick() => interfaces.switch_on(),
        }
    }
}

/// What the kernel says of the links, beginning with how they are now.
struct Links(AsyncFd<OwnedFd>);

impl Links {
    fn open() -> io::Result<Links> {
        let fd = netlink::open(libc::RTMGRP_LINK, SockFlag::SOCK_NONBLOCK)?;
        let links = Links(descriptor::watch(fd)?);
        links.list()?;
        Ok(links)
    }

    fn list(&self) -> io::Result<()> {
        send(
            self.0.as_raw_fd(),
            &Request::list_links().bytes(),
            MsgFlags::empty(),
        )?;
        Ok(())
    }

    async fn next(&self) -> io::Result<Vec<Said>> {
        let mut datagram = vec![0; netlink::DATAGRAM];
        loop {
            let mut ready = self.0.readable().await?;
            let received = ready.try_io(|fd| Ok(recv(fd.as_raw_fd(), &mut datagram, MsgFlags::empty())?));
            match received {
                Ok(Ok(length)) => return Ok(netlink::parse(&datagram[..length])),
                // Some events were lost: ask how things are now.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => self.list()?,
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

struct Interfaces {
    setup: Setup,
    boot: Option<Mac>,
    known: BTreeMap<u32, Interface>,
    change_tx: mpsc::UnboundedSender<(u32, Change)>,
    network: watch::Sender<Network>,
}

struct Interface {
    name: String,
    metric: u32,
    client: Option<AbortHandle>,
    /// The lease that is, or is about to be, in use.
    lease: Option<Lease>,
    /// The address to ask for again when the carrier comes back.
    former: Option<Ipv4Addr>,
    up: bool,
    /// When it was told to be up last, and how often since it was.
    asked: Option<(Instant, u32)>,
}

impl Interface {
    fn on(&self, index: u32) -> On {
        On {
            index,
            name: self.name.clone(),
            metric: self.metric,
        }
    }

    /// Tells it to be up if it is not, and again after a while: a driver refuses while its NIC is being reset, and switches it off where
    /// a reset fails.
    fn switch_on(&mut self, index: u32) {
        if self.up {
            self.asked = None;
            return;
        }
        let times = self.asked.map_or(0, |(_, times)| times);
        let pause = UP_PAUSE * 2_u32.pow(times.min(UP_DOUBLINGS));
        if self.asked.is_none_or(|(at, _)| at.elapsed() >= pause) {
            self.asked = Some((Instant::now(), times.saturating_add(1)));
            ask_aside(
                "bring the interface up",
                self.name.clone(),
                Request::switch_on(index),
            );
        }
    }
}

impl Interfaces {
    fn switch_on(&mut self) {
        for (index, interface) in &mut self.known {
            interface.switch_on(*index);
        }
    }

    fn link(&mut self, link: Link) {
        let Some(mac) = link.mac.filter(|mac| mac.is_unicast()) else {
            return;
        };
        let metric = if self.boot == Some(mac) {
            BOOT_METRIC
        } else {
            METRIC.saturating_add(link.index)
        };
        let interface = self.known.entry(link.index).or_insert_with(|| Interface {
            name: String::new(),
            metric,
            client: None,
            lease: None,
            former: None,
            up: link.up,
            asked: None,
        });
        interface.name = link.name;
        interface.up = link.up;
        interface.switch_on(link.index);
        let carrier = link.up && link.carrier;
        if carrier && interface.client.is_none() {
            tracing::info!(step = "carrier", nic = interface.name, %mac);
            self.network
                .send_modify(|network| _ = network.carriers.insert(link.index));
            let (tell, name, former) = (self.change_tx.clone(), interface.name.clone(), interface.former);
            let task = tokio::spawn(async move {
                // The receiver goes away only with the machine.
                let tell = |change| _ = tell.send((link.index, change));
                while let Err(source) = dhcp::run(&name, mac, former, &tell).await {
                    let error = NetworkError::Interface {
                        action: "request an address",
                        interface: name.clone(),
                        source,
                    };
                    tracing::warn!("{}; trying again", Chain(&error));
                    tokio::time::sleep(SOCKET_PAUSE).await;
                }
            });
            interface.client = Some(task.abort_handle());
        } else if !carrier && let Some(client) = interface.client.take() {
            tracing::info!(nic = interface.name, "carrier lost");
            client.abort();
            self.drop_lease(link.index);
            self.network
                .send_modify(|network| _ = network.carriers.remove(&link.index));
        }
    }

    fn gone(&mut self, index: u32) {
        if let Some(interface) = self.known.remove(&index) {
            if let Some(client) = interface.client {
                client.abort();
            }
            self.network.send_modify(|network| {
                network.leases.remove(&index);
                network.carriers.remove(&index);
            });
        }
    }

    fn lease(&mut self, index: u32, change: Change) {
        let Some(interface) = self.known.get_mut(&index) else {
            return;
        };
        match change {
            // The carrier went while the message was under way.
            Change::Granted(_) if interface.client.is_none() => {}
            Change::Granted(lease) => {
                interface.former = Some(lease.address);
                let held = interface.lease.replace(lease.clone());
                // Renewed, unless it could not be set up: then that is tried anew.
                let is_in_use = self.network.borrow().leases.contains_key(&index);
                if is_in_use && held.as_ref().is_some_and(|held| held.sets_up_as(&lease)) {
                    return;
                }
                self.setup.set_up(interface.on(index), held, lease);
            }
            Change::Lost(lease) => {
                tracing::warn!(nic = interface.name, address = %lease.address, "lease lost");
                self.drop_lease(index);
            }
        }
    }

    /// The kernel has what `lease` says of the interface.
    fn in_use(&self, index: u32, lease: Lease) {
        let Some(interface) = self.known.get(&index) else {
            return;
        };
        // It may be lost again, or another one be under way.
        if !interface
            .lease
            .as_ref()
            .is_some_and(|held| held.sets_up_as(&lease))
        {
            return;
        }
        tracing::info!(
            step = "dhcp",
            nic = interface.name,
            address = %format_args!("{}/{}", lease.address, lease.prefix),
            server = %lease.server,
        );
        let entry = (interface.name.clone(), lease);
        self.network
            .send_modify(|network| _ = network.leases.insert(index, entry));
    }

    fn drop_lease(&mut self, index: u32) {
        let Some(interface) = self.known.get_mut(&index) else {
            return;
        };
        if let Some(lease) = interface.lease.take() {
            self.setup.remove(interface.on(index), lease);
            self.network
                .send_modify(|network| _ = network.leases.remove(&index));
        }
    }
}

/// A request that may take its time: on a thread of its own, with nobody waiting.
fn ask_aside(action: &'static str, interface: String, request: Request) {
    tokio::task::spawn_blocking(move || {
        if let Err(source) = netlink::ask(request) {
            tracing::warn!(
                "{}",
                Chain(&NetworkError::Interface {
                    action,
                    interface,
                    source
                })
            );
        }
    });
}

/// A number that nobody can foresee well; never blocks, unlike the kernel's best at an early boot.
pub fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tree::Tree;

    #[test]
    fn interfaces_on_one_network_answer_for_themselves() {
        let all = "proc/sys/net/ipv4/conf/all";
        let tree = Tree::new()
            .file(&format!("{all}/arp_ignore"), "0\n")
            .file(&format!("{all}/arp_announce"), "0\n");
        keep_apart(&tree.root()).unwrap();
        let read = |name| fs::read_to_string(tree.root().at(all).join(name)).unwrap();
        assert_eq!(
            (read("arp_ignore").as_str(), read("arp_announce").as_str()),
            ("1", "2")
        );
        assert!(keep_apart(&Tree::new().root()).is_err());
    }

    fn lease(name_servers: Vec<Ipv4Addr>, hostname: &str) -> (String, Lease) {
        let lease = Lease {
            name_servers,
            hostname: hostname.to_owned(),
            ..Lease::of([10, 0, 0, 9].into())
        };
        ("eth0".to_owned(), lease)
    }

    #[test]
    fn name_servers_of_all_interfaces_are_known_once() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 1, 1));
        let leases = BTreeMap::from([(3, lease(vec![b, a], "late")), (2, lease(vec![a], ""))]);
        let network = Network {
            leases,
            ..Network::default()
        };
        assert_eq!(
            network.name_servers(),
            [SocketAddr::from((a, 53)), SocketAddr::from((b, 53))]
        );
        assert_eq!(network.hostname(), "late");
    }

    #[tokio::test]
    async fn the_kernel_lists_its_links() {
        let links = Links::open().unwrap();
        loop {
            // The loopback is a link, but no interface of ours.
            let said = links.next().await.unwrap();
            if let Some(Said::Link(link)) = said
                .iter()
                .find(|said| matches!(said, Said::Link(link) if link.name == "lo"))
            {
                assert_eq!((link.index, link.mac), (1, None));
                return;
            }
        }
    }
}
