//! Which reset type brings about what is wanted (DSP0268, `ResetType`). Pure.

use crate::bmc::{BmcError, PowerState, Reset};

/// The reset type to send to a system with this power, which takes the types `allowed` (none: it does not say); none if nothing is
/// to be sent.
pub(super) fn reset_type(
    power: &PowerState,
    want: Reset,
    allowed: Option<&[String]>,
) -> Result<Option<&'static str>, BmcError> {
    let (on, off) = match power {
        PowerState::On | PowerState::PoweringOn => (true, false),
        PowerState::Off => (false, true),
        // An operating system that shuts down may hang: cutting the power still makes sense, asking it again does not.
        PowerState::PoweringOff => (false, want == Reset::GracefulShutdown),
        PowerState::Unknown { .. } => (false, false),
    };
    let candidates: &[&'static str] = match want {
        Reset::On if on => return Ok(None),
        Reset::ForceOff | Reset::GracefulShutdown if off => return Ok(None),
        Reset::On => &["On", "ForceOn"],
        Reset::ForceRestart | Reset::GracefulRestart if off => &["On", "ForceOn"],
        Reset::ForceOff => &["ForceOff"],
        Reset::GracefulShutdown => &["GracefulShutdown"],
        Reset::ForceRestart => &["ForceRestart", "PowerCycle"],
        Reset::GracefulRestart => &["GracefulRestart"],
    };
    let takes = |kind: &&&'static str| allowed.is_none_or(|allowed| allowed.iter().any(|one| one == **kind));
    match candidates.iter().find(takes) {
        Some(kind) => Ok(Some(kind)),
        None => Err(BmcError::Unsupported {
            what: format!("{} of this system", candidates.join(" or ")),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Reset; 5] = [
        Reset::On,
        Reset::ForceOff,
        Reset::GracefulShutdown,
        Reset::ForceRestart,
        Reset::GracefulRestart,
    ];

    fn sent(power: &PowerState, allowed: Option<&[&str]>) -> [String; 5] {
        let allowed: Option<Vec<String>> =
            allowed.map(|all| all.iter().map(|one| (*one).to_owned()).collect());
        ALL.map(|want| match reset_type(power, want, allowed.as_deref()) {
            Ok(kind) => kind.unwrap_or("-").to_owned(),
            Err(BmcError::Unsupported { .. }) => "unsupported".to_owned(),
            Err(other) => panic!("{other}"),
        })
    }

    #[test]
    fn nothing_is_sent_for_what_is_so_already() {
        let unknown = PowerState::Unknown {
            reported: String::new(),
        };
        for (power, expected) in [
            (
                PowerState::On,
                [
                    "-",
                    "ForceOff",
                    "GracefulShutdown",
                    "ForceRestart",
                    "GracefulRestart",
                ],
            ),
            (
                PowerState::PoweringOn,
                [
                    "-",
                    "ForceOff",
                    "GracefulShutdown",
                    "ForceRestart",
                    "GracefulRestart",
                ],
            ),
            (PowerState::Off, ["On", "-", "-", "On", "On"]),
            (
                PowerState::PoweringOff,
                ["On", "ForceOff", "-", "ForceRestart", "GracefulRestart"],
            ),
            (
                unknown,
                [
                    "On",
                    "ForceOff",
                    "GracefulShutdown",
                    "ForceRestart",
                    "GracefulRestart",
                ],
            ),
        ] {
            assert_eq!(sent(&power, None), expected, "{power:?}");
        }
    }

    #[test]
    fn only_what_the_system_takes_is_sent() {
        let off = &PowerState::Off;
        let on = &PowerState::On;
        assert_eq!(
            sent(off, Some(&["ForceOn"])),
            ["ForceOn", "-", "-", "ForceOn", "ForceOn"]
        );
        assert_eq!(
            sent(on, Some(&["On", "ForceOff", "PowerCycle"])),
            ["-", "ForceOff", "unsupported", "PowerCycle", "unsupported"]
        );
        assert_eq!(sent(on, Some(&[]))[1..], ["unsupported"; 4]);
    }
}
