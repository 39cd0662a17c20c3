//! What an installation is: the manifests at a real API server, the rights that they give, and who may read the metrics.

use std::{net::SocketAddr, path::PathBuf, process::Command, sync::Arc, time::Duration};

use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::{Secret, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
};
use muster_tests::{
    bridges::BR0,
    cluster::{Cluster, Role},
    forward::Forwarder,
    paths,
    stage::Stage,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SOON: Duration = Duration::from_secs(60);

fn kubectl(cluster: Option<&Cluster>, arguments: &[&str]) -> String {
    let mut command = Command::new(paths::kubectl().expect("a kubectl"));
    if let Some(cluster) = cluster {
        command.arg("--kubeconfig").arg(cluster.kubeconfig());
    }
    let output = command.args(arguments).output().expect("its output");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

fn form(name: &str) -> PathBuf {
    paths::deploy().join(name)
}

fn documents(name: &str) -> Vec<Value> {
    let text = kubectl(None, &["kustomize", form(name).to_str().expect("a path of text")]);
    serde_saphyr::from_multiple(&text).expect("YAML")
}

fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut all = documents.iter();
    let found = all.find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// May the service account of `role` do this?
async fn may(client: &Client, role: &str, verb: &str, group: &str, resource: &str, at: [&str; 2]) -> bool {
    let [namespace, name] = at;
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:muster-system:muster-{role}")),
            resource_attributes: Some(ResourceAttributes {
                verb: some(verb),
                group: some(group),
                resource: some(resource),
                subresource: some(subresource),
                namespace: some(namespace),
                name: some(name),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = reviews
        .create(&PostParams::default(), &review)
        .await
        .expect("an answer");
    answer.status.expect("a status").allowed
}

/// What holds in both forms; `wide`: hosts live in all namespaces.
async fn least_rights(client: &Client, wide: bool) {
    // The operator reads the Secrets that hosts name, where hosts live; the edge, which faces the network, reads two by name.
    for verb in ["list", "watch", "get", "patch"] {
        for namespace in ["", "muster-system", "other"] {
            let at = [namespace, "a"];
            assert_eq!(
                may(client, "control", verb, "", "secrets", at).await,
                wide,
                "{verb} {at:?}"
            );
            assert!(
                !may(client, "edge", verb, "", "secrets", at).await,
                "{verb} {at:?}"
            );
        }
        let at = ["metal", "a"];
        assert!(may(client, "control", verb, "", "secrets", at).await, "{verb}");
        assert!(!may(client, "edge", verb, "", "secrets", at).await, "{verb}");
    }
    for (role, lease) in [("control", true), ("edge", false)] {
        let own = ["muster-system", "muster-control"];
        let leases = "coordination.k8s.io";
        assert_eq!(may(client, role, "update", leases, "leases", own).await, lease);
        assert!(
            !may(
                client,
                role,
                "update",
                leases,
                "leases",
                ["muster-system", "other"]
            )
            .await
        );
        let reviews = "authentication.k8s.io";
        assert!(may(client, role, "create", reviews, "tokenreviews", ["", ""]).await);
        assert!(may(client, role, "get", "metal3.io", "baremetalhosts", ["metal", "a"]).await);
    }
    assert!(
        !may(
            client,
            "edge",
            "patch",
            "metal3.io",
            "baremetalhosts",
            ["metal", "a"]
        )
        .await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn both_forms_install_and_give_the_least_rights() {
    let cluster = Cluster::shared().await.unwrap();
    let client = cluster.client().unwrap();
    // The lab has installed the kinds and rules as another owner.
    let apply = |name: &str| {
        let form = form(name);
        let how = ["apply", "--server-side", "--force-conflicts", "--kustomize"];
        kubectl(Some(cluster), &[&how[..], &[form.to_str().unwrap()]].concat())
    };
    apply("namespaced");
    least_rights(&client, false).await;
    for role in ["control", "edge"] {
        let elsewhere = ["other", "a"];
        assert!(!may(&client, role, "get", "metal3.io", "baremetalhosts", elsewhere).await);
    }
    // The same objects and two bindings more.
    apply(".");
    least_rights(&client, true).await;
    for role in ["control", "edge"] {
        let elsewhere = ["other", "a"];
        assert!(may(&client, role, "get", "metal3.io", "baremetalhosts", elsewhere).await);
    }
}

#[test]
fn the_forms_differ_in_where_hosts_live_only() {
    let (wide, narrow) = (documents("."), documents("namespaced"));
    for (kind, name) in [("Deployment", "muster-control"), ("DaemonSet", "muster-edge")] {
        let (wide, narrow) = (find(&wide, kind, name), find(&narrow, kind, name));
        let environment = "/spec/template/spec/containers/0/env";
        let watches = |one: &Value| {
            let all = one.pointer(environment).unwrap().as_array().unwrap();
            let found = all.iter().find(|one| one["name"] == "MUSTER_WATCH_NAMESPACE");
            found.map(|one| one["value"].clone())
        };
        assert_eq!((watches(wide), watches(narrow)), (None, Some(json!("metal"))));
        let mut narrow = narrow.clone();
        let all = narrow.pointer_mut(environment).unwrap().as_array_mut().unwrap();
        all.retain(|one| one["name"] != "MUSTER_WATCH_NAMESPACE");
        assert_eq!(*wide, narrow);
        let image = wide.pointer("/spec/template/spec/containers/0/image").unwrap();
        let version = concat!("muster-controller:", env!("CARGO_PKG_VERSION"));
        assert_eq!(*image, version, "{name} runs the image of this version");
    }
    let kinds = |documents: &[Value], kind: &str| documents.iter().filter(|one| one["kind"] == kind).count();
    assert_eq!(
        kinds(&wide, "ClusterRoleBinding"),
        kinds(&narrow, "ClusterRoleBinding") + 2
    );
    assert_eq!(kinds(&wide, "RoleBinding") + 2, kinds(&narrow, "RoleBinding"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_role_runs_under_the_strictest_pod_security_and_the_edge_does_not() {
    let cluster = Cluster::shared().await.unwrap();
    let client = cluster.client().unwrap();
    let namespace = cluster.namespace("restricted").await.unwrap();
    let objects = format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: muster-control}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: muster-edge}}
"
    );
    cluster.apply(&objects, &namespace).await.unwrap();
    let all = documents(".");
    let kind = kube::core::ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
    let pods: Api<DynamicObject> = Api::namespaced_with(client, &namespace, &kind);
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let create = async |owner: &Value| {
        let mut pod = owner["spec"]["template"].clone();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!("a");
        let pod = serde_json::from_value(pod).unwrap();
        pods.create(&dry, &pod).await.map(drop)
    };
    create(find(&all, "Deployment", "muster-control")).await.unwrap();
    let refused = create(find(&all, "DaemonSet", "muster-edge")).await.unwrap_err();
    assert!(refused.to_string().contains("PodSecurity"), "{refused}");
}

/// The answer to a scraper with this token.
async fn scraped(at: SocketAddr, roots: &Arc<ClientConfig>, token: Option<&str>) -> std::io::Result<String> {
    let stream = TcpStream::connect(at).await?;
    let connector = tokio_rustls::TlsConnector::from(roots.clone());
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = connector.connect(name, stream).await?;
    let token = token.map_or(String::new(), |token| {
        format!("authorization: Bearer {token}\r\n")
    });
    let request = format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\n{token}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_for_those_whom_the_api_server_lets() {
    let cluster = Cluster::shared().await.unwrap();
    let stage = Stage::dark_with("metrics", &[BR0], |setup| {
        setup.role = Role::Control;
        setup.metrics = "authenticated";
        setup
            .extra
            .extend(["--metrics-listen", "127.0.0.1:0"].map(str::to_owned));
    });
    let mut stage = stage.await.unwrap();
    stage.controller.start().unwrap();
    let log = stage.controller.log();
    let (_, line) = log.wait_for("metrics address=", 0, SOON).await.unwrap();
    let (_, address) = line.text.rsplit_once("address=").unwrap();
    let forwarder = Forwarder::inwards(&stage.network.net, address.trim().parse().unwrap()).unwrap();
    let secret = stage.until("the authority", SOON, async || {
        Ok(stage.api::<Secret>().get_opt("muster-ca").await?)
    });
    let authority = secret.await.unwrap().data.unwrap()["ca.crt"].0.clone();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&authority).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);

    let namespace = &stage.namespace;
    let objects = format!(
        "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: scraper}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: stranger}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: scraper-{namespace}}}
rules: [{{nonResourceURLs: [/metrics], verbs: [get]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: scraper-{namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: scraper-{namespace}}}
subjects: [{{kind: ServiceAccount, name: scraper, namespace: {namespace}}}]
"
    );
    cluster.apply(&objects, namespace).await.unwrap();
    let token = async |account: &str| {
        let accounts = stage.api::<ServiceAccount>();
        let answer = accounts
            .create_token_request(account, &PostParams::default(), &Default::default())
            .await
            .unwrap();
        answer.status.unwrap().token.unwrap()
    };
    let (scraper, stranger) = (token("scraper").await, token("stranger").await);
    let at = forwarder.address();
    // The certificate is there a moment after the authority; a new binding is seen later, and a refusal remembered for a while.
    let answer = stage.until("an answer to the scraper", SOON, async || {
        let answer = scraped(at, &config, Some(&scraper)).await.ok();
        Ok(answer.filter(|answer| answer.starts_with("HTTP/1.1 200")))
    });
    let answer = answer.await.unwrap();
    assert!(answer.contains("process_resident_memory_bytes"), "{answer}");
    assert!(
        answer.contains("leader_election_master_status{name=\"muster-control\"}"),
        "{answer}"
    );
    let refused = async |token: Option<&str>| {
        let answer = scraped(at, &config, token).await.unwrap();
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(refused(None).await, "401");
    assert_eq!(refused(Some("forged")).await, "401");
    assert_eq!(refused(Some(&stranger)).await, "403");
}
