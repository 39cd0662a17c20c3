//! From a Segment, as people wrote it, to a [`Net`], as the boot services use it. Pure: the interfaces are passed in.
//!
//! Every rule has its own sentence, because the sentence is what the user reads in the Segment's condition `Serving`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
};

use muster_proto::{
    kinds::{DhcpMode, Profile, Segment, UnknownPolicy},
    text,
};

use super::ipxe::{MAX_PARAMETERS, Parameter};
use crate::path::Path;

mod invalid;
mod subnet;
#[cfg(test)]
mod tests;

pub use invalid::{ELSEWHERE, Invalid};
pub use subnet::Subnet;

/// Where the Segments of `plan` are served.
pub fn served(plan: &Plan) -> BTreeSet<IpAddr> {
    plan.values().flatten().flat_map(Net::addresses).collect()
}

/// The most name servers, and the most time servers, that a lease names.
pub const MAX_SERVERS: usize = 8;
/// The most addresses that one segment leases: a /16.
pub const MAX_ADDRESSES: u32 = 1 << 16;

/// Namespace and name of a Segment stand in the boot URL, and a URL must fit into one DHCP option (255 bytes).
const MAX_KEY: usize = 100;

/// Lease time where the Segment names none, in seconds.
const LEASE_SECONDS: u32 = 3600;

/// A local interface, as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name, such as `eth1`.
    pub name: String,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
}

/// The ports that this controller was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Boot files by HTTP.
    pub http: u16,
    /// The agents' HTTPS.
    pub agents: u16,
}

/// What DHCP hands out beside the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handout {
    /// First and last address of each range, ascending.
    pub ranges: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Default gateway (option 3).
    pub router: Option<Ipv4Addr>,
    /// Name servers (option 6).
    pub dns: Vec<Ipv4Addr>,
    /// Domain name (option 15).
    pub domain: Option<String>,
    /// Time servers (option 42).
    pub ntp: Vec<Ipv4Addr>,
    /// Lease time in seconds (option 51).
    pub lease_seconds: u32,
}

/// A valid Segment, ready to be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Net {
    /// `namespace/name`.
    pub key: String,
    /// Namespace of the Segment.
    pub namespace: String,
    /// Name of the Segment.
    pub name: String,
    /// The local interface; none where only relays lead.
    pub interface: Option<String>,
    /// Relay agents whose requests belong here, beside those in `subnet`.
    pub relays: Vec<Ipv4Addr>,
    /// The subnet.
    pub subnet: Subnet,
    /// Our own address there: the DHCP server identifier.
    pub own: Ipv4Addr,
    /// Server, proxy or off.
    pub mode: DhcpMode,
    /// What DHCP hands out.
    pub handout: Handout,
    /// Where machines reach our boot files by TFTP (port 69) and, on `http_port`, by HTTP.
    pub boot: Ipv4Addr,
    /// True if that is this computer, and not another edge or what stands before several.
    pub is_boot_here: bool,
    /// Port of HTTP at `boot`.
    pub http_port: u16,
    /// `https://address:port` of each replica, for the agents.
    pub agent_endpoints: Vec<String>,
    /// HTTP proxy for images, `host:port`.
    pub proxy: Option<String>,
    /// The namespace in which new hosts are made.
    pub host_namespace: String,
    /// What becomes of a machine that nobody has described.
    pub unknown: UnknownPolicy,
    /// The most Servers that this segment may bring into being.
    pub quota: u32,
    /// Which ramdisk.
    pub profile: Profile,
    /// Further kernel parameters.
    pub kernel_parameters: Vec<Parameter>,
}

impl Net {
    /// Where it is served: this machine's address there, or, behind relays only, the boot address; and the boot address where it is
    /// another one of this machine's.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let boot = Some(self.boot).filter(|_| self.is_boot_here);
        [Some(self.own), boot]
            .into_iter()
            .flatten()
            .map(IpAddr::from)
            .collect()
    }

    /// At which of them machines load boot files.
    pub fn of_boot(&self) -> BTreeSet<IpAddr> {
        let mut addresses = self.addresses();
        addresses.retain(|address| *address == self.boot);
        addresses
    }

    /// At which of them agents call in, or may: where a name leads nobody here knows.
    pub fn of_agents(&self) -> BTreeSet<IpAddr> {
        let mut addresses = self.addresses();
        if self.agent_hosts().all(|host| host.parse::<IpAddr>().is_ok()) {
            addresses.retain(|address| self.has_agents_at(*address));
        }
        addresses
    }

    /// True if agents are told to call in at `address`.
    pub fn has_agents_at(&self, address: IpAddr) -> bool {
        self.agent_hosts().any(|host| host.parse() == Ok(address))
    }

    /// Where agents are told to call in: addresses or names.
    fn agent_hosts(&self) -> impl Iterator<Item = &str> {
        self.agent_endpoints
            .iter()
            .filter_map(|endpoint| Some(endpoint.strip_prefix("https://")?.rsplit_once(':')?.0))
            .map(|host| host.trim_matches(['[', ']']))
    }

    /// True for a relay agent whose requests belong to this segment.
    pub fn relays_through(&self, giaddr: Ipv4Addr) -> bool {
        self.relays.contains(&giaddr) || (self.subnet.is_host(giaddr) && giaddr != self.own)
    }
}

/// A served network or why it is not, by `namespace/name`.
pub type Plan = BTreeMap<String, Result<Net, Invalid>>;

/// `namespace/name` of a Segment.
pub fn key(segment: &Segment) -> String {
    Path::of(segment).to_string()
}

/// What becomes of all Segments together: of two that collide, the older one has what both ask for, served or not.
pub fn plan<'a>(segments: impl IntoIterator<Item = &'a Segment>, links: &[Link], ports: Ports) -> Plan {
    let mut by_age: Vec<&Segment> = segments.into_iter().collect();
    by_age.sort_by_key(|segment| (segment.metadata.creation_timestamp.clone(), key(segment)));
    let mut claimed: Vec<Claim> = Vec::new();
    let mut plan = Plan::new();
    for segment in by_age {
        let key = key(segment);
        // A segment whose interface is missing keeps its claim, so that the younger one does not slip in meanwhile.
        let outcome = Claim::of(segment).and_then(|claim| {
            claim.collision(&claimed)?;
            claimed.push(claim);
            check(segment, links, ports)
        });
        plan.insert(key, outcome);
    }
    plan
}

/// What no two segments may share.
struct Claim {
    key: String,
    interface: Option<String>,
    subnet: Subnet,
    relays: Vec<Ipv4Addr>,
}

impl Claim {
    fn of(segment: &Segment) -> Result<Claim, Invalid> {
        Ok(Claim {
            key: key(segment),
            interface: interface(segment)?,
            subnet: segment.spec.subnet.parse()?,
            relays: addresses("relays", &segment.spec.relays, 64)?,
        })
    }

    fn collision(&self, older: &[Claim]) -> Result<(), Invalid> {
        for theirs in older {
            let other = theirs.key.clone();
            if let Some(interface) = self
                .interface
                .clone()
                .filter(|_| self.interface == theirs.interface)
            {
                return Err(Invalid::SameInterface { other, interface });
            }
            if self.subnet.overlaps(theirs.subnet) {
                return Err(Invalid::SameSubnet {
                    other,
                    subnet: self.subnet,
                    theirs: theirs.subnet,
                });
            }
            if let Some(relay) = self.relays.iter().find(|relay| theirs.relays.contains(relay)) {
                return Err(Invalid::SameRelay { other, relay: *relay });
            }
        }
        Ok(())
    }
}

/// One Segment by itself.
pub fn check(segment: &Segment, links: &[Link], ports: Ports) -> Result<Net, Invalid> {
    let spec = &segment.spec;
    let (Some(namespace), Some(name)) = (&segment.metadata.namespace, &segment.metadata.name) else {
        return Err(Invalid::Unnamed);
    };
    let length = namespace.len() + name.len();
    if length > MAX_KEY {
        return Err(Invalid::Name { length });
    }
    let interface = interface(segment)?;
    let subnet: Subnet = spec.subnet.parse()?;
    let relays = addresses("relays", &spec.relays, 64)?;
    let handout = handout(spec, subnet)?;
    let boot = spec.boot_address.as_deref().map(boot_address).transpose()?;
    let endpoints = endpoints(&spec.agent_endpoints)?;
    if let Some(proxy) = &spec.proxy
        && !is_host_port(proxy)
    {
        return Err(Invalid::Endpoint {
            field: "proxy",
            // Before the host may stand a password.
            written: shown(proxy.rsplit_once('@').map_or(proxy, |(_, host)| host)),
            form: "host:port",
        });
    }
    let host_namespace = spec.host_namespace.as_ref().unwrap_or(namespace);
    if !is_label(host_namespace) {
        return Err(Invalid::HostNamespace {
            written: shown(host_namespace),
        });
    }
    let kernel_parameters = kernel_parameters(&spec.kernel_parameters)?;
    let own = own_address(interface.as_deref(), subnet, boot, links)?;
    let (boot, http_port) = boot.unwrap_or((own, None));
    not_leased(
        &handout.ranges,
        &[(own, "this controller's own address"), (boot, "the boot address")],
    )?;
    Ok(Net {
        key: key(segment),
        namespace: namespace.clone(),
        name: name.clone(),
        interface,
        relays,
        subnet,
        own,
        mode: spec.dhcp.mode,
        handout,
        boot,
        is_boot_here: is_here(links, boot),
        http_port: http_port.unwrap_or(ports.http),
        agent_endpoints: if endpoints.is_empty() {
            vec![format!("https://{own}:{}", ports.agents)]
        } else {
            endpoints
        },
        proxy: spec.proxy.clone(),
        host_namespace: host_namespace.clone(),
        unknown: spec.unknown,
        quota: spec.quota,
        profile: spec.profile,
        kernel_parameters,
    })
}

/// The server identifier: the interface's address in the subnet; without an interface, the boot address.
fn own_address(
    interface: Option<&str>,
    subnet: Subnet,
    boot: Option<(Ipv4Addr, Option<u16>)>,
    links: &[Link],
) -> Result<Ipv4Addr, Invalid> {
    let Some(interface) = interface else {
        let (address, _) = boot.ok_or(Invalid::NoBootAddress)?;
        return is_here(links, address)
            .then_some(address)
            .ok_or(Invalid::NotHere { address });
    };
    let link = links
        .iter()
        .find(|link| link.name == interface)
        .ok_or_else(|| Invalid::NoInterface {
            interface: interface.to_owned(),
        })?;
    // Several addresses in one subnet: the boot address, if it is one of them, else the first.
    let inside = || {
        link.addresses
            .iter()
            .copied()
            .filter(|&address| subnet.is_host(address))
    };
    inside()
        .find(|address| boot.is_some_and(|(boot, _)| boot == *address))
        .or_else(|| inside().next())
        .ok_or_else(|| Invalid::NoAddress {
            interface: interface.to_owned(),
            subnet,
        })
}

/// True if this computer has `address`.
fn is_here(links: &[Link], address: Ipv4Addr) -> bool {
    links.iter().any(|link| link.addresses.contains(&address))
}

fn interface(segment: &Segment) -> Result<Option<String>, Invalid> {
    let Some(name) = &segment.spec.interface else {
        return Ok(None);
    };
    // IFNAMSIZ is 16 with the NUL; the kernel refuses `.`, `..`, `/`, `:` and white space (dev_valid_name).
    let valid = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if valid {
        Ok(Some(name.clone()))
    } else {
        Err(Invalid::InterfaceName { written: shown(name) })
    }
}

fn handout(spec: &muster_proto::kinds::SegmentSpec, subnet: Subnet) -> Result<Handout, Invalid> {
    let dhcp = &spec.dhcp;
    let ranges = ranges(&dhcp.ranges, subnet)?;
    if dhcp.mode == DhcpMode::Server && ranges.is_empty() {
        return Err(Invalid::NoRange);
    }
    let router = dhcp
        .router
        .as_deref()
        .map(|written| address("dhcp.router", written))
        .transpose()?;
    if let Some(router) = router {
        if !subnet.is_host(router) {
            return Err(Invalid::Outside {
                field: "dhcp.router",
                address: router,
                subnet,
            });
        }
        not_leased(&ranges, &[(router, "the router's address")])?;
    }
    let dns = addresses("dhcp.dnsServers", &dhcp.dns_servers, MAX_SERVERS)?;
    let ntp = addresses("dhcp.ntpServers", &dhcp.ntp_servers, MAX_SERVERS)?;
    if let Some(domain) = &dhcp.domain
        && !is_domain(domain)
    {
        return Err(Invalid::Domain {
            written: shown(domain),
        });
    }
    let lease_seconds = dhcp.lease_seconds.unwrap_or(LEASE_SECONDS);
    if !(60..=604_800).contains(&lease_seconds) {
        return Err(Invalid::LeaseTime {
            seconds: lease_seconds,
        });
    }
    Ok(Handout {
        ranges,
        router,
        dns,
        domain: dhcp.domain.clone(),
        ntp,
        lease_seconds,
    })
}

fn ranges(
    written: &[muster_proto::kinds::Range],
    subnet: Subnet,
) -> Result<Vec<(Ipv4Addr, Ipv4Addr)>, Invalid> {
    at_most("dhcp.ranges", written.len(), 32)?;
    let mut ranges = Vec::with_capacity(written.len());
    let mut total = 0_u64;
    for range in written {
        let inside = |field, written: &str| match address(field, written)? {
            address if subnet.is_host(address) => Ok(address),
            address => Err(Invalid::Outside {
                field,
                address,
                subnet,
            }),
        };
        let start = inside("dhcp.ranges.start", &range.start)?;
        let end = inside("dhcp.ranges.end", &range.end)?;
        if end < start {
            return Err(Invalid::Backwards { start, end });
        }
        total += u64::from(end.to_bits() - start.to_bits()) + 1;
        ranges.push((start, end));
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if pair[1].0 <= pair[0].1 {
            return Err(Invalid::RangesOverlap {
                first: pair[0].0,
                second: pair[1].0,
            });
        }
    }
    if total > u64::from(MAX_ADDRESSES) {
        return Err(Invalid::TooMany { addresses: total });
    }
    Ok(ranges)
}

fn not_leased(ranges: &[(Ipv4Addr, Ipv4Addr)], taken: &[(Ipv4Addr, &'static str)]) -> Result<(), Invalid> {
    for &(start, end) in ranges {
        for &(address, what) in taken {
            if (start..=end).contains(&address) {
                return Err(Invalid::Taken {
                    start,
                    end,
                    address,
                    what,
                });
            }
        }
    }
    Ok(())
}

fn address(field: &'static str, written: &str) -> Result<Ipv4Addr, Invalid> {
    written
        .parse()
        .ok()
        .filter(|address: &Ipv4Addr| {
            !address.is_unspecified()
                && !address.is_multicast()
                && !address.is_broadcast()
                && !address.is_loopback()
        })
        .ok_or_else(|| Invalid::Address {
            field,
            written: shown(written),
        })
}

fn addresses(field: &'static str, written: &[String], max: usize) -> Result<Vec<Ipv4Addr>, Invalid> {
    at_most(field, written.len(), max)?;
    written.iter().map(|written| address(field, written)).collect()
}

fn at_most(field: &'static str, count: usize, max: usize) -> Result<(), Invalid> {
    if count > max {
        return Err(Invalid::TooLong { field, count, max });
    }
    Ok(())
}

/// `address` or `address:port`.
fn boot_address(written: &str) -> Result<(Ipv4Addr, Option<u16>), Invalid> {
    if let Ok(socket) = written.parse::<SocketAddrV4>()
        && socket.port() != 0
    {
        return Ok((
            address("bootAddress", &socket.ip().to_string())?,
            Some(socket.port()),
        ));
    }
    Ok((address("bootAddress", written)?, None))
}

fn endpoints(written: &[String]) -> Result<Vec<String>, Invalid> {
    at_most("agentEndpoints", written.len(), 16)?;
    written
        .iter()
        .map(|endpoint| {
            is_host_port(endpoint)
                .then(|| format!("https://{endpoint}"))
                .ok_or_else(|| Invalid::Endpoint {
                    field: "agentEndpoints",
                    written: shown(endpoint),
                    form: "address:port",
                })
        })
        .collect()
}

fn kernel_parameters(written: &[String]) -> Result<Vec<Parameter>, Invalid> {
    at_most("kernelParameters", written.len(), 16)?;
    let length: usize = written.iter().map(|parameter| " ".len() + parameter.len()).sum();
    if length > MAX_PARAMETERS {
        return Err(Invalid::KernelParameters { length });
    }
    let parameter = |written: &String| {
        Parameter::new(written).ok_or_else(|| Invalid::KernelParameter {
            written: shown(written),
        })
    };
    written.iter().map(parameter).collect()
}

/// True for `10.0.0.1:80`, `[fd00::1]:80` and `name.example:80`.
fn is_host_port(written: &str) -> bool {
    if let Ok(socket) = written.parse::<SocketAddr>() {
        return socket.port() != 0 && !socket.ip().is_unspecified();
    }
    written.rsplit_once(':').is_some_and(|(host, port)| {
        is_domain(host)
            // What looks like an IPv4 address and is none would otherwise pass as a name.
            && !host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

fn is_domain(written: &str) -> bool {
    (1..=253).contains(&written.len())
        && written.split('.').all(|part| {
            (1..=63).contains(&part.len())
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
}

fn is_label(written: &str) -> bool {
    is_domain(written)
        && written.len() <= 63
        && written
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// What a user wrote, fit to be shown back.
fn shown(written: &str) -> String {
    text::clean(written.as_bytes())
}
