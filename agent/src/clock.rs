//! The time that TLS believes: the machine's clock may stand at 1970 or 2040, so it is never asked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

/// Since the kernel started, sleep included. The machine's wall clock has no part in it.
pub fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default()
}

/// A wall clock that was told the time once and counts on from there; clones share it.
#[derive(Clone, Debug)]
pub struct Clock {
    /// Unix seconds at which the kernel would have started.
    origin: Arc<AtomicI64>,
}

impl Clock {
    /// It is `unix` seconds now.
    pub fn told(unix: i64) -> Clock {
        let clock = Clock {
            origin: Arc::default(),
        };
        clock.correct(unix);
        clock
    }

    /// It is `unix` seconds now: someone knows better.
    pub fn correct(&self, unix: i64) {
        self.origin
            .store(unix.saturating_sub(counted()), Ordering::Relaxed);
    }

    /// Unix seconds.
    pub fn now(&self) -> i64 {
        self.origin.load(Ordering::Relaxed).saturating_add(counted())
    }
}

fn counted() -> i64 {
    i64::try_from(uptime().as_secs()).unwrap_or(i64::MAX)
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let now = u64::try_from(self.now()).unwrap_or(0);
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_believes_what_it_was_told_last() {
        let clock = Clock::told(1_800_000_000);
        assert!((1_800_000_000..1_800_000_100).contains(&clock.now()));
        let copy = clock.clone();
        copy.correct(1_900_000_000);
        assert!((1_900_000_000..1_900_000_100).contains(&clock.now()));
    }

    #[test]
    fn absurd_times_are_survived() {
        for told in [i64::MIN, -1, 0, i64::MAX] {
            let clock = Clock::told(told);
            assert!(clock.current_time().is_some());
        }
    }
}
