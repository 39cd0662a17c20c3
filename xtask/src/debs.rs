//! Debian's packages, downloaded and not installed: kept below `target/debs`, of the version that apt knows now; without the network, the former one.

use std::{fs, path::PathBuf, time::SystemTime};

use anyhow::{Context, Result, bail};

use crate::{command::Cmd, root, setup};

/// Each profile and Debian's meta package of its kernel.
pub(crate) const KERNELS: [(&str, &str); 2] = [
    ("lab", "linux-image-cloud-amd64"),
    ("server", "linux-image-amd64"),
];

/// Debian's package of the EFI stub.
pub(crate) const STUB: &str = "systemd-boot-efi";

/// Downloads what boots the lab's machines: the EFI stub, and the kernels that the meta packages stand for now.
pub(crate) fn for_boot() -> Result<()> {
    package(STUB)?;
    KERNELS.iter().try_for_each(|(_, meta)| choose_kernel(meta))
}

/// Where the name of the package stands that a meta package was found to stand for.
fn chosen(meta: &str) -> PathBuf {
    root().join(format!("target/debs/{meta}.name"))
}

/// Downloads the kernel that a meta package stands for now, and keeps its name.
fn choose_kernel(meta: &str) -> Result<()> {
    let note = chosen(meta);
    let found = dependency(meta).and_then(|name| package(&name).map(|_| name));
    let error = match found {
        Ok(name) => {
            return fs::write(&note, name).with_context(|| format!("writing {}", note.display()));
        }
        Err(error) => error,
    };
    // Without the network, or the lists of packages, what was built before is built again.
    let Ok(former) = fs::read_to_string(&note) else {
        return Err(error);
    };
    eprintln!(
        "· {meta}: the package that it stands for now cannot be downloaded ({error:#}); using {former}"
    );
    package(&former).map(drop)
}

/// The kernel that [`for_boot`] chose.
pub(crate) fn kernel(meta: &str) -> Result<PathBuf> {
    let note = chosen(meta);
    let name = fs::read_to_string(&note).with_context(|| format!("reading {}", note.display()))?;
    package(&name)
}

/// The package that a meta package stands for.
fn dependency(meta: &str) -> Result<String> {
    let read = || -> Result<Option<String>> {
        let text = Cmd::new("apt-cache")
            .env("LC_ALL", "C")
            .args(["depends", "--important", meta])
            .output()?;
        Ok(text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned))
    };
    // A fresh container has no package lists yet: then apt-cache fails or finds nothing.
    if let Ok(Some(name)) = read() {
        return Ok(name);
    }
    setup::apt_update()?;
    let advice =
        || format!("find the package behind {meta}; if `apt-get update` was never run, run it as root");
    read().with_context(advice)?.with_context(advice)
}

/// The version of the package that apt would install; none: it knows of none.
fn candidate(name: &str) -> Option<String> {
    let text = Cmd::new("apt-cache")
        .env("LC_ALL", "C")
        .args(["policy", name])
        .output()
        .ok()?;
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// What the name of the package's `.deb` begins with, as `apt-get download` gives it; of any version if none is known.
fn file_prefix(name: &str, version: Option<&str>) -> String {
    match version {
        Some(version) => format!("{name}_{}_", version.replace(':', "%3a")),
        None => format!("{name}_"),
    }
}

/// The path of the package's `.deb` below `target/debs`, of the version that apt knows now, downloaded if it is not there.
pub(crate) fn package(name: &str) -> Result<PathBuf> {
    let dir = root().join("target/debs");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let find = |version: Option<&str>| -> Result<Option<PathBuf>> {
        let prefix = file_prefix(name, version);
        let mut found: Vec<PathBuf> = fs::read_dir(&dir)
            .with_context(|| format!("listing {}", dir.display()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                path.file_name()
                    .is_some_and(|file| file.to_string_lossy().starts_with(&prefix))
            })
            .collect();
        found.sort();
        Ok(found.pop())
    };
    if let Some(path) = find(candidate(name).as_deref())? {
        return Ok(path);
    }
    // Elsewhere first: what was interrupted must not pass for the package.
    let part = dir.join("part");
    let download = || -> Result<()> {
        if part.exists() {
            fs::remove_dir_all(&part).with_context(|| format!("emptying {}", part.display()))?;
        }
        fs::create_dir_all(&part).with_context(|| format!("creating {}", part.display()))?;
        Cmd::new("apt-get")
            .dir(&part)
            .args(["download", "--quiet=2", name])
            .run_logged("download")
    };
    if download().is_err() {
        let again = setup::apt_update().and_then(|()| download());
        if let Err(error) = again {
            // Without the network, what was built before is built again.
            let Some(former) = find(None)? else {
                return Err(error).context("if `apt-get update` was never run, run it as root");
            };
            eprintln!(
                "· {name}: a newer version cannot be downloaded; using {}",
                former.display()
            );
            return Ok(former);
        }
    }
    for entry in fs::read_dir(&part).with_context(|| format!("listing {}", part.display()))? {
        let entry = entry.with_context(|| format!("listing {}", part.display()))?;
        let whole = dir.join(entry.file_name());
        fs::rename(entry.path(), &whole).with_context(|| format!("moving to {}", whole.display()))?;
        // It comes with the time of its making, and what was made of another version may be younger.
        let file = fs::File::options().append(true).open(&whole);
        file.and_then(|file| file.set_modified(SystemTime::now()))
            .with_context(|| format!("setting the time of {}", whole.display()))?;
    }
    match find(candidate(name).as_deref())? {
        Some(path) => Ok(path),
        None => bail!("apt-get download {name} left no file in {}", part.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_looked_for_by_its_version() {
        assert_eq!(file_prefix("ipxe", Some("1.0.0+git-1")), "ipxe_1.0.0+git-1_");
        assert_eq!(file_prefix("systemd", Some("1:252.1-1")), "systemd_1%3a252.1-1_");
        assert_eq!(file_prefix("ipxe", None), "ipxe_");
    }
}
