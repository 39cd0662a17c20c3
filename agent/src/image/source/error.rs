//! Why bytes cannot be had.

use std::{io, time::Duration};

use hyper::StatusCode;

use super::MOST_REDIRECTS;
use crate::{dial::tls, image::url::UrlError, net::dns, work::Stopped};

/// Bytes cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The URL, or one that it leads to, is none.
    #[error("follow the URL")]
    Url {
        /// Why.
        source: UrlError,
    },
    /// The way leads from a secure server to one that is not.
    #[error("follow {from}: it redirects to {to}, which is not secured by TLS")]
    Downgrade {
        /// From where.
        from: String,
        /// Where to.
        to: String,
    },
    /// Redirects do not end.
    #[error("follow {0}: there are more than {MOST_REDIRECTS} redirects")]
    Redirects(String),
    /// The server's name has no address.
    #[error("resolve the host of {url}")]
    Resolve {
        /// What.
        url: String,
        /// Why.
        source: dns::DnsError,
    },
    /// No connection, or no TLS.
    #[error("connect to {url}")]
    Connect {
        /// What.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// The certificate of the server is not accepted.
    #[error("trust the server of {url}: {hint}")]
    Untrusted {
        /// What.
        url: String,
        /// Why, and what helps.
        hint: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Nobody said which authorities to believe.
    #[error(
        "trust the server of {url}: the ramdisk contains no certificate authority; give the controller one with --extra-ca"
    )]
    NoAuthorities {
        /// What.
        url: String,
    },
    /// The authorities in the ramdisk cannot be used.
    #[error("use the certificate authorities in the ramdisk")]
    Authorities {
        /// Why.
        source: tls::TlsError,
    },
    /// They cannot be read.
    #[error("read the certificate authorities in the ramdisk")]
    ReadAuthorities {
        /// Why.
        source: io::Error,
    },
    /// The proxy does not help.
    #[error("reach {url} through the proxy {proxy}: it answered {answer:?}")]
    Proxy {
        /// What.
        url: String,
        /// Which proxy.
        proxy: String,
        /// Its first line.
        answer: String,
    },
    /// The proxy is not `host:port`.
    #[error("parse the proxy address {0:?}")]
    ProxyAddress(String),
    /// The server refuses.
    #[error("get {url}: the server answered {status}")]
    Status {
        /// What.
        url: String,
        /// HTTP status.
        status: StatusCode,
    },
    /// The connection broke.
    #[error("get {url}: the connection broke after {at} bytes")]
    Broken {
        /// What.
        url: String,
        /// How far it came.
        at: u64,
        /// Why.
        source: hyper::Error,
    },
    /// The server sends nothing.
    #[error("get {url}: no data came for {} s after {at} bytes", patience.as_secs())]
    Stalled {
        /// What.
        url: String,
        /// How far it came.
        at: u64,
        /// For how long.
        patience: Duration,
    },
    /// The server sends too little to come to an end.
    #[error("get {url}: too slow, only {came} bytes came in {} s after {at} bytes", waited.as_secs())]
    Slow {
        /// What.
        url: String,
        /// How far it came.
        at: u64,
        /// How many bytes came lately.
        came: u64,
        /// In which time.
        waited: Duration,
    },
    /// The server sent less or more than it said, or less than it had sent before.
    #[error("get {url}: received {at} of {total} bytes")]
    Length {
        /// What.
        url: String,
        /// How many came.
        at: u64,
        /// How many the server announced or had sent before.
        total: u64,
    },
    /// After a break the server has something else.
    #[error(
        "get {url}: after {at} bytes the server has another version of the file (it was replaced, or the server's addresses have different ones); the download must start over"
    )]
    Changed {
        /// What.
        url: String,
        /// How far it came.
        at: u64,
    },
    /// The file ends before the length that was announced.
    #[error(
        "get {url}: the server announced {announced} bytes, but now says that the file has only {has}; the download must start over"
    )]
    Shorter {
        /// What.
        url: String,
        /// How many bytes the server announced at first.
        announced: u64,
        /// How many it says that there are, all of which came.
        has: u64,
    },
    /// There is more than there may be.
    #[error("get {url}: it is larger than {most} bytes")]
    TooLarge {
        /// What.
        url: String,
        /// The limit.
        most: u64,
    },
    /// Patience is over.
    #[error("get the file: gave up after {tries} attempts")]
    GivenUp {
        /// How many.
        tries: u32,
        /// Why the last one failed.
        source: Box<SourceError>,
    },
    /// It was stopped from outside.
    #[error("get the file")]
    Stopped {
        /// By whom.
        source: Stopped,
    },
    /// No threads, no timers.
    #[error("start a runtime")]
    Runtime {
        /// Why.
        source: io::Error,
    },
}

impl SourceError {
    /// True if the file is another one now, of which all has to come: it was replaced, or this mirror has another version.
    pub(crate) fn is_another_file(&self) -> bool {
        matches!(self, SourceError::Changed { .. } | SourceError::Shorter { .. })
    }

    /// True if the same request may do better later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            SourceError::Resolve { .. }
            | SourceError::Connect { .. }
            | SourceError::Broken { .. }
            | SourceError::Stalled { .. }
            | SourceError::Slow { .. }
            | SourceError::Length { .. }
            | SourceError::Proxy { .. } => true,
            SourceError::Status { status, .. } => {
                status.is_server_error()
                    || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(status)
            }
            _ => false,
        }
    }
}
