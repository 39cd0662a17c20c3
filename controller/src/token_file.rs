//! A token that stands in a file: `tokenFile` of a kubeconfig, or the one in a pod.
//!
//! As client-go does it, and kubectl with that: the file is read again every minute, and white space around the token is none of its.
//! kube sends the file as it is, and a header with the end of a line in it goes nowhere; most editors and `echo` write one.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Request,
    header::{AUTHORIZATION, HeaderValue},
};
use kube::{
    Client, Config,
    client::{AuthError, Body, ClientBuilder},
};
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::sync::lock;

/// For so long a token is used before its file is read again.
const AGAIN: Duration = Duration::from_secs(50);

/// A client for `config`.
pub(crate) fn client(config: Config) -> kube::Result<Client> {
    let (config, token) = split(config)?;
    let client = ClientBuilder::try_from(config)?;
    Ok(match token {
        Some(token) => client.with_layer(&token).build(),
        None => client.build(),
    })
}

/// `config` without its file with a token, if that is what counts in it, and what puts the token on each request instead.
pub(crate) fn split(mut config: Config) -> kube::Result<(Config, Option<AddToken>)> {
    let user = &mut config.auth_info;
    // In kube's order.
    let goes_before = user.auth_provider.is_some()
        || (user.username.is_some() && user.password.is_some())
        || user.token.is_some();
    let path = if goes_before { None } else { user.token_file.take() };
    let Some(path) = path else {
        return Ok((config, None));
    };
    // What would count next.
    user.exec = None;
    let token = TokenFile::open(PathBuf::from(path)).map_err(kube::Error::Auth)?;
    Ok((config, Some(AddToken(Arc::new(Mutex::new(token))))))
}

/// Puts the token of a file on each request.
#[derive(Clone)]
pub(crate) struct AddToken(Arc<Mutex<TokenFile>>);

impl<S> Layer<S> for AddToken {
    type Service = WithToken<S>;

    fn layer(&self, service: S) -> WithToken<S> {
        WithToken {
            token: Arc::clone(&self.0),
            service,
        }
    }
}

/// A service that puts the token of a file on each request.
#[derive(Clone)]
pub(crate) struct WithToken<S> {
    token: Arc<Mutex<TokenFile>>,
    service: S,
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for WithToken<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> S::Future {
        let header = lock(&self.token).header();
        request.headers_mut().insert(AUTHORIZATION, header);
        self.service.call(request)
    }
}

struct TokenFile {
    path: PathBuf,
    header: HeaderValue,
    read: Instant,
}

impl TokenFile {
    fn open(path: PathBuf) -> Result<TokenFile, AuthError> {
        Ok(TokenFile {
            header: read(&path)?,
            path,
            read: Instant::now(),
        })
    }

    /// As the file says it; while that cannot be used, as it said last.
    fn header(&mut self) -> HeaderValue {
        if self.read.elapsed() >= AGAIN {
            self.read = Instant::now();
            match read(&self.path) {
                Ok(header) => self.header = header,
                Err(error) => {
                    tracing::warn!(%error, "the token for the API server could not be read again; next: the previous one stays in use");
                }
            }
        }
        self.header.clone()
    }
}

fn read(path: &Path) -> Result<HeaderValue, AuthError> {
    let failed = |source| AuthError::ReadTokenFile(source, path.to_owned());
    let invalid = |why: &'static str| failed(io::Error::new(io::ErrorKind::InvalidData, why));
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let token = text.trim();
    if token.is_empty() {
        return Err(invalid("there is no token in it"));
    }
    // What is wrong with it is not shown: it may be a secret.
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| invalid("it is not one token, in one line and without control characters"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_read_without_the_end_of_its_line_and_again_once_it_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "one\n").unwrap();
        let mut token = TokenFile::open(path.clone()).unwrap();
        assert_eq!(token.header(), "Bearer one");
        std::fs::write(&path, "two\n").unwrap();
        assert_eq!(token.header(), "Bearer one");
        tokio::time::advance(AGAIN).await;
        assert_eq!(token.header(), "Bearer two");
        std::fs::write(&path, "\n").unwrap();
        tokio::time::advance(AGAIN).await;
        assert_eq!(token.header(), "Bearer two", "a file that is being replaced");
    }

    #[test]
    fn a_file_that_holds_no_token_is_named_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for wrong in ["", "\n", "secret\nother\n"] {
            std::fs::write(&path, wrong).unwrap();
            let error = TokenFile::open(path.clone()).err().unwrap().to_string();
            assert!(error.contains(&*path.to_string_lossy()), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn every_request_carries_the_token_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "one\n").unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut config = Config::new(url.parse().unwrap());
        config.auth_info.token_file = Some(path.to_string_lossy().into_owned());
        let client = client(config).unwrap();
        let asked = tokio::spawn(async move { client.apiserver_version().await });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0);
        }
        let request = String::from_utf8(request).unwrap();
        assert!(request.contains("\r\nauthorization: Bearer one\r\n"), "{request}");
        let answer = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        asked.abort();
    }
}
