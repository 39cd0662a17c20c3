//! The TFTP server: iPXE's two binaries, read-only, for firmware that speaks nothing better.
//!
//! It serves these names from memory and nothing else; a name is compared, never opened.
//! [`packet`] reads and writes packets, [`transfer`] decides what to send, and this file moves them.

pub mod packet;
pub mod transfer;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hyper::body::Bytes;
use tokio::{
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use self::{
    packet::{Code, MAX_REQUEST, ReadRequest, Reply, Request},
    transfer::{Failure, Outgoing, Step, Transfer, within},
};
use super::{
    peers::{Notes, Peers},
    workers::Workers,
};
use crate::{
    bind::{self, Addresses, ClosedPorts, Port},
    quota::{Quota, QuotaPermit},
};

/// The port of RFC 1350.
pub const PORT: u16 = 69;

/// iPXE for BIOS.
pub const BIOS: &str = "undionly.kpxe";
/// iPXE for UEFI.
pub const UEFI: &str = "snponly.efi";

/// Why TFTP does not work.
#[derive(Debug, thiserror::Error)]
pub enum TftpError {
    /// A boot file is not there.
    #[error("read boot file {}", path.display())]
    ReadFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket broke.
    #[error("receive TFTP requests on {address}")]
    Receive {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is served, in memory: some 250 kB.
#[derive(Clone, Debug)]
pub struct BootFiles {
    bios: Bytes,
    uefi: Bytes,
}

impl BootFiles {
    /// Both files, of given content.
    pub fn new(bios: Bytes, uefi: Bytes) -> Self {
        BootFiles { bios, uefi }
    }

    /// Both files from `directory`, such as Debian's `/usr/lib/ipxe`.
    pub fn load(directory: &Path) -> Result<Self, TftpError> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path)
                .map(Bytes::from)
                .map_err(|source| TftpError::ReadFile { path, source })
        };
        Ok(BootFiles {
            bios: read(BIOS)?,
            uefi: read(UEFI)?,
        })
    }

    /// The file of exactly this name.
    fn named(&self, name: &[u8]) -> Option<(&'static str, &Bytes)> {
        [(BIOS, &self.bios), (UEFI, &self.uefi)]
            .into_iter()
            .find(|(known, _)| known.as_bytes() == name)
    }
}

/// Bounds on what clients may make us do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Transfers at once.
    pub transfers: usize,
    /// Of these, to one address.
    pub each: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            transfers: 512,
            each: 4,
        }
    }
}

/// The server.
#[derive(Debug)]
pub struct Server {
    /// What is served.
    pub files: BootFiles,
    /// Where.
    pub addresses: watch::Receiver<Addresses>,
    /// [`PORT`], except in tests.
    pub port: u16,
    /// Where that cannot be opened.
    pub closed_ports: ClosedPorts,
    /// How much.
    pub limits: Limits,
    /// Whose address is whose, for the log.
    pub peers: Peers,
}

impl Server {
    /// Serves; does not return.
    pub async fn run(self) {
        let Server {
            files,
            addresses,
            port,
            closed_ports,
            limits,
            peers,
        } = self;
        let workers = match Workers::start("tftp", 1) {
            Ok(workers) => workers,
            Err(error) => return tracing::error!(%error, "TFTP: cannot start its thread"),
        };
        let slots = Slots::new(limits);
        let notes = Arc::new(Notes::new(peers));
        let open = move |address| Listener::bind(address, files.clone(), slots.clone(), Arc::clone(&notes));
        let port = Port::udp("TFTP", port);
        let serving = bind::serve_on_each(port, addresses, closed_ports, open, Listener::run);
        // Fails only if serving does, which has said why.
        let _ = workers.next().spawn(serving).await;
    }
}

/// What bounds the transfers of all ports together.
#[derive(Clone, Debug)]
struct Slots {
    all: Arc<Semaphore>,
    by_address: Arc<Quota<IpAddr>>,
}

/// The right to one transfer, until it is dropped.
#[derive(Debug)]
struct Slot {
    _of_all: OwnedSemaphorePermit,
    _of_address: QuotaPermit<IpAddr>,
}

impl Slots {
    fn new(limits: Limits) -> Slots {
        Slots {
            all: Arc::new(Semaphore::new(limits.transfers)),
            by_address: Quota::new(limits.each),
        }
    }

    /// One for `address`, if it may have one more and one is left.
    fn take(&self, address: IpAddr) -> Option<Slot> {
        Some(Slot {
            _of_address: self.by_address.take(address.to_canonical())?,
            _of_all: Arc::clone(&self.all).try_acquire_owned().ok()?,
        })
    }
}

/// One well-known port.
#[derive(Debug)]
struct Listener {
    socket: UdpSocket,
    address: SocketAddr,
    files: BootFiles,
    slots: Slots,
    running: HashMap<SocketAddr, Running>,
    notes: Arc<Notes>,
}

/// A transfer under way, as far as a further request from the same client matters to it.
#[derive(Debug)]
struct Running {
    request: ReadRequest,
    answered: Arc<AtomicBool>,
    task: AbortHandle,
}

/// What a further request of a client (same address and port) means while a transfer to it runs.
#[derive(Debug, PartialEq, Eq)]
enum Again {
    /// The network doubled the request, or our answer is late: the transfer's own timer sends again.
    Ignore,
    /// The client began anew: the old transfer ends.
    Replace,
}

fn again(same_request: bool, answered: bool) -> Again {
    if same_request && !answered {
        Again::Ignore
    } else {
        Again::Replace
    }
}

impl Listener {
    fn bind(address: SocketAddr, files: BootFiles, slots: Slots, notes: Arc<Notes>) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        let address = socket.local_addr()?;
        tracing::info!(%address, "TFTP: serving");
        Ok(Listener {
            socket,
            address,
            files,
            slots,
            running: HashMap::new(),
            notes,
        })
    }

    async fn run(mut self) -> TftpError {
        // One byte more than a request may have, so that a longer one shows.
        let mut buffer = [0; MAX_REQUEST + 1];
        loop {
            match self.socket.recv_from(&mut buffer).await {
                Ok((len, client)) => self.on_request(client, &buffer[..len]).await,
                Err(source) => {
                    return TftpError::Receive {
                        address: self.address,
                        source,
                    };
                }
            }
        }
    }

    async fn on_request(&mut self, client: SocketAddr, packet: &[u8]) {
        let refuse = match Request::parse(packet) {
            Some(Request::Read(request)) => return self.on_read(client, request).await,
            Some(Request::Mode) => packet::error(Code::NotDefined, "only octet mode is served"),
            Some(Request::Write) => packet::error(Code::Access, "this server is read-only"),
            Some(Request::Malformed) => packet::error(Code::Illegal, "not a read request"),
            None => return,
        };
        tracing::debug!(%client, "TFTP: request refused");
        self.send(client, &refuse).await;
    }

    async fn on_read(&mut self, client: SocketAddr, request: ReadRequest) {
        let Some((name, file)) = self.files.named(&request.name) else {
            let asked = muster_proto::text::clean(&request.name);
            if let Some(left_out) = self.notes.refusals.say(client.ip(), &asked) {
                tracing::info!(%client, file = %asked, left_out, "TFTP: no such file");
            }
            self.send(client, &packet::error(Code::NotFound, "no such file"))
                .await;
            return;
        };
        self.running.retain(|_, running| !running.task.is_finished());
        if let Some(running) = self.running.get(&client) {
            let answered = running.answered.load(Ordering::Relaxed);
            match again(running.request == request, answered) {
                Again::Ignore => return,
                Again::Replace => running.task.abort(),
            }
        }
        // Nothing is said to a client that must wait: it asks again by itself, while an error would end its boot.
        let Some(slot) = self.slots.take(client.ip()) else {
            if let Some(left_out) = self.notes.refusals.say(client.ip(), "too many transfers") {
                tracing::warn!(%client, left_out, "TFTP: too many transfers, request dropped; the client asks again");
            }
            return;
        };
        let answered = Arc::new(AtomicBool::new(false));
        let (transfer, first) = Transfer::start(file.clone(), request.options);
        let job = Job {
            server: self.address.ip(),
            client,
            name,
            transfer,
            answered: Arc::clone(&answered),
            notes: Arc::clone(&self.notes),
            _slot: slot,
        };
        let task = tokio::spawn(job.run(first)).abort_handle();
        self.running.insert(
            client,
            Running {
                request,
                answered,
                task,
            },
        );
    }

    async fn send(&self, client: SocketAddr, packet: &[u8]) {
        if let Err(error) = self.socket.send_to(packet, client).await {
            tracing::debug!(%client, %error, "TFTP: answer not sent");
        }
    }
}

/// One transfer and its socket: the port that tells it from others (RFC 1350, 4).
#[derive(Debug)]
struct Job {
    server: IpAddr,
    client: SocketAddr,
    name: &'static str,
    transfer: Transfer,
    answered: Arc<AtomicBool>,
    notes: Arc<Notes>,
    _slot: Slot,
}

impl Job {
    async fn run(mut self, first: Vec<Outgoing>) {
        let begun = Instant::now();
        let (client, file) = (self.client, self.name);
        let mac = self.notes.peers.mac(client.ip());
        let mac = mac.as_ref().map(tracing::field::display);
        let ended = self.transfer(first, begun).await;
        // 8 is how RFC 2347 ends a negotiation: firmware asks for the size first and comes back.
        if let Ok(Some(Failure::Client(code))) = ended {
            return tracing::debug!(%client, file, code, "TFTP: client ended the transfer");
        }
        let Some(left_out) = self.notes.steps.say(client.ip()) else {
            return;
        };
        let left_out = (left_out > 0).then_some(left_out);
        let (bytes, ms) = (self.transfer.size(), begun.elapsed().as_millis());
        match ended {
            Ok(None) => {
                tracing::info!(step = "tftp", mac, %client, file, bytes, ms, left_out, "boot step");
            }
            ref ended if is_gone(ended) && self.transfer.is_all_sent() => {
                let confirmed = false;
                tracing::info!(step = "tftp", mac, %client, file, bytes, confirmed, left_out, "boot step");
            }
            Ok(Some(Failure::Slow)) => {
                tracing::warn!(
                    mac, %client, file, ms, left_out,
                    "TFTP: transfer ended, because the client is too slow; others need its place"
                );
            }
            Ok(Some(_)) => {
                tracing::warn!(mac, %client, file, ms, left_out, "TFTP: client stopped answering");
            }
            Err(error) => tracing::warn!(mac, %client, file, %error, left_out, "TFTP: transfer aborted"),
        }
    }

    async fn transfer(&mut self, first: Vec<Outgoing>, begun: Instant) -> io::Result<Option<Failure>> {
        let socket = UdpSocket::bind(SocketAddr::new(self.server, 0)).await?;
        // From now on the kernel drops what others send to this port.
        socket.connect(self.client).await?;
        let mut step = Step::Send(first);
        let mut until = Instant::now();
        // Left alone while answers come in time: to set a timer for each block costs as much as to look it up.
        let timer = sleep_until(until);
        tokio::pin!(timer);
        let mut packet = Vec::new();
        // The largest reply worth reading is an ERROR, of which only the code counts.
        let mut buffer = [0; 64];
        loop {
            match step {
                Step::Send(ref outgoing) => {
                    for one in outgoing {
                        self.transfer.encode(*one, &mut packet);
                        send(&socket, &packet).await?;
                    }
                    until = Instant::now() + self.transfer.wait();
                    if until < timer.deadline() || timer.is_elapsed() {
                        timer.as_mut().reset(until);
                    }
                }
                Step::Ignore => {}
                Step::Done => return Ok(None),
                Step::Failed(failure) => {
                    if failure == Failure::Slow {
                        let told = packet::error(Code::NotDefined, "the transfer takes too long");
                        // It is over, whether or not that arrives.
                        let _ = send(&socket, &told).await;
                    }
                    return Ok(Some(failure));
                }
            }
            let next = tokio::select! {
                biased;
                received = socket.recv(&mut buffer) => match Reply::parse(&buffer[..received?]) {
                    Some(reply) => {
                        self.answered.store(true, Ordering::Relaxed);
                        self.transfer.on_reply(reply)
                    }
                    None => Step::Ignore,
                },
                () = &mut timer => {
                    if Instant::now() < until {
                        timer.as_mut().reset(until);
                        Step::Ignore
                    } else {
                        self.transfer.on_timeout()
                    }
                }
            };
            step = within(next, begun.elapsed());
        }
    }
}

/// True if the client is not there any more.
fn is_gone(ended: &io::Result<Option<Failure>>) -> bool {
    match ended {
        Ok(failure) => *failure == Some(Failure::Silent),
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    }
}

/// Sends one packet. What a full queue or a changing route swallows counts as lost; a client that has closed its port is gone.
async fn send(socket: &UdpSocket, packet: &[u8]) -> io::Result<()> {
    match socket.send(packet).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
