//! Carries out a plan: the status, then metadata, then the effects in their order. Every effect is idempotent under its operation id;
//! the first that fails ends the round, and the next round plans anew.
//!
//! A call to a BMC may take long. So it, and what comes after it, runs beside the rounds; what it came to is remembered, and the host
//! is looked at again. Of one host only one call is under way.

use std::sync::Arc;

use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, Patch},
};
use muster_proto::{
    Chain,
    job::{Clean, Write},
    kinds::{
        BareMetalHost, BareMetalHostStatus, HardwareData, HardwareDataSpec, HardwareDetails, Job, JobAction,
        Packed, Server, ServerSpec, Then, Wake,
    },
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    bmcs::{self, Bmcs, Clock, Over},
    drive,
    memory::Memory,
    observe::Snapshot,
    plan::{
        BmcCall, Effect, FINALIZER, HARDWARE_FINALIZER, LEFTOVERS, Metadata, NewJob, Task, WRITE_HARDWARE,
        WriteTask,
    },
    vault::Vault,
};
use crate::{
    hosts,
    lease::Leadership,
    manager::CONTROL,
    patch::{difference, difference_but, finalizers_without},
    path::Path,
    round::{ExecuteError, failed},
    written::is_fresh,
};

/// Proof that the API server has a host as it is known, if nothing was asked of it since: its answer to a write.
#[derive(Clone, Debug)]
pub struct Fresh {
    /// The resource version that it answered with.
    pub version: Option<String>,
    /// When the write was sent.
    pub asked: Instant,
    /// When it was answered.
    pub answered: Instant,
}

impl Fresh {
    fn proves(&self, host: &BareMetalHost) -> bool {
        self.version == host.metadata.resource_version && is_fresh(self.asked, self.answered)
    }
}

/// What failed if a job is not placed.
const PLACE: &str = "place job on Server";

/// Carries out plans for one term of a leader.
#[derive(Clone)]
pub struct Executor {
    /// The API server; its writes end with the term.
    pub client: Client,
    /// The BMCs.
    pub bmcs: Arc<dyn Bmcs>,
    /// The Secrets.
    pub vault: Arc<Vault>,
    /// What is remembered.
    pub memory: Arc<Memory>,
    /// The term.
    pub term: Leadership,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Executor of epoch {}", self.term.epoch())
    }
}

impl Executor {
    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Writes the status, if `host` is still as it was seen: one request. Returns the host as it is then.
    pub async fn write_status(
        &self,
        host: &BareMetalHost,
        status: &BareMetalHostStatus,
    ) -> Result<Arc<BareMetalHost>, ExecuteError> {
        let Some(change) = status_change(host.status.clone(), status.clone()) else {
            return Ok(Arc::new(host.clone()));
        };
        let path = Path::of(host);
        let patch = json!({"metadata": precondition(host), "status": change});
        let written = self
            .api::<BareMetalHost>(&path.namespace)
            .patch_status(&path.name, &CONTROL.merge(), &Patch::Merge(&patch))
            .await
            .map_err(failed("write status of host", &path.to_string()))?;
        let written = Arc::new(written);
        self.memory.wrote_host(Arc::clone(&written));
        // What a host waits for, since when, and what failed is read back from there: without it no wait would end.
        let kept = written
            .status
            .as_ref()
            .is_some_and(|kept| !kept.conditions.is_empty());
        // One that is only let go of needs none.
        let goes = super::State::parse(&status.provisioning.state) == super::State::Deleting;
        if !kept && !goes && !status.conditions.is_empty() {
            return Err(ExecuteError::Dropped {
                kind: "baremetalhosts.metal3.io",
                field: "status.conditions",
                subject: path.to_string(),
            });
        }
        Ok(written)
    }

    /// Writes what changes beside the status, if `host` is still as it was seen: an annotation that somebody gave another value in the
    /// meantime is another wish.
    pub async fn write_metadata(
        &self,
        host: &BareMetalHost,
        metadata: &Metadata,
    ) -> Result<Arc<BareMetalHost>, ExecuteError> {
        let path = Path::of(host);
        let mut patch = json!({"metadata": precondition(host)});
        if let Some(on) = metadata.finalizer {
            let mut all = finalizers_without(host.finalizers(), &[FINALIZER]);
            all.extend(on.then_some(FINALIZER));
            patch["metadata"]["finalizers"] = json!(all);
        }
        for name in &metadata.remove_annotations {
            patch["metadata"]["annotations"][name] = Value::Null;
        }
        if let Some(architecture) = &metadata.architecture {
            patch["spec"] = json!({"architecture": architecture});
        }
        let written = self
            .api::<BareMetalHost>(&path.namespace)
            .patch(&path.name, &CONTROL.merge(), &Patch::Merge(&patch))
            .await
            .map_err(failed("write metadata of host", &path.to_string()))?;
        let written = Arc::new(written);
        let leaves = written.metadata.deletion_timestamp.is_some();
        if !leaves || written.metadata.finalizers.iter().flatten().next().is_some() {
            self.memory.wrote_host(Arc::clone(&written));
        }
        Ok(written)
    }

    /// Makes sure that `host` is how the API server has it: a watch lags, and what a person forbade a moment ago must count. One
    /// request, unless its answer to a write has said so just now.
    async fn confirm(&self, host: &BareMetalHost, fresh: Option<Fresh>) -> Result<(), ExecuteError> {
        if fresh.is_some_and(|fresh| fresh.proves(host)) {
            return Ok(());
        }
        let (step, path) = ("read host", Path::of(host));
        let seen = &host.metadata.resource_version;
        let stored = self
            .api::<BareMetalHost>(&path.namespace)
            .get(&path.name)
            .await
            .map_err(failed(step, &path.to_string()))?;
        if stored.metadata.uid == host.metadata.uid && stored.metadata.resource_version == *seen {
            return Ok(());
        }
        self.memory.wrote_host(Arc::new(stored));
        Err(ExecuteError::Behind {
            step,
            subject: path.to_string(),
        })
    }

    /// Carries out one effect. `snapshot` is what the plan was made for, `host` how the host is after the plan's own writes, and `fresh`
    /// what proves that the API server has it so.
    pub async fn act(
        &self,
        host: &BareMetalHost,
        snapshot: &Snapshot,
        fresh: Option<Fresh>,
        effect: Effect,
    ) -> Result<(), ExecuteError> {
        match effect {
            Effect::PlaceJob(job) => self.place_job(host, snapshot, fresh, &job).await,
            Effect::RemoveJob { id } => self.remove_job(host, snapshot, &id).await,
            Effect::WriteHardware(hardware) => self.write_hardware(host, snapshot, *hardware).await,
            Effect::ReleaseHardware => self.release_hardware(host, snapshot).await,
            Effect::ReleaseLeftovers => self.release_leftovers(host).await,
            Effect::HoldSecret { name, hold } => self.vault.hold(host, &name, hold).await,
            Effect::ReleaseSecret { name, disown } => self.vault.release(host, &name, disown).await,
            Effect::Wake(wish) => self.ask_to_wake(host, snapshot, *wish).await,
            Effect::Bmc(call) => self.call(host, &call).await,
        }
    }

    /// Asks the BMC, and remembers the answer. A failure there ends the round as any other; nothing is tried again because of it but
    /// by the next plan.
    pub(super) async fn call(&self, host: &BareMetalHost, call: &BmcCall) -> Result<(), ExecuteError> {
        let step = call.name();
        let behind = || ExecuteError::Behind {
            step,
            subject: Path::of(host).to_string(),
        };
        if !self.term.still() {
            return Err(behind());
        }
        if matches!(call, BmcCall::Power { .. }) {
            self.memory.set_bmc(host, |bmc, _| bmc.power = None);
        }
        let news = bmcs::call(self, host, call).await.map_err(|Over| behind())?;
        let is_failure = news.is_failure();
        self.memory.set_bmc(host, |bmc, tried| news.remember(bmc, tried));
        if is_failure { Err(behind()) } else { Ok(()) }
    }

    async fn place_job(
        &self,
        host: &BareMetalHost,
        snapshot: &Snapshot,
        fresh: Option<Fresh>,
        new: &NewJob,
    ) -> Result<(), ExecuteError> {
        let behind = || ExecuteError::Behind {
            step: PLACE,
            subject: new.server.clone(),
        };
        let server = snapshot.seen.server.as_ref().ok_or_else(behind)?;
        let seen = server.metadata.name.as_ref() == Some(&new.server)
            && server.metadata.resource_version.as_ref() == Some(&new.version);
        if !seen {
            return Err(behind());
        }
        let mut job = Job {
            id: new.id.clone(),
            epoch: new.epoch,
            leave: new.leave.clone(),
            ..Job::default()
        };
        match &new.task {
            Task::Inspect => job.action = JobAction::Inspect,
            Task::Reboot => job.action = JobAction::Reboot,
            Task::PowerOff => job.action = JobAction::PowerOff,
            Task::Clean(permit) => {
                job.action = JobAction::Clean;
                job.clean = Some(Packed::new(&Clean {
                    machine: permit.machine().clone(),
                    disks: permit.disks().to_vec(),
                }));
                if let Some(next) = &new.then {
                    job.then = Some(Then {
                        id: next.id.clone(),
                        session: next.session.clone(),
                        write: self
                            .write(host, server, (&next.id, new.epoch), &next.task)
                            .await?,
                    });
                }
            }
            Task::Write(task) => {
                job.action = JobAction::Write;
                job.write = Some(self.write(host, server, (&new.id, new.epoch), task).await?);
            }
        }
        if new.destroys() {
            // Secrets were asked for in the meantime.
            self.confirm(host, fresh.filter(|_| !new.reads_secrets())).await?;
        }
        self.set_job(PLACE, host, server, Some(job)).await
    }

    /// What the job `operation`, an id and a term, writes.
    async fn write(
        &self,
        host: &BareMetalHost,
        server: &Server,
        operation: (&str, i64),
        task: &WriteTask,
    ) -> Result<Box<Write>, ExecuteError> {
        let behind = || ExecuteError::Behind {
            step: PLACE,
            subject: server.metadata.name.clone().unwrap_or_default(),
        };
        // The guard permits exactly one disk for a write.
        let [disk] = task.permit.disks() else {
            return Err(behind());
        };
        let config_drive = match &task.drive {
            None => None,
            Some(contents) => {
                let namespace = host.metadata.namespace.as_deref().unwrap_or_default();
                let sealed = drive::sealed(&self.vault, namespace, contents, operation, server).await;
                Some(sealed.map_err(|error| {
                    tracing::warn!(error = %Chain(&error), "not placing the job");
                    behind()
                })?)
            }
        };
        Ok(Box::new(Write {
            machine: task.permit.machine().clone(),
            disk: disk.clone(),
            image: task.image.clone(),
            config_drive,
            config_drive_optional: task.drive.as_ref().is_some_and(|drive| !drive.reads_secrets()),
        }))
    }

    async fn remove_job(
        &self,
        host: &BareMetalHost,
        snapshot: &Snapshot,
        id: &str,
    ) -> Result<(), ExecuteError> {
        match snapshot.seen.server.as_ref() {
            Some(server) if server.spec.job.as_ref().is_some_and(|job| job.id == id) => {
                self.set_job("remove job from Server", host, server, None).await
            }
            _ => Ok(()),
        }
    }

    async fn set_job(
        &self,
        step: &'static str,
        host: &BareMetalHost,
        server: &Server,
        job: Option<Job>,
    ) -> Result<(), ExecuteError> {
        let spec = ServerSpec {
            job: job.map(Box::new),
            ..server.spec.clone()
        };
        self.write_spec(step, host, server, &spec).await?;
        Ok(())
    }

    async fn ask_to_wake(
        &self,
        host: &BareMetalHost,
        snapshot: &Snapshot,
        wish: Wake,
    ) -> Result<(), ExecuteError> {
        let step = "request Wake-on-LAN on Server";
        let server = snapshot
            .seen
            .server
            .as_ref()
            .ok_or_else(|| ExecuteError::Behind {
                step,
                subject: Path::of(host).to_string(),
            })?;
        let spec = ServerSpec {
            wake: Some(Box::new(wish)),
            ..server.spec.clone()
        };
        match self.write_spec(step, host, server, &spec).await? {
            Some(written) if written.spec.wake.is_none() => Err(ExecuteError::Dropped {
                kind: "servers.muster.dev",
                field: "spec.wake",
                subject: Path::of(host).to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Writes what `spec` changes, if `server` is still as it was seen; how it is then, if something had to be written.
    async fn write_spec(
        &self,
        step: &'static str,
        host: &BareMetalHost,
        server: &Server,
        spec: &ServerSpec,
    ) -> Result<Option<Arc<Server>>, ExecuteError> {
        let path = Path::of(server);
        // The difference, for a merge patch would leave parts of what was there before in what is new.
        let Some(change) = difference(&json!(server.spec), &json!(spec)) else {
            return Ok(None);
        };
        let patch = json!({"metadata": precondition(server), "spec": change});
        let written = self
            .api::<Server>(&path.namespace)
            .patch(&path.name, &CONTROL.merge(), &Patch::Merge(&patch))
            .await
            .map_err(failed(step, &path.to_string()))?;
        let written = Arc::new(written);
        self.memory.wrote_server(host, Arc::clone(&written));
        Ok(Some(written))
    }

    async fn write_hardware(
        &self,
        host: &BareMetalHost,
        snapshot: &Snapshot,
        hardware: HardwareDetails,
    ) -> Result<(), ExecuteError> {
        let step = WRITE_HARDWARE;
        let path = Path::of(host);
        let api = self.api::<HardwareData>(&path.namespace);
        let owner = host.controller_owner_ref(&());
        let written = match snapshot.seen.hardware.as_ref() {
            None => {
                let spec = HardwareDataSpec {
                    hardware: Some(hardware.into()),
                };
                let mut data = HardwareData::new(&path.name, spec);
                data.metadata.namespace = Some(path.namespace.clone());
                data.metadata.owner_references = owner.map(|owner| vec![owner]);
                api.create(&CONTROL.create(), &data).await
            }
            Some(data) => {
                let change = difference(
                    &json!({"hardware": data.spec.hardware}),
                    &json!({"hardware": hardware}),
                );
                let mut patch =
                    json!({"metadata": precondition(data.as_ref()), "spec": change.unwrap_or(json!({}))});
                let owners = data.metadata.owner_references.as_ref();
                if let Some(owner) = owner
                    && !hosts::is_among(host, owners)
                {
                    // A host that was made anew; and there can be only one controller.
                    let others = owners.into_iter().flatten();
                    let others = others.filter(|other| other.controller != Some(true)).cloned();
                    patch["metadata"]["ownerReferences"] = json!(others.chain([owner]).collect::<Vec<_>>());
                }
                api.patch(&path.name, &CONTROL.merge(), &Patch::Merge(&patch))
                    .await
            }
        };
        let written = written.map_err(failed(step, &path.to_string()))?;
        self.memory.wrote_hardware(host, written);
        Ok(())
    }

    async fn release_hardware(&self, host: &BareMetalHost, snapshot: &Snapshot) -> Result<(), ExecuteError> {
        let Some(data) = snapshot.seen.hardware.as_ref() else {
            return Ok(());
        };
        let path = Path::of(host);
        let mut metadata = precondition(data.as_ref());
        metadata["finalizers"] = json!(finalizers_without(data.finalizers(), &[HARDWARE_FINALIZER]));
        let patch = json!({"metadata": metadata});
        let released = self
            .api::<HardwareData>(&path.namespace)
            .patch(&path.name, &CONTROL.merge(), &Patch::Merge(&patch))
            .await
            .map_err(failed("release HardwareData", &path.to_string()))?;
        self.memory.wrote_hardware(host, released);
        Ok(())
    }

    async fn release_leftovers(&self, host: &BareMetalHost) -> Result<(), ExecuteError> {
        let path = Path::of(host);
        for (kind, plural, finalizers) in LEFTOVERS {
            let group = BareMetalHost::group(&()).into_owned();
            let version = BareMetalHost::version(&()).into_owned();
            let resource = ApiResource {
                api_version: format!("{group}/{version}"),
                group,
                version,
                kind: kind.to_owned(),
                plural: plural.to_owned(),
            };
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &path.namespace, &resource);
            let object = match api.get(&path.name).await {
                Ok(object) => object,
                // Upstream's kind need not be installed, and the rights to it are not worth a host that does not go.
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                    tracing::debug!(%kind, why = %status.message, "nothing to release");
                    continue;
                }
                Err(error) => {
                    return Err(failed("read leftovers of another operator", &path.to_string())(
                        error,
                    ));
                }
            };
            let kept = finalizers_without(object.finalizers(), finalizers);
            let ours = hosts::is_among(host, object.metadata.owner_references.as_ref());
            if !ours || kept.len() == object.finalizers().len() {
                continue;
            }
            let mut metadata =
                json!({"uid": object.metadata.uid, "resourceVersion": object.metadata.resource_version});
            metadata["finalizers"] = json!(kept);
            let patch = json!({"metadata": metadata});
            match api
                .patch(&path.name, &CONTROL.merge(), &Patch::Merge(&patch))
                .await
            {
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                    tracing::warn!(%kind, why = %status.message, "cannot remove its finalizers; leaving them");
                }
                patched => {
                    patched.map_err(failed("release leftovers of another operator", &path.to_string()))?;
                }
            }
        }
        self.memory.released(host);
        Ok(())
    }
}

/// The merge patch that makes `after` of `before`; none if they are equal.
fn status_change(before: Option<BareMetalHostStatus>, after: BareMetalHostStatus) -> Option<Value> {
    match before {
        Some(before) => difference_but(before, after, |status| &mut status.hardware),
        None => Some(json!(after)),
    }
}

/// What makes the API server refuse a patch of an object that is not as it was seen.
fn precondition<K: Resource>(object: &K) -> Value {
    json!({"uid": object.meta().uid, "resourceVersion": object.meta().resource_version})
}

#[cfg(test)]
mod tests {
    use muster_proto::kinds::HardwareDetails;

    use super::*;
    use crate::patch::merge;

    #[test]
    fn whatever_changes_in_a_status_is_in_the_patch() {
        let hardware = |name: &str| HardwareDetails {
            hostname: Some(name.to_owned()),
            ..HardwareDetails::default()
        };
        let all = [None, Some("a"), Some("b")].map(|name| {
            ["", "said"].map(|said| BareMetalHostStatus {
                hardware: name.map(|name| hardware(name).into()),
                error_message: said.to_owned(),
                ..BareMetalHostStatus::default()
            })
        });
        let all: Vec<_> = all.into_iter().flatten().collect();
        for before in all.iter().cloned().map(Some).chain([None]) {
            for after in &all {
                let mut written = json!(before);
                match status_change(before.clone(), after.clone()) {
                    Some(change) => merge(&mut written, &change),
                    None => assert_eq!(before.as_ref(), Some(after)),
                }
                assert_eq!(written, json!(after));
            }
        }
    }
}
