//! How much one address may take, and all of them together: what keeps one machine from shutting out the others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// A bounded number of slots, and how many of them each address holds.
#[derive(Clone, Debug)]
pub struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: usize,
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by: HashMap<IpAddr, usize>,
}

/// One slot; dropping it gives it back.
#[derive(Debug)]
pub struct Slot {
    of: Arc<Inner>,
    by: IpAddr,
}

impl Slots {
    /// `total` slots, of which one address may hold `each`.
    pub fn new(total: usize, each: usize) -> Self {
        Slots(Arc::new(Inner {
            total,
            each,
            taken: Mutex::default(),
        }))
    }

    /// A slot for `address`, if it may have one more and one is left.
    pub fn take(&self, address: IpAddr) -> Option<Slot> {
        // An IPv4 address in IPv6 clothes is the same machine.
        let by = address.to_canonical();
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.total >= self.0.total || taken.by.get(&by).copied().unwrap_or(0) >= self.0.each {
            return None;
        }
        taken.total += 1;
        *taken.by.entry(by).or_default() += 1;
        Some(Slot {
            of: Arc::clone(&self.0),
            by,
        })
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        if let Some(held) = taken.by.get_mut(&self.by) {
            *held -= 1;
            if *held == 0 {
                taken.by.remove(&self.by);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_slot() {
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let slots = Slots::new(3, 2);
        let held: Vec<_> = (0..4).filter_map(|_| slots.take(one)).collect();
        assert_eq!(held.len(), 2);
        let last = slots.take(other);
        assert!(last.is_some() && slots.take(other).is_none(), "three in all");
        drop(held);
        assert_eq!(slots.taken(), 1);
        drop(last);
        assert!(
            slots.0.taken.lock().unwrap().by.is_empty(),
            "nothing is remembered of who left"
        );
    }
}
