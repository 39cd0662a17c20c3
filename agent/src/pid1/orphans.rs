//! Processes whose parent died are process 1's to bury. The agent starts none; a helper of the kernel might.

use std::time::Duration;

use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, waitpid},
};

/// How soon a dead child is buried at the latest.
const ROUND: Duration = Duration::from_secs(10);

/// Buries dead children, on a thread of its own.
pub(super) fn reap_for_ever() {
    let reap = || {
        loop {
            // With `__WALL` it waits without turning in circles until some child ends; without a child it fails at once.
            match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_no_child) => std::thread::sleep(ROUND),
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("orphans".to_owned()).spawn(reap) {
        tracing::warn!("start the thread for orphans: {error}");
    }
}
