//! Permission to change something at a BMC: it ends with the leadership under which that was decided.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
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

/// Permission to change something, as long as it lasts.
#[derive(Clone, Debug)]
pub struct Permission {
    term: Term,
    fence: Arc<Fence>,
}

impl Permission {
    /// For `term`; no older one has permission from now on.
    pub(super) fn of(term: Term, fence: &Arc<Fence>) -> Permission {
        fence.raise(term.epoch);
        Permission {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// For doubles of BMCs.
    impl Term {
        /// True as long as it is not over by itself, whether or not a newer one was seen.
        pub(crate) fn lasts(&self) -> bool {
            (self.lasts)()
        }
    }
}
