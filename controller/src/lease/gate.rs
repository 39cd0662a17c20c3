//! What stands between a decision of the leader and the API server: a right that ends by itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{clock, next::Moment};

/// One term of this process as the leader, which may lapse until a renewal that is under way is taken. Once it is closed it never comes back:
/// the next term is another one.
#[derive(Clone, Debug)]
pub struct Leadership {
    epoch: i64,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct Gate {
    /// In nanoseconds of [`clock`]; zero: over for good.
    until: AtomicU64,
    /// False once nothing new may begin.
    admits: AtomicBool,
    /// Requests whose answer is not there yet.
    under_way: watch::Sender<usize>,
    over: watch::Sender<bool>,
}

/// This process does not lead any more; nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process is no longer the leader (epoch {epoch}); nothing was written")]
pub struct NotLeading {
    /// The term that is over.
    pub epoch: i64,
}

/// A request that was let through. Held until its answer is there.
#[derive(Debug)]
pub struct UnderWay(Arc<Gate>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0
            .under_way
            .send_modify(|count| *count = count.saturating_sub(1));
    }
}

fn nanoseconds(moment: Moment) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

impl Leadership {
    /// The term `epoch`, which lasts until `until`.
    pub fn new(epoch: i64, until: Moment) -> Leadership {
        Leadership {
            epoch,
            gate: Arc::new(Gate {
                until: AtomicU64::new(nanoseconds(until)),
                admits: AtomicBool::new(true),
                under_way: watch::Sender::new(0),
                over: watch::Sender::new(false),
            }),
        }
    }

    /// The number of the term: higher than that of every term before. Jobs and calls carry it, so that whoever has seen a higher
    /// one refuses them.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// True while this process leads. Ask right before each effect that does not go through a client of [`super::client`].
    pub fn still(&self) -> bool {
        self.gate.admits.load(Ordering::SeqCst) && self.lasts()
    }

    /// True while what was begun may go out.
    pub(super) fn lasts(&self) -> bool {
        nanoseconds(clock::now()) < self.gate.until.load(Ordering::SeqCst)
    }

    /// Returns once the term is over, or is being given up. It may be over a moment before: only [`Leadership::still`] is certain.
    pub async fn ended(&self) {
        // The sender lives in what we hold, so the wait cannot fail.
        let _ = self.gate.over.subscribe().wait_for(|over| *over).await;
    }

    /// Lets one request through, or not.
    pub fn begin(&self) -> Result<UnderWay, NotLeading> {
        // Counted first: one that comes while the term is given up is either waited for or refused.
        self.gate.under_way.send_modify(|count| *count += 1);
        let under_way = UnderWay(Arc::clone(&self.gate));
        if self.still() {
            Ok(under_way)
        } else {
            Err(NotLeading { epoch: self.epoch })
        }
    }

    /// It lasts until `until`, if it was not over yet.
    pub(crate) fn extend(&self, until: Moment) {
        let until = nanoseconds(until);
        let longer = |old: u64| (old > 0).then_some(old.max(until));
        // Refused only for a term that is over.
        let _ = self
            .gate
            .until
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, longer);
    }

    /// Over, for good: what was begun does not go out either.
    pub(super) fn close(&self) {
        self.gate.admits.store(false, Ordering::SeqCst);
        self.gate.until.store(0, Ordering::SeqCst);
        self.gate.over.send_replace(true);
    }

    /// Nothing new begins. True once nothing is under way any more; false if that takes longer than `patience`.
    pub(super) async fn drain(&self, patience: Duration) -> bool {
        self.gate.admits.store(false, Ordering::SeqCst);
        self.gate.over.send_replace(true);
        let mut under_way = self.gate.under_way.subscribe();
        let drained = under_way.wait_for(|count| *count == 0);
        matches!(tokio::time::timeout(patience, drained).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    impl Leadership {
        /// It is over from now on, as for a process that was stopped for that long, unless it is extended.
        pub(crate) fn lapse(&self) {
            self.gate.until.store(nanoseconds(clock::now()), Ordering::SeqCst);
        }
    }

    #[test]
    fn a_term_lasts_as_long_as_it_is_renewed_and_never_comes_back() {
        let over = Leadership::new(7, clock::now());
        assert!(!over.still());
        over.extend(clock::now() + 100 * SECOND);
        assert!(
            over.still(),
            "a renewal that was taken says that nobody led in between"
        );
        assert_eq!(over.epoch(), 7);
        over.close();
        over.extend(clock::now() + 100 * SECOND);
        assert!(!over.still());
        assert_eq!(over.begin().unwrap_err(), NotLeading { epoch: 7 });
    }

    #[tokio::test]
    async fn a_term_is_given_up_when_what_was_begun_is_done() {
        let term = Leadership::new(1, clock::now() + 100 * SECOND);
        let begun = term.begin().unwrap();
        let giving_up = tokio::spawn({
            let term = term.clone();
            async move { term.drain(100 * SECOND).await }
        });
        term.ended().await;
        assert!(term.begin().is_err(), "nothing new begins");
        assert!(term.lasts(), "what was begun goes out");
        assert!(!giving_up.is_finished());
        drop(begun);
        assert!(giving_up.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_answer_holds_up_the_giving_up_for_so_long_only() {
        let term = Leadership::new(1, clock::now() + 100 * SECOND);
        let _begun = term.begin().unwrap();
        assert!(!term.drain(SECOND).await);
    }
}
