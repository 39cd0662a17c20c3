//! Jobs of the host's machine: how they are called, how far they are. Pure.

use muster_proto::kinds::{JobAction, Server, ServerStatus};

use super::{
    draft::Draft,
    plan::{Effect, Order, Task},
};

/// What the id of each of the operator's jobs begins with; discovery leaves them alone.
pub(super) const OURS: &str = "host-";

/// The name of one operation: what is done, to which host, begun when, after how many failures. The same name is the same
/// operation, whoever asks for it again.
pub(super) fn operation(draft: &Draft<'_>, what: &str, start: Option<i64>, attempt: i64) -> String {
    let start = start.unwrap_or_default();
    format!("{OURS}{what}-{}-{start}-{attempt}", draft.uid())
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Nobody has heard of it.
    Absent,
    /// It is placed, and perhaps taken up.
    Pending,
    /// It ended well.
    Done,
    /// It ended otherwise: what failed, with the last lines of the agent's log.
    Failed(String),
}

/// How many lines of the agent's log a failure carries; all that there are stand in the Server's status.
const LINES: usize = 3;

/// How far the job on `server` is that `is_it` knows by its id.
pub(super) fn look(server: &Server, is_it: impl Fn(&str) -> bool) -> Job {
    let outcome = outcome(server).and_then(|status| status.job.as_ref());
    if let Some(outcome) = outcome.filter(|outcome| outcome.done && is_it(&outcome.id)) {
        if outcome.error.is_empty() {
            return Job::Done;
        }
        let last = outcome.log.len().saturating_sub(LINES);
        let log = outcome.log.get(last..).unwrap_or_default().join("; ");
        return Job::Failed(match log.is_empty() {
            true => outcome.error.clone(),
            false => format!("{} (its log ends: {log})", outcome.error),
        });
    }
    let placed = server.spec.job.as_ref().is_some_and(|job| is_it(&job.id));
    let taken = outcome.is_some_and(|outcome| is_it(&outcome.id));
    match placed || taken {
        true => Job::Pending,
        false => Job::Absent,
    }
}

fn outcome(server: &Server) -> Option<&ServerStatus> {
    server.status.as_ref()
}

/// True if the job with this id stands on the Server, for the agent to take up.
pub(super) fn is_placed(server: &Server, id: &str) -> bool {
    server.spec.job.as_ref().is_some_and(|job| job.id == id)
}

/// Places the job, unless it stands there.
pub(super) fn place(draft: &mut Draft<'_>, server: &Server, id: &str, task: Task) {
    if is_placed(server, id) {
        return;
    }
    draft.effect(Effect::PlaceJob(Box::new(Order {
        id: id.to_owned(),
        server: server.metadata.name.clone().unwrap_or_default(),
        version: server.metadata.resource_version.clone().unwrap_or_default(),
        epoch: draft.seen.epoch,
        task,
    })));
}

/// The same where the host rests, and for an inspection: one that has ended and names no disk stays until another takes its place or the
/// host leaves. No session is ever given it again, so to take it off would be a write for nothing.
pub(super) fn tidy(draft: &mut Draft<'_>) {
    let rests = |server: &Server| {
        let job = server.spec.job.as_ref()?;
        let harmless = matches!(
            job.action,
            JobAction::Inspect | JobAction::Reboot | JobAction::PowerOff
        );
        let last = server.status.as_ref()?.job.as_ref()?;
        Some(harmless && last.done && last.id == job.id)
    };
    if draft.seen.server.and_then(rests) != Some(true) {
        clear(draft);
    }
}

/// Takes the operator's job off the Server, if one is there: a later session must not meet it. True if there was one.
pub(super) fn clear(draft: &mut Draft<'_>) -> bool {
    let job = draft.seen.server.and_then(|server| server.spec.job.as_ref());
    let Some(job) = job.filter(|job| job.id.starts_with(OURS)) else {
        return false;
    };
    draft.effect(Effect::RemoveJob { id: job.id.clone() });
    true
}
