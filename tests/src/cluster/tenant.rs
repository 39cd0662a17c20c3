//! Whether Muster acts in a cluster already: the lab's controller would share its Lease, and one of the two would act for both.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{Api, Client};

/// The Lease that a controller takes unless it is told another.
const LEASE: &str = "muster-control";
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// The longest lease that is waited for: whoever renews does so several times in one.
const LONGEST: Duration = Duration::from_secs(60);

/// Fails if somebody acts by the Lease in `namespace`. One that is held and not renewed is of a controller that was killed.
pub(super) async fn is_free(client: &Client, namespace: &str) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let read = async || {
        let lease = leases.get_opt(LEASE).await;
        let lease = lease.with_context(|| format!("read Lease {namespace}/{LEASE}"))?;
        anyhow::Ok(lease.and_then(|lease| lease.spec).unwrap_or_default())
    };
    let seen = read().await?;
    if !is_held(&seen) {
        return Ok(());
    }
    let seconds = seen
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
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
        Err(_) => Ok(()),
        Ok(holder) => bail!(
            "Muster runs in this cluster already: {} renews the Lease {namespace}/{LEASE}, and the lab's controller would take its place or wait for it; \
             end it, use another cluster, or let a fleet use it (--segment)",
            holder?
        ),
    }
}

fn is_held(lease: &LeaseSpec) -> bool {
    lease
        .holder_identity
        .as_ref()
        .is_some_and(|holder| !holder.is_empty())
}
