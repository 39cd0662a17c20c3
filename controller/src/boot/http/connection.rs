//! One connection: requests in, responses out, one after the other, each within its time.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Answer, Limits,
    body::Body,
    head::{self, Method, Progress, Request},
    response::{Response, Status},
    route, send,
};
use crate::boot::peers::Notes;

/// How long, and for how many bytes, a client that is being turned away is listened to, so that it reads why.
const FAREWELL: (Duration, usize) = (Duration::from_secs(1), 64 * 1024);

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The client's address.
    pub peer: SocketAddr,
    /// Ours, by which the client reaches us.
    pub local: SocketAddr,
}

/// What came instead of a request.
enum Instead {
    /// The client closed, broke off or said nothing.
    Nothing,
    /// Something to turn away.
    Refused(Status),
}

/// Serves one connection to its end. `crowded` says that others wait for a place: then no connection is kept for a further request.
pub(super) async fn serve<A: Answer>(
    mut stream: TcpStream,
    ends: Ends,
    answer: &A,
    limits: &Limits,
    notes: &Notes,
    crowded: impl Fn() -> bool,
) {
    let mut buffer = Vec::new();
    let mut idle = limits.head;
    loop {
        let request = match request(&stream, &mut buffer, idle, limits.head).await {
            Ok(request) => request,
            Err(Instead::Nothing) => return,
            Err(Instead::Refused(status)) => {
                let response = Response::error(status, "this is a plain file server");
                let head = response.head(false, Timestamp::now());
                if send::all(&stream, &head, &response.body, limits.stall)
                    .await
                    .is_ok()
                {
                    farewell(&mut stream).await;
                }
                return;
            }
        };
        idle = limits.idle;
        let begun = Instant::now();
        let response = match request.method {
            Method::Other => Response::error(Status::MethodNotAllowed, "only GET and HEAD are served"),
            _ => answer.answer(&request.target, ends).await.ranged(&request),
        };
        let go_on = request.keep_alive && response.status.is_success() && !crowded();
        let head = response.head(go_on, Timestamp::now());
        let no_body = Body::default();
        let body = if request.method == Method::Head {
            &no_body
        } else {
            &response.body
        };
        let sent = send::all(&stream, &head, body, limits.stall).await;
        log(&request, &response, &sent, ends, notes, begun);
        if sent.is_err() {
            return;
        }
        if !go_on {
            return farewell(&mut stream).await;
        }
    }
}

/// The next request; what follows it stays in `buffer`.
async fn request(
    stream: &TcpStream,
    buffer: &mut Vec<u8>,
    idle: Duration,
    whole: Duration,
) -> Result<Request, Instead> {
    let mut until = Instant::now() + if buffer.is_empty() { idle } else { whole };
    loop {
        if !buffer.is_empty() {
            match head::parse(buffer) {
                Progress::Complete(request, len) => {
                    buffer.drain(..len);
                    return Ok(request);
                }
                Progress::Refused(status) => return Err(Instead::Refused(status)),
                Progress::Partial => {}
            }
        }
        let first = buffer.is_empty();
        match timeout_at(until, read(stream, buffer)).await {
            Ok(Ok(0)) | Ok(Err(_)) => return Err(Instead::Nothing),
            Ok(Ok(_)) if first => until = Instant::now() + whole,
            Ok(Ok(_)) => {}
            Err(_) if first => return Err(Instead::Nothing),
            Err(_) => return Err(Instead::Refused(Status::Timeout)),
        }
    }
}

/// Appends what has arrived, at most up to the longest head. The space is taken only once there is something to read:
/// a thousand connections that wait cost nothing.
async fn read(stream: &TcpStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        let mut space = [0; 1024];
        let room = space.len().min(head::MAX.saturating_sub(buffer.len()));
        match stream.try_read(&mut space[..room]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok(len) => {
                buffer.extend(&space[..len]);
                return Ok(len);
            }
        }
    }
}

/// Closes so that the last response arrives: closing with bytes unread would make the kernel reset the connection,
/// and the client would throw away what it has not read yet (RFC 9112, 9.6).
async fn farewell(stream: &mut TcpStream) {
    let (time, bytes) = FAREWELL;
    if stream.shutdown().await.is_err() {
        return;
    }
    let drain = async {
        let mut space = [0; 1024];
        let mut left = bytes;
        while left > 0 && stream.readable().await.is_ok() {
            match stream.try_read(&mut space) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(len) if len > 0 => left = left.saturating_sub(len),
                _ => return,
            }
        }
    };
    let _ = timeout(time, drain).await;
}

fn log(
    request: &Request,
    response: &Response,
    sent: &Result<(), send::SendError>,
    ends: Ends,
    Notes {
        peers,
        refusals,
        steps,
    }: &Notes,
    begun: Instant,
) {
    let ms = begun.elapsed().as_millis();
    let client = ends.peer;
    let Some(step) = &response.step else {
        let target = muster_proto::text::clean(route::without_passes(&request.target).as_bytes());
        let status = response.status.line();
        if let Some(left_out) = refusals.say(client.ip(), &format!("{status} {target}")) {
            tracing::info!(%client, target, status, why = response.why, left_out, "HTTP: nothing to serve");
        }
        return;
    };
    if let Some(mac) = step.mac {
        peers.note(client.ip(), mac);
    }
    let mac = step.mac.or_else(|| peers.mac(client.ip()));
    let mac = mac.as_ref().map(tracing::field::display);
    let segment = step.segment.as_deref();
    if sent.is_ok() && request.method == Method::Head {
        return;
    }
    // A client may ask for one byte after the other, or for script after script.
    let Some(left_out) = steps.say(client.ip()) else {
        return;
    };
    let left_out = (left_out > 0).then_some(left_out);
    match sent {
        Ok(()) => {
            let bytes = response.body.len();
            tracing::info!(step = step.what, mac, segment, %client, bytes, ms, left_out, "boot step");
        }
        // Firmware that reads a part, resets or gives up: its own matter.
        Err(error @ (send::SendError::Socket(_) | send::SendError::Stalled)) => {
            tracing::info!(step = step.what, mac, segment, %client, ms, %error, left_out, "boot step aborted");
        }
        Err(error @ (send::SendError::File(_) | send::SendError::Short { .. })) => {
            tracing::error!(step = step.what, mac, segment, %client, ms, %error, left_out, "boot file damaged");
        }
    }
}
