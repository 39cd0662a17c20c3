//! Who leads: the decisions about one Lease, over plain data. Pure.
//!
//! Leading is a right that ends by itself: it lasts [`Timing::renew`] from when a write that the API server took was *sent*. Others
//! wait [`Timing::lease`], which is longer, from when they *saw* the Lease last change. Both count with a clock of their own that
//! only has to run at about the same speed; what time it is matters to nobody. Every write names the version of the Lease that it
//! was decided on, so of several who want it one gets it, and a look that is old can only lose.
//!
//! Only what a holder has given up by itself is free at once. A Lease from which somebody took the holder, or in which somebody wrote a
//! shorter time, does not end what its holder does, and is waited for like any other.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};

/// Time since this computer started, by a clock that nobody sets.
pub type Moment = Duration;

/// Annotation on the Lease: the number of the term. It only grows.
pub const EPOCH_ANNOTATION: &str = "muster.dev/epoch";

/// Annotation on the Lease: the number of the term that its holder gave up by itself, after its last write. Who takes the holder off by hand
/// leaves no such mark, or that of an earlier term.
pub(super) const RELEASED_ANNOTATION: &str = "muster.dev/released";

/// No term comes after that of this number. No clock leads there, so somebody wrote it; higher ones lose their last digits with some who read
/// JSON, and the highest cannot grow.
const LAST_EPOCH: i64 = 1 << 53;

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// For so long nobody else leads after the holder was last heard of; whole seconds.
    pub lease: Duration,
    /// A holder leads for so long after it sent its last renewal.
    pub renew: Duration,
    /// How often the holder renews, and what failed is tried again.
    pub retry: Duration,
}

/// Times that do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "lease duration {lease} s, renew deadline {renew} s, retry period {retry} s: each must be longer than the next, and the last at least 1 s"
)]
pub struct TimingError {
    lease: u64,
    renew: u64,
    retry: u64,
}

impl Timing {
    /// From whole seconds. The lease has to be longer than a renewal is good for, or two would lead at once.
    pub fn new(lease: u64, renew: u64, retry: u64) -> Result<Timing, TimingError> {
        let longest = u64::from(i32::MAX.unsigned_abs());
        if longest >= lease && lease > renew && renew > retry && retry >= 1 {
            Ok(Timing {
                lease: Duration::from_secs(lease),
                renew: Duration::from_secs(renew),
                retry: Duration::from_secs(retry),
            })
        } else {
            Err(TimingError { lease, renew, retry })
        }
    }
}

/// A term of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tenure {
    /// Its number.
    pub(super) epoch: i64,
    /// It ends then, unless a renewal is taken before.
    pub(super) until: Moment,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Read the Lease.
    Look,
    /// Write this Lease: make it if it has no version, else put it in the place of that version.
    Write(Box<Lease>),
    /// Nothing before then, unless the Lease changes.
    Wait(Moment),
    /// Somebody has to change the Lease first: it [leaves no number](Contender::is_spent) for a term.
    Spent,
    /// The term is over: nothing may be written any more.
    Lost,
}

/// One that would lead, and what it knows of the Lease.
#[derive(Clone, Debug)]
pub(super) struct Contender {
    identity: String,
    timing: Timing,
    /// As it was last seen; `None`: there is none, or nobody has looked.
    lease: Option<Lease>,
    /// False if it may have changed since, by a write of our own whose answer was lost, or if nobody has looked.
    fresh: bool,
    /// When it was last seen to change.
    since: Moment,
    /// There is no Lease, but whoever held the one that is gone may lead until then.
    haunted: Moment,
    /// The highest number of a term that was ever seen, below [`LAST_EPOCH`].
    floor: i64,
    tenure: Option<Tenure>,
    /// No request before then.
    again: Moment,
    /// When a write was last not taken.
    refused: Option<Moment>,
}

impl Contender {
    /// One that knows nothing. `identity` is no other process's, ever.
    pub(super) fn new(identity: String, timing: Timing) -> Contender {
        Contender {
            identity,
            timing,
            lease: None,
            fresh: false,
            since: Moment::ZERO,
            haunted: Moment::ZERO,
            floor: 0,
            tenure: None,
            again: Moment::ZERO,
            refused: None,
        }
    }

    /// The term that it is in, also if its time is over.
    pub(super) fn tenure(&self) -> Option<Tenure> {
        self.tenure
    }

    /// The Lease as it was last seen.
    pub(super) fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// True if the Lease has a number after which there is none.
    pub(super) fn is_spent(&self) -> bool {
        self.lease
            .as_ref()
            .is_some_and(|lease| epoch(lease) >= LAST_EPOCH)
    }

    /// What to do at `now`. `wall` is what people are told of the time, and the least number of a new term. `gone` says of a holder
    /// that it has ended for certain.
    pub(super) fn next(&self, now: Moment, wall: Timestamp, gone: impl FnOnce(&str) -> bool) -> Step {
        if let Some(tenure) = self.tenure {
            return self.lead(tenure, now, wall);
        }
        if now < self.again {
            return Step::Wait(self.again);
        }
        if !self.fresh {
            return Step::Look;
        }
        if self.is_spent() {
            return Step::Spent;
        }
        let free = match &self.lease {
            None => self.haunted,
            Some(lease) if self.leads_by(lease) && !holder(lease).is_some_and(gone) => {
                self.since + duration(lease, self.timing.lease)
            }
            Some(_) => now,
        };
        if now >= free {
            Step::Write(Box::new(self.taken(wall)))
        } else {
            // Nobody tells when a holder ends for certain.
            Step::Wait(free.min(now + self.timing.retry))
        }
    }

    /// True if another may lead by `lease`, as long as that is not too old.
    fn leads_by(&self, lease: &Lease) -> bool {
        !is_released(lease) && holder(lease) != Some(&self.identity)
    }

    fn lead(&self, tenure: Tenure, now: Moment, wall: Timestamp) -> Step {
        let holds = |lease: &Lease| holder(lease) == Some(&self.identity) && epoch(lease) == tenure.epoch;
        if now >= tenure.until || (self.fresh && !self.lease.as_ref().is_some_and(holds)) {
            Step::Lost
        } else if now < self.again {
            Step::Wait(self.again.min(tenure.until))
        } else if !self.fresh {
            Step::Look
        } else {
            let mut lease = self.lease.clone().unwrap_or_default();
            let spec = lease.spec.get_or_insert_default();
            spec.renew_time = Some(MicroTime(wall));
            spec.lease_duration_seconds = seconds(self.timing.lease);
            Step::Write(Box::new(lease))
        }
    }

    fn taken(&self, wall: Timestamp) -> Lease {
        let mut lease = self.lease.clone().unwrap_or_default();
        let before = lease.spec.take();
        let epoch = (self.floor + 1).max(wall.as_millisecond());
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(EPOCH_ANNOTATION.to_owned(), epoch.to_string());
        annotations.remove(RELEASED_ANNOTATION);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: seconds(self.timing.lease),
            acquire_time: Some(MicroTime(wall)),
            renew_time: Some(MicroTime(wall)),
            lease_transitions: Some(before.map_or(0, |spec| {
                spec.lease_transitions.unwrap_or(0).max(0).saturating_add(1)
            })),
            ..LeaseSpec::default()
        });
        lease
    }

    /// The Lease without a holder, if it is ours: another may lead at once. Only for one that writes nothing any more.
    pub(super) fn released(&self, wall: Timestamp) -> Option<Lease> {
        let lease = self.lease.as_ref().filter(|_| self.fresh)?;
        if holder(lease) != Some(&self.identity) {
            return None;
        }
        let mut lease = lease.clone();
        let term = epoch(&lease).to_string();
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(RELEASED_ANNOTATION.to_owned(), term);
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = None;
        spec.renew_time = Some(MicroTime(wall));
        Some(lease)
    }

    /// The Lease is as given, seen at `now`.
    pub(super) fn saw(&mut self, lease: Option<Lease>, now: Moment) {
        if version(lease.as_ref()) != version(self.lease.as_ref()) {
            self.since = now;
        }
        match (&lease, &self.lease) {
            (None, Some(before)) if self.leads_by(before) => {
                self.haunted = now + duration(before, self.timing.lease);
            }
            (None, _) => {}
            (Some(_), _) => self.haunted = Moment::ZERO,
        }
        let seen = lease.as_ref().map_or(0, epoch);
        if seen < LAST_EPOCH {
            self.floor = self.floor.max(seen);
        }
        self.lease = lease;
        self.fresh = true;
        self.again = now;
    }

    /// A write that was sent at `sent` was taken, and the Lease is as given.
    pub(super) fn written(&mut self, lease: Lease, sent: Moment) {
        let epoch = epoch(&lease);
        if holder(&lease) == Some(&self.identity) {
            self.tenure = Some(Tenure {
                epoch,
                until: sent + self.timing.renew,
            });
        }
        self.saw(Some(lease), sent);
        self.again = sent + self.timing.retry;
    }

    /// A write was not taken, because the Lease is another one by now. That is looked at at once, but after another such write a moment ago
    /// only after a pause: whoever refuses all of them would be asked as fast as it answers. True if there is that pause.
    pub(super) fn refused(&mut self, now: Moment) -> bool {
        let again = self.refused.is_some_and(|last| now < last + self.timing.retry);
        self.refused = Some(now);
        self.fresh = false;
        self.again = if again { now + self.timing.retry } else { now };
        again
    }

    /// A request failed; a write may have been taken.
    pub(super) fn failed(&mut self, now: Moment) {
        self.fresh = false;
        self.again = now + self.timing.retry;
    }

    /// The Lease is not to be taken now, though it is free: it is considered again after a pause.
    pub(super) fn put_off(&mut self, now: Moment) {
        self.again = now + self.timing.retry;
    }

    /// The term is over. The Lease may be taken again, for another term.
    pub(super) fn lost(&mut self) {
        self.tenure = None;
    }
}

/// The term of `lease`, which is to be written now, begins at `wall`, and not when it was decided on.
pub(super) fn begins(lease: &mut Lease, wall: Timestamp) {
    let spec = lease.spec.get_or_insert_default();
    spec.acquire_time = Some(MicroTime(wall));
    spec.renew_time = Some(MicroTime(wall));
}

/// Who holds `lease`.
pub(super) fn holder(lease: &Lease) -> Option<&str> {
    let holder = lease.spec.as_ref()?.holder_identity.as_deref();
    holder.filter(|holder| !holder.is_empty())
}

/// True if whoever held `lease` last gave it up by itself.
pub(super) fn is_released(lease: &Lease) -> bool {
    let released = number(lease, RELEASED_ANNOTATION);
    holder(lease).is_none() && released.is_some() && released == number(lease, EPOCH_ANNOTATION)
}

fn epoch(lease: &Lease) -> i64 {
    number(lease, EPOCH_ANNOTATION).unwrap_or(0)
}

fn number(lease: &Lease, annotation: &str) -> Option<i64> {
    let annotations = lease.metadata.annotations.as_ref()?;
    annotations.get(annotation)?.parse().ok()
}

/// As its holder promised it, but no less than `ours`.
pub(super) fn duration(lease: &Lease, ours: Duration) -> Duration {
    let promised = lease
        .spec
        .as_ref()
        .and_then(|spec| spec.lease_duration_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok());
    promised.map_or(ours, |promised| Duration::from_secs(promised).max(ours))
}

fn seconds(duration: Duration) -> Option<i32> {
    i32::try_from(duration.as_secs()).ok()
}

/// Which version of which Lease it is.
pub(super) fn version(lease: Option<&Lease>) -> Option<(&str, &str)> {
    let metadata = &lease?.metadata;
    Some((
        metadata.uid.as_deref().unwrap_or_default(),
        metadata.resource_version.as_deref().unwrap_or_default(),
    ))
}

#[cfg(test)]
mod tests;
