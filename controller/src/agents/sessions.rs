//! Which agents are here, in memory only: heartbeats never reach Kubernetes, only their beginning and their end do.
//!
//! An agent is gone if it stayed silent for [`Pace::silent`], for [`Pace::answered`] after its poll was, or for [`Pace::closed`] after
//! its connection broke: a connection that closes proves little, because agents and networks reconnect.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use muster_proto::{
    kinds::{Server, SessionState},
    session::{HOLD_SECONDS, PROGRESS_SECONDS, PollRequest, SHORT_HOLD_SECONDS},
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{sync::Notify, time::Instant};

use super::ca::ClientCertificate;
use crate::sync::lock;

/// How patient the sessions are.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long a poll without news is held at most.
    pub poll: Duration,
    /// The same for one that tells progress.
    pub progress: Duration,
    /// Silence after which an agent is gone, from when it was last heard of or was given a job.
    pub silent: Duration,
    /// Silence after a poll that was answered without a job after which an agent is gone: it polls again at once.
    pub answered: Duration,
    /// Silence after a broken connection after which an agent is gone.
    pub closed: Duration,
    /// How long a Server with a job that has not ended may stay as it is before a session that another edge has is gone: longer than an agent
    /// lets a job say nothing new.
    pub untold: Duration,
    /// How long what is under way may take when this replica ends.
    pub farewell: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            poll: Duration::from_secs(HOLD_SECONDS),
            progress: Duration::from_secs(PROGRESS_SECONDS),
            silent: Duration::from_secs(100),
            answered: Duration::from_secs(40),
            closed: Duration::from_secs(15),
            untold: Duration::from_secs(35 * 60),
            farewell: Duration::from_secs(4),
        }
    }
}

impl Pace {
    /// How long `request` is held without news.
    pub(super) fn hold(&self, request: &PollRequest) -> Duration {
        let asked = request.hold_seconds.unwrap_or(SHORT_HOLD_SECONDS).max(1);
        let hold = self.poll.min(Duration::from_secs(asked));
        match request.progress {
            Some(_) => hold.min(self.progress),
            None => hold,
        }
    }
}

/// What of a Server a held poll waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    /// The job's id; empty if there is none.
    pub(super) job: String,
    /// The session that the job is decided for, if it is for one.
    pub(super) whose: Option<String>,
    /// The key of the latest session; empty if the Server is gone.
    pub(super) key: String,
    /// The machine is shown to be here.
    pub(super) is_connected: bool,
    pub(super) contested: bool,
}

impl View {
    pub(super) fn of(server: Option<&Server>) -> View {
        let status = server.and_then(|server| server.status.as_ref());
        let session = status.and_then(|status| status.session.as_ref());
        let job = server.and_then(|server| server.spec.job.as_ref());
        View {
            job: job.map(|job| job.id.clone()).unwrap_or_default(),
            whose: job.and_then(|job| job.leave.as_ref().map(|leave| leave.session.clone())),
            key: session.map(|session| session.key.clone()).unwrap_or_default(),
            is_connected: session.is_some_and(|session| session.state == SessionState::Connected),
            contested: status.is_some_and(|status| status.contested),
        }
    }
}

#[derive(Debug)]
struct Live {
    key: String,
    /// Polls of this key that are held now.
    held: usize,
    /// How many there were.
    polls: u32,
    /// Since when it is silent, if none is held.
    since: Instant,
    /// After which silence it is gone.
    patience: Duration,
    /// What its polls have taken into account; none: not known.
    view: Option<View>,
    wake: Arc<Notify>,
}

impl Live {
    fn new(key: &str, patience: Duration) -> Live {
        Live {
            key: key.to_owned(),
            held: 0,
            polls: 0,
            since: Instant::now(),
            patience,
            view: None,
            wake: Arc::default(),
        }
    }

    /// Its silence begins now, and lasts for `patience` at most.
    fn falls_silent(&mut self, patience: Duration) {
        (self.since, self.patience) = (Instant::now(), patience);
    }

    fn is_gone(&self) -> bool {
        self.held == 0 && self.since.elapsed() >= self.patience
    }

    /// True if a poll is held, of this key or of another one that was in its place.
    fn is_awaited(&self) -> bool {
        Arc::strong_count(&self.wake) > 1
    }
}

/// The agents that are here, by Server name. There is at most one for each Server that exists.
#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) pace: Pace,
    live: Mutex<HashMap<String, Live>>,
    sessions: Gauge,
    polls: Gauge,
}

impl Sessions {
    /// `sessions` shows how many agents are here, `polls` how many polls are held.
    pub(super) fn new(pace: Pace, sessions: Gauge, polls: Gauge) -> Arc<Sessions> {
        Arc::new(Sessions {
            pace,
            live: Mutex::default(),
            sessions,
            polls,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Live>> {
        lock(&self.live)
    }

    /// The agent with `key` was heard of: its silence begins anew. A newer key replaces an older one and wakes its poll.
    pub(super) fn heard(&self, server: &str, key: &str) {
        let mut live = self.lock();
        heard(&mut live, server, key, self.pace.silent);
        self.count(&live);
    }

    /// A poll of the agent with `certificate` begins. What it holds ends the poll when it is dropped.
    pub(super) fn hold(self: &Arc<Self>, certificate: &Arc<ClientCertificate>) -> Held {
        let mut live = self.lock();
        let session = heard(
            &mut live,
            &certificate.server,
            &certificate.fingerprint,
            self.pace.silent,
        );
        session.held += 1;
        session.polls = session.polls.wrapping_add(1);
        let (wake, number) = (Arc::clone(&session.wake), session.polls);
        self.count(&live);
        self.polls.inc();
        Held {
            sessions: Arc::clone(self),
            certificate: Arc::clone(certificate),
            wake,
            number,
            end: End::CutOff,
        }
    }

    /// Wakes the polls of `server` if that looks different from what they saw.
    pub(super) fn compare(&self, server: &str, look: impl Fn(&str) -> View) {
        if self.lock().get(server).is_some_and(Live::is_awaited) {
            self.show(server, look(server));
        }
    }

    /// The same for all that are held.
    pub(super) fn compare_all(&self, look: impl Fn(&str) -> View) {
        let held: Vec<String> = self
            .lock()
            .iter()
            .filter(|(_, session)| session.is_awaited())
            .map(|(name, _)| name.clone())
            .collect();
        for name in held {
            self.show(&name, look(&name));
        }
    }

    /// Wakes all polls: this replica ends.
    pub(super) fn wake_all(&self) {
        self.lock()
            .values()
            .for_each(|session| session.wake.notify_waiters());
    }

    fn show(&self, server: &str, view: View) {
        if let Some(session) = self.lock().get_mut(server)
            && session.view.as_ref() != Some(&view)
        {
            session.view = Some(view);
            session.wake.notify_waiters();
        }
    }

    /// Server name and key of the agents that are gone; they are listed again until [`Sessions::forget`].
    pub(super) fn gone(&self) -> Vec<(String, String)> {
        let live = self.lock();
        let gone = live.iter().filter(|(_, session)| session.is_gone());
        gone.map(|(name, session)| (name.clone(), session.key.clone()))
            .collect()
    }

    /// True if the agent is gone and no other one has come.
    pub(super) fn is_gone(&self, server: &str, key: &str) -> bool {
        let gone = |session: &Live| session.key == key && session.is_gone();
        self.lock().get(server).is_some_and(gone)
    }

    /// True if the agent with `key` was heard of here, and that it is gone is still to be written.
    pub(super) fn knows(&self, server: &str, key: &str) -> bool {
        let same = |session: &Live| session.key == key;
        self.lock().get(server).is_some_and(same)
    }

    /// Forgets the agent, unless it was heard of again or another one came, whose poll is still to be woken.
    pub(super) fn forget(&self, server: &str, key: &str) {
        let mut live = self.lock();
        let same = |session: &Live| {
            session.key == key && !session.is_awaited() && session.since.elapsed() >= self.pace.closed
        };
        if live.get(server).is_some_and(same) {
            live.remove(server);
        }
        self.count(&live);
    }

    fn count(&self, live: &HashMap<String, Live>) {
        self.sessions.set(i64::try_from(live.len()).unwrap_or(i64::MAX));
    }
}

fn heard<'a>(
    live: &'a mut HashMap<String, Live>,
    server: &str,
    key: &str,
    patience: Duration,
) -> &'a mut Live {
    let session = live
        .entry(server.to_owned())
        .or_insert_with(|| Live::new(key, patience));
    if session.key != key {
        session.wake.notify_waiters();
        // A poll of the other key may go on, and is woken like this one's: the later of two is not always the newer session.
        let wake = Arc::clone(&session.wake);
        *session = Live {
            wake,
            ..Live::new(key, patience)
        };
    }
    session.falls_silent(patience);
    session
}

/// A poll that is held.
#[derive(Debug)]
pub(super) struct Held {
    sessions: Arc<Sessions>,
    certificate: Arc<ClientCertificate>,
    /// Notified when the Server looks different from the view last given to [`Held::sees`], and when this replica ends.
    pub(super) wake: Arc<Notify>,
    /// Which of its key's polls this is.
    number: u32,
    end: End,
}

/// How a poll ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Its connection broke.
    CutOff,
    Answered,
    /// On the job the agent may spend a while before it polls again.
    AnsweredWithJob,
}

impl Held {
    /// What the poll has taken into account.
    pub(super) fn sees(&self, view: View) {
        if let Some(session) = self.session(&mut self.sessions.lock()) {
            session.view = Some(view);
        }
    }

    /// The session, unless another has taken its place.
    fn session<'a>(&self, live: &'a mut HashMap<String, Live>) -> Option<&'a mut Live> {
        live.get_mut(&self.certificate.server)
            .filter(|session| session.key == self.certificate.fingerprint)
    }

    /// The poll ends with an answer; dropped without, its connection broke.
    pub(super) fn answered(mut self) {
        self.end = End::Answered;
    }

    /// The same with a job.
    pub(super) fn answered_with_job(mut self) {
        self.end = End::AnsweredWithJob;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.sessions.polls.dec();
        if let Some(session) = self.session(&mut self.sessions.lock()) {
            session.held = session.held.saturating_sub(1);
            // Of an older one's broken connection the agent knows: it has called again since.
            if session.polls == self.number {
                let pace = &self.sessions.pace;
                session.falls_silent(match self.end {
                    End::CutOff => pace.closed,
                    End::Answered => pace.answered,
                    End::AnsweredWithJob => pace.silent,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        job::Progress,
        kinds::{Job, Leave, ServerSpec},
    };

    use super::*;

    fn of(server: &str, key: &str) -> Arc<ClientCertificate> {
        Arc::new(ClientCertificate {
            server: server.to_owned(),
            session: "enrolment".to_owned(),
            fingerprint: key.to_owned(),
            not_after: 0,
        })
    }

    fn sessions() -> Arc<Sessions> {
        Sessions::new(Pace::default(), Gauge::default(), Gauge::default())
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_is_gone_that_does_not_come_back_for_its_next_poll() {
        let sessions = sessions();
        let polls = [sessions.hold(&of("a", "k")), sessions.hold(&of("busy", "k"))];
        sessions.heard("c", "k");
        tokio::time::advance(Duration::from_secs(99)).await;
        assert!(sessions.gone().is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(sessions.gone(), [("c".to_owned(), "k".to_owned())]);
        tokio::time::advance(sessions.pace.poll).await;
        let [idle, busy] = polls;
        idle.answered();
        busy.answered_with_job();
        sessions.forget("c", "k");
        tokio::time::advance(Duration::from_secs(39)).await;
        assert!(sessions.gone().is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(sessions.gone(), [("a".to_owned(), "k".to_owned())]);
        sessions.forget("a", "k");
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(sessions.gone().is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(sessions.gone(), [("busy".to_owned(), "k".to_owned())]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_connection_alone_is_no_end() {
        let sessions = sessions();
        drop(sessions.hold(&of("a", "k")));
        tokio::time::advance(Duration::from_secs(14)).await;
        assert!(sessions.gone().is_empty());
        let again = sessions.hold(&of("a", "k"));
        tokio::time::advance(Duration::from_secs(300)).await;
        assert!(sessions.gone().is_empty(), "a held poll is a sign of life");
        drop(again);
        tokio::time::advance(Duration::from_secs(15)).await;
        assert_eq!(sessions.gone().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_session_replaces_an_older_one() {
        let sessions = sessions();
        let old = sessions.hold(&of("a", "old"));
        sessions.heard("a", "new");
        drop(old);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(
            sessions.gone().is_empty(),
            "the end of the old poll does not touch the new session"
        );
        sessions.forget("a", "old");
        assert_eq!(sessions.sessions.get(), 1);
    }

    #[test]
    fn a_poll_is_held_as_long_as_its_agent_waits_and_no_longer_than_we_like() {
        let hold = |hold_seconds, progress| {
            let request = PollRequest {
                hold_seconds,
                progress,
                ..PollRequest::default()
            };
            Pace::default().hold(&request).as_secs()
        };
        let asked = [None, Some(0), Some(7), Some(240), Some(241), Some(u64::MAX)];
        assert_eq!(asked.map(|asked| hold(asked, None)), [25, 1, 7, 240, 240, 240]);
        let progress = Some(Progress::default());
        assert_eq!(
            asked.map(|asked| hold(asked, progress.clone())),
            [10, 1, 7, 10, 10, 10]
        );
    }

    #[test]
    fn a_job_that_is_decided_anew_for_another_session_is_news_under_the_same_id() {
        let of = |session: &str| {
            let leave = Leave {
                session: session.to_owned(),
                ..Leave::default()
            };
            let job = Job {
                id: "1".to_owned(),
                leave: Some(leave),
                ..Job::default()
            };
            let spec = ServerSpec {
                job: Some(Box::new(job)),
                ..ServerSpec::default()
            };
            View::of(Some(&Server::new("a", spec)))
        };
        assert_ne!(of("former"), of("now"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_an_older_polls_connection_says_nothing_of_the_agent() {
        let sessions = sessions();
        let older = sessions.hold(&of("a", "k"));
        sessions.hold(&of("a", "k")).answered_with_job();
        drop(older);
        tokio::time::advance(Pace::default().closed).await;
        assert!(!sessions.is_gone("a", "k"));
        drop(sessions.hold(&of("a", "k")));
        tokio::time::advance(Pace::default().closed).await;
        assert!(sessions.is_gone("a", "k"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_wakes_only_for_what_it_has_not_seen() {
        let sessions = sessions();
        let held = sessions.hold(&of("a", "k"));
        let view = View {
            job: "1".into(),
            ..View::default()
        };
        held.sees(view.clone());
        let woken = held.wake.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        let other = |_: &str| View {
            job: "2".into(),
            ..View::default()
        };
        sessions.compare("a", |_| view.clone());
        sessions.compare("b", other);
        sessions.compare_all(|_| view.clone());
        assert!(futures::poll!(woken.as_mut()).is_pending());
        sessions.compare("a", other);
        assert!(futures::poll!(woken.as_mut()).is_ready());
        let woken = held.wake.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        sessions.compare_all(|_| view.clone());
        assert!(futures::poll!(woken.as_mut()).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_whose_place_an_older_key_has_taken_still_wakes() {
        let sessions = sessions();
        let held = sessions.hold(&of("a", "new"));
        let seen = View {
            key: "new".into(),
            ..View::default()
        };
        held.sees(seen.clone());
        sessions.heard("a", "old");
        // Its own agent is gone, the other one's poll is not.
        tokio::time::advance(Duration::from_secs(100)).await;
        sessions.forget("a", "old");
        let mut seen = seen;
        for job in ["", "1", "2"] {
            seen.job = job.into();
            let woken = held.wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            match job {
                "1" => sessions.compare("a", |_| seen.clone()),
                "2" => sessions.compare_all(|_| seen.clone()),
                // The Server is gone.
                _ => sessions.compare("a", |_| View::default()),
            }
            assert!(futures::poll!(woken.as_mut()).is_ready(), "{job}");
        }
        drop(held);
        sessions.forget("a", "old");
        assert_eq!(sessions.sessions.get(), 0);
    }

    #[tokio::test]
    async fn at_the_end_all_polls_wake_also_one_whose_place_another_key_has_taken() {
        let sessions = sessions();
        let polls = [sessions.hold(&of("a", "k1")), sessions.hold(&of("b", "k"))];
        sessions.heard("a", "k2");
        for held in polls {
            let woken = held.wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            sessions.wake_all();
            assert!(futures::poll!(woken.as_mut()).is_ready());
        }
    }
}
