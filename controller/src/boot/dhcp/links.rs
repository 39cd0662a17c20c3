//! The interfaces of this machine.

use std::{collections::BTreeMap, io, net::Ipv4Addr};

use muster_proto::Mac;
use nix::errno::Errno;

use crate::boot::segment::Link;

/// All interfaces with their IPv4 addresses, by name.
///
/// # Errors
/// Those of getifaddrs(3): the kernel does not tell, for want of file descriptors or memory, which says nothing of the interfaces.
pub fn links() -> io::Result<Vec<Link>> {
    let entries = nix::ifaddrs::getifaddrs()?;
    let mut links: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
    for entry in entries {
        // An address may have a label in place of its interface's name: that with a colon and some more behind it.
        let name = entry.interface_name.split(':').next().unwrap_or_default();
        let addresses = links.entry(name.to_owned()).or_default();
        if let Some(address) = entry
            .address
            .as_ref()
            .and_then(|address| address.as_sockaddr_in())
        {
            addresses.push(address.ip());
        }
    }
    Ok(links
        .into_iter()
        .map(|(name, addresses)| Link { name, addresses })
        .collect())
}

/// By what an interface is the one that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity {
    /// The kernel's number of it: another one after it was taken away and made again.
    index: u32,
    /// A bridge or bond takes that of a port, and has others before and after.
    mac: Option<Mac>,
}

/// That of the interface `name`; none: it does not exist.
///
/// # Errors
/// As of [`links`].
pub(super) fn identity(name: &str) -> io::Result<Option<Identity>> {
    let index = match nix::net::if_::if_nametoindex(name) {
        Ok(index) => index,
        Err(Errno::ENODEV | Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Not by sysfs, which may be another namespace's.
    let mut entries = nix::ifaddrs::getifaddrs()?;
    let mac = entries.find_map(|entry| {
        let address = entry.address.filter(|_| entry.interface_name == name)?;
        address.as_link_addr()?.addr()
    });
    Ok(Some(Identity {
        index,
        mac: mac.map(Mac),
    }))
}
