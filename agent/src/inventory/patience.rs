//! Reading devices that may not answer: a driver whose hardware hangs can hold up a read of sysfs for minutes, or for ever; and that of one
//! network interface all that is asked about any, since the kernel answers that under one lock.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::{Mutex, MutexGuard, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::sync::lock;

/// How long one device may take; sysfs answers in microseconds.
const EACH: Duration = Duration::from_secs(5);

/// How long all devices that do not answer may take together.
const ALL: Duration = Duration::from_secs(20);

/// What is left for each once all patience is spent.
const LEAST: Duration = Duration::from_millis(100);

/// What was asked of devices that have not answered yet. It is not asked again by another thread: reports may come for days.
static HANGS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The device to which `link` leads, at a place of its own: a name may be another device's after it.
pub(super) fn device(link: PathBuf) -> PathBuf {
    match fs::read_link(&link) {
        // As sysfs has them, from where the link is.
        Ok(to) => link.with_file_name(to),
        Err(_) => link,
    }
}

fn hangs() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    lock(&HANGS)
}

/// How much longer devices are waited for.
#[derive(Debug)]
pub(crate) struct Patience {
    each: Duration,
    left: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            each: EACH,
            left: ALL,
        }
    }
}

impl Patience {
    #[cfg(test)]
    pub(crate) fn of(each: Duration) -> Patience {
        Patience { each, left: each }
    }

    /// What `read` returns, which asks for `what`, or `None` if that takes too long: then its thread is left to its fate, and it is not asked
    /// for again before that has come back.
    pub(crate) fn wait<T: Send + 'static>(
        &mut self,
        what: PathBuf,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if hangs().contains(&what) {
            return None;
        }
        let (tell, told) = mpsc::channel();
        let started = Instant::now();
        let asked = what.clone();
        let reader = move || {
            // Nobody listens any more if it took too long.
            _ = tell.send(read());
            hangs().remove(&asked);
        };
        // Without memory for a thread there is none for anything else.
        thread::Builder::new()
            .name("read-device".to_owned())
            .spawn(reader)
            .ok()?;
        let found = told.recv_timeout(self.each.min(self.left).max(LEAST)).ok();
        if found.is_some() {
            return found;
        }
        self.left = self.left.saturating_sub(started.elapsed());
        let mut hangs = hangs();
        // Its reader comes here after it has told.
        let found = told.try_recv().ok();
        if found.is_none() {
            hangs.insert(what);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_and_the_others_are_heard_all_the_same() {
        let mut patience = Patience::of(Duration::from_millis(20));
        let (_held, never) = mpsc::channel::<()>();
        assert_eq!(patience.wait("a".into(), move || never.recv().is_ok()), None);
        assert_eq!(patience.left, Duration::ZERO);
        assert_eq!(patience.wait("b".into(), || 7), Some(7));
    }

    #[test]
    fn a_device_that_does_not_answer_has_one_reader_however_often_it_is_asked_for() {
        let mut patience = Patience::of(Duration::from_millis(20));
        let (release, held) = mpsc::channel::<()>();
        assert_eq!(patience.wait("c".into(), move || held.recv().is_ok()), None);
        for _ in 0..3 {
            let ask = || -> bool { unreachable!("nobody reads it again") };
            assert_eq!(patience.wait("c".into(), ask), None);
        }
        // Its driver woke up.
        release.send(()).unwrap();
        while patience.wait("c".into(), || true).is_none() {
            thread::yield_now();
        }
    }
}
