//! A finished ramdisk on disk, under a name made from its contents.
//!
//! ```text
//! OUT/PROFILE/current                  the name of the release to serve, written last
//! OUT/PROFILE/RELEASE/manifest.json    sizes and SHA-256 of the other files; RELEASE is made from its own SHA-256
//! OUT/PROFILE/RELEASE/{vmlinuz,initramfs,stub.efi}
//! ```
//!
//! The directory of a release that is no longer current was last modified when it ceased to be; [`prune`] goes by that.
//!
//! A release never changes, so a URL with its name gives the same bytes for ever, on every replica.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};

/// The manifest's layout; another number is another layout.
const FORMAT: u32 = 1;
const CURRENT: &str = "current";
const MANIFEST: &str = "manifest.json";
const VMLINUZ: &str = "vmlinuz";
const INITRAMFS: &str = "initramfs";
const STUB: &str = "stub.efi";
/// How long after it ceased to be current a release stays in any case: twice as long as a boot URL can be used.
const STAYS: Duration = Duration::from_secs(2 * 3600);
/// Hexadecimal digits of a release's name.
const HASH_LEN: usize = 16;

/// What is in a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of this layout.
    pub format: u32,
    /// The profile that the modules were chosen by.
    pub profile: String,
    /// As `uname -r` prints it.
    pub kernel_version: String,
    /// Versions of the packages that kernel, modules and stub were taken from, by name: whoever passes them on offers their sources.
    #[serde(default)]
    pub packages: BTreeMap<String, String>,
    /// Length and digest of each file, by name.
    pub files: BTreeMap<String, FileFacts>,
    /// Length and digest of the agent inside the initramfs.
    pub agent: FileFacts,
    /// How many modules the initramfs holds.
    pub modules: usize,
    /// Bytes of the initramfs when it is unpacked, all of which the machine must hold in memory.
    pub unpacked: u64,
    /// The firmware that each module may ask for, below `/lib/firmware`; some names are patterns.
    pub firmware: BTreeMap<String, Vec<String>>,
}

/// A file's identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 in lower-case hexadecimal digits.
    pub sha256: String,
}

impl FileFacts {
    /// The facts of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            size: bytes.len() as u64,
            sha256: hex(digest(&SHA256, bytes).as_ref()),
        }
    }
}

/// Why a release cannot be written or must not be served.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Reading a file failed.
    #[error("read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Writing a file or directory failed.
    #[error("write {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Removing an old release or what an interrupted build left failed.
    #[error("remove {path:?}")]
    Remove {
        /// The directory or file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// `current` holds something other than a release's name.
    #[error("read {path:?}: it names no release")]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// The manifest is not JSON of the expected shape.
    #[error("read {path:?}: it is not a manifest")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Where it differs.
        #[source]
        source: serde_json::Error,
    },
    /// The manifest was written by another version of this program.
    #[error("read {path:?}: its format is {found}, but this program reads {FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The number in it.
        found: u32,
    },
    /// A file is absent from the manifest.
    #[error("read {path:?}: it does not list {name}")]
    Unlisted {
        /// The manifest.
        path: PathBuf,
        /// The file's name.
        name: &'static str,
    },
    /// A file differs from what was built: half-written, damaged or exchanged.
    #[error("check {path:?}: it is damaged, {what} is {found}, not {expected}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which of its facts differs.
        what: &'static str,
        /// The fact as found.
        found: String,
        /// The fact as built.
        expected: String,
    },
}

/// A release whose files were all found to be as they were built.
#[derive(Clone, Debug)]
pub struct Release {
    /// The release's name, for URLs.
    pub hash: String,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// Its length in bytes.
    pub kernel_len: u64,
    /// The compressed initramfs.
    pub initramfs: PathBuf,
    /// Its length in bytes.
    pub initramfs_len: u64,
    /// The UEFI stub; [`Uki`](crate::uki::Uki) takes it.
    pub stub: Vec<u8>,
    /// All that is known about the release.
    pub manifest: Manifest,
}

impl Release {
    /// Opens and checks the release that `OUT/PROFILE/current` names.
    pub fn open(profile_dir: &Path) -> Result<Self, ReleaseError> {
        Self::open_named(profile_dir, &current(profile_dir)?)
    }

    /// Opens and checks the release of that name below `OUT/PROFILE`, which need not be the current one.
    pub fn open_named(profile_dir: &Path, hash: &str) -> Result<Self, ReleaseError> {
        if !is_name(hash) {
            return Err(ReleaseError::Name {
                path: profile_dir.join(hash),
            });
        }
        let dir = profile_dir.join(hash);
        let path = dir.join(MANIFEST);
        let bytes = read(&path)?;
        let found = name_of(&bytes);
        if found != hash {
            let expected = hash.to_owned();
            return Err(ReleaseError::Damaged {
                path,
                what: "the name made from it",
                found,
                expected,
            });
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|source| ReleaseError::Manifest {
            path: path.clone(),
            source,
        })?;
        if manifest.format != FORMAT {
            return Err(ReleaseError::Format {
                path,
                found: manifest.format,
            });
        }
        let facts = |name| {
            manifest.files.get(name).ok_or_else(|| ReleaseError::Unlisted {
                path: path.clone(),
                name,
            })
        };
        let kernel = dir.join(VMLINUZ);
        check(&kernel, facts(VMLINUZ)?)?;
        let initramfs = dir.join(INITRAMFS);
        check(&initramfs, facts(INITRAMFS)?)?;
        let stub_path = dir.join(STUB);
        let stub = read(&stub_path)?;
        compare(&stub_path, &FileFacts::of(&stub), facts(STUB)?)?;
        let (kernel_len, initramfs_len) = (facts(VMLINUZ)?.size, facts(INITRAMFS)?.size);
        Ok(Self {
            hash: hash.to_owned(),
            kernel,
            kernel_len,
            initramfs,
            initramfs_len,
            stub,
            manifest,
        })
    }
}

/// The name in `OUT/PROFILE/current`, cheap enough to ask for often; whether that release is whole,
/// [`Release::open`] tells.
pub fn current(profile_dir: &Path) -> Result<String, ReleaseError> {
    let path = profile_dir.join(CURRENT);
    let name = String::from_utf8(read(&path)?).unwrap_or_default();
    let name = name.trim_end();
    if is_name(name) {
        Ok(name.to_owned())
    } else {
        Err(ReleaseError::Name { path })
    }
}

/// Everything that a release is made of.
#[derive(Clone, Debug)]
pub struct Content {
    /// The profile's name.
    pub profile: String,
    /// As `uname -r` prints it.
    pub kernel_version: String,
    /// Versions of the packages that kernel, modules and stub were taken from, by name.
    pub packages: BTreeMap<String, String>,
    /// The kernel.
    pub vmlinuz: Vec<u8>,
    /// The compressed initramfs.
    pub initramfs: Vec<u8>,
    /// The UEFI stub.
    pub stub: Vec<u8>,
    /// Identity of the agent in the initramfs.
    pub agent: FileFacts,
    /// How many modules the initramfs holds.
    pub modules: usize,
    /// Bytes of the initramfs unpacked.
    pub unpacked: u64,
    /// The firmware that each module may ask for.
    pub firmware: BTreeMap<String, Vec<String>>,
}

/// Writes a release below `out` and then makes it the current one; gives its name.
///
/// Whatever happens in between, `current` names a whole release. The same content written twice is one release.
pub fn write(out: &Path, content: &Content) -> Result<String, ReleaseError> {
    let files = [
        (VMLINUZ, &content.vmlinuz),
        (INITRAMFS, &content.initramfs),
        (STUB, &content.stub),
    ];
    let manifest = Manifest {
        format: FORMAT,
        profile: content.profile.clone(),
        kernel_version: content.kernel_version.clone(),
        packages: content.packages.clone(),
        files: files
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), FileFacts::of(bytes)))
            .collect(),
        agent: content.agent.clone(),
        modules: content.modules,
        unpacked: content.unpacked,
        firmware: content.firmware.clone(),
    };
    let mut manifest = serde_json::to_vec_pretty(&manifest).expect("a manifest has only string keys");
    manifest.push(b'\n');
    let hash = name_of(&manifest);
    let profile_dir = out.join(&content.profile);
    if Release::open_named(&profile_dir, &hash).is_err() {
        let scratch = profile_dir.join(format!(".{hash}.{}", std::process::id()));
        let written = files.into_iter().map(|(name, bytes)| (name, bytes.as_slice()));
        let placed = write_dir(&scratch, written.chain([(MANIFEST, manifest.as_slice())]))
            .and_then(|()| place(&scratch, &profile_dir.join(&hash)));
        if placed.is_err() {
            // Best effort: the first error is the one to report.
            let _ = fs::remove_dir_all(&scratch);
        }
        placed?;
        sync_dir(&profile_dir)?;
    }
    if let Ok(former) = current(&profile_dir)
        && former != hash
    {
        leaves(&profile_dir.join(former))?;
    }
    let path = profile_dir.join(CURRENT);
    let scratch = profile_dir.join(format!(".{CURRENT}.{}", std::process::id()));
    write_file(&scratch, format!("{hash}\n").as_bytes())?;
    fs::rename(&scratch, &path).map_err(|source| ReleaseError::Write { path, source })?;
    sync_dir(&profile_dir)?;
    Ok(hash)
}

/// Marks `dir` as ceasing to be current now. Done before it does: a release that seems to have left long ago may be removed.
fn leaves(dir: &Path) -> Result<(), ReleaseError> {
    let mark = || File::open(dir)?.set_modified(SystemTime::now());
    match mark() {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ReleaseError::Write {
            path: dir.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Removes from `OUT/PROFILE` the releases that no machine boots any more, and what interrupted builds left; gives their names.
///
/// The current release and the one before it stay, and whatever was current within the last two hours before `now`: a machine
/// may still be on its way with a URL of it.
pub fn prune(profile_dir: &Path, now: SystemTime) -> Result<Vec<String>, ReleaseError> {
    let current = current(profile_dir)?;
    let failed = |source| ReleaseError::Read {
        path: profile_dir.to_owned(),
        source,
    };
    let mut releases = Vec::new();
    let mut leftovers = Vec::new();
    for entry in fs::read_dir(profile_dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let left = entry
            .metadata()
            .and_then(|data| data.modified())
            .map_err(failed)?;
        if is_name(&name) && name != current {
            releases.push((left, name));
        } else if is_scratch(&name) {
            leftovers.push((left, name));
        }
    }
    releases.sort_unstable();
    // The last to leave is the one before the current.
    releases.pop();
    let old = |left: &SystemTime| now.duration_since(*left).is_ok_and(|age| age > STAYS);
    let mut removed = Vec::new();
    for (_, name) in leftovers
        .into_iter()
        .chain(releases)
        .filter(|(left, _)| old(left))
    {
        remove(profile_dir, &name)?;
        removed.push(name);
    }
    Ok(removed)
}

/// Removes `name` in one step as far as others see it: a release is whole or not there.
fn remove(profile_dir: &Path, name: &str) -> Result<(), ReleaseError> {
    let path = profile_dir.join(name);
    let gone = if is_scratch(name) {
        path.clone()
    } else {
        profile_dir.join(format!(".{name}.gone"))
    };
    let remove = || {
        if gone != path {
            fs::rename(&path, &gone)?;
        }
        if gone.is_dir() {
            fs::remove_dir_all(&gone)
        } else {
            fs::remove_file(&gone)
        }
    };
    remove().map_err(|source| ReleaseError::Remove { path, source })
}

/// True for `.RELEASE.…` and `.current.…`, as [`write`] and [`prune`] use them on the way.
fn is_scratch(name: &str) -> bool {
    name.strip_prefix('.')
        .and_then(|rest| rest.split_once('.'))
        .is_some_and(|(of, _)| of == CURRENT || is_name(of))
}

fn write_dir<'a>(dir: &Path, files: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<(), ReleaseError> {
    fs::create_dir_all(dir).map_err(|source| ReleaseError::Write {
        path: dir.to_owned(),
        source,
    })?;
    for (name, bytes) in files {
        write_file(&dir.join(name), bytes)?;
    }
    sync_dir(dir)
}

/// Gives the finished `scratch` its name, in place of a damaged directory of that name.
fn place(scratch: &Path, dir: &Path) -> Result<(), ReleaseError> {
    let failed = |source| ReleaseError::Write {
        path: dir.to_owned(),
        source,
    };
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    fs::rename(scratch, dir).map_err(failed)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ReleaseError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| ReleaseError::Write {
        path: path.to_owned(),
        source,
    })
}

fn sync_dir(dir: &Path) -> Result<(), ReleaseError> {
    let sync = || File::open(dir)?.sync_all();
    sync().map_err(|source| ReleaseError::Write {
        path: dir.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, ReleaseError> {
    fs::read(path).map_err(|source| ReleaseError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Checks a file without holding it in memory.
fn check(path: &Path, expected: &FileFacts) -> Result<(), ReleaseError> {
    let facts = || {
        let mut file = File::open(path)?;
        let mut context = Context::new(&SHA256);
        let mut chunk = vec![0; 256 << 10];
        let mut size = 0;
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                len => {
                    context.update(&chunk[..len]);
                    size += len as u64;
                }
            }
        }
        Ok(FileFacts {
            size,
            sha256: hex(context.finish().as_ref()),
        })
    };
    let found = facts().map_err(|source| ReleaseError::Read {
        path: path.to_owned(),
        source,
    })?;
    compare(path, &found, expected)
}

fn compare(path: &Path, found: &FileFacts, expected: &FileFacts) -> Result<(), ReleaseError> {
    let (what, found, expected) = if found.size != expected.size {
        ("its length", found.size.to_string(), expected.size.to_string())
    } else if found.sha256 != expected.sha256 {
        ("its SHA-256", found.sha256.clone(), expected.sha256.clone())
    } else {
        return Ok(());
    };
    Err(ReleaseError::Damaged {
        path: path.to_owned(),
        what,
        found,
        expected,
    })
}

/// A release's name: the start of the SHA-256 of its manifest, which in turn holds that of every other file.
fn name_of(manifest: &[u8]) -> String {
    let mut name = hex(digest(&SHA256, manifest).as_ref());
    name.truncate(HASH_LEN);
    name
}

fn is_name(name: &str) -> bool {
    name.len() == HASH_LEN && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Two hexadecimal digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
