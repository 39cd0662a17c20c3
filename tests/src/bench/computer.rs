//! The computer that is measured on, and what processes took of it.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use anyhow::{Context, Result};

use super::results::Computer;
use crate::paths;

/// The kernel counts CPU time in such parts of a second (`USER_HZ`, proc(5)): on all of today's architectures.
const TICKS: f64 = 100.0;

/// How long is looked whether the computer is idle.
const LOOK: Duration = Duration::from_secs(2);

/// What it is, and how idle.
pub(super) async fn look() -> Result<Computer> {
    let cpuinfo = read("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model
        .and_then(|rest| rest.split_once(':'))
        .map(|(_, name)| name.trim());
    let memory = kib(&read("/proc/meminfo")?, "MemTotal:").unwrap_or(0) / 1024;
    let load = read("/proc/loadavg")?;
    let before = busy(&read("/proc/stat")?).context("read /proc/stat")?;
    tokio::time::sleep(LOOK).await;
    let after = busy(&read("/proc/stat")?).context("read /proc/stat")?;
    let busy_cores = (after - before) / TICKS / LOOK.as_secs_f64();
    Ok(Computer {
        cpu: model.unwrap_or("unknown").to_owned(),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        memory_mib: memory,
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        qemu: version("qemu-system-x86_64", "--version"),
        dnsmasq: version("dnsmasq", "--version"),
        nginx: paths::nginx().map_or_else(
            |_| "none".to_owned(),
            |path| version(&path.to_string_lossy(), "-v"),
        ),
        busy_cores: (busy_cores * 100.0).round() / 100.0,
        load_average: load.split_whitespace().take(3).collect::<Vec<_>>().join(" "),
    })
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

/// The first line that a program says of itself.
fn version(program: &str, argument: &str) -> String {
    let Ok(output) = Command::new(program).arg(argument).output() else {
        return "none".to_owned();
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let line = said.lines().next().unwrap_or_default();
    line.split("  Copyright")
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The ticks that all processors spent on work, from `/proc/stat`: neither idle nor waiting for a disk.
fn busy(stat: &str) -> Option<f64> {
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?;
    let numbers: Vec<f64> = numbers
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = numbers[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq + steal)
}

/// The number behind `name` in a file of lines such as `VmRSS:   123 kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// A process's resident memory now and at its most, in KiB.
pub(super) fn resident(pid: u32) -> Result<(u64, u64)> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let field = |name: &str| kib(&status, name).with_context(|| format!("no {name} of process {pid}"));
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}

/// User and system time, in seconds, of these processes, their descendants and those of them that have ended.
pub(super) fn cpu_seconds(roots: &[u32]) -> Result<f64> {
    let processes = fs::read_dir("/proc").context("list /proc")?.flatten();
    let stats: Vec<Stat> = processes
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .filter_map(|entry| Stat::parse(&fs::read_to_string(entry.path().join("stat")).ok()?))
        .collect();
    let mut tree: BTreeSet<u32> = roots.iter().copied().collect();
    loop {
        let children = stats.iter().filter(|stat| tree.contains(&stat.parent));
        let grown: BTreeSet<u32> = children
            .map(|stat| stat.pid)
            .chain(tree.iter().copied())
            .collect();
        if grown.len() == tree.len() {
            break;
        }
        tree = grown;
    }
    let ticks: u64 = stats
        .iter()
        .filter(|stat| tree.contains(&stat.pid))
        .map(|stat| stat.ticks)
        .sum();
    let ticks = u32::try_from(ticks).context("a CPU time of more than a year")?;
    Ok(f64::from(ticks) / TICKS)
}

/// What is needed of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    ticks: u64,
}

impl Stat {
    fn parse(line: &str) -> Option<Stat> {
        // The name, in parentheses, may hold blanks and parentheses.
        let (head, rest) = line.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // Counted from the state, which is the third field of proc(5): utime, stime, cutime, cstime are 14 to 17.
        let times = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok());
        Some(Stat {
            pid: head.split_whitespace().next()?.parse().ok()?,
            parent: fields.get(1)?.parse().ok()?,
            ticks: times.sum::<Option<u64>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_may_hold_anything() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 5 6 7 8";
        let stat = Stat {
            pid: 42,
            parent: 7,
            ticks: 100,
        };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse("42 (a) S 7"), None);
    }

    #[test]
    fn idle_and_waiting_processors_are_not_busy() {
        assert_eq!(busy("cpu  1 2 3 100 50 4 5 6 0 0\ncpu0 1"), Some(21.0));
        assert_eq!(busy("intr 1"), None);
    }

    #[test]
    fn own_memory_and_time_are_found() {
        let (now, peak) = resident(std::process::id()).unwrap();
        assert!(0 < now && now <= peak);
        let mut child = Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"])
            .spawn()
            .unwrap();
        child.wait().unwrap();
        assert!(
            cpu_seconds(&[std::process::id()]).unwrap() > 0.0,
            "a child that has ended counts"
        );
    }
}
