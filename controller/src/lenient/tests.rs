//! The copies of a cluster in which objects stand that cannot be read.

use std::{collections::HashMap, io, time::Duration};

use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame},
};
use kube::{Client, client::Body, runtime::reflector::ObjectRef};
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};

use super::*;
use crate::{
    boot::{lookup::Known, policy::Verdict},
    host::{Owner, owner},
    world::{Scope, World},
};

/// An API server that knows lists and watches.
struct Cluster {
    /// By plural.
    objects: Mutex<HashMap<String, Vec<Value>>>,
    /// Plural and line.
    changes: broadcast::Sender<(String, String)>,
}

impl Cluster {
    fn new(objects: impl IntoIterator<Item = (&'static str, Vec<Value>)>) -> Arc<Cluster> {
        let objects = objects.into_iter().map(|(plural, all)| (plural.to_owned(), all));
        Arc::new(Cluster {
            objects: Mutex::new(objects.collect()),
            changes: broadcast::channel(1024).0,
        })
    }

    fn client(self: &Arc<Self>) -> Client {
        let cluster = Arc::clone(self);
        let serve = move |request: Request<Body>| {
            let cluster = Arc::clone(&cluster);
            async move { Ok::<_, io::Error>(cluster.answer(&request)) }
        };
        Client::new(tower::service_fn(serve), "default")
    }

    fn answer(&self, request: &Request<Body>) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
        let plural = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let watches = request
            .uri()
            .query()
            .is_some_and(|query| query.contains("watch=true"));
        let body = if watches {
            let lines = stream::unfold(self.changes.subscribe(), move |mut changes| {
                let plural = plural.clone();
                async move {
                    loop {
                        match changes.recv().await {
                            Ok((of, line)) if of == plural => {
                                return Some((Ok(Frame::data(Bytes::from(line))), changes));
                            }
                            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                            Err(broadcast::error::RecvError::Closed) => return None,
                        }
                    }
                }
            });
            StreamBody::new(lines).boxed_unsync()
        } else {
            let objects = self.objects.lock().unwrap();
            let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
                "items": objects.get(&plural).cloned().unwrap_or_default()});
            let list = Full::new(Bytes::from(list.to_string()));
            list.map_err(|never| match never {}).boxed_unsync()
        };
        Response::new(body)
    }

    /// From now on the first object of this kind is `object`; told again and again, since a watch may only just begin.
    fn put(&self, plural: &str, object: &Value) {
        self.objects
            .lock()
            .unwrap()
            .insert(plural.to_owned(), vec![object.clone()]);
        self.tell("MODIFIED", plural, object);
    }

    fn tell(&self, what: &str, plural: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": what, "object": object}));
        let _ = self.changes.send((plural.to_owned(), line));
    }

    /// The copies, complete and kept up to date.
    async fn world(self: &Arc<Self>) -> World {
        let scope = Scope {
            namespace: "muster-system".to_owned(),
            hosts: None,
            control: true,
        };
        let (world, driver) = World::start(&self.client(), &scope);
        tokio::spawn(driver.run());
        let ready = tokio::time::timeout(Duration::from_secs(60), world.ready()).await;
        assert!(ready.expect("complete in time"));
        world
    }
}

async fn until(what: &str, mut test: impl FnMut() -> bool) {
    let waits = async {
        while !test() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waits).await;
    waited.unwrap_or_else(|_| panic!("never {what}"));
}

fn host(number: u32, boot_mode: &str) -> Value {
    json!({
        "apiVersion": "metal3.io/v1alpha1", "kind": "BareMetalHost",
        "metadata": {"name": format!("h{number}"), "namespace": "metal", "uid": format!("u{number}"), "resourceVersion": "1"},
        "spec": {"online": true, "bootMACAddress": format!("00:00:5e:00:53:0{number}"), "bootMode": boot_mode,
            "bmc": {"address": format!("redfish://192.0.2.{number}"), "credentialsName": "bmc"}},
        "status": {"errorMessage": "", "operationalStatus": "OK", "poweredOn": true,
            "provisioning": {"ID": "", "state": "available"}},
    })
}

fn segment(name: &str, unknown: &str) -> Value {
    json!({"apiVersion": "muster.dev/v1alpha1", "kind": "Segment",
        "metadata": {"name": name, "namespace": "muster-system", "resourceVersion": "1"},
        "spec": {"subnet": "192.0.2.0/24", "unknown": unknown}})
}

fn see(world: &World, number: u32) -> Option<Arc<BareMetalHost>> {
    world
        .hosts
        .get(&ObjectRef::new(&format!("h{number}")).within("metal"))
}

#[tokio::test]
async fn a_host_with_a_word_of_a_newer_version_hides_no_other_and_is_left_alone_and_told_of() {
    let hosts = vec![host(1, "UEFI"), host(2, "Quantum"), host(3, "legacy")];
    let cluster = Cluster::new([("baremetalhosts", hosts)]);
    let world = cluster.world().await;
    let owners = [1, 2, 3].map(|number| owner(&see(&world, number).unwrap()));
    assert_eq!(owners, [Owner::Operator, Owner::Nobody, Owner::Operator]);
    let lab: muster_proto::kinds::Segment = serde_json::from_value(segment("lab", "hold")).unwrap();
    let verdict = Known::of(&world, "00:00:5e:00:53:02".parse().unwrap(), None).verdict(&lab);
    assert!(
        matches!(verdict, Verdict::Disk(_)),
        "its machine is let through: {verdict:?}"
    );

    let (queue, mut told) = mpsc::channel(16);
    tokio::spawn(tell(Arc::clone(&world.unreadable), Events::new(queue)));
    let happened = tokio::time::timeout(Duration::from_secs(60), told.recv()).await;
    let event = happened.unwrap().unwrap().event;
    assert!(
        event.warning && event.about.name.as_deref() == Some("h2"),
        "{event:?}"
    );
    assert!(
        event
            .message
            .starts_with("spec.bootMode: unknown variant `Quantum`"),
        "{event:?}"
    );
    let mut registry = Registry::default();
    register(&mut registry, Arc::clone(&world.unreadable));
    let mut metrics = String::new();
    prometheus_client::encoding::text::encode(&mut metrics, &registry).unwrap();
    let line = r#"muster_unreadable_objects{kind="BareMetalHost"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    assert!(told.try_recv().is_err(), "told once");
}

#[tokio::test]
async fn a_host_that_becomes_unreadable_is_left_alone_until_it_can_be_read_again() {
    let cluster = Cluster::new([("baremetalhosts", vec![host(1, "UEFI")])]);
    let world = cluster.world().await;
    let is = |expected: Owner| owner(&see(&world, 1).unwrap()) == expected;
    assert!(is(Owner::Operator) && world.unreadable.all().is_empty());
    for (mode, expected) in [
        ("Quantum", Owner::Nobody),
        ("UEFI", Owner::Operator),
        ("Quantum", Owner::Nobody),
    ] {
        until(mode, || {
            cluster.put("baremetalhosts", &host(1, mode));
            is(expected)
        })
        .await;
        assert_eq!(world.unreadable.all().is_empty(), expected == Owner::Operator);
    }
}

#[tokio::test]
async fn what_is_wrong_with_one_object_of_ours_is_no_other_s_matter() {
    let server = |name: &str, state: &str| {
        json!({"apiVersion": "muster.dev/v1alpha1", "kind": "Server",
            "metadata": {"name": name, "namespace": "muster-system", "resourceVersion": "1"}, "spec": {},
            "status": {"identity": {"macs": ["00:00:5e:00:53:09"]},
                "session": {"state": state, "since": "2026-01-01T00:00:00Z", "segment": "lab", "trust": "segment", "key": "k"}}})
    };
    let hardware = |name: &str, cpu: Value| {
        json!({"apiVersion": "metal3.io/v1alpha1", "kind": "HardwareData",
            "metadata": {"name": name, "namespace": "metal", "resourceVersion": "1"}, "spec": {"hardware": {"cpu": cpu}}})
    };
    let cluster = Cluster::new([
        (
            "segments",
            vec![segment("new", "levitate"), segment("old", "hold")],
        ),
        (
            "servers",
            vec![server("new", "Dreaming"), server("old", "Connected")],
        ),
        (
            "hardwaredata",
            vec![hardware("new", json!("fast")), hardware("old", json!({}))],
        ),
    ]);
    let world = cluster.world().await;
    let names: Vec<String> = world
        .segments
        .state()
        .iter()
        .filter_map(|one| one.metadata.name.clone())
        .collect();
    assert_eq!(
        names,
        ["old"],
        "nobody is served by rules that are only half known"
    );
    let marked = |name: &str| {
        let server = world
            .servers
            .get(&ObjectRef::new(name).within("muster-system"))
            .unwrap();
        let annotations = server.metadata.annotations.clone().unwrap_or_default();
        annotations.contains_key(UNREADABLE_ANNOTATION)
    };
    assert!(marked("new") && !marked("old"));
    assert_eq!(world.hardware.state().len(), 2);
    let wrong: Vec<String> = world
        .unreadable
        .all()
        .into_iter()
        .map(|(_, wrong)| wrong)
        .collect();
    let parts = ["spec.hardware.cpu: ", "spec.unknown: ", "status.session.state: "];
    assert!(
        wrong.len() == 3
            && wrong
                .iter()
                .zip(parts)
                .all(|(wrong, part)| wrong.starts_with(part)),
        "{wrong:?}"
    );
}

/// Nobody would tell of it once more before the next list, which may be days away.
#[tokio::test]
async fn an_object_of_which_nothing_could_be_read_any_more_is_gone_once_it_is_deleted() {
    let cluster = Cluster::new([("baremetalhosts", vec![host(1, "UEFI"), host(2, "Quantum")])]);
    let world = cluster.world().await;
    let mut spoilt = host(1, "UEFI");
    spoilt["spec"]["online"] = json!({"by": "schedule"});
    let unreadable = || world.unreadable.all().len();
    until("unreadable", || {
        cluster.tell("MODIFIED", "baremetalhosts", &spoilt);
        unreadable() == 2
    })
    .await;
    assert!(see(&world, 1).is_some(), "it is there");
    until("gone", || {
        cluster.tell("DELETED", "baremetalhosts", &spoilt);
        see(&world, 1).is_none()
    })
    .await;
    assert_eq!(unreadable(), 1);
    assert!(see(&world, 2).is_some());
}
