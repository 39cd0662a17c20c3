//! Jobs of the host's machine: how they are called, how far they are. Pure.

use muster_proto::kinds::{Job as Placed, JobAction, Leave, LeaveAction, Leaving, Server};

use super::{
    draft::Draft,
    plan::{Effect, NewJob, Next, Task},
    ramdisk,
};

/// What the id of each of the operator's jobs begins with; discovery leaves them alone.
const OURS: &str = "host-";

/// The name of one operation: what is done, to the host with which UID, begun when, after how many failures. The same name is the same
/// operation, whoever asks for it again.
pub(super) fn operation(uid: &str, what: &str, start: Option<i64>, attempt: i64) -> String {
    format!("{}{attempt}", begun(uid, what, start))
}

/// What the names of all attempts at one operation begin with.
pub(super) fn begun(uid: &str, what: &str, start: Option<i64>) -> String {
    let start = start.unwrap_or_default();
    format!("{OURS}{what}-{uid}-{start}-")
}

/// True if `id` names such an operation, or a part of one, to whatever host.
pub(super) fn is_to(id: &str, what: &str) -> bool {
    id.starts_with(&format!("{OURS}{what}-"))
}

/// True if the job `id` clears the disks in an operation that [`begun`] so.
pub(super) fn is_cleaning(id: &str, begun: &str) -> bool {
    id.starts_with(begun) && id.ends_with(CLEAN)
}

/// What the operation is called that gives the host an image.
pub(super) const PROVISION: &str = "provision";

/// How the parts of an operation are told apart: by what follows its name.
const CLEAN: &str = "-clean";
const WRITE: &str = "-write";
const LEAVE: &str = "-leave";

/// The job of `operation` that clears the disks.
pub(super) fn clean_id(operation: &str) -> String {
    format!("{operation}{CLEAN}")
}

/// How the jobs of `operation` begin that write the disk.
pub(super) fn write_id(operation: &str) -> String {
    format!("{operation}{WRITE}")
}

/// The job of `operation` by which the machine leaves its ramdisk.
pub(super) fn leave_id(operation: &str) -> String {
    format!("{operation}{LEAVE}")
}

/// The [`operation`] of which the job `id` clears or writes disks; none: it does neither, or is not ours.
pub(super) fn operation_of(id: &str) -> Option<&str> {
    let at = [CLEAN, WRITE].into_iter().find_map(|part| id.find(part))?;
    id.get(..at).filter(|operation| operation.starts_with(OURS))
}

/// When the provisioning began, in seconds since 1970, at whose end the machine leaves its ramdisk by the job `id`; none: that is no such
/// job of the host with this UID.
pub(super) fn provisioning_left_by(id: &str, uid: &str) -> Option<i64> {
    let ours = format!("{OURS}{PROVISION}-{uid}-");
    let (begun, _attempt) = id.strip_prefix(&ours)?.strip_suffix(LEAVE)?.split_once('-')?;
    begun.parse().ok()
}

/// True if the operator placed `job` for another host than the one with this UID: whoever asked for it is gone.
pub fn is_for_another(job: &str, uid: Option<&str>) -> bool {
    job.starts_with(OURS) && !uid.is_some_and(|uid| job.contains(&format!("-{uid}-")))
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
    /// It ended otherwise: what failed, with the last lines of the agent's log if they end with something else.
    Failed(String),
}

/// How many lines of the agent's log a failure carries; all that there are stand in the Server's status.
const LINES: usize = 3;

/// How far the job on `server` is that `is_it` knows by its id.
pub(super) fn look(server: &Server, is_it: impl Fn(&str) -> bool) -> Job {
    let outcome = server.last_job();
    if let Some(outcome) = outcome.filter(|outcome| outcome.done && is_it(&outcome.id)) {
        if outcome.error.is_empty() {
            return Job::Done;
        }
        let last = outcome.log.len().saturating_sub(LINES);
        let log = outcome.log.get(last..).unwrap_or_default().join("; ");
        // As its last word the agent logs what it tells: it need not be read twice.
        let repeats = outcome
            .log
            .last()
            .is_some_and(|line| line.contains(&outcome.error));
        return Job::Failed(match log.is_empty() || repeats {
            true => outcome.error.clone(),
            false => format!("{} (its log ends: {log})", outcome.error),
        });
    }
    let placed = server.spec.job.as_ref().is_some_and(|job| is_it(&job.id));
    if placed && server.follow_up().is_some() {
        // What follows it is under way or has ended.
        return Job::Done;
    }
    let taken = outcome.is_some_and(|outcome| is_it(&outcome.id));
    match given(server).filter(|(leave, _)| is_it(&leave.id)) {
        Some((_, leaving)) if leaving.said => return Job::Done,
        Some(_) => return Job::Pending,
        None => {}
    }
    match placed || taken {
        true => Job::Pending,
        false => Job::Absent,
    }
}

/// That the image could not be written to a disk of `server`, because of `error`. An agent that wrote nothing does not know that the disks
/// had been cleaned before.
pub(super) fn unwritten(server: &Server, error: &str) -> String {
    let cleaned = match server.follow_up() {
        Some(_) => " (the disks had been cleaned before)",
        None => "",
    };
    format!("the image could not be written{cleaned}: {error}")
}

/// How the machine leaves as the edge tells its agent with the answer to the end of the write, and whether that has said so; none: it does
/// not, or another session has come since.
fn given(server: &Server) -> Option<(&Leave, &Leaving)> {
    let session = server.session()?;
    let told = server.told_to_leave();
    told.filter(|(leave, leaving)| leaving.said || leave.session == session.key)
}

/// True if the edge tells the machine to leave, and the agent has not said that it does: its answer may be lost.
pub(super) fn is_unheard(server: &Server) -> bool {
    given(server).is_some_and(|(_, leaving)| !leaving.said)
}

/// True if the last word of the machine's ramdisk was that it leaves for the system that the machine has, as it was told.
pub(super) fn says_it_left(server: &Server) -> bool {
    server.last_job().is_some_and(|last| {
        let said = last.leaving.as_ref().is_some_and(|leaving| leaving.said);
        let placed = last.id.starts_with(OURS) && last.id.ends_with(LEAVE);
        said || (placed && last.done && last.error.is_empty())
    })
}

/// Where the machine goes by the job `id`, as it is placed or as it comes with the write; none: it was not told.
pub(super) fn leave_action(server: &Server, id: &str) -> Option<LeaveAction> {
    let explicit = server.spec.job.as_ref().filter(|job| job.id == id);
    match (explicit.map(|job| job.action), given(server)) {
        (Some(JobAction::PowerOff), _) => Some(LeaveAction::PowerOff),
        (Some(_), _) => Some(LeaveAction::Reboot),
        (None, Some((leave, _))) if leave.id == id => Some(leave.action),
        (None, _) => None,
    }
}

/// True if the agent has said something of the job `id`, and of none after it.
pub(super) fn is_taken_up(server: &Server, id: &str) -> bool {
    let last = server.last_job();
    last.is_some_and(|last| last.id == id)
}

/// True if the agent has taken up the part that `is_it` knows by its id, of a job of ours that clears or writes disks, in the session
/// that it has now, and has not said that this ended.
pub(super) fn is_under_way(server: &Server, is_it: impl Fn(&str) -> bool) -> bool {
    let known = || {
        let status = server.status.as_ref().filter(|status| !status.contested)?;
        Some((
            server.spec.job.as_ref()?,
            status.job.as_ref()?,
            status.session.as_ref()?,
        ))
    };
    known().is_some_and(|(job, last, session)| {
        let destroys = matches!(job.action, JobAction::Clean | JobAction::Write);
        let ours = job.id.starts_with(OURS) && job.is_called(&last.id);
        let is_for = match server.follow_up() {
            Some(then) => then.session == session.key,
            None => job.is_for(&session.key),
        };
        destroys && ours && is_for && !last.done && is_it(&last.id)
    })
}

/// True if the job with this id stands on the Server, for the agent to take up; as what follows another one only as long as the edge
/// does give it to the session.
pub(super) fn is_placed(server: &Server, id: &str) -> bool {
    let Some(job) = &server.spec.job else { return false };
    let (last, session) = (server.last_job(), server.session());
    let comes = job.then.as_ref().is_some_and(|then| {
        let stopped = last.is_some_and(|last| last.done && last.id == job.id);
        then.id == id && !stopped && session.is_some_and(|session| session.key == then.session)
    });
    job.id == id || comes
}

/// Places the job, unless it stands there.
pub(super) fn place(draft: &mut Draft<'_>, server: &Server, id: &str, task: Task) {
    place_with(draft, server, id, task, After::default());
}

/// What comes after the first part of a job.
#[derive(Debug, Default)]
pub(super) struct After {
    /// What follows it at once.
    pub(super) then: Option<Box<Next>>,
    /// How the machine leaves after the write.
    pub(super) leave: Option<Leave>,
}

impl After {
    /// True if something else comes after `placed` than this, or another session's.
    fn differs(&self, placed: &Placed) -> bool {
        let then = placed.then.as_ref().is_some_and(|placed| {
            let same = |wanted: &Next| wanted.id == placed.id && wanted.session == placed.session;
            !self.then.as_deref().is_some_and(same)
        });
        let leave = placed.leave.as_ref().is_some_and(|placed| {
            // It may go where it was to go then: its power is looked after anyway.
            let same = |wanted: &Leave| wanted.id == placed.id && wanted.session == placed.session;
            !self.leave.as_ref().is_some_and(same)
        });
        then || leave
    }
}

/// The same with what comes after it. Where that is something else than is wanted by now, it is placed again.
/// True if it is placed now.
pub(super) fn place_with(draft: &mut Draft<'_>, server: &Server, id: &str, task: Task, after: After) -> bool {
    let placed = server.spec.job.as_ref().filter(|job| job.id == id);
    let outdated = placed.is_some_and(|placed| after.differs(placed));
    if is_placed(server, id) && !outdated {
        return false;
    }
    let After { then, leave } = after;
    if matches!(task, Task::Clean(_) | Task::Write(_)) {
        // Told with what the host waits for from now on, in one write.
        draft.status.powered_on |= ramdisk::is_on(draft);
    }
    draft.effect(Effect::PlaceJob(Box::new(NewJob {
        id: id.to_owned(),
        server: server.metadata.name.clone().unwrap_or_default(),
        version: server.metadata.resource_version.clone().unwrap_or_default(),
        epoch: draft.seen.epoch,
        task,
        then,
        leave,
    })));
    true
}

/// A config drive that is longer than this, in bytes of base64, does not stay on a Server: every copy of that carries it.
const SMALL: usize = 2 << 10;

/// True if all that the job on `server` says is done and nothing of it is ever given to any session again, so that it harms nobody where it
/// stands: because it destroys nothing, or because it was decided for one session that wrote its image.
pub(super) fn rests(server: &Server) -> bool {
    let Some((job, last)) = server.spec.job.as_ref().zip(server.last_job()) else {
        return false;
    };
    let harmless = matches!(
        job.action,
        JobAction::Inspect | JobAction::Reboot | JobAction::PowerOff
    );
    (harmless && last.done && last.id == job.id) || server.told_to_leave().is_some()
}

/// The same where the host rests, and for an inspection: one that is over stays until another takes its place or the host leaves. To take
/// it off would be a write for nothing, but for the room that user data takes.
pub(super) fn tidy(draft: &mut Draft<'_>) {
    let is_large = |server: &Server| {
        let (_, write) = server.spec.job.as_ref()?.writes()?;
        Some(write.config_drive.as_ref()?.len() > SMALL)
    };
    let stays = |server: &Server| rests(server) && is_large(server) != Some(true);
    if !draft.server().is_some_and(stays) {
        clear(draft);
    }
}

/// Takes the operator's job off the Server, if one is there: a later session must not meet it. True if there was one.
pub(super) fn clear(draft: &mut Draft<'_>) -> bool {
    let job = draft.server().and_then(|server| server.spec.job.as_ref());
    let Some(job) = job.filter(|job| job.id.starts_with(OURS)) else {
        return false;
    };
    draft.effect(Effect::RemoveJob { id: job.id.clone() });
    true
}

#[cfg(test)]
mod tests {
    use muster_proto::kinds::{JobStatus, ServerSpec, ServerStatus, Then};

    use super::*;

    /// Of a job that cleans and then writes, of which the part `last` failed.
    fn failing(last: &str, error: &str, log: &[&str]) -> Server {
        let job = Placed {
            id: "1-clean".to_owned(),
            then: Some(Then {
                id: "1-write".to_owned(),
                ..Then::default()
            }),
            ..Placed::default()
        };
        let spec = ServerSpec {
            job: Some(Box::new(job)),
            ..ServerSpec::default()
        };
        let mut server = Server::new("a", spec);
        server.status = Some(ServerStatus {
            job: Some(JobStatus {
                id: last.to_owned(),
                done: true,
                error: error.to_owned(),
                log: log.iter().map(|&line| line.to_owned()).collect(),
                ..JobStatus::default()
            }),
            ..ServerStatus::default()
        });
        server
    }

    #[test]
    fn what_an_agent_logs_of_its_failure_is_not_said_twice() {
        let told = |log: &[&str]| look(&failing("1-write", "no space", log), |_| true);
        let failed = |words: &str| Job::Failed(words.to_owned());
        assert_eq!(told(&[]), failed("no space"));
        assert_eq!(
            told(&["sda: EIO", "ERROR command failed: no space"]),
            failed("no space")
        );
        assert_eq!(told(&["sda: EIO"]), failed("no space (its log ends: sda: EIO)"));
    }

    #[test]
    fn an_image_that_is_not_written_after_a_cleaning_is_told_with_that() {
        let told = |last| unwritten(&failing(last, "no space", &[]), "no space");
        assert_eq!(
            told("1-write"),
            "the image could not be written (the disks had been cleaned before): no space"
        );
        assert_eq!(told("1-clean"), "the image could not be written: no space");
    }

    #[test]
    fn what_an_operation_is_called_is_read_back_from_its_jobs() {
        let uid = "0a0a0a0a-0000-4000-8000-000000000001";
        let operation = operation(uid, PROVISION, Some(1_764_000_000), 2);
        assert_eq!(operation, format!("host-provision-{uid}-1764000000-2"));
        let leave = leave_id(&operation);
        assert_eq!(provisioning_left_by(&leave, uid), Some(1_764_000_000));
        assert_eq!(provisioning_left_by(&leave, &uid.replace('a', "b")), None);
        assert_eq!(provisioning_left_by(&clean_id(&operation), uid), None);
        let external = leave_id(&format!("{OURS}provisioned-{uid}-1764000000-0"));
        assert_eq!(provisioning_left_by(&external, uid), None);
        assert!(is_to(&leave, PROVISION) && !is_to(&external, PROVISION));
        for job in [
            clean_id(&operation),
            write_id(&operation),
            write_id(&operation) + "-key",
        ] {
            assert_eq!(operation_of(&job), Some(operation.as_str()));
        }
        assert_eq!(operation_of(&leave), None);
        assert!(!is_for_another(&leave, Some(uid)) && is_for_another(&leave, Some("other")));
    }
}
