//! The ramdisks on disk, open for serving: of each profile the current release, and every other one that is still there, so
//! that a machine that began to boot with one release ends with it.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
    time::{Duration, Instant},
};

use muster_proto::{Chain, kinds::Profile};
use muster_ramdisk::{
    cpio::Archive,
    firmware::{self, FirmwareError},
    release::{self, Manifest, Release, ReleaseError},
};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::http::{body::Segment, route::ReleaseName};

/// How often the disk is looked at, at most, and only when someone asks for something.
const LOOK: Duration = Duration::from_secs(2);

const PROFILES: [Profile; 2] = [Profile::Server, Profile::Lab];

/// Why a ramdisk or what goes with it is not served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The release is absent or damaged.
    #[error("open release of profile {}", profile.name())]
    Release {
        /// Which.
        profile: Profile,
        /// Why.
        #[source]
        source: ReleaseError,
    },
    /// One of its files cannot be opened.
    #[error("open {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Firmware or certificates cannot be collected.
    #[error("collect firmware and certificate authorities for the ramdisk")]
    Collect(#[source] FirmwareError),
    /// The collection cannot be kept.
    #[error("keep firmware for the ramdisk in {}", directory.display())]
    Keep {
        /// Where.
        directory: PathBuf,
        /// Why: usually a full disk.
        #[source]
        source: io::Error,
    },
}

/// What the user adds to every ramdisk.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// Folders with firmware, as `/lib/firmware`; the first that has a file wins.
    pub firmware: Vec<PathBuf>,
    /// Files with certificate authorities of the site, PEM.
    pub authorities: Vec<PathBuf>,
}

/// A file open for serving. It stays whole even if it is removed.
#[derive(Clone, Debug)]
pub struct Open {
    file: Arc<File>,
    len: u64,
}

impl Open {
    fn path(path: &Path, len: u64) -> Result<Self, OpenError> {
        let file = File::open(path).map_err(|source| OpenError::Open {
            path: path.to_owned(),
            source,
        })?;
        // Advice only: that the first machine need not wait for the disk.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        Ok(Open {
            file: Arc::new(file),
            len,
        })
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True for a file without bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The whole file as part of a body.
    pub fn segment(&self) -> Segment {
        Segment::File {
            file: Arc::clone(&self.file),
            offset: 0,
            len: self.len,
        }
    }
}

/// A release, open.
#[derive(Clone, Debug)]
pub struct Ramdisk {
    /// The release's name.
    pub name: String,
    /// The kernel.
    pub kernel: Open,
    /// The compressed initramfs.
    pub initramfs: Open,
    /// An archive with the user's firmware and certificate authorities, if there are any.
    pub extras: Option<Open>,
    /// The UEFI stub.
    pub stub: Vec<u8>,
}

/// The ramdisks below one directory, `{directory}/{profile}/{release}`.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    extras: Extras,
    /// Where the archives of [`Extras`] lie, nameless.
    scratch: PathBuf,
    seen: RwLock<Arc<Seen>>,
    /// When the disk was last looked at; also held while it is.
    looked: Mutex<Option<Instant>>,
}

/// What was on disk when it was last looked at.
#[derive(Clone, Debug, Default)]
struct Seen {
    current: HashMap<Profile, Arc<Ramdisk>>,
    /// What the directories list, by name.
    listed: BTreeMap<String, Arc<Listed>>,
}

/// A release that is there; opened and checked when it is first asked for, once.
#[derive(Debug)]
struct Listed {
    profile: Profile,
    opened: OnceLock<Option<Arc<Ramdisk>>>,
}

impl Files {
    /// The ramdisks below `directory`. That there are none yet is no error: the directory is looked at again and again.
    /// `scratch` is a directory for the archives of `extras`, such as the system's for temporary files.
    pub fn open(directory: &Path, extras: Extras, scratch: &Path) -> Self {
        let files = Files {
            directory: directory.to_owned(),
            extras,
            scratch: scratch.to_owned(),
            seen: RwLock::default(),
            looked: Mutex::default(),
        };
        if let Err(source) = fs::read_dir(directory) {
            let path = directory.to_owned();
            complain(
                &OpenError::Open { path, source },
                "no machine can boot a ramdisk: the directory of --boot-dir cannot be read; next: the directory is checked again",
            );
        }
        files.look();
        files
    }

    /// The release that machines of `profile` boot now.
    pub fn current(&self, profile: Profile) -> Option<Arc<Ramdisk>> {
        self.look();
        self.seen().current.get(&profile).cloned()
    }

    /// The release of this name, if it is still on disk and whole.
    pub fn release(&self, name: &ReleaseName) -> Option<Arc<Ramdisk>> {
        self.look();
        let listed = self.seen().listed.get(name.as_str()).cloned()?;
        listed
            .opened
            .get_or_init(|| {
                let opened = self.open_named(listed.profile, name.as_str());
                opened
                    .map_err(|error| complain(&error, "a release is not served"))
                    .ok()
                    .map(Arc::new)
            })
            .clone()
    }

    /// Looks at the disk at the next request, however recent the last look is: tests do not wait for [`LOOK`].
    #[cfg(test)]
    pub(crate) fn reload(&self) {
        *crate::sync::lock(&self.looked) = None;
    }

    fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at the disk if that is due. Only one thread does, and only where a new release appeared does it take long
    /// (its files are checked); the others go on with what was seen before.
    fn look(&self) {
        let Ok(mut looked) = self.looked.try_lock() else {
            return;
        };
        if looked.is_some_and(|at| at.elapsed() < LOOK) {
            return;
        }
        let before = self.seen();
        let after = Arc::new(self.look_again(&before));
        *self.seen.write().unwrap_or_else(PoisonError::into_inner) = after;
        *looked = Some(Instant::now());
    }

    fn look_again(&self, before: &Seen) -> Seen {
        let mut after = Seen::default();
        for profile in PROFILES {
            for name in self.list(profile) {
                let known = before
                    .listed
                    .get(&name)
                    // One that could not be opened may have been on its way here.
                    .filter(|listed| listed.profile == profile && !matches!(listed.opened.get(), Some(None)));
                let listed = known.cloned().unwrap_or_else(|| {
                    Arc::new(Listed {
                        profile,
                        opened: OnceLock::new(),
                    })
                });
                after.listed.insert(name, listed);
            }
            let former = before.current.get(&profile);
            let Some(current) = self.look_at_current(profile, former) else {
                continue;
            };
            let opened = OnceLock::from(Some(Arc::clone(&current)));
            after
                .listed
                .insert(current.name.clone(), Arc::new(Listed { profile, opened }));
            after.current.insert(profile, current);
        }
        after
    }

    /// The current release of `profile`. A damaged one does not take the place of one that works.
    fn look_at_current(&self, profile: Profile, former: Option<&Arc<Ramdisk>>) -> Option<Arc<Ramdisk>> {
        let name = match release::current(&self.directory.join(profile.name())) {
            Ok(name) => name,
            // No ramdisk of that profile was ever built: nothing to complain about.
            Err(ReleaseError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return former.cloned();
            }
            Err(source) => {
                complain(
                    &OpenError::Release { profile, source },
                    "the previous release stays in use",
                );
                return former.cloned();
            }
        };
        if let Some(former) = former.filter(|former| former.name == name) {
            return Some(Arc::clone(former));
        }
        match self.open_named(profile, &name) {
            Ok(opened) => {
                tracing::info!(profile = profile.name(), release = name, "ramdisk is served");
                Some(Arc::new(opened))
            }
            Err(error) => {
                complain(&error, "the previous release stays in use");
                former.cloned()
            }
        }
    }

    /// The names in the profile's directory that could be releases.
    fn list(&self, profile: Profile) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.directory.join(profile.name())) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.parse::<ReleaseName>().is_ok())
            .collect()
    }

    fn open_named(&self, profile: Profile, name: &str) -> Result<Ramdisk, OpenError> {
        let release = Release::open_named(&self.directory.join(profile.name()), name)
            .map_err(|source| OpenError::Release { profile, source })?;
        let extras = match self.collect(&release.manifest) {
            Ok(extras) => extras,
            Err(error) => {
                complain(
                    &error,
                    "the ramdisk is served without anything from --firmware-dir and --extra-ca",
                );
                None
            }
        };
        Ok(Ramdisk {
            kernel: Open::path(&release.kernel, release.kernel_len)?,
            initramfs: Open::path(&release.initramfs, release.initramfs_len)?,
            extras,
            name: release.hash,
            stub: release.stub,
        })
    }

    /// The archive of the user's firmware, as far as the release's modules name it, and certificate authorities.
    fn collect(&self, manifest: &Manifest) -> Result<Option<Open>, OpenError> {
        let Extras {
            firmware: folders,
            authorities,
        } = &self.extras;
        if folders.is_empty() && authorities.is_empty() {
            return Ok(None);
        }
        let mut archive = Archive::new();
        // A machine without one of them may still come in; one without a ramdisk cannot.
        let without = |error| {
            complain(
                &OpenError::Collect(error),
                "the ramdisk is served without a part of --firmware-dir or --extra-ca",
            );
        };
        for (number, authority) in authorities.iter().enumerate() {
            if let Err(error) = firmware::add_authority(&mut archive, number, authority) {
                without(error);
            }
        }
        if !folders.is_empty() {
            match firmware::add_firmware(&mut archive, folders, &manifest.firmware) {
                Ok(missing) => {
                    for missing in &missing {
                        let (module, file) = (&missing.module, &missing.name);
                        tracing::debug!(module, file, "firmware was found in none of the folders");
                    }
                    let profile = &manifest.profile;
                    let missing = missing.len();
                    tracing::info!(profile, bytes = archive.byte_len(), missing, "firmware collected");
                }
                Err(error) => without(error),
            }
        }
        let kept = |source| OpenError::Keep {
            directory: self.scratch.clone(),
            source,
        };
        // Nameless: gone with its last user, even if that one is killed, and never in the way of the next one.
        let mut file = tempfile::tempfile_in(&self.scratch).map_err(kept)?;
        let mut out = io::BufWriter::with_capacity(1 << 18, &mut file);
        archive
            .write_to(&mut out)
            .and_then(|()| out.flush())
            .map_err(kept)?;
        drop(out);
        Ok(Some(Open {
            file: Arc::new(file),
            len: archive.byte_len(),
        }))
    }
}

impl super::decide::Releases for Files {
    fn directory(&self) -> &Path {
        &self.directory
    }

    fn current(&self, profile: Profile) -> Option<String> {
        Files::current(self, profile).map(|ramdisk| ramdisk.name.clone())
    }
}

fn complain(error: &OpenError, so: &'static str) {
    tracing::error!(error = %Chain(error), "{so}");
}

#[cfg(test)]
pub(crate) mod tests;
