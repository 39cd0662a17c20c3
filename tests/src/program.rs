//! A program that runs beside the lab, and what it says.

use std::{fmt, fs, path::Path, process::Child};

use anyhow::{Context, Result, ensure};

use crate::lines::Lines;

/// True unless the process `id` is gone or only waits to be reaped.
pub fn runs(id: &impl fmt::Display) -> bool {
    fs::read_to_string(format!("/proc/{id}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

/// A running one, whose output is kept; it ends with this.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    process: Child,
    said: Lines,
}

impl Program {
    /// `process`, whose standard output and error are pipes; what it says also goes to the file `log`. `name` is for people.
    pub fn new(name: &'static str, mut process: Child, log: &Path) -> Result<Program> {
        let said = Lines::to(log);
        said.follow(process.stdout.take().context("its standard output")?)?;
        said.follow(process.stderr.take().context("its standard error")?)?;
        Ok(Program { name, process, said })
    }

    /// The number of its process, for its memory and CPU time.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it has said.
    pub fn said(&self) -> &Lines {
        &self.said
    }

    /// Fails if it has ended, with what it said last.
    pub fn lives(&mut self) -> Result<()> {
        let name = self.name;
        let ended = self.process.try_wait();
        let ended = ended.with_context(|| format!("check on {name}"))?;
        ensure!(ended.is_none(), "{name} ended: {}", self.said.last(5).join("; "));
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
