//! Wake-on-LAN, on the side of the machine that is to be woken.

use muster_proto::Chain;
use nix::errno::Errno;

use super::{ethtool, interfaces};
use crate::sys::Root;

/// Makes every NIC that can wake the machine do so at a magic packet: what the firmware left, or the driver switches off with the
/// machine, would else decide. A NIC that cannot, or does not answer, keeps nothing from being switched off.
pub(crate) fn arm(root: &Root) {
    arm_with(root, ethtool::wake_on_magic);
}

fn arm_with(root: &Root, arm: impl Fn(&str) -> Result<bool, Errno>) {
    let names = match interfaces(root) {
        Ok(names) => names,
        Err(error) => {
            tracing::warn!("Wake-on-LAN is not armed: {}", Chain(&error));
            return;
        }
    };
    let mut armed = Vec::new();
    for name in &names {
        match arm(name) {
            Ok(true) => armed.push(name.as_str()),
            Ok(false) => {}
            Err(errno) => tracing::warn!("Wake-on-LAN of {name} is not armed: {errno}"),
        }
    }
    if armed.is_empty() {
        tracing::info!("no NIC here can wake this machine");
    } else {
        tracing::info!("Wake-on-LAN is armed on {}", armed.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::sys::tree::Tree;

    #[test]
    fn every_nic_with_a_device_is_armed_whatever_another_one_says() {
        let devices = ["eth0/device", "eth1/device", "eth2/device", "lo"];
        let tree = devices.into_iter().fold(Tree::new(), |tree, device| {
            tree.directory(&format!("sys/class/net/{device}"))
        });
        let asked = RefCell::new(Vec::new());
        arm_with(&tree.root(), |name| {
            asked.borrow_mut().push(name.to_owned());
            match name {
                "eth0" => Err(Errno::EIO),
                "eth1" => Ok(false),
                _ => Ok(true),
            }
        });
        assert_eq!(asked.into_inner(), ["eth0", "eth1", "eth2"]);
    }

    /// As most virtual ones.
    #[test]
    fn the_loopback_interface_cannot_wake_anything() {
        assert_eq!(ethtool::wake_on_magic("lo"), Ok(false));
        assert!(ethtool::wake_on_magic("no-such-link").is_err());
    }
}
