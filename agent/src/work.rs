//! A piece of work that takes long: it tells its progress and what it warns of, may be stopped from outside, and tells when a thread of it
//! breaks.

use std::{
    cell::RefCell,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use muster_proto::job::Progress;
use tokio::sync::{Notify, watch};

use crate::sync::lock;

/// Between two reports of the same step.
const PACE: Duration = Duration::from_millis(500);

/// Connects a piece of work to who ordered it; clones are the same one.
///
/// ```
/// use muster_agent::work::Work;
/// let work = Work::new(|progress| println!("{} {} %", progress.step, progress.percent));
/// let stopper = work.clone();
/// stopper.stop();
/// assert!(work.is_stopped());
/// ```
#[derive(Clone)]
pub struct Work {
    inner: Arc<Inner>,
}

struct Inner {
    stopped: AtomicBool,
    stop: Notify,
    /// Why a thread of it broke, once one has.
    broken: watch::Sender<Option<String>>,
    pace: Mutex<Pace>,
    warnings: Mutex<Vec<String>>,
    report: Box<dyn Fn(&Progress) + Send + Sync>,
}

/// What was reported last.
#[derive(Debug, Default)]
struct Pace {
    step: &'static str,
    /// What holds the step up; empty: nothing.
    trouble: &'static str,
    /// When, and how many bytes of the step were done.
    last: Option<(Instant, u64)>,
    percent: u8,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("stopped", &self.is_stopped())
            .finish_non_exhaustive()
    }
}

/// The work was stopped from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it was stopped")]
pub struct Stopped;

thread_local! {
    /// What this thread works on.
    static HERE: RefCell<Option<Work>> = const { RefCell::new(None) };
}

/// This thread will not go on, for the reason `why`: who ordered its work hears of it. False if nobody did.
///
/// For the hook of panics: where a panic ends the process, nothing else comes to tell.
pub fn break_off(why: &str) -> bool {
    // In a panic nothing may panic.
    let here = HERE.try_with(|here| here.try_borrow().ok()?.clone());
    let Some(work) = here.ok().flatten() else {
        return false;
    };
    work.give_up(why);
    true
}

impl Work {
    /// `report` hears of every new step, and within one at most twice a second. It is called on the working threads and must
    /// not block.
    pub fn new(report: impl Fn(&Progress) + Send + Sync + 'static) -> Work {
        Work {
            inner: Arc::new(Inner {
                stopped: AtomicBool::new(false),
                stop: Notify::new(),
                broken: watch::Sender::default(),
                pace: Mutex::default(),
                warnings: Mutex::default(),
                report: Box::new(report),
            }),
        }
    }

    /// Work that nobody watches.
    pub fn unwatched() -> Work {
        Work::new(|_| {})
    }

    /// Makes the work end as soon as it can, with an error. What is half written stays unbootable.
    pub fn stop(&self) {
        self.inner.stopped.store(true, Ordering::SeqCst);
        self.inner.stop.notify_waiters();
    }

    /// True after [`Work::stop`].
    pub fn is_stopped(&self) -> bool {
        self.inner.stopped.load(Ordering::SeqCst)
    }

    /// # Errors
    /// [`Stopped`] after [`Work::stop`].
    pub fn go_on(&self) -> Result<(), Stopped> {
        if self.is_stopped() { Err(Stopped) } else { Ok(()) }
    }

    /// Ends after [`Work::stop`].
    pub async fn stopped(&self) {
        let notified = self.inner.stop.notified();
        tokio::pin!(notified);
        // Registered before the look, or a stop between both would not be heard.
        notified.as_mut().enable();
        if !self.is_stopped() {
            notified.await;
        }
    }

    /// Does a part of it on this thread.
    pub fn part<T>(&self, part: impl FnOnce() -> T) -> T {
        let before = HERE.replace(Some(self.clone()));
        let done = part();
        HERE.set(before);
        done
    }

    /// It will come to no end, for the reason `why`: what works on it is told to stop, and may never do so.
    pub fn give_up(&self, why: &str) {
        self.inner.broken.send_replace(Some(why.to_owned()));
        self.stop();
    }

    /// True after [`Work::give_up`], also by [`break_off`] on a thread of it.
    pub fn is_broken(&self) -> bool {
        self.inner.broken.borrow().is_some()
    }

    /// Ends when it is given up, with the reason.
    pub async fn broken(&self) -> String {
        let mut broken = self.inner.broken.subscribe();
        let why = broken.wait_for(Option::is_some).await;
        // Its sender lives as long as this.
        why.ok().and_then(|why| why.clone()).unwrap_or_default()
    }

    /// `step` begins; `percent` of the whole work is done.
    pub fn step(&self, step: &'static str, percent: u8) {
        let mut pace = lock(&self.inner.pace);
        *pace = Pace {
            step,
            trouble: "",
            last: Some((Instant::now(), 0)),
            percent,
        };
        self.report(&pace, 0);
    }

    /// Of the current step `bytes` are done, of the whole work `percent`.
    pub fn advance(&self, bytes: u64, percent: u8) {
        let mut pace = lock(&self.inner.pace);
        let now = Instant::now();
        let (at, done) = pace.last.unwrap_or((now, 0));
        let elapsed = now.saturating_duration_since(at);
        if elapsed < PACE {
            return;
        }
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        let speed = bytes.saturating_sub(done).saturating_mul(1000) / millis;
        pace.last = Some((now, bytes));
        pace.percent = pace.percent.max(percent);
        self.report(&pace, speed);
    }

    /// The current step is held up by `trouble`, which is said at once and with the step from now on; empty: by nothing any more, as the next
    /// report says.
    pub fn trouble(&self, trouble: &'static str) {
        let mut pace = lock(&self.inner.pace);
        let is_new = !trouble.is_empty() && pace.trouble != trouble;
        pace.trouble = trouble;
        if is_new {
            self.report(&pace, 0);
        }
    }

    /// It goes on, though nothing of it gets done for a while: what was reported last is reported again.
    pub fn is_alive(&self) {
        let mut pace = lock(&self.inner.pace);
        let now = Instant::now();
        let (at, done) = pace.last.unwrap_or((now, 0));
        if now.saturating_duration_since(at) >= PACE {
            pace.last = Some((now, done));
            self.report(&pace, 0);
        }
    }

    /// Something did not go as it should, and the work goes on all the same: who ordered it hears of it at its end.
    pub fn warn(&self, warning: String) {
        tracing::warn!("{warning}");
        lock(&self.inner.warnings).push(warning);
    }

    /// What was warned of so far.
    pub fn warnings(&self) -> Vec<String> {
        lock(&self.inner.warnings).clone()
    }

    fn report(&self, pace: &Pace, bytes_per_second: u64) {
        let step = match pace.trouble {
            "" => pace.step.to_owned(),
            trouble => format!("{} ({trouble})", pace.step),
        };
        (self.inner.report)(&Progress {
            step,
            percent: pace.percent,
            bytes_per_second,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_only_goes_on_says_so_now_and_then_and_as_it_was() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let hear = Arc::clone(&said);
        let work = Work::new(move |progress| hear.lock().unwrap().push(progress.clone()));
        work.step("a", 40);
        work.is_alive();
        assert_eq!(said.lock().unwrap().len(), 1, "not too often");
        std::thread::sleep(PACE);
        work.is_alive();
        let said = said.lock().unwrap();
        assert_eq!((said.len(), said[1].percent, said[1].step.as_str()), (2, 40, "a"));
    }

    #[test]
    fn what_holds_a_step_up_is_said_once_and_at_once_and_ends_with_it() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let hear = Arc::clone(&said);
        let work = Work::new(move |progress| hear.lock().unwrap().push(progress.step.clone()));
        work.step("a", 0);
        work.trouble("no answer");
        work.trouble("no answer");
        work.step("b", 10);
        work.trouble("no answer");
        work.trouble("");
        std::thread::sleep(PACE);
        work.is_alive();
        let expected = ["a", "a (no answer)", "b", "b (no answer)", "b"];
        assert_eq!(*said.lock().unwrap(), expected);
    }

    #[test]
    fn every_step_is_reported_and_percents_never_fall() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let hear = Arc::clone(&said);
        let work = Work::new(move |progress| hear.lock().unwrap().push(progress.clone()));
        work.step("a", 0);
        work.advance(1, 50);
        work.is_alive();
        work.step("b", 60);
        let said = said.lock().unwrap();
        let steps: Vec<_> = said
            .iter()
            .map(|progress| (progress.step.as_str(), progress.percent))
            .collect();
        assert!(steps.is_sorted_by_key(|(_, percent)| *percent), "{steps:?}");
        assert_eq!((steps[0], *steps.last().unwrap()), (("a", 0), ("b", 60)));
    }

    #[tokio::test]
    async fn a_thread_that_breaks_tells_who_ordered_its_work_and_nobody_else() {
        assert!(!break_off("of nobody"));
        let (work, other) = (Work::unwatched(), Work::unwatched());
        let parts = work.clone();
        std::thread::spawn(move || other.part(|| parts.part(|| assert!(break_off("index out of bounds")))))
            .join()
            .unwrap();
        assert_eq!(work.broken().await, "index out of bounds");
        assert!(work.is_stopped(), "its other threads end");
        work.part(|| {});
        assert!(!break_off("no longer"), "a thread goes on to other work");
    }

    #[tokio::test]
    async fn a_stop_is_heard_whether_it_came_before_or_after() {
        let work = Work::unwatched();
        let (stopper, waiting) = (work.clone(), work.clone());
        let waiter = tokio::spawn(async move { waiting.stopped().await });
        tokio::task::yield_now().await;
        stopper.stop();
        waiter.await.unwrap();
        work.stopped().await;
        assert_eq!(work.go_on(), Err(Stopped));
    }
}
