//! How many of something each of many has now, within a bound: what one may occupy is not taken from others.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::sync::lock;

/// Of how many it is told what they have.
const SHOWN: usize = 8;

/// Counts by key; one that has none is not remembered.
#[derive(Debug)]
pub(crate) struct Quota<K: Eq + Hash> {
    max: usize,
    counts: Mutex<HashMap<K, usize>>,
}

impl<K: Eq + Hash + Clone> Quota<K> {
    /// Each key may have `max`.
    pub(crate) fn new(max: usize) -> Arc<Quota<K>> {
        Arc::new(Quota {
            max,
            counts: Mutex::default(),
        })
    }

    /// One more for `key`, until it is dropped; `None` if it has as many as it may have.
    pub(crate) fn take(self: &Arc<Self>, key: K) -> Option<QuotaPermit<K>> {
        let mut counts = self.lock();
        let count = counts.entry(key.clone()).or_default();
        if *count == self.max {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(QuotaPermit {
            counts: Arc::clone(self),
            key,
        })
    }
}

impl<K: Eq + Hash + Ord + Clone + fmt::Display> Quota<K> {
    /// Who has most, for the log: `10.0.0.9 (32), 10.0.0.7 (3) and 12 more`.
    pub(crate) fn most(&self) -> String {
        let mut all: Vec<(K, usize)> = self
            .lock()
            .iter()
            .map(|(key, count)| (key.clone(), *count))
            .collect();
        all.sort_by(|(a, has), (b, more)| more.cmp(has).then_with(|| a.cmp(b)));
        let shown = all
            .iter()
            .take(SHOWN)
            .map(|(key, count)| format!("{key} ({count})"));
        let mut text = shown.collect::<Vec<_>>().join(", ");
        if let more @ 1.. = all.len().saturating_sub(SHOWN) {
            text.push_str(&format!(" and {more} more"));
        }
        text
    }
}

impl<K: Eq + Hash> Quota<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        lock(&self.counts)
    }
}

/// One that is counted.
#[derive(Debug)]
pub(crate) struct QuotaPermit<K: Eq + Hash> {
    counts: Arc<Quota<K>>,
    key: K,
}

impl<K: Eq + Hash> Drop for QuotaPermit<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_has_all_it_may_have_takes_nothing_from_another() {
        let counts = Quota::new(2);
        let held: Vec<_> = [counts.take("a"), counts.take("a"), counts.take("b")].into();
        assert!(held.iter().all(Option::is_some));
        assert!(counts.take("a").is_none());
        assert!(counts.take("b").is_some());
        drop(held);
        assert!(counts.take("a").is_some());
        assert!(counts.lock().is_empty(), "who has none is forgotten");
    }

    #[test]
    fn who_has_most_is_told_first_and_not_everybody() {
        let counts = Quota::new(3);
        assert_eq!(counts.most(), "");
        let mut held: Vec<_> = [2, 1, 2, 2].map(|key| counts.take(key)).into();
        assert_eq!(counts.most(), "2 (3), 1 (1)");
        held.extend((3..=10).map(|key| counts.take(key)));
        assert_eq!(
            counts.most(),
            "2 (3), 1 (1), 3 (1), 4 (1), 5 (1), 6 (1), 7 (1), 8 (1) and 2 more"
        );
    }
}
