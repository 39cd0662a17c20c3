//! `cargo xtask bench`: builds what is measured as it is released, and starts the lab's benchmark.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{artifacts, codegen, command::Cmd, root, setup};

/// Raw results, committed; the page `docs/benchmarks.md` is made from them.
pub(crate) const RESULTS: &str = "docs/benchmarks/discovery.json";
/// Those of writing, for `docs/benchmarks-write.md`.
pub(crate) const WRITE_RESULTS: &str = "docs/benchmarks/write.json";
/// Those of thousands of hosts, for `docs/benchmarks-hosts.md`.
pub(crate) const HOSTS_RESULTS: &str = "docs/benchmarks/hosts.json";
/// Results that are not to be committed: of `--quick`, `--only` and `--hosts`.
const TRIED: &str = "target/bench/discovery.json";
const HOSTS_TRIED: &str = "target/bench/hosts.json";

/// Measures; `words` are the benchmark's name and its options.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let options = match words.split_first().map(|(name, rest)| (name.as_str(), rest)) {
        Some(("discovery", options)) => options,
        Some(("write", [])) => return write(words),
        Some(("hosts", options)) => return hosts(words, options),
        _ => bail!(
            "there are three benchmarks: cargo xtask bench discovery [--quick] [--only ROW], cargo xtask bench write, and \
             cargo xtask bench hosts [--quick] [--hosts N]"
        ),
    };
    artifacts::all()?;
    setup::install_for_bench()?;
    artifacts::bench()?;
    let out = if options.is_empty() { RESULTS } else { TRIED };
    let at = |path: &str| root().join(Path::new("target").join(path));
    println!("· measuring (about 25 min; nothing else should run meanwhile)");
    Cmd::new("target/release/muster-lab")
        .env("MUSTER_CONTROLLER", at("release/muster-controller"))
        .env("MUSTER_CONTROLPLANE", at("controlplane/controlplane"))
        .env("MUSTER_BOOT_DIR", at("boot"))
        .env("MUSTER_EMPTY_BOOT_DIR", at("bench/boot"))
        .env("MUSTER_NGINX", at("bench/nginx/usr/sbin/nginx"))
        .args(["bench", "--out", out, "--commit", &commit()?])
        .args(["--command", &["cargo xtask bench", &words.join(" ")].join(" ")])
        .args(options)
        .run()?;
    if out == RESULTS {
        codegen::write()?;
    }
    Ok(())
}

/// Measures how fast images are written. Needs root, for a loop device.
fn write(words: &[String]) -> Result<()> {
    setup::install()?;
    setup::install_for_bench()?;
    artifacts::bench_write()?;
    println!("· measuring (about 2 min; nothing else should run meanwhile)");
    Cmd::new("target/debug/muster-lab")
        .args(["bench-write", "--out", WRITE_RESULTS, "--commit", &commit()?])
        .args(["--command", &["cargo xtask bench", &words.join(" ")].join(" ")])
        .run()?;
    codegen::write()
}

/// Measures thousands of simulated servers. Needs root, for their network.
fn hosts(words: &[String], options: &[String]) -> Result<()> {
    artifacts::all()?;
    artifacts::release()?;
    let out = if options.is_empty() {
        HOSTS_RESULTS
    } else {
        HOSTS_TRIED
    };
    println!("· measuring (all: about 50 min; --quick: 5 min; nothing else should run meanwhile)");
    artifacts::lab("release")
        .args(["bench-hosts", "--out", out, "--commit", &commit()?])
        .args(["--command", &["cargo xtask bench", &words.join(" ")].join(" ")])
        .args(options)
        .run()?;
    if out == HOSTS_RESULTS {
        codegen::write()?;
    }
    Ok(())
}

/// What is measured, and whether it differs from what is committed.
fn commit() -> Result<String> {
    let commit = Cmd::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()?;
    let changes = Cmd::new("git")
        .args(["status", "--porcelain", "--untracked-files=no"])
        .output()?;
    let changed = if changes.trim().is_empty() {
        ""
    } else {
        ", with uncommitted changes"
    };
    Ok(format!("{}{changed}", commit.trim()))
}
