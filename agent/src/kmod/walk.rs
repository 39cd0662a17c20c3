//! The devices that are there already: every `modalias` file below `/sys/devices`.

use std::{collections::BTreeSet, fs, path::Path};

use crate::sys::Root;

/// Devices nest some ten levels deep behind PCI bridges and USB hubs.
const DEPTH: usize = 24;

/// The most modaliases that are kept.
const MOST: usize = 20_000;

/// The modaliases of all present devices.
pub fn modaliases(root: &Root) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    descend(&root.sys("devices"), DEPTH, &mut found);
    found
}

fn descend(directory: &Path, depth: usize, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        // Symbolic links lead out of the tree or back up.
        let Ok(kind) = entry.file_type() else { continue };
        let name = entry.file_name();
        if kind.is_dir() {
            // Attributes, never devices; there are many of them.
            let dull = matches!(name.to_str(), Some("power" | "queue" | "mq" | "trace" | "statistics" | "msi_irqs"));
            if depth > 0 && !dull {
                descend(&entry.path(), depth - 1, found);
            }
        } else if name == "modalias"
            && found.len() < MOST
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            let text = text.trim_end();
            if !text.is_empty() {
                found.insert(text.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tree::Tree;

    #[test]
    fn every_device_is_found_and_links_are_not_followed() {
        let tree = Tree::new()
            .file("sys/devices/pci0000:00/0000:00:03.0/modalias", "pci:v1\n")
            .file("sys/devices/pci0000:00/0000:00:03.0/virtio0/modalias", "virtio:d1\n")
            .file("sys/devices/platform/x/modalias", "\n")
            .file("sys/devices/platform/x/power/modalias", "no device\n")
            .link("sys/devices/pci0000:00/0000:00:03.0/virtio0/subsystem", "../../../pci0000:00");
        let found = modaliases(&tree.root());
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["pci:v1", "virtio:d1"]);
    }
}
