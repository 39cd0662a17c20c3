//! Which decisions are worth a log line: each client's when it changes, and never more than a reader can bear, so that strangers
//! cannot fill the disk with them. What is done for clients is told of each within its share.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv4Addr},
    sync::Mutex,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    bounded::make_room,
    bucket::{Bucket, Rate},
    sync::lock,
};

#[cfg(test)]
pub(crate) mod said;

/// The most clients whose last decision is remembered.
const MAX: usize = 4096;
/// How many lines are said: many at once, then twenty a second.
const LINES: Rate = Rate {
    burst: 100,
    every: Duration::from_millis(50),
};
/// How many lines one client's steps are: ten boots at once, then one boot in half a minute.
const SHARE: Rate = Rate {
    burst: 30,
    every: Duration::from_secs(10),
};
/// How many lines the steps of all clients are: a thousand machines that boot at once, then as many as of anything else.
const SHARES: Rate = Rate {
    burst: 5000,
    every: LINES.every,
};

/// Remembers what was last said of each client.
#[derive(Debug)]
pub(crate) struct Log<K> {
    last: HashMap<K, String>,
    /// From when the times are counted.
    start: Instant,
    lines: Bucket,
    suppressed: u64,
}

/// Whether to say it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Say {
    /// Nothing new, or too much at once.
    Nothing,
    /// Say it, and that so many lines were left out before.
    Line(u64),
}

impl<K> Default for Log<K> {
    fn default() -> Self {
        let start = Instant::now();
        Log {
            last: HashMap::new(),
            start,
            lines: Bucket::new(start),
            suppressed: 0,
        }
    }
}

impl<K: Eq + Hash> Log<K> {
    /// Whether `what` of `who` is to be said now, a time since some start.
    pub(crate) fn say(&mut self, who: K, what: &str, now: Duration) -> Say {
        if self.last.get(&who).is_some_and(|last| last == what) {
            return Say::Nothing;
        }
        if self.last.len() >= MAX {
            self.last.clear();
        }
        if !self.lines.take(LINES, self.start + now) {
            self.suppressed += 1;
            return Say::Nothing;
        }
        self.last.insert(who, what.to_owned());
        Say::Line(std::mem::take(&mut self.suppressed))
    }
}

/// The refusals of one service: said once a minute for each address and reason.
#[derive(Debug)]
pub(crate) struct Refusals {
    start: Instant,
    log: Mutex<Log<IpAddr>>,
}

impl Default for Refusals {
    fn default() -> Self {
        Refusals {
            start: Instant::now(),
            log: Mutex::default(),
        }
    }
}

impl Refusals {
    /// Whether that `who` is refused for `why` is to be said now, and how many such lines were left out before.
    pub(crate) fn say(&self, who: IpAddr, why: &str) -> Option<u64> {
        let now = self.start.elapsed();
        let minute = now.as_secs() / 60;
        let mut log = lock(&self.log);
        match log.say(who, &format!("{minute} {why}"), now) {
            Say::Nothing => None,
            Say::Line(left_out) => Some(left_out),
        }
    }

    /// The same of what concerns every client, such as that there is no room.
    pub(crate) fn say_to_all(&self, why: &str) -> Option<u64> {
        self.say(IpAddr::V4(Ipv4Addr::UNSPECIFIED), why)
    }
}

/// What one service did for its clients: each has a share of lines, so that one that asks without end hides nothing of another.
#[derive(Debug)]
pub(crate) struct Shares(Mutex<Clients>);

#[derive(Debug)]
struct Clients {
    known: HashMap<IpAddr, Share>,
    all: Bucket,
}

#[derive(Debug)]
struct Share {
    lines: Bucket,
    left_out: u64,
}

impl Default for Shares {
    fn default() -> Self {
        Shares(Mutex::new(Clients {
            known: HashMap::new(),
            all: Bucket::new(Instant::now()),
        }))
    }
}

impl Shares {
    /// Whether a step of `who` is to be said now, and how many of its steps were left out before.
    pub(crate) fn say(&self, who: IpAddr) -> Option<u64> {
        let (who, now) = (who.to_canonical(), Instant::now());
        let mut clients = lock(&self.0);
        let Clients { known, all } = &mut *clients;
        if !known.contains_key(&who) {
            make_room(known, MAX, |share| !share.lines.is_full(now));
        }
        let share = known.entry(who).or_insert_with(|| Share {
            lines: Bucket::new(now),
            left_out: 0,
        });
        if share.lines.take(SHARE, now) && all.take(SHARES, now) {
            return Some(std::mem::take(&mut share.left_out));
        }
        share.left_out += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::Mac;

    use super::*;

    #[test]
    fn refusals_of_a_flood_are_few_lines() {
        let refusals = Refusals::default();
        let one = IpAddr::from([10, 77, 0, 9]);
        let lines = (0..100_000).filter(|_| refusals.say(one, "no such file").is_some());
        // A test that stops for a minute would see a second line.
        assert!((1..=2).contains(&lines.count()));
        assert!(refusals.say(one, "another reason").is_some());
        let names = (0..100_000).filter(|number| refusals.say(one, &number.to_string()).is_some());
        assert!(names.count() < 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_asks_without_end_has_few_lines_and_hides_nothing_of_another() {
        let shares = Shares::default();
        let (greedy, other) = (IpAddr::from([10, 77, 0, 9]), IpAddr::from([10, 77, 0, 8]));
        let said = (0..100_000).filter(|_| shares.say(greedy).is_some());
        assert_eq!(said.count(), 30);
        assert_eq!(shares.say(other), Some(0));
        tokio::time::advance(SHARE.every).await;
        assert_eq!(shares.say(greedy), Some(99_970));
        assert_eq!(shares.say(greedy), None);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_without_end_have_few_lines_and_little_memory() {
        let shares = Shares::default();
        let said = (0..100_000_u32).filter(|at| shares.say(at.to_be_bytes().into()).is_some());
        assert_eq!(said.count(), 5000);
        assert!(lock(&shares.0).known.len() <= MAX);
    }

    #[test]
    fn a_decision_is_said_once_until_it_changes() {
        let mut log = Log::default();
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        assert_eq!(log.say(mac, "a", Duration::ZERO), Say::Line(0));
        assert_eq!(log.say(mac, "a", Duration::ZERO), Say::Nothing);
        assert_eq!(log.say(mac, "b", Duration::ZERO), Say::Line(0));
    }

    #[test]
    fn a_flood_of_strangers_is_counted_and_not_written() {
        let mut log = Log::default();
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
