//! What goes wrong with the steps of the controller in the lab: calls to BMCs that change something, and writes to the API server.

use std::sync::atomic::{AtomicUsize, Ordering};

use kube::client::Body;
use serde_json::json;
use tokio::sync::Notify;

use super::super::*;
use crate::{fake_api::FakeApi, round::PATIENCE};

/// How long the API server is gone.
const GONE: Duration = Duration::from_secs(60);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The process dies at the step: before it is done, or after.
    Kill { done: bool },
    /// Just before the step the API server is gone, for a minute: it answers nothing, and nobody sees or says anything there.
    Gone,
    /// The API server answers a write with this code, and does nothing.
    Answer(u16),
    /// A write is done at once, and answered when nobody waits any more.
    AnsweredLate,
    /// A write arrives, and is done, when nobody waits any more.
    ArrivesLate,
}

/// With which steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// This one.
    Step(usize),
    /// Every so many.
    Every(usize),
}

/// Counts what the controller does, and lets some of it go wrong.
pub(super) struct Steps {
    api: Arc<FakeApi>,
    count: AtomicUsize,
    troubled: AtomicUsize,
    trouble: Mutex<Option<(At, Trouble)>>,
    killed: Notify,
}

impl Steps {
    pub(super) fn new(api: &Arc<FakeApi>) -> Steps {
        Steps {
            api: Arc::clone(api),
            count: AtomicUsize::default(),
            troubled: AtomicUsize::default(),
            trouble: Mutex::default(),
            killed: Notify::default(),
        }
    }

    pub(super) fn set(&self, at: At, trouble: Trouble) {
        *self.trouble.lock().unwrap() = Some((at, trouble));
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub(super) fn troubled(&self) -> usize {
        self.troubled.load(Ordering::SeqCst)
    }

    /// Ends when the process is to die.
    pub(super) async fn killed(&self) {
        self.killed.notified().await;
    }

    pub(super) fn kill(&self) {
        self.killed.notify_one();
    }

    /// Counts a step, and says what goes wrong with it.
    fn begin(&self) -> Option<Trouble> {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let set = *self.trouble.lock().unwrap();
        let (_, trouble) = set.filter(|(at, _)| match at {
            At::Step(at) => *at == number,
            At::Every(many) => (number + 1).is_multiple_of(*many),
        })?;
        if trouble == Trouble::Gone {
            let api = Arc::clone(&self.api);
            api.set_down(true);
            api.set_lagging(true);
            tokio::spawn(async move {
                tokio::time::sleep(GONE).await;
                api.set_down(false);
                api.set_lagging(false);
            });
        }
        Some(trouble)
    }

    async fn die<T>(&self, done: bool, act: impl Future<Output = T>) -> T {
        if done {
            act.await;
        }
        self.kill();
        std::future::pending().await
    }

    /// A step that is no write: never answered if the process dies at it.
    pub(super) async fn step<T>(&self, act: impl Future<Output = T>) -> T {
        match self.begin() {
            Some(Trouble::Kill { done }) => self.die(done, act).await,
            _ => act.await,
        }
    }

    /// A write through `client`.
    pub(super) async fn write(
        &self,
        client: Client,
        request: hyper::Request<Body>,
    ) -> kube::Result<hyper::Response<Body>> {
        let Some(trouble) = self.begin() else {
            return client.send(request).await;
        };
        self.troubled.fetch_add(1, Ordering::SeqCst);
        match trouble {
            Trouble::Kill { done } => self.die(done, client.send(request)).await,
            Trouble::Gone => client.send(request).await,
            Trouble::Answer(code) => {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {},
                    "status": "Failure", "code": code, "reason": "Trouble", "message": "trouble",
                });
                let answer = hyper::Response::builder().status(code);
                Ok(answer
                    .body(Body::from(serde_json::to_vec(&status).unwrap()))
                    .unwrap())
            }
            Trouble::AnsweredLate => {
                let answer = client.send(request).await;
                tokio::time::sleep(2 * PATIENCE).await;
                answer
            }
            Trouble::ArrivesLate => {
                // It is on its way, whether or not anybody waits.
                let arrives = tokio::spawn(async move {
                    tokio::time::sleep(PATIENCE + Duration::from_secs(5)).await;
                    client.send(request).await
                });
                arrives.await.unwrap()
            }
        }
    }
}
