//! `cargo xtask dist`: a release below `target/dist`, everything that an installation without internet needs.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{artifacts, cargo, command::Cmd, crates, root};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The licences of the crates in the binaries.
const CRATES: &str = "CRATES";
/// The Debian packages of the boot files and of the C library in the binaries.
const PACKAGES: &str = "PACKAGES";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Makes the release.
pub(crate) fn run() -> Result<()> {
    artifacts::all()?;
    println!("· controller: static binary, release build (first time 10 min)");
    controller()?;
    let out = root().join("target/dist");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("emptying {}", out.display()))?;
    }
    let tree = out.join(format!("muster-{VERSION}"));
    fs::create_dir_all(&tree).with_context(|| format!("creating {}", tree.display()))?;
    binaries(&tree)?;
    ramdisks(&tree)?;
    loaders(&tree)?;
    packages(&tree)?;
    manifests(&tree)?;
    deploy(&tree)?;
    documents(&tree)?;
    println!("· image");
    image(&tree)?;
    sums(&tree)?;
    bundle(&out)?;
    println!("{}", tree.display());
    Ok(())
}

/// Static, so that it is the only file that the image needs to start. Names are resolved by glibc's own code for files and DNS, which
/// is part of its static library; in a cluster the API server is reached by its address.
fn controller() -> Result<()> {
    cargo()
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static",
        )
        .args(["build", "--quiet", "--release", "--target", TARGET])
        .args(["--package", "muster-controller"])
        .run()
}

fn built(profile: &str, name: &str) -> PathBuf {
    root().join("target").join(TARGET).join(profile).join(name)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn binaries(tree: &Path) -> Result<()> {
    copy(
        &built("release", "muster-controller"),
        &tree.join("muster-controller"),
    )?;
    copy(&built("agent", "muster-agent"), &tree.join("muster-agent"))?;
    for text in ["LICENSE", "NOTICE"] {
        copy(&root().join(text), &tree.join(text))?;
    }
    let path = tree.join(CRATES);
    let licences = crates::licences(&["muster-controller", "muster-agent"], TARGET)?;
    fs::write(&path, licences).with_context(|| format!("writing {}", path.display()))
}

/// Of each profile the current release.
fn ramdisks(tree: &Path) -> Result<()> {
    for profile in ["lab", "server"] {
        let from = root().join("target/boot").join(profile);
        let current = from.join("current");
        let release =
            fs::read_to_string(&current).with_context(|| format!("reading {}", current.display()))?;
        let to = tree.join("boot").join(profile);
        let (source, target) = (from.join(release.trim()), to.join(release.trim()));
        fs::create_dir_all(&target).with_context(|| format!("creating {}", target.display()))?;
        copy(&current, &to.join("current"))?;
        for entry in fs::read_dir(&source).with_context(|| format!("listing {}", source.display()))? {
            let entry = entry.with_context(|| format!("listing {}", source.display()))?;
            copy(&entry.path(), &target.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// iPXE, which the image has inside: for those who run the controller without a container.
fn loaders(tree: &Path) -> Result<()> {
    let to = tree.join("ipxe");
    fs::create_dir_all(&to).with_context(|| format!("creating {}", to.display()))?;
    let from = Path::new("/usr/lib/ipxe");
    ["undionly.kpxe", "snponly.efi"]
        .iter()
        .try_for_each(|name| copy(&from.join(name), &to.join(name)))
}

/// Which packages the boot files are of, as `NOTICE` promises: whoever passes them on offers their sources.
fn packages(tree: &Path) -> Result<()> {
    let shown = Cmd::new(root().join("target/debug/muster-ramdisk"))
        .arg("inspect")
        .arg(tree.join("boot"))
        .output()?;
    let installed = Cmd::new("dpkg-query")
        .args([
            "--show",
            "--showformat",
            "${Package} ${Version}\n",
            "ipxe",
            "libc6-dev",
        ])
        .output()?;
    let path = tree.join(PACKAGES);
    fs::write(&path, named(&shown, &installed)).with_context(|| format!("writing {}", path.display()))
}

/// One package and its version a line, of what `muster-ramdisk inspect` shows, of iPXE and of the C library in the binaries.
fn named(shown: &str, installed: &str) -> String {
    let of_ramdisks = shown
        .lines()
        .filter_map(|line| line.trim().strip_prefix("of the package "));
    let all: BTreeSet<&str> = of_ramdisks.chain(installed.lines()).collect();
    all.iter().map(|package| format!("{package}\n")).collect()
}

/// For those who install and run it.
const PAGES: [&str; 11] = [
    "benchmarks-hosts.md",
    "flags.md",
    "fleet.md",
    "install.md",
    "metrics.md",
    "migrate-from-metal3.md",
    "network.md",
    "provision.md",
    "reference.md",
    "states.md",
    "validation.md",
];

/// What people read while they install, and the example that they begin with.
fn documents(tree: &Path) -> Result<()> {
    let to = tree.join("docs");
    fs::create_dir_all(&to).with_context(|| format!("creating {}", to.display()))?;
    for name in PAGES {
        copy(&root().join("docs").join(name), &to.join(name))?;
    }
    for name in ["CHANGELOG.md", "SECURITY.md"] {
        copy(&root().join(name), &tree.join(name))?;
    }
    let example = "segment-demo.yaml";
    copy(
        &root().join("deploy/manifests/examples").join(example),
        &tree.join(example),
    )
}

/// What the pages apply and change: the directory `deploy`, but for the lab's own control plane.
fn deploy(tree: &Path) -> Result<()> {
    let from = root().join("deploy");
    let mut files = Vec::new();
    walk(&from, &mut files)?;
    for path in files {
        let inside = path.strip_prefix(&from).context("a file of deploy")?;
        if inside.starts_with("controlplane") {
            continue;
        }
        let to = tree.join("deploy").join(inside);
        let dir = to.parent().context("a directory")?;
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        copy(&path, &to)?;
    }
    Ok(())
}

/// As single files, for those who have no kustomize.
fn manifests(tree: &Path) -> Result<()> {
    for (name, dir) in [
        ("crds.yaml", "deploy/crds"),
        ("muster.yaml", "deploy"),
        ("muster-namespaced.yaml", "deploy/namespaced"),
    ] {
        let text = Cmd::new(root().join("target/controlplane/kubectl"))
            .args(["kustomize", dir])
            .output()?;
        let path = tree.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn image(tree: &Path) -> Result<()> {
    Cmd::new(root().join("target/debug/muster-ramdisk"))
        .args(["image", "--name", &format!("muster-controller:{VERSION}")])
        .arg("--controller")
        .arg(tree.join("muster-controller"))
        .arg("--boot")
        .arg(tree.join("boot"))
        .arg("--licence")
        .arg(tree.join("LICENSE"))
        .arg("--licence")
        .arg(tree.join("NOTICE"))
        .arg("--licence")
        .arg(tree.join(CRATES))
        .arg("--licence")
        .arg(tree.join(PACKAGES))
        .arg("--out")
        .arg(tree.join("muster-image.tar"))
        .run()
}

/// `sha256sum --check SHA256SUMS` in the directory checks all.
fn sums(tree: &Path) -> Result<()> {
    let mut files = Vec::new();
    walk(tree, &mut files)?;
    files.sort();
    let inside = files.iter().filter_map(|path| path.strip_prefix(tree).ok());
    let sums = Cmd::new("sha256sum").dir(tree).args(inside).output()?;
    let path = tree.join("SHA256SUMS");
    fs::write(&path, sums).with_context(|| format!("writing {}", path.display()))
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry
            .with_context(|| format!("listing {}", dir.display()))?
            .path();
        if path.is_dir() {
            walk(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// One file with all of it; the same release gives the same bytes.
fn bundle(out: &Path) -> Result<()> {
    let name = format!("muster-{VERSION}");
    Cmd::new("tar")
        .dir(out)
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .args([
            "--mtime=@0",
            "--mode=u=rwX,go=rX",
            "--format=gnu",
            "--create",
            "--file",
        ])
        .arg(format!("{name}.tar"))
        .arg(&name)
        .run()?;
    let sum = Cmd::new("sha256sum")
        .dir(out)
        .arg(format!("{name}.tar"))
        .output()?;
    let path = out.join(format!("{name}.tar.sha256"));
    fs::write(&path, sum).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_package_of_the_boot_files_is_named_once() {
        let shown = "lab 0a: kernel 6.1\n  of the package linux-image-6.1 6.1.1-1\n  of the package systemd-boot-efi 252.1\n  \
                     vmlinuz 1 bytes\nserver 0b: kernel 6.1\n  of the package systemd-boot-efi 252.1\n";
        let named = named(shown, "ipxe 1.0.0-1");
        assert_eq!(
            named,
            "ipxe 1.0.0-1\nlinux-image-6.1 6.1.1-1\nsystemd-boot-efi 252.1\n"
        );
    }

    /// A page that was renamed would be missed when a release is made, which is late.
    #[test]
    fn pages_and_example_of_the_bundle_are_where_they_are_taken_from() {
        let tree = std::env::temp_dir().join(format!("muster-dist-{}", std::process::id()));
        fs::create_dir_all(&tree).expect("a directory");
        let made = documents(&tree).and_then(|()| deploy(&tree));
        let forms = [
            "deploy/kustomization.yaml",
            "deploy/namespaced/kustomization.yaml",
            "deploy/controlplane",
        ];
        let forms = forms.map(|name| tree.join(name).exists());
        let pages = fs::read_dir(tree.join("docs")).map(Iterator::count);
        let example = fs::read_to_string(tree.join("segment-demo.yaml"));
        fs::remove_dir_all(&tree).expect("no directory");
        made.expect("pages and example");
        assert_eq!(forms, [true, true, false]);
        assert_eq!(pages.expect("the pages"), PAGES.len());
        assert!(example.expect("the example").contains("kind: Segment"));
    }
}
