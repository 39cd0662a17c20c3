//! Wake-on-LAN: a packet that a machine's NIC understands while the machine is off. Nothing tells whether it did anything.
//!
//! The control role, which may be anywhere, asks for it on the Server (`spec.wake`); every edge that serves the Segment of the
//! machine's latest session sends the packets, once for each wish. To machines on an interface of ours they go as a broadcast there;
//! to others as one to their subnet, which arrives where routers pass such packets on (RFC 2644: by default they do not).
//!
//! A wish is over once its machine has enrolled again, and in any case after [`LIFETIME`]: by then it is made anew. Until then an edge that
//! was gone carries it out, unless the host is to be off or to be left alone now.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use kube::runtime::reflector::ObjectRef;
use muster_proto::{
    Mac,
    kinds::{Server, SessionState, Wake},
};
use tokio::{
    net::UdpSocket,
    sync::{
        broadcast::{self, error::RecvError},
        watch,
    },
};

use super::segment::{Net, Plan, Subnet};
use crate::{
    host::in_band::is_wanted_on,
    machines::Signal,
    path::Path,
    world::{Change, World},
};

/// The discard service (RFC 863), which is customary for these packets.
const PORT: u16 = 9;

/// So long an edge that has not carried out a wish may still do so, by its own clock.
const LIFETIME: SignedDuration = SignedDuration::from_mins(10);

/// Sends the packets that the Servers ask for.
#[derive(Debug)]
pub struct Waker {
    /// The Servers.
    pub world: World,
    /// What changes of them.
    pub changes: broadcast::Receiver<Change>,
    /// The Segments that are served here.
    pub plan: watch::Receiver<Arc<Plan>>,
}

impl Waker {
    /// Never ends.
    pub async fn run(mut self) {
        let mut done = Done::default();
        loop {
            tokio::select! {
                change = self.changes.recv() => match change {
                    Ok(Change::Server(changed)) => {
                        match self.world.servers.get(&ObjectRef::from_obj(&*changed)) {
                            Some(server) => self.look_at(&mut done, &server).await,
                            None => done.forget(&changed),
                        }
                    }
                    // What it says may be older than the wish.
                    Ok(Change::Host(host)) => {
                        let stands_for = Signal::Host(Path::of(host.as_ref()));
                        for server in self.world.machines.servers_with(&[stands_for]) {
                            if let Some(server) = self.world.servers.get(&server.to_ref()) {
                                self.look_at(&mut done, &server).await;
                            }
                        }
                    }
                    Ok(Change::All) | Err(RecvError::Lagged(_)) => self.look_at_all(&mut done).await,
                    Ok(Change::Segment(_) | Change::Hardware(_)) => {}
                    // Nothing changes any more: the process ends.
                    Err(RecvError::Closed) => return std::future::pending().await,
                },
                changed = self.plan.changed() => match changed {
                    Ok(()) => self.look_at_all(&mut done).await,
                    Err(_) => return std::future::pending().await,
                },
            }
        }
    }

    async fn look_at_all(&self, done: &mut Done) {
        let servers = self.world.servers.state();
        // Of those that are gone nobody may have told.
        let names: HashSet<&str> = servers
            .iter()
            .filter_map(|server| server.metadata.name.as_deref())
            .collect();
        done.0.retain(|name, _| names.contains(name.as_str()));
        for server in &servers {
            self.look_at(done, server).await;
        }
    }

    /// Carries out the wish of `server`, if it has one that is not.
    async fn look_at(&self, done: &mut Done, server: &Server) {
        let Some(wish) = current(server, Timestamp::now()).filter(|wish| !done.has(server, wish)) else {
            return;
        };
        if !is_wanted_on(server, self.world.host_of(server).as_deref()) {
            return;
        }
        let plan = Arc::clone(&self.plan.borrow());
        let Some(net) = serves(&plan, server) else { return };
        let name = server.metadata.name.as_deref().unwrap_or_default();
        if let Err(error) = send(&wish.macs, net).await {
            tracing::warn!(
                server = name, segment = %net.key, %error,
                "Wake-on-LAN could not be sent; it is retried when the Server changes or another wake-up is requested"
            );
            return;
        }
        tracing::info!(server = name, segment = %net.key, macs = ?wish.macs, "Wake-on-LAN sent");
        done.0.insert(name.to_owned(), wish.clone());
    }
}

/// The latest wish of each Server that was carried out.
#[derive(Debug, Default)]
struct Done(HashMap<String, Wake>);

impl Done {
    fn has(&self, server: &Server, wish: &Wake) -> bool {
        let name = server.metadata.name.as_deref().unwrap_or_default();
        self.0.get(name) == Some(wish)
    }

    fn forget(&mut self, server: &Server) {
        self.0.remove(server.metadata.name.as_deref().unwrap_or_default());
    }
}

/// The wish of `server` that holds at `now`: made not long ago, and since the machine was here last.
fn current(server: &Server, now: Timestamp) -> Option<&Wake> {
    let wish = server.spec.wake.as_deref()?;
    let session = server.session()?;
    let made: Timestamp = wish.at.parse().ok()?;
    let gone = session.state != SessionState::Connected && session.key == wish.session;
    (gone && now.duration_since(made).abs() < LIFETIME).then_some(wish)
}

/// The network of the Segment on which the machine of `server` had its latest session, if it is served here.
fn serves<'a>(plan: &'a Plan, server: &Server) -> Option<&'a Net> {
    let session = server.session()?;
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
    use muster_proto::kinds::{ServerSpec, ServerStatus, Session};

    use super::*;

    /// So many seconds after the wish was made.
    fn after(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn server() -> Server {
        let spec = ServerSpec {
            wake: Some(Box::new(Wake {
                at: after(0).to_string(),
                macs: vec![Mac([2, 0, 0, 0, 0, 1])],
                session: "1".to_owned(),
            })),
            ..ServerSpec::default()
        };
        let mut server = Server::new("one", spec);
        server.status = Some(ServerStatus {
            session: Some(Session {
                key: "1".to_owned(),
                state: SessionState::Disconnected,
                ..Session::default()
            }),
            ..ServerStatus::default()
        });
        server
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
    fn a_wish_is_over_after_ten_minutes_and_once_its_machine_was_here() {
        for (now, holds) in [(0, true), (599, true), (600, false), (-599, true), (-600, false)] {
            assert_eq!(current(&server(), after(now)).is_some(), holds, "{now}");
        }
        type Change = fn(&mut Server);
        let changes: [Change; 4] = [
            |server| session(server).state = SessionState::Connected,
            |server| session(server).key = "2".to_owned(),
            |server| server.spec.wake.as_mut().unwrap().at.clear(),
            |server| server.spec.wake = None,
        ];
        for change in changes {
            let mut server = server();
            change(&mut server);
            assert_eq!(current(&server, after(0)), None);
        }
    }

    fn session(server: &mut Server) -> &mut Session {
        server.status.as_mut().unwrap().session.as_mut().unwrap()
    }

    #[test]
    fn a_wish_that_was_carried_out_is_not_carried_out_again() {
        let (mut done, mut server) = (Done::default(), server());
        let wish = server.spec.wake.clone().unwrap();
        assert!(!done.has(&server, &wish));
        done.0.insert("one".to_owned(), *wish.clone());
        assert!(done.has(&server, &wish));
        let anew = Wake {
            at: after(300).to_string(),
            ..*wish.clone()
        };
        assert!(!done.has(&server, &anew));
        done.forget(&server);
        assert!(!done.has(&server, &wish));
        server.metadata.name = None;
        assert!(!done.has(&server, &wish));
    }
}
