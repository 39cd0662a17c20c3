//! A table that is read both ways: which names have a key, and which keys a name has. Pure.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    slice,
    sync::Arc,
};

/// Which names have a key. Each key is kept once, with its name; what leads from a key to its names is its hash, with a seed that nobody
/// knows. Two keys of one hash would find each other's names: with 64 bits of it and a million keys, once in many million starts.
#[derive(Debug)]
pub(crate) struct MultiMap<K, N> {
    seed: RandomState,
    by: HashMap<u64, Few<N>>,
    of: HashMap<Arc<N>, Box<[K]>>,
}

impl<K, N> Default for MultiMap<K, N> {
    fn default() -> Self {
        MultiMap {
            seed: RandomState::new(),
            by: HashMap::new(),
            of: HashMap::new(),
        }
    }
}

/// Names in order. Almost every key has one, and a table has room for twice as many of these as there are.
#[derive(Debug)]
enum Few<N> {
    One(Arc<N>),
    #[expect(clippy::box_collection, reason = "it makes the other one smaller")]
    Many(Box<Vec<Arc<N>>>),
}

impl<N: Ord> Few<N> {
    fn names(&self) -> &[Arc<N>] {
        match self {
            Few::One(name) => slice::from_ref(name),
            Few::Many(names) => names,
        }
    }

    fn find(&self, name: &N) -> Result<usize, usize> {
        self.names().binary_search_by(|other| (**other).cmp(name))
    }

    fn add(&mut self, name: &Arc<N>) {
        let Err(at) = self.find(name) else { return };
        match self {
            Few::One(other) => {
                let mut names = vec![Arc::clone(other)];
                names.insert(at, Arc::clone(name));
                *self = Few::Many(Box::new(names));
            }
            Few::Many(names) => names.insert(at, Arc::clone(name)),
        }
    }

    /// What is left without `name`.
    fn without(self, name: &N) -> Option<Few<N>> {
        let Ok(at) = self.find(name) else {
            return Some(self);
        };
        match self {
            Few::One(_) => None,
            Few::Many(mut names) => {
                names.remove(at);
                match &names[..] {
                    [last] => Some(Few::One(Arc::clone(last))),
                    _ => Some(Few::Many(names)),
                }
            }
        }
    }
}

impl<K: Eq + Hash, N: Clone + Eq + Hash + Ord> MultiMap<K, N> {
    /// From now on `name` has these keys and no others. Returns those that it had.
    pub(crate) fn set(&mut self, name: &N, keys: Vec<K>) -> Vec<K> {
        let (name, had) = match self.of.remove_entry(name) {
            Some((name, had)) => (name, had.into_vec()),
            None => (Arc::new(name.clone()), Vec::new()),
        };
        if had != keys {
            had.iter().for_each(|key| self.take(key, &name));
            keys.iter().for_each(|key| self.give(key, &name));
        }
        if !keys.is_empty() {
            self.of.insert(name, keys.into());
        }
        had
    }

    fn take(&mut self, key: &K, name: &N) {
        let hash = self.seed.hash_one(key);
        if let Some(left) = self.by.remove(&hash).and_then(|names| names.without(name)) {
            self.by.insert(hash, left);
        }
    }

    fn give(&mut self, key: &K, name: &Arc<N>) {
        let hash = self.seed.hash_one(key);
        let names = self.by.entry(hash);
        names
            .and_modify(|names| names.add(name))
            .or_insert_with(|| Few::One(Arc::clone(name)));
    }

    fn names_with(&self, key: &K) -> &[Arc<N>] {
        let names = self.by.get(&self.seed.hash_one(key));
        names.map(Few::names).unwrap_or_default()
    }

    /// The names that have `key`.
    pub(crate) fn with(&self, key: &K) -> impl Iterator<Item = &N> {
        self.names_with(key).iter().map(AsRef::as_ref)
    }

    /// How many names have `key`, those that are among `except` not counted.
    pub(crate) fn number<'a>(&self, key: &K, except: impl Iterator<Item = &'a N>) -> usize
    where
        N: 'a,
    {
        let names = self.names_with(key);
        let among = |name: &N| names.binary_search_by(|other| (**other).cmp(name)).is_ok();
        names.len() - except.filter(|name| among(name)).count()
    }

    /// The keys that `name` has.
    pub(crate) fn keys(&self, name: &N) -> impl Iterator<Item = &K> {
        self.of.get(name).into_iter().flatten()
    }

    /// True if nothing is kept, not even an empty place.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.by.is_empty() && self.of.is_empty()
    }

    /// All names that have a key.
    pub(crate) fn names(&self) -> Vec<N> {
        self.of.keys().map(|name| N::clone(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    proptest::proptest! {
        #[test]
        fn an_index_says_what_a_plain_table_of_names_and_keys_says(
            sets in proptest::collection::vec((0..5_u8, proptest::collection::btree_set(0..6_u8, 0..4)), 0..40),
        ) {
            let (mut index, mut table) = (MultiMap::default(), BTreeMap::new());
            for (name, keys) in sets {
                let keys: Vec<u8> = keys.into_iter().collect();
                let had = index.set(&name, keys.clone());
                proptest::prop_assert_eq!(had, table.insert(name, keys).unwrap_or_default());
                for key in 0..6 {
                    let with: Vec<u8> = index.with(&key).copied().collect();
                    let expected = table.iter().filter(|(_, keys)| keys.contains(&key));
                    let expected: Vec<u8> = expected.map(|(name, _)| *name).collect();
                    proptest::prop_assert_eq!(index.number(&key, [0, 9].iter()), expected.iter().filter(|name| **name != 0).count());
                    proptest::prop_assert_eq!(with, expected);
                }
                let mut names = index.names();
                names.sort_unstable();
                let expected: Vec<u8> = table.iter().filter(|(_, keys)| !keys.is_empty()).map(|(name, _)| *name).collect();
                proptest::prop_assert_eq!(names, expected);
            }
        }
    }
}
