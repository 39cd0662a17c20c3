//! Rounds against an API server in memory.

use std::time::Duration;

use muster_proto::{
    inventory::Inventory,
    kinds::{BareMetalHost, Segment, SegmentSpec, ServerSpec, ServerStatus, Session, UnknownPolicy},
};
use tokio::sync::mpsc;

use super::*;
use crate::{
    events::Happened,
    fake_api::{FakeApi, Fault},
};

/// A machine that has sent its inventory, on a Segment whose hosts are to live in `metal`.
struct Lab {
    api: Arc<FakeApi>,
    context: Arc<Context>,
    events: mpsc::Receiver<Happened>,
}

impl Lab {
    fn new(watched: Option<&str>) -> Lab {
        let api = FakeApi::new();
        let spec = SegmentSpec {
            subnet: "10.77.0.0/24".to_owned(),
            host_namespace: Some("metal".to_owned()),
            unknown: UnknownPolicy::Hold,
            ..SegmentSpec::default()
        };
        let mut segment = Segment::new("lab", spec);
        segment.metadata.namespace = Some("muster-system".to_owned());
        api.put("segments", &segment);
        let mut server = Server::new("a", ServerSpec::default());
        server.status = Some(ServerStatus {
            session: Some(Session {
                segment: "muster-system/lab".to_owned(),
                ..Session::default()
            }),
            inventory: Some(Inventory::default().into()),
            ..ServerStatus::default()
        });
        api.put("servers", &server);
        let (queue, events) = mpsc::channel(100);
        let told = Events::new(queue);
        let context = Context {
            world: api.world(),
            index: Index::default(),
            executor: Executor::new(api.client(), told.clone()),
            events: told,
            metrics: Metrics::default(),
            namespace: "muster-system".to_owned(),
            watched: watched.map(str::to_owned),
            memory: Memory::default(),
        };
        Lab {
            api,
            context: Arc::new(context),
            events,
        }
    }

    async fn round(&self) -> Result<Action, ExecuteError> {
        all(&self.context);
        let server = self.context.world.servers.state().remove(0);
        round(server, self.context.clone()).await
    }

    /// What was told since the last call: kind, name and reason.
    fn told(&mut self) -> Vec<(String, String, &'static str)> {
        let events = std::iter::from_fn(|| self.events.try_recv().ok());
        events
            .map(|happened| happened.event)
            .map(|event| (event.about.kind.unwrap(), event.about.name.unwrap(), event.reason))
            .collect()
    }

    fn hosts(&self) -> usize {
        self.api.all::<BareMetalHost>("baremetalhosts").len()
    }
}

/// Faults of so many rounds that read the Server and then get this for the host that they make.
fn refused(code: u16, rounds: usize) -> impl Iterator<Item = Option<Fault>> {
    [None, Some(Fault::Code(code))]
        .into_iter()
        .cycle()
        .take(2 * rounds)
}

#[tokio::test(start_paused = true)]
async fn a_change_that_nobody_told_of_is_found() {
    let lab = Lab::new(None);
    let mut server: Server = lab.api.get("servers", "a").unwrap();
    let inventory = server.status.as_mut().unwrap().inventory.take();
    lab.api.put("servers", &server);
    let rounds = tokio::spawn(rounds(Arc::clone(&lab.context), lab.api.changes()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.hosts(), 0);
    lab.api.set_silent(true);
    server.status.as_mut().unwrap().inventory = inventory;
    lab.api.put("servers", &server);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(lab.hosts(), 1);
    rounds.abort();
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_namespace_does_not_exist_is_told_once_and_made_when_it_does() {
    let mut lab = Lab::new(None);
    // Another replica was faster, as far as this one knows: nobody's business.
    lab.api.fail_next(refused(409, 1));
    let behind = lab.round().await.unwrap_err();
    assert!(matches!(behind, ExecuteError::Behind { .. }), "{behind:?}");
    assert_eq!((lab.told(), lab.context.metrics.failures.get()), (vec![], 0));
    lab.api.fail_next(refused(404, 3));
    for _ in 0..3 {
        let refused = lab.round().await.unwrap_err();
        assert!(refused.is_refusal(), "{refused:?}");
        // Longer than a repeated warning is held back.
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    assert_eq!(
        lab.told(),
        [("Server".to_owned(), "a".to_owned(), "DiscoveryFailed")]
    );
    assert_eq!((lab.hosts(), lab.context.metrics.failures.get()), (0, 3));
    lab.round().await.unwrap();
    assert_eq!((lab.hosts(), lab.told()), (1, vec![]));
}

#[tokio::test(start_paused = true)]
async fn of_a_server_that_goes_in_the_middle_of_its_round_nothing_is_remembered() {
    let lab = Lab::new(None);
    lab.api.fail_next(refused(404, 2));
    for _ in 0..2 {
        lab.round().await.unwrap_err();
    }
    assert_eq!(lab.context.memory.failures("a"), 2);
    let server = lab.context.world.servers.state().remove(0);
    lab.api.delete("servers", "a");
    round(server, Arc::clone(&lab.context)).await.unwrap_err();
    assert_eq!(lab.context.memory.failures("a"), 1, "as of one that never failed");
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_not_watched_gets_no_host_and_is_told_once() {
    let mut lab = Lab::new(Some("elsewhere"));
    for _ in 0..3 {
        lab.round().await.unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    let told = ["Server", "Segment"].into_iter().zip(["a", "lab"]);
    let told: Vec<_> = told
        .map(|(kind, name)| (kind.to_owned(), name.to_owned(), "NamespaceNotWatched"))
        .collect();
    assert_eq!((lab.hosts(), lab.told()), (0, told));
}

#[test]
fn who_is_told_that_no_host_can_be_made_is_told_why_and_what_helps() {
    let server = Server::new("a", ServerSpec::default());
    let told = |step: &'static str, answer: serde_json::Value| {
        let status: kube::core::Status = serde_json::from_value(answer).unwrap();
        let error = crate::round::failed(step, "metal/h")(kube::Error::Api(status.boxed()));
        crate::discovery::notices::refused(&server, &error).message
    };
    let missing = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404, "reason": "NotFound",
        "message": "namespaces \"metal\" not found", "details": {"name": "metal", "kind": "namespaces"},
    });
    let message = told("create host", missing.clone());
    for part in [
        "no host is created: create host metal/h: ",
        "namespaces \"metal\" not found",
        "next: create that namespace, or set spec.hostNamespace",
        "it is retried until it succeeds",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let by_policy = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 403, "reason": "Forbidden",
        "message": "denied by the policy no-hosts-here",
    });
    let message = told("create host", by_policy);
    assert!(message.starts_with("no host is created: "), "{message}");
    assert!(
        message.contains("denied by the policy no-hosts-here"),
        "{message}"
    );
    assert!(!message.contains("namespace, or"), "{message}");
    assert!(!told("mark host", missing).contains("no host is created"));
}
