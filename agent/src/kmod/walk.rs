//! The devices that are there already, by the `modalias` that each has on its bus.

use std::{collections::BTreeSet, fs};

use crate::sys::{self, Root};

/// The most modaliases that are kept.
const MOST: usize = 20_000;

/// Their devices are many and need no module: memory blocks, processors, clocks.
const DULL: [&str; 10] = [
    "clockevents",
    "clocksource",
    "container",
    "cpu",
    "edac",
    "event_source",
    "machinecheck",
    "memory",
    "node",
    "workqueue",
];

/// The modaliases of all present devices: those on a bus, and the machine itself by its SMBIOS names.
pub fn modaliases(root: &Root) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut take = |path| {
        if let Ok(text) = fs::read_to_string(path)
            && found.len() < MOST
            && !text.trim_end().is_empty()
        {
            found.insert(text.trim_end().to_owned());
        }
    };
    let buses = root.sys("bus");
    for bus in sys::list(&buses).unwrap_or_default() {
        if DULL.contains(&bus.as_str()) {
            continue;
        }
        let devices = buses.join(bus).join("devices");
        for device in sys::list(&devices).unwrap_or_default() {
            take(devices.join(device).join("modalias"));
        }
    }
    take(root.sys("class/dmi/id/modalias"));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tree::Tree;

    #[test]
    fn every_device_on_a_bus_is_found_once() {
        const NIC: &str = "devices/pci0000:00/0000:00:03.0";
        let tree = Tree::new()
            .file(&format!("sys/{NIC}/modalias"), "pci:v1\n")
            .file(&format!("sys/{NIC}/virtio0/modalias"), "virtio:d1\n")
            .file("sys/devices/pci0000:00/0000:00:04.0/modalias", "pci:v1\n")
            .file("sys/devices/platform/x/modalias", "\n")
            .file("sys/devices/system/cpu/cpu0/modalias", "cpu:type:x86\n")
            .file("sys/class/dmi/id/modalias", "dmi:bvn\n")
            .link("sys/bus/pci/devices/0000:00:03.0", &format!("../../../{NIC}"))
            .link(
                "sys/bus/pci/devices/0000:00:04.0",
                "../../../devices/pci0000:00/0000:00:04.0",
            )
            .link(
                "sys/bus/virtio/devices/virtio0",
                &format!("../../../{NIC}/virtio0"),
            )
            .link("sys/bus/platform/devices/x", "../../../devices/platform/x")
            .link("sys/bus/cpu/devices/cpu0", "../../../devices/system/cpu/cpu0");
        let found = modaliases(&tree.root());
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            ["dmi:bvn", "pci:v1", "virtio:d1"]
        );
    }
}
