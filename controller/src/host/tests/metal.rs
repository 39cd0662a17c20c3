//! The metal of the world: the machine, its BMC's hands, and the agent in its ramdisk.

use jiff::SignedDuration;
use muster_proto::{
    inventory::{BootMode, Disk, Inventory},
    job::{Clean, Write},
    kinds::{
        HostReference, Job, JobAction, JobStatus, LeaveAction, Leaving, Packed, Server, ServerSpec,
        ServerStatus, Session, SessionState, Then, Trust,
    },
};

use super::{
    super::{
        BmcCall, Effect, boot_mode, guard, netboot,
        plan::{NewJob, PowerOrder, Task, WriteTask},
    },
    world::{Content, Edge, UID, World, inventory},
};
use crate::bmc::{Mode, WantedMode};

impl World {
    /// What an effect does where it arrives.
    pub(super) fn act(&mut self, effect: &Effect) {
        match effect {
            Effect::Bmc(BmcCall::BootNetworkOnce { mode, .. }) => {
                (self.machine.once, self.machine.mode) = (true, Some(*mode));
            }
            Effect::Bmc(BmcCall::Power { order, .. }) => self.power(*order),
            request => {
                self.request(request);
            }
        }
    }

    /// What the BMC does.
    pub(super) fn power(&mut self, order: PowerOrder) {
        match order {
            PowerOrder::On if self.machine.on => {}
            PowerOrder::SoftReset if self.machine.ramdisk.is_some() => {}
            PowerOrder::On | PowerOrder::Reset | PowerOrder::SoftReset => {
                self.machine.on = true;
                self.machine.booting = 20;
                self.machine.boots += 1;
                self.disconnect();
            }
            PowerOrder::HardOff => {
                self.machine.on = false;
                self.disconnect();
            }
            // The ramdisk does not listen, an operating system does.
            PowerOrder::SoftOff if self.machine.ramdisk.is_some() => {}
            PowerOrder::SoftOff => self.machine.on = false,
        }
    }

    /// Changes what the machine reported.
    pub(super) fn change_inventory(&mut self, change: impl FnOnce(&mut Inventory)) {
        let status = self.server.as_mut().unwrap().status.as_mut().unwrap();
        let mut inventory = Inventory::clone(&status.inventory.as_ref().unwrap().unpack());
        change(&mut inventory);
        status.inventory = Some(inventory.into());
    }

    /// Two disks are in the machine that nothing tells from each other.
    pub(super) fn add_twins(&mut self) {
        self.change_inventory(|inventory| {
            let twin = |name: &str| Disk {
                name: name.to_owned(),
                serial: "0123456789".to_owned(),
                size_bytes: 800 << 30,
                ..Disk::default()
            };
            inventory.disks.extend([twin("/dev/sdy"), twin("/dev/sdz")]);
        });
    }

    pub(super) fn disconnect(&mut self) {
        self.machine.working = None;
        if self.machine.ramdisk.take().is_some() && !self.forsaken {
            self.end_session();
        }
    }

    /// An edge writes that the session has ended.
    fn end_session(&mut self) {
        let now = self.now.to_string();
        self.bump();
        let status = self.server.as_mut().and_then(|server| server.status.as_mut());
        if let Some(session) = status.and_then(|status| status.session.as_mut()) {
            session.state = SessionState::Disconnected;
            session.since = now;
        }
        self.look();
    }

    /// Another edge looks at the session of a machine whose own is gone.
    fn look_from_elsewhere(&mut self) {
        let waits = |server: &&Server| {
            let is_here = |session: &Session| session.state == SessionState::Connected;
            let is_over = |job: &Job| {
                let last = server.last_job();
                last.is_some_and(|last| last.done && job.is_called(&last.id))
            };
            let job = server.spec.job.as_deref();
            server.session().is_some_and(is_here) && job.is_some_and(|job| !is_over(job))
        };
        let server = self.server.as_ref().filter(waits);
        let version = server.and_then(|server| server.metadata.resource_version.clone());
        let before = self.untold.take();
        self.untold = version.map(|version| match before {
            Some((known, since)) if known == version => (known, since),
            _ => (version, self.now),
        });
        let long = SignedDuration::from_mins(35);
        let since = self.untold.as_ref().map(|(_, since)| *since);
        if since.is_some_and(|since| self.now.duration_since(since) >= long) {
            self.end_session();
        }
    }

    /// The session that fell silent is back.
    pub(super) fn call_back(&mut self) {
        let now = self.now.to_string();
        let status = self.server.as_mut().unwrap().status.as_mut().unwrap();
        let session = status.session.as_mut().unwrap();
        (session.state, session.since) = (SessionState::Connected, now);
        let last = status.job.as_ref().map(|job| job.id.clone());
        self.machine.ramdisk = Some(last.unwrap_or_default());
        self.bump();
    }

    pub(super) fn bump(&mut self) {
        self.version += 1;
        let version = self.version.to_string();
        if let Some(server) = &mut self.server {
            server.metadata.resource_version = Some(version);
        }
    }

    pub(super) fn place(&mut self, new: &NewJob) -> bool {
        let Some(server) = &mut self.server else {
            return false;
        };
        if server.metadata.resource_version.as_deref() != Some(&new.version) {
            return false;
        }
        // Of a term before this one it comes late, and still before any of a later term.
        let before = server.spec.job.as_ref().map_or(1, |job| job.epoch);
        assert!(
            before <= new.epoch && new.epoch <= self.epoch,
            "{} after {before}, in {}",
            new.epoch,
            self.epoch
        );
        let written = |task: &WriteTask| {
            assert_eq!(task.permit.disks().len(), 1);
            Box::new(Write {
                image: task.image.clone(),
                ..Write::default()
            })
        };
        let (mut clean, mut write, mut then) = (None, None, None);
        let action = match &new.task {
            Task::Inspect => JobAction::Inspect,
            Task::Reboot => JobAction::Reboot,
            Task::PowerOff => JobAction::PowerOff,
            Task::Clean(permit) => {
                assert!(!permit.disks().is_empty());
                clean = Some(Packed::new(&Clean {
                    disks: permit.disks().to_vec(),
                    ..Clean::default()
                }));
                if let Some(next) = &new.then {
                    self.machine.drive.clone_from(&next.task.drive);
                    then = Some(Then {
                        id: next.id.clone(),
                        session: next.session.clone(),
                        write: written(&next.task),
                    });
                }
                JobAction::Clean
            }
            Task::Write(task) => {
                self.machine.drive.clone_from(&task.drive);
                write = Some(written(task));
                JobAction::Write
            }
        };
        server.spec.job = Some(Box::new(Job {
            id: new.id.clone(),
            epoch: new.epoch,
            action,
            clean,
            write,
            then,
            leave: new.leave.clone(),
        }));
        self.machine.jobs += 1;
        self.bump();
        true
    }

    /// Time passes: late effects come, the machine boots, the agent works.
    pub(super) fn tick(&mut self, seconds: u32) {
        self.now = self
            .now
            .checked_add(SignedDuration::from_secs(i64::from(seconds)))
            .unwrap();
        self.late_writes_arrive();
        while let Some(effect) = self.late.pop_back() {
            self.act(&effect);
        }
        if self.forsaken {
            self.look_from_elsewhere();
        }
        if !self.machine.on {
            return;
        }
        if self.machine.booting > seconds {
            self.machine.booting -= seconds;
            return;
        }
        if std::mem::take(&mut self.machine.booting) > 0 {
            let network = std::mem::take(&mut self.machine.once) || self.machine.network_first;
            let armed = self
                .host
                .as_ref()
                .is_some_and(|host| netboot::wanted(host, self.server.as_ref()).is_some());
            if network && armed && !self.machine.mute {
                self.call_in();
            }
        } else if self.machine.ramdisk.is_some() && !self.machine.deaf {
            self.agent(seconds);
        }
    }

    /// Somebody sets the clock back.
    pub(super) fn set_back(&mut self, seconds: u32) {
        let by = SignedDuration::from_secs(i64::from(seconds));
        self.now = self.now.checked_sub(by).unwrap();
    }

    /// The ramdisk's agent enrols and reports.
    pub(super) fn call_in(&mut self) {
        self.machine.on = true;
        self.machine.booting = 0;
        self.machine.sessions += 1;
        self.machine.ramdisk = Some(String::new());
        // Other in its first digits, too.
        let key = format!("{:016x}{:048}", self.machine.sessions, 0);
        let now = self.now.to_string();
        let mode = match self.machine.mode {
            Some(WantedMode::Required(Mode::Legacy)) if !self.keeps_mode => BootMode::Bios,
            Some(WantedMode::Required(Mode::Uefi)) if !self.keeps_mode => BootMode::Uefi,
            _ => self.mode,
        };
        let server = self.server.get_or_insert_with(|| {
            let mut server = Server::new("server-1", ServerSpec::default());
            server.status = Some(ServerStatus::default());
            server
        });
        // Discovery links it: this host declares its MAC address.
        server.spec.host = self.host.as_ref().map(|_| HostReference {
            namespace: "metal".to_owned(),
            name: "host-1".to_owned(),
            uid: UID.to_owned(),
        });
        let status = server.status.get_or_insert_default();
        status.session = Some(Session {
            state: SessionState::Connected,
            since: now.clone(),
            segment: "lab".to_owned(),
            trust: Trust::Segment,
            key,
            seal_key: "c2VhbA==".to_owned(),
            ..Session::default()
        });
        // An unchanged report leaves no trace.
        let known = status.inventory.as_ref();
        if known.is_none_or(|known| known.unpack().boot.mode != mode) {
            let mut inventory = inventory();
            inventory.boot.mode = mode;
            status.inventory = Some(inventory.into());
            status.inventoried = Some(now);
            status.inventory_trust = Some(Trust::Segment);
        }
        self.bump();
    }

    /// The agent takes up the job that it has not heard of, and ends it when its time has come. Another job ends what it is at.
    fn agent(&mut self, seconds: u32) {
        let Some(server) = &self.server else { return };
        let Some(job) = server.spec.job.clone() else {
            return;
        };
        let status = server.status.clone().unwrap_or_default();
        let key = status.session.map(|session| session.key).unwrap_or_default();
        // An edge of an older version does not know for whom it was decided.
        if !job.is_for(&key) && self.edge == Edge::Newest {
            return;
        }
        let is_new = status.job.as_ref().is_none_or(|known| !job.is_called(&known.id));
        let is_refused = self
            .host
            .as_ref()
            .zip(status.inventory.as_ref())
            .is_some_and(|(host, inventory)| boot_mode::refusal(host, inventory).is_some());
        let is_left_alone = self.host.as_ref().is_some_and(guard::is_left_alone);
        let is_protected = self.host.as_ref().is_some_and(guard::is_protected);
        let destroys = matches!(job.action, JobAction::Clean | JobAction::Write);
        let is_withheld =
            is_left_alone || (is_protected && destroys) || (is_refused && job.writes().is_some());
        if is_new && is_withheld && self.edge == Edge::Newest {
            return;
        }
        let last = self.machine.ramdisk.clone().unwrap_or_default();
        if server.told_to_leave().is_some() {
            return self.leave();
        }
        let at = |id: &str| {
            let working = self.machine.working.as_ref();
            working.is_some_and(|(at, _)| at == id)
        };
        let then = job.then.as_ref().filter(|then| then.session == key);
        let then = then.filter(|_| self.edge != Edge::KnowsNoThen).map(|then| Job {
            id: then.id.clone(),
            action: JobAction::Write,
            write: Some(then.write.clone()),
            ..Job::default()
        });
        let follows = then.as_ref().is_some_and(|then| at(&then.id));
        let then = then.filter(|_| follows || !is_protected);
        let is_ended = || {
            let known = status.job.as_ref();
            known.is_some_and(|known| job.is_called(&known.id) && known.done)
        };
        if !follows && !at(&job.id) && (last == job.id || is_ended()) {
            return;
        }
        let mut well = true;
        if !follows {
            if !self.has_worked(&job, seconds) {
                return;
            }
            well = self.work(&job);
        }
        if let Some(then) = then.filter(|_| well) {
            // The edge gives it with the answer, and writes nothing before.
            if !self.has_worked(&then, seconds) {
                return;
            }
            well = self.work(&then);
        }
        match job.action {
            _ if !well => {}
            JobAction::Reboot => self.power(PowerOrder::Reset),
            JobAction::PowerOff => self.power(PowerOrder::HardOff),
            _ if self.loses_answer => {}
            _ => self.leave(),
        }
    }

    /// The edge tells the agent to leave with the answer to the end of the write, and that says so.
    fn leave(&mut self) {
        let Some(server) = self.server.as_mut().filter(|_| self.edge == Edge::Newest) else {
            return;
        };
        let told = server.told_to_leave().filter(|(_, leaving)| !leaving.said);
        let Some(action) = told.map(|(leave, _)| leave.action) else {
            return;
        };
        let last = server.status.as_mut().and_then(|status| status.job.as_mut());
        if let Some(leaving) = last.and_then(|last| last.leaving.as_mut()) {
            leaving.said = !self.loses_answer;
        }
        self.machine.left += 1;
        match action {
            LeaveAction::Reboot => self.power(PowerOrder::Reset),
            LeaveAction::PowerOff => self.power(PowerOrder::HardOff),
        }
    }

    /// True once the agent has had the time that `job` takes. Until then, people see that it is at work, and no disk that it writes boots.
    fn has_worked(&mut self, job: &Job, seconds: u32) -> bool {
        if !matches!(job.action, JobAction::Clean | JobAction::Write) {
            self.machine.working = None;
            return true;
        }
        let left = match self.machine.working.take() {
            Some((id, left)) if id == job.id => left.saturating_sub(seconds),
            _ => self.jobs_take,
        };
        assert!(
            self.host.is_some(),
            "nothing is worked at for a host that is gone"
        );
        if left == 0 {
            return true;
        }
        self.machine.working = Some((job.id.clone(), left));
        self.machine.ramdisk = Some(job.id.clone());
        if job.action == JobAction::Write {
            self.machine.disk = Content::Blank;
        }
        let status = self.server.as_mut().unwrap().status.get_or_insert_default();
        status.job = Some(JobStatus {
            id: job.id.clone(),
            ..JobStatus::default()
        });
        self.bump();
        false
    }

    /// The agent does `job`, and its end is written. True if it ended well.
    fn work(&mut self, job: &Job) -> bool {
        self.machine.ramdisk = Some(job.id.clone());
        let destroys = matches!(job.action, JobAction::Clean | JobAction::Write);
        let writes = job.action == JobAction::Write && self.failing_writes > 0;
        let stays = matches!(job.action, JobAction::Reboot | JobAction::PowerOff) && self.failing_ends > 0;
        let fails = destroys && self.failing_jobs > 0 || writes || stays;
        if writes {
            self.failing_writes -= 1;
        } else if stays {
            self.failing_ends -= 1;
        } else if fails {
            self.failing_jobs -= 1;
        } else if destroys {
            self.destroy(job);
        }
        let server = self.server.as_mut().unwrap();
        let placed = server
            .spec
            .job
            .as_ref()
            .filter(|_| self.edge == Edge::Newest && !fails);
        let ends = placed.filter(|placed| placed.writes().is_some_and(|(id, _)| id == job.id));
        let leaving = ends
            .and_then(|placed| placed.leave.as_ref())
            .map(|leave| Leaving {
                id: leave.id.clone(),
                said: false,
            });
        server.status.get_or_insert_default().job = Some(JobStatus {
            id: job.id.clone(),
            done: true,
            leaving,
            error: if fails {
                "the disk is bad".to_owned()
            } else {
                String::new()
            },
            log: if fails {
                vec!["write /dev/sda: EIO".to_owned()]
            } else {
                Vec::new()
            },
            warnings: if job.action == JobAction::Write && !fails {
                self.warnings.clone()
            } else {
                Vec::new()
            },
            ..JobStatus::default()
        });
        self.bump();
        !fails
    }

    fn destroy(&mut self, job: &Job) {
        assert!(
            self.host.is_some(),
            "nothing is destroyed for a host that is gone"
        );
        if job.action == JobAction::Clean {
            self.machine.cleans += 1;
            self.machine.disk = Content::Blank;
        } else {
            let write = job.write.as_ref().expect("what to write");
            let url = write.image.url.clone();
            self.machine.writes.push(job.id.clone());
            self.machine.disk = Content::Image(url);
        }
    }
}
