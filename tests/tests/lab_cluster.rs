//! The lab's API server and its users, reached from inside a lab network.

use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::{authorization::v1::SelfSubjectAccessReview, core::v1::Secret};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
    config::Kubeconfig,
};
use muster_controller::run::reach;
use muster_proto::kinds::{BareMetalHost, Server};
use muster_tests::{
    bridges::{BR0, Network},
    cluster::{Cluster, Role},
    forward::Path,
    program::runs,
};
use serde_json::json;

async fn client(path: &std::path::Path) -> Result<Client> {
    Ok(Client::try_from(reach(Kubeconfig::read_from(path)?).await?)?)
}

async fn may(client: &Client, verb: &str, group: &str, resource: &str, namespace: &str) -> Result<bool> {
    let review = serde_json::from_value(json!({"spec": {"resourceAttributes": {
        "verb": verb, "group": group, "resource": resource, "namespace": namespace}}}))?;
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[tokio::test(flavor = "multi_thread")]
async fn users_have_the_rights_of_their_role_and_no_others() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("rights").await.unwrap();
    let edge = client(&cluster.identity(Role::Edge, &namespace).await.unwrap())
        .await
        .unwrap();
    let servers: Api<Server> = Api::namespaced(edge.clone(), &namespace);
    assert!(
        servers
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
    assert!(
        may(&edge, "patch", "muster.dev", "servers/status", &namespace)
            .await
            .unwrap()
    );
    assert!(
        !may(&edge, "create", "metal3.io", "baremetalhosts", "default")
            .await
            .unwrap()
    );
    assert!(!may(&edge, "list", "", "secrets", "default").await.unwrap());
    let secrets: Api<Secret> = Api::namespaced(edge, "default");
    assert!(secrets.list(&ListParams::default()).await.is_err());

    let both = cluster.identity(Role::Both, &namespace).await.unwrap();
    let both = client(&both).await.unwrap();
    assert!(
        may(&both, "create", "metal3.io", "baremetalhosts", "default")
            .await
            .unwrap()
    );
    assert!(
        may(&both, "patch", "muster.dev", "servers/status", &namespace)
            .await
            .unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn api_server_is_reached_from_inside_until_cut() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("inside").await.unwrap();
    let network = Network::new(&[BR0], cluster).unwrap();
    let kubeconfig = cluster.identity(Role::Control, &namespace).await.unwrap();
    let kubectl = muster_tests::paths::kubectl().unwrap();
    let ask = || {
        let mut command = std::process::Command::new(&kubectl);
        command
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .args(["get", "bmh", "-A", "--request-timeout=5s"]);
        network.net.run(move || command.output()).unwrap()
    };
    let output = ask();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    network.api.set(Path::Cut);
    assert!(!ask().status.success());
    network.api.set(Path::Open);
    assert!(ask().status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_are_applied_and_can_be_applied_again() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("apply").await.unwrap();
    let text =
        "apiVersion: metal3.io/v1alpha1\nkind: BareMetalHost\nmetadata: {name: a}\nspec: {online: true}";
    cluster.apply(text, &namespace).await.unwrap();
    cluster.apply(text, &namespace).await.unwrap();
    let api: Api<BareMetalHost> = Api::namespaced(cluster.client().unwrap(), &namespace);
    assert!(api.get("a").await.unwrap().spec.online);
    let wrong = text.replace("true", "7");
    assert!(cluster.apply(&wrong, &namespace).await.is_err());
    cluster.ensure_namespace(&namespace).await.unwrap();
}

/// A control plane that a test owns alone ends with it, and takes its files along.
#[tokio::test(flavor = "multi_thread")]
async fn own_control_plane_is_gone_when_dropped() {
    let cluster = Cluster::start().await.unwrap();
    let kubeconfig = cluster.kubeconfig().to_owned();
    let process = cluster.process().unwrap();
    tokio::net::TcpStream::connect(cluster.server()).await.unwrap();
    assert!(runs(&process));
    tokio::task::spawn_blocking(move || drop(cluster)).await.unwrap();
    assert!(!kubeconfig.exists());
    // Not by its port, which another control plane may have by now.
    let deadline = Instant::now() + Duration::from_secs(30);
    while runs(&process) {
        assert!(Instant::now() < deadline, "process {process} is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
