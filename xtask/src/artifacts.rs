//! What the demo, the tests and the benchmarks run: built once, kept below `target/`, rebuilt only when their inputs change.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use anyhow::{Context, Result, bail};

use crate::{cargo, command::Cmd, root, setup};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Each profile and Debian's meta package of its kernel.
const KERNELS: [(&str, &str); 2] = [
    ("lab", "linux-image-cloud-amd64"),
    ("server", "linux-image-amd64"),
];

/// Debian's package of the EFI stub.
const STUB: &str = "systemd-boot-efi";

/// Everything, in order, each step saying what it does and how long it may take.
pub(crate) fn all() -> Result<()> {
    setup::install()?;
    // What may be refused comes before what takes long.
    step("kernels and EFI stub: Debian's packages (first time 1 min)", debs)?;
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

fn step(what: &str, build: fn() -> Result<()>) -> Result<()> {
    println!("· {what}");
    let start = Instant::now();
    build()?;
    let seconds = start.elapsed().as_secs_f64();
    if seconds >= 1.0 {
        println!("  {seconds:.0} s");
    }
    Ok(())
}

/// A file below `target/logs` for a step's output.
pub(crate) fn log(name: &str) -> Result<PathBuf> {
    let dir = root().join("target/logs");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir.join(format!("{name}.log")))
}

fn control_plane() -> Result<()> {
    let out = root().join("target/controlplane");
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    Cmd::new("make")
        .dir("deploy/controlplane")
        .args(["--no-print-directory", &format!("OUT={}", out.display())])
        .run_logged(&log("controlplane")?)
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

fn controller() -> Result<()> {
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

fn debs() -> Result<()> {
    package(STUB)?;
    KERNELS.iter().try_for_each(|(_, meta)| choose_kernel(meta))
}

/// Where the name of the package stands that a meta package was found to stand for.
fn chosen(meta: &str) -> PathBuf {
    root().join(format!("target/debs/{meta}.name"))
}

/// Downloads the kernel that a meta package stands for now, and keeps its name.
fn choose_kernel(meta: &str) -> Result<()> {
    let note = chosen(meta);
    let found = dependency(meta).and_then(|name| package(&name).map(|_| name));
    let error = match found {
        Ok(name) => {
            return fs::write(&note, name).with_context(|| format!("writing {}", note.display()));
        }
        Err(error) => error,
    };
    // Without the network, or the lists of packages, what was built before is built again.
    let Ok(former) = fs::read_to_string(&note) else {
        return Err(error);
    };
    eprintln!("· {meta}: what it stands for now cannot be had ({error:#}); {former} is used");
    package(&former).map(drop)
}

/// The kernel that [`debs`] chose.
fn kernel(meta: &str) -> Result<PathBuf> {
    let note = chosen(meta);
    let name = fs::read_to_string(&note).with_context(|| format!("reading {}", note.display()))?;
    package(&name)
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
        .run_logged(&log(&format!("ramdisk-{profile}-{name}"))?)
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
            .run_logged(&log(&format!("os-image-{name}"))?)?;
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
        .run_logged(&log("metal3")?)?;
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

/// The package that a meta package stands for.
fn dependency(meta: &str) -> Result<String> {
    let read = || -> Result<Option<String>> {
        let text = Cmd::new("apt-cache")
            .env("LC_ALL", "C")
            .args(["depends", "--important", meta])
            .output()?;
        Ok(text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned))
    };
    // A fresh container has no package lists yet: then apt-cache fails or finds nothing.
    if let Ok(Some(name)) = read() {
        return Ok(name);
    }
    setup::apt_update()?;
    let advice =
        || format!("find the package behind {meta}; if `apt-get update` was never run, run it as root");
    read().with_context(advice)?.with_context(advice)
}

/// The version of the package that apt would install; none: it knows of none.
fn candidate(name: &str) -> Option<String> {
    let text = Cmd::new("apt-cache")
        .env("LC_ALL", "C")
        .args(["policy", name])
        .output()
        .ok()?;
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// What the name of the package's `.deb` begins with, as `apt-get download` gives it; of any version if none is known.
fn file_prefix(name: &str, version: Option<&str>) -> String {
    match version {
        Some(version) => format!("{name}_{}_", version.replace(':', "%3a")),
        None => format!("{name}_"),
    }
}

/// The path of the package's `.deb` below `target/debs`, of the version that apt knows now, downloaded if it is not there.
fn package(name: &str) -> Result<PathBuf> {
    let dir = root().join("target/debs");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let find = |version: Option<&str>| -> Result<Option<PathBuf>> {
        let prefix = file_prefix(name, version);
        let mut found: Vec<PathBuf> = fs::read_dir(&dir)
            .with_context(|| format!("listing {}", dir.display()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                path.file_name()
                    .is_some_and(|file| file.to_string_lossy().starts_with(&prefix))
            })
            .collect();
        found.sort();
        Ok(found.pop())
    };
    if let Some(path) = find(candidate(name).as_deref())? {
        return Ok(path);
    }
    // Elsewhere first: what was interrupted must not pass for the package.
    let part = dir.join("part");
    let download = || -> Result<()> {
        if part.exists() {
            fs::remove_dir_all(&part).with_context(|| format!("emptying {}", part.display()))?;
        }
        fs::create_dir_all(&part).with_context(|| format!("creating {}", part.display()))?;
        Cmd::new("apt-get")
            .dir(&part)
            .args(["download", "--quiet=2", name])
            .run_logged(&log("download")?)
    };
    if download().is_err() {
        let again = setup::apt_update().and_then(|()| download());
        if let Err(error) = again {
            // Without the network, what was built before is built again.
            let Some(former) = find(None)? else {
                return Err(error).context("if `apt-get update` was never run, run it as root");
            };
            eprintln!(
                "· {name}: a newer version cannot be downloaded; {} is used",
                former.display()
            );
            return Ok(former);
        }
    }
    for entry in fs::read_dir(&part).with_context(|| format!("listing {}", part.display()))? {
        let entry = entry.with_context(|| format!("listing {}", part.display()))?;
        let whole = dir.join(entry.file_name());
        fs::rename(entry.path(), &whole).with_context(|| format!("moving to {}", whole.display()))?;
        // It comes with the time of its making, and what was made of another version may be younger.
        let file = fs::File::options().append(true).open(&whole);
        file.and_then(|file| file.set_modified(SystemTime::now()))
            .with_context(|| format!("setting the time of {}", whole.display()))?;
    }
    match find(candidate(name).as_deref())? {
        Some(path) => Ok(path),
        None => bail!("apt-get download {name} left no file in {}", part.display()),
    }
}

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
    step(
        "controller and lab, which looks at the arguments (first time 4 min)",
        controller,
    )?;
    lab("debug")
        .dir(from)
        .arg("demo")
        .args(words)
        .arg("--check")
        .run()?;
    all()
}

/// Becomes the demo, for somebody who is at `from`: paths of theirs begin there.
pub(crate) fn demo(words: &[String], from: &Path) -> Result<()> {
    lab("debug").dir(from).arg("demo").args(words).replace()
}

/// Becomes a command of the lab that people run.
pub(crate) fn run_lab(words: &[String], from: &Path) -> Result<()> {
    if words.first().map(String::as_str) != Some("fleet") {
        bail!("there is one command: cargo xtask lab fleet [--hosts N] [--help]");
    }
    if ask_for_help(words) {
        lab_alone()?;
        return lab("debug").args(words).replace();
    }
    // With somebody's Segment there are no networks and no ramdisks.
    let is_guest = words.iter().any(|word| word.starts_with("--segment"));
    if !is_guest {
        setup::may_make_networks()?;
    }
    step("simulated servers, release build (first time 5 min)", || {
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
    lab("release").dir(from).args(words).arg("--check").run()?;
    if !is_guest {
        all()?;
        release()?;
    }
    lab("release").dir(from).args(words).replace()
}

/// The lab, with what it runs, of the build `debug` or `release`.
pub(crate) fn lab(build: &str) -> Cmd {
    let at = |path: &str| root().join("target").join(path);
    Cmd::new(at(build).join("muster-lab"))
        .env("MUSTER_CONTROLLER", at(build).join("muster-controller"))
        .env("MUSTER_CONTROLPLANE", at("controlplane/controlplane"))
        .env("MUSTER_BOOT_DIR", at("boot"))
        .env("MUSTER_OS_IMAGES", at("os"))
        // As in `cargo()`: what it finds by itself lies there, too.
        .env("CARGO_TARGET_DIR", root().join("target"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_looked_for_by_its_version() {
        assert_eq!(file_prefix("ipxe", Some("1.0.0+git-1")), "ipxe_1.0.0+git-1_");
        assert_eq!(file_prefix("systemd", Some("1:252.1-1")), "systemd_1%3a252.1-1_");
        assert_eq!(file_prefix("ipxe", None), "ipxe_");
    }
}
