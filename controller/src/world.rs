//! What the controller knows of the cluster: one watched copy of each kind, shared by all loops. Reading it costs no request.

use std::{borrow::Cow, fmt::Debug, pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::NamespaceResourceScope,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher,
    },
};
use muster_proto::kinds::{BareMetalHost, Enrolment, HardwareData, Segment, Server};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;

use crate::{
    lenient::{self, Treat, Unreadable},
    machines::Machines,
    path::Path,
    watches::Watches,
    written::Written,
};

/// The watched copies. A role that may not read a kind has an empty store of it.
#[derive(Clone, Debug)]
pub struct World {
    /// Where we serve.
    pub segments: Store<Segment>,
    /// Known machines.
    pub servers: Store<Server>,
    /// The same as this replica wrote or read them itself, where that is later.
    pub written: Arc<Written<Server>>,
    /// Hosts.
    pub hosts: Store<BareMetalHost>,
    /// Spent tokens, without the certificates that they bought: who asks for his again is given the one that the API server has.
    pub enrolments: Store<Enrolment>,
    /// The hardware of hosts; only where the control role runs.
    pub hardware: Store<HardwareData>,
    /// By what Servers and hosts are found.
    pub machines: Arc<Machines>,
    /// What of them cannot be read.
    pub unreadable: Arc<Unreadable>,
    /// How their watches do.
    pub watches: Watches,
}

/// Which namespaces are watched.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Segments, Servers and Enrolments live in this one.
    pub namespace: String,
    /// Hosts live in this one; none: in any.
    pub hosts: Option<String>,
    /// Whether the control role runs, which alone may read HardwareData.
    pub control: bool,
}

impl Scope {
    /// Access to a kind that lives where the hosts do.
    pub fn hosts_api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match &self.hosts {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        }
    }
}

/// Something that a loop may want to look at again. The stores show it already.
#[derive(Clone, Debug)]
pub enum Change {
    /// A Segment came, changed or went.
    Segment(Arc<Segment>),
    /// A Server came, changed or went.
    Server(Arc<Server>),
    /// A host came, changed or went.
    Host(Arc<BareMetalHost>),
    /// A HardwareData came, changed or went.
    Hardware(ObjectRef<HardwareData>),
    /// A kind was listed anew: anything may have changed.
    All,
}

const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Changes that a slow listener may be behind before it is told to look at everything.
const CHANGES: usize = 1024;

/// Keeps a [`World`] up to date while it runs.
pub struct Driver {
    changes: broadcast::Sender<Change>,
    streams: Vec<Pin<Box<dyn Stream<Item = Change> + Send>>>,
}

impl Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Driver of {} watches", self.streams.len())
    }
}

impl Driver {
    /// Where to subscribe to every change from then on.
    pub fn changes(&self) -> broadcast::Sender<Change> {
        self.changes.clone()
    }

    /// Watches until dropped. A watch that fails is tried again; the copies stay as they were.
    pub async fn run(self) {
        let Driver { changes, streams } = self;
        stream::select_all(streams)
            .for_each(|change| {
                // An error says that nobody listens.
                let _ = changes.send(change);
                std::future::ready(())
            })
            .await;
    }
}

impl World {
    /// The copies, empty, and the driver that fills them once it runs.
    pub fn start(client: &Client, scope: &Scope) -> (World, Driver) {
        let ours = || scope.namespace.as_str();
        let machines = Arc::<Machines>::default();
        let written = Arc::<Written<Server>>::default();
        let unreadable = Arc::<Unreadable>::default();
        let watches = Watches::default();
        // Each kind by a client that tells how its watch does.
        let seen = |kind: Cow<'_, str>| watches.client(&kind, client.clone());
        let segments = Api::namespaced(seen(Segment::kind(&())), ours());
        let segments = lenient::events(segments, Treat::Absent, Arc::clone(&unreadable));
        let (segments, segment_changes) = watch(segments, &watches, Change::Segment, |_| {});
        let (of, own) = (Arc::clone(&machines), Arc::clone(&written));
        let servers = Api::namespaced(seen(Server::kind(&())), ours());
        let servers = lenient::events(servers, Treat::Mark(lenient::mark), Arc::clone(&unreadable));
        let (servers, server_changes) = watch(servers, &watches, Change::Server, move |shown| match shown {
            Shown::One(server, gone) => show_server(&of, &own, server, gone),
            Shown::All(all) => {
                of.servers_anew(all.iter());
                own.listed(all);
            }
        });
        let of = Arc::clone(&machines);
        let hosts = scope.hosts_api(&seen(BareMetalHost::kind(&())));
        let hosts = lenient::events(hosts, Treat::Mark(lenient::pause), Arc::clone(&unreadable));
        let (hosts, host_changes) = watch(hosts, &watches, Change::Host, move |shown| match shown {
            Shown::One(host, gone) => of.host(host, gone),
            Shown::All(all) => of.hosts_anew(all.iter()),
        });
        // Nobody decides anew because a token was spent.
        let of = Arc::clone(&machines);
        let enrolments = Api::namespaced(seen(Enrolment::kind(&())), ours());
        let enrolments = lenient::events(enrolments, Treat::Absent, Arc::clone(&unreadable))
            .modify(|enrolment: &mut Enrolment| enrolment.spec.certificate = String::new());
        let (enrolments, spent) = watch(
            enrolments,
            &watches,
            |_| Change::All,
            move |shown| match shown {
                Shown::One(enrolment, gone) => of.enrolment(enrolment, gone),
                Shown::All(all) => of.enrolments_anew(all.iter()),
            },
        );
        let spent = spent.filter(|_| std::future::ready(false)).boxed();
        let mut streams = vec![segment_changes, server_changes, host_changes, spent];
        let hardware = if scope.control {
            let told = |data: Arc<HardwareData>| Change::Hardware(ObjectRef::from_obj(&data));
            let hardware = scope.hosts_api(&seen(HardwareData::kind(&())));
            let hardware = lenient::events(hardware, Treat::Mark(|_| {}), Arc::clone(&unreadable));
            let (hardware, changes) = watch(hardware, &watches, told, |_| {});
            streams.push(changes);
            hardware
        } else {
            empty()
        };
        let world = World {
            segments,
            servers,
            written,
            hosts,
            enrolments,
            hardware,
            machines,
            unreadable,
            watches,
        };
        let driver = Driver {
            changes: broadcast::channel(CHANGES).0,
            streams,
        };
        (world, driver)
    }

    /// Waits until every copy is complete for the first time. False if the driver ended before.
    pub async fn ready(&self) -> bool {
        loop {
            let all = async {
                tokio::join!(
                    self.segments.wait_until_ready(),
                    self.servers.wait_until_ready(),
                    self.hosts.wait_until_ready(),
                    self.enrolments.wait_until_ready(),
                    self.hardware.wait_until_ready(),
                )
            };
            // A store wakes only the last of several that wait for it (kube-runtime 5.0, `DelayedInit`): look again by and by.
            if let Ok((segments, servers, hosts, enrolments, hardware)) =
                tokio::time::timeout(LOOK_AGAIN, all).await
            {
                let first = segments.and(servers).and(hosts);
                return first.and(enrolments).and(hardware).is_ok();
            }
        }
    }

    /// Which of the copies that say what a machine boots cannot be kept up to date now, and for how long.
    pub fn stale(&self) -> Option<(Cow<'static, str>, Duration)> {
        let kinds = [BareMetalHost::kind(&()), Server::kind(&())];
        kinds.into_iter().find_map(|kind| {
            let since = self.watches.broken(&kind)?;
            Some((kind, since))
        })
    }

    /// The Server there, as late as it is known.
    pub fn server(&self, at: &Path) -> Option<Arc<Server>> {
        self.written.newest(&at.name, self.servers.get(&at.to_ref()))
    }

    /// What is where the host of `server` should be: it, or another one of its name.
    pub fn host_of(&self, server: &Server) -> Option<Arc<BareMetalHost>> {
        let at = server.spec.host.as_ref()?;
        self.hosts.get(&ObjectRef::new(&at.name).within(&at.namespace))
    }

    /// The Segment of the latest session of `server`; where that does not tell the namespace, it is `own`.
    pub fn segment_of(&self, server: &Server, own: &str) -> Option<Arc<Segment>> {
        self.segment_called(&server.session()?.segment, own)
    }

    /// The Segment called `key`: `namespace/name`, or a name in the namespace `own`.
    pub fn segment_called(&self, key: &str, own: &str) -> Option<Arc<Segment>> {
        let (namespace, name) = key.split_once('/').unwrap_or((own, key));
        self.segments.get(&ObjectRef::new(name).within(namespace))
    }
}

/// The complete copy of nothing.
fn empty<K>() -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let mut writer = Writer::<K>::default();
    writer.apply_watcher_event(&watcher::Event::InitDone);
    writer.as_reader()
}

type Changes = Pin<Box<dyn Stream<Item = Change> + Send>>;

/// What the copy shows from now on.
enum Shown<'a, K> {
    /// This object, or (true) no more.
    One(&'a K, bool),
    /// These and no others.
    All(&'a [K]),
}

/// The copy of the Servers has `server` as it is now, or no more: then ours of it is not believed any longer either.
pub(crate) fn show_server(machines: &Machines, written: &Written<Server>, server: &Server, gone: bool) {
    machines.server(server, gone);
    if gone {
        written.ended(server);
    }
}

/// The copy of one kind, and what changes in it. `show` is told first: of single ones at once when the
/// copy has changed, of all just before, since who waits for the copy goes on at once.
fn watch<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    watches: &Watches,
    change: impl Fn(Arc<K>) -> Change + Send + Sync + 'static,
    show: impl Fn(Shown<'_, K>) + Send + Sync + 'static,
) -> (Store<K>, Changes)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let writer = Writer::<K>::default();
    let store = writer.as_reader();
    let kind = K::kind(&());
    watches.begins(&kind);
    let watches = watches.clone();
    let events = events.modify(|object| {
        // Who wrote which field is half of an object, and nobody here reads it.
        object.managed_fields_mut().clear();
    });
    let show = Arc::new(show);
    let (all, mut listed) = (Arc::clone(&show), Vec::new());
    let events = events.inspect(move |event| match event {
        Ok(watcher::Event::Init) => listed.clear(),
        Ok(watcher::Event::InitApply(object)) => listed.push(object.clone()),
        Ok(watcher::Event::InitDone) => (*all)(Shown::All(&std::mem::take(&mut listed))),
        _ => {}
    });
    let changes = reflector::reflector(writer, events).filter_map(move |event| {
        std::future::ready(match event {
            Ok(watcher::Event::Apply(object)) => {
                (*show)(Shown::One(&object, false));
                Some(change(Arc::new(object)))
            }
            Ok(watcher::Event::Delete(object)) => {
                (*show)(Shown::One(&object, true));
                Some(change(Arc::new(object)))
            }
            Ok(watcher::Event::InitDone) => {
                watches.is_read(&kind);
                Some(Change::All)
            }
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => None,
            Err(error) => {
                watches.failed(&kind, &error);
                None
            }
        })
    });
    (store, changes.boxed())
}

#[cfg(test)]
mod tests;
