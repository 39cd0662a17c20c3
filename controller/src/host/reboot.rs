//! The annotations that ask for a reboot. Pure.

use muster_proto::kinds::{BareMetalHost, REBOOT_ANNOTATION};
use serde::Deserialize;

use super::draft::bounded;
use crate::hosts::arguments;

/// What an annotation says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Arguments {
    mode: String,
    force: bool,
}

/// How the machine is to go down at once.
const HARD: &str = "hard";
/// What else an annotation may say of that.
const MODES: [&str; 3] = ["", "soft", HARD];

/// What all of them say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// Once off and on again.
    pub(super) once: bool,
    /// Off until whoever asked for it takes the wish back.
    pub(super) stay_off: bool,
    /// Without asking the operating system first.
    pub(super) hard: bool,
}

impl Wish {
    /// True if the host is to be switched off for it.
    pub(super) fn off(self) -> bool {
        self.once || self.stay_off
    }
}

/// What the annotations of `host` ask for; `forced` counts only those that say `force`.
pub(super) fn wish(host: &BareMetalHost, forced: bool) -> Wish {
    let mut wish = Wish::default();
    for (_, phased, arguments) in asked(host, forced) {
        wish.hard |= arguments.mode == HARD;
        wish.once |= !phased;
        wish.stay_off |= phased;
    }
    wish
}

/// The annotations of `host` that count: how they are called, whether they ask for it to stay off, and what they say.
fn asked(host: &BareMetalHost, forced: bool) -> impl Iterator<Item = (&str, bool, Arguments)> {
    let all = host.metadata.annotations.iter().flatten();
    all.filter_map(move |(name, value)| {
        let phased = is_phased(name)?;
        // What cannot be read counts as a plain wish.
        let arguments: Arguments = arguments(value).unwrap_or_default();
        (!forced || arguments.force).then_some((name.as_str(), phased, arguments))
    })
}

/// Those of them that ask for it to stay off.
pub(super) fn staying_off(host: &BareMetalHost, forced: bool) -> impl Iterator<Item = &str> {
    asked(host, forced).filter_map(|(name, phased, _)| phased.then_some(name))
}

/// Whether the annotation `name` asks for more than one reboot: that the host stays off as long as it is there; none: it asks for none.
fn is_phased(name: &str) -> Option<bool> {
    let rest = name.strip_prefix(REBOOT_ANNOTATION)?;
    let phased = rest.starts_with('/');
    (phased || rest.is_empty()).then_some(phased)
}

/// What is wrong with the annotations of `host`, for people; none: all can be read.
pub(super) fn unreadable(host: &BareMetalHost) -> Option<String> {
    let mut wrong = Vec::new();
    for (name, value) in host.metadata.annotations.iter().flatten() {
        if is_phased(name).is_none() {
            continue;
        }
        match arguments::<Arguments>(value) {
            Err(error) => wrong.push(format!(
                "the annotation {name} cannot be parsed: {error}; it is treated as if it had no value"
            )),
            Ok(said) if !MODES.contains(&said.mode.as_str()) => wrong.push(format!(
                "the mode {:?} in the annotation {name} is neither hard nor soft; it is ignored",
                said.mode
            )),
            Ok(_) => {}
        }
    }
    let example = r#"{"mode":"hard"}"#;
    (!wrong.is_empty()).then(|| {
        bounded(&format!(
            "{}; use JSON such as {example}, or no value",
            wrong.join("; ")
        ))
    })
}
