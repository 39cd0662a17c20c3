//! What the demo, the tests and the benchmarks run: built once, kept below `target/`, rebuilt only when their inputs change.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result};

use crate::{
    cargo,
    command::Cmd,
    debs::{self, KERNELS, STUB, kernel, package},
    root, setup,
};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Everything, in order, each step saying what it does and how long it may take.
pub(crate) fn all() -> Result<()> {
    setup::install()?;
    // What may be refused comes before what takes long.
    step(
        "kernels and EFI stub: Debian's packages (first time 1 min)",
        debs::for_boot,
    )?;
    step(
        "control plane: API server and kubectl (first time 6 to 10 min, then cached)",
        control_plane,
    )?;
    step("agent: static binary (first time 2 min)", agent)?;
    step("controller and lab (first time 4 min)", controller)?;
    step("ramdisks: lab and server (first time 2 min)", ramdisks)?;
    step(
        "operating system and its disk images (first time 1 min)",
        os_images,
    )
}

/// A step of building, which says what it does and how long it took.
pub(crate) fn step(what: &str, build: fn() -> Result<()>) -> Result<()> {
    println!("· {what}");
    let start = Instant::now();
    build()?;
    let seconds = start.elapsed().as_secs_f64();
    if seconds >= 1.0 {
        println!("  {seconds:.0} s");
    }
    Ok(())
}

fn control_plane() -> Result<()> {
    let out = root().join("target/controlplane");
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    Cmd::new("make")
        .dir("deploy/controlplane")
        .args(["--no-print-directory", &format!("OUT={}", out.display())])
        .run_logged("controlplane")
}

fn agent() -> Result<()> {
    static_binary("muster-agent", &[])
}

/// Static, so that it runs as the only program of its system.
fn static_binary(package: &str, what: &[&str]) -> Result<()> {
    cargo()
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static",
        )
        .args([
            "build",
            "--quiet",
            "--profile",
            "agent",
            "--target",
            TARGET,
            "--package",
            package,
        ])
        .args(what)
        .run()
}

/// Controller, lab, and what makes ramdisks.
pub(crate) fn controller() -> Result<()> {
    cargo()
        .args([
            "build",
            "--quiet",
            "--package",
            "muster-controller",
            "--package",
            "muster-ramdisk",
            "--package",
            "muster-tests",
        ])
        .run()
}

fn ramdisks() -> Result<()> {
    let agent = root().join(format!("target/{TARGET}/agent/muster-agent"));
    let out = root().join("target/boot");
    KERNELS
        .iter()
        .try_for_each(|(profile, meta)| ramdisk(profile, meta, &agent, &out))
}

/// Kernel and EFI stub come from Debian's packages, unpacked and not installed.
fn ramdisk(profile: &str, meta: &str, agent: &Path, out: &Path) -> Result<()> {
    let stub = package(STUB)?;
    let kernel = kernel(meta)?;
    let inputs = [
        kernel.as_path(),
        stub.as_path(),
        agent,
        Path::new("target/debug/muster-ramdisk"),
    ];
    if is_newer(&out.join(profile).join("current"), &inputs) {
        return Ok(());
    }
    let name = agent.file_name().unwrap_or_default().to_string_lossy();
    Cmd::new("target/debug/muster-ramdisk")
        .args(["build", "--profile", profile, "--agent"])
        .arg(agent)
        .arg("--kernel-deb")
        .arg(&kernel)
        .arg("--stub-deb")
        .arg(&stub)
        .arg("--out")
        .arg(out)
        .run_logged(&format!("ramdisk-{profile}-{name}"))
}

/// What the benchmark of writing runs: the lab, and the agent's example, built as the agent is.
pub(crate) fn bench_write() -> Result<()> {
    step(
        "agent's example, built as the agent is (first time 2 min)",
        || static_binary("muster-agent", &["--example", "write"]),
    )?;
    step("controller and lab (first time 4 min)", controller)
}

/// With each of the two kernels; the large one for the benchmark only with the smaller kernel.
fn os_images() -> Result<()> {
    static_binary("muster-os", &[])?;
    let stub = package(STUB)?;
    for ((_, meta), (name, options)) in KERNELS.iter().zip([("cloud", &["--large"][..]), ("full", &[])]) {
        Cmd::new("target/debug/muster-lab")
            .arg("os-image")
            .arg("--init")
            .arg(root().join(format!("target/{TARGET}/agent/muster-os")))
            .arg("--kernel-deb")
            .arg(kernel(meta)?)
            .arg("--stub-deb")
            .arg(&stub)
            .arg("--out")
            .arg(root().join("target/os").join(name))
            .args(options)
            .run_logged(&format!("os-image-{name}"))?;
    }
    Ok(())
}

/// Controller and lab as they are released, for what is measured and for thousands of simulated servers.
pub(crate) fn release() -> Result<()> {
    step("controller and lab, release build (first time 6 min)", || {
        cargo()
            .args(["build", "--quiet", "--release"])
            .args(["--package", "muster-controller", "--package", "muster-tests"])
            .run()
    })
}

/// What only the benchmark runs: nginx, and a ramdisk whose `/init` does nothing.
pub(crate) fn bench() -> Result<()> {
    release()?;
    step("nginx: Debian's package, unpacked and not installed", nginx)?;
    step("ramdisk with an empty /init", empty_ramdisk)
}

/// The operator that Muster takes the place of, for the benchmark of hosts and for `--full`, unless `MUSTER_METAL3` names another one.
pub(crate) fn metal3() -> Result<()> {
    if std::env::var_os("MUSTER_METAL3").is_some() {
        return Ok(());
    }
    step("baremetal-operator (first time 3 to 6 min)", baremetal_operator)
}

/// From its Go module, with the kinds that it comes with.
fn baremetal_operator() -> Result<()> {
    const MODULE: &str = "github.com/metal3-io/baremetal-operator";
    let go = |arguments: &[&str]| Cmd::new("go").dir("tests/baremetal-operator").args(arguments);
    let out = root().join("target/metal3");
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    go(&["build", "-trimpath", "-o"])
        .env("CGO_ENABLED", "0")
        .arg(out.join("baremetal-operator"))
        .arg(MODULE)
        .run_logged("metal3")?;
    let kinds = out.join("crds");
    // Another version may have had kinds that this one has not.
    if kinds.exists() {
        fs::remove_dir_all(&kinds).with_context(|| format!("removing {}", kinds.display()))?;
    }
    fs::create_dir(&kinds).with_context(|| format!("creating {}", kinds.display()))?;
    let module = go(&["list", "-m", "-f", "{{.Dir}}", MODULE]).output()?;
    let theirs = Path::new(module.trim()).join("config/base/crds/bases");
    for kind in fs::read_dir(&theirs).with_context(|| format!("listing {}", theirs.display()))? {
        let kind = kind.with_context(|| format!("listing {}", theirs.display()))?;
        // Written anew: the module's own files are read-only, and so would be their copies.
        let text = fs::read(kind.path()).with_context(|| format!("reading {}", kind.path().display()))?;
        let copy = kinds.join(kind.file_name());
        fs::write(&copy, text).with_context(|| format!("writing {}", copy.display()))?;
    }
    Ok(())
}

/// Unpacked, so that no service is started.
fn nginx() -> Result<()> {
    let deb = package("nginx")?;
    let out = root().join("target/bench/nginx");
    if is_newer(&out.join("usr/sbin/nginx"), &[]) {
        return Ok(());
    }
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    Cmd::new("dpkg").arg("--extract").arg(deb).arg(out).run()
}

fn empty_ramdisk() -> Result<()> {
    let source = Path::new("tests/bench/empty-init.rs");
    let init = root().join("target/bench/empty-init");
    if !is_newer(&init, &[source]) {
        Cmd::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into()))
            .args(["--edition", "2024", "--target", TARGET])
            .args(["-C", "opt-level=z", "-C", "panic=abort", "-C", "strip=symbols"])
            .args([
                "-C",
                "target-feature=+crt-static",
                "-C",
                "relocation-model=static",
            ])
            .arg(source)
            .arg("-o")
            .arg(&init)
            .run()?;
    }
    let [(profile, meta), _] = KERNELS;
    ramdisk(profile, meta, &init, &root().join("target/bench/boot"))
}

/// True if `made` is there and younger than each of `inputs`.
fn is_newer(made: &Path, inputs: &[&Path]) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let Some(made) = time(made) else { return false };
    inputs
        .iter()
        .all(|input| time(input).is_some_and(|input| input <= made))
}
