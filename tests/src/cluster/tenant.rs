//! Whether somebody acts in a cluster already: a Muster, whose Lease the lab's controller would share, so that one of the two would act
//! for both, or a baremetal-operator, which writes to the same hosts.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{Api, Client, ResourceExt, api::ListParams};

/// The Lease that a controller takes unless it is told another.
const LEASE: &str = "muster-control";
/// The Lease of baremetal-operator, in whichever namespace it runs.
const OPERATOR: &str = "baremetal-operator";
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// The longest lease that is waited for: whoever renews does so several times in one.
const LONGEST: Duration = Duration::from_secs(60);

/// Fails if a Muster acts by the Lease in `namespace`, or a baremetal-operator in any.
pub(super) async fn is_free(client: &Client, namespace: &str) -> Result<()> {
    if let Some(holder) = renewing(client, namespace, LEASE).await? {
        bail!(
            "Muster already runs in this cluster: {holder} renews the Lease {namespace}/{LEASE}, and the lab's controller would take its place or wait for it; \
             end it, use another cluster, or let a fleet use it (--segment)"
        );
    }
    for namespace in operators(client).await? {
        if let Some(holder) = renewing(client, &namespace, OPERATOR).await? {
            bail!(
                "baremetal-operator runs in this cluster: {holder} renews the Lease {namespace}/{OPERATOR}, and only one of it and Muster may act at a time; \
                 stop it as docs/migrate-from-metal3.md says, or use another cluster"
            );
        }
    }
    Ok(())
}

/// The namespaces in which a baremetal-operator has run. Nobody is kept out who may not ask for that.
async fn operators(client: &Client) -> Result<Vec<String>> {
    let named = ListParams::default().fields(&format!("metadata.name={OPERATOR}"));
    match Api::<Lease>::all(client.clone()).list(&named).await {
        Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(Vec::new()),
        listed => {
            let leases = listed.with_context(|| format!("list the Leases {OPERATOR}"))?;
            Ok(leases.iter().filter_map(ResourceExt::namespace).collect())
        }
    }
}

/// Who renews the Lease `name` in `namespace`. One that is held and not renewed is of a controller that was killed.
async fn renewing(client: &Client, namespace: &str, name: &str) -> Result<Option<String>> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let read = async || {
        let lease = leases.get_opt(name).await;
        let lease = lease.with_context(|| format!("read Lease {namespace}/{name}"))?;
        anyhow::Ok(lease.and_then(|lease| lease.spec).unwrap_or_default())
    };
    let seen = read().await?;
    if !is_held(&seen) {
        return Ok(None);
    }
    let seconds = seen
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
    eprintln!(
        "Waiting to see whether {} still renews the Lease {namespace}/{name} …",
        seen.holder_identity.as_deref().unwrap_or_default()
    );
    let patience = Duration::from_secs(seconds.unwrap_or_default() + 1).min(LONGEST);
    let looks = async {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = read().await?;
            if is_held(&now) && now.renew_time != seen.renew_time {
                return anyhow::Ok(now.holder_identity.unwrap_or_default());
            }
        }
    };
    match tokio::time::timeout(patience, looks).await {
        Err(_) => Ok(None),
        Ok(holder) => holder.map(Some),
    }
}

fn is_held(lease: &LeaseSpec) -> bool {
    lease
        .holder_identity
        .as_ref()
        .is_some_and(|holder| !holder.is_empty())
}
