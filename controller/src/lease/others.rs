//! Other installations in the same cluster: those that hold a Lease of the same name in another namespace.
//!
//! One Lease keeps two from acting only where both want that one. A second installation, in a namespace of its own, has its own, and would
//! act on the same hosts. So who would lead looks at the others' first, once more as soon as it has its own, and from then on now and then.
//! Each says on its Lease which hosts it acts on ([`WATCH_ANNOTATION`]); those that have no host in common do not mind each other.
//!
//! Who has led for two looks goes on whatever comes later, so that a Lease that somebody makes ends no term ([`Term`]). Two that begin
//! together cannot both get so far. Each looks after its own Lease is stored, so at least one of them sees the other. Where all that a leader
//! did to begin took less than [`Timing::retry`], one that it did not see at first makes its second look when our Lease is there, so both
//! compare the same times. A leader that took longer, or could not look at first, cannot know that, and gives way to anybody.

use std::{collections::BTreeMap, time::Duration};

use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{Api, Client, api::ListParams};
use muster_proto::{Chain, text};
use tokio::{task::JoinHandle, time::timeout};

use super::{
    clock,
    next::{Moment, Timing, duration, holder, is_released, version},
};

/// Annotation on the Lease: the one namespace whose hosts its holder acts on; none or empty: all.
pub const WATCH_ANNOTATION: &str = "muster.dev/watch-namespace";

/// A Lease that is seen for the first time, and ran out longer ago than this, in seconds, is nobody's: no two clocks are so far apart.
const LONG_AGO: i64 = 600;

/// For so many times our own duration, at most, a Lease counts after it changed: one that was left behind, or that promises years, keeps
/// nobody from leading for good.
const AT_MOST: u32 = 4;

/// After so many looks of a term the leader gives way to nobody any more.
const SETTLED: u8 = 2;

/// How often it is told that another one leads.
const REMIND: Duration = Duration::from_secs(60);

/// Another installation that leads for the same hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Where its Lease is.
    pub namespace: String,
    /// Who holds that.
    pub holder: String,
    acquired: Option<Timestamp>,
}

/// Looks at the Leases of others.
pub(super) struct Others {
    leases: Api<Lease>,
    name: String,
    timing: Timing,
    known: Known,
    /// Ours, if we lead.
    term: Term,
    /// A look of the leader that is under way.
    looking: Option<JoinHandle<Option<Vec<Lease>>>>,
    /// A leader looks again then.
    again: Moment,
    /// Who keeps the leader from going on, as its last look showed.
    senior: Option<Rival>,
    /// What was told last, and when.
    told: Option<(Rival, Moment)>,
}

impl Others {
    /// For those that have a Lease `name` elsewhere than in `namespace`, where hosts of the namespace `watches` are acted on; none: of all.
    pub(super) fn new(
        client: Client,
        namespace: &str,
        name: &str,
        watches: Option<String>,
        timing: Timing,
    ) -> Others {
        Others {
            leases: Api::all(client),
            name: name.to_owned(),
            timing,
            known: Known {
                namespace: namespace.to_owned(),
                watches,
                lease: timing.lease,
                seen: BTreeMap::new(),
            },
            term: Term::default(),
            looking: None,
            again: Moment::ZERO,
            senior: None,
            told: None,
        }
    }

    /// Says on our own Lease which hosts are acted on.
    pub(super) fn mark(&self, lease: &mut Lease) {
        let annotations = lease.metadata.annotations.get_or_insert_default();
        match &self.known.watches {
            Some(namespace) => annotations.insert(WATCH_ANNOTATION.to_owned(), namespace.clone()),
            None => annotations.remove(WATCH_ANNOTATION),
        };
    }

    /// Looks, for `patience` at most; false if it could not. What cannot be seen stays as it was seen last: an API server in trouble must not
    /// keep all from leading.
    pub(super) async fn look(&mut self, patience: Duration) -> bool {
        let seen = list(self.leases.clone(), self.name.clone(), patience).await;
        let could = seen.is_some();
        self.took(seen);
        could
    }

    fn took(&mut self, seen: Option<Vec<Lease>>) {
        if let Some(leases) = seen {
            self.known.saw(leases, clock::now(), Timestamp::now());
        }
    }

    /// A term began with `own`, our Lease, at `now`. It was `quick` if it was less than [`Timing::retry`] before that that the look began which
    /// showed no rival. The leader looks at once, and soon once more.
    pub(super) fn begins(&mut self, own: Option<&Lease>, quick: bool, now: Moment, patience: Duration) {
        if let Some(before) = self.looking.take() {
            before.abort();
        }
        self.senior = None;
        self.term = Term {
            began: own.and_then(acquired),
            quick,
            looks: 0,
        };
        self.begin_look(now + self.timing.retry, patience);
    }

    fn begin_look(&mut self, again: Moment, patience: Duration) {
        self.again = again;
        let look = list(self.leases.clone(), self.name.clone(), patience);
        self.looking = Some(tokio::spawn(look));
    }

    /// Returns when no look of the leader is under way any more.
    pub(super) async fn over(&mut self) {
        let Some(looking) = &mut self.looking else {
            return;
        };
        let seen = looking.await;
        self.looking = None;
        let Ok(Some(leases)) = seen else { return };
        self.took(Some(leases));
        let now = clock::now();
        let settled = self.term.is_settled();
        self.senior = self.term.looked(&self.known, now);
        if settled && let Some(rival) = self.rival(now) {
            self.warn(&rival, now, "this one goes on, because it has led for a while");
        }
    }

    /// What a leader does about the others at `now`, which waits for nothing: its looks go on beside its renewals. Who is returned began
    /// before it, and keeps it from going on.
    pub(super) fn beside(&mut self, now: Moment, patience: Duration) -> Option<Rival> {
        // One that is still under way is taken later.
        let _ = self.over().now_or_never();
        if self.looking.is_none() && now >= self.again {
            self.begin_look(now + self.timing.lease, patience);
        }
        self.senior.take()
    }

    /// Who keeps this installation from beginning a term at `now`.
    pub(super) fn rival(&self, now: Moment) -> Option<Rival> {
        self.known.rivals(now).next()
    }

    /// Tells people, now and then, that `rival` keeps this installation from leading.
    pub(super) fn tell(&mut self, rival: &Rival, now: Moment) {
        self.warn(rival, now, "this one stands by");
    }

    fn warn(&mut self, rival: &Rival, now: Moment, so: &str) {
        if let Some((told, at)) = &self.told
            && told == rival
            && now < *at + REMIND
        {
            return;
        }
        self.told = Some((rival.clone(), now));
        tracing::warn!(
            lease = %self.name,
            namespace = %rival.namespace,
            holder = %text::clean(rival.holder.as_bytes()),
            "another installation in this cluster acts on the same hosts, as far as its Lease says: {so}; next: remove one of the two, or give each a --watch-namespace of its own, or upgrade the other one if it has one (docs/install.md, \"One installation per cluster\")"
        );
    }
}

/// All Leases of this name; none: they cannot be seen.
async fn list(leases: Api<Lease>, name: String, patience: Duration) -> Option<Vec<Lease>> {
    let ours = ListParams::default().fields(&format!("metadata.name={name}"));
    match timeout(patience, leases.list(&ours)).await {
        Ok(Ok(list)) => {
            let named = |lease: &Lease| lease.metadata.name.as_ref() == Some(&name);
            return Some(list.items.into_iter().filter(named).collect());
        }
        // Installed for one namespace only: such rights end there.
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
            tracing::debug!(lease = %name, why = %status.message, "this installation cannot see whether another one leads");
        }
        Ok(Err(error)) => unseen(&name, &Chain(&error)),
        Err(late) => unseen(&name, &late),
    }
    None
}

fn unseen(name: &str, error: &dyn std::fmt::Display) {
    tracing::warn!(lease = %name, %error, "the Leases of other installations could not be listed; next: what was seen last stays valid");
}

/// A term of this installation, as far as others matter to it: pure.
#[derive(Default)]
struct Term {
    /// As our Lease says.
    began: Option<Timestamp>,
    /// Who was not there when its leader first looked sees our Lease before it goes on for good.
    quick: bool,
    /// How often its leader looked, up to [`SETTLED`].
    looks: u8,
}

impl Term {
    /// True if its leader gives way to nobody any more.
    fn is_settled(&self) -> bool {
        self.looks >= SETTLED
    }

    /// To whom its leader gives way after a look at `now`: the one that began before it did, and of those that began at once the first by its
    /// namespace. Of any two, each says the same. A Lease that does not say when its holder began is none of ours, and nobody gives way to it.
    fn looked(&mut self, known: &Known, now: Moment) -> Option<Rival> {
        if self.is_settled() {
            return None;
        }
        self.looks += 1;
        let own = (self.began, known.namespace.as_str());
        known.rivals(now).find(|rival| {
            let before = (rival.acquired, rival.namespace.as_str()) < own;
            rival.acquired.is_some() && (before || !self.quick)
        })
    }
}

/// A Lease of another installation.
struct Seen {
    lease: Lease,
    /// When it was last seen to change, by our clock; none: it had run out long before it was first seen.
    since: Option<Moment>,
}

/// What is known of the others: pure.
struct Known {
    /// Ours.
    namespace: String,
    watches: Option<String>,
    /// How long a Lease is good for whose holder promised less or nothing.
    lease: Duration,
    /// By namespace.
    seen: BTreeMap<String, Seen>,
}

impl Known {
    /// These are all Leases of our name, seen at `now`, which is `wall` for people.
    fn saw(&mut self, leases: Vec<Lease>, now: Moment, wall: Timestamp) {
        let mut before = std::mem::take(&mut self.seen);
        for lease in leases {
            let namespace = lease.metadata.namespace.clone().unwrap_or_default();
            if namespace == self.namespace {
                continue;
            }
            let since = match before.remove(&namespace) {
                Some(seen) if version(Some(&seen.lease)) == version(Some(&lease)) => seen.since,
                Some(_) => Some(now),
                None => (!self.ran_out_long_ago(&lease, wall)).then_some(now),
            };
            self.seen.insert(namespace, Seen { lease, since });
        }
    }

    fn ran_out_long_ago(&self, lease: &Lease, wall: Timestamp) -> bool {
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref());
        let lasts = i64::try_from(self.lasts(lease).as_secs()).unwrap_or(i64::MAX);
        renewed.is_some_and(|MicroTime(renewed)| {
            wall.duration_since(*renewed).as_secs() > lasts.saturating_add(LONG_AGO)
        })
    }

    /// For how long `lease` counts after it changed.
    fn lasts(&self, lease: &Lease) -> Duration {
        duration(lease, self.lease).min(self.lease.saturating_mul(AT_MOST))
    }

    /// Those that lead at `now` for hosts that are ours too.
    fn rivals(&self, now: Moment) -> impl Iterator<Item = Rival> {
        self.seen.iter().filter_map(move |(namespace, seen)| {
            let lease = &seen.lease;
            // One whose holder was removed by hand acts until it notices.
            let holder = match is_released(lease) {
                true => return None,
                false => holder(lease).unwrap_or_default(),
            };
            let lasts = now < seen.since?.saturating_add(self.lasts(lease));
            (lasts && self.meets(lease)).then(|| Rival {
                namespace: namespace.clone(),
                holder: holder.to_owned(),
                acquired: acquired(lease),
            })
        })
    }

    /// True if its holder acts on hosts that are ours too.
    fn meets(&self, lease: &Lease) -> bool {
        let annotations = lease.metadata.annotations.as_ref();
        let theirs = annotations.and_then(|all| all.get(WATCH_ANNOTATION));
        match (theirs.filter(|theirs| !theirs.is_empty()), &self.watches) {
            (Some(theirs), Some(ours)) => theirs == ours,
            _ => true,
        }
    }
}

fn acquired(lease: &Lease) -> Option<Timestamp> {
    let MicroTime(acquired) = lease.spec.as_ref()?.acquire_time.as_ref()?;
    Some(*acquired)
}

#[cfg(test)]
mod tests;
