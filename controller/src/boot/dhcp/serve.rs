//! Serves the Segments as they are added, edited and deleted: what is open, who is answered, and what is told of each. What was leased is
//! remembered as long as its Segment exists.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use kube::Client;
use muster_proto::{
    Mac,
    kinds::{DhcpMode, Segment, Server, SessionState},
};
use tokio::sync::watch;

use super::{
    dispatch::{Active, Actives, Dispatch},
    doors::Doors,
    leases::{Leases, Pool},
    links,
    metrics::{BySegment, Metrics},
    rogue::{Intruder, Watch},
};
use crate::{
    bind::{ClosedPort, ClosedPorts},
    boot::{
        decide::Releases,
        segment::{self, Net, Plan, Ports},
        status::{self, Facts, Trouble},
    },
    events::Events,
    token::BootSecrets,
    world::World,
};

#[cfg(test)]
mod tests;

/// How often Segments and interfaces are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The DHCP side of the boot services, with everything that it needs.
pub struct Dhcp {
    /// What the cluster says. Nothing is answered before it is complete: a known machine must not be taken for an unknown one.
    pub world: World,
    /// Where the other services of this controller listen.
    pub ports: Ports,
    /// Which ramdisks there are.
    pub releases: Arc<dyn Releases>,
    /// From enrolment; `None` until it has them: boot URLs are sealed with its key.
    pub secrets: watch::Receiver<Option<Arc<BootSecrets>>>,
    /// Writes Segment status.
    pub client: Client,
    /// In whose name.
    pub edge: String,
    /// Tells people.
    pub events: Events,
    /// [`Metrics::register`].
    pub metrics: Metrics,
    /// Told what the Segments mean whenever that changes; the other services follow it.
    pub plan: watch::Sender<Arc<Plan>>,
    /// The ports that these cannot open.
    pub closed_ports: ClosedByService,
    /// True, or its sender gone: end.
    pub shutdown: watch::Receiver<bool>,
}

impl std::fmt::Debug for Dhcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dhcp")
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

impl Dhcp {
    /// Serves all Segments until shutdown; errors become conditions of the Segment that they are about.
    pub async fn run(self) {
        let Dhcp {
            world,
            ports,
            releases,
            secrets,
            client,
            edge,
            events,
            metrics,
            plan,
            closed_ports,
            shutdown,
        } = self;
        let (facts, seen) = watch::channel(BTreeMap::new());
        let writing = tokio::spawn(status::write(
            client,
            edge,
            world.segments.clone(),
            events.clone(),
            seen,
        ));
        serve(
            Service {
                dispatch: Arc::new(Dispatch::new(
                    world.clone(),
                    releases,
                    secrets,
                    events,
                    metrics.clone(),
                )),
                world,
                ports,
                metrics,
                facts,
                plan,
                closed_ports,
            },
            shutdown,
        )
        .await;
        // With the facts' sender gone, it writes what is left and ends.
        if let Err(error) = writing.await {
            tracing::error!(%error, "writing the status of segments");
        }
    }
}

/// The ports of the other services that cannot be opened.
#[derive(Clone, Debug, Default)]
pub struct ClosedByService {
    /// Those of boot files.
    pub boot: ClosedPorts,
    /// Those of agents.
    pub agents: ClosedPorts,
}

impl ClosedByService {
    /// Those that machines of `net` are told to come to.
    fn of(&self, net: &Net) -> Vec<ClosedPort> {
        let mut closed = self.boot.on(&net.of_boot());
        closed.extend(self.agents.on(&net.of_agents()));
        closed
    }
}

/// What the loop works with; its facts go to a channel, so that it needs no API server.
pub(super) struct Service {
    pub(super) dispatch: Arc<Dispatch>,
    pub(super) world: World,
    pub(super) ports: Ports,
    pub(super) metrics: Metrics,
    pub(super) facts: watch::Sender<BTreeMap<String, Facts>>,
    pub(super) plan: watch::Sender<Arc<Plan>>,
    pub(super) closed_ports: ClosedByService,
}

/// The loop.
pub(super) async fn serve(service: Service, mut shutdown: watch::Receiver<bool>) {
    let mut doors = Doors::default();
    let mut memories = Memories::new();
    let mut is_blind = false;
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = shutdown.wait_for(|ended| *ended) => break,
            _ = tick.tick() => {}
        }
        let links = match links::links() {
            Ok(links) => links,
            Err(error) => {
                if !std::mem::replace(&mut is_blind, true) {
                    tracing::warn!(%error, "the network interfaces cannot be listed; next: serving continues unchanged until they can be");
                }
                continue;
            }
        };
        is_blind = false;
        let segments = service.world.segments.state();
        let plan = segment::plan(segments.iter().map(AsRef::as_ref), &links, service.ports);
        activate(&service, &segments, &plan, &mut memories);
        let is_new = service.plan.send_if_modified(|known| {
            let changed = **known != plan;
            if changed {
                *known = Arc::new(plan.clone());
            }
            changed
        });
        doors.follow(&plan, &service.dispatch).await;
        // Whoever has just begun does not deny what was said before. What is new is told at the next look: by then the other services
        // know whether their ports are free there.
        if !is_new && !service.dispatch.awaits_keys() {
            report(&service, &segments, &plan, &doors);
        }
    }
    service.dispatch.serve(Actives::new());
    doors.follow(&Plan::new(), &service.dispatch).await;
}

/// What is remembered of a Segment as long as that object exists, served or not: a typo that is corrected and an interface that
/// blinks end no lease.
struct Memory {
    /// One that is deleted and made anew is another one.
    uid: Option<String>,
    /// The addresses that were leased from when what machines had before was looked up; none: none was leased yet.
    seeded: Option<Pool>,
    leases: Arc<Mutex<Leases>>,
    watch: Arc<Mutex<Watch>>,
}

/// By `namespace/name`; as many as there are Segments, at the most.
type Memories = BTreeMap<String, Memory>;

/// Hands the valid Segments to the dispatch, with what is remembered of them.
fn activate(service: &Service, segments: &[Arc<Segment>], plan: &Plan, memories: &mut Memories) {
    let uids: BTreeMap<String, &Option<String>> = segments
        .iter()
        .map(|segment| (segment::key(segment), &segment.metadata.uid))
        .collect();
    // Only of one that was served, and so is remembered, there is anything to forget.
    let mut gone = Vec::new();
    memories.retain(|key, memory| {
        let stays = uids.get(key).is_some_and(|uid| **uid == memory.uid);
        if !stays {
            gone.push(key.clone());
        }
        stays
    });
    let before = service.dispatch.actives();
    let mut after = Actives::new();
    let mut changed = false;
    for segment in segments {
        let key = segment::key(segment);
        let Some(Ok(net)) = plan.get(&key) else {
            continue;
        };
        let active = match before.get(&key) {
            Some(active) if *active.net == *net && Arc::ptr_eq(&active.segment, segment) => active.clone(),
            former => {
                changed = true;
                if former.is_none_or(|former| *former.net != *net) {
                    tracing::info!(segment = net.key, interface = net.interface, subnet = %net.subnet, mode = ?net.mode, "serving");
                }
                renew(service, memories, segment, net)
            }
        };
        after.insert(key, active);
    }
    // Meanwhile another edge, or another server, may lease from the same addresses.
    for (key, memory) in memories {
        let leases = |active: &Active| active.net.mode == DhcpMode::Server;
        if !after.get(key).is_some_and(leases) {
            memory.seeded = None;
        }
    }
    if changed || before.len() != after.len() {
        let over: Vec<&String> = before.keys().filter(|key| !after.contains_key(*key)).collect();
        // First: nothing is counted of it after that.
        service.dispatch.serve(after);
        for key in over {
            tracing::info!(segment = key, "no longer served");
            service.metrics.forget(key);
        }
    }
    for key in &gone {
        service.metrics.forget_requests(key);
    }
}

fn renew(service: &Service, memories: &mut Memories, segment: &Arc<Segment>, net: &Net) -> Active {
    let lease = Duration::from_secs(u64::from(net.handout.lease_seconds));
    let pool = Pool::of(net);
    let memory = memories.entry(net.key.clone()).or_insert_with(|| Memory {
        uid: segment.metadata.uid.clone(),
        seeded: None,
        leases: Arc::new(Mutex::new(Leases::new(pool.clone(), lease))),
        watch: Arc::default(),
    });
    let active = Active {
        segment: segment.clone(),
        net: Arc::new(net.clone()),
        leases: memory.leases.clone(),
        watch: memory.watch.clone(),
    };
    let mut leases = active.leases();
    leases.reshape(pool.clone(), lease);
    if net.mode == DhcpMode::Server && memory.seeded.as_ref() != Some(&pool) {
        let now = service.dispatch.now();
        for (mac, address) in former_addresses(&service.world.servers.state(), &net.key) {
            leases.seed(mac, address, now);
        }
        memory.seeded = Some(pool);
    }
    drop(leases);
    active
}

/// What the known machines of a Segment had, the surest first: those whose agent is there, then those who were heard last.
///
/// Of each the one address from which its session came, and the NIC that has it by the inventory. We saw that address ourselves, so
/// no machine speaks for more than one; its further NICs find their addresses as everyone does who is not remembered.
fn former_addresses(servers: &[Arc<Server>], segment: &str) -> Vec<(Mac, Ipv4Addr)> {
    let mut known: Vec<_> = servers
        .iter()
        .filter_map(|server| {
            let status = server.status.as_ref()?;
            let session = status
                .session
                .as_ref()
                .filter(|session| session.segment == segment)?;
            let address: Ipv4Addr = session.address.parse().ok()?;
            let has = |written: &String| {
                written
                    .split_once('/')
                    .is_some_and(|(host, _)| host == session.address)
            };
            let inventory = status.inventory.as_ref()?.unpack();
            let mut nics = inventory.nics.iter();
            let nic = nics.find(|nic| nic.mac.is_some() && nic.addresses.iter().any(has))?;
            let there = session.state == SessionState::Connected;
            Some(((there, session.since.as_str()), (nic.mac?, address)))
        })
        .collect();
    known.sort_by(|(one, _), (other, _)| other.cmp(one));
    known.into_iter().map(|(_, had)| had).collect()
}

/// Tells the status writer and the metrics how each Segment fares.
fn report(service: &Service, segments: &[Arc<Segment>], plan: &Plan, doors: &Doors) {
    let actives = service.dispatch.actives();
    let now = service.dispatch.now();
    let mut facts = BTreeMap::new();
    for segment in segments {
        let key = segment::key(segment);
        let Some(planned) = plan.get(&key) else {
            continue;
        };
        let (serving, intruders) = match (planned, actives.get(&key)) {
            (Ok(net), Some(active)) => {
                let intruders = active.watch().present(now);
                count(service, &key, active, &intruders);
                (
                    doors
                        .trouble(net)
                        .or_else(|| service.dispatch.lacks(net))
                        .or_else(|| status::without(&service.closed_ports.of(net)))
                        .map_or_else(|| Ok(status::serving(net)), Err),
                    doors.listens(net).then_some(intruders),
                )
            }
            (Err(invalid), _) => (Err(Trouble::from(invalid)), None),
            (Ok(_), None) => continue,
        };
        facts.insert(
            key,
            Facts {
                generation: segment.metadata.generation,
                serving,
                intruders,
                trust_for_secrets: segment.spec.trust_for_secrets(),
            },
        );
    }
    service.facts.send_if_modified(|former| {
        let changed = *former != facts;
        *former = facts;
        changed
    });
}

fn count(service: &Service, key: &str, active: &Active, intruders: &[Intruder]) {
    let Metrics {
        leases,
        intruders: present,
        ..
    } = &service.metrics;
    let of = BySegment::of(key);
    let leased = active.leases().leased(service.dispatch.now());
    leases
        .get_or_create(&of)
        .set(i64::try_from(leased).unwrap_or(i64::MAX));
    present
        .get_or_create(&of)
        .set(i64::try_from(intruders.len()).unwrap_or(i64::MAX));
}
