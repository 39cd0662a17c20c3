//! Builds ramdisks.

fn main() {}
