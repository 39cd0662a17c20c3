//! A poll: what it tells is written, what the agent is to do is answered, and while there is nothing it is held.

use std::{
    ops::ControlFlow,
    sync::{Arc, Weak},
    time::Duration,
};

use muster_proto::{
    kinds::{BareMetalHost, Server, Session, SessionState},
    session::{Command, PollRequest, PollResponse, Problem, ProblemKind, SHORT_HOLD_SECONDS},
};

use super::{
    ca::ClientCertificate,
    clock,
    edge::{Caller, Edge, Peer, owner, unavailable},
    jobs,
    limits::Allowance,
    problem::problem,
    progress::Due,
    sessions::View,
    store::StoreError,
};
use crate::host::guard;

/// How long the poll of an agent that is not shown as here is held: that it is, is written with the next one.
const UNSEEN: Duration = Duration::from_secs(SHORT_HOLD_SECONDS);

/// The same of an agent whose job waits until its host is not paused, detached or protected any more, which nobody is woken for.
const CALLED_OFF: Duration = Duration::from_secs(5);

/// So long all that is read before a job is given out may take together: the agent waits 15 s longer than its poll is held.
const READS: Duration = Duration::from_secs(12);

/// Answers `request` of `caller`, at once or when there is something to say.
pub(super) async fn answer(
    edge: &Arc<Edge>,
    peer: &Peer,
    caller: Caller,
    request: &PollRequest,
) -> Result<PollResponse, Problem> {
    let begun = tokio::time::Instant::now();
    let caller = Box::pin(edge.still(peer, caller)).await?;
    let held = edge.sessions.hold(&caller.certificate);
    let here = Arc::new(());
    let acknowledged = match request.outcome {
        Some(_) => Box::pin(take(edge, &caller, request, peer, Arc::downgrade(&here))).await,
        None => Box::pin(acknowledge(edge, &caller, request, peer, &Arc::downgrade(&here))).await,
    };
    drop(here);
    if let Err(problem) = acknowledged {
        // It hears of it, and is here.
        held.answered();
        return Err(problem);
    }
    let longest = edge.sessions.pace.hold(request);
    let leaves = jobs::says_farewell(&caller.server, request);
    // Nobody keeps an old copy of the Server while the poll is held.
    let Caller { certificate, server } = caller;
    drop(server);
    let mut was_shown = false;
    let reply = loop {
        let woken = held.wake.notified();
        tokio::pin!(woken);
        // From here on no change is missed.
        woken.as_mut().enable();
        let reads = Box::pin(newest(edge, peer, &certificate, request));
        let late = |_| {
            Err(unavailable(&StoreError::TimedOut {
                action: format!("read what a job for Server {} depends on", certificate.server),
            }))
        };
        let seen = match tokio::time::timeout(READS, reads).await.unwrap_or_else(late) {
            Ok(seen) => seen,
            Err(problem) => break Err(problem),
        };
        let view = View::of(Some(&seen.server));
        // Another edge, which the agent has left, wrote that it is gone: its next poll corrects that.
        let is_missed = was_shown && !view.is_connected;
        was_shown = view.is_connected;
        held.sees(view);
        let latest = || edge.store.server(&certificate.server);
        let hold = match seen.reply(request, latest, longest) {
            ControlFlow::Break(reply) => break Ok(reply),
            ControlFlow::Continue(hold) => hold,
        };
        // The end wakes it from now on, too.
        if is_missed || *edge.ending.borrow() {
            break Ok(Reply::Nothing);
        }
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep_until(begun + hold) => break Ok(Reply::Nothing),
        }
    };
    match &reply {
        // Nobody waits long for a machine that has said goodbye: it is gone as if its connection had broken.
        Ok(_) if leaves => drop(held),
        Ok(Reply::Job(_)) => held.answered_with_job(),
        // It hears of it, and is here.
        Ok(_) | Err(_) => held.answered(),
    }
    let command = match reply? {
        Reply::Job(command) => Some(*command),
        Reply::Nothing => None,
        Reply::Waits => {
            return Err(problem(
                ProblemKind::Unavailable,
                "the host is paused, detached or protected; its next step waits for that to end",
            ));
        }
        Reply::Unwritten => {
            return Err(unavailable(&StoreError::Conflict {
                action: format!("write the outcome of the job of Server {}", certificate.server),
            }));
        }
    };
    Ok(PollResponse {
        command,
        time: clock::now(),
    })
}

/// What a poll is answered.
enum Reply {
    /// This is to be done. On the heap: nearly always there is nothing, and its room would be kept while the poll is held.
    Job(Box<Command>),
    /// There is nothing to do.
    Nothing,
    /// What was to follow the end that was told, or the leave, waits for the host; the agent tells it again.
    Waits,
    /// The end that was told does not count any more as it was written; the agent tells it again, and then it is.
    Unwritten,
}

/// `request` as it counts for `server`: of a machine that is not to leave now, or that nobody answers any more, no farewell is written.
fn as_it_counts(edge: &Edge, server: &Server, request: &PollRequest, here: &Weak<()>) -> PollRequest {
    let mut counts = request.clone();
    let way = jobs::leave_command(server, request).filter(|_| !jobs::has_gone(server, request));
    if let Some(way) = way {
        let host = edge.store.world.host_of(server);
        counts.goes_at_once = here.strong_count() > 0 && !jobs::calls_off(server, host.as_deref(), &way);
    }
    counts
}

/// By what a poll is answered.
struct Seen {
    server: Arc<Server>,
    /// What is where its host should be.
    host: Option<Arc<BareMetalHost>>,
}

impl Seen {
    /// `server`, and its host as the watched copy has it.
    fn of(edge: &Edge, server: Arc<Server>) -> Seen {
        let host = edge.store.world.host_of(&server);
        Seen { server, host }
    }

    /// What `request` is answered, or how long it is held at the most, `longest` or less. `latest` is the Server as it is known now.
    /// By value: nobody keeps an old copy while a poll is held.
    fn reply(
        self,
        request: &PollRequest,
        latest: impl FnOnce() -> Option<Arc<Server>>,
        longest: Duration,
    ) -> ControlFlow<Reply, Duration> {
        let Seen { server, host } = self;
        let command = jobs::command(&server, request);
        let is_called_off = command
            .as_ref()
            .is_some_and(|command| jobs::calls_off(&server, host.as_deref(), command));
        if let Some(command) = command.filter(|_| !is_called_off) {
            return ControlFlow::Break(Reply::Job(Box::new(command)));
        }
        // Who tells an outcome need not wait for news: it may be about to reboot.
        if request.outcome.is_some() {
            // Nor does a machine leave that was about to, and did not hear of it.
            let waits =
                is_called_off && (jobs::goes_on(&server, request) || jobs::has_gone(&server, request));
            let is_unwritten = latest().is_some_and(|latest| jobs::news(&latest, request, false).is_some());
            return ControlFlow::Break(match (waits, is_unwritten) {
                (true, _) => Reply::Waits,
                (false, true) => Reply::Unwritten,
                (false, false) => Reply::Nothing,
            });
        }
        ControlFlow::Continue(match (is_called_off, View::of(Some(&server)).is_connected) {
            (true, _) => longest.min(CALLED_OFF),
            (false, true) => longest,
            (false, false) => longest.min(UNSEEN),
        })
    }

    /// True if the agent would be told to destroy data.
    fn destroys(&self, request: &PollRequest) -> bool {
        jobs::command(&self.server, request).is_some_and(|command| {
            guard::destroys(&command.action) && !jobs::calls_off(&self.server, self.host.as_deref(), &command)
        })
    }
}

/// By what the poll is answered. What destroys data is not given out as old copies show it: the job may have been taken back, and the
/// host have been paused or protected since.
async fn newest(
    edge: &Edge,
    peer: &Peer,
    certificate: &ClientCertificate,
    request: &PollRequest,
) -> Result<Seen, Problem> {
    let ours = |server: &Arc<Server>| owner(certificate, server).is_some();
    let known = async || match edge.store.server(&certificate.server).filter(ours) {
        Some(known) => Ok(known),
        None => Ok(Box::pin(edge.authenticate(peer)).await?.server),
    };
    let mut seen = Seen::of(edge, known().await?);
    // Both reads of a round are one question.
    let mut right = edge.job_reads.one(&certificate.server);
    if seen.destroys(request) && !edge.store.is_fresh() {
        right.ask()?;
        let server = match edge.store.fetch_server(&certificate.server).await {
            Ok(now) if ours(&now) => now,
            Ok(_) => Box::pin(edge.authenticate(peer)).await?.server,
            Err(error) => return Err(unasked(right, &error)),
        };
        seen = Seen::of(edge, server);
    }
    // A watch tells in what order things happened, and not how long ago: that nothing is missing in its copy of the host nobody knows.
    if let Some(at) = &seen.server.spec.host
        && let Some(job) = &seen.server.spec.job
        && seen.destroys(request)
    {
        right.ask()?;
        let follows = jobs::command(&seen.server, request).is_some_and(|command| command.id != job.id);
        match edge.store.host_for(at, &job.id, follows).await {
            Ok(host) => seen.host = host,
            Err(error) => return Err(unasked(right, &error)),
        }
        // What was told of the job meanwhile counts, too.
        seen.server = known().await?;
    }
    Ok(seen)
}

/// What was asked for by `right` failed, for which the machine does not pay.
fn unasked(right: Allowance<'_>, error: &StoreError) -> Problem {
    right.failed();
    unavailable(error)
}

/// Writes how a job went, to the end, though nobody may wait for the answer any more: a machine that says that it leaves is gone in a
/// moment, and would be missed only after minutes.
async fn take(
    edge: &Arc<Edge>,
    caller: &Caller,
    request: &PollRequest,
    peer: &Peer,
    here: Weak<()>,
) -> Result<(), Problem> {
    // Whoever breaks off and tells again has no more than this in hand.
    let Some(turn) = edge.telling.take(caller.name().to_owned()) else {
        return Err(problem(
            ProblemKind::Unavailable,
            "an earlier report of this machine is still being written; try again",
        ));
    };
    let (edge, caller, request, peer) = (Arc::clone(edge), caller.clone(), request.clone(), peer.clone());
    let written = tokio::spawn(async move {
        let (_turn, _under_way) = (turn, edge.under_way.upgrade());
        acknowledge(&edge, &caller, &request, &peer, &here).await
    });
    written.await.unwrap_or_else(|error| {
        tracing::error!(%error, "the outcome of a job could not be written; the agent reports it again");
        Err(problem(
            ProblemKind::Unavailable,
            "the report could not be written; try again",
        ))
    })
}

/// Writes what the poll tells: that the agent is here, as long as `here` lives, and how its job is or went.
async fn acknowledge(
    edge: &Edge,
    caller: &Caller,
    request: &PollRequest,
    peer: &Peer,
    here: &Weak<()>,
) -> Result<(), Problem> {
    let now = clock::rfc3339(clock::now());
    let address = peer.address.to_string();
    let mut right = edge.poll_writes.one(caller.name());
    // An outcome of a job that the watched copy does not show yet: the API server is asked before it is taken for nobody's.
    if request.outcome.is_some() && !jobs::mentions(&caller.server, &request.last) {
        right.ask()?;
        match edge.store.fetch_server(caller.name()).await {
            Ok(_) | Err(StoreError::Gone { .. }) => {}
            Err(error) => return Err(unavailable(&error)),
        }
    }
    let shown = edge.store.server(caller.name());
    let shown = shown.as_deref().unwrap_or(&caller.server);
    let due = edge.progress.due(caller.name(), request, shown);
    if caller.owns(shown) && says_nothing_new(shown, request, due, &address) {
        return Ok(());
    }
    right.ask()?;
    let change = |server: &Server| {
        if !caller.owns(server) {
            return None;
        }
        let request = &as_it_counts(edge, server, request, here);
        let mut status = server.status.clone().unwrap_or_default();
        if let Some(session) = status.session.as_mut() {
            if jobs::says_farewell(server, request) {
                end(session, &now);
            } else if here.strong_count() > 0 {
                connect(session, &address, &now);
            }
        }
        if let Some(job) = jobs::news(server, request, due == Due::Now) {
            jobs::put(&mut status, job);
        }
        Some(status)
    };
    let result = edge.store.update(caller.name(), change).await;
    match result {
        Ok(updated) => {
            if updated.written {
                edge.progress.wrote(caller.name(), request, due);
            }
            Ok(())
        }
        // How a job went must not be lost; that the agent is here is seen again at its next poll.
        Err(error) if request.outcome.is_some() && jobs::news(&caller.server, request, false).is_some() => {
            Err(unasked(right, &error))
        }
        Err(StoreError::CalledOff | StoreError::Gone { .. }) => Ok(()),
        Err(error) => {
            tracing::warn!(server = %caller.name(), error = %muster_proto::Chain(&error), "the session's state could not be written");
            Ok(())
        }
    }
}

/// True if the poll tells only what stands in `server` already, as nearly all of them do.
fn says_nothing_new(server: &Server, request: &PollRequest, due: Due, address: &str) -> bool {
    let is_shown = |session: &Session| session.state == SessionState::Connected && session.address == address;
    server.session().is_some_and(is_shown)
        && !jobs::says_farewell(server, request)
        && jobs::news(server, request, due == Due::Now).is_none()
}

fn connect(session: &mut Session, address: &str, now: &str) {
    if session.state != SessionState::Connected {
        session.state = SessionState::Connected;
        now.clone_into(&mut session.since);
    }
    address.clone_into(&mut session.address);
}

fn end(session: &mut Session, now: &str) {
    if session.state == SessionState::Connected {
        session.state = SessionState::Disconnected;
        now.clone_into(&mut session.since);
    }
}

/// Writes the end of the session with `key` to the Server `name`, of which nobody else may have written since this `version`, if one is given.
/// True once there is nothing left to write.
pub(super) async fn disconnect(edge: &Edge, name: &str, key: &str, version: Option<&str>) -> bool {
    let now = clock::rfc3339(clock::now());
    let is_it = |server: &Server| {
        version.is_none_or(|version| server.metadata.resource_version.as_deref() == Some(version))
    };
    let change = |server: &Server| {
        server
            .session()
            .filter(|session| session.key == key && is_it(server))?;
        let mut status = server.status.clone().unwrap_or_default();
        if let Some(session) = status.session.as_mut() {
            end(session, &now);
        }
        Some(status)
    };
    match edge.store.update(name, change).await {
        Ok(_) | Err(StoreError::Gone { .. } | StoreError::CalledOff) => true,
        // The same write never succeeds, and others wait for their turn.
        Err(error @ StoreError::Refused { .. }) => {
            tracing::error!(server = %name, error = %muster_proto::Chain(&error), "the Server is still shown as connected until the \
            machine boots again");
            true
        }
        Err(error) => {
            tracing::warn!(server = %name, error = %muster_proto::Chain(&error), "the end of a session could not be written; retrying");
            false
        }
    }
}
