//! A clock that nobody sets, and that goes on while the computer is suspended. A virtual machine that its hypervisor pauses has no such
//! clock: KVM's counts only while the machine runs (QEMU, commit 00f4d64), so after the pause a leader takes its term for its own until its
//! next renewal is refused, or until it could not renew for long enough. What it sends until then is refused by the API server where it names
//! the version of an object, and by agents because of its term. A BMC does not know better.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::next::Moment;

/// `CLOCK_BOOTTIME` (clock_gettime(2)). A process that is stopped, or whose computer sleeps, finds that time has passed; a
/// `std::time::Instant` would not show a sleep, and neither shows a pause of the virtual machine.
pub fn now() -> Moment {
    // Fails only for a clock that the kernel does not know; this one is in Linux since 2.6.39.
    let read = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    // The end of time: whatever was allowed is over.
    read.unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_goes_on() {
        let before = super::now();
        assert!(before > std::time::Duration::ZERO);
        assert!(super::now() >= before);
    }
}
