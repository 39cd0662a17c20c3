//! The page about the states of a host: the text is written, the diagram and the tables are made from what the operator decides by.

use std::fmt::Write as _;

use super::File;
use crate::host::{
    State, WaitReason,
    reasons::{NEVER, REASONS},
    table::TRANSITIONS,
};

const TEXT: &str = include_str!("states.md");

/// The page as a file.
pub fn files() -> Vec<File> {
    vec![("states.md".to_owned(), page())]
}

fn page() -> String {
    TEXT.replace("@diagram@", &diagram())
        .replace("@states@", &states())
        .replace("@transitions@", &transitions())
        .replace("@reasons@", &reasons())
        .replace("@events@", &events())
        .replace("@never@", &words(NEVER))
}

/// The state's name as the page writes it.
fn name(state: State) -> String {
    match state {
        State::New => "(new)".to_owned(),
        State::Foreign => "(unknown)".to_owned(),
        named => format!("`{named}`"),
    }
}

fn diagram() -> String {
    let mut text = "```mermaid\nstateDiagram-v2\n".to_owned();
    for state in State::ALL.into_iter().filter(|state| *state != State::New) {
        let _ = writeln!(text, "    state \"{state}\" as {state:?}");
    }
    for way in TRANSITIONS {
        if way.to == State::Deleting && way.from != State::PoweringOffBeforeDelete {
            continue;
        }
        let from = match way.from {
            State::New => "[*]".to_owned(),
            state => format!("{state:?}"),
        };
        let _ = writeln!(text, "    {from} --> {:?}", way.to);
    }
    text.push_str("    Deleting --> [*]\n```");
    text
}

fn states() -> String {
    let mut text = "| state | meaning | ramdisk | place |\n| --- | --- | --- | --- |".to_owned();
    for state in State::ALL {
        let mark = |yes: bool| if yes { "yes" } else { "" };
        let _ = write!(
            text,
            "\n| {} | {} | {} | {} |",
            name(state),
            state.meaning(),
            mark(state.boots_ramdisk()),
            mark(state.is_busy())
        );
    }
    text
}

fn transitions() -> String {
    let mut text = "| from | to | when |\n| --- | --- | --- |".to_owned();
    for way in TRANSITIONS {
        let _ = write!(text, "\n| {} | {} | {} |", name(way.from), name(way.to), way.when);
    }
    text
}

fn reasons() -> String {
    let mut text = "| reason | waits for |\n| --- | --- |".to_owned();
    for reason in WaitReason::ALL {
        let _ = write!(text, "\n| `{}` | {} |", reason.name(), reason.doc());
    }
    text
}

fn words(all: &[&str]) -> String {
    let all: Vec<String> = all.iter().map(|word| format!("`{word}`")).collect();
    all.join(", ")
}

fn events() -> String {
    let mut text = "| reason | when |\n| --- | --- |".to_owned();
    for reason in REASONS {
        let own = if reason.upstream { "" } else { " (ours)" };
        let _ = write!(text, "\n| `{}`{own} | {} |", reason.name, reason.when);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_committed_page_about_states_is_fresh() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/states.md");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(committed, page(), "run `cargo xtask codegen`");
    }

    #[test]
    fn nothing_of_the_page_is_left_to_be_filled_in() {
        for word in [
            "@diagram@",
            "@states@",
            "@transitions@",
            "@reasons@",
            "@events@",
            "@never@",
        ] {
            assert!(TEXT.contains(word) && !page().contains(word));
        }
    }
}
