//! How many machines run at once on this computer, over all test processes.
//!
//! Each slot is a file that is locked while a machine runs; the kernel unlocks it when its process ends, however that ends.

use std::{
    env,
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::paths;

/// How often a busy slot is looked at again.
const PAUSE: Duration = Duration::from_millis(100);
/// What a machine and its share of controller and cluster take, in MiB; the largest machines of the suites have 512.
const MIB_PER_MACHINE: u64 = 1024;

/// The right to run some machines; given back when dropped.
#[derive(Debug)]
pub struct Slots {
    _locked: Vec<File>,
}

impl Slots {
    /// Waits for `count` slots; more than there are means all of them.
    pub async fn take(count: usize) -> Result<Slots> {
        let dir = paths::target().join("lab-slots");
        let total = total(cores(), free_mib()?);
        take_from(&dir, count, total).await
    }
}

async fn take_from(dir: &Path, count: usize, total: usize) -> Result<Slots> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    // Only one at a time collects slots: two that each hold half of what they need would wait for ever.
    let turnstile = open(&dir.join("turnstile"))?;
    while !try_lock(&turnstile)? {
        tokio::time::sleep(PAUSE).await;
    }
    let files: Vec<_> = (0..total)
        .map(|number| open(&dir.join(number.to_string())))
        .collect::<Result<_>>()?;
    let mut free = files.into_iter().collect::<Vec<_>>();
    let mut locked = Vec::new();
    while locked.len() < count.min(total) {
        let mut busy = Vec::new();
        for file in free {
            match locked.len() < count && try_lock(&file)? {
                true => locked.push(file),
                false => busy.push(file),
            }
        }
        free = busy;
        if locked.len() < count.min(total) {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(Slots { _locked: locked })
}

/// How many machines run at once: emulation keeps a core busy, and half of a machine's time it waits.
fn total(cores: usize, free_mib: u64) -> usize {
    let by_memory = usize::try_from(free_mib / MIB_PER_MACHINE).unwrap_or(usize::MAX);
    cores.min(by_memory).max(1)
}

fn cores() -> usize {
    let set = env::var("MUSTER_LAB_SLOTS")
        .ok()
        .and_then(|text| text.parse().ok());
    set.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// `MemAvailable` of `/proc/meminfo`, in MiB.
fn free_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("read MemAvailable in /proc/meminfo")?;
    Ok(kib / 1024)
}

fn open(path: &PathBuf) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

fn try_lock(file: &File) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => bail!("lock a slot: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn memory_and_cores_bound_the_machines() {
        assert_eq!(total(2, 22_000), 2);
        assert_eq!(total(16, 4_096), 4);
        assert_eq!(total(8, 100), 1);
    }

    #[tokio::test]
    async fn no_more_run_than_there_are_slots() {
        let scratch = Scratch::new().unwrap();
        let first = take_from(scratch.path(), 1, 2).await.unwrap();
        let both = take_from(scratch.path(), 5, 2);
        tokio::pin!(both);
        let early = tokio::time::timeout(3 * PAUSE, &mut both).await;
        assert!(early.is_err(), "two slots were taken while one was in use");
        drop(first);
        both.await.unwrap();
    }
}
