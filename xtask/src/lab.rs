//! `cargo xtask demo` and `cargo xtask lab`: the lab as people run it, with what it needs built before.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{artifacts, cargo, command::Cmd, root, setup};

/// True if these words ask only what words there are.
fn ask_for_help(words: &[String]) -> bool {
    words.iter().any(|word| word == "--help" || word == "-h")
}

/// The lab alone, for what it says of itself.
fn lab_alone() -> Result<()> {
    cargo()
        .args(["build", "--quiet", "-p", "muster-tests", "--bin", "muster-lab"])
        .run()
}

/// Builds what [`demo`] runs; if that only shows its help, no more than that needs.
pub(crate) fn for_demo(words: &[String], from: &Path) -> Result<()> {
    if ask_for_help(words) {
        return lab_alone();
    }
    setup::may_make_networks()?;
    // What cannot work is told before the rest is built. The lab is built with all that it is built with below, or its dependencies
    // might be built twice.
    artifacts::step(
        "controller and lab, which checks the arguments (first time 4 min)",
        artifacts::controller,
    )?;
    built("debug")
        .dir(from)
        .arg("demo")
        .args(words)
        .arg("--check")
        .run()?;
    artifacts::all()
}

/// Becomes the demo, for somebody who is at `from`: paths of theirs begin there.
pub(crate) fn demo(words: &[String], from: &Path) -> Result<()> {
    built("debug").dir(from).arg("demo").args(words).replace()
}

/// Becomes a command of the lab that people run.
pub(crate) fn run(words: &[String], from: &Path) -> Result<()> {
    if words.first().map(String::as_str) != Some("fleet") {
        bail!("the only command is: cargo xtask lab fleet [--hosts N] [--help]");
    }
    if ask_for_help(words) {
        lab_alone()?;
        return built("debug").args(words).replace();
    }
    // With somebody's Segment there are no networks and no ramdisks.
    let is_guest = words.iter().any(|word| word.starts_with("--segment"));
    if !is_guest {
        setup::may_make_networks()?;
    }
    artifacts::step("simulated servers, release build (first time 5 min)", || {
        cargo()
            .args([
                "build",
                "--quiet",
                "--release",
                "-p",
                "muster-tests",
                "--bin",
                "muster-lab",
            ])
            .run()
    })?;
    // What cannot work is told before the rest is built.
    built("release").dir(from).args(words).arg("--check").run()?;
    if !is_guest {
        artifacts::all()?;
        artifacts::release()?;
    }
    built("release").dir(from).args(words).replace()
}

/// The lab, with what it runs, of the build `debug` or `release`.
pub(crate) fn built(build: &str) -> Cmd {
    let at = |path: &str| root().join("target").join(path);
    Cmd::new(at(build).join("muster-lab"))
        .env("MUSTER_CONTROLLER", at(build).join("muster-controller"))
        .env("MUSTER_CONTROLPLANE", at("controlplane/controlplane"))
        .env("MUSTER_BOOT_DIR", at("boot"))
        .env("MUSTER_OS_IMAGES", at("os"))
        // As in `cargo()`: what it finds by itself lies there, too.
        .env("CARGO_TARGET_DIR", root().join("target"))
}
