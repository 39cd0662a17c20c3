//! File descriptors that the runtime waits for and has no type of its own for: netlink sockets.

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// `fd`, to be waited for. It must be non-blocking. Needs a tokio runtime with IO.
///
/// # Errors
/// If the kernel cannot wait for such a descriptor.
#[allow(unsafe_code)]
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, and the same descriptor, until it is dropped, and the `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register(fd) };
    Ok(watched?)
}
