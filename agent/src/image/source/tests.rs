use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    thread::{self, JoinHandle},
};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::{clock::Clock, net::dns::NameServers, sys::tree::Tree};

mod end;
mod way;

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

/// The file up to `end` in one chunk, and what follows that.
fn chunked(file: &[u8], end: usize, rest: &str, extra: &str) -> Vec<u8> {
    let size = format!("{end:x}\r\n");
    let body = [size.as_bytes(), &file[..end], b"\r\n", rest.as_bytes()].concat();
    answer("200 OK", &format!("Transfer-Encoding: chunked\r\n{extra}"), &body)
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

/// The requests are for these ranges, in order.
fn asks_for<const N: usize>(requests: &[String], ranges: [&str; N]) {
    for (request, range) in requests.iter().zip(ranges) {
        assert!(
            request.contains(&format!("\r\nrange: bytes={range}\r\n")),
            "{request}"
        );
    }
}

fn get_all(url: &str, environment: &Environment, patience: Patience) -> Result<Vec<u8>, SourceError> {
    let got = get_small(url, 10 << 20, environment, patience, &Work::unwatched());
    got.map(|(bytes, _)| bytes)
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

#[test]
fn a_file_comes_as_it_is_sent_and_it_is_known_how_its_server_encoded_it() {
    let file = file();
    for (headers, expected) in [
        ("Content-Encoding: gzip\r\n", Some("gzip")),
        (
            "Content-Encoding: identity\r\nContent-Encoding: br\r\n",
            Some("br"),
        ),
        ("Content-Encoding: Identity\r\n", None),
        ("Content-Encoding:\r\n", None),
        ("", None),
    ] {
        // Also where only the answer with the rest says so.
        let server = Server::plain(vec![
            Answer::Bytes(part(&file, 0, 70_000, "")),
            Answer::Bytes(part(&file, 70_000, file.len(), headers)),
        ]);
        let environment = environment(&Tree::new());
        let (bytes, got) = get_small(
            &server.url,
            10 << 20,
            &environment,
            patience(),
            &Work::unwatched(),
        )
        .unwrap();
        assert!(bytes == file);
        assert_eq!(got.encoding.as_deref(), expected, "{headers}");
        assert!(server.requests()[0].contains("\r\naccept-encoding: identity\r\n"));
    }
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
    asks_for(&requests[1..], ["70000-", "70000-", "150000-"]);
    for request in &requests[1..] {
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
        nothing_behind(70_000, &tagged("v2")),
        nothing_behind(69_999, ""),
    ] {
        let server = Server::plain(vec![broken(), Answer::Bytes(second)]);
        let refused = plain(&server.url);
        assert!(
            matches!(refused, Err(SourceError::Changed { at: 70_000, .. })),
            "{refused:?}"
        );
        server.requests();
    }
    // All of one that is shorter than what came.
    let server = Server::plain(vec![
        Answer::Bytes(chunked(&file, 70_000, "", "")),
        Answer::Bytes(chunked(&file, 50_000, "0\r\n\r\n", "")),
    ]);
    let refused = plain(&server.url);
    assert!(
        matches!(refused, Err(SourceError::Changed { at: 70_000, .. })),
        "{refused:?}"
    );
    server.requests();
}

#[test]
fn a_file_that_is_shorter_than_announced_is_told_with_both_lengths() {
    let file = file();
    let server = Server::plain(vec![
        Answer::Bytes(part(&file, 0, 70_000, "")),
        Answer::Bytes(nothing_behind(70_000, "")),
    ]);
    let refused = plain(&server.url).unwrap_err().to_string();
    assert!(
        refused.contains("announced 200000 bytes") && refused.contains("has only 70000"),
        "{refused}"
    );
    server.requests();
}

/// The end of the last chunk does not arrive, nor does the connection end.
#[test]
fn a_file_that_is_all_there_is_whole_though_nothing_says_so() {
    let file = file();
    let mut rest = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 70000-199999/200000\r\n\
        Transfer-Encoding: chunked\r\n\r\n1fbd0\r\n"
        .to_vec();
    rest.extend(&file[70_000..]);
    let server = Server::plain(vec![
        Answer::Bytes(part(&file, 0, 70_000, "")),
        Answer::Hang(rest),
        Answer::Bytes(nothing_behind(file.len(), "")),
    ]);
    let impatient = Patience {
        stall: Duration::from_millis(500),
        ..patience()
    };
    assert!(get_all(&server.url, &environment(&Tree::new()), impatient).unwrap() == file);
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_download_that_fails_for_a_while_is_told_with_the_step_until_it_goes_on() {
    let file = file();
    let server = Server::plain(vec![
        Answer::Bytes(part(&file, 0, 70_000, "")),
        Answer::Bytes(Vec::new()),
        Answer::Bytes(part(&file, 70_000, file.len(), "")),
    ]);
    let (tell, told) = std::sync::mpsc::channel();
    let work = Work::new(move |progress| _ = tell.send(progress.step.clone()));
    work.step("write image", 2);
    let environment = environment(&Tree::new());
    get_small(&server.url, 10 << 20, &environment, patience(), &work).unwrap();
    thread::sleep(Duration::from_millis(600));
    work.is_alive();
    let mut told: Vec<String> = told.try_iter().collect();
    told.dedup();
    let failing = "write image (download failing, retrying)";
    assert_eq!(told, ["write image", failing, "write image"]);
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
