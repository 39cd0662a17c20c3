//! What this session was told to do: which job runs, which come no more, and whose outcome the controller has yet to hear.
//!
//! | a command | what happens |
//! | --- | --- |
//! | that runs or waits already | nothing |
//! | that has ended | its outcome is told again |
//! | of an older term than was seen, or than that of the job that runs | refused with a failed outcome; what runs goes on |
//! | any other, while none runs | it starts |
//! | any other, while one runs | that one is stopped, and the new one starts once it has ended |
//!
//! A job of which a thread breaks (a panic) has failed, and its threads never let go of the disk. The session goes on, to say so; at the
//! next job that needs a disk the machine boots again, since whoever gave that has made its mind up that the ramdisk is to boot.
//!
//! So has one that says nothing new for half an hour: a disk that does not answer holds its thread for ever, and the host with it.
//!
//! The machine boots again, too, when nothing runs and all that has come for half an hour was of older terms: no leader of a newer one is
//! there, so the numbers began anew (somebody had written one that was far ahead), and only another session takes orders again.
//!
//! A job that disappears from the Server without a new one in its place goes on: nobody has decided otherwise.
//! Term 0 is nobody's: such a command comes from a person or from a part of the controller that needs no fence. It is as good as any
//! term as long as it destroys nothing and nothing runs.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use muster_proto::{
    job::{Failure, Progress},
    session::{Action, Command, MAX_WARNINGS, Outcome, newest},
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, timeout},
};

use crate::{steps::Failed, work::Work};

/// How many commands are remembered.
const KNOWN: usize = 64;

/// How long a job may say nothing new. An image server that is tried again says so each time, and the longest thing that is done
/// without a word is to zero some GiB.
const STALL: Duration = Duration::from_secs(30 * 60);

/// For how long commands of older terms are refused before the machine boots again.
const OUTDATED: Duration = Duration::from_secs(30 * 60);

/// How many bytes of what failed are left where the controller does not take more.
const SHORT: usize = 1000;

/// The jobs of one session.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    /// The highest term that any command had.
    epoch: i64,
    /// When the first command was refused since one was taken up or ran.
    refusing: Option<Instant>,
    /// Commands that were taken up or refused, and how they ended; the oldest are forgotten.
    known: VecDeque<(String, Option<Outcome>)>,
    running: Option<Running>,
    /// One broke: its threads are there still.
    broken: bool,
    /// Starts when the running one has ended.
    next: Option<Command>,
    /// What the controller has not acknowledged yet.
    untold: VecDeque<Untold>,
    /// Notified when the running one ends.
    pub(super) ended: Arc<Notify>,
}

/// A job that runs beside the session's calls. Dropped, it is told to stop.
#[derive(Debug)]
struct Running {
    id: String,
    epoch: i64,
    work: Work,
    progress: watch::Receiver<Progress>,
    end: oneshot::Receiver<Result<(), Failed>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.work.stop();
    }
}

/// An outcome on its way.
#[derive(Clone, Debug)]
pub(super) struct Untold {
    pub(super) id: String,
    pub(super) outcome: Outcome,
    pub(super) log: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Untold {
    /// With nothing else to say of it.
    pub(super) fn new(id: &str, outcome: Outcome) -> Untold {
        Untold {
            id: id.to_owned(),
            outcome,
            log: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// What is done with a command.
#[derive(Debug, PartialEq)]
pub(super) enum Judgement {
    /// Nothing: it is under way.
    UnderWay,
    /// It has ended like this.
    Ended(Outcome),
    /// It is not carried out, for this reason.
    Refuse(String),
    /// It is carried out.
    Take,
}

/// Tells the session that a job has ended, however it did.
struct Ending(Arc<Notify>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Jobs {
    /// What is to be done with `command`.
    pub(super) fn judge(&self, command: &Command) -> Judgement {
        let Command {
            id, epoch, action, ..
        } = command;
        let waits = self.next.as_ref().is_some_and(|next| next.id == *id);
        if waits || self.running.as_ref().is_some_and(|running| running.id == *id) {
            return Judgement::UnderWay;
        }
        if let Some((_, outcome)) = self.known.iter().find(|(known, _)| known == id) {
            return match outcome {
                Some(outcome) => Judgement::Ended(outcome.clone()),
                None => Judgement::UnderWay,
            };
        }
        let destroys = matches!(action, Action::Clean(_) | Action::Write(_));
        if let Some(running) = self.running.as_ref().filter(|running| *epoch < running.epoch) {
            let message = format!(
                "it is from term {epoch}, but job {} of term {} is running",
                running.id, running.epoch
            );
            return Judgement::Refuse(message);
        }
        if *epoch < self.epoch && (destroys || *epoch != 0) {
            let message = format!(
                "it is from term {epoch}, but this session has already seen term {}",
                self.epoch
            );
            return Judgement::Refuse(message);
        }
        Judgement::Take
    }

    /// `command` is carried out from now on.
    pub(super) fn took(&mut self, command: &Command) {
        self.epoch = self.epoch.max(command.epoch);
        self.refusing = None;
        self.remember(&command.id, None);
    }

    /// A command is to be refused at `now`. True if none was taken since one was refused long ago: the machine is to boot again instead.
    pub(super) fn refuses_too_long(&mut self, now: Instant) -> bool {
        if self.running.is_some() || self.next.is_some() {
            self.refusing = None;
            return false;
        }
        let since = *self.refusing.get_or_insert(now);
        now.saturating_duration_since(since) >= OUTDATED
    }

    fn remember(&mut self, id: &str, outcome: Option<Outcome>) {
        self.forget(id);
        if self.known.len() == KNOWN {
            self.known.pop_front();
        }
        self.known.push_back((id.to_owned(), outcome));
    }

    /// The command `id` was not carried out, and may be taken again.
    pub(super) fn forget(&mut self, id: &str) {
        self.known.retain(|(known, _)| known != id);
    }

    /// A job ended like this.
    pub(super) fn finished(&mut self, ended: Untold) {
        self.remember(&ended.id, Some(ended.outcome.clone()));
        self.tell(Untold {
            log: newest(ended.log.into_iter()),
            ..ended
        });
    }

    /// The controller is to hear of it, and of nothing else about this job.
    pub(super) fn tell(&mut self, ended: Untold) {
        self.untold.retain(|untold| untold.id != ended.id);
        self.untold.push_back(ended);
    }

    /// What the next poll tells.
    pub(super) fn untold(&self) -> Option<&Untold> {
        self.untold.front()
    }

    /// Leaves of what is to be told of the job `id` only what matters most; false if nothing can be left out.
    pub(super) fn shorten(&mut self, id: &str) -> bool {
        let Some(untold) = self.untold.iter_mut().find(|untold| untold.id == id) else {
            return false;
        };
        let mut is_shorter = !std::mem::take(&mut untold.log).is_empty();
        is_shorter |= !std::mem::take(&mut untold.warnings).is_empty();
        if let Outcome::Failed { message, .. } = &mut untold.outcome
            && message.len() > SHORT
        {
            message.truncate(message.floor_char_boundary(SHORT));
            is_shorter = true;
        }
        is_shorter
    }

    /// The controller has the outcome of the job `id`, or will never take it.
    pub(super) fn told(&mut self, id: &str) {
        self.untold.retain(|untold| untold.id != id);
    }

    /// Starts `run`, which tells its progress to what it is given, as the job of `command`.
    pub(super) fn start<F>(&mut self, command: &Command, run: impl FnOnce(Work) -> F)
    where
        F: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        let (report, progress) = watch::channel(Progress::default());
        let work = Work::new(move |progress: &Progress| {
            report.send_replace(progress.clone());
        });
        let job = run(work.clone());
        let (id, parts) = (command.id.clone(), work.clone());
        let (told, end) = oneshot::channel();
        let ending = Ending(Arc::clone(&self.ended));
        let mut said = progress.clone();
        tokio::spawn(async move {
            let _ending = ending;
            let end = tokio::select! {
                // First: its other threads are told to stop, and that is not why it failed.
                biased;
                why = parts.broken() => Err(broke(&id, &why)),
                end = job => end,
                // Whatever holds it, its threads are there still.
                why = stalled(&mut said) => {
                    parts.give_up(&why);
                    Err(broke(&id, &why))
                }
            };
            // Nobody listens any more if the session is over.
            let _ = told.send(end);
        });
        self.running = Some(Running {
            id: command.id.clone(),
            epoch: command.epoch,
            work,
            progress,
            end,
        });
    }

    /// True if the threads of a job that broke hold its disk, as they do until the machine boots again.
    pub(super) fn are_broken(&self) -> bool {
        self.broken
    }

    /// The id and the progress of the job that runs.
    pub(super) fn progress(&self) -> Option<(&str, Progress)> {
        let running = self.running.as_ref()?;
        Some((&running.id, running.progress.borrow().clone()))
    }

    /// True if no job runs or waits, and a single outcome is left to tell.
    pub(super) fn are_over(&self) -> bool {
        self.running.is_none() && self.next.is_none() && self.untold.len() == 1
    }

    /// True while a job runs.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Stops the job that runs; `command` is next. One that waited already comes no more.
    pub(super) fn replace(&mut self, command: Command) {
        if let Some(running) = &self.running {
            running.work.stop();
        }
        if let Some(replaced) = self.next.replace(command) {
            let outcome = self.replaced("it never started");
            self.finished(Untold::new(&replaced.id, outcome));
        }
    }

    /// Stops the job that runs.
    pub(super) fn stop(&self) {
        if let Some(running) = &self.running {
            running.work.stop();
        }
    }

    fn replaced(&self, what: &str) -> Outcome {
        let by = self.next.as_ref().map_or("", |next| &next.id);
        Outcome::Failed {
            message: format!("replaced by job {by}: {what}"),
            failure: Failure::Outdated,
        }
    }

    /// The job that has ended, once it has.
    pub(super) fn collect(&mut self) -> Option<Untold> {
        let ended = match self.running.as_mut()?.end.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return None,
            Ok(ended) => ended,
            Err(oneshot::error::TryRecvError::Closed) => Err(Failed {
                message: "the job ended unexpectedly".to_owned(),
                failure: Failure::Temporary,
            }),
        };
        let running = self.running.take()?;
        self.broken |= running.work.is_broken();
        let outcome = match ended {
            Ok(()) => Outcome::Done,
            Err(failed) if self.next.is_some() => self.replaced(&failed.message),
            Err(Failed { message, failure }) => Outcome::Failed { message, failure },
        };
        Some(Untold {
            warnings: running.work.warnings().into_iter().take(MAX_WARNINGS).collect(),
            ..Untold::new(&running.id, outcome)
        })
    }

    /// The command that waited, if nothing runs any more.
    pub(super) fn next(&mut self) -> Option<Command> {
        if self.running.is_some() {
            return None;
        }
        self.next.take()
    }
}

/// Ends, with the reason, when a job has said nothing new for [`STALL`].
async fn stalled(progress: &mut watch::Receiver<Progress>) -> String {
    while timeout(STALL, progress.changed()).await.is_ok() {}
    let Progress { step, percent, .. } = progress.borrow().clone();
    let minutes = STALL.as_secs() / 60;
    format!("no progress for {minutes} min at {percent} %, {step:?}: does the disk respond?")
}

/// What has become of the job `id`, of which a thread broke.
fn broke(id: &str, why: &str) -> Failed {
    Failed {
        message: format!(
            "the agent crashed during job {id}; next: the machine reboots before the next job to clean or write: {why}"
        ),
        failure: Failure::Temporary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(id: &str, epoch: i64, action: Action) -> Command {
        Command {
            id: id.to_owned(),
            epoch,
            farewell: false,
            action,
        }
    }

    fn write(id: &str, epoch: i64) -> Command {
        command(id, epoch, Action::Write(Box::default()))
    }

    fn taken(commands: &[Command]) -> Jobs {
        let mut jobs = Jobs::default();
        for command in commands {
            assert_eq!(jobs.judge(command), Judgement::Take);
            jobs.took(command);
        }
        jobs
    }

    /// With a job that runs for ever.
    fn running(command: &Command) -> Jobs {
        let mut jobs = taken(std::slice::from_ref(command));
        jobs.start(command, |_| std::future::pending());
        jobs
    }

    #[test]
    fn a_command_is_taken_once_and_its_end_is_told_as_often_as_it_is_given() {
        let mut jobs = taken(&[write("a", 1)]);
        assert_eq!(jobs.judge(&write("a", 1)), Judgement::UnderWay);
        jobs.finished(Untold::new("a", Outcome::Done));
        for _ in 0..3 {
            assert_eq!(jobs.judge(&write("a", 1)), Judgement::Ended(Outcome::Done));
        }
        assert_eq!(jobs.untold().unwrap().id, "a");
        jobs.told("a");
        assert!(jobs.untold().is_none());
    }

    #[test]
    fn an_older_term_is_refused_and_one_of_nobody_destroys_nothing() {
        let jobs = taken(&[write("a", 5)]);
        for (epoch, action) in [
            (4, Action::Inspect),
            (4, Action::Write(Box::default())),
            (0, Action::Write(Box::default())),
            (0, Action::Clean(Default::default())),
            (-1, Action::Reboot),
        ] {
            let judged = jobs.judge(&command("b", epoch, action));
            assert!(
                matches!(&judged, Judgement::Refuse(why) if why.contains("term 5")),
                "{judged:?}"
            );
        }
        for (epoch, action) in [
            (0, Action::Inspect),
            (0, Action::Reboot),
            (5, Action::Write(Box::default())),
            (6, Action::Inspect),
        ] {
            assert_eq!(jobs.judge(&command("b", epoch, action)), Judgement::Take);
        }
    }

    #[tokio::test]
    async fn who_refuses_all_commands_for_long_while_nothing_runs_boots_again() {
        let start = Instant::now();
        let almost = OUTDATED - Duration::from_secs(1);
        let refuse = |jobs: &mut Jobs, after: Duration| {
            assert!(matches!(jobs.judge(&write("b", 5)), Judgement::Refuse(_)));
            jobs.refuses_too_long(start + after)
        };
        let mut jobs = taken(&[write("a", i64::MAX)]);
        assert!(!refuse(&mut jobs, Duration::ZERO));
        assert!(!refuse(&mut jobs, almost));
        assert!(refuse(&mut jobs, OUTDATED));
        // One that is taken is a new beginning.
        let any = command("c", 0, Action::Inspect);
        assert_eq!(jobs.judge(&any), Judgement::Take);
        jobs.took(&any);
        assert!(!refuse(&mut jobs, OUTDATED));
        assert!(!refuse(&mut jobs, OUTDATED + almost));
        // So is one that runs, and it is never broken off.
        jobs.start(&write("a", i64::MAX), |_| std::future::pending());
        assert!(!refuse(&mut jobs, 3 * OUTDATED));
        assert!(!refuse(&mut jobs, 5 * OUTDATED));
        jobs.running = None;
        assert!(!refuse(&mut jobs, 7 * OUTDATED));
        assert!(refuse(&mut jobs, 8 * OUTDATED));
    }

    #[tokio::test]
    async fn a_running_job_gives_way_to_its_own_or_a_newer_term_only() {
        let mut jobs = running(&write("a", 5));
        for (epoch, action) in [(4, Action::Inspect), (0, Action::Reboot)] {
            let judged = jobs.judge(&command("b", epoch, action));
            assert!(
                matches!(&judged, Judgement::Refuse(why) if why.contains("job a")),
                "{judged:?}"
            );
        }
        let newer = write("c", 5);
        assert_eq!(jobs.judge(&newer), Judgement::Take);
        jobs.took(&newer);
        jobs.replace(newer.clone());
        assert!(jobs.running.as_ref().unwrap().work.is_stopped());
        assert_eq!(jobs.judge(&newer), Judgement::UnderWay);
        assert_eq!(jobs.next(), None, "two jobs never run at once");
        let newest = write("d", 6);
        jobs.took(&newest);
        jobs.replace(newest.clone());
        let replaced = jobs.untold().unwrap();
        assert_eq!(replaced.id, "c");
        assert!(
            matches!(&replaced.outcome, Outcome::Failed { message, failure: Failure::Outdated } if message.contains("job d"))
        );
    }

    #[tokio::test]
    async fn a_job_that_breaks_off_has_an_outcome_and_lets_the_next_begin() {
        let mut jobs = taken(&[write("a", 1)]);
        jobs.start(&write("a", 1), |work| async move {
            work.stopped().await;
            panic!("a job's end");
        });
        jobs.replace(write("b", 1));
        let ended = Arc::clone(&jobs.ended);
        tokio::time::timeout(std::time::Duration::from_secs(60), ended.notified())
            .await
            .expect("an end");
        let Untold { id, outcome, .. } = jobs.collect().unwrap();
        assert_eq!(id, "a");
        assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
        assert_eq!(jobs.next().unwrap().id, "b");
    }

    #[tokio::test]
    async fn a_job_of_which_a_thread_breaks_says_why_and_no_other_begins() {
        let mut jobs = taken(&[write("a", 1)]);
        assert!(!jobs.are_broken());
        jobs.start(&write("a", 1), |work| {
            std::thread::spawn(move || work.part(|| crate::work::break_off("index out of bounds")));
            // As of a thread that never ends.
            std::future::pending()
        });
        let ended = Arc::clone(&jobs.ended);
        tokio::time::timeout(std::time::Duration::from_secs(60), ended.notified())
            .await
            .expect("an end");
        let Untold { id, outcome, .. } = jobs.collect().unwrap();
        let Outcome::Failed { message, failure } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!((id.as_str(), failure), ("a", Failure::Temporary));
        assert!(message.ends_with("index out of bounds"), "{message}");
        assert!(jobs.are_broken());
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_says_nothing_new_for_long_has_failed_and_no_other_begins() {
        let mut jobs = taken(&[write("a", 1)]);
        let (told, work) = std::sync::mpsc::channel();
        jobs.start(&write("a", 1), |work| {
            told.send(work).unwrap();
            std::future::pending()
        });
        let work: Work = work.recv().unwrap();
        for percent in [10, 20] {
            tokio::time::sleep(STALL - Duration::from_secs(1)).await;
            assert!(jobs.collect().is_none(), "it goes on");
            work.step("write image", percent);
        }
        tokio::time::sleep(STALL + Duration::from_secs(1)).await;
        let Untold { outcome, .. } = jobs.collect().expect("an end");
        let Outcome::Failed { message, failure } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(failure, Failure::Temporary);
        assert!(message.contains("30 min at 20 %"), "{message}");
        assert!(work.is_stopped() && jobs.are_broken());
    }

    #[test]
    fn only_the_newest_lines_go_with_an_outcome() {
        let lines: Vec<_> = (0..1000).map(|number| format!("line {number}")).collect();
        let mut jobs = taken(&[write("a", 1)]);
        jobs.finished(Untold {
            log: lines.clone(),
            ..Untold::new("a", Outcome::Done)
        });
        let told = jobs.untold().unwrap();
        assert_eq!(told.log, newest(lines.clone().into_iter()));
        assert!(told.log.len() < lines.len());
    }

    #[test]
    fn what_is_told_in_short_warns_of_nothing() {
        let mut jobs = taken(&[write("a", 1)]);
        jobs.finished(Untold {
            warnings: vec!["no boot entry was made".to_owned()],
            ..Untold::new("a", Outcome::Done)
        });
        assert!(jobs.shorten("a"));
        assert_eq!(jobs.untold().unwrap().warnings, [""; 0]);
        assert!(!jobs.shorten("a"), "nothing is left to leave out");
    }

    #[test]
    fn a_session_of_many_commands_remembers_the_latest() {
        let many: Vec<_> = (0..KNOWN + 10).map(|id| write(&id.to_string(), 1)).collect();
        let jobs = taken(&many);
        assert_eq!(jobs.known.len(), KNOWN);
        assert_eq!(jobs.judge(many.last().unwrap()), Judgement::UnderWay);
    }
}
