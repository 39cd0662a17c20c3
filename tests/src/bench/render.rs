//! From raw results to `docs/benchmarks.md`. Pure.

mod goals;

use std::fmt::Write as _;

use super::results::{
    Boots, Computer, Fleet, Flood, LOAD_STEPS, Load, LoadRound, Memory, Results, Run, Sample, Served, last,
};

pub use goals::table;

/// The steps of a boot in their order, and what they are.
const STEPS: &[(&str, &str)] = &[
    ("first-dhcp", "the controller answers the firmware's DHCP"),
    ("boot-file", "iPXE has its script"),
    ("uki-asked", "the firmware asks for the ramdisk, a UKI"),
    (
        "kernel",
        "the controller has sent all of the ramdisk: the kernel starts",
    ),
    ("agent", "the agent starts"),
    ("carrier", "the NIC has a carrier"),
    ("dhcp", "the agent has its lease"),
    ("modules", "all devices are found"),
    ("enrolled", "the agent has its certificate"),
    ("inventory-collected", "the inventory is collected"),
    ("inventory-sent", "the controller has it"),
];

/// The page. Every sentence stands on a line of its own.
pub fn page(results: &Results) -> String {
    let computer = &results.computer;
    let mut page = String::from(
        "# Benchmarks: discovery\n\n\
         Made by `cargo xtask codegen` from `docs/benchmarks/discovery.json`, which the command below measured.\n\
         Times are in seconds, MB are 10^6 bytes, MiB are 2^20.\n\n",
    );
    page += &circumstances(&Circumstances {
        command: &results.command,
        commit: &results.commit,
        date: &results.date,
        took: Some(results.took),
        computer,
        others: &[
            (
                "QEMU",
                format!("{}, TCG, one virtual processor a machine", computer.qemu),
            ),
            ("dnsmasq", computer.dnsmasq.clone()),
            ("nginx", computer.nginx.clone()),
            other_work(computer),
        ],
        warnings: &results.warnings,
    });
    page += &format!("\n## Goals and results\n\n{}", table(results));
    page += LEGEND;
    if let Some(boots) = &results.bios {
        page += &format!("\n## One BIOS machine, PXE, profile `lab`\n\n{}", parts(boots));
    }
    if let Some(boots) = &results.uefi {
        page += &format!(
            "\n## One UEFI machine, HTTP boot, profile `lab`\n\n{}{FIRMWARE}",
            parts(boots)
        );
    }
    if let Some(fleet) = &results.fleet {
        page += &format!(
            "\n## {} BIOS machines at once\n\n{}",
            fleet.hosts,
            together(fleet)
        );
    }
    if let Some(load) = &results.load {
        page += &format!("\n## {} simulated clients\n\n{}", load.clients, clients(load));
    }
    if let Some(flood) = &results.flood {
        page += &format!("\n## {} addresses that ask\n\n{}", flood.askers, flooded(flood));
    }
    if !results.memory.is_empty() {
        page += &format!("\n## Guest memory\n\n{}", memory(&results.memory));
    }
    page
}

/// What no server can shorten.
const FIRMWARE: &str = "\n\
    The firmware is the limit: OVMF starts on its own until its first DHCP request, and then collects offers for its whole first timeout, \
    4 s, before it accepts one (`mHttpDhcpTimeout` in `NetworkPkg/HttpBootDxe/HttpBootDhcp4.c` of EDK II).\n\
    This takes it from the first step above to its request for the UKI, no matter which server answers or how fast.\n\
    The same boot with an empty `/init`, which contains no agent, shows the least time that remains.\n";

const LEGEND: &str = "\n\
    *Empty `/init`* is the same kernel with the same initramfs, except that a program that prints one line and sleeps replaces the agent; \
    the time is that of its line.\n\
    *Same way* boots it over the network, as the machines of the figure do; *directly* means that QEMU itself loads kernel and initramfs, \
    under SeaBIOS.\n\
    All kernels, the empty ones included, get Muster's parameters, and `console=ttyS0,115200 no_timer_check`.\n\
    *Ratio* is the result divided by the time of *same way*.\n\
    p99 is computed by nearest rank: of 50 runs it is the slowest.\n\
    *Times theirs* is the median over all rounds of our result divided by theirs in the same round, and it decides whether the goal is \
    reached: the computer's speed varies more between rounds than the two differ within one.\n";

/// Under what circumstances a page's figures were measured.
pub(super) struct Circumstances<'a> {
    pub(super) command: &'a str,
    pub(super) commit: &'a str,
    pub(super) date: &'a str,
    /// In seconds, where the page says it.
    pub(super) took: Option<f64>,
    pub(super) computer: &'a Computer,
    /// What else the page says, by its name.
    pub(super) others: &'a [(&'a str, String)],
    /// What speaks against the figures.
    pub(super) warnings: &'a [String],
}

/// The table at the head of every page, and the warnings below it.
pub(super) fn circumstances(of: &Circumstances<'_>) -> String {
    let computer = of.computer;
    let mut text = String::from("| | |\n| --- | --- |\n");
    let mut row = |name: &str, value: &str| {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "| {name} | {} |", line(value));
    };
    row("command", &format!("`{}`", of.command));
    row("commit", of.commit);
    row("date", of.date);
    if let Some(took) = of.took {
        row("took", &format!("{:.1} min", took / 60.0));
    }
    row("processors", &format!("{} × {}", computer.cores, computer.cpu));
    row("memory", &format!("{} MiB", computer.memory_mib));
    row("kernel", &computer.kernel);
    for (name, value) in of.others {
        row(name, value);
    }
    if !of.warnings.is_empty() {
        text += "\nWarnings:\n\n";
        for warning in of.warnings {
            let _ = writeln!(text, "- {}", line(warning));
        }
    }
    text
}

/// What the computer did beside, as a row of [`Circumstances::others`].
pub(super) fn other_work(computer: &Computer) -> (&'static str, String) {
    let work = format!(
        "{:.2} processors busy, load average {}",
        computer.busy_cores, computer.load_average
    );
    ("other work at the start", work)
}

/// The same on pages that say less.
pub(super) fn busy_before(computer: &Computer) -> (&'static str, String) {
    ("processors busy before", format!("{:.2}", computer.busy_cores))
}

/// A text of somewhere else, on one line of Markdown.
pub(super) fn line(text: &str) -> String {
    let clean = muster_proto::text::clean(text.as_bytes());
    clean.replace('|', "/").replace('<', "‹")
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

fn parts(boots: &Boots) -> String {
    let visible: Sample = boots.runs.iter().filter_map(|run| run.visible).collect();
    let mut text = format!(
        "{} machines run one after the other, each new to the cluster and switched off before the next; {} MiB, virtio NIC, NVMe and \
         virtio disks.\n\
         {} came, {} did not.\n\
         Power-on to host: median {}, p99 {}, least {}, most {}.\n\n\
         | step | median, since power-on | since the step before |\n| --- | --- | --- |\n",
        boots.runs.len(),
        boots.memory_mib,
        visible.len(),
        boots.runs.len() - visible.len(),
        number(visible.median(), 2),
        number(visible.percentile(99), 2),
        number(visible.min(), 2),
        number(visible.max(), 2),
    );
    let mut before = Some(0.0);
    let median = |name: &str| -> Option<f64> {
        let times = boots.runs.iter().filter_map(|run| run.steps.get(name).copied());
        times.collect::<Sample>().median()
    };
    let mut steps: Vec<_> = STEPS
        .iter()
        .filter_map(|(name, what)| Some((*what, median(name)?)))
        .collect();
    steps.extend(visible.median().map(|median| {
        (
            "the BareMetalHost is visible in a watch, with its hardware",
            median,
        )
    }));
    steps.sort_by(|(_, one), (_, other)| one.total_cmp(other));
    for (what, at) in steps {
        let since = before.map(|before| at - before);
        let _ = writeln!(text, "| {what} | {at:.2} | {} |", number(since, 2));
        before = Some(at);
    }
    text +=
        "\nThe agent's steps are read from its console; the serial line reports them with a small delay.\n";
    text += &agent(&boots.runs);
    text += &empty("the same way", &boots.empty);
    text += &empty("directly", &boots.direct);
    let failed = boots.runs.iter().filter_map(|run| run.failed.as_deref());
    for why in failed {
        let _ = writeln!(text, "\nFailed: {}", line(why));
    }
    text
}

fn empty(how: &str, times: &[Option<f64>]) -> String {
    let came: Sample = times.iter().copied().flatten().collect();
    format!(
        "\nEmpty `/init`, {how}: {} of {} came; median {}, least {}, most {}.\n",
        came.len(),
        times.len(),
        number(came.median(), 2),
        number(came.min(), 2),
        number(came.max(), 2),
    )
}

/// The agent's own time, by the kernel's clock.
fn agent(runs: &[Run]) -> String {
    let of = |figure: fn(&Run) -> Option<f64>| -> Sample { runs.iter().filter_map(figure).collect() };
    let (all, beyond) = (of(Run::agent), of(Run::beyond));
    format!(
        "\nAgent start to inventory sent, by the uptime in its `step=agent` and `step=inventory-sent`: median {}, most {}.\n\
         Of that, beyond module load, carrier and DHCP: median {}, most {}.\n\
         This is the uptime of `step=inventory-sent` minus the later of two times: the uptime of `step=dhcp`, and the uptime of \
         `step=modules` minus its `quiet_ms`, which is when the last device appeared.\n\
         Both waits begin when the agent starts, so everything after the later one is the agent's own time; this includes the pause in \
         which it makes sure that no more devices appear (`quiet_ms`).\n",
        number(all.median(), 3),
        number(all.max(), 3),
        number(beyond.median(), 3),
        number(beyond.max(), 3),
    )
}

fn together(fleet: &Fleet) -> String {
    let mut text = String::from(
        "Each round uses a new controller and new machines of 256 MiB.\n\
         The controller's memory is `VmRSS` and `VmHWM` of its single process, a release build with both roles.\n\n\
         | round | first host | last host | missing | controller now, KiB | at its most, KiB |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for (number_of, round) in fleet.rounds.iter().enumerate() {
        let came: Sample = round.visible.iter().copied().flatten().collect();
        let kib = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |kib| kib.to_string());
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            number_of + 1,
            number(came.min(), 2),
            number(came.max(), 2),
            round.visible.len() - came.len(),
            kib(round.resident_kib),
            kib(round.peak_kib),
        );
    }
    let empty: Vec<String> = fleet.empty.iter().map(|times| number(last(times), 2)).collect();
    let _ = writeln!(
        text,
        "\nThe last of the same number of machines with an empty `/init`: {}.",
        empty.join(", ")
    );
    text
}

/// Where the clients' time goes: each step's medians, over the rounds.
fn client_steps(load: &Load) -> String {
    let mut text = String::from(
        "\n| step of a client | Muster: median, ms | p99 | dnsmasq + nginx: median, ms | p99 |\n| --- | --- | --- | --- | --- |\n",
    );
    for step in LOAD_STEPS {
        let of = |side: fn(&LoadRound) -> &Served, which: usize| {
            let rounds = load.rounds.iter();
            let times: Sample = rounds
                .filter_map(|round| Some(side(round).steps.get(step)?[which]))
                .collect();
            number(times.median(), 1)
        };
        let [ours, ours_p99] = [0, 1].map(|which| of(|round| &round.ours, which));
        let [theirs, theirs_p99] = [0, 1].map(|which| of(|round| &round.theirs, which));
        let _ = writeln!(text, "| {step} | {ours} | {ours_p99} | {theirs} | {theirs_p99} |");
    }
    text + BOUND
}

/// What a client waits for with us alone.
const BOUND: &str = "\n\
    Compared with dnsmasq, the probe limits a client's time: each new machine waits for it once, in its firmware's lease.\n\
    RFC 2131 (3.1) asks for this probe, and dnsmasq by default does the same with a ping.\n\
    Real firmware does not notice it, because it collects offers for longer than that.\n";

fn clients(load: &Load) -> String {
    let mut text = format!(
        "Each client simulates the network traffic of a BIOS machine: DHCP as PXE firmware, iPXE by TFTP (blocks of 1456 bytes), DHCP as \
         iPXE, then script, kernel and initramfs by HTTP, each from the address that it leased; {} run at once.\n\
         The same client program runs against both, on the same processors as the servers.\n\
         Muster probes each address before it offers it (80 ms); dnsmasq is configured not to (`--no-ping`).\n\
         dnsmasq and nginx write their usual logs; nginx has Debian's settings: `worker_processes auto`, `sendfile`, `tcp_nopush`.\n\
         CPU is the user and system time of all server processes, from `/proc/PID/stat`.\n\n\
         | round | servers | CPU | in all | MB | median of a client | p99 | most | failed |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        load.at_once
    );
    for (round, both) in load.rounds.iter().enumerate() {
        for (name, served) in [("Muster", &both.ours), ("dnsmasq + nginx", &both.theirs)] {
            let _ = writeln!(text, "| {} | {name} | {} |", round + 1, served_cells(served));
        }
    }
    text += &client_steps(load);
    let sides = load.rounds.iter().flat_map(|both| [&both.ours, &both.theirs]);
    for why in sides.filter_map(|served| served.error.as_deref()) {
        let _ = writeln!(text, "\nFailed: {}", line(why));
    }
    text
}

fn served_cells(served: &Served) -> String {
    let times: Sample = goals::times(served).collect();
    [
        format!("{:.2}", served.cpu),
        format!("{:.1}", served.wall),
        (served.bytes / 1_000_000).to_string(),
        number(times.median(), 2),
        number(times.percentile(99), 2),
        number(times.max(), 2),
        served.failed.to_string(),
    ]
    .join(" | ")
}

fn flooded(flood: &Flood) -> String {
    let mut text = String::from(
        "A BIOS machine that is new to the cluster is switched on alone.\n\
         Then another one is switched on while each of this many other addresses sends a DISCOVER, as PXE firmware, iPXE, UEFI HTTP boot \
         and installed systems do, as fast as one thread on the same processors can send them.\n\n\
         | round | in quiet | in the flood | all have asked after |\n| --- | --- | --- | --- |\n",
    );
    for (round, ((quiet, flooded), asking)) in flood
        .quiet
        .iter()
        .zip(&flood.flooded)
        .zip(&flood.asking)
        .enumerate()
    {
        let (quiet, flooded) = (number(*quiet, 2), number(*flooded, 2));
        let _ = writeln!(text, "| {} | {quiet} | {flooded} | {asking:.1} |", round + 1);
    }
    text
}

fn memory(all: &[Memory]) -> String {
    let mut text = String::from(
        "QEMU loads the kernel and the initramfs that the controller serves for this boot; the machine then has the memory in the table.\n\n\
         | profile | MiB | power-on to inventory sent |\n| --- | --- | --- |\n",
    );
    for memory in all {
        for tried in &memory.tries {
            let outcome = match (&tried.seconds, &tried.failed) {
                (Some(seconds), _) => format!("{seconds:.2}"),
                (None, why) => format!("fails: {}", line(why.as_deref().unwrap_or_default())),
            };
            let _ = writeln!(text, "| `{}` | {} | {outcome} |", memory.profile, tried.mib);
        }
    }
    text
}

#[cfg(test)]
mod tests;
