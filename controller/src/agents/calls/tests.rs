use std::future::{pending, ready};

use http_body_util::Full;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, DuplexStream, duplex},
    sync::oneshot,
    task::JoinHandle,
};

use super::*;
use crate::agents::body;

/// A connection whose calls are answered with their path and their content.
fn echo(over: impl Future<Output = ()> + Send + 'static) -> (DuplexStream, JoinHandle<io::Result<()>>) {
    let (client, server) = duplex(1 << 20);
    let answer = |request: Request<Content>| -> Answering {
        Box::pin(async {
            let path = request.uri().path().to_owned();
            let arrived = body::read(request.into_body(), 64 << 10, None).await.unwrap();
            let said = [path.as_bytes(), b"=", &arrived.bytes].concat();
            Answer::new(Full::new(said.into()))
        })
    };
    (client, tokio::spawn(serve(server, answer, Box::pin(over))))
}

fn call(path: &str, content: &str) -> String {
    let length = content.len();
    format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{content}")
}

/// All that is answered to `sent`, whose sender closes then.
async fn answers(sent: &[u8]) -> String {
    let (client, served) = echo(pending());
    let (mut reader, mut writer) = tokio::io::split(client);
    writer.write_all(sent).await.unwrap();
    writer.shutdown().await.unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).await.unwrap();
    drop(served.await.unwrap());
    text
}

#[tokio::test]
async fn calls_are_answered_in_order_also_if_they_come_at_once_or_in_crumbs() {
    let (mut client, served) = echo(pending());
    let large = "x".repeat(50_000);
    let sent = [call("/a", "1"), call("/b", &large), call("/c", "")].concat();
    for crumb in sent.as_bytes().chunks(777) {
        client.write_all(crumb).await.unwrap();
    }
    for said in ["/a=1".to_owned(), format!("/b={large}"), "/c=".to_owned()] {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nDate: "), "{head}");
        assert!(
            head.contains(&format!("\r\nContent-Length: {}\r\n", said.len())),
            "{head}"
        );
        let mut content = vec![0; said.len()];
        client.read_exact(&mut content).await.unwrap();
        assert_eq!(content, said.into_bytes());
    }
    drop(client);
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_ends_the_connection() {
    let cases = [
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "400",
        ),
        ("POST / HTTP/1.0\r\nHost: a\r\n\r\n", "505"),
        ("POST / HTTP/1.1\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n1", "400"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n1",
            "400",
        ),
        ("nonsense\r\n\r\n", "400"),
    ];
    for (sent, status) in cases {
        let said = answers(sent.as_bytes()).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{sent}: {said}");
        assert!(said.contains("Connection: close"), "{said}");
    }
    let long = format!("POST / HTTP/1.1\r\nHost: {}", "a".repeat(MAX_HEAD));
    assert!(answers(long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn who_is_refused_for_good_is_not_heard_again_on_this_connection() {
    let (mut client, server) = duplex(1 << 10);
    let answer = |_: Request<Content>| -> Answering {
        let refused = problem(ProblemKind::Certificate, "a newer session has replaced this one");
        Box::pin(ready(with_status(StatusCode::FORBIDDEN, &refused)))
    };
    let served = tokio::spawn(serve(server, answer, pending()));
    let sent = [call("/a", ""), call("/b", "")].concat();
    client.write_all(sent.as_bytes()).await.unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    assert_eq!(said.matches("HTTP/1.1 403 ").count(), 1, "{said}");
    assert!(said.contains("Connection: close"), "{said}");
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn content_may_come_in_chunks_and_another_call_after_it() {
    let head = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = "3\r\n123\r\nB;why=not\r\n45678901234\r\n0\r\nField: x\r\n\r\n";
    let sent = [head, chunks, &call("/b", "5")].concat();
    for size in [1, 7, 1000] {
        let (mut client, served) = echo(pending());
        for crumb in sent.as_bytes().chunks(size) {
            client.write_all(crumb).await.unwrap();
        }
        let mut said = Vec::new();
        while !said.ends_with(b"/b=5") {
            said.push(client.read_u8().await.unwrap());
        }
        assert!(
            String::from_utf8(said)
                .unwrap()
                .contains("/a=12345678901234HTTP/1.1 200 OK")
        );
        drop(client);
        served.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn content_that_breaks_off_or_is_no_chunk_is_told_to_whoever_reads_it() {
    for content in ["x\r\n", "3\r\n1234", "3\r\n12"] {
        let (mut client, server) = duplex(1 << 10);
        let answer = |request: Request<Content>| -> Answering {
            Box::pin(async {
                let failed = body::read(request.into_body(), 64, None).await.is_err();
                Answer::new(Full::new(if failed { "failed" } else { "read" }.into()))
            })
        };
        let served = tokio::spawn(serve(server, answer, pending()));
        let head = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client
            .write_all([head, content].concat().as_bytes())
            .await
            .unwrap();
        client.shutdown().await.unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).await.unwrap();
        assert!(
            said.contains("Connection: close") && said.ends_with("failed"),
            "{content}: {said}"
        );
        served.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn whoever_waits_for_leave_to_send_gets_it() {
    let sent = call("/a", "12345").replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    let said = answers(sent.as_bytes()).await;
    assert!(
        said.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{said}"
    );
    assert!(said.ends_with("/a=12345"), "{said}");
}

#[tokio::test]
async fn a_caller_that_hangs_up_ends_its_call() {
    let (mut client, server) = duplex(1 << 10);
    let (began, begun) = oneshot::channel();
    let began = Mutex::new(Some(began));
    let answer = move |request: Request<Content>| -> Answering {
        let began = began.lock().unwrap().take();
        Box::pin(async move {
            drop(body::read(request.into_body(), 1024, None).await);
            began.unwrap().send(()).unwrap();
            pending().await
        })
    };
    let served = tokio::spawn(serve(server, answer, pending()));
    client.write_all(call("/a", "1").as_bytes()).await.unwrap();
    begun.await.unwrap();
    drop(client);
    assert!(served.await.unwrap().is_err());
}

#[tokio::test]
async fn at_the_end_a_call_is_still_answered_and_an_idle_connection_is_closed() {
    let (mut idle, served) = echo(ready(()));
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    served.await.unwrap().unwrap();

    let (mut client, server) = duplex(1 << 10);
    let [(over, ending), (began, begun), (release, released)] = std::array::from_fn(|_| oneshot::channel());
    let once = Mutex::new(Some((began, released)));
    let answer = move |_| -> Answering {
        let (began, released) = once.lock().unwrap().take().unwrap();
        Box::pin(async move {
            began.send(()).unwrap();
            released.await.unwrap();
            Answer::new(Full::new("done".into()))
        })
    };
    let served = tokio::spawn(serve(server, answer, Box::pin(async { drop(ending.await) })));
    client.write_all(call("/a", "").as_bytes()).await.unwrap();
    begun.await.unwrap();
    over.send(()).unwrap();
    release.send(()).unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    assert!(
        said.starts_with("HTTP/1.1 200 OK") && said.ends_with("done"),
        "{said}"
    );
    served.await.unwrap().unwrap();
}

proptest! {
    #[test]
    fn whatever_arrives_is_read_alike_however_much_of_it_is_there(bytes: Vec<u8>, at: prop::sample::Index) {
        let _ = parse(&bytes);
        let whole = call("/v1/poll", "");
        let (head, len) = parse(whole.as_bytes()).unwrap().unwrap();
        prop_assert_eq!((len, head.uri.path()), (whole.len(), "/v1/poll"));
        prop_assert_eq!(parse(&whole.as_bytes()[..at.index(whole.len())]), Ok(None));
    }
}
