//! The controller's container image, read by a program that is not ours: Debian's skopeo. Under `--full` also the release that it is
//! part of.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use muster_ramdisk::oci;
use muster_tests::{paths, scratch::Scratch};
use serde_json::Value;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `command` said, which ended well.
fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

/// skopeo, which `cargo xtask setup` installs.
fn skopeo(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("/usr/bin/skopeo");
    said(command.arg("--insecure-policy").args(arguments))
}

/// The image of what the tests run, in `dir`.
fn written(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("image.tar");
    let image = oci::controller(
        &format!("muster-controller:{VERSION}"),
        &paths::controller()?,
        &paths::boot_dir()?,
        Path::new("/usr/lib/ipxe"),
        &[],
    )?;
    oci::write(&image, fs::File::create(&path)?)?;
    Ok(path)
}

/// Fails if `image` does not hold this controller, these boot files and these licences, or the controller does not run from there.
fn holds(image: &Path, controller: &Path, boot_dir: &Path, licences: &[PathBuf]) -> Result<()> {
    let scratch = Scratch::new()?;
    let source = format!("oci-archive:{}", image.display());
    let config: Value = serde_json::from_str(&skopeo(&["inspect", "--config", &source])?)?;
    ensure!(config["architecture"] == "amd64", "{config}");
    ensure!(
        config["config"]["Entrypoint"][0] == "/muster-controller",
        "{config}"
    );
    ensure!(config["config"]["User"] == "65532:65532", "{config}");
    // By digest alone nobody knows which version it is.
    let version = &config["config"]["Labels"]["org.opencontainers.image.version"];
    ensure!(*version == env!("CARGO_PKG_VERSION"), "{config}");

    // It checks every digest, and unpacks what is compressed.
    let unpacked = scratch.sub("unpacked")?;
    let target = format!("dir:{}", unpacked.display());
    skopeo(&["copy", "--dest-decompress", &source, &target])?;
    let manifest: Value = serde_json::from_slice(&fs::read(unpacked.join("manifest.json"))?)?;
    let layer = manifest["layers"][0]["digest"].as_str();
    let layer = layer.and_then(|digest| digest.strip_prefix("sha256:"));
    let root = scratch.sub("root")?;
    said(
        Command::new("tar")
            .args(["--extract", "--no-same-owner", "--file"])
            .arg(unpacked.join(layer.context("a layer")?))
            .arg("--directory")
            .arg(&root),
    )?;
    let same = |inside: &str, outside: &Path| -> Result<()> {
        let (inside, outside) = (root.join(inside), outside.to_owned());
        ensure!(
            fs::read(&inside)? == fs::read(&outside)?,
            "{inside:?} is not {outside:?}"
        );
        Ok(())
    };
    same("muster-controller", controller)?;
    same(
        "usr/lib/ipxe/undionly.kpxe",
        Path::new("/usr/lib/ipxe/undionly.kpxe"),
    )?;
    for profile in ["lab", "server"] {
        let boot = boot_dir.join(profile);
        let release = fs::read_to_string(boot.join("current"))?;
        let manifest = format!("{}/manifest.json", release.trim());
        same(
            &format!("usr/share/muster/boot/{profile}/{manifest}"),
            &boot.join(&manifest),
        )?;
    }
    for licence in licences {
        let name = licence.file_name().context("a file")?.to_string_lossy();
        same(&format!("usr/share/doc/muster/{name}"), licence)?;
    }
    let version = said(Command::new(root.join("muster-controller")).arg("--version"))?;
    ensure!(version == format!("muster-controller {VERSION}\n"), "{version}");
    Ok(())
}

#[test]
fn another_reader_takes_the_image_and_finds_the_controller_in_it() {
    let scratch = Scratch::new().unwrap();
    let image = written(scratch.path()).unwrap();
    let (controller, boot_dir) = (paths::controller().unwrap(), paths::boot_dir().unwrap());
    holds(&image, &controller, &boot_dir, &[]).unwrap();
    // There is a release only then: to build its controller takes a quarter of an hour.
    if env::var_os("MUSTER_FULL").is_some() {
        a_release_is_whole_and_its_programs_need_nothing_else().unwrap();
    }
}

fn a_release_is_whole_and_its_programs_need_nothing_else() -> Result<()> {
    let release = paths::release()?;
    let above = release.parent().context("where releases are")?;
    let bundle = above.join(format!("muster-{VERSION}.tar"));
    let check = |dir: &Path, sums: &Path| -> Result<usize> {
        let mut command = Command::new("sha256sum");
        command.args(["--check", "--strict"]).arg(sums);
        Ok(said(command.current_dir(dir))?.lines().count())
    };
    check(above, &bundle.with_extension("tar.sha256"))?;
    let summed = check(&release, Path::new("SHA256SUMS"))?;
    let files = said(Command::new("find").arg(&release).args(["-type", "f"]))?;
    let all = files.lines().count();
    ensure!(all == summed + 1, "{all} files and {summed} sums:\n{files}");
    let bundled = said(Command::new("tar").args(["--list", "--file"]).arg(&bundle))?;
    let bundled = bundled.lines().filter(|name| !name.ends_with('/')).count();
    ensure!(bundled == all, "{bundled} of {all} files are in the bundle");

    let alone = Scratch::new()?;
    for program in ["muster-controller", "muster-agent"] {
        fs::copy(release.join(program), alone.path().join(program))?;
        let mut command = Command::new("/usr/sbin/chroot");
        command.arg(alone.path()).arg(format!("/{program}"));
        let version = said(command.arg("--version"))?;
        ensure!(version == format!("{program} {VERSION}\n"), "{version}");
    }
    holds(
        &release.join("muster-image.tar"),
        &release.join("muster-controller"),
        &release.join("boot"),
        // PACKAGES names the versions whose sources NOTICE offers.
        &["LICENSE", "NOTICE", "CRATES", "PACKAGES"].map(|name| release.join(name)),
    )
}
