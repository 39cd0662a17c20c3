//! The lab's usual network: a namespace with bridges that have an address and a router that advertises nothing.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

use crate::{cluster::Cluster, forward::Forwarder, netns::Netns, ra::Router};

/// One bridge to serve on.
#[derive(Clone, Copy, Debug)]
pub struct Bridge {
    /// Link name, such as `br0`.
    pub name: &'static str,
    /// Its address with prefix length, such as `10.77.0.1/24`.
    pub address: &'static str,
}

/// The bridge that single-segment tests use.
pub const BR0: Bridge = Bridge {
    name: "br0",
    address: "10.77.0.1/24",
};
/// The second one.
pub const BR1: Bridge = Bridge {
    name: "br1",
    address: "10.78.0.1/24",
};

/// The way from inside `net` to `cluster`, whose kubeconfigs then work there unchanged.
pub fn api_in(net: &Netns, cluster: &Cluster) -> Result<Forwarder> {
    let inside: IpAddr = [127, 0, 0, 1].into();
    let listen = SocketAddr::new(inside, cluster.inside_port());
    Forwarder::outwards(net, listen, cluster.server()).context("lead the API server's port in")
}

/// A network in which a controller and its machines live.
#[derive(Debug)]
pub struct Network {
    /// The namespace.
    pub net: Netns,
    /// The way to the API server; tests cut it.
    pub api: Forwarder,
    routers: Vec<Router>,
}

impl Network {
    /// Lays `bridges` and the way to `cluster`, whose kubeconfig then works inside unchanged.
    pub fn new(bridges: &[Bridge], cluster: &Cluster) -> Result<Network> {
        let net = Netns::new()?;
        let mut routers = Vec::new();
        for bridge in bridges {
            net.bridge(bridge.name, Some(bridge.address))?;
            routers.push(Router::on(&net, bridge.name)?);
        }
        Ok(Network {
            api: api_in(&net, cluster)?,
            net,
            routers,
        })
    }

    /// Lays one more bridge, on which this network's own computer has no address: whoever serves there does so from elsewhere.
    pub fn lay(&mut self, name: &str) -> Result<()> {
        self.net.bridge(name, None)?;
        self.routers.push(Router::on(&self.net, name)?);
        Ok(())
    }
}
