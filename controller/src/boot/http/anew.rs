//! Hosts that are read anew, while the watched copy of them is known to be old.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex as Lock},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use kube::{Api, Client, Resource as _};
use muster_proto::kinds::BareMetalHost;
use tokio::{
    runtime::Handle,
    sync::{Mutex, Semaphore},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{api_error, log::Refusals, path::Path, sync::lock};

/// How long the API server may take: firmware waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// A host is read once in so long: whoever asks meanwhile is told what was read.
const AGAIN: Duration = Duration::from_secs(1);
/// So many hosts are read at once: strangers can ask for the scripts of all machines, and the API server may just have come back.
const AT_ONCE: usize = 16;

/// A host as the API server has it now, or none; or why it could not be read.
pub type Reading = BoxFuture<'static, Result<Option<BareMetalHost>, String>>;

/// What a reading came to.
type Found = Result<Option<Arc<BareMetalHost>>, String>;

/// The last reading of a host.
struct Last {
    /// When it ended; when it began, while it goes on or if it was broken off.
    at: Instant,
    /// What it came to; none: it was broken off.
    found: Option<Found>,
}

impl Last {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < AGAIN
    }
}

/// The last reading of one host. Whoever reads it holds this.
type Turn = Arc<Mutex<Option<Last>>>;

/// True if somebody waits for this turn, or would be told what was read in it.
fn is_of_use(turn: &Turn) -> bool {
    let is_fresh = |last: &Option<Last>| last.as_ref().is_some_and(Last::is_fresh);
    Arc::strong_count(turn) > 1 || turn.try_lock().is_ok_and(|last| is_fresh(&last))
}

/// The last readings of hosts.
struct Turns {
    /// When those that are of no use any more were dropped last.
    swept: Instant,
    of: HashMap<Path, Turn>,
}

impl Turns {
    fn of(&mut self, path: &Path) -> Turn {
        if self.swept.elapsed() >= AGAIN {
            self.swept = Instant::now();
            self.of.retain(|_, turn| is_of_use(turn));
        }
        Arc::clone(self.of.entry(path.clone()).or_default())
    }
}

/// Reads hosts.
pub struct Anew {
    read: Box<dyn Fn(Path) -> Reading + Send + Sync>,
    turns: Lock<Turns>,
    room: Semaphore,
    said: Refusals,
}

impl fmt::Debug for Anew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anew").finish_non_exhaustive()
    }
}

impl Anew {
    /// By `read`.
    pub fn new(read: impl Fn(Path) -> Reading + Send + Sync + 'static) -> Anew {
        Anew {
            read: Box::new(read),
            turns: Lock::new(Turns {
                swept: Instant::now(),
                of: HashMap::new(),
            }),
            room: Semaphore::new(AT_ONCE),
            said: Refusals::default(),
        }
    }

    /// By `client`, on the runtime of the caller: its connections are not for the threads on which boot files are served.
    pub fn through(client: Client) -> Anew {
        let runtime = Handle::current();
        Anew::new(move |path| {
            let hosts: Api<BareMetalHost> = Api::namespaced(client.clone(), &path.namespace);
            let runtime = runtime.clone();
            let read = async move {
                // Ends with whoever waits for it.
                let mut one = JoinSet::new();
                one.spawn_on(async move { hosts.get_opt(&path.name).await }, &runtime);
                match one.join_next().await {
                    Some(Ok(Ok(host))) => Ok(host),
                    Some(Ok(Err(error))) => Err(api_error::words(&error, &BareMetalHost::kind(&()), None)),
                    Some(Err(_)) | None => Err("the request was aborted".to_owned()),
                }
            };
            read.boxed()
        })
    }

    /// `host` as it is now, for the machine that asks from the address `from`, if it is there still; as the copy has it if it cannot be read.
    /// `stale` says of which kind the copy is old, and how old.
    pub(super) async fn host(
        &self,
        host: Arc<BareMetalHost>,
        (kind, since): &(Cow<'static, str>, Duration),
        from: IpAddr,
    ) -> Option<Arc<BareMetalHost>> {
        let path = Path::of(&*host);
        let why = match timeout(PATIENCE, self.look(&path)).await {
            Ok(Ok(now)) => return now,
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        if let Some(left_out) = self.said.say(from, "a stale copy decides") {
            tracing::warn!(
                host = %path,
                client = %from,
                left_out,
                "what this machine boots is decided by a stale copy: {kind} could not be watched for {} s, and the host could not be read: \
                 {why}",
                since.as_secs()
            );
        }
        Some(host)
    }

    /// The host at `path` as it was read within the last second, else as it is read now.
    async fn look(&self, path: &Path) -> Found {
        let turn = self.turn(path);
        let mut last = turn.lock().await;
        if let Some(Last { at, found }) = last.as_ref().filter(|last| last.is_fresh()) {
            match found {
                Some(found) => return found.clone(),
                None => sleep_until(*at + AGAIN).await,
            }
        }
        // What is left of the patience of who asks is for the reading itself. Nobody closes the room.
        let Ok(Ok(_room)) = timeout(PATIENCE / 2, self.room.acquire()).await else {
            return Err(format!("{AT_ONCE} other hosts are being read"));
        };
        *last = Some(Last {
            at: Instant::now(),
            found: None,
        });
        let found = (self.read)(path.clone()).await.map(|now| now.map(Arc::new));
        *last = Some(Last {
            at: Instant::now(),
            found: Some(found.clone()),
        });
        found
    }

    fn turn(&self, path: &Path) -> Turn {
        lock(&self.turns).of(path)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::time::{advance, sleep};

    use super::*;

    fn host(name: &str) -> Arc<BareMetalHost> {
        let mut host = BareMetalHost::new(name, Default::default());
        host.metadata.namespace = Some("metal".into());
        Arc::new(host)
    }

    /// Reads hosts in `takes`, and says of each the number of the reading.
    fn anew(takes: Duration) -> (Anew, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let begun = Arc::clone(&count);
        let anew = Anew::new(move |path| {
            let number = begun.fetch_add(1, Ordering::Relaxed) + 1;
            let read = async move {
                sleep(takes).await;
                let mut host = BareMetalHost::new(&path.name, Default::default());
                host.metadata.resource_version = Some(number.to_string());
                Ok(Some(host))
            };
            read.boxed()
        });
        (anew, count)
    }

    /// Of which reading the host is by which the machine of `name` is decided on; none: of the old copy.
    async fn asks(anew: &Anew, name: &str) -> Option<String> {
        let stale = (Cow::Borrowed("BareMetalHost"), Duration::ZERO);
        let from = IpAddr::from([10, 77, 0, 9]);
        let now = anew.host(host(name), &stale, from).await;
        now.unwrap().metadata.resource_version.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_read_once_a_second_however_often_its_script_is_asked_for() {
        let (anew, count) = anew(Duration::from_millis(300));
        for number in ["1", "2"] {
            let all = join_all((0..100).map(|_| asks(&anew, "h"))).await;
            assert!(all.iter().all(|read| read.as_deref() == Some(number)), "{all:?}");
            advance(Duration::from_millis(900)).await;
            assert_eq!(asks(&anew, "h").await.as_deref(), Some(number));
            advance(Duration::from_millis(200)).await;
        }
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_that_is_broken_off_is_made_up_for_within_the_second() {
        let (anew, count) = anew(Duration::from_millis(300));
        let broken = timeout(Duration::from_millis(100), asks(&anew, "h"));
        assert!(broken.await.is_err());
        let begun = Instant::now();
        assert_eq!(asks(&anew, "h").await.as_deref(), Some("2"));
        let took = begun.elapsed().as_millis();
        assert!((1190..1300).contains(&took), "{took} ms");
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn sixteen_hosts_are_read_at_once_and_old_copies_decide_where_that_takes_too_long() {
        let (anew, count) = anew(Duration::from_millis(300));
        let names: Vec<String> = (0..100).map(|number| format!("h{number}")).collect();
        let begun = Instant::now();
        let all = join_all(names.iter().map(|name| asks(&anew, name))).await;
        assert!(begun.elapsed() < Duration::from_secs(2));
        // Those that had room within a second, at 0, 0.3, 0.6 and 0.9 s.
        assert_eq!(all.iter().filter(|read| read.is_some()).count(), 64);
        assert_eq!(count.load(Ordering::Relaxed), 64, "no reading was begun in vain");
        // There is room again.
        assert_eq!(asks(&anew, "another").await.as_deref(), Some("65"));
        advance(Duration::from_secs(2)).await;
        assert_eq!(asks(&anew, "other").await.as_deref(), Some("66"));
        let kept = anew.turns.lock().unwrap().of.len();
        assert_eq!(kept, 1, "what is of no use any more is forgotten");
    }
}
