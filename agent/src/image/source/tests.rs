use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivatePkcs8KeyDer};

use super::*;
use crate::{clock::Clock, net::dns::NameServers, sys::tree::Tree};

/// What a server does with one connection, of which it reads one request.
enum Answer {
    /// Sends these bytes and closes.
    Bytes(Vec<u8>),
    /// Sends these bytes and then nothing.
    Hang(Vec<u8>),
}

/// A server that follows a script and is gone when that ends.
struct Server {
    url: String,
    thread: JoinHandle<Vec<String>>,
}

impl Server {
    fn new(tls: Option<Arc<ServerConfig>>, answers: Vec<Answer>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/images/a.raw?key=1", listener.local_addr().unwrap());
        let thread = thread::spawn(move || {
            let mut requests = Vec::new();
            for answer in answers {
                let (stream, _) = listener.accept().unwrap();
                match &tls {
                    None => requests.extend(serve(stream, answer)),
                    Some(tls) => {
                        let connection = ServerConnection::new(Arc::clone(tls)).unwrap();
                        requests.extend(serve(StreamOwned::new(connection, stream), answer));
                    }
                }
            }
            requests
        });
        Server { url, thread }
    }

    fn plain(answers: Vec<Answer>) -> Server {
        Server::new(None, answers)
    }

    /// The requests that came, once the script has ended.
    fn requests(self) -> Vec<String> {
        self.thread.join().unwrap()
    }
}

/// The request, if there was a whole one.
fn serve(mut stream: impl Read + Write, answer: Answer) -> Option<String> {
    let mut head = String::new();
    let mut reader = BufReader::new(&mut stream);
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    // The client may have gone.
    match answer {
        Answer::Bytes(bytes) => _ = stream.write_all(&bytes).and_then(|()| stream.flush()),
        Answer::Hang(bytes) => {
            _ = stream.write_all(&bytes).and_then(|()| stream.flush());
            // Until the client closes.
            _ = stream.read(&mut [0]);
        }
    }
    Some(head.to_lowercase())
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {status}\r\n{headers}\r\n").as_bytes(), body].concat()
}

/// Sends the client elsewhere.
fn to(location: &str) -> Answer {
    let headers = format!("Location: {location}\r\nContent-Length: 0\r\n");
    Answer::Bytes(answer("302 Found", &headers, b""))
}

/// The file from `start` on, up to `end`, announced to its end.
fn part(file: &[u8], start: usize, end: usize, extra: &str) -> Vec<u8> {
    let total = file.len();
    let length = total - start;
    if start == 0 {
        return answer(
            "200 OK",
            &format!("Content-Length: {length}\r\n{extra}"),
            &file[..end],
        );
    }
    let range = format!(
        "Content-Range: bytes {start}-{}/{total}\r\nContent-Length: {length}\r\n{extra}",
        total - 1
    );
    answer("206 Partial Content", &range, &file[start..end])
}

/// Refuses a range that begins where a file of `total` bytes ends, or behind it.
fn nothing_behind(total: usize, extra: &str) -> Vec<u8> {
    let headers = format!("Content-Range: bytes */{total}\r\nContent-Length: 0\r\n{extra}");
    answer("416 Range Not Satisfiable", &headers, b"")
}

fn file() -> Vec<u8> {
    (0..200_000_u32)
        .map(|at| at.to_le_bytes()[usize::try_from(at % 3).unwrap()])
        .collect()
}

fn environment(tree: &Tree) -> Environment {
    Environment {
        root: tree.root(),
        clock: Clock::told(1_800_000_000),
        name_servers: NameServers::new(Vec::new),
        proxy: None,
    }
}

/// Much patience, so that a busy machine does not spoil a test; `stall` only where one is played.
fn patience() -> Patience {
    Patience {
        tries: 5,
        outage: Duration::ZERO,
        ..Patience::default()
    }
}

fn get_all(url: &str, environment: &Environment, patience: Patience) -> Result<Vec<u8>, SourceError> {
    get_small(url, 10 << 20, environment, patience, &Work::unwatched())
}

fn plain(url: &str) -> Result<Vec<u8>, SourceError> {
    get_all(url, &environment(&Tree::new()), patience())
}

#[test]
fn a_file_comes_whole() {
    let file = file();
    let server = Server::plain(vec![Answer::Bytes(part(&file, 0, file.len(), ""))]);
    assert!(plain(&server.url).unwrap() == file);
    let requests = server.requests();
    assert!(
        requests[0].starts_with("get /images/a.raw?key=1 http/1.1\r\n"),
        "{requests:?}"
    );
    assert!(requests[0].contains("\r\nhost: 127.0.0.1:"));
    assert!(!requests[0].contains("range"));
}

/// A name server that answers with the addresses 127.0.0.x, these x each time, and with the last of them from then on.
fn name_server(mut answers: Vec<Vec<u8>>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut query = [0; 300];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            let now = answers[0].clone();
            if answers.len() > 1 {
                answers.remove(0);
            }
            let mut told = query[..length].to_vec();
            told[2] |= 0x80;
            told[7] = u8::try_from(now.len()).unwrap();
            for last in now {
                // Of the name that was asked for, an address for a minute.
                told.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, last]);
            }
            socket.send_to(&told, from).unwrap();
        }
    });
    at
}

#[test]
fn of_several_addresses_the_one_that_answers_is_taken_and_kept() {
    let file = file();
    let tag = "ETag: \"v1\"\r\n";
    let server = Server::plain(vec![
        Answer::Bytes(part(&file, 0, 70_000, tag)),
        Answer::Bytes(part(&file, 70_000, file.len(), tag)),
    ]);
    let url = server.url.replace("127.0.0.1", "images.example");
    let port = Url::parse(&server.url).unwrap().port;
    // Nobody listens at the third, and of the fourth and fifth nothing comes; the second would be asked first from then on.
    let at_of = |last| TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), port)).unwrap();
    let other = at_of(2);
    other.set_nonblocking(true).unwrap();
    for (last, head) in [
        (4, b"" as &[u8]),
        (5, b"HTTP/1.1 200 OK\r\nETag: \"v2\"\r\nContent-Length: 9\r\n\r\n"),
    ] {
        let barren = at_of(last);
        thread::spawn(move || {
            for mut stream in barren.incoming().map(Result::unwrap) {
                _ = stream.write_all(head);
            }
        });
    }
    let all = vec![3, 4, 5, 1];
    let at = name_server(vec![all.clone(), all.clone(), all, vec![2, 3, 1]]);
    let tree = Tree::new();
    let environment = Environment {
        name_servers: NameServers::new(move || vec![at]),
        ..environment(&tree)
    };
    assert!(get_all(&url, &environment, patience()).unwrap() == file);
    assert!(other.accept().is_err(), "it was asked though another one served");
}

#[test]
fn the_name_servers_of_the_moment_are_asked() {
    let server = Server::plain(vec![Answer::Bytes(answer("200 OK", "", &file()))]);
    let at = name_server(vec![vec![1]]);
    let tree = Tree::new();
    let is_leased = AtomicBool::new(false);
    let environment = Environment {
        // There is no lease when it begins.
        name_servers: NameServers::new(move || {
            let known = is_leased.swap(true, Ordering::Relaxed);
            known.then_some(at).into_iter().collect()
        }),
        ..environment(&tree)
    };
    let url = server.url.replace("127.0.0.1", "images.example");
    assert_eq!(get_all(&url, &environment, patience()).unwrap(), file());
}

#[test]
fn a_broken_connection_goes_on_where_it_ended() {
    let file = file();
    let tag = "ETag: \"v1\"\r\n";
    let server = Server::plain(vec![
        Answer::Bytes(part(&file, 0, 70_000, tag)),
        Answer::Bytes(Vec::new()),
        Answer::Bytes(part(&file, 70_000, 150_000, tag)),
        Answer::Bytes(part(&file, 150_000, file.len(), tag)),
    ]);
    assert!(plain(&server.url).unwrap() == file);
    let requests = server.requests();
    for (request, range) in requests[1..].iter().zip(["70000-", "70000-", "150000-"]) {
        assert!(
            request.contains(&format!("\r\nrange: bytes={range}\r\n")),
            "{request}"
        );
        assert!(request.contains("\r\nif-range: \"v1\"\r\n"), "{request}");
    }
}

#[test]
fn a_server_without_ranges_sends_all_again_and_nothing_is_taken_twice() {
    let file = file();
    let server = Server::plain(vec![
        Answer::Bytes(part(&file, 0, 70_000, "")),
        Answer::Bytes(part(&file, 0, 50_000, "")),
        Answer::Bytes(part(&file, 0, file.len(), "")),
    ]);
    assert!(plain(&server.url).unwrap() == file);
}

#[test]
fn a_file_that_changed_meanwhile_is_not_mixed() {
    let file = file();
    let tagged = |tag: &str| format!("ETag: \"{tag}\"\r\n");
    let broken = || Answer::Bytes(part(&file, 0, 70_000, &tagged("v1")));
    let longer = [file.clone(), vec![1]].concat();
    for second in [
        part(&file, 0, file.len(), &tagged("v2")),
        part(&file, 70_000, file.len(), &tagged("v2")),
        part(&longer, 70_000, longer.len(), &tagged("v1")),
        part(&file, 80_000, file.len(), &tagged("v1")),
        answer("416 Range Not Satisfiable", "Content-Length: 0\r\n", b""),
        nothing_behind(70_000, ""),
    ] {
        let server = Server::plain(vec![broken(), Answer::Bytes(second)]);
        let refused = plain(&server.url);
        assert!(
            matches!(refused, Err(SourceError::Changed { at: 70_000, .. })),
            "{refused:?}"
        );
        server.requests();
    }
}

#[test]
fn a_file_of_unknown_length_whose_connection_breaks_behind_its_end_is_whole() {
    let file = file();
    let length = file.len();
    let broken = || {
        let size = format!("{length:x}\r\n");
        let chunk = [size.as_bytes(), &file, b"\r\n"].concat();
        let headers = "Transfer-Encoding: chunked\r\nETag: \"v1\"\r\n";
        Answer::Bytes(answer("200 OK", headers, &chunk))
    };
    for extra in ["", "ETag: \"v1\"\r\n"] {
        let end = Answer::Bytes(nothing_behind(length, extra));
        let server = Server::plain(vec![broken(), end]);
        assert!(plain(&server.url).unwrap() == file);
        let request = &server.requests()[1];
        let range = format!("\r\nrange: bytes={length}-\r\n");
        assert!(request.contains(&range), "{request}");
    }
    for other in [
        nothing_behind(length - 1, ""),
        nothing_behind(length + 1, ""),
        nothing_behind(length, "ETag: \"v2\"\r\n"),
    ] {
        let server = Server::plain(vec![broken(), Answer::Bytes(other)]);
        let refused = plain(&server.url);
        assert!(
            matches!(refused, Err(SourceError::Changed { at: 200_000, .. })),
            "{refused:?}"
        );
        server.requests();
    }
}

#[test]
fn a_server_that_falls_silent_is_left_and_asked_again() {
    let file = file();
    let server = Server::plain(vec![
        Answer::Hang(part(&file, 0, 70_000, "")),
        Answer::Hang(Vec::new()),
        Answer::Bytes(part(&file, 70_000, file.len(), "")),
    ]);
    let impatient = Patience {
        stall: Duration::from_millis(500),
        ..patience()
    };
    assert!(get_all(&server.url, &environment(&Tree::new()), impatient).unwrap() == file);
}

#[test]
fn a_server_that_sends_too_little_to_come_to_an_end_is_given_up() {
    let file = file();
    let half = || Answer::Hang(part(&file, 0, 70_000, ""));
    let server = Server::plain(vec![half(), half()]);
    let impatient = Patience {
        stall: Duration::from_millis(500),
        pace: Duration::ZERO,
        tries: 2,
        ..patience()
    };
    let refused = get_all(&server.url, &environment(&Tree::new()), impatient);
    let Err(SourceError::GivenUp { source, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(matches!(*source, SourceError::Slow { .. }), "{source:?}");
}

#[test]
fn a_server_that_is_away_for_a_while_is_asked_until_it_is_back() {
    let file = file();
    let mut answers = vec![Answer::Bytes(part(&file, 0, 70_000, ""))];
    answers.extend((0..4).map(|_| Answer::Bytes(Vec::new())));
    answers.push(Answer::Bytes(part(&file, 70_000, file.len(), "")));
    let server = Server::plain(answers);
    let patient = Patience {
        tries: 2,
        outage: Duration::from_secs(120),
        ..patience()
    };
    assert!(get_all(&server.url, &environment(&Tree::new()), patient).unwrap() == file);
}

#[test]
fn tries_are_bounded() {
    let file = file();
    let failing = vec![
        Answer::Bytes(Vec::new()),
        Answer::Bytes(part(&file, 0, 9, "")),
        Answer::Bytes(Vec::new()),
    ];
    let server = Server::plain(failing);
    let few = Patience {
        tries: 2,
        ..patience()
    };
    let refused = get_all(&server.url, &environment(&Tree::new()), few);
    assert!(
        matches!(refused, Err(SourceError::GivenUp { tries: 3, .. })),
        "{refused:?}"
    );
    server.requests();
    let server = Server::plain(vec![
        Answer::Bytes(part(&file, 0, 9, "")),
        Answer::Bytes(part(&file, 9, 10, "")),
    ]);
    let few = Patience {
        tries_in_all: 2,
        ..patience()
    };
    let refused = get_all(&server.url, &environment(&Tree::new()), few);
    assert!(
        matches!(refused, Err(SourceError::GivenUp { tries: 2, .. })),
        "{refused:?}"
    );
}

#[test]
fn what_the_server_refuses_is_not_asked_again_and_what_it_cannot_now_is() {
    let file = file();
    let status = |status: &str| Answer::Bytes(answer(status, "Content-Length: 0\r\n", b""));
    for refusal in [
        "404 Not Found",
        "403 Forbidden",
        "206 Partial Content",
        "304 Not Modified",
    ] {
        let server = Server::plain(vec![status(refusal)]);
        assert!(
            matches!(plain(&server.url), Err(SourceError::Status { .. })),
            "{refusal}"
        );
    }
    let server = Server::plain(vec![
        status("503 Service Unavailable"),
        status("429 Too Many Requests"),
        Answer::Bytes(part(&file, 0, file.len(), "")),
    ]);
    assert!(plain(&server.url).unwrap() == file);
}

#[test]
fn redirects_are_followed_and_end() {
    let file = file();
    let server = Server::plain(vec![
        to("b.raw"),
        to("/c.raw?x"),
        Answer::Bytes(part(&file, 0, file.len(), "")),
    ]);
    assert!(plain(&server.url).unwrap() == file);
    let requests = server.requests();
    let lines: Vec<_> = requests
        .iter()
        .filter_map(|request| request.lines().next())
        .collect();
    assert_eq!(
        lines[1..],
        ["get /images/b.raw http/1.1", "get /c.raw?x http/1.1"]
    );

    let server = Server::plain((0..=MOST_REDIRECTS).map(|_| to("/again")).collect());
    assert!(matches!(plain(&server.url), Err(SourceError::Redirects(_))));
    let server = Server::plain(vec![to("file:///dev/zero")]);
    assert!(matches!(plain(&server.url), Err(SourceError::Url { .. })));
}

#[test]
fn a_download_goes_on_at_the_mirror_that_it_began_at() {
    let file = file();
    let tag = |tag: &str| format!("ETag: \"{tag}\"\r\n");
    let server = Server::plain(vec![
        to("/one/a.raw"),
        Answer::Bytes(part(&file, 0, 70_000, &tag("one"))),
        Answer::Bytes(part(&file, 70_000, 90_000, &tag("one"))),
        // Its signature has ended.
        Answer::Bytes(answer("403 Forbidden", "Content-Length: 0\r\n", b"")),
        to("/one/a.raw?again"),
        Answer::Bytes(part(&file, 90_000, file.len(), &tag("one"))),
    ]);
    assert!(plain(&server.url).unwrap() == file);
    let requests = server.requests();
    let paths: Vec<_> = requests
        .iter()
        .filter_map(|request| request.split(' ').nth(1))
        .collect();
    assert_eq!(
        paths,
        [
            "/images/a.raw?key=1",
            "/one/a.raw",
            "/one/a.raw",
            "/one/a.raw",
            "/images/a.raw?key=1",
            "/one/a.raw?again"
        ]
    );
}

#[test]
fn a_list_of_any_length_is_not_kept() {
    let file = file();
    let announced = Server::plain(vec![Answer::Bytes(part(&file, 0, file.len(), ""))]);
    let unannounced = Server::plain(vec![Answer::Bytes(answer("200 OK", "", &file))]);
    for server in [announced, unannounced] {
        let got = get_small(
            &server.url,
            1000,
            &environment(&Tree::new()),
            patience(),
            &Work::unwatched(),
        );
        assert!(
            matches!(got, Err(SourceError::TooLarge { most: 1000, .. })),
            "{got:?}"
        );
    }
}

#[test]
fn a_stop_is_heard_while_nothing_comes() {
    let server = Server::plain(vec![Answer::Hang(Vec::new())]);
    let work = Work::unwatched();
    let stopper = work.clone();
    let url = server.url.clone();
    let getting = thread::spawn(move || get_small(&url, 10, &environment(&Tree::new()), patience(), &work));
    // Whenever it comes: before the request or after it.
    stopper.stop();
    assert!(matches!(
        getting.join().unwrap(),
        Err(SourceError::Stopped { .. })
    ));
    // The script ends with a connection in any case.
    _ = TcpStream::connect(
        server
            .url
            .trim_start_matches("http://")
            .split('/')
            .next()
            .unwrap(),
    );
    server.requests();
}

/// A certificate authority and a server that it vouches for.
fn authority() -> (String, Arc<ServerConfig>) {
    let valid = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2100, 1, 1);
    };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    valid(&mut params);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    valid(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    (issuer.pem(), Arc::new(server))
}

#[test]
fn only_the_authorities_of_the_site_vouch_for_a_server_of_images() {
    let file = file();
    let (pem, tls) = authority();
    let (other_pem, _) = authority();
    let one = || {
        Server::new(
            Some(Arc::clone(&tls)),
            vec![Answer::Bytes(part(&file, 0, file.len(), ""))],
        )
    };
    let site = Tree::new()
        .file("muster/ca/a.pem", &other_pem)
        .file("muster/ca/b.pem", &pem);
    let got = get_all(&one().url, &environment(&site), patience()).unwrap();
    assert!(got == file);

    let strangers = Tree::new().file("muster/ca/a.pem", &other_pem);
    let refused = get_all(&one().url, &environment(&strangers), patience());
    assert!(
        matches!(refused, Err(SourceError::Untrusted { .. })),
        "{refused:?}"
    );

    let nobody = get_all(&one().url, &environment(&Tree::new()), patience());
    assert!(
        matches!(nobody, Err(SourceError::NoAuthorities { .. })),
        "{nobody:?}"
    );
}

#[test]
fn a_secure_server_may_not_lead_to_one_that_is_not() {
    let (pem, tls) = authority();
    let site = Tree::new().file("muster/ca/a.pem", pem);
    let away = answer(
        "302 Found",
        "Location: http://127.0.0.1:1/x\r\nContent-Length: 0\r\n",
        b"",
    );
    let server = Server::new(Some(tls), vec![Answer::Bytes(away)]);
    let refused = get_all(&server.url, &environment(&site), patience());
    assert!(
        matches!(refused, Err(SourceError::Downgrade { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_proxy_gets_the_whole_url() {
    let file = file();
    let server = Server::plain(vec![Answer::Bytes(part(&file, 0, file.len(), ""))]);
    let proxy = server
        .url
        .trim_start_matches("http://")
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    let through = Environment {
        proxy: Some(proxy),
        ..environment(&Tree::new())
    };
    assert!(get_all("http://images.example/a.raw", &through, patience()).unwrap() == file);
    let request = &server.requests()[0];
    assert!(
        request.starts_with("get http://images.example/a.raw http/1.1\r\nhost: images.example\r\n"),
        "{request}"
    );
}

/// A proxy that answers `CONNECT` with `answer` and then joins both ends.
fn tunnel(answer: &'static [u8]) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&heads);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut client = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            let head = String::from_utf8(head).unwrap();
            let target = head.split(' ').nth(1).unwrap().to_owned();
            told.lock().unwrap().push(head);
            client.write_all(answer).unwrap();
            let Ok(mut server) = TcpStream::connect(target) else {
                continue;
            };
            let (mut to, mut from) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut from, &mut to));
            thread::spawn(move || io::copy(&mut server, &mut client));
        }
    });
    (address, heads)
}

#[test]
fn a_proxy_only_passes_on_what_is_secured() {
    let file = file();
    let (pem, tls) = authority();
    let site = Tree::new().file("muster/ca/a.pem", pem);
    let server = Server::new(Some(tls), vec![Answer::Bytes(part(&file, 0, file.len(), ""))]);
    let (proxy, heads) = tunnel(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n");
    let through = |proxy: &str| Environment {
        proxy: Some(proxy.to_owned()),
        ..environment(&site)
    };
    assert!(get_all(&server.url, &through(&proxy), patience()).unwrap() == file);
    let authority = Url::parse(&server.url).unwrap().authority();
    assert!(heads.lock().unwrap()[0].starts_with(&format!("CONNECT {authority} HTTP/1.1\r\n")));

    let (closed, _) = tunnel(b"HTTP/1.1 403 Forbidden\r\n\r\n");
    let few = Patience {
        tries: 2,
        ..patience()
    };
    let refused = get_all(&server.url, &through(&closed), few);
    let Err(SourceError::GivenUp { source, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(matches!(*source, SourceError::Proxy { .. }), "{source:?}");
}
