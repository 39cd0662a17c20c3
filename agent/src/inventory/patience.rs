//! Reading devices that may not answer: a driver whose hardware hangs can hold up a read of sysfs for minutes, or for ever; and that of one
//! network interface all that is asked about any, since the kernel answers that under one lock.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// How long one device may take; sysfs answers in microseconds.
const EACH: Duration = Duration::from_secs(5);

/// How long all devices that do not answer may take together.
const ALL: Duration = Duration::from_secs(20);

/// What is left for each once all patience is spent.
const LEAST: Duration = Duration::from_millis(100);

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

    /// What `read` returns, or `None` if that takes too long: then its thread is left to its fate.
    pub(crate) fn wait<T: Send + 'static>(&mut self, read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (tell, told) = mpsc::channel();
        let started = Instant::now();
        let reader = move || {
            // Nobody listens any more if it took too long.
            _ = tell.send(read());
        };
        // Without memory for a thread there is none for anything else.
        thread::Builder::new()
            .name("read-device".to_owned())
            .spawn(reader)
            .ok()?;
        let found = told.recv_timeout(self.each.min(self.left).max(LEAST)).ok();
        if found.is_none() {
            self.left = self.left.saturating_sub(started.elapsed());
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
        assert_eq!(patience.wait(move || never.recv().is_ok()), None);
        assert_eq!(patience.left, Duration::ZERO);
        assert_eq!(patience.wait(|| 7), Some(7));
    }
}
