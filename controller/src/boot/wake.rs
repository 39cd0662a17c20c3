//! Wake-on-LAN: a packet that a machine's NIC understands while the machine is off. Nothing tells whether it did anything.
//!
//! The control role, which may be anywhere, asks for it on the Server (`spec.wake`); every edge that serves the Segment of the
//! machine's latest session sends the packets, once for each wish. To machines on an interface of ours they go as a broadcast there;
//! to others as one to their subnet, which arrives where routers pass such packets on (RFC 2644: by default they do not).

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use kube::runtime::reflector::ObjectRef;
use muster_proto::{
    Mac,
    kinds::{Server, Wake},
};
use tokio::{
    net::UdpSocket,
    sync::{
        broadcast::{self, error::RecvError},
        watch,
    },
};

use super::segment::{Net, Plan, Subnet};
use crate::world::{Change, World};

/// The discard service (RFC 863), which is customary for these packets.
const PORT: u16 = 9;

/// Sends the packets that the Servers ask for.
#[derive(Debug)]
pub struct Waker {
    /// The Servers.
    pub world: World,
    /// What changes of them; from before their copy is filled.
    pub changes: broadcast::Receiver<Change>,
    /// The Segments that are served here.
    pub plan: watch::Receiver<Arc<Plan>>,
}

impl Waker {
    /// Never ends.
    pub async fn run(mut self) {
        // An error says that the driver of the copies is gone: the process ends.
        let _ = self.world.servers.wait_until_ready().await;
        // What was asked for before was carried out by whoever ran then, and is asked for again in minutes if it did nothing.
        let mut known = Known::default();
        for server in self.world.servers.state() {
            known.is_new(&server);
        }
        loop {
            match self.changes.recv().await {
                Ok(Change::Server(changed)) => {
                    match self.world.servers.get(&ObjectRef::from_obj(&*changed)) {
                        Some(server) => self.look_at(&mut known, &server).await,
                        None => known.forget(&changed),
                    }
                }
                Ok(Change::All) | Err(RecvError::Lagged(_)) => {
                    for server in self.world.servers.state() {
                        self.look_at(&mut known, &server).await;
                    }
                }
                Ok(Change::Segment(_) | Change::Host(_) | Change::Hardware(_)) => {}
                // Nothing changes any more: the process ends.
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }

    async fn look_at(&self, known: &mut Known, server: &Server) {
        if !known.is_new(server) {
            return;
        }
        let Some(wish) = &server.spec.wake else { return };
        let plan = Arc::clone(&self.plan.borrow());
        let Some(net) = serves(&plan, server) else { return };
        let name = server.metadata.name.as_deref().unwrap_or_default();
        match send(&wish.macs, net).await {
            Ok(()) => {
                tracing::info!(server = name, segment = %net.key, macs = ?wish.macs, "Wake-on-LAN sent");
            }
            Err(error) => tracing::warn!(
                server = name, segment = %net.key, %error,
                "Wake-on-LAN could not be sent; it is tried again when it is asked for again, in some minutes"
            ),
        }
    }
}

/// The latest wish of each Server that had one.
#[derive(Debug, Default)]
struct Known(HashMap<String, Wake>);

impl Known {
    /// True if `server` has a wish that it did not have before.
    fn is_new(&mut self, server: &Server) -> bool {
        let (Some(name), Some(wish)) = (&server.metadata.name, &server.spec.wake) else {
            self.forget(server);
            return false;
        };
        if self.0.get(name) == Some(&**wish) {
            return false;
        }
        self.0.insert(name.clone(), (**wish).clone());
        true
    }

    fn forget(&mut self, server: &Server) {
        self.0.remove(server.metadata.name.as_deref().unwrap_or_default());
    }
}

/// The network of the Segment on which the machine of `server` had its latest session, if it is served here.
fn serves<'a>(plan: &'a Plan, server: &Server) -> Option<&'a Net> {
    let session = server.status.as_ref()?.session.as_ref()?;
    plan.get(&session.segment)?.as_ref().ok()
}

/// The packet for `mac`: six times 0xff, then the address sixteen times (AMD's white paper 20213).
fn packet(mac: Mac) -> Vec<u8> {
    let mut packet = vec![0xff; 6];
    packet.extend(std::iter::repeat_n(mac.0, 16).flatten());
    packet
}

/// The address of everybody on `interface` of ours, or on a `subnet` that only routers lead to.
fn everybody(interface: Option<&str>, subnet: Subnet) -> Ipv4Addr {
    match interface {
        Some(_) => Ipv4Addr::BROADCAST,
        None => subnet.broadcast(),
    }
}

/// Sends a packet for each of `macs` to the machines on `net`.
async fn send(macs: &[Mac], net: &Net) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.set_broadcast(true)?;
    let interface = net.interface.as_deref();
    socket.bind_device(interface.map(str::as_bytes))?;
    let to = SocketAddr::from((everybody(interface, net.subnet), PORT));
    for mac in macs {
        socket.send_to(&packet(*mac), to).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use muster_proto::kinds::ServerSpec;

    use super::*;

    fn server(wish: Option<&str>) -> Server {
        let wish = wish.map(|at| {
            Box::new(Wake {
                at: at.to_owned(),
                macs: vec![Mac([2, 0, 0, 0, 0, 1])],
                session: String::new(),
            })
        });
        let spec = ServerSpec {
            wake: wish,
            ..ServerSpec::default()
        };
        Server::new("one", spec)
    }

    #[test]
    fn a_packet_has_the_address_sixteen_times() {
        let packet = packet(Mac([1, 2, 3, 4, 5, 6]));
        assert_eq!(packet.len(), 102);
        assert_eq!(packet[..8], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2]);
        assert_eq!(packet[96..], [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn machines_behind_routers_are_asked_by_the_broadcast_address_of_their_subnet() {
        let subnet = "10.77.0.0/22".parse().unwrap();
        assert_eq!(everybody(Some("eth0"), subnet).to_string(), "255.255.255.255");
        assert_eq!(everybody(None, subnet).to_string(), "10.77.3.255");
    }

    #[test]
    fn each_wish_is_new_once() {
        let mut known = Known::default();
        assert!(!known.is_new(&server(None)));
        assert!(known.is_new(&server(Some("1"))));
        assert!(!known.is_new(&server(Some("1"))));
        assert!(known.is_new(&server(Some("2"))));
        // Deleted and made anew, it has no wish of before.
        known.forget(&server(Some("2")));
        assert!(known.is_new(&server(Some("2"))));
    }
}
