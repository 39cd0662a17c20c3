//! Which sockets are open: those that the Segments need, as interfaces come and go and ports come free.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_proto::{Chain, kinds::DhcpMode};
use tokio::time::Instant;

use super::{
    dispatch::Dispatch,
    door::{Door, DoorError, Key},
    links,
};
use crate::boot::{
    segment::{Net, Plan},
    status::Trouble,
};

/// How often a port that was in use is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// So long probes that are under way may keep a closed door's port.
const PROBING: Duration = Duration::from_secs(1);

/// What is open, and what could not be opened when.
#[derive(Default)]
pub(super) struct Doors {
    open: BTreeMap<Key, Door>,
    failed: BTreeMap<Key, (Trouble, Instant)>,
    /// When one was closed last: whoever still probes through it may hold its port for a moment.
    closed: Option<Instant>,
}

impl Doors {
    /// Closes what `plan` does not need any more and opens what it needs, as far as that can be opened now.
    pub(super) async fn follow(&mut self, plan: &Plan, dispatch: &Arc<Dispatch>) {
        let wanted = wanted(plan, &self.open);
        let surplus: Vec<Key> = self
            .open
            .keys()
            .filter(|key| !wanted.contains(key))
            .cloned()
            .collect();
        for key in surplus {
            if let Some(door) = self.open.remove(&key) {
                door.close().await;
                self.closed = Some(Instant::now());
            }
        }
        self.failed.retain(|key, _| wanted.contains(key));
        for key in wanted {
            let waiting = self.failed.get(&key).is_some_and(|(_, at)| at.elapsed() < RETRY);
            if waiting || self.open.contains_key(&key) {
                continue;
            }
            match Door::open(&key, dispatch) {
                Ok(door) => {
                    self.failed.remove(&key);
                    self.open.insert(key, door);
                }
                Err(error)
                    if matches!(error, DoorError::PortInUse { .. })
                        && self.closed.is_some_and(|at| at.elapsed() < PROBING) =>
                {
                    tracing::debug!(error = %Chain(&error), "retrying shortly");
                }
                Err(error) => {
                    let trouble = Trouble {
                        reason: error.reason(),
                        message: Chain(&error).to_string(),
                    };
                    let known = self.failed.insert(key, (trouble.clone(), Instant::now()));
                    if known.is_none_or(|(former, _)| former != trouble) {
                        tracing::error!(reason = trouble.reason, "{}", trouble.message);
                    }
                }
            }
        }
    }

    /// True where other servers on `net` would be heard.
    pub(super) fn listens(&self, net: &Net) -> bool {
        self.open.iter().any(|(key, door)| {
            matches!(key, Key::Local { interface, .. } if net.interface.as_deref() == Some(interface))
                && door.listens()
        })
    }

    /// What stands in the way of serving `net`.
    pub(super) fn trouble(&self, net: &Net) -> Option<Trouble> {
        if net.mode == DhcpMode::Off {
            return None;
        }
        self.failed
            .iter()
            .find(|(key, _)| match key {
                Key::Local { interface, .. } => net.interface.as_deref() == Some(interface),
                Key::Relayed => net.interface.is_none(),
            })
            .map(|(_, (trouble, _))| trouble.clone())
    }
}

/// The doors that a plan needs, of which some are `open`.
fn wanted(plan: &Plan, open: &BTreeMap<Key, Door>) -> Vec<Key> {
    let nets = || plan.values().flatten().filter(|net| net.mode != DhcpMode::Off);
    let relayed = nets().any(|net| net.interface.is_none());
    let mut keys: Vec<Key> = nets().filter_map(|net| local_key(net, relayed, open)).collect();
    if relayed {
        keys.push(Key::Relayed);
    }
    keys
}

fn local_key(net: &Net, shared: bool, open: &BTreeMap<Key, Door>) -> Option<Key> {
    let interface = net.interface.clone()?;
    let identity = match links::identity(&interface) {
        Ok(identity) => identity?,
        // That the kernel does not tell says nothing of the interface: what is open stays so.
        Err(_) => {
            let is_its = |key: &&Key| matches!(key, Key::Local { interface: of, .. } if *of == interface);
            return open.keys().find(is_its).cloned();
        }
    };
    Some(Key::Local {
        interface,
        identity,
        pxe: net.mode == DhcpMode::Proxy,
        shared,
    })
}
