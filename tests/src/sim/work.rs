//! Jobs of a simulated server: they take time, tell progress, compare machine and disk as the agent does, and change nothing.

use std::time::Duration;

use muster_agent::{
    steps::{Failed, Job},
    work::Work,
};
use muster_proto::{
    Chain,
    identity::Identity,
    job::{ConfigDrive, DiskId, Failure, MachineId},
};
use tokio::{sync::watch, time::sleep};

use super::hardware::Hardware;

/// How far it gets at a time, in percent; the controller writes a step of that size.
const STRIDE: usize = 10;

/// How jobs go from now on, the one that runs included.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// How long a job takes.
    pub takes: Duration,
    /// It gets as far as this, in percent, and waits there until something else is said.
    pub waits_at: Option<u8>,
    /// It fails like this when it is half done.
    pub fails: Option<Failed>,
}

/// A job that has ended.
#[derive(Clone, Debug)]
pub struct Worked {
    /// What it was.
    pub job: Job,
    /// What was in its config drive.
    pub drive: Option<ConfigDrive>,
    /// How it ended.
    pub end: Result<(), Failed>,
}

/// Carries out `job` on `hardware`.
pub(crate) async fn carry_out(
    job: Job,
    hardware: Hardware,
    mut pace: watch::Receiver<Pace>,
    work: Work,
) -> Worked {
    let mut drive = None;
    let end = tokio::select! {
        end = run(&job, &hardware, &mut pace, &work, &mut drive) => end,
        () = work.stopped() => Err(failed("it was stopped; what was on the disk is lost", Failure::Temporary)),
    };
    Worked { job, drive, end }
}

fn failed(message: impl Into<String>, failure: Failure) -> Failed {
    Failed {
        message: message.into(),
        failure,
    }
}

async fn run(
    job: &Job,
    hardware: &Hardware,
    pace: &mut watch::Receiver<Pace>,
    work: &Work,
    drive: &mut Option<ConfigDrive>,
) -> Result<(), Failed> {
    let (step, machine, disks) = match job {
        Job::Clean(clean) => ("clean disks", &clean.machine, clean.disks.as_slice()),
        Job::Write { job, .. } => ("write image", &job.machine, std::slice::from_ref(&job.disk)),
    };
    is_meant(machine, &hardware.identity())?;
    for disk in disks {
        has(hardware, disk)?;
    }
    for percent in (0..=100).step_by(STRIDE) {
        work.step(step, percent);
        loop {
            let now = pace.borrow_and_update().clone();
            if let Some(fails) = now.fails.filter(|_| percent >= 50) {
                return Err(fails);
            }
            if now.waits_at.is_none_or(|at| at > percent) {
                sleep(now.takes / 10).await;
                break;
            }
            if pace.changed().await.is_err() {
                // The server was thrown away.
                std::future::pending::<()>().await;
            }
        }
    }
    if let Job::Write {
        drive: Some(sealed), ..
    } = job
    {
        let open = sealed
            .open()
            .map_err(|error| failed(Chain(&error).to_string(), Failure::Outdated))?;
        *drive = Some(ConfigDrive::clone(&open));
    }
    Ok(())
}

fn is_meant(machine: &MachineId, identity: &Identity) -> Result<(), Failed> {
    let same = |meant: &Option<String>, is: &Option<String>| meant.is_none() || meant == is;
    let named = *machine != MachineId::default();
    let meant = same(&machine.system_uuid, &identity.system_uuid)
        && same(&machine.system_serial, &identity.system_serial)
        && same(&machine.board_serial, &identity.board_serial);
    if named && meant {
        return Ok(());
    }
    Err(failed("the job is for another machine", Failure::Final))
}

fn has(hardware: &Hardware, meant: &DiskId) -> Result<(), Failed> {
    let is = |disk: &DiskId| disk.serial == meant.serial && disk.size_bytes == meant.size_bytes;
    if hardware
        .inventory
        .disks
        .iter()
        .map(DiskId::from)
        .any(|disk| is(&disk))
    {
        return Ok(());
    }
    Err(failed(
        format!("no disk has serial {}", meant.serial),
        Failure::Final,
    ))
}
