//! What can be read of an object of which a part cannot: written by a newer version, or stored under another schema. Pure.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// So many parts may be unreadable; one of which more are is not worth guessing at.
const PARTS: usize = 32;

/// An object without what cannot be read of it.
#[derive(Debug, PartialEq)]
pub(crate) struct Salvaged<K> {
    /// The rest, with nothing, or a neutral value, in the place of what cannot be read; none: nothing is left of use.
    pub(crate) rest: Option<K>,
    /// What cannot be read and why, for people: `spec.bootMode: unknown variant …`.
    pub(crate) wrong: String,
}

/// Reads `object`.
///
/// # Errors
/// [`Salvaged`], if not all of it can be read.
pub(crate) fn read<K: DeserializeOwned>(mut object: Value) -> Result<K, Salvaged<K>> {
    let mut wrong = Vec::new();
    let mut last = try_read::<K>(&object);
    for _ in 0..PARTS {
        let error = match last {
            Ok(rest) if wrong.is_empty() => return Ok(rest),
            Ok(rest) => {
                return Err(Salvaged {
                    rest: Some(rest),
                    wrong: wrong.join("; "),
                });
            }
            Err(error) => error,
        };
        wrong.push(error.to_string());
        // Where nothing fits, what it stands in goes too.
        let mut places = (1..=error.at.len())
            .rev()
            .filter_map(|depth| error.at.get(..depth));
        let Some((mended, then)) = places.find_map(|at| mend::<K>(&object, at)) else {
            break;
        };
        (object, last) = (mended, then);
    }
    Err(Salvaged {
        rest: None,
        wrong: wrong.join("; "),
    })
}

/// Where something cannot be read, and why.
#[derive(Clone, Debug, PartialEq)]
struct Unreadable {
    at: Vec<Step>,
    why: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Item(usize),
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, step) in self.at.iter().enumerate() {
            match step {
                Step::Field(name) if number == 0 => f.write_str(name)?,
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Item(item) => write!(f, "[{item}]")?,
            }
        }
        write!(f, ": {}", self.why)
    }
}

fn try_read<K: DeserializeOwned>(object: &Value) -> Result<K, Unreadable> {
    use serde_path_to_error::Segment;
    serde_path_to_error::deserialize(object).map_err(|error| {
        let steps = error.path().iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Item(*index)),
            Segment::Map { key } => Some(Step::Field(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        });
        Unreadable {
            at: steps.collect(),
            why: error.inner().to_string(),
        }
    })
}

type Mended<K> = (Value, Result<K, Unreadable>);

/// `object` with something readable, or nothing, at `at`; how far it can be read then.
fn mend<K: DeserializeOwned>(object: &Value, at: &[Step]) -> Option<Mended<K>> {
    let candidates = [
        None,
        Some(json!(false)),
        Some(json!(0)),
        Some(json!("")),
        Some(json!([])),
        Some(json!({})),
    ];
    candidates.into_iter().find_map(|candidate| {
        let mut object = object.clone();
        replace(&mut object, at, candidate)?;
        let then = try_read::<K>(&object);
        // Wrong at the same place, or in what it stands in, for which it is needed.
        let helped = then.as_ref().err().is_none_or(|error| !at.starts_with(&error.at));
        helped.then_some((object, then))
    })
}

fn replace(object: &mut Value, at: &[Step], by: Option<Value>) -> Option<()> {
    let (last, before) = at.split_last()?;
    let mut place = object;
    for step in before {
        place = match step {
            Step::Field(name) => place.get_mut(name)?,
            Step::Item(item) => place.get_mut(item)?,
        };
    }
    match (last, place, by) {
        (Step::Field(name), Value::Object(all), Some(value)) => drop(all.insert(name.clone(), value)),
        (Step::Field(name), Value::Object(all), None) => drop(all.remove(name)),
        (Step::Item(item), Value::Array(all), Some(value)) => *all.get_mut(*item)? = value,
        (Step::Item(item), Value::Array(all), None) if *item < all.len() => drop(all.remove(*item)),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use muster_proto::kinds::{BareMetalHost, Segment, Server};
    use proptest::prelude::*;

    use super::*;
    use crate::patch::merge;

    fn host(patch: &Value) -> Value {
        let mut host = json!({
            "apiVersion": "metal3.io/v1alpha1", "kind": "BareMetalHost",
            "metadata": {"name": "h", "namespace": "metal", "uid": "u"},
            "spec": {"online": true, "bootMACAddress": "02:00:00:00:00:01"},
            "status": {"errorMessage": "", "operationalStatus": "OK", "poweredOn": true,
                "provisioning": {"ID": "", "state": "provisioned"}},
        });
        merge(&mut host, patch);
        host
    }

    #[test]
    fn an_object_without_a_fault_is_read_as_it_is() {
        let whole: BareMetalHost = read(host(&json!({}))).unwrap();
        assert_eq!(whole, serde_json::from_value(host(&json!({}))).unwrap());
    }

    #[test]
    fn all_but_what_cannot_be_read_is_kept_and_what_cannot_is_named() {
        for (patch, wrong) in [
            (
                json!({"spec": {"bootMode": "Quantum"}}),
                "spec.bootMode: unknown variant `Quantum`",
            ),
            (
                json!({"spec": {"automatedCleaningMode": "shred"}}),
                "spec.automatedCleaningMode: ",
            ),
            (
                json!({"status": {"errorType": "cosmic error"}}),
                "status.errorType: ",
            ),
            (
                json!({"status": {"operationalStatus": "resting"}}),
                "status.operationalStatus: ",
            ),
            (json!({"spec": {"online": "yes"}}), "spec.online: invalid type"),
            (json!({"spec": {"bmc": "redfish://10.0.0.9"}}), "spec.bmc: "),
            (
                json!({"status": {"provisioning": {"bootMode": 7}}}),
                "status.provisioning.bootMode: ",
            ),
            (json!({"status": {"conditions": [7]}}), "status.conditions[0]: "),
            (json!({"spec": {"taints": [7]}}), "spec.taints[0]: "),
            (
                json!({"status": {"goodCredentials": {"credentials": {"name": 7}}}}),
                "status.goodCredentials.credentials.name: ",
            ),
        ] {
            let salvaged = read::<BareMetalHost>(host(&patch)).unwrap_err();
            assert!(salvaged.wrong.starts_with(wrong), "{}", salvaged.wrong);
            let rest = salvaged.rest.expect(wrong);
            assert_eq!(
                rest.spec.boot_mac_address.as_deref(),
                Some("02:00:00:00:00:01"),
                "{wrong}"
            );
            assert_eq!(
                rest.status.expect(wrong).provisioning.state,
                "provisioned",
                "{wrong}"
            );
        }
        let twice = host(&json!({"spec": {"bootMode": "Quantum", "inspectionMode": "x-ray"}}));
        let salvaged = read::<BareMetalHost>(twice).unwrap_err();
        assert!(salvaged.rest.is_some());
        assert!(salvaged.wrong.contains("spec.bootMode") && salvaged.wrong.contains("spec.inspectionMode"));
    }

    #[test]
    fn of_what_has_no_shape_at_all_nothing_is_left() {
        for object in [json!(7), json!({}), host(&json!({"spec": "none"}))] {
            let salvaged = read::<BareMetalHost>(object).unwrap_err();
            assert!(salvaged.rest.is_none() && !salvaged.wrong.is_empty());
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{1,4}", inner, 0..3).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_stands_in_an_object_it_is_read_or_something_is_named(
            name in "(bootMode|bmc|image|online|raid|taints|firmware|job|host|session|inventory|dhcp|subnet|unknown)",
            status in any::<bool>(),
            value in any_value(),
        ) {
            let part = if status { "status" } else { "spec" };
            let patch = json!({part: {name: value}});
            let named = |wrong: Option<String>| wrong.is_none_or(|wrong| !wrong.is_empty());
            prop_assert!(named(read::<BareMetalHost>(host(&patch)).err().map(|salvaged| salvaged.wrong)));
            prop_assert!(named(read::<Server>(host(&patch)).err().map(|salvaged| salvaged.wrong)));
            prop_assert!(named(read::<Segment>(host(&patch)).err().map(|salvaged| salvaged.wrong)));
        }
    }
}
