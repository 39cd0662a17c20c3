//! PID 1 of the ramdisk.

fn main() {}
