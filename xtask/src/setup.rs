//! What Debian packages the lab needs, and installing them.

use std::path::Path;

use anyhow::{Result, bail};

use crate::command::Cmd;

/// A package and a file that shows that it is there.
const PACKAGES: &[(&str, &str)] = &[
    ("make", "/usr/bin/make"),
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    ("qemu-utils", "/usr/bin/qemu-img"),
    ("ipxe-qemu", "/usr/lib/ipxe/qemu/pxe-virtio.rom"),
    ("ipxe", "/usr/lib/ipxe/undionly.kpxe"),
    ("ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd"),
    ("iproute2", "/usr/sbin/ip"),
    ("dnsmasq-base", "/usr/sbin/dnsmasq"),
    // What reads and makes disks without anything of ours.
    ("util-linux", "/usr/sbin/blkid"),
    ("e2fsprogs", "/usr/sbin/mkfs.ext4"),
    ("gdisk", "/usr/sbin/sgdisk"),
    ("genisoimage", "/usr/bin/isoinfo"),
];

/// What the benchmark needs besides: the libraries of nginx, which itself is unpacked and not installed.
const FOR_BENCH: &[(&str, &str)] = &[
    ("libpcre2-8-0", "/usr/lib/x86_64-linux-gnu/libpcre2-8.so.0"),
    ("libssl3", "/usr/lib/x86_64-linux-gnu/libssl.so.3"),
    ("util-linux", "/usr/bin/unshare"),
    ("zstd", "/usr/bin/zstd"),
];

/// Installs what is missing as root; otherwise fails with the command that does.
pub(crate) fn install() -> Result<()> {
    for tool in ["go", "gcc"] {
        if !Cmd::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .succeeds()
        {
            bail!("`{tool}` is missing: Go (1.26 or newer) builds the control plane, gcc links the rest");
        }
    }
    packages(PACKAGES)
}

/// The same for the benchmark, which tests and demo do not need.
pub(crate) fn install_for_bench() -> Result<()> {
    packages(FOR_BENCH)
}

fn packages(needed: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(_, file)| !Path::new(file).exists())
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root()? {
        bail!(
            "packages are missing; install them and run this again:\n  sudo apt-get update && sudo apt-get install --no-install-recommends {list}"
        );
    }
    println!("installing Debian packages (a minute or two): {list}");
    apt_update()?;
    Cmd::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "--yes", "--quiet=2", "--no-install-recommends"])
        .args(&missing)
        .run_logged(&crate::artifacts::log("apt")?)
}

/// Refreshes the package lists, for those who may.
pub(crate) fn apt_update() -> Result<()> {
    if is_root()? {
        Cmd::new("apt-get")
            .args(["update", "--quiet=2"])
            .run_logged(&crate::artifacts::log("apt-update")?)?;
    }
    Ok(())
}

fn is_root() -> Result<bool> {
    Ok(Cmd::new("id").arg("-u").output()?.trim() == "0")
}
