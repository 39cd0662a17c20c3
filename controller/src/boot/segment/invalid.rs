//! What can be wrong with a Segment.

use std::net::Ipv4Addr;

use super::{MAX_ADDRESSES, MAX_KEY, MAX_PARAMETERS, Subnet};
use crate::segments::{CONFLICT, INVALID, NO_ADDRESS, NO_INTERFACE};

/// Why a Segment is not served. The text is for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It has no namespace or name.
    #[error("the segment has no namespace or no name")]
    Unnamed,
    /// Boot URLs would not fit.
    #[error("namespace and name together are {length} characters long; boot URLs have room for {MAX_KEY}")]
    Name {
        /// Characters of both.
        length: usize,
    },
    /// `spec.interface` is no interface name.
    #[error("interface `{written}` is not an interface name: 1 to 15 characters without white space and `/`")]
    InterfaceName {
        /// As written.
        written: String,
    },
    /// `spec.subnet` is no CIDR.
    #[error("subnet `{written}` is not an IPv4 subnet such as 10.77.0.0/24")]
    Subnet {
        /// As written.
        written: String,
    },
    /// Prefix length out of bounds.
    #[error("a subnet of prefix length {prefix} cannot be served; it must be between 8 and 30")]
    Prefix {
        /// As written.
        prefix: u8,
    },
    /// The subnet has host bits.
    #[error("subnet `{written}` names an address, not a subnet; the subnet is {subnet}")]
    HostBits {
        /// As written.
        written: String,
        /// The subnet it lies in.
        subnet: Subnet,
    },
    /// Some field is to be an IPv4 address.
    #[error("{field} `{written}` is not an IPv4 address that a machine can have")]
    Address {
        /// Path below `spec`.
        field: &'static str,
        /// As written.
        written: String,
    },
    /// An address that must lie in the subnet does not.
    #[error("{field} {address} is not a host address in {subnet}")]
    Outside {
        /// Path below `spec`.
        field: &'static str,
        /// The address.
        address: Ipv4Addr,
        /// `spec.subnet`.
        subnet: Subnet,
    },
    /// A range runs backwards.
    #[error("the range {start} to {end} ends before it starts")]
    Backwards {
        /// First address.
        start: Ipv4Addr,
        /// Last address.
        end: Ipv4Addr,
    },
    /// Two ranges share addresses.
    #[error("the ranges that start at {first} and at {second} overlap")]
    RangesOverlap {
        /// Start of one.
        first: Ipv4Addr,
        /// Start of the other.
        second: Ipv4Addr,
    },
    /// A range would lease an address that is taken.
    #[error("the range {start} to {end} contains {address}, {what}")]
    Taken {
        /// First address.
        start: Ipv4Addr,
        /// Last address.
        end: Ipv4Addr,
        /// The address in it.
        address: Ipv4Addr,
        /// Whose it is.
        what: &'static str,
    },
    /// Server mode without a range.
    #[error("dhcp.mode is server, but dhcp.ranges is empty: there is no address to lease")]
    NoRange,
    /// Too many addresses.
    #[error("the ranges hold {addresses} addresses; a segment leases at most {MAX_ADDRESSES}")]
    TooMany {
        /// How many.
        addresses: u64,
    },
    /// Lease time out of bounds.
    #[error("dhcp.leaseSeconds is {seconds}; it must be between 60 and 604800")]
    LeaseTime {
        /// As written.
        seconds: u32,
    },
    /// The domain is none.
    #[error("dhcp.domain `{written}` is not a domain name")]
    Domain {
        /// As written.
        written: String,
    },
    /// `address:port` expected.
    #[error("{field} `{written}` is not of the form {form}")]
    Endpoint {
        /// Path below `spec`.
        field: &'static str,
        /// As written.
        written: String,
        /// What it should be like.
        form: &'static str,
    },
    /// No name for a namespace.
    #[error("hostNamespace `{written}` is not the name of a namespace")]
    HostNamespace {
        /// As written.
        written: String,
    },
    /// A kernel parameter that would not survive a boot script.
    #[error(
        "kernelParameters: `{written}` is refused; allowed are letters, digits and `_.,:=/@+-`, at most 128"
    )]
    KernelParameter {
        /// As written.
        written: String,
    },
    /// The kernel would cut off the last ones.
    #[error(
        "kernelParameters are {length} characters long with a space before each; the kernel's command line has room for {MAX_PARAMETERS}"
    )]
    KernelParameters {
        /// Characters of all.
        length: usize,
    },
    /// More entries than the list may have.
    #[error("{field} has {count} entries; at most {max} are allowed")]
    TooLong {
        /// Path below `spec`.
        field: &'static str,
        /// Entries.
        count: usize,
        /// Most allowed.
        max: usize,
    },
    /// The address at which relays and machines reach us is none of this computer's.
    #[error("no interface here has the boot address {address}")]
    NotHere {
        /// `spec.bootAddress`.
        address: Ipv4Addr,
    },
    /// A relayed segment does not say where we are.
    #[error("without an interface, bootAddress must say at which address machines reach this controller")]
    NoBootAddress,
    /// An older segment has the interface, served or not.
    #[error("the older segment {other} has interface {interface}; next: delete it, or change one of the two")]
    SameInterface {
        /// `namespace/name` of the older segment.
        other: String,
        /// The interface.
        interface: String,
    },
    /// An older segment has some of these addresses, served or not.
    #[error(
        "the older segment {other} has subnet {theirs}, which overlaps with {subnet}; next: delete it, or change one of the two"
    )]
    SameSubnet {
        /// `namespace/name` of the older segment.
        other: String,
        /// Ours.
        subnet: Subnet,
        /// Its.
        theirs: Subnet,
    },
    /// An older segment has this relay agent, served or not.
    #[error("the older segment {other} has relay {relay}; next: delete it, or change one of the two")]
    SameRelay {
        /// `namespace/name` of the older segment.
        other: String,
        /// The relay agent's address.
        relay: Ipv4Addr,
    },
    /// The interface does not exist here (yet).
    #[error("this machine has no interface {interface}; served as soon as there is one")]
    NoInterface {
        /// The interface.
        interface: String,
    },
    /// The interface has no address in the subnet (yet).
    #[error("interface {interface} has no address in {subnet}; served as soon as it has one")]
    NoAddress {
        /// The interface.
        interface: String,
        /// `spec.subnet`.
        subnet: Subnet,
    },
}

/// The [`Invalid::reason`]s where another computer may have the interface, or one of that name with an address in the subnet.
pub const ELSEWHERE: [&str; 2] = [NO_INTERFACE, NO_ADDRESS];

impl Invalid {
    /// CamelCase, the reason of the Segment's condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Invalid::NoInterface { .. } => NO_INTERFACE,
            Invalid::NoAddress { .. } | Invalid::NotHere { .. } => NO_ADDRESS,
            Invalid::SameInterface { .. } | Invalid::SameSubnet { .. } | Invalid::SameRelay { .. } => {
                CONFLICT
            }
            _ => INVALID,
        }
    }
}
