//! Access to what threads share.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`. Nothing panics while it holds one of these; if it did, what it left is still whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
