//! A controller in a few lines: a certificate authority, a TLS server, and a script that says what to answer.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, body::Bytes, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use muster_proto::session::Problem;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType, IsCa,
    KeyPair, SanType, date_time_ymd,
};
use rustls::{RootCertStore, ServerConfig, pki_types::PrivatePkcs8KeyDer, server::WebPkiClientVerifier};
use serde_json::{Value, json};
use tokio::{net::TcpListener, net::TcpStream, sync::Notify, task::JoinSet};
use tokio_rustls::TlsAcceptor;

type Date = (i32, u8, u8);

/// From the first day's start to the last day's.
#[derive(Clone, Copy)]
pub(super) struct Validity {
    pub(super) from: Date,
    pub(super) to: Date,
}

/// A certificate authority.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(1970, 1, 1);
        params.not_after = date_time_ymd(2100, 1, 1);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    fn sign(&self, csr: &str) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params.not_before = date_time_ymd(1970, 1, 1);
        request.params.not_after = date_time_ymd(2100, 1, 1);
        request.signed_by(&self.0).unwrap().pem()
    }

    fn server(&self, validity: Validity) -> ServerConfig {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let day = |(year, month, day)| date_time_ymd(year, month, day);
        (params.not_before, params.not_after) = (day(validity.from), day(validity.to));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap()
    }
}

/// How to answer one call.
pub(super) enum Answer {
    /// A certificate for the request's key, signed by the controller's own authority or another.
    Certificate {
        time: i64,
        renew_at: i64,
        authority: Option<Box<Authority>>,
    },
    /// A status and a body.
    Raw(u16, Vec<u8>),
    Problem {
        status: u16,
        problem: Problem,
        retry_after: Option<u64>,
    },
    /// Breaks the connection off.
    Cut,
    /// Never.
    Hold,
}

impl Answer {
    pub(super) fn json(value: &Value) -> Answer {
        Answer::Raw(200, value.to_string().into_bytes())
    }

    pub(super) fn with_broken_certificate(self) -> Answer {
        let Answer::Certificate { time, renew_at, .. } = self else {
            return self;
        };
        let body = json!({"server": "s", "certificate": "x", "renewAt": renew_at, "time": time, "caPem": ""});
        Answer::json(&body)
    }
}

/// One call as the controller saw it.
#[derive(Clone, Debug)]
pub(super) struct Called {
    pub(super) path: String,
    /// The agent showed its certificate.
    pub(super) certified: bool,
    pub(super) body: Value,
}

type Script = Box<dyn FnMut(&str) -> Answer + Send>;

struct State {
    authority: Authority,
    script: Mutex<Script>,
    seen: Mutex<Seen>,
    news: Notify,
}

#[derive(Default)]
struct Seen {
    calls: Vec<Called>,
    connections: usize,
    failed_handshakes: usize,
}

pub(super) struct Controller {
    address: SocketAddr,
    state: Arc<State>,
    _server: JoinSet<()>,
}

impl Controller {
    pub(super) async fn start(
        validity: Validity,
        script: impl FnMut(&str) -> Answer + Send + 'static,
    ) -> Controller {
        let authority = Authority::new("muster");
        let acceptor = TlsAcceptor::from(Arc::new(authority.server(validity)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            authority,
            script: Mutex::new(Box::new(script)),
            seen: Mutex::default(),
            news: Notify::new(),
        });
        let mut server = JoinSet::new();
        server.spawn(serve(listener, acceptor, Arc::clone(&state)));
        Controller {
            address,
            state,
            _server: server,
        }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(super) fn authority(&self) -> &Authority {
        &self.state.authority
    }

    pub(super) fn calls(&self) -> Vec<Called> {
        self.state.seen.lock().unwrap().calls.clone()
    }

    pub(super) fn count(&self, path: &str) -> usize {
        self.calls().iter().filter(|call| call.path == path).count()
    }

    /// Those with a finished handshake.
    pub(super) fn connections(&self) -> usize {
        self.state.seen.lock().unwrap().connections
    }

    pub(super) fn failed_handshakes(&self) -> usize {
        self.state.seen.lock().unwrap().failed_handshakes
    }

    pub(super) async fn until_called(&self, path: &str, times: usize) {
        self.until(|controller| controller.count(path) >= times).await;
    }

    pub(super) async fn until(&self, happened: impl Fn(&Controller) -> bool) {
        let wait = async {
            while !happened(self) {
                // What the agent does after an answer shows itself only by the next call, or soon.
                _ = tokio::time::timeout(Duration::from_millis(20), self.state.news.notified()).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(60), wait).await;
        in_time.unwrap_or_else(|_| panic!("did not happen; calls so far: {:#?}", self.calls()));
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(connection(stream, acceptor.clone(), Arc::clone(&state)));
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, state: Arc<State>) {
    let Ok(stream) = acceptor.accept(stream).await else {
        state.seen.lock().unwrap().failed_handshakes += 1;
        state.news.notify_one();
        return;
    };
    state.seen.lock().unwrap().connections += 1;
    let certified = stream.get_ref().1.peer_certificates().is_some();
    let service = service_fn(|request| answer(request, certified, Arc::clone(&state)));
    // Answer::Cut ends it with an error.
    _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    request: Request<Incoming>,
    certified: bool,
    state: Arc<State>,
) -> Result<Response<Full<Bytes>>, &'static str> {
    let path = request.uri().path().to_owned();
    let body = request
        .into_body()
        .collect()
        .await
        .map_err(|_| "the agent broke off")?
        .to_bytes();
    let body: Value = serde_json::from_slice(&body).map_err(|_| "no JSON")?;
    let answer = (state.script.lock().unwrap())(&path);
    let csr = body["csr"].as_str().map(str::to_owned);
    state.seen.lock().unwrap().calls.push(Called {
        path,
        certified,
        body,
    });
    state.news.notify_one();
    let respond = |status: u16, body: Vec<u8>, retry_after: Option<u64>| {
        let mut response = Response::builder().status(status);
        if let Some(seconds) = retry_after {
            response = response.header(header::RETRY_AFTER, seconds);
        }
        Ok(response.body(Full::from(body)).unwrap())
    };
    match answer {
        Answer::Certificate {
            time,
            renew_at,
            authority,
        } => {
            let certificate = authority
                .as_deref()
                .unwrap_or(&state.authority)
                .sign(&csr.expect("a request"));
            let ca = state.authority.pem();
            let body = json!({"server": "s-1", "certificate": certificate, "renewAt": renew_at, "time": time, "caPem": ca});
            respond(200, body.to_string().into_bytes(), None)
        }
        Answer::Raw(status, body) => respond(status, body, None),
        Answer::Problem {
            status,
            problem,
            retry_after,
        } => respond(status, serde_json::to_vec(&problem).unwrap(), retry_after),
        Answer::Cut => Err("cut"),
        Answer::Hold => std::future::pending().await,
    }
}
