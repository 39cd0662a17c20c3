use std::{collections::BTreeSet, io::Cursor, path::Path};

use muster_proto::{inventory::Cpu, text};
use nix::sys::utsname;
use procfs::{CpuInfo, FromBufRead};

use super::{
    smbios::Table,
    warnings::{Subject, Warnings},
};
use crate::sys::{self, Root};

/// The first processors' part of `/proc/cpuinfo`: all processors are of one model, and the kernel takes milliseconds to
/// write hundreds of them down.
const CPUINFO_HEAD: u64 = 16 * 1024;

/// The most processors that a kernel is built for (`NR_CPUS` is 8192 on x86_64).
const MAX_CPU: u32 = 65_536;

pub(super) fn collect(root: &Root, table: &Table<'_>, warnings: &mut Warnings) -> Cpu {
    let sockets = table.processors();
    let mut subject = warnings.on("cpu", "cpuinfo");
    let arch = subject.or_none(utsname::uname());
    let info = subject.or_none(sys::head(&root.proc("cpuinfo"), CPUINFO_HEAD));
    let info = subject.or_none(parse(info.as_deref().unwrap_or_default()));
    let field = |name: &str| info.as_ref().and_then(|info| info.get_field(0, name));

    let from_table = sockets.iter().map(|socket| socket.version.as_str());
    let model = field("model name").or_else(|| from_table.into_iter().find(|model| !model.is_empty()));
    // x86 says `flags`, Arm `Features`, RISC-V `isa`.
    let flags: BTreeSet<String> = field("flags")
        .or_else(|| field("Features"))
        .or_else(|| field("isa"))
        .into_iter()
        .flat_map(str::split_whitespace)
        .map(|flag| text::clean(flag.as_bytes()))
        .collect();
    // The current clock, not the highest: the latter is often that of the fastest processor the board can take.
    let from_table = sockets.iter().map(|socket| match socket.current_mhz {
        0 => socket.max_mhz,
        current => current,
    });
    let from_cpuinfo = field("cpu MHz").and_then(|mhz| mhz.parse().ok());
    let max_mhz = highest_clock(root, warnings)
        .or_else(|| from_table.max().filter(|mhz| *mhz > 0).map(f64::from))
        .or(from_cpuinfo)
        .filter(|mhz: &f64| mhz.is_finite() && *mhz >= 0.0);

    let topology = Topology::read(root, warnings);
    Cpu {
        arch: arch
            .map(|name| text::clean(name.machine().as_encoded_bytes()))
            .unwrap_or_default(),
        model: text::clean(model.unwrap_or_default().as_bytes()),
        max_mhz: max_mhz.unwrap_or(0.0),
        threads: topology.threads,
        cores: topology.cores,
        sockets: topology.sockets,
        numa_nodes: numa_nodes(root, warnings),
        flags: flags.into_iter().collect(),
    }
}

/// The first processor that a piece of `/proc/cpuinfo` holds whole.
fn parse(head: &[u8]) -> Result<CpuInfo, procfs::ProcError> {
    let end = head.windows(2).position(|pair| pair == b"\n\n");
    let first = head.get(..end.unwrap_or(head.len())).unwrap_or_default();
    CpuInfo::from_buf_read(Cursor::new(first))
}

/// The highest clock that frequency scaling may reach, in MHz; cores of one machine may differ.
fn highest_clock(root: &Root, warnings: &mut Warnings) -> Option<f64> {
    let policies = root.sys("devices/system/cpu/cpufreq");
    let mut subject = warnings.on("cpu", "cpufreq");
    let names = subject
        .or_default(sys::absent_as_none(sys::list(&policies)))
        .unwrap_or_default();
    let khz = names
        .iter()
        .filter(|name| name.starts_with("policy"))
        .filter_map(|name| {
            let path = policies.join(name).join("cpuinfo_max_freq");
            subject.or_default(sys::optional_number::<u32>(&path))
        })
        .max()?;
    Some(f64::from(khz) / 1000.0)
}

/// How many of each.
#[derive(Debug, Default, PartialEq, Eq)]
struct Topology {
    threads: u32,
    cores: u32,
    sockets: u32,
}

impl Topology {
    fn read(root: &Root, warnings: &mut Warnings) -> Self {
        let mut subject = warnings.on("cpu", "topology");
        Topology::from_sysfs(root, &mut subject)
            .or_else(|| Topology::from_cpuinfo(root, &mut subject))
            .unwrap_or_default()
    }

    /// From the online processors and the sets of them that share a core or a package: each set is read once.
    fn from_sysfs(root: &Root, subject: &mut Subject<'_>) -> Option<Self> {
        let directory = root.sys("devices/system/cpu");
        let online = cpu_list(&directory.join("online"), subject)?;
        let mut sets = |names: [&str; 2]| {
            let mut seen = BTreeSet::new();
            let mut found = 0;
            for cpu in &online {
                if seen.contains(cpu) {
                    continue;
                }
                let topology = directory.join(format!("cpu{cpu}/topology"));
                seen.extend(
                    names
                        .iter()
                        .find_map(|name| cpu_list(&topology.join(name), subject))?,
                );
                seen.insert(*cpu);
                found += 1;
            }
            Some(found)
        };
        Some(Topology {
            // The first names are those since Linux 5.2.
            cores: sets(["core_cpus_list", "thread_siblings_list"])?,
            sockets: sets(["package_cpus_list", "core_siblings_list"])?,
            threads: count(online.len()),
        })
    }

    /// From all of `/proc/cpuinfo`; without packages and cores there, each thread is a core of one package.
    fn from_cpuinfo(root: &Root, subject: &mut Subject<'_>) -> Option<Self> {
        let raw = subject.or_default(sys::absent_as_none(sys::bytes(&root.proc("cpuinfo"))))?;
        let info = subject.or_none(CpuInfo::from_buf_read(Cursor::new(raw)))?;
        let threads = 0..info.num_cores();
        let package = |thread| info.physical_id(thread);
        let core = |thread| {
            (
                package(thread),
                info.get_field(thread, "core id").map(str::to_owned),
            )
        };
        let cores: BTreeSet<_> = threads.clone().map(core).collect();
        let packages: BTreeSet<_> = threads.clone().map(package).collect();
        let known = cores.iter().all(|(_, core)| core.is_some());
        Some(Topology {
            threads: count(threads.len()),
            cores: count(if known { cores.len() } else { threads.len() }),
            sockets: count(packages.len()),
        })
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// NUMA nodes with processors or memory; a kernel without NUMA is one node.
fn numa_nodes(root: &Root, warnings: &mut Warnings) -> u32 {
    let mut subject = warnings.on("cpu", "numa");
    let directory = root.sys("devices/system/node");
    let mut nodes = BTreeSet::new();
    for name in ["has_cpu", "has_memory"] {
        nodes.extend(cpu_list(&directory.join(name), &mut subject).unwrap_or_default());
    }
    count(nodes.len()).max(1)
}

/// A file that holds a list such as `0-3,8,10-11`; `None` if absent or, with a warning, if it holds something else.
fn cpu_list(path: &Path, subject: &mut Subject<'_>) -> Option<BTreeSet<u32>> {
    // Not `sys::text`: a list of many ranges is longer than a text may be.
    let raw = subject.or_default(sys::absent_as_none(sys::bytes(path)))?;
    let parsed = parse_list(&String::from_utf8_lossy(&raw));
    if parsed.is_none() {
        subject.say(format!("{}: not a list of numbers", path.display()));
    }
    parsed
}

/// `cpulist_parse` of the kernel (`Documentation/admin-guide/cputopology.rst`), without strides.
fn parse_list(text: &str) -> Option<BTreeSet<u32>> {
    let mut out = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MAX_CPU {
            return None;
        }
        out.extend(first..=last);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sys::tree::Tree;

    fn of(tree: &Tree) -> (Cpu, Vec<muster_proto::inventory::Warning>) {
        let mut warnings = Warnings::default();
        let cpu = collect(&tree.root(), &Table::default(), &mut warnings);
        (cpu, warnings.finish())
    }

    /// Two packages of two cores of two threads, siblings far apart as on x86.
    fn two_sockets() -> Tree {
        let mut tree = Tree::new()
            .file(
                "proc/cpuinfo",
                "processor\t: 0\nmodel name\t: Example  CPU @ 2.00GHz\nflags\t\t: sse fpu avx\ncpu MHz\t\t: 1800.5\n\nprocessor\t: 1\n",
            )
            .file("sys/devices/system/cpu/online", "0-7\n")
            .file("sys/devices/system/node/has_cpu", "0-1\n")
            .file("sys/devices/system/node/has_memory", "0-2\n");
        for cpu in 0..8 {
            let topology = format!("sys/devices/system/cpu/cpu{cpu}/topology");
            let (core, package) = (cpu % 4, cpu % 4 / 2);
            let first = package * 2;
            tree = tree
                .file(
                    &format!("{topology}/core_cpus_list"),
                    format!("{core},{}\n", core + 4),
                )
                .file(
                    &format!("{topology}/package_cpus_list"),
                    format!("{first}-{},{}-{}\n", first + 1, first + 4, first + 5),
                );
        }
        tree
    }

    #[test]
    fn threads_cores_and_sockets_are_counted_from_who_shares_what() {
        let (cpu, warnings) = of(&two_sockets());
        assert_eq!(
            (cpu.threads, cpu.cores, cpu.sockets, cpu.numa_nodes),
            (8, 4, 2, 3)
        );
        assert_eq!(cpu.model, "Example CPU @ 2.00GHz");
        assert_eq!(cpu.flags, ["avx", "fpu", "sse"]);
        assert!((cpu.max_mhz - 1800.5).abs() < 1e-9);
        assert_eq!(warnings, []);
    }

    #[test]
    fn the_fastest_core_gives_the_clock() {
        let tree = two_sockets()
            .file(
                "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq",
                "3600000\n",
            )
            .file(
                "sys/devices/system/cpu/cpufreq/policy4/cpuinfo_max_freq",
                "3900000\n",
            );
        assert!((of(&tree).0.max_mhz - 3900.0).abs() < 1e-9);
    }

    #[test]
    fn no_files_at_all_cost_a_warning() {
        let (cpu, warnings) = of(&Tree::new());
        assert_eq!(cpu.numa_nodes, 1);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }

    #[test]
    fn a_list_that_is_none_is_refused() {
        for text in ["x", "3-1", "0-4294967295", "1-", "-1"] {
            assert_eq!(parse_list(text), None, "{text}");
        }
        assert_eq!(parse_list("0-1,4\n"), Some(BTreeSet::from([0, 1, 4])));
        assert_eq!(parse_list("\n"), Some(BTreeSet::new()));
    }

    proptest! {
        #[test]
        fn any_cpuinfo_and_list_parse(raw: Vec<u8>, text: String) {
            let _ = parse(&raw);
            let _ = parse_list(&text);
        }
    }
}
