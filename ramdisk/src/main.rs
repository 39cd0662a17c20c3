//! Builds ramdisks, and shows what is in them.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use muster_ramdisk::build::{self, build};
use muster_ramdisk::kernel::{Kernel, stub_from_deb};
use muster_ramdisk::oci;
use muster_ramdisk::profile::{self, Profile};
use muster_ramdisk::release::{self, Release};

/// Builds the kernel and initramfs that Muster boots servers with.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a release and let `current` name it. Of older ones the last stays, and what was current within two hours.
    Build(Build),
    /// Make the controller's container image, an OCI layout in a tar archive.
    Image(Image),
    /// Check a release and show what is in it.
    Inspect {
        /// The directory of a profile, or the one above with all profiles.
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Build {
    /// Which modules to include: lab (virtual machines) or server.
    #[arg(long, value_parser = named_profile)]
    profile: Profile,
    /// The agent, a static binary.
    #[arg(long, value_name = "PATH")]
    agent: PathBuf,
    /// Debian package of the kernel, such as `linux-image-6.1.0-56-amd64_*.deb`.
    #[arg(long, value_name = "PATH")]
    kernel_deb: PathBuf,
    #[command(flatten)]
    stub: Stub,
    /// Where profiles and releases are kept.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct Image {
    /// The name of the image, `name:tag`.
    #[arg(long)]
    name: String,
    /// The controller, a static binary.
    #[arg(long, value_name = "PATH")]
    controller: PathBuf,
    /// Directory with the ramdisks; of each profile the current release is taken.
    #[arg(long, value_name = "DIR")]
    boot: PathBuf,
    /// Directory with undionly.kpxe and snponly.efi.
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/ipxe")]
    ipxe: PathBuf,
    /// Further files for its directory of licences; may be given several times.
    #[arg(long = "licence", value_name = "PATH")]
    licences: Vec<PathBuf>,
    /// Where the image is written to.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Stub {
    /// Debian package systemd-boot-efi, to take the UEFI stub from.
    #[arg(long, value_name = "PATH")]
    stub_deb: Option<PathBuf>,
    /// The UEFI stub itself, `linuxx64.efi.stub`.
    #[arg(long, value_name = "PATH")]
    stub: Option<PathBuf>,
}

fn named_profile(name: &str) -> Result<Profile, String> {
    let names: Vec<_> = profile::ALL.iter().map(|profile| profile.name).collect();
    Profile::named(name).ok_or_else(|| format!("the profiles are {}", names.join(", ")))
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Build(args) => make(args),
        Command::Image(args) => image(args),
        Command::Inspect { dir } => inspect(&dir),
    }
}

fn image(
    Image {
        name,
        controller,
        boot,
        ipxe,
        licences,
        out,
    }: Image,
) -> Result<()> {
    let contents = oci::controller(&name, &controller, &boot, &ipxe, &licences)?;
    let file = File::create(&out).with_context(|| format!("creating {}", out.display()))?;
    let mut file = std::io::BufWriter::new(file);
    oci::write(&contents, &mut file).with_context(|| format!("writing {}", out.display()))?;
    println!("{name} in {}, {} files", out.display(), contents.files.len());
    Ok(())
}

fn make(
    Build {
        profile,
        agent,
        kernel_deb,
        stub,
        out,
    }: Build,
) -> Result<()> {
    let agent = fs::read(&agent).with_context(|| format!("reading agent {}", agent.display()))?;
    let stub = read_stub(stub)?;
    let kernel = Kernel::from_deb(open(&kernel_deb)?)
        .with_context(|| format!("reading kernel package {}", kernel_deb.display()))?;
    let content = build(&profile, kernel, agent, stub)?;
    release::write(&out, &content).with_context(|| format!("writing release to {}", out.display()))?;
    let dir = out.join(profile.name);
    show(&Release::open(&dir)?);
    match release::prune(&dir, SystemTime::now()) {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => println!("  removed, no longer served by anyone: {}", removed.join(" ")),
        // The new release is made and is the current one: room on the disk is all that is lost.
        Err(error) => eprintln!(
            "old releases stay until the next build: {:#}",
            anyhow::Error::from(error)
        ),
    }
    Ok(())
}

fn read_stub(Stub { stub_deb, stub }: Stub) -> Result<build::Stub> {
    if let Some(path) = stub {
        let image = fs::read(&path).with_context(|| format!("reading UEFI stub {}", path.display()))?;
        return Ok(build::Stub { image, source: None });
    }
    let path = stub_deb.context("neither a UEFI stub nor its package is given")?;
    let (image, source) =
        stub_from_deb(open(&path)?).with_context(|| format!("reading package {}", path.display()))?;
    let image = image.with_context(|| format!("package {} has no UEFI stub", path.display()))?;
    Ok(build::Stub { image, source })
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}

fn inspect(dir: &Path) -> Result<()> {
    if dir.join("current").exists() {
        show(&Release::open(dir)?);
        return Ok(());
    }
    let profiles = profile::ALL.iter().map(|profile| dir.join(profile.name));
    let mut found = profiles.filter(|dir| dir.join("current").exists()).peekable();
    found
        .peek()
        .with_context(|| format!("{} contains no release", dir.display()))?;
    for dir in found {
        show(&Release::open(&dir)?);
    }
    Ok(())
}

fn show(release: &Release) {
    let manifest = &release.manifest;
    println!(
        "{} {}: kernel {}",
        manifest.profile, release.hash, manifest.kernel_version
    );
    for (name, version) in &manifest.packages {
        println!("  of the package {name} {version}");
    }
    for (name, facts) in &manifest.files {
        println!("  {name:<10} {:>12} bytes  {}", facts.size, facts.sha256);
    }
    println!(
        "  {:<10} {:>12} bytes  {}",
        "(agent)", manifest.agent.size, manifest.agent.sha256
    );
    println!(
        "  {:<10} {:>12} bytes, {} modules",
        "(unpacked)", manifest.unpacked, manifest.modules
    );
    for (module, files) in &manifest.firmware {
        println!("  firmware for {module}: {}", files.join(" "));
    }
}
