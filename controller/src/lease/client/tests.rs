use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http_body_util::Full;
use hyper::body::Bytes;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::PostParams};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::*;
use crate::lease::clock;

const LONG: Duration = Duration::from_secs(3600);

fn term() -> Leadership {
    Leadership::new(3, clock::now() + LONG)
}

fn object() -> ConfigMap {
    let mut object = ConfigMap::default();
    object.metadata.name = Some("a".to_owned());
    object
}

/// An API server that takes everything, after `gate` lets it. Says how many reads and writes came.
fn api(gate: Arc<Semaphore>) -> (Client, Arc<[AtomicUsize; 2]>) {
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let told = counts.clone();
    let serve = move |request: Request<Body>| {
        let (gate, counts) = (gate.clone(), counts.clone());
        async move {
            counts[usize::from(request.method() != Method::GET)].fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            let body = Full::new(Bytes::from_static(br#"{"metadata":{"name":"a"}}"#));
            Ok::<_, io::Error>(Response::new(body))
        }
    };
    (Client::new(tower::service_fn(serve), "default"), told)
}

fn seen(counts: &[AtomicUsize; 2]) -> [usize; 2] {
    [0, 1].map(|which| counts[which].load(Ordering::SeqCst))
}

#[tokio::test]
async fn writes_end_with_the_term_and_reads_do_not() {
    let (client, counts) = api(Arc::new(Semaphore::new(100)));
    let term = term();
    let objects: Api<ConfigMap> = Api::namespaced(guarded(&term, client), "n");
    objects.create(&PostParams::default(), &object()).await.unwrap();
    objects.get("a").await.unwrap();
    assert_eq!(seen(&counts), [1, 1]);
    term.close();
    let refused = objects
        .create(&PostParams::default(), &object())
        .await
        .unwrap_err();
    let text = muster_proto::Chain(&refused).to_string();
    assert!(text.contains("no longer the leader"), "{text}");
    objects.delete("a", &Default::default()).await.unwrap_err();
    let patch = kube::api::Patch::Merge(serde_json::json!({}));
    objects.patch("a", &Default::default(), &patch).await.unwrap_err();
    objects
        .replace("a", &PostParams::default(), &object())
        .await
        .unwrap_err();
    objects.get("a").await.unwrap();
    assert_eq!(seen(&counts), [2, 1]);
}

#[tokio::test]
async fn a_write_whose_caller_is_gone_is_waited_for() {
    let gate = Arc::new(Semaphore::new(0));
    let (client, counts) = api(gate.clone());
    let term = term();
    let objects: Api<ConfigMap> = Api::namespaced(guarded(&term, client), "n");
    let asked = tokio::spawn(async move { objects.create(&PostParams::default(), &object()).await });
    while seen(&counts) != [0, 1] {
        tokio::task::yield_now().await;
    }
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    let draining = term.drain(LONG);
    let mut draining = std::pin::pin!(draining);
    assert!(futures::poll!(&mut draining).is_pending());
    gate.add_permits(1);
    assert!(draining.await);
}

#[tokio::test]
async fn a_connection_writes_nothing_after_the_term() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut other, _) = listener.accept().await.unwrap();
    let term = term();
    let of = term.clone();
    let mut fenced = FencedStream::new(stream, move || may_write(&of));
    fenced.write_all(b"before").await.unwrap();
    // As for a process that was stopped until its time was over, and has not looked yet.
    term.close();
    fenced.write_all(b"after").await.unwrap_err();
    drop(fenced);
    let mut all = String::new();
    other.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "before");
}

#[tokio::test]
async fn a_client_of_the_term_reaches_a_real_socket_and_stops() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config::new(
        format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap(),
    );
    let (reads, _) = api(Arc::new(Semaphore::new(100)));
    let term = term();
    let timing = Timing::new(15, 10, 2).unwrap();
    // As `main` does for the whole process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let objects: Api<ConfigMap> = Api::namespaced(client(&config, timing, &term, reads).unwrap(), "n");
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        let length = stream.read(&mut head).await.unwrap();
        let body = r#"{"metadata":{"name":"a"}}"#;
        let answer = format!(
            "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&head[..length]).into_owned()
    });
    objects.create(&PostParams::default(), &object()).await.unwrap();
    let head = served.await.unwrap();
    assert!(
        head.starts_with("POST /api/v1/namespaces/n/configmaps?"),
        "{head}"
    );
    term.close();
    objects
        .create(&PostParams::default(), &object())
        .await
        .unwrap_err();
}
