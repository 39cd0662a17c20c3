//! HTTP/1.1 with one BMC: one connection at a time, a new one for each change, and one request at a time, with limits to the time and the
//! bytes that it may take.

use std::{error::Error as _, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use muster_proto::{Chain, text::clean};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, task::AbortHandle, time::timeout};
use tokio_rustls::TlsConnector;

use super::trust::{self, Trust};
use crate::{
    bmc::{Access, Address, BmcError, Permission, Transport, address::Place},
    fenced_stream::FencedStream,
};

/// What one BMC may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The time for name, TCP and TLS.
    pub connect: Duration,
    /// The time for one request and its whole answer.
    pub request: Duration,
    /// The bytes of one answer's content.
    pub body: usize,
}

/// The most bytes of an answer's head.
const HEAD: usize = 64 << 10;

/// A request.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// A whole answer.
pub(super) struct Told {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Told {
    pub(super) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// How many addresses of one name are tried.
const ADDRESSES: usize = 4;

/// How long what changes something may be on its way to a BMC that does not take it: what a Lease lasts longer than its holder acts, by
/// default.
const UNTAKEN: Duration = Duration::from_secs(5);

/// The connection to one BMC. Made when it is needed, gone when this is.
pub(super) struct HttpClient<'a> {
    address: &'a Address,
    tls: Option<TlsConnector>,
    host: HeaderValue,
    limits: Limits,
    /// Of a call that changes something.
    permission: Option<Permission>,
    open: Option<Open>,
}

struct Open {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl<'a> HttpClient<'a> {
    pub(super) fn new(
        access: &'a Access,
        trust: &Trust,
        limits: Limits,
        permission: Option<Permission>,
    ) -> Result<HttpClient<'a>, BmcError> {
        let address = &access.address;
        let host = HeaderValue::from_str(&address.authority()).map_err(|_| BmcError::Unreachable {
            reason: "its host is not valid in an HTTP request".to_owned(),
        })?;
        let tls = match address.transport {
            Transport::Https => Some(TlsConnector::from(trust.config(access.verify))),
            Transport::Http => None,
            Transport::Ipmi => {
                return Err(BmcError::Unsupported {
                    what: "Redfish over IPMI's transport".to_owned(),
                });
            }
        };
        Ok(HttpClient {
            address,
            tls,
            host,
            limits,
            permission,
            open: None,
        })
    }

    /// `https://HOST:PORT`, as absolute URLs to this BMC begin.
    pub(super) fn origin(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address.authority())
    }

    /// Asks and reads the whole answer.
    pub(super) async fn ask(&mut self, asked: &Asked) -> Result<Told, BmcError> {
        let told = self.ask_open(asked).await;
        match &self.permission {
            // Why the connection broke, if it did; and what came is of no use to who may not act on it.
            Some(permission) => permission.check().and(told),
            None => told,
        }
    }

    async fn ask_open(&mut self, asked: &Asked) -> Result<Told, BmcError> {
        // Some BMCs answer one request on a connection. A look is then repeated; a change is sent once, and would never come through.
        let was_open = asked.method != Method::GET && self.open.take().is_some();
        let reused = match &mut self.open {
            // It turns up soon whether the BMC keeps the connection.
            Some(open) => timeout(self.limits.request, open.sender.ready())
                .await
                .is_ok_and(|ready| ready.is_ok()),
            None => false,
        };
        if !reused {
            self.open = Some(match self.connect().await {
                // It was there a moment ago, and has heard nothing of the change.
                Err(BmcError::Unreachable { reason }) if was_open => {
                    return Err(BmcError::Busy {
                        message: reason,
                        retry_after: None,
                    });
                }
                opened => opened?,
            });
        }
        match self.ask_once(asked).await {
            // The BMC closed the connection, perhaps before it saw the request. As this only reads, that does not matter (RFC 9112
            // section 9.3.1): nothing else goes out on a connection that was used.
            Err(failed) if reused && (failed.is_unsent() || failed.is_end()) => {
                self.open = Some(self.connect().await?);
                self.ask_once(asked).await
            }
            outcome => outcome,
        }
        .map_err(|failed| {
            self.open = None;
            failed.told(asked)
        })
    }

    async fn ask_once(&mut self, asked: &Asked) -> Result<Told, Failed> {
        let request = self.request(asked)?;
        let body = self.limits.body;
        let sender = &mut self.open.as_mut().ok_or(Failed::Unsent)?.sender;
        let answer = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| match error.is_canceled() {
                    true => Failed::Unsent,
                    false => Failed::Http(error),
                })?;
            let needs_body = asked.method == Method::GET && response.status().is_success();
            read(response, body, needs_body).await
        };
        timeout(self.limits.request, answer)
            .await
            .unwrap_or(Err(Failed::Late))
    }

    fn request(&self, asked: &Asked) -> Result<Request<Full<Bytes>>, Failed> {
        let mut request = Request::builder()
            .method(&asked.method)
            .uri(&asked.path)
            .header(HOST, &self.host)
            .header(USER_AGENT, "muster")
            .header(ACCEPT, "application/json")
            .header(ACCEPT_ENCODING, "identity")
            .header("OData-Version", "4.0");
        if !asked.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in &asked.headers {
            request = request.header(name, value);
        }
        request
            .body(Full::new(asked.body.clone()))
            .map_err(|_| Failed::Form)
    }

    async fn connect(&self) -> Result<Open, BmcError> {
        let connected = timeout(self.limits.connect, self.dial()).await;
        connected.unwrap_or_else(|_| Err(unreachable("connect: no answer in time")))
    }

    async fn dial(&self) -> Result<Open, BmcError> {
        let tcp = self.tcp().await?;
        // A request is one write; the answer to it should not wait for another.
        let _ = tcp.set_nodelay(true);
        if self.permission.is_some() {
            // What the BMC has not taken when the term is over, or the call is, is thrown away: the kernel would bring it later.
            let socket = socket2::SockRef::from(&tcp);
            let _ = socket.set_linger(Some(Duration::ZERO));
            let _ = socket.set_tcp_user_timeout(Some(UNTAKEN));
        }
        let permission = self.permission.clone();
        let tcp = FencedStream::new(tcp, move || match &permission {
            Some(permission) => permission.check().map_err(io::Error::other),
            // Reading and logging in need none.
            None => Ok(()),
        });
        let Some(tls) = &self.tls else {
            return speak(TokioIo::new(tcp)).await;
        };
        let name = match &self.address.place {
            Place::Ip(ip) => ServerName::from(*ip),
            Place::Name(name) => ServerName::try_from(name.clone())
                .map_err(|_| unreachable("its host name is not valid in a certificate"))?,
        };
        let stream = tls.connect(name, tcp).await.map_err(|error| handshake(&error))?;
        speak(TokioIo::new(stream)).await
    }

    async fn tcp(&self) -> Result<TcpStream, BmcError> {
        let port = self.address.port;
        let name = match &self.address.place {
            Place::Ip(ip) => {
                let connected = TcpStream::connect((*ip, port)).await;
                return connected.map_err(|error| unreachable(&format!("connect: {}", plain(&error))));
            }
            Place::Name(name) => name,
        };
        let found = tokio::net::lookup_host((name.as_str(), port)).await;
        let found = found.map_err(|error| unreachable(&format!("look up its name: {}", plain(&error))))?;
        let found: Vec<SocketAddr> = found.take(ADDRESSES).collect();
        let mut last = unreachable("look up its name: it has no address");
        // One that swallows everything keeps none of the others from its turn.
        let each = self.limits.connect / u32::try_from(found.len().max(1)).unwrap_or(1);
        for at in found {
            match timeout(each, TcpStream::connect(at)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = unreachable(&format!("connect: {}", plain(&error))),
                Err(_late) => last = unreachable("connect: no answer in time"),
            }
        }
        Err(last)
    }
}

async fn speak<T>(io: TokioIo<T>) -> Result<Open, BmcError>
where
    TokioIo<T>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let spoken = http1::Builder::new().max_buf_size(HEAD).handshake(io).await;
    let (sender, connection) =
        spoken.map_err(|error| unreachable(&format!("speak HTTP: {}", Chain(&error))))?;
    // What ends it comes to light at the sender.
    let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
    Ok(Open { sender, driver })
}

/// The answer. Some services cut the body of an error off: what the head says counts, unless the body is what was asked for.
async fn read(response: hyper::Response<Incoming>, most: usize, needs_body: bool) -> Result<Told, Failed> {
    let (parts, body) = response.into_parts();
    let body = match Limited::new(body, most).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) if !needs_body => Bytes::new(),
        Err(error) if error.is::<LengthLimitError>() => return Err(Failed::TooLong),
        Err(error) => return Err(error.downcast().map_or(Failed::Cut, |error| Failed::Http(*error))),
    };
    Ok(Told {
        status: parts.status,
        headers: parts.headers,
        body,
    })
}

/// Why there is no answer.
enum Failed {
    /// The connection was closed before the request went out.
    Unsent,
    Http(hyper::Error),
    Late,
    Cut,
    TooLong,
    Form,
}

impl Failed {
    fn is_unsent(&self) -> bool {
        matches!(self, Failed::Unsent)
    }

    /// The connection ended before a word of an answer.
    fn is_end(&self) -> bool {
        match self {
            Failed::Http(error) => {
                let reset = io_of(error).is_some_and(|io| {
                    matches!(
                        io.kind(),
                        // The last one is of TLS, ended without a word.
                        io::ErrorKind::ConnectionReset
                            | io::ErrorKind::ConnectionAborted
                            | io::ErrorKind::BrokenPipe
                            | io::ErrorKind::UnexpectedEof
                    )
                });
                reset || error.is_incomplete_message()
            }
            _ => false,
        }
    }

    fn told(self, asked: &Asked) -> BmcError {
        match self {
            Failed::Unsent | Failed::Cut => {
                unreachable(&format!("{asked}: the connection ended without an answer"))
            }
            Failed::Late => unreachable(&format!("{asked}: no answer in time")),
            Failed::TooLong => garbled(&format!("{asked}: the answer is too long")),
            Failed::Form => garbled(&format!("{asked}: this link cannot be followed")),
            Failed::Http(error) if error.is_parse() => garbled(&format!("{asked}: the answer is not HTTP")),
            Failed::Http(error) => {
                let why = match io_of(&error) {
                    Some(io) => plain(io),
                    None => "the connection ended in the middle".to_owned(),
                };
                unreachable(&format!("{asked}: {why}"))
            }
        }
    }
}

fn io_of(error: &hyper::Error) -> Option<&io::Error> {
    error.source().and_then(|source| source.downcast_ref())
}

fn unreachable(reason: &str) -> BmcError {
    BmcError::Unreachable {
        reason: clean(reason.as_bytes()),
    }
}

fn garbled(reason: &str) -> BmcError {
    BmcError::Answer {
        reason: clean(reason.as_bytes()),
    }
}

/// An IO error without its number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn handshake(error: &io::Error) -> BmcError {
    let tls = trust::of_io(error);
    match tls.and_then(trust::distrust) {
        Some(reason) => BmcError::Untrusted {
            reason: reason.to_owned(),
        },
        None => unreachable(&format!(
            "TLS handshake: {}{}",
            tls.map_or_else(|| plain(error), ToString::to_string),
            tls.and_then(outdated).unwrap_or_default()
        )),
    }
}

/// What helps where the BMC has nothing in common with us, as one has that knows key exchange by RSA alone.
fn outdated(error: &rustls::Error) -> Option<&'static str> {
    use rustls::AlertDescription::{HandshakeFailure, InsufficientSecurity, ProtocolVersion};
    matches!(
        error,
        rustls::Error::AlertReceived(HandshakeFailure | InsufficientSecurity | ProtocolVersion)
            | rustls::Error::PeerIncompatible(_)
    )
    .then_some(
        "; it may support neither TLS 1.3 nor TLS 1.2 with ECDHE and AES-GCM: install newer firmware on it, or use redfish+http where its \
         network is trusted",
    )
}

/// For all that one host needs: kept by its registry.
#[derive(Clone, Debug)]
pub struct Means {
    /// Which certificates count.
    pub trust: Arc<Trust>,
    /// What one BMC may take.
    pub limits: Limits,
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;

    use super::*;

    #[test]
    fn of_a_bmc_whose_tls_is_of_another_time_it_is_said_what_helps() {
        let told = |alert| {
            let error = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert));
            handshake(&error).to_string()
        };
        assert!(told(AlertDescription::HandshakeFailure).contains("newer firmware"));
        assert!(!told(AlertDescription::InternalError).contains("newer firmware"));
    }
}
