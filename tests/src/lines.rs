//! What a process says, line by line, with the moment of each line: serial consoles and logs.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{sync::watch, time::timeout_at};

/// The longest line that is kept in one piece, in bytes: a guest may print without ever ending a line.
const LONGEST: u64 = 4096;

/// One line, without its end.
#[derive(Clone, Debug)]
pub struct Line {
    /// When its end arrived.
    pub at: Instant,
    /// The text; bytes that are no UTF-8 are replaced.
    pub text: String,
}

/// The growing list of lines of one or, in turn, several processes; also written to a file.
#[derive(Clone, Debug)]
pub struct Lines {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    lines: Mutex<Vec<Line>>,
    count: watch::Sender<usize>,
    path: PathBuf,
}

impl Lines {
    /// An empty list whose lines also go to `path`.
    pub fn to(path: &Path) -> Lines {
        Lines {
            shared: Arc::new(Shared {
                lines: Mutex::new(Vec::new()),
                count: watch::Sender::new(0),
                path: path.to_owned(),
            }),
        }
    }

    /// Reads `source` to its end on a thread of its own.
    pub fn follow(&self, source: impl Read + Send + 'static) -> Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.shared.path)
            .with_context(|| format!("open {}", self.shared.path.display()))?;
        let shared = Arc::clone(&self.shared);
        thread::Builder::new()
            .name("lab-lines".to_owned())
            .spawn(move || shared.read(source, file))
            .context("start a thread")?;
        Ok(())
    }

    /// How many lines there are: where to start looking for what comes next.
    pub fn len(&self) -> usize {
        self.shared.locked().len()
    }

    /// True before the first line.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lines from number `from` on.
    pub fn from(&self, from: usize) -> Vec<Line> {
        self.shared.locked().get(from..).unwrap_or_default().to_vec()
    }

    /// The last `count` lines, made fit to show.
    pub fn last(&self, count: usize) -> Vec<String> {
        let lines = self.shared.locked();
        let tail = &lines[lines.len().saturating_sub(count)..];
        tail.iter()
            .map(|line| muster_proto::text::clean(line.text.as_bytes()))
            .collect()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Resolves when there are more than `seen` lines.
    pub async fn more_than(&self, seen: usize) {
        let mut count = self.shared.count.subscribe();
        // The sender lives in what we hold, so the wait cannot fail.
        let _ = count.wait_for(|count| *count > seen).await;
    }

    /// The first line from number `from` on that contains `pattern`, and its number.
    pub async fn wait_for(&self, pattern: &str, from: usize, within: Duration) -> Result<(usize, Line)> {
        self.wait_until(&format!("a line with {pattern:?}"), from, within, |line| {
            line.contains(pattern)
        })
        .await
    }

    /// The first line from number `from` on for which `test` holds, and its number; `what` names it in the error.
    pub async fn wait_until(
        &self,
        what: &str,
        from: usize,
        within: Duration,
        test: impl Fn(&str) -> bool,
    ) -> Result<(usize, Line)> {
        let deadline = tokio::time::Instant::now() + within;
        let mut seen = from;
        loop {
            for line in self.from(seen) {
                if test(&line.text) {
                    return Ok((seen, line));
                }
                seen += 1;
            }
            if timeout_at(deadline, self.more_than(seen)).await.is_err() {
                bail!(
                    "{}: {what} did not come within {within:?}; the last lines are:\n  {}",
                    self.shared.path.display(),
                    self.last(15).join("\n  ")
                );
            }
        }
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, Vec<Line>> {
        // A list of lines is whole at every moment, whoever panicked.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, source: impl Read, mut file: File) {
        let mut source = BufReader::new(source);
        loop {
            let mut raw = Vec::new();
            match source.by_ref().take(LONGEST).read_until(b'\n', &mut raw) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let at = Instant::now();
            // A full disk must not stop the process that speaks.
            let _ = file.write_all(&raw);
            let text = String::from_utf8_lossy(&raw)
                .trim_end_matches(['\r', '\n'])
                .to_owned();
            let count = {
                let mut lines = self.locked();
                lines.push(Line { at, text });
                lines.len()
            };
            self.count.send_replace(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[tokio::test]
    async fn line_is_found_wherever_it_comes_from() {
        let scratch = Scratch::new().unwrap();
        let lines = Lines::to(&scratch.path().join("log"));
        lines.follow(&b"one\r\ntwo\xff\nthree"[..]).unwrap();
        let (at, line) = lines.wait_for("three", 0, Duration::from_secs(5)).await.unwrap();
        assert_eq!((at, line.text.as_str()), (2, "three"));
        assert_eq!(lines.from(1)[0].text, "two\u{fffd}");
        let error = lines
            .wait_for("four", 0, Duration::from_millis(10))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("three"), "{error}");
        assert_eq!(std::fs::read(lines.path()).unwrap(), b"one\r\ntwo\xff\nthree");
    }

    #[tokio::test]
    async fn endless_line_is_cut() {
        let scratch = Scratch::new().unwrap();
        let lines = Lines::to(&scratch.path().join("log"));
        lines.follow(std::io::repeat(b'x').take(10_000)).unwrap();
        lines.more_than(2).await;
        assert_eq!(
            lines.from(0).iter().map(|line| line.text.len()).sum::<usize>(),
            10_000
        );
    }
}
