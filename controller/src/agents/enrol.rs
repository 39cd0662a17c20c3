//! Enrolment: a one-time token and a key become a session of a Server.
//!
//! Creating the Enrolment spends the token; all that follows can be done again. So an agent that heard no answer asks again with the
//! same token and key, and wherever the first attempt ended, the second one ends in the same place with the same certificate:
//!
//! 1. open the token, find its Segment, check the quota;
//! 2. say which machine it is ([`super::identity`]) and make its certificate;
//! 3. create the Enrolment ([`super::spend`]): who comes second with the same key goes on with what is stored, with another key it is
//!    contested;
//! 4. make the Server, pointing at the host that declares it, write its session, its aliases, its clashes;
//! 5. look whether the Enrolment was contested meanwhile.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use kube::{Resource, ResourceExt};
use muster_proto::{
    Mac,
    identity::Identity,
    kinds::{
        BareMetalHost, Enrolment, HostReference, Segment, Server, ServerSpec, ServerStatus, Session,
        SessionState, Trust, UnknownPolicy,
    },
    session::{EnrolRequest, EnrolResponse, PROTOCOL, Problem, ProblemKind},
    text,
};

use super::{
    ca::{ClientCertificate, Request},
    clock,
    edge::{Edge, On, Pending, unavailable},
    identity::{self, Machine, Resolved, Settled, Word},
    metrics::EnrolOutcome,
    problem::problem,
    spend::{Spent, enrolment_name},
    store::StoreError,
};
use crate::{
    boot::{lookup::Known, policy::Verdict, segment},
    discovery,
    machines::Signal,
    path::Path,
    token::{Claims, TokenError},
};

/// So far ahead the time of a token may be for its agent to wait for that, in seconds: a new one needs a boot.
const SOON: i64 = 900;
/// The most Enrolments of one Server within [`RECENT`]: a machine boots a few times an hour, a flood more often.
const MAX_OF_ONE_SERVER: usize = 60;
/// In seconds.
const RECENT: i64 = 2 * 3600;

/// An enrolment that did not come about.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) outcome: EnrolOutcome,
    pub(super) problem: Problem,
}

impl Refused {
    pub(super) fn new(outcome: EnrolOutcome, kind: ProblemKind, message: impl Into<String>) -> Refused {
        Refused {
            outcome,
            problem: problem(kind, message),
        }
    }

    /// It has had its share of what is asked.
    pub(super) fn too_often(problem: Problem) -> Refused {
        Refused {
            outcome: EnrolOutcome::Quota,
            problem,
        }
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let problem = match error {
            // Someone deleted what this enrolment had just made: the next attempt makes it again.
            StoreError::Gone { .. } => problem(
                ProblemKind::Unavailable,
                "the Server was deleted meanwhile; try again",
            ),
            error => unavailable(&error),
        };
        let transient = problem.kind.is_transient();
        let outcome = if transient {
            EnrolOutcome::Unavailable
        } else {
            EnrolOutcome::Malformed
        };
        Refused { outcome, problem }
    }
}

/// A request whose token and key are checked.
pub(super) struct Applicant {
    /// Name of the Enrolment that the token is spent by.
    pub(super) enrolment: String,
    pub(super) claims: Claims,
    pub(super) request: Request,
    /// What it claims to be, cleaned, with the address that boots.
    identity: Identity,
    boot: Option<Mac>,
    agent_version: String,
    /// What secrets are sealed to, base64; empty if it is no key.
    seal_key: String,
    address: IpAddr,
}

impl Applicant {
    /// Where it enrols: on `segment`, which is that of its token.
    fn on(&self, segment: &Segment) -> On<'_> {
        On {
            segment: &self.claims.segment,
            trust: segment.spec.trust_for_secrets(),
        }
    }
}

/// Keeps others from taking a name or an identity while its enrolment is under way.
struct Reserved<'a> {
    edge: &'a Edge,
    name: String,
    /// The name is a new one.
    new: bool,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.new {
            return;
        }
        self.edge.pending().remove(&self.name);
    }
}

impl Edge {
    /// Carries out `POST /v1/enrol`, counts it and tells about refusals.
    pub(super) async fn enrol(
        &self,
        request: EnrolRequest,
        address: IpAddr,
    ) -> Result<EnrolResponse, Problem> {
        match self.try_enrol(request, address).await {
            Ok((response, spent)) => {
                let outcome = if spent == Spent::Now {
                    EnrolOutcome::Accepted
                } else {
                    EnrolOutcome::Retried
                };
                self.metrics.enrolment(outcome);
                tracing::info!(server = %response.server, %address, ?outcome, "enrolled");
                Ok(response)
            }
            Err(Refused { outcome, problem }) => {
                self.metrics.enrolment(outcome);
                if let Some(left_out) = self.refusals.say(address, &problem.message) {
                    tracing::warn!(%address, ?outcome, left_out, "enrolment refused: {}", problem.message);
                }
                Err(problem)
            }
        }
    }

    async fn try_enrol(
        &self,
        request: EnrolRequest,
        address: IpAddr,
    ) -> Result<(EnrolResponse, Spent), Refused> {
        let now = clock::now();
        let applicant = self.admit(&request, address, now)?;
        // Who shares its token hears that, however often the other one asks.
        self.still_alone(&applicant).await?;
        // Before the first question to the API server, which is for the Segment of a token that the watched copy does not show.
        let mut right = self.enrolments.one(&applicant.enrolment);
        right.ask().map_err(Refused::too_often)?;
        let segment = self.segment_for(&applicant.claims).await?;
        let reserved = self.recognise(&applicant, &segment)?;
        self.is_wanted(&applicant, &segment, &reserved)?;
        self.within_quota(&applicant, &segment, &reserved, now)?;
        let (enrolment, spent) = self.spend(&applicant, &reserved.name, now).await?;
        // Spent before, the token names its Server; what was reserved for this attempt is free again, unless it is the same.
        let reserved = if enrolment.spec.server == reserved.name {
            Some(reserved)
        } else {
            None
        };
        if spent == Spent::Before {
            self.not_superseded(&enrolment)?;
        }
        let server = self
            .begin_session(&applicant, &segment, &enrolment, spent)
            .await?;
        drop(reserved);
        self.still_alone(&applicant).await?;
        let (name, key) = (&enrolment.spec.server, &applicant.request.fingerprint);
        // Unless the machine has enrolled once more meanwhile: its latest session is the one that is here.
        let newest = self.store.server(name);
        if newest.is_some_and(|server| server.session().is_some_and(|session| session.key == *key)) {
            self.sessions.heard(name, key);
        }
        if spent == Spent::Now {
            let message = format!(
                "agent {} enrolled from {address} on {}",
                applicant.agent_version, applicant.claims.segment
            );
            self.tell(server.object_ref(&()), false, "Enrolled", message);
        }
        let certificate = ClientCertificate::parse_pem(&enrolment.spec.certificate).ok_or_else(|| {
            Refused::new(
                EnrolOutcome::Forged,
                ProblemKind::Token,
                "the stored certificate is damaged; reboot the machine",
            )
        })?;
        let response = EnrolResponse {
            server: enrolment.spec.server.clone(),
            certificate: enrolment.spec.certificate.clone(),
            renew_at: certificate.renew_at(),
            time: clock::now(),
            ca_pem: self.keys.borrow().ca.bundle.clone(),
        };
        Ok((response, spent))
    }

    /// Checks all that needs no request to Kubernetes.
    fn admit(&self, request: &EnrolRequest, address: IpAddr, now: i64) -> Result<Applicant, Refused> {
        if major(&request.protocol) != major(PROTOCOL) {
            let spoken = text::clean(request.protocol.as_bytes());
            let message = format!("this controller speaks protocol {PROTOCOL}, the agent {spoken:?}");
            return Err(Refused::new(
                EnrolOutcome::Malformed,
                ProblemKind::Version,
                message,
            ));
        }
        let opened = self.keys.borrow().token.open(&request.token, now);
        let claims = opened.map_err(|error| self.token_refused(&error, address))?;
        let key = Request::parse(&request.csr).map_err(|error| {
            Refused::new(EnrolOutcome::Malformed, ProblemKind::Malformed, error.to_string())
        })?;
        // The token says which address asked for the boot files; only if that request did not tell, the agent is asked.
        let boot = Some(claims.mac)
            .filter(|mac| mac.is_unicast())
            .or(request.boot_mac.filter(|mac| mac.is_unicast()));
        let mut agent_version = text::clean(request.agent_version.as_bytes());
        agent_version.truncate(agent_version.floor_char_boundary(64));
        Ok(Applicant {
            enrolment: enrolment_name(&request.token),
            identity: identity::whole(&request.identity, boot),
            boot,
            claims,
            request: key,
            agent_version,
            seal_key: muster_proto::seal::public_key(&request.seal_key)
                .map(|_| request.seal_key.clone())
                .unwrap_or_default(),
            address,
        })
    }

    fn token_refused(&self, error: &TokenError, address: IpAddr) -> Refused {
        let outcome = match error {
            TokenError::Forged => EnrolOutcome::Forged,
            TokenError::Expired { .. } | TokenError::Future { .. } => EnrolOutcome::Expired,
        };
        let segment = match error {
            TokenError::Forged => self.segment_at(address),
            TokenError::Expired { claims, .. } | TokenError::Future { claims, .. } => self
                .store
                .world
                .segments
                .find(|segment| segment::key(segment) == claims.segment),
        };
        if let Some(segment) = segment {
            // No number and no address in it, so that a flood of them stays one Event.
            let message = match outcome {
                EnrolOutcome::Forged => {
                    "a boot token that this installation did not issue was presented; next: if muster-token-key was replaced, reboot the \
                     machines; otherwise find out who presented it"
                }
                _ => {
                    "a boot token was presented outside its one-hour lifetime; next: check the edges' clocks, or find out who presented it"
                }
            };
            self.tell(segment.object_ref(&()), true, "TokenRefused", message.to_owned());
        }
        let kind = match error {
            // The clock of one of two edges is wrong: the other one may take it, or this one soon.
            TokenError::Future { ahead, .. } if *ahead <= SOON => ProblemKind::Unavailable,
            // This one's was set back: a new token is there sooner.
            TokenError::Future { .. } | TokenError::Forged | TokenError::Expired { .. } => ProblemKind::Token,
        };
        Refused::new(outcome, kind, error.to_string())
    }

    async fn segment_for(&self, claims: &Claims) -> Result<Arc<Segment>, Refused> {
        self.store.segment(&claims.segment).await?.ok_or_else(|| {
            let message = format!("Segment {} of this token no longer exists", claims.segment);
            Refused::new(EnrolOutcome::Forged, ProblemKind::Token, message)
        })
    }

    /// Says which machine it is and reserves its name, in one step: of two requests at once the second one sees the first. A new name
    /// may be taken by another replica, which the making of the Server tells ([`Edge::make_server`]).
    fn recognise(&self, applicant: &Applicant, segment: &Segment) -> Result<Reserved<'_>, Refused> {
        let mut pending = self.pending();
        let resolved = self
            .among_machines(
                &pending,
                &applicant.identity,
                applicant.boot,
                &applicant.on(segment),
                |machines| resolve(applicant, machines),
            )
            .map_err(|nobody| {
                Refused::new(
                    EnrolOutcome::Malformed,
                    ProblemKind::Malformed,
                    nobody.to_string(),
                )
            })?;
        if resolved.new {
            let claim = Pending {
                identity: applicant.identity.clone(),
                segment: applicant.claims.segment.clone(),
            };
            pending.insert(resolved.name.clone(), claim);
        }
        Ok(Reserved {
            edge: self,
            name: resolved.name,
            new: resolved.new,
        })
    }

    /// A token proves that its holder fetched boot files within the last hour; what the Segment says of unknown machines may have
    /// changed since, and is held here, too.
    fn is_wanted(
        &self,
        applicant: &Applicant,
        segment: &Segment,
        reserved: &Reserved<'_>,
    ) -> Result<(), Refused> {
        if !reserved.new {
            return Ok(());
        }
        let uuid = applicant.identity.system_uuid.as_deref();
        let silence = |mac: &Mac| {
            let known = Known::of(&self.store.world, *mac, uuid);
            matches!(known.verdict(segment), Verdict::Silence(_))
        };
        // As it was judged when it booted; only a boot that told no address is judged by all of them.
        let unknown = segment.spec.unknown == UnknownPolicy::Ignore
            && match &applicant.boot {
                Some(mac) => silence(mac),
                None => applicant.identity.macs.iter().all(silence),
            };
        if unknown {
            let message = format!("Segment {} ignores unknown machines", applicant.claims.segment);
            return Err(Refused::new(EnrolOutcome::Unwanted, ProblemKind::Token, message));
        }
        Ok(())
    }

    fn within_quota(
        &self,
        applicant: &Applicant,
        segment: &Segment,
        reserved: &Reserved<'_>,
        now: i64,
    ) -> Result<(), Refused> {
        let refused = |message: String| Err(Refused::new(EnrolOutcome::Quota, ProblemKind::Quota, message));
        let name = &reserved.name;
        // Strangers who fill the quota are not to keep out the machines that people declared, of which there is one for each host.
        if reserved.new && self.declared(applicant, name).is_none() {
            let key = &applicant.claims.segment;
            // In this order: an enrolment that ends in between is then counted with the Servers, and never with neither.
            let pending = self.pending();
            // The machine itself is among those that are under way.
            let coming = pending.iter().filter(|(_, one)| one.segment == *key);
            let coming: BTreeSet<&str> = coming.map(|(name, _)| name.as_str()).collect();
            let all = self.store.number_on(key, &coming);
            if all > usize::try_from(segment.spec.quota).unwrap_or(usize::MAX) {
                let message = format!(
                    "Segment {key} has reached its quota of {} Servers",
                    segment.spec.quota
                );
                self.tell(
                    segment.object_ref(&()),
                    true,
                    "QuotaReached",
                    format!(
                        "{message}; further machines are refused; next: raise spec.quota, or delete the Servers of machines that are gone"
                    ),
                );
                return refused(message);
            }
        }
        let open = self.store.enrolments_of(name);
        let is_recent = |one: &Enrolment| {
            let made = one.metadata.creation_timestamp.as_ref();
            made.is_none_or(|made| now - made.0.as_second() < RECENT)
        };
        let recent = open
            .iter()
            .filter(|one| is_recent(one) && one.name_any() != applicant.enrolment);
        if recent.count() >= MAX_OF_ONE_SERVER {
            return refused(format!(
                "Server {name} has enrolled {MAX_OF_ONE_SERVER} times within two hours"
            ));
        }
        Ok(())
    }

    /// Makes the Server if it is not there, and writes what the enrolment means for it and for others. A retry after which it would be
    /// another machine than before, which changes others as well, may do so now and then only.
    async fn begin_session(
        &self,
        applicant: &Applicant,
        segment: &Segment,
        enrolment: &Enrolment,
        spent: Spent,
    ) -> Result<Arc<Server>, Refused> {
        let name = &enrolment.spec.server;
        let on = applicant.on(segment);
        if self.store.server(name).is_none() {
            self.make_server(applicant, &on, name).await?;
        }
        let mut settled = Settled::default();
        let mut is_taken = false;
        let since = clock::rfc3339(clock::now());
        let nobody = Identity::default();
        let mut write = self.retries.one(&applicant.enrolment);
        let change = |server: &Server| {
            // The copy by which it was recognised may not have shown that the machine is connected.
            let is_ours = server
                .session()
                .is_some_and(|session| session.key == applicant.request.fingerprint);
            // Nor what another replica has made of it meanwhile.
            let there = self.machine(server, &on, &nobody);
            is_taken = !is_ours && !there.may_be(&applicant.identity, applicant.boot);
            if is_taken {
                return None;
            }
            let status = server.status.clone().unwrap_or_default();
            let (claimed, boot) = (&applicant.identity, applicant.boot);
            settled = self.with_machines(claimed, boot, &on, |machines| {
                identity::settle(name, &status.identity, claimed, boot, machines, Word::Enrolment)
            });
            let may = spent == Spent::Now || settled.is_known(&status) || write.may();
            may.then(|| enrolled(status, &settled, applicant, &since))
        };
        let updated = match self.store.update(name, change).await {
            Err(StoreError::CalledOff) if is_taken => {
                // The token names this Server for good.
                return Err(Refused::new(
                    EnrolOutcome::Unavailable,
                    ProblemKind::Token,
                    format!("Server {name} belongs to another machine, or is connected; reboot the machine"),
                ));
            }
            Err(error) => {
                let refused = write.refusal().map(Refused::too_often);
                write.failed();
                return Err(refused.unwrap_or_else(|| error.into()));
            }
            Ok(updated) => updated,
        };
        self.spread(&updated.server, &settled.moved).await?;
        Ok(updated.server)
    }

    /// Makes the Server `name` for the machine. Another replica may have made it meanwhile: for the same machine, or, if two show one
    /// address at once, for another, whose place nobody takes.
    async fn make_server(&self, applicant: &Applicant, on: &On<'_>, name: &str) -> Result<(), Refused> {
        let spec = ServerSpec {
            host: self.declared(applicant, name),
            ..ServerSpec::default()
        };
        match self.store.create_server(name, spec).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.store.fetch_server(name).await?;
        let nobody_else = HashMap::new();
        let (claimed, boot) = (&applicant.identity, applicant.boot);
        let resolved = self.among_machines(&nobody_else, claimed, boot, on, |machines| {
            resolve(applicant, machines)
        });
        match resolved {
            Ok(resolved) if resolved.name == *name => Ok(()),
            _ => {
                let message = format!(
                    "another machine became Server {name} at the same moment; reboot the machine to get a name"
                );
                Err(Refused::new(
                    EnrolOutcome::Unavailable,
                    ProblemKind::Token,
                    message,
                ))
            }
        }
    }

    /// The host that declares the address from which the new machine `name` has booted, if there is no doubt: it stands in the Server
    /// from its first moment on, as discovery would write it in the next one.
    fn declared(&self, applicant: &Applicant, name: &str) -> Option<HostReference> {
        let boot = applicant.boot?;
        let world = &self.store.world;
        let macs = applicant.identity.macs.iter();
        let having: BTreeSet<Path> = macs.flat_map(|mac| world.machines.hosts_with(*mac)).collect();
        let hosts: Vec<Arc<BareMetalHost>> = having
            .iter()
            .filter_map(|path| world.hosts.get(&path.to_ref()))
            .collect();
        let [host] = &hosts[..] else { return None };
        let rivals = self
            .store
            .servers_with(&[Signal::Mac(boot), Signal::Host(Path::of(&**host))]);
        let mut server = Server::new(name, ServerSpec::default());
        server.status.get_or_insert_default().identity = applicant.identity.clone();
        discovery::declared_with(boot, &server, &hosts, &rivals)
    }
}

fn resolve(applicant: &Applicant, machines: &[Machine<'_>]) -> Result<Resolved, identity::Nobody> {
    identity::resolve(&applicant.identity, applicant.boot, machines, &BTreeSet::new())
}

/// `status` after the enrolment.
fn enrolled(status: ServerStatus, settled: &Settled, applicant: &Applicant, since: &str) -> ServerStatus {
    let key = &applicant.request.fingerprint;
    let address = applicant.address.to_string();
    // A retry leaves the session as the first attempt wrote it.
    let same = status.session.clone().filter(|session| {
        session.key == *key && session.state == SessionState::Connected && session.address == address
    });
    // Whoever else got hold of the token and the request puts no key of their own in its place.
    let seal_key = status
        .session
        .as_ref()
        .filter(|session| session.key == *key && !session.seal_key.is_empty())
        .map_or(&applicant.seal_key, |session| &session.seal_key)
        .clone();
    let fresh = || Session {
        state: SessionState::Connected,
        since: since.to_owned(),
        address,
        segment: applicant.claims.segment.clone(),
        trust: Trust::Segment,
        agent_version: applicant.agent_version.clone(),
        key: key.clone(),
        seal_key,
        boot_mac: applicant.boot,
    };
    ServerStatus {
        identity: settled.identity.clone(),
        session: Some(same.unwrap_or_else(fresh)),
        contested: false,
        clashes: settled.clashes.iter().cloned().collect(),
        ..status
    }
}

/// The major version of `major.minor`; `None` if it is no version.
fn major(version: &str) -> Option<u32> {
    let (major, minor) = version.split_once('.')?;
    minor.parse::<u32>().ok()?;
    major.parse().ok()
}
