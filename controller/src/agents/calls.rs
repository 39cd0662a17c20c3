//! HTTP/1.1 with one agent (RFC 9112): calls in, answers out, one after the other. Room for bytes is taken only while there are some:
//! of the thousands of agents whose polls are held, none costs a buffer.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use http_body_util::Full;
use hyper::{
    Method, Request, StatusCode, Uri,
    body::{Body, Bytes, Frame, SizeHint},
};
use jiff::Timestamp;
use muster_proto::session::ProblemKind;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::timeout,
};

use super::{
    http::HEAD,
    problem::{Answer, problem, with_status},
};
use crate::{sync::lock, time::http_date};

/// The largest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// The most header fields.
const MAX_FIELDS: usize = 64;
/// The longest line with a chunk's size, in bytes.
const MAX_LINE: usize = 256;
/// What is read at once, in bytes.
const READ: usize = 4 << 10;

/// What is still to come of the content of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Nothing,
    /// So many bytes: all of it.
    Bytes(u64),
    /// The line with a chunk's size (RFC 9112 section 7.1).
    Size,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The end of a chunk's line.
    Line,
    /// The fields after the last chunk.
    Trailer,
}

/// What arrives: the loop reads heads from it, the call its content.
struct Line {
    stream: Box<dyn AsyncRead + Send + Unpin>,
    /// Arrived and not yet read.
    buffer: Vec<u8>,
    rest: Rest,
}

impl Line {
    /// Appends what has arrived; how much, 0 at the end.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [0; READ];
        let mut space = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut space))?;
        self.buffer.extend_from_slice(space.filled());
        Poll::Ready(Ok(space.filled().len()))
    }

    /// The first `len` bytes of what has arrived.
    fn take(&mut self, len: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(len);
        let mut taken = std::mem::replace(&mut self.buffer, rest);
        taken.shrink_to_fit();
        taken
    }

    /// Takes at most `most` bytes, and how many of them are left then.
    fn some(&mut self, most: u64) -> (Vec<u8>, u64) {
        let len = usize::try_from(most).map_or(self.buffer.len(), |most| most.min(self.buffer.len()));
        let some = self.take(len);
        let left = most.saturating_sub(some.len().try_into().unwrap_or(u64::MAX));
        (some, left)
    }

    /// The next bytes of the content, if they have arrived; nothing of it is left when there are none and [`Rest::Nothing`].
    fn content(&mut self) -> Result<Option<Vec<u8>>, httparse::Error> {
        loop {
            let (rest, len) = match self.rest {
                Rest::Nothing => return Ok(None),
                _ if self.buffer.is_empty() => return Ok(None),
                Rest::Bytes(most) => {
                    let (some, left) = self.some(most);
                    self.rest = if left == 0 {
                        Rest::Nothing
                    } else {
                        Rest::Bytes(left)
                    };
                    return Ok(Some(some));
                }
                Rest::Chunk(most) => {
                    let (some, left) = self.some(most);
                    self.rest = if left == 0 { Rest::Line } else { Rest::Chunk(left) };
                    return Ok(Some(some));
                }
                Rest::Size => match httparse::parse_chunk_size(&self.buffer) {
                    Ok(httparse::Status::Complete((len, 0))) => (Rest::Trailer, len),
                    Ok(httparse::Status::Complete((len, size))) => (Rest::Chunk(size), len),
                    Ok(httparse::Status::Partial) if self.buffer.len() < MAX_LINE => return Ok(None),
                    _ => return Err(httparse::Error::Token),
                },
                Rest::Line => match self.buffer[..] {
                    [b'\r', b'\n', ..] => (Rest::Size, 2),
                    [b'\r'] => return Ok(None),
                    _ => return Err(httparse::Error::NewLine),
                },
                Rest::Trailer => {
                    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
                    match httparse::parse_headers(&self.buffer, &mut fields)? {
                        httparse::Status::Complete((len, _)) => (Rest::Nothing, len),
                        httparse::Status::Partial if self.buffer.len() < MAX_HEAD => return Ok(None),
                        httparse::Status::Partial => return Err(httparse::Error::TooManyHeaders),
                    }
                }
            };
            drop(self.take(len));
            self.rest = rest;
        }
    }
}

type Shared = Arc<Mutex<Line>>;

/// The content of one call.
pub(super) struct Content(Shared);

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut line = lock(&self.0);
        loop {
            match line.content() {
                Ok(Some(some)) => return Poll::Ready(Some(Ok(Frame::data(some.into())))),
                Ok(None) if line.rest == Rest::Nothing => return Poll::Ready(None),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(io::Error::other(error)))),
            }
            match ready!(line.poll_read(context)) {
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).rest == Rest::Nothing
    }

    fn size_hint(&self) -> SizeHint {
        match lock(&self.0).rest {
            Rest::Nothing => SizeHint::with_exact(0),
            Rest::Bytes(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }
}

/// The answer to a call, on its way.
pub(super) type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Answers the calls on `stream` until it ends, or once `over` comes: then a call that is under way is still answered.
pub(super) async fn serve<S>(
    stream: S,
    answer: impl Fn(Request<Content>) -> Answering,
    mut over: impl Future<Output = ()> + Unpin,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, mut writer) = tokio::io::split(stream);
    let line = Arc::new(Mutex::new(Line {
        stream: Box::new(reader),
        buffer: Vec::new(),
        rest: Rest::Nothing,
    }));
    // What moves through a round of this is none of what it keeps while an answer is awaited, for most of its life.
    let refused = loop {
        let head = tokio::select! {
            head = Box::pin(timeout(HEAD, head(&line))) => head,
            // Nobody waits for an answer.
            () = &mut over => break None,
        };
        let Head {
            method,
            uri,
            content,
            expects,
            mut last,
        } = match head.map_err(|_| io::ErrorKind::TimedOut)?? {
            Some(Ok(head)) => head,
            Some(Err(status)) => break Some(status),
            None => break None,
        };
        lock(&line).rest = content;
        if expects && content != Rest::Nothing {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            writer.flush().await?;
        }
        let bare = method == Method::HEAD;
        let mut answering = {
            let mut request = Request::new(Content(Arc::clone(&line)));
            (*request.method_mut(), *request.uri_mut()) = (method, uri);
            answer(request)
        };
        let mut answered = loop {
            tokio::select! {
                // First, so that the others see what it has left of the content.
                biased;
                answered = &mut answering => break answered,
                gone = gone(&line) => return Err(gone),
                () = &mut over, if !last => last = true,
            }
        };
        drop(answering);
        // What was not read would be taken for the next head; and who is refused for good has nothing more to say here.
        last |= lock(&line).rest != Rest::Nothing || answered.status() == StatusCode::FORBIDDEN;
        if bare {
            // Its answer has no content (RFC 9110 section 9.3.2): this would be taken for the next head.
            *answered.body_mut() = Full::default();
        }
        Box::pin(write(&mut writer, answered, last)).await?;
        if last {
            break None;
        }
    };
    if let Some(status) = refused {
        let why = problem(
            ProblemKind::Malformed,
            "this is not a request that this server understands",
        );
        Box::pin(write(&mut writer, with_status(status, &why), true)).await?;
    }
    writer.shutdown().await
}

/// The end of a connection whose call is being answered: nobody is there to hear it. Until the content was read, whoever reads it
/// finds out.
async fn gone(line: &Shared) -> io::Error {
    let ended = std::future::poll_fn(|context| {
        let mut line = lock(line);
        if line.rest != Rest::Nothing || !line.buffer.is_empty() {
            return Poll::Pending;
        }
        match ready!(line.poll_read(context)) {
            Ok(0) => Poll::Ready(io::ErrorKind::UnexpectedEof.into()),
            // The next call, already.
            Ok(_) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        }
    });
    ended.await
}

/// What a head says.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    method: Method,
    uri: Uri,
    content: Rest,
    /// It waits for permission to send the content.
    expects: bool,
    /// No other call follows.
    last: bool,
}

/// The next head, or what is answered instead; none at the end of the connection.
async fn head(line: &Shared) -> io::Result<Option<Result<Head, StatusCode>>> {
    let mut looked = 0_usize;
    loop {
        {
            let mut line = lock(line);
            // Of a head that comes byte by byte, all is not looked at again for each of them.
            let fresh = line.buffer.get(looked.saturating_sub(2)..).unwrap_or_default();
            let ends = fresh.windows(2).any(|two| two == b"\n\n")
                || fresh.windows(3).any(|three| three == b"\n\r\n");
            let look = looked == 0 || ends || line.buffer.len() >= MAX_HEAD;
            looked = line.buffer.len();
            match if look { parse(&line.buffer) } else { Ok(None) } {
                Ok(None) => {}
                Ok(Some((head, len))) => {
                    line.take(len);
                    return Ok(Some(Ok(head)));
                }
                Err(status) => return Ok(Some(Err(status))),
            }
        }
        let read = std::future::poll_fn(|context| lock(line).poll_read(context)).await?;
        if read == 0 {
            return Ok(None);
        }
    }
}

/// The head at the start of `buffer` and its length; none as long as it is not complete.
fn parse(buffer: &[u8]) -> Result<Option<(Head, usize)>, StatusCode> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let len = match head.parse(buffer) {
        Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD => len,
        Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        Err(_) => return Err(StatusCode::BAD_REQUEST),
    };
    if head.version != Some(1) {
        return Err(StatusCode::HTTP_VERSION_NOT_SUPPORTED);
    }
    let values = |name: &'static str| {
        let fields = head.headers.iter();
        let of = fields.filter(move |field| field.name.eq_ignore_ascii_case(name));
        of.map(|field| field.value.trim_ascii())
    };
    let says = |name, what: &str| {
        let mut tokens = values(name).flat_map(|value| value.split(|byte| *byte == b','));
        tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(what.as_bytes()))
    };
    let (mut lengths, mut codings) = (values("Content-Length"), values("Transfer-Encoding"));
    let content = match (lengths.next(), codings.next()) {
        (None, None) => Some(Rest::Nothing),
        (Some(length), None) => digits(length).map(|length| {
            if length == 0 {
                Rest::Nothing
            } else {
                Rest::Bytes(length)
            }
        }),
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Some(Rest::Size),
        // Both, or a coding that is not known here.
        _ => None,
    };
    let (Some(content), None, None, 1) = (content, lengths.next(), codings.next(), values("Host").count())
    else {
        return Err(StatusCode::BAD_REQUEST);
    };
    let of = |text: Option<&str>| text.and_then(|text| text.parse().ok());
    let method = head.method.and_then(|method| method.parse().ok());
    let (Some(method), Some(uri)) = (method, of(head.path)) else {
        return Err(StatusCode::BAD_REQUEST);
    };
    let head = Head {
        method,
        uri,
        content,
        expects: says("Expect", "100-continue"),
        last: says("Connection", "close"),
    };
    Ok(Some((head, len)))
}

/// Nothing but digits: `parse` alone takes a sign, too.
fn digits(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// Sends `answer`; `last` says that no other follows.
async fn write(writer: &mut (impl AsyncWrite + Unpin), answer: Answer, last: bool) -> io::Result<()> {
    let (head, body) = answer.into_parts();
    let body = body.into_inner().unwrap_or_default();
    let date = http_date(Timestamp::now());
    let (status, length) = (head.status, body.len());
    let mut bytes = format!("HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Length: {length}\r\n").into_bytes();
    for (name, value) in &head.headers {
        bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend_from_slice(if last {
        b"Connection: close\r\n\r\n"
    } else {
        b"\r\n"
    });
    bytes.extend_from_slice(&body);
    let written = async {
        writer.write_all(&bytes).await?;
        writer.flush().await
    };
    timeout(HEAD, written)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

#[cfg(test)]
mod tests;
