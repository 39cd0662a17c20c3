//! Answers IPv6 router solicitations with an empty advertisement (RFC 4861, 4.2).
//!
//! iPXE waits 16 s for a router before it goes on with IPv4 alone; an advertisement without prefixes ends the wait at once.

use std::{
    io::{self, Read},
    net::{Ipv6Addr, SocketAddrV6},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const SOLICITATION: u8 = 133;
/// Type 134, hop limit 64, no flags, router lifetime 0 ("not a default router"), no options. The kernel fills the checksum in.
const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// How often the thread looks whether its owner is gone.
const TICK: Duration = Duration::from_millis(200);

/// A router that routes nothing, on one link.
#[derive(Debug)]
pub struct Router {
    stop: Arc<AtomicBool>,
}

impl Router {
    /// Answers on the link `name` until dropped.
    pub fn on(net: &Netns, name: &str) -> Result<Router> {
        let link = name.to_owned();
        let (socket, index) = net
            .run(move || open(&link))
            .with_context(|| format!("listen for router solicitations on {name}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::Builder::new()
            .name("lab-router".to_owned())
            .spawn(move || answer(&socket, index, &stopped))
            .context("start a thread")?;
        Ok(Router { stop })
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn open(link: &str) -> io::Result<(Socket, u32)> {
    let index = if_nametoindex(link)?;
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind_device(Some(link.as_bytes()))?;
    socket.set_multicast_hops_v6(255)?; // receivers drop anything less (RFC 4861, 6.1.2)
    socket.set_multicast_if_v6(index)?;
    socket.join_multicast_v6(&ALL_ROUTERS, index)?;
    socket.set_read_timeout(Some(TICK))?;
    Ok((socket, index))
}

fn answer(mut socket: &Socket, index: u32, stopped: &AtomicBool) {
    let everyone = SocketAddrV6::new(ALL_NODES, 0, 0, index).into();
    let mut packet = [0; 64];
    while !stopped.load(Ordering::Relaxed) {
        if matches!(socket.read(&mut packet), Ok(1..)) && packet[0] == SOLICITATION {
            // A link that just came up may have no address for some milliseconds; whoever asks, asks again.
            let _ = socket.send_to(&ADVERTISEMENT, &everyone);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// What a host sends when a link comes up: type 133, no options.
    const ASK: [u8; 8] = [SOLICITATION, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn solicitation_is_answered() {
        let (here, there) = (Netns::new().unwrap(), Netns::new().unwrap());
        here.bridge("br0", None).unwrap();
        here.cable("c0", &there, "eth0").unwrap();
        here.join("c0", "br0").unwrap();
        let _router = Router::on(&here, "br0").unwrap();
        let (socket, index) = there.run(|| open("eth0")).unwrap();
        socket.join_multicast_v6(&ALL_NODES, index).unwrap();
        let routers = SocketAddrV6::new(ALL_ROUTERS, 0, 0, index).into();
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut packet = [0; 64];
        let length = loop {
            assert!(Instant::now() < deadline, "no advertisement");
            // Fails until the link has its address; the read's timeout paces the loop.
            let _ = socket.send_to(&ASK, &routers);
            match (&socket).read(&mut packet) {
                Ok(length) if packet[0] == 134 => break length,
                _ => {}
            }
        };
        assert_eq!(length, ADVERTISEMENT.len());
        assert_eq!(
            packet[6..8],
            [0, 0],
            "a lifetime other than 0 would make it a default router"
        );
    }
}
