//! The end that a person asks for.

use anyhow::{Context, Result};

/// Resolves at Ctrl-C or SIGTERM.
pub(crate) async fn interrupted() -> Result<()> {
    let terminate = tokio::signal::unix::SignalKind::terminate();
    let mut terminate = tokio::signal::unix::signal(terminate).context("listen for signals")?;
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => outcome.context("listen for signals"),
        _ = terminate.recv() => Ok(()),
    }
}

/// What comes of `job`; none if a person asks for the end before that.
pub(crate) async fn unless_interrupted<T>(job: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    tokio::select! {
        done = job => done.map(Some),
        outcome = interrupted() => outcome.map(|()| None),
    }
}
