//! What changes from one JSON object to another, as a patch that changes nothing else. Pure.

use muster_proto::kinds::Packed;
use serde::Serialize;
use serde_json::{Value, json};

/// The merge patch (RFC 7396) that makes `to` of `from`; `None` if they are equal.
pub(crate) fn difference(from: &Value, to: &Value) -> Option<Value> {
    if from == to {
        return None;
    }
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        return Some(to.clone());
    };
    let mut patch = serde_json::Map::new();
    for (key, value) in to {
        match from.get(key) {
            Some(old) => patch.extend(difference(old, value).map(|changed| (key.clone(), changed))),
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Some(Value::Object(patch))
}

/// The same of objects of which a large part is packed: one that stays is not unpacked for that.
pub(crate) fn difference_but<T, P>(
    mut before: T,
    mut after: T,
    packed: fn(&mut T) -> &mut Option<Packed<P>>,
) -> Option<Value>
where
    T: PartialEq + Serialize,
    P: 'static,
{
    if packed(&mut before) == packed(&mut after) {
        (*packed(&mut before), *packed(&mut after)) = (None, None);
    }
    (before != after).then(|| difference(&json!(before), &json!(after)))?
}

/// The finalizers that are left: `all` but `ours`.
pub(crate) fn finalizers_without<'a>(all: &'a [String], ours: &[&str]) -> Vec<&'a str> {
    let all = all.iter().map(String::as_str);
    all.filter(|name| !ours.contains(name)).collect()
}

#[cfg(test)]
pub(crate) use tests::merge;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// RFC 7396, section 2.
    pub(crate) fn merge(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        let target = target.as_object_mut().unwrap();
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
    }

    fn any_object() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            "[ab]{0,2}".prop_map(Value::from)
        ];
        let tree = leaf.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-c]", inner, 0..3).prop_map(|map| json!(map)),
            ]
        });
        prop::collection::btree_map("[a-c]", tree, 0..4).prop_map(|map| json!(map))
    }

    proptest! {
        #[test]
        fn the_difference_applied_gives_the_new_object(from in any_object(), to in any_object()) {
            match difference(&from, &to) {
                None => prop_assert_eq!(from, to),
                Some(patch) => {
                    let mut patched = from;
                    merge(&mut patched, &patch);
                    prop_assert_eq!(patched, to);
                }
            }
        }
    }
}
