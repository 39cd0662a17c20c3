//! The loop with an API server in memory, a BMC, and a machine behind it whose ramdisk does what it is told. Time is tokio's, paused:
//! it moves on when nobody has anything to do.

use std::sync::atomic::{AtomicI64, Ordering};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::client::Body;
use muster_proto::{
    Mac,
    inventory::{Disk, Inventory, Nic},
    job::{ConfigDrive, Write},
    kinds::{
        BareMetalHost, BareMetalHostSpec, BmcDetails, HostReference, IN_BAND_ANNOTATION, IN_BAND_SEGMENT,
        Image, JobAction, LeaveAction, Segment, SegmentSpec, Server, ServerSpec, Trust,
    },
    seal::{Bound, SealKey},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{
    super::*,
    trouble::{At, Steps, Trouble},
};
use crate::{
    bmc::{self, BmcError, Boot, Credentials, Done as Answered, PowerState, Reset, SystemState},
    events::{Event, Happened},
    fake_api::FakeApi,
    host::{bmcs::Answer, plan::SECRET_LABEL},
    lease,
    metrics::Registry,
};

/// In virtual time: longer than any life.
const EVER: Duration = Duration::from_secs(12 * 3600);
/// How often somebody looks who was told of no change.
const LOOK: Duration = Duration::from_secs(5);
/// The number of the first term.
const FIRST: i64 = 7;
pub(super) const CANARY: &str = "canary-4b1d";
pub(super) const IMAGE: &str = "http://images.test/os.raw";

/// A machine, its ramdisk's agent and its BMC.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) name: String,
    mac: Mac,
    seal: SealKey,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    on: bool,
    armed: bool,
    /// In which mode it was told to boot.
    mode: Option<bmc::WantedMode>,
    /// When its ramdisk calls in.
    calls_in: Option<Instant>,
    sessions: u32,
    password: String,
    /// How often somebody came with another one.
    strangers: usize,
    fault: Option<BmcError>,
    /// How long its BMC takes to say whether it is on.
    bmc_takes: Duration,
    arming_takes: Duration,
    switching_takes: Duration,
    /// What its BMC carried out.
    resets: Vec<Reset>,
    /// How often its BMC was asked for that, and how often it answered.
    asked: usize,
    answered: usize,
    /// What the disk holds, and how often it was written.
    disk: Vec<String>,
    cleaned: usize,
    written: usize,
    last: String,
    /// The term of the job that its ramdisk took up last.
    epoch: i64,
    mute: bool,
    /// Its ramdisk takes jobs up and comes to no end.
    slow: bool,
    /// Nothing is heard of its ramdisk.
    silent: bool,
    fell_silent: bool,
    /// Its firmware boots from the network without being told.
    network_first: bool,
    /// How often its ramdisk was told to go down.
    ends: usize,
    /// A call has come to its BMC, and its host was not forgotten since.
    remembered: bool,
}

pub(super) struct Lab {
    pub(super) api: Arc<FakeApi>,
    pub(super) machines: Vec<Arc<Machine>>,
    pub(super) events: Mutex<mpsc::Receiver<Happened>>,
    queue: Events,
    begun: Instant,
    pub(super) limit: usize,
    metrics: Metrics,
    registry: Registry,
    /// Calls to BMCs that changed something, and writes to the API server.
    steps: Arc<Steps>,
    term: Mutex<Leadership>,
    /// The newest term that its BMCs know of.
    newest: AtomicI64,
}

fn base() -> jiff::Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

impl Lab {
    pub(super) fn new(machines: usize) -> Arc<Lab> {
        let api = FakeApi::new();
        let spec = SegmentSpec {
            subnet: "10.77.0.0/24".to_owned(),
            required_trust: Some(Trust::Segment),
            ..SegmentSpec::default()
        };
        api.put("segments", &Segment::new("lab", spec));
        let machines = (1..=machines)
            .map(|number| Arc::new(Machine::new(number)))
            .collect();
        let (queue, events) = mpsc::channel(10_000);
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        Arc::new(Lab {
            steps: Arc::new(Steps::new(&api)),
            api,
            machines,
            events: Mutex::new(events),
            queue: Events::new(queue),
            begun: Instant::now(),
            limit: 20,
            metrics,
            registry,
            term: Mutex::new(Leadership::new(FIRST, lease::now() + EVER)),
            newest: AtomicI64::new(FIRST),
        })
    }

    pub(super) fn with_limit(machines: usize, limit: usize) -> Arc<Lab> {
        let mut lab = Arc::into_inner(Lab::new(machines)).unwrap();
        lab.limit = limit;
        Arc::new(lab)
    }

    /// The controller dies at step `number`, before it is done or after.
    pub(super) fn kill_at(&self, number: usize, done: bool) {
        self.trouble(At::Step(number), Trouble::Kill { done });
    }

    pub(super) fn trouble(&self, at: At, trouble: Trouble) {
        self.steps.set(at, trouble);
    }

    /// How many writes the API server answered otherwise than it should have.
    pub(super) fn troubled(&self) -> usize {
        self.steps.troubled()
    }

    fn term(&self) -> Leadership {
        self.term.lock().unwrap().clone()
    }

    /// The controller starts anew and believes that it leads, which it does not.
    pub(super) fn end_term(&self) {
        let next = self.term().epoch() + 1;
        *self.term.lock().unwrap() = Leadership::new(next, lease::now());
        self.steps.kill();
    }

    /// The controller was stopped for so long that its term is over, and goes on as if nothing had happened.
    pub(super) fn lapse_term(&self) {
        self.term().lapse();
    }

    /// Who leads next has the next term; not in place of one that was over from its beginning.
    fn begin_term(&self) {
        let before = self.term();
        if before.still() {
            *self.term.lock().unwrap() = Leadership::new(before.epoch() + 1, lease::now() + EVER);
        }
    }

    /// That was not so: what it renewed its term with comes late.
    pub(super) fn renew_term(&self) {
        self.term().extend(lease::now() + Duration::from_secs(86_400));
    }

    /// The controller dies, and another one starts.
    pub(super) fn kill(&self) {
        self.steps.kill();
    }

    pub(super) fn steps(&self) -> usize {
        self.steps.count()
    }

    fn now(&self) -> jiff::Timestamp {
        base() + jiff::SignedDuration::try_from(self.begun.elapsed()).unwrap()
    }

    fn client(&self) -> Client {
        let inner = self.api.client();
        let steps = Arc::clone(&self.steps);
        let serve = move |request: hyper::Request<Body>| {
            let (inner, steps) = (inner.clone(), Arc::clone(&steps));
            async move {
                match *request.method() {
                    hyper::Method::GET => inner.send(request).await,
                    _ => steps.write(inner, request).await,
                }
            }
        };
        lease::guarded(&self.term(), Client::new(tower::service_fn(serve), "default"))
    }

    /// One life of the controller: ends when it is killed.
    async fn controller(self: &Arc<Lab>) {
        let changes = self.api.changes();
        let lab = Arc::clone(self);
        let config = Config {
            client: self.client(),
            scope: Scope {
                namespace: "muster-system".to_owned(),
                hosts: None,
                control: true,
            },
            world: self.api.world(),
            changes,
            events: self.queue.clone(),
            metrics: self.metrics.clone(),
            bmcs: Arc::clone(self) as _,
            term: self.term(),
            clock: Arc::new(move || lab.now()),
            limit: self.limit,
            concurrency: 8,
            max_provisioning_retries: 5,
        };
        let (context, changes, woken) = Context::new(config).unwrap();
        let _end = End(Arc::clone(&context));
        let (tell, touched) = mpsc::unbounded_channel();
        let vault = Arc::clone(&context.vault);
        self.api.watch_secrets(move |secret, gone| {
            let (label, value) = SECRET_LABEL;
            let labelled = secret
                .metadata
                .labels
                .iter()
                .flatten()
                .any(|(name, is)| name == label && is == value);
            if let Touched::One(path) = vault.take_in(&secret, gone || !labelled) {
                let _ = tell.send(path);
            }
        });
        let of = Arc::clone(&context);
        let secrets = stream::unfold(touched, |mut touched| async move {
            let path = touched.recv().await?;
            Some((path, touched))
        });
        let secrets = secrets.map(move |path| of.index.named_by(&path));
        tokio::select! {
            () = rounds(context, changes, woken, secrets, 8) => panic!("the loop ended"),
            () = self.steps.killed() => {}
        }
    }

    /// Runs the controller, again and again if it dies, and all machines, until `story` ends.
    pub(super) async fn run<T>(self: &Arc<Lab>, story: impl Future<Output = T>) -> T {
        let controllers = async {
            loop {
                self.controller().await;
                // Nobody leads before the Lease has run out: what was on its way has arrived by then.
                tokio::time::sleep(Duration::from_secs(15)).await;
                self.begin_term();
            }
        };
        let mut changes = self.api.changes();
        let machines = async {
            loop {
                // An edge that cannot write keeps what its agents say until it can.
                for machine in self.machines.iter().filter(|_| !self.api.is_down()) {
                    machine.live(self);
                }
                let _ = timeout(LOOK, changes.recv()).await;
            }
        };
        tokio::select! {
            told = timeout(EVER, story) => told.unwrap_or_else(|_| panic!("{}\n{:#?}", self.last_requests(), self.host(1))),
            () = controllers => unreachable!(),
            () = machines => unreachable!(),
        }
    }

    /// What was asked of the API server last, for people.
    fn last_requests(&self) -> String {
        let asked = self.api.requests();
        asked[asked.len().saturating_sub(30)..].join("\n")
    }

    /// Somebody declares the host of machine `number`, with its Secret.
    pub(super) fn declare(&self, number: usize) {
        self.secret(number, CANARY);
        self.put_host(number, Some(bmc(number)));
    }

    /// Somebody declares the host of machine `number`, and does not say where its BMC is.
    pub(super) fn declare_unmanaged(&self, number: usize) {
        self.put_host(number, None);
    }

    /// Somebody declares the host of machine `number`, which has no BMC and whose ramdisk runs, and opts in for it.
    pub(super) fn declare_in_band(&self, number: usize) {
        let mut state = self.machines[number - 1].lock();
        (state.on, state.network_first, state.calls_in) = (true, true, Some(Instant::now()));
        drop(state);
        self.put_host(number, None);
        let annotations = json!({IN_BAND_ANNOTATION: IN_BAND_SEGMENT});
        self.edit(number, &json!({"metadata": {"annotations": annotations}}));
    }

    fn put_host(&self, number: usize, bmc: Option<BmcDetails>) {
        let machine = &self.machines[number - 1];
        let spec = BareMetalHostSpec {
            online: true,
            boot_mac_address: Some(machine.mac.to_string()),
            bmc,
            ..BareMetalHostSpec::default()
        };
        let mut host = BareMetalHost::new(&machine.name, spec);
        host.metadata.namespace = Some("metal".to_owned());
        host.metadata.uid = Some(format!("uid-{number}"));
        self.api.put("baremetalhosts", &host);
    }

    pub(super) fn secret(&self, number: usize, password: &str) {
        let login = [("username", "admin"), ("password", password)];
        self.put_secret(&format!("bmc-{number}"), &login);
    }

    pub(super) fn put_secret(&self, name: &str, data: &[(&str, &str)]) {
        self.api.put("secrets", &secret(name, data));
    }

    /// What discovery makes of the machine's first boot.
    fn server(&self, machine: &Machine, number: &str) -> Server {
        let mut server = Server::new(&machine.name, ServerSpec::default());
        server.spec.host = Some(HostReference {
            namespace: "metal".to_owned(),
            name: machine.name.clone(),
            uid: format!("uid-{number}"),
        });
        server.metadata.uid = Some(format!("server-{number}"));
        server
    }

    pub(super) fn host(&self, number: usize) -> Option<BareMetalHost> {
        self.api.get("baremetalhosts", &self.machines[number - 1].name)
    }

    /// True if the host waits for `reason`, as its status says.
    pub(super) fn waits_for(&self, number: usize, reason: &str) -> bool {
        let status = self.host(number).unwrap().status.unwrap();
        let mut conditions = status.conditions.iter();
        conditions.any(|one| one.type_ == "Waiting" && one.status == "True" && one.reason == reason)
    }

    pub(super) fn edit(&self, number: usize, patch: &Value) {
        self.api
            .edit("baremetalhosts", &self.machines[number - 1].name, patch);
    }

    /// Waits until the host is in this state.
    pub(super) async fn reaches(&self, number: usize, state: &str) {
        self.until(|| {
            let host = self.host(number);
            host.is_some_and(|host| {
                host.status
                    .is_some_and(|status| status.provisioning.state == state)
            })
        })
        .await;
    }

    pub(super) async fn until(&self, test: impl Fn() -> bool) {
        let mut changes = self.api.changes();
        while !test() {
            let _ = timeout(LOOK, changes.recv()).await;
        }
    }

    /// Wishes for an image, with user data.
    pub(super) fn wish(&self, number: usize) {
        self.put_secret("user", &[("userData", CANARY)]);
        self.edit(number, &json!({"spec": {"userData": {"name": "user"}}}));
        self.wish_plainly(number);
    }

    /// Wishes for an image, with nothing on the config drive that is kept in a Secret.
    pub(super) fn wish_plainly(&self, number: usize) {
        let image = Image {
            url: IMAGE.to_owned(),
            checksum: Some("0".repeat(64)),
            ..Image::default()
        };
        self.edit(number, &json!({"spec": {"image": image}}));
    }

    /// What is counted under upstream's names: `NAME{LABELS} VALUE`, line by line.
    pub(super) fn counted(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    pub(super) fn told(&self) -> Vec<Event> {
        let mut events = self.events.lock().unwrap();
        let happened = std::iter::from_fn(|| events.try_recv().ok());
        happened.map(|happened| happened.event).collect()
    }
}

fn secret(name: &str, data: &[(&str, &str)]) -> Secret {
    let bytes = |(key, text): &(&str, &str)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec()));
    let mut secret = Secret {
        data: Some(data.iter().map(bytes).collect()),
        ..Secret::default()
    };
    secret.metadata.name = Some(name.to_owned());
    secret.metadata.namespace = Some("metal".to_owned());
    secret.metadata.uid = Some(format!("uid-{name}"));
    secret
}

impl Machine {
    fn new(number: usize) -> Machine {
        Machine {
            name: format!("m{number}"),
            mac: Mac([2, 0, 0, 0, 0, u8::try_from(number).unwrap()]),
            seal: SealKey::generate(),
            state: Mutex::new(State {
                password: CANARY.to_owned(),
                disk: vec!["old".to_owned()],
                ..State::default()
            }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How many images were written, whole or not.
    pub(super) fn written(&self) -> usize {
        self.lock().written
    }

    /// What the disk holds, from the beginning on, and how often all disks were cleaned.
    pub(super) fn disk(&self) -> (Vec<String>, usize) {
        let state = self.lock();
        (state.disk.clone(), state.cleaned)
    }

    pub(super) fn mode(&self) -> Option<bmc::WantedMode> {
        self.lock().mode
    }

    pub(super) fn is_on(&self) -> bool {
        self.lock().on
    }

    /// It is off, and does not call in.
    pub(super) fn loses_its_boot(&self) {
        let mut state = self.lock();
        (state.on, state.calls_in) = (false, None);
    }

    /// How often its ramdisk called in, and was told to go down.
    pub(super) fn calls_and_ends(&self) -> (u32, usize) {
        let state = self.lock();
        (state.sessions, state.ends)
    }

    pub(super) fn set_password(&self, password: &str) {
        password.clone_into(&mut self.lock().password);
    }

    pub(super) fn set_fault(&self, fault: Option<BmcError>) {
        self.lock().fault = fault;
    }

    /// Its BMC takes this long to say whether it is on.
    pub(super) fn set_bmc_takes(&self, time: Duration) {
        self.lock().bmc_takes = time;
    }

    /// Its BMC takes this long to arm what is booted next.
    pub(super) fn set_arming_takes(&self, time: Duration) {
        self.lock().arming_takes = time;
    }

    /// Its BMC takes this long to carry out an order on the power.
    pub(super) fn set_switching_takes(&self, time: Duration) {
        self.lock().switching_takes = time;
    }

    /// The orders on the power that its BMC carried out.
    pub(super) fn resets(&self) -> Vec<Reset> {
        self.lock().resets.clone()
    }

    /// The term of the job that its ramdisk took up last.
    pub(super) fn epoch(&self) -> i64 {
        self.lock().epoch
    }

    /// True if it boots the network next.
    pub(super) fn is_armed(&self) -> bool {
        self.lock().armed
    }

    /// How often its BMC was asked whether it is on, and how often it answered.
    pub(super) fn asked_and_answered(&self) -> (usize, usize) {
        let state = self.lock();
        (state.asked, state.answered)
    }

    /// True if something is remembered of its BMC: a call has come there, and its host was not forgotten since.
    pub(super) fn is_remembered(&self) -> bool {
        self.lock().remembered
    }

    /// How often somebody came to its BMC with a wrong password.
    pub(super) fn strangers(&self) -> usize {
        self.lock().strangers
    }

    /// Its ramdisk never calls in.
    pub(super) fn set_mute(&self) {
        self.lock().mute = true;
    }

    /// Its ramdisk takes jobs up and comes to no end, or ends them.
    pub(super) fn set_slow(&self, slow: bool) {
        self.lock().slow = slow;
    }

    /// Its ramdisk cannot be heard, or is again, with the session that it had.
    pub(super) fn set_silent(&self, silent: bool) {
        self.lock().silent = silent;
    }

    /// Its firmware boots from the network first, or its disk.
    pub(super) fn set_network_first(&self, network_first: bool) {
        self.lock().network_first = network_first;
    }

    /// Somebody switches it off and on.
    pub(super) fn is_power_cycled(&self) {
        Machine::boot(&mut self.lock());
    }

    fn boot(state: &mut State) {
        state.on = true;
        let network = std::mem::take(&mut state.armed) || state.network_first;
        let ramdisk = network && !state.mute;
        state.calls_in = ramdisk.then(|| Instant::now() + Duration::from_secs(20));
    }

    fn inventory(&self) -> Inventory {
        let mut inventory = Inventory::default();
        inventory.identity.system_serial = Some(format!("SN-{}", self.name));
        inventory.identity.macs = [self.mac].into();
        inventory.nics = vec![Nic {
            mac: Some(self.mac),
            ..Nic::default()
        }];
        inventory.disks = vec![Disk {
            name: "/dev/sda".to_owned(),
            serial: "D1".to_owned(),
            size_bytes: 8 << 30,
            ..Disk::default()
        }];
        inventory
    }

    /// What the agent and the edge do: it calls in, it carries out jobs.
    fn live(&self, lab: &Lab) {
        let mut state = self.lock();
        let now = lab.now().to_string();
        let known: Option<Server> = lab.api.get("servers", &self.name);
        let status = known.as_ref().and_then(|server| server.status.as_ref());
        let connected = status.is_some_and(|status| {
            status
                .session
                .as_ref()
                .is_some_and(|session| session.state == muster_proto::kinds::SessionState::Connected)
        });
        let runs = state.on && !state.silent && state.calls_in.is_some_and(|at| at <= Instant::now());
        if !runs {
            state.fell_silent |= state.silent;
            if connected {
                lab.api.edit(
                    "servers",
                    &self.name,
                    &json!({"status": {"session": {"state": "Disconnected", "since": now}}}),
                );
            }
            return;
        }
        if !connected && std::mem::take(&mut state.fell_silent) {
            let back = json!({"session": {"state": "Connected", "since": now}});
            lab.api.edit("servers", &self.name, &json!({"status": back}));
            return;
        }
        if !connected {
            if known.is_none() {
                let number = self.name.trim_start_matches('m');
                lab.api.put("servers", &lab.server(self, number));
            }
            state.sessions += 1;
            let session = json!({
                "state": "Connected", "since": now, "segment": "muster-system/lab", "trust": "segment",
                "key": format!("{:064x}", state.sessions), "sealKey": self.seal.public(),
            });
            let report = json!({"session": session, "identity": self.inventory().identity,
                "inventory": self.inventory(), "inventoried": now, "inventoryTrust": "segment"});
            lab.api.edit("servers", &self.name, &json!({"status": report}));
            return;
        }
        let Some(server) = &known else { return };
        let key = status
            .and_then(|status| status.session.as_ref())
            .map(|session| session.key.clone());
        let ours = key.as_deref().unwrap_or_default();
        let Some(job) = server.spec.job.clone().filter(|job| job.is_for(ours)) else {
            return;
        };
        let last = status.and_then(|status| status.job.as_ref());
        if let Some((leave, leaving)) = server.told_to_leave() {
            // It comes with the answer to the end of the write.
            if leaving.said {
                return;
            }
            state.ends += 1;
            let said = json!({"session": {"state": "Disconnected", "since": now}, "job": {"leaving": {"said": true}}});
            lab.api.edit("servers", &self.name, &json!({"status": said}));
            match leave.action {
                LeaveAction::Reboot => Machine::boot(&mut state),
                LeaveAction::PowerOff => (state.on, state.calls_in) = (false, None),
            }
            return;
        }
        if job.id == state.last {
            return;
        }
        if state.slow {
            let taken = json!({"job": {"id": job.id, "done": false}});
            if last.is_none_or(|last| last.id != job.id) {
                lab.api.edit("servers", &self.name, &json!({"status": taken}));
            }
            return;
        }
        state.last.clone_from(&job.id);
        if last.is_some_and(|last| job.is_called(&last.id) && last.done) {
            return;
        }
        let term = lab.term().epoch();
        assert!((FIRST..=term).contains(&job.epoch), "{} in {term}", job.epoch);
        assert!(job.epoch >= state.epoch, "{} after {}", job.epoch, state.epoch);
        state.epoch = job.epoch;
        state.ends += usize::from(matches!(job.action, JobAction::Reboot | JobAction::PowerOff));
        let session = status.unwrap().session.clone().unwrap();
        let mut ended = job.id.clone();
        let leaving = job.leave.as_ref().map(|leave| json!({"id": leave.id}));
        match job.action {
            JobAction::Inspect => {
                lab.api
                    .edit("servers", &self.name, &json!({"status": {"inventoried": now}}));
            }
            JobAction::Clean => {
                assert_eq!(job.clean.unwrap().unpack().disks[0].serial, "D1");
                state.cleaned += 1;
                state.disk = Vec::new();
                if let Some(then) = job.then.filter(|then| then.session == session.key) {
                    let operation = (&*then.id, job.epoch);
                    self.write(&mut state, operation, &session.key, *then.write);
                    ended = then.id;
                }
            }
            JobAction::Write => {
                let operation = (&*job.id, job.epoch);
                self.write(&mut state, operation, &session.key, *job.write.unwrap());
            }
            JobAction::Reboot => Machine::boot(&mut state),
            JobAction::PowerOff => (state.on, state.calls_in) = (false, None),
        }
        lab.api.edit(
            "servers",
            &self.name,
            &json!({"status": {"job": {"id": ended, "done": true, "leaving": leaving}}}),
        );
    }

    /// What the job `operation`, an id and a term, writes.
    fn write(&self, state: &mut State, operation: (&str, i64), session: &str, write: Write) {
        state.written += 1;
        let (job, epoch) = operation;
        let bound = Bound { job, epoch, session };
        let opened = self.seal.open(&bound, &write.config_drive.unwrap()).unwrap();
        let drive: ConfigDrive = serde_json::from_slice(&opened).unwrap();
        assert_eq!(drive.meta_data["metal3-name"], self.name);
        // There is no Secret behind it.
        let is_ours = drive.user_data.is_none() && drive.network_data.is_none() && drive.meta_data.len() == 6;
        assert_eq!(write.config_drive_optional, is_ours);
        assert!(drive.user_data.is_none_or(|data| data == CANARY.as_bytes()));
        state.disk.push(write.image.url);
    }

    fn enter(&self, access: &bmc::Access) -> Result<std::sync::MutexGuard<'_, State>, BmcError> {
        let mut state = self.lock();
        state.remembered = true;
        if let Some(fault) = &state.fault {
            return Err(fault.clone());
        }
        if access.credentials != Credentials::new("admin", &state.password) {
            state.strangers += 1;
            return Err(BmcError::Credentials {
                message: "no".to_owned(),
            });
        }
        Ok(state)
    }

    fn look(state: &State) -> SystemState {
        SystemState {
            power: if state.on { PowerState::On } else { PowerState::Off },
            health: bmc::Health::Ok,
        }
    }
}

impl Lab {
    fn machine(&self, host: &bmc::HostRef) -> &Machine {
        self.machines
            .iter()
            .find(|machine| machine.name == host.name)
            .unwrap()
    }

    /// What a real BMC's driver asks right before it changes anything.
    fn may_act(&self, term: &bmc::Term) -> Result<(), BmcError> {
        let (epoch, seen) = (term.epoch(), self.newest.load(Ordering::SeqCst));
        if epoch < seen {
            return Err(BmcError::Fenced { epoch, seen });
        }
        match term.lasts() {
            true => Ok(()),
            false => Err(BmcError::Lapsed { epoch }),
        }
    }
}

impl Bmcs for Lab {
    fn probe<'a>(&'a self, access: &'a bmc::Access) -> Answer<'a, bmc::Probe> {
        async {
            let state = self.machine(&access.host).enter(access)?;
            Ok(bmc::Probe {
                state: Machine::look(&state),
                identity: bmc::Identity::default(),
            })
        }
        .boxed()
    }

    fn power<'a>(&'a self, access: &'a bmc::Access) -> Answer<'a, SystemState> {
        async {
            let machine = self.machine(&access.host);
            machine.lock().asked += 1;
            let time = machine.lock().bmc_takes;
            tokio::time::sleep(time).await;
            machine.lock().answered += 1;
            Ok(Machine::look(&*machine.enter(access)?))
        }
        .boxed()
    }

    fn set_power<'a>(
        &'a self,
        access: &'a bmc::Access,
        term: bmc::Term,
        reset: Reset,
    ) -> Answer<'a, Answered> {
        assert!(term.epoch() <= self.term().epoch(), "{term:?}");
        self.fence(term.epoch());
        let act = async move {
            let takes = self.machine(&access.host).lock().switching_takes;
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            let mut state = self.machine(&access.host).enter(access)?;
            self.may_act(&term)?;
            match reset {
                Reset::On if state.on => return Ok(Answered::Already),
                Reset::On | Reset::ForceRestart | Reset::GracefulRestart => Machine::boot(&mut state),
                Reset::ForceOff | Reset::GracefulShutdown => (state.on, state.calls_in) = (false, None),
            }
            state.resets.push(reset);
            Ok(Answered::Accepted)
        };
        self.steps.step(act).boxed()
    }

    fn set_boot<'a>(&'a self, access: &'a bmc::Access, term: bmc::Term, boot: Boot) -> Answer<'a, Answered> {
        assert!(term.epoch() <= self.term().epoch(), "{term:?}");
        self.fence(term.epoch());
        // What stays in force would boot a provisioned machine into its ramdisk for ever.
        assert_eq!(boot.lasting, bmc::Lasting::Once);
        let act = async move {
            let takes = self.machine(&access.host).lock().arming_takes;
            tokio::time::sleep(takes).await;
            let mut state = self.machine(&access.host).enter(access)?;
            self.may_act(&term)?;
            (state.armed, state.mode) = (boot.device == bmc::Device::Pxe, Some(boot.mode));
            Ok(Answered::Accepted)
        };
        self.steps.step(act).boxed()
    }

    fn forget<'a>(&'a self, host: &'a bmc::HostRef) -> futures::future::BoxFuture<'a, ()> {
        async move {
            let mut machines = self.machines.iter();
            if let Some(machine) = machines.find(|machine| machine.name == host.name) {
                machine.lock().remembered = false;
            }
        }
        .boxed()
    }

    fn retain<'a>(&'a self, _: &'a std::collections::BTreeSet<String>) -> futures::future::BoxFuture<'a, ()> {
        async {}.boxed()
    }

    fn fence(&self, epoch: bmc::Epoch) {
        self.newest.fetch_max(epoch, Ordering::SeqCst);
    }
}

/// The BMC of machine `number`.
pub(super) fn bmc(number: usize) -> BmcDetails {
    BmcDetails {
        address: format!("redfish+http://192.0.2.{number}/redfish/v1/Systems/1"),
        credentials_name: format!("bmc-{number}"),
        ..BmcDetails::default()
    }
}
