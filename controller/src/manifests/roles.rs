//! The least rights that each role needs. What stands here is what the tests run the controller with.
//!
//! Of each role: a Role for the controller's own namespace, bound there; a ClusterRole for where hosts live, to be bound with a
//! RoleBinding in the one namespace that is watched, or with a ClusterRoleBinding for all of them; and a ClusterRole, bound, for
//! asking the API server who may read the metrics.

use serde_json::{Value, json};

use super::{File, yaml};
use crate::args::LEASE;

/// The controller's own namespace in the generated files.
pub const NAMESPACE: &str = "muster-system";
/// The two Secrets that exist: the certificate authority and the key that seals tokens.
pub const SECRETS: [&str; 2] = ["muster-ca", "muster-token-key"];

/// Every role as a file.
pub fn files() -> Vec<File> {
    vec![
        ("edge.yaml".to_owned(), yaml(&edge())),
        ("control.yaml".to_owned(), yaml(&control())),
    ]
}

const LOOK: [&str; 3] = ["get", "list", "watch"];

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}

fn named(group: &str, resource: &str, names: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": [resource], "resourceNames": names, "verbs": verbs})
}

fn events() -> Value {
    rule("events.k8s.io", &["events"], &["create", "patch"])
}

/// Rights of the role that serves machines.
pub fn edge() -> Vec<Value> {
    let own = vec![
        rule("muster.dev", &["segments"], &LOOK),
        rule("muster.dev", &["segments/status"], &["patch"]),
        rule("muster.dev", &["servers"], &["get", "list", "watch", "create"]),
        rule("muster.dev", &["servers/status"], &["patch"]),
        rule(
            "muster.dev",
            &["enrolments"],
            &["get", "list", "watch", "create", "patch"],
        ),
        named("", "secrets", &SECRETS, &["get"]),
        events(),
    ];
    let hosts = vec![rule("metal3.io", &["baremetalhosts"], &LOOK), events()];
    documents("edge", &own, &hosts)
}

/// Rights of the role that derives hosts.
pub fn control() -> Vec<Value> {
    let own = vec![
        rule("muster.dev", &["segments"], &["list", "watch"]),
        rule("muster.dev", &["servers"], &["get", "list", "watch", "patch"]),
        rule("muster.dev", &["enrolments"], &["list", "watch", "delete"]),
        // A name cannot be required where the object does not exist yet.
        rule("", &["secrets"], &["create"]),
        named("", "secrets", &SECRETS, &["get"]),
        named("", "secrets", &SECRETS[..1], &["update"]),
        rule("coordination.k8s.io", &["leases"], &["create"]),
        named(
            "coordination.k8s.io",
            "leases",
            &[LEASE],
            &["get", "list", "watch", "update"],
        ),
        events(),
    ];
    let hosts = vec![
        rule(
            "metal3.io",
            &["baremetalhosts"],
            &["get", "list", "watch", "create", "patch", "delete"],
        ),
        rule(
            "metal3.io",
            &["hardwaredata"],
            &["list", "watch", "create", "patch"],
        ),
        rule("metal3.io", &["baremetalhosts/status"], &["patch"]),
        // Another operator's, which it holds by finalizers: let go with their host.
        rule(
            "metal3.io",
            &["preprovisioningimages", "dataimages"],
            &["get", "patch"],
        ),
        // Hosts name Secrets: credentials of BMCs and what goes on a machine's config drive. Of those only what upstream's operator
        // puts there too is changed: a label, a finalizer, an owner.
        rule("", &["secrets"], &["get", "list", "watch", "patch"]),
        // Whether another installation, in a namespace of its own, acts on the same hosts.
        named("coordination.k8s.io", "leases", &[LEASE], &["list"]),
        events(),
    ];
    documents("control", &own, &hosts)
}

fn documents(role: &str, own: &[Value], hosts: &[Value]) -> Vec<Value> {
    let account = format!("muster-{role}");
    vec![
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": NAMESPACE},
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": account, "namespace": NAMESPACE},
            "rules": own,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": account, "namespace": NAMESPACE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": format!("{account}-hosts")},
            "rules": hosts,
        }),
        // Who asks for the metrics, and may they? Both kinds live in no namespace; neither shows or changes anything.
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": format!("{account}-reviews")},
            "rules": [
                rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
                rule("authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": format!("{account}-reviews")},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": format!("{account}-reviews"),
            },
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
        }),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn committed_roles_are_fresh() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/roles");
        for (name, text) in files() {
            let committed = std::fs::read_to_string(directory.join(&name)).unwrap_or_default();
            assert_eq!(
                committed, text,
                "{name}: run `muster-controller manifests roles --out deploy/manifests/roles`"
            );
        }
    }

    /// The rules of `documents` about Secrets: of the Role in the controller's own namespace, and of the ClusterRole for hosts.
    fn about_secrets(documents: &[Value], kind: &str) -> Vec<Value> {
        let rules = documents
            .iter()
            .filter(|document| document["kind"] == kind)
            .flat_map(|document| document["rules"].as_array().cloned().unwrap_or_default());
        rules
            .filter(|rule| {
                let resources = rule["resources"].as_array().unwrap();
                resources
                    .iter()
                    .any(|resource| resource.as_str().unwrap().starts_with("secrets"))
            })
            .collect()
    }

    #[test]
    fn the_edge_reads_the_two_secrets_and_no_other() {
        assert_eq!(about_secrets(&edge(), "ClusterRole"), Vec::<Value>::new());
        let own = about_secrets(&edge(), "Role");
        assert_eq!(own, [named("", "secrets", &SECRETS, &["get"])]);
    }

    #[test]
    fn control_reads_and_marks_the_secrets_of_hosts_and_neither_makes_nor_deletes_any() {
        let hosts = about_secrets(&control(), "ClusterRole");
        assert_eq!(
            hosts,
            [rule("", &["secrets"], &["get", "list", "watch", "patch"])]
        );
        let own = about_secrets(&control(), "Role");
        let reads = named("", "secrets", &SECRETS, &["get"]);
        let renews = named("", "secrets", &["muster-ca"], &["update"]);
        assert_eq!(own, [rule("", &["secrets"], &["create"]), reads, renews]);
    }

    #[test]
    fn no_role_has_rights_to_everything_of_a_kind() {
        for document in edge().iter().chain(&control()) {
            for rule in document["rules"].as_array().into_iter().flatten() {
                for part in ["verbs", "resources", "apiGroups"] {
                    assert!(!rule[part].as_array().unwrap().contains(&json!("*")), "{rule}");
                }
            }
        }
    }
}
