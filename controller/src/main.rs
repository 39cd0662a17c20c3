//! The controller's binary.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, error::ErrorKind};
use muster_controller::{
    args::{Cli, Command, LogFormat},
    manifests,
    run::{self, OpenFiles},
};
use muster_proto::Chain;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tikv_jemallocator::Jemalloc;
use tracing_subscriber::{EnvFilter, filter::ParseError};

/// The system's takes longer and longer for the gaps between what thousands of hosts keep (ADR 11). How it is tuned stands in
/// `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let Cli { command, run } = Cli::parse();
    if command.is_none()
        && let Err(why) = run.check()
    {
        Cli::command().error(ErrorKind::ArgumentConflict, why).exit();
    }
    log(run.log_format);
    let outcome = match command {
        Some(Command::Manifests { which, out }) => manifests::write(which, &out).map_err(anyhow::Error::from),
        None => serve(run),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            fatal(&error, &mut std::io::stderr());
            ExitCode::FAILURE
        }
    }
}

/// Says why the process ends: in the log, and where MUSTER_LOG leaves that out, on `terminal`.
fn fatal(error: &anyhow::Error, terminal: &mut impl Write) {
    let why = format!(
        "the controller exits, because this failed: {}",
        Chain(error.as_ref())
    );
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{why}");
    } else {
        // Nobody is left to tell that it cannot be written.
        let _ = writeln!(terminal, "muster-controller: {why}");
    }
}

/// The client logs every failed request as an error, and its watches what is forbidden; whoever made the request says so, too, and what
/// comes of it. An answer that it cannot read it logs whole, whatever that contains. Each unless somebody names it.
const QUIET: [(&str, &str); 2] = [
    ("kube_client", "kube_client=off"),
    ("kube_runtime", "kube_runtime::watcher=error"),
];

/// What is logged unless something else is wanted.
const USUAL: &str = "info";

/// What is logged where this is `wanted`; where that cannot be understood, the usual, and what is wrong with it.
fn filter(wanted: &str) -> (EnvFilter, Option<ParseError>) {
    match EnvFilter::try_new(quietened(wanted)) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(quietened(USUAL)), Some(error)),
    }
}

fn quietened(wanted: &str) -> String {
    let quiet = QUIET.iter().filter(|(name, _)| !wanted.contains(*name));
    let mut all = wanted.to_owned();
    for (_, directive) in quiet {
        all.push(',');
        all.push_str(directive);
    }
    all
}

fn log(format: LogFormat) {
    let wanted = std::env::var("MUSTER_LOG")
        .ok()
        .filter(|wanted| !wanted.is_empty());
    let wanted = wanted.unwrap_or_else(|| USUAL.to_owned());
    let (filter, wrong) = filter(&wanted);
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    if let Some(error) = wrong {
        tracing::warn!(%error, wanted, "MUSTER_LOG is not a valid filter; `{USUAL}` is used instead");
    }
}

/// Lets this process have as many files open as the system allows it, as Go's programs do: each agent is a connection. The usual
/// soft limit of 1024 is for programs that use `select(2)`.
fn allow_files(wanted: &OpenFiles) {
    let allowed = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most).map(|()| most));
    match allowed {
        Ok(most) => {
            if let Some(shortage) = wanted.shortage(most) {
                tracing::warn!("{shortage}");
            }
        }
        Err(error) => tracing::warn!(%error, "the limit of open files could not be raised"),
    }
}

fn serve(args: muster_controller::args::RunArgs) -> anyhow::Result<()> {
    allow_files(&OpenFiles::of(&args));
    // One provider for the whole process, chosen here and not by whichever crate asks first.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("another cryptography provider is installed already");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(run::run(args));
    // A blocking call in flight must not hold up the end.
    runtime.shutdown_background();
    Ok(outcome?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_says_twice_is_not_logged_unless_it_is_named() {
        let usual = filter(USUAL).0.to_string();
        assert!(
            usual.contains("kube_client=off") && usual.contains("kube_runtime::watcher=error"),
            "{usual}"
        );
        let named = filter("info,kube_runtime=debug").0.to_string();
        assert!(
            named.contains("kube_client=off") && !named.contains("watcher"),
            "{named}"
        );
    }

    #[test]
    fn why_the_process_ends_is_told_whatever_is_logged() {
        let error = anyhow::anyhow!("no such file");
        for (wanted, told) in [("off", true), ("info", false)] {
            let lines = tracing_subscriber::fmt()
                .with_env_filter(filter(wanted).0)
                .with_writer(std::io::sink)
                .finish();
            let mut terminal = Vec::new();
            tracing::subscriber::with_default(lines, || fatal(&error, &mut terminal));
            let text = String::from_utf8(terminal).unwrap();
            assert_eq!(text.contains("no such file"), told, "{wanted}: {text}");
        }
    }

    #[test]
    fn a_filter_that_cannot_be_understood_is_told_and_the_usual_is_logged() {
        let (usual, none) = filter(USUAL);
        assert!(none.is_none());
        assert!(filter("info,muster_controller=debug").1.is_none());
        let (instead, wrong) = filter("info,muster_controller=debgu");
        assert!(wrong.is_some());
        assert_eq!(instead.to_string(), usual.to_string());
    }
}
