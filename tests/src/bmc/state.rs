//! One machine as its BMC sees it. No IO; what happens comes out as events.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::{BootQuirk, Change};

/// Its power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerState {
    /// On.
    On,
    /// Off.
    Off,
}

/// What happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The system's name.
    pub system: String,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Its power came, and it boots this.
    On(BootSource),
    /// Its power is gone.
    Off,
    /// Its operating system is asked to shut down.
    ShutdownAsked,
    /// Its operating system is asked to restart.
    RestartAsked,
}

/// What the firmware boots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootSource {
    /// The word of Redfish, such as `Pxe`; none for the firmware's own order.
    pub target: Option<String>,
    /// `UEFI` or `Legacy`.
    pub mode: String,
}

#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) serial: String,
    pub(super) mac: [u8; 6],
    power: PowerState,
    /// On its way there, until it was read so often.
    pending: Option<(PowerState, u32)>,
    pub(super) target: String,
    pub(super) enabled: String,
    pub(super) mode: String,
    /// Target and enabled as they were written last.
    pub(super) written: [String; 2],
    /// Counts the changes.
    pub(super) version: u64,
}

/// Why something is refused: HTTP status, message id of the Base registry, text.
pub(super) type Refusal = (u16, &'static str, &'static str);

impl Machine {
    pub(super) fn new(name: &str) -> Machine {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let [a, b, c, d, e, f, g, h] = hasher.finish().to_be_bytes();
        Machine {
            name: name.to_owned(),
            uuid: format!(
                "{a:02x}{b:02x}{c:02x}{d:02x}-{e:02x}{f:02x}-4{:01x}{g:02x}-8{:01x}{h:02x}-{a:02x}{c:02x}{e:02x}{b:02x}{d:02x}{f:02x}",
                g >> 4,
                h >> 4
            ),
            serial: format!("LB-{name}"),
            mac: [0x52, 0x54, a, b, c, d],
            power: PowerState::Off,
            pending: None,
            written: ["None", "Disabled"].map(str::to_owned),
            target: "None".to_owned(),
            enabled: "Disabled".to_owned(),
            mode: "UEFI".to_owned(),
            version: 1,
        }
    }

    pub(super) fn power(&self) -> PowerState {
        self.power
    }

    /// The word for its power.
    pub(super) fn shown(&self) -> &'static str {
        match (self.pending, self.power) {
            (Some((PowerState::On, _)), _) => "PoweringOn",
            (Some((PowerState::Off, _)), _) => "PoweringOff",
            (None, PowerState::On) => "On",
            (None, PowerState::Off) => "Off",
        }
    }

    /// Somebody looks at it.
    pub(super) fn read(&mut self) -> Vec<Event> {
        match &mut self.pending {
            Some((_, 0)) => self.arrive(),
            Some((_, reads)) => {
                *reads -= 1;
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// What is pending happens.
    pub(super) fn arrive(&mut self) -> Vec<Event> {
        match self.pending.take() {
            Some((PowerState::On, _)) => self.went_on(),
            Some((PowerState::Off, _)) => self.went_off(),
            None => Vec::new(),
        }
    }

    pub(super) fn went_off(&mut self) -> Vec<Event> {
        self.pending = None;
        if self.power == PowerState::Off {
            return Vec::new();
        }
        self.power = PowerState::Off;
        self.version += 1;
        vec![self.event(What::Off)]
    }

    pub(super) fn went_on(&mut self) -> Vec<Event> {
        self.pending = None;
        if self.power == PowerState::On {
            return Vec::new();
        }
        self.power = PowerState::On;
        let source = self.boots();
        vec![self.event(What::On(source))]
    }

    /// By itself, unless it is about to be off.
    pub(super) fn restarted(&mut self) -> Vec<Event> {
        let stays_off = matches!(self.pending, Some((PowerState::Off, _)));
        let mut events = self.went_off();
        if !stays_off {
            events.extend(self.went_on());
        }
        events
    }

    pub(super) fn armed(&self) -> BootSource {
        BootSource {
            target: (self.enabled != "Disabled" && self.target != "None").then(|| self.target.clone()),
            mode: self.mode.clone(),
        }
    }

    pub(super) fn boots(&mut self) -> BootSource {
        let source = self.armed();
        if self.enabled == "Once" {
            self.enabled = "Disabled".to_owned();
            self.target = "None".to_owned();
        }
        self.version += 1;
        source
    }

    fn event(&self, what: What) -> Event {
        Event {
            system: self.name.clone(),
            what,
        }
    }

    /// The action ComputerSystem.Reset. What is so already is refused, as by the BMCs that are strict.
    pub(super) fn reset(&mut self, kind: &str, change: Change, obeys: bool) -> Result<Vec<Event>, Refusal> {
        const CONFLICT: Refusal = (
            409,
            "ResourceInUse",
            "The system is in this state already, or on its way to another.",
        );
        if self.pending.is_some() && kind != "ForceOff" {
            return Err(CONFLICT);
        }
        let on = self.power == PowerState::On;
        match (kind, on) {
            ("On" | "ForceOn", false) => Ok(self.go(PowerState::On, change)),
            ("ForceOff", true) => Ok(self.go(PowerState::Off, change)),
            ("GracefulShutdown", true) => {
                let mut events = vec![self.event(What::ShutdownAsked)];
                if obeys {
                    events.extend(self.go(PowerState::Off, change));
                }
                Ok(events)
            }
            ("GracefulRestart", true) if !obeys => Ok(vec![self.event(What::RestartAsked)]),
            ("ForceRestart" | "GracefulRestart" | "PowerCycle", true) => {
                let mut events = self.went_off();
                events.extend(self.went_on());
                Ok(events)
            }
            _ => Err(CONFLICT),
        }
    }

    fn go(&mut self, to: PowerState, change: Change) -> Vec<Event> {
        self.pending = Some((
            to,
            if let Change::AfterReads(reads) = change {
                reads
            } else {
                0
            },
        ));
        self.version += 1;
        match change {
            Change::AtOnce => self.arrive(),
            Change::AfterReads(_) | Change::After(_) => Vec::new(),
        }
    }

    /// A PATCH of `Boot`: target, enabled and mode, as far as they were given.
    pub(super) fn set_boot(&mut self, given: [Option<&str>; 3], quirk: BootQuirk) -> Result<(), Refusal> {
        let [target, enabled, mode] = given;
        let known = |given: Option<&str>, words: &[&str]| given.is_none_or(|word| words.contains(&word));
        if !known(target, targets())
            || !known(enabled, &["Disabled", "Once", "Continuous"])
            || !known(mode, &["UEFI", "Legacy"])
        {
            return Err((
                400,
                "PropertyValueNotInList",
                "The value is not in the list of acceptable values.",
            ));
        }
        let repeats = enabled == Some(self.enabled.as_str());
        match quirk {
            BootQuirk::Whole if given.contains(&None) => {
                return Err((400, "PropertyMissing", "All of the boot override is required."));
            }
            BootQuirk::NoRepeats if repeats => {
                return Err((
                    400,
                    "PropertyValueError",
                    "BootSourceOverrideEnabled has this value already.",
                ));
            }
            BootQuirk::OnlyOnce if enabled == Some("Continuous") => {
                return Err((400, "PropertyValueNotInList", "Continuous is not supported."));
            }
            BootQuirk::FixedMode if mode.is_some_and(|mode| mode != self.mode) => {
                return Err((400, "PropertyNotWritable", "BootSourceOverrideMode is read-only."));
            }
            BootQuirk::NoMode if mode.is_some() => {
                return Err((400, "PropertyUnknown", "BootSourceOverrideMode is not known."));
            }
            _ => {}
        }
        for (place, word) in [
            (&mut self.target, target),
            (&mut self.enabled, enabled),
            (&mut self.mode, mode),
        ] {
            if let Some(word) = word {
                word.clone_into(place);
            }
        }
        self.written = [self.target.clone(), self.enabled.clone()];
        self.version += 1;
        Ok(())
    }
}

/// What may be booted.
pub(super) fn targets() -> &'static [&'static str] {
    &["None", "Pxe", "Hdd", "Cd", "UefiHttp"]
}
