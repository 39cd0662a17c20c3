use std::{
    fs::File,
    io::Write,
    net::Ipv4Addr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

use super::{
    body::{Body, Segment},
    response::{Kind, Step},
    *,
};
use crate::{bind::connect_from, log::said::Said};

/// A site of one file, partly in memory and partly on disk, at `/file`, and of anything that a test adds.
#[derive(Debug, Default)]
struct Fixed {
    answered: AtomicUsize,
    file: Mutex<Body>,
}

impl Answer for Arc<Fixed> {
    async fn answer(&self, target: &str, _: Ends) -> Response {
        self.answered.fetch_add(1, Ordering::Relaxed);
        let step = Step {
            what: "kernel",
            mac: None,
            segment: None,
        };
        match target {
            "/file" => Response::ok(Kind::Binary, self.file.lock().unwrap().clone(), step),
            "/small" => Response::ok(Kind::Text, Body::of("small"), step),
            _ => Response::error(Status::NotFound, "there is no such file"),
        }
    }
}

fn contents() -> Vec<u8> {
    (0..3_000_000_u32)
        .map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1] ^ at.to_le_bytes()[2])
        .collect()
}

/// [`contents`], its first 1000 and last 7 bytes in memory and the others on disk.
fn body() -> Body {
    let all = contents();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"before").unwrap();
    file.write_all(&all[1000..all.len() - 7]).unwrap();
    let len = (all.len() - 1007) as u64;
    Body::of(all[..1000].to_vec())
        .with(Segment::File {
            file: Arc::new(file),
            offset: 6,
            len,
        })
        .with(Segment::Bytes(all[all.len() - 7..].to_vec().into()))
}

/// Serves [`body`] on a port of its own until the test ends.
async fn serve(limits: Limits) -> (SocketAddr, Arc<Fixed>) {
    serve_file(limits, body()).await
}

async fn serve_file(limits: Limits, file: Body) -> (SocketAddr, Arc<Fixed>) {
    serve_counted(limits, file, Metrics::default())
}

fn serve_counted(limits: Limits, file: Body, metrics: Metrics) -> (SocketAddr, Arc<Fixed>) {
    let site = Arc::new(Fixed {
        file: Mutex::new(file),
        ..Fixed::default()
    });
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let shared = Arc::new(Shared::new(
        Arc::clone(&site),
        limits,
        Peers::default(),
        metrics,
        Workers::here(),
    ));
    tokio::spawn(accept(listener, shared));
    (address, site)
}

/// Reads one response, with its body if `with_body`.
async fn read(stream: &mut TcpStream, with_body: bool) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a whole head"));
    }
    let head = String::from_utf8(head).unwrap();
    let mut body = vec![0; if with_body { length(&head) } else { 0 }];
    stream.read_exact(&mut body).await.expect("a whole body");
    (head, body)
}

fn length(head: &str) -> usize {
    let (_, rest) = head
        .split_once("\r\nContent-Length: ")
        .expect("every response has a length");
    rest.split_once("\r\n").unwrap().0.parse().unwrap()
}

async fn ask(stream: &mut TcpStream, method: &str, target: &str, fields: &str) -> (String, Vec<u8>) {
    let request = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    read(stream, method != "HEAD").await
}

/// What the server says before it closes.
async fn to_the_end(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.expect("closed in peace");
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn a_file_arrives_whole_and_in_parts_on_one_connection() {
    let (address, _) = serve(Limits::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let all = contents();
    let (head, whole) = ask(&mut stream, "GET", "/file", "").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(whole == all);
    let (head, _) = ask(&mut stream, "HEAD", "/file", "Range: bytes=1-2\r\n").await;
    assert_eq!(length(&head), all.len());
    let mut spliced = Vec::new();
    for range in ["0-999", "1000-1000", "1001-2999995", "2999996-"] {
        let (head, part) = ask(&mut stream, "GET", "/file", &format!("Range: bytes={range}\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
        spliced.extend(part);
    }
    assert!(spliced == all);
    let (head, _) = ask(&mut stream, "GET", "/file", "Range: bytes=3000000-\r\n").await;
    assert!(head.starts_with("HTTP/1.1 416 ") && head.contains("Content-Range: bytes */3000000\r\n"));
}

#[tokio::test]
async fn requests_sent_at_once_are_answered_in_order() {
    let (address, _) = serve(Limits::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let one = "GET /small HTTP/1.1\r\nHost: h\r\n\r\n";
    let last = "GET /small HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    stream
        .write_all(format!("{one}{one}{last}").as_bytes())
        .await
        .unwrap();
    let all = to_the_end(&mut stream).await;
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 3);
    assert!(all.ends_with("small"));
}

#[tokio::test]
async fn what_is_not_served_gets_its_status_and_the_connection_ends() {
    for (request, status) in [
        ("GET /../../etc/passwd HTTP/1.1\r\nHost: h\r\n\r\n", "404"),
        ("POST /small HTTP/1.1\r\nHost: h\r\n\r\n", "405"),
        (
            "PUT /small HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
            "400",
        ),
        ("nonsense\r\n\r\n", "400"),
        (
            &format!(
                "GET /small HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n",
                "a".repeat(9000)
            ),
            "431",
        ),
    ] {
        let (address, _) = serve(Limits::default()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = to_the_end(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_in_is_cut_off() {
    let (address, site) = serve(Limits::default()).await;
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    for byte in b"GET /small HTTP/1.1\r\nHost:" {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let answer = to_the_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(
        (10..13).contains(&begun.elapsed().as_secs()),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(site.answered.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_is_closed() {
    let (address, _) = serve(Limits::default()).await;
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert_eq!(to_the_end(&mut stream).await, "");
    assert_eq!(begun.elapsed().as_secs(), 10);
    let mut stream = TcpStream::connect(address).await.unwrap();
    ask(&mut stream, "GET", "/small", "").await;
    let begun = Instant::now();
    assert_eq!(to_the_end(&mut stream).await, "");
    assert_eq!(begun.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_dropped() {
    let (address, site) = serve(Limits {
        connections: 1,
        ..Limits::default()
    })
    .await;
    // More than both sockets' buffers hold.
    let large = tempfile::tempfile().unwrap();
    large.set_len(1 << 30).unwrap();
    *site.file.lock().unwrap() = Body::default().with(Segment::File {
        file: Arc::new(large),
        offset: 0,
        len: 1 << 30,
    });
    let mut stalled = TcpStream::connect(address).await.unwrap();
    stalled
        .write_all(b"GET /file HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    // The only place is taken until the stalled client loses it.
    let begun = Instant::now();
    let mut next = TcpStream::connect(address).await.unwrap();
    let (head, _) = ask(&mut next, "GET", "/small", "").await;
    assert!(head.starts_with("HTTP/1.1 200 "));
    assert!(
        (30..40).contains(&begun.elapsed().as_secs()),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn one_address_cannot_hold_every_connection() {
    let (address, _) = serve(Limits {
        each: 2,
        ..Limits::default()
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        ask(&mut stream, "GET", "/small", "").await;
        held.push(stream);
    }
    let mut third = TcpStream::connect(address).await.unwrap();
    let answer = to_the_end(&mut third).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(held);
    let again = async {
        loop {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = b"GET /small HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
            if stream.write_all(request).await.is_err() {
                continue;
            }
            let mut all = Vec::new();
            // A reset is what a client gets that sends while it is turned away.
            if stream.read_to_end(&mut all).await.is_ok() && all.starts_with(b"HTTP/1.1 200 ") {
                break;
            }
        }
    };
    timeout(Duration::from_secs(20), again)
        .await
        .expect("places are given back");
}

#[tokio::test]
async fn who_is_turned_away_is_told_once_and_counted() {
    let said = Said::listen();
    let metrics = Metrics::default();
    let limits = Limits {
        each: 1,
        ..Limits::default()
    };
    let (address, _) = serve_counted(limits, body(), metrics.clone());
    let mut held = connect_from(2, address).await;
    ask(&mut held, "GET", "/small", "").await;
    for _ in 0..20 {
        let mut more = connect_from(2, address).await;
        assert!(to_the_end(&mut more).await.starts_with("HTTP/1.1 503 "));
    }
    assert_eq!((metrics.turned_away.get(), metrics.connections.get()), (20, 1));
    let refused = ["WARN", "HTTP: this address has 1 connections", "client=127.0.0.2"];
    assert_eq!(said.count(&refused), 1, "{}", said.text());
    drop(held);
    let ended = async {
        while metrics.connections.get() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), ended)
        .await
        .expect("a connection that ended is not counted");
}

#[tokio::test]
async fn a_full_port_is_told_with_those_who_hold_it() {
    let said = Said::listen();
    let (address, _) = serve(Limits {
        connections: 3,
        // They say nothing, and keep their places.
        head: Duration::from_secs(60),
        ..Limits::default()
    })
    .await;
    let mut held = Vec::new();
    for last in [2, 3, 2] {
        held.push(connect_from(last, address).await);
    }
    said.until(&["WARN", "HTTP: all 3 places", "127.0.0.2 (2), 127.0.0.3 (1)"])
        .await;
}

#[tokio::test]
async fn parts_without_end_are_few_lines_and_hide_no_other_machine() {
    let said = Said::listen();
    let (address, _) = serve(Limits::default()).await;
    let mut stream = connect_from(2, address).await;
    for _ in 0..300 {
        let (head, _) = ask(&mut stream, "GET", "/file", "Range: bytes=7-7\r\n").await;
        assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
    }
    let mut other = connect_from(3, address).await;
    ask(&mut other, "GET", "/small", "").await;
    said.until(&["boot step", "step=\"kernel\"", "client=127.0.0.3:", "bytes=5"])
        .await;
    // Thirty at once and then one in ten seconds, if this test takes so long.
    let lines = said.count(&["boot step", "client=127.0.0.2:"]);
    assert!((30..=40).contains(&lines), "{lines} lines");
}

#[tokio::test]
async fn who_finds_no_place_waits_and_is_served() {
    let (address, site) = serve(Limits {
        connections: 2,
        ..Limits::default()
    })
    .await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let (_, body) = ask(&mut stream, "GET", "/small", "").await;
            assert_eq!(body, b"small");
        }));
    }
    for client in clients {
        timeout(Duration::from_secs(20), client)
            .await
            .expect("served")
            .unwrap();
    }
    assert_eq!(site.answered.load(Ordering::Relaxed), 20);
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_sent_ends_the_connection() {
    let (address, site) = serve(Limits::default()).await;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&contents()).unwrap();
    let shrinking: File = file.try_clone().unwrap();
    let len = contents().len() as u64;
    *site.file.lock().unwrap() = Body::default().with(Segment::File {
        file: Arc::new(file),
        offset: 0,
        len,
    });
    shrinking.set_len(1000).unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET /file HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let mut all = Vec::new();
    // Fewer bytes than announced, and then the end: no client takes that for the whole file.
    stream.read_to_end(&mut all).await.unwrap();
    assert!(all.len() < 2000);
    let mut next = TcpStream::connect(address).await.unwrap();
    let (head, _) = ask(&mut next, "GET", "/small", "").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "the server goes on");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever arrives, torn up however, the server answers with whole responses and then closes.
    #[test]
    fn any_bytes_end_in_peace(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            "((GET|HEAD|PUT) /(small|file|x|\\.\\./) HTTP/1\\.[019]\r\n(Host: h\r\n)?(Range: bytes=[0-9,-]{0,9}\r\n)?\r\n){0,3}"
                .prop_map(String::into_bytes),
        ],
        cut in 1_usize..50,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (address, _) = serve_file(Limits::default(), Body::of("file")).await;
            let (mut input, mut output) = TcpStream::connect(address).await.unwrap().into_split();
            let writing = tokio::spawn(async move {
                for piece in bytes.chunks(cut) {
                    if output.write_all(piece).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            });
            let mut all = Vec::new();
            let reading = timeout(Duration::from_secs(20), input.read_to_end(&mut all)).await;
            let _ = writing.await;
            let reading = reading.expect("the connection ends");
            assert!(reading.is_err() || all.is_empty() || all.starts_with(b"HTTP/1.1 "));
        });
    }
}
