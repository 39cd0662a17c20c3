//! The rules on what a BareMetalHost may say: `deploy/manifests/policies`.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use muster_proto::kinds::BareMetalHost;
use serde_json::json;
use tokio::time::Instant;

use super::apply;
use crate::paths;

/// The API server looks once a second whether its policies changed.
const BIND: Duration = Duration::from_secs(60);
/// How often it is asked.
const PAUSE: Duration = Duration::from_millis(50);
/// A rule of the policy that is installed last. The API server sees policies, and their bindings, in the order in which they
/// were written, and takes over all that it has seen at once: when the last one binds, so do those before it.
const PROBE: &str = "07564256-96ae-4315-ab03-8d34ece60fbb";

fn directory() -> PathBuf {
    paths::deploy().join("manifests/policies")
}

pub(super) async fn install(client: &Client) -> Result<()> {
    let dir = directory();
    apply::directory(client, &dir, None)
        .await
        .with_context(|| format!("install the rules in {}", dir.display()))
}

pub(super) async fn lift(client: &Client, namespace: &str) -> Result<()> {
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let there = bindings
        .list(&ListParams::default())
        .await
        .context("list bindings of policies")?;
    // In the order in which they were made, so that the last one is the last to go.
    for name in there.iter().map(ResourceExt::name_any) {
        if name.starts_with("muster-") {
            bindings
                .delete(&name, &DeleteParams::default())
                .await
                .with_context(|| format!("remove the binding {name}"))?;
        }
    }
    wait(client, namespace, false).await
}

/// Waits until the probe in `namespace` is refused, or no longer is.
pub(super) async fn wait(client: &Client, namespace: &str, refused: bool) -> Result<()> {
    let hosts: Api<BareMetalHost> = Api::namespaced(client.clone(), namespace);
    let host = serde_json::from_value(json!({"metadata": {"name": PROBE}, "spec": {"online": true}}))?;
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let deadline = Instant::now() + BIND;
    loop {
        let answer = match hosts.create(&dry, &host).await {
            Ok(_) => false,
            Err(kube::Error::Api(status)) if status.message.contains("muster-host-spec") => true,
            Err(error) => return Err(error).context("ask whether the rules bind"),
        };
        if answer == refused {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the rules on hosts bind: {answer}, still after {BIND:?}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
