//! Other installations in the same cluster: those that hold a Lease of the same name in another namespace.
//!
//! One Lease keeps two from acting only where both want that one. A second installation, in a namespace of its own, has its own, and would
//! act on the same hosts. So who would lead looks at the others' first, once more as soon as it has its own, and from then on now and then.
//! Each says on its Lease which hosts it acts on ([`WATCH_ANNOTATION`]); those that have no host in common do not mind each other.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{Api, Client, api::ListParams};
use muster_proto::{Chain, text};
use tokio::time::timeout;

use super::{
    clock,
    next::{Moment, Timing, duration, holder, version},
};

/// Annotation on the Lease: the one namespace whose hosts its holder acts on; none or empty: all.
pub const WATCH_ANNOTATION: &str = "muster.dev/watch-namespace";

/// A Lease that is seen for the first time, and ran out longer ago than this, in seconds, is nobody's: no two clocks are so far apart.
const LONG_AGO: i64 = 600;

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
    /// A leader looks again then.
    again: Moment,
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
            again: Moment::ZERO,
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

    /// True if a leader is to look again at `now`; one that has just begun (`led` is false) always is, and soon once more: who began at the
    /// same moment may not have been there yet.
    pub(super) fn is_due(&mut self, led: bool, now: Moment) -> bool {
        let due = !led || now >= self.again;
        if due {
            self.again = now + if led { self.timing.lease } else { self.timing.retry };
        }
        due
    }

    /// Looks, for `patience` at most. What cannot be seen stays as it was seen last: an API server in trouble must not keep all from leading.
    pub(super) async fn look(&mut self, patience: Duration) {
        let ours = ListParams::default().fields(&format!("metadata.name={}", self.name));
        match timeout(patience, self.leases.list(&ours)).await {
            Ok(Ok(list)) => {
                let named = |lease: &Lease| lease.metadata.name.as_ref() == Some(&self.name);
                let leases = list.items.into_iter().filter(named).collect();
                self.known.saw(leases, clock::now(), Timestamp::now());
            }
            // Installed for one namespace only: such rights end there.
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                tracing::debug!(lease = %self.name, why = %status.message, "this installation cannot see whether another one leads");
            }
            Ok(Err(error)) => self.unseen(&Chain(&error)),
            Err(late) => self.unseen(&late),
        }
    }

    fn unseen(&self, error: &dyn std::fmt::Display) {
        tracing::warn!(lease = %self.name, %error, "the Leases of other installations could not be listed; next: what is known of them so \
        far stays valid");
    }

    /// Who keeps this installation from beginning a term at `now`.
    pub(super) fn rival(&self, now: Moment) -> Option<Rival> {
        self.known.rivals(now).next()
    }

    /// Who keeps the holder of `own`, our Lease, from going on: it began before.
    pub(super) fn senior(&self, own: Option<&Lease>, now: Moment) -> Option<Rival> {
        self.known.senior(own, now)
    }

    /// Tells people of `rival`, now and then.
    pub(super) fn tell(&mut self, rival: &Rival, now: Moment) {
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
            "another installation in this cluster acts on the same hosts, so this one stands by; next: remove one of the two, or give each a --watch-namespace of its own"
        );
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
    /// How long a Lease is good for whose holder promised nothing.
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
        let lasts = i64::try_from(duration(lease, self.lease).as_secs()).unwrap_or(i64::MAX);
        renewed.is_some_and(|MicroTime(renewed)| {
            wall.duration_since(*renewed).as_secs() > lasts.saturating_add(LONG_AGO)
        })
    }

    /// Those that lead at `now` for hosts that are ours too.
    fn rivals(&self, now: Moment) -> impl Iterator<Item = Rival> {
        self.seen.iter().filter_map(move |(namespace, seen)| {
            let lease = &seen.lease;
            let holder = holder(lease)?;
            let lasts = now < seen.since?.saturating_add(duration(lease, self.lease));
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

    /// The one that began before the holder of `own` did, and of those that began at once the first by its namespace: of any two, each says
    /// the same.
    fn senior(&self, own: Option<&Lease>, now: Moment) -> Option<Rival> {
        let own = (own.and_then(acquired), self.namespace.as_str());
        self.rivals(now)
            .find(|rival| (rival.acquired, rival.namespace.as_str()) < own)
    }
}

fn acquired(lease: &Lease) -> Option<Timestamp> {
    let MicroTime(acquired) = lease.spec.as_ref()?.acquire_time.as_ref()?;
    Some(*acquired)
}

#[cfg(test)]
mod tests;
