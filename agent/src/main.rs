//! PID 1 of the ramdisk; on a running machine it shows the inventory.

use std::{
    io::{ErrorKind, Write},
    process::ExitCode,
};

use muster_agent::{
    clock,
    inventory::{self, BootFacts, KernelLinks},
    pid1,
    sys::Root,
};

fn main() -> ExitCode {
    if std::process::id() == 1 {
        pid1::run();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["inventory"] => print(&inventory()),
        ["--version"] => print(concat!("muster-agent ", env!("CARGO_PKG_VERSION"))),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

const USAGE: &str = "usage: muster-agent inventory    prints this machine's inventory as JSON
       muster-agent --version

As process 1 of the ramdisk it enrols the machine with its controller and reports the inventory.";

fn inventory() -> String {
    let facts = BootFacts {
        uptime: clock::uptime(),
        ..BootFacts::default()
    };
    let inventory = inventory::collect(&Root::default(), &KernelLinks::shared(), facts);
    serde_json::to_string_pretty(&inventory).expect("an inventory has only string keys")
}

fn print(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        // Who reads may have read enough.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("muster-agent: standard output: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}
