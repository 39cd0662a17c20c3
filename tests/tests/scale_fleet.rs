//! `muster-lab fleet`, as people start it.

use std::{
    process::{Command, Output},
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Resource, api::ListParams};
use muster_proto::kinds::{BareMetalHost, Server};
use muster_tests::cluster::Cluster;

const SOON: Duration = Duration::from_secs(240);

async fn fleet(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-lab"));
    command.arg("fleet").args(words).env_remove("KUBECONFIG");
    let ran = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(SOON, ran).await;
    output.expect("an end in time").unwrap().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn count<K>(cluster: &Cluster, namespace: &str) -> usize
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(cluster.client().unwrap(), namespace);
    api.list(&ListParams::default()).await.unwrap().items.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn fleet_is_discovered_and_leaves_nothing_in_a_cluster_that_stays() {
    let cluster = Cluster::shared().await.unwrap();
    let kubeconfig = cluster.kubeconfig().to_string_lossy().into_owned();
    let words = [
        "--hosts",
        "20",
        "--discover",
        "--scale",
        "0",
        "--once",
        "--fail",
        "boot=20x1",
    ];
    let output = fleet(&[&words[..], &["--kubeconfig", &kubeconfig, "--namespace", "metal"]].concat()).await;
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", text(&output.stderr));
    assert!(
        said.contains("20 servers: 20 ready · hosts: 20 unmanaged"),
        "{said}"
    );
    assert!(said.contains("Deleting"), "{said}");
    assert_eq!(count::<BareMetalHost>(cluster, "metal").await, 0);
    assert_eq!(count::<Server>(cluster, "muster-system").await, 0);
    assert_eq!(count::<Secret>(cluster, "metal").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_is_told() {
    for (words, told) in [
        (&["--fail", "rain=5"][..], "none of firmware"),
        (&["--scale=-1"], "from 0 to 100"),
        (&["--segment", "a/b"], "--kubeconfig"),
        (&["--hosts", "0"], "0 is not in 1..=100000"),
    ] {
        let output = fleet(words).await;
        assert!(!output.status.success());
        let said = text(&output.stderr);
        assert!(said.contains(told), "{words:?}: {said}");
    }
}
