//! Leave to change something at a BMC: it ends with the leadership under which that was decided.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{BmcError, Epoch};

/// The leadership under which something was decided.
#[derive(Clone)]
pub struct Term {
    epoch: Epoch,
    lasts: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Term {
    /// The term `epoch`, which is over once `lasts` says so: it is asked right before every write to the network, also by a process
    /// that was stopped meanwhile.
    pub fn new(epoch: Epoch, lasts: impl Fn() -> bool + Send + Sync + 'static) -> Term {
        let lasts = Arc::new(lasts);
        Term { epoch, lasts }
    }

    /// Its number.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// One that lasts until a newer one is seen.
impl From<Epoch> for Term {
    fn from(epoch: Epoch) -> Term {
        Term::new(epoch, || true)
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Term {}", self.epoch)
    }
}

/// The newest epoch that anybody came with.
#[derive(Debug)]
pub(super) struct Fence(AtomicI64);

impl Default for Fence {
    fn default() -> Fence {
        Fence(AtomicI64::new(Epoch::MIN))
    }
}

impl Fence {
    /// Nothing older than `epoch` changes anything from now on.
    pub(super) fn raise(&self, epoch: Epoch) {
        self.0.fetch_max(epoch, Ordering::SeqCst);
    }
}

/// Leave to change something, as long as it lasts.
#[derive(Clone, Debug)]
pub struct Leave {
    term: Term,
    fence: Arc<Fence>,
}

impl Leave {
    /// For `term`; no older one has leave from now on.
    pub(super) fn of(term: Term, fence: &Arc<Fence>) -> Leave {
        fence.raise(term.epoch);
        Leave {
            term,
            fence: Arc::clone(fence),
        }
    }

    /// Whether whoever decided this may still act.
    pub(super) fn check(&self) -> Result<(), BmcError> {
        let (epoch, seen) = (self.term.epoch, self.fence.0.load(Ordering::SeqCst));
        if epoch < seen {
            return Err(BmcError::Fenced { epoch, seen });
        }
        if (self.term.lasts)() {
            Ok(())
        } else {
            Err(BmcError::Lapsed { epoch })
        }
    }
}

/// A connection on which nothing is written once the leave for it has ended; without one it is any connection.
pub(super) struct Gated {
    stream: TcpStream,
    leave: Option<Leave>,
}

impl Gated {
    pub(super) fn new(stream: TcpStream, leave: Option<Leave>) -> Gated {
        Gated { stream, leave }
    }

    fn check(&self) -> io::Result<()> {
        match &self.leave {
            Some(leave) => leave.check().map_err(io::Error::other),
            None => Ok(()),
        }
    }
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
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
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }
}
