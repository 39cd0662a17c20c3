//! What an installation is: the manifests at a real API server, the rights that they give, and who may read the metrics.

use std::{
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use clap::CommandFactory;
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::{Secret, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
};
use muster_controller::args::Cli;
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

/// Waits until each kind of binding counts: both roles may read the host at `at` and ask who calls, and the control role has its Lease.
async fn granted(client: &Client, at: [&str; 2]) {
    let lease = ["muster-system", "muster-control"];
    let rights = [
        ("control", "get", "metal3.io", "baremetalhosts", at),
        ("edge", "get", "metal3.io", "baremetalhosts", at),
        (
            "control",
            "create",
            "authentication.k8s.io",
            "tokenreviews",
            ["", ""],
        ),
        (
            "edge",
            "create",
            "authentication.k8s.io",
            "tokenreviews",
            ["", ""],
        ),
        ("control", "update", "coordination.k8s.io", "leases", lease),
    ];
    let granted = async {
        for (role, verb, group, resource, at) in rights {
            while !may(client, role, verb, group, resource, at).await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    tokio::time::timeout(SOON, granted).await.expect("rights");
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
    // Whether another installation acts on the same hosts, which only one for all namespaces may see.
    let elsewhere = ["", "muster-control"];
    let sees = may(
        client,
        "control",
        "list",
        "coordination.k8s.io",
        "leases",
        elsewhere,
    )
    .await;
    assert_eq!(sees, wide);
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
    for (role, verb, resource, allowed) in [
        ("control", "delete", "baremetalhosts", true),
        ("control", "delete", "hardwaredata", false),
        ("edge", "patch", "baremetalhosts", false),
    ] {
        let at = ["metal", "a"];
        assert_eq!(
            may(client, role, verb, "metal3.io", resource, at).await,
            allowed,
            "{role} {verb} {resource}"
        );
    }
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
    // The API server hears of rights a moment after it has taken them.
    granted(&client, ["metal", "a"]).await;
    least_rights(&client, false).await;
    for role in ["control", "edge"] {
        let elsewhere = ["other", "a"];
        assert!(!may(&client, role, "get", "metal3.io", "baremetalhosts", elsewhere).await);
    }
    // The same objects and two bindings more.
    apply(".");
    granted(&client, ["other", "a"]).await;
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
    for documents in [&wide, &narrow] {
        let all = documents
            .iter()
            .filter(|one| one["kind"] == "CustomResourceDefinition");
        let protected = all.map(|one| one["metadata"]["annotations"]["muster.dev/protected"] == "true");
        assert_eq!(protected.collect::<Vec<_>>(), [true; 5]);
        // `clusterctl move` takes objects of kinds with this label along.
        for moved in ["baremetalhosts.metal3.io", "hardwaredata.metal3.io"] {
            let labels = &find(documents, "CustomResourceDefinition", moved)["metadata"]["labels"];
            assert_eq!(labels["clusterctl.cluster.x-k8s.io/move"], "", "{moved}");
        }
    }
    // The rules about hosts hold where hosts live.
    let metal = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "metal"}}});
    for (documents, wanted) in [(&wide, &Value::Null), (&narrow, &metal)] {
        let bindings = documents
            .iter()
            .filter(|one| one["kind"] == "ValidatingAdmissionPolicyBinding");
        let places: Vec<&Value> = bindings.map(|one| &one["spec"]["matchResources"]).collect();
        assert!(
            places.len() == 6 && places.iter().all(|place| *place == wanted),
            "{places:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_role_runs_under_the_strictest_pod_security_and_the_edge_in_its_own_namespace_only() {
    let cluster = Cluster::shared().await.unwrap();
    let client = cluster.client().unwrap();
    let all = documents("namespaced");
    assert_eq!(
        find(&all, "Namespace", "metal")["metadata"]["labels"],
        Value::Null
    );
    let strictest = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let own = &find(&all, "Namespace", "muster-system")["metadata"]["labels"];
    for (named, labels, is_for_the_edge) in [("restricted", &strictest, false), ("muster-system", own, true)]
    {
        let namespace = cluster.namespace("pods").await.unwrap();
        let objects = format!(
            "
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {labels}}}
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
        let kind = kube::core::ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let pods: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &kind);
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
            let made = pods.create(&dry, &pod).await;
            made.map(|made: DynamicObject| made.data["spec"]["priority"].clone())
        };
        // What Kubernetes' own two classes come to: above all that others can have.
        let priority = create(find(&all, "Deployment", "muster-control")).await.unwrap();
        assert_eq!(priority, json!(2_000_000_000));
        match create(find(&all, "DaemonSet", "muster-edge")).await {
            Ok(priority) => {
                assert!(is_for_the_edge, "{named}");
                assert_eq!(priority, json!(2_000_001_000));
            }
            Err(error) => {
                let refused = error.to_string();
                assert!(
                    !is_for_the_edge && refused.contains("PodSecurity"),
                    "{named}: {refused}"
                );
            }
        }
    }
}

/// The first container of an owner of pods as the kubelet would start it on the stage: its variables and its arguments.
fn started(container: &Value, stage: &Stage, address: &str) -> (Vec<(String, String)>, Vec<String>) {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let variables: Vec<(String, String)> = container["env"]
        .as_array()
        .expect("variables")
        .iter()
        .map(|one| {
            let value = match one
                .pointer("/valueFrom/fieldRef/fieldPath")
                .and_then(Value::as_str)
            {
                Some("metadata.namespace") => stage.namespace.clone(),
                Some("metadata.name" | "spec.nodeName") => "a-node".to_owned(),
                Some("status.hostIP") => address.to_owned(),
                Some(other) => panic!("{other}"),
                // Hosts live in the stage's namespace.
                None => text(&one["value"]).replace("metal", &stage.namespace),
            };
            (text(&one["name"]), value)
        })
        .collect();
    let arguments = container["args"]
        .as_array()
        .expect("arguments")
        .iter()
        .map(|argument| {
            let mut argument = text(argument);
            for (name, value) in &variables {
                argument = argument.replace(&format!("$({name})"), value);
            }
            argument
        });
    let arguments = arguments.collect();
    (variables, arguments)
}

/// The status of a plain HTTP answer; none: there is none.
async fn status(at: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_manifests_say_starts_each_role_and_answers_its_probes() {
    let cluster = Cluster::shared().await.unwrap();
    let stage = Stage::dark_with("manifests", &[BR0], |_| ()).await.unwrap();
    let net = &stage.network.net;
    let (address, _) = BR0.address.split_once('/').unwrap();
    let command = Cli::command();
    let known: Vec<&str> = command
        .get_arguments()
        .filter_map(|one| one.get_env()?.to_str())
        .collect();
    let all = documents("namespaced");
    for (kind, role) in [("Deployment", Role::Control), ("DaemonSet", Role::Edge)] {
        let name = format!("muster-{}", role.name());
        let container = find(&all, kind, &name)
            .pointer("/spec/template/spec/containers/0")
            .unwrap();
        let (variables, arguments) = started(container, &stage, address);
        for (variable, _) in &variables {
            let is_used = container["args"].to_string().contains(&format!("$({variable})"));
            assert!(
                is_used || known.contains(&variable.as_str()),
                "{name}: nothing reads {variable}"
            );
        }
        let log = File::create(stage.scratch.path().join(format!("{name}.log"))).unwrap();
        let mut controller = Command::new(paths::controller().unwrap());
        controller
            .envs(variables)
            .args(&arguments)
            .arg("--kubeconfig")
            .arg(cluster.identity(role, &stage.namespace).await.unwrap())
            .arg("--boot-dir")
            .arg(paths::boot_dir().unwrap())
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut process = Ended(net.spawn(controller).unwrap());
        let mut admin = None;
        for probe in ["livenessProbe", "readinessProbe"] {
            let get = &container[probe]["httpGet"];
            let port = get["port"].as_u64().or_else(|| {
                let ports = container["ports"].as_array()?;
                ports.iter().find(|one| one["name"] == get["port"])?["containerPort"].as_u64()
            });
            // By default the kubelet asks the pod's own address.
            let host = get["host"].as_str().unwrap_or(address);
            let target = format!("{host}:{}", port.unwrap()).parse().unwrap();
            let forwarder = Forwarder::inwards(net, target).unwrap();
            let path = get["path"].as_str().unwrap();
            stage
                .until(probe, SOON, async || {
                    if let Some(ended) = process.0.try_wait()? {
                        anyhow::bail!("{name} ended: {ended}");
                    }
                    Ok(status(forwarder.address(), path)
                        .await
                        .filter(|status| status == "200"))
                })
                .await
                .unwrap();
            admin = Some(forwarder);
        }
        let admin = admin.unwrap();
        assert_eq!(
            status(admin.address(), "/metrics").await.as_deref(),
            Some("404"),
            "{name} tells metrics to those that it knows only"
        );
        let metrics = Forwarder::inwards(net, format!("{address}:8443").parse().unwrap()).unwrap();
        let config = trusting(&stage).await;
        for token in [None, Some("forged")] {
            let answer = stage.until("an answer to a scraper", SOON, async || {
                Ok(scraped(metrics.address(), &config, token).await.ok())
            });
            let answer = answer.await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 401"), "{name}: {answer}");
        }
    }
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Trusts the authority of the controller on `stage`, once it has made one.
async fn trusting(stage: &Stage) -> Arc<ClientConfig> {
    let secret = stage.until("the authority", SOON, async || {
        Ok(stage.api::<Secret>().get_opt("muster-ca").await?)
    });
    let data = secret.await.expect("the authority").data.expect("its data");
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(&data["ca.crt"].0).expect("a certificate");
    roots.add(authority).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
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
    let config = trusting(&stage).await;

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
    // It leads: the authority is the leader's.
    assert!(
        answer.contains("muster_hosts_waiting{reason=\"Trust\"}"),
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
