//! Sessions whose edge is gone for good. Pure.
//!
//! An edge ends the sessions that fall silent towards it, and once, when it starts, those that it finds ([`super::adopt`]). Where the edge of a
//! machine that knows no other one never comes back, nobody would do so: its host would wait for a job that no agent is at. What other edges
//! hear never reaches Kubernetes, but how a job goes does: its end, which comes within half an hour where nothing happens, and at least every
//! 15 minutes how far it is. So a Server that does not change for longer than both, although its machine is at a job or is to be given one,
//! has lost its edge. If it has not, that edge shows the session as here again at once.

use std::{collections::HashMap, sync::Arc, time::Duration};

use muster_proto::{
    kinds::{Server, SessionState},
    session::{Command, PollRequest},
};
use tokio::time::Instant;

use super::jobs;

/// A session that another edge has, whose machine has something to do, and the Server that says so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Orphan {
    /// The Server's name.
    pub(super) server: String,
    /// The session's key.
    pub(super) key: String,
    /// The Server's version.
    pub(super) version: String,
}

impl Orphan {
    /// With what the machine would be given if it asked.
    fn of(server: &Server) -> Option<(Orphan, Command)> {
        let session = server.session()?;
        let is_here = session.state == SessionState::Connected;
        let command = jobs::command(server, &PollRequest::default()).filter(|_| is_here)?;
        let orphan = Orphan {
            server: server.metadata.name.clone()?,
            key: session.key.clone(),
            version: server.metadata.resource_version.clone()?,
        };
        Some((orphan, command))
    }
}

/// Since when each of them has been seen so. There is at most one for each Server that exists.
#[derive(Debug, Default)]
pub(super) struct Orphans(HashMap<Orphan, Instant>);

impl Orphans {
    /// Looks at all Servers. Returns those that have been as they are for `untold`, but for those of which `is_fine` says that nobody need
    /// write anything: their session is here, or they are not to have this command now. They are returned again until they change or are
    /// forgotten.
    pub(super) fn look(
        &mut self,
        servers: &[Arc<Server>],
        is_fine: impl Fn(&Server, &Orphan, &Command) -> bool,
        untold: Duration,
        now: Instant,
    ) -> Vec<Orphan> {
        let before = std::mem::take(&mut self.0);
        let seen = servers.iter().filter_map(|server| {
            let (orphan, command) = Orphan::of(server)?;
            (!is_fine(server, &orphan, &command)).then_some(orphan)
        });
        self.0 = seen
            .map(|orphan| {
                let since = before.get(&orphan).copied().unwrap_or(now);
                (orphan, since)
            })
            .collect();
        let due = self.0.iter().filter(|(_, since)| now - **since >= untold);
        due.map(|(orphan, _)| orphan.clone()).collect()
    }

    /// Its time begins anew.
    pub(super) fn forget(&mut self, orphan: &Orphan) {
        self.0.remove(orphan);
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::kinds::{Job, JobAction, JobStatus, ServerSpec, ServerStatus, Session};

    use super::*;

    const UNTOLD: Duration = Duration::from_secs(2100);
    const NOBODY: [Orphan; 0] = [];

    /// One that is to do the job `op-1`, of which its session has said nothing.
    fn server(version: &str) -> Server {
        let job = Job {
            id: "op-1".to_owned(),
            ..Job::default()
        };
        let spec = ServerSpec {
            job: Some(Box::new(job)),
            ..ServerSpec::default()
        };
        let mut server = Server::new("a", spec);
        server.metadata.resource_version = Some(version.to_owned());
        server.status = Some(ServerStatus {
            session: Some(Session {
                state: SessionState::Connected,
                key: "k".to_owned(),
                ..Session::default()
            }),
            ..ServerStatus::default()
        });
        server
    }

    fn orphan(version: &str) -> Orphan {
        Orphan {
            server: "a".to_owned(),
            key: "k".to_owned(),
            version: version.to_owned(),
        }
    }

    /// What is found at `at` of a world with nothing but `server`, where only other edges have a session.
    fn look(orphans: &mut Orphans, server: Server, at: Instant) -> Vec<Orphan> {
        orphans.look(&[Arc::new(server)], |_, _, _| false, UNTOLD, at)
    }

    #[test]
    fn a_session_of_which_nothing_is_said_for_long_while_a_job_waits_has_lost_its_edge() {
        let (mut orphans, begin) = (Orphans::default(), Instant::now());
        assert_eq!(look(&mut orphans, server("1"), begin), NOBODY);
        let short = begin + UNTOLD - Duration::from_secs(1);
        assert_eq!(look(&mut orphans, server("1"), short), NOBODY);
        let due = begin + UNTOLD;
        for _ in 0..2 {
            assert_eq!(look(&mut orphans, server("1"), due), [orphan("1")]);
        }
        // Something was written of it after all, and nothing again for as long.
        assert_eq!(look(&mut orphans, server("2"), due), NOBODY);
        assert_eq!(look(&mut orphans, server("2"), due + UNTOLD), [orphan("2")]);
        orphans.forget(&orphan("2"));
        assert_eq!(look(&mut orphans, server("2"), due + UNTOLD), NOBODY);
    }

    #[test]
    fn nobody_is_missed_who_is_here_has_nothing_to_do_or_is_known_to_be_gone() {
        let told = |server: &mut Server, id: &str, done| {
            server.status.as_mut().unwrap().job = Some(JobStatus {
                id: id.to_owned(),
                done,
                ..JobStatus::default()
            });
        };
        let mut idle = server("1");
        idle.spec.job = None;
        let mut ended = server("1");
        told(&mut ended, "op-1", true);
        let mut gone = server("1");
        let session = gone.status.as_mut().unwrap().session.as_mut().unwrap();
        session.state = SessionState::Disconnected;
        let mut never = server("1");
        never.status = None;
        // It is not given that while another machine may be meant.
        let mut contested = server("1");
        contested.spec.job.as_mut().unwrap().action = JobAction::Clean;
        contested.status.as_mut().unwrap().contested = true;
        let begin = Instant::now();
        for server in [idle, ended, gone, never, contested] {
            let mut orphans = Orphans::default();
            look(&mut orphans, server.clone(), begin);
            assert_eq!(look(&mut orphans, server, begin + UNTOLD), NOBODY);
            assert!(orphans.0.is_empty(), "and costs no memory");
        }
        // One that it is at, and one of which it said something before another took its place.
        for (id, done) in [("op-1", false), ("op-0", true)] {
            let (mut orphans, mut server) = (Orphans::default(), server("1"));
            told(&mut server, id, done);
            look(&mut orphans, server.clone(), begin);
            assert_eq!(look(&mut orphans, server, begin + UNTOLD), [orphan("1")], "{id}");
        }
        // Who was here in between had this edge.
        let mut orphans = Orphans::default();
        look(&mut orphans, server("1"), begin);
        let is_fine = |_: &Server, orphan: &Orphan, command: &Command| {
            (&*orphan.server, &*orphan.key, &*command.id) == ("a", "k", "op-1")
        };
        let all = [Arc::new(server("1"))];
        assert_eq!(orphans.look(&all, is_fine, UNTOLD, begin + UNTOLD), NOBODY);
        assert!(orphans.0.is_empty());
        assert_eq!(look(&mut orphans, server("1"), begin + UNTOLD), NOBODY);
    }
}
