//! The lab from the command line.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use muster_tests::{
    bench::{self, Page, Record},
    demo, fleet,
    os_image::{self, published::Inputs},
};

/// Muster's lab: servers, networks and a Kubernetes API server on this computer.
#[derive(Debug, Parser)]
#[command(name = "muster-lab")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boots servers that nobody has described, until they appear in `kubectl get bmh`.
    Demo(demo::Options),
    /// Runs simulated servers, thousands if wanted, against the lab's own controller or any other.
    Fleet(fleet::Options),
    /// Makes the disk images that servers are given; `cargo xtask build` runs it.
    OsImage {
        #[command(flatten)]
        inputs: Inputs,
        /// Where they go.
        #[arg(long)]
        out: PathBuf,
        /// The large one, too.
        #[arg(long)]
        large: bool,
    },
    /// Measures discovery; `cargo xtask bench discovery` builds what it needs and starts it.
    Bench(bench::Options),
    /// Measures how fast images are written; `cargo xtask bench write` builds what it needs and starts it.
    BenchWrite(Record),
    /// Measures thousands of simulated servers; `cargo xtask bench hosts` builds what it needs and starts it.
    BenchHosts(bench::hosts::Options),
    /// Measures how soon a server boots the image that it is given; `cargo xtask bench provision` builds what it needs and starts it.
    BenchProvision(Record),
    /// Makes the page of a benchmark from its raw results.
    BenchPage {
        /// Which benchmark.
        #[arg(value_enum)]
        which: Page,
        /// The raw results.
        #[arg(long)]
        json: PathBuf,
        /// The page.
        #[arg(long)]
        out: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("muster-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<bool> {
    match command {
        Command::Demo(options) => return demo::run(options).await,
        Command::Fleet(options) => return Box::pin(fleet::run(options)).await,
        Command::OsImage { inputs, out, large } => os_image::published::publish(&out, &inputs, large)?,
        Command::Bench(options) => bench::run(options).await?,
        Command::BenchWrite(record) => bench::write::run(record).await?,
        Command::BenchHosts(options) => bench::hosts::run(options).await?,
        Command::BenchProvision(record) => bench::provision::run(record).await?,
        Command::BenchPage { which, json, out } => bench::render_file(which, &json, &out)?,
    }
    Ok(true)
}
