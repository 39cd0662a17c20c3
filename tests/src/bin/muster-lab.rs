//! The lab from the command line.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use muster_tests::{
    bench, demo,
    fleet::{self, pace::Failing},
    os_image::{self, published::Inputs},
    sim::hardware::Model,
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
    /// Servers that nobody has described boot, and appear in `kubectl get bmh`.
    Demo {
        /// End by itself, with status 0 only if every server arrived.
        #[arg(long)]
        once: bool,
        /// How many servers; the second one has UEFI.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
        hosts: u8,
        /// Use this cluster instead of a local one.
        #[arg(long, env = "KUBECONFIG")]
        kubeconfig: Option<PathBuf>,
    },
    /// Simulated servers, thousands if wanted, against a controller of the lab's or any other.
    Fleet {
        /// How many servers.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        hosts: u32,
        /// The number of the first: fleets that run beside each other need different ones.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..900_000))]
        first: u32,
        /// Use this cluster instead of a local one.
        #[arg(long, env = "KUBECONFIG")]
        kubeconfig: Option<PathBuf>,
        /// NAMESPACE/NAME of a Segment with `dhcp.mode: off` and a `bootAddress`, whose controller runs already. Without it, the lab
        /// starts a controller and makes a Segment.
        #[arg(long, requires = "kubeconfig")]
        segment: Option<String>,
        /// Where that controller finds the BMCs of the fleet: an address of this computer.
        #[arg(long, default_value = "127.0.0.1")]
        address: String,
        /// Nobody describes the servers: they have power and no BMC, and discovery finds them. Without this the fleet makes a host for
        /// each, with its BMC.
        #[arg(long)]
        discover: bool,
        /// The namespace of hosts, where the lab makes the Segment.
        #[arg(long, default_value = "fleet")]
        namespace: String,
        /// What the servers are. Their reports are equally large.
        #[arg(long, value_enum, default_value_t)]
        model: Model,
        /// How long everything takes: 1 is real time, 0 as fast as it goes.
        #[arg(long, default_value_t = 0.1, value_parser = scale)]
        scale: f64,
        /// What goes wrong, as FAULT=PERCENT or FAULT=PERCENTxTIMES of the servers; firmware, boot, inventory, job or power. May be
        /// repeated.
        #[arg(long)]
        fail: Vec<Failing>,
        /// End once all have arrived.
        #[arg(long)]
        once: bool,
    },
    /// Makes the disk images that servers are given; `cargo xtask build` runs it.
    OsImage {
        /// The program `muster-os`, static.
        #[arg(long)]
        init: PathBuf,
        /// Debian's package of the kernel.
        #[arg(long)]
        kernel_deb: PathBuf,
        /// Debian's package systemd-boot-efi.
        #[arg(long)]
        stub_deb: PathBuf,
        /// Where they go.
        #[arg(long)]
        out: PathBuf,
        /// The large one, too.
        #[arg(long)]
        large: bool,
    },
    /// Measures discovery; `cargo xtask bench discovery` builds what it needs and starts it.
    Bench {
        /// Fewer runs, to try it out.
        #[arg(long)]
        quick: bool,
        /// This part only.
        #[arg(long, value_enum)]
        only: Option<bench::Row>,
        /// Where the raw results go, as JSON.
        #[arg(long)]
        out: PathBuf,
        /// The command to put on record.
        #[arg(long)]
        command: String,
        /// The commit to put on record.
        #[arg(long)]
        commit: String,
    },
    /// Measures how fast images are written; `cargo xtask bench write` builds what it needs and starts it.
    BenchWrite {
        /// Where the raw results go, as JSON.
        #[arg(long)]
        out: PathBuf,
        /// The command to put on record.
        #[arg(long)]
        command: String,
        /// The commit to put on record.
        #[arg(long)]
        commit: String,
    },
    /// Measures thousands of simulated servers; `cargo xtask bench hosts` builds what it needs and starts it.
    BenchHosts {
        /// A hundred hosts, to try it out.
        #[arg(long)]
        quick: bool,
        /// So many hosts only.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        hosts: Option<u32>,
        /// The leader's end only, with so many hosts.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        failover: Option<u32>,
        /// Where the raw results go, as JSON.
        #[arg(long)]
        out: PathBuf,
        /// The command to put on record.
        #[arg(long)]
        command: String,
        /// The commit to put on record.
        #[arg(long)]
        commit: String,
    },
    /// Measures how soon a server boots the image that it is given; `cargo xtask bench provision` builds what it needs and starts it.
    BenchProvision {
        /// Where the raw results go, as JSON.
        #[arg(long)]
        out: PathBuf,
        /// The command to put on record.
        #[arg(long)]
        command: String,
        /// The commit to put on record.
        #[arg(long)]
        commit: String,
    },
    /// Makes the page of `bench-hosts` from its raw results.
    BenchHostsPage {
        /// The raw results.
        #[arg(long)]
        json: PathBuf,
        /// The page.
        #[arg(long)]
        out: PathBuf,
    },
    /// Makes the page of `bench-provision` from its raw results.
    BenchProvisionPage {
        /// The raw results.
        #[arg(long)]
        json: PathBuf,
        /// The page.
        #[arg(long)]
        out: PathBuf,
    },
    /// Makes the page of `bench-write` from its raw results.
    BenchWritePage {
        /// The raw results.
        #[arg(long)]
        json: PathBuf,
        /// The page.
        #[arg(long)]
        out: PathBuf,
    },
    /// Makes the page of a benchmark from its raw results.
    BenchPage {
        /// The raw results.
        #[arg(long)]
        json: PathBuf,
        /// The page.
        #[arg(long)]
        out: PathBuf,
    },
}

fn scale(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    match (0.0..=100.0).contains(&number) {
        true => Ok(number),
        false => Err("from 0 to 100".to_owned()),
    }
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
        Command::Demo {
            once,
            hosts,
            kubeconfig,
        } => {
            let options = demo::Options {
                once,
                hosts: usize::from(hosts),
                kubeconfig: kubeconfig.filter(|path| !path.as_os_str().is_empty()),
            };
            demo::run(options).await
        }
        Command::Fleet {
            hosts,
            first,
            kubeconfig,
            segment,
            address,
            discover,
            namespace,
            model,
            scale,
            fail,
            once,
        } => {
            let options = fleet::Options {
                hosts,
                first,
                kubeconfig: kubeconfig.filter(|path| !path.as_os_str().is_empty()),
                segment,
                address,
                discover,
                namespace,
                model,
                scale,
                failing: fail,
                once,
            };
            fleet::run(options).await
        }
        Command::OsImage {
            init,
            kernel_deb,
            stub_deb,
            out,
            large,
        } => {
            let inputs = Inputs {
                init,
                kernel_deb,
                stub_deb,
            };
            os_image::published::publish(&out, &inputs, large)?;
            Ok(true)
        }
        Command::Bench {
            quick,
            only,
            out,
            command,
            commit,
        } => {
            let options = bench::Options {
                quick,
                only,
                out,
                command,
                commit,
            };
            bench::run(options).await?;
            Ok(true)
        }
        Command::BenchWrite { out, command, commit } => {
            bench::write::run(&out, command, commit).await?;
            Ok(true)
        }
        Command::BenchHosts {
            quick,
            hosts,
            failover,
            out,
            command,
            commit,
        } => {
            let options = bench::hosts::Options {
                quick,
                hosts,
                failover,
                out,
                command,
                commit,
            };
            bench::hosts::run(options).await?;
            Ok(true)
        }
        Command::BenchHostsPage { json, out } => {
            bench::hosts::render_file(&json, &out)?;
            Ok(true)
        }
        Command::BenchProvision { out, command, commit } => {
            bench::provision::run(&out, command, commit).await?;
            Ok(true)
        }
        Command::BenchProvisionPage { json, out } => {
            bench::provision::render_file(&json, &out)?;
            Ok(true)
        }
        Command::BenchWritePage { json, out } => {
            bench::write::render_file(&json, &out)?;
            Ok(true)
        }
        Command::BenchPage { json, out } => {
            bench::render_file(&json, &out)?;
            Ok(true)
        }
    }
}
