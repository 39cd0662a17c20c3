//! What the API server accepts of a BareMetalHost: `deploy/manifests/policies`, at a real one.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use anyhow::{Context, Result};
use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use muster_controller::bmc::Address;
use muster_proto::kinds::BareMetalHost;
use muster_tests::{cluster::Cluster, paths};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

/// The cases of upstream's tests, and those of our own.
const UPSTREAM: (&str, usize) = (include_str!("conform_validation/upstream.yaml"), 96 + 8);
const OURS: (&str, usize) = (include_str!("conform_validation/ours.yaml"), 114);

/// The namespace controller tries again every few seconds.
const SOON: std::time::Duration = std::time::Duration::from_secs(120);

/// An inventory as it stands in an annotation.
const HARDWARE: &str = r#"{"systemVendor":{"manufacturer":"QEMU","productName":"Standard PC (Q35 + ICH9, 2009)","serialNumber":""},"firmware":{"bios":{"date":"","vendor":"","version":""}},"ramMebibytes":4096,"nics":[{"name":"eth0","model":"0x1af4 0x0001","mac":"00:b7:8b:bb:3d:f6","ip":"172.22.0.64","speedGbps":0,"vlanId":0,"pxe":true}],"storage":[{"name":"/dev/sda","rotational":true,"sizeBytes":53687091200,"vendor":"QEMU","model":"QEMU HARDDISK","serialNumber":"drive-scsi0-0-0-0","hctl":"6:0:0:0"}],"cpu":{"arch":"x86_64","model":"Intel Xeon E3-12xx v2 (IvyBridge)","clockMegahertz":2494.224,"flags":["foo"],"count":4},"hostname":"a"}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    before: Option<Host>,
    #[serde(default)]
    host: Host,
    #[serde(default)]
    act: Act,
    refused: Option<String>,
    upstream: Option<Otherwise>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Host {
    name: Option<String>,
    annotations: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    spec: serde_json::Map<String, Value>,
    status: Option<Value>,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Act {
    #[default]
    Write,
    Delete,
    Status,
}

/// Upstream answers otherwise than we do.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Otherwise {
    refuses: bool,
    because: String,
}

type Hosts = Api<DynamicObject>;

fn hosts(cluster: &Cluster, namespace: &str) -> Result<Hosts> {
    let kind = ApiResource::erase::<BareMetalHost>(&());
    Ok(Api::namespaced_with(cluster.client()?, namespace, &kind))
}

fn cases((text, count): (&str, usize), namespace: &str) -> Result<Vec<Case>> {
    let hardware = HARDWARE.replace('\'', "''");
    let text = text
        .replace("NAMESPACE", namespace)
        .replace(": HARDWARE", &format!(": '{hardware}'"));
    let cases: Vec<Case> = serde_saphyr::from_str(&text)?;
    assert_eq!(cases.len(), count);
    let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), count, "two cases have one name");
    Ok(cases)
}

impl Host {
    fn metadata(&self, otherwise: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name.clone().unwrap_or_else(|| otherwise.to_owned())),
            annotations: Some(self.annotations.clone()),
            labels: Some(self.labels.clone()),
            ..ObjectMeta::default()
        }
    }

    fn object(&self, name: &str) -> DynamicObject {
        let mut spec = self.spec.clone();
        spec.entry("online").or_insert(json!(true));
        let kind = ApiResource::erase::<BareMetalHost>(&());
        let object = DynamicObject::new("", &kind).data(json!({ "spec": spec }));
        DynamicObject {
            metadata: self.metadata(name),
            ..object
        }
    }
}

/// The fields of `some` with those that the CRD wants beside them, as a patch.
fn status(some: &Value) -> Value {
    let mut whole = json!({
        "errorCount": 0, "errorMessage": "", "operationalStatus": "", "poweredOn": false,
        "provisioning": {"ID": "", "state": ""}, "provisioningFailCount": 0,
    });
    for (field, value) in some.as_object().into_iter().flatten() {
        match (whole.get_mut(field), value) {
            (Some(Value::Object(there)), Value::Object(new)) => there.extend(new.clone()),
            _ => whole[field] = value.clone(),
        }
    }
    json!({ "status": whole })
}

fn dry() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

async fn write_status(hosts: &Hosts, name: &str, status: &Value, dry_run: bool) -> kube::Result<()> {
    let parameters = PatchParams {
        dry_run,
        ..PatchParams::default()
    };
    hosts
        .patch_status(name, &parameters, &Patch::Merge(status))
        .await
        .map(drop)
}

/// What the API server says to the case, which leaves nothing but what stood there before.
async fn answer(hosts: &Hosts, case: &Case, name: &str) -> kube::Result<()> {
    let mut host = case.host.object(name);
    let Some(before) = &case.before else {
        return hosts.create(&dry(), &host).await.map(drop);
    };
    hosts.create(&PostParams::default(), &before.object(name)).await?;
    if let Some(some) = &before.status {
        write_status(hosts, name, &status(some), false).await?;
    }
    match case.act {
        Act::Write => {
            host.metadata.resource_version = hosts.get(name).await?.resource_version();
            hosts.replace(name, &dry(), &host).await.map(drop)
        }
        Act::Delete => hosts
            .delete(name, &DeleteParams::default().dry_run())
            .await
            .map(drop),
        Act::Status => {
            let some = case.host.status.as_ref().unwrap_or(&Value::Null);
            write_status(hosts, name, &status(some), true).await
        }
    }
}

fn verdict(case: &Case, answer: &kube::Result<()>) -> std::result::Result<(), String> {
    if let Some(upstream) = &case.upstream
        && (upstream.refuses == case.refused.is_some() || upstream.because.is_empty())
    {
        return Err("it says of upstream what it says of us".to_owned());
    }
    match (answer, &case.refused) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(part)) => Err(format!("accepted, not refused with {part:?}")),
        (Err(kube::Error::Api(status)), Some(part)) if status.message.contains(part.as_str()) => Ok(()),
        (Err(error), Some(part)) => Err(format!("not refused with {part:?} but: {error}")),
        (Err(error), None) => Err(format!("refused: {error}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_accepted_and_refused_as_the_tables_say() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("validation").await.unwrap();
    cluster.rules_bind(&namespace).await.unwrap();
    let hosts = hosts(cluster, &namespace).unwrap();
    let tables = [UPSTREAM, OURS].map(|table| cases(table, &namespace).unwrap());
    let mut wrong = Vec::new();
    for (number, case) in tables.iter().flatten().enumerate() {
        let answer = answer(&hosts, case, &format!("host-{number}")).await;
        if let Err(what) = verdict(case, &answer) {
            wrong.push(format!("{}: {what}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

/// What the controller makes of each address stands in a table of its own.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_accepts_the_addresses_that_the_controller_understands() {
    let table = include_str!("../../controller/src/bmc/address/table.txt");
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("addresses").await.unwrap();
    cluster.rules_bind(&namespace).await.unwrap();
    let hosts = hosts(cluster, &namespace).unwrap();
    let mut apart = Vec::new();
    for line in table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("# "))
    {
        let (address, _) = line.split_once(" => ").unwrap();
        // Clients written in Go send it for "none".
        if address.is_empty() {
            continue;
        }
        let bmc = json!({"address": address, "credentialsName": "a"});
        let spec = json!({"bootMACAddress": "52:54:00:00:00:01", "bmc": bmc});
        let case: Case = serde_json::from_value(json!({"name": address, "host": {"spec": spec}})).unwrap();
        let accepted = match answer(&hosts, &case, "addressed").await {
            Ok(()) => true,
            Err(kube::Error::Api(refusal)) if refusal.message.contains("spec.bmc.address") => false,
            Err(other) => panic!("{address}: {other}"),
        };
        if accepted != address.parse::<Address>().is_ok() {
            apart.push(line);
        }
    }
    assert_eq!(apart, [""; 0]);
}

/// The API server takes a host that breaks every rule while the rules are lifted. Once they bind again, everything that does
/// not touch what is wrong is still accepted, and each field can be corrected alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_from_before_the_rules_can_be_labelled_and_corrected() {
    let cluster = Cluster::start().await.unwrap();
    let namespace = cluster.namespace("before").await.unwrap();
    cluster.rules_bind(&namespace).await.unwrap();
    cluster.lift_rules(&namespace).await.unwrap();
    let hosts = hosts(&cluster, &namespace).unwrap();
    let host: Host = serde_json::from_value(json!({
        "annotations": {"reboot.metal3.io": "now", "inspect.metal3.io": "disabled", "muster.dev/protected": "true"},
        "spec": {
            "bmc": {"address": "nothing://-", "credentialsName": ""}, "bootMACAddress": "x00:00:00:00:00:00",
            "firmware": {}, "userData": {"name": "a", "namespace": "b"}, "image": {"url": "no"},
            "rootDeviceHints": {"deviceName": "sda"}, "inspectionMode": "agent", "disablePowerOff": true, "online": false,
            "raid": {"softwareRAIDVolumes": [{"level": "0", "rootVolume": true}], "hardwareRAIDVolumes": [{"level": "1"}]},
            "networkInterfaces": [{}],
        },
    }))
    .unwrap();
    let name = "6f5902ac-237e-4bbb-b2d8-0f1c5d2f3a11";
    hosts
        .create(&PostParams::default(), &host.object(name))
        .await
        .unwrap();
    let by_go = "by-go";
    let host: Host = serde_json::from_value(json!({
        "spec": {
            "bmc": {"address": "ipmi://a", "credentialsName": ""}, "image": {"url": "https://a/1", "checksum": ""},
            "raid": {"hardwareRAIDVolumes": [{"level": "1", "physicalDisks": ["a"]}]},
        },
    }))
    .unwrap();
    let mut written = host.object(by_go);
    hosts.create(&PostParams::default(), &written).await.unwrap();
    cluster.install_rules().await.unwrap();
    cluster.rules_bind(&namespace).await.unwrap();

    let patch = async |change: Value| {
        hosts
            .patch(name, &PatchParams::default(), &Patch::Merge(change))
            .await
    };
    let hints = json!({"rootDeviceHints": {"deviceName": "/dev/sda"}, "raid": null});
    let erasing = patch(json!({"spec": hints})).await;
    assert!(erasing.is_err(), "its volumes are protected");
    for accepted in [
        json!({"metadata": {"labels": {"a": "b"}, "annotations": {"baremetalhost.metal3.io/paused": ""}}}),
        json!({"metadata": {"annotations": {"baremetalhost.metal3.io/detached": "", "reboot.metal3.io/a": ""}}}),
        json!({"metadata": {"finalizers": ["baremetalhost.metal3.io"]}}),
        json!({"spec": {"consumerRef": {"name": "a"}, "description": "a", "automatedCleaningMode": "disabled"}}),
        json!({"spec": {"bootMACAddress": "52:54:00:12:34:56"}}),
        json!({"spec": {"userData": null}}),
        json!({"spec": {"firmware": null}}),
        json!({"spec": {"networkInterfaces": []}}),
        json!({"spec": {"online": true}}),
        json!({"metadata": {"annotations": {"muster.dev/protected": null}}}),
        json!({"spec": hints}),
        json!({"spec": {"image": null}}),
        json!({"metadata": {"annotations": {"inspect.metal3.io": null, "reboot.metal3.io": null}}}),
    ] {
        patch(accepted.clone())
            .await
            .unwrap_or_else(|error| panic!("{accepted}: {error}"));
    }
    let status = status(&json!({"provisioning": {"state": "registering"}}));
    write_status(&hosts, name, &status, false).await.unwrap();
    patch(json!({"spec": {"bmc": {"address": "redfish://bmc.example.com"}}}))
        .await
        .unwrap();
    let again = patch(json!({"spec": {"image": {"url": "no"}}})).await;
    assert!(again.is_err(), "what was corrected is not made wrong again");

    // Clients written in Go leave out what is empty, and write null for a list that is absent.
    written.metadata.resource_version = hosts.get(by_go).await.unwrap().resource_version();
    written.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    written.data["spec"]["raid"]["softwareRAIDVolumes"] = Value::Null;
    let image = written.data["spec"]["image"].as_object_mut().unwrap();
    image.remove("checksum").unwrap();
    let dry_write = async |host: &DynamicObject| hosts.replace(by_go, &dry(), host).await;
    dry_write(&written).await.unwrap();
    // An empty list says something else.
    written.data["spec"]["raid"]["softwareRAIDVolumes"] = json!([]);
    let changed = dry_write(&written).await;
    assert!(changed.is_err_and(|error| error.to_string().contains("must name their controller")));
}

/// Nobody deletes a protected host, singly or all at once; but if its deletion had begun, whoever ends it can do all it must.
#[tokio::test(flavor = "multi_thread")]
async fn a_protected_host_stays_and_one_whose_deletion_has_begun_can_end() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("protected").await.unwrap();
    cluster.rules_bind(&namespace).await.unwrap();
    let hosts = hosts(cluster, &namespace).unwrap();
    let host: Host =
        serde_json::from_value(json!({"spec": {"image": {"url": "https://a/1", "checksum": "a"}}})).unwrap();
    let name = "host";
    hosts
        .create(&PostParams::default(), &host.object(name))
        .await
        .unwrap();
    let patch = async |change: Value| {
        hosts
            .patch(name, &PatchParams::default(), &Patch::Merge(change))
            .await
    };
    let protect = json!({"metadata": {"annotations": {"muster.dev/protected": "yes"}, "finalizers": ["baremetalhost.metal3.io"]}});
    patch(protect.clone()).await.unwrap();
    let all = hosts
        .delete_collection(&DeleteParams::default(), &ListParams::default())
        .await;
    assert!(all.is_err_and(|error| error.to_string().contains("first remove its annotation")));
    assert!(
        hosts
            .get(name)
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_none()
    );

    patch(json!({"metadata": {"annotations": {"muster.dev/protected": null}}}))
        .await
        .unwrap();
    hosts.delete(name, &DeleteParams::default()).await.unwrap();
    patch(protect).await.unwrap();
    hosts.delete(name, &DeleteParams::default()).await.unwrap();
    let status = status(&json!({"provisioning": {"state": "deleting"}}));
    write_status(&hosts, name, &status, false).await.unwrap();
    patch(json!({"spec": {"image": null}})).await.unwrap();
    patch(json!({"metadata": {"finalizers": null}})).await.unwrap();
    assert!(hosts.get_opt(name).await.unwrap().is_none());
}

/// The namespace controller deletes what is in a namespace as anybody else does.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_with_a_protected_host_stays_and_says_why() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("kept").await.unwrap();
    cluster.rules_bind(&namespace).await.unwrap();
    let hosts = hosts(cluster, &namespace).unwrap();
    let host: Host =
        serde_json::from_value(json!({"annotations": {"muster.dev/protected": "true"}})).unwrap();
    hosts
        .create(&PostParams::default(), &host.object("kept"))
        .await
        .unwrap();
    let namespaces: Api<Namespace> = Api::all(cluster.client().unwrap());
    namespaces
        .delete(&namespace, &DeleteParams::default())
        .await
        .unwrap();
    let says_why = |object: Option<&Namespace>| {
        let status = object.and_then(|namespace| namespace.status.as_ref());
        let mut conditions = status
            .and_then(|status| status.conditions.as_ref())
            .into_iter()
            .flatten();
        conditions.any(|condition| {
            let why = condition.message.as_deref().unwrap_or_default();
            condition.type_ == "NamespaceDeletionContentFailure"
                && why.contains("host kept is protected: first remove its annotation")
        })
    };
    let said = await_condition(namespaces.clone(), &namespace, says_why);
    timeout(SOON, said)
        .await
        .expect("the namespace says why it stays")
        .unwrap();
    assert!(hosts.get_opt("kept").await.unwrap().is_some());
}

/// With a kind go all its objects, protected or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_protected_kind_cannot_be_deleted() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("kinds").await.unwrap();
    cluster.rules_bind(&namespace).await.unwrap();
    let kinds: Api<CustomResourceDefinition> = Api::all(cluster.client().unwrap());
    let name = "hardwaredata.metal3.io";
    let annotate = async |value: Value| {
        let change = json!({"metadata": {"annotations": {"muster.dev/protected": value}}});
        let written = kinds
            .patch(name, &PatchParams::default(), &Patch::Merge(change))
            .await;
        written.map(drop)
    };
    let dry = DeleteParams {
        dry_run: true,
        ..DeleteParams::default()
    };
    annotate(json!("true")).await.unwrap();
    let refused = kinds.delete(name, &dry).await;
    let why = "kind hardwaredata.metal3.io is protected: first remove its annotation";
    assert!(refused.is_err_and(|error| error.to_string().contains(why)));
    annotate(Value::Null).await.unwrap();
    kinds.delete(name, &dry).await.unwrap();
}

/// A large machine's hardware in an annotation, alone or in a status: some 100 KB of JSON stay within what the API server
/// lets CEL spend.
#[tokio::test(flavor = "multi_thread")]
async fn hardware_of_a_large_machine_fits_into_an_annotation() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("large").await.unwrap();
    cluster.rules_bind(&namespace).await.unwrap();
    let mut hardware: Value = serde_json::from_str(HARDWARE).unwrap();
    let disk = hardware["storage"][0].clone();
    hardware["storage"] = Value::Array(vec![disk; 700]);
    let text = hardware.to_string();
    assert!(text.len() > 100_000, "{}", text.len());
    let host = |text: &str| -> Host {
        serde_json::from_value(json!({
            "annotations": {"inspect.metal3.io/hardwaredetails": text}, "spec": {"inspectionMode": "disabled"},
        }))
        .unwrap()
    };
    let hosts = hosts(cluster, &namespace).unwrap();
    hosts.create(&dry(), &host(&text).object("large")).await.unwrap();
    let short = hosts
        .create(&dry(), &host(&text[..text.len() - 1]).object("large"))
        .await;
    assert!(short.is_err_and(|error| error.to_string().contains("must hold a JSON object")));

    let status = |hardware: &Value| -> Host {
        let status = json!({"hardware": hardware, "operationalStatus": "OK", "errorType": ""});
        serde_json::from_value(json!({
            "annotations": {"baremetalhost.metal3.io/status": status.to_string()},
        }))
        .unwrap()
    };
    let moved = status(&hardware).object("large");
    hosts.create(&dry(), &moved).await.unwrap();
    hardware["storage"][699]["unheard"] = json!(1);
    let unknown = hosts.create(&dry(), &status(&hardware).object("large")).await;
    assert!(unknown.is_err_and(|error| error.to_string().contains("that no host's status has")));
}

fn names(schema: &Value, into: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        into.insert(name.clone());
        names(field, into);
    }
    if let Some(items) = schema.get("items") {
        names(items, into);
    }
}

/// The names that the map `name`, a variable of the policy on annotations, holds.
fn words(name: &str) -> Result<BTreeSet<String>> {
    let path = paths::deploy().join("manifests/policies/host-annotations.yaml");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(path)?)?;
    let variables = documents[0]["spec"]["variables"].as_array();
    let mut variables = variables.into_iter().flatten();
    let variable = variables.find(|variable| variable["name"] == name);
    let map = variable.and_then(|variable| variable["expression"].as_str());
    let words = map.and_then(|map| map.strip_prefix("{'")?.strip_suffix("': true}"));
    let words = words.with_context(|| format!("no variable {name} that is a map"))?;
    Ok(words.split("': true, '").map(str::to_owned).collect())
}

#[test]
fn names_of_fields_in_annotations_are_those_of_the_crd() {
    let path = paths::deploy().join("crds/metal3.io_baremetalhosts.yaml");
    let crd: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let status = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
    for (variable, schema) in [
        ("statusNames", status),
        ("hardwareNames", &status["properties"]["hardware"]),
    ] {
        let mut there = BTreeSet::new();
        names(schema, &mut there);
        assert_eq!(words(variable).unwrap(), there, "{variable}");
    }
}

/// What `kubectl apply -k deploy/manifests` applies.
#[test]
fn an_installation_has_every_policy_and_binds_it() {
    let output = Command::new(paths::kubectl().unwrap())
        .arg("kustomize")
        .arg(paths::deploy().join("manifests"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout).unwrap()).unwrap();
    let of = |kind: &str, field: &str| -> BTreeSet<String> {
        let found = documents.iter().filter(|document| document["kind"] == kind);
        found
            .map(|document| document.pointer(field).unwrap().as_str().unwrap().to_owned())
            .collect()
    };
    let policies = of("ValidatingAdmissionPolicy", "/metadata/name");
    assert_eq!(
        policies,
        of("ValidatingAdmissionPolicyBinding", "/spec/policyName")
    );
    let files = std::fs::read_dir(paths::deploy().join("manifests/policies")).unwrap();
    let files: BTreeSet<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".yaml").map(|stem| format!("muster-{stem}")))
        .filter(|name| name != "muster-kustomization")
        .collect();
    assert_eq!(policies, files);
}
