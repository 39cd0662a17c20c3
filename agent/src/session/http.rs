//! One HTTP/1.1 connection to one controller, and the calls over it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use muster_proto::session::{Problem, ProblemKind};
use rustls::ClientConfig;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use crate::dial::{self, endpoint::Endpoint};

/// The largest answer that is read, in bytes; a certificate chain is a few kilobytes.
const LARGEST_ANSWER: usize = 1 << 20;

/// How a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The host is a name without an address.
    #[error("resolve controller {endpoint}")]
    Resolve {
        /// Which.
        endpoint: Endpoint,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No TCP connection.
    #[error("connect to controller {endpoint}")]
    Connect {
        /// To which.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// No TLS connection: the other end is not our controller, or breaks off.
    #[error("establish TLS with controller {endpoint}")]
    Handshake {
        /// To which.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// The connection broke during a call.
    #[error("call {path}")]
    Http {
        /// Which call.
        path: &'static str,
        /// Why.
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("call {path}: no answer in {} s", patience.as_secs())]
    Silent {
        /// Which call.
        path: &'static str,
        /// How long it may take.
        patience: Duration,
    },
    /// The answer cannot be read to its end.
    #[error("read the answer to {path}")]
    Body {
        /// Which call.
        path: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what the protocol says.
    #[error("parse the answer to {path} (HTTP status {status})")]
    Answer {
        /// Which call.
        path: &'static str,
        /// HTTP status.
        status: StatusCode,
        /// Why.
        source: serde_json::Error,
    },
    /// The controller refused.
    #[error("call {path}: the controller refused: {problem}")]
    Refused {
        /// Which call.
        path: &'static str,
        /// Why, as the controller says.
        problem: Problem,
        /// When to try again, if it said so.
        retry_after: Option<Duration>,
    },
}

impl CallError {
    /// True if the connection cannot be used any more.
    pub fn broke_connection(&self) -> bool {
        !matches!(self, CallError::Refused { .. } | CallError::Answer { .. })
    }
}

/// An open connection. Dropping it closes it.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Opens a connection to `endpoint`, which is at `address`.
    ///
    /// # Errors
    /// [`CallError::Connect`], [`CallError::Handshake`].
    pub async fn open(
        endpoint: &Endpoint,
        address: SocketAddr,
        tls: Arc<ClientConfig>,
    ) -> Result<Connection, CallError> {
        let stream = dial::connect(address)
            .await
            .map_err(|source| CallError::Connect {
                endpoint: endpoint.clone(),
                source,
            })?;
        let failed = |source| CallError::Handshake {
            endpoint: endpoint.clone(),
            source,
        };
        let stream = dial::secure(stream, endpoint.server_name(), tls)
            .await
            .map_err(failed)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(io::Error::other(error)))?;
        // Its errors come back through the sender.
        tokio::spawn(connection);
        Ok(Connection {
            sender,
            host: endpoint.to_string(),
        })
    }

    /// True if the other end has closed it.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// `POST path` with `body` as JSON; the answer is JSON, too, unless it is empty, which reads as `null`.
    ///
    /// # Errors
    /// Every one but those of [`Connection::open`].
    pub async fn post<B: Serialize, A: DeserializeOwned>(
        &mut self,
        path: &'static str,
        body: &B,
        patience: Duration,
    ) -> Result<A, CallError> {
        let json = serde_json::to_vec(body).expect("the protocol's types have only string keys");
        let request = Request::post(path)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(json))
            .expect("paths are constants and the host was parsed");
        let call = async {
            let response = self
                .sender
                .send_request(request)
                .await
                .map_err(|source| CallError::Http { path, source })?;
            answer(path, response).await
        };
        timeout(patience, call)
            .await
            .unwrap_or(Err(CallError::Silent { path, patience }))
    }
}

async fn answer<A: DeserializeOwned>(
    path: &'static str,
    response: Response<Incoming>,
) -> Result<A, CallError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, LARGEST_ANSWER)
        .collect()
        .await
        .map_err(|source| CallError::Body { path, source })?;
    let body = body.to_bytes();
    let status = head.status;
    if status.is_success() {
        let text = if body.is_empty() { b"null" } else { &body[..] };
        return serde_json::from_slice(text).map_err(|source| CallError::Answer { path, status, source });
    }
    let seconds = head
        .headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let problem = serde_json::from_slice(&body).unwrap_or_else(|_| Problem {
        kind: kind_of(status),
        message: format!("HTTP status {status}"),
    });
    Err(CallError::Refused {
        path,
        problem,
        retry_after: seconds.map(Duration::from_secs),
    })
}

/// What an answer without a [`Problem`] means: a proxy or load balancer on the way said it.
fn kind_of(status: StatusCode) -> ProblemKind {
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => ProblemKind::TooLarge,
        StatusCode::TOO_MANY_REQUESTS => ProblemKind::Quota,
        StatusCode::SERVICE_UNAVAILABLE => ProblemKind::Unavailable,
        _ => ProblemKind::Other,
    }
}
