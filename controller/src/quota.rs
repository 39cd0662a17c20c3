//! How many of something each of many has now, within a bound: what one may occupy is not taken from others.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::sync::lock;

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
}
