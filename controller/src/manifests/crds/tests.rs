use std::{collections::BTreeSet, path::Path};

use super::*;

/// Where ours says more than upstream's, and why. Each must be there: an entry that has become untrue fails, too.
const ADDED_VALUES: &[(&str, &str, &str)] = &[
    (
        "/spec/image/format",
        "",
        "upstream's Go clients write the empty string for a format that is not set",
    ),
    ("/status/lastAttemptedImage/format", "", "as in spec.image"),
    ("/status/provisioning/image/format", "", "as in spec.image"),
    (
        "/status/errorType",
        "detach error",
        "upstream's code writes it and its schema refuses it",
    ),
];

fn deploy(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/crds")
        .join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a schema says, without the words and without an order where order means nothing.
fn facts(value: &Value, in_properties: bool) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(key, value)| in_properties || *key != "description" || !value.is_string())
            .map(|(key, value)| {
                let inner = facts(value, !in_properties && key == "properties");
                let sorted = !in_properties && (key == "required" || key == "enum");
                (key.clone(), if sorted { sort(inner) } else { inner })
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(all) => all.iter().map(|one| facts(one, false)).collect(),
        plain => plain.clone(),
    }
}

fn sort(list: Value) -> Value {
    let Value::Array(mut all) = list else {
        return list;
    };
    all.sort_by_key(Value::to_string);
    Value::Array(all)
}

fn of_kind(kind: &str) -> Value {
    all()
        .into_iter()
        .find(|crd| crd.pointer("/spec/names/kind") == Some(&json!(kind)))
        .unwrap()
}

fn property<'a>(root: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('/')
        .filter(|part| !part.is_empty())
        .fold(root, |at, name| {
            at.get_mut("properties")
                .and_then(|all| all.get_mut(name))
                .unwrap_or_else(|| panic!("no property {path}"))
        })
}

fn compare(kind: &str, fixture: &str, added: &[(&str, &str, &str)]) {
    let upstream: Value = serde_json::from_str(&deploy(fixture)).unwrap();
    let mut ours = of_kind(kind);
    let root = &mut ours["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    for (path, value, reason) in added {
        let values = property(root, path)["enum"].as_array_mut().unwrap();
        let before = values.len();
        values.retain(|one| one != value);
        assert_eq!(values.len() + 1, before, "{path} lacks {value:?} ({reason})");
    }
    let (ours, upstream) = (facts(&ours["spec"], false), facts(&upstream["spec"], false));
    let mut differences = BTreeSet::new();
    differ("", &upstream, &ours, &mut differences);
    assert!(differences.is_empty(), "{kind}: upstream's against ours:\n{}", {
        let lines: Vec<_> = differences.into_iter().collect();
        lines.join("\n")
    });
}

fn differ(at: &str, theirs: &Value, ours: &Value, out: &mut BTreeSet<String>) {
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()) {
                let none = Value::Null;
                differ(
                    &format!("{at}/{key}"),
                    a.get(key).unwrap_or(&none),
                    b.get(key).unwrap_or(&none),
                    out,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() && a.iter().any(Value::is_object) => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differ(&format!("{at}/{index}"), a, b, out);
            }
        }
        _ if theirs != ours => {
            out.insert(format!("{at}: {theirs} against {ours}"));
        }
        _ => {}
    }
}

#[test]
fn baremetalhost_is_upstreams_but_for_the_listed_differences() {
    compare("BareMetalHost", "upstream/baremetalhosts.json", ADDED_VALUES);
}

#[test]
fn hardwaredata_is_upstreams() {
    compare("HardwareData", "upstream/hardwaredata.json", &[]);
}

#[test]
fn metal3_kinds_carry_no_validation_rules() {
    for crd in all() {
        if crd.pointer("/spec/group") == Some(&json!("metal3.io")) {
            assert!(!crd.to_string().contains("x-kubernetes-validations"));
        }
    }
}

#[test]
fn schemas_are_structural() {
    fn check(path: &str, schema: &Value) {
        let map = schema
            .as_object()
            .unwrap_or_else(|| panic!("{path} is no schema: {schema}"));
        for never in ["$ref", "$defs", "anyOf", "oneOf", "allOf", "const", "title"] {
            assert!(!map.contains_key(never), "{path} has {never}");
        }
        assert!(
            map.get("type").is_some_and(Value::is_string),
            "{path} has no type: {schema}"
        );
        if let Some(items) = map.get("items") {
            check(&format!("{path}[]"), items);
        }
        for (name, property) in map
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            check(&format!("{path}.{name}"), property);
        }
    }
    for crd in all() {
        check(
            "",
            crd.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap(),
        );
    }
}

#[test]
fn committed_crds_are_fresh() {
    for (name, text) in files() {
        assert!(
            deploy(&name) == text,
            "{name} is stale: run `muster-controller manifests crds --out deploy/crds`"
        );
    }
}
