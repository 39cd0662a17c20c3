//! Where simulated servers run: one thread inside their network, for all of them.

use std::sync::mpsc;

use anyhow::{Context, Result};
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    task::JoinHandle,
};

use super::{Clients, agent::SimServer, hardware::Hardware};
use crate::netns::Netns;

/// How many threads make keys: that is all that blocks.
const BLOCKING: usize = 2;

/// A rack of simulated servers on one bridge. They lose their power when it is dropped.
#[derive(Debug)]
pub struct Rack {
    clients: Clients,
    runtime: Handle,
    _end: oneshot::Sender<()>,
}

impl Rack {
    /// Puts one behind `bridge` of `lab`; connections of its servers come from `address`, such as `10.77.0.2/24`.
    pub fn behind(lab: &Netns, bridge: &str, address: &str) -> Result<Rack> {
        let clients = Clients::behind(lab, bridge, address)?;
        let (tell, told) = mpsc::channel();
        let (end, ended) = oneshot::channel::<()>();
        clients.net().start("lab-rack", move || {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(BLOCKING)
                .build();
            let made = runtime.map(|runtime| {
                // Nobody waits for it only if the rack could not be made.
                let _ = tell.send(runtime.handle().clone());
                // An error is the rack's end, too.
                let _ = runtime.block_on(ended);
                runtime.shutdown_background();
            });
            // Without a runtime the channel is closed, which says so.
            drop(made);
        })?;
        let runtime = told.recv().context("start the rack's runtime")?;
        Ok(Rack {
            clients,
            runtime,
            _end: end,
        })
    }

    /// The network in which its servers are.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Puts a server in; it is off.
    pub fn server(&self, hardware: Hardware) -> SimServer {
        SimServer::new(self.clients.clone(), self.runtime.clone(), hardware)
    }

    /// Puts in the servers of these numbers.
    pub fn servers(&self, numbers: impl IntoIterator<Item = u32>) -> Vec<SimServer> {
        numbers
            .into_iter()
            .map(|number| self.server(Hardware::number(number)))
            .collect()
    }

    /// Runs `job` on the rack's thread; sockets that it makes are in the rack's network.
    pub fn run<T: Send + 'static>(&self, job: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(job)
    }
}
