//! A server of images: HTTP/1.1 with HEAD, ranges and entity tags (RFC 9110), which counts what it sends and misbehaves when told to.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::{StreamExt, future::pending, stream};
use http_body_util::{BodyExt, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderValue, IF_RANGE, RANGE},
    rt,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
};

use crate::netns::Netns;

/// Bytes that are read and sent at once.
const PIECE: u64 = 256 << 10;
/// The same where the server is slow: so that slow is not in bursts.
const SLOW_PIECE: u64 = 16 << 10;

/// What is wrong with the server; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// This many connections break after so many bytes of content.
    pub breaks: Option<Breaks>,
    /// At most so many bytes of content a second on each connection.
    pub bytes_per_second: Option<u64>,
    /// It sends nothing more after so many bytes of content, and keeps the connection.
    pub stalls_after: Option<u64>,
    /// The byte at this place of every file is another one.
    pub damage_at: Option<u64>,
    /// It knows no ranges: every answer is the whole file.
    pub no_ranges: bool,
    /// It answers everything with this status.
    pub refuses: Option<StatusCode>,
}

/// Connections that break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaks {
    /// Bytes of content after which one does.
    pub after: u64,
    /// How many do; the others are whole.
    pub times: u32,
}

/// A request that was answered, or is being answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// GET or HEAD, or what else came.
    pub method: Method,
    /// The file's name.
    pub name: String,
    /// The first byte of the file that was asked for.
    pub first: u64,
    /// Status.
    pub status: StatusCode,
    /// Bytes of content that went out so far.
    pub bytes: u64,
}

/// The server; it ends when dropped.
#[derive(Debug)]
pub struct ImageServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    _end: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    behaviour: Mutex<Behaviour>,
    served: Mutex<Vec<Served>>,
}

impl Shared {
    fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn served(&self) -> MutexGuard<'_, Vec<Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageServer {
    /// Serves the files of `dir` on `listen` inside `net`; port 0 is a free one.
    pub fn inside(net: &Netns, listen: SocketAddr, dir: &Path) -> Result<ImageServer> {
        let listener = net.run(move || std::net::TcpListener::bind(listen));
        ImageServer::start(listener, dir)
    }

    /// Serves the files of `dir` on a free port of this computer's loopback.
    pub fn on_loopback(dir: &Path) -> Result<ImageServer> {
        ImageServer::start(std::net::TcpListener::bind(("127.0.0.1", 0)), dir)
    }

    fn start(listener: io::Result<std::net::TcpListener>, dir: &Path) -> Result<ImageServer> {
        let listener = listener.context("listen for those who want images")?;
        listener.set_nonblocking(true).context("prepare a listener")?;
        let address = listener.local_addr().context("ask for the listener's address")?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            behaviour: Mutex::default(),
            served: Mutex::default(),
        });
        let (end, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime")?;
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("lab-images".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, theirs) => {}
                        _ = ended => {}
                    }
                });
            })
            .context("start a thread")?;
        Ok(ImageServer {
            address,
            shared,
            _end: end,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a file.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// Behaves like this from now on; what is being sent goes on as it began.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour() = behaviour;
    }

    /// All requests so far, in their order.
    pub fn served(&self) -> Vec<Served> {
        self.shared.served().clone()
    }

    /// Bytes of content that went out so far.
    pub fn bytes(&self) -> u64 {
        self.shared.served().iter().map(|served| served.bytes).sum()
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    loop {
        // Accepting fails for a moment when the process has no file left; the next one may do.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let (stream, emptied) = Emptied::new(stream);
            let service = service_fn(move |request| {
                let answer = answer(&shared, &request, &emptied);
                async move { answer }
            });
            // A client that goes away is no trouble of the server's.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(stream, service)
                .await;
        });
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

fn answer(
    shared: &Arc<Shared>,
    request: &Request<Incoming>,
    emptied: &watch::Receiver<u64>,
) -> io::Result<Response<Body>> {
    let behaviour = shared.behaviour().clone();
    let name = request.uri().path().trim_start_matches('/').to_owned();
    let header = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let mut response = Response::new(empty());
    let mut first = 0;
    let opened = open(&shared.dir, &name);
    let content = match (&behaviour.refuses, request.method(), opened) {
        (Some(status), ..) => Err(*status),
        (None, &Method::GET | &Method::HEAD, Ok(file)) => Ok(file),
        (None, &Method::GET | &Method::HEAD, Err(_)) => Err(StatusCode::NOT_FOUND),
        (None, ..) => Err(StatusCode::METHOD_NOT_ALLOWED),
    };
    match content {
        Err(status) => *response.status_mut() = status,
        Ok((file, length)) => {
            let tag = format!("\"{name}-{length:x}\"");
            let asked = header(RANGE).filter(|_| !behaviour.no_ranges);
            let asked = asked.filter(|_| header(IF_RANGE).is_none_or(|known| known == tag));
            let part = asked.map_or(Part::Whole, |asked| part(asked, length));
            let headers = response.headers_mut();
            headers.insert(ETAG, value(&tag));
            if !behaviour.no_ranges {
                headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
            }
            let (begin, end) = match part {
                Part::Whole => (0, length),
                Part::Of(begin, end) => {
                    headers.insert(
                        CONTENT_RANGE,
                        value(&format!("bytes {begin}-{}/{length}", end - 1)),
                    );
                    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                    (begin, end)
                }
                Part::Beyond => {
                    headers.insert(CONTENT_RANGE, value(&format!("bytes */{length}")));
                    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
                    (0, 0)
                }
            };
            first = begin;
            response
                .headers_mut()
                .insert(CONTENT_LENGTH, HeaderValue::from(end - begin));
            if request.method() == Method::GET {
                let number = shared.served().len();
                let emptied = emptied.clone();
                let sending = Sending::new(shared, number, behaviour, emptied, file, begin, end)?;
                *response.body_mut() = sending.body();
            }
        }
    }
    shared.served().push(Served {
        method: request.method().clone(),
        name,
        first,
        status: response.status(),
        bytes: 0,
    });
    Ok(response)
}

fn value(text: &str) -> HeaderValue {
    // File names with signs that no header may have get no tag.
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("\"\""))
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn open(dir: &Path, name: &str) -> io::Result<(File, u64)> {
    if name.contains('/') || name.starts_with('.') {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file = File::open(dir.join(name))?;
    let facts = file.metadata()?;
    if !facts.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok((file, facts.len()))
}

/// What of a file is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    /// From the first number up to the second.
    Of(u64, u64),
    /// Nothing that the file has.
    Beyond,
}

/// What the header `Range` asks for of a file of `length` bytes (RFC 9110, 14.1.2); what it cannot mean is passed over, as that says.
fn part(range: &str, length: u64) -> Part {
    let Some((begin, end)) = range
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
    else {
        return Part::Whole;
    };
    let (begin, end) = match (begin.parse::<u64>(), end.parse::<u64>()) {
        (Ok(begin), Ok(last)) if begin <= last => (begin, last.saturating_add(1)),
        (Ok(begin), Err(_)) if end.is_empty() => (begin, length),
        (Err(_), Ok(suffix)) if begin.is_empty() => (length.saturating_sub(suffix), length),
        _ => return Part::Whole,
    };
    match begin < end.min(length) {
        true => Part::Of(begin, end.min(length)),
        false => Part::Beyond,
    }
}

/// A connection that tells whenever everything was written that hyper had to write.
struct Emptied {
    stream: TokioIo<TcpStream>,
    times: watch::Sender<u64>,
}

impl Emptied {
    fn new(stream: TcpStream) -> (Emptied, watch::Receiver<u64>) {
        let (times, emptied) = watch::channel(0);
        let stream = TokioIo::new(stream);
        (Emptied { stream, times }, emptied)
    }
}

impl rt::Read for Emptied {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl rt::Write for Emptied {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    /// Called when hyper has nothing more to write for now.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.times.send_modify(|times| *times += 1);
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// One answer's content on its way.
struct Sending {
    shared: Arc<Shared>,
    number: usize,
    behaviour: Behaviour,
    breaks_after: Option<u64>,
    emptied: watch::Receiver<u64>,
    file: File,
    at: u64,
    end: u64,
    sent: u64,
    begun: tokio::time::Instant,
}

impl Sending {
    fn new(
        shared: &Arc<Shared>,
        number: usize,
        behaviour: Behaviour,
        emptied: watch::Receiver<u64>,
        mut file: File,
        at: u64,
        end: u64,
    ) -> io::Result<Sending> {
        file.seek(SeekFrom::Start(at))?;
        let breaks_after = match &mut shared.behaviour().breaks {
            Some(breaks) if breaks.times > 0 && breaks.after < end - at => {
                breaks.times -= 1;
                Some(breaks.after)
            }
            _ => None,
        };
        Ok(Sending {
            shared: Arc::clone(shared),
            number,
            behaviour,
            breaks_after,
            emptied,
            file,
            at,
            end,
            sent: 0,
            begun: tokio::time::Instant::now(),
        })
    }

    fn body(self) -> Body {
        let pieces = stream::unfold(Some(self), |sending| async {
            let mut sending = sending?;
            match sending.next().await {
                Ok(None) => None,
                Ok(Some(piece)) => Some((Ok(piece), Some(sending))),
                Err(error) => Some((Err(error), None)),
            }
        });
        StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
    }

    /// The next piece; an error breaks the connection.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let piece = match self.behaviour.bytes_per_second {
            Some(rate) => {
                let due = Duration::from_secs(self.sent) / u32::try_from(rate.max(1)).unwrap_or(u32::MAX);
                tokio::time::sleep_until(self.begun + due).await;
                SLOW_PIECE
            }
            None => PIECE,
        };
        let limits = [self.breaks_after, self.behaviour.stalls_after];
        let limit = limits.into_iter().flatten().min().unwrap_or(u64::MAX);
        let length = piece.min(self.end - self.at).min(limit - self.sent);
        if length == 0 {
            return match self.at == self.end {
                true => Ok(None),
                false if self.breaks_after == Some(self.sent) => {
                    // What was promised is on its way before the connection breaks.
                    self.emptied.mark_unchanged();
                    let _ = self.emptied.changed().await;
                    Err(io::ErrorKind::ConnectionReset.into())
                }
                false => pending().await,
            };
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.file.read_exact(&mut bytes)?;
        let damaged = self.behaviour.damage_at.and_then(|at| at.checked_sub(self.at));
        let damaged = damaged.and_then(|at| usize::try_from(at).ok());
        if let Some(byte) = damaged.and_then(|at| bytes.get_mut(at)) {
            *byte ^= 0xff;
        }
        self.at += length;
        self.sent += length;
        if let Some(served) = self.shared.served().get_mut(self.number) {
            served.bytes = self.sent;
        }
        Ok(Some(bytes.into()))
    }
}

#[cfg(test)]
mod tests;
