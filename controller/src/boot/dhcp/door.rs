//! The sockets through which one interface's requests come in.

use std::{
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::Arc,
};

use muster_proto::Chain;
use nix::{
    libc,
    sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, sync::mpsc, task::JoinHandle};

use super::{
    dispatch::Dispatch,
    engine::{PXE_PORT, SERVER_PORT},
    frames::Frames,
    links::Identity,
};
use crate::boot::status::{PORT_IN_USE, PORT_NOT_OPENED};

/// The longest request that is read; a longer one is cut and therefore malformed.
const MAX_REQUEST: usize = 4096;
/// Room in the kernel for a burst of requests, in bytes.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Which sockets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// Those of an interface.
    Local {
        /// Its name.
        interface: String,
        /// An interface made anew, or with another MAC address to probe from, is opened anew.
        identity: Identity,
        /// The PXE port, too.
        pxe: bool,
        /// There is a [`Key::Relayed`] beside it, with which it must share port 67.
        shared: bool,
    },
    /// One for what relay agents send from anywhere.
    Relayed,
}

/// A port cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum DoorError {
    /// Somebody has it.
    #[error("UDP port {port} on {place} is in use by another program; retrying every 5 s")]
    PortInUse {
        /// 67 or 4011.
        port: u16,
        /// The interface, or all of them.
        place: String,
    },
    /// Anything else.
    #[error("open UDP port {port} on {place}")]
    Open {
        /// 67 or 4011.
        port: u16,
        /// The interface, or all of them.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DoorError {
    /// CamelCase, the reason of the Segment's condition.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            DoorError::PortInUse { .. } => PORT_IN_USE,
            DoorError::Open { .. } => PORT_NOT_OPENED,
        }
    }
}

/// Open sockets and the tasks that read them.
#[derive(Debug)]
pub(super) struct Door {
    listens: bool,
    tasks: Vec<JoinHandle<()>>,
}

impl Door {
    /// Opens the sockets and starts to read them.
    pub(super) fn open(key: &Key, dispatch: &Arc<Dispatch>) -> Result<Door, DoorError> {
        let (interface, shared, ports): (Option<&str>, bool, &[u16]) = match key {
            Key::Local {
                interface,
                pxe,
                shared,
                ..
            } => {
                let ports: &[u16] = if *pxe {
                    &[SERVER_PORT, PXE_PORT]
                } else {
                    &[SERVER_PORT]
                };
                (Some(interface), *shared, ports)
            }
            Key::Relayed => (None, true, &[SERVER_PORT]),
        };
        let mut sockets = Vec::new();
        for &port in ports {
            let socket = bind(interface, port, shared).map_err(|source| {
                let place =
                    interface.map_or_else(|| "all interfaces".to_owned(), |name| format!("interface {name}"));
                match source.kind() {
                    io::ErrorKind::AddrInUse => DoorError::PortInUse { port, place },
                    _ => DoorError::Open { port, place, source },
                }
            })?;
            sockets.push((port, Arc::new(socket)));
        }
        let mut tasks = Vec::new();
        let frames = interface.and_then(|interface| {
            let (heard, answers) = mpsc::channel(64);
            match Frames::open(interface, &heard) {
                Ok(frames) => {
                    let task = dispatch.clone().watch(interface.to_owned(), answers);
                    tasks.push(tokio::spawn(task));
                    Some(Arc::new(frames))
                }
                Err(error) => {
                    tracing::warn!(interface, error = %Chain(&error), "serving without probes and without looking for other servers");
                    None
                }
            }
        });
        for (port, socket) in sockets {
            let entrance = Entrance {
                interface: interface.map(str::to_owned),
                port,
                socket,
                frames: frames.clone(),
            };
            tasks.push(tokio::spawn(read(dispatch.clone(), Arc::new(entrance))));
        }
        Ok(Door {
            listens: frames.is_some(),
            tasks,
        })
    }

    /// True if what other servers answer is heard here.
    pub(super) fn listens(&self) -> bool {
        self.listens
    }

    /// Closes the sockets: when this returns, their ports are free.
    pub(super) async fn close(mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            // Cancelled, as it was told to be.
            let _ = task.await;
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// One socket and what belongs to it.
#[derive(Debug)]
pub(super) struct Entrance {
    /// The interface that it is bound to.
    pub(super) interface: Option<String>,
    /// Its port.
    pub(super) port: u16,
    /// Itself.
    pub(super) socket: Arc<UdpSocket>,
    /// The interface's frames, if they are to be had.
    pub(super) frames: Option<Arc<Frames>>,
}

impl Entrance {
    /// Sends from the address `own`, which the request was for: of several in its subnet the kernel would choose the first, and what
    /// stands in between lets no reply through that comes from elsewhere. At once, past the runtime's readiness.
    pub(super) fn send(&self, bytes: &[u8], own: Ipv4Addr, to: SocketAddrV4) -> io::Result<()> {
        let any = libc::in_addr { s_addr: 0 };
        let source = libc::in_pktinfo {
            // The socket is bound to its interface, or the route decides.
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from_ne_bytes(own.octets()),
            },
            ipi_addr: any,
        };
        let sent = sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::Ipv4PacketInfo(&source)],
            MsgFlags::empty(),
            Some(&SockaddrIn::from(to)),
        );
        sent.map(|_length| ()).map_err(io::Error::from)
    }
}

async fn read(dispatch: Arc<Dispatch>, entrance: Arc<Entrance>) {
    let mut buffer = vec![0; MAX_REQUEST];
    loop {
        match entrance.socket.recv_from(&mut buffer).await {
            Ok((length, std::net::SocketAddr::V4(from))) if length < MAX_REQUEST => {
                dispatch.take(&buffer[..length], from, &entrance);
            }
            Ok(_) => dispatch.drop_malformed(),
            Err(error) => {
                // The interface is down, or an ICMP error came back for a former reply.
                tracing::debug!(%error, interface = entrance.interface, "receiving a DHCP request");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

fn bind(interface: Option<&str>, port: u16, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_broadcast(true)?;
    // Without sharing, a second server on this port is an error, and not a race between two.
    socket.set_reuse_address(shared)?;
    if let Some(interface) = interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    if let Err(error) = socket.set_recv_buffer_size(RECEIVE_BUFFER) {
        tracing::debug!(%error, "enlarging the receive buffer");
    }
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    UdpSocket::from_std(socket.into())
}
