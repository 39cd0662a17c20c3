//! Lists that somebody else sends: how long they are is no reason to take memory.
//!
//! An entry that says nothing has three bytes of JSON, and becomes hundreds in memory. So the first entries are kept, and of the rest it
//! is known how many there were.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};

/// A list of which the first `MAX` entries are kept when it is read. Whoever sends one sends all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head<T, const MAX: usize> {
    /// The first entries.
    pub kept: Vec<T>,
    /// How many there were.
    pub all: usize,
}

impl<T, const MAX: usize> From<Vec<T>> for Head<T, MAX> {
    fn from(list: Vec<T>) -> Head<T, MAX> {
        Head {
            all: list.len(),
            kept: list,
        }
    }
}

impl<T: Serialize, const MAX: usize> Serialize for Head<T, MAX> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.kept.serialize(to)
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Head<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Head<T, MAX>, D::Error> {
        from.deserialize_seq(Entries(PhantomData))
    }
}

/// The first `MAX` entries of a list, where nobody asks for the number of the others: for `deserialize_with`.
pub(crate) fn first<'de, const MAX: usize, T, D>(from: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Head::<T, MAX>::deserialize(from).map(|head| head.kept)
}

/// Reads a [`Head`].
struct Entries<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Entries<T, MAX> {
    type Value = Head<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Head<T, MAX>, A::Error> {
        let mut kept: Vec<T> = Vec::new();
        while kept.len() < MAX {
            let Some(entry) = list.next_element()? else {
                return Ok(Head::from(kept));
            };
            kept.push(entry);
        }
        let mut all = kept.len();
        while list.next_element::<IgnoredAny>()?.is_some() {
            all += 1;
        }
        Ok(Head { kept, all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entries_are_kept_and_all_are_counted_and_sent() {
        let read = |text: &str| serde_json::from_str::<Head<u8, 2>>(text);
        let head = |kept: &[u8], all| Head {
            kept: kept.to_vec(),
            all,
        };
        for (text, expected) in [
            ("[]", head(&[], 0)),
            ("[1]", head(&[1], 1)),
            ("[1,2]", head(&[1, 2], 2)),
            // What is not kept need not even be of the kind.
            (r#"[1,2,3,{"a":[]}]"#, head(&[1, 2], 4)),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        for wrong in ["[1,{}]", "[1,2,3", "5", "null"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let sent = Head::<u8, 2>::from(vec![1, 2, 3]);
        assert_eq!(serde_json::to_string(&sent).unwrap(), "[1,2,3]");
    }
}
