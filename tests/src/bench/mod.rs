//! `muster-lab bench`: the figures of discovery, measured. It asserts nothing: what fails or takes long is shown.

mod boots;
mod computer;
mod fleet;
mod flood;
pub mod hosts;
mod lit;
mod load;
mod memory;
mod peers;
pub mod provision;
pub mod render;
pub mod results;
mod script;
mod steps;
pub mod write;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use muster_proto::kinds::Profile;
use muster_ramdisk::release::Release;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::{
    machine::{Firmware, UefiNet},
    paths,
    slots::Slots,
};
use boots::Counts;
use results::{ProfileSizes, Results, Sizes};

/// More processors than this that are busy before we begin spoil the times.
const BUSY: f64 = 0.15;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// BIOS PXE, one machine at a time.
    Bios,
    /// UEFI HTTP boot, one machine at a time.
    Uefi,
    /// Eight machines at once, and the controller's memory.
    Fleet,
    /// Simulated clients, against dnsmasq and nginx.
    Load,
    /// One machine among very many addresses that ask.
    Flood,
    /// Sizes of files.
    Sizes,
    /// Guest memory.
    Memory,
}

/// How the benchmark runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Fewer runs, to try it out.
    #[arg(long)]
    pub quick: bool,
    /// This part only.
    #[arg(long, value_enum)]
    pub only: Option<Row>,
    /// What is put on record beside the results.
    #[command(flatten)]
    pub record: Record,
}

/// What is put on record beside the results.
#[derive(Clone, Debug, clap::Args)]
pub struct Record {
    /// Where the raw results go, as JSON.
    #[arg(long)]
    pub out: PathBuf,
    /// The command that people type for this.
    #[arg(long)]
    pub command: String,
    /// The commit that is measured.
    #[arg(long)]
    pub commit: String,
}

/// How often each thing is measured.
#[derive(Clone, Copy, Debug)]
struct Plan {
    bios: Counts,
    uefi: Counts,
    fleet: (usize, usize, usize),
    load: load::Size,
    flood: usize,
    tries: usize,
}

const FULL: Plan = Plan {
    bios: Counts { runs: 50, empty: 10 },
    uefi: Counts { runs: 20, empty: 5 },
    fleet: (8, 4, 3),
    load: load::Size {
        clients: 1000,
        at_once: 32,
        rounds: 9,
    },
    flood: 5,
    tries: usize::MAX,
};

const QUICK: Plan = Plan {
    bios: Counts { runs: 3, empty: 1 },
    uefi: Counts { runs: 2, empty: 1 },
    fleet: (8, 1, 1),
    load: load::Size {
        clients: 100,
        at_once: 32,
        rounds: 1,
    },
    flood: 1,
    tries: 2,
};

/// Measures, and writes what it found.
pub async fn run(options: Options) -> Result<()> {
    let begun = Instant::now();
    // Whoever else uses this lab waits until we are done.
    let _slots = Slots::take(usize::MAX).await?;
    let mut results = Results {
        command: options.record.command.clone(),
        commit: options.record.commit.clone(),
        date: now(),
        quick: options.quick,
        computer: computer::look().await?,
        ..Results::default()
    };
    let busy = results.computer.busy_cores;
    if busy > BUSY {
        let warning = format!(
            "{busy:.2} processors were busy with other work before it began: times are longer than they need be"
        );
        println!("WARNING: {warning}");
        results.warnings.push(warning);
    }
    let plan = if options.quick { QUICK } else { FULL };
    for row in Row::value_variants() {
        if options.only.is_some_and(|only| only != *row) {
            continue;
        }
        let name = row
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned());
        println!("· {name}");
        let start = Instant::now();
        // The other parts are worth having, whatever is wrong with one.
        if let Err(error) = measure(*row, plan, &mut results).await {
            let warning = format!("{name} could not be measured: {error:#}");
            println!("WARNING: {warning}");
            results
                .warnings
                .push(warning.lines().next().unwrap_or_default().to_owned());
        }
        println!("  {:.0} s", start.elapsed().as_secs_f64());
    }
    results.took = results::seconds(begun.elapsed());
    write(&options.record.out, &to_json(&results)?)?;
    println!("\n{}", render::table(&results));
    println!(
        "{} s in all; raw results in {}",
        results.took,
        options.record.out.display()
    );
    Ok(())
}

async fn measure(row: Row, plan: Plan, results: &mut Results) -> Result<()> {
    match row {
        Row::Bios => results.bios = Some(boots::measure("bios", Firmware::Bios, plan.bios).await?),
        Row::Uefi => {
            let firmware = Firmware::Uefi(UefiNet::Http);
            results.uefi = Some(boots::measure("uefi", firmware, plan.uefi).await?);
        }
        Row::Fleet => {
            let (hosts, rounds, empty) = plan.fleet;
            results.fleet = Some(fleet::measure(hosts, rounds, empty).await?);
        }
        Row::Load => results.load = Some(load::measure(plan.load).await?),
        Row::Flood => results.flood = Some(flood::measure(plan.flood).await?),
        Row::Sizes => results.sizes = Some(sizes()?),
        Row::Memory => {
            for steps in [memory::LAB, memory::SERVER] {
                results.memory.push(memory::measure(steps, plan.tries).await?);
            }
        }
    }
    Ok(())
}

fn sizes() -> Result<Sizes> {
    let mut sizes = Sizes::default();
    for profile in [Profile::Lab, Profile::Server] {
        let Release {
            kernel_len,
            initramfs_len,
            manifest,
            ..
        } = Release::open(&paths::boot_dir()?.join(profile.name()))?;
        sizes.agent = manifest.agent.size;
        let files = ProfileSizes {
            kernel_version: manifest.kernel_version,
            kernel: kernel_len,
            initramfs: initramfs_len,
            unpacked: manifest.unpacked,
        };
        sizes.profiles.insert(profile.name().to_owned(), files);
    }
    Ok(sizes)
}

/// To the second, UTC.
fn now() -> String {
    let now = jiff::Timestamp::now().to_string();
    let second = now.split('.').next().unwrap_or_default();
    format!("{} UTC", second.trim_end_matches('Z').replace('T', " "))
}

/// A page of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Page {
    /// Of discovery.
    Discovery,
    /// Of writing.
    Write,
    /// Of hosts.
    Hosts,
    /// Of provisioning.
    Provision,
}

/// Makes the page of the raw results at `json`.
pub fn render_file(which: Page, json: &Path, out: &Path) -> Result<()> {
    let text = fs::read_to_string(json).with_context(|| format!("read {}", json.display()))?;
    let page = match which {
        Page::Discovery => serde_json::from_str(&text).map(|results| render::page(&results)),
        Page::Write => serde_json::from_str(&text).map(|results| write::page(&results)),
        Page::Hosts => hosts::page(&text),
        Page::Provision => serde_json::from_str(&text).map(|results| provision::page(&results)),
    };
    let page = page.with_context(|| format!("understand {}", json.display()))?;
    write(out, &page)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Raw results as they are committed.
pub fn to_json(results: &impl Serialize) -> Result<String> {
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, Readable::default());
    results.serialize(&mut serializer).context("write JSON")?;
    let mut text = String::from_utf8(text).context("write JSON")?;
    text.push('\n');
    Ok(text)
}

/// Indented, but for lists: a thousand numbers belong on one line.
#[derive(Default)]
struct Readable(PrettyFormatter<'static>);

impl Formatter for Readable {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }
}
