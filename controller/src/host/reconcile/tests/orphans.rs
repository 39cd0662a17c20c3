//! Secrets whose finalizer nobody needs any more.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use serde_json::json;

use super::lab::Lab;
use crate::host::plan::{SECRET_FINALIZER, SECRET_LABEL};

/// Longer than it takes to find an orphan twice.
const LATER: Duration = Duration::from_mins(25);

fn is_held(lab: &Lab, name: &str) -> bool {
    let secret: Secret = lab.api.get("secrets", name).unwrap();
    let mut finalizers = secret.metadata.finalizers.iter().flatten();
    finalizers.any(|name| name == SECRET_FINALIZER)
}

/// A Secret with upstream's label and these finalizers.
fn put(lab: &Lab, name: &str, finalizers: &[&str]) {
    lab.put_secret(name, &[("networkData", "{}")]);
    let (label, value) = SECRET_LABEL;
    let metadata = json!({"finalizers": finalizers, "labels": {label: value}});
    lab.api.edit("secrets", name, &json!({"metadata": metadata}));
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_no_host_needs_any_more_is_let_go_and_every_other_one_is_held() {
    let lab = Lab::new(1);
    lab.run(async {
        put(&lab, "former", &[]);
        put(&lab, "before", &[]);
        lab.declare(1);
        lab.edit(1, &json!({"spec": {"preprovisioningNetworkDataName": "former"}}));
        lab.reaches(1, "available").await;
        lab.until(|| is_held(&lab, "former")).await;
        lab.edit(1, &json!({"spec": {"preprovisioningNetworkDataName": "before"}}));
        // Marked for a host that was gone when the API server came to it.
        put(&lab, "late", &[SECRET_FINALIZER, "another"]);
        tokio::time::sleep(LATER).await;
        let held = ["former", "before", "bmc-1", "late"].map(|name| is_held(&lab, name));
        assert_eq!(held, [false, true, true, false]);
        let late: Secret = lab.api.get("secrets", "late").unwrap();
        assert_eq!(late.metadata.finalizers, Some(vec!["another".to_owned()]));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_a_host_comes_to_need_while_another_is_let_go_stays_as_it_is() {
    let lab = Lab::new(1);
    lab.run(async {
        put(&lab, "first", &[SECRET_FINALIZER]);
        put(&lab, "second", &[SECRET_FINALIZER]);
        lab.declare(1);
        lab.reaches(1, "available").await;
        // The answer about the first one is under way while the host is changed.
        lab.api.set_slow(Duration::from_secs(60));
        lab.until(|| !is_held(&lab, "first")).await;
        lab.edit(1, &json!({"spec": {"preprovisioningNetworkDataName": "second"}}));
        tokio::time::sleep(LATER).await;
    })
    .await;
    // It would be marked anew.
    let asked = lab.api.requests();
    let written = |one: &&String| one.starts_with("PATCH") && one.ends_with("/secrets/second");
    assert_eq!(asked.iter().filter(written).count(), 0, "{asked:#?}");
}
