//! HTTP/1.1 with one agent (RFC 9112): calls in, answers out, one after the other. Room for bytes is taken only while there are some:
//! of the thousands of agents whose polls are held, none costs a buffer.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

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

/// The largest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// The most header fields.
const MAX_FIELDS: usize = 64;
/// What is read at once, in bytes.
const READ: usize = 4 << 10;

/// What arrives: the loop reads heads from it, the call its content.
struct Line {
    stream: Box<dyn AsyncRead + Send + Unpin>,
    /// Arrived and not yet read.
    buffer: Vec<u8>,
    /// What is still to come of the content of this call, in bytes.
    left: u64,
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
}

type Shared = Arc<Mutex<Line>>;

fn lock(line: &Shared) -> MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The content of one call.
pub(super) struct Content(Shared);

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut line = lock(&self.0);
        if line.left == 0 {
            return Poll::Ready(None);
        }
        if line.buffer.is_empty() {
            match ready!(line.poll_read(context)) {
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        let len = usize::try_from(line.left).map_or(line.buffer.len(), |left| left.min(line.buffer.len()));
        let bytes = line.take(len);
        line.left = line.left.saturating_sub(bytes.len().try_into().unwrap_or(u64::MAX));
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(lock(&self.0).left)
    }
}

/// Answers the calls on `stream` until it ends, or once `over` comes: then a call that is under way is still answered.
pub(super) async fn serve<S, F>(
    stream: S,
    answer: impl Fn(Request<Content>) -> F,
    over: impl Future<Output = ()>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
    F: Future<Output = Answer>,
{
    let (reader, mut writer) = tokio::io::split(stream);
    let line = Arc::new(Mutex::new(Line {
        stream: Box::new(reader),
        buffer: Vec::new(),
        left: 0,
    }));
    tokio::pin!(over);
    let mut last = false;
    while !last {
        let head = tokio::select! {
            head = timeout(HEAD, head(&line)) => head,
            // Nobody waits for an answer.
            () = &mut over => break,
        };
        let head = match head.map_err(|_| io::ErrorKind::TimedOut)?? {
            Some(Ok(head)) => head,
            Some(Err(status)) => {
                let why = problem(ProblemKind::Malformed, "this is no request that is understood here");
                write(&mut writer, with_status(status, &why), true).await?;
                break;
            }
            None => break,
        };
        last = head.last;
        lock(&line).left = head.length;
        if head.expects && head.length > 0 {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            writer.flush().await?;
        }
        let mut request = Request::new(Content(Arc::clone(&line)));
        (*request.method_mut(), *request.uri_mut()) = (head.method, head.uri);
        let answered = {
            let answering = answer(request);
            tokio::pin!(answering);
            loop {
                tokio::select! {
                    // First, so that the others see what it has left of the content.
                    biased;
                    answered = &mut answering => break answered,
                    gone = gone(&line) => return Err(gone),
                    () = &mut over, if !last => last = true,
                }
            }
        };
        // What was not read would be taken for the next head.
        last |= lock(&line).left > 0;
        write(&mut writer, answered, last).await?;
    }
    writer.shutdown().await
}

/// The end of a connection whose call is being answered: nobody is there to hear it. Until the content was read, whoever reads it
/// finds out.
async fn gone(line: &Shared) -> io::Error {
    let ended = std::future::poll_fn(|context| {
        let mut line = lock(line);
        if line.left > 0 || !line.buffer.is_empty() {
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
    /// Bytes of content.
    length: u64,
    /// It waits for leave to send the content.
    expects: bool,
    /// No other call follows.
    last: bool,
}

/// The next head, or what is answered instead; none at the end of the connection.
async fn head(line: &Shared) -> io::Result<Option<Result<Head, StatusCode>>> {
    loop {
        {
            let mut line = lock(line);
            match parse(&line.buffer) {
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
    if values("Transfer-Encoding").next().is_some() {
        return Err(StatusCode::LENGTH_REQUIRED);
    }
    let (mut lengths, mut hosts) = (values("Content-Length"), values("Host"));
    let length = lengths.next().map_or(Some(0), digits);
    let (Some(length), None, Some(_), None) = (length, lengths.next(), hosts.next(), hosts.next()) else {
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
        length,
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
    let date = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
    let (status, length) = (head.status, body.len());
    let mut bytes = format!("HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Length: {length}\r\n").into_bytes();
    for (name, value) in &head.headers {
        bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend_from_slice(if last { b"Connection: close\r\n\r\n" } else { b"\r\n" });
    bytes.extend_from_slice(&body);
    let written = async {
        writer.write_all(&bytes).await?;
        writer.flush().await
    };
    timeout(HEAD, written).await.map_err(|_| io::ErrorKind::TimedOut)?
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use http_body_util::Full;
    use proptest::prelude::*;
    use tokio::{
        io::{AsyncReadExt, DuplexStream, duplex},
        sync::oneshot,
        task::JoinHandle,
    };

    use super::*;
    use crate::agents::body;

    /// A connection whose calls are answered with their path and their content.
    fn echo(over: impl Future<Output = ()> + Send + 'static) -> (DuplexStream, JoinHandle<io::Result<()>>) {
        let (client, server) = duplex(1 << 20);
        let answer = |request: Request<Content>| async {
            let path = request.uri().path().to_owned();
            let arrived = body::read(request.into_body(), 64 << 10, None).await.unwrap();
            let said = [path.as_bytes(), b"=", &arrived.bytes].concat();
            Answer::new(Full::new(said.into()))
        };
        (client, tokio::spawn(serve(server, answer, over)))
    }

    fn call(path: &str, content: &str) -> String {
        let length = content.len();
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{content}")
    }

    /// All that is answered to `sent`, whose sender closes then.
    async fn answers(sent: &[u8]) -> String {
        let (client, served) = echo(pending());
        let (mut reader, mut writer) = tokio::io::split(client);
        writer.write_all(sent).await.unwrap();
        writer.shutdown().await.unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        drop(served.await.unwrap());
        text
    }

    #[tokio::test]
    async fn calls_are_answered_in_order_also_if_they_come_at_once_or_in_crumbs() {
        let (mut client, served) = echo(pending());
        let large = "x".repeat(50_000);
        let sent = [call("/a", "1"), call("/b", &large), call("/c", "")].concat();
        for crumb in sent.as_bytes().chunks(777) {
            client.write_all(crumb).await.unwrap();
        }
        for said in ["/a=1".to_owned(), format!("/b={large}"), "/c=".to_owned()] {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            assert!(head.starts_with("HTTP/1.1 200 OK\r\nDate: "), "{head}");
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", said.len())), "{head}");
            let mut content = vec![0; said.len()];
            client.read_exact(&mut content).await.unwrap();
            assert_eq!(content, said.into_bytes());
        }
        drop(client);
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_and_ends_the_connection() {
        let cases = [
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "411"),
            ("POST / HTTP/1.0\r\nHost: a\r\n\r\n", "505"),
            ("POST / HTTP/1.1\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n1", "400"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n1", "400"),
            ("nonsense\r\n\r\n", "400"),
        ];
        for (sent, status) in cases {
            let said = answers(sent.as_bytes()).await;
            assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{sent}: {said}");
            assert!(said.contains("Connection: close"), "{said}");
        }
        let long = format!("POST / HTTP/1.1\r\nHost: {}", "a".repeat(MAX_HEAD));
        assert!(answers(long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    }

    #[tokio::test]
    async fn whoever_waits_for_leave_to_send_gets_it() {
        let sent = call("/a", "12345").replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
        let said = answers(sent.as_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), "{said}");
        assert!(said.ends_with("/a=12345"), "{said}");
    }

    #[tokio::test]
    async fn a_caller_that_hangs_up_ends_its_call() {
        let (mut client, server) = duplex(1 << 10);
        let (began, begun) = oneshot::channel();
        let began = Mutex::new(Some(began));
        let answer = move |request: Request<Content>| {
            let began = began.lock().unwrap().take();
            async move {
                drop(body::read(request.into_body(), 1024, None).await);
                began.unwrap().send(()).unwrap();
                pending().await
            }
        };
        let served = tokio::spawn(serve(server, answer, pending()));
        client.write_all(call("/a", "1").as_bytes()).await.unwrap();
        begun.await.unwrap();
        drop(client);
        assert!(served.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn at_the_end_a_call_is_still_answered_and_an_idle_connection_is_closed() {
        let (mut idle, served) = echo(ready(()));
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
        served.await.unwrap().unwrap();

        let (mut client, server) = duplex(1 << 10);
        let [(over, ending), (began, begun), (release, released)] = std::array::from_fn(|_| oneshot::channel());
        let once = Mutex::new(Some((began, released)));
        let answer = move |_| {
            let (began, released) = once.lock().unwrap().take().unwrap();
            async move {
                began.send(()).unwrap();
                released.await.unwrap();
                Answer::new(Full::new("done".into()))
            }
        };
        let served = tokio::spawn(serve(server, answer, async { drop(ending.await) }));
        client.write_all(call("/a", "").as_bytes()).await.unwrap();
        begun.await.unwrap();
        over.send(()).unwrap();
        release.send(()).unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 200 OK") && said.ends_with("done"), "{said}");
        served.await.unwrap().unwrap();
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_read_alike_however_much_of_it_is_there(bytes: Vec<u8>, at: prop::sample::Index) {
            let _ = parse(&bytes);
            let whole = call("/v1/poll", "");
            let (head, len) = parse(whole.as_bytes()).unwrap().unwrap();
            prop_assert_eq!((len, head.uri.path()), (whole.len(), "/v1/poll"));
            prop_assert_eq!(parse(&whole.as_bytes()[..at.index(whole.len())]), Ok(None));
        }
    }
}
