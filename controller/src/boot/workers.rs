//! Threads on which boot files are served, each with a runtime of its own.
//!
//! A connection or transfer stays on its thread. On a runtime of many threads it wanders between them, and the kernel then needs a
//! tenth more of a processor for the same bytes (1,000 clients of `cargo xtask bench discovery --only load`).

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
};

/// The threads; they end when this is dropped, with whatever they serve.
#[derive(Debug)]
pub(super) struct Workers {
    handles: Vec<Handle>,
    turn: AtomicUsize,
    _running: watch::Sender<()>,
}

impl Workers {
    /// Starts `count` of them, named after `what` they serve.
    pub(super) fn start(what: &str, count: usize) -> io::Result<Workers> {
        let (running, ended) = watch::channel(());
        let mut handles = Vec::new();
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            handles.push(runtime.handle().clone());
            let mut ended = ended.clone();
            thread::Builder::new()
                .name(format!("{what}-{number}"))
                .spawn(move || runtime.block_on(async { while ended.changed().await.is_ok() {} }))?;
        }
        Ok(Workers {
            handles,
            turn: AtomicUsize::new(0),
            _running: running,
        })
    }

    /// The runtime of the caller alone, whose clock a test may have stopped.
    #[cfg(test)]
    pub(super) fn here() -> Workers {
        Workers {
            handles: vec![Handle::current()],
            turn: AtomicUsize::new(0),
            _running: watch::channel(()).0,
        }
    }

    /// The one whose turn it is.
    pub(super) fn next(&self) -> &Handle {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &self.handles[turn % self.handles.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn threads_end_with_what_they_run() {
        let workers = Workers::start("test", 2).unwrap();
        let (held, mut dropped) = tokio::sync::mpsc::channel::<()>(1);
        for _ in 0..2 * workers.handles.len() {
            let held = held.clone();
            workers.next().spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            });
        }
        drop(held);
        drop(workers);
        assert_eq!(dropped.recv().await, None, "none of them runs on");
    }
}
