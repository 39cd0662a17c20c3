use http_body_util::Empty;
use tokio::net::TcpStream;

use super::*;
use crate::scratch::Scratch;

/// What a client got: status, headers and as much of the content as came, and whether that was all.
struct Got {
    status: StatusCode,
    headers: hyper::HeaderMap,
    content: Vec<u8>,
    whole: bool,
}

async fn ask(server: &ImageServer, method: Method, path: &str, headers: &[(&str, &str)]) -> Got {
    let stream = TcpStream::connect(server.address()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "images");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender
        .send_request(request.body(Empty::<Bytes>::new()).unwrap())
        .await
        .unwrap();
    let (parts, mut body) = response.into_parts();
    let mut got = Got {
        status: parts.status,
        headers: parts.headers,
        content: Vec::new(),
        whole: true,
    };
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => got.content.extend_from_slice(&frame.into_data().unwrap()),
            Err(_) => got.whole = false,
        }
    }
    driver.abort();
    got
}

fn content() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn serving() -> (Scratch, ImageServer) {
    let scratch = Scratch::new().unwrap();
    std::fs::write(scratch.path().join("image"), content()).unwrap();
    std::fs::write(scratch.path().join(".hidden"), "x").unwrap();
    let server = ImageServer::on_loopback(scratch.path()).unwrap();
    (scratch, server)
}

#[tokio::test]
async fn whole_files_parts_and_heads_are_served_and_counted() {
    let (_scratch, server) = serving();
    let content = content();
    let got = ask(&server, Method::GET, "/image", &[]).await;
    assert!(got.content == content && got.whole);
    let tag = got.headers[ETAG].to_str().unwrap().to_owned();
    let got = ask(&server, Method::HEAD, "/image", &[]).await;
    assert_eq!(
        (got.headers[CONTENT_LENGTH].to_str().unwrap(), got.content.len()),
        ("800000", 0)
    );
    let range = [("range", "bytes=799990-"), ("if-range", &tag)];
    let got = ask(&server, Method::GET, "/image", &range).await;
    assert_eq!(got.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(got.headers[CONTENT_RANGE], "bytes 799990-799999/800000");
    assert_eq!(got.content, content[799_990..]);
    let range = [("range", "bytes=5-"), ("if-range", "\"another\"")];
    let got = ask(&server, Method::GET, "/image", &range).await;
    assert_eq!((got.status, got.content.len()), (StatusCode::OK, 800_000));
    assert_eq!(server.bytes(), 800_000 + 10 + 800_000);
    assert_eq!(server.served()[2].first, 799_990);
    for path in ["/none", "/.hidden", "/../image", "/"] {
        let got = ask(&server, Method::GET, path, &[]).await;
        assert_eq!(got.status, StatusCode::NOT_FOUND, "{path}");
    }
    let got = ask(&server, Method::PUT, "/image", &[]).await;
    assert_eq!(got.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn connections_break_as_often_as_told_and_can_be_resumed() {
    let (_scratch, server) = serving();
    server.behave(Behaviour {
        breaks: Some(Breaks {
            after: 300_001,
            times: 2,
        }),
        ..Behaviour::default()
    });
    let mut all = Vec::new();
    let mut asked = 0;
    while all.len() < 800_000 {
        asked += 1;
        let range = format!("bytes={}-", all.len());
        let got = ask(&server, Method::GET, "/image", &[("range", &range)]).await;
        assert_eq!(got.whole, asked == 3);
        all.extend(got.content);
    }
    assert!(all == content());
}

#[tokio::test]
async fn damage_refusals_and_missing_ranges_are_as_told() {
    let (_scratch, server) = serving();
    server.behave(Behaviour {
        damage_at: Some(700_000),
        no_ranges: true,
        ..Behaviour::default()
    });
    let got = ask(&server, Method::GET, "/image", &[("range", "bytes=5-")]).await;
    assert_eq!(got.status, StatusCode::OK);
    let content = content();
    let differs: Vec<_> = (0..content.len())
        .filter(|at| content[*at] != got.content[*at])
        .collect();
    assert_eq!(differs, [700_000]);
    server.behave(Behaviour {
        refuses: Some(StatusCode::SERVICE_UNAVAILABLE),
        ..Behaviour::default()
    });
    let got = ask(&server, Method::GET, "/image", &[]).await;
    assert_eq!(got.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn server_that_stalls_sends_so_much_and_no_more() {
    let (_scratch, server) = serving();
    server.behave(Behaviour {
        stalls_after: Some(300_000),
        bytes_per_second: Some(100_000_000),
        ..Behaviour::default()
    });
    let asked = ask(&server, Method::GET, "/image", &[]);
    tokio::pin!(asked);
    let sent = async {
        while server.bytes() < 300_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = &mut asked => panic!("it came to an end"),
        () = sent => {}
    }
    let more = tokio::time::timeout(Duration::from_millis(50), &mut asked).await;
    assert!(more.is_err());
    assert_eq!(server.bytes(), 300_000);
}

#[test]
fn ranges_mean_what_the_standard_says() {
    for (range, expected) in [
        ("bytes=0-0", Part::Of(0, 1)),
        ("bytes=5-", Part::Of(5, 10)),
        ("bytes=-3", Part::Of(7, 10)),
        ("bytes=-30", Part::Of(0, 10)),
        ("bytes=5-99", Part::Of(5, 10)),
        ("bytes=10-", Part::Beyond),
        ("bytes=-0", Part::Beyond),
        ("bytes=7-5", Part::Whole),
        ("bytes=1-2,4-5", Part::Whole),
        ("lines=1-2", Part::Whole),
    ] {
        assert_eq!(part(range, 10), expected, "{range}");
    }
}
