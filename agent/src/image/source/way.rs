//! The way to a server of images: names, addresses, proxies and TLS.

use std::{fs, io, net::SocketAddr, sync::Arc};

use http_body_util::Empty;
use hyper::{
    body::Bytes,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use muster_proto::config;
use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{Source, SourceError};
use crate::{
    dial::{
        self,
        endpoint::{self, Host},
        tls,
    },
    image::url::{self, Url},
    net::dns,
};

/// The largest read from a connection, in bytes: what waits for the decoder is a few of these.
const READ: usize = 256 << 10;

/// The longest answer of a proxy to `CONNECT`, in bytes.
const PROXY_ANSWER: usize = 8 << 10;

impl Source<'_> {
    /// A connection, and whether requests on it need the whole URL, because a proxy reads them.
    pub(super) async fn connect(
        &mut self,
        url: &Url,
    ) -> Result<(SendRequest<Empty<Bytes>>, bool), SourceError> {
        let failed = |source| SourceError::Connect {
            url: url.to_string(),
            source,
        };
        let stream = match self.environment.proxy.clone() {
            None => self.reach(url, &url.host, url.port).await?,
            Some(proxy) => self.through(&proxy, url).await?,
        };
        let is_absolute = self.environment.proxy.is_some() && !url.is_tls;
        let builder = || {
            let mut builder = http1::Builder::new();
            builder.max_buf_size(READ);
            builder
        };
        let broken = |source| failed(io::Error::other(source));
        if !url.is_tls {
            let (sender, connection) = builder().handshake(TokioIo::new(stream)).await.map_err(broken)?;
            // Its errors come back through the sender and the body.
            tokio::spawn(connection);
            return Ok((sender, is_absolute));
        }
        let tls = self.tls(url)?;
        let secured = dial::secure(stream, url.host.server_name(), tls).await;
        let stream = secured.map_err(|source| match tls::cause(&source) {
            Some(rustls::Error::InvalidCertificate(why)) => SourceError::Untrusted {
                url: url.to_string(),
                hint: tls::distrust(why),
                source,
            },
            _ => failed(source),
        })?;
        let (sender, connection) = builder().handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        Ok((sender, is_absolute))
    }

    /// A connection to the first address of `host` that takes one, for `url`.
    async fn reach(&mut self, url: &Url, host: &Host, port: u16) -> Result<TcpStream, SourceError> {
        let mut failed = None;
        for address in self.addresses(url, host, port).await? {
            match dial::connect(address).await {
                Ok(stream) => {
                    self.connected = Some(address);
                    return Ok(stream);
                }
                Err(source) => failed = Some(source),
            }
        }
        Err(SourceError::Connect {
            url: url.to_string(),
            source: failed.unwrap_or_else(|| io::Error::other("it has no address")),
        })
    }

    /// The addresses of `host` that are tried, one after the other. What has begun goes on where it began, as long as that is one of them and
    /// has not been away for long (`Patience::loyalty`).
    async fn addresses(&self, url: &Url, host: &Host, port: u16) -> Result<Vec<SocketAddr>, SourceError> {
        let name = match host {
            Host::Address(address) => return Ok(vec![(*address, port).into()]),
            Host::Name(name) => name,
        };
        let found = dns::addresses(name, &self.environment.name_servers.now()).await;
        let found = found.map_err(|source| SourceError::Resolve {
            url: url.to_string(),
            source,
        })?;
        let mut all: Vec<SocketAddr> = found.into_iter().map(|address| (address, port).into()).collect();
        // A proxy calls a file as its server does, by whichever of its addresses.
        let is_proxy = self.environment.proxy.is_some();
        let goes_on = |served: &SocketAddr| self.at > 0 && !is_proxy && all.contains(served);
        if let Some(served) = self.served.filter(goes_on) {
            return Ok(vec![served]);
        }
        all.sort_by_key(|address| {
            self.shunned
                .iter()
                .rposition(|shunned| shunned == address)
                .map_or(0, |at| at + 1)
        });
        Ok(all)
    }

    /// A connection to the proxy; for TLS, a tunnel through it (RFC 9110, section 9.3.6).
    async fn through(&mut self, proxy: &str, url: &Url) -> Result<TcpStream, SourceError> {
        let bare = proxy.trim_start_matches("http://").trim_end_matches('/');
        let (host, port) =
            endpoint::authority(bare, 3128).ok_or_else(|| SourceError::ProxyAddress(url::shown(proxy)))?;
        let failed = |source| SourceError::Connect {
            url: url.to_string(),
            source,
        };
        let mut stream = self.reach(url, &host, port).await?;
        if !url.is_tls {
            return Ok(stream);
        }
        let authority = url.authority();
        let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        let answer = async {
            stream.write_all(request.as_bytes()).await?;
            let mut head = Vec::new();
            // Byte by byte: what follows belongs to TLS.
            while !head.ends_with(b"\r\n\r\n") && head.len() < PROXY_ANSWER {
                head.push(stream.read_u8().await?);
            }
            Ok(head)
        };
        let answer = timeout(self.patience.stall, answer)
            .await
            .map_err(|_elapsed| self.stalled(url))?
            .map_err(failed)?;
        let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
        if line
            .split(|byte| *byte == b' ')
            .nth(1)
            .is_some_and(|code| code.starts_with(b"2"))
        {
            return Ok(stream);
        }
        Err(SourceError::Proxy {
            url: url.to_string(),
            proxy: muster_proto::text::clean(proxy.as_bytes()),
            answer: muster_proto::text::clean(line),
        })
    }

    /// TLS that believes the authorities of the site, and nobody else: the controller's own are not for images.
    fn tls(&mut self, url: &Url) -> Result<Arc<ClientConfig>, SourceError> {
        if let Some(tls) = &self.tls {
            return Ok(Arc::clone(tls));
        }
        let directory = self.environment.root.at(config::AUTHORITIES);
        let read = |error: io::Error| SourceError::ReadAuthorities { source: error };
        let mut files = Vec::new();
        match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            entries => {
                for entry in entries.map_err(read)? {
                    let entry = entry.map_err(read)?;
                    let pem = fs::read(entry.path()).map_err(read)?;
                    files.push((entry.file_name().to_string_lossy().into_owned(), pem));
                }
            }
        }
        if files.is_empty() {
            return Err(SourceError::NoAuthorities { url: url.to_string() });
        }
        let tls = tls::images(&files, &self.environment.clock)
            .map_err(|source| SourceError::Authorities { source })?;
        self.tls = Some(Arc::clone(&tls));
        Ok(tls)
    }
}
