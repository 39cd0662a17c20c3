//! The table of goals and results.

use std::fmt::Write as _;

use super::super::results::{
    Boots, Fleet, Flood, Load, LoadRound, Memory, Results, Run, Sample, Served, Sizes, last,
};
use super::number;

/// A figure.
#[derive(Debug, Default)]
struct Row {
    figure: String,
    goal: String,
    result: String,
    reached: Option<bool>,
    /// The same with an empty `/init`: by the same way, directly, and how often the first fits into the result.
    empty: [Option<f64>; 3],
}

/// Goals beside results.
pub fn table(results: &Results) -> String {
    let mut rows = Vec::new();
    if let Some(boots) = &results.bios {
        rows.extend(bios(boots));
    }
    if let Some(boots) = &results.uefi {
        let name = "power-on to BareMetalHost, UEFI HTTP boot, `lab`, median";
        rows.push(timed(name, boots, 11.0, visible(boots).median()));
    }
    if let Some(fleet) = &results.fleet {
        rows.extend(together(fleet));
    }
    if let Some(load) = &results.load {
        rows.extend(clients(load));
    }
    rows.extend(results.flood.as_ref().map(flooded));
    if let Some(sizes) = &results.sizes {
        rows.extend(files(sizes));
    }
    rows.extend(results.memory.iter().map(memory));
    let mut text = String::from(
        "| figure | goal | result | reached | empty `/init`: same way | directly | ratio |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let reached = match row.reached {
            None => "-",
            Some(true) => "yes",
            Some(false) => "**no**",
        };
        let [same, direct, ratio] = row.empty.map(|value| number(value, 2));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {reached} | {same} | {direct} | {ratio} |",
            row.figure, row.goal, row.result
        );
    }
    text
}

fn visible(boots: &Boots) -> Sample {
    boots.runs.iter().filter_map(|run| run.visible).collect()
}

/// `measured` is missing if there was nothing to take it of.
fn at_most(goal: f64, measured: Option<f64>) -> Option<bool> {
    measured.map(|measured| measured <= goal)
}

fn median(times: &[Option<f64>]) -> Option<f64> {
    times.iter().copied().flatten().collect::<Sample>().median()
}

fn timed(figure: &str, boots: &Boots, goal: f64, measured: Option<f64>) -> Row {
    let missing = missing(boots.runs.iter().map(|run| run.visible));
    let same = median(&boots.empty);
    Row {
        figure: format!("{figure} of {}", boots.runs.len()),
        goal: format!("{goal:.1} s"),
        result: format!("{} s{missing}", number(measured, 2)),
        reached: at_most(goal, measured),
        empty: [same, median(&boots.direct), ratio(measured, same)],
    }
}

/// How many have no time.
fn missing(times: impl Iterator<Item = Option<f64>>) -> String {
    match times.filter(Option::is_none).count() {
        0 => String::new(),
        missing => format!(", {missing} did not come"),
    }
}

fn ratio(measured: Option<f64>, empty: Option<f64>) -> Option<f64> {
    Some(measured? / empty.filter(|empty| *empty > 0.0)?)
}

fn bios(boots: &Boots) -> [Row; 3] {
    let times = visible(boots);
    let beyond: Sample = boots.runs.iter().filter_map(Run::beyond).collect();
    let path = "power-on to BareMetalHost, BIOS PXE, `lab`";
    [
        timed(&format!("{path}, median"), boots, 6.0, times.median()),
        timed(&format!("{path}, p99"), boots, 8.0, times.percentile(99)),
        Row {
            figure: "of that, agent start to inventory sent, beyond modules, carrier and DHCP, median"
                .to_owned(),
            goal: "0.3 s".to_owned(),
            result: format!("{} s", number(beyond.median(), 3)),
            reached: at_most(0.3, beyond.median()),
            ..Row::default()
        },
    ]
}

fn together(fleet: &Fleet) -> [Row; 2] {
    let hosts = fleet.hosts;
    let lasts: Vec<_> = fleet.rounds.iter().map(|round| last(&round.visible)).collect();
    let whole = lasts.iter().filter(|last| last.is_some()).count();
    let (measured, empty) = (
        median(&lasts),
        median(&fleet.empty.iter().map(|times| last(times)).collect::<Vec<_>>()),
    );
    let most = fleet.rounds.iter().filter_map(|round| round.resident_kib).max();
    let mib = most.map(kib_to_mib);
    [
        Row {
            figure: format!(
                "{hosts} hosts at once, all visible, median of {whole} rounds of {}",
                lasts.len()
            ),
            goal: "24 s".to_owned(),
            result: format!("{} s", number(measured, 2)),
            reached: at_most(24.0, measured),
            empty: [empty, None, ratio(measured, empty)],
        },
        Row {
            figure: format!(
                "controller resident memory with {hosts} hosts, most of {} rounds",
                lasts.len()
            ),
            goal: "30 MiB".to_owned(),
            result: format!("{} MiB", number(mib, 1)),
            reached: at_most(30.0, mib),
            ..Row::default()
        },
    ]
}

fn kib_to_mib(kib: u64) -> f64 {
    u32::try_from(kib).map_or(f64::INFINITY, |kib| f64::from(kib) / 1024.0)
}

/// How long each client took, in seconds.
pub(super) fn times(served: &Served) -> impl Iterator<Item = f64> {
    served
        .milliseconds
        .iter()
        .map(|millis| f64::from(*millis) / 1000.0)
}

/// Each round's result beside theirs of the same round: the computer is faster in one than in another by more than the two differ.
fn clients(load: &Load) -> [Row; 2] {
    let failed: usize = load.rounds.iter().map(|round| round.ours.failed).sum();
    let failed = match failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    let row = |what: &str, of: fn(&Served) -> Option<f64>| {
        let side = |side: fn(&LoadRound) -> &Served| {
            let rounds = load.rounds.iter().filter_map(|round| of(side(round)));
            rounds.collect::<Sample>().median()
        };
        let ratios = load.rounds.iter().filter_map(|round| {
            let theirs = of(&round.theirs).filter(|theirs| *theirs > 0.0)?;
            Some(of(&round.ours)? / theirs)
        });
        let ratio = ratios.collect::<Sample>().median();
        Row {
            figure: format!(
                "{} simulated clients, {} at once: {what}, median of {} rounds",
                load.clients,
                load.at_once,
                load.rounds.len()
            ),
            goal: format!(
                "dnsmasq + nginx in the same round: {} s",
                number(side(|round| &round.theirs), 2)
            ),
            result: format!(
                "{} s, {} times theirs{failed}",
                number(side(|round| &round.ours), 2),
                number(ratio, 2)
            ),
            reached: at_most(1.0, ratio),
            ..Row::default()
        }
    };
    [
        row("CPU", |served| Some(served.cpu)),
        row("p99 of a client", |served| {
            times(served).collect::<Sample>().percentile(99)
        }),
    ]
}

fn flooded(flood: &Flood) -> Row {
    let missing = missing(flood.flooded.iter().copied());
    let (quiet, measured) = (median(&flood.quiet), median(&flood.flooded));
    let goal = quiet.map(|quiet| quiet * 2.0);
    Row {
        figure: format!(
            "power-on to BareMetalHost while {} addresses ask for a lease, BIOS PXE, `lab`, median of {}",
            flood.askers,
            flood.flooded.len()
        ),
        goal: format!("twice the time in quiet: {} s", number(goal, 2)),
        result: format!("{} s{missing}", number(measured, 2)),
        reached: goal.and_then(|goal| at_most(goal, measured)),
        ..Row::default()
    }
}

fn files(sizes: &Sizes) -> Vec<Row> {
    let row = |figure: String, goal: f64, bytes: u64| {
        let measured = u32::try_from(bytes).map_or(f64::INFINITY, |bytes| f64::from(bytes) / 1e6);
        Row {
            figure,
            goal: format!("{goal:.1} MB"),
            result: format!("{measured:.2} MB ({bytes} bytes)"),
            reached: at_most(goal, Some(measured)),
            ..Row::default()
        }
    };
    let mut rows = vec![row("agent, static, stripped".to_owned(), 4.0, sizes.agent)];
    for (profile, files) in &sizes.profiles {
        let goal = if profile == "lab" { 2.8 } else { 15.0 };
        let figure = format!(
            "initramfs, `{profile}`, agent included (kernel {}: {} bytes; unpacked: {} bytes)",
            files.kernel_version, files.kernel, files.unpacked
        );
        rows.push(row(figure, goal, files.initramfs));
    }
    rows
}

fn memory(memory: &Memory) -> Row {
    let goal = memory.goal_mib;
    Row {
        figure: format!(
            "guest memory it needs, `{}`, least tried that works",
            memory.profile
        ),
        goal: format!("{goal} MiB"),
        result: memory
            .least()
            .map_or_else(|| "none".to_owned(), |mib| format!("{mib} MiB")),
        reached: Some(memory.least().is_some_and(|least| least <= goal)),
        ..Row::default()
    }
}
