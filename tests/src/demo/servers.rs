//! The servers of the demo: nobody has described them.

use muster_proto::Mac;

use crate::{
    bridges::{BR0, BR1},
    machine::{Bus, Disk, MachineSpec, Nic, NicModel, Smbios, UefiNet},
};

/// `count` servers: a BIOS one, a UEFI one, then more BIOS ones. `run` tells this run's serials from another's.
pub(super) fn specs(count: usize, run: u32) -> Vec<MachineSpec> {
    (0..count)
        .map(|number| match number {
            1 => uefi(number, run),
            _ => bios(number, run),
        })
        .collect()
}

fn bios(number: usize, run: u32) -> MachineSpec {
    let serial = serial("B", number, run);
    MachineSpec::bios(&format!("bios-{}", number + 1), mac(number, 0, run), BR0.name)
        .with_smbios(Smbios::of("Example Servers", "Pizza Box 1", &serial).with_uuid(&uuid(number, run)))
        // An image goes on the smallest disk, and a BIOS boots none but its first.
        .with_disk(Disk::new(Bus::Virtio, 10, &format!("VIRT{number:04}")))
        .with_disk(Disk::new(Bus::Nvme, 20, &format!("NVME{number:04}")))
}

fn uefi(number: usize, run: u32) -> MachineSpec {
    let serial = serial("U", number, run);
    let wwn = 0x5000_c500_0000_0000 + u64::try_from(number).unwrap_or(0) * 2;
    let mut spec = MachineSpec::uefi(
        &format!("uefi-{}", number + 1),
        mac(number, 0, run),
        BR1.name,
        UefiNet::Http,
    )
    .with_smbios(Smbios::of("Example Servers", "Tall Box 2", &serial).with_uuid(&uuid(number, run)))
    .with_nic(Nic::new(NicModel::E1000e, mac(number, 1, run), BR1.name))
    .with_disk(Disk::new(Bus::Sata, 100, &format!("SATA{number:04}")).with_wwn(wwn))
    .with_disk(Disk::new(Bus::Scsi, 50, &format!("SCSI{number:04}")).with_wwn(wwn + 1));
    spec.cpus = 2;
    spec
}

fn serial(kind: &str, number: usize, run: u32) -> String {
    match run {
        0 => format!("{kind}{:04}", number + 1),
        run => format!("{kind}{run:05}{:04}", number + 1),
    }
}

fn mac(number: usize, nic: u8, run: u32) -> Mac {
    let [_, _, high, low] = run.to_be_bytes();
    let number = u8::try_from(number).unwrap_or(u8::MAX);
    Mac([0x52, 0x54 ^ (nic << 2), high, low, number, nic])
}

fn uuid(number: usize, run: u32) -> String {
    format!("8d1f0a52-6c1e-4b7a-9e2d-{run:08x}{number:04x}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_servers_share_anything_that_names_them() {
        let all: Vec<_> = [0, 7].into_iter().flat_map(|run| specs(8, run)).collect();
        let macs: BTreeSet<_> = all
            .iter()
            .flat_map(|spec| &spec.nics)
            .map(|nic| nic.mac)
            .collect();
        assert_eq!(macs.len(), 18);
        assert!(macs.iter().all(|mac| mac.is_unicast()));
        let serials: BTreeSet<_> = all.iter().map(|spec| &spec.smbios.serial).collect();
        assert_eq!(serials.len(), 16);
        let uuids: BTreeSet<_> = all.iter().map(|spec| &spec.smbios.uuid).collect();
        assert_eq!(uuids.len(), 16);
        for spec in &all {
            assert!(muster_proto::text::usable_uuid(&spec.smbios.uuid).is_some());
            assert!(muster_proto::text::usable(&spec.smbios.serial).is_some());
        }
    }
}
