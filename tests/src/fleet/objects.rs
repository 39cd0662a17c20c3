//! The fleet's objects in the cluster: made before it starts, counted while it runs, deleted at its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use muster_proto::{
    Mac,
    kinds::{BareMetalHost, DETACHED_ANNOTATION, Server},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{place::Place, tally::count};
use crate::{sim::hardware::Hardware, stage};

/// The label of everything that a fleet makes.
const LABEL: &str = "muster.dev/fleet";
/// Requests at the same time.
const AT_ONCE: usize = 16;
/// How often what is being deleted is looked at again.
const LOOK: Duration = Duration::from_millis(500);
/// How often all of it is read again.
const LIST_AGAIN: Duration = Duration::from_secs(15);
/// What the name of a Secret has behind that of its host.
const SECRET_SUFFIX: &str = "-bmc";

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
        "metadata": {"name": format!("{name}{SECRET_SUFFIX}"), "labels": labels},
        "stringData": {"username": user.0, "password": user.1},
    });
    let host = json!({
        "apiVersion": "metal3.io/v1alpha1", "kind": "BareMetalHost",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "online": true,
            "bootMACAddress": Hardware::number(number).boot_mac().to_string(),
            "bmc": {"address": bmc, "credentialsName": format!("{name}{SECRET_SUFFIX}")},
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
    /// Where Servers are.
    servers: String,
    run: String,
    /// The server at which place of the fleet boots by which NIC.
    macs: Arc<BTreeMap<Mac, usize>>,
    /// The names that its hosts have, if it makes them.
    names: Arc<BTreeSet<String>>,
    /// Each host of the fleet, by its name.
    shown: Arc<Mutex<BTreeMap<String, Shown>>>,
}

/// What a host shows.
struct Shown {
    state: String,
    /// The server that somebody is to power-cycle.
    by_hand: Option<usize>,
}

impl Objects {
    /// Of the servers `numbers`, in the cluster behind `client`. `run` tells this fleet from another.
    pub(super) fn new(
        client: Client,
        place: &Place,
        run: &str,
        numbers: impl Iterator<Item = u32> + Clone,
    ) -> Objects {
        let macs = numbers.clone().map(|number| Hardware::number(number).boot_mac());
        Objects {
            client,
            namespace: place.hosts.clone(),
            servers: place.servers.clone(),
            run: run.to_owned(),
            macs: Arc::new(macs.zip(0..).collect()),
            names: Arc::new(numbers.map(name).collect()),
            shown: Arc::default(),
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn servers(&self) -> Objects {
        Objects {
            namespace: self.servers.clone(),
            ..self.clone()
        }
    }

    /// Fails if there is something of these servers already: another fleet has them, or one left it.
    pub(super) async fn are_new(&self) -> Result<()> {
        let hosts = self.list::<BareMetalHost>().await?;
        let hosts = hosts
            .iter()
            .filter(|host| self.is_ours(host))
            .map(ResourceExt::name_any);
        let secrets = self.secrets().await?.into_iter();
        let servers = self.own_servers().await?.into_iter();
        let there: BTreeSet<String> = hosts.chain(secrets).chain(servers).collect();
        let Some(first) = there.first() else {
            return Ok(());
        };
        bail!(
            "{} objects of these servers already exist, {first} among them: either another fleet has them, and this one needs other numbers (--first), \
             or it ended without deleting them, which --afresh does",
            there.len()
        )
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

    /// Deletes what an earlier fleet of these servers left. Their BMCs are gone: hosts go as they are, since they are detached first.
    pub(super) async fn make_room(&self, within: Duration) -> Result<()> {
        let listed = self.list::<BareMetalHost>().await?;
        let hosts = self.api::<BareMetalHost>();
        let detached = json!({"metadata": {"annotations": {DETACHED_ANNOTATION: ""}}});
        for host in listed.iter().filter(|host| self.is_ours(host)) {
            let name = host.name_any();
            match hosts
                .patch(&name, &PatchParams::default(), &Patch::Merge(&detached))
                .await
            {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                outcome => drop(outcome.with_context(|| format!("detach {name}"))?),
            }
        }
        let gone = tokio::time::timeout(within, self.delete()).await;
        gone.with_context(|| {
            format!("some hosts are still there after {within:?}: is their controller running?")
        })??;
        self.delete_rest().await
    }

    /// Keeps what hosts show as the cluster has it, for ever. With `made`, all hosts are those that the fleet made itself.
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
            match change {
                Event::Init => self.shown().clear(),
                Event::InitDone => {}
                Event::Apply(host) | Event::InitApply(host) => {
                    if let Some(index) = self.server_of(&host) {
                        let status = host.status.as_ref();
                        let state = status.map(|status| &status.provisioning.state);
                        let state = state.filter(|state| !state.is_empty());
                        let state = state.map_or_else(|| "new".to_owned(), |state| state.to_string());
                        let mut conditions = status.iter().flat_map(|status| &status.conditions);
                        let by_hand = conditions.any(|condition| {
                            condition.status == "True" && condition.reason == "PowerCycleByHand"
                        });
                        let by_hand = by_hand.then_some(index);
                        self.shown().insert(host.name_any(), Shown { state, by_hand });
                    }
                }
                Event::Delete(host) => {
                    self.shown().remove(&host.name_any());
                }
            }
        }
    }

    fn shown(&self) -> MutexGuard<'_, BTreeMap<String, Shown>> {
        // Each is whole at every moment, whoever panicked.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which server of the fleet the host stands for.
    fn server_of(&self, host: &BareMetalHost) -> Option<usize> {
        let named = host
            .spec
            .boot_mac_address
            .as_ref()
            .and_then(|mac| mac.parse().ok());
        let mut macs = stage::macs(host).into_iter().chain(named);
        macs.find_map(|mac| self.macs.get(&mac).copied())
    }

    fn is_ours(&self, host: &BareMetalHost) -> bool {
        self.server_of(host).is_some()
    }

    /// How many hosts are in each state.
    pub(super) fn counts(&self) -> BTreeMap<String, usize> {
        count(self.shown().values().map(|host| host.state.clone()))
    }

    /// The servers that somebody is to power-cycle, as their hosts say.
    pub(super) fn by_hand(&self) -> Vec<usize> {
        self.shown().values().filter_map(|host| host.by_hand).collect()
    }

    /// Deletes the fleet's hosts and waits until they are gone, which the controller decides. May be dropped at any moment.
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
            // Thousands of hosts are read at once: the watch tells, too, how many are left.
            let left = ours.len();
            let listed_at = Instant::now();
            while listed_at.elapsed() < LIST_AGAIN && (1..=left).contains(&self.shown().len()) {
                tokio::time::sleep(LOOK).await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Deletes what is left of it once its servers are off and its hosts are gone.
    pub(super) async fn delete_rest(&self) -> Result<()> {
        let servers = self.own_servers().await?;
        self.servers().delete_named::<Server>(servers).await?;
        self.delete_named::<Secret>(self.secrets().await?).await
    }

    /// The Servers of the fleet, by their names.
    async fn own_servers(&self) -> Result<Vec<String>> {
        let listed = self.servers().list::<Server>().await?;
        // Some never reported what they are made of; by what they enrolled all are known.
        let ours = listed.iter().filter(|server| {
            let mut known = server.status.iter().flat_map(|status| &status.identity.macs);
            known.any(|mac| self.macs.contains_key(mac))
        });
        Ok(ours.map(ResourceExt::name_any).collect())
    }

    /// The Secrets that this fleet made, or one of the same numbers before, by their names.
    async fn secrets(&self) -> Result<Vec<String>> {
        let labelled = ListParams::default().labels(LABEL);
        let listed = self.api::<Secret>().list_metadata(&labelled).await;
        let listed = listed.context("list the fleet's Secrets")?;
        let names = listed.iter().map(ResourceExt::name_any);
        let is_ours = |name: &String| {
            let of = name.strip_suffix(SECRET_SUFFIX);
            of.is_some_and(|of| self.names.contains(of))
        };
        Ok(names.filter(is_ours).collect())
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
