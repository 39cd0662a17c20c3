//! A connection on which nothing is written without permission: what was decided while it lasted leaves this process no later.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// The connection, and who is asked right before every write, also by a process that was stopped meanwhile.
pub(crate) struct FencedStream {
    stream: TcpStream,
    may_write: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
}

impl FencedStream {
    /// Nothing is written to `stream` once `may_write` says no.
    pub(crate) fn new(
        stream: TcpStream,
        may_write: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> FencedStream {
        FencedStream {
            stream,
            may_write: Box::new(may_write),
        }
    }
}

impl Connection for FencedStream {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

impl AsyncRead for FencedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for FencedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        (self.may_write)()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        (self.may_write)()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn nothing_is_written_without_leave_and_what_comes_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut other, _) = listener.accept().await.unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let is_ended = Arc::clone(&ended);
        let mut fenced = FencedStream::new(stream, move || match is_ended.load(Ordering::SeqCst) {
            true => Err(io::Error::other("it is over")),
            false => Ok(()),
        });
        fenced.write_all(b"before").await.unwrap();
        ended.store(true, Ordering::SeqCst);
        fenced.write_all(b"after").await.unwrap_err();
        fenced
            .write_vectored(&[IoSlice::new(b"after")])
            .await
            .unwrap_err();
        other.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        fenced.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        drop(fenced);
        let mut all = String::new();
        other.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "before");
    }
}
