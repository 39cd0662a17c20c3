//! Pauses between tries. Pure.

use std::time::Duration;

/// The first pause between two tries, and the longest.
const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);

/// No controller may send us away for longer.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// Growing pauses between tries.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next pause: 0.25 s, doubling up to 10 s, each between half and all of that, so that many agents do not ask as
    /// one; at least what the controller asked for. `random` is any number.
    pub fn pause(&mut self, asked: Option<Duration>, random: u64) -> Duration {
        let full = SHORTEST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let share = 0.5
            + f64::from(u32::try_from(random >> 32).expect("32 bits are left")) / f64::from(u32::MAX) / 2.0;
        let jittered = full.mul_f64(share);
        match asked {
            // Those that were all told the same do not come back at the same moment.
            Some(asked) => asked.min(LONGEST_ASKED) + (full - jittered),
            None => jittered,
        }
    }

    /// It worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_controller_asks_for_is_honoured_within_reason() {
        let mut backoff = Backoff::default();
        assert!(backoff.pause(Some(LONGEST), u64::MAX) >= LONGEST);
        assert!(backoff.pause(Some(Duration::MAX), 0) <= LONGEST_ASKED + LONGEST);
    }

    #[test]
    fn pauses_double_up_to_ten_seconds_and_begin_anew() {
        let mut backoff = Backoff::default();
        let full: Vec<_> = (0..8)
            .map(|_| backoff.pause(None, u64::MAX).as_millis())
            .collect();
        assert_eq!(full, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        backoff.reset();
        assert_eq!(backoff.pause(None, 0).as_millis(), 125);
    }
}
