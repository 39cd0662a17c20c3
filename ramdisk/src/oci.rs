//! A container image as one file: an OCI image layout (image-spec 1.1, `image-layout.md`) in a tar archive, without any daemon.
//!
//! One layer, gzip. The same files give the same bytes: entries are in the order of their paths, belong to root, and have no time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::{profile, release::hex};

/// What an image is to hold and to run.
#[derive(Clone, Debug)]
pub struct Image {
    /// As it is called, `name:tag`.
    pub name: String,
    /// Files by their path in the image, without a leading slash.
    pub files: BTreeMap<String, File>,
    /// Empty directories that everyone may write to, such as `tmp`.
    pub writable: Vec<String>,
    /// The program, with its first arguments.
    pub entrypoint: Vec<String>,
    /// Its environment, `NAME=value`.
    pub environment: Vec<String>,
    /// What is known of it, by the keys of the OCI image specification ("Pre-Defined Annotation Keys").
    pub labels: BTreeMap<String, String>,
    /// As whom it runs where nothing else is said, `uid:gid`.
    pub user: String,
}

/// One file of an image.
#[derive(Clone, Debug)]
pub struct File {
    /// What it holds.
    pub content: Vec<u8>,
    /// It may be run.
    pub executable: bool,
}

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// No time: what is built twice is the same.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// A file of the image cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {}", path.display())]
pub struct ReadError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    fs::read(path).map_err(|source| ReadError {
        path: path.to_owned(),
        source,
    })
}

/// Where the controller looks for them without being told.
const BOOT: &str = "usr/share/muster/boot";
const IPXE: &str = "usr/lib/ipxe";
const LICENCES: &str = "usr/share/doc/muster";

/// The image of the controller: the program, the current release of each ramdisk below `boot`, and the boot loaders in `ipxe`. No
/// shell, no certificate authorities: it trusts the API server by its service account.
pub fn controller(
    name: &str,
    program: &Path,
    boot: &Path,
    ipxe: &Path,
    licences: &[PathBuf],
) -> Result<Image, ReadError> {
    let plain = |content| File {
        content,
        executable: false,
    };
    let mut files = BTreeMap::new();
    let controller = File {
        content: read(program)?,
        executable: true,
    };
    files.insert("muster-controller".to_owned(), controller);
    for profile in profile::ALL.iter().map(|profile| profile.name) {
        let dir = boot.join(profile);
        let current = read(&dir.join("current"))?;
        let release = String::from_utf8_lossy(&current).trim().to_owned();
        files.insert(format!("{BOOT}/{profile}/current"), plain(current));
        let release_dir = dir.join(&release);
        for file in list(&release_dir)? {
            let content = read(&release_dir.join(&file))?;
            files.insert(format!("{BOOT}/{profile}/{release}/{file}"), plain(content));
        }
    }
    for file in ["undionly.kpxe", "snponly.efi"] {
        files.insert(format!("{IPXE}/{file}"), plain(read(&ipxe.join(file))?));
    }
    for path in licences {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        files.insert(format!("{LICENCES}/{file}"), plain(read(path)?));
    }
    Ok(Image {
        name: name.to_owned(),
        files,
        writable: vec!["tmp".to_owned()],
        entrypoint: vec!["/muster-controller".to_owned()],
        environment: Vec::new(),
        labels: [
            ("title", name.rsplit_once(':').map_or(name, |(title, _)| title)),
            ("version", env!("CARGO_PKG_VERSION")),
            ("licenses", env!("CARGO_PKG_LICENSE")),
        ]
        .into_iter()
        .map(|(key, value)| (format!("org.opencontainers.image.{key}"), value.to_owned()))
        .collect(),
        user: "65532:65532".to_owned(),
    })
}

/// The names of the files in `dir`, which holds nothing else.
fn list(dir: &Path) -> Result<Vec<String>, ReadError> {
    let failed = |source| ReadError {
        path: dir.to_owned(),
        source,
    };
    let entries = fs::read_dir(dir).map_err(failed)?;
    entries
        .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Hashes what passes through.
struct Hashed<W> {
    inner: W,
    hash: Context,
}

impl<W: Write> Hashed<W> {
    fn new(inner: W) -> Self {
        Hashed {
            inner,
            hash: Context::new(&SHA256),
        }
    }

    fn finish(self) -> (W, String) {
        (self.inner, hex(self.hash.finish().as_ref()))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn digest(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&SHA256, bytes).as_ref())
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn add(tar: &mut Builder<impl Write>, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let size = content.len().try_into().map_err(io::Error::other)?;
    tar.append_data(&mut header(EntryType::Regular, mode, size), path, content)
}

/// The layer, compressed, and the digest of what it is before that.
fn layer(image: &Image) -> io::Result<(Vec<u8>, String)> {
    let mut tar = Builder::new(Hashed::new(GzEncoder::new(Vec::new(), Compression::default())));
    let mut directories = BTreeSet::new();
    for path in image.files.keys().chain(&image.writable) {
        directories.extend(Path::new(path).ancestors().skip(1).filter_map(Path::to_str));
    }
    for directory in directories.into_iter().filter(|path| !path.is_empty()) {
        let path = format!("{directory}/");
        tar.append_data(&mut header(EntryType::Directory, 0o755, 0), path, io::empty())?;
    }
    for directory in &image.writable {
        let path = format!("{directory}/");
        tar.append_data(&mut header(EntryType::Directory, 0o1777, 0), path, io::empty())?;
    }
    for (path, file) in &image.files {
        let mode = if file.executable { 0o755 } else { 0o644 };
        add(&mut tar, path, mode, &file.content)?;
    }
    let (compressed, digest) = tar.into_inner()?.finish();
    Ok((compressed.finish()?, digest))
}

fn descriptor(kind: &str, content: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": format!("sha256:{}", digest(content)), "size": content.len()})
}

/// Writes the image to `out`.
pub fn write(image: &Image, out: impl Write) -> io::Result<()> {
    let (layer, unpacked) = layer(image)?;
    let config = json!({
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": image.user,
            "Entrypoint": image.entrypoint,
            "Env": image.environment,
            "Labels": image.labels,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{unpacked}")]},
        "history": [{"created": CREATED, "created_by": "muster"}],
    });
    let config = serde_json::to_vec(&config)?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &layer)],
    }))?;
    let mut entry = descriptor(MANIFEST, &manifest);
    let tag = image.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    entry["annotations"] = json!({
        "org.opencontainers.image.ref.name": tag,
        // What containerd calls it when it is imported.
        "io.containerd.image.name": format!("docker.io/library/{}", image.name),
    });
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }))?;
    let mut tar = Builder::new(out);
    let mut blobs = BTreeMap::new();
    for blob in [&layer, &config, &manifest] {
        blobs.insert(format!("blobs/sha256/{}", digest(blob)), blob);
    }
    for directory in ["blobs/", "blobs/sha256/"] {
        tar.append_data(
            &mut header(EntryType::Directory, 0o755, 0),
            directory,
            io::empty(),
        )?;
    }
    for (path, blob) in blobs {
        add(&mut tar, &path, 0o644, blob)?;
    }
    add(&mut tar, "index.json", 0o644, &index)?;
    add(&mut tar, "oci-layout", 0o644, LAYOUT)?;
    tar.into_inner()?.flush()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn image() -> Image {
        let file = |content: &[u8], executable| File {
            content: content.to_vec(),
            executable,
        };
        Image {
            name: "muster-controller:0.1.0".to_owned(),
            files: [
                ("muster-controller".to_owned(), file(b"\x7fELF", true)),
                ("usr/lib/ipxe/undionly.kpxe".to_owned(), file(b"ipxe", false)),
            ]
            .into(),
            writable: vec!["tmp".to_owned()],
            entrypoint: vec!["/muster-controller".to_owned()],
            environment: vec!["A=b".to_owned()],
            labels: [("org.opencontainers.image.version".to_owned(), "0.1.0".to_owned())].into(),
            user: "65532:65532".to_owned(),
        }
    }

    fn written() -> Vec<u8> {
        let mut out = Vec::new();
        write(&image(), &mut out).unwrap();
        out
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        assert_eq!(written(), written());
    }

    #[test]
    fn every_blob_is_what_its_name_says_and_the_layer_holds_the_files() {
        let all = written();
        let mut blobs = BTreeMap::new();
        for entry in tar::Archive::new(&all[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            if let Some(name) = path.strip_prefix("blobs/sha256/").filter(|name| !name.is_empty()) {
                assert_eq!(digest(&content), name);
            }
            blobs.insert(path, content);
        }
        let read = |path: &str| -> Value { serde_json::from_slice(&blobs[path]).unwrap() };
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            format!("blobs/{}", digest.replace(':', "/"))
        };
        let manifest = read(&blob(&read("index.json")["manifests"][0]));
        let layer = &blobs[&blob(&manifest["layers"][0])];
        assert_eq!(manifest["layers"][0]["size"], layer.len());
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&layer[..])
            .read_to_end(&mut unpacked)
            .unwrap();
        let config = read(&blob(&manifest["config"]));
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", digest(&unpacked))
        );
        let mut archive = tar::Archive::new(&unpacked[..]);
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let mode = entry.header().mode().unwrap();
                (entry.path().unwrap().to_string_lossy().into_owned(), mode)
            })
            .collect();
        let expected = [
            ("usr/", 0o755),
            ("usr/lib/", 0o755),
            ("usr/lib/ipxe/", 0o755),
            ("tmp/", 0o1777),
            ("muster-controller", 0o755),
            ("usr/lib/ipxe/undionly.kpxe", 0o644),
        ]
        .map(|(path, mode)| (path.to_owned(), mode));
        assert_eq!(entries, expected);
    }
}
