//! The controller's binary.

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use muster_controller::{
    args::{Cli, Command, LogFormat},
    manifests, wire,
};
use muster_proto::Chain;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let Cli { command, run } = Cli::parse();
    log(run.log_format);
    let outcome = match command {
        Some(Command::Manifests { which, out }) => manifests::write(which, &out).map_err(anyhow::Error::from),
        None => serve(run),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", Chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// The client logs every failed request as an error; whoever made the request says so, too, and what comes of it.
const LOG: &str = "info,kube_client=off";

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("MUSTER_LOG").unwrap_or_else(|_| EnvFilter::new(LOG));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}

fn serve(args: muster_controller::args::RunArgs) -> anyhow::Result<()> {
    // One provider for the whole process, chosen here and not by whichever crate asks first.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("another cryptography provider is installed already");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(wire::run(args));
    // A blocking call in flight must not hold up the end.
    runtime.shutdown_background();
    Ok(outcome?)
}
