//! Names, addresses, authorities and proxies on the way to a server.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use muster_proto::Chain;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::*;
use crate::console::Console;

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
fn a_file_whose_server_stays_away_goes_on_at_another_address() {
    let file = file();
    let tag = "ETag: \"v1\"\r\n";
    // The first is gone in the middle, though its name still leads there, and the second does not have the file.
    let first = Server::plain(vec![Answer::Bytes(part(&file, 0, 70_000, tag))]);
    let port = Url::parse(&first.url).unwrap().port;
    let other = |last, body| {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), port)).unwrap();
        thread::spawn(move || serve(listener.accept().unwrap().0, Answer::Bytes(body)))
    };
    let missing = answer("404 Not Found", "Content-Length: 0\r\n", b"");
    let asked = [other(2, missing), other(3, part(&file, 70_000, file.len(), tag))];
    let at = name_server(vec![vec![1, 2, 3]]);
    let tree = Tree::new();
    let environment = Environment {
        name_servers: NameServers::new(move || vec![at]),
        ..environment(&tree)
    };
    let fickle = Patience {
        loyalty: Duration::ZERO,
        ..patience()
    };
    let url = first.url.replace("127.0.0.1", "images.example");
    assert!(get_all(&url, &environment, fickle).unwrap() == file);
    let requests = asked.map(|asked| asked.join().unwrap().unwrap());
    asks_for(&requests, ["70000-", "70000-"]);
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

/// A server that shows this certificate.
fn showing(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<ServerConfig> {
    let server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    Arc::new(server)
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
    (issuer.pem(), showing(certificate.der().clone(), &key))
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
fn an_authority_that_cannot_be_used_is_left_out_with_a_warning() {
    let file = file();
    let (pem, tls) = authority();
    let server = || {
        Server::new(
            Some(Arc::clone(&tls)),
            vec![Answer::Bytes(part(&file, 0, file.len(), ""))],
        )
    };
    let console = Console::of_the_kernel(&Tree::new().root());
    let get = |site: &Tree| {
        tracing::subscriber::with_default(console.clone(), || {
            get_all(&server().url, &environment(site), patience())
        })
    };
    let damaged = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    // No certificate, no base64, cut off, and behind a comment that is not UTF-8.
    let latin = [&b"# Universit\xe4t\n"[..], pem.as_bytes()].concat();
    let site = Tree::new()
        .file("muster/ca/0-a.pem", damaged("QQ=="))
        .file("muster/ca/0-b.pem", damaged("?"))
        .file("muster/ca/0-c.pem", "-----BEGIN CERTIFICATE-----\nQQ==\n")
        .file("muster/ca/0-d.pem", latin);
    assert!(get(&site).unwrap() == file);
    for (name, told) in [
        ("0-a.pem", true),
        ("0-b.pem", true),
        ("0-c.pem", true),
        ("0-d.pem", false),
    ] {
        let said = console.recent();
        assert_eq!(
            said.iter().any(|line| line.contains(name)),
            told,
            "{name}: {said:?}"
        );
    }

    let none = get(&Tree::new().file("muster/ca/0-a.pem", damaged("QQ==")));
    assert!(matches!(none, Err(SourceError::Authorities { .. })), "{none:?}");
}

#[test]
fn a_certificate_that_is_not_accepted_says_what_is_wrong_with_it() {
    let (pem, tls) = authority();
    let said = |pem: &str, tls: &Arc<ServerConfig>, name: &str, time: i64| {
        let server = Server::new(Some(Arc::clone(tls)), vec![Answer::Bytes(Vec::new())]);
        let at = name_server(vec![vec![1]]);
        let tree = Tree::new().file("muster/ca/a.pem", pem);
        let environment = Environment {
            clock: Clock::told(time),
            name_servers: NameServers::new(move || vec![at]),
            ..environment(&tree)
        };
        let refused = get_all(&server.url.replace("127.0.0.1", name), &environment, patience());
        Chain(&refused.unwrap_err()).to_string()
    };
    let (now, later, before) = (1_800_000_000, 4_200_000_000, 900_000_000);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let key = KeyPair::generate().unwrap();
    let own = params.self_signed(&key).unwrap();
    let (stranger, _) = authority();
    for (said, why) in [
        (
            said(&own.pem(), &showing(own.der().clone(), &key), "127.0.0.1", now),
            "CA:FALSE",
        ),
        (
            said(&pem, &tls, "127.0.0.1", later),
            "clock its certificate, or an authority's between, has expired",
        ),
        (said(&pem, &tls, "127.0.0.1", before), "is not valid yet"),
        (
            said(&pem, &tls, "images.example", now),
            "does not name the URL's host",
        ),
        (said(&stranger, &tls, "127.0.0.1", now), "--extra-ca"),
    ] {
        assert!(said.contains(why), "{why}: {said}");
        assert_eq!(said.contains("--extra-ca"), why == "--extra-ca", "{said}");
    }
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
