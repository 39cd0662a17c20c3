//! Server-side apply of YAML documents, in an order that works.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    core::{GroupVersionKind, TypeMeta},
    discovery::{Scope, pinned_kind},
    runtime::wait::{await_condition, conditions::is_crd_established},
};

const ESTABLISHED: std::time::Duration = std::time::Duration::from_secs(30);

/// Applies every `*.yaml` below `dir`, in the order of their names.
pub(super) async fn directory(client: &Client, dir: &Path, namespace: Option<&str>) -> Result<()> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .with_context(|| format!("list {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        // It lists the others for kustomize and is no object.
        .filter(|path| path.file_stem().is_some_and(|name| name != "kustomization"))
        .collect();
    files.sort();
    if files.is_empty() {
        bail!("{} holds no manifest", dir.display());
    }
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        documents(client, &text, namespace)
            .await
            .with_context(|| format!("apply {}", file.display()))?;
    }
    Ok(())
}

/// Applies every document of `text`, then waits until definitions of kinds among them are served.
pub(super) async fn documents(client: &Client, text: &str, namespace: Option<&str>) -> Result<()> {
    let mut defined = Vec::new();
    for object in parse(text)? {
        let (kind, name) = (kind(&object)?, object.name_any());
        apply(client, object, &kind, namespace)
            .await
            .with_context(|| format!("apply {} {name}", kind.kind))?;
        if kind.kind == "CustomResourceDefinition" {
            defined.push(name);
        }
    }
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for name in defined {
        let served = await_condition(definitions.clone(), &name, is_crd_established());
        tokio::time::timeout(ESTABLISHED, served)
            .await
            .with_context(|| format!("{name} was not established within {ESTABLISHED:?}"))?
            .with_context(|| format!("wait for {name}"))?;
    }
    Ok(())
}

/// The documents of `text` that are not empty.
pub(super) fn parse(text: &str) -> Result<Vec<DynamicObject>> {
    let documents: Vec<Option<serde_json::Value>> = serde_saphyr::from_multiple(text).context("read YAML")?;
    documents
        .into_iter()
        .flatten()
        .map(|document| serde_json::from_value(document).context("read a Kubernetes object"))
        .collect()
}

/// The object's group, version and kind.
pub(super) fn kind(object: &DynamicObject) -> Result<GroupVersionKind> {
    let types: &TypeMeta = object.types.as_ref().context("an object names no kind")?;
    GroupVersionKind::try_from(types).context("an object's apiVersion")
}

/// Deletes `object`, which is in `namespace` if it is in one and does not say in which; nothing if it is gone.
pub(super) async fn delete(client: &Client, object: serde_json::Value, namespace: &str) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object).context("read a Kubernetes object")?;
    let (kind, name) = (kind(&object)?, object.name_any());
    let api = api_of(client, &object, &kind, Some(namespace)).await?;
    match api.delete(&name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        outcome => outcome
            .map(drop)
            .with_context(|| format!("delete {} {name}", kind.kind)),
    }
}

async fn apply(
    client: &Client,
    object: DynamicObject,
    kind: &GroupVersionKind,
    namespace: Option<&str>,
) -> Result<()> {
    let api = api_of(client, &object, kind, namespace).await?;
    let parameters = PatchParams::apply("muster-lab").force();
    api.patch(&object.name_any(), &parameters, &Patch::Apply(&object))
        .await?;
    Ok(())
}

/// Where objects of the kind of `object` are, in its namespace or in `namespace`.
async fn api_of(
    client: &Client,
    object: &DynamicObject,
    kind: &GroupVersionKind,
    namespace: Option<&str>,
) -> Result<Api<DynamicObject>> {
    let (resource, capabilities) = pinned_kind(client, kind).await.context("ask for the kind")?;
    Ok(match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => {
            let own = object.namespace();
            let namespace = own
                .as_deref()
                .or(namespace)
                .context("an object names no namespace")?;
            Api::namespaced_with(client.clone(), namespace, &resource)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_documents_are_passed_over() {
        let text = "# a comment\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\n\
                    apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: b}\n";
        let objects = parse(text).unwrap();
        assert_eq!(objects.len(), 2);
        assert_eq!(kind(&objects[1]).unwrap().group, "apps");
    }
}
