//! The lab from the command line.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use muster_tests::demo;

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
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Demo {
        once,
        hosts,
        kubeconfig,
    } = Cli::parse().command;
    let options = demo::Options {
        once,
        hosts: usize::from(hosts),
        kubeconfig: kubeconfig.filter(|path| !path.as_os_str().is_empty()),
    };
    match demo::run(options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("muster-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
