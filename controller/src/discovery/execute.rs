//! Does what a plan says, one effect after the other. Every effect is idempotent; the first that fails ends the round, and the
//! next round plans anew.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, Preconditions},
};
use muster_proto::kinds::{
    APPROVE_ANNOTATION, BareMetalHost, BareMetalHostStatus, HardwareData, HardwareDataSpec, HardwareDetails,
    HostReference, Server, ServerSpec,
};
use serde_json::{Map, Value, json};

use super::{
    next::{Effect, Plan, server_name, without_host},
    notices::CREATE_HOST,
};
use crate::{
    events::Events,
    manager::CONTROL,
    path::Path,
    round::{ExecuteError, failed},
};

/// Carries out plans.
#[derive(Clone)]
pub struct Executor {
    client: Client,
    events: Events,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Executor")
    }
}

impl Executor {
    /// Acts through `client`, tells through `events`.
    pub fn new(client: Client, events: Events) -> Self {
        Executor { client, events }
    }

    /// Carries out `plan`, which was made for `server` as it was seen. Calls `did` with the name of each effect that is done.
    pub async fn run(
        &self,
        server: &Server,
        plan: Plan,
        did: impl Fn(&'static str),
    ) -> Result<(), ExecuteError> {
        for effect in plan.effects {
            let name = name(&effect);
            self.effect(server, effect).await?;
            did(name);
        }
        Ok(())
    }

    async fn effect(&self, server: &Server, effect: Effect) -> Result<(), ExecuteError> {
        match effect {
            Effect::CreateHost(host) => self.create(server, *host).await,
            Effect::MarkHost {
                host,
                labels,
                annotations,
            } => {
                let step = "mark host";
                // The UID makes the API server refuse the patch if another host has taken the name.
                let patch =
                    json!({"metadata": {"uid": host.uid, "labels": labels, "annotations": annotations}});
                self.merge::<BareMetalHost>(step, &Path::from(&host), patch).await
            }
            Effect::DeclareBootMac { host, version, mac } => {
                let patch = json!({
                    "metadata": {"uid": host.uid, "resourceVersion": version},
                    "spec": {"bootMACAddress": mac},
                });
                let step = "declare MAC address of host";
                self.merge::<BareMetalHost>(step, &Path::from(&host), patch).await
            }
            Effect::ApplyHardwareData { host, hardware } => self.apply_hardware(&host, *hardware).await,
            Effect::WriteHostStatus {
                host,
                version,
                status,
            } => self.write_status(&host, &version, &status).await,
            Effect::PatchServerSpec { spec, approved } => self.patch_server(server, &spec, approved).await,
            Effect::Dismiss(host) => self.dismiss(server, &host).await,
            Effect::RemoveAnnotation { host, name } => {
                let patch = json!({"metadata": {"uid": host.uid, "annotations": {name: Value::Null}}});
                let step = "remove annotation from host";
                self.merge::<BareMetalHost>(step, &Path::from(&host), patch).await
            }
            Effect::DeleteHost { host, version } => self.delete(host, version).await,
            Effect::Event(event) => {
                self.events.record(event);
                Ok(())
            }
        }
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn create(&self, server: &Server, host: BareMetalHost) -> Result<(), ExecuteError> {
        let step = CREATE_HOST;
        // Our copy of the Server may be old: a host that was linked, and then deleted by its user, must not come back.
        let at = server.metadata.namespace.as_deref().unwrap_or_default();
        let live: Server = self
            .api(at)
            .get(server_name(server))
            .await
            .map_err(failed("read Server", server_name(server)))?;
        let path = Path::of(&host);
        let subject = path.to_string();
        if live.spec != server.spec || live.metadata.uid != server.metadata.uid {
            return Err(ExecuteError::Behind { step, subject });
        }
        self.api::<BareMetalHost>(&path.namespace)
            .create(&CONTROL.create(), &host)
            .await
            .map_err(failed(step, &subject))?;
        Ok(())
    }

    async fn apply_hardware(
        &self,
        host: &HostReference,
        hardware: HardwareDetails,
    ) -> Result<(), ExecuteError> {
        let mut data = HardwareData::new(
            &host.name,
            HardwareDataSpec {
                hardware: Some(hardware.into()),
            },
        );
        data.metadata.namespace = Some(host.namespace.clone());
        data.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "metal3.io/v1alpha1".to_owned(),
            kind: "BareMetalHost".to_owned(),
            name: host.name.clone(),
            uid: host.uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }]);
        let mut data = json!(data);
        keep_hardware(&mut data, "/spec/hardware");
        self.api::<HardwareData>(&host.namespace)
            .patch(&host.name, &CONTROL.apply(), &Patch::Apply(&data))
            .await
            .map_err(failed("apply HardwareData", &path(host)))?;
        Ok(())
    }

    async fn write_status(
        &self,
        host: &HostReference,
        version: &str,
        status: &BareMetalHostStatus,
    ) -> Result<(), ExecuteError> {
        // With the resource version: whoever moved the host on in the meantime keeps what they wrote.
        let mut object = json!({
            "apiVersion": "metal3.io/v1alpha1",
            "kind": "BareMetalHost",
            "metadata": {"name": host.name, "uid": host.uid, "resourceVersion": version},
            "status": status,
        });
        keep_hardware(&mut object, "/status/hardware");
        self.api::<BareMetalHost>(&host.namespace)
            .patch_status(&host.name, &CONTROL.apply(), &Patch::Apply(&object))
            .await
            .map_err(failed("write status of host", &path(host)))?;
        Ok(())
    }

    async fn patch_server(
        &self,
        server: &Server,
        spec: &ServerSpec,
        approved: bool,
    ) -> Result<(), ExecuteError> {
        // A merge patch takes away only what it names.
        let mut wanted =
            json!({"host": spec.host, "dismissed": spec.dismissed, "job": spec.job, "wake": spec.wake});
        if !spec.dismissed {
            wanted["dismissed"] = Value::Null;
        }
        let version = server.metadata.resource_version.as_deref().unwrap_or_default();
        let mut patch = json!({"metadata": {"resourceVersion": version}, "spec": wanted});
        if approved {
            patch["metadata"]["annotations"] = json!({APPROVE_ANNOTATION: Value::Null});
        }
        self.merge::<Server>("patch Server", &Path::of(server), patch)
            .await
    }

    async fn dismiss(&self, server: &Server, host: &HostReference) -> Result<(), ExecuteError> {
        let step = "dismiss Server of host";
        let live = self
            .api::<BareMetalHost>(&host.namespace)
            .get_opt(&host.name)
            .await
            .map_err(failed("read host", &path(host)))?;
        if live.is_some_and(|live| host.uid.is_empty() || live.metadata.uid.as_ref() == Some(&host.uid)) {
            return Err(ExecuteError::Behind {
                step,
                subject: path(host),
            });
        }
        self.patch_server(server, &without_host(server), false).await?;
        Ok(())
    }

    async fn delete(&self, host: HostReference, version: String) -> Result<(), ExecuteError> {
        let subject = path(&host);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(host.uid),
                resource_version: Some(version),
            }),
            ..DeleteParams::default()
        };
        match self
            .api::<BareMetalHost>(&host.namespace)
            .delete(&host.name, &params)
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            outcome => {
                outcome.map_err(failed("delete host", &subject))?;
            }
        }
        Ok(())
    }

    async fn merge<K>(&self, step: &'static str, at: &Path, patch: Value) -> Result<(), ExecuteError>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        self.api::<K>(&at.namespace)
            .patch(&at.name, &CONTROL.merge(), &Patch::Merge(&patch))
            .await
            .map_err(failed(step, &at.to_string()))?;
        Ok(())
    }
}

/// Leaves the hardware at `place` of `object` a field, if it has none. Of an object that loses its last field by an apply, the API server
/// makes null, which it then refuses. A list without entries says no more than no list.
fn keep_hardware(object: &mut Value, place: &str) {
    let hardware = object.pointer_mut(place).and_then(Value::as_object_mut);
    if let Some(hardware) = hardware.filter(|hardware| hardware.is_empty()) {
        *hardware = Map::from_iter([("nics".to_owned(), json!([]))]);
    }
}

/// The name of an effect, for metrics.
fn name(effect: &Effect) -> &'static str {
    match effect {
        Effect::CreateHost(_) => "create_host",
        Effect::MarkHost { .. } => "mark_host",
        Effect::DeclareBootMac { .. } => "declare_boot_mac",
        Effect::ApplyHardwareData { .. } => "apply_hardware_data",
        Effect::WriteHostStatus { .. } => "write_host_status",
        Effect::PatchServerSpec { .. } => "patch_server",
        Effect::Dismiss(_) => "dismiss",
        Effect::RemoveAnnotation { .. } => "remove_annotation",
        Effect::DeleteHost { .. } => "delete_host",
        Effect::Event(_) => "event",
    }
}

fn path(host: &HostReference) -> String {
    Path::from(host).to_string()
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use hyper::{Request, Response, body::Bytes};
    use kube::client::Body;
    use muster_proto::kinds::Packed;
    use tokio::sync::mpsc;

    use super::*;

    /// An API server that takes everything, and what it was sent.
    fn taking() -> (Client, mpsc::UnboundedReceiver<Value>) {
        let (sender, sent) = mpsc::unbounded_channel();
        let serve = move |request: Request<Body>| {
            let sender = sender.clone();
            async move {
                let body = request.into_body().collect_bytes().await.unwrap();
                let body: Value = serde_json::from_slice(&body).unwrap();
                // Nobody looks at the rest of an answer.
                let mut answer = body.clone();
                answer["spec"] = json!({"online": true});
                answer["status"] = Value::Null;
                sender.send(body).unwrap();
                let answer = Full::new(Bytes::from(answer.to_string()));
                Ok::<_, std::io::Error>(Response::new(answer))
            }
        };
        (Client::new(tower::service_fn(serve), "default"), sent)
    }

    #[tokio::test]
    async fn hardware_of_which_nothing_is_said_any_more_is_applied_with_a_field_and_read_as_nothing() {
        let (client, mut sent) = taking();
        let executor = Executor::new(client, Events::new(mpsc::channel(1).0));
        let server = Server::new("a", ServerSpec::default());
        let mut applied = async |hardware: HardwareDetails| {
            let host = HostReference {
                namespace: "metal".to_owned(),
                name: "h".to_owned(),
                ..HostReference::default()
            };
            let status = BareMetalHostStatus {
                hardware: Some(Packed::new(&hardware)),
                ..BareMetalHostStatus::default()
            };
            let effects = vec![
                Effect::ApplyHardwareData {
                    host: host.clone(),
                    hardware: Box::new(hardware),
                },
                Effect::WriteHostStatus {
                    host,
                    version: "1".to_owned(),
                    status: Box::new(status),
                },
            ];
            let plan = Plan {
                effects,
                ..Plan::default()
            };
            executor.run(&server, plan, |_| {}).await.unwrap();
            let [mut data, mut host] = [sent.recv().await.unwrap(), sent.recv().await.unwrap()];
            [data["spec"]["hardware"].take(), host["status"]["hardware"].take()]
        };
        for shown in applied(HardwareDetails::default()).await {
            assert_eq!(shown, json!({"nics": []}));
            let read: HardwareDetails = serde_json::from_value(shown).unwrap();
            assert_eq!(read, HardwareDetails::default(), "nothing that is written again");
        }
        let named = HardwareDetails {
            hostname: Some("n".to_owned()),
            ..HardwareDetails::default()
        };
        assert_eq!(
            applied(named).await,
            [json!({"hostname": "n"}), json!({"hostname": "n"})]
        );
    }
}
