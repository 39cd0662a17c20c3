//! IPv4 subnets.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use super::{Invalid, shown};

/// An IPv4 subnet in canonical form: no host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The network's address.
    pub network: Ipv4Addr,
    /// Prefix length, 8 to 30.
    pub prefix: u8,
}

impl Subnet {
    /// The netmask, such as `255.255.255.0`.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - u32::from(self.prefix)))
    }

    /// The subnet's broadcast address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !self.mask().to_bits())
    }

    /// True for an address in the subnet, its first and last included.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask().to_bits() == self.network.to_bits()
    }

    /// True for an address that a machine in the subnet can have.
    pub fn is_host(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.network && address != self.broadcast()
    }

    pub(super) fn overlaps(self, other: Subnet) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = Invalid;

    fn from_str(written: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid::Subnet {
            written: shown(written),
        };
        let (address, prefix) = written.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if !(8..=30).contains(&prefix) {
            return Err(Invalid::Prefix { prefix });
        }
        let mask = u32::MAX << (32 - u32::from(prefix));
        let subnet = Subnet {
            network: Ipv4Addr::from_bits(address.to_bits() & mask),
            prefix,
        };
        if subnet.network != address {
            return Err(Invalid::HostBits {
                written: shown(written),
                subnet,
            });
        }
        Ok(subnet)
    }
}
