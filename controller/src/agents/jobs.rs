//! What an agent is told to do, and what is written of what it tells. Pure.

use muster_proto::{
    job::{Clean, DigestAlgorithm, Failure, Progress},
    kinds::{
        BareMetalHost, Job, JobAction, JobStatus, Leave, LeaveAction, Leaving, Server, ServerStatus, Then,
    },
    session::{Action, Command, MAX_WARNINGS, Outcome, PollRequest, newest},
    text,
};

use crate::{
    host::{boot_mode, guard, is_for_another},
    hosts,
};

#[cfg(test)]
mod tests;

/// How long a warning may be, in bytes.
const MAX_WARNING: usize = 512;
/// How long an error may be, in bytes: a chain of causes with a URL in it.
const MAX_ERROR: usize = 1024;
/// The most of a line of an agent's log, in bytes: a message of the same length, and what stands before it.
pub(super) const MAX_LINE: usize = 1100;
/// The same for what the column of a table shows of it.
const MAX_SUMMARY: usize = 80;
/// What that shows of a write after which the machine has left its ramdisk.
const LEFT: &str = "done, and left";

/// `request` as it is kept while it is held: a log is told with a failure and warnings with an outcome, which are answered at once.
pub(super) fn heard(mut request: PollRequest) -> PollRequest {
    if !matches!(request.outcome, Some(Outcome::Failed { .. })) {
        request.log = Vec::new();
    }
    if request.outcome.is_none() {
        request.warnings = Vec::new();
    }
    request
}

/// What the agent is to do: what follows the job that it tells the good end of, or that ended with what is written, or else the job that it
/// has not taken up.
pub(super) fn command(server: &Server, request: &PollRequest) -> Option<Command> {
    if has_gone(server, request) {
        // Again, if the answer was lost.
        return leave_command(server, request);
    }
    match (following(server, request), server.spec.job.as_ref()) {
        (Some(then), Some(job)) => Some(follow(job, then)),
        _ => next_command(server, &request.last),
    }
}

/// What follows the job that `request` tells the good end of. That end is not written: what follows says it, and if that is lost, with
/// the edge or with the machine, the disks are cleaned again.
fn following<'a>(server: &'a Server, request: &PollRequest) -> Option<&'a Then> {
    let job = server
        .spec
        .job
        .as_ref()
        .filter(|job| !job.id.is_empty() && job.id == request.last)?;
    let then = job.then.as_ref()?;
    let last = server.last_job();
    let ended = last.is_some_and(|last| last.id == job.id && last.done) || is_past(server, &job.id);
    let goes_on = request.outcome == Some(Outcome::Done) && !ended;
    (goes_on && is_understood(job) && may_have(server, then)).then_some(then)
}

/// True if something follows the end that `request` tells, as far as `server` shows.
pub(super) fn goes_on(server: &Server, request: &PollRequest) -> bool {
    following(server, request).is_some()
}

/// True if what follows the job `id` was taken up.
fn is_past(server: &Server, id: &str) -> bool {
    let is_its = server.spec.job.as_ref().is_some_and(|job| job.id == id);
    is_its && server.follow_up().is_some()
}

/// True if the session is the one that `then` was decided for, and nobody else claims to be it.
fn may_have(server: &Server, then: &Then) -> bool {
    let whole = |status: &&ServerStatus| !status.contested && !crate::lenient::is_marked(server);
    let status = server.status.as_ref().filter(whole);
    let session = status.and_then(|status| status.session.as_ref());
    session.is_some_and(|session| session.key == then.session)
}

/// False if a newer control role orders what this edge could only pass on as unknown, for which the agent would fail for good: it waits for
/// an edge that knows it.
fn is_understood(job: &Job) -> bool {
    job.writes()
        .is_none_or(|(_, write)| write.image.algorithm != DigestAlgorithm::Unknown)
}

fn follow(job: &Job, then: &Then) -> Command {
    Command {
        id: then.id.clone(),
        epoch: job.epoch,
        farewell: false,
        action: Action::Write(then.write.clone()),
    }
}

/// How the machine is to leave, once the write before that is known to have ended well: it is not written again if this gets lost. It
/// destroys nothing, so who claims to be the machine as well keeps nobody from it.
fn leave(job: &Job, leave: &Leave) -> Command {
    Command {
        id: leave.id.clone(),
        epoch: job.epoch,
        farewell: false,
        action: match leave.action {
            LeaveAction::Reboot => Action::Reboot,
            LeaveAction::PowerOff => Action::PowerOff,
        },
    }
}

/// The job that the agent, which knows of `last`, has not taken up.
///
/// One that has ended is never given again: the next session of a machine knows nothing of what the last one wrote. What destroys
/// data is not given to a session that two keys claim to be, and no part of what was decided for one session to another.
fn next_command(server: &Server, last: &str) -> Option<Command> {
    let status = server.status.as_ref();
    let session = status.and_then(|status| status.session.as_ref());
    let job = server
        .spec
        .job
        .as_ref()
        .filter(|job| !job.id.is_empty())
        .filter(|job| job.is_for(session.map_or("", |session| &session.key)))
        // What is left of a job is another job.
        .filter(|job| is_understood(job) && !crate::lenient::is_marked(server))?;
    let known = status.and_then(|status| status.job.as_ref());
    if let Some((way, leaving)) = server.told_to_leave() {
        return (way.id != last && !leaving.said).then(|| leave(job, way));
    }
    if job.is_called(last) {
        return None;
    }
    if let Some(then) = server.follow_up() {
        // Its beginning is past, for this session and for any other.
        let waits = known.is_some_and(|known| !known.done);
        return (waits && may_have(server, then)).then(|| follow(job, then));
    }
    let ended = known.is_some_and(|known| known.id == job.id && known.done);
    let contested = status.is_some_and(|status| status.contested);
    if ended || (contested && matches!(job.action, JobAction::Clean | JobAction::Write)) {
        return None;
    }
    Some(Command {
        id: job.id.clone(),
        epoch: job.epoch,
        farewell: false,
        action: action(job),
    })
}

/// What lacks its details names no machine and no disk, which no agent carries out.
fn action(job: &Job) -> Action {
    match job.action {
        JobAction::Inspect => Action::Inspect,
        JobAction::Reboot => Action::Reboot,
        JobAction::PowerOff => Action::PowerOff,
        JobAction::Clean => Action::Clean(
            job.clean
                .as_ref()
                .map_or_else(Clean::default, |clean| (*clean.unpack()).clone()),
        ),
        JobAction::Write => Action::Write(job.write.clone().unwrap_or_default()),
    }
}

/// True if the job `id` is or was this Server's.
pub(super) fn mentions(server: &Server, id: &str) -> bool {
    let last = server.last_job();
    let placed = server.spec.job.as_ref().is_some_and(|job| job.is_called(id));
    !id.is_empty() && (placed || last.is_some_and(|last| last.id == id))
}

/// True if the agent tells that it leaves as it was told, to reboot or to power off: that ends its session, and nobody need wait for
/// silence to prove it.
pub(super) fn says_farewell(server: &Server, request: &PollRequest) -> bool {
    let says_so = |job: &Job| match &job.leave {
        Some(leave) if leave.id == request.last => true,
        _ => job.id == request.last && matches!(job.action, JobAction::Reboot | JobAction::PowerOff),
    };
    request.outcome == Some(Outcome::Done) && server.spec.job.as_deref().is_some_and(says_so)
        || leave_command(server, request).is_some()
}

/// How the agent is told to leave with the answer to the end of the job `id`, if that went well.
fn leaving<'a>(server: &'a Server, id: &str) -> Option<(&'a Job, &'a Leave)> {
    let session = server.session();
    let job = server.spec.job.as_deref()?;
    let leave = job.leave.as_ref().filter(|leave| !leave.id.is_empty())?;
    let may = session.is_some_and(|session| job.is_for(&session.key)) && !crate::lenient::is_marked(server);
    let ends = job.writes().is_some_and(|(write, _)| write == id);
    (may && ends).then_some((job, leave))
}

/// What an agent is told that leaves with the answer to `request` and says nothing more, so that its farewell is written with the end.
pub(super) fn leave_command(server: &Server, request: &PollRequest) -> Option<Command> {
    let goes = request.goes_at_once && request.outcome == Some(Outcome::Done);
    // Of an end that is written without a farewell the job to leave stands for itself.
    let may = goes && (written_end(server, request).is_none() || has_gone(server, request));
    let (job, way) = leaving(server, &request.last).filter(|_| may)?;
    Some(Command {
        farewell: true,
        ..leave(job, way)
    })
}

/// True if the machine's farewell is written with the end that `request` tells.
pub(super) fn has_gone(server: &Server, request: &PollRequest) -> bool {
    let leaving = written_end(server, request).and_then(|end| end.leaving.as_ref());
    request.goes_at_once && leaving.is_some_and(|leaving| leaving.said)
}

/// How the job that `request` names went, if that is written.
fn written_end<'a>(server: &'a Server, request: &PollRequest) -> Option<&'a JobStatus> {
    let last = server.last_job()?;
    (last.id == request.last && last.done).then_some(last)
}

/// True if the machine of `server` is at what `command` says and goes on to its end whatever becomes of its host. Of a job of two parts, only the
/// second one: the end of the first is not written before the second may begin.
pub(super) fn is_begun(server: &Server, command: &Command) -> bool {
    let is_last = server.last_job().is_some_and(|last| last.id == command.id);
    let ends = server.spec.job.as_ref().is_none_or(|job| job.then.is_none());
    is_last && (ends || server.follow_up().is_some())
}

/// True if `command` was placed for a host that is not to have it now, or that is gone or another one, or whose machine this is not any
/// more: of that nothing is destroyed. `host` is what is where the host of `server` should be.
pub(super) fn calls_off(server: &Server, host: Option<&BareMetalHost>, command: &Command) -> bool {
    let destroys = guard::destroys(&command.action);
    if server.spec.host.is_none() {
        return destroys && is_for_another(&command.id, None);
    }
    match host.filter(|host| hosts::is_of(host, server)) {
        Some(host) => {
            guard::is_called_off(host, &command.action)
                || (destroys && boots_otherwise(server, host, command))
        }
        None => destroys,
    }
}

/// True if `command` begins what ends with an image, and the ramdisk of `server` runs in another mode than its `host` asks for. A write that
/// follows a cleaning follows it in any case: the disks are as good as written.
fn boots_otherwise(server: &Server, host: &BareMetalHost, command: &Command) -> bool {
    let job = server.spec.job.as_ref().filter(|job| job.id == command.id);
    let writes = job.is_some_and(|job| job.writes().is_some());
    let status = server.status.as_ref();
    let inventory = status.and_then(|status| status.inventory.as_ref());
    writes && inventory.is_some_and(|inventory| boot_mode::refusal(host, inventory).is_some())
}

/// What is written of that the machine leaves, as its agent was told with the answer to the end of a write: that it says so, and nothing of
/// what it says otherwise. The control role orders it by itself then.
fn left(known: &JobStatus, request: &PollRequest) -> Option<JobStatus> {
    let leaving = known.leaving.as_ref().filter(|leaving| !leaving.said)?;
    (request.outcome == Some(Outcome::Done)).then(|| JobStatus {
        summary: LEFT.to_owned(),
        leaving: Some(Leaving {
            said: true,
            ..leaving.clone()
        }),
        ..known.clone()
    })
}

/// What the poll says of a job that is or was this Server's, as it is written; `None` if it says nothing new. The first outcome of a
/// job stays. Progress is news only if it is `due`.
pub(super) fn news(server: &Server, request: &PollRequest, due: bool) -> Option<JobStatus> {
    let id = &request.last;
    let known = server.last_job();
    let same = known.filter(|known| known.id == *id);
    let ended = same.is_some_and(|known| known.done) || is_past(server, id);
    if !mentions(server, id) || ended || following(server, request).is_some() {
        return None;
    }
    let placed = server.spec.job.as_ref();
    if placed
        .and_then(|job| job.leave.as_ref())
        .is_some_and(|leave| leave.id == *id)
    {
        let written = known.filter(|_| server.told_to_leave().is_some());
        return written.and_then(|known| left(known, request));
    }
    let status = match &request.outcome {
        Some(Outcome::Done) => {
            let said = request.goes_at_once;
            let leaving = leaving(server, id).map(|(_, leave)| Leaving {
                id: leave.id.clone(),
                said,
            });
            JobStatus {
                done: true,
                summary: match leaving {
                    Some(Leaving { said: true, .. }) => LEFT,
                    _ => "done",
                }
                .to_owned(),
                warnings: warnings(&request.warnings),
                leaving,
                ..JobStatus::default()
            }
        }
        Some(Outcome::Failed { message, failure }) => failed(message, *failure, &request.log),
        None => {
            let told = request.progress.as_ref().filter(|_| due).map(clean);
            let progress = told.or_else(|| same.and_then(|known| known.progress.clone()));
            JobStatus {
                summary: progress.as_ref().map_or("taken up".to_owned(), in_words),
                progress,
                ..JobStatus::default()
            }
        }
    };
    let status = JobStatus {
        id: id.clone(),
        ..status
    };
    (known != Some(&status)).then_some(status)
}

/// Puts `job` in the place of the one before it, which is kept if it failed: cleaning follows a failed write at once, and people want
/// to know what was wrong. What was only decided for other circumstances did not fail.
pub(super) fn put(status: &mut ServerStatus, job: JobStatus) {
    let failed = |before: &JobStatus| {
        before.id != job.id && !before.error.is_empty() && before.failure != Some(Failure::Outdated)
    };
    if let Some(before) = status.job.take().filter(failed) {
        status.last_failure = Some(Box::new(before));
    }
    status.job = Some(job);
}

fn failed(message: &str, failure: Failure, log: &[String]) -> JobStatus {
    let mut error = text::clean_to(message.as_bytes(), MAX_ERROR);
    if error.is_empty() {
        "the agent did not say what failed".clone_into(&mut error);
    }
    JobStatus {
        summary: text::clean_to(format!("failed: {error}").as_bytes(), MAX_SUMMARY),
        error,
        failure: Some(failure),
        done: true,
        log: newest(log.iter().map(|line| text::clean_to(line.as_bytes(), MAX_LINE))),
        ..JobStatus::default()
    }
}

fn warnings(told: &[String]) -> Vec<String> {
    let cleaned = told.iter().map(|one| text::clean_to(one.as_bytes(), MAX_WARNING));
    cleaned.filter(|one| !one.is_empty()).take(MAX_WARNINGS).collect()
}

fn clean(progress: &Progress) -> Progress {
    Progress {
        step: text::clean_to(progress.step.as_bytes(), 64),
        percent: progress.percent.min(100),
        // The API server's integers are signed.
        bytes_per_second: progress.bytes_per_second.min(i64::MAX.unsigned_abs()),
    }
}

/// `write image 42 %, 765 MB/s`.
fn in_words(progress: &Progress) -> String {
    let Progress {
        step,
        percent,
        bytes_per_second,
    } = progress;
    let speed = match *bytes_per_second {
        0..1_000 => String::new(),
        slow @ 1_000..1_000_000 => format!(", {} kB/s", slow / 1_000),
        speed => format!(", {} MB/s", speed / 1_000_000),
    };
    format!("{step} {percent} %{speed}").trim_start().to_owned()
}
