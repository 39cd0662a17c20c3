//! Bytes and files into a socket. Files go by sendfile(2): from the page cache to the network, never through our memory.

use std::{fs::File, io, os::fd::AsRawFd, time::Duration};

use nix::sys::{
    sendfile::sendfile64,
    socket::{MsgFlags, send},
};
use tokio::{io::Interest, net::TcpStream, time::timeout};

use super::body::{Body, Segment};

/// The most that one call moves: a slow disk then holds up the thread's other connections only so long. A quarter of it costs a tenth
/// more of a processor, because a socket takes some megabytes at once.
const CHUNK: u64 = 2 << 20;

/// Why sending stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// The client took nothing for too long.
    #[error("send to a client that takes nothing")]
    Stalled,
    /// The connection broke.
    #[error("send to socket")]
    Socket(#[source] io::Error),
    /// The disk failed.
    #[error("read file to send")]
    File(#[source] io::Error),
    /// The file got shorter since it was opened: someone wrote over it instead of replacing it.
    #[error("the file to send ends {missing} bytes early")]
    Short {
        /// Bytes that are not there.
        missing: u64,
    },
}

/// Sends `head` and then `body`; gives up once the client takes nothing for as long as `stall`.
///
/// The socket is not corked (tcp(7)), and is written to as soon as it takes anything: corked, and left alone until a third of it is
/// free, it took a quarter more of a processor for the same bytes.
pub(super) async fn all(
    stream: &TcpStream,
    head: &[u8],
    body: &Body,
    stall: Duration,
) -> Result<(), SendError> {
    bytes(stream, head, stall).await?;
    for part in body.segments() {
        match part {
            Segment::Bytes(part) => bytes(stream, part, stall).await?,
            Segment::File {
                file: part,
                offset,
                len,
            } => file(stream, part, *offset, *len, stall).await?,
        }
    }
    Ok(())
}

async fn bytes(stream: &TcpStream, mut bytes: &[u8], stall: Duration) -> Result<(), SendError> {
    while !bytes.is_empty() {
        let send = || send(stream.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL);
        let sent = when_writable(stream, stall, send).await?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

async fn file(
    stream: &TcpStream,
    file: &File,
    offset: u64,
    len: u64,
    stall: Duration,
) -> Result<(), SendError> {
    // An offset beyond what files can have means a file shorter than that.
    let mut at = i64::try_from(offset).map_err(|_| SendError::Short { missing: len })?;
    let mut left = len;
    while left > 0 {
        let count = usize::try_from(left.min(CHUNK)).expect("a chunk fits");
        match when_writable(stream, stall, || sendfile64(stream, file, Some(&mut at), count)).await? {
            0 => return Err(SendError::Short { missing: left }),
            sent => left -= sent as u64,
        }
    }
    Ok(())
}

/// Calls `write` once the socket has room.
async fn when_writable(
    stream: &TcpStream,
    stall: Duration,
    mut write: impl FnMut() -> nix::Result<usize>,
) -> Result<usize, SendError> {
    let write = stream.async_io(Interest::WRITABLE, || {
        loop {
            match write() {
                Err(nix::Error::EINTR) => {}
                result => return result.map_err(io::Error::from),
            }
        }
    });
    match timeout(stall, write).await {
        Ok(Ok(sent)) => Ok(sent),
        Ok(Err(source)) if source.raw_os_error() == Some(nix::Error::EIO as i32) => {
            Err(SendError::File(source))
        }
        Ok(Err(source)) => Err(SendError::Socket(source)),
        Err(_) => Err(SendError::Stalled),
    }
}
