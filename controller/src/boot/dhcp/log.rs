//! Which decisions are worth a log line: each machine's when it changes, and never more than a reader can bear.

use std::{collections::HashMap, time::Duration};

use muster_proto::Mac;

/// The most machines whose last decision is remembered.
const MAX: usize = 4096;
/// Lines at once, and lines a second.
const BURST: f64 = 100.0;
const RATE: f64 = 20.0;

/// Remembers what was last said of each machine.
#[derive(Debug)]
pub(super) struct Log {
    last: HashMap<Mac, String>,
    tokens: f64,
    refilled: Duration,
    suppressed: u64,
}

/// Whether to say it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Say {
    /// Nothing new, or too much at once.
    Nothing,
    /// Say it, and that so many lines were left out before.
    Line(u64),
}

impl Log {
    pub(super) fn new() -> Log {
        Log {
            last: HashMap::new(),
            tokens: BURST,
            refilled: Duration::ZERO,
            suppressed: 0,
        }
    }

    /// Whether `what` of `mac` is to be said now.
    pub(super) fn say(&mut self, mac: Mac, what: &str, now: Duration) -> Say {
        if self.last.get(&mac).is_some_and(|last| last == what) {
            return Say::Nothing;
        }
        if self.last.len() >= MAX {
            self.last.clear();
        }
        self.tokens = (self.tokens + now.saturating_sub(self.refilled).as_secs_f64() * RATE).min(BURST);
        self.refilled = now;
        if self.tokens < 1.0 {
            self.suppressed += 1;
            return Say::Nothing;
        }
        self.tokens -= 1.0;
        self.last.insert(mac, what.to_owned());
        Say::Line(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_said_once_until_it_changes() {
        let mut log = Log::new();
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        assert_eq!(log.say(mac, "a", Duration::ZERO), Say::Line(0));
        assert_eq!(log.say(mac, "a", Duration::ZERO), Say::Nothing);
        assert_eq!(log.say(mac, "b", Duration::ZERO), Say::Line(0));
    }

    #[test]
    fn a_flood_of_strangers_is_counted_and_not_written() {
        let mut log = Log::new();
        let lines = (0..100_000_u32)
            .filter(|number| {
                let [a, b, c, d] = number.to_be_bytes();
                log.say(Mac([2, 0, a, b, c, d]), "a", Duration::ZERO) != Say::Nothing
            })
            .count();
        assert_eq!(lines, 100);
        assert_eq!(log.last.len(), 100);
        let late = Mac([2, 1, 0, 0, 0, 0]);
        assert_eq!(log.say(late, "a", Duration::from_secs(1)), Say::Line(99_900));
    }
}
