//! The annotations that ask for a reboot. Pure.

use muster_proto::kinds::{BareMetalHost, REBOOT_ANNOTATION};
use serde::Deserialize;

/// What an annotation says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Arguments {
    mode: Mode,
    force: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Hard,
    Soft,
    #[default]
    #[serde(rename = "")]
    Unset,
}

/// What all of them say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// Once off and on again.
    pub(super) once: bool,
    /// Off until whoever asked for it takes the wish back.
    pub(super) stay_off: bool,
    /// Without asking the operating system first.
    pub(super) hard: bool,
    /// Some value could not be read, and counts as a plain wish.
    pub(super) unreadable: bool,
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
    for (name, value) in host.metadata.annotations.iter().flatten() {
        let Some(rest) = name.strip_prefix(REBOOT_ANNOTATION) else {
            continue;
        };
        let phased = rest.starts_with('/');
        if !phased && !rest.is_empty() {
            continue;
        }
        let parsed = match value.trim() {
            "" => Ok(Arguments::default()),
            value => serde_json::from_str::<Arguments>(value),
        };
        wish.unreadable |= parsed.is_err();
        let arguments = parsed.unwrap_or_default();
        if forced && !arguments.force {
            continue;
        }
        wish.hard |= arguments.mode == Mode::Hard;
        wish.once |= !phased;
        wish.stay_off |= phased;
    }
    wish
}
