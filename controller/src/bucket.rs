//! How often something may happen: some times at once, then once in a while. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// What a [`Bucket`] holds.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// So many at once.
    pub burst: u32,
    /// Then one in such a time.
    pub every: Duration,
}

/// Counts against a [`Rate`]. It begins full.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// When it is full again, if nothing is taken.
    full: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(now: Instant) -> Bucket {
        Bucket { full: now }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let full = self.full.max(now) + rate.every;
        let fits = full - now <= rate.every * rate.burst;
        if fits {
            self.full = full;
        }
        fits
    }

    /// Takes the next one, whenever that is. Returns how long until then.
    pub fn reserve(&mut self, rate: Rate, now: Instant) -> Duration {
        self.full = self.full.max(now) + rate.every;
        (self.full - now).saturating_sub(rate.every * rate.burst)
    }

    /// Gives back one that was taken: what it was taken for did not happen.
    pub fn give_back(&mut self, rate: Rate) {
        self.full = self.full.checked_sub(rate.every).unwrap_or(self.full);
    }

    /// True if nothing is taken from it: it need not be remembered.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_one_at_a_time() {
        let rate = Rate {
            burst: 5,
            every: Duration::from_secs(30),
        };
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        let taken = |bucket: &mut Bucket, now| (0..100).filter(|_| bucket.take(rate, now)).count();
        assert_eq!(taken(&mut bucket, now), 5);
        assert_eq!(taken(&mut bucket, now + Duration::from_secs(29)), 0);
        assert_eq!(taken(&mut bucket, now + Duration::from_secs(30)), 1);
        bucket.give_back(rate);
        assert_eq!(taken(&mut bucket, now + Duration::from_secs(30)), 1);
        assert!(!bucket.is_full(now + Duration::from_secs(179)));
        assert!(bucket.is_full(now + Duration::from_secs(180)));
        assert_eq!(taken(&mut bucket, now + Duration::from_secs(3600)), 5);
    }

    #[test]
    fn who_reserves_has_a_turn_that_nobody_else_has() {
        let rate = Rate {
            burst: 2,
            every: Duration::from_secs(3),
        };
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        let turns: Vec<u64> = (0..5).map(|_| bucket.reserve(rate, now).as_secs()).collect();
        assert_eq!(turns, [0, 0, 3, 6, 9]);
        assert_eq!(bucket.reserve(rate, now + Duration::from_secs(9)).as_secs(), 3);
        let later = now + Duration::from_secs(60);
        assert_eq!(bucket.reserve(rate, later).as_secs(), 0);
    }
}
