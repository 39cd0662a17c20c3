//! The agents' side from outside: real TLS and HTTP on loopback, a fake API server behind.

mod enrolment;
mod faults;
mod jobs;
mod keys;
mod sessions;

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request,
    body::{Body, Bytes},
};
use hyper_util::rt::TokioIo;
use muster_proto::{
    Mac,
    identity::Identity,
    inventory::Inventory,
    kinds::{Enrolment, Segment, SegmentSpec, Server as ServerKind, ServerStatus, Trust},
    session::{EnrolRequest, EnrolResponse, PROTOCOL, PollRequest, PollResponse, ProblemKind},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{ca::CaPem, clock, keys::Keys, *};
use crate::{
    api_clock::dated, events::Happened, fake_api::FakeApi, metrics::Registry, token, watches::Watches,
    written::Written,
};

/// Long enough for a loaded machine; a test that waits so long has failed.
const DEADLINE: Duration = Duration::from_secs(30);

fn pace() -> Pace {
    let quick = Duration::from_millis(600);
    Pace {
        // Longer than the test waits for any answer: one that comes was woken by something.
        poll: Duration::from_secs(3600),
        progress: Duration::from_millis(50),
        silent: quick,
        answered: quick,
        closed: quick,
        untold: Duration::from_secs(3600),
        farewell: Duration::from_secs(3600),
    }
}

fn new_keys() -> (CaPem, Keys) {
    let pem = CaPem::generate(clock::now()).unwrap();
    (pem.clone(), Keys::new(pem, vec![7; 32]).unwrap())
}

/// A running controller and what it stands on.
struct Lab {
    api: Arc<FakeApi>,
    written: Arc<Written<ServerKind>>,
    watches: Watches,
    edge: Weak<Edge>,
    keys: watch::Sender<Keys>,
    address: SocketAddr,
    events: mpsc::Receiver<Happened>,
    registry: Registry,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    pace: Pace,
    max_agents: usize,
}

/// An address of this machine with a port that nobody listens on.
async fn free_port() -> SocketAddr {
    let taken = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    taken.local_addr().unwrap()
}

impl Lab {
    async fn new() -> Lab {
        Lab::with(pace()).await
    }

    /// One whose polls without news end soon.
    async fn hasty() -> Lab {
        Lab::with(Pace {
            poll: Duration::from_millis(50),
            ..pace()
        })
        .await
    }

    async fn with(pace: Pace) -> Lab {
        let (keys, _) = watch::channel(new_keys().1);
        let mut lab = Lab::of(FakeApi::new(), keys, pace);
        lab.put_segment("lab", None);
        lab.start().await;
        lab
    }

    /// Another edge, which runs beside this one.
    async fn beside(&self, pace: Pace) -> Lab {
        let mut lab = Lab::of(Arc::clone(&self.api), self.keys.clone(), pace);
        lab.start().await;
        lab
    }

    /// One that does not run yet.
    fn of(api: Arc<FakeApi>, keys: watch::Sender<Keys>, pace: Pace) -> Lab {
        Lab {
            api,
            written: Arc::default(),
            watches: Watches::default(),
            edge: Weak::new(),
            keys,
            address: ([127, 0, 0, 1], 0).into(),
            events: mpsc::channel(1).1,
            registry: Registry::default(),
            running: None,
            pace,
            max_agents: 1000,
        }
    }

    async fn start(&mut self) {
        let (queue, events) = mpsc::channel(1000);
        self.events = events;
        self.registry = Registry::default();
        let world = self.api.world();
        self.written = Arc::clone(&world.written);
        self.watches = world.watches.clone();
        self.hear_time(0);
        let config = Config {
            client: self.api.client(),
            namespace: "muster-system".into(),
            world,
            changes: self.api.changes(),
            events: Events::new(queue),
            keys: self.keys.subscribe(),
            names: watch::channel(Names {
                addresses: vec![[127, 0, 0, 1].into()],
                dns: vec![],
            })
            .1,
            metrics: Metrics::register(&mut self.registry),
            pace: self.pace,
            max_agents: self.max_agents,
        };
        let server = Server::new(config).await.unwrap();
        self.edge = Arc::downgrade(&server.edge);
        self.address = free_port().await;
        let addresses = watch::channel([self.address.ip()].into()).1;
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            let _ = stopped.await;
        };
        let port = self.address.port();
        let task = tokio::spawn(server.run(addresses, port, ClosedPorts::default(), stopped));
        while TcpStream::connect(self.address).await.is_err() {
            assert!(!task.is_finished(), "the server ended");
            tokio::task::yield_now().await;
        }
        self.running = Some((stop, task));
    }

    /// The API server says what time it is, by a clock that is `ahead` of ours by so many seconds.
    fn hear_time(&self, ahead: i64) {
        let there = jiff::Timestamp::from_second(clock::now() + ahead).unwrap();
        self.watches.clock.hear(&dated(there));
    }

    /// The controller dies where it stands.
    async fn crash(&mut self) {
        let (_stop, task) = self.running.take().unwrap();
        task.abort();
        let _ = task.await;
    }

    /// The same, and it starts anew: all it knew is gone.
    async fn crash_and_restart(&mut self) {
        self.crash().await;
        self.start().await;
    }

    /// The controller ends in order.
    async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.send(()).unwrap();
        // It does not wait for its farewell to be over.
        tokio::time::timeout(DEADLINE, task).await.unwrap().unwrap();
    }

    fn token(&self, last: u8) -> String {
        self.token_of(last, clock::now())
    }

    fn token_of(&self, last: u8, issued: i64) -> String {
        self.sealed("muster-system/lab", mac(last), issued)
    }

    /// A token of the Segment called `segment`, which the machine with `mac` was given.
    fn token_on(&self, segment: &str, mac: Mac) -> String {
        self.sealed(&format!("muster-system/{segment}"), mac, clock::now())
    }

    fn sealed(&self, segment: &str, mac: Mac, issued: i64) -> String {
        let nonce: [u8; 16] = super::ca::random();
        self.keys.borrow().token.seal(&token::Claims {
            segment: segment.into(),
            mac,
            issued,
            nonce: super::ca::sha256_hex(&nonce),
        })
    }

    /// A Segment beside `lab` that asks for this trust before it gives out secrets; none: what is asked for where nothing is set.
    fn put_segment(&self, name: &str, trust: Option<Trust>) {
        let spec =
            json!({ "subnet": "127.0.0.0/8", "quota": 5, "unknown": "discover", "requiredTrust": trust });
        let mut segment = Segment::new(name, serde_json::from_value::<SegmentSpec>(spec).unwrap());
        segment.metadata.namespace = Some("muster-system".into());
        self.api.put("segments", &segment);
    }

    fn agent(&self, last: u8) -> Agent {
        Agent {
            address: self.address,
            trusts: self.keys.borrow().ca.bundle.clone(),
            key: rcgen::KeyPair::generate().unwrap(),
            certificate: None,
            identity: identity_of(last),
            seal: muster_proto::seal::SealKey::generate(),
        }
    }

    /// One with room for a single connection of an agent.
    async fn with_one_place() -> Lab {
        let mut lab = Lab::new().await;
        lab.max_agents = 1;
        lab.crash_and_restart().await;
        lab
    }

    /// An agent that has enrolled.
    async fn enrolled(&self, last: u8) -> (Agent, EnrolResponse) {
        let mut agent = self.agent(last);
        let response = agent.enrol(&self.token(last)).await.unwrap();
        (agent, response)
    }

    fn server(&self, name: &str) -> ServerKind {
        self.api.get("servers", name).unwrap()
    }

    fn status(&self, name: &str) -> ServerStatus {
        self.server(name).status.unwrap()
    }

    fn servers(&self) -> Vec<String> {
        self.api
            .all::<ServerKind>("servers")
            .into_iter()
            .filter_map(|server| server.metadata.name)
            .collect()
    }

    fn enrolments(&self) -> Vec<Enrolment> {
        self.api.all("enrolments")
    }

    /// The value of the metric whose line begins with `line`, 0 if there is none.
    fn metric(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let found = text
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0, |value| value.parse().unwrap())
    }

    fn enrolments_counted(&self, outcome: &str) -> u64 {
        self.metric(&format!(
            "muster_agents_enrolments_total{{outcome=\"{outcome}\"}}"
        ))
    }

    /// Reasons of the Events so far, each with the name of the object.
    fn told(&mut self) -> Vec<(String, &'static str)> {
        let mut told = Vec::new();
        while let Ok(Happened { event, .. }) = self.events.try_recv() {
            told.push((event.about.name.unwrap_or_default(), event.reason));
        }
        told
    }

    async fn until(&self, what: &str, holds: impl Fn(&Lab) -> bool) {
        let waited = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, waited)
            .await
            .unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }

    /// Waits until one poll is held.
    async fn until_held(&self) {
        self.until("the poll is held", |lab| {
            lab.metric("muster_agents_held_polls") == 1
        })
        .await;
    }
}

fn mac(last: u8) -> Mac {
    Mac([0x00, 0x1b, 0x21, 0, 0, last])
}

fn name(last: u8) -> String {
    format!("mac-{}", mac(last).hex())
}

fn identity_of(last: u8) -> Identity {
    Identity {
        system_uuid: Some(format!("4c4c4544-0035-4b10-8032-cac04f5839{last:02x}")),
        system_serial: Some(format!("SN{last}")),
        board_serial: Some(format!("BSN{last}")),
        macs: [mac(last)].into(),
    }
}

fn inventory_of(last: u8) -> Inventory {
    let mut inventory = Inventory {
        identity: identity_of(last),
        ..Inventory::default()
    };
    inventory.system.serial = format!("SN{last}");
    inventory
}

/// A refused call.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    status: u16,
    kind: ProblemKind,
    retry_after: Option<String>,
}

/// An agent in a test.
struct Agent {
    address: SocketAddr,
    trusts: String,
    key: rcgen::KeyPair,
    certificate: Option<String>,
    identity: Identity,
    seal: muster_proto::seal::SealKey,
}

impl Agent {
    fn csr(&self) -> String {
        rcgen::CertificateParams::default()
            .serialize_request(&self.key)
            .unwrap()
            .pem()
            .unwrap()
    }

    fn enrol_request(&self, token: &str) -> EnrolRequest {
        EnrolRequest {
            token: token.to_owned(),
            csr: self.csr(),
            identity: self.identity.clone(),
            protocol: PROTOCOL.to_owned(),
            agent_version: "0.1.0".to_owned(),
            boot_mac: None,
            seal_key: self.seal.public(),
        }
    }

    async fn enrol(&mut self, token: &str) -> Result<EnrolResponse, Refusal> {
        let answer = self.call("enrol", &json!(self.enrol_request(token))).await?;
        let response: EnrolResponse = serde_json::from_value(answer).unwrap();
        self.certificate = Some(response.certificate.clone());
        Ok(response)
    }

    async fn poll(&self, last: &str) -> Result<PollResponse, Refusal> {
        self.poll_with(PollRequest {
            last: last.to_owned(),
            ..PollRequest::default()
        })
        .await
    }

    async fn poll_with(&self, request: PollRequest) -> Result<PollResponse, Refusal> {
        Ok(serde_json::from_value(self.call("poll", &json!(request)).await?).unwrap())
    }

    async fn report(&self, inventory: &Inventory) -> Result<Value, Refusal> {
        self.call("inventory", &json!(inventory)).await
    }

    async fn call(&self, call: &str, body: &Value) -> Result<Value, Refusal> {
        let body = Full::new(Bytes::from(serde_json::to_vec(body).unwrap()));
        self.send("POST", &format!("/v1/{call}"), body).await.unwrap()
    }

    /// One request on a connection of its own; the outer error is one of the connection.
    async fn send<B>(&self, method: &str, path: &str, body: B) -> anyhow::Result<Result<Value, Refusal>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync,
    {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "muster")
            .body(body)?;
        let response = tokio::time::timeout(DEADLINE, sender.send_request(request)).await??;
        let (head, body) = response.into_parts();
        let bytes = body.collect().await?.to_bytes();
        connection.abort();
        let value: Value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)?
        };
        if head.status.is_success() {
            return Ok(Ok(value));
        }
        Ok(Err(Refusal {
            status: head.status.as_u16(),
            kind: serde_json::from_value(value["kind"].clone())?,
            retry_after: head
                .headers
                .get("retry-after")
                .map(|value| value.to_str().unwrap().to_owned()),
        }))
    }

    async fn connect(&self) -> anyhow::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.trusts.as_bytes()) {
            roots.add(root?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots);
        let config = match &self.certificate {
            Some(pem) => {
                let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
                config.with_client_auth_cert(chain, key)?
            }
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(self.address).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        Ok(connector
            .connect(ServerName::try_from("127.0.0.1")?, stream)
            .await?)
    }
}

fn refused(status: u16, kind: ProblemKind) -> Refusal {
    Refusal {
        status,
        kind,
        retry_after: None,
    }
}
