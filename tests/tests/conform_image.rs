//! The controller's container image, read by a program that is not ours: Debian's skopeo.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use muster_ramdisk::oci;
use muster_tests::{paths, scratch::Scratch};
use serde_json::Value;

const NAME: &str = concat!("muster-controller:", env!("CARGO_PKG_VERSION"));

fn skopeo(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("/usr/bin/skopeo")
        .arg("--insecure-policy")
        .args(arguments)
        .output()
        .expect("skopeo, which `cargo xtask setup` installs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {arguments:?}: {said}");
    output.stdout
}

/// The image of what the tests run, in `dir`.
fn written(dir: &Path) -> PathBuf {
    let path = dir.join("image.tar");
    let image = oci::controller(
        NAME,
        &paths::controller().expect("a controller"),
        &paths::boot_dir().expect("ramdisks"),
        Path::new("/usr/lib/ipxe"),
        &[],
    )
    .expect("its files");
    let file = fs::File::create(&path).expect("a file");
    oci::write(&image, file).expect("an image");
    path
}

#[test]
fn another_reader_takes_the_image_and_finds_the_controller_in_it() {
    let scratch = Scratch::new().unwrap();
    let source = format!("oci-archive:{}", written(scratch.path()).display());
    let config: Value = serde_json::from_slice(&skopeo(&["inspect", "--config", &source])).unwrap();
    assert_eq!(config["architecture"], "amd64");
    assert_eq!(config["config"]["Entrypoint"][0], "/muster-controller");
    assert_eq!(config["config"]["User"], "65532:65532");

    // It checks every digest, and unpacks what is compressed.
    let unpacked = scratch.sub("unpacked").unwrap();
    let target = format!("dir:{}", unpacked.display());
    skopeo(&["copy", "--dest-decompress", &source, &target]);
    let manifest: Value = serde_json::from_slice(&fs::read(unpacked.join("manifest.json")).unwrap()).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let layer = unpacked.join(layer.strip_prefix("sha256:").unwrap());
    let root = scratch.sub("root").unwrap();
    let status = Command::new("tar")
        .args(["--extract", "--no-same-owner", "--file"])
        .arg(&layer)
        .arg("--directory")
        .arg(&root)
        .status()
        .unwrap();
    assert!(status.success());
    let same = |inside: &str, outside: &Path| {
        let (inside, outside) = (fs::read(root.join(inside)).unwrap(), fs::read(outside).unwrap());
        assert!(inside == outside);
    };
    same("muster-controller", &paths::controller().unwrap());
    same(
        "usr/lib/ipxe/undionly.kpxe",
        Path::new("/usr/lib/ipxe/undionly.kpxe"),
    );
    for profile in ["lab", "server"] {
        let boot = paths::boot_dir().unwrap().join(profile);
        let release = fs::read_to_string(boot.join("current")).unwrap();
        let manifest = format!("{}/manifest.json", release.trim());
        same(
            &format!("usr/share/muster/boot/{profile}/{manifest}"),
            &boot.join(&manifest),
        );
    }
    let version = Command::new(root.join("muster-controller"))
        .arg("--version")
        .output()
        .unwrap();
    assert!(version.status.success(), "it runs from there");
}
