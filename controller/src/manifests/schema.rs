//! From the Rust kinds' JSON Schema to the structural schemas that the API server takes.
//!
//! Differences to what the derive alone would give: an optional field is absent, never null (upstream's are the same, unless they
//! say `nullable`); references to other schemas are written out; Kubernetes' own types are described in our words.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// The schema of `T`, structural: no references, no nulls, enums as `enum`.
pub(super) fn of<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.meta_schema = None;
    let mut root = settings.into_generator().into_root_schema_for::<T>().to_value();
    let definitions = match root.as_object_mut().and_then(|root| root.remove("$defs")) {
        Some(Value::Object(definitions)) => definitions,
        _ => Map::new(),
    };
    let mut schema = resolve(&root, &definitions);
    simplify(&mut schema);
    schema
}

/// `schema` with every reference replaced by what it names. No kind contains itself, so this ends.
fn resolve(schema: &Value, definitions: &Map<String, Value>) -> Value {
    match schema {
        Value::Object(map) => {
            let mut out = Map::new();
            if let Some(Value::String(reference)) = map.get("$ref") {
                let name = reference.trim_start_matches("#/$defs/");
                let target = kubernetes(name).or_else(|| definitions.get(name).cloned());
                let target = target.expect("the generator defines what it refers to");
                if let Value::Object(target) = resolve(&target, definitions) {
                    out = target;
                }
            }
            // What stands beside a reference says more than what it names.
            for (key, value) in map.iter().filter(|(key, _)| *key != "$ref") {
                out.insert(key.clone(), resolve(value, definitions));
            }
            Value::Object(out)
        }
        Value::Array(all) => all.iter().map(|item| resolve(item, definitions)).collect(),
        plain => plain.clone(),
    }
}

/// Kubernetes' own types, as upstream's schemas have them.
fn kubernetes(name: &str) -> Option<Value> {
    let string = json!({"type": "string"});
    let time = json!({"type": "string", "format": "date-time"});
    Some(match name {
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => time,
        "io.k8s.api.core.v1.SecretReference" => json!({
            "description": "Reference to a Secret.",
            "type": "object",
            "properties": {"name": string, "namespace": string},
            "x-kubernetes-map-type": "atomic",
        }),
        "io.k8s.api.core.v1.ObjectReference" => json!({
            "description": "Reference to an object of any kind.",
            "type": "object",
            "properties": {
                "apiVersion": string, "fieldPath": string, "kind": string, "name": string,
                "namespace": string, "resourceVersion": string, "uid": string,
            },
            "x-kubernetes-map-type": "atomic",
        }),
        "io.k8s.api.core.v1.Taint" => json!({
            "description": "A node's taint.",
            "type": "object",
            "properties": {"effect": string, "key": string, "timeAdded": time, "value": string},
            "required": ["effect", "key"],
        }),
        "io.k8s.apimachinery.pkg.apis.meta.v1.Condition" => condition(),
        _ => return None,
    })
}

fn condition() -> Value {
    json!({
        "description": "One condition: its status, since when it holds, and why.",
        "type": "object",
        "properties": {
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "message": {"type": "string", "maxLength": 32768},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "reason": {
                "type": "string", "minLength": 1, "maxLength": 1024,
                "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            },
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "type": {
                "type": "string", "maxLength": 316,
                "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
            },
        },
        "required": ["lastTransitionTime", "message", "reason", "status", "type"],
    })
}

fn simplify(schema: &mut Value) {
    let Value::Object(map) = schema else {
        return;
    };
    map.remove("title");
    without_null(map);
    alternatives(map);
    format(map);
    if map.get("default") == Some(&Value::Null) {
        map.remove("default");
    }
    if let Some(Value::String(description)) = map.get_mut("description") {
        // A paragraph is one line: YAML folds it where it likes.
        *description = description.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            simplify(inner);
        }
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(simplify);
    }
}

fn without_null(map: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = map.get_mut("type") {
        types.retain(|name| name != "null");
        if let [one] = &types[..] {
            let one = one.clone();
            map.insert("type".to_owned(), one);
        }
    }
    if let Some(Value::Array(values)) = map.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
}

/// `anyOf` and `oneOf`, which the API server does not take in this form: an optional value, or the variants of an enum.
fn alternatives(map: &mut Map<String, Value>) {
    for key in ["anyOf", "oneOf"] {
        let Some(Value::Array(all)) = map.remove(key) else {
            continue;
        };
        let all: Vec<_> = all
            .into_iter()
            .filter(|one| one.get("type") != Some(&json!("null")))
            .collect();
        if let [Value::Object(only)] = &all[..] {
            for (key, value) in only {
                map.entry(key.clone()).or_insert_with(|| value.clone());
            }
            // The one that is left may be an enum itself.
            return alternatives(map);
        }
        let mut values = Vec::new();
        let mut told = Vec::new();
        for one in &all {
            let constants = one.get("const").into_iter().cloned();
            let listed = one
                .get("enum")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .cloned();
            let named: Vec<Value> = constants.chain(listed).collect();
            if let (Some(text), [Value::String(name)]) =
                (one.get("description").and_then(Value::as_str), &named[..])
            {
                let name = if name.is_empty() { "(empty)" } else { name };
                told.push(format!("{name}: {text}"));
            }
            values.extend(named);
        }
        let text = map.get("description").and_then(Value::as_str).unwrap_or_default();
        let text = format!("{text} {}", told.join(" "));
        map.insert("description".to_owned(), json!(text.trim()));
        map.insert("type".to_owned(), json!("string"));
        map.insert("enum".to_owned(), Value::Array(values));
    }
}

/// Kubernetes knows only signed formats.
fn format(map: &mut Map<String, Value>) {
    let unsigned =
        matches!(map.get("format").and_then(Value::as_str), Some(format) if format.starts_with("uint"));
    if unsigned {
        map.insert("format".to_owned(), json!("int64"));
        map.entry("minimum").or_insert(json!(0));
    }
}

/// Calls `change` with the name and the schema of every property below `schema`, the inner ones first.
pub(super) fn each_property(schema: &mut Value, change: &mut dyn FnMut(&str, &mut Map<String, Value>)) {
    let Value::Object(map) = schema else {
        return;
    };
    if let Some(items) = map.get_mut("items") {
        each_property(items, change);
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        for (name, property) in properties {
            each_property(property, change);
            if let Value::Object(property) = property {
                change(name, property);
            }
        }
    }
}
