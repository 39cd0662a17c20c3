//! What a DHCP request is answered with: whether its sender is heard, which boot file it is given, and the reply's options. Pure.
//!
//! | who asks | [`Verdict::Ramdisk`] | [`Verdict::Disk`] | [`Verdict::Silence`] |
//! | --- | --- | --- | --- |
//! | firmware (`PXEClient`) | iPXE by TFTP | no boot file | nothing |
//! | iPXE that cannot run our script | iPXE by TFTP | no boot file | nothing |
//! | iPXE | the URL of its script | no boot file | nothing |
//! | UEFI HTTP boot (`HTTPClient`) | the URL of a UKI | no boot file | nothing |
//! | our agent, an installed system, anything else | an address, in server mode | the same | the same |
//!
//! No boot file: in server mode an address alone, in proxy mode nothing beside the address of the other server. It is what firmware meets
//! on any network without a boot server, and iPXE goes on to the disk at once instead of asking for 18 s. It is no order: a boot file
//! that another edge offers, which may know better, goes before it, for the time in which clients gather offers.

use std::{net::Ipv4Addr, path::Path};

use muster_proto::kinds::{DhcpMode, Profile};

use super::{
    dhcp::wire::{Kind, Reply, Request},
    http::route,
    pass::Maker,
    policy::Verdict,
    segment::Net,
};

#[cfg(test)]
mod tests;

/// The vendor class (option 60) of Muster's own agent.
pub const AGENT_CLASS: &[u8] = b"muster-agent";

/// What iPXE may have been built with, as it lists it in option 175 (`ipxe/features.h`).
const HTTP: u8 = 0x13;
const BZIMAGE: u8 = 0x18;
const EFI: u8 = 0x24;

/// Knows which build of the ramdisk is served at the moment.
pub trait Releases: Send + Sync {
    /// Where they are looked for.
    fn directory(&self) -> &Path;

    /// The hash that stands in this profile's boot URLs; none while there is no such ramdisk.
    fn current(&self, profile: Profile) -> Option<String>;
}

/// Who sent a request, by its classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A PXE ROM or UEFI PXE; also an iPXE in ROM that cannot run our script.
    Firmware,
    /// iPXE, in ROM or loaded.
    Ipxe,
    /// UEFI HTTP boot.
    Http,
    /// Our agent.
    Agent,
    /// An operating system, or anything else that only wants an address.
    System,
}

impl Client {
    /// By option 60, 77, 93 and 175.
    pub fn of(request: &Request) -> Client {
        if request.class.starts_with(b"HTTPClient") {
            Client::Http
        } else if request.ipxe && runs_script(request) {
            Client::Ipxe
        } else if request.ipxe || request.class.starts_with(b"PXEClient") {
            Client::Firmware
        } else if request.class.starts_with(AGENT_CLASS) {
            Client::Agent
        } else {
            Client::System
        }
    }

    /// True for a client that asks for something to boot.
    pub fn boots(self) -> bool {
        matches!(self, Client::Firmware | Client::Ipxe | Client::Http)
    }
}

/// False for an iPXE that lists what it was built with, but not HTTP, or not the format in which this firmware boots a kernel: such are
/// the ROMs of some virtual NICs. It loads the iPXE that we serve, which lists both.
fn runs_script(request: &Request) -> bool {
    let kernel = match Machine::of(request) {
        Ok(Machine::Bios) => BZIMAGE,
        Ok(Machine::Uefi) => EFI,
        // There are no boot files for it, whatever it was built with.
        Err(_) => return true,
    };
    let listed = &request.features;
    listed.is_empty() || (listed.contains(&HTTP) && listed.contains(&kernel))
}

/// What the machine is to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum File {
    /// Nothing: it only wants an address.
    None,
    /// Nothing: it is to boot its own disk, because of this.
    OwnDisk(&'static str),
    /// This file by TFTP from the boot address.
    Tftp(&'static str),
    /// This iPXE script.
    Script(String),
    /// This UKI, for UEFI HTTP boot.
    Uki(String),
}

/// What else the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// The segment on which the request came.
    pub net: &'a Net,
    /// What the machine is to boot.
    pub verdict: Verdict,
    /// [`Releases::current`] for the segment's profile.
    pub release: Option<&'a str>,
    /// Makes the pass of the URL that is answered with; none while the key for that is not known.
    pub passes: Option<&'a Maker>,
}

/// Whether the sender is heard, and then the file that it gets; else why it hears nothing.
pub fn decide(request: &Request, at: &Circumstances<'_>) -> Result<File, &'static str> {
    let client = Client::of(request);
    if at.net.mode == DhcpMode::Off {
        return Err("DHCP is off on this segment");
    }
    if !client.boots() {
        return match at.net.mode {
            DhcpMode::Server => Ok(File::None),
            _ => Err("it asks for no boot file, and another server assigns addresses"),
        };
    }
    // Giving an address back or refusing one is no boot, and asks for no answer.
    if matches!(request.kind, Kind::Decline | Kind::Release) {
        return Ok(File::None);
    }
    match at.verdict {
        Verdict::Silence(why) => return Err(why),
        Verdict::Disk(why) if at.net.mode == DhcpMode::Server => return Ok(File::OwnDisk(why)),
        Verdict::Disk(why) => return Err(why),
        Verdict::Ramdisk(_) => {}
    }
    let machine = Machine::of(request)?;
    // A machine that began to boot would find nothing to go on with, and another edge may have what it needs.
    let release = at
        .release
        .as_ref()
        .ok_or("there is no ramdisk for its segment's profile")?;
    let passes = at.passes.ok_or("the key for boot URLs is not known yet")?;
    let Net {
        boot, http_port, key, ..
    } = at.net;
    let url = |path: String| format!("http://{boot}:{http_port}{path}/{}", passes.pass(&path));
    match (client, machine) {
        (Client::Http, _) => {
            let url = url(route::boot_path(release, key, request.mac));
            Ok(File::Uki(url + "/uki.efi"))
        }
        (Client::Ipxe, _) => {
            let uuid = request.uuid();
            Ok(File::Script(url(route::script_path(
                key,
                request.mac,
                uuid.as_deref(),
            ))))
        }
        (_, Machine::Bios) => Ok(File::Tftp("undionly.kpxe")),
        (_, Machine::Uefi) => Ok(File::Tftp("snponly.efi")),
    }
}

/// Why no machine with the firmware that sent `request` boots here; none: there are boot files for it.
pub fn unfit(request: &Request) -> Option<&'static str> {
    Machine::of(request).err()
}

/// The firmware interfaces that we have boot files for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machine {
    Bios,
    Uefi,
}

impl Machine {
    /// Processor architecture types: <https://www.iana.org/assignments/dhcpv6-parameters/>. 9 is what RFC 4578 as printed
    /// says for UEFI x64 (its erratum: 7); a client without any is a BIOS of before RFC 4578.
    fn of(request: &Request) -> Result<Machine, &'static str> {
        let known = request.architectures.iter().find_map(|number| match number {
            0 => Some(Machine::Bios),
            7 | 9 | 16 => Some(Machine::Uefi),
            _ => None,
        });
        match (known, request.architectures.first()) {
            (Some(machine), _) => Ok(machine),
            (None, None) => Ok(Machine::Bios),
            (None, Some(11 | 19)) => Err("it is an arm64 machine, for which there are no boot files yet"),
            (None, Some(6 | 15)) => Err("its firmware is 32-bit UEFI, for which there are no boot files"),
            (None, Some(_)) => Err("there are no boot files for its architecture"),
        }
    }
}

/// What a request earned beside its boot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// The proposal of an address.
    Offer(Ipv4Addr),
    /// An address.
    Lease(Ipv4Addr),
    /// No address: it has one (DHCPINFORM).
    Inform,
    /// "Not that address": why.
    Refuse(&'static str),
    /// A boot file only; another server gives the address (PXE 2.1, 2.2.3).
    ProxyOffer,
    /// The same, confirmed.
    ProxyAck,
}

/// The reply that carries `grant` and `file`.
pub fn reply(request: &Request, net: &Net, file: &File, grant: Grant) -> Reply {
    let (kind, yiaddr) = match grant {
        Grant::Offer(address) => (Kind::Offer, address),
        Grant::Lease(address) => (Kind::Ack, address),
        Grant::Inform | Grant::ProxyAck => (Kind::Ack, Ipv4Addr::UNSPECIFIED),
        Grant::ProxyOffer => (Kind::Offer, Ipv4Addr::UNSPECIFIED),
        Grant::Refuse(_) => (Kind::Nak, Ipv4Addr::UNSPECIFIED),
    };
    let mut reply = Reply {
        kind,
        yiaddr,
        siaddr: Ipv4Addr::UNSPECIFIED,
        file: None,
        required: vec![(54, net.own.octets().to_vec())],
        optional: Vec::new(),
    };
    if let Grant::Refuse(why) = grant {
        reply.optional.push((56, why.as_bytes().to_vec()));
        return reply;
    }
    if matches!(grant, Grant::Offer(_) | Grant::Lease(_)) {
        lease_options(net, &mut reply);
    }
    let proxy = matches!(grant, Grant::ProxyOffer | Grant::ProxyAck);
    boot_options(request, net, file, proxy, &mut reply);
    if !proxy {
        network_options(net, &mut reply);
    }
    reply
}

fn lease_options(net: &Net, reply: &mut Reply) {
    let seconds = net.handout.lease_seconds;
    reply.required.push((51, seconds.to_be_bytes().to_vec()));
    reply.required.push((1, net.subnet.mask().octets().to_vec()));
}

fn boot_options(request: &Request, net: &Net, file: &File, proxy: bool, reply: &mut Reply) {
    let name = match file {
        File::None | File::OwnDisk(_) => return,
        File::Tftp(name) => (*name).to_owned(),
        File::Script(url) | File::Uki(url) => url.clone(),
    };
    reply.siaddr = net.boot;
    let mut option = name.clone().into_bytes();
    if let File::Tftp(_) = file {
        // RFC 2132, 9.5 does not say that it ends with a NUL, and ROMs that read on to the next one ask TFTP for what stands behind it.
        option.push(0);
    }
    reply.required.push((67, option));
    reply.file = Some(name);
    match file {
        // UEFI 2.10, 24.7.3.1: an answer to HTTP boot says that it is one.
        File::Uki(_) => reply.required.push((60, b"HTTPClient".to_vec())),
        _ if proxy => reply.required.push((60, b"PXEClient".to_vec())),
        _ => {}
    }
    match file {
        File::Tftp(_) => {
            reply.optional.push((66, net.boot.to_string().into_bytes()));
            if proxy {
                // PXE 2.1, table 2-1: PXE_DISCOVERY_CONTROL (6), bit 3: load the file named here, ask nobody else.
                reply.required.push((43, vec![6, 1, 8, 255]));
            }
        }
        // iPXE's own options: 176 no-pxedhcp, do not wait for a proxy's answer.
        File::Script(_) if !proxy => reply.optional.push((175, vec![176, 1, 1])),
        _ => {}
    }
    if let Some(id) = request.machine_id.as_ref().filter(|id| proxy && id.len() == 17) {
        reply.optional.push((97, id.clone()));
    }
}

fn network_options(net: &Net, reply: &mut Reply) {
    let joined =
        |addresses: &[Ipv4Addr]| -> Vec<u8> { addresses.iter().flat_map(Ipv4Addr::octets).collect() };
    if let Some(router) = net.handout.router {
        reply.optional.push((3, router.octets().to_vec()));
    }
    reply
        .optional
        .push((28, net.subnet.broadcast().octets().to_vec()));
    reply.optional.push((6, joined(&net.handout.dns)));
    if let Some(domain) = &net.handout.domain {
        reply.optional.push((15, domain.clone().into_bytes()));
    }
    reply.optional.push((42, joined(&net.handout.ntp)));
}
