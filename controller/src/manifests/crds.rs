//! CustomResourceDefinitions from the Rust kinds. Those of `metal3.io` are supersets of upstream's: a test compares them with an
//! extract of upstream's schemas in `deploy/crds/upstream`, and the allowed differences are listed there with their reasons.

use kube::CustomResourceExt;
use muster_proto::kinds::{
    BareMetalHost, BareMetalHostSpec, BareMetalHostStatus, Enrolment, EnrolmentSpec, HardwareData,
    HardwareDataSpec, Segment, SegmentSpec, SegmentStatus, Server, ServerSpec, ServerStatus,
};
use schemars::JsonSchema;
use serde_json::{Map, Value, json};

use super::{File, schema, yaml};
use crate::boot::{ipxe::MAX_PARAMETERS, segment::MAX_SERVERS};

/// Integers of upstream's that are 64 bits wide by declaration; the others are Go's `int`, which has no format.
const INT64: &[&str] = &["sizeBytes", "observedGeneration"];

/// Every CRD as a file, named `group_plural.yaml`.
pub fn files() -> Vec<File> {
    all()
        .into_iter()
        .map(|crd| {
            let at = |pointer: &str| {
                crd.pointer(pointer)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            let name = format!("{}_{}.yaml", at("/spec/group"), at("/spec/names/plural"));
            (name, yaml(&[crd]))
        })
        .collect()
}

/// Every CRD.
pub fn all() -> Vec<Value> {
    vec![
        upstreams::<BareMetalHost, BareMetalHostSpec>(Some(schema::of::<BareMetalHostStatus>())),
        upstreams::<HardwareData, HardwareDataSpec>(None),
        segment(),
        server(),
        ours::<Enrolment, EnrolmentSpec>(None),
    ]
}

/// A kind of upstream's: nothing is required at the top, and formats are Go's.
fn upstreams<K: CustomResourceExt, S: JsonSchema>(status: Option<Value>) -> Value {
    let mut spec = schema::of::<S>();
    let mut status = status;
    for part in std::iter::once(&mut spec).chain(&mut status) {
        without_implied_defaults(part);
        schema::each_property(part, &mut |name, property| {
            if property.get("format") == Some(&json!("int64")) && !INT64.contains(&name) {
                property.remove("format");
            }
        });
    }
    // Upstream's serialiser always writes these, so its schema requires them, though each has a default.
    if let Some(Value::Array(required)) = status.as_mut().and_then(|status| status.get_mut("required")) {
        required.extend(["errorCount", "provisioningFailCount"].map(Value::from));
        required.sort_by_key(Value::to_string);
    }
    crd::<K>(spec, status, &[])
}

/// A kind of ours.
fn ours<K: CustomResourceExt, S: JsonSchema>(status: Option<Value>) -> Value {
    let mut spec = schema::of::<S>();
    let mut status = status;
    for part in std::iter::once(&mut spec).chain(&mut status) {
        // The API server would write every default into every object, and say nothing with it.
        schema::each_property(part, &mut |_, property| {
            property.remove("default");
        });
    }
    crd::<K>(spec, status, &["spec"])
}

/// Defaults that only repeat what absence means: false, zero, nothing. Upstream's own are kept by being required or an enum's.
fn without_implied_defaults(part: &mut Value) {
    schema::each_property(part, &mut |_, property| {
        let implied = match property.get("default") {
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(all)) => all.is_empty(),
            Some(Value::Object(_)) => true,
            _ => false,
        };
        if implied {
            property.remove("default");
        }
    });
}

/// What a machine reports is checked by the edge, which alone writes it, and stored as it comes: to check, prune and keep account of
/// each field of 20 KiB and more would be most of the API server's work for a host.
fn server() -> Value {
    let mut status = schema::of::<ServerStatus>();
    if let Some(Value::Object(inventory)) = status.pointer_mut("/properties/inventory") {
        inventory.retain(|key, _| key == "description");
        inventory.insert("type".to_owned(), json!("object"));
        inventory.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
        inventory.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
    }
    ours::<Server, ServerSpec>(Some(status))
}

/// People write Segments, so it is checked when they do.
fn segment() -> Value {
    let mut spec = schema::of::<SegmentSpec>();
    for (list, longest) in [
        ("/properties/relays/items", 45),
        ("/properties/agentEndpoints/items", 261),
        ("/properties/dhcp/properties/dnsServers/items", 45),
        ("/properties/dhcp/properties/ntpServers/items", 45),
        ("/properties/dhcp/properties/ranges/items/properties/start", 15),
        ("/properties/dhcp/properties/ranges/items/properties/end", 15),
        ("/properties/subnet", 18),
        ("/properties/dhcp/properties/router", 15),
        ("/properties/bootAddress", 261),
        ("/properties/proxy", 261),
        ("/properties/hostNamespace", 63),
        ("/properties/dhcp/properties/domain", 253),
    ] {
        if let Some(Value::Object(map)) = spec.pointer_mut(list) {
            map.insert("maxLength".to_owned(), json!(longest));
        }
    }
    for list in ["dnsServers", "ntpServers"] {
        if let Some(Value::Object(map)) = spec.pointer_mut(&format!("/properties/dhcp/properties/{list}")) {
            map.insert("maxItems".to_owned(), json!(MAX_SERVERS));
        }
    }
    let rule = |rule: &str, message: &str| json!({"rule": rule, "message": message});
    spec["x-kubernetes-validations"] = json!([
        rule(
            "isCIDR(self.subnet)",
            "subnet is not an IPv4 subnet such as 10.77.0.0/24"
        ),
        rule(
            "self.dhcp.mode != 'server' || (has(self.dhcp.ranges) && size(self.dhcp.ranges) > 0)",
            "dhcp.mode server needs at least one range to lease addresses from",
        ),
        rule(
            "!has(self.dhcp.ranges) || !isCIDR(self.subnet) || self.dhcp.ranges.all(range, isIP(range.start) && isIP(range.end) \
             && cidr(self.subnet).containsIP(range.start) && cidr(self.subnet).containsIP(range.end))",
            "dhcp.ranges must lie in the subnet",
        ),
        rule(
            "!has(self.dhcp.router) || !isCIDR(self.subnet) || (isIP(self.dhcp.router) \
             && cidr(self.subnet).containsIP(self.dhcp.router))",
            "dhcp.router must lie in the subnet",
        ),
        rule(
            "!has(self.relays) || self.relays.all(relay, isIP(relay))",
            "relays are IP addresses",
        ),
        rule(
            "has(self.interface) || (has(self.bootAddress) && has(self.agentEndpoints) && size(self.agentEndpoints) > 0)",
            "without an interface, bootAddress and agentEndpoints must say where machines reach Muster",
        ),
        rule(
            "has(self.interface) || self.dhcp.mode != 'proxy' || (has(self.relays) && size(self.relays) > 0)",
            "proxy DHCP without an interface needs relays",
        ),
        rule(
            &format!(
                "!has(self.kernelParameters) || self.kernelParameters.map(parameter, size(parameter) + 1).sum() <= {MAX_PARAMETERS}"
            ),
            &format!(
                "kernelParameters, with a space before each, are longer than the {MAX_PARAMETERS} characters that fit into the kernel's command line"
            ),
        ),
    ]);
    let mut status = schema::of::<SegmentStatus>();
    schema::each_property(&mut status, &mut |_, property| {
        property.remove("default");
    });
    schema::each_property(&mut spec, &mut |_, property| {
        if property.get("default").is_some_and(|value| value == &json!([])) {
            property.remove("default");
        }
    });
    crd::<Segment>(spec, Some(status), &["spec"])
}

fn crd<K: CustomResourceExt>(spec: Value, status: Option<Value>, required: &[&str]) -> Value {
    let mut crd = serde_json::to_value(K::crd()).expect("a CRD is plain data");
    let kind = crd
        .pointer("/spec/names/kind")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if let Some(Value::Object(names)) = crd.pointer_mut("/spec/names") {
        names.insert("listKind".to_owned(), json!(format!("{kind}List")));
        names.retain(|_, value| value != &json!([]));
    }
    let description = spec.get("description").cloned().unwrap_or_default();
    let mut properties = Map::new();
    properties.insert("apiVersion".to_owned(), json!({"type": "string"}));
    properties.insert("kind".to_owned(), json!({"type": "string"}));
    properties.insert("metadata".to_owned(), json!({"type": "object"}));
    properties.insert("spec".to_owned(), untitled(spec));
    if let Some(status) = status {
        properties.insert("status".to_owned(), untitled(status));
    }
    let mut root = json!({"description": description, "type": "object", "properties": properties});
    if !required.is_empty() {
        root["required"] = json!(required);
    }
    let version = &mut crd["spec"]["versions"][0];
    version["schema"]["openAPIV3Schema"] = root;
    if version.get("subresources").is_none() {
        version["subresources"] = json!({});
    }
    crd
}

/// The kind's description stands at the top; repeating it at `spec` says nothing.
fn untitled(mut part: Value) -> Value {
    if let Value::Object(map) = &mut part {
        map.remove("description");
    }
    part
}

#[cfg(test)]
mod tests;
