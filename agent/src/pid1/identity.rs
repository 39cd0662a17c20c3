//! Who the machine is, before everything is found: enough to enrol while disks still appear.

use std::sync::Arc;

use muster_proto::identity::Identity;

use crate::{
    inventory::{self, Links, Patience},
    net,
    sys::{self, Root},
};

/// SMBIOS signals and the addresses of the interfaces that have appeared so far, where they tell machines apart.
pub(super) fn early(root: &Root, links: &Arc<dyn Links>) -> Identity {
    let dmi = |name: &str| sys::text(&root.sys("class/dmi/id").join(name)).ok();
    let interfaces = net::interfaces(root).unwrap_or_default();
    let mut patience = Patience::default();
    let macs = interfaces.iter().filter_map(|name| {
        let (mac, identifies) = inventory::address(root, Some(links), name, &mut patience)?;
        identifies.then_some(mac)
    });
    let identity = Identity {
        system_uuid: dmi("product_uuid"),
        system_serial: dmi("product_serial"),
        board_serial: dmi("board_serial"),
        macs: macs.collect(),
    };
    identity.normalised()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use muster_proto::Mac;

    use super::*;
    use crate::{
        inventory::{DriverInfo, LinksError},
        sys::tree::Tree,
    };

    struct Permanent;

    impl Links for Permanent {
        fn permanent_mac(&self, interface: &str) -> Result<Option<Mac>, LinksError> {
            Ok((interface == "eth0").then_some(Mac([0x52, 0x54, 0, 0, 0, 1])))
        }
        fn driver(&self, _: &str) -> Result<DriverInfo, LinksError> {
            Ok(DriverInfo::default())
        }
        fn wakes(&self, _: &str) -> Result<Option<bool>, LinksError> {
            Ok(None)
        }
        fn addresses(&self) -> Result<BTreeMap<String, Vec<String>>, LinksError> {
            Ok(BTreeMap::new())
        }
    }

    #[test]
    fn only_what_identifies_the_machine_is_sent() {
        let tree = Tree::new()
            .file("sys/class/dmi/id/product_serial", "SN-1\n")
            .file(
                "sys/class/dmi/id/product_uuid",
                "00000000-0000-0000-0000-000000000000\n",
            )
            .file("sys/class/net/eth0/address", "02:00:00:00:00:01\n")
            .directory("sys/class/net/eth0/device")
            .file("sys/class/net/eth1/address", "52:54:00:00:00:02\n")
            .directory("sys/class/net/eth1/device")
            .file("sys/class/net/eth2/address", "52:54:00:00:00:04\n")
            .file("sys/class/net/eth2/addr_assign_type", "1\n")
            .directory("sys/class/net/eth2/device")
            .file(
                "sys/devices/usb1/1-14/1-14:1.0/net/usb0/address",
                "be:3a:f2:b6:05:9f\n",
            )
            .link(
                "sys/devices/usb1/1-14/1-14:1.0/net/usb0/device",
                "../../../1-14:1.0",
            )
            .link("sys/class/net/usb0", "../../devices/usb1/1-14/1-14:1.0/net/usb0")
            .file("sys/class/net/bond0/address", "52:54:00:00:00:03\n");
        let expected = Identity {
            system_serial: Some("SN-1".to_owned()),
            macs: BTreeSet::from([Mac([0x52, 0x54, 0, 0, 0, 1]), Mac([0x52, 0x54, 0, 0, 0, 2])]),
            ..Identity::default()
        };
        assert_eq!(
            early(&tree.root(), &(Arc::new(Permanent) as Arc<dyn Links>)),
            expected
        );
    }
}
