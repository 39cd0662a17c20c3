//! What all calls share: the state of this replica, who a certificate speaks for, and what people are told.

use std::{
    cmp::Ordering,
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Resource, ResourceExt};
use muster_proto::{
    Chain, Mac,
    identity::Identity,
    kinds::{BareMetalHost, Segment, Server, Session, SessionState, Trust},
    session::{Problem, ProblemKind},
};
use tokio::sync::{mpsc, watch};

use super::{
    ca::ClientCertificate,
    identity::{self, MAX_CLASHES, Machine, Seen},
    keys::Keys,
    limits::RateLimit,
    metrics::Metrics,
    problem::problem,
    progress::Progresses,
    routes::Bounds,
    sessions::Sessions,
    store::{Store, StoreError},
};
use crate::{
    boot::segment::{self, Subnet},
    events::{Event, Events},
    host::State,
    log::Refusals,
    machines::Signal,
    quota::Quota,
    sync::lock,
};

/// The Segment on which a machine speaks.
#[derive(Clone, Copy, Debug)]
pub(super) struct On<'a> {
    /// Its key, `namespace/name`.
    pub(super) segment: &'a str,
    /// What it asks for before it gives out secrets.
    pub(super) trust: Trust,
}

/// This replica's side of the agents.
#[derive(Debug)]
pub(super) struct Edge {
    pub(super) store: Store,
    pub(super) events: Events,
    pub(super) keys: watch::Receiver<Keys>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) refusals: Refusals,
    pub(super) bounds: Bounds,
    /// How often an inventory of each Server is read.
    pub(super) reports: RateLimit,
    /// How often each Server may have written what it is.
    pub(super) inventory_writes: RateLimit,
    /// The same of what its polls tell.
    pub(super) poll_writes: RateLimit,
    /// How often each may say something for our log.
    pub(super) logs: RateLimit,
    /// How often the certificate of each may be renewed.
    pub(super) renewals: RateLimit,
    /// How often a job of each Server may be read anew.
    pub(super) job_reads: RateLimit,
    /// How often it may be asked for each key whose its Server is, because the watched copy shows it as another's.
    pub(super) owner_reads: RateLimit,
    /// How often each token may be shown.
    pub(super) enrolments: RateLimit,
    /// How often each token may be shown by somebody else than who spent it, before nothing is written for that any more.
    pub(super) contests: RateLimit,
    /// How often retries with each token may change what its Server is: whoever retries may claim to be another machine each time.
    pub(super) retries: RateLimit,
    /// How often the progress of each Server's job was written.
    pub(super) progress: Progresses,
    /// Servers whose inventory is on its way: one at a time for each.
    pub(super) reporting: Arc<Quota<String>>,
    /// Servers of which is being written how a job went: once at a time for each.
    pub(super) telling: Arc<Quota<String>>,
    /// Machines whose enrolment is under way and whose Server may not exist yet, by name.
    pub(super) pending: Mutex<HashMap<String, Pending>>,
    /// True once this replica is to end: held polls are answered.
    pub(super) ending: watch::Receiver<bool>,
    /// Held, as a sender, by what this replica does not leave half done when it ends.
    pub(super) under_way: mpsc::WeakSender<()>,
}

/// A machine whose enrolment is under way.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) identity: Identity,
    /// `namespace/name`.
    pub(super) segment: String,
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    /// The certificate that TLS accepted; `None` in it: ours, but no agent's.
    pub(super) certificate: Option<Option<Arc<ClientCertificate>>>,
}

/// A call's right to speak: the Server and its session as they stood when that was checked.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) certificate: Arc<ClientCertificate>,
    pub(super) server: Arc<Server>,
}

impl Caller {
    pub(super) fn name(&self) -> &str {
        &self.certificate.server
    }

    /// True if `server` still belongs to this session.
    pub(super) fn owns(&self, server: &Server) -> bool {
        owner(&self.certificate, server).is_some()
    }
}

/// The session of `server`, if `certificate` is its certificate and nobody contests it.
pub(super) fn owner<'a>(certificate: &ClientCertificate, server: &'a Server) -> Option<&'a Session> {
    let status = server.status.as_ref().filter(|status| !status.contested)?;
    status
        .session
        .as_ref()
        .filter(|session| session.key == certificate.fingerprint)
}

impl Edge {
    /// Who speaks through `peer`. Every later step is bound to that Server, never to a name in a body.
    ///
    /// The watched copy suffices to say yes, so that sessions go on while the API server is away; no is said only by the API server.
    pub(super) async fn authenticate(&self, peer: &Peer) -> Result<Caller, Problem> {
        let refused = |message: &str| problem(ProblemKind::Certificate, message);
        let certificate = match &peer.certificate {
            Some(Some(certificate)) => certificate,
            Some(None) => return Err(refused("this certificate does not belong to an agent")),
            None => return Err(refused("this call requires the certificate of an enrolment")),
        };
        if self.has_ended(certificate) {
            return Err(refused(
                "the certificate has expired; reboot the machine for a new one",
            ));
        }
        let enrolment = self.store.enrolment(&certificate.session);
        if let Some(contested) = enrolment.filter(|enrolment| enrolment.spec.contested) {
            // Who contested it may have come before there was a session that could be marked. It is tried again with a later call.
            if self.owner_reads.one(&certificate.fingerprint).may()
                && let Err(error) = self.mark_contested(&contested.spec).await
            {
                tracing::warn!(server = %certificate.server, error = %Chain(&error), "a contested session was refused, but could not be marked yet");
            }
            return Err(refused(
                "the certificate is revoked: its boot token was also presented with another key",
            ));
        }
        if let Some(server) = self.known_server(certificate) {
            return Ok(Caller {
                certificate: Arc::clone(certificate),
                server,
            });
        }
        // A session of the past asks each time that it calls, which costs it nothing.
        let mut read = self.owner_reads.one(&certificate.fingerprint);
        read.ask()?;
        match self.store.fetch_server(&certificate.server).await {
            Ok(server) if owner(certificate, &server).is_some() => Ok(Caller {
                certificate: Arc::clone(certificate),
                server,
            }),
            Ok(_) => Err(refused("a newer session of this machine has replaced this one")),
            Err(StoreError::Gone { .. }) => Err(refused("the Server of this certificate was deleted")),
            Err(error) => {
                read.failed();
                Err(unavailable(&error))
            }
        }
    }

    /// True if `certificate` has ended by our clock and by the API server's: one that is ahead alone sends no machine away in the middle of a
    /// write. Where the API server has never said what time it is, none has: what ends a session otherwise, a newer one, a token that was
    /// contested or a Server that was deleted, ends it all the same.
    fn has_ended(&self, certificate: &ClientCertificate) -> bool {
        let ended = |now: i64| certificate.not_after < now;
        let there = self.store.world.watches.clock.now();
        ended(super::clock::now()) && there.is_some_and(|there| ended(there.as_second()))
    }

    /// The Server of `certificate`, if it is known without a request that it is its session's.
    fn known_server(&self, certificate: &ClientCertificate) -> Option<Arc<Server>> {
        let known = self.store.server(&certificate.server);
        known.filter(|server| owner(certificate, server).is_some())
    }

    /// True if it is known without a request that `certificate` speaks for its Server.
    pub(super) fn is_agents(&self, certificate: &ClientCertificate) -> bool {
        !self.has_ended(certificate) && self.known_server(certificate).is_some()
    }

    /// `caller`, if the Server is still its session's: before a late call is taken for a sign of life of the one that is there now.
    pub(super) async fn still(&self, peer: &Peer, caller: Caller) -> Result<Caller, Problem> {
        match self.store.server(caller.name()) {
            Some(now) if caller.owns(&now) => Ok(Caller {
                server: now,
                ..caller
            }),
            _ => self.authenticate(peer).await,
        }
    }

    /// Runs `ask` over the machines with which one that claims `claimed` and booted from `boot` has to be compared: the Servers that
    /// share a signal or a name with it, and those whose enrolment is under way. Any other is another machine, whatever else it is.
    pub(super) fn with_machines<T>(
        &self,
        claimed: &Identity,
        boot: Option<Mac>,
        on: &On<'_>,
        ask: impl FnOnce(&[Machine<'_>]) -> T,
    ) -> T {
        let pending = self.pending().clone();
        self.among_machines(&pending, claimed, boot, on, ask)
    }

    /// The same for one who holds [`Edge::pending`] already.
    pub(super) fn among_machines<T>(
        &self,
        pending: &HashMap<String, Pending>,
        claimed: &Identity,
        boot: Option<Mac>,
        on: &On<'_>,
        ask: impl FnOnce(&[Machine<'_>]) -> T,
    ) -> T {
        let signals: Vec<Signal> = Signal::of(claimed)
            .chain(boot.map(Signal::Mac))
            .chain(identity::base_name(claimed, boot).map(Signal::Stem))
            // One that is there already is known by what it is, not by what its enrolment claims.
            .chain(pending.keys().cloned().map(Signal::Stem))
            .collect();
        let servers = self.store.servers_with(&signals);
        let nobody = Identity::default();
        let mut machines: Vec<Machine<'_>> = servers
            .iter()
            .map(|server| self.machine(server, on, &nobody))
            .collect();
        // A Server that was made and has no status yet is known by what its enrolment claims.
        for (name, pending) in pending {
            let machine = Machine {
                name,
                identity: &pending.identity,
                live: true,
                booted: None,
                in_use: false,
                seen: self.seen(on, &pending.segment),
            };
            match machines.iter_mut().find(|machine| machine.name == name) {
                Some(made) if made.identity.is_empty() => *made = machine,
                Some(_) => {}
                None => machines.push(machine),
            }
        }
        ask(&machines)
    }

    /// Where one that is `on` a Segment is, as seen from the Segment called `known`: `namespace/name`, or a name in our own namespace.
    fn seen(&self, on: &On<'_>, known: &str) -> Seen {
        if known.is_empty() || known == on.segment {
            return Seen::There;
        }
        let Some(segment) = self.store.known_segment(known) else {
            return Seen::Elsewhere;
        };
        if segment::key(&segment) == on.segment {
            return Seen::There;
        }
        match segment.spec.trust_for_secrets().cmp(&on.trust) {
            Ordering::Greater => Seen::WithLessTrust,
            Ordering::Equal => Seen::Elsewhere,
            Ordering::Less => Seen::WithMoreTrust,
        }
    }

    /// The machine that `server` stands for, beside one that is `on` a Segment; known as `nobody` where that says nothing.
    pub(super) fn machine<'a>(&self, server: &'a Server, on: &On<'_>, nobody: &'a Identity) -> Machine<'a> {
        let status = server.status.as_ref();
        let session = status.and_then(|status| status.session.as_ref());
        Machine {
            name: server.metadata.name.as_deref().unwrap_or_default(),
            identity: status.map_or(nobody, |status| &status.identity),
            live: session.is_some_and(|session| session.state == SessionState::Connected),
            booted: session.and_then(|session| session.boot_mac),
            // A host that is not seen here is not absent.
            in_use: server.spec.host.is_some()
                && self.store.world.host_of(server).is_none_or(|host| in_use(&host)),
            seen: self.seen(on, session.map_or("", |session| &session.segment)),
        }
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, HashMap<String, Pending>> {
        lock(&self.pending)
    }

    pub(super) fn tell(&self, about: ObjectReference, warning: bool, reason: &'static str, message: String) {
        self.events.record(Event {
            about,
            related: None,
            warning,
            reason,
            message,
        });
    }

    /// Tells about `server` and about its host.
    pub(super) fn warn_server(&self, server: &Server, reason: &'static str, message: &str) {
        tracing::warn!(server = %server.name_any(), reason, "{message}");
        self.tell(server.object_ref(&()), true, reason, message.to_owned());
        if let Some(host) = self.store.world.host_of(server) {
            self.tell(host.object_ref(&()), true, reason, message.to_owned());
        }
    }

    /// The Segment that `address` lies in, as well as can be told.
    pub(super) fn segment_at(&self, address: IpAddr) -> Option<Arc<Segment>> {
        let IpAddr::V4(address) = address else { return None };
        self.store.world.segments.find(|segment| {
            let subnet = segment.spec.subnet.parse::<Subnet>();
            subnet.is_ok_and(|subnet| subnet.contains(address))
        })
    }

    /// Shares what one Server's settled identity means for others: addresses that left them, clashes that began or ended.
    /// Repeats to the same end. People are told of a clash by discovery, which sees it on both Servers and knows their hosts.
    pub(super) async fn spread(
        &self,
        server: &Server,
        moved: &std::collections::BTreeSet<(String, muster_proto::Mac)>,
    ) -> Result<(), StoreError> {
        let name = server.name_any();
        let clashes = server
            .status
            .as_ref()
            .map(|status| status.clashes.clone())
            .unwrap_or_default();
        // Of more clashes than are kept, nobody here knows which have ended.
        let may_be_cut = clashes.len() >= MAX_CLASHES;
        let mut touched: Vec<String> = clashes.clone();
        touched.extend(moved.iter().map(|(other, _)| other.clone()));
        let shows_us = |other: &Arc<Server>| {
            other
                .status
                .as_ref()
                .is_some_and(|status| status.clashes.contains(&name))
        };
        touched.extend(
            self.store
                .servers_with(&[Signal::Clash(name.clone())])
                .iter()
                .filter(|other| !may_be_cut && shows_us(other))
                .map(|other| other.name_any()),
        );
        touched.sort_unstable();
        touched.dedup();
        for other in touched.iter().filter(|other| **other != name) {
            let change = |object: &Server| {
                let mut status = object.status.clone().unwrap_or_default();
                status
                    .identity
                    .macs
                    .retain(|mac| !moved.contains(&(other.clone(), *mac)));
                if clashes.contains(other) {
                    identity::add_clashes(&mut status.clashes, [&name]);
                } else if !may_be_cut {
                    status.clashes.retain(|clash| *clash != name);
                }
                Some(status)
            };
            match self.store.update(other, change).await {
                // One that was deleted or is not made yet shows nothing.
                Ok(_) | Err(StoreError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The answer to a call in a session that Kubernetes kept from being carried out.
pub(super) fn unavailable(error: &StoreError) -> Problem {
    match error {
        StoreError::Gone { .. } => problem(
            ProblemKind::Certificate,
            "the Server of this session was deleted; reboot the machine",
        ),
        StoreError::Refused { .. } => problem(ProblemKind::Malformed, Chain(error).to_string()),
        StoreError::CalledOff => problem(ProblemKind::Certificate, error.to_string()),
        _ => {
            tracing::warn!(error = %Chain(error), "a call could not be carried out");
            problem(
                ProblemKind::Unavailable,
                "Kubernetes does not answer; nothing is lost, try again",
            )
        }
    }
}

/// True for a host that carries someone's data, or that someone claimed.
fn in_use(host: &BareMetalHost) -> bool {
    host.spec.consumer_ref.is_some() || State::of(host).may_carry_data()
}
