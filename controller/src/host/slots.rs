//! The slots of hosts that are busy at once: never more than the limit are taken, however many rounds run at the same time.
//!
//! A host has a slot if it took one, if it was busy already when this process began (its stored state says so, and that it is not
//! delayed), or if its ramdisk is at work for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    bucket::{Bucket, Rate},
    path::Path,
    sync::lock,
};

/// How often one more of those that wait is told so: thousands at once would keep the API server from those whose turn it is.
pub(super) const TOLD: Rate = Rate {
    burst: 1,
    every: Duration::from_millis(200),
};

/// The time over which is counted how fast slots are passed on.
const LATELY: Duration = Duration::from_secs(5);

/// The slots.
#[derive(Debug)]
pub struct Slots {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Those that have a slot: that took one, were busy when this process began, or were found at work.
    taken: HashSet<Path>,
    /// Who found none, in order.
    waiting: BTreeMap<u64, Path>,
    numbers: HashMap<Path, u64>,
    last: u64,
    /// When slots were passed on lately.
    passed: Vec<Instant>,
    told: Option<Bucket>,
}

impl Inner {
    fn wait(&mut self, host: &Path) {
        if !self.numbers.contains_key(host) {
            self.last += 1;
            self.waiting.insert(self.last, host.clone());
            self.numbers.insert(host.clone(), self.last);
        }
    }

    fn wait_no_more(&mut self, host: &Path) {
        if let Some(number) = self.numbers.remove(host) {
            self.waiting.remove(&number);
        }
    }
}

impl Slots {
    /// So many slots.
    pub fn new(limit: usize) -> Slots {
        Slots {
            limit,
            inner: Mutex::default(),
        }
    }

    /// How many there are.
    pub fn limit(&self) -> usize {
        self.limit
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// True if `host` has a slot.
    #[cfg(test)]
    fn has(&self, host: &Path) -> bool {
        self.lock().taken.contains(host)
    }

    /// Takes a slot for `host`, if there is one; if not, it gets the next one in its turn.
    pub fn take(&self, host: &Path) -> bool {
        let mut inner = self.lock();
        let may = inner.taken.contains(host) || inner.taken.len() < self.limit;
        if may {
            inner.taken.insert(host.clone());
            inner.wait_no_more(host);
        } else {
            inner.wait(host);
        }
        may
    }

    /// `host` needs none now, as far as is known of it. Returns who got one instead.
    pub fn give_back(&self, host: &Path) -> Vec<Path> {
        let mut inner = self.lock();
        inner.wait_no_more(host);
        if inner.taken.remove(host) {
            self.pass_on(&mut inner)
        } else {
            Vec::new()
        }
    }

    /// True if all that wait can be told so within `time`.
    pub fn can_tell_all(&self, time: Duration) -> bool {
        let waiting = u32::try_from(self.lock().waiting.len()).unwrap_or(u32::MAX);
        TOLD.every.saturating_mul(waiting) <= time
    }

    /// True if it is the turn of `host` within `time`, where slots are passed on as fast as they were lately.
    pub fn is_near(&self, host: &Path, time: Duration) -> bool {
        let inner = self.lock();
        let first = inner.waiting.first_key_value();
        let Some((number, (first, _))) = inner.numbers.get(host).zip(first) else {
            return false;
        };
        // At most: some of those before it may have left the line.
        let turns = number.saturating_sub(*first).saturating_add(1);
        let turns = u32::try_from(turns).unwrap_or(u32::MAX);
        let passed = inner.passed.iter().filter(|at| at.elapsed() < LATELY).count();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        LATELY.saturating_mul(turns) <= time.saturating_mul(passed)
    }

    /// How long until it is the turn of one more of those that wait to be told so. Each call is another one's turn.
    pub fn turn_to_tell(&self) -> Duration {
        let now = Instant::now();
        let mut inner = self.lock();
        let told = inner.told.get_or_insert_with(|| Bucket::new(now));
        told.reserve(TOLD, now)
    }

    /// `host` is busy already, so it has a slot, limit or not.
    pub fn begin_with(&self, host: &Path) {
        let mut inner = self.lock();
        inner.taken.insert(host.clone());
        inner.wait_no_more(host);
    }

    /// Forgets the hosts that are not among these. Returns who got their slots.
    pub fn retain(&self, hosts: &BTreeSet<Path>) -> Vec<Path> {
        let mut inner = self.lock();
        inner.taken.retain(|host| hosts.contains(host));
        let gone: Vec<Path> = inner
            .numbers
            .keys()
            .filter(|host| !hosts.contains(host))
            .cloned()
            .collect();
        for host in gone {
            inner.wait_no_more(&host);
        }
        self.pass_on(&mut inner)
    }

    /// What is free goes to those that wait, in order, so that nobody who comes later is faster.
    fn pass_on(&self, inner: &mut Inner) -> Vec<Path> {
        let mut passed = Vec::new();
        let free = self.limit.saturating_sub(inner.taken.len());
        inner.passed.retain(|at| at.elapsed() < LATELY);
        for _ in 0..free {
            let Some((_, host)) = inner.waiting.pop_first() else {
                break;
            };
            inner.numbers.remove(&host);
            inner.taken.insert(host.clone());
            inner.passed.push(Instant::now());
            passed.push(host);
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    fn path(number: usize) -> Path {
        Path {
            namespace: "metal".to_owned(),
            name: number.to_string(),
        }
    }

    #[test]
    fn a_place_is_kept_until_it_is_given_back_and_goes_to_who_waited_longest() {
        let slots = Slots::new(1);
        let [a, b, c] = [path(1), path(2), path(3)];
        assert!(slots.take(&a) && slots.take(&a) && slots.has(&a));
        assert!(!slots.take(&b) && !slots.take(&c) && !slots.take(&b));
        assert_eq!(slots.give_back(&a), std::slice::from_ref(&b), "it is b's turn");
        assert!(!slots.has(&a) && slots.has(&b) && !slots.take(&a));
        assert_eq!(
            slots.give_back(&b),
            std::slice::from_ref(&c),
            "and who does not want it passes it on"
        );
        assert!(slots.give_back(&a).is_empty(), "it does not wait any more");
        assert!(slots.give_back(&c).is_empty() && slots.take(&b));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_near_if_slots_were_passed_on_fast_enough_lately() {
        let slots = Slots::new(1);
        for number in 0..60 {
            slots.take(&path(number));
        }
        let [soon, later] = [10, 120].map(Duration::from_secs);
        let near = |number, time| slots.is_near(&path(number), time);
        assert!(!near(1, later), "the line stands still");
        assert!(!slots.can_tell_all(soon) && slots.can_tell_all(later));
        for number in 0..10 {
            slots.give_back(&path(number));
        }
        // Ten in 5 s are twenty in 10 s; the eleventh is the first that waits.
        assert!(near(30, soon) && !near(31, soon) && near(59, later));
        assert!(slots.can_tell_all(soon));
        assert!(!near(10, later), "it has its slot");
        tokio::time::advance(LATELY).await;
        assert!(!near(11, later), "the line stands still again");
    }

    #[test]
    fn hosts_that_were_busy_before_the_start_count_beyond_the_limit_too() {
        let slots = Slots::new(2);
        for number in 0..5 {
            slots.begin_with(&path(number));
        }
        assert!(!slots.take(&path(9)));
        assert!(slots.take(&path(3)), "it goes on");
        for number in 0..4 {
            assert!(slots.has(&path(number)));
            let passed = slots.give_back(&path(number));
            assert_eq!(passed.is_empty(), number < 3, "{number}");
        }
        assert!(slots.has(&path(9)));
        assert_eq!(slots.retain(&BTreeSet::new()), Vec::<Path>::new());
        assert!(
            !slots.has(&path(9)) && slots.take(&path(1)) && slots.take(&path(2)) && !slots.take(&path(3))
        );
    }

    #[test]
    fn never_more_than_the_limit_have_a_place_however_many_try_at_once() {
        let slots = Arc::new(Slots::new(7));
        let now = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let start = Arc::new(Barrier::new(8));
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let (slots, now, most, start) = (slots.clone(), now.clone(), most.clone(), start.clone());
                std::thread::spawn(move || {
                    start.wait();
                    for round in 0..2000 {
                        let host = path(thread * 10_000 + round);
                        let has = slots.take(&host);
                        if has {
                            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            std::thread::yield_now();
                            now.fetch_sub(1, Ordering::SeqCst);
                        }
                        let mut passed = slots.give_back(&host);
                        // Who got a slot in turn does not want it any more.
                        while let Some(other) = passed.pop() {
                            passed.extend(slots.give_back(&other));
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let most = most.load(Ordering::SeqCst);
        assert!((1..=7).contains(&most), "{most}");
    }
}
