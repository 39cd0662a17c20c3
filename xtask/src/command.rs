//! Running other programs: say what runs, fail with its name.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::root;

/// A command line that can be run and can describe itself.
pub(crate) struct Cmd(Command);

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Cmd(Command::new(program))
    }

    pub(crate) fn args<I: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = I>) -> Self {
        self.0.args(args);
        self
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.0.arg(arg);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(key, value);
        self
    }

    pub(crate) fn env_remove(mut self, key: &str) -> Self {
        self.0.env_remove(key);
        self
    }

    pub(crate) fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.0.current_dir(dir);
        self
    }

    fn describe(&self) -> String {
        let words = std::iter::once(self.0.get_program()).chain(self.0.get_args());
        words
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Runs it with our input and output; an exit status other than 0 is an error.
    pub(crate) fn run(mut self) -> Result<()> {
        let status = self
            .0
            .status()
            .with_context(|| format!("starting `{}`", self.describe()))?;
        if !status.success() {
            bail!("`{}` ended with {status}", self.describe());
        }
        Ok(())
    }

    /// Runs it in the place of this process, so that it gets the signals that people send, and its exit status is what they see.
    /// Comes back only if it cannot be started.
    pub(crate) fn replace(mut self) -> Result<()> {
        let error = self.0.exec();
        Err(error).with_context(|| format!("starting `{}`", self.describe()))
    }

    /// Runs it with its output in `target/logs/NAME.log`; an exit status other than 0 is an error that names the file.
    pub(crate) fn run_logged(mut self, name: &str) -> Result<()> {
        let dir = root().join("target/logs");
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let copy = file.try_clone().context("sharing the log file")?;
        let status = self.0.stdin(Stdio::null()).stdout(file).stderr(copy).status();
        let status = status.with_context(|| format!("starting `{}`", self.describe()))?;
        if !status.success() {
            bail!(
                "`{}` ended with {status}; its output is in {}",
                self.describe(),
                log.display()
            );
        }
        Ok(())
    }

    /// Runs it and returns what it printed.
    pub(crate) fn output(mut self) -> Result<String> {
        let output = self.0.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("starting `{}`", self.describe()))?;
        if !output.status.success() {
            bail!("`{}` ended with {}", self.describe(), output.status);
        }
        String::from_utf8(output.stdout)
            .with_context(|| format!("reading the output of `{}`", self.describe()))
    }

    /// True if it runs and ends with status 0; prints nothing.
    pub(crate) fn succeeds(mut self) -> bool {
        let quiet = self
            .0
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    }
}
