//! Users with exactly the rights of one of Muster's roles: tests run the controller as nobody else.

use std::{fs, os::unix::fs::OpenOptionsExt, path::Path};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, PostParams},
};
use serde_json::{Value, json};

use super::apply;
use crate::paths;

/// What the controller does, and so what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves machines.
    Edge,
    /// Derives hosts.
    Control,
    /// Both, as one process does by default.
    Both,
}

impl Role {
    /// As in `--roles`, with a dash instead of the comma.
    pub fn name(self) -> &'static str {
        match self {
            Role::Edge => "edge",
            Role::Control => "control",
            Role::Both => "edge-control",
        }
    }

    /// As the controller's `--roles` takes it.
    pub fn argument(self) -> &'static str {
        match self {
            Role::Edge => "edge",
            Role::Control => "control",
            Role::Both => "edge,control",
        }
    }

    fn parts(self) -> &'static [&'static str] {
        match self {
            Role::Edge => &["edge"],
            Role::Control => &["control"],
            Role::Both => &["edge", "control"],
        }
    }
}

/// How long a token lasts, in seconds: longer than any test or demo, or a fleet that is left alone over a weekend.
const LIFETIME: i64 = 7 * 24 * 3600;

fn account(role: Role) -> String {
    format!("muster-lab-{}", role.name())
}

/// The service account, and the rights of `role` in `namespace`, bound to it.
fn objects(role: Role, namespace: &str) -> Result<Vec<Value>> {
    let account = account(role);
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": namespace},
    })];
    for part in role.parts() {
        let path = paths::deploy().join(format!("manifests/roles/{part}.yaml"));
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let rights = rights(&text, &account, namespace).with_context(|| format!("use {}", path.display()))?;
        objects.extend(rights);
    }
    Ok(objects)
}

/// Takes away what [`token`] made, but for the Roles in `namespace`: they have the names of those of a real install.
pub(super) async fn forget(client: &Client, role: Role, namespace: &str) -> Result<()> {
    let mut made = objects(role, namespace)?;
    made.retain(|object| object["kind"] != "Role");
    for object in made.into_iter().rev() {
        apply::delete(client, object, namespace).await?;
    }
    Ok(())
}

/// Installs the manifests of `role` in `namespace` and returns a bearer token of a service account that is bound to them.
pub(super) async fn token(client: &Client, role: Role, namespace: &str) -> Result<String> {
    for object in objects(role, namespace)? {
        apply::documents(client, &object.to_string(), Some(namespace)).await?;
    }
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(LIFETIME),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let account = account(role);
    let answer = Api::<ServiceAccount>::namespaced(client.clone(), namespace)
        .create_token_request(&account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("ask for a token of {account}"))?;
    answer
        .status
        .and_then(|status| status.token)
        .context("the answer holds no token")
}

/// The Roles and ClusterRoles of `text`, each with a binding to `account`. Everything else in it (accounts, bindings) is for
/// a real install and is left out. Names of cluster-wide objects get the namespace, so that tests do not share them.
fn rights(text: &str, account: &str, namespace: &str) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for mut role in apply::parse(text)? {
        let kind = apply::kind(&role)?.kind;
        let wide = match kind.as_str() {
            "ClusterRole" => true,
            "Role" => false,
            _ => continue,
        };
        let name = match wide {
            true => format!("{}-{namespace}", role.name_any()),
            false => role.name_any(),
        };
        role.metadata.name = Some(name.clone());
        role.metadata.namespace = (!wide).then(|| namespace.to_owned());
        let bound = format!("{account}-{name}");
        objects.push(serde_json::to_value::<DynamicObject>(role).context("write a role")?);
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": format!("{kind}Binding"),
            "metadata": if wide { json!({"name": bound}) } else { json!({"name": bound, "namespace": namespace}) },
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        }));
    }
    if objects.is_empty() {
        bail!("it holds no Role and no ClusterRole");
    }
    Ok(objects)
}

/// Writes a kubeconfig that only its owner can read.
pub(super) fn write(path: &Path, cluster: &Value, token: &str) -> Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    });
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("make {}", path.display()))?;
    serde_json::to_writer_pretty(file, &config).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: muster, namespace: muster-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: muster-edge}
rules: []
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: muster-edge, namespace: muster-system}
rules: []
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: muster-edge, namespace: muster-system}
";

    #[test]
    fn only_roles_are_bound_and_in_the_tests_namespace() {
        let objects = rights(MANIFEST, "me", "t-1").unwrap();
        let shown: Vec<_> = objects
            .iter()
            .map(|object| {
                let at = object["metadata"]["namespace"].as_str().unwrap_or("-");
                format!("{} {} {at}", object["kind"], object["metadata"]["name"])
            })
            .collect();
        assert_eq!(
            shown,
            [
                r#""ClusterRole" "muster-edge-t-1" -"#,
                r#""ClusterRoleBinding" "me-muster-edge-t-1" -"#,
                r#""Role" "muster-edge" t-1"#,
                r#""RoleBinding" "me-muster-edge" t-1"#,
            ]
        );
        assert_eq!(objects[3]["subjects"][0]["namespace"], "t-1");
        assert!(rights("apiVersion: v1\nkind: Secret\nmetadata: {name: a}", "me", "t").is_err());
    }
}
