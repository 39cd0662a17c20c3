//! `cargo xtask`: the one front door for people.

#![forbid(unsafe_code)]

mod artifacts;
mod bench;
mod ci;
mod codegen;
mod command;
mod crates;
mod debs;
mod dist;
mod lab;
mod setup;
mod tidy;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use command::Cmd;

const HELP: &str = "\
cargo xtask <command>

  demo      discover two servers that nobody has described: [--once] [--hosts N] [--kubeconfig FILE] [--help]
  lab       simulated servers, thousands if wanted, against any cluster: fleet [--hosts N] [--help]
  test      run all tests: [--full] [arguments for cargo test]
  ci        what CI runs: formatting, clippy, tidy, generated files, licences, all tests
  bench     measure and write docs/benchmarks*.md: discovery [--quick] [--only ROW] (30 min), write (4 min, root),
            hosts [--quick] [--hosts N] [--failover N] (1 h, root; builds baremetal-operator), or provision (6 min)
  build     make what demo and test need: control plane, agent, ramdisks, controller
  dist      make a release below target/dist: binaries, ramdisks, manifests, container image, one bundle
  tidy      check the house rules that no compiler checks
  codegen   write the generated files (CRDs, roles, benchmarks); --check compares only
  setup     install missing Debian packages, or print which are missing
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(command) = args.next() else {
        print!("{HELP}");
        return Ok(());
    };
    let rest: Vec<String> = args.collect();
    let from = std::env::current_dir().context("finding the current directory")?;
    std::env::set_current_dir(root()).context("entering the repository")?;
    match command.as_str() {
        "help" | "--help" | "-h" => print!("{HELP}"),
        "setup" => setup::install()?,
        "build" => artifacts::all()?,
        "demo" => {
            lab::for_demo(&rest, &from)?;
            lab::demo(&rest, &from)?;
        }
        "lab" => lab::run(&rest, &from)?,
        "test" => ci::test(&rest)?,
        "ci" => ci::run()?,
        "bench" => bench::run(&rest)?,
        "dist" => dist::run()?,
        "tidy" => tidy::run(&root())?,
        "codegen" if rest == ["--check"] => codegen::check()?,
        "codegen" => codegen::write()?,
        unknown => bail!("there is no command {unknown:?}; `cargo xtask` lists them"),
    }
    Ok(())
}

/// The repository's top directory.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the repository")
        .to_owned()
}

/// `cargo`, the one that runs us. What it builds lies where the rest of us looks for it, wherever else people have it.
fn cargo() -> Cmd {
    Cmd::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .env("CARGO_TARGET_DIR", root().join("target"))
        // With it everything would lie one directory deeper.
        .env_remove("CARGO_BUILD_TARGET")
}
