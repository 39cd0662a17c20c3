//! The signals by which a machine is known again: they detect clashes; they never prove anything.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Mac, text};

/// What a machine says of itself. Only usable values are kept (see [`text::usable`]): a placeholder identifies nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Identity {
    /// SMBIOS system UUID (type 1), lower case. Source: `/sys/class/dmi/id/product_uuid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_uuid: Option<String>,
    /// SMBIOS system serial number (type 1). Source: `/sys/class/dmi/id/product_serial`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_serial: Option<String>,
    /// SMBIOS baseboard serial number (type 2). Source: `/sys/class/dmi/id/board_serial`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub board_serial: Option<String>,
    /// The permanent MAC address of every NIC.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    #[cfg_attr(feature = "kinds", schemars(with = "Vec<String>"))]
    pub macs: BTreeSet<Mac>,
}

impl Identity {
    /// The identity with every value cleaned and placeholders, multicast and zero addresses dropped.
    pub fn normalised(&self) -> Identity {
        let keep = |value: &Option<String>| {
            let value = text::clean(value.as_deref()?.as_bytes());
            text::usable(&value).map(str::to_owned)
        };
        Identity {
            system_uuid: self.system_uuid.as_deref().and_then(text::usable_uuid),
            system_serial: keep(&self.system_serial),
            board_serial: keep(&self.board_serial),
            macs: self.macs.iter().copied().filter(|mac| mac.is_unicast()).collect(),
        }
    }

    /// True if nothing identifies this machine: no usable serial or UUID and no NIC.
    pub fn is_empty(&self) -> bool {
        *self == Identity::default()
    }
}
