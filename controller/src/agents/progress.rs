//! How often the progress of a job is written: at most every ten seconds and twelve times, spread over the whole of it, and that it goes on
//! at least every 15 minutes. In between it is known to nobody but the agent, which tells it again.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use muster_proto::{job::Progress, kinds::Server, session::PollRequest};
use tokio::time::Instant;

use crate::sync::lock;

/// Between two writes.
const PAUSE: Duration = Duration::from_secs(10);
/// Of one job.
const WRITES: u32 = 12;
/// Between two writes of which one says that nothing comes any more, or something again: these are not counted, or a write that stands still
/// now and then would be shown no more at all.
const LONG_PAUSE: Duration = Duration::from_secs(60);
/// Without another write, so that a job that is slow, or of which nobody knows how long it is, is not taken for one whose edge is gone
/// ([`super::orphans`]). Not counted either.
const ALIVE: Duration = Duration::from_mins(15);
/// A step of that many percent is worth a write: twelve of them are a whole job.
const STRIDE: u8 = 9;

/// Whether what a poll tells of its job is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Yes.
    Now,
    /// Not yet.
    Later,
}

/// What was written of a Server's job.
#[derive(Clone, Debug)]
struct Written {
    job: String,
    writes: u32,
    last: Instant,
    shown: Progress,
}

/// The writes of each Server's latest job. There is at most one entry for each Server that exists and has had a job.
#[derive(Debug)]
pub(super) struct Progresses {
    written: Mutex<HashMap<String, Written>>,
    /// Before this nobody knows when anything was written.
    begun: Instant,
}

impl Default for Progresses {
    fn default() -> Progresses {
        Progresses {
            written: Mutex::default(),
            begun: Instant::now(),
        }
    }
}

impl Progresses {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Written>> {
        lock(&self.written)
    }

    /// Whether the progress in `request` of the Server `name`, which looks like `server`, is written.
    pub(super) fn due(&self, name: &str, request: &PollRequest, server: &Server) -> Due {
        let Some(progress) = &request.progress else {
            return Due::Later;
        };
        let status = server.last_job();
        let Some(known) = status.filter(|known| known.id == request.last) else {
            // That it was taken up is written anyway.
            return Due::Now;
        };
        let written = self.lock();
        let written = written.get(name).filter(|written| written.job == request.last);
        let paused = |pause| written.is_none_or(|written| written.last.elapsed() >= pause);
        let Some(shown) = &known.progress else {
            return Due::Now;
        };
        let may_step = paused(PAUSE) && written.is_none_or(|written| written.writes < WRITES);
        let last = written.map_or(self.begun, |written| written.last);
        let is_due = (may_step && is_a_step(shown, progress))
            || (paused(LONG_PAUSE) && turns(shown, progress))
            || (last.elapsed() >= ALIVE && shown != progress);
        match is_due {
            true => Due::Now,
            false => Due::Later,
        }
    }

    /// Something of the job in `request` was written, and its progress if that was `due`.
    pub(super) fn wrote(&self, name: &str, request: &PollRequest, due: Due) {
        let Some(progress) = request.progress.as_ref().filter(|_| due == Due::Now) else {
            return;
        };
        let mut written = self.lock();
        let entry = written.entry(name.to_owned()).or_insert_with(|| Written {
            job: String::new(),
            writes: 0,
            last: Instant::now(),
            shown: progress.clone(),
        });
        let is_another = entry.job != request.last;
        if is_another {
            entry.job.clone_from(&request.last);
            entry.writes = 0;
        }
        if is_another || is_a_step(&entry.shown, progress) {
            entry.writes += 1;
        }
        entry.last = Instant::now();
        entry.shown.clone_from(progress);
    }

    /// Keeps those for which `exists` holds.
    pub(super) fn prune(&self, exists: impl Fn(&str) -> bool) {
        self.lock().retain(|name, _| exists(name));
    }
}

fn is_a_step(shown: &Progress, now: &Progress) -> bool {
    stage(shown) != stage(now) || shown.percent.abs_diff(now.percent) >= STRIDE
}

/// The step without what holds it up, which stands in brackets behind it.
fn stage(progress: &Progress) -> &str {
    let step = progress.step.as_str();
    step.split_once(" (").map_or(step, |(stage, _)| stage)
}

/// True if nothing comes any more, or something again, or if something else holds the step up.
fn turns(shown: &Progress, now: &Progress) -> bool {
    let moves = |progress: &Progress| progress.bytes_per_second > 0;
    let says_why = stage(shown) == stage(now) && shown.step != now.step;
    moves(shown) != moves(now) || says_why
}

#[cfg(test)]
mod tests {
    use muster_proto::kinds::{Job, ServerSpec, ServerStatus};

    use super::*;
    use crate::agents::jobs;

    fn telling(percent: u8, step: &str) -> PollRequest {
        PollRequest {
            last: "1".to_owned(),
            progress: Some(Progress {
                step: step.to_owned(),
                percent,
                bytes_per_second: 0,
            }),
            ..PollRequest::default()
        }
    }

    /// Tells it and writes it as the edge does; true if anything was written.
    fn tell(progresses: &Progresses, server: &mut Server, request: &PollRequest) -> bool {
        let due = progresses.due("a", request, server) == Due::Now;
        let news = jobs::news(server, request, due);
        let written = news.is_some();
        if let Some(job) = news {
            server.status.get_or_insert_default().job = Some(job);
            progresses.wrote("a", request, Due::Now);
        }
        written
    }

    fn with_job() -> Server {
        let job = Job {
            id: "1".to_owned(),
            ..Job::default()
        };
        let spec = ServerSpec {
            job: Some(Box::new(job)),
            ..ServerSpec::default()
        };
        let mut server = Server::new("a", spec);
        server.status = Some(ServerStatus::default());
        server
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_stands_still_is_shown_so() {
        let (progresses, mut server) = (Progresses::default(), with_job());
        let mut tell_at = |percent, speed| {
            let mut request = telling(percent, "write image");
            request.progress.as_mut().unwrap().bytes_per_second = speed;
            tell(&progresses, &mut server, &request)
        };
        assert!(tell_at(1, 0));
        // However often: of the steps none is lost for that.
        for _ in 0..WRITES {
            tokio::time::advance(PAUSE).await;
            assert!(!tell_at(2, 50_000_000), "soon");
            tokio::time::advance(LONG_PAUSE).await;
            assert!(tell_at(2, 50_000_000));
            tokio::time::advance(LONG_PAUSE).await;
            assert!(!tell_at(3, 60_000_000));
            assert!(tell_at(3, 0));
        }
        tokio::time::advance(PAUSE).await;
        assert!(tell_at(3 + STRIDE, 50_000_000));
    }

    /// So that nobody takes its edge for gone.
    #[tokio::test(start_paused = true)]
    async fn that_a_job_goes_on_is_shown_now_and_then_and_costs_no_step() {
        let (progresses, mut server) = (Progresses::default(), with_job());
        let speeds = |speed| {
            let mut request = telling(2, "write image");
            request.progress.as_mut().unwrap().bytes_per_second = speed;
            request
        };
        assert!(tell(&progresses, &mut server, &speeds(1)));
        for speed in 2..=u64::from(WRITES) + 2 {
            tokio::time::advance(ALIVE - Duration::from_secs(1)).await;
            assert!(!tell(&progresses, &mut server, &speeds(speed)), "soon");
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(tell(&progresses, &mut server, &speeds(speed)));
        }
        tokio::time::advance(PAUSE).await;
        assert!(tell(
            &progresses,
            &mut server,
            &telling(2 + STRIDE, "write image")
        ));
        let restarted = Progresses::default();
        tokio::time::advance(ALIVE).await;
        assert!(tell(&restarted, &mut server, &telling(3 + STRIDE, "write image")));
    }

    #[tokio::test(start_paused = true)]
    async fn what_holds_a_write_up_is_shown_seldom_and_costs_no_step() {
        let (progresses, mut server) = (Progresses::default(), with_job());
        let mut tell_at = |percent, step| tell(&progresses, &mut server, &telling(percent, step));
        let failing = "write image (download failing, retrying)";
        assert!(tell_at(1, "write image"));
        for _ in 0..WRITES {
            for step in [failing, "write image"] {
                tokio::time::advance(PAUSE).await;
                assert!(!tell_at(1, step), "soon");
                tokio::time::advance(LONG_PAUSE).await;
                assert!(tell_at(1, step), "{step}");
                assert!(!tell_at(1, step), "as it was");
            }
        }
        tokio::time::advance(PAUSE).await;
        assert!(tell_at(1 + STRIDE, "write image"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_job_is_written_twelve_times_from_its_begin_to_its_end() {
        for seconds in [2_u32, 60, 99] {
            let (progresses, mut server) = (Progresses::default(), with_job());
            let mut written = Vec::new();
            // Polls come every second; the job takes `seconds` for each percent.
            for at in 0..=100 * seconds {
                let percent = u8::try_from(at / seconds).unwrap();
                if tell(&progresses, &mut server, &telling(percent, "write image")) {
                    written.push((at, percent));
                }
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            assert!(written.len() <= 12 && written.len() >= 9, "{written:?}");
            assert!(
                written.windows(2).all(|two| two[1].0 - two[0].0 >= 10),
                "{written:?}"
            );
            assert!(written.last().unwrap().1 >= 90, "{written:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn steps_that_flicker_are_written_twelve_times_and_another_job_begins_anew() {
        let (progresses, mut server) = (Progresses::default(), with_job());
        let mut written = 0;
        for at in 0..100_u32 {
            written += u32::from(tell(&progresses, &mut server, &telling(0, &at.to_string())));
            tokio::time::advance(PAUSE).await;
        }
        assert_eq!(written, WRITES);
        server.spec.job.as_mut().unwrap().id = "2".to_owned();
        let other = PollRequest {
            last: "2".to_owned(),
            ..telling(0, "clean")
        };
        assert!(tell(&progresses, &mut server, &other));
        progresses.prune(|name| name != "a");
        assert!(progresses.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_starts_in_the_middle_goes_on() {
        let (progresses, mut server) = (Progresses::default(), with_job());
        assert!(tell(&progresses, &mut server, &telling(50, "write image")));
        let fresh = Progresses::default();
        assert!(!tell(&fresh, &mut server, &telling(51, "write image")));
        assert!(tell(&fresh, &mut server, &telling(70, "write image")));
        // The machine lost its power and begins again.
        tokio::time::advance(PAUSE).await;
        assert!(tell(&fresh, &mut server, &telling(1, "write image")));
    }
}
