//! Where the lab finds what others built. Every place can be set by an environment variable.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// The workspace's root: the lab always runs from the tree that it was built from.
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// `deploy/`, or `MUSTER_DEPLOY`.
pub fn deploy() -> PathBuf {
    env::var_os("MUSTER_DEPLOY").map_or_else(|| workspace().join("deploy"), PathBuf::from)
}

/// The local control plane's binary, or `MUSTER_CONTROLPLANE`.
pub fn controlplane() -> Result<PathBuf> {
    existing(
        "MUSTER_CONTROLPLANE",
        &[&target().join("controlplane/controlplane")],
    )
}

/// The kubectl that was built beside the control plane, or `MUSTER_KUBECTL`.
pub fn kubectl() -> Result<PathBuf> {
    existing("MUSTER_KUBECTL", &[&target().join("controlplane/kubectl")])
}

/// The controller's binary, or `MUSTER_CONTROLLER`. Of a release and a debug build the newer one.
pub fn controller() -> Result<PathBuf> {
    let mut built = [
        target().join("release/muster-controller"),
        target().join("debug/muster-controller"),
    ];
    built.sort_by_key(|path| {
        std::cmp::Reverse(
            path.metadata()
                .and_then(|file| file.modified())
                .ok()
                .map_or(std::time::UNIX_EPOCH, |at| at),
        )
    });
    existing("MUSTER_CONTROLLER", &[&built[0], &built[1]])
}

/// The directory of ramdisk releases and boot loaders, or `MUSTER_BOOT_DIR`.
pub fn boot_dir() -> Result<PathBuf> {
    existing("MUSTER_BOOT_DIR", &[&target().join("boot")])
}

/// The directory of disk images with an operating system, or `MUSTER_OS_IMAGES`.
pub fn os_images() -> Result<PathBuf> {
    existing("MUSTER_OS_IMAGES", &[&target().join("os")])
}

/// A release as `cargo xtask dist` makes it, or `MUSTER_RELEASE`. Only `cargo xtask test --full` has it.
pub fn release() -> Result<PathBuf> {
    let made = concat!("dist/muster-", env!("CARGO_PKG_VERSION"));
    existing("MUSTER_RELEASE", &[&target().join(made)]).context("no release: `cargo xtask dist` makes one")
}

/// Like [`boot_dir`], with an `/init` that does nothing in the place of the agent, or `MUSTER_EMPTY_BOOT_DIR`. Only the benchmark
/// has it.
pub fn empty_boot_dir() -> Result<PathBuf> {
    existing("MUSTER_EMPTY_BOOT_DIR", &[&target().join("bench/boot")])
}

/// The agent's example that writes an image, built as the agent is, or `MUSTER_WRITE`. Only the benchmark has it.
pub fn write_example() -> Result<PathBuf> {
    let built = target().join("x86_64-unknown-linux-gnu/agent/examples/write");
    existing("MUSTER_WRITE", &[&built])
}

/// Debian's nginx, unpacked, or `MUSTER_NGINX`. Only the benchmark has it.
pub fn nginx() -> Result<PathBuf> {
    existing("MUSTER_NGINX", &[&target().join("bench/nginx/usr/sbin/nginx")])
}

/// baremetal-operator, or `MUSTER_METAL3`. Only the benchmark of hosts and `cargo xtask test --full` have it.
pub fn metal3() -> Result<PathBuf> {
    existing("MUSTER_METAL3", &[&target().join("metal3/baremetal-operator")])
}

/// The directory of the kinds that come with [`metal3`], or `MUSTER_METAL3_KINDS`.
pub fn metal3_kinds() -> Result<PathBuf> {
    existing("MUSTER_METAL3_KINDS", &[&target().join("metal3/crds")])
}

/// sushy-emulator in its Python environment, or `MUSTER_SUSHY`. `cargo xtask test` installs it.
pub fn sushy() -> Result<PathBuf> {
    existing("MUSTER_SUSHY", &[&target().join("sushy/bin/sushy-emulator")])
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

fn existing(variable: &str, candidates: &[&Path]) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        if !path.exists() {
            bail!("{variable} names {}, which does not exist", path.display());
        }
        return Ok(path);
    }
    match candidates.iter().find(|path| path.exists()) {
        Some(path) => Ok(path.to_path_buf()),
        None => bail!(
            "{} does not exist; build it with `cargo xtask build`, or name another by {variable}",
            candidates[0].display()
        ),
    }
}
