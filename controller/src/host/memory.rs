//! What this process knows of hosts beside their objects: what their BMCs said, how the last effect went, what we wrote ourselves
//! and the watch has not shown yet. One entry for each host, dropped with it, lost with the process.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jiff::Timestamp;
use kube::Resource;
use muster_proto::{
    kinds::{BareMetalHost, HardwareData, Server},
    text,
};
use tokio::time::Instant;

use super::{
    State,
    draft::WORDS,
    interrupted::Work,
    observed::{Bmc, Failure, Power, Probed, Refusal, Tried},
    ramdisk::Presence,
};
use crate::{
    bmc::Health,
    bucket::{Bucket, Rate},
    events::Event,
    path::Path,
    round::Failures,
    sync::lock,
    written::{BELIEVED, version},
};

/// How many rounds of one host may follow each other at once: a life has some thirty.
const ROUNDS: Rate = Rate {
    burst: 60,
    every: Duration::from_secs(1),
};
/// Who comes back after as long as was said finds that over.
pub(super) const EARLY: Duration = Duration::from_millis(100);

/// An object as we wrote it.
#[derive(Clone, Debug)]
struct Own<K>(Option<(Arc<K>, Instant)>);

impl<K> Default for Own<K> {
    fn default() -> Self {
        Own(None)
    }
}

impl<K: Resource> Own<K> {
    fn wrote(&mut self, object: Arc<K>) {
        self.0 = Some((object, Instant::now()));
    }

    /// The newer one of `watched` and ours.
    fn newest(&mut self, watched: Option<Arc<K>>) -> Option<Arc<K>> {
        if let Some(watched) = &watched {
            self.shown(watched.as_ref());
        }
        match &self.0 {
            Some((own, at)) if at.elapsed() < BELIEVED => Some(Arc::clone(own)),
            _ => watched,
        }
    }

    /// The watch shows this: ours counts no more, unless it is newer.
    fn shown(&mut self, watched: &K) {
        let newer = |own: &K| own.meta().uid == watched.meta().uid && version(own) > version(watched);
        self.0 = self.0.take().filter(|(own, _)| newer(own.as_ref()));
    }
}

/// How a host rests: nothing is looked at again but its power.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    /// When that is asked for next.
    pub ask: Instant,
    /// And how often from then on.
    pub every: Duration,
}

/// Whether a host may rest.
#[derive(Clone, Copy, Debug, Default)]
enum Calm {
    /// Something has changed at which no round has looked.
    #[default]
    Moved,
    /// Nothing has since a round began to look.
    Seen,
    /// Nothing has, and there was nothing to do.
    Rests(Rest),
}

/// What is known of one host.
#[derive(Debug)]
struct Entry {
    uid: String,
    bmc: Bmc,
    tried: Option<Tried>,
    work: Option<Box<Work>>,
    presence: Option<Presence>,
    /// A call to its BMC is under way.
    calling: bool,
    /// A round waits for the end of that call.
    awaited: bool,
    calm: Calm,
    failures: Failures,
    /// The step of the refusal that is among them.
    refused: Option<&'static str>,
    /// What was said last to be wrong with what the host asks for.
    wrong: Option<String>,
    /// What another operator held for it is let go.
    released: bool,
    /// It is paused or somebody else's, or was not looked after yet.
    left_alone: bool,
    /// Since when it is looked after, after that.
    resumed: Option<Timestamp>,
    /// We wrote that it lets go of all that is held for it, which the watch may not have shown yet.
    lets_go: bool,
    rounds: Bucket,
    /// Since when a status waits to be written, and until when it then waits for its turn.
    deferred: Option<(Instant, Option<Instant>)>,
    /// The resource version that the last round looked at.
    looked: Option<u128>,
    host: Own<BareMetalHost>,
    server: Own<Server>,
    hardware: Own<HardwareData>,
}

/// By host. On the heap each, since a hash table may have as many empty places as full ones, and an entry is large.
type Entries = HashMap<Path, Box<Entry>>;

/// What is known of all hosts.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Entries>);

/// The objects of a round, as new as they are known.
#[derive(Clone, Debug)]
pub struct Newest {
    /// The host.
    pub host: Arc<BareMetalHost>,
    /// Its Server.
    pub server: Option<Arc<Server>>,
    /// Its HardwareData.
    pub hardware: Option<Arc<HardwareData>>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        lock(&self.0)
    }

    /// Acts on what is known of `host`, if a round has looked at it and it was not forgotten since.
    fn with<T>(&self, host: &BareMetalHost, act: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let uid = host.metadata.uid.as_deref().unwrap_or_default();
        let mut all = self.lock();
        all.get_mut(&Path::of(host))
            .filter(|entry| entry.uid == uid)
            .map(|entry| act(entry))
    }

    /// The newer ones of the watched copies and of what we wrote.
    pub fn newest(&self, watched: Newest) -> Newest {
        let mut all = self.lock();
        let entry = Entry::of(&mut all, &watched.host);
        let host = entry
            .host
            .newest(Some(watched.host.clone()))
            .unwrap_or(watched.host);
        entry.looked = version(host.as_ref()).max(entry.looked);
        Newest {
            host,
            // Of a Server that does not stand for the host any more, nothing counts.
            server: watched
                .server
                .and_then(|server| entry.server.newest(Some(server))),
            hardware: entry.hardware.newest(watched.hardware),
        }
    }

    /// True if a round has looked at `host` as it is here, or newer, or is about to.
    pub fn has_looked_at(&self, host: &BareMetalHost) -> bool {
        let uid = host.metadata.uid.as_deref().unwrap_or_default();
        let all = self.lock();
        all.get(&Path::of(host)).is_some_and(|entry| {
            let version = version(host);
            entry.uid == uid && version.is_some() && version <= entry.looked
        })
    }

    /// The watch shows this host: what we wrote before counts no more.
    pub fn shown_host(&self, host: &BareMetalHost) {
        if let Some(entry) = self.lock().get_mut(&Path::of(host)) {
            entry.host.shown(host);
        }
    }

    /// The watch shows the Server of `host`.
    pub fn shown_server(&self, host: &Path, server: &Server) {
        if let Some(entry) = self.lock().get_mut(host) {
            entry.server.shown(server);
        }
    }

    /// The watch shows the HardwareData of `host`, or that it is gone.
    pub fn shown_hardware(&self, host: &Path, data: Option<&HardwareData>) {
        if let Some(entry) = self.lock().get_mut(host) {
            match data {
                Some(data) => entry.hardware.shown(data),
                None => entry.hardware = Own::default(),
            }
        }
    }

    /// We wrote the host.
    pub fn wrote_host(&self, host: Arc<BareMetalHost>) {
        // The round that follows a write looks at it.
        let looked = version(host.as_ref());
        self.with(&host.clone(), |entry| {
            entry.looked = looked.max(entry.looked);
            entry.lets_go |= State::of(&host) == State::Deleting;
            entry.host.wrote(host);
        });
    }

    /// We wrote the Server of `host`.
    pub fn wrote_server(&self, host: &BareMetalHost, server: Arc<Server>) {
        self.with(host, |entry| entry.server.wrote(server));
    }

    /// We wrote the HardwareData of `host`.
    pub fn wrote_hardware(&self, host: &BareMetalHost, data: HardwareData) {
        self.with(host, |entry| entry.hardware.wrote(Arc::new(data)));
    }

    /// What the BMC of `host` said, and how the last effect on it went.
    pub fn bmc(&self, host: &BareMetalHost) -> (Bmc, Option<Tried>) {
        self.with(host, |entry| (entry.bmc.clone(), entry.tried.clone()))
            .unwrap_or_default()
    }

    /// What the ramdisk of `host` is at, as `server` shows.
    pub fn work(&self, host: &BareMetalHost, server: Option<&Server>) -> Option<Work> {
        self.with(host, |entry| {
            let before = entry.work.take().map(|before| *before);
            let work = Work::seen(before, host, server);
            entry.work = work.clone().map(Box::new);
            work
        })?
    }

    /// Since when the ramdisk of `host` has been silent, as `server` shows `now`.
    pub fn silent_since(
        &self,
        host: &BareMetalHost,
        server: Option<&Server>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        self.with(host, |entry| {
            entry.presence = Presence::seen(entry.presence, server, now);
            entry.presence?.silent_since
        })?
    }

    /// Remembers what `act` makes of what the BMC said.
    pub fn set_bmc(&self, host: &BareMetalHost, act: impl FnOnce(&mut Bmc, &mut Option<Tried>)) {
        self.with(host, |entry| {
            act(&mut entry.bmc, &mut entry.tried);
            entry.bmc.bound();
            if let Some(Tried {
                result: Err(failure), ..
            }) = &mut entry.tried
            {
                bound(failure);
            }
        });
    }

    /// The power and the health of `host` as they were read last.
    pub fn power(&self, host: &BareMetalHost) -> Option<(Power, Health)> {
        let reading = self.with(host, |entry| entry.bmc.power)??;
        Some((reading.power, reading.health))
    }

    /// Takes the right to call the BMC of `host`; false: a call is under way, and whoever asked waits for its end.
    pub fn begin_call(&self, host: &BareMetalHost) -> bool {
        let begin = |entry: &mut Entry| {
            entry.awaited = entry.calling;
            !std::mem::replace(&mut entry.calling, true)
        };
        self.with(host, begin) == Some(true)
    }

    /// The call is over. True if somebody waits for that.
    pub fn end_call(&self, host: &BareMetalHost) -> bool {
        let end = |entry: &mut Entry| {
            entry.calling = false;
            std::mem::take(&mut entry.awaited)
        };
        self.with(host, end) == Some(true)
    }

    /// Something has changed that concerns the host there.
    pub fn moved(&self, host: &Path) {
        if let Some(entry) = self.lock().get_mut(host) {
            entry.calm = Calm::Moved;
        }
    }

    /// A round begins to look at `host`: it sees all that has changed until `now`.
    pub fn looks(&self, host: &BareMetalHost, now: Timestamp) {
        let mut all = self.lock();
        let entry = Entry::of(&mut all, host);
        entry.calm = Calm::Seen;
        if std::mem::take(&mut entry.left_alone) {
            entry.resumed = Some(now);
        }
    }

    /// The round had nothing to do: `host` rests, unless something has changed since the round began.
    pub fn rests(&self, host: &BareMetalHost, rest: Rest) {
        self.with(host, |entry| {
            if !matches!(entry.calm, Calm::Moved) {
                entry.calm = Calm::Rests(rest);
            }
        });
    }

    /// How `host` rests, if it does.
    pub fn rest(&self, host: &BareMetalHost) -> Option<Rest> {
        self.with(host, |entry| match entry.calm {
            Calm::Rests(rest) => Some(rest),
            Calm::Moved | Calm::Seen => None,
        })?
    }

    /// True if another round may follow at once; false: there were too many.
    pub fn may_hurry(&self, host: &BareMetalHost) -> bool {
        self.with(host, |entry| entry.rounds.take(ROUNDS, Instant::now())) == Some(true)
    }

    /// How long a status that can wait is to wait on; none once it has waited for as long as `patience`, and for as long after that as
    /// `turn` says, which is asked once.
    pub fn defers(
        &self,
        host: &BareMetalHost,
        patience: Duration,
        turn: impl FnOnce() -> Duration,
    ) -> Option<Duration> {
        let now = Instant::now();
        let left = |entry: &mut Entry| {
            let (since, at) = entry.deferred.get_or_insert((now, None));
            let left = (*since + patience).saturating_duration_since(now);
            if left > EARLY {
                return left;
            }
            let at = at.get_or_insert_with(|| now + turn());
            at.saturating_duration_since(now)
        };
        self.with(host, left).filter(|left| !left.is_zero())
    }

    /// No status waits: it is written, or is as it should be.
    pub fn waits_no_more(&self, host: &BareMetalHost) {
        self.with(host, |entry| entry.deferred = None);
    }

    /// A round went well.
    pub fn went_well(&self, host: &BareMetalHost) {
        self.with(host, |entry| entry.failures = Failures::default());
    }

    /// A round failed at `step`, and `refusal` says what the API server refuses, if it does. Returns what people have not been told yet.
    pub fn failed(
        &self,
        host: &BareMetalHost,
        step: Option<&'static str>,
        refusal: Option<Event>,
    ) -> Option<Event> {
        self.with(host, |entry| {
            if refusal.is_some() {
                entry.refused = step;
            }
            entry.failures.add(refusal)
        })?
    }

    /// What the API server refuses, as people were told, since a round went well last.
    pub fn refusal(&self, host: &BareMetalHost) -> Option<Refusal> {
        self.with(host, |entry| {
            let refusal = entry.failures.refusal();
            refusal.map(|refusal| Refusal {
                step: entry.refused,
                why: refusal.message.clone(),
            })
        })?
    }

    /// Something is `wrong` with what `host` asks for, or nothing is. Returns what people have not been told yet.
    pub fn finds(&self, host: &BareMetalHost, wrong: Option<String>) -> Option<String> {
        self.with(host, |entry| {
            let news = wrong.clone().filter(|_| entry.wrong != wrong);
            entry.wrong = wrong;
            news
        })
        .flatten()
    }

    /// What another operator held for `host` is let go.
    pub fn released(&self, host: &BareMetalHost) {
        self.with(host, |entry| entry.released = true);
    }

    /// True if that is so.
    pub fn has_released(&self, host: &BareMetalHost) -> bool {
        self.with(host, |entry| entry.released) == Some(true)
    }

    /// True if the host there lets go of all that is held for it.
    pub fn lets_go(&self, host: &Path) -> bool {
        self.lock().get(host).is_some_and(|entry| entry.lets_go)
    }

    /// The host is seen to be paused, or somebody else's.
    pub fn leaves_alone(&self, host: &BareMetalHost) {
        self.with(host, |entry| entry.left_alone = true);
    }

    /// Since when the host is looked after, by this process and after it was paused or somebody else's; none: it is not yet.
    pub fn resumed_at(&self, host: &BareMetalHost) -> Option<Timestamp> {
        self.with(host, |entry| entry.resumed)?
    }

    /// How many rounds failed in a row.
    pub fn failures(&self, host: &BareMetalHost) -> u32 {
        self.with(host, |entry| entry.failures.count()).unwrap_or(1)
    }

    /// Forgets `host`.
    pub fn forget(&self, host: &Path) {
        self.lock().remove(host);
    }

    /// Forgets all but these, and of these that they were looked at.
    pub fn retain(&self, hosts: &BTreeSet<Path>) {
        let mut all = self.lock();
        all.retain(|path, _| hosts.contains(path));
        // All are looked at; and after a restore of etcd versions may be less than they were.
        for entry in all.values_mut() {
            entry.looked = None;
        }
    }
}

impl Entry {
    /// What is known of `host`; nothing yet, where that is of a former one of its name.
    fn of<'a>(all: &'a mut Entries, host: &BareMetalHost) -> &'a mut Entry {
        let uid = host.metadata.uid.as_deref().unwrap_or_default();
        let entry = all
            .entry(Path::of(host))
            .or_insert_with(|| Box::new(Entry::new(uid)));
        if entry.uid != uid {
            **entry = Entry::new(uid);
        }
        entry
    }

    fn new(uid: &str) -> Entry {
        Entry {
            uid: uid.to_owned(),
            bmc: Bmc::default(),
            tried: None,
            work: None,
            presence: None,
            calling: false,
            awaited: false,
            calm: Calm::default(),
            failures: Failures::default(),
            refused: None,
            wrong: None,
            released: false,
            left_alone: true,
            resumed: None,
            lets_go: false,
            rounds: Bucket::new(Instant::now()),
            deferred: None,
            looked: None,
            host: Own::default(),
            server: Own::default(),
            hardware: Own::default(),
        }
    }
}

impl Bmc {
    fn bound(&mut self) {
        if let Some(failure) = &mut self.unread {
            bound(failure);
        }
        if let Some(Probed {
            result: Err(failure), ..
        }) = &mut self.probed
        {
            bound(failure);
        }
    }
}

/// What a BMC says is a stranger's words.
fn bound(failure: &mut Failure) {
    failure.message = text::clean_to(failure.message.as_bytes(), WORDS);
}

#[cfg(test)]
mod tests {
    use muster_proto::kinds::BareMetalHostSpec;

    use super::*;

    #[test]
    fn a_refusal_is_remembered_with_its_step_whatever_fails_after_it() {
        let memory = Memory::default();
        let host = Arc::new(BareMetalHost::new("h", BareMetalHostSpec::default()));
        memory.newest(Newest {
            host: Arc::clone(&host),
            server: None,
            hardware: None,
        });
        let event = |message: &str| Event {
            about: host.object_ref(&()),
            related: None,
            warning: true,
            reason: "WriteRefused",
            message: message.to_owned(),
        };
        let refusal = || memory.refusal(&host).map(|refusal| (refusal.step, refusal.why));
        memory.failed(&host, Some("first"), Some(event("no")));
        memory.failed(&host, Some("second"), None);
        assert_eq!(refusal(), Some((Some("first"), "no".to_owned())));
        memory.failed(&host, Some("second"), Some(event("neither")));
        assert_eq!(refusal(), Some((Some("second"), "neither".to_owned())));
        memory.went_well(&host);
        assert_eq!(refusal(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_wait_is_looked_at_again_when_its_time_is_over_and_not_before() {
        let (memory, patience) = (Memory::default(), Duration::from_secs(120));
        let host = Arc::new(BareMetalHost::new("h", BareMetalHostSpec::default()));
        memory.newest(Newest {
            host: Arc::clone(&host),
            server: None,
            hardware: None,
        });
        let at_once = || Duration::ZERO;
        let defers = |patience| memory.defers(&host, patience, at_once);
        assert_eq!(defers(patience), Some(patience));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(defers(patience), Some(Duration::from_secs(100)));
        assert_eq!(defers(Duration::from_secs(5)), None, "the line stands still");
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(defers(patience), None);
        memory.waits_no_more(&host);
        assert_eq!(defers(patience), Some(patience));

        // And then it has its turn, which is given once.
        tokio::time::advance(patience).await;
        let turn = Duration::from_secs(7);
        assert_eq!(memory.defers(&host, patience, || turn), Some(turn));
        assert_eq!(defers(patience), Some(turn));
        tokio::time::advance(turn).await;
        assert_eq!(memory.defers(&host, patience, || turn), None);
    }
}
