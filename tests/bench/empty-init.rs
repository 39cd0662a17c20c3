//! An `/init` that does nothing, to measure what firmware, network boot and kernel take without an agent.
//! `cargo xtask bench` compiles it; it is part of no crate.

fn main() {
    println!("muster-bench: init");
    loop {
        std::thread::park();
    }
}
