//! What is logged, for tests that read it.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use tracing::{Dispatch, subscriber::DefaultGuard};

/// The lines that this thread logs from now on, until this is dropped.
pub(crate) struct Said {
    lines: Lines,
    _listening: DefaultGuard,
    _another: Dispatch,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Said {
    pub(crate) fn listen() -> Said {
        // With one subscriber alone, a thread that has none could decide for all that nobody wants to hear of this.
        let another = Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish());
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Said {
            lines,
            _listening: tracing::subscriber::set_default(subscriber),
            _another: another,
        }
    }

    /// All of them.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap()
    }

    /// How many have all of `words`.
    pub(crate) fn count(&self, words: &[&str]) -> usize {
        let text = self.text();
        let lines = text.lines();
        lines
            .filter(|line| words.iter().all(|word| line.contains(word)))
            .count()
    }

    /// Waits for a line that has all of `words`; on a clock that is stopped, too.
    pub(crate) async fn until(&self, words: &[&str]) {
        let heard = async {
            while self.count(words) == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let heard = tokio::time::timeout(std::time::Duration::from_secs(20), heard).await;
        assert!(heard.is_ok(), "no line has {words:?}: {}", self.text());
    }
}
