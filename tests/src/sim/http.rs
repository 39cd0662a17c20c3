//! An HTTP client that need not keep what it fetches.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Empty};
use hyper::{HeaderMap, Method, Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Clients;

/// From where connections are made.
pub trait Dial: Sync {
    /// A TCP connection to `to`.
    fn tcp(&self, to: SocketAddr) -> impl Future<Output = Result<TcpStream>> + Send;
}

impl Dial for Clients {
    async fn tcp(&self, to: SocketAddr) -> Result<TcpStream> {
        Clients::tcp(self, to).await
    }
}

/// From the network of the thread that runs this.
#[derive(Clone, Copy, Debug)]
pub struct Here;

impl Dial for Here {
    async fn tcp(&self, to: SocketAddr) -> Result<TcpStream> {
        TcpStream::connect(to)
            .await
            .with_context(|| format!("connect to {to}"))
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Content; empty if it was not kept.
    pub content: Vec<u8>,
    /// How many bytes came.
    pub length: usize,
}

/// What becomes of the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Kept.
    Keep,
    /// Counted only.
    Count,
}

/// Asks for `path` with one request on a connection of its own.
pub async fn ask(
    clients: &impl Dial,
    server: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    content: Content,
) -> Result<Answer> {
    let stream = clients.tcp(server).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .context("speak HTTP")?;
    let driver = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", server.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).context("make a request")?;
    let response = sender
        .send_request(request)
        .await
        .with_context(|| format!("ask for {path}"))?;
    let (parts, mut body) = response.into_parts();
    let mut answer = Answer {
        status: parts.status,
        headers: parts.headers,
        content: Vec::new(),
        length: 0,
    };
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.with_context(|| format!("read {path}"))?.into_data() {
            answer.length += data.len();
            if content == Content::Keep {
                answer.content.extend_from_slice(&data);
            }
        }
    }
    driver.abort();
    Ok(answer)
}

/// Fetches `path` and keeps it.
pub async fn get(clients: &impl Dial, server: SocketAddr, path: &str) -> Result<Answer> {
    ask(clients, server, Method::GET, path, &[], Content::Keep).await
}
