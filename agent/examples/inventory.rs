//! Prints this machine's inventory as JSON: `cargo run -p muster-agent --example inventory [ROOT]`.
//! As root it sees serial numbers, too. With ROOT it reads a captured tree.

use std::{
    error::Error,
    io::{Write, stdout},
    time::Instant,
};

use muster_agent::{
    inventory::{self, BootFacts, KernelLinks},
    sys::Root,
};

fn main() -> Result<(), Box<dyn Error>> {
    let root = std::env::args_os().nth(1).map_or_else(Root::default, Root::new);
    let start = Instant::now();
    let inventory = inventory::collect(&root, &KernelLinks::shared(), BootFacts::default());
    let took = start.elapsed();
    let mut out = stdout().lock();
    serde_json::to_writer_pretty(&mut out, &inventory)?;
    writeln!(out)?;
    eprintln!("collected in {took:?}");
    Ok(())
}
