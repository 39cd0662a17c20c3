//! The fleet's objects in the cluster: made before it starts, counted while it runs, deleted at its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use muster_proto::{
    Mac,
    kinds::{BareMetalHost, Server},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::tally::count;
use crate::{sim::hardware::Hardware, stage};

/// The label of everything that a fleet makes.
const LABEL: &str = "muster.dev/fleet";
/// Requests at the same time.
const AT_ONCE: usize = 16;
/// How often what is being deleted is looked at again.
const LOOK: Duration = Duration::from_millis(500);

/// Of server `number`.
pub(super) fn name(number: u32) -> String {
    format!("fleet-{number:05}")
}

/// A host and the Secret with its BMC's credentials. `bmc` is the BMC's address.
fn objects(number: u32, run: &str, bmc: &str, user: (&str, &str)) -> Result<(Secret, BareMetalHost)> {
    let name = name(number);
    let labels = json!({ LABEL: run });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": format!("{name}-bmc"), "labels": labels},
        "stringData": {"username": user.0, "password": user.1},
    });
    let host = json!({
        "apiVersion": "metal3.io/v1alpha1", "kind": "BareMetalHost",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "online": true,
            "bootMACAddress": Hardware::number(number).boot_mac().to_string(),
            "bmc": {"address": bmc, "credentialsName": format!("{name}-bmc")},
        },
    });
    Ok((
        serde_json::from_value(secret).context("write a Secret")?,
        serde_json::from_value(host).context("write a BareMetalHost")?,
    ))
}

/// The cluster, as a fleet sees it.
#[derive(Clone)]
pub(super) struct Objects {
    client: Client,
    namespace: String,
    run: String,
    macs: Arc<BTreeSet<Mac>>,
    /// Name and state of each host of the fleet.
    states: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Objects {
    /// Of the servers `numbers`, whose hosts are in `namespace`; `run` tells this fleet from another.
    pub(super) fn new(
        client: Client,
        namespace: &str,
        run: &str,
        numbers: impl Iterator<Item = u32>,
    ) -> Objects {
        Objects {
            client,
            namespace: namespace.to_owned(),
            run: run.to_owned(),
            macs: Arc::new(
                numbers
                    .map(|number| Hardware::number(number).boot_mac())
                    .collect(),
            ),
            states: Arc::default(),
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Makes host and Secret of each of `servers`: its number, and its BMC's address.
    pub(super) async fn make(&self, servers: Vec<(u32, String)>, user: (&str, &str)) -> Result<()> {
        let made = servers.into_iter().map(|(number, bmc)| async move {
            let (secret, host) = objects(number, &self.run, &bmc, user)?;
            let parameters = PostParams::default();
            let named = || format!("make {}", name(number));
            self.api()
                .create(&parameters, &secret)
                .await
                .with_context(named)?;
            self.api().create(&parameters, &host).await.with_context(named)?;
            anyhow::Ok(())
        });
        stream::iter(made).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Keeps [`Objects::states`] as the cluster has it, for ever. With `made`, all hosts are those that the fleet made itself.
    pub(super) async fn follow(self, made: bool) {
        use kube::runtime::watcher::Event;
        let mut config = watcher::Config::default();
        if made {
            // Fleets beside each other need not read each other's hosts.
            config = config.labels(&format!("{LABEL}={}", self.run));
        }
        let mut changes = watcher(self.api::<BareMetalHost>(), config)
            .default_backoff()
            .boxed();
        while let Some(change) = changes.next().await {
            // The watch begins anew by itself.
            let Ok(change) = change else { continue };
            let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
            match change {
                Event::Init => states.clear(),
                Event::InitDone => {}
                Event::Apply(host) | Event::InitApply(host) => {
                    if self.is_ours(&host) {
                        let state = host.status.as_ref().map(|status| &status.provisioning.state);
                        let state = state.filter(|state| !state.is_empty());
                        let state = state.map_or_else(|| "new".to_owned(), |state| state.to_string());
                        states.insert(host.name_any(), state);
                    }
                }
                Event::Delete(host) => {
                    states.remove(&host.name_any());
                }
            }
        }
    }

    fn is_ours(&self, host: &BareMetalHost) -> bool {
        let named = host
            .spec
            .boot_mac_address
            .as_ref()
            .and_then(|mac| mac.parse().ok());
        let mut macs = stage::macs(host).into_iter().chain(named);
        macs.any(|mac| self.macs.contains(&mac))
    }

    /// How many hosts are in each state.
    pub(super) fn counts(&self) -> BTreeMap<String, usize> {
        count(
            self.states
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .values()
                .cloned(),
        )
    }

    /// Deletes the fleet's hosts and waits until they are gone, which the controller decides; then their Servers and Secrets. May be
    /// dropped at any moment.
    pub(super) async fn delete(&self) -> Result<()> {
        loop {
            // One that was being made when the fleet was interrupted may come late.
            let listed = self.list::<BareMetalHost>().await?;
            let ours: Vec<&BareMetalHost> = listed.iter().filter(|host| self.is_ours(host)).collect();
            if ours.is_empty() {
                return Ok(());
            }
            let stay = ours
                .iter()
                .filter(|host| host.metadata.deletion_timestamp.is_none());
            self.delete_named::<BareMetalHost>(stay.map(|host| host.name_any()).collect())
                .await?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Deletes what is left of it once its servers are off and its hosts are gone. `segments` is the namespace of the Servers.
    pub(super) async fn delete_rest(&self, segments: &str) -> Result<()> {
        let servers = Objects {
            namespace: segments.to_owned(),
            ..self.clone()
        };
        let listed = servers.list::<Server>().await?;
        // Some never reported what they are made of; by what they enrolled all are known.
        let ours = listed.iter().filter(|server| {
            let mut known = server.status.iter().flat_map(|status| &status.identity.macs);
            known.any(|mac| self.macs.contains(mac))
        });
        servers
            .delete_named::<Server>(ours.map(ResourceExt::name_any).collect())
            .await?;
        let label = ListParams::default().labels(&format!("{LABEL}={}", self.run));
        self.api::<Secret>()
            .delete_collection(&DeleteParams::default(), &label)
            .await
            .context("delete the fleet's Secrets")?;
        Ok(())
    }

    async fn list<K>(&self) -> Result<Vec<K>>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let list = self.api::<K>().list(&ListParams::default()).await;
        Ok(list.context("list the fleet's objects")?.items)
    }

    async fn delete_named<K>(&self, names: Vec<String>) -> Result<()>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let deleted = names.into_iter().map(|name| async move {
            match self.api::<K>().delete(&name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                outcome => outcome.map(drop).with_context(|| format!("delete {name}")),
            }
        });
        stream::iter(deleted)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_its_secret_its_bmc_and_the_nic_that_boots() {
        let (secret, host) = objects(
            7,
            "run",
            "redfish+http://10.77.0.2:1/redfish/v1/Systems/7",
            ("a", "b"),
        )
        .unwrap();
        let bmc = host.spec.bmc.clone().unwrap();
        assert_eq!(bmc.credentials_name, secret.name_any());
        assert!(bmc.address.starts_with("redfish+http://"));
        let mac = Hardware::number(7).boot_mac().to_string();
        assert_eq!(host.spec.boot_mac_address.as_deref(), Some(mac.as_str()));
        assert_eq!(host.labels()[LABEL], "run");
    }
}
