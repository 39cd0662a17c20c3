//! For operators and probes: `/healthz`, `/readyz` and `/metrics`, plain HTTP, by default on loopback only.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use crate::metrics::Registry;

/// Could not listen.
#[derive(Debug, thiserror::Error)]
#[error("listen for probes on {address}")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Connections served at once; more wait.
const CONNECTIONS: usize = 32;
/// A client that sends no request for so long is dropped.
const PATIENCE: Duration = Duration::from_secs(10);

/// A listener for probes.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    state: State,
}

#[derive(Clone, Debug)]
struct State {
    registry: Arc<Registry>,
    ready: watch::Receiver<bool>,
}

impl Admin {
    /// Listens on `address`; port 0 takes any. `ready` says whether this process does its work.
    pub async fn bind(
        address: SocketAddr,
        registry: Registry,
        ready: watch::Receiver<bool>,
    ) -> Result<Self, ListenError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ListenError { address, source })?;
        let registry = Arc::new(registry);
        Ok(Admin {
            listener,
            state: State { registry, ready },
        })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until dropped.
    pub async fn run(self) {
        let Admin { listener, state } = self;
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let slot = slots
                .clone()
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors: let some go before the next try.
                    tracing::warn!(%error, "probe not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let state = state.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let answer = answer(&state, &request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .serve_connection(TokioIo::new(stream), answer);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "probe connection ended");
                }
                drop(slot);
            });
        }
    }
}

fn answer(state: &State, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, TEXT, "ok\n".to_owned()),
        (&Method::GET | &Method::HEAD, "/readyz") if *state.ready.borrow() => {
            (StatusCode::OK, TEXT, "ok\n".to_owned())
        }
        (&Method::GET | &Method::HEAD, "/readyz") => (
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            "the cluster has not been read yet\n".to_owned(),
        ),
        (&Method::GET, "/metrics") => {
            let mut text = String::new();
            match encoding::text::encode(&mut text, &state.registry) {
                Ok(()) => (StatusCode::OK, METRICS, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
            }
        }
        _ => (
            StatusCode::NOT_FOUND,
            TEXT,
            "/healthz, /readyz, /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(at: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn ready_is_said_only_when_it_is_so() {
        let (set, ready) = watch::channel(false);
        let admin = Admin::bind(([127, 0, 0, 1], 0).into(), crate::metrics::registry(), ready)
            .await
            .unwrap();
        let at = admin.address().unwrap();
        let serving = tokio::spawn(admin.run());
        assert!(get(at, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(at, "/readyz").await.starts_with("HTTP/1.1 503"));
        set.send_replace(true);
        assert!(get(at, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(
            get(at, "/metrics")
                .await
                .contains("process_resident_memory_bytes")
        );
        assert!(get(at, "/secret").await.starts_with("HTTP/1.1 404"));
        serving.abort();
    }
}
