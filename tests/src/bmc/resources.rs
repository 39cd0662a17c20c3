//! The resources, as JSON.

use serde_json::{Map, Value, json};

use super::{
    BootQuirk, Etags, Options, Resets,
    state::{Machine, targets},
};

pub(super) const SYSTEMS: &str = "/redfish/v1/Systems";
pub(super) const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";

pub(super) fn root(options: &Options) -> Value {
    let mut root = json!({
        "@odata.id": "/redfish/v1/",
        "@odata.type": "#ServiceRoot.v1_15_0.ServiceRoot",
        "Id": "RootService",
        "Name": "Light BMC",
        "RedfishVersion": "1.15.0",
        "Systems": {"@odata.id": SYSTEMS},
        "ProtocolFeaturesSupported": {"ExpandQuery": {"NoLinks": options.expand}},
        "Links": {},
    });
    if let Some(vendor) = options.vendor {
        root["Vendor"] = json!(vendor);
    }
    if options.sessions.is_some() {
        root["Links"]["Sessions"] = json!({"@odata.id": SESSIONS});
        root["SessionService"] = json!({"@odata.id": "/redfish/v1/SessionService"});
    }
    root
}

pub(super) fn collection(path: &str, kind: &str, members: &[Value]) -> Value {
    json!({
        "@odata.id": path,
        "@odata.type": format!("#{kind}.{kind}"),
        "Name": kind,
        "Members@odata.count": members.len(),
        "Members": members,
    })
}

pub(super) fn link(path: &str) -> Value {
    json!({"@odata.id": path})
}

pub(super) fn path_of(machine: &Machine) -> String {
    format!("{SYSTEMS}/{}", machine.name)
}

pub(super) fn etag(machine: &Machine, options: &Options) -> Option<String> {
    let version = machine.version;
    match options.etags {
        Etags::None => None,
        Etags::Strong | Etags::Required | Etags::Broken | Etags::BrokenRequired => {
            Some(format!("\"{version}\""))
        }
        Etags::Weak => Some(format!("W/\"{version}\"")),
    }
}

pub(super) fn system(machine: &Machine, options: &Options, lie: Option<&str>) -> Value {
    let path = path_of(machine);
    let mut system = json!({
        "@odata.id": path,
        "@odata.type": "#ComputerSystem.v1_20_0.ComputerSystem",
        "Id": machine.name,
        "Name": machine.name,
        "SystemType": "Physical",
        "Manufacturer": options.manufacturer,
        "Model": "Light",
        "SerialNumber": machine.serial,
        "UUID": machine.uuid,
        "PowerState": lie.unwrap_or(machine.shown()),
        "Status": {"State": "Enabled", "Health": "OK"},
        "EthernetInterfaces": link(&format!("{path}/EthernetInterfaces")),
        "Boot": boot(machine, options),
        "Actions": {"#ComputerSystem.Reset": reset(&path, options)},
    });
    if has_settings(options) {
        system["@Redfish.Settings"] = json!({
            "@odata.type": "#Settings.v1_3_5.Settings",
            "SettingsObject": link(&format!("{path}/Settings")),
        });
    }
    if let Some(etag) = etag(machine, options) {
        system["@odata.etag"] = json!(etag);
    }
    system
}

pub(super) fn has_settings(options: &Options) -> bool {
    matches!(
        options.boot,
        BootQuirk::Settings
            | BootQuirk::StaleSettings
            | BootQuirk::EmptySettings
            | BootQuirk::OrderInSettings
            | BootQuirk::FixedSettings
    )
}

pub(super) fn settings(machine: &Machine, options: &Options) -> Value {
    json!({
        "@odata.id": format!("{}/Settings", path_of(machine)),
        "@odata.type": "#ComputerSystem.v1_20_0.ComputerSystem",
        "Id": "Settings",
        "Name": "Settings",
        "Boot": match options.boot {
            BootQuirk::OrderInSettings => json!({"BootOrder": ["NIC.1", "Disk.1"]}),
            BootQuirk::EmptySettings => boot_of(machine, options, [None, None]),
            BootQuirk::FixedSettings => boot_of(machine, options, ["None", "Disabled"].map(Some)),
            BootQuirk::StaleSettings => {
                let [target, enabled] = &machine.written;
                boot_of(machine, options, [target, enabled].map(|word| Some(word.as_str())))
            }
            _ => boot(machine, options),
        },
    })
}

/// The boot override with other words for target and enabled.
fn boot_of(machine: &Machine, options: &Options, [target, enabled]: [Option<&str>; 2]) -> Value {
    let mut boot = boot(machine, options);
    boot["BootSourceOverrideTarget"] = json!(target);
    boot["BootSourceOverrideEnabled"] = json!(enabled);
    boot
}

fn boot(machine: &Machine, options: &Options) -> Value {
    let mut boot = Map::new();
    let mut put = |name: &str, value: &str, allowed: &[&str]| {
        boot.insert(format!("BootSourceOverride{name}"), json!(value));
        boot.insert(
            format!("BootSourceOverride{name}@Redfish.AllowableValues"),
            json!(allowed),
        );
    };
    put("Target", &machine.target, targets());
    put("Enabled", &machine.enabled, &["Disabled", "Once", "Continuous"]);
    if options.boot != BootQuirk::NoMode {
        put("Mode", &machine.mode, &["UEFI", "Legacy"]);
    }
    boot.into()
}

fn reset(path: &str, options: &Options) -> Value {
    let mut action = json!({"target": format!("{path}/Actions/ComputerSystem.Reset")});
    match &options.resets {
        Resets::Listed(types) => action["ResetType@Redfish.AllowableValues"] = json!(types),
        Resets::ActionInfo(_) => action["@Redfish.ActionInfo"] = json!(format!("{path}/ResetActionInfo")),
        Resets::Silent(_) => {}
    }
    action
}

pub(super) fn action_info(path: &str, options: &Options) -> Value {
    json!({
        "@odata.id": format!("{path}/ResetActionInfo"),
        "@odata.type": "#ActionInfo.v1_3_0.ActionInfo",
        "Id": "ResetActionInfo",
        "Name": "Reset",
        "Parameters": [
            {"Name": "Delay", "Required": false, "DataType": "Number"},
            {"Name": "ResetType", "Required": true, "DataType": "String", "AllowableValues": options.resets.types()},
        ],
    })
}

pub(super) fn nic(machine: &Machine) -> Value {
    let mac = machine.mac.map(|byte| format!("{byte:02X}")).join(":");
    json!({
        "@odata.id": format!("{}/EthernetInterfaces/1", path_of(machine)),
        "@odata.type": "#EthernetInterface.v1_9_0.EthernetInterface",
        "Id": "1",
        "Name": "1",
        "MACAddress": mac,
        "PermanentMACAddress": mac,
    })
}

pub(super) fn session(number: u64, user: &str) -> Value {
    json!({
        "@odata.id": format!("{SESSIONS}/{number}"),
        "@odata.type": "#Session.v1_5_0.Session",
        "Id": number.to_string(),
        "Name": "Session",
        "UserName": user,
    })
}

pub(super) fn error(id: &str, message: &str) -> Value {
    json!({"error": {
        "code": format!("Base.1.15.{id}"),
        "message": message,
        "@Message.ExtendedInfo": [{
            "@odata.type": "#Message.v1_1_2.Message",
            "MessageId": format!("Base.1.15.{id}"),
            "Message": message,
            "Severity": "Critical",
            "Resolution": "None.",
        }],
    }})
}
