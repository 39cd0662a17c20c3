//! Calls to the controller made by hand: what no agent of ours would send.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use muster_agent::{
    clock::Clock,
    dial::{
        endpoint::{Endpoint, Host},
        tls,
    },
    session::key::SessionKey,
};
use muster_proto::{
    config::BootConfig,
    identity::Identity,
    session::{EnrolRequest, EnrolResponse, PROTOCOL, PollRequest, Problem},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_rustls::TlsConnector;

use super::Clients;

/// A key and what it was given, in somebody's hand.
#[derive(Debug)]
pub struct Hand {
    clients: Clients,
    config: BootConfig,
    key: SessionKey,
    certificate: Option<String>,
}

/// What the controller said.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: StatusCode,
    /// Content.
    pub content: Bytes,
}

impl Reply {
    /// The content of a call that was carried out.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        if !self.status.is_success() {
            bail!("{}: {}", self.status, String::from_utf8_lossy(&self.content));
        }
        serde_json::from_slice(&self.content).context("read the answer")
    }

    /// Why the call was refused.
    pub fn problem(&self) -> Result<Problem> {
        if self.status.is_success() {
            bail!("it was carried out: {}", String::from_utf8_lossy(&self.content));
        }
        serde_json::from_slice(&self.content).context("read the problem")
    }
}

impl Hand {
    /// With a new key, holding what `config` gave to some boot.
    pub fn new(clients: &Clients, config: BootConfig) -> Result<Hand> {
        Ok(Hand {
            clients: clients.clone(),
            config,
            key: SessionKey::generate().context("make a key")?,
            certificate: None,
        })
    }

    /// The token that it shows.
    pub fn token(&self) -> &str {
        &self.config.token
    }

    /// Holds another token from now on.
    pub fn take_token(&mut self, token: &str) {
        token.clone_into(&mut self.config.token);
    }

    /// Spends the token as `identity`, and keeps the certificate if there is one.
    pub async fn enrol(&mut self, identity: Identity) -> Result<Reply> {
        let request = EnrolRequest {
            token: self.config.token.clone(),
            csr: self.key.csr().to_owned(),
            identity,
            protocol: PROTOCOL.to_owned(),
            agent_version: "by hand".to_owned(),
            boot_mac: None,
            seal_key: self.key.seal().public(),
        };
        let reply = self.post(None, "/v1/enrol", json(&request)).await?;
        if let Ok(enrolled) = reply.json::<EnrolResponse>() {
            self.certificate = Some(enrolled.certificate);
        }
        Ok(reply)
    }

    /// Shows the certificate `chain` (PEM) from now on; its key must be this hand's.
    pub fn take_certificate(&mut self, chain: String) {
        self.certificate = Some(chain);
    }

    /// The certificate that it holds.
    pub fn certificate(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    /// The signing request of its key, PEM.
    pub fn csr(&self) -> &str {
        self.key.csr()
    }

    /// Calls `path` with `body`, showing the certificate if there is one.
    pub async fn call(&self, path: &str, body: impl Into<Bytes>) -> Result<Reply> {
        self.post(self.certificate.as_deref(), path, body.into()).await
    }

    /// Polls once.
    pub async fn poll(&self) -> Result<Reply> {
        self.call("/v1/poll", json(&PollRequest::default())).await
    }

    async fn post(&self, certificate: Option<&str>, path: &str, body: Bytes) -> Result<Reply> {
        let endpoint = self.config.endpoints.first().context("no endpoint")?;
        let endpoint: Endpoint = endpoint.parse().context("read the endpoint")?;
        let Host::Address(address) = endpoint.host else {
            bail!("{endpoint} is not an address");
        };
        let shown = certificate.map(|chain| (chain, self.key.private()));
        let config = tls::client(&self.config.ca_pem, shown, &Clock::told(self.config.time))?;
        let stream = self.clients.tcp(SocketAddr::new(address, endpoint.port)).await?;
        let stream = TlsConnector::from(config)
            .connect(endpoint.server_name(), stream)
            .await
            .context("open TLS")?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .context("speak HTTP")?;
        let driver = tokio::spawn(connection);
        let request = Request::post(path)
            .header("host", endpoint.to_string())
            .header("content-type", "application/json")
            .body(Full::new(body))
            .context("make a request")?;
        let response = sender
            .send_request(request)
            .await
            .with_context(|| format!("call {path}"))?;
        let (head, body) = response.into_parts();
        let content = body.collect().await.with_context(|| format!("read {path}"))?;
        driver.abort();
        Ok(Reply {
            status: head.status,
            content: content.to_bytes(),
        })
    }
}

/// `value` as a body.
pub fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value)
        .expect("the protocol's types have only string keys")
        .into()
}
