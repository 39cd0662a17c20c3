use std::{collections::HashMap, time::Duration};

use muster_proto::inventory::Warning;
use nix::errno::Errno;

use super::*;
use crate::{
    inventory::{DriverInfo, LinksError},
    sys::tree::Tree,
};

/// A kernel that knows what the test says.
#[derive(Clone, Default)]
pub(in crate::inventory) struct FakeLinks {
    permanent: HashMap<&'static str, Mac>,
    addresses: BTreeMap<String, Vec<String>>,
    broken: Option<&'static str>,
    /// Whoever asks about it waits for ever.
    hangs: Option<&'static str>,
}

impl FakeLinks {
    pub(in crate::inventory) fn shared(self) -> Arc<dyn Links> {
        Arc::new(self)
    }

    fn check(&self, interface: &str) -> Result<(), Errno> {
        if self.broken == Some(interface) {
            return Err(Errno::EIO);
        }
        while self.hangs == Some(interface) {
            std::thread::park();
        }
        Ok(())
    }
}

impl Links for FakeLinks {
    fn permanent_mac(&self, interface: &str) -> Result<Option<Mac>, LinksError> {
        self.check(interface).map_err(LinksError::PermanentMac)?;
        Ok(self.permanent.get(interface).copied())
    }

    fn driver(&self, interface: &str) -> Result<DriverInfo, LinksError> {
        self.check(interface).map_err(LinksError::Driver)?;
        Ok(DriverInfo {
            driver: "from-ethtool".to_owned(),
            firmware: if interface == "eth0" {
                "9.20 0x8000d95e"
            } else {
                "N/A"
            }
            .to_owned(),
        })
    }

    fn wakes(&self, interface: &str) -> Result<Option<bool>, LinksError> {
        self.check(interface).map_err(LinksError::WakeOnLan)?;
        Ok(Some(interface == "eth0"))
    }

    fn addresses(&self) -> Result<BTreeMap<String, Vec<String>>, LinksError> {
        Ok(self.addresses.clone())
    }
}

/// A tree with the interface `name` at `place` below `/sys/devices`; a place for its device, if it has any.
fn with_nic(tree: Tree, name: &str, device: &str, mac: &str) -> Tree {
    let at = format!("sys/devices/{device}/net/{name}");
    tree.file(&format!("{at}/address"), format!("{mac}\n"))
        .file(&format!("{at}/type"), "1\n")
        .file(&format!("{at}/addr_assign_type"), "0\n")
        .file(&format!("{at}/carrier"), "1\n")
        .file(&format!("{at}/speed"), "25000\n")
        .link(
            &format!("{at}/device"),
            &format!("../../../{}", base(Path::new(device))),
        )
        .link(
            &format!("sys/class/net/{name}"),
            &format!("../../devices/{device}/net/{name}"),
        )
}

const PCI: &str = "pci0000:00/0000:00:03.0";

fn one_card() -> Tree {
    with_nic(Tree::new(), "eth0", PCI, "52:54:00:12:34:56")
        .file(&format!("sys/devices/{PCI}/vendor"), "0x8086\n")
        .file(&format!("sys/devices/{PCI}/device"), "0x1572\n")
        .link(
            &format!("sys/devices/{PCI}/driver"),
            "../../../bus/pci/drivers/i40e",
        )
}

fn read(tree: &Tree, links: &FakeLinks) -> (Nics, Vec<Warning>) {
    let mut warnings = Warnings::default();
    let mut patience = Patience::of(match links.hangs {
        Some(_) => Duration::from_millis(50),
        None => Duration::from_secs(60),
    });
    let nics = collect(
        &tree.root(),
        &links.clone().shared(),
        &mut patience,
        &mut warnings,
    );
    (nics, warnings.finish())
}

fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

#[test]
fn a_card_is_described_by_sysfs_and_the_kernel_together() {
    let tree = one_card()
        .directory("sys/class/net/lo")
        .file("sys/class/net/bonding_masters", "");
    let links = FakeLinks {
        permanent: HashMap::from([("eth0", mac("3c:fd:fe:00:00:01"))]),
        addresses: BTreeMap::from([("eth0".to_owned(), vec!["10.0.0.7/24".to_owned()])]),
        ..FakeLinks::default()
    };
    let (found, warnings) = read(&tree, &links);
    assert_eq!(warnings, []);
    assert_eq!(
        found.nics,
        [Nic {
            name: "enp0s3".to_owned(),
            mac: Some(mac("3c:fd:fe:00:00:01")),
            speed_mbps: 25000,
            carrier: true,
            addresses: vec!["10.0.0.7/24".to_owned()],
            vendor_id: "0x8086".to_owned(),
            device_id: "0x1572".to_owned(),
            pci_address: "0000:00:03.0".to_owned(),
            driver: "i40e".to_owned(),
            firmware: "9.20 0x8000d95e".to_owned(),
            wake_on_lan: Some(true),
        }]
    );
    assert_eq!(found.identifying, BTreeSet::from([mac("3c:fd:fe:00:00:01")]));
}

#[test]
fn a_virtio_card_has_the_ids_of_its_pci_slot() {
    let tree = with_nic(
        Tree::new(),
        "eth1",
        &format!("{PCI}/virtio0"),
        "52:54:00:12:34:56",
    )
    .file(&format!("sys/devices/{PCI}/vendor"), "0x1af4\n")
    .file(&format!("sys/devices/{PCI}/device"), "0x1041\n")
    .file(&format!("sys/devices/{PCI}/virtio0/device"), "0x0001\n");
    let (found, _) = read(&tree, &FakeLinks::default());
    let nic = &found.nics[0];
    assert_eq!(
        (nic.device_id.as_str(), nic.pci_address.as_str()),
        ("0x1041", "0000:00:03.0")
    );
    assert_eq!((nic.driver.as_str(), nic.firmware.as_str()), ("from-ethtool", ""));
    assert_eq!(nic.wake_on_lan, Some(false));
}

/// What the interfaces of `tree` are called.
fn names(tree: &Tree) -> Vec<String> {
    let (found, warnings) = read(tree, &FakeLinks::default());
    assert_eq!(warnings, []);
    found.nics.into_iter().map(|nic| nic.name).collect()
}

/// A tree whose only card is at `device`, called `eth0` by the kernel.
fn one_at(device: &str) -> Tree {
    with_nic(Tree::new(), "eth0", device, "52:54:00:12:34:56")
}

/// Files below a device, and what they say.
type Files = &'static [(&'static str, &'static str)];

const PORT: &str = "pci0000:00/0000:00:1c.0";

/// The start of the configuration space of a device with several functions.
const SEVERAL: &[u8; 15] = b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x80";

#[test]
fn a_card_has_the_name_that_udev_gives_it() {
    // Below the device's parent: the device, the files that say more of it and of its interface, and the name.
    let cases: &[(&str, Files, &str)] = &[
        ("0000:01:00.0", &[], "enp1s0"),
        ("0000:3b:0a.1", &[], "enp59s10f1"),
        ("0001:01:00.0", &[], "enP1p1s0"),
        ("0000:01:00.0/virtio2", &[], "enp1s0"),
        ("0000:01:01.2", &[("ari_enabled", "1")], "enp1s1f10"),
        ("0000:01:00.0", &[("net/eth0/dev_port", "1")], "enp1s0d1"),
        ("0000:01:00.0", &[("net/eth0/dev_port", "0")], "enp1s0"),
        (
            "0000:01:00.0",
            &[("net/eth0/phys_port_name", "p0"), ("net/eth0/dev_port", "1")],
            "enp1s0np0",
        ),
        ("0000:01:00.0", &[("net/eth0/type", "32")], "ibp1s0"),
        ("0000:01:00.1", &[("acpi_index", "1"), ("index", "7")], "eno1"),
        ("0000:01:00.1", &[("index", "7")], "eno7"),
        (
            "0000:01:00.0",
            &[("index", "7"), ("net/eth0/dev_port", "2")],
            "eno7d2",
        ),
        // What VMware says of every card.
        ("0000:01:00.0", &[("acpi_index", "16777215")], "enp1s0"),
        // The place alone would be too long.
        ("10000:e1:00.1", &[("index", "3")], "eno3"),
    ];
    for (device, files, name) in cases {
        let device = format!("{PORT}/{device}");
        let mut tree = one_at(&device);
        for (file, content) in *files {
            tree = tree.file(&format!("sys/devices/{device}/{file}"), format!("{content}\n"));
        }
        assert_eq!(names(&tree), [*name], "{device} {files:?}");
    }
}

#[test]
fn the_functions_of_a_card_are_numbered_also_the_first_and_also_in_a_slot() {
    let mut tree = Tree::new();
    for number in 0..2 {
        let device = format!("{PORT}/0000:01:00.{number}");
        tree = with_nic(
            tree,
            &format!("eth{number}"),
            &device,
            &format!("52:54:00:12:34:5{number}"),
        )
        .file(&format!("sys/devices/{device}/config"), SEVERAL);
    }
    assert_eq!(names(&tree), ["enp1s0f0", "enp1s0f1"]);
    let tree = tree.file("sys/bus/pci/slots/4/address", "0000:01:00\n");
    assert_eq!(names(&tree), ["ens4f0", "ens4f1"]);
}

#[test]
fn a_card_is_named_after_its_slot_but_not_after_that_of_a_bridge_which_may_hold_others() {
    let device = format!("{PORT}/0000:01:00.0");
    for (slot, address, name) in [
        ("4", "0000:01:00", "ens4"),
        ("4", "0000:00:1c", "ens4"),
        ("4", "0000:02:00", "enp1s0"),
        ("4", "", "enp1s0"),
        ("0", "0000:01:00", "enp1s0"),
        ("4-1", "0000:01:00", "enp1s0"),
    ] {
        let slot = format!("sys/bus/pci/slots/{slot}/address");
        let tree = one_at(&device).file(&slot, format!("{address}\n"));
        assert_eq!(names(&tree), [name], "{slot} {address}");
    }
    let behind = one_at(&device)
        .file("sys/bus/pci/slots/4/address", "0000:00:1c\n")
        .file(&format!("sys/devices/{PORT}/class"), "0x060400\n");
    assert_eq!(names(&behind), ["enp1s0"]);
    let behind = behind.file(&format!("sys/devices/{device}/config"), SEVERAL);
    assert_eq!(names(&behind), ["ens4f0"]);
}

#[test]
fn a_card_of_which_nobody_knows_what_udev_would_call_it_keeps_the_kernels_name() {
    let device = format!("{PORT}/0000:01:00.0");
    let cases: &[(&str, Files)] = &[
        ("PPP", &[("net/eth0/type", "512")]),
        (
            "named for good by the kernel",
            &[("net/eth0/name_assign_type", "2")],
        ),
        ("named by somebody", &[("net/eth0/name_assign_type", "4")]),
        (
            "on top of another",
            &[("net/eth0/iflink", "2"), ("net/eth0/ifindex", "3")],
        ),
        ("wireless", &[("net/eth0/phy80211/index", "0")]),
        ("a virtual function", &[("physfn/vendor", "0x8086")]),
        ("too long", &[("net/eth0/phys_port_name", "p0123456789")]),
        ("no name", &[("net/eth0/phys_port_name", "a/b")]),
    ];
    for (what, files) in cases {
        let mut tree = one_at(&device);
        for (file, content) in *files {
            tree = tree.file(&format!("sys/devices/{device}/{file}"), format!("{content}\n"));
        }
        assert_eq!(names(&tree), ["eth0"], "{what}");
    }
    let usual = [("name_assign_type", "1"), ("iflink", "2"), ("ifindex", "2")];
    let usual = usual.into_iter().fold(one_at(&device), |tree, (file, content)| {
        tree.file(&format!("sys/devices/{device}/net/eth0/{file}"), content)
    });
    assert_eq!(names(&usual), ["enp1s0"]);
    for bus in ["0000:00:14.0/usb1/1-14/1-14:1.0", "VMBUS:00/f8615163"] {
        assert_eq!(names(&one_at(&format!("pci0000:00/{bus}"))), ["eth0"], "{bus}");
    }
}

#[test]
fn cards_that_udev_would_give_one_name_keep_the_kernels() {
    let mut tree = Tree::new();
    for number in 0..3 {
        let device = format!("{PORT}/0000:0{number}:00.0");
        tree = with_nic(
            tree,
            &format!("eth{number}"),
            &device,
            &format!("52:54:00:12:34:5{number}"),
        )
        .file(
            &format!("sys/devices/{device}/index"),
            format!("{}\n", number / 2),
        );
    }
    assert_eq!(names(&tree), ["eth0", "eth1", "eno1"]);
}

#[test]
fn no_link_is_no_speed() {
    for (file, content) in [("speed", "-1\n"), ("speed", "4294967295\n"), ("carrier", "0\n")] {
        let tree = one_card().file(&format!("sys/devices/{PCI}/net/eth0/{file}"), content);
        let (found, warnings) = read(&tree, &FakeLinks::default());
        assert_eq!(warnings, []);
        let nic = &found.nics[0];
        assert!(nic.speed_mbps == 0 || !nic.carrier, "{nic:?}");
    }
}

#[test]
fn a_made_up_address_identifies_nobody() {
    let random = one_card().file(&format!("sys/devices/{PCI}/net/eth0/addr_assign_type"), "1\n");
    let (found, _) = read(&random, &FakeLinks::default());
    assert_eq!(found.nics[0].mac, Some(mac("52:54:00:12:34:56")));
    assert_eq!(found.identifying, BTreeSet::new());

    let bmc = "pci0000:00/0000:00:14.0/usb1/1-14/1-14.3/1-14.3:1.0";
    let (found, _) = read(
        &with_nic(Tree::new(), "usb0", bmc, "be:3a:f2:b6:05:9f"),
        &FakeLinks::default(),
    );
    assert_eq!(found.nics[0].pci_address, "");
    assert_eq!(found.identifying, BTreeSet::new());
    let (found, _) = read(
        &with_nic(Tree::new(), "usb0", bmc, "00:50:b6:05:9f:01"),
        &FakeLinks::default(),
    );
    assert_eq!(found.identifying.len(), 1);
}

#[test]
fn an_address_that_is_not_of_ethernet_is_none() {
    let tree = one_card()
        .file(&format!("sys/devices/{PCI}/net/eth0/type"), "32\n")
        .file(
            &format!("sys/devices/{PCI}/net/eth0/address"),
            "80:00:02:08:fe:80:00:00:00:00:00:00:f4:52:14:03:00:7b:cb:a1\n",
        );
    let (found, warnings) = read(&tree, &FakeLinks::default());
    assert_eq!((found.nics[0].mac, warnings.len()), (None, 0));
}

#[test]
fn one_address_on_two_cards_is_said_and_counted_once() {
    let tree = with_nic(one_card(), "eth1", "pci0000:00/0000:00:04.0", "52:54:00:12:34:56");
    let (found, warnings) = read(&tree, &FakeLinks::default());
    assert_eq!((found.nics.len(), found.identifying.len()), (2, 1));
    let texts: Vec<_> = warnings
        .iter()
        .filter(|warning| warning.subject == "52:54:00:12:34:56")
        .map(|warning| warning.message.as_str())
        .collect();
    assert_eq!(texts, ["several interfaces have this address: enp0s3 and enp0s4"]);
}

#[test]
fn a_card_that_does_not_answer_keeps_what_sysfs_says() {
    let links = FakeLinks {
        broken: Some("eth0"),
        ..FakeLinks::default()
    };
    let (found, warnings) = read(&one_card(), &links);
    assert_eq!(found.nics[0].mac, Some(mac("52:54:00:12:34:56")));
    assert_eq!(found.nics[0].driver, "i40e");
    assert_eq!(found.nics[0].wake_on_lan, None, "nobody knows");
    assert_eq!(warnings.len(), 3, "{warnings:?}");
}

#[test]
fn a_card_whose_driver_hangs_is_named_and_the_others_are_described() {
    let other = "pci0000:00/0000:00:04.0";
    let tree = with_nic(one_card(), "eth1", other, "52:54:00:12:34:57");
    let links = FakeLinks {
        hangs: Some("eth0"),
        ..FakeLinks::default()
    };
    let (found, warnings) = read(&tree, &links);
    let macs = ["52:54:00:12:34:56", "52:54:00:12:34:57"].map(mac);
    assert_eq!(
        found.nics.iter().filter_map(|nic| nic.mac).collect::<Vec<_>>(),
        macs
    );
    assert_eq!(found.identifying, BTreeSet::from(macs));
    assert_eq!((found.nics[0].speed_mbps, found.nics[1].speed_mbps), (0, 25000));
    let said: Vec<_> = warnings
        .iter()
        .map(|warning| (&*warning.subject, &*warning.message))
        .collect();
    assert_eq!(said, [("eth0", "its driver does not answer")]);
}

#[test]
fn more_cards_than_a_machine_has_are_bounded() {
    let mut tree = Tree::new();
    for number in 0..=MAX_DEVICES {
        tree = tree.directory(&format!("sys/class/net/eth{number}/device"));
    }
    let (found, warnings) = read(&tree, &FakeLinks::default());
    assert_eq!(found.nics.len(), MAX_DEVICES);
    assert_eq!(found.nics[2].name, "eth2");
    assert!(
        warnings
            .iter()
            .any(|warning| warning.message.starts_with("1 more")),
        "{warnings:?}"
    );
}
