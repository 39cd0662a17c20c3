//! What CI runs, and the tests.

use std::{path::Path, time::Instant};

use anyhow::Result;

use crate::{artifacts, cargo, codegen, command::Cmd, dist, root, setup, tidy};

type Step = fn() -> Result<()>;

/// Where property tests start in CI: the same commit gets the same verdict each time. `cargo xtask test` starts anywhere, and so
/// looks further.
const SEED: &str = "20261126";

/// One that this compiler builds; a later one may want a later compiler.
const CARGO_DENY: &str = "cargo-deny@0.20.2";

/// Everything that must hold before a change lands. Tests come last, so that the closing lines are theirs.
pub(crate) fn run() -> Result<()> {
    let steps: &[(&str, Step)] = &[
        ("Debian packages", setup::install),
        ("network namespaces", setup::may_make_networks),
        ("formatting", || cargo().args(["fmt", "--all", "--check"]).run()),
        ("house rules", || tidy::run(&root())),
        ("clippy, warnings denied", clippy),
        ("generated files", codegen::check),
        ("licences, bans and sources of dependencies", licences),
        ("tests", || cargo_test(&[], Some(SEED))),
    ];
    for (what, step) in steps {
        println!("== {what}");
        let start = Instant::now();
        step()?;
        println!("== {what}: {:.0} s", start.elapsed().as_secs_f64());
    }
    println!("steps: {} passed, 0 failed", steps.len());
    Ok(())
}

fn clippy() -> Result<()> {
    cargo()
        .args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ])
        .run()
}

/// The advisory database comes from outside and is checked elsewhere: this must pass without a network.
fn licences() -> Result<()> {
    let tools = root().join("target/tools").join(CARGO_DENY);
    if !tools.join("bin/cargo-deny").exists() {
        println!("building {CARGO_DENY} (about 2 min)");
        cargo()
            // Its own speed is no matter here: it runs for a second.
            .args(["install", "--quiet", "--locked", "--debug", CARGO_DENY, "--root"])
            .arg(&tools)
            .run_logged("cargo-deny")?;
    }
    Cmd::new(tools.join("bin/cargo-deny"))
        .args(["--log-level", "error", "check", "bans", "licenses", "sources"])
        .run()
}

/// Builds what the tests run and runs them all.
pub(crate) fn test(words: &[String]) -> Result<()> {
    let names_the_lab = words.iter().any(|word| word.ends_with("muster-tests"));
    if names_the_lab || words.iter().all(|word| word == "--full") {
        setup::may_make_networks()?;
    }
    cargo_test(words, None)
}

fn cargo_test(words: &[String], seed: Option<&str>) -> Result<()> {
    artifacts::all()?;
    setup::install_for_tests()?;
    let full = words.iter().any(|word| word == "--full");
    if full {
        artifacts::metal3()?;
        if std::env::var_os("MUSTER_RELEASE").is_none() {
            dist::run()?;
        }
    }
    let one = |word: &String| word.starts_with("--package") || word.starts_with("-p");
    let all = (!words.iter().any(one)).then_some("--workspace");
    let words = words.iter().filter(|word| *word != "--full");
    let at = |path: &str| root().join(Path::new("target").join(path));
    let mut command = cargo()
        // Nothing is tried on the cluster that somebody works with.
        .env_remove("KUBECONFIG")
        .env("MUSTER_CONTROLLER", at("debug/muster-controller"))
        .env("MUSTER_CONTROLPLANE", at("controlplane/controlplane"))
        .env("MUSTER_BOOT_DIR", at("boot"))
        .env("MUSTER_OS_IMAGES", at("os"));
    if full {
        command = command.env("MUSTER_FULL", "1");
        if std::env::var_os("PROPTEST_CASES").is_none() {
            command = command.env("PROPTEST_CASES", "4000");
        }
    }
    if let Some(seed) = seed {
        command = command.env("PROPTEST_RNG_SEED", seed);
    }
    command.arg("test").args(all).args(words).run()
}
