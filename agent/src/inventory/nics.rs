mod names;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_proto::{
    Mac,
    inventory::{MAX_ADDRESSES, MAX_DEVICES, Nic},
};

use super::{
    disks::chain::{is_pci, is_usb},
    links::Links,
    patience::{Patience, device},
    warnings::{Subject, Warnings},
};
use crate::{
    net,
    sys::{self, Root, base},
};

/// `ARPHRD_ETHER`.
const ETHERNET: u32 = 1;

/// `NET_ADDR_PERM`: the hardware's own address, neither random nor set by anybody.
const PERMANENT: u32 = 0;

/// The interfaces, and by which of their addresses the machine may be known again.
#[derive(Debug, Default)]
pub(super) struct Nics {
    pub(super) nics: Vec<Nic>,
    pub(super) identifying: BTreeSet<Mac>,
}

/// Every interface with a device behind it, in the order of kernel names.
pub(super) fn collect(
    root: &Root,
    links: &Arc<dyn Links>,
    patience: &mut Patience,
    warnings: &mut Warnings,
) -> Nics {
    let mut names = warnings.on("nics", "net").or_default(net::interfaces(root));
    names.sort_by_key(|name| natural(name));
    if names.len() > MAX_DEVICES {
        let more = names.len() - MAX_DEVICES;
        warnings
            .on("nics", "net")
            .say(format!("{more} more interfaces are not listed"));
        names.truncate(MAX_DEVICES);
    }
    let of = Arc::clone(links);
    let mut on_all = warnings.on("nics", "addresses");
    let mut addresses = match patience.wait(root.sys("class/net"), move || of.addresses()) {
        Some(addresses) => on_all.or_default(addresses),
        None => {
            on_all.say("the kernel does not answer");
            BTreeMap::new()
        }
    };

    let mut out = Nics::default();
    for name in &names {
        let (own_root, own_name, of) = (root.clone(), name.clone(), Arc::clone(links));
        let addresses = addresses.remove(name).unwrap_or_default();
        let (nic, identifies) = match patience.wait(device(root.sys("class/net").join(name)), move || {
            read(&own_root, &*of, &own_name, addresses)
        }) {
            Some((nic, identifies, said)) => {
                warnings.append(said);
                (nic, identifies)
            }
            None => {
                warnings.on("nics", name).say("its driver does not answer");
                let mac = address(root, None, name, patience);
                let nic = Nic {
                    mac: mac.map(|(mac, _)| mac),
                    name: name.clone(),
                    ..Nic::default()
                };
                (nic, mac.is_some_and(|(_, identifies)| identifies))
            }
        };
        out.identifying.extend(nic.mac.filter(|_| identifies));
        out.nics.push(nic);
    }
    names::tell_apart(&mut out.nics, names);
    warn_of_shared_addresses(&out.nics, warnings);
    out
}

/// One interface, whether its address tells this machine from others, and what there is to say of it.
fn read(root: &Root, links: &dyn Links, name: &str, addresses: Vec<String>) -> (Nic, bool, Warnings) {
    let mut warnings = Warnings::default();
    let path = root.sys("class/net").join(name);
    let parents = root.ancestors(&path.join("device"));
    let predictable = names::predictable(root, &path, parents.as_deref().unwrap_or_default());
    let shown = predictable.unwrap_or_else(|| name.to_owned());
    let mut reading = Reading {
        links,
        name,
        shown: &shown,
        path,
        subject: warnings.on("nics", &shown),
    };
    let parents = reading.subject.or_default(parents);
    let (nic, identifies) = reading.nic(&parents, addresses);
    (nic, identifies, warnings)
}

/// The address of the interface `name`, which `links` may know to be the hardware's own, and whether it tells this machine from others.
pub(crate) fn address(
    root: &Root,
    links: Option<&Arc<dyn Links>>,
    name: &str,
    patience: &mut Patience,
) -> Option<(Mac, bool)> {
    let at = device(root.sys("class/net").join(name));
    let permanent = links.cloned().and_then(|links| {
        let name = name.to_owned();
        patience.wait(at.join("permanent address"), move || {
            links.permanent_mac(&name).ok().flatten()
        })?
    });
    let (root, name) = (root.clone(), name.to_owned());
    patience.wait(at.join("address"), move || {
        let current = || sys::text(&root.sys("class/net").join(&name).join("address")).ok();
        let mac = permanent.or_else(|| current()?.parse().ok())?;
        Some((mac, identifies(&root, &name, mac, permanent.is_some())))
    })?
}

/// True if `mac`, the address of the interface `name`, tells this machine from others; `permanent`: it is known to be the hardware's own.
fn identifies(root: &Root, name: &str, mac: Mac, permanent: bool) -> bool {
    let path = root.sys("class/net").join(name);
    let kind = || {
        sys::optional_number::<u32>(&path.join("addr_assign_type"))
            .ok()
            .flatten()
    };
    let parents = root.ancestors(&path.join("device")).unwrap_or_default();
    let behind_usb = parents.iter().any(|parent| is_usb(base(parent)));
    tells_apart(mac, permanent, behind_usb, kind)
}

/// True for the hardware's own address, which `kind`, the kernel's `addr_assign_type`, says where `permanent` does not; but not for that of
/// the network card that a BMC pretends to be on USB: it often has one made-up address on every machine of a vendor.
fn tells_apart(mac: Mac, permanent: bool, behind_usb: bool, kind: impl FnOnce() -> Option<u32>) -> bool {
    let own = permanent || kind().is_none_or(|kind| kind == PERMANENT);
    own && !(behind_usb && mac.is_local())
}

/// `eth2` before `eth10`.
fn natural(name: &str) -> (String, u64, String) {
    let letters = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[letters.len()..].parse().unwrap_or(u64::MAX);
    (letters.to_owned(), number, name.to_owned())
}

fn warn_of_shared_addresses(nics: &[Nic], warnings: &mut Warnings) {
    let mut owners: BTreeMap<Mac, Vec<&str>> = BTreeMap::new();
    for nic in nics {
        if let Some(mac) = nic.mac {
            owners.entry(mac).or_default().push(&nic.name);
        }
    }
    for (mac, names) in owners.into_iter().filter(|(_, names)| names.len() > 1) {
        let message = format!("several interfaces have this address: {}", names.join(" and "));
        warnings.on("nics", &mac.to_string()).say(message);
    }
}

/// One interface being read.
struct Reading<'a> {
    links: &'a dyn Links,
    /// As the kernel calls it.
    name: &'a str,
    /// As the inventory does.
    shown: &'a str,
    path: PathBuf,
    subject: Subject<'a>,
}

impl Reading<'_> {
    /// The interface, and whether its address tells this machine from others.
    fn nic(&mut self, parents: &[PathBuf], mut addresses: Vec<String>) -> (Nic, bool) {
        let ethernet = self.number("type").is_none_or(|kind| kind == ETHERNET);
        let permanent = self.subject.or_default(self.links.permanent_mac(self.name));
        let current: Option<Mac> = self.text("address").parse().ok();
        let mac = permanent.or(current).filter(|_| ethernet);

        let behind_usb = parents.iter().any(|parent| is_usb(base(parent)));
        let identifies = mac.is_some_and(|mac| {
            tells_apart(mac, permanent.is_some(), behind_usb, || {
                self.number("addr_assign_type")
            })
        });

        // A USB adapter's PCI parent is the USB controller.
        let pci = parents
            .iter()
            .find(|parent| is_pci(base(parent)))
            .filter(|_| !behind_usb);
        let info = self.subject.or_default(self.links.driver(self.name));
        let driver = sys::link_name(&self.path.join("device/driver")).unwrap_or(info.driver);
        addresses.truncate(MAX_ADDRESSES);
        let nic = Nic {
            name: self.shown.to_owned(),
            mac,
            speed_mbps: self.speed(),
            carrier: self.flag("carrier"),
            addresses,
            vendor_id: pci.map(|pci| self.text(pci.join("vendor"))).unwrap_or_default(),
            device_id: pci.map(|pci| self.text(pci.join("device"))).unwrap_or_default(),
            pci_address: pci.map(|pci| base(pci).to_owned()).unwrap_or_default(),
            driver,
            firmware: Some(info.firmware)
                .filter(|firmware| firmware != "N/A")
                .unwrap_or_default(),
            wake_on_lan: self.subject.or_default(self.links.wakes(self.name)),
        };
        (nic, identifies)
    }

    /// The kernel says -1 for unknown, also as an unsigned number.
    fn speed(&mut self) -> u32 {
        let read = sys::optional_number::<i64>(&self.path.join("speed"));
        let speed = self.subject.or_default(read).unwrap_or(0);
        u32::try_from(speed)
            .ok()
            .filter(|speed| *speed != u32::MAX)
            .unwrap_or(0)
    }

    fn flag(&mut self, attribute: &str) -> bool {
        self.subject
            .or_default(sys::optional_flag(&self.path.join(attribute)))
    }

    fn number(&mut self, attribute: &str) -> Option<u32> {
        self.subject
            .or_default(sys::optional_number(&self.path.join(attribute)))
    }

    fn text(&mut self, attribute: impl AsRef<Path>) -> String {
        let read = sys::optional_text(&self.path.join(attribute));
        self.subject.or_default(read).unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod tests;
