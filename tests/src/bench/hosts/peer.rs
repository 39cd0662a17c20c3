//! The peer: baremetal-operator with its fixture provisioner, which asks no hardware, on a control plane of its own.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, api::PostParams};
use muster_proto::kinds::BareMetalHost;
use serde_json::json;

use super::{
    place::HOSTS,
    round::{AT_ONCE, Processes, Site},
};
use crate::{cluster::Cluster, metal3::Operator, paths, scratch::Scratch};

/// More than its defaults allow it: 20 requests a second, and few workers.
pub(super) const ARGUMENTS: [&str; 6] = [
    "-kube-api-qps",
    "1000",
    "-kube-api-burst",
    "2000",
    "-controller-concurrency",
    "50",
];

/// It looks at hosts by then.
const STARTED: Duration = Duration::from_secs(120);

/// It, and its control plane. Fields are dropped in order: the operator first.
pub(super) struct Peer {
    operator: Operator,
    client: Client,
    _scratch: Scratch,
    cluster: Cluster,
}

impl Peer {
    pub(super) async fn start() -> Result<Peer> {
        let scratch = Scratch::new()?;
        let cluster = Cluster::start_with_kinds(&paths::metal3_kinds()?).await?;
        cluster.ensure_namespace(HOSTS).await?;
        let operator = Operator::start(cluster.kubeconfig(), HOSTS, scratch.path(), &ARGUMENTS)?;
        operator.works(STARTED).await?;
        Ok(Peer {
            operator,
            client: cluster.client()?,
            _scratch: scratch,
            cluster,
        })
    }
}

impl Site for Peer {
    fn processes(&self) -> Result<Processes> {
        Ok(Processes {
            controller: self.operator.process(),
            api_server: self
                .cluster
                .process()
                .context("the cluster is not the lab's own")?,
            fleets: Vec::new(),
        })
    }

    fn client(&self) -> &Client {
        &self.client
    }

    async fn create(&mut self, hosts: u32) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), HOSTS);
        let machines: Api<BareMetalHost> = Api::namespaced(self.client.clone(), HOSTS);
        let made = (1..=hosts).map(|number| {
            let (secrets, machines) = (&secrets, &machines);
            async move {
                let (secret, host) = objects(number)?;
                let parameters = PostParams::default();
                secrets
                    .create(&parameters, &secret)
                    .await
                    .context("make a Secret")?;
                machines.create(&parameters, &host).await.context("make a host")?;
                anyhow::Ok(())
            }
        });
        stream::iter(made).buffer_unordered(AT_ONCE).try_collect().await
    }

    fn lives(&mut self) -> Result<()> {
        self.operator.lives()
    }
}

/// What a user makes for one server: the Secret of its BMC, and its host.
fn objects(number: u32) -> Result<(Secret, BareMetalHost)> {
    let name = format!("host-{number:05}");
    let secret = json!({
        "metadata": {"name": format!("{name}-bmc")},
        "stringData": {"username": "admin", "password": "password"},
    });
    let [_, high, middle, low] = number.to_be_bytes();
    let host = json!({
        "metadata": {"name": name},
        "spec": {
            "online": true,
            "bootMACAddress": format!("02:00:00:{high:02x}:{middle:02x}:{low:02x}"),
            "bmc": {
                "address": format!("redfish://10.{high}.{middle}.{low}/redfish/v1/Systems/1"),
                "credentialsName": format!("{name}-bmc"),
            },
        },
    });
    Ok((
        serde_json::from_value(secret).context("write a Secret")?,
        serde_json::from_value(host).context("write a host")?,
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_host_of_the_peer_has_an_address_of_its_own() {
        let (mut addresses, mut macs) = (BTreeSet::new(), BTreeSet::new());
        for number in 1..=1000 {
            let (secret, host) = objects(number).unwrap();
            let bmc = host.spec.bmc.unwrap();
            assert_eq!(secret.metadata.name.as_ref(), Some(&bmc.credentials_name));
            addresses.insert(bmc.address);
            macs.insert(host.spec.boot_mac_address.unwrap());
        }
        assert_eq!((addresses.len(), macs.len()), (1000, 1000));
    }
}
