//! The calls of `proto/src/session.rs`: who may, what comes in, what goes out.

use std::{future::ready, sync::Arc, time::Instant};

use hyper::{Method, Request, StatusCode};
use muster_proto::{
    inventory::Inventory,
    kinds::{Packed, Server, ServerStatus, Trust},
    session::{
        EnrolRequest, EnrolResponse, InventoryResponse, LogRequest, MAX_BODY, MAX_LOG_BODY, PollRequest,
        PollResponse, Problem, ProblemKind, RenewRequest,
    },
    text,
};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::{
    body, ca,
    calls::{Answering, Content},
    clock,
    edge::{Caller, Edge, On, Peer, unavailable},
    identity::{self, Settled, Word},
    inventory::{self, Lengths},
    jobs,
    metrics::InventoryOutcome,
    poll,
    problem::{Answer, json, problem, refusal, with_status},
};

/// What comes without a certificate may not be large: an identity with hundreds of NICs and a signing request. A usual one has three
/// thousand bytes.
const MAX_ENROL: usize = 256 << 10;
/// A poll, with the log of a failed job, or a renewal.
const MAX_SMALL: usize = 16 << 10;

/// How much of what agents and strangers send is in this replica's memory at once.
#[derive(Debug)]
pub(super) struct Bounds {
    /// How many inventories are understood and stored at once: each is at most [`MAX_BODY`] of text when read, and 4 MiB beside that, since
    /// no more entries of its lists are read than may be stored. That is 96 MiB in all. Nobody holds a place while bytes arrive.
    inventories: Semaphore,
    /// How many bytes of inventories and logs, arriving or arrived and not yet understood, are in memory at once.
    ///
    /// One Server has at most four connections, and one of them an inventory: 8 MiB and three logs, 11 MiB of these 64. Beside these
    /// there are the 96 MiB of `inventories`, the 16 MiB of `large_enrolments`, and what is bounded by the connections alone: `MAX_SMALL`
    /// of each, 1024 times 16 KiB of strangers' and `--max-agents` times 16 KiB of agents', who have shown a certificate. With 16384 of
    /// these that is 448 MiB in all. A poll that is held keeps its texts, which are a part of its 16 KiB, and no list ([`jobs::heard`]).
    arriving: Semaphore,
    /// The same of what enrolments have beyond `MAX_SMALL`: strangers keep out only each other's large ones.
    pub(super) large_enrolments: Semaphore,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            inventories: Semaphore::new(8),
            arriving: Semaphore::new(64 << 20),
            large_enrolments: Semaphore::new(16 << 20),
        }
    }
}

impl Bounds {
    /// Room in which every byte counts.
    fn arriving(&self) -> body::Room<'_> {
        body::Room {
            free: 0,
            bytes: &self.arriving,
        }
    }
}

/// Answers one request of `peer`. Each call has a future of its own: of thousands of polls that are held, none is as large as what
/// seldom comes.
pub(super) fn answer(edge: &Arc<Edge>, peer: &Peer, request: Request<Content>) -> Answering {
    let (edge, peer) = (Arc::clone(edge), peer.clone());
    let (head, content) = request.into_parts();
    macro_rules! call {
        ($call:literal, $carry_out:ident, $show:expr) => {{
            if head.method != Method::POST {
                return missing(StatusCode::METHOD_NOT_ALLOWED, "every call must be a POST");
            }
            let began = Instant::now();
            Box::pin(async move {
                let result = $carry_out(&edge, &peer, content).await;
                if $call != "poll" {
                    edge.metrics.took($call, began.elapsed().as_secs_f64());
                }
                result.map($show).unwrap_or_else(|problem| {
                    tracing::debug!(call = $call, address = %peer.address, "{problem}");
                    refusal(&problem)
                })
            })
        }};
    }
    match head.uri.path() {
        "/v1/enrol" => call!("enrol", enrol, |done| json(&done)),
        "/v1/renew" => call!("renew", renew, |done| json(&done)),
        "/v1/inventory" => call!("inventory", report, |done| json(&done)),
        "/v1/poll" => call!("poll", turn, |done| json(&done)),
        "/v1/log" => call!("log", log, |()| Answer::default()),
        _ => missing(StatusCode::NOT_FOUND, "there is no such call"),
    }
}

fn missing(status: StatusCode, message: &str) -> Answering {
    Box::pin(ready(with_status(
        status,
        &problem(ProblemKind::Malformed, message),
    )))
}

/// All of `content` as JSON, at most [`MAX_SMALL`] bytes of it.
async fn read<T: DeserializeOwned>(content: Content) -> Result<T, Problem> {
    understand(&body::read(content, MAX_SMALL, None).await?)
}

fn understand<T: DeserializeOwned>(arrived: &body::Arrived<'_>) -> Result<T, Problem> {
    serde_json::from_slice(&arrived.bytes)
        .map_err(|error| problem(ProblemKind::Malformed, text::clean(error.to_string().as_bytes())))
}

async fn enrol(edge: &Edge, peer: &Peer, content: Content) -> Result<EnrolResponse, Problem> {
    let room = body::Room {
        free: MAX_SMALL,
        bytes: &edge.bounds.large_enrolments,
    };
    let request: EnrolRequest = understand(&body::read(content, MAX_ENROL, Some(room)).await?)?;
    edge.enrol(request, peer.address).await
}

/// A further certificate for the key of this session: the session is the key, another key is another enrolment.
async fn renew(edge: &Edge, peer: &Peer, content: Content) -> Result<EnrolResponse, Problem> {
    let caller = edge.authenticate(peer).await?;
    if let Err(refused) = edge.renewals.one(caller.name()).ask() {
        return Err(body::refuse(content, refused).await);
    }
    let request: RenewRequest = read(content).await?;
    let caller = edge.still(peer, caller).await?;
    let key = ca::Request::parse(&request.csr)
        .map_err(|error| problem(ProblemKind::Malformed, error.to_string()))?;
    if key.fingerprint != caller.certificate.fingerprint {
        return Err(problem(
            ProblemKind::Malformed,
            "a session keeps its key: renew with the key of the certificate",
        ));
    }
    let keys = edge.keys.borrow().clone();
    let issued = keys
        .ca
        .issue_client(&key, caller.name(), &caller.certificate.session, clock::now());
    let certificate = issued.map_err(|error| {
        tracing::error!(error = %muster_proto::Chain(&error), "no certificate can be issued");
        problem(ProblemKind::Unavailable, "no certificate can be issued now")
    })?;
    let renew_at = ca::ClientCertificate::parse_pem(&certificate).map_or(0, |read| read.renew_at());
    edge.sessions
        .heard(caller.name(), &caller.certificate.fingerprint);
    Ok(EnrolResponse {
        server: caller.name().to_owned(),
        certificate,
        renew_at,
        time: clock::now(),
        ca_pem: keys.ca.bundle.clone(),
    })
}

async fn report(edge: &Edge, peer: &Peer, content: Content) -> Result<InventoryResponse, Problem> {
    let stored = async {
        let caller = edge.authenticate(peer).await?;
        let Some(_turn) = edge.reporting.take(caller.name().to_owned()) else {
            let busy = problem(
                ProblemKind::Unavailable,
                "another inventory of this machine is being received; try again",
            );
            return Err(body::refuse(content, busy).await);
        };
        // Before it takes memory and a place: what is the same as before costs no write, and could come without an end.
        if let Err(refused) = edge.reports.one(caller.name()).ask() {
            return Err(body::refuse(content, refused).await);
        }
        let arrived = body::read(content, MAX_BODY, Some(edge.bounds.arriving())).await?;
        let _room = edge
            .bounds
            .inventories
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let reported: Inventory = understand(&arrived)?;
        let sent: Lengths = understand(&arrived)?;
        drop(arrived);
        let fitted = inventory::fit(reported, &sent);
        let caller = edge.still(peer, caller).await?;
        edge.sessions
            .heard(caller.name(), &caller.certificate.fingerprint);
        store(edge, &caller, &fitted).await
    };
    match stored.await {
        Ok(written) => {
            edge.metrics.inventory(if written {
                InventoryOutcome::Stored
            } else {
                InventoryOutcome::Unchanged
            });
            Ok(InventoryResponse { time: clock::now() })
        }
        Err(problem) => {
            edge.metrics.inventory(InventoryOutcome::Refused);
            Err(problem)
        }
    }
}

/// Stores `reported` as the inventory of the caller's Server; false if it was stored already.
async fn store(edge: &Edge, caller: &Caller, reported: &Inventory) -> Result<bool, Problem> {
    let now = clock::rfc3339(clock::now());
    let mut write = edge.inventory_writes.one(caller.name());
    let change = |server: &Server| {
        if !caller.owns(server) {
            return None;
        }
        let status = server.status.clone().unwrap_or_default();
        // A report takes nothing from anybody, wherever it comes from.
        let on = On {
            segment: status.session.as_ref().map_or("", |session| &session.segment),
            trust: Trust::Unknown,
        };
        let settled = edge.with_machines(&reported.identity, None, &on, |machines| {
            identity::settle(
                caller.name(),
                &status.identity,
                &reported.identity,
                None,
                machines,
                Word::Report,
            )
        });
        let after = inventoried(status.clone(), &settled, reported, &now);
        (after == status || write.may()).then_some(after)
    };
    let updated = match edge.store.update(caller.name(), change).await {
        Ok(updated) => updated,
        Err(error) => {
            let problem = write.refusal().unwrap_or_else(|| unavailable(&error));
            write.failed();
            return Err(problem);
        }
    };
    edge.spread(&updated.server, &std::collections::BTreeSet::new())
        .await
        .map_err(|error| unavailable(&error))?;
    Ok(updated.written)
}

/// `status` with `reported` in it.
fn inventoried(mut status: ServerStatus, settled: &Settled, reported: &Inventory, now: &str) -> ServerStatus {
    let trust = status.session.as_ref().map(|session| session.trust);
    let known = status
        .inventory
        .as_ref()
        .is_some_and(|known| inventory::same_machine_state(&known.unpack(), reported));
    if !known || status.inventory_trust != trust {
        status.inventory = Some(Packed::new(reported));
        status.inventoried = Some(now.to_owned());
        status.inventory_trust = trust;
    }
    status.identity = settled.identity.clone();
    // A report sees part of the machine only: it ends no clash that an enrolment found.
    identity::add_clashes(&mut status.clashes, &settled.clashes);
    status
}

pub(super) async fn turn(edge: &Arc<Edge>, peer: &Peer, content: Content) -> Result<PollResponse, Problem> {
    let caller = Box::pin(edge.authenticate(peer)).await?;
    let request: PollRequest = jobs::heard(Box::pin(read(content)).await?);
    poll::answer(edge, peer, caller, &request).await
}

async fn log(edge: &Edge, peer: &Peer, content: Content) -> Result<(), Problem> {
    let caller = edge.authenticate(peer).await?;
    if let Err(refused) = edge.logs.one(caller.name()).ask() {
        return Err(body::refuse(content, refused).await);
    }
    let room = edge.bounds.arriving();
    let request: LogRequest = understand(&body::read(content, MAX_LOG_BODY, Some(room)).await?)?;
    for line in &request.lines.kept {
        let line = text::clean_to(line.as_bytes(), jobs::MAX_LINE);
        tracing::info!(target: "agent", server = %caller.name(), "{line}");
    }
    let more = request.lines.all - request.lines.kept.len();
    if more > 0 {
        tracing::info!(target: "agent", server = %caller.name(), more, "lines left out");
    }
    Ok(())
}
