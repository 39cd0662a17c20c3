//! What Debian packages the lab needs, and installing them.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{command::Cmd, root};

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
    ("skopeo", "/usr/bin/skopeo"),
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

/// Installs what is missing as root; otherwise fails with the command that does. Where nothing of it would help it says that.
pub(crate) fn install() -> Result<()> {
    if let Some(obstacle) = obstacle(&root()) {
        bail!("{obstacle}");
    }
    for tool in ["go", "gcc"] {
        if !Cmd::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .succeeds()
        {
            bail!(
                "`{tool}` is missing: Go (1.26 or newer) builds the control plane and baremetal-operator, gcc links the rest"
            );
        }
    }
    let told = Cmd::new("go")
        .args(["env", "GOVERSION", "GOTOOLCHAIN"])
        .output()?;
    let mut told = told.lines();
    let (version, toolchain) = (told.next().unwrap_or_default(), told.next().unwrap_or_default());
    if !builds_with(version, toolchain) {
        bail!(
            "the `go` in the PATH is {version}, which builds neither the control plane nor baremetal-operator: install Go 1.26 or newer"
        );
    }
    packages(PACKAGES)
}

/// That `release`, the content of `/etc/os-release`, is of another system than Debian, if it says so.
fn other_system(release: &str) -> Option<String> {
    let says = |key: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(key));
        value.map(|value| value.trim_matches('"').to_owned())
    };
    let id = says("ID=").filter(|id| id != "debian")?;
    let name = says("PRETTY_NAME=").unwrap_or(id);
    Some(format!(
        "this is {name}, but Muster is built and tested with packages of Debian 12 (kernels, iPXE, QEMU): run it there, for example in a virtual machine"
    ))
}

/// Why the tree at `root` cannot be built on this computer, if that is so.
fn obstacle(root: &Path) -> Option<String> {
    use std::env::consts::{ARCH, OS};
    if (ARCH, OS) != ("x86_64", "linux") {
        return Some(format!(
            "this is {ARCH} {OS}, but Muster is built and tested on x86-64 Linux only: its machines, kernels and Debian packages are for that platform"
        ));
    }
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    if let Some(other) = other_system(&release) {
        return Some(other);
    }
    // make splits it into several targets, and so do configure scripts.
    let has_blanks = root.to_string_lossy().contains(char::is_whitespace);
    has_blanks.then(|| {
        format!(
            "the path of the repository has white space in it, which make and configure scripts cannot handle: move {} to a path without it",
            root.display()
        )
    })
}

/// Whether Go of `version`, such as `go1.26.1`, builds what is written for 1.26. From 1.21 on it fetches what is newer by itself, but
/// where `GOTOOLCHAIN` does not say that it may (<https://go.dev/doc/toolchain>). A version that is no release is taken at its word.
fn builds_with(version: &str, toolchain: &str) -> bool {
    let minor = version.strip_prefix("go1.").map(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse().unwrap_or(0)
    });
    let fetches = toolchain == "auto" || toolchain.ends_with("+auto");
    minor.is_none_or(|minor: u32| minor >= 26 || (minor >= 21 && fetches))
}

/// Fails where the lab's networks cannot be made, before anything is built for them.
pub(crate) fn may_make_networks() -> Result<()> {
    install()?;
    let probe = ["--net", "ip", "link", "set", "lo", "up"];
    if !Cmd::new("unshare").args(probe).succeeds() {
        bail!(
            "the lab makes network namespaces, for which it needs CAP_SYS_ADMIN and CAP_NET_ADMIN: run this as root, or in a container with both"
        );
    }
    Ok(())
}

/// The same for the benchmark, which tests and demo do not need.
pub(crate) fn install_for_bench() -> Result<()> {
    packages(FOR_BENCH)
}

/// Which packages of Python the tests need, with their versions.
const SUSHY: &str = "tests/sushy/requirements.txt";

/// What the tests need besides: sushy-emulator, in a Python environment of its own below `target/sushy`. Nothing is fetched if it is
/// there as it should be.
pub(crate) fn install_for_tests() -> Result<()> {
    let home = root().join("target/sushy");
    let wanted = fs::read_to_string(SUSHY).with_context(|| format!("reading {SUSHY}"))?;
    // Written last: what was interrupted does not pass for the whole.
    let mark = home.join("installed.txt");
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    let can = || {
        Cmd::new("python3")
            .args(["-c", "import ensurepip, venv"])
            .succeeds()
    };
    if !can() {
        install_packages("python3-venv")?;
    }
    if !can() {
        bail!(
            "`python3` cannot create virtual environments even with Debian's python3-venv: is another Python first in the PATH?"
        );
    }
    println!("· sushy-emulator: a Redfish service for the tests (first time 1 min)");
    if home.exists() {
        fs::remove_dir_all(&home).with_context(|| format!("emptying {}", home.display()))?;
    }
    Cmd::new("python3")
        .args(["-m", "venv"])
        .arg(&home)
        .run_logged("sushy-venv")?;
    Cmd::new(home.join("bin/pip"))
        .args(["install", "--quiet", "--requirement", SUSHY])
        .run_logged("sushy-pip")?;
    fs::write(&mark, wanted).with_context(|| format!("writing {}", mark.display()))
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
    install_packages(&missing.join(" "))
}

/// Installs the packages of `list`, with blanks between them.
fn install_packages(list: &str) -> Result<()> {
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
        .args(list.split(' '))
        .run_logged("apt")
}

/// Refreshes the package lists, for those who may.
pub(crate) fn apt_update() -> Result<()> {
    if is_root()? {
        Cmd::new("apt-get")
            .args(["update", "--quiet=2"])
            .run_logged("apt-update")?;
    }
    Ok(())
}

fn is_root() -> Result<bool> {
    Ok(Cmd::new("id").arg("-u").output()?.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_white_space_are_refused() {
        assert_eq!(obstacle(Path::new("/srv/muster")), None);
        for path in ["/srv/my code/muster", "/srv/muster\t"] {
            let told = obstacle(Path::new(path)).unwrap_or_default();
            assert!(told.contains(path), "{told}");
        }
    }

    #[test]
    fn another_system_than_debian_is_refused_by_its_name() {
        assert_eq!(
            other_system("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n"),
            None
        );
        assert_eq!(other_system(""), None);
        let told = other_system("PRETTY_NAME=\"Ubuntu 24.04 LTS\"\nID=ubuntu\nID_LIKE=debian\n");
        assert!(told.is_some_and(|told| told.starts_with("this is Ubuntu 24.04 LTS,")));
    }

    #[test]
    fn go_is_new_enough_or_fetches_what_is() {
        for (version, toolchain, builds) in [
            ("go1.26.1", "local", true),
            ("go1.30", "auto", true),
            ("go1.21.0", "auto", true),
            ("go1.25.3", "local", false),
            ("go1.25.3", "path", false),
            ("go1.25.3", "go1.25.3+auto", true),
            ("go1.19.8", "", false),
            ("devel go1.27-1234567", "local", true),
        ] {
            assert_eq!(builds_with(version, toolchain), builds, "{version} {toolchain}");
        }
    }
}
