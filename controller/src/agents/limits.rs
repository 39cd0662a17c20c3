//! How often one machine may have written what it says: each such write is one to etcd, up to half a megabyte, and discovery writes more
//! for it. And how often one token may be shown, a job be read anew, and it be asked whose a Server is: they, too, ask the API server
//! each time. And how often an inventory is understood at all, and a certificate renewed.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use muster_proto::session::{Problem, ProblemKind};
use tokio::time::Instant;

use super::problem::problem;
use crate::{
    bucket::{Bucket, Rate},
    sync::lock,
};

/// Someone who changes disks by hand is not held up; a machine whose hardware flickers is. `Retry-After` says the same 30 s.
const INVENTORIES: Rate = Rate {
    burst: 5,
    every: Duration::from_secs(30),
};

/// What polls tell: a job is taken up, goes on and ends. That is a few writes in a minute, and a stranger may enrol, too.
const POLLS: Rate = Rate {
    burst: 30,
    every: Duration::from_secs(2),
};

/// What asks the API server each time: attempts to enrol with one token, whose machine tries again ever more slowly where it hears no
/// answer; jobs that destroy data, each of which is read anew and given once, unless an agent does not take it up; and calls with a
/// certificate whose session the watched copy does not show, which is a moment behind or shows that another one has replaced it.
const ASKED: Rate = Rate {
    burst: 10,
    every: Duration::from_secs(5),
};

/// Inventories, whatever is written of them: each may take the processor a tenth of a second to understand. A ramdisk whose hardware
/// flickers sends one in five seconds.
const REPORTS: Rate = Rate {
    burst: 10,
    every: Duration::from_secs(2),
};

/// Logs of jobs that failed: an agent tells one of each.
const LOGS: Rate = Rate {
    burst: 10,
    every: Duration::from_secs(30),
};

/// Certificates that are renewed, for each of which one signature is checked and another one made: an agent asks for one in half an hour,
/// for the next one a minute later if it cannot use that, and at once if the answer gets lost.
const RENEWALS: Rate = Rate {
    burst: 5,
    every: Duration::from_secs(60),
};

/// What each Server has had written lately, or each token, or each key. There is at most one bucket for each Server that exists, one for
/// each token that this installation sealed lately, and one for each key that it has certified lately.
#[derive(Debug)]
pub(super) struct RateLimit {
    rate: Rate,
    /// How it is said that there are too many.
    refusal: ProblemKind,
    buckets: Mutex<HashMap<String, Bucket>>,
}

impl RateLimit {
    /// Of what the hardware is, by inventories or by retries of an enrolment.
    pub(super) fn of_inventories() -> RateLimit {
        RateLimit::at(INVENTORIES, ProblemKind::Quota)
    }

    /// Of what polls tell, what is asked of the API server for them included.
    pub(super) fn of_polls() -> RateLimit {
        // It is tried again soon, as any poll that cannot be taken now.
        RateLimit::at(POLLS, ProblemKind::Unavailable)
    }

    /// Of what asks the API server each time: enrolments, by the name of the Enrolment that the token is spent by, jobs, or whose a
    /// Server is, by the key of who calls.
    pub(super) fn of_questions() -> RateLimit {
        RateLimit::at(ASKED, ProblemKind::Unavailable)
    }

    /// Of inventories that are understood, whether or not anything is written then.
    pub(super) fn of_reports() -> RateLimit {
        RateLimit::at(REPORTS, ProblemKind::Unavailable)
    }

    /// Of what agents have to say for our log.
    pub(super) fn of_logs() -> RateLimit {
        RateLimit::at(LOGS, ProblemKind::Quota)
    }

    /// Of certificates that are renewed.
    pub(super) fn of_renewals() -> RateLimit {
        // Another edge may have one to give.
        RateLimit::at(RENEWALS, ProblemKind::Unavailable)
    }

    fn at(rate: Rate, refusal: ProblemKind) -> RateLimit {
        RateLimit {
            rate,
            refusal,
            buckets: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Bucket>> {
        lock(&self.buckets)
    }

    /// The right to one write for `whose`.
    pub(super) fn one<'a>(&'a self, whose: &'a str) -> Allowance<'a> {
        Allowance {
            limit: self,
            whose,
            taken: false,
            refused: false,
        }
    }

    /// Forgets those that have had nothing written lately.
    pub(super) fn prune(&self) {
        let now = Instant::now();
        self.lock().retain(|_, bucket| !bucket.is_full(now));
    }
}

/// One write, however often it is computed.
#[derive(Debug)]
pub(super) struct Allowance<'a> {
    limit: &'a RateLimit,
    whose: &'a str,
    taken: bool,
    refused: bool,
}

impl Allowance<'_> {
    /// True if it may be done.
    pub(super) fn may(&mut self) -> bool {
        if !self.taken {
            let now = Instant::now();
            let mut buckets = self.limit.lock();
            let bucket = buckets
                .entry(self.whose.to_owned())
                .or_insert_with(|| Bucket::new(now));
            self.taken = bucket.take(self.limit.rate, now);
            self.refused = !self.taken;
        }
        self.taken
    }

    /// The same, with what the agent is told if it may not.
    pub(super) fn ask(&mut self) -> Result<(), Problem> {
        self.may();
        self.refusal().map_or(Ok(()), Err)
    }

    /// What the agent is told if it may not.
    pub(super) fn refusal(&self) -> Option<Problem> {
        self.refused.then(|| {
            problem(
                self.limit.refusal,
                "too many requests of this kind; try again later",
            )
        })
    }

    /// It was not done: a machine does not pay for the API server.
    pub(super) fn failed(self) {
        if self.taken
            && let Some(bucket) = self.limit.lock().get_mut(self.whose)
        {
            bucket.give_back(self.limit.rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_machine_has_no_more_written_than_its_share_and_takes_none_of_anothers() {
        let limit = RateLimit::of_inventories();
        for _ in 0..100 {
            let mut failed = limit.one("a");
            assert!(failed.may() && failed.may());
            failed.failed();
        }
        let mut refused = limit.one("a");
        let done = (0..100).filter(|_| limit.one("a").may()).count();
        assert_eq!(done, 5);
        assert!(!refused.may() && refused.refusal().is_some());
        assert!(limit.one("b").may());
        tokio::time::advance(INVENTORIES.every * 6).await;
        assert!(limit.one("a").may());
        limit.prune();
        assert_eq!(limit.lock().len(), 1, "b is forgotten");
    }
}
