//! The edge role: network boot, and the agents' side.

use std::sync::Arc;

use muster_proto::Chain;
use tokio::sync::watch;

use super::{Parts, RunError, spawn};
use crate::{
    agents::{self, Keys, Names},
    bind::Addresses,
    boot::{
        dhcp::{self, ClosedByService, Dhcp},
        files::{Extras, Files},
        http::{self, anew::Anew, site::Site},
        peers::Peers,
        segment::{self, Plan, Ports},
        tftp,
        wake::Waker,
    },
    events::Events,
    log::Refusals,
    token::BootSecrets,
};

/// Starts its parts.
pub(super) fn start(parts: &mut Parts<'_>) -> Result<(), RunError> {
    let args = parts.args;
    let ports = Ports {
        http: args.http_port,
        agents: args.agent_port,
    };
    let extras = Extras {
        firmware: args.firmware_dirs.clone(),
        authorities: args.extra_cas.clone(),
    };
    let files = Arc::new(Files::open(&args.boot_dir, extras, &std::env::temp_dir()));
    let (tell_plan, plan) = watch::channel(Arc::default());
    let (tell_addresses, addresses) = watch::channel(Addresses::new());
    let (tell_names, names) = watch::channel(Names::default());
    let (tell_secrets, secrets) = watch::channel(None);
    let peers = Peers::default();
    let closed_ports = ClosedByService::default();
    let (events, write_events) = Events::start(parts.client.clone(), parts.dropped.clone());
    spawn(parts.tasks, "the writer of Events", write_events);

    let dhcp = Dhcp {
        world: parts.world.clone(),
        ports,
        releases: Arc::clone(&files) as _,
        secrets: secrets.clone(),
        client: parts.client.clone(),
        edge: args.edge_name(),
        events: events.clone(),
        metrics: dhcp::Metrics::register(parts.registry),
        plan: tell_plan,
        closed_ports: closed_ports.clone(),
        shutdown: parts.shutdown.clone(),
    };
    let advertise = args.advertised();
    let site = Site {
        world: parts.world.clone(),
        plan: plan.clone(),
        files,
        secrets,
        anew: Anew::through(parts.client.clone()),
        events: events.clone(),
        said: Refusals::default(),
    };
    let http = http::Server {
        answer: site,
        addresses: addresses.clone(),
        port: args.http_port,
        closed_ports: closed_ports.boot.clone(),
        limits: http::Limits::default(),
        peers: peers.clone(),
        metrics: http::Metrics::register(parts.registry),
    };
    let tftp = tftp::Server {
        files: tftp::BootFiles::load(&args.ipxe_dir).map_err(RunError::BootFiles)?,
        addresses: addresses.clone(),
        port: args.tftp_port,
        closed_ports: closed_ports.boot.clone(),
        limits: tftp::Limits::default(),
        peers,
    };
    let waker = Waker {
        world: parts.world.clone(),
        changes: parts.changes.subscribe(),
        plan: plan.clone(),
    };
    parts.spawn("Wake-on-LAN", waker.run());
    parts.spawn(
        "the follower of Segments",
        follow(plan, advertise, tell_addresses, tell_names),
    );
    parts.spawn("DHCP", dhcp.run());
    parts.spawn("HTTP", http.run());
    parts.spawn("TFTP", tftp.run());

    let (client, namespace) = (parts.client.clone(), args.namespace.clone());
    let (world, changes) = (parts.world.clone(), parts.changes.subscribe());
    let metrics = agents::Metrics::register(parts.registry);
    let (agent_port, max_agents) = (args.agent_port, args.max_agents);
    let mut shutdown = parts.shutdown.clone();
    parts.spawn("the agents' side", async move {
        let keys = tokio::select! {
            keys = agents::keys::watch(client.clone(), namespace.clone(), world.watches.clone()) => keys,
            _ = shutdown.wait_for(|stopped| *stopped) => return,
        };
        let config = agents::Config {
            client,
            namespace,
            world,
            changes,
            events,
            keys: keys.clone(),
            names,
            metrics,
            pace: agents::Pace::default(),
            max_agents,
        };
        let server = match agents::Server::new(config).await {
            Ok(server) => server,
            Err(error) => return tracing::error!(error = %Chain(&error), "no agents can be served"),
        };
        let stopped = async {
            let _ = shutdown.wait_for(|stopped| *stopped).await;
        };
        tokio::select! {
            () = server.run(addresses, agent_port, closed_ports.agents, stopped) => {}
            () = hand_over(keys, tell_secrets) => {}
        }
    });
    Ok(())
}

/// Tells the other services where the Segments want them, and under which names.
async fn follow(
    mut plan: watch::Receiver<Arc<Plan>>,
    advertise: Vec<String>,
    addresses: watch::Sender<Addresses>,
    names: watch::Sender<Names>,
) {
    loop {
        let now = plan.borrow_and_update().clone();
        addresses.send_if_modified(|known| replace(known, segment::served(&now)));
        let endpoints = now.values().flatten().flat_map(|net| &net.agent_endpoints);
        let dialled = Names::new(segment::served(&now), endpoints.chain(&advertise));
        names.send_if_modified(|known| replace(known, dialled));
        if plan.changed().await.is_err() {
            // DHCP has ended, because the process does.
            return std::future::pending().await;
        }
    }
}

/// Puts `new` in the place of `known`; true if they differ.
fn replace<T: PartialEq>(known: &mut T, new: T) -> bool {
    let changed = *known != new;
    *known = new;
    changed
}

/// Gives the boot services what they need of the keys, for ever.
async fn hand_over(mut keys: watch::Receiver<Keys>, secrets: watch::Sender<Option<Arc<BootSecrets>>>) {
    loop {
        let now = keys.borrow_and_update().boot_secrets();
        secrets.send_replace(Some(Arc::new(now)));
        if keys.changed().await.is_err() {
            // The last keys hold.
            return std::future::pending().await;
        }
    }
}
