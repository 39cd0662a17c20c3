//! What is written to arm a boot override (DSP0268, ComputerSystem, `Boot`). Pure.

use serde_json::{Map, Value, json};

use super::{model::BootState, quirks::Shape};
use crate::bmc::{BmcError, Boot, Device, Lasting, Mode, WantedMode};

/// The body of the PATCH that makes `want` of `now`; none if it is so already.
pub(super) fn patch(now: &BootState, want: Boot, shape: Shape) -> Result<Option<Value>, BmcError> {
    let target = match want.device {
        Device::None => "None",
        Device::Pxe => "Pxe",
        Device::Hdd => "Hdd",
        Device::UefiHttp => "UefiHttp",
    };
    let enabled = match (want.device, want.lasting) {
        (Device::None, _) => "Disabled",
        (_, Lasting::Once) => "Once",
        (_, Lasting::Continuous) => "Continuous",
    };
    let takes = |words: &Option<Vec<String>>, word: &str| {
        words
            .as_ref()
            .is_none_or(|words| words.iter().any(|one| one == word))
    };
    if want.device != Device::None && !takes(&now.targets, target) {
        let there = now
            .targets
            .as_ref()
            .map(|words| words.join(", "))
            .unwrap_or_default();
        return Err(unsupported(&format!(
            "boot from {target}; this system takes {there}"
        )));
    }
    if (want.device, want.mode) == (Device::UefiHttp, WantedMode::Required(Mode::Legacy)) {
        return Err(unsupported("UefiHttp boot of a PC BIOS"));
    }
    let mode = wanted_mode(now, want.mode, shape)?;
    let is = |there: &Option<String>, word: &str| there.as_deref() == Some(word);
    let same_target = is(&now.target, target) || (want.device == Device::None && now.target.is_none());
    let same_enabled = is(&now.enabled, enabled) || (want.device == Device::None && now.enabled.is_none());
    let same_mode = mode.is_none_or(|mode| is(&now.mode, mode));
    // A target that is disabled counts for nothing.
    if same_enabled && same_mode && (same_target || want.device == Device::None) {
        return Ok(None);
    }
    let mut boot = Map::new();
    let mut set = |property: &str, value: &str| {
        boot.insert(format!("BootSourceOverride{property}"), json!(value));
    };
    if takes(&now.targets, target) {
        set("Target", target);
    }
    if shape == Shape::Whole || !same_enabled {
        set("Enabled", enabled);
    }
    match mode {
        Some(mode) if shape == Shape::Whole || !same_mode => set("Mode", mode),
        _ => {}
    }
    Ok(Some(json!({ "Boot": boot })))
}

/// True if `body` says in which mode to boot.
pub(super) fn has_mode(body: &Value) -> bool {
    body.pointer("/Boot/BootSourceOverrideMode").is_some()
}

/// The mode that is to be after, if any is to be written. Systems that tell none (HPE's ninth generation) cannot be given one.
fn wanted_mode(now: &BootState, want: WantedMode, shape: Shape) -> Result<Option<&'static str>, BmcError> {
    let word = |mode: Mode| match mode {
        Mode::Uefi => "UEFI",
        Mode::Legacy => "Legacy",
    };
    let Some(is) = now.mode.as_deref() else {
        return Ok(None);
    };
    let lists = |word: &str| {
        let modes = now.modes.as_ref()?;
        Some(modes.iter().any(|one| one == word))
    };
    match want {
        WantedMode::Required(mode) if lists(word(mode)) == Some(false) => {
            Err(unsupported(&format!("boot mode {}", word(mode))))
        }
        WantedMode::Required(mode) => Ok(Some(word(mode))),
        WantedMode::Preferred(mode) if lists(word(mode)) == Some(true) => Ok(Some(word(mode))),
        WantedMode::Any | WantedMode::Preferred(_) => {
            let there = [Mode::Uefi, Mode::Legacy]
                .map(word)
                .into_iter()
                .find(|word| *word == is);
            Ok(there.filter(|_| shape == Shape::Whole))
        }
    }
}

fn unsupported(what: &str) -> BmcError {
    BmcError::Unsupported {
        what: muster_proto::text::clean(what.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state(target: &str, enabled: &str, mode: &str) -> BootState {
        let told = |word: &str| (!word.is_empty()).then(|| word.to_owned());
        BootState {
            target: told(target),
            enabled: told(enabled),
            mode: told(mode),
            ..BootState::default()
        }
    }

    fn want(device: Device, mode: Option<Mode>) -> Boot {
        Boot {
            device,
            mode: mode.map_or(WantedMode::Any, WantedMode::Required),
            lasting: Lasting::Once,
        }
    }

    /// `Target Enabled Mode` of what is sent; `-` for what is left out.
    fn sent(now: &BootState, want: Boot, shape: Shape) -> String {
        let Some(body) = patch(now, want, shape).unwrap() else {
            return "nothing".to_owned();
        };
        let boot = body["Boot"].as_object().unwrap();
        let one = |name: &str| {
            let value = boot.get(&format!("BootSourceOverride{name}"));
            value.map_or("-", |value| value.as_str().unwrap())
        };
        format!("{} {} {}", one("Target"), one("Enabled"), one("Mode"))
    }

    #[test]
    fn plain_systems_are_told_what_changes() {
        let shape = Shape::Changes;
        let disabled = state("None", "Disabled", "UEFI");
        let armed = state("Pxe", "Once", "UEFI");
        let uefi = Some(Mode::Uefi);
        assert_eq!(sent(&disabled, want(Device::Pxe, uefi), shape), "Pxe Once -");
        assert_eq!(
            sent(&disabled, want(Device::Pxe, Some(Mode::Legacy)), shape),
            "Pxe Once Legacy"
        );
        assert_eq!(sent(&armed, want(Device::Pxe, uefi), shape), "nothing");
        assert_eq!(sent(&armed, want(Device::Hdd, None), shape), "Hdd - -");
        assert_eq!(sent(&armed, want(Device::None, None), shape), "None Disabled -");
        assert_eq!(sent(&disabled, want(Device::None, None), shape), "nothing");
        assert_eq!(
            sent(&state("Pxe", "Disabled", ""), want(Device::None, None), shape),
            "nothing"
        );
        assert_eq!(
            sent(&state("", "", ""), want(Device::Pxe, None), shape),
            "Pxe Once -"
        );
    }

    #[test]
    fn whole_systems_are_told_everything_every_time() {
        let shape = Shape::Whole;
        let armed = state("Pxe", "Once", "Legacy");
        assert_eq!(sent(&armed, want(Device::Hdd, None), shape), "Hdd Once Legacy");
        assert_eq!(
            sent(&armed, want(Device::Hdd, Some(Mode::Uefi)), shape),
            "Hdd Once UEFI"
        );
        assert_eq!(
            sent(&armed, want(Device::None, None), shape),
            "None Disabled Legacy"
        );
        assert_eq!(sent(&armed, want(Device::Pxe, None), shape), "nothing");
    }

    #[test]
    fn a_system_that_tells_no_mode_is_given_none() {
        let gen9 = state("None", "Disabled", "");
        for shape in [Shape::Changes, Shape::Whole] {
            assert_eq!(
                sent(&gen9, want(Device::Pxe, Some(Mode::Uefi)), shape),
                "Pxe Once -"
            );
        }
    }

    #[test]
    fn what_the_system_does_not_take_is_not_sent() {
        let mut now = state("None", "Disabled", "UEFI");
        now.targets = Some(vec!["Pxe".to_owned(), "Hdd".to_owned()]);
        now.modes = Some(vec!["UEFI".to_owned()]);
        let shape = Shape::Changes;
        for refused in [
            want(Device::UefiHttp, None),
            want(Device::Pxe, Some(Mode::Legacy)),
        ] {
            assert!(matches!(
                patch(&now, refused, shape),
                Err(BmcError::Unsupported { .. })
            ));
        }
        now.enabled = Some("Once".to_owned());
        // "None" is not among its targets: disabling is enough.
        assert_eq!(sent(&now, want(Device::None, None), shape), "- Disabled -");
        let bios = want(Device::UefiHttp, Some(Mode::Legacy));
        assert!(patch(&BootState::default(), bios, shape).is_err());
    }

    #[test]
    fn a_mode_that_is_preferred_is_sent_where_the_system_lists_it() {
        let preferred = Boot {
            device: Device::Pxe,
            mode: WantedMode::Preferred(Mode::Uefi),
            lasting: Lasting::Once,
        };
        for (modes, shape, expected) in [
            (None, Shape::Changes, "Pxe Once -"),
            (None, Shape::Whole, "Pxe Once Legacy"),
            (Some(vec!["Legacy"]), Shape::Changes, "Pxe Once -"),
            (Some(vec!["Legacy", "UEFI"]), Shape::Changes, "Pxe Once UEFI"),
            (Some(vec!["Legacy", "UEFI"]), Shape::Whole, "Pxe Once UEFI"),
        ] {
            let mut now = state("None", "Disabled", "Legacy");
            now.modes = modes
                .clone()
                .map(|modes| modes.into_iter().map(str::to_owned).collect());
            assert_eq!(sent(&now, preferred, shape), expected, "{modes:?} {shape:?}");
        }
    }

    proptest! {
        /// A system that does what it is told needs to be told once.
        #[test]
        fn what_was_written_needs_no_second_write(
            target in prop::option::of("None|Pxe|Hdd|Cd"), enabled in prop::option::of("Disabled|Once|Continuous"),
            mode in prop::option::of("UEFI|Legacy"), whole in any::<bool>(),
            device in prop_oneof![Just(Device::None), Just(Device::Pxe), Just(Device::Hdd), Just(Device::UefiHttp)],
            wanted in prop_oneof![
                Just(WantedMode::Any), Just(WantedMode::Preferred(Mode::Uefi)), Just(WantedMode::Required(Mode::Uefi)),
            ],
            modes in prop::option::of(prop_oneof![Just(vec!["UEFI"]), Just(vec!["UEFI", "Legacy"])]),
            lasting in prop_oneof![Just(Lasting::Once), Just(Lasting::Continuous)],
        ) {
            let modes = modes.map(|modes| modes.into_iter().map(str::to_owned).collect());
            let mut now = BootState { target, enabled, mode, modes, ..BootState::default() };
            let shape = if whole { Shape::Whole } else { Shape::Changes };
            let want = Boot { device, mode: wanted, lasting };
            if let Some(body) = patch(&now, want, shape).unwrap() {
                let boot = &body["Boot"];
                let told = |name: &str| boot.get(name).and_then(Value::as_str).map(str::to_owned);
                now.target = told("BootSourceOverrideTarget").or(now.target);
                now.enabled = told("BootSourceOverrideEnabled").or(now.enabled);
                now.mode = told("BootSourceOverrideMode").or(now.mode);
            }
            prop_assert_eq!(patch(&now, want, shape).unwrap(), None);
        }
    }
}
