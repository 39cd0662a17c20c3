//! Serving on a changing set of addresses: one task for each, begun and ended as the set changes.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use muster_proto::Chain;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

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
const AGAIN: Duration = Duration::from_secs(2);

/// Runs `serve` for each of `addresses` as long as it is in the set, and again after each failure. `what` is for the log.
/// Does not return; dropping it ends every task.
pub async fn on_each<Serve, Serving, Error>(
    what: &'static str,
    mut addresses: watch::Receiver<Addresses>,
    serve: Serve,
) where
    Serve: Fn(IpAddr) -> Serving + Clone + Send + 'static,
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
                tracing::info!(%address, "{what}: no longer served here");
                task.abort();
            }
            keep
        });
        for address in wanted {
            running
                .entry(address)
                .or_insert_with(|| tasks.spawn(keep_serving(what, address, serve.clone())));
        }
        while tasks.try_join_next().is_some() {}
        if addresses.changed().await.is_err() {
            // Whoever knew the addresses is gone; the last word of theirs holds.
            std::future::pending::<()>().await;
        }
    }
}

async fn keep_serving<Serve, Serving, Error>(what: &'static str, address: IpAddr, serve: Serve)
where
    Serve: Fn(IpAddr) -> Serving,
    Serving: Future<Output = Error>,
    Error: std::error::Error + Send + 'static,
{
    let mut said = String::new();
    loop {
        let error = serve(address).await;
        let say = Chain(&error).to_string();
        if say != said {
            tracing::warn!(%address, error = %say, "{what}: cannot serve, trying again every {} s", AGAIN.as_secs());
            said = say;
        }
        sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_address_is_served_while_it_is_wanted_and_again_after_a_failure() {
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let (tell, addresses) = watch::channel(Addresses::from([one]));
        let begun = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&begun);
        let serving = tokio::spawn(on_each("test", addresses, move |address| {
            log.lock().unwrap().push(address);
            async {
                sleep(Duration::from_secs(60)).await;
                io::Error::other("ended")
            }
        }));
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
