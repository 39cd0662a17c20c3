//! QEMU's control socket: JSON, one object a line.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);

/// A connection; QEMU takes one at a time.
#[derive(Debug)]
pub struct Qmp {
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves the negotiation behind.
    pub fn connect(path: &Path) -> Result<Qmp> {
        let stream = UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .context("limit the wait for QEMU")?;
        let mut qmp = Qmp {
            lines: BufReader::new(stream),
        };
        qmp.read()?; // the greeting
        qmp.run("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Runs a command without arguments.
    pub fn run(&mut self, command: &str) -> Result<()> {
        self.execute(command, &json!({})).map(|_| ())
    }

    /// Runs a command and returns its result.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.lines.get_mut(), "{request}").with_context(|| format!("send {command} to QEMU"))?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {}", error["desc"]);
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            // Anything else is an event.
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line).context("hear from QEMU")? == 0 {
            bail!("QEMU has ended");
        }
        serde_json::from_str(&line).context("read what QEMU says")
    }
}
