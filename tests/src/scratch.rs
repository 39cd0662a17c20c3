//! A directory that disappears with its owner, whichever way that ends.

use std::{
    env,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

/// Keeps the files for a look after the fact.
const KEEP: &str = "MUSTER_LAB_KEEP";

/// Reads until its standard input ends, which happens when the owner is gone, then removes the directory.
/// It tries again because the owner's other children may still be dying and writing.
const REMOVER: &str = r#"trap "" INT TERM HUP
cat >/dev/null
for attempt in 1 2 3 4 5; do rm -rf -- "$1" 2>/dev/null && exit; sleep 1; done"#;

/// A temporary directory. A small process of its own waits for the owner's end and removes the directory even after
/// `kill -9`, when no destructor runs. With `MUSTER_LAB_KEEP` set, nothing is removed.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    remover: Option<Child>,
}

impl Scratch {
    /// Makes one. Its path is short, because the paths of unix sockets below it may have at most 107 bytes.
    pub fn new() -> Result<Scratch> {
        let dir = tempfile::Builder::new()
            .prefix("ml-")
            .tempdir()
            .context("make a temporary directory")?
            .keep();
        if env::var_os(KEEP).is_some() {
            return Ok(Scratch { dir, remover: None });
        }
        let remover = Command::new("/bin/sh")
            .args(["-c", REMOVER, "sh"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // Ctrl-C reaches the owner only
            .spawn()
            .context("start the process that removes the temporary directory")?;
        Ok(Scratch {
            dir,
            remover: Some(remover),
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A directory inside, made if missing.
    pub fn sub(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(mut remover) = self.remover.take() {
            drop(remover.stdin.take());
            // Its status says nothing that anyone could act on.
            let _ = remover.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_is_gone_with_its_owner() {
        let scratch = Scratch::new().unwrap();
        let dir = scratch.path().to_owned();
        std::fs::write(scratch.sub("a").unwrap().join("file"), "x").unwrap();
        drop(scratch);
        assert_eq!(dir.exists(), env::var_os(KEEP).is_some());
    }
}
