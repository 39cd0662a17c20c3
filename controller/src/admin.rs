//! For operators and probes: `/healthz` and `/readyz`, plain HTTP, by default on loopback only; and `/metrics`, by default over TLS
//! and only for those whom the API server lets.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use kube::Client;
use muster_proto::Chain;
use prometheus_client::encoding;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use self::review::{Reviewer, Verdict};
use crate::{lease::Standing, metrics::Registry, places::Places, watches::Watches};

mod review;

/// Could not listen.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} for {service}")]
pub struct ListenError {
    address: SocketAddr,
    /// For whom, and which argument says where.
    service: &'static str,
    #[source]
    source: std::io::Error,
}

/// The certificate that was given cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not go together.
    #[error("use the certificate for metrics")]
    Use(#[source] rustls::Error),
}

/// Connections of a listener that are served at once; more wait.
pub(crate) const CONNECTIONS: usize = 32;
/// Of one address; more are closed.
const OF_ADDRESS: usize = 8;
/// How long a connection may last, which is for one request: whoever does not read the answer keeps the place from others.
const LIFE: Duration = Duration::from_secs(30);
/// A client that sends no request for so long is dropped.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a process tells of itself.
#[derive(Clone, Debug)]
pub struct State {
    /// What it counts.
    pub registry: Arc<Registry>,
    /// True once it sees the cluster.
    pub ready: watch::Receiver<bool>,
    /// How its watches do.
    pub watches: Watches,
    /// Whether it acts; `None` for one without the control role.
    pub standing: Option<watch::Receiver<Standing>>,
}

/// How long the port for scrapers is left alone that another program has.
const AGAIN: Duration = Duration::from_secs(10);

/// The certificate of the listener for scrapers; `None` until there is one.
pub type Certificate = watch::Receiver<Option<Arc<ServerConfig>>>;

/// What is served, and to whom.
#[derive(Clone)]
enum Service {
    Probes,
    ProbesAndMetrics,
    /// Metrics over TLS, to those whom the API server lets.
    Metrics(Certificate, Arc<Reviewer>),
}

impl Service {
    /// Who is served, and the argument that says where.
    fn shown(&self) -> &'static str {
        match self {
            Service::Probes | Service::ProbesAndMetrics => "probes (--admin-listen)",
            Service::Metrics(..) => "scrapers (--metrics-listen)",
        }
    }
}

/// A listener for probes or scrapers.
pub struct Admin {
    listener: TcpListener,
    state: State,
    service: Service,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Admin on {:?}", self.listener)
    }
}

/// A certificate and its key from files; what they hold is read once.
pub fn certificate(chain: PathBuf, key: PathBuf) -> Result<ServerConfig, CertificateError> {
    let read = |path: PathBuf| move |source| CertificateError::Read { path, source };
    let certificates = CertificateDer::pem_file_iter(&chain)
        .and_then(Iterator::collect)
        .map_err(read(chain))?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(read(key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .and_then(|config| config.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(CertificateError::Use)
}

impl Admin {
    /// Listens on `address` for probes; port 0 takes any. With `metrics`, for scrapers too, whoever they are.
    pub async fn bind(address: SocketAddr, state: State, metrics: bool) -> Result<Self, ListenError> {
        let service = if metrics {
            Service::ProbesAndMetrics
        } else {
            Service::Probes
        };
        Admin::listen(address, state, service).await
    }

    /// Serves scrapers that the API server behind `client` lets read `/metrics`, on `address` as soon as it is free: machines boot without
    /// anybody who counts, and on a node's own network others may have the port. Never ends.
    pub async fn serve_metrics(address: SocketAddr, state: State, certificate: Certificate, client: Client) {
        let service = Service::Metrics(certificate, Arc::new(Reviewer::new(client)));
        loop {
            match Admin::listen(address, state.clone(), service.clone()).await {
                Ok(metrics) => {
                    if let Ok(address) = metrics.address() {
                        tracing::info!(%address, "metrics");
                    }
                    metrics.run().await;
                }
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "metrics cannot be served; next: retrying in {} s", AGAIN.as_secs());
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn listen(address: SocketAddr, state: State, service: Service) -> Result<Self, ListenError> {
        let mut listener = TcpListener::bind(address).await;
        // Every address of both families, but this computer has only one.
        if listener.is_err() && address.ip() == Ipv6Addr::UNSPECIFIED {
            listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
        }
        let listener = listener.map_err(|source| ListenError {
            address,
            service: service.shown(),
            source,
        })?;
        Ok(Admin {
            listener,
            state,
            service,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until dropped.
    pub async fn run(self) {
        let places = Places::new(self.service.shown(), CONNECTIONS, OF_ADDRESS);
        loop {
            let place = places.next().await;
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors: let some go before the next try.
                    tracing::warn!(%error, "probe not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(share) = places.share(peer.ip()) else {
                continue;
            };
            let connection = connection(stream, self.state.clone(), self.service.clone());
            tokio::spawn(async move {
                let _held = (place, share);
                if timeout(LIFE, connection).await.is_err() {
                    tracing::debug!(%peer, "a probe connection lasted too long and is closed");
                }
            });
        }
    }
}

async fn connection(stream: TcpStream, state: State, service: Service) {
    let Service::Metrics(certificate, _) = &service else {
        return serve(stream, state, service).await;
    };
    let config = certificate.borrow().clone();
    // Without a certificate yet nobody can be told anything.
    let Some(config) = config else { return };
    match timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => serve(stream, state, service).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS with a scraper failed"),
        Err(_) => tracing::debug!("a scraper did not finish its handshake"),
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: State, service: Service) {
    let answers = service_fn(move |request| {
        let (state, service) = (state.clone(), service.clone());
        async move { Ok::<_, Infallible>(answer(&state, &service, &request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answers);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "probe connection ended");
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Answer = (StatusCode, &'static str, String);

fn text(status: StatusCode, text: &str) -> Answer {
    (status, TEXT, format!("{text}\n"))
}

async fn answer(state: &State, service: &Service, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let method = request.method();
    let reads = *method == Method::GET || *method == Method::HEAD;
    let (status, kind, body) = match (service, request.uri().path()) {
        (Service::Probes | Service::ProbesAndMetrics, "/healthz") if reads => text(StatusCode::OK, "ok"),
        (Service::Probes | Service::ProbesAndMetrics, "/readyz") if reads => readiness(state),
        (Service::ProbesAndMetrics, "/metrics") if reads => metrics(&state.registry),
        (Service::Metrics(_, reviewer), "/metrics") if reads => {
            let token = request
                .headers()
                .get(AUTHORIZATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| value.strip_prefix("Bearer "));
            match token {
                None => text(StatusCode::UNAUTHORIZED, "a bearer token is required"),
                Some(token) => match reviewer.verdict(token.trim(), "/metrics").await {
                    Verdict::Allowed => metrics(&state.registry),
                    Verdict::Unknown => text(
                        StatusCode::UNAUTHORIZED,
                        "the API server does not accept this token",
                    ),
                    Verdict::Forbidden => text(StatusCode::FORBIDDEN, "not permitted to get /metrics"),
                    Verdict::Unanswered => text(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "the API server cannot check the token now; try again",
                    ),
                },
            }
        }
        (Service::Probes, _) => text(StatusCode::NOT_FOUND, "/healthz, /readyz"),
        (Service::ProbesAndMetrics, _) => text(StatusCode::NOT_FOUND, "/healthz, /readyz, /metrics"),
        (Service::Metrics(..), _) => text(StatusCode::NOT_FOUND, "/metrics"),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn metrics(registry: &Registry) -> Answer {
    let mut all = String::new();
    match encoding::text::encode(&mut all, registry) {
        Ok(()) => (StatusCode::OK, METRICS, all),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Ready is who sees the cluster and, with the control role, acts or could follow at once.
fn readiness(state: &State) -> Answer {
    let not_yet = |what: &str| text(StatusCode::SERVICE_UNAVAILABLE, what);
    let unread = state.watches.unread();
    if !*state.ready.borrow() {
        let unread = unread.map(|unread| format!(": {unread}")).unwrap_or_default();
        return not_yet(&format!("the cluster has not been read yet{unread}"));
    }
    let standing = state.standing.as_ref().map(|standing| standing.borrow().clone());
    let lease = state.watches.lease_trouble();
    // What does not work now is told, and is no reason to be taken for one that is not ready: another would do no better.
    let ok = |what: String, lease: Option<String>| {
        let watches = &state.watches;
        let parts = [what]
            .into_iter()
            .chain(lease)
            .chain(watches.all_broken())
            .chain(watches.keys_trouble())
            .chain(watches.clock.difference(Timestamp::now()));
        text(StatusCode::OK, &parts.collect::<Vec<_>>().join("; "))
    };
    match (standing, unread) {
        (None, _) => ok("ok".to_owned(), None),
        (Some(Standing::Leads(term)), None) => ok(format!("ok: leading, epoch {}", term.epoch()), lease),
        (Some(Standing::Leads(term)), Some(unread)) => not_yet(&format!(
            "leading, epoch {}, but cannot act before it has read: {unread}",
            term.epoch()
        )),
        (Some(Standing::Standby), _) => {
            let lease = lease.map(|lease| format!("no leader is known, {lease}"));
            ok("ok: standing by".to_owned(), lease)
        }
        (Some(Standing::HeldBack(rival)), _) => {
            let held_back = format!(
                "ok: standing by; another installation, in namespace {}, acts on the same hosts",
                rival.namespace
            );
            ok(held_back, lease)
        }
        (Some(Standing::Unknown), _) => {
            let lease = lease.map(|lease| format!("; {lease}")).unwrap_or_default();
            not_yet(&format!("the Lease has not been read yet{lease}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{api_clock::dated, bind::connect_from, log::said::Said, token::CA_SECRET};

    async fn get(at: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// One that asks and does not read, or says nothing, is no reason for the kubelet to end us.
    #[tokio::test]
    async fn one_address_cannot_hold_every_place() {
        let said = Said::listen();
        let (_more, ready) = watch::channel(true);
        let state = State {
            registry: Arc::new(crate::metrics::registry()),
            ready,
            watches: Watches::default(),
            standing: None,
        };
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap(), state, false)
            .await
            .unwrap();
        let at = admin.address().unwrap();
        tokio::spawn(admin.run());
        let mut silent = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            silent.push(TcpStream::connect(at).await.unwrap());
        }
        let mut probe = connect_from(2, at).await;
        probe
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        let read = probe.read_to_string(&mut answer);
        timeout(Duration::from_secs(20), read)
            .await
            .expect("in time")
            .unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let refused = [
            "WARN",
            "probes (--admin-listen)",
            "has 8 connections",
            "client=127.0.0.1",
        ];
        said.until(&refused).await;
    }

    /// A scraper that is locked out would be noticed nowhere else.
    #[tokio::test]
    async fn who_holds_every_place_is_told() {
        let said = Said::listen();
        let state = State {
            registry: Arc::new(crate::metrics::registry()),
            ready: watch::channel(true).1,
            watches: Watches::default(),
            standing: None,
        };
        let admin = Admin::bind(([127, 0, 0, 1], 0).into(), state, true)
            .await
            .unwrap();
        let at = admin.address().unwrap();
        let serving = tokio::spawn(admin.run());
        let mut silent = Vec::new();
        for number in 0..CONNECTIONS {
            let [_, _, _, last] = u32::try_from(number / OF_ADDRESS + 2).unwrap().to_be_bytes();
            silent.push(connect_from(last, at).await);
        }
        said.until(&["WARN", "all 32 places", "127.0.0.2 (8), 127.0.0.3 (8)"])
            .await;
        serving.abort();
    }

    #[tokio::test]
    async fn ready_is_said_only_when_it_is_so() {
        let (set, ready) = watch::channel(false);
        let (stand, standing) = watch::channel(Standing::Unknown);
        let watches = Watches::default();
        let state = State {
            registry: Arc::new(crate::metrics::registry()),
            ready,
            watches: watches.clone(),
            standing: Some(standing),
        };
        let admin = Admin::bind(([127, 0, 0, 1], 0).into(), state, true)
            .await
            .unwrap();
        let at = admin.address().unwrap();
        let serving = tokio::spawn(admin.run());
        assert!(get(at, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(at, "/readyz").await.starts_with("HTTP/1.1 503"));
        set.send_replace(true);
        assert!(get(at, "/readyz").await.starts_with("HTTP/1.1 503"));
        stand.send_replace(Standing::Standby);
        assert!(get(at, "/readyz").await.starts_with("HTTP/1.1 200"));
        stand.send_replace(Standing::HeldBack(crate::lease::Rival::of("other")));
        let answer = get(at, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 200")
                && answer.contains("ok: standing by; another installation, in namespace other,"),
            "{answer}"
        );
        let until = crate::lease::now() + Duration::from_secs(3600);
        stand.send_replace(Standing::Leads(crate::lease::Leadership::new(1, until)));
        assert!(get(at, "/readyz").await.starts_with("HTTP/1.1 200"));
        watches.begins("Secret");
        watches.failed("Secret", &std::io::Error::other("secrets is forbidden"));
        let answer = get(at, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("before it has read: Secret"),
            "{answer}"
        );
        assert!(
            get(at, "/metrics")
                .await
                .contains("process_resident_memory_bytes")
        );
        assert!(get(at, "/secret").await.starts_with("HTTP/1.1 404"));
        serving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_work_now_is_told_to_whoever_asks_whether_it_is_ready() {
        let (stand, standing) = watch::channel(Standing::Unknown);
        let watches = Watches::default();
        let state = State {
            registry: Arc::new(crate::metrics::registry()),
            ready: watch::channel(true).1,
            watches: watches.clone(),
            standing: Some(standing),
        };
        let told = |state: &State| {
            let (status, _, text) = readiness(state);
            (status.as_u16(), text.trim_end().to_owned())
        };
        watches.lease(Some("read"));
        tokio::time::sleep(Duration::from_secs(25)).await;
        let lease = "the Lease could not be read for 25 s";
        let not_yet = format!("the Lease has not been read yet; {lease}");
        assert_eq!(told(&state), (503, not_yet));
        stand.send_replace(Standing::Standby);
        let stands_by = format!("ok: standing by; no leader is known, {lease}");
        assert_eq!(told(&state), (200, stands_by));
        watches.lease(None);
        watches.failed("BareMetalHost", &std::io::Error::other("gone"));
        tokio::time::sleep(Duration::from_secs(40)).await;
        let broken = "BareMetalHost could not be watched for 40 s";
        let until = crate::lease::now() + Duration::from_secs(3600);
        stand.send_replace(Standing::Leads(crate::lease::Leadership::new(7, until)));
        assert_eq!(told(&state), (200, format!("ok: leading, epoch 7; {broken}")));
        let edge = State {
            standing: None,
            ..state.clone()
        };
        assert_eq!(told(&edge), (200, format!("ok; {broken}")));
        watches.is_read("BareMetalHost");
        assert_eq!(told(&state), (200, "ok: leading, epoch 7".to_owned()));
        watches.keys(Some(CA_SECRET));
        watches.clock.hear(&dated(Timestamp::UNIX_EPOCH));
        let (status, text) = told(&edge);
        assert_eq!(status, 200);
        let begins = "ok; Secret muster-ca has been damaged for 0 s; this computer's clock is ";
        assert!(
            text.starts_with(begins) && text.ends_with(" s ahead of the API server's"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn metrics_are_not_among_the_probes_unless_asked_for() {
        let state = State {
            registry: Arc::new(crate::metrics::registry()),
            ready: watch::channel(true).1,
            watches: Watches::default(),
            standing: None,
        };
        let admin = Admin::bind(([127, 0, 0, 1], 0).into(), state.clone(), false)
            .await
            .unwrap();
        let at = admin.address().unwrap();
        let serving = tokio::spawn(admin.run());
        assert!(get(at, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(at, "/metrics").await.starts_with("HTTP/1.1 404"));

        let taken = Admin::bind(at, state, false).await.unwrap_err();
        assert_eq!(
            taken.to_string(),
            format!("listen on {at} for probes (--admin-listen)")
        );
        serving.abort();
    }

    #[tokio::test]
    async fn metrics_wait_for_their_port() {
        let state = State {
            registry: Arc::new(crate::metrics::registry()),
            ready: watch::channel(true).1,
            watches: Watches::default(),
            standing: None,
        };
        let another = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = another.local_addr().unwrap();
        let client = crate::fake_api::FakeApi::new().client();
        let (_none, certificate) = watch::channel(None);
        tokio::time::pause();
        let serving = tokio::spawn(Admin::serve_metrics(at, state, certificate, client));
        tokio::time::sleep(AGAIN / 2).await;
        assert!(!serving.is_finished());
        drop(another);
        tokio::time::sleep(AGAIN).await;
        assert!(TcpStream::connect(at).await.is_ok());
        serving.abort();
    }
}
