//! What of Redfish's resources matters here (DMTF DSP0266 and the schemas of DSP8010), read leniently: a property of the wrong type
//! is one that is not there. Pure.

use muster_proto::{
    mac::Mac,
    text::{clean, usable, usable_uuid},
};
use serde_json::Value;

use crate::bmc::{Health, Identity, PowerState, SystemState};

/// The most values that are kept of any list that a BMC sends.
const MANY: usize = 64;

/// The service root: where the rest is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Root {
    /// The collection of systems.
    pub(super) systems: Option<String>,
    /// The collection of sessions; none if the service has none.
    pub(super) sessions: Option<String>,
    /// True if `$expand=.` puts the members into a collection.
    pub(super) expands: bool,
    /// Who made it: its vendor, and whose extensions it has.
    pub(super) makers: Vec<String>,
}

impl Root {
    pub(super) fn read(value: &Value) -> Root {
        let service = link(value, "/SessionService")
            .map(|service| format!("{}/Sessions", service.trim_end_matches('/')));
        let oem = value.get("Oem").and_then(Value::as_object);
        let oem = oem.into_iter().flatten().map(|(name, _)| name.as_str());
        let makers = word(value, "/Vendor").into_iter().chain(oem);
        Root {
            systems: link(value, "/Systems"),
            sessions: link(value, "/Links/Sessions").or(service),
            expands: value.pointer("/ProtocolFeaturesSupported/ExpandQuery/NoLinks")
                == Some(&Value::Bool(true)),
            makers: makers.take(MANY).map(str::to_owned).collect(),
        }
    }

    /// False for what is no service root at all.
    pub(super) fn is_one(value: &Value) -> bool {
        ["/RedfishVersion", "/Systems", "/Links", "/SessionService"]
            .iter()
            .any(|property| value.pointer(property).is_some())
    }
}

/// The paths of a collection's members.
pub(super) fn members(value: &Value) -> Vec<String> {
    let members = value.get("Members").and_then(Value::as_array);
    let paths = members
        .into_iter()
        .flatten()
        .filter_map(|member| link(member, ""));
    paths.take(MANY).collect()
}

/// A ComputerSystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct System {
    pub(super) state: SystemState,
    pub(super) reset: ResetAction,
    pub(super) boot: BootState,
    /// Where its settings are to be written, if not to itself (DSP0266 section "Settings resource").
    pub(super) settings: Option<String>,
    /// The collection of its NICs.
    pub(super) nics: Option<String>,
    pub(super) identity: Identity,
}

/// How a system is reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ResetAction {
    /// Where to; none means the usual place.
    pub(super) target: Option<String>,
    /// What it takes, if it says so itself.
    pub(super) allowed: Option<Vec<String>>,
    /// The ActionInfo that says so.
    pub(super) info: Option<String>,
}

/// The boot override of a system: as words, for there are more than we use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BootState {
    pub(super) target: Option<String>,
    pub(super) enabled: Option<String>,
    pub(super) mode: Option<String>,
    pub(super) targets: Option<Vec<String>>,
    pub(super) modes: Option<Vec<String>>,
}

impl System {
    /// None for what is another resource.
    pub(super) fn read(value: &Value) -> Option<System> {
        let kind = word(value, "/@odata.type");
        if !value.is_object() || kind.is_some_and(|kind| !kind.starts_with("#ComputerSystem.")) {
            return None;
        }
        let reset = |property: &str| format!("/Actions/#ComputerSystem.Reset/{property}");
        Some(System {
            state: SystemState {
                power: power(value),
                health: health(value),
            },
            reset: ResetAction {
                target: path(value.pointer(&reset("target"))),
                allowed: words(value.pointer(&reset("ResetType@Redfish.AllowableValues"))),
                info: path(value.pointer(&reset("@Redfish.ActionInfo"))),
            },
            boot: BootState::read(value),
            settings: link(value, "/@Redfish.Settings/SettingsObject"),
            nics: link(value, "/EthernetInterfaces"),
            identity: identity(value),
        })
    }
}

impl BootState {
    pub(super) fn read(value: &Value) -> BootState {
        let one =
            |property: &str| word(value, &format!("/Boot/BootSourceOverride{property}")).map(str::to_owned);
        let all = |property: &str| {
            words(value.pointer(&format!(
                "/Boot/BootSourceOverride{property}@Redfish.AllowableValues"
            )))
        };
        BootState {
            target: one("Target"),
            enabled: one("Enabled"),
            mode: one("Mode"),
            targets: all("Target"),
            modes: all("Mode"),
        }
    }

    /// True if the override can be written to `value`: it has the property, though nothing may wait there.
    pub(super) fn is_in(value: &Value) -> bool {
        value.pointer("/Boot/BootSourceOverrideTarget").is_some()
    }

    /// This, and of what it does not tell what `other` tells.
    pub(super) fn or(self, other: BootState) -> BootState {
        BootState {
            target: self.target.or(other.target),
            enabled: self.enabled.or(other.enabled),
            mode: self.mode.or(other.mode),
            targets: self.targets.or(other.targets),
            modes: self.modes.or(other.modes),
        }
    }
}

fn power(system: &Value) -> PowerState {
    match word(system, "/PowerState") {
        Some("On") => PowerState::On,
        Some("Off") => PowerState::Off,
        Some("PoweringOn") => PowerState::PoweringOn,
        Some("PoweringOff") => PowerState::PoweringOff,
        other => PowerState::Unknown {
            reported: clean(other.unwrap_or_default().as_bytes()),
        },
    }
}

/// The worse of what is said of the system alone and of all that is in it.
fn health(system: &Value) -> Health {
    let one = |property: &str| match word(system, &format!("/Status/{property}")) {
        Some("OK") => Health::Ok,
        Some("Warning") => Health::Warning,
        Some("Critical") => Health::Critical,
        _ => Health::Unknown,
    };
    one("HealthRollup").max(one("Health"))
}

fn identity(system: &Value) -> Identity {
    let filled = |property: &str| {
        let text = clean(word(system, property)?.as_bytes());
        usable(&text).map(str::to_owned)
    };
    Identity {
        uuid: word(system, "/UUID").and_then(usable_uuid),
        serial: filled("/SerialNumber"),
        sku: filled("/SKU"),
        manufacturer: filled("/Manufacturer"),
        model: filled("/Model"),
        macs: None,
    }
}

/// The address with which a NIC left its factory.
pub(super) fn mac(nic: &Value) -> Option<Mac> {
    let text = word(nic, "/PermanentMACAddress").or_else(|| word(nic, "/MACAddress"))?;
    text.parse().ok().filter(|mac: &Mac| mac.is_unicast())
}

/// What an ActionInfo lets stand for `parameter`.
pub(super) fn allowed(info: &Value, parameter: &str) -> Option<Vec<String>> {
    let parameters = info.get("Parameters")?.as_array()?;
    let one = parameters
        .iter()
        .find(|one| word(one, "/Name") == Some(parameter))?;
    words(one.get("AllowableValues"))
}

/// Where a resource is, by itself.
pub(super) fn id(value: &Value) -> Option<String> {
    link(value, "")
}

/// The ETag in a resource's body.
pub(super) fn etag(value: &Value) -> Option<&str> {
    word(value, "/@odata.etag")
}

fn word<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

fn words(value: Option<&Value>) -> Option<Vec<String>> {
    let words = value?.as_array()?.iter().filter_map(Value::as_str);
    let words: Vec<String> = words.take(MANY).map(str::to_owned).collect();
    // Who lists none does not say that none is taken.
    Some(words).filter(|words| !words.is_empty())
}

/// The JSON in `body`. Some have bytes in it that are no UTF-8, from the serial number of some part, or a byte order mark before it.
pub(super) fn json(body: &[u8]) -> Option<Value> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let lossy = || serde_json::from_str(&String::from_utf8_lossy(body)).ok();
    serde_json::from_slice(body).ok().or_else(lossy)
}

fn link(value: &Value, pointer: &str) -> Option<String> {
    path(value.pointer(pointer)?.get("@odata.id"))
}

/// A path on the same host, fit to be sent: everything else is no link for us.
fn path(value: Option<&Value>) -> Option<String> {
    local(value?.as_str()?).map(str::to_owned)
}

/// `text` if it is an absolute path without a host, made of bytes that may stand in a request line; its fragment is dropped.
pub(super) fn local(text: &str) -> Option<&str> {
    let path = text.split_once('#').map_or(text, |(path, _)| path);
    let fits =
        path.starts_with('/') && !path.starts_with("//") && path.bytes().all(|byte| byte.is_ascii_graphic());
    (fits && path.len() <= 1024).then_some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_four_words_are_a_known_power() {
        for (reported, expected) in [
            (json!("On"), PowerState::On),
            (json!("Off"), PowerState::Off),
            (json!("PoweringOn"), PowerState::PoweringOn),
            (json!("PoweringOff"), PowerState::PoweringOff),
        ] {
            assert_eq!(power(&json!({ "PowerState": reported })), expected);
        }
        for (reported, shown) in [
            (json!("Paused"), "Paused"),
            (json!("off"), "off"),
            (json!("\u{1b}[2J"), "[2J"),
            (json!(null), ""),
            (json!(false), ""),
            (json!(["Off"]), ""),
        ] {
            let unknown = PowerState::Unknown {
                reported: shown.to_owned(),
            };
            assert_eq!(power(&json!({ "PowerState": reported })), unknown);
        }
        assert!(matches!(power(&json!({})), PowerState::Unknown { .. }));
    }

    #[test]
    fn the_worse_of_two_known_words_is_the_health() {
        for (status, expected) in [
            (json!({ "Health": "OK" }), Health::Ok),
            (
                json!({ "Health": "OK", "HealthRollup": "Critical" }),
                Health::Critical,
            ),
            (
                json!({ "Health": "Warning", "HealthRollup": "OK" }),
                Health::Warning,
            ),
            (json!({ "Health": "fine", "HealthRollup": "OK" }), Health::Ok),
            (json!({ "Health": "ok" }), Health::Unknown),
            (json!({ "Health": null, "HealthRollup": ["OK"] }), Health::Unknown),
            (json!("OK"), Health::Unknown),
        ] {
            assert_eq!(health(&json!({ "Status": status })), expected, "{status}");
        }
        assert_eq!(health(&json!({})), Health::Unknown);
    }

    #[test]
    fn links_to_other_hosts_are_none() {
        for foreign in [
            "//evil/redfish",
            "http://evil/",
            "redfish/v1",
            "/a b",
            "/a\r\nX: y",
            "",
            "#/x",
        ] {
            assert_eq!(local(foreign), None, "{foreign}");
        }
        assert_eq!(
            local("/redfish/v1/Systems/1#/Boot"),
            Some("/redfish/v1/Systems/1")
        );
    }

    #[test]
    fn sessions_are_found_by_either_link() {
        let both =
            json!({"Links": {"Sessions": {"@odata.id": "/s"}}, "SessionService": {"@odata.id": "/service/"}});
        assert_eq!(Root::read(&both).sessions.as_deref(), Some("/s"));
        let service = json!({"SessionService": {"@odata.id": "/service/"}});
        assert_eq!(
            Root::read(&service).sessions.as_deref(),
            Some("/service/Sessions")
        );
        assert_eq!(Root::read(&json!({})).sessions, None);
    }

    #[test]
    fn the_makers_of_a_service_are_its_vendor_and_whose_extensions_it_has() {
        let root = json!({"Vendor": "GIGABYTE", "Oem": {"Ami": {}}});
        assert_eq!(Root::read(&root).makers, ["GIGABYTE", "Ami"]);
        let none = json!({"Vendor": null, "Oem": ["Ami"]});
        assert!(Root::read(&none).makers.is_empty());
    }

    #[test]
    fn json_with_bytes_of_other_encodings_is_read() {
        for body in [
            &b"\xef\xbb\xbf{\"AssetTag\":\"a\"}"[..],
            b"{\"AssetTag\":\"\xff\"}",
        ] {
            assert!(json(body).unwrap()["AssetTag"].is_string(), "{body:?}");
        }
        assert_eq!(json(b"\xff"), None);
        assert_eq!(words(Some(&json!(["On", 7]))), Some(vec!["On".to_owned()]));
        assert_eq!(
            words(Some(&json!([]))),
            None,
            "it does not say that it takes none"
        );
    }

    #[test]
    fn what_vendors_ship_unfilled_is_no_identity() {
        let system = json!({"UUID": "00000000-0000-0000-0000-000000000000", "SerialNumber": "To be filled by O.E.M.",
            "Model": " R640\t", "Manufacturer": null});
        let read = System::read(&system).unwrap().identity;
        let expected = Identity {
            model: Some("R640".to_owned()),
            ..Identity::default()
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn another_resource_is_no_system() {
        assert_eq!(
            System::read(&json!({"@odata.type": "#ComputerSystemCollection.ComputerSystemCollection"})),
            None
        );
        assert_eq!(System::read(&json!([])), None);
        assert!(System::read(&json!({"@odata.type": "#ComputerSystem.v1_22_0.ComputerSystem"})).is_some());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let names = prop_oneof![
            Just("PowerState"),
            Just("Boot"),
            Just("Actions"),
            Just("#ComputerSystem.Reset"),
            Just("target"),
            Just("Members"),
            Just("@odata.id"),
            Just("Links"),
            Just("Sessions"),
            Just("Systems"),
            Just("UUID"),
            Just("Parameters"),
            Just("Name"),
            Just("AllowableValues"),
            Just("BootSourceOverrideTarget"),
            Just("MACAddress"),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((names.clone(), inner), 0..6).prop_map(|pairs| pairs
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_read_without_a_panic(value in any_json()) {
            Root::read(&value);
            System::read(&value);
            mac(&value);
            allowed(&value, "ResetType");
            prop_assert!(members(&value).iter().all(|path| local(path) == Some(path)));
        }
    }
}
