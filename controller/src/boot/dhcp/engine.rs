//! One request against one segment: RFC 2131's server, and PXE's proxy. Pure but for the [`Leases`] that it changes.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use muster_proto::kinds::DhcpMode;

use super::{
    leases::{Claim, Leases, Proposal, Ruling},
    rogue::is_ours,
    wire::{Kind, Reply, Request},
};
use crate::boot::{
    decide::{Circumstances, Client, File, Grant, decide, reply},
    segment::Net,
};

#[cfg(test)]
mod tests;

/// DHCP's port for servers and relay agents.
pub const SERVER_PORT: u16 = 67;
/// DHCP's port for clients.
pub const CLIENT_PORT: u16 = 68;
/// The port of PXE boot servers (PXE 2.1, 2.2.3).
pub const PXE_PORT: u16 = 4011;

/// Why a machine that asks for an address hears nothing where the pool has none for it.
pub const NO_FREE_ADDRESS: &str = "every address of the segment's ranges is leased or in use";

/// What is to be done about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, because of this.
    Silence(&'static str),
    /// Send this.
    Send(Reply, File),
    /// Ask the network who uses this address, tell [`Leases::probed`], and take the step again.
    Probe(Ipv4Addr),
}

/// The next step about `request`, which came in on `port` ([`SERVER_PORT`] or [`PXE_PORT`]).
pub fn step(
    request: &Request,
    port: u16,
    at: &Circumstances<'_>,
    leases: &mut Leases,
    now: Duration,
) -> Step {
    let file = match decide(request, at) {
        Ok(file) => file,
        Err(why) => return Step::Silence(why),
    };
    let grant = if at.net.mode == DhcpMode::Server {
        serve(request, at.net, leases, now)
    } else {
        proxy(request, port, at.net)
    };
    match grant {
        Ok(grant) => Step::Send(reply(request, at.net, &file, grant), file),
        Err(step) => step,
    }
}

/// Server mode.
fn serve(request: &Request, net: &Net, leases: &mut Leases, now: Duration) -> Result<Grant, Step> {
    let mac = request.mac;
    let ours = request.server == Some(net.own);
    match request.kind {
        Kind::Discover => match leases.propose(mac, request.wanted, now) {
            Proposal::Ready(address) => Ok(Grant::Offer(address)),
            Proposal::Probe(address) => Err(Step::Probe(address)),
            Proposal::Full => Err(Step::Silence(NO_FREE_ADDRESS)),
        },
        Kind::Request => {
            let claim = match (request.server, request.wanted, request.ciaddr) {
                (Some(server), wanted, _) if !ours => {
                    match wanted.filter(|_| is_ours(server, net)) {
                        Some(address) => leases.overhear(mac, address, now),
                        None => leases.withdraw(mac),
                    }
                    return Err(Step::Silence("it took another server's offer"));
                }
                (Some(_), Some(wanted), _) => Claim::Selecting(wanted),
                (None, Some(wanted), ciaddr) if ciaddr.is_unspecified() => Claim::InitReboot(wanted),
                (_, _, ciaddr) if !ciaddr.is_unspecified() => Claim::Extending(ciaddr),
                _ => return Err(Step::Silence("its request names no address")),
            };
            match leases.rule(mac, claim, now) {
                Ruling::Yes(address) => Ok(Grant::Lease(address)),
                Ruling::No(why) => Ok(Grant::Refuse(why)),
                Ruling::NotOurs(why) => Err(Step::Silence(why)),
            }
        }
        Kind::Decline => {
            // Of another replica of ours, too: it is to be offered by none.
            let declined = request.server.is_some_and(|server| is_ours(server, net))
                && request
                    .wanted
                    .is_some_and(|address| leases.decline(mac, address, now));
            Err(Step::Silence(if declined {
                "it found its address in use"
            } else {
                "it declines an address that is not its own"
            }))
        }
        Kind::Release => {
            let released = leases.release(mac, request.ciaddr);
            Err(Step::Silence(if released {
                "it gave its address back"
            } else {
                "it gives back an address that is not its own"
            }))
        }
        Kind::Inform if net.subnet.is_host(request.ciaddr) => Ok(Grant::Inform),
        _ => Err(Step::Silence("its request names no address")),
    }
}

/// Proxy mode: [`decide`] has let pass only clients that boot.
fn proxy(request: &Request, port: u16, net: &Net) -> Result<Grant, Step> {
    match request.kind {
        Kind::Discover => Ok(Grant::ProxyOffer),
        Kind::Request | Kind::Inform if port == PXE_PORT || request.server == Some(net.own) => {
            Ok(Grant::ProxyAck)
        }
        Kind::Request => Err(Step::Silence("it took the address server's offer")),
        _ => Err(Step::Silence("it is another server's to answer")),
    }
}

/// Where a reply goes (RFC 2131, 4.1). `from` is where the request came from.
///
/// Never out of the segment, whatever the request claims: a forged address must not make us a reflector.
pub fn destination(
    request: &Request,
    net: &Net,
    reply: &Reply,
    port: u16,
    from: SocketAddrV4,
) -> SocketAddrV4 {
    let broadcast = SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT);
    if !request.giaddr.is_unspecified() {
        SocketAddrV4::new(request.giaddr, SERVER_PORT)
    } else if port == PXE_PORT && net.subnet.is_host(*from.ip()) {
        from
    } else if reply.kind == Kind::Nak || !net.subnet.is_host(request.ciaddr) {
        // A client without an address answers no ARP; a broadcast reaches it whether it asked for one or not.
        broadcast
    } else {
        SocketAddrV4::new(request.ciaddr, CLIENT_PORT)
    }
}

/// Who asked and what became of it, in a few words for the log.
pub fn describe(request: &Request, step: &Step) -> String {
    let client = match Client::of(request) {
        Client::Firmware if request.ipxe => "iPXE without HTTP or the kernel's format",
        Client::Firmware => "firmware",
        Client::Ipxe => "iPXE",
        Client::Http => "UEFI HTTP boot",
        Client::Agent => "agent",
        Client::System => "system",
    };
    match step {
        Step::Silence(why) => format!("{client}: no answer: {why}"),
        Step::Probe(address) => format!("{client}: probing {address}"),
        Step::Send(reply, file) => {
            let boot = match file {
                File::None => String::new(),
                File::OwnDisk(why) => format!(" and no boot file: {why}"),
                File::Tftp(name) => format!(" and {name}"),
                File::Script(_) => " and a boot script".to_owned(),
                File::Uki(_) => " and a UKI".to_owned(),
            };
            match reply.kind {
                Kind::Nak => format!("{client}: refused"),
                _ if reply.yiaddr.is_unspecified() => format!("{client}: no address{boot}"),
                _ => format!("{client}: {}{boot}", reply.yiaddr),
            }
        }
    }
}
