//! PID 1 of the ramdisk; on a running machine it shows the inventory.

use std::process::ExitCode;

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
        ["inventory"] => print_inventory(),
        _ => {
            eprintln!("usage: muster-agent inventory    prints this machine's inventory as JSON\n\n{ABOUT}");
            ExitCode::from(2)
        }
    }
}

const ABOUT: &str =
    "As process 1 of the ramdisk it enrols the machine with its controller and reports the inventory.";

fn print_inventory() -> ExitCode {
    let facts = BootFacts {
        uptime: clock::uptime(),
        ..BootFacts::default()
    };
    let inventory = inventory::collect(&Root::default(), &KernelLinks, facts);
    let json = serde_json::to_string_pretty(&inventory).expect("an inventory has only string keys");
    println!("{json}");
    ExitCode::SUCCESS
}
