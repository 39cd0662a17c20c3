//! `cargo xtask bench`: builds what is measured as it is released, and starts the lab's benchmark.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{
    artifacts,
    codegen::{self, DISCOVERY_RESULTS, HOSTS_RESULTS, PROVISION_RESULTS, WRITE_RESULTS},
    command::Cmd,
    lab, root, setup,
};

/// Results that are not to be committed: of `--quick`, `--only`, `--hosts` and `--failover`.
const TRIED: &str = "target/bench/discovery.json";
const HOSTS_TRIED: &str = "target/bench/hosts.json";

/// Measures; `words` are the benchmark's name and its options.
pub(crate) fn run(words: &[String]) -> Result<()> {
    // The lab itself would refuse others only once everything is built.
    let known = words
        .split_first()
        .filter(|(name, options)| is_known(name, options));
    let Some((name, options)) = known else {
        bail!(
            "the benchmarks are: cargo xtask bench discovery [--quick] [--only ROW], cargo xtask bench write, \
             cargo xtask bench hosts [--quick] [--hosts N] [--failover N], and cargo xtask bench provision"
        );
    };
    setup::may_make_networks()?;
    match name.as_str() {
        "discovery" => discovery(words, options),
        "write" => write(words),
        "hosts" => hosts(words, options),
        _ => provision(words),
    }
}

/// Whether there is a benchmark `name` that has such options. What their values may be only the lab knows.
fn is_known(name: &str, options: &[String]) -> bool {
    let with_value: &[&str] = match name {
        "discovery" => &["--only"],
        "hosts" => &["--hosts", "--failover"],
        "write" | "provision" => return options.is_empty(),
        _ => return false,
    };
    let words: Vec<&str> = options.iter().flat_map(|word| word.split('=')).collect();
    let mut rest = words.as_slice();
    loop {
        rest = match rest {
            [] => return true,
            ["--quick", after @ ..] => after,
            [option, value, after @ ..] if with_value.contains(option) && !value.starts_with('-') => after,
            _ => return false,
        };
    }
}

/// From power-on to BareMetalHost, and what serves that.
fn discovery(words: &[String], options: &[String]) -> Result<()> {
    artifacts::all()?;
    setup::install_for_bench()?;
    artifacts::bench()?;
    let at = |path: &str| root().join(Path::new("target").join(path));
    let lab = lab::built("release")
        .env("MUSTER_EMPTY_BOOT_DIR", at("bench/boot"))
        .env("MUSTER_NGINX", at("bench/nginx/usr/sbin/nginx"));
    let out = if options.is_empty() {
        DISCOVERY_RESULTS
    } else {
        TRIED
    };
    measure("about 25 min", lab, "bench", words, options, out)
}

/// How fast images are written. Needs root, for a loop device.
fn write(words: &[String]) -> Result<()> {
    setup::install()?;
    setup::install_for_bench()?;
    artifacts::bench_write()?;
    measure(
        "about 2 min",
        lab::built("debug"),
        "bench-write",
        words,
        &[],
        WRITE_RESULTS,
    )
}

/// Thousands of simulated servers, and baremetal-operator with a thousand hosts. Needs root, for their network.
fn hosts(words: &[String], options: &[String]) -> Result<()> {
    artifacts::all()?;
    artifacts::release()?;
    let has = |option: &str| options.iter().any(|word| word.split('=').next() == Some(option));
    if has("--hosts") || !has("--failover") {
        artifacts::metal3()?;
    }
    let out = if options.is_empty() {
        HOSTS_RESULTS
    } else {
        HOSTS_TRIED
    };
    let takes = "all: about 55 min; --quick: 6 min";
    measure(takes, lab::built("release"), "bench-hosts", words, options, out)
}

/// How soon a server boots the image that it is given in-band.
fn provision(words: &[String]) -> Result<()> {
    artifacts::all()?;
    artifacts::release()?;
    let lab = lab::built("release");
    measure(
        "about 6 min",
        lab,
        "bench-provision",
        words,
        &[],
        PROVISION_RESULTS,
    )
}

/// Runs the lab's `word`; what is to be committed becomes a page at once.
fn measure(takes: &str, lab: Cmd, word: &str, words: &[String], options: &[String], out: &str) -> Result<()> {
    println!("· measuring ({takes}; nothing else should run meanwhile)");
    lab.args([word, "--out", out, "--commit", &commit()?])
        .args(["--command", &["cargo xtask bench", &words.join(" ")].join(" ")])
        .args(options)
        .run()?;
    if out.starts_with("docs/") {
        codegen::write()?;
    }
    Ok(())
}

/// What is measured, and whether it differs from what is committed; pages are no code, and another benchmark may just have written one.
fn commit() -> Result<String> {
    let commit = Cmd::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()?;
    let changes = Cmd::new("git")
        .args([
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ".",
            ":!docs",
        ])
        .output()?;
    let changed = if changes.trim().is_empty() {
        ""
    } else {
        ", with uncommitted changes"
    };
    Ok(format!("{}{changed}", commit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_benchmark_knows_is_built_for() {
        for (words, known) in [
            ("discovery", true),
            ("discovery --quick --only bios", true),
            ("discovery --only=bios", true),
            ("discovery --only", false),
            ("discovery bios", false),
            ("discovery --hosts 5", false),
            ("hosts --hosts 5 --failover 5", true),
            ("hosts --help", false),
            ("write", true),
            ("write --quick", false),
            ("writing", false),
        ] {
            let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
            assert_eq!(is_known(&words[0], &words[1..]), known, "{words:?}");
        }
    }
}
