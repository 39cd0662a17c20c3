//! A world in memory for one host: its objects, its BMC, its machine with a disk, and the agent in its ramdisk. What the
//! executor and the edge do is done here in a few lines, with faults on demand.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::SecretReference,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource as _;
use muster_proto::{
    inventory::{BootMode, Disk, Inventory, Nic},
    kinds::{
        BareMetalHost, BareMetalHostSpec, BareMetalHostStatus, BmcDetails, HardwareData, HardwareDataSpec,
        IN_BAND_ANNOTATION, Image, JobAction, Segment, SegmentSpec, Server, Trust,
    },
};
use serde_json::Value;

use super::super::{
    BmcCall, Effect, Observed, Plan, State,
    in_band::is_wanted_on,
    interrupted::Work,
    next,
    observed::{
        Bmc, Failure, FailureClass, Power, PowerReading, Probed, Refusal, Rival, SecretSeen, SecretState,
        Secrets, Tried,
    },
    plan::{Drive, FINALIZER, HOLD_SECRET, Hold, Metadata, PowerOrder, Task},
    ramdisk::Presence,
    table,
};
use crate::{
    bmc::{Health, Identity, WantedMode},
    patch::merge,
    time::whole_seconds,
};

pub(super) const MAC: &str = "52:54:00:00:00:01";
pub(super) const UID: &str = "0a0a0a0a-0000-4000-8000-000000000001";
pub(super) const IMAGE: &str = "http://images.test/os.raw.zst";
const SUM: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What is on the machine's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Somebody's, from before.
    Old,
    /// Cleaned.
    Blank,
    /// This image.
    Image(String),
}

/// The metal.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) on: bool,
    /// Seconds until what it boots runs.
    pub(super) booting: u32,
    /// Its ramdisk runs; how many jobs its agent has taken up, and the last of them.
    pub(super) ramdisk: Option<String>,
    /// Its agent takes up nothing.
    pub(super) deaf: bool,
    /// Its ramdisk does not call in.
    pub(super) mute: bool,
    /// The job that its agent is at, and for how many seconds yet.
    pub(super) working: Option<(String, u32)>,
    pub(super) disk: Content,
    /// Its firmware boots from the network without being told.
    pub(super) network_first: bool,
    pub(super) once: bool,
    /// In which mode its BMC was told to boot it last.
    pub(super) mode: Option<WantedMode>,
    /// It has Wake-on-LAN.
    pub(super) wakes: bool,
    pub(super) boots: usize,
    /// What the config drive of the last write was made of.
    pub(super) drive: Option<Drive>,
    pub(super) writes: Vec<String>,
    pub(super) cleans: usize,
    /// How many jobs were placed.
    pub(super) jobs: usize,
    /// How often it left its ramdisk as the job said by which it was written.
    pub(super) left: usize,
    pub(super) sessions: u32,
    /// What its BMC says of it.
    pub(super) health: Health,
}

/// What goes wrong with one effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// Not done, and said so.
    Fails,
    /// Not done, and nobody says so.
    Lost,
    /// Done twice.
    Twice,
    /// Done, but the answer is an error.
    Doubtful,
    /// Done some rounds later.
    Late,
}

/// What is written of the host itself, for the version that was seen.
#[derive(Clone, Debug)]
pub(super) enum Write {
    Status(Box<BareMetalHostStatus>),
    Metadata(Metadata),
}

/// What the edge knows of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    /// All.
    Newest,
    /// That a write follows a cleaning, but not that the machine leaves after it.
    KnowsNoLeave,
    /// Its beginning.
    KnowsNoThen,
}

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) host: Option<BareMetalHost>,
    pub(super) hardware: Option<HardwareData>,
    pub(super) server: Option<Server>,
    pub(super) segment: Segment,
    /// It does not exist any more.
    pub(super) segment_gone: bool,
    pub(super) secrets: Secrets,
    pub(super) bmc: Bmc,
    pub(super) tried: Option<Tried>,
    work: Option<Work>,
    presence: Option<Presence>,
    pub(super) rivals: Vec<Rival>,
    /// What another operator left is let go.
    pub(super) released: bool,
    pub(super) slot: bool,
    pub(super) retries: i64,
    pub(super) now: Timestamp,
    began: Timestamp,
    /// The number of the term of whoever leads.
    pub(super) epoch: i64,
    pub(super) machine: Machine,
    /// The BMC answers.
    pub(super) bmc_up: bool,
    /// It answers, and says neither on nor off.
    pub(super) says_nothing_of_power: bool,
    /// These orders on the power the BMC does not know.
    pub(super) unknown_orders: &'static [PowerOrder],
    /// These it accepts, and does nothing.
    pub(super) ignored_orders: &'static [PowerOrder],
    /// How many seconds each call to the BMC takes, whatever comes of it.
    pub(super) bmc_takes: u32,
    /// Of which machine it says that it is.
    pub(super) says: Identity,
    pub(super) edge: Edge,
    /// The only edge that the machine reaches is gone for good. Its session stands until another edge has seen no news of it for long.
    pub(super) forsaken: bool,
    /// Since when the Server is of this version, where that is so.
    pub(super) untold: Option<(String, Timestamp)>,
    /// As what the machine boots by itself.
    pub(super) mode: BootMode,
    /// It does so whatever its BMC was told.
    pub(super) keeps_mode: bool,
    /// The answer to the end of a write is lost and comes with the next poll, and so is what the agent says when it leaves.
    pub(super) loses_answer: bool,
    /// The agent fails this many jobs that clean or write.
    pub(super) failing_jobs: usize,
    /// How many seconds cleaning and writing take, each.
    pub(super) jobs_take: u32,
    /// The agent fails this many jobs that write.
    pub(super) failing_writes: usize,
    /// What the agent warns of with the end of a write.
    pub(super) warnings: Vec<String>,
    /// The ramdisk cannot go down this many times.
    pub(super) failing_ends: usize,
    /// So often Wake-on-LAN was asked for.
    pub(super) wished_awake: usize,
    pub(super) late: VecDeque<Effect>,
    late_writes: Vec<(BareMetalHost, Write)>,
    pub(super) version: u64,
    /// Every state the host was in, without repetition.
    pub(super) states: Vec<State>,
    pub(super) status_writes: usize,
    /// The API server lets nobody mark a Secret.
    pub(super) refuses_marks: bool,
    /// What it refused since a round went well last.
    refused: Option<Refusal>,
    /// The API server has upstream's own kind, and keeps nothing that it does not know.
    pub(super) older_kind: bool,
    pub(super) events: Vec<String>,
}

pub(super) fn image(url: &str) -> Image {
    Image {
        url: url.to_owned(),
        checksum: Some(SUM.to_owned()),
        ..Image::default()
    }
}

pub(super) fn disk(name: &str, gib: u64) -> Disk {
    Disk {
        name: format!("/dev/{name}"),
        serial: format!("serial-{name}"),
        size_bytes: gib << 30,
        ..Disk::default()
    }
}

pub(super) fn inventory() -> Inventory {
    let mut inventory = Inventory::default();
    inventory.identity.system_uuid = Some("4c4c4544-0000-4000-8000-000000000001".to_owned());
    inventory.identity.macs = [MAC.parse().unwrap()].into();
    inventory.nics = vec![Nic {
        name: "eth0".to_owned(),
        mac: MAC.parse().ok(),
        ..Nic::default()
    }];
    inventory.cpu.arch = "x86_64".to_owned();
    inventory.disks = vec![disk("sda", 20)];
    inventory
}

pub(super) fn secret(version: &str, content: &str) -> SecretSeen {
    SecretSeen {
        state: SecretState::Present {
            version: version.to_owned(),
            content: content.to_owned(),
            bytes: 0,
        },
        held: false,
        finalizer: false,
        going: false,
    }
}

pub(super) fn segment() -> Segment {
    Segment {
        metadata: ObjectMeta::default(),
        spec: SegmentSpec {
            required_trust: Some(Trust::Segment),
            ..serde_json::from_value(serde_json::json!({"subnet": "10.0.0.0/24"})).unwrap()
        },
        status: None,
    }
}

impl World {
    /// A host with a BMC, just made, and a machine that is off.
    pub(super) fn new() -> World {
        let mut host = BareMetalHost::new(
            "host-1",
            BareMetalHostSpec {
                online: true,
                boot_mac_address: Some(MAC.to_owned()),
                bmc: Some(BmcDetails {
                    address: "redfish://10.0.0.9/redfish/v1/Systems/1".to_owned(),
                    credentials_name: "bmc".to_owned(),
                    disable_certificate_verification: None,
                }),
                ..BareMetalHostSpec::default()
            },
        );
        let now: Timestamp = "2026-01-01T00:00:00.4Z".parse().unwrap();
        host.metadata.namespace = Some("metal".to_owned());
        host.metadata.uid = Some(UID.to_owned());
        host.metadata.creation_timestamp = Some(Time(now));
        World {
            host: Some(host),
            hardware: None,
            server: None,
            segment: segment(),
            segment_gone: false,
            secrets: Secrets {
                bmc: secret("1", "a"),
                ..Secrets::default()
            },
            bmc: Bmc::default(),
            tried: None,
            work: None,
            presence: None,
            rivals: Vec::new(),
            released: false,
            slot: true,
            retries: 5,
            now,
            began: now,
            epoch: 1,
            machine: Machine {
                on: false,
                booting: 0,
                ramdisk: None,
                deaf: false,
                mute: false,
                working: None,
                disk: Content::Old,
                network_first: false,
                once: false,
                mode: None,
                wakes: true,
                boots: 0,
                drive: None,
                writes: Vec::new(),
                cleans: 0,
                jobs: 0,
                left: 0,
                sessions: 0,
                health: Health::Ok,
            },
            bmc_up: true,
            says_nothing_of_power: false,
            unknown_orders: &[],
            ignored_orders: &[],
            bmc_takes: 0,
            says: Identity::default(),
            edge: Edge::Newest,
            forsaken: false,
            untold: None,
            mode: BootMode::Bios,
            keeps_mode: false,
            loses_answer: false,
            failing_jobs: 0,
            jobs_take: 0,
            failing_writes: 0,
            warnings: Vec::new(),
            failing_ends: 0,
            wished_awake: 0,
            late: VecDeque::new(),
            late_writes: Vec::new(),
            version: 1,
            states: vec![State::New],
            status_writes: 0,
            refuses_marks: false,
            refused: None,
            older_kind: false,
            events: Vec::new(),
        }
    }

    pub(super) fn host(&mut self) -> &mut BareMetalHost {
        self.host.as_mut().expect("the host is there")
    }

    pub(super) fn state(&self) -> State {
        self.host.as_ref().map_or(State::Deleting, State::of)
    }

    /// Somebody patches the host, by JSON merge patch and without a resource version.
    pub(super) fn patch(&mut self, patch: &Value) {
        let mut host = serde_json::to_value(self.host()).unwrap();
        merge(&mut host, patch);
        *self.host() = serde_json::from_value(host).unwrap();
    }

    pub(super) fn annotate(&mut self, name: &str, value: &str) {
        let annotations = self.host().metadata.annotations.get_or_insert_default();
        annotations.insert(name.to_owned(), value.to_owned());
    }

    pub(super) fn unannotate(&mut self, name: &str) {
        self.host()
            .metadata
            .annotations
            .get_or_insert_default()
            .remove(name);
    }

    pub(super) fn annotated(&self, name: &str) -> bool {
        let host = self.host.as_ref().unwrap();
        host.metadata
            .annotations
            .iter()
            .flatten()
            .any(|(key, _)| key == name)
    }

    /// No BMC, opted in for its connected ramdisk, which its firmware boots.
    pub(super) fn in_band() -> World {
        let mut world = World::new();
        world.host().spec.bmc = None;
        world.machine.network_first = true;
        world.call_in();
        world.annotate(IN_BAND_ANNOTATION, "segment");
        world
    }

    /// A person does what the host's condition asks for.
    pub(super) fn obey(&mut self) {
        let has_bmc = self.host.as_ref().is_some_and(|host| host.spec.bmc.is_some());
        let status = self.host.as_ref().and_then(|host| host.status.as_ref());
        let conditions = status.iter().flat_map(|status| &status.conditions);
        let mut waits = conditions.filter(|one| one.type_ == "Waiting" && one.status == "True");
        let is_asked = waits.any(|wait| match wait.reason.as_str() {
            "PowerCycleByHand" | "PowerByHand" | "Ramdisk" => !has_bmc,
            "Leave" => wait.message.contains("reboot it with the annotation"),
            _ => false,
        });
        if is_asked {
            self.power(PowerOrder::Reset);
        }
    }

    /// Another host declares the same machine, or none does any more.
    pub(super) fn rival(&mut self, rival: Option<(State, bool)>) {
        self.rivals = Vec::from_iter(rival.map(|(state, precedes)| Rival {
            path: "other/one".to_owned(),
            by: "BMC redfish://10.0.0.9".to_owned(),
            bmc: true,
            state,
            precedes,
        }));
    }

    /// Discovery takes the machine for that of the host with this UID.
    pub(super) fn link(&mut self, uid: &str) {
        if let Some(host) = self.server.as_mut().and_then(|server| server.spec.host.as_mut()) {
            uid.clone_into(&mut host.uid);
            self.bump();
        }
    }

    /// Two machines show one token as this one.
    pub(super) fn contest(&mut self, contested: bool) {
        let server = self.server.as_mut();
        if let Some(status) = server.and_then(|server| server.status.as_mut()) {
            status.contested = contested;
            self.bump();
        }
    }

    pub(super) fn delete(&mut self) {
        let now = self.now;
        if let Some(host) = &mut self.host {
            host.metadata.deletion_timestamp.get_or_insert(whole_seconds(now));
            let held = host.metadata.finalizers.iter().flatten().next().is_some();
            if !held {
                self.host = None;
            }
        }
    }

    pub(super) fn set_image(&mut self, url: Option<&str>) {
        self.host().spec.image = url.map(image);
    }

    pub(super) fn name_user_data(&mut self) {
        self.host().spec.user_data = Some(SecretReference {
            name: Some("user".to_owned()),
            namespace: None,
        });
        self.secrets.user_data = secret("7", "user");
    }

    pub(super) fn seen(&self) -> Observed {
        Observed {
            work: self.work.clone(),
            silent_since: self.presence().and_then(|presence| presence.silent_since),
            hardware: self.hardware.clone().map(Arc::new),
            server: self.server.clone().map(Arc::new),
            segment: (!self.segment_gone).then(|| Arc::new(self.segment.clone())),
            secrets: self.secrets.clone(),
            bmc: self.bmc.clone(),
            tried: self.tried.clone(),
            rivals: self.rivals.clone(),
            released: self.released,
            slot: self.slot,
            limit: 20,
            refused: self.refused.clone(),
            began: self.began,
            epoch: self.epoch,
            max_provisioning_retries: self.retries,
        }
    }

    fn presence(&self) -> Option<Presence> {
        Presence::seen(self.presence, self.server.as_ref(), self.now)
    }

    /// The watch shows how it is now.
    pub(super) fn look(&mut self) {
        self.presence = self.presence();
    }

    pub(super) fn plan(&self) -> Plan {
        let Some(host) = &self.host else {
            return Plan::rest("gone");
        };
        let seen = self.seen();
        let plan = next(host, &seen, self.now);
        assert_eq!(plan, next(host, &seen, self.now), "same input, same plan");
        self.check(host, &plan);
        plan
    }

    /// What holds for every plan whatsoever.
    fn check(&self, host: &BareMetalHost, plan: &Plan) {
        let from = State::of(host);
        let restores = self.annotated(muster_proto::kinds::STATUS_ANNOTATION);
        if let Some(status) = &plan.status {
            let to = State::parse(&status.provisioning.state);
            assert!(
                from == to || restores || table::knows(from, to),
                "{from} -> {to}: {}",
                plan.why
            );
            assert!(status.conditions.len() <= 32);
            for one in &status.conditions {
                let waits = one.type_ == "Waiting" && one.status == "True";
                let says = |what: &str| one.message.matches(what).count() == 1;
                let whole = says("; next: ") && says(" (since ");
                // `kubectl wait` takes no condition for true whose generation is an older one.
                let dated = ["Waiting", "ProvisioningFailed", "Progressing"].contains(&one.type_.as_str());
                assert!(dated || one.observed_generation.is_none(), "{}", one.type_);
                assert!(
                    !waits || whole,
                    "what for, since when, what next: {}",
                    one.message
                );
            }
            let mut same = status.clone();
            same.last_updated = host
                .status
                .as_ref()
                .and_then(|status| status.last_updated.clone());
            assert_ne!(
                Some(*same),
                host.status.clone(),
                "a write that changes nothing: {}",
                plan.why
            );
        }
        let destroys = plan.effects.iter().any(|effect| match effect {
            Effect::PlaceJob(job) => matches!(job.task, Task::Clean(_) | Task::Write(_)),
            _ => false,
        });
        if destroys {
            assert!(plan.slot, "{}", plan.why);
            assert!(
                matches!(from, State::Provisioning | State::Deprovisioning),
                "{from}"
            );
            assert!(!super::super::detached::is_cut_off(host), "{}", plan.why);
            for name in [
                muster_proto::kinds::PAUSED_ANNOTATION,
                muster_proto::kinds::PROTECTED_ANNOTATION,
            ] {
                assert!(!self.annotated(name), "{name}: {}", plan.why);
            }
            assert_ne!(host.spec.externally_provisioned, Some(true), "{}", plan.why);
            let in_the_way = |rival: &Rival| rival.precedes || rival.state != State::Available;
            assert!(!self.rivals.iter().any(in_the_way), "{}", plan.why);
            let server = self.server.as_ref().expect("a machine");
            let linked = server.spec.host.as_ref().map(|host| host.uid.as_str());
            let contested = server.status.as_ref().is_some_and(|status| status.contested);
            assert_eq!((linked, contested), (Some(UID), false), "{}", plan.why);
        }
    }

    /// Carries out a plan up to and without its step number `crash`; a crash loses the memory. `fault` befalls every effect.
    pub(super) fn execute(&mut self, plan: Plan, crash: Option<usize>, fault: Fault) -> bool {
        self.carry_out(plan, crash, Fault::None, fault)
    }

    /// The same, where `writes` befalls what is written of the host itself.
    pub(super) fn carry_out(
        &mut self,
        plan: Plan,
        crash: Option<usize>,
        writes: Fault,
        fault: Fault,
    ) -> bool {
        self.look();
        let before = self.work.take();
        let host = self.host.as_ref();
        self.work = host.and_then(|host| Work::seen(before, host, self.server.as_ref()));
        let mut left = crash;
        let mut step = || match &mut left {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        };
        let steps: Vec<Effect> = plan.effects;
        let mut events = plan.events.into_iter().map(|event| event.reason.to_owned());
        let mut alive = true;
        if let Some(status) = plan.status {
            alive = step();
            if alive {
                if !self.write(Write::Status(status), writes) {
                    return true;
                }
                // Told with what is stored, whatever becomes of the effects.
                self.events.extend(events.by_ref());
            }
        }
        if alive && !plan.metadata.is_empty() {
            alive = step();
            if alive && !self.write(Write::Metadata(plan.metadata), writes) {
                return true;
            }
        }
        for effect in steps {
            alive = alive && step();
            if alive && !self.perform(&effect, fault) {
                return true;
            }
        }
        self.events.extend(events);
        self.refused = None;
        if !alive {
            self.restart();
        }
        alive
    }

    /// The host was paused until now.
    pub(super) fn unpaused(&mut self) {
        self.began = self.now;
    }

    /// The process begins anew: its memory is empty, and it leads for another term.
    pub(super) fn restart(&mut self) {
        self.epoch += 1;
        self.bmc = Bmc::default();
        self.tried = None;
        self.work = None;
        self.presence = None;
        self.refused = None;
        self.began = self.now;
    }

    /// True if the API server answered that it wrote it. It does so only to a host that is as it was seen.
    fn write(&mut self, write: Write, fault: Fault) -> bool {
        match fault {
            // A second time it would find another version.
            Fault::None | Fault::Twice => {
                self.take(write);
                true
            }
            Fault::Fails | Fault::Lost => false,
            Fault::Doubtful => {
                self.take(write);
                false
            }
            Fault::Late => {
                let seen = self.host.clone();
                self.late_writes.extend(seen.map(|seen| (seen, write)));
                false
            }
        }
    }

    fn take(&mut self, write: Write) {
        match write {
            Write::Status(status) => self.write_status(*status),
            Write::Metadata(metadata) => self.write_metadata(&metadata),
        }
    }

    /// Writes that nobody waits for any more arrive.
    pub(super) fn late_writes_arrive(&mut self) {
        for (seen, write) in std::mem::take(&mut self.late_writes) {
            if self.host.as_ref() == Some(&seen) {
                self.take(write);
            }
        }
    }

    fn write_status(&mut self, status: BareMetalHostStatus) {
        self.version += 1;
        self.status_writes += 1;
        let text = serde_json::to_string(&status).unwrap();
        let Some(host) = &mut self.host else { return };
        host.status = Some(serde_json::from_str(&text).unwrap());
        assert_eq!(host.status, Some(status), "what is written is what is read back");
        if let Some(status) = host.status.as_mut().filter(|_| self.older_kind) {
            (status.provisioning_fail_count, status.last_attempted_image) = (0, None);
        }
        let state = State::of(host);
        if self.states.last() != Some(&state) {
            self.states.push(state);
        }
    }

    fn write_metadata(&mut self, metadata: &Metadata) {
        let Some(host) = &mut self.host else { return };
        match metadata.finalizer {
            Some(true) => host.metadata.finalizers = Some(vec![FINALIZER.to_owned()]),
            Some(false) => host.metadata.finalizers = None,
            None => {}
        }
        for name in &metadata.remove_annotations {
            host.metadata.annotations.get_or_insert_default().remove(name);
        }
        if let Some(arch) = &metadata.architecture {
            host.spec.architecture = Some(arch.clone());
        }
        if host.metadata.deletion_timestamp.is_some() && metadata.finalizer == Some(false) {
            self.host = None;
        }
    }

    fn failure(&self, class: FailureClass) -> Failure {
        Failure {
            class,
            message: "it says so.".to_owned(),
            at: self.now,
        }
    }

    /// True if the round goes on after it.
    fn perform(&mut self, effect: &Effect, fault: Fault) -> bool {
        if self.bmc_takes > 0 && matches!(effect, Effect::Bmc(_)) {
            self.tick(self.bmc_takes);
        }
        match effect {
            Effect::Bmc(BmcCall::Probe(access)) => {
                let fails = !self.bmc_up || fault == Fault::Fails;
                let result = if fails {
                    Err(self.failure(FailureClass::Unreachable))
                } else {
                    Ok(())
                };
                self.bmc.probed = Some(Probed {
                    access: access.clone(),
                    at: self.now,
                    accepted: result.is_ok(),
                    result,
                    identity: self.says.clone(),
                });
                if !fails {
                    self.read_power();
                }
                !fails
            }
            Effect::Bmc(BmcCall::ReadPower) => {
                if self.bmc_up && fault != Fault::Fails {
                    self.read_power();
                } else {
                    self.bmc.power = None;
                    self.bmc.unread = Some(self.failure(FailureClass::Unreachable));
                }
                true
            }
            Effect::Bmc(BmcCall::BootNetworkOnce { operation, .. } | BmcCall::Power { operation, .. }) => {
                let order = match effect {
                    Effect::Bmc(BmcCall::Power { order, .. }) => Some(order),
                    _ => None,
                };
                let is_among = |orders: &[PowerOrder]| order.is_some_and(|order| orders.contains(order));
                let class = match is_among(self.unknown_orders) {
                    true if self.bmc_up => FailureClass::Unsupported,
                    _ => FailureClass::Refused,
                };
                let is_unknown = class == FailureClass::Unsupported;
                let fails = !self.bmc_up || fault == Fault::Fails || is_unknown;
                if !fails {
                    match fault {
                        _ if is_among(self.ignored_orders) => {}
                        Fault::Lost => {}
                        Fault::Late => self.late.push_back(effect.clone()),
                        Fault::Twice => {
                            self.act(effect);
                            self.act(effect);
                        }
                        _ => self.act(effect),
                    }
                }
                let bad = fails || fault == Fault::Doubtful;
                let result = if bad { Err(self.failure(class)) } else { Ok(()) };
                self.bmc.power = None;
                self.tried = Some(Tried {
                    operation: operation.clone(),
                    at: self.now,
                    on_power: matches!(effect, Effect::Bmc(BmcCall::Power { .. })),
                    result,
                });
                !bad
            }
            Effect::Wake(_) => {
                let linked = self.server.as_ref().and_then(|server| server.spec.host.as_ref());
                let is_ours = linked.is_some_and(|host| host.uid == UID);
                assert!(
                    self.is_wanted_on() || !is_ours,
                    "no edge would send it: {:?}",
                    self.host
                );
                self.send(effect, fault)
            }
            Effect::PlaceJob(_)
            | Effect::RemoveJob { .. }
            | Effect::WriteHardware(_)
            | Effect::ReleaseLeftovers
            | Effect::ReleaseHardware
            | Effect::HoldSecret { .. }
            | Effect::ReleaseSecret { .. } => self.send(effect, fault),
            Effect::Bmc(BmcCall::Forget) => {
                self.bmc = Bmc::default();
                true
            }
        }
    }

    /// True if the API server answered that it did it.
    fn send(&mut self, effect: &Effect, fault: Fault) -> bool {
        match fault {
            Fault::None => self.request(effect),
            Fault::Fails | Fault::Lost => false,
            Fault::Twice => {
                self.request(effect);
                self.request(effect)
            }
            Fault::Doubtful => {
                self.request(effect);
                false
            }
            // It knows no version of what it is for, so that it comes before that is gone.
            Fault::Late if matches!(effect, Effect::HoldSecret { .. }) => {
                self.request(effect);
                false
            }
            // Nobody waits for the answer any more.
            Fault::Late => {
                self.late.push_back(effect.clone());
                false
            }
        }
    }

    fn is_wanted_on(&self) -> bool {
        let server = self.server.as_ref();
        server.is_some_and(|server| is_wanted_on(server, self.host.as_ref()))
    }

    /// What the API server does with a request. False: it refuses it.
    pub(super) fn request(&mut self, effect: &Effect) -> bool {
        match effect {
            // One for another version of the Server.
            Effect::PlaceJob(job) => return self.place(job),
            Effect::RemoveJob { id } => {
                if let Some(server) = &mut self.server
                    && server.spec.job.as_ref().is_some_and(|job| job.id == *id)
                {
                    server.spec.job = None;
                    self.bump();
                }
            }
            Effect::Wake(wish) => {
                let wanted = self.is_wanted_on();
                if let Some(server) = &mut self.server {
                    server.spec.wake = Some(wish.clone());
                    self.bump();
                    self.wished_awake += 1;
                    // As the edges do, once they see it.
                    if wanted && self.machine.wakes && wish.macs.iter().any(|mac| mac.to_string() == MAC) {
                        self.power(PowerOrder::On);
                    }
                }
            }
            Effect::WriteHardware(hardware) => {
                let spec = HardwareDataSpec {
                    hardware: Some((**hardware).clone().into()),
                };
                let mut data = HardwareData::new("host-1", spec);
                let owner = self.host.as_ref().and_then(|host| host.controller_owner_ref(&()));
                data.metadata.owner_references = owner.map(|owner| vec![owner]);
                self.hardware = Some(data);
            }
            Effect::ReleaseLeftovers => self.released = true,
            Effect::ReleaseHardware => {
                if let Some(hardware) = &mut self.hardware {
                    hardware.metadata.finalizers = None;
                }
            }
            Effect::HoldSecret { name, .. } if self.refuses_marks => {
                self.refused = Some(Refusal {
                    step: Some(HOLD_SECRET),
                    why: format!("hold Secret metal/{name}: no"),
                });
                return false;
            }
            Effect::HoldSecret { name, hold } => {
                let secret = self.secret(name);
                if secret.state == SecretState::Unasked {
                    *secret = self::secret("1", "a");
                }
                secret.held = true;
                secret.finalizer |= *hold != Hold::Label;
                if let SecretState::Present { version, .. } = &mut secret.state {
                    version.push('+');
                }
            }
            Effect::ReleaseSecret { name, .. } => {
                let secret = self.secret(name);
                (secret.held, secret.finalizer, secret.going) = (false, false, false);
            }
            _ => unreachable!("{effect:?} is no request to the API server"),
        }
        true
    }

    fn secret(&mut self, name: &str) -> &mut SecretSeen {
        match name {
            "bmc" => &mut self.secrets.bmc,
            "meta" => &mut self.secrets.meta_data,
            "network" => &mut self.secrets.network_data,
            "before" => &mut self.secrets.preprovisioning,
            "former" => &mut self.secrets.former[0].1,
            _ => &mut self.secrets.user_data,
        }
    }

    pub(super) fn read_power(&mut self) {
        self.bmc.unread = None;
        self.bmc.power = Some(PowerReading {
            power: match self.machine.on {
                _ if self.says_nothing_of_power => Power::Unknown,
                true => Power::On,
                false => Power::Off,
            },
            health: self.machine.health,
            at: self.now,
        });
    }

    /// One round without faults, and so many seconds.
    pub(super) fn step(&mut self, seconds: u32) {
        let plan = self.plan();
        self.execute(plan, None, Fault::None);
        self.tick(seconds);
    }

    /// One round, and the time until the next.
    pub(super) fn round(&mut self) {
        let plan = self.plan();
        let requeue = plan.next();
        self.execute(plan, None, Fault::None);
        if requeue != Some(Duration::ZERO) {
            let pause = requeue.map_or(60, |requeue| requeue.as_secs().clamp(11, 300));
            self.tick(u32::try_from(pause).unwrap());
        }
    }

    /// Rounds without faults until `done`.
    pub(super) fn until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        for _ in 0..2000 {
            if done(self) {
                return;
            }
            self.round();
        }
        let status = self.host.as_ref().and_then(|host| host.status.clone());
        panic!(
            "never {what}: {:?}\n{status:#?}\n{:#?}",
            self.plan(),
            self.machine
        );
    }

    /// Rounds until the host is in `state`.
    pub(super) fn reach(&mut self, state: State) {
        self.until(state.name(), |world| {
            world.host.is_some() && world.state() == state
        });
    }

    /// True if a job that destroys data stands on the Server.
    pub(super) fn has_destructive_job(&self) -> bool {
        let job = self.server.as_ref().and_then(|server| server.spec.job.as_ref());
        job.is_some_and(|job| matches!(job.action, JobAction::Clean | JobAction::Write))
    }

    /// Rounds until a job that destroys data stands there, of which its agent has not heard.
    pub(super) fn reach_job(&mut self) {
        for _ in 0..100 {
            let plan = self.plan();
            let at_once = plan.requeue == Some(Duration::ZERO);
            self.execute(plan, None, Fault::None);
            if self.has_destructive_job() {
                return;
            }
            if !at_once {
                self.tick(11);
            }
        }
        panic!("no such job: {:?}", self.plan());
    }

    /// Rounds until nothing but waiting is left, and no status is written in an hour.
    pub(super) fn settle(&mut self) {
        for _ in 0..40 {
            let before = self.status_writes;
            for _ in 0..100 {
                self.round();
            }
            if before == self.status_writes {
                return;
            }
        }
        panic!("never quiet: {:?}", self.plan());
    }
}

/// The orders on the power that `plan` gives.
pub(super) fn power_orders(plan: &Plan) -> Vec<PowerOrder> {
    let order = |effect: &Effect| match effect {
        Effect::Bmc(BmcCall::Power { order, .. }) => Some(*order),
        _ => None,
    };
    plan.effects.iter().filter_map(order).collect()
}
