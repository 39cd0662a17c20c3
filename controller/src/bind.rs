//! Serving on a changing set of addresses: one task for each, begun and ended as the set changes; and which ports cannot be opened.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use muster_proto::Chain;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use crate::sync::lock;

/// The addresses to serve on.
pub type Addresses = BTreeSet<IpAddr>;

/// The most bytes of payload in a TCP segment, to us and from us: what goes through a path of 1400 bytes (RFC 9293, 3.7.1, less
/// 40 bytes of headers). A path narrower than Ethernet whose routers do not say so swallows larger ones without a word, and
/// firmware has no way to find that out.
const SEGMENT: u32 = 1360;

/// Listens on `address`; `backlog` connections may wait to be accepted.
pub fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket2::SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

/// How long to wait after a failure. An interface whose address is not there yet is the common case.
pub const AGAIN: Duration = Duration::from_secs(2);

/// A port on which a service listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    number: u16,
    protocol: &'static str,
    service: &'static str,
}

impl Port {
    /// One of TCP; `service` is for people and the log.
    pub fn tcp(service: &'static str, number: u16) -> Port {
        Port {
            number,
            protocol: "TCP",
            service,
        }
    }

    /// One of UDP.
    pub fn udp(service: &'static str, number: u16) -> Port {
        Port {
            number,
            protocol: "UDP",
            service,
        }
    }
}

/// A port that is to be open and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedPort {
    /// True if another program has it.
    pub is_taken: bool,
    /// Which, and why; the same as long as the cause is.
    pub message: String,
}

impl ClosedPort {
    fn of(address: IpAddr, port: Port, error: &io::Error) -> ClosedPort {
        let Port {
            number,
            protocol,
            service,
        } = port;
        let is_taken = error.kind() == io::ErrorKind::AddrInUse;
        let cause = if is_taken {
            "is in use by another program".to_owned()
        } else {
            format!("cannot be opened: {}", Chain(error))
        };
        ClosedPort {
            is_taken,
            message: format!("{protocol} port {number} on {address} ({service}) {cause}"),
        }
    }
}

/// The ports that could not be opened when they were tried last: whoever opens them writes it, and who tells people reads it.
#[derive(Clone, Debug, Default)]
pub struct ClosedPorts(Arc<Mutex<BTreeMap<(IpAddr, Port), ClosedPort>>>);

impl ClosedPorts {
    /// Those on `addresses`, always in the same order.
    pub fn on(&self, addresses: &Addresses) -> Vec<ClosedPort> {
        self.lock()
            .iter()
            .filter(|((address, _), _)| addresses.contains(address))
            .map(|(_, closed)| closed.clone())
            .collect()
    }

    /// What is known of `port` on `address`, until it is dropped.
    pub(crate) fn entry(&self, address: IpAddr, port: Port) -> Entry {
        Entry {
            closed_ports: self.clone(),
            address,
            port,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(IpAddr, Port), ClosedPort>> {
        lock(&self.0)
    }
}

/// The place of one port among the [`ClosedPorts`].
#[derive(Debug)]
pub(crate) struct Entry {
    closed_ports: ClosedPorts,
    address: IpAddr,
    port: Port,
}

impl Entry {
    /// It could not be opened; gives the words for it.
    pub(crate) fn failed(&self, error: &io::Error) -> String {
        let closed = ClosedPort::of(self.address, self.port, error);
        let message = closed.message.clone();
        self.closed_ports.lock().insert((self.address, self.port), closed);
        message
    }

    /// It is open.
    pub(crate) fn opened(&self) {
        self.closed_ports.lock().remove(&(self.address, self.port));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Nobody wants it any more.
        self.opened();
    }
}

/// Opens `port` on each of `addresses` and runs `serve` with it as long as the address is in the set, and again after each failure;
/// what cannot be opened stands in `closed_ports`. Does not return; dropping it ends every task.
pub async fn serve_on_each<Open, Opened, Serve, Serving, Error>(
    port: Port,
    mut addresses: watch::Receiver<Addresses>,
    closed_ports: ClosedPorts,
    open: Open,
    serve: Serve,
) where
    Open: Fn(SocketAddr) -> io::Result<Opened> + Clone + Send + 'static,
    Opened: Send + 'static,
    Serve: Fn(Opened) -> Serving + Clone + Send + 'static,
    Serving: Future<Output = Error> + Send + 'static,
    Error: std::error::Error + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut running: HashMap<IpAddr, AbortHandle> = HashMap::new();
    loop {
        let wanted = addresses.borrow_and_update().clone();
        running.retain(|address, task| {
            let keep = wanted.contains(address);
            if !keep {
                tracing::info!(%address, "{}: no longer served here", port.service);
                task.abort();
            }
            keep
        });
        for address in wanted {
            running.entry(address).or_insert_with(|| {
                let entry = closed_ports.entry(address, port);
                tasks.spawn(keep_serving(entry, open.clone(), serve.clone()))
            });
        }
        while tasks.try_join_next().is_some() {}
        if addresses.changed().await.is_err() {
            // Whoever knew the addresses is gone; the last word of theirs holds.
            std::future::pending::<()>().await;
        }
    }
}

async fn keep_serving<Open, Opened, Serve, Serving, Error>(entry: Entry, open: Open, serve: Serve)
where
    Open: Fn(SocketAddr) -> io::Result<Opened>,
    Serve: Fn(Opened) -> Serving,
    Serving: Future<Output = Error>,
    Error: std::error::Error + Send + 'static,
{
    let (address, port) = (entry.address, entry.port);
    let mut said = String::new();
    loop {
        let say = match open(SocketAddr::new(address, port.number)) {
            Ok(opened) => {
                entry.opened();
                let error = serve(opened).await;
                Chain(&error).to_string()
            }
            Err(error) => entry.failed(&error),
        };
        if say != said {
            let (service, every) = (port.service, AGAIN.as_secs());
            tracing::warn!(%address, error = %say, "{service}: cannot serve, trying again every {every} s");
            said = say;
        }
        sleep(AGAIN).await;
    }
}

/// A connection to `address` from the address 127.0.0.`last`, for tests about what one client may take.
#[cfg(test)]
pub(crate) async fn connect_from(last: u8, address: SocketAddr) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, last], 0).into()).unwrap();
    socket.connect(address).await.unwrap()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_address_is_served_while_it_is_wanted_and_again_after_a_failure() {
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let (tell, addresses) = watch::channel(Addresses::from([one]));
        let begun = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&begun);
        let open = move |address: SocketAddr| {
            log.lock().unwrap().push(address.ip());
            Ok(())
        };
        let serve = |()| async {
            sleep(Duration::from_secs(60)).await;
            io::Error::other("ended")
        };
        let port = Port::tcp("test", 1);
        let serving = tokio::spawn(serve_on_each(
            port,
            addresses,
            ClosedPorts::default(),
            open,
            serve,
        ));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(*begun.lock().unwrap(), [one]);
        tell.send_replace(Addresses::from([other]));
        sleep(Duration::from_secs(70)).await;
        assert_eq!(
            *begun.lock().unwrap(),
            [one, other, other],
            "the first ended, the second began again"
        );
        serving.abort();
        let _ = serving.await;
        assert_eq!(Arc::strong_count(&begun), 1, "nothing runs on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_another_program_has_is_known_until_it_is_open_or_wanted_no_more() {
        let squat = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let squatter = squat();
        let taken = squatter.local_addr().unwrap();
        let here = Addresses::from([taken.ip()]);
        let elsewhere = Addresses::from([IpAddr::from([127, 0, 0, 2])]);
        let (tell, addresses) = watch::channel(here.clone());
        let closed_ports = ClosedPorts::default();
        let port = Port::tcp("test", taken.port());
        let (end, ended) = watch::channel(false);
        let open = |address| listen(address, 1);
        let serve = move |listener: TcpListener| {
            let mut ended = ended.clone();
            async move {
                let _listener = listener;
                let _ = ended.wait_for(|ended| *ended).await;
                io::Error::other("ended")
            }
        };
        let serving = tokio::spawn(serve_on_each(port, addresses, closed_ports.clone(), open, serve));
        let closed = [ClosedPort {
            is_taken: true,
            message: format!(
                "TCP port {} on 127.0.0.1 (test) is in use by another program",
                taken.port()
            ),
        }];
        for _ in 0..3 {
            sleep(AGAIN).await;
            assert_eq!(closed_ports.on(&here), closed, "also while it is tried again");
        }
        assert!(closed_ports.on(&elsewhere).is_empty());
        drop(squatter);
        sleep(2 * AGAIN).await;
        assert!(closed_ports.on(&here).is_empty());

        // What ends while it is served was open.
        end.send_replace(true);
        sleep(AGAIN / 2).await;
        assert!(closed_ports.on(&here).is_empty());
        serving.abort();
        let _ = serving.await;

        let squatter = squat();
        let port = Port::tcp("test", squatter.local_addr().unwrap().port());
        let addresses = tell.subscribe();
        let serve = |_: TcpListener| std::future::pending::<io::Error>();
        let serving = tokio::spawn(serve_on_each(port, addresses, closed_ports.clone(), open, serve));
        sleep(AGAIN).await;
        assert_eq!(closed_ports.on(&here).len(), 1);
        tell.send_replace(Addresses::new());
        sleep(AGAIN).await;
        assert!(closed_ports.on(&here).is_empty(), "wanted no more");
        serving.abort();
    }

    #[test]
    fn a_port_that_cannot_be_opened_for_another_reason_says_which() {
        let closed_ports = ClosedPorts::default();
        let address = IpAddr::from([10, 0, 0, 1]);
        let entry = closed_ports.entry(address, Port::udp("TFTP", 69));
        entry.failed(&io::Error::from_raw_os_error(nix::libc::EACCES));
        let closed = closed_ports.on(&Addresses::from([address]));
        assert_eq!(
            closed,
            [ClosedPort {
                is_taken: false,
                message: "UDP port 69 on 10.0.0.1 (TFTP) cannot be opened: Permission denied (os error 13)"
                    .to_owned(),
            }]
        );
    }

    #[tokio::test]
    async fn segments_go_through_a_narrow_path_both_ways() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        for end in [&client, &server] {
            let mss = socket2::SockRef::from(end).tcp_mss().unwrap();
            assert!(mss <= SEGMENT, "{mss}: loopback would take 65,495 bytes");
        }
    }
}
