//! TLS with one agent, by rustls' interface without buffers: of the thousands of agents whose polls are held, none costs one here.
//! Its usual interface keeps 4 KiB for each connection as long as that lasts (ADR 11).

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{
    ServerConfig,
    pki_types::CertificateDer,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// What is read from the socket at once, in bytes.
const READ: usize = 4 << 10;
/// What is encrypted at once, in bytes: one record (RFC 8446 section 5.1).
const PLAIN: usize = 16 << 10;
/// What a record and a change of keys before it have around that at most.
const AROUND: usize = 1 << 10;
/// The largest record, with its head (RFC 5246 section 6.2.3).
const RECORD: usize = 5 + (16 << 10) + (2 << 10);
/// How much of the peer's handshake may wait for the rest of a message.
const HANDSHAKE: usize = 64 << 10;

/// A connection after its handshake.
pub(super) struct UnbufferedTls {
    tcp: TcpStream,
    tls: UnbufferedServerConnection,
    /// Arrived, and not understood yet.
    incoming: Vec<u8>,
    /// Understood, and not read yet.
    plain: Vec<u8>,
    /// Encrypted, and not sent yet.
    outgoing: Vec<u8>,
    /// The peer has said that nothing more comes from it.
    ended: bool,
    /// We have said so.
    closing: bool,
    /// Nothing that arrives can be understood any more.
    broken: bool,
}

/// What is to be sent once that can be encrypted.
#[derive(Clone, Copy)]
enum Out<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// That nothing more comes.
    End,
}

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There may be more to do.
    Again,
    /// What was to be sent is in `outgoing`.
    Sent,
    /// Nothing, before more has arrived.
    Idle,
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl UnbufferedTls {
    /// Shakes hands on `tcp`.
    ///
    /// # Errors
    /// The connection broke, or the peer does not speak TLS as `config` wants it.
    pub(super) async fn accept(tcp: TcpStream, config: Arc<ServerConfig>) -> io::Result<UnbufferedTls> {
        let mut secure = UnbufferedTls {
            tcp,
            tls: UnbufferedServerConnection::new(config).map_err(io::Error::other)?,
            incoming: Vec::new(),
            plain: Vec::new(),
            outgoing: Vec::new(),
            ended: false,
            closing: false,
            broken: false,
        };
        poll_fn(|context| secure.poll_handshake(context)).await?;
        Ok(secure)
    }

    /// The peer's certificate, if it has shown one.
    pub(super) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.tls.peer_certificates().and_then(<[_]>::first)
    }

    fn poll_handshake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.step(Out::Nothing)? == Step::Again {}
            ready!(self.poll_drain(context))?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_fill(context))?;
        }
    }

    /// Does the next thing that can be done. After an error, which is the end, the peer is told what is wrong, as far as that goes
    /// without waiting.
    fn step(&mut self, send: Out<'_>) -> io::Result<Step> {
        if self.broken {
            return Err(invalid("TLS has already failed on this connection"));
        }
        let step = self.next(send);
        if step.is_err() {
            self.broken = true;
            // The alert: what arrived is not looked at again as long as there is one.
            while self.tls.wants_write() && matches!(self.next(Out::Nothing), Ok(Step::Again)) {}
            self.send();
        }
        step
    }

    /// Sends what goes out without waiting. Whoever writes next finds out what is wrong, if something is.
    fn send(&mut self) {
        while !self.outgoing.is_empty() {
            match self.tcp.try_write(&self.outgoing) {
                // What is sent must not go out again with what is written next.
                Ok(len) if len > 0 => drop(self.outgoing.drain(..len)),
                _ => return,
            }
        }
        self.outgoing = Vec::new();
    }

    fn next(&mut self, send: Out<'_>) -> io::Result<Step> {
        let UnbufferedTls {
            tls,
            incoming,
            plain,
            outgoing,
            ended,
            ..
        } = self;
        let UnbufferedStatus { mut discard, state } = tls.process_tls_records(incoming);
        let step = match state {
            Ok(ConnectionState::ReadTraffic(mut records)) => loop {
                match records.next_record() {
                    Some(Ok(record)) => {
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                    Some(Err(error)) => break Err(invalid(error)),
                    None => break Ok(Step::Again),
                }
            },
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(outgoing, |space| data.encode(space)).map(|()| Step::Again)
            }
            // It is in `outgoing`, which goes out before anything that comes after it.
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Step::Again)
            }
            Ok(ConnectionState::PeerClosed) => {
                *ended = true;
                Ok(Step::Again)
            }
            Ok(ConnectionState::WriteTraffic(mut traffic)) => match send {
                Out::Nothing => Ok(Step::Idle),
                Out::Bytes(bytes) => append(outgoing, bytes.len() + AROUND, |space| {
                    traffic.encrypt(bytes, space)
                }),
                Out::End => append(outgoing, AROUND, |space| traffic.queue_close_notify(space)),
            },
            Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => Ok(Step::Idle),
            // Early data, which the configuration does not allow.
            Ok(other) => Err(invalid(format!("TLS came to {other:?}"))),
            Err(error) => Err(invalid(error)),
        };
        if discard > 0 {
            incoming.drain(..discard);
            // Whoever ends with a piece of the next record keeps room for that, and not for a handshake.
            incoming.shrink_to_fit();
        }
        step
    }

    /// Waits until something has arrived. Only then there is room for it.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let most = match self.tls.is_handshaking() {
            true => HANDSHAKE,
            false => RECORD,
        };
        if self.incoming.len() >= most {
            return Poll::Ready(Err(invalid("the peer's message is too large")));
        }
        let mut space = [MaybeUninit::uninit(); READ];
        let mut space = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.tcp).poll_read(context, &mut space))?;
        if space.filled().is_empty() {
            let cut = "the peer closed the connection without close_notify";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut)));
        }
        self.incoming.extend_from_slice(space.filled());
        Poll::Ready(Ok(()))
    }

    /// Waits until all that is encrypted is sent.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let sent = ready!(Pin::new(&mut self.tcp).poll_write(context, &self.outgoing))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.drain(..sent);
        }
        self.outgoing = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Encrypts `send`.
    fn encrypt(&mut self, send: Out<'_>) -> io::Result<()> {
        loop {
            match self.step(send)? {
                Step::Again => {}
                Step::Sent => return Ok(()),
                Step::Idle => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }
}

/// Appends a message of the handshake to `outgoing`.
fn encode(
    outgoing: &mut Vec<u8>,
    mut put: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> io::Result<()> {
    let start = outgoing.len();
    let mut room = AROUND;
    loop {
        outgoing.resize(start + room, 0);
        match put(&mut outgoing[start..]) {
            Ok(len) => {
                outgoing.truncate(start + len);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(wanted)) if wanted.required_size > room => {
                room = wanted.required_size;
            }
            Err(error) => {
                outgoing.truncate(start);
                return Err(invalid(error));
            }
        }
    }
}

/// Appends what `put` encrypts, which fits into `room`, to `outgoing`.
fn append<E>(
    outgoing: &mut Vec<u8>,
    room: usize,
    put: impl FnOnce(&mut [u8]) -> Result<usize, E>,
) -> io::Result<Step>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let start = outgoing.len();
    outgoing.resize(start + room, 0);
    let put = put(&mut outgoing[start..]);
    outgoing.truncate(start + put.as_ref().map_or(0, |len| *len));
    put.map(|_| Step::Sent).map_err(io::Error::other)
}

impl AsyncRead for UnbufferedTls {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let secure = self.get_mut();
        while secure.plain.is_empty() && !secure.ended {
            if secure.step(Out::Nothing)? == Step::Idle {
                // What was read may have called for a word back, and nobody may be writing.
                secure.send();
                ready!(secure.poll_fill(context))?;
            }
        }
        let len = into.remaining().min(secure.plain.len());
        into.put_slice(&secure.plain[..len]);
        secure.plain.drain(..len);
        if secure.plain.is_empty() {
            secure.plain = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UnbufferedTls {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let secure = self.get_mut();
        if secure.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // Whoever does not read is sent no more.
        ready!(secure.poll_drain(context))?;
        let piece = &bytes[..bytes.len().min(PLAIN)];
        secure.encrypt(Out::Bytes(piece))?;
        // The rest goes with what is written next, or is waited for.
        if let Poll::Ready(sent) = secure.poll_drain(context) {
            sent?;
        }
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_drain(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let secure = self.get_mut();
        if !secure.closing {
            secure.encrypt(Out::End)?;
            secure.closing = true;
        }
        ready!(secure.poll_drain(context))?;
        Pin::new(&mut secure.tcp).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
