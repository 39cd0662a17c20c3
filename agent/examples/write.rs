//! Writes an image as the agent does, and says how fast: `write ROOT < job.json`.
//!
//! `ROOT` stands for `/`: it tells which disks there are, and may be a made-up tree in which the only disk is a loop device.
//! The job is a `Write` as JSON. All that is on the disk is lost.

use std::{io, process::ExitCode, time::Instant};

use muster_agent::{
    clock::Clock,
    image::{self, Environment},
    net::dns::NameServers,
    sys::{self, Root},
    work::Work,
};
use muster_proto::{Chain, job::Write};
use serde_json::json;

fn main() -> ExitCode {
    let Some(root) = std::env::args().nth(1) else {
        eprintln!("usage: write ROOT < job.json");
        return ExitCode::from(2);
    };
    let job: Write = match serde_json::from_reader(io::stdin()) {
        Ok(job) => job,
        Err(error) => {
            eprintln!("understand the job: {error}");
            return ExitCode::from(2);
        }
    };
    let environment = Environment {
        root: Root::new(root),
        clock: Clock::told(0),
        name_servers: NameServers::new(Vec::new),
        proxy: None,
    };
    let work = Work::new(|progress| {
        eprintln!(
            "{} {} % {} MB/s",
            progress.step,
            progress.percent,
            progress.bytes_per_second / 1_000_000
        );
    });
    let started = Instant::now();
    match image::write(&job, None, &environment, &work) {
        Ok(written) => {
            let seconds = started.elapsed().as_secs_f64();
            let said = json!({
                "image": written.image,
                "transferred": written.transferred,
                "digest": written.digest,
                "warnings": work.warnings(),
                "seconds": seconds,
                "peakKib": peak(),
            });
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", Chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The most memory that this process had, in KiB (proc(5), `VmHWM`).
fn peak() -> Option<u64> {
    let status = sys::bytes(&Root::default().proc("self/status")).ok()?;
    let status = String::from_utf8_lossy(&status).into_owned();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
