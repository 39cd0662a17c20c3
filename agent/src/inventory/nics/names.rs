//! The name that systemd's udev gives to a network interface: by its number in the firmware's tables, by its slot, or by its place on the bus.
//!
//! No udev runs here, but Metal3's own ramdisk has one, so templates name interfaces that way, and so does the installed system; the kernel's
//! `eth0` may be another card's after the next boot.
//! The rules are those of udev's built-in `net_id` for PCI (naming scheme v251 and newer, without v257's slots by `firmware_node`) and of its
//! default policy.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use muster_proto::inventory::Nic;

use super::ETHERNET;
use crate::{
    inventory::disks::chain::is_pci,
    sys::{self, Root, base},
};

/// `ARPHRD_INFINIBAND`.
const INFINIBAND: u32 = 32;

/// `NET_NAME_PREDICTABLE`, and above it what somebody chose: udev keeps such names.
const PREDICTABLE: u32 = 2;

/// The largest number in the firmware's tables that udev believes.
const MAX_ONBOARD: u32 = (1 << 16) - 1;

/// Where the configuration space of a PCI device says what kind of header it has, and the bit of it that says that there are several functions.
const HEADER_TYPE: usize = 0x0e;
const MULTIFUNCTION: u8 = 0x80;

/// The kernel's limit (`IFNAMSIZ`, which counts the zero at the end).
const MAX_LEN: usize = 15;

/// The name of the interface at `path`, the parents of whose device are `parents`, nearest first.
/// `None` if udev would leave it the kernel's, or what it would do is not known here, as with virtual functions and USB.
pub(super) fn predictable(root: &Root, path: &Path, parents: &[PathBuf]) -> Option<String> {
    let number = |attribute: &str| sys::number::<u32>(&path.join(attribute)).ok();
    let prefix = match number("type")? {
        ETHERNET => "en",
        INFINIBAND => "ib",
        _ => return None,
    };
    // A name of another kind, or none: VLANs and InfiniBand's child interfaces are stacked.
    let is_named = number("name_assign_type").is_some_and(|by| by >= PREDICTABLE);
    let is_stacked = number("iflink") != number("ifindex");
    let is_wireless = path.join("phy80211").exists();
    if is_named || is_stacked || is_wireless {
        return None;
    }

    let on_bus = parents
        .iter()
        .position(|parent| !base(parent).starts_with("virtio"))?;
    let functions = &parents[on_bus..];
    let function = functions.first().filter(|function| is_pci(base(function)))?;
    if function.join("physfn").exists() {
        return None;
    }
    let port = match sys::optional_text(&path.join("phys_port_name")).ok().flatten() {
        Some(name) => format!("n{name}"),
        None => number("dev_port")
            .filter(|port| *port > 0)
            .map_or_else(String::new, |port| format!("d{port}")),
    };
    let several = is_multifunction(function);
    let Place {
        domain,
        device,
        function: own,
    } = Place::of(function, several)?;
    let onboard = onboard(function).map(|index| format!("o{index}"));
    let slot = hotplug_slot(root, functions, several).map(|slot| format!("{domain}s{slot}{own}"));
    [onboard, slot, Some(format!("{domain}{device}{own}"))]
        .into_iter()
        .flatten()
        .map(|place| format!("{prefix}{place}{port}"))
        .find(|name| name.len() <= MAX_LEN && name.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// The parts of a name that tell where a PCI function is.
#[derive(Debug)]
struct Place {
    /// Empty for the first one, which most machines have alone.
    domain: String,
    device: String,
    /// Empty for the only function of its device.
    function: String,
}

impl Place {
    /// From the function's address; `several`: its device has more than one.
    fn of(function: &Path, several: bool) -> Option<Place> {
        let mut parts = base(function)
            .split([':', '.'])
            .map(|part| u32::from_str_radix(part, 16).ok());
        let (domain, bus, device, number) = (parts.next()??, parts.next()??, parts.next()??, parts.next()??);
        // With ARI (alternative routing-ID interpretation) the device's number is part of the function's.
        let ari = sys::optional_flag(&function.join("ari_enabled")).unwrap_or(false);
        let number = if ari { number + 8 * device } else { number };
        let unless = |omitted: bool, part: String| if omitted { String::new() } else { part };
        Some(Place {
            domain: unless(domain == 0, format!("P{domain}")),
            device: format!("p{bus}s{device}"),
            function: unless(number == 0 && !several, format!("f{number}")),
        })
    }
}

fn is_multifunction(function: &Path) -> bool {
    let head = sys::head(&function.join("config"), HEADER_TYPE as u64 + 1).unwrap_or_default();
    head.get(HEADER_TYPE)
        .is_some_and(|kind| kind & MULTIFUNCTION != 0)
}

/// The number that ACPI gives to the function, else SMBIOS.
fn onboard(function: &Path) -> Option<u32> {
    sys::number::<u32>(&function.join("acpi_index"))
        .or_else(|_| sys::number(&function.join("index")))
        .ok()
        .filter(|index| *index <= MAX_ONBOARD)
}

/// The number of the slot that the first of `functions` is in, or the nearest of its parents that is in one; `several`: as in [`Place::of`].
fn hotplug_slot(root: &Root, functions: &[PathBuf], several: bool) -> Option<u32> {
    let directory = root.sys("bus/pci/slots");
    let slots: Vec<(u32, String)> = sys::list(&directory)
        .ok()?
        .iter()
        .filter_map(|name| {
            let number = name.parse::<u32>().ok().filter(|number| *number > 0)?;
            let address = sys::text(&directory.join(name).join("address")).ok()?;
            Some((number, address)).filter(|(_, address)| !address.is_empty())
        })
        .collect();
    let (function, slot) = functions.iter().find_map(|function| {
        let holds = |(_, address): &&(u32, String)| base(function).starts_with(address.as_str());
        let (slot, _) = slots.iter().find(holds)?;
        Some((function, *slot))
    })?;
    // Behind a bridge there may be several devices; only where they are told apart by their functions does udev trust the slot.
    let is_bridge = sys::text(&function.join("class")).is_ok_and(|class| class.starts_with("0x0604"));
    (several || !is_bridge).then_some(slot)
}

/// Gives those of `nics` that have one name the kernel's, of `kernel`, in the same order: udev gives the name to the first that comes, and
/// nobody knows which that is.
pub(super) fn tell_apart(nics: &mut [Nic], kernel: Vec<String>) {
    let mut count = BTreeMap::<String, u32>::new();
    for nic in &*nics {
        *count.entry(nic.name.clone()).or_default() += 1;
    }
    for (nic, kernel) in nics.iter_mut().zip(kernel) {
        if count.get(&nic.name).is_some_and(|count| *count > 1) {
            nic.name = kernel;
        }
    }
}
