//! `muster-lab bench-write`: how fast an image gets onto a disk, beside the shell's way. It asserts no time.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use muster_proto::job::{DigestAlgorithm, DiskId, ImageSource, MachineId, Write};
use serde::{Deserialize, Serialize};

use super::{
    Record, computer, now,
    render::{Circumstances, busy_before, circumstances},
    results::Computer,
};
use crate::{files::FileServer, loops::LoopDisk, paths, slots::Slots};

/// The image, in bytes.
const IMAGE: u64 = 2 << 30;
const MIB: usize = 1 << 20;
/// What repeats in it, farther apart than any compressor looks.
const PATTERN: usize = 64 * MIB;
/// Times each way is taken.
const ROUNDS: usize = 5;
/// The least speed that is wanted, in 10^6 bytes of the image per second.
const GOAL: f64 = 765.0;
const SERIAL: &str = "BENCH-1";

/// What was measured, raw, as it is committed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WriteResults {
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
    /// Each way, taken in turn.
    pub runs: Vec<Run>,
}

/// One write.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Run {
    /// `agent`, `shell` or `raw`.
    pub way: String,
    /// From the program's start to its end, everything synced.
    pub seconds: f64,
    /// The most memory that the agent had, in KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_kib: Option<u64>,
}

/// Measures, and writes what it found.
pub async fn run(record: Record) -> Result<()> {
    let Record { out, command, commit } = record;
    // Whoever else uses this lab waits until we are done.
    let _slots = Slots::take(usize::MAX).await?;
    let mut results = WriteResults {
        command,
        commit,
        date: now(),
        computer: computer::look().await?,
        image: IMAGE,
        ..WriteResults::default()
    };
    // Memory, so that no disk of this computer is measured.
    let scratch = tempfile::Builder::new()
        .prefix("muster-bench-")
        .tempdir_in("/dev/shm")
        .context("make a directory in memory")?;
    let place = Place::new(scratch.path())?;
    results.packed = fs::metadata(&place.packed).context("look at the image")?.len();
    for round in 0..ROUNDS {
        for way in ["agent", "shell", "raw"] {
            let run = place.run(way)?;
            let speed = speed(IMAGE, run.seconds);
            println!("  {} of {ROUNDS}: {way} {speed:.0} MB/s", round + 1);
            results.runs.push(run);
        }
    }
    super::write(&out, &super::to_json(&results)?)
}

/// Files and a disk in memory.
struct Place {
    raw: PathBuf,
    packed: PathBuf,
    digest: String,
    root: PathBuf,
    disk: LoopDisk,
    server: FileServer,
}

impl Place {
    fn new(directory: &Path) -> Result<Place> {
        let raw = directory.join("image.raw");
        let packed = directory.join("image.zst");
        println!("  making the image");
        make_image(&raw)?;
        shell(&format!(
            "zstd -q -3 -T0 -o {} {}",
            packed.display(),
            raw.display()
        ))?;
        let digest = shell(&format!("sha256sum {}", packed.display()))?;
        let digest = digest.split(' ').next().unwrap_or_default().to_owned();
        let disk = LoopDisk::new(&directory.join("disk"), IMAGE + (64 << 20), 512)?;
        let root = directory.join("root");
        disk.machine(&root, SERIAL)?;
        Ok(Place {
            server: FileServer::new(&packed, None)?,
            raw,
            packed,
            digest,
            root,
            disk,
        })
    }

    fn run(&self, way: &str) -> Result<Run> {
        // Each way finds the same disk: full of something else.
        let device = self.disk.path().display();
        shell(&format!(
            "head -c {IMAGE} /dev/zero | tr '\\0' '\\252' | dd of={device} bs=4M iflag=fullblock oflag=direct status=none"
        ))?;
        let started = Instant::now();
        let peak_kib = match way {
            "agent" => self.agent()?,
            "shell" => {
                self.by_shell()?;
                None
            }
            _ => {
                let raw = self.raw.display();
                shell(&format!(
                    "dd if={raw} of={device} bs=4M oflag=direct conv=fsync status=none"
                ))?;
                None
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        // All but the table, which the agent fits to the disk.
        let len = IMAGE - (2 << 20);
        shell(&format!("cmp -i {MIB} -n {len} {} {device}", self.raw.display()))?;
        Ok(Run {
            way: way.to_owned(),
            seconds: (seconds * 1000.0).round() / 1000.0,
            peak_kib,
        })
    }

    /// Fetches over HTTP, verifies, decompresses, writes and syncs.
    fn agent(&self) -> Result<Option<u64>> {
        let job = Write {
            machine: MachineId {
                system_serial: Some(SERIAL.to_owned()),
                ..MachineId::default()
            },
            disk: DiskId {
                serial: "LOOP-1".to_owned(),
                size_bytes: self.disk.bytes(),
                ..DiskId::default()
            },
            image: ImageSource {
                url: self.server.url("image.zst"),
                checksum: self.digest.clone(),
                algorithm: DigestAlgorithm::Sha256,
            },
            config_drive: None,
            config_drive_optional: false,
        };
        let mut child = Command::new(paths::write_example()?)
            .arg(&self.root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start the agent's example")?;
        let mut input = child.stdin.take().context("no input of the example")?;
        input
            .write_all(&serde_json::to_vec(&job).context("write a job")?)
            .context("give the example its job")?;
        drop(input);
        let output = child.wait_with_output().context("wait for the example")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the agent did not write: {errors}");
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).context("read what it says")?;
        Ok(said["peakKib"].as_u64())
    }

    /// As people do it by hand, from a local file.
    fn by_shell(&self) -> Result<()> {
        let (packed, device) = (self.packed.display(), self.disk.path().display());
        let said = shell(&format!(
            "exec 3>&1; tee >(sha256sum >&3) < {packed} | zstd -q -dc | dd of={device} bs=4M iflag=fullblock oflag=direct conv=fsync status=none"
        ));
        // The digest comes by a way of its own, and may come late; that it is right is checked before.
        said.map(drop)
    }
}

/// Runs a line of bash; returns what it says.
fn shell(line: &str) -> Result<String> {
    let output = Command::new("bash")
        .args(["-c", &format!("set -euo pipefail; {line}")])
        .output()
        .context("start bash")?;
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A disk with one partition, of whose MiBs every second is empty and the others shrink to about a third.
fn make_image(path: &Path) -> Result<()> {
    let file = fs::File::create(path).with_context(|| format!("make {}", path.display()))?;
    file.set_len(IMAGE).context("size the image")?;
    let pattern = pattern(PATTERN);
    let mut output = &file;
    let places = (2..IMAGE / MIB as u64 - 2).step_by(2);
    for (index, mib) in places.enumerate() {
        let start = index * MIB % PATTERN;
        std::io::Seek::seek(&mut output, std::io::SeekFrom::Start(mib * MIB as u64))
            .context("find a place")?;
        output
            .write_all(&pattern[start..start + MIB])
            .context("fill the image")?;
    }
    // Something where a BIOS's program is: without one no BIOS machine takes the image.
    std::io::Seek::rewind(&mut output).context("go back to the image's start")?;
    output
        .write_all(&[0x90; 440])
        .context("give the image a program")?;
    shell(&format!("sgdisk -n 1:2048:0 -c 1:root {}", path.display()))?;
    Ok(())
}

/// Bytes of which about a third are random and the others stood before.
fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let random = state.to_le_bytes();
        bytes.extend(random);
        let back = usize::from(u16::from_le_bytes([random[0], random[1]])) + 24;
        if let Some(start) = bytes.len().checked_sub(back) {
            bytes.extend_from_within(start..start + 16);
        }
    }
    bytes.truncate(len);
    bytes
}

/// In 10^6 bytes per second.
fn speed(bytes: u64, seconds: f64) -> f64 {
    let thousands = u32::try_from(bytes / 1000).unwrap_or(u32::MAX);
    f64::from(thousands) / 1000.0 / seconds
}

/// The page. Every sentence stands on a line of its own.
pub(super) fn page(results: &WriteResults) -> String {
    let computer = &results.computer;
    let mut page = String::from(
        "# Benchmarks: writing an image\n\n\
         Made by `cargo xtask codegen` from `docs/benchmarks/write.json`, which the command below measured.\n\
         MB are 10^6 bytes, MiB are 2^20; speed is the decompressed size of the image divided by the time from a program's start to its \
         end.\n\n",
    );
    page += &circumstances(&Circumstances {
        command: &results.command,
        commit: &results.commit,
        date: &results.date,
        took: None,
        computer,
        others: &[
            busy_before(computer),
            (
                "image",
                format!(
                    "{} MiB raw, {} MiB in zstd",
                    results.image >> 20,
                    results.packed >> 20
                ),
            ),
            (
                "disk",
                "loop device over a file in memory, full of other data".to_owned(),
            ),
        ],
        warnings: &[],
    });
    page += "\n| way | MB/s, median | slowest | fastest | of the goal | most memory |\n| --- | --- | --- | --- | --- | --- |\n";
    for (way, what) in WAYS {
        let runs: Vec<&Run> = results.runs.iter().filter(|run| run.way == *way).collect();
        let mut speeds: Vec<f64> = runs.iter().map(|run| speed(results.image, run.seconds)).collect();
        speeds.sort_by(f64::total_cmp);
        let (Some(slowest), Some(fastest)) = (speeds.first(), speeds.last()) else {
            continue;
        };
        let median = speeds[speeds.len() / 2];
        let goal = if *way == "agent" {
            format!("{:.0} % of {GOAL:.0}", 100.0 * median / GOAL)
        } else {
            String::new()
        };
        let peak = runs.iter().filter_map(|run| run.peak_kib).max();
        let peak = peak.map_or_else(String::new, |kib| format!("{} MiB", kib.div_ceil(1024)));
        page += &format!("| {what} | {median:.0} | {slowest:.0} | {fastest:.0} | {goal} | {peak} |\n");
    }
    page += "\nThe agent fetches the image over HTTP from this computer, computes the digest, decompresses, writes with direct IO and \
             syncs; it writes the first MiB last.\n\
             The shell reads a local file, and what it wrote can boot even if the digest turns out to be wrong.\n\
             `dd` of the raw image neither decompresses nor computes a digest.\n\
             After each run, the disk is compared with the image.\n";
    page
}

/// The ways, and what they are.
const WAYS: &[(&str, &str)] = &[
    ("agent", "agent: HTTP, zstd, SHA-256"),
    ("shell", "`zstd -dc`, `sha256sum`, `dd oflag=direct`"),
    ("raw", "`dd oflag=direct` of the raw image"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_the_median_of_each_way() {
        let run = |way: &str, seconds| Run {
            way: way.to_owned(),
            seconds,
            peak_kib: (way == "agent").then_some(20_000),
        };
        let results = WriteResults {
            image: 2_000_000_000,
            runs: [4.0, 1.0, 2.0].map(|seconds| run("agent", seconds)).to_vec(),
            ..WriteResults::default()
        };
        let page = page(&results);
        let row = "| agent: HTTP, zstd, SHA-256 | 1000 | 500 | 2000 | 131 % of 765 | 20 MiB |";
        assert!(page.contains(row), "{page}");
        assert!(!page.contains("| `zstd"), "what was not measured is not shown");
    }

    #[test]
    fn the_pattern_is_always_the_same_and_shrinks_to_about_a_third() {
        let bytes = pattern(4 * MIB);
        assert_eq!(bytes, pattern(4 * MIB));
        let packed = zstd::bulk::compress(&bytes, 3).unwrap().len();
        assert!((MIB..2 * MIB + MIB / 2).contains(&packed), "{packed}");
    }
}
