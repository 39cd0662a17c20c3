//! What sysfs does not tell of network interfaces.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use muster_proto::{Mac, text};
use nix::{errno::Errno, ifaddrs::getifaddrs, sys::socket::SockaddrStorage};

use crate::net::ethtool;
pub use crate::net::ethtool::DriverInfo;

/// Asks about the network interfaces of the machine that the inventory is of.
pub trait Links: Send + Sync {
    /// The address that the hardware came with; `None` if it has none or the driver does not tell.
    ///
    /// # Errors
    /// [`LinksError::PermanentMac`].
    fn permanent_mac(&self, interface: &str) -> Result<Option<Mac>, LinksError>;

    /// What the driver says of itself; empty where it says nothing.
    ///
    /// # Errors
    /// [`LinksError::Driver`].
    fn driver(&self, interface: &str) -> Result<DriverInfo, LinksError>;

    /// True if a magic packet can switch the machine on through it; none where that is not known.
    ///
    /// # Errors
    /// [`LinksError::WakeOnLan`].
    fn wakes(&self, interface: &str) -> Result<Option<bool>, LinksError>;

    /// The addresses of every interface, each as `10.0.0.7/24`.
    ///
    /// # Errors
    /// [`LinksError::Addresses`].
    fn addresses(&self) -> Result<BTreeMap<String, Vec<String>>, LinksError>;
}

/// The kernel did not answer.
#[derive(Debug, thiserror::Error)]
pub enum LinksError {
    /// `ETHTOOL_GPERMADDR` failed.
    #[error("query the permanent address")]
    PermanentMac(#[source] Errno),
    /// `ETHTOOL_GDRVINFO` failed.
    #[error("query the driver")]
    Driver(#[source] Errno),
    /// `ETHTOOL_GWOL` failed.
    #[error("query Wake-on-LAN")]
    WakeOnLan(#[source] Errno),
    /// Listing addresses failed.
    #[error("list addresses")]
    Addresses(#[source] Errno),
}

/// The running kernel, by ioctl and netlink.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelLinks;

impl KernelLinks {
    /// As [`collect`](super::collect) wants it.
    pub fn shared() -> Arc<dyn Links> {
        Arc::new(KernelLinks)
    }
}

impl Links for KernelLinks {
    fn permanent_mac(&self, interface: &str) -> Result<Option<Mac>, LinksError> {
        let address = ethtool::permanent_address(interface).map_err(LinksError::PermanentMac)?;
        let address = address.unwrap_or_default();
        // A driver without the notion answers with zeros.
        Ok(<[u8; 6]>::try_from(address)
            .ok()
            .map(Mac)
            .filter(|mac| mac.is_unicast()))
    }

    fn driver(&self, interface: &str) -> Result<DriverInfo, LinksError> {
        ethtool::driver_info(interface).map_err(LinksError::Driver)
    }

    fn wakes(&self, interface: &str) -> Result<Option<bool>, LinksError> {
        match ethtool::wakes_on_magic(interface) {
            // Unlike the rest, only a privileged process is told.
            Err(Errno::EPERM) => Ok(None),
            told => told.map_err(LinksError::WakeOnLan),
        }
    }

    fn addresses(&self) -> Result<BTreeMap<String, Vec<String>>, LinksError> {
        let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for entry in getifaddrs().map_err(LinksError::Addresses)? {
            let Some(address) = entry.address.as_ref().and_then(ip) else {
                continue;
            };
            let mask = entry.netmask.as_ref().and_then(ip);
            let text = with_prefix(address, mask);
            out.entry(entry.interface_name).or_default().push(text);
        }
        Ok(out)
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn with_prefix(address: IpAddr, mask: Option<IpAddr>) -> String {
    let length = match mask {
        Some(IpAddr::V4(mask)) => u32::from(mask).leading_ones(),
        Some(IpAddr::V6(mask)) => u128::from(mask).leading_ones(),
        None if address.is_ipv4() => 32,
        None => 128,
    };
    text::clean(format!("{address}/{length}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_counted_from_masks() {
        let with =
            |address: &str, mask: &str| with_prefix(address.parse().unwrap(), Some(mask.parse().unwrap()));
        assert_eq!(with("10.0.0.7", "255.255.254.0"), "10.0.0.7/23");
        assert_eq!(with("fd00::7", "ffff:ffff:ffff:ffff::"), "fd00::7/64");
        assert_eq!(with_prefix("10.0.0.7".parse().unwrap(), None), "10.0.0.7/32");
    }

    #[test]
    fn the_kernel_answers_for_its_own_loopback() {
        let addresses = KernelLinks.addresses().unwrap();
        assert!(
            addresses["lo"].contains(&"127.0.0.1/8".to_owned()),
            "{addresses:?}"
        );
        assert_eq!(KernelLinks.permanent_mac("lo").unwrap(), None);
        assert_eq!(KernelLinks.wakes("lo").unwrap(), None, "its driver does not tell");
        assert!(KernelLinks.driver("no-such-link").is_err());
        assert!(KernelLinks.wakes("no-such-link").is_err());
        assert!(KernelLinks.driver("a-name-longer-than-any-interface").is_err());
    }
}
