//! Permission to destroy data. Only this module makes a [`Permit`], and no job that cleans or writes can be made without one. Pure.

use muster_proto::{
    inventory::{Disk, Inventory},
    job::{DiskId, MachineId},
    kinds::{BareMetalHost, PROTECTED_ANNOTATION, Packed, Server, SessionState},
    session::Action,
};

use super::{
    State,
    conditions::CONTESTED,
    detached::is_cut_off,
    disk::{can_be_told, has_twin},
    observed::{Observed, Rival},
};
use crate::{
    hosts::{self, annotation},
    lenient::is_marked,
};

/// Permission to destroy what is on these disks of this machine, given in this round and for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    machine: MachineId,
    disks: Vec<DiskId>,
}

impl Permit {
    /// The machine that is meant.
    pub fn machine(&self) -> &MachineId {
        &self.machine
    }

    /// The disks that are meant; for a write exactly one.
    pub fn disks(&self) -> &[DiskId] {
        &self.disks
    }
}

/// True if nothing on the host's disks may be destroyed, whatever its spec says.
pub fn is_protected(host: &BareMetalHost) -> bool {
    annotation(host, PROTECTED_ANNOTATION).is_some_and(|value| value != "false")
}

/// True if `action` is not to be done to the host now, though it was ordered: a person has said otherwise since.
pub fn is_called_off(host: &BareMetalHost, action: &Action) -> bool {
    is_left_alone(host) || (destroys(action) && is_protected(host))
}

/// True if `action` destroys data.
pub fn destroys(action: &Action) -> bool {
    matches!(action, Action::Clean(_) | Action::Write(_))
}

/// True if nothing is to be done about the host or its machine: it is paused, or out of our hands.
pub(super) fn is_left_alone(host: &BareMetalHost) -> bool {
    hosts::is_paused(host) || is_cut_off(host)
}

/// Why the host's disks keep their data also where the host is deleted; none: they need not. There is one where [`untouchable`] has one.
pub(super) fn kept(host: &BareMetalHost) -> Option<&'static str> {
    if is_protected(host) {
        return Some("the host is protected");
    }
    (host.spec.externally_provisioned == Some(true)).then_some("the host is externally provisioned")
}

/// Why nothing is written to the disks of a protected host, and what helps.
pub(super) const UNWRITTEN: &str =
    "the host is protected: its disks are not written; next: remove the annotation muster.dev/protected";

/// Why what runs on the host is not to be taken away; none: it may be. Better known before its machine is rebooted for that.
pub(super) fn untouchable(host: &BareMetalHost) -> Option<&'static str> {
    if is_protected(host) {
        return Some(
            "the host is protected: it is not deprovisioned; next: remove the annotation muster.dev/protected",
        );
    }
    (host.spec.externally_provisioned == Some(true)).then_some(
        "the host is externally provisioned: it is not deprovisioned; next: set spec.externallyProvisioned to false",
    )
}

/// Whether another host is in the way: one that precedes this one, or whose machine may carry somebody's data.
pub(super) fn rival(seen: &Observed) -> Result<(), String> {
    let is_in_the_way = |rival: &&Rival| rival.precedes || rival.state.may_carry_data();
    match seen.rivals.iter().find(is_in_the_way) {
        Some(rival) => Err(rival.words()),
        None => Ok(()),
    }
}

/// Permission to write an image to `disk`.
pub(super) fn to_write(host: &BareMetalHost, seen: &Observed, disk: &Disk) -> Result<Permit, String> {
    if State::of(host) != State::Provisioning || hosts::is_being_deleted(host) {
        return Err("the host is not provisioning".to_owned());
    }
    let wanted = host
        .spec
        .image
        .as_ref()
        .is_some_and(|image| !image.url.is_empty());
    if !wanted {
        return Err("the host has no image".to_owned());
    }
    permit(host, seen, &[disk])
}

/// Permission to clear the partition tables and signatures of `disks`.
pub(super) fn to_clean(host: &BareMetalHost, seen: &Observed, disks: &[&Disk]) -> Result<Permit, String> {
    if !matches!(State::of(host), State::Provisioning | State::Deprovisioning) {
        return Err("the host is neither provisioning nor deprovisioning".to_owned());
    }
    permit(host, seen, disks)
}

fn permit(host: &BareMetalHost, seen: &Observed, disks: &[&Disk]) -> Result<Permit, String> {
    if is_protected(host) {
        return Err(format!(
            "the host is protected (annotation {PROTECTED_ANNOTATION})"
        ));
    }
    if is_left_alone(host) {
        return Err("the host is paused or detached".to_owned());
    }
    rival(seen)?;
    if host.spec.externally_provisioned == Some(true) {
        return Err("the host is externally provisioned".to_owned());
    }
    let server = seen.server.as_deref().ok_or("no machine is linked to the host")?;
    let reported = server
        .status
        .as_ref()
        .and_then(|status| status.inventory.as_ref());
    let inventory = reported.map(Packed::unpack).unwrap_or_default();
    let machine = machine(host, server, &inventory)?;
    let disks: Vec<DiskId> = disks
        .iter()
        .map(|disk| identified(&inventory, disk))
        .collect::<Result<_, _>>()?;
    if disks.is_empty() {
        return Err("the machine has no disk".to_owned());
    }
    Ok(Permit { machine, disks })
}

/// The machine behind `server`, if it is the host's and can be told from others.
fn machine(host: &BareMetalHost, server: &Server, inventory: &Inventory) -> Result<MachineId, String> {
    let us = hosts::reference(host);
    if us.uid.is_empty() || server.spec.host.as_ref() != Some(&us) {
        return Err("the machine is not linked to the host".to_owned());
    }
    let status = server.status.as_ref().ok_or("the machine has not been seen")?;
    if is_marked(server) {
        return Err("part of the machine's Server cannot be read".to_owned());
    }
    if status.contested {
        return Err(CONTESTED.to_owned());
    }
    let session = status.session.as_ref();
    let session = session.filter(|session| session.state == SessionState::Connected);
    let session = session.ok_or("the machine's ramdisk is not connected")?;
    // What the Server had at any time does not count: the NIC may have moved.
    if let Some(mac) = hosts::declared_mac(host)
        && session.boot_mac != Some(mac)
        && !inventory.identity.macs.contains(&mac)
    {
        return Err(format!(
            "the machine has no NIC with the host's boot MAC address {mac}"
        ));
    }
    // The inventory is the latest report, the identity all that there ever was.
    let id = MachineId::from(&inventory.identity);
    if id == MachineId::default() {
        return Err(
            "the machine has no usable UUID or serial number, not even of its board: it cannot be told apart from other machines; \
             next: set a serial number or a UUID in the firmware's setup or with the vendor's tool, then reboot the machine"
                .to_owned(),
        );
    }
    Ok(id)
}

/// `disk`, if it is one of the machine's and can be told from its others.
fn identified(inventory: &Inventory, disk: &Disk) -> Result<DiskId, String> {
    if !inventory.disks.contains(disk) {
        return Err(format!(
            "the disk {} is not in the machine's inventory",
            disk.name
        ));
    }
    if disk.size_bytes == 0 {
        return Err(format!("the size of disk {} is unknown", disk.name));
    }
    can_be_told(&inventory.disks, disk).map_err(|why| {
        format!(
            "the disk {} has {why}: it cannot be told apart from other disks",
            disk.name
        )
    })?;
    Ok(DiskId {
        has_twin: has_twin(&inventory.disks, disk),
        ..DiskId::from(disk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_one_serial_number_and_size_are_told_by_their_place_or_not_at_all() {
        let disk = |name: &str, by_path: &str, size_bytes| Disk {
            name: name.to_owned(),
            by_path: by_path.to_owned(),
            serial: "0123456789".to_owned(),
            size_bytes,
            ..Disk::default()
        };
        let twins = |disks: &[Disk]| {
            let inventory = Inventory {
                disks: disks.to_vec(),
                ..Inventory::default()
            };
            identified(&inventory, &disks[0]).map(|id| id.has_twin)
        };
        assert_eq!(
            twins(&[disk("/dev/sda", "a", 1), disk("/dev/sdb", "b", 1)]),
            Ok(true)
        );
        assert_eq!(
            twins(&[disk("/dev/sda", "a", 1), disk("/dev/sdb", "b", 2)]),
            Ok(false)
        );
        assert!(twins(&[disk("/dev/sda", "", 1), disk("/dev/sdb", "b", 1)]).is_err());
        assert_eq!(twins(&[disk("/dev/sda", "", 1)]), Ok(false));
    }
}
