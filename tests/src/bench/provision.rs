//! `muster-lab bench-provision`: a server whose ramdisk runs is given an image, and boots it. It asserts no time.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use muster_proto::kinds::{BareMetalHost, IN_BAND_ANNOTATION, Profile, UnknownPolicy};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Record, computer, lit, now,
    render::{Circumstances, busy_before, circumstances},
    results::{Computer, Sample, seconds},
};
use crate::{
    bridges::BR0,
    demo::step,
    lines::Line,
    machine::{Bus, Disk, Firmware, Machine, UefiNet},
    os_image::{Flavour, Form, Image, os, server::ImageServer, told},
    slots::Slots,
    stage::Stage,
};

/// Machines of each firmware, one after the other.
const ROUNDS: usize = 5;
/// The most time that is wanted, in seconds.
const GOAL: f64 = 25.0;
/// A machine that is not as far by then has failed.
const PATIENCE: Duration = Duration::from_secs(180);

/// The firmwares, by the names that they have in the results.
const FIRMWARES: [(&str, Firmware); 2] = [("bios", Firmware::Bios), ("uefi", Firmware::Uefi(UefiNet::Http))];

/// The steps in their order: the name, what the line on the console that ends it contains (one of these), and what it is.
const STEPS: [(&str, &[&str], &str); 7] = [
    (
        "order",
        &["the controller orders: clean"],
        "the controller sees the image, and the agent its first job",
    ),
    ("clean", &["step=disk-cleaned"], "the disk is cleaned"),
    (
        "next",
        &["the controller orders: write"],
        "the agent has its second job",
    ),
    ("write", &["step=image-written"], "the image is written"),
    (
        "leave",
        &["starting again, as ordered"],
        "the agent is told to leave, and leaves",
    ),
    (
        "firmware",
        &["Booting from Hard Disk", "BdsDxe: starting"],
        "the firmware has come to the disk",
    ),
    (
        OS,
        &[os::BOOTED],
        "boot loader and kernel; the operating system's first line",
    ),
];
/// The last step.
const OS: &str = "os";

/// What was measured, raw, as it is committed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProvisionResults {
    /// The command that made it.
    pub command: String,
    /// The commit that was measured.
    pub commit: String,
    /// When it began, UTC.
    pub date: String,
    /// Where it ran.
    pub computer: Computer,
    /// Bytes of the image.
    pub image: u64,
    /// Bytes of it in zstd.
    pub packed: u64,
    /// Each machine.
    pub runs: Vec<Run>,
}

/// One machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Run {
    /// `bios` or `uefi`.
    pub firmware: String,
    /// From the moment at which the image is set to the end of each step, in seconds.
    pub steps: BTreeMap<String, f64>,
    /// Why it did not come to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// Measures, and writes what it found.
pub async fn run(record: Record) -> Result<()> {
    let Record { out, command, commit } = record;
    // Whoever else uses this lab waits until we are done.
    let _slots = Slots::take(usize::MAX).await?;
    let image = Image::find(Flavour::Large)?;
    let packed = image.file(Form::Zstd);
    let mut results = ProvisionResults {
        command,
        commit,
        date: now(),
        computer: computer::look().await?,
        image: image.size()?,
        packed: fs::metadata(&packed)
            .with_context(|| format!("look at {}", packed.display()))?
            .len(),
        runs: Vec::new(),
    };
    let stage = Stage::lit("bench-provision", &[(BR0, Profile::Lab, UnknownPolicy::Hold)]).await?;
    let listen = "10.77.0.1:0".parse().context("where images are served")?;
    let images = ImageServer::inside(&stage.network.net, listen, image.dir())?;
    let spec = json!({
        "url": images.url(&image.name(Form::Zstd)),
        "checksum": image.sha256(Form::Zstd)?, "checksumType": "sha256", "format": "raw",
    });
    for round in 0..ROUNDS {
        for (name, firmware) in FIRMWARES {
            let run = provision(&stage, name, firmware, &spec).await?;
            let said = match (run.steps.get(OS), &run.failed) {
                (Some(took), _) => format!("{took:.2} s"),
                (None, why) => why.clone().unwrap_or_default(),
            };
            println!("  {} of {ROUNDS}: {name} {said}", round + 1);
            results.runs.push(run);
        }
    }
    super::write(&out, &super::to_json(&results)?)
}

/// Discovers a new machine, lets a person opt in, and then gives it the image.
async fn provision(stage: &Stage, name: &str, firmware: Firmware, image: &Value) -> Result<Run> {
    let mut spec = lit::spec(firmware);
    // A BIOS boots no disk but its first.
    spec.disks = vec![Disk::new(Bus::Virtio, 10, "PROVISION")];
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec)?;
    let mac = lit::mac(&machine)?;
    machine.power_on()?;
    let host = stage.host(mac, PATIENCE, |host| host.status.is_some()).await?;
    let hosts = stage.api::<BareMetalHost>();
    let patch = async |patch: Value| -> Result<()> {
        hosts
            .patch(&host.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .context("patch the host")?;
        Ok(())
    };
    let console = machine.console();
    let (_, enrolled) = console.wait_for("step=enrolled", 0, PATIENCE).await?;
    let key = step::field(&enrolled.text, "key").context("the session's key on the console")?;
    patch(json!({"metadata": {"annotations": {IN_BAND_ANNOTATION: key}}})).await?;
    let available = |host: &BareMetalHost| {
        let status = host.status.as_ref();
        status.is_some_and(|status| status.provisioning.state == "available")
    };
    stage.host(mac, PATIENCE, available).await?;

    let from = console.len();
    let since = std::time::Instant::now();
    patch(json!({"spec": {"image": image}})).await?;
    let booted = told::booted(console, from, PATIENCE).await;
    let steps = steps(&console.from(from))
        .into_iter()
        .map(|(name, line)| (name.to_owned(), seconds(line.at.saturating_duration_since(since))))
        .collect();
    let failed = booted.err().map(|error| {
        let end = console.last(3).join(" / ");
        format!("{error:#}; the console ends with: {end}")
    });
    Ok(Run {
        firmware: name.to_owned(),
        steps,
        failed,
    })
}

/// The line that ends each step, up to the first step without one.
fn steps(console: &[Line]) -> Vec<(&'static str, &Line)> {
    let mut rest = console.iter();
    let mut found = Vec::new();
    for (name, patterns, _) in STEPS {
        let ends = |line: &&Line| patterns.iter().any(|pattern| line.text.contains(pattern));
        match rest.find(ends) {
            Some(line) => found.push((name, line)),
            None => break,
        }
    }
    found
}

/// The page. Every sentence stands on a line of its own.
pub(super) fn page(results: &ProvisionResults) -> String {
    let computer = &results.computer;
    let mut page = String::from(
        "# Benchmarks: an image in-band\n\n\
         Made by `cargo xtask codegen` from `docs/benchmarks/provision.json`, which the command below measured.\n\
         Times are in seconds, MB are 10^6 bytes, MiB are 2^20.\n\n",
    );
    page += &circumstances(&Circumstances {
        command: &results.command,
        commit: &results.commit,
        date: &results.date,
        took: None,
        computer,
        others: &[
            ("QEMU", computer.qemu.clone()),
            busy_before(computer),
            (
                "image",
                format!(
                    "{} MiB raw, {} MiB in zstd",
                    results.image >> 20,
                    results.packed >> 20
                ),
            ),
        ],
        warnings: &[],
    });
    page += "\nA machine without a BMC has been discovered, and a person has opted in: its ramdisk runs, and its host is `available`.\n\
             The time runs from setting `spec.image` until the image's operating system prints its first line.\n\
             The machines run in QEMU without KVM, with one processor each, one after the other.\n\n\
             | firmware | median | fastest | slowest | of the goal | failed |\n| --- | --- | --- | --- | --- | --- |\n";
    for (name, _) in FIRMWARES {
        let runs = of(results, name);
        let times = sample(&runs, |run| run.steps.get(OS).copied());
        let (Some(median), Some(fastest), Some(slowest)) = (times.median(), times.min(), times.max()) else {
            continue;
        };
        let failed = runs.iter().filter(|run| run.failed.is_some()).count();
        page += &format!(
            "| {name} | {median:.1} | {fastest:.1} | {slowest:.1} | {:.0} % of {GOAL:.0} | {failed} of {} |\n",
            100.0 * median / GOAL,
            runs.len()
        );
    }
    page += "\nMedian time of each step:\n\n| step | BIOS | UEFI |\n| --- | --- | --- |\n";
    for (number, (_, _, what)) in STEPS.iter().enumerate() {
        let cell = |firmware: &str| {
            let median = sample(&of(results, firmware), |run| took(run, number)).median();
            median.map_or_else(String::new, |median| format!("{median:.2}"))
        };
        page += &format!("| {what} | {} | {} |\n", cell("bios"), cell("uefi"));
    }
    let speed = |firmware: &str| {
        let speeds = sample(&of(results, firmware), |run| {
            let mb = f64::from(u32::try_from(results.image / 1000).ok()?) / 1000.0;
            Some(mb / took(run, STEPS.iter().position(|(name, ..)| *name == "write")?)?)
        });
        speeds
            .median()
            .map_or_else(String::new, |median| format!("{median:.0}"))
    };
    page += &format!(
        "| speed of writing, in MB of the image per second | {} | {} |\n",
        speed("bios"),
        speed("uefi")
    );
    page += "\nThe BIOS tries the network first, which gives it an address but no boot file; the UEFI machine tries its own boot entry \
             first.\n";
    page
}

fn of<'a>(results: &'a ProvisionResults, firmware: &str) -> Vec<&'a Run> {
    let runs = results.runs.iter();
    runs.filter(|run| run.firmware == firmware).collect()
}

fn sample(runs: &[&Run], of: impl Fn(&Run) -> Option<f64>) -> Sample {
    runs.iter().filter_map(|run| of(run)).collect()
}

/// What step `number` alone took.
fn took(run: &Run, number: usize) -> Option<f64> {
    let end = |number: usize| run.steps.get(STEPS.get(number)?.0).copied();
    let begin = match number.checked_sub(1) {
        None => 0.0,
        Some(before) => end(before)?,
    };
    Some(end(number)? - begin)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn steps_are_found_in_their_order_and_none_is_passed_over() {
        let lines = |texts: &[&str]| -> Vec<Line> {
            let line = |text: &&str| Line {
                at: Instant::now(),
                text: (*text).to_owned(),
            };
            texts.iter().map(line).collect()
        };
        let names = |console: &[Line]| -> Vec<_> { steps(console).iter().map(|(name, _)| *name).collect() };
        let console = lines(&[
            "Booting from Hard Disk...",
            "muster  9.0 the controller orders: clean command=1 epoch=2",
            "muster  9.1 step=disk-cleaned disk=/dev/vda",
            "muster  9.2 the controller orders: write command=2 epoch=2",
            "muster 10.0 step=image-written",
            "muster 10.2 starting again, as ordered",
            "Booting from Hard Disk...",
            "OS booted (kernel 6.1, uptime 1.00 s)",
        ]);
        let all = STEPS.map(|(name, ..)| name);
        assert_eq!(names(&console), all);
        assert_eq!(names(&console[..3]), all[..2]);
        assert_eq!(
            names(&console[2..]),
            [""; 0],
            "without its beginning nothing is known"
        );
    }

    #[test]
    fn a_page_has_the_median_of_the_whole_and_of_each_step() {
        let run = |os: f64| Run {
            firmware: "bios".to_owned(),
            steps: BTreeMap::from([
                ("next".to_owned(), 1.0),
                ("write".to_owned(), 3.0),
                ("firmware".to_owned(), 5.0),
                (OS.to_owned(), os),
            ]),
            failed: None,
        };
        let results = ProvisionResults {
            image: 320_000_000,
            runs: vec![run(9.0), run(6.0), run(20.0)],
            ..ProvisionResults::default()
        };
        let page = page(&results);
        for row in [
            "| bios | 9.0 | 6.0 | 20.0 | 36 % of 25 | 0 of 3 |",
            "| the image is written | 2.00 |  |",
            "first line | 4.00 |  |",
            "per second | 160 |  |",
        ] {
            assert!(page.contains(row), "{row}\n{page}");
        }
        assert!(!page.contains("| uefi"), "what was not measured is not shown");
    }
}
