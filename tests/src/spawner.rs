//! A thread that starts children which die with it.
//!
//! The kernel sends a child its parent-death signal when the *thread* that made it ends, not the process (prctl(2)).
//! So children are made by a thread that lives as long as its [`Spawner`], and nothing survives a killed test.

use std::{
    io,
    process::{Child, Command},
    sync::mpsc,
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Pid, getpid, getppid, gettid},
};

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs on one thread, in the namespaces of that thread.
#[derive(Debug)]
pub struct Spawner {
    jobs: mpsc::Sender<Job>,
    thread: Pid,
}

impl Spawner {
    /// A thread in the caller's namespaces.
    pub fn new() -> Result<Spawner> {
        Spawner::after(|| Ok(()))
    }

    /// A thread that first runs `setup`, which may change its namespaces.
    pub fn after(setup: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Spawner> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, outcome) = mpsc::channel();
        thread::Builder::new()
            .name("lab-spawner".to_owned())
            .spawn(move || {
                let done = setup().map(|()| gettid());
                let failed = done.is_err();
                if ready.send(done).is_err() || failed {
                    return;
                }
                for job in queue {
                    job();
                }
            })
            .context("start a thread")?;
        let thread = outcome
            .recv()
            .map_err(|_| anyhow!("the spawner's thread ended early"))??;
        Ok(Spawner { jobs, thread })
    }

    /// The thread's id; the kernel takes it wherever it takes a process's id for a namespace.
    pub fn thread(&self) -> Pid {
        self.thread
    }

    /// Runs `job` there and waits for what it returns. Sockets that it makes belong to the thread's network namespace for good.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, outcome) = mpsc::channel();
        let sent = self.jobs.send(Box::new(move || {
            // The caller waits below, so somebody takes the answer.
            let _ = answer.send(job());
        }));
        sent.ok()
            .and_then(|()| outcome.recv().ok())
            .expect("the thread ends with its Spawner only, and no job panics")
    }

    /// Starts `command` there. It is killed when the Spawner or this process ends.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        let parent = getpid();
        self.run(move || {
            die_with_parent(&mut command, parent);
            command.spawn()
        })
    }
}

#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command, parent: Pid) {
    use std::os::unix::process::CommandExt;
    // Ctrl-C reaches this process only, which then ends its children in order.
    command.process_group(0);
    // SAFETY: between fork and exec only async-signal-safe functions may run; these are two bare system calls.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the call above: then no signal will ever come.
            if getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Stdio};

    use super::*;

    #[test]
    fn child_dies_with_its_spawner() {
        let spawner = Spawner::new().unwrap();
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped());
        let mut child = spawner.spawn(command).unwrap();
        let stdin = child.stdin.take(); // held, so that only the signal can end it
        drop(spawner);
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        drop(stdin);
    }
}
