//! From a packet to the segment it belongs to, through the engine, and back out.

use std::{
    collections::{BTreeMap, HashSet},
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource as _;
use muster_proto::{Mac, kinds::Segment};
use tokio::sync::{Semaphore, mpsc, watch};

use super::{
    answerers::{self, Finding},
    door::Entrance,
    engine::{self, Step},
    frames::Frames,
    leases::{Leases, Pool},
    metrics::{Asked, BySegment, Dropped, Metrics, NO_ANSWER},
    rogue::{Answer, Watch},
    wire::Request,
};
use crate::{
    boot::{
        decide::{self, Circumstances, Client, Releases},
        lookup::Known,
        pass::{Maker, PassKey},
        policy::Verdict,
        segment::Net,
        status::{NO_KEYS, NO_RAMDISK, Trouble},
    },
    events::{Event, Events},
    log::{Log, Say},
    sync::lock,
    token::{BootSecrets, CA_SECRET, TOKEN_SECRET},
    world::World,
};

#[cfg(test)]
mod tests;

/// The most probes under way at one time; a request beyond them is answered without one.
const MAX_PROBES: usize = 64;
/// The most addresses that are probed for one request: as many as show who answers for every one.
const PROBES_PER_REQUEST: usize = answerers::MANY;
/// How long it takes an edge that has begun to read the keys, if they are there: until then it has nothing to tell of them.
const READS_KEYS: Duration = Duration::from_secs(30);

/// A segment that is served.
#[derive(Clone, Debug)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) net: Arc<Net>,
    pub(super) leases: Arc<Mutex<Leases>>,
    pub(super) watch: Arc<Mutex<Watch>>,
}

impl Active {
    pub(super) fn leases(&self) -> MutexGuard<'_, Leases> {
        lock(&self.leases)
    }

    pub(super) fn watch(&self) -> MutexGuard<'_, Watch> {
        lock(&self.watch)
    }

    fn reference(&self) -> ObjectReference {
        self.segment.object_ref(&())
    }
}

/// The served segments by `namespace/name`.
pub(super) type Actives = BTreeMap<String, Active>;

/// The segment to which a request belongs that came in on `interface`.
pub(super) fn route<'a>(
    actives: &'a Actives,
    interface: Option<&str>,
    request: &Request,
) -> Option<&'a Active> {
    let find = |test: &dyn Fn(&Net) -> bool| actives.values().find(|active| test(&active.net));
    if !request.giaddr.is_unspecified() {
        let relay = request.giaddr;
        return find(&|net| net.relays.contains(&relay)).or_else(|| find(&|net| net.relays_through(relay)));
    }
    let local = interface.and_then(|_| find(&|net| net.interface.as_deref() == interface));
    let address = request.ciaddr;
    if address.is_unspecified() || local.is_some_and(|active| active.net.subnet.contains(address)) {
        return local;
    }
    // A client behind a relay agent renews its lease with us directly.
    find(&|net| net.interface.is_none() && net.subnet.contains(address)).or(local)
}

/// What people are told where `step` leaves a machine unanswered that is to boot the ramdisk, because there are no boot files for it.
fn unfit(request: &Request, step: &Step) -> Option<String> {
    let Step::Silence(said) = step else {
        return None;
    };
    // What is silent for another reason has nothing to boot here anyway.
    let why = decide::unfit(request).filter(|why| why == said)?;
    Some(format!(
        "the machine with MAC address {} gets no boot file from Muster: {why}; next: if it is an x86-64 machine, set its firmware to BIOS \
         or 64-bit UEFI boot; otherwise use another machine",
        request.mac
    ))
}

/// What people are told where `step` leaves a machine without an address on `net`, because none is free. It names no machine: who asks
/// under ever new MAC addresses is told of once.
fn exhausted(step: &Step, net: &Net) -> Option<String> {
    matches!(step, Step::Silence(engine::NO_FREE_ADDRESS)).then(|| {
        format!(
            "no address of spec.dhcp.ranges is free ({} in total): each is leased or was found in use; machines without one get none, and \
             do not boot, until a lease ends; next: enlarge spec.dhcp.ranges or, if many machines stay only for a while, shorten \
             spec.dhcp.leaseSeconds ({} now)",
            Pool::of(net).len(),
            net.handout.lease_seconds
        )
    })
}

/// Takes requests from all doors.
#[derive(Debug)]
pub(super) struct Dispatch {
    world: World,
    releases: Shared,
    events: Events,
    metrics: Metrics,
    start: Instant,
    secrets: Secrets,
    actives: RwLock<Arc<Actives>>,
    log: Mutex<Log<Mac>>,
    probes: Arc<Semaphore>,
    probing: Mutex<HashSet<(String, Mac)>>,
}

/// From enrolment; `None` until it has them.
pub(super) type Secrets = watch::Receiver<Option<Arc<BootSecrets>>>;

/// [`Releases`] without a Debug of its own.
struct Shared(Arc<dyn Releases>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Releases")
    }
}

impl Dispatch {
    pub(super) fn new(
        world: World,
        releases: Arc<dyn Releases>,
        secrets: Secrets,
        events: Events,
        metrics: Metrics,
    ) -> Dispatch {
        Dispatch {
            world,
            releases: Shared(releases),
            events,
            metrics,
            start: Instant::now(),
            secrets,
            actives: RwLock::default(),
            log: Mutex::default(),
            probes: Arc::new(Semaphore::new(MAX_PROBES)),
            probing: Mutex::default(),
        }
    }

    /// Since this controller's start.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// True while the keys may only not be read yet.
    pub(super) fn awaits_keys(&self) -> bool {
        !self.has_keys() && self.now() < READS_KEYS
    }

    fn has_keys(&self) -> bool {
        self.secrets.borrow().is_some()
    }

    /// What keeps machines on `net` from booting, though they are answered.
    pub(super) fn lacks(&self, net: &Net) -> Option<Trouble> {
        self.lacks_keys().or_else(|| self.lacks_ramdisk(net))
    }

    fn lacks_keys(&self) -> Option<Trouble> {
        (!self.has_keys()).then(|| Trouble {
            reason: NO_KEYS,
            message: format!(
                "the Secrets {CA_SECRET} and {TOKEN_SECRET} do not exist yet, or the edge cannot read them, so machines here cannot boot; \
                 next: muster-control creates them; if it has, the edge's log says why they cannot be read"
            ),
        })
    }

    fn lacks_ramdisk(&self, net: &Net) -> Option<Trouble> {
        let has_ramdisk = self.releases.0.current(net.profile).is_some();
        (!has_ramdisk).then(|| Trouble {
            reason: NO_RAMDISK,
            message: format!(
                "there is no ramdisk for profile {} in the edge's --boot-dir, {}, so machines here cannot boot; next: it is served as \
                 soon as there is one",
                net.profile.name(),
                self.releases.0.directory().display()
            ),
        })
    }

    /// What is served now.
    pub(super) fn actives(&self) -> Arc<Actives> {
        self.actives
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// From now on, this is served.
    pub(super) fn serve(&self, actives: Actives) {
        *self.actives.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(actives);
    }

    /// Counts bytes that are no request.
    pub(super) fn drop_malformed(&self) {
        self.dropped("malformed");
    }

    fn dropped(&self, why: &'static str) {
        self.metrics.dropped.get_or_create(&Dropped { why }).inc();
    }

    /// Counts by `count` what happens on the segment `key`, if that is served still: a request that was probed for meanwhile does not bring
    /// back what was forgotten.
    fn counted(&self, key: &str, count: impl FnOnce(&Metrics)) {
        // Held until it is counted: what is served no more is forgotten after that.
        let actives = self.actives.read().unwrap_or_else(PoisonError::into_inner);
        if actives.contains_key(key) {
            count(&self.metrics);
        }
    }

    /// One packet.
    pub(super) fn take(self: &Arc<Self>, packet: &[u8], from: SocketAddrV4, entrance: &Arc<Entrance>) {
        let request = match Request::parse(packet) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(%from, %error, "not a DHCP request");
                return self.drop_malformed();
            }
        };
        let actives = self.actives();
        let Some(active) = route(&actives, entrance.interface.as_deref(), &request) else {
            tracing::debug!(%from, mac = %request.mac, giaddr = %request.giaddr, "no segment matches");
            return self.dropped("stray");
        };
        match self.step(&request, entrance.port, active) {
            Step::Probe(address) => self.probe(request, address, from, entrance, active),
            step => self.finish(&request, &step, from, entrance, active),
        }
    }

    fn step(&self, request: &Request, port: u16, active: &Active) -> Step {
        let net = &active.net;
        let boots = Client::of(request).boots();
        let release = boots.then(|| self.releases.0.current(net.profile)).flatten();
        let passes = boots.then(|| self.passes()).flatten();
        // Whoever only wants an address gets it without being looked up.
        let verdict = if boots {
            let has_files = release.is_some() && passes.is_some();
            self.verdict(request, &active.segment, has_files)
        } else {
            Verdict::Silence("it boots nothing")
        };
        let circumstances = Circumstances {
            net,
            verdict,
            release: release.as_deref(),
            passes: passes.as_ref(),
        };
        let mut leases = active.leases();
        let recycled = leases.recycled();
        let step = engine::step(request, port, &circumstances, &mut leases, self.now());
        let recycled = leases.recycled() - recycled;
        if recycled > 0 {
            self.counted(&net.key, |metrics| {
                let of = BySegment::of(&net.key);
                metrics.recycled.get_or_create(&of).inc_by(recycled);
            });
        }
        step
    }

    /// What the sender boots. Where only an old copy says that it is its own disk, its boot script decides, which can wait for the API
    /// server, if the sender comes by one and there are the files for that.
    fn verdict(&self, request: &Request, segment: &Segment, has_files: bool) -> Verdict {
        let known = Known::of(&self.world, request.mac, request.uuid().as_deref());
        let loads_script = matches!(Client::of(request), Client::Firmware | Client::Ipxe);
        let can_ask = loads_script && has_files && decide::unfit(request).is_none();
        let is_old = || known.host.is_some() && self.world.stale().is_some();
        let verdict = match known.verdict(segment) {
            Verdict::Disk(_) if can_ask && is_old() => {
                Verdict::Ramdisk("the cached copy of its host is stale: its boot script decides")
            }
            verdict => verdict,
        };
        if let Some(event) = known.shared_uuid(request.mac, verdict) {
            self.events.record(event);
        }
        verdict
    }

    /// Fresh ones for every packet: only the one in the URL that the firmware really loads becomes a token.
    fn passes(&self) -> Option<Maker> {
        let secrets = self.secrets.borrow().clone()?;
        Maker::fresh(
            PassKey::of(&secrets.token_key),
            jiff::Timestamp::now().as_second(),
        )
    }

    /// Asks the network about `address`, beside the reading of further requests, and then answers.
    fn probe(
        self: &Arc<Self>,
        request: Request,
        address: Ipv4Addr,
        from: SocketAddrV4,
        entrance: &Arc<Entrance>,
        active: &Active,
    ) {
        let local = request.giaddr.is_unspecified() && active.net.interface == entrance.interface;
        let frames = entrance.frames.clone().filter(|_| local);
        let (Some(frames), Ok(permit)) = (frames, self.probes.clone().try_acquire_owned()) else {
            // Behind a relay agent there is no ARP; a client that finds its address taken says so (DHCPDECLINE).
            let step = self.unprobed(&request, address, entrance.port, active);
            return self.finish(&request, &step, from, entrance, active);
        };
        let token = (active.net.key.clone(), request.mac);
        if !self.lock_probing().insert(token.clone()) {
            // It asked again while we ask the network for it.
            return;
        }
        let (dispatch, entrance, active) = (self.clone(), entrance.clone(), active.clone());
        tokio::spawn(async move {
            let step = dispatch
                .settle(&request, address, &frames, entrance.port, &active)
                .await;
            dispatch.lock_probing().remove(&token);
            dispatch.finish(&request, &step, from, &entrance, &active);
            drop(permit);
        });
    }

    /// Probes until an address is silent.
    async fn settle(
        &self,
        request: &Request,
        mut address: Ipv4Addr,
        frames: &Frames,
        port: u16,
        active: &Active,
    ) -> Step {
        let key = &active.net.key;
        for _ in 0..PROBES_PER_REQUEST {
            let answer = match frames.probe(address).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(%address, %error, "probing an address");
                    return self.unprobed(request, address, port, active);
                }
            };
            let found = active.leases().probed(request.mac, address, answer, self.now());
            match found {
                Finding::Free => {}
                Finding::Taken(stranger) => {
                    self.counted(key, |metrics| {
                        metrics.conflicts.get_or_create(&BySegment::of(key)).inc();
                    });
                    tracing::warn!(segment = key, %address, %stranger, "an address of the ranges is in use");
                }
                Finding::Unknown { by, is_news } => {
                    self.count_unprobed(key);
                    if is_news {
                        self.tell_proxy_arp(by, active);
                    }
                }
            }
            match self.step(request, port, active) {
                Step::Probe(next) => address = next,
                step => return step,
            }
        }
        Step::Silence("all addresses that were tried for it are in use")
    }

    fn unprobed(&self, request: &Request, address: Ipv4Addr, port: u16, active: &Active) -> Step {
        self.count_unprobed(&active.net.key);
        active.leases().probed(request.mac, address, None, self.now());
        self.step(request, port, active)
    }

    fn count_unprobed(&self, key: &str) {
        self.counted(key, |metrics| {
            metrics.unprobed.get_or_create(&BySegment::of(key)).inc();
        });
    }

    /// Tells of a device that is not believed from now on, whichever address it answers for.
    fn tell_proxy_arp(&self, by: Mac, active: &Active) {
        tracing::warn!(segment = active.net.key, mac = %by, "a device answers for every address of the ranges and is not believed");
        self.events.record(Event {
            about: active.reference(),
            related: None,
            warning: true,
            reason: "ProxyArp",
            message: format!(
                "the device with MAC address {by} answers ARP for every address of the ranges (proxy ARP): its answers are ignored, so it \
                 is not noticed here if an address is in use; next: switch proxy ARP off there for this network, and keep addresses that \
                 others use out of the ranges"
            ),
        });
    }

    fn lock_probing(&self) -> MutexGuard<'_, HashSet<(String, Mac)>> {
        lock(&self.probing)
    }

    /// Sends, counts and logs.
    fn finish(
        &self,
        request: &Request,
        step: &Step,
        from: SocketAddrV4,
        entrance: &Entrance,
        active: &Active,
    ) {
        let key = &active.net.key;
        let answer = match step {
            Step::Send(reply, _) => reply.kind.name(),
            Step::Silence(_) | Step::Probe(_) => NO_ANSWER,
        };
        self.counted(key, |metrics| {
            let asked = Asked {
                segment: key.clone(),
                request: request.kind.name(),
                answer,
            };
            metrics.requests.get_or_create(&asked).inc();
        });
        self.say(request, step, key);
        let Step::Send(reply, _) = step else {
            self.tell_unfit(request, step, active);
            return self.tell_exhausted(step, active);
        };
        let Some(bytes) = reply.encode(request) else {
            tracing::warn!(segment = key, mac = %request.mac, "the reply does not fit into what the client takes");
            return self.dropped("reply");
        };
        let to = engine::destination(request, &active.net, reply, entrance.port, from);
        // With the send buffer full the reply is lost, and the client asks again.
        if let Err(error) = entrance.send(&bytes, active.net.own, to) {
            tracing::debug!(segment = key, mac = %request.mac, %to, %error, "sending a DHCP reply");
            self.dropped("send");
        }
    }

    fn say(&self, request: &Request, step: &Step, key: &str) {
        // Offer and acknowledgement of one address are one decision.
        let what = engine::describe(request, step);
        let said = lock(&self.log).say(request.mac, &what, self.now());
        if let Say::Line(left_out) = said {
            tracing::info!(mac = %request.mac, segment = key, host_name = request.host_name, left_out, "{what}");
        }
    }

    /// Tells of a machine that can never boot here, on its Segment and on the host that waits for it.
    fn tell_unfit(&self, request: &Request, step: &Step, active: &Active) {
        let Some(message) = unfit(request, step) else {
            return;
        };
        let known = Known::of(&self.world, request.mac, request.uuid().as_deref());
        let host = known.host.map(|host| host.object_ref(&()));
        for about in std::iter::once(active.reference()).chain(host) {
            self.events.record(Event {
                about,
                related: None,
                warning: true,
                reason: "NoBootFile",
                message: message.clone(),
            });
        }
    }

    /// Tells of a Segment that has no address left.
    fn tell_exhausted(&self, step: &Step, active: &Active) {
        if let Some(message) = exhausted(step, &active.net) {
            self.events.record(Event {
                about: active.reference(),
                related: None,
                warning: true,
                reason: "NoFreeAddress",
                message,
            });
        }
    }

    /// Listens to what other servers answer on `interface`.
    pub(super) async fn watch(self: Arc<Self>, interface: String, mut answers: mpsc::Receiver<Answer>) {
        while let Some(answer) = answers.recv().await {
            let actives = self.actives();
            let Some(active) = actives
                .values()
                .find(|active| active.net.interface.as_deref() == Some(&interface))
            else {
                continue;
            };
            let found = active.watch().hear(&answer, &active.net, self.now());
            if let Some(intruder) = found {
                tracing::warn!(segment = active.net.key, %intruder, "another server answers on this segment");
                self.events.record(Event {
                    about: active.reference(),
                    related: None,
                    warning: true,
                    reason: "AnotherServer",
                    message: format!("{intruder} answers on this segment as well"),
                });
            }
        }
    }
}
