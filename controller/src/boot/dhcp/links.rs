//! The interfaces of this machine.

use std::{collections::BTreeMap, io, net::Ipv4Addr};

use crate::boot::segment::Link;

/// All interfaces with their IPv4 addresses, by name.
///
/// # Errors
/// Those of getifaddrs(3): the kernel does not tell, for want of file descriptors or memory, which says nothing of the interfaces.
pub fn links() -> io::Result<Vec<Link>> {
    let entries = nix::ifaddrs::getifaddrs()?;
    let mut links: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
    for entry in entries {
        let addresses = links.entry(entry.interface_name).or_default();
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

/// The kernel's number of an interface: another one after it was taken away and made again.
pub(super) fn index(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}
