//! The page about the controller's flags, made from the command line itself.

use std::fmt::Write as _;

use clap::{Arg, CommandFactory as _};

use super::File;
use crate::args::Cli;

const HEAD: &str = "# Flags of the controller

Generated from the code by `cargo xtask codegen`; do not edit.
Each flag except `--kubeconfig` has an environment variable, so that a manifest can set either; the flag takes precedence.
The table says how the items of a list in a variable are separated; a flag is repeated for each item.

| flag | variable | default | what |
| --- | --- | --- | --- |
";

/// The page as a file.
pub fn files() -> Vec<File> {
    vec![("flags.md".to_owned(), page())]
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    for arg in Cli::command().get_arguments() {
        if let (Some(flag), false) = (
            arg.get_long(),
            matches!(arg.get_id().as_str(), "help" | "version"),
        ) {
            writeln!(
                page,
                "| `--{flag}` | {} | {} | {} |",
                variable(arg),
                default(arg),
                what(arg)
            )
            .expect("a String takes everything");
        }
    }
    page
}

fn variable(arg: &Arg) -> String {
    let Some(name) = arg.get_env().and_then(|name| name.to_str()) else {
        return String::new();
    };
    match arg.get_value_delimiter() {
        Some(delimiter) => format!("`{name}`, separated by `{delimiter}`"),
        None => format!("`{name}`"),
    }
}

fn default(arg: &Arg) -> String {
    let values: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    values.join(", ")
}

fn what(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let values: Vec<_> = arg
        .get_possible_values()
        .iter()
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    let one_of = match values.is_empty() || !arg.get_action().takes_values() {
        true => String::new(),
        false => format!(" ({})", values.join(", ")),
    };
    format!("{help}{one_of}").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_there_with_its_variable_and_default() {
        let page = page();
        for row in [
            "| `--agent-port` | `MUSTER_AGENT_PORT` | `9443` | ",
            "| `--extra-ca` | `MUSTER_EXTRA_CAS`, separated by `:` |  | ",
            "| `--watch-namespace` | `MUSTER_WATCH_NAMESPACE` |  | ",
        ] {
            assert!(page.contains(row), "{row}\\n{page}");
        }
        let flags = Cli::command()
            .get_arguments()
            .filter(|arg| arg.get_env().is_some())
            .count();
        let rows = page.lines().filter(|line| line.starts_with("| `--")).count();
        assert!(rows >= flags && flags > 20, "{rows} rows, {flags} flags");
        assert!(
            page.lines().all(|line| !line.ends_with("|  |")),
            "each says what it is"
        );
    }
}
